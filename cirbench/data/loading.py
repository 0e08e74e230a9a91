"""Loading a dataset: the one place where what a dataset file of somebody else returns is checked."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import PIL.Image

from cirbench import process
from cirbench.data.image_files import FolderImages
from cirbench.settings import Settings
from cirbench.types import CirbenchError, Dataset, ImageSource, Protocol, Query, Split, shown

__all__ = ["load"]


def load(module: ModuleType, knobs: Settings, root: Path | None, split: str | None = None) -> Dataset:
    """`load` of a dataset file; `load_split` with a split.

    Args:
        module: of the dataset (`plugins.find_dataset`).
        knobs: its settings.
        root: folder of the data.
        split: official name of the one split to read, or None.

    Raises:
        CirbenchError: data that cannot be read; for a loose file also what it raises, and the first thing in what it
            returns that is not as types.py says.
    """
    def read() -> Any:
        found: Any = module.load(knobs, root) if split is None else module.load_split(knobs, root, split)
        return found

    if module.__name__.startswith("cirbench.datasets."):
        return read()
    file = Path(str(module.__file__))
    with _guarded(file, "load" if split is None else "load_split"):
        found = read()
    check = _Check(file.name)
    check.dataset(found)
    if not isinstance(found.images, FolderImages):
        found = replace(found, images=_Images(found.images, file))
    return found


def _guarded(file: Path, doing: str) -> AbstractContextManager[None]:
    """What a dataset file raises is one message, and the process is left as it was."""

    def failed(error: BaseException) -> str:
        place = process.place_in(error.__traceback__, {file.resolve()}) or f"{file.name}, in {doing}"
        return f"the dataset fails in {place}: {process.described(error)}."

    return process.guarded(
        failed, lambda what: f"{file.name}, in {doing}: it changed {what}, which the whole process shares."
    )


class _Images:
    """The pictures of a loose file; what it raises, or returns instead of a picture, names the picture."""

    def __init__(self, images: ImageSource, file: Path) -> None:
        self.images, self.file = images, file

    def open(self, image_id: str) -> PIL.Image.Image:
        """As in `ImageSource`."""
        with _guarded(self.file, f"images.open({image_id!r})"):
            found: object = self.images.open(image_id)
        if not isinstance(found, PIL.Image.Image) or found.mode != "RGB":
            received = f"a picture of mode {found.mode}" if isinstance(found, PIL.Image.Image) else type(found).__name__
            raise CirbenchError(
                f"{self.file.name}: images.open({image_id!r}) returned {received}; it must return an RGB picture."
            )
        return found

    def fingerprint(self, image_ids: Sequence[str]) -> str:
        """As in `ImageSource`."""
        with _guarded(self.file, "images.fingerprint"):
            found: object = self.images.fingerprint(image_ids)
        if not isinstance(found, str) or not found:
            raise CirbenchError(
                f"{self.file.name}: images.fingerprint returned {type(found).__name__}; it must return a text."
            )
        return found


class _Check:
    """What a loose dataset file returned, part by part; the first that is wrong is named."""

    def __init__(self, file: str) -> None:
        self.file = file

    def need(self, good: bool, where: str, received: object, wanted: str) -> None:
        """Refuse a part.

        Raises:
            CirbenchError: file, place, what was received and what is wanted.
        """
        if not good:
            text = " ".join(shown(received, 80).split())
            raise CirbenchError(f"{self.file}: {where} is {type(received).__name__} {text}; it must be {wanted}.")

    def texts(self, value: object, where: str) -> None:
        """A tuple of texts: a generator would be empty when it is read again."""
        self.need(isinstance(value, tuple | list), where, value, "a tuple of texts")
        assert isinstance(value, tuple | list)
        for one in value:
            self.need(isinstance(one, str), f"an entry of {where}", one, "a text")

    def mapping(self, value: object, where: str, of: str) -> Mapping[str, Any]:
        """A dict with texts as keys."""
        good = isinstance(value, Mapping) and all(isinstance(k, str) for k in value)
        self.need(good, where, value, f"a dict of {of}, with texts as keys")
        assert isinstance(value, Mapping)
        return value

    def dataset(self, found: object) -> None:
        """All of it."""
        self.need(isinstance(found, Dataset), "what `load` returned", found, "a Dataset (types.py)")
        assert isinstance(found, Dataset)
        for name in ("name", "fingerprint"):
            value = getattr(found, name)
            self.need(isinstance(value, str) and bool(value.strip()), f"Dataset.{name}", value, "a text")
        self.texts(found.notes, "Dataset.notes")
        self.need(isinstance(found.protocols, tuple | list) and bool(found.protocols), "Dataset.protocols",
                  found.protocols, "a tuple with at least one Protocol")
        for protocol in found.protocols:
            self.need(isinstance(protocol, Protocol), "an entry of Dataset.protocols", protocol, "a Protocol")
        for name in ("open", "fingerprint"):
            self.need(callable(getattr(found.images, name, None)), f"Dataset.images.{name}", found.images, "a function")
        for image_id, captions in self.mapping(found.captions, "Dataset.captions", "tuples of texts").items():
            self.texts(captions, f"Dataset.captions[{image_id!r}]")
        for name, form in self.mapping(found.forms, "Dataset.forms", "functions").items():
            self.need(callable(form), f"Dataset.forms[{name!r}]", form, "a function of a query")
        splits = self.mapping(found.splits, "Dataset.splits", "Split values")
        self.need(bool(splits), "Dataset.splits", splits, "a dict with at least one Split")
        for role, split in splits.items():
            self.split(split, f"the split {role!r}", found, ranked=role != "train")

    def split(self, split: object, where: str, found: Dataset, ranked: bool) -> None:
        """Queries, galleries, and that they fit each other."""
        self.need(isinstance(split, Split), where, split, "a Split")
        assert isinstance(split, Split)
        self.need(isinstance(split.queries, tuple | list), f"queries of {where}", split.queries, "a tuple of queries")
        seen: dict[str, int] = {}
        for n, query in enumerate(split.queries):
            self.query(query, f"query {n} of {where}")
            first = seen.setdefault(query.id, n)
            self.need(first == n, f"the id of query {n} of {where}", query.id, f"unique, but query {first} has it too")
        galleries = self.mapping(split.galleries, f"galleries of {where}", "galleries")
        for name, groups in galleries.items():
            for group, ids in self.mapping(groups, f"gallery {name!r} of {where}", "tuples of image ids").items():
                self.gallery(ids, f"gallery {name!r}, group {group!r} of {where}")
        for protocol in found.protocols:
            self.need(protocol.form in found.forms, f"the text form of the protocol {protocol.name}", protocol.form,
                      f"one of {', '.join(found.forms) or 'Dataset.forms, which is empty'}")
            if ranked and split.queries:
                self.ranked(protocol, split, where)
        self.forms(found, split, where)

    def query(self, query: object, where: str) -> None:
        """The fields of one query."""
        self.need(isinstance(query, Query), where, query, "a Query")
        assert isinstance(query, Query)
        for name in ("id", "reference"):
            value = getattr(query, name)
            self.need(isinstance(value, str) and bool(value), f"{name} of {where}", value, "a text that is not empty")
        place = f"{where} (id {query.id!r:.80})"
        self.texts(query.texts, f"texts of {place}")
        self.texts(query.targets, f"targets of {place}")
        if query.candidates is not None:
            self.gallery(query.candidates, f"candidates of {place}")
        self.need(isinstance(query.group, str), f"group of {place}", query.group, "a text")
        self.mapping(query.extra, f"extra of {place}", "JSON values")

    def gallery(self, ids: object, where: str) -> None:
        """Image ids, none twice."""
        self.texts(ids, where)
        assert isinstance(ids, tuple | list)
        self.need(bool(ids), where, ids, "at least one image id")
        if len(set(ids)) < len(ids):
            seen = set[str]()
            twice = next(i for i in ids if i in seen or seen.add(i))  # type: ignore[func-returns-value]
            self.need(False, f"an image id of {where}", twice, "there only once")

    def ranked(self, protocol: Protocol, split: Split, where: str) -> None:
        """Every query has a gallery with one of its targets, where it has targets."""
        own = protocol.gallery == "own"
        self.need(own or protocol.gallery in split.galleries, f"the gallery of the protocol {protocol.name}",
                  protocol.gallery, f"one of {where}: {', '.join(split.galleries) or 'it has none'}")
        groups: Mapping[str, Any] = {} if own else {g: set(ids) for g, ids in split.galleries[protocol.gallery].items()}
        for n, query in enumerate(split.queries):
            place = f"query {n} of {where} (id {query.id!r:.80})"
            ids = query.candidates if own else groups.get(query.group, groups.get(""))
            self.need(ids is not None, f"the group of {place}", query.group,
                      f"one with a gallery for {protocol.name}, or the gallery needs a group ''")
            assert ids is not None
            hit = protocol.hit == "graded" or not query.targets or any(t in ids for t in query.targets)
            self.need(hit, f"targets of {place}", query.targets, f"in the gallery {protocol.gallery!r}, at least one")

    def forms(self, found: Dataset, split: Split, where: str) -> None:
        """The rows that every text form makes of every query."""
        for name in dict.fromkeys(p.form for p in found.protocols):
            form: Callable[[Query], object] = found.forms[name]
            for n, query in enumerate(split.queries):
                place = f"forms[{name!r}] of query {n} of {where} (id {query.id!r:.80})"
                try:
                    rows = form(query)
                except Exception as error:
                    raise CirbenchError(f"{self.file}: {place} fails: {process.described(error)}.") from error
                good = isinstance(rows, tuple | list) and bool(rows)
                self.need(good, place, rows, "a list of rows, each a list of texts")
                assert isinstance(rows, tuple | list)
                for row in rows:
                    self.texts(row, f"a row of {place}")
                    self.need(bool(row), f"a row of {place}", row, "at least one text")
