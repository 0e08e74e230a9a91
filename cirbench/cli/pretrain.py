"""Train a small CLIP, or the trunk of the small CNN, from the captions of a dataset."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import click

from cirbench.types import CirbenchError

if TYPE_CHECKING:
    from cirbench.models.pretrain import Outcome, Pairs
    from cirbench.settings import Settings

#: Fresh scenes to evaluate on; they have the role `select`, so none is trained on.
HELD_OUT = 1000


def _options(function: Callable[..., Any]) -> Callable[..., Any]:
    for option in reversed([
        click.option("--dataset", required=True, help="Dataset with captions: scenes, fashion200k, custom, ..."),
        click.option("--root", type=click.Path(path_type=Path), help="Folder that holds the dataset."),
        click.option("--set", "sets", multiple=True, metavar="data.FIELD=VALUE",
                     help="Override a knob of the dataset."),
        click.option("--out", type=click.Path(path_type=Path, file_okay=False), required=True,
                     help="Folder to write to."),
        click.option("--steps", type=click.IntRange(1, 10_000_000), help="Optimiser steps, instead of --epochs."),
        click.option("--epochs", type=click.FloatRange(0, 100_000, min_open=True),
                     help="Passes over the pictures. [10]"),
        click.option("--batch-size", type=click.IntRange(2, 1_000_000), default=256, show_default=True,
                     help="Pairs per step."),
        click.option("--side", type=click.IntRange(24, 384), help="Image side in pixels. [48 for scenes, else 64]"),
        click.option("--lr", type=click.FloatRange(0, 1000, min_open=True), default=2e-3, show_default=True,
                     help="Peak learning rate."),
        click.option("--pictures", type=click.IntRange(2, 10_000_000), default=30_000, show_default=True,
                     help="Pictures to generate, if the dataset is a generated one."),
        click.option("--flip", is_flag=True, help="Mirror half of the pictures; wrong if texts name left and right."),
        click.option("--seed", type=click.IntRange(0, 2**63 - 1), default=0, show_default=True,
                     help="Seed of all random draws."),
        click.option("--threads", type=click.IntRange(1, 1024),
                     help="CPU threads; another number may change the last bits."),
        click.option("--quiet", "-q", is_flag=True, help="No progress, no table."),
    ]):
        function = option(function)
    return function


@click.group()
def pretrain() -> None:
    """Train a small CLIP, or the trunk of the small CNN, from captions."""


def _find(dataset: str, root: Path | None, sets: Sequence[str]) -> tuple[ModuleType, Settings]:
    """The dataset's module and its knobs, checked as far as they can be without torch."""
    from cirbench.plugins import find_dataset
    from cirbench.settings import parse_assignments, resolve

    module = find_dataset(dataset)
    knobs = resolve(module.Knobs, "data", parse_assignments(sets, ("data",))["data"])
    if sets and hasattr(module, "pretrain_pairs"):
        raise CirbenchError(
            f"--set {sets[0]}: pretraining on {dataset} generates its own pictures and reads no knobs. Leave --set out."
        )
    if module.SPEC.needs_root:
        if root is None:
            raise CirbenchError(
                f"--dataset {dataset} needs --root, the folder that holds it. "
                f"`cirbench data check {dataset} --root FOLDER` lists what is missing."
            )
        if not root.is_dir():
            raise CirbenchError(f"--root {root} is not a folder. Give the folder that holds {dataset}.")
    return module, knobs


def _pairs(
    module: ModuleType, knobs: Settings, dataset: str, root: Path | None, side: int, pictures: int, seed: int,
    quiet: bool,
) -> tuple[Pairs, Pairs | None]:
    """(training pairs, held-out pairs or None): newly generated ones where the dataset can make them."""
    from tqdm import tqdm

    if hasattr(module, "pretrain_pairs"):
        from cirbench.models.pretrain import Pairs

        with tqdm(total=pictures, desc="painting", disable=quiet, leave=False) as bar:
            pictures_of, captions = module.pretrain_pairs(pictures, seed, side, "train", bar.update)
        held_pictures, held_captions = module.pretrain_pairs(HELD_OUT, seed, side, "select")
        return Pairs(pictures_of, captions, dataset), Pairs(held_pictures, held_captions, dataset)
    from cirbench.data.loading import load
    from cirbench.models.pretrain import pairs_of

    return pairs_of(load(module, knobs, root), side, quiet), None


def _run(
    train: str, dataset: str, root: Path | None, sets: Sequence[str], out: Path, side: int | None, pictures: int,
    threads: int | None, batch_size: int, seed: int, quiet: bool, **options: Any,
) -> None:
    """Shared by both commands: prepare pictures, train, print one summary line."""
    module, knobs = _find(dataset, root, sets)
    side = side or (64 if module.SPEC.needs_root else 48)
    import torch

    from cirbench.cli._shared import is_quiet
    from cirbench.models import pretrain as training

    if threads is not None:
        torch.set_num_threads(threads)
    no_bar = is_quiet(quiet)
    pairs, held_out = _pairs(module, knobs, dataset, root, side, pictures, seed, no_bar)
    outcome: Outcome = getattr(training, train)(
        pairs, out, side=side, seed=seed, batch=batch_size, held_out=held_out, quiet=no_bar, **options
    )
    if not quiet:
        recall = ", ".join(f"{k} {v:.1f}" for k, v in outcome.recall.items()) or "not measured"
        click.echo(
            f"{out}: {outcome.parameters / 1e6:.2f} million parameters, {len(outcome.losses)} steps, "
            f"{outcome.seconds:.0f} s, loss {outcome.losses[-1]:.2f}; text to image among {outcome.gallery}: {recall}"
        )


@pretrain.command()
@_options
@click.option("--size", type=click.Choice(["small", "medium"]), default="small", show_default=True)
def clip(size: str, **options: Any) -> None:
    """Train a small CLIP; use it with --backbone DIR.

    \b
    cirbench pretrain clip --dataset fashion200k --root DATA --out my-clip --epochs 20 --flip
    """
    _run("pretrain_clip", size=size, **options)


@pretrain.command()
@_options
def cnn(**options: Any) -> None:
    """Train the trunk of the small CNN against a text tower; no attribute label is used.

    \b
    cirbench pretrain cnn --dataset scenes --out my-cnn --steps 400
    """
    _run("pretrain_cnn", **options)
