"""Every diff of docs/extend.md applies to the code as it is, is short, and does what the page says."""

import re
import shutil
import subprocess
import sys
import textwrap

import pytest

from tests.processes import ROOT

PAGE = (ROOT / "docs" / "extend.md").read_text(encoding="utf-8")
DIFFS = dict(re.findall(r"^## An? (\w+)[^\n]*\n.*?^```diff\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL))


@pytest.fixture
def extended(tmp_path):
    """Applies a diff to a copy of the code, and runs statements there; returns what they print."""

    def run(name: str, code: str) -> list[str]:
        for folder in ("sdistill", "configs"):
            shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
        (tmp_path / "tests").mkdir()
        shutil.copy(ROOT / "tests" / "tiny.py", tmp_path / "tests")
        subprocess.run(["git", "init", "--quiet"], cwd=tmp_path, check=True)
        subprocess.run(["git", "apply", "-"], input=DIFFS[name], text=True, cwd=tmp_path, check=True)
        command = [sys.executable, "-c", textwrap.dedent(code)]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout.splitlines()

    return run


def test_the_page_shows_five_short_diffs():
    assert list(DIFFS) == ["task", "model", "context", "fix", "objective"]
    assert all(len(diff.splitlines()) < 40 for diff in DIFFS.values())


@pytest.mark.slow
def test_the_task_reads_its_problems_and_verifies(extended, tmp_path):
    file = tmp_path / "data" / "downloads" / "sums" / "sums.jsonl"
    file.parent.mkdir(parents=True)
    file.write_text('{"id": "a", "prompt": [{"role": "user", "content": "2 + 3"}], "answer": "5"}\n')
    printed = extended(
        "task",
        """
        from sdistill.data.catalogue import open_problems, task_of
        [problem] = open_problems("sums", "data")
        print(problem.messages[-1]["content"])
        for response in ("<think> maybe 4 </think> 5", "5 </think> 6", "<think> 5"):
            print(task_of("sums").verify(problem, response).correct)
        """,
    )
    assert printed[-4:] == ["2 + 3", "True", "False", "False"]  # after what TFDS says


@pytest.mark.long
def test_the_model_computes_what_transformers_computes(extended, tmp_path):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    shape = {"vocab_size": 24, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "initializer_range": 0.5}
    theirs = transformers.LlamaForCausalLM(transformers.LlamaConfig(**shape, **heads)).eval()
    theirs.save_pretrained(tmp_path / "llama")
    with torch.no_grad():
        expected = theirs(torch.arange(1, 9)[None]).logits[0].numpy()
    printed = extended(
        "model",
        """
        import jax.numpy as jnp
        import numpy as np
        from configs.models import llama_7b
        from sdistill.model.config import ModelConfig
        from sdistill.model.folders import load_chat
        from sdistill.model.weights import load_pretrained
        from sdistill.settings import parse
        parse(ModelConfig, llama_7b.get_config("tiny").model.to_dict())
        model, ids = load_pretrained("llama"), jnp.arange(1, 9)[None]
        hidden = model(ids, jnp.arange(8)[None], jnp.ones((1, 8), int))
        np.save("logits.npy", (hidden @ model.head())[0])
        """,
    )
    import numpy as np

    found = np.load(tmp_path / "logits.npy")
    assert printed == [] and np.abs(found - expected).max() < 2e-5 * np.abs(expected).max()


def test_the_context_is_rendered(extended):
    printed = extended(
        "context",
        """
        from sdistill.config import ContextConfig
        from sdistill.contexts import teacher_turn
        from sdistill.tasks.signs_puzzle import make_problem
        problem = make_problem((8, 4, 7), 5)
        config = ContextConfig("shuffled", template="{prompt} solution {solution}")
        print(teacher_turn(config, problem, "so </think> - +"))
        """,
    )
    assert printed == ["8 4 7 = 5 solution + -"]


@pytest.mark.slow
def test_the_fix_changes_the_loss(extended):
    """Two of four rollouts are right; with the fix, no token of these counts in the objective."""
    printed = extended(
        "fix",
        """
        from sdistill.model.folders import load_chat
        from configs.signs import sdpo
        from sdistill.settings import parse
        from sdistill.tasks.signs_puzzle import SignsTask, make_problem
        from sdistill.batch import Rollouts, sdpo_batch
        from sdistill.config import SDPOConfig
        from tests import tiny
        problem, chat, settings = make_problem((8, 4, 7), 5), load_chat("signs_base"), sdpo.get_config("tiny")
        settings.rollouts.num_prompts = 1
        texts = ["so </think> + -", "so </think> + +", "</think> + -", "so </think> - -"]
        completions = tiny.completions([chat.tokenizer.encode(text) for text in texts], 8)
        responses = [
            tiny.response(problem.id, text, SignsTask().verify(problem, text).correct, sample=i)
            for i, text in enumerate(texts)
        ]
        for failures_only in (False, True):
            settings.loss.failures_only = failures_only
            config = parse(SDPOConfig, settings.to_dict())
            scored = Rollouts.of(config, [problem], responses, completions, chat)
            print(*sdpo_batch(config, scored, chat)[0].token_weights.sum(axis=1))
        """,
    )
    assert printed[-2:] == ["0.25 0.25 0.25 0.25", "0.0 0.25 0.0 0.25"]


@pytest.mark.slow
def test_the_objective_has_one_ratio_a_response(extended):
    """The loss equals numpy's from the log-probabilities; the second response is shorter."""
    printed = extended(
        "objective",
        """
        import dataclasses
        import numpy as np
        from configs.signs import grpo
        from sdistill.config import GRPO_PRESETS, GRPOConfig
        from sdistill.batch import layout
        from sdistill.losses import GRPOBatch, grpo_loss, score_responses, token_weights
        from sdistill.settings import parse
        from tests import tiny
        preset = parse(GRPOConfig, grpo.get_config("gspo").to_dict()).loss
        assert preset == GRPO_PRESETS["gspo"] and preset.sequence_ratio
        loss = dataclasses.replace(preset, clip_low=0.9, clip_high=9.0)
        responses, lengths = np.asarray([[3, 4, 5], [6, 7, 0]]), np.asarray([3, 2])
        student, params = layout([[1], [2]], responses, lengths, 1), tiny.parameters()
        shared = {"model": tiny.CONFIG, "temperature": 1.0, "logits_chunk_size": 4}
        log_probs = np.asarray(score_responses(params, student, **shared).log_prob_BT)
        change, advantages = np.asarray([[0.3, 0.6, -0.3], [-0.2, -0.4, 50.0]]), np.asarray([[1.0], [-2.0]])
        batch = GRPOBatch(
            student,
            advantages * student.response_mask,
            token_weights(student.response_mask, loss.aggregation),
            log_probs - change,
        )
        value, report = grpo_loss(params, None, batch, config=loss, **shared)
        expected = -(np.exp(0.2) * 1.0 + np.exp(-0.3) * -2.0) / 2
        print(abs(float(value) - expected) < 1e-5)
        """,
    )
    assert printed == ["True"]
