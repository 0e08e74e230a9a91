"""Ask a trained method about one's own photographs."""

from __future__ import annotations

import json
from pathlib import Path

import click

from cirbench.cli._shared import is_quiet
from cirbench.types import CirbenchError


@click.command(epilog="""\b
Examples:
  cirbench search --run runs/... --image shoe.jpg --text "in red, higher heel" --gallery photos
  cirbench search --run runs/... --image shoe.jpg --text "in red" --gallery photos --html found.html
  cirbench search --run runs/... --gallery photos --serve
""")
@click.option("--run", required=True, type=click.Path(path_type=Path), help="Folder of a finished run.")
@click.option("--image", type=click.Path(path_type=Path), help="The reference picture.")
@click.option("--text", help="What should be different.")
@click.option("--gallery", type=click.Path(path_type=Path), help="Folder to search. [the folder of the picture]")
@click.option("-k", "k", type=click.IntRange(1, 1000), default=20, show_default=True, help="Pictures to show.")
@click.option("--html", type=click.Path(path_type=Path), help="Write a page with thumbnails.")
@click.option("--serve", is_flag=True, help="Open a page on this machine: type a change, click the next reference.")
@click.option("--port", type=click.IntRange(0, 65535), default=0, help="Of --serve. [any that is free]")
@click.option("--index", "kind", type=click.Choice(["flat", "ivf", "hnsw"]), default="flat", show_default=True,
              help="Exact, or approximate with faiss.")
@click.option("--index-dir", type=click.Path(path_type=Path), help="Folder of the index. [one in cirbench's cache]")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:1, mps.")
@click.option("--quiet", "-q", is_flag=True, help="No progress; the result alone.")
@click.option("--json", "as_json", is_flag=True, help="Machine-readable.")
def search(
    run: Path, image: Path | None, text: str | None, gallery: Path | None, k: int, html: Path | None, serve: bool,
    port: int, kind: str, index_dir: Path | None, device: str, quiet: bool, as_json: bool,
) -> None:
    """Search a folder of photographs with the method of RUN: a picture, and what should be different.

    The folder's index is built at the first search and brought up to date at every later one.
    """
    if serve and (image or text or html or as_json):
        raise CirbenchError("--serve takes picture and text from its page. Leave --image, --text, --html, --json.")
    if not serve and (image is None or not (text or "").strip()):
        raise CirbenchError("a search needs --image PICTURE and --text CHANGE (or --serve, to browse).")
    if gallery is None and image is None:
        raise CirbenchError("--serve needs --gallery DIR, the folder to browse.")
    from cirbench.cli._photos import up_to_date
    from cirbench.cli._search_page import Album, page, server
    from cirbench.data.photos import open_photo
    from cirbench.runs.approximate import Approximate
    from cirbench.runs.search import Searcher

    photo = open_photo(image) if image else None  # a wrong path is told before a folder is indexed
    folder = gallery or (image or Path()).parent
    searcher = Searcher(run, device)
    index = up_to_date(searcher, folder, index_dir, is_quiet(quiet) or as_json, quiet or as_json)
    names, table = index.load()
    if not names:
        raise CirbenchError(f"none of the pictures of {folder} can be read.")
    asked = None
    if kind != "flat":
        asked = Approximate(kind, table, index.folder / f"{kind}.faiss", index.state())
        if not quiet and not as_json:
            told = f"{kind}: finds {asked.recall:.1%} of the exact first ten (pictures of the folder as queries)"
            click.echo(told, err=True)
    album = Album(searcher, folder, names, table, asked)
    if serve:
        running = server(album, k, port)
        click.echo(f"http://127.0.0.1:{running.server_address[1]}/  (Ctrl-C ends it)")
        try:
            running.serve_forever()
        except KeyboardInterrupt:
            running.server_close()
        return
    assert photo is not None and image is not None and text is not None
    own = image.resolve()
    without = own.relative_to(index.photos).as_posix() if own.is_relative_to(index.photos) else ""
    hits = album.search(photo, text, k, without)
    if html is not None:
        html.parent.mkdir(parents=True, exist_ok=True)
        html.write_text(page(album, photo, text, hits), encoding="utf-8")
    if as_json:
        result = {
            "run": searcher.name, "gallery": str(folder), "pictures": len(names), "image": str(image), "text": text,
            "index": kind, "recall": asked.recall if asked else 1.0, "hits": [vars(hit) for hit in hits],
        }
        click.echo(json.dumps(result, indent=1, ensure_ascii=False))
        return
    for hit in hits:
        click.echo(f"{hit.place:>4}  {hit.score:8.4f}  {folder / hit.path}")
    if html is not None and not quiet:
        click.echo(f"page: {html}")
