"""Benchmarks: each measures ours and theirs side by side, interleaved, in one run."""
