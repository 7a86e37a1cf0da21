"""The decoder: grouped-query attention, RoPE and SwiGLU, with the flags of Qwen2, Qwen3 and Olmo-3.

Shape letters: B sequences, T query positions, S key positions, D width, F feed-forward width, N query heads,
K key/value heads, H head width, V vocabulary. Every parameter carries the logical names of its axes
(`axes=`); `distributed.rules` maps them to mesh axes.

`Decoder.layers` holds one `Layer` for each position in the repeating pattern of layer types (one for Qwen,
four for Olmo-3). Its parameters are stacked: their leading axis is the repetition. Training scans over the
repetitions, so that compile time and memory do not grow with depth. Decoding loops over single layers,
because a stacked cache would be copied at every step; `unroll` prepares the parameters for that.
"""

import functools
import itertools
from collections.abc import Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from sdistill.distributed.rules import split_sequences
from sdistill.model.attention import attend, attend_cached
from sdistill.model.cache import Cache, LayerCache, append_token, make_cache
from sdistill.model.config import LayerType, ModelConfig


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def product(axes: str, x: Float[Array, "..."], matrix: Float[Array, "..."]) -> Float[Array, "..."]:
    """`jnp.einsum(axes, x, matrix)` of activations and parameters, in the activations' type.

    The gradient of `matrix` is accumulated in float32, and summed over devices in float32; JAX would use the
    activations' type.
    """
    return jnp.einsum(axes, x, matrix.astype(x.dtype))


def _product_forward(axes: str, x: jax.Array, matrix: jax.Array) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    return product(axes, x, matrix), (x, matrix)


def _product_backward(
    axes: str, saved: tuple[jax.Array, jax.Array], gradient: jax.Array
) -> tuple[jax.Array, jax.Array]:
    x, matrix = saved
    of_x, of_matrix, of_result = axes.replace("->", ",").split(",")
    x_gradient = jnp.einsum(f"{of_result},{of_matrix}->{of_x}", gradient, matrix.astype(x.dtype))
    matrix_gradient = jnp.einsum(
        f"{of_x},{of_result}->{of_matrix}", x, gradient, preferred_element_type=jnp.float32
    )
    return x_gradient, matrix_gradient.astype(matrix.dtype)


product.defvjp(_product_forward, _product_backward)


def rms_norm(x: Float[Array, "..."], scale: Float[Array, "..."], eps: float) -> Float[Array, "..."]:
    """Divides by the root mean square over the axes of `scale`, in float32, and scales."""
    axes = tuple(range(-scale.ndim, 0))
    y = x.astype(jnp.float32)
    y = y * jax.lax.rsqrt(jnp.mean(y * y, axis=axes, keepdims=True) + eps)
    return (y * scale).astype(x.dtype)


def rope_frequencies(config: ModelConfig, layer_type: LayerType) -> tuple[np.ndarray, float]:
    """Radians per position for each pair of a head, and the factor of sine and cosine.

    Unscaled, or by YaRN (arXiv 2309.00071, section 3.2). The paper's ramp is linear in the turns of a pair.
    Here, as in its authors' program and in transformers, it is linear in the pair's index, with bounds
    rounded outwards.
    """
    half, theta, yarn = config.head_dim // 2, config.rope_theta, config.rope_scaling
    frequency_H = theta ** (-np.arange(half) / half)
    if yarn is None or (layer_type == "sliding_attention" and not yarn.sliding_layers):
        return frequency_H, 1.0

    def pair_with(turns: float) -> float:
        """The (fractional) index of the pair that makes `turns` turns within the original context."""
        return half * np.log(yarn.original_max_position_embeddings / (turns * 2 * np.pi)) / np.log(theta)

    first = max(np.floor(pair_with(yarn.beta_fast)), 0)
    last = min(np.ceil(pair_with(yarn.beta_slow)), config.head_dim - 1)
    stretched_H = np.clip((np.arange(half) - first) / max(last - first, 0.001), 0, 1)
    attention_factor = yarn.attention_factor
    if attention_factor is None:
        attention_factor = 0.1 * np.log(yarn.factor) + 1
    return frequency_H * (1 - stretched_H + stretched_H / yarn.factor), attention_factor


class Rope(NamedTuple):
    """Cosine and sine of the rotary angles at each position, float32."""

    cos_BTH: Float[Array, "B T H/2"]
    sin_BTH: Float[Array, "B T H/2"]


def make_rope(config: ModelConfig, layer_type: LayerType, positions_BT: Int[Array, "B T"]) -> Rope:
    """Rotations for one type of layer. Angles are float32: in bfloat16, position 257 rounds to 256."""
    frequency_H, factor = rope_frequencies(config, layer_type)
    angle_BTH = positions_BT[..., None].astype(jnp.float32) * jnp.asarray(frequency_H, jnp.float32)
    return Rope(jnp.cos(angle_BTH) * factor, jnp.sin(angle_BTH) * factor)


def apply_rope(x_BTNH: Float[Array, "B T N H"], rope: Rope) -> Float[Array, "B T N H"]:
    """Rotates the two halves of each head against each other (RoPE, Su et al. 2021)."""
    cos, sin = rope.cos_BTH[:, :, None], rope.sin_BTH[:, :, None]
    first, second = jnp.split(x_BTNH.astype(jnp.float32), 2, axis=-1)
    rotated = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return rotated.astype(x_BTNH.dtype)


class Attention(nnx.Module):
    """Grouped-query attention with rotary positions."""

    def __init__(self, config: ModelConfig, layer_type: LayerType, rngs: nnx.Rngs):
        self.config = config
        self.window = config.sliding_window if layer_type == "sliding_attention" else None
        width, heads, kv_heads = config.hidden_size, config.num_attention_heads, config.num_key_value_heads
        head = config.head_dim
        normal = jax.nn.initializers.normal(config.initializer_range)
        kv_axes = ("embed", "kv_heads", None)
        self.q_DNH = nnx.Param(normal(rngs.params(), (width, heads, head)), axes=("embed", "heads", None))
        self.k_DKH = nnx.Param(normal(rngs.params(), (width, kv_heads, head)), axes=kv_axes)
        self.v_DKH = nnx.Param(normal(rngs.params(), (width, kv_heads, head)), axes=kv_axes)
        # All layers add to the residual stream: the more there are, the smaller their outputs start.
        small = jax.nn.initializers.normal(config.initializer_range / (2 * config.num_hidden_layers) ** 0.5)
        self.o_NHD = nnx.Param(small(rngs.params(), (heads, head, width)), axes=("heads", None, "embed"))
        if config.attention_bias:
            self.q_bias_NH = nnx.Param(jnp.zeros((heads, head)), axes=("heads", None))
            self.k_bias_KH = nnx.Param(jnp.zeros((kv_heads, head)), axes=("kv_heads", None))
            self.v_bias_KH = nnx.Param(jnp.zeros((kv_heads, head)), axes=("kv_heads", None))
        if config.qk_norm == "head":
            self.q_norm = nnx.Param(jnp.ones(head), axes=(None,))
            self.k_norm = nnx.Param(jnp.ones(head), axes=(None,))
        elif config.qk_norm == "projection":
            self.q_norm = nnx.Param(jnp.ones((heads, head)), axes=("heads", None))
            self.k_norm = nnx.Param(jnp.ones((kv_heads, head)), axes=("kv_heads", None))

    def project(
        self, x_BTD: Float[Array, "B T D"], rope: Rope
    ) -> tuple[Float[Array, "B T N H"], Float[Array, "B T K H"], Float[Array, "B T K H"]]:
        """Queries, keys and values."""
        config = self.config
        q_BTNH = product("btd,dnh->btnh", x_BTD, self.q_DNH[...])
        k_BTKH = product("btd,dkh->btkh", x_BTD, self.k_DKH[...])
        v_BTKH = product("btd,dkh->btkh", x_BTD, self.v_DKH[...])
        if config.attention_bias:
            q_BTNH = (q_BTNH + self.q_bias_NH[...]).astype(q_BTNH.dtype)
            k_BTKH = (k_BTKH + self.k_bias_KH[...]).astype(k_BTKH.dtype)
            v_BTKH = (v_BTKH + self.v_bias_KH[...]).astype(v_BTKH.dtype)
        if config.qk_norm is not None:
            q_BTNH = rms_norm(q_BTNH, self.q_norm[...], config.rms_norm_eps)
            k_BTKH = rms_norm(k_BTKH, self.k_norm[...], config.rms_norm_eps)
        return apply_rope(q_BTNH, rope), apply_rope(k_BTKH, rope), v_BTKH


class FeedForward(nnx.Module):
    """SwiGLU: down(silu(gate(x)) · up(x))."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
        width, inner = config.hidden_size, config.intermediate_size
        normal = jax.nn.initializers.normal(config.initializer_range)
        small = jax.nn.initializers.normal(config.initializer_range / (2 * config.num_hidden_layers) ** 0.5)
        self.gate_DF = nnx.Param(normal(rngs.params(), (width, inner)), axes=("embed", "mlp"))
        self.up_DF = nnx.Param(normal(rngs.params(), (width, inner)), axes=("embed", "mlp"))
        self.down_FD = nnx.Param(small(rngs.params(), (inner, width)), axes=("mlp", "embed"))

    def __call__(self, x_BTD: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        """See the class."""
        gate_BTF = jax.nn.silu(product("btd,df->btf", x_BTD, self.gate_DF[...]))
        up_BTF = product("btd,df->btf", x_BTD, self.up_DF[...])
        return product("btf,fd->btd", gate_BTF * up_BTF, self.down_FD[...])


class Layer(nnx.Module):
    """Attention and feed-forward, each added to the residual stream.

    Pre-norm (`norm="input"`, Qwen): x + f(norm(x)). Post-norm (`norm="output"`, Olmo-3): x + norm(f(x)).
    """

    def __init__(self, config: ModelConfig, layer_type: LayerType, rngs: nnx.Rngs):
        self.config, self.layer_type = config, layer_type
        self.attention_norm_D = nnx.Param(jnp.ones(config.hidden_size), axes=(None,))
        self.attention = Attention(config, layer_type, rngs)
        self.feed_forward_norm_D = nnx.Param(jnp.ones(config.hidden_size), axes=(None,))
        self.feed_forward = FeedForward(config, rngs)

    def __call__(
        self,
        x_BTD: Float[Array, "B T D"],
        positions_BT: Int[Array, "B T"],
        segment_ids_BT: Int[Array, "B T"],
        rope: Rope,
    ) -> tuple[Float[Array, "B T D"], Float[Array, "B T K H"], Float[Array, "B T K H"]]:
        """The new residual stream of whole sequences, and their keys and values."""
        q_BTNH, k_BTKH, v_BTKH = self.attention.project(self._pre_norm(x_BTD, self.attention_norm_D), rope)
        window, backend = self.attention.window, self.config.compute.attention
        y_BTNH = attend(q_BTNH, k_BTKH, v_BTKH, positions_BT, segment_ids_BT, window=window, backend=backend)
        return self._add_sub_layers(x_BTD, y_BTNH), k_BTKH, v_BTKH

    def decode(
        self, x_B1D: Float[Array, "B 1 D"], rope: Rope, cache: LayerCache, lengths_B: Int[Array, " B"]
    ) -> tuple[Float[Array, "B 1 D"], LayerCache]:
        """The same for one more token per row, and the cache with that token's key and value."""
        q_B1NH, k_B1KH, v_B1KH = self.attention.project(self._pre_norm(x_B1D, self.attention_norm_D), rope)
        cache = append_token(cache, k_B1KH[:, 0], v_B1KH[:, 0], lengths_B)
        y_BNH = attend_cached(q_B1NH[:, 0], cache, lengths_B + 1, window=self.attention.window)
        return self._add_sub_layers(x_B1D, y_BNH[:, None]), cache

    def _add_sub_layers(
        self, x_BTD: Float[Array, "B T D"], y_BTNH: Float[Array, "B T N H"]
    ) -> Float[Array, "B T D"]:
        """Adds the output of attention, from its heads, and then that of feed-forward."""
        y_BTD = product("btnh,nhd->btd", y_BTNH, self.attention.o_NHD[...])
        x_BTD = x_BTD + self._post_norm(y_BTD, self.attention_norm_D)
        y_BTD = self.feed_forward(self._pre_norm(x_BTD, self.feed_forward_norm_D))
        return x_BTD + self._post_norm(y_BTD, self.feed_forward_norm_D)

    def _pre_norm(self, x_BTD: Float[Array, "B T D"], scale_D: nnx.Param) -> Float[Array, "B T D"]:
        return self._norm(x_BTD, scale_D) if self.config.norm == "input" else x_BTD

    def _post_norm(self, y_BTD: Float[Array, "B T D"], scale_D: nnx.Param) -> Float[Array, "B T D"]:
        return self._norm(y_BTD, scale_D) if self.config.norm == "output" else y_BTD

    def _norm(self, x_BTD: Float[Array, "B T D"], scale_D: nnx.Param) -> Float[Array, "B T D"]:
        return rms_norm(x_BTD, scale_D[...], self.config.rms_norm_eps)


class Decoder(nnx.Module):
    """From token ids to hidden states.

    Logits `[B, T, V]` do not fit in memory at real vocabularies. So losses and samplers take `head()`, and
    apply it to as many positions at a time as they choose.
    """

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
        self.config = config
        normal = jax.nn.initializers.normal(config.initializer_range)
        shape = (config.vocab_size, config.hidden_size)
        self.embedding_VD = nnx.Param(normal(rngs.params(), shape), axes=("vocab", "embed"))
        layers = [Layer(config, config.layer_type(i), rngs) for i in range(config.num_hidden_layers)]
        self.layers = nnx.List([_stacked(layers[i :: config.period()]) for i in range(config.period())])
        self.norm_D = nnx.Param(jnp.ones(config.hidden_size), axes=(None,))
        if not config.tie_word_embeddings:
            self.head_DV = nnx.Param(normal(rngs.params(), shape[::-1]), axes=("embed", "vocab"))

    def __call__(
        self, tokens_BT: Int[Array, "B T"], positions_BT: Int[Array, "B T"], segment_ids_BT: Int[Array, "B T"]
    ) -> Float[Array, "B T D"]:
        """Final hidden states of whole sequences.

        Positions count within a sequence. Segment ids number the sequences of a row from 1; 0 is padding.
        """
        ropes = self._ropes(positions_BT)
        x_BTD = split_sequences(self._embed(tokens_BT))
        graphs, stacks = zip(*(nnx.split(layer) for layer in self.layers), strict=True)

        def pattern(x_BTD: jax.Array, states: tuple[nnx.State, ...]) -> tuple[jax.Array, None]:
            for graph, state in zip(graphs, states, strict=True):
                layer = nnx.merge(graph, state)
                x_BTD, _, _ = layer(x_BTD, positions_BT, segment_ids_BT, ropes[layer.layer_type])
            return split_sequences(x_BTD), None

        remat = self.config.compute.remat
        if remat != "none":
            dots = jax.checkpoint_policies.dots_with_no_batch_dims_saveable
            pattern = jax.checkpoint(pattern, policy=dots if remat == "dots" else None, prevent_cse=False)
        repeats = self.config.num_hidden_layers // len(self.layers)
        # A loop over few layers costs more than it saves.
        x_BTD, _ = jax.lax.scan(pattern, x_BTD, stacks, unroll=repeats <= 4)
        return rms_norm(x_BTD, self.norm_D[...], self.config.rms_norm_eps)

    def prefill(
        self, tokens_BT: Int[Array, "B T"], lengths_B: Int[Array, " B"]
    ) -> tuple[Float[Array, "B T D"], Cache]:
        """Final hidden states of sequences padded on the right, and the cache to continue them from."""
        positions_BT = jnp.broadcast_to(jnp.arange(tokens_BT.shape[1]), tokens_BT.shape)
        segment_ids_BT = (positions_BT < lengths_B[:, None]).astype(jnp.int32)
        ropes, x_BTD, cache = self._ropes(positions_BT), self._embed(tokens_BT), []
        for layer in self._each_layer():
            x_BTD, k_BTKH, v_BTKH = layer(x_BTD, positions_BT, segment_ids_BT, ropes[layer.layer_type])
            cache.append(make_cache(k_BTKH, v_BTKH))
        return rms_norm(x_BTD, self.norm_D[...], self.config.rms_norm_eps), tuple(cache)

    def decode(
        self, tokens_B: Int[Array, " B"], cache: Cache, lengths_B: Int[Array, " B"]
    ) -> tuple[Float[Array, "B D"], Cache]:
        """Final hidden states of one more token per row, and the cache with that token.

        The cache has room for it, and keys and values of the `lengths_B` tokens before; later columns are not
        read.
        """
        ropes, x_B1D, new_cache = self._ropes(lengths_B[:, None]), self._embed(tokens_B[:, None]), []
        for layer, layer_cache in zip(self._each_layer(), cache, strict=True):
            x_B1D, layer_cache = layer.decode(x_B1D, ropes[layer.layer_type], layer_cache, lengths_B)
            new_cache.append(layer_cache)
        return rms_norm(x_B1D[:, 0], self.norm_D[...], self.config.rms_norm_eps), tuple(new_cache)

    def head(self) -> Float[Array, "D V"]:
        """The matrix from hidden states to logits, in the activations' type."""
        tied = self.config.tie_word_embeddings
        return (self.embedding_VD[...].T if tied else self.head_DV[...]).astype(self.config.dtype)

    def _embed(self, tokens_BT: Int[Array, "B T"]) -> Float[Array, "B T D"]:
        return self.embedding_VD[...][tokens_BT].astype(self.config.dtype)

    def _ropes(self, positions_BT: Int[Array, "B T"]) -> dict[LayerType, Rope]:
        """Rotations by type of layer, computed once instead of in every layer."""
        types = sorted({layer.layer_type for layer in self.layers})
        return {layer_type: make_rope(self.config, layer_type, positions_BT) for layer_type in types}

    def _each_layer(self) -> Iterator[Layer]:
        """The layers from first to last, each with its slice of the stacked parameters."""
        parts = [nnx.split(layer) for layer in self.layers]
        for repeat in range(self.config.num_hidden_layers // len(self.layers)):
            for graph, stack in parts:
                state = jax.tree.map(lambda x, repeat=repeat: x[repeat], stack)
                yield nnx.merge(graph, state)


def is_matrix(variable: nnx.Variable) -> bool:
    """Whether a parameter multiplies activations: matrices have an axis along the residual stream."""
    return "embed" in variable.get_metadata()["axes"]


def _stacked(layers: list[Layer]) -> Layer:
    """One layer whose parameters are those of all the layers, stacked along a new leading axis."""

    def stack(*variables: nnx.Variable) -> nnx.Variable:
        value = jnp.stack([variable[...] for variable in variables])
        return variables[0].replace(value, axes=("layers", *variables[0].get_metadata()["axes"]))

    graph, _ = nnx.split(layers[0])
    states = [nnx.split(layer)[1] for layer in layers]
    return nnx.merge(graph, jax.tree.map(stack, *states, is_leaf=lambda x: isinstance(x, nnx.Variable)))


def unroll(params: nnx.State) -> nnx.State:
    """The same parameters in the layout for decoding: every layer is a stack of its own.

    Slicing a stack inside the decoding loop would copy all weights for every token.
    """
    stacks = params["layers"]
    repeats = jax.tree.leaves(stacks)[0].shape[0]
    pairs = itertools.product(range(repeats), range(len(stacks)))
    layers = [jax.tree.map(lambda x, r=r: x[r : r + 1], stacks[i]) for r, i in pairs]
    return nnx.State({**params, "layers": nnx.State(dict(enumerate(layers)))})


@functools.cache
def _graph(config: ModelConfig, layers: int) -> nnx.GraphDef[Decoder]:
    def make() -> Decoder:
        model = Decoder(config, nnx.Rngs(params=0))
        if layers > config.period():  # unrolled
            types = [config.layer_type(i) for i in range(layers)]
            model.layers = nnx.List([_stacked([Layer(config, t, nnx.Rngs(0))]) for t in types])
        return model

    return nnx.split(nnx.eval_shape(make), nnx.Param)[0]


def bind(config: ModelConfig, params: nnx.State) -> Decoder:
    """The decoder with these parameters; meant for use inside jitted functions."""
    return nnx.merge(_graph(config, len(params["layers"])), params)
