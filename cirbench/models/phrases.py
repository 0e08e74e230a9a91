"""Phrases in captions: runs of words that name things, found without a tagger, and slots in their place.

LinCIR takes the maximal runs of nouns, proper nouns, adjectives and determiners (a tagger finds them); SEARLE and BASIC
lists of names of things. Here a run is a maximal sequence of words outside a closed list: prepositions, conjunctions,
pronouns, auxiliaries, and verbs and adverbs with which a change is asked for. Determiners belong to a run and are none
by themselves. A sign between two words ends a run.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence

__all__ = ["captions_with", "common_phrases", "other_words", "runs", "with_slots"]

_DETERMINERS = frozenset("a an the this that these those some any each every all both no".split())
_CLOSED = frozenset(
    # prepositions and conjunctions
    "about above across after against along among and around as at before behind below beneath beside between "
    "beyond but by down during except for from if in inside into like near nor of off on onto or out outside over "
    "per than through to toward towards under until up upon via while with within without "
    # pronouns and question words
    "he her hers him his i it its me mine my our ours she their theirs them they us we what when where which who "
    "whose why how you your yours one there here nothing everything something anything "
    # auxiliaries
    "am are be been being can could did do does doing done had has have having is may might must not shall should "
    "was were will would "
    # how a change is asked for
    "add again also another away change changed changes clear delete different instead keep make makes making "
    "more most less move moved only paint place placed put remove removed replace replaced same shift show shown "
    "start take taken turn turned very too".split()
)
_WORD = re.compile(r"[^\W_]+(?:['’-][^\W_]+)*")


def runs(caption: str) -> list[tuple[int, int]]:
    """(start, end) of every phrase in a text.

    Example:
        >>> text = "only a small cross at the left and a ring"
        >>> [text[start:end] for start, end in runs(text)]
        ['a small cross', 'the left', 'a ring']
    """
    found: list[tuple[int, int]] = []
    run: list[re.Match[str]] = []

    def close() -> None:
        if any(word[0].lower() not in _DETERMINERS for word in run):
            found.append((run[0].start(), run[-1].end()))
        run.clear()

    for word in _WORD.finditer(caption):
        if run and caption[run[-1].end() : word.start()].strip():
            close()
        if word[0].lower() in _CLOSED:
            close()
        else:
            run.append(word)
    close()
    return found


def with_slots(caption: str, slot: str) -> str:
    """The text with every phrase replaced by a slot.

    Example:
        >>> with_slots("a cat on a mat", "$")
        '$ on $'
    """
    for start, end in reversed(runs(caption)):
        caption = f"{caption[:start]}{slot}{caption[end:]}"
    return caption


def _cores(text: str) -> list[tuple[int, int, str]]:
    """(start, end, words in lower case) of every phrase, without the determiners that it begins with."""
    out = []
    for start, end in runs(text):
        words = list(_WORD.finditer(text, start, end))
        while words[0][0].lower() in _DETERMINERS:
            words.pop(0)
        out.append((words[0].start(), end, " ".join(word[0].lower() for word in words)))
    return out


def common_phrases(captions: Iterable[str], most: int) -> list[str]:
    """The most frequent phrases, without their determiners; equal counts in alphabetical order."""
    counts = Counter(words for caption in captions for _, _, words in _cores(caption))
    return sorted(counts, key=lambda phrase: (-counts[phrase], phrase))[:most]


def other_words(texts: Iterable[str], most: int) -> list[str]:
    """The most frequent stretches of words between phrases: how things are said, not what is named."""
    counts: Counter[str] = Counter()
    for text in texts:
        ends = [0, *(at for pair in runs(text) for at in pair), len(text)]
        for start, end in zip(ends[::2], ends[1::2], strict=True):
            counts[" ".join(_WORD.findall(text[start:end].lower()))] += 1
    counts.pop("", None)
    return sorted(counts, key=lambda words: (-counts[words], words))[:most]


def captions_with(phrases: Sequence[str], captions: Iterable[str], slot: str, most: int) -> list[list[tuple[str, str]]]:
    """Up to `most` different captions of each phrase: (caption, the same with slots in the phrase's place).

    A phrase counts where it is a run of its own; determiners before it stay.

    Example:
        >>> captions_with(["cat"], ["a cat and the cat", "a cat flap"], "$", 5)
        [[('a cat and the cat', 'a $ and the $')]]
    """
    numbers = {phrase: n for n, phrase in enumerate(phrases)}
    out: list[dict[str, str]] = [{} for _ in phrases]
    for caption in captions:
        cores = [core for core in _cores(caption) if core[2] in numbers]
        for phrase in dict.fromkeys(words for _, _, words in cores):
            found = out[numbers[phrase]]
            if len(found) < most:
                slotted = caption
                for start, end, words in reversed(cores):
                    if words == phrase:
                        slotted = f"{slotted[:start]}{slot}{slotted[end:]}"
                found[caption] = slotted
    return [list(found.items()) for found in out]
