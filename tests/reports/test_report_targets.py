"""Queries of many targets: every one that a record lets know is marked, in the explorer, the gallery and `show`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import browser as driver
import numpy as np
import pytest
from cirbench.reports.build import build, write
from cirbench.reports.explorer import hits
from click.testing import CliRunner
from fake_records import write_run
from report_page import Page

from cirbench.cli.show import show
from cirbench.files import write_json, write_jsonl, write_npz
from cirbench.runs.record import Record
from cirbench.runs.store import find_records

MANY = 14
#: Query -> the place of its best target in a ranking, from 0; it is the fourth of its targets, or the last.
PLACES = {0: 0, 1: 4, 2: 9}


def write_many(out: Path, targets: int, stored: int = 50, **more: Any) -> Record:
    """A run of three queries of so many targets, whose best-ranked is the last; each query has pictures."""
    folder = write_run(out, queries=3, gallery=200, pictures=3, **more)
    record = Record(folder)
    gallery, top = record.gallery, np.full((3, 50), -1, dtype=np.int32)
    rows = []
    for n, place in PLACES.items():
        rest = [g for g in range(200) if gallery[g] != record.queries[n]["reference"]]
        right, wrong = rest[:targets], rest[targets:]
        # The next targets, of those that the record names, follow behind the tenth.
        ranked = [*wrong[:place], right[-1], *wrong[place:20], *right[:5], *wrong[20:]]
        top[n] = ranked[:50]
        rows.append({
            **record.queries[n], "targets": [gallery[g] for g in right][:stored], "targets_total": targets,
        })
    arrays = {**{k: record.rankings[k] for k in record.rankings}, "top/text": top}
    arrays["rank/scenes"] = np.array([p + 1 for p in PLACES.values()], dtype=np.int32)
    write_npz(folder / "rankings.npz", arrays)
    write_jsonl(folder / "queries.jsonl", rows)
    return Record(folder)


def marked(record: Record, shown: int = 10) -> list[list[int]]:
    return hits(record, "scenes", record.gallery, list(enumerate(record.queries)), shown)


@pytest.mark.parametrize("targets", [MANY, 70])
def test_every_place_shows_the_best_target(targets: int, tmp_path: Path) -> None:
    """Of 14 targets the last is stored, of 70 it is not: its rank tells where it stands."""
    record = write_many(tmp_path, targets)
    assert marked(record) == [[p] for p in PLACES.values()]
    page = Page(build(find_records([tmp_path])))
    block, tops = page.block("q0"), page.block("t0-0")
    assert block["more"] == [targets - 3] * 3 and [len(t) for t in block["targets"]] == [3] * 3
    assert tops["hits"] == [[PLACES[n]] for n in block["sampled"]] == marked(record)
    assert ("more targets than the 50 that a record stores" in "".join(page.words)) == (targets == 70)
    # The printed gallery: three targets, then the one in the strip.
    cards = [t for t, a in page.tags if t == "article" and a["class"] == "card"]
    assert len([a for t, a in page.tags if t == "figure" and a["class"] == "pic t"]) == (3 + 1) * len(cards) == 12
    assert "".join(page.words).count(f"and {targets - 3} more") == len(cards)
    for query, place in PLACES.items():
        told = CliRunner().invoke(show, [str(record.folder), f"q-{query:05d}", "--top", "30"]).output
        lines = told.splitlines()[-30:]
        assert [n for n, line in enumerate(lines) if "*" in line] == [place, *range(21, 26)]
        assert ("and 20 more" in told) == (targets == 70)


def test_what_a_rank_does_not_tell_is_not_marked(tmp_path: Path) -> None:
    """Ties stand before the target; another protocol has other first images; an old record may have no ties."""
    record = write_many(tmp_path, 70)
    arrays = {k: record.rankings[k] for k in record.rankings}
    write_npz(record.folder / "rankings.npz", arrays | {"ties/scenes": np.array([0, 1, 0], dtype=np.int32)})
    assert marked(Record(record.folder)) == [[0], [], [9]]
    write_npz(record.folder / "rankings.npz", {k: v for k, v in arrays.items() if k != "ties/scenes"})
    assert marked(Record(record.folder)) == [[], [], []]
    write_npz(record.folder / "rankings.npz", arrays | {"rank/scenes": np.array([0, 51, 3], dtype=np.int32)})
    assert marked(Record(record.folder), 50) == [[*range(21, 26)], [*range(21, 26)], [2, *range(21, 26)]]
    write_npz(record.folder / "rankings.npz", arrays | {
        "rank/drop": arrays["rank/scenes"], "ties/drop": arrays["ties/scenes"],
    })
    data = json.loads((record.folder / "record.json").read_text())
    scores = data["protocols"]["scenes"]
    write_json(record.folder / "record.json", data | {"protocols": {"drop": scores, "scenes": scores}})
    assert marked(Record(record.folder)) == [[], [], []]


@pytest.mark.skipif(driver.find() is None, reason="needs Chromium (chromium or google-chrome in PATH)")
@pytest.mark.parametrize("targets", [MANY, 70])
def test_the_browser_marks_them(targets: int, tmp_path: Path) -> None:
    record = write_many(tmp_path / "runs", targets)
    write(tmp_path / "report.html", build(find_records([tmp_path / "runs"])))
    browser = driver.Browser(tmp_path / "profile")
    try:
        browser.open(tmp_path / "report.html")
        browser.run("document.querySelector('[data-explorer]').scrollIntoView()")
        browser.wait("document.querySelectorAll('[data-x=rows] tr.q').length === 3")
        for query, place in PLACES.items():
            row = f"document.querySelector('[data-x=rows] tr[data-query=q-{query:05d}]')"
            browser.run(f"{row}.click()")
            browser.wait(f"{row}.nextSibling?.querySelector('.ranks')")
            pics = f"[...{row}.nextSibling.querySelectorAll('.strip .pic')]"
            found = browser.run(f"{pics}.map(e => [e.classList.contains('t'), e.lastChild.textContent.startsWith('✓'), e.firstChild.title])")
            top = record.rankings["top/text"][query, :10]
            assert found == [[n == place] * 2 + [record.gallery[t]] for n, t in enumerate(top)]
            assert browser.run(f"{row}.nextSibling.querySelector('.targets').textContent").endswith(f"and {targets - 3} more")
        assert browser.console == []
    finally:
        browser.close()
