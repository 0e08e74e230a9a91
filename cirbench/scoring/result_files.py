"""Reads results produced elsewhere, embeddings (.npz) or ranked lists (.json, .jsonl), and matches them to queries.

What a file does not support is listed under `omitted`, never guessed: a text form without rows, a list too short for a
cut-off, subset recall from a list that ends before it has enough of the subset.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cirbench.data.arrays import read_member
from cirbench.data.image_files import nfc
from cirbench.data.reading import kind, read_json, read_jsonl
from cirbench.scoring import metrics
from cirbench.settings import nearest, unknown
from cirbench.types import CirbenchError, Dataset, Protocol, Query, Split

#: npz keys of an embeddings file.
KEYS = ("query_ids", "queries", "image_ids", "gallery")


@dataclass(frozen=True)
class Embeddings:
    """One npz: `queries` (B, D) and `gallery` (N, D) with the row of each id."""

    path: Path
    rows: dict[str, int]
    queries: np.ndarray
    places: dict[str, int]
    gallery: np.ndarray


@dataclass(frozen=True)
class Lists:
    """Ranked lists: query row id -> image ids, best first; `subset` if the file ranks only subsets."""

    path: Path
    lists: dict[str, tuple[str, ...]]
    subset: bool = False


# ------------------------------------------------------------------------------------- reading


def _ids(path: Path, key: str, values: np.ndarray, count: int) -> dict[str, int]:
    if values.ndim != 1 or len(values) != count:
        raise CirbenchError(f"{path}: {key} has shape {values.shape}, but there are {count} embeddings; one id each.")
    if values.dtype.kind not in "USiu":
        raise CirbenchError(f"{path}: {key} is of type {values.dtype}; ids must be strings or whole numbers.")
    if values.dtype.kind == "U":
        # numpy keeps any number as a character, and Python's strings of such are broken.
        codes = np.ascontiguousarray(values.astype(values.dtype.newbyteorder("="))).view(np.uint32)
        if ((codes > 0x10FFFF) | ((codes >= 0xD800) & (codes < 0xE000))).any():
            raise CirbenchError(f"{path}: {key} holds an id that is no text.")
    try:
        names = [nfc(v.decode() if isinstance(v, bytes) else str(v)) for v in values.tolist()]
    except UnicodeDecodeError:
        raise CirbenchError(f"{path}: {key} holds an id that is not UTF-8.") from None
    out = {name: n for n, name in enumerate(names)}
    if len(out) != len(names):
        seen: set[str] = set()
        twice = next(n for n in names if n in seen or seen.add(n))  # type: ignore[func-returns-value]
        raise CirbenchError(f"{path}: {key} holds {twice!r} twice; each row needs its own id.")
    return out


def _matrix(path: Path, key: str, values: np.ndarray) -> np.ndarray:
    if values.dtype.kind != "f":
        raise CirbenchError(f"{path}: {key} is of type {values.dtype}; a float type is expected.")
    if values.ndim != 2 or 0 in values.shape:
        raise CirbenchError(f"{path}: {key} has shape {values.shape}; expected (rows, dimensions), not empty.")
    bad = np.flatnonzero(~np.isfinite(values).all(1))
    if len(bad):
        raise CirbenchError(f"{path}: {key} holds NaN or infinite values in {len(bad)} rows, first in row {bad[0]}.")
    # Half precision becomes float32 before any product; double stays double.
    return values if values.dtype == np.float64 else values.astype(np.float32, copy=False)


def read_embeddings(path: Path) -> Embeddings:
    """An npz of embeddings, checked.

    Raises:
        CirbenchError: not an npz, a key missing, wrong shapes or types, repeated ids, or values that are not finite.
    """
    if not path.is_file():
        raise CirbenchError(f"{path}: no such file.")
    try:
        with path.open("rb") as file:
            bare = file.read(6) == b"\x93NUMPY"
        if bare:
            raise CirbenchError(f"{path} holds one bare array; an .npz with {', '.join(KEYS)} is expected.")
        with zipfile.ZipFile(path) as archive:
            names = [name.removesuffix(".npy") for name in archive.namelist()]
            for key in KEYS:
                if f"{key}.npy" not in archive.namelist():
                    near = nearest(key, names)
                    guess = f" Did you mean to rename {near!r}?" if near else ""
                    raise CirbenchError(f"{path}: no key {key!r} (it has {', '.join(names) or 'none'}).{guess}")
            data = {key: read_member(archive, key) for key in KEYS}
    except CirbenchError:
        raise
    except ValueError as error:
        raise CirbenchError(f"{path} is not an .npz of plain arrays: {error}.") from None
    except Exception as error:
        raise CirbenchError(f"{path} is not an .npz that can be read ({type(error).__name__}: {error}).") from None
    queries, gallery = _matrix(path, "queries", data["queries"]), _matrix(path, "gallery", data["gallery"])
    if queries.shape[1] != gallery.shape[1]:
        raise CirbenchError(
            f"{path}: queries have {queries.shape[1]} dimensions and gallery has {gallery.shape[1]}; they must agree."
        )
    wide = np.result_type(queries, gallery)
    return Embeddings(
        path, _ids(path, "query_ids", data["query_ids"], len(queries)), queries.astype(wide, copy=False),
        _ids(path, "image_ids", data["image_ids"], len(gallery)), gallery.astype(wide, copy=False),
    )


def _list(path: Path, key: str, value: Any) -> tuple[str, ...]:
    # By exact type, so that true and false are refused, and quick: there may be millions of ids.
    if not isinstance(value, list) or not {type(i) for i in value} <= {str, int}:
        raise CirbenchError(f"{path}: the ranking of query {key!r} is not a list of image ids.")
    names = tuple(nfc(str(item)) for item in value)
    if len(set(names)) != len(names):
        twice = next(n for i, n in enumerate(names) if n in names[:i])
        raise CirbenchError(f"{path}: the ranking of query {key!r} holds the image {twice!r} twice.")
    if not names:
        raise CirbenchError(f"{path}: the ranking of query {key!r} is empty.")
    return names


def read_rankings(path: Path, dataset: str = "") -> Lists:
    """Ranked lists from JSON, JSON lines, or the servers' own formats.

    Raises:
        CirbenchError: another kind of file, repeated queries or images, a server file of another version or metric.
    """
    found: dict[str, Any] = {}
    if path.suffix == ".jsonl":
        for number, entry in read_jsonl(path):
            for key, value in entry.items():
                if key in found:
                    raise CirbenchError(f"{path}, line {number}: query {key!r} occurs twice.")
                found[key] = value
    else:
        value = read_json(path)
        if not isinstance(value, dict):
            raise CirbenchError(f"{path}: an object {{query id: [image ids]}} is expected, found {kind(value)}.")
        found = value
    subset = False
    if dataset == "cirr" and ("version" in found or "metric" in found):
        if found.get("version") != "rc2":
            raise CirbenchError(f"{path}: version is {found.get('version')!r}, expected 'rc2'.")
        if found.get("metric") not in ("recall", "recall_subset"):
            raise unknown(f"metric in {path}", str(found.get("metric")), ("recall", "recall_subset"))
        subset = found["metric"] == "recall_subset"
        found = {k: v for k, v in found.items() if k not in ("version", "metric")}
    if not found:
        raise CirbenchError(f"{path} holds no ranking: it needs one list per query.")
    lists = {nfc(str(k)): _list(path, k, v) for k, v in found.items()}
    if len(lists) != len(found):
        raise CirbenchError(f"{path}: two query ids differ only in how accents are encoded. Rename one of them.")
    return Lists(path, lists, subset)


# ------------------------------------------------------------------------------------- rows and their names


def names_of_rows(dataset: Dataset, query: Query, form: str) -> list[list[list[str]]]:
    """For each row of a form its possible namings: each is a list of row ids whose embeddings are averaged.

    The default form's row is the query id itself; another form's is `id#form`, or `id#form.0`, `id#form.1` where a form
    has several rows. A row may also be composed of single rows of other forms with the same strings.
    """
    default = dataset.protocols[0].form
    single: dict[str, list[str]] = {}
    for other in dict.fromkeys(p.form for p in dataset.protocols):
        rows = dataset.forms[other](query)
        if len(rows) == 1 and len(rows[0]) == 1:
            single.setdefault(rows[0][0], []).extend([query.id] if other == default else [])
            single[rows[0][0]].append(f"{query.id}#{other}")
    rows = dataset.forms[form](query)
    out = []
    for n, row in enumerate(rows):
        ways = [[f"{query.id}#{form}.{n}"]]
        if len(rows) == 1:
            ways.insert(0, [f"{query.id}#{form}"])
            if form == default:
                ways.insert(0, [query.id])
        if all(text in single for text in row):
            most = max(len(single[text]) for text in row)
            ways += [[single[text][min(i, len(single[text]) - 1)] for text in row] for i in range(most)]
        out.append(ways)
    return out


def first_way(ways: Sequence[Sequence[str]], have: Container[str], most: int = 10**9) -> list[str] | None:
    """The first naming whose row ids are all in the file."""
    return next((list(w) for w in ways if len(w) <= most and all(i in have for i in w)), None)


def listing(names: Sequence[str]) -> str:
    """The first few names, and the number of others."""
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")


def query_of(row: str, known: Container[str]) -> tuple[str, str]:
    """(query id, text form) of a row id; the form is "" for the default one. An id may itself hold a `#`.

    Example:
        >>> query_of("shoe#0", {"shoe#0"}), query_of("shoe#0#each.1", {"shoe#0"}), query_of("shoe#0", {"shoe"})
        (('shoe#0', ''), ('shoe#0', 'each'), ('shoe', '0'))
    """
    if row in known:
        return row, ""
    query, _, form = row.rpartition("#")
    return (query, form.partition(".")[0]) if query in known else (row.partition("#")[0], "")


def check_query_ids(path: Path, dataset: Dataset, split: Split, ids: Iterable[str]) -> None:
    """Raise for row ids whose query or form does not exist."""
    known = {q.id for q in split.queries}
    forms = {p.form for p in dataset.protocols}
    owners = {i: query_of(i, known) for i in ids}
    bad = [i for i, (query, _) in owners.items() if query not in known]
    if bad:
        near = nearest(owners[bad[0]][0], list(known)[:5000])
        raise CirbenchError(
            f"{path}: {len(bad)} query ids are not in {dataset.name}/{split.name}: {listing(bad)}. "
            f"Ids look like {split.queries[0].id!r}{f'; the nearest is {near!r}' if near else ''}. Another split?"
        )
    for i, (_, form) in owners.items():
        if form and form not in forms:
            raise unknown(f"text form in the query id {i!r} of {path}", form, sorted(forms))


def rows_present(
    path: Path, dataset: Dataset, split: Split, have: Iterable[str], form: str, most: int = 10**9
) -> tuple[list[tuple[int, list[str]]], list[str]]:
    """(query index, row ids averaged) of every row of a form, and the groups that are entirely absent.

    Returns no rows where the form is not in the file at all.

    Raises:
        CirbenchError: some queries of a group have the form and others do not.
    """
    held = set(have)
    known = {q.id for q in split.queries}
    rows: list[tuple[int, list[str]]] = []
    lacking: dict[str, list[str]] = {}
    present: set[str] = set()
    for n, query in enumerate(split.queries):
        # A row whose id is that of another query is that query's, even where it reads like a form of this one.
        ways_of_rows = [
            [way for way in ways if all(i == query.id or i not in known for i in way)]
            for ways in names_of_rows(dataset, query, form)
        ]
        mine = [first_way(ways, held, most) for ways in ways_of_rows]
        if all(way is not None for way in mine):
            rows += [(n, way) for way in mine if way is not None]
            present.add(query.group)
        else:
            lacking.setdefault(query.group, []).append(query.id)
    partial = [i for group in present for i in lacking.get(group, ())]
    default = dataset.protocols[0].form
    if partial and not any((query_of(i, known)[1] or default) == form for i in held):
        # No row is named after the form; a few queries only happened to have its strings among other forms.
        return [], list(dict.fromkeys(q.group for q in split.queries))
    if partial:
        what = "" if form == default else f" of the text form {form!r}"
        raise CirbenchError(
            f"{path}: {len(partial)} queries of {dataset.name}/{split.name} have no row{what}: {listing(partial)}. "
            "Whole groups may be left out, single queries may not."
        )
    absent = [g for g in dict.fromkeys(q.group for q in split.queries) if g not in present]
    return rows, absent


def choose_protocols(dataset: Dataset, names: Sequence[str]) -> list[Protocol]:
    """The requested protocols, or all."""
    by_name = {p.name: p for p in dataset.protocols}
    for name in names:
        if name not in by_name:
            raise unknown(f"protocol of {dataset.name}", name, list(by_name))
    return [by_name[n] for n in dict.fromkeys(names)] if names else list(dataset.protocols)


def to_json(dataset: Dataset, split: Split, protocols: dict[str, Any], omitted: dict[str, str]) -> dict[str, Any]:
    """The result as docs/protocols.md gives it; per-protocol fields `queries`, `gallery`, `ties`, `metrics`."""
    keys = ("queries", "gallery", "ties", "metrics")
    kept = {name: {key: entry[key] for key in keys} for name, entry in protocols.items()}
    return {"dataset": dataset.name, "split": split.name, "protocols": kept, "omitted": omitted}


def supported(protocol: Protocol) -> list[str]:
    """Single metrics of a protocol, `mean(...)` taken apart."""
    return list(dict.fromkeys(part for name in protocol.metrics for part in metrics.parts(name)))


def reject_hidden(dataset: Dataset, split: Split) -> None:
    """Raise for a split whose labels are not public."""
    hidden = sum(not q.targets for q in split.queries)
    if hidden:
        served = dataset.name in ("cirr", "circo")
        server = " `cirbench submit --validate FILE` checks a file for its server." if served else ""
        raise CirbenchError(
            f"the labels of {dataset.name}/{split.name} are not public ({hidden} of {len(split.queries)} queries have "
            f"no target), so it cannot be scored here.{server}"
        )


def dumps(result: dict[str, Any]) -> str:
    """JSON text of a result."""
    return json.dumps(result, indent=1, allow_nan=True)
