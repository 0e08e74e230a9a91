"""The CLIP that a finished run trained: which CLIP it started from, and where its weights lie in the run's folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from cirbench.models.names import Name, is_file, is_folder, read_json
from cirbench.settings import nearest
from cirbench.types import CirbenchError

__all__ = ["TrainedRun", "trained_run"]


@dataclass(frozen=True)
class TrainedRun:
    """A finished run whose method has a field `clip`.

    Attributes:
        folder: of the run.
        base: name of the CLIP that it started from.
        base_id: hash of the base's content as the record holds it, "" for a published tag.
        size: input side that the run set (`clip_size`), or None.
        resize: how the run made pictures square (`clip_resize`), or None for the CLIP's own way.
    """

    folder: Path
    base: str
    base_id: str
    size: int | None
    resize: str | None

    @property
    def weights(self) -> Path:
        """The weights of the whole method, the CLIP's among them."""
        return self.folder / "model.safetensors"

    @property
    def files(self) -> list[Path]:
        """The record, and the weights as the last one."""
        return [self.folder / "record.json", self.weights]


def trained_run(name: Name) -> TrainedRun:
    """The run behind `run:FOLDER`.

    Raises:
        CirbenchError: no finished run there, or its method uses no CLIP.
    """
    folder = name.path
    if not name.rest or not is_file(folder / "record.json"):
        raise CirbenchError(f"{name.text}: {_absent(folder, name.rest)}")
    record = read_json(folder / "record.json")
    inputs = record.get("inputs")
    config = inputs.get("config") if isinstance(inputs, dict) else None
    clip = config.get("clip") if isinstance(config, dict) else None
    if not isinstance(inputs, dict) or not isinstance(config, dict) or not isinstance(clip, str):
        raise CirbenchError(f"{name.text}: the method of this run has no field `clip`, so it trained no CLIP.")
    if clip == name.text:
        raise CirbenchError(f"{name.text}: its record.json is damaged: this run started from itself.")
    if not (folder / "model.safetensors").is_file():
        raise CirbenchError(
            f"{name.text}: model.safetensors is missing, so the CLIP that this run trained is lost. Repeat its command "
            "with --force."
        )
    weights, size, resize = inputs.get("weights"), config.get("clip_size"), config.get("clip_resize")
    base_id = weights.get(clip, "") if isinstance(weights, dict) else ""
    return TrainedRun(
        folder, clip, str(base_id), size if isinstance(size, int) else None,
        resize if isinstance(resize, str) else None,
    )


def _absent(folder: Path, written: str) -> str:
    if not written:
        return "it names no folder. Write run:runs/NAME; `cirbench runs` lists the finished ones."
    if is_folder(folder):
        below = sorted(p.parent.name for p in folder.glob("*/record.json"))
        if below:
            return f"this folder holds {len(below)} runs. Name one of them, such as run:{folder / below[0]}."
        return "this folder holds no finished run (no record.json). If it was interrupted, repeat its command."
    near = folder.parent
    guess = nearest(folder.name, [p.parent.name for p in near.glob("*/record.json")]) if is_folder(near) else ""
    mean = f" Did you mean run:{near / guess}?" if guess else ""
    return f"there is no folder {written!r}.{mean} `cirbench runs` lists the finished ones."
