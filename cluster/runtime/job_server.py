"""Client of a Ray cluster's job server: submits jobs and follows their logs."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import platform
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from contextlib import suppress
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import ray

from cluster.environment import environment_variable
from cluster.runtime.auth_token import read_token
from storage.errors import NeuralignError, UserError

DEFAULT_ADDRESS = "http://127.0.0.1:8265"

_ADDRESS = "RAY_API_SERVER_ADDRESS"
_TIMEOUT_SECONDS = 8.0  # a wrong address is reported within ten seconds
_POLL_SECONDS = 0.5
_RECONNECT_SECONDS = 30.0
_ACTIVE_STATUSES = ("PENDING", "RUNNING")
_NOISY_LOGGERS = ("ray", "ray.dashboard.modules.job.sdk", "ray.dashboard.modules.dashboard_sdk")
_EXISTS = "already exists"
_NOT_FOUND = "status code 404"
_MAX_ATTEMPTS = 10_000
_environment_lock = threading.Lock()


class JobServer:
    """A responding job server with this process's versions of Ray and Python.

    Raises UserError, within seconds, on no response, a wrong token or different versions.
    """

    def __init__(self, address: str | None = None) -> None:
        self.address = _url(address)
        self._headers = _token_header()
        self.check()
        from ray.job_submission import JobSubmissionClient

        for name in _NOISY_LOGGERS:
            logging.getLogger(name).setLevel(logging.ERROR)
        # Ray prefers the address in the environment over the argument.
        with _environment_lock, environment_variable(_ADDRESS, self.address):
            self._client = JobSubmissionClient(self.address, headers=dict(self._headers))

    def jobs(self) -> list[Any]:
        """Ray's details of all submitted jobs."""
        return [job for job in self._client.list_jobs() if job.submission_id]

    def job(self, submission_id: str) -> Any | None:
        """Ray's details of a job; None if the id is unknown."""
        try:
            return self._client.get_job_info(submission_id)
        except RuntimeError as error:
            if _NOT_FOUND in str(error):
                return None
            raise

    def submit(
        self,
        base_id: str,
        entrypoint: str,
        working_dir: Path,
        metadata: Mapping[str, str],
        should_rerun: Callable[[Any], bool],
    ) -> tuple[str, bool]:
        """Submit a job as `base_id`, `base_id-2`, ..., unless one of these jobs is active.

        The server accepts each id once, so concurrent submissions start only one job, whose id all of
        them return. `should_rerun(job)` decides whether a completed job is followed by another attempt.
        Returns the id, and whether this call submitted the job.
        """
        for attempt in range(1, _MAX_ATTEMPTS):
            submission_id = base_id if attempt == 1 else f"{base_id}-{attempt}"
            job = self.job(submission_id)
            if job is None:
                if self._try_submit(submission_id, entrypoint, working_dir, metadata):
                    return submission_id, True
                job = self.job(submission_id)
            if job is not None and (is_active(job) or not should_rerun(job)):
                return submission_id, False
        raise NeuralignError(f"{base_id}: {_MAX_ATTEMPTS} attempts have ended")

    def follow(self, submission_id: str, write: Callable[[str], Any]) -> int:
        """Write a job's output until it ends, and return its exit code."""
        from aiohttp import ClientError

        written = 0

        async def tail() -> None:
            nonlocal written
            received = 0
            async for chunk in self._client.tail_job_logs(submission_id):
                # After a lost connection the server resends the log from the start.
                unwritten = chunk[max(0, written - received) :]
                received += len(chunk)
                if unwritten:
                    written = max(written, received)
                    write(unwritten)

        while True:
            with suppress(RuntimeError, OSError, ClientError):
                asyncio.run(tail())
            job = self._poll_job(submission_id)
            if not is_active(job):
                return exit_code(job)
            time.sleep(_POLL_SECONDS)

    def logs(self, submission_id: str) -> str:
        """Output of a job so far. Raises UserError for an unknown id."""
        if self.job(submission_id) is None:
            job_ids = ", ".join(job.submission_id for job in self.jobs()) or "none"
            raise UserError(f"{self.address}: has no job {submission_id!r}; it has: {job_ids}")
        return str(self._client.get_job_logs(submission_id))

    def _poll_job(self, submission_id: str) -> Any:
        deadline = time.monotonic() + _RECONNECT_SECONDS
        while True:
            try:
                job = self.job(submission_id)
            except (OSError, RuntimeError) as error:
                if time.monotonic() > deadline:
                    raise NeuralignError(
                        f"{self.address}: no longer responds; status of {submission_id} unknown; submit "
                        "it again when the cluster is back to resume from the committed results"
                    ) from error
                time.sleep(_POLL_SECONDS)
                continue
            if job is None:
                raise NeuralignError(f"{self.address}: no longer has the job {submission_id}")
            return job

    def _try_submit(
        self, submission_id: str, entrypoint: str, working_dir: Path, metadata: Mapping[str, str]
    ) -> bool:
        try:
            self._client.submit_job(
                submission_id=submission_id,
                entrypoint=entrypoint,
                runtime_env={"working_dir": str(working_dir)},
                metadata=dict(metadata),
            )
        except RuntimeError as error:
            if _EXISTS in str(error):
                return False
            reason = str(error).strip().splitlines()[-1]
            raise NeuralignError(f"{self.address}: rejected the job: {reason}") from error
        return True

    def check(self) -> None:
        """Raise UserError unless the server responds and has this process's versions."""
        version = self._request("/api/version").get("ray_version")
        metadata = self._request("/api/v0/cluster_metadata").get("data", {})
        remote = {"Ray": version, "Python": _minor_version(metadata.get("pythonVersion"))}
        local = {"Ray": ray.__version__, "Python": _minor_version(platform.python_version())}
        if remote != local:
            raise UserError(
                f"{self.address}: runs {_format_versions(remote)}, but this machine runs "
                f"{_format_versions(local)}; versions must match"
            )

    def _request(self, path: str) -> dict[str, Any]:
        request = urllib.request.Request(self.address + path, headers=self._headers)  # noqa: S310
        try:
            with urllib.request.urlopen(request, timeout=_TIMEOUT_SECONDS) as response:  # noqa: S310
                content = json.load(response)
        except urllib.error.HTTPError as error:
            if error.code in (401, 403):
                raise UserError(
                    f"{self.address}: requires a token ({error.reason}); set RAY_AUTH_TOKEN or "
                    "RAY_AUTH_TOKEN_PATH to that of the cluster"
                ) from error
            raise UserError(f"{self.address}: is not a Ray job server: {error}") from error
        except ValueError as error:
            raise UserError(f"{self.address}: is not a Ray job server: response is not JSON") from error
        except (OSError, HTTPException) as error:
            reason = getattr(error, "reason", error)
            raise UserError(
                f"{self.address}: connection failed ({reason}); use the address of the head's job "
                "server, http://HOST:8265 unless `ray start` was given another --dashboard-port"
            ) from error
        if not isinstance(content, dict):
            raise UserError(f"{self.address}: is not a Ray job server")
        return content


def is_active(job: Any) -> bool:
    """Whether a job is waiting or running."""
    return str(job.status) in _ACTIVE_STATUSES


def exit_code(job: Any) -> int:
    """Exit code of a completed job, as in a shell."""
    if str(job.status) == "SUCCEEDED":
        return 0
    code = job.driver_exit_code
    return 1 if not code else 128 - code if code < 0 else int(code)


def _url(address: str | None) -> str:
    # RAY_ADDRESS may instead be the GCS address, which has no job server.
    ray_address = os.environ.get("RAY_ADDRESS", "")
    http_address = ray_address if ray_address.startswith(("http://", "https://")) else None
    url = (address or os.environ.get(_ADDRESS) or http_address or DEFAULT_ADDRESS).rstrip("/")
    url = url if "://" in url else f"http://{url}"
    if any(character in url for character in "@?#"):
        raise UserError(
            f"--address {url}: must not contain credentials or parameters; set RAY_AUTH_TOKEN"
        )
    try:
        parts = urlsplit(url)
    except ValueError as error:
        raise UserError(f"--address {url}: {error}") from error
    if parts.scheme not in ("http", "https") or not parts.netloc:
        raise UserError(f"--address {address}: expected http://HOST:PORT of the head's job server")
    return url


def _token_header() -> dict[str, str]:
    """Authorization header with the Ray token, if one is configured."""
    token = read_token()
    return {"Authorization": f"Bearer {token}"} if token else {}


def _minor_version(version: str | None) -> str | None:
    return version and ".".join(version.split(".")[:2])


def _format_versions(versions: Mapping[str, str | None]) -> str:
    return " and ".join(f"{name} {version}" for name, version in versions.items())
