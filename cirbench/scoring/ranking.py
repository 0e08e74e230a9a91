"""Exact ranks and top-K in one pass over the blocks of a matrix product; never a (B, N) matrix at once.

The scores of the targets come first (`score_blocks`). Then every block is counted for all protocols (`counting`) and
offered to the first K images (`first_images`) while it is in the cache. Ties count against the method.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from cirbench.scoring import score_blocks
from cirbench.scoring.counting import Count, Ended, View, shared
from cirbench.scoring.first_images import FirstImages
from cirbench.scoring.score_blocks import Pairs, Score, Scores, checked, dot

__all__ = ["Ranks", "Score", "View", "checked", "dot", "joined", "rank"]


@dataclass(frozen=True)
class Ranks:
    """Ranks of R rows under one view.

    Attributes:
        best: (R,) int32, 1-based rank of the best target; every non-target image that scores at least as
            much is ranked before it. 0 if no target is in the row's gallery.
        ties: (R,) int32, non-target images with exactly the best target's score.
        every: per row, the ranks of all targets in the order given (0 for absent ones), or None.
    """

    best: np.ndarray
    ties: np.ndarray
    every: list[np.ndarray] | None = None


def rank(
    queries: Tensor, gallery: Tensor, views: Sequence[View], score: Score = dot, top: int = 0, top_view: int = 0
) -> tuple[list[Ranks], np.ndarray, np.ndarray]:
    """Ranks of the targets of R queries over N images under every view, and the first images of one view.

    Args:
        queries: (R, D).
        gallery: (N, D).
        views: what is ranked; the products are computed once for all of them.
        score: (B, D), (n, D) -> (B, n); the dot product by default.
        top: how many first images to return; 0 for none.
        top_view: the view whose first images are returned.

    Returns:
        Ranks per view; (R, top) int32 positions, best first, equal scores by position, -1 past the end; their scores.

    Raises:
        CirbenchError: NaN among the embeddings or the scores.

    Example:
        >>> q, g = torch.tensor([[1.0]]), torch.tensor([[3.0], [2.0], [2.0]])
        >>> view = View(targets=[np.array([1])], dropped=np.array([0]))
        >>> rank(q, g, [view])[0][0].best.tolist()  # the tie at position 2 counts against it
        [2]
    """
    nan = score_blocks.may_be_nan(queries, gallery)
    ended: list[list[Ended]] = []
    firsts: list[tuple[Tensor, Tensor]] = []
    for start in range(0, queries.shape[0], score_blocks.BLOCK[0]):
        rows = slice(start, min(start + score_blocks.BLOCK[0], queries.shape[0]))
        scores = Scores(queries[rows], gallery, score, nan)
        counts, first = _one_pass(scores, views, rows, top, top_view)
        ended.append([count.end() for count in counts])
        if first is not None:
            firsts.append(first.end())
    return joined(ended, views, firsts, top)


def joined(
    ended: Sequence[Sequence[Ended]], views: Sequence[View], firsts: Sequence[tuple[Tensor, Tensor]], top: int
) -> tuple[list[Ranks], np.ndarray, np.ndarray]:
    """What `rank` returns, of what each block of queries gave.

    Args:
        ended: a block's, and in it each view's, best ranks, ties and ranks of every target.
        views: what was ranked.
        firsts: a block's first images and their scores; none if they are not wanted.
        top: how many they are.
    """
    ranks = []
    for number, view in enumerate(views):
        parts = [block[number] for block in ended]
        best, ties = (np.concatenate([np.zeros(0, np.int32), *(part[n] for part in parts)]) for n in (0, 1))
        ranks.append(Ranks(best, ties, [r for _, _, e in parts for r in e or ()] if view.every_target else None))
    index = [first.to(torch.int32).cpu().numpy() for first, _ in firsts]
    value = [score.to(torch.float32).cpu().numpy() for _, score in firsts]
    return (
        ranks, np.concatenate([np.zeros((0, top), np.int32), *index]),
        np.concatenate([np.zeros((0, top), np.float32), *value]),
    )


def _one_pass(
    scores: Scores, views: Sequence[View], rows: slice, top: int, top_view: int
) -> tuple[list[Count], FirstImages | None]:
    """Counts and first images of one block of queries."""
    device = scores.queries.device
    counts = [Count(view, rows, device) for view in views]
    rows_of, images_of = (
        np.concatenate([np.zeros(0, dtype=np.int64), *(count.aside[n] for count in counts)]) for n in (0, 1)
    )
    pairs = Pairs(rows_of, images_of, device)
    for in_place in (False, True):
        scores.fill(pairs, in_place)
        for count in counts:
            count.begin(pairs)
        first, equal = _pass(scores, counts, pairs, top, top_view)
        if equal:
            break
        # Where this library's products depend on the place within a block after all, the places decide.
    return counts, first


def _pass(
    scores: Scores, counts: Sequence[Count], pairs: Pairs, top: int, top_view: int
) -> tuple[FirstImages | None, bool]:
    """One pass over the gallery; and whether the scores of the pairs were those of the blocks."""
    groups = shared(counts)
    first: FirstImages | None = None
    marks = torch.empty(scores.count, score_blocks.BLOCK[1], device=scores.queries.device)
    differs = torch.zeros((), dtype=torch.bool, device=scores.queries.device)
    hidden = counts[top_view] if top else None
    for start, block in scores.blocks():
        part, found = pairs.of_block(start, block)
        if part.stop > part.start:
            differs |= (found != pairs.scores[part]).any()
        room = marks[:, : block.shape[1]]
        for group in groups:
            group.add(start, block, room)
        for count in counts:
            if count.view.every_target:
                count.every(start, block, room)
        if hidden is not None:
            first = first or FirstImages(scores.count, top, block)
            block = block.clone() if scores.own else block  # a method's own tensor is not ours to write to
            hidden.galleries.hide(block, start)
            hidden.drop(start, block)
            first.offer(start, block)
    if top and first is None:
        first = FirstImages(scores.count, top, scores.queries)
    return first, not bool(differs)
