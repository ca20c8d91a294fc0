"""What data may do to a terminal, and what errors may repeat of a user's credentials."""

from __future__ import annotations

import io
from pathlib import Path

import pyarrow as pa
import pytest

from cluster.runtime.job_server import JobServer
from jobs.actions import output, sql, submit
from jobs.engine import progress
from storage.errors import NeuralignError, UserError, WorkFailed, one_line
from storage.printable import printable
from storage.store.layout import create_store
from storage.store.paths import parse_store_path
from tests.commands import neuralign

_HOSTILE = "cat\x1b[2J\x1b]0;owned\x07\x00\x9b31m\u202ecod\ud800"
_SHOWN = r"cat\x1b[2J\x1b]0;owned\x07\x00\x9b31m\u202ecod\ud800"


def _is_safe(text: str) -> bool:
    return not any(character in text for character in "\x1b\x07\x00\x9b\u202e\ud800")


def test_control_characters_are_shown_as_escapes() -> None:
    """A concept's name could clear the screen, write the clipboard or reverse the order of letters."""
    assert printable(_HOSTILE) == _SHOWN
    for harmless in ("naïve", "猫 é", "a\tb\nc", "👩‍👩‍👧", "שלום", "مرحبا"):
        assert printable(harmless) == harmless


def test_tables_lines_and_logs_contain_no_control_characters(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tables, progress lines and the logs of a job printed them raw."""
    console = output.stdout_console()
    console.file = io.StringIO()
    console.width = 200
    console.print(output.text_table("l", (_HOSTILE,), [(_HOSTILE,)]))
    console.print(_HOSTILE)
    assert _is_safe(console.file.getvalue())
    assert console.file.getvalue().count(_SHOWN) == 3
    progress.print_line(_HOSTILE)
    submit._write_log(f"\x1b[36m(worker)\x1b[0m {_HOSTILE}\r\n")
    printed = capsys.readouterr()
    assert _SHOWN in printed.err
    assert printed.out == f"(worker) {_SHOWN}\r\n"

    monkeypatch.setattr(sql, "open_store", lambda _: io.StringIO())
    monkeypatch.setattr(sql, "run_query", lambda *_: pa.table({"name\x1b": ["\x1b[31mred\x00"]}))
    sql.print_rows(Path(), "", "table")
    assert _is_safe(capsys.readouterr().out)


def test_errors_contain_no_control_characters() -> None:
    """Errors quote the user's files."""
    errors = (UserError(_HOSTILE), NeuralignError(_HOSTILE), WorkFailed("1 unit failed", [_HOSTILE]))
    for error in errors:
        assert _is_safe(str(error))
        assert _SHOWN in str(error)


@pytest.mark.parametrize(
    "url",
    [
        "s3://key:hunter2@bucket/prefix",
        "az://box/prefix?sig=hunter2",
        "s3://bucket/p?X-Signature=hunter2",
        "s3://key:hunter2/x@bucket/prefix",
    ],
)
def test_the_credentials_of_a_stores_url_are_refused_and_not_repeated(url: str, tmp_path: Path) -> None:
    """Errors repeated them, and Ray kept them with the job."""
    with pytest.raises(UserError, match="must not contain credentials or parameters") as caught:
        parse_store_path(url)
    assert "hunter2" not in str(caught.value)
    for arguments in (("status", url), ("sql", url), ("verify", url)):
        done = neuralign(*arguments)
        assert done.returncode == 2
        assert "hunter2" not in done.stdout + done.stderr


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("at https://me:hunter2@host/x and s3://a:b@c", "at https://***@host/x and s3://***@c"),
        ("s3://key:hun/ter2@bucket/p", "s3://***@bucket/p"),
        ("/folder/https:/me:hunter2@host/m: no such file", "/folder/https:/***@host/m: no such file"),
        ("http://h:1/?token=hunter2", "http://h:1/?***"),
        ("model org/name@main: is missing", "model org/name@main: is missing"),
    ],
)
def test_messages_hide_credentials(text: str, shown: str) -> None:
    """A password with a slash was shown, and one in a URL that was given as a path."""
    assert one_line(text) == shown


@pytest.mark.parametrize("url", ["s3://bu cket/x", "s3://b:99999999/x", "s3://[::1/x", "az://c/x"])
def test_a_wrong_store_url_is_one_line(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It ended in a traceback of the library, as did az:// without an account."""
    monkeypatch.delenv("AZURE_STORAGE_ACCOUNT_NAME", raising=False)
    done = neuralign("status", url)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith(f"neuralign: {url}")


def test_stray_files_of_a_store_are_listed_without_control_characters(tmp_path: Path) -> None:
    """`verify` printed the name of a stray file raw."""
    store = create_store(tmp_path / "store")
    stage = store / "experts" / "x"
    stage.mkdir(parents=True)
    (stage / "\x1b[31mred").touch()
    done = neuralign("verify", store)
    assert done.returncode == 1
    assert _is_safe(done.stdout)


def test_the_credentials_of_a_job_servers_address_are_not_repeated() -> None:
    """The address is part of every error."""
    with pytest.raises(UserError, match="must not contain credentials") as caught:
        JobServer("http://me:hunter2@127.0.0.1:9")
    assert "hunter2" not in str(caught.value)
    for url in ("http://h:1/?token=hunter2", "http://me:p/hunter2@h:1"):
        with pytest.raises(UserError, match="must not contain credentials") as caught:
            JobServer(url)
        assert "hunter2" not in str(caught.value)
    with pytest.raises(UserError, match="Invalid IPv6 URL"):
        JobServer("http://[::1")
    for strange in ("http://127.0.0.1:port", "http://127.0.0.1:9/a b", "http://a\nb:9"):
        with pytest.raises(UserError, match=r"connection failed|not a Ray job server"):
            JobServer(strange)


def test_an_export_makes_no_folders(tmp_path: Path) -> None:
    """A mistyped path made a tree of folders."""
    from storage.database import export_database

    store = create_store(tmp_path / "store")
    with pytest.raises(UserError, match=r"there is no folder .*; create it first"):
        export_database(store, tmp_path / "no/such/views.duckdb")
    assert not (tmp_path / "no").exists()
