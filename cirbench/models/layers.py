"""Parts that several methods share: pooling, inception blocks, compositions, losses, optimisers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cirbench.types import CirbenchError


class GeM(nn.Module):
    """Generalised mean over the last axes: (mean max(x, eps)^p)^(1/p) (Radenovic et al. 2018).

    Args:
        p: the exponent, at the start where it is learned.
        eps: smaller values are raised to it.
        learned: p is a parameter; otherwise a buffer of the same name, and stays (ARTEMIS).
    """

    def __init__(self, p: float = 3.0, eps: float = 1e-6, learned: bool = True) -> None:
        super().__init__()
        self.eps = eps
        self.p: Tensor
        if learned:
            self.p = nn.Parameter(torch.tensor([p]))
        else:
            self.register_buffer("p", torch.tensor([p]))

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """(B, D, ...) -> (B, D). `mask` (B, L) bool leaves positions out of the mean of a (B, D, L) input."""
        x = x.flatten(2).clamp(min=self.eps).pow(self.p)
        if mask is None:
            return x.mean(2).pow(1 / self.p)
        kept = mask[:, None].to(x.dtype)
        return ((x * kept).sum(2) / kept.sum(2)).pow(1 / self.p)


def l2norm(x: Tensor) -> Tensor:
    """Unit vectors along the last axis."""
    return F.normalize(x, dim=-1)


#: Channels of an inception block's convolutions, branch by branch: ((a,), (b, b'), (c, c', c''), (e,)).
Widths = Sequence[Sequence[int]]


def _widths(out_dim: int, widths: Widths | None) -> list[tuple[int, ...]]:
    """The widths of an inception block, checked; DWC's where none are given.

    Raises:
        CirbenchError: branches of another shape, a width below 1, or ends that do not sum to `out_dim`.
    """
    d = out_dim
    if widths is None:
        if d < 8 or d % 8:
            raise CirbenchError(
                f"an inception block of out_dim={d}: its usual widths are eighths of it. Take "
                f"{max(8, round(d / 8) * 8)}, or give `widths`."
            )
        return [(3 * d // 8,), (d // 2, d // 4), (d // 4, d // 8, d // 4), (d // 8,)]
    made = [tuple(branch) for branch in widths]
    if [len(branch) for branch in made] != [1, 2, 3, 1] or min(sum(made, ())) < 1:
        raise CirbenchError(
            f"widths={made} of an inception block: four branches of 1, 2, 3 and 1 convolutions are wanted, such as "
            "((30,), (24, 24), (24, 10, 24), (18,))."
        )
    ends = [branch[-1] for branch in made]
    if sum(ends) != d:
        raise CirbenchError(
            f"widths={made} of an inception block: its branches end in {' + '.join(map(str, ends))} = {sum(ends)} "
            f"channels, but out_dim is {d}. They must be equal."
        )
    return made


class _Inception(nn.Module):
    """The layers of an inception block, over maps or over sequences."""

    conv: type[nn.Conv1d] | type[nn.Conv2d]
    batch_norm: type[nn.BatchNorm1d] | type[nn.BatchNorm2d]

    def __init__(self, in_dim: int, out_dim: int, widths: Widths | None = None, final_relu: bool = False) -> None:
        super().__init__()
        (a,), (b, b2), (c, c2, c3), (e,) = _widths(out_dim, widths)
        self.first, self.final_relu = (a, b, c, e), final_relu
        self.reduce = self.conv(in_dim, sum(self.first), 1, bias=False)
        self.norm = self.batch_norm(sum(self.first[:3]))
        self.norm_pooled = self.batch_norm(self.first[3])
        self.second = self.conv(b, b2, 3, padding=1, bias=False)
        self.norm_second = self.batch_norm(b2)
        self.third_a = self.conv(c, c2, 3, padding=1, bias=False)
        self.norm_third_a = self.batch_norm(c2)
        self.third_b = self.conv(c2, c3, 3, padding=1, bias=False)
        self.norm_third_b = self.batch_norm(c3)


class Inception2d(_Inception):
    """Four branches over a map, concatenated (CLVC-Net, DWC): (B, in, h, w) -> (B, out, h, w).

    1x1 to a | 1x1 to b, 3x3 to b' | 1x1 to c, 3x3 to c', 3x3 to c'' | 3x3 average, 1x1 to e.
    Convolutions have no bias and are followed by batch normalisation, with ReLU in between, and at the end with
    `final_relu`.

    The four 1x1 convolutions are one product here, and the average is taken after its 1x1, on e channels: both are
    linear, so the result is the same.

    Args:
        in_dim: channels in.
        out_dim: channels out, d.
        widths: ((a,), (b, b'), (c, c', c''), (e,)) with a + b' + c'' + e = d; by default DWC's ((3d/8,), (d/2, d/4),
            (d/4, d/8, d/4), (d/8,)), for d a multiple of 8.
        final_relu: every convolution is followed by ReLU, so that no output is negative (CLVC-Net).

    Raises:
        CirbenchError: widths that do not make a block of `out_dim` channels.
    """

    conv, batch_norm = nn.Conv2d, nn.BatchNorm2d

    def forward(self, x: Tensor) -> Tensor:
        """(B, in, h, w) -> (B, out, h, w)."""
        a, b, c, e = self.first
        kept, pooled = self.reduce(x).split((a + b + c, e), 1)
        one, two, three = self.norm(kept).split((a, b, c), 1)
        pooled = F.avg_pool2d(pooled, 3, 1, 1, count_include_pad=False)
        two = self.norm_second(self.second(two.relu()))
        three = self.norm_third_a(self.third_a(three.relu())).relu()
        three = self.norm_third_b(self.third_b(three))
        out = torch.cat([one, two, three, self.norm_pooled(pooled)], 1)
        return out.relu() if self.final_relu else out


def _norm_words(norm: nn.Module, x: Tensor, mask: Tensor) -> Tensor:
    """Batch normalisation over real words only; padding becomes zero. (B, D, L), (B, L) -> (B, D, L)."""
    words = x.transpose(1, 2)
    out = torch.zeros_like(words)
    out[mask] = norm(words[mask]).to(out.dtype)
    return out.transpose(1, 2)


class Inception1d(_Inception):
    """`Inception2d` over a sequence, blind to padding: (B, in, L), mask (B, L) -> (B, out, L).

    Padding is zero before every convolution and excluded from averages and batch statistics, so the result for a text
    does not depend on the longest text of its batch. Arguments and errors are those of `Inception2d`.
    """

    conv, batch_norm = nn.Conv1d, nn.BatchNorm1d

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """(B, in, L), (B, L) bool -> (B, out, L), zero at padding."""
        a, b, c, e = self.first
        kept, pooled = self.reduce(x * mask[:, None].to(x.dtype)).split((a + b + c, e), 1)
        one, two, three = _norm_words(self.norm, kept, mask).split((a, b, c), 1)
        two = _norm_words(self.norm_second, self.second(two.relu()), mask)
        three = _norm_words(self.norm_third_a, self.third_a(three.relu()), mask).relu()
        three = _norm_words(self.norm_third_b, self.third_b(three), mask)
        # The mean of a window is over its real words only; padding of `pooled` is already zero (no bias).
        real = mask[:, None].to(x.dtype)
        total = F.avg_pool1d(pooled, 3, 1, 1, count_include_pad=True)
        pooled = total / F.avg_pool1d(real, 3, 1, 1, count_include_pad=True).clamp(min=1e-6)
        out = torch.cat([one, two, three, _norm_words(self.norm_pooled, pooled, mask)], 1)
        return out.relu() if self.final_relu else out


def gate(in_dim: int, hidden: int, out_dim: int, dropout: float) -> nn.Sequential:
    """Linear, ReLU, dropout, linear, sigmoid: (B, in) -> (B, out) in 0..1."""
    return nn.Sequential(
        nn.Linear(in_dim, hidden), nn.ReLU(), nn.Dropout(dropout), nn.Linear(hidden, out_dim), nn.Sigmoid()
    )


# Compositions of other papers at plain widths, for a method that can replace its own by one of them (`composition`).
# The methods of these papers, methods/concat.py, tirg.py and combiner.py, hold them in full so that each file can be
# read by itself; tests/methods/test_rivals.py checks that both are equal.


class Concat(nn.Module):
    """Concatenation and a perceptron of two layers, (B, D), (B, D) -> (B, D) (baseline of Vo et al. 2019)."""

    def __init__(self, dim: int, dropout: float = 0.1) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.BatchNorm1d(2 * dim), nn.ReLU(), nn.Linear(2 * dim, 2 * dim),
            nn.BatchNorm1d(2 * dim), nn.ReLU(), nn.Dropout(dropout), nn.Linear(2 * dim, dim),
        )

    def forward(self, image: Tensor, text: Tensor) -> Tensor:
        """F([image; text])."""
        return self.layers(torch.cat([image, text], 1))


class GatedResidual(nn.Module):
    """TIRG's composition (Vo et al. 2019), (B, D), (B, D) -> (B, D), a_0 sigmoid(gate([x; t])) x + a_1 res([x; t])."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        d = 2 * dim
        self.shares = nn.Parameter(torch.tensor([1.0, 10.0]))
        self.gate = nn.Sequential(nn.BatchNorm1d(d), nn.ReLU(), nn.Linear(d, dim))
        self.residual = nn.Sequential(nn.BatchNorm1d(d), nn.ReLU(), nn.Linear(d, d), nn.ReLU(), nn.Linear(d, dim))

    def forward(self, image: Tensor, text: Tensor) -> Tensor:
        """a_0 sigmoid(gate) * image + a_1 residual."""
        both = torch.cat([image, text], 1)
        return self.shares[0] * self.gate(both).sigmoid() * image + self.shares[1] * self.residual(both)


class Combiner(nn.Module):
    """CLIP4Cir's Combiner (Baldrati et al. 2022), D and 2D wide: (B, D), (B, D) -> (B, D), share of the image (B, 1).

    q = W h([x'; t']) + (1 - s) x + s t, s = sigmoid(MLP([x'; t'])), x' and t' projections of image and text.
    """

    def __init__(self, dim: int, dropout: float = 0.5) -> None:
        super().__init__()

        def block(inputs: int, outputs: int) -> nn.Sequential:
            return nn.Sequential(nn.Linear(inputs, outputs), nn.ReLU(), nn.Dropout(dropout))

        self.image, self.text, self.hidden = block(dim, dim), block(dim, dim), block(2 * dim, 2 * dim)
        self.output = nn.Linear(2 * dim, dim)
        self.share = gate(2 * dim, 2 * dim, 1, dropout)

    def forward(self, image: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
        """The composition, and 1 - s."""
        both = torch.cat([self.text(text), self.image(image)], 1)
        share = self.share(both)
        return self.output(self.hidden(both)) + share * text + (1 - share) * image, 1 - share


class Composition(nn.Module):
    """Any composition by name, (B, D), (B, D) -> (B, D) and the share of the image (B, 1) or None."""

    def __init__(self, compose: Callable[[Tensor, Tensor], Any]) -> None:
        super().__init__()
        self.compose = compose

    def forward(self, image: Tensor, text: Tensor) -> tuple[Tensor, Tensor | None]:
        """The composition, and the share of the image."""
        out = self.compose(image, text)
        return out if isinstance(out, tuple) else (out, None)


def composition(kind: str, dim: int, dropout: float) -> Composition:
    """`sum`, `hadamard` (product), `concat`, `tirg` or `combiner`, D and 2D wide inside."""
    made: dict[str, Callable[[], Callable[[Tensor, Tensor], Any]]] = {
        "sum": lambda: torch.add, "hadamard": lambda: torch.mul, "concat": lambda: Concat(dim, dropout),
        "tirg": lambda: GatedResidual(dim), "combiner": lambda: Combiner(dim, dropout),
    }
    return Composition(made[kind]())


def contrastive(queries: Tensor, targets: Tensor, labels: Tensor, temperature: float | Tensor) -> Tensor:
    """Cross-entropy of in-batch similarities against soft labels: -mean_i sum_j p_ij log softmax_j(q_i.t_j / tau).

    Args:
        queries: (B, D).
        targets: (B, D).
        labels: (B, B), rows sum to 1.
        temperature: tau.
    """
    return -(labels * F.log_softmax(queries @ targets.T / temperature, 1)).sum(1).mean()


def similarities(x: Tensor, kind: str, width: float = 1.0) -> Tensor:
    """Pairwise similarity of the rows of x, (B, D) -> (B, B).

    Args:
        x: (B, D).
        kind: `dot` x_i.x_j; `cosine`; `euclidean` -|x_i - x_j|; `gaussian` exp(-|x_i - x_j|^2 / (2 width^2)).
        width: of the Gaussian.
    """
    if kind == "dot":
        return x @ x.T
    if kind == "cosine":
        return l2norm(x) @ l2norm(x).T
    # The distance of a row to itself is 0, where the square root has no gradient.
    squared = (x[:, None] - x[None]).square().sum(2)
    if kind == "gaussian":
        return (-squared / (2 * width**2)).exp()
    return -(squared + 1e-12).sqrt()


def hard_labels(positives: Tensor) -> Tensor:
    """(B, B) bool -> (B, B), each row's weight of 1 split equally among its positives."""
    y = positives.to(torch.get_default_dtype())
    return y / y.sum(1, keepdim=True)


def distillation(teacher: Tensor, student: Tensor, scale: float) -> Tensor:
    """KL(softmax_j(scale * teacher) || softmax_j(scale * student)), mean over rows; no gradient into the teacher.

    Args:
        teacher: (B, B) similarities.
        student: (B, B) similarities.
        scale: inverse temperature.
    """
    return F.kl_div(
        F.log_softmax(scale * student, 1), F.softmax(scale * teacher.detach(), 1), reduction="batchmean"
    )


def draw_negatives(positives: Tensor, count: int) -> Tensor:
    """Random negatives of each query and each target, from torch's generator.

    Args:
        positives: (B, B) bool, which targets are hits of which query.
        count: how many for each, all different; fewer if there are not enough.

    Returns:
        (2B, count) rows of [queries; targets], -1 where there is none. Rows that are hits of each other, or of
        each other's partner, are not negatives.
    """
    near = positives | positives.T
    same = torch.cat([torch.cat([near, positives], 1), torch.cat([positives.T, near], 1)]).cpu()
    draw = torch.rand(same.shape).masked_fill(same, -1.0)
    best, rows = draw.topk(min(count, len(same)), 1)
    return rows.masked_fill(best < 0, -1).to(positives.device)


def soft_triplet(queries: Tensor, targets: Tensor, negatives: Tensor) -> Tensor:
    """TIRG's soft triplet loss: the mean of log(1 + exp(d(a, p) - d(a, n))), d the squared Euclidean distance.

    Every query is an anchor a with its target as positive p, and every target an anchor with its query.

    Args:
        queries: (B, D).
        targets: (B, D).
        negatives: (2B, N) rows n of [queries; targets], -1 for none (`draw_negatives`).
    """
    every, partner = torch.cat([queries, targets]), torch.cat([targets, queries])
    kept = negatives >= 0
    near = (every - partner).square().sum(1, keepdim=True)
    far = (every[:, None] - every[negatives.clamp(min=0)]).square().sum(2)
    return (F.softplus(near - far) * kept).sum() / kept.sum().clamp(min=1)


def side_by_side(parts: Mapping[str, Tensor], clip_share: float) -> Tensor:
    """Unit vectors of the streams side by side, so that a dot product is the weighted sum of their cosines.

    Args:
        parts: stream (`clip`, `cnn`) -> (B, D); a single stream is returned as it is.
        clip_share: weight of the CLIP stream's cosine.
    """
    if len(parts) == 1:
        return next(iter(parts.values()))
    return torch.cat([clip_share**0.5 * parts["clip"], (1 - clip_share) ** 0.5 * parts["cnn"]], 1)


def sgd(
    parameters: Sequence[Mapping[str, Any]], lr: float, weight_decay: float, momentum: float = 0.9
) -> torch.optim.SGD:
    """SGD over parameter groups, in its fused form."""
    return torch.optim.SGD(
        [dict(group) for group in parameters], lr=lr, weight_decay=weight_decay, momentum=momentum, fused=True
    )


def adam(
    parameters: Iterable[nn.Parameter] | Iterable[dict[str, Any]], lr: float, weight_decay: float, eps: float = 1e-8,
    decoupled: bool = False,
) -> torch.optim.Optimizer:
    """Adam in its fused form, the faster one on the CPU too (tests/perf); takes parameters or groups.

    `decoupled` is AdamW: the decay shrinks the weights directly instead of being part of the gradient.
    """
    kept: list[Any] = [p for p in parameters if isinstance(p, dict) or p.requires_grad]
    make = torch.optim.AdamW if decoupled else torch.optim.Adam
    return make(kept, lr=lr, weight_decay=weight_decay, eps=eps, fused=True)


def radam(
    parameters: Iterable[nn.Parameter] | Iterable[dict[str, Any]], lr: float, weight_decay: float, eps: float = 1e-8
) -> torch.optim.Optimizer:
    """Rectified Adam (Liu et al., ICLR 2020, arXiv 1908.03265) with AdamW's decay; takes parameters or groups."""
    kept: list[Any] = [p for p in parameters if isinstance(p, dict) or p.requires_grad]
    return torch.optim.RAdam(kept, lr=lr, weight_decay=weight_decay, eps=eps, decoupled_weight_decay=True)
