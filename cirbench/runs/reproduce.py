"""A paper's recipe against its published figures (reports/expected.toml)."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from cirbench.runs import planning
from cirbench.runs.planning import Plan
from cirbench.runs.record_types import RunData
from cirbench.settings import unknown
from cirbench.types import CirbenchError


@dataclass(frozen=True)
class Expected:
    """One published row.

    Attributes:
        method, dataset, variant: as on the command line.
        protocol: of the metrics; it is used in training as well.
        over: `scope.field` -> value, the rest of the recipe.
        metrics: name -> percent as printed.
        source: where it was printed.
        tolerance: (OK, OKish) in points.
        doubt: why a difference may not be an error.
    """

    method: str
    dataset: str
    variant: str
    protocol: str
    over: Mapping[str, Any]
    metrics: Mapping[str, float]
    source: str
    tolerance: tuple[float, float]
    doubt: str = ""

    def plan(self, seed: int = 0, sets: Sequence[str] = (), root: Path | None = None, backbone: str = "") -> Plan:
        """The recipe as a run; `sets` win over it."""
        given = {text.partition("=")[0].strip() for text in sets}
        over = {"train.protocol": self.protocol, **self.over}
        over = {k: v for k, v in over.items() if k not in given}
        return planning.plan(self.method, self.dataset, self.variant, backbone, seed, sets, root, over)


@dataclass(frozen=True)
class Row:
    """One metric compared, in percent; `ours` is None where it was not measured."""

    metric: str
    expected: float
    ours: float | None
    verdict: str

    @property
    def difference(self) -> float | None:
        """Ours minus theirs."""
        return None if self.ours is None else self.ours - self.expected


def read() -> list[Expected]:
    """Everything in expected.toml."""
    text = files("cirbench.reports").joinpath("expected.toml").read_text(encoding="utf-8")
    data = tomllib.loads(text)
    return [
        Expected(
            e["method"], e["dataset"], e["variant"], e["protocol"], e["set"], e["metrics"],
            data["sources"][e["source"]], (float(e["tolerance"][0]), float(e["tolerance"][1])), e.get("doubt", ""),
        )
        for e in data["expected"]
    ]


def find(method: str, dataset: str) -> list[Expected]:
    """The rows of a method on a dataset; several where a paper trains one model per category.

    Raises:
        CirbenchError: no published figures, or none whose protocol is known.
    """
    known = read()
    methods = list(dict.fromkeys(e.method for e in known))
    if method not in methods:
        raise unknown("method with published figures", method, methods)
    found = [e for e in known if e.method == method and e.dataset == dataset]
    if not found:
        datasets = list(dict.fromkeys(e.dataset for e in known if e.method == method))
        raise unknown(f"dataset with published figures of {method}", dataset, datasets)
    return found


def verdict(difference: float, tolerance: tuple[float, float]) -> str:
    """`OK`, `OKish` or `FAIL`: a figure far above the published one is as suspicious as one far below."""
    # Figures are printed to a hundredth; a difference equal to the tolerance is within it.
    far = round(abs(difference), 6)
    return "OK" if far <= tolerance[0] else "OKish" if far <= tolerance[1] else "FAIL"


def compare(expected: Expected, run: RunData) -> list[Row]:
    """Expected against a finished run's record.

    Raises:
        CirbenchError: the record lacks the protocol or the metric.
    """
    scored = run.protocols.get(expected.protocol)
    if scored is None:
        why = run.omitted.get(expected.protocol, "this dataset has no such protocol")
        raise CirbenchError(f"{run.name} has no protocol {expected.protocol}: {why}.")
    rows = []
    for metric, theirs in expected.metrics.items():
        ours = scored.metrics.get(metric)
        if ours is None:
            raise CirbenchError(
                f"{run.name} has no {metric} under {expected.protocol}; it has {', '.join(scored.metrics)}."
            )
        rows.append(Row(metric, theirs, ours, verdict(ours - theirs, expected.tolerance)))
    return rows
