"""Evidence of `cirbench explain`: words weighted, regions over the reference picture, and the pointing score."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from cirbench.reports.collect import Arm, TestSet
from cirbench.reports.explorer import data_uri

__all__ = ["attention", "pointing"]

SHOWN = 8


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
        all cells whose centre lies in the named box.
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
    return {"named": float(mine[peak].mean()), "any": float(anything[peak].mean()), "chance": float(mine.mean())}


def attention(test: TestSet, images: bool) -> list[dict[str, Any]]:
    """One entry a run that was explained: examples, and pointing scores where boxes are known."""
    out = []
    for arm in test.arms:
        for record in arm.records:
            if record.explain:
                out.append(_of_run(test, arm, record, images))
                break
    return out


def _of_run(test: TestSet, arm: Arm, record: Any, images: bool) -> dict[str, Any]:
    side = float((arm.inputs.get("data") or {}).get("side") or 0)
    by_id = {str(q["id"]): q for q in test.queries}
    scores: dict[str, list[dict[str, float]]] = {}
    examples: list[tuple[dict[str, Any], Any, Any]] = []
    for query_id, found in record.explain.items():
        query = by_id.get(query_id)
        if query is None:
            continue
        extra = query.get("extra") or {}
        named, boxes = extra.get("named"), extra.get("boxes") or []
        regions = found.get("regions") or {}
        if side and isinstance(named, int) and 0 <= named < len(boxes):
            for name, region in regions.items():
                scores.setdefault(name, []).append(pointing(region, boxes, named, side))
        if len(examples) < SHOWN and (not scores or (isinstance(named, int) and named >= 0) or not boxes):
            examples.append((query, found.get("words") or [], regions))
    pictures = record.pictures.many(q["reference"] for q, _, _ in examples) if images else {}
    return {
        "arm": arm, "seed": record.data["inputs"].get("seed"), "count": len(record.explain),
        "scores": [_score(name, part) for name, part in scores.items()],
        "examples": [
            {
                "query": q, "picture": data_uri(pictures[q["reference"]]) if q["reference"] in pictures else "",
                "words": _scaled(words), "maps": [(name, cells(region)) for name, region in regions.items()],
            }
            for q, words, regions in examples
        ],
    }


def _score(name: str, part: list[dict[str, float]]) -> dict[str, Any]:
    means = {key: _mean(part, key) for key in ("named", "any", "chance")}
    share = means["named"] / 100
    return {"map": name, "n": len(part), "error": 100 * math.sqrt(share * (1 - share) / len(part)), **means}


def _mean(part: list[dict[str, float]], key: str) -> float:
    return 100 * float(np.mean([p[key] for p in part]))


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
