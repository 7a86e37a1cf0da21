import datetime
import json
import types

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sdistill.settings import ConfigError
from sdistill.tasks.problem import Problem
from sdistill.text.chat import SignsChat, TemplateChat, conversation, open_chat
from sdistill.text.hugging_face import MARK, THINKING_TAGS
from tests.text.folders import (
    ALWAYS,
    MODES,
    NEVER,
    SELF_OPENING,
    TEMPLATES,
    added_ids,
    write_folder,
    write_json,
)
from tests.text.test_hugging_face import CONTENTS, GOLDEN

IDS = added_ids()
USER = [{"role": "user", "content": "Solve the problem."}]


@pytest.fixture(scope="module")
def chats(tmp_path_factory):
    folder = tmp_path_factory.mktemp("chats")
    return {name: open_chat(write_folder(folder / name, source)) for name, source in TEMPLATES.items()}


def template(source, **variables):
    tokenizer = types.SimpleNamespace(named=variables, escape=str)
    return TemplateChat(tokenizer, source, "model/chat_template.jinja")


def added(ids):
    """The added tokens of a prompt, in order, but for thinking tags."""
    return [i for i in ids if i in IDS.values() and i not in {IDS[tag] for tag in THINKING_TAGS}]


# Conversations, and the puzzle's prompts


def test_only_the_last_turn_of_a_problem_is_replaced():
    messages = ({"role": "system", "content": "be brief"}, {"role": "user", "content": "2 + 2?"})
    problem = Problem("p", messages, "4")
    assert conversation(problem) == messages
    assert conversation(problem, "3 + 3?") == (messages[0], {"role": "user", "content": "3 + 3?"})
    assert problem.messages == messages


def test_the_puzzle_is_posed_without_roles(tokenizer):
    chat = SignsChat(tokenizer)
    messages = [{"role": "user", "content": "8 4 2 = 6"}]
    assert chat.render(messages, thinking=True) == "8 4 2 = 6 <think>"
    assert chat.prompt(messages, thinking=True) == tokenizer.encode("8 4 2 = 6 <think>")


def test_the_puzzle_cannot_be_posed_without_thinking(tokenizer):
    with pytest.raises(ConfigError, match="thinking=False: the signs puzzle's prompt opens the thinking"):
        SignsChat(tokenizer).render(USER, thinking=False)


# Templates


@pytest.mark.parametrize("case", GOLDEN["prompts"], ids=lambda case: f"{case['template']}-{case['thinking']}")
def test_prompts_are_those_of_transformers(chats, case):
    chat = chats[case["template"]]
    rendered = chat.render(case["messages"], thinking=case["thinking"])
    assert rendered.replace(MARK, "") == case["text"]
    assert chat.prompt(case["messages"], thinking=case["thinking"]) == case["ids"]


def test_a_template_that_listens_takes_both_values(chats):
    on, off = (chats["listening"].render(USER, thinking=thinking) for thinking in (True, False))
    assert off == on + "<think>\n\n</think>\n\n"


@pytest.mark.parametrize(
    ("source", "thinks"),
    [
        (ALWAYS, True),
        (SELF_OPENING, True),
        (NEVER, False),
        (NEVER + "<think></think>", False),
        (NEVER + "<think>\n", True),
    ],
)
def test_a_template_that_does_not_listen_takes_only_what_its_model_does(source, thinks):
    one = template(source, bos_token="<|im_start|>", eos_token="<|im_end|>")
    assert one.render(USER, thinking=thinks)
    what = "always thinks; use thinking=True" if thinks else "never thinks; use thinking=False"
    expected = f"thinking={not thinks}: the chat template of model/chat_template.jinja ignores .* {what}"
    with pytest.raises(ConfigError, match=expected):
        one.render(USER, thinking=not thinks)


def test_a_system_prompt_about_tags_does_not_make_a_template_think():
    source = "Never write <think>.{% for m in messages %}{{ m.content }}{% endfor %}Answer:"
    assert template(source).render(USER, thinking=False).endswith("Answer:")


def test_a_token_that_the_tokenizer_does_not_have_is_left_out():
    source = "{{ bos_token }}{% if eos_token is defined %}E{% endif %}{{ messages[0].content }}"
    assert template(source).render(USER, thinking=False) == "Solve the problem."
    assert template(source, bos_token="B").render(USER, thinking=False) == "BSolve the problem."


def test_templates_have_the_functions_that_transformers_gives_them():
    source = (
        "{% for m in messages %}\n    {{- m | tojson }}{% break %}\n{% endfor %}\n"
        "{{ strftime_now('%Y') }}{{ tools is none }}{{ {'a': [1]} | tojson(indent=1) }}"
    )
    messages = [{"role": "user", "content": "1 < 2 & é"}, {"role": "user", "content": "no"}]
    year = datetime.datetime.now().year
    expected = f'{{"role": "user", "content": "1 < 2 & é"}}{year}True{{\n "a": [\n  1\n ]\n}}'
    assert template(source).render(messages, thinking=False) == expected


def test_white_space_round_blocks_is_trimmed():
    source = "  {% if true %}\nA\n  {% endif %}\nB"
    assert template(source).render(USER, thinking=False) == "A\nB"


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("{% for m in messages %}", r", line 1: Unexpected end of template"),
        ("one\n{{ 1 + }}", r", line 2: unexpected"),
        ("{% generation %}", r", line 1: .*unknown tag 'generation'"),
        ("{{ messages[0].name.first }}", r": .*has no attribute 'name'"),
        ("{{ raise_exception('no such role') }}", r": no such role"),
        ("{{ 1 + messages[0].content }}", r": unsupported operand"),
        ("{{ messages.append(1) }}", r": access to attribute 'append' of 'list' object is unsafe"),
        ("{{ ''.__class__.__mro__ }}", r": access to attribute '__class__' of 'str' object is unsafe"),
        ("{{ x | nonsense }}", r", line 1: No filter named 'nonsense'"),
        ("{{ missing() }}", r": 'missing' is undefined"),
    ],
)
def test_what_is_wrong_with_a_template_is_said_with_its_file(source, message):
    with pytest.raises(ConfigError, match=r"^chat template of model/chat_template.jinja" + message):
        template(source)


def test_messages_that_a_template_refuses_are_its_error(chats):
    with pytest.raises(ConfigError, match=r"always/chat_template.jinja: unknown role critic"):
        chats["always"].prompt([{"role": "critic", "content": "no"}], thinking=True)


# Folders


def test_the_template_file_goes_before_the_one_in_the_config(tmp_path):
    folder = write_folder(tmp_path, "file: {{ messages[0].content }}")
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    one = "config: {{ messages[0].content }}"
    several = [{"name": "tool_use", "template": "tools"}, {"name": "default", "template": "default"}]
    write_json(folder / "tokenizer_config.json", settings | {"chat_template": one})
    assert open_chat(folder).render(USER, thinking=False) == "file: Solve the problem."
    (folder / "chat_template.jinja").unlink()
    assert open_chat(folder).render(USER, thinking=False) == "config: Solve the problem."
    write_json(folder / "tokenizer_config.json", settings | {"chat_template": several})
    assert open_chat(folder).render(USER, thinking=False) == "default"


@pytest.mark.parametrize("found", [None, [], [{"name": "tool_use", "template": "tools"}]])
def test_a_folder_without_a_template_is_refused(tmp_path, found):
    folder = write_folder(tmp_path / "folder", template=None)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    write_json(folder / "tokenizer_config.json", settings | {"chat_template": found})
    with pytest.raises(ConfigError, match=r"folder has no chat template: neither chat_template.jinja nor"):
        open_chat(folder)


def test_the_beginning_of_text_is_written_once(chats):
    ids = chats["always"].prompt(USER, thinking=True)
    assert ids[0] == chats["always"].tokenizer.bos_id
    assert ids.count(chats["always"].tokenizer.bos_id) == 1


# Contents from outside


@pytest.mark.parametrize(("name", "thinking"), MODES)
@given(contents=st.tuples(CONTENTS, CONTENTS, CONTENTS, CONTENTS))
def test_no_content_changes_the_special_tokens_of_a_prompt(chats, name, thinking, contents):
    roles = ("system", "user", "assistant", "user")

    def tokens(texts):
        messages = [{"role": role, "content": text} for role, text in zip(roles, texts, strict=True)]
        return added(chats[name].prompt(messages, thinking=thinking))

    assert tokens(contents) == tokens(["x"] * 4)


@pytest.mark.parametrize("token", [token for token in IDS if token not in THINKING_TAGS])
@pytest.mark.parametrize("space", ["", " "])
def test_contents_that_a_template_puts_side_by_side_form_no_token(chats, token, space):
    source = "{% for m in messages %}{{ m.content | trim }}{% endfor %}"
    chat = TemplateChat(chats["never"].tokenizer, source, "model/chat_template.jinja")
    for cut in range(len(token) + 1):
        parts = [token[:cut] + space, space + token[cut:]]
        messages = [{"role": "user", "content": part} for part in parts]
        assert added(chat.prompt(messages, thinking=False)) == []


def test_a_role_forms_no_token_either(chats):
    messages = [{"role": "user<|im_end|>", "content": "x"}]
    prompt = chats["listening"].prompt(messages, thinking=True)
    expected = chats["listening"].prompt([{"role": "user", "content": "x"}], thinking=True)
    assert added(prompt) == added(expected)


def test_a_demonstration_keeps_its_thinking_tags(chats):
    content = "Solve the problem. Here is one: <think>\nso\n</think> 4"
    ids = chats["listening"].prompt([{"role": "user", "content": content}], thinking=True)
    assert [i for i in ids if i in (IDS["<think>"], IDS["</think>"])] == [IDS["<think>"], IDS["</think>"]]


@pytest.mark.parametrize("content", [f"a{MARK}b", "a\udc00"])
def test_contents_that_cannot_be_encoded_are_refused(chats, content):
    with pytest.raises(ValueError, match="reserved|surrogates"):
        chats["listening"].prompt([{"role": "user", "content": content}], thinking=True)


def test_a_prompt_reads_in_logs_as_it_was_written(chats):
    chat = chats["listening"]
    messages = [{"role": "user", "content": "Is 1 < 2 | 解?"}]
    assert chat.tokenizer.decode(chat.prompt(messages, thinking=True)) == "user\nIs 1 < 2 | 解?\nassistant\n"
