"""Checks of single keys of a sweep file; every error names the file and the key."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from cirbench.json_text import odd_text
from cirbench.settings import unknown
from cirbench.studies.design import Range
from cirbench.types import CirbenchError

__all__ = ["SCOPES", "Checker"]

SCOPES = ("method", "data", "train")
RANGE = ("low", "high", "log", "step")
#: No number of a sweep is as large.
BEYOND = 1e300


class Checker:
    """Errors that name the file and the key."""

    def __init__(self, file: str) -> None:
        self.file = file

    def fail(self, key: str, message: str) -> CirbenchError:
        """The error for a key."""
        return CirbenchError(f"{self.file}, key {key}: {message}")

    def keys(self, table: Mapping[str, Any], where: str, allowed: Sequence[str]) -> None:
        """Refuse unknown keys."""
        for key in table:
            if key not in allowed:
                raise self.fail(f"{where}{key}", str(unknown("key", key, allowed)))

    def plain(self, value: Any, where: str = "") -> None:
        """Refuse what no key of a sweep can mean: dates, NaN, numbers of hundreds of digits, texts with a zero."""
        if isinstance(value, dict | list):
            for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
                self.plain(key, f"{where} ({key!r})" if where else repr(key))
                self.plain(inner, f"{where}.{key}" if where else str(key))
        elif isinstance(value, str):
            if why := odd_text(value):
                raise self.fail(where, f"{why}.")
        elif not isinstance(value, int | float):  # dates and times; true and false are whole numbers
            raise self.fail(where, f"{value} is a date or a time, which no key of a sweep takes.")
        elif not abs(value) < BEYOND:
            raise self.fail(where, "the number is not finite, or larger than any setting.")

    def get(
        self, table: Mapping[str, Any], key: str, kind: type | tuple[type, ...], default: Any, where: str = ""
    ) -> Any:
        """The value of a key, of a wanted type."""
        value = table.get(key, default)
        kinds = kind if isinstance(kind, tuple) else (kind,)
        if value is not None and (not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds)):
            wanted = " or ".join(k.__name__ for k in kinds)
            raise self.fail(f"{where}{key}", f"{value!r} is not of the type {wanted}.")
        return value

    def scoped(self, table: Any, where: str) -> dict[str, Any]:
        """`{"method.x": ...}`, written so or as `[fixed.method] x = ...`."""
        if not isinstance(table, dict):
            raise self.fail(where, f"{table!r} is not a table of fields, such as {{\"method.dropout\" = 0.2}}.")
        out: dict[str, Any] = {}
        for key, value in table.items():
            if key in SCOPES and isinstance(value, dict):
                out.update({f"{key}.{name}": v for name, v in value.items()})
            elif key.partition(".")[0] in SCOPES and "." in key:
                out[key] = value
            else:
                raise self.fail(f"{where}.{key}", f"fields are named {', '.join(f'{s}.FIELD' for s in SCOPES)}.")
        return out

    def axis(self, key: str, value: Any, sampler: str) -> list[Any] | Range:
        """What a field varies over."""
        if isinstance(value, list):
            if not value:
                raise self.fail(key, "the list of values is empty, so there is nothing to run.")
            if len({repr(v) for v in value}) < len(value):
                raise self.fail(key, f"{value!r} holds a value twice. Keep one.")
            if not all(isinstance(v, str | int | float | bool) for v in value):
                raise self.fail(key, f"{value!r}: values must be strings, numbers, true or false.")
            return list(value)
        if not isinstance(value, dict):
            raise self.fail(key, f"{value!r} is neither a list of values nor a range {{low = ..., high = ...}}.")
        self.keys(value, f"{key}.", RANGE)
        for end in ("low", "high"):
            if end not in value:
                raise self.fail(f"{key}.{end}", "a range needs low and high.")
            self.get(value, end, (int, float), None, f"{key}.")
        log = self.get(value, "log", bool, False, f"{key}.")
        step = self.get(value, "step", (int, float), None, f"{key}.")
        low, high = value["low"], value["high"]
        if not low < high or not math.isfinite(high - low):
            raise self.fail(key, f"the range from {low} to {high} is empty; low must be below high.")
        if log and (low <= 0 or step is not None):
            raise self.fail(key, "a logarithmic range needs low > 0 and takes no step.")
        if step is not None and not 0 < step <= high - low:
            raise self.fail(f"{key}.step", f"step must be > 0 and <= {high - low} (high - low), got {step}.")
        if sampler == "grid" and step is None:
            raise self.fail(key, "a grid needs a list of values, or a range with a step.")
        return Range(low, high, log, step)
