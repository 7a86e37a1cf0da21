"""Links between pages lead somewhere, and the configs that pages name exist."""

import json
import re
from pathlib import Path

import pytest

from tests.processes import ROOT

PAGES = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *(ROOT / "colab").glob("*")]
LINK = re.compile(r"\]\(([^)\s]+)\)")
CONFIG = re.compile(r"configs/[\w/]+\.py")

parametrized = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


def prose(page: Path) -> str:
    """The text of a page, or of the prose of a notebook."""
    text = page.read_text(encoding="utf-8")
    if page.suffix != ".ipynb":
        return text
    return "\n".join("".join(cell["source"]) for cell in json.loads(text)["cells"])


def without_code(text: str) -> str:
    """The text without fenced blocks, which are diffs of files that are not there."""
    return re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)


def anchors(page: Path) -> set[str]:
    """What `#...` can point at: headings as GitHub writes them."""
    heads = re.findall(r"^#+ (.+)$", without_code(prose(page)), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


@parametrized
def test_links_lead_somewhere(page):
    broken = []
    for link in LINK.findall(prose(page)):
        if re.match(r"\w+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            broken.append(link)
    assert broken == []


@parametrized
def test_configs_that_are_named_exist(page):
    assert [name for name in CONFIG.findall(without_code(prose(page))) if not (ROOT / name).exists()] == []


def test_the_index_names_every_page():
    index = LINK.findall((ROOT / "docs" / "README.md").read_text(encoding="utf-8"))
    assert {page.name for page in (ROOT / "docs").glob("*.md")} - {"README.md"} == {
        link for link in index if "/" not in link
    }
