"""Files for the test servers of CIRR and CIRCO: written from a run, and checked before they are sent. Offline."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cirbench.data.reading import read_json
from cirbench.files import replacing
from cirbench.settings import unknown
from cirbench.types import CirbenchError, Split

#: The CIRR server refuses larger files.
LIMIT = 5 * 1024 * 1024
DEPTH = {"recall": 50, "recall_subset": 3, "circo": 50}


@dataclass(frozen=True)
class Checked:
    """A file that passed.

    Attributes:
        kind: `recall`, `recall_subset` or `circo`.
        queries: how many it ranks.
        known: whether ids were compared with the annotations.
    """

    path: Path
    kind: str
    queries: int
    known: bool


def _fail(path: Path, message: str) -> CirbenchError:
    return CirbenchError(f"{path}: {message} The server would refuse it or score it wrongly.")


def _kind(path: Path, data: dict[str, Any]) -> str:
    if "version" not in data and "metric" not in data:
        return "circo"
    if data.get("version") != "rc2":
        raise _fail(path, f"version is {data.get('version')!r}, expected 'rc2'.")
    if data.get("metric") not in ("recall", "recall_subset"):
        raise unknown(f"metric in {path}", str(data.get("metric")), ("recall", "recall_subset"))
    return str(data["metric"])


def _keys(path: Path, kind: str, rows: dict[str, Any], split: Split | None) -> None:
    wanted = [q.id for q in split.queries] if split is not None else None
    if kind == "circo" and wanted is None:
        wanted = [str(n) for n in range(800)]
    if wanted is None:
        odd = [k for k in rows if not k.isdigit()]
        if odd:
            raise _fail(path, f"the key {odd[0]!r} is not a pairid.")
        if len(rows) != 4148:
            raise _fail(path, f"{len(rows)} queries, expected the 4148 of test1.")
        return
    missing, extra = sorted(set(wanted) - set(rows)), sorted(set(rows) - set(wanted))
    if missing:
        raise _fail(path, f"{len(missing)} queries are missing: {', '.join(missing[:5])}.")
    if extra:
        raise _fail(path, f"{len(extra)} keys are not queries of the split: {', '.join(extra[:5])}.")


def _row(path: Path, kind: str, key: str, value: Any) -> list[str]:
    wanted = int if kind == "circo" else str
    if not isinstance(value, list):
        raise _fail(path, f"query {key!r} has no list.")
    if any(not isinstance(v, wanted) or isinstance(v, bool) for v in value):
        what = "whole numbers" if kind == "circo" else "image names"
        raise _fail(path, f"query {key!r} must hold only {what}.")
    if len(value) != DEPTH[kind]:
        raise _fail(path, f"query {key!r} has {len(value)} images, expected {DEPTH[kind]}.")
    if len(set(value)) != len(value):
        raise _fail(path, f"query {key!r} lists an image twice.")
    if kind != "circo":
        ending = next((v for v in value if v.endswith((".png", ".jpg"))), None)
        if ending:
            raise _fail(path, f"query {key!r} names {ending!r}; names must have no extension.")
    return [str(v) for v in value]


def validate(path: Path, split: Split | None = None) -> Checked:
    """Check a file for a server: version, metric, keys, depth, duplicates, reference absent, unknown ids, size.

    Args:
        path: the file.
        split: the test split, if its annotations are at hand; ids are then compared with it.

    Raises:
        CirbenchError: the first error found.
    """
    data = read_json(path)
    if not isinstance(data, dict):
        raise _fail(path, "expected one JSON object.")
    kind = _kind(path, data)
    if kind != "circo" and path.stat().st_size > LIMIT:
        raise _fail(path, f"{path.stat().st_size / 1e6:.1f} MB, but at most 5 MiB are taken. Write it without indent.")
    rows = {k: v for k, v in data.items() if k not in ("version", "metric")}
    _keys(path, kind, rows, split)
    lists = {key: _row(path, kind, key, value) for key, value in rows.items()}
    if split is not None:
        galleries = split.galleries.get("all", {}).get("", ())
        known = set(galleries)
        for query in split.queries:
            names = lists[query.id]
            members = set(query.extra.get("members", ()))
            if kind != "circo" and query.reference in names:
                raise _fail(path, f"query {query.id!r} lists its own reference {query.reference!r}.")
            allowed = members if kind == "recall_subset" else known
            bad = [n for n in names if n not in allowed] if allowed else []
            if bad:
                where = "its subset" if kind == "recall_subset" else "the gallery"
                raise _fail(path, f"query {query.id!r} names {bad[0]!r}, which is not in {where}.")
    return Checked(path, kind, len(lists), split is not None)


def _write(path: Path, data: dict[str, Any]) -> Path:
    with replacing(path) as file:
        file.write(json.dumps(data, separators=(",", ":")).encode())
    return path


def write_cirr(
    folder: Path, split: Split, ranked: Sequence[Sequence[str]], subset: Sequence[Sequence[str]]
) -> list[Path]:
    """CIRR's two files from full rankings without the references.

    Args:
        folder: to write to.
        split: test1.
        ranked: per query at least 50 names, best first.
        subset: per query the five other members, best first.
    """
    head = {"version": "rc2"}
    out = []
    for metric, rows in (("recall", ranked), ("recall_subset", subset)):
        body = {q.id: list(names)[: DEPTH[metric]] for q, names in zip(split.queries, rows, strict=True)}
        path = _write(folder / f"cirr_{split.name}_{metric}.json", {**head, "metric": metric, **body})
        out.append(path)
    return out


def write_circo(folder: Path, split: Split, ranked: Sequence[Sequence[str]]) -> list[Path]:
    """CIRCO's file: whole numbers, 50 a query."""
    body = {q.id: [int(n) for n in list(names)[:50]] for q, names in zip(split.queries, ranked, strict=True)}
    return [_write(folder / f"circo_{split.name}.json", body)]
