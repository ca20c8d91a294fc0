"""Reading all neurons of Pythia-1b on one GPU, against its model alone in the same process.

`python -m benchmarks.gpu.capture` needs neither a network nor weights: they are random. Without a GPU it
runs a tiny model, which only proves that it runs.
"""

from __future__ import annotations

import time

_STARTED = time.perf_counter()

import gc  # noqa: E402
import sys  # noqa: E402
import tempfile  # noqa: E402
from collections.abc import Callable, Iterator  # noqa: E402
from contextlib import contextmanager  # noqa: E402
from dataclasses import dataclass  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Any  # noqa: E402

import numpy as np  # noqa: E402
import torch  # noqa: E402
from safetensors.torch import save_file  # noqa: E402
from transformers import AutoModel, GPTNeoXConfig, GPTNeoXForCausalLM  # noqa: E402
from transformers.utils import logging  # noqa: E402

from cluster.activations import pooling  # noqa: E402
from cluster.activations.batching import batch_sentences, pad  # noqa: E402
from cluster.activations.block_plan import split_evenly  # noqa: E402
from cluster.activations.block_shard import BlockShard  # noqa: E402
from cluster.activations.max_pooling import CompiledMaxPooler, TorchMaxPooler  # noqa: E402
from cluster.activations.model_pass import Block, ModelPass  # noqa: E402
from cluster.activations.pooling_shard import PAD_ID, ActivationSettings  # noqa: E402
from cluster.activations.sentence_set import SentenceSet  # noqa: E402
from cluster.activations.spool import HiddenStateSpool, SpoolSettings  # noqa: E402
from cluster.models.tokenizer import Text, TokenizedText  # noqa: E402

DEMO_SENTENCES = 2624
BUDGETS = (1024, 4096, 16_384, 32_768)
BUDGET = 16_384
ALL = ["max", "concept", "context"]
_ROUNDS = 2
_PROFILED = 20
_CONCEPTS = 82


@dataclass(frozen=True)
class Scale:
    """What is run: on a GPU the model of the table in the docs, on a CPU a tiny one."""

    device: str
    config: GPTNeoXConfig
    copies: int

    @property
    def sentences(self) -> int:
        """Number of sentences of the demo, several times over."""
        return DEMO_SENTENCES * self.copies


def choose_scale() -> Scale:
    """Pythia-1b with the demo's sentences eight times over, or a tiny model."""
    shared: dict[str, Any] = {"rotary_pct": 0.25, "use_parallel_residual": True, "dtype": "bfloat16"}
    if torch.cuda.is_available():
        config = GPTNeoXConfig(
            num_hidden_layers=16,
            hidden_size=2048,
            intermediate_size=8192,
            num_attention_heads=8,
            vocab_size=50_304,
            max_position_embeddings=2048,
            **shared,
        )
        return Scale("cuda", config, 8)
    config = GPTNeoXConfig(
        num_hidden_layers=4,
        hidden_size=32,
        intermediate_size=64,
        num_attention_heads=4,
        vocab_size=512,
        max_position_embeddings=64,
        **shared,
    )
    return Scale("cpu", config, 1)


def write_model(folder: Path, config: GPTNeoXConfig, device: str) -> Path:
    """Write a model of random weights, without its head."""
    with torch.device("meta"):
        model = GPTNeoXForCausalLM(config)
    torch.manual_seed(0)
    weights = {}
    for name, parameter in model.named_parameters():
        if name.startswith("gpt_neox."):
            values = torch.randn(parameter.shape, dtype=torch.bfloat16, device=device) * 0.02
            weights[name] = (values + ("norm" in name and name.endswith("weight"))).cpu()
    config.architectures = ["GPTNeoXForCausalLM"]
    config.save_pretrained(folder)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    return folder


def make_sentences(count: int, vocabulary: int) -> SentenceSet:
    """Sentences of 12 to 24 random tokens with a word of one or two of them."""
    random = np.random.default_rng(0)
    tokens = []
    for length in random.integers(12, 25, count):
        first = random.integers(1, length - 2)
        is_word = np.zeros(length, bool)
        is_word[first : first + random.integers(1, 3)] = True
        ids = random.integers(1, vocabulary, length).tolist()
        tokens.append(TokenizedText(ids, [True] * int(length), is_word.tolist(), False))
    return SentenceSet([Text(f"sentence {number}", []) for number in range(count)], tokens)


class Bench:
    """The model, the sentences and the best rate of the bare model."""

    def __init__(self, scale: Scale, folder: Path) -> None:
        self.scale, self.device = scale, torch.device(scale.device)
        self.folder = write_model(folder / "model", scale.config, scale.device)
        self.sentences = make_sentences(scale.sentences, scale.config.vocab_size)
        self.spool = SpoolSettings(folder / "spool", 32 << 30)
        self.best_bare = 0.0

    def synchronize(self) -> None:
        """Wait for the device."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def rate(
        self, run: Callable[[], Any], rounds: int = _ROUNDS, n_sentences: int | None = None
    ) -> float:
        """Sentences per second in the best of some rounds, after a first that is not counted; of all
        sentences unless their number is given."""
        best = np.inf
        for number in range(rounds + 1):
            self.synchronize()
            started = time.perf_counter()
            run()
            self.synchronize()
            if number:
                best = min(best, time.perf_counter() - started)
        return (n_sentences or self.scale.sentences) / best

    def report(self, name: str, rate: float) -> None:
        """Print a row of the table."""
        memory = torch.cuda.max_memory_allocated() / 1e9 if self.device.type == "cuda" else 0.0
        print(f"{name:58} {rate:9,.0f} {rate / self.best_bare:7.2f} {memory:8.1f}", flush=True)
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()

    def bare(self) -> None:
        """The model's body alone, with batches of several sizes, as the passes make them."""
        model = AutoModel.from_pretrained(self.folder, dtype=torch.bfloat16).eval().to(self.device)
        rates = {}
        for budget in BUDGETS:
            batches = [
                pad([self.sentences.tokens[row] for row in rows], PAD_ID, self.device)
                for rows in batch_sentences(self.sentences.lengths, budget)
            ]

            def run(batches: Any = batches) -> None:
                with torch.inference_mode():
                    for batch in batches:
                        model(batch.ids, attention_mask=batch.attention, use_cache=False)

            rates[budget] = self.rate(run)
        self.best_bare = max(rates.values())
        for budget, rate in rates.items():
            self.report(f"bare body, batches of {budget:,} tokens", rate)

    def settings(self, poolings: list[str], has_states: bool = False) -> ActivationSettings:
        """Settings of a pass over all MLP neurons."""
        return ActivationSettings("bfloat16", "mlp", poolings, include_hidden_states=has_states)

    def start(self) -> None:
        """Seconds from the start of the process until the first block has run."""
        settings = self.settings(ALL)
        few = SentenceSet(self.sentences.texts[:64], self.sentences.tokens[:64])
        written = time.perf_counter()
        ModelPass(
            self.folder, settings, few, BUDGET, self.spool, self.scale.device, [self.layers()]
        ).run(lambda _: self.synchronize())
        loaded = time.perf_counter()
        print(
            f"imports and random weights {written - _STARTED:.1f} s; from then to the first 64 "
            f"sentences {loaded - written:.1f} s",
            flush=True,
        )

    def layers(self) -> range:
        """All layers."""
        return range(self.scale.config.num_hidden_layers)

    def capture(
        self, name: str, settings: ActivationSettings, budget: int = BUDGET, n_blocks: int = 1
    ) -> None:
        """Passes over loaded blocks; what a consumer would do is left out."""
        blocks = split_evenly(self.layers(), n_blocks)
        # Earlier shards' hooks refer to them.
        gc.collect()
        model_pass = ModelPass(
            self.folder, settings, self.sentences, budget, self.spool, self.scale.device, blocks
        )
        shards = [BlockShard(self.folder, settings, block, self.scale.device) for block in blocks]

        def run() -> None:
            incoming = None
            for shard in shards:
                outgoing = (
                    None
                    if shard.is_last
                    else HiddenStateSpool(self.spool, shard.layers.stop, self.device)
                )
                model_pass.read_block(shard, incoming, outgoing)
                incoming = outgoing

        self.report(name, self.rate(run))

    def profile(self) -> None:
        """Print the kernels that take most of the device's time in one pass."""
        settings = self.settings(ALL, True)
        shard = BlockShard(self.folder, settings, None, self.scale.device)
        model_pass = ModelPass(
            self.folder, settings, self.sentences, BUDGET, self.spool, self.scale.device
        )
        model_pass.read_block(shard)
        self.synchronize()
        activities = [torch.profiler.ProfilerActivity.CPU]
        if self.device.type == "cuda":
            activities.append(torch.profiler.ProfilerActivity.CUDA)
        with torch.profiler.profile(activities=activities) as profiler:
            model_pass.read_block(shard)
            self.synchronize()
        rows = [(row.self_device_time_total, row.count, row.key) for row in profiler.key_averages()]
        total = sum(microseconds for microseconds, _, _ in rows) / 1e3
        print(f"device time of one pass with hidden states: {total:.1f} ms")
        for microseconds, count, name in sorted(rows, reverse=True)[:_PROFILED]:
            print(f"{microseconds / 1e3:9.2f} ms {count:6} x {name[:100]}")

    def score(self, n_sentences: int) -> None:
        """A pass whose values are scored where they are, for as many concepts as the demo's."""
        from alignment.expertise.label_permutations import permute_labels
        from alignment.expertise.labels import labels_against_others
        from alignment.expertise.scoring import REFERENCE_PREVALENCE
        from alignment.expertise.scoring_torch import BlockScorer

        settings = self.settings(ALL)
        sentences = SentenceSet(self.sentences.texts[:n_sentences], self.sentences.tokens[:n_sentences])
        # earlier shards' hooks refer to them
        gc.collect()
        model_pass = ModelPass(self.folder, settings, sentences, BUDGET, self.spool, self.scale.device)
        shard = BlockShard(self.folder, settings, None, self.scale.device)
        rate = self.rate(lambda: model_pass.read_block(shard), 2, n_sentences)
        self.report(f"max, concept, context; {n_sentences:,} sentences", rate)
        numbers = np.arange(n_sentences)
        labels = labels_against_others(numbers, numbers % _CONCEPTS, n_sentences, _CONCEPTS)
        for n_permutations in (0, 19):
            permutations = permute_labels(labels, n_permutations, 0)
            scorer = BlockScorer([labels], permutations, REFERENCE_PREVALENCE, self.scale.device)

            def run(scorer: BlockScorer = scorer) -> None:
                for pooled in model_pass.read_block(shard).pooled:
                    scorer.score(pooled.values, 0.5)

            scored = f"and scored for {_CONCEPTS} concepts, {n_permutations} permutations"
            self.report(f"  {scored}", self.rate(run, 2, n_sentences))

    def whole_pass(self) -> None:
        """A pass as a stage would run it, with the loading of the weights."""
        seconds: list[float] = []
        settings = self.settings(ALL)

        def consume(_: Block) -> None:
            self.synchronize()
            seconds.append(time.perf_counter())

        started = time.perf_counter()
        model_pass = ModelPass(
            self.folder, settings, self.sentences, BUDGET, self.spool, self.scale.device
        )
        model_pass.run(consume)
        print(
            f"complete pass with planning and loading: {seconds[-1] - started:.1f} s, {len(seconds)} "
            f"blocks; notes: {model_pass.notes}",
            flush=True,
        )


@contextmanager
def without_triton() -> Iterator[None]:
    """Let maxima be pooled by torch."""
    original = pooling.find_triton_problem
    pooling.find_triton_problem = lambda _: "switched off"  # type: ignore[assignment]
    try:
        yield
    finally:
        pooling.find_triton_problem = original


def check_poolers(device: torch.device) -> None:
    """Compare the device's poolers with the compiled one of the CPU on random values."""
    random = np.random.default_rng(0)
    for dtype in (torch.bfloat16, torch.float32):
        roles = random.integers(-1, 2, (75, 19)).astype(np.int8)
        roles[:, 0] = 1
        hidden = torch.randn(75, 19, 300).to(dtype)
        hidden[3, 0, 5] = torch.nan
        poolers = {"torch": TorchMaxPooler(roles, ALL, device)}
        if device.type == "cuda":
            poolers["chosen"] = pooling.make_max_pooler(roles, ALL, device)  # type: ignore[assignment]
        expected = torch.empty(3, 300, 80, dtype=torch.float16)[:, :, :75]
        CompiledMaxPooler(roles, ALL).write(hidden, expected)
        for name, pooler in poolers.items():
            actual = torch.empty(3, 300, 80, dtype=torch.float16, device=device)[:, :, :75]
            pooler.write(hidden.to(device), actual)
            is_equal = torch.equal(actual.cpu().nan_to_num(7), expected.nan_to_num(7))
            print(f"{type(pooler).__name__} ({name}), {dtype}: equal to the CPU's maxima: {is_equal}")


def main() -> None:
    """Print the table, or with the argument `blocks` the benchmark of several blocks."""
    if sys.argv[1:] == ["blocks"]:
        from benchmarks.gpu import blocks

        blocks.main()
        return
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    scale = choose_scale()
    with tempfile.TemporaryDirectory() as name:
        bench = Bench(scale, Path(name))
        bench.start()
        if scale.device == "cuda":
            problem = pooling.find_triton_problem(bench.device)
            print(torch.cuda.get_device_name(), torch.__version__, f"Triton: {problem or 'used'}")
        check_poolers(bench.device)
        print(
            f"{scale.sentences:,} sentences of 12 to 24 tokens, {scale.config.num_hidden_layers} layers"
        )
        print(f"{'':58} {'sent./s':>9} {'of bare':>7} {'peak GB':>8}")
        bench.bare()
        for budget in BUDGETS[1:]:
            bench.capture(f"max, concept, context; {budget:,} tokens", bench.settings(ALL), budget)
        bench.capture("the same and hidden states", bench.settings(ALL, True))
        bench.capture("max alone", bench.settings(["max"]))
        bench.capture("max, concept, context; 4 blocks", bench.settings(ALL), n_blocks=4)
        with without_triton():
            bench.capture("max, concept, context; pooled by torch", bench.settings(ALL))
        bench.whole_pass()
        bench.profile()
        for n_sentences in sorted({DEMO_SENTENCES, scale.sentences}):
            bench.score(n_sentences)


if __name__ == "__main__":
    main()
