"""The one way to make a method from a plan, and to keep and load its weights."""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from cirbench import process
from cirbench.data.images import PADS
from cirbench.files import writing
from cirbench.models.clip import check_clip
from cirbench.models.cnn import check_cnn
from cirbench.models.encoders import Encoders
from cirbench.models.names import PREFIXES
from cirbench.runs.corpus import train_view
from cirbench.runs.planning import Plan
from cirbench.seeds import derive
from cirbench.types import (
    CirbenchError,
    Dataset,
    Frozen,
    Inputs,
    Method,
    MethodError,
    Pixels,
)

__all__ = [
    "build", "check_backbones", "frozen", "load_method", "make_deterministic", "packed", "preprocessing",
    "save_weights",
]


def make_deterministic(seed: int) -> None:
    """Seed torch for a run, and choose deterministic algorithms."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.backends.cudnn.benchmark = False
    torch.manual_seed(derive(seed, "torch") % 2**63)


def check_backbones(config: Mapping[str, Any]) -> None:
    """Refuse names of encoders that cannot be loaded, before anything is done.

    Weights that are named by a repository of the hub are fetched here, before pictures are read.

    Raises:
        CirbenchError: an unknown CLIP or CNN, with the nearest one.
    """
    for name, other, check in (("clip", "cnn", check_clip), ("cnn", "clip", check_cnn)):
        if config.get(name) is None or config.get("streams") == other:
            continue
        if not str(config[name]).strip():
            raise CirbenchError(f"method.{name} is empty. Name one (`cirbench list backbones`).")
        check(str(config[name]))
    for field, value in config.items():
        if field not in ("clip", "cnn") and isinstance(value, str) and value.startswith(PREFIXES):
            check_clip(value)


def preprocessing(method: Method) -> dict[str, dict[str, Any]]:
    """What is done to the pictures of each of a method's inputs, for the record."""
    pixels = {name: w.encoder.pixels if isinstance(w, Frozen) else w for name, w in method.inputs.images.items()}
    return {name: asdict(wanted) for name, wanted in pixels.items()}


def build(
    planned: Plan, dataset: Dataset, device: torch.device | None = None, state: Mapping[str, Any] | None = None,
    encoders: Encoders | None = None, config: Any = None, declared: Collection[str] | None = None,
) -> Method:
    """The method of a plan.

    Args:
        planned: the run.
        dataset: its data; the training texts and captions are shown to the method.
        device: of the method and its frozen encoders; None leaves them on the CPU.
        state: what `extra_state` returned when weights were saved; None in training.
        encoders: loader of its encoders; by default a new one with the seed of the run.
        config: instead of the plan's, for measuring without weights.
        declared: local weights that are part of the run's identity; others are refused (None allows any).

    Raises:
        CirbenchError: weights that cannot be loaded, or a method file that fails.
    """
    encoders = encoders or Encoders(derive(planned.seed, "weights"), declared)
    view = train_view(planned, dataset, learning=state is None)
    make = planned.method.load().build
    with process.unchanged(make):
        method: Method = make(config or planned.config, encoders, view, state)
    _check_parts(make, method)
    if device is not None:
        if isinstance(method, torch.nn.Module):
            method.to(device)
        # A method may read pseudo-words by an encoder outside the module.
        for wanted in frozen(method.inputs):
            wanted.encoder.to(device)
    return method


def frozen(inputs: Inputs) -> list[Frozen]:
    """The frozen encoders among a method's inputs; one that reads pictures and texts stands there twice."""
    return [i for i in (*inputs.images.values(), *inputs.texts.values()) if isinstance(i, Frozen)]


#: What a method must have, and what it may have, as functions.
HOOKS = ("encode_queries", "encode_images")
OPTIONAL = (
    "losses", "optimizers", "prepare", "start_epoch", "score", "adapt", "modality_weights", "contrasts", "explain",
    "extra_state",
)


def _check_parts(make: Any, method: Any) -> None:
    """What `build` returned has the parts of a method, and they are of the right kind.

    Raises:
        MethodError: the part, what is expected and what is there.
    """
    absent = [name for name in ("inputs", *HOOKS) if not hasattr(method, name)]
    if absent:
        raise MethodError(
            make, f"build returned {type(method).__name__}, which has no {', '.join(absent)}. It must return the "
            "method (`Method` in types.py)."
        )
    for name in (*HOOKS, *OPTIONAL):
        if hasattr(method, name) and not callable(getattr(method, name)):
            raise MethodError(make, f"`{name}` of the method is {getattr(method, name)!r:.60}; it must be a function.")
    if hasattr(method, "losses") and not hasattr(method, "optimizers"):
        raise MethodError(method.losses, "the method has `losses` but no `optimizers`, so nothing can be trained.")
    inputs = method.inputs
    if not isinstance(inputs, Inputs):
        kind = type(inputs).__name__
        raise MethodError(make, f"`inputs` of the method is {kind}; it must be Inputs(images=..., texts=...).")
    for part, kinds in (("images", (Pixels, Frozen)), ("texts", (Frozen,))):
        wanted, named = getattr(inputs, part), " or ".join(kind.__name__ for kind in kinds)
        if not isinstance(wanted, Mapping):
            raise MethodError(make, f"inputs.{part} is {type(wanted).__name__}; it must be a dict of {named}.")
        for name, value in wanted.items():
            if not isinstance(value, kinds):
                raise MethodError(make, f"inputs.{part}[{name!r}] is {type(value).__name__}; it must be {named}.")
            if isinstance(value, Frozen) and not hasattr(value.encoder, "dim"):
                kind = type(value.encoder).__name__
                raise MethodError(make, f"inputs.{part}[{name!r}] holds {kind}, which is no encoder (types.py).")
            pixels = value if isinstance(value, Pixels) else getattr(value.encoder, "pixels", None)
            if isinstance(pixels, Pixels):
                _check_pixels(make, f"inputs.{part}[{name!r}]", pixels)


def _check_pixels(make: Any, place: str, pixels: Pixels) -> None:
    """Sizes and the colour of padding, which a picture would be decoded with only later.

    Raises:
        MethodError: what is wrong with them.
    """
    if type(pixels.size) is not int or not 1 <= pixels.size <= 16_384:
        raise MethodError(make, f"{place}: size is {pixels.size!r:.60}; it must be a whole number of pixels.")
    if pixels.stored is not None and (type(pixels.stored) is not int or not pixels.size <= pixels.stored <= 16_384):
        raise MethodError(
            make, f"{place}: stored is {pixels.stored!r:.60}; it must be None, or a whole number of pixels that is not "
            f"below size, {pixels.size}."
        )
    if pixels.pad not in tuple(PADS):
        raise MethodError(make, f"{place}: pad is {pixels.pad!r:.60}; it must be {' or '.join(PADS)}.")


def packed(method: Method) -> tuple[dict[str, torch.Tensor], str]:
    """All that is saved of a method: its tensors on the CPU, and its extra state as JSON.

    Raises:
        MethodError: `state_dict` or `extra_state` returns something that cannot be saved.
    """
    tensors: dict[str, torch.Tensor] = {}
    if isinstance(method, torch.nn.Module):
        stored = set[int]()
        held: Any = method.state_dict()
        if not isinstance(held, Mapping):
            kind = type(held).__name__
            raise MethodError(method.state_dict, f"`state_dict` returned {kind}; it must be a dict of tensors.")
        for name, value in held.items():
            if not isinstance(name, str) or not isinstance(value, torch.Tensor) or value.layout != torch.strided:
                layout = getattr(value, "layout", None)
                received = f"a tensor of layout {layout}" if layout else type(value).__name__
                raise MethodError(
                    method.state_dict, f"`state_dict` holds {received} under {name!r}; only dense tensors can be saved."
                    " Keep other values in `extra_state`."
                )
            tensor = value.detach().cpu().contiguous()
            # Weights that are tied share memory, which the file format refuses: each name gets a copy of its own.
            shared = tensor.untyped_storage().data_ptr()
            tensors[name] = tensor.clone() if shared in stored else tensor
            stored.add(shared)
    if not hasattr(method, "extra_state"):
        return tensors, json.dumps({})
    extra = method.extra_state()
    try:
        if not isinstance(extra, Mapping):
            raise TypeError(f"it is {type(extra).__name__}")
        return tensors, json.dumps(extra)
    except (TypeError, ValueError, RecursionError) as error:
        raise MethodError(
            method.extra_state, f"`extra_state` must return a dict of JSON values (numbers, texts, lists): {error}. "
            "Tensors belong into buffers."
        ) from None


def save_weights(path: Path, method: Method) -> None:
    """Weights as safetensors, with the method's extra state in the header."""
    tensors, extra = packed(method)
    with writing(path) as temporary:
        save_file(tensors, temporary, {"extra_state": extra})


def load_method(planned: Plan, dataset: Dataset, path: Path, device: torch.device) -> Method:
    """A method with the weights of a record.

    Raises:
        CirbenchError: weights that do not match the method.
    """
    try:
        with safe_open(path, "pt") as file:
            state = json.loads((file.metadata() or {}).get("extra_state", "{}"))
            tensors = {k: file.get_tensor(k) for k in file.keys()}  # not a mapping
    except PermissionError as error:
        raise CirbenchError(f"{path} cannot be read: {error.strerror or error}. Look at its permissions.") from None
    except (OSError, ValueError, RuntimeError) as error:
        raise CirbenchError(f"{path} cannot be read as safetensors: {error}. Run it again with --force.") from None
    except Exception as error:
        raise CirbenchError(f"{path} is damaged: {error}. Run it again with --force.") from None
    method = build(planned, dataset, device, state)
    if isinstance(method, torch.nn.Module):
        try:
            method.load_state_dict(tensors)
        except RuntimeError as error:
            raise CirbenchError(
                f"the weights in {path} do not match the method {planned.method.name}: "
                f"{str(error).splitlines()[-1].strip()} Its source or its config has changed since."
            ) from None
        method.eval()
    return method
