"""Pictures in a folder, found by templates; errors name the file."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from cirbench.data.file_hashes import file_sha256s
from cirbench.types import CirbenchError

if TYPE_CHECKING:
    import PIL.Image

#: Tried in this order where a template leaves the extension out.
EXTENSIONS = (".jpg", ".jpeg", ".png")


class FolderImages:
    """An `ImageSource` over a folder.

    Args:
        root: the data folder.
        templates: where a picture may lie under the root, e.g. `images/{id}`; `*` stands for any one folder. The
            extension is optional: `.jpg`, `.jpeg` and `.png` are tried.
        paths: image id -> path under the root, for ids that are not file names; templates then hold `{path}`.
        dataset: for messages.
    """

    def __init__(
        self, root: Path, templates: Sequence[str], paths: Mapping[str, str] | None = None, dataset: str = ""
    ) -> None:
        self.root, self.templates, self.paths, self.dataset = root, tuple(templates), paths, dataset
        self._folders: dict[Path, dict[str, Path]] = {}
        self._parents: dict[str, list[Path]] = {}

    def _listing(self, folder: Path) -> dict[str, Path]:
        """Name, and name without extension, -> file. One scan per folder: real sets are on slow disks."""
        if folder not in self._folders:
            found: dict[str, Path] = {}
            if folder.is_dir():
                entries = sorted(entry.name for entry in folder.iterdir())
                for extension in EXTENSIONS:
                    for name in entries:
                        if name.lower().endswith(extension):
                            found.setdefault(name[: -len(extension)], folder / name)
                for name in entries:
                    found[name] = folder / name
            self._folders[folder] = found
        return self._folders[folder]

    def _relative(self, image_id: str) -> str:
        """The value of `{path}` in the templates."""
        return self.paths.get(image_id, image_id) if self.paths is not None else image_id

    def _candidates(self, image_id: str) -> list[tuple[str, str]]:
        relative, out = self._relative(image_id), []
        for template in self.templates:
            filled = template.replace("{id}", image_id).replace("{path}", relative)
            parent, _, name = filled.rpartition("/")
            out.append((parent, name))
        return out

    def path(self, image_id: str) -> Path | None:
        """The file of a picture, or None where there is none."""
        for parent, name in self._candidates(image_id):
            if "*" in parent:
                if parent not in self._parents:
                    self._parents[parent] = sorted(p for p in self.root.glob(parent) if p.is_dir())
                folders = self._parents[parent]
            else:
                folders = [self.root / parent]
            stem = Path(name).stem if Path(name).suffix.lower() in EXTENSIONS else name
            for folder in folders:
                listing = self._listing(folder)
                if name in listing or stem in listing:
                    return listing.get(name) or listing[stem]
        return None

    def missing(self, image_ids: Sequence[str]) -> list[str]:
        """Ids without a file, in order."""
        return [name for name in image_ids if self.path(name) is None]

    def open(self, image_id: str) -> PIL.Image.Image:
        """The decoded RGB picture.

        Raises:
            CirbenchError: no file, an empty one, a web page saved as a picture, a truncated or unreadable one.
        """
        from PIL import Image, UnidentifiedImageError

        path = self.path(image_id)
        if path is None:
            parent, name = self._candidates(image_id)[0]
            raise CirbenchError(
                f"the picture {image_id!r} is missing: no {parent + '/' if parent else ''}{name} under {self.root}. "
                f"`cirbench data check {self.dataset or 'NAME'} --root {self.root}` lists all missing ones."
            )
        problem = quick_problem(path)
        if problem in ("zero-byte", "html"):
            raise CirbenchError(f"{path}: {DESCRIBED[problem]}. Fetch this picture again.")
        try:
            with warnings.catch_warnings():
                # Palette pictures with transparency and odd EXIF blocks warn; the pixels are right.
                warnings.simplefilter("ignore")
                with Image.open(path) as picture:
                    return picture.convert("RGB")
        except UnidentifiedImageError:
            raise CirbenchError(f"{path}: {DESCRIBED['unreadable']}. Fetch this picture again.") from None
        except Image.DecompressionBombError as error:
            raise CirbenchError(f"{path}: {error}. Benchmark pictures are smaller. Fetch this picture again.") from None
        except (OSError, SyntaxError, ValueError) as error:
            word = "truncated" if "truncated" in str(error) or problem == "truncated" else "unreadable"
            raise CirbenchError(f"{path}: {DESCRIBED[word]} ({error}). Fetch this picture again.") from None

    def fingerprint(self, image_ids: Sequence[str]) -> str:
        """Hash of ids and contents of files, in sorted order; an absent picture counts as absent."""
        names = sorted(set(image_ids))
        paths = [self.path(name) for name in names]
        try:
            contents = iter(file_sha256s([path for path in paths if path is not None]))
        except OSError as error:
            raise CirbenchError(f"a picture under {self.root} cannot be read: {error}.") from None
        hasher = hashlib.sha256()
        for name, path in zip(names, paths, strict=True):
            hasher.update(f"{name}\t{next(contents) if path is not None else 'absent'}\n".encode())
        return hasher.hexdigest()


#: Problems of a picture's file, in words.
DESCRIBED = {
    "zero-byte": "the file is empty (0 bytes)",
    "html": "a web page saved under a picture's name",
    "truncated": "the picture is truncated",
    "unreadable": "not a picture that can be decoded",
}


def quick_problem(path: Path) -> str:
    """The problem of a file judged by its first and last bytes, without decoding; "" if none is seen."""
    size = path.stat().st_size
    if size == 0:
        return "zero-byte"
    with path.open("rb") as file:
        head = file.read(512)
        file.seek(max(0, size - 64))
        tail = file.read()
    if head.lstrip()[:1] == b"<" or b"<html" in head.lower():
        return "html"
    if head[:2] == b"\xff\xd8":
        # Some cameras append bytes after the end marker, so only a missing marker in the tail is suspicious.
        return "" if b"\xff\xd9" in tail else "truncated"
    if head[:8] == b"\x89PNG\r\n\x1a\n":
        return "" if b"IEND" in tail else "truncated"
    return "unreadable" if head[:4] not in (b"RIFF", b"GIF8") and head[:2] != b"BM" else ""
