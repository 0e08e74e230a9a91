"""The rivals against slow transcriptions of their formulas, and what their settings promise."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import slow_dwc
import slow_rivals as slow
import test_dwc
import torch
from cirbench.methods import combiner, concat, dwc, sum, text_only, tirg

from cirbench.models.cnn import CnnInfo
from cirbench.models.encoders import Cnn
from cirbench.models.layers import composition, draw_negatives, soft_triplet
from cirbench.models.lstm_text import GruText, LstmText
from cirbench.models.two_stream import Streams
from cirbench.plugins import find_method, methods
from cirbench.runs import contract, planning
from cirbench.settings import StreamSettings
from cirbench.types import Pixels, TrainView

D = 10


def scrambled(module: torch.nn.Module) -> torch.nn.Module:
    test_dwc.scramble(module)
    return module.double().eval()


def vectors() -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(3)
    return torch.randn(5, D, generator=g, dtype=torch.float64), torch.randn(5, D, generator=g, dtype=torch.float64)


@pytest.mark.parametrize("layers", [1, 2])
def test_concat_equals_its_formula(layers: int) -> None:
    module, (image, text) = scrambled(concat.Concat(D, layers, 0.1)), vectors()
    expected = [slow.concat(test_dwc.weights(module), i.numpy(), t.numpy(), layers) for i, t in zip(image, text, strict=True)]
    assert np.abs(module(image, text).detach().numpy() - expected).max() < 1e-6


def test_tirg_equals_its_formula() -> None:
    module, (image, text) = scrambled(tirg.GatedResidual(D)), vectors()
    expected = [slow.tirg(test_dwc.weights(module), i.numpy(), t.numpy()) for i, t in zip(image, text, strict=True)]
    assert np.abs(module(image, text).detach().numpy() - expected).max() < 1e-6
    assert tirg.GatedResidual(D).shares.tolist() == [1.0, 10.0]


def test_tirg_on_a_map_equals_its_formula() -> None:
    module, g = scrambled(tirg.GatedResidualMap(6, D)), torch.Generator().manual_seed(4)
    maps = torch.randn(3, 6, 2, 3, generator=g, dtype=torch.float64)
    _, text = vectors()
    found = module(maps, text[:3]).detach().numpy()
    for n in range(3):
        assert np.abs(found[n] - slow.tirg_on_map(test_dwc.weights(module), maps[n].numpy(), text[n].numpy())).max() < 1e-6


def test_soft_triplet_equals_its_formula() -> None:
    queries, targets = vectors()
    positives = torch.eye(5, dtype=torch.bool)
    positives[0, 2] = positives[3, 0] = True
    negatives = draw_negatives(positives, 7)
    assert (negatives < 0).any(), "some have fewer than seven"
    found = soft_triplet(*(3 * torch.nn.functional.normalize(x) for x in (queries, targets)), negatives)
    assert found.item() == pytest.approx(slow.soft_triplet(queries.numpy(), targets.numpy(), negatives.numpy(), 3), abs=1e-9)
    none = soft_triplet(queries, targets, draw_negatives(torch.ones(5, 5, dtype=torch.bool), 3))
    assert none.item() == 0, "no negative anywhere is no loss, and no NaN"


def test_negatives_are_drawn_from_torchs_generator_and_are_none_of_the_hits() -> None:
    positives = torch.eye(6, dtype=torch.bool)
    positives[0, 1] = True
    seen = set()
    for seed in range(40):
        torch.manual_seed(seed)
        rows = draw_negatives(positives, 3)
        torch.manual_seed(seed)
        assert torch.equal(rows, draw_negatives(positives, 3)) and rows.shape == (12, 3)
        for anchor, row in enumerate(rows.tolist()):
            assert len(set(row)) == 3, "three different ones"
            seen |= {(anchor, n) for n in row}
    forbidden = {(a, b) for a in range(12) for b in range(12) if a % 6 == b % 6}
    # Query 0 has targets 0 and 1: neither they nor the queries of target 1 are negatives of it.
    forbidden |= {(a, b) for a, b in ((0, 7), (7, 0), (0, 1), (1, 0), (6, 7), (7, 6))}
    assert not seen & forbidden
    assert seen == {(a, b) for a in range(12) for b in range(12)} - forbidden, "all others are drawn"


def test_combiner_equals_its_formula() -> None:
    module, (image, text) = scrambled(combiner.Combiner(D, 7, 9, 0.5)), vectors()
    found, share = module(image, text)
    for n in range(len(image)):
        q, s = slow.combiner(test_dwc.weights(module), image[n].numpy(), text[n].numpy())
        assert np.abs(found[n].detach().numpy() - q).max() < 1e-6 and share[n, 0].item() == pytest.approx(s, abs=1e-6)


@pytest.mark.parametrize(("kind", "own"), [
    ("concat", lambda: concat.Concat(D, 2, 0.3)), ("tirg", lambda: tirg.GatedResidual(D)),
    ("combiner", lambda: combiner.Combiner(D, D, 2 * D, 0.3)),
])
def test_a_composition_by_name_equals_the_one_of_its_method(kind: str, own: Any) -> None:
    """layers.py has them once more, for methods that put them in the place of their own composition."""
    made, seen = [], []
    for build in (own, lambda: composition(kind, D, 0.3).compose):
        torch.manual_seed(5)
        made.append(build().double().train())
        torch.manual_seed(6)
        out = made[-1](*vectors())
        seen.append(torch.cat(out, 1) if isinstance(out, tuple) else out)
    a, b = (module.state_dict() for module in made)
    assert list(a) == list(b) and all(torch.equal(a[name], b[name]) for name in a), "names, order and first weights"
    assert torch.equal(*seen), "in training, dropout included"


def test_sum_equals_its_formula() -> None:
    image, text = vectors()
    found = sum.Sum()(image, text)
    assert np.allclose(found, [slow.total(i.numpy(), t.numpy()) for i, t in zip(image, text, strict=True)], atol=1e-12)


class FakeEncoders:
    """Stands for the real ones: features come from the test, maps go through."""

    def __init__(self) -> None:
        self.clip_made = test_dwc.FakeClip()
        self.clip_made.pixels = Pixels(8, (0, 0, 0), (1, 1, 1))

    def clip(self, name: str, frozen: bool = True, image_size: int | None = None) -> Any:
        return self.clip_made

    def cnn(self, name: str, size: int, pretrained: bool = True, statistics: str = "imagenet") -> Cnn:
        return Cnn(test_dwc.Map(), CnnInfo(24, Pixels(3, (0, 0, 0), (1, 1, 1))))

    def words(
        self, vocabulary: list[str], word_dim: int, hidden: int, kind: str = "lstm", vectors: str = ""
    ) -> LstmText | GruText:
        return {"lstm": LstmText, "bigru": GruText}[kind](vocabulary, word_dim, hidden)


def make(module: Any, **fields: Any) -> Streams:
    config = module.Config(**{"clip_dim": 16, "cnn_dim": 16, "word_dim": 6, "dropout": 0.0, "streams": "both", **fields})
    made = module.build(config, FakeEncoders(), TrainView(test_dwc.TEXTS[:3], 3), None)
    test_dwc.scramble(made)
    return made.double().eval()


CASES = [
    (tirg, {}), (tirg, {"pooling": "gem"}), (tirg, {"learn_temperature": False, "temperature": 0.2}),
    (tirg, {"layer": "last-conv"}), (tirg, {"layer": "last-conv", "pooling": "gem"}),
    (tirg, {"loss": "soft-triplet"}), (tirg, {"loss": "soft-triplet", "triplets": 2, "learn_temperature": False}),
    (combiner, {"projection": 7, "hidden": 9}), (combiner, {"projection": 7, "hidden": 9, "project": True}),
    (combiner, {"projection": 7, "hidden": 9, "unit_features": True}),
    (concat, {}), (concat, {"layers": 1}), (sum, {}),
]


@pytest.mark.parametrize(("module", "fields"), CASES, ids=lambda x: getattr(x, "__name__", str(x)))
def test_losses_of_both_streams_equal_the_slow_transcription(module: Any, fields: dict[str, Any]) -> None:
    """From features, maps and words to the loss, stream by stream."""
    made, data = make(module, **fields), test_dwc.training_batch()
    config, rows = made.config, range(len(test_dwc.TEXTS))
    torch.manual_seed(6)
    found = {name: loss.item() for name, loss, _ in made.losses(data)}
    torch.manual_seed(6)
    negatives = {name: draw_negatives(data.positives, config.triplets).numpy() for name in found}
    p = test_dwc.weights(made)

    def below(prefix: str) -> dict[str, np.ndarray]:
        return {k.removeprefix(prefix): v for k, v in p.items() if k.startswith(prefix)}

    def compose(stream: str, image: np.ndarray, text: np.ndarray) -> np.ndarray:
        own = below(f"composers.{stream}.")
        if module is tirg:
            return slow.tirg(own, image, text)
        if module is combiner:
            return slow.combiner(own, image, text)[0]
        return slow.total(image, text) if module is sum else slow.concat(own, image, text, config.layers)

    def cnn_query(v: np.ndarray, text: str) -> np.ndarray:
        if getattr(config, "layer", "") == "last-conv":
            return cnn_image(slow.tirg_on_map(below("composers.cnn."), v, cnn_text(text)))
        return compose("cnn", cnn_image(v), cnn_text(text))

    def cnn_image(v: np.ndarray) -> np.ndarray:
        own = below("vectors.cnn.")
        pooled = v.mean((1, 2)) if config.pooling == "plain" else slow_dwc.gem(own, "pool_image", v)
        return slow_dwc.linear(own, "image_fc", pooled)

    def cnn_text(text: str) -> np.ndarray:
        own = below("vectors.cnn.")
        words = {k.replace("words.", "text.", 1): v for k, v in own.items()}
        states = slow_dwc.lstm(words, test_dwc.ids(text))
        pooled = states[-1] if config.pooling == "plain" else slow_dwc.gem(own, "pool_text", states.T)
        return slow_dwc.linear(own, "text_fc", pooled)

    own, how = below("vectors.clip."), (config.project, config.unit_features)
    clip_q = [
        compose("clip", slow.clip_vector(own, "image", data.reference["clip"][n].numpy(), *how),
                slow.clip_vector(own, "text", data.text["clip"][n].numpy(), *how)) for n in rows
    ]
    clip_t = [slow.clip_vector(own, "image", data.target["clip"][n].numpy(), *how) for n in rows]
    cnn_q = [cnn_query(data.reference["cnn"][n].numpy(), test_dwc.TEXTS[n]) for n in rows]
    cnn_t = [cnn_image(data.target["cnn"][n].numpy()) for n in rows]
    for name, q, t in (("clip", clip_q, clip_t), ("cnn", cnn_q, cnn_t)):
        scale = float(p[f"scales.{name}"]) if config.learn_temperature else None
        if config.loss == "soft-triplet":
            scale = config.temperature**-0.5 if scale is None else scale
            expected = slow.soft_triplet(np.array(q), np.array(t), negatives[name], scale)
        else:
            expected = slow.loss(np.array(q), np.array(t), data.positives.numpy(), config.temperature, scale)
        assert found[name] == pytest.approx(expected, abs=1e-6), name


def test_learned_scale_starts_where_the_paper_starts_it() -> None:
    made = tirg.build(tirg.Config(), FakeEncoders(), TrainView(["a"], 1), None)
    assert {n: s.item() for n, s in made.scales.items()} == {"cnn": pytest.approx(4.0)}
    optimizer = made.optimizers()["cnn"]
    assert isinstance(optimizer, torch.optim.SGD) and optimizer.param_groups[0]["momentum"] == 0.9
    assert any(p is made.scales["cnn"] for p in optimizer.param_groups[0]["params"])


def test_the_cnn_learns_at_a_rate_of_its_own() -> None:
    class Body(test_dwc.Map):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(1))

    cnn = Cnn(Body(), CnnInfo(24, Pixels(3, (0, 0, 0), (1, 1, 1))))
    words = LstmText(["a"], 6, 16)
    config = tirg.Config(cnn_dim=16, word_dim=6, cnn_lr=0.5)
    made = Streams(config, None, cnn, words, lambda name, dim: tirg.GatedResidual(dim))
    rest, slow_group = made.optimizers()["cnn"].param_groups
    assert [id(p) for p in slow_group["params"]] == [id(cnn.body.weight)]
    assert rest["lr"] == 0.5 and slow_group["lr"] == pytest.approx(0.05)
    grouped = {id(p) for g in (rest, slow_group) for p in g["params"]}
    assert grouped == {id(p) for p in made.parameters()}, "every parameter is in one group"


def grid_of_rates() -> dict[str, list[float]]:
    """What sweeps/rates.toml tries, the same for every method."""
    sweep = tomllib.loads(Path(__file__).parents[2].joinpath("sweeps", "rates.toml").read_text(encoding="utf-8"))
    (alone,), (together,) = sweep["arms"], sweep["variants"]["full"]["arms"]
    assert alone["methods"] == together["methods"]
    return {k.removeprefix("method."): v for k, v in (alone["space"] | together["space"]).items()}


LIKE_DWC = [
    (name, variant, streams) for name in ("tirg", "combiner", "artemis", "cosmo", "composeae")
    for variant, streams in (("like-dwc", "both"), ("like-dwc-clip", "clip"), ("like-dwc-cnn", "cnn"))
    if name != "cosmo" or streams == "cnn"
]


@pytest.mark.parametrize(("name", "variant", "streams"), LIKE_DWC)
def test_like_for_like_differs_in_the_composition_alone(name: str, variant: str, streams: str) -> None:
    ours, theirs = planning.plan(name, "scenes", variant), planning.plan("dwc", "scenes")
    shared = set(StreamSettings.model_fields) & set(dwc.Config.model_fields) - {"streams"}
    assert len(shared) > 10
    # On scenes each has the rates that one and the same grid found for it.
    grid = grid_of_rates()
    assert {"clip_lr", "cnn_lr", "dropout"} <= set(grid)
    assert all(getattr(c, f) in grid[f] for f in set(grid) & shared for c in (ours.config, theirs.config))
    fixed = shared - set(grid)
    assert {f: getattr(ours.config, f) for f in fixed} == {f: getattr(theirs.config, f) for f in fixed}
    assert ours.train == theirs.train and ours.config.streams == streams
    fields = {k: v for k, v in find_method(name).variants[variant].items() if "." not in k}
    full, paper = find_method(name).config(**fields), dwc.Config()
    assert {f: getattr(full, f) for f in shared} == {f: getattr(paper, f) for f in shared}, "off scenes as well"


@pytest.mark.parametrize(("name", "variant", "streams"), LIKE_DWC)
def test_like_for_like_is_kept_on_every_dataset(name: str, variant: str, streams: str, tmp_path: Path) -> None:
    """What a paper sets for a dataset does not reach the variant."""
    for dataset in ("fashioniq", "shoes", "fashion200k", "css3d", "cirr"):
        ours, theirs = (planning.plan(*which, root=tmp_path) for which in ((name, dataset, variant), ("dwc", dataset)))
        assert ours.train == theirs.train, dataset
        for field in set(StreamSettings.model_fields) & set(dwc.Config.model_fields) - {"streams"}:
            assert getattr(ours.config, field) == getattr(theirs.config, field), (dataset, field)


def test_plain_pooling_does_not_read_padding() -> None:
    made = make(tirg)
    batch = test_dwc.batch(test_dwc.TEXTS)
    with torch.no_grad():
        together = made.vectors["cnn"].text(batch.words)
        alone = torch.cat([made.vectors["cnn"].text([t]) for t in batch.words])
    assert torch.allclose(together, alone, atol=1e-12)


def test_dropout_of_the_text_is_tirgs_own() -> None:
    words = test_dwc.TEXTS
    for fields, moves in (({"text_dropout": 0.5}, True), ({"text_dropout": 0.0}, False)):
        vectors = make(tirg, **fields).train().vectors["cnn"]
        torch.manual_seed(1)
        state = torch.get_rng_state()
        first, second = vectors.text(words), vectors.text(words)
        assert torch.equal(first, second) != moves and torch.equal(state, torch.get_rng_state()) != moves
        assert torch.equal(vectors.eval().text(words), vectors.text(words))
    assert tirg.Config().text_dropout == 0.1 and StreamSettings().text_dropout == 0.0


def test_pictures_of_the_cnn_are_resized_as_the_settings_say() -> None:
    asked = {m: make(m).inputs.images["cnn"].interpolation for m in (tirg, concat)}
    assert asked == {tirg: "bilinear", concat: "bicubic"}


def test_new_fields_have_neutral_values_which_like_for_like_variants_keep() -> None:
    neutral = {n: f.json_schema_extra["neutral"] for n, f in StreamSettings.model_fields.items() if f.json_schema_extra}
    assert neutral == {n: getattr(StreamSettings(), n) for n in neutral} and "text_dropout" in neutral
    for found in methods():
        if not issubclass(found.config, StreamSettings):
            continue  # its fields are its own, whatever their names
        own = {n: f for n, f in found.config.model_fields.items() if n in neutral}
        assert all(f.json_schema_extra["neutral"] == neutral[n] for n, f in own.items()), found.name
        for variant in (v for v in found.variants if v.startswith("like-dwc")):
            config = planning.plan(found.name, "scenes", variant).config
            assert {n: getattr(config, n) for n in neutral} == neutral


def test_first_stage_of_clip4cir_trains_clip_as_it_is_evaluated() -> None:
    subject = contract.Subject("sum", "clip4cir-1")
    made = subject.build().train()
    assert made.training and not any(m.training for m in made.trained_clip.modules())
    (optimizer,) = made.optimizers().values()
    group = optimizer.param_groups[0]
    assert isinstance(optimizer, torch.optim.AdamW) and (group["eps"], group["weight_decay"]) == (1e-7, 0.01)
    assert {id(p) for p in group["params"]} == {id(p) for p in made.trained_clip.parameters() if p.requires_grad}
    assert subject.planned.train.flip == "none" and made.inputs.images["clip"].resize == "targetpad"
    moving = contract.Subject("sum", "clip4cir-1", over={"method.clip_mode": "train"}).build().train()
    assert moving.trained_clip.training


def test_what_a_dataset_asks_of_a_method_goes_before_what_the_dataset_says(tmp_path: Path) -> None:
    def train(method: str, dataset: str, variant: str = "") -> tuple[str, str, str]:
        made = planning.plan(method, dataset, variant, root=tmp_path).train
        return made.flip, made.form, made.schedule

    assert train("combiner", "fashioniq") == ("none", "four-ways", "constant")
    assert train("sum", "fashioniq", "clip4cir-1") == ("none", "four-ways", "constant")
    for variant in ("like-dwc", "like-dwc-clip", "like-dwc-cnn"):
        assert train("combiner", "fashioniq", variant) == train("dwc", "fashioniq") == ("joint", "", "constant")
        assert train("tirg", "css3d", variant) == train("dwc", "css3d") == ("none", "", "constant")
    assert train("tirg", "fashion200k")[2] == "step" and train("tirg", "css3d")[2] == "constant"
    config: Any = planning.plan("tirg", "css3d", root=tmp_path).config
    assert (config.backbone_rate, config.loss) == (1.0, "soft-triplet")


def test_targetpad_is_asked_of_the_pictures() -> None:
    encoders = FakeEncoders()
    config = combiner.Config(projection=4, hidden=4)
    made = combiner.build(config, encoders, TrainView([], 0), None)
    assert made.inputs.images["clip"].encoder.pixels.resize == "targetpad"
    assert encoders.clip_made.pixels.resize == "crop", "others who share this CLIP are not changed"


def test_share_of_the_image_is_reported_by_those_that_have_one() -> None:
    queries = test_dwc.batch(test_dwc.TEXTS)
    shares = make(combiner, projection=4, hidden=4).modality_weights(queries)
    assert set(shares) == {"clip", "cnn"}
    assert all(((s > 0) & (s < 1)).all() and s.shape == (4,) for s in shares.values())
    assert not hasattr(make(text_only), "modality_weights") and not hasattr(make(tirg), "modality_weights")
