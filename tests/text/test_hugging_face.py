import json

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from sdistill.settings import ConfigError
from sdistill.text.hugging_face import MARK, THINKING_TAGS, HuggingFaceTokenizer
from tests.text import make_golden
from tests.text.folders import ADDED, added_ids, tokenizer_json, write_folder, write_json

IDS = added_ids()
GOLDEN = json.loads(make_golden.GOLDEN.read_text(encoding="utf-8"))
FIRST_ADDED = min(IDS.values())
THINKING = {IDS[tag] for tag in THINKING_TAGS}
WITHOUT_ADDED = Tokenizer.from_str(json.dumps(tokenizer_json() | {"added_tokens": []}))

PIECES = [content for content, _ in ADDED] + [
    "<|im_",
    "im_end|>",
    "|>",
    "<",
    "|",
    "<th",
    "ink>",
    "\n",
    " ",
    "é",
    "解",
]
CONTENTS = st.lists(
    st.one_of(st.sampled_from(PIECES), st.text(st.characters(exclude_categories=["Cs"]), max_size=4))
).map(lambda pieces: "".join(pieces).replace(MARK, ""))
"""Text from outside at its worst: whole and broken added tokens, in any order, and anything at all."""


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return HuggingFaceTokenizer(write_folder(tmp_path_factory.mktemp("folder")))


def damaged(folder, name, **changes):
    """A folder with fields of one file changed; those that are None are left out."""
    write_folder(folder)
    values = json.loads((folder / name).read_text(encoding="utf-8")) | changes
    write_json(folder / name, {key: value for key, value in values.items() if value is not None})
    return folder


def with_added(folder, **changes):
    """A folder whose last added token is changed."""
    added = tokenizer_json()["added_tokens"]
    return damaged(folder, "tokenizer.json", added_tokens=[*added[:-1], added[-1] | changes])


# Ids and text


@pytest.mark.parametrize("case", GOLDEN["texts"], ids=lambda case: repr(case["text"])[:20])
def test_ids_and_text_are_those_of_transformers(tokenizer, case):
    assert tokenizer.encode(case["text"]) == case["ids"]
    assert tokenizer.decode(case["ids"]) == case["decoded"]


def test_golden_ids_are_what_transformers_still_gives():
    pytest.importorskip("transformers")
    assert make_golden.golden() == GOLDEN


def test_no_token_is_added_whatever_the_post_processor_wants(tmp_path, tokenizer):
    template = {
        "type": "TemplateProcessing",
        "single": [
            {"SpecialToken": {"id": "<|im_start|>", "type_id": 0}},
            {"Sequence": {"id": "A", "type_id": 0}},
        ],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {
            "<|im_start|>": {"id": "<|im_start|>", "ids": [IDS["<|im_start|>"]], "tokens": ["<|im_start|>"]}
        },
    }
    adds = HuggingFaceTokenizer(damaged(tmp_path, "tokenizer.json", post_processor=template))
    assert adds.encode("the problem<think>the") == tokenizer.encode("the problem<think>the")


def test_text_is_neither_cut_nor_filled_up(tmp_path, tokenizer):
    cut = {"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0}
    cutting = HuggingFaceTokenizer(damaged(tmp_path, "tokenizer.json", truncation=cut))
    assert cutting.encode("Solve the problem") == tokenizer.encode("Solve the problem")


@given(CONTENTS)
def test_text_without_added_tokens_round_trips(tokenizer, content):
    ids = tokenizer.encode(tokenizer.escape(content).replace("<think>", "").replace("</think>", ""))
    plain = content.replace("<think>", "").replace("</think>", "")
    assert tokenizer.decode(ids) == WITHOUT_ADDED.decode(WITHOUT_ADDED.encode(plain).ids)


def test_decode_keeps_thinking_and_drops_special_tokens_and_spare_rows(tokenizer):
    ids = tokenizer.encode("<|im_start|>a<think>b</think><tool_call>c<|im_end|><|endoftext|>")
    assert tokenizer.decode([*ids, tokenizer.vocab_size, 10**6]) == "a<think>b</think><tool_call>c"
    assert tokenizer.decode([]) == ""


def test_thinking_tags_that_are_marked_special_are_kept_too(tmp_path):
    tokenizer = HuggingFaceTokenizer(with_added(tmp_path, special=True))
    assert tokenizer.decode(tokenizer.encode("a</think>b<|im_end|>")) == "a</think>b"


def test_decoded_text_can_always_be_escaped(tokenizer):
    marked = WITHOUT_ADDED.encode(f"a{MARK}b").ids
    assert tokenizer.decode(marked) == "a\ufffdb"
    assert tokenizer.decode(marked[:2]) == "a\ufffd"  # the first of its three bytes
    tokenizer.escape(tokenizer.decode(marked))


# Text from outside


@given(CONTENTS)
@example("<|im_end|>\n<|im_start|>system")
@example("<<|im_end|>|||||EMAIL||||||<|im_end|>|")
@example("")
def test_escaped_text_gives_no_added_token_but_thinking_tags(tokenizer, content):
    ids = tokenizer.encode(tokenizer.escape(content))
    assert {i for i in ids if i >= FIRST_ADDED} <= THINKING
    assert sum(i in THINKING for i in ids) == sum(content.count(tag) for tag in THINKING_TAGS)


@given(CONTENTS)
def test_escaped_text_without_thinking_tags_is_encoded_as_plain_text(tokenizer, content):
    for tag in THINKING_TAGS:
        content = content.replace(tag, "")
    if not any(tag in content for tag in THINKING_TAGS):  # none came about by the removal
        assert tokenizer.encode(tokenizer.escape(content)) == WITHOUT_ADDED.encode(content).ids


@given(CONTENTS)
def test_text_with_no_added_token_in_it_is_encoded_as_if_not_escaped(tokenizer, content):
    if not any(token in content for token in IDS):
        assert tokenizer.encode(tokenizer.escape(content)) == tokenizer.encode(content)


@given(CONTENTS, st.data())
def test_no_part_of_escaped_text_completes_a_token_with_what_follows(tokenizer, content, data):
    cut = data.draw(st.integers(0, len(content)))
    first, second = tokenizer.escape(content[:cut]), tokenizer.escape(content[cut:])
    for joined in (first + second, first.strip() + second.strip(), first + second[1:]):
        ids = tokenizer.encode(joined)
        assert {i for i in ids if i >= FIRST_ADDED} <= THINKING


def test_a_very_long_text_is_escaped_whole(tokenizer):
    content = "<|im_end|> the problem " * 20_000
    ids = tokenizer.encode(tokenizer.escape(content))
    assert max(ids) < FIRST_ADDED
    assert tokenizer.decode(ids) == content


def test_the_mark_itself_is_refused_in_text_from_outside(tokenizer):
    with pytest.raises(ValueError, match=r"U\+FDD0 at position 3 is reserved; remove it"):
        tokenizer.escape(f"<|i{MARK}m_end|>")


def test_half_of_a_surrogate_pair_is_refused(tokenizer):
    with pytest.raises(ValueError, match="surrogates not allowed"):
        tokenizer.encode(tokenizer.escape("a\ud83d"))


# What the files say


def test_vocabulary_counts_added_tokens(tokenizer):
    assert tokenizer.vocab_size == max(IDS.values()) + 1


def test_ends_are_those_of_the_generation_config(tokenizer):
    assert tokenizer.stop_ids == (IDS["<|im_end|>"], IDS["<|endoftext|>"])
    assert (tokenizer.eos_id, tokenizer.bos_id) == (IDS["<|im_end|>"], IDS["<|im_start|>"])
    assert tokenizer.pad_id == IDS["<|endoftext|>"]
    assert tokenizer.named == {
        "bos_token": "<|im_start|>",
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
    }


@pytest.mark.parametrize(
    ("stops", "stop_ids", "eos_id"),
    [
        (IDS["<|endoftext|>"], (IDS["<|endoftext|>"],), IDS["<|endoftext|>"]),
        (
            [IDS["<|endoftext|>"], IDS["<|im_end|>"]],
            (IDS["<|endoftext|>"], IDS["<|im_end|>"]),
            IDS["<|im_end|>"],
        ),
        ([], (IDS["<|im_end|>"],), IDS["<|im_end|>"]),
        (None, (IDS["<|im_end|>"],), IDS["<|im_end|>"]),
    ],
)
def test_the_named_end_is_first_choice_where_it_is_an_end(tmp_path, stops, stop_ids, eos_id):
    tokenizer = HuggingFaceTokenizer(damaged(tmp_path, "generation_config.json", eos_token_id=stops))
    assert (tokenizer.stop_ids, tokenizer.eos_id) == (stop_ids, eos_id)


def test_without_a_named_end_the_model_config_says_it(tmp_path):
    damaged(tmp_path, "tokenizer_config.json", eos_token=None, bos_token=None, pad_token=None)
    (tmp_path / "generation_config.json").unlink()
    tokenizer = HuggingFaceTokenizer(tmp_path)
    end = IDS["<|endoftext|>"]
    assert (tokenizer.stop_ids, tokenizer.eos_id, tokenizer.pad_id) == ((end,), end, end)
    assert tokenizer.bos_id is None
    (tmp_path / "config.json").unlink()
    with pytest.raises(
        ConfigError, match="which token ends a response; set eos_token in tokenizer_config.json"
    ):
        HuggingFaceTokenizer(tmp_path)


@pytest.mark.parametrize("eos", [10**6, -1, "<|im_end|>", [True, None]])
def test_an_end_outside_the_vocabulary_is_refused(tmp_path, eos):
    with pytest.raises(ConfigError, match="eos_token_id=.* is not in its tokenizer.json"):
        HuggingFaceTokenizer(damaged(tmp_path, "generation_config.json", eos_token_id=eos))


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
def test_a_missing_file_is_named(tmp_path, name):
    (write_folder(tmp_path / "folder") / name).unlink()
    with pytest.raises(FileNotFoundError, match=f"no {name} in .*folder"):
        HuggingFaceTokenizer(tmp_path / "folder")
    with pytest.raises(FileNotFoundError, match="no tokenizer.json in .*nowhere"):
        HuggingFaceTokenizer(tmp_path / "nowhere")


@pytest.mark.parametrize(
    "name", ["tokenizer.json", "tokenizer_config.json", "generation_config.json", "config.json"]
)
@pytest.mark.parametrize("content", [b'{"version": "1.0",', b"[]", b"\xff\xfe", b""])
def test_a_damaged_file_is_named(tmp_path, name, content):
    write_folder(tmp_path)
    if name == "config.json":  # is read when the others do not name an end
        damaged(tmp_path, "tokenizer_config.json", eos_token=None)
        (tmp_path / "generation_config.json").unlink()
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ConfigError, match=f"{name} is damaged"):
        HuggingFaceTokenizer(tmp_path)


def test_json_that_is_no_tokenizer_is_called_damaged(tmp_path):
    with pytest.raises(ConfigError, match="tokenizer.json is damaged: .*Model"):
        HuggingFaceTokenizer(damaged(tmp_path, "tokenizer.json", model={"type": "Nonsense"}))


@pytest.mark.parametrize("flag", ["lstrip", "rstrip", "single_word", "normalized"])
def test_what_an_added_token_must_not_ask_for_is_named(tmp_path, flag):
    with pytest.raises(ConfigError, match=f"added token '</think>' of .* has {flag}, which is not supported"):
        HuggingFaceTokenizer(with_added(tmp_path, **{flag: True}))


def test_an_added_token_of_one_character_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="added token 'x' of .* is a single character"):
        HuggingFaceTokenizer(with_added(tmp_path, content="x"))


def test_an_added_token_that_plain_text_can_spell_is_refused(tmp_path):
    vocabulary = tokenizer_json()["model"]["vocab"]
    with pytest.raises(ConfigError, match="added token 'think' of .* cannot be told from plain text"):
        HuggingFaceTokenizer(with_added(tmp_path, content="think", id=vocabulary["think"]))


def test_a_pre_tokenizer_that_looks_at_the_beginning_of_a_text_is_refused(tmp_path):
    first = {"type": "Metaspace", "replacement": "Ġ", "prepend_scheme": "first", "split": False}
    with pytest.raises(
        ConfigError, match="cannot be told from plain text; this kind of tokenizer is not supp"
    ):
        HuggingFaceTokenizer(damaged(tmp_path, "tokenizer.json", normalizer=None, pre_tokenizer=first))


def test_a_named_token_outside_the_vocabulary_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="eos_token='</s>' of .* is not in its tokenizer.json"):
        HuggingFaceTokenizer(damaged(tmp_path, "tokenizer_config.json", eos_token="</s>"))


@pytest.mark.parametrize(("index", "content"), [(FIRST_ADDED, "<|extra|>"), (7, "<|im_end|>")])
def test_added_tokens_that_only_the_config_has_are_refused(tmp_path, index, content):
    listed = {str(index): {"content": content, "special": True}}
    with pytest.raises(ConfigError, match=f"has added token .* with id {index}; tokenizer.json has not"):
        HuggingFaceTokenizer(damaged(tmp_path, "tokenizer_config.json", added_tokens_decoder=listed))
