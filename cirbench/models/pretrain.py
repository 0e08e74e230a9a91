"""Trains small CLIPs, and the trunk of the small CNN, only from captions, by contrast (symmetric InfoNCE).

For people without access to weights: any dataset whose loader gives captions will do. The same data, seed and
number of threads give the same weights, bit for bit.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from open_clip.model import CLIP
from safetensors.torch import save as pack
from torch import Tensor, nn
from tqdm import tqdm

from cirbench.data.images import resized
from cirbench.files import replacing
from cirbench.models import small_clip
from cirbench.models.small_clip import WordTokenizer, half
from cirbench.models.small_cnn import MEAN as CNN_MEAN
from cirbench.models.small_cnn import STD as CNN_STD
from cirbench.types import CirbenchError, Dataset

#: Percentage of words hidden in training, so that the unknown word gets a useful embedding.
HIDDEN_WORDS = 2


@dataclass(frozen=True)
class Pairs:
    """Pictures and their captions.

    Attributes:
        pictures: (N, side, side, 3) uint8, decoded once.
        captions: of each picture, at least one; the first is used for evaluation.
        name: of the dataset, for the record.
    """

    pictures: np.ndarray
    captions: Sequence[Sequence[str]]
    name: str = ""

    def __len__(self) -> int:
        return len(self.captions)

    def take(self, rows: Sequence[int]) -> Pairs:
        """The pairs of these rows."""
        return Pairs(self.pictures[list(rows)], [self.captions[i] for i in rows], self.name)


@dataclass(frozen=True)
class Outcome:
    """The result of training.

    Attributes:
        losses: one per step.
        seconds: of training, without reading pictures.
        recall: R@1, R@5, R@10 in percent, text to image among the held-out pictures; empty where none were held out.
        gallery: number of held-out pictures.
        parameters: of the saved model.
    """

    losses: list[float]
    seconds: float
    recall: dict[str, float]
    gallery: int
    parameters: int


def pairs_of(dataset: Dataset, side: int, quiet: bool = True) -> Pairs:
    """The captioned pictures of a dataset, with the shorter side resized to `side`, then a centre crop.

    Raises:
        CirbenchError: the dataset has no captions, or fewer than 2 pictures with one.
    """
    ids = [image_id for image_id, said in dataset.captions.items() if said]
    if len(ids) < 2:
        raise CirbenchError(
            f"dataset {dataset.name!r} has {len(ids)} captioned training pictures; pretraining needs at least 2. "
            "scenes, fashion200k and custom folders with captions have them."
        )
    pictures = np.empty((len(ids), side, side, 3), np.uint8)
    for row, image_id in enumerate(tqdm(ids, desc="reading pictures", disable=quiet, leave=False)):
        pictures[row] = np.asarray(resized(dataset.images.open(image_id), side, "crop"))
    return Pairs(pictures, [dataset.captions[image_id] for image_id in ids], dataset.name)


def hold_out(pairs: Pairs, seed: int, most: int = 1000) -> tuple[Pairs, Pairs]:
    """(training, held out): 5 % of the pictures, at most `most`, are held out for evaluation."""
    order = np.random.default_rng(seed).permutation(len(pairs)).tolist()
    count = min(most, len(pairs) // 20)
    return pairs.take(sorted(order[count:])), pairs.take(sorted(order[:count]))


def normalised(pictures: np.ndarray, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """(B, H, W, 3) uint8 -> (B, 3, H, W) float32 in channels-last memory."""
    x = torch.from_numpy(np.ascontiguousarray(pictures)).permute(0, 3, 1, 2).float()
    scale = torch.tensor(std)[None, :, None, None] * 255
    return (x - torch.tensor(mean)[None, :, None, None] * 255) / scale


def encode_short(model: CLIP, tokens: Tensor) -> Tensor:
    """`model.encode_text` without the padding: (B, L) -> (B, D).

    Attention is causal, so padding after the end cannot change the result; short captions cost half as much.
    """
    tokens = tokens[:, : int((tokens != 0).sum(dim=1).max())]
    length = tokens.shape[1]
    x = model.token_embedding(tokens) + model.positional_embedding[:length]
    x = model.transformer(x, attn_mask=model.attn_mask[:length, :length])
    x = model.ln_final(x)[torch.arange(len(tokens)), tokens.argmax(dim=1)]
    return x @ model.text_projection


@torch.no_grad()
def text_to_image(
    model: CLIP, tokenizer: WordTokenizer, pairs: Pairs, mean: Sequence[float], std: Sequence[float]
) -> dict[str, float]:
    """R@1, R@5, R@10 in percent of the first captions against all pictures; ties count against the model."""
    model.eval()
    images, texts = [], []
    for start in range(0, len(pairs), 256):
        images.append(model.encode_image(normalised(pairs.pictures[start : start + 256], mean, std), normalize=True))
        said = [captions[0] for captions in pairs.captions[start : start + 256]]
        texts.append(nn.functional.normalize(encode_short(model, tokenizer(said)), dim=-1))
    scores = torch.cat(texts) @ torch.cat(images).T
    if bool(scores.isnan().any()):  # no comparison with NaN holds, so it would rank first
        raise CirbenchError("the trained weights give NaN, so nothing was written. Lower --lr.")
    ranks = (scores >= scores.diagonal()[:, None]).sum(dim=1)
    return {f"R@{k}": round(100 * float((ranks <= k).float().mean()), 2) for k in (1, 5, 10)}


def _batches(n: int, batch: int, draw: torch.Generator) -> Any:
    """Rows of one batch after another; every picture appears once before any repeats."""
    while True:
        order = torch.randperm(n, generator=draw)
        yield from order[: n - n % batch].split(batch)


def _optimizer(model: nn.Module, lr: float, weight_decay: float) -> torch.optim.Optimizer:
    """AdamW; only matrices decay."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.98), fused=True)


def _contrast(
    model: CLIP, tokenizer: WordTokenizer, pairs: Pairs, mean: Sequence[float], std: Sequence[float], steps: int,
    batch: int, lr: float, weight_decay: float, warmup: int, flip: bool, seed: int, quiet: bool,
) -> list[float]:
    """Trains the model in place and returns the loss of every step."""
    draw = torch.Generator().manual_seed(seed)
    most = max(len(said) for said in pairs.captions)
    # One row of tokens per picture and caption number; pictures with fewer captions repeat theirs.
    tokens = torch.stack([
        tokenizer([said[k % len(said)] for said in pairs.captions]) for k in range(most)
    ]).to(torch.int32)
    words = (tokens > tokenizer.ids[small_clip.START]) & (tokens < tokenizer.ids[small_clip.END])
    optimizer = _optimizer(model, lr, weight_decay)
    model.train().to(memory_format=torch.channels_last)
    losses = []
    bar = tqdm(range(steps), desc="training", unit="step", disable=quiet)
    for step, rows in zip(bar, _batches(len(pairs), batch, draw), strict=False):
        rate = (step + 1) / warmup if step < warmup else (
            0.5 + 0.5 * math.cos(math.pi * (step - warmup) / max(1, steps - warmup))
        )
        for group in optimizer.param_groups:
            group["lr"] = lr * rate
        images = normalised(pairs.pictures[rows.numpy()], mean, std)
        if flip:
            mirrored = torch.rand(len(rows), generator=draw) < 0.5
            images = torch.where(mirrored[:, None, None, None], images.flip(3), images)
        # All pairs of a batch use the same kind of caption, so that short ones are batched together.
        kind = int(torch.randint(most, (1,), generator=draw))
        hidden = torch.randint(100, tokens[kind, rows].shape, generator=draw) < HIDDEN_WORDS
        said = tokens[kind, rows].long().masked_fill(hidden & words[kind, rows], tokenizer.ids[small_clip.UNKNOWN])
        image = nn.functional.normalize(model.visual(images.contiguous(memory_format=torch.channels_last)), dim=-1)
        text = nn.functional.normalize(encode_short(model, said), dim=-1)
        logits = model.logit_scale.exp() * image @ text.T
        labels = torch.arange(len(rows))
        loss = (nn.functional.cross_entropy(logits, labels) + nn.functional.cross_entropy(logits.T, labels)) / 2
        if not torch.isfinite(loss):
            raise CirbenchError(
                f"the loss is {loss.item()} at step {step} of {steps}, so nothing was written. Lower --lr ({lr:g})."
            )
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        with torch.no_grad():
            model.logit_scale.clamp_(0, math.log(100))
        losses.append(float(loss.detach()))
        bar.set_postfix(loss=f"{np.mean(losses[-20:]):.2f}")
    model.eval()
    return losses


def _train(
    data: Dataset | Pairs, held_out: Pairs | None, size: str, side: int, mean: Sequence[float], std: Sequence[float],
    steps: int | None, epochs: float | None, batch: int, lr: float, weight_decay: float, warmup: int, flip: bool,
    seed: int, quiet: bool, tower: str | None = None,
) -> tuple[CLIP, WordTokenizer, dict[str, Any], dict[str, Any], Outcome]:
    """Model, tokenizer, config, how it was trained, outcome."""
    pairs = data if isinstance(data, Pairs) else pairs_of(data, side, quiet)
    if held_out is None:
        pairs, held_out = hold_out(pairs, seed)
    if len(pairs) < 2:
        raise CirbenchError(f"only {len(pairs)} captioned pictures are left for training; at least 2 are needed.")
    batch = min(batch, len(pairs))
    if steps is None:
        steps = max(1, round((10 if epochs is None else epochs) * len(pairs) / batch))
    tokenizer = WordTokenizer.from_texts(caption for said in pairs.captions for caption in said)
    if len(tokenizer) == 4:  # the special words alone
        raise CirbenchError(
            f"no word stands twice in the {len(pairs)} captions (the first is {pairs.captions[0][0][:60]!r}), so there "
            "is nothing to learn from. The tokenizer knows lower-case words of Latin letters and digits only."
        )
    config = small_clip.config_of(size, len(tokenizer), side)
    if tower is not None:
        config["vision_cfg"]["timm_model_name"] = tower
    began = time.monotonic()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = CLIP(**config)
    losses = _contrast(
        model, tokenizer, pairs, mean, std, steps, batch, lr, weight_decay, min(warmup, steps // 4), flip, seed, quiet
    )
    seconds = time.monotonic() - began
    recall = text_to_image(model, tokenizer, held_out, mean, std) if len(held_out) else {}
    how = {
        "dataset": pairs.name, "pictures": len(pairs), "size": size, "steps": steps, "batch": batch, "lr": lr,
        "weight_decay": weight_decay, "flip": flip, "seed": seed, "threads": torch.get_num_threads(),
        "torch": torch.__version__, "seconds": round(seconds, 1), "text_to_image": recall,
        "text_to_image_gallery": len(held_out), "final_loss": round(float(np.mean(losses[-20:])), 4),
    }
    parameters = sum(p.numel() for p in model.parameters())
    return model, tokenizer, config, how, Outcome(losses, seconds, recall, len(held_out), parameters)


def pretrain_clip(
    data: Dataset | Pairs, out: str | Path, size: str = "small", *, steps: int | None = None,
    epochs: float | None = None, batch: int = 256, side: int = 48, lr: float = 2e-3, weight_decay: float = 0.05,
    warmup: int = 40, flip: bool = False, seed: int = 0, held_out: Pairs | None = None, quiet: bool = False,
) -> Outcome:
    """Train a small CLIP and write it to the folder `out`.

    Args:
        data: a dataset with captions, or `Pairs`.
        out: folder for `small_clip.load`.
        size: `small` or `medium`.
        steps: optimiser steps; None for `epochs`.
        epochs: passes over the pictures (10 where neither is given).
        batch: pairs per step; all others of the batch are negatives.
        side: side in pixels to which pictures are resized; 48 fits scenes, photographs need 64 or more.
        lr: peak learning rate of AdamW, with cosine decay.
        weight_decay: of matrices.
        warmup: steps of linear warm-up; at most a quarter of all.
        flip: mirror half of the pictures; wrong where texts name left and right.
        seed: of initialisation, order and masking.
        held_out: pairs to evaluate on after training; None holds out 5 % of the pictures, at most 1000.
        quiet: no progress bar.

    Raises:
        CirbenchError: no captions, or an unknown size.
    """
    model, tokenizer, config, how, outcome = _train(
        data, held_out, size, side, small_clip.MEAN, small_clip.STD, steps, epochs, batch, lr, weight_decay, warmup,
        flip, seed, quiet,
    )
    small_clip.save(out, model, tokenizer, config, trained=how)
    return outcome


def pretrain_cnn(
    data: Dataset | Pairs, out: str | Path, *, steps: int | None = None, epochs: float | None = None,
    batch: int = 256, side: int = 48, lr: float = 2e-3, weight_decay: float = 0.05, warmup: int = 40,
    flip: bool = False, seed: int = 0, held_out: Pairs | None = None, quiet: bool = False,
) -> Outcome:
    """Train the small CNN against a small text tower, and keep its trunk: `out`/model.safetensors in fp16.

    The weights fit `timm.create_model("cirbench_smallcnn", num_classes=0)`; no attribute label is used. Arguments are
    those of `pretrain_clip`.

    Raises:
        CirbenchError: no captions, or `out` holds a CLIP, whose weights have the same file name.
    """
    if (Path(out) / "clip.json").exists():
        raise CirbenchError(f"{out} holds a small CLIP; its model.safetensors would be lost. Use another --out.")
    model, _, _, how, outcome = _train(
        data, held_out, "small", side, CNN_MEAN, CNN_STD, steps, epochs, batch, lr, weight_decay, warmup, flip, seed,
        quiet, tower="cirbench_smallcnn",
    )
    trunk = {k: v for k, v in model.visual.trunk.state_dict().items() if not k.startswith("head.")}
    with replacing(Path(out) / "model.safetensors") as file:
        file.write(pack(half(trunk), metadata={"trained": repr(how)}))
    parameters = sum(v.numel() for v in trunk.values() if v.is_floating_point())
    return Outcome(outcome.losses, outcome.seconds, outcome.recall, outcome.gallery, parameters)
