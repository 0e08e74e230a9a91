"""Estimates a run's cost on this machine from a few steps on noise of the right shapes: no weights, no pictures."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from tqdm import tqdm

from cirbench.models.clip import without_weights
from cirbench.models.encoders import Encoders
from cirbench.models.names import PREFIXES
from cirbench.runs import cost, planning
from cirbench.runs.blame import blaming
from cirbench.runs.building import build
from cirbench.runs.corpus import prepare, train_view, training_pictures
from cirbench.runs.planning import Plan
from cirbench.runs.rehearsal import noise_images, noise_texts
from cirbench.runs.schedule import epoch_factor
from cirbench.runs.stages import first_stages, started
from cirbench.runs.training import keep_freed_memory, optimizers_of, pick_device, take_step
from cirbench.scoring import evaluation
from cirbench.types import Corpus, Frozen, QueryBatch, TrainBatch

__all__ = ["Estimate", "estimate"]


@dataclass(frozen=True)
class Estimate:
    """The cost of one run on this machine, from a few measured steps on noise of the right shapes.

    Attributes:
        parameters: number of trainable ones.
        steps: training steps in all.
        step_seconds: of one step, without decoding pictures.
        feature_seconds: of computing frozen features once.
        evaluate_seconds: of one evaluation.
        evaluations: how many, including those that choose a checkpoint.
        memory_mb: peak while measuring, weights and optimisers included.
        before_seconds: of the stages before this run.
        prepare_seconds: of the method's look at the training pictures, at most: in proportion to their number.
    """

    parameters: int
    steps: int
    step_seconds: float
    feature_seconds: float
    evaluate_seconds: float
    evaluations: int
    memory_mb: float
    prepare_seconds: float = 0.0
    before_seconds: float = 0.0

    @property
    def seconds(self) -> float:
        """Of the whole run."""
        training = self.steps * self.step_seconds
        once = self.before_seconds + self.prepare_seconds + self.feature_seconds
        return training + once + self.evaluations * self.evaluate_seconds


def _random_weights(planned: Plan) -> Any:
    """The plan's config with random weights, so that nothing is fetched: time and memory do not depend on values."""
    fields: dict[str, Any] = {}
    config = planned.config.model_dump()
    for name, value in config.items():
        if isinstance(value, str) and (value.startswith(PREFIXES) or (name == "clip" and value)):
            fields[name] = without_weights(value)
    if "cnn_pretrained" in config:
        fields["cnn_pretrained"] = False
    return planned.config.model_copy(update=fields)


#: Training pictures that a method's `prepare` is measured on.
SAMPLE = 128
#: Seconds after which a measurement is not repeated.
PATIENCE = 20.0


def _median(times: list[float]) -> float:
    return sorted(times)[len(times) // 2]


def estimate(planned: Plan, device: str = "auto", repeats: int = 3, quiet: bool = True) -> Estimate:
    """Measure a few steps; the dataset's annotations are read, its pictures are not.

    Args:
        planned: the run.
        device: where.
        repeats: steps that are timed, after a warm-up step; fewer where they take long.
        quiet: no progress.

    Raises:
        CirbenchError: among others, whatever a method of somebody else raises.
    """
    firsts = [estimate(first, device, repeats, quiet).seconds for first in first_stages(planned).values()]
    with blaming(planned.method):
        return replace(_measure(started(planned), device, repeats, quiet), before_seconds=sum(firsts))


def _measure(planned: Plan, device: str, repeats: int, quiet: bool) -> Estimate:
    keep_freed_memory()
    where, dataset, settings = pick_device(device), planning.load(planned), planned.train
    form = planning.training_form(planned, dataset)
    torch.manual_seed(0)
    trained = train_view(planned, dataset, learning=False).texts
    known = trained or evaluation.texts_of(dataset, dataset.splits["report"], [form])
    method = build(planned, dataset, where, encoders=Encoders(0), config=_random_weights(planned))

    def images(count: int) -> dict[str, torch.Tensor]:
        return noise_images(method.inputs, count, where)

    def texts(count: int) -> tuple[dict[str, torch.Tensor], list[str]]:
        return noise_texts(method.inputs, known, count, where)

    bar = tqdm(desc="measuring", unit="step", disable=quiet, leave=False)

    def timed(action: Callable[[], Any]) -> float:
        times: list[float] = []
        # Once to warm up; where a step takes long, one more is enough.
        while len(times) < 2 or (len(times) <= repeats and sum(times) < PATIENCE):
            tick = time.perf_counter()
            action()
            torch.cuda.synchronize(where) if where.type == "cuda" else None
            times.append(time.perf_counter() - tick)
            bar.update()
        return _median(times[1:])

    prepare_seconds = 0.0
    if hasattr(method, "prepare"):
        # With real captions: a method may look for words in them.
        own = training_pictures(dataset)
        rows = min(len(own), SAMPLE)
        corpus = Corpus(images(rows), [dataset.captions.get(i, ()) for i in own[:rows]])
        tick = time.perf_counter()
        prepare(method, corpus, planned.seed, where)
        prepare_seconds = (time.perf_counter() - tick) * len(own) / max(rows, 1)
    steps, step_seconds = 0, 0.0
    if hasattr(method, "losses") and settings.epochs:
        size = settings.batch_size
        text, words = texts(size)
        batch = TrainBatch(images(size), text, words, images(size), torch.eye(size, dtype=torch.bool, device=where))
        optimizers = optimizers_of(method)
        if where.type == "cpu":
            settings = settings.model_copy(update={"amp": "off" if settings.amp == "fp16" else settings.amp})
        method.train()  # type: ignore[attr-defined]
        epoch_factor(method, 0, planned.seed, where)
        step_seconds = timed(lambda: take_step(method, batch, optimizers, where, settings))
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
        training = dataset.splits["train"].images() if steps else ()
        many = len(training) * mirrored + len(report.images())
        for wanted in method.inputs.images.values():
            if isinstance(wanted, Frozen):
                encoder, side = wanted.encoder, wanted.encoder.pixels.size
                noise = torch.randn(few, 3, side, side, device=where)
                feature_seconds += timed(lambda e=encoder, x=noise: e.encode_images(x)) / few * many  # type: ignore[misc]
        for wanted in method.inputs.texts.values():
            encoder = wanted.encoder
            strings = len(set(known)) + len(evaluation.texts_of(dataset, report, [form]))
            feature_seconds += timed(lambda e=encoder: e.encode_texts(words)) / few * strings  # type: ignore[misc]
    bar.close()
    evaluate = per_image * len(evaluation.gallery_of(report)) + per_query * len(report.queries)
    selecting = 0 if settings.selection == "last" else -(-settings.epochs // settings.eval_every)
    selecting += bool(dataset.splits.get("select"))  # the weights that are reported are scored there too
    return Estimate(
        cost.parameters(method)["trainable"], steps, step_seconds, feature_seconds, evaluate, selecting + 1,
        cost.peak_memory_mb(where), prepare_seconds,
    )
