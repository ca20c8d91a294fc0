"""Human data have many formats and flaws: errors must be one clear line, oddities a warning, omissions
reported, and a score must never land on the wrong pair."""

from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scipy.stats import kstest

from alignment.statistics.rank_correlation import lower_noise_ceiling
from alignment.statistics.triplets import odd_one_out_accuracy, odd_one_out_p_value, triplet_similarity
from jobs.config.loader import read_sweep
from jobs.sources.human_judgments import load_judgments
from storage.errors import UserError
from storage.readers.human import HumanSet, builtin_human_set, builtin_human_sets, read_pairs
from tests.wordnet_files import Synset, write_nouns

ANIMALS = ["cat", "dog", "cow", "sea lion"]


def write_human(folder: Path, content: str, name: str = "human.csv") -> HumanSet:
    (folder / name).write_text(content)
    return HumanSet("mine", folder / name)


def error_message(human: HumanSet, concepts: list[str] = ANIMALS) -> str:
    with pytest.raises(UserError) as caught:
        load_judgments(human, concepts)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "is empty; the first line must name the columns a, b, score"),
        ("a,b\ncat,dog\n", "has no column 'score'"),
        ("a,b,score\ncat,dog,high\n", "line 2: the score is 'high'; expected a number"),
        ("a,b,score\ncat,dog,nan\n", "line 2: the score is 'nan'"),
        ("a,b,score\ncat,dog,\n", "line 2: the score is ''"),
        ("a,b,score\ncat,dog,1_0\n", "line 2: the score is '1_0'"),
        ("a,b,score\ncat,dog\n", "line 2: expected 3 columns"),
        ("a,b,score\ncat,,1\n", "line 2: a word is missing"),
        ("a,b,score\n,,\n", "has no rows below the column names"),
        ("a,b,score,score\ncat,dog,1,2\n", "has 2 columns 'score'"),
        ("cat,dog,1\n", "has no column 'a'; its columns are cat, dog, 1. Set `columns`"),
    ],
)
def test_an_invalid_list_of_pairs_is_rejected(tmp_path: Path, content: str, message: str) -> None:
    """A wrong row would become a score."""
    error = error_message(write_human(tmp_path, content))
    assert message in error
    assert str(tmp_path / "human.csv") in error


def test_missing_and_mislabelled_files_are_rejected(tmp_path: Path) -> None:
    """The user would see a traceback."""
    assert "no such file" in error_message(HumanSet("mine", tmp_path / "none.csv"))
    (tmp_path / "latin.csv").write_bytes("a,b,score\ncafé,dog,1\n".encode("latin-1"))
    assert "is not UTF-8" in error_message(HumanSet("mine", tmp_path / "latin.csv"))
    assert "is not a Parquet file" in error_message(
        write_human(tmp_path, "a,b,score\n", "human.parquet")
    )


def test_pairs_are_read_equally_from_csv_tsv_and_parquet(tmp_path: Path) -> None:
    """Scores would depend on the file format."""
    content = "one,two,mean\ncat,dog,2.5\ndog,cow,1\n"
    human = replace(write_human(tmp_path, content), columns=("one", "two", "mean"))
    tab = replace(write_human(tmp_path, content.replace(",", "\t"), "human.tsv"), columns=human.columns)
    table = pa.table({"one": ["cat", "dog"], "two": ["dog", "cow"], "mean": [2.5, 1.0]})
    pq.write_table(table, tmp_path / "human.parquet")
    parquet = replace(human, path=tmp_path / "human.parquet")
    for human_set in (human, tab, parquet):
        assert load_judgments(human_set, ANIMALS).scores == {("cat", "dog"): 2.5, ("cow", "dog"): 1.0}


@pytest.mark.parametrize(
    "content",
    [
        "\ufeffa,b,score\r\ncat,dog,2\r\nCOW,Cat,1\r\n",
        "a;b;score\ncat;dog;2\ncow;cat;1\n",
        "a, b, score\ncat, dog, 2\ncow, cat, 1\n",
        '"a" "b" "score"\n"cat" "dog" 2\n"cow" "cat" 1\n',
    ],
)
def test_other_delimiters_and_byte_order_marks_are_read(tmp_path: Path, content: str) -> None:
    """Files from spreadsheets or R would be rejected or misread."""
    assert load_judgments(write_human(tmp_path, content), ANIMALS).scores == {
        ("cat", "dog"): 2,
        ("cat", "cow"): 1,
    }


def test_published_files_without_a_header_are_read(tmp_path: Path) -> None:
    """MEN's own file has spaces and part-of-speech tags; Rare Words' has tabs and a column per rater."""
    men = write_human(tmp_path, "cat-n dog-n 40.0\ncow-n run-v 3.0\n", "men.txt")
    judgments = load_judgments(replace(men, columns=(1, 2, 3), suffix="-n"), ANIMALS)
    assert judgments.scores == {("cat", "dog"): 40.0}
    assert [item.reason for item in judgments.dropped] == ["another part of speech"]
    rare = write_human(tmp_path, "cat\tdog\t2.5\t2\t3\n", "rw.txt")
    judgments = load_judgments(replace(rare, columns=(1, 2, 3), raters=(4, 5)), ANIMALS)
    assert judgments.raters == {("cat", "dog"): [2.0, 3.0]}
    assert "has no column 6, only 5" in error_message(replace(rare, columns=(1, 2, 6)))


def test_omitted_pairs_are_reported_with_a_reason(tmp_path: Path) -> None:
    """Pairs would disappear silently."""
    human = write_human(tmp_path, "a,b,score\nDog,CAT,2\ncat,sofa,4\ncat,cat,10\nsea_lion,dog,1\n,,\n")
    judgments = load_judgments(human, ANIMALS)
    assert judgments.scores == {("cat", "dog"): 2.0, ("dog", "sea lion"): 1.0}
    assert [(item.words, item.reason) for item in judgments.dropped] == [
        (("cat", "sofa"), "no concept"),
        (("cat", "cat"), "a word with itself"),
    ]
    assert judgments.notes == [
        "mine: 2 pairs of these concepts; left out: 1 no concept, 1 a word with itself"
    ]


def test_scores_of_duplicate_pairs_are_averaged_with_a_warning(
    tmp_path: Path,
) -> None:
    """One of two contradictory scores would be used silently."""
    judgments = load_judgments(
        write_human(tmp_path, "a,b,score\nDog,cat,2\ncat,dog,4\ncat,cow,1\ncow,cat,1\n"), ANIMALS
    )
    assert judgments.scores == {("cat", "cow"): 1.0, ("cat", "dog"): 3.0}
    assert judgments.notes == [
        "mine: duplicate pairs: 2 (1 with different scores); scores averaged. "
        "The first: 'cat' and 'dog': 2, 4",
        "mine: 2 pairs of these concepts",
    ]


def test_spellings_of_a_word_match_exactly_one_concept(tmp_path: Path) -> None:
    """A score would be lost or land on the wrong concept."""
    human = write_human(tmp_path, "a,b,score\nSea-Lion,cafe\u0301,3\n")
    assert load_judgments(human, ["sea_lion", "café"]).scores == {("café", "sea_lion"): 3.0}
    error = error_message(human, ["sea lion", "sea_lion", "café"])
    assert error == "concepts 'sea lion' and 'sea_lion' map to the same word in human data"


def test_plurals_match_a_concept_only_with_lemma(tmp_path: Path) -> None:
    """Plurals would match where the user expects exact words."""
    human = write_human(tmp_path, "a,b,score\ncats,dogs,2\nsea lions,cow,1\n")
    assert load_judgments(human, ANIMALS).scores == {}
    expected = {("cat", "dog"): 2.0, ("cow", "sea lion"): 1.0}
    assert load_judgments(replace(human, lemma=True), ANIMALS).scores == expected


def test_dissimilarities_are_negated(tmp_path: Path) -> None:
    """The correlation would have the wrong sign."""
    human = replace(write_human(tmp_path, "a,b,score\ncat,dog,2\ncat,cow,5\n"), dissimilar=True)
    assert load_judgments(human, ANIMALS).scores == {("cat", "cow"): -5.0, ("cat", "dog"): -2.0}


def test_the_noise_ceiling_uses_the_raters_of_the_pairs(tmp_path: Path) -> None:
    """The noise ceiling would include pairs that are not compared."""
    content = "a,b,score,r1,r2,r3\ncat,dog,3,3,4,\ncat,cow,2,1,2,2\ncow,dog,1,2,1,3\n"
    human = replace(write_human(tmp_path, content), raters=("r1", "r2", "r3"))
    judgments = load_judgments(human, ANIMALS)
    assert judgments.raters["cat", "cow"] == [1, 2, 2]
    ratings = np.array([judgments.raters[pair] for pair in sorted(judgments.scores)]).T
    # r1 with (2, 4, 2) and r2 with (1.5, 3, 2.5); r3 rated two pairs, which is too few
    assert lower_noise_ceiling("spearman", ratings) == pytest.approx((np.sqrt(3) / 2 + 0.5) / 2)


def test_a_rater_of_only_one_duplicate_is_kept(tmp_path: Path) -> None:
    """The mean over duplicates would be NaN for a rater who rated one of them."""
    content = "a,b,score,r1,r2,r3\ncat,dog,3,3,4,\ndog,cat,1,1,,\ncat,cow,2,1,2,2\ncow,dog,1,2,1,3\n"
    judgments = load_judgments(
        replace(write_human(tmp_path, content), raters=("r1", "r2", "r3")), ANIMALS
    )
    assert judgments.raters["cat", "dog"] == pytest.approx([2, 4, np.nan], nan_ok=True)
    assert judgments.raters["cow", "dog"] == [2, 1, 3]


def test_a_matrix_is_read_with_its_names_or_from_npy(tmp_path: Path) -> None:
    """Rows would be matched to the wrong items."""
    values = np.array([[9.0, 1, 2, 0], [1, 9, 3, 0], [2, 3, 9, 0], [0, 0, 0, 9]])
    names = ["dog", "cow", "cat", "sofa"]
    rows = [",".join([name, *map(str, row)]) for name, row in zip(names, values, strict=True)]
    human = write_human(tmp_path, "\n".join([",".join(["", *names]), *rows]) + "\n")
    np.save(tmp_path / "m.npy", values)
    (tmp_path / "items.txt").write_text("\n".join(names) + "\n")
    npy = HumanSet("mine", tmp_path / "m.npy", items=tmp_path / "items.txt")
    for human_set in (human, npy):
        judgments = load_judgments(replace(human_set, kind="matrix", columns=()), ANIMALS)
        assert judgments.scores == {("cat", "cow"): 3.0, ("cat", "dog"): 2.0, ("cow", "dog"): 1.0}
        assert [item.words for item in judgments.dropped] == [("sofa",)]
    negated = load_judgments(replace(npy, kind="matrix", columns=(), dissimilar=True), ANIMALS)
    assert negated.scores["cat", "cow"] == -3.0


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (",cat,dog\ncat,0,1\ndog,2,0\n", "not symmetric: 'cat' with 'dog' is 1, but the other way 2"),
        (",cat,dog\ncat,0,1\n", "is 1 by 2; a matrix must be square"),
        (",cat,dog\ncat,0,x\ndog,0,0\n", "line 2: the value is 'x'"),
        (",cat,cat\ncat,0,1\ncat,1,0\n", "duplicate item 'cat'"),
        (",cat,cow\ncat,0,1\ndog,1,0\n", "the column 'cow' does not match any row"),
        (",cat,cat\ncat,0,1\ndog,1,0\n", "duplicate column 'cat'"),
        (",cat,Cat\ncat,0,1\nCat,1,0\n", "the items 'cat' and 'Cat' both name 'cat'"),
        ("", "has no numbers"),
    ],
)
def test_an_invalid_matrix_is_rejected(tmp_path: Path, content: str, message: str) -> None:
    """Half of a contradictory matrix would be used silently."""
    human = replace(write_human(tmp_path, content), kind="matrix", columns=())
    assert message in error_message(human)


def test_a_matrix_may_be_reordered_or_triangular(tmp_path: Path) -> None:
    """Read by position, scores would land on other pairs."""
    expected = {("cat", "cow"): 3.0, ("cat", "dog"): 2.0}
    for content in (
        ",cow,cat,dog\ndog,,2,9\ncow,9,3,\ncat,3,9,2\n",
        ",dog,cow,cat\ndog,,,\ncow,NA,,\ncat,2,3,\n",
    ):
        judgments = load_judgments(
            replace(write_human(tmp_path, content), kind="matrix", columns=()), ANIMALS
        )
        assert judgments.scores == expected
        assert [(item.words, item.reason) for item in judgments.dropped] == [
            (("cow", "dog"), "no number")
        ]


def test_invalid_embeddings_are_rejected(tmp_path: Path) -> None:
    """Vectors would be matched to the wrong items, or pickled code be run."""
    items = tmp_path / "items.txt"
    items.write_text("cat\ndog\ncow\n")
    human = HumanSet("mine", tmp_path / "e.npy", "embeddings", (), items=items)
    np.save(human.path, np.array([{"a": 1}, 2, 3], dtype=object), allow_pickle=True)
    assert "is not a .npy file of numbers" in error_message(human)
    np.save(human.path, np.ones((3, 2)) + 1j)
    assert "is not a .npy file of numbers: its values are complex128" in error_message(human)
    np.save(human.path, np.ones((2, 4)))
    assert "has the shape (2, 4), but there are 3 items" in error_message(human)
    np.save(human.path, np.array([[1.0, np.nan], [1, 2], [3, 4]]))
    assert "the item 'cat' has missing or non-finite numbers" in error_message(human)
    assert "has no item names; set `items`" in error_message(replace(human, items=None))
    np.save(human.path, np.array([[0.0, 0], [1, 2], [3, 4]]))
    assert "'cat' is the zero vector; cosine is undefined" in error_message(human)
    assert len(load_judgments(human, ["dog", "cow"]).scores) == 1


def test_embeddings_are_compared_by_the_given_measure(tmp_path: Path) -> None:
    """Similarities would be those of another measure."""
    vectors = np.abs(np.random.default_rng(0).standard_normal((4, 3)))
    (tmp_path / "items.txt").write_text("dog\nsofa\ncat\ncow\n")
    np.save(tmp_path / "e.npy", vectors)
    np.savetxt(tmp_path / "e.txt", vectors)
    human = HumanSet("mine", tmp_path / "e.npy", "embeddings", (), items=tmp_path / "items.txt")
    dog, cat = vectors[0], vectors[2]
    cosine = dog @ cat / np.linalg.norm(dog) / np.linalg.norm(cat)
    assert load_judgments(human, ANIMALS).scores["cat", "dog"] == pytest.approx(cosine)
    dot = load_judgments(replace(human, vectors="dot"), ANIMALS)
    assert dot.scores["cat", "dog"] == pytest.approx(dog @ cat)
    text = load_judgments(replace(human, path=tmp_path / "e.txt", vectors="dot"), ANIMALS)
    assert text.scores == pytest.approx(dot.scores)
    softmax = load_judgments(replace(human, vectors="softmax"), ANIMALS).scores["cat", "dog"]
    chances = [
        np.exp(dog @ cat) / (np.exp(dog @ cat) + np.exp(dog @ third) + np.exp(cat @ third))
        for third in (vectors[1], vectors[3])
    ]
    assert softmax == pytest.approx(np.mean(chances))


def test_the_triplet_softmax_equals_a_plain_loop_and_never_overflows() -> None:
    """The vectorized form could differ from the definition, or overflow for long vectors."""
    random = np.random.default_rng(1)
    vectors = random.standard_normal((9, 4))
    indices = np.array([0, 3, 4, 8])
    similarity = triplet_similarity(vectors, indices)
    products = vectors @ vectors.T
    for (row, i), (column, j) in itertools.permutations(enumerate(indices), 2):
        chances = [
            np.exp(products[i, j])
            / (np.exp(products[i, j]) + np.exp(products[i, k]) + np.exp(products[j, k]))
            for k in range(9)
            if k not in (i, j)
        ]
        assert similarity[row, column] == pytest.approx(np.mean(chances))
    large = triplet_similarity(vectors * 100, indices)
    assert np.isfinite(large[np.triu_indices(4, 1)]).all()
    with pytest.raises(ValueError, match="at least 3 items, got 2"):
        triplet_similarity(vectors[:2], np.array([0, 1]))


def test_feature_norms_are_read_wide_and_long(tmp_path: Path) -> None:
    """The two layouts would give different similarities."""
    wide = write_human(tmp_path, "concept,barks,eats\ndog,2,1\ncat,0,1\ncow,0,\n", "wide.csv")
    assert "the item 'cow' has missing" in error_message(replace(wide, kind="features", columns=()))
    wide = write_human(tmp_path, "concept,barks,eats\ndog,2,1\ncat,0,1\n", "wide.csv")
    long = write_human(tmp_path, "concept,feature,n\ndog,barks,2\ndog,eats,1\ncat,eats,1\n", "long.csv")
    for human_set, columns in ((wide, ()), (long, ("concept", "feature", "n"))):
        judgments = load_judgments(replace(human_set, kind="features", columns=columns), ANIMALS)
        assert judgments.scores == {("cat", "dog"): pytest.approx(1 / np.sqrt(5))}


def test_pairs_in_a_common_category_have_similarity_1(tmp_path: Path) -> None:
    """A word in two categories would match only one of them."""
    human = write_human(tmp_path, "category,word\npet,cat\npet,dog\nfarm,cow\nfarm,dog\nseat,sofa\n")
    judgments = load_judgments(replace(human, kind="categories", columns=("category", "word")), ANIMALS)
    assert judgments.scores == {("cat", "cow"): 0.0, ("cat", "dog"): 1.0, ("cow", "dog"): 1.0}
    assert [item.words for item in judgments.dropped] == [("sofa", "seat")]
    nameless = replace(human, path=write_human(tmp_path, "category,word\n,cat\n,dog\n", "no.csv").path)
    assert "line 2: a word is missing" in error_message(
        replace(nameless, kind="categories", columns=("category", "word"))
    )


def write_wordnet(folder: Path) -> list[int]:
    """A small WordNet: entity > animal > (dog > puppy, cat, sea lion); entity > cat (a whip)."""
    return write_nouns(
        folder,
        [
            Synset("entity", gloss="that which is"),
            Synset("animal", [0], "a living thing"),
            Synset("dog domestic_dog", [1], "barks"),
            Synset("puppy", [2], "a young | dog"),
            Synset("cat", [1], "mews"),
            Synset("sea_lion", [1], "swims", symbol="@i"),
            Synset("cat", [0], "a whip"),
        ],
    )


def test_wordnet_similarities_equal_a_count_by_hand(tmp_path: Path) -> None:
    """Edges, depths or senses would be those of other synsets."""
    whip_offset = write_wordnet(tmp_path)[-1]
    human = HumanSet("wn", tmp_path, "wordnet", ())
    concepts = ["cat", "dog", "puppy", "sea lion", "sofa"]
    judgments = load_judgments(human, concepts)
    assert judgments.scores["cat", "dog"] == pytest.approx(1 / 3)
    assert judgments.scores["dog", "puppy"] == pytest.approx(1 / 2)
    assert judgments.scores["cat", "puppy"] == pytest.approx(1 / 4)
    assert judgments.scores["puppy", "sea lion"] == pytest.approx(1 / 4)
    assert [(item.words, item.reason) for item in judgments.dropped] == [
        (("sofa",), "no noun of WordNet")
    ]
    wu = load_judgments(replace(human, taxonomy="wu-palmer"), concepts)
    # animal has the depth 2; cat 3, dog 3, puppy 4
    assert wu.scores["cat", "dog"] == pytest.approx(2 * 2 / (3 + 3))
    assert wu.scores["cat", "puppy"] == pytest.approx(2 * 2 / (3 + 4))
    assert wu.identity != judgments.identity
    for sense in ("cat.n.02", f"{whip_offset:08}-n"):
        whip = load_judgments(human, concepts, {"cat": sense})
        assert whip.scores["cat", "dog"] == pytest.approx(1 / 4)
    missing = load_judgments(human, concepts, {"cat": "cat.n.03"})
    assert (("cat",), "no noun of WordNet") in [(item.words, item.reason) for item in missing.dropped]


def test_an_invalid_wordnet_is_rejected(tmp_path: Path) -> None:
    """The user would see a traceback, or similarities of a broken hierarchy."""
    human = HumanSet("wn", tmp_path, "wordnet", ())
    assert "index.noun: no such file; give the folder `dict`" in error_message(human)
    write_wordnet(tmp_path)
    (tmp_path / "data.noun").write_text("a b c\n")
    assert "is not in WordNet's format" in error_message(human)
    write_nouns(tmp_path, [Synset("cat", [1]), Synset("dog", [0])])
    assert "has a cycle" in error_message(human)


def test_triplets_preserve_the_odd_one_out(tmp_path: Path) -> None:
    """Sorting the words would lose which one is odd."""
    human = replace(
        write_human(tmp_path, "a,b,odd\ndog,cat,cow\ncat,sofa,dog\n"),
        kind="triplets",
        columns=("a", "b", "odd"),
    )
    judgments = load_judgments(human, ANIMALS)
    assert judgments.triplets == [("cat", "dog", "cow")]
    assert Counter(item.reason for item in judgments.dropped) == {"no concept": 1}
    same = replace(human, path=write_human(tmp_path, "a,b,odd\ncat,cat,dog\n", "same.csv").path)
    assert "are not three different items" in error_message(same)
    # the format of THINGS: indices into the list of items
    (tmp_path / "items.txt").write_text("sofa\ncat\ndog\ncow\n")
    indexed = write_human(tmp_path, "2 1 3\n1 0 2\n", "places.txt")
    indexed = replace(indexed, kind="triplets", columns=(1, 2, 3), items=tmp_path / "items.txt")
    assert load_judgments(indexed, ANIMALS).triplets == judgments.triplets
    beyond = replace(indexed, path=write_human(tmp_path, "1 2 4\n", "beyond.txt").path)
    assert "line 1: item index '4' is out of range 0..3" in error_message(beyond)


def test_odd_one_out_accuracy_equals_a_loop_with_ties_split_evenly() -> None:
    """Ties would count as correct or wrong."""
    random = np.random.default_rng(3)
    similar = random.integers(0, 5, (2, 12, 12)).astype(float)
    similar += similar.transpose(0, 2, 1)
    similar[1] = 1.0
    members = np.array([random.permutation(12)[:3] for _ in range(80)])
    first, second, odd = members.T
    similar_pairs = similar[:, first, second]
    others = np.stack([similar[:, first, odd], similar[:, second, odd]], axis=2)
    accuracy = odd_one_out_accuracy(
        similar_pairs, others, members, method="concept-bootstrap", resamples=200
    )
    correct = 0.0
    for a, b, c in members:
        sides = [similar[0, a, b], similar[0, a, c], similar[0, b, c]]
        correct += (sides[0] == max(sides)) / sides.count(max(sides))
    assert accuracy.values == pytest.approx([correct / 80, 1 / 3])
    interval = accuracy.interval(0)
    assert interval.low is not None
    assert interval.high is not None
    assert 0 < interval.low < interval.value < interval.high < 1


def test_the_odd_one_out_p_value_equals_a_loop_and_detects_an_effect() -> None:
    """The vectorized permutation test could differ from the definition."""
    random = np.random.default_rng(5)
    matrix = random.integers(0, 6, (10, 10)).astype(float)
    matrix += matrix.T
    members = np.array([random.permutation(10)[:3] for _ in range(40)])

    def share(names: Any) -> float:
        correct = 0.0
        for a, b, c in names[members]:
            sides = [matrix[a, b], matrix[a, c], matrix[b, c]]
            correct += (sides[0] == max(sides)) / sides.count(max(sides))
        return abs(correct / 40 - 1 / 3)

    permutation_random = np.random.default_rng(2)
    permutations = permutation_random.permuted(np.tile(np.arange(10), (300, 1)), axis=1)
    n_as_extreme = sum(share(names) >= share(np.arange(10)) - 1e-9 for names in permutations)
    assert odd_one_out_p_value(matrix, members, 300, seed=2) == (1 + n_as_extreme) / 301
    chosen = []
    for a, b, c in members:
        sides = {(a, b, c): matrix[a, b], (a, c, b): matrix[a, c], (b, c, a): matrix[b, c]}
        chosen.append(max(sides, key=lambda side: sides[side]))
    assert odd_one_out_p_value(matrix, np.array(chosen), 300, seed=2) == 1 / 301
    assert odd_one_out_p_value(np.ones((10, 10)), members, 300) == 1


def test_the_odd_one_out_p_value_is_uniform_under_the_null() -> None:
    """With concepts that cluster, a naive test would find effects that are not there."""
    random = np.random.default_rng(7)
    p = []
    for seed in range(300):
        effect = random.standard_normal(25) * 2
        matrix = effect[:, None] + effect + random.standard_normal((25, 25))
        matrix += matrix.T
        # people prefer some concepts too, but not the model's
        human_preference = random.standard_normal(25)
        members = []
        for _ in range(150):
            triplet = random.choice(25, 3, replace=False)
            odd = np.argmin(human_preference[triplet] + random.standard_normal(3))
            members.append([*np.delete(triplet, odd), triplet[odd]])
        p.append(odd_one_out_p_value(matrix, np.array(members), 199, seed))
    assert kstest(p, "uniform").pvalue > 0.01
    assert 0.02 < np.mean(np.array(p) <= 0.05) < 0.09


def test_the_builtin_human_sets_are_read_completely() -> None:
    """WordSim-353's relatedness file ends with an empty row; MEN has 2,005 pairs of two nouns."""
    sizes = {
        name: len(read_pairs(builtin_human_set(name)))
        for name in builtin_human_sets()
        if builtin_human_set(name).kind == "pairs"
    }
    assert sizes == {
        "men": 3000,
        "simlex999": 999,
        "wordsim353": 353,
        "wordsim353-similarity": 203,
        "wordsim353-relatedness": 252,
        "rg65": 65,
        "mc30": 30,
        "mturk287": 287,
        "mturk771": 771,
        "simverb3500": 3500,
        "rw": 2034,
    }
    men = load_judgments(builtin_human_set("men"), ["car", "automobile", "sun", "sunlight"])
    assert men.scores["automobile", "car"] == 50.0
    assert Counter(item.reason for item in men.dropped)["another part of speech"] == 995
    with_ceiling = {name for name in builtin_human_sets() if builtin_human_set(name).ceiling}
    assert with_ceiling == {"men", "mturk771"}
    battig = load_judgments(builtin_human_set("battig"), ["robin", "eagle", "trout"])
    assert battig.scores == {("eagle", "robin"): 1.0, ("eagle", "trout"): 0.0, ("robin", "trout"): 0.0}


def test_wordsims_two_halves_are_subsets_of_it() -> None:
    """A file of another data set would carry its name."""
    whole = {
        (p.first.lower(), p.second.lower(), p.score) for p in read_pairs(builtin_human_set("wordsim353"))
    }
    for half in ("similarity", "relatedness"):
        part = read_pairs(builtin_human_set(f"wordsim353-{half}"))
        assert {(p.first.lower(), p.second.lower(), p.score) for p in part} <= whole


@pytest.mark.parametrize(
    ("human", "message"),
    [
        ("[mean]", "human[0].name: 'mean': expected men, simlex999"),
        ("[{name: men, kind: matrix}]", "human[0].kind: not allowed for the built-in 'men'"),
        (
            "[{name: x, path: x.csv, columns: [a, b]}]",
            "expected 3 columns for kind pairs, got 2",
        ),
        ("[{name: x, path: x.csv, kind: list}]", "human[0].kind: 'list'"),
        ("[{name: men, path: x.csv}]", "'men' is a built-in data set; choose another name"),
        ("[{name: x, path: x.csv, vectors: dot}]", "vectors: not allowed for kind pairs"),
        ("[{name: x, path: x.csv, columns: [1, b, 3]}]", "must be all names, or all numbers"),
        ("[{name: x, path: x.csv, raters: [4]}]", "must be all names, or all numbers"),
    ],
)
def test_invalid_human_data_settings_are_rejected(tmp_path: Path, human: str, message: str) -> None:
    """A setting that has no effect would be ignored silently."""
    (tmp_path / "sweep.yaml").write_text(f"concepts: a.csv\nmodels: [a]\nhuman: {human}\n")
    with pytest.raises(UserError) as caught:
        read_sweep(tmp_path / "sweep.yaml")
    assert message in str(caught.value)
