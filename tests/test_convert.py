"""The authors' checkpoints: what is mapped, what is refused, and that the result computes what the release computes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import released_dwc as released
import torch
from safetensors import safe_open

from cirbench import plugins
from cirbench.cli import main
from cirbench.encoders import build_vocabulary
from cirbench.types import TrainView

TEXTS = ["same shoe but red", "a much higher heel and no strap at all", "red"]
QUERIES = ["red heel", "a much higher strap, unknownword", "same"]


def call(*arguments: str) -> int:
    try:
        main(list(arguments))
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Path]]:
    folder = tmp_path_factory.mktemp("released")
    paths = {n: folder / f for n, f in (
        ("clip", "all_global_checkpoint.pth"), ("cnn", "all_local_checkpoint.pth"), ("texts", "texts.json"))}
    torch.save(released.clip_checkpoint(1024), paths["clip"])
    torch.save(released.cnn_checkpoint(len(build_vocabulary(TEXTS))), paths["cnn"])
    paths["texts"].write_text(json.dumps(TEXTS))
    yield paths
    for path in paths.values():
        path.unlink()


class Width:
    """A CLIP of which only the width matters."""

    dim = 1024


class Here:
    """Encoders without CLIP's weights."""

    def __init__(self) -> None:
        from cirbench.encoders import Encoders

        self.real = Encoders()

    def clip(self, *_: Any) -> Width:
        return Width()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.real, name)


def test_converted_weights_compute_what_the_release_computes(
    files: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Real shapes, both streams: composed query, target and modality weight to 1e-5."""
    out = tmp_path / "dwc"
    arguments = [f"--{name}={path}" for name, path in files.items()]
    assert call("convert-dwc", *arguments, "-o", str(out), "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert {n.split(": ")[1].split(".")[0] for n in told["unused"]} == {
        "loss_weight", "combine", "fc_ret", "fc_rei", "txt_model"
    }
    assert told["config"]["clip"] == "RN50-quickgelu:openai" and not told["config"]["padding_mask"]
    with safe_open(out / "model.safetensors", "pt") as file:
        state = json.loads(file.metadata()["extra_state"])
        tensors = {k: file.get_tensor(k) for k in file.keys()}
    assert sum(t.numel() for t in tensors.values()) > 70e6 and len(tensors) == told["used"]
    found = plugins.find_method("dwc")
    method = found.load().build(found.config(**told["config"]), Here(), TrainView([], 0), state)
    method.load_state_dict(tensors)
    method.eval()
    g = torch.Generator().manual_seed(5)
    clip_in = [torch.randn(3, 1024, generator=g) for _ in range(3)]
    pictures = [torch.randn(3, 3, 96, 96, generator=g) for _ in range(2)]
    vocabulary = build_vocabulary(TEXTS)
    assert state["vocabulary"] == vocabulary
    ids = [[vocabulary.index(w) if w in vocabulary else 0 for w in text.replace(",", "").split()] for text in QUERIES]
    with torch.inference_mode():
        double = {k: v.double() for k, v in torch.load(files["clip"], weights_only=True)["model_state_dict"].items()}
        q, t, w = released.clip_stream(double, *(x.double() for x in clip_in))
        found_q, found_w = method.clip.query(clip_in[0], clip_in[1])
        assert _far(found_q, q) < 1e-5 and _far(found_w, w) < 1e-5
        assert _far(method.clip.target(clip_in[2]), t) < 1e-5
        state = torch.load(files["cnn"], weights_only=True)["model_state_dict"]
        double = {k: v.double() if v.is_floating_point() else v for k, v in state.items()}
        q, t, w = released.cnn_stream(double, pictures[0].double(), ids, pictures[1].double())
        maps = [method.cnn.cnn(x) for x in pictures]
        found_q, found_w = method.cnn.query(maps[0], QUERIES)
        assert _far(found_q, q) < 1e-5 and _far(found_w, w) < 1e-5
        assert _far(method.cnn.target(maps[1]), t) < 1e-5
        # The comparison sees what it should see: other texts and pictures are far away.
        assert _far(method.cnn.query(maps[1], QUERIES)[0], q) > 1e-3
        assert _far(method.cnn.query(maps[0], QUERIES[::-1])[0], q) > 1e-3


def _far(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a.double() - b.double()).abs().max())


def test_converted_folder_is_evaluated(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One stream over a CLIP of ours, from file to recall."""
    path, out = tmp_path / "all_global_checkpoint.pth", tmp_path / "dwc"
    torch.save(released.clip_checkpoint(128), path)
    assert call("convert-dwc", "--clip", str(path), "--backbone", "scenes-small", "-o", str(out)) == 0
    assert "loss_weight" in capsys.readouterr().out
    small = [f"--set=data.{k}={n}" for k, n in (("train_scenes", 48), ("select_scenes", 8), ("report_scenes", 12),
                                                ("distractors", 12))]
    assert call("eval", str(out), "--dataset", "scenes", "--out", str(tmp_path / "runs"), "--quiet",
                "--device", "cpu", *small) == 0
    (folder,) = (tmp_path / "runs").iterdir()
    record = json.loads((folder / "record.json").read_text())
    assert record["inputs"]["config"]["clip"] == "scenes-small" and record["selection"]["rule"] == "released"
    assert any("converted" in note for note in record["notes"])
    assert 0 <= next(iter(record["protocols"].values()))["metrics"]["R@1"] <= 100
    assert call("eval", str(out), "--out", str(tmp_path / "runs")) == 2
    assert "--dataset" in capsys.readouterr().err


def test_width_that_does_not_tell_the_clip(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "g.pth"
    torch.save(released.clip_checkpoint(512), path)
    assert call("convert-dwc", "--clip", str(path), "-o", str(tmp_path / "o")) == 2
    assert "ViT-B-32" in capsys.readouterr().err and not (tmp_path / "o").exists()


class Code:
    """Runs when it is unpickled."""

    def __reduce__(self) -> Any:
        return (print, ("ran",))


@pytest.mark.parametrize(("change", "said"), [
    (lambda s: s.update(extra=torch.zeros(1)), "extra"),
    (lambda s: s.pop("atten_T.3.bias"), "gate_text.3.bias"),
    (lambda s: s.update({"atten_T.3.bias": torch.zeros(7)}), "(7,)"),
    (lambda s: s.update(code=Code()), "holds code"),
], ids=["unexpected", "missing", "shape", "code"])
def test_what_is_not_the_release_is_refused(
    change: Any, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = released.clip_checkpoint(1024)
    change(checkpoint["model_state_dict"])
    torch.save(checkpoint, tmp_path / "g.pth")
    assert call("convert-dwc", "--clip", str(tmp_path / "g.pth"), "-o", str(tmp_path / "o")) == 2
    told = capsys.readouterr()
    assert said in told.err and "ran" not in told.out and not (tmp_path / "o").exists()


def test_texts_must_be_those_of_the_vocabulary(
    files: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "t.json").write_text(json.dumps(TEXTS[:1]))
    base = ["convert-dwc", "--cnn", str(files["cnn"]), "-o", str(tmp_path / "o")]
    assert call(*base) == 2 and "--texts" in capsys.readouterr().err
    assert call(*base, "--texts", str(tmp_path / "t.json")) == 2
    assert "vocabulary of 8" in capsys.readouterr().err
    assert call("convert-dwc", "--clip", str(files["cnn"]), "-o", str(tmp_path / "o")) == 2
    assert "swapped" in capsys.readouterr().err
