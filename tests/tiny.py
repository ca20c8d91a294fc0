"""A tiny causal language model with random weights, and a tiny concept set, both generated."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    BertConfig,
    BertModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

ENCODER_POOLINGS = ("cls_token", "mean_tokens", "max_tokens", "lasttoken", "weightedmean_tokens")

CONCEPTS = {
    "cat": "animal",
    "dog": "animal",
    "cow": "animal",
    "car": "vehicle",
    "bus": "vehicle",
    "boat": "vehicle",
}
_TEMPLATES = [
    "The {} was seen near the old mill this morning.",
    "Nobody knows why a {} would come here at night!",
    "My aunt drew one {} and sold the picture.",
    "We waited, and then the {} came round the corner at last.",
    "Is that your {} or mine?",
    "Every {} has its own way of making noise on a wet road.",
]
PAIR_SCORES = [
    ("cat", "dog", 9.0),
    ("cat", "cow", 6.0),
    ("dog", "cow", 6.5),
    ("car", "bus", 8.0),
    ("bus", "boat", 5.5),
    ("car", "boat", 5.0),
    ("cat", "car", 1.0),
    ("dog", "bus", 1.5),
    ("cow", "boat", 0.5),
    ("cat", "bus", 1.2),
    ("dog", "boat", 2.0),
    ("cow", "car", 0.7),
]


def sentences() -> list[tuple[str, str]]:
    """(concept, sentence) pairs of the tiny concept set."""
    return [(name, frame.format(name)) for name in CONCEPTS for frame in _TEMPLATES]


def make_model(folder: Path, layers: int = 3, seed: int = 0) -> Path:
    """Save a llama with random weights, whose tokenizer prepends a BOS and has no pad token."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([text for _, text in sentences()], trainer)
    tokenizer.post_processor = processors.Sequence(
        [
            processors.ByteLevel(trim_offsets=False),
            processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)]),
        ]
    )
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>")
    fast.save_pretrained(folder)
    config = LlamaConfig(
        vocab_size=fast.vocab_size,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        initializer_range=0.3,
        bos_token_id=0,
        eos_token_id=None,
        pad_token_id=None,
    )
    torch.manual_seed(seed)
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def make_encoder(folder: Path, pooling: str = "mean_tokens", normalize: bool = True) -> Path:
    """Save a sentence encoder with random weights in the layout of sentence-transformers."""
    model = make_model(folder / "tokens")
    fast = PreTrainedTokenizerFast.from_pretrained(model, pad_token="<s>")
    fast.save_pretrained(folder)
    config = BertConfig(
        vocab_size=fast.vocab_size,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=64,
        initializer_range=0.5,
    )
    torch.manual_seed(1)
    BertModel(config).save_pretrained(folder)
    kinds = ["Transformer", "Pooling", *(["Normalize"] if normalize else [])]
    modules = [
        {"path": f"{number}_{kind}" if number else "", "type": f"sentence_transformers.models.{kind}"}
        for number, kind in enumerate(kinds)
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "sentence_bert_config.json").write_text('{"max_seq_length": 20, "do_lower_case": false}')
    (folder / "1_Pooling").mkdir(exist_ok=True)
    modes = {f"pooling_mode_{mode}": mode == pooling for mode in ENCODER_POOLINGS}
    (folder / "1_Pooling/config.json").write_text(json.dumps({"word_embedding_dimension": 16, **modes}))
    return folder


def write_sweep(folder: Path, model: str = "model", extra: str = "") -> Path:
    """Write a sweep of the tiny model, concept set and human scores; returns the sweep file."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = [f"{name},{CONCEPTS[name]},{text!r}" for name, text in sentences()]
    quoted = [row.replace("'", '"') for row in rows]
    (folder / "concepts.csv").write_text("\n".join(["concept,domain,text", *quoted]) + "\n")
    pairs = [f"{first},{second},{score}" for first, second, score in PAIR_SCORES]
    (folder / "human.csv").write_text("\n".join(["a,b,score", *pairs]) + "\n")
    file = folder / "sweep.yaml"
    file.write_text(
        f"concepts: concepts.csv\nmodels: [{{id: {model}, dtype: float32}}]\n"
        "human: [{name: mine, path: human.csv}]\n"
        "neurons: {pooling: [max, concept, context]}\n" + extra
    )
    return file
