"""The loop's own promises: the rate over time, and the texts that are trained with."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import small_data
import tiny
import torch

from cirbench.data.batches import Triplets
from cirbench.plugins import find_method
from cirbench.runs import execution, planning, training
from cirbench.runs.schedule import learning_rate
from cirbench.settings import TrainSettings
from cirbench.types import CirbenchError, TrainBatch


@pytest.mark.parametrize(("settings", "expected"), [
    ({}, [1, 1, 1, 1, 1, 1]),
    ({"warmup": 4}, [0.25, 0.5, 0.75, 1, 1, 1]),
    ({"schedule": "linear"}, [1, 1, 1, 1, 2 / 3, 1 / 3]),
    ({"schedule": "step", "decay_every": 2}, [1, 1, 0.1, 0.1, 0.01, 0.01]),
    ({"schedule": "step", "decay_every": 4, "decay_factor": 0.5, "warmup": 2}, [0.5, 1, 1, 1, 0.5, 0.5]),
    ({"schedule": "step", "decay_every": 3, "decay_epochs": 1, "decay_factor": 0.5}, [1, 1, 0.5, 0.5, 0.25, 0.25]),
    ({"schedule": "step", "decay_epochs": 2}, [1, 1, 1, 1, 0.1, 0.1]),
    ({"schedule": "step", "decay_epochs": 1, "last_decay": 1}, [1, 1, 1, 1, 1, 1]),
    ({"schedule": "step", "decay_epochs": 1, "last_decay": 2}, [1, 1, 0.1, 0.1, 0.1, 0.1]),
    ({"schedule": "step", "decay_every": 1, "decay_factor": 0.5, "last_decay": 2}, [1, 0.5, 0.25, 0.125, 0.125, 0.125]),
    ({"decay_epochs": 1}, [1, 1, 1, 1, 1, 1]),
    ({"schedule": "cosine"}, [1, 0.5 + 0.75**0.5 / 2, 0.75, 0.5, 0.25, 0.5 - 0.75**0.5 / 2]),
    ({"schedule": "cosine-after-warmup"}, [1, 0.5 + 0.75**0.5 / 2, 0.75, 0.5, 0.25, 0.5 - 0.75**0.5 / 2]),
    ({"schedule": "cosine-after-warmup", "warmup": 3}, [1 / 3, 2 / 3, 1, 1, 0.75, 0.25]),
    ({"schedule": "cosine-after-warmup", "warmup": 9}, [n / 9 for n in range(1, 7)]),
], ids=str)
def test_rate_over_time(settings: dict, expected: list[float]) -> None:
    """Six steps, two in an epoch."""
    assert [learning_rate(TrainSettings(**settings), n, 6, 2) for n in range(6)] == pytest.approx(expected)


def test_clvc_nets_rate_drops_at_epoch_ten_and_on_shoes_at_twenty_too() -> None:
    for last, expected in ((20, [1, 1, 0.1, 0.1, 0.1, 0.1]), (30, [1, 1, 0.1, 0.1, 0.01, 0.01])):
        settings = TrainSettings(schedule="step", decay_epochs=10, last_decay=last)
        rates = [learning_rate(settings, 7 * epoch + 6, 350, 7) for epoch in (0, 9, 10, 19, 20, 49)]
        assert rates == pytest.approx(expected)


@pytest.mark.parametrize("given", [[0.0, 1.0], [0.9, 0.5], [0.5], [1, 2, 3], "half", [-1, 1]], ids=str)
def test_shares_of_the_area_are_two_in_order(given: object) -> None:
    with pytest.raises(CirbenchError, match=r"train\.crop_scale.*0 < low <= high"):
        tiny.plan("sum", train__crop_scale=given)


def test_new_settings_change_no_id_at_their_defaults() -> None:
    """Also written out, and read back from a record's JSON."""
    neutral = TrainSettings.neutral()
    named = {"decay_epochs", "last_decay", "crop", "crop_scale", "ema", "ema_warmup"}
    assert named <= neutral.keys() and not named & TrainSettings().identity().keys()
    read = TrainSettings(**json.loads(json.dumps({name: neutral[name] for name in named})))
    assert read == TrainSettings() and read.identity() == TrainSettings().identity()
    assert TrainSettings(crop_scale=(0.5, 1.0)).identity()["crop_scale"] == (0.5, 1.0)


def test_tirgs_paper_drops_the_rate_every_fifty_thousand_steps() -> None:
    settings = TrainSettings(**find_method("tirg").train)
    rates = [learning_rate(settings, n, 160_000, 5_000) for n in (0, 49_999, 50_000, 99_999, 100_000, 150_000)]
    assert rates == pytest.approx([1, 1, 0.1, 0.1, 0.01, 0.001])
    assert planning.plan("tirg", "scenes").train.schedule == "linear", "scenes is too short for it"
    assert planning.plan("tirg", "scenes", "like-dwc").train == planning.plan("dwc", "scenes").train


def test_combiner_draws_captions_four_ways_on_fashioniq(tmp_path: Path) -> None:
    """Each epoch one of `a and b`, `b and a`, `a`, `b`, the same for the same seed, whatever step it starts at."""
    small_data.fashioniq(tmp_path)
    root = {"root": tmp_path}
    assert planning.plan("dwc", "fashioniq", **root).train.form == ""
    assert planning.plan("combiner", "fashioniq", "like-dwc", **root).train.form == ""
    planned = planning.plan("combiner", "fashioniq", sets=["train.batch_size=2", "data.select_share=0"], **root)
    dataset = planning.load(planned)
    form = planning.training_form(planned, dataset)
    assert form == "four-ways" and dataset.protocols[0].form == "ab", "scored as ever"

    def words(seed: int, epoch: int, skip: int = 0) -> list[list[str]]:
        triplets = Triplets(dataset, form, 2, "none", seed)
        return [batch.words for batch in triplets.epoch(epoch, NoFeed(), skip)]  # type: ignore[arg-type]

    assert words(0, 3) == words(0, 3) and words(0, 3)[1:] == words(0, 3, skip=1), "so it can be resumed"
    query = dataset.splits["train"].queries[0]
    a, b = (t.strip(".?, ") for t in query.texts)
    drawn = Counter(w for epoch in range(400) for ws in words(1, epoch) for w in ws)
    four = [f"{a} and {b}", f"{b} and {a}", a, b]
    assert len(set(four)) == 4 and all(drawn[w] > 60 for w in four), drawn


class NoFeed:
    """Stands for Feed where only words are looked at."""

    device = torch.device("cpu")

    def images(self, ids: list[str], flip: object = None, crops: object = None) -> dict:
        return {}

    def texts(self, words: list[str]) -> dict:
        return {}


def test_a_form_that_the_dataset_lacks() -> None:
    planned = tiny.plan("sum", train__form="four-way")
    with pytest.raises(CirbenchError, match=r"train\.form.*'four-way'.*text"):
        planning.load(planned)


# ------------------------------------------------------------------------------------------ bf16

CNN = {"method__cnn": "scenes-cnn", "method__cnn_size": 48}


@pytest.mark.parametrize(("method", "variant"), [
    ("dwc", ""), ("dwc", "as-released"), ("sum", ""), ("concat", ""), ("tirg", ""), ("combiner", "like-dwc"),
])
def test_bf16_trains_like_float32(tmp_path: Path, method: str, variant: str) -> None:
    narrow = {"method__projection": 16, "method__hidden": 16} if method == "combiner" else {}
    plain, half = (
        tiny.run(method, tmp_path / amp, variant, train__amp=amp, **CNN, **narrow) for amp in ("off", "bf16")
    )
    both = [[line["losses"] for line in r.training if "losses" in line] for r in (plain, half)]
    assert len(both[0]) == len(both[1]) > 1
    for one, two in zip(*both, strict=True):
        assert one.keys() == two.keys() and two == pytest.approx(one, rel=0.03, abs=0.03)
    assert both[0] != both[1], "half precision was not used"


def test_the_stepped_stream_teaches_under_bf16_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """autocast keeps weights it has cast; after a step those are the old ones."""
    from cirbench.methods import dwc

    real, seen = dwc.Dwc._vectors, []

    def watched(self: dwc.Dwc, stream: str, batch: TrainBatch) -> dict[str, torch.Tensor]:
        out = real(self, stream, batch)
        if stream == "clip" and not torch.is_grad_enabled():
            torch.clear_autocast_cache()
            fresh = real(self, stream, batch)
            seen.append(all(torch.equal(out[k], fresh[k]) for k in out))
        return out

    monkeypatch.setattr(dwc.Dwc, "_vectors", watched)
    tiny.run("dwc", tmp_path, train__amp="bf16", method__dropout=0, method__clip_lr=0.1, **CNN)
    assert len(seen) > 1 and all(seen)


def test_validation_is_no_training_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock that jumps while the split `select` is evaluated."""
    ahead = [0.0]
    real = time.perf_counter
    monkeypatch.setattr(training.time, "perf_counter", lambda: real() + ahead[0])

    def validator(*_: object) -> Callable[[], float]:
        def value() -> float:
            ahead[0] += 1000
            return 1.0

        return value

    monkeypatch.setattr(execution, "_validator", validator)
    seconds = tiny.run("sum", tmp_path, variant="clip-only", train__selection="select", train__epochs=2).data["cost"]["seconds"]
    assert 2000 <= seconds["validate"] < 3000 and seconds["train"] < 1000 and seconds["epoch"] < 1000
