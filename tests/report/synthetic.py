"""Runs made up for tests: measurements as a study writes them, and the files of its responses."""

import gzip
import json
import random
from dataclasses import replace
from pathlib import Path

from sdistill.analysis.measure import BASE
from sdistill.analysis.probes import PLAIN, Arm
from sdistill.report.lookup import ANSWER, ANSWER_EMA, GRPO, ON_POLICY, SDPO, SFT, SOLUTION, SOLUTION_EMA
from sdistill.types import Condition, Measurement

HOSTILE = "<script>alert(1)</script> <think> maybe 8 -3 & wait </think> + -"


def measured(
    section,
    condition,
    dataset,
    metric,
    value,
    *,
    half=0.02,
    step=0,
    seed="all",
    n=800,
    baseline=None,
    group=None,
):
    """A measurement with the interval `value` ± `half`."""
    low, high = (None, None) if half is None or value is None else (value - half, value + half)
    of = (section, condition, seed, step, dataset, metric)
    return Measurement(*of, value, n, low, high, baseline, group)


def shown(prompt, fraction=None, model=BASE):
    """A model under a prompt."""
    return replace(model, prompt=prompt, fraction=fraction)


RICHNESS = {  # prompt, fraction: bits, accuracy, length, epistemic words
    ("none", None): (0.0, 0.41, 52.0, 6.1),
    ("other_problem", None): (0.1, 0.40, 50.0, 5.9),
    ("partial", 0.0): (0.1, 0.41, 52.0, 6.1),
    ("partial", 0.5): (1.0, 0.66, 38.0, 3.9),
    ("partial_solution", 0.5): (9.0, 0.20, 60.0, 7.9),
    ("answer", None): (2.1, 0.90, 22.0, 0.9),
    ("regenerated", None): (2.6, 0.93, 12.0, 0.4),
    ("solution", None): (2.9, 0.97, 6.0, 0.1),
}
FINAL = {  # accuracy on k3, on k4, length, epistemic words
    BASE: (0.81, 0.61, 36.0, 3.5),
    SFT[0]: (0.84, 0.63, 35.0, 3.4),
    SFT[1]: (0.51, 0.50, 17.0, 1.7),
    SFT[2]: (0.30, 0.28, 5.0, 0.1),
    GRPO: (0.91, 0.73, 33.0, 2.9),
    ANSWER: (0.74, 0.55, 22.0, 1.8),
    ANSWER_EMA: (0.66, 0.50, 20.0, 1.5),
    SOLUTION: (0.45, 0.44, 14.0, 0.9),
    SOLUTION_EMA: (0.35, 0.40, 12.0, 0.7),
}
HALF = {"accuracy": 0.02, "length": 0.8, "num_epistemic": 0.15}


def outcomes(section, condition, values, step):
    """Accuracy, length and epistemic words of a condition, pooled, by seed, and against base."""
    rows = []
    for dataset, accuracy in (("k3", values[0]), ("k4", values[1])):
        base = (FINAL[BASE][dataset == "k4"], *FINAL[BASE][2:])
        for (metric, half), value, of_base in zip(HALF.items(), (accuracy, *values[2:]), base, strict=True):
            of = (section, condition, dataset, metric)
            rows.append(measured(*of, value, half=half, step=step))
            rows += [measured(*of, value * (0.98 + 0.04 * seed), step=step, seed=seed) for seed in (0, 1)]
            if condition != BASE:
                rows.append(measured(*of, value - of_base, half=half, step=step, baseline=BASE))
        rows.append(measured(section, condition, dataset, "pass@4", accuracy**0.5, step=step))
        rows.append(measured(section, condition, dataset, "finished", 0.998, step=step))
    return rows


def paper_measurements():
    """A run in which everything comes out as the paper says, shaped as a study writes it."""
    rows = []
    for section, models in (("richness", [BASE]), ("trained_richness", [GRPO, SOLUTION])):
        for model in models:
            share = 1.0 if model == BASE else 0.7
            for prompt, (bits, *values) in RICHNESS.items():
                of = (section, shown(*prompt, model=model), "walk")
                for (metric, half), value in zip(HALF.items(), values, strict=True):
                    rows.append(measured(*of, metric, share * value, half=half, n=808))
                rows.append(measured(*of, "bits_per_response", share * bits, half=0.1))
    for condition in (BASE, *SFT):
        rows += outcomes("sft", condition, FINAL[condition], 0 if condition == BASE else 39)
    rows += outcomes("on_policy", BASE, FINAL[BASE], 0)
    for condition in ON_POLICY:
        for step in (20, 60):
            share = 1 - (1 - step / 60) ** 2
            mixed = [b + (v - b) * share for b, v in zip(FINAL[BASE], FINAL[condition], strict=True)]
            rows += outcomes("on_policy", condition, mixed, step)
            rows.append(
                measured("on_policy", condition, "train", "entropy", 0.4, half=None, step=step, seed=0)
            )
    rows.append(measured("on_policy", SOLUTION, "k4", "accuracy", 0.44 - 0.55, step=60, baseline=ANSWER))
    return rows + coverage_measurements()


def narrow(method, num_problems):
    """A run of the coverage section."""
    return replace(ANSWER if method == "sdpo" else GRPO, num_problems=num_problems)


def coverage_measurements():
    """GRPO and SDPO on 1 to all problems."""
    rows = outcomes("coverage", BASE, FINAL[BASE], 0)
    for i, size in enumerate((1, 8, 64, 512, None)):
        for method, sign in (("sdpo", -1), ("grpo", 1)):
            run = narrow(method, size)
            for step in (0, 20, 60):
                t = step / 60
                gain = t * (0.12 - 0.05 * i) * 2 if sign < 0 else t * 0.1
                ood = 0.61 - t * (0.25 - 0.04 * i) if sign < 0 else 0.61 + t * 0.02 * i
                half = 0.0 if size == 1 else 0.02
                metrics = {"accuracy": min(1.0, 0.8 + gain), "length": 36 - 18 * t * (sign < 0)}
                for metric, value in metrics.items():
                    rows.append(measured("coverage", run, "trained", metric, value, half=half, step=step))
                for dataset, value in (("k3", ood + 0.2), ("k4", ood)):
                    rows.append(measured("coverage", run, dataset, "accuracy", value, step=step))
                rows.append(measured("coverage", run, "k4", "accuracy", ood - 0.61, step=step, baseline=BASE))
    return rows


def fixed(method, fix=None):
    """A run of the section of the fixes."""
    return Condition(method, fix=fix)


FIXES = {  # accuracy on k4 and k3, minus base and minus SDPO on k4, length, epistemic words
    BASE: (0.61, 0.81, None, None, 36.0, 3.5),
    fixed("grpo"): (0.73, 0.91, 0.12, 0.28, 33.0, 2.9),
    fixed("sdpo"): (0.45, 0.70, -0.16, None, 14.0, 0.9),
    fixed("sdpo", "marker_mask"): (0.60, 0.82, -0.01, 0.15, 30.0, 3.2),
    fixed("sdpo", "pass_rate"): (0.46, 0.71, -0.15, 0.01, 15.0, 1.0),
    fixed("grpo", "contrastive_hints"): (0.72, 0.90, 0.11, 0.27, 34.0, 2.8),
}


def fixes_measurements():
    """The ranking of six conditions."""
    rows = []
    for condition, (k4, k3, base, sdpo, length, words) in FIXES.items():
        step = 0 if condition == BASE else 40
        for dataset, accuracy in (("k4", k4), ("k3", k3)):
            values = {"accuracy": accuracy, "length": length, "num_epistemic": words, "finished": 0.9}
            for metric, value in values.items():
                rows.append(measured("fixes", condition, dataset, metric, value, step=step))
            for seed in (0, 1):
                value = accuracy + 0.01 * (2 * seed - 1)
                rows.append(measured("fixes", condition, dataset, "accuracy", value, step=step, seed=seed))
        for baseline, value in ((BASE, base), (fixed("sdpo"), sdpo)):
            if value is not None:
                of = ("fixes", condition, "k4", "accuracy")
                rows.append(measured(*of, value, step=step, baseline=baseline))
    return rows


SIGNAL = {"epistemic": (0.14, 0.30, 0.30), "digits": (0.60, 0.45, 0.10), "other": (0.26, 0.25, 0.12)}


def attribution_measurements(conditions=ON_POLICY):
    """Shares of tokens and of signal and divergence by class, position and entropy; changes of words."""
    rows = []
    for i, condition in enumerate(conditions):
        of = ("attribution", condition, "train")
        measures = ("tokens", "signal", "divergence")[: 2 if condition == GRPO else 3]
        for step in (20, 60):
            for group, values in SIGNAL.items():
                for measure, value in zip(measures, values, strict=False):
                    value *= 1 - 0.004 * step * i
                    rows.append(measured(*of, measure, value, half=0.01, step=step, group=f"class:{group}"))
        for grouping, count in (("tenth", 10), ("fifth", 5)):
            for measure in measures:
                for k in range(1, count + 1):
                    value = k / (55 if count == 10 else 15) * (1 + 0.1 * i)
                    rows.append(measured(*of, measure, value, half=0.01, step=60, group=f"{grouping}:{k}"))
        words = (("wait", 2.1, -1.8, 0.0004), ("so", 0.4, 0.9, 0.001), ("yes", 1.0, 0.01, 0.8))
        for word, base, change, p in words:
            change *= i + 1
            for metric, value, half in (
                ("word_base", base, None),
                ("word_change", change, 0.1),
                ("word_p", p, None),
                ("word_z", 9 * change, None),
            ):
                of = ("attribution", condition, "k4", metric)
                rows.append(measured(*of, value, half=half, step=60, group=word))
    return rows


KEPT = {  # conditions whose responses are kept
    "richness": (shown("none"), shown("answer"), shown("solution")),
    "on_policy": (BASE, GRPO, ANSWER, SOLUTION),
}


def write_run(path: Path, measurements, responses=True):
    """The directory of a run."""
    path.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(m.to_json()) + "\n" for m in measurements)
    (path / "results.jsonl").write_text(text, encoding="utf-8")
    (path / "config.json").write_text(json.dumps({"name": "<b>tiny</b>", "seeds": [0, 1]}))
    (path / "environment.json").write_text(json.dumps({"python": "3.11", "jax": "0.10"}))
    rng = random.Random(0)
    for section, conditions in KEPT.items() if responses else ():
        for condition in conditions:
            for step in (0,) if section == "richness" or condition == BASE else (20, 60):
                dataset = "walk" if section == "richness" else "k4_test"
                rows = [response(problem, sample, rng) for problem in range(8) for sample in (0, 1)]
                folder = path / "runs" / section / condition.label / "seed0"
                write_rows(folder / f"{dataset}-{step:06d}.jsonl.gz", rows)
    return path


def write_rows(path: Path, rows):
    """A file of responses."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with gzip.open(path, "wt", compresslevel=1, encoding="utf-8") as stream:
        stream.writelines(json.dumps(row) + "\n" for row in rows)


def response(problem, sample, rng):
    """A response as it is on disk."""
    work = " ".join(rng.choice(("maybe 8 -3 - 4 1 + 7 -6 wait", "so 8 -3 + 4 -7")) for _ in "abcd")
    question = f"8 4 {problem} = 1"
    return {
        "problem": question, "sample": sample, "prompt": f"{question} solution + - <think>",
        "text": HOSTILE if problem == 0 else f"{work} yes </think> + -",
        "correct": rng.random() < 0.5, "finish": "stop", "length": 40, "answer": "+ -",
        "num_epistemic": 4, "num_epistemic_substrings": 4,
    }  # fmt: skip


PROBED = {  # model: accuracy unchanged, with words forbidden, with others forbidden, with a forced attempt
    BASE: (0.75, 0.15, 0.75, 0.75),
    GRPO: (0.85, 0.20, 0.84, 0.85),
    SDPO: (0.25, 0.05, 0.25, 0.45),
}


def probe_measurements():
    """Three models under two probes, and one trained with words masked."""
    rows = []

    def arm(model, arm, value, length, **baselines):
        of = ("probes", arm.of(model), "k4")
        rows.append(measured(*of, "accuracy", value, n=4800))
        rows.append(measured(*of, "length", length, n=4800))
        for baseline, accuracy, longer in baselines.get("minus", ()):
            rows.append(measured(*of, "accuracy", accuracy, half=0.01, baseline=baseline))
            rows.append(measured(*of, "length", longer, half=1.0, baseline=baseline))

    forbid, forbid_neutral = Arm("forbid_words"), Arm("forbid_neutral")
    cue, nothing = Arm("extra_cue", 1), Arm("extra_nothing", 1)
    masked, mask_others = Arm("plain", fix="mask_words"), Arm("plain", fix="mask_others")
    for model, (plain, forbidden, neutral, extra) in PROBED.items():
        arm(model, PLAIN, plain, 50.0, minus=[(PLAIN.of(BASE), plain - 0.75, 0.0)] * (model != BASE))
        arm(model, forbid_neutral, neutral, 50.0)
        controls = [
            (forbid_neutral.of(model), forbidden - neutral, 20.0),
            (PLAIN.of(model), forbidden - plain, 20.0),
        ]
        arm(model, forbid, forbidden, 70.0, minus=controls)
        arm(model, nothing, plain, 51.0)
        arm(model, cue, extra, 80.0, minus=[(nothing.of(model), extra - plain, 29.0)])
    arm(SDPO, mask_others, 0.24, 50.0)
    controls = [(mask_others.of(SDPO), 0.11, 2.0), (PLAIN.of(SDPO), 0.10, 2.0)]
    arm(SDPO, masked, 0.35, 52.0, minus=controls)
    for word, value in (("maybe", 2.5), ("wait", 1.0), ("might", 0.0)):
        rows.append(measured("probes", forbid.of(BASE), "k4", "word", value, half=None, seed=0, group=word))
    return rows
