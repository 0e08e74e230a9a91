"""Weights from a file, a folder, the hub, Hugging Face's layout, a finished run, timm: what they compute, what they are
identified by, and what is said where they do not fit."""

from __future__ import annotations

import json
import math
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import PIL.Image
import pytest
import tiny
import tiny_weights
import torch
from commands import exit_code
from safetensors.torch import load_file, save_file
from torch import Tensor

from cirbench.data.images import resized
from cirbench.models import names
from cirbench.models.checkpoints import read_weights
from cirbench.models.clip import check_clip, load_clip, without_weights
from cirbench.models.cnn import check_cnn, load_cnn
from cirbench.models.encoders import Encoders
from cirbench.models.timm_models import load_image_encoder, timm_pixels
from cirbench.models.weights import ASSETS, weights_id, weights_in
from cirbench.runs import planning
from cirbench.runs.building import check_backbones
from cirbench.runs.identity import identify
from cirbench.types import CirbenchError

TEXTS = ["a red dress, longer", "no sleeves"]


@pytest.fixture
def model() -> Iterator[str]:
    """The tiny CLIP as one of open_clip's architectures."""
    from open_clip import factory

    name = tiny_weights.register()
    yield name
    factory._MODEL_CONFIGS.pop(name)


def encoded(clip: Any, seed: int = 0) -> tuple[Tensor, Tensor]:
    x = torch.randn(2, 3, clip.pixels.size, clip.pixels.size, generator=torch.Generator().manual_seed(seed))
    with torch.inference_mode():
        return clip.encode_images(x), clip.encode_texts(TEXTS)


def expected() -> tuple[Tensor, Tensor]:
    reference, tokens = tiny_weights.clip(), open_clip.SimpleTokenizer()(TEXTS)
    x = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        return reference.encode_image(x), reference.encode_text(tokens)


def same(one: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor]) -> None:
    for a, b in zip(one, other, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


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


def write(path: Path, what: Any) -> Path:
    if path.suffix == ".safetensors":
        save_file({k: v.contiguous() for k, v in what.items()}, path)
    else:
        torch.save(what, path)
    return path


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


# ------------------------------------------------------------------------------------------- the hub


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of the hub, and no connection."""
    import socket

    from huggingface_hub import constants

    def refuse(*args: object, **kwargs: object) -> None:
        raise socket.gaierror("no such host")

    for variable in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def keep(hub: Path, repository: str, folder: Path) -> Path:
    """Lay a folder into the hub's cache as it would lie there after a fetch."""
    place = hub / f"models--{repository.replace('/', '--')}"
    (place / "refs").mkdir(parents=True)
    (place / "refs/main").write_text("abc")
    shutil.copytree(folder, place / "snapshots/abc")
    return place / "snapshots/abc"


@pytest.mark.parametrize("make", [tiny_weights.open_clip_folder, tiny_weights.hf_folder])
def test_the_hubs_cache_is_read_without_a_connection(make: Any, hub: Path, tmp_path: Path) -> None:
    folder = make(tmp_path / "mine")
    kept = keep(hub, "people/their-clip", folder)
    (kept / "README.md").write_text("read me")
    clip, local = load_clip("hf-hub:people/their-clip"), load_clip(f"local-dir:{folder}")
    same(encoded(clip), encoded(local))
    assert clip.key == local.key and weights_id("hf-hub:people/their-clip") == weights_id(f"local-dir:{folder}")
    assert weights_id(f"local-dir:{folder}").startswith("sha256:")


def test_what_cannot_be_fetched_is_told_at_once(hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import time

    waits = list[float]()
    monkeypatch.setattr(time, "sleep", waits.append)
    for name, said in {
        "hf-hub:people/nothing": r"could not be fetched: there is no connection to the hub.*without a connection name a folder",
        "hf-hub:nothing": "written hf-hub:OWNER/NAME", "hf-hub:": "written hf-hub:OWNER/NAME",
        "hf-hub:a/b/c": "written hf-hub:OWNER/NAME", "timm:hf-hub:timm/none": "could not be fetched",
    }.items():
        with pytest.raises(CirbenchError, match=said):
            check_clip(name)
    assert not waits


def test_a_proxy_that_refuses_is_not_asked_again_and_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor is one that never answers: one attempt, then what is cached."""
    import socket

    from huggingface_hub import constants

    from cirbench.models import hub

    tried = list[Any]()

    def connect(address: Any, timeout: float) -> Any:
        tried.append((address, timeout))
        raise ConnectionRefusedError

    for variable in ("ALL_PROXY", "all_proxy", "https_proxy", "NO_PROXY", "no_proxy"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(socket, "create_connection", connect)
    for proxy, door in (("http://127.0.0.1:9", ("127.0.0.1", 9)), ("proxy.example:3128", ("proxy.example", 3128)), ("", ("huggingface.co", 443))):
        monkeypatch.setenv("HTTPS_PROXY", proxy)
        with hub.fetching():
            assert constants.HF_HUB_OFFLINE
        assert tried.pop() == (door, hub.CONNECT) and not constants.HF_HUB_OFFLINE
    monkeypatch.setattr(socket, "create_connection", lambda *a, **k: socket.socket())
    with hub.fetching():
        assert not constants.HF_HUB_OFFLINE


def test_a_half_fetched_repository_is_not_taken_for_whole(hub: Path, tmp_path: Path) -> None:
    kept = keep(hub, "people/clip", tiny_weights.hf_folder(tmp_path / "mine"))
    (kept / "model.safetensors").unlink()
    with pytest.raises(CirbenchError, match="could not be fetched"):
        check_clip("hf-hub:people/clip")


def test_the_files_that_count_are_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither a second copy of the weights nor pictures in the repository; parts that an index names are."""
    import huggingface_hub

    there, cache = tiny_weights.hf_folder(tmp_path / "there"), tmp_path / "cache"
    (there / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"x": "part.safetensors"}}))
    shutil.move(there / "model.safetensors", there / "part.safetensors")
    for other in ("pytorch_model.bin", "tf_model.h5", "photo.jpg"):
        (there / other).write_bytes(b"x")

    def snapshot(repository: str, local_files_only: bool = False, allow_patterns: list[str] | None = None) -> str:
        if local_files_only and not cache.exists():
            raise OSError("nothing there")
        cache.mkdir(exist_ok=True)
        for name in allow_patterns or ():
            shutil.copy(there / name, cache / name)
        return str(cache)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    monkeypatch.setattr(huggingface_hub.HfApi, "list_repo_files", lambda *a: [p.name for p in there.iterdir()])
    clip = load_clip("hf-hub:people/clip")
    assert clip.dim == 12 and sorted(p.name for p in cache.iterdir()) == [
        "config.json", "model.safetensors.index.json", "part.safetensors", "preprocessor_config.json",
    ]


# ---------------------------------------------------------------------------------- what counts


def test_content_identifies_weights_and_places_do_not(model: str, tmp_path: Path) -> None:
    a = write(tmp_path / "a.pt", dict(tiny_weights.clip(0).state_dict()))
    shutil.copy(a, tmp_path / "b.bin")
    c = write(tmp_path / "c.pt", dict(tiny_weights.clip(1).state_dict()))
    assert weights_id(f"{model}:{a}") == weights_id(f"{model}:{tmp_path / 'b.bin'}") != weights_id(f"{model}:{c}")
    shutil.copy(a, tmp_path / "epoch_20")
    assert weights_id(f"{model}:{tmp_path / 'epoch_20'}") == weights_id(f"{model}:{a}"), "whatever the file's ending"
    assert weights_id(f"{model}:{a}") != weights_id(f"{model}-quickgelu:{a}"), "another architecture computes other features"
    assert load_clip(f"{model}:{a}").key == load_clip(f"{model}:{tmp_path / 'b.bin'}").key != load_clip(f"{model}:{c}").key
    folder = tiny_weights.open_clip_folder(tmp_path / "mine")
    before, key = weights_id(f"local-dir:{folder}"), load_clip(f"local-dir:{folder}").key
    shutil.move(folder, tmp_path / "elsewhere")
    assert weights_id(f"local-dir:{tmp_path / 'elsewhere'}") == before
    config = json.loads((tmp_path / "elsewhere/open_clip_config.json").read_text())
    config["preprocess_cfg"]["mean"] = [0.1, 0.1, 0.1]
    (tmp_path / "elsewhere/open_clip_config.json").write_text(json.dumps(config))
    assert weights_id(f"local-dir:{tmp_path / 'elsewhere'}") != before
    assert load_clip(f"local-dir:{tmp_path / 'elsewhere'}").key != key
    small = tmp_path / "small"
    shutil.copytree(ASSETS / "scenes-small", small)
    assert weights_id(str(small)) == weights_id(f"local-dir:{small}") == weights_id("scenes-small")
    for name in ("RN50-quickgelu:openai", "resnet50.tv_in1k", "timm:resnet50.tv_in1k", "a photo of $: a.pt", "run", "a: b/" + "c" * 999, "a:/\0", ""):
        assert weights_id(name) == name and not weights_in({"clip": name})


def test_the_id_of_a_run_holds_the_content(model: str, tmp_path: Path) -> None:
    a = write(tmp_path / "a.safetensors", dict(tiny_weights.clip(0).state_dict()))
    dataset = planning.load(tiny.plan("sum"))

    def ident(path: Path) -> str:
        return identify(tiny.plan("sum", "clip-only", method__clip=f"{model}:{path}"), dataset).id

    before = ident(a)
    shutil.copy(a, tmp_path / "b.safetensors")
    assert ident(tmp_path / "b.safetensors") == before
    write(a, dict(tiny_weights.clip(1).state_dict()))
    assert ident(a) != before, "the same name with other bytes is another run"


def test_a_run_with_a_file_and_with_a_folder_agree(model: str, tmp_path: Path) -> None:
    """Equal tensors and preprocessing give equal rankings, whichever form names them; the record says what was read."""
    path = write(tmp_path / "w.pt", {"model": dict(tiny_weights.clip().state_dict())})
    folder = tiny_weights.open_clip_folder(tmp_path / "mine", mean=None, std=None)
    config = json.loads((folder / "open_clip_config.json").read_text())
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config["model_cfg"]}))
    found = [
        tiny.run("sum", tmp_path / "runs", "zero-shot", method__clip=name, train__epochs=0)
        for name in (f"{model}:{path}", f"local-dir:{folder}")
    ]
    assert found[0].data["id"] != found[1].data["id"]
    with np.load(found[0].folder / "rankings.npz") as one, np.load(found[1].folder / "rankings.npz") as other:
        assert set(one.files) == set(other.files) and all(np.array_equal(one[n], other[n]) for n in one.files)
    assert list(found[0].data["loaded"].values()) == list(found[1].data["loaded"].values())
    pixels = found[1].data["preprocessing"]["clip"]
    assert pixels["size"] == 32 and pixels["resize"] == "crop" and pixels["interpolation"] == "bicubic"


# ------------------------------------------------------------------------------------- a finished run


def test_the_second_stage_reads_the_first(tmp_path: Path) -> None:
    """The CLIP that `sum clip4cir-1` trained, under `combiner`."""
    trained = tiny.run("sum", tmp_path / "first", "clip4cir-1")
    clip = load_clip(f"run:{trained.folder}")
    kept = load_file(trained.folder / "model.safetensors")
    for name, value in clip.model.state_dict().items():
        assert torch.equal(value, kept[f"trained_clip.model.{name}"]), name
    base = load_clip("scenes-small")
    assert not torch.equal(encoded(clip)[0], encoded(base)[0]) and clip.pixels.resize == "targetpad"
    assert base.pixels.resize == "crop" and clip.pixels.mean == base.pixels.mean
    record = tiny.run(
        "combiner", tmp_path, method__clip=f"run:{trained.folder}", method__projection=8, method__hidden=8
    )
    assert set(record.data["loaded"]) == {f"run:{trained.folder}"}
    assert record.data["inputs"]["weights"][f"run:{trained.folder}"].startswith("sha256:")
    moved = shutil.copytree(trained.folder, tmp_path / "moved")
    again = tiny.plan("combiner", method__clip=f"run:{moved}", method__projection=8, method__hidden=8)
    assert identify(again, planning.load(again)).id == record.data["id"], "the same weights in another place"
    assert exit_code("eval", str(record.folder), "--quiet") == 0, "the weights of the second stage load over it"


def made_run(folder: Path, clip: str, state: dict[str, Tensor], weights: dict[str, str] | None = None, **config: Any) -> str:
    """`run:` of a folder that looks like a finished run's."""
    folder.mkdir(parents=True)
    save_file({k: v.contiguous() for k, v in state.items()}, folder / "model.safetensors")
    inputs = {"config": {"clip": clip, "clip_size": None, **config}, "weights": weights or {}}
    (folder / "record.json").write_text(json.dumps({"id": folder.name, "inputs": inputs}))
    return f"run:{folder}"


def inside(state: Any, prefix: str = "trained_clip.model.") -> dict[str, Tensor]:
    return {"head.weight": torch.zeros(2), **{f"{prefix}{k}": v for k, v in state.items()}}


def test_a_stage_on_a_stage_is_other_weights(tmp_path: Path) -> None:
    """A run that trained the CLIP of another run: its base is that run."""
    state = load_clip("scenes-small").model.state_dict()
    first = made_run(tmp_path / "a", "scenes-small", inside(state), {"scenes-small": weights_id("scenes-small")})
    state = {k: v * 0.9 if v.is_floating_point() else v for k, v in state.items()}
    second = made_run(tmp_path / "b", first, inside(state, "mine."), {first: weights_id(first)})
    assert weights_id(first) != weights_id(second) and load_clip(first).key != load_clip(second).key
    assert torch.equal(load_clip(second).model.logit_scale, state["logit_scale"])
    resized = made_run(tmp_path / "c", first, inside(state, "mine."), {first: weights_id(first)}, clip_resize="squash")
    assert weights_id(resized) != weights_id(second) and load_clip(resized).pixels.resize == "squash"


def test_a_trained_clip_of_open_clip_needs_no_download(
    model: str, tmp_path: Path, hub: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its architecture and the tag's preprocessing are known; the weights that it started from are not asked for."""
    from open_clip import pretrained

    told = {"hf_hub": "people/mine/", "mean": (0.1, 0.2, 0.3), "std": (0.2, 0.2, 0.2), "resize_mode": "squash"}
    monkeypatch.setitem(pretrained._PRETRAINED, model, {"mine": told})
    with pytest.raises(CirbenchError, match="could not be loaded"):
        load_clip(f"{model}:mine")
    name = made_run(tmp_path / "first", f"{model}:mine", inside(tiny_weights.clip().state_dict()))
    clip = load_clip(name)
    same(encoded(clip), expected())
    assert clip.pixels.mean == (0.1, 0.2, 0.3) and clip.pixels.resize == "squash"
    assert load_clip(name, seed=7).key == clip.key


def test_runs_that_trained_no_clip_are_told(tmp_path: Path) -> None:
    runs, head = tmp_path / "runs", {"head.weight": torch.zeros(2)}
    made_run(runs / "frozen", "scenes-small", head)
    made_run(runs / "without", "", head)
    (runs / "without/record.json").write_text(json.dumps({"inputs": {"config": {"dim": 3}}}))
    made_run(tmp_path / "lost", "scenes-small", head)
    (tmp_path / "lost/model.safetensors").unlink()
    made_run(tmp_path / "torn", "scenes-small", head)
    (tmp_path / "torn/record.json").write_text("{")
    part = inside(load_clip("scenes-small").model.state_dict())
    del part["trained_clip.model.text_projection"]
    made_run(tmp_path / "part", "scenes-small", part)
    (tmp_path / "begun").mkdir()
    for folder, said in {
        "runs/frozen": r"trained no CLIP \(method\.freeze_clip=true\), it used scenes-small as it is",
        "runs/without": "has no field `clip`", "lost": "model.safetensors is missing.*--force",
        "torn": "record.json cannot be read", "part": "1 missing: text_projection", "begun": "no finished run", "runs": "holds 2 runs",
        "runs/frozn": f"Did you mean run:{runs}/frozen", "nowhere/x": "there is no folder",
    }.items():
        with pytest.raises(CirbenchError, match=said):
            load_clip(f"run:{tmp_path / folder}")


@pytest.mark.parametrize("record", ["[]", "{}", '{"inputs": 3}', '{"inputs": {"config": {"clip": 3}}}',
                                    '{"inputs": {"config": {"clip": "scenes-small", "clip_size": "x"}, "weights": 3}}',
                                    '{"inputs": {"config": {"clip": "SELF"}}}'])
def test_a_damaged_record_is_told(record: str, tmp_path: Path) -> None:
    name = made_run(tmp_path / "x", "scenes-small", {"a": torch.zeros(1)})
    record = record.replace("SELF", name)
    (tmp_path / "x/record.json").write_text(record)
    with pytest.raises(CirbenchError, match=r"started from itself|no JSON object|no field `clip`|trained no CLIP"):
        load_clip(name)


def test_a_run_whose_start_has_changed_is_refused(tmp_path: Path) -> None:
    """Words and architecture are the start's: other ones would silently be read with the trained weights."""
    mine = shutil.copytree(ASSETS / "scenes-small", tmp_path / "mine")
    state = load_clip(str(mine)).model.state_dict()
    name = made_run(tmp_path / "first", str(mine), inside(state), {str(mine): weights_id(str(mine))})
    load_clip(name)
    words = (mine / "vocab.txt").read_text().split()
    (mine / "vocab.txt").write_text("\n".join([words[1], words[0], *words[2:]]) + "\n")
    with pytest.raises(CirbenchError, match="has other content now"):
        load_clip(name)


# --------------------------------------------------------------------------------------------- timm


SMALL_TIMM = ["test_vit", "test_convnext", "test_resnet", "test_efficientnet"]


def timm_file(path: Path, name: str, seed: int = 0, **more: Any) -> Any:
    import timm

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        body = timm.create_model(name, pretrained=False, **more).eval()
    save_file({k: v.contiguous() for k, v in body.state_dict().items()}, path)
    return body


@pytest.mark.parametrize("name", SMALL_TIMM)
def test_a_timm_model_gives_its_pooled_features(name: str, tmp_path: Path) -> None:
    """With or without a classifier in the file, under a wrapper or not."""
    body = timm_file(tmp_path / "w.safetensors", name)
    encoder = load_image_encoder(f"timm:{name}:{tmp_path / 'w.safetensors'}")
    size = encoder.pixels.size
    x = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        want = body.forward_head(body.forward_features(x), pre_logits=True)
        got = encoder.encode_images(x)
    torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-4)
    assert got.shape == (2, encoder.dim) and not any(p.requires_grad for p in encoder.parameters()) and not encoder.training


def test_the_file_of_an_original_release_is_converted(tmp_path: Path) -> None:
    """DINOv2's own files hold a mask token that timm's models do not have."""
    body = timm_file(tmp_path / "w.safetensors", "test_vit", num_classes=0)
    torch.save({"model": {**body.state_dict(), "mask_token": torch.zeros(1, 64)}}, tmp_path / "dinov2.pth")
    one, other = (load_image_encoder(f"timm:test_vit:{tmp_path / n}") for n in ("w.safetensors", "dinov2.pth"))
    assert one.key != other.key and all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


def test_a_dinov2_is_an_image_encoder() -> None:
    """Its structure with random weights, at a smaller side than its own."""
    encoder = load_image_encoder("timm:vit_small_patch14_dinov2.lvd142m:random", image_size=56)
    assert encoder.dim == 384 and encoder.pixels.size == 56 and encoder.pixels.resize == "crop"
    with torch.inference_mode():
        assert encoder.encode_images(torch.zeros(1, 3, 56, 56)).shape == (1, 384)
    with pytest.raises(CirbenchError, match=r"cannot encode pictures of 64 pixels: .* Its own size is 224\."):
        load_image_encoder("timm:mixer_s32_224:random", image_size=64)


@pytest.mark.parametrize("name", ["resnet50.tv_in1k", "vit_base_patch16_224.augreg_in21k", "convnext_tiny.fb_in22k",
                                  "resnet50.a1_in1k", "vit_base_patch16_siglip_224.webli", "regnety_160.swag_ft_in1k"])
def test_timm_pictures_are_prepared_as_timm_does(name: str) -> None:
    """To the byte, on pictures of odd shapes."""
    import timm
    from timm.data import create_transform, resolve_data_config

    told = resolve_data_config(pretrained_cfg=timm.get_pretrained_cfg(name).to_dict())
    pixels = timm_pixels(name, told, told["input_size"][1])
    transform = create_transform(**told, normalize=False)
    draw = np.random.default_rng(0)
    for width, height in ((300, 517), (641, 480), (224, 224), (100, 125), (33, 31), (256, 256), (400, 90)):
        image = PIL.Image.fromarray(draw.integers(0, 256, (height, width, 3), dtype=np.uint8))
        ours = np.asarray(resized(image, pixels.size, pixels.resize, pixels.interpolation))
        assert np.array_equal(ours, transform(image).permute(1, 2, 0).numpy()), (name, width, height, pixels)


def test_transforms_that_we_do_not_have_are_refused() -> None:
    usual = {"input_size": (3, 32, 32), "crop_pct": 1.0, "mean": (0,) * 3, "std": (1,) * 3, "interpolation": "bicubic"}
    for change in ({"input_size": (3, 32, 48)}, {"crop_mode": "border"}):
        with pytest.raises(CirbenchError, match="only square ones"):
            timm_pixels("x", {**usual, **change}, 32)


def test_image_only_ranks_with_a_timm_model(tmp_path: Path) -> None:
    timm_file(tmp_path / "w.safetensors", "test_vit", num_classes=0)
    name = f"timm:test_vit:{tmp_path / 'w.safetensors'}"
    record = tiny.run("image_only", tmp_path / "runs", "zero-shot", method__clip=name, method__clip_size=48, train__epochs=0)
    assert set(record.data["loaded"]) == {name} and record.data["inputs"]["weights"][name].startswith("sha256:")
    told = record.data["preprocessing"]["clip"]
    assert told["size"] == 48 and len(told["mean"]) == 3
    assert exit_code("eval", str(record.folder), "--quiet") == 0


@pytest.mark.parametrize(("method", "over"), [
    ("sum", {}), ("dwc", {}), ("combiner", {"method__projection": 8, "method__hidden": 8}), ("text_only", {}),
    ("image_only", {"method__freeze_clip": False}),
])
def test_a_method_that_needs_a_text_tower_refuses_an_image_encoder(method: str, over: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(CirbenchError, match="timm:test_vit:random is an image encoder without a text tower"):
        tiny.run(method, tmp_path, method__streams="clip", method__clip="timm:test_vit:random", **over)
    assert not list(tmp_path.iterdir())


def test_the_image_encoder_of_a_method_file(tmp_path: Path) -> None:
    """Any name in any field: checked first, in the id by content, one encoder for one name."""
    encoders = Encoders()
    assert encoders.image("timm:test_vit:random") is encoders.image("timm:test_vit:random")
    assert encoders.image("scenes-small") is encoders.clip("scenes-small")
    with pytest.raises(CirbenchError, match="without a text tower"):
        encoders.image("timm:test_vit:random").encode_texts(["x"])
    with pytest.raises(CirbenchError, match="without a text tower"):
        encoders.clip("timm:test_vit:random")
    with pytest.raises(CirbenchError, match="Did you mean 'test_vit'"):
        check_backbones({"pictures": "timm:test_vitt"})
    path = tmp_path / "w.safetensors"
    timm_file(path, "test_vit")
    with pytest.raises(CirbenchError, match="no field of its Config names"):
        Encoders(declared=[]).image(f"timm:test_vit:{path}")


def test_another_models_file_is_told(tmp_path: Path) -> None:
    timm_file(tmp_path / "w.safetensors", "test_vit2")
    with pytest.raises(CirbenchError, match=r"does not fit: .*(missing|unexpected|another shape)"):
        load_image_encoder(f"timm:test_vit:{tmp_path / 'w.safetensors'}")
    timm_file(tmp_path / "c.safetensors", "test_resnet")
    with pytest.raises(CirbenchError, match=r"does not fit"):
        load_cnn(f"test_convnext:{tmp_path / 'c.safetensors'}", 64)


def test_a_folder_of_timm_and_the_cnn_stream(tmp_path: Path, hub: Path) -> None:
    """timm's own layout, as an image encoder and as the CNN of a stream, from a folder and from the hub's cache."""
    folder = tmp_path / "mine"
    folder.mkdir()
    body = timm_file(folder / "model.safetensors", "test_resnet", num_classes=5)
    told = {"mean": [0.1, 0.2, 0.3], "std": [0.3, 0.2, 0.1], "input_size": [3, 64, 64], "crop_pct": 0.8, "interpolation": "bilinear"}
    (folder / "config.json").write_text(json.dumps({
        "architecture": "test_resnet", "num_classes": 5, "pretrained_cfg": {**told, "classifier": "fc", "first_conv": "conv1"},
    }))
    keep(hub, "people/net", folder)
    for name in (f"local-dir:{folder}", "hf-hub:people/net"):
        encoder = load_image_encoder(f"timm:{name}")
        assert encoder.pixels.mean == (0.1, 0.2, 0.3) and encoder.pixels.resize == "crop:80"
        assert encoder.pixels.interpolation == "bilinear" and encoder.pixels.size == 64
        cnn = load_cnn(name, 64, statistics="model")
        assert cnn.info.pixels.mean == (0.1, 0.2, 0.3)
        x = torch.randn(1, 3, 64, 64)
        with torch.inference_mode():
            torch.testing.assert_close(cnn.eval()(x), body.forward_features(x), atol=1e-5, rtol=1e-4)
    assert weights_id(f"local-dir:{folder}") == weights_id("timm:hf-hub:people/net")
    with pytest.raises(CirbenchError, match=r"image encoder of timm, without a text tower\. It is named timm:"):
        check_clip(f"local-dir:{folder}")
    with pytest.raises(CirbenchError, match="no model of timm"):
        check_cnn(f"local-dir:{tiny_weights.open_clip_folder(tmp_path / 'clip')}")


# ----------------------------------------------------------------------------------- wrong names


@pytest.mark.parametrize(("name", "said"), [
    ("ViT-B/32:openai", "Did you mean ViT-B-32:openai"),
    ("RN50:/nowhere/mine.pt", r"there is no file '/nowhere/mine\.pt'"),
    ("RN50:opena.pt", r"there is no file 'opena\.pt'.* Did you mean RN50:openai"),
    ("RN5O:/nowhere/mine.pt", "'RN5O'.*Did you mean 'RN50'"),
    ("hf:people/clip", "Did you mean hf-hub:people/clip"),
    ("hf_hub:people/clip", "Did you mean hf-hub:people/clip"),
    ("local:mine", "Did you mean local-dir:mine"),
    ("runs:scenes-sum-s0-123", "Did you mean run:scenes-sum-s0-123"),
    ("tim:resnet50", "Did you mean timm:resnet50"),
    ("vit_small_patch14_dinov2.lvd142m", r"Did you mean timm:vit_small_patch14_dinov2\.lvd142m"),
    ("timm:vit_smal_patch14_dinov2.lvd142m", r"unknown model of timm 'vit_smal_patch14_dinov2\.lvd142m'\. Did you mean 'vit_small_patch14_dinov2'"),
    ("timm:vit_small_patch14_dinov2.lvd142", "weights tag of vit_small_patch14_dinov2.*'lvd142m'"),
    ("timm:resnet50:openai", r"named resnet50\.TAG"),
    ("timm:resnet50:/nowhere/x.pt", "there is no file"),
    ("timm:run:x", "a run holds a CLIP"),
    ("timm:scenes-cnn", "Write scenes-cnn"),
    ("ViT-B-32", "has no weights tag"),
    ("ViT-B-32:openay", "Did you mean 'openai'"),
    ("some/folder/of/mine", "some/folder/of/mine holds no CLIP"),
    ("BAAI/BGE-VL-base", "named hf-hub:BAAI/BGE-VL-base"),
    ("https://huggingface.co/BAAI/BGE-VL-base", "named hf-hub:BAAI/BGE-VL-base"),
    ("local-dir:" + "x" * 5000, "there is no folder"), ("run:" + "x" * 5000, "there is no folder"),
    ("local-dir:\0", "there is no folder"), ("run:\0", "there is no folder"), ("run:", "names no folder"),
    ("ViT-B-32:/dev/null", "there is no file"), ("timm:", "unknown model of timm"), (":", "unknown backbone"),
    ("hf-hub:../x", "could not be fetched: HFValidationError"),
    ("scenes-smal", "Did you mean 'scenes-small'"),
    ("scenes-cnn", "scenes-cnn is a CNN, without a text tower"),
    ("x\0y", "unknown backbone"),
    ("", "unknown backbone"),
])
def test_a_wrong_name_is_told_with_the_nearest(name: str, said: str) -> None:
    with pytest.raises(CirbenchError, match=said):
        check_clip(name)


def test_measuring_needs_no_weights() -> None:
    for name, bare in {
        "RN50:openai": "RN50:random", "RN50:/x/y.pt": "RN50:random", "scenes-small": "scenes-small",
        "local-dir:/x": "local-dir:/x", "timm:resnet50.a1_in1k": "timm:resnet50.a1_in1k:random",
    }.items():
        assert without_weights(name) == bare


def test_the_list_names_every_form(capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code("list", "backbones") == 0
    said = capsys.readouterr().out
    for form in ("MODEL:TAG", "MODEL:FILE", "local-dir:DIR", "hf-hub:OWNER/NAME", "run:FOLDER", "timm:NAME"):
        assert form in said
    assert all(any(form.startswith(prefix) or prefix in form for form, _ in names.FORMS) for prefix in names.PREFIXES)


def test_bad_weights_end_with_one_message_and_no_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "w.pt").write_bytes(b"not weights")
    for backbone in (f"ViT-B-32:{tmp_path / 'w.pt'}", f"local-dir:{tmp_path}", f"run:{tmp_path}", "timm:nothing"):
        code = exit_code(
            "run", "--method", "sum", "--variant", "zero-shot", "--dataset", "scenes", "--backbone", backbone, "--out", str(tmp_path / "runs"),
            "--set", "data.train_scenes=48", "--set", "data.report_scenes=12", "--set", "data.select_scenes=8",
        )
        said = capsys.readouterr().err
        assert code == 2 and "Traceback" not in said and len(said.strip().splitlines()) <= 2, said
    assert not list((tmp_path / "runs").glob("*")), "nothing is left"
