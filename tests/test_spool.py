"""Hidden states between two blocks of layers are temporary: a disk that damages, loses or has no room
for them must not stop a pass for good, nor change its values."""

from __future__ import annotations

import ctypes
import os
import resource
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cluster.activations import pinned_copies, prepared_pass
from cluster.activations.batching import batch_shapes
from cluster.activations.block_shard import BlockShard
from cluster.activations.layer_writer import LayerWriter
from cluster.activations.model_pass import Block, ModelPass
from cluster.activations.pass_request import PassRequest
from cluster.activations.pinned_copies import copy_parts, part_sizes, pinned_bytes
from cluster.activations.pooling_shard import ActivationSettings
from cluster.activations.prepared_pass import PreparedPass
from cluster.activations.sentence_set import tokenize
from cluster.activations.spool import HiddenStateSpool, SpoolSettings, complete_layers
from cluster.activations.spool_size import hidden_state_bytes, share_on_disk, spool_memory
from cluster.models.tokenizer import Tokenizer
from storage.errors import SpoolError, StoreError
from storage.store.temporary_folder import temporary_folder
from tests import tiny
from tests.faults import in_child
from tests.test_shard import make_texts

LAYERS = 3
CPU = torch.device("cpu")
_NEW_MOUNT_NAMESPACE = 0x00020000


def write_spool(folder: Path, layer: int, shapes: list[tuple[int, int]], width: int = 4) -> None:
    """Hidden states on disk, a file for each batch."""
    spool = HiddenStateSpool(SpoolSettings(folder, 0), layer, CPU)
    for number, shape in enumerate(shapes):
        spool.put(number, torch.full((*shape, width), float(number)))
        spool._write()
    spool.finish()


def flip_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


def write_list_of_earlier_version(path: Path) -> None:
    path.write_text(path.read_text().replace("shapes", "forms"))


SHAPES = [(3, 5), (2, 8), (1, 9)]


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("000001.safetensors", Path.unlink),
        ("000001.safetensors", truncate),
        ("complete.json", Path.unlink),
        ("complete.json", truncate),
        ("complete.json", flip_bit),
        ("complete.json", write_list_of_earlier_version),
    ],
)
def test_a_layer_with_a_missing_or_shortened_file_is_not_complete(
    tmp_path: Path, name: str, damage: Callable[[Path], None]
) -> None:
    """A run that begins there, and fails at every rerun."""
    for layer in (1, 2, 10):
        write_spool(tmp_path, layer, SHAPES)
    assert complete_layers(tmp_path, SHAPES) == [1, 2, 10]
    damage(tmp_path / "layer=2" / name)
    assert complete_layers(tmp_path, SHAPES) == [1, 10]
    with pytest.raises(SpoolError):
        HiddenStateSpool.restore(SpoolSettings(tmp_path, 0), 2, CPU)


def test_hidden_states_of_other_batches_are_not_complete(tmp_path: Path) -> None:
    """A batch that is read with the hidden states of other sentences: batches have numbers only."""
    write_spool(tmp_path, 2, SHAPES)
    for other in ([*SHAPES, (1, 10)], SHAPES[:2], [(3, 5), (3, 8), (1, 9)], [(3, 6), (2, 8), (1, 9)]):
        assert complete_layers(tmp_path, other) == []
    assert complete_layers(tmp_path / "nowhere", SHAPES) == []


def test_a_pass_writes_the_shapes_of_its_batches(tmp_path: Path) -> None:
    """A run that never continues, because its batches seem to be others."""
    model_pass = make_pass(tiny.make_model(tmp_path / "model", LAYERS), tmp_path / "spool")
    found: list[list[int]] = []
    shapes = batch_shapes(model_pass.sentences.lengths, model_pass.batches)
    model_pass.run(lambda _: found.append(complete_layers(tmp_path / "spool", shapes)))
    assert found == [[1], [1, 2], [2]]
    assert len(shapes) > 2


@pytest.mark.parametrize("damage", [flip_bit, Path.unlink])
def test_hidden_states_that_are_damaged_are_removed(
    tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    """A run that reads noise; or one that finds the same damage whenever it begins again."""
    write_spool(tmp_path, 2, SHAPES)
    spool = HiddenStateSpool.restore(SpoolSettings(tmp_path, 0), 2, CPU)
    assert float(spool.get(0)[0, 0, 0]) == 0
    damage(tmp_path / "layer=2/000002.safetensors")
    assert float(spool.get(1)[0, 0, 0]) == 1
    with pytest.raises(SpoolError, match=r"000002.safetensors: is damaged or missing"):
        spool.get(2)
    assert complete_layers(tmp_path, SHAPES) == []
    assert not list(tmp_path.iterdir())


def make_pass(model: Path, spool: Path, memory_bytes: int = 0) -> ModelPass:
    settings = ActivationSettings("float32", "mlp", ["max", "mean"])
    sentences = tokenize(Tokenizer(model, 64), make_texts(24), settings.inputs, settings.poolings)
    blocks = [range(1), range(1, 2), range(2, 3)]
    return ModelPass(model, settings, sentences, 60, SpoolSettings(spool, memory_bytes), "cpu", blocks)


def run_pass(model_pass: ModelPass) -> dict[tuple[str, str], Any]:
    values = {}

    def consume(block: Block) -> None:
        for pooled in block.pooled:
            for site, of_site in pooled.of_sites():
                values[pooled.pooling, str(site)] = of_site.numpy().copy()

    model_pass.run(consume)
    return values


MIXED = 40_000
"""Memory for some of the hidden states of `make_pass`, so that the others go to disk."""


@pytest.mark.parametrize("memory_bytes", [0, MIXED, 1 << 30])
def test_a_layer_that_changes_its_input_in_place_may_run_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, memory_bytes: int
) -> None:
    """After memory ran out, the batches that ran before would be read with changed hidden states."""
    model = tiny.make_model(tmp_path / "model", LAYERS)
    expected = run_pass(make_pass(model, tmp_path / "spool", memory_bytes))
    run = BlockShard.run
    calls: list[int] = []

    def changing(shard: BlockShard, batch: Any, incoming: Any, *arguments: Any) -> torch.Tensor:
        outgoing = run(shard, batch, incoming, *arguments)
        if incoming is not None:
            with torch.inference_mode():
                incoming.add_(1)
            calls.append(shard.layers.start)
            if len(calls) == 3:
                raise torch.OutOfMemoryError("CUDA out of memory")
        return outgoing

    monkeypatch.setattr(BlockShard, "run", changing)
    model_pass = make_pass(model, tmp_path / "spool", memory_bytes)
    actual = run_pass(model_pass)
    assert calls[:4] == [1] * 4
    assert "memory ran out in layer 1" in model_pass.notes[0]
    assert actual.keys() == expected.keys()
    for key, values in expected.items():
        # Batches run in parts, which changes the last digits.
        np.testing.assert_allclose(actual[key], values, rtol=2e-3, atol=1e-5)


def test_memory_is_filled_before_the_disk_and_the_values_are_the_same(tmp_path: Path) -> None:
    """All hidden states on disk, because some do not fit in memory; or those of another batch."""
    model = tiny.make_model(tmp_path / "model", LAYERS)
    on_disk = run_pass(make_pass(model, tmp_path / "disk"))
    sizes: list[int] = []
    model_pass = make_pass(model, tmp_path / "mixed", MIXED)

    def count(_: Block) -> None:
        paths = (tmp_path / "mixed").glob("layer=1/*.safetensors")
        sizes.append(sum(path.stat().st_size for path in paths))

    model_pass.run(count)
    n_bytes = hidden_state_bytes(sum(model_pass.sentences.lengths), 32, "float32") // 2
    assert n_bytes - MIXED // 2 <= sizes[0] < 1.2 * n_bytes - MIXED // 2 + 8192
    mixed = run_pass(make_pass(model, tmp_path / "mixed", MIXED))
    assert mixed.keys() == on_disk.keys()
    assert all(np.array_equal(mixed[key], values) for key, values in on_disk.items())


def test_a_killed_pass_with_hidden_states_in_memory_begins_again(tmp_path: Path) -> None:
    """A rerun that continues with the part that was on disk, or keeps its files for good."""
    model = tiny.make_model(tmp_path / "model", LAYERS)
    expected = run_pass(make_pass(model, tmp_path / "spool", MIXED))

    def kill(block: Block) -> None:
        if block.layers.start:
            raise KeyboardInterrupt

    killed = make_pass(model, tmp_path / "spool", MIXED)
    with pytest.raises(KeyboardInterrupt):
        killed.run(kill)
    assert list((tmp_path / "spool").glob("layer=*/*.safetensors"))
    assert (
        complete_layers(tmp_path / "spool", batch_shapes(killed.sentences.lengths, killed.batches)) == []
    )
    actual = run_pass(make_pass(model, tmp_path / "spool", MIXED))
    assert all(np.array_equal(actual[key], values) for key, values in expected.items())
    assert not list((tmp_path / "spool").iterdir())


def test_a_pass_on_a_gpu_fills_part_of_the_free_memory_and_one_on_a_cpu_none(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An H100 that waits for a disk beside 200 GB of free memory, or a host whose memory is full."""
    free = 200 * 10**9
    monkeypatch.setattr(prepared_pass, "free_memory", lambda _: free)
    settings = ActivationSettings("float32", "mlp", ["max"])
    request = PassRequest(make_texts(3), [], 60, tmp_path, None, LayerWriter(tmp_path))
    for device, expected in (("cuda", 0.6 * free), ("cpu", 0)):
        assert PreparedPass(tiny_model, settings, request, device, 1).spool_memory() == expected
    assert spool_memory(free) == 0.6 * free
    assert share_on_disk(50 * 10**9, free) == 0
    assert share_on_disk(0, free) == 0
    on_disk = share_on_disk(127 * 10**9, free)
    assert 0 < on_disk < 0.25
    # What stays in memory fits it, with padding.
    assert (1 - on_disk) * 127 * 10**9 * 1.15 == pytest.approx(spool_memory(free))


@pytest.mark.parametrize("n_bytes", [1, 4096, 5 << 20, 16 << 20, (16 << 20) + 1, 168 << 20, 85 << 20])
def test_pinned_memory_is_hardly_more_than_what_is_copied_to_it(n_bytes: int) -> None:
    """Half of the host's memory lost: torch allocates it in powers of two."""
    assert sum(part_sizes(n_bytes)) == n_bytes
    assert n_bytes <= pinned_bytes(n_bytes) < 2 * n_bytes
    if n_bytes > 64 << 20:
        assert pinned_bytes(n_bytes) < 1.2 * n_bytes


def test_copies_in_parts_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """A part that is lost, or copied to another place."""
    monkeypatch.setattr(pinned_copies, "_PART_BYTES", 100)
    for shape in ((1, 1, 7), (3, 5, 32), (2, 5, 5)):
        for dtype in (torch.float32, torch.bfloat16):
            tensor = torch.randn(shape).to(dtype)
            parts = [torch.empty(size, dtype=torch.uint8) for size in part_sizes(tensor.nbytes)]
            copy_parts(tensor, parts, to_parts=True)
            copied = copy_parts(torch.empty_like(tensor), parts, to_parts=False)
            assert torch.equal(copied, tensor)


def on_full_disk(folder: Path, work: Callable[[], None]) -> None:
    """Run some work in a child that sees an empty disk of 64 KiB at a folder."""

    def mounted() -> None:
        if ctypes.CDLL(None).unshare(_NEW_MOUNT_NAMESPACE) != 0:
            # Root in a container may not mount disks.
            os._exit(0)
        subprocess.run(["mount", "--make-rprivate", "/"], check=True)
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", folder], check=True)
        work()

    assert not in_child(mounted)


def with_limited_files(_: Path, work: Callable[[], None]) -> None:
    """Run some work in a child that cannot write files of more than 20,000 bytes."""

    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
        work()

    assert not in_child(limited)


def put_batches(spool: HiddenStateSpool) -> None:
    """Batches of 16, 32 and 48 kB, in a file each."""
    for number in range(3):
        spool.put(number, torch.rand(4, 10, 100 * (number + 1)))
        spool._write()


@pytest.mark.parametrize(
    ("limit", "message"),
    [
        pytest.param(
            on_full_disk,
            "No space left on device",
            marks=pytest.mark.skipif(
                os.geteuid() != 0 or not shutil.which("mount"), reason="only root mounts disks"
            ),
        ),
        (with_limited_files, "File too large"),
    ],
)
def test_a_full_disk_is_reported_and_what_was_complete_remains(
    tmp_path: Path, limit: Callable[[Path, Callable[[], None]], None], message: str
) -> None:
    """A traceback or three attempts; hidden states that no run continues from and that keep the disk
    full, or a run that begins at layer 0 once there is room."""

    def fill() -> None:
        write_spool(tmp_path, 1, [(1, 2)])
        spool = HiddenStateSpool(SpoolSettings(tmp_path, 0), 2, CPU)
        expected = (
            rf"^{tmp_path}: the hidden states between two blocks do not fit here \({message}\); "
            "free disk space and rerun to resume$"
        )
        with pytest.raises(StoreError, match=expected) as caught:
            put_batches(spool)
        assert not isinstance(caught.value, SpoolError)
        assert [path.name for path in tmp_path.iterdir()] == ["layer=1"]
        assert complete_layers(tmp_path, [(1, 2)]) == [1]

    limit(tmp_path, fill)


_KILLED = """
import os, signal, sys
from storage.store.temporary_folder import temporary_folder
with temporary_folder() as folder:
    (folder / "states").write_bytes(b"1")
    print(folder, flush=True)
    if sys.argv[1] == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    sys.stdin.read()
"""


def start_process(what: str) -> tuple[subprocess.Popen[str], Path]:
    command = [sys.executable, "-c", _KILLED, what]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    return process, Path(process.stdout.readline().strip())


def test_the_temporary_folder_of_a_killed_process_is_removed_by_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tens of gigabytes in /tmp for good, for stores in buckets; or a loss to a run that is alive."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    (tmp_path / "neuralign-other").mkdir()
    killed, abandoned = start_process("kill")
    killed.communicate()
    alive, used = start_process("wait")
    assert (used / "states").exists()
    assert not abandoned.exists()
    with temporary_folder() as folder:
        assert list(folder.iterdir()) == []
        assert (used / "states").exists()
    assert not folder.exists()
    alive.communicate()
    assert [path.name for path in tmp_path.iterdir()] == ["neuralign-other"]


def test_the_largest_size_on_disk_is_known_in_advance(tmp_path: Path) -> None:
    """A disk that fills after hours: the states before and after a block are there at the same time."""
    model_pass = make_pass(tiny.make_model(tmp_path / "model", LAYERS), tmp_path / "spool")
    sizes: list[int] = []

    def consume(_: Block) -> None:
        paths = (tmp_path / "spool").glob("*/*.safetensors")
        sizes.append(sum(path.stat().st_size for path in paths))

    model_pass.run(consume)
    lengths = model_pass.sentences.lengths
    expected = hidden_state_bytes(sum(lengths), 32, "float32")
    assert max(sizes) == pytest.approx(expected, rel=0.1)
    assert hidden_state_bytes(sum(lengths), 32, "bfloat16") == expected / 2
