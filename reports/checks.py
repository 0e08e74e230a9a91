"""What reports assume of the files of a run, checked in one place: damage gives one message."""

from __future__ import annotations

from collections.abc import Sequence

from cirbench.runs.record import Record
from cirbench.types import CirbenchError

__all__ = ["check_arrays", "check_queries", "check_runs"]

#: Kinds of numpy types that whole numbers and any numbers may have.
WHOLE, NUMBERS = "iu", "iuf"

def _damaged(record: Record, name: str, what: str) -> CirbenchError:
    return CirbenchError(f"{record.folder / name} is damaged: {what}. Delete {record.folder} and repeat the run.")


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


def check_arrays(record: Record, queries: int, gallery: int) -> dict[str, int]:
    """The arrays of a record fit its queries, its gallery and each other.

    Shapes and types are read from the heads of the arrays alone, which is quick; values only where they are positions
    in a list.

    Args:
        record: whose arrays.
        queries: B, how many queries it has.
        gallery: N, how many images.

    Returns:
        How many rows each protocol has.

    Raises:
        CirbenchError: naming the array.
    """
    heads, out = record.rankings.heads(), {}

    def need(name: str, kinds: str, *shape: int) -> None:
        if name not in heads:
            raise _damaged(record, "rankings.npz", f"it lacks {name}")
        have, dtype = heads[name]
        if len(have) != len(shape) or any(w not in (-1, h) for w, h in zip(shape, have, strict=True)):
            wanted = " x ".join("any" if n < 0 else str(n) for n in shape)
            raise _damaged(record, "rankings.npz", f"{name} has shape {have}, not {wanted}")
        if dtype.kind not in kinds:
            wanted = "whole numbers" if kinds == WHOLE else "numbers"
            raise _damaged(record, "rankings.npz", f"{name} holds {dtype}, not {wanted}")

    for name, protocol in record.run.protocols.items():
        place = f"row_query/{protocol.form}"
        rows = out[name] = heads[place][0][0] if place in heads and len(heads[place][0]) == 1 else queries
        need(f"rank/{name}", WHOLE, rows)
        need(f"ties/{name}", WHOLE, rows)
        if place in heads:
            need(place, WHOLE, rows)
            _within(record, place, 0, queries)
        if f"top/{protocol.form}" in heads:
            need(f"top/{protocol.form}", WHOLE, rows, -1)
            need(f"top_score/{protocol.form}", NUMBERS, *heads[f"top/{protocol.form}"][0])
            _within(record, f"top/{protocol.form}", -1, gallery)
        for array in heads:
            if array.startswith("value/") and array.split("/")[1] == name:
                need(array, NUMBERS, rows)
    for array in heads:
        if array.startswith("weight/"):
            need(array, NUMBERS, queries)
    return out


def check_runs(records: Sequence[Record]) -> None:
    """Runs that answered the same queries over the same gallery: each is whole, and all have the same rows.

    Raises:
        CirbenchError: naming the run and the file.
    """
    first = records[0]
    check_queries(first)
    known: dict[str, int] = {}
    for record in records:
        for name, rows in check_arrays(record, len(first.queries), len(first.gallery)).items():
            if known.setdefault(name, rows) != rows:
                raise _damaged(record, "rankings.npz", f"rank/{name} has {rows} rows, {known[name]} in {first.name}")


def _within(record: Record, name: str, least: int, count: int) -> None:
    array = record.rankings[name]
    if not array.size:
        return
    low, high = int(array.min()), int(array.max())
    if low < least or high >= count:
        raise _damaged(
            record, "rankings.npz", f"{name} holds {high if high >= count else low}, but places end at {count - 1}"
        )
