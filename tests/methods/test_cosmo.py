"""CoSMo against a transcription of its composition and of its training, and what its settings promise."""

from __future__ import annotations

from typing import Any

import pytest
import slow_streams as slow
import test_dwc
import torch
from cirbench.methods import cosmo
from test_rivals import FakeEncoders

from cirbench.models.two_stream import Streams
from cirbench.runs import planning
from cirbench.types import CirbenchError, TrainView


def make(**fields: Any) -> Streams:
    config = cosmo.Config(**{"cnn_dim": 16, "word_dim": 6, "text_dropout": 0.0, **fields})
    made = cosmo.build(config, FakeEncoders(), TrainView(test_dwc.TEXTS[:3], 3), None)
    test_dwc.scramble(made)
    return made.double().eval()


def slow_image(p: slow.Weights, v: torch.Tensor) -> torch.Tensor:
    return slow.unit(slow.linear(p, "vectors.cnn.image_fc", v.mean((1, 2))))


def slow_query(p: slow.Weights, v: torch.Tensor, text: str, heads: int) -> torch.Tensor:
    t = slow.linear(p, "vectors.cnn.text_fc", slow.lstm(p, "vectors.cnn.words", test_dwc.ids(text)))
    return slow_image(p, slow.cosmo(slow.below(p, "composers.cnn."), v, t, heads))


@pytest.mark.parametrize(("heads", "shape"), [(8, (3, 3)), (1, (2, 5)), (24, (1, 1))])
def test_queries_equal_the_transcription(heads: int, shape: tuple[int, int]) -> None:
    made, data = make(heads=heads), test_dwc.batch(test_dwc.TEXTS)
    g = torch.Generator().manual_seed(7)
    data.reference["cnn"] = torch.randn(4, 24, *shape, generator=g, dtype=torch.float64)
    with torch.no_grad():
        queries, images, p = made.encode_queries(data), made.encode_images(data.reference), made.state_dict()
        for n, text in enumerate(test_dwc.TEXTS):
            v = data.reference["cnn"][n]
            assert (queries[n] - slow_query(p, v, text, heads)).abs().max() < 1e-9
            assert (images[n] - slow_image(p, v)).abs().max() < 1e-9


def test_training_equals_the_transcription() -> None:
    """The loss is that of vectors 4 long; no gradient passes through the style that is kept."""
    made, data = make(heads=3).train(), test_dwc.training_batch()
    for side in (data.reference, data.target):
        side["cnn"] = side["cnn"][..., :2, 1:].contiguous()

    def loss(p: slow.Weights) -> torch.Tensor:
        queries = [4 * slow_query(p, v, t, 3) for v, t in zip(data.reference["cnn"], data.words, strict=True)]
        targets = [4 * slow_image(p, v) for v in data.target["cnn"]]
        return slow.cross_entropy(lambda i, j: queries[i] @ targets[j], data.positives)

    assert slow.follow(made, data, loss, "radam", 2e-4, 5e-5) < 1e-6


def test_style_that_is_kept_has_no_gradient() -> None:
    """Of mean and std, which the transcription takes as constants; the gradients of a map and a text."""
    module, g = cosmo.Modulator(6, 5, 2), torch.Generator().manual_seed(1)
    test_dwc.scramble(module)
    p = module.double().state_dict()
    v, t, weight = (torch.randn(*shape, generator=g, dtype=torch.float64) for shape in ((6, 2, 2), (5,), (6, 2, 2)))
    v.requires_grad_(), t.requires_grad_()
    found = torch.autograd.grad((module(v[None], t[None])[0] * weight).sum(), (v, t))
    expected = torch.autograd.grad((slow.cosmo(p, v, t, 2) * weight).sum(), (v, t))
    assert all((a - b).abs().max() < 1e-9 and b.abs().max() > 1e-2 for a, b in zip(found, expected, strict=True))


def test_first_weights_of_the_style() -> None:
    torch.manual_seed(0)
    module = cosmo.Modulator(512, 512, 8)
    assert module.shares.tolist() == [1, 1]
    for name, bias in (("keep_std", 0), ("keep_mean", 0), ("add_std", 1), ("add_mean", 0)):
        layer = getattr(module, name)
        assert bool((layer.bias == bias).all()) and layer.scale == pytest.approx(1 / 16)
        assert layer.weight.mean().item() == pytest.approx(0, abs=0.01)
        assert layer.weight.std().item() == pytest.approx(1, abs=0.01)


def test_parameters_at_the_papers_sizes() -> None:
    c, d = 2048, 512
    # Queries, keys, values, and the layer that joins map and text, without biases; the last layer and W with them.
    block = 3 * c * c + (c + d) * c + (c * c + c) + (d * c + c)
    expected = 2 * block + 2 + 4 * (d * c + c)
    with torch.device("meta"):
        module = cosmo.Modulator(c, d, 8)
    assert sum(p.numel() for p in module.parameters()) == expected


def test_heads_must_divide_the_channels() -> None:
    with pytest.raises(CirbenchError, match=r"method\.heads = 7: it must divide the 24 channels") as error:
        make(heads=7)
    assert "Take 6." in str(error.value)


def test_settings_of_the_paper(tmp_path: Any) -> None:
    planned = planning.plan("cosmo", "fashioniq", root=tmp_path)
    train, config = planned.train, planned.config.model_dump()
    assert (train.epochs, train.batch_size, train.schedule, train.decay_epochs) == (100, 32, "step", 60)
    assert (train.crop, train.crop_scale, train.flip, train.form) == ("resized", (0.75, 1.33), "independent", "both")
    assert (config["cnn"], config["optimizer"], config["cnn_lr"]) == ("resnet50.tv_in1k", "radam", 2e-4)
    other = planning.plan("cosmo", "fashion200k", root=tmp_path)
    assert (other.train.epochs, other.train.decay_epochs, other.train.form) == (50, 30, "")
    assert other.config.model_dump()["cnn"] == "resnet18.tv_in1k"
    pixels = make().inputs.images["cnn"]
    assert (pixels.resize, pixels.stored) == ("squash", None)
    optimizer = cosmo.build(cosmo.Config(), FakeEncoders(), TrainView(["a"], 1), None).optimizers()["cnn"]
    assert isinstance(optimizer, torch.optim.RAdam) and optimizer.defaults["decoupled_weight_decay"]
    assert cosmo.Config().temperature == 1 / 16 and cosmo.Config().text_dropout == 0.1
