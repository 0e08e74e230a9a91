"""The last step of a run: evaluate on the `report` split once, and write everything a record holds."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from cirbench.data.batches import Feed
from cirbench.data.images import webp
from cirbench.files import check_home, dumps, write_json, write_jsonl, write_npz
from cirbench.runs import cost
from cirbench.runs.planning import Plan, scored
from cirbench.runs.record import SCHEMA, write_pictures
from cirbench.scoring import evaluation, missing_images
from cirbench.scoring.adapting import note_of
from cirbench.types import CirbenchError, Dataset, Method, MethodError, OptionalHooks, Query, QueryBatch, Split

__all__ = ["Answering", "check_queries", "shares", "write_queries", "write_record"]

#: Queries whose pictures are kept with a record, and the side of a picture in pixels.
PICTURES, PICTURE_SIDE = 200, 96


@dataclass
class Answering:
    """A trained method with what is needed to write its record.

    Attributes:
        folder: of the run.
        planned: the run.
        method: with the weights that are reported.
        dataset: to evaluate on.
        absent: pictures that the run continues without, or None.
        device: to compute on.
        quiet: no progress bars.
        command: as typed, for the record.
        export: whether to write the embeddings as well.
        head: entries of the record besides the measured ones: identity, labels, selection, notes.
        seconds: time spent before, by kind.
        began: `time.perf_counter()` when the run started.
        home: `folder.stat()` when the run started; the folder must still be the same.
    """

    folder: Path
    planned: Plan
    method: Method
    dataset: Dataset
    absent: missing_images.Missing | None
    device: torch.device
    quiet: bool = True
    command: str = ""
    export: bool = False
    head: dict[str, Any] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    began: float = field(default_factory=time.perf_counter)
    home: os.stat_result = field(kw_only=True)


def write_record(ready: Answering) -> None:
    """Evaluate once on the `report` split and write the record; `record.json` last.

    Raises:
        CirbenchError: embeddings or weights of the wrong shape, or that are not finite.
    """
    method, dataset, seconds, head = ready.method, ready.dataset, dict(ready.seconds), dict(ready.head)
    split, (protocols, left) = dataset.splits["report"], scored(ready.planned, dataset)
    forms = list(dict.fromkeys(p.form for p in protocols))
    tick = time.perf_counter()
    feed = evaluation.feed_of(method, dataset, split, forms, ready.device, ready.quiet)
    seconds["features"] = time.perf_counter() - tick
    tick = time.perf_counter()
    result, images, rows = evaluation.evaluate(method, feed, dataset, split, protocols, ready.quiet)
    seconds["evaluate"] = time.perf_counter() - tick
    if ready.absent is not None:
        head |= {"missing": ready.absent.counts, "notes": [*head.get("notes", ()), ready.absent.note()]}
        for name, beside in ready.absent.beside("report", split, protocols, result.arrays).items():
            result.protocols[name]["missing"] = beside
    if notes := note_of(method, protocols):
        head["notes"] = [*head.get("notes", ()), *notes]
    arrays = dict(result.arrays)
    if hasattr(method, "modality_weights"):
        arrays.update(_weights(method, feed, dataset, split, forms[0]))
    pictures = _pictures(dataset, split, result, forms[0])
    first = split.queries[0]
    text = dataset.forms[forms[0]](first)[0][0]
    record = {
        "schema": SCHEMA, "name": ready.folder.name, **head, "command": ready.command,
        "protocols": result.protocols, "default_protocol": protocols[0].name, "omitted": {**result.omitted, **left},
        "cost": {
            "parameters": cost.parameters(method), "flops": cost.flops(method, feed, first.reference, text),
            "latency_ms": cost.latency(method, feed, first.reference, text, images),
            "seconds": {**seconds, "total": time.perf_counter() - ready.began},
            "peak_memory_mb": cost.peak_memory_mb(ready.device),
        },
        "environment": cost.environment(ready.device),
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    check_home(ready.folder, ready.home)
    write_queries(ready.folder, split)
    write_json(ready.folder / "gallery.json", result.gallery)
    write_npz(ready.folder / "rankings.npz", arrays)
    if ready.export:
        _export(ready.folder, split, result.gallery, images, rows, ready.planned.facts.protocols[0].form)
    write_pictures(ready.folder / "pictures.zip", pictures)
    write_json(ready.folder / "record.json", record)


def write_queries(folder: Path, split: Split) -> None:
    """`queries.jsonl` of a record."""
    write_jsonl(folder / "queries.jsonl", map(_row, split.queries))


def check_queries(split: Split) -> None:
    """Refuse queries that a record could not hold.

    Raises:
        CirbenchError: an extra field that is no JSON, such as NaN.
    """
    for query in split.queries:
        try:
            dumps(_row(query))
        except (TypeError, ValueError, RecursionError) as error:
            raise CirbenchError(
                f"the query {query.id!r} has fields that cannot be written as JSON: {error}. Its extra fields are "
                f"{str(dict(query.extra))[:200]}."
            ) from None


def _row(q: Query) -> dict[str, Any]:
    return {
        "id": q.id, "reference": q.reference, "texts": list(q.texts), "targets": list(q.targets[:50]),
        "targets_total": len(q.targets), "group": q.group, "extra": dict(q.extra),
    }


def shares(method: OptionalHooks, batch: QueryBatch) -> dict[str, torch.Tensor]:
    """Stream -> (B,) shares that a method's `modality_weights` returns, checked.

    Raises:
        MethodError: not a dict of tensors of shape (B,) with values from 0 to 1.
    """
    found: Any = method.modality_weights(batch)
    if not isinstance(found, Mapping):
        raise MethodError(
            method.modality_weights, f"`modality_weights` returned {type(found).__name__}; it must return a dict, "
            "stream -> tensor of shape (B,)."
        )
    for name, share in found.items():
        count, received = len(batch.words), type(share).__name__
        if isinstance(share, torch.Tensor):
            received = f"{share.dtype} of shape {tuple(share.shape)}"
            if share.shape == (count,) and bool(((share >= -1e-6) & (share <= 1 + 1e-6)).all()):
                continue
            received += "" if share.shape != (count,) else " with values outside 0..1"
        raise MethodError(
            method.modality_weights, f"the method's `modality_weights` returned {received} for {name!r} and {count} "
            "queries. It must return the image's share per query, 0..1, shape (B,)."
        )
    return dict(found)


def _weights(method: Method, feed: Feed, dataset: Dataset, split: Split, form: str) -> dict[str, np.ndarray]:
    parts: dict[str, list[np.ndarray]] = {}
    with torch.inference_mode():
        for start in range(0, len(split.queries), evaluation.BATCH):
            queries = split.queries[start : start + evaluation.BATCH]
            batch = feed.queries([q.reference for q in queries], [dataset.forms[form](q)[0][0] for q in queries])
            for name, weight in shares(cast(OptionalHooks, method), batch).items():
                parts.setdefault(name, []).append(weight.detach().float().cpu().numpy())
    return {f"weight/{name}": np.concatenate(values) for name, values in parts.items()}


def _pictures(dataset: Dataset, split: Split, result: evaluation.Evaluation, form: str) -> dict[str, bytes]:
    """Small pictures of some queries of every group: reference, targets, first ten."""
    groups: dict[str, list[int]] = {}
    for n, query in enumerate(split.queries):
        groups.setdefault(query.group, []).append(n)
    share = max(PICTURES // len(groups), 1)
    chosen = [n for members in groups.values() for n in members[:: max(len(members) // share, 1)][:share]][:PICTURES]
    row_of = {int(q): r for r, q in reversed(list(enumerate(result.arrays[f"row_query/{form}"])))}
    wanted: dict[str, None] = {}
    for n in chosen:
        query = split.queries[n]
        top = result.arrays[f"top/{form}"][row_of[n], :10]
        wanted.update(dict.fromkeys([query.reference, *query.targets[:3], *(result.gallery[t] for t in top if t >= 0)]))
    out = {}
    for image_id in wanted:
        with dataset.images.open(image_id) as image:
            out[image_id] = webp(image, PICTURE_SIDE)
    return out


def _export(
    folder: Path, split: Split, gallery: Sequence[str], images: torch.Tensor, rows: Mapping[str, evaluation.Rows],
    unnamed: str,
) -> None:
    """`embeddings.npz`: what `cirbench score` reads; `id#form` is the row of another form, `id#form.1` its second row.

    `unnamed` is the form whose rows are the query ids themselves: the dataset's own default, whatever was trained on.
    """
    ids, parts = [], []
    for form, part in rows.items():
        seen: dict[int, int] = {}
        several = len(set(part.query.tolist())) < len(part.query)
        for q in part.query.tolist():
            seen[q] = seen.get(q, -1) + 1
            name = "" if form == unnamed else f"#{form}"
            ids.append(split.queries[q].id + name + (f".{seen[q]}" if several else ""))
        parts.append(part.embeddings.cpu().numpy())
    write_npz(folder / "embeddings.npz", {
        "query_ids": np.array(ids), "queries": np.concatenate(parts), "image_ids": np.array(list(gallery)),
        "gallery": images.cpu().numpy(),
    })
