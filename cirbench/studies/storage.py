"""Storage of a study: the journal file in its folder, or a database for many machines."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import optuna

from cirbench.studies.journal import open_journal
from cirbench.types import CirbenchError

__all__ = ["hide_password", "open_storage", "with_driver"]


def hide_password(url: str) -> str:
    """The database URL without its password."""
    head, at, tail = url.rpartition("@")
    scheme, sign, login = head.partition("://")
    user, colon, _ = login.partition(":")
    return f"{scheme}{sign}{user}:***@{tail}" if at and colon else url


def with_driver(url: str) -> str:
    """The database URL with the driver that the extra `storage` installs, if it names none."""
    scheme, sign, rest = url.partition("://")
    drivers = {"postgresql": "postgresql+psycopg2", "postgres": "postgresql+psycopg2", "mysql": "mysql+pymysql"}
    return drivers.get(scheme, scheme) + sign + rest


def open_storage(folder: Path, url: str = "") -> Any:
    """The journal file of a sweep's folder, or a database.

    Raises:
        CirbenchError: no driver, or no database there.
    """
    if not url:
        folder.mkdir(parents=True, exist_ok=True)
        return open_journal(folder / "journal.log")
    shown = hide_password(url)
    if "://" not in url:
        raise CirbenchError(f"--storage {shown!r} is not a database URL. Write postgresql://USER:PASSWORD@HOST/DATABASE.")
    # Several processes that find an empty database all try to create its tables; all but one fail, then find them.
    for attempt in range(5):
        try:
            return optuna.storages.RDBStorage(with_driver(url), engine_kwargs={"pool_pre_ping": True})
        except ImportError as error:
            hint = "Install it with `pip install 'cirbench[storage]'`."
            raise CirbenchError(f"--storage {shown}: {str(error).rstrip('.')}. {hint}") from None
        except Exception as error:
            if attempt == 4 or "could not connect" in str(error) or "onnection refused" in str(error):
                first = str(error).strip().splitlines()[0].replace(with_driver(url), shown).replace(url, shown)
                raise CirbenchError(f"--storage {shown} cannot be used: {first}.") from None
            time.sleep(0.3 * (attempt + 1))
    raise AssertionError("left by return or raise")
