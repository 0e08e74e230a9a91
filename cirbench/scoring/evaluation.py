"""Encode -> rank -> every protocol of the dataset -> metrics. The same code scores results made elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from cirbench.data.batches import Feed
from cirbench.scoring import protocol_scoring
from cirbench.scoring.ranking import Ranks, Score, dot, rank
from cirbench.types import CirbenchError, Dataset, Method, Protocol, Query, Split

#: Images or queries encoded at once. The last batch is padded to it, so that no embedding depends on the batch size.
BATCH = 128
TOP = 50

Form = Callable[[Query], Sequence[Sequence[str]]]


@dataclass
class Rows:
    """The encoded rows of one text form: `query` (R,) index of each row's query, `embeddings` (R, D)."""

    query: np.ndarray
    embeddings: Tensor


@dataclass
class Evaluation:
    """Everything scored on one split.

    Attributes:
        gallery: image ids; positions below point into it.
        protocols: name -> {"queries", "gallery", "ties", "form", "metrics", "definition"}.
        arrays: as in docs/records.md, `kind/name` -> array.
        omitted: protocol or metric -> why it could not be computed.
    """

    gallery: list[str]
    protocols: dict[str, dict[str, Any]] = field(default_factory=dict)
    arrays: dict[str, np.ndarray] = field(default_factory=dict)
    omitted: dict[str, str] = field(default_factory=dict)


def gallery_of(split: Split) -> list[str]:
    """Every image in any gallery of the split, once, in order of first appearance."""
    seen: dict[str, None] = {}
    for groups in split.galleries.values():
        for ids in groups.values():
            seen.update(dict.fromkeys(ids))
    for query in split.queries:
        seen.update(dict.fromkeys(query.candidates or ()))
    return list(seen)


def judge(
    out: Evaluation, split: Split, protocol: Protocol, row_query: np.ndarray, ranks: Mapping[str, Ranks],
    known: Container[str], size: int | None, absent: Sequence[str] = (),
) -> None:
    """Add one protocol's metrics and per-row arrays to an evaluation."""
    best = ranks[protocol_scoring.BEST]
    found = protocol_scoring.values(split, protocol, row_query, ranks, known)
    out.arrays[f"rank/{protocol.name}"], out.arrays[f"ties/{protocol.name}"] = best.best, best.ties
    for name, value in protocol_scoring.kept_values(protocol, found).items():
        out.arrays[f"value/{protocol.name}/{name}"] = value.astype(np.float32)
    out.protocols[protocol.name] = {
        "queries": len(row_query), "gallery": size, "ties": int(np.count_nonzero(best.ties)), "form": protocol.form,
        "metrics": protocol_scoring.summarise(split, protocol, row_query, best.best, found, absent),
        "definition": asdict(protocol),
    }


def score(
    split: Split, protocols: Sequence[Protocol], gallery: Sequence[str], images: Tensor, rows: Mapping[str, Rows],
    scoring: Score = dot, absent: Sequence[str] = (),
) -> Evaluation:
    """Rank every text form once and score every protocol from the ranks.

    Args:
        split: queries and galleries.
        protocols: those whose form is not in `rows` are omitted.
        gallery: ids of `images`' rows.
        images: (N, D).
        rows: text form -> encoded rows.
        scoring: a method's own score, or the dot product.
        absent: groups that have no row; averages over groups are then left out.

    Raises:
        CirbenchError: an embedding that is not finite.
    """
    out = Evaluation(list(gallery))
    position = {image_id: n for n, image_id in enumerate(gallery)}
    if not torch.isfinite(images).all():
        raise CirbenchError("the gallery embeddings hold NaN or infinite values, so they cannot be ranked.")
    for form in dict.fromkeys(p.form for p in protocols):
        mine = [p for p in protocols if p.form == form]
        if form not in rows:
            out.omitted.update({p.name: f"the text form {form!r} was not encoded" for p in mine})
            continue
        part = rows[form]
        if not torch.isfinite(part.embeddings).all():
            raise CirbenchError(f"the query embeddings of {form!r} hold NaN or infinite values and cannot be ranked.")
        kinds = [(p, kind) for p in mine for kind in protocol_scoring.needed(p)]
        views = [protocol_scoring.view_of(split, p, position, part.query, kind) for p, kind in kinds]
        results, top, top_score = rank(part.embeddings, images, views, scoring, TOP)
        out.arrays[f"row_query/{form}"] = part.query.astype(np.int32)
        out.arrays[f"top/{form}"], out.arrays[f"top_score/{form}"] = top, top_score
        for protocol in mine:
            ranks = {kind: r for (p, kind), r in zip(kinds, results, strict=True) if p is protocol}
            members = views[kinds.index((protocol, protocol_scoring.BEST))].members
            size = len(gallery) if members is None else int(members.sum(1).max())
            judge(out, split, protocol, part.query, ranks, position, size, absent)
    return out


def _batched(count: int, what: str, quiet: bool, encode: Callable[[list[int]], Tensor]) -> Tensor:
    parts = []
    with torch.inference_mode():
        for start in tqdm(range(0, count, BATCH), desc=what, disable=quiet, leave=False):
            rows = list(range(start, min(start + BATCH, count)))
            padded = rows + [rows[0]] * (BATCH - len(rows))
            parts.append(_checked(encode(padded), what)[: len(rows)].float())
    return torch.cat(parts) if parts else torch.zeros((0, 1))


def _checked(found: object, what: str) -> Tensor:
    """What a method encoded `BATCH` items to.

    Raises:
        CirbenchError: it is no floating-point tensor of shape (B, D).
    """
    if isinstance(found, Tensor) and found.ndim == 2 and len(found) == BATCH and found.is_floating_point():
        return found
    name = "encode_images" if what == "gallery" else "encode_queries"
    received = f"{found.dtype} of shape {tuple(found.shape)}" if isinstance(found, Tensor) else type(found).__name__
    raise CirbenchError(
        f"the method's `{name}` returned {received} for {BATCH} items. It must return a floating-point tensor of shape "
        f"(B, D), one row an item."
    )


def encode_gallery(method: Method, feed: Feed, gallery: Sequence[str], quiet: bool = True) -> Tensor:
    """(N, D) embeddings of the gallery."""
    return _batched(
        len(gallery), "gallery", quiet, lambda rows: method.encode_images(feed.images([gallery[r] for r in rows]))
    )


def encode_rows(method: Method, feed: Feed, split: Split, form: Form, quiet: bool = True) -> Rows:
    """Encoded rows of one text form; the strings of a row are averaged."""
    rows = [(n, tuple(row)) for n, query in enumerate(split.queries) for row in form(query)]
    pairs = list(dict.fromkeys((n, text) for n, row in rows for text in row))

    def encode(batch: list[int]) -> Tensor:
        return method.encode_queries(
            feed.queries([split.queries[pairs[b][0]].reference for b in batch], [pairs[b][1] for b in batch])
        )

    encoded = _batched(len(pairs), "queries", quiet, encode)
    place = {pair: n for n, pair in enumerate(pairs)}
    if all(len(row) == 1 for _, row in rows):
        embeddings = encoded[torch.tensor([place[(n, row[0])] for n, row in rows], dtype=torch.int64)]
    else:
        embeddings = torch.stack([encoded[[place[(n, t)] for t in row]].mean(0) for n, row in rows])
    return Rows(np.array([n for n, _ in rows], dtype=np.int64), embeddings)


def texts_of(dataset: Dataset, split: Split, forms: Sequence[str]) -> list[str]:
    """Every string of the split's queries in these forms, once."""
    return list(dict.fromkeys(t for f in forms for q in split.queries for row in dataset.forms[f](q) for t in row))


def feed_of(
    method: Method, dataset: Dataset, split: Split, forms: Sequence[str], device: torch.device, quiet: bool = True
) -> Feed:
    """The method's inputs for a split in some text forms: its images, and every string of these forms."""
    return Feed(dataset, split.images(), texts_of(dataset, split, forms), method.inputs, device, quiet=quiet)


def evaluate(
    method: Method, feed: Feed, dataset: Dataset, split: Split, protocols: Sequence[Protocol], quiet: bool = True
) -> tuple[Evaluation, Tensor, dict[str, Rows]]:
    """Encode and score a split; returns the embeddings as well, for export."""
    if isinstance(method, torch.nn.Module):
        method.eval()
    gallery = gallery_of(split)
    images = encode_gallery(method, feed, gallery, quiet)
    forms = dict.fromkeys(p.form for p in protocols)
    rows = {form: encode_rows(method, feed, split, dataset.forms[form], quiet) for form in forms}
    scoring = getattr(method, "score", dot)
    return score(split, protocols, gallery, images, rows, scoring), images, rows
