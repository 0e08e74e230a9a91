"""Questions that a report answers from records: what parts are worth, how knobs act, how training went."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from cirbench.scoring import statistics

from .collect import LEVEL, Arm, TestSet, identity, rows_of
from .differences import difference, error_of

__all__ = [
    "Curve",
    "Delta",
    "FalseNegative",
    "Family",
    "TrainingCurves",
    "ablations",
    "curves",
    "false_negatives",
    "judged",
    "paired",
    "training",
]

Points = dict[str, list[tuple[int, float]]]

NOISE = ("data.noise_rate", "data.noise_kind")
BACKBONE = ("method.clip", "method.clip_size")
#: What a method stands on; parts are taken away within a frame.
FRAME = (*BACKBONE, "method.streams", "method.freeze_clip", "method.cnn", "method.cnn_size", "method.cnn_pretrained")


@dataclass
class Delta:
    """A difference of two arms, in points. `p` is corrected over its table; `std` is over seeds (NaN for one).

    `values` are what `differences.error_of` takes. `over_seeds`: whether the error holds the spread over seeds.
    """

    label: str
    changed: dict[str, Any]
    arm: Arm | None
    values: np.ndarray | tuple[np.ndarray, np.ndarray]
    by_seed: list[float]
    value: float = math.nan
    low: float = math.nan
    high: float = math.nan
    p: float = 1.0
    over_seeds: bool = False

    @property
    def seeds(self) -> int:
        """How many seeds it is over."""
        return len(self.by_seed)

    @property
    def std(self) -> float:
        """Deviation of the difference over seeds."""
        return statistics.mean_std(self.by_seed)[1]

    @property
    def clear(self) -> bool:
        """Whether it holds over queries and seeds; of one seed nothing is said."""
        return self.p < LEVEL and self.over_seeds


@dataclass
class Family:
    """A method as it comes and its ablations."""

    base: Arm
    metric: str
    deltas: list[Delta]
    interactions: list[Delta] = field(default_factory=list)


@dataclass
class Curve:
    """Scores over the values of one knob, everything else equal: (value, [score a seed]).

    `near` are the values whose scores are not separable from the highest.
    """

    label: str
    knob: str
    points: list[tuple[Any, list[float], Arm]]
    near: list[Any] = field(default_factory=list)

    @property
    def verdict(self) -> str:
        """Where the mean is highest, and what that is worth."""
        means = [float(np.mean(scores)) for _, scores, _ in self.points]
        best = int(np.argmax(means))
        where = ", at an end of the values tried" if best in (0, len(means) - 1) else ", inside the values tried"
        highest = f"highest at {self.points[best][0]} ({means[best]:.2f})"
        highest += where if _is_number(self.points[best][0]) else ""
        if len(self.near) == len(self.points) - 1:
            return f"{highest}, but no other value is separable from it: these runs do not show that it matters"
        near = f"not separable from it: {', '.join(map(str, self.near))}" if self.near else "above every other value"
        return f"{highest}; {near}; range {max(means) - min(means):.2f} points"


def paired(
    a: Arm, b: Arm, protocol: str, metric: str
) -> tuple[np.ndarray | tuple[np.ndarray, np.ndarray], list[float]] | None:
    """a - b over the seeds both have, or all if they share none: as `error_of` takes it, and in points by seed."""
    common = [s for s in map(str, a.seeds) if s in set(map(str, b.seeds))]
    sides, scores = [], []
    for arm in (a, b):
        records = [r for r in arm.records if str(r.run.inputs.seed) in common] or arm.records
        same = arm if len(records) == len(arm.records) else Arm(arm.key, records)
        sides.append(same)
        scores.append(same.scores(protocol, metric))
    found = difference(sides[1], sides[0], protocol, metric)
    if found is None or not all(scores):
        return None
    if len(scores[0]) == len(scores[1]) == len(common):
        return found, [x - y for x, y in zip(*scores, strict=True)]
    return found, [float(np.mean(scores[0]) - np.mean(scores[1]))]


def judged(test: TestSet, protocol: str, metric: str, deltas: list[Delta]) -> list[Delta]:
    """Fill values, intervals and corrected p of deltas that share a table."""
    if not deltas:
        return deltas
    weights = test.weights(protocol, metric)
    clusters = test.clusters[rows_of(test.first, protocol)]
    errors = [error_of(delta.values, clusters, weights) for delta in deltas]
    for delta, error, p in zip(deltas, errors, statistics.holm([e.p for e in errors]), strict=True):
        delta.value, delta.low, delta.high = 100 * error.difference, 100 * error.low, 100 * error.high
        delta.p, delta.over_seeds = p, error.seeds
    return deltas


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _taken(arm: Arm, base: Arm) -> dict[str, Any] | None:
    """The knobs by which `arm` is an ablation of `base`; None where it is something else.

    An ablation is a named variant, another stream, or a choice made otherwise or a weight set to nothing with
    everything else equal. Another value of a number is a point of a curve.
    """
    if arm.method != base.method:
        return None
    names = dict.fromkeys([*base.knobs, *arm.knobs])
    changed = {n: arm.knobs.get(n) for n in names if arm.knobs.get(n) != base.knobs.get(n)}
    if not changed or any(n.startswith(("data.", "trained.")) for n in changed):
        return None
    if set(changed) == {"method.streams"}:
        return changed if base.knobs.get("method.streams") == "both" else None
    if arm.variant and arm.variant != base.variant and not base.overrides:
        return changed
    if any(n in FRAME or not n.startswith("method.") for n in changed):
        return None
    off = all(not _is_number(v) or v == 0 for v in changed.values())
    return changed if off or (arm.variant and arm.variant != base.variant) else None


def _bases(arms: Sequence[Arm]) -> list[Arm]:
    """Methods as they come, whole or in one stream; where a sweep has none, the arm most others differ least from."""
    frames: dict[str, list[Arm]] = {}
    for arm in arms:
        rest = {n: v for n, v in arm.knobs.items() if n in FRAME or not n.startswith("method.")}
        frames.setdefault(repr((arm.method, sorted(rest.items(), key=repr))), []).append(arm)
    out = []
    for members in frames.values():
        plain = [a for a in members if all(n in FRAME or n.startswith("train.") for n in a.overrides)
                 and (not a.variant or set(a.overrides) <= {"method.streams"})]
        if not plain and len(members) > 2:
            usual = {}
            for name in members[0].knobs:
                texts = [repr(a.knobs.get(name)) for a in members]
                usual[name] = max(dict.fromkeys(texts), key=texts.count)
                if 2 * texts.count(usual[name]) <= len(texts):
                    break
            else:
                plain = [a for a in members if all(repr(a.knobs.get(n)) == v for n, v in usual.items())]
        out += plain
    return out


def likeness(a: Arm, b: Arm) -> tuple[bool, int]:
    """How well two arms are compared: run by one version of the code, and over how many common seeds."""
    return a.inputs.code == b.inputs.code, len(set(map(str, a.seeds)) & set(map(str, b.seeds)))


def _named(arm: Arm, base: Arm, changed: dict[str, Any]) -> str:
    if arm.variant and arm.variant != base.variant:
        return arm.variant
    return ", ".join(f"{n.partition('.')[2]}={v}" for n, v in changed.items())


def ablations(test: TestSet, protocol: str, metric: str) -> list[Family]:
    """What each part taken away changes, against the method as it comes, and interactions of two parts."""
    scored = [a for a in test.arms if protocol in a.protocols()]
    bases = _bases(scored)
    members: dict[str, list[tuple[Arm, dict[str, Any]]]] = {}
    for arm in scored:
        # Against the whole it differs least from.
        candidates = [(base, c) for base in bases if base is not arm and (c := _taken(arm, base))]
        if candidates:
            base, changed = max(candidates, key=lambda f: (-len(f[1]), *likeness(arm, f[0])))
            members.setdefault(base.key, []).append((arm, changed))
    out = []
    for base in bases:
        deltas = []
        for arm, changed in members.get(base.key, []):
            pair = paired(arm, base, protocol, metric)
            if pair:
                deltas.append(Delta(_named(arm, base, changed), changed, arm, *pair))
        if not deltas:
            continue
        family = Family(base, metric, judged(test, protocol, metric, deltas))
        family.deltas.sort(key=lambda d: (d.value, d.label))
        for both in family.deltas:
            for i, one in enumerate(family.deltas):
                for other in family.deltas[i + 1 :]:
                    parts = {**one.changed, **other.changed}
                    alike = [d.values for d in (both, one, other) if isinstance(d.values, np.ndarray)]
                    if len({v.shape for v in alike}) != 1 or len(alike) < 3:
                        continue  # over other seeds
                    if both.changed == parts and not (set(one.changed) & set(other.changed)):
                        sums = [x - y - z for x, y, z in zip(both.by_seed, one.by_seed, other.by_seed, strict=False)]
                        family.interactions.append(Delta(
                            f"{one.label} × {other.label}", parts, both.arm,
                            alike[0] - alike[1] - alike[2], sums,
                        ))
        judged(test, protocol, metric, family.interactions)
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
                if _is_number(value) and name not in NOISE:
                    seen.setdefault(name, set()).add(float(value))
        wanted = [(name,) for name, values in seen.items() if len(values) >= least]
    out = []
    for names in wanted:
        groups: dict[str, list[Arm]] = {}
        for arm in arms:
            if arm.knobs.get(names[0]) is not None:
                groups.setdefault(identity(arm.inputs, *names), []).append(arm)
        for together in groups.values():
            for members in _kinds(together) if names == NOISE else [together]:
                points = [(a.knobs[names[0]], a.scores(protocol, metric), a) for a in members]
                if len({repr(p[0]) for p in points}) < least:
                    continue
                points.sort(key=lambda p: (p[0] if _is_number(p[0]) else 0, str(p[0])))
                plain = min(members, key=lambda a: (bool(a.knobs.get(names[0])) if knobs else 0, len(a.label), a.label))
                kind = next((str(a.knobs[NOISE[1]]) for a in members if a.knobs.get(NOISE[1], "none") != "none"), "")
                name = _without(plain.label, names) + (f", {kind} noise" if names == NOISE and kind else "")
                out.append(Curve(name, names[0], points, _near(test, protocol, metric, points)))
    return out


def _kinds(arms: Sequence[Arm]) -> list[list[Arm]]:
    """Noise of each kind by itself, every kind with the clean arms."""
    kinds = dict.fromkeys(str(a.knobs.get(NOISE[1], "")) for a in arms if a.knobs.get(NOISE[0]))
    return [
        [a for a in arms if not a.knobs.get(NOISE[0]) or str(a.knobs.get(NOISE[1], "")) == kind] for kind in kinds
    ]


def _without(label: str, names: Sequence[str]) -> str:
    """A label without the values of some knobs."""
    head, bracket, rest = label.partition(" (")
    if not bracket or not rest.endswith(")"):
        return label
    short = {name.partition(".")[2] for name in names}
    kept = [part for part in rest[:-1].split(", ") if part.partition("=")[0] not in short]
    return f"{head} ({', '.join(kept)})" if kept else head


def _near(
    test: TestSet, protocol: str, metric: str, points: Sequence[tuple[Any, list[float], Arm]]
) -> list[Any]:
    """Values of a curve that are not separable from its highest."""
    best = max(points, key=lambda p: float(np.mean(p[1])))
    deltas = []
    for value, _, arm in points:
        pair = paired(best[2], arm, protocol, metric) if arm is not best[2] else None
        if pair:
            deltas.append(Delta(str(value), {"value": value}, arm, *pair))
    return [d.changed["value"] for d in judged(test, protocol, metric, deltas) if not d.clear]


@dataclass(frozen=True)
class FalseNegative:
    """An unlabelled `image` that `votes` `of` so many methods rank above the target of a query."""

    query: dict[str, Any]
    image: str
    votes: int
    of: int


def false_negatives(test: TestSet, protocol: str, most: int = 12) -> list[FalseNegative]:
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
        name = f"top/{record.run.protocols[protocol].form}"
        if name not in record.rankings:
            continue
        top, rank = record.rankings[name][:, :10].astype(np.int64), record.rankings[f"rank/{protocol}"]
        above = (np.arange(1, top.shape[1] + 1) < rank[:, None]) & (top >= 0)
        rows = np.broadcast_to(rows_of(record, protocol)[:, None], top.shape)
        codes.append(np.unique((rows * size + top)[above]))
    if len(codes) < 3:
        return []
    pairs, votes = np.unique(np.concatenate(codes), return_counts=True)
    out: list[FalseNegative] = []
    for n in np.argsort(-votes, kind="stable"):
        if votes[n] < 3 or len(out) == most:
            break
        query, image = test.queries[int(pairs[n]) // size], test.gallery[int(pairs[n]) % size]
        if image not in query["targets"] and query.get("targets_total", 0) <= len(query["targets"]):
            out.append(FalseNegative(query, image, int(votes[n]), len(codes)))
    return out


@dataclass(frozen=True)
class TrainingCurves:
    """Training of one arm: quantity -> (epoch, mean over seeds).

    Attributes:
        arm: whose.
        losses: by optimizer.
        select: the value that chooses the checkpoint.
        bound: lower bound on the mutual information of query and target by stream, nats.
        pairs: N of the bounds, 0 without any.
        cap: log N, NaN without any.
    """

    arm: Arm
    losses: Points
    select: Points
    bound: Points
    pairs: int
    cap: float


def training(test: TestSet) -> list[TrainingCurves]:
    """Losses, evaluations and bounds on information by epoch, means over seeds, of at most eight trained arms.

    Arms with a label of their own go before settings of a sweep.
    """
    out = []
    for arm in sorted(test.arms, key=lambda a: a.point):
        parts: dict[str, dict[str, dict[int, list[float]]]] = {"losses": {}, "select": {}, "bound": {}}
        pairs = 0
        for record in arm.records:
            chosen = record.run.selection
            # The value that chose the checkpoint; with test-oracle it was measured on the reported split.
            name = chosen.metric or "value"
            name += ", reported split" if chosen.on_report else ", split select"
            for entry in record.training:
                pairs = max(pairs, int(entry.get("pairs") or 0))
                for kind, target in parts.items():
                    logged = entry.get(kind)
                    for quantity, value in (logged if isinstance(logged, dict) else {name: logged}).items():
                        if isinstance(value, int | float):
                            target.setdefault(quantity, {}).setdefault(int(entry["epoch"]), []).append(float(value))
        if any(parts.values()):
            by_epoch = {kind: _by_epoch(values) for kind, values in parts.items()}
            out.append(TrainingCurves(
                arm, **by_epoch, pairs=pairs, cap=math.log(pairs) if pairs > 0 else math.nan
            ))
        if len(out) == 8:
            break
    return out


def _by_epoch(part: dict[str, dict[int, list[float]]]) -> Points:
    return {name: [(e, float(np.mean(v))) for e, v in sorted(by.items())] for name, by in part.items()}
