import pytest

from sdistill.tasks.problem import Problem, Task, Verdict, answer_part


@pytest.mark.parametrize(
    ("response", "answer"),
    [
        ("<think> a </think> b ", "b"),
        ("a </think> b", "b"),  # the opening tag is in the prompt
        ("<think> a </think> b </think> c", "c"),
        (" no tags ", "no tags"),
        ("<think> never closed \\boxed{1}", ""),
        ("</think> b <think> again", "b"),
        ("b <think> never closed", "b"),
        ("<think></think>", ""),
    ],
)
def test_answer_part(response, answer):
    assert answer_part(response) == answer


def test_a_task_needs_only_verify():
    class Yes(Task):
        def verify(self, problem, response):
            return Verdict(response == problem.answer, response)

    problem = Problem("p", ({"role": "user", "content": "?"},), "yes")
    with Yes() as task:
        verdicts = task.verify_all([(problem, "yes"), (problem, "no")])
    assert verdicts == [Verdict(True, "yes"), Verdict(False, "no")]


@pytest.mark.parametrize(
    ("response", "kept"),
    [("a b\n</think> no", "a b"), ("a </think> yes", None), ("a b no", None), ("</think> no", "")],
)
def test_without_attempts_of_its_own_a_tasks_first_wrong_one_is_the_thinking_before_a_wrong_answer(
    response, kept
):
    class Yes(Task):
        def verify(self, problem, response):
            return Verdict(response.endswith("yes"))

    end = Yes().first_wrong_attempt(Problem("p", ({"role": "user", "content": "?"},), "yes"), response)
    assert (None if end is None else response[:end]) == kept
