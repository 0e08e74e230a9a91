"""The whole vocabulary of cirbench; everything else is written in these words.

Query = reference image + modification text + target image(s). Gallery = the images ranked.
Shapes use the same letters everywhere: B queries, N gallery images, D features, L tokens, K cut-off.

Nothing here imports torch: naming, listing and checking things must stay cheap.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import PurePath
from typing import TYPE_CHECKING, Any
from typing import Protocol as Interface

if TYPE_CHECKING:
    import PIL.Image
    from torch import Tensor
    from torch.optim import Optimizer


#: Characters of a message that are shown.
MESSAGE = 4000


def short(text: str, most: int) -> str:
    """A text for a message, its middle left out where it is longer than anybody reads."""
    return text if len(text) <= most else f"{text[: most * 2 // 3]} ... {text[-most // 4 :]}"


def shown(value: object, most: int = 120) -> str:
    """`repr` of a value for a message, cut where it is long."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # a number of thousands of digits
        text = f"a {type(value).__name__} too long to be shown"
    return text if len(text) <= most else f"{text[:most]} ..."


class CirbenchError(Exception):
    """Bad input, reported in one message: what, the value received, the nearest valid one, what to do.

    The command line prints it without a traceback and exits with code 2. Values of files stand in messages; one of
    thousands of characters is shown in part.
    """

    def __str__(self) -> str:
        return short(super().__str__(), MESSAGE)


class MethodError(CirbenchError):
    """A function of a plugin breaks its contract: file, line and name of the function, then what was expected.

    Args:
        function: of the plugin; anything callable.
        message: what it did, what was expected, what was received.
    """

    def __init__(self, function: object, message: str) -> None:
        code = getattr(inspect.unwrap(getattr(function, "__func__", function)), "__code__", None)  # type: ignore[arg-type]
        place = f"{PurePath(code.co_filename).name}, line {code.co_firstlineno}, in {code.co_name}: " if code else ""
        super().__init__(place + message)


# --------------------------------------------------------------------------------------- data


@dataclass(frozen=True, slots=True)
class Query:
    """One composed query.

    Attributes:
        id: unique inside its split and stable across machines.
        reference: image id of the reference image.
        texts: the captions as annotated; a text form turns them into the string(s) a method reads.
        targets: image ids that count as a hit (any of them; see `Protocol`). Empty where labels are hidden.
        group: unit of group averages (a FashionIQ category, a scenes mix, ...); "" where there is none.
        candidates: the images this query ranks, where every query has a gallery of its own (GeneCIS), else None.
        extra: anything else worth keeping in the record (edit type, boxes, graded labels, subset members).
    """

    id: str
    reference: str
    texts: tuple[str, ...]
    targets: tuple[str, ...]
    group: str = ""
    candidates: tuple[str, ...] | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Split:
    """Queries and what they rank.

    Attributes:
        name: the role (`train`, `select`, `report`) or the official name (`val`).
        queries: in file order.
        galleries: gallery name -> group -> image ids. The group "" holds for every group that is not named.
            A training split may have none.
    """

    name: str
    queries: tuple[Query, ...]
    galleries: Mapping[str, Mapping[str, tuple[str, ...]]] = field(default_factory=dict)

    def images(self) -> list[str]:
        """Every image id of this split once: galleries first, then references and targets, in file order."""
        seen: dict[str, None] = {}
        for groups in self.galleries.values():
            for ids in groups.values():
                seen.update(dict.fromkeys(ids))
        for query in self.queries:
            seen[query.reference] = None
            seen.update(dict.fromkeys(query.targets))
            seen.update(dict.fromkeys(query.candidates or ()))
        return list(seen)


class ImageSource(Interface):
    """Where pictures come from: a folder, or a renderer."""

    def open(self, image_id: str) -> PIL.Image.Image:
        """The decoded RGB picture. Raises CirbenchError naming the file where it cannot be read."""
        ...

    def fingerprint(self, image_ids: Sequence[str]) -> str:
        """A hash of what `open` returns for these ids: other pictures under equal names give another."""
        ...


@dataclass(frozen=True)
class Protocol:
    """How a ranking is scored: a value with a name, printed beside every number.

    Attributes:
        name: e.g. `fiq-original-keep-ab`.
        form: name of the text form whose rankings it scores (`DatasetSpec.forms`).
        gallery: name of a gallery of the split, or `own` for `Query.candidates`.
        drop_reference: whether the reference image is taken out of the gallery of its query.
        metrics: metric names in the order shown (`R@1`, `Rs@1`, `mAP@5`, ...), see scoring/metrics.py.
        hit: `targets` (any of `Query.targets`), or another rule that scoring/protocol_scoring.py names.
        average: `queries`, or `groups` for the unweighted mean over groups.
        summary: the metric shown when there is room for one.
        known_as: papers and repositories that use it.
        note: one sentence of explanation.
    """

    name: str
    metrics: tuple[str, ...]
    form: str = "text"
    gallery: str = "all"
    drop_reference: bool = True
    hit: str = "targets"
    average: str = "queries"
    summary: str = "R@1"
    known_as: tuple[str, ...] = ()
    note: str = ""


@dataclass(frozen=True)
class Dataset:
    """A loaded dataset: what `load` of a dataset file returns.

    Attributes:
        splits: role -> split.
        images: where the pictures come from.
        protocols: default first.
        fingerprint: hash of annotations and knobs; the image set has a fingerprint of its own.
        captions: image id -> captions of single training images, for pretraining; may be empty.
        forms: text form -> function from a query to its rows; each row is the strings whose embeddings are averaged.
        notes: sentences for the record (missing images and the like).
    """

    name: str
    splits: Mapping[str, Split]
    images: ImageSource
    protocols: tuple[Protocol, ...]
    fingerprint: str
    captions: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    forms: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


# ------------------------------------------------------------------------------ what a method needs


@dataclass(frozen=True)
class Pixels:
    """A picture as pixels: (B, 3, size, size) float32, normalised.

    Attributes:
        size: side in pixels.
        resize: `crop` (shorter side to size, centre crop), `squash`, `pad` (square), or `targetpad` (pad to aspect
            1.25, then crop; CLIP4Cir). `crop:S`, `squash:S` resize to S pixels, then cut out the centre.
        interpolation: `bicubic` or `bilinear`.
        mean, std: per channel, of values in 0..1.
        stored: side that pictures are resized to and kept at, >= size; None for `size`. `size` is cut from it: from
            the centre, and in training as `train.crop` says.
        pad: `zero` or `white`, the colour of what `pad` and `targetpad` add.
    """

    size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    resize: str = "crop"
    interpolation: str = "bicubic"
    stored: int | None = None
    pad: str = "zero"

    @property
    def side(self) -> int:
        """Side of the pictures that are kept."""
        return self.size if self.stored is None else self.stored

    def __repr__(self) -> str:
        # Keys of caches hold it: fields that are newer than they are left out where they change nothing.
        newer = {"stored": None, "pad": "zero"}
        told = {f.name: getattr(self, f.name) for f in fields(self)}
        return f"Pixels({', '.join(f'{n}={v!r}' for n, v in told.items() if n not in newer or v != newer[n])})"


class Encoder(Interface):
    """An encoder of pictures, texts or both whose features can be cached; `Encoders.clip` makes one.

    Attributes:
        key: identifies its weights, whatever they are called.
        dim: D, width of a feature.
        pixels: the input of its image tower.
    """

    key: str
    dim: int
    pixels: Pixels

    def encode_images(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, D)."""
        ...

    def encode_texts(self, texts: Sequence[str]) -> Tensor:
        """B strings -> (B, D)."""
        ...

    def parameters(self) -> Iterator[Tensor]:
        """Its weights; it computes on their device."""
        ...

    def to(self, device: Any) -> Any:
        """Itself, moved to a device."""
        ...


@dataclass(frozen=True)
class Frozen:
    """Features of a frozen encoder, (B, D) float32, computed once and cached."""

    encoder: Encoder


@dataclass(frozen=True)
class Inputs:
    """The inputs a method needs of an image and of a text, each under a name of its own choosing."""

    images: Mapping[str, Pixels | Frozen] = field(default_factory=dict)
    texts: Mapping[str, Frozen] = field(default_factory=dict)


@dataclass
class QueryBatch:
    """B queries: `reference[name]` and `text[name]` as declared in `Inputs`, `words` the strings themselves."""

    reference: dict[str, Tensor]
    text: dict[str, Tensor]
    words: list[str]


@dataclass
class TrainBatch(QueryBatch):
    """B training triplets.

    Attributes:
        target: like `reference`, of the target images.
        positives: (B, B) bool; [i, j] is whether target j counts as a hit for query i. The diagonal is True.
    """

    target: dict[str, Tensor]
    positives: Tensor


@dataclass(frozen=True)
class TrainView:
    """What a method may know of the training set when it is built: no picture, no label.

    Attributes:
        texts: the training texts in file order (a vocabulary is built from them).
        triplets: how many there are.
        captions: of single training pictures (`Dataset.captions`), then the lines of `train.captions`; none belongs to
            a picture of `select` or `report`. Empty where there are none, and where weights are loaded.
    """

    texts: Sequence[str]
    triplets: int
    captions: Sequence[str] = ()


@dataclass(frozen=True)
class Corpus:
    """The training pictures, which a method may study once before training: no triplet, no label.

    Attributes:
        images: input name -> (N, D) features, for the inputs that are `Frozen`; those of `train.pictures` come last.
        captions: of each of the N pictures; empty where it has none.
    """

    images: Mapping[str, Tensor]
    captions: Sequence[Sequence[str]]


class Method(Interface):
    """A composed retrieval method. No base class, no registration: a module with `build` and these functions."""

    inputs: Inputs

    def encode_queries(self, batch: QueryBatch) -> Tensor:
        """(B, D), compared with `encode_images` by dot product."""
        ...

    def encode_images(self, images: Mapping[str, Tensor]) -> Tensor:
        """(N, D)."""
        ...

    # Trainable methods have these two as well.

    def optimizers(self) -> Mapping[str, Optimizer]:
        """Name -> optimizer; the names are those that `losses` yields."""
        ...

    def losses(self, batch: TrainBatch) -> Iterator[tuple[str, Tensor, Mapping[str, float | Tensor]]]:
        """Yield (optimizer name, loss, logs: numbers or tensors of one); each is stepped before the next is asked."""
        ...


class OptionalHooks(Interface):
    """What a method may have as well; the harness asks for each by `hasattr`."""

    def score(self, queries: Tensor, gallery: Tensor) -> Tensor:
        """(B, D), (N, D) -> (B, N), higher is better; by default the dot product.

        The gallery comes block by block, real images only, so a score may depend on its query and its image alone.
        """
        ...

    def prepare(self, corpus: Corpus) -> None:
        """Called once before training, resumed or of no epochs; what evaluation needs goes into buffers."""
        ...

    def adapt(self, queries: Tensor, gallery: Tensor) -> Tensor:
        """(B, D), (N, D) -> (B, D'): called once for each gallery that is ranked, before `score`.

        A row may depend on its query and on the gallery as a set, not on the other queries.
        """
        ...

    def start_epoch(self, epoch: int) -> float | None:
        """Called before each epoch of training, in training mode, and again where a run is resumed in its middle.

        It may set modes and `requires_grad`; what it does may depend on the epoch (from 0) alone. It returns the
        factor of this epoch's learning rate, >= 0; None for 1.
        """
        ...

    def modality_weights(self, batch: QueryBatch) -> Mapping[str, Tensor]:
        """Stream -> (B,) share of the image in the query, 0..1."""
        ...

    def contrasts(self, batch: TrainBatch) -> Mapping[str, tuple[Tensor, Tensor, float]]:
        """Stream -> queries (B, D), targets (B, D), temperature: what its contrastive loss compares
        (runs/mutual_information.py)."""
        ...

    def explain(self, batch: QueryBatch) -> Explanation:
        """Words and regions that the method attends to."""
        ...

    def extra_state(self) -> dict[str, Any]:
        """JSON values that are saved with the weights, and given to `build` as `state`."""
        ...


# --------------------------------------------------------------------------------------- results


@dataclass(frozen=True)
class Download:
    """One file that `cirbench data get` fetches.

    Attributes:
        path: where it goes under the root.
        urls: mirrors in order of preference.
        sha256: of the whole file; "" where it is not known.
        unpack: folder under the root the archive is unpacked into, or "" for a plain file.
        pictures: holds only pictures, so the annotations do not need it.
    """

    path: str
    urls: tuple[str, ...]
    sha256: str = ""
    unpack: str = ""
    pictures: bool = False


@dataclass(frozen=True)
class DatasetSpec:
    """The facts of a dataset, declared as a value in its file.

    Attributes:
        name: as on the command line.
        title: one line.
        protocols: all of them, default first.
        counts: what `data check` asserts, name -> exact number, under the names the dataset file uses.
        files: annotation files expected under the root, relative.
        layout: a short text: which folders and names are accepted.
        citation: paper, venue, year.
        licence: note for the user.
        needs_root: whether data must be on disk.
        manual: what a person must do where a form or agreement is needed, else "".
        downloads: what `data get` can fetch.
        train: training settings this dataset needs (`{"flip": "joint"}`), over a method's own.
        template: path of a picture, e.g. `images/{id}.jpg`.
    """

    name: str
    title: str
    protocols: tuple[Protocol, ...]
    counts: Mapping[str, int] = field(default_factory=dict)
    files: tuple[str, ...] = ()
    layout: str = ""
    citation: str = ""
    licence: str = ""
    needs_root: bool = True
    manual: str = ""
    downloads: tuple[Download, ...] = ()
    train: Mapping[str, Any] = field(default_factory=dict)
    template: tuple[str, ...] = ()


@dataclass
class Explanation:
    """Evidence of one batch that needs the model; stored in the record, shown by reports.

    Attributes:
        words: per query, (word, weight) pairs in text order.
        regions: name of the map -> (B, h, w) over the reference picture, any scale.
    """

    words: list[list[tuple[str, float]]] = field(default_factory=list)
    regions: dict[str, Any] = field(default_factory=dict)
