"""How figures look: one plotly template for each style, and the colours of everything that is drawn.

Figures name colours of the light theme: those of Okabe and Ito (2008), distinguishable with any of the common
colour-vision deficiencies, with a few of Paul Tol's. `paint` gives what is drawn in the theme in use. A palette
replaces the colours of lines one by one. On a dark page, neutral and pale colours change places with those as much
darker, and colours of lines are lightened until they stand out.
"""

import colorsys
import re
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import plotly.graph_objects as go
import plotly.io as pio
from plotly.colors import get_colorscale

FONT = "Helvetica, Arial, sans-serif"
WHITE, DARK = "#ffffff", "#171717"
INK, FAINT, GRID = "#222222", "#8a8a8a", "#e6e6e6"
# What lines are drawn in; those first that most figures have.
COLOURS = (
    *("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#332288", "#999933", "#882255"),
    *("#117733", "#AA4499", "#44AA99", "#AA7733", "#661100", "#CC6677", "#DDAA33", "#88CCEE"),
)
POSITIVE, NEGATIVE = COLOURS[0], COLOURS[3]
# Heads within one model, told apart by colour and by the name at the end of the line.
SERIES = (*COLOURS[:9], "#777777")
THEMES = ("light", "dark")
# All can be told apart with any of the common colour-vision deficiencies (Okabe and Ito 2008; Tol 2021).
PALETTES: dict[str, tuple[str, ...]] = {
    "default": (),
    "okabe-ito": ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9"),
    "tol-bright": ("#4477AA", "#EE6677", "#228833", "#CCBB44", "#66CCEE", "#AA3377"),
    "tol-vibrant": ("#0077BB", "#EE7733", "#009988", "#CC3311", "#33BBEE", "#EE3377"),
    "tol-muted": ("#332288", "#CC6677", "#117733", "#DDCC77", "#88CCEE", "#882255", "#44AA99", "#999933", "#AA4499"),
    "tol-high-contrast": ("#004488", "#DDAA33", "#BB5566"),
}
# Least contrast of a line with a dark page: more than WCAG asks of graphics (3).
_CONTRAST = 3.5
COLOUR = re.compile(r"#(?:[0-9a-fA-F]{6}|[0-9a-fA-F]{3})(?![\w-])|rgba?\([^)]*\)")


@dataclass(frozen=True)
class Theme:
    """What figures are drawn in: colour of the page, colours of lines (or the usual ones), fonts, and a template."""

    page: str = WHITE
    palette: tuple[str, ...] = ()
    font: str = FONT
    own: go.layout.Template | None = None
    _given: dict[str, str] = field(default_factory=dict, init=False, repr=False, compare=False)

    @property
    def is_dark(self) -> bool:
        """Whether its page is dark."""
        return luminance(self.page) < 0.2

    @cached_property
    def template(self) -> go.layout.Template:
        """What is the same in every figure."""
        ink, faint, grid, zero = (self.paint(colour) for colour in (INK, FAINT, GRID, "#c8c8c8"))
        axis = {"showline": True, "linecolor": faint, "gridcolor": grid}
        layout: dict[str, Any] = {
            "font": {"family": self.font, "size": 13, "color": ink},
            "hoverlabel": {"font": {"family": self.font}},
            "title": {"xanchor": "left", "yanchor": "top", "yref": "container"},
            "legend": {"orientation": "h", "xanchor": "left", "yanchor": "top"},
            "paper_bgcolor": self.page,
            "plot_bgcolor": self.page,
            "xaxis": axis | {"zeroline": False, "ticks": "outside", "tickcolor": faint},
            "yaxis": axis
            | {"zerolinecolor": zero, "ticks": "", "tickfont": {"size": 11}}
            | {"title": {"font": {"size": 12}, "standoff": 8}},
        }
        base = go.layout.Template(pio.templates["plotly_dark" if self.is_dark else "plotly_white"])
        return base.update(layout=layout).update(self.own.to_plotly_json() if self.own else {})

    def begin(self) -> None:
        """Let the next figure give the palette's colours out anew."""
        self._given.clear()

    def paint(self, colour: str) -> str:
        """A colour of the light theme (`#rrggbb`, `rgb()` or `rgba()`) as it is drawn in this one."""
        if colour.startswith("rgba"):
            return _with_opacity(self.paint(as_hex(colour)), colour.rstrip(")").rpartition(",")[2].strip())
        if self.palette and colour in COLOURS:
            # The palette's colour at its place if no line of the figure has it, so that figures agree; else the next.
            start = COLOURS.index(colour) % len(self.palette)
            turned = self.palette[start:] + self.palette[:start]
            free = next((other for other in turned if other not in self._given.values()), turned[0])
            colour = self._given.setdefault(colour, free)
            return _lightened(colour, self.page) if self.is_dark else colour
        if as_hex(colour) == WHITE:
            return self.page
        return _turned_round(as_hex(colour), self.page) if self.is_dark else colour


_LIGHT = Theme()
_IN_USE: ContextVar[Theme | None] = ContextVar("theme", default=None)


@contextmanager
def drawn_in(theme: Theme) -> Iterator[None]:
    """Draw figures in a theme inside the block."""
    before = _IN_USE.set(theme)
    try:
        yield
    finally:
        _IN_USE.reset(before)


def theme_in_use() -> Theme:
    """The theme that figures are drawn in."""
    return _IN_USE.get() or _LIGHT


def paint(colour: str) -> str:
    """A colour of the light theme as it is drawn in the theme in use."""
    return theme_in_use().paint(colour)


def painted_scale(scale: str | list[tuple[float, str]]) -> list[list[Any]]:
    """A scale of colours, plotly's by name or one's own, as it is drawn in the theme in use.

    On a dark page a scale runs straight from what stands for its palest colour to those of its ends: of the colours in
    between some would be turned round, and others not.
    """
    stops = get_colorscale(scale) if isinstance(scale, str) else scale
    if theme_in_use().is_dark:
        palest = max(range(len(stops)), key=lambda place: colorsys.rgb_to_hls(*_parts(as_hex(stops[place][1])))[1])
        stops = [stops[place] for place in sorted({0, palest, len(stops) - 1})]
    return [[at, paint(colour)] for at, colour in stops]


def translucent(colour: str, alpha: float) -> str:
    """A colour, painted, of opacity `alpha`, for bands."""
    return _with_opacity(paint(colour), str(alpha))


def tint(colour: str, alpha: float) -> str:
    """A painted `#rrggbb` of opacity `alpha` on the page, as an opaque `#rrggbb`: nothing below it shows through."""
    below = _parts(theme_in_use().page)
    return _of_parts(under + alpha * (part - under) for part, under in zip(_parts(colour), below, strict=True))


def readable_on(colour: str) -> str:
    """White or ink, whichever stands out more on a painted colour."""
    red, green, blue = _parts(colour)
    return INK if 0.299 * red + 0.587 * green + 0.114 * blue > 140 / 255 else WHITE


def luminance(colour: str) -> float:
    """Relative luminance of `#rrggbb`, from 0 (black) to 1 (white)."""
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in _parts(colour)]
    return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def contrast(one: str, other: str) -> float:
    """Contrast ratio of WCAG 2.1, from 1 to 21."""
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def _parts(colour: str) -> list[float]:
    """Red, green and blue of `#rrggbb`, in [0, 1]."""
    return [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]


def _of_parts(parts: Any) -> str:
    return "#" + "".join(f"{round(255 * part):02x}" for part in parts)


def _with_opacity(colour: str, alpha: str) -> str:
    red, green, blue = (round(255 * part) for part in _parts(colour))
    return f"rgba({red},{green},{blue},{alpha})"


def as_hex(colour: str) -> str:
    """`#rgb`, `#rrggbb`, `rgb()` or `rgba()` as `#rrggbb`."""
    if colour.startswith("#"):
        return colour.lower() if len(colour) == 7 else "#" + "".join(2 * digit for digit in colour[1:].lower())
    return _of_parts(float(number) / 255 for number in re.findall(r"[\d.]+", colour)[:3])


def _turned_round(colour: str, page: str) -> str:
    """Neutral and pale colours with their lightness turned round between a dark page and white; others lightened."""
    hue, lightness, saturation = colorsys.rgb_to_hls(*_parts(colour))
    if lightness < 0.82 and saturation > 0.15:
        return _lightened(colour, page)
    floor = colorsys.rgb_to_hls(*_parts(page))[1]
    return _of_parts(colorsys.hls_to_rgb(hue, floor + (1 - lightness) ** 0.8 * (0.97 - floor), min(saturation, 0.3)))


def _lightened(colour: str, page: str) -> str:
    """The colour, as much lighter as it takes to stand out on a dark page."""
    hue, lightness, saturation = colorsys.rgb_to_hls(*_parts(colour))
    while contrast(colour, page) < _CONTRAST and lightness < 1:
        lightness += 0.02
        colour = _of_parts(colorsys.hls_to_rgb(hue, min(lightness, 1), saturation))
    return colour
