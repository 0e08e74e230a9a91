"""Evidence of `cirbench explain`: words weighted, regions over the reference picture, and the pointing score."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from cirbench.runs.record import Record
from cirbench.runs.record_types import is_number
from cirbench.scoring import statistics

from .collect import LEVEL, Arm, TestSet
from .explorer import data_uri

__all__ = ["Evidence", "EvidenceExample", "Grid", "MapScore", "Peak", "attention", "pointing"]

SHOWN = 8
#: Maps of an explanation that no text enters: what they reach needs no attention to words.
TEXT_FREE = ("energy",)


@dataclass(frozen=True)
class Peak:
    """Where the peak of one map lies.

    Attributes:
        named, any: share of the (equally high) peak cells whose centre lies on the named object, or on any object.
        chance: share of all cells whose centre lies on the named object.
        object_chance: the same share of the cells on any object.
    """

    named: float
    any: float
    chance: float
    object_chance: float


@dataclass(frozen=True)
class MapScore:
    """Pointing scores of one map over `n` queries, percent, means over seeds.

    Attributes:
        map: its name.
        n: how many queries.
        named, any, chance, object_chance: as in `Peak`.
        low, high: 95 % interval of `named` over queries.
        std: deviation of `named` over seeds, NaN for one.
        free: what each map that sees no text reaches.
        against: how many tests it took part in; 0 for a map that sees no text.
        grounded: above chance, any object and every map that sees no text.
    """

    map: str
    n: int
    named: float
    any: float
    chance: float
    object_chance: float
    low: float
    high: float
    std: float
    free: dict[str, float]
    against: int
    grounded: bool


@dataclass(frozen=True)
class Grid:
    """A map as an overlay: `cells` are (x, y, shade 0..1 within the map)."""

    width: int
    height: int
    cells: list[tuple[int, int, float]]


@dataclass(frozen=True)
class EvidenceExample:
    """One explained query: its picture as data URI or "", (word, weight, shade 0..1), (name, map)."""

    query: dict[str, Any]
    picture: str
    words: list[tuple[str, float, float]]
    maps: list[tuple[str, Grid]]


@dataclass(frozen=True)
class Evidence:
    """An arm that was explained, over `seeds`: `count` queries of its first such run, some shown, maps scored."""

    arm: Arm
    seeds: list[int]
    count: int
    examples: list[EvidenceExample]
    scores: list[MapScore]


def pointing(
    region: Sequence[Sequence[float]], boxes: Sequence[Sequence[float]], named: int, side: float
) -> Peak:
    """Where the peak of one map lies: on the named object, on any object; and how likely chance is to do so.

    Args:
        region: (h, w), any scale.
        boxes: (left, top, right, bottom) in pixels, of every object.
        named: position of the named object in `boxes`.
        side: side of the picture in pixels.
    """
    grid = np.asarray(region, dtype=np.float64)
    height, width = grid.shape
    rows, columns = (np.arange(height) + 0.5) * side / height, (np.arange(width) + 0.5) * side / width
    y, x = np.meshgrid(rows, columns, indexing="ij")

    def inside(box: Sequence[float]) -> np.ndarray:
        return (x >= box[0]) & (x < box[2]) & (y >= box[1]) & (y < box[3])

    peak = grid == grid.max()
    on_named = inside(boxes[named])
    on_any = np.any([inside(b) for b in boxes], axis=0)
    return Peak(
        float(on_named[peak].mean()), float(on_any[peak].mean()), float(on_named.mean()),
        float(on_named.sum() / max(on_any.sum(), 1)),
    )


def attention(test: TestSet, images: bool) -> list[Evidence]:
    """One entry an arm that was explained: examples of its first such run, and pointing scores where boxes are known.

    Scores are means over the seeds that were explained, on the queries that all of them explain.
    """
    out = []
    for arm in test.arms:
        records = [r for r in arm.records if r.explain]
        if records:
            out.append(Evidence(
                arm, [r.run.inputs.seed for r in records], len(records[0].explain),
                _examples(test, records[0], images), _scores(test, arm, records),
            ))
    return out


def _examples(test: TestSet, record: Record, images: bool) -> list[EvidenceExample]:
    by_id = {str(q["id"]): q for q in test.queries}
    known = [(by_id[i], evidence) for i, evidence in record.explain.items() if i in by_id]
    # Where some edits name an object of the reference, those show what words could point at.
    named = [(q, evidence) for q, evidence in known if _named_in(q) >= 0]
    pool = named or known
    chosen = [pool[k * len(pool) // min(SHOWN, len(pool))] for k in range(min(SHOWN, len(pool)))]
    pictures = record.pictures.many(q["reference"] for q, _ in pool) if images else {}
    pictured = [(q, evidence) for q, evidence in pool if q["reference"] in pictures]
    if len(pictured) >= SHOWN:
        chosen = [pictured[k * len(pictured) // SHOWN] for k in range(SHOWN)]
    return [
        EvidenceExample(
            q, data_uri(pictures[q["reference"]]) if q["reference"] in pictures else "",
            _scaled(evidence.get("words") or []),
            [(name, cells(region)) for name, region in (evidence.get("regions") or {}).items()],
        )
        for q, evidence in chosen
    ]


def _scores(test: TestSet, arm: Arm, records: Sequence[Record]) -> list[MapScore]:
    """A row a map: rates in percent, and whether it is above chance, any object and the maps without text."""
    given = arm.inputs.data.get("side")
    side = float(given) if is_number(given) else 0.0
    place = {str(q["id"]): n for n, q in enumerate(test.queries)}
    asked = [
        i for i in records[0].explain if i in place and all(i in r.explain for r in records[1:])
        and side and 0 <= _named_in(test.queries[place[i]]) < len(test.queries[place[i]]["extra"].get("boxes") or [])
    ]
    if not asked:
        return []
    clusters = test.clusters[[place[i] for i in asked]]
    rates_of: dict[str, dict[str, np.ndarray]] = {}
    for name in records[0].explain[asked[0]].get("regions") or {}:
        by_seed = []
        for record in records:
            part = []
            for i in asked:
                extra = test.queries[place[i]]["extra"]
                part.append(pointing(record.explain[i]["regions"][name], extra["boxes"], _named_in(extra), side))
            by_seed.append(part)
        rates_of[name] = {
            key: np.array([[getattr(p, key) for p in part] for part in by_seed])
            for key in ("named", "any", "chance", "object_chance")
        }
    free = {name: rates["named"].mean(0) for name, rates in rates_of.items() if name in TEXT_FREE}
    out, differences = list[MapScore](), list[np.ndarray]()
    for name, rates in rates_of.items():
        named = rates["named"].mean(0)
        low, high = 100 * statistics.bootstrap_interval(named, clusters)
        against = [] if name in TEXT_FREE else [rates["chance"][0], rates["object_chance"][0], *free.values()]
        differences += [named - other for other in against]
        out.append(MapScore(
            map=name, n=len(asked), low=float(low), high=float(high), against=len(against), grounded=False,
            std=statistics.mean_std((100 * rates["named"].mean(1)).tolist())[1],
            free={n: 100 * float(v.mean()) for n, v in free.items()},
            **{key: 100 * float(value.mean()) for key, value in rates.items()},
        ))
    if not differences:
        return out
    matrix = np.stack(differences, axis=1)
    p = statistics.holm(statistics.paired_permutation(matrix, clusters).tolist())
    passed = iter([value < LEVEL and mean > 0 for value, mean in zip(p, matrix.mean(0), strict=True)])
    # Every test of a map must pass; a map that sees no text has none.
    results = [[next(passed) for _ in range(score.against)] for score in out]
    return [replace(s, grounded=bool(r) and all(r)) for s, r in zip(out, results, strict=True)]


def _named_in(query: Mapping[str, Any]) -> int:
    """Position of the object that the text names among the reference's, or -1."""
    named = (query.get("extra") or query).get("named")
    return named if isinstance(named, int) and not isinstance(named, bool) else -1


def _scaled(words: Sequence[Sequence[Any]]) -> list[tuple[str, float, float]]:
    """(word, weight, shade 0..1), shades stretched over the words of one text."""
    values = [float(w[1]) for w in words]
    low, high = (min(values), max(values)) if values else (0.0, 0.0)
    return [(str(w[0]), v, (v - low) / (high - low) if high > low else 0.0) for w, v in zip(words, values, strict=True)]


def cells(region: Sequence[Sequence[float]]) -> Grid:
    """A map of h rows of w values as an overlay."""
    grid = np.asarray(region, dtype=np.float64)
    low, high = float(grid.min()), float(grid.max())
    shade = (grid - low) / (high - low) if high > low else np.zeros_like(grid)
    return Grid(grid.shape[1], grid.shape[0], [(x, y, round(float(s), 2)) for (y, x), s in np.ndenumerate(shade)])
