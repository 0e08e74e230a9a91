"""Pic2Word against a slow transcription of its network and loss."""

from types import SimpleNamespace

import numpy as np
import pytest
import tiny
import torch
from cirbench.methods import pic2word

from cirbench.models.clip import load_clip
from cirbench.runs import planning
from cirbench.runs.building import build
from cirbench.types import TrainBatch


@pytest.fixture(scope="module")
def made() -> pic2word.Pic2Word:
    torch.manual_seed(0)
    config = pic2word.Config(clip="scenes-small", hidden=16, template="a picture of $ , {}", train_template="a picture of $")
    return pic2word.Pic2Word(config, load_clip("scenes-small")).eval()


def slow_phi(made: pic2word.Pic2Word, x: np.ndarray) -> np.ndarray:
    """Linear, ReLU, linear, ReLU, linear; dropout does nothing in evaluation."""
    layers = [(m.weight.detach().double().numpy(), m.bias.detach().double().numpy()) for m in made.phi if hasattr(m, "weight")]
    assert len(layers) == 3
    for weight, bias in layers[:2]:
        x = np.array([max(0.0, float(row @ x + b)) for row, b in zip(weight, bias, strict=True)])
    return layers[2][0] @ x + layers[2][1]


def unit(x: np.ndarray) -> np.ndarray:
    return x / np.sqrt((x * x).sum(-1, keepdims=True))


def test_query_is_the_text_with_the_pictures_word(made) -> None:
    pictures = 3 * torch.randn(3, made.clip[0].dim)
    texts = ["is red", "$ costs $5", "large , left"]
    found = made.encode_queries(SimpleNamespace(reference={"clip": pictures}, words=texts)).detach()
    for n, text in enumerate(["a picture of $ , is red", "a picture of $ ,   costs  5", "a picture of $ , large , left"]):
        word = torch.tensor(slow_phi(made, pictures[n].double().numpy()), dtype=torch.float32)
        expected = made.clip[0].encode_pseudo([text], word[None])[0].detach().double().numpy()
        assert np.abs(found[n].numpy() - unit(expected)).max() < 1e-5


def test_loss_is_the_symmetric_contrast(made) -> None:
    pictures = torch.randn(5, made.clip[0].dim)
    words = torch.stack([torch.tensor(slow_phi(made, p.double().numpy()), dtype=torch.float32) for p in pictures])
    written = unit(made.clip[0].encode_pseudo(["a picture of $"] * 5, words).detach().double().numpy())
    logits = made.clip[0].logit_scale * written @ unit(pictures.double().numpy()).T
    total = 0.0
    for table in (logits, logits.T):
        for n in range(5):
            total += np.log(np.exp(table[n] - table[n].max()).sum()) + table[n].max() - table[n, n]
    assert made.contrast(pictures).item() == pytest.approx(total / 10, rel=1e-5)


def test_pictures_count_once_and_pairs_are_not_used(made) -> None:
    a, b = torch.randn(3, made.clip[0].dim), torch.randn(3, made.clip[0].dim)
    positives = torch.eye(3, dtype=torch.bool)

    def loss(reference: torch.Tensor, target: torch.Tensor) -> float:
        batch = TrainBatch({"clip": reference}, {}, ["x"] * 3, {"clip": target}, positives)
        (name, value, logs), = made.losses(batch)
        assert name == "phi" and logs["phi"] == value.item()
        return value.item()

    assert loss(a, b) == pytest.approx(loss(a, b.flip(0)), rel=1e-5)
    assert loss(a, a) == pytest.approx(made.contrast(a).item(), rel=1e-5)


def test_biases_do_not_decay(made) -> None:
    weights, biases = made.optimizers()["phi"].param_groups
    assert weights["weight_decay"] == 0.1 and len(weights["params"]) == 3
    assert biases["weight_decay"] == 0.0 and len(biases["params"]) == 3


def test_the_clip_is_moved_with_the_method_before_anything_is_encoded() -> None:
    """Moved while something is encoded, its weights would be tensors of inference, and no gradient would pass them."""
    planned = tiny.plan("pic2word")
    made = build(planned, planning.load(planned), torch.device("meta"))
    assert {p.device.type for p in made.parameters()} == {p.device.type for p in made.clip[0].parameters()} == {"meta"}
