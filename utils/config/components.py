"""Names of a model's components in configs: heads (`a3.h1`), other nodes, and sets of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from circuits_over_time.edge_attribution_patching.graph import head_named

from ..base.errors import UserError, suggest
from .keys import as_list


def require_heads(key: str, names: Iterable[str], n_layers: int, n_heads: int) -> None:
    """Refuse names of heads that a model of so many layers has not got, with a UserError."""
    for name in names:
        layer, head = head_named(name) or (n_layers, 0)
        if layer >= n_layers or head >= n_heads:
            last = f"a{n_layers - 1}.h{n_heads - 1}"
            raise UserError(f"{key}: the model has no head {name}; name some of a0.h0 to {last}")


def require_known(
    key: str, listed: Iterable[str | list[str]], nodes: Sequence[str], sets: Sequence[str], neither: str
) -> None:
    """Refuse, with a UserError, names that are `neither` nodes nor sets."""
    for name in (name for names in listed for name in as_list(names)):
        if name not in nodes and name not in sets:
            known = suggest(name, [*sets, *nodes], "others are", list(sets))
            raise UserError(f"{key}: '{name}' is neither {neither}{known}")
