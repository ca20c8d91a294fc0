"""The concept bootstrap of many representations at once, against a loop over SciPy."""

from __future__ import annotations

import numpy as np
from scipy.stats import spearmanr

from alignment.statistics.correlation import correlate
from benchmarks.measure import record, seconds

_CONCEPTS, _PAIRS = 200, 2_000
_LAYERS, _THRESHOLDS = 30, 5
_RESAMPLES, _LOOP_RESAMPLES = 10_000, 200


def bootstrap() -> None:
    """10,000 resamples x 30 layers x 5 thresholds on 2,000 pairs, in seconds. The loop is timed on a few
    resamples of one representation and extrapolated."""
    random = np.random.default_rng(0)
    first, second = np.triu_indices(_CONCEPTS, 1)
    sample = random.choice(len(first), _PAIRS, replace=False)
    first, second = first[sample], second[sample]
    y = random.standard_normal(_PAIRS)
    x = y + random.standard_normal((_LAYERS * _THRESHOLDS, _PAIRS))
    counts = random.multinomial(_CONCEPTS, np.full(_CONCEPTS, 1 / _CONCEPTS), size=_LOOP_RESAMPLES)

    def theirs() -> None:
        for count in counts:
            repeated = np.repeat(np.arange(_PAIRS), count[first] * count[second])
            spearmanr(x[0][repeated], y[repeated])

    correlate(x[:1], y, first, second, method="concept-bootstrap", resamples=10)
    loop = seconds(theirs) * len(x) * _RESAMPLES / _LOOP_RESAMPLES

    def ours() -> None:
        correlate(x, y, first, second, method="concept-bootstrap", resamples=_RESAMPLES)

    record("bootstrap", seconds(ours), loop, "s", "at most 60 s on 2 cores")
