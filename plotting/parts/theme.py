"""Colours for another background, or of another palette, in a figure that is already drawn.

Figures are drawn on white, in the colours of Okabe and Ito and of Paul Tol. For a dark page, neutral and pale colours
change places with those as much darker, and colours of lines are lightened until they stand out. A palette replaces the
colours of lines one by one.
"""

import colorsys
import re
from collections.abc import Callable
from typing import Any

from .roles import ROLE_TINT, ROLES
from .style import OTHER_LOOKS, SERIES, SIZE_LOOKS, blended

THEMES = ("light", "dark")
WHITE, DARK = "#ffffff", "#171717"
# All can be told apart with any of the common colour-vision deficiencies (Okabe and Ito 2008; Tol 2021).
PALETTES: dict[str, tuple[str, ...]] = {
    "default": (),
    "okabe-ito": ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9"),
    "tol-bright": ("#4477AA", "#EE6677", "#228833", "#CCBB44", "#66CCEE", "#AA3377"),
    "tol-vibrant": ("#0077BB", "#EE7733", "#009988", "#CC3311", "#33BBEE", "#EE3377"),
    "tol-muted": ("#332288", "#CC6677", "#117733", "#DDCC77", "#88CCEE", "#882255", "#44AA99", "#999933", "#AA4499"),
    "tol-high-contrast": ("#004488", "#DDAA33", "#BB5566"),
}
_ROLE_COLOURS = [colour for _, colour in ROLES.values()]
# The colours that lines are drawn in, those first that most figures have.
COLOURS = [*dict.fromkeys([*SERIES, *(look[0] for look in (*SIZE_LOOKS.values(), *OTHER_LOOKS)), *_ROLE_COLOURS])]
COLOURS = [colour for colour in COLOURS if colour not in ("#777777", "#000000")]
# Least contrast of a line with a dark page: more than WCAG asks of graphics (3).
_CONTRAST = 3.5
_COLOUR = re.compile(r"#(?:[0-9a-fA-F]{6}|[0-9a-fA-F]{3})(?![\w-])|rgba?\([^)]*\)")


def recoloured(block: Any, palette: tuple[str, ...], page: str) -> Any:
    """A figure or template as its JSON, or a style sheet, with the colours of a palette (or its own), on a page."""
    dark = is_dark(page)
    used = {colour.lower() for colour in _colours_in(block)}
    tinted = {blended(colour, ROLE_TINT).lower(): colour for colour in COLOURS}
    ours = [colour for colour in COLOURS if used & {colour.lower(), blended(colour, ROLE_TINT).lower()}]
    chosen = dict(zip(ours, _assigned(ours, palette), strict=True)) if palette else {}
    every = {colour: colour for colour in COLOURS} | chosen
    plain = {colour.lower(): _lightened(new, page) if dark else new for colour, new in every.items()}
    table = {tint: blended(plain[colour.lower()], ROLE_TINT, page) for tint, colour in tinted.items()}
    table |= plain | {WHITE: page}

    def mapped(colour: str) -> str:
        key = colour.lower()
        return table[key] if key in table else _inverted_or_lightened(key, page) if dark else colour

    def renewed(text: str) -> str:
        return _COLOUR.sub(lambda found: _with_opacity(found[0], mapped), WHITE if text == "white" else text)

    return _mapped(block, renewed)


def _assigned(ours: list[str], palette: tuple[str, ...]) -> list[str]:
    """A palette's colour for each of ours: that of its place where it is free, so that figures agree, else the next."""
    taken: list[str] = []
    for colour in ours:
        place = COLOURS.index(colour)
        free = [new for new in palette[place % len(palette) :] + palette[: place % len(palette)] if new not in taken]
        taken.append(free[0] if free else palette[place % len(palette)])
    return taken


def _mapped(block: Any, change: Callable[[str], str]) -> Any:
    if isinstance(block, dict):
        # What the pointer shows, and the numbers, hold no colours.
        return {
            key: value if key in ("customdata", "meta", "x", "y", "z") else _mapped(value, change)
            for key, value in block.items()
        }
    if isinstance(block, list | tuple):
        return [_mapped(value, change) for value in block]
    return change(block) if isinstance(block, str) else block


def _colours_in(block: Any) -> list[str]:
    found: list[str] = []

    def note(text: str) -> str:
        found.extend(_hex(colour) for colour in _COLOUR.findall(text))
        return text

    _mapped(block, note)
    return found


def _with_opacity(colour: str, mapped: Callable[[str], str]) -> str:
    """The new colour with the opacity of the old one."""
    new = mapped(_hex(colour))
    if not colour.startswith("rgba"):
        return new
    red, green, blue = (int(new[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red},{green},{blue},{colour.rstrip(')').rpartition(',')[2].strip()})"


def _hex(colour: str) -> str:
    if colour.startswith("#"):
        return colour if len(colour) == 7 else "#" + "".join(2 * digit for digit in colour[1:])
    numbers = [float(number) for number in re.findall(r"[\d.]+", colour)]
    return "#" + "".join(f"{round(number):02x}" for number in numbers[:3])


def _inverted_or_lightened(colour: str, page: str) -> str:
    """Neutral and pale colours with their lightness turned round between a dark page and white; others lightened."""
    red, green, blue = (int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))
    hue, lightness, saturation = colorsys.rgb_to_hls(red, green, blue)
    if lightness < 0.82 and saturation > 0.15:
        return _lightened(colour, page)
    floor = colorsys.rgb_to_hls(*(int(page[i : i + 2], 16) / 255 for i in (1, 3, 5)))[1]
    return _of_hls(hue, floor + (1 - lightness) ** 0.8 * (0.97 - floor), min(saturation, 0.3))


def _lightened(colour: str, page: str) -> str:
    """The colour, as much lighter as it takes to stand out on a dark page."""
    hue, lightness, saturation = colorsys.rgb_to_hls(*(int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)))
    while _contrast(colour, page) < _CONTRAST and lightness < 1:
        lightness += 0.02
        colour = _of_hls(hue, min(lightness, 1), saturation)
    return colour


def _of_hls(hue: float, lightness: float, saturation: float) -> str:
    return "#" + "".join(f"{round(255 * part):02x}" for part in colorsys.hls_to_rgb(hue, lightness, saturation))


def _contrast(one: str, other: str) -> float:
    """Contrast ratio of WCAG 2.1, from 1 to 21."""
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def is_dark(page: str) -> bool:
    """Whether a page is dark."""
    return luminance(page) < 0.2


def luminance(colour: str) -> float:
    """Relative luminance, from 0 (black) to 1 (white)."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))
