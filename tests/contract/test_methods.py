"""The contract of every method and variant, on the built-in dataset."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tiny
import torch

from cirbench import evaluation, plugins, runs, specs
from cirbench.encoders import Encoders
from cirbench.feed import Feed, Triplets
from cirbench.seeds import derive

PAIRS = [
    (m.name, v) for m in plugins.methods() for v in ["", *m.variants]
    if not (v and m.name in ("sum", "image-only", "text-only") and v == "cnn-only")
]
IDS = [f"{m}-{v}" if v else m for m, v in PAIRS]


def build(method: str, variant: str, seed: int = 0):
    planned = tiny.plan(method, variant, seed)
    dataset = specs.load(planned)
    runs._deterministic(seed)
    made = planned.method.load().build(
        planned.config, Encoders(derive(seed, "weights")), runs._view(dataset, "text"), None
    )
    return planned, dataset, made.eval() if isinstance(made, torch.nn.Module) else made


def feed_for(dataset, made, split) -> Feed:
    texts = evaluation.texts_of(dataset, split, ["text"])
    return Feed(dataset, split.images(), texts, made.inputs, torch.device("cpu"))


@pytest.mark.parametrize(("method", "variant"), PAIRS, ids=IDS)
def test_embeddings_keep_the_contract(method: str, variant: str) -> None:
    _, dataset, made = build(method, variant)
    split = dataset.splits["report"]
    feed = feed_for(dataset, made, split)
    queries = split.queries[:6]
    references, words = [q.reference for q in queries], [q.texts[0] for q in queries]
    with torch.inference_mode():
        together = made.encode_queries(feed.queries(references, words))
        images = made.encode_images(feed.images(references))
        pairs = zip(references, words, strict=True)
        one_by_one = torch.cat([made.encode_queries(feed.queries([r], [w])) for r, w in pairs])
        backwards = made.encode_images(feed.images(references[::-1])).flip(0)
    assert together.shape[0] == images.shape[0] == 6, "one embedding a query and one an image"
    assert together.shape[1] == images.shape[1], "queries and images are compared by dot product"
    assert torch.isfinite(together).all() and torch.isfinite(images).all(), "embeddings are finite"
    if variant != "as-released":
        assert torch.allclose(together, one_by_one, atol=1e-5), "a query does not depend on its batch"
    assert torch.allclose(images, backwards, atol=1e-5), "an image does not depend on its place in the gallery"


@pytest.mark.parametrize(("method", "variant"), PAIRS, ids=IDS)
def test_same_seed_same_ranking(method: str, variant: str) -> None:
    rankings = []
    for _ in range(2):
        _, dataset, made = build(method, variant)
        split = dataset.splits["report"]
        result, _, _ = evaluation.evaluate(made, feed_for(dataset, made, split), dataset, split, dataset.protocols)
        rankings.append(result.arrays["top/text"])
    assert np.array_equal(*rankings)


@pytest.mark.parametrize(
    ("method", "variant"), [p for p in PAIRS if p[0] != "random" and p[1] != "zero-shot"],
    ids=[i for p, i in zip(PAIRS, IDS, strict=True) if p[0] != "random" and p[1] != "zero-shot"],
)
def test_losses_fall(method: str, variant: str) -> None:
    """A few steps on one batch: every stream's loss goes down, and every parameter that learns gets a gradient."""
    planned, dataset, made = build(method, variant)
    made.train()
    triplets = Triplets(dataset, "text", 32, planned.train.flip, 0)
    words = [t for ts in triplets.strings for t in ts]
    feed = Feed(
        dataset, dataset.splits["train"].images(), words, made.inputs, torch.device("cpu"),
        mirrored=planned.train.flip != "none",
    )
    batch = next(triplets.epoch(0, feed))
    optimizers = made.optimizers()
    first: dict[str, float] = {}
    last: dict[str, float] = {}
    for _ in range(12):
        for name, loss, _logs in made.losses(batch):
            optimizers[name].zero_grad(set_to_none=True)
            loss.backward()
            optimizers[name].step()
            first.setdefault(name, loss.item())
            last[name] = loss.item()
    assert set(first) == set(optimizers), "every optimizer is stepped"
    assert all(last[n] < first[n] for n in first), (first, last)


def test_every_config_field_is_used() -> None:
    """A field that no code reads is a promise the method does not keep."""
    for method in plugins.methods():
        source = method.source
        shared = "".join((Path(specs.__file__).parent / f"{n}.py").read_text() for n in ("streams",))
        for field in method.config.model_fields:
            assert f".{field}" in source or f".{field}" in shared, f"{method.name}.{field} is never read"
