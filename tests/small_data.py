"""Tiny annotation files with the real schemas, one builder a dataset: `build(name, folder)`."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

CATEGORIES = ("dress", "shirt", "toptee")
WORDS = ("red", "long", "shiny", "dark", "plain", "short", "blue", "soft")


def write(path: Path, value: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(value if isinstance(value, str) else json.dumps(value), encoding="utf-8")
    return path


def fashioniq(root: Path) -> None:
    rng = random.Random(1)
    for cat in CATEGORIES:
        for split, count, queries in (("train", 40, 30), ("val", 14, 9), ("test", 8, 4)):
            ids = [f"B{cat[0].upper()}{split[0]}{n:03d}" for n in range(count)]
            if cat == "toptee" and split == "val":
                ids[0] = "BSv000"  # shared between two categories, as in the release
            write(root / f"image_splits/split.{cat}.{split}.json", ids)
            entries = []
            for n in range(queries):
                a, b = rng.sample(ids, 2) if split != "train" else (ids[n], ids[n + 1 if n % 3 < 2 else n])
                entry: dict[str, Any] = {"candidate": a, "captions": [f"is {rng.choice(WORDS)} {n}", rng.choice(WORDS)]}
                if split != "test":
                    entry["target"] = b
                entries.append(entry)
            if split == "val":
                entries[2]["captions"][0] = ""
            write(root / f"captions/cap.{cat}.{split}.json", entries)


def shoes(root: Path) -> None:
    rng = random.Random(2)
    train = [f"img_womens_pumps_{n}.jpg" for n in range(30)]
    names = [f"img_womens_clogs_{n}.jpg" for n in range(20)]
    write(root / "train_im_names.txt", "\n".join(train) + "\n")
    write(root / "eval_im_names.txt", "\n".join(names) + "\n")
    entries = []
    for pool in (train, names):
        for _ in range(18):
            a, b = rng.sample(pool, 2)
            entries.append({"ImageName": b, "ReferenceImageName": a, "RelativeCaption": f"more {rng.choice(WORDS)}"})
    entries.append({"ImageName": names[3], "ReferenceImageName": names[3], "RelativeCaption": "is identical"})
    write(root / "relative_captions_shoes.json", entries)


def fashion200k(root: Path) -> None:
    rng = random.Random(3)
    for split, count in (("train", 60), ("test", 24)):
        lines = []
        for n in range(count):
            caption = f"{rng.choice(WORDS[:4])} {rng.choice(WORDS[4:])} dress"
            lines.append(f"women/dresses/{split}/{n}/{n}_0.jpeg\t0.9\t{caption}")
        write(root / f"labels/dress_{split}_detect_all.txt", "\n".join(lines) + "\n")
    write(root / "labels/dress_test_detect_all_cn.txt", "stray\n")
    names = [f"women/dresses/test/{n}/{n}_0.jpeg" for n in range(24)]
    write(root / "test_queries.txt", "\n".join(" ".join(rng.sample(names, 2)) for _ in range(15)) + "\n")


def css3d_data() -> dict[str, Any]:
    rng = random.Random(4)
    part = lambda count: {  # noqa: E731
        "objects_img": [[{"shape": "cube", "color": "red", "size": "small", "pos": [0, 0]}] for _ in range(count)],
        "labels": [n // 2 for n in range(count)],
        "mods": [{"from": rng.sample(range(count), 3), "to": rng.sample(range(count), 3), "to_str": f"make it {word}"}
                 for word in WORDS[:5]],
    }
    return {"train": part(30), "test": part(16)}


def css3d(root: Path) -> None:
    root.mkdir(parents=True, exist_ok=True)
    np.save(root / "css_toy_dataset_novel2_small.dup.npy", np.array(css3d_data(), dtype=object), allow_pickle=True)


def cirr(root: Path) -> None:
    rng = random.Random(5)
    pair = 0
    for split, folder, count in (("train", "train", 60), ("val", "dev", 24), ("test1", "test1", 12)):
        ids = [f"{folder}-{n}-0-img0" for n in range(count)]
        write(root / f"image_splits/split.rc2.{split}.json", {i: f"./{folder}/{i}.png" for i in ids})
        entries = []
        for n in range(count // 2):
            members = rng.sample(ids[n // 6 * 6 : n // 6 * 6 + 6], 6) if split == "train" else rng.sample(ids, 6)
            pair += 1
            entry: dict[str, Any] = {
                "pairid": pair, "reference": members[0], "caption": f"{rng.choice(WORDS)} {n}",
                "img_set": {"id": n, "members": rng.sample(members, 6), "reference_rank": 1},
            }
            if split != "test1":
                entry["target_hard"] = members[1]
                entry["target_soft"] = {members[1]: 1.0, members[2]: 0.5, members[3]: -1.0, members[4]: 0.2}
                if n % 5 == 0:
                    entry["target_soft"] = {members[0]: 1.0, rng.choice([i for i in ids if i not in members]): 1.0}
                entry["img_set"]["target_rank"] = 2
            entries.append(entry)
        write(root / f"captions/cap.rc2.{split}.json", entries)


def circo(root: Path) -> None:
    rng = random.Random(6)
    ids = list(range(100, 180))
    write(root / "COCO2017_unlabeled/annotations/image_info_unlabeled2017.json", {"images": [{"id": i} for i in ids]})
    for split, count in (("val", 12), ("test", 6)):
        entries = []
        for n in range(count):
            reference, *targets = rng.sample(ids, 1 + rng.randint(1, 7))
            entry: dict[str, Any] = {
                "id": n, "reference_img_id": reference, "relative_caption": rng.choice(WORDS), "shared_concept": "x",
            }
            if split == "val":
                entry |= {"target_img_id": targets[0], "gt_img_ids": targets,
                          "semantic_aspects": rng.sample(["addition", "negation", "cardinality"], rng.randint(1, 2))}
            entries.append(entry)
        write(root / f"annotations/{split}.json", entries)


def genecis(root: Path) -> None:
    rng = random.Random(7)
    for task in ("change_object", "focus_object", "change_attribute", "focus_attribute"):
        entries = []
        for _ in range(7):
            ids = rng.sample(range(30), 9)
            image = [{"val_image_id": i} if "object" in task else {"image_id": i, "instance_bbox": [1, 2, 30, 40]}
                     for i in ids]
            entries.append({
                "condition": rng.choice(WORDS), "reference": image[0], "target": image[1],
                "gallery": image[1:8] if task == "change_object" else image[2:9],
            })
        write(root / f"{task}.json", entries)


def custom(root: Path) -> None:
    rng = random.Random(8)
    rows = ["image_id,path,split,name"]
    for split, count in (("train", 30), ("val", 10), ("test", 14)):
        ids = [f"{split}{n}" for n in range(count)]
        rows += [f"{i},pictures/{i}.jpg,{split},a {rng.choice(WORDS)} thing" for i in ids]
        lines = []
        for n in range(count // 2):
            reference, *targets = rng.sample(ids, 1 + rng.randint(1, 3))
            lines.append({"id": f"{split}-{n}", "reference": reference, "text": rng.choice(WORDS), "targets": targets})
        write(root / f"triplets.{split}.jsonl", "\n".join(map(json.dumps, lines)) + "\n")
    write(root / "images.csv", "\n".join(rows) + "\n")


BUILDERS: dict[str, Callable[[Path], None]] = {
    f.__name__: f for f in (fashioniq, shoes, fashion200k, css3d, cirr, circo, genecis, custom)
}
#: The split that is scored, by its official name.
SCORED = {
    "fashioniq": "val", "shoes": "eval", "fashion200k": "test", "css3d": "test", "cirr": "val", "circo": "val",
    "genecis": "test", "custom": "test",
}


def build(name: str, root: Path) -> Path:
    BUILDERS[name](root)
    return root
