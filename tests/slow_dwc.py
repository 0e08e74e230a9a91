"""DWC once more, slowly: loops over queries, words and regions in float64, written from the formulas alone.

Weights are read from the fast modules by name; nothing of their forward code is used. Evaluation mode: dropout is the
identity and batch normalisation uses running statistics.
"""

from __future__ import annotations

import numpy as np


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def relu(x: np.ndarray) -> np.ndarray:
    return np.maximum(x, 0)


def unit(x: np.ndarray) -> np.ndarray:
    return x / np.sqrt((x * x).sum())


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max())
    return e / e.sum()


def linear(p: dict, name: str, x: np.ndarray) -> np.ndarray:
    return p[f"{name}.weight"] @ x + p[f"{name}.bias"]


def mlp_gate(p: dict, name: str, x: np.ndarray) -> np.ndarray:
    return sigmoid(linear(p, f"{name}.3", relu(linear(p, f"{name}.0", x))))


def norm(p: dict, name: str, x: np.ndarray, channels: slice = slice(None)) -> np.ndarray:
    """Batch normalisation over the first axis with running statistics."""
    shape = (-1,) + (1,) * (x.ndim - 1)
    mean, var = p[f"{name}.running_mean"][channels], p[f"{name}.running_var"][channels]
    weight, bias = p[f"{name}.weight"][channels], p[f"{name}.bias"][channels]
    return (x - mean.reshape(shape)) / np.sqrt(var.reshape(shape) + 1e-5) * weight.reshape(shape) + bias.reshape(shape)


def conv(weight: np.ndarray, x: np.ndarray) -> np.ndarray:
    """A convolution with `same` zero padding, by its definition; x is (C, h, w) or (C, L)."""
    flat = x.ndim == 2
    if flat:
        x, weight = x[:, None], weight[:, :, None]
    _, h, w = x.shape
    kh, kw = weight.shape[2:]
    out = np.zeros((weight.shape[0], h, w))
    for i in range(h):
        for j in range(w):
            for a in range(kh):
                for b in range(kw):
                    y, z = i + a - kh // 2, j + b - kw // 2
                    if 0 <= y < h and 0 <= z < w:
                        out[:, i, j] += weight[:, :, a, b] @ x[:, y, z]
    return out[:, 0] if flat else out


def average3(x: np.ndarray) -> np.ndarray:
    """Mean of the 3-wide window, cells outside not counted; x is (C, h, w) or (C, L)."""
    flat = x.ndim == 2
    if flat:
        x = x[:, None]
    _, h, w = x.shape
    out = np.zeros_like(x)
    for i in range(h):
        for j in range(w):
            out[:, i, j] = x[:, max(i - 1, 0) : i + 2, max(j - 1, 0) : j + 2].mean((1, 2))
    return out[:, 0] if flat else out


def inception(p: dict, name: str, x: np.ndarray) -> np.ndarray:
    """Four separate branches, each as the paper's parent draws it: average first, then its 1x1."""
    w = p[f"{name}.reduce.weight"]
    d = len(p[f"{name}.norm_second.weight"]) * 4
    a, b, c = 3 * d // 8, d // 2, d // 4
    one = norm(p, f"{name}.norm", conv(w[:a], x), slice(0, a))
    two = relu(norm(p, f"{name}.norm", conv(w[a : a + b], x), slice(a, a + b)))
    two = norm(p, f"{name}.norm_second", conv(p[f"{name}.second.weight"], two))
    three = relu(norm(p, f"{name}.norm", conv(w[a + b : a + b + c], x), slice(a + b, a + b + c)))
    three = relu(norm(p, f"{name}.norm_third_a", conv(p[f"{name}.third_a.weight"], three)))
    three = norm(p, f"{name}.norm_third_b", conv(p[f"{name}.third_b.weight"], three))
    four = norm(p, f"{name}.norm_pooled", conv(w[a + b + c :], average3(x)))
    return np.concatenate([one, two, three, four])


def gem(p: dict, name: str, x: np.ndarray) -> np.ndarray:
    power = p[f"{name}.p"][0]
    flat = np.maximum(x.reshape(len(x), -1), 1e-6)
    return (flat**power).mean(1) ** (1 / power)


def combine(config, p: dict, name: str, image: np.ndarray, text: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
    """EMD's weighted sum, or the composition that stands in its place; imported late, since it is written with these."""
    import slow_rivals as rivals

    if config.unit_parts:
        image, text = unit(image), unit(text)
    inner = {k.removeprefix(f"{name}.other.compose."): v for k, v in p.items()}
    if config.fusion == "sum":
        return unit(rivals.total(image, text)), None
    if config.fusion == "hadamard":
        return unit(np.array([i * t for i, t in zip(image, text, strict=True)])), None
    if config.fusion == "concat":
        return unit(rivals.concat(inner, image, text, 2)), None
    if config.fusion == "tirg":
        return unit(rivals.tirg(inner, image, text)), None
    if config.fusion == "combiner":
        q, share = rivals.combiner(inner, image, text)
        return unit(q), np.array([share])
    if config.weighting == "constant":
        weight = np.array([config.modality_weight])
    else:
        weight = mlp_gate(p, f"{name}.weight", np.concatenate([image, text]))
    return unit(weight * image + (1 - weight) * text), weight


def clip_target(p: dict, x: np.ndarray) -> np.ndarray:
    return unit(relu(linear(p, "img_fc.0", x)))


def clip_query(config, p: dict, image: np.ndarray, text: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    i, w = unit(relu(linear(p, "img_fc.0", image))), unit(relu(linear(p, "txt_fc.0", text)))
    both = np.concatenate([i, w])
    edited_i = mlp_gate(p, "gate_image", both) * i if config.editors in ("both", "image") else i
    edited_w = mlp_gate(p, "gate_text", both) * w if config.editors in ("both", "text") else w
    return combine(config, p, "combine", edited_i, edited_w)


def lstm(p: dict, ids: list[int]) -> np.ndarray:
    """(L,) ids -> (L, D) states."""
    d = p["text.lstm.weight_hh_l0"].shape[1]
    h, c, states = np.zeros(d), np.zeros(d), []
    for word in ids:
        x = p["text.embedding_layer.weight"][word]
        z = (
            p["text.lstm.weight_ih_l0"] @ x + p["text.lstm.bias_ih_l0"]
            + p["text.lstm.weight_hh_l0"] @ h + p["text.lstm.bias_hh_l0"]
        )
        i, f, g, o = sigmoid(z[:d]), sigmoid(z[d : 2 * d]), np.tanh(z[2 * d : 3 * d]), sigmoid(z[3 * d :])
        c = f * c + i * g
        h = o * np.tanh(c)
        states.append(h)
    return np.array(states)


def cnn_target(p: dict, v: np.ndarray) -> np.ndarray:
    return unit(linear(p, "img_fc", gem(p, "pool_target", v)))


def cnn_query(config, p: dict, v: np.ndarray, ids: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """One feature map (C, h, w) and one text, padding included where the config lets it through."""
    words = lstm(p, ids)
    _, h, w = v.shape
    length, regions = len(words), h * w
    edited_v, edited_w = v, words.T
    if config.editors != "none":
        small = relu(inception(p, "to_words", v)).reshape(-1, regions)
        affinity = np.array([[words[l] @ small[:, i] for i in range(regions)] for l in range(length)])
        said, seen = np.zeros_like(small), np.zeros((small.shape[0], length))
        for i in range(regions):
            a = softmax(affinity[:, i] / config.word_temperature)
            said[:, i] = sum(a[l] * words[l] for l in range(length))
        for l in range(length):
            b = softmax(affinity[l] / config.region_temperature)
            seen[:, l] = sum(b[i] * small[:, i] for i in range(regions))
        small, said = small.reshape(-1, h, w), said.reshape(-1, h, w)
        if config.editors in ("both", "image"):
            mask = sigmoid(inception(p, "mask_image", np.concatenate([small, said])))
            edited_v = mask * v + relu(inception(p, "words_to_image", said))
        if config.editors in ("both", "text"):
            mask = sigmoid(inception(p, "mask_text", np.concatenate([words.T, seen])))
            edited_w = mask * words.T + relu(inception(p, "image_to_words", seen))
    image = linear(p, "img_fc", gem(p, "pool_image", edited_v))
    text = linear(p, "txt_fc", gem(p, "pool_text", edited_w))
    return combine(config, p, "combine", image, text)


def clip_text(p: dict, text: np.ndarray) -> np.ndarray:
    return unit(relu(linear(p, "txt_fc.0", text)))


def cnn_text(p: dict, ids: list[int]) -> np.ndarray:
    return unit(linear(p, "txt_fc", gem(p, "pool_text", lstm(p, ids).T)))


def likeness(config, a: np.ndarray, b: np.ndarray) -> float:
    if config.soft_label_similarity == "dot":
        return float(sum(x * y for x, y in zip(a, b, strict=True)))
    if config.soft_label_similarity == "cosine":
        return float(a @ b / np.sqrt((a @ a) * (b @ b)))
    distance = np.sqrt(sum((x - y) ** 2 for x, y in zip(a, b, strict=True)))
    if config.soft_label_similarity == "gaussian":
        return float(np.exp(-(distance**2) / (2 * config.soft_label_width**2)))
    return -float(distance)


def soft_labels(config, compared: np.ndarray, positives: np.ndarray) -> np.ndarray:
    n, share = len(compared), config.soft_label_weight
    out = np.zeros((n, n))
    for i in range(n):
        alike = np.array([likeness(config, compared[i], compared[j]) for j in range(n)])
        similar = softmax(alike / config.soft_label_temperature)
        if config.soft_label_source == "uniform":
            similar = np.full(n, 1 / n)
        for j in range(n):
            out[i, j] = share * similar[j] + (1 - share) * positives[i, j] / positives[i].sum()
    return out


def contrastive(queries: np.ndarray, targets: np.ndarray, labels: np.ndarray, temperature: float) -> float:
    total = 0.0
    for i in range(len(queries)):
        predicted = softmax(np.array([queries[i] @ t for t in targets]) / temperature)
        total -= sum(labels[i, j] * np.log(predicted[j]) for j in range(len(targets)))
    return total / len(queries)


def kl(teacher: np.ndarray, student: np.ndarray, scale: float) -> float:
    total = 0.0
    for i in range(len(teacher)):
        p, q = softmax(scale * teacher[i]), softmax(scale * student[i])
        total += sum(p[j] * (np.log(p[j]) - np.log(q[j])) for j in range(len(p)))
    return total / len(teacher)
