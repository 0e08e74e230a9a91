"""The objective of a sweep: a run's metric on the split `select`, and its values block by block."""

from __future__ import annotations

import numpy as np

from cirbench.runs.record import Rankings, Record
from cirbench.scoring import metrics
from cirbench.studies.design import Sweep
from cirbench.types import CirbenchError

__all__ = ["BLOCKS", "blocks", "objective"]

BLOCKS = 10
"""Blocks of select queries; the pruner compares each block's values between points."""


def objective(record: Record, sweep: Sweep) -> float:
    """The metric of a run on `select`.

    Raises:
        CirbenchError: the dataset has no select split, or the record is older than sweeps.
    """
    wanted = sweep.objective
    scored = record.run.select.protocols.get(wanted.protocol) if record.run.select else None
    value = scored.metrics.get(wanted.metric) if scored else None
    if value is None:
        raise CirbenchError(
            f"{record.folder} holds no {wanted.metric} under {wanted.protocol} on select. Either its dataset has no "
            "select split, or an older version made the run; then delete the folder."
        )
    return float(value)


def blocks(record: Record, sweep: Sweep) -> list[float]:
    """The objective on each of `BLOCKS` runs of neighbouring select queries, queries of one reference together.

    A `mean(...)` is averaged query by query. Groups of queries are not weighed, so that the mean over blocks may differ
    from an objective that does: blocks are compared with each other only.
    """
    wanted = sweep.objective
    arrays = Rankings(record.folder / "select.npz")

    def damaged(what: str) -> CirbenchError:
        return CirbenchError(f"{arrays.path} is damaged: {what}. Delete {record.folder} and repeat the run.")

    def rows(part: str) -> np.ndarray:
        stored, ranks = f"value/{wanted.protocol}/{part}", f"rank/{wanted.protocol}"
        name, kinds = (stored, "iuf") if stored in arrays else (ranks, "iu")
        if name not in arrays:
            raise damaged(f"it lacks {name}")
        array = arrays[name]
        if array.ndim != 1 or not array.size or array.dtype.kind not in kinds:
            raise damaged(f"{name} holds {array.dtype} of shape {array.shape}, not a number for each query")
        return array.astype(np.float64) if name == stored else metrics.hits(array, metrics.parse(part)[1]).astype(float)

    found = [rows(part) for part in metrics.parts(wanted.metric)]
    if len({len(part) for part in found}) > 1:
        raise damaged("its arrays have different lengths")
    values = np.mean(found, axis=0)
    return [100 * float(part.mean()) for part in np.array_split(values, min(BLOCKS, len(values)))]
