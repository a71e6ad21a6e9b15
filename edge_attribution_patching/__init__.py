"""Edge attribution patching: the graph, the attribution, the patched forward and the circuit search."""
