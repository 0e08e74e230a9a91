"""DWC against its slow transcription, and what each of its parts promises."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import slow_dwc as slow
import torch
from cirbench.methods import dwc
from torch import nn

from cirbench.models.cnn import CnnInfo
from cirbench.models.encoders import Cnn
from cirbench.models.lstm_text import LstmText, build_vocabulary
from cirbench.plugins import find_method
from cirbench.types import CirbenchError, Frozen, Pixels, QueryBatch, TrainBatch

TEXTS = ["same shoe but red", "red", "a much higher heel and no strap at all", "unseenword heel"]
VOCABULARY = build_vocabulary(TEXTS[:3])
SMALL = {"clip_dim": 16, "cnn_dim": 16, "word_dim": 6, "dropout": 0.0}


class Map(nn.Module):
    """A CNN that hands its input through as the feature map."""

    def forward_features(self, x: torch.Tensor) -> torch.Tensor:
        return x


class FakeClip(nn.Module):
    dim, key = 12, "fake"
    pixels = Pixels(8, (0, 0, 0), (1, 1, 1))


def scramble(module: nn.Module, seed: int = 0) -> None:
    """Random weights and running statistics everywhere, so that nothing is hidden by an initial zero or one."""
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in module.state_dict().items():
        if name.endswith("running_var"):
            tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)
        elif tensor.dtype.is_floating_point and not name.endswith(".p"):
            tensor.copy_(torch.randn(tensor.shape, generator=generator) * 0.3)


def make(double: bool = True, **fields: Any) -> dwc.Dwc:
    config = dwc.Config(**{**SMALL, **fields})
    cnn = Cnn(Map(), CnnInfo(24, Pixels(3, (0, 0, 0), (1, 1, 1))))
    streams = config.streams
    method = dwc.Dwc(
        config, FakeClip() if streams != "cnn" else None, cnn if streams != "clip" else None,
        LstmText(VOCABULARY, config.word_dim, config.cnn_dim) if streams != "clip" else None,
    )
    scramble(method)
    return method.double().eval() if double else method.eval()


def batch(texts: list[str], seed: int = 1, dtype: torch.dtype = torch.float64) -> QueryBatch:
    g = torch.Generator().manual_seed(seed)
    n = len(texts)
    return QueryBatch(
        {"clip": torch.randn(n, 12, generator=g).to(dtype), "cnn": torch.randn(n, 24, 3, 3, generator=g).to(dtype)},
        {"clip": torch.randn(n, 12, generator=g).to(dtype)}, texts,
    )


def weights(module: nn.Module) -> dict[str, np.ndarray]:
    return {k: v.detach().double().numpy() for k, v in module.state_dict().items()}


def ids(text: str, length: int | None = None) -> list[int]:
    found = [VOCABULARY.index(w) if w in VOCABULARY else 0 for w in text.split()]
    return found + [0] * ((length or 0) - len(found))


ABLATED = [
    {}, {"editors": "image"}, {"editors": "text"}, {"editors": "none"}, {"weighting": "constant"},
    {"weighting": "constant", "modality_weight": 0.3}, {"weighting": "per-channel"},
    {"editors": "none", "weighting": "constant"}, {"word_temperature": 1.0, "region_temperature": 2.0},
    {"padding_mask": False}, {"unit_parts": True},
    {"fusion": "sum"}, {"fusion": "hadamard"}, {"fusion": "concat"}, {"fusion": "tirg"}, {"fusion": "combiner"},
    {"fusion": "tirg", "editors": "none", "unit_parts": True},
]


def same_share(found: torch.Tensor | None, row: int, expected: np.ndarray | None) -> bool:
    """Equal shares of the image, or none in both."""
    if found is None or expected is None:
        return found is None and expected is None
    return np.abs(found[row].numpy() - expected).max() < 1e-6


@pytest.mark.parametrize("fields", ABLATED, ids=str)
def test_streams_equal_the_slow_transcription(fields: dict[str, Any]) -> None:
    method, queries = make(**fields), batch(TEXTS)
    with torch.no_grad():
        clip_q, clip_w = method.clip.query(queries.reference["clip"], queries.text["clip"])
        cnn_q, cnn_w = method.cnn.query(queries.reference["cnn"], TEXTS)
        clip_t, cnn_t = method.clip.target(queries.reference["clip"]), method.cnn.target(queries.reference["cnn"])
    clip, cnn = weights(method.clip), weights(method.cnn)
    longest = max(len(t.split()) for t in TEXTS)
    for n, text in enumerate(TEXTS):
        image = queries.reference["clip"][n].numpy()
        q, w = slow.clip_query(method.config, clip, image, queries.text["clip"][n].numpy())
        assert np.abs(clip_q[n].numpy() - q).max() < 1e-6 and same_share(clip_w, n, w)
        assert np.abs(clip_t[n].numpy() - slow.clip_target(clip, image)).max() < 1e-6
        v = queries.reference["cnn"][n].numpy()
        words = ids(text) if method.config.padding_mask else ids(text, longest)
        q, w = slow.cnn_query(method.config, cnn, v, words)
        assert np.abs(cnn_q[n].numpy() - q).max() < 1e-6 and same_share(cnn_w, n, w)
        assert np.abs(cnn_t[n].numpy() - slow.cnn_target(cnn, v)).max() < 1e-6


@pytest.mark.parametrize("clip_share", [0.5, 0.2])
def test_answer_is_the_weighted_sum_of_cosines(clip_share: float) -> None:
    method, queries = make(clip_share=clip_share), batch(TEXTS)
    with torch.no_grad():
        scores = method.encode_queries(queries) @ method.encode_images(queries.reference).T
        clip = method.clip.query(queries.reference["clip"], queries.text["clip"])[0] @ method.clip.target(
            queries.reference["clip"]).T
        cnn = method.cnn.query(queries.reference["cnn"], TEXTS)[0] @ method.cnn.target(queries.reference["cnn"]).T
    assert torch.allclose(scores, clip_share * clip + (1 - clip_share) * cnn, atol=1e-12)


def training_batch(dtype: torch.dtype = torch.float64) -> TrainBatch:
    a, b = batch(TEXTS, 1, dtype), batch(TEXTS, 2, dtype)
    positives = torch.eye(4, dtype=torch.bool)
    positives[0, 2] = positives[2, 0] = positives[3, 0] = True
    return TrainBatch(a.reference, a.text, TEXTS, b.reference, positives)


@pytest.mark.parametrize("fields", [
    {}, {"soft_label_weight": 0.0}, {"soft_label_weight": 1.0}, {"mutual_weight": 0.0}, {"teacher_image": "reference"},
    {"detach_soft_labels": False}, {"mutual_scale": 3.0, "temperature": 0.2, "soft_label_temperature": 0.5},
    {"streams": "clip"}, {"streams": "cnn"}, {"mutual_weight": 0.3, "contrastive_weight": 2.0},
    {"contrastive_direction": "symmetric"}, {"soft_label_similarity": "cosine"}, {"soft_label_similarity": "euclidean"},
    {"soft_label_similarity": "gaussian"}, {"soft_label_similarity": "gaussian", "soft_label_width": 0.5},
    {"soft_label_source": "uniform"}, {"soft_label_source": "reference"}, {"soft_label_source": "text"},
    {"soft_label_source": "teacher"}, {"soft_label_source": "teacher", "mutual_weight": 0.0},
    {"soft_label_source": "text", "contrastive_direction": "symmetric", "soft_label_similarity": "euclidean"},
    {"soft_label_source": "reference", "teacher_image": "reference", "detach_soft_labels": False},
    {"fusion": "combiner", "editors": "none"},
], ids=str)
def test_losses_equal_the_slow_transcription(fields: dict[str, Any]) -> None:
    # Evaluation mode keeps batch statistics out of it; the losses themselves know no mode.
    method, data = make(**fields), training_batch()
    config = method.config
    q: dict[str, np.ndarray] = {}
    t: dict[str, np.ndarray] = {}
    r: dict[str, np.ndarray] = {}
    w: dict[str, np.ndarray] = {}
    rows = range(len(TEXTS))
    if hasattr(method, "clip"):
        p = weights(method.clip)
        q["clip"] = np.array([slow.clip_query(config, p, data.reference["clip"][n].numpy(),
                                              data.text["clip"][n].numpy())[0] for n in rows])
        t["clip"] = np.array([slow.clip_target(p, data.target["clip"][n].numpy()) for n in rows])
        r["clip"] = np.array([slow.clip_target(p, data.reference["clip"][n].numpy()) for n in rows])
        w["clip"] = np.array([slow.clip_text(p, data.text["clip"][n].numpy()) for n in rows])
    if hasattr(method, "cnn"):
        p = weights(method.cnn)
        q["cnn"] = np.array([slow.cnn_query(config, p, data.reference["cnn"][n].numpy(), ids(TEXTS[n]))[0] for n in rows])
        t["cnn"] = np.array([slow.cnn_target(p, data.target["cnn"][n].numpy()) for n in rows])
        r["cnn"] = np.array([slow.cnn_target(p, data.reference["cnn"][n].numpy()) for n in rows])
        w["cnn"] = np.array([slow.cnn_text(p, ids(TEXTS[n])) for n in rows])
    seen = []
    for name, loss, logs in method.losses(data):
        seen.append(name)
        other = "cnn" if name == "clip" else "clip"
        compared = {"target": t, "reference": r, "text": w, "uniform": t}.get(config.soft_label_source, {}).get(name)
        if config.soft_label_source == "teacher":
            compared = t[other]
        labels = slow.soft_labels(config, compared, data.positives.numpy())
        con = slow.contrastive(q[name], t[name], labels, config.temperature)
        if config.contrastive_direction == "symmetric":
            labels = slow.soft_labels(config, compared, data.positives.numpy().T)
            con = (con + slow.contrastive(t[name], q[name], labels, config.temperature)) / 2
        expected = config.contrastive_weight * con
        assert logs[f"{name}/contrastive"] == pytest.approx(con, abs=1e-6)
        if len(q) == 2 and config.mutual_weight:
            images = r if config.teacher_image == "reference" else t
            mutual = slow.kl(q[other] @ images[other].T, q[name] @ t[name].T, config.mutual_scale)
            expected += config.mutual_weight * mutual
        assert loss.item() == pytest.approx(expected, abs=1e-6)
    assert seen == list(q)


def test_cnn_stream_learns_from_the_stepped_clip_stream() -> None:
    method, data = make(), training_batch()
    losses = method.losses(data)
    _, first, _ = next(losses)
    optimizer = method.optimizers()["clip"]
    first.backward()
    optimizer.step()
    stepped = weights(method.clip)
    _, _second, logs = next(losses)
    rows = range(len(TEXTS))
    q = np.array([slow.clip_query(method.config, stepped, data.reference["clip"][n].numpy(),
                                  data.text["clip"][n].numpy())[0] for n in rows])
    t = np.array([slow.clip_target(stepped, data.target["clip"][n].numpy()) for n in rows])
    p = weights(method.cnn)
    own_q = np.array([slow.cnn_query(method.config, p, data.reference["cnn"][n].numpy(), ids(TEXTS[n]))[0] for n in rows])
    own_t = np.array([slow.cnn_target(p, data.target["cnn"][n].numpy()) for n in rows])
    assert logs["cnn/mutual"] == pytest.approx(slow.kl(q @ t.T, own_q @ own_t.T, method.config.mutual_scale), abs=1e-6)


def test_soft_labels_carry_gradient_only_as_released() -> None:
    grads = {}
    for detach in (True, False):
        method, data = make(streams="clip", detach_soft_labels=detach), training_batch()
        t = method.clip.target(data.target["clip"]).detach().requires_grad_()
        labels = method.labels(t, data.positives)
        grads[detach] = labels.requires_grad
    assert grads == {True: False, False: True}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_company_and_padding_do_not_change_an_embedding(dtype: torch.dtype) -> None:
    method = make(double=dtype == torch.float64)
    everything = batch(TEXTS, dtype=dtype)
    with torch.no_grad():
        together = method.encode_queries(everything)
        for n in range(len(TEXTS)):
            one = QueryBatch({k: v[n : n + 1] for k, v in everything.reference.items()},
                             {k: v[n : n + 1] for k, v in everything.text.items()}, [TEXTS[n]])
            assert torch.allclose(together[n], method.encode_queries(one)[0], atol=1e-5 if dtype == torch.float32 else 1e-12)


def test_as_released_lets_padding_in() -> None:
    method = make(padding_mask=False)
    everything = batch(TEXTS)
    with torch.no_grad():
        together = method.cnn.query(everything.reference["cnn"], TEXTS)[0]
        alone = method.cnn.query(everything.reference["cnn"][1:2], TEXTS[1:2])[0]
    assert not torch.allclose(together[1], alone[0], atol=1e-3)


def test_training_statistics_do_not_see_padding() -> None:
    """Batch normalisation over words: a batch padded further gives the same output and the same running statistics."""
    from cirbench.models.layers import Inception1d

    torch.manual_seed(0)
    block = Inception1d(6, 8).double().train()
    twin = Inception1d(6, 8).double().train()
    twin.load_state_dict(block.state_dict())
    x = torch.randn(3, 6, 5, dtype=torch.float64)
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [1, 1, 1, 0, 0]], dtype=torch.bool)
    longer = torch.cat([x, torch.randn(3, 6, 4, dtype=torch.float64)], 2)
    a = block(x, mask)
    b = twin(longer, torch.cat([mask, torch.zeros(3, 4, dtype=torch.bool)], 1))
    assert torch.allclose(a, b[:, :, :5], atol=1e-12) and not b[:, :, 5:].any()
    for (name, one), two in zip(block.state_dict().items(), twin.state_dict().values(), strict=True):
        assert torch.allclose(one, two, atol=1e-12), name


def test_variants_are_overrides_of_fields() -> None:
    found = find_method("dwc")
    for overrides in found.variants.values():
        fields = {k: v for k, v in overrides.items() if "." not in k}
        config = dwc.Config(**fields)
        assert all(getattr(config, k) == v for k, v in fields.items())
        assert any(getattr(dwc.Config(), k) != v for k, v in fields.items()), "a variant that changes nothing"


def test_default_weights_keep_their_names() -> None:
    """Checkpoints and converted ones are read by these names, whatever fields are added."""
    names = set(make().state_dict())
    assert {"clip.img_fc.0.weight", "clip.gate_image.3.bias", "clip.combine.weight.3.weight", "cnn.pool_target.p",
            "cnn.to_words.reduce.weight", "cnn.image_to_words.norm_pooled.running_var", "cnn.combine.weight.0.bias",
            "cnn.text.lstm.weight_hh_l0", "cnn.txt_fc.weight"} <= names
    assert not any(".other." in name for name in names)


def test_teacher_labels_need_a_teacher_and_give_it_no_gradient() -> None:
    with pytest.raises(CirbenchError, match="streams=both"):
        make(streams="clip", soft_label_source="teacher")
    method, data = make(soft_label_source="teacher", detach_soft_labels=False, mutual_weight=0.0), training_batch()
    _, loss, _ = next(method.losses(data))
    loss.backward()
    assert all(p.grad is None for p in method.cnn.parameters())
    assert method.clip.img_fc[0].weight.grad is not None


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_weight_of_one_modality_hides_the_other(share: float) -> None:
    """`lambda-text` and `lambda-image` in the CLIP stream without editors, where no branch has seen the other."""
    method = make(streams="clip", editors="none", weighting="constant", modality_weight=share)
    a, b = batch(TEXTS, 1), batch(TEXTS, 2)
    mixed = (a.reference, b.text) if share == 1.0 else (b.reference, a.text)
    with torch.no_grad():
        assert torch.equal(method.encode_queries(a), method.encode_queries(QueryBatch(*mixed, TEXTS)))


def test_shares_are_told_where_there_are_any() -> None:
    queries = batch(TEXTS)
    assert set(make().modality_weights(queries)) == {"clip", "cnn"}
    assert set(make(fusion="combiner").modality_weights(queries)) == {"clip", "cnn"}
    assert make(fusion="sum").modality_weights(queries) == {}


def test_frozen_clip_is_no_part_of_the_weights() -> None:
    method = make()
    assert isinstance(method.inputs.images["clip"], Frozen)
    assert not any("trained_clip" in name for name in method.state_dict())


def test_paper_sizes() -> None:
    """The trainable sizes of dwc.md: CLIP stream about 10.5 million, CNN stream about 74 million plus the words."""
    config = dwc.Config()
    clip = dwc.ClipStream(config, 1024)
    assert sum(p.numel() for p in clip.parameters()) == pytest.approx(10.5e6, rel=0.02)
    words = LstmText(["w"] * 1000, config.word_dim, config.cnn_dim)
    cnn = dwc.CnnStream(config, Cnn(Map(), CnnInfo(2048, Pixels(7, (0, 0, 0), (1, 1, 1)))), words)
    # 23.5 million of ResNet-50; fc_output, combine, fc_ret and fc_rei of the release are left out, being unused.
    unused = 1024 * 1024 + 1024 + (2048 + 1024) * 1024 + 2 * 1024 + (2048 + 1024) * 1024 + 2 * 1024
    total = sum(p.numel() for p in cnn.parameters()) - words.embedding_layer.weight.numel() + 23.5e6 + unused
    assert total == pytest.approx(74e6, rel=0.02)
