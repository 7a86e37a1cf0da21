"""The decoder against transformers itself, where it is installed (`pip install -e '.[oracle]'`)."""

import json

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="compares with transformers, which needs torch")
pytest.importorskip("transformers", reason="compares with transformers")

from sdistill.model.hugging_face import from_hugging_face  # noqa: E402
from sdistill.model.weights import load_pretrained, save_pretrained  # noqa: E402
from sdistill.settings import ConfigError  # noqa: E402
from tests.model.oracle import golden, ours, parity  # noqa: E402
from tests.model.oracle import transformers_side as theirs  # noqa: E402
from tests.model.oracle.cases import CASES, LAYOUT, THOROUGHLY, sequences  # noqa: E402

ALL = pytest.mark.parametrize("case", CASES.values(), ids=lambda case: case.name)
THREE = pytest.mark.parametrize("name", THOROUGHLY)


def files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def tensors(folder):
    """Every tensor's bytes and type, whichever file it is in."""
    from safetensors.numpy import load_file

    parts = [load_file(path) for path in sorted(folder.glob("*.safetensors"))]
    return {k: (v.dtype, v.shape, v.tobytes()) for part in parts for k, v in part.items()}


@THREE
@pytest.mark.slow
def test_every_error_is_within_its_tolerance(name):
    """`python -m tests.model.oracle.parity` does this for all cases."""
    found = parity.errors(CASES[name])
    assert {name: found[name] for name, limit in parity.TOLERANCES.items() if found[name] > limit} == {}


@THREE
def test_float32_parameters_computed_in_bfloat16_are_as_close_as_bfloat16_ones(name):
    case = CASES[name]
    model = theirs.model(case)
    expected = [theirs.logits(model, tokens) for tokens in sequences(case)]
    found = ours.logits(case, "float32", "bfloat16")
    assert parity.error(found, expected) <= parity.TOLERANCES["bfloat16"]


@ALL
def test_the_golden_files_are_what_this_version_of_transformers_writes(case, tmp_path):
    theirs.model(case).save_pretrained(tmp_path)
    kept = json.loads((golden.FOLDER / case.folder / "config.json").read_text())
    assert json.loads((tmp_path / "config.json").read_text()) | {"transformers_version": ""} == kept | {
        "transformers_version": ""
    }
    assert {name: shape for name, (_, shape, _) in tensors(tmp_path).items()} == golden.shapes(case)


@ALL
def test_the_golden_numbers_are_what_this_version_of_transformers_computes(case):
    """So what is compared with them, in test_golden.py, is compared with transformers."""
    kept, found = golden.numbers(case), golden.computed(case, golden.shapes(case))
    assert found.keys() == kept.keys()
    np.testing.assert_array_equal(found["greedy"], kept["greedy"])
    names = [f"logits {i}" for i in range(len(LAYOUT))]
    assert parity.error([found[n] for n in names], [kept[n] for n in names]) <= 2e-6
    norms = kept["gradients"][:, :1]
    assert (np.abs(found["gradients"] - kept["gradients"]) / norms).max() <= 1e-5


@ALL
def test_what_a_config_does_not_say_is_what_transformers_takes_it_to_be(case, tmp_path):
    """Or it is refused: one field after the other is left out."""
    values = json.loads((golden.FOLDER / case.folder / "config.json").read_text())
    refused = set()
    for field in values.keys() - {"architectures", "model_type"}:
        silent, filled = tmp_path / f"{field} silent", tmp_path / f"{field} filled"
        silent.mkdir()
        (silent / "config.json").write_text(json.dumps({k: v for k, v in values.items() if k != field}))
        try:
            config = from_hugging_face(silent / "config.json")
        except ConfigError:
            refused.add(field)
            continue
        theirs.filled_config(silent).save_pretrained(filled)
        assert config == from_hugging_face(filled / "config.json"), field
    sizes = {"hidden_size", "intermediate_size", "num_attention_heads", "num_hidden_layers", "vocab_size"}
    window = {"sliding_window", "use_sliding_window"} if case.name == "qwen2 window" else set()
    assert refused <= sizes | window | {"num_key_value_heads"}


@ALL
def test_what_is_written_is_loaded_by_transformers_without_a_word(case, tmp_path):
    shard_bytes = 10**9 if case.name in THOROUGHLY else 50_000
    save_pretrained(ours.model(case), tmp_path, shard_bytes=shard_bytes)
    assert (len(list(tmp_path.glob("*.safetensors"))) > 1) == (shard_bytes == 50_000)
    loaded, said = theirs.load(tmp_path)
    assert said == []
    assert loaded.dtype == torch.float32
    same = theirs.model(case)
    for tokens in sequences(case)[:2]:
        np.testing.assert_array_equal(theirs.logits(loaded, tokens), theirs.logits(same, tokens))


@THREE
@pytest.mark.parametrize(("dtype", "shard"), [("float32", "1GB"), ("bfloat16", "40KB")])
def test_a_file_of_transformers_survives_load_save_load_bit_by_bit(name, dtype, shard, tmp_path):
    model = theirs.model(CASES[name], getattr(torch, dtype))
    model.save_pretrained(tmp_path / "theirs", max_shard_size=shard)
    assert (len(list((tmp_path / "theirs").glob("*.safetensors"))) > 1) == (shard == "40KB")
    loaded = load_pretrained(tmp_path / "theirs", dtype=dtype)
    save_pretrained(loaded, tmp_path / "ours", shard_bytes=60_000)
    assert tensors(tmp_path / "ours") == tensors(tmp_path / "theirs")
    save_pretrained(load_pretrained(tmp_path / "ours", dtype=dtype), tmp_path / "again", shard_bytes=60_000)
    assert files(tmp_path / "again") == files(tmp_path / "ours")
    again, said = theirs.load(tmp_path / "again")
    assert said == [] and again.dtype == model.dtype
    assert from_hugging_face(tmp_path / "ours" / "config.json") == loaded.config
