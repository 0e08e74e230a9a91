"""A journal of a sweep that something else tore: the study goes on, and no finished run is computed again."""

from __future__ import annotations

import errno
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import sweeping

from cirbench.files import DiskFullError
from cirbench.runs import execution
from cirbench.studies import design_file, journal, storage, worker
from cirbench.types import CirbenchError

TEXT = sweeping.TEXT.replace("[0.0, 0.5, 1.0]", "[0.0, 1.0]").replace('"train.epochs" = 2', '"train.epochs" = 1')


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder of a finished sweep of four points, and its fingerprint."""
    folder = tmp_path_factory.mktemp("finished")
    done = again(folder)
    bury(folder)
    return folder, worker.fingerprint(done.publish())


def bury(folder: Path) -> None:
    """Whoever finds the journal later is another process, and this one is dead."""
    (file,) = (folder / "runs").glob("sweeps/*/journal.log")
    file.write_bytes(file.read_bytes().replace(f'"pid":{os.getpid()}'.encode(), b'"pid":4194305'))


def again(folder: Path) -> worker.Worker:
    found = design_file.read(sweeping.write(folder, TEXT), seeds=[0])
    done = worker.Worker(found, worker.Options(folder / "runs", "cpu"))
    done.work()
    return done


def line(data: bytes, kind: int, which: int = 0) -> tuple[int, int]:
    """Where the n-th line of a kind of operation begins and ends."""
    at = 0
    for part in data.splitlines(keepends=True):
        if json.loads(part)["op_code"] == kind:
            if not which:
                return at, at + len(part)
            which -= 1
        at += len(part)
    raise AssertionError(kind)


def cut(data: bytes, kind: int, which: int) -> bytes:
    begin, end = line(data, kind, which)
    return data[: (begin + end) // 2] + b"\n" + data[end:]


def joined(data: bytes, kind: int, which: int) -> bytes:
    """Half a line, and the next one behind it, as a later worker would append it."""
    begin, end = line(data, kind, which)
    return data[: (begin + end) // 2] + data[end:]


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "the last 20 bytes missing": lambda data: data[:-20],
    "the last newline missing": lambda data: data[:-1],
    "half a line appended": lambda data: data + b'{"op_code":6,"wor',
    "half a line appended, and a newline": lambda data: data + b'{"op_code":6,"wor\n',
    "another value appended": lambda data: data + b"[]\n",
    "zero bytes appended": lambda data: data + bytes(5000),
    "zero bytes": lambda data: bytes(len(data)),
    "empty": lambda data: b"",
    "the first line cut": lambda data: cut(data, 0, 0),
    "the first trial's line cut": lambda data: cut(data, 4, 0),
    "a trial's line cut": lambda data: cut(data, 4, 2),
    "the last trial's line joined with the next": lambda data: joined(data, 4, 3),
    "a parameter's line cut": lambda data: cut(data, 5, 4),
    "the line of an end cut": lambda data: cut(data, 6, 1),
    "an attribute's line joined with the next": lambda data: joined(data, 8, 7),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_torn_journal_costs_nothing(
    damage: Callable[[bytes], bytes], finished: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(execution, "_train", lambda *a: pytest.fail("trained again"))
    shutil.copytree(finished[0] / "runs", tmp_path / "runs")
    (file,) = (tmp_path / "runs").glob("sweeps/*/journal.log")
    data = damage(file.read_bytes())
    file.write_bytes(data)
    assert worker.fingerprint(again(tmp_path).publish()) == finished[1]
    assert worker.fingerprint(again(tmp_path).publish()) == finished[1], "and so it stays"
    kept = file.with_name("journal.damaged.log")
    assert not kept.exists() or kept.read_bytes() == data


def test_a_journal_with_a_hole_anywhere_is_readable(finished: tuple[Path, str], tmp_path: Path) -> None:
    (file,) = (finished[0] / "runs").glob("sweeps/*/journal.log")
    rng, data = random.Random(0), file.read_bytes()
    for number in range(40):
        at = rng.randrange(len(data))
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / "journal.log").write_bytes(data[:at] + os.urandom(rng.choice([0, 3])) + data[at + rng.randrange(1, 400):])
        found = storage.open_storage(folder)
        for study in found.get_all_studies():
            found.get_all_trials(study._study_id)


def test_what_a_killed_writer_left_is_not_written_behind(tmp_path: Path) -> None:
    backend = journal.Journal(tmp_path / "journal.log")
    backend.append_logs([{"op_code": 2, "n": 1}])
    with (tmp_path / "journal.log").open("ab") as file:
        file.write(b'{"op_code":2,"n"')
    backend.append_logs([{"op_code": 2, "n": 2}])
    assert [log["n"] for log in backend.read_logs(0)] == [1, 2]


def test_a_full_disk_leaves_no_half_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    backend = journal.Journal(tmp_path / "journal.log")
    backend.append_logs([{"op_code": 2, "n": 1}])
    before = (tmp_path / "journal.log").read_bytes()

    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(DiskFullError, match=r"the disk is full: .*journal\.log could not be written .*resumes"):
            backend.append_logs([{"op_code": 2, "n": 2}])
    assert (tmp_path / "journal.log").read_bytes() == before


def test_a_full_disk_ends_a_sweep_and_fails_no_point(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*given: Any) -> None:
        raise DiskFullError("the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(execution, "run", full)
        with pytest.raises(CirbenchError, match="the disk is full"):
            again(tmp_path)
    bury(tmp_path)
    assert [t.state.name for t in again(tmp_path).study.trials] == ["COMPLETE"] * 4


def test_workers_end_with_their_parent_in_the_middle_of_a_run(tmp_path: Path) -> None:
    text = TEXT.replace('"train.epochs" = 1', '"train.epochs" = 100000')
    file = sweeping.write(tmp_path, text)
    parent = subprocess.Popen(sweeping.command(file, tmp_path / "runs", "--workers", "2"), stderr=subprocess.DEVNULL)
    found: list[psutil.Process] = []
    try:
        until = time.monotonic() + 300
        while len(list((tmp_path / "runs").glob("*/checkpoint.pt"))) < 2 and time.monotonic() < until:
            time.sleep(0.1)
        found = sweeping.workers(parent)
        assert len(found) == 2
        parent.send_signal(signal.SIGKILL)
        _, alive = psutil.wait_procs(found, 60)
        assert not alive, "they would train for hours"
    finally:
        for process in [parent, *found]:
            if process.poll() is None if isinstance(process, subprocess.Popen) else process.is_running():
                process.kill()
        parent.wait()


@pytest.mark.skipif(sys.platform == "win32", reason="processes get no new parent there")
def test_without_help_of_the_system_a_thread_watches_the_parent() -> None:
    code = (
        "import subprocess, sys, time\n"
        "child = 'import os, sys, time\\nfrom cirbench.studies.launch import _end_with\\n"
        "sys.platform = \"other\"; _end_with(os.getppid()); print(os.getpid(), flush=True)\\n"
        "time.sleep(600)'\n"
        "p = subprocess.Popen([sys.executable, '-c', child], stdout=subprocess.PIPE)\n"
        "print(p.stdout.readline().decode(), flush=True)"
    )
    done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, check=True, text=True)
    child = int(done.stdout)
    gone = psutil.wait_procs([psutil.Process(child)], 60)[1] == [] if psutil.pid_exists(child) else True
    assert gone
