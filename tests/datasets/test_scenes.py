"""The generated dataset: counts, pinned content, roles, edits, knobs."""

from __future__ import annotations

import hashlib
import json
from collections import Counter

import numpy as np
import pytest
from pydantic import ValidationError

from cirbench.datasets import _scenes_render as render
from cirbench.datasets import scenes
from cirbench.datasets._scenes_render import CELLS, COLOURS, SHAPES, SIZES, Bits, Scene, Thing
from cirbench.datasets._scenes_text import EDITS, SAME, captions, describe, edit
from cirbench.settings import resolve
from cirbench.types import CirbenchError, Dataset

SMALL = {"train_scenes": 40, "select_scenes": 6, "report_scenes": 12, "distractors": 20}
PINNED = [
    ("report-00000", "report-r00000", ("nothing changes here, only the light is different",), ("report-t00000",),
     "image"),
    ("report-00009", "report-r00002", ("the triangle should be smaller",), ("report-t00009", "report-t00010"),
     "balanced"),
    ("report-01199", "report-r00299", ("make the purple object large",), ("report-t01199",), "balanced"),
]
PINNED_EXTRA = {
    "edit": "resize", "mix": "balanced", "named": 0, "noisy": False,
    "boxes": [[17, 1, 29, 14], [35, 6, 42, 13], [16, 19, 29, 31], [35, 21, 41, 29], [2, 32, 15, 46]],
    "scene": "1121.2440.4101.5250.6631", "target_scene": "1120.2440.4101.5250.6631",
}
GRAPHS = "2aa2b300995ca31bb9374d44dd5331b1df1c77eba9e83383f6fd84ce722b76e9"
TEXTS = "6136f32e60ae6dcdd910675e84bc3d65bf22a32ea30c11ed7b63848e6acd693e"
CAPTIONS = "97b385ee1b6e594a6bfe5c30078c9e4ce8f18bcfa9b47708ae600d84f447fab9"
PIXELS = "b55231a80a4936a92aa98b737b9b5ae1c3bef8df9f22f7c53e1ad70ae23f1b9b"
PIXELS_96 = "1c1517a6f95b2c8f90e7c5af9f5a0dc5efd9fda3c913c3b43751edbf4489aa9a"
STREAM = [570, 941, 426, 225, 156, 373, 555, 351]
SHUFFLED = [5, 2, 3, 7, 0, 6, 4, 1]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("CIRBENCH_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def full() -> Dataset:
    return scenes.load(scenes.Knobs())


def small(**knobs) -> Dataset:
    return scenes.load(scenes.Knobs(**{**SMALL, **knobs}))


def decode(text: str) -> Scene:
    return tuple(Thing(*map(int, part)) for part in text.split("."))


def sha(parts) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part if isinstance(part, bytes) else f"{part}\n".encode())
    return digest.hexdigest()


# ------------------------------------------------------------------------------------------ pinned


def test_counts(full):
    splits = full.splits
    counts = {f"{name} queries": len(split.queries) for name, split in splits.items()}
    counts |= {f"{name} gallery": len(splits[name].galleries["all"][""]) for name in ("select", "report")}
    counts["train images"] = len(splits["train"].images())
    assert counts == dict(scenes.SPEC.counts)
    assert {n: dict(Counter(q.group for q in s.queries)) for n, s in splits.items()} == {
        "train": {"balanced": 2000, "text": 1000, "image": 1000},
        "select": {"balanced": 300, "text": 150, "image": 150},
        "report": {"balanced": 600, "text": 300, "image": 300},
    }
    assert len(full.captions) == 6000 and all(len(c) == 3 for c in full.captions.values())
    assert {kind for q in splits["train"].queries for kind in [q.extra["edit"]]} == {
        *EDITS, "replace-all", "same"
    }


def test_first_tenth_and_last_query(full):
    queries = full.splits["report"].queries
    assert [(q.id, q.reference, q.texts, q.targets, q.group) for q in (queries[0], queries[9], queries[-1])] == PINNED
    assert dict(queries[9].extra) == PINNED_EXTRA


def test_scene_graphs_are_pinned(full):
    assert sha(
        f"{q.id} {q.extra['scene']} {q.extra['target_scene']} {q.extra['boxes']} {q.extra['named']}"
        for split in full.splits.values() for q in split.queries
    ) == GRAPHS


def test_texts_are_pinned(full):
    assert sha(q.texts[0] for split in full.splits.values() for q in split.queries) == TEXTS
    assert sha(" | ".join(said) for said in full.captions.values()) == CAPTIONS


def test_pixels_are_pinned(full):
    ids = full.splits["report"].images()[:100]
    assert sha(render.draw(full.images._scenes[i], i, 48, 0).tobytes() for i in ids) == PIXELS
    ids = [q.reference for q in full.splits["train"].queries[:40:2]]
    assert sha(render.draw(full.images._scenes[i], i, 96, 0).tobytes() for i in ids) == PIXELS_96


def test_the_stream_of_numbers_is_pinned():
    bits = Bits(0, "pin", 1)
    assert [bits.below(1000) for _ in range(8)] == STREAM
    assert bits.shuffled(range(8)) == SHUFFLED


# ------------------------------------------------------------------------------------------- roles


def test_splits_share_no_scene_and_no_picture(full):
    shown = {
        name: {render.scene_id(full.images._scenes[i]) for i in split.images()}
        for name, split in full.splits.items()
    }
    assert not shown["train"] & (shown["select"] | shown["report"]) and not shown["select"] & shown["report"]
    names = [set(split.images()) for split in full.splits.values()]
    assert sum(map(len, names)) == len(set.union(*names))
    assert all(scenes.role_of(decode(s)) == name for name, some in shown.items() for s in some)


def test_targets_are_all_gallery_pictures_of_the_scene(full):
    for name in ("select", "report"):
        split = full.splits[name]
        gallery = split.galleries["all"][""]
        assert len(set(gallery)) == len(gallery)
        for query in split.queries:
            wanted = {
                i for i in gallery
                if render.scene_id(full.images._scenes[i]) == query.extra["target_scene"] and i != query.reference
            }
            assert set(query.targets) == wanted and query.reference in gallery


def test_pretraining_never_sees_an_evaluation_scene():
    bits = Bits(9, "pretraining", "train")
    assert all(scenes.role_of(scenes.random_scene(bits, "train")) == "train" for _ in range(200))
    pictures, said = scenes.pretrain_pairs(5, seed=1)
    again, same = scenes.pretrain_pairs(5, seed=1)
    other, _ = scenes.pretrain_pairs(5, seed=2)
    assert pictures.shape == (5, 48, 48, 3) and pictures.dtype == np.uint8
    assert np.array_equal(pictures, again) and said == same and not np.array_equal(pictures, other)


# ------------------------------------------------------------------------------------------- words


def fits(text: str, thing: Thing) -> bool:
    words = f" {text} "
    place = next((c for c in sorted(CELLS, key=len, reverse=True) if f" at the {c} " in words), None)
    return (
        (place is None or CELLS[thing.cell] == place)
        and all(list(COLOURS)[thing.colour] == c for c in COLOURS if f" {c} " in words)
        and all(SHAPES[thing.shape] == s for s in SHAPES if f" {s} " in words)
        and all(SIZES[thing.size] == s for s in SIZES if f" {s} " in words)
    )


def test_descriptions_fit_one_object_alone():
    bits = Bits(0, "describe")
    for _ in range(500):
        scene = scenes.random_scene(bits, "train")
        if bits.below(2):  # twins, so that size and place are needed too
            scene = tuple(t._replace(colour=scene[0].colour, shape=scene[0].shape) for t in scene)
        for index, thing in enumerate(scene):
            text = describe(scene, index, bits, bits.pick(("", "colour", "shape", "size")))
            assert [t for t in scene if fits(text, t)] == [thing], (scene, text)


def test_edits_do_what_they_say(full):
    changed = {"recolour": "colour", "reshape": "shape", "resize": "size", "move": "cell"}
    for query in full.splits["train"].queries:
        before, after = decode(query.extra["scene"]), decode(query.extra["target_scene"])
        kind, named, text = query.extra["edit"], query.extra["named"], query.texts[0]
        gone, come = set(before) - set(after), set(after) - set(before)
        assert render.scene_id(full.images._scenes[query.targets[0]]) == query.extra["target_scene"]
        assert (named >= 0) == (kind in {*changed, "remove"})
        if kind in changed:
            (old,), (new,) = gone, come
            assert old == before[named]
            assert [f for f in Thing._fields if getattr(old, f) != getattr(new, f)] == [changed[kind]]
            words = {"colour": list(COLOURS)[new.colour], "shape": SHAPES[new.shape], "cell": CELLS[new.cell]}
            sizes = ("larg", "bigger") if new.size else ("small",)
            assert any(w in text for w in ([words[changed[kind]]] if kind != "resize" else sizes))
        elif kind == "remove":
            assert not come and gone == {before[named]}
        elif kind == "add":
            assert not gone and len(come) == 1
        elif kind == "recolour-all":
            assert {list(COLOURS)[t.colour] for t in after} == {c for c in COLOURS if f" {c} " in f"{text} "}
            assert [t._replace(colour=0) for t in before] == [t._replace(colour=0) for t in after]
        elif kind == "replace-all":
            assert all(f"a {SIZES[t.size]} {list(COLOURS)[t.colour]} {SHAPES[t.shape]}" in text for t in after)
        else:
            assert before == after
        assert 1 <= len(after) <= 5 and len({t.cell for t in after}) == len(after)


def test_an_impossible_edit_is_none():
    full_house = tuple(Thing(c, c, c % 6, 0) for c in range(5))
    assert edit(full_house, "add", Bits(0)) is None
    assert edit(full_house[:2], "remove", Bits(0)) is None


def test_captions_speak_every_word_of_the_edits(full):
    def words(texts):
        return {w for text in texts for w in text.replace(",", "").split()}

    asked = words(q.texts[0] for split in full.splits.values() for q in split.queries)
    assert asked <= words(c for said in full.captions.values() for c in said)
    assert max(len(c.split()) for said in full.captions.values() for c in said) <= 30  # fits the small CLIPs
    assert not any(f" a {vowel}" in f" {c}" for said in full.captions.values() for c in said for vowel in "aeiou")
    assert len(captions(full.images._scenes["train-r00000"], Bits(0))) == 3


def test_the_text_form_is_the_text(full):
    query = full.splits["report"].queries[0]
    assert full.forms["text"](query) == ((query.texts[0],),)


# ---------------------------------------------------------------------------------------- pictures


def test_boxes_hold_the_objects_and_nothing_else_does():
    bits = Bits(1, "boxes")
    for number in range(50):
        scene, image_id = scenes.random_scene(bits, "train"), f"boxes-{number}"
        placed, _ = render.place(scene, image_id, 48, 0)
        inside = np.zeros((48, 48), bool)
        for (left, top, right, bottom), (mask, _, x, y) in zip(
            render.boxes(scene, image_id, 48, 0), placed.sprites, strict=True
        ):
            assert 0 <= left < right <= 48 and 0 <= top < bottom <= 48
            rows, columns = np.nonzero(mask)
            on = [(r + y, c + x) for r, c in zip(rows, columns, strict=True) if 0 <= r + y < 48 and 0 <= c + x < 48]
            assert all(top <= r < bottom and left <= c < right for r, c in on)
            inside[top:bottom, left:right] = True
        bare = render.draw((), image_id, 48, 0).astype(int)
        # The empty scene draws other noise but has the same ground; a picture differs from it by noise alone.
        apart = np.abs(render.draw(scene, image_id, 48, 0).astype(int) - bare).max(axis=2)
        assert apart[~inside].max(initial=0) <= 15 < apart[inside].max()


def test_boxes_hold_pixels_of_their_colour(full):
    for query in full.splits["report"].queries[:200:4]:
        picture = full.images.array([query.reference])[0].astype(int)
        for thing, (left, top, right, bottom) in zip(
            decode(query.extra["scene"]), query.extra["boxes"], strict=True
        ):
            colour = np.array(list(COLOURS.values())[thing.colour])
            patch = picture[top:bottom, left:right].reshape(-1, 3)
            cosine = patch @ colour / (np.linalg.norm(patch, axis=1) * np.linalg.norm(colour) + 1e-9)
            assert cosine.max() > 0.98


def test_the_cache_is_written_once_and_survives_damage(tmp_path):
    first = small()
    ids = first.splits["report"].images()[:5]
    painted = first.images.array(ids)
    (file,) = (tmp_path / "cache").iterdir()
    stamp = file.stat().st_mtime_ns
    assert np.array_equal(small().images.array(ids), painted) and file.stat().st_mtime_ns == stamp
    file.write_bytes(b"cut short")
    assert np.array_equal(small().images.array(ids), painted)
    assert [p.suffix for p in (tmp_path / "cache").iterdir()] == [".npy"]
    picture = small().images.open(ids[0])
    assert picture.mode == "RGB" and np.array_equal(np.asarray(picture), painted[0])


def test_an_unwritable_cache_costs_no_run(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("CIRBENCH_CACHE", str(tmp_path / "file"))
    assert small().images.array(["report-r00000"]).shape == (1, 48, 48, 3)


def test_an_unknown_picture_is_named():
    with pytest.raises(CirbenchError, match="'report-x'"):
        small().images.open("report-x")


def test_picture_fingerprints():
    one, other = small().images, small(side=60).images
    ids = ["report-r00000", "report-t00001"]
    assert one.fingerprint(ids) == small().images.fingerprint(ids) != other.fingerprint(ids)
    assert one.fingerprint(ids) != one.fingerprint(ids[:1]) != small(data_seed=1).images.fingerprint(ids[:1])


# ------------------------------------------------------------------------------------------- knobs

CHANGES = {
    "mix_balanced": 0.6, "mix_text": 0.3, "mix_image": 0.0, "noise_kind": "text", "noise_rate": 0.5,
    "scene_pool": 5, "edit_pool": 2, "oracle_labels": True, "train_scenes": 41, "train_edits": 3,
    "select_scenes": 7, "report_scenes": 13, "edits": 3, "distractors": 21, "side": 54, "data_seed": 1,
}


def test_every_knob_changes_the_fingerprint_and_defaults_do_not():
    assert set(CHANGES) == set(scenes.Knobs.model_fields)
    base = {"noise_kind": "target", "noise_rate": 0.2, "scene_pool": 8}
    found = {small(**base).fingerprint}
    for name, value in CHANGES.items():
        found.add(small(**{**base, name: value}).fingerprint)
    assert len(found) == len(CHANGES) + 1
    defaults = {n: f.default for n, f in scenes.Knobs.model_fields.items()}
    assert scenes.load(scenes.Knobs(**{**defaults, **SMALL})).fingerprint == small().fingerprint


def test_every_knob_is_described():
    assert all(f.description and not f.is_required() for f in scenes.Knobs.model_fields.values())


@pytest.mark.parametrize("kind", ["target", "text"])
def test_noise_hits_an_exact_share_of_train_alone(kind):
    clean, noisy = small(train_scenes=200), small(train_scenes=200, noise_kind=kind, noise_rate=0.35)
    pairs = list(zip(clean.splits["train"].queries, noisy.splits["train"].queries, strict=True))
    assert sum(q.extra["noisy"] for _, q in pairs) == 140
    for before, after in pairs:
        assert after.id == before.id and after.reference == before.reference and len(after.targets) == 1
        if not after.extra["noisy"]:
            assert after == before
        elif kind == "target":
            assert after.texts == before.texts and after.extra["target_scene"] != before.extra["target_scene"]
            shown = render.scene_id(noisy.images._scenes[after.targets[0]])
            assert shown == after.extra["target_scene"]
        else:
            assert after.targets == before.targets and after.texts != before.texts
            # One that says the same scene again is right wherever the target shows the reference's scene.
            assert not (before.extra["edit"] == "same" and after.texts[0] in SAME)
    for role in ("select", "report"):
        assert clean.splits[role] == noisy.splits[role]


def test_pictures_that_say_it_all_can_have_no_wrong_text():
    everything = {"mix_balanced": 0, "mix_text": 0, "noise_rate": 0.1}
    assert sum(q.extra["noisy"] for q in small(noise_kind="target", **everything).splits["train"].queries)
    with pytest.raises(CirbenchError, match="too few different texts"):
        small(noise_kind="text", **everything)


def test_a_pool_of_scenes_makes_false_negatives():
    pooled = small(scene_pool=5, edit_pool=2)
    for role, split in pooled.splits.items():
        assert len({q.extra["scene"] for q in split.queries}) <= 5, role
        assert len({q.extra["target_scene"] for q in split.queries}) <= 10
    assert max(len(q.targets) for q in pooled.splits["report"].queries) > 5
    assert {len(q.targets) for q in pooled.splits["train"].queries} == {1}
    assert len({q.extra["target_scene"] for q in small(scene_pool=5).splits["train"].queries}) > 20


def test_oracle_labels_list_every_render_of_train():
    hard, oracle = small(scene_pool=5, edit_pool=2), small(scene_pool=5, edit_pool=2, oracle_labels=True)
    shown = {i: render.scene_id(oracle.images._scenes[i]) for i in oracle.splits["train"].images()}
    for one, all_of_them in zip(hard.splits["train"].queries, oracle.splits["train"].queries, strict=True):
        assert all_of_them.targets[0] == one.targets[0] and len(set(all_of_them.targets)) == len(all_of_them.targets)
        assert set(all_of_them.targets) == {
            i for i, s in shown.items() if s == one.extra["target_scene"] and i != one.reference
        }
    assert hard.splits["report"] == oracle.splits["report"]


def test_the_mix_is_exact():
    for weights in ((1, 0, 0), (0, 1, 1), (0.1, 0.45, 0.45)):
        knobs = dict(zip(("mix_balanced", "mix_text", "mix_image"), weights, strict=True))
        groups = Counter(q.group for q in small(**knobs).splits["train"].queries)
        for name, weight in zip(scenes.MIXES, weights, strict=True):
            assert abs(groups[name] - 80 * weight / sum(weights)) < 1


def test_extra_is_json():
    query = small().splits["train"].queries[0]
    assert json.loads(json.dumps(dict(query.extra))) == query.extra


@pytest.mark.parametrize(("knobs", "named"), [
    ({"mix_balanced": 0, "mix_text": 0, "mix_image": 0}, "mix_balanced"),
    ({"noise_rate": 0.4}, "noise_kind"),
    ({"edit_pool": 2}, "scene_pool"),
])
def test_knobs_that_contradict_each_other(knobs, named):
    with pytest.raises(CirbenchError, match=named):
        scenes.Knobs(**knobs)


@pytest.mark.parametrize("knobs", [
    {"noise_rate": 1.5}, {"noise_kind": "label"}, {"side": 50}, {"train_scenes": 0}, {"mix_text": float("nan")},
    {"data_seed": -1}, {"sides": 48},
])
def test_knobs_out_of_range(knobs):
    with pytest.raises(ValidationError):
        scenes.Knobs(**knobs)


def test_too_few_scenes_for_noise_is_told():
    with pytest.raises(CirbenchError, match="too few"):
        small(train_scenes=1, train_edits=1, noise_kind="target", noise_rate=1.0)


@pytest.mark.parametrize(("fields", "named"), [
    ({"train_scenes": 10**7}, "train_scenes"), ({"train_edits": 10**7}, "train_edits"),
    ({"report_scenes": 10**7}, "report_scenes"), ({"select_scenes": 10**7}, "select_scenes"),
    ({"edits": 10**7}, "edits"), ({"distractors": 10**7}, "distractors"), ({"scene_pool": 10**7}, "scene_pool"),
    ({"scene_pool": 3, "edit_pool": 10**7}, "edit_pool"), ({"train_scenes": 5000, "train_edits": 2000}, "train_edits"),
])
def test_what_would_be_generated_for_ever_is_refused(fields: dict[str, int], named: str) -> None:
    with pytest.raises(CirbenchError, match=rf"5,000,000 at most\. Lower data\.{named} = {fields[named]:,}\."):
        resolve(scenes.Knobs, "data", fields)
    assert resolve(scenes.Knobs, "data", {"train_scenes": 1_000_000})
