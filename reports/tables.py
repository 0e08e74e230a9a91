"""Numbers of a report: the main table with its intervals and tests, costs, and text forms of tables."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from cirbench.runs.record_types import ProtocolScores
from cirbench.scoring import inference, statistics

from .collect import LEVEL, Arm, TestSet, identity, metric_names, rows_of, seed_values
from .differences import difference, error_of

__all__ = ["Cell", "CostRow", "MainTable", "Row", "cost_rows", "main_table", "plain_columns", "text_table"]

#: Rows that are ranked in groups: all pairs of them are compared.
RANKED = 80


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
    #: By the first metric: 1 + how many rows are better beyond chance; None for one seed.
    rank: int | None = None


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
    #: Longest runs of rows, best first, of which no two are separable by the first metric.
    inseparable: list[list[Row]] = field(default_factory=list)
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

    Best is marked where the difference from each other arm, with its error over reference images and over seeds, has
    p < 0.05 (Holm-corrected). An arm of one seed is never called better or worse: that is about methods.
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
    weights = table.test.weights(table.protocol, name)
    known: list[tuple[Row, Cell]] = []
    for row in table.rows:
        cell, values = row.cells[name], seed_values(row.arm, table.protocol, name)
        if cell is not None and values is not None and values.shape[1] == len(clusters):
            known.append((row, cell))
            low, high = inference.mean_interval(values, clusters, weights)
            cell.low, cell.high = 100 * low, 100 * high
    if len(known) < 2:
        return
    leader = max(range(len(known)), key=lambda i: known[i][1].mean)
    others = [i for i in range(len(known)) if i != leader]
    errors = {i: _against(table, name, known[i][0], known[leader][0], clusters, weights) for i in others}
    adjusted = statistics.holm([errors[i].p for i in others])
    beaten = [p < LEVEL and errors[i].seeds for p, i in zip(adjusted, others, strict=True)]
    known[leader][1].best = all(beaten)
    if not all(beaten):
        known[leader][1].top = True
        for i, lost in zip(others, beaten, strict=True):
            known[i][1].top = not lost
    if name == table.metrics[0]:
        runner = errors[max(others, key=lambda i: known[i][1].mean)]
        table.detectable = 100 * inference.detectable(runner.error, runner.freedom)
        _rank(table, name, known, clusters, weights)


def _against(
    table: MainTable, name: str, low: Row, high: Row, clusters: np.ndarray, weights: np.ndarray | None
) -> inference.Estimate:
    found = difference(low.arm, high.arm, table.protocol, name)
    assert found is not None  # both have values of the same queries
    return error_of(found, clusters, weights)


def _rank(
    table: MainTable, name: str, known: Sequence[tuple[Row, Cell]], clusters: np.ndarray, weights: np.ndarray | None
) -> None:
    """Rank groups of the rows that have two seeds or more: 1 + how many others are better beyond chance."""
    able = [(row, cell) for row, cell in known if len(cell.seeds) > 1]
    if not 1 < len(able) <= RANKED:
        return
    p = {
        (i, j): _against(table, name, able[i][0], able[j][0], clusters, weights).p
        for i in range(len(able)) for j in range(i + 1, len(able))
    }
    ranks, runs = inference.groups([cell.mean for _, cell in able], p, LEVEL)
    for (row, _), rank in zip(able, ranks, strict=True):
        row.rank = rank
    table.inseparable = [[able[n][0] for n in run] for run in runs]


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
    ranked = any(row.rank is not None for row in table.rows)
    before = ["method", *(["rank"] if ranked else []), *(["streams"] if streams else []), "seeds"]
    header = [*before, *table.metrics, "parameters", "CPU s"]
    rows, best = [], []
    for row, cost in zip(table.rows, cost_rows([row.arm for row in table.rows]), strict=True):
        cells = [row.arm.label, *([str(row.rank or "")] if ranked else [])]
        cells += [str(row.arm.knobs.get("method.streams", ""))] if streams else []
        cells, marks = [*cells, str(len(row.arm.records))], [False] * len(before)
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
            "streams", "parameters", "train seconds", "cpu seconds", "rank",
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
                *["" if value is None else repr(value) for value in (cost.trainable, cost.train, cost.cpu, row.rank)],
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
