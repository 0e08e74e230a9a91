"""What reading the queries of a test set once saves a report, measured side by side: `make bench`."""

from __future__ import annotations

from pathlib import Path

import pytest
from cirbench.reports import explorer
from cirbench.reports.collect import TestSet, collect
from fake_records import write_run

from cirbench.runs.store import find_records

pytest.importorskip("pytest_benchmark")


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("runs")
    for n in range(8):
        write_run(out, overrides={"method.clip_lr": n}, queries=2000, gallery=1000, pictures=0)
    return out


def once(test: TestSet) -> None:
    explorer.explorer(test, "scenes", 0)


def by_every_method(test: TestSet) -> None:
    for arm in test.arms:
        assert len(arm.records[0].queries) == 2000
    explorer.explorer(test, "scenes", 0)


@pytest.mark.benchmark(group="explorer of 8 methods x 2,000 queries")
@pytest.mark.parametrize("how", [once, by_every_method], ids=["queries read once", "read by every method"])
def test_explorer(benchmark, runs, how) -> None:
    def fresh() -> tuple[tuple[TestSet], dict[str, object]]:
        return (collect(find_records([runs]))[0],), {}

    benchmark.pedantic(how, setup=fresh, rounds=5)
