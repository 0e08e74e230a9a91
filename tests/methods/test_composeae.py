"""ComposeAE against a transcription of its composition and of its training, and what its settings promise."""

from __future__ import annotations

from typing import Any

import pytest
import slow_streams as slow
import test_dwc
import torch
from cirbench.methods import composeae
from test_rivals import FakeEncoders

from cirbench.models.two_stream import Streams
from cirbench.runs import planning
from cirbench.types import Frozen, TrainView

SMALL = {"clip_dim": 18, "cnn_dim": 18, "word_dim": 6, "dropout": 0.0}


def make(**fields: Any) -> Streams:
    config = composeae.Config(**{**SMALL, **fields})
    made = composeae.build(config, FakeEncoders(), TrainView(test_dwc.TEXTS[:3], 3), None)
    test_dwc.scramble(made)
    return made.double().eval()


def slow_images(p: slow.Weights, maps: torch.Tensor) -> list[torch.Tensor]:
    return [slow.linear(p, "vectors.cnn.image_fc", v.mean((1, 2))) for v in maps]


@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize("rotate", [True, False])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("dim", [16, 18, 40])
def test_composition_equals_the_transcription(dim: int, training: bool, rotate: bool, sign: float) -> None:
    module = composeae.Composition(dim, 12, composeae.Config(rotate=rotate, dropout=0.0))
    test_dwc.scramble(module)
    module.double().train(training)
    g = torch.Generator().manual_seed(3)
    x, t = (torch.randn(5, n, generator=g, dtype=torch.float64) for n in (dim, 12))
    p = {k: v.clone() for k, v in module.state_dict().items()}
    with torch.no_grad():
        found = module(x, t, sign)
        expected = torch.stack(slow.composeae(p, list(x), list(t), training, sign, rotate))
    assert (found - expected).abs().max() < 1e-9


@pytest.mark.parametrize("fields", [
    {}, {"rotate": False}, {"image_weight": 0.0}, {"text_weight": 0.7, "conjugate_weight": 0.5}, {"image_weight": 0.0,
    "text_weight": 0.0, "conjugate_weight": 0.0}, {"learn_temperature": False, "temperature": 0.2},
], ids=str)
def test_training_equals_the_transcription(fields: dict[str, Any]) -> None:
    made, data = make(**fields).train(), test_dwc.training_batch()
    config: Any = made.config
    texts = list(data.text["clip"])

    def loss(p: slow.Weights) -> torch.Tensor:
        own, s = slow.below(p, "composers.cnn."), p.get("scales.cnn", config.temperature**-0.5)
        x, y = slow_images(p, data.reference["cnn"]), slow_images(p, data.target["cnn"])
        theta = slow.composeae(own, x, texts, True, 1, config.rotate)

        def matching(queries: list[torch.Tensor], targets: list[torch.Tensor], positives: torch.Tensor) -> torch.Tensor:
            return slow.cross_entropy(lambda i, j: s * slow.unit(queries[i]) @ (s * slow.unit(targets[j])), positives)

        total = matching(theta, y, data.positives)
        if config.image_weight:
            back = slow.perceptron(own, "decode_image", theta, True)
            total = total + config.image_weight * slow.mean_square(back, x)
        if config.text_weight:
            back = slow.perceptron(own, "decode_text", theta, True)
            total = total + config.text_weight * slow.mean_square(back, texts)
        if config.conjugate_weight:
            turned = slow.composeae(own, y, texts, True, -1, config.rotate)
            total = total + config.conjugate_weight * matching(turned, x, torch.eye(4, dtype=torch.bool))
        return total

    made.config = config.model_copy(update={"backbone_rate": 1.0})
    assert slow.follow(made, data, loss, "sgd", 1e-2, 5e-5) < 1e-6
    assert hasattr(made.composers["cnn"], "decode_image") == bool(config.image_weight)
    assert hasattr(made.composers["cnn"], "decode_text") == bool(config.text_weight)


def test_text_turns_the_image() -> None:
    module = composeae.Rotation(16, 12, 0.0, rotate=True).double().eval()
    g = torch.Generator().manual_seed(5)
    x, t = (torch.randn(4, n, generator=g, dtype=torch.float64) for n in (16, 12))
    k, delta, real, imaginary = module(x, t, 1.0)
    expected = k * torch.exp(1j * delta)
    assert torch.allclose(torch.complex(real, imaginary), expected)
    turned = torch.complex(*module(x, t, -1.0)[2:])
    assert torch.allclose(turned, expected.conj()) and torch.allclose(turned.abs(), k.abs())


def test_both_streams_and_texts_of_words() -> None:
    """In the CLIP stream both vectors are CLIP's; the CNN stream reads the frozen CLIP's texts, or words."""
    made, data = make(streams="both"), test_dwc.training_batch()
    assert {name: loss.item() > 0 for name, loss, _ in made.losses(data)} == {"clip": True, "cnn": True}
    assert made.vectors["cnn"].words is None and isinstance(made.inputs.texts["clip"], Frozen)
    alone = make()
    assert set(alone.inputs.images) == {"cnn"} and set(alone.inputs.texts) == {"clip"} and not alone.extra_state()
    with torch.no_grad():
        other = test_dwc.training_batch()
        other.text["clip"] = other.text["clip"].flip(0)
        assert not torch.allclose(alone.encode_queries(data), alone.encode_queries(other))
    words = make(cnn_text="lstm")
    assert not words.inputs.texts and words.extra_state()["vocabulary"] == test_dwc.VOCABULARY
    assert words.composers["cnn"].for_rho.angle[1].in_features == 18, "states are as wide as the image"


def test_parameters_at_the_papers_sizes() -> None:
    d, t = 512, 768

    def layer(a: int, b: int) -> int:
        return a * b + b

    def behind_norm(a: int, b: int, c: int) -> int:
        return 2 * a + layer(a, b) + layer(b, c)

    rotation = behind_norm(d, d, d) + behind_norm(t, d, d)
    rho, rows = behind_norm(1024, 1024, d), 5 * 64 * 3 + 64 + behind_norm(64 * 16, 1024, d)
    decoders = behind_norm(d, d, d) + behind_norm(d, t, t)
    expected = 2 + 2 * rotation + rho + rows + decoders
    made = composeae.Composition(d, t, composeae.Config())
    assert sum(p.numel() for p in made.parameters()) == expected
    assert made.shares.tolist() == [10, 1]
    bare = composeae.Config(image_weight=0.0, text_weight=0.0)
    assert sum(p.numel() for p in composeae.Composition(d, t, bare).parameters()) == expected - decoders


def test_settings_of_the_paper(tmp_path: Any) -> None:
    def plan(dataset: str, variant: str = "") -> planning.Plan:
        return planning.plan("composeae", dataset, variant, root=tmp_path)

    made: Any = plan("fashion200k")
    assert (made.config.cnn, made.config.optimizer, made.config.cnn_lr, made.config.backbone_rate) == (
        "resnet18.tv_in1k", "sgd", 1e-2, 0.1)
    assert (made.train.schedule, made.train.decay_every, made.train.batch_size) == ("step", 50_000, 32)
    assert made.config.rotate and made.config.weight_decay == 5e-5 and not made.train.protocol
    made = plan("fashioniq")
    assert (made.train.protocol, made.train.decay_every, made.train.flip) == ("fiq-pooled-keep-and-it", 8000, "none")
    released: Any = plan("fashioniq", "as-released")
    assert released.train == made.train and made.config.rotate and not released.config.rotate
    assert plan("fashion200k", "as-released").train.protocol == "f200k-caption", "the text that leaks"
    like: Any = plan("fashion200k", "like-dwc").config
    assert (like.image_weight, like.text_weight, like.conjugate_weight) == (0, 0, 0) and like.cnn_text == "lstm"
