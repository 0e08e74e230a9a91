"""GeneCIS (Vaze et al., CVPR 2023): four tasks, a small gallery of its own for every query; evaluation only."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cirbench.data import reading
from cirbench.data.image_files import FolderImages
from cirbench.datasets import _common as c
from cirbench.datasets._checksums import SHA256
from cirbench.settings import Field, Settings, unknown
from cirbench.types import Dataset, DatasetSpec, Download, Protocol, Query, Split

if TYPE_CHECKING:
    import PIL.Image

TASKS = ("focus_attribute", "change_attribute", "focus_object", "change_object")
_RAW = "https://raw.githubusercontent.com/facebookresearch/genecis/main/genecis"

SPEC = DatasetSpec(
    name="genecis",
    title="GeneCIS: focus on or change an attribute or object, 10 to 15 images a query, evaluation only",
    protocols=(
        Protocol(
            "genecis", ("R@1", "R@2", "R@3"), gallery="own", drop_reference=False, average="groups",
            known_as=("genecis",),
            note="each query ranks its own gallery, the target at a shuffled position; mean over tasks",
        ),
    ),
    counts={"change_object queries": 1960, "focus_object queries": 1960, "change_object images": 2739,
            "focus_object images": 2198},
    files=tuple(f"{task}.json" for task in TASKS),
    layout=(
        "{focus,change}_{attribute,object}.json (also under genecis/); pictures: val2017/<12 digits>.jpg of COCO and "
        "VG_100K_all/<id>.jpg of Visual Genome 1.2"
    ),
    citation="Vaze et al., GeneCIS: A Benchmark for General Conditional Image Similarity, CVPR 2023",
    licence="annotations: CC BY-NC 4.0; pictures: COCO, Visual Genome",
    manual=(
        "Pictures: http://images.cocodataset.org/zips/val2017.zip as val2017/, and Visual Genome 1.2 "
        "(https://homes.cs.washington.edu/~ranjay/visualgenome/api.html, both parts in one folder) as VG_100K_all/."
    ),
    downloads=tuple(
        Download(f"{task}.json", (f"{_RAW}/{task}.json",), SHA256["genecis"].get(f"{task}.json", "")) for task in TASKS
    ),
    template=("val2017/{path}", "VG_100K_all/{path}", "coco/val2017/{path}", "visual_genome/VG_100K_all/{path}"),
)


class Knobs(Settings):
    """Which tasks."""

    tasks: str = Field(
        "all", description="`all`, `object`, `attribute`, or task names with commas between them"
    )


def _tasks(knobs: Knobs) -> tuple[str, ...]:
    if knobs.tasks == "all":
        return TASKS
    if knobs.tasks in ("object", "attribute"):
        return tuple(t for t in TASKS if t.endswith(knobs.tasks))
    names = tuple(part.strip() for part in knobs.tasks.split(","))
    for name in names:
        if name not in TASKS:
            raise unknown("task data.tasks", name, ("all", "object", "attribute", *TASKS))
    return names


def _image(entry: Any, where: str) -> str:
    """An image id: the number of an object image, number and box of an attribute image."""
    if isinstance(entry, dict) and "val_image_id" in entry:
        return str(reading.get(entry, "val_image_id", int, where))
    image, box = reading.get(entry, "image_id", int, where), reading.get(entry, "instance_bbox", list, where)
    if len(box) != 4:
        raise c.CirbenchError(f"{where}: instance_bbox has {len(box)} numbers, 4 are expected (x, y, w, h).")
    for number in box:
        reading.get({"instance_bbox": number}, "instance_bbox", (int, float), where)
    return f"{image}@{','.join(str(b) for b in box)}"


def shuffled(ids: Sequence[str], query: str) -> tuple[str, ...]:
    """A fixed order in which the target's position is not revealing; the same on every machine."""
    return tuple(sorted(dict.fromkeys(ids), key=lambda i: hashlib.sha256(f"{query}:{i}".encode()).digest()))


def _read(root: Path, task: str) -> tuple[list[Query], Path]:
    path = c.find(
        root, [f"{task}.json", f"genecis/{task}.json"], SPEC,
        f"`cirbench data get genecis` fetches it; `--set data.tasks={task.split('_')[1]}` limits the tasks.",
    )
    queries = []
    for n, entry in enumerate(reading.read_list(path)):
        where, name = f"{path}, entry {n}", f"{task}/{n}"
        gallery = [_image(e, f"{where}, gallery {i}") for i, e in enumerate(reading.get(entry, "gallery", list, where))]
        target = _image(reading.get(entry, "target", dict, where), f"{where}, target")
        reference = _image(reading.get(entry, "reference", dict, where), f"{where}, reference")
        queries.append(Query(
            name, reference, (reading.get(entry, "condition", str, where),), (target,), group=task,
            candidates=shuffled([target, *gallery], name),
        ))
    return queries, path


def crop_area(box: Sequence[float], size: tuple[int, int]) -> tuple[int, int, int, int]:
    """Left, top, right and bottom in pixels of what is cut out around a box (x, y, w, h), as the authors' code does.

    The box grows by 0.7 of its width to the left and of its height to the top. These edges are held at 0 before the
    far ones are measured from them, so a box at the left or upper border grows to the right or downwards instead. The
    numbers are rounded as PIL's `crop` rounds them.

    Example:
        >>> crop_area((10, 10, 100, 100), (500, 400))
        (0, 0, 170, 170)
    """
    x, y, w, h = box
    left, top = max(0.0, x - 0.7 * w), max(0.0, y - 0.7 * h)
    right, bottom = min(float(size[0]), left + 1.7 * w), min(float(size[1]), top + 1.7 * h)
    return round(left), round(top), round(right), round(bottom)


class Pictures(FolderImages):
    """COCO pictures whole; Visual Genome pictures cropped as the authors' code does, then squared with black."""

    def __init__(self, root: Path) -> None:
        super().__init__(root, SPEC.template, {}, "genecis")

    def _relative(self, image_id: str) -> str:
        # The box of an id is not part of the file's name.
        number, _, box = image_id.partition("@")
        return f"{number}.jpg" if box else f"{int(number):012d}.jpg"

    def open(self, image_id: str) -> PIL.Image.Image:
        """The decoded RGB picture, or the square around its box.

        Raises:
            CirbenchError: see `FolderImages.open`; or a box that lies outside the picture.
        """
        from PIL import Image

        image = super().open(image_id)
        _, _, box = image_id.partition("@")
        if not box:
            return image
        area = crop_area(tuple(float(b) for b in box.split(",")), image.size)
        if area[0] >= area[2] or area[1] >= area[3]:
            raise c.CirbenchError(
                f"genecis: the box {box} of picture {image_id.partition('@')[0]} lies outside it "
                f"({image.width} x {image.height}). Is it the picture of Visual Genome 1.2?"
            )
        image = image.crop(area)
        side = max(image.size)
        out = Image.new("RGB", (side, side))
        out.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
        return out


def _load(knobs: Knobs, root: Path, name: str) -> Dataset:
    queries, files = [], []
    for task in _tasks(knobs):
        mine, path = _read(root, task)
        queries += mine
        files.append(path)
    left = [t for t in TASKS if t not in _tasks(knobs)]
    notes = (f"tasks left out: {', '.join(left)}; the mean is over the others",) if left else ()
    return Dataset(
        "genecis", {name: Split(name, tuple(queries))}, Pictures(root), SPEC.protocols,
        c.annotations_fingerprint("genecis", files, knobs.identity()), forms={"text": c.plain}, notes=notes,
    )


def load_split(knobs: Knobs, root: Path | None, name: str) -> Dataset:
    """The one split, `test` (or `val`), for scoring. Tasks without a file are left out and named in the notes."""
    folder = c.need_root(root, SPEC)
    c.choose(("test", "val"), name, "genecis")
    present = [t for t in _tasks(knobs) if any((folder / at / f"{t}.json").is_file() for at in ("", "genecis"))]
    return _load(Knobs(tasks=",".join(present)) if present else knobs, folder, name)


def counts(knobs: Knobs, root: Path) -> dict[str, int | str]:
    """What `data check` compares with the facts; the attribute tasks have no published counts to compare with."""

    def one(task: str) -> tuple[int, int]:
        queries, _ = _read(root, task)
        return len(queries), len({i for q in queries for i in (q.reference, *(q.candidates or ()))})

    out: dict[str, int | str] = {}
    for task in _tasks(knobs):
        out |= c.counted((f"{task} queries", f"{task} images"), partial(one, task))
    return out


def load(knobs: Knobs, root: Path | None = None) -> Dataset:
    """`report` holds every query of the tasks asked for; there is nothing to train on."""
    return _load(knobs, c.need_root(root, SPEC), "report")
