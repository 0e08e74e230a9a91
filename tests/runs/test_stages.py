"""Two stages by one command: the first run is made, found again, and counts by its weights."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tiny
from commands import exit_code

from cirbench.runs import contract, estimate, planning, stages
from cirbench.runs.evaluate_run import evaluate_run, plan_eval
from cirbench.runs.record import Record
from cirbench.runs.store import find_records
from cirbench.types import CirbenchError
from reports.collect import identity

SMALL = {"data__report_scenes": 8, "method__projection": 16, "method__hidden": 16}


def two(out: Path, seed: int = 0, **over: object) -> Record:
    return tiny.run("combiner", out, "two-stage", seed, method__clip="after:sum clip4cir-1", **{**SMALL, **over})


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first stage with few steps: its own settings are those of its variant on `scenes`."""
    plan = planning.plan

    def quick(method: str, *rest: object, **named: object) -> planning.Plan:
        if method == "sum":
            named["over"] = {**named.get("over", {}), "train.epochs": 1, "train.batch_size": 32}  # type: ignore[dict-item]
        return plan(method, *rest, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(stages.planning, "plan", quick)


def test_one_command_does_both_stages_and_equals_the_two(tmp_path: Path) -> None:
    out = tmp_path / "runs"
    record = two(out)
    folders = sorted(p.name for p in out.iterdir())
    assert len(folders) == 2 and folders[1].startswith("scenes-sum-clip4cir-1-s0-")
    first = Record(out / folders[1])
    assert first.data["inputs"]["data"] == record.data["inputs"]["data"]
    assert record.data["inputs"]["stages"] == {"clip": "after:sum clip4cir-1"}
    by_hand = tiny.run("combiner", out, method__clip=f"run:{out / folders[1]}", **SMALL)
    assert by_hand.id == record.id and by_hand.folder == record.folder
    before = first.folder.joinpath("record.json").stat().st_mtime_ns
    assert two(out).id == record.id and first.folder.joinpath("record.json").stat().st_mtime_ns == before
    # The stage is what it says: trained weights, not those that the CLIP ships with.
    (base,), (trained,) = ([sha for name, sha in r.data["loaded"].items()] for r in (tiny.run("combiner", out, **SMALL), record))
    assert base != trained


def test_seeds_are_one_setting(tmp_path: Path) -> None:
    a, b = two(tmp_path / "runs"), two(tmp_path / "runs", 1)
    assert len(list(find_records([tmp_path / "runs"]))) == 4
    assert a.data["inputs"]["config"]["clip"] != b.data["inputs"]["config"]["clip"]
    assert identity(a.run.inputs) == identity(b.run.inputs)
    other = tiny.run("combiner", tmp_path / "runs", method__clip=a.data["inputs"]["config"]["clip"], seed=1, **SMALL)
    assert identity(other.run.inputs) != identity(b.run.inputs), "by hand it is another setting"
    planned, run = plan_eval(a.folder, sets=["data.report_scenes=4"])
    assert evaluate_run(planned, run, tmp_path / "evals", "cpu", True, "").data["inputs"]["stages"] == {"clip": "after:sum clip4cir-1"}


def test_estimate_counts_both_stages_and_trains_none(tmp_path: Path) -> None:
    planned = tiny.plan("combiner", "two-stage", method__clip="after:sum clip4cir-1", **SMALL)
    whole, alone = estimate.estimate(planned, "cpu", 1), estimate.estimate(tiny.plan("combiner", **SMALL), "cpu", 1)
    assert whole.before_seconds > 0 == alone.before_seconds and whole.parameters == alone.parameters
    assert whole.seconds > whole.before_seconds


def test_the_contract_takes_the_clip_that_the_first_stage_starts_from() -> None:
    subject = contract.Subject("combiner", "two-stage", over={"method.clip": "after:sum clip4cir-1"})
    assert subject.planned.config.clip == "scenes-small"  # type: ignore[attr-defined]


@pytest.mark.parametrize(("clip", "message"), [
    ("after:", "names no method. Write after:METHOD"),
    ("after:summ clip4cir-1", "unknown method 'summ'. Did you mean 'sum'"),
    ("after:sum clip4cir", "method.clip = 'after:sum clip4cir': unknown variant of sum 'clip4cir'. Did you mean 'clip4cir-1'"),
    ("after:sum", "trains no CLIP (freeze_clip is true)"),
    ("after:slerp", "trains no CLIP (freeze_clip is true)"),
    ("after:pic2word", "trains no CLIP (pic2word has no field `freeze_clip`)"),
    ("after:random", "trains no CLIP (random has no field `clip`)"),
])
def test_a_first_stage_that_cannot_be(
    clip: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert exit_code("run", "-m", "combiner", "-d", "scenes", "--set", f"method.clip={json.dumps(clip)}") == 2
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error and not (tmp_path / "runs").exists()


def test_a_stage_after_itself_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "loop.py"
    text = (Path(stages.__file__).parents[2] / "methods/_template.py").read_text()
    path.write_text(text.replace('"narrow": {', '"loop": {"clip": "after:./loop.py loop"},\n    "narrow": {'))
    planned = planning.plan(str(path), "scenes", "loop", over={**tiny.DATA, "method.clip": f"after:{path} loop"})
    with pytest.raises(CirbenchError, match="trains no CLIP"):
        stages.first_stages(planned)


def test_the_contract_resolves_the_first_stage_of_every_variant(tmp_path: Path) -> None:
    path = tmp_path / "typo.py"
    text = (Path(stages.__file__).parents[2] / "methods/_template.py").read_text()
    path.write_text(text.replace('"narrow": {', '"second": {"clip": "after:sum clip4cir-2"},\n    "narrow": {'))
    with pytest.raises(CirbenchError, match=r"method\.clip = 'after:sum clip4cir-2': unknown variant"):
        contract.variants_are_valid(contract.Subject(str(path)))


def test_the_contract_takes_what_a_field_says_is_enough(tmp_path: Path) -> None:
    path = tmp_path / "slow.py"
    text = (Path(stages.__file__).parents[2] / "methods/_template.py").read_text()
    field = 'steps: int = Field(500, description="n", json_schema_extra={"check": 3})\n    lr: float = Field('
    path.write_text(text.replace("lr: float = Field(", field, 1))
    assert contract.Subject(str(path)).planned.config.steps == 3  # type: ignore[attr-defined]
    assert planning.plan(str(path), "scenes").config.steps == 500  # type: ignore[attr-defined]
