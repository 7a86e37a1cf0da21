"""Causal probes: uncertainty forbidden, forced, moved, or left out of the loss, each against its controls."""

import dataclasses
import functools
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from flax import nnx

from sdistill.analysis.epistemic import WORDS
from sdistill.analysis.probes import (
    EXTRA,
    MASKED,
    PLAIN,
    PROBES,
    REPAIR,
    can_shuffle,
    first_half,
    followed_by,
    probes,
    shuffled,
    thinking,
)
from sdistill.analysis.records import Cell, Record, Results
from sdistill.config import GRPOConfig, SDPOConfig
from sdistill.data.catalogue import open_problems
from sdistill.experiments.config import ProbesConfig
from sdistill.experiments.study import Study, add_base, add_run, name_of, on_policy_datasets
from sdistill.model.decoder import Decoder
from sdistill.model.folders import load_model
from sdistill.sample import Query
from sdistill.storage import read_responses, write_responses
from sdistill.tasks.problem import Problem, Task
from sdistill.tasks.signs_puzzle import SignsTask
from sdistill.text import words
from sdistill.types import Response

AT_ONCE, DOUBT, SHUFFLE, FORCE = 0, 1, 2, 3  # steps of the random streams; FORCE and more are rounds
AGAIN = 3  # times that a model is asked again, at most, to see more of what is rare in its responses
Arms = dict[str, list[Response]]
Words = dict[str, list[str]]
"""Arm → words that it is about."""


@dataclass(frozen=True)
class Subject:
    """A model that is probed.

    Attributes:
      study: It is part of.
      name: What the names of its arms begin with.
      model: It.
      seed: Of its training, and of its responses.
      problems: What it is asked.
      task: What judges.
    """

    study: Study[ProbesConfig]
    name: str
    model: Decoder
    seed: int
    problems: Sequence[Problem]
    task: Task

    def answer(
        self, arm: str, units: Sequence[Query | Response], *, step: int, forbidden: Sequence[int] = ()
    ) -> list[Response]:
        """Samples the queries, once for all; responses that are given stay as they are."""
        folder = self.study.directory(PROBES, f"{self.name}@{arm}", self.seed)
        path = folder / f"{self.study.config.probes.split}-000000.jsonl.gz"
        if path.exists():
            return read_responses(path)
        queries = [unit for unit in units if isinstance(unit, Query)]
        sampled: list[Response] = []
        if queries:
            sampled, _ = self.study.sample(
                nnx.state(self.model, nnx.Param),
                queries,
                self.task,
                name=f"{self.name} {arm}",
                max_response_length=self.study.config.probes.max_response_length,
                prompt_multiple=64,  # few shapes to compile
                seed=self.seed,
                step=step,
                forbidden=forbidden,
            )
        new = iter(sampled)
        responses = [next(new) if isinstance(unit, Query) else unit for unit in units]
        write_responses(path, responses)
        return responses

    @functools.cached_property
    def plain(self) -> list[Response]:
        """Its responses as they are."""
        samples = range(self.study.config.probes.num_samples)
        return self.answer(PLAIN, [Query(p, i) for p in self.problems for i in samples], step=AT_ONCE)

    def more(self, again: int) -> list[Response]:
        """As many other responses as they are; their samples go on counting."""
        count = self.study.config.probes.num_samples
        samples = range(again * count, (again + 1) * count)
        return self.answer(
            f"{PLAIN}_{again}", [Query(p, i) for p in self.problems for i in samples], step=AT_ONCE
        )

    @functools.cached_property
    def counts(self) -> Counter[str]:
        """Its words, numbers left out."""
        return words.count(g.text for g in self.plain)

    def neutral(self, of: Sequence[str]) -> list[str]:
        """Words that it says about as often as these, and that do not bear on the answer."""
        return words.matched(self.counts, of, {*WORDS, *self.task.announcing})

    def several(self, generations: Sequence[Response], asked: int = 1) -> list[Response]:
        """Each again and again, to be gone on with in as many ways, where they are few.

        Together at most as many as responses as they are, so that what is found about few of them is found
        about as precisely. Copies differ in their sample, part of the name of their random stream, and from
        the samples of all the times that the model was asked.
        """
        copies = range(max(1, len(self.plain) // max(1, len(generations))))
        samples = self.study.config.probes.num_samples * asked
        return [
            dataclasses.replace(g, sample=g.sample + copy * samples) for copy in copies for g in generations
        ]

    def begin(self, generation: Response, text: str) -> Query:
        """Goes back to `text`, in which a response has begun."""
        return Query(self._problem[generation.problem], generation.sample, prefix=text)

    @functools.cached_property
    def _problem(self) -> dict[str, Problem]:
        return {problem.id: problem for problem in self.problems}


def probes_section(study: Study[ProbesConfig]) -> list[Record]:
    """Every probe on every model, against its controls and against the base."""
    results, training, named = Results(PROBES), list[Record](), list[Record]()
    config = study.config.probes
    dataset = name_of(config.split)
    problems = open_problems(config.split, study.config.sdpo.data_dir)[: config.num_problems]
    for seed in study.config.seeds:
        add_base(study, results, seed, on_policy_datasets(study), section=PROBES)
        task = SignsTask()
        masked, said = _masks(study, seed, task)
        models: dict[str, Decoder] = {"base": study.base}
        for condition, run in _runs(study.config, seed, masked).items():
            directory = study.train(PROBES, condition, run)
            training += add_run(results, condition, seed, directory)
            models[condition] = load_model(directory / "model")
        subjects = {name: Subject(study, name, m, seed, problems, task) for name, m in models.items()}
        neutral_cue = next(iter(subjects["base"].neutral([config.cue])), None)
        for name in ("base", "grpo", "sdpo"):
            subject = subjects[name]
            arms, used = probe(subject, config.cue, neutral_cue, config.extra_attempts)
            named += _named(results, subject, used, subject.counts, len(subject.plain))
            if name == "sdpo":
                arms |= {arm: subjects[f"sdpo_{arm}"].plain for arm in masked}
                named += _named(results, subject, masked, *said)
            for arm, generations in arms.items():
                results.add(Cell(f"{name}@{arm}", 0, dataset), seed, generations)
    return results.records() + results.differences(_pairs(results, config.extra_attempts)) + named + training


def _masks(study: Study[ProbesConfig], seed: int, task: Task) -> tuple[Words, tuple[Counter[str], int]]:
    """The words whose tokens SDPO has no loss at: uncertainty, and others that the base says as often.

    A loss can be left out anywhere, so numbers are among the others.

    Returns: Arm → words; how often all words were said, and in how many responses.
    """
    folder = study.directory(PROBES, "base", seed)
    texts = [g.text for path in sorted(folder.glob("*.jsonl.gz")) for g in read_responses(path)]
    counts = words.count(texts, numbers=True)
    said = [w for w in WORDS if counts[w]]
    others = words.matched(counts, said, {*WORDS, *task.announcing})
    return {"mask_words": said, "mask_others": others}, (counts, len(texts))


def _runs(
    config: ProbesConfig, seed: int, masked: Mapping[str, Sequence[str]]
) -> dict[str, GRPOConfig | SDPOConfig]:
    """Condition → training run."""
    chosen: dict[str, GRPOConfig | SDPOConfig] = {"grpo": config.grpo, "sdpo": config.sdpo}
    for arm, left_out in masked.items():
        loss = dataclasses.replace(config.sdpo.loss, masked_words=tuple(left_out))
        chosen[f"sdpo_{arm}"] = dataclasses.replace(config.sdpo, loss=loss)
    return {condition: dataclasses.replace(run, seed=seed) for condition, run in chosen.items()}


def probe(subject: Subject, cue: str, neutral_cue: str | None, extra_attempts: int) -> tuple[Arms, Words]:
    """Every arm of every probe but that of the loss, and the words that arms are about.

    Args:
      subject: What is probed.
      cue: Word of doubt that is put into responses.
      neutral_cue: The word that is put there as a control; None if there is none.
      extra_attempts: How often a response is kept from ending its thinking, at most.
    """
    cues = {"cue": cue, "nothing": ""} | ({"neutral": neutral_cue} if neutral_cue else {})
    arms, used = _forbidding(subject)
    arms |= _doubting(subject, cues)
    arms |= _forcing(subject, cues, extra_attempts)
    arms |= _shuffling(subject)
    return arms, used | {f"doubt_{kind}": [word] for kind, word in cues.items() if word}


def _forbidding(subject: Subject) -> tuple[Arms, Words]:
    """Words are never drawn: those of uncertainty, every second of them by frequency, or others."""
    said = sorted((w for w in WORDS if subject.counts[w]), key=lambda w: -subject.counts[w])
    lists = {
        "forbid_words": list(WORDS),
        "forbid_half": said[::2],
        "forbid_neutral": subject.neutral(said),
    }
    tokenizer = subject.study.chat.tokenizer
    anew = [subject.begin(generation, "") for generation in subject.plain]
    arms = {PLAIN: subject.plain}
    for arm, left_out in lists.items():
        if left_out:
            ids = words.first_ids(tokenizer, left_out)
            arms[arm] = subject.answer(arm, anew, step=AT_ONCE, forbidden=ids)
    return arms, {arm: left_out for arm, left_out in lists.items() if left_out}


def _doubting(subject: Subject, cues: Mapping[str, str]) -> Arms:
    """From the first wrong attempt on, with a word after it.

    A model that makes few is asked again: what is found about few problems is not found precisely.
    """
    cut, asked = _cut(subject, subject.plain), 1
    while len(cut) < len(subject.plain) / 4 and asked <= AGAIN:
        cut += _cut(subject, subject.more(asked))
        asked += 1
    cut = subject.several(cut, asked)
    return {
        f"doubt_{kind}": subject.answer(
            f"doubt_{kind}", [subject.begin(g, _with(g.text, cue)) for g in cut], step=DOUBT
        )
        for kind, cue in cues.items()
        if cut
    }


def _cut(subject: Subject, generations: Sequence[Response]) -> list[Response]:
    """Those that have a wrong attempt, up to the end of the first one."""
    found = []
    for generation in generations:
        whole = subject.begin(generation, generation.text)
        end = subject.task.first_wrong_attempt(whole.problem, whole.prefix)
        if end is not None:
            found.append(dataclasses.replace(generation, text=whole.prefix[:end]))
    return found


def _forcing(subject: Subject, cues: Mapping[str, str], extra_attempts: int) -> Arms:
    """A word where thinking would end, again and again (budget forcing, arXiv 2501.19393).

    Of all responses, and of those that were wrong. Those that do not end their thinking stay as they are.
    """
    arms = {}
    wrong = subject.several([generation for generation in subject.plain if not generation.correct])
    for name, begun in ((EXTRA, subject.plain), (REPAIR, wrong)):
        for kind, cue in cues.items():
            so_far = begun
            for k in range(1, extra_attempts + 1):
                thoughts = [thinking(generation.text) for generation in so_far]
                units = [
                    generation if thought is None else subject.begin(generation, _with(thought, cue))
                    for generation, thought in zip(so_far, thoughts, strict=True)
                ]
                arm = f"{name}_{kind}_{k}"
                arms[arm] = so_far = subject.answer(arm, units, step=FORCE + k)
    return {arm: generations for arm, generations in arms.items() if generations}


def _shuffling(subject: Subject) -> Arms:
    """From half of the thinking on, with words of it in each other's places, where two of them differ."""
    halves = [(g, first_half(g.text)) for g in subject.plain]
    halves = [(g, text) for g, text in halves if can_shuffle(text, WORDS)]
    neutral = subject.neutral([w for w in WORDS if subject.counts[w]])
    lists = {"words": WORDS, "nothing": (), "neutral": neutral}
    arms = {}
    for kind, moved in lists.items():
        if not halves or (kind == "neutral" and not any(can_shuffle(text, moved) for _, text in halves)):
            continue
        units = []
        for generation, text in halves:
            rng = random.Random(f"{subject.seed}/{generation.problem}/{generation.sample}")
            units.append(subject.begin(generation, shuffled(text, moved, rng) if moved else text))
        arms[f"shuffle_{kind}"] = subject.answer(f"shuffle_{kind}", units, step=SHUFFLE)
    return arms


def _with(text: str, cue: str) -> str:
    return followed_by(text, cue) if cue else text


def _named(
    results: Results, subject: Subject, used: Mapping[str, Sequence[str]], per_response: Counter[str], n: int
) -> list[Record]:
    """Which words an arm is about, and how often they are said in a response: records without an interval."""
    dataset = name_of(subject.study.config.probes.split)
    return [
        results.record(
            Cell(f"{subject.name}@{arm}", 0, dataset), subject.seed, f"word:{w}", per_response[w] / n, n
        )
        for arm, named in used.items()
        for w in named
    ]


def _pairs(results: Results, extra_attempts: int) -> list[tuple[Cell, Cell]]:
    """Each arm with its controls, and with the base as it is."""
    pairs = []
    for cell in results.cells():
        model, _, arm = cell.condition.partition("@")
        controls = {p.arm: p.controls for p in (*probes(extra_attempts), MASKED)}.get(arm, ())
        pairs += [(cell, Cell(f"{model}@{control}", 0, cell.dataset)) for control in controls]
        if arm and model != "base":
            pairs.append((cell, Cell(f"base@{PLAIN}", 0, cell.dataset)))
    return pairs
