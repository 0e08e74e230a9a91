"""Speed as ratios, measured side by side in one run: `make bench`. Nothing here asserts a time."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from cirbench.models.layers import Inception2d, adam
from cirbench.scoring.ranking import View, rank

pytest.importorskip("pytest_benchmark")


def fused(x: torch.Tensor, block: Inception2d) -> None:
    block(x).sum().backward()


def four_branches(x: torch.Tensor, block: Inception2d) -> None:
    """The same block as it is drawn: four 1x1 convolutions, the average before its own."""
    a, b, c, _ = block.first
    w = block.reduce.weight
    norm = [nn.functional.batch_norm(F.conv2d(x, part), None, None, training=True)
            for part in (w[:a], w[a : a + b], w[a + b : a + b + c])]
    two = block.norm_second(block.second(norm[1].relu()))
    three = block.norm_third_b(block.third_b(block.norm_third_a(block.third_a(norm[2].relu())).relu()))
    pooled = F.conv2d(F.avg_pool2d(x, 3, 1, 1, count_include_pad=False), w[a + b + c :])
    torch.cat([norm[0], two, three, block.norm_pooled(pooled)], 1).sum().backward()


@pytest.mark.benchmark(group="inception")
@pytest.mark.parametrize("how", [fused, four_branches], ids=["fused", "four branches"])
def test_inception(benchmark, how) -> None:
    torch.manual_seed(0)
    block = Inception2d(256, 128).to(memory_format=torch.channels_last)
    x = torch.randn(64, 256, 6, 6).contiguous(memory_format=torch.channels_last).requires_grad_()
    benchmark(how, x, block)


@pytest.mark.benchmark(group="adam")
@pytest.mark.parametrize("how", ["fused", "default"])
def test_adam(benchmark, how: str) -> None:
    parameters = [nn.Parameter(torch.randn(512, 512)) for _ in range(8)]
    for p in parameters:
        p.grad = torch.randn_like(p)
    optimizer = adam(parameters, 1e-3, 1e-6) if how == "fused" else torch.optim.Adam(parameters, lr=1e-3, weight_decay=1e-6)
    benchmark(optimizer.step)


def dense(q: torch.Tensor, g: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """The usual way: the whole matrix, sorted."""
    order = (q @ g.T).argsort(1, descending=True)
    return (order == target[:, None]).nonzero()[:, 1] + 1


@pytest.mark.benchmark(group="ranks of 2,000 queries over 20,000 images")
@pytest.mark.parametrize("how", ["streamed", "sorted matrix"])
def test_ranking(benchmark, how: str) -> None:
    torch.manual_seed(0)
    q, g = torch.randn(2000, 256), torch.randn(20000, 256)
    target = torch.randint(0, 20000, (2000,))
    if how == "streamed":
        view = View([np.array([int(t)]) for t in target], np.full(2000, -1))
        benchmark.pedantic(rank, (q, g, [view]), rounds=3)
    else:
        benchmark.pedantic(dense, (q, g, target), rounds=3)
