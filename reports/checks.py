"""What a report takes for granted of a record, said once, so that a damaged one gives one clear message."""

from __future__ import annotations

import zipfile
from typing import Any

import numpy as np

from cirbench.runs.record import Record
from cirbench.types import CirbenchError

__all__ = ["check_arrays", "check_queries", "check_record"]

KINDS: dict[str, type] = {
    "inputs": dict, "protocols": dict, "overrides": dict, "selection": dict, "environment": dict, "omitted": dict,
    "cost": dict, "notes": list, "command": str, "split": str, "variant": str,
}
OBJECTS = ("config", "data", "train", "evaluated")


def _damaged(record: Record, name: str, what: str) -> CirbenchError:
    return CirbenchError(f"{record.folder / name} is damaged: {what}. Delete {record.folder} and repeat the run.")


def _kind(value: Any) -> str:
    names = {"dict": "an object", "list": "a list", "str": "text", "NoneType": "null"}
    return names.get(type(value).__name__, "a number")


def check_record(record: Record) -> None:
    """The parts of `record.json` are of their kind. What may be absent may; what is there is right.

    Raises:
        CirbenchError: naming the part.
    """
    data = record.data

    def need(value: Any, kind: type, name: str) -> None:
        if not isinstance(value, kind):
            raise _damaged(record, "record.json", f"{name} is {_kind(value)}, not {_kind(kind())}")

    for name, kind in KINDS.items():
        if name in data:
            need(data[name], kind, name)
    inputs = data["inputs"]
    for name in OBJECTS:
        need(inputs.get(name, {}), dict, f"inputs.{name}")
    need(inputs.get("seed") or 0, int, "inputs.seed")
    need(inputs.get("evaluated", {}).get("data", {}), dict, "inputs.evaluated.data")
    for name, protocol in data["protocols"].items():
        need(protocol, dict, f"protocols.{name}")
        need(protocol.get("metrics"), dict, f"protocols.{name}.metrics")
        for part in ("queries", "gallery"):
            need(protocol.get(part), int, f"protocols.{name}.{part}")
        for metric, value in protocol["metrics"].items():
            if not isinstance(value, int | float | None):
                need(value, float, f"protocols.{name}.metrics.{metric}")


QUERY: dict[str, type] = {
    "id": str, "reference": str, "texts": list, "targets": list, "targets_total": int, "group": str, "extra": dict,
}


def check_queries(record: Record) -> None:
    """Every query has its parts, and every image of the gallery a name.

    Raises:
        CirbenchError: naming the first line that is no query.
    """
    for number, query in enumerate(record.queries, 1):
        wrong = [name for name, kind in QUERY.items() if not isinstance(query.get(name), kind)] \
            if isinstance(query, dict) else list(QUERY)
        if wrong or not all(isinstance(text, str) for name in ("texts", "targets") for text in query[name]):
            raise _damaged(record, "queries.jsonl", f"line {number} is no query: see {', '.join(wrong or ['texts'])}")
    if not record.queries:
        raise _damaged(record, "queries.jsonl", "it holds no query")
    if not all(isinstance(image_id, str) for image_id in record.gallery):
        raise _damaged(record, "gallery.json", "an image id is not text")


def check_arrays(record: Record, queries: int, gallery: int) -> None:
    """The arrays of a record fit its queries, its gallery and each other.

    Shapes are read from the heads of the arrays alone, which is quick; values only where they are places in a list.

    Raises:
        CirbenchError: naming the array.
    """
    shapes = _shapes(record)

    def need(name: str, *shape: int) -> None:
        if name not in shapes:
            raise _damaged(record, "rankings.npz", f"it lacks {name}")
        if len(shapes[name]) != len(shape) or any(w not in (-1, h) for w, h in zip(shape, shapes[name], strict=True)):
            wanted = " x ".join("any" if n < 0 else str(n) for n in shape)
            raise _damaged(record, "rankings.npz", f"{name} has shape {shapes[name]}, not {wanted}")

    for name, protocol in record.data["protocols"].items():
        form = protocol.get("form", "text")
        places = f"row_query/{form}"
        rows = shapes[places][0] if len(shapes.get(places, ())) == 1 else queries
        need(f"rank/{name}", rows)
        if places in shapes:
            need(places, rows)
            _within(record, places, queries)
        if f"top/{form}" in shapes:
            need(f"top/{form}", rows, -1)
            _within(record, f"top/{form}", gallery)
        for array in shapes:
            if array.startswith("value/") and array.split("/")[1] == name:
                need(array, rows)
    for array in shapes:
        if array.startswith("weight/"):
            need(array, queries)


def _within(record: Record, name: str, count: int) -> None:
    array = record.rankings[name]
    if array.size and not (array.dtype.kind in "iu" and -1 <= int(array.min()) and int(array.max()) < count):
        raise _damaged(record, "rankings.npz", f"{name} holds {array.max()}, but places end at {count - 1}")


def _shapes(record: Record) -> dict[str, tuple[int, ...]]:
    """Shape of each array."""
    out = {}
    path = record.rankings.path
    names = record.rankings.names  # a missing or broken file is told here
    try:
        with zipfile.ZipFile(path) as archive:
            for name in names:
                with archive.open(f"{name}.npy") as member:
                    version = np.lib.format.read_magic(member)
                    old = version == (1, 0)
                    read = np.lib.format.read_array_header_1_0 if old else np.lib.format.read_array_header_2_0
                    out[name] = read(member)[0]
    except (zipfile.BadZipFile, KeyError, OSError, ValueError, EOFError) as error:
        raise _damaged(record, "rankings.npz", str(error)) from None
    return out
