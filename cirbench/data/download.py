"""Fetches files over HTTP: mirrors, resuming, checksums, safe unpacking. A partial file never passes as complete.

A download grows as `NAME.part`; it gets its name only when its length and its checksum are right. An archive is
unpacked beside its destination and moved in one step.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import http.client
import json
import shutil
import tarfile
import urllib.error
import urllib.request
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath

from cirbench import json_text
from cirbench.data.hosts import Hosts
from cirbench.lease import lock
from cirbench.types import CirbenchError, Download

CHUNK = 1 << 20
#: Seconds without a byte.
TIMEOUT = 10
#: Called with (bytes so far, bytes in all or 0).
Progress = Callable[[int, int], None]


def sha256_of(path: Path) -> str:
    """sha256 of a file, read in pieces."""
    hasher = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(CHUNK):
            hasher.update(block)
    return hasher.hexdigest()


def _state(part: Path) -> dict[str, str]:
    """The state of a partial file; only the server it came from can resume it."""
    try:
        found = json_text.parse(part.with_name(part.name + ".json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    whole = isinstance(found, dict) and all(isinstance(v, str) and v.isprintable() for v in found.values())
    return found if whole else {}


def _forget(part: Path) -> None:
    part.unlink(missing_ok=True)
    part.with_name(part.name + ".json").unlink(missing_ok=True)


def _request(url: str, part: Path) -> tuple[urllib.request.Request, int]:
    state = _state(part)
    start = part.stat().st_size if part.is_file() else 0
    if not start or state.get("url") != url or not state.get("tag"):
        # The partial file is from another mirror, and is overwritten only once this one answers.
        return urllib.request.Request(url, headers={"User-Agent": "cirbench"}), 0
    # If the file has changed since, the server sends all of it instead of the rest.
    headers = {"User-Agent": "cirbench", "Range": f"bytes={start}-", "If-Range": state["tag"]}
    return urllib.request.Request(url, headers=headers), start


def _stream(url: str, part: Path, progress: Progress) -> None:
    """Fetch one URL into `part`, resuming an earlier attempt.

    Raises:
        OSError: anything the network or the disk does; `part` stays for the next attempt.
    """
    request, start = _request(url, part)
    try:
        opened = urllib.request.urlopen(request, timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        if error.code != 416 or not start:
            raise
        # The server has no further bytes: the partial file is complete but not renamed, or of another file.
        if error.headers.get("Content-Range", "").endswith(f"*/{start}"):
            return
        _forget(part)
        request, start = _request(url, part)
        opened = urllib.request.urlopen(request, timeout=TIMEOUT)
    with opened as answer:
        if start and answer.status != 206:
            start = 0
        tag = answer.headers.get("ETag") or answer.headers.get("Last-Modified") or ""
        part.with_name(part.name + ".json").write_text(json.dumps({"url": url, "tag": tag}), encoding="utf-8")
        length = answer.headers.get("Content-Length")
        total = start + int(length) if length else 0
        done = start
        with part.open("ab" if start else "wb") as file:
            while block := answer.read(CHUNK):
                file.write(block)
                done += len(block)
                progress(done, total)
    if total and done != total:
        raise ConnectionError(f"the connection ended after {done} of {total} bytes")


def _explain(error: Exception) -> str:
    if isinstance(error, urllib.error.HTTPError):
        return f"HTTP {error.code} {error.reason}"
    if isinstance(error, urllib.error.URLError):
        return str(error.reason)
    return str(error) or type(error).__name__


class FetchError(CirbenchError):
    """No mirror served a file.

    Attributes:
        offline: no mirror could be reached at all.
    """

    offline = False


def fetch(
    download: Download, root: Path, progress: Progress = lambda done, total: None, hosts: Hosts | None = None
) -> str:
    """One file under root, whole and checked; unpacked where it is an archive.

    Args:
        download: the file.
        root: of the data.
        progress: told how far it is.
        hosts: what is known of the mirrors' hosts, so that several files do not wait for the same one.

    Returns:
        `present`, `fetched` or `unpacked`.

    Raises:
        FetchError: no mirror served it.
        CirbenchError: a wrong checksum, a full disk, an unsafe archive.
    """
    target = root / download.path
    if not target.resolve().is_relative_to(root.resolve()):
        raise CirbenchError(f"{download.path} leads out of {root}; it was not fetched.")
    # Two processes would write the same partial file: the second waits, and then finds what the first fetched.
    with _alone(target):
        return _fetch(download, root, target, progress, hosts or Hosts())


@contextlib.contextmanager
def _alone(target: Path) -> Iterator[None]:
    """Other processes that fetch the same file wait; a file system without locks, or without room, is told later."""
    mark = target.with_name(f"{target.name}.lock")
    with contextlib.ExitStack() as held:
        with contextlib.suppress(OSError):
            held.enter_context(lock(mark))
        try:
            yield
        finally:
            with contextlib.suppress(OSError):
                mark.unlink()


def _fetch(download: Download, root: Path, target: Path, progress: Progress, hosts: Hosts) -> str:
    if download.unpack and _marker(target).is_file():
        return "present"
    if not _whole(target, download):
        _from_mirrors(download, target, progress, hosts)
        if not download.unpack:
            return "fetched"
    elif not download.unpack:
        return "present"
    unpack(target, root / download.unpack)
    _marker(target).write_text("unpacked\n", encoding="utf-8")
    return "unpacked"


def _marker(target: Path) -> Path:
    return target.with_name(f".{target.name}.unpacked")


def _whole(target: Path, download: Download) -> bool:
    """Whether the file is there. A file under its final name is complete, unless its checksum differs."""
    if not target.is_file():
        return False
    found = sha256_of(target) if download.sha256 else ""
    if found != download.sha256:
        raise CirbenchError(
            f"{target} exists with another content than the published file (sha256 {found[:12]}..., expected "
            f"{download.sha256[:12]}...). Move it away to fetch it again; it is not overwritten."
        )
    if not download.sha256 and (damage := _damage(target, target.name)):
        raise CirbenchError(f"{target} exists but is not complete: {damage}. Move it away to fetch it again.")
    return True


def _damage(path: Path, name: str) -> str:
    """What is wrong with a file for which no checksum is published, judged by its format; "" where nothing is seen.

    A connection that is cut without a declared length looks like the end of the file.
    """
    with path.open("rb") as file:
        head = file.read(4)
    try:
        if head[:2] == b"PK":
            with zipfile.ZipFile(path) as archive:
                archive.infolist()  # its directory stands at the end of the file
        elif head[:2] == b"\x1f\x8b":
            with tarfile.open(path) as tar:
                tar.getmembers()
        elif name.endswith(".json"):
            json_text.parse(path.read_text(encoding="utf-8-sig"))
    except Exception as error:
        # A damaged archive may raise nearly anything.
        return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:120]}"
    return ""


def _from_mirrors(download: Download, target: Path, progress: Progress, hosts: Hosts) -> None:
    part = target.with_name(target.name + ".part")
    failures, silent = [], 0
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CirbenchError(f"{target.parent} cannot be created: {error.strerror}.") from None
    begun = _state(part).get("url")
    for url in sorted(download.urls, key=lambda u: u != begun):
        try:
            hosts.check(url)
        except (OSError, ValueError) as error:
            silent += isinstance(error, OSError)
            failures.append(f"{url}: {error}")
            continue
        try:
            _stream(url, part, progress)
        except (OSError, ValueError, http.client.HTTPException) as error:
            if isinstance(error, OSError) and error.errno == errno.ENOSPC:
                size = part.stat().st_size if part.exists() else 0
                raise CirbenchError(
                    f"the disk is full: {part} holds {size} bytes so far. Make room "
                    "and repeat the command; it resumes from there."
                ) from None
            if isinstance(error, TimeoutError) or isinstance(getattr(error, "reason", None), TimeoutError):
                hosts.silence(url, f"nothing came for {TIMEOUT} seconds")
                silent += 1
            failures.append(f"{url}: {_explain(error)}")
            continue
        if download.sha256:
            found = sha256_of(part)
            if found != download.sha256:
                _forget(part)
                failures.append(f"{url}: wrong checksum (sha256 {found[:12]}..., expected {download.sha256[:12]}...)")
                continue
        elif damage := _damage(part, target.name):
            _forget(part)
            failures.append(f"{url}: what it sent is not complete ({damage})")
            continue
        part.replace(target)
        _forget(part)
        return
    told = FetchError(
        f"{download.path} could not be fetched: {'; '.join(failures)}. Repeat the command, or put the file at "
        f"{target} by hand."
    )
    told.offline = silent == len(failures) > 0
    raise told


# ------------------------------------------------------------------------------------- archives


def _safe(name: str, archive: Path) -> PurePosixPath:
    path = PurePosixPath(name.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts or (path.parts and ":" in path.parts[0]):
        raise CirbenchError(f"{archive}: the entry {name!r} leads out of the folder; nothing was unpacked.")
    return path


def _check_room(archive: Path, folder: Path, size: int) -> None:
    """A small archive may hold far more than a disk."""
    free = shutil.disk_usage(folder).free
    if size > free:
        raise CirbenchError(
            f"{archive} holds {size / 1e9:.1f} GB and {free / 1e9:.1f} GB are free under {folder.parent}; nothing was "
            "unpacked."
        )


def _unpack_zip(archive: Path, folder: Path) -> None:
    with zipfile.ZipFile(archive) as file:
        for entry in file.infolist():
            _safe(entry.filename, archive)
            if (entry.external_attr >> 16) & 0o170000 == 0o120000:
                raise CirbenchError(f"{archive}: the entry {entry.filename!r} is a link; nothing was unpacked.")
            if entry.flag_bits & 1:
                raise CirbenchError(
                    f"{archive}: the entry {entry.filename!r} is encrypted; nothing was unpacked. Unpack it by hand "
                    "with its password."
                )
        _check_room(archive, folder, sum(entry.file_size for entry in file.infolist()))
        file.extractall(folder)


def _unpack_tar(archive: Path, folder: Path) -> None:
    with tarfile.open(archive) as file:
        members = file.getmembers()
        for entry in members:
            _safe(entry.name, archive)
            if not (entry.isfile() or entry.isdir()):
                raise CirbenchError(f"{archive}: the entry {entry.name!r} is a link or a device; nothing was unpacked.")
        _check_room(archive, folder, sum(entry.size for entry in members))
        for entry in members:
            place = folder / _safe(entry.name, archive)
            if entry.isdir():
                place.mkdir(parents=True, exist_ok=True)
                continue
            place.parent.mkdir(parents=True, exist_ok=True)
            source = file.extractfile(entry)
            assert source is not None
            with source, place.open("wb") as out:
                shutil.copyfileobj(source, out, CHUNK)


def unpack(archive: Path, folder: Path) -> None:
    """Unpack a zip or tar into a folder: all of it, or nothing.

    Raises:
        CirbenchError: an entry that leads elsewhere, a damaged archive, a full disk.
    """
    staging = folder.parent / f".{archive.name}.unpacking" if folder != archive.parent else (
        archive.parent / f".{archive.name}.unpacking"
    )
    shutil.rmtree(staging, ignore_errors=True)
    try:
        staging.mkdir(parents=True)
        if zipfile.is_zipfile(archive):
            _unpack_zip(archive, staging)
        elif tarfile.is_tarfile(archive):
            _unpack_tar(archive, staging)
        else:
            raise CirbenchError(f"{archive} is neither a zip nor a tar; it may be an error page. Delete it and repeat.")
        for path in sorted(staging.rglob("*")):
            place = folder / path.relative_to(staging)
            if path.is_dir():
                place.mkdir(parents=True, exist_ok=True)
            else:
                place.parent.mkdir(parents=True, exist_ok=True)
                path.replace(place)
    except OSError as error:
        why = "the disk is full" if error.errno == errno.ENOSPC else str(error)
        raise CirbenchError(f"{archive} could not be unpacked: {why}. Nothing half-unpacked is left behind.") from None
    except CirbenchError:
        raise
    except Exception as error:
        # A damaged archive may raise nearly anything.
        raise CirbenchError(f"{archive} is damaged ({error}). Delete it and repeat the command.") from None
    finally:
        shutil.rmtree(staging, ignore_errors=True)
