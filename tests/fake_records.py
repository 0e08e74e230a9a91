"""Made-up run folders of any size and shape, for tests of reports (written by the code that writes real ones)."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from PIL import Image

from cirbench.files import write_json, write_jsonl, write_npz
from cirbench.runs.record import SCHEMA, write_pictures
from cirbench.types import Protocol

CONFIG = {
    "streams": "both", "weighting": "learned", "clip": "scenes-medium", "soft_label_weight": 0.2, "editors": "both",
    "mutual_weight": 1.0, "clip_lr": 1e-3,
}
GROUPS = ("text-dominant", "balanced", "image-dominant")
EDITS = ("recolour", "reshape", "resize", "remove", "add", "move")
METRICS = ("R@1", "R@5", "R@10")

HOSTILE = (
    "<script>window.hacked=1</script>", "</script><img src=x onerror=window.hacked=1>", "\"quotes' & <b>tags</b>",
    "right \u202eto left\u202c marks \u200f", "emoji 👩‍🚀🦊 and \u2028 separators", "long " + "x" * 9_995,
    "{{ 7 * 7 }} {% raw %}", "--><!-- ]]> &lt;b&gt;", "\\u003cscript\\u003e \\",
)


def picture(seed: int) -> bytes:
    """A small WebP picture, another one for another seed."""
    generator = np.random.default_rng(seed)
    pixels = np.kron(generator.integers(40, 255, (3, 3, 3), dtype=np.uint8), np.ones((16, 16, 1), dtype=np.uint8))
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "WEBP", quality=60)
    return out.getvalue()


def write_run(
    out: Path, *, method: str = "dwc", variant: str = "", seed: int = 0, skill: float = 0.6, queries: int = 60,
    gallery: int = 120, overrides: Mapping[str, Any] | None = None, data: Mapping[str, Any] | None = None,
    texts: tuple[str, ...] = (), pictures: int = 30, weights: bool = False, explain: bool = False, steps: int = 0,
    names: str = "image-{:05d}", notes: tuple[str, ...] = (), group_average: bool = False, dataset: str = "scenes", ties: int = 0,
    **inputs: Any,
) -> Path:
    """One finished run; `skill` is about the share of queries answered at rank 1.

    Queries and gallery depend on `queries`, `gallery`, `texts`, `names` and `dataset` only, so runs can be compared.
    """
    overrides, data = dict(overrides or {}), {"noise_rate": 0.0, "side": 48, **(data or {})}
    config = CONFIG | {k.removeprefix("method."): v for k, v in overrides.items() if k.startswith("method.")}
    fixed = np.random.default_rng(7)
    ids = [names.format(i) for i in range(gallery)]
    said = texts or ("make the red square blue", "remove the circle", "move the star up")
    rows = []
    for i in range(queries):
        reference, target = (int(n) for n in fixed.choice(gallery, 2, replace=False))
        rows.append({
            "id": f"q-{i:05d}", "reference": ids[reference], "texts": [said[i % len(said)]], "targets": [ids[target]],
            "targets_total": 1, "group": GROUPS[i % 3],
            "extra": {
                "edit": EDITS[i % 6], "mix": GROUPS[i % 3], "named": 4 if i % 2 else None,
                "boxes": [[c * 16, r * 16, c * 16 + 16, r * 16 + 16] for r in range(3) for c in range(3)],
            },
        })
    # A share of luck common to all methods, so that paired tests have something to pair.
    drawn = np.random.default_rng([11, seed, *map(ord, method + variant + repr(overrides))])
    hard = np.random.default_rng(3).random(queries)
    rank = np.where(
        0.7 * hard + 0.3 * drawn.random(queries) < skill, 1, 1 + drawn.geometric(0.08, queries)
    ).clip(1, gallery - 1).astype(np.int32)
    place = {image_id: n for n, image_id in enumerate(ids)}
    top = np.full((queries, min(50, gallery)), -1, dtype=np.int32)
    for i, row in enumerate(rows):
        target, reference = place[row["targets"][0]], place[row["reference"]]
        start = int(drawn.integers(gallery))
        others = [n % gallery for n in range(start, start + top.shape[1] + 2) if n % gallery not in (target, reference)]
        ranked = others[: top.shape[1]]
        if rank[i] <= len(ranked):
            ranked = [*ranked[: rank[i] - 1], target, *ranked[rank[i] - 1 :]]
        ranked = ranked[: top.shape[1]]
        top[i, : len(ranked)] = ranked
    numbers: dict[str, float] = {}
    codes = np.arange(queries) % 3
    for name in METRICS:
        cut = int(name[2:])
        parts = [100.0 * float(np.mean(rank[codes == g] <= cut)) for g in range(3)]
        numbers[name] = float(np.mean(parts)) if group_average else 100.0 * float(np.mean(rank <= cut))
        numbers |= {f"{g}/{name}": part for g, part in zip(GROUPS, parts, strict=True)}
    arrays = {
        "row_query/text": np.arange(queries, dtype=np.int32), "top/text": top,
        "top_score/text": np.linspace(1, 0, top.shape[1], dtype=np.float32)[None].repeat(queries, 0),
        "rank/scenes": rank, "ties/scenes": np.zeros(queries, dtype=np.int32),
    }
    if weights:
        base = np.array([0.3, 0.5, 0.7])[codes]
        arrays["weight/clip"] = (base + 0.05 * drawn.standard_normal(queries)).clip(0, 1).astype(np.float32)
        arrays["weight/cnn"] = (0.8 + 0.02 * drawn.standard_normal(queries)).clip(0, 1).astype(np.float32)
    protocol = Protocol("scenes", METRICS, average="groups" if group_average else "queries")
    run_id = f"{abs(hash_of(method, variant, seed, overrides, data, dataset, inputs, queries, gallery)):016x}"
    folder = out / f"{dataset}-{method}{'-' + variant if variant else ''}-s{seed}-{run_id[:10]}"
    write_jsonl(folder / "queries.jsonl", rows)
    write_json(folder / "gallery.json", ids)
    write_npz(folder / "rankings.npz", arrays)
    write_jsonl(folder / "training.jsonl", [
        *({"step": s, "epoch": s // 10, "losses": {"clip": 2 / (1 + s / 20), "cnn": 3 / (1 + s / 20)}, "seconds": 0.1}
          for s in range(steps)),
        *({"epoch": e, "select": {"R@1": 20.0 + 5 * e}} for e in range(steps // 10)),
        *({"epoch": e, "pairs": 64, "bound": {"clip": 1.1 + e / 2 + seed, "cnn": 2.5}}
          for e in range(steps // 10) if weights),
    ])
    if pictures:
        wanted: dict[str, None] = {}
        for i in range(min(pictures, queries)):
            wanted.update(dict.fromkeys([rows[i]["reference"], *rows[i]["targets"]]))
            wanted.update(dict.fromkeys(ids[t] for t in top[i, :10] if t >= 0))
        write_pictures(folder / "pictures.zip", {image_id: picture(place[image_id]) for image_id in wanted})
    if explain:
        write_json(folder / "explain.json", {"queries": {
            row["id"]: {
                "words": [[w, float(x)] for w, x in zip(row["texts"][0].split(), drawn.random(40), strict=False)],
                "regions": {"gate x feature": drawn.random((3, 3)).tolist(), "energy": drawn.random((3, 3)).tolist()},
            } for row in rows[:20]
        }})
    write_json(folder / "record.json", {
        "schema": SCHEMA, "id": run_id, "name": folder.name,
        "inputs": {
            "dataset": dataset, "data": data, "fingerprint": f"f{data['noise_rate']}", "images": f"i{data['noise_rate']}", "method": method,
            "config": config, "train": {"epochs": 5, "batch_size": 64}, "seed": seed, "weights": {}, "source": {},
            **inputs,
        },
        "variant": variant, "overrides": overrides,
        "selection": {"rule": "last", "epoch": 4, "metric": None, "value": None},
        "command": f"cirbench run --method {method} --dataset {dataset} --seed {seed}", "split": "report",
        "protocols": {
            "scenes": {"queries": queries, "gallery": gallery, "ties": ties, "form": "text", "metrics": numbers,
                       "definition": asdict(protocol)},
        },
        "default_protocol": "scenes", "omitted": {},
        "cost": {
            "parameters": {"trainable": 1_000_000, "total": 3_000_000}, "flops": {"query": 10**8, "image": 2 * 10**8},
            "seconds": {"total": 60.0 + seed, "train": 50.0, "cpu": 90.0 + seed, "epoch": 10.0, "features": 3.0, "evaluate": 2.0},
            "latency_ms": {"p50": 8.0, "p95": 11.0}, "peak_memory_mb": 900.0,
        },
        "environment": {
            "cirbench": "0.1", "python": "3.12", "torch": "2.9", "commit": "0" * 40, "threads": 1, "device": "cpu",
            "machine": {"cpu": "test", "cores": 2},
        },
        "started": "2026-01-01T00:00:00+00:00", "finished": "2026-01-01T00:01:00+00:00", "notes": list(notes),
    })
    return folder


def hash_of(*parts: Any) -> int:
    """A number from the text of `parts`, the same in every process."""
    import hashlib

    return int(hashlib.sha256(repr(parts).encode()).hexdigest()[:15], 16)


def write_suite(out: Path, queries: int = 60, seeds: int = 3, **more: Any) -> Path:
    """DWC, three ablations, a lambda sweep, noise and floors: something for every section."""
    # Made-up runs need not survive a power cut.
    with mock.patch("os.fsync"):
        _write_suite(out, queries, seeds, **more)
    return out


def _write_suite(out: Path, queries: int, seeds: int, **more: Any) -> None:
    for seed in range(seeds):
        common: dict[str, Any] = {"seed": seed, "queries": queries, "gallery": 2 * queries, **more}
        write_run(out, skill=0.62, weights=True, explain=seed == 0, steps=40, **common)
        for variant, key, value, skill in (
            ("no-emd", "method.editors", "none", 0.5), ("no-ssg", "method.soft_label_weight", 0.0, 0.6),
            ("no-mutual", "method.mutual_weight", 0.0, 0.57),
        ):
            write_run(out, variant=variant, overrides={key: value}, skill=skill, steps=40, **common)
        for value in (0.1, 0.4, 0.8):
            write_run(out, overrides={"method.soft_label_weight": value}, skill=0.62 - abs(value - 0.2) / 4, **common)
        write_run(out, overrides={"method.clip": "scenes-small"}, skill=0.55, **common)
        for rate in (0.2, 0.4):
            write_run(out, data={"noise_rate": rate}, skill=0.62 - rate / 2, **common)
            write_run(out, data={"noise_rate": rate}, variant="no-ssg", overrides={"method.soft_label_weight": 0.0},
                      skill=0.6 - rate, **common)
        write_run(out, method="text-only", skill=0.2, **common)
        write_run(out, method="image-only", skill=0.05, **common)
        write_run(out, method="sum", skill=0.4, **common)
