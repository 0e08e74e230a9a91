"""From the arguments of a command to a resolved run: every cheap check happens here, before torch is imported."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import ModuleType
from typing import Any

from cirbench import numerics, plugins
from cirbench.data import loading
from cirbench.files import nearest_folder
from cirbench.scoring import metrics
from cirbench.settings import Settings, TrainSettings, parse_assignments, resolve, unknown
from cirbench.types import CirbenchError, Dataset, DatasetSpec, Protocol

#: Values of `Protocol.hit` and `Protocol.average` (scoring/protocol_scoring.py).
HITS, AVERAGES = ("targets", "first", "graded"), ("queries", "groups")


@dataclass(frozen=True)
class Plan:
    """A run that has passed the cheap checks.

    Attributes:
        method: the method file.
        dataset: the dataset's module.
        config, knobs, train: the resolved settings.
        seed: of the run; every consumer derives its own from it.
        variant: label of the overrides; not part of the identity.
        root: folder of the data; not part of the identity (the fingerprint is).
        overrides: what the variant, `--backbone` and `--set` changed, for labels.
        forms: the only text forms scored beside the default one, or None for all.
        stages: field of the method -> how the stage before was written (`after:sum clip4cir-1`), where its run has
            taken the field's place; a label.
    """

    method: plugins.MethodFile
    dataset: ModuleType
    config: Settings
    knobs: Settings
    train: TrainSettings
    seed: int
    variant: str = ""
    root: Path | None = None
    overrides: Mapping[str, Any] = field(default_factory=dict)
    forms: tuple[str, ...] | None = None
    stages: Mapping[str, str] = field(default_factory=dict)

    @property
    def facts(self) -> DatasetSpec:
        """The dataset's declared facts."""
        return self.dataset.SPEC


def _by_scope(overrides: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """`{"x": 1, "train.y": 2}` -> {"method": {"x": 1}, "train": {"y": 2}, "data": {}}; bare names are the method's."""
    out: dict[str, dict[str, Any]] = {"method": {}, "data": {}, "train": {}}
    for key, value in overrides.items():
        scope, dot, name = key.partition(".")
        out[scope if dot else "method"][name if dot else key] = value
    return out


def plan(
    method: str, dataset: str, variant: str = "", backbone: str = "", seed: int = 0, sets: Sequence[str] = (),
    root: Path | None = None, over: Mapping[str, Any] | None = None, recipe: str = "",
    forms: Sequence[str] | None = None,
) -> Plan:
    """Resolve and check one run.

    Later layers win: defaults, the paper's training settings, what the dataset needs, what the method needs on this
    dataset, the variant, `--backbone`, `--set`.

    Args:
        method: name or path.
        dataset: name or path.
        variant: one of the method's, or "".
        backbone: replaces the method's CLIP, or "".
        seed: of the run.
        sets: `scope.field=value` texts.
        root: folder of the data.
        over: the same as `sets`, already parsed (`{"method.x": 1}`).
        recipe: another dataset whose sizes and rates to use here (`scenes` is sized for two CPU cores), or "".
        forms: the only text forms to score beside the default one; None for all.

    Raises:
        CirbenchError: any error that can be found without loading data or weights.
    """
    found = plugins.find_method(method)
    module = plugins.find_dataset(dataset)
    facts: DatasetSpec = module.SPEC
    if not 0 <= seed < 2**63:
        raise CirbenchError(f"--seed must be >= 0 and below 2^63, got {seed}.")
    if variant and variant not in found.variants:
        raise unknown(f"variant of {found.name}", variant, list(found.variants), "See `cirbench list variants`.")
    recipes = [name for name in found.datasets if "/" not in name]
    if recipe and recipe not in recipes:
        raise unknown(f"recipe of {found.name}", recipe, recipes)
    sized = recipe or facts.name
    needed = _by_scope(found.datasets.get(sized, {}))
    # `DATASET/VARIANT` holds what a variant needs on that dataset: its own sizes are meant for real pictures.
    varied = _by_scope({**found.variants.get(variant, {}), **found.datasets.get(f"{sized}/{variant}", {})})
    if facts.train.get("flip", "none") == "none":
        # Texts of this dataset name positions, so mirroring would make them wrong under any variant; where a method
        # itself asks for it on this dataset, a variant that sets flips turns that off.
        if varied["train"].pop("flip", None) is not None and "flip" in needed["train"]:
            varied["train"]["flip"] = "none"
    known = sorted({p.form for p in facts.protocols})
    for form in forms or ():
        if form not in known:
            raise unknown(f"text form of {facts.name}", form, known)
    backed: dict[str, Any] = {}
    if backbone:
        if "clip" not in found.config.model_fields:
            raise CirbenchError(f"--backbone {backbone!r}: the method {found.name} uses no CLIP.")
        backed = {"clip": backbone}
    set_by_user = parse_assignments(sets, ("method", "data", "train"))
    for scope, values in _by_scope(over or {}).items():
        set_by_user[scope].update(values)
    config = resolve(
        found.config, "method", needed["method"], varied["method"], backed, set_by_user["method"]
    )
    knobs = resolve(module.Knobs, "data", needed["data"], varied["data"], set_by_user["data"])
    train = resolve(
        TrainSettings, "train", found.train, facts.train, needed["train"], varied["train"], set_by_user["train"]
    )
    assert isinstance(train, TrainSettings)
    if facts.needs_root:
        _check_root(facts, root)
    overrides = {
        f"{scope}.{name}": value
        for layer in (varied, {"method": backed}, set_by_user)
        for scope, values in layer.items()
        for name, value in values.items()
    }
    return Plan(
        found, module, config, knobs, train, seed, variant, root, overrides, None if forms is None else tuple(forms)
    )


def _check_root(facts: DatasetSpec, root: Path | None) -> None:
    get = facts.manual or f"`cirbench data get {facts.name} --root DIR` fetches what is public."
    if root is None:
        more = " ..." if len(facts.files) > 6 else ""
        files = f" It needs {', '.join(facts.files[:6])}{more}." if facts.files else ""
        raise CirbenchError(
            f"the dataset {facts.name} is not built in: name the folder that holds it with --root.{files} {get} "
            f"Then `cirbench data check {facts.name} --root DIR` checks that it is complete."
        )
    if not root.is_dir():
        near = nearest_folder(root)
        raise CirbenchError(f"--root {root}: no such folder; the nearest that exists is {near}. {get}")


def load(planned: Plan) -> Dataset:
    """Load the dataset of a plan, and check that every role has queries.

    Raises:
        CirbenchError: unreadable data, or an empty split.
    """
    dataset = loading.load(planned.dataset, planned.knobs, planned.root)
    if "report" not in dataset.splits:
        raise CirbenchError(
            f"{dataset.name} has no split 'report', so nothing can be reported; it has {', '.join(dataset.splits)}."
        )
    for protocol in dataset.protocols:
        _check_metrics(protocol, dataset.name)
    for role in ("train", "report"):
        # Evaluation-only datasets have no train split; `run` refuses to train on them.
        if role in dataset.splits and not dataset.splits[role].queries:
            raise CirbenchError(f"the {role} split of {dataset.name} is empty: it needs at least one query.")
    if planned.train.protocol:
        # The first protocol is the default: its text form is used in training.
        named = [p for p in dataset.protocols if p.name == planned.train.protocol]
        others = [p for p in dataset.protocols if p.name != planned.train.protocol]
        if not named:
            raise unknown(f"protocol of {dataset.name}", planned.train.protocol, [p.name for p in dataset.protocols])
        dataset = replace(dataset, protocols=(*named, *others))
    if planned.train.form and planned.train.form not in dataset.forms:
        raise unknown(f"text form (train.form) of {dataset.name}", planned.train.form, list(dataset.forms))
    if planned.train.selection == "select" and not (dataset.splits.get("select") and dataset.splits["select"].queries):
        raise CirbenchError(f"train.selection=select, but {dataset.name} has no select split. Use selection=last.")
    return dataset


def _check_metrics(protocol: Protocol, dataset: str) -> None:
    """Refuse names that scoring would stumble over after training.

    Raises:
        CirbenchError: an unknown metric, hit rule or average, or a summary that is no metric of the protocol.
    """
    where = f"the protocol {protocol.name} of {dataset}"
    if not protocol.metrics:
        raise CirbenchError(f"{where} has no metrics. Name at least one, such as R@1.")
    for name in protocol.metrics:
        try:
            for part in metrics.parts(name):
                metrics.parse(part)
        except (TypeError, ValueError) as error:
            raise CirbenchError(f"{where}: {error}.") from None
    if protocol.summary not in protocol.metrics:
        raise unknown(f"summary of {where}", str(protocol.summary), protocol.metrics)
    if protocol.hit not in HITS:
        raise unknown(f"hit rule of {where}", str(protocol.hit), HITS)
    if protocol.average not in AVERAGES:
        raise unknown(f"average of {where}", str(protocol.average), AVERAGES)


def scored(planned: Plan, dataset: Dataset) -> tuple[list[Protocol], dict[str, str]]:
    """The protocols that are scored, default first, and those that `--forms` leaves out with the reason."""
    default = dataset.protocols[0].form
    kept = [p for p in dataset.protocols if planned.forms is None or p.form in (default, *planned.forms)]
    left = {p.name: f"its text form {p.form!r} is not among --forms" for p in dataset.protocols if p not in kept}
    return kept, left


def training_form(planned: Plan, dataset: Dataset) -> str:
    """The text form that a plan trains with: `train.form`, else that of the default protocol."""
    return planned.train.form or dataset.protocols[0].form


def code(planned: Plan) -> dict[str, int | str]:
    """Part of the code that a number of this run depends on -> its released number, or its digest (numerics.py)."""
    method = planned.method
    file = method.path if not method.module else method.module
    dataset = planned.dataset.__name__
    source = dataset if dataset.startswith("cirbench.") else Path(str(planned.dataset.__file__))
    return {
        "harness": numerics.of_part("harness"),
        "method": numerics.of_plugin("methods", method.name, numerics.entry(file)),
        "dataset": numerics.of_plugin("datasets", planned.facts.name, numerics.entry(source)),
    }
