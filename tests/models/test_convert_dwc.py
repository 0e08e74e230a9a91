"""The authors' checkpoints: what is mapped, what is refused, and that the result computes what the release computes."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import released_dwc as released
import torch
from commands import exit_code

from cirbench.models import convert_dwc
from cirbench.models.lstm_text import build_vocabulary
from cirbench.runs.record import Record
from cirbench.types import CirbenchError

PAGE = Path(__file__).parents[2] / "docs" / "dwc.md"
TEXTS = ["same shoe but red", "a much higher heel and no strap at all", "red"]
QUERIES = ["red heel", "a much higher strap, unknownword", "same"]


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


def test_converted_weights_compute_what_the_release_computes(
    files: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Real shapes, both streams: composed query, target and modality weight to 1e-5."""
    out = tmp_path / "dwc"
    arguments = [f"--{name}={path}" for name, path in files.items()]
    assert exit_code("convert-dwc", *arguments, "-o", str(out), "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert {n.split(": ")[1].split(".")[0] for n in told["unused"]} == {
        "loss_weight", "combine", "fc_ret", "fc_rei", "txt_model"
    }
    assert told["config"]["clip"] == "RN50-quickgelu:openai" and not told["config"]["padding_mask"]
    method = convert_dwc.load(out)
    assert sum(p.numel() for p in method.parameters()) > 70e6 and len(method.state_dict()) == told["used"]
    g = torch.Generator().manual_seed(5)
    clip_in = [torch.randn(3, 1024, generator=g) for _ in range(3)]
    pictures = [torch.randn(3, 3, 96, 96, generator=g) for _ in range(2)]
    vocabulary = build_vocabulary(TEXTS)
    assert method.extra_state() == {"vocabulary": vocabulary}
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


def test_the_printed_lines_call_both_streams(
    files: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """docs/dwc.md, as printed there, on a folder of that name."""
    monkeypatch.chdir(tmp_path)
    assert exit_code("convert-dwc", *[f"--{name}={path}" for name, path in files.items()], "-o", "DIR", "--json") == 0
    match = re.search(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.S)
    assert match is not None
    lines = [line for line in match[1].splitlines() if line]
    assert len(lines) <= 10
    found: dict[str, Any] = {}
    with torch.inference_mode():
        exec(compile(match[1], str(PAGE), "exec"), found)
    for name in ("q", "q_cnn", "t", "t_cnn"):
        assert found[name].shape == (2, 1024) and torch.allclose(found[name].norm(dim=1), torch.ones(2), atol=1e-5)
    for name in ("weight", "weight_cnn"):
        assert found[name].shape == (2, 1) and ((found[name] > 0) & (found[name] < 1)).all()
    assert torch.allclose(found["scores"], (found["q"] @ found["t"].T + found["q_cnn"] @ found["t_cnn"].T) / 2)


def test_a_folder_that_was_not_converted(tmp_path: Path) -> None:
    with pytest.raises(CirbenchError, match="convert-dwc"):
        convert_dwc.load(tmp_path)


def _far(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a.double() - b.double()).abs().max())


def test_converted_folder_is_evaluated(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One stream over a CLIP of ours, from file to recall."""
    path, out = tmp_path / "all_global_checkpoint.pth", tmp_path / "dwc"
    torch.save(released.clip_checkpoint(128), path)
    assert exit_code("convert-dwc", "--clip", str(path), "--backbone", "scenes-small", "-o", str(out)) == 0
    assert "loss_weight" in capsys.readouterr().out
    small = [f"--set=data.{k}={n}" for k, n in (("train_scenes", 48), ("select_scenes", 8), ("report_scenes", 12),
                                                ("distractors", 12))]
    assert exit_code("eval", str(out), "--dataset", "scenes", "--out", str(tmp_path / "runs"), "--quiet",
                "--device", "cpu", *small) == 0
    (folder,) = (tmp_path / "runs").iterdir()
    record = json.loads((folder / "record.json").read_text())
    assert record["inputs"]["config"]["clip"] == "scenes-small" and record["selection"]["rule"] == "released"
    assert any("converted" in note for note in record["notes"])
    assert 0 <= next(iter(record["protocols"].values()))["metrics"]["R@1"] <= 100
    assert exit_code("eval", str(out), "--out", str(tmp_path / "runs")) == 2
    assert "--dataset" in capsys.readouterr().err


@pytest.mark.slow
def test_both_streams_of_real_shapes_are_evaluated(files: dict[str, Path], tmp_path: Path) -> None:
    """From the two files to a record with both streams' weights; CLIP is a random RN50, its weights being elsewhere."""
    out = tmp_path / "dwc"
    arguments = [f"--{name}={path}" for name, path in files.items()]
    assert exit_code("convert-dwc", *arguments, "--backbone", "RN50-quickgelu:random", "-o", str(out)) == 0
    small = [f"--set=data.{k}={n}" for k, n in (("train_scenes", 48), ("select_scenes", 4), ("report_scenes", 4),
                                                ("distractors", 4))]
    assert exit_code("eval", str(out), "--dataset", "scenes", "--out", str(tmp_path / "runs"), "--quiet",
                "--device", "cpu", *small) == 0
    (folder,) = (tmp_path / "runs").iterdir()
    record = Record(folder)
    assert record.data["variant"] == "as-released" and record.data["selection"]["rule"] == "released"
    for stream in ("clip", "cnn"):
        assert len(record.rankings[f"weight/{stream}"]) == len(record.queries) == 16
    assert sum(record.data["cost"]["parameters"].values()) > 70e6


def test_width_that_does_not_tell_the_clip(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "g.pth"
    torch.save(released.clip_checkpoint(512), path)
    assert exit_code("convert-dwc", "--clip", str(path), "-o", str(tmp_path / "o")) == 2
    assert "ViT-B-32" in capsys.readouterr().err and not (tmp_path / "o").exists()


@pytest.mark.parametrize(("change", "said"), [
    (lambda s: s.update({"imgatt.0.branch9.conv.weight": torch.zeros(1)}), "imgatt.0.branch9.conv.weight"),
    (lambda s: s.pop("txt2img.0.branch2.4.bn.running_var"), "txt2img.0.branch2.4.bn.running_var"),
    (lambda s: s.pop("img_model.layer4.2.bn3.weight"), "layer4.2.bn3.weight"),
    (lambda s: s.update({"fc_txt.bias": torch.zeros(3)}), "(3,)"),
], ids=["unexpected", "missing in a block", "missing in the CNN", "shape"])
def test_a_cnn_stream_that_is_not_the_release_is_refused(
    change: Any, said: str, files: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = convert_dwc.read_checkpoint(files["cnn"])
    change(checkpoint)
    monkeypatch.setattr(convert_dwc, "read_checkpoint", lambda _: checkpoint)
    with pytest.raises(CirbenchError) as told:
        convert_dwc.convert(None, files["cnn"], files["texts"], tmp_path / "o")
    assert said in str(told.value) and not (tmp_path / "o").exists()


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
    assert exit_code("convert-dwc", "--clip", str(tmp_path / "g.pth"), "-o", str(tmp_path / "o")) == 2
    told = capsys.readouterr()
    assert said in told.err and "ran" not in told.out and not (tmp_path / "o").exists()


def test_texts_must_be_those_of_the_vocabulary(
    files: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "t.json").write_text(json.dumps(TEXTS[:1]))
    base = ["convert-dwc", "--cnn", str(files["cnn"]), "-o", str(tmp_path / "o")]
    assert exit_code(*base) == 2 and "--texts" in capsys.readouterr().err
    assert exit_code(*base, "--texts", str(tmp_path / "t.json")) == 2
    assert "vocabulary of 8" in capsys.readouterr().err
    assert exit_code("convert-dwc", "--clip", str(files["cnn"]), "-o", str(tmp_path / "o")) == 2
    assert "swapped" in capsys.readouterr().err
