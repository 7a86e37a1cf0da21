"""Shapes of the paper's models, as their `config.json` on Hugging Face gives them.

So that a config can be compiled and priced where neither weights nor a network are at hand.
"""

import functools

from sdistill.model.config import ModelConfig, YarnConfig

qwen3 = functools.partial(
    ModelConfig, vocab_size=151_936, head_dim=128, rope_theta=1e6, max_position_embeddings=40_960
)

SHAPES = {
    "Qwen/Qwen3-8B": qwen3(
        hidden_size=4096,
        intermediate_size=12_288,
        num_hidden_layers=36,
        num_attention_heads=32,
        num_key_value_heads=8,
        tie_word_embeddings=False,
    ),
    "Qwen/Qwen3-1.7B": qwen3(
        hidden_size=2048,
        intermediate_size=6144,
        num_hidden_layers=28,
        num_attention_heads=16,
        num_key_value_heads=8,
    ),
    "Qwen/Qwen3-0.6B": qwen3(
        hidden_size=1024,
        intermediate_size=3072,
        num_hidden_layers=28,
        num_attention_heads=16,
        num_key_value_heads=8,
    ),
    "deepseek-ai/DeepSeek-R1-Distill-Qwen-7B": ModelConfig(
        vocab_size=152_064,
        hidden_size=3584,
        intermediate_size=18_944,
        num_hidden_layers=28,
        num_attention_heads=28,
        num_key_value_heads=4,
        head_dim=128,
        tie_word_embeddings=False,
        attention_bias=True,
        qk_norm=None,
        max_position_embeddings=131_072,
    ),
    "allenai/Olmo-3-7B-Instruct": ModelConfig(
        vocab_size=100_278,
        hidden_size=4096,
        intermediate_size=11_008,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=32,
        head_dim=128,
        rope_theta=5e5,
        rope_scaling=YarnConfig(8.0, 8192, 1.2079441541679836, sliding_layers=False),
        tie_word_embeddings=False,
        qk_norm="projection",
        norm="output",
        layer_types=(*("sliding_attention",) * 3, "full_attention") * 8,
        sliding_window=4096,
        max_position_embeddings=65_536,
    ),
}
"""By name. Olmo-3's is put together from its 32B sibling's file and the sizes that MaxText has for it."""
