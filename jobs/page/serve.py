"""The page of a store, served to this machine alone, with every detail asked of the store when it is
wanted.

Only who has the printed address, which holds a random token, gets an answer: a cookie takes the token's
place after the first visit. A name in `Host` other than this machine's own is refused, so that no
other site can make a browser ask here (DNS rebinding).
"""

from __future__ import annotations

import json
import secrets
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus
from http.cookies import CookieError, SimpleCookie
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Lock
from typing import Any
from urllib.parse import parse_qs, urlsplit

import duckdb

from jobs.page.pairs import Pairs
from jobs.page.render import page, sections
from jobs.page.sections.concepts import details
from jobs.page.study import Source, Study, newest_study
from storage.database import open_store
from storage.errors import NeuralignError, UserError

HOST = "127.0.0.1"
_NAMES = (HOST, "localhost")
_SILENT_SECONDS = 60
"""A connection that says nothing for so long is closed: it holds a thread."""


class _Refused(Exception):
    """A request that gets no answer, with the status that says why."""

    def __init__(self, status: HTTPStatus, why: str) -> None:
        super().__init__(why)
        self.status = status


class Pages:
    """The pages of a study, one a view, made when they are first asked for. One request at a time asks
    the store: a view's table is made on the connection."""

    def __init__(self, connection: duckdb.DuckDBPyConnection, study: Study) -> None:
        self._connection = connection
        self._study = study
        self._lock = Lock()
        self._pages: dict[int, str] = {}
        self._sources = {0: Source(connection, study)}
        self._paired: int | None = None

    def html(self, number: int) -> str:
        """The page that looks closely at one view."""
        with self._lock:
            if number not in self._pages:
                source = self._source(number)
                self._paired = None
                self._pages[number] = page(source, self._study.name, sections(source), live=True)
            return self._pages[number]

    def concept(self, number: int, name: str) -> dict[str, Any]:
        """What is known of one concept in a view, as JSON."""
        with self._lock:
            source = self._source(number)
            if not source.views or name not in source.domains:
                raise _Refused(HTTPStatus.NOT_FOUND, f"no concept is called {name}")
            if self._paired != number:
                Pairs(source)
                self._paired = number
            return details(source, name)[name]

    def _source(self, number: int) -> Source:
        if number and not 0 <= number < len(self._sources[0].views):
            raise _Refused(HTTPStatus.NOT_FOUND, f"there is no view {number}")
        if number not in self._sources:
            self._sources[number] = Source(self._connection, self._study, number)
        return self._sources[number]


class _Handler(BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"
    server_version, sys_version = "neuralign", ""
    timeout = _SILENT_SECONDS

    def do_GET(self) -> None:
        try:
            self._answer()
        except _Refused as error:
            self._send(error.status, "text/plain", str(error))
        except ConnectionError:
            self.close_connection = True
        except (NeuralignError, duckdb.Error, OSError) as error:
            self._send(HTTPStatus.INTERNAL_SERVER_ERROR, "text/plain", " ".join(str(error).split()))

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        """Say nothing: addresses hold the token."""

    def _answer(self) -> None:
        host, _, _ = self.headers.get("Host", "").rpartition(":")
        if host not in _NAMES:
            raise _Refused(HTTPStatus.FORBIDDEN, "this page is for the machine that serves it")
        try:
            asked = urlsplit(self.path)
        except ValueError as error:
            raise _Refused(HTTPStatus.BAD_REQUEST, "there is no such page") from error
        parameters = {name: values[-1] for name, values in parse_qs(asked.query).items()}
        given = parameters.pop("token", None)
        if given is not None and self._is_token(given):
            self._welcome()
            return
        if not self._is_token(self._cookie()):
            raise _Refused(
                HTTPStatus.FORBIDDEN,
                "open the address that `neuralign serve` printed: it holds the token",
            )
        number = parameters.get("view", "0")
        if not number.isdecimal() or len(number) > 6:
            raise _Refused(HTTPStatus.BAD_REQUEST, "view: a number is expected")
        if asked.path == "/":
            self._send(HTTPStatus.OK, "text/html", self.server.pages.html(int(number)))
        elif asked.path == "/api/concept":
            found = self.server.pages.concept(int(number), parameters.get("name", ""))
            self._send(HTTPStatus.OK, "application/json", json.dumps(found, allow_nan=False))
        else:
            raise _Refused(HTTPStatus.NOT_FOUND, "there is no such page")

    def _is_token(self, given: str) -> bool:
        return secrets.compare_digest(given.encode(), self.server.token.encode())

    def _cookie(self) -> str:
        try:
            cookies = SimpleCookie(self.headers.get("Cookie", ""))
        except CookieError:
            return ""
        found = cookies.get(self.server.cookie)
        return found.value if found else ""

    def _welcome(self) -> None:
        """Keep the token in a cookie, so that it stands in no address from here on."""
        self.send_response(HTTPStatus.SEE_OTHER)
        kept = f"{self.server.cookie}={self.server.token}; Path=/; HttpOnly; SameSite=Strict"
        self.send_header("Set-Cookie", kept)
        self.send_header("Location", "/")
        self.send_header("Content-Length", "0")
        self.send_header("Referrer-Policy", "no-referrer")
        self.end_headers()

    def _send(self, status: HTTPStatus, kind: str, text: str) -> None:
        content = text.encode(errors="replace")
        self.send_response(status)
        self.send_header("Content-Type", f"{kind}; charset=utf-8")
        self.send_header("Content-Length", str(len(content)))
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("X-Frame-Options", "DENY")
        self.send_header("Referrer-Policy", "no-referrer")
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        self.wfile.write(content)


class Server(ThreadingHTTPServer):
    """Serves pages on a port of this machine."""

    daemon_threads = True

    def __init__(self, pages: Pages, port: int) -> None:
        self.pages = pages
        self.token = secrets.token_urlsafe(32)
        super().__init__((HOST, port), _Handler)
        # cookies do not tell ports apart
        self.cookie = f"neuralign-{self.server_port}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of a reader who left."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)

    @property
    def address(self) -> str:
        """The page's address, with the token."""
        return f"http://{HOST}:{self.server_port}/?token={self.token}"


@contextmanager
def served(store: Path, port: int, set_name: str | None = None) -> Iterator[Server]:
    """A server of a concept set (the first, by default) of the store's newest sweep, not yet running.

    Raises UserError for a store in which nothing is done, and for a port that is taken.
    """
    study = newest_study(store, set_name)
    with open_store(store, study.runs) as connection:
        try:
            server = Server(Pages(connection, study), port)
        except (OSError, OverflowError) as error:
            raise UserError(f"--port {port}: {error}; name another one") from error
        with server:
            yield server


def serve(store: Path, port: int, set_name: str | None = None) -> None:
    """Serve until interrupted."""
    with served(store, port, set_name) as server:
        print(f"{server.address}\nCtrl-C stops it.", flush=True)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            print()
