"""What a protocol means, as arithmetic: which images a row ranks, what counts as a hit, how rows are averaged.

Ranks come in, percentages go out; it makes no difference whether they come from embeddings or from ranked lists.

Hit rules (`Protocol.hit`):
    targets: any of the query's targets.
    first: recall counts only the target annotated first; mAP counts all of them (CIRCO).
    graded: a hit is worth the value of the best image in the first K, from `extra["soft"]` (CIRR); values <= 0
        count as 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Container, Mapping, Sequence

import numpy as np

from cirbench.scoring import metrics
from cirbench.scoring.ranking import Ranks, View
from cirbench.types import Protocol, Query, Split

#: Ranks a protocol may need: of the best target, of every target, among the members of the query's subset.
BEST, EVERY, SUBSET = "best", "every", "subset"


def grades(query: Query) -> list[tuple[str, float]]:
    """Graded images with values > 0, lowest value first, so that ties in score are resolved pessimistically."""
    soft: Mapping[str, float] = query.extra.get("soft", {})
    return sorted(((i, float(v)) for i, v in soft.items() if v > 0), key=lambda pair: (pair[1], pair[0]))


def subset_of(query: Query) -> tuple[str, ...]:
    """The images of the query's subset without its reference."""
    return tuple(m for m in query.extra.get("members", ()) if m != query.reference)


def needed(protocol: Protocol) -> tuple[str, ...]:
    """Which rankings the protocol's metrics read, `best` first."""
    kinds = {metrics.parse(part)[0] for name in protocol.metrics for part in metrics.parts(name)}
    graded = protocol.hit == "graded"
    out = [BEST]
    if "mAP" in kinds or graded:
        out.append(EVERY)
    if "Rs" in kinds:
        out.append(SUBSET)
    return tuple(out)


def targets_of(protocol: Protocol, kind: str) -> Callable[[Query], tuple[str, ...]]:
    """Query -> the images whose ranks are wanted."""
    if protocol.hit == "graded":
        return lambda query: tuple(i for i, _ in grades(query))
    if kind == BEST and protocol.hit == "first":
        return lambda query: query.targets[:1]
    return lambda query: query.targets


def galleries_of(
    split: Split, protocol: Protocol, kind: str, rows: Sequence[int]
) -> list[tuple[object, tuple[str, ...]]]:
    """Per row (a name, the image ids it ranks); rows of one name rank the same images."""
    queries = split.queries
    if kind == SUBSET:
        subsets = {q: subset_of(queries[q]) for q in dict.fromkeys(rows)}
        return [(subsets[q], subsets[q]) for q in rows]
    if protocol.gallery == "own":
        return [(q, queries[q].candidates or ()) for q in rows]
    galleries = split.galleries[protocol.gallery]
    keys = [queries[q].group if queries[q].group in galleries else "" for q in rows]
    return [(key, galleries[key]) for key in keys]


def view_of(
    split: Split, protocol: Protocol, position: Mapping[str, int], row_query: np.ndarray, kind: str = BEST
) -> View:
    """The `View` of a protocol: what each row ranks."""
    rows = [int(q) for q in row_query]
    queries = [split.queries[q] for q in rows]
    dropped = np.array(
        [position.get(q.reference, -1) if protocol.drop_reference else -1 for q in queries], dtype=np.int64
    )
    cache: dict[tuple[str, ...], np.ndarray] = {}

    def places(ids: tuple[str, ...]) -> np.ndarray:
        if ids not in cache:
            cache[ids] = np.array([position[i] for i in ids if i in position], dtype=np.int64)
        return cache[ids]

    wanted = targets_of(protocol, kind)
    targets = [places(wanted(q)) for q in queries]
    every = kind == EVERY or (kind == SUBSET and protocol.hit == "graded")
    named = galleries_of(split, protocol, kind, rows)
    sets = dict(named)
    if len(sets) == 1 and len(next(iter(sets.values()))) == len(position):
        return View(targets, dropped, every_target=every)
    number = {key: i for i, key in enumerate(sets)}
    members = np.zeros((len(sets), len(position)), dtype=bool)
    for key, ids in sets.items():
        members[number[key], [position[i] for i in ids]] = True
    member_of = np.array([number[key] for key, _ in named], dtype=np.int64)
    return View(targets, dropped, members, member_of, every)


def _worth(query: Query, ranks: np.ndarray, k: int, known: Container[str]) -> float:
    """Value of the best image in the first k, 0..1; `ranks` are those of `grades`, without unranked images."""
    values = [value for image_id, value in grades(query) if image_id in known]
    return max((v for v, r in zip(values, ranks, strict=True) if 1 <= r <= k), default=0.0)


def values(
    split: Split, protocol: Protocol, row_query: np.ndarray, ranks: Mapping[str, Ranks], known: Container[str]
) -> dict[str, np.ndarray]:
    """Metric -> (R,) values in 0..1 of every row; metrics without per-row values (medians, means) are left out.

    Args:
        split: of the queries.
        protocol: its hit rule and metrics.
        row_query: (R,) index of each row's query.
        ranks: what `needed` names; metrics whose ranking is absent are left out.
        known: the image ids that were ranked.
    """
    queries = [split.queries[int(q)] for q in row_query]
    graded = protocol.hit == "graded"
    out: dict[str, np.ndarray] = {}
    for name in dict.fromkeys(part for metric in protocol.metrics for part in metrics.parts(metric)):
        kind, k = metrics.parse(name)
        if not k:
            continue
        source = ranks.get({"R": EVERY if graded else BEST, "Rs": SUBSET, "mAP": EVERY}[kind])
        if source is None:
            continue
        if kind == "mAP":
            assert source.every is not None
            pairs = zip(queries, source.every, strict=True)
            out[name] = np.array([metrics.average_precision_at(r, len(q.targets), k) for q, r in pairs])
        elif graded:
            assert source.every is not None
            out[name] = np.array([_worth(q, r, k, known) for q, r in zip(queries, source.every, strict=True)])
        else:
            out[name] = metrics.hits(source.best, k).astype(np.float64)
    return out


def kept_values(protocol: Protocol, found: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The values a record keeps: those that are not a function of the best rank."""
    return {n: v for n, v in found.items() if protocol.hit == "graded" or metrics.parse(n)[0] != "R"}


def summarise(
    split: Split, protocol: Protocol, row_query: np.ndarray, best: np.ndarray, found: Mapping[str, np.ndarray],
    absent: Sequence[str] = (),
) -> dict[str, float]:
    """Metric name -> percent, groups included; averages over groups are unweighted and taken before any rounding.

    Args:
        split: of the queries.
        protocol: its metrics and its average.
        row_query: (R,) index of each row's query.
        best: (R,) best ranks.
        found: of `values`.
        absent: groups without a row; if there are any, only single groups are returned.
    """
    groups = np.array([split.queries[int(q)].group for q in row_query])
    names = list(dict.fromkeys(groups.tolist()))
    where = {g: groups == g for g in names}

    def of(name: str, mask: np.ndarray | slice) -> float:
        kind, _ = metrics.parse(name)
        if kind in ("MdR", "MR"):
            return metrics.of_ranks(name, best[mask])
        part = found[name][mask]
        return 100.0 * float(np.mean(part)) if len(part) else math.nan

    def both(name: str, one: Callable[[str], float]) -> float | None:
        parts = metrics.parts(name)
        if any(metrics.parse(p)[1] and p not in found for p in parts):
            return None
        return float(np.mean([one(p) for p in parts]))

    out: dict[str, float] = {}
    single: dict[str, float] = {}
    for name in protocol.metrics:
        per_group = {g: both(name, lambda part, g=g: of(part, where[g])) for g in names}  # type: ignore[misc]
        whole = both(name, lambda part: of(part, slice(None)))
        if whole is None:
            continue
        if not absent:
            out[name] = float(np.mean(list(per_group.values()))) if protocol.average == "groups" else whole
        if names != [""]:
            single.update({f"{g}/{name}": value for g, value in per_group.items() if value is not None})
    out.update(single)
    out.update(_aspects(split, row_query, found))
    return out


def _aspects(split: Split, row_query: np.ndarray, found: Mapping[str, np.ndarray]) -> dict[str, float]:
    """mAP of the queries tagged with each aspect (CIRCO's semantic aspects); a query may have several."""
    tagged: dict[str, list[int]] = {}
    for row, q in enumerate(row_query):
        for aspect in split.queries[int(q)].extra.get("aspects", ()):
            tagged.setdefault(aspect, []).append(row)
    return {
        f"{aspect}/{name}": 100.0 * float(np.mean(found[name][rows]))
        for aspect, rows in sorted(tagged.items()) for name in found if metrics.parse(name)[0] == "mAP"
    }
