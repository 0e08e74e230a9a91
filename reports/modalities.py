"""Which modality counts: the learned weight against known importance, and what text or image alone already answers."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from cirbench.scoring import statistics

from .collect import Arm, TestSet, arm_values, rows_of
from .differences import difference, error_of

__all__ = ["Audit", "AuditCell", "WeightRow", "audit", "modality"]

MIX = {"text": 0, "text-dominant": 0, "balanced": 1, "image": 2, "image-dominant": 2}
#: Methods that see one of the two.
SINGLE = ("text-only", "image-only")
#: What answers a query: text counts 1, the image 2.
CELLS = ("neither", "text alone", "image alone", "both")


@dataclass(frozen=True)
class AuditCell:
    """Queries answered by one kind of modality.

    Attributes:
        name: one of `CELLS`.
        count, share: how many queries, and percent of all.
        composed: percent of them that the composing method answers, NaN without queries.
    """

    name: str
    count: int
    share: float
    composed: float


@dataclass(frozen=True)
class Audit:
    """Whether one modality alone already answers the queries.

    Attributes:
        arm: the best composing method.
        text_arm, image_arm: the best `text-only` and `image-only`.
        metric: by which a query is answered.
        text, image, composed: means in percent.
        better: method of the better single modality.
        gap, gap_low, gap_high: composed less the better single modality, points, with its 95 % interval over queries
            and, where both have several, seeds.
        cell_of: (R,) position in `CELLS` of each row.
        cells: one each.
    """

    arm: Arm
    text_arm: Arm
    image_arm: Arm
    metric: str
    text: float
    image: float
    composed: float
    better: str
    gap: float
    gap_low: float
    gap_high: float
    cell_of: np.ndarray
    cells: list[AuditCell]


@dataclass(frozen=True)
class WeightRow:
    """The learned share of the image of one arm and stream.

    Attributes:
        arm, stream: whose.
        holds_text: whether the text has edited the image branch, so that its weight is not that of the picture.
        mean, by: over all queries, and by group.
        values: (B,) share of each query, mean over seeds.
        known: (B,) importance of the image by the mix of each query, 0 to 2; -1 where it is not known.
        rho, ceiling, std: rank correlation with it, the highest that its ties allow, deviation over seeds; NaN where
            importance is not known, `std` also for one seed.
        cells: mean share of the queries of each kind of the composition audit; empty without one.
        auc: how often a query that only the image answers has a larger share than one that only the text answers.
    """

    arm: Arm
    stream: str
    holds_text: bool
    mean: float
    by: dict[str, float]
    values: np.ndarray
    known: np.ndarray
    rho: float
    ceiling: float
    std: float
    cells: dict[str, float]
    auc: float


def modality(test: TestSet, audit: Audit | None = None) -> list[WeightRow]:
    """Learned share of the image, per arm and stream, and how it goes with importance.

    Importance is the known mix of each query, where the dataset has it, and what the single modalities answer.
    Constant weights are left out.
    """
    known = np.array([MIX.get(str((q.get("extra") or {}).get("mix", "")), -1) for q in test.queries])
    mixed = bool(np.all(known >= 0)) and len(set(known.tolist())) > 1
    # Three known levels cannot order all queries: the most any untied weight can reach.
    ceiling = statistics.spearman(np.argsort(np.argsort(known, kind="stable")), known) if mixed else math.nan
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
            rhos = [statistics.spearman(p, known) for p in parts] if mixed else []
            cells, auc = _against_audit(share, audit)
            out.append(WeightRow(
                arm, stream, stream == "cnn" and _edited(arm), float(share.mean()), by, share, known,
                statistics.spearman(share, known) if mixed else math.nan, ceiling,
                statistics.mean_std(rhos)[1] if rhos else math.nan, cells, auc,
            ))
    return out


def _edited(arm: Arm) -> bool:
    """Whether the image branch of its CNN stream is edited by the text."""
    return arm.knobs.get("method.editors", "none") != "none"


def _against_audit(share: np.ndarray, audit: Audit | None) -> tuple[dict[str, float], float]:
    """Mean share of each kind of query, and the chance that it ranks image-only above text-only queries."""
    if audit is None or len(audit.cell_of) != len(share):
        return {}, math.nan
    cells = {name: share[audit.cell_of == n] for n, name in enumerate(CELLS)}
    text, image = cells["text alone"], cells["image alone"]
    auc = math.nan
    if len(text) and len(image):
        ranks = statistics.average_ranks(np.concatenate([image, text]))[: len(image)]
        auc = float((ranks.sum() - len(image) * (len(image) + 1) / 2) / (len(image) * len(text)))
    return {n: float(v.mean()) if len(v) else math.nan for n, v in cells.items()}, auc


def audit(test: TestSet, protocol: str, metric: str) -> Audit | None:
    """Whether one modality alone already answers the queries; needs runs of `text-only` and `image-only`.

    Of each kind the arm with the highest mean stands; a query is answered where its value, averaged over seeds, is
    one half or more.
    """
    best: dict[str, tuple[Arm, np.ndarray]] = {}
    for arm in test.arms:
        values = arm_values(arm, protocol, metric)
        name = arm.method if arm.method in SINGLE else "composed"
        if values is not None and arm.method != "random" and (name not in best or values.mean() > best[name][1].mean()):
            best[name] = (arm, values)
    if len(best) < 3:
        return None
    text, image, composed = (best[n][1] for n in (*SINGLE, "composed"))
    weights = test.weights(protocol, metric)
    mean = lambda v: 100 * float(np.average(v, weights=weights))  # noqa: E731  used five times, here alone
    cell_of = (text >= 0.5) + 2 * (image >= 0.5)
    better, single = max(zip(SINGLE, (text, image), strict=True), key=lambda pair: mean(pair[1]))
    found = difference(best[better][0], best["composed"][0], protocol, metric)
    assert found is not None  # both have values
    gap = error_of(found, test.clusters[rows_of(test.first, protocol)], weights)
    return Audit(
        best["composed"][0], best["text-only"][0], best["image-only"][0], metric, mean(text), mean(image),
        mean(composed), better, mean(composed) - mean(single), 100 * gap.low, 100 * gap.high, cell_of,
        [
            AuditCell(
                name, int((cell_of == n).sum()), 100 * float((cell_of == n).mean()),
                100 * float(composed[cell_of == n].mean()) if (cell_of == n).any() else math.nan,
            )
            for n, name in enumerate(CELLS)
        ],
    )
