"""The contract of every method, as checks that take seconds on a small `scenes`; for `cirbench check` and tests.

A check is a function of a `Subject` (one method under one variant) that raises `Broken` with what is wrong and how to
mend it. Nothing here depends on a method's name.
"""

from __future__ import annotations

import ast
import json
import os
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cirbench import numerics, plugins
from cirbench.data.batches import Feed, Triplets
from cirbench.data.crops import check_crop
from cirbench.models.weights import weights_of
from cirbench.process import DEBUG, is_interrupt, undisturbed
from cirbench.runs import planning
from cirbench.runs.blame import failure
from cirbench.runs.building import build, load_method, make_deterministic, save_weights
from cirbench.runs.contract_epochs import check_again, check_epochs
from cirbench.runs.corpus import corpus_of, prepare
from cirbench.runs.offline import no_network
from cirbench.runs.recording import shares
from cirbench.runs.schedule import epoch_factor
from cirbench.runs.stages import first_stages, started
from cirbench.runs.training import optimizers_of, take_step
from cirbench.scoring import evaluation
from cirbench.scoring.adapting import checked_adapt
from cirbench.scoring.ranking import checked
from cirbench.types import CirbenchError, Dataset, MethodError, TrainBatch

#: A `scenes` small enough to be generated in a moment.
DATA: Mapping[str, Any] = {
    "data.train_scenes": 48, "data.select_scenes": 8, "data.report_scenes": 12, "data.distractors": 12,
}
#: Backbones that ship with cirbench, and narrow streams, for the methods that have such fields.
NARROW: Mapping[str, Any] = {
    "clip": "scenes-small", "cnn": "scenes-cnn", "cnn_size": 48, "clip_dim": 32, "cnn_dim": 16, "word_dim": 8,
}
BATCH, QUERIES, STEPS = 32, 6, 12
#: Training pictures that a method's `prepare` is shown.
PICTURES = 24
#: Embeddings of one query in different batches may differ by rounding only.
TOLERANCE = 1e-5


#: The dataset loaded last, by its knobs.
_LOADED: dict[str, Dataset] = {}


class Broken(CirbenchError):
    """A method breaks the contract."""


def require(condition: bool, message: str) -> None:
    """Raise `Broken` where the condition does not hold."""
    if not condition:
        raise Broken(message)


@dataclass
class Subject:
    """One method under one variant, on the small dataset."""

    method: str
    variant: str = ""
    seed: int = 0
    over: Mapping[str, Any] = field(default_factory=dict)

    @cached_property
    def found(self) -> plugins.MethodFile:
        """The method file."""
        return plugins.find_method(self.method)

    @cached_property
    def planned(self) -> planning.Plan:
        """The run, with narrow layers, and what the method's own fields say is enough."""
        config = self.found.config
        narrow = {f"method.{k}": v for k, v in {**NARROW, **config.enough()}.items() if k in config.model_fields}
        epochs = self.found.variants.get(self.variant, {}).get("train.epochs", self.found.train.get("epochs", 1))
        train = {"train.epochs": 1, "train.batch_size": BATCH} if epochs else {}
        return started(planning.plan(
            self.method, "scenes", self.variant, seed=self.seed, over={**DATA, **narrow, **train, **self.over}
        ))

    @cached_property
    def epochs(self) -> int:
        """Epochs of the run as it is planned without the contract."""
        return planning.plan(self.method, "scenes", self.variant, over={**DATA, **self.over}).train.epochs

    @cached_property
    def dataset(self) -> Dataset:
        """The small `scenes`; variants that change nothing of the data share it."""
        train = self.planned.train
        key = json.dumps([self.planned.knobs.model_dump(), train.protocol, train.form], sort_keys=True)
        if key not in _LOADED:
            _LOADED.clear()  # one at a time is enough
            _LOADED[key] = planning.load(self.planned)
        return _LOADED[key]

    def build(self, state: Mapping[str, Any] | None = None) -> Any:
        """The method, prepared and in evaluation mode, from the seed."""
        make_deterministic(self.seed)
        declared = weights_of(self.planned.config)
        made: Any = build(self.planned, self.dataset, state=state, declared=declared)
        if hasattr(made, "prepare") and state is None:
            device = torch.device("cpu")
            prepare(made, corpus_of(self.dataset, made.inputs, device, most=PICTURES), self.seed, device)
        return made.eval() if isinstance(made, torch.nn.Module) else made

    def feed(self, made: Any, role: str = "report") -> Feed:
        """The method's inputs for one split."""
        split = self.dataset.splits[role]
        texts = evaluation.texts_of(self.dataset, split, ["text"])
        mirrored = role == "train" and self.planned.train.flip != "none"
        return Feed(self.dataset, split.images(), texts, made.inputs, torch.device("cpu"), mirrored=mirrored)

    def trains(self, made: Any) -> bool:
        """Whether this variant learns anything."""
        return hasattr(made, "losses") and self.planned.train.epochs > 0


# -------------------------------------------------------------------------------------- checks


def _read_of_config(tree: ast.Module) -> set[str]:
    """Config fields that code reads: from `config`, `self.config`, a parameter annotated `...Config`, or a name these
    are assigned to. `clip.dim` reads no field, nor does a comment or a docstring."""
    names = {"config"}

    def is_config(node: ast.expr) -> bool:
        return (isinstance(node, ast.Name) and node.id in names) or (
            isinstance(node, ast.Attribute) and node.attr in names
        )

    for node in ast.walk(tree):
        if isinstance(node, ast.arg) and node.annotation is not None:
            kind = ast.unparse(node.annotation).strip("'\"")
            if kind.endswith(("Config", "Settings")):
                names.add(node.arg)
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign):
            for target in node.targets:
                several = isinstance(target, ast.Tuple) and isinstance(node.value, ast.Tuple)
                pairs = zip(target.elts, node.value.elts, strict=False) if several else [(target, node.value)]  # type: ignore[attr-defined]
                for to, value in pairs:
                    if is_config(value):
                        names.add(ast.unparse(to).rpartition(".")[2])
    read = set[str]()
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load) and is_config(node.value):
            read.add(node.attr)
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "getattr" and is_config(node.args[0]):
            read |= {str(a.value) for a in node.args[1:2] if isinstance(a, ast.Constant)}
    return read


def fields_are_used(subject: Subject) -> None:
    """Every field of Config is read somewhere in the method's code, or in what it imports of cirbench's models."""
    start = numerics.entry(subject.found.module or subject.found.path)
    texts = [module.path.read_text(encoding="utf-8") for module in numerics.own_modules(start).values()]
    read = set().union(*(_read_of_config(ast.parse(text)) for text in texts))
    idle = [name for name in subject.found.config.model_fields if name not in read]
    require(not idle, f"fields of Config that no code reads: {', '.join(idle)}. Read them (config.NAME) or drop them.")
    plain = ", ".join(n for n, f in subject.found.config.model_fields.items() if not f.description)
    require(not plain, f"fields of Config without a description: {plain}. Use Field(default, description=...).")


def variants_are_valid(subject: Subject) -> None:
    """Every variant resolves to valid settings, and so do the runs that it is built on."""
    for variant in subject.found.variants:
        replace(subject, variant=variant).planned  # noqa: B018  resolving is the check
        # NARROW put a packaged CLIP in the place of `after:`.
        first_stages(planning.plan(subject.method, "scenes", variant, over=DATA))


def embeddings(subject: Subject) -> None:
    """Shapes and finiteness; neither the batch nor the order of the gallery changes an embedding."""
    made = subject.build()
    feed, queries = subject.feed(made), subject.dataset.splits["report"].queries[:QUERIES]
    references, words = [q.reference for q in queries], [q.texts[0] for q in queries]
    with torch.inference_mode():
        images = evaluation.encoded(made.encode_images, feed.images(references), QUERIES)
        together = evaluation.encoded(made.encode_queries, feed.queries(references, words), QUERIES)
        for function, found in ((made.encode_images, images), (made.encode_queries, together)):
            if not bool(torch.isfinite(found).all()):
                raise MethodError(function, f"`{function.__name__}` returned NaN or infinite values.")
        pairs = list(zip(references, words, strict=True))
        one_by_one = torch.cat([made.encode_queries(feed.queries([r], [w])) for r, w in pairs])
        backwards = made.encode_images(feed.images(references[::-1])).flip(0)
        single = torch.cat([made.encode_images(feed.images([r])) for r in references])
    evaluation.fit(made, together, images)
    # padding_mask=False is a deliberate choice: then a text depends on the longest text of its batch.
    if getattr(subject.planned.config, "padding_mask", True):
        _same(together, one_by_one, "a query's embedding depends on the other queries of its batch")
    _same(images, single, "an image's embedding depends on the other images of its batch")
    _same(images, backwards, "an image's embedding depends on its position in the gallery")
    with torch.inference_mode():
        ranked = together
        if hasattr(made, "adapt"):
            ranked = _adapt(made, together, images)
        if hasattr(made, "score"):
            _score(made, ranked, images)
        _evidence(made, feed, references, words)


def _adapt(made: Any, queries: Tensor, images: Tensor) -> Tensor:
    """A row that is adapted depends on its query and on the gallery as a set."""
    whole = checked_adapt(made.adapt, queries, images)
    evaluation.fit(made, whole, images, made.adapt)
    single = torch.cat([checked_adapt(made.adapt, queries[n : n + 1], images) for n in range(QUERIES)])
    _same(whole, single, "what `adapt` makes of a query depends on the other queries of the call")
    backwards = checked_adapt(made.adapt, queries, images.flip(0))
    _same(whole, backwards, "what `adapt` makes of a query depends on the order of the gallery")
    return whole


def _score(made: Any, queries: Tensor, images: Tensor) -> None:
    """A method's own score has the shape (B, N), and depends only on the query and the image."""
    fewer = images[: QUERIES - 2]
    whole, part = checked(made.score, queries, images), checked(made.score, queries, fewer)
    single = torch.cat([checked(made.score, queries[n : n + 1], images) for n in range(QUERIES)])
    _same(whole[:, : len(fewer)], part, "the score of an image depends on the other gallery images of the call")
    _same(whole, single, "the score of a query depends on the other queries of the call")


def _evidence(made: Any, feed: Feed, references: Sequence[str], words: Sequence[str]) -> None:
    """A method's optional outputs have the shapes that runs and reports expect."""
    batch = feed.queries(references, words)
    if hasattr(made, "modality_weights"):
        shares(made, batch)
    if hasattr(made, "contrasts"):
        own = torch.eye(QUERIES, dtype=torch.bool)
        train = TrainBatch(batch.reference, batch.text, batch.words, feed.images(references), own)
        for name, (queries, targets, temperature) in made.contrasts(train).items():
            good = queries.shape == targets.shape and queries.ndim == 2 and len(queries) == QUERIES
            shapes = f"{tuple(queries.shape)}, {tuple(targets.shape)}"
            require(good, f"contrasts returned shapes {shapes} for {name!r}; both must be (B, D).")
            require(float(temperature) > 0, f"contrasts returned temperature {temperature} for {name!r}, not > 0.")
    if hasattr(made, "explain"):
        found = made.explain(batch)
        require(len(found.words) in (0, QUERIES), f"explain returned words of {len(found.words)} of {QUERIES} queries.")
        for name, region in found.regions.items():
            good = region.ndim == 3 and len(region) == QUERIES and bool(torch.isfinite(region).all())
            require(good, f"explain returned {tuple(region.shape)} for map {name!r}, expected finite (B, h, w).")


def _same(a: Tensor, b: Tensor, message: str) -> None:
    worst = float((a - b).abs().max())
    require(
        torch.allclose(a, b, atol=TOLERANCE),
        f"{message} (by up to {worst:.2g}). Batch statistics, unmasked padding, or dropout outside training?",
    )


def rankings_repeat(subject: Subject) -> None:
    """The same seed gives the same ranking."""
    tops = []
    for _ in range(2):
        made = subject.build()
        result, _, _ = evaluation.evaluate(
            made, subject.feed(made), subject.dataset, subject.dataset.splits["report"], subject.dataset.protocols
        )
        tops.append(result.arrays["top/text"])
    require(
        np.array_equal(tops[0], tops[1]),
        "the same seed gives different rankings. Draw random numbers from torch inside `build` or later, or from "
        "encoders.seed; never from the clock, hash() or the order of a set.",
    )


def losses_fall(subject: Subject) -> None:
    """In a few steps on one batch every loss is finite, has an optimizer, and falls."""
    made, settings = subject.build(), subject.planned.train
    if not subject.trains(made):
        return
    check_crop(settings.crop, made.inputs)
    triplets = Triplets(subject.dataset, "text", BATCH, settings.flip, 0, settings.crop, settings.crop_scale)
    batch = next(triplets.epoch(0, subject.feed(made, "train")))
    optimizers = optimizers_of(made)
    made.train()
    if hasattr(made, "start_epoch"):
        check_epochs(made, subject.build(), subject.epochs, subject.seed)
        made.train()
        epoch_factor(made, 0, subject.seed, torch.device("cpu"))
    first: dict[str, float] = {}
    last: dict[str, float] = {}
    for step in range(STEPS):
        # The same draw in every step: a method that draws its own texts, negatives or noise would else be compared on
        # other samples in its last step than in its first, and whether its loss falls would be chance.
        make_deterministic(subject.seed)
        for name, loss, _ in take_step(
            made, batch, optimizers, torch.device("cpu"), settings, place=f"step {step} of the check"
        ):
            first.setdefault(name, loss.item())
            last[name] = loss.item()
    if hasattr(made, "start_epoch"):
        check_again(made, 0, subject.seed)
    idle = set(optimizers) - set(first)
    require(not idle, f"optimizers that `losses` never yields: {', '.join(sorted(idle))}. Yield or drop them.")
    for name in first:
        require(
            last[name] < first[name],
            f"the loss of {name!r} does not fall: {first[name]:.4f}, and {last[name]:.4f} after {STEPS} steps.",
        )


def weights_survive(subject: Subject) -> None:
    """A method saved and rebuilt gives equal embeddings: `state_dict` and `extra_state` hold all it learned."""
    made = subject.build()
    device = torch.device("cpu")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.safetensors"
        if isinstance(made, torch.nn.Module):
            with torch.no_grad():
                for parameter in made.parameters():  # as if trained, so that unsaved weights are noticed
                    if parameter.requires_grad:
                        parameter.add_(0.01 * torch.randn(parameter.shape))
        save_weights(path, made)
        again = load_method(subject.planned, subject.dataset, path, device)
    feed, queries = subject.feed(made), subject.dataset.splits["report"].queries[:QUERIES]
    references, words = [q.reference for q in queries], [q.texts[0] for q in queries]
    with torch.inference_mode():
        a, b = (m.encode_queries(feed.queries(references, words)) for m in (made, again))
    require(
        torch.allclose(a, b, atol=TOLERANCE),
        "saved and loaded weights give other embeddings: keep learned values in parameters and buffers, and whatever "
        "else `build` needs (a vocabulary) in extra_state().",
    )


#: Name -> check, in the order reported; the first two are about the method, the others about one variant of it.
CHECKS: Mapping[str, Callable[[Subject], None]] = {
    "every field is used and described": fields_are_used,
    "variants are valid": variants_are_valid,
    "embeddings: shapes, finite, whatever batch and order": embeddings,
    "same seed, same ranking": rankings_repeat,
    "losses fall": losses_fall,
    "weights survive saving": weights_survive,
}
ONCE = ("every field is used and described", "variants are valid")


@dataclass(frozen=True)
class Outcome:
    """One check of one variant: `problem` is "" where it passes."""

    check: str
    variant: str
    problem: str
    seconds: float


def _problem(check: Callable[[Subject], None], subject: Subject) -> str:
    problem = ""
    with no_network() as tried:
        try:
            with undisturbed():
                check(subject)
        except CirbenchError as error:
            problem = str(error)
        except BaseException as error:
            problem = "" if is_interrupt(error) else failure(subject.found, error)
            if not problem:
                raise
            problem = f"it failed {problem}"
            if os.environ.get(DEBUG):
                traceback.print_exception(error)
    if tried:
        return f"it connects to {tried[0]}. On scenes a method must run offline, with the packaged weights. {problem}"
    return problem


def examine(method: str, variants: Sequence[str] = ("",)) -> Iterator[Outcome]:
    """Every check of a method under some variants, one outcome at a time.

    Args:
        method: name or path.
        variants: "" for the method as it is.

    Raises:
        CirbenchError: not a method.
    """
    plugins.find_method(method)
    for variant in variants:
        subject = Subject(method, variant)
        for name, check in CHECKS.items():
            if name in ONCE and variant != variants[0]:
                continue
            began = time.perf_counter()
            yield Outcome(name, variant, _problem(check, subject), time.perf_counter() - began)
