"""Fixtures that every test may use."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest

# For `make mutation`: the same inputs for every mutant, and no search for the smallest one that fails.
hypothesis.settings.register_profile(
    "mutation", derandomize=True, database=None, phases=(hypothesis.Phase.explicit, hypothesis.Phase.generate)
)

# Threads are fixed before torch is imported: results are compared to the last bit.
os.environ.setdefault("OMP_NUM_THREADS", "2")

HERE = Path(__file__).parent


def shared_folder() -> Path | None:
    """The folder of real annotations and photographs, where the machine has it."""
    named = os.environ.get("CIRBENCH_SHARED")
    folder = Path(named) if named else HERE.parent.parent / "shared"
    return folder if (folder / "data").is_dir() else None


@pytest.fixture(scope="session")
def shared() -> Path:
    """`shared/`, or skip."""
    folder = shared_folder()
    if folder is None:
        pytest.skip("the real annotation files are not on this machine (CIRBENCH_SHARED names their folder)")
    return folder


@pytest.fixture(scope="session", autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Tests keep renders and features apart from the user's, and share them with each other."""
    os.environ["CIRBENCH_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture
def ctrl_c() -> Iterator[None]:
    """Ctrl-C raises KeyboardInterrupt, as in a terminal; processes that only run tests ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="session")
def made_up(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs of two seeds with something for every section of a report."""
    from fake_records import write_suite

    return write_suite(tmp_path_factory.mktemp("made-up"), queries=60, seeds=2, ties=3)


@pytest.fixture(scope="session")
def made_up_page(made_up: Path) -> str:
    """The report of them."""
    from cirbench.reports.build import build

    from cirbench.runs.store import find_records

    return build(find_records([made_up]))
