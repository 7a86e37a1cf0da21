"""The decoder and the objectives written again, in float64 numpy, one sequence and one token at a time.

Nothing here is shared with the package: no padding, no chunks, no cache, no log-space tricks.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from flax import nnx

from sdistill.models.config import ModelConfig

Parameters = Mapping[str, np.ndarray]


def flatten(params: nnx.State) -> dict[str, np.ndarray]:
    """Name → float64 array, e.g. `layers.0.attention.q_DNH`, every layer on its own."""
    flat = {}
    for path, leaf in nnx.to_flat_state(params):
        value = np.asarray(leaf[...], np.float64)
        if path[0] != "layers":
            flat[".".join(map(str, path))] = value
            continue
        for repeat, part in enumerate(value):
            index = repeat * len(params["layers"]) + path[1]
            flat[".".join(map(str, ("layers", index, *path[2:])))] = part
    return flat


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def normed(x: np.ndarray, scale: np.ndarray, eps: float) -> np.ndarray:
    return x / np.sqrt(np.mean(x**2, axis=-1, keepdims=True) + eps) * scale


def rotated(x_TNH: np.ndarray, positions: np.ndarray, theta: float) -> np.ndarray:
    """Each pair (i, i + H/2) is a complex number, turned by its angle."""
    half = x_TNH.shape[-1] // 2
    z = x_TNH[..., :half] + 1j * x_TNH[..., half:]
    z = z * np.exp(1j * np.multiply.outer(positions, theta ** (-np.arange(half) / half)))[:, None]
    return np.concatenate([z.real, z.imag], axis=-1)


def hidden_states(p: Parameters, c: ModelConfig, tokens: Sequence[int]) -> np.ndarray:
    """Final hidden states [T, D] of one sequence without padding."""
    length, per_kv = len(tokens), c.num_attention_heads // c.num_key_value_heads
    positions = np.arange(length)
    x = p["embedding_VD"][np.asarray(tokens)]
    for index in range(c.num_hidden_layers):
        w = {k.removeprefix(f"layers.{index}."): v for k, v in p.items() if k.startswith(f"layers.{index}.")}
        y = normed(x, w["attention_norm_D"], c.rms_norm_eps)
        q, k, v = (np.einsum("td,dnh->tnh", y, w[f"attention.{n}"]) for n in ("q_DNH", "k_DKH", "v_DKH"))
        if c.qk_norm:
            q = normed(q, w["attention.q_norm"], c.rms_norm_eps)
            k = normed(k, w["attention.k_norm"], c.rms_norm_eps)
        q, k = rotated(q, positions, c.rope_theta), rotated(k, positions, c.rope_theta)
        attended = np.zeros_like(x)
        for t in range(length):
            for n in range(c.num_attention_heads):
                scores = k[: t + 1, n // per_kv] @ q[t, n] / np.sqrt(c.head_dim)
                attended[t] += softmax(scores) @ v[: t + 1, n // per_kv] @ w["attention.o_NHD"][n]
        x = x + attended
        y = normed(x, w["feed_forward_norm_D"], c.rms_norm_eps)
        gate = y @ w["feed_forward.gate_DF"]
        x = x + (gate / (1 + np.exp(-gate)) * (y @ w["feed_forward.up_DF"])) @ w["feed_forward.down_FD"]
    return normed(x, p["norm_D"], c.rms_norm_eps)


def logits(p: Parameters, c: ModelConfig, tokens: Sequence[int]) -> np.ndarray:
    """Next-token logits [T, V] of one sequence without padding."""
    head = p["embedding_VD"].T if c.tie_word_embeddings else p["head_DV"]
    return hidden_states(p, c, tokens) @ head


def response_logits(
    p: Parameters, c: ModelConfig, prompt: Sequence[int], response: Sequence[int], temperature: float
) -> np.ndarray:
    """Logits [T, V] that predict the response's tokens, divided by the temperature."""
    start = len(prompt) - 1
    return logits(p, c, [*prompt, *response])[start : start + len(response)] / temperature


def kl(p: np.ndarray, q: np.ndarray) -> float:
    return float(np.sum(p * np.log(p / q)))


def on_support(
    s: np.ndarray, t: np.ndarray, chosen: np.ndarray, tail: str | None
) -> tuple[np.ndarray, np.ndarray]:
    """Both distributions on the chosen ids, with the rest in one more, or renormalised."""
    if tail is None:
        return s, t
    s, t = s[chosen], t[chosen]
    if tail == "bucket":
        return np.append(s, 1 - s.sum()), np.append(t, 1 - t.sum())
    return s / s.sum(), t / t.sum()


def divergence(s: np.ndarray, t: np.ndarray, alpha: float) -> float:
    if alpha == 0:
        return kl(t, s)
    if alpha == 1:
        return kl(s, t)
    m = (1 - alpha) * s + alpha * t
    return (1 - alpha) * kl(s, m) + alpha * kl(t, m)


def aggregate(losses: Sequence[Sequence[float]], mode: str) -> float:
    """From token losses, one list a row (empty where the row does not count), to the objective."""
    if mode == "token_mean":
        return float(sum(map(sum, losses)) / max(sum(map(len, losses)), 1))
    rows = [sum(row) / (max(len(row), 1) if mode == "seq_mean_token_mean" else 1) for row in losses]
    return float(sum(rows) / len(rows))
