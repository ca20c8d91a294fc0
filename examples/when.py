"""When do experts emerge? Trains a tiny GPT-NeoX from scratch, sweeps its checkpoints, and prints
alignment, experts and their stability over training.

    python examples/when.py                  # examples/when.yaml: a few minutes on 2 cores
    python examples/when.py SWEEP            # another sweep file

Checkpoints are saved in the folder of the sweep file's first model, at the steps that it lists as
revisions `step<N>`. The training text is the Wikipedia excerpt in gensim's package and the stories in
examples/men-core.csv; the sweep uses the facts, none of which the model was trained on.
"""

from __future__ import annotations

import argparse
import bz2
import csv
import re
import time
from collections.abc import Iterator
from pathlib import Path

import gensim
import numpy as np
import torch
from gensim.corpora.wikicorpus import extract_pages, filter_wiki
from rich.console import Console
from rich.table import Table
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM, PreTrainedTokenizerFast

from jobs import planner, sweep
from jobs.config.loader import read_sweep
from jobs.config.sweep import Sweep
from storage.database import open_store

HERE = Path(__file__).parent
CONCEPTS = HERE / "men-core.csv"
WIKIPEDIA = "test/test_data/enwiki-latest-pages-articles1.xml-p000000010p000030302-shortened.bz2"
END = "<|endoftext|>"
CONTEXT, BATCH = 64, 16
STORIES = 0.5
"""Share of stories in a batch; the rest is Wikipedia."""
LEARNING_RATE, WARM_UP = 2e-3, 20


def sentences(prompt: str) -> list[dict[str, str]]:
    """The demo's sentences of one kind: `story` or `fact`."""
    with CONCEPTS.open(encoding="utf-8", newline="") as file:
        return [row for row in csv.DictReader(file) if row["prompt"] == prompt]


def write_facts(file: Path) -> None:
    """Write the sentences held out of training as a concept set."""
    rows = sentences("fact")
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("w", encoding="utf-8", newline="") as out:
        writer = csv.DictWriter(out, rows[0])
        writer.writeheader()
        writer.writerows(rows)


def articles() -> list[str]:
    """Paragraphs of the Wikipedia articles in gensim's package."""
    with bz2.open(Path(gensim.__file__).parent / WIKIPEDIA) as file:
        pages = [filter_wiki(text) for _, text, _ in extract_pages(file)]
    lines = [re.sub(r"'{2,}|\s+", " ", line).strip() for page in pages for line in page.split("\n")]
    return [line for line in lines if len(line) > 80]


def train(folder: Path, steps: list[int], width: int, layers: int, vocabulary: int) -> None:
    """Train up to the last step and save a checkpoint at each step, printing the loss before it."""
    texts = [[row["text"] for row in sentences("story")], articles()]
    tokenizer = _tokenizer([text for source in texts for text in source], vocabulary)
    end = tokenizer.convert_tokens_to_ids(END)
    streams = [
        np.concatenate([[*ids, end] for ids in tokenizer(source)["input_ids"]]) for source in texts
    ]
    torch.manual_seed(0)
    model = GPTNeoXForCausalLM(
        GPTNeoXConfig(
            vocab_size=len(tokenizer),
            hidden_size=width,
            num_hidden_layers=layers,
            num_attention_heads=4,
            intermediate_size=4 * width,
            max_position_embeddings=2 * CONTEXT,
            bos_token_id=end,
            eos_token_id=end,
        )
    )
    optimizer = torch.optim.AdamW(model.parameters(), LEARNING_RATE, betas=(0.9, 0.95), weight_decay=0.1)
    last, started = max(steps), time.monotonic()
    for step, batch in enumerate(_batches(streams, last + 1)):
        loss = model(input_ids=batch, labels=batch).loss
        if step in steps:
            for path in (folder / f"step{step}", *([folder] if step == last else [])):
                model.save_pretrained(path)
                tokenizer.save_pretrained(path)
            print(f"step {step:5}  loss {loss.item():.2f}  {time.monotonic() - started:4.0f} s")
        rate = min(1, (step + 1) / WARM_UP) * (0.1 + 0.45 * (1 + np.cos(np.pi * step / (last + 1))))
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * rate
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()


def _batches(streams: list[np.ndarray], count: int) -> Iterator[torch.Tensor]:
    """Random windows of the streams, seeded."""
    random = np.random.default_rng(0)
    n_stories = int(BATCH * STORIES)
    for _ in range(count):
        rows = [
            stream[start : start + CONTEXT]
            for stream, n in zip(streams, (n_stories, BATCH - n_stories), strict=True)
            for start in random.integers(0, len(stream) - CONTEXT, n)
        ]
        yield torch.tensor(np.stack(rows))


def _tokenizer(texts: list[str], vocabulary: int) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary, special_tokens=[END], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END)


def print_training(config: Sweep) -> None:
    """Print the checkpoints in order of training, at AP > 0.5 and with `max` pooling."""
    with open_store(config.store_path) as connection:
        rows = connection.sql(
            """
            SELECT step, n_experts, stability, rho, ci_low, ci_high, auc, auc_low, auc_high
            FROM training JOIN hierarchy_summary
            USING (model, revision, concept_set, pooling, threshold, measure)
            WHERE pooling = 'max' AND threshold = 0.5 AND representation = 'experts'
            ORDER BY step
            """
        ).fetchall()
    table = Table(box=None, pad_edge=False)
    for name in ("step", "experts", "stability", "rho [95% CI]", "domain AUC [95% CI]"):
        table.add_column(name, justify="right")
    for step, experts, stability, *estimates in rows:
        rho, auc = _format_interval(*estimates[:3]), _format_interval(*estimates[3:])
        table.add_row(str(step), f"{experts:.0f}", _format(stability), rho, auc)
    console = Console(highlight=False)
    console.print(table)
    console.print(
        "experts: median number per concept. stability: mean Jaccard of a concept's experts with those "
        "of the previous checkpoint, over concepts with experts in both. rho: Spearman. "
        "domain AUC: probability that a within-domain pair is more similar than a between-domain pair."
    )


def _format_interval(value: float | None, low: float | None, high: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.2f} -" if low is None or high is None else f"{value:.2f} [{low:.2f}, {high:.2f}]"


def _format(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def main() -> None:
    """Train the model unless it exists, sweep its checkpoints, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("sweep", nargs="?", type=Path, default=HERE / "when.yaml")
    parser.add_argument("--width", type=int, default=96)
    parser.add_argument("--layers", type=int, default=3)
    parser.add_argument("--vocabulary", type=int, default=2048)
    arguments = parser.parse_args()
    config = read_sweep(arguments.sweep)
    model = config.models[0]
    source = config.folder / config.concepts[0].source
    if not source.is_file():
        write_facts(source)
    folder = config.folder / model.id
    if not (folder / "config.json").is_file():
        steps = sorted(int(revision.removeprefix("step")) for revision in model.revisions)
        train(folder, steps, arguments.width, arguments.layers, arguments.vocabulary)
    sweep.run(planner.plan_sweep(config))
    print_training(config)


if __name__ == "__main__":
    main()
