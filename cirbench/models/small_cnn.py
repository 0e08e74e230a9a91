"""A plain small CNN for small pictures, registered with timm: stride 8, so 48 pixels give a 6x6 map.

`timm.create_model("cirbench_smallcnn", num_classes=0)` after importing this module. It is the trunk of `scenes-cnn`
and, with `global_pool="grid"`, the image tower of the small CLIPs: a 3x3 grid of maxima is fed to an
MLP, because a mean over the map would lose positions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from torch import Tensor, nn

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's, which timm users expect
GRID = 3


class ConvNorm(nn.Sequential):
    """Convolution, batch norm and, by default, ReLU."""

    def __init__(self, inside: int, outside: int, kernel: int, stride: int = 1, act: bool = True) -> None:
        layers: list[nn.Module] = [
            nn.Conv2d(inside, outside, kernel, stride, kernel // 2, bias=False), nn.BatchNorm2d(outside)
        ]
        super().__init__(*layers, *([nn.ReLU()] if act else []))


class Stage(nn.Module):
    """A convolution that changes width and stride, then one with a residual connection: (B, C, h, w)."""

    def __init__(self, inside: int, outside: int, stride: int) -> None:
        super().__init__()
        self.into = ConvNorm(inside, outside, 3, stride)
        self.around = ConvNorm(outside, outside, 3, act=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, C', h / stride, w / stride)."""
        x = self.into(x)
        return torch.relu(x + self.around(x))


class Head(nn.Module):
    """Pools the map and projects it.

    Args:
        channels: C.
        num_classes: width of the output; 0 leaves out the projection.
        global_pool: `avg`, `max`, `grid` (3x3 maxima, then an MLP), or "" for the map itself.
        hidden: width inside the MLP of `grid`.
    """

    def __init__(self, channels: int, num_classes: int, global_pool: str, hidden: int) -> None:
        super().__init__()
        pools: dict[str, tuple[nn.Module, int]] = {
            "avg": (nn.AdaptiveAvgPool2d(1), channels), "max": (nn.AdaptiveMaxPool2d(1), channels),
            "grid": (nn.AdaptiveMaxPool2d(GRID), channels * GRID * GRID), "": (nn.Identity(), channels),
        }
        if global_pool not in pools:
            raise ValueError(f"global_pool {global_pool!r}; valid: {', '.join(map(repr, pools))}")
        if global_pool == "" and num_classes:
            raise ValueError("global_pool='' returns the map itself and needs num_classes=0")
        self.pool, self.width = pools[global_pool]
        self.flatten = nn.Flatten(1) if global_pool else nn.Identity()
        self.fc: nn.Module = nn.Identity()
        if num_classes and global_pool == "grid":
            self.fc = nn.Sequential(nn.Linear(self.width, hidden), nn.GELU(), nn.Linear(hidden, num_classes))
        elif num_classes:
            self.fc = nn.Linear(self.width, num_classes)

    def forward(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """(B, C, h, w) -> (B, num_classes), or the pooled features."""
        x = self.flatten(self.pool(x))
        return x if pre_logits else self.fc(x)


def _indices(asked: int | Sequence[int] | None) -> list[int]:
    """Which of the four maps timm asks for: the last n, those of a list, or all; counted from the start."""
    if asked is None or isinstance(asked, int):
        return list(range(4))[-(asked or 4) :]
    return [range(4)[index] for index in asked]


class SmallCnn(nn.Module):
    """Four convolution stages; timm's interface.

    Args:
        widths: channels after the stem (stride 2) and the stages of stride 4, 8 and 8: 48 pixels give maps of 24x24,
            12x12, 6x6 and 6x6.
        num_classes: width of the output, 0 for pooled features.
        in_chans: channels of the picture.
        global_pool: see `Head`.
        head_hidden: see `Head`.
    """

    def __init__(
        self, widths: tuple[int, int, int, int] = (24, 32, 64, 96), num_classes: int = 1000, in_chans: int = 3,
        global_pool: str = "avg", head_hidden: int = 128,
    ) -> None:
        super().__init__()
        a, b, c, d = widths
        self.num_classes, self.global_pool, self.head_hidden = num_classes, global_pool, head_hidden
        self.num_features = self.head_hidden_size = d
        self.stem = ConvNorm(in_chans, a, 5, 2)
        self.stage1, self.stage2, self.stage3 = Stage(a, b, 2), Stage(b, c, 2), Stage(c, d, 1)
        self.head = Head(d, num_classes, global_pool, head_hidden)
        self.feature_info: list[dict[str, Any]] = [
            {"num_chs": n, "reduction": r, "module": m}
            for n, r, m in zip(widths, (2, 4, 8, 8), ("stem", "stage1", "stage2", "stage3"), strict=True)
        ]
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    @torch.jit.ignore
    def get_classifier(self) -> nn.Module:
        """The projection."""
        return self.head.fc

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """A new head."""
        self.num_classes = num_classes
        self.global_pool = self.global_pool if global_pool is None else global_pool
        self.head = Head(self.num_features, num_classes, self.global_pool, self.head_hidden)

    @torch.jit.ignore
    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Not supported, the network is too small; only `False` is accepted, by timm's convention."""
        if enable:
            raise ValueError("the small CNN has no gradient checkpointing")

    def forward_features(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, C, H / 8, W / 8)."""
        return self.stage3(self.stage2(self.stage1(self.stem(x))))

    def forward_intermediates(
        self, x: Tensor, indices: int | Sequence[int] | None = None, norm: bool = False, stop_early: bool = False,
        output_fmt: str = "NCHW", intermediates_only: bool = False,
    ) -> Any:
        """timm's interface: the maps after the stem and the three stages, (B, C, h, w) each, in order of depth.

        Args:
            x: (B, 3, H, W).
            indices: which of the four, negative ones from the end; an int for the last ones, None for all.
            norm: no effect, every map is normalised.
            stop_early: go no further than the last map that is wanted.
            output_fmt: NCHW.
            intermediates_only: without the last map in front.
        """
        if output_fmt != "NCHW":
            raise ValueError(f"output_fmt {output_fmt!r}; the small CNN gives NCHW")
        wanted = _indices(indices)
        maps = []
        for index, stage in enumerate((self.stem, self.stage1, self.stage2, self.stage3)):
            if stop_early and index > max(wanted):
                break
            x = stage(x)
            if index in wanted:
                maps.append(x)
        return maps if intermediates_only else (x, maps)

    def prune_intermediate_layers(
        self, indices: int | Sequence[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """timm's interface: drop what lies deeper than these maps; their indices from the start."""
        wanted = _indices(indices)
        deepest = max(wanted)
        for index in range(deepest + 1, 4):
            setattr(self, f"stage{index}", nn.Identity())
        if deepest < 3:
            self.num_features = self.head_hidden_size = self.feature_info[deepest]["num_chs"]
        if prune_head or deepest < 3:
            self.reset_classifier(0, "")
        return wanted

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """(B, C, h, w) -> (B, num_classes)."""
        return self.head(x, pre_logits)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, num_classes)."""
        return self.forward_head(self.forward_features(x))


_CONFIG = {
    "url": "", "num_classes": 1000, "input_size": (3, 48, 48), "pool_size": (6, 6), "crop_pct": 1.0,
    "interpolation": "bicubic", "mean": MEAN, "std": STD, "first_conv": "stem.0", "classifier": "head.fc",
}
# timm reads this name when a model of this module is registered, so it is defined first.
default_cfgs = generate_default_cfgs({"cirbench_smallcnn": _CONFIG, "cirbench_smallcnn_wide": _CONFIG})


def _create(variant: str, pretrained: bool, widths: tuple[int, int, int, int], **kwargs: Any) -> SmallCnn:
    if pretrained:
        raise ValueError(f"{variant} has no weights to fetch; cirbench ships them (scenes-cnn)")
    return build_model_with_cfg(
        SmallCnn, variant, False, widths=widths,
        feature_cfg={"out_indices": (0, 1, 2, 3), "flatten_sequential": False}, **kwargs,
    )


@register_model
def cirbench_smallcnn(pretrained: bool = False, **kwargs: Any) -> SmallCnn:
    """24-32-64-96 channels, 0.2 million parameters."""
    return _create("cirbench_smallcnn", pretrained, (24, 32, 64, 96), **kwargs)


@register_model
def cirbench_smallcnn_wide(pretrained: bool = False, **kwargs: Any) -> SmallCnn:
    """32-48-96-128 channels with a wider head, 0.4 million parameters without it."""
    return _create("cirbench_smallcnn_wide", pretrained, (32, 48, 96, 128), **{"head_hidden": 192, **kwargs})
