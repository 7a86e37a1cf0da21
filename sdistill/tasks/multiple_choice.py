r"""Multiple choice: one letter, read by stated rules or not at all.

Only the text after the thinking counts. The first of these forms that occurs in it decides:

1. `<answer>B</answer>`, the last one; SciKnowEval's instructions ask for it
2. `\boxed{B}`, the last one
3. "answer is (B)", "correct option: B" and similar phrases; all of them must name the same letter
4. nothing but an option, such as `B`, `(B).` or `**B**`

In 1, 2 and 4 the text of the option may follow, as in `B: benzene`. Two letters, as in `A or B`, are no
answer.
"""

import re

from sdistill.tasks.mathematics import last_boxed
from sdistill.tasks.problem import Problem, Task, Verdict, answer_part

LETTERS = "ABCD"
"""The options of a problem whose metadata has no `letters`."""

TAGGED = re.compile(r"<answer>((?:(?!<answer>).)*?)</answer>", re.DOTALL | re.IGNORECASE)
MARKUP = re.compile(r"\\(?:text|mathrm|mathbf|textbf|mathbb)\b|[*_$`{}\[\]\\]")
# The words of a phrase before the letter; the connection excludes "option A is wrong".
SUBJECT = r"\b(?i:answer|(?:correct|right|best)\s+(?:option|choice|letter))\b"
CONNECTION = r"(?:[^.:=\n]{0,40}?\b(?:is|be)\b\s*[:=]?|\s*[:=])\s*(?:(?i:option|choice|letter)\s+)?"


class MultipleChoiceTask(Task):
    """Compares the letter of a response with the answer's."""

    def verify(self, problem: Problem, response: str) -> Verdict:
        """A response is correct if exactly one letter can be read from it, and that is the answer.

        Raises:
          ValueError: if the problem's answer is not one of its letters.
        """
        letters = problem.metadata.get("letters", LETTERS)
        if len(problem.answer) != 1 or problem.answer not in letters:
            raise ValueError(f"problem {problem.id!r}: answer={problem.answer!r} must be one of {letters!r}")
        letter = read_letter(response, letters)
        if letter is None:
            return Verdict(False, None, f"No single letter of {', '.join(letters)} was given as the answer.")
        correct = letter == problem.answer
        return Verdict(correct, letter, "" if correct else f"{letter} is wrong.")


def read_letter(response: str, letters: str = LETTERS) -> str | None:
    """The one letter of a response; None if there is none, or more than one."""
    text = answer_part(response)
    if tagged := TAGGED.findall(text):
        return _option(tagged[-1], letters)
    if (boxed := last_boxed(text)) is not None:
        return _option(boxed, letters)
    phrases = re.findall(rf"{SUBJECT}{CONNECTION}\(?([{letters}])\b(?=(.{{0,20}}))", MARKUP.sub("", text))
    if phrases:
        found = {letter for letter, _ in phrases}
        more = any(_names_another(rest, letters) for _, rest in phrases)
        return found.pop() if len(found) == 1 and not more else None
    return _option(text, letters)


def _option(text: str, letters: str) -> str | None:
    """The letter of a text that is a letter, or a letter with the text of its option."""
    text = MARKUP.sub("", text).strip()
    alone = re.fullmatch(rf"(?:option\s+)?\(?([{letters}])\)?[.:]?", text, re.IGNORECASE)
    if alone:
        return alone[1].upper()
    titled = re.match(rf"(?:\(([{letters}])\)|([{letters}])[.:)])", text)
    if titled and not _names_another(text[titled.end() :], letters):
        return titled[1] or titled[2]
    return None


def _names_another(text: str, letters: str) -> bool:
    """Whether the text after a letter names another one, as in `A or B`, `A, B`, `A/B`."""
    return bool(re.match(rf"\)?\s*(?:,|/|&|or\b|and\b)*\s*(?:option\s+)?\(?[{letters}](?:[).:,]|\s*$)", text))
