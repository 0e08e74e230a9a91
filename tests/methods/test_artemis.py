"""ARTEMIS against the definition of its scores over pairs, a transcription of its training, and its two stages."""

from __future__ import annotations

from typing import Any

import pytest
import slow_streams as slow
import test_dwc
import torch
from cirbench.methods import artemis
from test_rivals import FakeEncoders

from cirbench.data.batches import Triplets
from cirbench.models.cnn import CnnInfo
from cirbench.models.encoders import Cnn
from cirbench.plugins import find_method
from cirbench.runs import contract, planning
from cirbench.runs.training import take_step
from cirbench.settings import Settings, TrainSettings, resolve
from cirbench.types import CirbenchError, Pixels, TrainView

CPU = torch.device("cpu")


def make(double: bool = True, **fields: Any) -> artemis.Artemis:
    config = artemis.Config(**{"clip_dim": 16, "cnn_dim": 16, "word_dim": 6, "dropout": 0.0, **fields})
    made = artemis.build(config, FakeEncoders(), TrainView(test_dwc.TEXTS[:3], 3), None)
    test_dwc.scramble(made)
    return made.double().eval() if double else made


def slow_vectors(p: slow.Weights, name: str, x: torch.Tensor) -> list[torch.Tensor]:
    """Unit image vectors of a stream."""
    if name == "clip":
        return [slow.unit(v * (v > 0)) for v in slow.linears(p, "vectors.clip.image_fc.0", list(x))]
    return [slow.unit(slow.linear(p, "vectors.cnn.image_fc", slow.gem(v, 3.0))) for v in x]


def slow_texts(p: slow.Weights, name: str, data: Any) -> list[torch.Tensor]:
    """Unit text vectors of a stream."""
    if name == "clip":
        return [slow.unit(v * (v > 0)) for v in slow.linears(p, "vectors.clip.text_fc.0", list(data.text["clip"]))]
    return [slow.unit(slow.gru(p, "vectors.cnn.words", test_dwc.ids(t))) for t in data.words]


def slow_scores(p: slow.Weights, name: str, parts: str, data: Any, gallery: torch.Tensor) -> torch.Tensor:
    """(B, N), pair by pair."""
    own, images = slow.below(p, f"composers.{name}."), slow_vectors(p, name, gallery)
    references, texts = slow_vectors(p, name, data.reference[name]), slow_texts(p, name, data)
    return torch.stack([
        torch.stack([slow.artemis_score(own, r, t, g, parts) for g in images])
        for r, t in zip(references, texts, strict=True)
    ])


@pytest.mark.parametrize("parts", ["both", "em", "is"])
@pytest.mark.parametrize("share", [0.5, 0.2])
def test_score_is_its_definition_over_pairs(parts: str, share: float) -> None:
    made, data = make(streams="both", parts=parts, clip_share=share), test_dwc.training_batch()
    gallery = test_dwc.batch(test_dwc.TEXTS, seed=9).reference
    with torch.no_grad():
        queries, images = made.encode_queries(data), made.encode_images(gallery)
        found = made.score(queries, images)
        assert queries.shape == (4, (4 if parts == "both" else 2) * 32) and images.shape == (4, 32)
        p = made.state_dict()
        clip, cnn = (slow_scores(p, name, parts, data, gallery[name]) for name in ("clip", "cnn"))
    assert (found - (share * clip + (1 - share) * cnn)).abs().max() < 1e-9


def test_factored_score_equals_the_tensor_of_pairs() -> None:
    """(B, N, D) at once, at the paper's width, in the precision that runs have."""
    g = torch.Generator().manual_seed(0)
    module = artemis.TwoScores(512, "both")
    unit = torch.nn.functional.normalize
    r, t, images = (unit(torch.randn(n, 512, generator=g)) for n in (5, 5, 7))
    with torch.no_grad():
        a_e, a_i = module.attend_explicit(t).softmax(1), module.attend_implicit(t).softmax(1)
        explicit = (unit(module.transform(t))[:, None] * unit(a_e[:, None] * images[None], dim=2)).sum(2)
        implicit = (unit(a_i * r)[:, None] * unit(a_i[:, None] * images[None], dim=2)).sum(2)
        assert torch.allclose(artemis.scores(module(r, t), images), explicit + implicit, atol=1e-6)


@pytest.mark.parametrize("parts", ["both", "em", "is"])
def test_training_equals_the_transcription(parts: str) -> None:
    made, data = make(parts=parts).train(), test_dwc.training_batch()

    def loss(p: slow.Weights) -> torch.Tensor:
        table = slow_scores(p, "cnn", parts, data, data.target["cnn"])
        return slow.cross_entropy(lambda i, j: p["scales.cnn"].exp() * table[i, j], data.positives)

    assert slow.follow(made, data, loss, "adamw", 5e-4, 0.01) < 1e-6


def test_fixed_temperature_and_two_streams() -> None:
    made, data = make(streams="both", learn_temperature=False, temperature=0.2), test_dwc.training_batch()
    assert not dict(made.scales)
    p = made.state_dict()
    for name, found, _ in made.losses(data):
        table = slow_scores(p, name, "both", data, data.target[name]) / 0.2
        expected = slow.cross_entropy(lambda i, j, table=table: table[i, j], data.positives)
        assert found.item() == pytest.approx(expected.item(), abs=1e-9)


def test_t_starts_where_the_paper_starts_it_and_is_trained() -> None:
    made = artemis.build(artemis.Config(), FakeEncoders(), TrainView(["a"], 1), None)
    t = made.scales["cnn"]
    assert t.item() == pytest.approx(2.65926, abs=1e-5) and t.exp().item() == pytest.approx(14.29, abs=0.01)
    optimizer = made.optimizers()["cnn"]
    assert isinstance(optimizer, torch.optim.AdamW)
    (group,) = optimizer.param_groups
    assert any(p is t for p in group["params"]) and (group["lr"], group["weight_decay"]) == (5e-4, 0.01)


def test_parameters_at_the_papers_sizes() -> None:
    class Wide(FakeEncoders):
        def cnn(self, *args: Any) -> Cnn:
            return Cnn(test_dwc.Map(), CnnInfo(2048, Pixels(224, (0, 0, 0), (1, 1, 1))))

    made = artemis.build(artemis.Config(), Wide(), TrainView(["a b", "c"], 2), None)
    layer = 512 * 512 + 512
    words = 7 * 300 + 2 * (3 * 256 * 300 + 3 * 256 * 256 + 2 * 3 * 256)  # 4 special words and a, b, c; two directions
    assert sum(p.numel() for p in made.parameters()) == words + 2048 * 512 + 512 + 5 * layer + 1
    for parts, layers in (("em", 3), ("is", 2)):
        assert sum(p.numel() for p in artemis.TwoScores(512, parts).parameters()) == layers * layer


def test_rates_of_both_stages() -> None:
    def factors(**fields: int) -> list[float]:
        made = make(**fields)
        return [made.start_epoch(epoch) for epoch in range(58)]

    expected = [1.0] * 4 + [0.5] * 14 + [0.25] * 10 + [0.125] * 10 + [0.0625] * 10 + [0.03125] * 10
    assert factors() == expected, "the second stage begins at half the rate"
    assert factors(frozen_epochs=0, halving=0) == [1.0] * 58
    assert factors(frozen_epochs=2, halving=0) == [1.0] * 58, "the first stage ends before its halving"
    twice = factors(frozen_epochs=16, frozen_halving=8, halving=20)
    assert twice[:56] == [f for f in expected[:28] for _ in range(2)], "FashionIQ: all twice as long"


def test_first_stage_trains_neither_cnn_nor_word_vectors() -> None:
    subject = contract.Subject("artemis", over={"method.frozen_epochs": 1})
    made = subject.build().train()
    batch = next(Triplets(subject.dataset, "text", 8, "none", 0).epoch(0, subject.feed(made, "train")))
    optimizers, before = made.optimizers(), {k: v.clone() for k, v in made.state_dict().items()}
    made.start_epoch(0)
    take_step(made, batch, optimizers, CPU, TrainSettings())
    moved = {k for k, v in made.state_dict().items() if not torch.equal(v, before[k])}
    fixed = {k for k in before if k.startswith("vectors.cnn.cnn.") or "embedding_layer" in k}
    statistics = {k for k in fixed if "running" in k or "num_batches" in k}
    assert moved & fixed == statistics and statistics and {"vectors.cnn.image_fc.weight", "scales.cnn"} <= moved
    made.start_epoch(1)
    take_step(made, batch, optimizers, CPU, TrainSettings())
    assert all(p.requires_grad for p in made.parameters())
    assert {k for k, v in made.state_dict().items() if not torch.equal(v, before[k])} >= fixed - statistics


def test_settings_of_the_paper(tmp_path: Any) -> None:
    def plan(dataset: str, variant: str = "") -> tuple[Any, ...]:
        made = planning.plan("artemis", dataset, variant, root=tmp_path)
        config: Any = made.config
        return made.train.epochs, config.frozen_epochs, config.frozen_halving, config.halving, made.train.batch_size, config.cnn

    assert plan("shoes") == (58, 8, 4, 10, 32, "resnet50.tv_in1k")
    assert plan("fashioniq") == (116, 16, 8, 20, 32, "resnet50.tv_in1k")
    assert plan("fashion200k") == (108, 8, 4, 20, 128, "resnet18.tv_in1k")
    assert plan("fashion200k", "as-released") == plan("shoes")
    for dataset in ("fashioniq", "shoes", "fashion200k"):
        train = planning.plan("artemis", dataset, root=tmp_path).train
        assert (train.flip, train.crop, train.schedule) == ("independent", "random", "constant")
    assert planning.plan("artemis", "fashioniq", root=tmp_path).train.form == "both"
    pixels = make().inputs.images["cnn"]
    assert (pixels.resize, pixels.pad, pixels.stored) == ("pad", "white", 256)


def test_only_a_softmax_is_offered() -> None:
    kind: type[Settings] = find_method("artemis").config
    with pytest.raises(CirbenchError, match="loss"):
        resolve(kind, "method", {"loss": "soft-triplet"})
