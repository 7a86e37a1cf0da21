"""Scaled dot-product attention on any hardware.

A token sees the tokens of its own segment, at its own or an earlier position, no further back than the
window. So rows may hold several packed sequences, and padding on either side.
"""

from collections.abc import Callable
from typing import Any, Literal

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
"""Of a TPU's registers; the kernel's unit of length."""


def visible(
    positions_BT: Int[Array, "B T"], segment_ids_BT: Int[Array, "B T"], window: int | None
) -> Bool[Array, "B T T"]:
    """The attention mask: which tokens (last axis) each token sees. Padding sees and is seen by nothing.

    In: segment_ids [1 1 2 0], positions [0 1 0 0]. Out: rows `1000 1100 0010 0000`.
    """
    distance_BTS = positions_BT[:, :, None] - positions_BT[:, None, :]
    same_BTS = segment_ids_BT[:, :, None] == segment_ids_BT[:, None, :]
    seen_BTS = same_BTS & (segment_ids_BT[:, :, None] > 0) & (distance_BTS >= 0)
    return seen_BTS if window is None else seen_BTS & (distance_BTS < window)


def choose_backend(wanted: Literal["auto", Backend], dtype: jnp.dtype) -> Backend:
    """The backend that `auto` means on the default platform."""
    if wanted != "auto":
        return wanted
    platform = jax.default_backend()
    if platform == "tpu":
        return "splash"
    return "cudnn" if platform == "gpu" and dtype == jnp.bfloat16 else "plain"


def attend(
    q_BTNH: Float[Array, "B T N H"],
    k_BTKH: Float[Array, "B T K H"],
    v_BTKH: Float[Array, "B T K H"],
    positions_BT: Int[Array, "B T"],
    segment_ids_BT: Int[Array, "B T"],
    *,
    window: int | None,
    backend: Literal["auto", Backend],
) -> Float[Array, "B T N H"]:
    """Attention among the tokens of whole rows, with 1/√H scaling and float32 softmax.

    Query head n uses key head n·K/N. `splash` assumes that columns are in order of position, as in every row
    that this project makes. The outputs of padding are finite; ignore them.
    `window` is the number of tokens that each token sees, itself included; None for all.
    """
    backend = choose_backend(backend, q_BTNH.dtype)
    if backend == "splash":
        return _splash(q_BTNH, k_BTKH, v_BTKH, segment_ids_BT, window)
    mask_B1TT = visible(positions_BT, segment_ids_BT, window)[:, None]
    implementation: Literal["cudnn", "xla"] = "cudnn" if backend == "cudnn" else "xla"
    return jax.nn.dot_product_attention(q_BTNH, k_BTKH, v_BTKH, mask=mask_B1TT, implementation=implementation)


def attend_cached(
    q_BNH: Float[Array, "B N H"], cache: LayerCache, lengths_B: Int[Array, " B"], *, window: int | None
) -> Float[Array, "B N H"]:
    """Attention of one token per row to the first `lengths_B` columns of a cache, that token's included.

    Memory-bound: each column of the cache is read once, for all query heads that share it.
    """
    kv_heads, length = cache.values.shape[1:3]
    dtype, scale = q_BNH.dtype, q_BNH.shape[-1] ** -0.5
    q_BKGH = q_BNH.reshape(len(q_BNH), kv_heads, -1, q_BNH.shape[-1])
    logits_BKGS = (
        jnp.einsum("bkgh,bkhs->bkgs", q_BKGH, cache.keys, preferred_element_type=jnp.float32) * scale
    )
    columns_S = jnp.arange(length)
    seen_BS = columns_S < lengths_B[:, None]
    if window is not None:
        seen_BS &= columns_S >= lengths_B[:, None] - window
    p_BKGS = jax.nn.softmax(jnp.where(seen_BS[:, None, None], logits_BKGS, -jnp.inf), axis=-1)
    return jnp.einsum("bkgs,bksh->bkgh", p_BKGS.astype(dtype), cache.values).reshape(q_BNH.shape)


def _splash(
    q_BTNH: Float[Array, "B T N H"],
    k_BTKH: Float[Array, "B T K H"],
    v_BTKH: Float[Array, "B T K H"],
    segment_ids_BT: Int[Array, "B T"],
    window: int | None,
) -> Float[Array, "B T N H"]:
    """The Pallas kernel of jax.

    The compiler cannot split a kernel, so under a mesh `shard_map` does: every device computes the queries of
    its own rows, heads and columns. Keys and values are gathered along the columns; few heads share them.
    """
    mesh = jax.sharding.get_abstract_mesh()
    num_shards = 1 if mesh.empty else mesh.shape["context"]
    length = q_BTNH.shape[1]
    padding = -length % (LANES * num_shards)
    heads = q_BTNH.shape[2] // (1 if mesh.empty else mesh.shape["tensor"])
    kernel = _splash_kernel(length + padding, heads, window, num_shards)

    def padded(x: jax.Array) -> jax.Array:
        return jnp.pad(x, [(0, 0), (0, padding)] + [(0, 0)] * (x.ndim - 2))

    def local_attention(
        kernel: Callable[..., jax.Array], q: jax.Array, k: jax.Array, v: jax.Array, segment_ids: jax.Array
    ) -> jax.Array:
        q_ids = kv_ids = segment_ids
        if num_shards > 1:
            k, v, kv_ids = (jax.lax.all_gather(x, "context", axis=1, tiled=True) for x in (k, v, kv_ids))
            q, q_ids = (_balance(x, num_shards) for x in (q, q_ids))
        q, k, v = (jnp.swapaxes(x, 1, 2) for x in (q, k, v))
        y = jnp.swapaxes(jax.vmap(kernel)(q, k, v, splash.SegmentIds(q=q_ids, kv=kv_ids)), 1, 2)
        return _balance(y, num_shards, inverse=True) if num_shards > 1 else y

    scaled_BTNH = q_BTNH * q_BTNH.shape[-1] ** -0.5
    arguments = [padded(x) for x in (scaled_BTNH, k_BTKH, v_BTKH, segment_ids_BT)]
    if mesh.empty:
        return local_attention(kernel, *arguments)[:, :length]
    spec = PartitionSpec(*SEQUENCES, "tensor")
    kernel_spec = kernel.manual_sharding_spec(NamedSharding(mesh, PartitionSpec(None, "context")))
    sharded = jax.shard_map(
        local_attention, in_specs=(kernel_spec, spec, spec, spec, SEQUENCES), out_specs=spec, check_vma=False
    )
    return sharded(kernel, *arguments)[:, :length]


def _splash_kernel(length: int, heads: int, window: int | None, num_shards: int) -> Any:
    """The kernel for rows of this length, whose queries are split over `num_shards` devices."""
    shape = (length, length)
    mask = splash.CausalMask(shape) if window is None else splash.LocalMask(shape, (window - 1, 0), 0)
    halves = np.arange(length, dtype=np.int32).reshape(2 * num_shards, -1)
    mask.q_sequence = halves[_balanced_halves(num_shards)].ravel()
    block_q, block_kv = (
        next(size for size in (512, 256, 128) if n % size == 0) for n in (length // num_shards, length)
    )
    return splash.make_splash_mha(
        splash.MultiHeadMask([mask] * heads),
        block_sizes=splash.BlockSizes(
            block_q=block_q,
            block_kv=block_kv,
            block_kv_compute=block_kv,
            block_q_dkv=block_q,
            block_kv_dkv=block_kv,
            block_kv_dkv_compute=block_kv,
            block_q_dq=block_q,
            block_kv_dq=block_kv,
        ),
        head_shards=1,
        q_seq_shards=num_shards,
    )


def _balanced_halves(num_shards: int) -> list[int]:
    """Which halves of the devices' columns each device computes: two each, the devices in order.

    The later a query, the more keys it sees. So every device takes one half from the front and its mirror
    image from the back. In: 2 shards, halves 0 to 3. Out: 0, 3 for the first device and 2, 1 for the second;
    even halves come first.
    """
    pairs = [sorted((i, 2 * num_shards - 1 - i), key=lambda half: half % 2) for i in range(num_shards)]
    return [half for pair in pairs for half in pair]


def _balance(x: Shaped[Array, "B t ..."], num_shards: int, inverse: bool = False) -> Shaped[Array, "B t ..."]:
    """Exchanges the columns a device holds for those it computes, or back; inside of `shard_map`."""
    halves = []
    for parity, part in enumerate(jnp.split(x, 2, axis=1)):
        # No two even halves go to the same device, and no two odd ones.
        routes = [(half // 2, to) for to, half in enumerate(_balanced_halves(num_shards)[parity::2])]
        if inverse:
            routes = [(target, source) for source, target in routes]
        halves.append(jax.lax.ppermute(part, "context", routes))
    return jnp.concatenate(halves, axis=1)
