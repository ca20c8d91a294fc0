"""Progress as Ray metrics, which Prometheus can scrape."""

from __future__ import annotations

import time
from collections.abc import Callable

from cluster.runtime.session import uses_external_cluster

_TAGS = ("stage", "of")


def progress_counter(stage: str, unit_name: str, total: int, already: int) -> Callable[[int], None]:
    """Return a function that is called with the amount of newly completed work.

    On an external cluster it updates these metrics, with the tags `stage` and `of` (sentences, sites):

    - `ray_neuralign_done_total`: completed by this run
    - `ray_neuralign_left`: remaining
    - `ray_neuralign_per_second`: mean rate of this run
    """
    if not uses_external_cluster():
        return lambda _: None
    from ray.util.metrics import Counter, Gauge

    tags = {"stage": stage, "of": unit_name}
    done = Counter("neuralign_done", "Completed by this run", _TAGS)
    left = Gauge("neuralign_left", "Remaining", _TAGS)
    rate = Gauge("neuralign_per_second", "Completed per second", _TAGS)
    started, done_by_run = time.monotonic(), 0

    def advance(amount: int) -> None:
        nonlocal done_by_run
        done_by_run += amount
        done.inc(amount, tags)
        left.set(total - already - done_by_run, tags)
        rate.set(done_by_run / max(time.monotonic() - started, 1e-9), tags)

    return advance
