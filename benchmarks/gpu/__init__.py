"""`python -m benchmarks gpu [--model CONFIG]`: passes on a GPU, with random weights."""

import os
import tempfile

_NUMBA_CACHE = tempfile.TemporaryDirectory()
# The project's folder may be read-only on the machine with the GPU.
os.environ.setdefault("NUMBA_CACHE_DIR", _NUMBA_CACHE.name)
