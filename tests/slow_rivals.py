"""The rivals' compositions once more, slowly, in float64 numpy, from their papers' formulas; evaluation mode.

Weights are read from the fast modules by name; nothing of their forward code is used.
"""

from __future__ import annotations

import numpy as np
from slow_dwc import conv, linear, mlp_gate, norm, relu, sigmoid, softmax, unit


def total(image: np.ndarray, text: np.ndarray) -> np.ndarray:
    return np.array([i + t for i, t in zip(image, text, strict=True)])


def slerp(image: np.ndarray, text: np.ndarray, alpha: float, near: float) -> np.ndarray:
    """(sin((1 - alpha) theta) x + sin(alpha theta) t) / sin(theta) of unit x and t; the chord where |x . t| > near."""
    x, t = unit(image), unit(text)
    cosine = sum(i * j for i, j in zip(x, t, strict=True))
    if abs(cosine) > near:
        return unit(np.array([i + alpha * (j - i) for i, j in zip(x, t, strict=True)]))
    theta = np.arccos(cosine)
    first, second = np.sin((1 - alpha) * theta) / np.sin(theta), np.sin(alpha * theta) / np.sin(theta)
    return unit(np.array([first * i + second * j for i, j in zip(x, t, strict=True)]))


def concat(p: dict, image: np.ndarray, text: np.ndarray, layers: int) -> np.ndarray:
    """BN, ReLU, linear 2D -> 2D, BN, ReLU, linear 2D -> D; or one linear layer."""
    x = np.array([*image, *text])
    if layers == 1:
        return linear(p, "layers.0", x)
    x = linear(p, "layers.2", relu(norm(p, "layers.0", x)))
    return linear(p, "layers.6", relu(norm(p, "layers.3", x)))


def tirg(p: dict, image: np.ndarray, text: np.ndarray) -> np.ndarray:
    """a_0 sigmoid(Lin(ReLU(BN([x; t])))) * x + a_1 Lin(ReLU(Lin(ReLU(BN([x; t])))))."""
    both = np.array([*image, *text])
    gate = sigmoid(linear(p, "gate.2", relu(norm(p, "gate.0", both))))
    residual = linear(p, "residual.4", relu(linear(p, "residual.2", relu(norm(p, "residual.0", both)))))
    keep, change = p["shares"]
    return np.array([keep * gate[d] * image[d] + change * residual[d] for d in range(len(image))])


def tirg_on_map(p: dict, v: np.ndarray, text: np.ndarray) -> np.ndarray:
    """Over a (C, h, w) map with the text beside every region: gate and residual are conv(ReLU(conv(BN([x; t])))), 3x3."""

    def layer(name: str, x: np.ndarray) -> np.ndarray:
        return conv(p[f"{name}.weight"], x) + p[f"{name}.bias"][:, None, None]

    _, h, w = v.shape
    both = np.array([*v, *(np.full((h, w), t) for t in text)])
    gate = sigmoid(layer("gate.3", relu(layer("gate.1", norm(p, "gate.0", both)))))
    residual = layer("residual.3", relu(layer("residual.1", norm(p, "residual.0", both))))
    keep, change = p["shares"]
    return keep * gate * v + change * residual


def combiner(p: dict, image: np.ndarray, text: np.ndarray) -> tuple[np.ndarray, float]:
    """Lin(h) + s t + (1 - s) x, and the share of the image, 1 - s."""
    wide = np.array([*relu(linear(p, "text.0", text)), *relu(linear(p, "image.0", image))])
    residual = linear(p, "output", relu(linear(p, "hidden.0", wide)))
    s = mlp_gate(p, "share", wide)[0]
    return np.array([residual[d] + s * text[d] + (1 - s) * image[d] for d in range(len(image))]), 1 - s


def clip_vector(p: dict, tower: str, x: np.ndarray, project: bool, unit_features: bool) -> np.ndarray:
    """One CLIP feature as the composition sees it."""
    x = relu(linear(p, f"{tower}_fc.0", x)) if project else x
    return unit(x) if unit_features else x


def loss(
    queries: np.ndarray, targets: np.ndarray, positives: np.ndarray, temperature: float, scale: float | None = None
) -> float:
    """Softmax over in-batch cosines, hits of a query sharing its label; with s learned, logits are (s q).(s t)."""
    out = 0.0
    for i, q in enumerate(queries):
        if scale is None:
            logits = np.array([unit(q) @ unit(t) / temperature for t in targets])
        else:
            logits = np.array([(scale * unit(q)) @ (scale * unit(t)) for t in targets])
        hits = np.flatnonzero(positives[i])
        out -= sum(np.log(softmax(logits)[j]) for j in hits) / len(hits)
    return out / len(queries)


def soft_triplet(queries: np.ndarray, targets: np.ndarray, negatives: np.ndarray, scale: float) -> float:
    """Mean of log(1 + exp(d(a, p) - d(a, n))) over given negatives; every query and every target is an anchor once."""
    every = [scale * unit(x) for x in (*queries, *targets)]
    found, half = [], len(queries)
    for anchor, row in enumerate(negatives):
        positive = anchor + half if anchor < half else anchor - half
        for n in row:
            if n >= 0:
                near = ((every[anchor] - every[positive]) ** 2).sum()
                found.append(np.log(1 + np.exp(near - ((every[anchor] - every[n]) ** 2).sum())))
    return float(np.mean(found))
