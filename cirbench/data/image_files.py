"""Pictures in a folder: found by templates, decoded by one function, and what is wrong with a file told by its name."""

from __future__ import annotations

import contextlib
import hashlib
import os
import threading
import unicodedata
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from cirbench.data.file_hashes import file_sha256s
from cirbench.types import CirbenchError

if TYPE_CHECKING:
    import PIL.Image

#: What is decoded, whatever a file is called. Pillow knows more formats; of those, EPS starts Ghostscript, an
#: interpreter of programs, and the others hold no photographs. TGA is last: it has no signature.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "JPEG2000", "PPM", "TGA")
#: Tried in this order where a template leaves the extension out; upper or lower case.
EXTENSIONS = (
    ".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif", ".jfif", ".jpe", ".jp2", ".ppm", ".pgm",
    ".tga",
)
#: Pixels a picture may have. Decoding takes at least 4 bytes a pixel and thread, and 0.5 MB of PNG can hold 10^8.
MAX_PIXELS = 64_000_000
#: What can be wrong with the file of a picture, in words.
DESCRIBED = {
    "zero-byte": "the file is empty (0 bytes)",
    "html": "a web page saved under a picture's name",
    "truncated": "the picture is truncated",
    "unreadable": f"not a picture that can be decoded ({', '.join(FORMATS)})",
    "too-large": f"more than {MAX_PIXELS:,} pixels",
    "unsupported": "pixel values whose range is not known",
}
_RANKS = {extension: rank for rank, extension in enumerate(EXTENSIONS)}
#: EXIF orientation -> the `PIL.Image.Transpose` that turns the picture upright.
_TURNS = {
    2: "FLIP_LEFT_RIGHT", 3: "ROTATE_180", 4: "FLIP_TOP_BOTTOM", 5: "TRANSPOSE", 6: "ROTATE_270", 7: "TRANSVERSE",
    8: "ROTATE_90",
}
_ORIENTATION = 0x0112
#: Files looked at for a hint where a missing picture lies.
_SEARCHED = 300_000
_counting = threading.Lock()
_decoding = 0
_filters: warnings.catch_warnings[None] | None = None


def nfc(name: str) -> str:
    """A name with composed accents: macOS writes `e` and an accent where others write one letter."""
    return name if name.isascii() else unicodedata.normalize("NFC", name)


# ------------------------------------------------------------------------------------- decoding


@dataclass(frozen=True)
class Reading:
    """How stored pixels become an RGB picture. The defaults read as the authors' code of published sets does.

    Attributes:
        upright: turn a picture as its EXIF orientation says.
        background: colour under transparent parts, as Pillow names colours; "" takes the stored colour and drops the
            transparency.
    """

    upright: bool = False
    background: str = ""


AS_STORED = Reading()


@dataclass(frozen=True)
class Decoded:
    """What became of one file.

    Attributes:
        image: RGB, or None where there is a problem.
        problem: a key of `DESCRIBED`, or "".
        detail: the decoder's words.
        oriented: whether the file asks to be turned.
        transparent: whether it has an alpha channel or a transparent colour.
    """

    image: PIL.Image.Image | None = None
    problem: str = ""
    detail: str = ""
    oriented: bool = False
    transparent: bool = False


@lru_cache(maxsize=1)
def _formats() -> tuple[str, ...]:
    """Those of `FORMATS` that the installed Pillow has."""
    from PIL import Image

    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def decode(path: Path, reading: Reading = AS_STORED) -> Decoded:
    """The picture in a file; every picture file that cirbench looks into is opened here.

    The content counts, not the name of the file. 16 bits a channel are scaled to 8; floats are taken between 0 and 1.
    """
    from PIL import Image

    try:
        if path.stat().st_size == 0:
            return Decoded(problem="zero-byte")
        with _quiet(), Image.open(path, formats=_formats()) as picture:
            width, height = picture.size
            if width * height > MAX_PIXELS:
                return Decoded(problem="too-large", detail=f"{width} x {height}")
            picture.load()
            turn = _TURNS.get(_orientation(picture), "")
            transparent = picture.has_transparency_data
            image, why = _rgb(picture, reading.background if transparent else "")
        if image is None:
            return Decoded(problem="unsupported", detail=why)
        if turn and reading.upright:
            image = image.transpose(Image.Transpose[turn])
        return Decoded(image, oriented=bool(turn), transparent=transparent)
    except Image.DecompressionBombError as error:
        return Decoded(problem="too-large", detail=str(error))
    except Image.UnidentifiedImageError:
        return Decoded(problem=_damage(path))
    except Exception as error:
        # A damaged file may raise nearly anything.
        word = _damage(path)
        return Decoded(problem="truncated" if "truncated" in str(error) and word != "html" else word, detail=str(error))


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Palette pictures with transparency and odd EXIF blocks warn; the pixels are right.

    Filters belong to the process: threads that decode at once share one change, or they would undo each other's.
    """
    global _decoding, _filters
    with _counting:
        _decoding += 1
        if _decoding == 1:
            _filters = warnings.catch_warnings()
            _filters.__enter__()
            warnings.simplefilter("ignore")
    try:
        yield
    finally:
        with _counting:
            _decoding -= 1
            if _decoding == 0 and _filters is not None:
                _filters.__exit__(None, None, None)


def _orientation(picture: PIL.Image.Image) -> int:
    try:
        return int(picture.getexif().get(_ORIENTATION, 1))
    except Exception:
        # An EXIF block that cannot be read says nothing; the picture can be read all the same.
        return 1


def _rgb(picture: PIL.Image.Image, background: str) -> tuple[PIL.Image.Image | None, str]:
    """The picture in 8 bits a channel, or why that cannot be done."""
    from PIL import Image

    if picture.mode == "F" or picture.mode.startswith("I"):
        import numpy as np

        values = np.asarray(picture)
        top = 1 if picture.mode == "F" else 65535
        low, high = (float(v) for v in (values.min(), values.max()))
        if not (low >= 0 and high <= top):  # NaN too
            return None, f"mode {picture.mode} with values from {low:g} to {high:g}; 0 to {top} are read"
        return Image.fromarray((values * (255 / top) + 0.5).astype(np.uint8)).convert("RGB"), ""
    if background:
        under = Image.new("RGBA", picture.size, background)
        under.alpha_composite(picture.convert("RGBA"))
        return under.convert("RGB"), ""
    return picture.convert("RGB"), ""


def _damage(path: Path) -> str:
    """What is wrong with a file that cannot be decoded, from its first and last bytes."""
    try:
        with path.open("rb") as file:
            head = file.read(512)
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - 64))
            tail = file.read()
    except OSError:
        return "unreadable"
    if head.lstrip()[:1] == b"<" or b"<html" in head.lower():
        return "html"
    ends = ((b"\xff\xd8", b"\xff\xd9"), (b"\x89PNG\r\n\x1a\n", b"IEND"), (b"GIF8", b";"))
    if any(head.startswith(start) and end not in tail for start, end in ends):
        return "truncated"
    declared = int.from_bytes(head[4:8], "little") + 8 if head[:4] == b"RIFF" else \
        int.from_bytes(head[2:6], "little") if head[:2] == b"BM" else 0
    return "truncated" if declared > size else "unreadable"


# ------------------------------------------------------------------------------------- a folder


class FolderImages:
    """An `ImageSource` over a folder.

    Args:
        root: the data folder.
        templates: where a picture may lie under the root, e.g. `images/{id}`; `*` stands for any one folder. The
            extension is optional: those of `EXTENSIONS` are tried.
        paths: image id -> path under the root, for ids that are no file names; templates then hold `{path}`, or
            `{top}` and `{file}` for its first and its last part.
        dataset: for messages.
        reading: how stored pixels become RGB.
    """

    def __init__(
        self, root: Path, templates: Sequence[str], paths: Mapping[str, str] | None = None, dataset: str = "",
        reading: Reading = AS_STORED,
    ) -> None:
        self.root, self.templates, self.paths, self.dataset = root, tuple(templates), paths, dataset
        self.reading = reading
        self._folders: dict[Path, dict[str, Path]] = {}
        self._parents: dict[str, list[Path]] = {}

    def _listing(self, folder: Path) -> dict[str, Path]:
        """Name, and name without extension, -> file. One scan per folder: real sets are on slow disks."""
        if folder not in self._folders:
            stems: dict[str, tuple[int, str]] = {}
            names = _files(folder)
            for name in names:
                stem, extension = _parts(name)
                rank = _RANKS.get(extension)
                if rank is not None and rank < stems.get(stem, (len(EXTENSIONS), ""))[0]:
                    stems[stem] = rank, name
            found = {stem: folder / name for stem, (_, name) in stems.items()} | {name: folder / name for name in names}
            for name in [name for name in found if not name.isascii()]:
                found.setdefault(nfc(name), found[name])
            self._folders[folder] = found
        return self._folders[folder]

    def _relative(self, image_id: str) -> str:
        """The value of `{path}` in the templates."""
        return self.paths.get(image_id, image_id) if self.paths is not None else image_id

    def _candidates(self, image_id: str) -> list[tuple[str, str]]:
        relative, out = self._relative(image_id), []
        parts = {"{path}": relative, "{top}": relative.partition("/")[0], "{file}": relative.rpartition("/")[2]}
        for template in self.templates:
            filled = template.replace("{id}", image_id)
            for mark, part in parts.items():
                filled = filled.replace(mark, part)
            parent, _, name = filled.rpartition("/")
            out.append((parent, name))
        return out

    def _places(self, parent: str) -> list[Path]:
        """The folders that the part of a template before the name stands for."""
        if parent not in self._parents:
            if "*" in parent:
                found = sorted(p for p in self.root.glob(parent) if p.is_dir())
            elif parent.isascii() or (self.root / parent).is_dir():
                found = [self.root / parent]
            else:
                found = [self.root]
                for part in parent.split("/"):
                    found = [p for f in found if f.is_dir() for p in f.iterdir() if nfc(p.name) == nfc(part)]
            self._parents[parent] = found
        return self._parents[parent]

    def path(self, image_id: str) -> Path | None:
        """The file of a picture, or None where there is none."""
        for parent, name in self._candidates(image_id):
            stem = Path(name).stem if Path(name).suffix.lower() in EXTENSIONS else name
            for folder in self._places(parent):
                listing = self._listing(folder)
                for key in dict.fromkeys((name, nfc(name), stem, nfc(stem))):
                    if key in listing:
                        return listing[key]
        return None

    def missing(self, image_ids: Sequence[str]) -> list[str]:
        """Ids without a file, in order."""
        return [name for name in image_ids if self.path(name) is None]

    def elsewhere(self, image_id: str) -> str:
        """A sentence that names a file of the wanted name in another folder; "" where none is found."""
        name = nfc(self._candidates(image_id)[0][1])
        wanted, seen = {name, _parts(name)[0]}, 0
        for folder, _, files in os.walk(self.root):
            for file in files:
                stem, extension = _parts(nfc(file))
                if stem in wanted and extension in _RANKS and not file.startswith("._"):
                    return f" A file of that name is {Path(folder, file).relative_to(self.root).as_posix()}."
            seen += len(files)
            if seen > _SEARCHED:
                break
        return ""

    def open(self, image_id: str) -> PIL.Image.Image:
        """The decoded RGB picture.

        Raises:
            CirbenchError: no file, an empty one, a web page saved as a picture, a truncated or unreadable one, or one
                of more than `MAX_PIXELS`.
        """
        path = self.path(image_id)
        if path is None:
            parent, name = self._candidates(image_id)[0]
            raise CirbenchError(
                f"the picture {image_id!r} is missing: no {parent + '/' if parent else ''}{name} under {self.root}."
                f"{self.elsewhere(image_id)} `cirbench data check {self.dataset or 'NAME'} --root {self.root}` lists "
                "all that are."
            )
        found = decode(path, self.reading)
        if found.image is None:
            raise CirbenchError(f"{told(path, found)} {_remedy(found.problem)}")
        return found.image

    def fingerprint(self, image_ids: Sequence[str]) -> str:
        """Hash of ids and contents of files, in sorted order; an absent picture counts as absent."""
        names = sorted(set(image_ids))
        paths = [self.path(name) for name in names]
        try:
            contents = iter(file_sha256s([path for path in paths if path is not None]))
        except OSError as error:
            raise CirbenchError(f"a picture under {self.root} cannot be read: {error}.") from None
        hasher = hashlib.sha256()
        if self.reading != AS_STORED:
            hasher.update(f"{sorted(asdict(self.reading).items())}\n".encode())
        for name, path in zip(names, paths, strict=True):
            hasher.update(f"{name}\t{next(contents) if path is not None else 'absent'}\n".encode())
        return hasher.hexdigest()


def told(path: Path, found: Decoded) -> str:
    """The sentence about a file that cannot be decoded."""
    return f"{path}: {DESCRIBED[found.problem]}{f' ({found.detail})' if found.detail else ''}."


def _remedy(problem: str) -> str:
    if problem == "too-large":
        return "Scale it down: no model looks at more than about a thousand pixels a side."
    if problem == "unsupported":
        return "Convert it to 8 bits a channel."
    return "Fetch this picture again."


def _parts(name: str) -> tuple[str, str]:
    """A file's name without extension, and the extension in lower case with its dot; quicker than a `Path`."""
    stem, dot, extension = name.rpartition(".")
    return (stem, f".{extension.lower()}") if dot and stem else (name, "")


def _files(folder: Path) -> list[str]:
    """Sorted names of the files in a folder; no dangling links, no folders, no `._` companions of macOS."""
    try:
        with os.scandir(folder) as entries:
            return sorted(e.name for e in entries if not e.name.startswith("._") and _is_file(e))
    except (OSError, ValueError):  # absent, or a name that no folder can have
        return []


def _is_file(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_file()
    except OSError:  # a link to itself
        return False
