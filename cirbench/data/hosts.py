"""Whether the hosts of some addresses answer: each is asked once, and within seconds."""

from __future__ import annotations

import contextlib
import queue
import socket
import threading
import urllib.parse
import urllib.request

__all__ = ["Hosts", "door", "knock"]

#: Seconds to wait for a connection, finding the host's address included.
CONNECT = 5.0


class Hosts:
    """What is known of hosts during one command.

    Attributes:
        silent: host -> why it cannot be reached, for those that were asked in vain.
    """

    def __init__(self) -> None:
        self.silent: dict[str, str] = {}
        self._asked: set[str] = set()

    def check(self, url: str) -> None:
        """Connect to the host of an address, or to the proxy in front of it; at once if that was tried before.

        Raises:
            ConnectionError: no connection, with the cause.
            ValueError: it is no address.
        """
        host, behind, proxy = door(url)
        if not host:
            return
        if host not in self._asked:
            self._asked.add(host)
            if why := knock(*behind):
                self.silent[host] = f"{why} ({'the proxy ' if proxy else ''}{behind[0]}:{behind[1]})"
        if host in self.silent:
            raise ConnectionError(f"no connection: {self.silent[host]}")

    def silence(self, url: str, why: str) -> None:
        """Note that a host let the connection hang, so that nobody waits for it again."""
        host = door(url)[0]
        self._asked.add(host)
        self.silent[host] = why


def door(url: str) -> tuple[str, tuple[str, int], bool]:
    """Host of an address ("" if it is a file), whom to connect to, and whether that is a proxy."""
    parts, proxies = urllib.parse.urlsplit(url), urllib.request.getproxies()
    host, to = parts.hostname or "", parts
    proxy = proxies.get(parts.scheme) or proxies.get("all")
    through = bool(proxy) and not urllib.request.proxy_bypass(host)
    if proxy and through:
        to = urllib.parse.urlsplit(proxy if "//" in proxy else f"//{proxy}")
    return host, (to.hostname or "", to.port or (443 if to.scheme == "https" else 80)), through


def knock(host: str, port: int) -> str:
    """Why no connection comes about, or ""."""
    found: queue.Queue[str] = queue.Queue()

    def connect() -> None:
        try:
            socket.create_connection((host, port), timeout=CONNECT).close()
            found.put("")
        except OSError as error:
            found.put(error.strerror or str(error) or type(error).__name__)

    # A look-up of a name has no limit of its own.
    threading.Thread(target=connect, daemon=True).start()
    with contextlib.suppress(queue.Empty):
        return found.get(timeout=CONNECT + 1)
    return "timed out"
