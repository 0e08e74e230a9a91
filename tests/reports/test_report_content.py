"""What a report concludes: parts against their whole, questions, sweeps, the audit, pointing."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cirbench.reports import analysis, attention, claims, modalities, studies
from cirbench.reports.build import build
from cirbench.reports.collect import TestSet, collect
from cirbench.reports.differences import error_of
from fake_records import write_run

from cirbench.cli.sweep import status as sweep_status
from cirbench.files import write_json
from cirbench.runs.store import Study, find_records, find_studies
from cirbench.types import CirbenchError

OFF = {"method.soft_label_weight": 0.0}
CLIP = {"method.streams": "clip"}


def made(out: Path, *runs: dict[str, Any], seeds: int = 2, **more: Any) -> TestSet:
    for run in runs:
        for seed in range(seeds):
            write_run(out, seed=seed, queries=240, gallery=300, pictures=0, **{**more, **run})
    (test,) = collect(find_records([out]))
    return test


def ask(test: TestSet) -> dict[str, list[claims.Answer]]:
    audit = modalities.audit(test, "scenes", "R@1")
    modality = modalities.modality(test, audit)
    out: dict[str, list[claims.Answer]] = {}
    for answer in claims.answers(test, "scenes", "R@1", modality, audit, attention.attention(test, False)):
        out.setdefault(answer.question, []).append(answer)
    return out


def test_parts_are_taken_from_the_whole_they_differ_least_from(tmp_path: Path) -> None:
    test = made(
        tmp_path, {"skill": 0.6}, {"overrides": CLIP, "variant": "clip-only", "skill": 0.4},
        {"overrides": {**CLIP, **OFF}, "skill": 0.4}, {"overrides": OFF, "variant": "no-ssg", "skill": 0.6},
        {"overrides": {"method.soft_label_weight": 0.7}, "skill": 0.6}, {"method": "sum", "skill": 0.2},
        {"overrides": {"method.streams": "cnn"}, "variant": "cnn-only", "skill": 0.5},
    )
    families = {f.base.label: {d.label: d for d in f.deltas} for f in analysis.ablations(test, "scenes", "R@1")}
    assert {base: set(found) for base, found in families.items()} == {
        "dwc": {"clip-only", "cnn-only", "no-ssg"}, "dwc clip-only": {"soft_label_weight=0.0"},
    }, "another value of a number is a point of a curve, another method no part"
    stream = families["dwc"]["clip-only"]
    rank = {(a.label, s): r.rankings["rank/scenes"] for a in test.arms for s, r in zip(a.seeds, a.records, strict=True)}
    by_seed = [100 * float((rank["dwc clip-only", s] == 1).mean() - (rank["dwc", s] == 1).mean()) for s in (0, 1)]
    assert stream.by_seed == pytest.approx(by_seed) and stream.value == pytest.approx(np.mean(by_seed))
    assert stream.clear and stream.high < 0 and stream.std == pytest.approx(np.std(by_seed, ddof=1))


def test_a_difference_that_seeds_do_not_share_is_not_clear() -> None:
    queries = np.random.default_rng(0).random(50)

    def delta(*shifts: float) -> analysis.Delta:
        values = np.stack([queries + shift for shift in shifts])
        found = error_of(values, np.arange(50), None)
        return analysis.Delta("a", {}, None, values, list(shifts), found.difference, found.low, found.high, found.p, found.seeds)

    apart, together, single = delta(9.0, 0.1), delta(5.1, 4.9), delta(5.0)
    assert not apart.clear and apart.seeds == 2 and apart.p > 0.05
    assert together.clear and together.p < 0.05
    # One seed: p is of the queries, and nothing is said about the methods.
    assert single.p < 1e-6 and not single.clear and math.isnan(single.std)


def test_a_sweep_without_the_method_as_it_comes_has_a_whole_all_the_same(tmp_path: Path) -> None:
    runs: list[dict[str, Any]] = [
        {"overrides": {**CLIP, "method.soft_label_weight": w}, "skill": 0.5} for w in (0.0, 0.2, 0.6)
    ]
    runs += [
        {"overrides": {**CLIP, "method.soft_label_weight": 0.2, "method.editors": e}, "skill": 0.2} for e in ("none", "text")
    ]
    (family,) = analysis.ablations(made(tmp_path, *runs), "scenes", "R@1")
    assert family.base.knobs["method.soft_label_weight"] == 0.2 and family.base.knobs["method.editors"] == "both"
    assert {d.label for d in family.deltas} == {"soft_label_weight=0.0", "editors=none", "editors=text"}


def test_questions_are_answered_no_as_well(tmp_path: Path) -> None:
    test = made(
        tmp_path, {"skill": 0.6, "weights": True}, {"overrides": OFF, "skill": 0.6},
        {"overrides": {"method.mutual_weight": 0.0}, "skill": 0.8}, {"overrides": CLIP, "skill": 0.3},
        {"data": {"noise_rate": 0.4}, "skill": 0.5}, {"data": {"noise_rate": 0.4}, "overrides": OFF, "skill": 0.2},
        {"method": "text-only", "skill": 0.1}, {"method": "image-only", "skill": 0.1},
    )
    told = {question: [a.verdict for a in found] for question, found in ask(test).items()}
    assert told["Does SSG (soft labels) help?"] == ["not separable"]
    assert told["Does SSG (soft labels) help under label noise?"] == ["yes"]
    assert told["Does composing beat the better single modality?"] == ["yes"]
    assert told["Does lambda follow the importance of the modalities (CLIP stream)?"] == ["yes"]
    (gain,) = (a for a in ask(test)["Does SSG (soft labels) help under label noise?"])
    with_, without = gain.arm, gain.delta.arm
    assert gain.delta.value == pytest.approx(np.mean(with_.scores("scenes", "R@1")) - np.mean(without.scores("scenes", "R@1")))
    assert {k for k in with_.knobs if with_.knobs[k] != without.knobs.get(k)} == {"method.soft_label_weight"}


def test_a_part_that_costs_is_answered_no(tmp_path: Path) -> None:
    test = made(tmp_path, {"skill": 0.3}, {"overrides": CLIP, "skill": 0.7})
    (answer,) = ask(test)["Do two streams beat the CLIP stream?"]
    assert answer.verdict == "no" and answer.delta.high < 0
    page = build(find_records([tmp_path]))
    assert page.count('data-answer="no"') == 1


def test_confounded_pairs_answer_nothing(tmp_path: Path) -> None:
    test = made(tmp_path, {"skill": 0.6}, {"overrides": {**OFF, "method.clip_lr": 1.0}, "skill": 0.1})
    assert "Does SSG (soft labels) help?" not in ask(test)


def test_noise_of_two_kinds_is_two_curves_and_curves_say_what_is_separable(tmp_path: Path) -> None:
    runs: list[dict[str, Any]] = [{"skill": 0.7, "data": {"noise_rate": 0.0, "noise_kind": "none"}}]
    runs += [
        {"skill": 0.7 if r < 0.1 else 0.3, "data": {"noise_rate": r, "noise_kind": k}} for r in (0.01, 0.4) for k in ("target", "text")
    ]
    found = analysis.curves(made(tmp_path, *runs), "scenes", "R@1", analysis.NOISE, least=2)
    assert sorted(c.label for c in found) == ["dwc, target noise", "dwc, text noise"]
    for curve in found:
        assert [p[0] for p in curve.points] == [0.0, 0.01, 0.4] and 0.4 not in curve.near
        assert curve.near == [0.01] and "not separable from it: 0.01; range" in curve.verdict


def test_the_audit_by_hand(tmp_path: Path) -> None:
    test = made(tmp_path, {"skill": 0.6, "weights": True}, {"method": "text-only", "skill": 0.4},
                {"method": "image-only", "skill": 0.3}, seeds=1)
    hits = {a.method: a.records[0].rankings["rank/scenes"] == 1 for a in test.arms}
    text, image, composed = hits["text-only"], hits["image-only"], hits["dwc"]
    found = modalities.audit(test, "scenes", "R@1")
    assert found is not None
    for cell, mask in (("both", text & image), ("neither", ~text & ~image), ("text alone", text & ~image)):
        row = next(c for c in found.cells if c.name == cell)
        assert row.count == mask.sum() and row.share == pytest.approx(100 * mask.mean())
        assert row.composed == pytest.approx(100 * composed[mask].mean())
    assert found.gap == pytest.approx(100 * (composed.mean() - max(text.mean(), image.mean())))
    assert found.gap_low < found.gap < found.gap_high
    clip = next(m for m in modalities.modality(test, found) if m.stream == "clip")
    share = test.arms[0].records[0].rankings["weight/clip"]
    a, b = share[image & ~text], share[text & ~image]
    assert clip.auc == pytest.approx(np.mean((a[:, None] > b) + 0.5 * (a[:, None] == b)))
    assert clip.rho <= clip.ceiling < 1


def test_attention_is_grounded_only_above_chance_objects_and_energy(tmp_path: Path) -> None:
    folder = write_run(tmp_path, queries=200, gallery=240, pictures=0, data={"side": 48})
    queries = [json.loads(line) for line in (folder / "queries.jsonl").read_text().splitlines()]
    flat, sharp = np.zeros((3, 3)), np.zeros((3, 3))
    sharp[1, 1] = flat[0, 0] = 1  # the named object is the fifth of nine boxes

    def told(word_map: np.ndarray, energy: np.ndarray) -> claims.Answer:
        write_json(folder / "explain.json", {"queries": {
            q["id"]: {"words": [], "regions": {"words to regions": word_map.tolist(), "energy": energy.tolist()}}
            for q in queries
        }})
        (test,) = collect(find_records([tmp_path]))
        (answer,) = ask(test)["Is the attention grounded in the words?"]
        (entry,) = attention.attention(test, False)
        rates = {s.map: s for s in entry.scores}["words to regions"]
        assert rates.n == 100 and rates.chance == pytest.approx(100 / 9) == rates.object_chance
        return answer

    assert told(sharp, flat).verdict == "yes"
    assert told(flat, flat).verdict == "no"
    assert told(sharp, sharp).verdict == "no", "no better than what sees no text"


def sweep(out: Path, points: int = 24, sampler: str = "tpe", here: bool = True) -> Path:
    """A made-up tuning sweep of two knobs, of which one matters; its runs are there or not."""
    generator = np.random.default_rng(0)
    rows, names = [], []
    for n in range(points):
        rate, idle = 10 ** float(generator.uniform(-4, -2)), float(generator.uniform(0, 1))
        score = 60 - 10 * (math.log10(rate) + 3) ** 2 + float(generator.normal(0, 0.1))
        overrides = {"method.clip_lr": rate, "method.idle": idle}
        run = write_run(out, queries=30, gallery=60, pictures=0, overrides=overrides, skill=score / 100) if here else None
        name = run.name if run else f"gone-{n}"
        run_id = json.loads((run / "record.json").read_text())["id"] if run else f"gone-{n}"
        names.append(name)
        rows.append({
            "number": n, "label": f"dwc {n}", "arm": "", "method": "dwc", "variant": "", "values": overrides, "fixed": {},
            "state": "complete", "value": score, "seeds": {"0": {"run": name, "id": run_id, "objective": score}}, "error": None,
        })
    axes = {"method.clip_lr": {"low": 1e-4, "high": 1e-2, "log": True, "step": None},
            "method.idle": {"low": 0.0, "high": 1.0, "log": False, "step": None}}
    folder = out / "sweeps" / "tune-scenes-0"
    write_json(folder / "sweep.json", {
        "schema": 1, "study": "tune-scenes-0", "question": "Which <values>?", "note": "", "tuning": sampler == "tpe",
        "name": "tune", "dataset": "scenes", "seeds": [0], "sampler": sampler, "total": points,
        "objective": {"split": "select", "protocol": "scenes", "metric": "R@1"},
        "arms": [{"label": "", "method": "dwc", "variants": [""], "fixed": {}, "points": [{}], "space": axes}],
        "points": rows, "runs": names,
    })
    return folder


def test_a_sweep_folder_is_reported_with_its_points_and_what_mattered(tmp_path: Path) -> None:
    folder = sweep(tmp_path)
    for given in (folder, folder / "sweep.json", tmp_path):
        assert len(find_records([given])) == 24 and [s.folder for s in find_studies([given])] == [folder]
    (told,) = studies.studies(collect(find_records([folder]))[0], find_studies([folder]), "R@1")
    shares = {i.knob: i.share for i in told.importance}
    assert shares["method.clip_lr"] > 0.6 and sum(shares.values()) == pytest.approx(1)
    assert all(i.low <= i.high for i in told.importance)
    assert told.tuning and [r.mean for r in told.rows] == sorted((r.mean for r in told.rows), reverse=True)
    by_label = {r.label: r for r in told.rows}
    for point in Study(folder).data["points"]:
        record = next(r for r in find_records([folder]) if r.id == point["seeds"]["0"]["id"])
        assert by_label[point["label"]].reported == record.data["protocols"]["scenes"]["metrics"]["R@1"]
    page = build(find_records([folder]), sweeps=find_studies([folder]))
    assert "Tuning:" in page and 'data-table="importance"' in page and "Which &lt;values&gt;?" in page
    assert page == build(find_records([folder]), sweeps=find_studies([folder]))
    data = Study(folder).data
    write_json(folder / "sweep.json", {**data, "objective": {**data["objective"], "direction": "minimize"}})
    (turned,) = studies.studies(collect(find_records([folder]))[0], find_studies([folder]), "R@1")
    assert [r.mean for r in turned.rows] == sorted(r.mean for r in told.rows)
    other = tmp_path / "sweeps" / "also"
    write_json(other / "sweep.json", {**data, "study": "also", "name": "also"})
    both = [find_studies([a, b]) for a, b in ((folder, other), (other, folder))]
    assert build(find_records([folder]), sweeps=both[0]) == build(find_records([folder]), sweeps=both[1])


def test_a_grid_has_no_importance_and_a_sweep_without_runs_is_told(tmp_path: Path) -> None:
    assert studies.importance(Study(sweep(tmp_path / "a", sampler="grid"))) == []
    assert studies.importance(Study(sweep(tmp_path / "b", points=6))) == []
    with pytest.raises(CirbenchError, match="without a finished run in"):
        find_records([sweep(tmp_path / "c", here=False)])
    broken = tmp_path / "a" / "sweeps" / "tune-scenes-0"
    (broken / "sweep.json").write_text("{}")
    with pytest.raises(CirbenchError, match=r"not a sweep of schema 1"):
        find_studies([broken])


@pytest.mark.parametrize("part", [
    {"points": 3}, {"points": [3]}, {"points": [{"seeds": [1]}]}, {"points": [{"seeds": {"0": {"id": "x"}}}]},
    {"objective": 3}, {"objective": {}}, {"runs": 3}, {"seeds": None},
], ids=str)
def test_a_damaged_sweep_is_refused(part: dict[str, Any], tmp_path: Path) -> None:
    folder = sweep(tmp_path, points=1, here=False)
    write_json(folder / "sweep.json", {**Study(folder).data, **part})
    with pytest.raises(CirbenchError, match=r"sweep\.json is damaged"):
        find_studies([folder])
    with pytest.raises(CirbenchError, match=r"sweep\.json is damaged"):
        sweep_status("tune", tmp_path)


def test_importance_needs_no_torch(tmp_path: Path) -> None:
    folder = sweep(tmp_path)
    code = "import sys; from pathlib import Path; from cirbench.runs.store import find_records, find_studies; " \
        f"from cirbench.reports.build import build; p = [Path({str(folder)!r})]; " \
        "build(find_records(p), sweeps=find_studies(p)); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_bound_is_told_with_its_cap(tmp_path: Path) -> None:
    folder = write_run(tmp_path, pictures=0, steps=20)
    lines = (folder / "training.jsonl").read_text().splitlines()
    lines += [json.dumps({"epoch": e, "bound": {"clip": 1.5 + e}, "pairs": 256}) for e in range(2)]
    (folder / "training.jsonl").write_text("\n".join(lines) + "\n")
    (told,) = analysis.training(collect(find_records([tmp_path]))[0])
    assert told.bound == {"clip": [(0, 1.5), (1, 2.5)]} and told.cap == pytest.approx(math.log(256))
    page = build(find_records([tmp_path]))
    assert 'data-v="2.5"' in page and "log N" in page


def test_a_rival_is_compared_like_for_like_but_for_the_learning_rate(tmp_path: Path) -> None:
    rival = {"method": "tirg", "variant": "like-dwc", "skill": 0.7}
    test = made(
        tmp_path, {"skill": 0.3}, {**rival, "overrides": {"method.clip_lr": 0.5}},
        {**rival, "overrides": {"method.clip": "scenes-small"}, "skill": 0.1}, {"method": "tirg", "skill": 0.1},
    )
    (found,) = (a for q, a in ask(test).items() if "beat TIRG with" in q)
    assert [a.verdict for a in found] == ["no"] and found[0].delta is not None
    assert found[0].delta.arm is not None and found[0].delta.arm.knobs["method.clip_lr"] == 0.5
