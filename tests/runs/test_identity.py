"""A run's id: every input counts by its content, nothing counts by its place or its name."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import tiny
from small_data import build

from cirbench import numerics
from cirbench.data import cache, file_hashes
from cirbench.data.image_files import FolderImages
from cirbench.runs import execution, planning
from cirbench.runs.identity import id_of, identify
from cirbench.types import CirbenchError

ROOT = Path(__file__).parent
while not (ROOT / "pyproject.toml").is_file():
    ROOT = ROOT.parent


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A small custom dataset with pictures of noise."""
    root = build("custom", tmp_path / "data")
    rng = np.random.default_rng(0)
    for row in (root / "images.csv").read_text().splitlines()[1:]:
        path = root / row.split(",")[1]
        path.parent.mkdir(exist_ok=True)
        PIL.Image.fromarray(rng.integers(0, 256, (30, 40, 3), dtype=np.uint8)).save(path, "BMP")
        os.utime(path, (time.time() - 3600,) * 2)
    return root


def of(root: Path, **over: object) -> str:
    fields = {f"method.{k}": v for k, v in over.items()}
    planned = planning.plan("sum", "custom", "clip-only", "scenes-small", root=root, over=fields, recipe="scenes")
    return identify(planned, planning.load(planned)).id


def test_one_byte_of_one_picture_is_another_run(root: Path) -> None:
    """Same name, same size, even the same times: the content counts."""
    before = of(root)
    assert of(root) == before
    path = next(iter(sorted((root / "pictures").iterdir())))
    seen, data = path.stat(), bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(seen.st_atime_ns, seen.st_mtime_ns))
    assert path.stat().st_size == seen.st_size
    changed = of(root)
    assert changed != before
    data[-1] ^= 1
    path.write_bytes(data)
    assert of(root) == before


def test_a_dataset_elsewhere_is_the_same_run(root: Path, tmp_path: Path) -> None:
    before = of(root)
    shutil.copytree(root, tmp_path / "copy")
    assert of(tmp_path / "copy") == before
    for path in (root / "pictures").iterdir():
        path.touch()
    assert of(root) == before, "times are no content"


def test_pictures_of_equal_names_and_sizes_are_told_apart_in_one_cache(root: Path, tmp_path: Path) -> None:
    """Two folders of BMPs of one size under equal names: other features, another record."""
    other = tmp_path / "other"
    shutil.copytree(root, other)
    rng = np.random.default_rng(1)
    for path in (other / "pictures").iterdir():
        PIL.Image.fromarray(rng.integers(0, 256, (30, 40, 3), dtype=np.uint8)).save(path, "BMP")
    options = execution.Options(tmp_path / "runs", "cpu")
    records = []
    for folder in (root, other):
        planned = planning.plan("image-only", "custom", "zero-shot", "scenes-small", root=folder, recipe="scenes")
        records.append(execution.run(planned, options))
    assert records[0].id != records[1].id
    assert not np.array_equal(records[0].rankings["top_score/text"], records[1].rankings["top_score/text"])


def test_a_hash_is_remembered_and_a_change_is_seen(
    root: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("CIRBENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(file_hashes, "_known", {})
    read: list[str] = []
    real = file_hashes.file_sha256

    def counting(path: Path) -> str:
        read.append(path.name)
        return real(path)

    monkeypatch.setattr(file_hashes, "file_sha256", counting)
    # A file written a moment ago is not trusted yet: pretend that all were written long before.
    monkeypatch.setattr(file_hashes, "RECENT", -1.0)
    paths = sorted((root / "pictures").iterdir())
    first = file_hashes.file_sha256s(paths)
    assert len(read) == len(paths) and first == [real(p) for p in paths]
    monkeypatch.setattr(file_hashes, "_known", {})  # another process
    assert file_hashes.file_sha256s(paths) == first and len(read) == len(paths)
    paths[3].write_bytes(b"x")
    assert file_hashes.file_sha256s(paths)[3] == real(paths[3]) and len(read) == len(paths) + 1
    (tmp_path / "cache" / "hashes.sqlite3").write_bytes(b"not a database at all" * 100)
    monkeypatch.setattr(file_hashes, "_known", {})
    assert file_hashes.file_sha256s(paths)[:3] == first[:3], "a damaged table is made anew"


def test_a_file_written_a_moment_ago_is_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CIRBENCH_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "a.bin"
    hashes = set()
    for n in range(20):  # within one tick of the file system's clock, of one size
        path.write_bytes(bytes([n]))
        hashes.update(file_hashes.file_sha256s([path]))
    assert len(hashes) == 20


def test_a_cache_that_cannot_be_written_costs_no_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("CIRBENCH_CACHE", str(tmp_path / "file" / "cache"))
    (tmp_path / "a.bin").write_bytes(b"abc")
    assert file_hashes.file_sha256s([tmp_path / "a.bin"]) == [file_hashes.file_sha256(tmp_path / "a.bin")]


def test_an_absent_picture_is_not_an_empty_one(root: Path) -> None:
    ids = ["train0", "train1"]
    images = FolderImages(root, ("pictures/{id}",))
    before = images.fingerprint(ids)
    (root / "pictures" / "train1.jpg").write_bytes(b"")
    empty = FolderImages(root, ("pictures/{id}",)).fingerprint(ids)
    (root / "pictures" / "train1.jpg").unlink()
    assert len({before, empty, FolderImages(root, ("pictures/{id}",)).fingerprint(ids)}) == 3


# ------------------------------------------------------------------------------------- weights


def plugin(folder: Path, old: str = "clip", new: str = "encoder") -> Path:
    """The template as a loose method whose CLIP is named by another field."""
    source = (ROOT / "methods" / "_template.py").read_text(encoding="utf-8")
    source = source.replace("    clip: str = Field(", f"    {new}: str = Field(").replace("config.clip)", f"config.{new})")
    source = source.replace('"clip": "scenes-medium"', f'"{new}": "scenes-small"')
    (folder / "mine.py").write_text(source, encoding="utf-8")
    return folder / "mine.py"


def retrain(folder: Path) -> None:
    path = folder / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def test_weights_count_whatever_field_names_them(tmp_path: Path) -> None:
    path = plugin(tmp_path)
    clip = tmp_path / "my-clip"
    shutil.copytree(ROOT / "cirbench" / "assets" / "scenes-small", clip)

    def ident(where: Path) -> str:
        planned = planning.plan(str(path), "scenes", over={**tiny.DATA, "method.encoder": str(where)})
        return identify(planned, planning.load(planned)).id

    before = ident(clip)
    shutil.move(clip, tmp_path / "elsewhere")
    assert ident(tmp_path / "elsewhere") == before, "the same weights in another place"
    retrain(tmp_path / "elsewhere")
    assert ident(tmp_path / "elsewhere") != before


def test_weights_that_no_field_names_are_refused(tmp_path: Path) -> None:
    path = plugin(tmp_path)
    clip = tmp_path / "my-clip"
    shutil.copytree(ROOT / "cirbench" / "assets" / "scenes-small", clip)
    path.write_text(path.read_text().replace("encoders.clip(config.encoder)", f"encoders.clip({str(clip)!r})"))
    planned = planning.plan(str(path), "scenes", over={**tiny.DATA, "train.epochs": 1})
    with pytest.raises(CirbenchError, match=r"no field of its Config names.*Give Config a field"):
        execution.run(planned, execution.Options(tmp_path / "runs", "cpu"))
    assert not list((tmp_path / "runs").glob("*/record.json"))


def test_a_record_says_what_was_loaded(tmp_path: Path) -> None:
    loaded = tiny.run("dwc", tmp_path).data["loaded"]
    assert set(loaded) == {"scenes-small", "scenes-cnn"} and all(v.startswith("sha256:") for v in loaded.values())


# ------------------------------------------------------------------------------------- releases


def test_a_run_is_found_again_after_a_harmless_refactoring(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Other sources whose digest is vouched for return the record; sources that nobody vouches for do not."""
    names = list(numerics.PARTS)
    digests = {name: [numerics._part(name)[1]] for name in names}
    files = numerics._part("harness")[0]
    monkeypatch.setattr(numerics, "released", lambda: {k: {"numerics": 7, "accepted": v} for k, v in digests.items()})
    first = tiny.run("sum", tmp_path, method__streams="clip")
    assert first.data["inputs"]["numerics"]["harness"] == 7
    monkeypatch.setattr(numerics, "_part", lambda name: (files, f"other sources of {name}"))
    monkeypatch.setattr(execution, "_train", lambda *a: pytest.fail("trained again"))
    with pytest.raises(BaseException, match="trained again"):
        tiny.run("sum", tmp_path, method__streams="clip")
    digests.update({name: [*digests[name], f"other sources of {name}"] for name in names})
    assert tiny.run("sum", tmp_path, method__streams="clip").folder == first.folder


def test_the_id_follows_from_the_record_alone(tmp_path: Path) -> None:
    record = tiny.run("random", tmp_path)
    assert id_of(record.data["inputs"]) == record.id


def test_force_renews_what_the_cache_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CIRBENCH_CACHE", str(tmp_path / "cache"))
    first = tiny.run("sum", tmp_path / "runs", variant="clip-only")
    for path in (tmp_path / "cache" / "features").glob("*.npy"):
        np.save(path, np.load(path) * 0 + 1)  # damaged in a way that no check sees
    again = tiny.run("sum", tmp_path / "runs", variant="clip-only", force=True)
    assert np.array_equal(first.rankings["top_score/text"], again.rankings["top_score/text"])


@pytest.mark.parametrize("damage", [b"", b"\x93NUMPY", None])
def test_a_damaged_cache_file_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: bytes | None
) -> None:
    monkeypatch.setenv("CIRBENCH_CACHE", str(tmp_path / "cache"))
    first = tiny.run("dwc", tmp_path / "one")
    files = [*(tmp_path / "cache").rglob("*.npy")]
    assert {p.parent.name for p in files} == {"cache", "features", "pixels"}
    for path in files:
        data = path.read_bytes()
        path.write_bytes(data[: len(data) // 2] if damage is None else damage)
    again = tiny.run("dwc", tmp_path / "two")
    assert np.array_equal(first.rankings["top_score/text"], again.rankings["top_score/text"])


def test_a_cache_in_the_home_folder_is_written_with_a_tilde(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CIRBENCH_CACHE", "~/x")
    assert cache.cache_dir() == Path.home() / "x"


def test_the_cache_sweeps_what_killed_processes_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CIRBENCH_CACHE", str(tmp_path / "cache"))
    tiny.run("dwc", tmp_path / "one")
    files = [*(tmp_path / "cache" / "features").glob("*.npy"), *(tmp_path / "cache" / "pixels").glob("*.npy")]
    for path in files:
        path.with_name(f"{path.name}.999999.tmp").write_bytes(b"half")
        path.unlink()
    tiny.run("dwc", tmp_path / "two")
    assert all(path.is_file() for path in files) and not list((tmp_path / "cache").rglob("*.tmp"))
