"""Methods that misbehave: one message with file, line and function, exit code 2, no traceback, nothing half-written."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import tiny

from cirbench.cli import main

ROOT = Path(__file__).parents[2]
SMALL = [a for k, v in {**tiny.DATA, "train.batch_size": 32, "method.dim": 8, "method.hidden": 8}.items()
         for a in ("--set", f"{k}={v}")]
QUERIES = "return l2norm(image + self.edit(torch.cat([image, text], 1)))"
IMAGES = 'return l2norm(self.image_fc(l2norm(images["clip"])))'
YIELD = 'yield "all", loss, {"contrastive": loss.item()}'
BUILD = "return Template(config, encoders.clip(config.clip))"

#: What is wrong, the text of the template, what replaces it, what the message says.
BAD = [
    ("rank", QUERIES, "return l2norm(image + text)[:, :, None]", r"encode_queries` returned torch.float32 of shape \(128, 8, 1\)"),
    ("rows", QUERIES, "return l2norm(image + text)[:3]", r"encode_queries` returned .* shape \(3, 8\) for 128 items"),
    ("a list", QUERIES, "return [1.0, 2.0]", r"encode_queries` returned list"),
    ("whole numbers", QUERIES, "return (image + text).long()", r"torch.int64"),
    ("an exception", QUERIES, "raise KeyError('colour')", r"failed in mine.py, line \d+, in encode_queries: KeyError: 'colour'"),
    ("sys.exit", QUERIES, "raise SystemExit(0)", r"in encode_queries: it called sys.exit\(0\)"),
    ("end of file", QUERIES, "raise EOFError", r"in encode_queries: EOFError"),
    ("a wrong key", IMAGES, 'return images["clap"]', r"in encode_images: KeyError: 'clap'"),
    ("an unknown optimizer", YIELD, 'yield "al", loss, {}', r"unknown optimizer 'al'. Did you mean 'all'"),
    ("a float", YIELD, 'yield "all", 1.0, {}', r"the loss of 'all' at .* is 1.0; `losses` must yield a scalar tensor"),
    ("a detached loss", YIELD, 'yield "all", loss.detach(), {}', r"a tensor of shape \(\) without a gradient; `losses` must yield a scalar tensor"),
    ("a vector", YIELD, 'yield "all", loss[None].repeat(2), {}', r"a tensor of shape \(2,\)"),
    ("not a pair", YIELD, 'yield "all"', r"must yield \(optimizer name, loss, logs\)"),
    ("nothing built", BUILD, "return None", r"build returned NoneType, which has no inputs"),
    ("a text as width", BUILD, "return Template(config, config.clip)", r"in __init__: AttributeError"),
]


@pytest.mark.parametrize(("what", "was", "new", "message"), BAD, ids=[b[0] for b in BAD])
def test_a_method_that_misbehaves_is_one_message(
    what: str, was: str, new: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = (ROOT / "methods" / "_template.py").read_text(encoding="utf-8")
    assert was in source, what
    (tmp_path / "mine.py").write_text(source.replace(was, new), encoding="utf-8")
    with pytest.raises(SystemExit) as stop:
        epochs = 0 if "encode_" in message or "int64" in message else 1
        main(["run", "-m", str(tmp_path / "mine.py"), "-d", "scenes", "--out", str(tmp_path / "runs"), "--quiet",
              *SMALL, "--set", f"train.epochs={epochs}"])
    captured = capsys.readouterr()
    assert stop.value.code == 2, captured.err
    assert captured.err.startswith("cirbench: ") and "Traceback" not in captured.err
    assert re.search(message, captured.err), captured.err
    assert not list((tmp_path / "runs").glob("*/record.json"))
    tiny.run("random", tmp_path / "after")  # a later run is not affected


def test_the_traceback_is_there_when_it_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = (ROOT / "methods" / "_template.py").read_text(encoding="utf-8").replace(QUERIES, "raise KeyError('colour')")
    (tmp_path / "mine.py").write_text(source, encoding="utf-8")
    monkeypatch.setenv("CIRBENCH_DEBUG", "1")
    with pytest.raises(KeyError, match="colour"):
        main(["run", "-m", str(tmp_path / "mine.py"), "-d", "scenes", "--out", str(tmp_path / "runs"), "--quiet", *SMALL])


def test_what_a_killed_run_left_goes_with_the_next_look(tmp_path: Path) -> None:
    record = tiny.run("random", tmp_path)
    for name in (".rankings.npz.abc.tmp", "model.tmp", "checkpoint.pt"):
        (record.folder / name).write_bytes(b"half")
    before = sorted(p.name for p in record.folder.iterdir() if "tmp" not in p.name and p.name != "checkpoint.pt")
    assert tiny.run("random", tmp_path).folder == record.folder
    assert sorted(p.name for p in record.folder.iterdir()) == before
