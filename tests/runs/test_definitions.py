"""What a record says of itself: the definition of each protocol, and the code that computed it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from cirbench.reports.build import build
from cirbench.reports.collect import collect
from cirbench.reports.tables import main_table
from fake_records import write_run

from cirbench.files import write_npz
from cirbench.runs.record import Record
from cirbench.runs.store import find_records


def as_schema_1(folder: Path) -> None:
    """Rewrite a record as older versions wrote it: without the definitions of its protocols."""
    path = folder / "record.json"
    data = json.loads(path.read_text())
    for scored in data["protocols"].values():
        del scored["definition"]
    path.write_text(json.dumps(data | {"schema": 1}))


def group_weights(folder: Path) -> np.ndarray | None:
    (test,) = collect(find_records([folder]))
    return test.weights("scenes", "R@1")


@pytest.mark.parametrize("group_average", [False, True])
def test_the_definition_says_how_to_average_where_the_numbers_cannot(tmp_path: Path, group_average: bool) -> None:
    """No query is answered by the first arm, so both averages are 0; the second arm tells them apart."""
    for method, skill in (("sum", 0.0), ("dwc", 0.6)):
        folder = write_run(tmp_path, method=method, skill=skill, queries=61, pictures=0, group_average=group_average)
        with np.load(folder / "rankings.npz") as found:
            arrays = {name: found[name] for name in found.files}
        if method == "sum":
            arrays["rank/scenes"] = np.full(61, 99, dtype=np.int32)
            write_npz(folder / "rankings.npz", arrays)
            data = json.loads((folder / "record.json").read_text())
            data["protocols"]["scenes"]["metrics"] = dict.fromkeys(data["protocols"]["scenes"]["metrics"], 0.0)
            (folder / "record.json").write_text(json.dumps(data))
            weights = group_weights(folder)
            assert (weights is not None) == group_average
            if weights is not None:  # 21, 20 and 20 queries of the three groups
                np.testing.assert_allclose(weights[:3], [1 / 21, 1 / 20, 1 / 20])
    assert (group_weights(tmp_path) is not None) == group_average


def test_records_of_schema_1_are_read_with_the_definition_of_the_packaged_dataset(tmp_path: Path) -> None:
    """`scenes` declares that it averages over queries; where no dataset declares the name, the number tells."""
    for dataset in ("scenes", "elsewhere"):
        for group_average in (False, True):
            folder = write_run(tmp_path / dataset / str(group_average), dataset=dataset, queries=61, pictures=0,
                               group_average=group_average)
            as_schema_1(folder)
            record = Record(folder)
            known = record.definition("scenes")
            assert (known is not None and known.average == "queries") if dataset == "scenes" else known is None
            assert (group_weights(folder) is not None) == (dataset == "elsewhere" and group_average)
            assert build([record])


def test_runs_of_two_versions_are_told_apart_by_either_key(tmp_path: Path) -> None:
    """Newer records name the parts of the code by number (`numerics`), older ones its files by digest (`source`)."""
    folders = [write_run(tmp_path, queries=12, pictures=0, source={"a.py": "1"}, extra=n) for n in range(2)]
    for n, folder in enumerate(folders):
        path = folder / "record.json"
        data = json.loads(path.read_text())
        del data["inputs"]["extra"], data["inputs"]["source"]
        data["inputs"]["numerics"] = {"training": n, "ranking": 1}
        path.write_text(json.dumps(data))
    (test,) = collect(find_records([tmp_path]))
    assert len(test.arms) == 2
    (note,) = main_table(test, "scenes").notes
    assert "two versions of the code (training)" in note
