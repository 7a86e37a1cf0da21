"""Answers that hang, crash or choke a verifier, made from a seed."""

import random

WORDS = r"""
{ } ( ) [ ] | \{ \} $ % & # _ ^ ~ = < , ; /
\frac \sqrt \sum \int \lim \binom \text{ \begin{pmatrix} \end{pmatrix}
\left( \right) \\ \ \boxed{ \infty \pi \mod ! x y 0 9 1e999
"""
ODD = (" ", "\n", "\x00", "½", "π", "√", "∑", "\u202e", "\u0301", "😀", "\ud800", "٣", "＋", "ﬁ")
PIECES = (*WORDS.split(), *ODD)
BRACKETS = [("{", "}"), ("(", ")"), (r"\sqrt{", "}"), (r"\frac{1}{", "}"), ("x^{", "}"), ("|", "|")]
BRACKETS += [(r"\{", r"\}")]


def nested(rng: random.Random) -> str:
    depth = rng.randint(5, 300)
    start, end = rng.choice(BRACKETS)
    return start * depth + "1" + end * depth


def huge_power(rng: random.Random) -> str:
    tower = "9"
    for _ in range(rng.randint(2, 6)):
        tower = f"{rng.randint(2, 99)}^{{{tower}}}"
    return rng.choice(
        ["{}", "({})!", r"\binom{{{}}}{{7}}", r"\sqrt{{{}}}", "({}) \\mod 7", "x^{{{}}}"]
    ).format(tower)


def digits(rng: random.Random) -> str:
    text = "".join(rng.choices("0123456789", k=rng.choice([100, 1_000, 1_990, 4_400, 100_000])))
    return rng.choice(["{}", "0.{}", r"\frac{{{}}}{{7}}", "{}^{{99}}", r"\sqrt{{{}}}"]).format(text)


def analysis(rng: random.Random) -> str:
    n = 10 ** rng.randint(1, 12)
    return rng.choice(
        [rf"\sum_{{n=1}}^{{{n}}} \frac{{1}}{{n^3+n}}", rf"\prod_{{n=1}}^{{{n}}} (n^2+1)", rf"(1+x)^{{{n}}}"]
        + [rf"\int_0^{{{n}}} e^{{-x^2}} \sin(x^3) dx", rf"\lim_{{x \to 0}} \sin(x)^{{{n}}}/x", f"{n}!"]
        + [
            rf"((({n}+x)^{{40}}+1)^{{40}}+1)^{{40}}",
            rf"\sin(\sin(\sin({n}))) + \sqrt{{2}}^{{\sqrt{{2}}^{{{n}}}}}",
        ]
    )


def soup(rng: random.Random) -> str:
    return "".join(rng.choices(PIECES, k=rng.randint(1, 200)))


def unicode(rng: random.Random) -> str:
    return "".join(chr(rng.randrange(0x11_0000)) for _ in range(rng.randint(1, 500)))


def long_sum(rng: random.Random) -> str:
    return "+".join(
        rf"\frac{{{rng.randint(1, 99)}}}{{x+{rng.randint(1, 99)}}}" for _ in range(rng.randint(5, 100))
    )


KINDS = (nested, huge_power, digits, analysis, soup, unicode, long_sum)


def answers(count: int, seed: int) -> list[str]:
    """`count` answers, the kinds taking turns; some are left without the brace that ends the box."""
    rng = random.Random(seed)
    found = []
    for index in range(count):
        text = KINDS[index % len(KINDS)](rng)
        found.append(rf"\boxed{{{text}" + "}" * rng.choice([0, 1, 1, 1, 1, 2]))
    return found
