"""Small files in the schemas of the public ones, made by code."""

import base64
import json
import pickle
import zlib

import pyarrow as pa
import pyarrow.parquet as pq

DAPO_OPENING = (
    "Solve the following math problem step by step. The last line of your response should be of the form "
    "Answer: $Answer (without quotes) where $Answer is the answer to the problem.\n\n"
)
DAPO_CLOSING = '\n\nRemember to put your answer on its own line after "Answer:".'
BOXED = "\nPlease reason step by step, and put your final answer within \\boxed{}."


def verl_row(index, question, answer, **about):
    """A row as verl has them: nested columns."""
    return {
        "data_source": "math_dapo",
        "prompt": [{"content": question, "role": "user"}],
        "ability": "MATH",
        "reward_model": {"ground_truth": answer, "style": "rule-lighteval/MATH_v2"},
        "extra_info": {"index": index, **about},
    }


def dapo_row(index, question, answer):
    return verl_row(index, f"{DAPO_OPENING}{question}{DAPO_CLOSING}", answer)


def plain_row(index, question, answer, **about):
    return {"problem": question, "answer": answer, "unique_id": index, **about}


def as_json_text(row):
    """The same row with its nested columns as JSON text."""
    return {
        name: json.dumps(value) if isinstance(value, (list, dict)) else value for name, value in row.items()
    }


def write_parquet(path, rows):
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


def write_lines(path, rows):
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return path


def science_row(question, answer="B", *, domain="Chemistry", level="L3", type="mcq-4-choices", labels="ABCD"):
    """A row of SciKnowEval v2."""
    return {
        "question": question,
        "answer": "",
        "type": type,
        "domain": domain,
        "details": {"level": level, "task": "a", "subtask": "b", "source": "c"},
        "answerKey": answer,
        "choices": {"text": [f"choice {label}" for label in labels], "label": list(labels)},
        "prompt": {"default": "Given a question and four options, please select the right answer."},
    }


def code_row(name, *, date="2025-03-01T00:00:00", function=None, packed=True, tests=None):
    """A row of LiveCodeBench; the hidden tests are packed as there."""
    tests = tests or [{"input": "1\n", "output": "2\n"}, {"input": "3\n", "output": "4\n"}]
    kind = "functional" if function else "stdin"
    text = json.dumps([{**test, "testtype": kind} for test in tests])
    starter = f"class Solution:\n    def {function}(self, n: int) -> int:\n        " if function else ""
    return {
        "question_title": name,
        "question_content": f"Do {name}.",
        "platform": "leetcode" if function else "atcoder",
        "question_id": name,
        "contest_id": "contest",
        "contest_date": date,
        "starter_code": starter,
        "difficulty": "easy",
        "public_test_cases": "[]",
        "private_test_cases": pack(text) if packed else text,
        "metadata": json.dumps({"func_name": function} if function else {}),
    }


def pack(content):
    return base64.b64encode(zlib.compress(pickle.dumps(content))).decode()
