"""WeiCom against its formula, computed with the whole table of similarities."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from cirbench.methods import weicom


def slow(x: np.ndarray, t: np.ndarray, gallery: np.ndarray, share: float) -> np.ndarray:
    """Scores of one query, all N images, in double precision."""
    total = np.zeros(len(gallery))
    for weight, vector in ((1 - share, x), (share, t)):
        values = [float(vector @ g) for g in gallery]
        mean = sum(values) / len(values)
        spread = math.sqrt(sum((v - mean) ** 2 for v in values) / (len(values) - 1))
        total += [weight * 0.5 * (1 + math.erf((v - mean) / spread / math.sqrt(2))) for v in values]
    return total


def method(**fields: object) -> weicom.WeiCom:
    clip = SimpleNamespace(dim=8)
    return weicom.WeiCom(weicom.Config(clip="scenes-small", **fields), clip)


def unit(*shape: int, seed: int) -> torch.Tensor:
    made = torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return made / made.norm(dim=1, keepdim=True)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.5, 1.0])
def test_score_equals_its_formula(share: float) -> None:
    x, t, gallery, made = unit(5, 8, seed=0), unit(5, 8, seed=1), unit(40, 8, seed=2), method(share=share)
    queries = made.adapt(torch.cat([x, t], 1), gallery)
    expected = np.array([slow(a, b, gallery.numpy(), share) for a, b in zip(x.numpy(), t.numpy(), strict=True)])
    assert np.abs(made.score(queries, gallery).numpy() - expected).max() < 1e-9
    blocks = torch.cat([made.score(queries, part) for part in gallery.split(7)], 1)
    assert np.abs(blocks.numpy() - expected).max() < 1e-9, "block by block"
    single = made.score(made.adapt(torch.cat([x, t], 1).float(), gallery.float()), gallery.float())
    assert np.abs(single.numpy() - expected).max() < 1e-4, "in float32"


def test_plain_kinds_are_average_and_rectified_product() -> None:
    x, t, gallery = unit(5, 8, seed=3), unit(5, 8, seed=4), unit(9, 8, seed=5)
    for kind in ("average", "product"):
        made = method(kind=kind)
        a, b = x @ gallery.T, t @ gallery.T
        expected = (a + b) / 2 if kind == "average" else a.clamp(min=0) * b.clamp(min=0)
        assert torch.allclose(made.score(made.adapt(torch.cat([x, t], 1), gallery), gallery), expected)


def test_a_gallery_of_equal_images_scores_without_nan() -> None:
    made, gallery = method(), unit(1, 8, seed=6).float().expand(3, -1)
    queries = made.adapt(torch.cat([unit(2, 8, seed=7), unit(2, 8, seed=8)], 1).float(), gallery)
    assert bool(torch.isfinite(made.score(queries, gallery)).all())
