"""Draws scenes: integer sprites, integer light, integer noise; and keeps the pictures in one file.

Everything here is integer arithmetic on numbers that come from PCG64's raw output, so a picture has the same
bytes with every version of numpy, Pillow and the C library; tests pin the hashes.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import NamedTuple, TypeVar

import numpy as np
import PIL.Image

from cirbench import numerics
from cirbench.data.cache import alone, cache_dir, keep, usable
from cirbench.seeds import digest
from cirbench.types import CirbenchError

#: Part of every hash of pictures; raise it when a byte of any picture changes.
RENDERER = "scenes-pictures-1"
_LOADING = threading.Lock()

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (214, 38, 40), "green": (40, 160, 56), "blue": (44, 84, 220), "yellow": (236, 216, 44),
    "purple": (132, 48, 184), "orange": (242, 132, 24), "cyan": (56, 206, 214), "pink": (246, 134, 196),
}
SHAPES = ("circle", "square", "triangle", "cross", "ring", "moon")
SIZES = ("small", "large")
CELLS = (
    "top left", "top", "top right", "left", "centre", "right", "bottom left", "bottom", "bottom right",
)

#: cos and sin of -20, -15, ..., 20 degrees times 1024, written out because libm may round differently.
ANGLES = (
    (962, -350), (989, -265), (1008, -178), (1020, -89), (1024, 0),
    (1020, 89), (1008, 178), (989, 265), (962, 350),
)
Item = TypeVar("Item")

UNIT = 64  # positions are in 1/64 pixel
SAMPLES = 4  # coverage is counted on 4 x 4 points per pixel


class Thing(NamedTuple):
    """One object: cell 0..8 in reading order, and indices into COLOURS, SHAPES and SIZES."""

    cell: int
    colour: int
    shape: int
    size: int


Scene = tuple[Thing, ...]  # sorted by cell, one object a cell


class Bits:
    """Integers from a named random stream; drawing more from one stream does not shift the others.

    >>> [Bits(0, "example").below(10) for _ in range(2)]
    [4, 4]
    """

    def __init__(self, *name: object):
        digest = hashlib.sha256(repr(name).encode()).digest()
        self._source = np.random.PCG64(int.from_bytes(digest[:16], "big"))
        self._pending: list[int] = []

    def below(self, n: int) -> int:
        """An integer in 0..n-1, by multiply and shift (its bias is under 2**-56 for n below 256)."""
        if not self._pending:
            self._pending = self._source.random_raw(16).tolist()
        return (self._pending.pop() * n) >> 64

    def between(self, low: int, high: int) -> int:
        """An integer in low..high, both included."""
        return low + self.below(high - low + 1)

    def pick(self, items: Sequence[Item]) -> Item:
        """One of the items."""
        return items[self.below(len(items))]

    def shuffled(self, items: Sequence[Item]) -> list[Item]:
        """A copy in random order (Fisher-Yates)."""
        out = list(items)
        for i in range(len(out) - 1, 0, -1):
            j = self.below(i + 1)
            out[i], out[j] = out[j], out[i]
        return out

    def raw_bytes(self, n: int) -> np.ndarray:
        """(n,) uint8, low byte of each word first on every machine."""
        words = self._source.random_raw((n + 7) // 8).astype("<u8")
        return words.view(np.uint8)[:n]


class Placed(NamedTuple):
    """A picture before it is painted; `sprites` holds (mask, colour, left, top) in the order of the scene."""

    light: int
    ground: tuple[int, int, int]
    slope: tuple[int, int]
    sprites: tuple[tuple[np.ndarray, tuple[int, int, int], int, int], ...]


def _inside(shape: str, u: np.ndarray, v: np.ndarray, r: int) -> np.ndarray:
    """Which points (u right, v down, in 1/64 pixel) lie in the shape of radius r."""
    if shape == "circle":
        return u * u + v * v <= r * r
    if shape == "square":
        return (np.abs(u) * 100 <= 84 * r) & (np.abs(v) * 100 <= 84 * r)
    if shape == "triangle":  # apex up; the sides fall 19 for every 10 to the side
        return (v * 100 <= 78 * r) & (np.abs(u) * 190 <= (v * 100 + 112 * r))
    if shape == "cross":
        thin, long = np.minimum(np.abs(u), np.abs(v)), np.maximum(np.abs(u), np.abs(v))
        return (thin * 100 <= 32 * r) & (long * 100 <= 104 * r)
    if shape == "ring":
        d = u * u + v * v
        return (d <= r * r) & (d * 100 >= 34 * r * r)
    bite = (u * 100 - 55 * r) ** 2 + (v * 100) ** 2  # moon: a disc with a disc bitten out at its right
    return (u * u + v * v <= r * r) & (bite >= (80 * r) ** 2)


@lru_cache(maxsize=8)
def sprites(side: int) -> dict[tuple[int, int, int, int, int], np.ndarray]:
    """Every mask: (shape, size, angle, half pixel right, half pixel down) -> (K, K) int32 in 0..256."""
    cell = side // 3
    width = cell + 4
    points = np.arange(width * SAMPLES, dtype=np.int64) * (UNIT // SAMPLES) + UNIT // SAMPLES // 2
    out = {}
    for right in (0, 1):
        for down in (0, 1):
            x = (points - width * UNIT // 2 - right * UNIT // 2)[None, :]
            y = (points - width * UNIT // 2 - down * UNIT // 2)[:, None]
            for angle, (cos, sin) in enumerate(ANGLES):
                u, v = (x * cos + y * sin) >> 10, (y * cos - x * sin) >> 10
                for shape, name in enumerate(SHAPES):
                    for size, radius in enumerate((cell * 14, cell * 24)):
                        hit = _inside(name, u, v, radius)
                        count = hit.reshape(width, SAMPLES, width, SAMPLES).sum(axis=(1, 3), dtype=np.int64)
                        out[shape, size, angle, right, down] = (count * (256 // SAMPLES**2)).astype(np.int32)
    return out


def place(scene: Scene, image_id: str, side: int, data_seed: int) -> tuple[Placed, Bits]:
    """The positions of things in this picture of the scene, its light, and the stream for its noise."""
    bits = Bits(data_seed, "picture", image_id)
    table, cell = sprites(side), side // 3
    light = bits.between(192, 286)  # of 256: 0.75 to 1.12
    base = bits.between(170, 225) if bits.below(2) else bits.between(30, 80)
    ground = (base + bits.between(-12, 12), base + bits.between(-12, 12), base + bits.between(-12, 12))
    slope = (bits.between(-16, 16), bits.between(-16, 16))
    reach, margin = cell // 5, 2  # jitter in half pixels; (K - cell) / 2
    things = []
    for thing in scene:
        dx, dy = bits.between(-reach, reach), bits.between(-reach, reach)
        mask = table[thing.shape, thing.size, bits.below(len(ANGLES)), dx & 1, dy & 1]
        left = thing.cell % 3 * cell - margin + (dx >> 1)
        top = thing.cell // 3 * cell - margin + (dy >> 1)
        glow = light + bits.between(-16, 16)
        paint = tuple(min(255, c * glow >> 8) for c in list(COLOURS.values())[thing.colour])
        things.append((mask, paint, left, top))
    return Placed(light, ground, slope, tuple(things)), bits  # type: ignore[arg-type]  # paint has three


def boxes(scene: Scene, image_id: str, side: int, data_seed: int) -> tuple[tuple[int, int, int, int], ...]:
    """Per object (left, top, right, bottom) in pixels, ends excluded, clipped to the picture."""
    placed, _ = place(scene, image_id, side, data_seed)
    out = []
    for mask, _, left, top in placed.sprites:
        rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        out.append((
            max(0, left + int(columns[0])), max(0, top + int(rows[0])),
            min(side, left + int(columns[-1]) + 1), min(side, top + int(rows[-1]) + 1),
        ))
    return tuple(out)


def draw(scene: Scene, image_id: str, side: int, data_seed: int) -> np.ndarray:
    """(side, side, 3) uint8."""
    placed, bits = place(scene, image_id, side, data_seed)
    pad = side // 15 + 6  # sprites may reach over the edge by their margin and the jitter
    canvas = np.empty((side + 2 * pad, side + 2 * pad, 3), np.int32)
    steps = (np.arange(side + 2 * pad, dtype=np.int32) - pad - side // 2) * 48 // side
    ramp = (steps[None, :] * placed.slope[0] + steps[:, None] * placed.slope[1]) >> 5
    for channel in range(3):
        canvas[:, :, channel] = (placed.ground[channel] * placed.light >> 8) + ramp
    for mask, paint, left, top in placed.sprites:
        n = len(mask)
        patch = canvas[top + pad : top + pad + n, left + pad : left + pad + n]
        patch += ((np.array(paint, np.int32) - patch) * mask[:, :, None]) >> 8
    picture = canvas[pad : pad + side, pad : pad + side]
    noise = bits.raw_bytes(side * side * 3).reshape(side, side, 3)
    return np.clip(picture + (noise & 15).astype(np.int32) - 8, 0, 255).astype(np.uint8)


class Pictures:
    """The pictures of one generated dataset, painted on first use and kept as one uint8 file."""

    def __init__(self, scenes: Mapping[str, Scene], side: int, data_seed: int):
        self.side, self.data_seed = side, data_seed
        self._scenes = dict(scenes)
        self._rows = {image_id: row for row, image_id in enumerate(self._scenes)}
        self._array: np.ndarray | None = None

    def fingerprint(self, image_ids: Sequence[str]) -> str:
        """sha256 of everything that determines the pixels: renderer, side, seed, and every id with its scene."""
        digest = hashlib.sha256(f"{RENDERER} {self.side} {self.data_seed}".encode())
        for image_id in image_ids:
            digest.update(f"\n{image_id} {scene_id(self._scene(image_id))}".encode())
        return digest.hexdigest()

    def open(self, image_id: str) -> PIL.Image.Image:
        """The RGB picture."""
        return PIL.Image.fromarray(self.array([image_id])[0])

    def array(self, image_ids: Sequence[str]) -> np.ndarray:
        """(n, side, side, 3) uint8, in the order of the ids."""
        for image_id in image_ids:
            self._scene(image_id)
        with _LOADING:  # pictures are decoded in several threads, and one of them paints
            if self._array is None:
                self._array = self._load()
        return self._array[[self._rows[image_id] for image_id in image_ids]]

    def _scene(self, image_id: str) -> Scene:
        try:
            return self._scenes[image_id]
        except KeyError:
            raise CirbenchError(
                f"scenes has no picture {image_id!r}; ids look like {next(iter(self._scenes))!r}. "
                "Ids depend on the data knobs: load the dataset with the knobs of the run."
            ) from None

    def _load(self) -> np.ndarray:
        name = digest([self.fingerprint(list(self._scenes)), numerics.of_class(type(self))])
        path, shape = cache_dir() / f"scenes-{name[:24]}.npy", (len(self._scenes), self.side, self.side, 3)
        kept = usable(path, shape, np.dtype(np.uint8), mapped=True)
        if kept is not None:
            return kept
        painted = np.empty(shape, np.uint8)
        for row, (image_id, scene) in enumerate(self._scenes.items()):
            painted[row] = draw(scene, image_id, self.side, self.data_seed)
        # Two processes may race; the later one writes the same bytes. A cache that cannot be written (read-only home,
        # full disk) costs time, not the run.
        try:
            with alone(path):
                keep(path, painted)
            return np.load(path, mmap_mode="r")
        except (OSError, CirbenchError):
            return painted


def scene_id(scene: Scene) -> str:
    """Four digits per object (cell, colour, shape, size): equal exactly if the scenes are.

    >>> scene_id((Thing(0, 1, 2, 0), Thing(4, 7, 5, 1)))
    '0120.4751'
    """
    return ".".join(f"{t.cell}{t.colour}{t.shape}{t.size}" for t in scene)
