"""The difference of two arms, and the one test of it: for tables, comparisons, ablations, questions and curves."""

from __future__ import annotations

import numpy as np

from cirbench.scoring import inference
from cirbench.scoring.inference import Estimate

from .collect import Arm, seed_values

__all__ = ["difference", "error_of"]


def difference(a: Arm, b: Arm, protocol: str, metric: str) -> np.ndarray | tuple[np.ndarray, np.ndarray] | None:
    """b - a, as `inference` wants it: (S, R) seed by seed for variants of one method with equal seeds, else both."""
    x, y = (seed_values(arm, protocol, metric) for arm in (a, b))
    if x is None or y is None or x.shape[1] != y.shape[1]:
        return None
    return y - x if a.method == b.method and a.seeds == b.seeds else (x, y)


def error_of(
    found: np.ndarray | tuple[np.ndarray, np.ndarray], clusters: np.ndarray, weights: np.ndarray | None
) -> Estimate:
    """The one test of a difference: of tables, comparisons, ablations, questions and curves."""
    if isinstance(found, tuple):
        return inference.estimate(*found, clusters, weights)
    return inference.contrast(found, clusters, weights)
