"""What a config may choose, in a module that imports nothing: keys can be read and explained without torch."""

from typing import Literal, get_args

Quadrature = Literal["left", "right", "midpoint", "gauss-legendre"]
"""Where integration steps lie, see `scores.attribution.quadrature_points`."""

Method = Literal[
    "eap_ig",
    "eap",
    "clean_corrupted",
    "eap_ig_activations",
    "ceap",
    "relp",
    "information_flow_routes",
    "exact",
]
"""How edges are scored, see `scores.methods`."""

USUAL_METHOD: Method = "eap_ig"

Ablation = Literal["patching", "zero", "mean", "mean_positional"]
"""What nodes write along edges outside a circuit: what the corrupted prompt gives, or see `model.reference`."""

Level = Literal["edge", "node", "neuron"]
"""What circuits consist of, see `units`."""

VARIANTS: dict[str, tuple[str | bool, ...]] = {
    "eap.method": get_args(Method),
    "ablation": get_args(Ablation),
    "level": get_args(Level),
    "positions": (False, True),
}
"""The keys by which circuits of one task differ, in the order of their names in the results (`ioi@eap+mean`): the value
that goes without saying, then the others. One that is true or false is named by the key."""

USUAL_STEPS: dict[Method, int] = {"eap_ig": 20, "ceap": 20, "eap_ig_activations": 5}
"""The methods that integrate, and how many steps each takes if nobody says: the last one takes them 2L + 1 times."""

MOST_PARTS = 48
"""Of the path, with `ig_steps: auto`."""
EXACT_AT_ONCE = 512
"""Edges that `exact` patches one by one, whose masks are made at once."""

TOLERANCE = 0.25
"""The error of integration that `ig_steps: auto` leaves, in standard errors of the scores, see `scores.refinement`."""

Accumulate = Literal["float32", "model"]
"""The number format in which scores of batches and steps, or absent edges, are added up: `model` is the model's."""

Order = Literal["greedy", "top_n"]
Selection = Literal["absolute", "signed"]
"""In which order edges join a circuit, and what ranks them, see `circuits.search`."""

POSITIVE_SHARE = 0.75
"""The share of positive edges that signed selection keeps up by default."""

Criterion = Literal["normalised", "raw"]
Grid = Literal["adaptive", "study"]
"""What must reach the threshold, and which sizes are tried, see `circuits.circuit_size`."""

Base = Literal["corrupted", "clean"]
"""Which run carries the edges outside a mask, see `patching.runs`; the other one is the source."""

ExportFormat = Literal["eap_ig_json", "eap_ig_pt", "mib_folder", "graphml", "circuit_tracer_json", "circuitkit_scores"]
"""The files of other programs that circuits can be written as, see `circuits.formats`."""


def lacking_in_files(level: Level, *, positions: bool) -> str:
    """What files of other programs have not of such circuits; empty if they have all of it."""
    return "roles of tokens" if positions else "neurons" if level == "neuron" else ""


QKVName = Literal["q", "k", "v"]
QKV: tuple[QKVName, ...] = ("q", "k", "v")
"""The three inputs of a head, in the order of the graph's nodes."""

Part = Literal["q", "k", "v", "o"]
"""What of a head can be swapped by itself: its queries, keys, values, or what it writes; see `model.swap`."""
