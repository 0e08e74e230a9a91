"""Numbers of papers (published.toml), each under what was counted, and known columns that hold unlike numbers."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from functools import cache
from pathlib import Path

__all__ = ["Mixture", "Published", "mixtures", "published"]


@dataclass(frozen=True)
class Published:
    """One row of a paper's table.

    Attributes:
        dataset, method, backbone: of the row; the backbone that was really used, as far as it is known.
        protocol: what was counted, as far as the authors' code or the arithmetic of the cells tells.
        equals: the protocol of cirbench that counts the same, where that is established, or empty.
        source: where the numbers were read.
        note: what is known to be wrong or odd about them.
        metrics: in percent.
    """

    dataset: str
    method: str
    protocol: str
    source: str
    metrics: dict[str, float]
    backbone: str = ""
    equals: str = ""
    note: str = ""


@dataclass(frozen=True)
class Mixture:
    """A table in which numbers of unlike protocols stand in one column: what is known of it, and from where."""

    dataset: str
    text: str
    source: str


@cache
def _all() -> tuple[list[Published], list[Mixture]]:
    entries = tomllib.loads((Path(__file__).parent / "published.toml").read_text(encoding="utf-8"))
    return [Published(**e) for e in entries["result"]], [Mixture(**e) for e in entries["mixture"]]


def published(dataset: str) -> list[Published]:
    """Numbers of papers on a dataset, those of one protocol together."""
    rows = [row for row in _all()[0] if row.dataset == dataset]
    order = list(dict.fromkeys(row.protocol for row in rows))
    return sorted(rows, key=lambda row: order.index(row.protocol))


def mixtures(dataset: str) -> list[Mixture]:
    """Known tables on a dataset whose columns hold unlike numbers."""
    return [mixture for mixture in _all()[1] if mixture.dataset == dataset]
