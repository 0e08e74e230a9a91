"""Items made ahead are the same items: order, errors, an early end; and batches against the definition."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from cirbench.data.ahead import ahead
from cirbench.data.batches import Triplets
from cirbench.types import Query


def counted(n: int, seen: list[int], fails: int = -1) -> Iterator[int]:
    for i in range(n):
        if i == fails:
            raise ValueError("no item")
        seen.append(i)
        yield i


def threads() -> int:
    return sum(t.name == "batches" for t in threading.enumerate())


@pytest.mark.parametrize("n", [0, 1, 7])
def test_the_same_items_in_the_same_order(n: int) -> None:
    seen: list[int] = []
    assert list(ahead(counted(n, seen))) == list(range(n)) == seen and not threads()


def test_an_error_comes_where_its_item_would_have_come() -> None:
    seen: list[int] = []
    items = ahead(counted(9, seen, fails=3))
    assert [next(items), next(items), next(items)] == [0, 1, 2]
    with pytest.raises(ValueError, match="no item"):
        next(items)
    assert not threads()


def test_leaving_early_ends_the_thread_and_little_was_made() -> None:
    seen: list[int] = []
    items = ahead(counted(1000, seen), depth=2)
    next(items)
    items.close()  # type: ignore[attr-defined]
    assert not threads() and len(seen) <= 5


def test_making_and_using_take_turns_at_once() -> None:
    def slow() -> Iterator[int]:
        for i in range(8):
            time.sleep(0.03)
            yield i

    begun = time.perf_counter()
    for _ in ahead(slow()):
        time.sleep(0.03)
    assert time.perf_counter() - begun < 8 * 0.06  # in turn it would take at least that


@pytest.mark.parametrize("most", [1, 4])
def test_positives_are_all_targets_of_a_query(most: int) -> None:
    rng = np.random.default_rng(most)
    queries = [
        Query(str(n), f"r{n}", ("t",), tuple(f"i{t}" for t in rng.choice(12, rng.integers(1, most + 1), replace=False)))
        for n in range(40)
    ]
    dataset = SimpleNamespace(splits={"train": SimpleNamespace(queries=queries)}, forms={"text": lambda q: (q.texts,)})
    feed = SimpleNamespace(images=lambda ids, flip, crops: ids, texts=lambda words: words, device=torch.device("cpu"))
    triplets = Triplets(dataset, "text", 16, "none", 0)  # type: ignore[arg-type]
    by_reference = {q.reference: q for q in queries}
    for batch in triplets.epoch(0, feed):  # type: ignore[arg-type]
        wanted = [[t in by_reference[r].targets for t in batch.target] for r in batch.reference]  # type: ignore[attr-defined]
        assert batch.positives.dtype == torch.bool and batch.positives.tolist() == wanted
