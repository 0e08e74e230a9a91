"""Figures: seaborn on a quiet grid, as inline SVG that takes its text and line colours from the page."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import seaborn
from cirbench.reports.analysis import Curve, Family

__all__ = ["Figure", "ablation_figure", "cost_figure", "curve_figure", "modality_figure", "save", "training_figure"]

# Okabe and Ito's colours: told apart by colour-blind readers, and against white and black.
PALETTE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8c6bb1", "#999999")
MARKERS = "osD^vPX*"
INK, SOFT, GRID = "#101112", "#707172", "#d0d1d2"
THEME = {INK: "currentColor", SOFT: "var(--soft)", GRID: "var(--grid)"}
STYLE: Any = {
    "svg.fonttype": "none", "svg.hashsalt": "cirbench", "font.family": "sans-serif", "font.size": 10,
    "text.color": INK, "axes.labelcolor": INK, "xtick.color": SOFT, "ytick.color": SOFT, "xtick.labelcolor": INK,
    "ytick.labelcolor": INK, "axes.edgecolor": SOFT, "grid.color": GRID, "grid.linewidth": 0.8,
    "axes.spines.top": False, "axes.spines.right": False, "figure.facecolor": "none", "axes.facecolor": "none",
    "legend.frameon": False, "axes.titlesize": 10, "axes.titlelocation": "left", "pdf.fonttype": 42,
}


@dataclass
class Figure:
    """A drawn figure: `name` is its file name, `svg` its place in the page."""

    name: str
    caption: str
    svg: str
    drawing: Any


def _finish(drawing: Any, name: str, caption: str) -> Figure:
    """Draw as SVG whose ids are its own and whose neutral colours are the page's."""
    out = io.StringIO()
    with matplotlib.rc_context(STYLE):
        drawing.savefig(out, format="svg", bbox_inches="tight", metadata={"Date": None, "Creator": None})
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


def _axes(width: float, height: float, columns: int = 1) -> tuple[Any, list[Any]]:
    drawing, axes = plt.subplots(1, columns, figsize=(width, height), squeeze=False)
    for ax in axes[0]:
        ax.grid(True, axis="both")
        ax.set_axisbelow(True)
    return drawing, list(axes[0])


def _plain(text: str) -> str:
    """No mathematics: a dollar sign in a name stays one."""
    return text.replace("$", r"\$")


def cost_figure(name: str, rows: Sequence[dict[str, Any]], scores: dict[str, float], metric: str) -> Figure | None:
    """Quality over latency, one point an arm, area by parameters."""
    points = [(r["p50"], scores[r["arm"].key], r["total"] or 0, r["arm"]) for r in rows
              if r["p50"] and r["arm"].key in scores]
    if len(points) < 2:
        return None
    with matplotlib.rc_context(STYLE):
        drawing, (ax,) = _axes(7, 3.6)
        methods = list(dict.fromkeys(p[3].method for p in points))
        most = max(p[2] for p in points) or 1
        for n, method in enumerate(methods):
            mine = [p for p in points if p[3].method == method]
            ax.scatter([p[0] for p in mine], [p[1] for p in mine], s=[30 + 170 * p[2] / most for p in mine], alpha=0.8,
                       color=PALETTE[n % 8], marker=MARKERS[n % 8], label=_plain(method), linewidths=0)
        highest = 1.1 * max(p[1] for p in points) or 1
        ax.set(xlabel="latency of one query, median (ms)", ylabel=f"{metric} (%)", ylim=(0, highest))
        if max(p[0] for p in points) > 20 * min(p[0] for p in points):
            ax.set_xscale("log")
        else:
            ax.set_xlim(0, 1.1 * max(p[0] for p in points))
        ax.legend(loc="center left", bbox_to_anchor=(1, 0.5), markerscale=0.7)
    return _finish(drawing, name, f"Quality and cost: {metric} over query latency; areas grow with all parameters.")


def ablation_figure(name: str, family: Family) -> Figure:
    """Deltas with intervals, one line a variant."""
    deltas = family.deltas[::-1]
    with matplotlib.rc_context(STYLE):
        drawing, (ax,) = _axes(6.5, 0.9 + 0.32 * len(deltas))
        ax.axvline(0, color=SOFT, linewidth=1)
        for y, d in enumerate(deltas):
            colour = PALETTE[0] if d.clear else PALETTE[7]
            reach = [[max(0, d.value - d.low)], [max(0, d.high - d.value)]]
            ax.errorbar(d.value, y, xerr=reach, fmt="o" if d.clear else "D", color=colour, capsize=3, markersize=5,
                        markerfacecolor=colour if d.clear else "none")
        ax.set_yticks(range(len(deltas)), [_plain(d.label) for d in deltas])
        ax.set_ylim(-0.6, len(deltas) - 0.4)
        ax.set_xlabel(f"change of {family.metric} against {_plain(family.base.label)} (points)")
    return _finish(drawing, name, "What each variant changes, with 95 % intervals over queries; hollow where no "
                   f"difference was found. Base: {family.base.label}.")


def curve_figure(name: str, curves: Sequence[Curve], metric: str) -> Figure:
    """Scores over one knob: every run a point, the mean a line, a band of one deviation over seeds."""
    with matplotlib.rc_context(STYLE):
        drawing, (ax,) = _axes(6.5, 3.2)
        for n, curve in enumerate(curves):
            colour = PALETTE[n % 8]
            x = [p[0] for p in curve.points for _ in p[1]]
            y = [s for p in curve.points for s in p[1]]
            seaborn.lineplot(x=x, y=y, ax=ax, color=colour, errorbar="sd", label=_plain(curve.label), marker=None)
            ax.scatter(x, y, color=colour, s=14, marker=MARKERS[n % 8], linewidths=0, alpha=0.8)
        knob = curves[0].knob
        values = [float(p[0]) for c in curves for p in c.points]
        if min(values) > 0 and max(values) / min(values) > 50:
            ax.set_xscale("log")
        ax.set(xlabel=_plain(knob), ylabel=f"{metric} (%)")
        ax.legend() if len(curves) > 1 else ax.get_legend().remove()
    return _finish(drawing, name, f"{metric} over {knob}: every run a point, the line their mean, the band ± one "
                   "standard deviation over seeds.")


def modality_figure(name: str, row: dict[str, Any], groups: np.ndarray) -> Figure:
    """Distribution of the learned share of the image, by group."""
    with matplotlib.rc_context(STYLE):
        drawing, (ax,) = _axes(6.5, 2.6)
        low, high = float(row["values"].min()), float(row["values"].max())
        bins = np.linspace(low, high if high > low else low + 1e-6, 41)
        for n, group in enumerate(dict.fromkeys(groups.tolist())):
            seaborn.histplot(
                x=row["values"][groups == group], bins=bins, ax=ax, color=PALETTE[n % 8], element="step", fill=False,
                stat="count", label=_plain(group or "all"), linestyle=("-", "--", ":", "-.")[n % 4],
            )
        ax.set(xlabel="share of the image in the query", ylabel="queries")
        ax.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    return _finish(drawing, name, f"Learned share of the image, {row['arm'].label}, stream {row['stream']}, by group.")


def training_figure(name: str, rows: Sequence[dict[str, Any]], part: str, unit: str) -> Figure | None:
    """Losses or evaluations over epochs, one panel a quantity (at most three)."""
    names = list(dict.fromkeys(n for r in rows for n in r[part]))[:3]
    if not names:
        return None
    with matplotlib.rc_context(STYLE):
        drawing, axes = _axes(3.1 * len(names) + 2, 2.8, len(names))
        for ax, quantity in zip(axes, names, strict=True):
            for n, row in enumerate(rows):
                points = row[part].get(quantity)
                if points:
                    ax.plot(*zip(*points, strict=True), color=PALETTE[n % 8], linewidth=1.4, marker=MARKERS[n % 8],
                            markersize=3, label=_plain(row["arm"].label))
            ax.set(xlabel="epoch", ylabel=unit, title=_plain(quantity))
        axes[-1].legend(loc="center left", bbox_to_anchor=(1, 0.5), fontsize=8)
        drawing.tight_layout()
    what = "Training losses" if part == "losses" else "Evaluations on select"
    return _finish(drawing, name, f"{what} by epoch, means over seeds.")


def save(figures: Sequence[Figure], folder: Path) -> list[Path]:
    """Every figure as PDF and PNG on white paper."""
    folder.mkdir(parents=True, exist_ok=True)
    out = []
    for figure in figures:
        for kind in ("pdf", "png"):
            path = folder / f"{figure.name}.{kind}"
            meta = {"CreationDate": None} if kind == "pdf" else {"Software": None}
            figure.drawing.savefig(path, format=kind, dpi=200, bbox_inches="tight", facecolor="white", metadata=meta)
            out.append(path)
    return out
