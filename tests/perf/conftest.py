"""One table of ratios at the end of `make bench`, and a file that keeps them, so that a later run is compared by ratio.

Times of a shared machine swing by a factor of ten; processor time of two things done in turn does not. So every figure is
the processor time of the subject over that of a stated baseline, median of rounds in which both were measured.
"""

from __future__ import annotations

import datetime
import json
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

HISTORY = Path(os.environ.get("CIRBENCH_BENCH_HISTORY", Path(__file__).parents[2] / ".benchmarks/ratios.jsonl"))
_FOUND: list[dict[str, Any]] = []


@pytest.fixture
def ratio(benchmark: Any) -> Callable[..., float]:
    """Measure a subject against its baseline: `ratio("name", baseline, subject, goal=1.5)` returns the ratio."""
    if not benchmark.enabled:
        pytest.skip("a measurement: `make bench`")

    def measure(
        name: str, baseline: Callable[[], object], subject: Callable[[], object], goal: float | None = None,
        rounds: int = 5, clock: Callable[[], float] = time.process_time,
    ) -> float:
        def spent(work: Callable[[], object]) -> float:
            begun = clock()
            work()
            return clock() - begun

        baseline(), subject()
        pairs = [(spent(baseline), spent(subject)) for _ in range(rounds)]
        below, above = (statistics.median(times) for times in zip(*pairs, strict=True))
        spread = sorted(b / a for a, b in pairs)
        found = {
            "name": name, "ratio": round(above / below, 3), "lowest": round(spread[0], 3), "highest": round(spread[-1], 3),
            "baseline_seconds": round(below, 4), "goal": goal,
        }
        _FOUND.append(found)
        benchmark.extra_info.update(found)
        benchmark.pedantic(lambda: None, rounds=1)
        return above / below

    return measure


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """The table, and what the newest earlier run found."""
    if not _FOUND:
        return
    before: dict[str, float] = {}
    if HISTORY.is_file():
        for line in HISTORY.read_text(encoding="utf-8").splitlines():
            before |= {row["name"]: row["ratio"] for row in json.loads(line)["ratios"]}
    terminalreporter.section("ratios to the stated baselines, processor time, median of rounds in turn")
    width = max(len(row["name"]) for row in _FOUND)
    terminalreporter.write_line(f"{'':{width}}  ratio  (range)        goal  before")
    for row in _FOUND:
        goal, old = row["goal"] or "", before.get(row["name"], "")
        span = f"({row['lowest']:.2f} to {row['highest']:.2f})"
        terminalreporter.write_line(f"{row['name']:{width}}  {row['ratio']:5.2f}  {span:14}  {goal!s:>4}  {old!s:>6}")
    HISTORY.parent.mkdir(parents=True, exist_ok=True)
    entry = {"at": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"), "ratios": _FOUND}
    with HISTORY.open("a", encoding="utf-8") as file:
        file.write(json.dumps(entry) + "\n")
