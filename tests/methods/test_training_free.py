"""Methods that learn nothing, against slow transcriptions of their formulas in float64."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import slow_rivals as slow
import test_dwc
import test_rivals
import tiny
import torch
from cirbench.methods import slerp, sum
from slow_dwc import unit

from cirbench.runs import contract, planning
from cirbench.types import CirbenchError, TrainView

D = 12


def pairs() -> tuple[torch.Tensor, torch.Tensor]:
    """Ordinary pairs of any length, and pairs that are nearly parallel, parallel, and nearly opposite."""
    rng = np.random.default_rng(4)
    image, text, noise = (rng.standard_normal((9, D)) for _ in range(3))
    text[6], text[7], text[8] = 3 * image[6] + 1e-3 * noise[6], 0.5 * image[7], -image[8] + 2e-2 * noise[8]
    return torch.from_numpy(image), torch.from_numpy(text)


@pytest.mark.parametrize("alpha", [0.0, 0.2, 0.5, 0.8, 1.0])
@pytest.mark.parametrize(("fields", "tolerance"), [({}, 1e-6), ({"margin": 0.0}, 1e-12), ({"near": 0.3}, 1e-6)])
def test_slerp_equals_its_formula(alpha: float, fields: dict[str, float], tolerance: float) -> None:
    image, text = pairs()
    config = slerp.Config(alpha=alpha, **fields)
    found = slerp.Slerp(config)(image, text)
    expected = np.array([slow.slerp(i, t, alpha, config.near) for i, t in zip(image.numpy(), text.numpy(), strict=True)])
    assert np.abs(found.numpy() - expected).max() < tolerance
    assert np.abs(slerp.Slerp(config)(image.float(), text.float()).numpy() - expected).max() < 1e-4, "in float32"


def test_slerp_goes_from_the_image_to_the_text_by_equal_angles() -> None:
    image, text = (x[:6] for x in pairs())
    steps = [slerp.Slerp(slerp.Config(alpha=a))(image, text) for a in (0.0, 0.25, 0.5, 0.75, 1.0)]
    assert np.allclose(steps[0], [unit(i) for i in image.numpy()]) and np.allclose(steps[4], [unit(t) for t in text.numpy()])
    angles = torch.stack([(a * b).sum(1).clamp(-1, 1).acos() for a, b in pairwise(steps)])
    assert torch.allclose(angles, angles[:1].expand_as(angles))


def test_gradients_of_slerp_are_finite_except_as_released() -> None:
    def gradient(**fields: float) -> torch.Tensor:
        image = torch.ones(1, 4, dtype=torch.float64, requires_grad=True)  # its cosine with itself is exactly 1
        slerp.Slerp(slerp.Config(**fields))(image, image.detach()).sum().backward()
        return image.grad

    assert gradient().isfinite().all() and gradient(margin=0.0).isnan().all()


CASES = [
    (slerp, "", 0.5), (slerp, "as-released", 0.5), (slerp, "", 0.8), (sum, "zero-shot", None), (sum, "sum-raw", None),
    (sum, "bge-vl", None),
]


@pytest.mark.parametrize(("module", "variant", "alpha"), CASES, ids=lambda x: getattr(x, "__name__", str(x)))
def test_queries_and_images_equal_the_slow_transcription(module: Any, variant: str, alpha: float | None) -> None:
    """From CLIP's features to the vectors that are ranked."""
    fields = {k: v for k, v in module.VARIANTS.get(variant, {}).items() if "." not in k}
    config = module.Config(**{**fields, **({} if alpha is None else {"alpha": alpha})})
    made = module.build(config, test_rivals.FakeEncoders(), TrainView([], 0), None).double().eval()
    assert not list(made.parameters()) and made.optimizers() == {}
    batch = test_dwc.batch(test_dwc.TEXTS)
    images, texts = batch.reference["clip"].double().numpy(), batch.text["clip"].double().numpy()

    def compose(image: np.ndarray, text: np.ndarray) -> np.ndarray:
        if module is slerp:
            return slow.slerp(image, text, config.alpha, config.near)
        scaled = (unit(image), unit(text)) if variant == "zero-shot" else (image, text)
        return unit(slow.total(*scaled))

    # A row's length is sqrt(1/2), the root of the share of its stream, whatever that is: only directions rank.
    directions = [unit(q) for q in made.encode_queries(batch).numpy()]
    assert np.allclose(directions, [compose(i, t) for i, t in zip(images, texts, strict=True)], atol=1e-6)
    assert np.allclose([unit(g) for g in made.encode_images(batch.reference).numpy()], [unit(i) for i in images], atol=1e-6)


def test_they_run_offline_without_training(tmp_path: Path) -> None:
    """`slerp` half way is the sum of unit vectors; BGE-VL's composition, without its weights, is the raw sum."""
    def metrics(method: str, variant: str, **over: Any) -> dict[str, float]:
        record = tiny.run(method, tmp_path, variant, **over)
        return record.data["protocols"]["scenes"]["metrics"]

    unscaled = metrics("sum", "sum-raw", train__epochs=0)
    assert metrics("slerp", "", train__epochs=0) == metrics("sum", "zero-shot", train__epochs=0) != unscaled
    assert metrics("sum", "bge-vl", train__epochs=0) == unscaled
    assert metrics("slerp", "", train__epochs=0, method__alpha=0.0) == metrics("image-only", "zero-shot", train__epochs=0)
    assert metrics("slerp", "", train__epochs=0, method__alpha=1.0) == metrics("text-only", "zero-shot", train__epochs=0)
    # The mean of plain similarities is the sum of unit vectors; one share alone is one of the two floors.
    assert metrics("weicom", "average", train__epochs=0) == metrics("sum", "zero-shot", train__epochs=0)
    assert metrics("weicom", "", train__epochs=0, method__share=0.0) == metrics("image-only", "zero-shot", train__epochs=0)
    assert metrics("weicom", "", train__epochs=0, method__share=1.0) == metrics("text-only", "zero-shot", train__epochs=0)


def test_slerp_is_trained_where_it_is_projected() -> None:
    subject = contract.Subject("slerp", "projected")
    assert subject.trains(subject.build()) and set(subject.build().optimizers()) == {"clip"}
    assert planning.plan("slerp", "scenes", "projected").train.epochs == 8
    assert planning.plan("slerp", "scenes").train.epochs == 0


def test_bge_vl_reads_the_texts_of_its_authors(tmp_path: Path) -> None:
    def planned(dataset: str, backbone: str = "") -> planning.Plan:
        return planning.plan("sum", dataset, "bge-vl", backbone, root=tmp_path)

    assert planned("fashioniq").train.protocol == "fiq-original-keep-comma"
    assert planned("circo").train.protocol == "circo-keep-megapairs" and planned("shoes").train.protocol == ""
    config: Any = planned("cirr").config
    assert (config.clip, config.unit_features, config.project) == ("hf-hub:BAAI/BGE-VL-base", False, False)
    assert planned("cirr", "hf-hub:BAAI/BGE-VL-large").config.model_dump()["clip"] == "hf-hub:BAAI/BGE-VL-large"
    offline: Any = planned("scenes").config
    assert offline.clip == "scenes-small"


def test_alpha_beyond_the_arc_is_refused() -> None:
    with pytest.raises(CirbenchError, match=r"method.alpha = 1.5: .*less than or equal to 1"):
        planning.plan("slerp", "scenes", sets=["method.alpha=1.5"])
