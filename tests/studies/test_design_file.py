"""Sweep files: every key is checked before anything runs, in one message that names file and key."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from cirbench import plugins
from cirbench.cli import main
from cirbench.studies import design_file

GOOD = """
question = "?"
dataset = "scenes"
seeds = [0, 1]
[objective]
protocol = "scenes"
metric = "R@5"
[fixed]
"method.streams" = "clip"
[[arms]]
method = "dwc"
[arms.space]
"method.temperature" = [0.05, 0.1]
"method.soft_label_weight" = { low = 0.0, high = 1.0, step = 0.25 }
"""


def write(folder: Path, text: str) -> str:
    path = folder / "mine.toml"
    path.write_text(text)
    return str(path)


def test_a_good_file_is_its_points(tmp_path: Path) -> None:
    sweep = design_file.read(write(tmp_path, GOOD))
    assert sweep.name == "mine" and sweep.total == 10 and sweep.seeds == (0, 1)
    assert [p.values["method.soft_label_weight"] for p in sweep.points()[:5]] == [0.0, 0.25, 0.5, 0.75, 1.0]
    assert len({p.label for p in sweep.points()}) == 10
    planned = sweep.plan(sweep.points()[3], 1)
    assert planned.seed == 1 and planned.config.model_dump()["streams"] == "clip"
    assert planned.config.model_dump()["soft_label_weight"] == 0.75 and planned.config.model_dump()["temperature"] == 0.05


SPACE = '"method.temperature" = [0.05, 0.1]'
STEP = "{ low = 0.0, high = 1.0, step = 0.25 }"
#: (what is wrong, text of GOOD, its replacement, what the message must name beside the file)
BAD = [
    ("not TOML", "seeds = [0, 1]", "seeds = [0, 1", ["TOML"]),
    ("unknown key", "question =", "qestion =", ["qestion", "'question'"]),
    ("unknown key in an arm", 'method = "dwc"', 'metod = "dwc"', ["arms[0].metod", "'method'"]),
    ("unknown key in the objective", "metric =", "metrics =", ["objective.metrics", "'metric'"]),
    ("unknown field", "method.temperature", "method.temprature", ["temprature", "'temperature'", "arms[0]"]),
    ("no variant to join", "[[arms]]", '[variants.all]\njoin = ["ful"]\n[[arms]]', ["variants.all.join", "'ful'"]),
    ("unknown scope", "method.temperature", "model.temperature", ["arms[0].space", "method.FIELD"]),
    ("methods and method", 'method = "dwc"', 'method = "dwc"\nmethods = ["sum"]', ["arms[0].method", "methods"]),
    ("empty methods", 'method = "dwc"', 'methods = []', ["arms[0].methods", "[]"]),
    ("unknown among methods", 'method = "dwc"', 'methods = ["dwc", "trig like-dwc"]', ["arms[0]", "'trig'", "'tirg'"]),
    ("unknown variant in methods", 'method = "dwc"', 'methods = ["dwc no-edm"]', ["arms[0]", "'no-edm'", "'no-emd'"]),
    ("ranges in a grid", GOOD[GOOD.index("[arms.space]"):], 'space = "tune"', ["arms[0].space", "grid"]),
    ("unknown method", 'method = "dwc"', 'method = "dcw"', ["arms[0]", "'dcw'", "'dwc'"]),
    ("unknown dataset", 'dataset = "scenes"', 'dataset = "scnes"', ["dataset", "'scnes'", "'scenes'"]),
    ("unknown variant", 'method = "dwc"', 'method = "dwc"\nvariants = ["no-edm"]', ["'no-edm'", "'no-emd'"]),
    ("unknown protocol", 'protocol = "scenes"', 'protocol = "scene"', ["objective.protocol", "'scenes'"]),
    ("unknown metric", 'metric = "R@5"', 'metric = "R@7"', ["objective.metric", "R@5"]),
    ("unknown sampler", "seeds =", 'sampler = "gird"\nseeds =', ["sampler", "'gird'", "'grid'"]),
    ("unknown pruner", "seeds =", 'pruner = "median"\nseeds =', ["pruner", "'median'", "wilcoxon"]),
    ("objective on report", 'metric = "R@5"', 'metric = "R@5"\nsplit = "report"', ["objective.split", "'report'"]),
    ("empty space", SPACE, '"method.temperature" = []', ["arms[0].space.method.temperature", "empty"]),
    ("empty range", STEP, "{ low = 1.0, high = 0.0, step = 0.1 }", ["soft_label_weight", "empty"]),
    ("no step in a grid", STEP, "{ low = 0.0, high = 1.0 }", ["soft_label_weight", "step"]),
    ("more points than can be listed", STEP, "{ low = 0.0, high = 1.0, step = 1e-12 }", ["arms", "points", "10000"]),
    ("step too long", STEP, "{ low = 0.0, high = 1.0, step = 2.0 }", ["soft_label_weight.step", "2.0"]),
    ("end missing", STEP, "{ low = 0.0, step = 2.0 }", ["soft_label_weight.high"]),
    ("value out of range", SPACE, '"method.temperature" = [0.05, -1]', ["arms[0]", "-1", "greater than 0"]),
    ("range out of range", "high = 1.0", "high = 1.5", ["arms[0]", "1.25", "less than or equal to 1"]),
    ("value of a wrong type", SPACE, '"method.temperature" = [0.05, "warm"]', ["arms[0]", "'warm'", "number"]),
    ("value twice", SPACE, '"method.temperature" = [0.05, 0.05]', ["temperature", "twice"]),
    ("key of a wrong type", "seeds = [0, 1]", 'seeds = "0, 1"', ["seeds", "list"]),
    ("seeds of a wrong type", "seeds = [0, 1]", 'seeds = [0, "1"]', ["seeds", "'1'"]),
    ("duplicate seeds", "seeds = [0, 1]", "seeds = [1, 1]", ["seeds", "twice"]),
    ("points of a wrong type", '[[arms]]', '[[arms]]\npoints = ["bare"]', ["arms[0].points", "'bare'", "table"]),
    ("variants of a wrong type", '[[arms]]', '[[arms]]\nvariants = [1]', ["arms[0].variants", "[1]", "names"]),
    ("no seeds", "seeds = [0, 1]", "seeds = []", ["seeds", "[]"]),
    ("fixed and varied", '"method.streams"', '"method.temperature" = 0.1\n"method.streams"', ["temperature", "fixed"]),
    ("no arms", GOOD[GOOD.index("[[arms]]"):], "", ["arms", "at least one"]),
    ("no trials", "seeds =", 'sampler = "random"\nseeds =', ["trials", "random"]),
    ("zero trials", "seeds =", "trials = 0\nseeds =", ["trials", "0"]),
    ("negative timeout", "seeds =", "timeout = -5\nseeds =", ["timeout", "-5"]),
    ("too many retries", "seeds =", "retries = 99\nseeds =", ["retries", "99"]),
    ("pruned grid", "seeds =", 'pruner = "wilcoxon"\nseeds =', ["pruner", "grid"]),
    ("pruning by one seed", "seeds = [0, 1]", 'sampler = "tpe"\ntrials = 5\npruner = "wilcoxon"\nseeds = [0]',
     ["pruner", "two"]),
    ("no such batch", SPACE, '"train.batch_size" = [1, 8]', ["batch_size", "greater than or equal to 2"]),
    ("inconsistent knobs", SPACE, '"data.noise_rate" = [0.0, 0.4]', ["noise_rate", "noise_kind"]),
    ("a name that is a command", "seeds =", 'name = "status"\nseeds =', ["name", "'status'"]),
    ("the same point twice", '[[arms]]', '[[arms]]\nmethod = "dwc"\nvariants = ["", "clip-only"]\n[[arms]]',
     ["equal settings"]),
]


@pytest.mark.parametrize(("old", "new", "named"), [c[1:] for c in BAD], ids=[c[0] for c in BAD])
def test_bad_files_are_refused_naming_file_and_key(
    old: str, new: str, named: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert old in GOOD, "the case would change nothing"
    path = write(tmp_path, GOOD.replace(old, new, 1))
    with pytest.raises(SystemExit) as stopped:
        main(["sweep", path, "--out", str(tmp_path / "runs")])
    message = capsys.readouterr().err
    assert stopped.value.code == 2 and "Traceback" not in message
    for part in ["mine.toml", *named]:
        assert part in message, message
    assert not (tmp_path / "runs").exists(), "nothing was started"


@pytest.mark.parametrize("part", ["fixed", "space", "note"])
def test_a_variant_of_a_wrong_type_is_refused(part: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path, GOOD + f"\n[variants.full]\n{part} = 3\n")
    with pytest.raises(SystemExit) as stopped:
        main(["sweep", path, "--variant", "full", "--out", str(tmp_path / "runs")])
    message = capsys.readouterr().err
    assert stopped.value.code == 2 and f"mine.toml, key variants.full.{part}: 3" in message, message


@pytest.mark.parametrize(("arguments", "named"), [
    (["lambada"], ["'lambada'", "'lambda'"]),
    (["./nowhere.toml"], ["./nowhere.toml", "lambda"]),
    (["lambda", "--variant", "ful"], ["'ful'", "'full'"]),
    (["lambda", "--seeds", "1,1"], ["twice"]),
    (["lambda", "--set", "method.temprature=1"], ["temprature", "'temperature'"]),
    (["lambda", "--set", "method.soft_label_weight=1"], ["soft_label_weight", "fixed"]),
    (["lambda", "--dataset", "shoes"], ["--root", "shoes"]),
    (["lambda", "ablation"], ["one name"]),
    (["statu", "lambda"], ["`sweep status lambda`"]),
    (["lambda", "--method", "tirg"], ["arms", "--method"]),
    (["tune", "--method", "trig"], ["'trig'", "'tirg'"]),
    (["tune", "--method", "tirg", "--method-variant", "like-dcw"], ["'like-dcw'", "'like-dwc'"]),
    (["tune", "--method", "random"], ["space", "random", "TUNE"]),
    (["temperature", "--method", "random"], ["temperature", "random"]),
    (["status", "lambda"], ["lambda", "cirbench sweep NAME"]),
    (["lambda", "--storage", "nonsense"], ["--storage", "postgresql://"]),
    (["lambda", "--slurm"], ["--slurm", "Slurm"]),
], ids=lambda v: " ".join(v) if v[0][0] not in "'-" else "")
def test_bad_arguments_are_told(
    arguments: list[str], named: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stopped:
        main(["sweep", *arguments])
    message = capsys.readouterr().err
    assert stopped.value.code == 2, message
    for part in named:
        assert part in message, message


def test_the_built_in_tuning_is_for_any_method(tmp_path: Path) -> None:
    def space(*arguments: str, **more: Any) -> set[str]:
        (arm,) = design_file.read("tune", method=arguments[0], method_variant=arguments[1], **more).arms
        return {key.removeprefix("method.") for key in arm.space}

    shared = {"temperature", "clip_lr", "weight_decay", "dropout"}
    assert space("tirg", "like-dwc") == space("combiner", "like-dwc") == space("sum", "") == shared
    assert space("concat", "") == shared | {"fusion_dropout"}
    assert space("dwc", "") == shared | {"soft_label_weight", "soft_label_temperature"}
    assert space("sum", "", variant="full") == shared | {"cnn_lr", "clip_share"}, "both streams have rates and shares"
    assert "soft_label_weight" not in space("dwc", "no-ssg"), "what a variant switches off stays off"
    assert space("sum", "", sets=["method.dropout=0.1"]) == shared - {"dropout"}, "fixed fields are not tuned"
    loose = tmp_path / "mine.py"
    loose.write_text((plugins._folder("cirbench.methods") / "_template.py").read_text())
    assert space(str(loose), "narrow") == {"temperature", "lr"}, "its own TUNE; it has no streams to fix"
    one, two = (design_file.read("tune", method=m, method_variant="like-dwc", trials=16, seeds=[0])
                for m in ("tirg", "combiner"))
    assert one.study() != two.study() and one.study().startswith("tune-tirg-like-dwc-scenes-")
    assert (one.total, one.seeds, one.pruner, one.tuning) == (16, (0,), "none", True)
    planned = one.plan(one.corners()[-1], 0)
    assert (planned.method.name, planned.variant, planned.config.model_dump()["streams"]) == ("tirg", "like-dwc", "clip")
    assert planned.config.model_dump()["optimizer"] == "adam", "the rest of the variant holds"


@pytest.mark.parametrize(("sweep", "method", "variant", "left"), [
    ("batch-size", "sum", "", {"train.batch_size"}), ("noise", "tirg", "like-dwc", {"data.noise_rate"}),
    ("disparity", "combiner", "like-dwc", set()), ("temperature", "concat", "", {"method.temperature", "method.clip_lr"}),
])
def test_what_a_method_has_no_field_for_does_not_vary(sweep: str, method: str, variant: str, left: set[str]) -> None:
    found = design_file.read(sweep, method=method, method_variant=variant)
    assert set(found.arms[0].space) == left and found.points()


@pytest.mark.parametrize("method", [m for m in plugins.method_names() if m != "random"])
def test_ranges_for_tuning_are_within_the_bounds_of_their_fields(method: str) -> None:
    for variant in ("", "full"):
        assert design_file.read("tune", method=method, variant=variant).arms[0].space


def test_a_field_of_one_value_is_not_fixed_for_another_method() -> None:
    for variant in ("", "full"):
        (arm,) = design_file.read("tune", method="cosmo", variant=variant).arms
        assert "method.streams" not in arm.fixed and {"method.cnn_lr", "method.temperature"} <= set(arm.space)
    (arm,) = design_file.read("tune", method="tirg").arms
    assert arm.fixed["method.streams"] == "clip"


def test_lambda_sets_the_learned_weight_beside_constant_ones() -> None:
    points = [p for p in design_file.read("lambda").points() if p.arm == "modality weight"]
    configs = [design_file.read("lambda").plan(p, 0).config.model_dump() for p in points]
    assert [(c["weighting"], c["modality_weight"]) for c in configs] == [
        ("learned", 0.5), *(("constant", w) for w in (0.0, 0.25, 0.5, 0.75, 1.0))]
    assert len({p.label for p in points}) == 6


def test_one_command_compares_every_method_and_every_variant_of_dwc() -> None:
    one, both = design_file.read("methods"), design_file.read("methods", variant="full")
    assert one.seeds == both.seeds == (0, 1, 2, 3, 4)
    # Methods that nothing is trained of have a sweep of their own, with these as floors.
    untrained = {p.method for p in design_file.read("zero-shot").points()} - {p.method for p in one.points()}
    assert untrained == {"slerp", "weicom", "pic2word", "lincir", "searle", "basic"}
    # A method that edits the CNN's map has no CLIP stream.
    assert {p.method for p in one.points()} == set(plugins.method_names()) - untrained - {"cosmo"}
    assert {p.method for p in both.points()} == set(plugins.method_names()) - {"random"} - untrained
    whole = design_file.read("methods", variant="all")
    assert whole.points() == [*one.points(), *both.points()]
    rows = [(p.method, p.variant) for s in (one, both) for p in s.points()]
    assert {variant for method, variant in rows if method == "dwc"} == {"", *plugins.find_method("dwc").variants}
    for point in [*one.points(), *both.points()]:
        streams = one.plan(point, 0).config.model_dump().get("streams", "")
        assert point.label.startswith({"clip": "CLIP", "both": "both", "cnn": "CNN", "": "chance"}[streams]), point


def test_bad_files_are_told_before_torch_is_imported(tmp_path: Path) -> None:
    code = (
        "import sys\nfrom cirbench.cli import main\ntry:\n    main(sys.argv[1:])\nexcept SystemExit as e:\n"
        "    print('CODE', e.code, 'torch' in sys.modules)"
    )
    path = write(tmp_path, GOOD.replace("temperature", "temprature"))
    done = subprocess.run([sys.executable, "-c", code, "sweep", path], capture_output=True, text=True, check=True)
    assert "CODE 2 False" in done.stdout


@pytest.mark.parametrize("name", design_file.sweep_names())
def test_built_in_sweeps_and_their_variants_are_sound(name: str) -> None:
    import tomllib

    text = (plugins._folder("cirbench.sweeps") / f"{name}.toml").read_text()
    for variant in ["", *tomllib.loads(text).get("variants", {})]:
        sweep = design_file.read(name, variant=variant)
        # `rates` is a first look, told as tuning: what it chose is compared by `methods` with five seeds. Nothing in
        # `zero-shot` but chance depends on the seed.
        assert sweep.question and sweep.total >= 4 and len(sweep.seeds) >= (1 if name in ("rates", "zero-shot") else 3)
        assert sweep.objective.metric == "R@1"
    assert design_file.read(name, seeds=[7, 8]).seeds == (7, 8)


def test_all_questions_of_the_suite_are_there() -> None:
    assert set(design_file.sweep_names()) >= {
        "lambda", "ablation", "combiner", "ssg", "backbone", "temperature", "noise", "disparity", "batch-size", "tune",
        "zero-shot",
    }


def test_the_study_is_named_by_its_design(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = design_file.read(write(tmp_path, GOOD)).study()
    assert design_file.read(str(tmp_path / "mine.toml"), trials=3, timeout=9.0).study() == base, "how long, not what"
    assert design_file.read(str(tmp_path / "mine.toml"), seeds=[0]).study() != base
    assert design_file.read(str(tmp_path / "mine.toml"), sets=["train.epochs=1"]).study() != base
    from cirbench.runs import planning

    monkeypatch.setattr(planning, "code", lambda planned: {"harness": "changed"})
    assert design_file.read(str(tmp_path / "mine.toml")).study() != base, "other code, other numbers"
