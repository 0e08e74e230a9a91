"""Files on a full disk: one message, nothing half-written, what was there before is still there."""

from __future__ import annotations

import errno
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from commands import exit_code
from safetensors import SafetensorError

from cirbench import files, lease
from cirbench.data import cache, images
from cirbench.models import small_clip
from cirbench.runs import building, execution
from cirbench.runs.checkpoint import Checkpoint
from cirbench.types import Pixels

FULL = OSError(errno.ENOSPC, "No space left on device")


def refuse(*given: Any, **named: Any) -> None:
    raise FULL


@pytest.fixture
def full(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """From now on nothing reaches the disk."""
    monkeypatch.setattr(os, "fsync", refuse)
    return monkeypatch


def says(message: str) -> None:
    raise SafetensorError(message)


def names(folder: Path) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*"))


def test_a_full_disk_changes_nothing_and_is_told(tmp_path: Path, full: pytest.MonkeyPatch) -> None:
    (tmp_path / "old.json").write_text("old")
    for path in (tmp_path / "old.json", tmp_path / "new" / "a.json"):
        with pytest.raises(files.DiskFullError) as told:
            files.write_json(path, {"a": 1})
        message = str(told.value)
        assert message.startswith(f"the disk is full: {path} could not be written (") and "are free on /" in message
        assert "Make room and repeat the command, which resumes" in message
    assert names(tmp_path) == ["old.json"] and (tmp_path / "old.json").read_text() == "old"


def test_a_share_of_a_disk_may_be_full_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def over(handle: int) -> None:
        raise OSError(errno.EDQUOT, "Disk quota exceeded")

    monkeypatch.setattr(os, "fsync", over)
    with pytest.raises(files.DiskFullError, match="could not be written"):
        files.write_json(tmp_path / "a.json", {})


def test_other_errors_stay_what_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ZeroDivisionError), files.replacing(tmp_path / "a"):
        _ = 1 / 0
    with pytest.raises(RuntimeError, match="of another kind"), files.writing(tmp_path / "a"):
        raise RuntimeError("of another kind")
    assert names(tmp_path) == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("save", [
    lambda path: torch.save({"a": torch.zeros(9999)}, path), lambda path: says("I/O error: No space left on device"),
], ids=["torch", "safetensors"])
def test_libraries_that_lose_the_error_number(
    save: Callable[[Path], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(total=real.total, free=0))
    with pytest.raises(files.DiskFullError, match=r"model.bin could not be written \(0 kB are free"):
        with files.writing(tmp_path / "model.bin") as temporary:
            temporary.unlink()
            temporary.symlink_to("/dev/full")
            save(temporary)
    assert names(tmp_path) == []


def test_bytes_of_a_map_are_on_the_disk_before_they_are_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a full disk ends the process by a signal."""
    def sparse() -> Path:
        np.lib.format.open_memmap(tmp_path / "a.npy", "w+", np.uint8, (1000, 3000)).flush()
        return tmp_path / "a.npy"

    def unsupported(*given: int) -> None:
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    whole = np.zeros((1000, 3000), np.uint8)
    for patch in (None, unsupported):
        path = sparse()
        if patch is not None:
            monkeypatch.setattr(os, "posix_fallocate", patch, raising=False)
        files.allocate(path)
        if sys.platform == "linux":
            assert path.stat().st_blocks * 512 >= whole.nbytes
        assert np.array_equal(np.load(path), whole)
    monkeypatch.setattr(os, "posix_fallocate", refuse, raising=False)
    with pytest.raises(OSError, match="No space left"):
        files.allocate(path)


def test_pictures_that_do_not_fit_are_told_with_their_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CIRBENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(os, "posix_fallocate", refuse, raising=False)
    dataset = execution.planning.load(tiny.plan("random"))
    ids = dataset.splits["report"].images()
    needed = len(ids) * 64 * 64 * 3 / 1e3
    with pytest.raises(files.DiskFullError, match=rf"\.npy could not be written \({needed:.0f} kB are needed.*CIRBENCH_CACHE"):
        images.PixelStore(dataset.images, ids, Pixels(64, (0.5,) * 3, (0.5,) * 3))
    assert not list((tmp_path / "cache" / "pixels").iterdir()) if (tmp_path / "cache" / "pixels").exists() else True


def test_a_cache_of_scenes_that_cannot_be_written_costs_only_time(
    tmp_path: Path, full: pytest.MonkeyPatch
) -> None:
    full.setenv("CIRBENCH_CACHE", str(tmp_path / "cache"))
    dataset = execution.planning.load(tiny.plan("random"))
    name = dataset.splits["report"].images()[0]
    with dataset.images.open(name) as image:
        assert image.size == (48, 48)
    assert names(tmp_path / "cache") == [] if (tmp_path / "cache").exists() else True


def test_writers_leave_nothing_of_a_file(tmp_path: Path, full: pytest.MonkeyPatch) -> None:
    model = torch.nn.Linear(2, 2)
    (tmp_path / "run").mkdir()
    for write in (
        lambda: Checkpoint(tmp_path / "run" / "checkpoint.pt").save({"a": 1}),
        lambda: building.save_weights(tmp_path / "model.safetensors", model),  # type: ignore[arg-type]
        lambda: cache.keep(tmp_path / "cache" / "a.npy", np.zeros(3)),
        lambda: files.write_npz(tmp_path / "a.npz", {"a": np.zeros(3)}),
        lambda: lease.held(tmp_path / "run").__enter__(),
    ):
        with pytest.raises(files.DiskFullError):
            write()
        assert names(tmp_path) == ["run"]


def test_an_older_clip_outlives_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = Path(small_clip.__file__).parents[1] / "assets" / "scenes-small"
    folder = tmp_path / "clip"
    shutil.copytree(source, folder)
    model, tokenizer, _ = small_clip.load(folder)
    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    config = files.json.loads((folder / "clip.json").read_text())["model"]
    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(files.DiskFullError):
        small_clip.save(folder, model, tokenizer, config)
    kept = {p.name: p.read_bytes() for p in folder.iterdir()}
    assert {k: v for k, v in before.items() if k in kept} == kept


def test_what_a_killed_writer_left_goes_with_the_next_write(tmp_path: Path) -> None:
    for dead in (True, False):
        number = 2**22 + 1 if dead else os.getppid()
        (tmp_path / f"{files._mark(tmp_path / 'a.json')}{number}.xyz.tmp").write_text("half")
    files.write_json(tmp_path / "a.json", {})
    assert len(names(tmp_path)) == 2 and str(os.getppid()) in names(tmp_path)[0], "another process may be writing now"


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.run("sum", tmp_path_factory.mktemp("runs"), "clip-only").folder


SETS = [f"--set={name}={value}" for name, value in {**tiny.DATA, "train.epochs": 0}.items()]


@pytest.mark.parametrize("command", [
    ["new-method", "my-idea", "--out", "{out}"],
    ["run", "-m", "random", "-d", "scenes", *SETS[:-1], "-q", "--out", "{out}"],
    ["eval", "{run}", "-q", "--out", "{out}"],
    ["report", "{run}", "-o", "{out}/report.html"],
    ["report", "{run}", "-o", "{out}/report.html", "--figures", "{out}/figures"],
    ["pretrain", "clip", "--dataset", "scenes", "--out", "{out}", "--steps", "1", "--pictures", "20", "--batch-size", "8", "-q"],
    ["pretrain", "cnn", "--dataset", "scenes", "--out", "{out}", "--steps", "1", "--pictures", "20", "--batch-size", "8", "-q"],
], ids=lambda words: " ".join(words[:2]))
def test_every_command_says_that_the_disk_is_full(
    command: list[str], finished: Path, tmp_path: Path, full: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    full.setattr("cirbench.cli.pretrain.HELD_OUT", 20)
    out = tmp_path / "out"
    assert exit_code(*(word.format(out=out, run=finished) for word in command)) == 2
    said = capsys.readouterr().err
    assert said.startswith("cirbench: the disk is full: ") and said.count("\n") == 1
    assert not out.exists() or not [name for name in names(out) if (out / name).is_file()]


@pytest.fixture
def nowhere() -> Iterator[Any]:
    with Path("/dev/full").open("w") as file:
        yield file


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_output_to_a_full_disk_is_told(
    nowhere: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdout", nowhere)
    assert exit_code("list", "methods") == 2
    said = capsys.readouterr().err
    assert said.startswith("cirbench: ") and "No space left on device" in said and said.count("\n") == 1
