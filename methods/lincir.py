"""LinCIR, zero-shot: a pseudo-word for the reference, learned from captions alone.

Gu et al., CVPR 2024 (arXiv 2312.01998). phi turns a vector of frozen CLIP into a pseudo-word of its text tower. With c
the un-normalised text vector of a caption, u ~ U(0, 1) and z ~ N(0, 1), phi(c + u z) is put in the place of every
phrase of that caption, and the text tower should give c again:

    loss = mean over batch and width of (text(caption with phi(c + u z) in its slots) - c)^2.

CLIP has images and texts in one space, so phi then reads images: with x the un-normalised image vector,

    query = text("a photo of $ that TEXT") with phi(x) in the slot.

Each step draws its own captions: those of the training pictures, and the lines of `train.captions`. Triplets are not
used; they say how many steps an epoch has.

Differences from the authors' code:
- captions of the training pictures and of `train.captions` | CC3M and prompts of image generators;
- phrases are runs of words outside a closed list | of words that spaCy tags as nouns, adjectives or determiners;
- a phrase is replaced where it stands | everywhere in the caption, inside longer words too (`as-released`);
- the epoch is the last, or the best on `select` | the best of CIRR's validation split, which is reported;
- a slot in a text or a caption is a blank.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cirbench.models.encoders import Clip, Encoders
from cirbench.models.layers import l2norm
from cirbench.models.phrases import runs, with_slots
from cirbench.models.pseudo_words import PseudoWord, filled, slots_read
from cirbench.settings import Field, Settings
from cirbench.types import CirbenchError, Frozen, Inputs, QueryBatch, TrainBatch, TrainView


class Config(Settings):
    """Defaults are the authors' for ViT-L/14."""

    clip: str = Field("ViT-L-14:openai", description="frozen CLIP whose text tower reads pseudo-words")
    template: str = Field("a photo of $ that {}", description="the query: $ is the pseudo-word, {} the text")
    empty_template: str = Field("a photo of $", description="instead of a caption whose context holds no slot")
    substrings: bool = Field(False, description="replace a phrase wherever its letters occur, inside other words too")
    captions: int = Field(512, ge=1, description="captions drawn for a step")
    hidden: int = Field(3072, ge=1, description="width of phi's hidden layers; four times CLIP's")
    dropout: float = Field(0.5, ge=0, lt=1, description="dropout rate in phi")
    noise: float = Field(1.0, ge=0, description="factor of the noise on a caption's vector")
    lr: float = Field(1e-4, gt=0, description="learning rate of AdamW")
    weight_decay: float = Field(0.01, ge=0, description="weight decay of AdamW")


VARIANTS: dict[str, dict[str, Any]] = {
    "as-released": {"substrings": True},
    "untrained": {"train.epochs": 0},
}

#: About 20,000 steps on FashionIQ and CIRR.
TRAIN = {"epochs": 30, "batch_size": 32}

DATASETS = {
    # "photo" and "that" are no words of the packaged CLIPs.
    "scenes": {
        "clip": "scenes-small", "template": "a picture of $ , {}", "empty_template": "a picture of $", "captions": 128,
        "hidden": 512, "lr": 1e-3, "train.epochs": 16, "train.batch_size": 64,
    },
    "scenes/untrained": {"train.epochs": 0},
    "fashioniq": {"train.protocol": "fiq-original-keep-avg"},
}

SLOT = "$"


class LinCir(nn.Module):
    """phi over a frozen CLIP, and the captions it is trained on."""

    def __init__(self, config: Config, clip: Clip, captions: list[str]) -> None:
        super().__init__()
        self.config, self.clip = config, [clip]  # in a list: frozen, so no part of the module
        self.inputs = Inputs(images={"clip": Frozen(clip)})
        self.phi = PseudoWord(clip.dim, config.hidden, clip.token_width, config.dropout)
        self.captions = captions

    def encode_queries(self, batch: QueryBatch) -> Tensor:
        """(B, D), of unit length."""
        texts = filled(self.config.template, batch.words, SLOT)
        return l2norm(self.clip[0].encode_pseudo(texts, self.phi(batch.reference["clip"]), SLOT))

    def encode_images(self, images: Mapping[str, Tensor]) -> Tensor:
        """(N, D), of unit length."""
        return l2norm(images["clip"])

    def optimizers(self) -> Mapping[str, torch.optim.Optimizer]:
        """AdamW over phi."""
        return {"phi": torch.optim.AdamW(self.phi.parameters(), self.config.lr, weight_decay=self.config.weight_decay)}

    def losses(self, batch: TrainBatch) -> Iterator[tuple[str, Tensor, Mapping[str, float | Tensor]]]:
        """Of captions drawn from torch's generator; the batch is not read."""
        drawn = torch.randint(len(self.captions), (self.config.captions,)).tolist()
        captions = [self.captions[n] for n in drawn]
        with torch.no_grad():
            plain = self.clip[0].encode_texts(captions)
        share, noise = torch.rand(len(plain), 1, device=plain.device), torch.randn_like(plain)
        slotted = [self.slotted(caption) for caption in captions]
        loss = self.reconstruction(plain, plain + self.config.noise * share * noise, slotted)
        yield "phi", loss, {"phi": loss.detach()}

    def reconstruction(self, plain: Tensor, noisy: Tensor, slotted: list[str]) -> Tensor:
        """The loss of B captions: vectors (B, D) without and with noise, texts with slots."""
        return F.mse_loss(self.clip[0].encode_pseudo(slotted, self.phi(noisy), SLOT), plain)

    def slotted(self, caption: str) -> str:
        """A caption with a slot for each phrase; without phrases a random word becomes the slot."""
        found = released(caption) if self.config.substrings else with_slots(caption, SLOT)
        if SLOT not in found:
            words = caption.split()
            words[int(torch.randint(len(words), ()))] = SLOT
            found = " ".join(words)
        return found if slots_read(self.clip[0].tokenize, found, SLOT) else self.config.empty_template


def released(caption: str) -> str:
    """A caption with a slot wherever the letters of one of its phrases occur."""
    for phrase in [caption[start:end] for start, end in runs(caption)]:
        caption = caption.replace(phrase, SLOT)
    return caption


def build(config: Config, encoders: Encoders, train: TrainView, state: Mapping[str, Any] | None = None) -> LinCir:
    """A new phi; CLIP is frozen."""
    captions = [caption.lower().replace(SLOT, " ") for caption in train.captions]
    captions = [caption for caption in captions if caption.strip()]
    if state is None and not captions:
        raise CirbenchError(
            "lincir learns from captions, and this dataset has none. Give it a text file with one caption a line: "
            "--set train.captions=captions.txt."
        )
    return LinCir(config, encoders.clip(config.clip), captions)
