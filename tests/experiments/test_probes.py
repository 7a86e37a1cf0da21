"""The probes on a model of another architecture, with another tokenizer, template and task than the study."""

import dataclasses
import re

import pytest
from rich.progress import Progress

from configs.models import olmo3_7b
from configs.signs import probes as recipe
from sdistill.analysis.measure import BASE
from sdistill.experiments.config import ProbesConfig
from sdistill.experiments.probes import PLAIN, SDPO, Arm, Subject, probe
from sdistill.experiments.study import Study
from sdistill.model.config import ModelConfig
from sdistill.model.weights import new_model
from sdistill.sample import Query
from sdistill.settings import ConfigError, parse
from sdistill.storage import read_responses, write_responses
from sdistill.tasks.problem import Problem, Task, Verdict, strip_thinking
from sdistill.text.chat import open_chat
from sdistill.text.hugging_face import HuggingFaceTokenizer
from sdistill.text.words import first_token_ids, match_frequencies, word_counts
from tests import tiny
from tests.text.folders import write_folder


class Sum(Task):
    def verify(self, problem, response):
        answer = strip_thinking(response)
        return Verdict(answer == problem.answer, answer)


PROBLEMS = [
    Problem("a", ({"role": "user", "content": "2 + 3?"},), "5"),
    Problem("b", ({"role": "user", "content": "1 + 1?"},), "2"),
]
RESPONSES = [
    "\nThe sum is 6, maybe. Then wait.\n</think>\n\n6",
    "\nThat sum is 5. Perhaps. Sure, wait, the sum is that.\n</think>\n\n5",
    "\nmaybe hmm so sure and on: that sum, the sum the sum\n</think>\n\n3",
    "\nThe sum and so on and so on",
]  # fmt: skip

CUT = [RESPONSES[0], RESPONSES[2]]  # wrong, and their thinking ends


def test_words_are_counted_without_markup_and_numbers_only_if_asked_for():
    texts = ["<think> Wait 3 -3 wait_ I </think> \\boxed{so} so"]
    assert word_counts(texts) == {"wait": 1, "so": 2}
    assert word_counts(texts, numbers=True) == {"wait": 1, "3": 2, "wait_": 1, "i": 1, "so": 2}


def test_matched_words_are_as_frequent_as_those_they_stand_for():
    counts = word_counts(["maybe " * 9 + "wait " * 4 + "the " * 10 + "so " * 5 + "sum " * 3 + "yes " * 9])
    assert match_frequencies(counts, ["wait", "maybe"], {"yes"}) == ["the", "so"]
    assert match_frequencies(counts, ["wait", "maybe", "hmm"], {"yes", "the"}) == ["so", "sum"]


def test_ids_that_words_begin_with(tokenizer, tmp_path):
    """Whole words of the puzzle; of a tokenizer that has no such words, the letters they begin with."""
    assert first_token_ids(tokenizer, ["wait", "might"]) == tokenizer.encode("wait")
    ours = HuggingFaceTokenizer(write_folder(tmp_path))
    assert {ours.decode([i]) for i in first_token_ids(ours, ["wait", "is"])} == {"w", "W", "i", "I", " is"}


@pytest.fixture(scope="module")
def subject(tmp_path_factory):
    """Random weights; its responses as they are were written by hand."""
    folder = tmp_path_factory.mktemp("probes")
    chat = open_chat(write_folder(folder / "tokenizer"))
    values = recipe.get_config("tiny").to_dict()
    values["probes"] |= {"max_response_length": 90, "extra_attempts": 2}
    config = parse(ProbesConfig, values)
    shape = olmo3_7b.get_config("tiny").model.to_dict() | {"vocab_size": 384}
    model = new_model(parse(ModelConfig, shape), 0)
    study = Study(config, folder / "study", model, chat, Sum(), Progress(disable=True))
    plain = [
        tiny.response(PROBLEMS[i // 2].id, text, i == 1, sample=i % 2, finish="length" if i == 3 else "stop")
        for i, text in enumerate(RESPONSES)
    ]
    write_responses(study.directory("probes", PLAIN.of(SDPO), 0) / "k4_test-000000.jsonl.gz", plain)
    return Subject(study, SDPO, model, 0, {problem.id: problem for problem in PROBLEMS})


@pytest.fixture(scope="module")
def probed(subject):
    return probe(subject, "the")


def texts(arms, name, attempts=None):
    return [generation.text for generation in arms[Arm(name, attempts)]]


def test_every_arm_is_there_and_kept(subject, probed):
    arms, used = probed
    kinds = ("cue", "neutral", "nothing")
    once = ("forbid_words", "forbid_half", "forbid_neutral", "shuffle_words", "shuffle_nothing")
    assert set(arms) == {
        PLAIN,
        *(Arm(name) for name in (*once, "shuffle_neutral", *(f"doubt_{kind}" for kind in kinds))),
        *(Arm(f"{name}_{kind}", k) for name in ("extra", "repair") for kind in kinds for k in (1, 2)),
    }
    assert used[Arm("forbid_half")] == ["wait", "hmm"]  # of wait, maybe, hmm, perhaps
    assert used[Arm("doubt_neutral")] == ["the"]
    assert not set(used[Arm("forbid_neutral")]) & set(used[Arm("forbid_words")])
    again, _ = probe(subject, "the")
    assert again == arms
    for kind in kinds:  # of four responses one was right
        assert len(arms[Arm(f"repair_{kind}", 1)]) == 3
        assert all(g in arms[Arm(f"extra_{kind}", 1)] for g in arms[Arm(f"repair_{kind}", 1)])
    for arm, generations in arms.items():
        path = subject.study.directory("probes", arm.of(SDPO), 0) / "k4_test-000000.jsonl.gz"
        assert read_responses(path) == generations


def test_forbidden_words_do_not_even_begin(probed):
    """No token but those of the letter itself has a w."""
    assert not any("w" in text.lower() for text in texts(probed[0], "forbid_words"))
    assert any("w" in text.lower() for text in texts(probed[0], "forbid_neutral"))


def test_the_cue_comes_after_the_first_wrong_attempt_and_nowhere_else(probed):
    """Where a task cannot tell attempts apart, that is the end of thinking that a wrong answer follows.

    Two of four responses have one, so each goes on twice.
    """
    for kind, insert in (("cue", " wait"), ("neutral", " the"), ("nothing", "")):
        found = probed[0][Arm(f"doubt_{kind}")]
        assert [(g.problem, g.sample) for g in found] == [("a", 0), ("b", 0), ("a", 2), ("b", 2)]
        assert found[0].text != found[2].text
        for text, start in zip(texts(probed[0], f"doubt_{kind}"), CUT * 2, strict=True):
            assert text.startswith(start.partition("\n</think>")[0] + insert)


def test_a_model_that_makes_few_wrong_attempts_is_asked_again(subject):
    """Until a quarter of as many responses have one; the copies of these differ from all samples."""
    right = [RESPONSES[1]] * 2 + ["\nmaybe 2\n</think>\n\n2"] * 2
    sure = dataclasses.replace(subject, condition=BASE)
    for arm, responses in ((PLAIN, right), (Arm("more", 1), [RESPONSES[0], *right[1:]])):
        kept = [
            tiny.response(PROBLEMS[i // 2].id, text, text == right[i], sample=i % 2 + 2 * (arm != PLAIN))
            for i, text in enumerate(responses)
        ]
        write_responses(subject.study.directory("probes", arm.of(BASE), 0) / "k4_test-000000.jsonl.gz", kept)
    arms, _ = probe(sure, "the")
    assert [(g.problem, g.sample) for g in arms[Arm("doubt_cue")]] == [("a", n) for n in (2, 6, 10, 14)]
    assert len(arms[PLAIN]) == 4 and Arm("more", 1) not in arms
    assert not subject.study.directory("probes", Arm("more", 2).of(BASE), 0).exists()


def test_thinking_is_kept_from_ending_and_what_never_ends_stays(probed):
    arms = probed[0]
    once, twice = texts(arms, "extra_cue", 1), texts(arms, "extra_cue", 2)
    for before, after in zip(RESPONSES[:3], once[:3], strict=True):
        assert before.partition("\n</think>")[0].strip() + " wait" in after
    for before, after in zip(once, twice, strict=True):
        assert after == before or before.partition("</think>")[0].rstrip() + " wait" in after
    assert once[3] == twice[3] == RESPONSES[3]


def test_lengths_are_of_whole_responses_and_within_the_limit(subject, probed):
    encode = subject.study.chat.tokenizer.encode
    for name in ("doubt_cue", "shuffle_words"):
        for generation in probed[0][Arm(name)]:
            assert generation.length <= 90
    for generation, start in zip(probed[0][Arm("doubt_nothing")], CUT * 2, strict=True):
        assert generation.length > len(encode(start.partition("\n</think>")[0]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"cue": "so"}, "config.probes.cue='so' must be one of wait, hmm"),
        ({"extra_attempts": 0}, "config.probes.extra_attempts=0 must be positive"),
        ({"num_problems": 0}, "config.probes.num_problems=0 must be positive"),
    ],
)
def test_settings_that_probe_nothing_are_refused(change, message):
    values = recipe.get_config("tiny").to_dict()
    values["probes"] |= change
    with pytest.raises(ConfigError, match=re.escape(message)):
        parse(ProbesConfig, values)


def test_words_left_out_of_the_loss_are_the_probes_own():
    values = recipe.get_config("tiny").to_dict()
    values["sdpo"]["loss"]["masked_words"] = ["wait"]
    with pytest.raises(ConfigError, match="masked_words is filled in"):
        parse(ProbesConfig, values)


def test_a_prompt_that_is_too_long_is_refused_before_anything_is_sampled(subject, tmp_path):
    config = dataclasses.replace(subject.study.config, max_prompt_length=3)
    study = dataclasses.replace(subject.study, config=config)
    with pytest.raises(ConfigError, match=r"max_prompt_length=3: a prompt for .*new.jsonl.gz has \d+ tokens"):
        study.respond(tmp_path / "new.jsonl.gz", [Query(PROBLEMS[0])], max_response_length=8, seed=0)
    assert not (tmp_path / "new.jsonl.gz").exists()
