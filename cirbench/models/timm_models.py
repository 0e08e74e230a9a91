"""Models of timm by name: `NAME.TAG`, `NAME:FILE`, `NAME:random`, `hf-hub:OWNER/NAME`, `local-dir:DIR`.

The CNN stream takes a model's last map (cnn.py); `load_image_encoder` takes any model's pooled features, frozen:
DINOv2, ViT, ConvNeXt and the like, with the preprocessing that timm notes for the weights.
"""

from __future__ import annotations

import contextlib
import difflib
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cirbench.models.checkpoints import fill, read_weights, without_prefix
from cirbench.models.hub import fetching, folder_of, reason
from cirbench.models.names import PACKAGED_CNN, Name, is_file, layout, listed, parse, parts_of, pick, read_json
from cirbench.models.weights import tensors_sha256, weights_id
from cirbench.settings import unknown
from cirbench.types import CirbenchError, Pixels

__all__ = ["ImageEncoder", "check_timm", "load_image_encoder", "make_body", "no_text"]


def no_text(name: str) -> CirbenchError:
    """The error where a method reads texts with, or trains, an encoder that has pictures only."""
    return CirbenchError(
        f"{name} is an image encoder without a text tower, and always frozen; this method asks for a CLIP, to read "
        "texts with it or to train it. Give it one (`cirbench list backbones`); image_only takes any image encoder."
    )


def check_timm(found: Name) -> None:
    """Check that a name can be a model of timm; a repository of the hub is fetched.

    Raises:
        CirbenchError: nothing of that name, with the nearest ones.
    """
    import timm

    if found.kind == "run":
        raise CirbenchError(f"{found.text}: a run holds a CLIP, not a model of timm.")
    if found.kind == "packaged" and found.timm:
        raise CirbenchError(f"{found.text}: this encoder ships with cirbench. Write {found.model}.")
    if found.kind in ("folder", "local-dir", "hf-hub"):
        folder = folder_of(found)
        assert folder is not None
        if layout(folder) != "timm":
            raise CirbenchError(f"{found.text} holds no model of timm: its config.json names no `architecture`.")
        listed(folder)
        return
    if not timm.is_model(found.model):
        near = difflib.get_close_matches(found.model.partition(".")[0], timm.list_models(), n=8, cutoff=0.5)
        if found.timm:
            raise unknown("model of timm", found.model, near)
        raise unknown("CNN", found.model, [*PACKAGED_CNN, *near])
    model, dot, tag = found.model.partition(".")
    tags = [n.partition(".")[2] for n in timm.list_pretrained(f"{model}.*")]
    if dot and tag not in tags:
        raise unknown(f"weights tag of {model}", tag, tags)
    if found.kind == "file" and not is_file(found.path):
        raise CirbenchError(f"{found.text}: there is no file {found.rest!r}. Check the path.")
    if found.kind == "tag" and found.rest not in ("", "random"):
        raise CirbenchError(
            f"{found.text}: weights of timm are named {model}.TAG, with one of: {', '.join(tags) or '(none)'}; or "
            f"{model}:FILE."
        )


def make_body(found: Name, pretrained: bool = True) -> Any:
    """The model behind a name, without its classifier.

    Args:
        found: see the module docstring; checked before.
        pretrained: with its weights; without, as initialised from torch's generator.

    Raises:
        CirbenchError: weights that cannot be fetched, read, or do not fit.
    """
    import timm

    if found.kind == "tag":
        wanted = pretrained and found.rest != "random"
        with fetching() if wanted else contextlib.nullcontext():
            return timm.create_model(found.model, pretrained=wanted, num_classes=0)
    if found.kind == "file":
        body, paths = timm.create_model(found.model, pretrained=False, num_classes=0), [found.path]
    else:
        folder = folder_of(found)
        assert folder is not None
        body, paths = _of_config(folder, found), _weights_of(folder)
    if pretrained:
        _fill(body, read_weights(paths), found)
    return body


def _of_config(folder: Path, found: Name) -> Any:
    import timm

    config = read_json(folder / "config.json")
    # Older repositories hold the fields of `pretrained_cfg` beside `architecture`.
    told, arguments = config.get("pretrained_cfg") or config, config.get("model_args") or {}
    known = timm.models.PretrainedCfg.__dataclass_fields__.keys() - {"url", "file", "state_dict"}
    notes = {k: tuple(v) if isinstance(v, list) else v for k, v in told.items() if k in known}
    try:
        return timm.create_model(
            config["architecture"], pretrained=False, num_classes=0, pretrained_cfg_overlay=notes, **arguments
        )
    except Exception as error:
        raise CirbenchError(
            f"{found.text}: no model of timm can be made from {folder / 'config.json'}: {reason(error)}"
        ) from None


def _weights_of(folder: Path) -> list[Path]:
    weights, _ = pick([p.name for p in folder.iterdir()], "timm")
    return [p for p in parts_of(folder, weights) if p.suffix != ".json"]


def _fill(body: nn.Module, tensors: dict[str, Tensor], found: Name) -> None:
    """Load weights, converted by timm where their names are those of an original release."""
    own = body.state_dict()
    tensors = without_prefix(tensors, own)
    heads = (getattr(body, "pretrained_cfg", None) or {}).get("classifier") or ()
    heads = [f"{head}." for head in ([heads] if isinstance(heads, str) else heads)]

    def used(named: dict[str, Tensor]) -> dict[str, Tensor]:
        """All but a classifier."""
        return {n: t for n, t in named.items() if n in own or not any(n.startswith(head) for head in heads)}

    convert = getattr(sys.modules[type(body).__module__], "checkpoint_filter_fn", None)
    if convert is not None and own.keys() != used(tensors).keys():
        with contextlib.suppress(Exception):  # of no release that timm knows: the list of misfits says so
            tensors = dict(convert(dict(tensors), body))
    fill(body, used(tensors), f"{found.text} does not fit")


class ImageEncoder(nn.Module):
    """A frozen image encoder: (B, 3, H, W) -> (B, D), pooled. It is an `Encoder` of types.py without texts.

    Attributes:
        dim: D.
        pixels: its input.
        key: identifies the weights, for caches and records.
    """

    def __init__(self, body: nn.Module, name: str, dim: int, pixels: Pixels) -> None:
        super().__init__()
        self.body, self.name, self.dim, self.pixels = body, name, dim, pixels
        self.key = f"image:{weights_id(name)}@{pixels.size}#{tensors_sha256(body)[:32]}"

    def encode_images(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, D), not normalised."""
        return self.body(images.contiguous(memory_format=torch.channels_last))

    def encode_texts(self, texts: Sequence[str]) -> Tensor:
        """Refused."""
        raise no_text(self.name)


def load_image_encoder(name: str, seed: int = 0, image_size: int | None = None) -> ImageEncoder:
    """A timm model's pooled features, frozen, on the CPU.

    Args:
        name: `timm:` and one of the forms of the module docstring.
        seed: for `timm:NAME:random`.
        image_size: other input side than the model's own, where its architecture allows one.

    Raises:
        CirbenchError: unknown name, weights that cannot be had, or a size that the model does not take.
    """
    from timm.data import resolve_model_data_config

    found = parse(name)
    check_timm(found)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            body = make_body(found)
        except CirbenchError:
            raise
        except Exception as error:
            raise CirbenchError(
                f"the weights of {name} could not be loaded: {reason(error)} They are fetched once and kept; without a "
                f"connection give a file, timm:{found.model.partition('.')[0]}:/path/weights.safetensors."
            ) from None
    told = resolve_model_data_config(body)
    size = image_size or int(told["input_size"][1])
    pixels = timm_pixels(name, told, size)
    body.eval().requires_grad_(False).to(memory_format=torch.channels_last)
    try:
        if image_size is not None and hasattr(body, "set_input_size"):
            body.set_input_size(img_size=image_size)
        with torch.inference_mode():
            shape = body(torch.zeros(1, 3, size, size)).shape
    except Exception as error:
        raise CirbenchError(
            f"{name} cannot encode pictures of {size} pixels: {reason(error)} Its own size is {told['input_size'][1]}."
        ) from None
    if len(shape) != 2:
        raise CirbenchError(f"{name} returns a tensor of shape {tuple(shape)}, not one vector for each picture.")
    return ImageEncoder(body, name, int(shape[1]), pixels).eval()


def timm_pixels(name: str, told: dict[str, Any], size: int) -> Pixels:
    """timm's evaluation transform as `Pixels`.

    Raises:
        CirbenchError: a transform that cirbench does not have.
    """
    if told["input_size"][1] != told["input_size"][2] or told.get("crop_mode", "center") not in ("center", "squash"):
        raise CirbenchError(
            f"{name}: pictures of {told['input_size']}, crop_mode {told.get('crop_mode')!r}; only square ones are "
            "taken, cut from the centre or squashed."
        )
    side = math.floor(size / told["crop_pct"])
    resize = "squash" if told.get("crop_mode") == "squash" else "crop"
    resize = resize if side == size else f"{resize}:{side}"
    return Pixels(size, tuple(told["mean"]), tuple(told["std"]), resize, told["interpolation"])


