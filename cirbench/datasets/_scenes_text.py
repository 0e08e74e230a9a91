"""Texts about scenes: descriptions, edits and captions, all drawn from `Bits`."""

from __future__ import annotations

from itertools import combinations

from cirbench.datasets._scenes_render import CELLS, COLOURS, SHAPES, SIZES, Bits, Scene, Thing

HUES = tuple(COLOURS)
EDITS = ("recolour", "reshape", "resize", "remove", "add", "move", "recolour-all")

SAME = (
    "another view of the same scene", "show the same scene again", "the same objects in a different picture",
    "another picture of the same scene", "keep everything the same",
    "nothing changes here, only the light is different",
)


def full(thing: Thing) -> str:
    """`a large red circle at the top left`."""
    return f"a {SIZES[thing.size]} {HUES[thing.colour]} {SHAPES[thing.shape]} at the {CELLS[thing.cell]}"


def _words(thing: Thing, attributes: tuple[str, ...], cell: bool) -> str:
    parts = ["the"]
    if "size" in attributes:
        parts.append(SIZES[thing.size])
    if "colour" in attributes:
        parts.append(HUES[thing.colour])
    parts.append(SHAPES[thing.shape] if "shape" in attributes else "object")
    if cell:
        parts.append(f"at the {CELLS[thing.cell]}")
    return " ".join(parts)


def _fits(other: Thing, thing: Thing, names: tuple[str, ...], cell: bool) -> bool:
    """Whether these words about `thing` describe `other` as well."""
    needed = (*names, "cell") if cell else names
    return all(getattr(other, n) == getattr(thing, n) for n in needed)


def describe(scene: Scene, index: int, bits: Bits, avoid: str = "") -> str:
    """The shortest description that fits only this object; a random one of several equally short ones.

    Args:
        scene: all objects.
        index: which one.
        bits: chooses among equals.
        avoid: an attribute that should not be used where another description is as short (the edited one).
    """
    thing = scene[index]
    for cell in (False, True):
        for count in (1, 2, 3) if not cell else (0, 1, 2, 3):
            fitting = [
                names for names in combinations(("colour", "shape", "size"), count)
                if [o for o in scene if _fits(o, thing, names, cell)] == [thing]
            ]
            if fitting:
                preferred = [names for names in fitting if avoid not in names] or fitting
                return _words(thing, bits.pick(preferred), cell)
    raise AssertionError("a cell holds one object, so the cell describes it")


def _one_of(bits: Bits, n: int, but: int) -> int:
    """An integer below n other than `but`."""
    return (but + 1 + bits.below(n - 1)) % n


def edit(scene: Scene, kind: str, bits: Bits) -> tuple[Scene, str, int] | None:
    """Edited scene, text, index of the object the text names (-1: none); None where it cannot be done."""
    free = [c for c in range(9) if all(t.cell != c for t in scene)]
    if kind == "add":
        if len(scene) >= 5:
            return None
        new = Thing(bits.pick(free), bits.below(8), bits.below(6), bits.below(2))
        text = bits.pick(("add {}", "also put {}", "place {}", "there should also be {}")).format(full(new))
        return tuple(sorted((*scene, new))), text, -1
    if kind == "recolour-all":
        colour = bits.below(8)
        if all(t.colour == colour for t in scene):
            return None
        text = bits.pick((
            "make everything {}", "turn all objects {}", "change every object to {}", "paint everything {}",
        )).format(HUES[colour])
        return tuple(t._replace(colour=colour) for t in scene), text, -1
    index = bits.below(len(scene))
    old = scene[index]
    rest = tuple(t for t in scene if t is not old)
    if kind == "remove":
        if len(scene) <= 2:
            return None
        name = describe(scene, index, bits)
        return rest, bits.pick(("remove {}", "take away {}", "delete {}", "without {}")).format(name), index
    if kind == "move":
        new = old._replace(cell=bits.pick(free))
        name = describe(scene, index, bits)
        text = bits.pick(("move {} to the {}", "put {} at the {}", "shift {} to the {} instead")).format(
            name, CELLS[new.cell]
        )
        return tuple(sorted((*rest, new))), text, index
    if kind == "recolour":
        new = old._replace(colour=_one_of(bits, 8, old.colour))
        text = bits.pick((
            "change {} to {}", "make {} {}", "turn {} {}", "paint {} {}", "{} should be {} instead",
        )).format(describe(scene, index, bits, "colour"), HUES[new.colour])
    elif kind == "reshape":
        new = old._replace(shape=_one_of(bits, 6, old.shape))
        text = bits.pick((
            "replace {} with a {}", "change {} to a {}", "turn {} into a {}", "{} should be a {} instead",
        )).format(describe(scene, index, bits, "shape"), SHAPES[new.shape])
    else:
        new = old._replace(size=1 - old.size)
        name = describe(scene, index, bits, "size")
        more = bits.pick(("bigger", "larger", "large")) if new.size else bits.pick(("smaller", "small"))
        text = bits.pick(("make {} {}", "{} should be {}", "turn {} into a {} one")).format(name, more)
    return tuple(sorted((*rest, new))), text, index


def replace_all(scene: Scene, bits: Bits) -> str:
    """A text that describes the whole scene, independent of the reference."""
    listed = " and ".join(full(t) for t in bits.shuffled(scene))
    return bits.pick((
        "clear everything and put {}", "only show {}", "remove all objects and place {}",
        "start again with {} only",
    )).format(listed)


def _partly(thing: Thing, bits: Bits) -> str:
    """A phrase about one object with some of its attributes."""
    names = bits.pick((
        ("colour", "shape"), ("colour", "shape"), ("size", "shape"), ("size", "colour", "shape"), ("colour",),
    ))
    phrase = _words(thing, names, bits.below(3) > 0).removeprefix("the ")
    return ("an " if phrase[0] in "aeiou" else "a ") + phrase


def captions(scene: Scene, bits: Bits) -> tuple[str, str, str]:
    """Three captions of a picture: complete; a natural partial remark; the result of an edit in an edit's words.

    The third kind lets a model trained on captions read modification texts: `turn the circle red` describes
    pictures with a red circle. Every word of the edits occurs in one of the three.
    """
    things = bits.shuffled(scene)
    if len(scene) > 3 or bits.below(2):  # the compact form: 5 objects in full would not fit 32 words
        whole = " and ".join(
            f"{SIZES[t.size]} {HUES[t.colour]} {SHAPES[t.shape]} {CELLS[t.cell]}" for t in things
        )
    else:
        opening = bits.pick(("", "only ", "only show ", "put ", "a picture of ", "clear everything and put "))
        whole = opening + " and ".join(full(t) for t in things)
    said = " and ".join(_partly(t, bits) for t in things[: bits.between(1, 2)])
    remark = bits.pick((
        "{}", "there is {}", "a picture with {}", "another view of a scene with {}", "the same scene with {}",
        "show {} again", "keep {}", "start with {}", "also {} in a different light",
    )).format(said)
    return whole, remark, _as_edit(scene, things[0], bits)


def _as_edit(scene: Scene, thing: Thing, bits: Bits) -> str:
    """An edit whose result is this scene."""
    hues = {t.colour for t in scene}
    if len(hues) == 1 and bits.below(2):
        return bits.pick(("make everything {}", "turn all objects {}", "change every object to {}",
                          "paint everything {}")).format(HUES[thing.colour])
    hue, shape, cell = HUES[thing.colour], SHAPES[thing.shape], CELLS[thing.cell]
    kind = bits.below(8)
    if kind == 0:
        present = {(t.colour, t.shape) for t in scene}
        absent = [(c, s) for c in range(8) for s in range(6) if (c, s) not in present]
        colour, other = bits.pick(absent)
        return bits.pick(("remove the {} {}", "take away the {} {}", "delete the {} {}", "without the {} {}",
                          "nothing like the {} {} here")).format(HUES[colour], SHAPES[other])
    if kind == 1:
        free = [CELLS[c] for c in range(9) if all(t.cell != c for t in scene)]
        return bits.pick(("remove the object at the {}", "take away all objects at the {}", "clear the {}",
                          "nothing changes at the {}")).format(bits.pick(free))
    if kind == 2:
        return bits.pick(("add {}", "also put {}", "place {}", "there should also be {}")).format(full(thing))
    if kind == 3:
        form = bits.pick(("move the {} to the {}", "put the {} at the {}", "shift the {} to the {} instead"))
        return form.format(f"{hue} {shape}" if bits.below(2) else shape, cell)
    if kind == 4:
        more = ("smaller", "small") if thing.size == 0 else ("bigger", "larger", "large")
        return bits.pick(("make the {} {}", "the {} should be {}", "turn the {} into a {} one")).format(
            f"{hue} {shape}" if bits.below(2) else shape, bits.pick(more)
        )
    if kind == 5:
        form = bits.pick(("replace the object at the {} with a {}", "change the object at the {} to a {}",
                          "turn the object at the {} into a {}",
                          "the object at the {} should be a {} instead"))
        return form.format(cell, shape)
    if kind == 6:
        form = bits.pick(("change the {} to {}", "make the {} {}", "turn the {} {}", "paint the {} {}"))
        return form.format(shape, hue)
    return bits.pick(("the same objects in another picture with {}", "keep {} but change the light",
                      "remove all objects and place {} only")).format(full(thing))
