"""FashionIQ (Wu et al., CVPR 2021): two captions per query, three categories, nine text forms and three galleries."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from itertools import product
from pathlib import Path

from cirbench.data import reading
from cirbench.data.image_files import FolderImages
from cirbench.datasets import _common as c
from cirbench.datasets._checksums import SHA256
from cirbench.settings import Field, Settings
from cirbench.types import CirbenchError, Dataset, DatasetSpec, Download, Protocol, Query, Split

CATEGORIES = ("dress", "shirt", "toptee")
METRICS = ("R@10", "R@50", "mean(R@10,R@50)")

#: Who reports which of the 24 combinations, and the three forms that are scored as their only authors report them.
KNOWN = {
    "fiq-original-keep-ab": ("clip4cir",), "fiq-original-keep-avg": ("searle", "lincir"),
    "fiq-original-keep-ba": ("pic2word",), "fiq-original-drop-ab": ("covr",),
    "fiq-original-drop-both": ("artemis", "cosmo"), "fiq-val-drop-each": ("val",),
    "fiq-val-drop-tokens": ("dwc", "clvc-net"),
    "fiq-original-keep-comma": ("bge-vl", "mmret"), "fiq-original-drop-run-on": ("dcnet",),
    "fiq-pooled-keep-and-it": ("composeae",),
}
_SAYS = {
    "original": "gallery: the split file", "val": "gallery: the val queries' own images (5 to 10 points easier)",
    "keep": "the reference stays", "drop": "the reference is taken out",
    "ab": "text `a and b`", "ba": "text `b and a`", "both": "`a and b` and `b and a` as two queries",
    "avg": "embeddings of both orders averaged", "each": "each caption as a query of its own",
    "tokens": "text `<BOS> a <AND> b <EOS>`",
    "pooled": "gallery: the split files of all categories together",
    "comma": "text `a, and b`, nothing stripped", "run-on": "the words of both captions in a row",
    "and-it": "text `CATEGORY a and it b` in lower case",
}


def _protocols() -> tuple[Protocol, ...]:
    out = []
    forms = ("ab", "ba", "both", "avg", "each", "tokens")
    alone = (("original", "keep", "comma"), ("original", "drop", "run-on"), ("pooled", "keep", "and-it"))
    for gallery, kept, form in (*product(("original", "val"), ("keep", "drop"), forms), *alone):
        name = f"fiq-{gallery}-{kept}-{form}"
        out.append(Protocol(
            name, METRICS, form=form, gallery=gallery, drop_reference=kept == "drop", average="groups",
            summary="mean(R@10,R@50)", known_as=KNOWN.get(name, ()),
            note="; ".join(_SAYS[part] for part in (gallery, kept, form)) + "; unweighted mean over categories",
        ))
    return tuple(out)


_RAW = "https://raw.githubusercontent.com/XiaoxiaoGuo/fashion-iq/master"
FILES = tuple(
    f"{folder}/{stem}.{cat}.{split}.json"
    for folder, stem in (("captions", "cap"), ("image_splits", "split"))
    for cat in CATEGORIES for split in ("train", "val", "test")
)

SPEC = DatasetSpec(
    name="fashioniq",
    title="FashionIQ: dresses, shirts and tops, two captions a query",
    protocols=_protocols(),
    counts={
        f"{cat} {what}": n for cat, numbers in {
            "dress": (5985, 11452, 2017, 3817, 2628, 2024, 3818),
            "shirt": (5988, 19036, 2038, 6346, 3089, 2038, 6346),
            "toptee": (6027, 16121, 1961, 5373, 2902, 2056, 5374),
        }.items() for what, n in zip((
            "train queries", "train images", "val queries", "val images", "val images named by queries", "test queries",
            "test images",
        ), numbers, strict=True)
    },
    files=FILES,
    layout=(
        "captions/cap.<cat>.<split>.json and image_splits/split.<cat>.<split>.json (also under json/, cap/ and split/, "
        "annotations/, annotation/fashion-iq/, fashionIQ_dataset/, start_kit/data/ or the root itself); pictures as "
        "images/, images/<cat>/, img/, all_imgs/, datasets/fashion-iq/images/, image_data/<cat>/, "
        "resized_images/<cat>/ or resized_image/<cat>/<asin>, .jpg, .jpeg or .png"
    ),
    citation="Wu et al., Fashion IQ, CVPR 2021",
    licence="annotations: CDLA (variant unnamed upstream); the pictures are Amazon's and not redistributable",
    manual=(
        "Pictures: the list of addresses is at https://github.com/hongwang600/fashion-iq-metadata; many are dead, "
        "https://github.com/XiaoxiaoGuo/fashion-iq/issues/18 names mirrors. Put them under images/."
    ),
    downloads=tuple(Download(name, (f"{_RAW}/{name}",), SHA256["fashioniq"][name]) for name in FILES),
    train={"flip": "joint"},
    template=(
        "images/{id}", "img/{id}", "all_imgs/{id}", "resized_images/*/{id}", "resized_image/*/{id}",
        "image_data/*/{id}", "images/*/{id}", "start_kit/data/resized_images/*/{id}", "fashionIQ_dataset/images/{id}",
        "datasets/fashion-iq/images/{id}", "{id}",
    ),
)
SPLITS = ("train", "val", "test")


class Knobs(Settings):
    """Which categories, and how `select` is carved out of train."""

    category: str = Field("all", pattern="^(dress|shirt|toptee|all)$", description="one category, or all three")
    select_share: float = Field(0.05, ge=0, lt=1, description="share of the train queries that become `select`")
    select_seed: int = Field(0, description="seed of the carving hash")


# Each form reads the captions as the code of those who report it does; docs/protocols.md has the differences.


def _clean(query: Query) -> tuple[str, str]:
    """The two captions as CLIP4Cir and SEARLE read them; one of them may be empty (3 times in val)."""
    a, b = (text.strip(".?, ") for text in query.texts)
    return a, b


def _joined(query: Query, swapped: bool) -> str:
    """`a and b` or `b and a`, whatever the two are: where `a` is empty, ` and b`."""
    a, b = _clean(query)
    return f"{b} and {a}" if swapped else f"{a} and {b}"


def _ab(query: Query) -> list[list[str]]:
    return [[_joined(query, swapped=False)]]


def _ba(query: Query) -> list[list[str]]:
    return [[_joined(query, swapped=True)]]


def _both(query: Query) -> list[list[str]]:
    return [*_ab(query), *_ba(query)]


def _avg(query: Query) -> list[list[str]]:
    return [[*_ab(query)[0], *_ba(query)[0]]]


def _each(query: Query) -> list[list[str]]:
    """VAL: blanks at the ends are dropped and so are empty captions (12,029 rows of 6,016 queries in val)."""
    return [[text.strip()] for text in query.texts if text.strip()]


def _tokens(query: Query) -> list[list[str]]:
    """DWC and CLVC-Net: the captions as annotated."""
    a, b = query.texts
    return [[f"<BOS> {a} <AND> {b} <EOS>"]]


def _comma(query: Query) -> list[list[str]]:
    """BGE-VL: the captions as annotated; double blanks stay."""
    a, b = query.texts
    return [[f"{a}, and {b}"]]


def _run_on(query: Query) -> list[list[str]]:
    """DCNet: one word after the other, hyphens parted, full stops dropped."""
    said = " ".join(query.texts).replace("-", " ").replace(".", "")
    return [[" ".join(said.lower().split())]]


def _and_it(query: Query) -> list[list[str]]:
    """ComposeAE, one model for all categories: the captions as annotated behind the name of the category."""
    a, b = query.texts
    return [[f"{query.group} {a} and it {b}".lower()]]


def _four_ways(query: Query) -> list[list[str]]:
    """For training (`train.form`): both orders and each caption alone, an empty one too (CLIP4Cir)."""
    return [*_both(query), *([text] for text in _clean(query))]


FORMS = {
    "ab": _ab, "ba": _ba, "both": _both, "avg": _avg, "each": _each, "tokens": _tokens, "comma": _comma,
    "run-on": _run_on, "and-it": _and_it, "four-ways": _four_ways,
}


def _paths(root: Path, cat: str, split: str) -> tuple[Path, Path]:
    stem_c, stem_s = f"cap.{cat}.{split}.json", f"split.{cat}.{split}.json"
    shared = ("json/", "annotations/", "annotation/fashion-iq/", "")
    places_c = ("captions/", "cap/", "start_kit/data/captions/", "fashionIQ_dataset/captions/", *shared)
    places_s = ("image_splits/", "split/", "start_kit/data/image_splits/", "fashionIQ_dataset/image_splits/", *shared)
    return (
        c.find(root, [f"{p}{stem_c}" for p in places_c], SPEC), c.find(root, [f"{p}{stem_s}" for p in places_s], SPEC)
    )


def _read(root: Path, cat: str, split: str) -> tuple[list[Query], tuple[str, ...], list[Path]]:
    """Queries, the split file's images, the files."""
    captions, images = _paths(root, cat, split)
    gallery = reading.read_list(images)
    for n, name in enumerate(gallery):
        if not isinstance(name, str):
            reading.get({"name": name}, "name", str, f"{images}, entry {n}")
    reading.unique(gallery, f"{images}: image")
    queries = []
    for n, entry in enumerate(reading.read_list(captions)):
        where = f"{captions}, entry {n}"
        texts = reading.strings(entry, "captions", where)
        if len(texts) != 2 or not any(t.strip() for t in texts):
            raise CirbenchError(f"{where}: {len(texts)} captions ({texts!r}), exactly 2 are expected, not both empty.")
        targets = (reading.get(entry, "target", str, where),) if split != "test" or "target" in entry else ()
        queries.append(Query(f"{cat}/{n}", reading.get(entry, "candidate", str, where), texts, targets, group=cat))
    reading.subset(
        c.images_of(queries), gallery, f"{captions}: images",
        f"{images.name} belongs to another release or another category.",
    )
    return queries, tuple(gallery), [captions, images]


def _official(root: Path, name: str, split: str, cats: Sequence[str]) -> tuple[Split, list[Path]]:
    queries: list[Query] = []
    galleries: dict[str, dict[str, tuple[str, ...]]] = {"original": {}, "val": {}}
    files: list[Path] = []
    for cat in cats:
        mine, gallery, read = _read(root, cat, split)
        queries += mine
        files += read
        galleries["original"][cat] = gallery
        galleries["val"][cat] = c.images_of(mine)
    return Split(name, tuple(queries), {**galleries, "pooled": _pooled(galleries["original"])}), files


def _pooled(original: Mapping[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
    """One gallery for all queries; a picture of two categories stands in it once."""
    return {"": tuple(dict.fromkeys(image for images in original.values() for image in images))}


def _scored(knobs: Knobs) -> tuple[Protocol, ...]:
    """All protocols, less those that rank pictures of all categories where only one is loaded."""
    return tuple(p for p in SPEC.protocols if p.gallery != "pooled" or knobs.category == "all")


def _cats(knobs: Knobs) -> tuple[str, ...]:
    return CATEGORIES if knobs.category == "all" else (knobs.category,)


def _images(root: Path) -> FolderImages:
    return FolderImages(root, SPEC.template, None, "fashioniq")


def load_split(knobs: Knobs, root: Path | None, name: str) -> Dataset:
    """An official split, for scoring; no picture is touched."""
    folder = c.need_root(root, SPEC)
    c.choose(SPLITS, name, "fashioniq")
    split, files = _official(folder, name, name, _cats(knobs))
    fingerprint = c.annotations_fingerprint("fashioniq", files, {"category": knobs.category})
    return Dataset("fashioniq", {name: split}, _images(folder), _scored(knobs), fingerprint, forms=FORMS)


def counts(knobs: Knobs, root: Path) -> dict[str, int | str]:
    """What `data check` compares with the facts."""

    def one(cat: str, split: str) -> tuple[int, ...]:
        queries, gallery, _ = _read(root, cat, split)
        return (len(queries), len(gallery), *((len(c.images_of(queries)),) if split == "val" else ()))

    out: dict[str, int | str] = {}
    for cat in _cats(knobs):
        for split in SPLITS:
            names = ["queries", "images", *(["images named by queries"] if split == "val" else [])]
            out |= c.counted([f"{cat} {split} {name}" for name in names], partial(one, cat, split))
    return out


def load(knobs: Knobs, root: Path | None = None) -> Dataset:
    """`report` is the official val (test labels are hidden); `select` is carved out of train."""
    folder = c.need_root(root, SPEC)
    report, files = _official(folder, "report", "val", _cats(knobs))
    train, train_files = _official(folder, "train", "train", _cats(knobs))
    rest, carved = c.carve(train.queries, knobs.select_share, knobs.select_seed)
    splits = {"train": Split("train", tuple(rest))}
    if carved:
        own = {cat: c.images_of(q for q in carved if q.group == cat) for cat in _cats(knobs)}
        splits["select"] = Split("select", tuple(carved), {"original": own, "val": own, "pooled": _pooled(own)})
    splits["report"] = report
    # The release shares pictures between categories; `carve` keeps train and select apart, not those and val.
    asked, ranked, notes = set(c.images_of(report.queries)), set(report.images()), []
    for role, queries in (("train", rest), ("select", carved)):
        mine = set(c.images_of(queries))
        if mine & ranked:
            notes.append(
                f"{len(mine & ranked)} images of {role} also stand in a val gallery of another category, "
                f"{len(mine & asked)} of them in val queries (a property of the release)"
            )
    if not carved:
        notes.append(c.not_carved(train.queries, knobs.select_share))
    return Dataset(
        "fashioniq", splits, _images(folder), _scored(knobs),
        c.annotations_fingerprint("fashioniq", [*files, *train_files], knobs.identity()), forms=FORMS,
        notes=tuple(notes),
    )
