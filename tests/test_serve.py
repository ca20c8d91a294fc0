"""Failures of the page server: access without the token, answers about data that are not in the store,
or a crash on a malformed request."""

from __future__ import annotations

import http.client
import json
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from urllib.parse import quote, urlsplit

import pytest

from jobs.page.pairs import ConceptPairs
from jobs.page.sections.concepts import concept_details
from jobs.page.serve import Server, make_server
from jobs.page.study import latest_study
from jobs.page.study_data import StudyData
from storage.database import open_store
from storage.errors import UserError
from tests.hostile import HOSTILE


def get(
    server: Server, path: str, method: str = "GET", **headers: str
) -> tuple[int, dict[str, str], str]:
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=60)
    try:
        connection.request(method, path, headers=headers)
        response = connection.getresponse()
        return response.status, dict(response.getheaders()), response.read().decode()
    finally:
        connection.close()


def test_requests_without_the_token_are_rejected(server: Server) -> None:
    assert server.server_address[0] == "127.0.0.1"
    cookie = f"{server.cookie}={server.token}"
    for path in ("/", "/api/concept?name=bus", "/?token=wrong", "/?token=", "/?token=%FF"):
        assert get(server, path)[0] == 403
        assert get(server, path, Cookie=f"{server.cookie}=wrong")[0] == 403
    url = urlsplit(server.url)
    status, headers, _ = get(server, f"{url.path}?{url.query}")
    assert (status, headers["Location"]) == (303, "/")
    assert headers["Set-Cookie"].startswith(cookie)
    assert "HttpOnly" in headers["Set-Cookie"]
    assert "SameSite=Strict" in headers["Set-Cookie"]
    # DNS rebinding: the name of another site resolves to this host.
    assert get(server, "/", Cookie=cookie, Host=f"elsewhere.example:{server.server_port}")[0] == 403
    status, headers, html = get(server, "/", Cookie=cookie)
    assert status == 200
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert server.token not in html


def test_concept_details_come_from_the_store(server: Server, store: Path) -> None:
    cookie = f"{server.cookie}={server.token}"
    for view in (0, 1, 0):
        status, _, text = get(
            server, f"/api/concept?name={quote(HOSTILE['cat'])}&view={view}", Cookie=cookie
        )
        assert status == 200
        details = json.loads(text)
        study = latest_study(store)
        with open_store(store, study.runs) as connection:
            data = StudyData(connection, study, view)
            ConceptPairs(data)
            expected = concept_details(data, HOSTILE["cat"])[HOSTILE["cat"]]
        assert details == json.loads(json.dumps(expected))
        assert all(expert["top_sentences"] for expert in details["experts"])
    for path, status in (
        ("/api/concept?name=nobody", 404),
        ("/api/concept?name=bus&view=99", 404),
        ("/api/concept?name=bus&view=-1", 400),
        ("/?view=x", 400),
        ("/etc/passwd", 404),
        ("/../../etc/passwd", 404),
        ("/%2e%2e/%2e%2e/etc/passwd", 404),
        ("/api/concept", 404),
        ("/api/concept?name=%00", 404),
        ("/api/concept?name=%FF%FE", 404),
        ("/api/concept?name=../bus", 404),
        ("/api/concept?name=%27;DROP+TABLE+experts;--", 404),
        (f"/api/concept?name={quote('</script><script>')}", 404),
        ("/?" + "a" * 70_000, 414),
    ):
        assert get(server, path, Cookie=cookie)[0] == status
    host = f"127.0.0.1:{server.server_port}"
    assert get(server, "http://[", Cookie=cookie, Host=host)[0] == 400


def test_only_get_is_allowed_and_disconnects_are_ignored(
    server: Server, capfd: pytest.CaptureFixture[str]
) -> None:
    cookie = f"{server.cookie}={server.token}"
    for method in ("POST", "PUT", "DELETE", "HEAD", "OPTIONS"):
        assert get(server, "/", method, Cookie=cookie)[0] == 501
    lines = ("GET / HTTP/1.1", f"Host: 127.0.0.1:{server.server_port}", f"Cookie: {cookie}", "", "")
    for _ in range(4):
        with socket.create_connection(("127.0.0.1", server.server_port)) as connection:
            # Closing with unread data sends a reset.
            connection.sendall("\r\n".join(lines).encode())
    assert get(server, "/api/concept?name=bus", Cookie=cookie)[0] == 200
    assert capfd.readouterr().err == ""


def test_concurrent_requests_get_their_own_responses(server: Server) -> None:
    cookie = f"{server.cookie}={server.token}"
    requests = [(name, view) for name in ("bus", HOSTILE["cat"]) for view in (0, 1)] * 3

    def read(name: str, view: int) -> str:
        return get(server, f"/api/concept?name={quote(name)}&view={view}", Cookie=cookie)[2]

    expected = {request: read(*request) for request in set(requests)}
    with ThreadPoolExecutor(len(requests)) as pool:
        responses = list(pool.map(lambda request: read(*request), requests))
    assert responses == [expected[request] for request in requests]


def test_many_idle_connections_neither_start_many_threads_nor_lock_the_user_out(server: Server) -> None:
    """Each connection took a thread for a minute, without limit: 3,000 of them exhausted the machine."""
    cookie = f"{server.cookie}={server.token}"
    threads = threading.active_count()
    with ExitStack() as stack:
        for number in range(300):
            address = ("127.0.0.1", server.server_port)
            connection = stack.enter_context(socket.create_connection(address))
            if number % 2:
                connection.sendall(b"GET / HTTP/1.1\r\nX-Slow: ")
        assert get(server, "/api/concept?name=bus", Cookie=cookie)[0] == 200
        deadline = time.monotonic() + 60
        while threading.active_count() > threads + 64 and time.monotonic() < deadline:
            time.sleep(0.05)
        assert threading.active_count() <= threads + 64


def test_an_unavailable_port_is_a_user_error(server: Server, store: Path) -> None:
    with pytest.raises(UserError, match="choose another port"), make_server(store, server.server_port):
        pass
    with pytest.raises(UserError, match="choose another port"), make_server(store, 70000):
        pass
