"""Scenes: generated pictures of coloured shapes on a 3x3 grid, and edits of them in words. Needs no download.

A query is a picture, a text that edits it, and every picture of the gallery that shows the edited scene.
Scenes belong to a role by a hash of the scene itself, so `train`, `select` and `report` share
none, with any knobs.
Three kinds of queries are mixed and kept as `Query.group`:

- `balanced`: both picture and text are needed (`make the small ring blue`);
- `text`: the text says it all (`clear everything and put a large red circle at the top left and ...`);
- `image`: the picture says it all (`another view of the same scene`).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import model_validator

from cirbench.datasets._scenes_render import (
    RENDERER,
    Bits,
    Pictures,
    Scene,
    Thing,
    boxes,
    draw,
    scene_id,
)
from cirbench.datasets._scenes_text import EDITS, SAME, captions, edit, replace_all
from cirbench.settings import Field, Settings
from cirbench.types import CirbenchError, Dataset, DatasetSpec, Protocol, Query, Split

#: Part of the fingerprint; raise it when a scene or a text changes.
GENERATOR = "scenes-graphs-1"
MIXES = ("balanced", "text", "image")
#: How many of 16 scenes belong to each role; captions for pretraining come from the first.
SHARES = {"train": 8, "select": 4, "report": 4}

PROTOCOLS = (
    Protocol(
        "scenes", metrics=("R@1", "R@5", "R@10", "R@50"), form="text", gallery="all", drop_reference=True,
        average="queries", summary="R@1",
        note="A hit is any picture of the edited scene; the own reference is taken out of the gallery.",
    ),
)

SPEC = DatasetSpec(
    name="scenes",
    title="Generated 3x3 scenes of coloured shapes, edited in words (built in, no download)",
    protocols=PROTOCOLS,
    counts={
        "train queries": 4000, "train images": 6000, "select queries": 600, "select gallery": 1000,
        "report queries": 1200, "report gallery": 2000,
    },
    layout="Generated on first use; the pictures are kept under $CIRBENCH_CACHE or ~/.cache/cirbench.",
    citation="part of cirbench",
    licence="Apache-2.0, like cirbench",
    needs_root=False,
    train={"flip": "none"},  # texts name left and right
)


#: Scenes and edits that are generated at most, a matter of a quarter of an hour; more would seem to hang.
MOST = 5_000_000


class Knobs(Settings):
    """Knobs of the generator; the defaults are the benchmark."""

    mix_balanced: float = Field(0.50, ge=0, description="weight of queries that need picture and text")
    mix_text: float = Field(0.25, ge=0, description="weight of queries that need only the text")
    mix_image: float = Field(0.25, ge=0, description="weight of queries that need only the picture")
    noise_kind: str = Field(
        "none", pattern="^(none|target|text)$",
        description="label noise in train: the target or the text of another query; none for clean labels",
    )
    noise_rate: float = Field(0.0, ge=0, le=1, description="share of train queries with a wrong label")
    scene_pool: int = Field(
        0, ge=0,
        description="false negatives: references are renders of this many scenes per role; 0 for all distinct",
    )
    edit_pool: int = Field(
        0, ge=0,
        description="with scene_pool: edits per scene of the pool, shared by its renders; 0 for fresh edits",
    )
    oracle_labels: bool = Field(
        False, description="train targets list every train picture of the target scene, not only one"
    )
    train_scenes: int = Field(2000, ge=1, description="reference pictures in train")
    train_edits: int = Field(2, ge=1, description="queries per reference picture in train")
    select_scenes: int = Field(150, ge=1, description="reference pictures in select")
    report_scenes: int = Field(300, ge=1, description="reference pictures in report")
    edits: int = Field(4, ge=1, description="queries per reference picture in select and report")
    distractors: int = Field(
        500, ge=0, description="gallery pictures of report that belong to no query; select has a share"
    )
    side: int = Field(48, ge=24, le=384, multiple_of=6, description="picture side in pixels")
    data_seed: int = Field(0, ge=0, description="seed of scenes, texts, pictures and noise")

    @model_validator(mode="after")
    def _consistent(self) -> Knobs:
        if self.mix_balanced + self.mix_text + self.mix_image <= 0:
            raise CirbenchError(
                "data.mix_balanced, data.mix_text and data.mix_image are all 0. Give at least one a positive "
                "weight; the defaults are 0.5, 0.25 and 0.25."
            )
        if self.noise_rate > 0 and self.noise_kind == "none":
            raise CirbenchError(
                f"data.noise_rate = {self.noise_rate} has no effect with data.noise_kind = 'none'. "
                "Add --set data.noise_kind=target (or text)."
            )
        largest, asked = self._asked()
        if asked > MOST:
            raise CirbenchError(
                f"these settings ask for {asked:,} scenes and edits; scenes generates {MOST:,} at most. Lower "
                f"data.{largest} = {getattr(self, largest):,}."
            )
        if self.edit_pool > 0 and self.scene_pool == 0:
            raise CirbenchError(
                f"data.edit_pool = {self.edit_pool} has no effect with data.scene_pool = 0. "
                "Add --set data.scene_pool=60 (a number of scenes)."
            )
        return self

    def _asked(self) -> tuple[str, int]:
        """The count that matters most, and how many scenes and edits there are in all."""
        ranked = self.select_scenes + self.report_scenes
        drawn = ranked + self.train_scenes
        parts = {
            "train_scenes": self.train_scenes, "select_scenes": self.select_scenes, "report_scenes": self.report_scenes,
            "train_edits": self.train_scenes * self.train_edits, "edits": ranked * self.edits,
            "distractors": self.distractors * ranked // self.report_scenes, "scene_pool": 3 * self.scene_pool,
            "edit_pool": min(3 * self.scene_pool, drawn) * self.edit_pool,
        }
        return max(parts, key=lambda name: getattr(self, name) if parts[name] > MOST // 8 else 0), sum(parts.values())


def role_of(scene: Scene) -> str:
    """The one role in which this scene may occur, the same under all knobs."""
    slot = hashlib.sha256(f"role {scene_id(scene)}".encode()).digest()[0] % 16
    for role, share in SHARES.items():
        if slot < share:
            return role
        slot -= share
    raise AssertionError("shares add up to 16")


def text_form(query: Query) -> tuple[tuple[str, ...], ...]:
    """One row holding the one text."""
    return ((query.texts[0],),)


def random_scene(bits: Bits, role: str, low: int = 2, high: int = 5) -> Scene:
    """A scene of `low` to `high` objects that belongs to the role."""
    while True:
        cells = sorted(bits.shuffled(range(9))[: bits.between(low, high)])
        scene = tuple(Thing(c, bits.below(8), bits.below(6), bits.below(2)) for c in cells)
        if role_of(scene) == role:
            return scene


def _mix(knobs: Knobs, n: int, bits: Bits) -> list[str]:
    """The mix of each of n queries, in exact proportion (largest remainder), shuffled."""
    weights = (knobs.mix_balanced, knobs.mix_text, knobs.mix_image)
    exact = [n * w / sum(weights) for w in weights]
    counts = [int(x) for x in exact]
    for i in sorted(range(3), key=lambda i: counts[i] - exact[i])[: n - sum(counts)]:
        counts[i] += 1
    return bits.shuffled([mix for mix, count in zip(MIXES, counts, strict=True) for _ in range(count)])


def _edited(scene: Scene, mix: str, role: str, bits: Bits) -> tuple[Scene, str, str, int]:
    """Target scene, text, edit type, index of the object the text names (-1: none)."""
    if mix == "image":
        return scene, bits.pick(SAME), "same", -1
    while True:
        if mix == "text":
            target = random_scene(bits, role, 2, 2)
            if target != scene:
                return target, replace_all(target, bits), "replace-all", -1
            continue
        kind = bits.pick(EDITS)
        done = edit(scene, kind, bits)
        if done is not None and role_of(done[0]) == role:
            return done[0], done[1], kind, done[2]


def _queries(knobs: Knobs, role: str, n: int, edits: int, scenes: dict[str, Scene]) -> Iterator[Query]:
    """Clean queries, each with the one target rendered for it; adds references and targets to `scenes`."""
    def stream(purpose: str) -> Bits:
        return Bits(knobs.data_seed, role, purpose)

    graph = stream("graphs")
    pool = [random_scene(graph, role) for _ in range(knobs.scene_pool)]
    references = [graph.pick(pool) if pool else random_scene(graph, role) for _ in range(n)]
    mixes = _mix(knobs, n * edits, stream("mix"))
    change = stream("edits")
    fixed: dict[Scene, list[tuple[str, Scene, str, str, int]]] = {}
    for i, scene in enumerate(references):
        reference = f"{role}-r{i:05d}"
        scenes[reference] = scene
        where = [list(box) for box in boxes(scene, reference, knobs.side, knobs.data_seed)]
        for j in range(edits):
            number = i * edits + j
            mix = mixes[number]
            if knobs.edit_pool:
                if scene not in fixed:
                    few = _mix(knobs, knobs.edit_pool, change)
                    fixed[scene] = [(m, *_edited(scene, m, role, change)) for m in few]
                mix, target, text, kind, named = change.pick(fixed[scene])
            else:
                target, text, kind, named = _edited(scene, mix, role, change)
            rendered = f"{role}-t{number:05d}"
            scenes[rendered] = target
            yield Query(
                id=f"{role}-{number:05d}", reference=reference, texts=(text,), targets=(rendered,), group=mix,
                extra={
                    "edit": kind, "mix": mix, "boxes": where, "named": named, "scene": scene_id(scene),
                    "target_scene": scene_id(target), "noisy": False,
                },
            )


def _with_noise(queries: list[Query], knobs: Knobs) -> list[Query]:
    """An exact share of the queries gets the target, or the text, of a query with another target scene."""
    count = round(knobs.noise_rate * len(queries))
    if knobs.noise_kind == "none" or count == 0:
        return queries
    bits = Bits(knobs.data_seed, "noise", knobs.noise_kind)
    out = list(queries)
    for i in bits.shuffled(range(len(queries)))[:count]:
        clean = queries[i]
        for _ in range(1000):
            other = bits.pick(queries)
            wrong = other.extra["target_scene"] != clean.extra["target_scene"]
            if wrong and (knobs.noise_kind == "target" or _says_another_edit(other, clean)):
                break
        else:
            raise CirbenchError(
                f"data.noise_rate = {knobs.noise_rate}: the {len(queries)} train queries have too few "
                f"different {knobs.noise_kind}s to draw wrong ones from. Raise data.train_scenes "
                "or data.scene_pool."
            )
        if knobs.noise_kind == "target":
            extra = {**clean.extra, "noisy": True, "target_scene": other.extra["target_scene"]}
            out[i] = Query(clean.id, clean.reference, clean.texts, other.targets, clean.group, extra=extra)
        else:
            extra = {**clean.extra, "noisy": True}
            out[i] = Query(clean.id, clean.reference, other.texts, clean.targets, clean.group, extra=extra)
    return out


def _says_another_edit(other: Query, clean: Query) -> bool:
    """Whether the text of `other`, which has another target scene, is surely wrong for `clean`.

    Within a kind of edit, and between recolouring one object and all, two texts may ask for the same.
    """
    mine, its = (q.extra["edit"].removesuffix("-all") for q in (clean, other))
    return bool(other.extra["edit"] == "replace-all" or its != mine)


def _all_renders(queries: list[Query], images: list[str], scenes: dict[str, Scene]) -> tuple[Query, ...]:
    """Targets become every image of the target scene, the rendered one first, without the query's reference."""
    renders: dict[str, list[str]] = {}
    for image_id in images:
        renders.setdefault(scene_id(scenes[image_id]), []).append(image_id)
    out = []
    for q in queries:
        others = [i for i in renders[q.extra["target_scene"]] if i not in (q.reference, q.targets[0])]
        out.append(Query(q.id, q.reference, q.texts, (q.targets[0], *others), q.group, extra=q.extra))
    return tuple(out)


def _split(knobs: Knobs, role: str, scenes: dict[str, Scene]) -> Split:
    if role == "train":
        mine: dict[str, Scene] = {}
        queries = _with_noise(list(_queries(knobs, role, knobs.train_scenes, knobs.train_edits, mine)), knobs)
        scenes.update(mine)
        return Split(role, _all_renders(queries, list(mine), mine) if knobs.oracle_labels else tuple(queries))
    n = knobs.report_scenes if role == "report" else knobs.select_scenes
    mine = {}
    queries = list(_queries(knobs, role, n, knobs.edits, mine))
    more = Bits(knobs.data_seed, role, "distractors")
    for i in range(knobs.distractors * n // knobs.report_scenes):
        mine[f"{role}-d{i:05d}"] = random_scene(more, role)
    scenes.update(mine)
    # Shuffled, so that neither ties nor file order distinguish references from targets.
    gallery = tuple(Bits(knobs.data_seed, role, "gallery").shuffled(list(mine)))
    return Split(role, _all_renders(queries, list(mine), mine), {"all": {"": gallery}})


def _fingerprint(knobs: Knobs, splits: dict[str, Split], scenes: dict[str, Scene]) -> str:
    """sha256 of the knobs, every query and every scene."""
    digest = hashlib.sha256(f"{GENERATOR} {RENDERER}".encode())
    digest.update(json.dumps(knobs.identity(), sort_keys=True).encode())
    for role, split in splits.items():
        for q in split.queries:
            digest.update(f"\n{role} {q.id} {q.reference} {q.texts} {q.targets} {q.group}".encode())
        digest.update(str(split.galleries).encode())
    for image_id, scene in scenes.items():
        digest.update(f"\n{image_id} {scene_id(scene)}".encode())
    return digest.hexdigest()


def load(knobs: Knobs, root: Path | None = None) -> Dataset:
    """The dataset; `root` is not used. Pictures are painted when the first one is opened."""
    scenes: dict[str, Scene] = {}
    splits = {role: _split(knobs, role, scenes) for role in SHARES}
    talk = Bits(knobs.data_seed, "captions")
    said = {i: captions(scene, talk) for i, scene in scenes.items() if i.startswith("train-")}
    return Dataset(
        name=SPEC.name, splits=splits, images=Pictures(scenes, knobs.side, knobs.data_seed),
        protocols=PROTOCOLS, fingerprint=_fingerprint(knobs, splits, scenes), captions=said,
        forms={"text": text_form},
    )


def pretrain_pairs(
    n: int, seed: int = 0, side: int = 48, role: str = "train", progress: Callable[[int], Any] | None = None
) -> tuple[np.ndarray, list[tuple[str, str, str]]]:
    """n fresh pictures, (n, side, side, 3) uint8, and the captions of each: full, partial, in words of edits.

    Args:
        n: how many; each is a new scene of the role.
        seed: other seeds give other scenes.
        side: pixels of a side.
        role: `train`, or another one for evaluation; `select` and `report` are never trained on.
        progress: called with 1 after every picture.
    """
    bits = Bits(seed, "pretraining", role)
    pictures = np.empty((n, side, side, 3), np.uint8)
    said = []
    for i in range(n):
        scene = random_scene(bits, role)
        pictures[i] = draw(scene, f"pretraining-{role}-{i:06d}", side, seed)
        said.append(captions(scene, bits))
        if progress is not None:
            progress(1)
    return pictures, said
