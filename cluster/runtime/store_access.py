"""Checks that all nodes of a cluster can read and write the same store."""

from __future__ import annotations

import os
import uuid
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from cluster.runtime.session import root_cause
from storage.errors import UserError, describe_error
from storage.store.commit import TEMPORARY_SUFFIX, write_bytes
from storage.store.paths import read_bytes, remove_file

_TIMEOUT_SECONDS = 180.0  # a busy node may first have to start a process


def check_store_visible(store: Path) -> None:
    """Raise UserError, naming the nodes, unless every node can read and write the store.

    Nodes that die during the check are ignored.
    """
    this_node = ray.get_runtime_context().get_node_id()
    addresses = {
        node["NodeID"]: node["NodeManagerAddress"]
        for node in ray.nodes()
        if node["Alive"] and node["NodeID"] != this_node
    }
    if not addresses:
        return
    name = f".probe.{uuid.uuid4().hex}"
    files = [f"{name}{TEMPORARY_SUFFIX}"]
    try:
        write_bytes(store, files[0], name.encode())
        probes = {}
        for number, node in enumerate(addresses):
            reply = f"{name}.{number}{TEMPORARY_SUFFIX}"
            files.append(reply)
            affinity = NodeAffinitySchedulingStrategy(node, soft=False)
            task = ray.remote(_echo).options(num_cpus=0, max_retries=0, scheduling_strategy=affinity)
            probes[task.remote(store, files[0], reply)] = (node, reply)
        ready, pending = ray.wait(list(probes), num_returns=len(probes), timeout=_TIMEOUT_SECONDS)
        problems = {probes[reference][0]: "does not respond" for reference in pending}
        for reference in ready:
            node, reply = probes[reference]
            if problem := _probe_problem(reference, store / reply):
                problems[node] = problem
    finally:
        for file in files:
            remove_file(store / file)
    if problems:
        listed = "; ".join(f"{addresses[node]}: {problem}" for node, problem in problems.items())
        raise UserError(
            f"{store}: not visible from every node ({listed}); use a folder that all nodes mount at "
            "this path, or s3://bucket/prefix"
        )


def _echo(store: Path, probe: str, reply: str) -> str | None:
    try:
        content = read_bytes(store / probe)
        if not os.access(store, os.W_OK) and "://" not in str(store):
            return "no write permission"
        write_bytes(store, reply, content)
    except (OSError, UserError) as error:
        return describe_error(error)
    return None


def _probe_problem(reference: Any, reply: Path) -> str | None:
    try:
        problem: str | None = ray.get(reference)
        if problem is None:
            read_bytes(reply)
    except RayTaskError as error:
        return describe_error(root_cause(error))
    except ray.exceptions.RayError:
        return None
    except OSError:
        return "its writes are not visible here"
    return problem
