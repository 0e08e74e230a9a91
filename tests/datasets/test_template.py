"""The dataset file in docs/add-a-dataset.md, as printed there, goes through check, run and score."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from make_standins import jpeg
from small_data import write

from cirbench.cli import main

SMALL = [x for s in ("method.streams=cnn", "method.cnn=scenes-cnn", "method.cnn_size=48", "method.cnn_dim=16",
                     "method.word_dim=8", "train.epochs=1", "train.batch_size=4") for x in ("--set", s)]
PAGE = Path(__file__).parents[2] / "docs" / "add-a-dataset.md"


@pytest.fixture
def birds(tmp_path: Path) -> tuple[Path, Path]:
    """The printed file, and data for it."""
    match = re.search(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.S)
    assert match is not None
    write(tmp_path / "birds.py", match[1])
    root = tmp_path / "data"
    write(root / "train.json", [{"from": f"t{n}", "text": f"more {n}", "to": f"t{n + 1}"} for n in range(0, 40, 2)])
    write(root / "test.json", [{"from": "a", "text": "redder", "to": "b"}, {"from": "b", "text": "bluer", "to": "c"}])
    (root / "images").mkdir()
    for name in [*"abc", *(f"t{n}" for n in range(41))]:
        (root / f"images/{name}.jpg").write_bytes(jpeg(name))
    return tmp_path / "birds.py", root


def test_the_printed_dataset_is_checked_run_and_scored(
    birds: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, root = map(str, birds)
    main(["data", "check", file, "--root", root, "--json"])
    checked = json.loads(capsys.readouterr().out)
    assert checked["ok"] and checked["splits"]["select"]["queries"] == 2
    main(["run", "--method", "random", "--dataset", file, "--root", root, "--out", str(tmp_path / "runs"), "--json",
          "--export-embeddings"])
    ran = json.loads(capsys.readouterr().out)
    assert ran["protocols"]["birds"]["queries"] == 2 and ran["protocols"]["birds"]["gallery"] == 3
    main(["score", "--dataset", file, "--root", root, "--embeddings", str(Path(ran["folder"]) / "embeddings.npz"),
          "--json"])
    scored = json.loads(capsys.readouterr().out)
    assert scored["protocols"]["birds"]["metrics"] == ran["protocols"]["birds"]["metrics"]


def test_a_run_on_a_loose_dataset_finds_it_again(
    birds: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    file, root = birds
    runs = str(tmp_path / "runs")
    main(["run", "-m", "dwc", "-d", str(file), "--root", str(root), "--out", runs, "--explain", "2", "--json",
          *SMALL, "--set", "data.select_share=0.2"])
    ran = json.loads(capsys.readouterr().out)
    assert ran["dataset_path"] == str(file.resolve()) and (Path(ran["folder"]) / "explain.json").is_file()
    monkeypatch.chdir(root)  # wherever it is asked
    for more in ([], ["-d", str(file)]):
        main(["eval", ran["folder"], "--root", str(root), "--out", runs, "--json", *more])
        again = json.loads(capsys.readouterr().out)
        assert again["protocols"] == ran["protocols"] and again["inputs"]["data"] == ran["inputs"]["data"]


def test_its_errors_name_file_and_entry(birds: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    file, root = birds
    write(root / "test.json", [{"from": "a", "txt": "redder", "to": "b"}])
    with pytest.raises(SystemExit) as stop:
        main(["data", "check", str(file), "--root", str(root)])
    said = capsys.readouterr().err
    assert stop.value.code == 2 and "test.json, entry 0" in said and "Did you mean 'txt'" in said
