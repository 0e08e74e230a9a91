"""Encode -> rank -> every protocol of the dataset -> metrics. The same code scores results made elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from cirbench import process
from cirbench.data.batches import Feed
from cirbench.scoring import protocol_scoring
from cirbench.scoring.adapting import Adapt, adapted
from cirbench.scoring.ranking import Ranks, Score, dot, rank
from cirbench.types import CirbenchError, Dataset, Method, MethodError, Protocol, Query, QueryBatch, Split

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
    scoring: Score = dot, absent: Sequence[str] = (), adapt: Adapt | None = None,
) -> Evaluation:
    """Rank every text form once, or once a gallery where a method adapts to it, and score every protocol.

    Args:
        split: queries and galleries.
        protocols: those whose form is not in `rows` are omitted.
        gallery: ids of `images`' rows.
        images: (N, D).
        rows: text form -> encoded rows.
        scoring: a method's own score, or the dot product.
        absent: groups that have no row; averages over groups are then left out.
        adapt: a method's own, see adapting.py.

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
        together = [mine]
        if adapt is not None:  # the queries then depend on what is ranked
            together = [[p for p in mine if p.gallery == g] for g in dict.fromkeys(p.gallery for p in mine)]
        for number, ranked in enumerate(together):
            kinds = [(p, kind) for p in ranked for kind in protocol_scoring.needed(p)]
            views = [protocol_scoring.view_of(split, p, position, part.query, kind) for p, kind in kinds]
            queries = part.embeddings
            if adapt is not None:
                queries = adapted(adapt, queries, images, views[0], ranked[0])
            results, top, top_score = rank(queries, images, views, scoring, TOP)
            if not number:
                out.arrays[f"row_query/{form}"] = part.query.astype(np.int32)
                out.arrays[f"top/{form}"], out.arrays[f"top_score/{form}"] = top, top_score
            for protocol in ranked:
                ranks = {kind: r for (p, kind), r in zip(kinds, results, strict=True) if p is protocol}
                members = views[kinds.index((protocol, protocol_scoring.BEST))].members
                size = len(gallery) if members is None else int(members.sum(1).max())
                judge(out, split, protocol, part.query, ranks, position, size, absent)
    return out


def _batched(
    count: int, what: str, quiet: bool, function: Callable[..., Tensor], batch: Callable[[list[int]], Any]
) -> Tensor:
    parts: list[Tensor] = []
    with torch.inference_mode():
        for start in tqdm(range(0, count, BATCH), desc=what, disable=quiet, leave=False):
            rows = list(range(start, min(start + BATCH, count)))
            padded = rows + [rows[0]] * (BATCH - len(rows))
            found = encoded(function, batch(padded), BATCH)
            if parts and parts[0].shape[1] != found.shape[1]:
                raise MethodError(
                    function, f"the embeddings of one batch have D = {parts[0].shape[1]}, those of another D = "
                    f"{found.shape[1]}. All must have the same."
                )
            parts.append(found[: len(rows)].detach().float())
    whole = torch.cat(parts) if parts else torch.zeros((0, 1))
    finite = torch.isfinite(whole).all(1)
    if not bool(finite.all()):
        bad = int((~finite).sum())
        raise MethodError(
            function, f"{bad} of {len(finite)} embeddings hold NaN or infinite values, so they cannot be ranked. Does "
            "it divide by zero, or did training diverge?"
        )
    return whole


def encoded(function: Callable[..., Tensor], items: Any, count: int) -> Tensor:
    """What `encode_queries` or `encode_images` of a method makes of some items, checked.

    Args:
        function: the method's.
        items: its argument.
        count: how many items there are, B.

    Raises:
        MethodError: no dense floating-point tensor of shape (B, D), or the state of the process was changed.
    """
    with process.unchanged(function):
        found: object = function(items)
    received = type(found).__name__
    if isinstance(found, Tensor) and (found.is_nested or found.layout != torch.strided):
        received = "a nested tensor" if found.is_nested else f"a tensor of layout {found.layout}"
    elif isinstance(found, Tensor):
        real = found.device.type != "meta"
        if real and found.ndim == 2 and len(found) == count and found.shape[1] and found.is_floating_point():
            return found
        received = f"{found.dtype} of shape {tuple(found.shape)}{'' if real else ' on the device meta'}"
    raise MethodError(
        function, f"`{getattr(function, '__name__', 'it')}` returned {received} for {count} items. It must return a "
        "dense floating-point tensor of shape (B, D), one row an item."
    )


def encode_gallery(method: Method, feed: Feed, gallery: Sequence[str], quiet: bool = True) -> Tensor:
    """(N, D) embeddings of the gallery."""
    return _batched(
        len(gallery), "gallery", quiet, method.encode_images, lambda rows: feed.images([gallery[r] for r in rows])
    )


def encode_rows(method: Method, feed: Feed, split: Split, form: Form, quiet: bool = True) -> Rows:
    """Encoded rows of one text form; the strings of a row are averaged."""
    rows = [(n, tuple(row)) for n, query in enumerate(split.queries) for row in form(query)]
    pairs = list(dict.fromkeys((n, text) for n, row in rows for text in row))

    def queries(batch: list[int]) -> QueryBatch:
        return feed.queries([split.queries[pairs[b][0]].reference for b in batch], [pairs[b][1] for b in batch])

    made = _batched(len(pairs), "queries", quiet, method.encode_queries, queries)
    place = {pair: n for n, pair in enumerate(pairs)}
    if all(len(row) == 1 for _, row in rows):
        embeddings = made[torch.tensor([place[(n, row[0])] for n, row in rows], dtype=torch.int64)]
    else:
        embeddings = torch.stack([made[[place[(n, t)] for t in row]].mean(0) for n, row in rows])
    return Rows(np.array([n for n, _ in rows], dtype=np.int64), embeddings)


def texts_of(dataset: Dataset, split: Split, forms: Sequence[str]) -> list[str]:
    """Every string of the split's queries in these forms, once."""
    return list(dict.fromkeys(t for f in forms for q in split.queries for row in dataset.forms[f](q) for t in row))


def feed_of(
    method: Method, dataset: Dataset, split: Split, forms: Sequence[str], device: torch.device, quiet: bool = True
) -> Feed:
    """The method's inputs for a split in some text forms: its images, and every string of these forms."""
    return Feed(dataset, split.images(), texts_of(dataset, split, forms), method.inputs, device, quiet=quiet)


def fit(method: Method, queries: Tensor, images: Tensor, made_by: Callable[..., Tensor] | None = None) -> None:
    """(R, D) queries and (N, D) images of one method can be compared.

    Args:
        method: of both.
        queries: (R, D).
        images: (N, D).
        made_by: what made the queries, for the message; `encode_queries` by default.

    Raises:
        MethodError: they lie on different devices, or have different D and the method has no `score` of its own.
    """
    if queries.device != images.device:
        raise MethodError(
            method.encode_queries, f"the embeddings of queries are on the device {queries.device}, those of images on "
            f"{images.device}. Both must be where the inputs are."
        )
    if not hasattr(method, "score") and queries.shape[1] != images.shape[1]:
        raise MethodError(
            made_by or method.encode_queries, f"the embeddings of queries have D = {queries.shape[1]}, those of images "
            f"D = {images.shape[1]}; a dot product needs equal D."
        )


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
    for part in rows.values():
        fit(method, part.embeddings, images)
    found = score(split, protocols, gallery, images, rows, scoring, adapt=getattr(method, "adapt", None))
    return found, images, rows
