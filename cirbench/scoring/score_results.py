"""`cirbench score`: embeddings go through the same ranking as a run, ranked lists are converted to ranks."""

from __future__ import annotations

from collections.abc import Collection, Container, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cirbench.scoring import evaluation, metrics, protocol_scoring
from cirbench.scoring import result_files as s
from cirbench.scoring.ranking import Ranks, rank
from cirbench.types import CirbenchError, Dataset, Protocol, Split

#: Depth of lists that rank their whole gallery, which serves any cut-off.
WHOLE = 10**9

# ------------------------------------------------------------------------------------- embeddings


def _limited(row: str, groups: Container[str], known: Container[str]) -> str:
    """The group whose queries alone rank an embedding, `dress` of `dress/B0`; "" where the whole is an image's id."""
    if row in known:
        return ""
    at = row.find("/")
    while at > 0:  # the name of a group may hold a slash itself
        if row[:at] in groups and row[at + 1 :] in known:
            return row[:at]
        at = row.find("/", at + 1)
    return ""


def _place(file: s.Embeddings, group: str, image_id: str, known: Container[str]) -> int | None:
    row = f"{group}/{image_id}"
    limited = file.places.get(row) if group and row not in known else None
    return file.places.get(image_id) if limited is None else limited


def _gallery_of_group(split: Split, protocols: Sequence[Protocol], group: str) -> list[str]:
    queries = tuple(q for q in split.queries if q.group == group)
    galleries = {
        p.gallery: {"": split.galleries[p.gallery].get(group, split.galleries[p.gallery].get("", ()))}
        for p in protocols if p.gallery != "own"
    }
    needed = evaluation.gallery_of(Split(split.name, queries, galleries))
    return list(dict.fromkeys(needed))


def _check_images(
    file: s.Embeddings, dataset: Dataset, split: Split, groups: Sequence[str], wanted: dict[str, list[str]],
    known: Collection[str],
) -> None:
    groups_there = {q.group for q in split.queries}
    unknown = [i for i in file.places if i not in known and not _limited(i, groups_there, known)]
    if unknown:
        raise CirbenchError(
            f"{file.path}: {len(unknown)} image ids are not in {dataset.name}/{split.name}: {s.listing(unknown)}. "
            f"Ids look like {next(iter(known))!r}."
        )
    for group in groups:
        lacking = [i for i in wanted[group] if _place(file, group, i, known) is None]
        if lacking:
            where = f" of {group}" if group else ""
            raise CirbenchError(
                f"{file.path}: {len(lacking)} gallery images{where} have no embedding: {s.listing(lacking)}. "
                "Leaving images out makes every number too high; encode all of them."
            )


def _rows(file: s.Embeddings, chosen: list[tuple[int, list[str]]]) -> evaluation.Rows:
    queries = torch.from_numpy(np.ascontiguousarray(file.queries))
    parts = [queries[[file.rows[i] for i in way]] for _, way in chosen]
    stacked = torch.stack([p[0] if len(p) == 1 else p.mean(0) for p in parts])
    return evaluation.Rows(np.array([q for q, _ in chosen], dtype=np.int64), stacked)


def _merge(
    pieces: list[dict[str, Any]], split: Split, protocols: Sequence[Protocol], absent: dict[str, list[str]]
) -> dict[str, Any]:
    """Join per-file or per-category pieces of the same protocol: rows are pooled, then averaged as one."""
    out: dict[str, Any] = {}
    for protocol in protocols:
        mine = [p[protocol.name] for p in pieces if protocol.name in p]
        if not mine:
            continue
        rows = np.concatenate([m["rows"] for m in mine])
        order = np.argsort(rows, kind="stable")
        best = np.concatenate([m["best"] for m in mine])[order]
        ties = np.concatenate([m["ties"] for m in mine])[order]
        found = {k: np.concatenate([m["found"][k] for m in mine])[order] for k in mine[0]["found"]}
        out[protocol.name] = {
            "queries": len(rows), "gallery": max(m["gallery"] for m in mine), "ties": int(np.count_nonzero(ties)),
            "metrics": protocol_scoring.summarise(split, protocol, rows[order], best, found, absent[protocol.form]),
        }
    return out


def _rank(
    file: s.Embeddings, split: Split, protocols: Sequence[Protocol], rows: dict[str, list[tuple[int, list[str]]]],
    groups: Sequence[str], gallery: Sequence[str], known: Container[str],
) -> dict[str, Any]:
    """Values of every protocol for the rows of some groups, over one set of gallery embeddings."""
    position = {i: n for n, i in enumerate(gallery)}
    group = groups[0]
    places = [_place(file, group if len(groups) == 1 else "", i, known) for i in gallery]
    images = torch.from_numpy(np.ascontiguousarray(file.gallery[[p for p in places if p is not None]]))
    out: dict[str, Any] = {}
    for form, chosen in rows.items():
        here = [(q, way) for q, way in chosen if split.queries[q].group in groups]
        if not here:
            continue
        part = _rows(file, here)
        mine = [p for p in protocols if p.form == form]
        kinds = [(p, kind) for p in mine for kind in protocol_scoring.needed(p)]
        views = [protocol_scoring.view_of(split, p, position, part.query, kind) for p, kind in kinds]
        results, _, _ = rank(part.embeddings, images, views)
        for protocol in mine:
            ranks = {kind: r for (p, kind), r in zip(kinds, results, strict=True) if p is protocol}
            members = views[kinds.index((protocol, protocol_scoring.BEST))].members
            out[protocol.name] = {
                "rows": part.query, "best": ranks[protocol_scoring.BEST].best,
                "ties": ranks[protocol_scoring.BEST].ties,
                "found": protocol_scoring.values(split, protocol, part.query, ranks, position),
                "gallery": len(gallery) if members is None else int(members.sum(1).max()),
            }
    return out


def score_embeddings(
    dataset: Dataset, split: Split, paths: Sequence[Path], names: Sequence[str] = ()
) -> dict[str, Any]:
    """Score one or several npz files; several hold different groups or forms (one model per category).

    Raises:
        CirbenchError: anything in a file that does not fit the split; see `scoring`.
    """
    s.reject_hidden(dataset, split)
    protocols = s.choose_protocols(dataset, names)
    if any(p.gallery not in ("own", *split.galleries) for p in protocols):
        raise CirbenchError(
            f"{dataset.name}: the gallery needs the list of all its pictures. "
            "Add the file that `cirbench data list` names, or --set data.gallery=annotated."
        )
    files = [s.read_embeddings(path) for path in paths]
    owner: dict[str, Path] = {}
    pieces: list[dict[str, Any]] = []
    forms_of: dict[str, set[str]] = {}
    for file in files:
        s.check_query_ids(file.path, dataset, split, file.rows)
        for row in file.rows:
            if row in owner:
                raise CirbenchError(f"{file.path}: query {row!r} is also in {owner[row]}. Remove one of them.")
            owner[row] = file.path
        rows: dict[str, list[tuple[int, list[str]]]] = {}
        for form in dict.fromkeys(p.form for p in protocols):
            chosen, _ = s.rows_present(file.path, dataset, split, file.rows, form)
            if chosen:
                rows[form] = chosen
                forms_of.setdefault(form, set()).update(split.queries[q].group for q, _ in chosen)
        groups = list(dict.fromkeys(split.queries[q].group for chosen in rows.values() for q, _ in chosen))
        # A gallery that only absent text forms rank need not be in the file: one category's model has no pooled one.
        ranked = [p for p in protocols if p.form in rows]
        wanted = {g: _gallery_of_group(split, ranked, g) for g in groups}
        known = {*split.images(), *(i for ids in wanted.values() for i in ids)}
        known.update(i for query in split.queries for i in protocol_scoring.subset_of(query))
        _check_images(file, dataset, split, groups, wanted, known)
        if any(_limited(i, groups, known) for i in file.places):
            for group in groups:
                pieces.append(_rank(file, split, protocols, rows, [group], wanted[group], known))
        elif groups:
            have = [i for i in evaluation.gallery_of(split) if i in file.places]
            galleries = {i for g in groups for i in wanted[g]}
            # The same images in the same order as a run, so that equal inputs give equal last bits.
            pieces.append(_rank(file, split, protocols, rows, groups, [i for i in have if i in galleries], known))
    return _finish(dataset, split, protocols, forms_of, pieces)


def _finish(
    dataset: Dataset, split: Split, protocols: Sequence[Protocol], forms_of: dict[str, set[str]],
    pieces: list[dict[str, Any]], omitted: dict[str, str] | None = None,
) -> dict[str, Any]:
    groups = list(dict.fromkeys(q.group for q in split.queries))
    absent = {p.form: [g for g in groups if g not in forms_of.get(p.form, set())] for p in protocols}
    omitted = dict(omitted or {})
    for protocol in protocols:
        gone = absent[protocol.form]
        if len(gone) == len(groups):
            omitted.setdefault(protocol.name, f"no row of the text form {protocol.form!r} is in the file")
        elif gone:
            omitted[f"{protocol.name}/average"] = f"no query of {', '.join(gone)}, so there is no average over groups"
    return s.to_json(dataset, split, _merge(pieces, split, protocols, absent), omitted)


# ------------------------------------------------------------------------------------- lists


def _position(names: Sequence[str], wanted: Sequence[str]) -> np.ndarray:
    # Few positions are needed of a list of thousands: searching is quicker than indexing all.
    return np.array([names.index(w) + 1 if w in names else 0 for w in wanted], dtype=np.int32)


def _shown(names: tuple[str, ...], dropped: str | None, allowed: frozenset[str] | None) -> tuple[str, ...]:
    """The list without the reference and without images of other galleries."""
    if allowed is not None and not allowed.issuperset(names):
        return tuple(i for i in names if i != dropped and i in allowed)
    if dropped is None or dropped not in names:
        return names
    at = names.index(dropped)
    return names[:at] + names[at + 1 :]


def _list_ranks(
    split: Split, protocol: Protocol, kind: str, rows: list[tuple[int, tuple[str, ...]]]
) -> tuple[Ranks, int, int | None]:
    """Ranks from lists; the depth of every list (`WHOLE` if all rank their whole gallery); gallery size."""
    wanted = protocol_scoring.targets_of(protocol, kind)
    indices = [q for q, _ in rows]
    if protocol.gallery in ("own", *split.galleries) or kind == protocol_scoring.SUBSET:
        named = protocol_scoring.galleries_of(split, protocol, kind, indices)
        once = {name: frozenset(ids) for name, ids in dict(named).items()}
        sets = [once[name] for name, _ in named]
    else:
        sets = None
    best, every, depth, size = [], [], WHOLE, 0
    for n, (q, names) in enumerate(rows):
        query = split.queries[q]
        dropped = query.reference if protocol.drop_reference or kind == protocol_scoring.SUBSET else None
        allowed = sets[n] if sets is not None else None
        shown = _shown(names, dropped, allowed)
        if allowed is None or len(shown) < len(allowed) - (dropped in allowed):
            depth = min(depth, len(shown))
        size = max(size, len(allowed) if allowed is not None else 0)
        ranks = _position(shown, wanted(query))
        every.append(ranks)
        best.append(int(min((r for r in ranks if r), default=0)))
    ranked = Ranks(np.array(best, dtype=np.int32), np.zeros(len(best), dtype=np.int32), every)
    return ranked, depth, size if sets is not None else None


def _check_lists(file: s.Lists, dataset: Dataset, split: Split) -> None:
    s.check_query_ids(file.path, dataset, split, file.lists)
    if not split.galleries and not any(q.candidates for q in split.queries):
        return
    known: dict[str, set[str]] = {}
    by_id = {q.id: q for q in split.queries}
    for row, names in file.lists.items():
        query = by_id[s.query_of(row, by_id)[0]]
        if query.group not in known:
            known[query.group] = {
                i for galleries in split.galleries.values() for i in galleries.get(query.group, galleries.get("", ()))
            }
        here = set(query.candidates) if query.candidates else known[query.group]
        if here.issuperset(names):
            continue
        bad = [i for i in names if i not in here and i != query.reference]
        if bad:
            raise CirbenchError(
                f"{file.path}: the ranking of query {row!r} names {len(bad)} images that are not in its gallery: "
                f"{s.listing(bad)}. A ranking of other images is not comparable."
            )


def score_rankings(dataset: Dataset, split: Split, paths: Sequence[Path], names: Sequence[str] = ()) -> dict[str, Any]:
    """Score ranked lists; CIRR's two server files may be given together.

    Raises:
        CirbenchError: anything in a file that does not fit the split; see `scoring`.
    """
    s.reject_hidden(dataset, split)
    protocols = s.choose_protocols(dataset, names)
    merged: dict[bool, dict[str, tuple[str, ...]]] = {}
    for path in paths:
        file = s.read_rankings(path, dataset.name)
        _check_lists(file, dataset, split)
        target = merged.setdefault(file.subset, {})
        for row, ranking in file.lists.items():
            if row in target:
                raise CirbenchError(f"{path}: query {row!r} is also in another file. Remove one of them.")
            target[row] = ranking
    pieces: list[dict[str, Any]] = []
    omitted: dict[str, str] = {}
    forms_of: dict[str, set[str]] = {}
    answered: dict[str, Protocol] = {}
    for protocol in protocols:
        ranks: dict[str, Ranks] = {}
        reach: dict[str, int] = {}
        size: int | None = None
        used: list[tuple[int, tuple[str, ...]]] = []
        for kind in protocol_scoring.needed(protocol):
            # A file that ranks only subsets supports only subset recall; one that ranks all may support both.
            source = merged.get(True, merged.get(False)) if kind == protocol_scoring.SUBSET else merged.get(False)
            if source is None:
                continue
            chosen, _ = s.rows_present(paths[0], dataset, split, source, protocol.form, most=1)
            if not chosen:
                continue
            used = [(q, source[way[0]]) for q, way in chosen]
            ranks[kind], reach[kind], found_size = _list_ranks(split, protocol, kind, used)
            size = found_size if kind != protocol_scoring.SUBSET else size
        if not ranks:
            if merged.keys() == {True}:
                omitted[protocol.name] = "the file ranks only subsets"
            continue
        forms_of.setdefault(protocol.form, set()).update(split.queries[q].group for q, _ in used)
        rows = np.array([q for q, _ in used], dtype=np.int64)
        known = _Everything()
        found = protocol_scoring.values(split, protocol, rows, ranks, known)
        lacking: list[str] = []
        for name in s.supported(protocol):
            kind, k = metrics.parse(name)
            source_kind = protocol_scoring.SUBSET if kind == "Rs" else protocol_scoring.BEST
            deep = reach.get(source_kind)
            if deep is None:
                omitted[f"{protocol.name}/{name}"] = "no file has the ranking it needs"
            elif deep < (k or WHOLE):  # a median or a mean needs every rank
                omitted[f"{protocol.name}/{name}"] = (
                    f"the shortest list has {deep} usable images, but {k or 'all'} are needed"
                    + (" of the query's subset" if kind == "Rs" else "")
                )
            else:
                continue
            lacking.append(name)
        for name in protocol.metrics:
            absent = [part for part in metrics.parts(name) if part in lacking]
            if absent and absent != [name]:
                omitted[f"{protocol.name}/{name}"] = f"{', '.join(absent)} cannot be computed from the file"
        left = tuple(n for n in protocol.metrics if not set(lacking).intersection(metrics.parts(n)))
        answered[protocol.name] = replace(protocol, metrics=left)
        best = ranks.get(protocol_scoring.BEST, next(iter(ranks.values())))
        pieces.append({protocol.name: {
            "rows": rows, "best": best.best, "ties": best.ties, "found": found, "gallery": size,
        }})
    return _finish(dataset, split, [answered.get(p.name, p) for p in protocols], forms_of, pieces, omitted)


class _Everything:
    """A container of every id: a list ranks every image it names."""

    def __contains__(self, item: object) -> bool:
        return True
