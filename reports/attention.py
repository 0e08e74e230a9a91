"""Evidence of `cirbench explain`: words weighted, regions over the reference picture, and the pointing score."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from cirbench.reports.collect import LEVEL, Arm, TestSet
from cirbench.reports.explorer import data_uri

from cirbench import statistics
from cirbench.recordtypes import is_number

__all__ = ["attention", "pointing"]

SHOWN = 8
#: Maps of an explanation that no text enters: what they reach needs no attention to words.
TEXT_FREE = ("energy",)


def pointing(
    region: Sequence[Sequence[float]], boxes: Sequence[Sequence[float]], named: int, side: float
) -> dict[str, float]:
    """Where the peak of one map lies: on the named object, on any object; and how likely chance is to do so.

    Args:
        region: (h, w), any scale.
        boxes: (left, top, right, bottom) in pixels, of every object.
        named: position of the named object in `boxes`.
        side: side of the picture in pixels.

    Returns:
        `named`, `any`: share of the (equally high) peak cells whose centre lies in such a box; `chance`: share of
        all cells whose centre lies in the named box; `object_chance`: the same share of the cells on any object.
    """
    grid = np.asarray(region, dtype=np.float64)
    height, width = grid.shape
    rows, columns = (np.arange(height) + 0.5) * side / height, (np.arange(width) + 0.5) * side / width
    y, x = np.meshgrid(rows, columns, indexing="ij")

    def inside(box: Sequence[float]) -> np.ndarray:
        return (x >= box[0]) & (x < box[2]) & (y >= box[1]) & (y < box[3])

    peak = grid == grid.max()
    mine = inside(boxes[named])
    anything = np.any([inside(b) for b in boxes], axis=0)
    return {
        "named": float(mine[peak].mean()), "any": float(anything[peak].mean()), "chance": float(mine.mean()),
        "object_chance": float(mine.sum() / max(anything.sum(), 1)),
    }


def attention(test: TestSet, images: bool) -> list[dict[str, Any]]:
    """One entry an arm that was explained: examples of its first such run, and pointing scores where boxes are known.

    Scores are means over the seeds that were explained, on the queries that all of them explain.
    """
    out = []
    for arm in test.arms:
        records = [r for r in arm.records if r.explain]
        if records:
            entry = _examples(test, records[0], images)
            out.append(entry | {
                "arm": arm, "seeds": [r.run.inputs.seed for r in records],
                "scores": _scores(test, arm, records),
            })
    return out


def _examples(test: TestSet, record: Any, images: bool) -> dict[str, Any]:
    by_id = {str(q["id"]): q for q in test.queries}
    known = [(by_id[i], found) for i, found in record.explain.items() if i in by_id]
    # Where some edits name an object of the reference, those show what words could point at.
    named = [(q, found) for q, found in known if _named_in(q) >= 0]
    pool = named or known
    chosen = [pool[k * len(pool) // min(SHOWN, len(pool))] for k in range(min(SHOWN, len(pool)))]
    pictures = record.pictures.many(q["reference"] for q, _ in pool) if images else {}
    pictured = [(q, found) for q, found in pool if q["reference"] in pictures]
    if len(pictured) >= SHOWN:
        chosen = [pictured[k * len(pictured) // SHOWN] for k in range(SHOWN)]
    return {
        "seed": record.run.inputs.seed, "count": len(record.explain),
        "examples": [
            {
                "query": q, "picture": data_uri(pictures[q["reference"]]) if q["reference"] in pictures else "",
                "words": _scaled(found.get("words") or []),
                "maps": [(name, cells(region)) for name, region in (found.get("regions") or {}).items()],
            }
            for q, found in chosen
        ],
    }


def _scores(test: TestSet, arm: Arm, records: Sequence[Any]) -> list[dict[str, Any]]:
    """A row a map: rates in percent, and whether it is above chance, any object and the maps without text."""
    side = arm.inputs.data.get("side")
    side = float(side) if is_number(side) else 0.0
    place = {str(q["id"]): n for n, q in enumerate(test.queries)}
    asked = [
        i for i in records[0].explain if i in place and all(i in r.explain for r in records[1:])
        and side and 0 <= _named_in(test.queries[place[i]]) < len(test.queries[place[i]]["extra"].get("boxes") or [])
    ]
    if not asked:
        return []
    clusters = test.clusters[[place[i] for i in asked]]
    found: dict[str, dict[str, np.ndarray]] = {}
    for name in records[0].explain[asked[0]].get("regions") or {}:
        by_seed = []
        for record in records:
            part = []
            for i in asked:
                extra = test.queries[place[i]]["extra"]
                part.append(pointing(record.explain[i]["regions"][name], extra["boxes"], _named_in(extra), side))
            by_seed.append(part)
        found[name] = {key: np.array([[p[key] for p in part] for part in by_seed]) for key in by_seed[0][0]}
    free = {name: rates["named"].mean(0) for name, rates in found.items() if name in TEXT_FREE}
    out, differences = [], []
    for name, rates in found.items():
        named = rates["named"].mean(0)
        low, high = 100 * statistics.bootstrap_interval(named, clusters)
        against = [] if name in TEXT_FREE else [rates["chance"][0], rates["object_chance"][0], *free.values()]
        differences += [named - other for other in against]
        out.append({
            "map": name, "n": len(asked), "low": float(low), "high": float(high), "against": len(against),
            "std": statistics.mean_std((100 * rates["named"].mean(1)).tolist())[1], "grounded": False,
            "free": {n: 100 * float(v.mean()) for n, v in free.items()},
            **{key: 100 * float(value.mean()) for key, value in rates.items()},
        })
    if differences:
        matrix = np.stack(differences, axis=1)
        p = iter(statistics.holm(statistics.paired_permutation(matrix, clusters).tolist()))
        above = iter(matrix.mean(0) > 0)
        for row in out:
            tests = [(next(p), next(above)) for _ in range(row["against"])]
            row["grounded"] = bool(tests) and all(value < LEVEL and more for value, more in tests)
    return out


def _named_in(query: Mapping[str, Any]) -> int:
    """Position of the object that the text names among the reference's, or -1."""
    named = (query.get("extra") or query).get("named")
    return named if isinstance(named, int) and not isinstance(named, bool) else -1


def _scaled(words: Sequence[Sequence[Any]]) -> list[tuple[str, float, float]]:
    """(word, weight, shade 0..1), shades stretched over the words of one text."""
    values = [float(w[1]) for w in words]
    low, high = (min(values), max(values)) if values else (0.0, 0.0)
    return [(str(w[0]), v, (v - low) / (high - low) if high > low else 0.0) for w, v in zip(words, values, strict=True)]


def cells(region: Sequence[Sequence[float]]) -> dict[str, Any]:
    """(x, y, shade) of each cell, shade 0..1 within the map, for an overlay."""
    grid = np.asarray(region, dtype=np.float64)
    low, high = float(grid.min()), float(grid.max())
    shade = (grid - low) / (high - low) if high > low else np.zeros_like(grid)
    return {
        "width": grid.shape[1], "height": grid.shape[0],
        "cells": [(x, y, round(float(s), 2)) for (y, x), s in np.ndenumerate(shade)],
    }
