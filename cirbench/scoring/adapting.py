"""Methods that look at the whole gallery before they score: normalisation over it, expansion by neighbours in it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from cirbench import process
from cirbench.scoring.ranking import View
from cirbench.types import MethodError, Protocol

__all__ = ["Adapt", "adapted", "checked_adapt", "note_of"]

#: (B, D) queries, (N, D) the gallery that they rank -> (B, D').
Adapt = Callable[[Tensor, Tensor], Tensor]


def checked_adapt(adapt: Adapt, queries: Tensor, gallery: Tensor) -> Tensor:
    """What a method's `adapt` makes of (B, D) queries and (N, D) images, checked.

    Raises:
        MethodError: no finite floating-point tensor with one row a query, or the state of the process was changed.
    """
    with process.unchanged(adapt), torch.inference_mode():
        found: object = adapt(queries, gallery)
    received = type(found).__name__
    if isinstance(found, Tensor):
        good = found.ndim == 2 and len(found) == len(queries) and found.shape[1] and found.is_floating_point()
        if good and found.layout == torch.strided and found.device == queries.device:
            if bool(torch.isfinite(found).all()):
                return found.float()
            raise MethodError(
                adapt, "`adapt` returned NaN or infinite values. Does it divide by a spread of zero (a gallery of one "
                "image)?"
            )
        received = f"{found.dtype} of shape {tuple(found.shape)} on {found.device}"
    raise MethodError(
        adapt, f"`adapt` returned {received} for {len(queries)} queries and {len(gallery)} gallery images. It must "
        "return a floating-point tensor of shape (B, D), one row a query."
    )


def adapted(adapt: Adapt, queries: Tensor, images: Tensor, view: View, protocol: Protocol) -> Tensor:
    """Queries adapted to what they rank.

    Every gallery is given whole, the query's reference in it, whatever the protocol drops. Queries with a gallery each
    of their own (`gallery="own"`) get all images: a few images have no statistics worth the name.

    Args:
        adapt: of the method.
        queries: (R, D).
        images: (N, D).
        view: what the rows rank.
        protocol: of the view.
    """
    if view.members is None or view.member_of is None or protocol.gallery == "own":
        return checked_adapt(adapt, queries, images)
    out: Tensor | None = None
    for number in sorted(set(view.member_of.tolist())):
        rows = torch.from_numpy(view.member_of == number)
        made = checked_adapt(adapt, queries[rows], images[torch.from_numpy(view.members[number])])
        out = made.new_zeros((len(queries), made.shape[1])) if out is None else out
        if out.shape[1] != made.shape[1]:
            raise MethodError(
                adapt, f"`adapt` returned D = {out.shape[1]} for one gallery and D = {made.shape[1]} for another."
            )
        out[rows] = made
    return queries if out is None else out


def note_of(method: Any, protocols: Sequence[Protocol]) -> list[str]:
    """The sentence for the record where a method adapts to more than a query ranks."""
    own = [p.name for p in protocols if p.gallery == "own"] if hasattr(method, "adapt") else []
    if not own:
        return []
    return [
        f"The method adapts its queries to the images of all galleries together where every query has a gallery of its "
        f"own: {', '.join(own)}."
    ]
