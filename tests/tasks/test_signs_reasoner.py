import random
from typing import NamedTuple

import pytest
from scipy import stats

from sdistill.tasks.signs_puzzle import parse_question, patterns, solutions, split_of
from sdistill.tasks.signs_reasoner import (
    CERTAINTY,
    CONTEXTS,
    DOUBT,
    UNREACHABLE,
    Habits,
    attempt,
    certainty,
    consistent,
    correct_trace,
    example,
    failed_attempts,
    finish_attempt,
    reveal,
    search,
    vocabulary,
)

CAREFUL = Habits(give_up=0.0, slip=0.0)


class Attempt(NamedTuple):
    sure: str
    pattern: tuple
    left: int
    verdict: str


class Example(NamedTuple):
    numbers: tuple
    target: int
    other: str | None
    solution: str | None
    begun: str
    response: str

    @property
    def right(self):
        return solutions(self.numbers, self.target)


def parse_example(prompt, response):
    content, begun = prompt.split(" <think>")
    other = None
    if ";" in content:
        other, content = content.split(" ; ")
    text, *solution = content.split(" solution ")
    return Example(*parse_question(text), other, *(solution or [None]), begun.strip(), response)


def parse_thought(words, numbers, target):
    attempts = []
    size = 2 + 3 * (len(numbers) - 1)
    while words and words[0] in CERTAINTY and words[1] != "</think>":
        sure, body, verdict = words[0], words[1 : 1 + size], words[1 + size]
        assert body[0] == str(numbers[0])
        left = target - numbers[0]
        assert body[1] == str(left)
        pattern = []
        for number, (sign, said, result) in zip(
            numbers[1:], zip(body[2::3], body[3::3], body[4::3], strict=True), strict=True
        ):
            left = left - number if sign == "+" else left + number
            assert sign in ("+", "-") and said == str(number) and result == str(left)
            pattern.append(sign)
        attempts.append(Attempt(sure, tuple(pattern), left, verdict))
        words = words[2 + size :]
    return attempts, words


@pytest.fixture(scope="module", params=[5_000, pytest.param(20_000, marks=pytest.mark.long)])
def corpus(request):
    return [example(i, 0, (3, 4), Habits()) for i in range(request.param)]


@pytest.fixture(scope="module")
def parsed(corpus):
    return [parse_example(*texts) for texts in corpus]


def test_every_example_is_a_sound_thought_with_an_answer(parsed):
    for e in parsed:
        thought = f"{e.begun} {e.response}".split()
        attempts, rest = parse_thought(thought, e.numbers, e.target)
        for a in attempts:
            assert a.verdict in (("yes",) if a.left == 0 else DOUBT)
        assert all(a.left != 0 for a in attempts[:-1])
        solved = bool(attempts) and attempts[-1].left == 0
        if solved:
            assert rest == ["</think>", *attempts[-1].pattern]
        else:
            opening, end, *answer = rest
            assert opening in ("seems", "so") and end == "</think>"
            assert tuple(answer) in patterns(len(e.numbers))
            if opening == "so":
                assert "</think>" in e.solution
                assert answer == e.solution.split("</think> ")[1].split()


def test_corpus_owns_every_question_it_poses(parsed):
    for e in parsed:
        assert len(e.numbers) in (3, 4)
        if e.right:
            assert split_of(e.numbers, e.target) == "corpus"


def test_other_problems_shown_belong_to_the_corpus_too(parsed):
    shown = [parse_question(e.other.split(" solution ")[0]) for e in parsed if e.other]
    assert len(shown) > 100
    assert {split_of(*q) for q in shown} == {"corpus"}


def test_solutions_of_other_problems_are_right(parsed):
    for e in parsed:
        if e.other:
            text, solution = e.other.split(" solution ")
            assert tuple(solution.rpartition("</think>")[2].split()) in solutions(*parse_question(text))


def test_traces_in_contexts_are_right_and_worked_out(parsed):
    traces = [e for e in parsed if e.solution and "</think>" in e.solution]
    silent = [e for e in traces if e.solution.startswith("so </think>")]
    assert traces and silent
    for e in traces:
        attempts, rest = parse_thought(e.solution.split(), e.numbers, e.target)
        assert all((a.left == 0) == (a.verdict == "yes") for a in attempts)
        assert tuple(rest[rest.index("</think>") + 1 :]) in e.right
        assert rest[0] == ("so" if e in silent else "</think>" if attempts[-1].left == 0 else "seems")


def test_worked_solutions_are_trusted_as_often_as_the_habits_say_and_bare_ones_are_verified(parsed):
    fresh = [e for e in parsed if e.solution and not e.begun]
    worked = [e for e in fresh if "</think>" in e.solution and not e.solution.startswith("so </think>")]
    trusted = sum(e.response.startswith("so </think>") for e in worked)
    assert stats.binomtest(trusted, len(worked), Habits().trust).pvalue > 1e-3
    others = [e for e in fresh if e not in worked]
    assert others and not any(e.response.startswith("so </think>") for e in others)


def test_partial_solutions_blank_out_what_they_do_not_reveal(parsed):
    bare = [e.solution.split() for e in parsed if e.solution and "</think>" not in e.solution]
    numbers = [e.numbers for e in parsed if e.solution and "</think>" not in e.solution]
    for shown, given in zip(bare, numbers, strict=True):
        assert len(shown) == len(given) - 1 and set(shown) <= {"+", "-", "_"}
    assert {shown.count("_") for shown in bare} == {0, 1, 2, 3}


def test_shares_of_the_corpus(parsed):
    kinds = [
        "other"
        if e.other
        else "none"
        if e.solution is None
        else "marked"
        if "</think>" in e.solution
        else "words"
        for e in parsed
    ]
    reachable = 1 - UNREACHABLE
    expected = {
        "none": UNREACHABLE + reachable * CONTEXTS["none"],
        "other": reachable * CONTEXTS["other"],
        "marked": reachable * (CONTEXTS["trace"] + CONTEXTS["answer_after_silence"]),
        "words": reachable * (CONTEXTS["partial"] + CONTEXTS["answer"] + CONTEXTS["wrong"]),
    }
    assert sum(CONTEXTS.values()) == pytest.approx(1)
    assert (
        stats.chisquare(
            [kinds.count(k) for k in expected], [p * len(parsed) for p in expected.values()]
        ).pvalue
        > 1e-3
    )
    unreachable = sum(not e.right for e in parsed)
    assert stats.binomtest(unreachable, len(parsed), UNREACHABLE).pvalue > 1e-3


def test_prompts_and_responses_fit_a_row(corpus, tokenizer):
    longest = max(len(tokenizer.encode(p)) + len(tokenizer.encode(r)) for p, r in corpus)
    assert 150 < longest <= 192


def test_text_is_what_the_tokenizer_gives_back(corpus, tokenizer):
    for prompt, response in corpus[:500]:
        for text in (prompt, response):
            assert tokenizer.decode(tokenizer.encode(text)) == text


def test_responses_are_never_empty_and_never_open_a_thought(corpus):
    for _, response in corpus:
        assert response and response.count("</think>") == 1 and "<think>" not in response


def test_examples_depend_on_their_arguments_only(corpus):
    assert [example(i, 0, (3, 4), Habits()) for i in (7, 3, 7)] == [corpus[7], corpus[3], corpus[7]]
    assert example(7, 1, (3, 4), Habits()) != corpus[7]
    assert {len(parse_example(*example(i, 0, (3,), Habits())).numbers) for i in range(50)} == {3}


@pytest.mark.parametrize(
    ("still_open", "word"),
    [(1, "so"), (2, "likely"), (3, "perhaps"), (4, "perhaps"), (5, "maybe"), (8, "maybe"), (64, "maybe")],
)
def test_certainty(still_open, word):
    assert certainty(still_open) == word


def test_attempt_is_a_running_remainder():
    assert attempt((8, 4, 7), 5, ("-", "+")) == "8 -3 - 4 1 + 7 -6"
    assert attempt((8, 4, 7), 5, ("+", "-")) == "8 -3 + 4 -7 - 7 0"


@pytest.mark.parametrize(
    ("pattern", "revealed", "agrees"),
    [("+-", "__", True), ("+-", "+_", True), ("+-", "_-", True), ("+-", "-_", False), ("+-", "++", False)],
)
def test_consistent(pattern, revealed, agrees):
    assert consistent(tuple(pattern), tuple(revealed)) == agrees


def thoughts(numbers, target, revealed, habits, count, tried=()):
    for seed in range(count):
        text = search(numbers, target, tuple(revealed), random.Random(seed), habits, tried)
        yield parse_thought(text.split(), numbers, target)


@pytest.mark.parametrize("revealed", ["___", "+__", "_-_", "-+_", "---", "+++"])
def test_careful_search_says_how_many_patterns_are_open_and_never_repeats_itself(revealed):
    numbers, target = (8, 4, 7, 2), 3  # only + - - reaches it
    for attempts, rest in thoughts(numbers, target, revealed, CAREFUL, 40):
        untried = set(patterns(4))
        for a in attempts:
            agreeing = {p for p in untried if consistent(p, tuple(revealed))} or untried
            assert a.pattern in agreeing
            assert a.sure == certainty(len(agreeing))
            untried.remove(a.pattern)
        assert attempts[-1].verdict == "yes" and rest == ["</think>", "+", "-", "-"]


def test_search_draws_uniformly_from_what_is_open():
    firsts = [attempts[0].pattern for attempts, _ in thoughts((8, 4, 7), 5, "__", CAREFUL, 2000)]
    assert stats.chisquare([firsts.count(p) for p in patterns(3)]).pvalue > 1e-3


def test_search_does_not_retry_what_others_tried():
    tried = [("+", "+"), ("-", "-")]
    for attempts, _ in thoughts((8, 4, 7), 5, "__", CAREFUL, 20, tried):
        assert attempts[0].sure == "likely"
        assert not {a.pattern for a in attempts} & set(tried)


def test_search_gives_up_with_a_guess_only_when_all_patterns_failed():
    for attempts, rest in thoughts((8, 4, 7), 6, "__", CAREFUL, 20):
        assert {a.pattern for a in attempts} == set(patterns(3)) and len(attempts) == 4
        assert rest[:2] == ["seems", "</think>"] and tuple(rest[2:]) in patterns(3)


def test_search_with_nothing_left_to_try_gives_up_at_once():
    ((attempts, rest),) = thoughts((8, 4, 7), 6, "__", CAREFUL, 1, patterns(3))
    assert attempts == [] and rest[:2] == ["seems", "</think>"] and len(rest) == 4


def test_giving_up_is_a_hazard_at_each_failure():
    habits = Habits(give_up=0.3, slip=0.0)
    failures = gave_up = 0
    for attempts, rest in thoughts((8, 4, 7, 2), 3, "___", habits, 2000):
        failures += sum(a.left != 0 for a in attempts)
        gave_up += rest[0] == "seems"
    assert stats.binomtest(gave_up, failures, 0.3).pvalue > 1e-3


def test_a_guess_is_among_the_patterns_left():
    always = Habits(give_up=1.0, slip=0.0)
    for attempts, rest in thoughts((8, 4, 7), 5, "_-", always, 40):
        if rest[0] == "seems":
            assert tuple(rest[2:]) not in {a.pattern for a in attempts} and rest[3] == "-"


def test_slips_only_sound_surer():
    numbers, target = (8, 4, 7, 2), 3
    chances = slips = 0
    for attempts, _ in thoughts(numbers, target, "___", Habits(give_up=0.0, slip=0.4), 500):
        for index, a in enumerate(attempts):
            honest = CERTAINTY.index(certainty(8 - index))
            assert CERTAINTY.index(a.sure) <= honest
            chances += honest > 0
            slips += CERTAINTY.index(a.sure) < honest
    assert stats.binomtest(slips, chances, 0.4).pvalue > 1e-3


def test_failed_attempts_all_fail():
    text, tried = failed_attempts((8, 4, 7), 5, 20, random.Random(0))
    attempts, rest = parse_thought(text.split(), (8, 4, 7), 5)
    assert [a.pattern for a in attempts] == tried and len(tried) == 20 and rest == []
    assert all(a.left != 0 and a.verdict in DOUBT for a in attempts)
    assert len(set(tried)) == 3 and {a.sure for a in attempts} == set(CERTAINTY)


@pytest.mark.parametrize("count", [0, 1, 2, 3])
def test_reveal_shows_as_many_signs_as_asked(count):
    pattern = ("+", "-", "+")
    seen = {reveal(pattern, count, random.Random(seed)) for seed in range(60)}
    assert all(consistent(pattern, shown) and shown.count("_") == 3 - count for shown in seen)
    assert len(seen) == (1, 3, 3, 1)[count]


@pytest.mark.parametrize("revealed", ["__", "+_", "-+"])
def test_a_finished_attempt_is_whole_and_follows_what_is_revealed_after_the_beginning(revealed):
    beginnings = set()
    for seed in range(200):
        begun, rest, pattern = finish_attempt((8, 4, 7), 5, tuple(revealed), random.Random(seed))
        sure, *start = begun.split()
        assert sure in CERTAINTY and rest
        assert " ".join([*start, rest]) == attempt((8, 4, 7), 5, pattern)
        given = len([w for w in start if w in "+-"])
        assert consistent(pattern[given:], tuple(revealed[given:]))
        beginnings.add(len(start))
    assert beginnings == set(range(8))


def test_correct_traces_are_correct_and_worked_out():
    for seed in range(50):
        trace = correct_trace((8, 4, 7), 5, random.Random(seed), Habits(give_up=0.5, slip=0.5))
        attempts, rest = parse_thought(trace.split(), (8, 4, 7), 5)
        assert rest[-3:] == ["</think>", "+", "-"] and attempts


@pytest.mark.parametrize("largest_k", [3, 4, 5])
def test_vocabulary_holds_every_remainder_and_no_number_too_many(largest_k):
    words = vocabulary(largest_k)
    furthest = 9 * largest_k - 9 + 9 * (largest_k - 1)  # all plus is the target, all minus is tried
    numbers = {int(w) for w in words if w.lstrip("-").isdigit()}
    assert numbers == set(range(-furthest, furthest + 1))
    assert len(words) == len(set(words))


def test_every_attempt_of_the_largest_puzzle_is_in_the_vocabulary():
    words = set(vocabulary(5))
    extremes = ((9, 9, 9, 9, 9), (1, 9, 9, 9, 9), (9, 1, 9, 1, 9))
    for numbers in extremes:
        for right in patterns(5):
            target = numbers[0] + sum(n if s == "+" else -n for s, n in zip(right, numbers[1:], strict=True))
            for pattern in patterns(5):
                assert words.issuperset(attempt(numbers, target, pattern).split())
            assert str(target) in words
