"""Stages of different models must overlap, and never those that work with the same; what one model's
stage does wrong must not reach the others, and what concerns all must stop all."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

from jobs.engine.scheduler import side_by_side
from jobs.engine.stage import Outcome, Resource, Stage
from jobs.sweep import _may_start, _with_readers
from storage.errors import StoreError, UserError, WorkFailed
from storage.store import layout
from storage.store.layout import RUNNING

_SECONDS = 60


@pytest.fixture(autouse=True)
def gpus() -> Iterator[None]:
    """A cluster with a GPU, of which these stages need nothing."""
    with patch("cluster.runtime.session.connect"), patch("cluster.runtime.session.gpus", lambda: 1):
        yield


class Record:
    """When each stage was at work."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.now: list[tuple[str, Resource]] = []
        self.beside: set[frozenset[str]] = set()
        self.order: list[str] = []

    def stage(
        self,
        label: str,
        lane: Resource,
        inputs: dict[str, Stage],
        work: Callable[[str], Any],
    ) -> Stage:
        def run(stage: Stage, store: Path) -> Outcome:
            with self.lock:
                assert lane not in [other for _, other in self.now], (label, self.now)
                self.now.append((label, lane))
                self.order.append(label)
                self.beside |= {frozenset([label, other]) for other, _ in self.now}
            try:
                work(label)
            finally:
                with self.lock:
                    self.now.remove((label, lane))
            return Outcome([])

        return Stage("report", label, {"label": label}, run, inputs, lane)


def _models(record: Record, count: int, work: Callable[[str], Any]) -> list[Stage]:
    stages = []
    for number in range(count):
        read = record.stage(f"read {number}", Resource.GPUS, {}, work)
        scored = record.stage(f"scored {number}", Resource.CPUS, {"read": read}, work)
        stages += [
            read,
            scored,
            record.stage(f"compared {number}", Resource.HERE, {"scored": scored}, work),
        ]
    return stages


def test_the_next_model_is_read_while_one_is_scored_and_another_is_compared(tmp_path: Path) -> None:
    record = Record()
    pairs = [("scored 0", "read 1"), ("compared 0", "read 2"), ("compared 0", "scored 1")]
    wanted = {frozenset(pair) for pair in pairs}

    def work(label: str) -> None:
        """Be at work until those who should be beside this one were."""
        deadline = time.monotonic() + _SECONDS
        while {pair for pair in wanted if label in pair} - record.beside:
            assert time.monotonic() < deadline, label
            time.sleep(0.01)

    stages = _models(record, 4, work)
    store = layout.create(tmp_path / "store")
    ended = [each.stage.label for each in side_by_side(stages, store, lambda *_: True)]
    assert sorted(ended) == sorted(stage.label for stage in stages)
    assert wanted <= record.beside
    again = list(side_by_side(stages, store, lambda *_: True))
    assert not any(each.ran for each in again)
    assert len(again) == len(stages)


def test_without_gpus_models_and_experts_take_turns_on_the_cpus(tmp_path: Path) -> None:
    """Side by side, either would wait for CPUs that the other holds, and give up."""
    record = Record()
    stages = _models(record, 3, lambda _: time.sleep(0.05))
    store = layout.create(tmp_path / "store")
    with patch("cluster.runtime.session.gpus", lambda: 0):
        list(side_by_side(stages, store, lambda *_: True))
    kinds = {frozenset(label.split()[0] for label in pair) for pair in record.beside}
    assert frozenset(["read", "scored"]) not in kinds
    assert record.order.index("scored 0") < record.order.index("read 1")


def test_a_model_that_fails_does_not_stop_the_others(tmp_path: Path) -> None:
    def work(label: str) -> None:
        if label == "read 1":
            raise WorkFailed("1 of 1 units failed", ["unit 0: nonsense"])
        if label == "scored 2":
            raise UserError("does not fit")

    record = Record()
    stages = _models(record, 4, work)
    store = layout.create(tmp_path / "store")
    ended = list(side_by_side(stages, store, lambda *_: True))
    assert {each.stage.label for each in ended if each.error} == {"read 1", "scored 2"}
    assert {each.stage.label for each in ended if each.ran} == {
        *("read 0", "scored 0", "compared 0", "read 2", "read 3", "scored 3", "compared 3")
    }


@pytest.mark.parametrize("error", [StoreError("full"), ZeroDivisionError("a bug")])
def test_what_concerns_all_models_stops_all_and_leaves_no_lease(
    tmp_path: Path, error: Exception
) -> None:
    def work(label: str) -> None:
        if label == "scored 0":
            time.sleep(0.3)
            raise error
        if label == "read 1":
            while True:
                time.sleep(0.05)

    stages = _models(Record(), 3, work)
    store = layout.create(tmp_path / "store")
    started = time.monotonic()
    with pytest.raises(type(error), match=str(error)):
        list(side_by_side(stages, store, lambda *_: True))
    assert time.monotonic() - started < _SECONDS
    assert not list(store.rglob(RUNNING))
    names = {thread.name for thread in threading.enumerate()}
    assert not names & {stage.name for stage in stages}


def test_a_stage_that_is_held_back_starts_when_others_ended(tmp_path: Path) -> None:
    record = Record()
    stages = _models(record, 3, lambda _: None)
    last_read, first_compared = stages[6], stages[2]

    def may_start(stage: Stage, ended: Any) -> bool:
        return stage is not last_read or first_compared.fingerprint in ended

    store = layout.create(tmp_path / "store")
    list(side_by_side(stages, store, may_start))
    assert record.order.index("compared 0") < record.order.index("read 2")
    shutil.rmtree(store)


def test_a_stage_that_nothing_lets_start_is_an_error_and_no_endless_wait(tmp_path: Path) -> None:
    stages = _models(Record(), 1, lambda _: None)
    store = layout.create(tmp_path / "store")
    with pytest.raises(RuntimeError, match="nothing lets report read 0 start"):
        list(side_by_side(stages, store, lambda *_: False))


def test_where_activations_are_dropped_those_of_two_models_are_there_at_a_time(tmp_path: Path) -> None:
    """Also in a run up to the experts, in which not all stages are that would read them."""
    record = Record()
    stages = [
        replace(stage, kind="activations" if stage.label.startswith("read") else "experts")
        for stage in _models(record, 5, lambda label: time.sleep(0.1 * label.startswith("scored")))
    ]
    by_label = {stage.label: stage for stage in stages}
    stages = [
        replace(stage, inputs={name: by_label[each.label] for name, each in stage.inputs.items()})
        for stage in stages
        if not stage.label.startswith("compared")
    ]
    store = layout.create(tmp_path / "store")
    ended = [
        each.stage.label
        for each in side_by_side(stages, store, partial(_may_start, _with_readers(stages)))
    ]
    assert len(ended) == len(stages)
    for number in range(2, 5):
        assert ended.index(f"read {number}") > ended.index(f"scored {number - 2}")
