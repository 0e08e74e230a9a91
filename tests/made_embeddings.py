"""Made-up embeddings of a split, as `cirbench score` reads them."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from cirbench.types import Dataset, Split


def embeddings(dataset: Dataset, split: Split, kind: str, seed: int) -> tuple[dict, dict]:
    """(query id, string) -> vector and image id -> vector; small integers make many exact ties."""
    rng = np.random.default_rng(seed)

    def draw() -> np.ndarray:
        # The dyadic grid keeps every product and every mean of two exact, in float32 and in any order of summation.
        grid = rng.integers(-1, 2, 4) if kind == "tied" else rng.integers(-512, 513, 8)
        return grid.astype(np.float32) * 2

    text = {}
    for form in dataset.forms.values():
        for query in split.queries:
            for row in form(query):
                for string in row:
                    text.setdefault((query.id, string), draw())
    image = {i: draw() for i in split.images()}
    for query in split.queries:
        for name in query.extra.get("members", ()):
            image.setdefault(name, draw())
    return text, image


def write_npz(path: Path, dataset: Dataset, split: Split, text: dict, image: dict, seed: int = 0) -> Path:
    """In any row order, with every row of every form under its own name."""
    default = dataset.protocols[0].form
    ids, rows = [], []
    for form in dict.fromkeys(p.form for p in dataset.protocols):
        for query in split.queries:
            made = dataset.forms[form](query)
            for n, row in enumerate(made):
                name = "" if form == default else f"#{form}" if len(made) == 1 else f"#{form}.{n}"
                ids.append(query.id + name)
                rows.append(np.mean([text[query.id, s] for s in row], axis=0))
    order = np.random.default_rng(seed).permutation(len(ids))
    images = list(image)
    np.random.default_rng(seed + 1).shuffle(images)
    np.savez(
        path, query_ids=np.array(ids)[order], queries=np.array(rows, dtype=np.float32)[order],
        image_ids=np.array(images), gallery=np.array([image[i] for i in images]),
    )
    return path
