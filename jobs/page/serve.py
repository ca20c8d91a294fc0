"""The page of a store on localhost, with concept details read from the store on request.

Access requires the printed URL with its random token, which the first visit exchanges for a cookie.
Other names in `Host` are rejected, which prevents DNS rebinding.
"""

from __future__ import annotations

import json
import secrets
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http import HTTPStatus
from http.cookies import CookieError, SimpleCookie
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Lock
from typing import Any
from urllib.parse import parse_qs, urlsplit

import duckdb

from jobs.page.pairs import ConceptPairs
from jobs.page.render import make_sections, render_page
from jobs.page.sections.concepts import concept_details
from jobs.page.study import Study, latest_study
from jobs.page.study_data import StudyData
from storage.database import explain_damage, open_store
from storage.errors import NeuralignError, UserError

HOST = "127.0.0.1"
_HOST_NAMES = (HOST, "localhost")
_IDLE_SECONDS = 60
"""Idle connections are closed after this time, as each occupies a thread."""
_MAX_CONNECTIONS = 64
"""Connections that are open at once. One more closes the one that has waited longest for a request, so
that connections without the token cannot lock the user out."""


class _HttpError(Exception):
    """A rejected request."""

    def __init__(self, status: HTTPStatus, message: str) -> None:
        super().__init__(message)
        self.status = status


class Pages:
    """The pages of a study, one per view, rendered on first request. Requests query the store one at a
    time, because the table of a view's pairs belongs to the connection."""

    def __init__(self, connection: duckdb.DuckDBPyConnection, study: Study) -> None:
        self._connection = connection
        self._study = study
        self._lock = Lock()
        self._pages: dict[int, str] = {}
        self._data = {0: StudyData(connection, study)}
        self._view_of_pairs: int | None = None

    def html(self, number: int) -> str:
        """The page with one view in detail."""
        with self._lock:
            if number not in self._pages:
                data = self._view_data(number)
                self._view_of_pairs = None
                self._pages[number] = render_page(data, self._study.name, make_sections(data), live=True)
            return self._pages[number]

    def concept(self, number: int, name: str) -> dict[str, Any]:
        """The details of a concept in a view, as JSON values."""
        with self._lock:
            data = self._view_data(number)
            if not data.views or name not in data.domains:
                raise _HttpError(HTTPStatus.NOT_FOUND, f"unknown concept: {name}")
            if self._view_of_pairs != number:
                ConceptPairs(data)
                self._view_of_pairs = number
            return concept_details(data, name)[name]

    def _view_data(self, number: int) -> StudyData:
        if number and not 0 <= number < len(self._data[0].views):
            raise _HttpError(HTTPStatus.NOT_FOUND, f"unknown view: {number}")
        if number not in self._data:
            self._data[number] = StudyData(self._connection, self._study, number)
        return self._data[number]


class _Handler(BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"
    server_version, sys_version = "neuralign", ""
    timeout = _IDLE_SECONDS

    def do_GET(self) -> None:
        try:
            with self.server.answering(self.connection):
                self._respond()
        except _HttpError as error:
            self._send(error.status, "text/plain", str(error))
        except ConnectionError:
            self.close_connection = True
        except (NeuralignError, duckdb.Error, OSError) as error:
            self._send(HTTPStatus.INTERNAL_SERVER_ERROR, "text/plain", " ".join(str(error).split()))

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        """Log nothing: URLs contain the token."""

    def _respond(self) -> None:
        host, _, _ = self.headers.get("Host", "").rpartition(":")
        if host not in _HOST_NAMES:
            raise _HttpError(HTTPStatus.FORBIDDEN, "only available on localhost")
        try:
            url = urlsplit(self.path)
        except ValueError as error:
            raise _HttpError(HTTPStatus.BAD_REQUEST, "invalid URL") from error
        parameters = {name: values[-1] for name, values in parse_qs(url.query).items()}
        if self._is_token(parameters.get("token", "")):
            self._set_cookie()
            return
        if not self._is_token(self._cookie()):
            raise _HttpError(
                HTTPStatus.FORBIDDEN, "open the URL printed by `neuralign serve`: it contains the token"
            )
        number = parameters.get("view", "0")
        if not number.isdecimal() or len(number) > 6:
            raise _HttpError(HTTPStatus.BAD_REQUEST, "view: must be a number")
        if url.path == "/":
            self._send(HTTPStatus.OK, "text/html", self.server.pages.html(int(number)))
        elif url.path == "/api/concept":
            details = self.server.pages.concept(int(number), parameters.get("name", ""))
            self._send(HTTPStatus.OK, "application/json", json.dumps(details, allow_nan=False))
        else:
            raise _HttpError(HTTPStatus.NOT_FOUND, "not found")

    def _is_token(self, text: str) -> bool:
        return secrets.compare_digest(text.encode(), self.server.token.encode())

    def _cookie(self) -> str:
        try:
            cookies = SimpleCookie(self.headers.get("Cookie", ""))
        except CookieError:
            return ""
        cookie = cookies.get(self.server.cookie)
        return cookie.value if cookie else ""

    def _set_cookie(self) -> None:
        """Move the token into a cookie, so that later URLs do not contain it."""
        self.send_response(HTTPStatus.SEE_OTHER)
        cookie = f"{self.server.cookie}={self.server.token}; Path=/; HttpOnly; SameSite=Strict"
        self.send_header("Set-Cookie", cookie)
        self.send_header("Location", "/")
        self.send_header("Content-Length", "0")
        self.send_header("Referrer-Policy", "no-referrer")
        self.end_headers()

    def _send(self, status: HTTPStatus, media_type: str, text: str) -> None:
        content = text.encode(errors="replace")
        self.send_response(status)
        self.send_header("Content-Type", f"{media_type}; charset=utf-8")
        self.send_header("Content-Length", str(len(content)))
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("X-Frame-Options", "DENY")
        self.send_header("Referrer-Policy", "no-referrer")
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        self.wfile.write(content)


class Server(ThreadingHTTPServer):
    """An HTTP server for pages on a local port."""

    daemon_threads = True

    def __init__(self, pages: Pages, port: int) -> None:
        self.pages = pages
        self.token = secrets.token_urlsafe(32)
        self._connections_lock = Lock()
        self._answering = set[Any]()
        # in the order in which they began to wait
        self._waiting: dict[Any, None] = {}
        super().__init__((HOST, port), _Handler)
        # Cookies are shared between ports, so the name contains the port.
        self.cookie = f"neuralign-{self.server_port}"

    def process_request(self, request: Any, client_address: Any) -> None:
        """Serve a connection in a thread of its own."""
        with self._connections_lock:
            self._waiting[request] = None
            if len(self._waiting) + len(self._answering) > _MAX_CONNECTIONS:
                oldest = next(iter(self._waiting))
                del self._waiting[oldest]
                # its thread reads the end of the connection, and closes it
                with suppress(OSError):
                    oldest.shutdown(socket.SHUT_RDWR)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        """Close a connection."""
        with self._connections_lock:
            self._waiting.pop(request, None)
        super().shutdown_request(request)

    @contextmanager
    def answering(self, connection: Any) -> Iterator[None]:
        """Keep a connection open while its request is answered."""
        with self._connections_lock:
            self._waiting.pop(connection, None)
            self._answering.add(connection)
        try:
            yield
        finally:
            with self._connections_lock:
                self._answering.discard(connection)
                self._waiting[connection] = None

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignore clients that disconnect."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)

    @property
    def url(self) -> str:
        """The URL of the page, with the token."""
        return f"http://{HOST}:{self.server_port}/?token={self.token}"


@contextmanager
def make_server(store: Path, port: int, concept_set_name: str | None = None) -> Iterator[Server]:
    """A server, not yet running, for a concept set (default: the first) of the store's latest sweep.

    Raises:
        UserError: if no stage has finished, or the port is unavailable.
    """
    study = latest_study(store, concept_set_name)
    with open_store(store, study.runs) as connection:
        try:
            server = Server(Pages(connection, study), port)
        except duckdb.Error as error:
            raise explain_damage(store, error, study.runs.values()) from error
        except (OSError, OverflowError) as error:
            raise UserError(f"--port {port}: {error}; choose another port") from error
        with server:
            yield server


def serve(store: Path, port: int, concept_set_name: str | None = None) -> None:
    """Serve until interrupted."""
    with make_server(store, port, concept_set_name) as server:
        print(f"{server.url}\nPress Ctrl-C to stop.", flush=True)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            print()
