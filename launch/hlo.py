"""What a compiled program does, counted from its text: arithmetic, memory traffic, what chips send.

The compiler's own cost analysis counts the body of a loop once. Here every computation counts as often as it
runs: the loops of a training step know their trip counts. Where one does not (decoding ends when rows have
ended), its body counts once, so that the figures are those of one pass. All branches of a conditional count.

Everything is per device: after partitioning, the text is the program of one.
"""

import math
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np

COLLECTIVES = ("all-gather", "all-reduce", "all-to-all", "collective-permute", "reduce-scatter")

_FREE = {
    *("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "iota", "partition-id"),
    *("while", "conditional", "call", "opt-barrier", "async-start", "async-update", "domain"),
    "add-dependency",
}
"""Operations that move nothing by themselves; what they call is counted where it stands."""

_SLICES = ("dynamic-slice", "slice", "gather")

_BYTES = {"pred": 1, "s4": 0.5, "u4": 0.5, "s8": 1, "u8": 1, "s16": 2, "u16": 2, "bf16": 2, "f16": 2}
_BYTES |= {"s32": 4, "u32": 4, "f32": 4, "s64": 8, "u64": 8, "f64": 8, "c64": 8, "c128": 16}

_HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\) -> .* \{$")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (.*)$")
_OPCODE = re.compile(r"(?:^|[\s)}\]])([a-z][a-z0-9\-]*)\(")
_SHAPE = re.compile(r"\b([a-z]+\d*(?:e\dm\d\w*)?)\[([\d,]*)\](?:\{([^}]*)\})?")
_NAME = re.compile(r"%([\w.\-]+)")
_CALLED = re.compile(r"\b(?:calls|body|condition|to_apply|true_computation|false_computation)=%?([\w.\-]+)")
_CONDITION = re.compile(r"\bcondition=%?([\w.\-]+)")
_BODY = re.compile(r"\bbody=%?([\w.\-]+)")
_INDEX = re.compile(r"\bindex=(\d+)")
_BRANCHES = re.compile(r"\bbranch_computations=\{([^}]*)\}")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')


@dataclass(frozen=True)
class Shape:
    """An array of a program.

    Attributes:
      dtype: In HLO's names.
      sizes: Of its axes.
      on_chip: Whether the compiler keeps it in the core's own memory, not in HBM.
    """

    dtype: str
    sizes: tuple[int, ...]
    on_chip: bool = False

    @property
    def bytes(self) -> float:
        """Its size; 8-bit floats and tokens count one byte an element, and none."""
        each = _BYTES.get(self.dtype, 1 if self.dtype.startswith("f8") else 0)
        return each * math.prod(self.sizes)


@dataclass(frozen=True)
class Instruction:
    """One line of a computation.

    Attributes:
      name: Unique in its computation.
      opcode: What it does.
      shapes: Of its results.
      arguments: What stands in its parentheses.
      text: What follows them.
    """

    name: str
    opcode: str
    shapes: tuple[Shape, ...]
    arguments: str
    text: str

    @property
    def operands(self) -> list[str]:
        """Names of the instructions whose results it takes."""
        return _NAME.findall(self.arguments)

    @property
    def bytes(self) -> float:
        """Of its results, as far as they are in HBM."""
        return sum(shape.bytes for shape in self.shapes if not shape.on_chip)


@dataclass
class Computation:
    """A computation's instructions by name, and which of them is its result."""

    instructions: dict[str, Instruction] = field(default_factory=dict)
    root: str = ""


@dataclass(frozen=True)
class Totals:
    """What one run of a program does on each device.

    Attributes:
      flops: Of matrix products, a multiplication and an addition counting two. Kernels count nothing.
      bytes: Read from and written to memory.
      collectives: Bytes of the arrays that collectives gather, reduce or send, by kind.
      kernels: How often each custom kernel runs.
      open_loops: Loops whose body was counted once, since nothing says how often it runs.
    """

    flops: float
    bytes: float
    collectives: Mapping[str, float]
    kernels: Mapping[str, float]
    open_loops: int


def count(text: str) -> Totals:
    """Counts a program's text, as `jax.stages.Compiled.as_text` gives it.

    Raises:
      ValueError: if the text has no entry computation.
    """
    computations, entry = parse(text)
    flops = moved = 0.0
    collectives: dict[str, float] = defaultdict(float)
    kernels: dict[str, float] = defaultdict(float)
    open_loops = 0
    for computation, fused, times in _runs(computations, entry):
        for instruction in computation.instructions.values():
            flops += times * _flops(instruction, computation)
            kind = instruction.opcode.removesuffix("-start")
            if kind in COLLECTIVES and not _is_repeated(instruction, computation):
                collectives[kind] += times * _sent(instruction, computation)
            if instruction.opcode == "custom-call" and (name := _kernel(instruction)):
                kernels[name] += times
            if instruction.opcode == "while" and _trips(instruction, computations) is None:
                open_loops += 1
            if not fused:
                moved += times * _moved(instruction, computation, computations)
    return Totals(flops, moved, dict(collectives), dict(kernels), open_loops)


def parse(text: str) -> tuple[dict[str, Computation], str]:
    """The computations of a program by name, and the name of the one it begins with."""
    computations: dict[str, Computation] = {}
    entry, current = "", Computation()
    for line in text.splitlines():
        if header := _HEADER.match(line):
            current = computations[header.group(2)] = Computation()
            entry = header.group(2) if header.group(1) else entry
        elif found := _INSTRUCTION.match(line):
            instruction = _instruction(found.group(1), found.group(2))
            current.instructions[instruction.name] = instruction
            if line.lstrip().startswith("ROOT "):
                current.root = instruction.name
    if not entry:
        raise ValueError("the text is no HLO module: it has no line that begins with ENTRY")
    return computations, entry


def _instruction(name: str, text: str) -> Instruction:
    opcode = _OPCODE.search(text)
    if opcode is None:
        return Instruction(name, "", (), "", text)
    shapes = tuple(
        Shape(dtype, tuple(int(n) for n in sizes.split(",") if n), "S(1)" in layout)
        for dtype, sizes, layout in _SHAPE.findall(text[: opcode.start(1)])
    )
    depth, stop = 0, opcode.end() - 1
    while stop < len(text):
        depth += {"(": 1, ")": -1}.get(text[stop], 0)
        if depth == 0:
            break
        stop += 1
    return Instruction(name, opcode.group(1), shapes, text[opcode.end() : stop], text[stop + 1 :])


def _runs(
    computations: Mapping[str, Computation], name: str, fused: bool = False, times: float = 1
) -> Iterator[tuple[Computation, bool, float]]:
    """Every computation that runs, whether inside of another instruction, and how often."""
    computation = computations[name]
    yield computation, fused, times
    for instruction in computation.instructions.values():
        if instruction.opcode in ("async-update", "async-done"):  # name what their start has called
            continue
        called = _CALLED.findall(instruction.text)
        for branches in _BRANCHES.findall(instruction.text):
            called += _NAME.findall(branches)
        repeated = times * (_trips(instruction, computations) or 1)
        inside = fused or instruction.opcode not in ("while", "conditional", "call", "async-start")
        for inner in called:
            if inner in computations:
                yield from _runs(computations, inner, inside, repeated)


def _trips(loop: Instruction, computations: Mapping[str, Computation]) -> int | None:
    """How often a loop runs, if it counts; None if it does not, or if this is no loop.

    Where the compiler does not note it, as that for TPU, the condition shows it: loops that count do so from
    0, up to a constant. JAX's go by 1; those of the compiler, where products meet what is gathered, by 2.
    """
    if loop.opcode != "while":
        return None
    if noted := _TRIPS.search(loop.text):
        return int(noted.group(1))
    condition = computations[_CONDITION.search(loop.text).group(1)]  # type: ignore[union-attr]
    test = condition.instructions[condition.root]
    if test.opcode != "compare" or "direction=LT" not in test.text:
        return None
    counter, end = (condition.instructions[name] for name in test.operands)
    counts = counter.opcode == "get-tuple-element" and end.opcode == "constant" and end.arguments.isdigit()
    return -(-int(end.arguments) // _step(loop, counter, computations)) if counts else None


def _step(loop: Instruction, counter: Instruction, computations: Mapping[str, Computation]) -> int:
    """What a loop adds to its counter; 1 if that cannot be read."""
    body, place = _BODY.search(loop.text), _INDEX.search(counter.text)
    if body is None or place is None:
        return 1
    known = computations[body.group(1)].instructions
    results = known[computations[body.group(1)].root].operands
    added = known[results[int(place.group(1))]] if int(place.group(1)) < len(results) else None
    if added is None or added.opcode != "add":
        return 1
    constants = [known[name] for name in added.operands if known[name].opcode == "constant"]
    return int(constants[0].arguments) if constants and constants[0].arguments.isdigit() else 1


def _flops(instruction: Instruction, computation: Computation) -> float:
    """Of a matrix product; TPU programs have convolutions in the place of those."""
    if instruction.opcode == "dot":
        left = computation.instructions[instruction.operands[0]].shapes[0]
        axes = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", instruction.text)
        summed = math.prod(left.sizes[int(n)] for n in axes.group(1).split(",") if n) if axes else 1
        return 2.0 * math.prod(instruction.shapes[0].sizes) * summed
    if instruction.opcode == "convolution":
        return _convolution_flops(instruction, computation)
    return 0.0


def _convolution_flops(instruction: Instruction, computation: Computation) -> float:
    """Products with elements that exist: windows may hang over the edge, or stand on holes."""
    left, right = (computation.instructions[name].shapes[0].sizes for name in instruction.operands[:2])
    result = instruction.shapes[0].sizes
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", instruction.text)
    assert labels is not None
    of_left, of_right, of_result = labels.groups()
    window = dict(re.findall(r"(\w+)=([\dx_\-]+)", _window(instruction.text)))
    spatial = [label for label in of_result if label.isdigit()]
    flops = 2.0 * right[of_right.index("i")]
    flops *= math.prod(result[of_result.index(label)] for label in "bf")
    for number, label in enumerate(spatial):
        sizes = left[of_left.index(label)], right[of_right.index(label)], result[of_result.index(label)]
        flops *= _pairs(*sizes, *_window_of(window, number))
    return flops


def _window(text: str) -> str:
    found = re.search(r"window=\{([^}]*)\}", text)
    return found.group(1) if found else ""


def _window_of(window: Mapping[str, str], number: int) -> tuple[int, int, int, int]:
    """Stride, padding before, and the dilations of both sides, of one spatial axis."""

    def of(name: str, default: str) -> str:
        return window[name].split("x")[number] if name in window else default

    padding = int(of("pad", "0_0").split("_")[0])
    return int(of("stride", "1")), padding, int(of("lhs_dilate", "1")), int(of("rhs_dilate", "1"))


def _pairs(size: int, width: int, results: int, stride: int, padding: int, holes: int, dilation: int) -> int:
    """For how many pairs of a result's place and a window's place the input has an element there."""
    places = np.arange(results) * stride - padding
    total = 0
    for offset in range(0, width * dilation, dilation):
        at = places + offset
        total += int(np.sum((at >= 0) & (at <= (size - 1) * holes) & (at % holes == 0)))
    return total


def _is_repeated(instruction: Instruction, computation: Computation) -> bool:
    """Whether a collective only goes on that a fusion before has started.

    The compiler for TPU names it in every fusion that computes meanwhile, as links of a chain.
    """
    starts = (found.text for found in computation.instructions.values() if found.opcode == "custom-call")
    return "chain_id=" in instruction.text and not any("AsyncCollectiveStart" in text for text in starts)


def _sent(instruction: Instruction, computation: Computation) -> float:
    """The larger of what goes into a collective and what comes out."""
    known = computation.instructions
    into = [shape for name in instruction.operands if name in known for shape in known[name].shapes]
    out = list(instruction.shapes)
    if instruction.opcode.endswith("-start") and len(out) >= 2 * len(into):  # repeats what goes in
        out = out[len(into) : 2 * len(into)]
    return max(sum(shape.bytes for shape in into), sum(shape.bytes for shape in out))


def _kernel(instruction: Instruction) -> str | None:
    """The name of a Pallas kernel; None for other custom calls, which the compiler makes for itself."""
    if 'custom_call_target="tpu_custom_call"' not in instruction.text:
        return None
    return re.sub(r"\.\d+$", "", instruction.name)


def _moved(
    instruction: Instruction, computation: Computation, computations: Mapping[str, Computation]
) -> float:
    """Bytes that an instruction reads and writes; of what it slices only the slice."""
    opcode, known = instruction.opcode, computation.instructions
    if opcode in _FREE or opcode.endswith("-done") or opcode.removesuffix("-start") in COLLECTIVES:
        return 0.0
    if opcode in _SLICES:
        return 2 * instruction.bytes
    if opcode == "dynamic-update-slice":
        return 2 * known[instruction.operands[1]].bytes
    inner, written = None, instruction.bytes
    if opcode == "fusion" and (called := _CALLED.search(instruction.text)):
        inner = computations[called.group(1)]
        written = _written(inner)
    operands = [known[name] for name in instruction.operands if name in known]
    return written + sum(_read(operand, number, inner) for number, operand in enumerate(operands))


def _written(inner: Computation) -> float:
    """Bytes of a fusion's results: what it hands on is not written, and of what it changes only that part."""
    root = inner.instructions[inner.root]
    results = [inner.instructions[name] for name in root.operands] if root.opcode == "tuple" else [root]
    return sum(
        inner.instructions[result.operands[1]].bytes
        if result.opcode == "dynamic-update-slice"
        else result.bytes
        for result in results
        if result.opcode != "parameter"
    )


def _read(operand: Instruction, number: int, inner: Computation | None) -> float:
    """Bytes of an operand that are read: all, or the slices that a fusion takes of it."""
    if inner is None:
        return operand.bytes
    parameter = next(
        found.name
        for found in inner.instructions.values()
        if found.opcode == "parameter" and found.arguments == str(number)
    )
    users = [found for found in inner.instructions.values() if parameter in found.operands]
    users = [user for user in users if user.opcode not in ("tuple", *COLLECTIVES)]
    sliced = [user for user in users if user.opcode in _SLICES and user.operands[0] == parameter]
    overwritten = [
        user for user in users if user.opcode == "dynamic-update-slice" and user.operands[0] == parameter
    ]
    if len(sliced) + len(overwritten) < len(users):
        return operand.bytes
    return min(operand.bytes, sum(user.bytes for user in sliced))
