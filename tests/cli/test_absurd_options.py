"""Numbers and paths that nobody means, for every option of every command, those of later commands too."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import click
import pytest
import tiny
from commands import exit_code

from cirbench.cli import cli

#: Options that a command needs besides, so that it gets as far as the value.
NEEDED = {
    "run": ["-m", "random", "-d", "cirr"], "check": ["random"], "sweep": ["lambda"], "reproduce": ["dwc", "-d", "fashioniq"],
    "new-method": ["an-idea"], "convert-dwc": ["--out", "converted"], "score": ["-d", "scenes"],
    "pretrain clip": ["--dataset", "scenes", "--out", "clip"], "pretrain cnn": ["--dataset", "scenes", "--out", "cnn"],
    "data get": ["cirr", "--root", "data"], "data check": ["cirr"], "data ids": ["cirr"], "eval": ["run"],
    "explain": ["run"], "show": ["run", "query"], "submit": ["run"], "compare": ["a", "b"],
}
NUMBERS = ["-1", "-7.5", "nan", "inf", "-inf", "1e400", "1" + "0" * 30, "9" * 5000, "-" + "9" * 5000, "0x10", "", " ", "one", "½"]
PATHS = ["", "  ", "a\0b", "\udcff/x", "x" * 5000]


def commands(group: click.Group, above: str = "") -> Iterator[tuple[str, click.Command]]:
    """Every command by its words."""
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        if isinstance(command, click.Group):
            yield from commands(command, f"{above}{name} ")
        else:
            yield f"{above}{name}", command


COMMANDS = dict(commands(cli))


def values(param: click.Parameter) -> list[str]:
    """What is absurd for a parameter."""
    kind = param.type.name
    if kind.startswith(("integer", "float")):
        bounds = [f"{end}" for end in (getattr(param.type, "min", None),) if end == 0 and param.type.min_open]  # type: ignore[attr-defined]
        return [*NUMBERS, *bounds]
    return PATHS if isinstance(param.type, click.Path) else []


CASES = [(name, param) for name, command in COMMANDS.items() for param in command.params if values(param)]


@pytest.mark.parametrize(("name", "param"), CASES, ids=[f"{n} {p.name}" for n, p in CASES])
def test_absurd_values_are_refused(
    name: str, param: click.Parameter, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for value in values(param):
        given = NEEDED.get(name, [])
        if isinstance(param, click.Option):
            option = max(param.opts, key=len)
            rest = [a for n, a in enumerate(given) if a not in param.opts and (n == 0 or given[n - 1] not in param.opts)]
            words = [*name.split(), *rest, f"{option}={value}"]
        else:
            words = [*name.split(), "--", value, *(given[1:] if name in ("show", "compare") else [])]
        code = exit_code(*words)
        said = capsys.readouterr().err
        assert code == 2, (value[:40], code, said[-500:])
        assert "Traceback" not in said and 0 < len(said) < 4000, said[:4000]
    assert not [p for p in tmp_path.rglob("*") if p.is_file()]


def test_every_kind_of_option_is_there() -> None:
    assert len(CASES) > 45 and {"pretrain clip", "sweep", "report", "data get"} <= {name for name, _ in CASES}
    assert all(any(p.name == "debug" for p in command.params) for command in COMMANDS.values())


@pytest.mark.parametrize("device", ["cuda:99", "cuda:-1", "mps", "nonsense", "", " ", "meta", "cuda:9" + "9" * 30, "xpu", "cpu:x"])
def test_devices_that_are_not_there(device: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    commands = [["run", "-m", "random", "-d", "scenes"]]
    if device == "cuda:99":
        commands += [["sweep", "lambda"], ["sweep", "lambda", "--dry-run"]]
    for words in commands:
        assert exit_code(*words, "--device", device, "--out", str(tmp_path / "runs")) == 2
        said = capsys.readouterr().err
        assert "--device" in said and "Traceback" not in said, said
    assert not list((tmp_path).rglob("*.json*"))


DEEP = "[" * 100_000
FIELDS = [
    ("train.epochs", "9" * 5000, "too many digits"), ("train.epochs", "-" + "9" * 5000, "too many digits"),
    ("train.epochs", DEEP, "nested"), ("train.form", DEEP, "nested"), ("method.clip", '{"a":' * 100_000, "nested"),
    ("train.epochs", "1" + "0" * 4000, "train.epochs"), ("train.epochs", "1e400", "inf"), ("train.epochs", "null", "train.epochs"),
    ("train.epochs", "[1]", "train.epochs"), ("train.epochs", "true", "train.epochs = true"), ("train.epochs", '"1.5"', "1.5"),
    ("train.warmup", str(10**8), "too large"), ("train.decay_every", str(10**30), "too large"), ("train.epochs", "1e300", "train.epochs"),
    ("data.train_scenes", str(10**12), "too large"), ("data.distractors", str(10**12), "too large"),
    ("data.data_seed", str(2**63), "too large"), ("data.data_seed", "-1", "data_seed"), ("data.side", str(10**9), "side"),
    ("method.word_dim", str(10**9), "too large"), ("method.clip_dim", str(10**12), "too large"), ("method.clip_lr", "nan", "clip_lr"),
    ("method.clip_lr", "-Infinity", "clip_lr"), ("method.temperature", "0", "temperature"), ("method.streams", "true", "streams"),
    ("method.clip", "a\0b", "zero character"), ("method.clip", "\udcff", "not valid"), ("train.", "1", "names no scope"),
    (" ", "1", "scope.field=value"), ("method.clip", "", "clip"), ("train.batch_size", "1", "batch_size"),
]


@pytest.mark.parametrize(("field", "value", "named"), FIELDS, ids=[f"{f}={v[:12]!r}" for f, v, _ in FIELDS])
def test_absurd_fields_are_refused(
    field: str, value: str, named: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert exit_code("run", "-m", "dwc", "-d", "scenes", "--out", str(tmp_path / "runs"), "--set", f"{field}={value}") == 2
    said = capsys.readouterr().err
    assert named in said and "Traceback" not in said and len(said) < 3000, said[:3000]
    assert not (tmp_path / "runs").exists()


def _numpy() -> None:
    import numpy as np

    np.empty(10**15)


def _torch(*shape: int) -> None:
    import torch

    torch.empty(*shape)


@pytest.mark.parametrize("allocate", [_numpy, lambda: _torch(10**15), lambda: _torch(10**12, 10**12)], ids=["numpy", "torch", "overflow"])
def test_a_size_that_cannot_be_allocated_is_one_message(
    allocate: Callable[[], None], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from cirbench.runs import execution

    monkeypatch.setattr(execution, "build", lambda *_, **__: allocate())
    assert exit_code("run", "-m", "random", "-d", "scenes", "--out", str(tmp_path / "runs"), "--quiet",
                     *[a for k, v in tiny.DATA.items() for a in ("--set", f"{k}={v}")]) == 2
    said = capsys.readouterr().err
    assert "does not fit into memory" in said and "Traceback" not in said and len(said.splitlines()) == 1, said
    assert not list(tmp_path.rglob("record.json"))


SWEEPS = [
    ("timeout = nan", "timeout"), ("timeout = inf", "timeout"), ("timeout = -1", "timeout"), ("timeout = true", "timeout"),
    (f"trials = {10**30}", "trials"), ("trials = 0", "trials"), (f"seeds = [{2**70}]", "seeds"), ("seeds = [-1]", "seeds"),
    ("seeds = [true]", "seeds"), (f"trials = {'9' * 5000}", "not valid TOML"), (f"seeds = {DEEP}", "deeply|not valid TOML"),
    (f"retries = {10**9}", "retries"), ("name = ''", "name"), ("name = ' '", "name"),
]


@pytest.mark.parametrize(("line", "named"), SWEEPS, ids=[line[:16] for line, _ in SWEEPS])
def test_absurd_sweep_files_are_refused(
    line: str, named: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "it.toml").write_text(f"{line}\ndataset = 'scenes'\n[[arms]]\nmethod = 'random'\n")
    assert exit_code("sweep", str(tmp_path / "it.toml"), "--out", str(tmp_path / "runs")) == 2
    said = capsys.readouterr().err
    assert any(part in said for part in named.split("|")) and "Traceback" not in said and len(said) < 3000, said[:3000]
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("space", ["{low = nan, high = 1.0}", "{low = 0.1, high = inf}", f"{{low = 0, high = 1{'0' * 400}}}", "[nan]", "[]"])
def test_absurd_ranges_are_refused(space: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "it.toml").write_text(
        f"sampler = 'random'\ntrials = 2\n[[arms]]\nmethod = 'sum'\n[arms.space]\n'method.temperature' = {space}\n"
    )
    assert exit_code("sweep", str(tmp_path / "it.toml"), "--out", str(tmp_path / "runs")) == 2
    said = capsys.readouterr().err
    assert "temperature" in said and "Traceback" not in said, said
