"""Tiny CLIPs and timm models with random weights, in the layouts in which people publish them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import open_clip
import torch
from open_clip.model import CLIP
from safetensors.torch import save_file
from torch import Tensor

TEXTS = ["a red dress, longer", "no sleeves"]
#: Arguments of open_clip's CLIP: two layers, 32 px.
TINY = {
    "embed_dim": 16,
    "vision_cfg": {"layers": 2, "width": 32, "head_width": 16, "patch_size": 16, "image_size": 32},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 24, "heads": 2, "layers": 2},
}
MEAN, STD = [0.4, 0.5, 0.6], [0.2, 0.3, 0.25]


def clip(seed: int = 0) -> CLIP:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = CLIP(**json.loads(json.dumps(TINY))).eval()
        for parameter in model.parameters():  # zeros of a new model would hide a bias that is lost
            parameter.data.add_(0.02 * torch.randn_like(parameter))
    return model


def open_clip_folder(folder: Path, seed: int = 0, name: str = "open_clip_model.safetensors", **preprocess: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "open_clip_config.json").write_text(json.dumps({
        "model_cfg": TINY, "preprocess_cfg": {"mean": MEAN, "std": STD, **preprocess},
    }))
    state = {k: v.contiguous() for k, v in clip(seed).state_dict().items()}
    if name.endswith(".safetensors"):
        save_file(state, folder / name)
    else:
        torch.save(state, folder / name)
    return folder


def hf_config() -> dict[str, Any]:
    return {
        "architectures": ["CLIPModel"], "model_type": "clip", "projection_dim": 12, "logit_scale_init_value": 2.6592,
        "text_config": {
            "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 3,
            "max_position_embeddings": 20, "vocab_size": 49408, "hidden_act": "quick_gelu", "layer_norm_eps": 1e-3,
        },
        "vision_config": {
            "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2,
            "image_size": 32, "patch_size": 8, "hidden_act": "quick_gelu", "layer_norm_eps": 1e-2,
        },
    }


def hf_tensors(config: dict[str, Any], seed: int = 0) -> dict[str, torch.Tensor]:
    """Random weights under the names of Hugging Face's CLIPModel."""
    draw = torch.Generator().manual_seed(seed)
    text, vision, dim = config["text_config"], config["vision_config"], config["projection_dim"]
    patches = (vision["image_size"] // vision["patch_size"]) ** 2
    shapes: dict[str, tuple[int, ...]] = {
        "logit_scale": (), "text_projection.weight": (dim, text["hidden_size"]),
        "visual_projection.weight": (dim, vision["hidden_size"]),
        "text_model.embeddings.token_embedding.weight": (text["vocab_size"], text["hidden_size"]),
        "text_model.embeddings.position_embedding.weight": (text["max_position_embeddings"], text["hidden_size"]),
        "vision_model.embeddings.class_embedding": (vision["hidden_size"],),
        "vision_model.embeddings.patch_embedding.weight": (vision["hidden_size"], 3, *[vision["patch_size"]] * 2),
        "vision_model.embeddings.position_embedding.weight": (patches + 1, vision["hidden_size"]),
    }
    norms = {"text_model.final_layer_norm": text, "vision_model.pre_layrnorm": vision, "vision_model.post_layernorm": vision}
    for tower, part in (("text", text), ("vision", vision)):
        width, wide = part["hidden_size"], part["intermediate_size"]
        for n in range(part["num_hidden_layers"]):
            block = f"{tower}_model.encoder.layers.{n}"
            norms |= {f"{block}.layer_norm1": part, f"{block}.layer_norm2": part}
            linear = {f"self_attn.{x}_proj": (width, width) for x in ("q", "k", "v", "out")}
            linear |= {"mlp.fc1": (wide, width), "mlp.fc2": (width, wide)}
            for name, shape in linear.items():
                shapes |= {f"{block}.{name}.weight": shape, f"{block}.{name}.bias": shape[:1]}
    for name, part in norms.items():
        shapes |= {f"{name}.{kind}": (part["hidden_size"],) for kind in ("weight", "bias")}
    return {name: torch.randn(shape, generator=draw) * 0.3 for name, shape in shapes.items()}


def hf_folder(folder: Path, seed: int = 0, **preprocess: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    config = hf_config()
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "preprocessor_config.json").write_text(json.dumps({
        "do_resize": True, "size": {"shortest_edge": 32}, "do_center_crop": True, "crop_size": {"height": 32, "width": 32},
        "resample": 3, "image_mean": MEAN, "image_std": STD, **preprocess,
    }))
    save_file(hf_tensors(config, seed), folder / "model.safetensors")
    return folder


def register(name: str = "tiny-clip") -> str:
    """Make the tiny CLIP one of open_clip's built-in architectures."""
    from open_clip import factory

    factory._MODEL_CONFIGS[name] = json.loads(json.dumps(TINY))
    assert name in open_clip.list_models()
    return name


def encoded(clip: Any, seed: int = 0) -> tuple[Tensor, Tensor]:
    x = torch.randn(2, 3, clip.pixels.size, clip.pixels.size, generator=torch.Generator().manual_seed(seed))
    with torch.inference_mode():
        return clip.encode_images(x), clip.encode_texts(TEXTS)


def expected() -> tuple[Tensor, Tensor]:
    reference, tokens = clip(), open_clip.SimpleTokenizer()(TEXTS)
    x = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        return reference.encode_image(x), reference.encode_text(tokens)


def same(one: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor]) -> None:
    for a, b in zip(one, other, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


def write(path: Path, what: Any) -> Path:
    if path.suffix == ".safetensors":
        save_file({k: v.contiguous() for k, v in what.items()}, path)
    else:
        torch.save(what, path)
    return path


def keep(hub: Path, repository: str, folder: Path) -> Path:
    """Lay a folder into the hub's cache as it would lie there after a fetch."""
    place = hub / f"models--{repository.replace('/', '--')}"
    (place / "refs").mkdir(parents=True)
    (place / "refs/main").write_text("abc")
    shutil.copytree(folder, place / "snapshots/abc")
    return place / "snapshots/abc"


def timm_file(path: Path, name: str, seed: int = 0, **more: Any) -> Any:
    import timm

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        body = timm.create_model(name, pretrained=False, **more).eval()
    save_file({k: v.contiguous() for k, v in body.state_dict().items()}, path)
    return body
