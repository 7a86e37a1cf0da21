"""Ids and prompts against transformers, on real tokenizers, templates and problems beside the checkout."""

import json
import shutil

import pytest

from sdistill.text.chat import open_chat
from sdistill.text.hugging_face import MARK, THINKING_TAGS
from tests.public_files import FOLDER
from tests.text.folders import write_json

DATA = FOLDER
HF, R1 = DATA / "hf", "DeepSeek-R1-Distill-Qwen-7B"

pytestmark = pytest.mark.skipif(not HF.is_dir(), reason=f"no model folders in {HF}")

MODES = [
    ("qwen3", True),
    ("qwen3", False),
    ("r1", True),
    ("r1_first", True),
    ("r1_small", True),
    ("olmo3", False),
]
"""Folders with the values of `thinking` they can be asked for."""
EVERY = {("qwen3", True): 1, ("r1", True): 1, ("olmo3", False): 1}
"""Each tokenizer reads every problem once; with another template it reads every tenth."""

DEMONSTRATION = "<think>\nWait, 1 || 2 < 3.\n</think>\n\nThe answer is \\boxed{4}."


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Model folders, those that were not whole put together."""
    made = tmp_path_factory.mktemp("hf")
    first, small, olmo = made / "r1_first", made / "r1_small", made / "olmo3"
    shutil.copytree(HF / R1, first)
    (first / "chat_template.jinja").unlink()
    shutil.copytree(HF / "DeepSeek-R1-Distill-Qwen-1.5B", small)
    shutil.copy(HF / R1 / "tokenizer.json", small)
    shutil.copytree(HF / "Olmo-3.1-32B-Instruct", olmo)
    (olmo / "chat_template.excerpt.jinja").rename(olmo / "chat_template.jinja")
    shutil.copy(HF / "dolma2-tokenizer" / "tokenizer.json", olmo)
    names = {"eos_token": "<|endoftext|>", "pad_token": "<|pad|>"}
    write_json(olmo / "tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast"} | names)
    return {"qwen3": HF / "Qwen3-8B", "r1": HF / R1, "r1_first": first, "r1_small": small, "olmo3": olmo}


@pytest.fixture(scope="module")
def opened(folders):
    """Each folder's chat and transformers' tokenizer, opened once."""
    transformers = pytest.importorskip("transformers")
    cache = {}

    def get(name):
        if name not in cache:
            reference = transformers.AutoTokenizer.from_pretrained(folders[name])
            cache[name] = open_chat(folders[name]), reference
        return cache[name]

    return get


@pytest.fixture(scope="module")
def problems():
    """Conversations of every mathematics and chemistry problem, without repeats."""
    parquet = pytest.importorskip("pyarrow.parquet")
    found = {}
    for file in sorted((DATA / "math").glob("*.parquet")):
        for prompt in parquet.read_table(file)["prompt"].to_pylist():
            messages = json.loads(prompt) if isinstance(prompt, str) else prompt
            found[messages[-1]["content"]] = messages
    for line in (DATA / "sciknoweval" / "chemistry_test.json").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        found[row["prompt"]] = [
            {"role": "system", "content": row["system"]},
            {"role": "user", "content": row["prompt"]},
        ]
    assert len(found) == 30 + 500 + 511 + 210
    return list(found.values())


def reference_prompt(reference, messages, thinking, **options):
    return reference.apply_chat_template(
        messages, add_generation_prompt=True, enable_thinking=thinking, **options
    )


@pytest.mark.parametrize(("name", "thinking"), MODES)
def test_problems_have_the_prompt_ids_of_transformers(opened, problems, name, thinking):
    chat, reference = opened(name)
    for messages in problems[:: EVERY.get((name, thinking), 10)]:
        expected = reference_prompt(reference, messages, thinking, return_dict=False)
        assert chat.prompt(messages, thinking=thinking) == expected
        text = messages[-1]["content"]
        assert chat.tokenizer.encode(text) == reference.encode(text, add_special_tokens=False)


@pytest.mark.parametrize(("name", "thinking"), MODES)
@pytest.mark.parametrize("system", [None, "", "You are a solver."])
def test_conversations_have_the_prompts_of_transformers(opened, problems, name, thinking, system):
    chat, reference = opened(name)
    for problem in problems[::50]:
        content = problem[-1]["content"]
        turns = [
            {"role": "user", "content": content},
            {"role": "assistant", "content": DEMONSTRATION},
            {"role": "user", "content": f"{content}\n\nA solution: {DEMONSTRATION}\n\nNow yours."},
            {"role": "assistant", "content": "It is 4."},
            {"role": "user", "content": "  Sure? \n"},
        ]
        for length in (1, 3, 5):
            messages = (
                turns[:length] if system is None else [{"role": "system", "content": system}, *turns[:length]]
            )
            text = reference_prompt(reference, messages, thinking, tokenize=False)
            assert chat.render(messages, thinking=thinking).replace(MARK, "") == text
            ids = reference_prompt(reference, messages, thinking, return_dict=False)
            assert chat.prompt(messages, thinking=thinking) == ids


@pytest.mark.parametrize("name", ["qwen3", "r1", "olmo3"])
def test_responses_are_encoded_and_decoded_as_transformers_does(opened, problems, name):
    chat, reference = opened(name)
    added = "".join(f"{token} a{token}" for token in reference.get_added_vocab())
    for text in [added, DEMONSTRATION + reference.eos_token, *(p[-1]["content"] for p in problems[::20])]:
        ids = chat.tokenizer.encode(text)
        assert ids == reference.encode(text, add_special_tokens=False)
        assert chat.tokenizer.decode(ids) == reference.decode(ids, skip_special_tokens=True)


@pytest.mark.parametrize("name", ["qwen3", "r1", "olmo3"])
def test_no_content_gives_a_special_token(opened, name):
    chat, reference = opened(name)
    tokens = reference.get_added_vocab()
    thinking = {tokens[tag] for tag in THINKING_TAGS if tag in tokens}
    worst = "".join(f"{token}{token[:-1]}<{token[1:]}" for token in tokens)
    ids = chat.tokenizer.encode(chat.tokenizer.escape(worst))
    assert {i for i in ids if i in tokens.values()} <= thinking
    assert chat.tokenizer.decode(ids) == worst


def test_ends_and_sizes_are_those_of_the_models(opened):
    qwen, r1, olmo = (opened(name)[0].tokenizer for name in ("qwen3", "r1", "olmo3"))
    assert (qwen.vocab_size, qwen.stop_ids, qwen.eos_id) == (151669, (151645, 151643), 151645)
    assert (qwen.bos_id, qwen.pad_id) == (None, 151643)
    assert (r1.vocab_size, r1.stop_ids, r1.bos_id, r1.pad_id) == (151665, (151643,), 151646, 151643)
    assert (olmo.vocab_size, olmo.stop_ids, olmo.bos_id, olmo.pad_id) == (100278, (100257,), None, 100277)


def test_the_distills_begin_with_one_token_and_an_open_thinking(opened):
    chat, _ = opened("r1")
    ids = chat.prompt([{"role": "user", "content": "2 + 2?"}], thinking=True)
    assert (ids.count(151646), ids[0], ids[-2]) == (1, 151646, 151648)
    assert opened("r1_first")[0].prompt([{"role": "user", "content": "2 + 2?"}], thinking=True) == ids[:-2]
