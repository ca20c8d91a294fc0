"""Concept sets have four formats: in each, the same sentences must have the same concepts and roles."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sklearn.metrics import average_precision_score

from alignment.expertise.labels import labels_against_pool, labels_from_own_negatives
from alignment.expertise.scoring import score_neurons
from jobs import experts, planner, sentences
from jobs.config.analysis import ExpertSettings
from jobs.config.loader import read_sweep
from jobs.engine.stage import run_if_needed
from jobs.scoring.labelings import read_labels
from storage.errors import UserError
from storage.readers import wordnet
from storage.readers.concept_files import COLUMNS
from storage.readers.concepts import ConceptSet, read_concept_names, read_concepts, write_concepts
from storage.store import layout
from tests.wordnet_files import Synset, write_nouns

ROWS = [
    ("cat", "The cat sat on the old mat.", "positive"),
    ("cat", "My cat, “Kätzchen”, ran\toff, alas.", "positive"),
    ("dog", "A dog barked at the moon.", "positive"),
    ("dog", "No dog was ever so quiet.", "positive"),
    ("cat", "A dog barked at the moon.", "negative"),
    ("cat", "The train was late again.", "negative"),
    ("dog", "The train was late again.", "negative"),
]
POOL = ("", "Nothing happened for a year.", "pool")


def _write_csv(path: Path, rows: list[tuple[str, str, str]]) -> Path:
    lines = [f'{concept},animal,"{text}",{role}' for concept, text, role in rows]
    path.write_text("\n".join(["concept,domain,text,role", *lines]) + "\n")
    return path


@pytest.mark.parametrize("name", ["again.csv", "again.jsonl", "again.parquet", "again"])
def test_a_concept_set_survives_a_round_trip(tmp_path: Path, name: str) -> None:
    """Sentences would change their concept or role between formats."""
    rows = [*ROWS, POOL] if "." in name else ROWS
    concept_set = read_concepts(_write_csv(tmp_path / "set.csv", rows), "mine")
    write_concepts(tmp_path / name, concept_set)
    copy = read_concepts(tmp_path / name, "mine")

    def facts(concept_set: ConceptSet) -> set[tuple[object, ...]]:
        return {
            (" ".join(s.text.split()), tuple(sorted(s.concepts)), tuple(sorted(s.negative_of)), s.pool)
            for s in concept_set.sentences
        }

    assert facts(copy) == facts(concept_set)
    assert copy.concepts == concept_set.concepts


def test_an_ml_selfcond_folder_is_read(tmp_path: Path) -> None:
    """A word in two senses would become one concept."""
    folder = tmp_path / "set"
    for name in ("ball-1_06_00__", "bank-1_14_00__", "bank-1_17_01__"):
        (folder / "sense").mkdir(parents=True, exist_ok=True)
        content = {
            "concept": name,
            "sentences": {"positive": [f" One {name} .", f"Two {name} ."], "negative": ["Not that ."]},
        }
        (folder / "sense" / f"{name}.json").write_text(json.dumps(content))
    concept_list = "group,concept\nsense,ball-1_06_00__\nsense,bank-1_14_00__\nsense,bank-1_17_01__\n"
    (folder / "concept_list.csv").write_text(concept_list)
    concept_set = read_concepts(folder, "mine")
    assert [(concept.name, concept.sense, concept.domain) for concept in concept_set.concepts] == [
        ("ball", "ball%1:06:00::", "sense"),
        ("bank-1_14_00__", "bank%1:14:00::", "sense"),
        ("bank-1_17_01__", "bank%1:17:01::", "sense"),
    ]
    assert concept_set.sentences[0].text == "One ball-1_06_00__ ."
    (shared,) = [sentence for sentence in concept_set.sentences if sentence.negative_of]
    assert len(shared.negative_of) == 3
    (folder / "sense" / "ball-1_06_00__.json").write_text('{"sentences": {"positive": "no list"}}')
    with pytest.raises(UserError, match=r"ball-1_06_00__\.json: is not a concept file"):
        read_concepts(folder, "mine")


def test_columns_can_be_renamed(tmp_path: Path) -> None:
    """Another column would be read as the text."""
    table = pa.table({"word": ["a cat", "a cat", "dog", "dog"], "line": ["1.", "2.", "3.", "4."]})
    pq.write_table(table, tmp_path / "set.parquet")
    concept_set = read_concepts(tmp_path / "set.parquet", "mine", {"concept": "word", "text": "line"})
    assert concept_set.count_sentences() == {"a cat": 2, "dog": 2}
    with pytest.raises(UserError, match="has no column 'concept'; its columns are word, line"):
        read_concepts(tmp_path / "set.parquet", "mine")
    with pytest.raises(UserError, match="unknown column 'txt'"):
        read_concepts(tmp_path / "set.parquet", "mine", {"txt": "line"})


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b'{"concept": "cat"\n[1]\n', "2 lines cannot be read; first: line 1: invalid JSON"),
        ("a.jsonl", '{"concept": "Bär"}'.encode("latin-1"), "is not UTF-8 text.*iconv"),
        ("a.parquet", b"nothing", "is not a Parquet file"),
        ("a.json", b"{}", "unsupported format; use .csv, .jsonl, .parquet or a folder"),
        ("a.csv", b"concept,text,pos\ncat,x,nuon\n", "pos is 'nuon'; allowed: noun, verb"),
        ("a.csv", b"concept,text,role\ncat,x,\ncat,x,negative\n", "duplicate sentence for 'cat'"),
        ("a.csv", b"concept,text,role\ncat,x,\n,x,pool\n", "is also in the pool of neutral sentences"),
    ],
)
def test_an_invalid_concept_set_is_rejected(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    """A wrong row would be skipped silently, or read as a sentence."""
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message):
        read_concepts(tmp_path / name, "mine")


def test_a_pool_in_a_folder_and_unknown_suffixes_are_rejected(tmp_path: Path) -> None:
    """The neutral sentences would be lost."""
    concept_set = read_concepts(_write_csv(tmp_path / "set.csv", [*ROWS, POOL]), "mine")
    with pytest.raises(UserError, match="cannot hold neutral sentences"):
        write_concepts(tmp_path / "folder", concept_set)
    with pytest.raises(UserError, match="unsupported format"):
        write_concepts(tmp_path / "set.xlsx", concept_set)


def test_concepts_are_read_without_sentences(tmp_path: Path) -> None:
    """A list of words would be rejected for its missing sentences."""
    (tmp_path / "words.csv").write_text("concept,pos\nice cream,n\nêtre,v\nice cream,n\n")
    assert [(concept.name, concept.pos) for concept in read_concept_names(tmp_path / "words.csv")] == [
        ("ice cream", "noun"),
        ("être", "verb"),
    ]
    assert set(COLUMNS) >= {"concept", "text", "role"}


@pytest.mark.parametrize(
    ("negatives", "expected"),
    [("own", {"cat": {2, 4}, "dog": {4}}), ("pool", {"cat": {5}, "dog": {5}})],
)
def test_roles_in_a_file_become_the_negatives_of_the_experts(
    tmp_path: Path, negatives: str, expected: dict[str, set[int]]
) -> None:
    """A sentence in the wrong role would change the AP."""
    _write_csv(tmp_path / "set.csv", [*ROWS, POOL])
    file = tmp_path / "sweep.yaml"
    file.write_text(
        "concepts: set.csv\nmodels: [smollm2-135m-instruct]\n"
        f"experts: {{negatives: {negatives}}}\nhuman: [men]\n"
    )
    planned = planner.plan_sweep(read_sweep(file))
    texts, scored = planned.stages[0], planned.stages_of_kind("experts")[0]
    store = layout.create_store(planned.sweep.store_path)
    run_if_needed(texts, store)
    labels = read_labels(scored.params, texts, store)
    assert [set(ids.tolist()) for ids in labels.positives] == [{0, 1}, {2, 3}]
    assert [set(ids.tolist()) for ids in labels.negatives] == list(expected.values())
    assert sentences.read_concept_set(texts, store).count_sentences() == {"cat": 2, "dog": 2}


def test_negatives_without_sentences_are_rejected(tmp_path: Path) -> None:
    """AP without negatives is 1 for every neuron."""
    concept_set = read_concepts(_write_csv(tmp_path / "set.csv", ROWS[:4]), "mine")
    experts.check_negatives(concept_set, ExpertSettings())
    for negatives in ("own", "pool"):
        with pytest.raises(UserError, match=f"{negatives}: concept 'cat' has 0 possible negatives"):
            experts.check_negatives(concept_set, ExpertSettings(negatives=negatives))


def test_own_and_pooled_negatives_are_scored_like_scikit_learn() -> None:
    """AP would be computed against the wrong negatives."""
    random = np.random.default_rng(0)
    values = random.integers(0, 9, (5, 40)).astype(np.float16)
    positives = [np.arange(0, 8), np.arange(6, 14)]
    negatives = [np.arange(20, 31), np.arange(25, 40)]
    pool = np.arange(30, 40)
    ids, members = np.concatenate(positives), np.repeat([0, 1], [8, 8])
    own = labels_from_own_negatives(
        ids, members, np.concatenate(negatives), np.repeat([0, 1], [11, 15]), 40, 2
    )
    against_pool = labels_against_pool(ids, members, pool, 40, 2)
    for labels, chosen in ((own, negatives), (against_pool, [pool, pool])):
        scores = score_neurons(values, labels)
        for concept in range(2):
            rows = np.concatenate([positives[concept], chosen[concept]])
            truth = np.arange(len(rows)) < 8
            expected = [average_precision_score(truth, row[rows]) for row in values]
            np.testing.assert_allclose(scores.ap_raw[:, concept], expected, rtol=1e-12)
    with pytest.raises(ValueError, match="a positive and a negative of concept 0"):
        labels_from_own_negatives(ids, members, np.array([0, 20]), np.array([0, 1]), 40, 2)
    with pytest.raises(ValueError, match="is in the pool"):
        labels_against_pool(ids, members, np.array([0]), 40, 2)
    with pytest.raises(ValueError, match="concept 1 has no negative"):
        labels_from_own_negatives(ids, members, np.array([20]), np.array([0]), 40, 2)


def _write_wordnet(folder: Path) -> Path:
    """A WordNet database of four senses."""
    synsets = [
        Synset("cat", gloss='feline mammal; kept as a pet; "the cat sat"'),
        Synset("cat guy", gloss="an informal term for a man"),
        Synset("ice_cream", gloss="frozen dessert"),
        Synset("cafe", gloss="a small restaurant"),
    ]
    offsets = write_nouns(folder, synsets)
    (folder / "index.sense").write_text(
        f"cat%1:05:00:: {offsets[0]:08} 1 18\ncat%1:18:01:: {offsets[1]:08} 2 0\n"
    )
    return folder


def test_definitions_are_from_the_right_sense(tmp_path: Path) -> None:
    """The generator would write about another sense of the word."""
    folder = _write_wordnet(tmp_path / "dict")
    assert wordnet.look_up_definition(folder, "cat", "noun") == "feline mammal; kept as a pet"
    assert wordnet.look_up_definition(folder, "Ice cream", "noun") == "frozen dessert"
    assert wordnet.look_up_definition(folder, "ice-cream", "noun") == "frozen dessert"
    assert wordnet.look_up_definition(folder, "Café", "noun") == "a small restaurant"
    assert wordnet.look_up_definition(folder, "猫", "noun") is None
    assert wordnet.look_up_definition(folder, "cat", "noun", "cat.n.02") == "an informal term for a man"
    assert (
        wordnet.look_up_definition(folder, "cat", "noun", "cat%1:18:01::")
        == "an informal term for a man"
    )
    assert wordnet.look_up_definition(folder, "ca", "noun") is None
    assert wordnet.look_up_definition(folder, "zebu", "noun") is None
    assert wordnet.look_up_definition(folder, "cat", "noun", "cat.n.03") is None
    assert wordnet.is_sense_name("cat.n.01")
    assert not wordnet.is_sense_name("a small animal. It purrs.")


def test_underscores_of_a_lemma_are_exact_in_definitions(tmp_path: Path) -> None:
    """A lemma with two underscores could not be found, or would get the definition of another."""
    synsets = [Synset("sea_lion", gloss="swims"), Synset("sea__lion", gloss="a star")]
    write_nouns(tmp_path, synsets)
    assert wordnet.look_up_definition(tmp_path, "sea__lion", "noun") == "a star"
    assert wordnet.look_up_definition(tmp_path, "sea  lion", "noun") == "swims"
    assert wordnet.look_up_definition(tmp_path, "sea___lion", "noun") is None


def test_a_wordnet_index_with_other_line_ends_is_read(tmp_path: Path) -> None:
    """The words are still sorted, and the offsets are those of data.noun."""
    folder = _write_wordnet(tmp_path / "dict")
    for name in ("index.noun", "index.sense"):
        (folder / name).write_bytes((folder / name).read_bytes().replace(b"\n", b"\r\n"))
    assert wordnet.look_up_definition(folder, "ice cream", "noun") == "frozen dessert"
    assert wordnet.look_up_definition(folder, "cat", "noun", "cat%1:18:01::") is not None
    assert wordnet.look_up_definition(folder, "zebu", "noun") is None


def _reverse_lines(content: bytes) -> bytes:
    return b"".join(sorted(content.splitlines(keepends=True), reverse=True))


@pytest.mark.parametrize(
    ("file", "damage", "message"),
    [
        ("index.noun", _reverse_lines, "index.noun: is not in WordNet's format: not sorted by bytes"),
        ("index.noun", lambda content: content[: content.index(b"cafe")], "format: it has no words"),
        ("index.noun", lambda content: content.decode().encode("utf-16"), "format: no offset in"),
        ("index.noun", lambda content: re.sub(rb"\d{8}", b"00000001", content), "no synset at byte 1"),
        ("index.noun", lambda content: re.sub(rb"\d{8}", b"", content), "'cat' has 0 of 2 synsets"),
        ("index.sense", _reverse_lines, "index.sense: is not in WordNet's format: not sorted by bytes"),
        ("index.sense", lambda content: re.sub(rb"\d{8}", b"?", content), "format: invalid literal"),
        ("data.noun", lambda content: content.replace(b"\n", b"\r\n"), "format: no synset at byte"),
        ("data.noun", lambda content: b"  0 Another line.\n" + content, "format: no synset at byte"),
        ("data.noun", lambda content: content[:60], "format: no synset at byte"),
    ],
)
def test_a_damaged_wordnet_is_rejected(
    tmp_path: Path, file: str, damage: Callable[[bytes], bytes], message: str
) -> None:
    """A word of the database would be reported as missing, or get another word's definition."""
    folder = _write_wordnet(tmp_path / "dict")
    senses: list[tuple[str, str | None]] = [(word, None) for word in ("cafe", "cat", "guy", "ice cream")]
    senses += [("cat", "cat%1:05:00::"), ("cat", "cat%1:18:01::")]
    definitions = [wordnet.look_up_definition(folder, word, "noun", sense) for word, sense in senses]
    assert None not in definitions
    (folder / file).write_bytes(damage((folder / file).read_bytes()))
    errors = []
    for (word, sense), definition in zip(senses, definitions, strict=True):
        try:
            assert wordnet.look_up_definition(folder, word, "noun", sense) == definition
        except UserError as error:
            errors.append(str(error))
    assert any(message in error for error in errors)
    assert all("\n" not in error for error in errors)


def test_a_synset_id_is_not_looked_up_in_a_shifted_file(tmp_path: Path) -> None:
    """With the line ends of another system, every id would be reported as missing."""
    *_, last = write_nouns(tmp_path / "dict", [Synset("cat"), Synset("dog"), Synset("cow")])
    assert wordnet.find_noun(tmp_path / "dict", "cow", f"{last:08}-n") == last
    assert wordnet.find_noun(tmp_path / "dict", "cow", f"{last + 1:08}-n") is None
    write_nouns(tmp_path / "crlf", [Synset("cat"), Synset("dog"), Synset("cow")])
    data = tmp_path / "crlf/data.noun"
    data.write_bytes(data.read_bytes().replace(b"\n", b"\r\n"))
    with pytest.raises(UserError, match=r"data\.noun: is not in WordNet's format: no synset at byte"):
        wordnet.find_noun(tmp_path / "crlf", "cow", f"{last:08}-n")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("concept,sense\ncat,\nzebu,\n", "not in WordNet: 'zebu' \\(noun\\); define them"),
        ("concept,sense\ncat,cat.n.09\ndog,a pet\n", "not in WordNet: 'cat' \\(cat.n.09\\)"),
    ],
)
def test_a_concept_without_a_definition_is_rejected(tmp_path: Path, words: str, message: str) -> None:
    """The generator would guess the sense."""
    _write_wordnet(tmp_path / "dict")
    (tmp_path / "words.csv").write_text(words)
    file = tmp_path / "sweep.yaml"
    file.write_text(
        "concepts: {source: generate, words: words.csv, model: smollm2-135m-instruct, wordnet: dict}\n"
        "models: [smollm2-135m-instruct]\n"
    )
    with pytest.raises(UserError, match=message):
        planner.plan_sweep(read_sweep(file))
    file.write_text(file.read_text().replace("wordnet: dict", "wordnet: none"))
    with pytest.raises(UserError, match="is not a WordNet database"):
        planner.plan_sweep(read_sweep(file))
