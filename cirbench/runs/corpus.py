"""What a method sees of the training pictures beforehand: their captions when it is built, then one look at them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from cirbench import numerics, process
from cirbench.data import outside
from cirbench.data.features import FeatureStore
from cirbench.runs.checkpoint import forked
from cirbench.runs.planning import Plan, training_form
from cirbench.seeds import derive
from cirbench.types import CirbenchError, Corpus, Dataset, Frozen, Inputs, Method, MethodError, OptionalHooks, TrainView

__all__ = ["check_wanted", "corpus_of", "note_of", "prepare", "prepares", "train_view", "training_pictures"]


def training_pictures(dataset: Dataset) -> list[str]:
    """Ids of the references and targets of training, then of the other pictures of its gallery that no other split has.

    A gallery that all splits share (a folder of one's own data) holds the pictures of `report` as well.
    """
    if "train" not in dataset.splits:
        return []
    train = dataset.splits["train"]
    used = dict.fromkeys(i for q in train.queries for i in (q.reference, *q.targets))
    others = {i for role, split in dataset.splits.items() if role != "train" for i in split.images()}
    return list(used | dict.fromkeys(i for i in train.images() if i not in others))


def train_view(planned: Plan, dataset: Dataset, learning: bool = True) -> TrainView:
    """What a method may know of the training set when it is built.

    Args:
        planned: the run.
        dataset: its data.
        learning: whether the method is built to be trained. Where weights are loaded there are no captions, and the
            file of `train.captions` need not exist.

    Raises:
        CirbenchError: a file of captions that cannot be read.
    """
    said: list[str] = []
    if learning:
        said = [c for i in training_pictures(dataset) for c in dataset.captions.get(i, ())] if dataset.captions else []
        said += outside.caption_lines(planned.train.captions) if planned.train.captions else []
    if "train" not in dataset.splits:
        # Evaluation-only datasets: a method's vocabulary is in the state of its checkpoint.
        return TrainView([], 0, said)
    queries, form = dataset.splits["train"].queries, dataset.forms[training_form(planned, dataset)]
    return TrainView([t for q in queries for row in form(q) for t in row], len(queries), said)


def corpus_of(
    dataset: Dataset, inputs: Inputs, device: torch.device, pictures: str = "", quiet: bool = True,
    most: int | None = None,
) -> Corpus:
    """Features and captions of the training pictures, then the features of an outside folder's.

    Args:
        dataset: of the run.
        inputs: of the method; those that are `Frozen` have features.
        device: of the features.
        pictures: `train.pictures`, or "".
        quiet: no progress bars.
        most: of the training pictures, for measuring and checking.
    """
    own = training_pictures(dataset)[:most]
    sources = [(dataset.images, own)] if own else []
    if pictures:
        sources.append(outside.picture_folder(pictures))
    images: dict[str, Tensor] = {}
    for name, wanted in inputs.images.items():
        if isinstance(wanted, Frozen):
            wanted.encoder.to(device)
            parts = [FeatureStore(wanted.encoder, source, ids, quiet=quiet)(ids) for source, ids in sources]
            images[name] = torch.cat(parts).to(device) if parts else torch.zeros((0, wanted.encoder.dim), device=device)
    said: list[Sequence[str]] = [dataset.captions.get(i, ()) for i in own]
    return Corpus(images, [*said, *([()] * sum(len(ids) for _, ids in sources[bool(own):]))])


def prepare(method: Method, corpus: Corpus, seed: int, device: torch.device) -> None:
    """Show a method the training pictures; torch's random state is afterwards what it was.

    Args:
        method: with `prepare`.
        corpus: on the method's device.
        seed: of the run: a run that is resumed prepares its method again, in the same way.
        device: of the method.

    Raises:
        MethodError: the method changes the corpus or what the process shares.
    """
    hook = cast(OptionalHooks, method).prepare
    before = {name: table._version for name, table in corpus.images.items()}
    with forked(device, derive(seed, "prepare") % 2**63), process.unchanged(hook):
        hook(corpus)
    changed = [name for name, table in corpus.images.items() if table._version != before[name]]
    if changed:
        raise MethodError(
            hook, f"`prepare` changed the features of the input {changed[0]!r} in place. Work on a copy."
        )


def check_wanted(planned: Plan, method: Any) -> None:
    """Refuse captions and pictures that the method would never look at: the run would only get another id.

    Raises:
        CirbenchError: the setting and what is missing.
    """
    name = planned.method.name
    if planned.train.pictures and not hasattr(method, "prepare"):
        raise CirbenchError(
            f"train.pictures is set, but the method {name} never looks at pictures beforehand (it has no `prepare`). "
            "Leave it out."
        )
    if planned.train.captions and not _says(planned, ".captions"):
        raise CirbenchError(
            f"train.captions is set, but the method {name} reads no captions (`train.captions` in its `build`, or "
            "`corpus.captions`). Leave it out."
        )


def prepares(planned: Plan) -> bool:
    """Whether a method looks at the training pictures beforehand, by its source, so before it is built."""
    return _says(planned, "def prepare(")


def _says(planned: Plan, what: str) -> bool:
    start = numerics.entry(planned.method.module or planned.method.path)
    own = {name: m for name, m in numerics.own_modules(start).items() if not name.startswith("cirbench.models")}
    return any(what in module.path.read_text(encoding="utf-8") for module in own.values())


def note_of(planned: Plan, inputs: Mapping[str, Any]) -> list[str]:
    """Sentences for the record about what came from outside the dataset."""
    further, out = inputs.get("corpus", {}), []
    if "captions" in further:
        lines = len(outside.caption_lines(planned.train.captions))
        out.append(f"The method was given {lines} further captions ({Path(planned.train.captions).name}).")
    if "pictures" in further:
        count = len(outside.picture_folder(planned.train.pictures)[1])
        out.append(f"The method was given {count} further pictures ({Path(planned.train.pictures).name}/).")
    return out
