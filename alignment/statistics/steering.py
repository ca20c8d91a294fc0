"""What steering did: means over prompts and concepts with their intervals, and the controls' draw.

Forcing expert neurons follows Suau et al. 2022 (arXiv 2110.02802); attribution is the first-order
estimate of its effect (attribution patching: Nanda 2023; Kramar et al. 2024, arXiv 2403.00745).
"""

from __future__ import annotations

from collections.abc import Sequence
from collections.abc import Set as AbstractSet

import numpy as np
import numpy.typing as npt

from alignment.statistics.resampling import LEVEL, Interval

Floats = npt.NDArray[np.float64]
Neuron = tuple[int, str, int]
"""Layer, site and unit."""


def mean_over_prompts(values: Floats) -> Interval:
    """The mean of one value a prompt, of shape (prompts,), with Student's interval for other prompts.

    No interval from one prompt.
    """
    mean = float(np.mean(values))
    if len(values) < 2:
        return Interval(mean, None, None)
    error = np.std(values, ddof=1) / np.sqrt(len(values))
    half = float(_student(len(values) - 1) * error)
    return Interval(mean, mean - half, mean + half)


def mean_over_both(values: Floats) -> Interval:
    """The mean over concepts and prompts, values of shape (concepts, prompts), with the interval for
    other concepts and other prompts.

    The values of a concept share what it does, those of a prompt what it does: the variance of the mean
    is that of the concepts' means plus that of the prompts' means less what single values add to both
    (clustering in two ways: Cameron, Gelbach and Miller 2011, J. Bus. Econ. Stat. 29(2)), and at least
    the larger of the first two. Student's quantile is that of the smaller number. No interval from one
    concept or one prompt.
    """
    mean = float(np.mean(values))
    concepts, prompts = values.shape
    if min(concepts, prompts) < 2:
        return Interval(mean, None, None)
    by_concept = np.var(values.mean(axis=1), ddof=1) / concepts
    by_prompt = np.var(values.mean(axis=0), ddof=1) / prompts
    single = values - values.mean(axis=1, keepdims=True) - values.mean(axis=0, keepdims=True) + mean
    by_value = (single**2).sum() / ((concepts - 1) * (prompts - 1)) / (concepts * prompts)
    variance = max(by_concept + by_prompt - by_value, by_concept, by_prompt)
    half = float(_student(min(concepts, prompts) - 1) * np.sqrt(variance))
    return Interval(mean, mean - half, mean + half)


def rank_agreement(estimated: Floats, measured: Floats) -> float | None:
    """Spearman's rho of attributions and measured changes; None where either has no two values."""
    if len(estimated) < 2 or np.ptp(estimated) == 0 or np.ptp(measured) == 0:
        return None
    from scipy import stats

    return float(stats.spearmanr(estimated, measured).statistic)


def _student(freedom: int) -> float:
    """The quantile of Student's t that an interval takes."""
    # slow to import, and what only plans a sweep needs none of it
    from scipy import stats

    return float(stats.t.ppf((1 + LEVEL) / 2, freedom))


def draw_like(
    chosen: Sequence[Neuron],
    widths: dict[tuple[int, str], int],
    not_these: AbstractSet[Neuron],
    seed: int | Sequence[int],
) -> list[Neuron]:
    """For each chosen neuron in turn a random one of the same layer and site: no two are the same, and
    none is one of `not_these`. The first k of them are thus a control for the first k chosen.

    Ends where a site has none left. `widths` gives the units of each site.
    """
    random = np.random.default_rng(seed)
    left: dict[tuple[int, str], list[int]] = {}
    drawn = []
    for layer, site, _ in chosen:
        place = (layer, site)
        if place not in left:
            units = random.permutation(widths[place])
            left[place] = [int(unit) for unit in units if (layer, site, int(unit)) not in not_these]
        if not left[place]:
            break
        drawn.append((layer, site, left[place].pop()))
    return drawn
