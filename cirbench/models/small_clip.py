"""A small CLIP as a folder: `clip.json` (its shape), `vocab.txt` (one word per line), `model.safetensors` (fp16).

The model is open_clip's own `CLIP` class with a small image tower and a word-level tokenizer: the byte-pair table of
the large CLIPs alone would be 9 MB. Nothing is unpickled.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from open_clip.model import CLIP
from pydantic import ValidationError
from safetensors.torch import load_file
from safetensors.torch import save as pack
from torch import Tensor

import cirbench.models.small_cnn  # noqa: F401  registers the image towers with timm
from cirbench.data.reading import get, read_json
from cirbench.files import replacing
from cirbench.settings import Field, Settings
from cirbench.types import CirbenchError

FORMAT = 1
CONTEXT = 32
PAD, UNKNOWN, START, END = "<pad>", "<unk>", "<start>", "<end>"
MEAN, STD = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)
FILES = ("vocab.txt", "model.safetensors", "clip.json")  # written last: a folder with it is complete

#: Shapes that `pretrain_clip` knows: embed_dim, image tower, text tower.
SIZES: Mapping[str, Mapping[str, Any]] = {
    "small": {"embed_dim": 128, "tower": "cirbench_smallcnn", "width": 64, "heads": 4, "layers": 2},
    "medium": {"embed_dim": 192, "tower": "cirbench_smallcnn_wide", "width": 128, "heads": 4, "layers": 2},
}
Positive = Annotated[float, Field(gt=0)]
_WORD = re.compile(r"[a-z0-9]+")


def split_words(text: str) -> list[str]:
    """Lower-case ASCII words and numbers; accents are dropped, all other characters separate words.

    Example:
        >>> split_words("A Café-style dress, size 12")
        ['a', 'cafe', 'style', 'dress', 'size', '12']
    """
    plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode("ascii")
    return _WORD.findall(plain.lower())


class WordTokenizer:
    """Words -> ids. `<end>` has the largest id, because open_clip's pooling looks for the maximum.

    Args:
        words: the vocabulary without the special words.
        context: ids per text; longer texts are cut, the end token is kept.
    """

    def __init__(self, words: Sequence[str], context: int = CONTEXT) -> None:
        self.context_length = context
        self.vocabulary = [PAD, UNKNOWN, START, *words, END]
        self.ids = {word: i for i, word in enumerate(self.vocabulary)}
        if len(self.ids) != len(self.vocabulary):
            twice = [w for w, n in Counter(self.vocabulary).items() if n > 1]
            raise CirbenchError(f"the vocabulary names {twice[0]!r} twice; each word may occur once.")

    @classmethod
    def from_texts(cls, texts: Iterable[str], min_count: int = 2, limit: int = 8192) -> WordTokenizer:
        """The words of the texts, most frequent first, equal counts in alphabetical order.

        Args:
            texts: captions to take words from.
            min_count: rarer words become unknown words.
            limit: maximum number of words.
        """
        counts = Counter(word for text in texts for word in split_words(text))
        kept = sorted((w for w, n in counts.items() if n >= min_count), key=lambda w: (-counts[w], w))
        return cls(kept[:limit])

    def __len__(self) -> int:
        return len(self.vocabulary)

    @property
    def sot_token_id(self) -> int:
        """The id that every text begins with, under open_clip's name for it."""
        return self.ids[START]

    @property
    def eot_token_id(self) -> int:
        """The id that every text ends with, under open_clip's name for it."""
        return self.ids[END]

    def encode(self, text: str) -> list[int]:
        """The ids of a text's words, without start and end, however many."""
        unknown = self.ids[UNKNOWN]
        return [self.ids.get(w, unknown) for w in split_words(text)]

    def __call__(self, texts: str | Sequence[str]) -> Tensor:
        """n strings -> (n, context) int64: start, words, end, then padding."""
        texts = [texts] if isinstance(texts, str) else texts
        out = torch.zeros(len(texts), self.context_length, dtype=torch.long)
        for row, text in enumerate(texts):
            words = self.encode(text)[: self.context_length - 2]
            out[row, : len(words) + 2] = torch.tensor([self.sot_token_id, *words, self.eot_token_id])
        return out


def config_of(size: str, vocabulary: int, image_size: int, context: int = CONTEXT) -> dict[str, Any]:
    """Arguments of `open_clip.model.CLIP` for one of `SIZES`.

    Raises:
        CirbenchError: no such size.
    """
    if size not in SIZES:
        from cirbench.settings import unknown

        raise unknown("size", size, SIZES)
    shape = SIZES[size]
    return {
        "embed_dim": shape["embed_dim"],
        "vision_cfg": {
            "timm_model_name": shape["tower"], "timm_pool": "grid", "timm_proj": "", "image_size": image_size,
        },
        "text_cfg": {
            "context_length": context, "vocab_size": vocabulary, "width": shape["width"],
            "heads": shape["heads"], "layers": shape["layers"], "pool_type": "argmax",
        },
    }


def save(
    folder: str | Path, model: CLIP, tokenizer: WordTokenizer, config: Mapping[str, Any],
    mean: Sequence[float] = MEAN, std: Sequence[float] = STD, trained: Mapping[str, Any] | None = None,
) -> None:
    """Write the folder; every file under a temporary name first, `clip.json` last.

    Args:
        folder: created if needed; an older CLIP in it is replaced.
        model: built with `config`.
        tokenizer: its words are saved.
        config: arguments of `open_clip.model.CLIP`.
        mean: per channel, of values in 0..1.
        std: per channel.
        trained: how it was trained, for readers of the file.
    """
    folder = Path(folder)
    described = {
        "format": FORMAT, "model": dict(config), "image_size": config["vision_cfg"]["image_size"],
        "mean": list(mean), "std": list(std), "trained": dict(trained or {}),
    }
    words = "".join(f"{w}\n" for w in tokenizer.vocabulary[3:-1])
    # Files are renamed from the last of the line to the first, when all of them are written.
    with (
        replacing(folder / "clip.json") as clip, replacing(folder / "model.safetensors") as weights,
        replacing(folder / "vocab.txt") as vocabulary,
    ):
        vocabulary.write(words.encode())
        weights.write(pack(half(model.state_dict())))
        clip.write((json.dumps(described, indent=1) + "\n").encode())
        for file in (vocabulary, weights, clip):
            file.flush()
        (folder / "clip.json").unlink(missing_ok=True)


def half(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Floats as fp16, contiguous; integers as they are."""
    return {k: (v.half() if v.is_floating_point() else v).contiguous() for k, v in state.items()}


class _Image(Settings):
    """Image tower, as open_clip names its settings."""

    timm_model_name: Literal["cirbench_smallcnn", "cirbench_smallcnn_wide"]
    timm_pool: str
    timm_proj: str
    image_size: int = Field(ge=8, le=1024)


class _Text(Settings):
    """Text tower. A name of published weights is no setting of it: open_clip would fetch them."""

    context_length: int = Field(ge=3, le=1024)
    vocab_size: int = Field(ge=4, le=1_000_000)
    width: int = Field(ge=1, le=1024)
    heads: int = Field(ge=1, le=64)
    layers: int = Field(ge=1, le=24)
    pool_type: Literal["argmax"]


class _Model(Settings):
    """Arguments of `open_clip.model.CLIP`, within what a small CLIP may be."""

    embed_dim: int = Field(ge=1, le=4096)
    vision_cfg: _Image
    text_cfg: _Text


class _Described(Settings):
    """`clip.json`."""

    format: int
    model: _Model
    image_size: int = Field(ge=8, le=1024)
    mean: tuple[float, float, float]
    std: tuple[Positive, Positive, Positive]
    trained: dict[str, Any] = Field(default_factory=dict)


def _described(path: Path) -> _Described:
    """`clip.json`, checked.

    Raises:
        CirbenchError: another format, or a field that is missing, of another type or out of range.
    """
    found = read_json(path)
    version = get(found, "format", int, str(path))
    if version != FORMAT:
        raise CirbenchError(
            f"{path} has format {version}; this cirbench reads {FORMAT}. Train it again, or use the cirbench that "
            "wrote it."
        )
    try:
        out = _Described(**found)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise CirbenchError(
            f"{path}: {place}: {first['msg'][0].lower()}{first['msg'][1:]} ({str(first.get('input'))[:60]} is given). "
            "Restore the file, or train the CLIP again with `cirbench pretrain clip`."
        ) from None
    if out.image_size != out.model.vision_cfg.image_size:
        raise CirbenchError(
            f"{path}: image_size is {out.image_size}, and that of the model is {out.model.vision_cfg.image_size}."
        )
    return out


def load(folder: str | Path) -> tuple[CLIP, WordTokenizer, dict[str, Any]]:
    """The model in float32 and evaluation mode, its tokenizer, and embed_dim, image_size, mean, std.

    Raises:
        CirbenchError: a file is missing or is not what `save` wrote.
    """
    folder = Path(folder)
    missing = [name for name in FILES if not (folder / name).is_file()]
    if missing:
        raise CirbenchError(
            f"{folder} is not a small CLIP: {missing[0]} is missing. A complete folder holds {', '.join(FILES)}; "
            "`cirbench pretrain clip --dataset D --root R --out DIR` writes one."
        )
    described = _described(folder / "clip.json")
    config = described.model.model_dump()
    try:
        words = (folder / "vocab.txt").read_text(encoding="utf-8").splitlines()
        tokenizer = WordTokenizer(words, config["text_cfg"]["context_length"])
        if len(tokenizer) != config["text_cfg"]["vocab_size"]:
            raise CirbenchError(
                f"{folder / 'vocab.txt'} has {len(words)} words, but clip.json says "
                f"{config['text_cfg']['vocab_size'] - 4}. The files belong to different CLIPs."
            )
        with torch.random.fork_rng(devices=[]):  # building draws weights that are overwritten at once
            model = CLIP(**config)
        state = load_file(folder / "model.safetensors")
        model.load_state_dict({k: v.float() if v.is_floating_point() else v for k, v in state.items()})
        if not all(bool(torch.isfinite(v).all()) for v in model.state_dict().values()):
            raise CirbenchError(f"{folder / 'model.safetensors'} holds NaN or infinite values. Restore it.")
        info = {"embed_dim": config["embed_dim"], "image_size": described.image_size}
        info |= {"mean": list(described.mean), "std": list(described.std)}
    except CirbenchError:
        raise
    except Exception as error:
        # open_clip and timm check little of what they are given: a damaged file may raise nearly anything.
        first = (str(error).splitlines() or [""])[0][:200]
        raise CirbenchError(
            f"the small CLIP in {folder} cannot be read: {type(error).__name__}: {first}. "
            "Restore its files, or train it again with `cirbench pretrain clip`."
        ) from None
    return model.eval(), tokenizer, info
