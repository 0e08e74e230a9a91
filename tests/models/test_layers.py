"""Inception blocks of any widths and GeM, against slow transcriptions in float64."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from torch import Tensor, nn

from cirbench.models.layers import GeM, Inception1d, Inception2d
from cirbench.types import CirbenchError

#: Of the small CLVC-Net: 30 + 24 + 24 + 18 = 96.
MAP = ((30,), (24, 24), (24, 10, 24), (18,))
WORDS = ((48,), (64, 32), (64, 28, 32), (16,))


def normalised(x: Tensor, norm: nn.Module, rows: slice, training: bool) -> Tensor:
    """Batch normalisation of a (B, C, ...) map by some of a layer's channels, written out."""
    axes = [0, *range(2, x.ndim)]
    mean, var = x.mean(axes), x.var(axes, unbiased=False)
    if not training:
        mean, var = norm.running_mean[rows], norm.running_var[rows]  # type: ignore[index]
    shape = (1, -1) + (1,) * (x.ndim - 2)
    scaled = (x - mean.reshape(shape)) / (var.reshape(shape) + 1e-5).sqrt()
    return scaled * norm.weight[rows].reshape(shape) + norm.bias[rows].reshape(shape)  # type: ignore[index]


def slow_block(x: Tensor, block: Inception2d | Inception1d, widths: tuple[tuple[int, ...], ...], relu: bool, training: bool) -> Tensor:
    """The four branches one after another, each convolution with its normalisation and ReLU; the mean before its 1x1."""
    flat = x.ndim == 3
    conv = F.conv1d if flat else F.conv2d
    (a,), (b, b2), (c, _, c3), (e,) = widths

    def layer(x: Tensor, weight: Tensor, norm: nn.Module, rows: slice, last: bool) -> Tensor:
        x = normalised(conv(x, weight, padding=weight.shape[-1] // 2), norm, rows, training)
        return x.relu() if relu or not last else x

    first, all_of = block.reduce.weight, slice(None)
    one = layer(x, first[:a], block.norm, slice(0, a), True)
    two = layer(x, first[a : a + b], block.norm, slice(a, a + b), False)
    two = layer(two, block.second.weight, block.norm_second, all_of, True)
    three = layer(x, first[a + b : a + b + c], block.norm, slice(a + b, a + b + c), False)
    three = layer(three, block.third_a.weight, block.norm_third_a, all_of, False)
    three = layer(three, block.third_b.weight, block.norm_third_b, all_of, True)
    # A window at the border holds fewer places; its mean is over those.
    ones = torch.ones_like(x)
    pool = (lambda y: F.avg_pool1d(y, 3, 1, 1)) if flat else (lambda y: F.avg_pool2d(y, 3, 1, 1))
    four = layer(pool(x) / pool(ones), first[a + b + c :], block.norm_pooled, all_of, True)
    assert one.shape[1] == a and two.shape[1] == b2 and three.shape[1] == c3 and four.shape[1] == e
    return torch.cat([one, two, three, four], 1)


def shaken(block: nn.Module) -> nn.Module:
    """In float64, with normalisations that are not those of the start."""
    block.double()
    for name, value in block.state_dict().items():
        if "norm" in name and value.is_floating_point():
            value.copy_(torch.rand_like(value) + 0.5)
    return block


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("widths", [MAP, None])
def test_inception2d(widths: tuple[tuple[int, ...], ...] | None, training: bool, relu: bool) -> None:
    torch.manual_seed(0)
    block = shaken(Inception2d(10, 96, widths, relu)).train(training)
    x = torch.randn(3, 10, 4, 5, dtype=torch.float64)
    expected = slow_block(x, block, widths or ((36,), (48, 24), (24, 12, 24), (12,)), relu, training)  # type: ignore[arg-type]
    out = block(x)
    assert out.shape == (3, 96, 4, 5) and torch.allclose(out, expected, atol=1e-10)
    assert bool((out < 0).any()) != relu


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("widths", [WORDS, None])
def test_inception1d(widths: tuple[tuple[int, ...], ...] | None, training: bool, relu: bool) -> None:
    torch.manual_seed(0)
    block = shaken(Inception1d(10, 128, widths, relu)).train(training)
    x = torch.randn(3, 10, 5, dtype=torch.float64)
    expected = slow_block(x, block, widths or ((48,), (64, 32), (32, 16, 32), (16,)), relu, training)  # type: ignore[arg-type]
    out = block(x, torch.ones(3, 5, dtype=torch.bool))
    assert out.shape == (3, 128, 5) and torch.allclose(out, expected, atol=1e-10)
    assert bool((out < 0).any()) != relu


@pytest.mark.parametrize("relu", [False, True])
def test_padding_changes_nothing_whatever_the_widths(relu: bool) -> None:
    torch.manual_seed(0)
    block = shaken(Inception1d(6, 128, WORDS, relu)).eval()
    x, mask = torch.randn(2, 6, 7, dtype=torch.float64), torch.arange(7) < torch.tensor([[7], [3]])
    out = block(x, mask)
    alone = block(x[1:, :, :3], mask[1:, :3])
    assert torch.allclose(out[1, :, :3], alone[0], atol=1e-12) and not out[1, :, 3:].any()


@settings(max_examples=25, deadline=None)
@given(
    a=st.integers(1, 9), b=st.tuples(*[st.integers(1, 9)] * 2), c=st.tuples(*[st.integers(1, 9)] * 3), e=st.integers(1, 9),
    off=st.integers(-3, 3),
)
def test_widths_end_in_the_width_of_the_output(a: int, b: tuple[int, ...], c: tuple[int, ...], e: int, off: int) -> None:
    widths, out = ((a,), b, c, (e,)), a + b[1] + c[2] + e
    if off == 0:
        assert Inception2d(3, out, widths).eval()(torch.randn(2, 3, 2, 2)).shape == (2, out, 2, 2)
        assert Inception1d(3, out, widths).eval()(torch.randn(2, 3, 4), torch.ones(2, 4, dtype=torch.bool)).shape == (2, out, 4)
        return
    for kind in (Inception2d, Inception1d):
        with pytest.raises(CirbenchError, match=rf"{a} \+ {b[1]} \+ {c[2]} \+ {e} = {out} channels, but out_dim is {out + off}\."):
            kind(3, out + off, widths)


@pytest.mark.parametrize("kind", [Inception2d, Inception1d])
@pytest.mark.parametrize(("out", "widths", "said"), [
    (12, None, r"out_dim=12: .* Take 16, or give"),
    (0, None, "Take 8"),
    (96, ((30,), (24,), (24, 10, 24), (18,)), r"four branches of 1, 2, 3 and 1 .*\(24, 10, 24\)"),
    (96, ((30,), (24, 24), (24, 10, 24)), "four branches"),
    (96, ((0,), (24, 54), (24, 10, 24), (18,)), "four branches"),
])
def test_widths_that_make_no_block(kind: type[nn.Module], out: int, widths: object, said: str) -> None:
    with pytest.raises(CirbenchError, match=said):
        kind(4, out, widths)


def test_gem_with_a_fixed_exponent() -> None:
    """The same numbers and the same name in a state; no parameter."""
    torch.manual_seed(0)
    learned, fixed = GeM(2.5), GeM(2.5, learned=False)
    x, mask = torch.randn(3, 4, 5), torch.arange(5) < torch.tensor([[5], [1], [3]])
    assert torch.equal(learned(x), fixed(x)) and torch.equal(learned(x, mask), fixed(x, mask))
    slow = (x.double().clamp(min=1e-6) ** 2.5).mean(2) ** (1 / 2.5)
    assert torch.allclose(fixed(x).double(), slow, atol=1e-6)
    assert [n for n, _ in learned.named_parameters()] == ["p"] and not list(fixed.parameters())
    assert list(learned.state_dict()) == list(fixed.state_dict()) == ["p"]
    other = GeM(4.0)
    fixed.load_state_dict(other.state_dict())
    learned.load_state_dict(fixed.state_dict())
    assert fixed.p.item() == learned.p.item() == 4.0
    y = x.clone().requires_grad_()
    fixed(y).sum().backward()
    assert y.grad is not None and y.grad.abs().sum() > 0
