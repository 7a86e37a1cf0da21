"""What transformers makes of the small folders, written down for machines without transformers.

python -m tests.text.make_golden
"""

import json
import tempfile
from pathlib import Path
from typing import Any

from tests.text.folders import ADDED, MODES, TEMPLATES, write_folder

GOLDEN = Path(__file__).parent / "golden" / "transformers.json"

TEXTS = (
    "",
    " ",
    "Solve the problem.\n\nIs it the user's?  Yes\r\n",
    "解方程 $x^2 < 5$：e\u0301 é ｜▁ 🙂\u200d",
    "<think>\nWait, 1 || 2 |||| 3\n</think>\n\n\\boxed{4}<|im_end|>",
    "<|im_end|>|<|im_end|>||<|im_<|im_end|><｜User｜>｜> <tool_call> </tool_call>|||EMAIL|||EMAIL|||",
    "a\t<think>\n </think>\n\n  b",
    *(content for content, _ in ADDED),
)

CONVERSATIONS = (
    [{"role": "user", "content": "Solve the problem 2 + 2."}],
    [{"role": "user", "content": "  解方程 x < 5，|x| > 1 \n"}],
    [{"role": "system", "content": "You are a solver."}, {"role": "user", "content": "What is 1 <= 2?"}],
    [
        {"role": "user", "content": "1 + 1?"},
        {"role": "assistant", "content": "<think>\nWait, it is 2.\n</think>\n\n2"},
        {"role": "user", "content": "Here is one: <think>\nso</think> 3. Yours?"},
    ],
    [
        {"role": "system", "content": ""},
        {"role": "user", "content": ""},
        {"role": "assistant", "content": "no thinking"},
        {"role": "user", "content": "why?"},
    ],
)


def golden() -> dict[str, Any]:
    """Ids and texts that transformers gives."""
    from transformers import AutoTokenizer

    found: dict[str, Any] = {"texts": [], "prompts": []}
    with tempfile.TemporaryDirectory() as folder:
        write_folder(Path(folder))
        tokenizer = AutoTokenizer.from_pretrained(folder)
        for text in TEXTS:
            ids = tokenizer.encode(text, add_special_tokens=False)
            decoded = tokenizer.decode(ids, skip_special_tokens=True)
            found["texts"].append({"text": text, "ids": ids, "decoded": decoded})
        for name, thinking in MODES:
            for messages in CONVERSATIONS:
                arguments = {
                    "chat_template": TEMPLATES[name],
                    "add_generation_prompt": True,
                    "enable_thinking": thinking,
                }
                found["prompts"].append(
                    {
                        "template": name,
                        "thinking": thinking,
                        "messages": messages,
                        "text": tokenizer.apply_chat_template(messages, tokenize=False, **arguments),
                        "ids": tokenizer.apply_chat_template(messages, return_dict=False, **arguments),
                    }
                )
    return found


if __name__ == "__main__":
    GOLDEN.write_text(json.dumps(golden(), ensure_ascii=False) + "\n", encoding="utf-8")
    print(f"wrote {GOLDEN}")
