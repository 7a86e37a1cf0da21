"""Causal probes: epistemic words forbidden, forced, moved, or left out of the loss, and controls of each.

The base, and GRPO and SDPO as section 5 trains them, respond to problems harder than those trained on.
Measured are accuracy, length and epistemic words of every arm, and paired differences to its controls and to
the base.
"""

import functools
import random
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from sdistill.analysis.epistemic import WORDS
from sdistill.analysis.measure import BASE, Cell, Results
from sdistill.analysis.probes import (
    MASKED,
    PLAIN,
    PROBES,
    Arm,
    can_shuffle,
    first_half,
    followed_by,
    probes,
    shuffled,
    thinking,
)
from sdistill.data.catalogue import open_problems
from sdistill.experiments.config import ProbesConfig, Runs
from sdistill.experiments.study import Study, name_of
from sdistill.model.decoder import Decoder
from sdistill.model.weights import load_model
from sdistill.sample import Query
from sdistill.storage import read_responses, responses_file, responses_files
from sdistill.tasks.problem import Problem
from sdistill.text.words import first_token_ids, match_frequencies, word_counts
from sdistill.types import Condition, Measurement, Response

GRPO, SDPO = Condition("grpo"), Condition("sdpo")
AT_ONCE, DOUBT, SHUFFLE, FORCE = 0, 1, 2, 3  # steps of the random streams; FORCE and more are rounds
AGAIN = 3  # times that more responses are sampled, at most, where what a probe needs is rare in them
Arms = dict[Arm, list[Response]]
Words = dict[Arm, list[str]]
"""Arm → words that it is about."""


@dataclass(frozen=True)
class Subject:
    """A model that is probed.

    Attributes:
      condition: How the model was trained.
      seed: Of its training, and of its responses.
      problems: The problems that it responds to, by id.
    """

    study: Study[ProbesConfig]
    condition: Condition
    model: Decoder
    seed: int
    problems: Mapping[str, Problem]

    def respond(
        self, arm: Arm, units: Sequence[Query | Response], *, step: int, forbidden: Sequence[int] = ()
    ) -> list[Response]:
        """The responses of an arm; see `Study.respond`."""
        config, condition = self.study.config.probes, arm.of(self.condition)
        return self.study.respond(
            responses_file(self.study.directory(PROBES, condition, self.seed), config.split, 0),
            units,
            max_response_length=config.max_response_length,
            seed=self.seed,
            step=step,
            forbidden=forbidden,
            model=self.model,
            prompt_multiple=64,
        )

    def sample(self, arm: Arm, number: int) -> list[Response]:
        """Responses without intervention; the samples of another `number` are others."""
        count = self.study.config.probes.num_samples
        samples = range(number * count, (number + 1) * count)
        return self.respond(arm, [Query(p, i) for p in self.problems.values() for i in samples], step=AT_ONCE)

    @functools.cached_property
    def plain(self) -> list[Response]:
        """Its responses without intervention."""
        return self.sample(PLAIN, 0)

    @functools.cached_property
    def counts(self) -> Counter[str]:
        """Occurrences of its words, numbers left out."""
        return word_counts(r.text for r in self.plain)

    def neutral(self, of: Sequence[str]) -> list[str]:
        """Words that it uses about as often as these, and that do not bear on the answer."""
        return match_frequencies(self.counts, of, {*WORDS, *self.study.task.announcing})

    def repeated(self, responses: Sequence[Response], times_sampled: int = 1) -> list[Response]:
        """Copies of few responses, so that a probe of them is about as precise as one of all.

        Together at most as many as `plain`. A copy has another sample, part of the name of its random stream;
        it differs from the samples of all `times_sampled` rounds.
        """
        copies = range(max(1, len(self.plain) // max(1, len(responses))))
        samples = self.study.config.probes.num_samples * times_sampled
        return [replace(r, sample=r.sample + copy * samples) for copy in copies for r in responses]

    def prefix(self, response: Response, text: str) -> Query:
        """A query that continues a response from `text`."""
        return Query(self.problems[response.problem], response.sample, prefix=text)


def probes_section(study: Study[ProbesConfig]) -> list[Measurement]:
    """Every probe on every model, against its controls and against the base."""
    results, rates = Results(PROBES), list[Measurement]()
    config = study.config.probes
    dataset = name_of(config.split)
    problems = open_problems(config.split, study.config.sdpo.data_dir)[: config.num_problems]
    by_id = {problem.id: problem for problem in problems}
    for seed in study.config.seeds:
        # The models: the base, GRPO, SDPO, and SDPO without loss at some words.
        study.add_base(results, seed, study.config.evaluation.datasets, PROBES)
        masked, counts, n = _masks(study, seed)
        runs: Runs = {GRPO: study.config.grpo, SDPO: study.config.sdpo}
        for arm, words in masked.items():
            loss = replace(study.config.sdpo.loss, masked_words=tuple(words))
            runs[replace(SDPO, fix=arm.fix)] = replace(study.config.sdpo, loss=loss)
        subjects = {BASE: Subject(study, BASE, study.base, seed, by_id)}
        for condition, run in runs.items():
            model = load_model(study.train(results, condition, replace(run, seed=seed)) / "model")
            subjects[condition] = Subject(study, condition, model, seed, by_id)
        # Every arm of every probe.
        neutral_cue = next(iter(subjects[BASE].neutral([config.cue])), None)
        for condition in (BASE, GRPO, SDPO):
            subject = subjects[condition]
            arms, used = probe(subject, neutral_cue)
            rates += _rates(results, subject, used, subject.counts, len(subject.plain))
            if condition == SDPO:
                arms |= {arm: subjects[replace(SDPO, fix=arm.fix)].plain for arm in masked}
                rates += _rates(results, subject, masked, counts, n)
            for arm, responses in arms.items():
                results.add(Cell(arm.of(condition), 0, dataset), seed, responses)
    controls = {p.arm: p.controls for p in (*probes(config.extra_attempts), MASKED)}

    def baselines(cell: Cell) -> Iterator[Cell]:
        """Of an arm, its controls, and the base without intervention."""
        if (intervention := cell.condition.intervention) is not None:
            of = replace(cell.condition, intervention=None, attempts=None, fix=None)
            arm = Arm(intervention, cell.condition.attempts, cell.condition.fix)
            for other in controls.get(arm, ()):
                yield replace(cell, condition=other.of(of))
            if of != BASE:
                yield replace(cell, condition=PLAIN.of(BASE))

    return results.measurements(baselines) + rates


def _masks(study: Study[ProbesConfig], seed: int) -> tuple[Words, Counter[str], int]:
    """The words whose tokens SDPO has no loss at: epistemic ones, and others that the base uses as often.

    Numbers are among the others: a loss can be left out anywhere.

    Returns: Arm → words; how often the base used each word, and in how many responses.
    """
    files = responses_files(study.directory(PROBES, BASE, seed)).values()
    texts = [r.text for path in files for r in read_responses(path)]
    counts = word_counts(texts, numbers=True)
    used = [w for w in WORDS if counts[w]]
    others = match_frequencies(counts, used, {*WORDS, *study.task.announcing})
    return {MASKED.arm: used, MASKED.controls[0]: others}, counts, len(texts)


def probe(subject: Subject, neutral_cue: str | None) -> tuple[Arms, Words]:
    """Every arm of every probe but `MASKED`, and the words that arms are about.

    Args:
      neutral_cue: The word that is put in the place of the cue as a control; None if there is none.
    """
    cues = {"cue": subject.study.config.probes.cue, "nothing": ""}
    cues |= {"neutral": neutral_cue} if neutral_cue else {}
    arms, used = _forbid(subject)
    arms |= _doubt(subject, cues) | _force(subject, cues) | _shuffle(subject)
    return arms, used | {Arm(f"doubt_{kind}"): [word] for kind, word in cues.items() if word}


def _forbid(subject: Subject) -> tuple[Arms, Words]:
    """Words are never sampled: epistemic ones, every second of them by frequency, or others."""
    used = sorted((w for w in WORDS if subject.counts[w]), key=lambda w: -subject.counts[w])
    lists = {"words": list(WORDS), "half": used[::2], "neutral": subject.neutral(used)}
    forbidden = {Arm(f"forbid_{kind}"): left_out for kind, left_out in lists.items() if left_out}
    anew = [subject.prefix(response, "") for response in subject.plain]
    arms = {PLAIN: subject.plain}
    for arm, left_out in forbidden.items():
        ids = first_token_ids(subject.study.chat.tokenizer, left_out)
        arms[arm] = subject.respond(arm, anew, step=AT_ONCE, forbidden=ids)
    return arms, forbidden


def _doubt(subject: Subject, cues: Mapping[str, str]) -> Arms:
    """Responses continue from the end of their first wrong attempt, with a word after it.

    A model that makes few wrong attempts is sampled again: few problems give no precise difference.
    """
    cut, rounds = _up_to_wrong_attempt(subject, subject.plain), 1
    while len(cut) < len(subject.plain) / 4 and rounds <= AGAIN:
        cut += _up_to_wrong_attempt(subject, subject.sample(Arm("more", rounds), rounds))
        rounds += 1
    arms: Arms = {}
    for kind, cue in cues.items() if cut else ():
        units = [subject.prefix(r, followed_by(r.text, cue)) for r in subject.repeated(cut, rounds)]
        arm = Arm(f"doubt_{kind}")
        arms[arm] = subject.respond(arm, units, step=DOUBT)
    return arms


def _up_to_wrong_attempt(subject: Subject, responses: Sequence[Response]) -> list[Response]:
    """The responses that have a wrong attempt, cut after the first one."""
    task = subject.study.task
    ends = [task.first_wrong_attempt(subject.problems[r.problem], r.text) for r in responses]
    return [replace(r, text=r.text[:end]) for r, end in zip(responses, ends, strict=True) if end is not None]


def _force(subject: Subject, cues: Mapping[str, str]) -> Arms:
    """A word in the place of the end of thinking, several times (budget forcing, arXiv 2501.19393).

    For all responses, and for the wrong ones. Responses that do not end their thinking stay as they are.
    """

    def forced(response: Response, cue: str) -> Query | Response:
        thought = thinking(response.text)
        return response if thought is None else subject.prefix(response, followed_by(thought, cue))

    arms = {}
    wrong = subject.repeated([response for response in subject.plain if not response.correct])
    for name, first in (("extra", subject.plain), ("repair", wrong)):
        for kind, cue in cues.items():
            responses = first
            for k in range(1, subject.study.config.probes.extra_attempts + 1):
                arm, units = Arm(f"{name}_{kind}", k), [forced(r, cue) for r in responses]
                arms[arm] = responses = subject.respond(arm, units, step=FORCE + k)
    return {arm: responses for arm, responses in arms.items() if responses}


def _shuffle(subject: Subject) -> Arms:
    """Responses continue from half of their thinking, with words of it in each other's places."""
    halves = [(r, text) for r in subject.plain if can_shuffle(text := first_half(r.text), WORDS)]
    neutral = subject.neutral([w for w in WORDS if subject.counts[w]])
    arms: Arms = {}
    for kind, moved in {"words": WORDS, "nothing": (), "neutral": neutral}.items():
        if not halves or (kind == "neutral" and not any(can_shuffle(text, moved) for _, text in halves)):
            continue
        units = []
        for response, text in halves:
            rng = random.Random(f"{subject.seed}/{response.problem}/{response.sample}")
            units.append(subject.prefix(response, shuffled(text, moved, rng) if moved else text))
        arm = Arm(f"shuffle_{kind}")
        arms[arm] = subject.respond(arm, units, step=SHUFFLE)
    return arms


def _rates(
    results: Results, subject: Subject, used: Words, counts: Counter[str], n: int
) -> list[Measurement]:
    """The words that an arm is about, with their occurrences in a response, without intervals."""
    dataset = name_of(subject.study.config.probes.split)
    return [
        results.measurement(
            Cell(arm.of(subject.condition), 0, dataset), subject.seed, "word", counts[w] / n, n, group=w
        )
        for arm, listed in used.items()
        for w in listed
    ]
