"""The pages of `cirbench search`: one file with thumbnails, or a small server for browsing on this machine."""

from __future__ import annotations

import base64
import http.server
import threading
import urllib.parse
from collections.abc import Sequence
from functools import lru_cache
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Any

import PIL.Image

from cirbench.types import CirbenchError

if TYPE_CHECKING:
    from torch import Tensor

    from cirbench.runs.approximate import Approximate
    from cirbench.runs.search import Hit, Searcher

__all__ = ["Album", "page", "server"]

#: Side of a thumbnail, and how many pictures are shown before a search.
SIDE, SHOWN = 240, 60
#: What a page may load: nothing from elsewhere.
POLICY = "default-src 'self'; style-src 'unsafe-inline'; img-src 'self' data:"


class Album:
    """A folder of photographs and its embeddings under one method.

    Args:
        searcher: of the run.
        folder: of the photographs.
        names: paths below it, of the N pictures.
        gallery: (N, D).
        approximate: an index, or None for exact search.
    """

    def __init__(
        self, searcher: Searcher, folder: Path, names: Sequence[str], gallery: Tensor,
        approximate: Approximate | None = None,
    ) -> None:
        self.searcher, self.folder, self.names = searcher, folder, list(names)
        self.gallery, self.approximate = gallery, approximate

    def search(self, image: PIL.Image.Image, text: str, k: int, without: str = "") -> list[Hit]:
        """The first k pictures for a picture and a change."""
        query = self.searcher.encode_query(image, text)
        return self.searcher.search(query, self.names, self.gallery, k, without, self.approximate)


def _inline(image: PIL.Image.Image) -> str:
    from cirbench.data.images import webp

    return "data:image/webp;base64," + base64.b64encode(webp(image, SIDE)).decode()


def page(album: Album, image: PIL.Image.Image, text: str, hits: Sequence[Hit]) -> str:
    """One self-contained page of a search."""
    from cirbench.data.photos import open_photo

    return _render(album, text=text, reference=_inline(image), hits=[
        {"place": h.place, "score": h.score, "path": h.path, "picture": _inline(open_photo(album.folder / h.path))}
        for h in hits
    ])


def _render(album: Album, **more: Any) -> str:
    from cirbench.reports.filters import environment

    context: dict[str, Any] = {
        "text": "", "reference": "", "photo": "", "serving": False, "error": "", "hits": [],
        "count": f"{len(album.names):,}", "folder": str(album.folder), "run": album.searcher.name,
    }
    return environment().get_template("search.html.j2").render(context | more)


class _Handler(http.server.BaseHTTPRequestHandler):
    """Pages and thumbnails; pictures are named by their number, so that no path of a request is opened."""

    album: Album
    k: int
    lock: threading.Lock
    thumbnail: Any

    def do_GET(self) -> None:
        """Answer one request."""
        # Another site's page may not ask through a name of its own that leads here.
        if (self.headers.get("Host") or "").rsplit(":", 1)[0] not in ("127.0.0.1", "localhost"):
            self.send_error(HTTPStatus.FORBIDDEN)
            return
        where = urllib.parse.urlsplit(self.path)
        asked = dict(urllib.parse.parse_qsl(where.query))
        try:
            if where.path == "/picture":
                self._answer(self.thumbnail(self._number(asked)), "image/webp")
            elif where.path == "/":
                self._answer(self._page(asked).encode(), "text/html; charset=utf-8")
            else:
                self.send_error(HTTPStatus.NOT_FOUND)
        except (CirbenchError, OSError, ValueError) as error:
            self._answer(_render(self.album, serving=True, error=str(error)).encode(), "text/html; charset=utf-8")

    def _number(self, asked: dict[str, str]) -> int:
        number = asked.get("photo", "")
        if not number.isdecimal() or int(number) >= len(self.album.names):
            raise CirbenchError(f"there is no picture {number!r}; they are numbered 0 to {len(self.album.names) - 1}.")
        return int(number)

    def _page(self, asked: dict[str, str]) -> str:
        album, text = self.album, asked.get("text", "").strip()[:1000]
        if "photo" not in asked:
            step = max(1, len(album.names) // SHOWN)
            return _render(album, serving=True, hits=[self._shown(n, place=i) for i, n in enumerate(
                range(0, len(album.names), step)[:SHOWN], 1)])
        number = self._number(asked)
        hits: list[dict[str, Any]] = []
        if text:
            from cirbench.data.photos import open_photo

            with self.lock:  # one query at a time: a method need not be safe for threads
                image = open_photo(album.folder / album.names[number])
                found = album.search(image, text, self.k, album.names[number])
            places = {name: n for n, name in enumerate(album.names)} if len(found) else {}
            hits = [self._shown(places[h.path], place=h.place, score=h.score) for h in found]
        return _render(
            album, serving=True, text=text, photo=number, reference=f"/picture?photo={number}", hits=hits,
        )

    def _shown(self, number: int, place: int, score: float | None = None) -> dict[str, Any]:
        return {
            "number": number, "place": place, "score": score, "path": self.album.names[number],
            "picture": f"/picture?photo={number}",
        }

    def _answer(self, body: bytes, kind: str) -> None:
        self.send_response(HTTPStatus.OK)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Content-Security-Policy", POLICY)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # the terminal stays the user's
        """Nothing."""


def server(album: Album, k: int, port: int = 0) -> http.server.ThreadingHTTPServer:
    """A server on this machine's loopback address alone; `serve_forever` runs it.

    Args:
        album: what is searched.
        k: pictures shown.
        port: 0 for any that is free.

    Raises:
        CirbenchError: the port is taken.
    """
    from cirbench.data.images import webp
    from cirbench.data.photos import open_photo

    @lru_cache(maxsize=4096)
    def thumbnail(number: int) -> bytes:
        return webp(open_photo(album.folder / album.names[number]), SIDE)

    handler = type("Handler", (_Handler,), {
        "album": album, "k": k, "lock": threading.Lock(), "thumbnail": staticmethod(thumbnail),
    })
    try:
        return http.server.ThreadingHTTPServer(("127.0.0.1", port), handler)
    except OSError as error:
        why = error.strerror or error
        raise CirbenchError(f"--port {port}: {why}. Choose another, or 0 for any that is free.") from None
