"""Runs made up for tests: records as a study writes them, and the files of its responses."""

import gzip
import json
import random
from pathlib import Path

HOSTILE = "<script>alert(1)</script> <think> maybe 8 -3 & wait </think> + -"


def record(section, condition, dataset, metric, value, *, half=0.02, step=0, seed="all", n=800):
    bounds = (None, None) if half is None or value is None else (value - half, value + half)
    return {
        "section": section, "condition": condition, "seed": seed, "step": step,
        "dataset": dataset, "metric": metric, "value": value, "n": n,
        "ci_low": bounds[0], "ci_high": bounds[1],
    }  # fmt: skip


RICHNESS = {  # condition: bits, accuracy, length, words
    "unguided": (0.0, 0.41, 52.0, 6.1),
    "other_problem": (0.1, 0.40, 50.0, 5.9),
    "partial_0": (0.1, 0.41, 52.0, 6.1),
    "partial_50": (1.0, 0.66, 38.0, 3.9),
    "partial_solution_50": (9.0, 0.20, 60.0, 7.9),
    "answer": (2.1, 0.90, 22.0, 0.9),
    "regenerated": (2.6, 0.93, 12.0, 0.4),
    "solution": (2.9, 0.97, 6.0, 0.1),
}
FINAL = {  # accuracy on k3, on k4, length, words
    "base": (0.81, 0.61, 36.0, 3.5),
    "sft_unguided": (0.84, 0.63, 35.0, 3.4),
    "sft_guided": (0.51, 0.50, 17.0, 1.7),
    "sft_guided_solution": (0.30, 0.28, 5.0, 0.1),
    "grpo": (0.91, 0.73, 33.0, 2.9),
    "sdpo_answer_fixed": (0.74, 0.55, 22.0, 1.8),
    "sdpo_answer_ema": (0.66, 0.50, 20.0, 1.5),
    "sdpo_solution_fixed": (0.45, 0.44, 14.0, 0.9),
    "sdpo_solution_ema": (0.35, 0.40, 12.0, 0.7),
}
HALF = {"accuracy": 0.02, "length": 0.8, "words": 0.15}


def outcomes(section, condition, values, step):
    """Accuracy, length and words of a condition, pooled, by seed, and against base."""
    rows = []
    for dataset, accuracy in (("k3", values[0]), ("k4", values[1])):
        metrics = {"accuracy": accuracy, "length": values[2], "words": values[3]}
        base = dict(zip(metrics, (FINAL["base"][dataset == "k4"], *FINAL["base"][2:]), strict=True))
        for metric, value in metrics.items():
            half = HALF[metric]
            minus = f"{metric}_minus:base"
            rows.append(record(section, condition, dataset, metric, value, half=half, step=step))
            for seed in (0, 1):
                by_seed = value * (0.98 + 0.04 * seed)
                rows.append(record(section, condition, dataset, metric, by_seed, step=step, seed=seed))
            if condition != "base":
                change = value - base[metric]
                rows.append(record(section, condition, dataset, minus, change, half=half, step=step))
        rows.append(record(section, condition, dataset, "pass@4", accuracy**0.5, step=step))
        rows.append(record(section, condition, dataset, "finished", 0.998, step=step))
    return rows


def synthetic_records():
    """A run in which everything comes out as the paper says, shaped as a study writes it."""
    rows = []
    for condition, (bits, *values) in RICHNESS.items():
        for metric, value in zip(HALF, values, strict=True):
            rows.append(record("richness", condition, "walk", metric, value, half=HALF[metric], n=808))
        rows.append(record("richness", condition, "walk", "bits_per_response", bits, half=0.1))
    for model in ("grpo", "sdpo_solution_fixed"):
        for condition, (bits, *values) in RICHNESS.items():
            of_model = ("trained_richness", f"{model}@{condition}", "walk")
            for metric, value in zip(HALF, values, strict=True):
                rows.append(record(*of_model, metric, 0.9 * value, half=HALF[metric], n=808))
            rows.append(record(*of_model, "bits_per_response", 0.7 * bits, half=0.1))
    for condition in ("base", "sft_unguided", "sft_guided", "sft_guided_solution"):
        rows += outcomes("sft", condition, FINAL[condition], 0 if condition == "base" else 39)
    rows += outcomes("on_policy", "base", FINAL["base"], 0)
    for condition in list(FINAL)[3:]:
        for step in (10, 20, 40, 60):
            share = 1 - (1 - step / 60) ** 2
            mixed = [b + (v - b) * share for b, v in zip(FINAL["base"], FINAL[condition], strict=True)]
            rows += outcomes("on_policy", condition, mixed, step)
            rows.append(record("on_policy", condition, "train", "entropy", 0.4, half=None, step=step, seed=0))
    difference_row = ("k4", "accuracy_minus:sdpo_answer_fixed", 0.44 - 0.55)
    rows.append(record("on_policy", "sdpo_solution_fixed", *difference_row, step=60))
    return rows + coverage_records()


def coverage_records():
    rows = outcomes("coverage", "base", FINAL["base"], 0)
    for i, size in enumerate(("1", "8", "64", "512", "all")):
        for method, sign in (("sdpo", -1), ("grpo", 1)):
            run = f"{method}_{size}"
            for step in (0, 20, 40, 60):
                t = step / 60
                gain = t * (0.12 - 0.05 * i) * 2 if sign < 0 else t * 0.1
                ood = 0.61 - t * (0.25 - 0.04 * i) if sign < 0 else 0.61 + t * 0.02 * i
                half = 0.0 if size == "1" else 0.02
                metrics = {"accuracy": min(1.0, 0.8 + gain), "length": 36 - 18 * t * (sign < 0)}
                for metric, value in metrics.items():
                    rows.append(record("coverage", run, "trained", metric, value, half=half, step=step))
                for dataset, value in (("k3", ood + 0.2), ("k4", ood)):
                    rows.append(record("coverage", run, dataset, "accuracy", value, step=step))
                rows.append(record("coverage", run, "k4", "accuracy_minus:base", ood - 0.61, step=step))
    return rows


FIXES = {  # accuracy on k4 and k3, minus base and minus SDPO on k4, length, words
    "base": (0.61, 0.81, None, None, 36.0, 3.5),
    "grpo": (0.73, 0.91, 0.12, 0.28, 33.0, 2.9),
    "sdpo": (0.45, 0.70, -0.16, None, 14.0, 0.9),
    "sdpo_marker_mask": (0.60, 0.82, -0.01, 0.15, 30.0, 3.2),
    "sdpo_pass_rate": (0.46, 0.71, -0.15, 0.01, 15.0, 1.0),
    "grpo_contrastive_hints": (0.72, 0.90, 0.11, 0.27, 34.0, 2.8),
}


def fixes_records():
    rows = []
    for condition, (k4, k3, base, sdpo, length, words) in FIXES.items():
        step = 0 if condition == "base" else 40
        for dataset, accuracy in (("k4", k4), ("k3", k3)):
            figures = {"accuracy": accuracy, "length": length, "words": words, "finished": 0.9}
            if dataset == "k4":
                figures |= {"accuracy_minus:base": base, "accuracy_minus:sdpo": sdpo}
            for metric, value in figures.items():
                if value is not None:
                    rows.append(record("fixes", condition, dataset, metric, value, step=step))
            for seed in (0, 1):
                value = accuracy + 0.01 * (2 * seed - 1)
                rows.append(record("fixes", condition, dataset, "accuracy", value, step=step, seed=seed))
    return rows


SIGNAL = {"epistemic": (0.14, 0.30, 0.30), "digits": (0.60, 0.45, 0.10), "other": (0.26, 0.25, 0.12)}


def attribution_records(conditions=tuple(FINAL)[4:]):
    """Shares of tokens and of signal and divergence by class, place and entropy; words that moved."""
    rows = []
    for i, condition in enumerate(conditions):
        for step in (20, 40, 60):
            of = ("attribution", condition, "train")
            for group, values in SIGNAL.items():
                for measure, value in zip(("tokens", "signal", "divergence"), values, strict=True):
                    if measure != "divergence" or condition != "grpo":
                        value = value * (1 - 0.004 * step * i)
                        rows.append(record(*of, f"{measure}:class:{group}", value, half=0.01, step=step))
        for grouping, count in (("tenth", 10), ("fifth", 5)):
            for measure in ("tokens", "signal", "divergence")[: 2 if condition == "grpo" else 3]:
                for group in range(1, count + 1):
                    value = group / (55 if count == 10 else 15) * (1 + 0.1 * i)
                    metric = f"{measure}:{grouping}:{group}"
                    rows.append(record(*of, metric, value, half=0.01, step=60))
        for word, base, change, p in (
            ("wait", 2.1, -1.8, 0.0004),
            ("so", 0.4, 0.9, 0.001),
            ("yes", 1, 0.01, 0.8),
        ):
            place = ("attribution", condition, "k4")
            rows.append(record(*place, f"word_base:{word}", base, half=None, step=60))
            rows.append(record(*place, f"word_change:{word}", change * (i + 1), half=0.1, step=60))
            rows.append(record(*place, f"word_p:{word}", p, half=None, step=60))
            rows.append(record(*place, f"word_z:{word}", 9 * change, half=None, step=60))
    return rows


CONDITIONS = {  # of which responses are kept
    "richness": ("unguided", "answer", "solution"),
    "on_policy": ("base", "grpo", "sdpo_answer_fixed", "sdpo_solution_fixed"),
}


def write_run(path: Path, rows, generations=True):
    path.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (path / "results.jsonl").write_text(text, encoding="utf-8")
    (path / "config.json").write_text(json.dumps({"name": "<b>tiny</b>", "seeds": [0, 1]}))
    (path / "environment.json").write_text(json.dumps({"python": "3.11", "jax": "0.10"}))
    rng = random.Random(0)
    for section, conditions in CONDITIONS.items() if generations else ():
        for condition in conditions:
            for step in (0,) if section == "richness" or condition == "base" else (20, 60):
                dataset = "walk" if section == "richness" else "k4_test"
                rows = [generation(problem, sample, rng) for problem in range(8) for sample in (0, 1)]
                folder = path / "runs" / section / condition / "seed0"
                write_generations(folder / f"{dataset}-{step:06d}.jsonl.gz", rows)
    return path


def write_generations(path: Path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    with gzip.open(path, "wt", encoding="utf-8") as stream:
        stream.writelines(json.dumps(row) + "\n" for row in rows)


def generation(problem, sample, rng):
    work = " ".join(rng.choice(("maybe 8 -3 - 4 1 + 7 -6 wait", "so 8 -3 + 4 -7")) for _ in "abcd")
    question = f"8 4 {problem} = 1"
    return {
        "problem": question, "sample": sample, "prompt": f"{question} solution + - <think>",
        "text": HOSTILE if problem == 0 else f"{work} yes </think> + -",
        "correct": rng.random() < 0.5, "finish": "stop", "length": 40, "answer": "+ -",
        "num_epistemic": 4, "num_epistemic_substrings": 4,
    }  # fmt: skip


PROBED = {  # model: accuracy as it is, with words forbidden, with others forbidden, with a forced attempt
    "base": (0.75, 0.15, 0.75, 0.75),
    "grpo": (0.85, 0.20, 0.84, 0.85),
    "sdpo": (0.25, 0.05, 0.25, 0.45),
}


def probe_records():
    rows = []

    def arm(model, name, value, length, **others):
        condition = f"{model}@{name}"
        rows.append(record("probes", condition, "k4", "accuracy", value, n=4800))
        rows.append(record("probes", condition, "k4", "length", length, n=4800))
        for other, (accuracy, longer) in others.items():
            other = other if "@" in other else f"{model}@{other}"
            rows.append(record("probes", condition, "k4", f"accuracy_minus:{other}", accuracy, half=0.01))
            rows.append(record("probes", condition, "k4", f"length_minus:{other}", longer, half=1.0))

    for model, (plain, forbidden, neutral, extra) in PROBED.items():
        arm(model, "plain", plain, 50.0, **{"base@plain": (plain - 0.75, 0.0)} if model != "base" else {})
        arm(model, "forbid_neutral", neutral, 50.0)
        to_controls = {"forbid_neutral": (forbidden - neutral, 20.0), "plain": (forbidden - plain, 20.0)}
        arm(model, "forbid_words", forbidden, 70.0, **to_controls)
        arm(model, "extra_nothing_1", plain, 51.0)
        arm(model, "extra_cue_1", extra, 80.0, extra_nothing_1=(extra - plain, 29.0))
    arm("sdpo", "mask_others", 0.24, 50.0)
    arm("sdpo", "mask_words", 0.35, 52.0, mask_others=(0.11, 2.0), plain=(0.10, 2.0))
    for word, value in (("maybe", 2.5), ("wait", 1.0), ("might", 0.0)):
        rows.append(record("probes", "base@forbid_words", "k4", f"word:{word}", value, half=None, seed=0))
    return rows
