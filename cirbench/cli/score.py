"""Score embeddings or ranked lists made elsewhere, under every protocol they allow."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click


@click.command(epilog="""\b
Examples:
  cirbench score --dataset shoes --root data/shoes --split eval --embeddings mine.npz
  cirbench score --dataset fashioniq --root data/fiq --split val --embeddings dress.npz shirt.npz toptee.npz
  cirbench score --dataset circo --root data/circo --split val --rankings submission_val.json --json
""")
@click.option("--dataset", "-d", required=True, help="Name (`cirbench list datasets`).")
@click.option("--root", type=click.Path(path_type=Path), default=None, help="Folder of the annotations.")
@click.option("--split", default="report", show_default=True, help="Official name (val, eval, test) or role (report).")
@click.option("--embeddings", multiple=True, type=click.Path(path_type=Path), help="An .npz; repeatable.")
@click.option("--rankings", multiple=True, type=click.Path(path_type=Path), help="A .json or .jsonl; repeatable.")
@click.option("--protocol", "protocols", multiple=True, help="Only this one; repeatable (`cirbench protocols`).")
@click.option("--set", "sets", multiple=True, metavar="data.FIELD=VALUE", help="Override a knob of the dataset.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, unrounded.")
@click.argument("more", metavar="[FILE]...", nargs=-1, type=click.Path(path_type=Path))
def score(
    dataset: str, root: Path | None, split: str, embeddings: tuple[Path, ...], rankings: tuple[Path, ...],
    protocols: tuple[str, ...], sets: tuple[str, ...], as_json: bool, more: tuple[Path, ...],
) -> None:
    """Score results produced elsewhere. No model is needed, and only annotations under --root.

    Several files (one model per category, CIRR's two server files) may follow --embeddings or --rankings.
    """
    from cirbench.types import CirbenchError

    if bool(embeddings) == bool(rankings):
        raise CirbenchError("give either --embeddings FILE.npz or --rankings FILE.json, not both.")
    files = (*embeddings, *rankings, *more)
    from cirbench.data.splits import load_named

    data, part = load_named(dataset, root, split, sets)
    from cirbench.scoring import result_files, score_results

    one = score_results.score_embeddings if embeddings else score_results.score_rankings
    result = one(data, part, files, protocols)
    click.echo(result_files.dumps(result) if as_json else table(result))


def table(result: dict[str, Any]) -> str:
    """The result as text: two decimals, without single groups."""
    lines = [f"{result['dataset']}/{result['split']}"]
    for name, entry in result["protocols"].items():
        gallery = "unknown" if entry["gallery"] is None else entry["gallery"]
        shown = {k: v for k, v in entry["metrics"].items() if "/" not in k} or entry["metrics"]
        lines.append(f"  {name}: {entry['queries']} queries, gallery {gallery}, {entry['ties']} ties")
        lines.append("    " + "  ".join(f"{k} {v:.2f}" for k, v in shown.items()))
    lines += [f"  omitted {name}: {why}" for name, why in result["omitted"].items()]
    return "\n".join(lines)
