"""Users' tables have many formats and layouts: each must be read with the same cells or be refused in
one line that names the format, whatever the suffix says."""

from __future__ import annotations

import bz2
import csv
import datetime
import gzip
import io
import json
import lzma
import pickle
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.io import savemat
from scipy.spatial.distance import squareform

from jobs.sources.human_judgments import load_judgments
from storage.errors import UserError
from storage.readers import file_format
from storage.readers.concepts import read_concept_names, read_concepts
from storage.readers.corpus import UnreadableLines, read_chunks
from storage.readers.human import HumanSet
from storage.readers.tabular import read_columns
from storage.readers.word_vectors import read_vectors

WORDS = ["cat", "dog", "cow"]
PAIRS = [["cat", "dog", "9.0"], ["cat", "cow", "6.5"], ["dog", "cow", "-1.0"]]
SCORES = {("cat", "dog"): 9.0, ("cat", "cow"): 6.5, ("cow", "dog"): -1.0}
MATRIX = np.array([[0.0, 1, 2], [1, 0, 3], [2, 3, 0]])
SENTENCES = [
    ["cat", "A cat; it sat, alas."],
    ["cat", 'The "cat"\tran.'],
    ["dog", "A dog | barked."],
    ["dog", "Ein Hund,\nsüß."],
]

Rows = Sequence[Sequence[str]]
Writer = Callable[[Path, list[str], Rows], None]


def error_message(read: Callable[..., Any], *arguments: Any) -> str:
    with pytest.raises(UserError) as caught:
        read(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def _delimited(names: Rows, delimiter: str, end: str = "\n", quoting: Any = csv.QUOTE_MINIMAL) -> str:
    text = io.StringIO()
    csv.writer(text, delimiter=delimiter, lineterminator=end, quoting=quoting).writerows(names)
    return text.getvalue()


def _write_delimited(delimiter: str, end: str = "\n", start: str = "") -> Writer:
    def write(path: Path, names: list[str], rows: Rows) -> None:
        # not write_text, which would translate line ends inside cells
        path.write_bytes((start + _delimited([names, *rows], delimiter, end)).encode())

    return write


def _write_compressed(compress: Callable[[bytes], bytes]) -> Writer:
    def write(path: Path, names: list[str], rows: Rows) -> None:
        path.write_bytes(compress(_delimited([names, *rows], ",").encode()))

    return write


def _write_r_table(delimiter: str) -> Writer:
    """R's write.table: text in quotes, row numbers that have no column name."""

    def write(path: Path, names: list[str], rows: Rows) -> None:
        numbered = [[str(number), *row] for number, row in enumerate(rows, 1)]
        path.write_bytes(_delimited([names, *numbered], delimiter, quoting=csv.QUOTE_ALL).encode())

    return write


def _write_json_lines(path: Path, names: list[str], rows: Rows) -> None:
    path.write_text("".join(json.dumps(dict(zip(names, row, strict=True))) + "\n" for row in rows))


def _write_parquet(column_type: pa.DataType) -> Writer:
    def write(path: Path, names: list[str], rows: Rows) -> None:
        columns = list(zip(*rows, strict=True))
        if pa.types.is_dictionary(column_type):
            arrays = [pa.array(column).dictionary_encode() for column in columns]
        else:
            arrays = [
                pa.array([cell.encode() for cell in column]).cast(column_type) for column in columns
            ]
        pq.write_table(pa.Table.from_arrays(arrays, names), path)

    return write


LAYOUTS: dict[str, tuple[str, Writer]] = {
    "csv": ("t.csv", _write_delimited(",")),
    "csv with CRLF and a byte order mark": ("t.csv", _write_delimited(",", "\r\n", "\ufeff")),
    "semicolons": ("t.csv", _write_delimited(";")),
    "tabs in .csv": ("t.csv", _write_delimited("\t")),
    "tsv": ("t.TSV", _write_delimited("\t")),
    "commas in .txt": ("t.txt", _write_delimited(",")),
    "bars": ("t.txt", _write_delimited("|")),
    "gzip": ("t.csv.gz", _write_compressed(gzip.compress)),
    "gzip, wrong suffix": ("t.csv", _write_compressed(gzip.compress)),
    "bzip2": ("t.csv.bz2", _write_compressed(bz2.compress)),
    "xz": ("t.csv.xz", _write_compressed(lzma.compress)),
    "R, spaces": ("t.txt", _write_r_table(" ")),
    "R, tabs": ("t.txt", _write_r_table("\t")),
    "R, commas": ("t.csv", _write_r_table(",")),
    "JSON Lines": ("t.jsonl", _write_json_lines),
    "Parquet": ("t.parquet", _write_parquet(pa.string())),
    "Parquet, bytes": ("t.parquet", _write_parquet(pa.binary())),
    "Parquet, categories": ("t.parquet", _write_parquet(pa.dictionary(pa.int32(), pa.string()))),
    "Parquet, wrong suffix": ("t.csv", _write_parquet(pa.string())),
}

# never a mark of a missing value, nor a list
_text = st.text(
    st.characters(exclude_categories=["C", "Z"]) | st.sampled_from(" ,;|\t\n\u2028\"'"), max_size=9
)
_cells = _text.map(lambda text: f"x{text}y")


@pytest.mark.parametrize("layout", LAYOUTS)
@given(rows=st.lists(st.tuples(_cells, _cells, st.integers().map(str)), min_size=1, max_size=60))
def test_a_table_reads_back_equal_in_every_layout(
    tmp_path_factory: pytest.TempPathFactory, layout: str, rows: list[tuple[str, str, str]]
) -> None:
    """Words or scores would depend on the program that wrote the file."""
    name, write = LAYOUTS[layout]
    path = tmp_path_factory.getbasetemp() / name
    write(path, ["word", "other", "score"], rows)
    read = [tuple(cells) for _, cells in read_columns(path, ("word", "other", "score"))]
    assert read == rows


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_reader_of_tables_reads_every_layout(tmp_path: Path, layout: str) -> None:
    """Sentences, lists of words and human data would need different files."""
    name, write = LAYOUTS[layout]
    path = tmp_path / name
    write(path, ["concept", "text"], SENTENCES)
    concept_set = read_concepts(path, "mine")
    assert [[s.concepts[0], s.text] for s in concept_set.sentences] == SENTENCES
    assert concept_set.ignored_columns == []
    assert [concept.name for concept in read_concept_names(path)] == ["cat", "dog"]
    write(path, ["a", "b", "score"], PAIRS)
    assert load_judgments(HumanSet("mine", path), WORDS).scores == SCORES
    write(
        path, ["word", *WORDS], [[name, *map(str, row)] for name, row in zip(WORDS, MATRIX, strict=True)]
    )
    matrix = load_judgments(HumanSet("mine", path, "matrix", ()), WORDS)
    assert matrix.scores == {("cat", "dog"): 1.0, ("cat", "cow"): 2.0, ("cow", "dog"): 3.0}


def _zip(*names: str) -> bytes:
    contents = io.BytesIO()
    with zipfile.ZipFile(contents, "w") as archive:
        for name in names:
            archive.writestr(name, "x")
    return contents.getvalue()


UNREADABLE = {
    "is an Excel workbook; save it as CSV": _zip("xl/workbook.xml"),
    "is an old Excel or Office file": b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(99),
    "is an OpenDocument file": _zip("mimetype", "content.xml"),
    "is a ZIP archive; unpack it": _zip("pairs.csv"),
    "is a damaged ZIP archive or workbook": _zip("xl/workbook.xml")[:40],
    "is a MATLAB 7.3 file; save it in MATLAB with the option '-v7'": b"MATLAB 7.3 MAT-file" + bytes(99),
    "is an HDF5 file": b"\x89HDF\r\n\x1a\n",
    "is an HTML page": b"\n<!DOCTYPE html>\n<html>a,b,score</html>\n",
    "is an XML file": b'\xef\xbb\xbf<?xml version="1.0"?>',
    "is a Git LFS pointer without the data": b"version https://git-lfs.github.com/spec/v1\n",
    "is an R data file; save it in R with write.csv": gzip.compress(b"RDX3\nX\n\0\0\0"),
    "is a Python pickle": pickle.dumps([1]),
    "is an SPSS file": b"$FL2@(#) SPSS",
    "is compressed with Zstandard": b"\x28\xb5\x2f\xfd\0",
    "is compressed twice": gzip.compress(gzip.compress(b"a,b,score\n")),
    "cannot be decompressed": gzip.compress(b"a,b,score\n" * 99)[:-9],
}


@pytest.mark.parametrize("message", UNREADABLE)
@pytest.mark.parametrize("suffix", [".csv", ".parquet", ".npy", ".jsonl", ".bin"])
def test_every_reader_names_a_format_that_it_cannot_read(
    tmp_path: Path, message: str, suffix: str
) -> None:
    """Told to run iconv, or that a column is missing, the user would look for the wrong mistake."""
    path = tmp_path / f"file{suffix}"
    path.write_bytes(UNREADABLE[message])
    items = tmp_path / "items.txt"
    items.write_text("cat\ndog\ncow\n")
    reads: list[tuple[Any, ...]] = [
        (read_concepts, path, "mine"),
        (read_concept_names, path),
        *((load_judgments, HumanSet("x", path, kind), WORDS) for kind in ("pairs", "triplets")),
        (load_judgments, HumanSet("x", path, "matrix", ()), WORDS),
        (load_judgments, HumanSet("x", path, "embeddings", (), items=items), WORDS),
        (load_judgments, HumanSet("x", items, "matrix", (), items=path), WORDS),
        (read_chunks, path, "text", UnreadableLines()),
        (read_vectors, path, WORDS),
    ]
    for read in reads:
        error = error_message(*read)
        # a corpus must be decompressed first
        assert message in error or (read[0] is read_chunks and "is compressed; decompress it" in error)
        assert str(path) in error


def test_other_formats_where_text_is_expected_are_named(tmp_path: Path) -> None:
    """An array or JSON in a .csv would be read as words."""
    path = tmp_path / "file.csv"
    np.save(path.with_suffix(".npy"), MATRIX)
    path.write_bytes(path.with_suffix(".npy").read_bytes())
    assert "is a .npy file of numbers; expected text" in error_message(read_concepts, path, "mine")
    _write_json_lines(path, ["concept", "text"], SENTENCES)
    assert "is JSON; use JSON Lines" in error_message(read_concepts, path, "mine")
    path.write_text('[\n  {"concept": "cat"}\n]\n')
    assert "is JSON; use JSON Lines" in error_message(load_judgments, HumanSet("x", path), WORDS)
    path.write_bytes("a,b,score\n".encode("utf-16-le"))
    assert "iconv -f utf-16le -t utf-8" in error_message(load_judgments, HumanSet("x", path), WORDS)
    path.write_bytes(b"\x05\0\x06\x07" * 9)
    assert "is binary data in an unknown format" in error_message(read_concepts, path, "mine")
    path.write_bytes(b"concept,text\n" + b"cat,A cat.\n" * 999 + b"cat,\0\n")
    assert "NUL character at byte 11,006" in error_message(read_concepts, path, "mine")
    (tmp_path / "m.mat").write_text("0 1\n1 0\n")
    matrix = HumanSet("x", tmp_path / "m.mat", "matrix", ())
    assert "is not a MATLAB file, but text" in error_message(load_judgments, matrix, WORDS)


def test_a_compressed_file_has_a_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A small file could fill the memory."""
    (tmp_path / "a.csv.gz").write_bytes(gzip.compress(b"a,b,score\n" + b"cat,dog,1\n" * 9999))
    monkeypatch.setattr(file_format, "_MAX_DECOMPRESSED_BYTES", 1000)
    error = error_message(load_judgments, HumanSet("x", tmp_path / "a.csv.gz"), WORDS)
    assert "has more than 1,000 bytes when decompressed" in error


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        (["cat"], "row 1: 'a' has \"['cat']\", of type list"),
        ({"name": "cat"}, "of type dict; expected text or a number"),
        (True, "of type bool"),
        (datetime.date(2026, 3, 1), "of type date"),
        (b"\xff\xfe", "row 1: the bytes in 'a' are not UTF-8 text"),
        ("['cat', 'dog']", "a list or bytes; expected text"),
        ("b'cat'", "a list or bytes; expected text"),
        (None, "row 1: a word is missing"),
        (float("nan"), "row 1: a word is missing"),
        ("NA", "row 1: a word is missing"),
    ],
)
def test_a_cell_that_is_no_text_is_rejected(tmp_path: Path, cell: object, message: str) -> None:
    """The spelling that Python has for it would become a word that nobody rated."""
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"a": [cell], "b": ["dog"], "score": [1.0]}), path)
    assert message in error_message(load_judgments, HumanSet("x", path), WORDS)
    path = tmp_path / "a.jsonl"
    if not isinstance(cell, bytes | datetime.date):
        path.write_text(json.dumps({"a": cell, "b": "dog", "score": 1.0}) + "\n")
        assert message.replace("row", "line") in error_message(
            load_judgments, HumanSet("x", path), WORDS
        )


def test_numbers_need_a_decimal_point(tmp_path: Path) -> None:
    """2,5 would be read as 25, or as two numbers."""
    path = tmp_path / "a.csv"
    path.write_text("a;b;score\ncat;dog;2,5\n")
    error = error_message(load_judgments, HumanSet("x", path), WORDS)
    assert error.endswith("line 2: the score is '2,5'; expected a number with a decimal point")
    (tmp_path / "items.txt").write_text("cat\ndog\ncow\n")
    human = HumanSet("x", path, "embeddings", (), items=tmp_path / "items.txt", vectors="dot")
    for content in ("0,5 1,5\n" * 3, "0,5\t1,5\n" * 3, "0,5;1,5\n" * 3):
        path.write_text(content)
        assert "use one delimiter and decimal points" in error_message(load_judgments, human, WORDS)
    for content in ("# x, y\n1.5,2\n0,1\n0,2\n", "1.5; 2;\n0;1;\n0;2;\n", "1.5 2\n\n0  1\n 0\t2\r\n"):
        path.write_text(content)
        scores = load_judgments(human, WORDS).scores
        assert scores == {("cat", "dog"): 2.0, ("cat", "cow"): 4.0, ("cow", "dog"): 2.0}
    path.write_text("")
    assert "is not a table of numbers: it is empty" in error_message(load_judgments, human, WORDS)


def test_a_list_of_sentences_is_one_sentence_each(tmp_path: Path) -> None:
    """All sentences of a concept would be one sentence, with brackets."""
    lists = {"cat": ["A cat sat.", "The cat ran."], "dog": ["A dog sat.", "The dog ran."]}
    rows = [{"concept": name, "text": texts} for name, texts in lists.items()]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    for name in ("a.jsonl", "a.parquet"):
        concept_set = read_concepts(tmp_path / name, "mine")
        assert [s.text for s in concept_set.sentences] == [*lists["cat"], *lists["dog"]]
        assert concept_set.count_sentences() == {"cat": 2, "dog": 2}
    for texts, message in (
        ([], "line 1: the sentence of 'cat' is empty"),
        (["A cat.", None], "line 1, sentence 2: the sentence of 'cat' is empty"),
        (["A cat.", ["B"]], "line 1, sentence 2: 'text' has \"['B']\", of type list"),
        ({"en": "A cat."}, "of type dict"),
        ("\ud800", "is not valid Unicode text"),
    ):
        (tmp_path / "a.jsonl").write_text(json.dumps({"concept": "cat", "text": texts}) + "\n")
        assert message in error_message(read_concepts, tmp_path / "a.jsonl", "mine")
    (tmp_path / "a.csv").write_text("concept,text\ncat,\"['A cat.', 'My cat.']\"\n")
    error = error_message(read_concepts, tmp_path / "a.csv", "mine")
    assert "line 2: 'text' has" in error
    assert "a list or bytes; expected text" in error


def test_missing_cells_of_concepts_are_missing(tmp_path: Path) -> None:
    """NA, R's mark of a missing value, would be a domain that unrelated concepts share."""
    path = tmp_path / "a.csv"
    rows = "cat,NA,A cat.\ncat,,My cat.\nnull,NULL,A null.\nnull,<NA>,My null.\n"
    path.write_text("concept,domain,text\n" + rows)
    assert [(c.name, c.domain) for c in read_concepts(path, "x").concepts] == [
        ("cat", None),
        ("null", None),
    ]
    for row, message in (
        ("cat,pet,NA\n", "the text is 'NA', which marks a missing value"),
        ("NA,pet,A cat.\n", "the concept is 'NA', which marks a missing value"),
    ):
        path.write_text("concept,domain,text\n" + row)
        assert f"line 2: {message}" in error_message(read_concepts, path, "x")


def test_a_duplicate_column_or_key_is_rejected(tmp_path: Path) -> None:
    """One of the two would be used silently."""
    path = tmp_path / "a.csv"
    path.write_text("concept,text,text\ncat,A cat.,x\n")
    assert "has 2 columns 'text'" in error_message(read_concepts, path, "x")
    table = pa.Table.from_arrays([pa.array(["cat"])] * 3, ["concept", "text", "text"])
    pq.write_table(table, tmp_path / "a.parquet")
    assert "has 2 columns 'text'" in error_message(read_concepts, tmp_path / "a.parquet", "x")
    (tmp_path / "a.jsonl").write_text('{"concept": "cat", "text": "A.", "text": "B."}\n')
    assert "the same key twice" in error_message(read_concepts, tmp_path / "a.jsonl", "x")


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("cat,A cat, sat.\ncat,My cat, ran.\n", "line 2: expected 2 columns, got 3"),
        ("1,cat,A cat.\n1,dog,A dog.\n", "line 3: expected 2 columns, got 3"),
        ("1,cat,A cat.\n2,dog,A dog.\n" * 30 + "cat,A cat, sat.\n", "expected 2 columns, got 3"),
        ("1,cat,A cat.\n2,dog,A dog, too.\n", "line 2: expected 2 columns, got 3"),
    ],
)
def test_unquoted_commas_are_not_taken_for_row_names(tmp_path: Path, rows: str, message: str) -> None:
    """Half a sentence would be the concept."""
    path = tmp_path / "a.csv"
    path.write_text("concept,text\n" + rows)
    assert message in error_message(read_concepts, path, "x")


def test_a_matrix_of_r_or_pandas_has_its_row_names(tmp_path: Path) -> None:
    """The first column of numbers would be taken for the items."""
    expected = {("cat", "dog"): 1.0, ("cat", "cow"): 2.0, ("cow", "dog"): 3.0}
    path = tmp_path / "m.txt"
    path.write_text('"cat" "dog" "cow"\n"cat" 0 1 2\n"dog" 1 0 NA\n"cow" 2 3 0\n')
    assert load_judgments(HumanSet("x", path, "matrix", ()), WORDS).scores == expected
    columns = [pa.array(column) for column in MATRIX.T]
    table = pa.Table.from_arrays([*columns, pa.array(WORDS)], [*WORDS, "__index_level_0__"])
    pq.write_table(table, tmp_path / "m.parquet")
    human = HumanSet("x", tmp_path / "m.parquet", "matrix", ())
    assert load_judgments(human, WORDS).scores == expected
    path.write_text("item,cat,dog\n,0,1\ndog,1,0\n")
    assert "line 2: a word is missing" in error_message(
        load_judgments, HumanSet("x", path, "matrix", ()), WORDS
    )


def _write_array(path: Path, **arrays: Any) -> HumanSet:
    (path.parent / "items.txt").write_text("\n".join(WORDS) + "\n")
    if path.suffix == ".npy":
        (values,) = arrays.values()
        np.save(path, values)
    elif path.suffix == ".npz":
        np.savez(path, **arrays)
    else:
        savemat(path, arrays)
    return HumanSet("x", path, "matrix", (), items=path.parent / "items.txt")


@pytest.mark.parametrize("name", ["m.npy", "m.npz", "m.mat"])
def test_a_square_or_condensed_matrix_is_read_from_an_array(tmp_path: Path, name: str) -> None:
    """The numbers of a vector would land on other pairs."""
    expected = {("cat", "dog"): 1.0, ("cat", "cow"): 2.0, ("cow", "dog"): 3.0}
    condensed = squareform(MATRIX)
    for values in (MATRIX, condensed, condensed[None], condensed[:, None], MATRIX.astype(np.uint8)):
        human = _write_array(tmp_path / name, rdm=values)
        assert load_judgments(human, WORDS).scores == expected
        compressed = tmp_path / f"{name}.gz"
        compressed.write_bytes(gzip.compress(human.path.read_bytes()))
        assert load_judgments(replace(human, path=compressed), WORDS).scores == expected
    wrong = _write_array(tmp_path / name, rdm=np.arange(4.0))
    assert "but there are 3 items" in error_message(load_judgments, wrong, WORDS)
    text = _write_array(tmp_path / "m.npy", rdm=MATRIX)
    (tmp_path / "m.txt").write_text("1 2 3\n")
    assert load_judgments(replace(text, path=tmp_path / "m.txt"), WORDS).scores == expected


@pytest.mark.parametrize("name", ["m.npz", "m.mat"])
def test_one_of_several_arrays_is_not_guessed(tmp_path: Path, name: str) -> None:
    """The matrix of another measure would be used."""
    human = _write_array(tmp_path / name, rdm=MATRIX, other=MATRIX)
    error = error_message(load_judgments, human, WORDS)
    assert "must contain exactly one array of numbers; it has other, rdm" in error
    human = _write_array(tmp_path / name, rdm=MATRIX * 1j)
    assert "its values are complex128" in error_message(load_judgments, human, WORDS)
    contents = _write_array(tmp_path / name, rdm=MATRIX).path.read_bytes()
    human.path.write_bytes(contents[:-20])
    error = error_message(load_judgments, human, WORDS)
    assert "is not a .mat file of numbers" in error or "is a damaged ZIP archive" in error


def test_text_and_scalars_of_a_matlab_file_are_not_matrices(tmp_path: Path) -> None:
    """A file with labels or a count next to its only matrix would be refused."""
    human = _write_array(tmp_path / "m.mat", rdm=MATRIX, n=3, labels=np.array(WORDS, object), note="x")
    assert load_judgments(human, WORDS).scores[("cat", "dog")] == 1.0
    savemat(tmp_path / "old.mat", {"rdm": MATRIX}, format="4")
    old = replace(human, path=tmp_path / "old.mat")
    assert load_judgments(old, WORDS).scores[("cat", "dog")] == 1.0


def test_missing_ratings_are_counted(tmp_path: Path) -> None:
    """NA would be refused, and nobody would see that some raters rated little."""
    path = tmp_path / "a.csv"
    path.write_text("a,b,score,r1,r2\ncat,dog,3,3,NA\ncat,cow,2,,2\ncow,dog,1,nan,0\ncat,sofa,1,NA,NA\n")
    judgments = load_judgments(HumanSet("mine", path, raters=("r1", "r2")), WORDS)
    assert judgments.raters == {
        ("cat", "cow"): pytest.approx([np.nan, 2], nan_ok=True),
        ("cat", "dog"): pytest.approx([3, np.nan], nan_ok=True),
        ("cow", "dog"): pytest.approx([np.nan, 0], nan_ok=True),
    }
    assert "mine: 3 of 6 ratings by individual raters are missing" in judgments.notes
    path.write_text("a,b,score,r1,r2\ncat,dog,3,3,x\n")
    error = error_message(load_judgments, HumanSet("mine", path, raters=("r1", "r2")), WORDS)
    assert "line 2: the score is 'x'; expected a number" in error


def test_an_empty_line_between_items_is_rejected(tmp_path: Path) -> None:
    """Indices into the list would mean other items."""
    human = _write_array(tmp_path / "m.npy", rdm=MATRIX)
    assert human.items is not None
    human.items.write_bytes(b'\xef\xbb\xbf"cat"\r\n"dog"\r\n"cow"\r\n\r\n')
    assert load_judgments(human, WORDS).scores[("cat", "dog")] == 1.0
    human.items.write_text("cat\n\ndog\ncow\n")
    assert "items.txt: line 2 is empty" in error_message(load_judgments, human, WORDS)


def test_a_parquet_corpus_of_bytes_is_read_and_lists_are_rejected(tmp_path: Path) -> None:
    """A whole corpus would be read as empty."""
    path = tmp_path / "a.parquet"

    def read() -> str:
        return b"".join(read_chunks(path, "text", UnreadableLines())).decode()

    text = pa.array(["Ein Bär.", None, "Zwei."])
    for column in (text, text.cast(pa.binary()), text.dictionary_encode(), text.cast(pa.string_view())):
        pq.write_table(pa.table({"text": column}), path)
        assert read() == "Ein Bär.\n\nZwei."
    pq.write_table(pa.table({"text": [["Ein Bär."]]}), path)
    assert "has the type list<element: string>; expected text" in error_message(read)
    pq.write_table(pa.table({"text": [b"Gut.", b"B\xe4r."]}), path)
    assert "cannot be read after row 1" in error_message(read)
    (tmp_path / "a.txt").write_bytes(path.read_bytes())
    path = tmp_path / "a.txt"
    assert "cannot be read after row 1" in error_message(read)


def test_compressed_word_vectors_need_their_suffix(tmp_path: Path) -> None:
    """gensim takes the suffix as proof and would report a broken fastText model."""
    path = tmp_path / "glove.txt"
    path.write_bytes(gzip.compress(b"cat 1 2\ndog 3 4\n"))
    assert "is compressed; its name must end in .gz" in error_message(read_vectors, path, WORDS)
    assert set(read_vectors(path.rename(tmp_path / "glove.txt.gz"), WORDS)) == {"cat", "dog"}


def test_text_in_place_of_a_list_of_sentences_is_rejected(tmp_path: Path) -> None:
    """Each letter would be a sentence."""
    (tmp_path / "pet").mkdir()
    (tmp_path / "concept_list.csv").write_text("group,concept\npet,cat\n")
    content = {"sentences": {"positive": "A cat.", "negative": "A dog."}}
    (tmp_path / "pet/cat.json").write_text(json.dumps(content))
    assert "positive is not a list of strings" in error_message(read_concepts, tmp_path, "x")
