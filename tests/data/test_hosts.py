"""Without a connection: seconds, not minutes, and the cause stands first."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from commands import exit_code

from cirbench.data import download, hosts
from cirbench.types import CirbenchError, Download

PROXIES = ("http_proxy", "https_proxy", "all_proxy", "no_proxy")


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in PROXIES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.fixture
def mute() -> Iterator[str]:
    """A host that accepts connections and never says a word."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen(50)
        yield f"127.0.0.1:{server.getsockname()[1]}"


def closed_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def missing(capsys: pytest.CaptureFixture[str], root: Path) -> str:
    assert exit_code("data", "get", "fashioniq", "--root", str(root)) == 2
    return capsys.readouterr().err


def test_a_proxy_that_refuses_is_named_before_the_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    proxy = f"127.0.0.1:{closed_port()}"
    monkeypatch.setenv("https_proxy", f"http://user:secret@{proxy}")
    asked, real = [], socket.create_connection
    monkeypatch.setattr(socket, "create_connection", lambda *a, **k: (asked.append(a), real(*a, **k))[1])
    said = missing(capsys, tmp_path)
    assert said.startswith(
        "cirbench: 18 of 18 files are missing: raw.githubusercontent.com cannot be reached: Connection refused (the proxy "
        f"{proxy}), so captions/"
    ) and "and 15 more could not be fetched" in said and "secret" not in said and len(said) < 600
    assert len(asked) == 1, "18 files, one question"


def test_packets_that_are_dropped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    waited: list[float] = []

    def dropped(address: Any, timeout: float) -> Any:
        waited.append(timeout)
        raise TimeoutError("timed out")

    monkeypatch.setattr(socket, "create_connection", dropped)
    assert "raw.githubusercontent.com cannot be reached: timed out (raw.githubusercontent.com:443)" in missing(capsys, tmp_path)
    assert waited == [hosts.CONNECT] and hosts.CONNECT <= 5


def test_a_look_up_of_a_name_that_never_returns(monkeypatch: pytest.MonkeyPatch) -> None:
    never = threading.Event()
    monkeypatch.setattr(hosts, "CONNECT", -0.9)

    def hang(*given: Any, **named: Any) -> Any:
        never.wait()
        raise TimeoutError

    monkeypatch.setattr(socket, "create_connection", hang)
    try:
        with pytest.raises(ConnectionError, match=r"no connection: timed out \(host:443\)"):
            hosts.Hosts().check("https://host/file")
    finally:
        never.set()


def test_a_host_that_says_nothing_is_waited_for_once(
    mute: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download, "TIMEOUT", 0.1)
    known, begun = hosts.Hosts(), time.monotonic()
    for n in range(50):
        with pytest.raises(download.FetchError, match=r"timed out|nothing came for") as told:
            download.fetch(Download(f"{n}.bin", (f"http://{mute}/{n}.bin",)), tmp_path, hosts=known)
        assert told.value.offline
    assert set(known.silent) == {"127.0.0.1"} and time.monotonic() >= begun


def test_a_host_that_answers_is_not_called_silent(tmp_path: Path) -> None:
    with pytest.raises(download.FetchError) as told:
        download.fetch(Download("a.bin", ("http://host/a b",)), tmp_path)
    assert isinstance(told.value, CirbenchError)
    with pytest.raises(download.FetchError, match=r"unknown url type|no host") as told:
        download.fetch(Download("a.bin", ("nonsense",)), tmp_path)
    assert not told.value.offline
