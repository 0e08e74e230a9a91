"""Questions that a report answers from records: what parts are worth, how knobs act, which modality counts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from cirbench.reports.collect import Arm, TestSet, arm_values, identity, rows_of

from cirbench import statistics

__all__ = ["Curve", "Delta", "Family", "ablations", "audit", "curves", "false_negatives", "modality", "training"]

LEVEL = 0.05
MIX = {"text": 0, "text-dominant": 0, "balanced": 1, "image": 2, "image-dominant": 2}
NOISE = ("data.noise_rate", "data.noise_kind")
BACKBONE = ("method.clip", "method.clip_size")


@dataclass
class Delta:
    """What changes against the whole method, in points. `p` is corrected over the table."""

    label: str
    changed: dict[str, Any]
    arm: Arm | None
    value: float
    low: float
    high: float
    p: float
    seeds: int
    values: np.ndarray

    @property
    def clear(self) -> bool:
        """Whether the difference holds at the level of the report."""
        return self.p < LEVEL and (self.low > 0 or self.high < 0)


@dataclass
class Family:
    """A method as it comes and its ablations."""

    base: Arm
    metric: str
    deltas: list[Delta]
    interactions: list[Delta] = field(default_factory=list)


@dataclass
class Curve:
    """Scores over the values of one knob, everything else equal: (value, [score a seed])."""

    label: str
    knob: str
    points: list[tuple[Any, list[float], Arm]]

    @property
    def verdict(self) -> str:
        """Where the mean is highest."""
        means = [float(np.mean(scores)) for _, scores, _ in self.points]
        best = int(np.argmax(means))
        where = "at an end of the values tried" if best in (0, len(means) - 1) else "inside the values tried"
        span = max(means) - min(means)
        return f"highest at {self.points[best][0]} ({means[best]:.2f}), {where}; range {span:.2f} points"


def _changed(arm: Arm, base: Arm) -> dict[str, Any] | None:
    """Knobs in which `arm` differs from `base`; None where something other than knobs of the method does."""
    names = dict.fromkeys([*base.knobs, *arm.knobs])
    out = {n: arm.knobs.get(n) for n in names if arm.knobs.get(n) != base.knobs.get(n)}
    return out if out and not any(n.startswith("data.") for n in out) else None


def _paired(a: Arm, b: Arm, protocol: str, metric: str) -> tuple[np.ndarray, int] | None:
    """(R,) a - b over the seeds both have (over all where they share none), and how many those are."""
    common = set(map(str, a.seeds)) & set(map(str, b.seeds))
    parts = []
    for arm in (a, b):
        records = [r for r in arm.records if str(r.data["inputs"].get("seed")) in common] or arm.records
        parts.append(arm_values(Arm(arm.key, records), protocol, metric))
    if parts[0] is None or parts[1] is None or len(parts[0]) != len(parts[1]):
        return None
    return parts[0] - parts[1], len(common) or min(len(a.records), len(b.records))


def _tested(test: TestSet, protocol: str, metric: str, found: list[Delta]) -> list[Delta]:
    """Fill values, intervals and corrected p of deltas that share a table."""
    if not found:
        return found
    weights = test.weights(protocol, metric)
    clusters = test.clusters[rows_of(test.first, protocol)]
    matrix = np.stack([d.values for d in found], axis=1)
    low, high = 100 * statistics.bootstrap_interval(matrix, clusters, weights=weights)
    scaled = matrix if weights is None else matrix * weights[:, None]
    adjusted = statistics.holm(statistics.paired_permutation(scaled, clusters).tolist())
    means = 100 * np.average(matrix, axis=0, weights=weights)
    for n, delta in enumerate(found):
        delta.value, delta.low, delta.high, delta.p = map(float, (means[n], low[n], high[n], adjusted[n]))
    return found


def _delta(label: str, changed: dict[str, Any], arm: Arm | None, values: np.ndarray, seeds: int) -> Delta:
    return Delta(label, changed, arm, math.nan, math.nan, math.nan, 1.0, seeds, values)


def ablations(test: TestSet, protocol: str, metric: str) -> list[Family]:
    """For every method run both as it comes and as named variants: what each variant changes, and interactions."""
    out = []
    scored = [a for a in test.arms if protocol in a.protocols()]
    for base in scored:
        if base.variant or base.overrides:
            continue
        found = []
        for arm in scored:
            if arm.method != base.method or not arm.variant:
                continue
            changed, pair = _changed(arm, base), _paired(arm, base, protocol, metric)
            if changed and pair:
                found.append(_delta(arm.variant, changed, arm, *pair))
        if not found:
            continue
        family = Family(base, metric, _tested(test, protocol, metric, found))
        family.deltas.sort(key=lambda d: (d.value, d.label))
        for both in family.deltas:
            for i, one in enumerate(family.deltas):
                for other in family.deltas[i + 1 :]:
                    parts = {**one.changed, **other.changed}
                    if both.changed == parts and not (set(one.changed) & set(other.changed)):
                        family.interactions.append(_delta(
                            f"{one.label} × {other.label}", parts, both.arm,
                            both.values - one.values - other.values, min(one.seeds, other.seeds, both.seeds),
                        ))
        _tested(test, protocol, metric, family.interactions)
        out.append(family)
    return out


def curves(test: TestSet, protocol: str, metric: str, knobs: Sequence[str] = (), least: int = 3) -> list[Curve]:
    """Curves over numeric knobs (or over `knobs`, taken together, the first of them being the axis)."""
    arms = [a for a in test.arms if a.scores(protocol, metric)]
    if knobs:
        wanted: list[tuple[str, ...]] = [tuple(knobs)]
    else:
        seen: dict[str, set[float]] = {}
        for arm in arms:
            for name, value in arm.knobs.items():
                if isinstance(value, int | float) and not isinstance(value, bool) and name not in NOISE:
                    seen.setdefault(name, set()).add(float(value))
        wanted = [(name,) for name, values in seen.items() if len(values) >= least]
    out = []
    for names in wanted:
        groups: dict[str, list[Arm]] = {}
        for arm in arms:
            if arm.knobs.get(names[0]) is not None:
                groups.setdefault(identity(arm.inputs, *names), []).append(arm)
        for members in groups.values():
            points = [(a.knobs[names[0]], a.scores(protocol, metric), a) for a in members]
            if len({repr(p[0]) for p in points}) < least:
                continue
            points.sort(key=lambda p: (p[0] if isinstance(p[0], int | float) else 0, str(p[0])))
            plain = min(members, key=lambda a: (bool(a.knobs.get(names[0])) if knobs else 0, len(a.label), a.label))
            name = plain.method + (f" {plain.variant}" if plain.variant and names == NOISE else "")
            out.append(Curve(name, names[0], points))
    return out


def modality(test: TestSet) -> list[dict[str, Any]]:
    """Mean learned share of the image by group, per arm and stream, and its rank correlation with the known mix."""
    known = np.array([MIX.get(str((q.get("extra") or {}).get("mix", "")), -1) for q in test.queries])
    out = []
    for arm in test.arms:
        streams: dict[str, list[np.ndarray]] = {}
        for record in arm.records:
            for stream, name in record.rankings.under("weight").items():
                streams.setdefault(stream, []).append(record.rankings[name])
        for stream, parts in streams.items():
            share = np.mean(parts, axis=0)
            by = {g: float(share[test.groups == g].mean()) for g in dict.fromkeys(test.groups.tolist())}
            row: dict[str, Any] = {"arm": arm, "stream": stream, "mean": float(share.mean()), "by": by, "values": share,
                                   "rho": math.nan, "ceiling": math.nan}
            if np.all(known >= 0) and len(set(known.tolist())) > 1:
                row["rho"] = statistics.spearman(share, known)
                # Three known levels cannot order all queries: the most any untied weight can reach.
                row["ceiling"] = statistics.spearman(np.argsort(np.argsort(known, kind="stable")), known)
            out.append(row)
    return out


def audit(test: TestSet, protocol: str, metric: str) -> dict[str, Any] | None:
    """Whether one modality alone already answers the queries; needs runs of `text-only` and `image-only`."""
    best: dict[str, tuple[Arm, np.ndarray]] = {}
    for arm in test.arms:
        values = arm_values(arm, protocol, metric)
        name = arm.method if arm.method in ("text-only", "image-only") else "composed"
        if values is not None and arm.method != "random" and (name not in best or values.mean() > best[name][1].mean()):
            best[name] = (arm, values)
    if len(best) < 3:
        return None
    text, image, composed = (best[n][1] for n in ("text-only", "image-only", "composed"))
    single = np.maximum(text, image)
    needs = single == 0  # in no seed of either
    return {
        "arm": best["composed"][0], "metric": metric,
        "text": 100 * float(text.mean()), "image": 100 * float(image.mean()),
        "either": 100 * float(single.mean()), "composed": 100 * float(composed.mean()), "needs": int(needs.sum()),
        "queries": len(needs), "on_needs": 100 * float(composed[needs].mean()) if needs.any() else math.nan,
        "gap": 100 * float(composed.mean() - max(text.mean(), image.mean())),
    }


def false_negatives(test: TestSet, protocol: str, most: int = 12) -> list[dict[str, Any]]:
    """Unlabelled images that the most methods put above the target: likely to be right as well.

    One arm a method and at most ten methods vote, each with its first ten; an image needs three votes.
    """
    voters: dict[str, Arm] = {}
    for arm in test.arms:
        if protocol in arm.protocols() and arm.method != "random":
            voters.setdefault(arm.method, arm)
    if len(voters) < 3:
        return []
    size = len(test.gallery)
    codes = []
    for arm in list(voters.values())[:10]:
        record = arm.records[0]
        name = f"top/{record.data['protocols'][protocol].get('form', 'text')}"
        if name not in record.rankings:
            continue
        top, rank = record.rankings[name][:, :10].astype(np.int64), record.rankings[f"rank/{protocol}"]
        above = (np.arange(1, top.shape[1] + 1) < rank[:, None]) & (top >= 0)
        rows = np.broadcast_to(rows_of(record, protocol)[:, None], top.shape)
        codes.append(np.unique((rows * size + top)[above]))
    if len(codes) < 3:
        return []
    found, votes = np.unique(np.concatenate(codes), return_counts=True)
    out: list[dict[str, Any]] = []
    for n in np.argsort(-votes, kind="stable"):
        if votes[n] < 3 or len(out) == most:
            break
        query, image = test.queries[int(found[n]) // size], test.gallery[int(found[n]) % size]
        if image not in query["targets"] and query.get("targets_total", 0) <= len(query["targets"]):
            out.append({"query": query, "image": image, "votes": int(votes[n]), "of": len(codes)})
    return out


def training(test: TestSet) -> list[dict[str, Any]]:
    """Losses by epoch and evaluations on `select`, means over seeds, of arms that were trained (at most eight)."""
    out = []
    for arm in test.arms:
        losses: dict[str, dict[int, list[float]]] = {}
        select: dict[str, dict[int, list[float]]] = {}
        for record in arm.records:
            for entry in record.training:
                for target, part in ((losses, entry.get("losses")), (select, entry.get("select"))):
                    for name, value in (part if isinstance(part, dict) else {}).items():
                        if isinstance(value, int | float):
                            target.setdefault(name, {}).setdefault(int(entry["epoch"]), []).append(float(value))
        if losses or select:
            out.append({"arm": arm, "losses": _by_epoch(losses), "select": _by_epoch(select)})
        if len(out) == 8:
            break
    return out


def _by_epoch(part: dict[str, dict[int, list[float]]]) -> dict[str, list[tuple[int, float]]]:
    return {name: [(e, float(np.mean(v))) for e, v in sorted(by.items())] for name, by in part.items()}
