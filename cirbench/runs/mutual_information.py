"""A lower bound on the mutual information between a stream's queries and their targets, measured on `select`.

I(query; target) >= log N - L in nats, L the hard-label contrast (InfoNCE) of N queries with N targets, each query's
own target among them (van den Oord et al. 2018, arXiv 1807.03748; Poole et al. 2019, arXiv 1905.06922). The bound
cannot exceed log N, so two numbers compare only at equal N: the same N pairs serve every epoch, seed and method.
No query's target is a hit of another query. Pairs are drawn without replacement, so the bound is approximate.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from cirbench.data.batches import Feed, first_text
from cirbench.seeds import derive
from cirbench.types import Dataset, Method, OptionalHooks, Query, Split, TrainBatch

#: N, and how many pairs are encoded at once.
PAIRS, SLICE = 256, 64


def distinct(split: Split, most: int = PAIRS) -> list[Query]:
    """Up to `most` queries, always the same ones, no two of which share a target."""
    order = np.random.Generator(np.random.PCG64(derive(0, "pairs"))).permutation(len(split.queries))
    used: set[str] = set()
    out: list[Query] = []
    for query in (split.queries[n] for n in order):
        if len(out) < most and query.targets and used.isdisjoint(query.targets):
            used.update(query.targets)
            out.append(query)
    return out


def bound(queries: Tensor, targets: Tensor, temperature: float) -> float:
    """(N, D), (N, D), one pair per row -> log N - L in nats, L at this temperature."""
    # On the CPU, where every machine has float64.
    logits = queries.cpu().double() @ targets.cpu().double().T / temperature
    return math.log(len(logits)) - F.cross_entropy(logits, torch.arange(len(logits))).item()


class Bounds:
    """Measures a method's streams by its `contrasts` hook; calling it gives {stream: nats}.

    Args:
        method: an nn.Module with `contrasts`.
        dataset: source of the pictures.
        queries: of `distinct`.
        form: text form of the queries, the default protocol's for every method.
        device: to compute on.
        quiet: no progress bars.
    """

    def __init__(
        self, method: Method, dataset: Dataset, queries: Sequence[Query], form: str, device: torch.device,
        quiet: bool = True,
    ) -> None:
        self.method, self.references = method, [q.reference for q in queries]
        self.targets, self.words = [q.targets[0] for q in queries], [first_text(dataset, q, form) for q in queries]
        images = list(dict.fromkeys([*self.references, *self.targets]))
        self.feed = Feed(dataset, images, list(dict.fromkeys(self.words)), method.inputs, device, quiet=quiet)

    def __call__(self) -> dict[str, float]:
        """In evaluation mode; draws nothing, so training goes on as if it had not been asked."""
        if isinstance(self.method, torch.nn.Module):
            self.method.eval()
        found: dict[str, list[tuple[Tensor, Tensor, float]]] = {}
        with torch.inference_mode():
            for start in range(0, len(self.words), SLICE):
                part = slice(start, start + SLICE)
                asked = self.feed.queries(self.references[part], self.words[part])
                targets = self.feed.images(self.targets[part])
                own = torch.eye(len(asked.words), dtype=torch.bool, device=self.feed.device)
                batch = TrainBatch(asked.reference, asked.text, asked.words, targets, own)
                for name, contrast in cast(OptionalHooks, self.method).contrasts(batch).items():
                    found.setdefault(name, []).append(contrast)
        return {
            name: bound(torch.cat([p[0] for p in parts]), torch.cat([p[1] for p in parts]), float(parts[0][2]))
            for name, parts in found.items()
        }


def bounds(
    method: Method, dataset: Dataset, form: str, device: torch.device, quiet: bool = True
) -> Bounds | None:
    """The `Bounds` of a training, or None without `select`, without targets there, or without the hook."""
    split = dataset.splits.get("select")
    queries = distinct(split) if split is not None and hasattr(method, "contrasts") else []
    return Bounds(method, dataset, queries, form, device, quiet) if len(queries) > 1 else None
