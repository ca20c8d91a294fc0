"""A harvest samples sentences from text too large to hold. A biased sample, a sentence cut in two or a
dependence on how the text was cut would go unseen in the results."""

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

from alignment.text.sentence_sampling import Sampler, sentence_bounds
from alignment.text.word_matching import Word, WordFinder
from jobs import planner, sentences
from jobs.commands.main import main
from jobs.config import read_sweep
from jobs.engine.stage import ensure
from storage.errors import UserError, WorkFailed
from storage.readers import corpus
from storage.readers.concepts import read_concepts
from storage.readers.corpus import Unreadable, find_files, read_pieces
from storage.store import layout

DEMO = Path(__file__).parent.parent / "examples" / "demo-concepts.csv"


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
def test_sentences_are_bounded_where_a_reader_would(text: str, expected: list[str]) -> None:
    raw = text.encode()
    starts, ends = sentence_bounds(raw)
    found = [raw[start:end].decode() for start, end in zip(starts, ends, strict=True)]
    assert [sentence for sentence in found if sentence] == expected


def _sampler(size: int, seed: int = 0, pool: int = 0) -> Sampler:
    return Sampler(WordFinder([Word("cat"), Word("dog")]), size, pool, seed)


def _texts(number: int) -> list[str]:
    return [f"Sentence {index} tells of the cat once more." for index in range(number)]


def test_a_sample_depends_on_the_text_and_seed_alone() -> None:
    """Not on its order, on how it was cut into pieces, nor on repetitions."""
    texts = [*_texts(300), *(f"There the dog sees number {index} pass." for index in range(300))]
    whole, pieces, other = _sampler(20), _sampler(20), _sampler(20, seed=1)
    whole.feed(" ".join(texts).encode())
    shuffled = list(np.random.default_rng(1).permutation(texts * 3))
    for start in range(0, len(shuffled), 7):
        pieces.feed("\n\n".join(shuffled[start : start + 7]).encode())
    other.feed(" ".join(texts).encode())
    for number in range(2):
        assert len(set(whole.of_word(number))) == 20
        assert whole.of_word(number) == pieces.of_word(number)
        assert whole.of_word(number) != other.of_word(number)


def test_every_sentence_is_drawn_equally_often() -> None:
    """Over seeds, against the uniform distribution."""
    texts = _texts(40)
    drawn: Counter[str] = Counter()
    for seed in range(400):
        sampler = _sampler(10, seed)
        sampler.feed(" ".join(texts).encode())
        drawn.update(sampler.of_word(0))
    assert chisquare([drawn[text] for text in texts]).pvalue > 1e-3


def test_sentences_of_two_concepts_stand_for_neither_and_the_pool_is_of_none() -> None:
    sampler = _sampler(10, pool=10)
    sampler.feed(
        b"The cat met the dog in the yard. Here the cat was quite alone. Nobody else was there then."
    )
    assert sampler.of_word(0) == ["Here the cat was quite alone."]
    assert sampler.of_word(1) == []
    assert sampler.neutral() == ["Nobody else was there then."]


def test_memory_stays_flat_however_much_text_there_is() -> None:
    """Kept sentences must be bounded by their number, not by the text's length."""
    sampler = _sampler(50)
    held = []
    tracemalloc.start()
    for part in range(40):
        sampler.feed(" ".join(f"Part {part} line {row} has a cat in it." for row in range(500)).encode())
        held.append(tracemalloc.get_traced_memory()[0])
    tracemalloc.stop()
    assert held[-1] < held[5] + 100_000


def _read(path: Path, unreadable: Unreadable | None = None) -> str:
    pieces = read_pieces(path, "text", unreadable or Unreadable())
    return b"\n\n".join(pieces).decode()


def test_a_text_is_read_in_pieces_of_whole_paragraphs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(corpus, "PIECE_BYTES", 200)
    paragraphs = [f"Absatz {number}: süße Kätzchen. " * 3 for number in range(50)]
    path = tmp_path / "text.txt"
    path.write_text("\r\n\r\n".join(paragraphs), newline="")
    pieces = [piece.decode() for piece in read_pieces(path, "text", Unreadable())]
    assert len(pieces) > 20
    found = [each.strip() for piece in pieces for each in piece.split("\n\n") if each.strip()]
    assert found == [paragraph.strip() for paragraph in paragraphs]
    path.write_text("ä" * 3000)
    assert _read(path).replace("\n\n", "") == "ä" * 3000


def test_documents_are_read_from_json_lines_and_parquet(tmp_path: Path) -> None:
    documents = ["Ein Text.", "Another\r\none.", 'With "quotes".']
    lines = [json.dumps({"text": each}) for each in documents]
    (tmp_path / "a.jsonl").write_text("\n".join([*lines[:1], "{broken", '{"body": 1}', "", *lines[1:]]))
    pq.write_table(pa.table({"text": [*documents, None]}), tmp_path / "a.parquet")
    unreadable = Unreadable()
    expected = "\n\n".join(each.replace("\r", "") for each in documents)
    assert _read(tmp_path / "a.jsonl", unreadable) == expected
    assert _read(tmp_path / "a.parquet") == expected
    assert unreadable.lines == 2
    assert unreadable.first.startswith("a.jsonl: line 2: no JSON")


def test_a_corpus_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    (tmp_path / "latin.txt").write_bytes("Ein Bär. ".encode("latin-1") * 3)
    (tmp_path / "wide.txt").write_bytes("A cat.".encode("utf-16"))
    (tmp_path / "other.jsonl").write_text('{"body": "x"}\n')
    (tmp_path / "bad.parquet").write_bytes(b"nothing")
    pq.write_table(pa.table({"body": ["x"]}), tmp_path / "other.parquet")
    for name, message in (
        ("latin.txt", "is not UTF-8 text: invalid continuation byte at byte 5; convert it"),
        ("wide.txt", "is not UTF-8 text: .* `iconv -f utf-16 -t utf-8`"),
        ("other.jsonl", "no line has text in 'text'; its fields are body"),
        ("bad.parquet", "is no Parquet file"),
        ("other.parquet", "has no column 'text'; its columns are body"),
    ):
        with pytest.raises(UserError, match=message):
            _read(tmp_path / name)
    with pytest.raises(UserError, match=r"corpus: no\*: there is no such file"):
        find_files(["no*"], tmp_path)
    assert len(find_files(["."], tmp_path)) == 5


def write_corpus(folder: Path) -> None:
    """The text of all the demo's sentences, and a line that cannot be read."""
    texts = [each.text for each in read_concepts(DEMO, "demo").sentences]
    (folder / "corpus.jsonl").write_text(
        "\n".join(json.dumps({"text": " ".join(texts[at : at + 16])}) for at in range(0, len(texts), 16))
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


def test_a_sweep_harvests_its_sentences_and_then_knows_its_plan(tmp_path: Path) -> None:
    """From the sweep file to the tables: what is harvested must pass the gate and keep its role."""
    file = _write_sweep(tmp_path)
    planned = planner.plan(read_sweep(file))
    assert not planned.is_whole
    (stage,) = planned.stages
    store = layout.create(planned.sweep.store_path)
    ensure(stage, store)
    assert stage.result(store).notes == [
        "1 lines of the corpus not read, first corpus.jsonl: line 165: no JSON: Expecting property name "
        "enclosed in double quotes: line 1 column 2 (char 1)"
    ]
    whole = planner.plan(read_sweep(file))
    (concepts,) = [each.concepts for each in whole.sets]
    assert concepts is not None
    assert concepts.counts() == {"bird": 12, "flower": 12}
    assert sum(each.pool for each in concepts.sentences) == 30
    written = {each.text for each in read_concepts(DEMO, "demo").sentences}
    assert {each.text for each in concepts.sentences if each.concepts} <= written
    assert len(whole.stages) > 4
    ids, numbers, n_sentences = sentences.read_memberships(stage, store)
    pool, none, _ = sentences.read_memberships(stage, store, "pool")
    assert (len(ids), len(pool), len(none), n_sentences) == (24, 30, 0, 54)
    assert list(numbers) == [0] * 12 + [1] * 12


def test_concepts_with_too_few_sentences_are_listed_with_the_reasons(tmp_path: Path) -> None:
    file = _write_sweep(tmp_path)
    file.write_text(file.read_text().replace("flower]", "flower, zebu]"))
    planned = planner.plan(read_sweep(file))
    with pytest.raises(
        WorkFailed, match=r"1 of 3 concepts have fewer than 6 sentences(.|\n)*zebu: 0 kept"
    ):
        ensure(planned.stages[0], layout.create(planned.sweep.store_path))


def test_the_sentences_command_lists_shows_and_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What a user looks at before a long run: it must be the set itself, in 80 columns."""
    file = _write_sweep(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    for arguments in ([], ["--show", "bird"], ["--out", str(tmp_path / "set.csv")]):
        monkeypatch.setattr("sys.argv", ["neuralign", "sentences", str(file), *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        assert ended.value.code == 0
    told = capsys.readouterr().out
    assert max(map(len, told.splitlines())) <= 80
    assert "2 concepts, 24 sentences, 30 neutral ones" in told
    assert "10 of 12 sentences of bird" in told
    assert read_concepts(tmp_path / "set.csv", "again").counts() == {"bird": 12, "flower": 12}
    monkeypatch.setattr("sys.argv", ["neuralign", "sentences", str(file), "--show", "brid"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert "did you mean bird?" in capsys.readouterr().err
