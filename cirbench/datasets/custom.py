"""Your own data: images.csv or a folder of pictures, and one triplets.<split>.jsonl per split."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path
from typing import Any

from cirbench.data import reading
from cirbench.data.image_files import EXTENSIONS, FolderImages
from cirbench.datasets import _common as c
from cirbench.settings import Field, Settings
from cirbench.types import CirbenchError, Dataset, DatasetSpec, Protocol, Query, Split

METRICS = ("R@1", "R@5", "R@10", "R@50")

SPEC = DatasetSpec(
    name="custom",
    title="your own pictures and triplets",
    protocols=(
        Protocol("custom-drop", METRICS, note="all images of the split; the reference is taken out of its gallery"),
        Protocol("custom-keep", METRICS, drop_reference=False, note="all images of the split, the reference included"),
    ),
    files=("triplets.train.jsonl", "triplets.test.jsonl"),
    layout=(
        "images.csv with the columns image_id and path (relative to the CSV; further columns are free, `split` limits "
        "the gallery of a split), or a folder images/ whose file names without extension are the ids; and "
        'triplets.<split>.jsonl with one {"id", "reference", "text", "targets": [...]} a line'
    ),
    citation="",
    licence="yours",
    manual="Write the files that `layout` names; docs/add-a-dataset.md shows an example.",
    template=("images/{id}",),
)


class Knobs(Settings):
    """Which file has which role."""

    train: str = Field("train", description="split name of the training triplets: triplets.<name>.jsonl")
    select: str = Field("val", description="split name that may choose a checkpoint; carved from train if absent")
    report: str = Field("test", description="split name that results are reported on")
    select_share: float = Field(0.1, ge=0, lt=1, description="share carved from train where `select` has no file")
    select_seed: int = Field(0, description="seed of the carving hash")
    gallery: str = Field(
        "split", pattern="^(split|all)$",
        description="what a query ranks: images whose column `split` names its split (all, without one), or all",
    )
    caption: str = Field("name", description="column with a caption of each image, for pretraining; may be absent")


def _folder_paths(root: Path) -> dict[str, str]:
    """Ids from file names, where there is no images.csv."""
    folder = root / "images"
    if not folder.is_dir():
        here = ", ".join(sorted(p.name for p in root.iterdir())[:6]) or "nothing"
        raise CirbenchError(
            f"custom: {root} has neither images.csv nor a folder images/ (it holds {here}). {SPEC.manual}"
        )
    paths: dict[str, str] = {}
    for file in sorted(folder.rglob("*")):
        if file.suffix.lower() in EXTENSIONS:
            image_id = file.stem
            if image_id in paths:
                raise CirbenchError(
                    f"custom: two pictures are named {image_id!r}: {paths[image_id]} and "
                    f"{file.relative_to(root).as_posix()}. Rename one, or list them in images.csv."
                )
            paths[image_id] = file.relative_to(root).as_posix()
    if not paths:
        raise CirbenchError(f"custom: {folder} holds no .jpg, .jpeg or .png.")
    return paths


def _images(root: Path) -> tuple[dict[str, str], list[dict[str, str]], list[Path]]:
    """Image id -> path, the rows of the CSV (empty for a folder), and the files read."""
    table = root / "images.csv"
    if not table.is_file():
        return _folder_paths(root), [], []
    rows = reading.read_csv(table, ("image_id", "path"))
    reading.unique((row["image_id"] for row in rows), f"{table}: image_id")
    for number, row in enumerate(rows, 2):
        if not row["image_id"] or not row["path"]:
            raise CirbenchError(f"{table}, row {number}: image_id or path is empty.")
    return {row["image_id"]: row["path"] for row in rows}, rows, [table]


def _query(entry: dict[str, Any], where: str, fallback: str) -> Query:
    texts = reading.strings(entry, "texts", where) if "texts" in entry else (reading.get(entry, "text", str, where),)
    if not texts or not texts[0].strip():
        raise CirbenchError(f"{where}: the modification text is empty.")
    if len(texts) > 1:
        raise CirbenchError(
            f"{where}: {len(texts)} texts, but a query of custom data has one. Write a line for each, with an id of "
            "its own."
        )
    if "members" in entry:
        reading.strings(entry, "members", where)
    targets = reading.strings(entry, "targets", where)
    if not targets:
        raise CirbenchError(f"{where}: 'targets' is empty; a query without a right answer cannot be scored.")
    reading.unique(targets, f"{where}: target")
    query_id = entry.get("id", fallback)
    known = {"id", "reference", "text", "texts", "targets", "group"}
    return Query(
        id=str(query_id), reference=reading.get(entry, "reference", str, where), texts=texts, targets=targets,
        group=reading.get(entry, "group", str, where) if "group" in entry else "",
        extra={key: value for key, value in entry.items() if key not in known},
    )


def read_triplets(path: Path, known: set[str]) -> tuple[Query, ...]:
    """Queries of one file; every image they name must exist.

    Raises:
        CirbenchError: a malformed line, a repeated id, an unknown image.
    """
    queries = []
    for number, entry in reading.read_jsonl(path):
        where = f"{path}, line {number}"
        query = _query(entry, where, str(number - 1))
        for image_id in (query.reference, *query.targets):
            if image_id not in known:
                near = c.nearest(image_id, list(known)[:20000])
                guess = f" The nearest is {near!r}." if near else ""
                raise CirbenchError(f"{where}: image {image_id!r} is neither in images.csv nor a picture file.{guess}")
        queries.append(query)
    reading.unique((q.id for q in queries), f"{path}: query id")
    return tuple(queries)


def _gallery(name: str, knobs: Knobs, paths: dict[str, str], rows: list[dict[str, str]]) -> tuple[str, ...]:
    if knobs.gallery == "split" and rows and "split" in rows[0]:
        mine = tuple(row["image_id"] for row in rows if row["split"] == name)
        if mine:
            return mine
    return tuple(paths)


def _split(name: str, role: str, root: Path, knobs: Knobs, paths: dict[str, str], rows: list[Any]) -> Split:
    path = root / f"triplets.{name}.jsonl"
    queries = read_triplets(path, set(paths))
    gallery = _gallery(name, knobs, paths, rows)
    reading.subset(
        (t for q in queries for t in q.targets), gallery, f"{path}: targets",
        "Correct the column `split` of images.csv, or rank all images: --set data.gallery=all.",
    )
    return Split(role, queries, {"all": {"": gallery}})


def _splits_present(root: Path) -> list[str]:
    return sorted(p.name.removeprefix("triplets.").removesuffix(".jsonl") for p in root.glob("triplets.*.jsonl"))


def load_split(knobs: Knobs, root: Path | None, name: str) -> Dataset:
    """One split by the name of its file, for scoring; no picture is touched."""
    folder = c.need_root(root, SPEC)
    c.choose(_splits_present(folder), name, "custom")
    paths, rows, files = _images(folder)
    return _dataset(folder, knobs, {name: _split(name, name, folder, knobs, paths, rows)}, paths, rows, files, ())


def _dataset(
    root: Path, knobs: Knobs, splits: dict[str, Split], paths: dict[str, str], rows: list[dict[str, str]],
    files: list[Path], notes: tuple[str, ...],
) -> Dataset:
    captions: dict[str, tuple[str, ...]] = {}
    if rows and knobs.caption in rows[0]:
        held_out = {i for role, s in splits.items() if role != "train" for i in s.images()}
        in_train = [r for r in rows if r["image_id"] not in held_out and r.get("split", knobs.train) == knobs.train]
        captions = {r["image_id"]: (r[knobs.caption],) for r in in_train if r[knobs.caption].strip()}
    fingerprint = c.annotations_fingerprint("custom", files, knobs.identity(), sorted(paths) if not rows else None)
    images = FolderImages(root, ("{path}",), paths, "custom")
    return Dataset(
        "custom", splits, images, SPEC.protocols, fingerprint, captions=captions, forms={"text": c.plain}, notes=notes
    )


def load(knobs: Knobs, root: Path | None = None) -> Dataset:
    """The roles `train`, `select` and `report` from the files the knobs name."""
    folder = c.need_root(root, SPEC)
    present = _splits_present(folder)
    for role in ("report", "train"):
        name = getattr(knobs, role)
        if name not in present:
            have = ", ".join(f"triplets.{n}.jsonl" for n in present) or "no triplets.*.jsonl"
            raise CirbenchError(
                f"custom: {role} needs triplets.{name}.jsonl under {folder}, which holds {have}. "
                f"{SPEC.manual} Another name: --set data.{role}=NAME."
            )
    roles = {role: getattr(knobs, role) for role in ("train", "select", "report") if getattr(knobs, role) in present}
    for role, other in combinations(roles, 2):
        if roles[role] == roles[other]:
            raise CirbenchError(
                f"custom: data.{role} and data.{other} are both {roles[role]!r}. Training, checkpoint selection "
                "and reporting need different queries."
            )
    paths, rows, files = _images(folder)
    splits = {role: _split(getattr(knobs, role), role, folder, knobs, paths, rows) for role in ("train", "report")}
    used = [knobs.train, knobs.report]
    notes: tuple[str, ...] = ()
    if knobs.select in present:
        splits["select"] = _split(knobs.select, "select", folder, knobs, paths, rows)
        used.append(knobs.select)
    elif knobs.select_share:
        rest, carved = c.carve(splits["train"].queries, knobs.select_share, knobs.select_seed)
        if carved:
            splits["train"] = Split("train", tuple(rest), {"all": {"": c.images_of(rest)}})
            splits["select"] = Split("select", tuple(carved), {"all": {"": c.images_of(carved)}})
            notes = (f"select: {len(carved)} queries carved out of triplets.{knobs.train}.jsonl, no image shared",)
    order: dict[str, Split] = {role: splits[role] for role in ("train", "select", "report") if role in splits}
    files = [*files, *(folder / f"triplets.{name}.jsonl" for name in used)]
    return _dataset(folder, knobs, order, paths, rows, files, notes)
