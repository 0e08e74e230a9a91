"""The index of a folder of photographs: one embedding a picture, kept up to date, grown by appending.

`embeddings.f32` holds rows of D float32; `files.jsonl` says of which file each row is, the latest line of a path
winning. Rows are written before the line that names them, so that an interruption at any place loses at most one batch.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import torch
from torch import Tensor
from tqdm import tqdm

from cirbench.data.cache import alone, cache_dir
from cirbench.data.photos import open_photo, photos_below
from cirbench.files import is_full, no_room, write_json
from cirbench.runs.approximate import kept_note
from cirbench.seeds import digest
from cirbench.types import CirbenchError

__all__ = ["PhotoIndex", "Update"]

#: B pictures -> (B, D).
Encode = Callable[[Sequence[PIL.Image.Image]], Tensor]
#: Pictures encoded, and written, at once.
BATCH = 128
FORMAT = 1


@dataclass(frozen=True)
class Update:
    """What an update did: pictures encoded, taken over, gone, and those that cannot be read (path -> why)."""

    encoded: int
    kept: int
    gone: int
    unreadable: dict[str, str]


class PhotoIndex:
    """The index of one folder under one trained method.

    Args:
        photos: the folder.
        key: of the method's weights and code: other weights have another index.
        where: folder of the index; None for one in cirbench's cache.

    Raises:
        CirbenchError: `where` holds the index of another folder or method.
    """

    def __init__(self, photos: Path, key: str, where: Path | None = None) -> None:
        self.photos = photos.resolve()
        self.head = {"format": FORMAT, "photos": str(self.photos), "key": key}
        self.folder = where or cache_dir() / "indexes" / digest([str(self.photos), key])[:32]
        self.head_path, self.table, self.lines = (
            self.folder / name for name in ("head.json", "embeddings.f32", "files.jsonl")
        )
        if self.head_path.is_file():
            found = kept_note(self.head_path)
            if {k: found.get(k) for k in self.head} != self.head:
                raise CirbenchError(
                    f"{self.folder} holds the index of another folder or of another method's weights. Name another "
                    "place with --index-dir, or delete it."
                )
        elif self.folder.is_dir() and any(self.folder.iterdir()):
            raise CirbenchError(f"{self.folder} is not empty and holds no index. Name another place with --index-dir.")

    def _read(self) -> tuple[dict[str, dict[str, Any]], int, int]:
        """Path -> its latest line, the number of whole rows, and D (0 for an empty index)."""
        if not self.lines.is_file():
            return {}, 0, 0
        latest: dict[str, dict[str, Any]] = {}
        dim = 0
        for line in self.lines.read_text(encoding="utf-8").splitlines():
            try:
                entry = json.loads(line)
                path, dim = str(entry["path"]), int(entry.get("dim", dim))
            except (ValueError, TypeError, KeyError):
                continue  # a line that an interruption cut
            latest[path] = entry
        rows = self.table.stat().st_size // (4 * dim) if dim and self.table.is_file() else 0
        return {p: e for p, e in latest.items() if e.get("row", -1) < rows}, rows, dim

    def update(self, encode: Encode, quiet: bool = True) -> Update:
        """Encode new and changed pictures; forget those that are gone.

        Args:
            encode: of the method.
            quiet: no progress bar.

        Raises:
            CirbenchError: no such folder, no picture in it, a full disk.
        """
        names = photos_below(self.photos)
        self.folder.mkdir(parents=True, exist_ok=True)
        with alone(self.lines):
            if not self.head_path.is_file():
                write_json(self.head_path, self.head)
            known, rows, dim = self._read()
            stamps = {name: self._stamp(name) for name in names}
            wanted = [n for n in names if known.get(n, {}).get("stamp") != stamps[n]]
            gone = [n for n in known if n not in stamps and not known[n].get("gone")]
            unreadable = {n: e["why"] for n, e in known.items() if e.get("why") and n not in wanted and n in stamps}
            try:
                # What an interruption left half-written is overwritten, and half a line ended.
                torn = self.lines.is_file() and self.lines.read_bytes()[-1:] not in (b"", b"\n")
                with self.table.open("ab") as table, self.lines.open("a", encoding="utf-8") as lines:
                    table.truncate(rows * dim * 4)
                    lines.write("\n" if torn else "")
                    _write(lines, [{"path": n, "gone": True} for n in gone])
                    for start in tqdm(range(0, len(wanted), BATCH), desc="indexing", disable=quiet, leave=False):
                        part = wanted[start : start + BATCH]
                        made = self._encoded(part, encode, unreadable)
                        if made:
                            block = np.stack(list(made.values()))
                            if dim and block.shape[1] != dim:
                                raise CirbenchError(
                                    f"the method's embeddings have D = {block.shape[1]}, those of the index D = {dim}. "
                                    f"Delete {self.folder}."
                                )
                            dim = block.shape[1]
                            table.write(np.ascontiguousarray(block, dtype="<f4").tobytes())
                            table.flush()
                        where = {name: rows + n for n, name in enumerate(made)}
                        rows += len(made)
                        _write(lines, [
                            {"path": n, "stamp": stamps[n], "row": where.get(n, -1), "dim": dim}
                            | ({"why": unreadable[n]} if n in unreadable else {}) for n in part
                        ])
            except OSError as error:
                raise no_room(self.folder) if is_full(error) else error from None
            if rows > 2 * max(len(names), BATCH):
                self._compact()
        return Update(len(wanted), len(names) - len(wanted), len(gone), unreadable)

    def _stamp(self, name: str) -> list[int]:
        stat = (self.photos / name).stat()
        return [stat.st_size, stat.st_mtime_ns]

    def _encoded(self, names: Sequence[str], encode: Encode, unreadable: dict[str, str]) -> dict[str, np.ndarray]:
        images: dict[str, PIL.Image.Image] = {}
        for name in names:
            unreadable.pop(name, None)
            try:
                images[name] = open_photo(self.photos / name)
            except CirbenchError as error:
                unreadable[name] = str(error)
        if not images:
            return {}
        return dict(zip(images, encode(list(images.values())).float().cpu().numpy(), strict=True))

    def _compact(self) -> None:
        """Write the index anew without rows that no file has."""
        names, table = self.load()
        known, _, dim = self._read()
        entries = [known[n] | {"row": row, "dim": dim} for row, n in enumerate(names)]
        entries += [e for n, e in known.items() if e.get("row", -1) < 0 and not e.get("gone")]
        for path, data in ((self.table, table.numpy().tobytes()), (self.lines, "".join(map(_line, entries)).encode())):
            fresh = path.with_suffix(".new")
            fresh.write_bytes(data)
            # The lines are gone in between: an interruption here costs the index, never a wrong row.
            if path == self.table:
                self.lines.unlink()
            fresh.replace(path)

    def state(self) -> str:
        """Changes with the pictures that are indexed."""
        return digest([self.lines.read_text(encoding="utf-8")]) if self.lines.is_file() else ""

    def load(self) -> tuple[list[str], Tensor]:
        """Relative paths of the N pictures that can be read, in order, and their embeddings (N, D).

        Embeddings that lie in order stay on disk and are mapped.
        """
        known, rows, dim = self._read()
        names = sorted(n for n, e in known.items() if e.get("row", -1) >= 0)
        if not names:
            return [], torch.zeros((0, 1))
        table = np.memmap(self.table, "<f4", "r+", shape=(rows, dim))
        chosen = np.array([known[n]["row"] for n in names])
        whole = len(chosen) == rows and bool((chosen == np.arange(rows)).all())
        return names, torch.from_numpy(table if whole else table[chosen])


def _line(entry: dict[str, Any]) -> str:
    return json.dumps(entry, ensure_ascii=True, separators=(",", ":")) + "\n"


def _write(lines: Any, entries: Sequence[dict[str, Any]]) -> None:
    lines.write("".join(map(_line, entries)))
    lines.flush()
