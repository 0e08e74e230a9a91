"""What `index` and `search` share: a folder's index under a run, brought up to date."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from cirbench.runs.photo_index import PhotoIndex
    from cirbench.runs.search import Searcher


def up_to_date(searcher: Searcher, photos: Path, where: Path | None, quiet: bool, silent: bool) -> PhotoIndex:
    """The index of a folder, new and changed pictures encoded; says what it did, unless `silent`."""
    from cirbench.runs.photo_index import PhotoIndex

    index = PhotoIndex(photos, searcher.key, where)
    done = index.update(searcher.encode_images, quiet)
    if not silent and (done.encoded or done.gone or done.unreadable):
        click.echo(f"{photos}: {done.encoded} pictures encoded, {done.kept} as before, {done.gone} gone", err=True)
        for name, why in list(done.unreadable.items())[:5]:
            click.echo(f"  left out: {name}: {why}", err=True)
        if len(done.unreadable) > 5:
            click.echo(f"  and {len(done.unreadable) - 5} more that cannot be read", err=True)
    return index
