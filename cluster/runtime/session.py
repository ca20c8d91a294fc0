"""The Ray session: an external cluster (RAY_ADDRESS) or a private one on this machine."""

from __future__ import annotations

import atexit
import logging
import os
import socket
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import ray
from ray.exceptions import AuthenticationError, RayTaskError

from cluster.runtime.auth_token import protect_token
from cluster.runtime.session_folder import SessionFolder
from storage.errors import NeuralignError, SessionLost, UserError, describe_error

_ADDRESS = "RAY_ADDRESS"
_TIMEOUT_SECONDS = 8.0  # a wrong address is reported within ten seconds
_SETTINGS_FRAME = b"\x04"
_HTTP2_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(3) + _SETTINGS_FRAME + bytes(5)
"""Start of HTTP/2 (gRPC), to which the server replies with its settings (RFC 9113, section 3.4)."""
_OBJECT_STORE_BYTES = 256 << 20
_VITAL_PROCESSES = ("gcs_server", "raylet")
_links = ExitStack()


def connect() -> None:
    """Connect to the cluster of RAY_ADDRESS, or start a private one on this machine.

    Does nothing if a session is open.

    Raises:
        SessionLost: if the open session is private and has ended, or a new one does not start.
        UserError: within seconds, if the address does not respond or needs a token, the cluster runs
            another version of Ray or Python, or there is no folder for a private session.
    """
    if ray.is_initialized():
        check_session()
        return
    logging.getLogger("ray").setLevel(logging.ERROR)
    options: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
    # The work queue reports a failure once; Ray would print a traceback for each dependent task.
    os.environ.setdefault("RAY_IGNORE_UNHANDLED_ERRORS", "1")
    if not uses_external_cluster():
        _start_private_session(options)
        return
    _check_reachable(os.environ[_ADDRESS])
    try:
        ray.init(**options)
    except AuthenticationError as error:
        raise UserError(
            f"{_ADDRESS} {os.environ[_ADDRESS]}: requires a token; set RAY_AUTH_MODE=token, and "
            "RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH to that of the cluster"
        ) from error
    except (ConnectionError, RuntimeError) as error:
        raise UserError(f"{_ADDRESS} {os.environ[_ADDRESS]}: {error}") from error


def _start_private_session(options: dict[str, Any], starts_left: int = 1) -> None:
    """Start Ray on this machine. Raises SessionLost if its processes die while they start, twice."""
    try:
        _init_private_session(options)
    except UserError:
        raise
    except Exception as error:
        # Ray raises the base class.
        _shutdown()
        if starts_left == 0:
            raise SessionLost(
                f"Ray did not start on this machine: {describe_error(error)} (memory may have run out); "
                "run the same command to resume"
            ) from error
        _start_private_session(options, starts_left - 1)


def _init_private_session(options: dict[str, Any]) -> None:
    folder = SessionFolder()
    protect_token()
    _links.callback(folder.remove_link)
    atexit.register(_shutdown)
    with folder.environment():
        ray.init(
            address="local",
            include_dashboard=False,
            object_store_memory=_OBJECT_STORE_BYTES,
            _temp_dir=str(folder.path / "ray"),
            **options,
        )


def _shutdown() -> None:
    ray.shutdown()
    # last, because Ray deletes its spilled objects through the link
    _links.close()


def check_session() -> None:
    """Raise SessionLost if the private session on this machine has ended."""
    for name, code in _dead_processes():
        reason = f"was killed by signal {-code}" if code < 0 else f"exited with code {code}"
        raise SessionLost(
            f"Ray on this machine ended: its {name} {reason} (memory may have run out); run the same "
            "command to resume"
        )


def is_lost() -> bool:
    """Whether the private session on this machine has ended."""
    return bool(_dead_processes())


def _dead_processes() -> list[tuple[str, int]]:
    """Names and exit codes of the private session's processes without which it cannot go on."""
    # Ray notices only after many seconds, and then reports a cluster without CPUs
    node = ray._private.worker._global_node
    dead: list[Any] = [] if node is None else node.dead_processes()
    return [(name, process.returncode) for name, process in dead if name in _VITAL_PROCESSES]


def uses_external_cluster() -> bool:
    """Whether sweeps run on an existing cluster instead of a private one."""
    return bool(os.environ.get(_ADDRESS))


def _check_reachable(address: str) -> None:
    host, _, port = address.rpartition("://")[2].rpartition(":")
    if not host or not port.isdigit():
        # Ray resolves "auto".
        return
    try:
        with socket.create_connection((host, int(port)), timeout=_TIMEOUT_SECONDS) as connection:
            if os.environ.get("RAY_USE_TLS") == "1":
                return
            connection.sendall(_HTTP2_PREFACE)
            response = connection.recv(9)
    except OSError as error:
        raise UserError(
            f"{_ADDRESS} {address}: connection failed ({error}); set the HOST:PORT printed by "
            "`ray start --head`, or unset it to run on this machine"
        ) from error
    if response[3:4] != _SETTINGS_FRAME:
        raise UserError(
            f"{_ADDRESS} {address}: is not a Ray GCS address; set the HOST:PORT printed by "
            "`ray start --head`, or submit to the cluster's job server with `neuralign submit --address`"
        )


@contextmanager
def shutdown_on_exit() -> Iterator[None]:
    """Close the Ray session on exit if it was opened inside the block."""
    was_open = ray.is_initialized()
    try:
        yield
    finally:
        if not was_open:
            _shutdown()


def cluster_cpus() -> int:
    """Number of CPUs of the cluster. Raises SessionLost if the session has ended."""
    check_session()
    return int(ray.cluster_resources().get("CPU", 0))


def cluster_gpus() -> int:
    """Number of GPUs of the cluster. Raises SessionLost if the session has ended."""
    check_session()
    return int(ray.cluster_resources().get("GPU", 0))


def node_cpus() -> list[int]:
    """Number of CPUs of each node. Raises SessionLost if the session has ended."""
    check_session()
    return [int(node["Resources"].get("CPU", 0)) for node in ray.nodes() if node["Alive"]]


def describe_cluster() -> str:
    """Capacity of the cluster, for messages."""
    return f"{cluster_cpus()} CPUs and {cluster_gpus()} GPUs"


def format_resources(resources: Mapping[str, float]) -> str:
    """Format Ray resources for messages, such as "1 CPU + 2 GPU"."""
    return " + ".join(f"{amount:g} {name}" for name, amount in resources.items())


def get_result(reference: Any) -> Any:
    """Get the value of a reference; re-raise a worker's NeuralignError unwrapped."""
    try:
        return ray.get(reference)
    except RayTaskError as error:
        cause = root_cause(error)
        if isinstance(cause, NeuralignError):
            raise cause from error
        raise


def root_cause(error: BaseException) -> BaseException:
    """Exception raised first, in any of the tasks that a result depends on."""
    while isinstance(error, RayTaskError) and error.cause is not None:
        error = error.cause
    return error
