"""Runs other samplers on the workload of `bench_engine`; run by it, with an interpreter that has them.

    python -m tests.benchmarks.peers hf float32

Both decode all rows until the longest response has its length.
"""

import sys

from tests.benchmarks import workload


def hf(dtype: str, repeats: int) -> None:
    """`generate` of transformers."""
    import torch
    import transformers

    config = transformers.Qwen3Config(
        vocab_size=workload.VOCABULARY,
        hidden_size=workload.WIDTH,
        intermediate_size=workload.FEED_FORWARD,
        num_hidden_layers=workload.LAYERS,
        num_attention_heads=workload.HEADS,
        num_key_value_heads=workload.KV_HEADS,
        head_dim=workload.HEAD,
        tie_word_embeddings=True,
        max_position_embeddings=1024,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=0,
    )
    model = transformers.Qwen3ForCausalLM(config).to(getattr(torch, dtype)).eval()
    ids = torch.tensor(workload.prompts()).repeat_interleave(workload.SAMPLES, dim=0)
    length = int(workload.lengths().max())

    def run() -> None:
        with torch.no_grad():
            out = model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                do_sample=True,
                top_k=0,
                max_new_tokens=length,
                min_new_tokens=length,
            )
        assert out.shape[1] == workload.PROMPT_LENGTH + length

    a = torch.ones(2048, 2048)
    rate = 2 * 2048**3 / min(workload.seconds(lambda: a @ a, 8))
    workload.report(workload.seconds(run, repeats), rate, version=transformers.__version__)


def tunix(dtype: str, repeats: int) -> None:
    """The sampler of tunix."""
    import importlib.metadata

    import jax
    import jax.numpy as jnp
    from flax import nnx
    from tunix.generate import sampler
    from tunix.models.qwen3 import model as qwen3

    from tests.benchmarks.rates import matmul_rate

    class Ids:
        """Passes ids through as text."""

        def encode(self, text: str) -> list[int]:
            return [int(word) for word in text.split()]

        def decode(self, ids: list[int]) -> str:
            return " ".join(map(str, ids))

        def bos_id(self) -> int:
            return 0  # none

        def eos_id(self) -> int:
            return workload.VOCABULARY  # never comes

        def pad_id(self) -> int:
            return 0

    config = qwen3.ModelConfig(
        num_layers=workload.LAYERS,
        vocab_size=workload.VOCABULARY,
        embed_dim=workload.WIDTH,
        hidden_dim=workload.FEED_FORWARD,
        num_heads=workload.HEADS,
        head_dim=workload.HEAD,
        num_kv_heads=workload.KV_HEADS,
        rope_theta=1_000_000,
        norm_eps=1e-6,
        use_tied_embedding=True,
        dtype=getattr(jnp, dtype),
        param_dtype=getattr(jnp, dtype),
    )
    length = int(workload.lengths().max())
    cache = sampler.CacheConfig(
        workload.PROMPT_LENGTH + length, workload.LAYERS, workload.KV_HEADS, workload.HEAD
    )
    mesh = jax.sharding.Mesh([[jax.devices()[0]]], ("fsdp", "tp"))
    with mesh:
        engine = sampler.Sampler(qwen3.Qwen3(config, rngs=nnx.Rngs(0)), Ids(), cache)
        texts = [" ".join(map(str, p)) for p in workload.prompts() for _ in range(workload.SAMPLES)]

        def run() -> None:
            engine(
                texts, length, max_prompt_length=workload.PROMPT_LENGTH, temperature=1.0, top_p=1.0, seed=0
            )

        times = workload.seconds(run, repeats)
    workload.report(times, matmul_rate(), version=importlib.metadata.version("google-tunix"))


if __name__ == "__main__":
    {"hf": hf, "tunix": tunix}[sys.argv[1]](sys.argv[2], int(sys.argv[3]))
