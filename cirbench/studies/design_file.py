"""Sweeps from TOML files: reading a file, checking every key, and listing its points.

Nothing is run and torch is not imported here: a bad file is refused at once, in one message that names file and key.
"""

from __future__ import annotations

import math
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from cirbench import plugins
from cirbench.data.reading import read_text
from cirbench.runs import planning
from cirbench.seeds import digest
from cirbench.settings import parse_assignments, unknown
from cirbench.studies.design import MAX_POINTS, Arm, Objective, Point, Range, Sweep
from cirbench.studies.design_checks import SCOPES, Checker
from cirbench.types import CirbenchError, shown

__all__ = ["SAMPLERS", "Arm", "Objective", "Point", "Range", "Sweep", "read", "sweep_names"]

SAMPLERS = ("grid", "random", "tpe", "gp", "qmc")
PRUNERS = ("none", "wilcoxon")
TOP = (
    "name", "question", "dataset", "seeds", "sampler", "trials", "timeout", "retries", "pruner", "objective", "fixed",
    "arms", "variants", "note",
)
ARM = ("label", "method", "methods", "variants", "fixed", "points", "space")
VARIANT = ("note", "fixed", "space", "arms", "join")


def sweep_names() -> list[str]:
    """The built-in sweeps, sorted."""
    return sorted(p.stem for p in plugins._folder("cirbench.sweeps").glob("*.toml"))


def question(name: str) -> str:
    """The question of a built-in sweep."""
    return str(tomllib.loads(_find(name).read_text(encoding="utf-8")).get("question", ""))


def _find(name: str) -> Path:
    if name.endswith(".toml") or "/" in name:
        if not Path(name).is_file():
            raise CirbenchError(f"no sweep file at {name}. Built in: {', '.join(sweep_names())}.")
        return Path(name)
    if name not in sweep_names():
        raise unknown("sweep", name, sweep_names(), "A path to a .toml file works as well.")
    return plugins._folder("cirbench.sweeps") / f"{name}.toml"


def read(
    name: str, *, dataset: str = "", variant: str = "", seeds: Sequence[int] | None = None, trials: int | None = None,
    timeout: float | None = None, sets: Sequence[str] = (), root: Path | None = None, method: str = "",
    method_variant: str = "",
) -> Sweep:
    """Read and check a sweep; arguments replace what the file says.

    Args:
        name: a built-in sweep, or the path of a .toml file.
        dataset: instead of the file's.
        variant: one of the file's `[variants.NAME]`, or "" for none.
        seeds: instead of the file's.
        trials: instead of the file's.
        timeout: seconds after which no further point is started.
        sets: `scope.field=value`, fixed for every point.
        root: folder of the data.
        method: instead of the file's; settings it has no field for are neither fixed nor varied.
        method_variant: of that method.

    Raises:
        CirbenchError: anything wrong, naming file and key; every point is checked against the fields it sets.
    """
    path = _find(name)
    check = Checker(path.name if name == path.stem else name)
    try:
        data = tomllib.loads(read_text(path))
    except (ValueError, RecursionError) as error:
        # Beside errors of TOML: lists nested too deeply, and Python's own on numbers of thousands of digits.
        deep = isinstance(error, RecursionError)
        why = "lists are nested too deeply" if deep else str(error).partition("; use sys")[0]
        raise CirbenchError(f"{check.file} is not valid TOML: {why[:200]}.") from None
    check.plain(data)
    check.keys(data, "", TOP)
    title = check.get(data, "name", str, path.stem)
    if title == "status" or not title.replace("-", "").replace("_", "").isalnum():
        raise check.fail("name", f"a name must consist of letters, digits, - and _ and not be 'status', got {title!r}.")
    sampler = check.get(data, "sampler", str, "grid")
    if sampler not in SAMPLERS:
        raise check.fail("sampler", str(unknown("sampler", sampler, SAMPLERS)))
    pruner = check.get(data, "pruner", str, "none")
    if pruner not in PRUNERS:
        raise check.fail("pruner", str(unknown("pruner", pruner, PRUNERS)))
    if pruner != "none" and sampler == "grid":
        raise check.fail("pruner", "a grid runs all of its points: use pruner = \"none\" or another sampler.")
    chosen = list(seeds) if seeds is not None else check.get(data, "seeds", list, [0])
    if not chosen or any(not isinstance(s, int) or isinstance(s, bool) or not 0 <= s < 2**63 for s in chosen):
        raise check.fail(
            "seeds", f"seeds must be a list of whole numbers >= 0 below 2^63, such as [0, 1, 2], got {shown(chosen)}."
        )
    if len(set(chosen)) < len(chosen):
        raise check.fail("seeds", f"{chosen!r} holds a seed twice. Each seed is one run.")
    if pruner != "none" and len(chosen) < 2 and seeds is not None:
        pruner = "none"  # it never stops a point before its second seed
    if pruner != "none" and len(chosen) < 2:
        raise check.fail("pruner", f"{pruner!r} needs at least two seeds: one does not show their spread.")
    many = trials if trials is not None else check.get(data, "trials", int, None)
    if many is not None and not 1 <= many <= MAX_POINTS:
        raise check.fail("trials", f"trials must be 1 to {MAX_POINTS}, got {shown(many)}.")
    if many is None and sampler != "grid":
        raise check.fail("trials", f"the sampler {sampler!r} needs a number of trials, e.g. trials = 20.")
    seconds = timeout if timeout is not None else check.get(data, "timeout", (int, float), None)
    if seconds is not None and not 0 < seconds <= 1e12:
        raise check.fail("timeout", f"timeout must be > 0 seconds and at most 1e12, got {shown(seconds)}.")
    retries = check.get(data, "retries", int, 1)
    if not 0 <= retries <= 10:
        raise check.fail("retries", f"retries (of a failing run) must be 0 to 10, got {retries}.")
    where = dataset or check.get(data, "dataset", str, "scenes")
    variants = check.get(data, "variants", dict, {})
    for key, value in variants.items():
        if not isinstance(value, dict):
            raise check.fail(f"variants.{key}", f"a table is expected, got {value!r}.")
        check.keys(value, f"variants.{key}.", VARIANT)
        check.get(value, "arms", list, [], f"variants.{key}.")
        for name in check.get(value, "join", list, [], f"variants.{key}."):
            known = [n for n, v in variants.items() if isinstance(v, dict) and "arms" in v]
            if name not in known:
                raise check.fail(f"variants.{key}.join", str(unknown("variant with arms", str(name), known)))
    if variant and variant not in variants:
        raise unknown(f"variant of the sweep {title}", variant, list(variants))
    part = variants.get(variant, {})
    note = check.get(part, "note", str, "", f"variants.{variant}.") if variant else check.get(data, "note", str, "")
    try:
        facts = plugins.find_dataset(where).SPEC
    except CirbenchError as error:
        raise check.fail("dataset", str(error)) from None
    fixed = check.scoped(check.get(data, "fixed", dict, {}), "fixed")
    fixed |= check.scoped(part.get("fixed", {}), f"variants.{variant}.fixed")
    tables = part.get("arms", check.get(data, "arms", list, []))
    tables = [*tables, *(arm for name in part.get("join", []) for arm in variants[name]["arms"])]
    place = f"variants.{variant}.arms" if "arms" in part else "arms"
    asked = ""
    if method or method_variant:
        tables, found = _another(check, tables, place, method, method_variant)
        fixed = _had(found, fixed)
        asked = "-".join(p for p in (found.name, method_variant) if p)
    given = parse_assignments(sets, SCOPES)
    fixed |= {f"{scope}.{key}": value for scope, values in given.items() for key, value in values.items()}
    space = check.scoped(part.get("space", {}), f"variants.{variant}.space")
    wanted = _objective(check, data, facts)
    if pruner != "none":
        _by_query(check, wanted, pruner, facts)
    sweep = Sweep(
        title, check.get(data, "question", str, ""), check.file, where, tuple(chosen), sampler,
        tuple(_arms(check, tables, place, fixed, space, sampler, where, root)), wanted, many,
        seconds, retries, pruner, variant, note, root, asked,
    )
    return _checked(check, sweep)


def _another(
    check: Checker, tables: Any, place: str, method: str, variant: str
) -> tuple[list[dict[str, Any]], plugins.MethodFile]:
    """The one arm of a sweep, with another method or variant."""
    one = tables[0] if isinstance(tables, list) and len(tables) == 1 else {}
    if not isinstance(one, dict) or "method" not in one:
        raise check.fail(place, "--method needs a sweep whose only [[arms]] has a `method`; this one has other arms.")
    found = plugins.find_method(method or one["method"])
    if isinstance(space := one.get("space"), dict):
        # A field that the method lacks cannot vary; if no other field does, the unknown field is reported later.
        axes = check.scoped(space, f"{place}[0].space")
        has = _had(found, axes)
        one = {**one, "space": has if has or "points" in one else axes}
    return [{**one, "label": found.name, "method": method or one["method"], "variants": [variant]}], found


def _had(found: plugins.MethodFile, fields: Mapping[str, Any]) -> dict[str, Any]:
    """The fields without those of scope `method` that the method does not have, or allows one value of alone."""
    kinds = {f"method.{name}": info.annotation for name, info in found.config.model_fields.items()}
    single = {key for key, kind in kinds.items() if get_origin(kind) is Literal and len(get_args(kind)) == 1}
    return {k: v for k, v in fields.items() if not k.startswith("method.") or (k in kinds and k not in single)}


def _expanded(check: Checker, tables: Any, place: str) -> list[tuple[str, dict[str, Any]]]:
    """(key, table) of each arm; `methods` gives one arm per method."""
    if not isinstance(tables, list) or not tables:
        raise check.fail(place, "no arms. A sweep needs at least one [[arms]] with a method.")
    out: list[tuple[str, dict[str, Any]]] = []
    for n, table in enumerate(tables):
        where = f"{place}[{n}]"
        if not isinstance(table, dict):
            raise check.fail(where, f"a table is expected, got {table!r}.")
        check.keys(table, f"{where}.", ARM)
        if "methods" not in table:
            out.append((where, table))
            continue
        names = check.get(table, "methods", list, [], f"{where}.")
        clash = [k for k in ("method", "variants") if k in table]
        if clash:
            raise check.fail(f"{where}.{clash[0]}", "`methods` already names methods and variants. Keep one.")
        if not names or not all(isinstance(name, str) and name.strip() for name in names):
            raise check.fail(f"{where}.methods", f'{names!r} is not a list such as ["sum", "tirg like-dwc"].')
        rest = {k: v for k, v in table.items() if k != "methods"}
        for name in names:
            method, _, named = name.strip().partition(" ")
            label = " ".join(p for p in (check.get(table, "label", str, "", f"{where}."), method) if p)
            out.append((where, {**rest, "label": label, "method": method, "variants": [named.strip()]}))
    return out


def _arms(
    check: Checker, tables: Any, place: str, fixed: Mapping[str, Any], space: Mapping[str, Any], sampler: str,
    dataset: str, root: Path | None,
) -> list[Arm]:
    expanded = _expanded(check, tables, place)
    if sampler != "grid" and len(expanded) > 1:
        raise check.fail(place, f"the sampler {sampler!r} needs exactly one arm, got {len(expanded)}.")
    out: list[Arm] = []
    for key, table in expanded:
        where = f"{key}."
        if not check.get(table, "method", str, "", where):
            raise check.fail(f"{where}method", "missing. Name a method (`cirbench list methods`).")
        named = check.get(table, "variants", list, [""], where)
        points = [check.scoped(p, f"{where}points") for p in check.get(table, "points", list, [{}], where)]
        if not all(isinstance(name, str) for name in named):
            raise check.fail(f"{where}variants", f"{named!r} is not a list of names.")
        if not points or not named:
            raise check.fail(f"{where}{'variants' if points else 'points'}", "the list is empty, so nothing would run.")
        held = {**check.scoped(check.get(table, "fixed", dict, {}, where), f"{where}fixed"), **fixed}
        if table.get("space") == "tune":
            raw = _declared(check, where, table["method"], named[0], held, dataset, root)
        else:
            raw = check.scoped(check.get(table, "space", dict, {}, where), f"{where}space")
        raw |= {key: axis for key, axis in space.items() if key in raw}
        axes = {key: check.axis(f"{where}space.{key}", axis, sampler) for key, axis in raw.items()}
        clash = [k for k in held if k in axes or any(k in p for p in points)]
        if clash:
            raise check.fail(f"{where}space.{clash[0]}", f"also fixed, to {held[clash[0]]!r}. Keep one of them.")
        if sampler != "grid" and (not axes or len(named) > 1 or len(points) > 1):
            raise check.fail(f"{where}space", f"the sampler {sampler!r} needs a space, without points or variants.")
        label = check.get(table, "label", str, "", where)
        out.append(Arm(label, table["method"], tuple(named), held, tuple(points), axes, key))
    return out


def _declared(
    check: Checker, where: str, method: str, variant: str, held: Mapping[str, Any], dataset: str, root: Path | None
) -> dict[str, Any]:
    """The ranges of a method's continuous fields that have an effect here.

    Left out: fixed fields, fields whose `when` does not hold, and fields that the variant sets to an end of their range
    or beyond, since that switches the part off, or all others.
    """
    try:
        planned = planning.plan(method, dataset, variant, root=root, over=held)
    except CirbenchError as error:
        raise check.fail(f"{where}method", str(error)) from None
    found, values, out = planned.method, planned.config.model_dump(), dict[str, Any]()
    for name, declared in found.tune.items():
        key, axis, kept = f"method.{name}", dict(declared), found.variants.get(variant, {}).get(name)
        unmet = [f for f, wanted in axis.pop("when", {}).items() if values.get(f) not in wanted]
        off = kept is not None and not axis["low"] < kept < axis["high"]
        if key not in held and not unmet and not off:
            out[key] = axis
    if not out:
        raise check.fail(
            f"{where}space", f"{method} has no field to tune here. Its file may declare TUNE = "
            '{"field": {"low": ..., "high": ...}}; fixed fields are not tuned.'
        )
    return out


def _objective(check: Checker, data: Mapping[str, Any], facts: Any) -> Objective:
    table = check.get(data, "objective", dict, {})
    check.keys(table, "objective.", ("split", "protocol", "metric"))
    split = check.get(table, "split", str, "select", "objective.")
    if split != "select":
        raise check.fail("objective.split", f"points are compared on 'select', got {split!r}. Choosing points on "
                                            "'report' would bias the reported numbers.")
    names = {p.name: p for p in facts.protocols}
    protocol = check.get(table, "protocol", str, "", "objective.") or facts.protocols[0].name
    if protocol not in names:
        # A sweep written for another dataset: use this dataset's default protocol.
        if data.get("dataset", "scenes") == facts.name:
            raise check.fail("objective.protocol", str(unknown(f"protocol of {facts.name}", protocol, list(names))))
        protocol = facts.protocols[0].name
    metric = check.get(table, "metric", str, "", "objective.") or names[protocol].summary
    if metric not in names[protocol].metrics:
        if data.get("dataset", "scenes") == facts.name:
            raise check.fail("objective.metric", str(unknown(f"metric of {protocol}", metric, names[protocol].metrics)))
        metric = names[protocol].summary
    return Objective(protocol, metric, "minimize" if metric in ("MdR", "MR") else "maximize")


def _by_query(check: Checker, wanted: Objective, pruner: str, facts: Any) -> None:
    """Refuse an objective that a pruner cannot compare query by query."""
    from cirbench.scoring import metrics  # numpy, which most files can be checked without

    def of_all(name: str) -> bool:
        return any(metrics.parse(part)[1] == 0 for part in metrics.parts(name))

    if of_all(wanted.metric):
        others = [m for p in facts.protocols if p.name == wanted.protocol for m in p.metrics if not of_all(m)]
        raise check.fail(
            "objective.metric", f"{wanted.metric!r} is a single number over all queries, but the pruner {pruner!r} "
            f"compares points query by query. Use {others[0] if others else 'R@1'}, or pruner = \"none\"."
        )


def _checked(check: Checker, sweep: Sweep) -> Sweep:
    """Resolve every point, so that an unknown field, a wrong type or a value out of range stops the sweep now."""
    count = 0
    for arm in sweep.arms if sweep.sampler == "grid" else ():
        sizes = [v.count if isinstance(v, Range) else len(v) for v in arm.space.values()]
        count += len(arm.variants) * len(arm.points) * math.prod(sizes)
    if count > MAX_POINTS:
        raise check.fail("arms", f"{count} points; at most {MAX_POINTS} are run. Use sampler = \"random\" with trials.")
    seen: dict[str, str] = {}
    for point in sweep.corners():
        try:
            planned = sweep.plan(point, sweep.seeds[0])
        except CirbenchError as error:
            place = next(a.place for a in sweep.arms if (a.label, a.method) == (point.arm, point.method))
            named = point.label or point.method
            raise CirbenchError(f"{check.file}, {place}, point ({named}): {error}") from None
        # The same point under another label is allowed and costs nothing: the run is done once.
        settings = [part.model_dump() for part in (planned.config, planned.knobs, planned.train)]
        key = digest([point.arm, str(planned.method.path), *settings])
        if sweep.sampler == "grid" and key in seen:
            raise check.fail("arms", f"the points ({seen[key]}) and ({point.label}) have equal settings. Remove one.")
        seen[key] = point.label or point.method
    return sweep
