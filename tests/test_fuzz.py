"""Damaged inputs end with an exit code and a line, never with a traceback: a few new cases per kind, and
all that ever failed. `make fuzz` tries more."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.fuzz import CORPUS, KINDS, check, load, make_study, save


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_study(tmp_path_factory.mktemp("fuzz") / "study")


@pytest.mark.parametrize("file", sorted(CORPUS.glob("*.json")), ids=lambda file: file.stem)
def test_a_case_that_failed_before_is_handled(study: Path, file: Path) -> None:
    """A traceback tells the user nothing about the file that caused it."""
    check(study, *load(file))


@pytest.mark.parametrize("kind", KINDS)
@given(data=st.data())
@settings(max_examples=8, suppress_health_check=list(HealthCheck))
def test_damaged_files_are_handled(study: Path, kind: str, data: st.DataObject) -> None:
    """A traceback, or a file outside the store, is found by a user."""
    check(study, kind, data.draw(KINDS[kind].files(study)))


def test_a_case_survives_the_corpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A case that is saved otherwise than it failed would pass from then on."""
    monkeypatch.setattr("tests.fuzz.CORPUS", tmp_path)
    files = {"a/b.csv": b"a,\xff\r\n\0", "c.yaml": "é\r\nb\n".encode(), "d": None}
    assert load(save("sweep", files)) == ("sweep", files)


def test_the_check_notices_tracebacks_and_files_outside_the_store(
    study: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fuzzer that notices nothing finds nothing."""
    check(study, "sweep", {})

    def fail(_: Path) -> None:
        raise ZeroDivisionError

    def write(_: Path) -> None:
        Path("stray").touch()

    for replacement, message in ((fail, "ZeroDivisionError"), (write, r"wrote .*stray")):
        monkeypatch.setattr("jobs.actions.plan.print_plan", replacement)
        with pytest.raises(AssertionError, match=message):
            check(study, "sweep", {})
