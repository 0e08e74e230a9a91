"""Locks and leases on machines as they are: no file locks, a clock that is set, a process that is told to end."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cirbench import lease
from cirbench.types import CirbenchError

fcntl = pytest.importorskip("fcntl", reason="Windows has other locks")


@pytest.mark.parametrize("code", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_locks(code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A lone run works there; what needs locks says so."""

    def refuse(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", refuse)
    (tmp_path / "run").mkdir()
    with lease.held(tmp_path / "run") as waited:
        assert waited is False
    with pytest.raises(CirbenchError, match=r"without file locks .* which a sweep needs"), lease.lock(
        tmp_path / "claim.lock", needed="a sweep"
    ):
        pass


def test_other_errors_of_a_lock_are_not_hidden(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EIO, "broken")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(OSError, match="broken"), lease.lock(tmp_path / "x.lock"):
        pass


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="start times by ticks are Linux's")
def test_a_clock_that_is_set_makes_no_living_process_dead(monkeypatch: pytest.MonkeyPatch) -> None:
    import psutil

    holder = lease.identity()
    monkeypatch.setattr(psutil.Process, "create_time", lambda self: time.time() + 3600)
    assert not lease.Watch().dead(holder)
    assert lease.Watch().dead({**holder, "born": float(holder["born"]) - 500}), "another process had this id before"


def test_a_run_that_is_told_to_end_says_so_and_resumes(tmp_path: Path) -> None:
    code = "from cirbench.cli import main; main()"
    command = [
        sys.executable, "-c", code, "run", "-m", "sum", "-d", "scenes", "--variant", "clip-only", "--out",
        str(tmp_path / "runs"), "--quiet", "--set", "train.epochs=2000", "--set", "train.seconds_between_checkpoints=0.1",
    ]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 240
    while not list((tmp_path / "runs").glob("*/checkpoint.pt")) and time.monotonic() < deadline:
        assert process.poll() is None, process.communicate()
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 143 and "terminated; repeat the command to resume" in errors
    assert "Traceback" not in errors
    (folder,) = (tmp_path / "runs").iterdir()
    assert (folder / "checkpoint.pt").is_file() and not (folder / "lease.json").exists()


@pytest.mark.parametrize("text", ["[]", "{}", '{"machine": 3}', "[" * 100_000, '{"pid": 1e999}', '"x"'])
def test_a_lease_of_another_shape_is_nobodys(text: str, tmp_path: Path) -> None:
    (tmp_path / "lease.json").write_text(text)
    with lease.held(tmp_path) as waited:
        assert not waited and json.loads((tmp_path / "lease.json").read_text())["pid"] == os.getpid()
    assert not (tmp_path / "lease.json").exists()
