import json
from dataclasses import FrozenInstanceError, dataclass, field
from typing import Literal

import pytest

from sdistill.settings import ConfigError, parse, require, to_json


@dataclass(frozen=True)
class Inner:
    rate: float
    name: str = "x"

    def __post_init__(self):
        require(self.rate > 0, f"rate={self.rate} must be positive")


@dataclass(frozen=True)
class Outer:
    inner: Inner
    mode: Literal["a", "b", 3] = "a"
    count: int = 1
    flag: bool = False
    maybe: int | None = None
    optional: Inner | None = None
    names: tuple[str, ...] = ()
    default: Inner = field(default_factory=lambda: Inner(1.0))


def test_plain_values_become_typed_ones():
    parsed = parse(
        Outer,
        {
            "inner": {"rate": 2},
            "mode": 3,
            "flag": True,
            "maybe": None,
            "optional": {"rate": 0.5, "name": "y"},
            "names": ["p", "q"],
        },
    )
    assert parsed == Outer(Inner(2.0), 3, 1, True, None, Inner(0.5, "y"), ("p", "q"), Inner(1.0))
    assert type(parsed.inner.rate) is float and type(parsed.names) is tuple
    with pytest.raises(FrozenInstanceError):
        parsed.count = 2


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "missing field config.inner (Inner)"),
        ({"inner": {}}, "missing field config.inner.rate (float)"),
        ({"inner": {"rate": 1.0}, "cuont": 2}, "unknown field config.cuont; did you mean 'count'?"),
        ({"inner": {"rate": 1.0, "nmae": ""}}, "unknown field config.inner.nmae; did you mean 'name'?"),
        ({"inner": {"rate": 1.0, "zzz": ""}}, "unknown field config.inner.zzz; known fields: rate, name"),
        ({"inner": {"rate": "1"}}, "config.inner.rate='1' must be float, not str"),
        ({"inner": {"rate": True}}, "config.inner.rate=True must be float, not bool"),
        ({"inner": {"rate": None}}, "config.inner.rate=None must be float, not NoneType"),
        ({"inner": 3}, "config.inner=3 must be Inner, not int"),
        ({"inner": {"rate": 1.0}, "count": 1.0}, "config.count=1.0 must be int, not float"),
        ({"inner": {"rate": 1.0}, "count": True}, "config.count=True must be int, not bool"),
        ({"inner": {"rate": 1.0}, "flag": 1}, "config.flag=1 must be bool, not int"),
        ({"inner": {"rate": 1.0}, "maybe": "2"}, "config.maybe='2' must be int, not str"),
        ({"inner": {"rate": 1.0}, "mode": "c"}, "config.mode='c' must be one of 'a', 'b', 3"),
        ({"inner": {"rate": 1.0}, "names": "pq"}, "config.names='pq' must be tuple"),
        ({"inner": {"rate": 1.0}, "names": ["p", 2]}, "config.names[1]=2 must be str, not int"),
        ({"inner": {"rate": -1.0}}, "config.inner.rate=-1.0 must be positive"),
        ({"inner": {"rate": 1.0}, "optional": {"rate": 0}}, "config.optional.rate=0.0 must be positive"),
        ({"inner": {"rate": 1.0}, "optional": {"rte": 0}}, "config.optional.rte; did you mean 'rate'?"),
    ],
)
def test_errors_name_the_field_and_the_way_out(values, message):
    with pytest.raises(ConfigError) as error:
        parse(Outer, values)
    assert message in str(error.value)
    assert str(error.value).count("config.") == 1


@dataclass(frozen=True)
class Shared:
    kind: Literal["x", "y"]
    seed: int


@dataclass(frozen=True)
class Circle(Shared):
    shape: Literal["circle", "disc"]
    radius: float


@dataclass(frozen=True)
class Square(Shared):
    shape: Literal["square"]
    side: float = 1.0


@dataclass(frozen=True)
class Drawing:
    figure: Circle | Square | None = None


@pytest.mark.parametrize(
    ("values", "result"),
    [
        ({"shape": "circle", "radius": 2}, Circle("x", 0, "circle", 2.0)),
        ({"shape": "disc", "radius": 1.0}, Circle("x", 0, "disc", 1.0)),
        ({"shape": "square"}, Square("x", 0, "square", 1.0)),
        ({"radius": 1.0}, "missing field {}.shape (one of 'circle', 'disc', 'square')"),
        ({"shape": "line"}, "{}.shape='line' must be one of 'circle', 'disc', 'square'"),
        ({"shape": "square", "radius": 1.0}, "{}.radius has no effect with shape='square'; remove it"),
        ({"shape": "square", "sise": 1.0}, "unknown field {}.sise; did you mean 'side'?"),
        ({"shape": "circle"}, "missing field {}.radius (float)"),
    ],
)
def test_a_field_with_values_of_its_own_chooses_the_class_of_a_union(values, result):
    values = {"kind": "x", "seed": 0, **values}
    for union, given, path, wrap in (
        (Circle | Square, values, "config", lambda parsed: parsed),
        (Drawing, {"figure": values}, "config.figure", Drawing),
    ):
        if not isinstance(result, str):
            assert parse(union, given) == wrap(result)
            continue
        with pytest.raises(ConfigError) as error:
            parse(union, given)
        assert str(error.value) == result.format(path)


def test_classes_without_such_a_field_make_no_union():
    assert parse(Drawing, {"figure": None}) == Drawing()
    with pytest.raises(TypeError, match="no Literal field tells Inner and Outer apart"):
        parse(Inner | Outer, {})


def test_json_is_canonical_and_reads_back():
    one = Outer(Inner(1.0), names=("p",))
    values = json.loads(to_json(one))
    assert parse(Outer, values) == one
    assert list(values) == sorted(values)
    shuffled = parse(Outer, dict(reversed(values.items())))
    assert to_json(shuffled) == to_json(one)
