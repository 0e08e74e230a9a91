"""What training must not find out at its end: whether a method's results can be ranked, and its weights saved."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from cirbench.runs.building import packed
from cirbench.runs.checkpoint import forked
from cirbench.runs.recording import shares
from cirbench.scoring.adapting import checked_adapt
from cirbench.scoring.evaluation import encoded, fit
from cirbench.scoring.ranking import checked
from cirbench.types import Frozen, Inputs, Method, MethodError, OptionalHooks, QueryBatch

__all__ = ["noise_images", "noise_texts", "rehearse"]

#: Rows of noise, of queries and of images: different numbers, so that a transposed result is seen.
QUERIES, IMAGES = 3, 4


def noise_images(inputs: Inputs, count: int, device: torch.device) -> dict[str, Tensor]:
    """Input name -> noise of the shape of B images."""
    return {
        name: torch.randn(count, wanted.encoder.dim, device=device) if isinstance(wanted, Frozen)
        else torch.randn(count, 3, wanted.size, wanted.size, device=device)
        for name, wanted in inputs.images.items()
    }


def noise_texts(
    inputs: Inputs, known: Sequence[str], count: int, device: torch.device
) -> tuple[dict[str, Tensor], list[str]]:
    """Input name -> noise of the shape of B texts, and B of the known strings."""
    words = [known[n % len(known)] for n in range(count)]
    return {name: torch.randn(count, w.encoder.dim, device=device) for name, w in inputs.texts.items()}, words


def rehearse(method: Method, known: Sequence[str], device: torch.device) -> None:
    """Encode, score and pack once, on noise of the right shapes; torch's random state is left as it was.

    Args:
        method: as built.
        known: strings of the dataset.
        device: of the run.

    Raises:
        MethodError: results of the wrong type or shape, or a state that cannot be saved and loaded.
    """
    optional = cast(OptionalHooks, method)
    with forked(device), torch.inference_mode():
        if isinstance(method, nn.Module):
            method.eval()
        text, words = noise_texts(method.inputs, known, QUERIES, device)
        batch = QueryBatch(noise_images(method.inputs, QUERIES, device), text, words)
        images = encoded(method.encode_images, noise_images(method.inputs, IMAGES, device), IMAGES)
        queries = encoded(method.encode_queries, batch, QUERIES)
        fit(method, queries, images)
        if hasattr(method, "adapt"):
            queries = checked_adapt(optional.adapt, queries.float(), images.float())
            fit(method, queries, images, optional.adapt)
        if hasattr(method, "score"):
            checked(optional.score, queries.float(), images.float())
        if hasattr(method, "modality_weights"):
            shares(optional, batch)
    packed(method)
    if isinstance(method, nn.Module):
        held: Any = method.state_dict()
        try:
            method.load_state_dict(held)
        except RuntimeError as error:
            last = str(error).splitlines()[-1].strip()
            raise MethodError(
                method.state_dict, f"`load_state_dict` refuses what `state_dict` returned: {last}"
            ) from None
