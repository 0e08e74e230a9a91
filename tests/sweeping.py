"""A small sweep for tests, how to start it as a user would, and how to kill its workers."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

from cirbench.studies.worker import fingerprint

TEXT = """
question = "Does anything get lost?"
seeds = [0, 1]
[fixed]
"method.streams" = "clip"
"method.clip" = "scenes-small"
"method.clip_dim" = 32
"data.train_scenes" = 48
"data.select_scenes" = 8
"data.report_scenes" = 12
"data.distractors" = 12
"train.epochs" = 2
"train.batch_size" = 32
"train.seconds_between_checkpoints" = 0.0
[[arms]]
method = "dwc"
[arms.space]
"method.soft_label_weight" = [0.0, 0.5, 1.0]
"method.temperature" = [0.05, 0.1]
"""


def write(folder: Path, text: str = TEXT, name: str = "small") -> str:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.toml").write_text(text)
    return str(folder / f"{name}.toml")


def command(file: str, out: Path, *more: str) -> list[str]:
    return [
        sys.executable, "-c", "from cirbench.cli import main; main()", "sweep", file, "--quiet", "--no-report",
        "--device", "cpu", "--out", str(out), *more,
    ]


def read(out: Path) -> dict[str, Any]:
    (path,) = (out / "sweeps").glob("*/sweep.json")
    return json.loads(path.read_text())


def workers(process: subprocess.Popen[bytes]) -> list[psutil.Process]:
    try:
        return psutil.Process(process.pid).children(recursive=True)
    except psutil.Error:
        return []


def crash(file: str, out: Path, rng: random.Random, total: int, took: float, *more: str) -> str:
    """One round: start with two workers, kill -9 one of them, or the command itself, and start again; what was hit.

    The moment is a random number of finished runs and up to a run more. By the clock alone a kill may come too late, as
    it would where the machine is less busy than when `took` was measured.
    """
    first = subprocess.Popen(command(file, out, "--workers", "2", *more))
    wanted, moment = rng.randrange(total - 2), rng.uniform(0, took / total)

    def finished() -> int:
        return len(list(out.glob("*/record.json")))

    while not (len(workers(first)) == 2 and finished() >= wanted) and first.poll() is None:
        time.sleep(0.05)
    until = time.monotonic() + moment
    while time.monotonic() < until and finished() <= wanted and first.poll() is None:
        time.sleep(0.02)
    hit = "nothing"
    victims = [w for w in workers(first) if w.is_running()]
    if victims:
        victim = rng.choice(victims)
        victim.send_signal(signal.SIGKILL)
        hit = "worker"
        if rng.random() < 0.3:
            first.send_signal(signal.SIGKILL)
            hit = "worker and command"
    again = subprocess.run(command(file, out, "--workers", "2", *more), timeout=1800)
    first.wait(timeout=1800)
    assert again.returncode == 0
    return hit


def crashes(folder: Path, rounds: int, more: Callable[[int], list[str]] = lambda number: []) -> list[str]:
    """An uninterrupted study, then rounds of `crash`, each equal to it; `more` is said to both commands of a round."""
    file, hits, rng = write(folder), [], random.Random(5)
    start = time.perf_counter()
    subprocess.run(command(file, folder / "whole", "--workers", "2"), check=True, timeout=1800)
    took, total = time.perf_counter() - start, len(read(folder / "whole")["runs"])
    for number in range(rounds):
        hits.append(crash(file, folder / f"broken{number}", rng, total, took, *more(number)))
        assert_equal_studies(folder / "whole", folder / f"broken{number}")
    assert set(hits) != {"nothing"}, "no kill hit a running worker"
    return hits


def assert_equal_studies(whole: Path, broken: Path) -> None:
    """Same points, same metrics to the last bit, no point or run twice, none lost."""
    one, two = read(whole), read(broken)
    assert [p["number"] for p in two["points"]] == list(range(two["total"]))
    assert all(p["state"] == "complete" for p in two["points"]), two["points"]
    assert fingerprint(one) == fingerprint(two)
    runs = [s["run"] for p in two["points"] for s in p["seeds"].values()]
    assert len(runs) == len(set(runs)) == two["total"] * len(two["seeds"])
    folders = {p.name for p in broken.iterdir() if p.name != "sweeps"}
    assert folders == set(runs), "a run was done twice, or left half done"
    for run in runs:
        first, second = (json.loads((out / run / "record.json").read_text()) for out in (whole, broken))
        assert first["protocols"] == second["protocols"] and first["select"] == second["select"]
        assert first["environment"]["threads"] == second["environment"]["threads"]
        assert not (broken / run / "lease.json").exists()
