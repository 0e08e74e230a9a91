"""A sweep as data: reading a TOML file, checking every key of it, and the points it stands for.

Nothing is run and torch is not imported here: a bad file is refused at once, in one message that names file and key.
"""

from __future__ import annotations

import itertools
import math
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cirbench import plugins, specs
from cirbench.seeds import digest
from cirbench.settings import parse_assignments, unknown
from cirbench.types import CirbenchError

__all__ = ["SAMPLERS", "Arm", "Objective", "Point", "Range", "Sweep", "read", "sweep_names"]

SAMPLERS = ("grid", "random", "tpe", "gp", "qmc")
PRUNERS = ("none", "wilcoxon")
SCOPES = ("method", "data", "train")
TOP = (
    "name", "question", "dataset", "seeds", "sampler", "trials", "timeout", "retries", "pruner", "objective", "fixed",
    "arms", "variants", "note",
)
ARM = ("label", "method", "variants", "fixed", "points", "space")
VARIANT = ("note", "fixed", "space")
RANGE = ("low", "high", "log", "step")
MAX_POINTS = 10_000


@dataclass(frozen=True)
class Range:
    """An interval of numbers that a sampler draws from; a grid needs a step."""

    low: float
    high: float
    log: bool = False
    step: float | None = None

    @property
    def whole(self) -> bool:
        """Whether it holds whole numbers only."""
        return isinstance(self.low, int) and isinstance(self.high, int) and isinstance(self.step or 1, int)

    def values(self) -> list[float]:
        """low, low + step, ..., high."""
        assert self.step
        count = math.floor((self.high - self.low) / self.step + 1e-9) + 1
        return [self.low + i * self.step if self.whole else round(self.low + i * self.step, 12) for i in range(count)]


@dataclass(frozen=True)
class Arm:
    """One method in one or more variants, what is fixed for it and what varies."""

    label: str
    method: str
    variants: tuple[str, ...] = ("",)
    fixed: Mapping[str, Any] = field(default_factory=dict)
    points: tuple[Mapping[str, Any], ...] = ({},)
    space: Mapping[str, list[Any] | Range] = field(default_factory=dict)


@dataclass(frozen=True)
class Objective:
    """What is compared: a metric under a named protocol, on the split `select`; never on `report`."""

    protocol: str
    metric: str
    direction: str = "maximize"


@dataclass(frozen=True)
class Point:
    """One point of the space: what a trial runs, once a seed."""

    arm: str
    method: str
    variant: str
    values: Mapping[str, Any]
    fixed: Mapping[str, Any] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """For people: what differs from the other points."""
        varied = ", ".join(f"{k.partition('.')[2]}={v}" for k, v in self.values.items())
        return " ".join(p for p in (self.arm, self.variant, varied) if p)


@dataclass(frozen=True)
class Sweep:
    """A checked sweep; see docs/add-a-sweep.md for the file."""

    name: str
    question: str
    file: str
    dataset: str
    seeds: tuple[int, ...]
    sampler: str
    arms: tuple[Arm, ...]
    objective: Objective
    trials: int | None = None
    timeout: float | None = None
    retries: int = 1
    pruner: str = "none"
    variant: str = ""
    note: str = ""
    root: Path | None = None

    @property
    def tuning(self) -> bool:
        """Whether the sampler looks at earlier results: then its best is the best of many tries."""
        return self.sampler in ("tpe", "gp")

    def points(self) -> list[Point]:
        """Every point of a grid, in file order."""
        out = []
        for arm in self.arms:
            axes = [v.values() if isinstance(v, Range) else v for v in arm.space.values()]
            for variant, fixed, row in itertools.product(arm.variants, arm.points, itertools.product(*axes)):
                values = {**fixed, **dict(zip(arm.space, row, strict=True))}
                out.append(Point(arm.label, arm.method, variant, values, arm.fixed))
        return out

    @property
    def total(self) -> int:
        """How many points will be run."""
        if self.sampler == "grid":
            return min(len(self.points()), self.trials or MAX_POINTS)
        assert self.trials is not None
        return self.trials

    def plan(self, point: Point, seed: int) -> specs.Plan:
        """The ordinary run of one seed of a point."""
        over = {**point.fixed, **point.values}
        return specs.plan(point.method, self.dataset, point.variant, seed=seed, root=self.root, over=over)

    def definition(self) -> dict[str, Any]:
        """Everything that makes this study this study, as JSON values."""
        def axis(values: list[Any] | Range) -> Any:
            if isinstance(values, Range):
                return {"low": values.low, "high": values.high, "log": values.log, "step": values.step}
            return values

        return {
            "name": self.name, "dataset": self.dataset, "seeds": list(self.seeds), "sampler": self.sampler,
            "pruner": self.pruner, "variant": self.variant,
            "objective": {"split": "select", "protocol": self.objective.protocol, "metric": self.objective.metric},
            "arms": [
                {
                    "label": a.label, "method": a.method, "variants": list(a.variants), "fixed": dict(a.fixed),
                    "points": [dict(p) for p in a.points], "space": {k: axis(v) for k, v in a.space.items()},
                }
                for a in self.arms
            ],
        }

    def study(self) -> str:
        """Name of the study: another design, or code that may give another number, is another study."""
        some = {p.method: specs.sources(self.plan(p, self.seeds[0])) for p in self.corners()}
        return f"{self.name}-{self.dataset.removesuffix('.py').split('/')[-1]}-{digest([self.definition(), some])[:10]}"

    def corners(self) -> list[Point]:
        """Every point of a grid; of a continuous space the points at each end of each field."""
        if self.sampler == "grid":
            return self.points()
        out = []
        for arm in self.arms:
            first = {k: v.low if isinstance(v, Range) else v[0] for k, v in arm.space.items()}
            out.append(Point(arm.label, arm.method, arm.variants[0], first, arm.fixed))
            for key, axis in arm.space.items():
                ends = [axis.high] if isinstance(axis, Range) else axis[1:]
                out += [Point(arm.label, arm.method, arm.variants[0], {**first, key: e}, arm.fixed) for e in ends]
        return out


def sweep_names() -> list[str]:
    """The built-in sweeps, sorted."""
    return sorted(p.stem for p in plugins._folder("cirbench.sweeps").glob("*.toml"))


def _find(name: str) -> Path:
    if name.endswith(".toml") or "/" in name:
        if not Path(name).is_file():
            raise CirbenchError(f"no sweep file at {name}. Built in: {', '.join(sweep_names())}.")
        return Path(name)
    if name not in sweep_names():
        raise unknown("sweep", name, sweep_names(), "A path to a .toml file works as well.")
    return plugins._folder("cirbench.sweeps") / f"{name}.toml"


class _Checker:
    """Errors that name the file and the key."""

    def __init__(self, file: str) -> None:
        self.file = file

    def fail(self, key: str, message: str) -> CirbenchError:
        return CirbenchError(f"{self.file}, key {key}: {message}")

    def keys(self, table: Mapping[str, Any], where: str, allowed: Sequence[str]) -> None:
        for key in table:
            if key not in allowed:
                raise self.fail(f"{where}{key}", str(unknown("key", key, allowed)))

    def get(
        self, table: Mapping[str, Any], key: str, kind: type | tuple[type, ...], default: Any, where: str = ""
    ) -> Any:
        value = table.get(key, default)
        kinds = kind if isinstance(kind, tuple) else (kind,)
        if value is not None and (not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds)):
            wanted = " or ".join(k.__name__ for k in kinds)
            raise self.fail(f"{where}{key}", f"{value!r} is not of the type {wanted}.")
        return value

    def scoped(self, table: Mapping[str, Any], where: str) -> dict[str, Any]:
        """`{"method.x": ...}`, written so or as `[fixed.method] x = ...`."""
        out: dict[str, Any] = {}
        for key, value in table.items():
            if key in SCOPES and isinstance(value, dict):
                out.update({f"{key}.{name}": v for name, v in value.items()})
            elif key.partition(".")[0] in SCOPES and "." in key:
                out[key] = value
            else:
                raise self.fail(f"{where}.{key}", f"fields are named {', '.join(f'{s}.FIELD' for s in SCOPES)}.")
        return out

    def axis(self, key: str, value: Any, sampler: str) -> list[Any] | Range:
        if isinstance(value, list):
            if not value:
                raise self.fail(key, "the list of values is empty, so there is nothing to run.")
            if len({repr(v) for v in value}) < len(value):
                raise self.fail(key, f"{value!r} names a value twice.")
            if not all(isinstance(v, str | int | float | bool) for v in value):
                raise self.fail(key, f"{value!r}: values are texts, numbers, true or false.")
            return list(value)
        if not isinstance(value, dict):
            raise self.fail(key, f"{value!r} is neither a list of values nor a range {{low = ..., high = ...}}.")
        self.keys(value, f"{key}.", RANGE)
        for end in ("low", "high"):
            if end not in value:
                raise self.fail(f"{key}.{end}", "a range needs low and high.")
            self.get(value, end, (int, float), None, f"{key}.")
        log = self.get(value, "log", bool, False, f"{key}.")
        step = self.get(value, "step", (int, float), None, f"{key}.")
        low, high = value["low"], value["high"]
        if not low < high or not math.isfinite(high - low):
            raise self.fail(key, f"the range from {low} to {high} is empty; low must be below high.")
        if log and (low <= 0 or step is not None):
            raise self.fail(key, "a logarithmic range needs low > 0 and has no step.")
        if step is not None and not 0 < step <= high - low:
            raise self.fail(f"{key}.step", f"{step} does not fit between {low} and {high}.")
        if sampler == "grid" and step is None:
            raise self.fail(key, "a grid needs a list of values, or a range with a step.")
        return Range(low, high, log, step)


def read(
    name: str, *, dataset: str = "", variant: str = "", seeds: Sequence[int] | None = None, trials: int | None = None,
    timeout: float | None = None, sets: Sequence[str] = (), root: Path | None = None,
) -> Sweep:
    """Read and check a sweep; arguments replace what the file says.

    Args:
        name: a built-in sweep, or the path of a .toml file.
        dataset: instead of the file's.
        variant: one of the file's `[variants.NAME]`, or "" for none.
        seeds: instead of the file's.
        trials: instead of the file's.
        timeout: seconds after which no further point is begun.
        sets: `scope.field=value`, fixed for every point.
        root: folder of the data.

    Raises:
        CirbenchError: anything wrong, naming file and key; every point is checked against the fields it sets.
    """
    path = _find(name)
    check = _Checker(path.name if name == path.stem else name)
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise CirbenchError(f"{check.file} is not valid TOML: {error}.") from None
    check.keys(data, "", TOP)
    title = check.get(data, "name", str, path.stem)
    if title == "status" or not title.replace("-", "").replace("_", "").isalnum():
        raise check.fail("name", f"{title!r}: a name has letters, digits, - and _ only, and is not 'status'.")
    sampler = check.get(data, "sampler", str, "grid")
    if sampler not in SAMPLERS:
        raise check.fail("sampler", str(unknown("sampler", sampler, SAMPLERS)))
    pruner = check.get(data, "pruner", str, "none")
    if pruner not in PRUNERS:
        raise check.fail("pruner", str(unknown("pruner", pruner, PRUNERS)))
    if pruner != "none" and sampler == "grid":
        raise check.fail("pruner", "a grid answers its question with all of its points, so none may be cut short.")
    chosen = list(seeds) if seeds is not None else check.get(data, "seeds", list, [0])
    if not chosen or any(not isinstance(s, int) or isinstance(s, bool) or s < 0 for s in chosen):
        raise check.fail("seeds", f"{chosen!r} is not a list of whole numbers from 0.")
    if len(set(chosen)) < len(chosen):
        raise check.fail("seeds", f"{chosen!r} names a seed twice. Each seed is one run.")
    if pruner != "none" and len(chosen) < 2:
        raise check.fail("pruner", "it needs at least two seeds: a single one says nothing of their spread.")
    many = trials if trials is not None else check.get(data, "trials", int, None)
    if many is not None and many < 1:
        raise check.fail("trials", f"{many}: at least 1.")
    if many is None and sampler != "grid":
        raise check.fail("trials", f"the sampler {sampler} needs a number of trials.")
    seconds = timeout if timeout is not None else check.get(data, "timeout", (int, float), None)
    if seconds is not None and seconds <= 0:
        raise check.fail("timeout", f"{seconds}: seconds, more than 0.")
    retries = check.get(data, "retries", int, 1)
    if not 0 <= retries <= 10:
        raise check.fail("retries", f"{retries}: how often a failing run is tried again, 0 to 10.")
    where = dataset or check.get(data, "dataset", str, "scenes")
    variants = check.get(data, "variants", dict, {})
    for key, value in variants.items():
        if not isinstance(value, dict):
            raise check.fail(f"variants.{key}", "it is not a table.")
        check.keys(value, f"variants.{key}.", VARIANT)
    if variant and variant not in variants:
        raise unknown(f"variant of the sweep {title}", variant, list(variants))
    part = variants.get(variant, {})
    try:
        facts = plugins.find_dataset(where).SPEC
    except CirbenchError as error:
        raise check.fail("dataset", str(error)) from None
    fixed = check.scoped(check.get(data, "fixed", dict, {}), "fixed")
    fixed |= check.scoped(part.get("fixed", {}), f"variants.{variant}.fixed")
    given = parse_assignments(sets, SCOPES)
    fixed |= {f"{scope}.{key}": value for scope, values in given.items() for key, value in values.items()}
    space = check.scoped(part.get("space", {}), f"variants.{variant}.space")
    sweep = Sweep(
        title, check.get(data, "question", str, ""), check.file, where, tuple(chosen), sampler,
        tuple(_arms(check, data, fixed, space, sampler)), _objective(check, data, facts), many, seconds, retries,
        pruner, variant, part.get("note", "") if variant else check.get(data, "note", str, ""), root,
    )
    return _checked(check, sweep)


def _arms(
    check: _Checker, data: Mapping[str, Any], fixed: Mapping[str, Any], space: Mapping[str, Any], sampler: str
) -> list[Arm]:
    tables = check.get(data, "arms", list, [])
    if not tables:
        raise check.fail("arms", "there is none. A sweep needs at least one [[arms]] with a method.")
    if sampler != "grid" and len(tables) > 1:
        raise check.fail("arms", f"the sampler {sampler} needs exactly one, since its points must be comparable.")
    out: list[Arm] = []
    for n, table in enumerate(tables):
        where = f"arms[{n}]."
        if not isinstance(table, dict):
            raise check.fail(f"arms[{n}]", "it is not a table.")
        check.keys(table, where, ARM)
        if not check.get(table, "method", str, "", where):
            raise check.fail(f"{where}method", "it is missing.")
        named = check.get(table, "variants", list, [""], where)
        points = [check.scoped(p, f"{where}points") for p in check.get(table, "points", list, [{}], where)]
        if not points or not named:
            raise check.fail(f"{where}{'variants' if points else 'points'}", "the list is empty, so nothing would run.")
        raw = check.scoped(check.get(table, "space", dict, {}, where), f"{where}space")
        raw |= {key: axis for key, axis in space.items() if key in raw}
        axes = {key: check.axis(f"{where}space.{key}", axis, sampler) for key, axis in raw.items()}
        held = {**check.scoped(check.get(table, "fixed", dict, {}, where), f"{where}fixed"), **fixed}
        clash = [k for k in held if k in axes or any(k in p for p in points)]
        if clash:
            raise check.fail(f"{where}space.{clash[0]}", f"it is also fixed, to {held[clash[0]]!r}. Keep one of them.")
        if sampler != "grid" and (not axes or len(named) > 1 or len(points) > 1):
            raise check.fail(f"{where}space", f"the sampler {sampler} needs a space, no points, no variants.")
        label = check.get(table, "label", str, "", where)
        out.append(Arm(label, table["method"], tuple(named), held, tuple(points), axes))
    return out


def _objective(check: _Checker, data: Mapping[str, Any], facts: Any) -> Objective:
    table = check.get(data, "objective", dict, {})
    check.keys(table, "objective.", ("split", "protocol", "metric"))
    split = check.get(table, "split", str, "select", "objective.")
    if split != "select":
        raise check.fail("objective.split", f"{split!r}: points are compared on 'select'. A number is reported once, "
                                            "on 'report', and choosing by it would make it worthless.")
    names = {p.name: p for p in facts.protocols}
    protocol = check.get(table, "protocol", str, "", "objective.") or facts.protocols[0].name
    if protocol not in names:
        # A sweep written for one dataset is asked of another: its default protocol stands in.
        if data.get("dataset", "scenes") == facts.name:
            raise check.fail("objective.protocol", str(unknown(f"protocol of {facts.name}", protocol, list(names))))
        protocol = facts.protocols[0].name
    metric = check.get(table, "metric", str, "", "objective.") or names[protocol].summary
    if metric not in names[protocol].metrics:
        if data.get("dataset", "scenes") == facts.name:
            raise check.fail("objective.metric", str(unknown(f"metric of {protocol}", metric, names[protocol].metrics)))
        metric = names[protocol].summary
    return Objective(protocol, metric, "minimize" if metric == "MdR" else "maximize")


def _checked(check: _Checker, sweep: Sweep) -> Sweep:
    """Resolve every point, so that an unknown field, a wrong type or a value out of range stops the sweep now."""
    count = 0
    for arm in sweep.arms if sweep.sampler == "grid" else ():
        sizes = [len(v.values()) if isinstance(v, Range) else len(v) for v in arm.space.values()]
        count += len(arm.variants) * len(arm.points) * math.prod(sizes)
    if count > MAX_POINTS:
        raise check.fail("arms", f"{count} points; a grid may have {MAX_POINTS}. Use sampler = \"random\" with trials.")
    seen: dict[str, str] = {}
    for point in sweep.corners():
        try:
            planned = sweep.plan(point, sweep.seeds[0])
        except CirbenchError as error:
            number = next(n for n, a in enumerate(sweep.arms) if (a.label, a.method) == (point.arm, point.method))
            named = point.label or point.method
            raise CirbenchError(f"{check.file}, arms[{number}], point ({named}): {error}") from None
        key = digest([planned.spec.method, planned.spec.config, planned.spec.data, planned.spec.train])
        if sweep.sampler == "grid" and key in seen:
            raise check.fail("arms", f"the points ({seen[key]}) and ({point.label}) are one and the same.")
        seen[key] = point.label or point.method
    return sweep
