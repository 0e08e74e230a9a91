"""CLIP in Hugging Face's layout: its config and names as open_clip's, without `transformers`.

The networks are the same: queries, keys and values are three matrices there and one here, projections are transposed.
The layout is that of `transformers`' CLIPModel (config.json, model.safetensors, preprocessor_config.json); BGE-VL's
plain CLIPs and OpenAI's own conversions are published in it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cirbench.data.images import CLIP_MEAN, CLIP_STD
from cirbench.models.names import read_json
from cirbench.types import CirbenchError, Pixels

__all__ = ["check_vocabulary", "is_hf", "model_config", "open_clip_names", "pixels"]

#: What a field is where config.json leaves it out.
_TEXT = {
    "vocab_size": 49408, "hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 12,
    "num_attention_heads": 8, "max_position_embeddings": 77, "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5,
}
_VISION = {
    "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12,
    "image_size": 224, "patch_size": 32, "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5,
}
#: CLIP's byte-pair vocabulary, the one that open_clip's tokenizer has.
VOCABULARY = 49408
#: PIL's numbers of interpolations.
_RESAMPLE = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic"}


def is_hf(names: Mapping[str, Any]) -> bool:
    """Whether weights have Hugging Face's names."""
    return any(name.endswith("vision_model.embeddings.patch_embedding.weight") for name in names)


def model_config(folder: Path) -> dict[str, Any]:
    """The arguments of `open_clip.model.CLIP` for a folder.

    Raises:
        CirbenchError: a config that is not a plain CLIP's.
    """
    path = folder / "config.json"
    config = read_json(path)
    parts = {}
    for name, usual in (("text", _TEXT), ("vision", _VISION)):
        # Older files give a part twice; the one called _dict counts, as in transformers.
        told = [config.get(f"{name}_config{end}") or {} for end in ("", "_dict")]
        parts[name] = {**usual, **{k: v for part in told for k, v in part.items() if k in usual}}
    text, vision = parts["text"], parts["vision"]
    activations = {part["hidden_act"] for part in parts.values()}
    if len(activations) > 1 or not activations <= {"quick_gelu", "gelu"}:
        named = ", ".join(sorted(map(str, activations)))
        raise CirbenchError(f"{path}: hidden_act is {named}; known are quick_gelu and gelu, the same for both towers.")
    if text["vocab_size"] != VOCABULARY:
        raise CirbenchError(
            f"{path}: a vocabulary of {text['vocab_size']} tokens; only CLIP's own byte-pair vocabulary of "
            f"{VOCABULARY} is read."
        )
    try:
        shared = [
            {
                "layers": p["num_hidden_layers"], "width": p["hidden_size"],
                "mlp_ratio": p["intermediate_size"] / p["hidden_size"], "norm_kwargs": {"eps": p["layer_norm_eps"]},
            } for p in (text, vision)
        ]
        return {
            "embed_dim": int(config.get("projection_dim") or 512), "quick_gelu": activations == {"quick_gelu"},
            "text_cfg": {
                **shared[0], "heads": text["num_attention_heads"], "context_length": text["max_position_embeddings"],
                "vocab_size": VOCABULARY,
            },
            "vision_cfg": {
                **shared[1], "head_width": vision["hidden_size"] // vision["num_attention_heads"],
                "image_size": vision["image_size"], "patch_size": vision["patch_size"],
            },
        }
    except (TypeError, ValueError, ZeroDivisionError) as error:
        raise CirbenchError(f"{path} describes no CLIP: {error}. Fetch or restore the file.") from None


def pixels(folder: Path, size: int) -> Pixels:
    """What preprocessor_config.json says, CLIP's own where it is missing; `size` is the model's input side.

    Raises:
        CirbenchError: a kind of preprocessing that cirbench does not have.
    """
    path = folder / "preprocessor_config.json"
    told = read_json(path) if path.is_file() else {}
    resize, interpolation = told.get("size", size), _RESAMPLE.get(told.get("resample", 3))
    if told.get("do_resize", True) is False or interpolation is None or told.get("do_normalize", True) is False:
        raise CirbenchError(f"{path}: pictures are not resized and normalised as CLIP's are, which is not supported.")
    mean, std = (tuple(told.get(name) or usual) for name, usual in (("image_mean", CLIP_MEAN), ("image_std", CLIP_STD)))
    if isinstance(resize, Mapping):
        side = resize.get("shortest_edge")
        if side is None:
            return Pixels(size, mean, std, "squash", interpolation)
    else:
        side = resize
    # The size of the model counts where clip_size changed it: then the part that is cut off keeps its share.
    crop = told.get("crop_size", side)
    edge: Any = crop.get("height", side) if isinstance(crop, Mapping) else crop
    shorter = round(int(side) * size / int(edge)) if told.get("do_center_crop", True) else size
    return Pixels(size, mean, std, "crop" if shorter == size else f"crop:{shorter}", interpolation)


def check_vocabulary(folder: Path, ids: Mapping[str, int]) -> None:
    """Check that the folder's tokenizer has CLIP's own vocabulary.

    Args:
        folder: with vocab.json or tokenizer.json; without both there is nothing to check.
        ids: token -> id of open_clip's tokenizer, whose special tokens have other names.

    Raises:
        CirbenchError: another vocabulary.
    """
    for name in ("vocab.json", "tokenizer.json"):
        if not (folder / name).is_file():
            continue
        found: Any = read_json(folder / name)
        if name == "tokenizer.json":
            found = (found.get("model") or {}).get("vocab")
        if not isinstance(found, Mapping):
            continue
        other = [t for t, i in found.items() if not t.startswith("<|") and ids.get(t) != i]
        if other:
            raise CirbenchError(
                f"{folder / name}: {len(other)} tokens are not those of CLIP's byte-pair vocabulary, such as "
                f"{other[0]!r}. Only CLIP's own tokenizer is read."
            )


_TOWERS = (
    ("text_model.embeddings.token_embedding.", "token_embedding."),
    ("text_model.embeddings.position_embedding.weight", "positional_embedding"),
    ("text_model.encoder.layers.", "transformer.resblocks."),
    ("text_model.final_layer_norm.", "ln_final."),
    ("vision_model.embeddings.class_embedding", "visual.class_embedding"),
    ("vision_model.embeddings.patch_embedding.", "visual.conv1."),
    ("vision_model.embeddings.position_embedding.weight", "visual.positional_embedding"),
    ("vision_model.encoder.layers.", "visual.transformer.resblocks."),
    ("vision_model.pre_layrnorm.", "visual.ln_pre."),  # so spelled there
    ("vision_model.post_layernorm.", "visual.ln_post."),
    ("text_projection.weight", "text_projection"),
    ("visual_projection.weight", "visual.proj"),
)
_BLOCK = (
    (".self_attn.out_proj.", ".attn.out_proj."), (".layer_norm1.", ".ln_1."), (".layer_norm2.", ".ln_2."),
    (".mlp.fc1.", ".mlp.c_fc."), (".mlp.fc2.", ".mlp.c_proj."),
)
_QKV = re.compile(r"(.*)\.self_attn\.([qkv])_proj\.(weight|bias)$")


def open_clip_names(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights under Hugging Face's names -> the same under open_clip's; names that are in neither are kept."""
    prefix = next(n for n in tensors if n.endswith("vision_model.embeddings.patch_embedding.weight"))
    prefix = prefix.removesuffix("vision_model.embeddings.patch_embedding.weight")
    out: dict[str, Tensor] = {}
    parts: dict[str, dict[str, Tensor]] = {}
    for full, tensor in tensors.items():
        name = full.removeprefix(prefix)
        if name.endswith("embeddings.position_ids"):
            continue  # numbers 0, 1, 2, ... that older versions saved
        for theirs, ours in _TOWERS:
            if name.startswith(theirs):
                name = ours + name.removeprefix(theirs)
                break
        for theirs, ours in _BLOCK:
            name = name.replace(theirs, ours)
        if match := _QKV.match(name):
            parts.setdefault(f"{match[1]}.attn.in_proj_{match[3]}", {})[match[2]] = tensor
        else:
            out[name] = tensor.T.contiguous() if name in ("text_projection", "visual.proj") else tensor
    for name, three in parts.items():
        if set(three) == set("qkv"):  # else the whole is reported as missing
            out[name] = torch.cat([three[letter] for letter in "qkv"])
    return out
