"""A pass over blocks of layers could give other values than the complete model, or need more memory."""

from __future__ import annotations

import gc
import re
import weakref
from collections.abc import Collection, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from queue import Queue
from typing import Any

import numpy as np
import numpy.typing as npt
import psutil
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from cluster.activations import model_pass as model_pass_module
from cluster.activations import pooling as pooling_module
from cluster.activations.batching import PaddedBatch
from cluster.activations.block_buffer import BlockBuffer
from cluster.activations.block_plan import LayerBytes, ModelBytes, measure_model, plan_blocks, plan_model
from cluster.activations.block_shard import BlockShard
from cluster.activations.max_pooling import TorchMaxPooler
from cluster.activations.model_pass import Block, ModelPass
from cluster.activations.pooling_shard import ActivationSettings
from cluster.activations.sentence_set import SentenceSet, tokenize
from cluster.activations.spool import HiddenStateSpool, SpoolSettings
from cluster.models import device_copy
from cluster.models.checkpoint import read_ahead
from cluster.models.tokenizer import Text, Tokenizer
from storage.errors import NeuralignError, SpoolError, UserError
from tests import plain_forward, tiny
from tests.operations import count_operations
from tests.pooled import pool
from tests.test_dictionary import make_autoencoder
from tests.test_shard import make_texts

LAYERS = 4
BUDGET = 60
POOLINGS = ["max", "concept", "context"]
Values = dict[tuple[str, str], npt.NDArray[np.floating[Any]]]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.make_model(tmp_path_factory.mktemp("model"), LAYERS)


def settings_for(dtype: str = "float32", poolings: Sequence[str] = POOLINGS, **more: Any) -> Any:
    return ActivationSettings(dtype, "mlp", list(poolings), **more)


def read_sentences(folder: Path, settings: ActivationSettings, texts: list[Text]) -> SentenceSet:
    return tokenize(Tokenizer(folder, 64), texts, settings.inputs, settings.poolings)


def make_pass(
    folder: Path,
    settings: ActivationSettings,
    texts: list[Text],
    spool: Path,
    blocks: Sequence[range] | None = None,
    memory_bytes: int = 1 << 30,
    threads: int = 1,
) -> ModelPass:
    sentences = read_sentences(folder, settings, texts)
    settings_of_spool = SpoolSettings(spool, memory_bytes)
    return ModelPass(
        folder, settings, sentences, BUDGET, settings_of_spool, "cpu", blocks, threads=threads
    )


def run_pass(model_pass: ModelPass, missing: Collection[int] | None = None) -> Values:
    """All pooled values, (units, sentences), of blocks with missing layers."""
    values: Values = {}

    def consume(block: Block) -> None:
        for pooled in block.pooled:
            for site, of_site in pooled.of_sites():
                assert site.layer in block.layers
                values[pooled.pooling, str(site)] = of_site.numpy().copy()

    model_pass.run(consume, missing)
    return values


def run_shard(folder: Path, settings: ActivationSettings, texts: list[Text]) -> Values:
    pooled = pool(folder, settings, texts, BUDGET)
    return {(pooling, str(site)): values for (pooling, site), values in pooled.items()}


def assert_identical(actual: Values, expected: Values) -> None:
    assert actual.keys() == expected.keys()
    for key, values in expected.items():
        assert actual[key].dtype == values.dtype
        assert np.array_equal(actual[key], values), key


def split(*edges: int) -> list[range]:
    return [range(start, stop) for start, stop in pairwise(edges)]


DIVISIONS = [split(0, 4), split(0, 2, 4), split(0, 1, 2, 3, 4), split(0, 3, 4)]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("poolings", [POOLINGS, ["context", "mean", "last", "max"]])
def test_values_are_those_of_a_complete_shard_for_any_blocks(
    model: Path, tmp_path: Path, dtype: str, poolings: list[str]
) -> None:
    """Hidden states lost between blocks, a column of another sentence, or rounding on the way."""
    settings, texts = settings_for(dtype, poolings), make_texts(24)
    expected = run_shard(model, settings, texts)
    for blocks in DIVISIONS:
        actual = run_pass(make_pass(model, settings, texts, tmp_path, blocks))
        assert_identical(actual, expected)


@pytest.mark.parametrize("model_type", ["gpt_neox", "gemma2", "nemotron_h", "mamba2"])
def test_other_architectures_give_the_values_of_a_shard(tmp_path: Path, model_type: str) -> None:
    """Layers without MLP, or layers of several sorts."""
    folder = plain_forward.save_model(tmp_path / "model", model_type)
    settings = ActivationSettings("float32", "linears", ["max", "mean"])
    texts = [Text(text, []) for text in plain_forward.SENTENCES]
    expected = run_shard(folder, settings, texts)
    for blocks in (split(0, 4), split(0, 1, 2, 3, 4)):
        assert_identical(run_pass(make_pass(folder, settings, texts, tmp_path, blocks)), expected)


@pytest.fixture
def _new_memory_is_nan() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.usefixtures("_new_memory_is_nan")
def test_neurons_of_an_expert_without_tokens_are_zero(tmp_path: Path) -> None:
    """Whatever was in the memory before."""
    folder = plain_forward.save_model(tmp_path / "model", "deepseek_v3")
    weights = load_file(folder / "model.safetensors")
    weights["model.layers.1.mlp.gate.e_score_correction_bias"][0] = -100
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    settings = ActivationSettings(
        "float32", ["mlp.hidden", "mlp.experts", "mlp.router"], ["max", "mean"]
    )
    texts = [Text(text, []) for text in plain_forward.SENTENCES]
    expected = run_shard(folder, settings, texts)
    assert not expected["max", "L01.mlp.experts"][:24].any()
    for blocks in (split(0, 4), split(0, 1, 2, 3, 4)):
        assert_identical(run_pass(make_pass(folder, settings, texts, tmp_path, blocks)), expected)


def test_latents_of_a_sparse_autoencoder_are_read(model: Path, tmp_path: Path) -> None:
    """Neurons instead of latents, or a block without sites that fails."""
    settings = settings_for(
        include_hidden_states=False, sparse_autoencoder=make_autoencoder(tmp_path, layer=2)
    )
    texts = make_texts(12)
    expected = run_shard(model, settings, texts)
    actual = run_pass(make_pass(model, settings, texts, tmp_path, split(0, 1, 3, 4)))
    assert_identical(actual, expected)


def test_torch_pools_the_same_values(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A GPU without Triton."""
    settings, texts = settings_for("bfloat16"), make_texts(12)
    expected = run_shard(model, settings, texts)
    monkeypatch.setattr(pooling_module, "make_max_pooler", TorchMaxPooler)
    assert_identical(run_pass(make_pass(model, settings, texts, tmp_path)), expected)


def test_a_block_is_freed_before_the_next_is_loaded(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights or pooled values of several blocks in the device's memory."""
    alive: list[weakref.ref[Any]] = []

    class Recorded(BlockShard):
        def __init__(self, *arguments: Any) -> None:
            assert [tensor for tensor in alive if tensor() is not None] == []
            super().__init__(*arguments)
            alive.extend(weakref.ref(weights) for weights in self.model.parameters())

    def consume(block: Block) -> None:
        alive.extend(weakref.ref(pooled.values) for pooled in block.pooled)

    monkeypatch.setattr(model_pass_module, "BlockShard", Recorded)
    make_pass(model, settings_for(), make_texts(12), tmp_path, split(0, 1, 2, 3, 4)).run(consume)
    assert len(alive) > LAYERS * len(POOLINGS)


def test_what_was_there_before_a_pass_is_not_searched_for_garbage_of_its_blocks(
    model: Path, tmp_path: Path
) -> None:
    """A third of a second after each block, as long as to load one; or garbage that stays for good."""
    n_before = len(gc.get_objects())

    def consume(_: Block) -> None:
        assert gc.get_freeze_count() > n_before // 2
        assert len(gc.get_objects()) < n_before // 2

    make_pass(model, settings_for(), make_texts(3), tmp_path, split(0, 2, 4)).run(consume)
    assert gc.get_freeze_count() == 0


def test_memory_does_not_grow_with_the_number_of_batches(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Hidden states or hidden values that stay until the end of the block."""
    counts: list[int] = []
    run = BlockShard.run

    def counted(shard: BlockShard, *arguments: Any) -> torch.Tensor:
        gc.collect()
        counts.append(sum(issubclass(type(item), torch.Tensor) for item in gc.get_objects()))
        return run(shard, *arguments)

    monkeypatch.setattr(BlockShard, "run", counted)
    run_pass(make_pass(model, settings_for(), make_texts(36), tmp_path, split(0, 4)))
    assert len(counts) > 5, counts
    assert max(counts[1:]) == counts[1]


def test_a_batch_adds_few_operations_to_the_models_own(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Copies and conversions of each site and pooling, on a GPU a kernel each."""
    model_pass = make_pass(
        model, settings_for("bfloat16", include_hidden_states=False), make_texts(6), tmp_path
    )
    shard = BlockShard(model, model_pass.settings)
    monkeypatch.setattr(pooling_module, "make_max_pooler", TorchMaxPooler)
    monkeypatch.setattr(BlockBuffer, "finish", lambda *_: [])
    with_pooling = count_operations(lambda: model_pass.read_block(shard)).total()
    monkeypatch.setattr(BlockShard, "_pool", lambda *_: None)
    model_alone = count_operations(lambda: model_pass.read_block(shard)).total()
    assert with_pooling - model_alone == len(model_pass.batches) * LAYERS * 4


def test_hidden_states_on_disk_give_the_same_values_and_are_removed(model: Path, tmp_path: Path) -> None:
    """More hidden states than host memory; files that fill a disk."""
    settings, texts = settings_for("bfloat16"), make_texts(24)
    expected = run_shard(model, settings, texts)
    written: list[int] = []
    for memory_bytes in (0, 20_000):
        model_pass = make_pass(model, settings, texts, tmp_path, split(0, 2, 3, 4), memory_bytes)
        values: Values = {}

        def consume(block: Block, values: Values = values) -> None:
            written.append(len(list(tmp_path.glob("*/*.safetensors"))))
            for pooled in block.pooled:
                for site, of_site in pooled.of_sites():
                    values[pooled.pooling, str(site)] = of_site.numpy().copy()

        model_pass.run(consume)
        assert_identical(values, expected)
    assert min(written) == 1
    assert not list(tmp_path.glob("*"))


def test_a_killed_pass_continues_at_its_last_block(model: Path, tmp_path: Path) -> None:
    """Hours of work of a large model on a small device, lost."""
    settings, texts = settings_for(), make_texts(24)
    expected = run_shard(model, settings, texts)
    blocks = split(0, 2, 3, 4)
    layers: list[range] = []

    def kill(block: Block) -> None:
        layers.append(block.layers)
        if block.layers.start == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make_pass(model, settings, texts, tmp_path, blocks, 0).run(kill)
    assert layers == [range(2), range(2, 3)]
    resumed = make_pass(model, settings, texts, tmp_path, blocks, 0)
    values = run_pass(resumed, missing=[2, 3])
    assert_identical(values, {key: of_site for key, of_site in expected.items() if key[1] > "L02"})


@pytest.mark.parametrize("damage", ["changed", "shorter", "missing", "no list"])
def test_hidden_states_that_are_lost_are_computed_again(
    model: Path, tmp_path: Path, damage: str
) -> None:
    """Activations of a model that read noise; or a stage that fails in every run until someone deletes
    a temporary file."""
    settings, texts = settings_for(), make_texts(24)
    expected = run_shard(model, settings, texts)
    blocks = split(0, 2, 4)

    def kill(_: Block) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make_pass(model, settings, texts, tmp_path, blocks, 0).run(kill)
    (file,) = tmp_path.glob("layer=2/*.safetensors")
    content = bytearray(file.read_bytes())
    content[-3] ^= 1
    if damage == "changed":
        file.write_bytes(content)
    elif damage == "shorter":
        file.write_bytes(content[:-3])
    elif damage == "missing":
        file.unlink()
    else:
        (tmp_path / "layer=2/complete.json").unlink()
    resumed = make_pass(model, settings, texts, tmp_path, blocks, 0)
    values = run_pass(resumed, missing=[2, 3])
    assert_identical(
        {key: values[key] for key in values if key[1] > "L02"},
        {key: of_site for key, of_site in expected.items() if key[1] > "L02"},
    )
    assert not list(tmp_path.glob("*"))
    if damage == "changed":
        (note,) = resumed.notes
        assert re.match(r"hidden states on disk were lost, and layers read again: .*is damaged", note)


def test_hidden_states_that_are_lost_again_and_again_are_an_error(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A broken disk, on which a pass begins again forever."""

    def lose(*_: object) -> torch.Tensor:
        raise SpoolError("layer=2/000000.safetensors: is damaged")

    monkeypatch.setattr(HiddenStateSpool, "get", lose)
    model_pass = make_pass(model, settings_for(), make_texts(6), tmp_path, split(0, 2, 4), 0)
    with pytest.raises(SpoolError, match="is damaged"):
        run_pass(model_pass)


def record_layers(monkeypatch: pytest.MonkeyPatch) -> list[range]:
    """The layers of the shards that are loaded from now on."""
    loaded: list[range] = []
    load = BlockShard.__init__

    def recorded(shard: BlockShard, *arguments: Any) -> None:
        load(shard, *arguments)
        loaded.append(shard.layers)

    monkeypatch.setattr(BlockShard, "__init__", recorded)
    return loaded


def test_layers_after_the_last_missing_one_are_not_read(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A complete model that is read again for a lost file of its first layer."""
    settings, texts = settings_for(), make_texts(12)
    expected = run_shard(model, settings, texts)
    loaded = record_layers(monkeypatch)
    for missing, blocks in (({0}, [range(1)]), ({0, 2}, [range(2), range(2, 3)])):
        values = run_pass(make_pass(model, settings, texts, tmp_path, split(0, 2, 4)), missing)
        assert loaded == blocks
        loaded.clear()
        for layer in missing:
            key = ("max", f"L{layer:02d}.mlp.hidden")
            assert np.array_equal(values[key], expected[key])


def test_progress_counts_what_was_read_and_nothing_twice(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bar that passes 100%, because a block was read again after memory ran out."""
    limit_memory(monkeypatch, layers=1, sentences=1000)
    model_pass = make_pass(model, settings_for(), make_texts(24), tmp_path, split(0, 4))
    counts: list[int] = []
    model_pass.run(lambda _: counts.append(model_pass.n_read))
    assert counts == [24, 48, 72, 96]
    assert model_pass.n_read == 24 * LAYERS
    model_pass = make_pass(model, settings_for(), make_texts(24), tmp_path, split(0, 1, 2, 3, 4))
    model_pass.run(lambda _: None, missing=[1, 3])
    assert model_pass.n_read == 24 * 2


def limit_memory(monkeypatch: pytest.MonkeyPatch, layers: int, sentences: int) -> None:
    """Let memory run out in blocks of more layers, or batches of more sentences."""
    run = BlockShard.run

    def limited(shard: BlockShard, batch: PaddedBatch, *arguments: Any) -> torch.Tensor:
        if len(shard.layers) > layers or len(batch.roles) > sentences:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.")
        return run(shard, batch, *arguments)

    monkeypatch.setattr(BlockShard, "run", limited)


def test_a_block_that_does_not_fit_is_divided(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pass that fails because the estimate of its memory was too low."""
    settings, texts = settings_for(), make_texts(24)
    expected = run_shard(model, settings, texts)
    limit_memory(monkeypatch, layers=1, sentences=1000)
    model_pass = make_pass(model, settings, texts, tmp_path, split(0, 4))
    assert_identical(run_pass(model_pass), expected)
    assert model_pass.notes == [
        "memory ran out in a block of 4 layers from layer 0 on; the rest ran in blocks of at most 2",
        "memory ran out in a block of 2 layers from layer 0 on; the rest ran in blocks of at most 1",
    ]


def test_a_batch_that_does_not_fit_is_divided(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same where a single layer is too much; and a pass that tries again forever."""
    settings, texts = settings_for(), make_texts(24)
    expected = run_shard(model, settings, texts)
    limit_memory(monkeypatch, layers=2, sentences=2)
    model_pass = make_pass(model, settings, texts, tmp_path, split(0, 1, 3, 4))
    actual = run_pass(model_pass)
    assert actual.keys() == expected.keys()
    for key, values in expected.items():
        np.testing.assert_allclose(actual[key], values, rtol=2e-3, atol=1e-5)
    assert model_pass.notes == [
        "memory ran out in layer 0; from there on, batches were run in 2 parts; bfloat16 values may "
        "differ in the last digit"
    ]
    limit_memory(monkeypatch, layers=0, sentences=0)
    with pytest.raises(torch.OutOfMemoryError):
        run_pass(make_pass(model, settings, texts, tmp_path))


def test_a_value_that_is_not_finite_is_named(model: Path, tmp_path: Path) -> None:
    """A NaN that is scored, or a search for it in a large model."""
    folder = tmp_path / "broken"
    folder.mkdir()
    for path in model.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    weights = load_file(folder / "model.safetensors")
    weights["model.layers.2.mlp.up_proj.weight"] *= 1e6
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    model_pass = make_pass(folder, settings_for(), make_texts(6), tmp_path, split(0, 2, 4))
    with pytest.raises(
        NeuralignError, match=r"^L02\.mlp\.hidden, pooling max, sentence 'The cat .*': .* NaN or exceeds"
    ):
        run_pass(model_pass)


def test_a_token_beyond_the_embeddings_is_refused(model: Path, tmp_path: Path) -> None:
    """An error of the device, which names no sentence."""
    model_pass = make_pass(model, settings_for(), make_texts(3), tmp_path)
    model_pass.sentences.tokens[1].ids[1] = 5000
    with pytest.raises(UserError, match=r"^the sentence 'Nobody .*' has token 5000, but"):
        run_pass(model_pass)


def test_the_first_block_gives_input_embeddings(model: Path, tmp_path: Path) -> None:
    """The baseline of input embeddings has no other source."""
    ids = [Tokenizer(model, 64).word_ids(word) for word in ("cat", "boat")]
    loaded: Any = AutoModelForCausalLM.from_pretrained(model)
    table = loaded.get_input_embeddings().weight.detach()
    found: list[Any] = []
    model_pass = make_pass(model, settings_for(), make_texts(3), tmp_path)
    model_pass.run(lambda block: found.append(block.embed_tokens(ids)))
    assert np.array_equal(found[0], torch.stack([table[word].mean(dim=0) for word in ids]).numpy())


GB = 10**9


def make_bytes(*layers: tuple[float, float], embeddings: float = 0) -> ModelBytes:
    """Sizes of layers in GB of weights, and in GB of pooled values per thousand sentences."""
    return ModelBytes(
        [LayerBytes(int(weights * GB), int(pooled * 1e6)) for weights, pooled in layers],
        int(embeddings * GB),
        token=1000,
    )


def test_blocks_are_few_and_even() -> None:
    """Weights that are read more often than needed, or a block that fills the device for nothing."""
    model = make_bytes(*[(1.0, 0.5)] * 16)
    for memory, n_blocks in ((100, 1), (20, 2), (11, 3), (2, 16)):
        blocks = plan_blocks(model, 1000, 1000, memory * GB)
        assert len(blocks) == n_blocks
        assert [layer for block in blocks for layer in block] == list(range(16))
        assert max(map(len, blocks)) - min(map(len, blocks)) <= 1
    assert len(plan_blocks(model, 0, 1000, 20 * GB)) == 1


def test_blocks_fit_layers_of_several_sizes_and_the_embeddings() -> None:
    """Blocks of equal numbers of layers, one of which does not fit."""
    model = make_bytes((1, 0), (1, 0), (4, 0), (4, 0), embeddings=7)
    assert plan_blocks(model, 1000, 1000, 11 * GB) == [range(2), range(2, 4)]
    model = make_bytes((1, 0), (1, 0), (1, 0), (5, 0), embeddings=1)
    assert plan_blocks(model, 1000, 1000, 6 * GB) == [range(3), range(3, 4)]


def test_blocks_leave_room_for_a_batch_and_for_what_uses_their_values() -> None:
    """Scoring that runs out of memory after the block has been read."""
    model = make_bytes(*[(1.0, 0)] * 4)
    assert len(plan_blocks(model, 0, 1000, 5 * GB)) == 1
    assert len(plan_blocks(model, 0, 1000, 5 * GB, consumer_bytes=2 * GB)) == 2
    assert len(plan_blocks(model, 0, 2_000_000, 5 * GB)) == 2
    assert len(plan_blocks(model, 0, 2_000_000, 5 * GB, consumer_bytes=2 * GB)) == 2
    assert len(plan_blocks(model, 0, 1000, 5 * GB, consumer_bytes=5 * GB)) == 4


def test_a_layer_that_does_not_fit_is_refused() -> None:
    """A pass that runs out of memory after an hour."""
    message = r"layer 1: .* of 1,000 sentences need 10.0 GB, but 8.0 GB are free"
    with pytest.raises(UserError, match=message):
        plan_blocks(make_bytes((1, 1), (6, 4)), 1000, 1024, 8 * GB)


def test_a_model_that_cannot_be_divided_must_fit(tmp_path: Path) -> None:
    """Blocks whose values differ from those of the complete model."""
    folder = plain_forward.save_model(tmp_path / "model", "gemma3n_text")
    settings = ActivationSettings("float32", "mlp", ["max"])
    assert plan_model(folder, settings, 10, 10, GB, 0) == [range(4)]
    measured = measure_model(folder, settings)
    weights = measured.embeddings + sum(layer.weights for layer in measured.layers)
    with pytest.raises(UserError, match=r"do not fit 0.0 GB, and it cannot be divided into blocks of"):
        plan_model(folder, settings, 10, 10, weights, 0)


def test_the_measured_bytes_are_those_of_the_loaded_model(model: Path) -> None:
    """A plan for another model."""
    shard = BlockShard(model, settings_for())
    measured = measure_model(model, settings_for())
    weights = sum(weights.nbytes for weights in shard.model.parameters())
    assert measured.embeddings + sum(layer.weights for layer in measured.layers) == weights
    pooled = sum(
        site.width * 2 if site in shard.sites else site.width * 4 for _, site in shard.pooled_dtypes
    )
    assert sum(layer.pooled for layer in measured.layers) == pooled


def test_the_next_block_is_read_from_disk_while_the_present_one_runs(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A device that waits for the disk before every block."""
    asked: Queue[range] = Queue()
    monkeypatch.setattr(model_pass_module, "read_ahead", lambda _, layers, __: asked.put(layers))
    blocks = split(0, 1, 3, 4)

    def consume(block: Block) -> None:
        if block.layers.stop < LAYERS:
            assert asked.get(timeout=10) == blocks[blocks.index(block.layers) + 1]

    make_pass(model, settings_for(), make_texts(3), tmp_path, blocks).run(consume)
    assert asked.empty()


def test_only_the_weights_of_the_next_block_are_read_ahead(model: Path) -> None:
    """Weights that are read twice, or none; or more than the memory that is free."""
    tensors = load_file(model / "model.safetensors")
    expected = sum(tensor.nbytes for name, tensor in tensors.items() if re.search(r"\.[12]\.", name))

    def count_read(memory: int) -> int:
        before = psutil.Process().io_counters().read_chars
        read_ahead(model, range(1, 3), memory)
        return psutil.Process().io_counters().read_chars - before

    header = 16_384
    assert expected > header
    assert expected <= count_read(expected) < expected + header
    assert count_read(expected - 1) < header
    read_ahead(model / "nowhere", range(1, 3), expected)


def test_weights_that_are_copied_in_parts_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """A part that is lost, or copied to another place."""
    monkeypatch.setattr(device_copy, "_PART_BYTES", 128)
    for dtype in (torch.float32, torch.bfloat16):
        for n_values in (1, 31, 32, 64, 1000):
            source = torch.randn(n_values).to(dtype)
            copied = torch.full_like(source, torch.nan)
            device_copy.copy_in_parts(source, copied, lambda part, out: out.copy_(part))
            assert torch.equal(copied, source)


class RecordedCopies:
    """Copies as to and from a CUDA device."""

    def __init__(self) -> None:
        self.steps: list[tuple[str, float]] = []

    def to_host(self, hidden: torch.Tensor) -> torch.Tensor:
        return hidden.clone()

    def to_device(self, host: torch.Tensor) -> tuple[torch.Tensor, str]:
        self.steps.append(("start", float(host[0])))
        return host.clone(), "event"

    def wait_for(self, hidden: torch.Tensor, _: str) -> torch.Tensor:
        self.steps.append(("wait", float(hidden[0])))
        return hidden


def test_hidden_states_of_the_next_batch_are_on_their_way(tmp_path: Path) -> None:
    """A device that waits for the bus before every batch, or gets another batch's hidden states."""
    spool = HiddenStateSpool(SpoolSettings(tmp_path, 1 << 20), 1, torch.device("cpu"))
    copies: Any = RecordedCopies()
    spool._copies = copies
    for batch in range(3):
        spool.put(batch, torch.full((2,), float(batch)))
    spool.finish()
    for _ in range(2):
        assert [float(spool.get(batch)[0]) for batch in range(3)] == [0, 1, 2]
    in_order = [("start", 0), ("start", 1), ("wait", 0), ("start", 2), ("wait", 1), ("wait", 2)]
    assert copies.steps == in_order * 2
    assert [float(spool.get(batch)[0]) for batch in (1, 0, 2)] == [1, 0, 2]
