"""Pseudo-words: vectors in the place of words, read by CLIP's text tower as if they were words (Pic2Word, SEARLE).

A text holds a slot, `a photo of $ , in red`. Around it the text is tokenised as always; the slot becomes one token, or
k, whose embeddings are replaced before positions are added.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from open_clip import SimpleTokenizer
from torch import Tensor, nn

from cirbench.models.small_clip import WordTokenizer
from cirbench.types import CirbenchError, shown

__all__ = ["PseudoWord", "encode_pseudo", "filled", "slots_read", "tower_of"]


class PseudoWord(nn.Sequential):
    """phi of SEARLE and LinCIR, an image or text vector -> a pseudo-word: (B, D) -> (B, W).

    Args:
        dim: D.
        hidden: width of both hidden layers; the papers' 4 D.
        width: W, the token width of the text tower.
        dropout: rate behind both hidden layers.
    """

    def __init__(self, dim: int, hidden: int, width: int, dropout: float = 0.5) -> None:
        super().__init__(
            nn.Linear(dim, hidden), nn.GELU(), nn.Dropout(dropout),
            nn.Linear(hidden, hidden), nn.GELU(), nn.Dropout(dropout), nn.Linear(hidden, width),
        )


def tower_of(model: Any, tokenize: Any, name: str = "this model") -> Any:
    """The part of a CLIP that holds `token_embedding`, of a text tower that can read pseudo-words.

    Args:
        model: open_clip's `CLIP`, or its `CustomTextCLIP` with a text tower of open_clip.
        tokenize: its tokenizer; where a text ends must be known from the ids.
        name: for the message.

    Raises:
        CirbenchError: another kind of text tower or tokenizer (SigLIP, CoCa, towers of Hugging Face).
    """
    tower = model if hasattr(model, "token_embedding") else getattr(model, "text", None)
    known = isinstance(tokenize, SimpleTokenizer | WordTokenizer) and getattr(tokenize, "reduction_fn", None) is None
    embedding = getattr(tower, "token_embedding", None)
    if not known or not isinstance(embedding, nn.Embedding) or getattr(tower, "cls_emb", None) is not None:
        raise CirbenchError(
            f"{name} takes no pseudo-words: its text tower is {type(tower).__name__} with a {type(tokenize).__name__}. "
            "Name a CLIP whose texts are read by open_clip's own tower and tokenizer, such as ViT-L-14:openai, or a "
            "packaged one, scenes-small."
        )
    return tower


def encode_pseudo(
    model: Any, tokenize: Any, texts: Sequence[str], pseudo: Tensor, slot: str, name: str = "this model"
) -> Tensor:
    """Texts with pseudo-words in them; a gradient reaches `pseudo`, whether the tower is frozen or not.

    Args:
        model: on the device of `pseudo`.
        tokenize: its tokenizer.
        texts: B strings, each with at least one slot. What exceeds the tower's context is cut, slots as well.
        pseudo: (B, W), or (B, k, W) for k pseudo-words in every slot. All slots of a text get the same.
        slot: marks the places; it is a word of its own, whatever stands beside it.
        name: of the model, for messages.

    Returns:
        (B, D), not normalised.

    Raises:
        CirbenchError: a text without a slot, pseudo-words of another shape, a tower that takes none.
    """
    tower = tower_of(model, tokenize, name)
    width = tower.token_embedding.embedding_dim
    words = pseudo[:, None] if pseudo.ndim == 2 else pseudo
    if words.ndim != 3 or len(words) != len(texts) or words.shape[2] != width or not words.shape[1]:
        raise CirbenchError(
            f"pseudo-words have the shape {tuple(pseudo.shape)} for {len(texts)} texts; {name} wants (B, {width}), or "
            f"(B, k, {width}) for k of them in every slot."
        )
    ids, place = _tokens(tokenize, texts, slot, words.shape[1])
    ids, place = ids.to(pseudo.device), place.to(pseudo.device)
    rows, columns = (place >= 0).nonzero(as_tuple=True)

    def replaced(module: nn.Module, given: Any, made: Tensor) -> Tensor:
        out = made.clone()
        out[rows, columns] = words[rows, place[rows, columns]].to(made.dtype)
        return out

    hook = tower.token_embedding.register_forward_hook(replaced)
    try:
        return model.encode_text(ids)
    finally:
        hook.remove()


def filled(template: str, texts: Sequence[str], slot: str) -> list[str]:
    """A template with each text in the place of its {}; a slot in a text is a blank: it would be another pseudo-word.

    Example:
        >>> filled("a photo of $ , {}", ["with a $ sign"], "$")
        ['a photo of $ , with a   sign']
    """
    return [template.replace("{}", text.replace(slot, " ")) for text in texts]


def slots_read(tokenize: Any, text: str, slot: str) -> int:
    """How many slots of a text lie within the context of the tower, the others being cut off."""
    return int((_line(tokenize, text, slot, 1) < 0).sum()) if slot in text else 0


def _tokens(tokenize: Any, texts: Sequence[str], slot: str, count: int) -> tuple[Tensor, Tensor]:
    """(B, context) ids, and which of a slot's `count` tokens each is, -1 for other tokens."""
    # A template is the text of a whole batch.
    lines = {text: _line(tokenize, text, slot, count) for text in dict.fromkeys(texts)}
    marked = torch.stack([lines[text] for text in texts])
    # What stands in a slot is never read; it must be neither the end's id nor that of padding.
    return marked.where(marked >= 0, tokenize.encode("x")[0]), (-1 - marked).clamp(min=-1)


def _line(tokenize: Any, text: str, slot: str, count: int) -> Tensor:
    """(context,) ids of one text, with -1 - n for the n-th token of a slot."""
    first, *others = text.split(slot) if slot else [text]
    if not others:
        raise CirbenchError(f"the text {shown(text)} has no slot {slot!r} for its pseudo-word.")
    line = [tokenize.sot_token_id, *tokenize.encode(first)]
    for piece in others:
        line += [*range(-1, -1 - count, -1), *tokenize.encode(piece)]
    line = [*line[: tokenize.context_length - 1], tokenize.eot_token_id]
    return torch.tensor(line + [0] * (tokenize.context_length - len(line)))
