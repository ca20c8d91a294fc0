"""How far an intervention on neurons moves what they write, and random controls that move it as far.

A neuron writes its activation times a column of weights. A change c, of shape (tokens, units), of the
neurons of one site moves what the site writes at a token by the sum of the changes times the columns.
Its displacement is the root mean square over tokens of that vector's norm.
"""

from __future__ import annotations

import numpy as np

from alignment.arrays import Floats


def displacement(changes: Floats, gram: Floats) -> float:
    """Displacement by changes of neurons, (tokens, units), whose columns have these scalar products,
    (units, units). 0 without tokens or units."""
    if not changes.size:
        return 0.0
    squares = np.einsum("ti,ij,tj->t", changes, gram, changes, optimize=True)
    # Rounding can make the square of a small norm negative.
    return float(np.sqrt(max(0.0, squares.mean())))


def matched_shifts(changes: Floats, gram: Floats, control_gram: Floats) -> Floats:
    """Constant shifts of control neurons, (units,), whose displacement is that of the changes of as many
    neurons, (tokens, units). `gram` and `control_gram` are the scalar products of the columns of each.

    Each control is first shifted so that it alone moves what it writes as far as the neuron in its place
    does, in the direction of that neuron's mean change; then all shifts are multiplied by one factor.

    Raises:
        ValueError: if the controls write nothing, so that no shift of them has this displacement.
    """
    target = displacement(changes, gram)
    if target == 0:
        return np.zeros(len(control_gram))
    norms = np.sqrt((changes**2).mean(axis=0) * gram.diagonal())
    signs = np.where(changes.mean(axis=0) < 0, -1.0, 1.0)
    columns = np.sqrt(control_gram.diagonal())
    shifts = signs * np.divide(norms, columns, out=np.zeros_like(norms), where=columns > 0)
    reached = displacement(shifts[np.newaxis], control_gram)
    if reached == 0:
        raise ValueError("the control neurons have columns of zeros")
    matched: Floats = shifts * (target / reached)
    return matched


def aura_factor(auroc: Floats) -> Floats:
    """Factors by which AurA multiplies activations: 1 - Gini, with Gini = 2 (AUROC - 0.5), for neurons
    with an AUROC above 0.5, and 1 for the others. Source: Suau et al. 2024 (arXiv 2407.12824), sec. 3.
    """
    return 1 - 2 * np.maximum(auroc - 0.5, 0.0)
