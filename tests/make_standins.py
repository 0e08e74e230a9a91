"""Stand-in pictures at the real file names: tiny JPEGs, so that the real annotations can go through a whole run.

    python tests/make_standins.py shoes DIR --annotations ../shared/data/annotations/shoes
    python tests/make_standins.py fashioniq DIR --annotations ../shared/data/annotations/fashion_iq --category dress

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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", choices=["shoes", "fashioniq"])
    parser.add_argument("root", type=Path)
    parser.add_argument("--annotations", type=Path, required=True)
    parser.add_argument("--category", default="dress")
    args = parser.parse_args()
    extra = (args.category,) if args.dataset == "fashioniq" else ()
    count = globals()[args.dataset](args.root, args.annotations, *extra)
    print(f"{count} pictures under {args.root}")


if __name__ == "__main__":
    main()
