"""Turn the authors' DWC checkpoints into a folder that `cirbench eval` runs."""

from __future__ import annotations

import json
from pathlib import Path

import click


@click.command("convert-dwc")
@click.option("--clip", type=click.Path(path_type=Path), help="all_global_checkpoint.pth, the CLIP stream.")
@click.option("--cnn", type=click.Path(path_type=Path), help="all_local_checkpoint.pth, the CNN stream.")
@click.option("--texts", type=click.Path(path_type=Path), help="JSON list of the training texts, in order.")
@click.option("--backbone", default="", help="The CLIP that was used, if the width of its features is ambiguous.")
@click.option("--out", "-o", type=click.Path(path_type=Path, file_okay=False), required=True, help="Folder to create.")
@click.option("--json", "as_json", is_flag=True, help="Machine-readable.")
def command(
    clip: Path | None, cnn: Path | None, texts: Path | None, backbone: str, out: Path, as_json: bool
) -> None:
    """Map every tensor of the released files, list those known to be unused, refuse unknown ones.

    \b
    cirbench convert-dwc --clip all_global_checkpoint.pth --cnn all_local_checkpoint.pth --texts texts.json -o dwc-shoes
    cirbench eval dwc-shoes --dataset shoes --root DATA
    """
    from cirbench.models.convert_dwc import convert

    done = convert(clip, cnn, texts, out, backbone)
    if as_json:
        click.echo(json.dumps(
            {"folder": str(done.folder), "used": done.used, "unused": done.unused, "config": done.config}, indent=1
        ))
        return
    click.echo(f"{done.folder}: {done.used} tensors used; {len(done.unused)} of the release are not:")
    for name, why in done.unused.items():
        click.echo(f"  {name}  ({why})")
    click.echo(f"  next: cirbench eval {done.folder} --dataset D --root DIR")
