"""The Ray session: the cluster that the environment names, or one of our own on this machine."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray
from ray.exceptions import RayTaskError

from storage.errors import NeuralignError

_OBJECT_STORE_BYTES = 256 << 20


def connect() -> None:
    """Connect to the cluster of RAY_ADDRESS, or start one on this machine that is ours alone.

    Does nothing when a session is open already.
    """
    if ray.is_initialized():
        return
    logging.getLogger("ray").setLevel(logging.ERROR)
    quiet: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
    if os.environ.get("RAY_ADDRESS"):
        ray.init(**quiet)
    else:
        ray.init(
            address="local",
            include_dashboard=False,
            object_store_memory=_OBJECT_STORE_BYTES,
            **quiet,
        )


@contextmanager
def disconnected_after() -> Iterator[None]:
    """Close the session at the end, if the work inside has opened one."""
    was_open = ray.is_initialized()
    try:
        yield
    finally:
        if not was_open:
            ray.shutdown()


def cpus() -> int:
    """CPUs of the cluster."""
    return int(ray.cluster_resources().get("CPU", 0))


def gpus() -> int:
    """GPUs of the cluster."""
    return int(ray.cluster_resources().get("GPU", 0))


def result(reference: Any) -> Any:
    """The value of a reference; what a worker raised for the user is raised as it was."""
    try:
        return ray.get(reference)
    except RayTaskError as error:
        cause = raised(error)
        if isinstance(cause, NeuralignError):
            raise cause from None
        raise


def raised(error: BaseException) -> BaseException:
    """What was raised first, in whichever of the tasks that a result depends on."""
    while isinstance(error, RayTaskError) and error.cause is not None:
        error = error.cause
    return error
