"""Reports: numbers equal the records', the same records give the same bytes, budgets hold, marks are earned."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
from cirbench.reports import attention, tables
from cirbench.reports.build import build
from cirbench.reports.collect import collect
from click.testing import CliRunner
from fake_records import HOSTILE, write_run
from report_page import Page

from cirbench.cli.compare import compare
from cirbench.cli.report import report
from cirbench.cli.show import show
from cirbench.cli.table import table
from cirbench.runs.record import Record
from cirbench.runs.store import find_records
from cirbench.scoring import inference, statistics
from cirbench.types import CirbenchError


@pytest.fixture
def suite(made_up) -> Path:
    return made_up


@pytest.fixture
def page(made_up_page) -> str:
    return made_up_page


def test_the_same_records_give_the_same_bytes_without_torch(suite, page, tmp_path):
    """In another process, under another hash seed, in another folder, listed backwards, with other threads."""
    shutil.copytree(suite, tmp_path / "elsewhere", copy_function=os.link)
    code = "import sys; from pathlib import Path; from cirbench.runs.store import find_records; " \
        "from cirbench.reports.build import build, write; " \
        "write(Path(sys.argv[1]), build(find_records(sorted(Path(sys.argv[2]).iterdir(), reverse=True)))); " \
        "bad = [m for m in sys.modules if m.split('.')[0] in ('torch', 'open_clip', 'timm', 'optuna') or " \
        "m.startswith('cirbench.methods')]; assert not bad, bad"
    env = {"PYTHONHASHSEED": "77", "PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "3", "OPENBLAS_NUM_THREADS": "3"}
    again = tmp_path / "again.html"
    subprocess.run([sys.executable, "-c", code, again, tmp_path / "elsewhere"], check=True, env=env)
    assert again.read_bytes() == page.encode()


def test_no_request_and_valid_structure(page):
    parsed = Page(page)
    for tag, attrs in parsed.tags:
        for name in ("src", "href", "xlink:href", "action"):
            value = attrs.get(name) or "#"
            assert value.startswith(("#", "data:")), (tag, value)
        if tag == "img":
            assert attrs.get("alt")
    ids = [a["id"] for _, a in parsed.tags if "id" in a]
    assert len(ids) == len(set(ids))
    links = [a["href"][1:] for t, a in parsed.tags if t == "a"]
    assert set(links) <= set(ids)
    assert "/tmp" not in page and "url(http" not in page


def test_every_section_is_shown_where_its_data_is_there_and_only_then(page, tmp_path):
    names = [
        "summary", "questions", "ablation", "sensitivity", "backbones", "modality", "queries", "attention", "noise",
        "training", "provenance",
    ]
    assert [a["id"] for t, a in Page(page).tags if t == "section"] == names
    write_run(tmp_path, pictures=0)
    small = build(find_records([tmp_path]))
    assert [a["id"] for t, a in Page(small).tags if t == "section"] == ["summary", "queries", "provenance"]


def test_hostile_text_is_text(tmp_path):
    names = "<img src=x onerror=alert(1)>{:04d}\"'"
    write_run(tmp_path, texts=HOSTILE, names=names, notes=HOSTILE, queries=18, gallery=40)
    text = build(find_records([tmp_path]), title=HOSTILE[0])
    parsed = Page(text)
    scripts = [a for t, a in parsed.tags if t == "script"]
    assert len([a for a in scripts if "type" not in a]) == 1
    assert not any(a.get("src") == "x" or "onerror" in a for _, a in parsed.tags)
    assert not [t for t, _ in parsed.tags if t == "b" and HOSTILE[2] in text]
    shown = "".join(parsed.words)
    for wanted in HOSTILE:
        assert wanted in shown
    assert "49" not in re.findall(r"<bdi[^>]*>([^<]*)</bdi>", text)  # the template language is not run


def test_pictures_keep_to_the_budget_and_can_be_left_out(tmp_path):
    write_run(tmp_path)
    records = find_records([tmp_path])
    full = build(records)
    limit = len(full.encode()) - 8_000
    small = build(records, max_mb=limit / 1e6)
    assert limit - 12_000 < len(small.encode()) <= limit
    assert "were left out to stay under" in small
    none = build(records, images=False)
    assert 'src="data:image/webp' in full and 'src="data:image/webp' not in none
    assert 'id="p0-0"' not in none and "left out on request" in none


def test_best_is_marked_only_where_it_is_significant(tmp_path):
    for seed in range(2):
        write_run(tmp_path / "far", seed=seed, skill=0.8, queries=200, gallery=300, pictures=0)
        write_run(tmp_path / "far", seed=seed, method="sum", skill=0.3, queries=200, gallery=300, pictures=0)
        write_run(tmp_path / "near", seed=seed, skill=0.6, queries=200, gallery=300, pictures=0)
        write_run(tmp_path / "near", seed=seed, method="sum", skill=0.6, queries=200, gallery=300, pictures=0)
    cells = {}
    for name in ("far", "near"):
        test = collect(find_records([tmp_path / name]))[0]
        table = tables.main_table(test, "scenes")
        cells[name] = [row.cells["R@1"] for row in table.rows]
        for cell in cells[name]:
            assert cell.low < cell.mean < cell.high
    assert [c.best for c in cells["far"]] == [True, False] and not any(c.top for c in cells["far"])
    assert not any(c.best for c in cells["near"]) and all(c.top for c in cells["near"])


def test_intervals_of_a_group_average_hold_the_group_average(tmp_path):
    write_run(tmp_path, queries=200, gallery=300, pictures=0, group_average=True)
    test = collect(find_records([tmp_path]))[0]
    cell = tables.main_table(test, "scenes").rows[0].cells["R@1"]
    assert cell.low < cell.mean < cell.high
    assert test.weights("scenes", "R@1") is not None


def test_runs_on_other_queries_are_never_in_one_table(tmp_path):
    write_run(tmp_path, queries=30, pictures=0)
    write_run(tmp_path, queries=31, pictures=0, method="sum")
    assert len(collect(find_records([tmp_path]))) == 2
    assert build(find_records([tmp_path])).count('id="main-') == 2


def test_pointing_by_hand():
    boxes = [[0, 0, 16, 16], [32, 32, 48, 48]]
    region = np.zeros((3, 3))
    region[2, 2] = 1
    assert attention.pointing(region, boxes, 1, 48) == attention.Peak(1.0, 1.0, pytest.approx(1 / 9), 0.5)
    assert attention.pointing(region, boxes, 0, 48).named == 0.0
    flat = attention.pointing(np.ones((3, 3)), boxes, 0, 48)
    assert flat.named == pytest.approx(1 / 9) and flat.any == pytest.approx(2 / 9)


def test_command_writes_the_page_and_the_figures(suite, tmp_path):
    out = tmp_path / "deep" / "r.html"
    done = CliRunner().invoke(report, [str(suite), "-o", str(out), "--figures", str(tmp_path / "f"), "--no-images"])
    assert done.exit_code == 0 and "runs" in done.output, done.output
    assert out.read_text(encoding="utf-8").lstrip().startswith("<!doctype html>")
    drawn = {p.suffix for p in (tmp_path / "f").iterdir()}
    assert drawn == {".pdf", ".png"} and all(p.stat().st_size > 3000 for p in (tmp_path / "f").iterdir())
    (tmp_path / "file").write_text("")
    with pytest.raises(CirbenchError, match="cannot write"):
        CliRunner().invoke(report, [str(suite), "-o", str(tmp_path / "file" / "r.html")], catch_exceptions=False)


def _call(command, *args):
    return CliRunner().invoke(command, [str(a) for a in args], catch_exceptions=False)


def test_table_in_three_formats(suite):
    records = find_records([suite])
    rows = list(csv.DictReader(io.StringIO(_call(table, suite, "--format", "csv").output)))
    by_id = {r.id: r.data for r in records}
    assert sum(int(row["seeds"]) for row in rows) == len(records)
    for row in rows:
        values = [by_id[i]["protocols"]["scenes"]["metrics"]["R@5"] for i in row["run_ids"].split()]
        assert float(row["R@5"]) == pytest.approx(np.mean(values)) and row["protocol"] == "scenes"
        assert float(row["R@5 std"]) == pytest.approx(np.std(values, ddof=1), abs=1e-9)
    first = rows[0]
    markdown, latex = _call(table, suite).output, _call(table, suite, "--format", "latex").output
    shown = f"{float(first['R@1']):.2f} ± {float(first['R@1 std']):.2f}"
    assert f"| {first['method']} | {first['rank']} | both | 2 | " in markdown and shown in markdown and "protocol scenes" in markdown
    assert shown.replace("±", r"$\pm$") in latex and latex.count(r"\\") == len(rows) + 1
    with pytest.raises(CirbenchError, match="scored under: scenes"):
        _call(table, suite, "--protocol", "nope")


def test_show_tells_the_rank_and_the_images(suite):
    record = find_records([suite])[0]
    shown = _call(show, record.folder, "q-00007", "--top", 5).output
    assert f"rank {record.rankings['rank/scenes'][7]} of {len(record.gallery)}" in shown
    assert [line.split()[-1] for line in shown.splitlines()[-5:]] == [
        record.gallery[t] for t in record.rankings["top/text"][7, :5]
    ]
    with pytest.raises(CirbenchError, match="Did you mean 'q-000"):
        _call(show, record.folder, "q-0007")


def test_compare_counts_flips_and_refuses_other_queries(suite, tmp_path):
    arms = {a.label: a.records[0] for a in collect(find_records([suite]))[0].arms}
    a, b = arms["dwc"], arms["sum"]
    told = json.loads(_call(compare, a.folder, b.folder, "--json", "--one-seed").output)
    row = told["metrics"][0]
    x, y = (r.rankings["rank/scenes"] == 1 for r in (a, b))
    assert (row["only_a"], row["only_b"]) == (np.sum(x & ~y), np.sum(y & ~x))
    assert row["mcnemar"] == scipy.stats.binomtest(int(row["only_a"]), int(row["only_a"] + row["only_b"])).pvalue
    assert row["delta"] == pytest.approx(100 * (y.mean() - x.mean())) and row["low"] < row["delta"] < row["high"]
    codes = statistics.cluster_codes([q["reference"] for q in a.queries])
    alone = inference.estimate(x, y, codes)
    assert row["detectable"] == pytest.approx(100 * inference.detectable(alone.error, alone.freedom))
    assert row["over"] == "queries" and (row["low"], row["high"]) == pytest.approx((100 * alone.low, 100 * alone.high))
    assert told["inputs"] == {"method": ["dwc", "sum"]} and told["seeds"] == {"a": [0], "b": [0]}
    shown = _call(compare, a.folder, b.folder, "--one-seed").output
    assert "only A / only B" in shown and "One seed: p and intervals are over queries alone" in shown
    other = write_run(tmp_path, queries=31, pictures=0)
    with pytest.raises(CirbenchError, match="different queries"):
        _call(compare, a.folder, other)
    with pytest.raises(CirbenchError, match="the same run"):
        _call(compare, a.folder, a.folder)
    with pytest.raises(CirbenchError, match="at least two runs"):
        _call(compare, a.folder)
    with pytest.raises(CirbenchError, match=r"was not scored by both\. Both have: scenes"):
        _call(compare, a.folder, b.folder, "--protocol", "scnes")


def test_compare_averages_seeds_within_a_query_and_corrects_across_all(tmp_path):
    runs = {m: [write_run(tmp_path, method=m, seed=s, skill=k, pictures=0, queries=120) for s in (0, 1, 2)]
            for m, k in (("dwc", 0.7), ("sum", 0.6), ("tirg", 0.68))}
    told = json.loads(_call(compare, runs["dwc"][1], runs["sum"][0], "--json").output)
    row, names = told["metrics"][0], [r["metric"] for r in told["metrics"]]
    x, y = (np.mean([Record(f).rankings["rank/scenes"] == 1 for f in runs[m]], axis=0) for m in ("dwc", "sum"))
    assert told["seeds"] == {"a": [0, 1, 2], "b": [0, 1, 2]} and told["inputs"] == {"method": ["dwc", "sum"]}
    assert row["delta"] == pytest.approx(100 * (y.mean() - x.mean())) and "mcnemar" not in row, "a mean is no hit"
    assert (row["a"], row["a_std"]) == pytest.approx(statistics.mean_std([
        Record(f).data["protocols"]["scenes"]["metrics"]["R@1"] for f in runs["dwc"]]))
    raw = [inference.estimate(*sides).p for sides in _sides(runs["dwc"], runs["sum"], names)]
    assert [r["p"] for r in told["metrics"]] == pytest.approx(statistics.holm(raw))
    assert {r["over"] for r in told["metrics"]} == {"queries and seeds"}
    many = json.loads(_call(compare, runs["dwc"][0], runs["sum"][0], runs["tirg"][0], "--json").output)
    more = [inference.estimate(*sides).p for sides in _sides(runs["dwc"], runs["tirg"], names)]
    assert [r["p"] for rows in many for r in rows["metrics"]] == pytest.approx(statistics.holm(raw + more))
    shown = _call(compare, runs["dwc"][0], runs["sum"][0], runs["tirg"][0]).output
    assert f"over these {2 * len(names)} numbers" in shown and "seeds 0, 1, 2" in shown and "One seed" not in shown
    with pytest.raises(CirbenchError, match=r"seed alone\. Use --one-seed"):
        _call(compare, runs["dwc"][0], runs["dwc"][1])
    alone = json.loads(_call(compare, runs["dwc"][0], runs["dwc"][1], "--json", "--one-seed").output)
    assert alone["inputs"] == {"seed": [0, 1]}


def _sides(a, b, metrics):
    clusters = statistics.cluster_codes([q["reference"] for q in Record(a[0]).queries])
    for metric in metrics:
        cut = int(metric[2:])
        x, y = (np.stack([Record(f).rankings["rank/scenes"] <= cut for f in side]) for side in (a, b))
        yield x, y, clusters


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="reads its peak memory from /proc, so it needs Linux")
def test_a_hundred_runs_of_ten_thousand_queries(tmp_path):
    for n in range(100):
        write_run(tmp_path, seed=n % 4, overrides={"method.clip_lr": n // 4}, skill=0.3 + n / 300, queries=10_000,
                  gallery=4000, pictures=60 if n % 4 == 0 else 0)
    code = "import sys; from pathlib import Path; from cirbench.runs.store import find_records; " \
        "from cirbench.reports.build import build; " \
        f"page = build(find_records([Path({str(tmp_path)!r})])); import time; " \
        "status = Path('/proc/self/status').read_text().partition('VmHWM:')[2].split()[0]; " \
        "print(len(page.encode()), int(status) / 1024, time.process_time())"
    # Of that process alone: getrusage would begin with the peak of the one that started it.
    out = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split()
    size, memory, seconds = int(out[0]), float(out[1]), float(out[2])
    print(f"{seconds:.1f} s of the processor, {memory:.0f} MB, page {size / 1e6:.2f} MB")
    assert size < 5.1e6 and memory < 1536
