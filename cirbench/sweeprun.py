"""Running a sweep from the command line: workers, progress, the table, the estimate, Slurm, the report."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from cirbench import statistics, sweepfile
from cirbench.sweep import Options, Worker, best, summary
from cirbench.sweepfile import Point, Range, Sweep
from cirbench.types import CirbenchError

THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


def cores() -> int:
    """Cores this process may use (a container may have fewer than the machine)."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


# ------------------------------------------------------------------------------------- for people


def duration(seconds: float) -> str:
    """`45 s`, `12 min`, `3.4 h`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _done(data: Mapping[str, Any]) -> int:
    """Points that are through, well or not."""
    return sum(row["state"] in ("complete", "pruned", "fail") for row in data["points"])


class Progress:
    """One line: points, those running and failed, the best so far, how much longer."""

    def __init__(self, sweep: Sweep, workers: int, show: Callable[[str], None], live: bool) -> None:
        self.sweep, self.workers, self.show, self.live = sweep, workers, show, live
        self.began, self.first, self.done, self.last = time.monotonic(), -1, -1, ""

    def line(self, data: Mapping[str, Any]) -> str:
        """The line for a state of the study."""
        states = [row["state"] for row in data["points"]]
        done = _done(data)
        self.first = done if self.first < 0 else self.first
        parts = [f"{self.sweep.name}: {done} of {data['total']} points"]
        parts += [f"{states.count(s)} {word}" for s, word in (
            ("running", "running"), ("fail", "failed"), ("pruned", "pruned")) if s in states]
        here = done - self.first
        if here and done < data["total"]:
            parts.append(f"about {duration((time.monotonic() - self.began) / here * (data['total'] - done))} left")
        top = best(data, self.sweep.objective.direction)
        if top is not None:
            parts.append(f"best {self.sweep.objective.metric} on select {top['value']:.2f} ({top['label']})")
        return ", ".join(parts)

    def __call__(self, data: Mapping[str, Any]) -> None:
        """Show it where it changed."""
        line, done = self.line(data), _done(data)
        if line == self.last:
            return
        if self.live:
            self.show("\r" + line.ljust(len(self.last)))
        elif done != self.done or not self.last:  # in a log, a line a finished point
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


def table(data: Mapping[str, Any]) -> str:
    """Every point with mean, spread over seeds and interval; then what the numbers are."""
    width = max([len(row["label"]) for row in data["points"]] + [5])
    lines = [f"{data['study']}: {data['question']}"]
    for row in data["points"]:
        values = [s["objective"] for s in row["seeds"].values()]
        text = row["state"]
        if values:
            mean, spread = statistics.mean_std(values)
            text = f"{mean:6.2f}" + (f" ± {spread:.2f}" if len(values) > 1 else "")
            if len(values) > 1:
                low, high = interval(values)
                text += f"  [{low:.2f}, {high:.2f}]"
            if row["state"] != "complete":
                text += f"  ({row['state']}, {len(values)} of {len(data['seeds'])} seeds)"
        lines.append(f"  {row['label']:{width}}  {text}" + (f"  {row['error']}" if row["error"] else ""))
    goal, n = data["objective"], len(data["seeds"])
    lines.append(
        f"  {goal['metric']} under {goal['protocol']} on select: mean"
        + (f" ± standard deviation over {n} seeds [95% interval of the mean]" if n > 1 else " of one seed: no spread")
    )
    if data["tuning"]:
        lines.append("  This is tuning: the best of many tries is better than it will be again. Compare on report, "
                     "with fresh seeds.")
    return "\n".join(lines)


# -------------------------------------------------------------------------------------- workers


def spawn(arguments: Mapping[str, Any], workers: int) -> list[subprocess.Popen[bytes]]:
    """Worker processes that share the cores; what they do goes through standard input (a URL may hold a password)."""
    threads = str(max(1, cores() // workers))
    environment = {**os.environ, **dict.fromkeys(THREADS, threads)}
    out = []
    for _ in range(workers):
        process = subprocess.Popen(
            [sys.executable, "-c", "from cirbench.sweeprun import worker; worker()"], stdin=subprocess.PIPE,
            env=environment,
        )
        assert process.stdin is not None
        process.stdin.write(json.dumps(arguments).encode())
        process.stdin.close()
        out.append(process)
    return out


def worker(arguments: Mapping[str, Any] | None = None) -> None:
    """What a worker process does: read its orders, work, leave."""
    given = dict(arguments if arguments is not None else json.load(sys.stdin))
    options = given.pop("options")
    options["out"] = Path(options["out"])
    if given.get("root"):
        given["root"] = Path(given["root"])
    try:
        Worker(sweepfile.read(**given), Options(**options)).work()
    except CirbenchError as error:
        sys.exit(f"cirbench: {error}")
    except KeyboardInterrupt:
        sys.exit(130)


def orders(arguments: Mapping[str, Any], options: Options) -> dict[str, Any]:
    """Arguments of `sweepfile.read` and options as JSON values."""
    plain = {**arguments, "root": str(arguments["root"]) if arguments.get("root") else None}
    return {**plain, "options": {**options.__dict__, "out": str(options.out)}}


def start(
    sweep: Sweep, arguments: Mapping[str, Any], options: Options, workers: int = 1,
    show: Callable[[str], None] = lambda text: None, live: bool = False,
) -> dict[str, Any]:
    """Run a sweep to its end, or to its deadline; returns what `sweep.json` holds.

    Raises:
        CirbenchError: every worker died with points left.
    """
    if sweep.timeout is not None:
        options = replace(options, deadline=time.time() + sweep.timeout)
    progress = Progress(sweep, workers, show, live)
    view = Worker(sweep, options)
    progress(view.publish())
    if workers == 1 or _done(view.publish()) == sweep.total:
        view.work(lambda w: progress(summary(w.sweep, w.name, w.trials(), w.points)))
        progress.close()
        return view.publish()
    processes = spawn(orders(arguments, options), workers)
    try:
        while any(p.poll() is None for p in processes):
            progress(summary(sweep, view.name, view.trials(), view.points))
            time.sleep(0.5)
    except BaseException:
        for process in processes:
            process.terminate()
        raise
    data = view.publish()
    progress(data)
    progress.close()
    left = data["total"] - _done(data)
    if left and not view.late():
        codes = ", ".join(str(p.returncode) for p in processes)
        raise CirbenchError(
            f"the workers ended (exit codes {codes}) with {left} of {data['total']} points left. What is finished is "
            "kept: the same command goes on."
        )
    return data


def slurm(
    arguments: Mapping[str, Any], options: Options, folder: Path, workers: int, parameters: Sequence[str],
    cluster: str | None = None,
) -> list[Any]:
    """Submit worker jobs; each joins the study as any other machine would.

    Args:
        arguments, options: the sweep.
        folder: of the study; logs go below it.
        workers: jobs.
        parameters: `name=value` of submitit, e.g. `slurm_partition=gpu`, `timeout_min=240`.
        cluster: for tests: `local` runs the jobs here.

    Raises:
        CirbenchError: no submitit, no Slurm, or a parameter it does not know.
    """
    import shutil

    try:
        import submitit
    except ImportError:
        raise CirbenchError("--slurm needs submitit. Install it with `pip install 'cirbench[slurm]'`.") from None
    if cluster is None and shutil.which("srun") is None:
        raise CirbenchError("--slurm: there is no Slurm here (no srun on the path). Use --workers on this machine.")
    given: dict[str, Any] = {"timeout_min": 240, "name": "cirbench-sweep"}
    for text in parameters:
        key, eq, value = text.partition("=")
        if not eq:
            raise CirbenchError(f"--slurm-set {text!r} is not of the form name=value, e.g. slurm_partition=gpu.")
        given[key] = int(value) if value.isdigit() else value
    executor = submitit.AutoExecutor(folder=str(folder / "slurm"), cluster=cluster)
    try:
        executor.update_parameters(**given)
    except (NameError, TypeError, ValueError) as error:
        raise CirbenchError(f"--slurm-set: {error}.") from None
    return [executor.submit(worker, orders(arguments, options)) for _ in range(workers)]


# ------------------------------------------------------------------------------------- before and after


def estimate(sweep: Sweep, options: Options, workers: int, steps: int = 4) -> dict[str, Any]:
    """How long a sweep will take, from a few measured steps of its first point and one evaluation.

    Returns:
        `runs`, `kept` (those with a record already), `seconds_run`, `seconds` of all that is left.
    """
    from cirbench import runs, specs

    points = sweep.corners() if sweep.sampler != "grid" else sweep.points()[: sweep.total]
    kept, loaded = 0, dict[str, Any]()
    for point in points if sweep.sampler == "grid" else []:
        for seed in sweep.seeds:
            planned = sweep.plan(point, seed)
            key = json.dumps(dict(planned.spec.data), sort_keys=True)
            if key not in loaded:
                loaded[key] = specs.load(planned)
            kept += runs._finished(options.out, runs.identify(planned, loaded[key])[0]) is not None
    count = sweep.total * len(sweep.seeds)
    costs = [measure(sweep.plan(p, sweep.seeds[0]), options.device, steps) for p in _kinds(points, sweep)]
    each = sum(costs) / len(costs)
    left = each * (count - kept) / max(1, min(workers, count))
    return {"runs": count, "kept": kept, "seconds_run": each, "seconds": left}


def _kinds(points: Sequence[Point], sweep: Sweep) -> list[Point]:
    """A first and a last point: grids are often ordered by what they cost."""
    return [points[0], points[-1]] if len(points) > 1 else [points[0]]


def measure(planned: Any, device: str, steps: int) -> float:
    """Seconds that a run would take here: a few steps of it, and one evaluation on `select`."""
    import torch

    from cirbench import evaluation, runs, specs
    from cirbench.encoders import Encoders
    from cirbench.feed import Feed, Triplets
    from cirbench.seeds import derive
    from cirbench.training import keep_freed_memory, pick_device

    keep_freed_memory()
    where, dataset = pick_device(device), specs.load(planned)
    form, settings = specs.training_form(planned, dataset), planned.train
    torch.manual_seed(0)
    encoders, view = Encoders(derive(0, "weights")), runs._view(dataset, form)
    method = planned.method.load().build(planned.config, encoders, view, None)
    if isinstance(method, torch.nn.Module):
        method.to(where)
    total = 0.0
    if hasattr(method, "losses") and settings.epochs:
        triplets = Triplets(dataset, form, settings.batch_size, settings.flip, planned.spec.seed)
        texts = list(dict.fromkeys(t for ts in triplets.strings for t in ts))
        mirrored = settings.flip != "none"
        feed = Feed(dataset, triplets.split.images(), texts, method.inputs, where, mirrored=mirrored, quiet=True)
        optimizers, took = method.optimizers(), []
        for n, batch in enumerate(triplets.epoch(0, feed, 0)):
            tick = time.perf_counter()
            for name, loss, _ in method.losses(batch):
                optimizers[name].zero_grad(set_to_none=True)
                loss.backward()
                optimizers[name].step()
            took.append(time.perf_counter() - tick)
            if n == steps:
                break
        rest = sorted(took[1:] or took)  # the first step warms up
        total += rest[len(rest) // 2] * triplets.steps * settings.epochs
    role = "select" if "select" in dataset.splits else "report"
    split = dataset.splits[role]
    feed = runs._feed(method, dataset, split, [form], where, True)
    if isinstance(method, torch.nn.Module):
        method.eval()
    tick = time.perf_counter()
    evaluation.evaluate(method, feed, dataset, split, [dataset.protocols[0]], quiet=True)
    both = len(split.queries) + len(dataset.splits["report"].queries)
    return total + (time.perf_counter() - tick) * both / len(split.queries)


def plan_text(sweep: Sweep) -> str:
    """What would be run."""
    lines = [f"{sweep.study()}: {sweep.question}"]
    if sweep.sampler == "grid":
        lines += [f"  {n:3d}  {p.label or p.method}" for n, p in enumerate(sweep.points()[: sweep.total])]
    else:
        for name, axis in sweep.arms[0].space.items():
            said = f"{axis.low} to {axis.high}" + (", log" if axis.log else "") if isinstance(axis, Range) else axis
            lines.append(f"  {name}: {said}")
    goal = sweep.objective
    lines.append(
        f"  {sweep.total} points ({sweep.sampler}) x {len(sweep.seeds)} seeds on {sweep.dataset}; "
        f"{goal.metric} under {goal.protocol} on select"
    )
    return "\n".join(lines)


def records_of(data: Mapping[str, Any], out: Path) -> list[Any]:
    """The finished runs of a study that are here (another machine may keep its own)."""
    from cirbench.records import Record, is_finished

    return [Record(out / run) for run in data["runs"] if is_finished(out / run)]


def write_report(sweep: Sweep, data: Mapping[str, Any], out: Path) -> Path | None:
    """`report.html` beside `sweep.json`, from the records alone; None where no run is finished here."""
    from cirbench.reports import build

    records = records_of(data, out)
    if not records:
        return None
    path = out / "sweeps" / data["study"] / "report.html"
    title = f"Sweep {sweep.name} on {sweep.dataset}" + (f": {sweep.note}" if sweep.note else "")
    path.write_text(build.build(records, title=title), encoding="utf-8")
    return path
