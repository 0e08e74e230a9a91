"""What record.json holds, as typed values: read once, checked field by field (docs/records.md).

Plain dataclasses and the standard library: listing a thousand runs must stay cheap. Keys that are not named here are
kept in `Record.data`, so that a record of a later release with more keys stays readable.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeGuard

from cirbench.types import Protocol

__all__ = [
    "CODE", "Cost", "Evaluated", "Fields", "Inputs", "Missing", "ProtocolScores", "RunData", "Selected", "Selection",
    "is_number", "read_run",
]

CODE = ("numerics", "source")
"""Keys of `inputs` that say which code computed a run; records have one of them, older ones the second."""

_REQUIRED: Any = object()


def kind(value: Any) -> str:
    """The type of a JSON value, in words."""
    if isinstance(value, float) and not math.isfinite(value):
        return "not finite"
    names = {"dict": "an object", "list": "a list", "str": "text", "NoneType": "null", "bool": "true or false"}
    return names.get(type(value).__name__, "a number")


def is_number(value: Any) -> TypeGuard[int | float]:
    """Whether a JSON value is a finite number; true and false are not."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


class Fields:
    """One JSON object, read field by field. A field with a default may be absent; if the default is None, also null.

    Raises:
        ValueError: in every method, where a field is missing or of another type; the message names its full path.
    """

    def __init__(self, value: Any, place: str = "") -> None:
        if not isinstance(value, dict):
            raise ValueError(f"{place or 'it'} is {kind(value)}, not an object")
        self.value: dict[str, Any] = value
        self.place = place

    def where(self, name: str) -> str:
        """Full path of a field, `inputs.seed`."""
        return f"{self.place}.{name}" if self.place else name

    def _get(self, name: str, wanted: str, fits: Callable[[Any], bool], default: Any) -> Any:
        if name not in self.value:
            if default is _REQUIRED:
                raise ValueError(f"it lacks {self.where(name)}")
            return default
        value = self.value[name]
        if not fits(value) and not (value is None and default is None):
            raise ValueError(f"{self.where(name)} is {kind(value)}, not {wanted}")
        return value

    def text(self, name: str, default: Any = _REQUIRED) -> Any:
        """A string."""
        return self._get(name, "text", lambda v: isinstance(v, str), default)

    def whole(self, name: str, default: Any = _REQUIRED) -> Any:
        """A whole number."""
        return self._get(name, "a whole number", lambda v: isinstance(v, int) and not isinstance(v, bool), default)

    def number(self, name: str, default: Any = _REQUIRED) -> Any:
        """A finite number."""
        return self._get(name, "a number", is_number, default)

    def flag(self, name: str, default: Any = _REQUIRED) -> Any:
        """True or false."""
        return self._get(name, "true or false", lambda v: isinstance(v, bool), default)

    def items(self, name: str, default: Any = _REQUIRED) -> list[Any]:
        """A list of anything."""
        found: list[Any] = self._get(name, "a list", lambda v: isinstance(v, list), default)
        return found

    def mapping(self, name: str, default: Any = _REQUIRED) -> Any:
        """An object of anything."""
        return self._get(name, "an object", lambda v: isinstance(v, dict), default)

    def texts(self, name: str) -> tuple[str, ...]:
        """A list of strings."""
        for n, value in enumerate(self.items(name)):
            if not isinstance(value, str):
                raise ValueError(f"{self.where(name)}.{n} is {kind(value)}, not text")
        return tuple(self.items(name))

    def numbers(self, name: str) -> dict[str, float | None]:
        """An object of numbers, null where one could not be measured."""
        part = self.part(name)
        return {key: part.number(key, None) for key in part.value}

    def part(self, name: str) -> Fields:
        """An object whose fields are read in turn."""
        return Fields(self.mapping(name), self.where(name))

    def parts(self, name: str) -> dict[str, Fields]:
        """An object of objects."""
        part = self.part(name)
        return {key: Fields(value, part.where(key)) for key, value in part.value.items()}

    def rows(self, name: str) -> list[Fields]:
        """A list of objects."""
        return [Fields(value, f"{self.where(name)}.{n}") for n, value in enumerate(self.items(name))]

    def choice(self, name: str, *choices: str) -> str:
        """One of some strings."""
        value: str = self.text(name)
        if value not in choices:
            raise ValueError(f"{self.where(name)} is {value!r}, not one of {', '.join(choices)}")
        return value


# ------------------------------------------------------------------------------------------------ runs


@dataclass(frozen=True)
class Evaluated:
    """The run whose weights a record of `cirbench eval` uses.

    Attributes:
        run: its id.
        model: sha256 of the weights.
        inputs: digest of its inputs, "" where the training data is not known.
        code: digest of the code that trained them, "" where that is not known.
        dataset: it was trained on, "" for weights that were not trained here.
        data: the knobs of that dataset.
    """

    run: str
    model: str
    inputs: str
    code: str
    dataset: str
    data: Mapping[str, Any]


@dataclass(frozen=True)
class Inputs:
    """Everything a run depends on.

    Attributes:
        dataset, method: names.
        data, config, train: knobs of the dataset, fields of the method, training settings, by name.
        seed: of the run.
        fingerprint, images: hashes of the annotations and of the image set.
        weights: encoder -> sha256 or tag.
        code: which code computed it, part -> version number or digest (`numerics`, in older records `source`).
        evaluated: of a record of `cirbench eval`, the run whose weights it uses.
        raw: all keys as in the record.
    """

    dataset: str
    method: str
    data: Mapping[str, Any]
    config: Mapping[str, Any]
    train: Mapping[str, Any]
    seed: int
    fingerprint: str
    images: str
    weights: Mapping[str, Any]
    code: Mapping[str, Any]
    evaluated: Evaluated | None
    raw: Mapping[str, Any]


@dataclass(frozen=True)
class Selection:
    """How the reported checkpoint was chosen: `rule`, its `epoch`, the `metric` that chose it and its `value`."""

    rule: str
    epoch: int | None
    metric: str | None
    value: float | None

    @property
    def on_report(self) -> bool:
        """Whether it was chosen on the reported split itself."""
        return self.rule == "test-oracle"


@dataclass(frozen=True)
class Missing:
    """What missing pictures imply for one protocol; `bounds`: metric -> (lowest, highest) percent on the whole data."""

    queries_lost: int
    gallery_lost: int
    bounds: Mapping[str, tuple[float, float]]


@dataclass(frozen=True)
class ProtocolScores:
    """Numbers under one protocol.

    Attributes:
        queries: rows that were ranked.
        gallery: most images that one query ranked.
        ties: rows whose best target ties with a non-target.
        form: text form of the rows.
        metrics: name -> percent, unrounded; `group/name` for single groups.
        definition: the protocol itself; None in records of schema 1.
        missing: where pictures were missing.
    """

    queries: int
    gallery: int
    ties: int
    form: str
    metrics: Mapping[str, float | None]
    definition: Protocol | None
    missing: Missing | None


@dataclass(frozen=True)
class Selected:
    """The reported weights scored on the split `select`."""

    protocols: Mapping[str, ProtocolScores]
    omitted: Mapping[str, str]


@dataclass(frozen=True)
class Cost:
    """Means of one run; None where a number could not be measured.

    Attributes:
        parameters: `trainable`, `total`.
        flops: of one `query` and one `image`.
        seconds: `total`, `prepare`, `train`, `cpu`, `epoch`, `features`, `evaluate`, `select`.
        latency_ms: `p50`, `p95` of one query.
        peak_memory_mb: of the process, or of the device.
    """

    parameters: Mapping[str, float | None]
    flops: Mapping[str, float | None]
    seconds: Mapping[str, float | None]
    latency_ms: Mapping[str, float | None]
    peak_memory_mb: float | None


@dataclass(frozen=True)
class RunData:
    """`record.json` (docs/records.md has every key)."""

    schema: int
    id: str
    name: str
    inputs: Inputs
    variant: str
    overrides: Mapping[str, Any]
    selection: Selection
    select: Selected | None
    command: str
    split: str
    protocols: Mapping[str, ProtocolScores]
    default_protocol: str
    omitted: Mapping[str, str]
    cost: Cost
    environment: Mapping[str, Any]
    started: str
    finished: str
    notes: tuple[str, ...]
    missing: Mapping[str, Any] | None
    method_path: str | None
    dataset_path: str | None


def read_run(data: Any) -> RunData:
    """A parsed `record.json`, checked.

    Raises:
        ValueError: naming the first field that is missing or of a wrong type.
    """
    o = Fields(data)
    schema = o.whole("schema")
    protocols = _protocols(o, schema)
    out = RunData(
        schema=schema, id=o.text("id"), name=o.text("name"), inputs=_inputs(o.part("inputs")),
        variant=o.text("variant"), overrides=o.mapping("overrides"), selection=_selection(o.part("selection")),
        select=None if data.get("select") is None else _selected(o.part("select"), schema),
        command=o.text("command"), split=o.text("split"), protocols=protocols,
        default_protocol=o.text("default_protocol"), omitted=_texts(o.part("omitted")), cost=_cost(o.part("cost")),
        environment=o.mapping("environment"), started=o.text("started"), finished=o.text("finished"),
        notes=o.texts("notes"), missing=o.mapping("missing", None), method_path=o.text("method_path", None),
        dataset_path=o.text("dataset_path", None),
    )
    if out.default_protocol not in protocols:
        raise ValueError(f"default_protocol {out.default_protocol!r} is not in protocols")
    return out


def _texts(o: Fields) -> dict[str, str]:
    return {name: o.text(name) for name in o.value}


def _inputs(o: Fields) -> Inputs:
    return Inputs(
        dataset=o.text("dataset"), method=o.text("method"), data=o.mapping("data"), config=o.mapping("config"),
        train=o.mapping("train"), seed=o.whole("seed"), fingerprint=o.text("fingerprint"), images=o.text("images"),
        weights=o.mapping("weights"),
        code=o.mapping(_code(o)),
        evaluated=_evaluated(o.part("evaluated")) if "evaluated" in o.value else None, raw=o.value,
    )


def _code(o: Fields) -> str:
    return next((name for name in CODE if name in o.value), CODE[0])


def _evaluated(o: Fields) -> Evaluated:
    return Evaluated(
        run=o.text("run"), model=o.text("model"), inputs=o.text("inputs", ""),
        code=o.text(_code(o), ""), dataset=o.text("dataset", ""),
        data=o.mapping("data", {}),
    )


def _selection(o: Fields) -> Selection:
    return Selection(o.text("rule"), o.whole("epoch", None), o.text("metric", None), o.number("value", None))


def _selected(o: Fields, schema: int) -> Selected:
    return Selected(_protocols(o, schema), _texts(o.part("omitted")))


def _protocols(o: Fields, schema: int) -> dict[str, ProtocolScores]:
    return {
        name: ProtocolScores(
            queries=p.whole("queries"), gallery=p.whole("gallery"), ties=p.whole("ties"), form=p.text("form"),
            metrics=p.numbers("metrics"), definition=_definition(p.part("definition")) if schema > 1 else None,
            missing=_missing(p.part("missing")) if "missing" in p.value else None,
        )
        for name, p in o.parts("protocols").items()
    }


def _definition(o: Fields) -> Protocol:
    return Protocol(
        name=o.text("name"), metrics=o.texts("metrics"), form=o.text("form"), gallery=o.text("gallery"),
        drop_reference=o.flag("drop_reference"), hit=o.text("hit"), average=o.choice("average", "queries", "groups"),
        summary=o.text("summary"), known_as=o.texts("known_as"), note=o.text("note"),
    )


def _missing(o: Fields) -> Missing:
    bounds = o.part("bounds")
    for name in bounds.value:
        pair = bounds.items(name)
        if len(pair) != 2 or not all(map(is_number, pair)):
            raise ValueError(f"{bounds.where(name)} is not a pair of numbers")
    return Missing(
        o.whole("queries_lost"), o.whole("gallery_lost"), {k: (v[0], v[1]) for k, v in bounds.value.items()}
    )


def _cost(o: Fields) -> Cost:
    return Cost(
        o.numbers("parameters"), o.numbers("flops"), o.numbers("seconds"), o.numbers("latency_ms"),
        o.number("peak_memory_mb", None),
    )
