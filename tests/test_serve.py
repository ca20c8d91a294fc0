"""What a served page could get wrong: let strangers read it, answer what is not in the store, or fall
over at an odd request."""

from __future__ import annotations

import http.client
import json
import socket
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import quote, urlsplit

import pytest

from jobs.page.pairs import Pairs
from jobs.page.sections.concepts import details
from jobs.page.serve import Server, served
from jobs.page.study import Source, newest_study
from storage.database import open_store
from storage.errors import UserError
from tests.hostile import HOSTILE


def get(
    server: Server, path: str, method: str = "GET", **headers: str
) -> tuple[int, dict[str, str], str]:
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=60)
    try:
        connection.request(method, path, headers=headers)
        answer = connection.getresponse()
        return answer.status, dict(answer.getheaders()), answer.read().decode()
    finally:
        connection.close()


def test_only_who_has_the_token_gets_an_answer(server: Server) -> None:
    assert server.server_address[0] == "127.0.0.1"
    cookie = f"{server.cookie}={server.token}"
    for path in ("/", "/api/concept?name=bus", "/?token=wrong", "/?token=", "/?token=%FF"):
        assert get(server, path)[0] == 403
        assert get(server, path, Cookie=f"{server.cookie}=wrong")[0] == 403
    status, headers, _ = get(
        server, urlsplit(server.address).path + "?" + urlsplit(server.address).query
    )
    assert (status, headers["Location"]) == (303, "/")
    assert headers["Set-Cookie"].startswith(cookie)
    assert "HttpOnly" in headers["Set-Cookie"]
    assert "SameSite=Strict" in headers["Set-Cookie"]
    # a name that some other site made point here
    assert get(server, "/", Cookie=cookie, Host=f"elsewhere.example:{server.server_port}")[0] == 403
    status, headers, html = get(server, "/", Cookie=cookie)
    assert status == 200
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert server.token not in html


def test_details_are_answered_from_the_store(server: Server, store: Path) -> None:
    cookie = f"{server.cookie}={server.token}"
    for view in (0, 1, 0):
        status, _, text = get(
            server, f"/api/concept?name={quote(HOSTILE['cat'])}&view={view}", Cookie=cookie
        )
        assert status == 200
        found = json.loads(text)
        study = newest_study(store)
        with open_store(store, study.runs) as connection:
            source = Source(connection, study, view)
            Pairs(source)
            expected = details(source, HOSTILE["cat"])[HOSTILE["cat"]]
        assert found == json.loads(json.dumps(expected))
        assert all(each["excited_by"] for each in found["experts"])
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


def test_nothing_but_reading_is_answered_and_readers_may_leave(
    server: Server, capfd: pytest.CaptureFixture[str]
) -> None:
    cookie = f"{server.cookie}={server.token}"
    for method in ("POST", "PUT", "DELETE", "HEAD", "OPTIONS"):
        assert get(server, "/", method, Cookie=cookie)[0] == 501
    lines = ("GET / HTTP/1.1", f"Host: 127.0.0.1:{server.server_port}", f"Cookie: {cookie}", "", "")
    for _ in range(4):
        with socket.create_connection(("127.0.0.1", server.server_port)) as connection:
            # what is still to be read when it closes is told to the other side as a reset
            connection.sendall("\r\n".join(lines).encode())
    assert get(server, "/api/concept?name=bus", Cookie=cookie)[0] == 200
    assert capfd.readouterr().err == ""


def test_several_readers_at_once_get_each_what_they_asked_for(server: Server) -> None:
    cookie = f"{server.cookie}={server.token}"
    asked = [(name, view) for name in ("bus", HOSTILE["cat"]) for view in (0, 1)] * 3

    def read(name: str, view: int) -> str:
        return get(server, f"/api/concept?name={quote(name)}&view={view}", Cookie=cookie)[2]

    alone = {each: read(*each) for each in set(asked)}
    with ThreadPoolExecutor(len(asked)) as pool:
        assert list(pool.map(lambda each: read(*each), asked)) == [alone[each] for each in asked]


def test_a_port_that_is_taken_is_the_users_mistake(server: Server, store: Path) -> None:
    with pytest.raises(UserError, match="name another one"), served(store, server.server_port):
        pass
    with pytest.raises(UserError, match="name another one"), served(store, 70000):
        pass
