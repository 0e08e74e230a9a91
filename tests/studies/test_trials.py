"""Which trial is which point: every point is run once, whatever failed, was killed or was tried again before it."""

from __future__ import annotations

import itertools
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import optuna
import pytest
import sweeping
from optuna.trial import TrialState, create_trial

from cirbench.runs import execution
from cirbench.studies import design_file, worker
from cirbench.studies.trials import vacant


class Runs:
    """Stands in for `runs.run`; notes the points it was asked for, and fails those in `bad`."""

    def __init__(self) -> None:
        self.done: list[int] = []
        self.bad: set[int] = set()
        self.points: list[dict[str, Any]] = []

    def __call__(self, planned: Any, options: Any) -> Any:
        number = next(n for n, p in enumerate(self.points) if all(
            planned.config.model_dump()[key.partition(".")[2]] == value for key, value in p.items()))
        if number in self.bad:
            raise MemoryError("the machine is full")
        self.done.append(number)
        scores = SimpleNamespace(metrics={"R@1": float(number)})
        select = SimpleNamespace(protocols={"scenes": scores})
        return SimpleNamespace(name=f"run{number}", id=str(number), run=SimpleNamespace(select=select))


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Runs:
    """No training: what is tested is who does what."""
    made = Runs()
    monkeypatch.setattr(execution, "run", made)
    return made


def make_worker(folder: Path, fake: Runs, trials: int | None = None, **over: Any) -> worker.Worker:
    found = design_file.read(sweeping.write(folder, "retries = 0\n" + sweeping.TEXT), seeds=[0], trials=trials)
    fake.points = [dict(p.values) for p in found.points()]
    return worker.Worker(found, worker.Options(folder / "runs", "cpu", **over))


def assert_whole(done: worker.Worker, fake: Runs) -> None:
    rows = done.publish()["points"]
    assert [(r["number"], r["state"], r["value"]) for r in rows] == [(n, "complete", float(n)) for n in range(6)]
    assert [r["values"] for r in rows] == fake.points
    assert sorted(fake.done) == list(range(6)), "each was run once"
    shown = {t.number: t.params["method.temperature"] for t in done.trials()}
    assert all(shown[t.number] == fake.points[int(t.user_attrs["point"])]["method.temperature"] for t in done.trials())


def test_a_second_try_does_not_cost_another_point(tmp_path: Path, fake: Runs) -> None:
    whole = make_worker(tmp_path / "whole", fake)
    whole.work()
    fake.done, fake.bad = [], {0}
    first = make_worker(tmp_path, fake, trials=3)
    first.work()
    assert [r["state"] for r in first.publish()["points"]] == ["fail", "complete", "complete"]
    fake.bad = set()
    make_worker(tmp_path, fake, trials=3, retry_failed=True).work()
    assert sorted(fake.done) == [0, 1, 2]
    done = make_worker(tmp_path, fake)
    done.work()
    assert_whole(done, fake)
    assert [t.number for t in done.study.trials if "void" in t.user_attrs] == []
    names = [w.folder / "sweep.json" for w in (whole, done)]
    assert names[0].read_bytes() == names[1].read_bytes(), "equal studies are equal files"


def test_a_second_try_that_fails_too_leaves_the_others_alone(tmp_path: Path, fake: Runs) -> None:
    fake.bad = {0, 4}
    make_worker(tmp_path, fake, trials=2).work()
    done = make_worker(tmp_path, fake, retry_failed=True)
    done.work()
    assert [r["state"] for r in done.publish()["points"]] == ["fail", *["complete"] * 3, "fail", "complete"]
    fake.bad = set()
    done = make_worker(tmp_path, fake, retry_failed=True)
    done.work()
    assert_whole(done, fake)


def test_a_study_that_lost_a_point_by_an_older_version_gets_it_back(tmp_path: Path, fake: Runs) -> None:
    old = make_worker(tmp_path, fake)
    for number, point in enumerate([None, None, None, 0, None, None, None]):
        trial = old.study.ask()
        if number == 6:
            trial.set_user_attr("void", True)
        elif point is not None:
            trial.set_user_attr("point", point)
        here = number if point is None else point
        if number < 6:
            trial.set_user_attr("worker", old.me)
            trial.set_user_attr("seed 0", {"run": f"run{here}", "id": str(here), "objective": float(here)})
        failed = number in (0, 6)
        old.study.tell(trial, None if failed else float(here), state=TrialState.FAIL if failed else TrialState.COMPLETE)
    assert [r["number"] for r in old.publish()["points"]] == [0, 1, 2, 4, 5]
    done = make_worker(tmp_path, fake)
    done.work()
    assert fake.done == [3]
    assert [(r["number"], r["value"]) for r in done.publish()["points"]] == [(n, float(n)) for n in range(6)]


@pytest.mark.parametrize("before", [0, 2, 6])
def test_a_worker_killed_while_it_asked_costs_nothing(before: int, tmp_path: Path, fake: Runs) -> None:
    first = make_worker(tmp_path, fake, trials=before or None)
    if before:
        first.work()
    for _ in range(2):
        first.study.ask()  # a trial that nobody lives to say anything about
    done = make_worker(tmp_path, fake)
    done.work()
    assert_whole(done, fake)
    assert all(t.state.is_finished() for t in done.study.trials), "what stands for no point is void"
    again = make_worker(tmp_path, fake)
    again.work()
    assert again.publish() == done.publish()


def test_a_worker_killed_at_its_second_try_costs_nothing(
    tmp_path: Path, fake: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake.bad = {1}
    make_worker(tmp_path, fake, trials=3).work()
    fake.bad = set()
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(worker.Worker, "_place", lambda *a: (_ for _ in ()).throw(KeyboardInterrupt))
        make_worker(tmp_path, fake, retry_failed=True).work()
    done = make_worker(tmp_path, fake, retry_failed=True)
    done.work()
    assert_whole(done, fake)


def test_a_trial_beyond_the_last_point_is_nobodys(tmp_path: Path, fake: Runs) -> None:
    first = make_worker(tmp_path, fake)
    for _ in range(7):
        trial = first.study.ask()
    for number in range(6):
        first.study.tell(number, state=TrialState.FAIL)
    trial.set_user_attr("worker", {**first.me, "pid": 2**22 + 1})  # an older version took it, and died of it
    done = make_worker(tmp_path, fake, retry_failed=True)
    done.work()
    assert_whole(done, fake)


def test_fewer_trials_than_before_are_those_points(tmp_path: Path, fake: Runs) -> None:
    make_worker(tmp_path, fake).work()
    less = make_worker(tmp_path, fake, trials=3)
    less.work()
    assert worker.finished(less.publish()) == 3 and sorted(fake.done) == list(range(6))


def test_no_failed_point_is_tried_again_after_the_deadline(tmp_path: Path, fake: Runs) -> None:
    fake.bad = {0}
    make_worker(tmp_path, fake, trials=1).work()
    fake.bad = set()
    make_worker(tmp_path, fake, retry_failed=True, deadline=time.time() - 1).work()
    assert fake.done == []


def study(*attributes: dict[str, Any]) -> list[optuna.trial.FrozenTrial]:
    """Running trials with these attributes, numbered."""
    out = []
    for number, given in enumerate(attributes):
        trial = create_trial(state=TrialState.RUNNING, user_attrs=given)
        trial.number = number
        out.append(trial)
    return out


def test_machines_that_ask_at_once_choose_different_points() -> None:
    known = ({"point": 0}, {"point": 2}, {"void": True})
    for order in itertools.permutations((3, 4, 5)):
        trials, chosen = study(*known, {}, {}, {}), []
        for number in order:
            point = vacant(trials, 6, number)
            chosen.append(point)
            trials[number].user_attrs["point"] = point
        assert sorted(map(str, chosen)) == ["1", "3", "4"], f"placed in the order {order}"
    assert vacant(study(*known, {}, {}, {}), 4) is None, "the two left are spoken for"
    assert vacant(study(*known, {}, {}, {}), 4, 5) is None and vacant(study(*known, {}, {}, {}), 4, 4) == 3
