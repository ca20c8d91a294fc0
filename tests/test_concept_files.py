"""Concept sets come and go in four formats: whichever it is, the same sentences must stand under the
same concepts in the same role."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sklearn.metrics import average_precision_score

from alignment.expertise.labels import labels_against_pool, labels_of_own
from alignment.expertise.scoring import expertise
from jobs import experts, planner, sentences
from jobs.config import Experts, read_sweep
from jobs.engine.stage import ensure
from storage.errors import UserError
from storage.readers import wordnet
from storage.readers.concept_files import COLUMNS
from storage.readers.concepts import read_concepts, read_words, write_concepts
from storage.store import layout

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
def test_a_set_that_is_written_and_read_is_the_same(tmp_path: Path, name: str) -> None:
    rows = [*ROWS, POOL] if "." in name else ROWS
    given = read_concepts(_write_csv(tmp_path / "set.csv", rows), "mine")
    write_concepts(tmp_path / name, given)
    again = read_concepts(tmp_path / name, "mine")

    def facts(each: object) -> set[tuple[object, ...]]:
        return {
            (" ".join(s.text.split()), tuple(sorted(s.concepts)), tuple(sorted(s.negative_of)), s.pool)
            for s in getattr(each, "sentences")  # noqa: B009
        }

    assert facts(again) == facts(given)
    assert again.concepts == given.concepts


def test_a_folder_of_ml_selfcond_is_read(tmp_path: Path) -> None:
    """Its names hold a WordNet sense, and a word in two senses must stay two concepts."""
    folder = tmp_path / "set"
    for name in ("ball-1_06_00__", "bank-1_14_00__", "bank-1_17_01__"):
        (folder / "sense").mkdir(parents=True, exist_ok=True)
        content = {
            "concept": name,
            "sentences": {"positive": [f" One {name} .", f"Two {name} ."], "negative": ["Not that ."]},
        }
        (folder / "sense" / f"{name}.json").write_text(json.dumps(content))
    listed = "group,concept\nsense,ball-1_06_00__\nsense,bank-1_14_00__\nsense,bank-1_17_01__\n"
    (folder / "concept_list.csv").write_text(listed)
    found = read_concepts(folder, "mine")
    assert [(each.name, each.sense, each.domain) for each in found.concepts] == [
        ("ball", "ball%1:06:00::", "sense"),
        ("bank-1_14_00__", "bank%1:14:00::", "sense"),
        ("bank-1_17_01__", "bank%1:17:01::", "sense"),
    ]
    assert found.sentences[0].text == "One ball-1_06_00__ ."
    (shared,) = [each for each in found.sentences if each.negative_of]
    assert len(shared.negative_of) == 3
    (folder / "sense" / "ball-1_06_00__.json").write_text('{"sentences": {"positive": "no list"}}')
    with pytest.raises(UserError, match=r"ball-1_06_00__\.json: is no concept"):
        read_concepts(folder, "mine")


def test_columns_may_have_other_names(tmp_path: Path) -> None:
    table = pa.table({"word": ["a cat", "a cat", "dog", "dog"], "line": ["1.", "2.", "3.", "4."]})
    pq.write_table(table, tmp_path / "set.parquet")
    found = read_concepts(tmp_path / "set.parquet", "mine", {"concept": "word", "text": "line"})
    assert found.counts() == {"a cat": 2, "dog": 2}
    with pytest.raises(UserError, match="has no column 'concept'; its columns are word, line"):
        read_concepts(tmp_path / "set.parquet", "mine")
    with pytest.raises(UserError, match="there is no column 'txt' to name"):
        read_concepts(tmp_path / "set.parquet", "mine", {"txt": "line"})


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b'{"concept": "cat"\n[1]\n', "2 of its lines cannot be read, first line 1: no JSON"),
        ("a.jsonl", '{"concept": "Bär"}'.encode("latin-1"), "is not UTF-8 text.*iconv"),
        ("a.parquet", b"nothing", "is no Parquet file"),
        ("a.json", b"{}", "is not read; give .csv, .jsonl, .parquet or a folder"),
        ("a.csv", b"concept,text,pos\ncat,x,nuon\n", "pos is 'nuon'; allowed: noun, verb"),
        ("a.csv", b"concept,text,role\ncat,x,\ncat,x,negative\n", "stands under 'cat' already"),
        ("a.csv", b"concept,text,role\ncat,x,\n,x,pool\n", "is in the pool of neutral sentences too"),
    ],
)
def test_a_set_that_cannot_be_read_is_refused(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message):
        read_concepts(tmp_path / name, "mine")


def test_a_folder_cannot_hold_a_pool_and_other_endings_are_refused(tmp_path: Path) -> None:
    given = read_concepts(_write_csv(tmp_path / "set.csv", [*ROWS, POOL]), "mine")
    with pytest.raises(UserError, match="cannot hold neutral sentences"):
        write_concepts(tmp_path / "folder", given)
    with pytest.raises(UserError, match="is no known format"):
        write_concepts(tmp_path / "set.xlsx", given)


def test_words_are_read_without_sentences(tmp_path: Path) -> None:
    (tmp_path / "words.csv").write_text("concept,pos\nice cream,n\nêtre,v\nice cream,n\n")
    assert [(each.name, each.pos) for each in read_words(tmp_path / "words.csv")] == [
        ("ice cream", "noun"),
        ("être", "verb"),
    ]
    assert set(COLUMNS) >= {"concept", "text", "role"}


@pytest.mark.parametrize(
    ("negatives", "expected"),
    [("own", {"cat": {2, 4}, "dog": {4}}), ("pool", {"cat": {5}, "dog": {5}})],
)
def test_the_roles_of_a_file_become_the_negatives_of_the_experts(
    tmp_path: Path, negatives: str, expected: dict[str, set[int]]
) -> None:
    """From the file through the store to the labels: a sentence in the wrong role is a wrong number."""
    _write_csv(tmp_path / "set.csv", [*ROWS, POOL])
    file = tmp_path / "sweep.yaml"
    file.write_text(
        "concepts: set.csv\nmodels: [smollm2-135m-instruct]\n"
        f"experts: {{negatives: {negatives}}}\nhuman: [men]\n"
    )
    planned = planner.plan(read_sweep(file))
    texts, scored = planned.stages[0], planned.of_kind("experts")[0]
    store = layout.create(planned.sweep.store_path)
    ensure(texts, store)
    labels = experts.read_labels(scored, texts, store, planned.sweep.experts)
    assert [set(each.tolist()) for each in labels.positives] == [{0, 1}, {2, 3}]
    assert [set(each.tolist()) for each in labels.negatives] == list(expected.values())
    assert sentences.read_set(texts, store).counts() == {"cat": 2, "dog": 2}


def test_a_scheme_without_its_sentences_is_refused(tmp_path: Path) -> None:
    given = read_concepts(_write_csv(tmp_path / "set.csv", ROWS[:4]), "mine")
    experts.check(given, Experts())
    for negatives in ("own", "pool"):
        with pytest.raises(UserError, match=f"{negatives}: concept 'cat' has 0 possible negatives"):
            experts.check(given, Experts(negatives=negatives))


def test_own_and_pooled_negatives_are_scored_as_by_scikit_learn() -> None:
    random = np.random.default_rng(0)
    values = random.integers(0, 9, (5, 40)).astype(np.float16)
    positives = [np.arange(0, 8), np.arange(6, 14)]
    negatives = [np.arange(20, 31), np.arange(25, 40)]
    pool = np.arange(30, 40)
    ids, members = np.concatenate(positives), np.repeat([0, 1], [8, 8])
    own = labels_of_own(ids, members, np.concatenate(negatives), np.repeat([0, 1], [11, 15]), 40, 2)
    against_pool = labels_against_pool(ids, members, pool, 40, 2)
    for labels, chosen in ((own, negatives), (against_pool, [pool, pool])):
        scores = expertise(values, labels)
        for concept in range(2):
            rows = np.concatenate([positives[concept], chosen[concept]])
            truth = np.arange(len(rows)) < 8
            expected = [average_precision_score(truth, row[rows]) for row in values]
            np.testing.assert_allclose(scores.ap_raw[:, concept], expected, rtol=1e-12)
    with pytest.raises(ValueError, match="a positive and a negative of concept 0"):
        labels_of_own(ids, members, np.array([0, 20]), np.array([0, 1]), 40, 2)
    with pytest.raises(ValueError, match="is in the pool"):
        labels_against_pool(ids, members, np.array([0]), 40, 2)
    with pytest.raises(ValueError, match="concept 1 has no negative"):
        labels_of_own(ids, members, np.array([20]), np.array([0]), 40, 2)


def _write_wordnet(folder: Path) -> Path:
    """A WordNet database of four senses, in its own format."""
    folder.mkdir()
    licence = "  1 This is no licence.\n"
    glosses = [
        '05 n 01 cat 0 000 | feline mammal; kept as a pet; "the cat sat"  \n',
        "18 n 02 cat 0 guy 0 000 | an informal term for a man  \n",
        "13 n 01 ice_cream 0 000 | frozen dessert  \n",
        "06 n 01 cafe 0 000 | a small restaurant  \n",
    ]
    offsets, data = [], licence
    for gloss in glosses:
        offsets.append(f"{len(data.encode()):08}")
        data += f"{offsets[-1]} {gloss}"
    (folder / "data.noun").write_text(data)
    index = [
        f"cafe n 1 0 1 0 {offsets[3]}  \n",
        f"cat n 2 1 @ 2 1 {offsets[0]} {offsets[1]}  \n",
        f"guy n 1 1 @ 1 0 {offsets[1]}  \n",
        f"ice_cream n 1 0 1 0 {offsets[2]}  \n",
    ]
    (folder / "index.noun").write_text(licence + "".join(index))
    (folder / "index.sense").write_text(
        f"cat%1:05:00:: {offsets[0]} 1 18\ncat%1:18:01:: {offsets[1]} 2 0\n"
    )
    return folder


def test_definitions_are_those_of_wordnet(tmp_path: Path) -> None:
    """A definition of another sense would have the model write about something else."""
    folder = _write_wordnet(tmp_path / "dict")
    assert wordnet.define(folder, "cat", "noun") == "feline mammal; kept as a pet"
    assert wordnet.define(folder, "Ice cream", "noun") == "frozen dessert"
    assert wordnet.define(folder, "ice-cream", "noun") == "frozen dessert"
    assert wordnet.define(folder, "Café", "noun") == "a small restaurant"
    assert wordnet.define(folder, "猫", "noun") is None
    assert wordnet.define(folder, "cat", "noun", "cat.n.02") == "an informal term for a man"
    assert wordnet.define(folder, "cat", "noun", "cat%1:18:01::") == "an informal term for a man"
    assert wordnet.define(folder, "ca", "noun") is None
    assert wordnet.define(folder, "zebu", "noun") is None
    assert wordnet.define(folder, "cat", "noun", "cat.n.03") is None
    assert wordnet.is_sense("cat.n.01")
    assert not wordnet.is_sense("a small animal. It purrs.")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("concept,sense\ncat,\nzebu,\n", "WordNet does not know 'zebu' \\(noun\\); define them"),
        ("concept,sense\ncat,cat.n.09\ndog,a pet\n", "WordNet does not know 'cat' \\(cat.n.09\\)"),
    ],
)
def test_a_concept_without_a_definition_is_refused(tmp_path: Path, words: str, message: str) -> None:
    _write_wordnet(tmp_path / "dict")
    (tmp_path / "words.csv").write_text(words)
    file = tmp_path / "sweep.yaml"
    file.write_text(
        "concepts: {source: generate, words: words.csv, model: smollm2-135m-instruct, wordnet: dict}\n"
        "models: [smollm2-135m-instruct]\n"
    )
    with pytest.raises(UserError, match=message):
        planner.plan(read_sweep(file))
    file.write_text(file.read_text().replace("wordnet: dict", "wordnet: none"))
    with pytest.raises(UserError, match="is no WordNet database"):
        planner.plan(read_sweep(file))
