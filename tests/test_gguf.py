"""A converted GGUF model could have other weights or tokens than its file."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import AutoConfig, AutoTokenizer, Gemma3ForCausalLM, Gemma3TextConfig

from cluster.models import gguf
from cluster.models.gguf_header import read_header
from cluster.models.gguf_tokenizer import build_tokenizer
from cluster.models.weights import available_config, ensure_local, resolve
from storage.errors import UserError
from tests import gguf_files, tiny

TEXTS = [text for _, text in tiny.sentences()] + ["A <s> in a text", "  two  spaces, 2024 and 17"]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of converted models."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def metadata(tiny_model: Path) -> dict[str, Any]:
    return {
        **gguf_files.llama_metadata(tiny_model),
        **gguf_files.tokenizer_metadata(tiny_model / "tokenizer.json"),
        "tokenizer.ggml.add_bos_token": True,
    }


def convert(file: Path) -> Path:
    return ensure_local(resolve(str(file), "main", file.parent))


def error_message(file: Path) -> str:
    with pytest.raises(UserError) as caught:
        convert(file)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def token_ids(folder: Path) -> list[list[int]]:
    return [list(ids) for ids in AutoTokenizer.from_pretrained(folder)(TEXTS)["input_ids"]]


def assert_same_weights(folder: Path, expected: Path) -> None:
    tensors, originals = (
        load_file(folder / "model.safetensors"),
        load_file(expected / "model.safetensors"),
    )
    assert tensors.keys() == originals.keys()
    for name, tensor in originals.items():
        assert torch.equal(tensors[name], tensor.to(torch.bfloat16)), name


def test_a_converted_model_has_the_weights_and_tokens_of_its_file(
    tmp_path: Path, tiny_model: Path, metadata: dict[str, Any]
) -> None:
    """Without the BOS that the file asks for, the model would predict text far worse."""
    file = gguf_files.write(tmp_path / "a.gguf", metadata, gguf_files.llama_tensors(tiny_model))
    folder = convert(file)
    assert_same_weights(folder, tiny_model)
    assert token_ids(folder) == token_ids(tiny_model)
    assert token_ids(folder)[0][0] == 0
    metadata["tokenizer.ggml.add_bos_token"] = False
    file = gguf_files.write(tmp_path / "b.gguf", metadata, gguf_files.llama_tensors(tiny_model))
    assert token_ids(convert(file)) == [ids[1:] for ids in token_ids(tiny_model)]


def test_files_beside_a_gguf_file_are_not_read(
    tmp_path: Path, tiny_model: Path, metadata: dict[str, Any]
) -> None:
    """Another model's tokenizer settings in the same folder would be mixed in."""
    metadata["tokenizer.chat_template"] = "{{ messages[0].content }}"
    file = gguf_files.write(tmp_path / "a.gguf", metadata, gguf_files.llama_tensors(tiny_model))
    (tmp_path / "tokenizer_config.json").write_text('{"chat_template": "other", "bos_token": "cat"}')
    (tmp_path / "generation_config.json").write_text('{"temperature": 0.123}')
    folder = convert(file)
    assert AutoTokenizer.from_pretrained(folder).chat_template == "{{ messages[0].content }}"
    assert token_ids(folder) == token_ids(tiny_model)
    assert "0.123" not in (folder / "generation_config.json").read_text()


def test_a_model_in_parts_is_read_from_all_of_them(
    tmp_path: Path, tiny_model: Path, metadata: dict[str, Any]
) -> None:
    """The weights of the other parts would be random."""
    parts = gguf_files.write_parts(tmp_path, metadata, gguf_files.llama_tensors(tiny_model), 3)
    folders = [convert(part) for part in parts]
    assert len(set(folders)) == 1
    assert_same_weights(folders[0], tiny_model)
    assert token_ids(folders[0]) == token_ids(tiny_model)


def test_a_part_without_the_others_is_rejected(
    tmp_path: Path, tiny_model: Path, metadata: dict[str, Any], cache: Path
) -> None:
    parts = gguf_files.write_parts(tmp_path, metadata, gguf_files.llama_tensors(tiny_model), 2)
    renamed = Path(shutil.copy(parts[1], tmp_path / "renamed.gguf"))
    assert "is part 2 of a model in 2 files" in error_message(renamed)
    parts[0].unlink()
    assert "in 2 files, of which x-00001-of-00002.gguf is missing" in error_message(parts[1])
    assert not list(cache.rglob("*.safetensors"))


def test_a_missing_or_unused_weight_is_rejected_and_nothing_is_cached(
    tmp_path: Path, tiny_model: Path, metadata: dict[str, Any], cache: Path
) -> None:
    """A missing weight would be random in every later run, and an unused one would go unnoticed."""
    tensors = gguf_files.llama_tensors(tiny_model)
    extra = {**tensors, "blk.0.ffn_extra.weight": np.ones((4, 4), np.float32)}
    file = gguf_files.write(tmp_path / "extra.gguf", metadata, extra)
    assert " of LlamaForCausalLM; use the model's safetensors files" in error_message(file)
    down = tensors.pop("blk.1.ffn_down.weight")
    file = gguf_files.write(tmp_path / "missing.gguf", metadata, tensors)
    assert " of LlamaForCausalLM; download it again" in error_message(file)
    tensors["blk.1.ffn_other.weight"] = down
    file = gguf_files.write(tmp_path / "renamed.gguf", metadata, tensors)
    assert "first: model.layers.1.mlp.down_proj.weight" in error_message(file)
    assert not list(cache.rglob("*.safetensors"))


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("empty", "is not a valid GGUF file"),
        ("only magic bytes", "is not a valid GGUF file: its header is truncated"),
        ("cut in the header", "is not a valid GGUF file: its header is truncated"),
        ("cut in a tensor", "is truncated: it ends before tensor"),
        ("other bytes", "it does not start with GGUF"),
        ("clip", "cannot be converted: GGUF model with architecture clip is not supported"),
        ("pre-tokenizer", "its pre-tokenizer 'own' (tokenizer.ggml.pre) is not supported"),
        ("no pre-tokenizer", "its pre-tokenizer None (tokenizer.ggml.pre) is not supported"),
        ("no tokenizer", "has no tokenizer"),
        ("yarn", "its position embeddings are scaled (yarn)"),
        ("no BOS", "adds a bos token to texts, but names none"),
    ],
)
def test_an_unreadable_gguf_file_is_rejected_in_one_line(
    tmp_path: Path, tiny_model: Path, metadata: dict[str, Any], kind: str, message: str
) -> None:
    """A damaged file would end in an error of the libraries below."""
    tensors, file, architecture = gguf_files.llama_tensors(tiny_model), tmp_path / "a.gguf", "llama"
    if kind == "clip":
        architecture = "clip"
    elif kind == "pre-tokenizer":
        metadata["tokenizer.ggml.pre"] = "own"
    elif kind == "no pre-tokenizer":
        del metadata["tokenizer.ggml.pre"]
    elif kind == "no tokenizer":
        metadata = gguf_files.llama_metadata(tiny_model)
    elif kind == "yarn":
        metadata["llama.rope.scaling.type"] = "yarn"
    elif kind == "no BOS":
        del metadata["tokenizer.ggml.bos_token_id"]
    content = gguf_files.write(file, metadata, tensors, architecture).read_bytes()
    lengths = {"empty": 0, "only magic bytes": 4, "cut in the header": 2000, "cut in a tensor": -100}
    if kind in lengths:
        file.write_bytes(content[: lengths[kind]])
    elif kind == "other bytes":
        file.write_bytes(b"PK" + content[2:])
    assert message in error_message(file)


def test_a_conversion_of_an_earlier_version_is_not_reused(
    tmp_path: Path, tiny_model: Path, metadata: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model that an earlier version converted wrongly would be used again."""
    file = gguf_files.write(tmp_path / "a.gguf", metadata, gguf_files.llama_tensors(tiny_model))
    weights = resolve(str(file), "main", tmp_path)
    folder = ensure_local(weights)
    monkeypatch.setattr(gguf, "CONVERSION", gguf.CONVERSION + 1)
    later = resolve(str(file), "main", tmp_path)
    assert later.identity != weights.identity
    assert available_config(later) == {}
    assert ensure_local(later) != folder


def _train(pre: Any, **options: Any) -> Tokenizer:
    """A tokenizer whose merges may include any neighbors, so that splits matter."""
    tokenizer = Tokenizer(models.BPE(**options))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=500, special_tokens=["<s>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(["in 2024 and 17", "2024 cats", *TEXTS] * 3, trainer)
    tokenizer.pre_tokenizer = pre
    return tokenizer


DIGITS = pre_tokenizers.Sequence(
    [pre_tokenizers.Digits(True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
)


@pytest.mark.parametrize(
    ("pre", "expected"), [("smollm", DIGITS), ("gpt-2", pre_tokenizers.ByteLevel(False))]
)
def test_words_are_split_as_the_file_names_it(
    tmp_path: Path, tiny_model: Path, metadata: dict[str, Any], pre: str, expected: Any
) -> None:
    """Numbers would be other tokens than those that the model was trained on."""
    original = _train(expected)
    original.save(str(tmp_path / "tokenizer.json"))
    metadata |= gguf_files.tokenizer_metadata(tmp_path / "tokenizer.json", pre=pre)
    metadata |= {"tokenizer.ggml.add_bos_token": False}
    header = read_header([gguf_files.write(tmp_path / "a.gguf", metadata, {})])
    tokenizer = build_tokenizer(header)
    expected_ids = [original.encode(text).ids for text in TEXTS]
    assert [list(ids) for ids in tokenizer(TEXTS)["input_ids"]] == expected_ids


def test_a_vocabulary_of_whole_words_is_used_before_its_merges(
    tmp_path: Path, metadata: dict[str, Any]
) -> None:
    """Llama 3 has words that no merges make; they would be split."""
    trained = _train(pre_tokenizers.ByteLevel(add_prefix_space=False))
    trained.save(str(tmp_path / "tokenizer.json"))
    content = json.loads((tmp_path / "tokenizer.json").read_text())
    content["model"]["vocab"]["Every"] = len(content["model"]["vocab"])
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    metadata |= gguf_files.tokenizer_metadata(tmp_path / "tokenizer.json", pre="llama-bpe")
    del metadata["tokenizer.ggml.add_bos_token"]
    header = read_header([gguf_files.write(tmp_path / "a.gguf", metadata, {})])
    ids = build_tokenizer(header)("Every cat")["input_ids"]
    # Files of Llama 3 without the setting begin texts with a BOS.
    assert ids[:2] == [0, content["model"]["vocab"]["Every"]]


@pytest.mark.parametrize("has_space_prefix", [True, False])
def test_a_sentencepiece_vocabulary_has_a_space_prefix_only_if_the_file_says_so(
    tmp_path: Path, metadata: dict[str, Any], has_space_prefix: bool
) -> None:
    """The first word of a text would be another token."""
    tokens = ["<s>", "<unk>", "▁", "a", "b", "▁a", "ab", "▁ab"]
    settings = {
        "model": "llama",
        "tokens": tokens,
        "scores": [0.0] * 5 + [-1.0, -2.0, -3.0],
        "token_type": [3, 2, *[1] * 6],
        "bos_token_id": 0,
        "unknown_token_id": 1,
        "add_space_prefix": has_space_prefix,
    }
    names = ["tokenizer.ggml." + name for name in settings]
    metadata = {
        **_without_tokenizer(metadata),
        **dict(zip(names, settings.values(), strict=True)),
    }
    header = read_header([gguf_files.write(tmp_path / "a.gguf", metadata, {})])
    tokenizer = build_tokenizer(header)
    tokenizer.save_pretrained(tmp_path / "saved")
    for loaded in (tokenizer, AutoTokenizer.from_pretrained(tmp_path / "saved")):
        first = loaded("ab a")["input_ids"]
        assert loaded.convert_ids_to_tokens(first) == ["<s>", "▁ab" if has_space_prefix else "ab", "▁a"]


@pytest.mark.parametrize("adds_bos", [True, None, False])
def test_a_converted_gemma_begins_texts_as_its_file_says(tmp_path: Path, adds_bos: bool | None) -> None:
    """Gemma 3 predicts text far worse without its BOS."""
    config = Gemma3TextConfig(
        vocab_size=12,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        max_position_embeddings=64,
    )
    Gemma3ForCausalLM(config).save_pretrained(tmp_path / "original")
    tokens = ["<pad>", "<eos>", "<bos>", "<unk>", "<turn>", "▁", "a", "b", "▁a", "ab", "▁ab", "\n"]
    settings = {
        "model": "llama",
        "pre": "default",
        "tokens": tokens,
        "scores": [-float(number) for number in range(len(tokens))],
        "token_type": [3, 3, 3, 2, 4, *[1] * 7],
        "bos_token_id": 2,
        "eos_token_id": 1,
        "unknown_token_id": 3,
        "padding_token_id": 0,
        "add_space_prefix": False,
        **({} if adds_bos is None else {"add_bos_token": adds_bos}),
    }
    metadata = gguf_files.gemma_metadata(tmp_path / "original")
    metadata |= {f"tokenizer.ggml.{name}": value for name, value in settings.items()}
    tensors = gguf_files.gemma_tensors(tmp_path / "original")
    folder = convert(gguf_files.write(tmp_path / "a.gguf", metadata, tensors, "gemma3"))
    assert_same_weights(folder, tmp_path / "original")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    # In SentencePiece vocabularies, a BOS is the default.
    bos = [] if adds_bos is False else ["<bos>"]
    ids = tokenizer("ab a<turn>b")["input_ids"]
    assert tokenizer.convert_ids_to_tokens(ids) == [*bos, "ab", "▁a", "<turn>", "b"]
    assert tokenizer.all_special_ids == [2, 1, 3, 0]


def _without_tokenizer(metadata: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in metadata.items() if not key.startswith("tokenizer.")}


def test_special_tokens_outside_the_byte_alphabet_keep_their_ids(
    tmp_path: Path, tiny_model: Path, metadata: dict[str, Any]
) -> None:
    """DeepSeek's special tokens would be cut into pieces, or get ids that the model lacks."""
    tokens = metadata["tokenizer.ggml.tokens"]
    tokens[0] = "<▁begin▁>"
    tokens[-1] = "<▁User▁>"
    metadata["tokenizer.ggml.token_type"][-1] = 4
    kept = [merge for merge in metadata["tokenizer.ggml.merges"] if merge.replace(" ", "") in tokens]
    metadata["tokenizer.ggml.merges"] = kept
    header = read_header([gguf_files.write(tmp_path / "a.gguf", metadata, {})])
    tokenizer = build_tokenizer(header)
    ids = tokenizer("<▁User▁>cat")["input_ids"]
    assert (tokenizer.bos_token_id, ids[:2]) == (0, [0, len(tokens) - 1])


def test_the_rotary_scaling_of_llama3_is_recovered_from_its_divisors(
    tmp_path: Path, tiny_model: Path, metadata: dict[str, Any]
) -> None:
    """Positions would be encoded in another way than in training."""
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    folder = Path(shutil.copytree(tiny_model, tmp_path / "llama3"))
    config = AutoConfig.from_pretrained(folder)
    metadata["llama.rope.freq_base"] = 500000.0
    plain = 500000.0 ** -(np.arange(0, 8, 2) / 8)
    config.rope_parameters = {
        "rope_type": "llama3",
        "rope_theta": 500000.0,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](config, "cpu")
    divisors = (plain / scaled.numpy()).astype(np.float32)
    assert divisors.max() > 1
    tensors = gguf_files.llama_tensors(tiny_model) | {"rope_freqs.weight": divisors}
    converted = convert(gguf_files.write(tmp_path / "a.gguf", metadata, tensors))
    assert AutoConfig.from_pretrained(converted).rope_parameters == config.rope_parameters
    tensors["rope_freqs.weight"] = divisors[::-1].copy()
    other = gguf_files.write(tmp_path / "b.gguf", metadata, tensors)
    assert "rope_freqs.weight is not a scaling of Llama 3" in error_message(other)
