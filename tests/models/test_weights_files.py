"""Weights from a file, from a folder of open_clip, and in Hugging Face's layout: what they compute, and what does not fit."""

from __future__ import annotations

import json
import math
import shutil
import sys
from pathlib import Path
from typing import Any

import open_clip
import pytest
import tiny_weights
import torch
from safetensors.torch import load_file, save_file
from tiny_weights import TEXTS, encoded, expected, same, write
from torch import Tensor

from cirbench.models.checkpoints import read_weights
from cirbench.models.clip import check_clip, load_clip
from cirbench.types import CirbenchError

# -------------------------------------------------------------------------------------------- a file


WRAPPED = {
    "plain.safetensors": lambda s: s,
    "plain.pt": lambda s: s,
    "state_dict.pt": lambda s: {"epoch": 3, "name": "x", "state_dict": s, "optimizer": {"state": {}}},
    "model.pth": lambda s: {"model": s, "step": 1},
    "CLIP.pt": lambda s: {"epoch": 1, "CLIP": s},  # as CLIP4Cir saves its first stage
    "module.pt": lambda s: {f"module.{k}": v for k, v in s.items()},
    "orig_mod.pt": lambda s: {f"_orig_mod.{k}": v for k, v in s.items()},
    "both.pt": lambda s: {"state_dict": {f"module._orig_mod.{k}": v for k, v in s.items()}},
    "clip.safetensors": lambda s: {f"clip.{k}": v for k, v in s.items()},
    "deep.bin": lambda s: {"model": {f"module.clip.{k}": v for k, v in s.items()}},
    "inside.pt": lambda s: {k.replace("visual.", "visual._orig_mod."): v for k, v in s.items()},
    "half.pt": lambda s: {k: v.half() for k, v in s.items()},
}


@pytest.mark.parametrize("name", WRAPPED)
def test_a_file_is_read_through_what_training_code_wraps_it_in(name: str, model: str, tmp_path: Path) -> None:
    state = dict(tiny_weights.clip().state_dict())
    path = write(tmp_path / name, WRAPPED[name](state))
    clip = load_clip(f"{model}:{path}")
    assert clip.dim == 16 and not any(p.requires_grad for p in clip.parameters())
    if name == "half.pt":
        assert all(p.dtype == torch.float32 for p in clip.parameters())
    else:
        same(encoded(clip), expected())


def test_a_file_takes_another_input_size(model: str, tmp_path: Path) -> None:
    path = write(tmp_path / "w.pt", dict(tiny_weights.clip().state_dict()))
    clip = load_clip(f"{model}:{path}", image_size=64)
    assert clip.pixels.size == 64 and encoded(clip)[0].shape == (2, 16)


def test_a_file_for_siglip_is_given_pictures_as_siglip_has_them() -> None:
    from cirbench.models.clip import _usual_preprocessing

    assert _usual_preprocessing("ViT-B-16-SigLIP")["mean"] == (0.5, 0.5, 0.5)
    assert _usual_preprocessing("ViT-B-16-SigLIP")["resize_mode"] == "squash"
    assert _usual_preprocessing("ViT-L-14") == {}, "its tags differ, so CLIP's own are taken"


def broken(kind: str) -> Any:
    state = dict(tiny_weights.clip().state_dict())
    if kind == "missing":
        del state["visual.proj"], state["ln_final.bias"]
    elif kind == "unexpected":
        state["combiner.weight"] = torch.zeros(2)
    elif kind == "shape":
        state["visual.conv1.weight"] = torch.zeros(32, 3, 8, 8)
    elif kind == "positions":
        state["positional_embedding"] = torch.zeros(12, 24)
    elif kind == "nan":
        state["visual.proj"] = torch.full((32, 16), torch.nan)
    elif kind == "all":
        del state["visual.proj"]
        state |= {"other.weight": torch.zeros(2), "ln_final.bias": torch.zeros(7)}
    elif kind == "code":
        return {"state_dict": state, "args": Path("x")}
    elif kind == "no weights":
        return {"epoch": 3, "lr": 0.1}
    elif kind == "a list":
        return [1, 2]
    elif kind == "a tensor":
        return torch.zeros(3)
    elif kind == "twice":
        state["_orig_mod.visual.proj"] = state["visual.proj"]
    return state


@pytest.mark.parametrize(("kind", "said"), [
    ("missing", r"2 missing: .*(visual\.proj|ln_final\.bias)"),
    ("unexpected", r"1 unexpected: combiner\.weight"),
    ("shape", r"1 of another shape: visual\.conv1\.weight is \(32, 3, 8, 8\), not \(32, 3, 16, 16\)"),
    ("positions", r"positional_embedding is \(12, 24\), not \(77, 24\)"),
    ("all", r"1 missing: visual\.proj; 1 unexpected: other\.weight; 1 of another shape: ln_final\.bias is \(7,\)"),
    ("nan", r"NaN or infinity, the first is visual\.proj"),
    ("code", r"more than tensors \(pathlib\.PosixPath\), and loading it could run code"),
    ("no weights", "holds no weights by name: found the keys epoch, lr"),
    ("a list", "holds no weights by name: found list"),
    ("a tensor", "holds no weights by name: found Tensor"),
    ("twice", "twice"),
])
def test_what_does_not_fit_is_listed_in_one_message(kind: str, said: str, model: str, tmp_path: Path) -> None:
    path = tmp_path / "w.pt"
    torch.save(broken(kind), path)
    with pytest.raises(CirbenchError, match=said) as told:
        load_clip(f"{model}:{path}")
    assert str(path) in str(told.value) and "\n" not in str(told.value)


@pytest.mark.parametrize("name", ["w.pt", "w.safetensors", "w.bin", "w.npz"])
@pytest.mark.parametrize("content", [b"", b"not weights", b"PK\x03\x04" + bytes(40), b"\x80\x02}q\x00."])
def test_a_damaged_file_is_told(name: str, content: bytes, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CirbenchError, match=rf"{name}"):
        read_weights([tmp_path / name])


def test_a_cut_file_is_told(tmp_path: Path) -> None:
    for name in ("w.pt", "w.safetensors"):
        path = write(tmp_path / name, dict(tiny_weights.clip().state_dict()))
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        with pytest.raises(CirbenchError, match="Fetch or copy it again"):
            read_weights([path])


def test_no_code_of_a_file_runs(tmp_path: Path) -> None:
    import pickle

    flag = tmp_path / "ran"

    class Trap:
        def __reduce__(self) -> Any:
            return Path.touch, (flag,)

    torch.save({"state_dict": Trap()}, tmp_path / "zip.pt")
    (tmp_path / "old.pt").write_bytes(pickle.dumps(Trap()))
    script = torch.jit.script(torch.nn.Linear(2, 2))
    torch.jit.save(script, tmp_path / "script.pt")
    for name in ("zip.pt", "old.pt", "script.pt"):
        with pytest.raises(CirbenchError, match=name):
            read_weights([tmp_path / name])
    assert not flag.exists()


# ------------------------------------------------------------------------------------------ folders


@pytest.mark.parametrize("name", ["open_clip_model.safetensors", "open_clip_pytorch_model.bin", "mine.safetensors"])
def test_a_folder_of_open_clip(name: str, tmp_path: Path) -> None:
    folder = tiny_weights.open_clip_folder(tmp_path / "mine", name=name, resize_mode="squash", interpolation="bilinear")
    for written in (f"local-dir:{folder}", str(folder)):
        clip = load_clip(written)
        same(encoded(clip), expected())
        assert clip.pixels.mean == tuple(tiny_weights.MEAN) and clip.pixels.std == tuple(tiny_weights.STD)
        assert (clip.pixels.resize, clip.pixels.interpolation, clip.dim) == ("squash", "bilinear", 16)


def test_a_folder_agrees_with_open_clip_itself(tmp_path: Path) -> None:
    folder = tiny_weights.open_clip_folder(tmp_path / "mine")
    theirs = open_clip.create_model(f"local-dir:{folder}").eval()
    tokens, x = open_clip.get_tokenizer(f"local-dir:{folder}")(TEXTS), torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        same(encoded(load_clip(f"local-dir:{folder}")), (theirs.encode_image(x), theirs.encode_text(tokens)))


def test_a_folder_without_its_parts_is_told(tmp_path: Path) -> None:
    folder = tiny_weights.open_clip_folder(tmp_path / "mine")
    shutil.copytree(folder, tmp_path / "bare")
    (tmp_path / "bare/open_clip_model.safetensors").unlink()
    (tmp_path / "empty").mkdir()
    shutil.copytree(folder, tmp_path / "torn")
    (tmp_path / "torn/open_clip_config.json").write_text("{")
    shutil.copytree(folder, tmp_path / "other")
    (tmp_path / "other/open_clip_config.json").write_text(json.dumps({"model_cfg": {"embed_dim": 3}}))
    (tmp_path / "bert").mkdir()
    (tmp_path / "bert/config.json").write_text(json.dumps({"architectures": ["BertModel"], "model_type": "bert"}))
    for name, said in {
        "bare": "incomplete: open_clip_config.json is there, but no weights", "empty": "clip.json is missing",
        "torn": "open_clip_config.json", "other": "no CLIP can be made from", "bert": r"names \['BertModel'\]",
        "mime": "Did you mean .*mine", "": "there is no folder ''",
    }.items():
        path = tmp_path / name if name else ""
        with pytest.raises(CirbenchError, match=said):
            load_clip(f"local-dir:{path}")


def test_a_tokenizer_that_needs_transformers_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tiny_weights.open_clip_folder(tmp_path / "mine")
    config = json.loads((folder / "open_clip_config.json").read_text())
    config["model_cfg"]["text_cfg"]["hf_tokenizer_name"] = "people/theirs"
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    monkeypatch.setitem(sys.modules, "transformers", None)  # as if it were not installed
    with pytest.raises(CirbenchError, match="pip install transformers"):
        load_clip(f"local-dir:{folder}")


# ---------------------------------------------------------------------------- Hugging Face's layout


def hf_forward(config: dict[str, Any], w: dict[str, Tensor], pixels: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
    """CLIPModel written out head by head from its description: (B, 3, H, W), (B, L) -> two (B, D)."""

    def norm(x: Tensor, name: str, eps: float) -> Tensor:
        mean = x.mean(-1, keepdim=True)
        spread = ((x - mean) ** 2).mean(-1, keepdim=True)
        return (x - mean) / (spread + eps).sqrt() * w[f"{name}.weight"] + w[f"{name}.bias"]

    def linear(x: Tensor, name: str) -> Tensor:
        return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    def encoder(x: Tensor, tower: str, part: dict[str, Any], causal: bool) -> Tensor:
        width, heads, eps = part["hidden_size"], part["num_attention_heads"], part["layer_norm_eps"]
        size, length = width // heads, x.shape[1]
        for n in range(part["num_hidden_layers"]):
            block = f"{tower}_model.encoder.layers.{n}"
            h = norm(x, f"{block}.layer_norm1", eps)
            q, k, v = (linear(h, f"{block}.self_attn.{letter}_proj") for letter in "qkv")
            outs = []
            for head in range(heads):
                at = slice(head * size, (head + 1) * size)
                scores = q[..., at] @ k[..., at].transpose(1, 2) / math.sqrt(size)
                if causal:
                    scores = scores.masked_fill(torch.ones(length, length).triu(1).bool(), -torch.inf)
                outs.append(scores.softmax(-1) @ v[..., at])
            x = x + linear(torch.cat(outs, -1), f"{block}.self_attn.out_proj")
            h = linear(norm(x, f"{block}.layer_norm2", eps), f"{block}.mlp.fc1")
            x = x + linear(h * torch.sigmoid(1.702 * h), f"{block}.mlp.fc2")
        return x

    w = {k: v.double() for k, v in w.items()}
    vision, text = config["vision_config"], config["text_config"]
    side, rows = vision["patch_size"], pixels.shape[0]
    patches = []
    for top in range(0, pixels.shape[2], side):
        for left in range(0, pixels.shape[3], side):
            patch = pixels.double()[:, :, top : top + side, left : left + side].reshape(rows, -1)
            patches.append(patch @ w["vision_model.embeddings.patch_embedding.weight"].flatten(1).T)
    x = torch.stack([w["vision_model.embeddings.class_embedding"].expand(rows, -1), *patches], 1)
    x = x + w["vision_model.embeddings.position_embedding.weight"]
    x = encoder(norm(x, "vision_model.pre_layrnorm", vision["layer_norm_eps"]), "vision", vision, causal=False)
    image = norm(x[:, 0], "vision_model.post_layernorm", vision["layer_norm_eps"]) @ w["visual_projection.weight"].T
    t = w["text_model.embeddings.token_embedding.weight"][ids] + w["text_model.embeddings.position_embedding.weight"]
    t = norm(encoder(t, "text", text, causal=True), "text_model.final_layer_norm", text["layer_norm_eps"])
    ends = torch.tensor([row.tolist().index(49407) for row in ids])
    return image, t[torch.arange(rows), ends] @ w["text_projection.weight"].T


def hf_ids(length: int) -> Tensor:
    """Ids as Hugging Face's tokenizer gives them: the rest is filled with the end token."""
    encode = open_clip.SimpleTokenizer().encode
    rows = [[49406, *encode(t), 49407] for t in TEXTS]
    return torch.tensor([[*row, *[49407] * (length - len(row))] for row in rows])


def test_hugging_faces_layout_computes_what_its_description_says(tmp_path: Path) -> None:
    folder = tiny_weights.hf_folder(tmp_path / "hf")
    clip = load_clip(f"local-dir:{folder}")
    x = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    image, text = hf_forward(tiny_weights.hf_config(), load_file(folder / "model.safetensors"), x, hf_ids(20))
    ours = encoded(clip)
    assert ours[0].shape == ours[1].shape == (2, 12)
    for mine, theirs in zip(ours, (image, text), strict=True):
        torch.testing.assert_close(mine.double(), theirs, atol=2e-5, rtol=1e-4)
        assert float(theirs.abs().mean()) > 0.05, "large enough for a difference to show"


def test_hugging_faces_layout_in_other_files(model: str, tmp_path: Path) -> None:
    """A pickle of tensors, two parts with an index, or one file named beside an architecture."""
    folder = tiny_weights.hf_folder(tmp_path / "hf")
    expect, state = encoded(load_clip(str(folder))), load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    state["text_model.embeddings.position_ids"] = torch.arange(20)[None]
    torch.save(state, folder / "pytorch_model.bin")
    same(encoded(load_clip(str(folder))), expect)
    (folder / "pytorch_model.bin").unlink()
    halves = {"a.safetensors": list(state)[::2], "b.safetensors": list(state)[1::2]}
    for name, keys in halves.items():
        save_file({k: state[k].contiguous() for k in keys}, folder / name)
    index = {"weight_map": {k: name for name, keys in halves.items() for k in keys}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    same(encoded(load_clip(f"local-dir:{folder}")), expect)
    (folder / "b.safetensors").unlink()
    with pytest.raises(CirbenchError, match=r"b\.safetensors, which model\.safetensors\.index\.json names, is missing"):
        check_clip(f"local-dir:{folder}")


def test_preprocessing_is_the_weights_own(tmp_path: Path) -> None:
    for told, want in (
        ({}, ("crop", "bicubic")), ({"size": 32, "crop_size": 32, "resample": 2}, ("crop", "bilinear")),
        ({"size": {"shortest_edge": 36}}, ("crop:36", "bicubic")),
        ({"size": {"height": 32, "width": 32}, "do_center_crop": False}, ("squash", "bicubic")),
    ):
        pixels = load_clip(str(tiny_weights.hf_folder(tmp_path / "hf", **told))).pixels
        assert (pixels.resize, pixels.interpolation, pixels.size) == (*want, 32), told
        assert pixels.mean == tuple(tiny_weights.MEAN)
    with pytest.raises(CirbenchError, match="not supported"):
        load_clip(str(tiny_weights.hf_folder(tmp_path / "hf", do_resize=False)))


@pytest.mark.parametrize(("change", "said"), [
    ({"text_config": {"vocab_size": 30522}}, "a vocabulary of 30522 tokens"),
    ({"text_config": {"hidden_act": "relu"}}, "hidden_act is quick_gelu, relu"),
    ({"projection_dim": 13}, r"visual\.proj is \(32, 12\), not \(32, 13\)"),
    ({"text_config": {"num_hidden_layers": 3}}, r"12 missing: transformer\.resblocks\.2"),
    ({"model_type": "siglip", "architectures": ["SiglipModel"]}, r"names \['SiglipModel'\]"),
])
def test_another_kind_of_hugging_face_model_is_refused(change: dict[str, Any], said: str, tmp_path: Path) -> None:
    folder = tiny_weights.hf_folder(tmp_path / "hf")
    config = tiny_weights.hf_config()
    for key, value in change.items():
        config[key] = {**config[key], **value} if isinstance(value, dict) else value
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(CirbenchError, match=said):
        load_clip(str(folder))


@pytest.mark.parametrize("config", [
    '{"model_type": "clip", "text_config": 7}', '{"model_type": "clip", "vision_config": {"hidden_size": "a"}}', "[]", "{",
    '{"model_type": "clip", "vision_config": {"num_attention_heads": 0}}', '{"architectures": 3}',
])
def test_a_damaged_config_is_told(config: str, tmp_path: Path) -> None:
    folder = tiny_weights.hf_folder(tmp_path / "hf")
    (folder / "config.json").write_text(config)
    with pytest.raises(CirbenchError, match=r"config\.json"):
        load_clip(str(folder))


def test_another_vocabulary_is_refused(tmp_path: Path) -> None:
    folder = tiny_weights.hf_folder(tmp_path / "hf")
    ids = {t: i for t, i in open_clip.SimpleTokenizer().encoder.items() if i < 49406}
    own = {**ids, "<|startoftext|>": 49406, "<|endoftext|>": 49407}
    (folder / "vocab.json").write_text(json.dumps(own))
    (folder / "tokenizer.json").write_text(json.dumps({"model": {"vocab": own}}))
    load_clip(str(folder))
    (folder / "tokenizer.json").write_text(json.dumps({"model": {"vocab": {**own, "dress</w>": 5}}}))
    with pytest.raises(CirbenchError, match="1 tokens are not those of CLIP"):
        load_clip(str(folder))
