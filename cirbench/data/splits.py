"""One split of a dataset by its role or its official name, for scoring and submissions."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from cirbench.data.loading import load
from cirbench.plugins import find_dataset
from cirbench.settings import parse_assignments, resolve
from cirbench.types import CirbenchError, Dataset, Split

ROLES = ("train", "select", "report")


def load_named(
    name: str, root: Path | None, split: str, sets: Sequence[str] = (), whole: bool = True
) -> tuple[Dataset, Split]:
    """A dataset and one of its splits.

    Roles (`report`, `select`) come from `load`; official names (`val`, `eval`, `test1`) from the dataset file's
    `load_split`, which reads that split's annotations alone. `train` is the official split if there is one, or
    the run's own training split if not `whole`.

    Raises:
        CirbenchError: no such dataset, split or knob, or data that cannot be read.
    """
    module = find_dataset(name)
    knobs = resolve(module.Knobs, "data", parse_assignments(sets, ("data",))["data"])
    official = getattr(module, "load_split", None)
    if official is None or split in (ROLES if not whole else ROLES[1:]):
        data = load(module, knobs, root)
        if split not in data.splits:
            raise CirbenchError(f"{data.name} has no split {split!r}; it has {', '.join(data.splits)}.")
        return data, data.splits[split]
    data = load(module, knobs, root, split)
    return data, data.splits[split]
