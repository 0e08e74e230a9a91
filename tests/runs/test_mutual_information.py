"""The bound on mutual information: its value, its pairs, and that measuring it leaves training as it was."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from cirbench.runs import building, execution, mutual_information, planning
from cirbench.runs.mutual_information import bound, bounds, distinct
from tests import tiny


def test_the_bound_is_log_n_for_certain_pairs_and_zero_for_no_information() -> None:
    one_hot = torch.eye(16)
    assert bound(one_hot, one_hot, 0.01) == pytest.approx(math.log(16))
    assert bound(torch.ones(16, 4), torch.randn(16, 4, generator=torch.manual_seed(0)).mul(0), 0.07) == 0
    assert bound(one_hot.roll(1, 0), one_hot, 0.07) < 0, "certain of the wrong target"
    # By hand: two pairs, cosines 1 and 0, temperature 1.
    assert bound(torch.eye(2), torch.eye(2), 1.0) == pytest.approx(math.log(2) - math.log(1 + math.exp(-1)))


def test_no_query_of_the_pairs_is_a_hit_of_another() -> None:
    split = planning.load(tiny.plan("dwc")).splits["select"]
    found = distinct(split)
    assert 1 < len(found) < len(split.queries), "scenes has several queries with one target"
    assert found == distinct(split) and [q.id for q in distinct(split, 5)] == [q.id for q in found[:5]]
    targets = [set(q.targets) for q in found]
    assert all(a.isdisjoint(b) for n, a in enumerate(targets) for b in targets[:n])


@pytest.mark.parametrize(("method", "variant"), [("dwc", ""), ("tirg", "like-dwc")])
def test_it_is_logged_by_stream_and_epoch_and_training_is_as_without_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str, variant: str
) -> None:
    settings = {"train__epochs": 2, "method__cnn": "scenes-cnn", "method__cnn_size": 48}
    measured = tiny.run(method, tmp_path / "a", variant=variant, **settings)
    monkeypatch.setattr(execution, "bounds", lambda *_: None)
    plain = tiny.run(method, tmp_path / "b", variant=variant, **settings)
    one, two = (load_file(r.folder / "model.safetensors") for r in (measured, plain))
    assert one.keys() == two.keys() and all(np.array_equal(one[k], two[k]) for k in one)
    lines = [line for line in measured.training if "bound" in line]
    assert [line["epoch"] for line in lines] == [0, 1] and not any("bound" in line for line in plain.training)
    split = planning.load(tiny.plan(method)).splits["select"]
    for line in lines:
        assert line["pairs"] == len(distinct(split)) and set(line["bound"]) == {"clip", "cnn"}
        assert all(v <= math.log(line["pairs"]) for v in line["bound"].values())
    planned = tiny.plan(method, variant, **settings)
    dataset, cpu = planning.load(planned), torch.device("cpu")
    again = bounds(building.load_method(planned, dataset, measured.folder / "model.safetensors", cpu), dataset, "text", cpu)
    assert again is not None and again() == lines[1]["bound"]


def test_it_is_absent_without_select_and_without_the_hook() -> None:
    planned = tiny.plan("dwc", variant="clip-only")
    dataset = planning.load(planned)
    cpu = torch.device("cpu")
    assert bounds(object(), dataset, "text", cpu) is None
    other = type(dataset)(**{**vars(dataset), "splits": {"train": dataset.splits["train"]}})

    class Hooked:
        def contrasts(self) -> None: ...

    assert bounds(Hooked(), other, "text", cpu) is None
    assert mutual_information.PAIRS == 256
