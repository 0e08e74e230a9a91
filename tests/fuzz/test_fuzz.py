"""Damaged files: every reader returns, or refuses with one message; it raises nothing else and runs no code.

The corpus (`corpus/<reader>/refused`, `.../accepted`) holds what was found, one file each; `.gz` files are unpacked.
Add what a run of guided.py finds.
"""

from __future__ import annotations

import gzip
import random
from collections.abc import Callable
from pathlib import Path

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, given, settings, target
from mutations import mutate
from readers import BY_NAME, READERS, Tried, little_memory

CORPUS = Path(__file__).parent / "corpus"
CASES = sorted(path for path in CORPUS.glob("*/*/*") if path.is_file())
#: Examples of each reader in `make test`, and in `make test-all`.
FEW, MANY = 15, 400

Ready = Callable[[str], Tried]
pytestmark = [
    pytest.mark.timeout(120),
    # Made archives hold a name twice; torch tells of its pickles; numpy multiplies shapes before it refuses them.
    pytest.mark.filterwarnings("ignore::UserWarning", "ignore::RuntimeWarning"),
]


@pytest.fixture(scope="session")
def ready(tmp_path_factory: pytest.TempPathFactory) -> Ready:
    """A reader with its valid folder, made once."""
    made: dict[str, Tried] = {}

    def of(name: str) -> Tried:
        if name not in made:
            made[name] = Tried(BY_NAME[name], tmp_path_factory.mktemp(name))
        return made[name]

    return of


@pytest.mark.parametrize("name", BY_NAME)
def test_the_file_that_is_damaged_is_valid_at_first(name: str, ready: Ready) -> None:
    assert ready(name)(ready(name).valid) == "accepted"


@pytest.mark.parametrize("path", CASES, ids=lambda path: "/".join(path.relative_to(CORPUS).parts))
def test_what_was_found_before(path: Path, ready: Ready) -> None:
    name, verdict, _ = path.relative_to(CORPUS).parts
    body = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    tried = ready(name)
    with little_memory():
        said = tried(body)
    assert (said == "accepted") == (verdict == "accepted"), said


def attack(tried: Tried, rng: random.Random) -> None:
    body = mutate(tried.reader.kind, tried.valid, rng)
    with little_memory():
        said = tried(body)
    target(float(said == "accepted"))  # a file that is read to its end, though damaged, is the more interesting one


@pytest.mark.parametrize("reader", READERS, ids=lambda reader: reader.name)
@given(rng=st.randoms(use_true_random=False))
@settings(max_examples=FEW, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
def test_damage_is_refused_or_harmless(reader, rng: random.Random, ready: Ready) -> None:
    attack(ready(reader.name), rng)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("reader", READERS, ids=lambda reader: reader.name)
@given(rng=st.randoms(use_true_random=True))
@settings(max_examples=MANY, deadline=None, database=None, suppress_health_check=list(HealthCheck))
def test_more_damage_is_refused_or_harmless(reader, rng: random.Random, ready: Ready) -> None:
    attack(ready(reader.name), rng)
