"""Whether every node of a cluster sees the store: what one writes there, another reads."""

from __future__ import annotations

import os
import uuid
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from storage.errors import UserError
from storage.store.commit import TEMPORARY_SUFFIX, write_bytes
from storage.store.paths import read_bytes, remove

_ANSWER_SECONDS = 180.0  # a node may have to start a process first, while it does much else


def check_reach(store: Path) -> None:
    """Raise UserError, naming the nodes, unless each can read and write in the store.

    Nodes that die meanwhile are none of this check's business.
    """
    here = ray.get_runtime_context().get_node_id()
    others = {
        node["NodeID"]: node["NodeManagerAddress"]
        for node in ray.nodes()
        if node["Alive"] and node["NodeID"] != here
    }
    if not others:
        return
    name = f".probe.{uuid.uuid4().hex}"
    written = [f"{name}{TEMPORARY_SUFFIX}"]
    try:
        write_bytes(store, written[0], name.encode())
        asked = {}
        for number, node in enumerate(others):
            answer = f"{name}.{number}{TEMPORARY_SUFFIX}"
            written.append(answer)
            there = NodeAffinitySchedulingStrategy(node, soft=False)
            task = ray.remote(_answer).options(num_cpus=0, max_retries=0, scheduling_strategy=there)
            asked[task.remote(store, written[0], answer)] = (node, answer)
        answered, silent = ray.wait(list(asked), num_returns=len(asked), timeout=_ANSWER_SECONDS)
        problems = {asked[each][0]: "does not answer" for each in silent}
        for each in answered:
            node, answer = asked[each]
            if problem := _problem(each, store / answer):
                problems[node] = problem
    finally:
        for each in written:
            remove(store / each)
    if problems:
        listed = "; ".join(f"{others[node]}: {problem}" for node, problem in problems.items())
        raise UserError(
            f"{store}: not all nodes of the cluster see it ({listed}); name a folder that all of them "
            "mount at this path, or s3://bucket/prefix"
        )


def _answer(store: Path, asked: str, answer: str) -> str | None:
    try:
        content = read_bytes(store / asked)
        if not os.access(store, os.W_OK) and "://" not in str(store):
            return "may not write there"
        write_bytes(store, answer, content)
    except (OSError, UserError) as error:
        return f"{type(error).__name__}: {error}".splitlines()[0]
    return None


def _problem(reference: Any, answer: Path) -> str | None:
    try:
        problem: str | None = ray.get(reference)
    except RayTaskError as error:
        return str(error).strip().splitlines()[-1]
    except ray.exceptions.RayError:
        return None
    if problem is None:
        try:
            read_bytes(answer)
        except OSError:
            problem = "what it writes there is not seen here"
    return problem
