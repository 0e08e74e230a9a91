"""Files of weights as tensors, and tensors into a model: nothing is unpickled but tensors, and every misfit is told.

Wrappers that training code leaves are taken off: a mapping under `state_dict`, `model` and the like, `_orig_mod` in a
name (torch.compile), and a prefix that the model's names share (`module.`, `clip.`).
"""

from __future__ import annotations

import pickle
import re
import warnings
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cirbench.types import CirbenchError

__all__ = ["fill", "read_weights", "under_prefix", "without_prefix"]

#: Where training code keeps a model's tensors in a file, in the order in which they are looked for.
WRAPPERS = ("state_dict", "model", "model_state_dict", "module", "clip", "CLIP", "weights", "net")
#: What OpenAI's files hold beside weights.
_FACTS = ("input_resolution", "context_length", "vocab_size")
#: How many names of each kind a message lists.
SHOWN = 4


def read_weights(paths: Sequence[Path]) -> dict[str, Tensor]:
    """The tensors in files of weights, by the names that the model's own code gives them.

    Args:
        paths: one file, or the parts of one.

    Raises:
        CirbenchError: a file that cannot be read, holds code, or holds no tensors.
    """
    out: dict[str, Tensor] = {}
    for path in paths:
        for name, tensor in _unwrapped(_read(path), path).items():
            plain = ".".join(part for part in name.split(".") if part != "_orig_mod")
            if plain in out:
                raise CirbenchError(f"{path} holds {plain!r} twice, once as {name!r}. Save one state_dict.")
            out[plain] = tensor
    return out


def _read(path: Path) -> Any:
    try:
        if path.suffix.lower() == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        if path.suffix.lower() == ".npz":
            raise CirbenchError(f"{path}: weights in .npz are not read. Save the model's state_dict as .safetensors.")
        with warnings.catch_warnings():  # what they say is said by the error below
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise CirbenchError(f"there is no file {path}.") from None
    except pickle.UnpicklingError as error:
        other = re.search(r"GLOBAL (\S+)", str(error))
        if other is None:
            raise CirbenchError(f"{path} is no file of torch.save, or is damaged. Fetch or copy it again.") from None
        raise CirbenchError(
            f"{path} holds more than tensors ({other[1]}), and loading it could run code. Save its weights alone, e.g. "
            "safetensors.torch.save_file(model.state_dict(), 'weights.safetensors')."
        ) from None
    except RuntimeError as error:
        if "TorchScript" not in str(error):
            raise CirbenchError(_damaged(path, error)) from None
        raise CirbenchError(
            f"{path} is a TorchScript archive, which holds code. OpenAI's files are read by name "
            "(ViT-B-32-quickgelu:openai); of others save the state_dict as .safetensors."
        ) from None
    except CirbenchError:
        raise
    except Exception as error:  # what a damaged file raises depends on where it is damaged
        raise CirbenchError(_damaged(path, error)) from None


def _damaged(path: Path, error: Exception) -> str:
    said = (str(error).splitlines() or [""])[0][:160].rstrip(".")
    kind = "safetensors" if path.suffix.lower() == ".safetensors" else "a file of torch.save"
    return f"{path} cannot be read as {kind}: {type(error).__name__}: {said}. Fetch or copy it again."


def _unwrapped(found: Any, path: Path) -> dict[str, Tensor]:
    for _ in range(3):
        if isinstance(found, Mapping) and not _holds_tensors(found):
            inside = next((found[key] for key in WRAPPERS if isinstance(found.get(key), Mapping)), None)
            if inside is None:
                break
            found = inside
    if not isinstance(found, Mapping) or not _holds_tensors(found):
        keys = ", ".join(map(str, list(found)[:6])) if isinstance(found, Mapping) else ""
        told = f"the keys {keys}" if keys else type(found).__name__
        raise CirbenchError(
            f"{path} holds no weights by name: found {told}. It needs a state_dict, alone or under one of "
            f"{', '.join(WRAPPERS)}."
        )
    return {str(n): value for n, value in found.items() if isinstance(value, Tensor) and n not in _FACTS}


def _holds_tensors(found: Mapping[Any, Any]) -> bool:
    """Whether these are weights by name, and not a checkpoint whose few tensors are beside the point."""
    return sum(isinstance(v, Tensor) for v in found.values()) > len(found) / 2


def under_prefix(names: Collection[str], wanted: Iterable[str]) -> str:
    """The prefix under which most of the wanted names are found ("" where they are found as they are)."""
    there = set(names)
    wanted = list(wanted)
    best, most = "", sum(w in there for w in wanted)
    # Any name may be the one that is there; a few are enough to find the prefix.
    for anchor in wanted[:: max(1, len(wanted) // 16)]:
        for prefix in {n[: -len(anchor)] for n in there if n.endswith(f".{anchor}")}:
            if (count := sum(prefix + w in there for w in wanted)) > most:
                best, most = prefix, count
    return best


def without_prefix(tensors: Mapping[str, Tensor], wanted: Iterable[str]) -> dict[str, Tensor]:
    """The tensors without the prefix under which the wanted names are found; others keep their names."""
    prefix = under_prefix(tensors.keys(), wanted)
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}


def fill(model: nn.Module, tensors: Mapping[str, Tensor], source: str, optional: Collection[str] = ()) -> None:
    """Copy tensors into a model: all of its own, no other, each of its shape, all finite.

    Args:
        model: takes the weights, in its own precision.
        tensors: by name; a prefix that they share is taken off.
        source: what the weights are and where they are to fit, for the message.
        optional: names that may be missing; the model keeps what it has.

    Raises:
        CirbenchError: one message with all that does not fit.
    """
    state = model.state_dict()
    found = without_prefix(tensors, state)
    # How often batch statistics were updated computes nothing here, and older files lack it.
    missing = [n for n in state if n not in found and n not in optional and not n.endswith(".num_batches_tracked")]
    unexpected = [n for n in found if n not in state]
    shapes = [
        f"{n} is {tuple(found[n].shape)}, not {tuple(state[n].shape)}" for n in state
        if n in found and found[n].shape != state[n].shape
    ]
    told = [
        f"{len(names)} {what}: {', '.join(names[:SHOWN])}{', ...' if len(names) > SHOWN else ''}"
        for names, what in ((missing, "missing"), (unexpected, "unexpected"), (shapes, "of another shape")) if names
    ]
    if told:
        raise CirbenchError(
            f"{source}: the weights are of another model. Of its {len(state)} tensors {'; '.join(told)}. Name the "
            "architecture that they were trained in."
        )
    bad = [n for n, t in found.items() if t.is_floating_point() and not bool(t.isfinite().all())]
    if bad:
        raise CirbenchError(f"{source}: {len(bad)} tensors hold NaN or infinity, the first is {bad[0]}.")
    model.load_state_dict(found, strict=False)
