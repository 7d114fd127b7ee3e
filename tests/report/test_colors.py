"""Colors of the page that shows a report: all of the palette, all with contrast."""

import itertools
import re
from pathlib import Path

import pytest

import amnesia
from amnesia.report.page import PALETTES

REPORT = Path(amnesia.__file__).parent / "report"
SURFACES = ("paper", "card", "raised")
TEXT_COLORS = ("ink", "muted", "link", "target", "control", "good", "warning", "damage")


def luminance(color):
    """Relative luminance by WCAG 2.2."""
    channels = [int(color[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    linear = [value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4 for value in channels]
    return sum(weight * value for weight, value in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def contrast(one, other):
    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("scheme", PALETTES)
def test_contrast(scheme):
    colors = PALETTES[scheme]
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    for text, surface in itertools.product(TEXT_COLORS, SURFACES):
        assert contrast(colors[text], colors[surface]) >= 4.5, (text, surface)
    for surface in SURFACES:
        assert contrast(colors["edge"], colors[surface]) >= 3, surface


@pytest.mark.parametrize("scheme", PALETTES)
def test_contrast_on_a_heat_map(scheme):
    css = (REPORT / "templates" / "report.css").read_text(encoding="utf-8")
    colors = PALETTES[scheme]
    shares = [float(share) for share in re.findall(r"\.h\d { fill-opacity: ([.\d]+); }", css)]
    assert len(shares) == 5 and shares == sorted(shares)
    for share in shares:
        channels = (
            round((1 - share) * int(colors["card"][n : n + 2], 16) + share * int(colors["target"][n : n + 2], 16))
            for n in (1, 3, 5)
        )
        mixed = "#" + "".join(f"{channel:02x}" for channel in channels)
        assert all(contrast(colors[text], mixed) >= 4.5 for text in ("ink", "muted")), share


def test_every_color_is_of_the_palette():
    css = (REPORT / "templates" / "report.css").read_text(encoding="utf-8")
    assert not re.search(r"#[0-9a-f]{3,8}\b(?![^{]*\{)|\brgba?\(|\bhsl", re.sub(r"#limits", "", css))
    used = set(re.findall(r"var\(--([a-z]+)\)", css)) - {"n"}
    assert used <= set(PALETTES["light"]) and set(PALETTES["light"]) == set(PALETTES["dark"])
    texts = set(re.findall(r"(?<![-\w])color: var\(--([a-z]+)\)", css))
    assert texts <= set(TEXT_COLORS)
