"""The one way to make a method from a plan, and to keep and load its weights."""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from cirbench.files import writing
from cirbench.models.clip import check_clip
from cirbench.models.cnn import check_cnn
from cirbench.models.encoders import Encoders
from cirbench.runs.planning import Plan, training_form
from cirbench.seeds import derive
from cirbench.types import CirbenchError, Dataset, Method, TrainView

__all__ = ["build", "check_backbones", "load_method", "make_deterministic", "save_weights", "train_view"]


def make_deterministic(seed: int) -> None:
    """Seed torch for a run, and choose deterministic algorithms."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.backends.cudnn.benchmark = False
    torch.manual_seed(derive(seed, "torch") % 2**63)


def check_backbones(config: Mapping[str, Any]) -> None:
    """Refuse names of encoders that cannot be loaded, before anything is done.

    Raises:
        CirbenchError: an unknown CLIP or CNN, with the nearest one.
    """
    if config.get("clip") and config.get("streams") != "cnn":
        check_clip(str(config["clip"]))
    if config.get("cnn") and config.get("streams") != "clip":
        check_cnn(str(config["cnn"]))


def train_view(dataset: Dataset, form: str) -> TrainView:
    """What a method may know of the training set, in one text form."""
    if "train" not in dataset.splits:
        # Evaluation-only datasets: a method's vocabulary is in the state of its checkpoint.
        return TrainView([], 0)
    texts = [t for q in dataset.splits["train"].queries for row in dataset.forms[form](q) for t in row]
    return TrainView(texts, len(dataset.splits["train"].queries))


def build(
    planned: Plan, dataset: Dataset, device: torch.device | None = None, state: Mapping[str, Any] | None = None,
    encoders: Encoders | None = None, config: Any = None, declared: Collection[str] | None = None,
) -> Method:
    """The method of a plan.

    Args:
        planned: the run.
        dataset: its data; the training texts are shown to the method.
        device: of the method; None leaves it on the CPU.
        state: what `extra_state` returned when weights were saved; None in training.
        encoders: loader of its encoders; by default a new one with the seed of the run.
        config: instead of the plan's, for measuring without weights.
        declared: local weights that are part of the run's identity; others are refused (None allows any).

    Raises:
        CirbenchError: weights that cannot be loaded, or a method file that fails.
    """
    encoders = encoders or Encoders(derive(planned.seed, "weights"), declared)
    view = train_view(dataset, training_form(planned, dataset))
    method: Method = planned.method.load().build(config or planned.config, encoders, view, state)
    absent = [name for name in ("inputs", "encode_queries", "encode_images") if not hasattr(method, name)]
    if absent:
        raise CirbenchError(
            f"{planned.method.path}: build returned {type(method).__name__}, which has no {', '.join(absent)}. It must "
            "return the method (`Method` in types.py)."
        )
    if isinstance(method, torch.nn.Module) and device is not None:
        method.to(device)
    return method


def save_weights(path: Path, method: Method) -> None:
    """Weights as safetensors, with the method's extra state in the header."""
    tensors = {}
    if isinstance(method, torch.nn.Module):
        tensors = {k: v.detach().cpu().contiguous() for k, v in method.state_dict().items()}
    state = method.extra_state() if hasattr(method, "extra_state") else {}
    with writing(path) as temporary:
        save_file(tensors, temporary, {"extra_state": json.dumps(state)})


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
    method = build(planned, dataset, state=state)
    if isinstance(method, torch.nn.Module):
        try:
            method.load_state_dict(tensors)
        except RuntimeError as error:
            raise CirbenchError(
                f"the weights in {path} do not match the method {planned.method.name}: "
                f"{str(error).splitlines()[-1].strip()} Its source or its config has changed since."
            ) from None
        method.to(device).eval()
    return method
