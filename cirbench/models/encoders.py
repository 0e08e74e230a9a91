"""The backbones a method may ask for: CLIP (open_clip), a CNN feature map (timm), an LSTM over words (lstm_text.py).

A CLIP is named `MODEL:TAG` (`RN50-quickgelu:openai`, `ViT-B-32:laion2b_s34b_b79k`), `MODEL:random` for random weights
from the seed, the name of a CLIP that ships with cirbench (`scenes-small`, `scenes-medium`), or a folder written by
`cirbench pretrain clip`. A CNN is any timm model name, or `scenes-cnn`.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import socket
import textwrap
import urllib.parse
import urllib.request
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cirbench.data.file_hashes import file_sha256s
from cirbench.data.images import CLIP_MEAN, CLIP_STD, IMAGENET_MEAN, IMAGENET_STD
from cirbench.models.lstm_text import LstmText
from cirbench.seeds import digest
from cirbench.types import CirbenchError, Pixels

ASSETS = Path(__file__).parents[1] / "assets"
#: CLIPs that ship with the package.
PACKAGED = ("scenes-small", "scenes-medium")
PACKAGED_CNN = ("scenes-cnn",)


def clip_folder(name: str) -> Path | None:
    """Folder of a small CLIP, or None where `name` is an open_clip model."""
    if name in PACKAGED:
        return ASSETS / name
    folder = Path(name)
    return folder if (folder / "clip.json").is_file() else None


#: Endings of files that hold weights.
WEIGHTS = (".safetensors", ".pt", ".pth", ".bin", ".ckpt", ".npz")


def weights_files(name: str) -> list[Path]:
    """The local files behind a name of weights; none for weights that are published under a name.

    A packaged name, a folder with files of weights in it (all of its files count), or one such file.
    """
    if name in (*PACKAGED, *PACKAGED_CNN):
        return sorted(p for p in (ASSETS / name).iterdir() if p.is_file())
    path = Path(name)
    try:
        if path.is_file():
            return [path] if path.suffix.lower() in WEIGHTS else []
        inside = sorted(p for p in path.iterdir() if p.is_file()) if name and path.is_dir() else []
    except (OSError, ValueError):  # a text that cannot be a path
        return []
    holds = any(p.suffix.lower() in WEIGHTS or p.name == "clip.json" for p in inside)
    return inside if holds else []


def weights_id(name: str) -> str:
    """Identifier of the weights behind a name: a hash of their files, or the name they are published under."""
    files = weights_files(name)
    if not files:
        return name
    # Names of files in a folder count, the folder's own path does not.
    named = [(p.name if len(files) > 1 else "", sha) for p, sha in zip(files, file_sha256s(files), strict=True)]
    return "sha256:" + digest(named)[:32]


def weights_in(values: Any) -> dict[str, str]:
    """Every string in some settings that names local weights -> the hash of their content."""
    if isinstance(values, str):
        return {values: weights_id(values)} if weights_files(values) else {}
    parts = values.values() if isinstance(values, Mapping) else values if isinstance(values, list | tuple) else ()
    return {name: sha for part in parts for name, sha in weights_in(part).items()}


def tensors_sha256(module: nn.Module) -> str:
    """sha256 of a module's parameters and buffers, names and values."""
    hasher = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        hasher.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        hasher.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return hasher.hexdigest()


def check_clip(name: str) -> None:
    """Check that the name can be a CLIP; open_clip's own list is only read if necessary.

    Raises:
        CirbenchError: a folder without a CLIP, or an unknown model or tag, with the nearest one.
    """
    if clip_folder(name) is not None:
        return
    if "/" in name or Path(name).is_dir():
        raise CirbenchError(
            f"{name} holds no CLIP: {Path(name) / 'clip.json'} is missing. "
            "`cirbench pretrain clip --dataset D --root R --out DIR` writes one."
        )
    import open_clip

    from cirbench.settings import unknown

    model, _, tag = name.partition(":")
    models = open_clip.list_models()
    if model not in models:
        raise unknown("backbone", model, [*PACKAGED, *models] if len(models) < 20 else _near(model, models))
    tags = ["random", *open_clip.list_pretrained_tags_by_model(model)]
    if tag and tag not in tags:
        raise unknown(f"weights tag of {model}", tag, tags)
    if not tag:
        raise CirbenchError(f"backbone {name!r} has no weights tag. Write {model}:TAG with one of: {', '.join(tags)}.")


def check_cnn(name: str) -> None:
    """Check that the name is a known CNN.

    Raises:
        CirbenchError: unknown name, with the nearest ones.
    """
    if name in PACKAGED_CNN:
        return
    import timm

    from cirbench.settings import unknown

    if not timm.is_model(name):
        raise unknown("CNN", name, [*PACKAGED_CNN, *timm.list_models(f"*{name.split('.')[0][:6]}*")[:8]])


def _near(name: str, models: list[str]) -> list[str]:
    import difflib

    return [*PACKAGED, *difflib.get_close_matches(name, models, n=8, cutoff=0.3)]


@contextlib.contextmanager
def _fetching() -> Iterator[None]:
    """Load weights by name without the libraries' own logs; an error is reported once, by the caller.

    Where the Hugging Face hub cannot be reached its cache is read at once, instead of after a minute of retries.
    """
    from huggingface_hub import constants

    was, disabled = constants.HF_HUB_OFFLINE, logging.root.manager.disable
    try:
        if not urllib.request.getproxies():
            socket.getaddrinfo(urllib.parse.urlsplit(constants.ENDPOINT).hostname, 443)
    except OSError:
        constants.HF_HUB_OFFLINE = True
    logging.disable(logging.ERROR)
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = was
        logging.disable(disabled)


def _why(error: Exception) -> str:
    """The first line of a library's error message, shortened."""
    said = (str(error).splitlines() or [""])[0]
    return f"{type(error).__name__}: {textwrap.shorten(said.rstrip('.'), 200, placeholder=' ..')}."


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
            with _fetching():
                model = open_clip.create_model(
                    model_name, pretrained=None if tag == "random" else tag, load_weights=tag != "random", **extra
                )
        except CirbenchError:
            raise
        except Exception as error:
            raise CirbenchError(
                f"the weights {tag!r} of {model_name} could not be loaded: {_why(error)} They are fetched once and "
                f"cached; without a connection use --backbone {PACKAGED[1]} or a CLIP of your own (cirbench pretrain "
                "clip)."
            ) from None
    try:
        with _fetching():
            tokenizer = open_clip.get_tokenizer(model_name)
    except Exception as error:
        raise CirbenchError(
            f"the tokenizer of {model_name} could not be loaded: {_why(error)} SigLIP and other models with a Hugging "
            "Face tokenizer need `pip install transformers sentencepiece` and one connection to fetch it."
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


@dataclass(frozen=True)
class CnnInfo:
    """A CNN's feature map: `channels` (C), and the `pixels` it takes as input."""

    channels: int
    pixels: Pixels


class Cnn(nn.Module):
    """A CNN whose output is its last feature map: (B, 3, H, W) -> (B, C, h, w)."""

    def __init__(self, body: nn.Module, info: CnnInfo) -> None:
        super().__init__()
        self.body: Any = body
        self.info = info

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, C, h, w)."""
        return self.body.forward_features(images.contiguous(memory_format=torch.channels_last))


def load_cnn(name: str, size: int, pretrained: bool = True, statistics: str = "imagenet") -> Cnn:
    """A timm CNN as a feature map, trainable.

    Args:
        name: timm model name with its weights tag, or `scenes-cnn`.
        size: input side in pixels.
        pretrained: with the weights of its tag; without, as initialised from torch's seed.
        statistics: `imagenet`, `clip`, or `model` (the model's own), the mean and spread pictures are normalised by.

    Raises:
        CirbenchError: unknown name (with the nearest), no feature map, or weights that cannot be fetched.
    """
    import timm

    check_cnn(name)
    if name in PACKAGED_CNN:
        from safetensors.torch import load_file

        import cirbench.models.small_cnn  # noqa: F401  registers the architecture with timm

        body: Any = timm.create_model("cirbench_smallcnn", num_classes=0)
        if pretrained:
            body.load_state_dict(
                {k: v.float() for k, v in load_file(ASSETS / name / "model.safetensors").items()}
            )
    else:
        try:
            with _fetching() if pretrained else contextlib.nullcontext():
                body = timm.create_model(name, pretrained=pretrained, num_classes=0)
        except Exception as error:
            raise CirbenchError(
                f"the weights of the CNN {name!r} could not be loaded: {_why(error)} They are fetched once and cached; "
                f"without a connection use {PACKAGED_CNN[0]}, or set cnn_pretrained=false to train it from scratch."
            ) from None
    config = getattr(body, "pretrained_cfg", {}) or {}
    mean, std = {
        "imagenet": (IMAGENET_MEAN, IMAGENET_STD),
        "clip": (CLIP_MEAN, CLIP_STD),
        "model": (tuple(config.get("mean", IMAGENET_MEAN)), tuple(config.get("std", IMAGENET_STD))),
    }[statistics]
    with torch.no_grad():
        was = body.training
        shape = body.eval().forward_features(torch.zeros(1, 3, size, size)).shape
        body.train(was)
    if len(shape) != 4:
        raise CirbenchError(f"{name} returns a tensor of shape {tuple(shape)}, not a feature map. Choose a CNN.")
    body.to(memory_format=torch.channels_last)
    return Cnn(body, CnnInfo(int(shape[1]), Pixels(size, mean, std)))


class Encoders:
    """Loader that `build` receives for its backbones; each is loaded once and shared.

    Args:
        seed: of the run, for random weights.
        declared: local weights that are part of the run's identity, or None to allow any (measuring, checking).

    Attributes:
        seed: as given.
        loaded: name -> sha256 of the tensors of every pretrained encoder that was made.
    """

    def __init__(self, seed: int = 0, declared: Collection[str] | None = None) -> None:
        self.seed, self.declared = seed, declared
        self.loaded: dict[str, str] = {}
        self._clips: dict[tuple[Any, ...], Clip] = {}

    def _allow(self, name: str) -> None:
        """Refuse weights outside the run's identity: if they changed in place, the run would keep its id."""
        if self.declared is not None and name not in self.declared and weights_files(name):
            raise CirbenchError(
                f"the method loads the weights {name!r}, which no field of its Config names, so the run's id would not "
                f"depend on them. Give Config a field whose value is {name!r}."
            )

    def clip(self, name: str, frozen: bool = True, image_size: int | None = None) -> Clip:
        """See `load_clip`; a frozen one is shared between calls."""
        self._allow(name)
        key = (name, image_size)
        if frozen and key in self._clips:
            return self._clips[key]
        clip = load_clip(name, frozen, self.seed, image_size)
        self.loaded[name] = f"sha256:{tensors_sha256(clip)[:32]}"
        if frozen:
            self._clips[key] = clip
        return clip

    def cnn(self, name: str, size: int, pretrained: bool = True, statistics: str = "imagenet") -> Cnn:
        """See `load_cnn`."""
        self._allow(name)
        cnn = load_cnn(name, size, pretrained, statistics)
        if pretrained:
            self.loaded[name] = f"sha256:{tensors_sha256(cnn)[:32]}"
        return cnn

    def lstm(self, vocabulary: Sequence[str], word_dim: int, hidden: int) -> LstmText:
        """See `LstmText`."""
        return LstmText(vocabulary, word_dim, hidden)
