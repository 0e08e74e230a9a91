"""Records -> what a report compares: test sets, arms (one thing over several seeds), values a query.

Two runs are compared query by query only where they answered the very same queries over the very same gallery; that
is a `TestSet`. Runs that are equal but for the seed are one `Arm`.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from cirbench.runs.record import Record
from cirbench.runs.record_types import CODE, Inputs, ProtocolScores, RunData
from cirbench.scoring import metrics, statistics
from cirbench.types import CirbenchError

from .categories import Joined, joined
from .checks import check_runs

__all__ = ["Arm", "TestSet", "arms_of", "collect", "flat", "metric_names", "values_of"]

#: p below which a difference counts.
LEVEL = 0.05


def flat(inputs: Inputs) -> dict[str, Any]:
    """`method.x`, `data.y`, `train.z` -> value: every knob of a run, named as on the command line.

    Of weights that were trained on other data than they are evaluated on, also `trained.dataset` and `trained.y`.
    """
    # A stage before this one is another run for every seed, and one setting.
    config = {**inputs.config, **inputs.raw.get("stages", {})}
    scopes = (("method", config), ("data", inputs.data), ("train", inputs.train))
    out = {f"{scope}.{name}": value for scope, knobs in scopes for name, value in knobs.items()}
    evaluated = inputs.evaluated
    if evaluated is not None and evaluated.dataset:
        data: Mapping[str, Any] = {}
        if evaluated.dataset == inputs.dataset:
            data = inputs.data
        else:
            out["trained.dataset"] = evaluated.dataset
        for name, value in evaluated.data.items():
            if name not in data or data[name] != value:
                out[f"trained.{name}"] = value
    return out


def identity(inputs: Inputs, *without: str, code: bool = True) -> str:
    """Text that is equal for inputs that are equal but for the seed and for the knobs named in `without`.

    With `code` False also for runs of two versions of the code.
    """
    apart = ("seed", "config", "data", "train", *(() if code else CODE))
    rest = {k: v for k, v in inputs.raw.items() if k not in apart}
    knobs = {k: v for k, v in flat(inputs).items() if k not in without}
    staged = {inputs.config.get(field) for field in rest.pop("stages", {})}
    if staged:
        rest["weights"] = {name: sha for name, sha in inputs.weights.items() if name not in staged}
    if any(name.startswith("data.") for name in without):
        for name in ("fingerprint", "images"):  # they follow from the data knobs
            rest.pop(name, None)
    if without:
        rest.pop("weights", None)  # follows from the knob that names the encoder
    evaluated = rest.get("evaluated") or {}
    if "inputs" in evaluated:  # which run it was follows from the seed; its data are among the knobs
        rest["evaluated"] = {k: evaluated[k] for k in ("inputs", *(CODE if code else ())) if k in evaluated}
    elif evaluated and not code:
        rest["evaluated"] = {k: v for k, v in evaluated.items() if k not in CODE}
    return json.dumps([rest, knobs], sort_keys=True, ensure_ascii=False, default=str)


@dataclass
class Arm:
    """One thing that was run, over one or more seeds.

    Attributes:
        key: `identity` of its inputs.
        records: its runs, by seed.
        label: unique in its test set, for people.
        point: one of many settings of its method; long tables fold it away.
    """

    key: str
    records: list[Record]
    label: str = ""
    point: bool = False
    # Read once: sections ask for the same values again and again.
    _values: dict[tuple[str, str], np.ndarray | None] = field(default_factory=dict, repr=False, compare=False)

    @property
    def run(self) -> RunData:
        """Its first run; the others differ in the seed and in what came of it."""
        return self.records[0].run

    @property
    def inputs(self) -> Inputs:
        """Of its first run."""
        return self.run.inputs

    @property
    def method(self) -> str:
        """Name of the method."""
        return self.inputs.method

    @property
    def variant(self) -> str:
        """Label of its overrides, "" for the method as it comes."""
        return self.run.variant

    @property
    def name(self) -> str:
        """Method and variant, and what it was trained on where that is another dataset than the one reported."""
        trained = self.knobs.get("trained.dataset")
        label = self.method + (f" {self.variant}" if self.variant else "")
        return label + (f", trained on {trained}" if trained else "")

    @property
    def oracle(self) -> bool:
        """Whether its checkpoint was chosen on the reported split itself."""
        return self.run.selection.on_report

    @property
    def seeds(self) -> list[int]:
        """One a run, in order."""
        return [r.run.inputs.seed for r in self.records]

    @cached_property
    def knobs(self) -> dict[str, Any]:
        """Every knob, by its command-line name."""
        return flat(self.inputs)

    @cached_property
    def overrides(self) -> dict[str, Any]:
        """Knobs of the method or its training that were set for this run, by a variant or by hand."""
        return {k: v for k, v in self.run.overrides.items() if k.startswith(("method.", "train."))}

    def protocols(self) -> dict[str, ProtocolScores]:
        """Those that every run of it was scored under, with the numbers of its first run."""
        first = self.run.protocols
        return {n: p for n, p in first.items() if all(n in r.run.protocols for r in self.records)}

    def scores(self, protocol: str, metric: str) -> list[float]:
        """One number a seed, straight from the records (percent)."""
        scored = [r.run.protocols[protocol] for r in self.records if protocol in r.run.protocols]
        return [float(v) for s in scored if (v := s.metrics.get(metric)) is not None]


@dataclass
class TestSet:
    """Queries and gallery that several arms answered.

    Attributes:
        dataset: name.
        key: hash of the queries and the gallery.
        arms: in the order met.
    """

    __test__ = False  # not a test, whatever pytest makes of the name

    dataset: str
    key: str
    split: str
    arms: list[Arm] = field(default_factory=list)

    @property
    def first(self) -> Record:
        """The record whose queries and gallery stand for all."""
        return self.arms[0].records[0]

    @property
    def queries(self) -> list[dict[str, Any]]:
        """In order."""
        return self.first.queries

    @property
    def gallery(self) -> list[str]:
        """Image ids."""
        return self.first.gallery

    @cached_property
    def clusters(self) -> np.ndarray:
        """(B,) code of each query's reference image."""
        return statistics.cluster_codes([str(q.get("reference", "")) for q in self.queries])

    @cached_property
    def groups(self) -> np.ndarray:
        """(B,) group of each query."""
        return np.array([str(q.get("group", "")) for q in self.queries])

    def protocols(self) -> list[str]:
        """All that any arm was scored under, the default of the first arm first."""
        names = dict.fromkeys([self.first.run.default_protocol])
        for arm in self.arms:
            names.update(dict.fromkeys(arm.protocols()))
        return list(names)

    def weights(self, protocol: str, metric: str) -> np.ndarray | None:
        """(R,) weights under which the mean over rows is the record's number, None for equal ones.

        The protocol's definition says whether it averages over groups. Where neither the record nor a packaged dataset
        has one, the number itself must tell: it is the mean over rows, or it is not.
        """
        arm = next((a for a in self.arms if protocol in a.protocols()), None)
        if arm is None:
            return None
        record = arm.records[0]
        definition, number = record.definition(protocol), record.run.protocols[protocol].metrics.get(metric)
        if number is None or (definition is not None and definition.average != "groups"):
            return None
        rows = self.groups[rows_of(record, protocol)]
        names, codes, counts = np.unique(rows, return_inverse=True, return_counts=True)
        values = values_of(record, protocol, metric)
        if len(names) < 2 or values is None:
            return None
        if definition is None and math.isclose(100 * float(values.mean()), number, abs_tol=1e-3):
            return None
        return (1.0 / counts)[codes]


def rows_of(record: Record, protocol: str) -> np.ndarray:
    """(R,) index of the query of each row of `rank/protocol`."""
    name = f"row_query/{record.run.protocols[protocol].form}"
    if name in record.rankings:
        return record.rankings[name].astype(np.int64)
    return np.arange(len(record.queries))


def values_of(record: Record, protocol: str, metric: str) -> np.ndarray | None:
    """(R,) value of each row, 0..1, or None where the metric is no mean over rows (MdR) or was not kept."""
    stored = f"value/{protocol}/{metric}"
    if stored in record.rankings:
        return record.rankings[stored].astype(np.float64)
    kind, _, cut = metric.partition("@")
    if kind != "R" or not cut.isdigit() or f"rank/{protocol}" not in record.rankings:
        return None
    return metrics.hits(record.rankings[f"rank/{protocol}"], int(cut)).astype(np.float64)


def arm_values(arm: Arm, protocol: str, metric: str) -> np.ndarray | None:
    """(R,) value of each row, averaged over the arm's seeds; NaN (no answer) counts as 0."""
    found = seed_values(arm, protocol, metric)
    return None if found is None else found.mean(0)


def seed_values(arm: Arm, protocol: str, metric: str) -> np.ndarray | None:
    """(S, R) value of each row under each of the arm's seeds; NaN (no answer) counts as 0."""
    if (protocol, metric) not in arm._values:
        arm._values[protocol, metric] = _values_by_seed(arm, protocol, metric)
    return arm._values[protocol, metric]


def _values_by_seed(arm: Arm, protocol: str, metric: str) -> np.ndarray | None:
    parts: list[np.ndarray] = []
    for record in arm.records:
        if protocol not in record.run.protocols:
            return None
        values = values_of(record, protocol, metric)
        if values is None or (parts and len(values) != len(parts[0])):
            return None
        parts.append(np.nan_to_num(values))
    return np.stack(parts) if parts else None


def metric_names(arms: Sequence[Arm], protocol: str, groups: bool = False) -> list[str]:
    """Metrics of a protocol in the record's order; with `groups` only those of single groups (`dress/R@10`)."""
    names: dict[str, None] = {}
    for arm in arms:
        for record in arm.records:
            if protocol in record.run.protocols:
                names.update(dict.fromkeys(record.run.protocols[protocol].metrics))
    return [n for n in names if ("/" in n) == groups]


def _test_key(record: Record) -> str:
    digest = hashlib.sha256()
    if isinstance(record, Joined):
        for text in record.files():
            digest.update(text)
        return digest.hexdigest()
    for name in ("queries.jsonl", "gallery.json"):
        path = record.folder / name
        if not path.is_file():
            raise CirbenchError(f"{path} is missing, so this run is incomplete. Copy it once more, or repeat the run.")
        digest.update(path.read_bytes())
    return digest.hexdigest()


def arms_of(records: Sequence[Record]) -> list[Arm]:
    """Group runs that differ in the seed only; runs of an arm are ordered by seed."""
    arms: dict[str, Arm] = {}
    for record in records:
        key = identity(record.run.inputs)
        # A run repeated elsewhere may have other weights; evaluated too, it is the same seed again, not another.
        while key in arms and record.run.inputs.seed in arms[key].seeds:
            key += " again"
        arms.setdefault(key, Arm(key, [])).records.append(record)
    for arm in arms.values():
        arm.records.sort(key=lambda r: (r.run.inputs.seed, r.id))
    return list(arms.values())


def collect(records: Sequence[Record]) -> list[TestSet]:
    """Test sets and their arms, labelled, in an order that does not depend on the records'; FashionIQ's runs of one
    category each also count as one.

    Raises:
        CirbenchError: no record, or a damaged one.
    """
    if not records:
        raise CirbenchError("no runs to report on. Make one with `cirbench run`, then name its folder.")
    records = sorted(records, key=lambda r: (r.name, r.id))
    groups: dict[tuple[str, str], list[Record]] = {}

    def add(record: Record) -> None:
        groups.setdefault((record.run.inputs.dataset, _test_key(record)), []).append(record)

    for record in records:
        add(record)
    for members in groups.values():
        check_runs(members)
    for record in joined(records, identity):
        add(record)
    out = []
    for (dataset, key), members in groups.items():
        arms = arms_of(members)
        for arm, label in zip(arms, labels(arms), strict=True):
            arm.label = label
        _mark_points(arms)
        for arm in arms:
            if arm.oracle and "test-oracle" not in arm.label:
                arm.label += " [test-oracle]"  # so that every place that shows a number says it
        protocol = members[0].run.default_protocol
        summary = next(iter(metric_names(arms, protocol)), "")
        arms.sort(key=lambda a: (-(np.mean(a.scores(protocol, summary) or [-1.0])), a.label, a.key))
        out.append(TestSet(dataset, key, members[0].run.split, arms))
    return out


def _mark_points(arms: Sequence[Arm], long: int = 12, many: int = 4) -> None:
    """Mark arms that are one of many settings, where there are too many rows to see methods and named variants."""
    count = Counter(arm.method for arm in arms)
    for arm in arms:
        given = bool(arm.run.overrides)
        arm.point = len(arms) > long and count[arm.method] > many and given and arm.label != arm.name


def labels(arms: Sequence[Arm]) -> list[str]:
    """A name for each: `Arm.name`; where those are equal, the knobs that differ; last, the run id."""
    out = [arm.name for arm in arms]
    for name in dict.fromkeys(out):
        same = [i for i, label in enumerate(out) if label == name]
        if len(same) > 1:
            family = [arm for arm in arms if arm.method == arms[same[0]].method]
            for i, extra in zip(same, _differences([arms[i] for i in same], family), strict=True):
                out[i] += extra
    for name in dict.fromkeys(out):
        same = [i for i, label in enumerate(out) if label == name]
        for i in same if len(same) > 1 else ():
            out[i] = f"{name} [{arms[i].records[0].id[:8]}]"
    return out


def _differences(arms: Sequence[Arm], family: Sequence[Arm]) -> Iterator[str]:
    """The knobs of each arm that are not equal in all of them; left out are values of the method as it comes.

    Where nothing was run as it comes, values usual in the family are left out.
    """
    as_it_comes = next((arm for arm in family if not arm.run.overrides), None)
    names = dict.fromkeys(k for arm in arms for k in arm.knobs)
    vary: dict[str, str] = {}
    for name in names:
        if len({repr(arm.knobs.get(name)) for arm in arms}) > 1:
            texts = [repr(arm.knobs.get(name)) for arm in ([as_it_comes] if as_it_comes else family)]
            # What a method was trained on is no default of it, so it is always named.
            vary[name] = "None" if name.startswith("trained.") else max(dict.fromkeys(texts), key=texts.count)
    for arm in arms:
        parts = [
            f"{_knob_name(name)}={_short(arm.knobs.get(name))}" for name, usual in vary.items()
            if repr(arm.knobs.get(name)) != usual
        ]
        yield f" ({', '.join(parts)})" if parts else ""


def _knob_name(name: str) -> str:
    """A knob without its scope. One of the training data is marked as such: the reported data may have it too."""
    scope, _, knob = name.partition(".")
    return f"trained with {knob}" if scope == "trained" else knob


def _short(value: Any) -> str:
    """Four digits say which of the values drawn by a sampler it was."""
    return f"{value:.4g}" if isinstance(value, float) and len(repr(value)) > 8 else str(value)
