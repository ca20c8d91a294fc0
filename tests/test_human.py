"""Human judgments come in many forms and with many flaws: what is wrong must be one clear line, what is
odd a warning, and what was left out must be told; a score must never land on the wrong pair."""

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

from alignment.statistics.rank_correlation import rater_ceiling
from alignment.statistics.triplets import chance_of_share, share_predicted, triplet_similarity
from jobs.config import read_sweep
from jobs.sources.human_judgments import judge
from storage.errors import UserError
from storage.readers.human import HumanSet, known_set, known_sets, read_pairs

ANIMALS = ["cat", "dog", "cow", "sea lion"]


def written(folder: Path, content: str, name: str = "human.csv") -> HumanSet:
    (folder / name).write_text(content)
    return HumanSet("mine", folder / name)


def refused(human: HumanSet, concepts: list[str] = ANIMALS) -> str:
    with pytest.raises(UserError) as caught:
        judge(human, concepts)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "is empty; its first line names the columns a, b, score"),
        ("a,b\ncat,dog\n", "has no column 'score'"),
        ("a,b,score\ncat,dog,high\n", "line 2: the score is 'high'; expected a number"),
        ("a,b,score\ncat,dog,nan\n", "line 2: the score is 'nan'"),
        ("a,b,score\ncat,dog,\n", "line 2: the score is ''"),
        ("a,b,score\ncat,dog,1_0\n", "line 2: the score is '1_0'"),
        ("a,b,score\ncat,dog\n", "line 2: not 3 columns"),
        ("a,b,score\ncat,,1\n", "line 2: a word is missing"),
        ("a,b,score\n,,\n", "has no row below the names of its columns"),
        ("a,b,score,score\ncat,dog,1,2\n", "has 2 columns 'score'"),
        ("cat,dog,1\n", "has no column 'a'; its columns are cat, dog, 1. `columns` says which"),
    ],
)
def test_a_list_of_pairs_that_is_wrong_is_refused(tmp_path: Path, content: str, message: str) -> None:
    told = refused(written(tmp_path, content))
    assert message in told
    assert str(tmp_path / "human.csv") in told


def test_files_that_are_not_there_or_not_what_they_seem_are_refused(tmp_path: Path) -> None:
    assert "no such file" in refused(HumanSet("mine", tmp_path / "none.csv"))
    (tmp_path / "latin.csv").write_bytes("a,b,score\ncafé,dog,1\n".encode("latin-1"))
    assert "is not UTF-8" in refused(HumanSet("mine", tmp_path / "latin.csv"))
    assert "is no Parquet file" in refused(written(tmp_path, "a,b,score\n", "human.parquet"))


def test_pairs_are_read_alike_from_csv_tsv_and_parquet(tmp_path: Path) -> None:
    content = "one,two,mean\ncat,dog,2.5\ndog,cow,1\n"
    human = replace(written(tmp_path, content), columns=("one", "two", "mean"))
    tab = replace(written(tmp_path, content.replace(",", "\t"), "human.tsv"), columns=human.columns)
    table = pa.table({"one": ["cat", "dog"], "two": ["dog", "cow"], "mean": [2.5, 1.0]})
    pq.write_table(table, tmp_path / "human.parquet")
    parquet = replace(human, path=tmp_path / "human.parquet")
    for each in (human, tab, parquet):
        assert judge(each, ANIMALS).scores == {("cat", "dog"): 2.5, ("cow", "dog"): 1.0}


@pytest.mark.parametrize(
    "content",
    [
        "\ufeffa,b,score\r\ncat,dog,2\r\nCOW,Cat,1\r\n",
        "a;b;score\ncat;dog;2\ncow;cat;1\n",
        "a, b, score\ncat, dog, 2\ncow, cat, 1\n",
        '"a" "b" "score"\n"cat" "dog" 2\n"cow" "cat" 1\n',
    ],
)
def test_the_marks_of_other_programs_are_read(tmp_path: Path, content: str) -> None:
    assert judge(written(tmp_path, content), ANIMALS).scores == {("cat", "dog"): 2, ("cat", "cow"): 1}


def test_files_as_they_are_published_name_no_columns_and_tag_parts_of_speech(tmp_path: Path) -> None:
    """MEN's own file has spaces and tags; Rare Words' has tabs, and a column for each rater."""
    men = written(tmp_path, "cat-n dog-n 40.0\ncow-n run-v 3.0\n", "men.txt")
    found = judge(replace(men, columns=(1, 2, 3), suffix="-n"), ANIMALS)
    assert found.scores == {("cat", "dog"): 40.0}
    assert [each.reason for each in found.dropped] == ["another part of speech"]
    rare = written(tmp_path, "cat\tdog\t2.5\t2\t3\n", "rw.txt")
    found = judge(replace(rare, columns=(1, 2, 3), raters=(4, 5)), ANIMALS)
    assert found.raters == {("cat", "dog"): [2.0, 3.0]}
    assert "has no column 6; there are 5" in refused(replace(rare, columns=(1, 2, 6)))


def test_what_is_left_out_is_told_with_its_reason(tmp_path: Path) -> None:
    human = written(tmp_path, "a,b,score\nDog,CAT,2\ncat,sofa,4\ncat,cat,10\nsea_lion,dog,1\n,,\n")
    found = judge(human, ANIMALS)
    assert found.scores == {("cat", "dog"): 2.0, ("dog", "sea lion"): 1.0}
    assert [(each.words, each.reason) for each in found.dropped] == [
        (("cat", "sofa"), "no concept"),
        (("cat", "cat"), "a word with itself"),
    ]
    assert found.notes == [
        "mine: 2 pairs of these concepts; left out: 1 no concept, 1 a word with itself"
    ]


def test_pairs_that_are_doubled_or_contradict_each_other_get_their_mean_and_a_warning(
    tmp_path: Path,
) -> None:
    found = judge(written(tmp_path, "a,b,score\nDog,cat,2\ncat,dog,4\ncat,cow,1\ncow,cat,1\n"), ANIMALS)
    assert found.scores == {("cat", "cow"): 1.0, ("cat", "dog"): 3.0}
    assert found.notes == [
        "mine: pairs that are rated more than once: 2, 1 of them differently; their mean counts. "
        "The first: 'cat' and 'dog': 2, 4",
        "mine: 2 pairs of these concepts",
    ]


def test_words_are_one_in_either_spelling_and_never_two_concepts(tmp_path: Path) -> None:
    human = written(tmp_path, "a,b,score\nSea-Lion,cafe\u0301,3\n")
    assert judge(human, ["sea_lion", "café"]).scores == {("café", "sea_lion"): 3.0}
    told = refused(human, ["sea lion", "sea_lion", "café"])
    assert told == "concepts 'sea lion' and 'sea_lion' are one word in human data"


def test_plurals_name_a_concept_only_when_asked(tmp_path: Path) -> None:
    human = written(tmp_path, "a,b,score\ncats,dogs,2\nsea lions,cow,1\n")
    assert judge(human, ANIMALS).scores == {}
    expected = {("cat", "dog"): 2.0, ("cow", "sea lion"): 1.0}
    assert judge(replace(human, lemma=True), ANIMALS).scores == expected


def test_dissimilarities_are_turned_round(tmp_path: Path) -> None:
    human = replace(written(tmp_path, "a,b,score\ncat,dog,2\ncat,cow,5\n"), dissimilar=True)
    assert judge(human, ANIMALS).scores == {("cat", "cow"): -5.0, ("cat", "dog"): -2.0}


def test_the_ceiling_is_that_of_the_raters_of_the_pairs(tmp_path: Path) -> None:
    content = "a,b,score,r1,r2,r3\ncat,dog,3,3,4,\ncat,cow,2,1,2,2\ncow,dog,1,2,1,3\n"
    human = replace(written(tmp_path, content), raters=("r1", "r2", "r3"))
    found = judge(human, ANIMALS)
    assert found.raters["cat", "cow"] == [1, 2, 2]
    ratings = np.array([found.raters[pair] for pair in sorted(found.scores)]).T
    # r1 with (2, 4, 2) and r2 with (1.5, 3, 2.5); r3 rated two pairs, which is too few
    assert rater_ceiling("spearman", ratings) == pytest.approx((np.sqrt(3) / 2 + 0.5) / 2)


def test_a_rater_who_rated_a_doubled_pair_once_is_not_lost(tmp_path: Path) -> None:
    content = "a,b,score,r1,r2,r3\ncat,dog,3,3,4,\ndog,cat,1,1,,\ncat,cow,2,1,2,2\ncow,dog,1,2,1,3\n"
    found = judge(replace(written(tmp_path, content), raters=("r1", "r2", "r3")), ANIMALS)
    assert found.raters["cat", "dog"] == pytest.approx([2, 4, np.nan], nan_ok=True)
    assert found.raters["cow", "dog"] == [2, 1, 3]


def test_a_matrix_is_read_with_its_names_or_from_npy(tmp_path: Path) -> None:
    values = np.array([[9.0, 1, 2, 0], [1, 9, 3, 0], [2, 3, 9, 0], [0, 0, 0, 9]])
    names = ["dog", "cow", "cat", "sofa"]
    rows = [",".join([name, *map(str, row)]) for name, row in zip(names, values, strict=True)]
    human = written(tmp_path, "\n".join([",".join(["", *names]), *rows]) + "\n")
    np.save(tmp_path / "m.npy", values)
    (tmp_path / "items.txt").write_text("\n".join(names) + "\n")
    npy = HumanSet("mine", tmp_path / "m.npy", items=tmp_path / "items.txt")
    for each in (human, npy):
        found = judge(replace(each, kind="matrix", columns=()), ANIMALS)
        assert found.scores == {("cat", "cow"): 3.0, ("cat", "dog"): 2.0, ("cow", "dog"): 1.0}
        assert [each.words for each in found.dropped] == [("sofa",)]
    turned = judge(replace(npy, kind="matrix", columns=(), dissimilar=True), ANIMALS)
    assert turned.scores["cat", "cow"] == -3.0


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (",cat,dog\ncat,0,1\ndog,2,0\n", "not symmetric: 'cat' with 'dog' is 1, but the other way 2"),
        (",cat,dog\ncat,0,1\n", "is 1 by 2; a matrix is square"),
        (",cat,dog\ncat,0,x\ndog,0,0\n", "line 2: the value is 'x'"),
        (",cat,cat\ncat,0,1\ncat,1,0\n", "the item 'cat' stands twice"),
        (",cat,cow\ncat,0,1\ndog,1,0\n", "the column 'cow' is the name of no row"),
        (",cat,cat\ncat,0,1\ndog,1,0\n", "the column 'cat' stands twice"),
        (",cat,Cat\ncat,0,1\nCat,1,0\n", "the items 'cat' and 'Cat' are both 'cat'"),
        ("", "holds no numbers"),
    ],
)
def test_a_matrix_that_is_wrong_is_refused(tmp_path: Path, content: str, message: str) -> None:
    human = replace(written(tmp_path, content), kind="matrix", columns=())
    assert message in refused(human)


def test_a_matrix_may_have_its_columns_in_another_order_or_one_half(tmp_path: Path) -> None:
    """Read by place, the numbers of other pairs would be taken."""
    expected = {("cat", "cow"): 3.0, ("cat", "dog"): 2.0}
    for content in (
        ",cow,cat,dog\ndog,,2,9\ncow,9,3,\ncat,3,9,2\n",
        ",dog,cow,cat\ndog,,,\ncow,NA,,\ncat,2,3,\n",
    ):
        found = judge(replace(written(tmp_path, content), kind="matrix", columns=()), ANIMALS)
        assert found.scores == expected
        assert [(each.words, each.reason) for each in found.dropped] == [(("cow", "dog"), "no number")]


def test_embeddings_must_be_plain_numbers_with_as_many_names(tmp_path: Path) -> None:
    items = tmp_path / "items.txt"
    items.write_text("cat\ndog\ncow\n")
    human = HumanSet("mine", tmp_path / "e.npy", "embeddings", (), items=items)
    np.save(human.path, np.array([{"a": 1}, 2, 3], dtype=object), allow_pickle=True)
    assert "is no .npy file of numbers" in refused(human)
    np.save(human.path, np.ones((3, 2)) + 1j)
    assert "is no .npy file of numbers: its values are complex128" in refused(human)
    np.save(human.path, np.ones((2, 4)))
    assert "has the shape (2, 4), but there are 3 items" in refused(human)
    np.save(human.path, np.array([[1.0, np.nan], [1, 2], [3, 4]]))
    assert "the item 'cat' has numbers that are missing or not finite" in refused(human)
    assert "give the file of its items' names" in refused(replace(human, items=None))
    np.save(human.path, np.array([[0.0, 0], [1, 2], [3, 4]]))
    assert "all numbers of 'cat' are 0" in refused(human)
    assert len(judge(human, ["dog", "cow"]).scores) == 1


def test_embeddings_are_compared_as_told(tmp_path: Path) -> None:
    vectors = np.abs(np.random.default_rng(0).standard_normal((4, 3)))
    (tmp_path / "items.txt").write_text("dog\nsofa\ncat\ncow\n")
    np.save(tmp_path / "e.npy", vectors)
    np.savetxt(tmp_path / "e.txt", vectors)
    human = HumanSet("mine", tmp_path / "e.npy", "embeddings", (), items=tmp_path / "items.txt")
    dog, cat = vectors[0], vectors[2]
    cosine = dog @ cat / np.linalg.norm(dog) / np.linalg.norm(cat)
    assert judge(human, ANIMALS).scores["cat", "dog"] == pytest.approx(cosine)
    dot = judge(replace(human, vectors="dot"), ANIMALS)
    assert dot.scores["cat", "dog"] == pytest.approx(dog @ cat)
    text = judge(replace(human, path=tmp_path / "e.txt", vectors="dot"), ANIMALS)
    assert text.scores == pytest.approx(dot.scores)
    softmax = judge(replace(human, vectors="softmax"), ANIMALS).scores["cat", "dog"]
    chances = [
        np.exp(dog @ cat) / (np.exp(dog @ cat) + np.exp(dog @ third) + np.exp(cat @ third))
        for third in (vectors[1], vectors[3])
    ]
    assert softmax == pytest.approx(np.mean(chances))


def test_the_triplet_softmax_is_that_of_a_plain_loop_and_never_overflows() -> None:
    random = np.random.default_rng(1)
    vectors = random.standard_normal((9, 4))
    wanted = np.array([0, 3, 4, 8])
    found = triplet_similarity(vectors, wanted)
    products = vectors @ vectors.T
    for (row, i), (column, j) in itertools.permutations(enumerate(wanted), 2):
        chances = [
            np.exp(products[i, j])
            / (np.exp(products[i, j]) + np.exp(products[i, k]) + np.exp(products[j, k]))
            for k in range(9)
            if k not in (i, j)
        ]
        assert found[row, column] == pytest.approx(np.mean(chances))
    large = triplet_similarity(vectors * 100, wanted)
    assert np.isfinite(large[np.triu_indices(4, 1)]).all()
    with pytest.raises(ValueError, match="2 items; the choice is of three"):
        triplet_similarity(vectors[:2], np.array([0, 1]))


def test_feature_norms_are_read_wide_and_long(tmp_path: Path) -> None:
    wide = written(tmp_path, "concept,barks,eats\ndog,2,1\ncat,0,1\ncow,0,\n", "wide.csv")
    assert "the item 'cow' has numbers that are missing" in refused(
        replace(wide, kind="features", columns=())
    )
    wide = written(tmp_path, "concept,barks,eats\ndog,2,1\ncat,0,1\n", "wide.csv")
    long = written(tmp_path, "concept,feature,n\ndog,barks,2\ndog,eats,1\ncat,eats,1\n", "long.csv")
    for each, columns in ((wide, ()), (long, ("concept", "feature", "n"))):
        found = judge(replace(each, kind="features", columns=columns), ANIMALS)
        assert found.scores == {("cat", "dog"): pytest.approx(1 / np.sqrt(5))}


def test_categories_make_pairs_alike_or_not(tmp_path: Path) -> None:
    human = written(tmp_path, "category,word\npet,cat\npet,dog\nfarm,cow\nfarm,dog\nseat,sofa\n")
    found = judge(replace(human, kind="categories", columns=("category", "word")), ANIMALS)
    assert found.scores == {("cat", "cow"): 0.0, ("cat", "dog"): 1.0, ("cow", "dog"): 1.0}
    assert [each.words for each in found.dropped] == [("sofa", "seat")]
    nameless = replace(human, path=written(tmp_path, "category,word\n,cat\n,dog\n", "no.csv").path)
    assert "line 2: a word is missing" in refused(
        replace(nameless, kind="categories", columns=("category", "word"))
    )


def wordnet(folder: Path) -> Path:
    """A WordNet of six synsets: entity > animal > (dog > puppy, cat); entity > thing > cat (a whip)."""
    (folder / "index.noun").write_text(
        "  1 This stands for the licence.\n"
        "entity n 1 1 ~ 1 0 00000010\nanimal n 1 2 @ ~ 1 0 00000020\n"
        "dog n 1 2 @ ~ 1 1 00000030\npuppy n 1 1 @ 1 0 00000040\n"
        "cat n 2 1 @ 2 1 00000050 00000070\nsea_lion n 1 1 @ 1 0 00000060\n"
    )
    (folder / "data.noun").write_text(
        "  1 This stands for the licence.\n"
        "00000010 03 n 01 entity 0 001 ~ 00000020 n 0000 | that which is\n"
        "00000020 05 n 01 animal 0 002 @ 00000010 n 0000 ~ 00000030 n 0000 | a living thing\n"
        "00000030 05 n 02 dog 0 domestic_dog 0 002 @ 00000020 n 0000 ~ 00000040 n 0000 | barks\n"
        "00000040 05 n 01 puppy 0 001 @ 00000030 n 0000 | a young | dog\n"
        "00000050 05 n 01 cat 0 001 @ 00000020 n 0000 | mews\n"
        "00000060 05 n 01 sea_lion 0 001 @i 00000020 n 0000 | swims\n"
        "00000070 06 n 01 cat 1 001 @ 00000010 n 0000 | a whip\n"
    )
    return folder


def test_wordnets_measures_are_those_of_a_count_by_hand(tmp_path: Path) -> None:
    human = HumanSet("wn", wordnet(tmp_path), "wordnet", ())
    concepts = ["cat", "dog", "puppy", "sea lion", "sofa"]
    found = judge(human, concepts)
    assert found.scores["cat", "dog"] == pytest.approx(1 / 3)
    assert found.scores["dog", "puppy"] == pytest.approx(1 / 2)
    assert found.scores["cat", "puppy"] == pytest.approx(1 / 4)
    assert found.scores["puppy", "sea lion"] == pytest.approx(1 / 4)
    assert [(each.words, each.reason) for each in found.dropped] == [(("sofa",), "no noun of WordNet")]
    wu = judge(replace(human, taxonomy="wu-palmer"), concepts)
    # animal has the depth 2; cat 3, dog 3, puppy 4
    assert wu.scores["cat", "dog"] == pytest.approx(2 * 2 / (3 + 3))
    assert wu.scores["cat", "puppy"] == pytest.approx(2 * 2 / (3 + 4))
    assert wu.identity != found.identity
    for sense in ("cat.n.02", "00000070-n"):
        whip = judge(human, concepts, {"cat": sense})
        assert whip.scores["cat", "dog"] == pytest.approx(1 / 4)
    gone = judge(human, concepts, {"cat": "cat.n.03"})
    assert (("cat",), "no noun of WordNet") in [(each.words, each.reason) for each in gone.dropped]


def test_a_wordnet_that_is_none_is_refused(tmp_path: Path) -> None:
    human = HumanSet("wn", tmp_path, "wordnet", ())
    assert "index.noun: no such file; give the folder `dict`" in refused(human)
    (wordnet(tmp_path) / "data.noun").write_text("a b c\n")
    assert "is not in WordNet's format" in refused(human)
    line = "000000{0}0 05 n 01 x 0 001 @ 000000{1}0 n 0000 | in a ring\n"
    (tmp_path / "data.noun").write_text(line.format(3, 5) + line.format(5, 3))
    assert "has a cycle" in refused(human)


def test_triplets_keep_which_one_is_odd(tmp_path: Path) -> None:
    human = replace(
        written(tmp_path, "a,b,odd\ndog,cat,cow\ncat,sofa,dog\n"),
        kind="triplets",
        columns=("a", "b", "odd"),
    )
    found = judge(human, ANIMALS)
    assert found.triplets == [("cat", "dog", "cow")]
    assert Counter(each.reason for each in found.dropped) == {"no concept": 1}
    same = replace(human, path=written(tmp_path, "a,b,odd\ncat,cat,dog\n", "same.csv").path)
    assert "are not three different items" in refused(same)
    # as THINGS comes: places in the list of items
    (tmp_path / "items.txt").write_text("sofa\ncat\ndog\ncow\n")
    placed = written(tmp_path, "2 1 3\n1 0 2\n", "places.txt")
    placed = replace(placed, kind="triplets", columns=(1, 2, 3), items=tmp_path / "items.txt")
    assert judge(placed, ANIMALS).triplets == found.triplets
    beyond = replace(placed, path=written(tmp_path, "1 2 4\n", "beyond.txt").path)
    assert "line 1: '4' is no item's place, from 0 to 3" in refused(beyond)


def test_the_share_of_triplets_predicted_is_that_of_a_loop_and_ties_are_lots() -> None:
    random = np.random.default_rng(3)
    similar = random.integers(0, 5, (2, 12, 12)).astype(float)
    similar += similar.transpose(0, 2, 1)
    similar[1] = 1.0
    members = np.array([random.permutation(12)[:3] for _ in range(80)])
    first, second, odd = members.T
    alike = similar[:, first, second]
    others = np.stack([similar[:, first, odd], similar[:, second, odd]], axis=2)
    found = share_predicted(alike, others, members, method="concept-bootstrap", resamples=200)
    right = 0.0
    for a, b, c in members:
        sides = [similar[0, a, b], similar[0, a, c], similar[0, b, c]]
        right += (sides[0] == max(sides)) / sides.count(max(sides))
    assert found.values == pytest.approx([right / 80, 1 / 3])
    interval = found.interval(0)
    assert interval.low is not None
    assert interval.high is not None
    assert 0 < interval.low < interval.value < interval.high < 1


def test_p_of_the_share_is_that_of_a_plain_loop_and_sees_an_effect() -> None:
    random = np.random.default_rng(5)
    matrix = random.integers(0, 6, (10, 10)).astype(float)
    matrix += matrix.T
    members = np.array([random.permutation(10)[:3] for _ in range(40)])

    def share(names: Any) -> float:
        found = 0.0
        for a, b, c in names[members]:
            sides = [matrix[a, b], matrix[a, c], matrix[b, c]]
            found += (sides[0] == max(sides)) / sides.count(max(sides))
        return abs(found / 40 - 1 / 3)

    drawing = np.random.default_rng(2)
    drawn = drawing.permuted(np.tile(np.arange(10), (300, 1)), axis=1)
    as_far = sum(share(names) >= share(np.arange(10)) - 1e-9 for names in drawn)
    assert chance_of_share(matrix, members, 300, seed=2) == (1 + as_far) / 301
    chosen = []
    for a, b, c in members:
        sides = {(a, b, c): matrix[a, b], (a, c, b): matrix[a, c], (b, c, a): matrix[b, c]}
        chosen.append(max(sides, key=lambda side: sides[side]))
    assert chance_of_share(matrix, np.array(chosen), 300, seed=2) == 1 / 301
    assert chance_of_share(np.ones((10, 10)), members, 300) == 1


def test_p_of_the_share_is_uniform_without_an_effect_though_concepts_cluster() -> None:
    random = np.random.default_rng(7)
    p = []
    for seed in range(300):
        effect = random.standard_normal(25) * 2
        matrix = effect[:, None] + effect + random.standard_normal((25, 25))
        matrix += matrix.T
        # people prefer some concepts too, but not those that the model does
        liked = random.standard_normal(25)
        members = []
        for _ in range(150):
            three = random.choice(25, 3, replace=False)
            odd = np.argmin(liked[three] + random.standard_normal(3))
            members.append([*np.delete(three, odd), three[odd]])
        p.append(chance_of_share(matrix, np.array(members), 199, seed))
    assert kstest(p, "uniform").pvalue > 0.01
    assert 0.02 < np.mean(np.array(p) <= 0.05) < 0.09


def test_the_known_human_sets_are_read_whole() -> None:
    """WordSim-353's relatedness file ends with an empty row; MEN has 2,005 pairs of two nouns."""
    sizes = {n: len(read_pairs(known_set(n))) for n in known_sets() if known_set(n).kind == "pairs"}
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
    men = judge(known_set("men"), ["car", "automobile", "sun", "sunlight"])
    assert men.scores["automobile", "car"] == 50.0
    assert Counter(each.reason for each in men.dropped)["another part of speech"] == 995
    with_ceiling = {name for name in known_sets() if known_set(name).ceiling}
    assert with_ceiling == {"men", "mturk771"}
    battig = judge(known_set("battig"), ["robin", "eagle", "trout"])
    assert battig.scores == {("eagle", "robin"): 1.0, ("eagle", "trout"): 0.0, ("robin", "trout"): 0.0}


def test_wordsims_two_halves_are_its_whole() -> None:
    whole = {(p.first.lower(), p.second.lower(), p.score) for p in read_pairs(known_set("wordsim353"))}
    for half in ("similarity", "relatedness"):
        part = read_pairs(known_set(f"wordsim353-{half}"))
        assert {(p.first.lower(), p.second.lower(), p.score) for p in part} <= whole


@pytest.mark.parametrize(
    ("human", "message"),
    [
        ("[mean]", "allowed: men, simlex999"),
        ("[{name: men, kind: matrix}]", "'men' is a known data set"),
        ("[{name: x, path: x.csv, columns: [a, b]}]", "columns: pairs have 3, here are 2"),
        ("[{name: x, path: x.csv, kind: list}]", "human[0].kind: 'list'"),
        ("[{name: men, path: x.csv}]", "'men' is that of a known data set; call the file otherwise"),
        ("[{name: x, path: x.csv, vectors: dot}]", "vectors: pairs have none"),
        ("[{name: x, path: x.csv, columns: [1, b, 3]}]", "name all by name, or all by number"),
        ("[{name: x, path: x.csv, raters: [4]}]", "name all by name, or all by number"),
    ],
)
def test_a_sweep_file_that_reads_human_data_wrongly_is_refused(
    tmp_path: Path, human: str, message: str
) -> None:
    (tmp_path / "sweep.yaml").write_text(f"concepts: a.csv\nmodels: [a]\nhuman: {human}\n")
    with pytest.raises(UserError) as caught:
        read_sweep(tmp_path / "sweep.yaml")
    assert message in str(caught.value)
