"""A tiny CLIP that open_clip knows, and a hub that cannot be reached."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import tiny_weights


@pytest.fixture
def model() -> Iterator[str]:
    """The tiny CLIP as one of open_clip's architectures."""
    from open_clip import factory

    name = tiny_weights.register()
    yield name
    factory._MODEL_CONFIGS.pop(name)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of the hub, and no connection."""
    import socket

    from huggingface_hub import constants

    def refuse(*args: object, **kwargs: object) -> None:
        raise socket.gaierror("no such host")

    for variable in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"
