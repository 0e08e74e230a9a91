"""CSS3D (Vo et al., CVPR 2019): rendered scenes of coloured shapes; any image with the target's label is a hit.

The annotation is a pickle, read as plain values and arrays (data/pickles.py).
"""

from __future__ import annotations

from pathlib import Path
from typing import IO, Any

import numpy as np

from cirbench import json_text
from cirbench.data import reading
from cirbench.data.arrays import head
from cirbench.data.image_files import FolderImages
from cirbench.data.pickles import load_plain
from cirbench.datasets import _common as c
from cirbench.settings import Field, Settings
from cirbench.types import CirbenchError, Dataset, DatasetSpec, Download, Protocol, Query, Split, shown

METRICS = ("R@1", "R@5", "R@10", "R@50", "R@100")
FILE = "css_toy_dataset_novel2_small.dup.npy"

SPEC = DatasetSpec(
    name="css3d",
    title="CSS3D: rendered scenes of coloured shapes, hits by equal label",
    protocols=(
        Protocol("css3d-label", METRICS, known_as=("tirg",),
                 note="any image with the target's label is a hit; the reference is taken out"),
    ),
    files=(FILE,),
    layout=f"{FILE} and images/css_<split>_<6 digits>.png",
    citation="Vo et al., Composing Text and Image for Image Retrieval, CVPR 2019",
    licence="none stated for the data (code: Apache-2.0)",
    manual="If the address is gone: Google Drive 1wPqMw-HKmXUG2qTgYBiTNUnjz83hA2tY, linked from the TIRG repository.",
    downloads=(
        Download("CSS.zip", ("https://storage.googleapis.com/image_retrieval_css/CSS.zip",), unpack="."),
    ),
    template=("images/{id}", "css_images/{id}", "CSS/images/{id}"),
)
_LISTS = (list, tuple, range, np.ndarray)


class Knobs(Settings):
    """How training pairs are drawn and `select` is carved out of train."""

    pairs: str = Field(
        "listed", pattern="^(listed|crossed)$",
        description="training pairs of one modification: as listed, or every source with every target",
    )
    select_share: float = Field(0.05, ge=0, lt=1, description="share of the train queries that become `select`")
    select_seed: int = Field(0, description="seed of the carving hash")


def _array(file: IO[bytes], path: Path) -> Any:
    try:
        shape, dtype = head(file)
    except ValueError as error:
        raise CirbenchError(f"{path} is not an .npy file: {error}. Fetch it again.") from None
    if shape != () or dtype != np.dtype(object):
        raise CirbenchError(f"{path}: one pickled object is expected, found an array {shape} of {dtype}.")
    try:
        value = load_plain(file.read())
    except CirbenchError as error:
        raise CirbenchError(f"css3d: {path} {error}") from None
    except (ValueError, MemoryError) as error:
        raise CirbenchError(f"{path}: the pickle is damaged ({error}). Fetch it again.") from None
    return value.item() if isinstance(value, np.ndarray) and value.shape == () else value


def read(root: Path) -> tuple[dict[str, Any], Path]:
    """The annotation of both splits."""
    path = c.find(root, (FILE, f"CSS/{FILE}"), SPEC)
    if path.stat().st_size == 0:
        raise CirbenchError(f"{path} is empty (0 bytes). Fetch it again.")
    with path.open("rb") as file:
        data = _array(file, path)
    for split in ("train", "test"):
        part = reading.get(data, split, dict, str(path))
        reading.get(part, "objects_img", list, f"{path}, {split}")
        reading.get(part, "mods", list, f"{path}, {split}")
    return data, path


def _label(value: Any, where: str) -> str:
    """A label as text; images of one label are right answers for each other."""
    whole = isinstance(value, int | np.integer) and not isinstance(value, bool) and abs(int(value)) < 2**63
    if not whole and not (isinstance(value, str) and not json_text.odd_text(value)):
        raise CirbenchError(f"{where}: the label {reading.shown(value)} is neither text nor a whole number.")
    return str(value)


def _queries(part: dict[str, Any], name: str, crossed: bool, where: str) -> tuple[list[Query], tuple[str, ...]]:
    count = len(part["objects_img"])
    ids = tuple(f"css_{name}_{n:06d}" for n in range(count))
    labels = [_label(label, where) for label in reading.get({"labels": range(count), **part}, "labels", _LISTS, where)]
    if len(labels) != count:
        raise CirbenchError(f"{where}: {len(labels)} labels for {count} images.")
    groups: dict[str, list[str]] = {}
    for image_id, label in zip(ids, labels, strict=True):
        groups.setdefault(label, []).append(image_id)
    hits = {label: tuple(images) for label, images in groups.items()}
    queries: list[Query] = []
    for m, mod in enumerate(part["mods"]):
        at = f"{where}, modification {m}"
        sources, targets = reading.get(mod, "from", list, at), reading.get(mod, "to", list, at)
        text = reading.get(mod, "to_str", str, at)
        if why := json_text.odd_text(text):
            raise CirbenchError(f"{at}: {why}.")
        if not crossed and len(sources) != len(targets):
            raise CirbenchError(f"{at}: {len(sources)} sources and {len(targets)} targets, expected equal numbers.")
        pairs = [(s, t) for s in sources for t in targets] if crossed else list(zip(sources, targets, strict=True))
        for source, target in pairs:
            for index in (source, target):
                if not isinstance(index, int) or isinstance(index, bool) or not 0 <= index < count:
                    raise CirbenchError(f"{at}: image {shown(index, 40)} does not exist; there are {count}.")
            queries.append(Query(
                str(len(queries)), ids[source], (text,), hits[labels[target]],
                extra={"target": ids[target], "label": labels[target]},
            ))
    if not queries:
        raise CirbenchError(f"{where}: no query in any modification.")
    return queries, ids


def _split(data: dict[str, Any], path: Path, name: str, role: str, crossed: bool = False) -> Split:
    queries, ids = _queries(data[name], name, crossed, f"{path}, {name}")
    return Split(role, tuple(queries), {"all": {"": ids}})


def _dataset(
    root: Path, splits: dict[str, Split], path: Path, knobs: dict[str, Any], notes: tuple[str, ...] = ()
) -> Dataset:
    return Dataset(
        "css3d", splits, FolderImages(root, SPEC.template, None, "css3d"), SPEC.protocols,
        c.annotations_fingerprint("css3d", [path], knobs), forms={"text": c.plain}, notes=notes,
    )


def load_split(knobs: Knobs, root: Path | None, name: str) -> Dataset:
    """`train` or `test`, for scoring; no picture is touched."""
    folder = c.need_root(root, SPEC)
    c.choose(("train", "test"), name, "css3d")
    data, path = read(folder)
    return _dataset(folder, {name: _split(data, path, name, name)}, path, {})


def counts(knobs: Knobs, root: Path) -> dict[str, int | str]:
    """How many there are; upstream publishes no exact numbers to compare with."""
    data, path = read(root)
    out: dict[str, int | str] = {}
    for name in ("train", "test"):
        split = _split(data, path, name, name)
        out[f"{name} queries"], out[f"{name} images"] = len(split.queries), len(split.images())
    return out


def load(knobs: Knobs, root: Path | None = None) -> Dataset:
    """`report` is test; `select` is carved out of train, as far as labels allow."""
    folder = c.need_root(root, SPEC)
    data, path = read(folder)
    train = _split(data, path, "train", "train", knobs.pairs == "crossed")
    rest, carved = c.carve(train.queries, knobs.select_share, knobs.select_seed)
    splits = {"train": Split("train", tuple(rest))}
    if carved:
        splits["select"] = Split("select", tuple(carved), {"all": {"": c.images_of(carved)}})
    splits["report"] = _split(data, path, "test", "report")
    notes = () if carved else (c.not_carved(train.queries, knobs.select_share),)
    return _dataset(folder, splits, path, knobs.identity(), notes)
