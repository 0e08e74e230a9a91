"""Colours a colour-blind reader tells apart, contrast in both themes, and a structure that a screen reader can use."""

from __future__ import annotations

import itertools
import re
from pathlib import Path

import numpy as np
import pytest
from cirbench.reports import figures
from report_page import Page

from cirbench import reports

CSS = (Path(reports.__file__).parent / "templates" / "style.css").read_text(encoding="utf-8")
TEXT = ("ink", "soft", "accent", "hit", "miss")

# Machado, Oliveira and Fernandes 2009, full severity: how linear RGB looks without one kind of cone.
BLINDNESS = {
    "none": np.eye(3),
    "protan": np.array([[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216],
                        [-0.003882, -0.048116, 1.051998]]),
    "deutan": np.array([[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413],
                        [-0.011820, 0.042940, 0.968881]]),
    "tritan": np.array([[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602],
                        [0.004733, 0.691367, 0.303900]]),
}


def themes() -> dict[str, dict[str, str]]:
    """Colours by name: light, dark by the system, dark by the button, and paper."""
    found = re.findall(r"(:root[^{]*)\{([^}]*)\}", CSS)
    names = {":root": "light", ":root:not([data-theme=light])": "dark", ":root[data-theme=dark]": "dark by hand",
             ":root,:root[data-theme]": "print"}
    out = {names[selector]: dict(re.findall(r"--([\w-]+):(#\w+)", body)) for selector, body in found}
    out["print"] = out["light"] | out["print"]
    return out


def linear(colour: str) -> np.ndarray:
    digits = colour[1:] if len(colour) == 7 else "".join(2 * c for c in colour[1:])
    rgb = np.array([int(digits[i : i + 2], 16) for i in (0, 2, 4)]) / 255
    return np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)


def contrast(a: str, b: str) -> float:
    """WCAG 2: (lighter + 0.05) / (darker + 0.05) of relative luminance."""
    low, high = sorted(float(linear(c) @ [0.2126, 0.7152, 0.0722]) for c in (a, b))
    return (high + 0.05) / (low + 0.05)


def lab(rgb: np.ndarray) -> np.ndarray:
    """CIE 1976 L*a*b* of linear RGB, D65."""
    to_xyz = np.array([[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750],
                       [0.0193339, 0.1191920, 0.9503041]])
    xyz = to_xyz @ np.clip(rgb, 0, 1) / np.array([0.95047, 1, 1.08883])
    f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


def test_black_on_white_is_twenty_one():
    assert contrast("#000", "#ffffff") == pytest.approx(21) and contrast("#777777", "#fff") == pytest.approx(4.48, abs=0.01)


@pytest.mark.parametrize("theme", ["light", "dark", "dark by hand", "print"])
def test_contrast_of_every_colour(theme):
    colours = themes()[theme]
    for name, ground in itertools.product(TEXT, ("paper", "raise", "best")):
        if ground != "best" or name in ("ink", "soft"):
            assert contrast(colours[name], colours[ground]) >= 4.5, (name, ground)
    for name in ("edge", "focus", *[f"f{n}" for n in range(8)]):
        assert contrast(colours[name], colours["paper"]) >= 3, name


def test_both_ways_into_the_dark_are_the_same_and_figures_are_drawn_in_the_light_colours():
    assert themes()["dark"] == themes()["dark by hand"]
    assert tuple(themes()["light"][f"f{n}"] for n in range(8)) == figures.PALETTE
    assert tuple(themes()["print"][f"f{n}"] for n in range(8)) == figures.PALETTE


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("kind", list(BLINDNESS))
def test_lines_are_told_apart_by_every_reader(theme, kind):
    """A difference of nine in L*a*b* is seen at once (two is just seen); marker and dash come on top."""
    seen = [lab(BLINDNESS[kind] @ linear(themes()[theme][f"f{n}"])) for n in range(8)]
    for (i, a), (j, b) in itertools.combinations(enumerate(seen), 2):
        assert np.linalg.norm(a - b) >= 9, (i, j)
    assert len({(figures.MARKERS[n % 8], str(figures.DASHES[n % 4])) for n in range(8)}) == 8


@pytest.fixture(scope="module")
def page(made_up_page) -> Page:
    return Page(made_up_page)


def test_headings_have_no_gap_and_everything_has_a_name(page):
    levels = page.levels()
    assert levels[0] == 1 and levels.count(1) == 1 and all(b - a <= 1 for a, b in itertools.pairwise(levels))
    names = {i for _, a in page.tags for i in [a.get("id")] if i}
    for tag, attrs in page.tags:
        if tag == "html":
            assert attrs["lang"] == "en"
        elif tag == "img":
            assert attrs["alt"]
        elif tag == "svg":
            assert attrs["role"] == "img" and len(attrs["aria-label"]) >= 10
        elif tag == "section":
            assert attrs["aria-labelledby"] in names
        elif tag == "th":
            assert attrs["scope"] in ("col", "row", "colgroup")
        if attrs.get("tabindex") == "0":
            assert attrs["role"] in ("region", "group") and attrs["aria-label"]


def test_tables_have_captions_heads_and_even_rows(page):
    assert len(page.tables) > 8
    for table in page.tables:
        assert table.caption.strip(), table.attrs
        columns = table.columns()
        assert columns and all(columns)
        for _, cells in table.rows:
            assert len(cells) == len(columns) and cells[0].tag == "th"


def test_colour_is_never_alone(page):
    """What is highlighted or a target says so in words as well."""
    for table in page.tables:
        for _, cells in table.rows:
            for cell in cells:
                if "best" in cell.attrs.get("class", "").split():
                    assert "significantly higher than every other row" in cell.text
                if "top" in cell.attrs.get("class", "").split():
                    assert "not separable from the highest" in cell.text
    words = re.findall(r'<figure class="pic t">(?:<img[^>]*>|<span.*?</span>)([^<]*)</figure>', page.text)
    assert words and all(w.startswith("✓") for w in words)


def test_nothing_moves():
    """So there is nothing to reduce for those who ask for less motion."""
    assert not re.search(r"transition|animation|@keyframes|scroll-behavior", CSS)
