"""Phrases in captions, for any text."""

from hypothesis import given
from hypothesis import strategies as st

from cirbench.models import phrases

WORDS = st.lists(st.sampled_from(["a", "the", "red", "Cross", "at", "of", "put", "moon", ",", "-", "left", "blue-green", "$", "é"]))
TEXTS = st.one_of(WORDS.map(" ".join), st.text(max_size=40))


@given(TEXTS)
def test_runs_are_disjoint_in_order_and_hold_no_closed_word(text: str) -> None:
    at = 0
    for start, end in phrases.runs(text):
        assert at <= start < end
        words = [w.lower() for w in phrases._WORD.findall(text[start:end])]
        assert words and not set(words) & phrases._CLOSED and set(words) - phrases._DETERMINERS
        at = end


@given(TEXTS)
def test_every_other_word_stays(text: str) -> None:
    slotted = phrases.with_slots(text, "\0")
    assert slotted.count("\0") == len(phrases.runs(text)) + text.count("\0")
    left = [w.lower() for w in phrases._WORD.findall(slotted)]
    open_words = [w for w in left if w not in phrases._CLOSED | phrases._DETERMINERS]
    assert not open_words


@given(st.lists(WORDS.map(" ".join), max_size=8))
def test_each_common_phrase_has_captions_and_its_slot_in_them(captions: list[str]) -> None:
    names = phrases.common_phrases(captions, 5)
    for name, said in zip(names, phrases.captions_with(names, captions, "\0", 3), strict=True):
        assert 1 <= len(said) <= 3
        for caption, slotted in said:
            assert caption in captions and "\0" in slotted
            back = " ".join(phrases._WORD.findall(slotted.replace("\0", f" {name} ").lower()))
            assert back == " ".join(phrases._WORD.findall(caption.lower()))


def test_most_frequent_first_then_by_name() -> None:
    assert phrases.common_phrases(["a moon", "the moon", "a ring", "the cross"], 2) == ["moon", "cross"]
    assert phrases.other_words(["put a moon at the left", "put a ring into it", "a moon"], 3) == ["put", "at", "into it"]
