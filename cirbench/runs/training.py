"""The optimisation loop: devices, mixed precision, checkpoints and resuming.

A run that is killed and started again ends bit-identical to one that was not (same machine, same number of threads):
batches are functions of (seed, epoch, step), and a checkpoint holds weights, optimisers and torch's random state.
"""

from __future__ import annotations

import ctypes
import math
import os
import platform
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn
from tqdm import tqdm

from cirbench import process
from cirbench.data.ahead import ahead
from cirbench.data.batches import Feed, Triplets
from cirbench.runs.averaging import Average, evaluated
from cirbench.runs.checkpoint import Checkpoint, random_state, set_random_state, to_cpu
from cirbench.runs.mutual_information import Bounds
from cirbench.runs.readings import Readings, checked_logs, refuse
from cirbench.runs.schedule import epoch_factor, learning_rate
from cirbench.settings import TrainSettings, unknown
from cirbench.types import CirbenchError, Method, MethodError, TrainBatch


@dataclass
class Trained:
    """What training leaves.

    Attributes:
        log: one entry per step (`step`, `epoch`, `losses`, and `seconds`, on a GPU those of the host), per evaluation
            (`epoch`, `select`), and per epoch where mutual information is measured (`epoch`, `bound`, `pairs`).
        epoch: of the weights that the method now has.
        best: the value that chose it, or None for the last epoch.
        seconds: wall-clock time of training, over all attempts.
        cpu: CPU seconds of this process, all cores together; other load on the machine does not count.
        validation: seconds of evaluating on the split that selects; not part of `seconds` and `cpu`.
    """

    log: list[dict[str, Any]] = field(default_factory=list)
    epoch: int = 0
    best: float | None = None
    seconds: float = 0.0
    cpu: float = 0.0
    validation: float = 0.0


def pick_device(name: str) -> torch.device:
    """`auto`, `cpu`, `cuda`, `cuda:1`, `mps`.

    Raises:
        CirbenchError: an unknown device, or one this machine lacks.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise CirbenchError(f"unknown --device {name!r}. Valid: auto, cpu, cuda, cuda:0, cuda:1, mps.") from None
    count = torch.cuda.device_count()
    if device.type == "cuda" and (device.index or 0) >= count:
        raise CirbenchError(f"--device {name}: this machine has {count} CUDA devices. Use --device cpu or auto.")
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise CirbenchError("--device mps: this machine has no MPS device. Use --device cpu or auto.")
    if device.type not in ("cpu", "cuda", "mps"):
        raise CirbenchError(f"--device {name!r} is not supported. Valid: auto, cpu, cuda, cuda:0, mps.")
    return device


def keep_freed_memory() -> None:
    """Let glibc keep large freed blocks, which every CNN step on the CPU would otherwise map again."""
    if platform.system() != "Linux" or "MALLOC_TRIM_THRESHOLD_" in os.environ:
        return
    try:
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(ctypes.c_int(-3), ctypes.c_int(1 << 30))  # M_MMAP_THRESHOLD
        libc.mallopt(ctypes.c_int(-1), ctypes.c_int(1 << 30))  # M_TRIM_THRESHOLD
    except (OSError, AttributeError):
        pass  # another libc: only slower


def train(
    method: Method, triplets: Triplets, feed: Feed, settings: TrainSettings, device: torch.device, folder: Path,
    validate: Callable[[], float] | None, quiet: bool = True, measure: Bounds | None = None,
) -> Trained:
    """Train in place; with `validate`, end with the weights of the best epoch.

    With `ema` it is the weights' average that is validated, measured and left in the method.

    Args:
        method: an nn.Module with `losses` and `optimizers`.
        triplets: the batches.
        feed: their images and texts.
        settings: training settings.
        device: to train on.
        folder: for checkpoints.
        validate: the value to choose by, higher is better, or None for the last epoch.
        quiet: no progress bar.
        measure: logged after every epoch; it has no effect on training and its time is not counted.

    Raises:
        CirbenchError: too few triplets for a batch, or a loss that is not finite.
    """
    if triplets.steps == 0:
        raise CirbenchError(
            f"the train split has {len(triplets.split.queries)} triplets, fewer than one batch of "
            f"{triplets.batch_size}. Lower --set train.batch_size."
        )
    if not isinstance(method, nn.Module):
        raise MethodError(
            method.losses, "a method with `losses` must be a torch.nn.Module, since its weights are saved; this one is "
            f"a {type(method).__name__}."
        )
    if settings.amp == "fp16" and device.type != "cuda":
        raise CirbenchError("train.amp=fp16 needs a CUDA device. Use train.amp=bf16 or off.")
    keep_freed_memory()
    optimizers = optimizers_of(method)
    base = {name: [group["lr"] for group in opt.param_groups] for name, opt in optimizers.items()}
    scaler = torch.amp.GradScaler(device.type, enabled=settings.amp == "fp16")
    # A method's `start_epoch` may freeze weights; which of them are trained is counted as the method was built.
    trainable = {p: p.requires_grad for p in method.parameters()}
    every = [p for o in optimizers.values() for group in o.param_groups for p in group["params"]]
    average = Average(method, every, settings.ema, settings.ema_warmup) if settings.ema else None
    checkpoint, out, readings = Checkpoint(folder / "checkpoint.pt"), Trained(), Readings(method, device)
    best_state: dict[str, Any] | None = None
    start_epoch = start_step = 0
    if (kept := checkpoint.load({"ema": dict} if average is not None else {})) is not None:
        method.load_state_dict(kept["method"])
        for name, optimizer in optimizers.items():
            optimizer.load_state_dict(kept["optimizers"][name])
        scaler.load_state_dict(kept["scaler"])
        if average is not None:
            average.load(kept["ema"])
        set_random_state(kept["random"], device)
        start_epoch, start_step = kept["epoch"], kept["step"]
        out = Trained(
            list(kept["log"]), kept["best_epoch"], kept["best"], kept["seconds"], kept["cpu"],
            kept.get("validation", 0.0),
        )
        best_state = kept["best_state"]
    began, saved, before = time.perf_counter(), time.perf_counter(), out.seconds
    ticks, used = time.process_time(), out.cpu

    def save(epoch: int, step: int) -> None:
        nonlocal saved
        readings.read()
        checkpoint.save({
            "method": to_cpu(method.state_dict()), "optimizers": {n: o.state_dict() for n, o in optimizers.items()},
            "scaler": scaler.state_dict(), "random": random_state(device), "epoch": epoch, "step": step,
            "log": out.log, "best_epoch": out.epoch, "best": out.best, "best_state": best_state,
            "seconds": before + time.perf_counter() - began, "cpu": used + time.process_time() - ticks,
            "validation": out.validation, "ema": average.state() if average is not None else None,
        })
        saved = time.perf_counter()

    total = settings.epochs * triplets.steps
    bar = tqdm(
        total=total, initial=start_epoch * triplets.steps + start_step, desc="training", unit="step", disable=quiet,
        leave=False,
    )
    for epoch in range(start_epoch, settings.epochs):
        method.train()
        own_factor = epoch_factor(method, epoch, triplets.seed, device)
        batches = triplets.epoch(epoch, feed, start_step)
        for step, batch in enumerate(ahead(batches) if feed.slow else batches, start_step):
            tick = time.perf_counter()
            factor = own_factor * learning_rate(settings, epoch * triplets.steps + step, total, triplets.steps)
            for name, optimizer in optimizers.items():
                for group, rate in zip(optimizer.param_groups, base[name], strict=True):
                    group["lr"] = rate * factor
            place = f"epoch {epoch}, step {step}"
            steps = take_step(method, batch, optimizers, device, settings, scaler, place, readings.at_once)
            if average is not None:
                average.update()
            out.log.append({
                "step": epoch * triplets.steps + step, "epoch": epoch, "losses": {},
                "seconds": time.perf_counter() - tick,
            })
            readings.add(out.log[-1], steps, place)
            bar.update()
            if time.perf_counter() - saved >= settings.seconds_between_checkpoints and step + 1 < triplets.steps:
                save(epoch, step + 1)
        readings.read()
        start_step = 0
        # The time of measurements beside training is not counted.
        tick, aside = time.perf_counter(), time.process_time()
        with evaluated(average):
            if measure is not None:
                out.log.append({"epoch": epoch, "bound": measure(), "pairs": len(measure.words)})
            evaluating, value = time.perf_counter(), math.nan
            if validate is not None and ((epoch + 1) % settings.eval_every == 0 or epoch + 1 == settings.epochs):
                value = validate()
                out.validation += time.perf_counter() - evaluating
                out.log.append({"epoch": epoch, "select": value})
            began += time.perf_counter() - tick
            ticks += time.process_time() - aside
            if not math.isnan(value):
                if out.best is None or value > out.best:
                    out.best, out.epoch, best_state = value, epoch + 1, to_cpu(method.state_dict())
            elif validate is None:
                out.epoch = epoch + 1
        if time.perf_counter() - saved >= settings.seconds_between_checkpoints or epoch + 1 == settings.epochs:
            save(epoch + 1, 0)
    bar.close()
    for parameter, trains in trainable.items():
        parameter.requires_grad = trains
    if best_state is not None:
        method.load_state_dict(best_state)
    elif average is not None:
        average.keep()
    if wrong := next((n for n, p in method.named_parameters() if p.requires_grad and not p.isfinite().all()), None):
        raise CirbenchError(
            f"training diverged in its last step: the weights {wrong!r} are not finite. Lower the learning rate, add "
            "train.warmup or train.clip_norm, or turn train.amp off."
        )
    method.eval()
    out.seconds, out.cpu = before + time.perf_counter() - began, used + time.process_time() - ticks
    return out


def optimizers_of(method: Method) -> dict[str, torch.optim.Optimizer]:
    """The optimizers of a method that is trained.

    Raises:
        MethodError: not a dict of optimizers, or one whose weights are not the method's, so that they would be lost.
    """
    found: Any = method.optimizers()
    if not isinstance(found, Mapping):
        raise MethodError(
            method.optimizers, f"`optimizers` returned {type(found).__name__}; it must return a dict, name -> "
            "torch.optim.Optimizer."
        )
    own = {id(p) for p in method.parameters()} if isinstance(method, nn.Module) else set()
    for name, optimizer in found.items():
        if not isinstance(optimizer, torch.optim.Optimizer):
            raise MethodError(
                method.optimizers, f"`optimizers` holds {type(optimizer).__name__} under {name!r}; it must be a "
                "torch.optim.Optimizer."
            )
        foreign = [tuple(p.shape) for g in optimizer.param_groups for p in g["params"] if id(p) not in own]
        if foreign:
            raise MethodError(
                method.optimizers, f"the optimizer {name!r} has {len(foreign)} weights that are not parameters of the "
                f"method (the first has shape {foreign[0]}), so they would not be saved. Make them part of the method."
            )
    return dict(found)


def take_step(
    method: Method, batch: TrainBatch, optimizers: Mapping[str, torch.optim.Optimizer], device: torch.device,
    settings: TrainSettings, scaler: torch.amp.GradScaler | None = None, place: str = "the first step",
    at_once: bool = True,
) -> list[tuple[str, torch.Tensor, Mapping[str, Any]]]:
    """One training step: every loss that the method yields is stepped before the next is asked for.

    Args:
        method: with `losses`.
        batch: B triplets.
        optimizers: of the method, by the names that `losses` yields.
        device: of the step.
        settings: for mixed precision and clipping.
        scaler: of fp16, or None.
        place: where in training this is, for messages.
        at_once: read each loss before its step, and refuse one that is not finite; else `readings.Readings` does it.

    Returns:
        (optimizer name, loss before its step, logs) in the order yielded; numbers may lie on the device.

    Raises:
        CirbenchError: a loss that is not a finite scalar with a gradient, or an unknown optimizer name.
    """
    out: list[tuple[str, torch.Tensor, Mapping[str, Any]]] = []
    dtype = torch.bfloat16 if settings.amp == "bf16" else torch.float16
    with process.unchanged(method.losses, f" at {place}"), torch.autocast(device.type, dtype, settings.amp != "off"):
        steps = method.losses(batch)
        if not isinstance(steps, Iterable) or isinstance(steps, torch.Tensor | str | Mapping):
            raise MethodError(
                method.losses, f"`losses` returned {type(steps).__name__} at {place}; it must yield (optimizer name, "
                "loss, logs)."
            )
        for step in steps:
            if not isinstance(step, tuple) or len(step) != 3:
                raise MethodError(
                    method.losses, f"`losses` yielded {str(step)[:80]!r} at {place}; it must yield (optimizer name, "
                    "loss, logs)."
                )
            name, loss, logs = step
            if not isinstance(name, str) or name not in optimizers:
                told = unknown("optimizer", str(name)[:80], optimizers, f"`losses` yields it at {place}.")
                raise MethodError(method.losses, str(told))
            if not isinstance(loss, torch.Tensor) or loss.ndim or not loss.requires_grad:
                received = f"{loss!r}"
                if isinstance(loss, torch.Tensor):
                    received = f"a tensor of shape {tuple(loss.shape)}"
                    received += "" if loss.requires_grad else " without a gradient"
                raise MethodError(
                    method.losses, f"the loss of {name!r} at {place} is {received}; `losses` must yield a scalar "
                    "tensor with a gradient."
                )
            logs = checked_logs(method, name, logs, place, at_once)
            if at_once and not torch.isfinite(loss):
                refuse(method, name, loss.item(), place)
            with torch.autocast(device.type, enabled=False):
                _apply(optimizers[name], loss, scaler, settings.clip_norm)
            # Stepped weights must not be read from autocast's cache of cast weights.
            torch.clear_autocast_cache()
            out.append((name, loss.detach(), logs))
    if optimizers and not out:  # a variant without weights has neither
        raise MethodError(method.losses, f"`losses` yielded nothing at {place}, so nothing is trained.")
    if scaler is not None and scaler.is_enabled():
        scaler.update()
    return out


def _apply(
    optimizer: torch.optim.Optimizer, loss: torch.Tensor, scaler: torch.amp.GradScaler | None, clip: float
) -> None:
    """Step one optimizer by the gradient of one loss."""
    optimizer.zero_grad(set_to_none=True)
    scaled = loss if scaler is None else scaler.scale(loss)
    scaled.backward()
    if clip:
        if scaler is not None:
            scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_([p for g in optimizer.param_groups for p in g["params"]], clip)
    if scaler is None:
        optimizer.step()
    else:
        scaler.step(optimizer)
