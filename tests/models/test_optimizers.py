"""Rectified Adam against its paper, step by step in float64; and the choice of optimiser of the streams."""

from __future__ import annotations

import numpy as np
import pytest
import tiny
import torch
from torch import nn

from cirbench.models.layers import radam
from cirbench.plugins import method_names
from cirbench.runs import contract


def slow_radam(start: np.ndarray, gradients: list[np.ndarray], lr: float, decay: float, eps: float) -> np.ndarray:
    """Liu et al. 2020, algorithm 2, with AdamW's decay; the mean is bias-corrected in both branches."""
    x, m, v = start.astype(float), np.zeros_like(start, float), np.zeros_like(start, float)
    most = 2 / (1 - 0.999) - 1
    for t, g in enumerate(gradients, 1):
        x = x * (1 - lr * decay)
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
        mean = m / (1 - 0.9**t)
        length = most - 2 * t * 0.999**t / (1 - 0.999**t)
        if length > 5:
            rect = np.sqrt((length - 4) * (length - 2) * most / ((most - 4) * (most - 2) * length))
            x = x - lr * mean * rect * np.sqrt(1 - 0.999**t) / (np.sqrt(v) + eps)
        else:
            x = x - lr * mean
    return x


@pytest.mark.parametrize(("decay", "eps"), [(0.0, 1e-8), (5e-2, 1e-8), (0.3, 1e-3)])
def test_radam_is_that_of_its_paper(decay: float, eps: float) -> None:
    rng = np.random.default_rng(0)
    gradients = [rng.normal(size=5) for _ in range(12)]
    weight = nn.Parameter(torch.linspace(-1, 1, 5, dtype=torch.float64))
    start = weight.detach().numpy().copy()
    idle = nn.Parameter(torch.ones(1), requires_grad=False)
    optimizer = radam([weight, idle], 0.1, decay, eps)
    assert len(optimizer.param_groups[0]["params"]) == 1
    for gradient in gradients:
        weight.grad = torch.from_numpy(gradient)
        optimizer.step()
    assert np.allclose(weight.detach().numpy(), slow_radam(start, gradients, 0.1, decay, eps), atol=1e-9)


@pytest.mark.parametrize(("kind", "made", "decoupled"), [
    ("adam", torch.optim.Adam, None), ("adamw", torch.optim.AdamW, None), ("radam", torch.optim.RAdam, True),
    ("sgd", torch.optim.SGD, None),
])
def test_streams_take_every_optimiser(kind: str, made: type, decoupled: bool | None) -> None:
    over = {"method.optimizer": kind, "method.eps": 1e-5, "method.weight_decay": 0.01}
    found = contract.Subject("tirg", "like-dwc-clip", over=over).build().optimizers()["clip"]
    assert type(found) is made and found.defaults["weight_decay"] == 0.01
    assert found.defaults.get("decoupled_weight_decay") == decoupled or kind in ("adam", "adamw")
    assert kind == "sgd" or found.defaults["eps"] == 1e-5


def test_the_methods_over_streams_offer_the_same_optimisers() -> None:
    for name in method_names():
        planned = tiny.plan(name)
        if "optimizer" in type(planned.config).model_fields:
            assert tiny.plan(name, method__optimizer="radam").config.model_dump()["optimizer"] == "radam"
