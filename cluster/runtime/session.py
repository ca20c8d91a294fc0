"""The Ray session: the cluster that the environment names, or one of our own on this machine."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray
from ray.exceptions import RayTaskError

from storage.errors import NeuralignError, UserError

_ADDRESS = "RAY_ADDRESS"
_ANSWER_SECONDS = 8.0  # a wrong address is told within ten
_SETTINGS = b"\x04"
_HELLO = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(3) + _SETTINGS + bytes(5)
"""How HTTP/2 begins, which a cluster's drivers speak: both sides send their settings (RFC 9113, 3.4)."""
_OBJECT_STORE_BYTES = 256 << 20


def connect() -> None:
    """Connect to the cluster of RAY_ADDRESS, or start one on this machine that is ours alone.

    Does nothing when a session is open already. Raises UserError, within seconds, for an address that
    nobody answers and a cluster of another Ray or Python.
    """
    if ray.is_initialized():
        return
    logging.getLogger("ray").setLevel(logging.ERROR)
    quiet: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
    # Ray would print the traceback of each piece of a unit that failed, of which the last one tells
    os.environ.setdefault("RAY_IGNORE_UNHANDLED_ERRORS", "1")
    if is_shared():
        _check_answer(os.environ[_ADDRESS])
        try:
            ray.init(**quiet)
        except (ConnectionError, RuntimeError) as error:
            raise UserError(f"{_ADDRESS} {os.environ[_ADDRESS]}: {_one_line(error)}") from error
    else:
        ray.init(
            address="local",
            include_dashboard=False,
            object_store_memory=_OBJECT_STORE_BYTES,
            **quiet,
        )


def is_shared() -> bool:
    """Whether sweeps run on a cluster that was there before, and not on one of their own."""
    return bool(os.environ.get(_ADDRESS))


def _check_answer(address: str) -> None:
    host, _, port = address.rpartition("://")[2].rpartition(":")
    if not host or not port.isdigit():
        # "auto" is for Ray to find
        return
    try:
        with socket.create_connection((host, int(port)), timeout=_ANSWER_SECONDS) as connection:
            if os.environ.get("RAY_USE_TLS") == "1":
                return
            connection.sendall(_HELLO)
            answer = connection.recv(9)
    except OSError as error:
        raise UserError(
            f"{_ADDRESS} {address}: nobody answers ({error}); give the HOST:PORT that "
            "`ray start --head` printed, or leave it out to run on this machine"
        ) from error
    if answer[3:4] != _SETTINGS:
        raise UserError(
            f"{_ADDRESS} {address}: is not where a cluster takes drivers; give the HOST:PORT that "
            "`ray start --head` printed, or submit to its job server with `neuralign submit --address`"
        )


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


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
