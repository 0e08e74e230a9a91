"""A small folder of one's own pictures, and what `data check` and `run` say of it."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import exit_code
from PIL import Image

TRAIN, TEST = [f"t{n}" for n in range(8)], [f"a{n}" for n in range(6)]


def noise(seed: int, side: int = 24) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (side, side + 8, 3), dtype=np.uint8))


def encoded(image: Image.Image, kind: str, **how: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **how)
    return out.getvalue()


def write_triplets(root: Path, name: str, ids: list[str]) -> None:
    lines = [{"id": f"{name}{n}", "reference": ids[n], "text": f"number {n}", "targets": [ids[n - 1]]} for n in range(len(ids))]
    (root / f"triplets.{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def folder(root: Path) -> Path:
    """images/<id>.jpg of 8 pictures for training and 6 to report, without images.csv."""
    (root / "images").mkdir(parents=True)
    for n, name in enumerate([*TRAIN, *TEST]):
        (root / f"images/{name}.jpg").write_bytes(encoded(noise(n), "JPEG"))
    write_triplets(root, "train", TRAIN)
    write_triplets(root, "test", TEST)
    return root


def table(root: Path, splits: dict[str, str] | None = None) -> Path:
    """The same with images.csv; `splits` replaces the column `split` of some."""
    folder(root)
    rows = ["image_id,path,split"]
    for name in [*TRAIN, *TEST]:
        split = (splits or {}).get(name, "train" if name in TRAIN else "test")
        rows.append(f"{name},images/{name}.jpg,{split}")
    (root / "images.csv").write_text("\n".join(rows) + "\n")
    return root


def call(capsys: pytest.CaptureFixture[str], *args: Any) -> tuple[int, str, str]:
    """Exit code, standard output, errors."""
    code = exit_code(*map(str, args))
    said = capsys.readouterr()
    return code, said.out, said.err


def check(capsys: pytest.CaptureFixture[str], root: Path, *more: str, name: str = "custom") -> tuple[int, dict[str, Any]]:
    """Exit code and answer of `data check`."""
    code, out, err = call(capsys, "data", "check", name, "--root", root, "--json", *more)
    assert code in (0, 1), err
    return code, json.loads(out)


def problems(found: dict[str, Any]) -> dict[str, list[str]]:
    return {kind: entry["ids"] for kind, entry in found["problems"].items() if entry["count"]}


def run(capsys: pytest.CaptureFixture[str], root: Path, *more: str) -> tuple[int, dict[str, Any], str]:
    """Exit code, record (empty where there is none) and errors of a run of `random`."""
    code, out, err = call(
        capsys, "run", "-m", "random", "-d", "custom", "--root", root, "--out", root.parent / f"{root.name}-runs", "--json", *more
    )
    assert "Traceback" not in err
    return code, json.loads(out) if code == 0 else {}, err
