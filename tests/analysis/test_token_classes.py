import pytest

from sdistill.analysis.token_classes import CLASSES, token_classes
from sdistill.text.hugging_face import HuggingFaceTokenizer
from sdistill.text.spans import token_texts
from tests.text.folders import write_folder

LETTERS = dict(zip("edo", CLASSES, strict=True))


def classes(texts):
    return "".join("edo"[i] for i in token_classes(texts))


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        (["perhaps", " 8", " -3", " -", " wait", " so", " </think>", " +", ""], "edddeoodo"),
        (["x", "-", "axis", " -", "3", " 5", "-", "3", " well", "-", "known"], "ooo" + "ddddd" + "ooo"),
        ([" un", "likely", " likely", ",", " Hm", "m", "!"], "oo" + "eoeeo"),
        (["<", "think", ">", " 2", "<", "3", "</", "think", ">"], "ooo" + "ddd" + "ooo"),
        ([" \\times", " =", " wait", "=2"], "oded"),
    ],
)
def test_classes_of_tokens(texts, expected):
    assert set(LETTERS) == set("edo")
    assert classes(texts) == expected


def test_a_bpe_that_splits_words_is_classed_by_its_words(tmp_path):
    tokenizer = HuggingFaceTokenizer(write_folder(tmp_path / "bpe"))
    text = "<think>Hmm, the unlikely 12-3 is wait</think>"
    texts = token_texts(tokenizer, tokenizer.encode(text))
    marked = classes(texts)
    assert len(texts) > len(text.split())
    by_class = {name: "".join(t for t, c in zip(texts, marked, strict=True) if c == name) for name in "edo"}
    assert by_class == {"e": "Hmmwait", "d": "12-3", "o": "<think>, the unlikely  is </think>"}
