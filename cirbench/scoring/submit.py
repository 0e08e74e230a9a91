"""Encodes a test split with a run's weights and writes the files for the dataset's test server."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from cirbench.data.batches import Feed
from cirbench.scoring import evaluation, missing_images, protocol_scoring, server_files
from cirbench.scoring.adapting import adapted
from cirbench.scoring.ranking import Score, dot, rank
from cirbench.types import CirbenchError, Dataset, Method, Protocol, Split

#: Datasets with a test server, and the split whose labels it holds.
SERVERS = {"cirr": "test1", "circo": "test"}


def rankings(
    dataset: Dataset, split: Split, images: torch.Tensor, rows: evaluation.Rows, protocol: Protocol, k: int,
    kind: str = protocol_scoring.BEST, scoring: Score = dot,
) -> list[list[str]]:
    """The first k image ids of every query."""
    gallery = evaluation.gallery_of(split)
    position = {name: n for n, name in enumerate(gallery)}
    view = protocol_scoring.view_of(split, protocol, position, rows.query, kind)
    _, top, _ = rank(rows.embeddings, images, [view], scoring, k)
    return [[gallery[int(t)] for t in line if t >= 0] for line in np.asarray(top)]


def write(
    method: Method, dataset: Dataset, split: Split, device: torch.device, folder: Path, quiet: bool
) -> list[Path]:
    """Encode, rank and write; every file is checked before its path is returned.

    Raises:
        CirbenchError: a dataset without a server, or a gallery too small for its lists.
    """
    if dataset.name not in SERVERS:
        raise CirbenchError(f"no server for the dataset {dataset.name!r}. Valid: {', '.join(SERVERS)}.")
    absent = missing_images.find(dataset, [split.name])
    if absent:
        raise CirbenchError(
            f"{len(absent)} pictures of {dataset.name}/{split.name} are missing, e.g. {absent[0]!r}. The server "
            f"needs every image ranked: `cirbench data get {dataset.name}` says where to get them."
        )
    protocol = dataset.protocols[0] if dataset.name == "circo" else replace(dataset.protocols[0], hit="targets")
    if protocol.gallery not in split.galleries:
        raise CirbenchError(
            f"the gallery of {dataset.name}/{split.name} is not known, but the server needs every image ranked. "
            f"`cirbench data check {dataset.name} --root DIR` names the file that lists it."
        )
    form = dataset.forms[protocol.form]
    texts: Sequence[str] = evaluation.texts_of(dataset, split, [protocol.form])
    feed = Feed(dataset, split.images(), texts, method.inputs, device, quiet=quiet)
    gallery = evaluation.gallery_of(split)
    images = evaluation.encode_gallery(method, feed, gallery, quiet)
    rows = evaluation.encode_rows(method, feed, split, form, quiet)
    if hasattr(method, "adapt"):
        view = protocol_scoring.view_of(split, protocol, {name: n for n, name in enumerate(gallery)}, rows.query)
        rows = replace(rows, embeddings=adapted(method.adapt, rows.embeddings, images, view, protocol))
    scoring = getattr(method, "score", dot)
    ranked = rankings(dataset, split, images, rows, protocol, 50, scoring=scoring)
    if dataset.name == "cirr":
        subset = rankings(dataset, split, images, rows, protocol, 5, protocol_scoring.SUBSET, scoring)
        paths = server_files.write_cirr(folder, split, ranked, subset)
    else:
        paths = server_files.write_circo(folder, split, ranked)
    try:
        for path in paths:
            server_files.validate(path, split)
    except CirbenchError:
        # Do not leave a file behind that the server would refuse.
        for path in paths:
            path.unlink(missing_ok=True)
        raise
    return paths
