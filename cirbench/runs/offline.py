"""A block in which nothing connects."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator
from typing import Any

__all__ = ["no_network"]


@contextlib.contextmanager
def no_network() -> Iterator[list[str]]:
    """Connections are refused and their addresses collected."""
    tried: list[str] = []

    def refuse(_self: Any, address: Any, *_: Any) -> Any:
        if isinstance(address, str | bytes):  # a Unix socket is local
            return original(_self, address)
        tried.append(str(address))
        raise OSError("the contract allows no network")

    def refuse_name(host: Any, *_: Any, **__: Any) -> Any:
        tried.append(str(host))
        raise OSError("the contract allows no network")

    original, names = socket.socket.connect, socket.getaddrinfo
    socket.socket.connect, socket.getaddrinfo = refuse, refuse_name  # type: ignore[method-assign]
    try:
        yield tried
    finally:
        socket.socket.connect, socket.getaddrinfo = original, names  # type: ignore[method-assign]
