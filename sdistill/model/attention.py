"""Scaled dot-product attention behind one function, whatever hardware computes it.

What a token sees follows from where tokens are, not from which column they stand in: those of its own
segment, at its own or an earlier position, no further back than the window. So rows may hold several
packed sequences, and padding on either side.
"""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.pallas.ops.tpu import splash_attention as splash
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Bool, Float, Int, Shaped

from sdistill.distributed.rules import SEQUENCES
from sdistill.model.cache import LayerCache

Backend = Literal["plain", "splash", "cudnn"]

LANES = 128
"""Of a TPU's registers: the kernel's unit of length."""


class Places(NamedTuple):
    """Where the tokens of each row are.

    Attributes:
      positions: Position of each token in its own sequence.
      segments: Which sequence of the row it belongs to, from 1; 0 is padding.
    """

    positions: Int[Array, "B S"]
    segments: Int[Array, "B S"]


def visible(queries: Places, keys: Places, window: int | None) -> Bool[Array, "B T S"]:
    """Which keys each query sees; padding sees nothing and is seen by nothing.

    In: segments [1 1 2 0], positions [0 1 0 0] of both. Out: rows `1000 1100 0010 0000`.
    """
    distance_BTS = queries.positions[:, :, None] - keys.positions[:, None, :]
    same_BTS = queries.segments[:, :, None] == keys.segments[:, None, :]
    seen_BTS = same_BTS & (queries.segments[:, :, None] > 0) & (distance_BTS >= 0)
    return seen_BTS if window is None else seen_BTS & (distance_BTS < window)


def choose_backend(wanted: str, dtype: jnp.dtype) -> Backend:
    """What `auto` stands for on the default platform."""
    if wanted != "auto":
        return wanted  # type: ignore[return-value]
    platform = jax.default_backend()
    if platform == "tpu":
        return "splash"
    return "cudnn" if platform == "gpu" and dtype == jnp.bfloat16 else "plain"


def attend(
    q_BTNH: Float[Array, "B T N H"],
    k_BTKH: Float[Array, "B T K H"],
    v_BTKH: Float[Array, "B T K H"],
    places: Places,
    *,
    window: int | None,
    backend: Backend,
) -> Float[Array, "B T N H"]:
    """Attention among the tokens of whole rows, with 1/√H scaling and float32 softmax.

    Query head n uses key head n·K/N. `splash` takes the columns to be in order of position, as in every row
    that this project makes. Tokens of padding give finite values that mean nothing.
    """
    if backend == "splash":
        return _splash(q_BTNH, k_BTKH, v_BTKH, places.segments, window)
    mask_B1TT = visible(places, places, window)[:, None]
    implementation: Literal["cudnn", "xla"] = "cudnn" if backend == "cudnn" else "xla"
    return jax.nn.dot_product_attention(q_BTNH, k_BTKH, v_BTKH, mask=mask_B1TT, implementation=implementation)


def attend_cached(
    q_BNH: Float[Array, "B N H"], cache: LayerCache, lengths_B: Int[Array, " B"], *, window: int | None
) -> Float[Array, "B N H"]:
    """The same for the last token of each row, which sees the first `lengths_B` columns of a cache.

    Memory-bound: every column of the cache is read once, for all query heads that share it.
    """
    kv_heads, length = cache.values.shape[1:3]
    dtype, scale = q_BNH.dtype, q_BNH.shape[-1] ** -0.5
    q_BKGH = q_BNH.reshape(len(q_BNH), kv_heads, -1, q_BNH.shape[-1])
    keys_BKHS, values_BKSH = cache.keys.astype(dtype), cache.values.astype(dtype)
    logits_BKGS = jnp.einsum("bkgh,bkhs->bkgs", q_BKGH, keys_BKHS, preferred_element_type=jnp.float32) * scale
    if cache.key_scales is not None:
        logits_BKGS *= cache.key_scales[:, :, None]
    columns_S = jnp.arange(length)
    seen_BS = columns_S < lengths_B[:, None]
    if window is not None:
        seen_BS &= columns_S >= lengths_B[:, None] - window
    p_BKGS = jax.nn.softmax(jnp.where(seen_BS[:, None, None], logits_BKGS, -jnp.inf), axis=-1)
    if cache.value_scales is not None:
        p_BKGS *= cache.value_scales[:, :, None]
    return jnp.einsum("bkgs,bksh->bkgh", p_BKGS.astype(dtype), values_BKSH).reshape(q_BNH.shape)


def _splash(
    q_BTNH: Float[Array, "B T N H"],
    k_BTKH: Float[Array, "B T K H"],
    v_BTKH: Float[Array, "B T K H"],
    segments_BT: Int[Array, "B T"],
    window: int | None,
) -> Float[Array, "B T N H"]:
    """The Pallas kernel of jax.

    Under a mesh every device attends for its own rows, heads and columns, because the compiler cannot split a
    kernel. Columns are those of queries; their keys and values are gathered, which few heads share.
    """
    mesh = jax.sharding.get_abstract_mesh()
    ways = 1 if mesh.empty else mesh.shape["context"]
    length = q_BTNH.shape[1]
    padding = -length % (LANES * ways)
    heads = q_BTNH.shape[2] // (1 if mesh.empty else mesh.shape["tensor"])
    kernel = _splash_kernel(length + padding, heads, window, ways)

    def padded(x: jax.Array) -> jax.Array:
        return jnp.pad(x, [(0, 0), (0, padding)] + [(0, 0)] * (x.ndim - 2))

    def own(
        kernel: Callable[..., jax.Array], q: jax.Array, k: jax.Array, v: jax.Array, segments: jax.Array
    ) -> jax.Array:
        if ways > 1:
            k, v, of_keys = (jax.lax.all_gather(x, "context", axis=1, tiled=True) for x in (k, v, segments))
            q, of_queries = (_exchanged(x, ways, "there") for x in (q, segments))
        else:
            of_keys = of_queries = segments
        q, k, v = (jnp.swapaxes(x, 1, 2) for x in (q, k, v))
        y = jnp.swapaxes(jax.vmap(kernel)(q, k, v, splash.SegmentIds(q=of_queries, kv=of_keys)), 1, 2)
        return _exchanged(y, ways, "back") if ways > 1 else y

    scaled_BTNH = q_BTNH * q_BTNH.shape[-1] ** -0.5
    arguments = [padded(x) for x in (scaled_BTNH, k_BTKH, v_BTKH, segments_BT)]
    if mesh.empty:
        return own(kernel, *arguments)[:, :length]
    spec = PartitionSpec(*SEQUENCES, "tensor")
    of_kernel = kernel.manual_sharding_spec(NamedSharding(mesh, PartitionSpec(None, "context")))
    split = jax.shard_map(
        own, in_specs=(of_kernel, spec, spec, spec, SEQUENCES), out_specs=spec, check_vma=False
    )
    return split(kernel, *arguments)[:, :length]


def _splash_kernel(length: int, heads: int, window: int | None, ways: int) -> Any:
    """The kernel for rows of this length, whose queries are split so many ways."""
    shape = (length, length)
    mask = splash.CausalMask(shape) if window is None else splash.LocalMask(shape, (window - 1, 0), 0)
    mask.q_sequence = np.concatenate(
        [np.arange(length, dtype=np.int32).reshape(2 * ways, -1)[h] for h in _halves(ways)]
    )
    of_queries, of_keys = (
        next(size for size in (512, 256, 128) if n % size == 0) for n in (length // ways, length)
    )
    return splash.make_splash_mha(
        splash.MultiHeadMask([mask] * heads),
        block_sizes=splash.BlockSizes(
            block_q=of_queries,
            block_kv=of_keys,
            block_kv_compute=of_keys,
            block_q_dkv=of_queries,
            block_kv_dkv=of_keys,
            block_kv_dkv_compute=of_keys,
            block_q_dq=of_queries,
            block_kv_dq=of_keys,
        ),
        head_shards=1,
        q_seq_shards=ways,
    )


def _halves(ways: int) -> list[int]:
    """Which halves of a device's columns the devices attend for, in order, two each.

    The later a query, the more keys it sees. So every device takes one half from the front and its mirror
    image from the back. In: 2 ways. Out: 0, 3 for the first device, 2, 1 for the second: even ones first.
    """
    if ways == 1:
        return [0, 1]
    pairs = [sorted((i, 2 * ways - 1 - i), key=lambda half: half % 2) for i in range(ways)]
    return [half for pair in pairs for half in pair]


def _exchanged(
    x: Shaped[Array, "B t ..."], ways: int, way: Literal["there", "back"]
) -> Shaped[Array, "B t ..."]:
    """From the columns that a device holds to those it attends for, or back; inside of `shard_map`."""
    sent = []
    for parity, part in enumerate(jnp.split(x, 2, axis=1)):
        # Even halves of all devices go to different ones, and so do odd ones.
        routes = [(half // 2, place // 2) for place, half in enumerate(_halves(ways)) if half % 2 == parity]
        if way == "back":
            routes = [(target, source) for source, target in routes]
        sent.append(jax.lax.ppermute(part, "context", routes))
    return jnp.concatenate(sent, axis=1)
