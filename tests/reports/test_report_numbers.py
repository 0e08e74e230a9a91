"""Every number of a page is the records': each cell is computed again here, from the files, by another way."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cirbench.reports.build import build
from fake_records import write_run
from report_page import Cell, Page, Table

from cirbench.runs.record import Record
from cirbench.runs.store import find_records
from cirbench.scoring import inference, statistics

UNITS = {"k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}


SUITE: dict[str, Record] = {}


@pytest.fixture(scope="module")
def suite(made_up) -> dict[str, Record]:
    SUITE.update({r.id: r for r in find_records([made_up])})
    return SUITE


@pytest.fixture(scope="module")
def page(made_up_page) -> Page:
    return Page(made_up_page)


def number(cell: Cell) -> float:
    return float(cell.attrs["data-v"]) if cell.attrs["data-v"] else math.nan


def shown(text: str) -> float:
    """The first number of a text, its unit applied."""
    found = re.search(r"([+−-]?[\d.]+)(?: ([kMGT])\b)?", text)
    assert found, text
    return float(found[1].replace("−", "-")) * UNITS.get(found[2] or "", 1)


def close(a: float, b: float) -> bool:
    return (math.isnan(a) and math.isnan(b)) or a == pytest.approx(b, rel=1e-9, abs=1e-8)


def hits(records: list[Record], metric: str) -> np.ndarray:
    """(S, B) hits of each query, a row a run."""
    cut = int(metric.rpartition("@")[2])
    return np.stack([(r.rankings["rank/scenes"] >= 1) & (r.rankings["rank/scenes"] <= cut) for r in records]).astype(float)


def clusters(record: Record) -> np.ndarray:
    return statistics.cluster_codes([q["reference"] for q in record.queries])


def scores(records: list[Record], metric: str) -> list[float]:
    return [r.data["protocols"]["scenes"]["metrics"][metric] for r in records]


def at(record: Record, *path: str) -> float:
    value: Any = record.data["cost"]
    for name in path:
        value = value[name]
    return float(value)


COST = {
    "Parameters/trained": ("parameters", "trainable"), "Parameters/all": ("parameters", "total"),
    "FLOPs/query": ("flops", "query"), "FLOPs/image": ("flops", "image"), "Seconds/one epoch": ("seconds", "epoch"),
    "Seconds/whole run": ("seconds", "total"), "Seconds/CPU": ("seconds", "cpu"), "Latency, ms/p50": ("latency_ms", "p50"),
    "Latency, ms/p95": ("latency_ms", "p95"), "Peak memory, MB": ("peak_memory_mb",),
}


def ranks(table: Table) -> dict[str, int]:
    """Id of a run -> rank of its row, of rows with two seeds or more: all pairs, Holm, 1 + how many are better."""
    rows = [[SUITE[i] for i in attrs["data-runs"].split()] for attrs, _ in table.rows]
    rows = [sorted(row, key=lambda r: r.data["inputs"]["seed"]) for row in rows if len(row) > 1]
    pairs, p = [(a, b) for a in range(len(rows)) for b in range(a)], []
    for a, b in pairs:
        x, y = hits(rows[a], "R@1"), hits(rows[b], "R@1")
        one, two = ([r.data["inputs"][name] for name in ("method", "seed") for r in row] for row in (rows[a], rows[b]))
        codes = clusters(rows[a][0])
        p.append((inference.contrast(y - x, codes) if one == two else inference.estimate(x, y, codes)).p)
    apart = {pair for pair, corrected in zip(pairs, statistics.holm(p), strict=True) if corrected < 0.05}
    means = [float(np.mean(scores(row, "R@1"))) for row in rows]
    return {row[0].id: 1 + sum(means[b] > means[a] and bool({(a, b), (b, a)} & apart) for b in range(len(rows)))
            for a, row in enumerate(rows)}


def main_cell(table: Table, runs: list[Record], column: str, cell: Cell) -> float:
    if column == "Seeds":
        return len(runs)
    if column == "Rank":
        # Of rows that were run once there is none.
        rank = ranks(table).get(runs[0].id)
        assert cell.text == (str(rank) if len(runs) > 1 else "–")
        return rank or 9999
    if column == "Ties":
        return max(r.data["protocols"]["scenes"]["ties"] for r in runs)
    found = scores(runs, column)
    spread, interval = cell.part("sd"), cell.part("ci")
    if len(runs) > 1:
        assert spread and shown(spread[1]) == pytest.approx(np.std(found, ddof=1), abs=0.00501)
    low, high = (100 * end for end in inference.mean_interval(hits(runs, column), clusters(runs[0])))
    assert interval and close(float(interval[0]["data-low"]), low) and close(float(interval[0]["data-high"]), high)
    assert interval[1] == f"[{low:.1f}, {high:.1f}]"
    return float(np.mean(found))


def group_cell(table: Table, runs: list[Record], column: str, cell: Cell) -> float:
    metric, group = column.split("/", 1)
    assert cell.attrs["data-metric"] == f"{group}/{metric}"
    return float(np.mean(scores(runs, f"{group}/{metric}")))


def mean_cell(table: Table, runs: list[Record], column: str, cell: Cell) -> float:
    """Tables of one metric beside costs."""
    path = {"All parameters": ("parameters", "total"), "FLOPs, query": ("flops", "query"),
            "Latency p50, ms": ("latency_ms", "p50")}.get(column)
    return float(np.mean([at(r, *path) for r in runs] if path else scores(runs, column)))


def alone(suite: dict[str, Record]) -> dict[str, np.ndarray]:
    """Which modality alone answers each query: those that half of the seeds or more answer."""
    text, image = (hits([r for r in suite.values() if r.data["inputs"]["method"] == f"{name}-only"], "R@1").mean(0) >= 0.5
                   for name in ("text", "image"))
    return {"text alone": text & ~image, "image alone": image & ~text, "both": text & image, "neither": ~text & ~image}


def mean_or_nan(values: np.ndarray) -> float:
    return float(values.mean()) if len(values) else math.nan


def modality_cell(table: Table, runs: list[Record], column: str, cell: Cell) -> float:
    share = np.array([r.rankings[f"weight/{cell.attrs['stream']}"] for r in runs], dtype=np.float64).mean(0)
    groups = np.array([q["group"] for q in runs[0].queries])
    known = np.array([["text-dominant", "balanced", "image-dominant"].index(g) for g in groups])
    kinds, column = alone(SUITE), column.rpartition("/")[2]
    if column == "all":
        return float(share.mean())
    if column in groups:
        return float(share[groups == column].mean())
    if column in kinds:
        return mean_or_nan(share[kinds[column]])
    if column == "AUC":
        pairs = [(a > b) + (a == b) / 2 for a in share[kinds["image alone"]] for b in share[kinds["text alone"]]]
        return mean_or_nan(np.array(pairs, dtype=float))
    if column == "ceiling":
        # The best order there is: by the known mix, ties broken in any way.
        return statistics.spearman(np.argsort(np.lexsort((np.arange(len(known)), known))), known)
    return statistics.spearman(share, known)


def audit_cell(table: Table, runs: list[Record], column: str, cell: Cell) -> float:
    kind = alone(SUITE)[cell.attrs["row"]]
    return 100 * float(kind.mean()) if column == "Share, %" else 100 * mean_or_nan(hits(runs, "R@1").mean(0)[kind])


def rest_cell(table: Table, runs: list[Record], column: str, cell: Cell) -> float:
    kinds, found, codes = alone(SUITE), hits(runs, "R@1"), clusters(runs[0])
    mask = {"All": np.ones(len(codes), bool), "Need composition": kinds["neither"]}.get(column)
    if mask is None:
        return 100 * mean_or_nan(found.mean(0)[kinds[column.lower()]])
    (low, high), interval = inference.mean_interval(found[:, mask], codes[mask]), cell.part("ci")
    assert interval and close(float(interval[0]["data-low"]), 100 * low) and close(float(interval[0]["data-high"]), 100 * high)
    return 100 * float(found[:, mask].mean())


def question_cell(table: Table, runs: list[Record], column: str, cell: Cell) -> float:
    return 100 * float((hits(runs, "R@1").mean(0) - hits([SUITE[i] for i in cell.attrs["against"].split()], "R@1").mean(0)).mean())


def information_cell(table: Table, runs: list[Record], column: str, cell: Cell) -> float:
    last = [[e for e in r.training if "bound" in e][-1] for r in runs]
    if column == "Maximum, log N":
        return math.log(last[0]["pairs"])
    return float(np.mean([e["bound"][cell.attrs["stream"]] for e in last]))


def run_cell(table: Table, runs: list[Record], column: str, cell: Cell) -> float:
    return float(runs[0].data["inputs"]["seed"])


CHECKS: dict[str, Callable[[Table, list[Record], str, Cell], float]] = {
    "main": main_cell, "groups": group_cell, "backbones": mean_cell, "noise": mean_cell, "modality": modality_cell,
    "runs": run_cell, "audit": audit_cell, "rest": rest_cell, "questions": question_cell, "information": information_cell, "cost": lambda t, runs, column, c: float(np.mean([at(r, *COST[column]) for r in runs])),
}


def test_every_number_of_every_table(suite, page):
    """Also: no table is left out, and no cell with a number behind it."""
    counted: dict[str, int] = {}
    for table in page.tables:
        kind = table.attrs.get("data-table", "")
        if kind in ("ablation", "pointing", "published", ""):
            continue  # below; the last are the explorer's, filled by the browser
        columns = table.columns()
        for attrs, cells in table.rows:
            ids = (attrs.get("data-runs") or attrs.get("data-id") or table.attrs.get("data-runs", "")).split()
            assert ids and len(cells) == len(columns)
            for column, cell in zip(columns, cells, strict=True):
                if "data-v" not in cell.attrs:
                    continue
                cell.attrs |= {"stream": attrs.get("data-stream", ""), "against": attrs.get("data-against", ""),
                               "row": cells[0].text}
                wanted = CHECKS[kind](table, [suite[i] for i in ids], column, cell)
                assert close(number(cell), wanted), (kind, column, ids, cell.attrs, wanted)
                if not math.isnan(wanted):
                    digits = len(re.sub(r"\D", "", cell.text.split(" ")[0].split("–")[0]))
                    assert shown(cell.text) == pytest.approx(wanted, rel=0.6 * 10.0 ** (1 - digits), abs=0.06), cell.text
                counted[kind] = counted.get(kind, 0) + 1
    assert {t.attrs["data-table"] for t in page.tables if "data-table" in t.attrs} >= set(CHECKS)
    assert all(counted[kind] >= 4 for kind in CHECKS), counted
    # The main table has every arm: each run is in one of its rows, once.
    rows = [i for t in page.tables if t.attrs.get("data-table") == "main" for a, _ in t.rows for i in a["data-runs"].split()]
    assert sorted(rows) == sorted(suite)


def test_rounded_numbers_are_the_exact_ones_rounded(page):
    cells_checked = 0
    for table in page.tables:
        if table.attrs.get("data-table") in ("main", "groups"):
            for _, cells in table.rows:
                for cell in cells:
                    if "data-metric" in cell.attrs and number(cell) == number(cell):
                        assert cell.text.startswith(f"{number(cell):.2f}")
                        cells_checked += 1
    written = [(value, text) for value, text in page.data if value != ""]
    assert cells_checked > 20 and written
    for value, text in written:
        assert text == f"{float(value):.{len(text.partition('.')[2])}f}".replace("-", "−")


def test_ablation(suite, page):
    """Changes, intervals and p are those of the paired differences, corrected within the table."""
    table = next(t for t in page.tables if t.attrs.get("data-table") == "ablation")
    columns = table.columns()
    base = [suite[i] for i in table.attrs["data-runs"].split()]
    differences, cells_of = [], []
    for attrs, cells in table.rows:
        runs = [suite[i] for i in attrs["data-runs"].split()]
        seeds = [r.data["inputs"]["seed"] for r in base]
        runs = sorted(runs, key=lambda r: r.data["inputs"]["seed"])
        common = [r.data["inputs"]["seed"] for r in runs if r.data["inputs"]["seed"] in seeds]
        kept = [[r for r in side if r.data["inputs"]["seed"] in common] or side for side in (runs, base)]
        differences.append(hits(kept[0], "R@1") - hits(sorted(kept[1], key=lambda r: r.data["inputs"]["seed"]), "R@1"))
        cells_of.append(dict(zip(columns, cells, strict=True)))
    codes = clusters(base[0])
    found = [inference.contrast(d, codes) for d in differences]
    low, high = ([100 * end for end in ends] for ends in zip(*((e.low, e.high) for e in found), strict=True))
    p = statistics.holm([e.p for e in found])
    assert len(cells_of) == 3
    for n, cells in enumerate(cells_of):
        assert close(number(cells["Change"]), 100 * differences[n].mean())
        assert close(number(cells["95 % interval"]), low[n]) and close(number(cells["p"]), p[n])
        signed = [f"{v:+.2f}".replace("-", "−") for v in (low[n], high[n])]
        assert cells["95 % interval"].text == f"[{signed[0]}, {signed[1]}]"


def test_pointing(suite, page):
    """By hand: 3 x 3 cells, boxes that are the cells, the peak either the named one or not."""
    table = next(t for t in page.tables if t.attrs.get("data-table") == "pointing")
    record = next(suite[i] for i in table.attrs["data-runs"].split() if suite[i].explain)
    asked = [(n, q) for n, q in enumerate(record.queries) if q["id"] in record.explain and q["extra"]["named"] is not None]
    codes = statistics.cluster_codes([q["reference"] for _, q in asked])
    for _, cells in table.rows:
        found = dict(zip(table.columns(), cells, strict=True))
        name = cells[0].text.removesuffix(" no text")
        peaks = np.array([
            int(np.array(record.explain[q["id"]]["regions"][name]).argmax()) == q["extra"]["named"] for _, q in asked
        ], dtype=float)
        low, high = 100 * statistics.bootstrap_interval(peaks, codes)
        assert close(number(found["Peak on the named object, %"]), 100 * peaks.mean())
        assert close(number(found["95 % interval"]), low) and found["95 % interval"].text == f"[{low:.1f}, {high:.1f}]"
        # The nine boxes cover the picture: a cell of an object is any cell.
        assert close(number(found["Random cell, %"]), 100 / 9) and close(number(found["Random object cell, %"]), 100 / 9)
        assert number(found["Peak on any object, %"]) == 100 and int(found["Queries"].text) == len(asked)


def test_the_explorer_holds_every_rank_text_and_first_ten(suite, page):
    block = page.block("q0")
    main = next(t for t in page.tables if t.attrs.get("data-table") == "main")
    first = suite[main.rows[0][0]["data-runs"].split()[0]]
    assert block["ids"] == [q["id"] for q in first.queries]
    assert block["texts"] == [" / ".join(q["texts"]) for q in first.queries]
    assert block["refs"] == [q["reference"] for q in first.queries]
    assert block["targets"] == [q["targets"] for q in first.queries]
    assert [block["groups"][g] for g in block["group"]] == [q["group"] for q in first.queries]
    assert [block["edits"][g] for g in block["edit"]] == [q["extra"]["edit"] for q in first.queries]
    for n, (attrs, _) in enumerate(main.rows):
        record = suite[attrs["data-runs"].split()[0]]
        assert page.block(f"r0-{n}") == record.rankings["rank/scenes"].tolist()
        tops = page.block(f"t0-{n}")
        shown_ = [[tops["ids"][t] for t in row] for row in tops["top"]]
        assert shown_ == [[record.gallery[t] for t in record.rankings["top/text"][q, :10]] for q in block["sampled"]]


def test_a_group_average_is_shown_as_recorded(tmp_path):
    """Where the protocol averages over groups, the page's number is that average, not the mean over queries."""
    record = Record(write_run(tmp_path, queries=61, pictures=0, group_average=True))
    plain = 100 * float(hits([record], "R@1").mean())
    table = next(t for t in Page(build([record])).tables if t.attrs.get("data-table") == "main")
    cell = dict(zip(table.columns(), table.rows[0][1], strict=True))["R@1"]
    assert number(cell) == scores([record], "R@1")[0] != pytest.approx(plain, abs=1e-6)


def test_published_numbers_are_those_of_the_file(tmp_path):
    import tomllib

    from cirbench import reports

    write_run(tmp_path, dataset="cirr", queries=30, pictures=0)
    page = Page(build(find_records([tmp_path])))
    text = (Path(reports.__file__).parent / "published.toml").read_text()
    known = [e for e in tomllib.loads(text)["result"] if e["dataset"] == "cirr"]
    order = list(dict.fromkeys(e["protocol"] for e in known))
    known.sort(key=lambda e: order.index(e["protocol"]))
    table = next(t for t in page.tables if t.attrs.get("data-table") == "published")
    assert len(table.rows) == len(known) > 0
    for entry, (_, cells) in zip(known, table.rows, strict=True):
        found = {k: number(c) for k, c in zip(table.columns(), cells, strict=True) if c.attrs.get("data-v")}
        assert found == entry["metrics"] and entry["source"] in cells[-1].text
