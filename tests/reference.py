"""The decoder and the objectives written again, in float64 numpy, one sequence and one token at a time.

Nothing here is shared with the package: no padding, no chunks, no cache, no log-space tricks.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from flax import nnx

from sdistill.model.config import ModelConfig

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
    axes = tuple(range(-scale.ndim, 0))
    return x / np.sqrt(np.mean(x**2, axis=axes, keepdims=True) + eps) * scale


def wavelengths(c: ModelConfig, layer_type: str) -> tuple[np.ndarray, float]:
    """Tokens that each pair of a head takes for a turn, and what rotated vectors are multiplied by.

    YaRN (arXiv 2309.00071) keeps the pairs that turn more than `beta_fast` times within the original
    context, stretches those that turn less than `beta_slow` times by `factor`, and mixes frequencies in
    between. The paper mixes in proportion to turns, its authors' program in proportion to the pair's
    number, from the last pair that is kept to the first that is stretched: weights are trained with that.
    """
    yarn = c.rope_scaling
    length = np.array([2 * np.pi * c.rope_theta ** (2 * pair / c.head_dim) for pair in range(c.head_dim)])
    own = length[: c.head_dim // 2]
    if yarn is None or (layer_type == "sliding_attention" and not yarn.sliding_layers):
        return own, 1.0
    turns = yarn.original_max_position_embeddings / length
    kept = max([pair for pair in range(c.head_dim) if turns[pair] >= yarn.beta_fast], default=0)
    stretched = min(pair for pair in range(c.head_dim) if turns[pair] <= yarn.beta_slow)
    mixed = []
    for pair, wavelength in enumerate(own):
        share = min(max((pair - kept) / (stretched - kept), 0), 1)
        mixed.append(1 / ((1 - share) / wavelength + share / (yarn.factor * wavelength)))
    given = yarn.attention_factor
    return np.array(mixed), 0.1 * np.log(yarn.factor) + 1 if given is None else given


def rotated(x_TNH: np.ndarray, wavelengths: np.ndarray, factor: float) -> np.ndarray:
    """Each pair (i, i + H/2) is a complex number, turned by its angle."""
    half = x_TNH.shape[-1] // 2
    z = x_TNH[..., :half] + 1j * x_TNH[..., half:]
    turns = np.divide.outer(np.arange(len(x_TNH)), wavelengths)
    z = factor * z * np.exp(2j * np.pi * turns)[:, None]
    return np.concatenate([z.real, z.imag], axis=-1)


def attended(x: np.ndarray, w: Parameters, c: ModelConfig, layer_type: str) -> np.ndarray:
    """What a layer's attention adds, before any norm of it."""
    q, k, v = (np.einsum("td,dnh->tnh", x, w[f"attention.{n}"]) for n in ("q_DNH", "k_DKH", "v_DKH"))
    if c.attention_bias:
        q, k, v = (x + w[f"attention.{n}"] for x, n in ((q, "q_bias_NH"), (k, "k_bias_KH"), (v, "v_bias_KH")))
    if c.qk_norm:
        q = normed(q, w["attention.q_norm"], c.rms_norm_eps)
        k = normed(k, w["attention.k_norm"], c.rms_norm_eps)
    turn = wavelengths(c, layer_type)
    q, k = rotated(q, *turn), rotated(k, *turn)
    window = c.sliding_window if layer_type == "sliding_attention" else len(x)
    out = np.zeros_like(x)
    for t in range(len(x)):
        seen = slice(max(t - window + 1, 0), t + 1)
        for n in range(c.num_attention_heads):
            shared = n // (c.num_attention_heads // c.num_key_value_heads)
            scores = k[seen, shared] @ q[t, n] / np.sqrt(c.head_dim)
            out[t] += softmax(scores) @ v[seen, shared] @ w["attention.o_NHD"][n]
    return out


def fed_forward(x: np.ndarray, w: Parameters) -> np.ndarray:
    gate = x @ w["feed_forward.gate_DF"]
    return (gate / (1 + np.exp(-gate)) * (x @ w["feed_forward.up_DF"])) @ w["feed_forward.down_FD"]


def hidden_states(p: Parameters, c: ModelConfig, tokens: Sequence[int]) -> np.ndarray:
    """Final hidden states [T, D] of one sequence without padding."""
    x = p["embedding_VD"][np.asarray(tokens)]
    for index in range(c.num_hidden_layers):
        w = {k.removeprefix(f"layers.{index}."): v for k, v in p.items() if k.startswith(f"layers.{index}.")}
        kind = c.layer_types[index] if c.layer_types else "full_attention"
        first, second = w["attention_norm_D"], w["feed_forward_norm_D"]
        if c.norm == "input":
            x = x + attended(normed(x, first, c.rms_norm_eps), w, c, kind)
            x = x + fed_forward(normed(x, second, c.rms_norm_eps), w)
        else:
            x = x + normed(attended(x, w, c, kind), first, c.rms_norm_eps)
            x = x + normed(fed_forward(x, w), second, c.rms_norm_eps)
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
