"""Turns queries and image ids into the batches a method asked for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from cirbench.data.crops import Crops, drawn
from cirbench.data.features import FeatureStore, TextStore
from cirbench.data.images import PixelStore, sent
from cirbench.seeds import derive
from cirbench.types import Dataset, Frozen, Inputs, Query, QueryBatch, TrainBatch


class Feed:
    """Images and texts of one image set, in the forms that `Inputs` names.

    Args:
        dataset: source of the pictures.
        image_ids: every image that will be asked for.
        texts: every string that will be asked for.
        inputs: the method's inputs.
        device: of the batches.
        mirrored: whether mirrored pictures may be requested.
        quiet: no progress bars.
    """

    def __init__(
        self, dataset: Dataset, image_ids: Sequence[str], texts: Sequence[str], inputs: Inputs, device: torch.device,
        mirrored: bool = False, quiet: bool = True,
    ) -> None:
        self.device = device
        self.image_stores: dict[str, PixelStore | FeatureStore] = {}
        for name, wanted in inputs.images.items():
            if isinstance(wanted, Frozen):
                wanted.encoder.to(device)
                self.image_stores[name] = FeatureStore(wanted.encoder, dataset.images, image_ids, mirrored, quiet)
            else:
                self.image_stores[name] = PixelStore(dataset.images, image_ids, wanted, quiet)
        #: Whether making a batch takes long enough to be worth doing ahead.
        self.slow = device.type != "cpu" or any(isinstance(s, PixelStore) for s in self.image_stores.values())
        self.text_stores = {
            name: TextStore(wanted.encoder.to(device), texts, quiet) for name, wanted in inputs.texts.items()
        }

    def images(
        self, image_ids: Sequence[str], flip: np.ndarray | None = None, crops: Crops | None = None
    ) -> dict[str, Tensor]:
        """Input name -> tensor of B images.

        Args:
            image_ids: B pictures.
            flip: (B,) bool, which of them are mirrored, in every input alike.
            crops: how pixels are cut; frozen features are those of whole pictures.
        """
        return {
            name: store(image_ids, flip, crops, self.device) if isinstance(store, PixelStore)
            else sent(store(image_ids, flip), self.device) for name, store in self.image_stores.items()
        }

    def texts(self, words: Sequence[str]) -> dict[str, Tensor]:
        """Input name -> tensor of B texts."""
        return {name: sent(store(words), self.device) for name, store in self.text_stores.items()}

    def queries(self, references: Sequence[str], words: Sequence[str]) -> QueryBatch:
        """B queries."""
        return QueryBatch(self.images(references), self.texts(words), list(words))


def first_text(dataset: Dataset, query: Query, form: str) -> str:
    """The representative string of a query: the first of its first row."""
    rows = dataset.forms[form](query)
    return rows[0][0]


class Triplets:
    """Training batches, the same for the same seed, and startable at any step.

    Args:
        dataset: its `train` split is used.
        form: text form of the default protocol.
        batch_size: triplets per step; an incomplete last batch is dropped.
        flip: `none`, `joint` or `independent`.
        seed: of the run.
        crop, crop_scale: see `TrainSettings`.
    """

    def __init__(
        self, dataset: Dataset, form: str, batch_size: int, flip: str, seed: int, crop: str = "none",
        crop_scale: tuple[float, float] = (0.75, 1.33),
    ) -> None:
        self.split = dataset.splits["train"]
        self.batch_size, self.flip, self.seed, self.crop, self.crop_scale = batch_size, flip, seed, crop, crop_scale
        # A query with several strings (both orders of two captions, each caption alone) draws one of them per epoch.
        self.strings = [[s for row in dataset.forms[form](q) for s in row] for q in self.split.queries]
        # Targets that several queries share are positives of all of them: a row of numbers a query, -1 for none.
        number: dict[str, int] = {}
        most = max((len(query.targets) for query in self.split.queries), default=0)
        self.targets = np.full((len(self.split.queries), most), -1, dtype=np.int64)
        for row, query in enumerate(self.split.queries):
            self.targets[row, : len(query.targets)] = [number.setdefault(t, len(number)) for t in query.targets]

    @property
    def steps(self) -> int:
        """Steps per epoch."""
        return len(self.split.queries) // self.batch_size

    def epoch(self, epoch: int, feed: Feed, skip: int = 0) -> Iterator[TrainBatch]:
        """The batches of one epoch, without the first `skip`."""
        rng = np.random.Generator(np.random.PCG64(derive(self.seed, "batches", epoch)))
        queries = self.split.queries
        order = rng.permutation(len(queries))
        pick_target, pick_text = rng.random(len(queries)), rng.random(len(queries))
        mirror = rng.random((2, len(queries))) < 0.5
        for step in range(skip, self.steps):
            rows = order[step * self.batch_size : (step + 1) * self.batch_size]
            words = [self.strings[r][int(pick_text[r] * len(self.strings[r]))] for r in rows]
            chosen = [int(pick_target[r] * len(queries[r].targets)) for r in rows]
            targets = [queries[r].targets[n] for r, n in zip(rows, chosen, strict=True)]
            flips: tuple[np.ndarray | None, np.ndarray | None] = (None, None)
            if self.flip != "none":
                flips = (mirror[0][rows], mirror[0 if self.flip == "joint" else 1][rows])
            crops = drawn(self.crop, self.crop_scale, self.seed, epoch, step, len(rows))
            drawn_targets = self.targets[rows, chosen]
            positives = (self.targets[rows, :, None] == drawn_targets).any(1)  # (B, T, 1) with (B,) -> (B, B)
            yield TrainBatch(
                feed.images([queries[r].reference for r in rows], flips[0], crops[0]), feed.texts(words), words,
                feed.images(targets, flips[1], crops[1]), sent(torch.from_numpy(positives), feed.device),
            )
