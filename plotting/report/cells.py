"""Values of tables as the page's JSON has them."""

from collections.abc import Mapping
from typing import Any


def plain(value: Any) -> Any:
    """A value from a table as JSON has it: missing is None, numbers to six digits."""
    if value is None or (isinstance(value, float) and value != value):
        return None
    if isinstance(value, str):
        return value
    number = float(value)
    if number in (float("inf"), float("-inf")):
        return None
    return int(number) if number.is_integer() and abs(number) < 2**53 else float(f"{number:.6g}")


def fields(row: Mapping[Any, Any], names: tuple[str, ...]) -> dict[str, Any]:
    """The named cells of a row that exist and are not empty."""
    cells = {name: plain(row[name]) for name in names if name in row}
    return {name: cell for name, cell in cells.items() if cell is not None}
