"""A sweep file -> an Optuna study -> ordinary runs. Nothing is lost when a worker dies, nothing is done twice.

A trial runs a point of the space: the first that no trial has yet (trials.py). Storages assign trial numbers
atomically, so no point is taken twice or dropped, and there is nothing to set up before the first worker may start.
A trial whose worker died stays the same trial; another worker continues it, and its unfinished run resumes from its
checkpoint.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial, Trial, TrialState

from cirbench import lease
from cirbench.files import DiskFullError, write_json
from cirbench.runs import planning
from cirbench.runs.record import Record
from cirbench.seeds import derive, digest
from cirbench.studies.design import Point, Range, Sweep
from cirbench.studies.objective import BLOCKS, blocks, objective
from cirbench.studies.storage import open_storage
from cirbench.studies.trials import placed_point, point_of, unplaced, vacant
from cirbench.types import CirbenchError

optuna.logging.set_verbosity(optuna.logging.ERROR)

RUNNING, COMPLETE, PRUNED, FAIL = TrialState.RUNNING, TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL


@dataclass(frozen=True)
class Options:
    """Where and how, nothing that changes a number."""

    out: Path = Path("runs")
    device: str = "auto"
    storage: str = ""
    quiet: bool = True
    command: str = ""
    deadline: float | None = None
    retry_failed: bool = False


class _Points(optuna.samplers.BaseSampler):
    """A grid: a trial's attribute names its point."""

    def __init__(self, points: list[Point]) -> None:
        self.points = points

    def infer_relative_search_space(self, study: Any, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return {}

    def sample_relative(self, study: Any, trial: FrozenTrial, search_space: Any) -> dict[str, Any]:
        return {}

    def sample_independent(self, study: Any, trial: FrozenTrial, name: str, distribution: BaseDistribution) -> Any:
        return as_params(self.points[placed_point(trial)])[name]


def as_params(point: Point) -> dict[str, Any]:
    """A point of a grid as Optuna shows it."""
    return {"arm": point.arm or point.method, "variant": point.variant, **point.values}


def _distributions(sweep: Sweep, points: list[Point]) -> dict[str, BaseDistribution]:
    """Parameter name -> distribution."""
    if sweep.sampler == "grid":
        choices: dict[str, list[Any]] = {}
        for point in points:
            for name, value in as_params(point).items():
                known = choices.setdefault(name, [])
                if value not in known:
                    known.append(value)
        return {name: CategoricalDistribution(values) for name, values in choices.items()}
    out: dict[str, BaseDistribution] = {}
    for name, axis in sweep.arms[0].space.items():
        if not isinstance(axis, Range):
            out[name] = CategoricalDistribution(axis)
        elif axis.whole:
            out[name] = IntDistribution(int(axis.low), int(axis.high), log=axis.log, step=int(axis.step or 1))
        else:
            out[name] = FloatDistribution(axis.low, axis.high, log=axis.log, step=axis.step)
    return out


def _sampler(sweep: Sweep, points: list[Point], trials: int) -> optuna.samplers.BaseSampler:
    """Seeded by the sweep and by how many trials there are, so that a restart repeats no draw."""
    seed = derive(0, "sampler", sweep.name, trials) % 2**32
    samplers: dict[str, Callable[[], optuna.samplers.BaseSampler]] = {
        "grid": lambda: _Points(points),
        "random": lambda: optuna.samplers.RandomSampler(seed=seed),
        "tpe": lambda: optuna.samplers.TPESampler(seed=seed, multivariate=True, constant_liar=True),
        "gp": lambda: optuna.samplers.GPSampler(seed=seed),
        # One low-discrepancy sequence for all workers; the position in it is kept in the study.
        "qmc": lambda: optuna.samplers.QMCSampler(seed=derive(0, "qmc", sweep.name) % 2**32, scramble=True),
    }
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return samplers[sweep.sampler]()


class Worker:
    """One process's view of a study: takes points and runs them."""

    def __init__(self, sweep: Sweep, options: Options, patience: float = lease.PATIENCE) -> None:
        self.sweep, self.options = sweep, options
        self.name = sweep.study()
        self.folder = options.out / "sweeps" / self.name
        self.folder.mkdir(parents=True, exist_ok=True)
        self.points = sweep.points() if sweep.sampler == "grid" else []
        self.storage = open_storage(self.folder, options.storage)
        pruner: optuna.pruners.BasePruner = optuna.pruners.NopPruner()
        if sweep.pruner == "wilcoxon":
            import warnings

            with warnings.catch_warnings():
                warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
                # Two seeds at least: blocks of one trained model share its luck.
                pruner = optuna.pruners.WilcoxonPruner(p_threshold=0.05, n_startup_steps=2 * BLOCKS)
        self.study = optuna.create_study(
            storage=self.storage, study_name=self.name, direction=cast(Any, sweep.objective.direction), pruner=pruner,
            load_if_exists=True, sampler=_sampler(sweep, self.points, 0),
        )
        self._same_data()
        self.distributions = _distributions(sweep, self.points)
        self.me, self.watch, self._started = lease.identity(), lease.Watch(patience), time.time()

    def _same_data(self) -> None:
        """Refuse annotations other than those the study began with; the folder that holds them may differ.

        Raises:
            CirbenchError: the annotations differ.
        """
        planned = self.sweep.plan(self.sweep.corners()[0], self.sweep.seeds[0])
        if not planned.facts.needs_root:
            return
        here = planning.load(planned).fingerprint
        known = self.study.user_attrs.get("annotations")
        if known is None:
            self.study.set_user_attr("annotations", here)
        elif known != here:
            raise CirbenchError(
                f"the study {self.name} was started with other annotations of {planned.facts.name} (fingerprint "
                f"{known[:12]}) than those in {self.sweep.root} ({here[:12]}). Use another --out for them."
            )

    # ------------------------------------------------------------------------------- assigning points

    def trials(self) -> list[FrozenTrial]:
        """Trials that have a point, the last one of each point."""
        last: dict[int, FrozenTrial] = {}
        for trial in self._every():
            point = point_of(trial)
            if point is not None and (trial.state != RUNNING or self._open(trial)):
                last[point] = trial
        return [last[k] for k in sorted(last)]

    def _every(self) -> list[FrozenTrial]:
        return self.study.get_trials(deepcopy=False)

    def _open(self, trial: FrozenTrial) -> bool:
        """Whether a trial is or has to be worked on; trials beyond the last point are not."""
        point = point_of(trial)
        return trial.state == RUNNING and (unplaced(trial) or (point is not None and point < self.sweep.total))

    def _abandoned(self, trial: FrozenTrial) -> bool:
        holder = trial.user_attrs.get("worker")
        if holder is None and self.options.storage:
            # Another machine may just have taken it; on this one, taking a trial needs the lock that we hold.
            holder = {"token": f"trial {trial.number}", "beat": 0}
        return self.watch.dead(holder)

    def claim(self) -> int | None:
        """Take a trial and return its id, or None if none is free at the moment."""
        with lease.lock(self.folder / "claim.lock", needed="a sweep"):
            for trial in self._every():
                if not self._open(trial) or not self._abandoned(trial):
                    continue
                # A trial without a point has not started: after the deadline it is left alone.
                if not unplaced(trial) or (not self.late() and self._place(trial)):
                    return self._take(trial._trial_id)
            if self.late():
                return None
            again = None
            if self.options.retry_failed:
                placed = [t for t in self.trials() if placed_point(t) < self.sweep.total]
                again = next((t for t in placed if t.state == FAIL and not self._mine(t)), None)
            every = self._every()
            if again is None and vacant(every, self.sweep.total) is None:
                return None
            self.study.sampler = _sampler(self.sweep, self.points, len(every))
            fresh = self.storage.get_trial(self.study.ask()._trial_id)
            return self._take(fresh._trial_id) if self._place(fresh, again) else None

    def _place(self, trial: FrozenTrial, again: FrozenTrial | None = None) -> bool:
        """Give a trial its point, that of `again` or the first free one; without one mark it void and return False."""
        point = placed_point(again) if again is not None else vacant(self._every(), self.sweep.total, trial.number)
        if point is None:
            # Another machine has taken the last point meanwhile, or a worker that retried a failed one died.
            self.storage.set_trial_user_attr(trial._trial_id, "void", True)
            self.study.tell(trial.number, state=FAIL, skip_if_finished=True)
            return False
        self.storage.set_trial_user_attr(trial._trial_id, "point", point)
        return True

    def _mine(self, trial: FrozenTrial) -> bool:
        """Whether this command already tried it, so that another retry would not help."""
        return (trial.datetime_complete or trial.datetime_start).timestamp() >= self._started  # type: ignore[union-attr]

    def _take(self, trial_id: int) -> int | None:
        self.storage.set_trial_user_attr(trial_id, "worker", self.me)
        if self.options.storage:
            # A database has no such lock across machines: the last writer keeps the trial.
            time.sleep(0.5)
            if self.storage.get_trial(trial_id).user_attrs.get("worker", {}).get("token") != self.me["token"]:
                return None
        return trial_id

    def _beat(self, trial_id: int) -> None:
        self.me = {**self.me, "beat": self.me["beat"] + 1}
        self.storage.set_trial_user_attr(trial_id, "worker", self.me)

    def late(self) -> bool:
        """Whether the deadline has passed."""
        return self.options.deadline is not None and time.time() > self.options.deadline

    def point(self, trial: Trial) -> Point:
        """The point of a trial; values not drawn yet come from the sampler."""
        if self.sweep.sampler == "grid":
            found = self.points[placed_point(trial)]
            for name in as_params(found):
                trial._suggest(name, self.distributions[name])
            return found
        arm = self.sweep.arms[0]
        values = {name: trial._suggest(name, d) for name, d in self.distributions.items()}
        return Point(arm.label, arm.method, arm.variants[0], values, arm.fixed)

    # --------------------------------------------------------------------------------- running points

    def work(self, after: Callable[[Worker], None] | None = None) -> None:
        """Take points until none is left; wait for those of other workers, and take over from dead ones."""
        parent = os.getppid()
        while os.getppid() == parent:
            trial_id = self.claim()
            if trial_id is not None:
                with lease.repeating(lambda taken=trial_id: self._beat(taken), 3 * lease.BEAT):
                    self._do(Trial(self.study, trial_id))
                self.publish()
                if after is not None:
                    after(self)
            elif not self.late() and any(self._open(t) for t in self._every()):
                time.sleep(0.5)
            else:
                break
        self.publish()

    def _do(self, trial: Trial) -> None:
        point = self.point(trial)
        trial.set_user_attr("label", point.label or point.method)
        values = []
        for n, seed in enumerate(self.sweep.seeds):
            scored = self._run(trial, point, seed)
            if scored is None:
                self._tell(trial, None, FAIL)
                return
            record, value, parts = scored
            values.append(value)
            trial.set_user_attr(f"seed {seed}", {"run": record.name, "id": record.id, "objective": value})
            if self.sweep.pruner == "wilcoxon":
                for block, part in enumerate(parts):
                    trial.report(part, n * BLOCKS + block)
                if n and n + 1 < len(self.sweep.seeds) and trial.should_prune():
                    self._tell(trial, None, PRUNED)
                    return
        self._tell(trial, float(np.mean(values)), COMPLETE)

    def _run(self, trial: Trial, point: Point, seed: int) -> tuple[Record, float, list[float]] | None:
        """One seed, tried again a bounded number of times: its record, the objective, and that of every block."""
        from cirbench.runs import execution

        options = execution.Options(self.options.out, self.options.device, command=self.options.command)
        for attempt in range(self.sweep.retries + 1):
            try:
                record = execution.run(self.sweep.plan(point, seed), options)
                pruned = self.sweep.pruner == "wilcoxon"
                return record, objective(record, self.sweep), blocks(record, self.sweep) if pruned else []
            except DiskFullError:
                raise  # every other point would fail by it as well
            except Exception as error:
                trial.set_user_attr("error", f"seed {seed}, try {attempt + 1}: {type(error).__name__}: {error}"[:2000])
        return None

    def _tell(self, trial: Trial, value: float | None, state: TrialState) -> None:
        try:
            self.study.tell(trial, value, state=state)
        except ValueError:
            # Our heartbeat stood still, so another worker took the trial over and finished it.
            if not self.storage.get_trial(trial._trial_id).state.is_finished():
                raise

    def publish(self) -> dict[str, Any]:
        """Write `sweep.json`: the design, the points and their runs. Equal studies give equal files."""
        with lease.lock(self.folder / "publish.lock"):
            data = summary(self.sweep, self.name, self.trials(), self.points)
            write_json(self.folder / "sweep.json", data)
        return data


# ------------------------------------------------------------------------------------- results


def summary(sweep: Sweep, study: str, trials: list[FrozenTrial], points: list[Point]) -> dict[str, Any]:
    """What `sweep.json` holds: see docs/add-a-sweep.md."""
    rows: list[dict[str, Any]] = []
    for trial in trials:
        number = placed_point(trial)
        if points:
            point = points[number]
        else:
            arm = sweep.arms[0]
            point = Point(arm.label, arm.method, arm.variants[0], trial.params, arm.fixed)
        seeds = {str(s): trial.user_attrs[f"seed {s}"] for s in sweep.seeds if f"seed {s}" in trial.user_attrs}
        rows.append({
            "number": number, "label": point.label or point.method, "arm": point.arm, "method": point.method,
            "variant": point.variant, "values": dict(point.values), "fixed": dict(point.fixed),
            "state": trial.state.name.lower(), "value": trial.value if trial.state == COMPLETE else None,
            "seeds": seeds, "error": trial.user_attrs.get("error") if trial.state == FAIL else None,
        })
    design = sweep.definition()
    return {
        "schema": 1, "study": study, "question": sweep.question, "note": sweep.note, "tuning": sweep.tuning,
        **design, "objective": {**design["objective"], "direction": sweep.objective.direction},
        "total": sweep.total, "points": rows,
        "runs": sorted({s["run"] for row in rows for s in row["seeds"].values()}),
    }


def finished(data: Mapping[str, Any]) -> int:
    """Number of points finished or failed, without those beyond `--trials` from an earlier command."""
    through = [row["number"] for row in data["points"] if row["state"] in ("complete", "pruned", "fail")]
    return sum(number < data["total"] for number in through)


def best(data: Mapping[str, Any]) -> dict[str, Any] | None:
    """The point with the best mean, or None before the first is finished."""
    done = [row for row in data["points"] if row["value"] is not None]
    if not done:
        return None
    least = data["objective"].get("direction") == "minimize"
    return (min if least else max)(done, key=lambda row: row["value"])


def fingerprint(data: Mapping[str, Any]) -> str:
    """Equal for studies with equal points and equal metrics, bit for bit."""
    rows = [{k: row[k] for k in ("number", "label", "state", "value", "seeds")} for row in data["points"]]
    return digest([data["study"], rows])
