"""Two one-thread workers on two cores against one one-thread worker: `make bench`, on a machine that is idle."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

sys.path.insert(0, str(Path(__file__).parent.parent))
import sweeping

pytest.importorskip("pytest_benchmark")
# Runs of five seconds, about what one of the CLIP stream on `scenes` takes. A worker's first one also loads libraries, CLIP
# and data, which no number of workers makes faster.
TEXT = sweeping.TEXT.replace("seeds = [0, 1]", "seeds = [0]").replace('= 48', "= 400").replace(
    '"train.epochs" = 2', '"train.epochs" = 150').replace("checkpoints\" = 0.0", "checkpoints\" = 60.0")


def seconds(out: Path) -> float:
    """From the start of the first trial to the end of the last, as the study knows them."""
    import optuna

    from cirbench.studies.storage import open_storage

    (folder,) = (out / "sweeps").iterdir()
    (study,) = optuna.get_all_study_summaries(open_storage(folder))
    trials = optuna.load_study(study_name=study.study_name, storage=open_storage(folder)).trials
    assert [t.state.name for t in trials] == ["COMPLETE"] * 6
    return (max(t.datetime_complete for t in trials) - min(t.datetime_start for t in trials)).total_seconds()


@pytest.mark.benchmark(group="sweep")
def test_two_workers_reach_1_6_times_one(benchmark, tmp_path: Path) -> None:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if not benchmark.enabled:
        pytest.skip("a measurement: `make bench`")
    if cores < 2:
        pytest.skip("needs two cores")
    # Not the load average, in which the benchmarks before this one still stand.
    if (busy := psutil.cpu_percent(2.0)) > 15:
        pytest.skip(f"others use {busy:.0f} % of the processor, so times mean nothing")
    file, one = sweeping.write(tmp_path, TEXT), {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    # The pictures and features of both are there before either is measured.
    subprocess.run(sweeping.command(file, tmp_path / "warm", "--trials", "1"), check=True, env=one)
    subprocess.run(sweeping.command(file, tmp_path / "one"), check=True, env=one)
    # Two of two cores, also where there are more.
    two = ["taskset", "-c", ",".join(map(str, sorted(os.sched_getaffinity(0))[:2]))]
    command = [*two, *sweeping.command(file, tmp_path / "two", "--workers", "2")]
    benchmark.pedantic(lambda: subprocess.run(command, check=True, env=one), rounds=1)
    ratio = seconds(tmp_path / "one") / seconds(tmp_path / "two")
    benchmark.extra_info["times one worker"] = round(ratio, 2)
    assert ratio >= 1.6, f"two workers are {ratio:.2f} times as fast as one"
