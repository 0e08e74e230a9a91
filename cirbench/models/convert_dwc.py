"""The authors' DWC checkpoints as a folder that `cirbench eval` runs.

Names and shapes of the released files are listed in docs/dwc.md. Every tensor is either used, or known to be unused, or
refused; loading never runs code. Their inception blocks have four branches; ours computes the four 1x1 convolutions
as one (layers.py), so the branches' weights are concatenated.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from cirbench import json_text, plugins
from cirbench.data.file_hashes import file_sha256
from cirbench.data.reading import read_json
from cirbench.files import dumps, replacing
from cirbench.models.lstm_text import build_vocabulary
from cirbench.seeds import digest
from cirbench.settings import resolve
from cirbench.types import CirbenchError

#: The file by which `cirbench eval` recognises a folder of converted weights.
MARK = "converted.json"

#: Released name (up to the first dot that differs) -> ours. Order does not matter.
CLIP_NAMES = {
    "img_fc.0": "clip.img_fc.0", "txt_fc.0": "clip.txt_fc.0",
    "atten_I.0": "clip.gate_image.0", "atten_I.3": "clip.gate_image.3",
    "atten_T.0": "clip.gate_text.0", "atten_T.3": "clip.gate_text.3",
    "dynamic_scalar.0": "clip.combine.weight.0", "dynamic_scalar.3": "clip.combine.weight.3",
}
CNN_NAMES = {
    "img_pool": "cnn.pool_target", "pool_i": "cnn.pool_image", "pool_t": "cnn.pool_text",
    "img_fc": "cnn.img_fc", "fc_txt": "cnn.txt_fc",
    "txt_model.embedding_layer": "cnn.text.embedding_layer", "txt_model.lstm": "cnn.text.lstm",
    "dynamic_scalar.0": "cnn.combine.weight.0", "dynamic_scalar.3": "cnn.combine.weight.3",
}
INCEPTIONS = {
    "imgconv.0": "cnn.to_words", "imgatt.0": "cnn.mask_image", "txtatt.0": "cnn.mask_text",
    "txt2img.0": "cnn.words_to_image", "img2txt.0": "cnn.image_to_words",
}
#: Later convolutions of a branch, and the batch normalisation after each.
LATER = {
    "branch1.2": ("second", "norm_second"), "branch2.2": ("third_a", "norm_third_a"),
    "branch2.4": ("third_b", "norm_third_b"),
}
FIRST = ("branch0", "branch1.0", "branch2.0", "branch3.1")
NORM = ("weight", "bias", "running_mean", "running_var")
#: Parts that the release allocates but uses in no loss and no embedding.
UNUSED = {
    "clip": {"loss_weight": "a constant that no loss reads"},
    "cnn": {
        "loss_weight": "a constant that no loss reads", "combine.": "a combiner that is never called",
        "fc_ret.": "a layer that is never called", "fc_rei.": "a layer that is never called",
        "txt_model.fc_output.": "makes a sentence vector that no embedding uses",
    },
}
#: CLIPs that DWC was reported with, by the width of their joint space where that identifies them.
BY_WIDTH = {1024: "RN50-quickgelu:openai", 640: "RN50x4-quickgelu:openai"}
AMBIGUOUS = {
    512: "RN101-quickgelu:openai, ViT-B-32-quickgelu:openai or ViT-B-16-quickgelu:openai",
    768: "RN50x16-quickgelu:openai or ViT-L-14-quickgelu:openai",
}


@dataclass
class Converted:
    """Result of a conversion: the number of tensors `used`, and the `unused` ones with the reason."""

    folder: Path
    used: int
    unused: dict[str, str]
    config: dict[str, Any]


def read_checkpoint(path: Path) -> dict[str, Tensor]:
    """The tensors of a released file.

    Raises:
        CirbenchError: another kind of file, or one that would run code.
    """
    if not path.is_file():
        raise CirbenchError(f"{path}: no such file. The released files are all_{{global,local}}_checkpoint.pth.")
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise CirbenchError(
            f"{path} cannot be read as plain tensors ({type(error).__name__}): it is damaged, or it holds code, "
            "which is never executed."
        ) from None
    state = found.get("model_state_dict") if isinstance(found, dict) else None
    if not isinstance(state, dict) or not state or not all(
        isinstance(k, str) and isinstance(v, Tensor) for k, v in state.items()
    ):
        raise CirbenchError(f"{path} holds no `model_state_dict` of tensors, which released checkpoints have.")
    for name, value in state.items():
        if value.layout != torch.strided or value.is_quantized or value.is_complex() or _repeats(value):
            raise CirbenchError(f"{path}: {name} is no plain tensor of numbers, so the checkpoint cannot be used.")
        if value.is_floating_point() and not bool(torch.isfinite(value.float()).all()):
            raise CirbenchError(f"{path}: {name} holds NaN or infinite values, so the checkpoint cannot be used.")
    # Saved from several GPUs every name begins with `module.`, from a compiled model with `_orig_mod.`.
    out = {_bare(k): v for k, v in state.items()}
    if len(out) != len(state):
        raise CirbenchError(f"{path} holds a tensor both with and without the prefix of a wrapper (module.).")
    return out


def _repeats(value: Tensor) -> bool:
    """Whether a tensor has more values than the file: a repeated one may be of any size."""
    return value.numel() * value.element_size() > value.untyped_storage().nbytes()


def _bare(name: str) -> str:
    """A tensor's name without the prefixes of wrappers."""
    while name.startswith(("module.", "_orig_mod.")):
        name = name.partition(".")[2]
    return name


def unused(stream: str, name: str) -> str:
    """Why a released tensor is not needed, or ""."""
    return next((why for known, why in UNUSED[stream].items()
                 if name == known or (known.endswith(".") and name.startswith(known))), "")


def _inception(theirs: str, ours: str, state: dict[str, Tensor], out: dict[str, Tensor]) -> None:
    """Convert one block: first convolutions are concatenated, and the statistics of the first three."""
    out[f"{ours}.reduce.weight"] = torch.cat([state.pop(f"{theirs}.{b}.conv.weight") for b in FIRST])
    for part in NORM:
        out[f"{ours}.norm.{part}"] = torch.cat([state.pop(f"{theirs}.{b}.bn.{part}") for b in FIRST[:3]])
    norms = {"norm_pooled": FIRST[3]}
    for branch, (conv, norm) in LATER.items():
        out[f"{ours}.{conv}.weight"] = state.pop(f"{theirs}.{branch}.conv.weight")
        norms[norm] = branch
    for norm, branch in norms.items():
        for part in NORM:
            out[f"{ours}.{norm}.{part}"] = state.pop(f"{theirs}.{branch}.bn.{part}")
    # Batch counters, which evaluation never reads.
    for branch in (*FIRST, *LATER):
        count = state.pop(f"{theirs}.{branch}.bn.num_batches_tracked", torch.tensor(0))
        norm = {"branch3.1": "norm_pooled", **{b: n for b, (_, n) in LATER.items()}}.get(branch, "norm")
        out[f"{ours}.{norm}.num_batches_tracked"] = count


def rename(stream: str, checkpoint: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Our names for one stream's tensors, and the unused ones with the reason.

    Raises:
        CirbenchError: a missing or an unexpected tensor.
    """
    state, out, left = dict(checkpoint), dict[str, Tensor](), dict[str, str]()
    for name in list(state):
        if why := unused(stream, name):
            left[name] = why
            del state[name]
    if stream == "cnn":
        for theirs, ours in INCEPTIONS.items():
            try:
                _inception(theirs, ours, state, out)
            except KeyError as error:
                raise CirbenchError(f"the CNN checkpoint lacks {error.args[0]}; nothing was written.") from None
            except RuntimeError as error:
                raise CirbenchError(
                    f"the branches of {theirs} in the CNN checkpoint do not fit together ({error}). Nothing was "
                    "written."
                ) from None
    names = CLIP_NAMES if stream == "clip" else CNN_NAMES
    for name in list(state):
        block, _, leaf = name.rpartition(".")
        if block in names:
            out[f"{names[block]}.{leaf}"] = state.pop(name)
        elif stream == "cnn" and name.startswith("img_model."):
            # torchvision and timm give a ResNet-50 the same names.
            out["cnn.cnn.body." + name.removeprefix("img_model.")] = state.pop(name)
    if state:
        raise CirbenchError(
            f"the {'CLIP' if stream == 'clip' else 'CNN'} checkpoint holds tensors that the DWC release does not: "
            f"{', '.join(sorted(state)[:8])}{' ...' if len(state) > 8 else ''}. Are the two files swapped?"
        )
    return out, left


def _check(tensors: dict[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """Compare names and shapes with the method's own."""
    for name in expected:  # a counter that an old torch did not save
        if name.endswith("num_batches_tracked") and name not in tensors:
            tensors[name] = torch.tensor(0)
    missing, surplus = sorted(set(expected) - set(tensors)), sorted(set(tensors) - set(expected))
    if missing or surplus:
        raise CirbenchError(
            f"the checkpoints do not form a complete DWC: missing {missing[:6] or 'none'}, unexpected "
            f"{surplus[:6] or 'none'}. Nothing was written."
        )
    for name, wanted in expected.items():
        if tensors[name].shape != wanted.shape:
            raise CirbenchError(
                f"{name}: shape {tuple(tensors[name].shape)}, expected {tuple(wanted.shape)}. Nothing was written."
            )


def read_texts(path: Path) -> list[str]:
    """The training texts, in order.

    Raises:
        CirbenchError: not a JSON list of strings.
    """
    texts = read_json(path)
    if not isinstance(texts, list) or not all(isinstance(t, str) for t in texts):
        raise CirbenchError(f"--texts {path} is not a JSON list of strings, the training texts in order.")
    return texts


def _config(parts: Mapping[str, dict[str, Tensor]], backbone: str) -> dict[str, Any]:
    """Fields that follow from the shapes, over `as-released`."""
    found = plugins.find_method("dwc")
    fields = {k: v for k, v in found.variants["as-released"].items() if "." not in k}
    fields["streams"] = "both" if len(parts) == 2 else next(iter(parts))
    if "clip" in parts:
        clip_dim, width = _matrix(parts["clip"], "clip.img_fc.0.weight")
        if not backbone and width not in BY_WIDTH:
            raise CirbenchError(
                f"the CLIP stream reads features {width} wide; name their CLIP with --backbone"
                + (f": {AMBIGUOUS[width]}." if width in AMBIGUOUS else ".")
            )
        fields |= {"clip": backbone or BY_WIDTH[width], "clip_dim": clip_dim}
    if "cnn" in parts:
        # The weights are in the checkpoint, so none are fetched.
        fields |= {
            "cnn": "resnet50.tv_in1k", "cnn_pretrained": False,
            "cnn_dim": _matrix(parts["cnn"], "cnn.img_fc.weight")[0],
            "word_dim": _matrix(parts["cnn"], "cnn.text.embedding_layer.weight")[1],
        }
    return resolve(found.config, "method", fields).model_dump()


def _matrix(tensors: Mapping[str, Tensor], name: str) -> tuple[int, int]:
    """Rows and columns of a weight.

    Raises:
        CirbenchError: there is none, or it is no matrix.
    """
    shape = tuple(tensors[name].shape) if name in tensors else None
    if shape is None or len(shape) != 2:
        what = "is missing" if shape is None else f"has shape {shape}, not (rows, columns)"
        raise CirbenchError(f"the checkpoint is not one of the DWC release: {name} {what}. Nothing was written.")
    return shape


class _Width:
    """Stands for CLIP where only its width is needed."""

    def __init__(self, dim: int) -> None:
        self.dim = dim


def convert(clip: Path | None, cnn: Path | None, texts: Path | None, out: Path, backbone: str = "") -> Converted:
    """Write a folder that `cirbench eval` runs.

    Args:
        clip: the CLIP stream's checkpoint, or None to convert only the CNN stream.
        cnn: the CNN stream's, or None to convert only the CLIP stream.
        texts: JSON list of the training texts in order: word ids depend on it. Needed with `cnn`.
        out: folder to write; must be empty.
        backbone: the CLIP whose features the first stream reads; "" where their width identifies it.

    Raises:
        CirbenchError: files that do not match the release.
    """
    if clip is None and cnn is None:
        raise CirbenchError("nothing to convert. Give --clip, --cnn, or both.")
    if out.exists() and any(out.iterdir()):
        raise CirbenchError(f"--out {out} is not empty and was not changed. Name a new folder.")
    parts, left = dict[str, dict[str, Tensor]](), dict[str, str]()
    for stream, path in (("clip", clip), ("cnn", cnn)):
        if path is not None:
            parts[stream], skipped = rename(stream, read_checkpoint(path))
            left |= {f"{stream}: {name}": why for name, why in skipped.items()}
    tensors = {k: v for part in parts.values() for k, v in part.items()}
    state: dict[str, Any] = {}
    if cnn is not None:
        if texts is None:
            raise CirbenchError("--cnn needs --texts, the training texts in order: word ids depend on it.")
        state["vocabulary"] = build_vocabulary(read_texts(texts))
        rows = _matrix(parts["cnn"], "cnn.text.embedding_layer.weight")[0]
        if rows != len(state["vocabulary"]):
            raise CirbenchError(
                f"the checkpoint has {rows} word embeddings, but the texts in {texts} give a vocabulary "
                f"of {len(state['vocabulary'])}. Give all texts that it was trained on."
            )
    config = _config(parts, backbone)
    width = _matrix(parts["clip"], "clip.img_fc.0.weight")[1] if "clip" in parts else None
    _check(tensors, _shapes(config, width, state))
    ready = {k: (v.float() if v.is_floating_point() else v).contiguous() for k, v in tensors.items()}
    sources = {name: file_sha256(path) for name, path in (("clip", clip), ("cnn", cnn), ("texts", texts)) if path}
    inputs = {
        "method": "dwc", "config": config, "train": {}, "seed": 0, "dataset": "", "data": {}, "converted": sources
    }
    described = {
        "schema": 1, "id": digest(inputs), "name": out.resolve().name, "inputs": inputs, "variant": "as-released",
        "selection": {"rule": "released", "epoch": None, "metric": None, "value": None}, "unused": left,
    }
    with replacing(out / MARK) as mark, replacing(out / "model.safetensors") as weights:
        weights.write(save(ready, {"extra_state": json.dumps(state)}))
        mark.write((dumps(described, indent=1) + "\n").encode())
    return Converted(out, len(tensors), left, config)


def _build(config: Mapping[str, Any], width: int | None, state: Mapping[str, Any]) -> Any:
    """A DWC of these settings without CLIP itself, of which only `width` is needed; None without its stream."""
    from cirbench.models.encoders import Encoders

    found = plugins.find_method("dwc")
    module, encoders = found.load(), Encoders()
    fields: Any = resolve(found.config, "method", config)
    if (width is None) != (fields.streams == "cnn"):
        raise CirbenchError(f"the settings say streams={fields.streams}, and the tensors are of other streams.")
    cnn = words = None
    if fields.streams != "clip":
        cnn = encoders.cnn(fields.cnn, fields.cnn_size, False, fields.cnn_statistics)
        known = state.get("vocabulary")
        if not isinstance(known, list) or not all(isinstance(word, str) for word in known):
            raise CirbenchError("the weights hold no vocabulary of the CNN stream. Convert the checkpoints again.")
        words = encoders.lstm(known, fields.word_dim, fields.cnn_dim)
    return module.Dwc(fields, None if width is None else _Width(width), cnn, words)


def _shapes(config: Mapping[str, Any], width: int | None, state: Mapping[str, Any]) -> Mapping[str, Tensor]:
    """The tensors that a DWC of these settings has, without their values: a damaged file may ask for any size."""
    with torch.device("meta"):
        expected: Mapping[str, Tensor] = _build(config, width, state).state_dict()
    return expected


def load(folder: Path | str) -> Any:
    """The `Dwc` of a converted folder, in evaluation mode, without CLIP: its stream takes CLIP features as input.

    Raises:
        CirbenchError: not such a folder.
    """
    mark, weights = Path(folder) / MARK, Path(folder) / "model.safetensors"
    try:
        config = dict(json_text.parse(mark.read_text(encoding="utf-8"))["inputs"]["config"])
        with safe_open(weights, "pt") as file:
            state = dict(json_text.parse(file.metadata()["extra_state"]))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # not a mapping
    except Exception as error:
        raise CirbenchError(f"{folder} is not a complete folder of `cirbench convert-dwc`: {error}.") from None
    width = _matrix(tensors, "clip.img_fc.0.weight")[1] if "clip.img_fc.0.weight" in tensors else None
    _check(tensors, _shapes(config, width, state))
    method = _build(config, width, state)
    method.load_state_dict(tensors)
    return method.eval()
