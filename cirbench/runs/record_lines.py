"""JSON of the files beside record.json: parsed strictly, and checked line by line (docs/records.md)."""

from __future__ import annotations

import math
from typing import Any

from cirbench import json_text
from cirbench.runs.record_types import Fields, is_number

__all__ = ["check_training", "is_evidence", "parse_json"]


def parse_json(text: str) -> Any:
    """Parse JSON strictly.

    Raises:
        ValueError: not JSON; NaN and infinity, which Python would accept, are named with their path.
    """
    odd: list[str] = []

    def refuse(name: str) -> float:
        odd.append(name)
        return math.nan

    value = json_text.parse(text, refuse)
    if odd:
        raise ValueError(f"{_place_of_nan(value) or 'it'} is {odd[0]}, which is not JSON")
    return value


def _place_of_nan(value: Any) -> str | None:
    """Path of the first NaN in a JSON value, None without one."""
    todo = [("", value)]
    while todo:
        place, found = todo.pop()
        if isinstance(found, float) and math.isnan(found):
            return place
        entries = found.items() if isinstance(found, dict) else enumerate(found) if isinstance(found, list) else ()
        todo += [(f"{place}.{name}" if place else str(name), entry) for name, entry in entries][::-1]
    return None


def check_training(entry: dict[str, Any]) -> None:
    """A line of `training.jsonl`: a step, an evaluation, or bounds on information.

    Raises:
        ValueError: naming the first field that is missing or of a wrong type.
    """
    o = Fields(entry)
    o.whole("epoch")
    o.whole("pairs", 0)
    for name in ("losses", "bound"):
        if name in entry:
            o.numbers(name)
    if "select" in entry:
        o.numbers("select") if isinstance(entry["select"], dict) else o.number("select", None)


def is_evidence(query: Any) -> bool:
    """Whether an entry of `explain.json` has [word, weight] pairs and maps of h rows of w numbers."""
    if not isinstance(query, dict):
        return False
    words, regions = query.get("words", []), query.get("regions", {})
    if not isinstance(words, list) or not isinstance(regions, dict):
        return False
    maps = [region for region in regions.values() if isinstance(region, list) and region]
    return (
        all(isinstance(w, list) and len(w) == 2 and isinstance(w[0], str) and is_number(w[1]) for w in words)
        and len(maps) == len(regions) and all(
            isinstance(row, list) and row and len(row) == len(region[0]) and all(map(is_number, row))
            for region in maps for row in region
        )
    )
