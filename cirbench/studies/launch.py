"""Running a sweep from the command line: workers, Slurm, the estimate, the report."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil

from cirbench.files import is_full, no_room
from cirbench.runs.planning import Plan
from cirbench.runs.store import finished_run
from cirbench.studies import design_file
from cirbench.studies.design import Point, Sweep
from cirbench.studies.display import Progress, records_of
from cirbench.studies.worker import Options, Worker, finished, summary
from cirbench.types import CirbenchError, Dataset

THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


def cores() -> int:
    """Cores this process may use (a container may have fewer than the machine)."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


# -------------------------------------------------------------------------------------- workers


def spawn(arguments: Mapping[str, Any], workers: int) -> list[subprocess.Popen[bytes]]:
    """Worker processes that share the cores; arguments go through standard input (a URL may hold a password)."""
    threads = str(max(1, cores() // workers))
    environment = {**os.environ, **dict.fromkeys(THREADS, threads)}
    out = []
    for _ in range(workers):
        process = subprocess.Popen(
            [sys.executable, "-c", "from cirbench.studies.launch import worker; worker()"], stdin=subprocess.PIPE,
            env=environment,
        )
        assert process.stdin is not None
        process.stdin.write(json.dumps({**arguments, "parent": os.getpid()}).encode())
        process.stdin.close()
        out.append(process)
    return out


def worker(arguments: Mapping[str, Any] | None = None) -> None:
    """Main function of a worker process: read its orders, work, exit."""
    given = dict(arguments if arguments is not None else json.load(sys.stdin))
    if (parent := given.pop("parent", None)) is not None:
        _end_with(parent)
    options = given.pop("options")
    options["out"] = Path(options["out"])
    if given.get("root"):
        given["root"] = Path(given["root"])
    try:
        sweep = design_file.read(**given)
        Worker(sweep, _due(sweep, Options(**options))).work()
    except CirbenchError as error:
        sys.exit(f"cirbench: {error}")
    except OSError as error:
        if not is_full(error):
            raise
        sys.exit(f"cirbench: {no_room(options['out'] / 'sweeps')}")
    except KeyboardInterrupt:
        sys.exit(130)


def _end_with(parent: int) -> None:
    """End this process as soon as its parent ends, however that ends. Its run resumes from the last checkpoint."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG; also where no Python code gets its turn

    def watch() -> None:
        while os.getppid() == parent and psutil.pid_exists(parent):  # Windows keeps the number of a dead parent
            time.sleep(0.5)
        os._exit(128 + signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()


def orders(arguments: Mapping[str, Any], options: Options) -> dict[str, Any]:
    """Arguments of `design_file.read` and options as JSON values."""
    plain = {**arguments, "root": str(arguments["root"]) if arguments.get("root") else None}
    return {**plain, "options": {**options.__dict__, "out": str(options.out)}}


def _due(sweep: Sweep, options: Options) -> Options:
    """Options with a deadline: the given one, else the sweep's timeout from now.

    Workers of `start` get theirs from it; a scheduler's job may wait for hours, so its time counts from its own start.
    """
    if sweep.timeout is None or options.deadline is not None:
        return options
    return replace(options, deadline=time.time() + sweep.timeout)


def start(
    sweep: Sweep, arguments: Mapping[str, Any], options: Options, workers: int = 1,
    show: Callable[[str], None] = lambda text: None, live: bool = False,
) -> dict[str, Any]:
    """Run a sweep to its end, or to its deadline; returns what `sweep.json` holds.

    Raises:
        CirbenchError: every worker ended with points left.
    """
    from cirbench.runs.training import pick_device

    pick_device(options.device)  # or every point would fail by itself
    options = _due(sweep, options)
    progress = Progress(sweep, workers, show, live)
    view = Worker(sweep, options)
    progress(view.publish())
    if workers == 1 or finished(view.publish()) == sweep.total:
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
        for process in processes:
            process.wait()
        raise
    data = view.publish()
    progress(data)
    progress.close()
    left = data["total"] - finished(data)
    if left and not view.late():
        codes = ", ".join(str(p.returncode) for p in processes)
        raise CirbenchError(
            f"the workers ended (exit codes {codes}) with {left} of {data['total']} points left. Finished points are "
            "kept: repeat the command to resume."
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
        workers: number of jobs.
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
        raise CirbenchError("--slurm: Slurm is not installed here (no srun on PATH). Use --workers on this machine.")
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


def check_select(sweep: Sweep) -> None:
    """Load the data of every point once, and check that it has queries to compare points on.

    Raises:
        CirbenchError: no split `select`, or an empty one: each point would run in full and then fail.
    """
    loaded: dict[str, Dataset] = {}
    for point in sweep.corners()[: sweep.total if sweep.sampler == "grid" else None]:
        planned = sweep.plan(point, sweep.seeds[0])
        split = _data(planned, loaded).splits.get("select")
        if split is not None and split.queries:
            continue
        name, share = planned.facts.name, getattr(planned.knobs, "select_share", None)
        if share is None:
            problem = f"{name} has no select split"
            how = (
                f"Sweep another dataset, e.g. --dataset scenes; `cirbench eval RUN --dataset {name}` scores a run of "
                "another dataset here."
            )
        else:
            usual = type(planned.knobs).model_fields["select_share"].default
            problem = f"{name} has no select split with data.select_share={share:g}"
            how = f"Set data.select_share higher, e.g. to {usual if share < usual else min(2 * share, 0.5):g}."
        raise CirbenchError(
            f"{sweep.file}: {problem}. A sweep compares points on select, never on report; nothing was run. {how}"
        )


def _data(planned: Plan, loaded: dict[str, Dataset]) -> Dataset:
    """The data of a plan; `loaded` keeps it for the other plans of the sweep that share it."""
    from cirbench.runs import planning

    key = json.dumps(planned.knobs.model_dump(), sort_keys=True)
    if key not in loaded:
        loaded[key] = planning.load(planned)
    return loaded[key]


def estimate(sweep: Sweep, options: Options, workers: int) -> dict[str, Any]:
    """Estimate how long a sweep takes, from a few measured steps and encodings of some of its points.

    Returns:
        `runs`, `kept` (already finished), `seconds_run`, `seconds` of all that is left.
    """
    from cirbench.runs import estimate as runs_estimate
    from cirbench.runs.identity import identify

    points = sweep.corners() if sweep.sampler != "grid" else sweep.points()[: sweep.total]
    kept, loaded = dict[str, bool](), dict[str, Dataset]()
    for point in points if sweep.sampler == "grid" else []:
        for seed in sweep.seeds:
            planned = sweep.plan(point, seed)
            name = identify(planned, _data(planned, loaded)).id
            kept[name] = finished_run(options.out, name) is not None
    count, done = len(kept) or sweep.total * len(sweep.seeds), sum(kept.values())
    each = features = 0.0
    for point, share in _kinds(points, sweep):
        one = runs_estimate.estimate(sweep.plan(point, sweep.seeds[0]), options.device)
        each += share * (one.seconds - one.feature_seconds)
        features = max(features, one.feature_seconds)
    # Frozen features are computed once and shared by all runs.
    left = each * (count - done) / max(1, min(workers, count)) + (features if done < count else 0.0)
    return {"runs": count, "kept": done, "seconds_run": each, "seconds": left}


def _kinds(points: Sequence[Point], sweep: Sweep) -> list[tuple[Point, float]]:
    """Points to measure and the share of points each represents: one per choice of streams, which sets the cost.

    Where all have the same streams, the first and the last: grids are often ordered by cost.
    """
    kinds: dict[Any, list[Point]] = {}
    for point in points:
        planned = sweep.plan(point, sweep.seeds[0])
        kinds.setdefault((getattr(planned.config, "streams", None), planned.train.epochs > 0), []).append(point)
    if len(kinds) == 1 and len(points) > 1:
        return [(points[0], 0.5), (points[-1], 0.5)]
    return [(some[len(some) // 2], len(some) / len(points)) for some in kinds.values()]


def write_report(sweep: Sweep, data: Mapping[str, Any], out: Path) -> Path | None:
    """`report.html` beside `sweep.json`, from records only; None if no run is finished here."""
    from cirbench.reports import build
    from cirbench.runs.store import find_studies

    records = records_of(data["runs"], out)
    if not records:
        return None
    path = out / "sweeps" / data["study"] / "report.html"
    title = f"Sweep {sweep.name} on {sweep.dataset}" + (f": {sweep.note}" if sweep.note else "")
    build.write(path, build.build(records, sweeps=find_studies([path.parent]), title=title))
    return path
