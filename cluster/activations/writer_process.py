"""A process that commits values from memory that its parent shares with it.

Requests and replies are JSON. It ends when its parent closes the connection, or is killed. Imports
neither torch nor Ray, to start fast.
"""

from __future__ import annotations

import json
import mmap
import sys
import traceback
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

from storage.errors import StoreError
from storage.store.commit import write_values
from storage.store.paths import parse_store_path


@dataclass(frozen=True)
class WriteRequest:
    """A file of `size` values of a dtype, which are at the start of the shared memory, with `row_group`
    values a row group."""

    folder: str
    name: str
    dtype: str
    size: int
    row_group: int


def main() -> None:
    """Answer each request with the record of the committed file, an error, or the traceback of a bug."""
    descriptor, connection = int(sys.argv[1]), Connection(int(sys.argv[2]))
    memory: mmap.mmap | None = None
    while True:
        try:
            request = WriteRequest(**json.loads(connection.recv_bytes()))
        except (EOFError, ConnectionResetError):
            return
        dtype = np.dtype(request.dtype)
        n_bytes = request.size * dtype.itemsize
        if memory is None or len(memory) < n_bytes:
            memory = mmap.mmap(descriptor, n_bytes, prot=mmap.PROT_READ)
        values = np.frombuffer(memory, dtype, request.size)
        try:
            folder = parse_store_path(request.folder)
            record = write_values(folder, request.name, values, request.row_group)
            reply: dict[str, Any] = {"record": asdict(record)}
        except StoreError as error:
            reply = {"error": str(error)}
        except Exception:
            reply = {"bug": traceback.format_exc()}
        connection.send_bytes(json.dumps(reply).encode())


if __name__ == "__main__":
    main()
