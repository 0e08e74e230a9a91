"""The first K images of every row, kept up to date block by block.

Of a block only what beats the running K-th score is looked at. To find it, the maximum of 16 scores at a time is
compared first; what is found waits until it is worth sorting.
"""

from __future__ import annotations

import torch
from torch import Tensor

#: Scores of which the maximum is compared first.
CHUNK = 16


class FirstImages:
    """The first K of B rows.

    Args:
        count: B.
        k: K.
        like: a tensor of the scores' type, on their device.
    """

    def __init__(self, count: int, k: int, like: Tensor) -> None:
        self.k = k
        self.values = like.new_full((count, k), -torch.inf)
        self.index = torch.full((count, k), -1, dtype=torch.int64, device=like.device)
        self.waiting: list[tuple[Tensor, Tensor, Tensor]] = []
        self.waits = 0

    def offer(self, start: int, block: Tensor) -> None:
        """Look at a block, (B, n) scores of images from `start`, minus infinity for those that are not ranked."""
        if block.device.type != "cpu":
            self._merge_whole(start, block)
            return
        last, chunks = self.values[:, -1:], block.shape[1] // CHUNK
        whole = chunks * CHUNK
        # A chunk is every n-th score, so that its maximum is taken over rows of memory.
        table = block[:, :whole].unflatten(1, (CHUNK, chunks))
        tops = table.amax(1) if chunks else block[:, :0]
        chosen = tops > last  # a later image loses a tie for the last place
        if chunks >= self.k and bool((last == -torch.inf).any()):
            # K chunks have a maximum of at least this, so the K-th score of this block is no lower.
            chosen &= tops >= tops.topk(self.k, 1).values[:, -1:]
        row, chunk = chosen.nonzero(as_tuple=True)
        found = table[row, :, chunk]
        pair, place = (found > last[row]).nonzero(as_tuple=True)
        self._wait(row[pair], start + place * chunks + chunk[pair], found[pair, place])
        row, place = (block[:, whole:] > last).nonzero(as_tuple=True)
        self._wait(row, start + whole + place, block[row, whole + place])
        # So many images wait, all rows together, that the threshold is worth renewing.
        if self.waits > 2 * self.k * len(self.values) or not start:
            self._merge()

    def _wait(self, row: Tensor, index: Tensor, value: Tensor) -> None:
        if len(row):
            self.waiting.append((row, index, value))
            self.waits += len(row)

    def _merge(self) -> None:
        """Sort what waits into the first K: by score, then by position."""
        if not self.waiting:
            return
        row, index, value = (torch.cat(parts) for parts in zip(*self.waiting, strict=True))
        self.waiting, self.waits = [], 0
        order = (row * (int(index.max()) + 1) + index).argsort()
        row, index, value = row[order], index[order], value[order]
        sizes = torch.bincount(row, minlength=len(self.values))
        place = torch.arange(len(row), device=row.device) - (sizes.cumsum(0) - sizes)[row]
        wide = self.values.new_full((len(self.values), int(sizes.max())), -torch.inf)
        places = torch.full(wide.shape, -1, dtype=torch.int64, device=row.device)
        wide[row, place], places[row, place] = value, index
        self._keep(torch.cat([self.values, wide], 1), torch.cat([self.index, places], 1))

    def _merge_whole(self, start: int, block: Tensor) -> None:
        """The same without a word from the device to the host: a stable sort of everything."""
        columns = torch.arange(start, start + block.shape[1], device=block.device).expand(len(block), -1)
        self._keep(torch.cat([self.values, block], 1), torch.cat([self.index, columns], 1))

    def _keep(self, values: Tensor, index: Tensor) -> None:
        values, order = values.sort(dim=1, descending=True, stable=True)
        self.values, self.index = values[:, : self.k], index.gather(1, order[:, : self.k])

    def end(self) -> tuple[Tensor, Tensor]:
        """(B, K) positions and scores, best first, equal scores by position; -1 past the end."""
        self._merge()
        return torch.where(self.values == -torch.inf, -1, self.index), self.values
