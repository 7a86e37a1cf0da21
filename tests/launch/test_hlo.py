"""What is counted in a program's text: as XLA itself counts where nothing loops, elsewhere by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from launch import hlo


def compiled(function, *shapes):
    return jax.jit(function).lower(*(jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes)).compile()


def test_a_loop_counts_as_often_as_it_runs():
    def repeated(x, w):
        def inner(x, _):
            return jax.lax.scan(lambda x, _: (x @ w, None), x, length=3)

        return jax.lax.scan(inner, x, length=5)[0]

    program = compiled(repeated, (8, 16), (16, 16))
    once = 2 * 8 * 16 * 16
    assert hlo.count(program.as_text()).flops == 15 * once
    assert program.cost_analysis()["flops"] < 2 * once  # why this module exists


def test_a_loop_of_unknown_length_counts_once_and_says_so():
    def until_large(x, w):
        return jax.lax.while_loop(lambda x: jnp.sum(x) < 1e6, lambda x: x @ w, x)

    counted = hlo.count(compiled(until_large, (8, 16), (16, 16)).as_text())
    assert counted.flops == 2 * 8 * 16 * 16 and counted.open_loops == 1


def test_products_are_those_of_xla_where_nothing_loops():
    def chain(x, w, v):
        return jnp.einsum("bij,bjk->bik", x, x) @ w, jnp.einsum("bij,bkj->ik", x, v)

    program = compiled(chain, (3, 16, 16), (16, 24), (3, 8, 16))
    expected = 2 * 3 * 16 * 16 * 16 + 2 * 3 * 16 * 16 * 24 + 2 * 3 * 16 * 16 * 8
    assert hlo.count(program.as_text()).flops == expected == pytest.approx(program.cost_analysis()["flops"])


def test_what_is_moved_is_about_what_xla_says_where_nothing_loops():
    def layer(x, w, v):
        return jax.nn.relu(x @ w) @ v + 1

    program = compiled(layer, (256, 512), (512, 1024), (1024, 128))
    moved = hlo.count(program.as_text()).bytes
    assert moved == pytest.approx(program.cost_analysis()["bytes accessed"], rel=0.1)


def test_of_a_stack_that_a_loop_walks_through_one_layer_is_read_at_a_time():
    def layers(x, stack):
        return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, stack)[0]

    depth, width = 64, 128
    moved = hlo.count(compiled(layers, (8, width), (depth, width, width)).as_text()).bytes
    assert depth * width * width * 4 <= moved <= 4 * depth * width * width * 4


@pytest.mark.parametrize(
    ("strides", "padding", "holes", "dilation"),
    [((1, 1), ((0, 0), (0, 0)), (1, 1), (1, 1)), ((2, 3), ((1, 2), (3, 1)), (1, 2), (2, 1))],
)
def test_convolutions_are_counted_as_xla_counts_them(strides, padding, holes, dilation):
    def convolved(x, w):
        return jax.lax.conv_general_dilated(x, w, strides, padding, lhs_dilation=holes, rhs_dilation=dilation)

    traced = jax.jit(convolved).lower(jnp.zeros((2, 5, 11, 13)), jnp.zeros((7, 5, 3, 4)))
    expected = traced.cost_analysis()["flops"]
    (line,) = (x for x in traced.as_text("hlo").splitlines() if " convolution(" in x)
    arguments = "%a = f32[2,5,11,13]{3,2,1,0} parameter(0)\n  %b = f32[7,5,3,4]{3,2,1,0} parameter(1)"
    call = line[line.index("convolution(") :].split("), ", 1)[1]
    shape = line.split(" = ")[1].split(" ")[0]
    result = f"ROOT %c = {shape} convolution(%a, %b), {call}"
    text = f"ENTRY %main (p: f32[]) -> f32[] {{\n  {arguments}\n  {result}\n}}"
    assert hlo.count(text).flops == pytest.approx(expected)


BY_HAND = """
HloModule by_hand

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %sum = f32[] add(%a, %b)
}

%sliced (p0: f32[10,64], p1: s32[], p2: f32[10,64]) -> f32[10,64] {
  %p0 = f32[10,64]{1,0} parameter(0)
  %p1 = s32[] parameter(1)
  %zero = s32[] constant(0)
  %part = f32[1,64]{1,0} dynamic-slice(%p0, %p1, %zero), dynamic_slice_sizes={1,64}
  %p2 = f32[10,64]{1,0} parameter(2)
  ROOT %put = f32[10,64]{1,0} dynamic-update-slice(%p2, %part, %p1, %zero)
}

%send (q: bf16[4,8]) -> bf16[4,8] {
  %q = bf16[4,8]{1,0} parameter(0)
  ROOT %scattered = bf16[1,8]{1,0} reduce-scatter(%q), dimensions={0}, to_apply=%add
}

%body (t: (f32[10,64], s32[])) -> (f32[10,64], s32[]) {
  %t = (f32[10,64]{1,0}, s32[]) parameter(0)
  %x = f32[10,64]{1,0} get-tuple-element(%t), index=0
  %i = s32[] get-tuple-element(%t), index=1
  %kept = f32[10,64]{1,0:T(8,128)S(1)} copy-done(%t)
  %f = f32[10,64]{1,0:T(8,128)} fusion(%x, %i, %x), kind=kLoop, calls=%sliced
  %g = f32[10,64]{1,0:T(8,128)S(1)} negate(%kept)
  %gathered = (f32[10,64]{1,0}, f32[40,64]{1,0}) all-gather-start(%f), dimensions={0}
  %done = f32[40,64]{1,0} all-gather-done(%gathered)
  ROOT %r = (f32[10,64]{1,0}, s32[]) tuple(%f, %i)
}

%going (t: (f32[10,64], s32[])) -> pred[] {
  %t = (f32[10,64]{1,0}, s32[]) parameter(0)
  ROOT %yes = pred[] constant(true)
}

ENTRY %main (x: f32[10,64], q: bf16[4,8]) -> f32[10,64] {
  %x = f32[10,64]{1,0} parameter(0)
  %q = bf16[4,8]{1,0} parameter(1)
  %n = s32[] constant(7)
  %s = ((bf16[4,8]), bf16[1,8], u32[]) async-start(%q), calls=%send
  %e = bf16[1,8]{1,0} async-done(%s), calls=%send
  %splash.3 = f32[10,64]{1,0} custom-call(%x), custom_call_target="tpu_custom_call"
  %start = (f32[10,64]{1,0}, s32[]) tuple(%splash.3, %n)
  %w = (f32[10,64]{1,0}, s32[]) while(%start), condition=%going, body=%body, TRIPS
  ROOT %out = f32[10,64]{1,0} get-tuple-element(%w), index=0
}
"""


NOTED = BY_HAND.replace("TRIPS", 'backend_config={"known_trip_count":{"n":"7"}}')
SHOWN = BY_HAND.replace(", TRIPS", "").replace(
    "  ROOT %yes = pred[] constant(true)",
    """  %i = s32[] get-tuple-element(%t), index=1
  %end = s32[]{:T(128)} constant(7)
  ROOT %yes = pred[] compare(%i, %end), direction=LT""",
)


BY_TWO = SHOWN.replace("constant(7)\n  ROOT %yes", "constant(13)\n  ROOT %yes").replace(
    "  ROOT %r = (f32[10,64]{1,0}, s32[]) tuple(%f, %i)",
    """  %two = s32[] constant(2)
  %next = s32[]{:T(128)S(1)} add(%i, %two)
  ROOT %r = (f32[10,64]{1,0}, s32[]) tuple(%f, %next)""",
)


@pytest.mark.parametrize(
    ("text", "test"),
    [(NOTED, 0), (SHOWN, 4 + 4 + 1), (BY_TWO, 4 + 4 + 1 + 4 + 4)],
    ids=["noted", "by 1", "by 2"],
)
def test_every_kind_of_line_by_hand(text, test):
    whole, row = 10 * 64 * 4, 64 * 4
    counted = hlo.count(text)
    assert counted.collectives == {"all-gather": 7 * 4 * whole, "reduce-scatter": 4 * 8 * 2}
    assert counted.kernels == {"splash": 1}
    assert counted.bytes == 2 * whole + 7 * (2 * row + 4 + test)  # the kernel; a row read and put, its number
    assert counted.flops == 0 and counted.open_loops == 0


CHAIN = """
%started (p: bf16[4,8]) -> bf16[4,8] {
  %p = bf16[4,8]{1,0} parameter(0)
  %g = bf16[16,8]{1,0} all-gather(%p), dimensions={0}, frontend_attributes={chain_id="1"}
  ROOT %c = bf16[4,8]{1,0} custom-call(%g), custom_call_target="AsyncCollectiveStart"
}

%meanwhile (p: bf16[4,8], x: f32[4,4]) -> (f32[4,4], bf16[4,8]) {
  %p = bf16[4,8]{1,0} parameter(0)
  %x = f32[4,4]{1,0} parameter(1)
  %g = bf16[16,8]{1,0} all-gather(%p), dimensions={0}, frontend_attributes={chain_id="1"}
  %d = f32[4,4]{1,0} dot(%x, %x), lhs_contracting_dims={1}, rhs_contracting_dims={0}
  ROOT %r = (f32[4,4]{1,0}, bf16[4,8]{1,0}) tuple(%d, %p)
}

ENTRY %main (p: bf16[4,8], x: f32[4,4]) -> f32[4,4] {
  %p = bf16[4,8]{1,0} parameter(0)
  %x = f32[4,4]{1,0} parameter(1)
  %a = bf16[4,8]{1,0:S(1)} fusion(%p), kind=kCustom, calls=%started
  %b = (f32[4,4]{1,0}, bf16[4,8]{1,0}) fusion(%a, %x), kind=kCustom, calls=%meanwhile
  ROOT %out = f32[4,4]{1,0} get-tuple-element(%b), index=0
}
"""


def test_a_collective_that_runs_while_others_compute_counts_once():
    counted = hlo.count(CHAIN)
    assert counted.collectives == {"all-gather": 16 * 8 * 2}
    assert counted.flops == 2 * 4 * 4 * 4
    assert (
        counted.bytes == 4 * 8 * 2 + 2 * 4 * 4 * 4
    )  # what is started with; the product's operand and result


def test_other_text_is_refused():
    with pytest.raises(ValueError, match="no HLO module"):
        hlo.count("nothing of the kind")


def test_collectives_of_one_device_are_none():
    assert hlo.count(compiled(lambda x: np.float32(2) * x, (8,)).as_text()).collectives == {}
