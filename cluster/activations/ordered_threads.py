"""Calls a function in several threads, and gives its results in order."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import torch

ArgumentT = TypeVar("ArgumentT")
ResultT = TypeVar("ResultT")


def map_in_order(
    function: Callable[[ArgumentT], ResultT], arguments: Iterable[ArgumentT], threads: int
) -> Iterator[ResultT]:
    """The function's results for all arguments, in their order, from threads with one core each.

    At most two calls a thread are ahead of the result that is taken. The first error in the order of the
    arguments is raised once the calls under way have ended; no others begin.
    """
    if threads == 1:
        yield from map(function, arguments)
        return
    under_way: deque[Future[ResultT]] = deque()
    with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        try:
            for argument in arguments:
                under_way.append(pool.submit(function, argument))
                if len(under_way) == 2 * threads:
                    yield under_way.popleft().result()
            while under_way:
                yield under_way.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)
