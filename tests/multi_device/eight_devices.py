"""What eight CPU devices compute is what one computes. Run by test_eight_devices.py, or by hand:

XLA_FLAGS=--xla_force_host_platform_device_count=8 pytest tests/multi_device/eight_devices.py
"""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.experimental.pallas.ops.tpu import splash_attention as splash

from configs.paper import section5_sdpo
from sdistill.config import OptimizerConfig, SDPOConfig, SDPOLossConfig
from sdistill.distributed.mesh import MeshConfig, make_mesh
from sdistill.distributed.rules import BATCH, SAMPLING, TRAINING, parameter_shardings, place, place_batch
from sdistill.divergence.definition import DivergenceConfig
from sdistill.engine.engine import SlotEngine
from sdistill.engine.model import CachedDecoder
from sdistill.engine.programs import Slots, admit, decode, empty_slots
from sdistill.engine.types import Request
from sdistill.losses import SDPOBatch, sdpo_loss
from sdistill.mesh_choice import choose_mesh, training_mesh, training_workload
from sdistill.model.config import ComputeConfig, ModelConfig
from sdistill.model.decoder import bind
from sdistill.model.weights import load_pretrained, new_model, save_pretrained
from sdistill.settings import ConfigError, parse
from sdistill.step import init_state, jit_gradient, jit_update
from sdistill.storage import read_records
from sdistill.train import train
from tests import tiny
from tests.batches import FULL, MODEL, random_ids, sdpo_batch
from tests.processes import assert_same_files
from tests.test_train import PowerCut, config_of, cut_power_at, settings

assert jax.device_count() == 8, "needs eight devices; see the docstring"

UNTIED = dataclasses.replace(MODEL, tie_word_embeddings=False)
LOSS = SDPOLossConfig(FULL)
OPTIMIZER = OptimizerConfig(learning_rate=1e-2, warmup_steps=0)
ONE, EIGHT = MeshConfig(), MeshConfig(data=2, fsdp=2, tensor=2)


@pytest.fixture
def kernel_on_cpu(monkeypatch):
    """Attention's kernel for TPU, interpreted."""
    interpreted = functools.partial(splash.make_splash_mha, interpret=True)
    monkeypatch.setattr(splash, "make_splash_mha", interpreted)


# ── A step, and sampling ─────────────────────────────────────────────────────────────────────────


def eight_rows(has_teacher: tuple[int, ...]) -> SDPOBatch:
    """Of many lengths."""
    prompts = random_ids((4, 2, 6, 5, 8, 3, 1, 7))
    contexts = [[*prompt, *more] for prompt, more in zip(prompts, random_ids([4] * 8, 1), strict=True)]
    responses = random_ids((5, 6, 1, 3, 6, 2, 4, 6), 2)
    return sdpo_batch(responses, prompts, contexts, columns=(6, 8, 12), has_teacher=has_teacher)


def one_step(mesh_config: MeshConfig) -> dict[str, object]:
    """What a first step computes and compiles, what a second one compiles, and how parameters are split."""
    mesh = make_mesh(mesh_config)
    params, teacher = (place(tiny.parameters(UNTIED, seed), mesh, TRAINING) for seed in (0, 1))
    state = init_state(params, UNTIED, OPTIMIZER, mesh)
    gradient_of = jit_gradient(sdpo_loss, UNTIED, mesh, config=LOSS, temperature=1.0, logits_chunk_size=4)
    update = jit_update(UNTIED, mesh, OPTIMIZER)

    def step(state):
        batch = place_batch(eight_rows((1, 1, 0, 1, 1, 1, 0, 1)), mesh)
        gradient, report = gradient_of(state.params, teacher, batch)
        state, more = update(state, gradient)
        return state, report.metrics | more

    with tiny.compilations() as seen:
        state, metrics = step(state)
        first = len(seen)
        leaf = state.params["layers"][0]["feed_forward"]["gate_DF"][...]
        found = {
            "metrics": {name: [float(x) for x in pair] for name, pair in metrics.items()},
            "params": tiny.leaves(state.params),
            "moments": tiny.leaves(optax.tree_utils.tree_get(state.opt_state, "mu")),
            "shard": leaf.sharding.shard_shape(leaf.shape),
            "devices": len(leaf.sharding.device_set),
        }
        before = len(seen)
        step(state)
        return found | {"compiled": first, "compiled again": len(seen) - before}


@pytest.fixture(scope="module")
def both_steps():
    return one_step(ONE), one_step(EIGHT)


def test_the_work_is_split(both_steps):
    one, eight = both_steps
    assert one["devices"] == 1 and one["shard"] == (1, 32, 48)
    assert eight["devices"] == 8 and eight["shard"] == (1, 16, 24)  # layers, fsdp × tensor


def test_the_step_is_the_same(both_steps):
    one, eight = both_steps
    assert one["metrics"].keys() == eight["metrics"].keys()
    for name, pair in one["metrics"].items():
        assert eight["metrics"][name] == pytest.approx(pair, rel=1e-5, abs=1e-6), name
    for name in ("params", "moments"):
        assert len(one[name]) == len(eight[name]) == 14
    for ours, theirs in zip(eight["moments"], one["moments"], strict=True):  # a tenth of the gradient
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-7)
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5 * np.abs(theirs).max())
    for ours, theirs, moment in zip(eight["params"], one["params"], one["moments"], strict=True):
        sure = np.abs(moment) > 1e-6  # Adam's first step is ± the rate: rounding decides where there is none
        assert sure.mean() > 0.5
        np.testing.assert_allclose(ours[sure], theirs[sure], rtol=1e-5, atol=1e-5)


def test_the_second_step_compiles_nothing(both_steps):
    for found in both_steps:
        assert found["compiled"] > 0 and found["compiled again"] == 0


def test_the_responses_are_the_same():
    requests = [Request([3, 9, n], f"problem {n}", sample) for n in range(6) for sample in range(2)]

    def sample(mesh_config):
        mesh = make_mesh(mesh_config)
        engine = SlotEngine(
            CachedDecoder(UNTIED),
            mesh=mesh,
            stop_ids=[5],
            slots=16,
            max_prompt_length=8,
            max_response_length=6,
        )
        return engine.generate(place(tiny.parameters(UNTIED), mesh, TRAINING), requests, seed=0, step=0)

    ours, theirs = sample(EIGHT), sample(ONE)
    np.testing.assert_array_equal(ours.ids, theirs.ids)
    np.testing.assert_array_equal(ours.lengths, theirs.lengths)
    np.testing.assert_array_equal(ours.finished, theirs.finished)
    np.testing.assert_allclose(ours.log_probs, theirs.log_probs, atol=1e-4)
    assert theirs.lengths.max() == 6 and theirs.finished.any()


SENT = re.compile(r"= (.*?) (all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter)(-start)?\(")


def sent(lowered: jax.stages.Lowered) -> list[tuple[str, int]]:
    """Kind and number of elements of everything that the compiled program sends between devices."""
    found = []
    for shapes, kind, _ in SENT.findall(lowered.compile().as_text()):
        sizes = [np.prod([int(n) for n in s.split(",") if n]) for s in re.findall(r"\w+\[([\d,]*)\]", shapes)]
        found.append((kind, int(max(sizes))))
    return found


def test_sampling_sends_neither_weights_nor_caches():
    """A step sends a residual stream and a block of probabilities a row; beginning a row sends nothing."""
    mesh, model = make_mesh(EIGHT), CachedDecoder(tiny.CONFIG)
    params = model.for_sampling(place(tiny.parameters(), mesh, TRAINING))
    params = jax.device_put(params, parameter_shardings(params, mesh, SAMPLING))
    shardings = Slots(jax.NamedSharding(mesh, model.cache_spec()), jax.NamedSharding(mesh, BATCH))
    slots = jax.jit(lambda: empty_slots(model, 16, 24), out_shardings=shardings)()
    step = jax.jit(lambda *inputs: decode(*inputs, model=model, steps=4), out_shardings=(shardings, None))
    begin = jax.jit(lambda *inputs: admit(*inputs, model=model), out_shardings=shardings)
    zeros, new = np.zeros(4, np.int32), empty_slots(model, 4, 8)
    allowed = np.zeros(tiny.CONFIG.vocab_size, bool)  # nothing is forbidden
    of_step = sent(
        step.lower(params, slots, np.zeros(16, bool), np.int32(4), zeros[:2], np.array([5]), allowed)
    )
    width, block, rows = 32, 128, 4
    assert {kind for kind, _ in of_step} >= {"all-reduce"}  # the programs are really split
    assert max(size for _, size in of_step) <= max(rows * block, 16 * 16)  # tokens of a round, for the host
    assert max(size for kind, size in of_step if kind == "all-reduce") <= rows * width
    assert sent(begin.lower(slots, new.cache, new.rows, zeros, zeros)) == []


# ── Models ───────────────────────────────────────────────────────────────────────────────────────

WINDOWED = dataclasses.replace(
    tiny.CONFIG,
    num_hidden_layers=4,
    attention_bias=False,
    qk_norm="projection",
    norm="output",
    tie_word_embeddings=False,
    layer_types=("sliding_attention", "full_attention") * 2,
    sliding_window=30,
)


def packed_rows() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Eight rows of 140 columns with two sequences each, and padding after the first and the second."""
    tokens = np.random.default_rng(0).integers(0, 24, (8, 140))
    segment_ids, positions = np.zeros_like(tokens), np.zeros_like(tokens)
    for row in range(8):
        for segment, start, stop in ((1, 0, 50 + row), (2, 60 + row, 130)):
            segment_ids[row, start:stop], positions[row, start:stop] = segment, np.arange(stop - start)
    return tokens, positions, segment_ids


@pytest.mark.usefixtures("kernel_on_cpu")
def test_a_loaded_model_computes_the_same_with_the_kernel_and_is_saved_as_it_was(tmp_path):
    """On each of eight devices attention's kernel for TPU, on one device plain attention."""
    save_pretrained(bind(WINDOWED, tiny.parameters(WINDOWED)), tmp_path / "source", shard_bytes=20_000)
    weights = np.random.default_rng(1).normal(size=(8, 140, 24))

    def outcome(mesh_config, attention):
        mesh = make_mesh(mesh_config)
        params = nnx.state(load_pretrained(tmp_path / "source", mesh=mesh), nnx.Param)
        shardings = jax.tree.map(lambda x: x.sharding, params)
        assert jax.tree.leaves(shardings) == jax.tree.leaves(parameter_shardings(params, mesh, TRAINING))
        config = dataclasses.replace(WINDOWED, compute=ComputeConfig(attention=attention))
        tokens, positions, segment_ids = place_batch(packed_rows(), mesh)

        @jax.jit
        @functools.partial(jax.grad, has_aux=True)
        def gradient(params):
            model = bind(config, params)
            hidden = model(tokens, positions, segment_ids)
            logits = jnp.where((segment_ids > 0)[..., None], hidden @ model.head(), 0)
            return jnp.mean(logits * weights), logits

        with jax.set_mesh(mesh):
            gradients, logits = gradient(params)
        save_pretrained(bind(WINDOWED, params), tmp_path / attention, shard_bytes=20_000)
        assert_same_files(tmp_path / attention, tmp_path / "source")
        return [np.asarray(logits), *tiny.leaves(gradients)]

    one, eight = outcome(ONE, "plain"), outcome(EIGHT, "splash")
    assert len(one) == 1 + 3 + 2 * 11  # logits, and two stacks
    for ours, theirs in zip(eight, one, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=2e-5 * np.abs(theirs).max())


# ── Sequences split over devices ─────────────────────────────────────────────────────────────────

# Windows that end within a device's columns, and a head whose ids are in several tiles.
WIDE = dataclasses.replace(
    tiny.CONFIG,
    vocab_size=8192,
    layer_types=("sliding_attention", "full_attention"),
    sliding_window=9,
    tie_word_embeddings=False,
)
TOPK = SDPOLossConfig(DivergenceConfig(alpha=1.0, top_k=64))


def four_long_rows() -> SDPOBatch:
    """Neither rows' columns nor responses divide evenly."""
    prompts = random_ids((4, 2, 6, 8), 0, WIDE.vocab_size)
    contexts = [[*more, *p] for p, more in zip(prompts, random_ids([5] * 4, 1, WIDE.vocab_size), strict=True)]
    responses = random_ids((22, 17, 1, 9), 2, WIDE.vocab_size)
    batch = sdpo_batch(responses, prompts, contexts, columns=(22, 8, 13), has_teacher=(1, 1, 0, 1))
    return batch._replace(rollout_log_probs=batch.rollout_log_probs - 6)  # of so many ids


def gradient_of_split_rows(mesh_config: MeshConfig, attention: str):
    """Loss and gradients; how a matrix of the latter is split; whether the program gathers anything."""
    mesh = make_mesh(mesh_config)
    model: ModelConfig = dataclasses.replace(WIDE, compute=ComputeConfig(attention=attention, remat="full"))
    params, teacher = (place(tiny.parameters(WIDE, seed), mesh, TRAINING) for seed in (0, 1))
    gradient_of = jit_gradient(sdpo_loss, model, mesh, config=TOPK, temperature=1.0, logits_chunk_size=4)
    with jax.set_mesh(mesh):
        program = gradient_of.lower(params, teacher, place_batch(four_long_rows(), mesh)).compile()
        gradient, report = program(params, teacher, place_batch(four_long_rows(), mesh))
    leaf = gradient["layers"][0]["feed_forward"]["gate_DF"][...]
    arrays = [np.asarray(report.metrics["loss"][0]), *tiny.leaves(gradient)]
    return arrays, leaf.sharding.shard_shape(leaf.shape), "all-gather" in program.as_text()


@pytest.fixture(scope="module")
def whole_rows():
    return gradient_of_split_rows(ONE, "plain")


@pytest.mark.usefixtures("kernel_on_cpu")
@pytest.mark.parametrize(
    ("mesh", "attention", "split"),
    [
        pytest.param(MeshConfig(fsdp=2, context=4), "plain", (1, 4, 48), marks=pytest.mark.long),
        (MeshConfig(tensor=2, context=4), "splash", (1, 8, 24)),
    ],
)
def test_split_sequences_have_the_loss_and_the_gradients_of_whole_ones(whole_rows, mesh, attention, split):
    """And parameters are split over the context axis, too."""
    (loss, *gradients), shard, _ = whole_rows
    assert loss > 0.01 and len(gradients) == 3 + 2 * 11 and shard == (1, 32, 48)
    assert all(np.abs(gradient).max() > 1e-6 for gradient in gradients)
    found, shard, gathers = gradient_of_split_rows(mesh, attention)
    assert shard == split and gathers
    for ours, theirs in zip(found, [loss, *gradients], strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5 * np.abs(theirs).max())


# ── Meshes ───────────────────────────────────────────────────────────────────────────────────────


def test_where_the_config_names_no_mesh_one_is_chosen_that_fits():
    run = parse(SDPOConfig, section5_sdpo.get_config("qwen3_8b:tiny").to_dict())
    rollouts = dataclasses.replace(run.rollouts, slots=16)
    run = dataclasses.replace(run, mesh=None, micro_batch_size=8, rollouts=rollouts)
    work = training_workload(run, run.model)
    on_one, _ = work.peak(ONE)
    split = make_mesh(choose_mesh(work, 8, on_one / 3))
    for mesh, sizes, parts in (
        (training_mesh(run), {"data": 8, "fsdp": 1, "tensor": 1, "context": 1}, 1),
        (split, {"data": 4, "fsdp": 2, "tensor": 1, "context": 1}, 2),
    ):
        params = place(nnx.state(new_model(run.model, 0), nnx.Param), mesh, TRAINING)
        largest = max(jax.tree.leaves(params), key=lambda x: x.size)
        assert dict(mesh.shape) == sizes
        assert largest.size == parts * largest.addressable_shards[0].data.size


@pytest.mark.parametrize(
    ("mesh", "axes"),
    [(MeshConfig(tensor=4), "tensor=4"), (MeshConfig(data=2, context=4), "tensor=1 × context=4")],
)
def test_a_mesh_that_cannot_split_the_model_is_refused(mesh, axes):
    run = parse(SDPOConfig, section5_sdpo.get_config("qwen3_8b:tiny").to_dict())
    with pytest.raises(
        ConfigError, match=f"mesh {axes} cannot split kv_heads=2 of the model; make an axis smaller"
    ):
        training_mesh(dataclasses.replace(run, mesh=mesh, micro_batch_size=8))


@pytest.mark.long
def test_a_run_that_moves_from_mesh_to_mesh_learns_the_same(tmp_path, data_dir, caplog):
    """Eight devices, eight in another layout, one: the same computation, rounded otherwise."""
    rollouts = settings(data_dir)["rollouts"] | {"slots": 8}
    changes = {"evaluation": None, "micro_batch_size": 8, "rollouts": rollouts}
    for step, mesh in ((2, dataclasses.asdict(EIGHT)), (4, {"fsdp": 4, "context": 2}), (6, {})):
        with pytest.raises(PowerCut):
            config = config_of(data_dir, mesh=mesh, **changes)
            train(config, tmp_path / "moved", progress=cut_power_at(step, tmp_path / "moved"))
    train(config_of(data_dir, mesh={}, **changes), tmp_path / "stayed")
    runs = [read_records(tmp_path / name / "metrics.jsonl") for name in ("moved", "stayed")]
    assert [record["step"] for record in runs[0]] == [1, 2, 3, 4, 5, 6]
    for moved, stayed in zip(*runs, strict=True):
        assert moved.keys() == stayed.keys()
        assert moved["train_accuracy"] == stayed["train_accuracy"] > 0  # the same responses, too
        for name, value in stayed.items():
            assert moved[name] == pytest.approx(value, rel=2e-3, abs=1e-5), (stayed["step"], name)
    told = [message for message in caplog.messages if "going on under another layout" in message]
    assert len(told) == 2 and "mesh.tensor=2 there, 1 here" in told[0]
