"""Figures: seaborn on a quiet grid, as inline SVG that takes its text and line colours from the page."""

from __future__ import annotations

import contextlib
import io
import re
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import seaborn

from cirbench.files import writing

from .analysis import Curve, Family, TrainingCurves
from .modalities import WeightRow
from .tables import CostRow, MainTable

__all__ = [
    "PALETTE", "Figure", "ablation_figure", "cost_figure", "curve_figure", "modality_figure", "save", "score_figure",
    "training_figures",
]

# Distinct for colour-blind readers and against light and dark paper (tests/reports/test_report_looks.py measures both).
# The page has a brighter set for dark paper under the same names (style.css). A marker and a dash go with each.
PALETTE = ("#0072b2", "#d55e00", "#35245c", "#cc6f9f", "#009e73", "#7a1d00", "#8c7a52", "#7b61ff")
MARKERS = "osD^vPX*"
DASHES = ("-", (0, (5, 2)), (0, (1, 1.2)), (0, (5, 1.5, 1, 1.5)))
INK, SOFT, GRID, PAPER, FAINT = "#101112", "#707172", "#d0d1d2", "#fdfdfb", "#6e6f70"
THEME = {INK: "currentColor", SOFT: "var(--soft)", GRID: "var(--grid)", PAPER: "var(--paper)", FAINT: "var(--soft)"}
THEME |= {colour: f"var(--f{n})" for n, colour in enumerate(PALETTE)}
WIDTH = 5.0
"""Inches: 480 pixels, so that ten-point text is still read on a telephone."""
STYLE: Any = {
    "svg.fonttype": "none", "svg.hashsalt": "cirbench", "font.family": "sans-serif", "font.size": 10,
    "text.color": INK, "axes.labelcolor": INK, "xtick.color": SOFT, "ytick.color": SOFT, "xtick.labelcolor": INK,
    "ytick.labelcolor": INK, "axes.edgecolor": SOFT, "grid.color": GRID, "grid.linewidth": 0.8,
    "axes.spines.top": False, "axes.spines.right": False, "figure.facecolor": "none", "axes.facecolor": "none",
    "legend.frameon": False, "axes.titlesize": 10, "axes.titlelocation": "left", "pdf.fonttype": 42,
    "figure.constrained_layout.h_pad": 0.05, "figure.constrained_layout.w_pad": 0.05,
}


@dataclass
class Figure:
    """A drawn figure: `name` is its file name, `svg` its place in the page."""

    name: str
    caption: str
    svg: str
    drawing: Any


def _finish(drawing: Any, name: str, caption: str) -> Figure:
    """Draw as SVG whose ids are its own and whose colours are the page's."""
    out = io.StringIO()
    with matplotlib.rc_context(STYLE), _any_script():
        drawing.savefig(out, format="svg", metadata={"Date": None, "Creator": None})
    plt.close(drawing)
    svg = out.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.S)
    svg = re.sub(r'\bid="([^"]+)"', rf'id="{name}-\1"', svg)
    svg = re.sub(r'(href="#|url\(#)', rf"\g<1>{name}-", svg)
    svg = re.sub(r"font: ([\d.]+px) [^;\"]+", r"font-size: \1", svg)
    for colour, variable in THEME.items():
        svg = svg.replace(colour, variable)
    label = caption.replace("&", "&amp;").replace("<", "&lt;").replace('"', "&quot;")
    svg = svg.replace("<svg ", f'<svg role="img" aria-label="{label}" ', 1)
    return Figure(name, caption, svg, drawing)


@contextlib.contextmanager
def _any_script() -> Iterator[None]:
    """Names in letters that matplotlib's font lacks are no news: the page draws them with the reader's fonts."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        yield


def _axes(height: float) -> tuple[Any, Any]:
    drawing, ax = plt.subplots(figsize=(WIDTH, height), layout="constrained")
    ax.grid(True, axis="both")
    ax.set_axisbelow(True)
    return drawing, ax


def _plain(text: str, most: int = 60) -> str:
    """No mathematics (a dollar sign in a name stays one), and no line longer than the figure is wide."""
    text = "".join(c if c.isprintable() else " " for c in text)
    # The middle goes: of two long names the ends tell which is which.
    short = text if len(text) <= most else f"{text[: most // 2 - 4]}…{text[len(text) - most // 2 - 3 :]}"
    return short.replace("$", r"\$")


def _legend(drawing: Any, ax: Any) -> None:
    """Below the figure, in as many columns as fit: never over the data."""
    handles, names = ax.get_legend_handles_labels()
    if ax.get_legend():
        ax.get_legend().remove()
    columns = max(1, min(4, len(names), 62 // (max(map(len, names), default=1) + 7)))
    # Its height comes on top: the axes keep theirs.
    drawing.set_figheight(drawing.get_figheight() + 0.19 * -(-len(names) // columns))
    drawing.legend(handles, names, loc="outside lower left", ncol=columns, fontsize=9, columnspacing=1.2)


def score_figure(name: str, table: MainTable, metric: str, most: int = 16) -> Figure | None:
    """The first column of the main table: each arm's mean, its interval, its seeds."""
    rows = [(row.arm, cell) for row in table.rows if (cell := row.cells.get(metric)) and not row.folded]
    count, rows = len(rows), rows[:most]
    if len(rows) < 2:
        return None
    with matplotlib.rc_context(STYLE):
        drawing, ax = _axes(0.75 + 0.27 * len(rows))
        ax.grid(False, axis="y")
        for y, (_, cell) in enumerate(reversed(rows)):
            colour = PALETTE[1] if cell.best else PALETTE[0]
            if cell.low == cell.low:  # not NaN
                ax.plot([cell.low, cell.high], [y, y], color=colour, linewidth=2.2, solid_capstyle="butt", alpha=0.5,
                        zorder=1.8)
            if len(cell.seeds) > 1:
                ax.scatter(cell.seeds, [y] * len(cell.seeds), marker="|", s=70, color=colour, linewidths=1.1,
                           zorder=2.2)
            ax.plot(cell.mean, y, marker="D" if cell.best else "o", color=colour, markersize=5.5,
                    markeredgecolor=PAPER, zorder=2.5)
        ax.set_yticks(range(len(rows)), [_plain(arm.label, 34) for arm, _ in reversed(rows)])
        ax.tick_params(axis="y", length=0)
        ax.set_ylim(-0.6, len(rows) - 0.4)
        ax.set_xlabel(f"{_plain(metric)} (%)")
    left = f"; the {count - most} lowest rows are left out" if count > most else ""
    return _finish(drawing, name, f"{metric}: mean (a diamond if significantly higher than every other row), 95 % "
                   f"interval over queries, one tick per seed{left}.")


def cost_figure(name: str, rows: Sequence[CostRow], scores: dict[str, float], metric: str) -> Figure | None:
    """Quality over latency, one point an arm, area by parameters."""
    points = [(r.p50, scores[r.arm.key], r.total or 0, r.arm) for r in rows if r.p50 and r.arm.key in scores]
    if len(points) < 2:
        return None
    # A colour an arm while there are colours, else one a method.
    series = (lambda arm: arm.label) if len(points) <= len(PALETTE) else (lambda arm: arm.method)
    with matplotlib.rc_context(STYLE):
        drawing, ax = _axes(3.1)
        names = list(dict.fromkeys(series(p[3]) for p in points))
        most = max(p[2] for p in points) or 1
        for n, label in enumerate(names):
            # The largest first, so that none hides a smaller one.
            members = sorted((p for p in points if series(p[3]) == label), key=lambda p: -p[2])
            ax.scatter([p[0] for p in members], [p[1] for p in members], s=[36 + 150 * p[2] / most for p in members],
                       alpha=0.85, color=PALETTE[n % 8], marker=MARKERS[n % 8], label=_plain(label, 40),
                       edgecolors=PAPER, zorder=3 - max(p[2] for p in members) / most)
        highest = 1.1 * max(p[1] for p in points) or 1
        ax.set(xlabel="latency of one query, median (ms)", ylabel=f"{metric} (%)", ylim=(0, highest))
        if max(p[0] for p in points) > 20 * min(p[0] for p in points):
            ax.set_xscale("log")
        else:
            ax.set_xlim(0, 1.1 * max(p[0] for p in points))
        _legend(drawing, ax)
    return _finish(drawing, name, f"{metric} against query latency; the larger the marker, the more parameters.")


def ablation_figure(name: str, family: Family) -> Figure:
    """Deltas with intervals, one line a variant."""
    deltas = family.deltas[::-1]
    with matplotlib.rc_context(STYLE):
        drawing, ax = _axes(0.75 + 0.3 * len(deltas))
        ax.grid(False, axis="y")
        ax.axvline(0, color=SOFT, linewidth=1)
        for y, d in enumerate(deltas):
            colour = PALETTE[0] if d.clear else FAINT
            reach = [[max(0, d.value - d.low)], [max(0, d.high - d.value)]]
            ax.errorbar(d.value, y, xerr=reach, fmt="o" if d.clear else "D", color=colour, capsize=3, markersize=5,
                        markerfacecolor=colour if d.clear else "none")
        ax.set_yticks(range(len(deltas)), [_plain(d.label, 34) for d in deltas])
        ax.set_ylim(-0.6, len(deltas) - 0.4)
        ax.set_xlabel(f"change of {family.metric} (points)")
    return _finish(drawing, name, f"Change of each variant against {family.base.label}, with 95 % intervals over "
                   "queries and seeds; hollow markers: no significant difference.")


def rank_figure(name: str, table: MainTable, most: int = 40) -> Figure | None:
    """Means on a line, and bars over rows of which no two are separable (a critical-difference picture)."""
    metric, able = table.metrics[0], [row for row in table.rows if row.rank is not None]
    if not 2 < len(able) <= most:
        return None
    able.sort(key=lambda row: -row.cells[metric].mean)  # type: ignore[union-attr]
    place = {id(row): n for n, row in enumerate(able)}
    bars = [run for run in table.inseparable if len(run) > 1]
    with matplotlib.rc_context(STYLE):
        drawing, ax = _axes(0.8 + 0.24 * len(able))
        ax.grid(False, axis="y")
        means = [row.cells[metric].mean for row in able]  # type: ignore[union-attr]
        ax.scatter(means, range(len(able)), color=PALETTE[0], s=26, zorder=3)
        step = 0.035 * ((max(means) - min(means)) or 1)
        for n, run in enumerate(bars):
            # The bars of overlapping runs stand side by side, right of all points.
            x = max(means) + step * (1.5 + n)
            ax.plot([x, x], [place[id(run[0])] - 0.2, place[id(run[-1])] + 0.2], color=INK, linewidth=2.4,
                    solid_capstyle="butt")
        ax.set_yticks(range(len(able)), [f"{_plain(row.arm.label, 30)}  {row.rank}" for row in able])
        ax.set_ylim(len(able) - 0.4, -0.6)
        ax.set_xlabel(f"{metric} (%)")
    return _finish(drawing, name, f"Mean {metric} and rank; a bar joins rows of which no two are separable (all pairs, "
                   "Holm-corrected over all of them).")


def curve_figure(name: str, curves: Sequence[Curve], metric: str) -> Figure:
    """Scores over one knob: every run a point, the mean a line, a band of one deviation over seeds."""
    with matplotlib.rc_context(STYLE):
        drawing, ax = _axes(3.0)
        for n, curve in enumerate(curves):
            colour = PALETTE[n % 8]
            x = [p[0] for p in curve.points for _ in p[1]]
            y = [s for p in curve.points for s in p[1]]
            seaborn.lineplot(x=x, y=y, ax=ax, color=colour, errorbar="sd", marker=None, linestyle=DASHES[n % 4])
            ax.scatter(x, y, color=colour, s=18, marker=MARKERS[n % 8], linewidths=0, alpha=0.85)
            ax.plot([], [], color=colour, marker=MARKERS[n % 8], markersize=4, linestyle=DASHES[n % 4],
                    label=_plain(curve.label))
        knob = curves[0].knob
        values = [float(p[0]) for c in curves for p in c.points]
        if min(values) > 0 and max(values) / min(values) > 50:
            ax.set_xscale("log")
        ax.set(xlabel=_plain(knob), ylabel=f"{metric} (%)")
        if len(curves) > 1:
            _legend(drawing, ax)
    return _finish(drawing, name, f"{metric} against {knob}: one point per run, the line is their mean, the band ± "
                   "one standard deviation over seeds.")


def modality_figure(name: str, row: WeightRow, groups: np.ndarray) -> Figure:
    """Distribution of the learned share of the image, by group."""
    with matplotlib.rc_context(STYLE):
        drawing, ax = _axes(2.5)
        low, high = float(row.values.min()), float(row.values.max())
        bins = np.linspace(low, high if high > low else low + 1e-6, 41)
        for n, group in enumerate(dict.fromkeys(groups.tolist())):
            seaborn.histplot(
                x=row.values[groups == group], bins=bins, ax=ax, color=PALETTE[n % 8], element="step", fill=False,
                stat="count", label=_plain(group or "all"), linestyle=DASHES[n % 4],
            )
        ax.set(xlabel="share of the image in the query", ylabel="queries")
        _legend(drawing, ax)
    return _finish(drawing, name, f"Learned share of the image, {row.arm.label}, stream {row.stream}, by group.")


def training_figures(name: str, rows: Sequence[TrainingCurves], part: str, unit: str, most: int = 4) -> list[Figure]:
    """Losses or evaluations over epochs: one figure a quantity, its own legend below it."""
    out = []
    what = {"losses": "Training loss", "select": "Value that chooses the checkpoint,"}.get(
        part, "Lower bound on the mutual information of query and target, stream")
    for place, quantity in enumerate(list(dict.fromkeys(n for r in rows for n in getattr(r, part)))[:most]):
        with matplotlib.rc_context(STYLE):
            drawing, ax = _axes(2.8)
            for n, row in enumerate(rows):
                points = getattr(row, part).get(quantity)
                if points:
                    ax.plot(*zip(*points, strict=True), color=PALETTE[n % 8], linewidth=1.4, marker=MARKERS[n % 8],
                            markersize=3.5, linestyle=DASHES[n % 4], label=_plain(row.arm.label, 40))
            if part == "bound":
                for cap in sorted({row.cap for row in rows if row.bound.get(quantity)}):
                    ax.axhline(cap, color=SOFT, linewidth=1, linestyle=":", label=f"log N = {cap:.2f}")
            ax.set(xlabel="epoch", ylabel=f"{_plain(quantity)} ({unit})" if unit else _plain(quantity))
            ax.xaxis.get_major_locator().set_params(integer=True)
            _legend(drawing, ax)
        slug = re.sub(r"[^a-z0-9]+", "-", quantity.lower()).strip("-")
        out.append(_finish(drawing, f"{name}-{place}-{slug}", f"{what} {quantity} by epoch, means over seeds."))
    return out


def save(figures: Sequence[Figure], folder: Path) -> list[Path]:
    """Every figure as PDF and PNG on white paper."""
    out = []
    for figure in figures:
        for kind in ("pdf", "png"):
            path = folder / f"{figure.name}.{kind}"
            meta = {"CreationDate": None} if kind == "pdf" else {"Software": None}
            with _any_script(), writing(path) as temporary:
                figure.drawing.savefig(temporary, format=kind, dpi=200, facecolor="white", metadata=meta)
            out.append(path)
    return out
