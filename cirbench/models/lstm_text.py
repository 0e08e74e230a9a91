"""Texts as words: how they are split, the vocabulary, and the LSTM or GRU that reads them."""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from cirbench.types import CirbenchError

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


class WordStates(nn.Module):
    """Words -> states; a base for networks that read embedded words.

    Args:
        vocabulary: words by id, as `build_vocabulary` makes it.
        word_dim: width of a word's embedding.

    Attributes:
        known: (V,) bool, the words that are read where others are dropped (`start_from`), or None where all are.
    """

    known: Tensor | None

    def __init__(self, vocabulary: Sequence[str], word_dim: int) -> None:
        super().__init__()
        self.vocabulary = list(vocabulary)
        self.ids = {word: index for index, word in enumerate(self.vocabulary)}
        self.embedding_layer = nn.Embedding(len(self.vocabulary), word_dim)
        self.register_buffer("known", None)

    def start_from(self, ids: Sequence[int], vectors: Tensor, fixed: bool = False) -> None:
        """Let words start from given vectors (`read_vectors` of word_vectors.py).

        Args:
            ids: n words; all others keep their random start.
            vectors: (n, word_dim).
            fixed: vectors are not trained, and all other words are dropped from every text. A text of which nothing is
                left is one unknown word, whose vector is zero.
        """
        weight = self.embedding_layer.weight
        rows = torch.tensor(ids, dtype=torch.long, device=weight.device)
        with torch.no_grad():
            if fixed:
                weight.zero_()
            weight[rows] = vectors.to(weight)
        if fixed:
            weight.requires_grad_(False)
            self.known = torch.zeros(len(weight), dtype=torch.bool, device=weight.device)
            self.known[rows] = True

    def words(self, text: str) -> list[str]:
        """The words of a text as this encoder sees them; an empty text is one unknown word."""
        return self._read([text])[0]

    def _read(self, texts: Sequence[str]) -> list[list[str]]:
        split = [split_words(text) for text in texts]
        if self.known is not None:
            kept = {self.vocabulary[i] for i in self.known.nonzero()[:, 0].tolist()}
            split = [[word for word in words if word in kept] for words in split]
        return [words or [SPECIAL[0]] for words in split]

    def _embedded(self, texts: Sequence[str]) -> tuple[Tensor, list[int]]:
        """(B, L, word_dim), padded with the unknown word, and the B lengths."""
        tokens = [[self.ids.get(word, 0) for word in words] for words in self._read(texts)]
        lengths = [len(t) for t in tokens]
        longest = max(lengths)
        padded = torch.tensor(
            [t + [0] * (longest - len(t)) for t in tokens], device=self.embedding_layer.weight.device
        )
        return self.embedding_layer(padded), lengths


def _packed(embedded: Tensor, lengths: list[int]) -> PackedSequence:
    return pack_padded_sequence(embedded, torch.tensor(lengths), batch_first=True, enforce_sorted=False)


def _unpacked(packed: PackedSequence, lengths: list[int]) -> tuple[Tensor, Tensor]:
    """States (B, L, D), zero at padding, and the mask of words (B, L)."""
    states, _ = pad_packed_sequence(packed, batch_first=True)
    device = states.device
    mask = torch.arange(max(lengths), device=device)[None] < torch.tensor(lengths, device=device)[:, None]
    return states, mask


class LstmText(WordStates):
    """Words -> LSTM states.

    Args:
        vocabulary: words by id, as `build_vocabulary` makes it.
        word_dim: width of a word's embedding.
        hidden: D, width of a state.
    """

    def __init__(self, vocabulary: Sequence[str], word_dim: int = 512, hidden: int = 1024) -> None:
        super().__init__(vocabulary, word_dim)
        self.lstm = nn.LSTM(word_dim, hidden, batch_first=True)

    def forward(self, texts: Sequence[str], padded_as_words: bool = False) -> tuple[Tensor, Tensor]:
        """B strings -> states (B, L, D), mask (B, L) bool, True at words.

        Args:
            texts: the strings.
            padded_as_words: feed padding through the LSTM as unknown words and mark it as words (the released DWC).
        """
        embedded, lengths = self._embedded(texts)
        if padded_as_words:
            # Torch has no such LSTM in bf16 on most processors; on other devices this changes nothing.
            with torch.autocast("cpu", enabled=False):
                states, _ = self.lstm(embedded if embedded.is_cuda else embedded.to(next(self.lstm.parameters()).dtype))
            return states, torch.ones(embedded.shape[:2], dtype=torch.bool, device=embedded.device)
        return _unpacked(self.lstm(_packed(embedded, lengths))[0], lengths)

    def last(self, states: Tensor, mask: Tensor) -> Tensor:
        """The state after the last word: (B, L, D), mask (B, L) -> (B, D)."""
        return states[torch.arange(len(states), device=states.device), mask.sum(1) - 1]


class GruText(WordStates):
    """Words -> states of a GRU in both directions, side by side; padding changes nothing.

    Args:
        vocabulary: words by id, as `build_vocabulary` makes it.
        word_dim: width of a word's embedding.
        hidden: D, width of both directions together.

    Raises:
        CirbenchError: an odd width.
    """

    def __init__(self, vocabulary: Sequence[str], word_dim: int = 300, hidden: int = 512) -> None:
        if hidden < 2 or hidden % 2:
            raise CirbenchError(
                f"a bidirectional GRU of hidden={hidden}: half the width belongs to each direction, so it must be "
                f"even. Take {max(2, hidden + hidden % 2)}."
            )
        super().__init__(vocabulary, word_dim)
        self.gru = nn.GRU(word_dim, hidden // 2, batch_first=True, bidirectional=True)

    def forward(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """B strings -> states (B, L, D), mask (B, L) bool, True at words.

        A state is [of the words up to here; of the words from here on].
        """
        embedded, lengths = self._embedded(texts)
        return _unpacked(self.gru(_packed(embedded, lengths))[0], lengths)

    def last(self, states: Tensor, mask: Tensor) -> Tensor:
        """Each direction's state after the whole text: (B, L, D), mask (B, L) -> (B, D)."""
        half = states.shape[2] // 2
        ends = states[torch.arange(len(states), device=states.device), mask.sum(1) - 1]
        return torch.cat([ends[:, :half], states[:, 0, half:]], 1)
