"""The folders and names of the popular repositories are accepted as they are."""

from __future__ import annotations

import shutil
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from make_standins import jpeg
from small_data import build

from cirbench.plugins import find_dataset

#: dataset -> (what each repository calls things: moves of folders, and where one picture lies).
LAYOUTS: list[tuple[str, str, dict[str, str], dict[str, str]]] = [
    ("fashioniq", "start_kit", {"captions": "start_kit/data/captions", "image_splits": "start_kit/data/image_splits"},
     {"BDv001": "start_kit/data/resized_images/dress/BDv001.jpg"}),
    ("fashioniq", "clip4cir", {}, {"BDv001": "images/BDv001.jpg"}),
    ("fashioniq", "clip4cir-parent", {"captions": "fashionIQ_dataset/captions", "image_splits": "fashionIQ_dataset/image_splits"},
     {"BDv001": "fashionIQ_dataset/images/BDv001.jpg"}),
    ("fashioniq", "covr", {"captions": "annotation/fashion-iq", "image_splits": "annotation/fashion-iq"},
     {"BDv001": "datasets/fashion-iq/images/BDv001.png"}),
    ("fashioniq", "pic2word", {"captions": "json"}, {"BDv001": "images/BDv001.png"}),
    ("fashioniq", "dwc", {}, {"BDv001": "all_imgs/BDv001.png"}),
    ("fashioniq", "clvc", {}, {"BDv001": "resized_image/dress/BDv001.jpg"}),
    ("fashioniq", "val", {}, {"BDv001": "image_data/dress/BDv001.jpeg"}),
    ("fashioniq", "artemis", {"captions": "annotations", "image_splits": "annotations"}, {"BDv001": "img/BDv001.jpg"}),
    ("shoes", "dwc", {}, {"img_womens_clogs_1.jpg": "womens_clogs/0/img_womens_clogs_1.jpg"}),
    ("shoes", "val", {}, {"img_womens_clogs_1.jpg": "attributedata/womens_clogs/0/img_womens_clogs_1.jpg"}),
    ("shoes", "artemis", {}, {"img_womens_clogs_1.jpg": "womens/womens_clogs/0/img_womens_clogs_1.jpg"}),
    ("fashion200k", "authors", {}, {"women/dresses/test/1/1_0.jpeg": "women/dresses/test/1/1_0.jpeg"}),
    ("css3d", "tirg", {}, {"css_test_000001": "images/css_test_000001.png"}),
    ("cirr", "official", {}, {"dev-1-0-img0": "img_raw/dev/dev-1-0-img0.png"}),
    ("cirr", "clip4cir", {"captions": "cirr/captions", "image_splits": "cirr/image_splits"},
     {"dev-1-0-img0": "dev/dev-1-0-img0.png"}),
    ("cirr", "covr", {}, {"dev-1-0-img0": "images/dev/dev-1-0-img0.png"}),
    ("cirr", "artemis", {"image_splits": "images_splits"}, {"dev-1-0-img0": "img_raw/dev/dev-1-0-img0.jpg"}),
    ("circo", "official", {}, {"101": "COCO2017_unlabeled/unlabeled2017/000000000101.jpg"}),
    ("genecis", "authors", {}, {"3": "val2017/000000000003.jpg", "3@1,2,30,40": "VG_100K_all/3.jpg"}),
    ("genecis", "folder", {f"{d}_{k}.json": f"genecis/{d}_{k}.json" for d in ("focus", "change") for k in ("object", "attribute")},
     {"3": "coco/val2017/000000000003.jpg", "3@1,2,30,40": "visual_genome/VG_100K_all/3.jpg"}),
    ("custom", "own", {}, {"test1": "pictures/test1.jpg"}),
]


@pytest.mark.parametrize(("name", "repository", "moves", "pictures"), LAYOUTS, ids=[f"{a[0]}-{a[1]}" for a in LAYOUTS])
def test_layouts_are_read(
    name: str, repository: str, moves: dict[str, str], pictures: dict[str, str], tmp_path: Path
) -> None:
    root = build(name, tmp_path / name)
    for old, new in moves.items():
        (root / new).parent.mkdir(parents=True, exist_ok=True)
        if (root / old).is_dir():
            shutil.copytree(root / old, root / new, dirs_exist_ok=True)
            shutil.rmtree(root / old)
        else:
            (root / old).rename(root / new)
    for image_id, path in pictures.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(jpeg(image_id))
    module = find_dataset(name)
    dataset = module.load(module.Knobs(), root)
    assert dataset.splits["report"].queries
    for image_id, path in pictures.items():
        assert image_id in dataset.splits["report"].images()
        assert dataset.images.path(image_id) == root / path  # type: ignore[attr-defined]
        assert dataset.images.open(image_id).mode == "RGB"


def test_pictures_of_genecis_are_found_from_many_threads(tmp_path: Path) -> None:
    """Looking for one picture leaves nothing behind that another thread could read as its own."""
    from cirbench.datasets.genecis import Pictures

    for place in ("val2017", "VG_100K_all"):
        (tmp_path / place).mkdir()
    for n in range(1, 9):
        (tmp_path / f"val2017/{n:012d}.jpg").write_bytes(b"x")
        (tmp_path / f"VG_100K_all/{n}.jpg").write_bytes(b"x")
    pictures, ids = Pictures(tmp_path), [f"{n}{box}" for n in range(1, 9) for box in ("", "@1,2,30,40")]
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(8) as pool:
            found = list(pool.map(pictures.path, ids * 500))
    finally:
        sys.setswitchinterval(before)
    assert found == [pictures.path(i) for i in ids] * 500
    assert {p.parent.name for p in found} == {"val2017", "VG_100K_all"}
