"""Shoes (Berg et al. 2010, captions of Guo et al. 2018): one relative caption a query, no validation split."""

from __future__ import annotations

from collections.abc import Sequence, Set
from pathlib import Path
from typing import Any

from cirbench.data import reading
from cirbench.data.image_files import FolderImages
from cirbench.datasets import _common as c
from cirbench.datasets._checksums import SHA256
from cirbench.settings import Field, Settings
from cirbench.types import CirbenchError, Dataset, DatasetSpec, Download, Protocol, Query, Split

METRICS = ("R@1", "R@10", "R@50", "mean(R@1,R@10,R@50)")
#: How many lines of eval_im_names.txt the copy in the VAL repository kept.
CUT = 4621
_RAW = "https://raw.githubusercontent.com/XiaoxiaoGuo/fashion-retrieval/master/dataset"

SPEC = DatasetSpec(
    name="shoes",
    title="Shoes: 14,658 pictures of shoes, one relative caption a query",
    protocols=(
        Protocol(
            "shoes-4658", METRICS, gallery="4658", summary="mean(R@1,R@10,R@50)", known_as=("artemis",),
            note="gallery: the 4,658 evaluation names; the reference is taken out",
        ),
        Protocol(
            "shoes-4621", METRICS, gallery="4621", summary="mean(R@1,R@10,R@50)",
            note="gallery: the first 4,621 names (the list cut in the VAL repository); 29 queries touch the 37 that "
            "are gone, 11 of them by their target, which then counts as a miss",
        ),
        Protocol(
            "shoes-val", METRICS, form="val", gallery="val", summary="mean(R@1,R@10,R@50)", known_as=("val",),
            note="an annotation is listed once for each of its ends that the cut list names: 3,492 rows; gallery: the "
            "cut list and whatever a row touches, 4,642 pictures",
        ),
        Protocol(
            "shoes-doubled", METRICS, form="doubled", gallery="4658", summary="mean(R@1,R@10,R@50)",
            known_as=("dwc", "clvc-net"),
            note="every annotation listed twice, as found by its target and by its reference; an approximation, since "
            "the authors' list of names is unknown",
        ),
    ),
    counts={
        "annotations": 10751, "train names": 10000, "eval names": 4658, "train queries": 8990, "eval queries": 1761,
        "doubled eval rows": 3521, "queries touching the 37 cut names": 29,
    },
    files=("relative_captions_shoes.json", "train_im_names.txt", "eval_im_names.txt"),
    layout=(
        "relative_captions_shoes.json, train_im_names.txt and eval_im_names.txt; pictures as "
        "womens_<type>/<n>/img_womens_<type>_<id>.jpg (also under attributedata/ or images/)"
    ),
    citation="Berg et al., Automatic Attribute Discovery, ECCV 2010; Guo et al., Dialog-based Retrieval, NeurIPS 2018",
    licence="captions: `MIT` in the README of fashion-retrieval, without a licence file; pictures: not redistributable",
    manual=(
        "Pictures: http://tamaraberg.com/attributesDataset/attributedata.tar.gz; unpack under the root "
        "(attributedata/womens_*/...). `data get` tries that."
    ),
    downloads=(
        *(Download(name, (f"{_RAW}/{name}",), SHA256["shoes"][name]) for name in
          ("relative_captions_shoes.json", "train_im_names.txt", "eval_im_names.txt")),
        Download(
            "attributedata.tar.gz", ("http://tamaraberg.com/attributesDataset/attributedata.tar.gz",), unpack=".",
            pictures=True,
        ),
    ),
    train={"flip": "joint"},
    template=(
        "attributedata/womens_*/*/{id}", "womens_*/*/{id}", "attributedata/womens/*/*/{id}", "womens/*/*/{id}",
        "images/womens_*/*/{id}", "images/{id}", "{id}",
    ),
)


class Knobs(Settings):
    """How `select` is carved out of train."""

    select_share: float = Field(0.05, ge=0, lt=1, description="share of the train queries that become `select`")
    select_seed: int = Field(0, description="seed of the carving hash")


def _doubled(query: Query) -> list[list[str]]:
    """Both rows of an annotation; only one if reference and target are the same picture."""
    return [[query.texts[0]]] * (1 if query.reference in query.targets else 2)


def _forms(gone: Set[str]) -> dict[str, Any]:
    """Text forms; `gone` are the names that the cut list lacks, none of which can be found by its list."""

    def val(query: Query) -> list[list[str]]:
        return [[query.texts[0]] for end in dict.fromkeys((query.reference, *query.targets)) if end not in gone]

    return {"text": c.plain, "doubled": _doubled, "val": val}


FORMS = _forms(frozenset())


def _read(root: Path) -> tuple[list[Query], list[str], list[str], list[Path]]:
    """All annotations, train names, eval names, files."""
    sub = ("", "attributedata/", "annotations/")
    paths = [c.find(root, [f"{s}{name}" for s in sub], SPEC) for name in SPEC.files]
    queries = []
    for n, entry in enumerate(reading.read_list(paths[0])):
        where = f"{paths[0]}, entry {n}"
        text = reading.get(entry, "RelativeCaption", str, where)
        if not text.strip():
            raise CirbenchError(f"{where}: the caption is empty.")
        reference, target = (reading.get(entry, key, str, where) for key in ("ReferenceImageName", "ImageName"))
        queries.append(Query(str(n), reference, (text,), (target,)))
    return queries, reading.read_names(paths[1]), reading.read_names(paths[2]), paths


def _inside(queries: list[Query], names: list[str]) -> list[Query]:
    have = set(names)
    return [q for q in queries if q.reference in have and q.targets[0] in have]


def _affected(queries: list[Query], names: list[str]) -> int:
    cut = set(names[CUT:])
    return sum(q.reference in cut or q.targets[0] in cut for q in queries)


def _galleries(names: list[str], queries: Sequence[Query], gone: Set[str]) -> dict[str, dict[str, tuple[str, ...]]]:
    """Of a scored split: the whole list, the cut one, and the cut one with the pictures that its rows touch."""
    cut = tuple(n for n in names if n not in gone)
    touched = (q for q in queries if not {q.reference, *q.targets} <= gone)
    val = dict.fromkeys((*cut, *(image for q in touched for image in (q.reference, *q.targets))))
    return {"4658": {"": tuple(names)}, "4621": {"": cut}, "val": {"": tuple(val)}}


def _eval(name: str, queries: list[Query], names: list[str]) -> tuple[Split, tuple[str, ...]]:
    mine = _inside(queries, names)
    if not mine:
        raise CirbenchError("shoes: no annotation has both images in eval_im_names.txt: is it another release?")
    notes = [
        f"shoes-4621: {_affected(mine, names)} queries touch names cut from the list; those whose target is gone are "
        "misses"
    ]
    if len(names) == CUT:
        notes.append(
            "eval_im_names.txt is the cut list of the VAL repository (4,621 names, 37 are missing); shoes-val needs "
            "the 37 names as well, so it is left out"
        )
    return Split(name, tuple(mine), _galleries(names, mine, set(names[CUT:]))), tuple(notes)


def _dataset(
    folder: Path, splits: dict[str, Split], names: list[str], fingerprint: str, notes: tuple[str, ...]
) -> Dataset:
    """`names` is the list of evaluation names: what it holds beyond the cut decides about `shoes-val`."""
    protocols = tuple(p for p in SPEC.protocols if p.gallery != "val" or len(names) != CUT)
    return Dataset(
        "shoes", splits, FolderImages(folder, SPEC.template, None, "shoes"), protocols, fingerprint,
        forms=_forms(set(names[CUT:])), notes=notes,
    )


def _check(queries: list[Query], train: list[str], evaluation: list[str]) -> None:
    both = set(train) & set(evaluation)
    if both:
        raise CirbenchError(f"shoes: {len(both)} names are in both lists of names, e.g. {min(both)!r}.")


def load_split(knobs: Knobs, root: Path | None, name: str) -> Dataset:
    """`eval` or `train`, for scoring; no picture is touched. `test` and `val` are other words for `eval`."""
    folder = c.need_root(root, SPEC)
    c.choose(("eval", "train", "val", "test"), name, "shoes")
    queries, train, names, files = _read(folder)
    _check(queries, train, names)
    notes: tuple[str, ...] = ()
    if name == "train":
        # Nothing is cut from the list of train names.
        mine = _inside(queries, train)
        split = Split(name, tuple(mine), _galleries(train, mine, frozenset()))
    else:
        split, notes = _eval(name, queries, names)
    return _dataset(folder, {name: split}, names, c.annotations_fingerprint("shoes", files, {}), notes)


def counts(knobs: Knobs, root: Path) -> dict[str, int | str]:
    """What `data check` compares with the facts."""
    queries, train, names, _ = _read(root)
    mine = _inside(queries, names)
    return {
        "annotations": len(queries), "train names": len(train), "eval names": len(names),
        "train queries": len(_inside(queries, train)), "eval queries": len(mine),
        "doubled eval rows": sum(len(_doubled(q)) for q in mine),
        "queries touching the 37 cut names": _affected(mine, names),
    }


def load(knobs: Knobs, root: Path | None = None) -> Dataset:
    """`report` is the evaluation list; `select` is carved out of train, since there is no validation split."""
    folder = c.need_root(root, SPEC)
    queries, train_names, names, files = _read(folder)
    _check(queries, train_names, names)
    report, notes = _eval("report", queries, names)
    everything = _inside(queries, train_names)
    rest, carved = c.carve(everything, knobs.select_share, knobs.select_seed)
    splits = {"train": Split("train", tuple(rest))}
    if carved:
        own = {"": c.images_of(carved)}
        splits["select"] = Split("select", tuple(carved), {"4658": own, "4621": own, "val": own})
    else:
        notes = (*notes, c.not_carved(everything, knobs.select_share))
    splits["report"] = report
    outside = len(queries) - len(everything) - len(report.queries)
    if outside:
        notes = (*notes, f"{outside} annotations name images outside both lists of names and are in no split")
    return _dataset(folder, splits, names, c.annotations_fingerprint("shoes", files, knobs.identity()), notes)
