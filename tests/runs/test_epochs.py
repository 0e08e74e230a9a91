"""What happens between epochs and beside the steps: `start_epoch`, the average of the weights, and resuming with both."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tiny
import torch
from torch import nn

from cirbench.process import Terminated
from cirbench.runs import contract, evaluate_run, training
from cirbench.runs.record import Record
from cirbench.runs.schedule import epoch_factor
from cirbench.settings import TrainSettings
from cirbench.types import CirbenchError, MethodError

STAGED = Path(__file__).with_name("staged_method.py")
CPU = torch.device("cpu")


# ---------------------------------------------------------------------------------- whole runs, interrupted everywhere


def outcome(record: Record) -> dict[str, Any]:
    """Everything of a run that must not depend on interruptions."""
    log = [{k: v for k, v in line.items() if k != "seconds"} for line in record.training]
    return {
        "weights": (record.folder / "model.safetensors").read_bytes(), "log": log, "selection": record.data["selection"],
        "protocols": record.data["protocols"], "parameters": record.data["cost"]["parameters"],
    }


@pytest.mark.parametrize("over", [
    {}, {"train__selection": "select"}, {"train__crop": "resized", "train__ema_warmup": False},
    {"train__ema": 0.0, "train__crop": "none"},
], ids=str)
def test_interrupted_after_every_step_it_is_the_same_run(
    over: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = {"train__epochs": 3, **over}
    whole = outcome(tiny.run(str(STAGED), tmp_path / "whole", **given))
    real, calls = training.take_step, [0]

    def once(*args: Any, **more: Any) -> Any:
        calls[0] += 1
        if calls[0] > 1:
            raise Terminated
        return real(*args, **more)

    attempts = 0
    with monkeypatch.context() as patch:
        patch.setattr(training, "take_step", once)
        for _ in range(20):
            attempts, calls[0] = attempts + 1, 0
            try:
                broken = tiny.run(str(STAGED), tmp_path / "broken", train__seconds_between_checkpoints=0, **given)
                break
            except Terminated:
                assert list((tmp_path / "broken").glob("*/checkpoint.pt"))
    assert attempts == sum("step" in line for line in whole["log"]) == 9
    assert outcome(broken) == whole
    assert whole["parameters"]["trainable"] == 8 * 76 + 16 + 9 * 16 + 129 * 16, "counted as built, whatever is frozen last"


def test_checkpoints_from_before_there_was_an_average_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The key is absent there; with an average to go on with, such a file is no checkpoint of this run."""
    given: dict[str, Any] = {"train__epochs": 2, "train__seconds_between_checkpoints": 0, "train__crop": "none"}
    for ema, steps in ((0.0, 6 - 2), (0.8, 6)):
        out, counted, real = tmp_path / str(ema), [0], training.take_step

        def stopping(*args: Any, most: int, count: list[int] = counted, step: Any = real, **more: Any) -> Any:
            if count[0] == most:
                raise Terminated
            count[0] += 1
            return step(*args, **more)

        with monkeypatch.context() as patch:
            patch.setattr(training, "take_step", lambda *a, f=stopping, **k: f(*a, most=2, **k))
            with pytest.raises(Terminated):
                tiny.run(str(STAGED), out, train__ema=ema, **given)
            (path,) = out.glob("*/checkpoint.pt")
            kept = torch.load(path, weights_only=True)
            assert kept["step"] == 2 and (kept.pop("ema") is None) == (ema == 0)
            torch.save(kept, path)
            counted[0] = 0
            patch.setattr(training, "take_step", lambda *a, f=stopping, **k: f(*a, most=99, **k))
            resumed = tiny.run(str(STAGED), out, train__ema=ema, **given)
        assert counted[0] == steps
        assert outcome(resumed) == outcome(tiny.run(str(STAGED), tmp_path / f"whole{ema}", train__ema=ema, **given))


# --------------------------------------------------------------------------------------- the average, step by step


#: Steps make their batches from nothing.
NO_FEED = SimpleNamespace(slow=False)


class Steps:
    """Stands for Triplets: noise instead of pictures."""

    def __init__(self, steps: int, seed: int = 0) -> None:
        self.steps, self.seed = steps, seed

    def epoch(self, epoch: int, feed: object, skip: int = 0) -> Iterator[torch.Tensor]:
        for step in range(skip, self.steps):
            yield torch.randn(6, 4, generator=torch.Generator().manual_seed(100 * epoch + step))


class Odd(nn.Module):
    """Every kind of thing that a state can hold."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.a, self.norm, self.b = nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)
        self.tied = self.a
        self.brief = nn.Parameter(torch.randn(4).to(torch.bfloat16))
        self.waits, self.never = nn.Linear(4, 4), nn.Linear(4, 4)
        self.never.requires_grad_(False)
        self.whole = nn.Parameter(torch.arange(3), requires_grad=False)
        self.mask = nn.Parameter(torch.tensor([0.0, -torch.inf]), requires_grad=False)
        self.register_buffer("count", torch.tensor(0))

    def start_epoch(self, epoch: int) -> None:
        self.waits.requires_grad_(epoch == 1)

    def losses(self, batch: torch.Tensor) -> Iterator[tuple[str, torch.Tensor, dict[str, float]]]:
        self.count += 1
        yield "one", self.b(self.norm(self.a(batch)) * self.brief + self.never(batch)).square().mean(), {}
        yield "two", (self.waits(self.a(batch)) - 1).square().mean(), {}

    def optimizers(self) -> dict[str, torch.optim.Optimizer]:
        first = [*self.a.parameters(), *self.norm.parameters(), *self.b.parameters(), *self.never.parameters(), self.brief]
        return {
            "one": torch.optim.SGD(first, 0.3),
            "two": torch.optim.SGD([*self.waits.parameters(), *self.a.parameters()], 0.1),
        }


def trained(
    folder: Path, monkeypatch: pytest.MonkeyPatch, validate: Callable[[Odd], float] | None = None, **settings: Any
) -> tuple[Odd, list[dict[str, torch.Tensor]], training.Trained]:
    """The method, its raw weights before and after every step, and what training returns."""
    made, raw, real = Odd(), [], training.take_step

    def watched(*args: Any) -> Any:
        if not raw:
            raw.append({k: v.detach().clone() for k, v in made.state_dict().items()})
        out = real(*args)
        raw.append({k: v.detach().clone() for k, v in made.state_dict().items()})
        return out

    folder.mkdir()
    monkeypatch.setattr(training, "take_step", watched)
    check = None if validate is None else lambda: validate(made)
    given: Any = (made, Steps(4), NO_FEED, TrainSettings(epochs=3, batch_size=2, **settings), CPU, folder, check)
    result = training.train(*given)
    monkeypatch.setattr(training, "take_step", real)
    return made, raw, result


def slow_average(raw: list[dict[str, torch.Tensor]], ema: float, warmup: bool) -> list[dict[str, torch.Tensor]]:
    """Its definition in float64, after every step."""
    mean = {k: v.double() for k, v in raw[0].items()}
    out = []
    for n, weights in enumerate(raw[1:]):
        d = min(ema, (1 + n) / (10 + n)) if warmup else ema
        mean = {k: v.clone() if torch.equal(v, weights[k].double()) else d * v + (1 - d) * weights[k].double()
                for k, v in mean.items()}
        out.append(mean)
    return out


AVERAGED = ("a.weight", "a.bias", "norm.weight", "norm.bias", "b.weight", "b.bias", "waits.weight", "waits.bias")
EQUAL = ("never.weight", "never.bias", "whole", "mask")
BUFFERS = ("norm.running_mean", "norm.running_var", "norm.num_batches_tracked", "count")


@pytest.mark.parametrize(("ema", "warmup"), [(0.99, True), (0.5, True), (0.9, False), (1e-9, False)])
def test_the_average_is_that_of_its_definition(
    ema: float, warmup: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, raw, _ = trained(tmp_path / "run", monkeypatch, ema=ema, ema_warmup=warmup)
    expected, found = slow_average(raw, ema, warmup)[-1], made.state_dict()
    assert len(raw) == 13
    for name in AVERAGED:
        assert torch.allclose(found[name].double(), expected[name], atol=1e-6), name
        assert ema == 1e-9 or not torch.allclose(found[name], raw[-1][name], atol=1e-4), f"{name}: the raw weights"
    assert found["brief"].dtype == torch.bfloat16 and torch.allclose(found["brief"].double(), expected["brief"], rtol=1e-2)
    assert torch.equal(found["tied.weight"], found["a.weight"]) and made.tied is made.a
    for name in EQUAL:
        assert torch.equal(found[name], raw[0][name]), name
    for name in BUFFERS:
        assert torch.equal(found[name], raw[-1][name]) and not torch.equal(found[name], raw[0][name]), name
    for kept in torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)["method"].items():
        assert torch.equal(kept[1], raw[-1][kept[0]]), "a checkpoint keeps raw weights"


def test_small_updates_of_half_precision_weights_are_not_lost(tmp_path: Path) -> None:
    from cirbench.runs.averaging import Average

    made = nn.Linear(3, 3).to(torch.bfloat16)
    with torch.no_grad():
        made.weight.fill_(1.0)
    average = Average(made, list(made.parameters()), 0.999, False)
    with torch.no_grad():
        made.weight.fill_(2.0)
    for _ in range(500):
        average.update()
    average.keep()
    assert made.weight.float().mean().item() == pytest.approx(2 - 0.999**500, abs=0.01)


def test_the_average_is_evaluated_and_the_raw_weights_are_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[dict[str, torch.Tensor]] = []

    def validate(made: Odd) -> float:
        made.eval()
        seen.append({k: v.detach().clone() for k, v in made.state_dict().items()})
        return [1.0, 3.0, 2.0][len(seen) - 1]

    plain = trained(tmp_path / "plain", monkeypatch)[1]
    made, raw, result = trained(tmp_path / "run", monkeypatch, validate, ema=0.9)
    for one, two in zip(plain, raw, strict=True):
        assert all(torch.equal(one[k], two[k]) for k in one), "evaluating the average changes no step"
    expected = slow_average(raw, 0.9, True)
    for epoch, found in enumerate(seen):
        for name in AVERAGED:
            assert torch.allclose(found[name].double(), expected[4 * epoch + 3][name], atol=1e-6), (epoch, name)
    assert (result.epoch, result.best) == (2, 3.0)
    assert all(torch.equal(v, seen[1][k]) for k, v in made.state_dict().items()), "the average of the best epoch is kept"


def test_mutual_information_is_that_of_the_average(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As every other number of a run, it is about the weights that are evaluated."""
    base = {"train__epochs": 2, "method__dropout": 0}
    bounds = [
        [line["bound"] for line in tiny.run("dwc", tmp_path / str(ema), "clip-only", train__ema=ema, **base).training
         if "bound" in line] for ema in (0.0, 0.9999999)
    ]
    monkeypatch.setattr(training.Average, "keep", lambda self: None)
    unswapped = [line["bound"] for line in tiny.run(
        "dwc", tmp_path / "raw", "clip-only", train__ema=0.9999999, train__ema_warmup=True, **base).training
        if "bound" in line]
    assert bounds[0] == unswapped != bounds[1]


def test_raw_weights_come_back_where_validation_fails(tmp_path: Path) -> None:
    from cirbench.runs.averaging import Average

    made = nn.Linear(2, 2)
    average = Average(made, list(made.parameters()), 0.9, True)
    with torch.no_grad():
        made.weight.add_(1)
    before = made.weight.detach().clone()
    with pytest.raises(ZeroDivisionError), average.swapped():
        assert not torch.equal(made.weight, before)
        raise ZeroDivisionError
    assert torch.equal(made.weight, before)


# ------------------------------------------------------------------------------------------------------- start_epoch


@pytest.mark.parametrize("factor", ["None", "0", "1", "0.25", "2.0"])
def test_the_factor_multiplies_every_rate_of_its_epoch(factor: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made, rates = Odd(), []
    wanted = 1.0 if factor == "None" else float(factor)
    monkeypatch.setattr(made, "start_epoch", lambda epoch: eval(factor) if epoch == 1 else None, raising=False)
    real = training.take_step

    def watched(*args: Any) -> Any:
        rates.append([group["lr"] for optimizer in args[2].values() for group in optimizer.param_groups])
        return real(*args)

    monkeypatch.setattr(training, "take_step", watched)
    settings = TrainSettings(epochs=3, batch_size=2, schedule="step", decay_epochs=2, decay_factor=0.5)
    training.train(*(made, Steps(4), NO_FEED, settings, CPU, tmp_path, None))  # type: ignore[arg-type]
    expected = [1.0] * 4 + [wanted] * 4 + [0.5] * 4
    assert rates == [pytest.approx([0.3 * f, 0.1 * f]) for f in expected]


def test_what_start_epoch_draws_depends_on_seed_and_epoch_alone() -> None:
    class Draws:
        def start_epoch(self, epoch: int) -> float:
            return float(torch.rand(()))

    made: Any = Draws()
    torch.manual_seed(0)
    before = torch.get_rng_state()
    first = epoch_factor(made, 1, 5, CPU)
    assert torch.equal(torch.get_rng_state(), before), "the draws of training go on"
    torch.rand(7)
    assert epoch_factor(made, 1, 5, CPU) == first
    assert len({first, epoch_factor(made, 2, 5, CPU), epoch_factor(made, 1, 6, CPU)}) == 3


HOOK = "    def start_epoch(self, epoch: int) -> float | None:\n"


def changed(folder: Path, edits: list[tuple[str, str]]) -> str:
    text = STAGED.read_text(encoding="utf-8")
    for was, new in edits:
        assert was in text
        text = text.replace(was, new)
    (folder / "mine.py").write_text(text, encoding="utf-8")
    return str(folder / "mine.py")


@pytest.mark.parametrize(("value", "shown"), [
    ("True", "True"), ("float('nan')", "nan"), ("float('inf')", "inf"), ("-0.5", "-0.5"), ("'fast'", "'fast'"),
    ("torch.tensor(0.5)", "Tensor"), ("[0.5]", "list"),
])
def test_a_factor_that_is_none_is_refused(value: str, shown: str, tmp_path: Path) -> None:
    path = changed(tmp_path, [("return None if epoch == 0 else 1 / (1 + epoch)", f"return {value}")])
    line = STAGED.read_text().splitlines().index(HOOK.rstrip("\n")) + 1
    told = rf"mine.py, line {line}, in start_epoch: `start_epoch` returned {shown} for epoch 0; .*finite number >= 0"
    with pytest.raises(MethodError, match=told):
        tiny.run(path, tmp_path / "runs")
    assert "`start_epoch` returned" in contract._problem(contract.losses_fall, contract.Subject(path))


def test_a_hook_that_is_no_function_is_refused(tmp_path: Path) -> None:
    path = changed(tmp_path, [("self.config = config\n", "self.config = config\n        self.start_epoch = 0.5\n")])
    with pytest.raises(MethodError, match=r"`start_epoch` of the method is 0\.5; it must be a function"):
        tiny.run(path, tmp_path / "runs")


BODY = (
    "        self.cnn.requires_grad_(epoch == 1)\n        self.cnn[1].train(epoch >= 2)\n"
    "        self.noise = torch.rand(16) / 100  # the same wherever the epoch begins\n"
    "        return None if epoch == 0 else 1 / (1 + epoch)\n"
)


@pytest.mark.parametrize(("body", "told"), [
    ("        self.factor = getattr(self, 'factor', 1.0) / 2\n        return self.factor\n", "the factor of the rate is"),
    ("        if epoch == 1:\n            self.cnn.requires_grad_(False)\n", "requires_grad of 'cnn.0.weight' is"),
    ("        if epoch == 1:\n            self.train_norm = False\n        self.cnn[1].train(getattr(self, 'train_norm', "
     "True))\n", "the training mode of 'cnn.1' is"),
    ("        nn.init.normal_(self.fc.weight)\n", "changes 'fc.weight' when it is called again"),
    ("        self.cnn[1].reset_running_stats()\n", "changes 'cnn.1.running_mean' when it is called again"),
    ("        torch.set_grad_enabled(False)\n", "it changed torch's gradient mode from True to False at the start of"),
    ("        raise KeyError('epoch')\n", "in mine.py, line .*, in start_epoch: KeyError"),
])
def test_the_contract_finds_a_hook_that_disturbs_resuming(body: str, told: str, tmp_path: Path) -> None:
    import re

    path = changed(tmp_path, [(BODY, f"        self.noise = torch.zeros(16)\n{body}")])
    problem = contract._problem(contract.losses_fall, contract.Subject(path))
    assert re.search(told, problem), problem
    assert re.search(r"mine\.py, line \d+, in start_epoch", problem), problem


def test_the_contract_passes_a_method_that_uses_everything() -> None:
    for name, check in contract.CHECKS.items():
        assert not contract._problem(check, contract.Subject(str(STAGED))), name


def test_every_step_of_the_check_has_the_same_draw(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A loss that is mostly noise: only with one draw for all steps is its fall that of the weights."""
    path = changed(tmp_path, [('yield "all", loss', 'loss = loss + 50 * torch.rand(())\n        yield "all", loss')])
    states, real = [], contract.take_step

    def watched(*args: Any, **more: Any) -> Any:
        states.append(torch.get_rng_state())
        return real(*args, **more)

    monkeypatch.setattr(contract, "take_step", watched)
    assert not contract._problem(contract.losses_fall, contract.Subject(path))
    assert len(states) == contract.STEPS and all(torch.equal(state, states[0]) for state in states)


def test_an_estimate_begins_an_epoch(tmp_path: Path) -> None:
    """`losses` may read what `start_epoch` set; and new settings are no hindrance."""
    from cirbench.runs.estimate import estimate

    assert estimate(tiny.plan(str(STAGED)), "cpu", 1).steps == 3


def test_a_finished_run_is_evaluated_again(tmp_path: Path) -> None:
    """By the average, from the record's settings as JSON, on the centre of what is stored."""
    record = tiny.run(str(STAGED), tmp_path, train__crop="resized", train__crop_scale=[0.5, 1.0])
    planned, found = evaluate_run.plan_eval(record.folder)
    assert planned.train.crop_scale == (0.5, 1.0)
    again = evaluate_run.evaluate_run(planned, found, tmp_path, "cpu", True, "test")
    assert again.data["protocols"] == record.data["protocols"]


def test_crops_without_room_are_refused_by_run_and_check(tmp_path: Path) -> None:
    path = changed(tmp_path, [(", stored=40", "")])
    with pytest.raises(CirbenchError, match=r"train\.crop=random: .*no larger picture.*pixels: 32 pixels.*stored=S"):
        tiny.run(path, tmp_path / "runs")
    assert "stored=S" in contract._problem(contract.losses_fall, contract.Subject(path))
    with pytest.raises(CirbenchError, match=r"train\.crop=resized: .*frozen features \(clip\).*train\.crop=none"):
        tiny.run("sum", tmp_path / "runs", "clip-only", train__crop="resized")
    assert not list((tmp_path / "runs").glob("*/record.json"))


def test_the_record_says_what_cannot_be_cut(tmp_path: Path) -> None:
    both = tiny.run("dwc", tmp_path, train__crop="resized", method__cnn="scenes-cnn", method__cnn_size=32)
    assert "train.crop=resized: frozen features (clip) are of whole pictures." in both.data["notes"]
    alone = tiny.run(str(STAGED), tmp_path)
    assert not any("crop" in note for note in alone.data["notes"])
    assert alone.data["preprocessing"]["pixels"]["stored"] == 40
    assert json.loads((alone.folder / "record.json").read_text())["inputs"]["train"]["crop"] == "random"
