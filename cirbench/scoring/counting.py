"""How many images of a block score at least as much as each row's targets, for all views in one pass.

A comparison is written as zeros and ones in floating point, and a product with a vector that marks a gallery's images
adds them up (exactly, up to 2^24 of them): both run at the speed of memory. Views with equal thresholds share the
comparison, rows of one gallery the product. Targets and dropped references are counted with the rest; their share is
subtracted at the end, from the scores of those few pairs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from cirbench.scoring.score_blocks import Pairs

#: Up to so many targets a row each is a comparison of its own; above it the block is sorted instead.
EACH = 64

#: (B,) best ranks, (B,) ties and, where wanted, the ranks of every target of each row.
Ended = tuple[np.ndarray, np.ndarray, list[np.ndarray] | None]


@dataclass(frozen=True)
class View:
    """What one protocol ranks, for R rows (encoded queries) over N gallery images.

    Attributes:
        targets: per row, positions of its targets in the gallery (may be empty).
        dropped: (R,) position of the image taken out of the row's gallery, -1 for none.
        members: (M, N) bool, the M galleries of this view, or None where every row ranks all N images.
        member_of: (R,) which of the M galleries a row ranks.
        every_target: whether the ranks of all targets are wanted, not only the best one's.
    """

    targets: Sequence[np.ndarray]
    dropped: np.ndarray
    members: np.ndarray | None = None
    member_of: np.ndarray | None = None
    every_target: bool = False


def flat(targets: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Ragged positions -> (row of each, position of each)."""
    sizes = np.array([len(t) for t in targets], dtype=np.int64)
    rows = np.repeat(np.arange(len(targets)), sizes)
    return rows, np.concatenate([np.asarray(t, dtype=np.int64) for t in targets]) if len(rows) else rows


class Galleries:
    """Which images the rows of a block of queries rank under one view."""

    def __init__(self, view: View, rows: slice, device: torch.device) -> None:
        self.members, self.device = view.members, device
        self._parts: tuple[int, list[tuple[slice | Tensor, Tensor]]] = (-1, [])
        self.groups: list[tuple[int, slice | Tensor]] = []
        if view.members is None:
            return
        assert view.member_of is not None
        self.of = view.member_of[rows].astype(np.int64)
        for number in np.unique(self.of):
            places = np.flatnonzero(self.of == number)
            together = places[-1] - places[0] + 1 == len(places)
            self.groups.append((
                int(number),
                slice(int(places[0]), int(places[-1]) + 1) if together else torch.from_numpy(places).to(device),
            ))

    def holds(self, rows: np.ndarray, images: np.ndarray) -> np.ndarray:
        """(P,) bool, of (row, image) pairs."""
        if self.members is None:
            return np.ones(len(rows), dtype=bool)
        held: np.ndarray = self.members[self.of[rows], images]
        return held

    def parts(self, start: int, stop: int) -> list[tuple[slice | Tensor, Tensor]]:
        """(rows, (n,) zeros and ones) for every gallery that a row of this block ranks."""
        assert self.members is not None
        if self._parts[0] != start:
            marks = [torch.from_numpy(self.members[n, start:stop].astype(np.float32)) for n, _ in self.groups]
            pairs = zip(self.groups, marks, strict=True)
            self._parts = start, [(places, held.to(self.device)) for (_, places), held in pairs]
        return self._parts[1]

    def count(self, marks: Tensor, start: int, into: Tensor) -> None:
        """Add up the marks, (B, n) zeros and ones, of the images that each row ranks."""
        stop = start + marks.shape[1]
        if self.members is None:
            into += (marks @ marks.new_ones(marks.shape[1])).to(into.dtype)
            return
        for places, held in self.parts(start, stop):
            into[places] += (marks[places] @ held).to(into.dtype)

    def hide(self, block: Tensor, start: int) -> None:
        """Set the scores of images that a row does not rank to minus infinity."""
        if self.members is None:
            return
        for places, held in self.parts(start, start + block.shape[1]):
            ceiling = torch.where(held > 0, torch.inf, -torch.inf).to(block.dtype)
            if isinstance(places, slice):
                block[places].clamp_(max=ceiling)
            else:
                block[places] = block[places].clamp(max=ceiling)


class Count:
    """The count of one view over one block of queries.

    Args:
        view: what is ranked.
        rows: which of its rows.
        device: of the scores.

    Attributes:
        aside: rows and images of the pairs whose scores `begin` needs.
    """

    def __init__(self, view: View, rows: slice, device: torch.device) -> None:
        self.view, self.galleries, self.device = view, Galleries(view, rows, device), device
        self.count = len(view.dropped[rows])
        self.dropped = view.dropped[rows].astype(np.int64)
        self.owner, self.position = flat(view.targets[rows])
        self.present = (self.position != self.dropped[self.owner]) & self.galleries.holds(self.owner, self.position)
        owner, position = self.owner[self.present], self.position[self.present]
        gone = np.flatnonzero(self.dropped >= 0)
        gone = gone[self.galleries.holds(gone, self.dropped[gone])]
        # What is no image to be ranked before a target: the row's targets, each once, and the dropped image.
        self.aside = (np.concatenate([owner, gone]), np.concatenate([position, self.dropped[gone]]))

    def begin(self, pairs: Pairs) -> None:
        """Set the thresholds; `pairs` has its scores."""
        owner = self.owner[self.present]
        self.own = torch.from_numpy(owner).to(self.device)
        place = pairs.find(owner, self.position[self.present])
        self.scores = pairs.scores[torch.from_numpy(place).to(self.device)]
        self.best = self.scores.new_full((self.count,), -torch.inf)
        self.best.scatter_reduce_(0, self.own, self.scores, "amax")
        self.found = torch.zeros(self.count, dtype=torch.bool, device=self.device)
        self.found[self.own] = True
        # Rows without a target count nothing.
        self.best = torch.where(self.found, self.best, torch.inf)
        rows, images = self.aside
        index = np.unique(pairs.find(rows, images))
        self.aside_row = pairs.own[torch.from_numpy(index).to(self.device)]
        self.aside_score = pairs.scores[torch.from_numpy(index).to(self.device)]
        self.above = torch.zeros(self.count, dtype=torch.int64, device=self.device)
        self.ties = torch.zeros_like(self.above)
        self.above_each = torch.zeros(len(self.own), dtype=torch.int64, device=self.device)
        # The n-th targets of all rows that have so many are one comparison.
        self.nth = np.arange(len(owner)) - np.searchsorted(owner, owner)
        self.most = int(self.nth.max()) + 1 if len(owner) else 0
        self.turns = [torch.from_numpy(np.flatnonzero(self.nth == n)).to(self.device) for n in range(self.most)]

    def drop(self, start: int, block: Tensor) -> None:
        """Set the scores of the dropped images to minus infinity."""
        rows = np.flatnonzero((self.dropped >= start) & (self.dropped < start + block.shape[1]))
        columns = torch.from_numpy(self.dropped[rows] - start).to(self.device)
        block[torch.from_numpy(rows).to(self.device), columns] = -torch.inf

    def every(self, start: int, block: Tensor, marks: Tensor) -> None:
        """Count, for each target, the images of a block that score at least as much."""
        if self.most > EACH:
            self._sorted(start, block)
            return
        into = torch.zeros_like(self.above)
        for turn in self.turns:
            if self.view.members is None and 2 * len(turn) <= self.count:  # few rows have so many targets
                part, room = block[self.own[turn]], marks[: len(turn)]
                torch.ge(part, self.scores[turn, None], out=room)
                self.above_each[turn] += (room @ room.new_ones(room.shape[1])).long()
                continue
            threshold = block.new_full((self.count, 1), torch.inf)
            threshold[self.own[turn], 0] = self.scores[turn]
            torch.ge(block, threshold, out=marks)
            self.galleries.count(marks, start, into.zero_())
            self.above_each[turn] += into[self.own[turn]]

    def _sorted(self, start: int, block: Tensor) -> None:
        """The same by binary search in sorted rows."""
        shown = block.clone()
        self.galleries.hide(shown, start)
        counted = torch.zeros_like(self.above)
        self.galleries.count(torch.ones(block.shape, device=self.device), start, counted)
        wanted = block.new_full((self.count, self.most), torch.inf)
        nth = torch.from_numpy(self.nth).to(self.device)
        wanted[self.own, nth] = self.scores
        below = torch.searchsorted(shown.sort(dim=1).values, wanted)[self.own, nth]
        # A target score of minus infinity would count the hidden images as well.
        self.above_each += torch.where(self.scores == -torch.inf, counted[self.own], block.shape[1] - below)

    def end(self) -> Ended:
        """(B,) best ranks, (B,) ties and, where wanted, the ranks of every target of each row."""
        row, score = self.aside_row, self.aside_score
        above = self.above - _per_row(score >= self.best[row], row, self.count)
        ties = self.ties - _per_row(score == self.best[row], row, self.count)
        rank = torch.where(self.found, above + 1, 0).to(torch.int32).cpu().numpy()
        tied = torch.where(self.found, ties, 0).to(torch.int32).cpu().numpy()
        if not self.view.every_target:
            return rank, tied, None
        owner, scores = self.owner[self.present], self.scores.cpu().numpy()
        before = self.above_each.cpu().numpy() - _at_least(
            owner, scores, self.aside_row.cpu().numpy(), self.aside_score.cpu().numpy()
        )
        # Ranks among the targets themselves: by score, equal ones in the order given.
        order = np.lexsort((-scores, owner))
        among = np.empty(len(order), dtype=np.int64)
        among[order] = np.arange(len(order)) - np.searchsorted(owner, owner[order])
        ranks = np.zeros(len(self.owner), dtype=np.int32)
        ranks[self.present] = before + among + 1
        ends = np.cumsum(np.bincount(self.owner, minlength=self.count))
        return rank, tied, np.split(ranks, ends[:-1])


def _per_row(marks: Tensor, row: Tensor, count: int) -> Tensor:
    return torch.zeros(count, dtype=torch.int64, device=row.device).index_add_(0, row, marks.long())


def _at_least(owner: np.ndarray, scores: np.ndarray, row: np.ndarray, aside: np.ndarray) -> np.ndarray:
    """(T,) how many pairs set aside of its row score at least as much as each target, without a loop over rows."""
    # Ordered by row, then by score: what is at least as high ends where the row ends.
    order = np.lexsort((aside, row))
    row, aside = row[order], aside[order]
    # Rank of each value among all: a row's number and a score become one sortable number.
    values = np.unique(np.concatenate([aside, scores]))
    width = len(values) + 1
    keys = row.astype(np.int64) * width + np.searchsorted(values, aside)
    wanted = owner.astype(np.int64) * width + np.searchsorted(values, scores)
    first = np.searchsorted(keys, wanted, side="left")
    last = np.searchsorted(row, owner, side="right")
    found: np.ndarray = last - first
    return found


class Shared:
    """Views that are counted with one threshold a row: any two agree where both have a target."""

    def __init__(self, count: Count) -> None:
        self.counts, self.best, self.found = [count], count.best, count.found

    def take(self, count: Count) -> bool:
        """Take another view in, if it agrees."""
        if not bool(((self.best == count.best) | ~self.found | ~count.found).all()):
            return False
        self.counts.append(count)
        self.best, self.found = torch.minimum(self.best, count.best), self.found | count.found
        return True

    def add(self, start: int, block: Tensor, marks: Tensor) -> None:
        """Count a block: images that score at least as much as the best target, and exactly as much."""
        torch.ge(block, self.best[:, None], out=marks)
        for count in self.counts:
            count.galleries.count(marks, start, count.above)
        torch.eq(block, self.best[:, None], out=marks)
        for count in self.counts:
            count.galleries.count(marks, start, count.ties)


def shared(counts: Sequence[Count]) -> list[Shared]:
    """The views in as few groups as a single look at each finds."""
    out: list[Shared] = []
    for count in counts:
        if not any(group.take(count) for group in out):
            out.append(Shared(count))
    return out
