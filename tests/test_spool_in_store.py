"""The hidden states of a pass that was stopped are in its store: neither damage to them nor a full disk
may stop its sweep for good, and the tools of a store must know them."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

from cluster.activations import prepared_pass
from storage.errors import SpoolError, StoreError
from storage.store import layout
from storage.store.gc import find_garbage, find_hidden_states
from storage.store.lease import acquire_lease
from storage.store.verify import verify
from tests import tiny
from tests.commands import neuralign
from tests.faults import in_child, in_one_process, kill
from tests.test_scored_pass import Rows, assert_same_rows, counted_layers, make_study, read_rows, run
from tests.test_spool import flip_bit, truncate

LAYERS = 4


@pytest.fixture(autouse=True)
def _one_layer_blocks_in_one_process() -> Iterator[None]:
    with in_one_process(), patch.object(prepared_pass, "_SECONDS_IN_BLOCK", 0):
        yield


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Rows]:
    """A sweep's file, and its rows."""
    folder = tmp_path_factory.mktemp("undisturbed")
    model = tiny.make_model(folder / "source", LAYERS)
    settings = "permutations: 0, keep_activations: false"
    file = make_study(folder, model, settings, "resamples: 100\nbaselines: []\n")
    with in_one_process():
        run(file, folder / "store")
    return file, read_rows(folder / "store")


def kill_after_two_layers(file: Path, store: Path) -> Path:
    """The folder of the stage, which was killed in its third layer."""

    def kill_at(point: str) -> None:
        if point.startswith("after replace") and "_units/L01.json" in point:
            kill()

    assert in_child(lambda: run(file, store), kill_at)
    (folder,) = store.glob("activations/*")
    return folder


@pytest.mark.parametrize(
    ("pattern", "damage"),
    [
        ("*/*.safetensors", flip_bit),
        ("*/*.safetensors", truncate),
        ("*/*.safetensors", Path.unlink),
        ("*/complete.json", truncate),
    ],
)
def test_damaged_hidden_states_are_computed_again(
    undisturbed: tuple[Path, Rows], tmp_path: Path, pattern: str, damage: Callable[[Path], None]
) -> None:
    """A sweep that fails at every rerun, whatever the user deletes."""
    file, expected = undisturbed
    store = tmp_path / "store"
    states = kill_after_two_layers(file, store) / layout.HIDDEN_STATES
    paths = list(states.glob(pattern))
    assert paths
    for path in paths:
        damage(path)
    read: list[int] = []
    with counted_layers(read):
        run(file, store)
    assert 0 in read
    assert_same_rows(read_rows(store), expected)
    assert not states.exists()


def test_a_full_disk_stops_the_run_once_and_it_can_be_resumed(
    undisturbed: tuple[Path, Rows], tmp_path: Path
) -> None:
    """Three attempts on a disk that stays full, or an error that does not name the folder."""
    file, expected = undisturbed
    store = tmp_path / "store"
    attempts: list[str] = []

    def fail_at(point: str) -> None:
        # The hidden states before layer 2 do not fit beside those before layer 1.
        if point.startswith("before write") and f"{layout.HIDDEN_STATES}/layer=2" in point:
            attempts.append(point)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def run_on_full_disk() -> None:
        with pytest.raises(
            StoreError, match=r"_hidden_states: the hidden states .*; free disk"
        ) as caught:
            run(file, store)
        assert "\n" not in str(caught.value)
        assert not isinstance(caught.value, SpoolError)
        assert len(attempts) == 1

    assert not in_child(run_on_full_disk, fail_at)
    (states,) = store.glob(f"activations/*/{layout.HIDDEN_STATES}")
    assert [path.name for path in states.iterdir()] == ["layer=1"]
    read: list[int] = []
    with counted_layers(read):
        run(file, store)
    assert read == [1, 2, 3]
    assert_same_rows(read_rows(store), expected)


def test_verify_does_not_report_hidden_states_as_damage(
    undisturbed: tuple[Path, Rows], tmp_path: Path
) -> None:
    """A line for each file of a run that can be resumed."""
    store = tmp_path / "store"
    states = kill_after_two_layers(undisturbed[0], store) / layout.HIDDEN_STATES
    assert list(states.glob("*/*.safetensors"))
    assert list(verify(store)) == []
    (store / "experts").mkdir(exist_ok=True)
    (store / "experts/stray.txt").write_text("?")
    assert [line.rpartition("/")[2] for line in verify(store)] == [
        "stray.txt: is not listed by any manifest"
    ]


def test_gc_deletes_hidden_states_that_no_run_uses(
    undisturbed: tuple[Path, Rows], tmp_path: Path
) -> None:
    """Those of a run that was given up, for good; or those of a run at work."""
    file, expected = undisturbed
    store = tmp_path / "store"
    folder = kill_after_two_layers(file, store)
    states = folder / layout.HIDDEN_STATES
    size = sum(path.stat().st_size for path in states.rglob("*") if path.is_file())
    (found,) = find_hidden_states(store)
    assert (found.folder, found.bytes) == (folder, size)
    with acquire_lease(folder / layout.RUNNING, {}, _fail_to_wait):
        assert list(find_hidden_states(store)) == []
        # Found before the run continued.
        assert not found.delete()
    assert states.exists()
    listed = neuralign("gc", store).stdout
    assert "hidden states of a stopped run" in listed
    assert states.exists()
    assert neuralign("gc", store, "--delete").returncode == 0
    assert not states.exists()
    assert list(find_hidden_states(store)) == []
    assert list(find_garbage(store)) == []
    run(file, store)
    assert_same_rows(read_rows(store), expected)


def _fail_to_wait(_: dict[str, Any]) -> None:
    raise AssertionError("the lease is held")
