"""Imports go one way: each room uses only those before it, and no two modules use each other."""

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]

ORDER = (
    # What everything stands on.
    *("settings", "types", "distributed", "storage", "command"),
    # Problems, texts, models.
    *("tasks", "text", "data", "model", "flops", "divergence", "engine", "clock", "analysis"),
    # The algorithm.
    *("config", "mesh_choice", "contexts", "fixes", "losses", "sample", "batch", "step", "attribution"),
    *("checkpoints", "monitor", "train", "richness"),
    # What is made of it.
    *("evaluate", "generate", "match", "convert", "api", "experiments", "report", "study"),
)
"""Rooms of the package from the ground up: packages, and modules at its top."""


def modules() -> dict[str, Path]:
    """Dotted name → file, of every module of the package."""
    found = {}
    for path in sorted((ROOT / "sdistill").rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports(path: Path) -> Iterator[str]:
    """Dotted names that a module imports, inside functions as well."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def room(module: str) -> str:
    return module.split(".")[1]


def edges() -> dict[str, set[str]]:
    """Module → modules of the package that it imports."""
    known = modules()
    found: dict[str, set[str]] = {}
    for name, path in known.items():
        targets = (t if t in known else t.rpartition(".")[0] for t in imports(path))
        found[name] = {t for t in targets if t in known and t not in (name, "sdistill")}
    return found


def test_every_room_has_its_place():
    rooms = {room(name) for name in modules() if name != "sdistill"}
    assert rooms == set(ORDER)


def test_rooms_import_only_from_rooms_before_them():
    upward = [
        f"{name} imports {target}"
        for name, targets in edges().items()
        for target in sorted(targets)
        if name != "sdistill"
        and room(name) != room(target)
        and ORDER.index(room(target)) > ORDER.index(room(name))
    ]
    assert not upward


def test_no_modules_import_each_other_in_a_circle():
    graph, done = edges(), set[str]()

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, " → ".join((*path, name))
        if name not in done:
            for target in sorted(graph[name]):
                visit(target, (*path, name))
            done.add(name)

    for name in graph:
        visit(name, ())


def test_nothing_in_the_package_knows_the_tools_around_it():
    outside = {"launch", "configs", "tests"}
    found = [
        f"{name}: {t}"
        for name, path in modules().items()
        for t in imports(path)
        if t.split(".")[0] in outside
    ]
    assert not found
