"""Whether a cache fits, before anything is computed."""

import logging
import os

import jax
from jax.sharding import Mesh, NamedSharding

from sdistill.engine.model import SamplingModel
from sdistill.settings import ConfigError

logger = logging.getLogger(__name__)


def cache_bytes(model: SamplingModel, mesh: Mesh, slots: int, length: int) -> int:
    """Bytes of a cache on each device."""
    sharding = NamedSharding(mesh, model.cache_spec())
    total = 0
    for leaf in jax.tree.leaves(jax.eval_shape(lambda: model.empty_cache(slots, length))):
        count = 1
        for size in sharding.shard_shape(leaf.shape):
            count *= size
        total += count * leaf.dtype.itemsize
    return total


def device_memory() -> int:
    """Bytes that one device of this process has; on a CPU they are shared by all of its devices."""
    statistics = jax.local_devices()[0].memory_stats() or {}
    if "bytes_limit" in statistics:
        return int(statistics["bytes_limit"])
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // jax.local_device_count()


def check_memory(model: SamplingModel, mesh: Mesh, slots: int, length: int, limit: int | None) -> None:
    """Says how large the cache may become.

    Raises:
      ConfigError: if that is more than the limit.
    """
    needed, limit = cache_bytes(model, mesh, slots, length), limit or device_memory()
    per_token = needed / (slots * length)
    logger.info(
        "cache: %d slots × %d tokens × %.0f bytes a device = %.2f GB of %.2f GB",
        slots,
        length,
        per_token,
        needed / 1e9,
        limit / 1e9,
    )
    if needed > limit:
        raise ConfigError(
            f"cache: slots={slots} × (max_prompt + max_response = {length}) tokens × {per_token:.0f} bytes "
            f"= {needed / 1e9:.2f} GB a device, which has {limit / 1e9:.2f} GB; at most "
            f"slots={int(limit / per_token / length)} fit, or {int(limit / per_token / slots)} tokens in as "
            "many slots"
        )
