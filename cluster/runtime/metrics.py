"""Progress as Ray's metrics, which the nodes of a cluster show to Prometheus."""

from __future__ import annotations

import time
from collections.abc import Callable

from cluster.runtime.session import is_shared

_TAGS = ("stage", "of")


def counted(stage: str, of: str, total: int, already: int) -> Callable[[int], None]:
    """What to call with how much more of a stage is done. On a cluster that others use too it shows

    - `ray_neuralign_done_total`: how much was done by this run
    - `ray_neuralign_left`: how much is left
    - `ray_neuralign_per_second`: the rate since this run began with it

    with the tags `stage` and `of` (sentences, sites); elsewhere it does nothing.
    """
    if not is_shared():
        return lambda _: None
    from ray.util.metrics import Counter, Gauge

    tags = {"stage": stage, "of": of}
    done = Counter("neuralign_done", "Done by this run", _TAGS)
    left = Gauge("neuralign_left", "Left to do", _TAGS)
    rate = Gauge("neuralign_per_second", "Done in a second", _TAGS)
    started, so_far = time.monotonic(), 0

    def count(more: int) -> None:
        nonlocal so_far
        so_far += more
        done.inc(more, tags)
        left.set(total - already - so_far, tags)
        rate.set(so_far / max(time.monotonic() - started, 1e-9), tags)

    return count
