"""JSON of files that others wrote: every text gives a value or a ValueError, whatever it holds.

Python's own parser raises further errors for numbers of thousands of digits and for deep nesting, and accepts texts
that no UTF-8 file can hold, which then fail wherever they are written.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from typing import Any

__all__ = ["check_texts", "depth", "odd_text", "parse"]

#: Digits of a whole number; longer ones are beyond a float.
DIGITS = 300
#: Escapes of zero characters and of halves of characters; whole characters beyond 65,535 are written so, too.
_ODD = re.compile(r"\\u(?:[dD][89a-fA-F]|0000)")
_HALF = re.compile("[\ud800-\udfff]")


def _whole(text: str) -> int:
    if len(text) > DIGITS:
        raise ValueError(f"the number {text[:12]}... has {len(text)} digits")
    return int(text)


def _real(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise ValueError(f"the number {text[:40]} is too large")
    return value


def parse(
    text: str, constant: Callable[[str], Any] | None = None,
    pairs: Callable[[list[tuple[str, Any]]], Any] | None = None,
) -> Any:
    """The value of a JSON text.

    Args:
        text: JSON.
        constant: called for NaN, Infinity and -Infinity; without it they are values as in `json.loads`.
        pairs: makes the value of an object from its pairs.

    Raises:
        ValueError: not JSON (then a `json.JSONDecodeError`), a number beyond a float, or too deep nesting.
    """
    try:
        return json.loads(text, parse_int=_whole, parse_float=_real, parse_constant=constant, object_pairs_hook=pairs)
    except RecursionError:
        raise ValueError("lists and objects are nested too deeply") from None


def odd_text(text: str) -> str:
    """Why a string can stand in no UTF-8 file or path, "" where it can."""
    if "\0" in text:
        return f"the text {text[:40]!r} holds a zero character"
    if not text.isascii() and _HALF.search(text):
        return f"the text {text[:40]!r} holds half of a character, which is not UTF-8"
    return ""


def depth(value: Any) -> int:
    """How deep lists and objects are nested; 0 for anything else."""
    deepest, todo = 0, [(value, 0)]
    while todo:
        found, level = todo.pop()
        if isinstance(found, dict | list):
            deepest = max(deepest, level + 1)
            todo += [(inner, level + 1) for inner in (found.values() if isinstance(found, dict) else found)]
    return deepest


def check_texts(text: str, value: Any) -> None:
    """Whether the strings of a parsed JSON text can stand in a file, in a path and in a key.

    Raises:
        ValueError: one holds a zero character, or half of a character.
    """
    if not _ODD.search(text):
        return
    todo = [value]
    while todo:
        found = todo.pop()
        if isinstance(found, str):
            if why := odd_text(found):
                raise ValueError(why)
        elif isinstance(found, dict):
            todo += [*found, *found.values()]
        elif isinstance(found, list):
            todo += found
