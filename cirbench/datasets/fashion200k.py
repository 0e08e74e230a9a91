"""Fashion200K (Han et al., ICCV 2017) with the queries of TIRG: "replace A with B", hits by equal caption."""

from __future__ import annotations

import hashlib
import random
import re
from pathlib import Path

from cirbench.data import reading
from cirbench.data.image_files import FolderImages
from cirbench.datasets import _common as c
from cirbench.seeds import derive
from cirbench.settings import Field, Settings
from cirbench.types import CirbenchError, Dataset, DatasetSpec, Download, Protocol, Query, Split

METRICS = ("R@1", "R@10", "R@50", "mean(R@1,R@10,R@50)")

SPEC = DatasetSpec(
    name="fashion200k",
    title="Fashion200K: 202,000 product pictures, one attribute replaced, hits by equal caption",
    protocols=(
        Protocol(
            "f200k-replace", METRICS, form="replace", summary="R@10",
            known_as=("tirg", "val", "clvc-net", "artemis"),
            note="text `replace A with B`; any image with the target's caption is a hit; the reference is taken out",
        ),
        Protocol(
            # The mean is what its authors choose the epoch by.
            "f200k-leaky", METRICS, form="leaky", summary="mean(R@1,R@10,R@50)", known_as=("dwc",),
            note="the text goes on `and get <target caption>`, and equal captions are hits: it contains its answer",
        ),
        Protocol(
            "f200k-caption", METRICS, form="caption", summary="R@10", known_as=("composeae",),
            note="the text is the target's whole caption, and equal captions are hits: it is its answer",
        ),
    ),
    counts={
        "train images": 172049, "train captions": 53099, "modifiable images": 106464, "test images": 29789,
        "test queries": 33480,
    },
    files=("labels/dress_train_detect_all.txt", "labels/dress_test_detect_all.txt", "test_queries.txt"),
    layout=(
        "labels/<category>_{train,test}_detect_all.txt, women/<category>/<kind>/<id>/<id>_<n>.jpeg as named there, "
        "and test_queries.txt"
    ),
    citation="Han et al., Automatic Spatially-aware Fashion Concept Discovery, ICCV 2017; queries of Vo et al., 2019",
    licence="none stated upstream; do not redistribute",
    manual=(
        "Labels and pictures are on the authors' Google Drive, linked from https://github.com/xthan/fashion-200k "
        "(follow its README). Unpack so that labels/ and women/ lie under the root."
    ),
    downloads=(
        Download("test_queries.txt", ("https://storage.googleapis.com/image_retrieval_css/test_queries.txt",)),
    ),
    template=("{path}", "images/{path}"),
)

_LABELS = re.compile(r"^(.+)_(train|test)_detect_all\.txt$")
#: TIRG spells out punctuation of captions in words, so that tokenisers keep it.
_MARKS = ((".", "dotmark"), ("?", "questionmark"), ("&", "andmark"), ("*", "starmark"))


class Knobs(Settings):
    """How training triplets are generated and `select` is carved out of train."""

    triplet_seed: int = Field(0, description="seed of the training triplets: one for each image that can be modified")
    select_share: float = Field(0.1, ge=0, lt=1, description="share of train products that become `select`")
    select_seed: int = Field(0, description="seed of the carving hash")
    select_queries: int = Field(2000, ge=1, description="maximum number of queries of `select`")


def _caption(text: str) -> str:
    text = text.strip()
    for mark, word in _MARKS:
        text = text.replace(mark, word)
    return " ".join(text.split())


def _labels(root: Path, part: str) -> tuple[dict[str, str], list[Path], list[str]]:
    """Image path -> caption, in the order of sorted files; the files; other files, which are ignored."""
    folder = root / "labels"
    if not folder.is_dir():
        c.find(root, [f"labels/dress_{part}_detect_all.txt"], SPEC, SPEC.manual)
    files, stray = [], []
    for path in sorted(folder.iterdir()):
        match = _LABELS.match(path.name)
        if match and match[2] == part:
            files.append(path)
        elif not match and path.is_file():
            stray.append(path.name)
    if not files:
        raise CirbenchError(f"fashion200k: {folder} holds no *_{part}_detect_all.txt. {SPEC.manual}")
    captions: dict[str, str] = {}
    for path in files:
        for number, line in enumerate(reading.read_lines(path), 1):
            fields = line.split("\t")
            if len(fields) != 3:
                raise CirbenchError(
                    f"{path}, line {number}: {len(fields)} tab-separated fields, expected 3 (path, score, caption)."
                )
            image, caption = fields[0].strip(), _caption(fields[2])
            if not image or not caption:
                raise CirbenchError(f"{path}, line {number}: the path or the caption is empty.")
            if image in captions:
                raise CirbenchError(f"{path}, line {number}: {image} is labelled twice.")
            captions[image] = caption
    return captions, files, stray


def differing_words(source: str, target: str) -> tuple[str, str]:
    """The first word of the source not in the target, and the reverse; the last word where none differs (TIRG).

    Example:
        >>> differing_words("red dress", "blue dress")
        ('red', 'blue')
    """
    a, b = source.split(), target.split()
    return next((w for w in a if w not in b), a[-1]), next((w for w in b if w not in a), b[-1])


def replace_text(source: str, target: str) -> str:
    """The modification text of TIRG."""
    return "replace {} with {}".format(*differing_words(source, target))


def _by_caption(captions: dict[str, str]) -> dict[str, tuple[str, ...]]:
    groups: dict[str, list[str]] = {}
    for image, caption in captions.items():
        groups.setdefault(caption, []).append(image)
    return {caption: tuple(images) for caption, images in groups.items()}


def _query(
    query_id: str, source: str, target: str, captions: dict[str, str], hits: dict[str, tuple[str, ...]]
) -> Query:
    a, b = captions[source], captions[target]
    # The tuple of hits is shared between queries: a popular caption has hundreds of images.
    return Query(
        query_id, source, (replace_text(a, b),), hits[b],
        extra={"source_caption": a, "target_caption": b, "target": target},
    )


def parents(caption: str) -> list[str]:
    """The caption without one of its words, for each different word; removed as a whole word, once."""
    words = caption.split()
    return list(dict.fromkeys(" ".join(words[:i] + words[i + 1 :]) for i in range(len(words))))


def _children(captions: dict[str, str]) -> dict[str, list[str]]:
    """Parent -> the different captions it comes from; only parents of two or more."""
    out: dict[str, list[str]] = {}
    for caption in dict.fromkeys(captions.values()):
        for parent in parents(caption):
            if parent:
                out.setdefault(parent, []).append(caption)
    return {parent: found for parent, found in out.items() if len(found) > 1}


def triplets(captions: dict[str, str], seed: int, name: str) -> list[Query]:
    """One triplet for every image whose caption is one word away from another's; the same for the same seed.

    Every draw depends only on the seed and the image, so that adding an image shifts no other draw of a parent.
    """
    children, hits = _children(captions), _by_caption(captions)
    out: list[Query] = []
    for image, caption in captions.items():
        options = [p for p in parents(caption) if p in children]
        if not options:
            continue
        rng = random.Random(derive(seed, "fashion200k", image))
        others = [other for other in children[rng.choice(options)] if other != caption]
        target = rng.choice(hits[rng.choice(others)])
        out.append(_query(f"{name}-{len(out)}", image, target, captions, hits))
    return out


def _product(image: str) -> str:
    return image.rpartition("/")[0] or image


def _carved(captions: dict[str, str], knobs: Knobs) -> tuple[dict[str, str], dict[str, str]]:
    """(train, select) captions; all pictures of one product stay together."""
    limit = int(knobs.select_share * 2**64)

    def held(image: str) -> bool:
        key = f"{knobs.select_seed}:{_product(image)}".encode()
        return int.from_bytes(hashlib.sha256(key).digest()[:8], "big") < limit

    return {i: t for i, t in captions.items() if not held(i)}, {i: t for i, t in captions.items() if held(i)}


def _report(root: Path, name: str) -> tuple[Split, list[Path], list[str], dict[str, str]]:
    captions, files, stray = _labels(root, "test")
    path = c.find(root, ("test_queries.txt", "labels/test_queries.txt"), SPEC)
    hits = _by_caption(captions)
    queries = []
    for number, line in enumerate(reading.read_lines(path)):
        fields = line.split()
        if len(fields) != 2:
            raise CirbenchError(f"{path}, line {number + 1}: {len(fields)} fields, expected 2 (source, target).")
        for image in fields:
            if image not in captions:
                raise CirbenchError(f"{path}, line {number + 1}: {image} has no label in labels/*_test_detect_all.txt.")
        queries.append(_query(str(number), fields[0], fields[1], captions, hits))
    return Split(name, tuple(queries), {"all": {"": tuple(captions)}}), [*files, path], stray, captions


def _replace(query: Query) -> list[list[str]]:
    return [[query.texts[0]]]


def _leaky(query: Query) -> list[list[str]]:
    return [[f"{query.texts[0]} and get {query.extra['target_caption']}"]]


def _caption_of_target(query: Query) -> list[list[str]]:
    return [[query.extra["target_caption"]]]


FORMS = {"replace": _replace, "leaky": _leaky, "caption": _caption_of_target}


def load_split(knobs: Knobs, root: Path | None, name: str) -> Dataset:
    """The official split `test`, for scoring; no picture is touched."""
    folder = c.need_root(root, SPEC)
    c.choose(("test",), name, "fashion200k")
    split, files, stray, _ = _report(folder, name)
    return Dataset(
        "fashion200k", {name: split}, FolderImages(folder, SPEC.template, None, "fashion200k"), SPEC.protocols,
        c.annotations_fingerprint("fashion200k", files, {}), forms=FORMS, notes=_notes(stray),
    )


def _notes(stray: list[str]) -> tuple[str, ...]:
    return (f"labels/: ignored {', '.join(stray)} (not named *_detect_all.txt exactly)",) if stray else ()


def counts(knobs: Knobs, root: Path) -> dict[str, int | str]:
    """What `data check` compares with the published counts."""

    def train() -> tuple[int, ...]:
        labels, _, _ = _labels(root, "train")
        children = _children(labels)
        modifiable = sum(any(p in children for p in parents(t)) for t in labels.values())
        return len(labels), len(set(labels.values())), modifiable

    def test() -> tuple[int, ...]:
        report, _, _, labels = _report(root, "test")
        return len(labels), len(report.queries)

    return {
        **c.counted(("train images", "train captions", "modifiable images"), train),
        **c.counted(("test images", "test queries"), test),
    }


def load(knobs: Knobs, root: Path | None = None) -> Dataset:
    """Generated triplets for `train` and `select`; the queries of TIRG on all test images for `report`."""
    folder = c.need_root(root, SPEC)
    everything, files, stray = _labels(folder, "train")
    report, report_files, _, _ = _report(folder, "report")
    train, select = _carved(everything, knobs)
    queries = triplets(train, knobs.triplet_seed, "train")
    if not queries:
        raise CirbenchError(
            f"fashion200k: no two training captions under {folder} differ by one word, so there is no triplet to train "
            "on. Are labels/*_train_detect_all.txt complete?"
        )
    splits = {"train": Split("train", tuple(queries))}
    carved = triplets(select, knobs.triplet_seed, "select")
    carved.sort(key=lambda q: hashlib.sha256(f"{knobs.select_seed}:{q.reference}".encode()).digest())
    if carved:
        splits["select"] = Split("select", tuple(carved[: knobs.select_queries]), {"all": {"": tuple(select)}})
    lacking = () if carved else ("no `select`: no two captions of the products held out of train differ by one word",)
    splits["report"] = report
    return Dataset(
        "fashion200k", splits, FolderImages(folder, SPEC.template, None, "fashion200k"), SPEC.protocols,
        c.annotations_fingerprint("fashion200k", [*files, *report_files], knobs.identity()),
        captions={image: (text,) for image, text in train.items()}, forms=FORMS, notes=(*_notes(stray), *lacking),
    )
