"""A paper's recipe against its published figures (reports/expected.toml), and what it would cost before it is begun."""

from __future__ import annotations

import time
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from cirbench.runs import planning
from cirbench.runs.planning import Plan
from cirbench.runs.record_types import RunData
from cirbench.settings import unknown
from cirbench.types import CirbenchError, Frozen


@dataclass(frozen=True)
class Expected:
    """One published row.

    Attributes:
        method, dataset, variant: as on the command line.
        protocol: the one whose metrics these are; it is trained for as well.
        over: `scope.field` -> value, the rest of the recipe.
        metrics: name -> percent as printed.
        source: where it was printed.
        tolerance: (OK, OKish) in points.
        doubt: why a difference may be no fault.
    """

    method: str
    dataset: str
    variant: str
    protocol: str
    over: Mapping[str, Any]
    metrics: Mapping[str, float]
    source: str
    tolerance: tuple[float, float]
    doubt: str = ""

    def plan(self, seed: int = 0, sets: Sequence[str] = (), root: Path | None = None, backbone: str = "") -> Plan:
        """The recipe as a run; `sets` win over it."""
        given = {text.partition("=")[0].strip() for text in sets}
        over = {"train.protocol": self.protocol, **self.over}
        over = {k: v for k, v in over.items() if k not in given}
        return planning.plan(self.method, self.dataset, self.variant, backbone, seed, sets, root, over)


@dataclass(frozen=True)
class Row:
    """One metric compared, in percent; `ours` is None where it was not measured."""

    metric: str
    expected: float
    ours: float | None
    verdict: str

    @property
    def difference(self) -> float | None:
        """Ours less theirs."""
        return None if self.ours is None else self.ours - self.expected


def read() -> list[Expected]:
    """Everything in expected.toml."""
    text = files("cirbench.reports").joinpath("expected.toml").read_text(encoding="utf-8")
    data = tomllib.loads(text)
    return [
        Expected(
            e["method"], e["dataset"], e["variant"], e["protocol"], e["set"], e["metrics"],
            data["sources"][e["source"]], (float(e["tolerance"][0]), float(e["tolerance"][1])), e.get("doubt", ""),
        )
        for e in data["expected"]
    ]


def find(method: str, dataset: str) -> list[Expected]:
    """The rows of a method on a dataset; several where a paper trains one model a category.

    Raises:
        CirbenchError: none is published, or none whose protocol is known.
    """
    known = read()
    methods = list(dict.fromkeys(e.method for e in known))
    if method not in methods:
        raise unknown("method with published figures", method, methods)
    found = [e for e in known if e.method == method and e.dataset == dataset]
    if not found:
        datasets = list(dict.fromkeys(e.dataset for e in known if e.method == method))
        raise unknown(f"dataset with published figures of {method}", dataset, datasets)
    return found


def verdict(difference: float, tolerance: tuple[float, float]) -> str:
    """`OK`, `OKish` or `FAIL`: a figure far above the published one is as suspicious as one far below."""
    # Figures are printed to a hundredth; a difference of just the tolerance is within it.
    far = round(abs(difference), 6)
    return "OK" if far <= tolerance[0] else "OKish" if far <= tolerance[1] else "FAIL"


def compare(expected: Expected, run: RunData) -> list[Row]:
    """Expected against a finished run's record.

    Raises:
        CirbenchError: the record has not that protocol, or not that metric.
    """
    scored = run.protocols.get(expected.protocol)
    if scored is None:
        why = run.omitted.get(expected.protocol, "this dataset has no such protocol")
        raise CirbenchError(f"{run.name} has no {expected.protocol}: {why}.")
    rows = []
    for metric, theirs in expected.metrics.items():
        ours = scored.metrics.get(metric)
        if ours is None:
            raise CirbenchError(
                f"{run.name} has no {metric} under {expected.protocol}; it has {', '.join(scored.metrics)}."
            )
        rows.append(Row(metric, theirs, ours, verdict(ours - theirs, expected.tolerance)))
    return rows


# ---------------------------------------------------------------------------------- what it costs


@dataclass(frozen=True)
class Estimate:
    """Of one run on this machine, from a few measured steps on noise of the right shapes.

    Attributes:
        parameters: trainable.
        steps: of training in all.
        step_seconds: one step, without decoding pictures.
        feature_seconds: features of frozen encoders, once.
        evaluate_seconds: one evaluation.
        evaluations: how many, those that select included.
        memory_mb: most held while measuring, weights and optimisers included.
    """

    parameters: int
    steps: int
    step_seconds: float
    feature_seconds: float
    evaluate_seconds: float
    evaluations: int
    memory_mb: float

    @property
    def seconds(self) -> float:
        """Of the whole run."""
        training = self.steps * self.step_seconds
        return training + self.feature_seconds + self.evaluations * self.evaluate_seconds


def _random_weights(planned: Plan) -> Any:
    """The same shapes without fetching anything: time and memory do not depend on what weights hold."""
    fields: dict[str, Any] = {}
    config = planned.config.model_dump()
    from cirbench.models.encoders import clip_folder

    if config.get("clip") and clip_folder(config["clip"]) is None:
        fields["clip"] = config["clip"].partition(":")[0] + ":random"
    if "cnn_pretrained" in config:
        fields["cnn_pretrained"] = False
    return planned.config.model_copy(update=fields)


#: Seconds of one measurement after which it is repeated no more.
PATIENCE = 20.0


def _median(times: list[float]) -> float:
    return sorted(times)[len(times) // 2]


def estimate(planned: Plan, device: str = "auto", repeats: int = 3, quiet: bool = True) -> Estimate:
    """Measure a few steps; the dataset's annotations are read, its pictures are not.

    Args:
        planned: the run.
        device: where.
        repeats: steps that are timed, after one that warms up; fewer where they take long.
        quiet: no progress.
    """
    import torch
    from tqdm import tqdm

    from cirbench.models.encoders import Encoders
    from cirbench.runs import cost, execution
    from cirbench.runs.training import keep_freed_memory, pick_device
    from cirbench.scoring import evaluation
    from cirbench.types import QueryBatch, TrainBatch

    keep_freed_memory()
    where, dataset, settings = pick_device(device), planning.load(planned), planned.train
    form = planning.training_form(planned, dataset)
    torch.manual_seed(0)
    view = execution._view(dataset, form)
    method = planned.method.load().build(_random_weights(planned), Encoders(0), view, None)
    method.to(where) if isinstance(method, torch.nn.Module) else None

    def images(count: int) -> dict[str, torch.Tensor]:
        return {
            name: torch.randn(count, wanted.encoder.dim, device=where) if isinstance(wanted, Frozen)
            else torch.randn(count, 3, wanted.size, wanted.size, device=where)
            for name, wanted in method.inputs.images.items()
        }

    def texts(count: int) -> tuple[dict[str, torch.Tensor], list[str]]:
        words = [view.texts[n % len(view.texts)] for n in range(count)]
        names = method.inputs.texts.items()
        return {name: torch.randn(count, wanted.encoder.dim, device=where) for name, wanted in names}, words

    bar = tqdm(desc="measuring", unit="step", disable=quiet, leave=False)

    def timed(action: Callable[[], Any]) -> float:
        times: list[float] = []
        # Once to warm up; where a step takes long, one more tells enough.
        while len(times) < 2 or (len(times) <= repeats and sum(times) < PATIENCE):
            tick = time.perf_counter()
            action()
            torch.cuda.synchronize(where) if where.type == "cuda" else None
            times.append(time.perf_counter() - tick)
            bar.update()
        return _median(times[1:])

    steps, step_seconds = 0, 0.0
    if hasattr(method, "losses") and settings.epochs:
        size = settings.batch_size
        text, words = texts(size)
        batch = TrainBatch(images(size), text, words, images(size), torch.eye(size, dtype=torch.bool, device=where))
        optimizers = dict(method.optimizers())

        def step() -> None:
            for name, loss, _ in method.losses(batch):
                optimizers[name].zero_grad(set_to_none=True)
                loss.backward()
                optimizers[name].step()

        method.train()
        with torch.autocast(where.type, torch.bfloat16, enabled=settings.amp == "bf16"):
            step_seconds = timed(step)
        steps = len(dataset.splits["train"].queries) // size * settings.epochs
    if isinstance(method, torch.nn.Module):
        method.eval()
    few = 16
    text, words = texts(few)
    queries = QueryBatch(images(few), text, words)
    with torch.inference_mode():
        per_image = timed(lambda: method.encode_images(queries.reference)) / few
        per_query = timed(lambda: method.encode_queries(queries)) / few
        feature_seconds = 0.0
        report, mirrored = dataset.splits["report"], 1 + (settings.flip != "none")
        many = len(dataset.splits["train"].images()) * mirrored + len(report.images())
        for wanted in method.inputs.images.values():
            if isinstance(wanted, Frozen):
                encoder, side = wanted.encoder.to(where), wanted.encoder.pixels.size
                noise = torch.randn(few, 3, side, side, device=where)
                feature_seconds += timed(lambda e=encoder, x=noise: e.encode_images(x)) / few * many  # type: ignore[misc]
        for wanted in method.inputs.texts.values():
            encoder = wanted.encoder.to(where)
            strings = len(set(view.texts)) + len(evaluation.texts_of(dataset, report, [form]))
            feature_seconds += timed(lambda e=encoder: e.encode_texts(words)) / few * strings  # type: ignore[misc]
    bar.close()
    evaluate = per_image * len(evaluation.gallery_of(report)) + per_query * len(report.queries)
    selecting = 0 if settings.selection == "last" else -(-settings.epochs // settings.eval_every)
    return Estimate(
        cost.parameters(method)["trainable"], steps, step_seconds, feature_seconds, evaluate, selecting + 1,
        cost.peak_memory_mb(where),
    )
