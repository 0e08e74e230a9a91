"""Whatever a text holds and whatever standard output can encode: a command prints it, with a stand-in if need be."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import own_data
import pytest
from commands import exit_code

#: The half of a character is in a record of earlier versions; annotations that hold one are refused today.
TEXT, HALF = "caf\u00e9 \u4e2d", "\ud800"


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A dataset with texts and ids of other scripts, and a run on it with half a character in a text."""
    folder = tmp_path_factory.mktemp("odd")
    root = own_data.folder(folder / "data")
    file = root / "triplets.test.jsonl"
    lines = [json.loads(line) for line in file.open()]
    for n, line in enumerate(lines):
        line |= {"text": TEXT, "group": "g\u4e2d", "id": "plain" if not n else f"q\u4e2d{n}"}
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert exit_code("run", "-m", "random", "-d", "custom", "--root", str(root), "-q", "--out", str(folder / "runs")) == 0
    (run,) = (folder / "runs").iterdir()
    queries = (run / "queries.jsonl").read_text(encoding="utf-8").replace(TEXT, TEXT + HALF)
    (run / "queries.jsonl").write_bytes(queries.encode("utf-8", "surrogatepass"))
    return root, run


@pytest.mark.parametrize("encoding", ["utf-8", "ascii", "latin-1", "cp1252", "utf-16"])
@pytest.mark.parametrize("command", [
    "show {run} plain", "show {run} nobody", "data ids custom --root {root} --split test", "data check custom --root {root}",
    "runs {out}", "table {run}", "run -m random -d custom --root {root} --out {out}",
    "run -m random -d custom --root {root} --out {out} --json", "eval {run} --root {root} --out {out}", "protocols custom --root {root}",
])
def test_every_command_prints_what_it_cannot_encode(
    command: str, encoding: str, places: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    root, run = places
    out, err = (io.TextIOWrapper(io.BytesIO(), encoding=encoding, errors="strict") for _ in range(2))
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", err)
    code = exit_code(*command.format(root=root, run=run, out=run.parent).split())
    for stream in (out, err):
        stream.flush()
    said = (out.buffer.getvalue() + err.buffer.getvalue())  # type: ignore[attr-defined]
    assert code in (0, 2) and b"Traceback" not in said and said
    if command == "show {run} plain":
        # click writes UTF-8 where only ASCII is declared, and a question mark for what that cannot hold.
        shown = said.decode("utf-8" if encoding == "ascii" else encoding)
        assert code == 0 and ("\\ud800" in shown or (encoding == "ascii" and "\u4e2d?" in shown))
