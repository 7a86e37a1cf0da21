import json
from collections import Counter

import numpy as np
import pytest
from grain.sharding import ShardOptions
from hypothesis import given, settings
from hypothesis import strategies as st

from sdistill.data.pipelines import example_batches, problem_batches, tokenize_example
from sdistill.settings import ConfigError
from sdistill.tasks.signs_puzzle import problem_from_text
from sdistill.tasks.signs_reasoner import Habits, example, vocabulary
from sdistill.text.tokenizer import SIGNS_TOKENIZER, SentencePieceTokenizer

TOKENIZER = SentencePieceTokenizer(SIGNS_TOKENIZER)
SOURCE = [dict(zip(("prompt", "response"), example(i, 5, (3,), Habits()), strict=True)) for i in range(23)]
WORDS = st.lists(st.sampled_from(vocabulary(3)), min_size=1, max_size=8)
FIELDS = ("tokens", "targets", "weights", "segment_ids", "positions")


def batches(packed, *, batch_size=4, sequence_length=128, seed=0, source=SOURCE):
    return example_batches(
        source, TOKENIZER, batch_size=batch_size, sequence_length=sequence_length, packed=packed, seed=seed
    )


def tokenized(sequence_length=128, source=SOURCE):
    return [tokenize_example(example, TOKENIZER, sequence_length) for example in source]


def key(tokens, targets, weights):
    return tuple(tokens), tuple(targets), tuple(weights)


def unpacked(batch):
    for row in range(len(batch["tokens"])):
        segment_ids = batch["segment_ids"][row]
        for segment in range(1, segment_ids.max() + 1):
            columns = np.flatnonzero(segment_ids == segment)
            assert columns.tolist() == list(range(columns[0], columns[-1] + 1))
            assert batch["positions"][row][columns].tolist() == list(range(len(columns)))
            yield key(*(batch[name][row][columns] for name in ("tokens", "targets", "weights")))


@given(WORDS, WORDS, st.booleans())
def test_tokenized_examples_predict_the_next_token_of_the_response(prompt, response, as_bytes):
    texts = [" ".join(prompt), " ".join(response)]
    element = dict(zip(("prompt", "response"), texts, strict=True))
    if as_bytes:
        element = {name: text.encode() for name, text in element.items()}
    out = tokenize_example(element, TOKENIZER, 99)
    ids = TOKENIZER.encode(" ".join(texts)) + [TOKENIZER.eos_id]
    assert out["tokens"].tolist() == ids[:-1] and out["targets"].tolist() == ids[1:]
    learned = out["targets"][out["weights"] == 1].tolist()
    assert learned == TOKENIZER.encode(texts[1]) + [TOKENIZER.eos_id]
    assert out["weights"].tolist() == [0.0] * (len(prompt) - 1) + [1.0] * (len(response) + 1)
    assert [out[name].dtype for name in FIELDS[:3]] == [np.int32, np.int32, np.float32]


def test_examples_longer_than_a_row_are_refused():
    element = {"prompt": "1 1 1 = 1 <think>", "response": "so </think> + -"}
    assert len(tokenize_example(element, TOKENIZER, 10)["tokens"]) == 10
    with pytest.raises(ValueError, match="10 tokens does not fit a row of 9; raise sequence_length"):
        tokenize_example(element, TOKENIZER, 9)


def test_a_response_that_goes_on_after_its_end_is_refused():
    tokenizer = SentencePieceTokenizer(SIGNS_TOKENIZER)
    (wait,) = tokenizer.encode("wait")
    tokenizer.stop_ids = (tokenizer.eos_id, wait)
    element = {"prompt": "1 1 1 = 1 <think>", "response": "so wait so"}
    with pytest.raises(ValueError, match=f"goes on after end token {wait} at position 1 of 4"):
        tokenize_example(element, tokenizer, 99)


def test_one_example_a_row():
    iterator = batches(packed=False)
    expected = Counter(key(*e.values()) for e in tokenized())
    seen = Counter()
    for _ in range(len(SOURCE)):  # four epochs
        batch = next(iterator)
        assert [batch[name].shape for name in FIELDS] == [(4, 128)] * 5
        found = list(unpacked(batch))
        assert len(found) == 4 and batch["segment_ids"].max() == 1
        for name in FIELDS:
            assert not batch[name][batch["segment_ids"] == 0].any()
        seen.update(found)
    assert seen == Counter({e: 4 * count for e, count in expected.items()})


def test_packed_rows_hold_exactly_the_examples_of_the_unpacked_stream():
    iterator, found = batches(packed=True, batch_size=3), Counter()
    for _ in range(10):
        batch = next(iterator)
        assert [batch[name].shape for name in FIELDS] == [(3, 128)] * 5
        for name in FIELDS:
            assert not batch[name][batch["segment_ids"] == 0].any()
        found.update(unpacked(batch))
    stream = batches(packed=False, batch_size=1)
    assert found == Counter(e for _ in range(found.total()) for e in unpacked(next(stream)))
    assert found.total() > len(SOURCE)


def test_packing_wastes_little():
    iterator = batches(packed=True, batch_size=8)
    full = np.mean([(next(iterator)["segment_ids"] > 0).mean() for _ in range(5)])
    single = np.mean([(next(batches(packed=False))["segment_ids"] > 0).mean() for _ in range(5)])
    assert full > 0.7 > single


@pytest.mark.parametrize("packed", [True, False])
def test_iterators_resume_where_they_stopped(packed):
    iterator = batches(packed)
    for _ in range(3):
        next(iterator)
    state = iterator.get_state()
    expected = [next(iterator) for _ in range(4)]
    for resumed in (batches(packed), iterator):
        resumed.set_state(state)
        for batch in expected:
            for name, values in next(resumed).items():
                np.testing.assert_array_equal(values, batch[name])


@pytest.mark.parametrize("packed", [True, False])
def test_order_is_a_function_of_the_seed(packed):
    first, again, other = (next(batches(packed, seed=seed))["tokens"] for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert np.any(first != other)


PROBLEMS = [problem_from_text(t) for t in ("1 1 1 = 1", "8 4 7 = 5", "2 2 2 = 6", "1 2 3 = 0", "9 9 9 = 9")]


def test_all_problems_once_and_then_in_a_new_order():
    iterator = problem_batches(PROBLEMS, batch_size=3, seed=0)
    indices = np.concatenate([next(iterator) for _ in range(20)])
    epochs = indices.reshape(12, 5)
    assert all(sorted(epoch) == [0, 1, 2, 3, 4] for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 6


def test_one_problem_is_repeated():
    iterator = problem_batches(PROBLEMS[:1], batch_size=4, seed=0)
    for _ in range(3):
        assert next(iterator).tolist() == [0, 0, 0, 0]


def test_problem_order_is_a_function_of_the_seed():
    drawn = [next(problem_batches(PROBLEMS, batch_size=20, seed=seed)).tolist() for seed in (3, 3, 4)]
    assert drawn[0] == drawn[1] != drawn[2]


def test_problem_iterators_resume_where_they_stopped():
    iterator = problem_batches(PROBLEMS, batch_size=3, seed=0)
    for _ in range(4):
        next(iterator)
    state = iterator.get_state()
    expected = [next(iterator).tolist() for _ in range(6)]
    resumed = problem_batches(PROBLEMS, batch_size=3, seed=0)
    resumed.set_state(state)
    assert [next(resumed).tolist() for _ in range(6)] == expected


# Several processes, played one after the other.


def whole(iterators):
    """The batch that all processes together draw next, their shares in order."""
    parts = [next(iterator) for iterator in iterators]
    if isinstance(parts[0], dict):
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    return {"indices": np.concatenate(parts)}


def assert_equal(found, expected):
    assert found.keys() == expected.keys()
    for name in expected:
        np.testing.assert_array_equal(found[name], expected[name])


def assert_processes_agree(make, counts, steps):
    """A run that goes on with another number of processes every few steps draws what one process draws."""
    reference, position = make(ShardOptions(0, 1)), None
    for count in counts:
        iterators = [make(ShardOptions(index, count)) for index in range(count)]
        for iterator in iterators if position else ():
            iterator.set_state(position)
        for _ in range(steps):
            assert_equal(whole(iterators), whole([reference]))
        positions = [iterator.get_state() for iterator in iterators]
        assert all(other == positions[0] for other in positions)
        position = json.loads(json.dumps(positions[0]))


PROCESSES = st.lists(st.sampled_from([1, 2, 4]), min_size=1, max_size=4)


@settings(max_examples=20)
@given(PROCESSES, st.integers(1, 5), st.sampled_from([4, 8, 12]), st.integers(1, 9), st.integers(0, 2**31))
def test_problems_do_not_depend_on_the_number_of_processes(counts, steps, batch, problems, seed):
    assert_processes_agree(
        lambda shard: problem_batches((PROBLEMS * 2)[:problems], batch_size=batch, seed=seed, shard=shard),
        counts,
        steps,
    )


def check_examples(counts, steps, examples, seed, packed):
    shape = {"batch_size": 4, "sequence_length": 128, "packed": packed}
    assert_processes_agree(
        lambda shard: example_batches(SOURCE[:examples], TOKENIZER, **shape, seed=seed, shard=shard),
        counts,
        steps,
    )


@pytest.mark.parametrize("packed", [True, False])
def test_examples_do_not_depend_on_the_number_of_processes(packed):
    check_examples(counts=[1, 4, 2], steps=2, examples=9, seed=0, packed=packed)


@pytest.mark.long
@settings(max_examples=12)
@given(PROCESSES, st.integers(1, 4), st.integers(5, 23), st.integers(0, 9), st.booleans())
def test_no_examples_depend_on_the_number_of_processes(counts, steps, examples, seed, packed):
    check_examples(counts, steps, examples, seed, packed)


@pytest.mark.parametrize("packed", [True, False])
def test_a_batch_that_cannot_be_shared_equally_is_refused(packed):
    with pytest.raises(ConfigError, match="batch_size=4 cannot be divided among count=3 processes"):
        example_batches(
            SOURCE,
            TOKENIZER,
            batch_size=4,
            sequence_length=99,
            packed=packed,
            seed=0,
            shard=ShardOptions(0, 3),
        )
    with pytest.raises(ConfigError, match="batch_size=5 cannot be divided among count=2 processes"):
        problem_batches(PROBLEMS, batch_size=5, seed=0, shard=ShardOptions(1, 2))
