import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from sdistill.optimizer import OptimizerConfig, make_optimizer


def rates(steps, **settings):
    schedule = OptimizerConfig(**settings).rate()
    return [float(schedule(step)) for step in steps]


def test_constant_follows_warmup():
    found = rates([0, 1, 5, 9, 10, 11, 1000], learning_rate=2e-3, warmup_steps=10)
    np.testing.assert_allclose(found, np.array([0, 0.2, 1, 1.8, 2, 2, 2]) * 1e-3, rtol=1e-6)


def test_no_warmup_starts_at_the_peak():
    assert rates([0, 1], learning_rate=0.5, warmup_steps=0) == [0.5, 0.5]
    found = rates([0], learning_rate=0.5, warmup_steps=0, schedule="cosine", decay_steps=8)
    assert found == [0.5]


def test_cosine_ends_at_a_hundredth():
    steps = [0, 5, 10, 30, 60, 85, 110, 111, 500]
    found = rates(steps, learning_rate=2.0, warmup_steps=10, schedule="cosine", decay_steps=110)

    def expected(step):
        if step < 10:
            return 2.0 * step / 10
        done = min((step - 10) / 100, 1)
        return 0.02 + (2.0 - 0.02) * (1 + math.cos(math.pi * done)) / 2

    np.testing.assert_allclose(found, [expected(step) for step in steps], rtol=1e-5)


# Stacked norms and biases have two axes and are no matrices all the same.
AXES = {
    "matrix": ("vocab", "embed"),
    "scale": (None,),
    "stacked": ("layers", None),
    "tensor": ("layers", "embed", None),
}


def state(values):
    """Arrays as the parameters of a model."""
    return nnx.State({k: nnx.Param(jnp.asarray(v, jnp.float32), axes=AXES[k]) for k, v in values.items()})


def adamw(params, gradients, config):
    means, squares = ({k: np.zeros_like(v) for k, v in params.items()} for _ in range(2))
    schedule = config.rate()
    for step, gradient in enumerate(gradients):
        norm = math.sqrt(sum(np.sum(g**2) for g in gradient.values()))
        scale = min(1.0, config.clip_norm / norm) if norm else 1.0
        for name in params:
            g = gradient[name] * scale
            means[name] = config.b1 * means[name] + (1 - config.b1) * g
            squares[name] = config.b2 * squares[name] + (1 - config.b2) * g**2
            mean = means[name] / (1 - config.b1 ** (step + 1))
            square = squares[name] / (1 - config.b2 ** (step + 1))
            update = mean / (np.sqrt(square) + 1e-8)
            if name in ("matrix", "tensor"):
                update = update + config.weight_decay * params[name]
            params[name] = params[name] - float(schedule(step)) * update
    return params


@pytest.mark.parametrize(
    "config",
    [
        OptimizerConfig(1e-2, warmup_steps=2, weight_decay=0.1, clip_norm=1.0),
        OptimizerConfig(1e-2, warmup_steps=0, clip_norm=1e9),
        OptimizerConfig(0.1, 1, "cosine", 6, b1=0.5, b2=0.9, weight_decay=0.3, clip_norm=0.2),
    ],
)
def test_updates_match_float64_adamw(config):
    rng = np.random.default_rng(0)
    shapes = {"matrix": (3, 4), "scale": (4,), "stacked": (2, 4), "tensor": (2, 3, 2)}
    start = {name: rng.standard_normal(shape) for name, shape in shapes.items()}
    gradients = [
        {name: scale * rng.standard_normal(shape) for name, shape in shapes.items()}
        for scale in (0.01, 3.0, 0.1, 10.0, 0.001)
    ]
    optimizer = make_optimizer(config)
    params = state(start)
    moments, update = optimizer.init(params), jax.jit(optimizer.update)
    for gradient in gradients:
        updates, moments = update(state(gradient), moments, params)
        params = optax.apply_updates(params, updates)
    expected = adamw(dict(start), gradients, config)
    for name in shapes:
        np.testing.assert_allclose(params[name][...], expected[name], rtol=1e-5, atol=1e-6)


def test_only_matrices_decay():
    config = OptimizerConfig(0.5, warmup_steps=0, weight_decay=0.1)
    params = state(
        {"matrix": np.full((2, 2), 4.0), "scale": np.full(2, 4.0), "stacked": np.full((2, 2), 4.0)}
    )
    optimizer = make_optimizer(config)
    zeros = jax.tree.map(jnp.zeros_like, params)
    updates, _ = optimizer.update(zeros, optimizer.init(params), params)
    np.testing.assert_allclose(updates["matrix"][...], -0.5 * 0.1 * 4.0, rtol=1e-6)
    np.testing.assert_array_equal(updates["scale"][...], 0)
    np.testing.assert_array_equal(updates["stacked"][...], 0)


def test_equal_settings_share_one_optimizer():
    assert make_optimizer(OptimizerConfig(1e-3)) is make_optimizer(OptimizerConfig(1e-3))
    assert make_optimizer(OptimizerConfig(1e-3)) is not make_optimizer(OptimizerConfig(2e-3))
