"""How figures are to look in print: a YAML file of keys, or flags of the same names, which win over the file."""

import argparse
import re
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

import plotly.graph_objects as go
import pydantic
from pydantic import AfterValidator, BeforeValidator, Field, ValidationInfo, field_validator

from circuits_over_time.utils.base.errors import UserError, suggest
from circuits_over_time.utils.config.explain import checked
from circuits_over_time.utils.config.strict_yaml import read_yaml

from .theme import DARK, FONT, PALETTES, THEMES, WHITE, Theme, as_hex

FORMATS = ("html", "png", "pdf", "svg")
# A CSS pixel is 1/96 inch in SVG, HTML and PDF alike.
PIXELS = {"in": 96.0, "cm": 96 / 2.54, "mm": 96 / 25.4, "pt": 96 / 72, "px": 1.0}
_PRINT = 8 * PIXELS["pt"]
_METAVARS = {"width": "LENGTH", "height": "LENGTH", "font_size": "SIZE", "format": "LIST", "scale": "N"}


def pixels(text: object) -> float | None:
    """A length such as `5.5in`, `82mm` or `8pt` in CSS pixels, of which 96 make an inch; None stays None."""
    found = re.fullmatch(r"\s*(-?(?:\d+\.?\d*|\.\d+))\s*([a-z]*)\s*", text.lower()) if isinstance(text, str) else None
    if text is None:
        return None
    if found is None or found[2] not in PIXELS:
        raise ValueError(f"'{text}' is not a length with a unit ({', '.join(PIXELS)}); write 5.5in or 140mm")
    return float(found[1]) * PIXELS[found[2]]


def _between(low: str, high: str) -> AfterValidator:
    def check(value: float | None) -> float | None:
        if value is not None and not (pixels(low) or 0) <= value <= (pixels(high) or 0) + 1e-6:
            raise ValueError(f"{value / PIXELS['in']:.3g}in; ask for {low} to {high}")
        return value

    return AfterValidator(check)


Side = Annotated[float | None, BeforeValidator(pixels), _between("1in", "100in")]
TextSize = Annotated[float | None, BeforeValidator(pixels), _between("3pt", "72pt")]


def parse_formats(given: object) -> tuple[str, ...]:
    """The formats named in a list, or in a comma-separated text, each once.

    Raises:
        ValueError: for an unknown format or none.
    """
    parts = given.split(",") if isinstance(given, str) else given if isinstance(given, list | tuple) else [given]
    formats = tuple(dict.fromkeys(name for part in parts if (name := str(part).strip().lower())))
    unknown = [name for name in formats if name not in FORMATS]
    if unknown or not formats:
        raise ValueError(f"{', '.join(unknown) or 'nothing'} given; choose from {', '.join(FORMATS)}")
    return formats


class Style(pydantic.BaseModel):
    """How figures look. Each key is a flag of every figure script too, and its docstring the flag's help."""

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    width: Side = None
    """Width in print with a unit, such as 5.5in or 82mm; the layout follows (that of each figure on the screen)."""
    height: Side = None
    """Height (as the panels need)."""
    font_size: TextSize = None
    """Size of all text but the title, which is a fifth larger (8pt with a width or a height)."""
    font: str | None = Field(None, min_length=1)
    """Family of fonts, such as `Times New Roman, serif`."""
    theme: str = "light"
    """light, dark, or a JSON or YAML file of a plotly template (light)."""
    palette: str = Field("default", description=f"Colours of lines: {', '.join(PALETTES)} (default).")
    title: bool = True
    """Whether figures have their title; a paper says it in the caption."""
    format: Annotated[tuple[str, ...], BeforeValidator(parse_formats)] = ("html",)
    """Formats, comma-separated: html, png, pdf, svg (html)."""
    scale: float = Field(2.0, ge=0.1, le=20)
    """Pixels of a PNG for each of 1/96 inch (2)."""

    @field_validator("palette", "theme")
    @classmethod
    def _known(cls, value: str, field: ValidationInfo) -> str:
        is_theme = field.field_name == "theme"
        names = THEMES if is_theme else PALETTES
        if value not in names and not (is_theme and Path(value).suffix):
            further = ", nor the .json or .yml of a plotly template" if is_theme else ""
            raise ValueError(f"'{value}' is not a {field.field_name}{further}{suggest(value, names)}")
        return value

    @cached_property
    def look(self) -> Theme:
        """The theme that its figures are drawn in; errors as of `read_template` if a file names it."""
        own = None if self.theme in THEMES else read_template(self.theme)
        page, colorway, font = DARK if self.theme == "dark" else WHITE, None, None
        if own:
            colorway, font = own.layout.colorway, own.layout.font.family
            page = page_colour(own.layout.paper_bgcolor, self.theme) or page
        palette = PALETTES[self.palette] or tuple(colorway or ())
        if own and self.font:
            own.layout.font.family = self.font
        return Theme(page, palette, self.font or font or FONT, own)

    @property
    def sized(self) -> bool:
        """Whether figures are laid out anew, for a size or for their text."""
        return any((self.width, self.height, self.font_size))

    @property
    def text_pixels(self) -> float:
        """Size of text in pixels."""
        return self.font_size or (_PRINT if self.width or self.height else 13.0)


def add_style_flags(parser: argparse.ArgumentParser, formats: Sequence[str] = ("-f", "--format")) -> None:
    """Add `--style FILE` and a flag for each of its keys; `formats` are the flags of the files' formats."""
    group = parser.add_argument_group("style")
    group.add_argument("--style", type=Path, metavar="FILE", help="YAML file of the keys below; flags win over it")
    for name, key in Style.model_fields.items():
        flags = formats if name == "format" else [f"--{name.replace('_', '-')}"]
        look: dict[str, Any] = {"action": argparse.BooleanOptionalAction, "default": None}
        look = look if key.annotation is bool else {"metavar": _METAVARS.get(name, "NAME")}
        group.add_argument(*flags, help=key.description, **look)


def style_of(arguments: argparse.Namespace) -> Style:
    """The style that a command line asks for.

    Raises:
        UserError: one line for each key that is unknown, or whose value is refused.
    """
    path = arguments.style
    given: dict[str, Any] = {
        name: value for name in Style.model_fields if (value := getattr(arguments, name)) is not None
    }
    if "scale" in given:
        try:
            given["scale"] = float(given["scale"])
        except ValueError:
            raise UserError(f"--scale: '{given['scale']}' is not a number; write 2") from None
    data = {} if path is None else read_yaml(path)
    if path is not None and isinstance(theme := data.get("theme"), str) and theme not in THEMES:
        data["theme"] = str(path.parent / theme)  # A file beside the file that names it.
    try:
        return checked(Style, data | given, path, [(name,) for name in given])
    except UserError as error:  # Keys of the command line as the flags they are.
        lines = re.sub(r"(?m)^command line: (\w+)", lambda found: f"--{found[1].replace('_', '-')}", str(error))
        raise UserError(lines) from None


def page_colour(given: str | None, path: str) -> str | None:
    """The background that a template gives figures as `#rrggbb`; None if it gives none that can be seen.

    Raises:
        UserError: for a name that text cannot be held against.
    """
    named: dict[str, str | None] = {"black": "#000000", "white": WHITE, "transparent": None}
    if given is None or given in named:
        return None if given is None else named[given]
    if given.startswith("rgba") and float(re.findall(r"[\d.]+", given)[-1]) == 0:
        return None
    if re.fullmatch(r"#(?:[0-9a-fA-F]{3}){1,2}|rgba?\([\d., ]+\)", given):
        return as_hex(given)
    raise UserError(f"{path}: paper_bgcolor: '{given}': write it as '#rrggbb', so that text can stand out from it")


def read_template(path: str) -> go.layout.Template:
    """A plotly template from a JSON or YAML file: `layout`, and perhaps `data`.

    Raises:
        UserError: if there is none, or plotly refuses it.
    """
    block = read_yaml(Path(path))
    try:
        return go.layout.Template(block)
    except (ValueError, TypeError) as error:
        wrong = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
        raise UserError(
            f"{path}: not a plotly template ({wrong}); write keys of plotly's layout below `layout:`"
        ) from None
