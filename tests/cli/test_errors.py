"""Bad input: one message that names the value and what to do, exit code 2, no traceback, nothing left behind."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import tiny

from cirbench.cli import main
from cirbench.files import write_json
from cirbench.types import CirbenchError


def fails(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The message of a command that must fail."""
    with pytest.raises(SystemExit) as stopped:
        main(list(arguments))
    captured = capsys.readouterr()
    assert stopped.value.code == 2, captured.err
    assert "Traceback" not in captured.err
    assert len(captured.err.strip().splitlines()) <= 6, captured.err
    return captured.err


RUN = ["run", "-m", "dwc", "-d", "scenes"]
#: (what goes wrong, arguments, what the message must name)
CASES = [
    ("unknown command", ["rnu"], ["'rnu'", "'run'"]),
    ("unknown method", ["run", "-m", "dcw", "-d", "scenes"], ["'dcw'", "'dwc'", "text-only"]),
    ("unknown dataset", ["run", "-m", "dwc", "-d", "scnes"], ["'scnes'", "'scenes'"]),
    ("unknown variant", [*RUN, "--variant", "no-edm"], ["'no-edm'", "'no-emd'"]),
    ("misspelt field", [*RUN, "--set", "method.temprature=1"], ["temprature", "'temperature'"]),
    ("misspelt knob", [*RUN, "--set", "data.noise_rat=1"], ["noise_rat", "'noise_rate'"]),
    ("misspelt training field", [*RUN, "--set", "train.epoch=1"], ["'epoch'", "'epochs'"]),
    ("unknown scope", [*RUN, "--set", "model.x=1"], ["'model'", "method"]),
    ("no scope", [*RUN, "--set", "epochs=1"], ["epochs", "train.epochs"]),
    ("no value", [*RUN, "--set", "train.epochs"], ["train.epochs", "scope.field=value"]),
    ("set twice", [*RUN, "--set", "train.epochs=1", "--set", "train.epochs=2"], ["train.epochs twice", "1 and 2"]),
    ("ill-typed value", [*RUN, "--set", "train.epochs=many"], ["train.epochs", "'many'", "integer"]),
    ("fraction for a whole number", [*RUN, "--set", "train.batch_size=3.5"], ["3.5", "batch_size"]),
    ("negative value", [*RUN, "--set", "train.epochs=-1"], ["-1", "greater than or equal to 0"]),
    ("zero temperature", [*RUN, "--set", "method.temperature=0"], ["method.temperature = 0", "greater than 0"]),
    ("not a number", [*RUN, "--set", "method.clip_lr=NaN"], ["clip_lr", "nan"]),
    ("infinite", [*RUN, "--set", "method.clip_lr=Infinity"], ["clip_lr", "inf"]),
    ("out of range", [*RUN, "--set", "method.soft_label_weight=1.5"], ["1.5", "less than or equal to 1"]),
    ("not a choice", [*RUN, "--set", "method.streams=bth"], ["'bth'", "'both'", "'clip'"]),
    ("not a schedule", [*RUN, "--set", "train.schedule=cos"], ["'cos'", "cosine"]),
    ("not a multiple", [*RUN, "--set", "method.cnn_dim=100"], ["100", "multiple of 8"]),
    ("inconsistent knobs", [*RUN, "--set", "data.noise_rate=0.5"], ["noise_rate", "noise_kind"]),
    ("negative seed", [*RUN, "--seed", "-1"], ["-1"]),
    ("seeds not numbers", [*RUN, "--seeds", "0,one"], ["'0,one'", "0,1,2"]),
    ("seed twice", [*RUN, "--seeds", "1,1"], ["twice"]),
    ("seed and seeds", [*RUN, "--seed", "1", "--seeds", "1,2"], ["exclude each other"]),
    ("device that is none", [*RUN, "--device", "gpu"], ["'gpu'", "cuda"]),
    ("device absent", [*RUN, "--device", "cuda:7"], ["cuda:7", "cpu"]),
    ("missing plugin", ["run", "-m", "./nowhere.py", "-d", "scenes"], ["./nowhere.py", "new-method"]),
    ("backbone unknown", [*RUN, "--backbone", "RN50x3:openai"], ["'RN50x3'", "RN50x4"]),
    ("weights tag unknown", [*RUN, "--backbone", "RN50-quickgelu:opnai"], ["'opnai'", "'openai'"]),
    ("backbone without weights", [*RUN, "--backbone", "RN50-quickgelu"], ["RN50-quickgelu:", "openai"]),
    ("backbone without use", ["run", "-m", "random", "-d", "scenes", "--backbone", "x"], ["uses no CLIP"]),
    ("data not given", ["run", "-m", "dwc", "-d", "fashion200k"], ["--root", "data check fashion200k"]),
    ("CNN unknown", [*RUN, "--set", "method.cnn=resnet5O"], ["'resnet5O'"]),
    ("batch larger than the data", [*RUN, "--set", "train.batch_size=9999"], ["9999", "train.batch_size"]),
    ("fp16 on the CPU", [*RUN, "--set", "train.amp=fp16", "--device", "cpu"], ["fp16", "bf16"]),
    ("runs of a folder that is none", ["runs", "nowhere"], ["nowhere", "--out"]),
    ("evaluate no run", ["eval", "nowhere"], ["nowhere", "record.json"]),
]


@pytest.mark.parametrize(("arguments", "named"), [c[1:] for c in CASES], ids=[c[0] for c in CASES])
def test_bad_input_is_told_in_one_message(
    arguments: list[str], named: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    message = fails(capsys, *arguments)
    for part in named:
        assert part in message, message
    assert not any(p.name == "record.json" for p in tmp_path.rglob("*")), "nothing half-written"


def test_missing_shoes_are_explained(capsys: pytest.CaptureFixture[str]) -> None:
    message = fails(capsys, "run", "--method", "dwc", "--dataset", "shoes")
    for part in ("--root", "relative_captions_shoes.json", "data check shoes"):
        assert part in message


def test_missing_folder_names_the_nearest_that_exists(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    message = fails(capsys, "run", "-m", "sum", "-d", "custom", "--root", str(tmp_path / "a" / "b"))
    assert str(tmp_path / "a" / "b") in message and f"nearest that exists is {tmp_path}" in message


@pytest.mark.parametrize(("text", "named"), [
    ("x = 1", "no class Config"),
    ("from cirbench.settings import Settings\nclass Config(Settings):\n    pass\n", "no function build"),
    ("def build(:\n", "not valid Python"),
    ("import nothing_here\nclass Config(nothing_here.X):\n    pass\ndef build(c): ...\n", "nothing_here"),
], ids=["no config", "no build", "syntax", "import"])
def test_a_path_that_is_no_plugin(text: str, named: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine.py").write_text(text)
    message = fails(capsys, "run", "-m", str(tmp_path / "mine.py"), "-d", "scenes")
    assert named in message and "mine.py" in message


def custom(folder: Path, **files: str) -> Path:
    import PIL.Image

    for n in range(6):
        PIL.Image.new("RGB", (40, 30), (40 * n, 90, 200)).save(folder / f"{n}.jpg")
    rows = "".join(f"{n},{n}.jpg,all,thing {n}\n" for n in range(6))
    (folder / "images.csv").write_text("image_id,path,part,name\n" + rows)
    line = {"reference": "0", "text": "darker", "targets": ["1"]}
    for split in ("train", "val", "test"):
        lines = "".join(json.dumps({"id": f"{split}-{n}", **line}) + "\n" for n in range(4))
        (folder / f"triplets.{split}.jsonl").write_text(lines)
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text)
    return folder


def on_custom(folder: Path, *more: str) -> list[str]:
    return ["run", "-m", "sum", "-d", "custom", "--root", str(folder), "--out", str(folder / "runs"),
            "--backbone", "scenes-small", "--set", "method.streams=clip", "--set", "train.epochs=1",
            "--set", "train.batch_size=2", "--quiet", *more]


@pytest.mark.parametrize(("sets", "pair"), [
    (["data.select=test"], "data.select and data.report are both 'test'"),
    (["data.report=train"], "data.train and data.report are both 'train'"),
    (["data.train=val", "data.select=val"], "data.train and data.select are both 'val'"),
])
def test_roles_of_custom_data_are_different_queries(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], sets: list[str], pair: str
) -> None:
    more = [x for s in [*sets, "train.selection=select"] for x in ("--set", s)]
    message = fails(capsys, *on_custom(custom(tmp_path), *more))
    assert pair in message and "need different queries" in message
    assert not (tmp_path / "runs").exists()


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    message = fails(capsys, "new-method", "my-idea", "--out", str(tmp_path / "file" / "below"))
    assert str(tmp_path / "file" / "below") in message and "Name another place" in message


def test_captions_are_of_the_column_that_is_set(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from cirbench.models.small_clip import load

    rows = "".join(f'{n},{n}.jpg,{"train" if n > 1 else "test"},"red\nthing {n}"\n' for n in range(6))
    custom(tmp_path, images__csv="image_id,path,split,title\n" + rows)
    (tmp_path / "triplets.train.jsonl").write_text('{"id": "a", "reference": "2", "text": "x", "targets": ["3"]}\n')
    (tmp_path / "triplets.val.jsonl").unlink()
    words = ["pretrain", "clip", "--dataset", "custom", "--root", str(tmp_path), "--out", str(tmp_path / "clip"),
             "--steps", "1", "--batch-size", "2", "--side", "24", "-q", "--set", "data.select_share=0"]
    assert "0 captioned training pictures" in fails(capsys, *words)
    main([*words, "--set", "data.caption=title"])
    assert "red" in load(tmp_path / "clip")[1].vocabulary
    scenes = ["pretrain", "clip", "--dataset", "scenes", "--out", str(tmp_path / "no"), "--set", "data.side=96"]
    assert "generates its own pictures" in fails(capsys, *scenes)


def test_explain_refuses_other_pictures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import PIL.Image

    sets = ["method.streams=cnn", "method.cnn=scenes-cnn", "method.cnn_size=48", "method.cnn_dim=16", "method.word_dim=8",
            "train.epochs=1", "train.batch_size=2"]
    main(["run", "-m", "dwc", "-d", "custom", "--root", str(custom(tmp_path)), "--out", str(tmp_path / "runs"), "--quiet",
          *[x for s in sets for x in ("--set", s)]])
    (folder,) = (tmp_path / "runs").iterdir()
    main(["explain", str(folder), "--root", str(tmp_path), "--quiet"])
    (folder / "explain.json").unlink()
    PIL.Image.new("RGB", (64, 64), (1, 2, 3)).save(tmp_path / "3.jpg")
    message = fails(capsys, "explain", str(folder), "--root", str(tmp_path))
    assert "pictures of custom are not those of the run" in message and not (folder / "explain.json").exists()


def test_small_custom_folder_runs(tmp_path: Path) -> None:
    main(on_custom(custom(tmp_path)))
    assert list((tmp_path / "runs").glob("*/record.json"))


@pytest.mark.parametrize(("name", "text", "named"), [
    ("triplets__test__jsonl", "", ["test"]),
    ("triplets__test__jsonl", '{"id": "a", "reference": "0", "text": "x", "targets": ["99"]}\n', ["99"]),
    ("triplets__test__jsonl", '{"id": "a", "reference": "0"', ["triplets.test.jsonl", "1"]),
    ("images__csv", "image_id,file\n0,0.jpg\n", ["images.csv", "path"]),
    ("3__jpg", "<html>not found</html>", ["3.jpg"]),
    ("3__jpg", "", ["3.jpg"]),
], ids=["empty split", "unknown target", "truncated", "no path column", "HTML as JPEG", "zero bytes"])
def test_bad_files_are_named(
    name: str, text: str, named: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    message = fails(capsys, *on_custom(custom(tmp_path, **{name: text})))
    for part in named:
        assert part in message, message
    assert not list(tmp_path.rglob("record.json"))


def test_a_loss_that_explodes_is_told(tmp_path: Path) -> None:
    from cirbench.types import CirbenchError

    with pytest.raises(CirbenchError, match="learning rate"):
        tiny.run("dwc", tmp_path, variant="clip-only", method__clip_lr=1e30, train__epochs=20)


def test_weights_that_do_not_fit_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record = tiny.run("sum", tmp_path, variant="clip-only")
    path = record.folder / "record.json"
    data = json.loads(path.read_text())
    data["inputs"]["config"]["clip_dim"] = 64
    path.write_text(json.dumps(data))
    assert "do not match" in fails(capsys, "eval", str(record.folder), "--out", str(tmp_path), "--quiet")
    (record.folder / "model.safetensors").write_bytes(b"nothing")
    assert "model.safetensors" in fails(capsys, "eval", str(record.folder), "--out", str(tmp_path), "--quiet")
    (record.folder / "model.safetensors").unlink()
    assert "model.safetensors" in fails(capsys, "eval", str(record.folder), "--out", str(tmp_path), "--quiet")


@pytest.mark.parametrize(("arguments", "message"), [
    (["--set", "train.epochs=true"], "train.epochs = true"),
    (["--set", "method.clip_lr=false"], "method.clip_lr = false"),
    (["--set", f"train.epochs={10**30}"], "train.epochs"),
    (["--set", f"train.batch_size={10**12}"], "train.batch_size"),
    (["--seed", str(2**70)], "below 2^63"),
])
def test_numbers_that_nobody_means_are_refused(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["run", "-m", "sum", "-d", "scenes", "--out", str(tmp_path / "runs"), *arguments])
    assert stop.value.code == 2 and message in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_a_sweep_on_a_device_that_is_not_there_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["sweep", "lambda", "--device", "cuda:9", "--out", str(tmp_path / "runs")])
    assert stop.value.code == 2 and "cuda:9" in capsys.readouterr().err
    assert not list((tmp_path / "runs").glob("*/record.json"))


def test_a_device_node_is_not_replaced_by_a_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`-o /dev/full` used to leave a file in the place of the device."""
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(CirbenchError, match="not a regular file"):
        write_json(tmp_path / "pipe", {})
    assert not (tmp_path / "pipe").is_file() and sorted(p.name for p in tmp_path.iterdir()) == ["pipe"]
