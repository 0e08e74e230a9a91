"""The small CLIP, the small CNN, and training them from captions."""

from __future__ import annotations

import json

import numpy as np
import pytest
import timm
import torch
from click.testing import CliRunner
from open_clip.model import CLIP
from safetensors.torch import load_file, save_file

from cirbench.cli.pretrain import pretrain as command
from cirbench.datasets import scenes
from cirbench.models import pretrain, small_clip, small_cnn
from cirbench.models.small_clip import WordTokenizer
from cirbench.models.weights import ASSETS
from cirbench.types import CirbenchError, Dataset


@pytest.fixture(scope="module")
def pairs() -> pretrain.Pairs:
    return pretrain.Pairs(*scenes.pretrain_pairs(400, seed=3), "scenes")


def tiny(tokenizer: WordTokenizer) -> tuple[CLIP, dict]:
    config = small_clip.config_of("small", len(tokenizer), 48)
    torch.manual_seed(0)
    return CLIP(**config).eval(), config


# ------------------------------------------------------------------------------------------ words


def test_tokens_start_end_and_padding():
    tokenize = WordTokenizer(["a", "red", "ring"])
    tokens = tokenize(["a red ring", "", "A Réd, RING!"])
    assert tokens.shape == (3, 32) and tokens.dtype == torch.long
    assert tokens[0].tolist() == [2, 3, 4, 5, 6] + [0] * 27
    assert tokens[1].tolist() == [2, 6] + [0] * 30
    assert torch.equal(tokens[0], tokens[2])
    assert torch.equal(tokenize("a red ring"), tokens[:1])


def test_the_end_has_the_largest_id_and_survives_cutting():
    tokenize = WordTokenizer(["word"])
    tokens = tokenize(["word " * n for n in (0, 1, 29, 30, 31, 100)])
    end = len(tokenize) - 1
    assert (tokens == end).sum(dim=1).tolist() == [1] * 6
    assert tokens.argmax(dim=1).tolist() == [1, 2, 30, 31, 31, 31]
    assert tokens.max() == end


def test_unknown_words_are_one_id_and_rare_words_are_unknown():
    tokenize = WordTokenizer.from_texts(["red ring", "red moon", "ring"], min_count=2)
    assert tokenize.vocabulary == ["<pad>", "<unk>", "<start>", "red", "ring", "<end>"]
    assert tokenize(["zebra red"])[0, :4].tolist() == [2, 1, 3, 5]
    assert WordTokenizer.from_texts(["b a b a c"], min_count=1, limit=2).vocabulary[3:-1] == ["a", "b"]


def test_a_word_twice_is_refused():
    with pytest.raises(CirbenchError, match="'red' twice"):
        WordTokenizer(["red", "ring", "red"])


# ------------------------------------------------------------------------------------------ models


def test_the_small_cnn_is_a_timm_model():
    body = timm.create_model("cirbench_smallcnn", num_classes=0).eval()
    x = torch.zeros(2, 3, 48, 48)
    assert body.forward_features(x).shape == (2, 96, 6, 6)
    assert body(x).shape == (2, 96)
    maps = timm.create_model("cirbench_smallcnn", features_only=True)
    assert [m.shape[1:] for m in maps(x)] == [(24, 24, 24), (32, 12, 12), (64, 6, 6), (96, 6, 6)]
    assert maps.feature_info.channels() == [24, 32, 64, 96]
    assert timm.create_model("cirbench_smallcnn", num_classes=10, global_pool="grid")(x).shape == (2, 10)
    body.reset_classifier(7, "max")
    assert body(x).shape == (2, 7)
    assert body.forward_features(torch.zeros(1, 3, 64, 64)).shape == (1, 96, 8, 8)


def test_position_survives_the_grid_but_not_the_mean():
    torch.manual_seed(0)
    x = torch.zeros(2, 3, 48, 48)
    x[0, :, 4:12, 4:12] = x[1, :, 36:44, 36:44] = 1
    head = small_cnn.Head(3, 0, "grid", 8)
    assert not torch.equal(*head(x))
    torch.testing.assert_close(*small_cnn.Head(3, 0, "avg", 8)(x))


def test_wrong_use_of_the_cnn_is_refused():
    with pytest.raises(ValueError, match="global_pool"):
        timm.create_model("cirbench_smallcnn", global_pool="median")
    with pytest.raises(ValueError, match="num_classes=0"):
        timm.create_model("cirbench_smallcnn", num_classes=3, global_pool="")
    with pytest.raises((ValueError, RuntimeError)):
        timm.create_model("cirbench_smallcnn", pretrained=True)


def test_text_is_pooled_at_its_end():
    tokenize = WordTokenizer(["a", "red", "ring"])
    model, _ = tiny(tokenize)
    tokens = tokenize(["a red ring", "red"])
    states = {}
    model.ln_final.register_forward_hook(lambda _m, _i, out: states.update(out=out))
    with torch.no_grad():
        pooled = model.encode_text(tokens)
    for row, at in enumerate((4, 2)):
        torch.testing.assert_close(pooled[row], states["out"][row, at] @ model.text_projection)


def test_texts_without_padding_encode_the_same():
    tokenize = WordTokenizer(["a", "red", "ring"])
    model, _ = tiny(tokenize)
    tokens = tokenize(["a red ring", "red", "", "zebra " * 40])
    with torch.no_grad():
        for some in (tokens, tokens[:3], tokens[1:3]):
            torch.testing.assert_close(pretrain.encode_short(model, some), model.encode_text(some))


# ---------------------------------------------------------------------------------------- folders


def test_round_trip(tmp_path):
    tokenize = WordTokenizer(["a", "red", "ring"])
    model, config = tiny(tokenize)
    model.half().float()  # what fp16 storage keeps
    small_clip.save(tmp_path / "clip", model, tokenize, config, trained={"note": 1})
    again, words, info = small_clip.load(tmp_path / "clip")
    assert type(again) is CLIP and not again.training
    assert info == {"embed_dim": 128, "image_size": 48, "mean": [0.5] * 3, "std": [0.25] * 3}
    assert words.vocabulary == tokenize.vocabulary
    x, tokens = torch.rand(2, 3, 48, 48), words(["a red ring", "zebra"])
    with torch.no_grad():
        assert torch.equal(again.encode_image(x), model.encode_image(x))
        assert torch.equal(again.encode_text(tokens), model.encode_text(tokens))
    assert sorted(p.name for p in (tmp_path / "clip").iterdir()) == sorted(small_clip.FILES)
    assert all(v.dtype != torch.float32 for v in load_file(tmp_path / "clip/model.safetensors").values())


def test_loading_draws_nothing_from_the_global_generator(tmp_path):
    tokenize = WordTokenizer(["a"])
    small_clip.save(tmp_path, *(tiny(tokenize)[0], tokenize, tiny(tokenize)[1]))
    torch.manual_seed(5)
    before = torch.get_rng_state()
    small_clip.load(tmp_path)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("name", small_clip.FILES)
def test_a_broken_folder_is_told_in_one_message(tmp_path, name):
    tokenize = WordTokenizer(["a", "b"])
    model, config = tiny(tokenize)
    small_clip.save(tmp_path, model, tokenize, config)
    (tmp_path / name).write_bytes(b"a\n")
    with pytest.raises(CirbenchError, match=str(tmp_path)):
        small_clip.load(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(CirbenchError, match=name):
        small_clip.load(tmp_path)


@pytest.mark.parametrize("key", ["image_size", "mean", "std", "model", "format"])
def test_a_description_without_a_part_is_told(tmp_path, key):
    tokenize = WordTokenizer(["a"])
    small_clip.save(tmp_path, *(tiny(tokenize)[0], tokenize, tiny(tokenize)[1]))
    described = json.loads((tmp_path / "clip.json").read_text())
    (tmp_path / "clip.json").write_text(json.dumps({k: v for k, v in described.items() if k != key}))
    with pytest.raises(CirbenchError, match=rf"clip\.json: (no key '{key}'|{key}: field required)"):
        small_clip.load(tmp_path)


@pytest.mark.parametrize(("change", "said"), [
    (lambda state, name: state.pop(name), "Error"),
    (lambda state, name: state.update({name: state[name].flatten()[:1].clone()}), "Error"),
    (lambda state, name: state.update({name: torch.full_like(state[name], float("nan"))}), "NaN"),
    (lambda state, name: state.update(surplus=torch.ones(1)), "Error"),
], ids=["missing", "other shape", "NaN", "surplus"])
def test_damaged_weights_are_refused(tmp_path, change, said):
    tokenize = WordTokenizer(["a"])
    small_clip.save(tmp_path, *(tiny(tokenize)[0], tokenize, tiny(tokenize)[1]))
    state = load_file(tmp_path / "model.safetensors")
    change(state, "text_projection")
    save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(CirbenchError, match=said):
        small_clip.load(tmp_path)


def test_another_format_is_refused(tmp_path):
    tokenize = WordTokenizer(["a"])
    small_clip.save(tmp_path, *(tiny(tokenize)[0], tokenize, tiny(tokenize)[1]))
    path = tmp_path / "clip.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "format": 99}))
    with pytest.raises(CirbenchError, match="format 99"):
        small_clip.load(tmp_path)


# --------------------------------------------------------------------------------------- training


def test_twenty_steps_lower_the_loss_and_repeat_exactly(tmp_path, pairs):
    def train(name: str, seed: int) -> tuple[pretrain.Outcome, bytes]:
        outcome = pretrain.pretrain_clip(
            pairs, tmp_path / name, steps=20, batch=64, lr=1e-3, warmup=5, seed=seed, quiet=True
        )
        return outcome, (tmp_path / name / "model.safetensors").read_bytes()

    first, weights = train("a", 0)
    again, same = train("b", 0)
    other, different = train("c", 1)
    assert first.losses == again.losses and weights == same
    assert other.losses != first.losses and different != weights
    assert np.mean(first.losses[-5:]) < np.mean(first.losses[:5]) - 0.05
    assert first.gallery == 20 and set(first.recall) == {"R@1", "R@5", "R@10"}


@pytest.mark.parametrize("lr", [1000.0, 1e30])
def test_training_that_diverges_writes_nothing(tmp_path, pairs, lr):
    """A NaN is no hit: R@1 of diverged weights was 100."""
    with pytest.raises(CirbenchError, match=r"nothing was written\. Lower --lr"):
        pretrain.pretrain_clip(pairs, tmp_path / "clip", steps=60, batch=32, lr=lr, warmup=0, quiet=True)
    assert not (tmp_path / "clip").exists()


def test_training_leaves_the_global_generator_alone(tmp_path, pairs):
    torch.manual_seed(1)
    before = torch.get_rng_state()
    pretrain.pretrain_clip(pairs, tmp_path, steps=1, batch=16, quiet=True)
    assert torch.equal(before, torch.get_rng_state())


def test_the_cnn_trunk_fits_the_timm_model(tmp_path, pairs):
    outcome = pretrain.pretrain_cnn(pairs, tmp_path, steps=2, batch=32, quiet=True)
    state = {k: v.float() for k, v in load_file(tmp_path / "model.safetensors").items()}
    body = timm.create_model("cirbench_smallcnn", num_classes=0)
    body.load_state_dict(state)
    assert len(outcome.losses) == 2 and outcome.parameters > sum(p.numel() for p in body.parameters())


def test_any_dataset_with_captions_will_do(tmp_path):
    loaded = scenes.load(scenes.Knobs(train_scenes=20, select_scenes=2, report_scenes=2, distractors=0))
    outcome = pretrain.pretrain_clip(loaded, tmp_path, steps=2, side=36, batch=16, flip=True, quiet=True)
    assert small_clip.load(tmp_path)[2]["image_size"] == 36 and len(outcome.losses) == 2
    bare = Dataset("bare", {}, loaded.images, loaded.protocols, "")
    with pytest.raises(CirbenchError, match="'bare' has 0 captioned"):
        pretrain.pretrain_clip(bare, tmp_path, quiet=True)
    with pytest.raises(CirbenchError, match=r"'smal'.*'small'"):
        pretrain.pretrain_clip(loaded, tmp_path, "smal", quiet=True)


def test_the_first_captions_are_ranked_and_ties_count_against(monkeypatch):
    tokenize = WordTokenizer(["a"])
    model, _ = tiny(tokenize)
    # Products with a unit vector are exact, so that equal pictures are tied on every processor.
    encode = model.encode_image
    monkeypatch.setattr(model, "encode_image", lambda x, normalize: torch.eye(encode(x).shape[1])[[0] * len(x)])
    same = pretrain.Pairs(np.zeros((10, 48, 48, 3), np.uint8), [("a",)] * 10)
    recall = pretrain.text_to_image(model, tokenize, same, small_clip.MEAN, small_clip.STD)
    assert recall == {"R@1": 0.0, "R@5": 0.0, "R@10": 100.0}


def test_the_command(tmp_path, monkeypatch):
    call = ["--dataset", "scenes", "--steps", "2", "--pictures", "64", "--batch-size", "16", "--out"]
    monkeypatch.setattr("cirbench.cli.pretrain.HELD_OUT", 20)
    for name in ("clip", "cnn"):
        done = CliRunner().invoke(command, [name, *call, str(tmp_path / name)], catch_exceptions=False)
        assert done.exit_code == 0 and "text to image among 20: R@1" in done.output
    assert small_clip.load(tmp_path / "clip")[2]["image_size"] == 48
    lost = CliRunner().invoke(command, ["cnn", *call, str(tmp_path / "clip")])
    assert isinstance(lost.exception, CirbenchError) and "another --out" in str(lost.exception)
    failed = CliRunner().invoke(command, ["clip", "--dataset", "scene", "--out", "x"])
    assert isinstance(failed.exception, CirbenchError) and "'scenes'" in str(failed.exception)


# ---------------------------------------------------------------------------------- shipped weights


@pytest.mark.parametrize(("name", "at_least"), [("scenes-small", 60), ("scenes-medium", 30)])
def test_shipped_clips_find_pictures_by_their_captions(name, at_least):
    model, tokenize, info = small_clip.load(ASSETS / name)
    held_out = pretrain.Pairs(*scenes.pretrain_pairs(500, seed=77, role="report"))
    assert pretrain.text_to_image(model, tokenize, held_out, info["mean"], info["std"])["R@1"] >= at_least
    words = {w for split in scenes.load(scenes.Knobs()).splits.values() for q in split.queries
             for w in small_clip.split_words(q.texts[0])}
    assert words <= set(tokenize.vocabulary)


def test_shipped_weights_are_small():
    sizes = {p: p.stat().st_size for p in ASSETS.glob("scenes-*/*")}
    assert len(sizes) == 7 and sum(sizes.values()) <= 4_000_000
