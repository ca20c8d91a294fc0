"""A pass leaves room for what is free, and shrinks when memory runs out: an error that is taken for one
of memory, or not, makes it fail or read the same layers many times."""

from __future__ import annotations

import errno
import os
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from cluster.activations.pooling_shard import overflow_error
from cluster.host_memory import UNKNOWN_MEMORY, free_host_memory
from cluster.memory_errors import is_out_of_memory
from cluster.models.sites import Site
from storage.errors import StoreError, UserError
from storage.store.paths import explain_read_errors
from tests.faults import in_child

EXABYTE, GB, MB = 1 << 60, 1 << 30, 1 << 20


def error_of(call: Callable[[], Any]) -> BaseException:
    with pytest.raises(Exception) as caught:  # noqa: PT011
        call()
    return caught.value


def read_into_too_much_memory() -> None:
    with explain_read_errors(Path("values.parquet")):
        pa.allocate_buffer(EXABYTE)


@pytest.mark.parametrize(
    "allocate",
    [
        lambda: np.empty(EXABYTE, np.uint8),
        lambda: torch.empty(EXABYTE, dtype=torch.uint8),
        lambda: pa.allocate_buffer(EXABYTE),
        lambda: bytes(EXABYTE),
        read_into_too_much_memory,
    ],
    ids=["numpy", "torch", "arrow", "python", "reader"],
)
def test_the_errors_of_all_libraries_are_known(allocate: Callable[[], Any]) -> None:
    """The same batch or block is tried again until the stage fails."""
    assert is_out_of_memory(error_of(allocate))


def test_the_errors_of_cuda_and_the_system_are_known() -> None:
    """The same, on a GPU."""
    for error in (
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB."),
        torch.AcceleratorError("CUDA error: out of memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("could not create a primitive"),
        OSError(errno.ENOMEM, os.strerror(errno.ENOMEM)),
        OSError("Cannot allocate memory (os error 12)"),
    ):
        assert is_out_of_memory(error), error


def test_a_text_that_speaks_of_memory_is_no_such_error() -> None:
    """A NaN in this sentence would make the pass read one layer and one sentence at a time."""
    site = Site(1, "mlp.hidden", "mlp", "output", 8)
    text = ", sentence 'The program ran out of memory.'"
    for error in (
        overflow_error(site, "max", text),
        UserError("concepts.csv: no concept 'out of memory'"),
        StoreError("/data/out of memory/x: is missing"),
        KeyError("out of memory"),
        ValueError("out of memory"),
        OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)),
        RuntimeError("CUDA error: an illegal memory access was encountered"),
    ):
        assert not is_out_of_memory(error), error
    assert not is_out_of_memory(None)


class Kernel:
    """The kernel's files about memory, in folders of a test."""

    def __init__(self, folder: Path) -> None:
        self.proc, self.cgroups = folder / "proc", folder / "cgroup"
        self.write(self.proc / "meminfo", "MemTotal: 16777216 kB", "MemAvailable:  8388608 kB")
        self.write(self.proc / "self/status", "Name: python", "VmSize:  1048576 kB")
        self.limit_addresses("unlimited")
        self.write(self.proc / "self/cgroup", "0::/")

    def write(self, path: Path, *lines: str) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(lines) + "\n")

    def limit_addresses(self, limit: object) -> None:
        self.write(
            self.proc / "self/limits",
            "Limit                     Soft Limit           Hard Limit           Units",
            "Max processes             95361                95361                processes",
            f"Max address space         {limit!s:20} unlimited            bytes",
        )

    def add_group(self, name: str, limit: object, usage: int, cached: int = 0) -> None:
        folder = self.cgroups / name
        self.write(folder / "memory.max", str(limit))
        self.write(folder / "memory.current", str(usage))
        halves = f"inactive_file {cached // 2}", f"active_file {cached // 2}"
        self.write(folder / "memory.stat", "anon 77", *halves)

    def add_old_group(self, name: str, limit: int, usage: int, cached: int = 0) -> None:
        folder = self.cgroups / "memory" / name
        self.write(folder / "memory.limit_in_bytes", str(limit))
        self.write(folder / "memory.usage_in_bytes", str(usage))
        halves = f"total_inactive_file {cached // 2}", f"total_active_file {cached // 2}"
        self.write(folder / "memory.stat", "inactive_file 0", *halves)

    @property
    def free(self) -> int:
        return free_host_memory(self.proc, self.cgroups)


@pytest.fixture
def kernel(tmp_path: Path) -> Kernel:
    return Kernel(tmp_path)


def test_free_memory_is_that_of_the_machine_without_limits(kernel: Kernel) -> None:
    """Blocks for a limit that is not there."""
    assert kernel.free == 8 * GB
    kernel.add_group("", "max", 5 * GB)
    assert kernel.free == 8 * GB
    kernel.write(kernel.proc / "self/cgroup", "4:memory:/", "3:cpu:/", "0::/")
    kernel.add_old_group("", 9223372036854771712, 12 * GB)
    assert kernel.free == 8 * GB


def test_a_container_has_less_memory_than_its_node(kernel: Kernel) -> None:
    """A block for the node's memory; then the kernel kills the worker, at every attempt."""
    kernel.add_group("", 3 * GB, 2 * GB)
    assert kernel.free == 1 * GB
    kernel.add_group("", 3 * GB, 4 * GB)
    assert kernel.free == 0


def test_a_groups_page_cache_counts_as_free(kernel: Kernel) -> None:
    """No free memory as soon as the weights have been read."""
    kernel.add_group("", 3 * GB, 3 * GB, cached=2 * GB)
    assert kernel.free == 2 * GB


def test_the_limits_of_groups_above_count(kernel: Kernel) -> None:
    """A pod of which the container itself has no limit; a name that only the host knows."""
    kernel.write(kernel.proc / "self/cgroup", "0::/pod/container")
    kernel.add_group("pod", 2 * GB, 500 * MB)
    kernel.add_group("pod/container", "max", 400 * MB)
    assert kernel.free == 2 * GB - 500 * MB
    kernel.write(kernel.proc / "self/cgroup", "0::/elsewhere/name")
    assert kernel.free == 8 * GB
    kernel.add_group("", 1 * GB, 100 * MB)
    assert kernel.free == 1 * GB - 100 * MB


def test_limits_of_the_first_version_of_cgroups_count(kernel: Kernel) -> None:
    """The same on an older system."""
    kernel.write(kernel.proc / "self/cgroup", "5:cpu,cpuacct:/job", "4:memory:/job/step", "0::/")
    kernel.add_old_group("job", 4 * GB, 3 * GB, cached=1 * GB)
    kernel.add_old_group("job/step", 6 * GB, 2 * GB)
    assert kernel.free == 2 * GB


def test_the_limit_of_the_address_space_counts(kernel: Kernel) -> None:
    """`ulimit -v`, which batch systems set."""
    kernel.limit_addresses(3 * GB)
    assert kernel.free == 2 * GB
    kernel.limit_addresses(GB // 2)
    assert kernel.free == 0


def test_files_that_are_missing_limit_nothing(tmp_path: Path) -> None:
    """A system without them, on which every model would be refused."""
    assert free_host_memory(tmp_path, tmp_path) == UNKNOWN_MEMORY


def test_free_memory_of_this_process_respects_its_limit() -> None:
    """A name in the real files that is not the one expected."""

    def limited() -> None:
        with open("/proc/self/statm") as file:  # noqa: PTH123
            size = int(file.read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (size + 300 * MB, size + 300 * MB))
        assert 200 * MB < free_host_memory() <= 300 * MB

    assert 300 * MB < free_host_memory() < UNKNOWN_MEMORY
    assert not in_child(limited)
