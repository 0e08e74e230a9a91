"""Your own data: images.csv or a folder of pictures, and one triplets.<split>.jsonl per split."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path
from typing import Any

from cirbench import json_text
from cirbench.data import reading
from cirbench.data.image_files import FolderImages, nfc
from cirbench.datasets import _common as c
from cirbench.datasets import _custom_images as own
from cirbench.settings import Field, Settings
from cirbench.types import CirbenchError, Dataset, DatasetSpec, Protocol, Query, Split

METRICS = ("R@1", "R@5", "R@10", "R@50")
#: How deep the fields of a query may be nested that are kept and not read.
DEPTH = 50

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
    upright: bool = Field(
        True, description="turn pictures as their EXIF orientation says", json_schema_extra={"neutral": False}
    )
    background: str = Field(
        "white", description="colour under transparent parts (a name or #rrggbb); raw takes the stored colour",
        json_schema_extra={"neutral": "raw"},
    )


def _images(root: Path, knobs: Knobs) -> tuple[dict[str, str], list[dict[str, str]], list[Path], list[str]]:
    """Image id -> path, the rows of the CSV (empty for a folder), the files read, and notes."""
    table = root / "images.csv"
    if not table.is_file():
        paths, notes = own.in_folder(root, SPEC.manual)
        return paths, [], [], notes
    paths, rows = own.listed(table)
    return paths, rows, [table], own.split_notes(table, rows, _splits_present(root), knobs.gallery == "split")


def _query(entry: dict[str, Any], where: str, fallback: str) -> Query:
    texts = reading.strings(entry, "texts", where) if "texts" in entry else (reading.get(entry, "text", str, where),)
    if not texts or not texts[0].strip():
        raise CirbenchError(f"{where}: the modification text is empty.")
    if len(texts) > 1:
        raise CirbenchError(
            f"{where}: {len(texts)} texts, but a query of custom data has one. Write a line for each, with an id of "
            "its own."
        )
    targets = tuple(map(nfc, reading.strings(entry, "targets", where)))
    if not targets:
        raise CirbenchError(f"{where}: 'targets' is empty; a query without a right answer cannot be scored.")
    reading.unique(targets, f"{where}: target")
    query_id = reading.get(entry, "id", (str, int), f"{where} (leave 'id' out to number the lines)") \
        if "id" in entry else fallback
    known = {"id", "reference", "text", "texts", "targets", "group"}
    extra = {key: value for key, value in entry.items() if key not in known}
    if json_text.depth(extra) > DEPTH:
        raise CirbenchError(f"{where}: further fields are nested more than {DEPTH} deep, and are kept in every record.")
    if "members" in entry:
        extra["members"] = [nfc(member) for member in reading.strings(entry, "members", where)]
    return Query(
        id=nfc(str(query_id)), reference=nfc(reading.get(entry, "reference", str, where)), texts=texts, targets=targets,
        group=reading.get(entry, "group", str, where) if "group" in entry else "", extra=extra,
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


def _split(name: str, role: str, root: Path, knobs: Knobs, paths: dict[str, str], rows: list[Any]) -> Split:
    path = root / f"triplets.{name}.jsonl"
    queries = read_triplets(path, set(paths))
    gallery = tuple(paths)
    if knobs.gallery == "split" and rows:
        gallery = own.of_split(root / "images.csv", rows, name, needed=role != "train")
    reading.subset(
        (t for q in queries for t in q.targets), gallery, f"{path}: targets",
        "Correct the column `split` of images.csv, or rank all images: --set data.gallery=all.",
    )
    return Split(role, queries, {"all": {"": gallery}})


def _hopeless(splits: dict[str, Split]) -> list[str]:
    """A note for each split with queries whose only target is their reference."""
    counts = {role: sum(set(q.targets) == {q.reference} for q in s.queries) for role, s in splits.items()}
    return [
        f"{n} of {len(splits[role].queries)} queries of {role} have no target but their own reference: always misses "
        "under custom-drop, where the reference is taken out" for role, n in counts.items() if n
    ]


def _splits_present(root: Path) -> list[str]:
    return sorted(p.name.removeprefix("triplets.").removesuffix(".jsonl") for p in root.glob("triplets.*.jsonl"))


def load_split(knobs: Knobs, root: Path | None, name: str) -> Dataset:
    """One split by the name of its file, for scoring; no picture is touched."""
    folder = c.need_root(root, SPEC)
    c.choose(_splits_present(folder), name, "custom")
    paths, rows, files, notes = _images(folder, knobs)
    return _dataset(folder, knobs, {name: _split(name, name, folder, knobs, paths, rows)}, paths, rows, files, notes)


def _dataset(
    root: Path, knobs: Knobs, splits: dict[str, Split], paths: dict[str, str], rows: list[dict[str, str]],
    files: list[Path], notes: list[str],
) -> Dataset:
    captions: dict[str, tuple[str, ...]] = {}
    if rows and knobs.caption in rows[0]:
        held_out = {i for role, s in splits.items() if role != "train" for i in s.images()}
        in_train = [r for r in rows if r["image_id"] not in held_out and r.get("split", knobs.train) == knobs.train]
        captions = {r["image_id"]: (r[knobs.caption],) for r in in_train if r[knobs.caption].strip()}
    fingerprint = c.annotations_fingerprint("custom", files, knobs.identity(), sorted(paths) if not rows else None)
    images = FolderImages(root, ("{path}",), paths, "custom", own.reading_of(knobs.upright, knobs.background))
    return Dataset(
        "custom", splits, images, SPEC.protocols, fingerprint, captions=captions, forms={"text": c.plain},
        notes=(*notes, *_hopeless(splits)),
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
    paths, rows, files, notes = _images(folder, knobs)
    splits = {role: _split(getattr(knobs, role), role, folder, knobs, paths, rows) for role in ("train", "report")}
    used = [knobs.train, knobs.report]
    if knobs.select in present:
        splits["select"] = _split(knobs.select, "select", folder, knobs, paths, rows)
        used.append(knobs.select)
    else:
        rest, carved = c.carve(splits["train"].queries, knobs.select_share, knobs.select_seed)
        if carved:
            splits["train"] = Split("train", tuple(rest), {"all": {"": c.images_of(rest)}})
            splits["select"] = Split("select", tuple(carved), {"all": {"": c.images_of(carved)}})
            notes.append(f"select: {len(carved)} queries carved out of triplets.{knobs.train}.jsonl, no image shared")
        else:
            notes.append(c.not_carved(splits["train"].queries, knobs.select_share))
    order: dict[str, Split] = {role: splits[role] for role in ("train", "select", "report") if role in splits}
    files = [*files, *(folder / f"triplets.{name}.jsonl" for name in used)]
    return _dataset(folder, knobs, order, paths, rows, files, notes)
