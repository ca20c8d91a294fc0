"""Harvested sentences are sampled from text larger than memory. Results would not reveal a biased
sample, a sentence cut in two, or a dependence on how the text was split."""

from __future__ import annotations

import json
import tracemalloc
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scipy.stats import chisquare

from alignment.text.sentence_sampling import SentenceSampler, sentence_bounds
from alignment.text.word_matching import ConceptWord, WordFinder
from jobs import planner, sentences
from jobs.config.loader import read_sweep
from jobs.engine.stage import run_if_needed
from storage.errors import UserError, WorkFailed
from storage.readers import corpus
from storage.readers.concepts import read_concepts
from storage.readers.corpus import UnreadableLines, find_files, read_chunks
from storage.store import layout
from tests.commands import neuralign

DEMO = Path(__file__).parent.parent / "examples" / "men-core.csv"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("He came. She left! Why? Nobody knew", ["He came.", "She left!", "Why?", "Nobody knew"]),
        ("Mr. J. R. Smith of St. Ives came.", ["Mr. J. R. Smith of St. Ives came."]),
        ("It cost 3.5 dollars. Yes.", ["It cost 3.5 dollars.", "Yes."]),
        ('"Go." He went. (He did.) Then', ['"Go."', "He went.", "(He did.)", "Then"]),
        ("A title\n\nThe text\nruns on. End.", ["A title", "The text\nruns on.", "End."]),
        ("See fig. 3 there, e.g. this.", ["See fig. 3 there, e.g. this."]),
        ("  Two  spaces.  Twice. ", ["Two  spaces.", "Twice."]),
        ("Größe zählt. Übung auch.", ["Größe zählt.", "Übung auch."]),
        ("", []),
    ],
)
def test_sentence_bounds_are_those_of_a_human_reader(text: str, expected: list[str]) -> None:
    """Split at an abbreviation, half a sentence would be taken for a sentence."""
    raw = text.encode()
    starts, ends = sentence_bounds(raw)
    sentences = [raw[start:end].decode() for start, end in zip(starts, ends, strict=True)]
    assert [sentence for sentence in sentences if sentence] == expected


def _sampler(size: int, seed: int = 0, pool: int = 0) -> SentenceSampler:
    return SentenceSampler(WordFinder([ConceptWord("cat"), ConceptWord("dog")]), size, pool, seed)


def _texts(number: int) -> list[str]:
    return [f"Sentence {index} tells of the cat once more." for index in range(number)]


def test_a_sample_depends_only_on_the_text_and_the_seed() -> None:
    """The order of the text, its chunks or repetitions must not bias the sample."""
    texts = [*_texts(300), *(f"There the dog sees number {index} pass." for index in range(300))]
    single, chunked, reseeded = _sampler(20), _sampler(20), _sampler(20, seed=1)
    single.add_text(" ".join(texts).encode())
    shuffled = list(np.random.default_rng(1).permutation(texts * 3))
    for start in range(0, len(shuffled), 7):
        chunked.add_text("\n\n".join(shuffled[start : start + 7]).encode())
    reseeded.add_text(" ".join(texts).encode())
    for number in range(2):
        assert len(set(single.sentences_of_word(number))) == 20
        assert single.sentences_of_word(number) == chunked.sentences_of_word(number)
        assert single.sentences_of_word(number) != reseeded.sentences_of_word(number)


def test_every_sentence_is_drawn_equally_often() -> None:
    """A biased sample, tested over seeds against the uniform distribution, would bias the experts."""
    texts = _texts(40)
    drawn: Counter[str] = Counter()
    for seed in range(400):
        sampler = _sampler(10, seed)
        sampler.add_text(" ".join(texts).encode())
        drawn.update(sampler.sentences_of_word(0))
    assert chisquare([drawn[text] for text in texts]).pvalue > 1e-3


def test_sentences_of_two_concepts_are_left_out_and_the_pool_names_none() -> None:
    """A positive of two concepts, or a negative that names one, would make AP meaningless."""
    sampler = _sampler(10, pool=10)
    sampler.add_text(
        b"The cat met the dog in the yard. Here the cat was quite alone. Nobody else was there then."
    )
    assert sampler.sentences_of_word(0) == ["Here the cat was quite alone."]
    assert sampler.sentences_of_word(1) == []
    assert sampler.neutral_sentences() == ["Nobody else was there then."]


def test_memory_does_not_grow_with_the_text() -> None:
    """Memory must be bounded by the number of sampled sentences, not by the length of the text."""
    sampler = _sampler(50)
    memory = []
    tracemalloc.start()
    for part in range(40):
        sampler.add_text(
            " ".join(f"Part {part} line {row} has a cat in it." for row in range(500)).encode()
        )
        memory.append(tracemalloc.get_traced_memory()[0])
    tracemalloc.stop()
    assert memory[-1] < memory[5] + 100_000


def _read(path: Path, unreadable: UnreadableLines | None = None) -> str:
    chunks = read_chunks(path, "text", unreadable or UnreadableLines())
    return b"\n\n".join(chunks).decode()


def test_a_text_is_read_in_chunks_of_complete_paragraphs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A chunk that ends in a sentence, or in a character, would lose both halves."""
    monkeypatch.setattr(corpus, "CHUNK_BYTES", 200)
    paragraphs = [f"Absatz {number}: süße Kätzchen. " * 3 for number in range(50)]
    path = tmp_path / "text.txt"
    path.write_text("\r\n\r\n".join(paragraphs), newline="")
    chunks = [chunk.decode() for chunk in read_chunks(path, "text", UnreadableLines())]
    assert len(chunks) > 20
    parts = [part.strip() for chunk in chunks for part in chunk.split("\n\n")]
    assert [part for part in parts if part] == [paragraph.strip() for paragraph in paragraphs]
    path.write_text("ä" * 3000)
    assert _read(path).replace("\n\n", "") == "ä" * 3000


def test_documents_are_read_from_json_lines_and_parquet(tmp_path: Path) -> None:
    """Broken lines that go uncounted would hide that half of a corpus was not read."""
    documents = ["Ein Text.", "Another\r\none.", 'With "quotes".']
    lines = [json.dumps({"text": document}) for document in documents]
    (tmp_path / "a.jsonl").write_text("\n".join([*lines[:1], "{broken", '{"body": 1}', "", *lines[1:]]))
    pq.write_table(pa.table({"text": [*documents, None]}), tmp_path / "a.parquet")
    unreadable = UnreadableLines()
    expected = "\n\n".join(document.replace("\r", "") for document in documents)
    assert _read(tmp_path / "a.jsonl", unreadable) == expected
    assert _read(tmp_path / "a.parquet") == expected
    assert unreadable.lines == 2
    assert unreadable.first.startswith("a.jsonl: line 2: invalid JSON")


def test_an_unreadable_corpus_is_rejected(tmp_path: Path) -> None:
    """Decoded in a wrong encoding, its words would match no concept."""
    (tmp_path / "latin.txt").write_bytes("Ein Bär. ".encode("latin-1") * 3)
    (tmp_path / "wide.txt").write_bytes("A cat.".encode("utf-16"))
    (tmp_path / "other.jsonl").write_text('{"body": "x"}\n')
    (tmp_path / "bad.parquet").write_bytes(b"nothing")
    pq.write_table(pa.table({"body": ["x"]}), tmp_path / "other.parquet")
    for name, message in (
        ("latin.txt", "is not UTF-8 text: invalid continuation byte at byte 5; convert it"),
        ("wide.txt", "is not UTF-8 text: .* `iconv -f utf-16 -t utf-8`"),
        ("other.jsonl", "no line has text in 'text'; its fields are body"),
        ("bad.parquet", "is not a Parquet file"),
        ("other.parquet", "has no column 'text'; its columns are body"),
    ):
        with pytest.raises(UserError, match=message):
            _read(tmp_path / name)
    with pytest.raises(UserError, match=r"corpus: no\*: no such file"):
        find_files(["no*"], tmp_path)
    assert len(find_files(["."], tmp_path)) == 5


def write_corpus(folder: Path) -> None:
    """The text of all the demo's sentences, and an unreadable line."""
    texts = [sentence.text for sentence in read_concepts(DEMO, "demo").sentences]
    (folder / "corpus.jsonl").write_text(
        "\n".join(
            json.dumps({"text": " ".join(texts[start : start + 16])})
            for start in range(0, len(texts), 16)
        )
        + "\n{broken\n"
    )


def _write_sweep(folder: Path, extra: str = "") -> Path:
    """A harvest of two of the demo's concepts from the text of all its sentences."""
    write_corpus(folder)
    file = folder / "sweep.yaml"
    file.write_text(
        "concepts: {source: harvest, words: [bird, flower], corpus: corpus.jsonl, sentences: 12, "
        f"pool: 30, {extra}}}\nmodels: [smollm2-135m-instruct]\n"
    )
    return file


def test_a_plan_is_complete_once_the_sentences_are_harvested(tmp_path: Path) -> None:
    """Harvested sentences must pass the quality filter and keep their role up to the tables."""
    file = _write_sweep(tmp_path)
    plan = planner.plan_sweep(read_sweep(file))
    assert not plan.is_complete
    (stage,) = plan.stages
    store = layout.create_store(plan.sweep.store_path)
    run_if_needed(stage, store)
    assert stage.read_manifest(store).notes == [
        "1 unreadable lines in the corpus; the first: corpus.jsonl: line 165: invalid JSON: "
        "Expecting property name enclosed in double quotes: line 1 column 2 (char 1)"
    ]
    plan = planner.plan_sweep(read_sweep(file))
    (concepts,) = [concept_set.concepts for concept_set in plan.concept_sets]
    assert concepts is not None
    assert concepts.count_sentences() == {"bird": 12, "flower": 12}
    assert sum(sentence.pool for sentence in concepts.sentences) == 30
    corpus_texts = {sentence.text for sentence in read_concepts(DEMO, "demo").sentences}
    assert {sentence.text for sentence in concepts.sentences if sentence.concepts} <= corpus_texts
    assert len(plan.stages) > 4
    ids, members, n_sentences = sentences.read_memberships(stage, store)
    pool, pool_members, _ = sentences.read_memberships(stage, store, "pool")
    assert (len(ids), len(pool), len(pool_members), n_sentences) == (24, 30, 0, 54)
    assert list(members) == [0] * 12 + [1] * 12


def test_concepts_with_too_few_sentences_are_listed_with_the_reasons(tmp_path: Path) -> None:
    """Without the reasons, the user could not tell a rare word from a strict filter."""
    file = _write_sweep(tmp_path)
    file.write_text(file.read_text().replace("flower]", "flower, zebu]"))
    plan = planner.plan_sweep(read_sweep(file))
    with pytest.raises(
        WorkFailed, match=r"1 of 3 concepts have fewer than 6 sentences(.|\n)*zebu: 0 kept"
    ):
        run_if_needed(plan.stages[0], layout.create_store(plan.sweep.store_path))


def test_the_sentences_command_lists_shows_and_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Users check this before a long run, so it must show the set itself, in 80 columns."""
    file = _write_sweep(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    printed = ""
    for arguments in ([], ["--show", "bird"], ["--out", tmp_path / "set.csv"]):
        shown = neuralign("sentences", file, *arguments)
        assert shown.returncode == 0
        printed += shown.stdout
    assert max(map(len, printed.splitlines())) <= 80
    assert "2 concepts, 24 sentences, 30 neutral sentences" in printed
    assert "10 of 12 sentences of bird" in printed
    assert read_concepts(tmp_path / "set.csv", "again").count_sentences() == {"bird": 12, "flower": 12}
    unknown = neuralign("sentences", file, "--show", "brid")
    assert unknown.returncode == 2
    assert "did you mean bird?" in unknown.stderr
