"""The cost of a method: parameters, FLOPs, latency, memory; and the machine it was measured on."""

from __future__ import annotations

import contextlib
import os
import platform
import subprocess
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from cirbench.data.batches import Feed
from cirbench.runs.building import frozen
from cirbench.scoring.adapting import Adapt
from cirbench.scoring.ranking import View, dot, rank
from cirbench.types import Frozen, Method, QueryBatch

PACKAGES = ("torch", "open_clip_torch", "timm", "numpy", "pillow", "optuna", "pandas", "scipy")


def parameters(method: Method) -> dict[str, int]:
    """Trainable parameters, and all of them, the frozen encoders behind cached features included."""
    own = list(method.parameters()) if isinstance(method, torch.nn.Module) else []
    trainable = sum(p.numel() for p in own if p.requires_grad)
    fixed = {id(i.encoder): i.encoder for i in frozen(method.inputs)}
    return {
        "trainable": trainable,
        "total": sum(p.numel() for p in own) + sum(p.numel() for e in fixed.values() for p in e.parameters()),
    }


def flops(method: Method, feed: Feed, image_id: str, text: str) -> dict[str, int]:
    """Floating-point operations of one query and of one gallery image, frozen encoders included."""

    def image_encoders() -> None:
        for wanted in method.inputs.images.values():
            if isinstance(wanted, Frozen):
                side = wanted.encoder.pixels.size
                wanted.encoder.encode_images(torch.zeros(1, 3, side, side, device=feed.device))

    with torch.inference_mode():
        with FlopCounterMode(display=False) as query:
            method.encode_queries(feed.queries([image_id], [text]))
            image_encoders()
            for wanted in method.inputs.texts.values():
                wanted.encoder.encode_texts([text])
        with FlopCounterMode(display=False) as image:
            method.encode_images(feed.images([image_id]))
            image_encoders()
    return {"query": int(query.get_total_flops()), "image": int(image.get_total_flops())}


def latency(
    method: Method, feed: Feed, image_id: str, text: str, gallery: Tensor, repeats: int = 20
) -> dict[str, float]:
    """Milliseconds from one query's pixels and text to its ranking: median and 95th percentile.

    Frozen encoders run as well, as they would for a new query; decoding the picture is left out.
    """
    view = View([np.array([0])], np.array([-1]))
    times = []
    pictures = {
        n: torch.zeros(1, 3, i.encoder.pixels.size, i.encoder.pixels.size, device=feed.device)
        for n, i in method.inputs.images.items() if isinstance(i, Frozen)
    }
    kept = feed.queries([image_id], [text])
    adapt: Adapt | None = getattr(method, "adapt", None)
    with torch.inference_mode():
        for _ in range(repeats):
            start = time.perf_counter()
            batch = QueryBatch(dict(kept.reference), dict(kept.text), kept.words)
            for name, wanted in method.inputs.images.items():
                if isinstance(wanted, Frozen):
                    batch.reference[name] = wanted.encoder.encode_images(pictures[name]).float()
            for name, wanted in method.inputs.texts.items():
                batch.text[name] = wanted.encoder.encode_texts([text]).float()
            encoded = method.encode_queries(batch).float()
            encoded = adapt(encoded, gallery) if adapt is not None else encoded
            rank(encoded, gallery, [view], getattr(method, "score", dot))
            if feed.device.type == "cuda":
                torch.cuda.synchronize(feed.device)
            times.append(1000 * (time.perf_counter() - start))
    p50, p95 = np.percentile(times[2:], [50, 95])
    return {"p50": float(p50), "p95": float(p95)}


def peak_memory_mb(device: torch.device) -> float:
    """Peak memory so far: of the GPU if one was used, else of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    with contextlib.suppress(OSError, StopIteration):
        # Before getrusage, whose peak starts at that of the parent process.
        status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines()
        return int(next(line for line in status if line.startswith("VmHWM:")).split()[1]) / 2**10
    try:
        import resource
    except ImportError:  # Windows
        return psutil.Process().memory_info().peak_wset / 2**20
    # Linux counts in KiB, macOS in bytes.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**10 if sys.platform != "darwin" else 2**20)


def commit() -> str:
    """Commit of the checkout cirbench runs from, with `+` where it was changed; "" for an installed wheel."""
    folder = Path(__file__).parent
    try:
        head = subprocess.run(
            ["git", "-C", str(folder), "rev-parse", "HEAD"], capture_output=True, text=True, timeout=5, check=True
        ).stdout.strip()
        changed = subprocess.run(
            ["git", "-C", str(folder), "status", "--porcelain", "--untracked-files=no"],
            capture_output=True, text=True, timeout=5, check=True,
        ).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""
    return head + ("+" if changed else "")


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text(errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def environment(device: torch.device) -> dict[str, Any]:
    """Versions, commit and hardware; nothing that names a person or a host."""
    import cirbench

    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
    return {
        "cirbench": cirbench.__version__, "python": platform.python_version(), **found, "commit": commit(),
        "machine": {
            "system": f"{platform.system()} {platform.machine()}", "processor": _processor(),
            "instructions": torch.backends.cpu.get_cpu_capability(), "cores": os.cpu_count(),
            "memory_gb": round(psutil.virtual_memory().total / 2**30, 1), "gpu": gpu,
        },
        "threads": torch.get_num_threads(), "device": str(device),
    }
