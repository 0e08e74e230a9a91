"""What a name of weights means: weights that ship, a published tag, a file, a folder, the hub, a finished run.

Nothing here imports torch: names are read, listed and refused before anything is loaded.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from cirbench import json_text
from cirbench.types import CirbenchError

__all__ = [
    "CONFIGS", "FORMS", "PACKAGED", "PACKAGED_CNN", "Name", "is_file", "is_folder", "layout", "listed",
    "nearest_prefix", "parse", "parts_of", "pick", "read_json",
]

#: CLIPs that ship with the package.
PACKAGED = ("scenes-small", "scenes-medium")
PACKAGED_CNN = ("scenes-cnn",)

#: Endings of files that hold weights.
WEIGHTS = (".safetensors", ".pt", ".pth", ".bin", ".ckpt", ".npz")

#: Every form of a name, and what it stands for.
FORMS: tuple[tuple[str, str], ...] = (
    ("scenes-small", "ships with cirbench, trained on scenes (docs/pretrain.md)"),
    ("scenes-medium", "ships with cirbench, trained on scenes (docs/pretrain.md)"),
    ("MODEL:TAG", "any open_clip model and weights, fetched on first use: RN50-quickgelu:openai (the paper's), "
     "RN101-quickgelu:openai, RN50x4-quickgelu:openai, RN50x16-quickgelu:openai, ViT-B-32-quickgelu:openai, "
     "ViT-B-16-quickgelu:openai, ViT-L-14-quickgelu:openai, ViT-B-16-SigLIP:webli, ..."),
    ("MODEL:FILE", "weights of your own for an open_clip model: ViT-B-32:/path/weights.safetensors, or a .pt"),
    ("MODEL:random", "the same architecture with random weights, for tests"),
    ("DIR, local-dir:DIR", "a folder with a CLIP: of `cirbench pretrain clip`, of open_clip (open_clip_config.json) or "
     "of Hugging Face (config.json of a CLIPModel)"),
    ("hf-hub:OWNER/NAME", "the same from the Hugging Face hub, fetched once: hf-hub:BAAI/BGE-VL-base, ..."),
    ("run:FOLDER", "the CLIP that a finished run trained (freeze_clip=false), for a second stage"),
    ("after:METHOD VARIANT", "the CLIP that a run of another method trains first, on the same data with the same seed: "
     "after:sum clip4cir-1"),
    ("timm:NAME", "any timm model as a frozen encoder of pictures, for methods that read no text with it: "
     "timm:vit_small_patch14_dinov2.lvd142m, timm:convnext_base.fb_in22k; also timm:NAME:FILE, timm:NAME:random, "
     "timm:hf-hub:OWNER/NAME, timm:local-dir:DIR"),
)
PREFIXES = ("hf-hub:", "local-dir:", "run:", "timm:")

Kind = Literal["packaged", "folder", "local-dir", "hf-hub", "run", "file", "tag"]
Layout = Literal["small", "open_clip", "hf", "timm", ""]


@dataclass(frozen=True)
class Name:
    """A name of weights, taken apart.

    Attributes:
        text: as written.
        kind: which form it is.
        model: architecture, where the name gives it (`file`, `tag`).
        rest: the tag, the path, or OWNER/NAME.
        timm: whether it is a model of timm (`timm:`).
    """

    text: str
    kind: Kind
    model: str = ""
    rest: str = ""
    timm: bool = False

    @property
    def path(self) -> Path:
        """The file or folder, where the form names one; a leading `~` is the home folder."""
        return Path(self.rest).expanduser()


def parse(text: str) -> Name:
    """Take a name apart; nothing is checked but which form it has.

    Example:
        >>> parse("ViT-B-32:weights/mine.pt")
        Name(text='ViT-B-32:weights/mine.pt', kind='file', model='ViT-B-32', rest='weights/mine.pt', timm=False)
        >>> parse("timm:resnet18.a1_in1k").model
        'resnet18.a1_in1k'
    """
    timm = text.startswith("timm:")
    body = text.removeprefix("timm:")
    kinds: tuple[Kind, ...] = ("hf-hub", "local-dir", "run")
    for kind in kinds:
        if body.startswith(f"{kind}:"):
            return Name(text, kind, "", body.removeprefix(f"{kind}:"), timm)
    if body in (*PACKAGED, *PACKAGED_CNN):
        return Name(text, "packaged", body, "", timm)
    if not timm and is_folder(body):
        return Name(text, "folder", "", body)
    model, colon, rest = body.partition(":")
    if colon and (Path(rest).suffix.lower() in WEIGHTS or "/" in rest or is_file(rest)):
        return Name(text, "file", model, rest, timm)
    return Name(text, "tag", model, rest, timm)


def is_file(path: str | Path) -> bool:
    """Whether there is such a file; a text that cannot be a path names none."""
    try:
        return bool(path) and Path(path).is_file()
    except (OSError, ValueError):
        return False


def is_folder(path: str | Path) -> bool:
    """Whether there is such a folder; a text that cannot be a path names none."""
    try:
        return bool(path) and Path(path).is_dir()
    except (OSError, ValueError):
        return False


def nearest_prefix(text: str) -> str:
    """The prefix that somebody meant who wrote another word before a colon, or ""."""
    word = text.partition(":")[0]
    usual = {"hf": "hf-hub", "hub": "hf-hub", "huggingface": "hf-hub", "local": "local-dir", "dir": "local-dir"}
    near = difflib.get_close_matches(word.lower().replace("_", "-"), [p[:-1] for p in PREFIXES], n=1, cutoff=0.75)
    return usual.get(word.lower(), near[0] if near else "")


# ------------------------------------------------------------------------------------------ folders


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file.

    Raises:
        CirbenchError: it cannot be read, or is no object.
    """
    try:
        found = json_text.parse(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CirbenchError(f"{path} cannot be read as JSON: {error}. Fetch or restore the file.") from None
    if not isinstance(found, dict):
        raise CirbenchError(f"{path} holds no JSON object. Fetch or restore the file.")
    return found


def layout(folder: Path) -> Layout:
    """Who wrote the weights in a folder, "" where nothing says so.

    Raises:
        CirbenchError: a config that cannot be read.
    """
    if (folder / "clip.json").is_file():
        return "small"
    if (folder / "open_clip_config.json").is_file():
        return "open_clip"
    if (folder / "config.json").is_file():
        config = read_json(folder / "config.json")
        built = config.get("architectures")
        if config.get("model_type") == "clip" or (isinstance(built, list) and "CLIPModel" in built):
            return "hf"
        return "timm" if isinstance(config.get("architecture"), str) else ""
    return ""


#: Files of weights of each layout, best first: open_clip's own order, then one of safetensors before one of pickles.
_OPEN_CLIP = (
    "open_clip_model.safetensors", "open_clip_pytorch_model.safetensors", "open_clip_pytorch_model.bin",
    "open_clip_pytorch_model.pth",
)
_PLAIN = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
CONFIGS = {"open_clip": "open_clip_config.json", "hf": "config.json", "timm": "config.json"}
_BESIDE = (
    "preprocessor_config.json", "vocab.json", "merges.txt", "tokenizer.json", "tokenizer_config.json",
    "special_tokens_map.json", "tokenizer.model", "spiece.model", "vocab.txt",
)


def pick(names: list[str], kind: Layout) -> tuple[str, list[str]]:
    """The file of weights that is read ("" if there is none), and all files that count, of a folder's files."""
    order = (*(_OPEN_CLIP if kind == "open_clip" else ()), *_PLAIN)
    others = sorted((n for n in names if "/" not in n and Path(n).suffix in (".safetensors", ".bin", ".pth", ".pt")),
                    key=lambda n: (not n.endswith(".safetensors"), n))
    weights = next((n for n in order if n in names), others[0] if others else "")
    config = CONFIGS.get(kind, "")
    beside = _BESIDE if kind != "timm" else ()
    return weights, sorted(n for n in {config, weights, *beside} if n in names)


def parts_of(folder: Path, weights: str, complete: bool = True) -> list[Path]:
    """The files behind a file of weights: itself, and where it is an index the parts that it names.

    Args:
        folder: of the files.
        weights: name of the file in it.
        complete: every part must be there.

    Raises:
        CirbenchError: a part is missing, or the index is not one.
    """
    path = folder / weights
    if not weights.endswith(".index.json"):
        return [path]
    named = read_json(path).get("weight_map")
    if not isinstance(named, dict) or not all(isinstance(n, str) and "/" not in n for n in named.values()):
        raise CirbenchError(f"{path} names no files of weights (`weight_map`). Fetch or restore the file.")
    parts = [folder / name for name in dict.fromkeys(named.values())]
    missing = [p.name for p in parts if not p.is_file()]
    if missing and complete:
        raise CirbenchError(f"{folder} is incomplete: {missing[0]}, which {weights} names, is missing.")
    return [path, *parts]


def listed(folder: Path) -> list[Path]:
    """The files of a folder that its weights, their preprocessing and their tokenizer are read from.

    Raises:
        CirbenchError: the folder holds no weights that cirbench reads.
    """
    kind = layout(folder)
    names = sorted(p.name for p in folder.iterdir() if p.is_file())
    if kind == "small":
        return [folder / name for name in names]
    weights, chosen = pick(names, kind)
    if not kind or not weights:
        raise CirbenchError(_no_weights(folder, kind, names))
    return sorted({*(folder / n for n in chosen), *parts_of(folder, weights)})


def _no_weights(folder: Path, kind: Layout, names: list[str]) -> str:
    if kind:
        return f"{folder} is incomplete: {CONFIGS[kind]} is there, but no weights (model.safetensors or the like)."
    if "config.json" in names:
        what = read_json(folder / "config.json")
        told = what.get("architectures") or what.get("model_type") or "nothing"
        return (
            f"{folder} holds no CLIP that cirbench reads: its config.json names {told!r}; known are a plain CLIPModel "
            "and open_clip's models."
        )
    return (
        f"{folder} holds no CLIP: clip.json is missing (`cirbench pretrain clip --dataset D --root R --out DIR` "
        "writes one), or open_clip_config.json (open_clip), or config.json (Hugging Face)."
    )
