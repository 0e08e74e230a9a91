"""What a method makes its encoders with: CLIP (clip.py), a CNN (cnn.py), an LSTM or GRU over words (lstm_text.py)."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, Literal

from cirbench.models.clip import Clip, load_clip
from cirbench.models.cnn import Cnn, CnnLevels, levels_of, load_cnn
from cirbench.models.lstm_text import GruText, LstmText
from cirbench.models.names import parse
from cirbench.models.timm_models import ImageEncoder, load_image_encoder
from cirbench.models.weights import tensors_sha256, weights_files
from cirbench.models.word_vectors import read_vectors, rows_sha256
from cirbench.settings import unknown
from cirbench.types import CirbenchError

__all__ = ["Clip", "Cnn", "CnnLevels", "Encoders", "GruText", "ImageEncoder", "LstmText"]


class Encoders:
    """Loader that `build` receives for its backbones; each is loaded once and shared.

    Args:
        seed: of the run, for random weights.
        declared: local weights that are part of the run's identity, or None to allow any (measuring, checking).

    Attributes:
        seed: as given.
        loaded: name -> sha256 of the tensors of every pretrained encoder that was made; file of word vectors -> sha256
            of those that were used, and how many of the words they are.
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

    def cnn_levels(
        self, name: str, size: int, levels: Sequence[int], pretrained: bool = True, statistics: str = "imagenet"
    ) -> CnnLevels:
        """The CNN of `cnn`, as its maps at several depths: see `load_cnn` and `levels_of`."""
        return levels_of(self.cnn(name, size, pretrained, statistics), levels, name)

    def words(
        self, vocabulary: Sequence[str], word_dim: int, hidden: int, kind: Literal["lstm", "bigru"] = "lstm",
        vectors: str = "", fixed: bool = False,
    ) -> LstmText | GruText:
        """A network from B strings to states (B, L, hidden) and the mask of words (B, L).

        Its `last(states, mask)` gives the states (B, hidden) in which the whole text was read.

        Args:
            vocabulary: words by id, as `build_vocabulary` makes it.
            word_dim: width of a word's embedding.
            hidden: width of a state; `bigru` gives half of it to each direction.
            kind: `lstm` is `LstmText`, `bigru` is `GruText`.
            vectors: a file that words start from (`read_vectors`), the value of a field of the method's Config that is
                declared with `json_schema_extra={"vectors": True}`; words that it lacks start as without one.
            fixed: the vectors are not trained, and words without one are dropped (`start_from`).

        Raises:
            CirbenchError: an unknown kind, an odd width of `bigru`, a file that cannot be used or that no field names,
                `fixed` without a file.
        """
        kinds: dict[str, type[LstmText] | type[GruText]] = {"lstm": LstmText, "bigru": GruText}
        if kind not in kinds:
            raise unknown("kind of words", kind, kinds)
        if fixed and not vectors:
            raise CirbenchError("fixed=True without `vectors`: random ones would stay as they are. Name a file.")
        made = kinds[kind](vocabulary, word_dim, hidden)
        if vectors:
            if self.declared is not None and vectors not in self.declared:
                raise CirbenchError(
                    f"the method reads the word vectors {vectors!r}, which no field of its Config declares, so the "
                    f"run's id would not depend on them. Give Config a field whose value is {vectors!r}, with "
                    "json_schema_extra={'vectors': True}."
                )
            ids, rows = read_vectors(vectors, made.vocabulary, word_dim)
            made.start_from(ids, rows, fixed)
            found = rows_sha256([made.vocabulary[i] for i in ids], rows)
            self.loaded[vectors] = f"sha256:{found[:32]} ({len(ids)} of {len(made.vocabulary)} words)"
        return made

    def lstm(self, vocabulary: Sequence[str], word_dim: int, hidden: int) -> LstmText:
        """See `LstmText`."""
        return LstmText(vocabulary, word_dim, hidden)
