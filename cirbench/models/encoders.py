"""What a method makes its encoders with: CLIP (clip.py), a CNN (cnn.py), an LSTM over words (lstm_text.py)."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from cirbench.models.clip import Clip, load_clip
from cirbench.models.cnn import Cnn, load_cnn
from cirbench.models.lstm_text import LstmText
from cirbench.models.names import parse
from cirbench.models.timm_models import ImageEncoder, load_image_encoder
from cirbench.models.weights import tensors_sha256, weights_files
from cirbench.types import CirbenchError

__all__ = ["Clip", "Cnn", "Encoders", "ImageEncoder"]


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
        self._images: dict[tuple[Any, ...], ImageEncoder] = {}

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

    def image(self, name: str, image_size: int | None = None) -> Clip | ImageEncoder:
        """A frozen encoder of pictures, for a method that reads no text with it: a CLIP, or any model of timm."""
        if not parse(name).timm:
            return self.clip(name, image_size=image_size)
        self._allow(name)
        key = (name, image_size)
        if key not in self._images:
            self._images[key] = load_image_encoder(name, self.seed, image_size)
            self.loaded[name] = f"sha256:{tensors_sha256(self._images[key])[:32]}"
        return self._images[key]

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
