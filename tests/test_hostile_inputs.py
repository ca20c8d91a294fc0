"""Inputs that were misread, or ended in a traceback: each is read rightly or refused in one line."""

from __future__ import annotations

import io
import json
import math
import os
import shutil
import signal
import struct
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from safetensors import safe_open
from transformers import AutoModelForCausalLM

from cluster.models.sparse_autoencoder import SparseAutoencoder
from cluster.models.weights import available_config, ensure_local, resolve
from jobs.config.loader import read_sweep
from storage.errors import UserError
from storage.readers.concepts import read_concepts
from storage.readers.corpus import UnreadableLines, find_files, read_chunks
from storage.readers.human import HumanSet, read_items, read_pairs, read_triplets
from storage.readers.number_files import read_numbers
from storage.readers.word_vectors import read_vectors
from tests import gguf_files, tiny
from tests.commands import neuralign, process

SWEEP = "concepts: a.csv\nmodels: [a]\n"
BINARY = b"2 2\n" + b"".join(
    word + b" " + struct.pack("<2f", *numbers) for word, numbers in ((b"cat", (1, 2)), (b"dog", (3, 4)))
)
"""Word vectors in word2vec's binary format."""


def refusal(call: Callable[..., Any], *arguments: Any) -> str:
    with pytest.raises(UserError) as caught:
        call(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def refuse_sweep(folder: Path, text: str) -> str:
    (folder / "sweep.yaml").write_text(text)
    return refusal(read_sweep, folder / "sweep.yaml")


# --- read wrongly


@pytest.mark.parametrize("header", ["", "2 3\n"])
def test_a_row_with_another_number_of_numbers_is_no_word_vector(tmp_path: Path, header: str) -> None:
    """A single number was spread over the whole vector."""
    (tmp_path / "v.txt").write_text(f"{header}cat 1 2 3\ndog 7\n")
    assert "has 1 numbers, expected 3" in refusal(read_vectors, tmp_path / "v.txt", ["cat", "dog"])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"cat 1_0 2\ndog 1 2\n", "v.txt: line 1: the value is '1_0'; expected a number"),
        (b"2 2\ncat nan 2\ndog 1 2\n", "v.txt: line 2: the value is 'nan'; expected a number"),
        (b"cat 1e60 2\ndog 1 2\n", "v.txt: the vector of 'cat' is not finite in float32"),
        (b"cat 1 2\ndog 1 2\ncat 2 1\n", "v.txt: has two vectors of 'cat'"),
        (b"1 2\ncat 1 2\ndog 1 2\n", "it has 2 words, but its first line says 1"),
        (b"3 2\ncat 1 2\n\ndog 1 2\n", "it has 2 words, but its first line says 3"),
        (BINARY.replace(struct.pack("<f", 1), struct.pack("<f", math.inf)), "'cat' is not finite"),
        (BINARY + BINARY[4:], "it has more than the 2 words that its first line says"),
        (BINARY[:-3], "row 2 of 2 is incomplete"),
        (BINARY.replace(b"2 2", b"2 99999999999"), "expected 1 to 65,536"),
        (BINARY.replace(b"dog", b"cat"), "has two vectors of 'cat'"),
    ],
)
def test_a_wrong_word_vector_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    """1_0 was read as 10, and the first of two vectors and the announced rows only were used."""
    (tmp_path / "v.txt").write_bytes(content)
    assert message in refusal(read_vectors, tmp_path / "v.txt", ["cat", "dog"])


@pytest.mark.parametrize("content", [b"c\xe9at 1 2\ndog 3 4\n", BINARY.replace(b"cat", b"c\xe9at")])
def test_a_word_in_another_encoding_is_another_word(tmp_path: Path, content: bytes) -> None:
    """Without the byte that is not UTF-8, it gave its vector to another word."""
    (tmp_path / "v.txt").write_bytes(content)
    assert list(read_vectors(tmp_path / "v.txt", ["cat", "dog"])) == ["dog"]


def test_two_features_of_one_name_are_refused(tmp_path: Path) -> None:
    """A feature that was written twice counts twice."""
    (tmp_path / "f.csv").write_text("item,legs,legs\ncat,4,4\ndog,4,1\n")
    human = HumanSet("mine", tmp_path / "f.csv", "features", ())
    assert "duplicate column 'legs'" in refusal(read_items, human)
    (tmp_path / "long.csv").write_text("item,feature,n\ncat,legs,4\ndog,legs,4\ncat,legs,4\n")
    human = HumanSet("mine", tmp_path / "long.csv", "features", ("item", "feature", "n"))
    message = refusal(read_items, human)
    assert message.endswith("long.csv: line 4: the feature 'legs' of 'cat' is listed twice")


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_the_members_of_an_npz_file_are_arrays_of_different_names(tmp_path: Path) -> None:
    """The last of two was used, and what is no array ended in a traceback."""
    array = io.BytesIO()
    np.save(array, np.eye(2))
    for members, message in (
        ([array.getvalue()] * 2, "two of its arrays have the same name"),
        ([b"text"], "'a' is not an array"),
    ):
        with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
            for member in members:
                archive.writestr("a.npy", member)
        assert message in refusal(read_numbers, tmp_path / "a.npz")


def test_an_index_of_thousands_of_digits_is_out_of_range(tmp_path: Path) -> None:
    """Python converts at most 4,300 digits: a traceback."""
    (tmp_path / "items.txt").write_text("cat\ndog\ncow\n")
    human = HumanSet(
        "mine", tmp_path / "t.csv", "triplets", ("a", "b", "odd"), items=tmp_path / "items.txt"
    )
    human.path.write_text(f"a,b,odd\n00,1,{'9' * 5000}\n")
    assert "line 2: item index" in refusal(read_triplets, human)
    human.path.write_text(f"a,b,odd\n{'0' * 5000},01,2\n")
    assert read_triplets(human) == [("cat", "dog", "cow")]


def test_two_columns_of_a_corpus_with_the_text_are_refused(tmp_path: Path) -> None:
    """They ended in a KeyError."""
    columns = [pa.array(["A cat."]), pa.array(["A dog."])]
    pq.write_table(pa.table(columns, names=["text", "text"]), tmp_path / "c.parquet")

    def read() -> bytes:
        return b"".join(read_chunks(tmp_path / "c.parquet", "text", UnreadableLines()))

    assert refusal(read).endswith("c.parquet: has 2 columns 'text'")


def test_a_column_is_read_once(tmp_path: Path) -> None:
    """Every concept was compared with itself, or named like its sentence."""
    columns = "human: [{name: x, path: x.csv, columns: [a, a, score]}]\n"
    assert "columns: 'a' is listed twice" in refuse_sweep(tmp_path, SWEEP + columns)
    (tmp_path / "c.csv").write_text("concept,text\ncat,A cat.\n")
    message = refusal(read_concepts, tmp_path / "c.csv", "x", {"concept": "text"})
    assert "column 'text' would be read twice" in message


def test_a_duplicate_key_is_refused_in_all_json(tmp_path: Path) -> None:
    """The last one was used."""
    (tmp_path / "c.jsonl").write_text('{"text": "One.", "text": "Two."}\n{"text": "Three."}\n')
    unreadable = UnreadableLines()
    assert b"".join(read_chunks(tmp_path / "c.jsonl", "text", unreadable)) == b"Three."
    assert "the same key twice" in unreadable.first
    folder = tmp_path / "set"
    (folder / "g").mkdir(parents=True)
    (folder / "concept_list.csv").write_text("group,concept\ng,cat\n")
    (folder / "g/cat.json").write_text(
        '{"sentences": {"positive": ["A"], "positive": ["B"], "negative": []}}'
    )
    assert "the same key twice" in refusal(read_concepts, folder, "x")


def test_patterns_of_a_corpus_may_be_absolute(tmp_path: Path) -> None:
    """They ended in a traceback."""
    (tmp_path / "a.txt").write_text("A.")
    assert find_files([f"{tmp_path}/*.txt"], Path("/nowhere")) == [tmp_path / "a.txt"]
    assert "is not a valid pattern" in refusal(find_files, ["a**b"], tmp_path)


# --- models


def test_random_weights_need_no_files_in_subfolders(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder beside the files of a model, such as a checkpoint, ended the run."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    shutil.copytree(tiny_model, tmp_path / "model")
    shutil.copytree(tiny_model, tmp_path / "model/step1")
    folder = ensure_local(resolve("model", "random-init", tmp_path))
    assert (folder / "tokenizer.json").is_file()
    assert not (folder / "step1").exists()
    with safe_open(folder / "model.safetensors", "pt") as tensors:
        assert len(list(tensors.keys())) > 10


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
def test_random_weights_of_a_model_in_several_files_are_those_of_one_in_a_file(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    """The index of the trained files was copied beside the random ones, so that none could be loaded."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    shutil.copytree(tiny_model, tmp_path / "whole")
    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    shutil.copytree(tiny_model, tmp_path / "parts", ignore=shutil.ignore_patterns("*.safetensors"))
    model.save_pretrained(tmp_path / "parts", max_shard_size="20KB")
    index = tmp_path / "parts/model.safetensors.index.json"
    assert index.is_file()
    if suffix == "bin":
        # beside a single file of safetensors, as in many repositories
        index.rename(tmp_path / "parts/pytorch_model.bin.index.json")
        for file in (tmp_path / "parts").glob("*.safetensors"):
            file.unlink()
        shutil.copy(tiny_model / "model.safetensors", tmp_path / "parts")
    whole, parts = (ensure_local(resolve(name, "random-init", tmp_path)) for name in ("whole", "parts"))
    assert {file.name for file in parts.iterdir()} == {file.name for file in whole.iterdir()}
    assert (parts / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()


@pytest.mark.parametrize("revision", ["main", "random-init"])
def test_a_damaged_model_in_the_cache_is_made_again(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch, revision: str
) -> None:
    """A bit that flipped on the disk gave other experts, silently."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    metadata = gguf_files.llama_metadata(tiny_model)
    metadata |= gguf_files.tokenizer_metadata(tiny_model / "tokenizer.json")
    gguf_files.write(tmp_path / "a.gguf", metadata, gguf_files.llama_tensors(tiny_model))
    weights = resolve("a.gguf", revision, tmp_path)
    folder = ensure_local(weights)
    files = {file: file.read_bytes() for file in folder.iterdir()}
    assert {"checksums.json", "config.json", "model.safetensors"} < {file.name for file in files}
    for file, content in files.items():
        damaged = bytearray(content)
        damaged[len(content) // 2] ^= 1
        file.write_bytes(damaged)
        if revision == "main" and file.name != "checksums.json":
            is_read = file.name == "model.safetensors"
            assert bool(available_config(weights)) == is_read, file
        assert ensure_local(weights) == folder
        assert {file: file.read_bytes() for file in folder.iterdir()} == files
    (folder / "checksums.json").unlink()
    before = (folder / "model.safetensors").stat().st_ino
    ensure_local(weights)
    made = (folder / "model.safetensors").stat()
    assert made.st_ino != before
    ensure_local(weights)
    assert (folder / "model.safetensors").stat() == made
    assert {file.name for file in folder.parent.iterdir() if file.name.startswith(".")} == set()


def test_a_gguf_file_that_changes_while_it_is_converted_is_refused(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its weights were kept in the cache as those of the file that was hashed."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    metadata = gguf_files.llama_metadata(tiny_model)
    metadata |= gguf_files.tokenizer_metadata(tiny_model / "tokenizer.json")
    tensors = gguf_files.llama_tensors(tiny_model)
    gguf_files.write(tmp_path / "a.gguf", metadata, tensors)
    weights = resolve("a.gguf", "main", tmp_path)
    changed = {name: 2 * tensor for name, tensor in tensors.items()}
    gguf_files.write(tmp_path / "a.gguf", metadata, changed)
    assert "a.gguf: changed while it was converted" in refusal(ensure_local, weights)
    assert not any((tmp_path / "cache").rglob("*.safetensors"))


@pytest.fixture
def time_limit() -> Iterator[None]:
    """Ends a test that waits for a pipe."""

    def stop(*_: Any) -> None:
        raise TimeoutError

    previous = signal.signal(signal.SIGALRM, stop)
    signal.alarm(60)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, previous)


@pytest.mark.usefixtures("time_limit")
def test_pipes_are_not_read(tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A plan or a run waited without end for a program that writes to them."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    shutil.copytree(tiny_model, tmp_path / "model")
    expected = resolve("model", "main", tmp_path).identity
    for name in ("model/x.json", "model/x.txt", "s.safetensors", "corpus.txt"):
        os.mkfifo(tmp_path / name)
    assert resolve("model", "main", tmp_path).identity == expected
    assert not (ensure_local(resolve("model", "random-init", tmp_path)) / "x.json").exists()
    path = tmp_path / "s.safetensors"
    autoencoder = SparseAutoencoder("a", path, 0, "", "output", "relu", None, None)
    assert "no such file" in refusal(autoencoder.validate)
    assert "no such file" in refusal(find_files, ["."], tmp_path / "model/..")


@pytest.fixture
def sweep(tmp_path: Path, tiny_model: Path) -> Path:
    shutil.copytree(tiny_model, tmp_path / "model")
    return tiny.write_sweep(tmp_path)


def plan_error(sweep: Path) -> str:
    """The only line of a plan that is refused."""
    result = neuralign("plan", sweep, cwd=sweep.parent)
    assert result.returncode == 2
    (line,) = result.stderr.splitlines()
    return line


@pytest.mark.parametrize("pattern", ["(" * 5000 + ")" * 5000, "x{99999999999}", "("])
def test_a_pattern_of_sites_that_cannot_be_compiled_is_named(sweep: Path, pattern: str) -> None:
    """Deep nesting and large counts ended in tracebacks."""
    text = sweep.read_text().replace("neurons: {", f"neurons: {{sites: ['{pattern}'], ")
    sweep.write_text(text)
    assert "is not a valid regular expression" in plan_error(sweep)


def test_a_symbolic_link_to_itself_is_no_model(sweep: Path) -> None:
    """It ended in a traceback of pathlib."""
    (sweep.parent / "loop").symlink_to("loop")
    text = sweep.read_text()
    sweep.write_text(text.replace("id: model", "id: ./loop"))
    assert "model './loop': no such file or folder" in plan_error(sweep)
    sweep.write_text(text + "baselines: [{name: e, encoder: ./loop}]\n")
    assert "./loop" in plan_error(sweep)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"model_type": ["llama"]}, "model_type: \"['llama']\": expected text"),
        ({"architectures": {"a": 1}}, "architectures: "),
        ({"architectures": [1]}, "architectures: '1': expected the name of a class"),
        ({"auto_map": [1]}, "auto_map: '[1]': expected a mapping"),
        ({"auto_map": {"AutoConfig": "a.B"}, "model_type": "own"}, "requires remote code"),
        ({"num_hidden_layers": "3"}, "num_hidden_layers: '3': expected a number from 1 to 10,000"),
        ({"num_hidden_layers": -1}, "num_hidden_layers: '-1': expected a number from 1 to 10,000"),
        ({"num_hidden_layers": 10**9}, "expected a number from 1 to 10,000"),
        ({"hidden_size": 10**30}, "expected a number from 1 to 10,000,000"),
        ({"num_attention_heads": 0}, "config.json cannot be read: ZeroDivisionError"),
        ({"hidden_act": "x"}, "cannot be built from config.json: KeyError"),
        ({"dtype": 3}, "cannot be built from config.json"),
        ({"rope_parameters": {"rope_type": "x"}}, "cannot be built from config.json: KeyError"),
        ({"quantization_config": "x"}, "quantization_config: 'x': expected a mapping"),
        ({"quantization_config": {"quant_method": [1]}}, "its weights are quantized: unhashable"),
        ({"text_config": {}}, "its text_config is not that of a model"),
        ({"text_config": {"vocab_size": 10**12}}, "text_config: vocab_size: '1000000000000'"),
    ],
    ids=str,
)
def test_a_wrong_value_in_a_configuration_is_named(
    sweep: Path, values: dict[str, Any], message: str
) -> None:
    """A traceback of transformers, or days of building a model of a billion layers."""
    file = sweep.parent / "model/config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))
    assert message in plan_error(sweep)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("config.json", "[]", "config.json is not a JSON object"),
        ("config.json", "[" * 100_000, "is not valid JSON: it is nested too deeply"),
        ("config.json", '{"model_type": "llama", "model_type": "gpt2"}', "the same key twice"),
        ("tokenizer.json", "[]", "its tokenizer cannot be read"),
        ("tokenizer_config.json", "[]", "its tokenizer cannot be read"),
        ("model.safetensors.index.json", "[" * 100_000, "nested too deeply; download it again"),
    ],
)
def test_a_damaged_file_of_a_model_is_named(sweep: Path, name: str, content: str, message: str) -> None:
    """A traceback of the library that reads it."""
    (sweep.parent / "model" / name).write_text(content)
    assert message in plan_error(sweep)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("llama.block_count", 10**9, "num_hidden_layers: '1000000000': expected a number from 1"),
        ("llama.block_count", "x", "cannot be converted"),
        ("llama.embedding_length", 0, "hidden_size: '0': expected"),
        ("llama.attention.head_count", 0, "cannot be converted: ZeroDivisionError"),
        ("llama.rope.freq_base", "x", "cannot be built from its configuration"),
        ("split.count", "x", "its split.count is 'x'"),
        ("tokenizer.ggml.tokens", 5, "tokenizer.ggml.tokens is '5', of the wrong type"),
        ("tokenizer.ggml.tokens", [1, 2], "of the wrong type"),
        ("tokenizer.ggml.merges", ["zz qq"], "its tokenizer cannot be read"),
    ],
)
def test_a_wrong_setting_of_a_gguf_file_is_named(
    sweep: Path, key: str, value: Any, message: str
) -> None:
    """A traceback of the libraries that convert it."""
    model = sweep.parent / "model"
    settings = {**gguf_files.llama_metadata(model), key: value}
    if key != "tokenizer.ggml.tokens":
        settings = {**gguf_files.tokenizer_metadata(model / "tokenizer.json"), **settings}
    gguf_files.write(sweep.parent / "a.gguf", settings, gguf_files.llama_tensors(model))
    sweep.write_text(sweep.read_text().replace("id: model", "id: a.gguf"))
    assert message in plan_error(sweep)


def test_lists_in_lists_in_a_gguf_header_are_refused(sweep: Path) -> None:
    """100,000 of them exhausted the stack."""
    array = (9).to_bytes(4, "little") + (1).to_bytes(8, "little")
    key = (1).to_bytes(8, "little") + b"a" + (9).to_bytes(4, "little")
    header = b"GGUF" + (3).to_bytes(4, "little") + (0).to_bytes(8, "little") + (1).to_bytes(8, "little")
    (sweep.parent / "a.gguf").write_bytes(header + key + array * 100_000)
    sweep.write_text(sweep.read_text().replace("id: model", "id: a.gguf"))
    assert "is not a valid GGUF file" in plan_error(sweep)


# --- sweep files


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("seed: 1000000000000000000000", "expected less than 9223372036854775808"),
        ("resamples: 1000000000000", "expected less than or equal to 1000000"),
        ("experts: {permutations: 1000000000000}", "expected less than or equal to 10000"),
        ("experts: {top: [1000000000000]}", "expected less than or equal to 1000000"),
        ("experts: {gpus: .inf}", "experts.gpus: inf: expected a finite number"),
        ("experts: {prevalence: .nan}", "nan: expected a finite number"),
        ("experts: {negatives: 'others:9999999999'}", "expected others, others:N"),
        ("steering: {tokens: 1000000000000}", "expected less than or equal to 1000000"),
        ("steering: {temperature: 1.0e+21}", "expected less than or equal to 100"),
        ('name: "a\\0"', "'a\\x00' is not valid text"),
        ('name: "\\ud800"', "'\\ud800' is not valid text"),
        ("name: a/../../b", "expected a name without /"),
        (f"store: {'a' * 300}", "expected names of at most 255 bytes, got 300"),
        (f"x: {'[' * 100_000}", "is nested too deeply"),
        ("x: !!timestamp q", "it is no timestamp"),
        ("x: &x [*x]", "its aliases repeat more than 1,000,000 values"),
    ],
)
def test_a_hostile_value_of_a_sweep_file_is_refused(tmp_path: Path, text: str, message: str) -> None:
    """A traceback, an error hours later, or a file outside the folder of results."""
    assert message in refuse_sweep(tmp_path, f"{SWEEP}{text}\n")


def test_a_long_id_is_no_file_name(tmp_path: Path) -> None:
    """The operating system's error was no user's error."""
    assert "names of at most 255 bytes, got 300" in refuse_sweep(
        tmp_path, f"concepts: a.csv\nmodels: [{'a' * 300}]\n"
    )


# --- data


def test_a_long_file_name_is_a_mistake_in_the_input(tmp_path: Path) -> None:
    """The exit code was that of failed work."""
    result = neuralign("plan", tmp_path / f"{'a' * 300}.yaml")
    assert result.returncode == 2
    assert result.stderr.endswith("File name too long\n")


def test_a_long_cell_is_no_damaged_file(tmp_path: Path) -> None:
    """It was called "not a CSV file"."""
    (tmp_path / "h.csv").write_text(f"a,b,score\ncat,{'x' * 140_000},1\n")
    message = refusal(read_pairs, HumanSet("mine", tmp_path / "h.csv"))
    assert "after line 1: a cell has more than 131,072 characters; is a quote missing?" in message


def test_lone_surrogates_in_a_folder_of_concepts_are_refused(tmp_path: Path) -> None:
    """They cannot be written as UTF-8, so the run ended in a traceback."""
    (tmp_path / "g").mkdir()
    (tmp_path / "concept_list.csv").write_text("group,concept\ng,cat\n")
    sentences = {"positive": ["A \ud800 cat."], "negative": []}
    (tmp_path / "g/cat.json").write_text(json.dumps({"sentences": sentences}))
    assert "positive 1: 'sentences' has" in refusal(read_concepts, tmp_path, "x")


# --- output

QUERY = (
    "SELECT [1.5, 'NaN'::DOUBLE] AS list, {'a': 'NaN'::DOUBLE} AS struct, '\\xAA\\x00'::BLOB AS blob, "
    "MAP {1: 'x'} AS map, INTERVAL 3 DAY AS span, NULL AS none"
)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    """A store of sentences."""
    folder = tmp_path_factory.mktemp("output")
    shutil.copytree(tiny_model, folder / "model")
    assert neuralign("sentences", tiny.write_sweep(folder), cwd=folder).returncode == 0
    return folder / "results/sweep"


def test_every_value_has_a_form_in_json_and_csv(store: Path) -> None:
    """NaN in a list, and bytes, ended in tracebacks."""
    outputs = {}
    for output_format in ("json", "csv", "table"):
        result = neuralign("sql", store, QUERY, "--format", output_format)
        assert result.returncode == 0, result.stderr
        outputs[output_format] = result.stdout
    (row,) = json.loads(outputs["json"])
    assert (row["list"], row["struct"], row["blob"]) == ([1.5, None], {"a": None}, "aa00")
    assert "aa00" in outputs["csv"]
    assert "[1.5, null]" in outputs["csv"]


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("SELECT DATE '290000-01-01'", "is not in the years 1 to 9999"),
        ("SELECT TIMESTAMP '200000-01-01' AS t", "cast it to VARCHAR"),
        ("SELECT 'a\udc80'", "QUERY: is not valid UTF-8"),
    ],
)
@pytest.mark.parametrize("output_format", ["json", "table"])
def test_a_query_that_python_cannot_represent_is_refused(
    store: Path, query: str, message: str, output_format: str
) -> None:
    """Dates beyond the year 9999, and a byte that is no character, ended in tracebacks."""
    result = neuralign("sql", store, query, "--format", output_format)
    assert result.returncode == 2
    (line,) = result.stderr.splitlines()
    assert message in line


def test_a_terminal_without_unicode_shows_escapes(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command ended in a traceback after all work was done."""
    monkeypatch.setenv("PYTHONIOENCODING", "latin-1")
    result = process("sql", store, "SELECT '\u540d' AS name")
    assert result.returncode == 0, result.stderr
    assert "\\u540d" in result.stdout
