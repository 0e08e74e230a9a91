"""Numbers of a report: the main table with its intervals and tests, costs, and text forms of tables."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from cirbench.runs.record_types import ProtocolScores
from cirbench.scoring import statistics

from .collect import LEVEL, Arm, TestSet, arm_values, identity, metric_names, rows_of

__all__ = ["Cell", "CostRow", "MainTable", "Row", "cost_rows", "main_table", "plain_columns", "text_table"]

RESAMPLES = 2000


@dataclass
class Cell:
    """One number. `best`: significantly above every other arm; `top`: not separable from the best mean."""

    mean: float
    std: float
    low: float
    high: float
    seeds: list[float]
    best: bool = False
    top: bool = False


@dataclass
class Row:
    """An arm and its cells by metric (None where it has no such number)."""

    arm: Arm
    cells: dict[str, Cell | None]
    folded: bool = False


@dataclass
class MainTable:
    """Arms x metrics under one protocol of one test set."""

    test: TestSet
    protocol: str
    metrics: list[str]
    rows: list[Row]
    groups: list[str]
    facts: ProtocolScores
    ties: dict[str, list[int]]
    grouped: dict[str, dict[str, tuple[float, float]]] = field(default_factory=dict)
    detectable: float = math.nan
    notes: list[str] = field(default_factory=list)

    @property
    def by_metric(self) -> dict[str, dict[str, str]]:
        """Metric -> group -> name of the number (`dress/R@10`), groups in order."""
        out: dict[str, dict[str, str]] = {}
        for name in self.groups:
            group, _, metric = name.rpartition("/")
            out.setdefault(metric, {})[group] = name
        return out


def main_table(test: TestSet, protocol: str) -> MainTable:
    """Means over seeds, intervals over queries, and marks where a difference holds.

    Best is marked where, against each other arm, a paired permutation test over reference images (Holm-corrected)
    gives p < 0.05 *and*, where both were run with two seeds or more, the difference exceeds twice its standard
    error over seeds.
    """
    arms = [a for a in test.arms if protocol in a.protocols()]
    names = metric_names(arms, protocol)
    # The highest is seen, whatever it is.
    rows = [Row(arm, {name: _cell(arm, protocol, name) for name in names}, arm.point and arm is not arms[0])
            for arm in arms]
    facts = arms[0].run.protocols[protocol]
    table = MainTable(
        test, protocol, names, rows, metric_names(arms, protocol, groups=True), facts,
        {a.key: [r.run.protocols[protocol].ties for r in a.records] for a in arms},
    )
    for arm in arms:
        table.grouped[arm.key] = {m: statistics.mean_std(arm.scores(protocol, m)) for m in table.groups}
    clusters = test.clusters[rows_of(arms[0].records[0], protocol)]
    for name in names:
        _judge(table, name, clusters)
    table.notes = [*(line for arm in arms if (line := _lacking(arm, protocol))), *_other_code(arms)]
    return table


def _lacking(arm: Arm, protocol: str) -> str:
    """What missing pictures imply for a row (`cirbench run --allow-missing`), widest over its seeds; "" for none."""
    missing = [m for r in arm.records if (m := r.run.protocols[protocol].missing) is not None]
    if not missing:
        return ""
    between = [
        f"{name} {min(m.bounds[name][0] for m in missing):.2f} to {max(m.bounds[name][1] for m in missing):.2f}"
        for name in missing[0].bounds if "/" not in name and all(name in m.bounds for m in missing)
    ]
    return (
        f"{arm.label}: pictures are missing (queries lost: {missing[0].queries_lost}, images missing from a gallery: "
        f"{missing[0].gallery_lost}). Range on the complete data: {'; '.join(between) or 'unknown'}."
    )


def _cell(arm: Arm, protocol: str, name: str) -> Cell | None:
    scores = arm.scores(protocol, name)
    if not scores:
        return None
    mean, std = statistics.mean_std(scores)
    return Cell(mean, std, math.nan, math.nan, scores)


def _other_code(arms: Sequence[Arm]) -> list[str]:
    """Rows that differ in nothing but the version of the code they were run with."""
    same: dict[str, list[Arm]] = {}
    for arm in arms:
        same.setdefault(identity(arm.inputs, code=False), []).append(arm)
    out = []
    for first, *others in same.values():
        for arm in others:
            one, two = first.inputs.code, arm.inputs.code
            names = sorted(n for n in {*one, *two} if one.get(n) != two.get(n))
            trained = [a.inputs.evaluated.code if a.inputs.evaluated else "" for a in (first, arm)]
            files = ", ".join([*names, *(["the code that trained them"] if trained[0] != trained[1] else [])])
            if not files:
                continue  # one seed twice, with other weights
            pair = f"{first.label} and {arm.label}"
            out.append(f"{pair} differ only in that two versions of the code ({files}) ran them.")
    return out


def _judge(table: MainTable, name: str, clusters: np.ndarray) -> None:
    """Fill intervals and marks of one column."""
    known = []
    for row in table.rows:
        cell = row.cells[name]
        values = None if cell is None else arm_values(row.arm, table.protocol, name)
        if cell is not None and values is not None and len(values) == len(clusters):
            known.append((cell, values))
    if not known:
        return
    weights = table.test.weights(table.protocol, name)
    matrix = np.stack([values for _, values in known], axis=1)
    low, high = 100 * statistics.bootstrap_interval(matrix, clusters, weights=weights, resamples=RESAMPLES)
    for (cell, _), lower, upper in zip(known, low, high, strict=True):
        cell.low, cell.high = float(lower), float(upper)
    if len(known) < 2:
        return
    leader = max(range(len(known)), key=lambda i: known[i][0].mean)
    others = [i for i in range(len(known)) if i != leader]
    difference = matrix[:, [leader]] - matrix[:, others]
    if weights is not None:
        difference = difference * weights[:, None]
    p_values = statistics.paired_permutation(difference, clusters, resamples=5 * RESAMPLES - 1)
    adjusted = statistics.holm(p_values.tolist())
    beaten = [
        p < LEVEL and _beyond_seeds(known[leader][0], known[i][0]) for p, i in zip(adjusted, others, strict=True)
    ]
    known[leader][0].best = all(beaten)
    if not all(beaten):
        known[leader][0].top = True
        for i, lost in zip(others, beaten, strict=True):
            known[i][0].top = not lost
    if name == table.metrics[0]:
        runner = max(others, key=lambda i: known[i][0].mean)
        discordant = float(np.mean(np.abs(matrix[:, leader] - matrix[:, runner])))
        table.detectable = statistics.detectable_effect(len(matrix), discordant)


def _beyond_seeds(a: Cell, b: Cell) -> bool:
    """Whether the difference exceeds twice its standard error over seeds, where that is known."""
    if math.isnan(a.std) or math.isnan(b.std):
        return True
    error = math.sqrt(a.std**2 / len(a.seeds) + b.std**2 / len(b.seeds))
    return a.mean - b.mean > 2 * error


@dataclass(frozen=True)
class CostRow:
    """What an arm costs: means over its seeds, None where it was not measured.

    Attributes:
        arm: whose.
        trainable, total: parameters, those trained and all.
        flops_query, flops_image: of one query and one gallery image, frozen encoders included.
        epoch, train, seconds: seconds on the clock of one epoch, of the training, of the whole run.
        cpu: seconds of training on the processor, all cores together.
        p50, p95: latency of one query, milliseconds.
        memory: peak, megabytes.
    """

    arm: Arm
    trainable: float | None
    total: float | None
    flops_query: float | None
    flops_image: float | None
    epoch: float | None
    train: float | None
    cpu: float | None
    seconds: float | None
    p50: float | None
    p95: float | None
    memory: float | None


def cost_rows(arms: Sequence[Arm]) -> list[CostRow]:
    """One row an arm."""
    return [_cost_row(arm) for arm in arms]


def _cost_row(arm: Arm) -> CostRow:
    costs = [record.run.cost for record in arm.records]

    def mean(values: Iterable[float | None]) -> float | None:
        known = [float(v) for v in values if v is not None]
        return float(np.mean(known)) if known else None

    return CostRow(
        arm,
        trainable=mean(c.parameters.get("trainable") for c in costs),
        total=mean(c.parameters.get("total") for c in costs),
        flops_query=mean(c.flops.get("query") for c in costs), flops_image=mean(c.flops.get("image") for c in costs),
        epoch=mean(c.seconds.get("epoch") for c in costs), train=mean(c.seconds.get("train") for c in costs),
        cpu=mean(c.seconds.get("cpu") for c in costs), seconds=mean(c.seconds.get("total") for c in costs),
        p50=mean(c.latency_ms.get("p50") for c in costs), p95=mean(c.latency_ms.get("p95") for c in costs),
        memory=mean(c.peak_memory_mb for c in costs),
    )


def plain_columns(table: MainTable) -> tuple[list[str], list[list[str]], list[list[bool]]]:
    """Header, cells as text (mean ± std), and which are best: the table of `cirbench table`.

    Streams are named where any method has several. Seconds of training are of the processor, all cores together:
    those on the clock depend on what else the machine does.
    """
    streams = any("method.streams" in row.arm.knobs for row in table.rows)
    header = ["method", *(["streams"] if streams else []), "seeds", *table.metrics, "parameters", "CPU s"]
    rows, best = [], []
    for row, cost in zip(table.rows, cost_rows([row.arm for row in table.rows]), strict=True):
        cells = [row.arm.label, *([str(row.arm.knobs.get("method.streams", ""))] if streams else [])]
        cells, marks = [*cells, str(len(row.arm.records))], [False] * (len(cells) + 1)
        for name in table.metrics:
            cell = row.cells[name]
            if cell is None:
                cells.append("")
            else:
                cells.append(f"{cell.mean:.2f}" + ("" if math.isnan(cell.std) else f" ± {cell.std:.2f}"))
            marks.append(bool(cell and cell.best))
        cells.append("" if cost.trainable is None else f"{cost.trainable:,.0f}")
        cells.append("" if cost.cpu is None else f"{cost.cpu:,.1f}")
        marks += [False, False]
        rows.append(cells)
        best.append(marks)
    return header, rows, best


def text_table(table: MainTable, style: str) -> str:
    """The main table as markdown, LaTeX or CSV, its protocol named."""
    header, rows, best = plain_columns(table)
    about = caption(table)
    if style == "csv":
        import csv
        import io

        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow([
            "dataset", "protocol", "queries", "gallery", "method", "run_ids", "seeds",
            *[f"{m}{part}" for m in table.metrics for part in ("", " std", " low", " high")],
            "streams", "parameters", "train seconds", "cpu seconds",
        ])
        for row, cost in zip(table.rows, cost_rows([row.arm for row in table.rows]), strict=True):
            numbers: list[str] = []
            for name in table.metrics:
                cell = row.cells[name]
                numbers += ["", "", "", ""] if cell is None else [
                    "" if math.isnan(v) else repr(v) for v in (cell.mean, cell.std, cell.low, cell.high)
                ]
            writer.writerow([
                table.test.dataset, table.protocol, table.facts.queries, table.facts.gallery,
                row.arm.label, " ".join(r.id for r in row.arm.records), len(row.arm.records), *numbers,
                row.arm.knobs.get("method.streams", ""),
                *["" if value is None else repr(value) for value in (cost.trainable, cost.train, cost.cpu)],
            ])
        return out.getvalue()
    if style == "latex":
        lines = [r"\begin{table}", r"\centering", rf"\caption{{{_latex(about)}}}",
                 rf"\begin{{tabular}}{{l{'r' * (len(header) - 1)}}}", r"\toprule",
                 " & ".join(map(_latex, header)) + r" \\", r"\midrule"]
        for cells, marks in zip(rows, best, strict=True):
            texts = [rf"\textbf{{{_latex(c)}}}" if m else _latex(c) for c, m in zip(cells, marks, strict=True)]
            lines.append(" & ".join(texts) + r" \\")
        return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", r"\end{table}", ""])
    lines = [about, "", "| " + " | ".join(map(_markdown, header)) + " |", "|---" + "|--:" * (len(header) - 1) + "|"]
    for cells, marks in zip(rows, best, strict=True):
        texts = [f"**{_markdown(c)}**" if m else _markdown(c) for c, m in zip(cells, marks, strict=True)]
        lines.append("| " + " | ".join(texts) + " |")
    return "\n".join([*lines, ""])


def caption(table: MainTable) -> str:
    """Dataset, protocol, counts: what every number of the table is."""
    ties = [n for counts in table.ties.values() for n in counts]
    return (
        f"{table.test.dataset}, split {table.test.split or '?'}, protocol {table.protocol}: "
        f"{table.facts.queries} queries, gallery {table.facts.gallery}, "
        f"ties {min(ties)}–{max(ties)} (counted against the method). Percent, mean ± standard deviation over "
        "seeds; bold: significantly higher than every other row. Parameters: trained ones. CPU s: processor seconds of "
        "training one seed."
        + "".join(f" {note}" for note in table.notes)
    )


def _markdown(text: str) -> str:
    return text.replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;").replace("\n", " ")


def _latex(text: str) -> str:
    special = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "–": "--"}
    special["±"] = r"$\pm$"
    return "".join(special.get(c, f"\\{c}" if c in "&%$#_{}" else c) for c in text)
