"""Writes arrays to the store in several processes, a file each.

One process writes at the speed of a core, which computes checksums and compares what it reads back.
Threads would share one address space, whose page faults slow each other down.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import asdict
from multiprocessing.connection import Pipe, wait
from pathlib import Path
from types import TracebackType

import torch

from cluster.activations import writer_process
from cluster.activations.shared_memory import SharedMemory
from cluster.activations.writer_process import WriteRequest
from storage.errors import StoreError
from storage.store.commit import FileRecord, remove_temporary_files

_MAX_WRITERS = 16
_MEMORY_BYTES = 1 << 30


class SiteWriters:
    """Processes that write files into a stage's folder, as many as there are cores.

    They share at most `memory_bytes` with this process, or the values of one site if these are more.
    They start before they are needed, and end with the `with` statement.
    """

    def __init__(self, folder: Path, memory_bytes: int = _MEMORY_BYTES) -> None:
        self._folder = folder
        self._memory_bytes = memory_bytes
        self._site_bytes = 0
        self._records: dict[str, FileRecord | None] = {}
        n_writers = min(_MAX_WRITERS, len(os.sched_getaffinity(0)))
        self._writers = [_Writer() for _ in range(n_writers)]

    def __len__(self) -> int:
        return len(self._writers)

    def __enter__(self) -> SiteWriters:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the processes and give their memory back."""
        for writer in self._writers:
            writer.connection.close()
        for writer in self._writers:
            writer.close()

    def write(self, name: str, values: torch.Tensor, row_group: int) -> None:
        """Write contiguous values of any device to a file with `row_group` values a row group. Returns
        once they are copied, so their memory can be used again.

        Raises:
            StoreError: naming the file, if this or an earlier one cannot be written.
        """
        if values.nbytes > self._site_bytes:
            self._make_room(values.nbytes)
        dtype = str(values.dtype).removeprefix("torch.")
        request = WriteRequest(str(self._folder), name, dtype, values.numel(), row_group)
        writer = self._idle_writer()
        writer.memory.put(values)
        self._records[name] = None
        writer.send(request, self._folder / name)

    def finish(self) -> list[FileRecord]:
        """Wait for the files; the records of those since the last call, in their order. Raises
        StoreError, naming the file, if one cannot be written."""
        self._wait_for_all()
        records = [record for record in self._records.values() if record is not None]
        self._records.clear()
        return records

    def _make_room(self, n_bytes: int) -> None:
        """Give as many writers as the memory allows room for `n_bytes`, and the others none."""
        self._wait_for_all()
        self._site_bytes = n_bytes
        n_usable = len(self._usable_writers())
        for writer in self._writers[n_usable:]:
            writer.memory.resize(0)
        for writer in self._writers[:n_usable]:
            writer.memory.resize(n_bytes)

    def _usable_writers(self) -> list[_Writer]:
        """Those that may have memory for a site."""
        return self._writers[: max(1, self._memory_bytes // self._site_bytes)]

    def _idle_writer(self) -> _Writer:
        writers = self._usable_writers()
        while True:
            for writer in writers:
                if not writer.is_busy:
                    return writer
            self._collect(writers)

    def _wait_for_all(self) -> None:
        while busy := [writer for writer in self._writers if writer.is_busy]:
            self._collect(busy)

    def _collect(self, writers: list[_Writer]) -> None:
        """Wait for at least one of the busy writers, and take the records of its files."""
        ready = wait([writer.connection for writer in writers])
        for writer in writers:
            if writer.connection in ready:
                record = writer.receive()
                self._records[record.path] = record


class _Writer:
    """A process, the memory that it reads and the file that it writes."""

    def __init__(self) -> None:
        self.memory = SharedMemory()
        self.is_busy = False
        self._path = Path()
        self.connection, connection = Pipe()
        descriptors = [self.memory.descriptor, connection.fileno()]
        with connection:
            self._process = subprocess.Popen(  # noqa: S603
                [sys.executable, "-m", writer_process.__name__, *map(str, descriptors)],
                pass_fds=descriptors,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
                # An interrupt from the keyboard is for the parent, which ends its writers.
                start_new_session=True,
            )

    def send(self, request: WriteRequest, path: Path) -> None:
        """Begin to write a file."""
        self.is_busy, self._path = True, path
        try:
            self.connection.send_bytes(json.dumps(asdict(request)).encode())
        except BrokenPipeError as error:
            raise self._death() from error

    def receive(self) -> FileRecord:
        """The record of the file, once it is written. Raises StoreError if it cannot be written, and
        RuntimeError with the traceback of any other error."""
        self.is_busy = False
        try:
            reply = json.loads(self.connection.recv_bytes())
        except (EOFError, ConnectionResetError) as error:
            raise self._death() from error
        if "bug" in reply:
            raise RuntimeError(f"{self._path}: {reply['bug']}")
        if "error" in reply:
            raise StoreError(reply["error"])
        return FileRecord(**reply["record"])

    def _death(self) -> StoreError:
        """The error of a process that ended by itself, whose unfinished file is removed."""
        status = self._process.wait()
        remove_temporary_files(self._path.parent, f".{self._path.name}.*")
        return StoreError(
            f"{self._path}: the process that wrote it ended with status {status}; was it killed for "
            "lack of memory? rerun to resume"
        )

    def close(self) -> None:
        """Wait until the process has ended, and give its memory back."""
        self._process.wait()
        self.memory.close()
