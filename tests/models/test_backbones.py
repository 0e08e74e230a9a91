"""`--backbone`: shapes of open_clip models with random weights, from the words of a command to a query's embedding."""

from __future__ import annotations

import pytest
import torch
from cirbench.methods import combiner, dwc

from cirbench.models.clip import load_clip
from cirbench.models.encoders import Encoders
from cirbench.runs import planning
from cirbench.types import CirbenchError, Frozen, QueryBatch, TrainView

TEXTS = ["the same but in red", "longer"]
#: Model -> (D, input side); the first two are small enough for every run of the tests.
FAST = {"RN50-quickgelu": (1024, 224), "ViT-B-32-quickgelu": (512, 224)}
SLOW = {
    "RN101-quickgelu": (512, 224), "RN50x4-quickgelu": (640, 288), "RN50x16-quickgelu": (768, 384),
    "ViT-B-16-quickgelu": (512, 224), "ViT-L-14-quickgelu": (768, 224), "ViT-B-16-SigLIP": (768, 224),
}
SMALL = {"scenes-small": (128, 48), "scenes-medium": (None, 48)}
OPEN = [pytest.param(m, d, s) for m, (d, s) in FAST.items()]
OPEN += [pytest.param(m, d, s, marks=pytest.mark.slow) for m, (d, s) in SLOW.items()]


@pytest.mark.parametrize(("model", "dim", "side"), OPEN)
def test_open_clip_models_carry_a_clip_stream(
    model: str, dim: int, side: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = f"{model}:random"
    if "SigLIP" in model:
        # Its tokenizer needs `transformers` and a download; shapes only need ids that differ.
        ids = torch.arange(2 * 64).view(2, 64)
        monkeypatch.setattr("open_clip.get_tokenizer", lambda _: lambda texts: ids[: len(texts)])
    planned = planning.plan("dwc", "scenes", "clip-only", backbone=name, sets=["method.clip_dim=32"])
    assert planned.config.clip == name  # type: ignore[attr-defined]
    encoders = Encoders(0)
    method = dwc.build(planned.config, encoders, TrainView(TEXTS, 2)).eval()
    frozen = method.inputs.images["clip"]
    assert isinstance(frozen, Frozen) and frozen.encoder.dim == dim and frozen.encoder.pixels.size == side
    assert not any(p.requires_grad for p in frozen.encoder.parameters())
    with torch.inference_mode():
        image = frozen.encoder.encode_images(torch.randn(2, 3, side, side))
        text = frozen.encoder.encode_texts(TEXTS)
        assert image.shape == text.shape == (2, dim) and image.isfinite().all() and text.isfinite().all()
        assert not torch.allclose(text[0], text[1]) and not torch.allclose(image[0], image[1])
        query = method.encode_queries(QueryBatch({"clip": image}, {"clip": text}, TEXTS))
        assert query.shape == method.encode_images({"clip": image}).shape == (2, 32)


@pytest.mark.parametrize("name", SMALL)
def test_packaged_clips_carry_a_clip_stream(name: str) -> None:
    dim, side = SMALL[name]
    clip = load_clip(name)
    assert clip.pixels.size == side and dim in (None, clip.dim)
    with torch.inference_mode():
        images, texts = clip.encode_images(torch.randn(2, 3, side, side)), clip.encode_texts(TEXTS)
    assert images.shape == texts.shape == (2, clip.dim)


def test_input_size_is_the_streams_own() -> None:
    """A larger CLIP does not enlarge the CNN's map, nor the other way round."""
    planned = planning.plan("dwc", "scenes", backbone="ViT-B-32-quickgelu:random", sets=["method.cnn_size=64"])
    method = dwc.build(planned.config, Encoders(0), TrainView(TEXTS, 2))
    assert method.inputs.images["clip"].encoder.pixels.size == 224 and method.inputs.images["cnn"].size == 64


def test_random_weights_follow_the_seed() -> None:
    name = "ViT-B-32-quickgelu:random"
    with torch.inference_mode():
        a, b, c = (load_clip(name, seed=seed).encode_texts(TEXTS[:1]) for seed in (1, 1, 2))
    assert torch.equal(a, b) and not torch.allclose(a, c)


def test_rivals_take_any_backbone() -> None:
    for variant in ("", "like-dwc-clip"):
        over = ["method.projection=8", "method.hidden=8"]
        planned = planning.plan("combiner", "scenes", variant, "ViT-B-32-quickgelu:random", sets=over)
        method = combiner.build(planned.config, Encoders(0), TrainView(TEXTS, 2))
        wanted = method.inputs.images["clip"].encoder
        assert wanted.dim == 512 and wanted.pixels.resize == ("crop" if variant else "targetpad")


def test_an_unknown_backbone_names_the_nearest() -> None:
    with pytest.raises(CirbenchError, match="RN50x4"):
        load_clip("RN50x3-quickgelu:random")
