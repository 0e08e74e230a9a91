"""The identity of a run: equal inputs are the same run, and return its finished record.

Everything that can change a number is part of it, by content: resolved settings, annotations, pictures, weights, the
seed, and the code that the run imports (numerics.py). Names of variants, paths of files and options of the command
are not.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cirbench.data import outside
from cirbench.data.images import image_set_fingerprint
from cirbench.models.weights import weights_of
from cirbench.runs.planning import Plan, code, scored
from cirbench.seeds import digest
from cirbench.types import Dataset

__all__ = ["Identity", "id_of", "identify", "run_name"]


@dataclass(frozen=True)
class Identity:
    """The identity of a run.

    Attributes:
        id: hash of the inputs.
        inputs: in the form the record keeps.
    """

    id: str
    inputs: dict[str, Any]

    @property
    def images(self) -> str:
        """Fingerprint of the image set."""
        return str(self.inputs["images"])


def identify(planned: Plan, dataset: Dataset, corpus: Mapping[str, str] | None = None) -> Identity:
    """The identity of a run: settings, contents of annotations, pictures and weights, seed, and code.

    Args:
        planned: the run.
        dataset: its data.
        corpus: hashes of what `train.captions` and `train.pictures` led to when the weights were made, for an
            evaluation, which needs neither; None to read them.

    Raises:
        CirbenchError: something that counts cannot be read.
    """
    ids = [i for role in ("train", "select", "report") if role in dataset.splits for i in dataset.splits[role].images()]
    images = image_set_fingerprint(dataset.images, list(dict.fromkeys(ids)))
    if corpus is None:
        corpus = outside.content(planned.train.captions, planned.train.pictures)
    inputs = _inputs(planned, dataset, images, weights_of(planned.config), corpus)
    return Identity(id_of(inputs), inputs)


def _inputs(
    planned: Plan, dataset: Dataset, images: str, weights: Mapping[str, str], corpus: Mapping[str, str]
) -> dict[str, Any]:
    protocols, left = scored(planned, dataset)
    # A record with fewer protocols is another record, though its numbers are the same.
    fewer = {"forms": list(dict.fromkeys(p.form for p in protocols))} if left else {}
    return {
        "dataset": dataset.name, "data": planned.knobs.identity(), "fingerprint": dataset.fingerprint, "images": images,
        "method": planned.method.name, "config": planned.config.identity(), "train": planned.train.identity(),
        "seed": planned.seed, "weights": dict(weights), "numerics": code(planned), **fewer,
        **({"corpus": dict(corpus)} if corpus else {}), **({"stages": dict(planned.stages)} if planned.stages else {}),
    }


def run_name(planned: Plan, run_id: str) -> str:
    """`scenes-dwc-no-emd-s0-1a2b3c4d5e`."""
    parts = [planned.facts.name, planned.method.name, planned.variant, f"s{planned.seed}", run_id[:10]]
    return "-".join(p for p in parts if p)


def id_of(inputs: Mapping[str, Any]) -> str:
    """Hash of the resolved inputs; weights, captions and pictures on this machine enter it by content, not by path."""
    weights = {name: sha for name, sha in inputs["weights"].items() if sha.startswith("sha256:")}

    def by_content(value: Any) -> Any:
        if isinstance(value, str):
            return weights.get(value, value)
        if isinstance(value, Mapping):
            return {key: by_content(part) for key, part in value.items()}
        return [by_content(part) for part in value] if isinstance(value, list | tuple) else value

    named = inputs.get("corpus", {})
    train = {name: named.get(name, value) for name, value in inputs["train"].items()}
    config = by_content(inputs["config"])
    # How a stage before this one was written is a label; its weights count.
    rest = {name: value for name, value in inputs.items() if name != "stages"}
    return digest({**rest, "config": config, "train": train, "weights": sorted(set(weights.values()))})
