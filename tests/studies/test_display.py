"""What a sweep says of itself while it runs and before: how long it will take."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cirbench.runs import estimate
from cirbench.studies import design_file, display, launch, worker


def test_time_left_follows_the_last_points(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten points of 1 s, then points of 60 s: the mean over all would still promise half a minute a point too few."""
    clock, said = [0.0], list[str]()
    monkeypatch.setattr(display.time, "monotonic", lambda: clock[0])
    show = display.Progress(design_file.read("methods"), 1, said.append, live=False)

    def state(done: int) -> dict[str, Any]:
        return {"total": 20, "points": [{"number": n, "state": "complete" if n < done else "waiting"} for n in range(20)]}

    monkeypatch.setattr(display, "best", lambda data: None)
    for done in range(11):
        clock[0] = float(done)
        show(state(done))
    assert said[-1] == "methods: 10 of 20 points, about 10 s left\n"
    for done in range(11, 15):
        clock[0] += 60
        show(state(done))
    assert said[-1] == "methods: 14 of 20 points, about 6 min left\n"
    clock[0] += 600
    assert "about 21 min left" in show.line(state(14)), "a point that takes longer than the others is seen at once"
    assert "left" not in show.line(state(20))


def test_the_estimate_measures_each_choice_of_streams(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    costs = {"clip": 1.0, "both": 30.0, "cnn": 20.0, None: 0.1}
    asked = []

    def measure(planned: Any, device: str) -> estimate.Estimate:
        asked.append(planned.config.model_dump().get("streams"))
        return estimate.Estimate(1, 1, costs[asked[-1]], feature_seconds=7.0, evaluate_seconds=0.0, evaluations=1, memory_mb=1)

    monkeypatch.setattr(estimate, "estimate", measure)
    found = design_file.read("methods", variant="all", seeds=[0])
    told = launch.estimate(found, worker.Options(tmp_path, "cpu"), workers=2)
    assert sorted(map(str, asked)) == ["None", "both", "clip", "cnn"]
    exact = sum(costs[found.plan(p, 0).config.model_dump().get("streams")] for p in found.points())
    assert told["seconds"] == pytest.approx(exact / 2 + 7.0) and told["runs"] == len(found.points())
    asked.clear()
    launch.estimate(design_file.read("batch-size", seeds=[0]), worker.Options(tmp_path, "cpu"), workers=1)
    assert asked == ["clip", "clip"], "the first and the last"
