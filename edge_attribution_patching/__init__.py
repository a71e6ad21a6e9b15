"""Edge attribution patching: which edges of a transformer matter for a task, and which circuit of them does it.

Start here, then read these five:

    graph.py                   nodes and edges as arrays
    model/forward.py           the forward pass over named weights (model/weights.py reads them)
    scores/attribution.py      EAP-IG: a score for every edge; scores/gradients.py has the derivation
    patching/forward.py        the model where some edges carry another prompt: one primitive for every intervention
    circuits/search.py         from scores to circuits, which circuits/faithfulness.py evaluates

Imports point one way: circuits -> scores and patching -> model. `choices.py` and `graph.py` stand below all of them.
"""
