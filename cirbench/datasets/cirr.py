"""CIRR rc2 (Liu et al., ICCV 2021): natural pictures, recall over the split and over the query's subset of six."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from cirbench.data import reading
from cirbench.data.image_files import FolderImages
from cirbench.datasets import _common as c
from cirbench.datasets._checksums import SHA256
from cirbench.settings import Field, Settings
from cirbench.types import CirbenchError, Dataset, DatasetSpec, Download, Protocol, Query, Split

METRICS = ("R@1", "R@5", "R@10", "R@50", "Rs@1", "Rs@2", "Rs@3", "mean(R@5,Rs@1)")
_RAW = "https://raw.githubusercontent.com/Cuberick-Orion/CIRR/cirr_dataset"
SPLITS = ("train", "val", "test1")

SPEC = DatasetSpec(
    name="cirr",
    title="CIRR: natural pictures of NLVR2, recall over all and over a subset of six",
    protocols=(
        Protocol(
            "cirr-hard", METRICS, summary="mean(R@5,Rs@1)", known_as=("clip4cir", "searle", "lincir", "pic2word"),
            note="the one annotated target; Rs@K ranks the five other members of the query's subset",
        ),
        Protocol(
            "cirr-graded", METRICS, hit="graded", summary="mean(R@5,Rs@1)",
            known_as=("cirplant", "artemis (R@K alone)"),
            note="the highest graded label among the first K; 37 queries grade their own target nothing; ARTEMIS takes "
            "Rs@K from lists of the first 50, which is another figure (81.06 for 93.73 on the same features)",
        ),
    ),
    counts={
        "train queries": 28225, "train images": 16939, "val queries": 4181, "val images": 2297, "test1 queries": 4148,
        "test1 images": 2315,
    },
    files=tuple(f"{f}.rc2.{s}.json" for s in SPLITS for f in ("captions/cap", "image_splits/split")),
    layout=(
        "captions/cap.rc2.<split>.json and image_splits/split.rc2.<split>.json (also under cirr/; images_splits/ is "
        "accepted); pictures at the paths the split files give, under the root, img_raw/ or images/; train/ may "
        "do without its numbered folders"
    ),
    citation="Liu et al., Image Retrieval on Real-life Images with Pre-trained Vision-and-Language Models, ICCV 2021",
    licence="annotations: MIT; pictures: NLVR2, on request, not redistributable",
    manual=(
        "Pictures: fill in the form at https://lil.nlp.cornell.edu/nlvr/ (NLVR2) and unpack train/, dev/ and test1/ "
        "under the root; the split val lies in dev/."
    ),
    downloads=tuple(
        Download(f"{f}.rc2.{s}.json", (f"{_RAW}/{f}.rc2.{s}.json",), SHA256["cirr"].get(f"{f}.rc2.{s}.json", ""))
        for s in SPLITS for f in ("captions/cap", "image_splits/split")
    ),
    template=(
        "{path}", "img_raw/{path}", "images/{path}", "cirr/{path}",
        # train/ without its numbered folders
        "{top}/{file}", "img_raw/{top}/{file}", "images/{top}/{file}", "cirr/{top}/{file}",
    ),
)


class Knobs(Settings):
    """How `select` is carved out of train."""

    select_share: float = Field(0.05, ge=0, lt=1, description="share of the train queries that become `select`")
    select_seed: int = Field(0, description="seed of the carving hash")


def _read(root: Path, split: str) -> tuple[list[Query], dict[str, str], list[Path]]:
    """Queries, image id -> path, files."""
    places_c, places_s = ("captions", "cirr/captions"), ("image_splits", "cirr/image_splits", "images_splits")
    captions = c.find(root, [f"{p}/cap.rc2.{split}.json" for p in places_c], SPEC)
    images = c.find(root, [f"{p}/split.rc2.{split}.json" for p in places_s], SPEC)
    paths = reading.read_json(images)
    if not isinstance(paths, dict) or not paths or not all(isinstance(p, str) for p in paths.values()):
        found = reading.kind(paths) if not isinstance(paths, dict) else "other values" if paths else "an empty object"
        raise CirbenchError(f"{images}: an object of image name -> path is expected, found {found}.")
    queries = [_query(entry, f"{captions}, entry {n}", split) for n, entry in enumerate(reading.read_list(captions))]
    reading.unique((q.id for q in queries), f"{captions}: pairid")
    named = [i for q in queries for i in (q.reference, *q.targets, *q.extra["members"], *q.extra.get("soft", {}))]
    reading.subset(named, paths, f"{captions}: images", f"{images.name} belongs to another split or release.")
    return queries, {name: path.removeprefix("./") for name, path in paths.items()}, [captions, images]


def _query(entry: Any, where: str, split: str) -> Query:
    # One caption of test1 is empty; the server still needs an answer for it.
    reference, caption = reading.get(entry, "reference", str, where), reading.get(entry, "caption", str, where)
    members = reading.strings(reading.get(entry, "img_set", dict, where), "members", f"{where}, img_set")
    reading.unique(members, f"{where}: subset member")
    if reference not in members:
        raise CirbenchError(f"{where}: the reference {reference!r} is not among the members of its subset.")
    extra: dict[str, Any] = {"members": list(members)}
    targets: tuple[str, ...] = ()
    if split != "test1":
        targets = (reading.get(entry, "target_hard", str, where),)
        soft = reading.get(entry, "target_soft", dict, where)
        for name, value in soft.items():
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise CirbenchError(f"{where}: target_soft gives {name!r} {value!r}, a number is expected.")
        extra["soft"] = soft
        if targets[0] not in members:
            raise CirbenchError(f"{where}: the target {targets[0]!r} is not among the members of its subset.")
    return Query(str(reading.get(entry, "pairid", int, where)), reference, (caption,), targets, extra=extra)


def _images(root: Path, paths: dict[str, str]) -> FolderImages:
    return FolderImages(root, SPEC.template, paths, "cirr")


def load_split(knobs: Knobs, root: Path | None, name: str) -> Dataset:
    """An official split, for scoring and submissions; no picture is touched."""
    folder = c.need_root(root, SPEC)
    c.choose(SPLITS, name, "cirr")
    queries, paths, files = _read(folder, name)
    return Dataset(
        "cirr", {name: Split(name, tuple(queries), {"all": {"": tuple(paths)}})}, _images(folder, paths),
        SPEC.protocols, c.annotations_fingerprint("cirr", files, {}), forms={"text": c.plain},
    )


def counts(knobs: Knobs, root: Path) -> dict[str, int | str]:
    """What `data check` compares with the facts."""

    def one(split: str) -> tuple[int, int]:
        queries, paths, _ = _read(root, split)
        return len(queries), len(paths)

    out: dict[str, int | str] = {}
    for split in SPLITS:
        out |= c.counted((f"{split} queries", f"{split} images"), partial(one, split))
    return out


def load(knobs: Knobs, root: Path | None = None) -> Dataset:
    """`report` is the official val (test labels are hidden); `select` is carved out of train."""
    folder = c.need_root(root, SPEC)
    report, paths, files = _read(folder, "val")
    everything, train_paths, train_files = _read(folder, "train")
    rest, carved = c.carve(everything, knobs.select_share, knobs.select_seed)
    splits = {"train": Split("train", tuple(rest))}
    if carved:
        gallery = dict.fromkeys(i for q in carved for i in c.pictures(q))
        splits["select"] = Split("select", tuple(carved), {"all": {"": tuple(gallery)}})
    splits["report"] = Split("report", tuple(report), {"all": {"": tuple(paths)}})
    return Dataset(
        "cirr", splits, _images(folder, {**train_paths, **paths}), SPEC.protocols,
        c.annotations_fingerprint("cirr", [*files, *train_files], knobs.identity()), forms={"text": c.plain},
        notes=() if carved else (c.not_carved(everything, knobs.select_share),),
    )
