"""The file from which an interrupted training goes on, and the random state that it keeps."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch

from cirbench.files import check_home, writing

__all__ = ["Checkpoint", "forked", "random_state", "set_random_state", "to_cpu"]


def random_state(device: torch.device) -> dict[str, Any]:
    """Torch's random state on the CPU and on the device."""
    state: dict[str, Any] = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def set_random_state(state: Mapping[str, Any], device: torch.device) -> None:
    """Put back what `random_state` returned."""
    torch.set_rng_state(state["cpu"])
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)


@contextlib.contextmanager
def forked(device: torch.device, seed: int | None = None) -> Iterator[None]:
    """What is drawn inside leaves torch's random state as it was; it begins from the seed, where one is given."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        if seed is not None:
            torch.manual_seed(seed)
        yield


def to_cpu(state: Mapping[str, Any]) -> dict[str, Any]:
    """Copies of tensors on the CPU, which later steps do not change."""
    return {k: v.detach().to("cpu", copy=True) for k, v in state.items()}


#: What a checkpoint holds, as far as resuming depends on it.
KEPT: Mapping[str, type] = {
    "method": dict, "optimizers": dict, "scaler": dict, "random": dict, "epoch": int, "step": int, "log": list,
    "best_epoch": int, "seconds": float, "cpu": float,
}


class Checkpoint:
    """One file, replaced as a whole; loading runs no code."""

    def __init__(self, path: Path) -> None:
        self.path, self.home = path, path.parent.stat()

    def save(self, state: dict[str, Any]) -> None:
        """Write the state whole, or leave the former one."""
        check_home(self.path.parent, self.home)
        with writing(self.path) as temporary:
            torch.save(state, temporary)

    def load(self, more: Mapping[str, type] = MappingProxyType({})) -> dict[str, Any] | None:
        """The state that was saved last; None where there is none, or a damaged one, which is removed.

        Args:
            more: what it must hold beside `KEPT` to go on.
        """
        if not self.path.is_file():
            return None
        try:
            found = torch.load(self.path, map_location="cpu", weights_only=True)
        except (OSError, MemoryError):
            raise  # it may be whole
        except Exception:
            found = None
        if isinstance(found, dict) and all(
            isinstance(found.get(name), kind) for name, kind in {**KEPT, **more}.items()
        ):
            return found
        # A disk fault damaged it (it is renamed when complete), or another file was put there: the run starts over.
        self.path.unlink()
        return None
