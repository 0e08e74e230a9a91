"""CLIP: open_clip's models and the small ones of cirbench, as one class whose two towers give one vector each.

A CLIP is named `MODEL:TAG` (`RN50-quickgelu:openai`, `ViT-B-32:laion2b_s34b_b79k`), `MODEL:random` for random weights
from the seed, the name of a CLIP that ships with cirbench (`scenes-small`, `scenes-medium`), or a folder written by
`cirbench pretrain clip`.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cirbench.data.images import CLIP_MEAN, CLIP_STD
from cirbench.models.weights import ASSETS, PACKAGED, fetching, reason, tensors_sha256, weights_id
from cirbench.settings import unknown
from cirbench.types import CirbenchError, Pixels

__all__ = ["Clip", "check_clip", "clip_folder", "load_clip", "wanted_pixels"]


def clip_folder(name: str) -> Path | None:
    """Folder of a small CLIP, or None where `name` is an open_clip model."""
    if name in PACKAGED:
        return ASSETS / name
    folder = Path(name)
    return folder if (folder / "clip.json").is_file() else None


def check_clip(name: str) -> None:
    """Check that the name can be a CLIP; open_clip's own list is only read if necessary.

    Raises:
        CirbenchError: a folder without a CLIP, or an unknown model or tag, with the nearest one.
    """
    if clip_folder(name) is not None:
        return
    import open_clip

    model, _, tag = name.partition(":")
    models = open_clip.list_models()
    # OpenAI writes ViT-B/32 what open_clip calls ViT-B-32.
    if "/" in model and (usual := model.replace("/", "-")) in models:
        raise CirbenchError(f"unknown backbone {name!r}. Did you mean {usual}:{tag or 'TAG'}?")
    if model not in models and ("/" in name or Path(name).is_dir()):
        raise CirbenchError(
            f"{name} holds no CLIP: {Path(name) / 'clip.json'} is missing. `cirbench pretrain clip --dataset D --root "
            "R --out DIR` writes one; published CLIPs are named MODEL:TAG (`cirbench list backbones`)."
        )
    if model not in models:
        raise unknown("backbone", model, [*PACKAGED, *models] if len(models) < 20 else _near(model, models))
    tags = ["random", *open_clip.list_pretrained_tags_by_model(model)]
    if tag and tag not in tags:
        raise unknown(f"weights tag of {model}", tag, tags)
    if not tag:
        raise CirbenchError(f"backbone {name!r} has no weights tag. Write {model}:TAG with one of: {', '.join(tags)}.")


def _near(name: str, models: list[str]) -> list[str]:
    return [*PACKAGED, *difflib.get_close_matches(name, models, n=8, cutoff=0.3)]


class Clip(nn.Module):
    """A CLIP whose towers each give one vector.

    Attributes:
        dim: D, width of the joint space.
        pixels: the input of the image tower.
        key: identifies the weights, for caches and records.
    """

    def __init__(
        self, model: nn.Module, tokenize: Callable[[list[str]], Tensor], dim: int, pixels: Pixels, key: str
    ) -> None:
        super().__init__()
        self.model: Any = model
        self.tokenize, self.dim, self.pixels, self.key = tokenize, dim, pixels, key

    def encode_images(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, D), not normalised."""
        return self.model.encode_image(images.contiguous(memory_format=torch.channels_last))

    def encode_texts(self, texts: Sequence[str]) -> Tensor:
        """B strings -> (B, D), not normalised."""
        device = next(self.model.parameters()).device
        return self.model.encode_text(self.tokenize(list(texts)).to(device))


def load_clip(name: str, frozen: bool = True, seed: int = 0, image_size: int | None = None) -> Clip:
    """A CLIP by name, on the CPU.

    Args:
        name: see the module docstring.
        frozen: without gradients, always in evaluation mode.
        seed: for `MODEL:random`.
        image_size: other input side than the model's own, where its architecture allows one.

    Raises:
        CirbenchError: unknown name or tag, or weights that can be neither found nor fetched.
    """
    check_clip(name)
    folder = clip_folder(name)
    if folder is not None:
        from cirbench.models import small_clip

        model, tokenize, info = small_clip.load(folder)
        if image_size not in (None, int(info["image_size"])):
            raise CirbenchError(
                f"clip_size={image_size}: the CLIP {name} only takes pictures of {info['image_size']} pixels. "
                "Leave clip_size out, or pretrain one of that size (cirbench pretrain clip)."
            )
        pixels = Pixels(int(info["image_size"]), tuple(info["mean"]), tuple(info["std"]))
        clip = Clip(model, tokenize, int(info["embed_dim"]), pixels, weights_id(name))
    else:
        clip = _open_clip(name, seed, image_size)
    clip.to(memory_format=torch.channels_last)
    if frozen:
        clip.requires_grad_(False).eval()
    return clip


def _open_clip(name: str, seed: int, image_size: int | None) -> Clip:
    import open_clip

    model_name, _, tag = name.partition(":")
    extra: dict[str, Any] = {} if image_size is None else {"force_image_size": image_size}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            with fetching():
                model = open_clip.create_model(
                    model_name, pretrained=None if tag == "random" else tag, load_weights=tag != "random", **extra
                )
        except CirbenchError:
            raise
        except Exception as error:
            raise CirbenchError(
                f"the weights {tag!r} of {model_name} could not be loaded: {reason(error)} They are fetched once and "
                f"cached; without a connection use --backbone {PACKAGED[1]} or a CLIP of your own (cirbench pretrain "
                "clip)."
            ) from None
    try:
        with fetching():
            tokenizer = open_clip.get_tokenizer(model_name)
    except Exception as error:
        raise CirbenchError(
            f"the tokenizer of {model_name} could not be loaded: {reason(error)} SigLIP and other models with a "
            "Hugging Face tokenizer need `pip install transformers sentencepiece` and one connection to fetch it."
        ) from None
    pixels = wanted_pixels(model.visual)
    config = open_clip.get_model_config(model_name) or {}
    # The name alone would not distinguish weights republished under it.
    key = f"{name}@{pixels.size}#{tensors_sha256(model)[:32]}"
    return Clip(model, tokenizer, int(config["embed_dim"]), pixels, key)


#: open_clip's names of the modes of `Pixels.resize`.
RESIZE = {"shortest": "crop", "squash": "squash", "longest": "pad"}


def wanted_pixels(visual: Any) -> Pixels:
    """The input that an image tower of open_clip was trained with: its `image_size` and `preprocess_cfg`."""
    size = visual.image_size[0] if isinstance(visual.image_size, tuple) else int(visual.image_size)
    told = getattr(visual, "preprocess_cfg", None) or {}
    return Pixels(
        size, tuple(told.get("mean") or CLIP_MEAN), tuple(told.get("std") or CLIP_STD),
        RESIZE[told.get("resize_mode") or "shortest"], told.get("interpolation") or "bicubic",
    )


