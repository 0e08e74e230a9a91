"""SEARLE, zero-shot: pseudo-words of pictures are optimised one by one, then a network learns to guess them.

Baldrati et al., ICCV 2023 (arXiv 2303.15247). With x the un-normalised image vector of frozen CLIP:

1. OTI gives a picture its own pseudo-word v by gradient descent from a fixed start,

       [(1 - cos(text(template with v), x)) + w (1 - cos(text(phrase with v), text(phrase)))] / (1 + w),

   where a phrase is a caption that names one of the concepts nearest to x, with a slot in the concept's place. What is
   kept is the moving average of v.
2. phi learns from the pictures of training: phi(x) against v by a symmetric contrast over both sets of pseudo-words
   (NT-Xent) + w' (1 - cos(text(phrase with phi(x)), text(phrase))).

    query = text("a photo of $ that TEXT") with phi(x) in the slot;

`oti` has no phi: the reference itself is inverted. Each step draws its own pictures: those of training, and of
`train.pictures`. Triplets are not used; they say how many steps an epoch has.

Differences from the authors' code:
- the pictures of training and of `train.pictures` | the test pictures of ImageNet;
- concepts are the most frequent phrases of the captions | 20,931 names of OpenImages classes;
- phrases are captions with the concept in them | a language model's continuations of "a photo of CONCEPT that";
- every occurrence of a concept in a phrase becomes the slot | the first alone, in OTI;
- OTI starts from zero | from a draw, so that a query would depend on its company;
- the epoch is the last, or the best on `select` | not said;
- a slot in a text or a caption is a blank.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cirbench.models.encoders import Clip, Encoders
from cirbench.models.layers import l2norm
from cirbench.models.phrases import captions_with, common_phrases
from cirbench.models.pseudo_words import PseudoWord, filled
from cirbench.settings import Field, Settings
from cirbench.types import CirbenchError, Corpus, Frozen, Inputs, QueryBatch, TrainBatch, TrainView


class Config(Settings):
    """Defaults are the authors' for ViT-L/14 ("SEARLE-XL")."""

    clip: str = Field("ViT-L-14:openai", description="frozen CLIP whose text tower reads pseudo-words")
    invert: bool = Field(False, description="invert the reference of each query (OTI), without phi")
    template: str = Field("a photo of $ that {}", description="the query: $ is the pseudo-word, {} the text")
    pictures: int = Field(0, ge=0, description="pictures that are inverted for phi, drawn from all; 0 for all")
    concepts: int = Field(
        20_000, ge=1, description="phrases of the captions that count as concepts", json_schema_extra={"check": 20}
    )
    near: int = Field(15, ge=1, description="a picture's phrases in OTI name one of so many nearest concepts")
    near_phi: int = Field(150, ge=1, description="the same in the training of phi")
    oti_steps: int = Field(350, ge=1, description="steps of OTI", json_schema_extra={"check": 8})
    oti_lr: float = Field(0.02, gt=0, description="learning rate of OTI (AdamW)")
    oti_batch: int = Field(32, ge=1, description="pictures inverted at a time", json_schema_extra={"check": 8})
    oti_ema: float = Field(0.99, ge=0, lt=1, description="decay of the moving average of a pseudo-word in OTI")
    oti_phrase_weight: float = Field(0.5, ge=0, description="weight w of the phrases in OTI")
    phrase_weight: float = Field(0.75, ge=0, description="weight w' of the phrases in the training of phi")
    temperature: float = Field(0.25, gt=0, description="of the contrast between pseudo-words")
    batch: int = Field(256, ge=2, description="pictures drawn for a step")
    hidden: int = Field(3072, ge=1, description="width of phi's hidden layers; four times CLIP's")
    dropout: float = Field(0.5, ge=0, lt=1, description="dropout rate in phi")
    lr: float = Field(1e-4, gt=0, description="learning rate of phi (AdamW)")
    weight_decay: float = Field(0.01, ge=0, description="weight decay of both optimisers")


VARIANTS: dict[str, dict[str, Any]] = {
    "oti": {"invert": True, "train.epochs": 0},
    "no-phrases": {"phrase_weight": 0.0, "oti_phrase_weight": 0.0},
}

TRAIN = {"epochs": 100, "batch_size": 256}

DATASETS = {
    # "photo" and "that" are no words of the packaged CLIPs.
    "scenes": {
        "clip": "scenes-small", "template": "a picture of $ , {}", "pictures": 1000, "concepts": 300, "oti_steps": 60,
        "oti_ema": 0.9, "near_phi": 15, "batch": 128, "hidden": 512, "lr": 1e-3, "train.epochs": 8,
        "train.batch_size": 64,
    },
    "scenes/oti": {"train.epochs": 0},
    "fashioniq": {"train.protocol": "fiq-original-keep-avg"},
}

SLOT = "$"
#: The sentences that a pseudo-word is put into (PALAVRA's).
TEMPLATES = (
    *(f"This is a {kind} of a $" for kind in ("photo", "illustration", "sketch", "diagram")),
    *(f"This {kind} contains a $" for kind in ("photo", "illustration", "sketch", "diagram")),
    *(f"A {kind} of a $" for kind in ("photo", "illustration", "sketch", "diagram")),
    "A $", "We see a $", "$",
    *(f"We see a $ in this {kind}" for kind in ("photo", "image", "illustration")),
    *(f"We see a $ {kind}" for kind in ("photo", "image", "illustration")),
    *(f"$ {kind}" for kind in ("photo", "image", "illustration")),
)
#: Captions kept of a concept.
PHRASES = 256


class Concepts:
    """Concepts and the phrases that name them; a text vector of each concept says which are near a picture.

    Args:
        clip: frozen.
        named: concept -> its phrases, (text, text with slots); none without any.
    """

    def __init__(self, clip: Clip, named: Sequence[tuple[str, Sequence[tuple[str, str]]]]) -> None:
        self.clip, self.named = clip, named
        self.vectors: Tensor | None = None

    def near(self, pictures: Tensor, count: int) -> Tensor:
        """(B, D) image vectors -> (B, count) numbers of their nearest concepts, nearest first."""
        if self.vectors is None or self.vectors.device != pictures.device:
            with torch.no_grad():
                # The mean of a concept's vectors in all templates.
                texts = ([template.replace(SLOT, name) for template in TEMPLATES] for name, _ in self.named)
                said = [l2norm(self.clip.encode_texts(of_one)) for of_one in texts]
                self.vectors = l2norm(torch.stack([vectors.mean(0) for vectors in said]))
        return (l2norm(pictures) @ self.vectors.T).topk(min(count, len(self.named)), 1).indices

    def drawn(self, near: Tensor, which: Sequence[float], phrase: Sequence[float]) -> list[tuple[str, str]]:
        """A phrase for each row: the place of the concept among its nearest, and of the phrase, as shares in [0, 1)."""
        out = []
        for row, a, b in zip(near.tolist(), which, phrase, strict=True):
            phrases = self.named[row[int(a * len(row))]][1]
            out.append(phrases[int(b * len(phrases))])
        return out


class Searle(nn.Module):
    """phi over a frozen CLIP, or the inversion of every reference."""

    def __init__(self, config: Config, clip: Clip, concepts: Concepts) -> None:
        super().__init__()
        self.config, self.clip, self.concepts = config, [clip], concepts
        self.inputs = Inputs(images={"clip": Frozen(clip)})
        self.phi = None if config.invert else PseudoWord(clip.dim, config.hidden, clip.token_width, config.dropout)
        self.found: dict[bytes, Tensor] = {}  # pseudo-words of references: one may stand in several queries
        self.pictures = self.words = self.near = torch.zeros(0)

    def prepare(self, corpus: Corpus) -> None:
        """Invert the pictures that phi learns from; none of this is needed after training."""
        pictures = corpus.images["clip"]
        if self.phi is None:
            return
        if len(pictures) < 2:
            raise CirbenchError(
                "searle learns from pictures, and this dataset has fewer than two for training. Give it a folder: "
                "--set train.pictures=DIR."
            )
        chosen = torch.randperm(len(pictures))[: self.config.pictures or None]
        self.pictures = pictures[chosen.to(pictures.device)]
        self.words = self.inverted(self.pictures)
        if self.config.phrase_weight:
            self.near = self.concepts.near(self.pictures, self.config.near_phi)

    def inverted(self, pictures: Tensor) -> Tensor:
        """OTI: (B, D) image vectors -> (B, W) pseudo-words, each whatever the others are."""
        size = self.config.oti_batch
        parts = []
        for part in pictures.split(size):
            # Blocks of one shape: a product of another shape may round differently.
            full = torch.cat([part, part[:1].expand(size - len(part), -1)])
            parts.append(self._inverted(full)[: len(part)])
        return torch.cat(parts)

    def _inverted(self, pictures: Tensor) -> Tensor:
        config, clip = self.config, self.clip[0]
        count = len(pictures)
        # The same draws for every block, so that a picture's word does not depend on its place.
        draws = torch.Generator().manual_seed(0)
        near = self.concepts.near(pictures, config.near) if config.oti_phrase_weight else None
        with torch.inference_mode(False), torch.enable_grad():
            pictures = pictures.clone()
            word = torch.zeros(count, clip.token_width, device=pictures.device, requires_grad=True)
            average = torch.zeros_like(word)
            optimizer = torch.optim.AdamW([word], config.oti_lr, weight_decay=config.weight_decay)
            for _ in range(config.oti_steps):
                template, which, phrase = torch.rand(3, generator=draws).tolist()
                texts = [TEMPLATES[int(template * len(TEMPLATES))]] * count
                # A sum: each picture's gradient is its own.
                loss = (1 - F.cosine_similarity(clip.encode_pseudo(texts, word, SLOT), pictures)).sum()
                if near is not None:
                    phrases = self.concepts.drawn(near, [which] * count, [phrase] * count)
                    loss = loss + config.oti_phrase_weight * self.of_phrases(phrases, word).sum()
                optimizer.zero_grad()
                (loss / (1 + config.oti_phrase_weight)).backward()
                optimizer.step()
                average = config.oti_ema * average + (1 - config.oti_ema) * word.detach()
        # The average begins at zero; divided by the sum of its weights it is one from the first step.
        return average / (1 - config.oti_ema**config.oti_steps)

    def of_phrases(self, phrases: Sequence[tuple[str, str]], words: Tensor) -> Tensor:
        """(B,): 1 - cos of a phrase with a pseudo-word in its slots and the phrase itself."""
        clip = self.clip[0]
        with torch.no_grad():
            plain = clip.encode_texts([text for text, _ in phrases])
        return 1 - F.cosine_similarity(clip.encode_pseudo([slotted for _, slotted in phrases], words, SLOT), plain)

    def encode_queries(self, batch: QueryBatch) -> Tensor:
        """(B, D), of unit length."""
        texts = filled(self.config.template, batch.words, SLOT)
        pictures = batch.reference["clip"]
        words = self.remembered(pictures) if self.phi is None else self.phi(pictures)
        return l2norm(self.clip[0].encode_pseudo(texts, words, SLOT))

    def remembered(self, pictures: Tensor) -> Tensor:
        """OTI of references, each once: (B, D) -> (B, W)."""
        keys = [row.numpy().tobytes() for row in pictures.detach().cpu()]
        fresh = {key: n for n, key in enumerate(keys) if key not in self.found}
        if fresh:
            made = self.inverted(pictures[list(fresh.values())])
            self.found |= dict(zip(fresh, made, strict=True))
        return torch.stack([self.found[key] for key in keys])

    def encode_images(self, images: Mapping[str, Tensor]) -> Tensor:
        """(N, D), of unit length."""
        return l2norm(images["clip"])

    def optimizers(self) -> Mapping[str, torch.optim.Optimizer]:
        """AdamW over phi."""
        assert self.phi is not None
        return {"phi": torch.optim.AdamW(self.phi.parameters(), self.config.lr, weight_decay=self.config.weight_decay)}

    def losses(self, batch: TrainBatch) -> Iterator[tuple[str, Tensor, Mapping[str, float | Tensor]]]:
        """Of pictures drawn from torch's generator; the batch is not read."""
        rows = torch.randint(len(self.pictures), (self.config.batch,)).unique()
        shares = torch.rand(2, len(rows)).tolist()
        assert self.phi is not None
        rows = rows.to(self.pictures.device)
        guessed = self.phi(self.pictures[rows])
        logs = {"contrast": nt_xent(guessed, self.words[rows], self.config.temperature)}
        if self.config.phrase_weight:
            logs["phrases"] = self.of_phrases(self.concepts.drawn(self.near[rows], *shares), guessed).mean()
        loss = logs["contrast"] + self.config.phrase_weight * logs.get("phrases", 0.0)
        yield "phi", loss, {name: value.detach() for name, value in logs.items()}

    def extra_state(self) -> dict[str, Any]:
        """Concepts and phrases, where queries are inverted with them."""
        return {"concepts": self.concepts.named} if self.config.invert and self.config.oti_phrase_weight else {}


def nt_xent(a: Tensor, b: Tensor, temperature: float) -> Tensor:
    """The contrast of (B, W) and (B, W): each row's positive is its partner, all rows of both but itself negatives."""
    both = l2norm(torch.cat([a, b]))
    logits = (both @ both.T / temperature).fill_diagonal_(-math.inf)
    partner = torch.arange(len(both), device=both.device).roll(len(a))
    return F.cross_entropy(logits, partner)


def build(config: Config, encoders: Encoders, train: TrainView, state: Mapping[str, Any] | None = None) -> Searle:
    """A new phi, or none; CLIP is frozen."""
    clip = encoders.clip(config.clip)
    phrases = bool(config.oti_phrase_weight or (config.phrase_weight and not config.invert))
    if state is not None:
        return Searle(config, clip, Concepts(clip, [(name, said) for name, said in state.get("concepts", ())]))
    captions = [caption.replace(SLOT, " ") for caption in train.captions] if phrases else []
    names = common_phrases(captions, config.concepts)
    if phrases and not names:
        raise CirbenchError(
            "searle takes its phrases from captions, and this dataset has none. Give it a text file with one caption a "
            "line, --set train.captions=captions.txt, or do without phrases: --variant no-phrases."
        )
    said = captions_with(names, captions, SLOT, PHRASES)
    return Searle(config, clip, Concepts(clip, list(zip(names, said, strict=True))))
