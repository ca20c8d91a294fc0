"""The job server of a cluster's head: submitting jobs to it, following them, and what it refuses."""

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
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import ray

from storage.errors import NeuralignError, UserError

DEFAULT_ADDRESS = "http://127.0.0.1:8265"

_ADDRESS = "RAY_API_SERVER_ADDRESS"
_ANSWER_SECONDS = 8.0  # a wrong address is told within ten
_POLL_SECONDS = 0.5
_SECONDS_TO_END = 30.0
_LIVING = ("PENDING", "RUNNING")
_TALKERS = ("ray", "ray.dashboard.modules.job.sdk", "ray.dashboard.modules.dashboard_sdk")
_EXISTS = "already exists"
_NOT_FOUND = "status code 404"
_MOST_ATTEMPTS = 10_000
_environment = threading.Lock()


class JobServer:
    """A head's job server that answered, of the versions of Ray and Python that run here.

    Raises UserError, within seconds, when nobody answers, the token is wrong or the versions differ.
    """

    def __init__(self, address: str | None = None) -> None:
        self.address = _url(address)
        self._headers = _token_header()
        self.check()
        from ray.job_submission import JobSubmissionClient

        for name in _TALKERS:
            logging.getLogger(name).setLevel(logging.ERROR)
        with _only(self.address):
            self._client = JobSubmissionClient(self.address, headers=dict(self._headers))

    def jobs(self) -> list[Any]:
        """Ray's details of every job that was submitted."""
        return [job for job in self._client.list_jobs() if job.submission_id]

    def job(self, submission_id: str) -> Any | None:
        """Ray's details of a job; None where there is none of this id."""
        try:
            return self._client.get_job_info(submission_id)
        except RuntimeError as error:
            if _NOT_FOUND in str(error):
                return None
            raise

    def submit(
        self,
        base: str,
        entrypoint: str,
        working_dir: Path,
        metadata: Mapping[str, str],
        again: Callable[[Any], bool],
    ) -> tuple[str, bool]:
        """Submit a job under an id that starts with `base`, unless one of its jobs is under way.

        The attempts of one base are numbered: `base`, `base-2`, ... The server takes each id once, so of
        several who submit at the same time just one starts the next attempt and the others are given the
        same job. `again(job)` says of a job that has ended whether another attempt is wanted. Returns
        the id, and whether this call submitted it.
        """
        for attempt in range(1, _MOST_ATTEMPTS):
            name = base if attempt == 1 else f"{base}-{attempt}"
            job = self.job(name)
            if job is None:
                if self._put(name, entrypoint, working_dir, metadata):
                    return name, True
                job = self.job(name)
            if job is not None and (is_living(job) or not again(job)):
                return name, False
        raise NeuralignError(f"{base}: {_MOST_ATTEMPTS} attempts have ended")

    def follow(self, submission_id: str, write: Callable[[str], Any]) -> int:
        """Write a job's output until it ends, and give its exit code."""
        from aiohttp import ClientError

        written = 0

        async def tail() -> None:
            nonlocal written
            seen = 0
            async for piece in self._client.tail_job_logs(submission_id):
                # after a lost connection the server begins anew
                fresh = piece[max(0, written - seen) :]
                seen += len(piece)
                if fresh:
                    written = max(written, seen)
                    write(fresh)

        while True:
            with suppress(RuntimeError, OSError, ClientError):
                asyncio.run(tail())
            job = self._job_or_lost(submission_id)
            if not is_living(job):
                return exit_code(job)
            time.sleep(_POLL_SECONDS)

    def logs(self, submission_id: str) -> str:
        """What a job has written so far. Raises UserError for an id that the server does not know."""
        if self.job(submission_id) is None:
            known = ", ".join(job.submission_id for job in self.jobs()) or "none"
            raise UserError(f"{self.address}: has no job {submission_id!r}; it has: {known}")
        return str(self._client.get_job_logs(submission_id))

    def _job_or_lost(self, submission_id: str) -> Any:
        deadline = time.monotonic() + _SECONDS_TO_END
        while True:
            try:
                job = self.job(submission_id)
            except (OSError, RuntimeError) as error:
                if time.monotonic() > deadline:
                    raise NeuralignError(
                        f"{self.address}: no longer answers; how {submission_id} goes on is not known; "
                        "submit it again when the cluster is back: it goes on from what is committed"
                    ) from error
                time.sleep(_POLL_SECONDS)
                continue
            if job is None:
                raise NeuralignError(f"{self.address}: no longer knows the job {submission_id}")
            return job

    def _put(self, name: str, entrypoint: str, working_dir: Path, metadata: Mapping[str, str]) -> bool:
        try:
            self._client.submit_job(
                submission_id=name,
                entrypoint=entrypoint,
                runtime_env={"working_dir": str(working_dir)},
                metadata=dict(metadata),
            )
        except RuntimeError as error:
            if _EXISTS in str(error):
                return False
            last = str(error).strip().splitlines()[-1]
            raise NeuralignError(f"{self.address}: refuses the job: {last}") from error
        return True

    def check(self) -> None:
        """Raise UserError unless the server answers, with the versions that run here."""
        found = self._ask("/api/version")
        metadata = self._ask("/api/v0/cluster_metadata").get("data", {})
        theirs = {"Ray": found.get("ray_version"), "Python": _minor(metadata.get("pythonVersion"))}
        here = {"Ray": ray.__version__, "Python": _minor(platform.python_version())}
        if theirs != here:
            raise UserError(
                f"{self.address}: runs {_versions(theirs)}, here is {_versions(here)}; install the same "
                "on both sides"
            )

    def _ask(self, path: str) -> dict[str, Any]:
        request = urllib.request.Request(self.address + path, headers=self._headers)  # noqa: S310
        try:
            with urllib.request.urlopen(request, timeout=_ANSWER_SECONDS) as answer:  # noqa: S310
                content = json.load(answer)
        except urllib.error.HTTPError as error:
            if error.code in (401, 403):
                raise UserError(
                    f"{self.address}: asks for a token ({error.reason}); set RAY_AUTH_TOKEN or "
                    "RAY_AUTH_TOKEN_PATH to that of the cluster"
                ) from error
            raise UserError(f"{self.address}: is no Ray job server: {error}") from error
        except ValueError as error:
            raise UserError(f"{self.address}: is no Ray job server: it does not speak JSON") from error
        except OSError as error:
            reason = getattr(error, "reason", error)
            raise UserError(
                f"{self.address}: nobody answers ({reason}); give the address of the head's job server, "
                "http://HOST:8265 unless `ray start` was told another --dashboard-port"
            ) from error
        if not isinstance(content, dict):
            raise UserError(f"{self.address}: is no Ray job server")
        return content


def is_living(job: Any) -> bool:
    """Whether a job waits or runs."""
    return str(job.status) in _LIVING


def exit_code(job: Any) -> int:
    """The exit code of a job that has ended, as a shell gives it."""
    if str(job.status) == "SUCCEEDED":
        return 0
    code = job.driver_exit_code
    return 1 if not code else 128 - code if code < 0 else int(code)


def _url(address: str | None) -> str:
    named = address or os.environ.get(_ADDRESS) or _http(os.environ.get("RAY_ADDRESS"))
    url = (named or DEFAULT_ADDRESS).rstrip("/")
    url = url if "://" in url else f"http://{url}"
    scheme, _, host = url.partition("://")
    if scheme not in ("http", "https") or not host:
        raise UserError(f"--address {address}: expected http://HOST:PORT of the head's job server")
    return url


def _http(address: str | None) -> str | None:
    # RAY_ADDRESS may also be the address that drivers connect to, where no job server listens
    return address if address and address.startswith(("http://", "https://")) else None


def _token_header() -> dict[str, str]:
    """The header that shows Ray's token, where there is one in the places where Ray keeps it."""
    token = os.environ.get("RAY_AUTH_TOKEN", "")
    if not token:
        path = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")
        with suppress(OSError):
            token = path.read_text()
    return {"Authorization": f"Bearer {token.strip()}"} if token.strip() else {}


@contextmanager
def _only(address: str) -> Iterator[None]:
    """Ray lets RAY_ADDRESS overrule the address that a client is given."""
    with _environment:
        before = os.environ.get(_ADDRESS)
        os.environ[_ADDRESS] = address
        try:
            yield
        finally:
            if before is None:
                del os.environ[_ADDRESS]
            else:
                os.environ[_ADDRESS] = before


def _minor(version: str | None) -> str | None:
    return version and ".".join(version.split(".")[:2])


def _versions(versions: Mapping[str, str | None]) -> str:
    return " and ".join(f"{name} {version}" for name, version in versions.items())
