"""Small annotations of a dataset with a picture for every name in them."""

from __future__ import annotations

from pathlib import Path

from make_standins import jpeg
from small_data import build

from cirbench.plugins import find_dataset

NAMES = {
    "fashioniq": lambda root, i: root / f"images/{i}.jpg", "custom": lambda root, i: root / f"pictures/{i}.jpg",
    "shoes": lambda root, i: root / f"womens_x/0/{i}",
    "cirr": lambda root, i: root / i.partition("-")[0] / f"{i}.png",
    "fashion200k": lambda root, i: root / i, "css3d": lambda root, i: root / f"images/{i}.png",
}


def standins(name: str, root: Path) -> Path:
    """Small annotations of a dataset with a picture for every name in them."""
    build(name, root)
    module = find_dataset(name)
    for found in module.load(module.Knobs(), root).splits.values():
        for image_id in [*found.images(), *(m for q in found.queries for m in q.extra.get("members", ()))]:
            path = NAMES[name](root, image_id)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(jpeg(image_id))
    return root
