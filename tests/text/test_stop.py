"""Stop strings: found wherever they are, however they are spread over tokens and over calls."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sdistill.settings import ConfigError
from sdistill.text.stop import StopStrings


class Pieces:
    """Tokens that are pieces of text of several characters, one of them of none."""

    vocab_size, pad_id, bos_id, eos_id, stop_ids = 8, 0, None, 7, (7,)
    pieces = ("", "a", "b", "ab", "ba", "é", "aéb", "")

    def encode(self, text):
        return [self.pieces.index(character) for character in text if character in self.pieces]

    def decode(self, ids):
        return "".join(self.pieces[i] for i in ids)


def whole(ids, strings):
    """The shortest beginning with one of the strings in it."""
    texts = ((n, Pieces().decode(ids[:n])) for n in range(1, len(ids) + 1))
    return next((n for n, text in texts if any(string in text for string in strings)), None)


@given(st.lists(st.integers(1, 6), max_size=12), st.data())
def test_a_response_ends_with_the_token_that_completes_a_string(ids, data):
    strings = tuple(data.draw(st.lists(st.sampled_from(["aba", "bb", "é", "aabb"]), min_size=1, max_size=2)))
    stop, expected = StopStrings(Pieces(), strings), whole(ids, strings)
    seen = 0
    while seen < len(ids):
        step = data.draw(st.integers(1, len(ids) - seen))
        kept = stop(ids[: seen + step], seen)
        if expected is not None and expected <= seen + step:
            assert kept == expected
            return
        assert kept is None
        seen += step
    assert expected is None


@pytest.mark.parametrize("string", ["", "xyz"])
def test_a_string_without_tokens_is_refused(string):
    with pytest.raises(ConfigError, match=f"stop string {string!r} has no tokens"):
        StopStrings(Pieces(), ("ab", string))
