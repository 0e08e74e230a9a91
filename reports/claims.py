"""What papers claim, as questions answered from the runs at hand (claims.toml): yes, no, or not separable."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cirbench.scoring import statistics

from .analysis import FRAME, Delta, judged, likeness, paired
from .attention import Evidence
from .collect import Arm, TestSet
from .modalities import Audit, WeightRow

__all__ = ["Answer", "answers"]

YES, NO, OPEN, SINGLE = "yes", "no", "not separable", "one seed"
#: A question with more arms to ask than this shows those of the shortest labels.
MOST = 6


@dataclass
class Answer:
    """A question about one arm, `verdict`, and the sentence of numbers that it rests on."""

    question: str
    verdict: str
    where: str
    evidence: str
    arm: Arm
    delta: Delta | None = None


def answers(
    test: TestSet, protocol: str, metric: str, modality: Sequence[WeightRow], audit: Audit | None,
    attention: Sequence[Evidence],
) -> list[Answer]:
    """All questions that these runs can answer.

    Args:
        test: the runs.
        protocol: whose ranks are compared.
        metric: in points.
        modality: of `modalities.modality`.
        audit: of `modalities.audit`.
        attention: of `attention.attention`.
    """
    asked = [(c["question"], arm, delta) for c in _claims() for arm, delta in _pairs(test, protocol, metric, c)]
    judged(test, protocol, metric, [delta for _, _, delta in asked])
    out = [
        Answer(
            question, YES if d.clear and d.value > 0 else NO if d.clear else OPEN if d.over_seeds else SINGLE,
            arm.label, _gain(d, metric), arm, d,
        )
        for question, arm, d in asked
    ]
    return [*out, *_composition(audit), *_weights(test, modality), *_grounding(attention)]


def _claims() -> list[dict[str, Any]]:
    text = (Path(__file__).parent / "claims.toml").read_text(encoding="utf-8")
    claims: list[dict[str, Any]] = tomllib.loads(text)["claim"]
    return claims


def _has(knobs: Mapping[str, Any], wanted: Mapping[str, Any]) -> bool:
    """Whether an arm has these values; a knob that it lacks is not one of them."""
    for name, value in wanted.items():
        have = knobs.get(name)
        if value == ">0":
            if not isinstance(have, int | float) or isinstance(have, bool) or not have > 0:
                return False
        elif have is None or have != value:
            return False
    return True


def _pairs(test: TestSet, protocol: str, metric: str, claim: Mapping[str, Any]) -> Iterator[tuple[Arm, Delta]]:
    """(arm with the part, what the part gains) for every pair of arms that differ in the part alone."""
    arms = [a for a in test.arms if protocol in a.protocols()]
    own = [a for a in arms if a.method == claim["method"]]
    pairs_: list[tuple[Arm, Arm]] = []
    if "against" in claim:
        rivals = [a for a in arms if a.method == claim["against"] and a.variant == claim["variant"]]
        pairs_ = [(a, b) for a in own if not a.variant or set(a.overrides) <= set(FRAME) for b in rivals if _like(a, b)]
    else:
        keys = set(claim["with"]) | set(claim["without"])
        places: dict[str, list[tuple[Arm, Arm]]] = {}
        without: dict[str, list[Arm]] = {}
        for b in own:
            if _has(b.knobs, {**claim.get("where", {}), **claim["without"]}):
                without.setdefault(_rest(b, keys), []).append(b)
        for a in own:
            wrong = bool(a.knobs.get("data.noise_rate"))
            if _has(a.knobs, {**claim.get("where", {}), **claim["with"]}) and claim.get("noise", wrong) == wrong:
                rest = _rest(a, keys)
                places.setdefault(rest, []).extend((a, b) for b in without.get(rest, []))
        # Of what is the same but for the version of the code, one pair: of one version, with the most seeds.
        pairs_ = [max(pairs, key=lambda p: likeness(*p)) for pairs in places.values() if pairs]
    for a, b in sorted(pairs_, key=lambda pair: len(pair[0].label))[:MOST]:
        pair = paired(a, b, protocol, metric)
        if pair:
            yield a, Delta(a.label, {}, b, *pair)


def _rest(arm: Arm, without: set[str]) -> str:
    """The other knobs, as text; the kind of noise is no knob where the rate is zero."""
    clean = {} if arm.knobs.get("data.noise_rate") else {"data.noise_kind": None}
    return repr(sorted((n, repr(v)) for n, v in {**arm.knobs, **clean}.items() if n not in without))


def _like(a: Arm, b: Arm) -> bool:
    """Same data, encoders, sizes, streams, loss and budget: every knob that both methods have but for learning rates.

    One rate for all would favour the method it was chosen for; each has its own, chosen on `select`.
    """
    one, two = ({n: v for n, v in arm.knobs.items() if n.startswith("trained.")} for arm in (a, b))
    return one == two and all(
        b.knobs[n] == v for n, v in a.knobs.items() if n in b.knobs and not n.endswith("_lr")
    )


def _gain(d: Delta, metric: str) -> str:
    spread = f", ± {d.std:.2f} over {d.seeds} seeds" if d.seeds > 1 else ", one seed"
    return f"{_s(d.value)} points of {metric} [{_s(d.low)}, {_s(d.high)}]{spread}; p = {d.p:.4f}"


def _n(value: float, digits: int) -> str:
    return f"{value:.{digits}f}".replace("-", "−")


def _s(value: float) -> str:
    return f"{value:+.2f}".replace("-", "−")


def _composition(audit: Audit | None) -> Iterator[Answer]:
    if audit is None:
        return
    verdict = YES if audit.gap_low > 0 else NO if audit.gap_high < 0 else OPEN
    yield Answer(
        "Does composing beat the better single modality?", verdict, audit.arm.label,
        f"{_s(audit.gap)} points of {audit.metric} [{_s(audit.gap_low)}, {_s(audit.gap_high)}] over "
        f"{audit.better}", audit.arm,
    )


def _weights(test: TestSet, modality: Sequence[WeightRow]) -> Iterator[Answer]:
    """The learned weight of each method's CLIP stream; that of a CNN stream has no such meaning where it is edited."""
    first: dict[str, WeightRow] = {}
    for row in sorted(modality, key=lambda m: len(m.arm.overrides)):  # the method as it comes before its variants
        if row.stream == "clip" and np.isfinite(row.rho):
            first.setdefault(row.arm.method, row)
    for row in first.values():
        low, high = spearman_interval(row.values, row.known, test.clusters)
        verdict = YES if low > 0 else NO if high < 0.1 else OPEN
        weak = ", less than half of the maximum" if verdict == YES and row.rho < row.ceiling / 2 else ""
        yield Answer(
            "Does lambda follow the importance of the modalities (CLIP stream)?", verdict, row.arm.label,
            f"rank correlation {_n(row.rho, 3)} [{_n(low, 3)}, {_n(high, 3)}]; at most {_n(row.ceiling, 3)} given "
            f"its ties{weak}", row.arm,
        )


def spearman_interval(
    values: np.ndarray, known: np.ndarray, clusters: np.ndarray, resamples: int = 200
) -> tuple[float, float]:
    """95 % percentile bootstrap of a rank correlation, whole reference images drawn with replacement."""
    generator = np.random.default_rng(0)
    order = np.argsort(clusters, kind="stable")
    members = np.split(order, np.unique(clusters[order], return_index=True)[1][1:])
    correlations = []
    for _ in range(resamples):
        rows = np.concatenate([members[n] for n in generator.integers(0, len(members), len(members))])
        correlations.append(statistics.spearman(values[rows], known[rows]))
    low, high = np.nanpercentile(correlations, [2.5, 97.5])
    return float(low), float(high)


def _grounding(attention: Sequence[Evidence]) -> Iterator[Answer]:
    for entry in attention:
        maps = [s for s in entry.scores if s.against]
        if not maps:
            continue
        best = max(maps, key=lambda s: s.named)
        good = [s for s in maps if s.grounded]
        beaten = [
            f"{name} {value:.1f} %" for name, value in (
                ("a random cell", best.chance), ("a random cell on an object", best.object_chance),
                *((f"{n}, which does not see the text,", v) for n, v in best.free.items()),
            )
        ]
        grounded = f"{len(good)} of {len(maps)} maps that see the text are" if good else "no map that sees the text is"
        yield Answer(
            "Is the attention grounded in the words?", YES if good else NO, entry.arm.label,
            f"{grounded} above {', '.join(beaten)}; the best, {best.map}, peaks on the named object in "
            f"{best.named:.1f} % of {best.n} queries", entry.arm,
        )
