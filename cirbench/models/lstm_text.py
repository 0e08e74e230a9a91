"""Texts as words: how they are split, the vocabulary, and the LSTM that reads them."""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

#: Ids 0-3 of every vocabulary; padding is 0 as well (DWC, CLVC-Net).
SPECIAL = ("<UNK>", "<AND>", "<BOS>", "<EOS>")
_DELETED = re.compile(r"[^\w\s]|_", re.ASCII)


def split_words(text: str) -> list[str]:
    """ASCII, no punctuation, lower case, split on blanks.

    Characters that are not ASCII are dropped, accented letters too: the released DWC builds its vocabulary so, and
    word ids depend on it.

    Example:
        >>> split_words("Café-au-lait, please!")
        ['cafaulait', 'please']
    """
    ascii_text = text.encode("ascii", "ignore").decode("ascii")
    return _DELETED.sub("", ascii_text).lower().split()


def build_vocabulary(texts: Sequence[str]) -> list[str]:
    """Every word of the training texts in order of first appearance, after the special ones; ids depend on it."""
    seen: dict[str, None] = dict.fromkeys(SPECIAL)
    for text in texts:
        seen.update(dict.fromkeys(split_words(text)))
    return list(seen)


class LstmText(nn.Module):
    """Words -> LSTM states.

    Args:
        vocabulary: words by id, as `build_vocabulary` makes it.
        word_dim: width of a word's embedding.
        hidden: D, width of a state.
    """

    def __init__(self, vocabulary: Sequence[str], word_dim: int = 512, hidden: int = 1024) -> None:
        super().__init__()
        self.vocabulary = list(vocabulary)
        self.ids = {word: index for index, word in enumerate(self.vocabulary)}
        self.embedding_layer = nn.Embedding(len(self.vocabulary), word_dim)
        self.lstm = nn.LSTM(word_dim, hidden, batch_first=True)

    def words(self, text: str) -> list[str]:
        """The words of a text as this encoder sees them; an empty text is one unknown word."""
        return split_words(text) or [SPECIAL[0]]

    def forward(self, texts: Sequence[str], padded_as_words: bool = False) -> tuple[Tensor, Tensor]:
        """B strings -> states (B, L, D), mask (B, L) bool, True at words.

        Args:
            texts: the strings.
            padded_as_words: feed padding through the LSTM as unknown words and mark it as words (the released DWC).
        """
        device = self.embedding_layer.weight.device
        tokens = [[self.ids.get(word, 0) for word in self.words(text)] for text in texts]
        lengths = [len(t) for t in tokens]
        longest = max(lengths)
        padded = torch.tensor([t + [0] * (longest - len(t)) for t in tokens], device=device)
        embedded = self.embedding_layer(padded)
        if padded_as_words:
            states, _ = self.lstm(embedded)
            return states, torch.ones(padded.shape, dtype=torch.bool, device=device)
        packed = pack_padded_sequence(embedded, torch.tensor(lengths), batch_first=True, enforce_sorted=False)
        states, _ = pad_packed_sequence(self.lstm(packed)[0], batch_first=True)
        mask = torch.arange(longest, device=device)[None] < torch.tensor(lengths, device=device)[:, None]
        return states, mask
