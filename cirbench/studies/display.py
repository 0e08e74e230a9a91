"""Text output of a sweep: the plan, the progress line, the table at the end."""

from __future__ import annotations

import json
import math
import shlex
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from cirbench import plugins
from cirbench.runs.record import Record, is_finished
from cirbench.runs.study_types import Objective, StudyData, read_study
from cirbench.scoring import statistics
from cirbench.studies.design import Range, Sweep
from cirbench.studies.worker import best, finished

__all__ = ["Progress", "duration", "interval", "plan_text", "records_of", "table"]


def duration(seconds: float) -> str:
    """`45 s`, `12 min`, `3.4 h`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


class Progress:
    """One line: points done, running and failed, the best so far, the time left."""

    def __init__(self, sweep: Sweep, workers: int, show: Callable[[str], None], live: bool) -> None:
        self.sweep, self.workers, self.show, self.live = sweep, workers, show, live
        self.done, self.last = -1, ""
        # (time, number finished) of the last few points, whose cost predicts the rest best.
        self.marks: deque[tuple[float, int]] = deque(maxlen=2 * workers + 3)

    def line(self, data: Mapping[str, Any]) -> str:
        """The line for a state of the study."""
        states = [row["state"] for row in data["points"]]
        done = finished(data)
        if not self.marks or done > self.marks[-1][1]:
            self.marks.append((time.monotonic(), done))
        parts = [f"{self.sweep.name}: {done} of {data['total']} points"]
        parts += [f"{states.count(s)} {word}" for s, word in (
            ("running", "running"), ("fail", "failed"), ("pruned", "pruned")) if s in states]
        since, before = self.marks[0]
        if before < done < data["total"]:
            each = (time.monotonic() - since) / (done - before)
            parts.append(f"about {duration(each * (data['total'] - done))} left")
        top = best(data)
        if top is not None:
            parts.append(f"best {self.sweep.objective.metric} on select {top['value']:.2f} ({top['label']})")
        return ", ".join(parts)

    def __call__(self, data: Mapping[str, Any]) -> None:
        """Show the line if it changed."""
        line, done = self.line(data), finished(data)
        if line == self.last:
            return
        if self.live:
            self.show("\r" + line.ljust(len(self.last)))
        elif done != self.done or not self.last:  # in a log, one line per finished point
            self.show(line + "\n")
        self.last, self.done = line, done

    def close(self) -> None:
        """End the line."""
        if self.live and self.last:
            self.show("\n")


def interval(values: Sequence[float]) -> tuple[float, float]:
    """95% interval of the mean over seeds (Student's t); NaN for a single seed."""
    if len(values) < 2:
        return math.nan, math.nan
    from scipy.stats import t

    mean, spread = statistics.mean_std(values)
    half = float(t.ppf(0.975, len(values) - 1)) * spread / math.sqrt(len(values))
    return mean - half, mean + half


def table(data: Mapping[str, Any], out: Path | None = None) -> str:
    """Every point with mean, spread over seeds, interval and cost; then a legend.

    Args:
        data: as in `sweep.json`.
        out: where the runs are, for costs and the metric on `report`; a tuning leaves the latter out.
    """
    study = read_study(data)
    goal, n = study.objective, len(study.seeds)
    header = ["point", f"{goal.metric} on select"] + ([] if study.tuning else ["on report"])
    header += ["train s", "CPU s", "parameters"]
    rows = [header]
    for point in study.points:
        values = [scored.objective for scored in point.seeds.values()]
        text = point.state
        if values:
            text = _spread(values)
            if len(values) > 1:
                low, high = interval(values)
                text += f" [{low:.2f}, {high:.2f}]"
            if point.state != "complete":
                text += f" ({point.state}, {len(values)} of {n} seeds)"
        records = records_of([scored.run for scored in point.seeds.values()], out)
        rows.append([point.label, text, *_costs(records, goal, study.tuning)])
    widths = [max(len(cells[i]) for cells in rows) for i in range(len(header))]
    lines = [f"{study.study}: {study.question}"]
    for number, cells in enumerate(rows):
        right = [cell.rjust(width) for cell, width in zip(cells[2:], widths[2:], strict=True)]
        error = study.points[number - 1].error if number else None
        line = [cells[0].ljust(widths[0]), cells[1].ljust(widths[1]), *right, *([error] if error else [])]
        lines.append(("  " + "  ".join(line)).rstrip())
    lines.append(
        f"  {goal.metric} under {goal.protocol}: mean"
        + (f" ± standard deviation over {n} seeds [95% interval of the mean]" if n > 1 else " of one seed: no spread")
        + "; seconds of training, wall clock and CPU (all cores); trained parameters"
    )
    if study.tuning:
        lines.append("  This is tuning: the score of the best of many trials is too optimistic. Compare its settings "
                     "on report, with fresh seeds.")
        lines += _winner(study)
    return "\n".join(lines)


def _spread(values: Sequence[float]) -> str:
    mean, spread = statistics.mean_std(values)
    return f"{mean:6.2f}" + (f" ± {spread:.2f}" if len(values) > 1 else "")


def records_of(names: Sequence[str], out: Path | None) -> list[Record]:
    """The records of those runs that are in `out` (another machine may keep its own)."""
    return [Record(out / name) for name in names if is_finished(out / name)] if out is not None else []


def _costs(records: Sequence[Record], goal: Objective, tuning: bool) -> list[str]:
    """The cells after the objective: the metric on report, seconds of wall clock and CPU, parameters."""
    scored = [r.run.protocols[goal.protocol].metrics for r in records if goal.protocol in r.run.protocols]
    known = [float(v) for metrics in scored if (v := metrics.get(goal.metric)) is not None]
    cells = [] if tuning else [_spread(known) if known else ""]
    costs = [record.run.cost for record in records]
    for values, digits in (
        ([c.seconds.get("train") for c in costs], 1), ([c.seconds.get("cpu") for c in costs], 1),
        ([c.parameters.get("trainable") for c in costs], 0),
    ):
        measured = [float(v) for v in values if v is not None]
        cells.append(f"{statistics.mean_std(measured)[0]:,.{digits}f}" if measured else "")
    return cells


def _winner(study: StudyData) -> list[str]:
    """The command that runs the best point of a tuning with new seeds."""
    scored = [(point.value, point) for point in study.points if point.value is not None]
    if not scored:
        return []
    sign = 1 if study.objective.direction == "minimize" else -1
    _, point = min(scored, key=lambda pair: sign * pair[0])
    first = max(study.seeds) + 1
    words = ["cirbench", "run", "--method", point.method, *(["--variant", point.variant] if point.variant else [])]
    root = ["--root", "DIR"] if plugins.find_dataset(study.dataset).SPEC.needs_root else []
    words += ["--dataset", study.dataset, *root, "--seeds", ",".join(str(first + i) for i in range(5))]
    for key, value in {**point.fixed, **point.values}.items():
        words += ["--set", f"{key}={value if isinstance(value, str) else json.dumps(value)}"]
    return ["  The best point with fresh seeds:", f"  {shlex.join(words)}"]


def plan_text(sweep: Sweep) -> str:
    """What would be run."""
    lines = [f"{sweep.study()}: {sweep.question}"]
    if sweep.sampler == "grid":
        lines += [f"  {n:3d}  {p.label or p.method}" for n, p in enumerate(sweep.points()[: sweep.total])]
    else:
        for name, axis in sweep.arms[0].space.items():
            values = f"{axis.low} to {axis.high}" + (", log" if axis.log else "") if isinstance(axis, Range) else axis
            lines.append(f"  {name}: {values}")
    goal = sweep.objective
    lines.append(
        f"  {sweep.total} points ({sweep.sampler}) x {len(sweep.seeds)} seeds on {sweep.dataset}; "
        f"{goal.metric} under {goal.protocol} on select"
    )
    return "\n".join(lines)
