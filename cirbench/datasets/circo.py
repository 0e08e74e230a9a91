"""CIRCO (Baldrati et al., ICCV 2023): several targets per query among all of COCO unlabeled2017; mAP@K."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cirbench.data import reading
from cirbench.data.image_files import FolderImages
from cirbench.datasets import _common as c
from cirbench.datasets._checksums import SHA256
from cirbench.settings import Field, Settings
from cirbench.types import CirbenchError, Dataset, DatasetSpec, Download, Protocol, Query, Split

METRICS = tuple(f"{m}@{k}" for m in ("mAP", "R") for k in (5, 10, 25, 50))
SPLITS = ("val", "test")
COCO = "COCO2017_unlabeled/annotations/image_info_unlabeled2017.json"
COCO_PLACES = (COCO, "annotations/image_info_unlabeled2017.json", "image_info_unlabeled2017.json")
_RAW = "https://raw.githubusercontent.com/miccunifi/CIRCO/main/annotations"
_CONCEPT = "CONCEPT is what reference and target share, as annotated (shared_concept); other methods do not read it"

SPEC = DatasetSpec(
    name="circo",
    title="CIRCO: several targets a query among all COCO unlabeled pictures, evaluation only",
    protocols=(
        Protocol(
            "circo-keep", METRICS, drop_reference=False, hit="first", summary="mAP@5",
            known_as=("official", "searle", "lincir"),
            note="mAP@K with the denominator min(targets, K); R@K of the target annotated first; the reference stays",
        ),
        Protocol("circo-drop", METRICS, hit="first", summary="mAP@5", known_as=("covr",),
                 note="as circo-keep, but the reference is taken out"),
        Protocol("circo-keep-magiclens", METRICS, form="magiclens", drop_reference=False, hit="first", summary="mAP@5",
                 known_as=("magiclens",), note=f"as circo-keep, but the text is `find CONCEPT but TEXT`; {_CONCEPT}"),
        Protocol("circo-keep-megapairs", METRICS, form="megapairs", drop_reference=False, hit="first", summary="mAP@5",
                 known_as=("bge-vl", "mmret"),
                 note=f"as circo-keep, but the text is `Find a picture that also CONCEPT, but TEXT.`; {_CONCEPT}"),
    ),
    counts={"val queries": 220, "val targets": 916, "test queries": 800},
    files=("annotations/val.json", "annotations/test.json", COCO),
    layout=(
        "annotations/{val,test}.json and COCO2017_unlabeled/{annotations/image_info_unlabeled2017.json, "
        "unlabeled2017/<12 digits>.jpg}"
    ),
    citation="Baldrati et al., Zero-Shot Composed Image Retrieval with Textual Inversion, ICCV 2023",
    licence="annotations: CC BY-NC 4.0; pictures: COCO",
    manual="Pictures: http://images.cocodataset.org/zips/unlabeled2017.zip (about 19 GB), under COCO2017_unlabeled/.",
    downloads=(
        *(Download(f"annotations/{s}.json", (f"{_RAW}/{s}.json",), SHA256["circo"][f"annotations/{s}.json"])
          for s in SPLITS),
        Download(
            "image_info_unlabeled2017.zip",
            ("http://images.cocodataset.org/annotations/image_info_unlabeled2017.zip",), unpack="COCO2017_unlabeled",
        ),
    ),
    template=("COCO2017_unlabeled/unlabeled2017/{path}", "unlabeled2017/{path}", "images/{path}"),
)


# The texts of MagicLens and of MegaPairs (its models are BGE-VL, once called MMRet), whose grammar is their authors'.


def _magiclens(query: Query) -> list[list[str]]:
    return [[f"find {query.extra['shared_concept']} but {query.texts[0]}"]]


def _megapairs(query: Query) -> list[list[str]]:
    return [[f"Find a picture that also {query.extra['shared_concept']}, but {query.texts[0]}."]]


FORMS = {"text": c.plain, "magiclens": _magiclens, "megapairs": _megapairs}


class Knobs(Settings):
    """What is ranked."""

    gallery: str = Field(
        "coco", pattern="^(coco|annotated)$",
        description="all COCO unlabeled pictures (published numbers), or only those the annotations name (easier)",
    )


def _number(entry: Any, key: str, where: str) -> str:
    return str(reading.get(entry, key, int, where))


def _read(root: Path, split: str) -> tuple[list[Query], Path]:
    path = c.find(root, [f"annotations/{split}.json", f"{split}.json", f"circo/annotations/{split}.json"], SPEC)
    queries = []
    for n, entry in enumerate(reading.read_list(path)):
        where = f"{path}, entry {n}"
        if _number(entry, "id", where) != str(n):
            raise CirbenchError(f"{where}: id is {entry['id']!r}, expected {n}: ids count from 0 in file order.")
        targets: tuple[str, ...] = ()
        extra: dict[str, Any] = {"shared_concept": reading.get(entry, "shared_concept", str, where)}
        if split == "val":
            found = reading.get(entry, "gt_img_ids", list, where)
            for target in found:
                reading.get({"gt_img_ids": target}, "gt_img_ids", int, where)
            targets = tuple(map(str, found))
            reading.unique(targets, f"{where}: target")
            if not targets or targets[0] != _number(entry, "target_img_id", where):
                raise CirbenchError(f"{where}: target_img_id {entry['target_img_id']} is not the first of gt_img_ids.")
            extra["aspects"] = list(reading.strings(entry, "semantic_aspects", where))
        queries.append(Query(
            str(n), _number(entry, "reference_img_id", where), (reading.get(entry, "relative_caption", str, where),),
            targets, extra=extra,
        ))
    return queries, path


def coco_ids(root: Path) -> tuple[tuple[str, ...], Path]:
    """Ids of all COCO unlabeled pictures, in file order."""
    path = c.find(
        root, COCO_PLACES, SPEC,
        "`cirbench data get circo` fetches it; `--set data.gallery=annotated` ranks only the annotated pictures.",
    )
    info = reading.get(reading.read_json(path), "images", list, str(path))
    ids = tuple(_number(entry, "id", f"{path}, image {n}") for n, entry in enumerate(info))
    reading.unique(ids, f"{path}: image")
    return ids, path


def _annotated(queries: list[Query]) -> tuple[str, ...]:
    return tuple(sorted(c.images_of(queries), key=int))


def _split(knobs: Knobs, root: Path, name: str, split: str, open_gallery: bool) -> tuple[Split, list[Path]]:
    queries, path = _read(root, split)
    files = [path]
    if knobs.gallery == "annotated":
        gallery = _annotated(queries)
    elif open_gallery and not any((root / place).is_file() for place in COCO_PLACES):
        # Ranked lists can be scored without the list of all pictures.
        return Split(name, tuple(queries), {}), files
    else:
        gallery, coco = coco_ids(root)
        files.append(coco)
        reading.subset(c.images_of(queries), gallery, f"{path}: images", f"{coco.name} is of another COCO set.")
    return Split(name, tuple(queries), {"all": {"": gallery}}), files


def _dataset(knobs: Knobs, root: Path, split: Split, files: list[Path]) -> Dataset:
    paths = {i: f"{int(i):012d}.jpg" for i in split.images()}
    notes = () if knobs.gallery == "coco" else ("gallery: the annotated pictures alone, not the published protocol",)
    return Dataset(
        "circo", {split.name: split}, FolderImages(root, SPEC.template, paths, "circo"), SPEC.protocols,
        c.annotations_fingerprint("circo", files, knobs.identity()), forms=FORMS, notes=notes,
    )


def load_split(knobs: Knobs, root: Path | None, name: str) -> Dataset:
    """`val` or `test`, for scoring and submissions; without the COCO file the gallery is left open."""
    folder = c.need_root(root, SPEC)
    c.choose(SPLITS, name, "circo")
    return _dataset(knobs, folder, *_split(knobs, folder, name, name, open_gallery=True))


def counts(knobs: Knobs, root: Path) -> dict[str, int | str]:
    """What `data check` compares with the facts."""

    def val() -> tuple[int, int]:
        queries = _read(root, "val")[0]
        return len(queries), sum(len(q.targets) for q in queries)

    return {
        **c.counted(("val queries", "val targets"), val),
        **c.counted(("test queries",), lambda: (len(_read(root, "test")[0]),)),
    }


def load(knobs: Knobs, root: Path | None = None) -> Dataset:
    """`report` is val (test labels are hidden); there is nothing to train on."""
    folder = c.need_root(root, SPEC)
    return _dataset(knobs, folder, *_split(knobs, folder, "report", "val", open_gallery=False))
