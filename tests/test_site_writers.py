"""A file could be lost, differ from one that a single process writes, or a process stay behind."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
import torch

from cluster.activations.block_buffer import PooledValues
from cluster.activations.layer_writer import activation_file, row_group_size
from cluster.activations.site_writers import SiteWriters
from cluster.models.sites import Site
from storage.errors import StoreError
from storage.store.commit import FileRecord, write_values
from storage.store.paths import parse_store_path, read_bytes
from tests.object_store import s3_server

SENTENCES = 300
SITES = tuple(Site(layer, "mlp.hidden", "mlp", "input", 128) for layer in range(5))
STATES = tuple(Site(layer, "residual", "", "output", 40) for layer in range(2))


def make_values() -> list[PooledValues]:
    torch.manual_seed(0)
    return [
        PooledValues("max", SITES, torch.randn(128 * len(SITES), SENTENCES).half()),
        PooledValues("concept", SITES, torch.randn(128 * len(SITES), SENTENCES).half()),
        PooledValues("mean", STATES, torch.randn(40 * len(STATES), SENTENCES)),
    ]


def write_in_one_process(folder: Path, pooled: list[PooledValues]) -> list[FileRecord]:
    records = []
    for values in pooled:
        for site, of_site in values.of_sites():
            name = f"pooling={values.pooling}/layer={site.layer}/site={site.name}/00000.parquet"
            row_group = (4 << 20) // of_site[0].nbytes * SENTENCES
            records.append(write_values(folder, name, of_site.numpy(), row_group))
    return records


def write_all(writers: SiteWriters) -> list[FileRecord]:
    write_pooled(writers, make_values())
    return writers.finish()


def write_pooled(writers: SiteWriters, pooled: Iterable[PooledValues]) -> None:
    for values in pooled:
        for site, of_site in values.of_sites():
            name = activation_file(values.pooling, site.layer, site.name)
            writers.write(name, of_site, row_group_size(of_site))


def content(folder: Path) -> dict[str, bytes]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


@contextmanager
def writers_and_processes(
    folder: Path, memory_bytes: int = 1 << 30
) -> Iterator[tuple[SiteWriters, list[psutil.Process]]]:
    """Writers and their processes, none of which must be left."""
    before = set(psutil.Process().children())
    descriptors = psutil.Process().num_fds()
    with SiteWriters(folder, memory_bytes) as writers:
        processes = [child for child in psutil.Process().children() if child not in before]
        assert processes
        yield writers, processes
    assert not [process for process in processes if process.is_running()]
    assert psutil.Process().num_fds() <= descriptors


@pytest.mark.parametrize("memory_bytes", [1 << 30, 0])
def test_files_are_those_of_a_single_process(tmp_path: Path, memory_bytes: int) -> None:
    """Values of another site, or of a site whose memory was used again too early."""
    pooled = make_values()
    expected = write_in_one_process(tmp_path / "one" / "stage", pooled)
    with writers_and_processes(tmp_path / "many" / "stage", memory_bytes) as (writers, _):
        for values in pooled:
            write_pooled(writers, [values])
            values.values.zero_()
        assert writers.finish() == expected
    assert content(tmp_path / "many") == content(tmp_path / "one")


def test_objects_in_a_bucket_are_the_same_files(tmp_path: Path) -> None:
    """A store in a bucket that only one process can write to."""
    pooled = make_values()
    expected = write_in_one_process(tmp_path / "stage", pooled)
    with s3_server() as bucket:
        folder = parse_store_path(f"{bucket}/stage")
        with writers_and_processes(folder) as (writers, _):
            write_pooled(writers, pooled)
            assert writers.finish() == expected
        for record in expected:
            written = read_bytes(folder / record.path)
            assert written == (tmp_path / "stage" / record.path).read_bytes()


@pytest.mark.parametrize("order", [list, reversed])
def test_values_of_several_sizes_share_bounded_memory(
    tmp_path: Path, order: Callable[[list[PooledValues]], Iterable[PooledValues]]
) -> None:
    """Memory for as many sites as there are cores, however large they are; or that of small sites, kept
    by processes that a larger one leaves without work."""
    pooled = make_values()
    large = 128 * SENTENCES * 2
    with writers_and_processes(tmp_path, memory_bytes=large + 1) as (writers, processes):
        write_pooled(writers, order(pooled))
        writers.finish()
        descriptors = [int(process.cmdline()[3]) for process in processes]
        assert sum(os.fstat(descriptor).st_size for descriptor in descriptors) == large


def test_a_bug_in_a_process_is_not_taken_for_a_lack_of_memory(tmp_path: Path) -> None:
    """The traceback would be lost, and a user told to rerun."""
    with writers_and_processes(tmp_path) as (writers, _):
        # There are no row groups without rows.
        writers.write("bug.parquet", torch.ones(4, 4), 0)
        with pytest.raises(RuntimeError, match=r"bug.parquet: Traceback(.|\n)*write_values"):
            writers.finish()


def test_a_full_disk_is_an_error_that_names_the_file(tmp_path: Path) -> None:
    """A process that fails alone, while the pass goes on."""
    with writers_and_processes(tmp_path / "stage") as (writers, processes):
        for process in processes:
            resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (4000, 4000))
        message = (
            rf"^{tmp_path}/stage/pooling=max/layer=\d/site=mlp.hidden/00000.parquet: File too large; "
            "free disk space and rerun to resume$"
        )
        with pytest.raises(StoreError, match=message):
            write_all(writers)
    assert content(tmp_path) == {}


@pytest.mark.parametrize("is_writing", [True, False])
def test_a_process_that_is_killed_is_an_error_that_names_the_file(
    tmp_path: Path, is_writing: bool
) -> None:
    """A pass that waits forever, or a file that is missing."""
    with writers_and_processes(tmp_path, memory_bytes=0) as (writers, processes):
        folder = tmp_path / "pooling=max/layer=0/site=mlp.hidden"
        if is_writing:
            processes[0].suspend()
            write_pooled(writers, [PooledValues("max", SITES[:1], make_values()[0].values[:128])])
            # As a process leaves it that is killed while it writes.
            folder.mkdir(parents=True)
            (folder / ".00000.parquet.1234.tmp").write_bytes(b"half")
        os.kill(processes[0].pid, signal.SIGKILL)
        message = f"^{folder}/00000.parquet: the process that wrote it ended with status -9; .* rerun to"
        with pytest.raises(StoreError, match=message):
            write_all(writers)
    assert content(tmp_path) == {}


_PARENT = """
import sys, time
from pathlib import Path
from cluster.activations.site_writers import SiteWriters
writers = SiteWriters(Path(sys.argv[1]))
print(*(writer._process.pid for writer in writers._writers), flush=True)
time.sleep(600)
"""


def test_no_process_is_left_when_the_parent_is_killed(tmp_path: Path) -> None:
    """Memory and processes of every run that was killed, on a machine that runs for months."""
    command = [sys.executable, "-c", _PARENT, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pids = [int(pid) for pid in parent.stdout.readline().split()]
        assert pids
        assert all(map(psutil.pid_exists, pids))
        parent.kill()
    deadline = time.monotonic() + 30
    while any(map(psutil.pid_exists, pids)):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_writer_imports_neither_torch_nor_ray() -> None:
    """Writers that start in ten seconds and take a gigabyte each."""
    code = "import cluster.activations.writer_process, sys; print(*{'torch', 'ray'} & set(sys.modules))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.split() == []
