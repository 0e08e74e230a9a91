"""Trained compositions once more, slowly, in float64 torch so that they have gradients: ARTEMIS, CoSMo, ComposeAE.

Written from the papers' formulas, query by query. Weights are read by name from a dict; nothing of the modules' forward
code is used. `follow` trains a method and the transcription side by side, with optimisers written out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from cirbench.runs.training import take_step
from cirbench.settings import TrainSettings
from cirbench.types import TrainBatch

Weights = Mapping[str, Tensor]


def below(p: Weights, prefix: str) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in p.items() if k.startswith(prefix)}


def unit(x: Tensor) -> Tensor:
    return x / (x * x).sum().sqrt()


def softmax(x: Tensor) -> Tensor:
    e = (x - x.max()).exp()
    return e / e.sum()


def linear(p: Weights, name: str, x: Tensor) -> Tensor:
    return p[f"{name}.weight"].flatten(1) @ x + p[f"{name}.bias"]


def linears(p: Weights, name: str, rows: list[Tensor]) -> list[Tensor]:
    return [linear(p, name, row) for row in rows]


def relus(rows: list[Tensor]) -> list[Tensor]:
    return [row * (row > 0) for row in rows]


def norms(p: Weights, name: str, rows: list[Tensor], training: bool) -> list[Tensor]:
    """Batch normalisation, with the statistics of the rows in training and the running ones otherwise."""
    mean, var = p[f"{name}.running_mean"], p[f"{name}.running_var"]
    if training:
        mean = sum(rows) / len(rows)
        var = sum((row - mean) ** 2 for row in rows) / len(rows)
    return [(row - mean) / (var + 1e-5).sqrt() * p[f"{name}.weight"] + p[f"{name}.bias"] for row in rows]


def gem(x: Tensor, power: float) -> Tensor:
    """(C, h, w) -> (C,)."""
    flat = x.flatten(1)
    return (torch.where(flat > 1e-6, flat, 1e-6) ** power).mean(1) ** (1 / power)


def lstm(p: Weights, prefix: str, ids: list[int]) -> Tensor:
    """The state behind the last word."""
    d = p[f"{prefix}.lstm.weight_hh_l0"].shape[1]
    h = c = torch.zeros(d, dtype=torch.float64)
    for word in ids:
        x = p[f"{prefix}.embedding_layer.weight"][word]
        z = p[f"{prefix}.lstm.weight_ih_l0"] @ x + p[f"{prefix}.lstm.bias_ih_l0"]
        z = z + p[f"{prefix}.lstm.weight_hh_l0"] @ h + p[f"{prefix}.lstm.bias_hh_l0"]
        i, f, g, o = z[:d].sigmoid(), z[d : 2 * d].sigmoid(), z[2 * d : 3 * d].tanh(), z[3 * d :].sigmoid()
        c = f * c + i * g
        h = o * c.tanh()
    return h


def gru(p: Weights, prefix: str, ids: list[int]) -> Tensor:
    """Last states of a GRU that reads forwards and one that reads backwards, side by side."""
    ends = []
    for suffix, order in (("", ids), ("_reverse", ids[::-1])):
        into, around = p[f"{prefix}.gru.weight_ih_l0{suffix}"], p[f"{prefix}.gru.weight_hh_l0{suffix}"]
        d = around.shape[1]
        h = torch.zeros(d, dtype=torch.float64)
        for word in order:
            a = into @ p[f"{prefix}.embedding_layer.weight"][word] + p[f"{prefix}.gru.bias_ih_l0{suffix}"]
            b = around @ h + p[f"{prefix}.gru.bias_hh_l0{suffix}"]
            reset, update = (a[:d] + b[:d]).sigmoid(), (a[d : 2 * d] + b[d : 2 * d]).sigmoid()
            new = (a[2 * d :] + reset * b[2 * d :]).tanh()
            h = (1 - update) * new + update * h
        ends.append(h)
    return torch.cat(ends)


def cross_entropy(logits: Callable[[int, int], Tensor], positives: Tensor) -> Tensor:
    """Mean over queries; the hits of a query share its label."""
    total, count = torch.zeros((), dtype=torch.float64), len(positives)
    for i in range(count):
        share = softmax(torch.stack([logits(i, j) for j in range(count)])).log()
        hits = [j for j in range(count) if positives[i, j]]
        total = total - sum(share[j] for j in hits) / len(hits)
    return total / count


# ------------------------------------------------------------------------------------------ ARTEMIS


def artemis_score(p: Weights, r: Tensor, t: Tensor, g: Tensor, parts: str = "both") -> Tensor:
    """EM + IS of one unit reference, one unit text and one unit target, from their definitions."""

    def attention(name: str) -> Tensor:
        inner = linear(p, f"{name}.0", t)
        return softmax(linear(p, f"{name}.2", inner * (inner > 0)))

    found = torch.zeros((), dtype=torch.float64)
    if parts != "is":
        found = found + unit(linear(p, "transform", t)) @ unit(attention("attend_explicit") * g)
    if parts != "em":
        a = attention("attend_implicit")
        found = found + unit(a * r) @ unit(a * g)
    return found


# ------------------------------------------------------------------------------------------ CoSMo


def cosmo_block(p: Weights, y: Tensor, t: Tensor, heads: int) -> Tensor:
    """A(y, t) of a map (C, n) with its n regions in a row."""
    channels, count = y.shape
    c = channels // heads
    q, k = p["queries.weight"].flatten(1) @ y, p["keys.weight"].flatten(1) @ y
    joined = p["join.weight"].flatten(1) @ torch.cat([y, t[:, None].expand(-1, count)])
    v, said = p["values.weight"].flatten(1) @ joined, linear(p, "text", t)
    out = torch.zeros_like(y)
    for head in range(heads):
        own = slice(head * c, (head + 1) * c)
        globally = softmax(torch.stack([y[own, j] @ said[own] / c**0.5 for j in range(count)]))
        for i in range(count):
            among = softmax(torch.stack([q[own, i] @ k[own, j] / c**0.5 for j in range(count)]))
            out[own, i] = sum((among[j] + globally[j]) * v[own, j] for j in range(count))
    return torch.stack([linear(p, "output", out[:, i]) for i in range(count)], 1)


def cosmo(p: Weights, image: Tensor, t: Tensor, heads: int) -> Tensor:
    """Content, then style, of a map (C, h, w)."""
    flat = image.flatten(1)
    mean = flat.mean(1)
    variance = ((flat - mean[:, None]) ** 2).mean(1)
    o = (flat - mean[:, None]) / (variance[:, None] + 1e-5).sqrt()
    for n in range(2):
        o = o + p["shares"][n] * cosmo_block(below(p, f"blocks.{n}."), o, t, heads)

    def equalised(name: str) -> Tensor:
        return (2 / len(t)) ** 0.5 * p[f"{name}.weight"] @ t + p[f"{name}.bias"]

    std, mean = variance.sqrt().detach(), mean.detach()
    gamma = equalised("keep_std").sigmoid() * std + equalised("add_std")
    beta = equalised("keep_mean").sigmoid() * mean + equalised("add_mean")
    return (gamma[:, None] * o + beta[:, None]).view_as(image)


# ------------------------------------------------------------------------------------------ ComposeAE


def perceptron(p: Weights, name: str, rows: list[Tensor], training: bool) -> list[Tensor]:
    """Normalisation, ReLU, linear, ReLU, linear."""
    inner = relus(linears(p, f"{name}.2", relus(norms(p, f"{name}.0", rows, training))))
    return linears(p, f"{name}.4", inner)


def composeae(
    p: Weights, images: list[Tensor], texts: list[Tensor], training: bool, sign: float = 1, rotate: bool = True
) -> list[Tensor]:
    """theta of every query, not normalised; without dropout."""

    def rotated(name: str) -> list[tuple[Tensor, ...]]:
        k = relus(linears(p, f"{name}.modulus.1", norms(p, f"{name}.modulus.0", images, training)))
        k = linears(p, f"{name}.modulus.4", k)
        delta = relus(linears(p, f"{name}.angle.1", norms(p, f"{name}.angle.0", texts, training)))
        delta = linears(p, f"{name}.angle.3", delta)
        if not rotate:
            return [(a, b, a, sign * b) for a, b in zip(k, delta, strict=True)]
        turned = [a * torch.exp(1j * b) for a, b in zip(k, delta, strict=True)]
        return [(a, b, z.real, sign * z.imag) for a, b, z in zip(k, delta, turned, strict=True)]

    rho = perceptron(p, "rho", [torch.cat([z[2], z[3]]) for z in rotated("for_rho")], training)
    pooled = []
    for image, (k, delta, real, imaginary) in zip(images, rotated("for_rows"), strict=True):
        rows, d = torch.stack([k, delta, image, real, imaginary]), len(image)
        padded = torch.cat([torch.zeros(5, 1), rows, torch.zeros(5, 1)], 1)
        seen = torch.stack([
            (p["rows.0.weight"] * padded[:, i : i + 3]).sum((1, 2)) + p["rows.0.bias"] for i in range(d)
        ], 1)
        windows = [(n * d // 16, -(-(n + 1) * d // 16)) for n in range(16)]
        pooled.append(torch.stack([seen[:, a:b].amax(1) for a, b in windows], 1).flatten())
    rho_c = perceptron(p, "rows.3", pooled, training)
    return [p["shares"][0] * a + p["shares"][1] * b for a, b in zip(rho, rho_c, strict=True)]


def mean_square(a: list[Tensor], b: list[Tensor]) -> Tensor:
    differences = torch.cat([(x - y) ** 2 for x, y in zip(a, b, strict=True)])
    return differences.sum() / len(differences)


# ------------------------------------------------------------------------------------------ training


def follow(
    made: Any, batch: TrainBatch, loss: Callable[[Weights], Tensor], kind: str, lr: float, decay: float, steps: int = 2
) -> float:
    """Train `made`, of one optimiser, and the transcription for some steps; the largest difference seen.

    Args:
        made: the method, in float64 and in the mode to train in.
        batch: of every step.
        loss: of the weights and buffers by name.
        kind: `sgd` with momentum 0.9, `adamw`, or `radam` with AdamW's decay.
        lr: rate of all weights.
        decay: weight decay.
        steps: how many.
    """
    p = {n: w.detach().clone().requires_grad_() for n, w in made.named_parameters()}
    buffers = {n: b.detach().clone() for n, b in made.named_buffers()}
    first, second = {n: torch.zeros_like(w) for n, w in p.items()}, {n: torch.zeros_like(w) for n, w in p.items()}
    optimizers, worst = made.optimizers(), 0.0
    for t in range(1, steps + 1):
        ((_, found, _),) = take_step(made, batch, optimizers, torch.device("cpu"), TrainSettings())
        slow = loss({**p, **buffers})
        worst = max(worst, abs(found.item() - slow.item()))
        gradients = torch.autograd.grad(slow, list(p.values()), allow_unused=True)
        for (name, w), g in zip(p.items(), gradients, strict=True):
            if g is None:
                continue
            with torch.no_grad():
                w.copy_(_updated(kind, w, g, first[name], second[name], t, lr, decay))
    for name, w in made.named_parameters():
        worst = max(worst, (w - p[name]).abs().max().item())
        assert isinstance(made, nn.Module) and w.dtype == torch.float64
    return worst


def _updated(kind: str, w: Tensor, g: Tensor, m: Tensor, v: Tensor, t: int, lr: float, decay: float) -> Tensor:
    """One weight after step t; its moments are changed in place."""
    if kind == "sgd":
        m.copy_(0.9 * m + g + decay * w)
        return w - lr * m
    m.copy_(0.9 * m + 0.1 * g)
    v.copy_(0.999 * v + 0.001 * g * g)
    w, mean, spread = w - lr * decay * w, m / (1 - 0.9**t), (v / (1 - 0.999**t)).sqrt()
    if kind == "adamw":
        return w - lr * mean / (spread + 1e-8)
    assert kind == "radam" and t <= 5, "later steps are rectified (tests/models/test_optimizers.py)"
    return w - lr * mean
