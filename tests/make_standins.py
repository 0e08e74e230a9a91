"""Stand-in pictures at the real file names: tiny JPEGs, so that the real annotations can go through a whole run.

    python tests/make_standins.py shoes DIR --annotations $CIRBENCH_SHARED/data/annotations/shoes
    python tests/make_standins.py fashioniq DIR --annotations $CIRBENCH_SHARED/data/annotations/fashion_iq --category dress
    python tests/make_standins.py cirr DIR --annotations $CIRBENCH_SHARED/data/annotations/cirr
    python tests/make_standins.py circo DIR --annotations $CIRBENCH_SHARED/data/annotations/circo

The pictures are coloured by a hash of their name, so no two names look alike; numbers measured on them mean nothing.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import shutil
from pathlib import Path

from PIL import Image


def jpeg(name: str, side: int = 32) -> bytes:
    """A JPEG of 2x2 coloured squares."""
    key = hashlib.sha256(name.encode()).digest()
    small = Image.frombytes("RGB", (2, 2), key[:12])
    out = io.BytesIO()
    small.resize((side, side), Image.Resampling.NEAREST).save(out, "JPEG", quality=80)
    return out.getvalue()


def write(path: Path, name: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(jpeg(name, 16))


def shoes(root: Path, annotations: Path) -> int:
    """Every name of both lists, as womens_<type>/0/<name>."""
    root.mkdir(parents=True, exist_ok=True)
    for name in ("relative_captions_shoes.json", "train_im_names.txt", "eval_im_names.txt"):
        shutil.copyfile(annotations / name, root / name)
    names = [n for f in ("train_im_names.txt", "eval_im_names.txt") for n in (annotations / f).read_text().split()]
    for name in names:
        kind = name.removeprefix("img_womens_").rpartition("_")[0]
        write(root / f"womens_{kind}/0/{name}", name)
    return len(names)


def fashioniq(root: Path, annotations: Path, category: str = "dress") -> int:
    """Every image of the three split files of one category, as images/<asin>.jpg."""
    names: dict[str, None] = {}
    for split in ("train", "val", "test"):
        for file in (f"captions/cap.{category}.{split}.json", f"image_splits/split.{category}.{split}.json"):
            (root / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(annotations / file, root / file)
        names.update(dict.fromkeys(json.loads((root / f"image_splits/split.{category}.{split}.json").read_text())))
    for name in names:
        write(root / f"images/{name}.jpg", name)
    return len(names)


def cirr(root: Path, annotations: Path, queries: int = 240) -> int:
    """Every image of val and test1, and a small generated caption file on real names of the training split."""
    for split in ("train", "val", "test1"):
        for file in (f"captions/cap.rc2.{split}.json", f"image_splits/split.rc2.{split}.json"):
            (root / file).parent.mkdir(parents=True, exist_ok=True)
            if (annotations / file).is_file():
                shutil.copyfile(annotations / file, root / file)
    paths = {s: json.loads((root / f"image_splits/split.rc2.{s}.json").read_text()) for s in ("train", "val", "test1")}
    names = list(paths["train"])[:queries]
    entries = []
    for n in range(queries):
        # Sets of six, as in the release: nobody outside names their images.
        members = names[n // 6 * 6 : n // 6 * 6 + 6]
        reference, target = members[n % 6], members[(n + 1) % 6]
        entries.append({
            "pairid": n, "reference": reference, "target_hard": target, "target_soft": {target: 1.0},
            "caption": f"make it number {n % 6 + 1} of set {n // 6}",
            "img_set": {"id": n // 6, "members": members, "reference_rank": 1, "target_rank": 2},
        })
    (root / "captions/cap.rc2.train.json").write_text(json.dumps(entries))
    wanted = {name: paths["train"][name] for name in names} | paths["val"] | paths["test1"]
    for name, path in wanted.items():
        write(root / path, name)
    return len(wanted)


def circo(root: Path, annotations: Path) -> int:
    """Every image that val or test names; the list of COCO pictures holds these alone."""
    ids: dict[int, None] = {}
    for split in ("val", "test"):
        file = f"annotations/{split}.json"
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(annotations / file, root / file)
        for entry in json.loads((root / file).read_text()):
            ids.update(dict.fromkeys([entry["reference_img_id"], *entry.get("gt_img_ids", [])]))
    listed = root / "COCO2017_unlabeled/annotations/image_info_unlabeled2017.json"
    listed.parent.mkdir(parents=True, exist_ok=True)
    listed.write_text(json.dumps({"images": [{"id": i} for i in sorted(ids)]}))
    for i in ids:
        write(root / f"COCO2017_unlabeled/unlabeled2017/{i:012d}.jpg", str(i))
    return len(ids)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", choices=["shoes", "fashioniq", "cirr", "circo"])
    parser.add_argument("root", type=Path)
    parser.add_argument("--annotations", type=Path, required=True)
    parser.add_argument("--category", default="dress")
    args = parser.parse_args()
    extra = (args.category,) if args.dataset == "fashioniq" else ()
    count = globals()[args.dataset](args.root, args.annotations, *extra)
    print(f"{count} pictures under {args.root}")


if __name__ == "__main__":
    main()
