"""Missing pictures: what a run with --allow-missing leaves out, and bounds on the numbers of the complete data.

m images missing from a gallery move others up by at most m ranks, and a lost query may have been a hit or not. So with
R@K measured on the queries and images that remain, the share f of queries lost and the share d of other queries with a
missing target,

    (1 - f) R@(K - m)  <=  true R@K  <=  (1 - f) R@K + f + d,

with R@0 and below being 0. The same holds within each group, and then for the mean over groups.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from cirbench.scoring import metrics, protocol_scoring
from cirbench.types import CirbenchError, Dataset, Protocol, Query, Split

#: Most ids listed; the counts are always complete.
SHOWN = 20


def find(dataset: Dataset, roles: Sequence[str], closely: bool = False) -> list[str]:
    """Ids of the roles' pictures that have no file; `closely`, also those that cannot be decoded."""
    from cirbench.data.image_files import FolderImages

    if not isinstance(dataset.images, FolderImages):
        return []
    ids = list(dict.fromkeys(i for role in roles if role in dataset.splits for i in _named(dataset.splits[role])))
    if not closely:
        return dataset.images.missing(ids)
    from cirbench.data.check import look

    bad = {i for found in look(dataset.images, ids).problems.values() for i in found}
    return [i for i in ids if i in bad]


def _named(split: Split) -> list[str]:
    """Every picture a split opens; subsets are ranked, so without galleries (`train`) it opens none of them."""
    members = (m for q in split.queries for m in protocol_scoring.subset_of(q)) if split.galleries else ()
    return list(dict.fromkeys([*split.images(), *members]))


@dataclass(frozen=True)
class Missing:
    """The pictures that a run continues without.

    Attributes:
        whole: the complete dataset.
        gone: ids of the missing pictures.
        counts: for the record: `images`, the first `ids`, `queries_lost` of each role.
    """

    whole: Dataset
    gone: frozenset[str]
    counts: dict[str, Any]

    def note(self) -> str:
        """One sentence for the record."""
        lost = ", ".join(f"{n} of {role}" for role, n in self.counts["queries_lost"].items())
        return f"{len(self.gone)} pictures are missing (--allow-missing); queries lost by that: {lost}."

    def beside(self, role: str, left: Split, protocols: Sequence[Protocol], arrays: Mapping[str, np.ndarray]) -> Any:
        """Protocol name -> counts and bounds, for the protocols measured on `left`."""
        return {p.name: bounds(self.whole, self.whole.splits[role], left, p, self.gone, arrays) for p in protocols}


def settle(dataset: Dataset, roles: Sequence[str], allowed: bool) -> tuple[Dataset, Missing | None]:
    """The dataset to use: complete, or without the missing pictures if that is allowed.

    Raises:
        CirbenchError: pictures are missing and that was not allowed, or nothing would be left of a split or a group.
    """
    from cirbench.data.image_files import FolderImages

    roles = [role for role in roles if role in dataset.splits]
    gone = find(dataset, roles, closely=allowed)
    if not gone:
        return dataset, None
    if not allowed:
        assert isinstance(dataset.images, FolderImages)  # pictures that are drawn are never missing
        root, hint = dataset.images.root, dataset.images.elsewhere(gone[0])
        more = f" and {len(gone) - 5} more" if len(gone) > 5 else ""
        raise CirbenchError(
            f"{len(gone)} pictures of {dataset.name} are missing under {root}: {', '.join(map(repr, gone[:5]))}{more}."
            f"{hint} "
            f"`cirbench data check {dataset.name} --root {root}` lists them and what they imply. Fetch them, or go on "
            "without with --allow-missing; the record then says what is left out."
        )
    out = without(dataset, roles, set(gone))
    counts = {role: len(dataset.splits[role].queries) - len(out.splits[role].queries) for role in roles}
    entry = {"images": len(gone), "ids": gone[:SHOWN], "queries_lost": counts}
    return out, Missing(dataset, frozenset(gone), entry)


def is_lost(query: Query, gone: Collection[str], first: bool) -> bool:
    """Whether a query is lost: its reference or all of its targets are missing (`first`: its first target)."""
    if query.reference in gone:
        return True
    targets = query.targets[:1] if first else query.targets
    return bool(targets) and all(t in gone for t in targets)


def _first(dataset: Dataset) -> bool:
    return any(p.hit == "first" for p in dataset.protocols)


def _less(query: Query, gone: Collection[str]) -> Query:
    """The query without the missing pictures."""

    def left(ids: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(i for i in ids if i not in gone)

    extra = query.extra
    if "members" in extra:
        extra = {**extra, "members": [m for m in extra["members"] if m not in gone]}
    candidates = None if query.candidates is None else left(query.candidates)
    return replace(query, targets=left(query.targets), candidates=candidates, extra=extra)


def without(dataset: Dataset, roles: Sequence[str], gone: Collection[str]) -> Dataset:
    """The dataset without some pictures, and without the queries that need them.

    Raises:
        CirbenchError: a split, or one of its groups, would be empty.
    """
    splits = dict(dataset.splits)
    for role in roles:
        split = splits[role]
        kept = tuple(_less(q, gone) for q in split.queries if not is_lost(q, gone, _first(dataset)))
        empty = {q.group for q in split.queries} - {q.group for q in kept}
        if empty:
            of = f" of {', '.join(sorted(empty))}" if empty != {""} else ""
            raise CirbenchError(
                f"{dataset.name}: with {len(gone)} pictures missing no query{of} is left in the split {role!r}, so "
                "there is nothing to measure. Fetch the pictures, or choose other groups with --set data.FIELD=VALUE."
            )
        galleries = {
            name: {group: tuple(i for i in ids if i not in gone) for group, ids in groups.items()}
            for name, groups in split.galleries.items()
        }
        splits[role] = Split(split.name, kept, galleries)
    return replace(dataset, splits=splits)


# ------------------------------------------------------------------------------------- bounds


@dataclass(frozen=True)
class Loss:
    """What one group is missing under one protocol.

    Attributes:
        rows: of the complete data.
        lost: rows whose query is lost.
        doubtful: other rows with a missing target, which may have been a hit.
        gallery: most images missing from what one row ranks.
        subset: most images missing from the subset of one row.
    """

    rows: int
    lost: int
    doubtful: int
    gallery: int
    subset: int


def losses(dataset: Dataset, split: Split, protocol: Protocol, gone: Collection[str]) -> dict[str, Loss]:
    """Group -> what it is missing. `split` is the complete one."""
    first, wanted = _first(dataset), protocol_scoring.targets_of(protocol, protocol_scoring.BEST)
    form = dataset.forms[protocol.form]
    groups: dict[str, list[Query]] = {}
    for query in split.queries:
        groups.setdefault(query.group, []).append(query)
    out = {}
    for group, queries in groups.items():
        kept = [q for q in queries if not is_lost(q, gone, first)]
        rows = sum(len(form(q)) for q in queries)
        if protocol.gallery == "own":
            gallery = max(sum(i in gone for i in q.candidates or ()) for q in queries)
        else:
            galleries = split.galleries.get(protocol.gallery, {})
            gallery = sum(i in gone for i in galleries.get(group, galleries.get("", ())))
        out[group] = Loss(
            rows, rows - sum(len(form(q)) for q in kept),
            sum(len(form(q)) for q in kept if any(t in gone for t in wanted(q))),
            gallery, max((sum(i in gone for i in protocol_scoring.subset_of(q)) for q in kept), default=0),
        )
    return out


def _boundable(protocol: Protocol) -> list[str]:
    """Metrics that are recalls, or means of such."""
    return [m for m in protocol.metrics if all(metrics.parse(part)[0] in ("R", "Rs") for part in metrics.parts(m))]


def bounds(
    dataset: Dataset, whole: Split, left: Split, protocol: Protocol, gone: Collection[str],
    arrays: Mapping[str, np.ndarray],
) -> dict[str, Any]:
    """Counts and bounds of one protocol: rows lost, images missing, lowest and highest true value of each recall.

    Args:
        dataset: its forms and rules.
        whole: the complete split.
        left: the split that was measured.
        protocol: of the numbers.
        gone: the missing pictures.
        arrays: of the evaluation of `left` (docs/records.md).
    """
    name = protocol.name
    rows, ranks = arrays[f"row_query/{protocol.form}"], arrays[f"rank/{name}"]
    lacks = losses(dataset, whole, protocol, gone)
    group_of = np.array([left.queries[int(q)].group for q in rows])
    wanted, before = protocol_scoring.targets_of(protocol, protocol_scoring.BEST), {q.id: q for q in whole.queries}
    doubtful = np.array([any(t in gone for t in wanted(before[left.queries[int(q)].id])) for q in rows])

    def at(kind: str, k: int) -> np.ndarray:
        """Values at a cut-off, or at the largest smaller one that was kept, so never too high."""
        if k < 1:
            return np.zeros(len(rows))
        if kind == "R" and protocol.hit != "graded":
            return metrics.hits(ranks, k).astype(np.float64)
        kept = [int(a.rpartition("@")[2]) for a in arrays if a.startswith(f"value/{name}/{kind}@")]
        below = [c for c in kept if c <= k]
        return arrays[f"value/{name}/{kind}@{max(below)}"].astype(np.float64) if below else np.zeros(len(rows))

    def of(part: str, groups: Sequence[str]) -> tuple[float, float]:
        kind, k = metrics.parse(part)
        low = high = total = 0.0
        for group in groups:
            lack, mine = lacks[group], group_of == group
            fewer = lack.subset if kind == "Rs" else lack.gallery
            low += float(at(kind, k - fewer)[mine].sum())
            high += float(np.maximum(at(kind, k), doubtful)[mine].sum()) + lack.lost
            total += lack.rows
        return 100 * low / total, 100 * high / total

    def mean(parts: Sequence[tuple[float, float]]) -> list[float]:
        return [float(np.mean([p[0] for p in parts])), float(np.mean([p[1] for p in parts]))]

    out: dict[str, list[float]] = {}
    for metric in _boundable(protocol):
        parts = metrics.parts(metric)
        per_group = {g: mean([of(p, [g]) for p in parts]) for g in lacks}
        pooled = mean([of(p, list(lacks)) for p in parts])
        grouped = mean([(low, high) for low, high in per_group.values()])
        out[metric] = grouped if protocol.average == "groups" else pooled
        if list(lacks) != [""]:
            out.update({f"{g}/{metric}": both for g, both in per_group.items()})
    return {
        "queries_lost": sum(x.lost for x in lacks.values()), "gallery_lost": max(x.gallery for x in lacks.values()),
        "bounds": out,
    }


def beforehand_all(dataset: Dataset, gone: Collection[str]) -> dict[str, Any]:
    """`beforehand` of every protocol of the `report` split: protocol name -> what missing pictures imply."""
    report = dataset.splits["report"]
    usable = [p for p in dataset.protocols if p.gallery in ("own", *report.galleries)]
    return {p.name: beforehand(dataset, report, p, gone) for p in usable}


def beforehand(dataset: Dataset, split: Split, protocol: Protocol, gone: Collection[str]) -> dict[str, Any]:
    """What missing pictures imply before any measurement: the highest possible value, and the formulas."""
    lacks = list(losses(dataset, split, protocol, gone).values())
    shares = [(x.lost / x.rows, x.doubtful / x.rows) for x in lacks]
    if protocol.average == "groups":
        highest = float(np.mean([1 - f for f, _ in shares]))
        most, least = max(f for f, _ in shares), min(f for f, _ in shares)
        slack = max(f + d for f, d in shares)
    else:
        rows = sum(x.rows for x in lacks)
        most = least = sum(x.lost for x in lacks) / rows
        highest, slack = 1 - most, most + sum(x.doubtful for x in lacks) / rows
    fewer, fewer_members = max(x.gallery for x in lacks), max(x.subset for x in lacks)

    def formula(metric: str) -> dict[str, str]:
        kind, k = metrics.parse(metric)
        less = max(k - (fewer_members if kind == "Rs" else fewer), 0)
        return {
            "at_least": f"{1 - most:.6f} * {kind}@{less}", "at_most": f"{1 - least:.6f} * {metric} + {100 * slack:.4f}",
        }

    names = dict.fromkeys(p for m in protocol.metrics for p in metrics.parts(m) if metrics.parse(p)[0] in ("R", "Rs"))
    return {
        "queries": sum(x.rows for x in lacks), "lost": sum(x.lost for x in lacks),
        "doubtful": sum(x.doubtful for x in lacks), "gone_from_gallery": fewer, "highest": 100 * highest,
        "measured_to_true": {name: formula(name) for name in names},
    }

