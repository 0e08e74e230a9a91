"""Which modality counts: the learned weight against known importance, and what text or image alone already answers."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from cirbench.reports.collect import Arm, TestSet, arm_values, rows_of

from cirbench.scoring import statistics

__all__ = ["audit", "modality"]

MIX = {"text": 0, "text-dominant": 0, "balanced": 1, "image": 2, "image-dominant": 2}
#: What answers a query: text counts 1, the image 2.
CELLS = ("neither", "text alone", "image alone", "both")


def modality(test: TestSet, audit: dict[str, Any] | None = None) -> list[dict[str, Any]]:
    """Mean learned share of the image by group, per arm and stream, and how it goes with importance.

    Importance is the known mix of each query, where the dataset tells it (`rho`, its `ceiling` given the ties, `std`
    over seeds), and what the single modalities answer (`auc`: how likely a query that only the image answers has the
    larger share of two, the other one being answered by the text only). Constant weights are left out.
    """
    known = np.array([MIX.get(str((q.get("extra") or {}).get("mix", "")), -1) for q in test.queries])
    told = bool(np.all(known >= 0)) and len(set(known.tolist())) > 1
    # Three known levels cannot order all queries: the most any untied weight can reach.
    ceiling = statistics.spearman(np.argsort(np.argsort(known, kind="stable")), known) if told else math.nan
    out = []
    for arm in test.arms:
        streams: dict[str, list[np.ndarray]] = {}
        for record in arm.records:
            for stream, name in record.rankings.under("weight").items():
                streams.setdefault(stream, []).append(record.rankings[name].astype(np.float64))
        for stream, parts in streams.items():
            share = np.mean(parts, axis=0)
            if np.ptp(share) < 1e-6:
                continue
            by = {g: float(share[test.groups == g].mean()) for g in dict.fromkeys(test.groups.tolist())}
            rhos = [statistics.spearman(p, known) for p in parts] if told else []
            out.append({
                "arm": arm, "stream": stream, "holds_text": stream == "cnn" and _edited(arm),
                "mean": float(share.mean()), "by": by, "values": share, "known": known,
                "rho": statistics.spearman(share, known) if told else math.nan, "ceiling": ceiling,
                "std": statistics.mean_std(rhos)[1] if rhos else math.nan, **_against_audit(share, audit),
            })
    return out


def _edited(arm: Arm) -> bool:
    """Whether the image branch of its CNN stream is edited by the text."""
    return arm.knobs.get("method.editors", "none") != "none"


def _against_audit(share: np.ndarray, audit: dict[str, Any] | None) -> dict[str, Any]:
    """Mean share where one modality alone answers, and the chance that the two kinds are told apart by it."""
    if audit is None or len(audit["cell_of"]) != len(share):
        return {"cells": {}, "auc": math.nan}
    cells = {name: share[audit["cell_of"] == n] for n, name in enumerate(CELLS)}
    text, image = cells["text alone"], cells["image alone"]
    auc = math.nan
    if len(text) and len(image):
        ranks = statistics.average_ranks(np.concatenate([image, text]))[: len(image)]
        auc = float((ranks.sum() - len(image) * (len(image) + 1) / 2) / (len(image) * len(text)))
    return {"cells": {n: float(v.mean()) if len(v) else math.nan for n, v in cells.items()}, "auc": auc}


def audit(test: TestSet, protocol: str, metric: str) -> dict[str, Any] | None:
    """Whether one modality alone already answers the queries; needs runs of `text-only` and `image-only`.

    Of each kind the arm with the highest mean stands; a query is answered where its value, averaged over seeds, is
    one half or more.
    """
    best: dict[str, tuple[Arm, np.ndarray]] = {}
    for arm in test.arms:
        values = arm_values(arm, protocol, metric)
        name = arm.method if arm.method in ("text-only", "image-only") else "composed"
        if values is not None and arm.method != "random" and (name not in best or values.mean() > best[name][1].mean()):
            best[name] = (arm, values)
    if len(best) < 3:
        return None
    text, image, composed = (best[n][1] for n in ("text-only", "image-only", "composed"))
    weights = test.weights(protocol, metric)
    mean = lambda v: 100 * float(np.average(v, weights=weights))  # noqa: E731  used five times, here alone
    cell_of = (text >= 0.5) + 2 * (image >= 0.5)
    better, single = max((("text-only", text), ("image-only", image)), key=lambda pair: mean(pair[1]))
    clusters = test.clusters[rows_of(test.first, protocol)]
    low, high = 100 * statistics.bootstrap_interval(composed - single, clusters, weights=weights)
    return {
        "arm": best["composed"][0], "arms": {n: a for n, (a, _) in best.items()}, "metric": metric,
        "text": mean(text), "image": mean(image), "composed": mean(composed), "queries": len(cell_of),
        "better": better, "gap": mean(composed) - mean(single), "gap_low": float(low), "gap_high": float(high),
        "cell_of": cell_of,
        "cells": [
            {
                "name": name, "count": int((cell_of == n).sum()), "share": 100 * float((cell_of == n).mean()),
                "composed": 100 * float(composed[cell_of == n].mean()) if (cell_of == n).any() else math.nan,
            }
            for n, name in enumerate(CELLS)
        ],
    }
