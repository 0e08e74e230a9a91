"""`kill -9` at random moments over the commands that write: repeated, each ends as if nothing had happened.

No leftover, no orphan, equal results.
"""

from __future__ import annotations

import hashlib
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
import tiny

from cirbench.studies.worker import fingerprint

pytestmark = [pytest.mark.slow, pytest.mark.timeout(7200)]

ROUNDS = 8
SETS = {**tiny.DATA, "method.clip_dim": 32, "method.cnn_dim": 16, "method.word_dim": 8, "train.batch_size": 32,
        "train.epochs": 2, "train.seconds_between_checkpoints": 0}
#: What differs between two runs of one thing.
TIMES = {"seconds", "started", "finished", "cost", "command", "environment"}


def cirbench(*words: object) -> list[str]:
    return [sys.executable, "-c", "from cirbench.cli import main; main()", *map(str, words)]


def of_run(out: Path, trained: Path) -> list[str]:
    sets = [f"--set={name}={value}" for name, value in SETS.items()]
    return cirbench("run", "-m", "dwc", "-d", "scenes", "-q", "--device", "cpu", "--out", out / "runs", *sets)


def of_eval(out: Path, trained: Path) -> list[str]:
    return cirbench("eval", trained, "-q", "--device", "cpu", "--out", out / "runs")


def of_explain(out: Path, trained: Path) -> list[str]:
    if not (out / "runs").exists():
        shutil.copytree(trained, out / "runs" / trained.name)
    return cirbench("explain", out / "runs" / trained.name, "-n", 20, "-q", "--device", "cpu")


def of_sweep(out: Path, trained: Path) -> list[str]:
    text = sweeping.TEXT.replace("[0.0, 0.5, 1.0]", "[0.0]").replace("[0, 1]", "[0]")
    return sweeping.command(sweeping.write(out.parent / f"{out.name}-file", text), out / "runs", "--workers", "2")


def of_pretrain(out: Path, trained: Path) -> list[str]:
    return cirbench("pretrain", "clip", "--dataset", "scenes", "--out", out / "clip", "--steps", 3, "--pictures", 64,
                    "--batch-size", 16, "-q")


def of_new_method(out: Path, trained: Path) -> list[str]:
    return cirbench("new-method", "my-idea", "--out", out / "mine")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.run("dwc", tmp_path_factory.mktemp("trained")).folder


def start(command: list[str], out: Path) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CIRBENCH_CACHE": str(out / "cache")}
    return subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)


def state(out: Path) -> frozenset[tuple[str, int]]:
    found = set()
    for folder, _, names in os.walk(out):
        for name in names:
            try:
                found.add((f"{folder}/{name}", os.stat(f"{folder}/{name}").st_mtime_ns))  # noqa: PTH116
            except FileNotFoundError:
                continue
    return frozenset(found)


def watch(process: subprocess.Popen[bytes], out: Path, until: int = 10**9) -> int:
    """Wait for the end of a process, or for so many changes of its files; how many there were."""
    last, changes = state(out), 0
    while changes < until and process.poll() is None:
        if (now := state(out)) != last:
            last, changes = now, changes + 1
        time.sleep(0.001)
    return changes


def plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: plain(v) for k, v in value.items() if k not in TIMES}
    return [plain(v) for v in value] if isinstance(value, list) else value


def results(out: Path) -> dict[str, Any]:
    """Name of every file -> what it holds, without times."""
    found: dict[str, Any] = {}
    for path in sorted(p for p in out.rglob("*") if p.is_file()):
        name, data = str(path.relative_to(out)), path.read_bytes()
        if path.name == "sweep.json":
            found[name] = fingerprint(json.loads(data))
        elif path.name in ("journal.log", "hashes.sqlite3"):
            found[name] = None  # trials that were taken twice, and files that were read at other times
        elif path.suffix == ".json":
            found[name] = plain(json.loads(data))
        elif path.name == "training.jsonl":
            found[name] = [plain(json.loads(line)) for line in data.splitlines()]
        else:
            found[name] = hashlib.sha256(data).hexdigest()
    return found


@pytest.mark.parametrize("command", [of_run, of_eval, of_explain, of_sweep, of_pretrain, of_new_method])
def test_killed_anywhere_and_repeated(
    command: Callable[[Path, Path], list[str]], trained: Path, tmp_path: Path
) -> None:
    whole, rng, hits = tmp_path / "whole", random.Random(command.__name__), 0
    first = start(command(whole, trained), whole)
    changes = watch(first, whole)
    assert first.returncode == 0
    expected = results(whole)
    assert not [name for name in expected if name.endswith((".tmp", "lease.json", "lease.lock", "checkpoint.pt"))]
    for number in range(ROUNDS):
        out = tmp_path / f"broken{number}"
        process = start(command(out, trained), out)
        watch(process, out, rng.randint(1, max(1, changes)))
        time.sleep(rng.choice([0, 0, rng.uniform(0, 0.05)]))
        children = sweeping.workers(process)
        hits += process.poll() is None
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert not psutil.wait_procs(children, 60)[1], "an orphan goes on working"
        code = 2 if made_whole(command, out) else 0
        assert start(command(out, trained), out).wait(600) == code
        assert results(out) == expected, number
    assert hits >= ROUNDS // 2, "kills came too late"


def made_whole(command: Callable[[Path, Path], list[str]], out: Path) -> bool:
    """Whether the file was there in full before the second call, which then refuses to touch it."""
    return command is of_new_method and (out / "mine" / "my_idea.py").exists()
