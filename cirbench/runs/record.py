"""Run folders: written once and atomically (files.py), read back lazily (docs/records.md has the format).

`record.json` is written last by whoever makes a run: a folder that has it is finished.

Only the standard library and numpy: listing a thousand runs must not cost an import of torch.
"""

from __future__ import annotations

import contextlib
import errno
import lzma
import struct
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from cirbench.data.arrays import head_of, read_member
from cirbench.files import EPOCH, dumps, replacing
from cirbench.runs.record_lines import check_training, is_evidence, parse_json
from cirbench.runs.record_types import RunData, read_run
from cirbench.types import CirbenchError, Protocol

__all__ = [
    "DAMAGE", "READABLE", "SCHEMA", "Pictures", "Rankings", "Record", "chosen_on_report", "is_finished", "not_a_run",
    "read_json", "write_pictures",
]

SCHEMA = 2
"""Version of the record format that this code writes."""

READABLE = (1, 2)
"""Versions it reads. Schema 2 added the definition of each protocol (docs/records.md)."""

#: What reading a damaged archive may raise: a flipped bit can make it look encrypted or use an unknown compression.
DAMAGE = (
    zipfile.BadZipFile, zlib.error, lzma.LZMAError, struct.error, OSError, ValueError, EOFError, KeyError, RuntimeError,
)

# ------------------------------------------------------------------------------------------ writing


def write_pictures(path: Path, pictures: Mapping[str, bytes]) -> None:
    """Write {image id: WebP bytes} as a stored zip with an `index.json`, atomically.

    Files are numbered, so that an image id may hold any character (slashes, `..`, emoji).
    """
    names = {image_id: f"{number:06d}.webp" for number, image_id in enumerate(pictures)}
    with replacing(path) as file, zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr(zipfile.ZipInfo("index.json", EPOCH), dumps(names).encode("utf-8", "surrogatepass"))
        for image_id, data in pictures.items():
            archive.writestr(zipfile.ZipInfo(names[image_id], EPOCH), data)


# ------------------------------------------------------------------------------------------ reading


def is_finished(folder: Path) -> bool:
    """Whether `folder` holds a finished run (it has a `record.json`, which is written last)."""
    return (Path(folder) / "record.json").is_file()


def chosen_on_report(data: Mapping[str, Any]) -> bool:
    """Whether the checkpoint of a `record.json` was chosen on the reported split itself (`test-oracle`)."""
    return (data.get("selection") or {}).get("rule") == "test-oracle"


@contextlib.contextmanager
def _archive(path: Path) -> Iterator[zipfile.ZipFile]:
    """A zip of a run folder; errors while reading it are reported as damage."""
    try:
        with zipfile.ZipFile(path) as archive:
            yield archive
    except FileNotFoundError:
        raise _missing(path) from None
    except DAMAGE as error:
        raise _broken(path, error) from None


class Rankings(Mapping[str, np.ndarray]):
    """The arrays of `rankings.npz` or `select.npz`, each read from disk on access and not kept."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Names of all arrays, in the order written."""
        with _archive(self.path) as archive:
            return tuple(name.removesuffix(".npy") for name in archive.namelist())

    def __getitem__(self, name: str) -> np.ndarray:
        if name not in self.names:
            raise KeyError(name)
        with _archive(self.path) as archive:
            return read_member(archive, name)

    def heads(self) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
        """Shape and type of each array; none is read."""
        with _archive(self.path) as archive:
            return {name: head_of(archive, name) for name in self.names}

    def __contains__(self, name: object) -> bool:
        return name in self.names

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)

    def under(self, prefix: str) -> dict[str, str]:
        """What follows `prefix/` -> full array name, e.g. `under("weight")` -> {"clip": "weight/clip"}."""
        start = prefix + "/"
        return {name[len(start):]: name for name in self.names if name.startswith(start)}


class Pictures(Mapping[str, bytes]):
    """Image id -> WebP bytes of `pictures.zip`; empty where a run kept no pictures."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @cached_property
    def index(self) -> dict[str, str]:
        """Image id -> name of its file in the archive."""
        if not self.path.is_file():
            return {}
        with _archive(self.path) as archive:
            names = parse_json(archive.read("index.json").decode("utf-8", "surrogatepass"))
        if not isinstance(names, dict) or not all(isinstance(name, str) for name in names.values()):
            raise _broken(self.path, ValueError("index.json is not an object of file names"))
        return names

    def __getitem__(self, image_id: str) -> bytes:
        name = self.index[image_id]
        with _archive(self.path) as archive:
            return archive.read(name)

    def many(self, image_ids: Iterable[str]) -> dict[str, bytes]:
        """Those of `image_ids` that were kept, opening the archive once."""
        wanted = [image_id for image_id in dict.fromkeys(image_ids) if image_id in self.index]
        if not wanted:
            return {}
        with _archive(self.path) as archive:
            return {image_id: archive.read(self.index[image_id]) for image_id in wanted}

    def __contains__(self, image_id: object) -> bool:
        return image_id in self.index

    def __iter__(self) -> Iterator[str]:
        return iter(self.index)

    def __len__(self) -> int:
        return len(self.index)


class Record:
    """A finished run, read from its folder. `record.json` is read and checked at once, the rest when first used.

    Attributes:
        folder: of the run.
        run: what `record.json` holds, as typed values.
        data: the file's own JSON, including keys that this version does not know.

    Raises:
        CirbenchError: the folder is not a finished run, or one of its files is damaged.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)
        path = self.folder / "record.json"
        if not path.is_file():
            raise CirbenchError(not_a_run(self.folder))
        data = read_json(path)
        if not isinstance(data, dict):
            raise _broken(path, ValueError("it is not a JSON object"))
        if data.get("schema") not in READABLE or isinstance(data["schema"], bool):
            raise CirbenchError(
                f"{path}: schema {data.get('schema')!r}; this version of cirbench reads schemas "
                f"{', '.join(map(str, READABLE))}. Repeat the run, or use the version that wrote it."
            )
        try:
            self.run: RunData = read_run(data)
        except ValueError as error:
            raise _broken(path, error) from None
        self.data: dict[str, Any] = data

    def __repr__(self) -> str:
        return f"Record({str(self.folder)!r})"

    @property
    def id(self) -> str:
        """Hash of the inputs."""
        return self.run.id

    @property
    def name(self) -> str:
        """Name of the folder as the run gave it."""
        return self.run.name

    def definition(self, protocol: str) -> Protocol | None:
        """The definition of a protocol: as recorded, or, in schema 1, as the packaged dataset declares that name.

        None where neither has it.
        """
        recorded = self.run.protocols[protocol].definition
        if recorded is not None:
            return recorded
        from cirbench import plugins

        dataset = self.run.inputs.dataset
        if dataset not in plugins.dataset_names():
            return None
        return next((p for p in plugins.find_dataset(dataset).SPEC.protocols if p.name == protocol), None)

    @cached_property
    def queries(self) -> list[dict[str, Any]]:
        """The queries of the reported split, in order."""
        return _read_jsonl(self.folder / "queries.jsonl")

    @cached_property
    def gallery(self) -> list[str]:
        """Image ids; positions in it are what the arrays hold."""
        ids = read_json(self.folder / "gallery.json")
        if not isinstance(ids, list):
            raise _broken(self.folder / "gallery.json", ValueError("it is not a list"))
        return ids

    @cached_property
    def rankings(self) -> Rankings:
        """The arrays, by name."""
        return Rankings(self.folder / "rankings.npz")

    @cached_property
    def training(self) -> list[dict[str, Any]]:
        """One entry per step and per evaluation; empty for methods that are not trained."""
        path = self.folder / "training.jsonl"
        entries = _read_jsonl(path) if path.is_file() else []
        for number, entry in enumerate(entries, 1):
            try:
                check_training(entry)
            except ValueError as error:
                raise _broken(path, ValueError(f"line {number}: {error}")) from None
        return entries

    @cached_property
    def pictures(self) -> Pictures:
        """Image id -> WebP bytes of the sample kept."""
        return Pictures(self.folder / "pictures.zip")

    @cached_property
    def explain(self) -> dict[str, Any]:
        """Query id -> words and regions (`cirbench explain`); empty where that was not run."""
        path = self.folder / "explain.json"
        if not path.is_file():
            return {}
        data = read_json(path)
        if not isinstance(data, dict) or not isinstance(data.get("queries"), dict):
            raise _broken(path, ValueError("it has no object `queries`"))
        queries: dict[str, Any] = data["queries"]
        for name, query in queries.items():
            if not is_evidence(query):
                raise _broken(path, ValueError(f"query {name!r} has no words and regions"))
        return queries


def not_a_run(folder: Path) -> str:
    """The message for a folder that holds no finished run."""
    if (folder / "queries.jsonl").is_file() or (folder / "training.jsonl").is_file():
        return (
            f"{folder} is an interrupted run: it has no record.json. Repeat the command that made it; it resumes."
        )
    return f"no finished run in {folder} (no record.json there or below). Make one with `cirbench run`."


def _missing(path: Path) -> CirbenchError:
    return CirbenchError(
        f"{path} is missing, so this run is incomplete. If {path.parent} is a copy, copy it once more; if not, delete "
        "it and repeat the run."
    )


def _broken(path: Path, error: Exception) -> CirbenchError:
    if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):  # a damaged archive asks for odd places
        return CirbenchError(
            f"{path} cannot be read: {error.strerror}. The run may be whole: leave it, and look at permissions, the "
            "disk or the network."
        )
    return CirbenchError(f"{path} is damaged: {error}. Delete {path.parent} and repeat the run.")


def read_json(path: Path) -> Any:
    """A JSON file of a run folder; CirbenchError where it is missing or damaged."""
    try:
        return parse_json(path.read_bytes().decode("utf-8", "surrogatepass"))
    except FileNotFoundError:
        raise _missing(path) from None
    except (OSError, ValueError) as error:
        raise _broken(path, error) from None


def _read_jsonl(path: Path) -> list[dict[str, Any]]:
    try:
        text = path.read_bytes().decode("utf-8", "surrogatepass")
    except FileNotFoundError:
        raise _missing(path) from None
    except (OSError, ValueError) as error:
        raise _broken(path, error) from None
    rows = []
    # Not splitlines(): it also splits at U+2028 and the like, which captions may hold.
    for number, line in enumerate(text.split("\n"), 1):
        if not line:
            continue
        try:
            row = parse_json(line)
        except ValueError as error:
            raise _broken(path, ValueError(f"line {number}: {error}")) from None
        if not isinstance(row, dict):
            raise _broken(path, ValueError(f"line {number} is not a JSON object"))
        rows.append(row)
    return rows
