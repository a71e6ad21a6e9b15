"""CPR and CMD: a circuit-finding method's faithfulness over all circuit sizes, as one number each.

Mechanistic Interpretability Benchmark (Mueller et al. 2025, arXiv 2504.13151). With f(k) the faithfulness of the
circuit that keeps the share k of all edges,

    CPR = integral of f(k) dk from 0 to 1          circuit performance ratio, higher is better
    CMD = integral of |1 - f(k)| dk from 0 to 1    circuit-model distance, 0 is best

by the trapezoidal rule. The benchmark samples k at 0.1, 0.2, 0.5, 1, ..., 50, 100% and starts at the first; here the
curve also has its two ends that hold by definition, f(0) = 0 (the corrupted run) and f(1) = 1 (the model).
"""

import numpy as np
import numpy.typing as npt

# Sizes at which the benchmark evaluates, as shares of all edges.
MIB_SHARES = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)


def closed_curve(shares: npt.ArrayLike, faithfulness: npt.ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """The measured curve, ascending, with the ends f(0) = 0 and f(1) = 1 where they were not measured.

    Args:
        shares: [size] edges kept as a share of all edges, each once.
        faithfulness: [size] faithfulness of each circuit.

    Raises:
        ValueError: if a share lies outside [0, 1] or stands twice, or a value is missing.
    """
    k, f = np.asarray(shares, dtype=float), np.asarray(faithfulness, dtype=float)
    if k.shape != f.shape or k.ndim != 1:
        raise ValueError(f"{k.shape} shares and {f.shape} values of faithfulness; both are lists of one length")
    if not (np.isfinite(k).all() and np.isfinite(f).all()):
        raise ValueError("a share or a faithfulness is missing")
    if ((k < 0) | (k > 1)).any():
        raise ValueError("a share of the edges lies outside [0, 1]")
    if len(np.unique(k)) < len(k):
        raise ValueError("a share of the edges stands twice")
    for end in (0.0, 1.0):
        if end not in k:
            k, f = np.append(k, end), np.append(f, end)
    order = np.argsort(k)
    return k[order], f[order]


def cpr(shares: npt.ArrayLike, faithfulness: npt.ArrayLike) -> float:
    """Area under the faithfulness curve; 1 for a method whose every circuit does what the model does."""
    k, f = closed_curve(shares, faithfulness)
    return float(np.trapezoid(f, k))


def cmd(shares: npt.ArrayLike, faithfulness: npt.ArrayLike) -> float:
    """Area between the faithfulness curve and 1, whichever side of 1 it runs on."""
    k, f = closed_curve(shares, faithfulness)
    return float(np.trapezoid(np.abs(1 - f), k))
