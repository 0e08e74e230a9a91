"""List datasets, fetch what is public, check what is on disk."""

from __future__ import annotations

import json
import sys
from collections.abc import Collection
from pathlib import Path
from typing import Any

import click

from cirbench.cli._shared import is_quiet
from cirbench.types import Dataset


@click.group()
def data() -> None:
    """Datasets on disk."""


@data.command("list")
@click.option("--json", "as_json", is_flag=True, help="Machine-readable.")
def list_(as_json: bool) -> None:
    """List every dataset with its files, licence and citation."""
    from cirbench.plugins import dataset_names, find_dataset

    specs = [find_dataset(name).SPEC for name in dataset_names()]
    if as_json:
        keys = ("name", "title", "citation", "licence", "layout", "manual")
        rows = [{**{k: getattr(s, k) for k in keys}, "files": list(s.files), "counts": dict(s.counts)} for s in specs]
        click.echo(json.dumps(rows, indent=1))
        return
    for spec in specs:
        click.echo(f"{spec.name}: {spec.title}")
        for label, text in (
            ("layout", spec.layout), ("licence", spec.licence), ("cite", spec.citation), ("by hand", spec.manual)
        ):
            if text:
                click.echo(f"  {label}: {text}")


@data.command("get", epilog="\b\nExample:\n  cirbench data get cirr --root data/cirr")
@click.argument("name")
@click.option("--root", required=True, type=click.Path(path_type=Path), help="Folder the data goes to.")
@click.option("--mirror", multiple=True, metavar="URL", help="Try URL/<path> first; repeatable.")
@click.option("--annotations-only", is_flag=True, help="Skip archives that hold only pictures.")
def get(name: str, root: Path, mirror: tuple[str, ...], annotations_only: bool) -> None:
    """Fetch the public files of NAME, and print how to get the rest by hand.

    After an interruption the same command resumes.
    """
    from dataclasses import replace

    from cirbench.data.download import FetchError, fetch
    from cirbench.data.hosts import Hosts
    from cirbench.plugins import find_dataset
    from cirbench.types import CirbenchError

    spec = find_dataset(name).SPEC
    if not spec.needs_root:
        click.echo(f"{name} is generated; there is nothing to fetch.")
        return
    if root.exists() and not root.is_dir():
        raise CirbenchError(f"--root {root} is a file; it must be the folder the data goes to.")
    failures, offline, hosts = list[str](), list[str](), Hosts()
    for item in spec.downloads:
        if annotations_only and item.pictures:
            continue
        urls = (*(f"{m.rstrip('/')}/{item.path}" for m in mirror), *item.urls)
        try:
            state = fetch(replace(item, urls=urls), root, _progress(item.path), hosts)
        except FetchError as error:
            offline.append(item.path) if error.offline else failures.append(str(error))
            continue
        except CirbenchError as error:
            failures.append(str(error))
            continue
        click.echo(f"{item.path}: {state}")
    if spec.manual:
        click.echo(f"by hand: {spec.manual}\nlayout under {root}: {spec.layout}\nlicence: {spec.licence}")
    lacking = len(failures) + len(offline)
    if offline:
        # The cause first, and once: a terminal shows no end of a list of addresses.
        why = "; ".join(f"{host} cannot be reached: {cause}" for host, cause in hosts.silent.items())
        failures.insert(0, (
            f"{why}, so {', '.join(offline[:3])}{f' and {len(offline) - 3} more' if offline[3:] else ''} could not be "
            f"fetched. Repeat the command with a connection, or put them under {root} by hand."
        ))
    if failures:
        raise CirbenchError(f"{lacking} of {len(spec.downloads)} files are missing: " + " | ".join(failures))


def _progress(name: str) -> Any:
    """A progress bar with the time left, on a terminal only; it appears with the first bytes."""
    if not sys.stderr.isatty():
        return lambda done, total: None
    from tqdm import tqdm

    bars: list[Any] = []

    def show(done: int, total: int) -> None:
        if not bars or bars[0].n > done:
            bars[:] = [tqdm(total=total or None, initial=0, desc=name, unit="B", unit_scale=True, leave=False)]
        bars[0].update(done - bars[0].n)
        if total and done >= total:
            bars[0].close()

    return show


@data.command("ids", epilog="\b\nExample:\n  cirbench data ids fashioniq --root data/fiq --split select > select.txt")
@click.argument("name")
@click.option("--root", type=click.Path(path_type=Path), default=None, help="Folder of the annotations.")
@click.option("--split", default="select", show_default=True, help="Role (train, select, report) or official name.")
@click.option("--set", "sets", multiple=True, metavar="data.FIELD=VALUE", help="Override a knob of the dataset.")
def ids(name: str, root: Path | None, split: str, sets: tuple[str, ...]) -> None:
    """Print the sorted query ids of a split of NAME, one per line, e.g. the queries that `select` took from train.

    docs/protocols.md has the sha256 of these lists.
    """
    from cirbench.data.splits import load_named

    # `train` is what remains; the official one is what `select` is carved out of.
    _, part = load_named(name, root, split, sets, whole=False)
    click.echo("\n".join(sorted(q.id for q in part.queries)))


@data.command("check", epilog="\b\nExample:\n  cirbench data check shoes --root data/shoes")
@click.argument("name")
@click.option("--root", type=click.Path(path_type=Path), default=None, help="Folder that holds the data.")
@click.option("--set", "sets", multiple=True, metavar="data.FIELD=VALUE", help="Override a knob of the dataset.")
@click.option("--json", "as_json", is_flag=True, help="Machine-readable.")
def check(name: str, root: Path | None, sets: tuple[str, ...], as_json: bool) -> None:
    """Compare NAME under --root with its published counts, and check every picture's file.

    Exit code 1 if something is wrong.
    """
    from cirbench.data.check import check as look

    def implied(dataset: Dataset, missing: Collection[str]) -> dict[str, Any]:
        from cirbench.scoring.missing_images import (
            beforehand_all,  # with torch, which a check of complete data does not need
        )

        return beforehand_all(dataset, missing)

    result = look(name, root, sets, is_quiet(as_json), implied)
    click.echo(json.dumps(result, indent=1) if as_json else _table(result))
    if not result["ok"]:
        sys.exit(1)


def _table(result: dict[str, Any]) -> str:
    known = any(entry["expected"] is not None for entry in result["counts"])
    good, bad = ("as published", "NOT as published") if known else ("complete", "NOT usable as it is")
    lines = [f"{result['dataset']}: {good if result['ok'] else bad}"]
    for entry in result["counts"]:
        if entry["found"] is None:
            lines.append(f"  WRONG  {entry['what']}: {entry['why']}")
        elif entry["expected"] is None:
            lines.append(f"  note   {entry['what']}: {entry['found']:,}")
        elif entry["ok"]:
            lines.append(f"  ok     {entry['what']}: {entry['found']:,}")
        else:
            lines.append(f"  WRONG  {entry['what']}: {entry['found']:,}, published {entry['expected']:,}")
    lines.append(f"  {result['images']:,} images named")
    for kind, found in result["problems"].items():
        if found["count"]:
            more = " ..." if found["count"] > len(found["ids"]) else ""
            lines.append(f"  {kind}: {found['count']:,}: {', '.join(found['ids'][:5])}{more}")
    for protocol, bound in result.get("bounds", {}).items():
        lines.append(
            f"  {protocol}: {bound['lost']} of {bound['queries']} queries lost, up to {bound['gone_from_gallery']} "
            f"images missing from a gallery; highest possible value {bound['highest']:.2f}"
        )
    lines += [f"  note: {note}" for note in result["notes"]]
    if result["fingerprint"]:
        lines.append(f"  images {result['image_fingerprint'][:16]}, annotations {result['fingerprint'][:16]}")
    return "\n".join(lines)
