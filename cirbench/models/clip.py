"""CLIP: open_clip's models and the small ones of cirbench, as one class whose two towers give one vector each.

`names.FORMS` lists how a CLIP may be named: a published tag, a file, a folder, the hub, a finished run.
"""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cirbench.data.images import CLIP_MEAN, CLIP_STD
from cirbench.models import hf_clip
from cirbench.models.checkpoints import fill, read_weights, under_prefix, without_prefix
from cirbench.models.hub import fetching, folder_of, reason
from cirbench.models.names import (
    CONFIGS,
    PACKAGED,
    Name,
    is_file,
    layout,
    listed,
    nearest_prefix,
    parse,
    parts_of,
    pick,
)
from cirbench.models.pseudo_words import encode_pseudo, tower_of
from cirbench.models.timm_models import check_timm, no_text
from cirbench.models.trained_run import trained_run
from cirbench.models.weights import ASSETS, tensors_sha256, weights_id
from cirbench.settings import unknown
from cirbench.types import CirbenchError, Pixels

__all__ = ["Clip", "check_clip", "load_clip", "wanted_pixels", "without_weights"]


def check_clip(name: str) -> None:
    """Check that the name can be a CLIP, or an image encoder of timm; a repository of the hub is fetched.

    Raises:
        CirbenchError: nothing of that name, with the nearest one.
    """
    found = parse(name)
    if found.timm:
        check_timm(found)
    elif found.kind in ("folder", "local-dir", "hf-hub"):
        folder = folder_of(found)
        assert folder is not None
        listed(folder)
        if layout(folder) == "timm":
            usual = f"timm:local-dir:{name}" if found.kind == "folder" else f"timm:{name}"
            raise CirbenchError(f"{name} is an image encoder of timm, without a text tower. It is named {usual}.")
    elif found.kind == "run":
        trained_run(found)
    elif found.kind == "packaged" and found.model not in PACKAGED:
        raise unknown("backbone", name, PACKAGED, f"{name} is a CNN, without a text tower.")
    elif found.kind == "file":
        _check_model(found)
        if not is_file(found.path):
            raise CirbenchError(f"backbone {name!r}: there is no file {found.rest!r}.{_instead(found)}")
    elif found.kind == "tag":
        _check_tag(found)


def _check_model(found: Name) -> None:
    """Check the architecture of `MODEL:...`; open_clip's own list is only read if necessary."""
    import open_clip

    models, model = open_clip.list_models(), found.model
    # OpenAI writes ViT-B/32 what open_clip calls ViT-B-32.
    if "/" in model and (usual := model.replace("/", "-")) in models:
        raise CirbenchError(f"unknown backbone {found.text!r}. Did you mean {usual}:{found.rest or 'TAG'}?")
    if model in models:
        return
    # As the hub's pages show a repository, or as their address.
    if match := re.fullmatch(r"(?:https?://)?(?:huggingface\.co/)?([\w.-]+/[\w.-]+?)/?", found.text):
        raise CirbenchError(
            f"unknown backbone {found.text!r}: there is no such folder. A repository of the Hugging Face hub is named "
            f"hf-hub:{match[1]}, a model of open_clip MODEL:TAG (`cirbench list backbones`); `cirbench pretrain clip` "
            "writes a folder."
        )
    if found.rest and (meant := nearest_prefix(found.text)):
        raise CirbenchError(f"unknown backbone {found.text!r}. Did you mean {meant}:{found.rest}?")
    if "/" in model:
        raise CirbenchError(
            f"{found.text} holds no CLIP: there is no folder of that name. `cirbench pretrain clip --dataset D --root "
            "R --out DIR` writes one; published CLIPs are named MODEL:TAG or hf-hub:OWNER/NAME (`cirbench list "
            "backbones`)."
        )
    import timm

    if timm.is_model(model):
        raise CirbenchError(
            f"backbone {found.text!r} is a model of timm, an image encoder without a text tower. Did you mean "
            f"timm:{found.text}?"
        )
    raise unknown("backbone", model, [*PACKAGED, *models] if len(models) < 20 else _near(model, models))


def _check_tag(found: Name) -> None:
    import open_clip

    _check_model(found)
    model, tag = found.model, found.rest
    tags = ["random", *open_clip.list_pretrained_tags_by_model(model)]
    if tag and tag not in tags:
        raise unknown(f"weights tag of {model}", tag, tags, f"A file is named {model}:/path/weights.safetensors.")
    if not tag:
        raise CirbenchError(
            f"backbone {found.text!r} has no weights tag. Write {model}:TAG with one of: {', '.join(tags)}."
        )


def _instead(found: Name) -> str:
    import open_clip

    tags = open_clip.list_pretrained_tags_by_model(found.model)
    guess = difflib.get_close_matches(Path(found.rest).name, tags, n=1, cutoff=0.6)
    return f" Did you mean {found.model}:{guess[0]}?" if guess else " Check the path."


def without_weights(name: str) -> str:
    """A name of the same shape that needs no fetched weights, for measuring; local weights are read as they are."""
    found = parse(name)
    if found.kind in ("tag", "file"):
        return f"{'timm:' if found.timm else ''}{found.model}:random"
    return without_weights(trained_run(found).base) if found.kind == "run" else name


def _near(name: str, models: list[str]) -> list[str]:
    upper = {model.upper(): model for model in models}
    return [*PACKAGED, *(upper[m] for m in difflib.get_close_matches(name.upper(), list(upper), n=8, cutoff=0.3))]


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

    @property
    def token_width(self) -> int:
        """W, width of a word's embedding in the text tower.

        Raises:
            CirbenchError: a text tower that takes no pseudo-words.
        """
        return int(tower_of(self.model, self.tokenize, self.key).token_embedding.embedding_dim)

    @property
    def logit_scale(self) -> float:
        """The factor of cosines in the contrastive loss that it was trained with, exp of the trained value."""
        return float(self.model.logit_scale.exp())

    def encode_pseudo(self, texts: Sequence[str], pseudo: Tensor, slot: str = "$") -> Tensor:
        """B texts and (B, W) or (B, k, W) pseudo-words -> (B, D), not normalised; see `pseudo_words.encode_pseudo`."""
        return encode_pseudo(self.model, self.tokenize, texts, pseudo, slot, self.key)


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
    found = parse(name)
    if found.timm:
        raise no_text(name)
    clip = _loaded(found, seed, image_size)
    clip.to(memory_format=torch.channels_last)
    if frozen:
        clip.requires_grad_(False).eval()
    return clip


def _loaded(found: Name, seed: int, image_size: int | None) -> Clip:
    if found.kind == "run":
        return _of_run(found, seed, image_size)
    if found.kind == "tag":
        return _open_clip(found.text, seed, image_size)
    if found.kind == "file":
        clip = _open_clip(f"{found.model}:random", seed, image_size, _usual_preprocessing(found.model))
        return _with_weights(clip, read_weights([found.path]), found, image_size)
    folder = ASSETS / found.model if found.kind == "packaged" else folder_of(found)
    assert folder is not None
    if layout(folder) == "small":
        return _small(folder, found.text, image_size)
    return _of_folder(folder, found, image_size)


def _small(folder: Path, name: str, image_size: int | None) -> Clip:
    from cirbench.models import small_clip

    model, tokenize, info = small_clip.load(folder)
    if image_size not in (None, int(info["image_size"])):
        raise CirbenchError(
            f"clip_size={image_size}: the CLIP {name} only takes pictures of {info['image_size']} pixels. "
            "Leave clip_size out, or pretrain one of that size (cirbench pretrain clip)."
        )
    pixels = Pixels(int(info["image_size"]), tuple(info["mean"]), tuple(info["std"]))
    return Clip(model, tokenize, int(info["embed_dim"]), pixels, weights_id(name))


def _of_folder(folder: Path, found: Name, image_size: int | None) -> Clip:
    """A CLIP in open_clip's or in Hugging Face's layout."""
    import open_clip

    kind, weights = layout(folder), pick([p.name for p in folder.iterdir()], layout(folder))[0]
    try:
        with torch.random.fork_rng(devices=[]), fetching():
            if kind == "hf":
                config = hf_clip.model_config(folder)
                if image_size is not None:
                    config["vision_cfg"]["image_size"] = image_size
                model: Any = open_clip.CLIP(**config)
                tokenizer = open_clip.SimpleTokenizer(context_length=config["text_cfg"]["context_length"])
                hf_clip.check_vocabulary(folder, tokenizer.encoder)
                pixels = hf_clip.pixels(folder, _side(model.visual))
            else:
                model = open_clip.create_model(
                    f"local-dir:{folder}", load_weights=False, pretrained_text=False, force_image_size=image_size
                )
                # A repository names its tokenizer by another repository; a folder holds it.
                tokenizer = open_clip.get_tokenizer(found.text if found.kind == "hf-hub" else f"local-dir:{folder}")
                config, pixels = open_clip.get_model_config(f"local-dir:{folder}"), wanted_pixels(model.visual)
    except CirbenchError:
        raise
    except ImportError as error:
        raise CirbenchError(
            f"{found.text}: {reason(error)} Its tokenizer or text tower is of Hugging Face: `pip install transformers "
            "sentencepiece`."
        ) from None
    except Exception as error:
        raise CirbenchError(
            f"{found.text}: no CLIP can be made from {folder / CONFIGS[kind]}: {reason(error)} Fetch or restore the "
            "folder."
        ) from None
    clip = Clip(model, tokenizer, int(config["embed_dim"]), pixels, "")
    files = [p for p in parts_of(folder, weights) if p.suffix != ".json"]
    return _with_weights(clip, read_weights(files), found, image_size)


def _with_weights(clip: Clip, tensors: Mapping[str, Tensor], found: Name, image_size: int | None) -> Clip:
    """Fill a CLIP that was just made; its key then depends on content alone."""
    from open_clip.model import convert_to_custom_text_state_dict, resize_pos_embed

    model, state = clip.model, dict(tensors)
    if hf_clip.is_hf(state):
        state = hf_clip.open_clip_names(state)
    state = without_prefix(state, model.state_dict())
    own = model.state_dict()
    if "positional_embedding" in state and "positional_embedding" not in own:
        state = convert_to_custom_text_state_dict(state)
    for name in ("logit_scale", "logit_bias"):
        if name in state and name in own and state[name].numel() == 1:
            state[name] = state[name].reshape(own[name].shape)  # files differ in whether it is a number or a vector
    if image_size is not None:
        resize_pos_embed(state, model)
    fill(model, state, f"{found.text} does not fit", optional=("logit_bias",))
    clip.key = f"{weights_id(found.text)}@{clip.pixels.size}#{tensors_sha256(model)[:32]}"
    return clip


def _of_run(found: Name, seed: int, image_size: int | None) -> Clip:
    """The CLIP that a run trained, in the architecture and with the preprocessing that the run had."""
    run = trained_run(found)
    base, size = parse(run.base), image_size or run.size
    if run.base_id and weights_id(run.base) != run.base_id:
        raise CirbenchError(
            f"{found.text} started from {run.base}, which has other content now, so its architecture and words are not "
            "known for certain. Restore that CLIP."
        )
    if base.kind == "tag":
        like = _preprocessing(base.model, base.rest)
        clip = _open_clip(f"{base.model}:random", seed, size, like)
    else:
        clip = _loaded(base, seed, size)
    wanted = clip.model.state_dict()
    tensors = read_weights([run.weights])
    prefix = under_prefix(tensors, wanted)
    inside = {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}
    own = {n: t for n, t in inside.items() if n in wanted}
    if not own:
        raise CirbenchError(
            f"{found.text}: this run trained no CLIP (method.freeze_clip=true), it used {run.base} as it is. Name "
            "that, or a run with method.freeze_clip=false."
        )
    if run.resize is not None:
        clip.pixels = dataclasses.replace(clip.pixels, resize=run.resize)
    return _with_weights(clip, own, found, image_size)


def _open_clip(name: str, seed: int, image_size: int | None, like: Mapping[str, Any] | None = None) -> Clip:
    """`MODEL:TAG` or `MODEL:random`; `like` is the preprocessing of weights that are not those of the tag."""
    import open_clip

    model_name, _, tag = name.partition(":")
    extra: dict[str, Any] = {} if image_size is None else {"force_image_size": image_size}
    if like is not None:
        extra["force_preprocess_cfg"] = dict(like)
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


def _preprocessing(model: str, tag: str) -> dict[str, Any]:
    """What a tag's pictures are prepared by, as open_clip keeps it."""
    import open_clip

    told = open_clip.get_pretrained_cfg(model, tag) or {}
    return {n: told[n] for n in ("mean", "std", "interpolation", "resize_mode") if told.get(n)}


def _usual_preprocessing(model: str) -> dict[str, Any]:
    """What all tags of an architecture agree on: SigLIP's pictures are prepared otherwise than CLIP's."""
    import open_clip

    told = [_preprocessing(model, tag) for tag in open_clip.list_pretrained_tags_by_model(model)]
    return told[0] if told and all(one == told[0] for one in told) else {}


#: open_clip's names of the modes of `Pixels.resize`.
RESIZE = {"shortest": "crop", "squash": "squash", "longest": "pad"}


def _side(visual: Any) -> int:
    return int(visual.image_size[0] if isinstance(visual.image_size, tuple) else visual.image_size)


def wanted_pixels(visual: Any) -> Pixels:
    """The input that an image tower of open_clip was trained with: its `image_size` and `preprocess_cfg`."""
    size = _side(visual)
    told = getattr(visual, "preprocess_cfg", None) or {}
    return Pixels(
        size, tuple(told.get("mean") or CLIP_MEAN), tuple(told.get("std") or CLIP_STD),
        RESIZE[told.get("resize_mode") or "shortest"], told.get("interpolation") or "bicubic",
    )


