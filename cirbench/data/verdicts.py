"""What decoding a picture told, remembered by the content of its file: none is decoded twice to see whether that works.

Only pictures that can be used are remembered. Others are decoded again each time: what is wrong may be the machine.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

from tqdm import tqdm

from cirbench import numerics
from cirbench.data.file_hashes import database, file_sha256s, looked_up
from cirbench.data.image_files import Decoded, decode
from cirbench.seeds import digest

__all__ = ["verdicts"]

_TABLE = "verdicts (sha256 TEXT, rule TEXT, oriented INTEGER, transparent INTEGER, PRIMARY KEY (sha256, rule))"
_ASK = "SELECT sha256, oriented, transparent FROM verdicts WHERE rule = ? AND sha256 IN ({})"

#: (sha256, rule) -> what this process saw.
_known: dict[tuple[str, str], Decoded] = {}


def verdicts(files: Sequence[Path], quiet: bool = True) -> dict[Path, Decoded]:
    """File -> what decoding it tells, without the pixels.

    Args:
        files: of pictures, each once.
        quiet: no progress bar.
    """
    rule, before = _rule(), _contents(files)
    with database("verdicts.sqlite3", _TABLE) as rows:
        unknown = [sha for sha in before.values() if (sha, rule) not in _known]
        for sha, turned, transparent in looked_up(rows, _ASK, unknown, rule):
            _known[sha, rule] = Decoded(oriented=bool(turned), transparent=bool(transparent))
        found = {f: _known[sha, rule] for f, sha in before.items() if (sha, rule) in _known}
        todo = [f for f in files if f not in found]
        with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
            jobs = pool.map(lambda file: replace(decode(file), image=None), todo)
            shown = tqdm(jobs, total=len(todo), desc="decoding pictures", disable=quiet, leave=False)
            found.update(zip(todo, shown, strict=True))
        # A file that was exchanged while it was decoded has another content now.
        usable = [f for f in todo if not found[f].problem]
        new = {sha: found[f] for f, sha in _contents(usable).items() if before.get(f) == sha}
        _known.update({(sha, rule): seen for sha, seen in new.items()})
        if rows is not None and new:
            with contextlib.suppress(sqlite3.Error), rows:  # a full or read-only disk costs time, not the check
                rows.executemany(
                    "INSERT OR REPLACE INTO verdicts VALUES (?, ?, ?, ?)",
                    [(sha, rule, seen.oriented, seen.transparent) for sha, seen in new.items()],
                )
    return {f: found[f] for f in files}


@lru_cache(maxsize=1)
def _rule() -> str:
    """What a verdict depends on besides the file: this code, Pillow and its decoders."""
    from PIL import __version__, features

    return digest([
        numerics.of_part("pictures"), __version__, [[f, features.version(f)] for f in features.get_supported()],
    ])


def _contents(files: Sequence[Path]) -> dict[Path, str]:
    """File -> sha256; empty if one of them cannot be read, which decoding tells."""
    try:
        return dict(zip(files, file_sha256s(files), strict=True))
    except OSError:
        return {}
