"""Effects of steering: means over prompts and concepts with intervals, and random control neurons.

Clamping expert neurons follows Suau et al. 2022 (arXiv 2110.02802); attribution is the first-order
estimate of its effect (attribution patching: Nanda 2023; Kramar et al. 2024, arXiv 2403.00745).
"""

from __future__ import annotations

from collections.abc import Sequence
from collections.abc import Set as AbstractSet

import numpy as np

from alignment.arrays import Floats
from alignment.statistics.resampling import IntervalEstimate, t_interval

Neuron = tuple[int, str, int]
"""Layer, site and unit."""


def mean_of_sample(values: Floats) -> IntervalEstimate:
    """The mean of independent values, of shape (n,), with Student's t interval.

    No interval from a single value.
    """
    mean = float(np.mean(values))
    if len(values) < 2:
        return IntervalEstimate(mean)
    return t_interval(mean, np.std(values, ddof=1) / np.sqrt(len(values)), len(values) - 1)


def mean_two_way_clustered(values: Floats) -> IntervalEstimate:
    """The mean of values of shape (concepts, prompts), with an interval over concepts and prompts.

    Values of one concept are correlated, as are those of one prompt: the variance is that of the
    concepts' means plus that of the prompts' means minus the part of single values in both (two-way
    clustering: Cameron, Gelbach and Miller 2011, J. Bus. Econ. Stat. 29(2)), and at least the larger of
    the first two. The degrees of freedom are those of the smaller number. No interval from one concept
    or one prompt.
    """
    mean = float(np.mean(values))
    concepts, prompts = values.shape
    if min(concepts, prompts) < 2:
        return IntervalEstimate(mean)
    by_concept = np.var(values.mean(axis=1), ddof=1) / concepts
    by_prompt = np.var(values.mean(axis=0), ddof=1) / prompts
    residuals = values - values.mean(axis=1, keepdims=True) - values.mean(axis=0, keepdims=True) + mean
    by_value = (residuals**2).sum() / ((concepts - 1) * (prompts - 1)) / (concepts * prompts)
    variance = max(by_concept + by_prompt - by_value, by_concept, by_prompt)
    return t_interval(mean, np.sqrt(variance), min(concepts, prompts) - 1)


def attribution_correlation(estimated: Floats, measured: Floats) -> float | None:
    """Spearman's rho of attributions and measured effects; None if either is constant."""
    if len(estimated) < 2 or np.ptp(estimated) == 0 or np.ptp(measured) == 0:
        return None
    from scipy import stats

    return float(stats.spearmanr(estimated, measured).statistic)


def sample_control_neurons(
    experts: Sequence[Neuron],
    widths: dict[tuple[int, str], int],
    excluded: AbstractSet[Neuron],
    seed: int | Sequence[int],
) -> list[Neuron]:
    """Sample a random neuron of the same layer and site for each expert, in turn.

    Neurons are distinct and not in `excluded`; the first k are a control for the first k experts. Stops
    at the first site without candidates left. `widths` has the number of units of each site.
    """
    rng = np.random.default_rng(seed)
    candidates: dict[tuple[int, str], list[int]] = {}
    controls = []
    for layer, site, _ in experts:
        key = (layer, site)
        if key not in candidates:
            units = map(int, rng.permutation(widths[key]))
            candidates[key] = [unit for unit in units if (layer, site, unit) not in excluded]
        if not candidates[key]:
            break
        controls.append((layer, site, candidates[key].pop()))
    return controls
