"""Losses that are read every few steps are those that are read at every step."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from torch import nn

from cirbench.runs import readings
from cirbench.types import CirbenchError, MethodError

CPU = torch.device("cpu")


class Subject(nn.Module):
    """A method to be named in errors."""

    def losses(self, batch: Any) -> Any:
        raise NotImplementedError


@pytest.mark.parametrize(("every", "method"), [(2, "dwc"), (3, "pic2word"), (1000, "dwc")])
def test_a_run_does_not_depend_on_how_often_losses_are_read(
    every: int, method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(readings.INTERVAL, "cpu", every)
    found = tiny.run(method, tmp_path / "a", train__epochs=2)
    monkeypatch.setitem(readings.INTERVAL, "cpu", 1)
    wanted = tiny.run(method, tmp_path / "b", train__epochs=2)
    lines = [[{k: v for k, v in line.items() if k != "seconds"} for line in run.training] for run in (found, wanted)]
    assert lines[0] == lines[1] and sum("step" in line and bool(line["losses"]) for line in lines[0]) >= 4
    assert found.data["protocols"] == wanted.data["protocols"]


@pytest.mark.parametrize("every", [2, 5])
def test_the_first_loss_that_is_not_finite_is_told_with_its_place(every: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(readings.INTERVAL, "cpu", every)
    kept, values = readings.Readings(Subject(), CPU), [1.0, math.inf, math.nan, 2.0, 3.0]
    lines: list[dict[str, Any]] = [{} for _ in values]
    with pytest.raises(MethodError, match=r"the loss of 'all' is inf at step 1\. Lower its learning rate"):
        for n, value in enumerate(values):
            kept.add(lines[n], [("all", torch.tensor(value), {"x": torch.tensor(n)})], f"step {n}")
    assert lines[0] == {"losses": {"x": 0}} and lines[1] == {}


def test_logs_are_what_they_were_before_the_step() -> None:
    weight = nn.Parameter(torch.tensor([0.5]))
    given = {"weight": weight, "number": 3, "array": np.float32(0.25), "nan": torch.tensor(math.nan)}
    later = readings.checked_logs(Subject(), "all", given, "here", at_once=False)
    at_once = readings.checked_logs(Subject(), "all", given, "here", at_once=True)
    with torch.no_grad():
        weight += 1
    line: dict[str, Any] = {}
    kept = readings.Readings(Subject(), CPU)
    for logs in (later, at_once):
        kept.add(line, [("all", torch.tensor(1.0), logs)], "here")
        assert line["losses"] == {"weight": 0.5, "number": 3, "array": 0.25, "nan": None}


@pytest.mark.parametrize("wrong", [torch.zeros(2), "text", None, torch.tensor(1j), [1.0]])
@pytest.mark.parametrize("at_once", [True, False])
def test_logs_that_are_no_numbers_are_refused(wrong: Any, at_once: bool) -> None:
    with pytest.raises(CirbenchError, match="the logs of 'all' at here hold"):
        readings.checked_logs(Subject(), "all", {"x": wrong}, "here", at_once)


def test_numbers_keep_their_order_and_kind() -> None:
    exact = [0.1, 2**40 + 1, True, -3.5]
    tensors = [torch.tensor(0.1, dtype=torch.float64), torch.tensor(2**40 + 1), torch.tensor(True), torch.tensor([-3.5])]
    assert readings.numbers(tensors) == exact
    assert readings.numbers([1, tensors[0], 2.5]) == [1, 0.1, 2.5]
