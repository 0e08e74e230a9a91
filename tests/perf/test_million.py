"""A million pictures on disk: exact and approximate search against one reading of the table, and the memory they take."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch

from cirbench.runs.approximate import Approximate
from cirbench.runs.search import first_of
from cirbench.scoring.ranking import View, rank

pytest.importorskip("pytest_benchmark")
N, D, CENTRES = 1_000_000, 512, 20_000


@pytest.fixture(scope="module")
def table(request, tmp_path_factory) -> torch.Tensor:
    """(N, D) of unit length around centres, as pictures of products are, mapped from a file of 2 GB."""
    if not request.config.getoption("benchmark_enable"):
        pytest.skip("a measurement: `make bench`")
    path: Path = tmp_path_factory.mktemp("million") / "embeddings.f32"
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((CENTRES, D)).astype(np.float32)
    out = np.memmap(path, "<f4", "w+", shape=(N, D))
    for start in range(0, N, 50_000):
        block = centres[rng.integers(0, CENTRES, 50_000)] + 0.7 * rng.standard_normal((50_000, D)).astype(np.float32)
        out[start : start + 50_000] = block / np.linalg.norm(block, axis=1, keepdims=True)
    return torch.from_numpy(out)


class Memory:
    """The most memory of this process while something runs, without the pages of mapped files, in GB over the start."""

    def __enter__(self) -> Memory:
        self.process, self.done, self.most = psutil.Process(os.getpid()), threading.Event(), 0.0
        self.begun = self._own()
        self.thread = threading.Thread(target=self._watch)
        self.thread.start()
        return self

    def _own(self) -> float:
        found = self.process.memory_info()
        return (found.rss - getattr(found, "shared", 0)) / 1e9

    def _watch(self) -> None:
        while not self.done.wait(0.01):
            self.most = max(self.most, self._own() - self.begun)

    def __exit__(self, *_: object) -> None:
        self.done.set()
        self.thread.join()


@pytest.mark.benchmark(group="a million")
def test_one_query_over_a_million(table, ratio, benchmark) -> None:
    """One query reads the table once; so does the product."""
    query = table[:1] + 0.1

    def product() -> None:
        for start in range(0, N, 1 << 16):
            query @ table[start : start + (1 << 16)].T

    with Memory() as memory:
        ratio("search, 1 query over 1,000,000 x 512 / product", product, lambda: first_of(query, table, 20), 1.25)
    benchmark.extra_info["GB beside the table"] = round(memory.most, 2)
    assert memory.most < 1, f"{memory.most:.2f} GB"


@pytest.mark.benchmark(group="a million")
def test_ranks_over_a_million(table, ratio, benchmark) -> None:
    queries, view = table[:256] + 0.05, View([np.array([n]) for n in range(256)], np.full(256, -1))

    def product() -> None:
        for start in range(0, N, 4096):
            queries @ table[start : start + 4096].T

    with Memory() as memory:
        ratio("ranks and top 50, 256 queries over 1,000,000 x 512 / product", product,
              lambda: rank(queries, table, [view], top=50), 1.5, rounds=3)
    benchmark.extra_info["GB beside the table"] = round(memory.most, 2)
    assert memory.most < 1, f"{memory.most:.2f} GB"


@pytest.mark.benchmark(group="a million")
def test_lists_against_exact_search(table, ratio, benchmark) -> None:
    pytest.importorskip("faiss", reason="needs faiss: pip install 'cirbench[index]'")
    index = Approximate("ivf", table)
    query = table[:1] + 0.1
    ratio("search --index ivf / exact, 1 query over 1,000,000", lambda: first_of(query, table, 20), lambda: index.search(query, 20))
    benchmark.extra_info["recall"] = round(index.recall, 3)
