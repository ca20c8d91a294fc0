"""What a neuron fires on: the wrong token, that of another pooling or sentence, or a value that is not
the pooled one."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from cluster.activations import token_pass
from cluster.activations.pooling_shard import ActivationSettings
from cluster.activations.token_pass import TokenPass
from cluster.activations.token_rows import UNREPEATED, TokenRequest, TokenRows
from cluster.activations.token_shard import NO_TOKEN, SiteTargets, TokenShard
from cluster.models.token_roles import POOLED_ROLES, role_bits
from cluster.models.tokenizer import Text, Tokenizer
from jobs import planner, sweep
from jobs.config.loader import read_sweep
from storage import tables
from storage.database import open_store
from storage.store.manifest import read_work_units
from tests import plain_forward, tiny
from tests.faults import in_one_process
from tests.pooled import pool, read_texts

POOLINGS = list(POOLED_ROLES)
TEXTS = [
    ("A cat saw that the cat was not the only cat here.", "cat"),
    ("The boat was seen near the old mill this morning.", "boat"),
    ("Nobody knows why a bus would come here at night!", "bus"),
    ("No animal at all, and no vehicle.", ""),
    ("Cow and dog ran.", "Cow"),
    ("Is that your dog or mine? Wir sahen «naïve» cafés.", "dog"),
]


def find_spans(text: str, word: str) -> list[int]:
    """Start and end of every occurrence of a word, flat."""
    spans, start = list[int](), text.find(word) if word else -1
    while start >= 0:
        spans += [start, start + len(word)]
        start = text.find(word, start + 1)
    return spans


SENTENCES = [Text(text, find_spans(text, word)) for text, word in TEXTS]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.make_model(tmp_path_factory.mktemp("tokens") / "model", layers=3)


def make_settings(sites: str | list[str] = "mlp") -> ActivationSettings:
    return ActivationSettings("float32", sites, POOLINGS, include_hidden_states=False)


def all_targets(widths: dict[tuple[int, str], int], n_units: int) -> dict[tuple[int, str], SiteTargets]:
    """Some units of each site, in every sentence and pooling."""
    targets = {}
    for key, width in widths.items():
        units = np.linspace(0, width - 1, n_units).astype(np.int64)
        bits = np.array([role_bits(pooling) for pooling in POOLINGS])
        grid = np.meshgrid(units, bits, np.arange(len(SENTENCES)), indexing="ij")
        targets[key] = SiteTargets.make(*(axis.ravel() for axis in grid))
    return targets


def plain_values(
    folder: Path,
) -> tuple[list[list[npt.NDArray[np.float64]]], list[list[tuple[int, int]]]]:
    """By transformers alone: the neurons of each sentence and layer, (tokens, units), and the characters
    of each token, of which the first is the BOS."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    network: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    values, offsets = [], []
    for sentence in SENTENCES:
        encoded = tokenizer(sentence.text, return_offsets_mapping=True, return_tensors="pt")
        offsets.append([tuple(each) for each in encoded["offset_mapping"][0].tolist()])
        layers: list[npt.NDArray[np.float64]] = []
        handles = [
            layer.mlp.down_proj.register_forward_pre_hook(
                lambda _, inputs, layers=layers: layers.append(inputs[0][0].double().numpy())
            )
            for layer in network.model.layers
        ]
        with torch.no_grad():
            network(input_ids=encoded["input_ids"])
        for handle in handles:
            handle.remove()
        values.append(layers)
    return values, offsets


def pooled_tokens(sentence: Text, offsets: list[tuple[int, int]], pooling: str) -> list[int]:
    """The tokens that a pooling takes the maximum over, found in the characters."""
    tokens = list(range(1, len(offsets)))
    spans = list(zip(sentence.spans[::2], sentence.spans[1::2], strict=True))
    occurrences = [
        [
            token
            for token in tokens
            if sentence.text[max(offsets[token][0], start) : min(offsets[token][1], end)].strip()
        ]
        for start, end in spans
    ]
    words = sorted({token for occurrence in occurrences for token in occurrence})
    if not words or pooling == "max":
        return tokens
    return {
        "concept": sorted({occurrence[-1] for occurrence in occurrences}),
        "concept-max": words,
        "context": [token for token in tokens if token not in words],
        "before": [token for token in tokens if token < words[0]],
    }[pooling]


def test_the_tokens_are_those_of_a_plain_loop(model: Path) -> None:
    """A token of padding, of another sentence of the batch, of another occurrence or pooling."""
    settings = make_settings()
    targets = all_targets({(layer, "mlp.hidden"): 48 for layer in range(3)}, 7)
    with patch.object(token_pass, "_LAYERS_IN_BLOCK", 1):
        TokenPass(model, settings, read_texts(model, settings, SENTENCES), targets, 60).run(
            lambda _: None
        )
    values, offsets = plain_values(model)
    pooled = {
        (pooling, site.layer): found
        for (pooling, site), found in pool(model, settings, SENTENCES, 60).items()
    }
    n_without = 0
    for (layer, _), site in targets.items():
        for unit, bits, sentence, token, maximum in zip(
            site.units, site.role_bits, site.sentences, site.tokens, site.maxima, strict=True
        ):
            (pooling,) = [name for name in POOLINGS if role_bits(name) == bits]
            tokens = pooled_tokens(SENTENCES[sentence], offsets[sentence], pooling)
            if not tokens:
                assert token == NO_TOKEN
                n_without += 1
                continue
            neuron = values[sentence][layer][:, unit]
            assert token == max(tokens, key=lambda each: neuron[each])
            assert maximum == pytest.approx(neuron[token], rel=1e-4, abs=1e-6)
            # what is stored is rounded to float16
            assert np.float16(maximum) == pytest.approx(pooled[pooling, layer][unit, sentence], rel=2e-3)
    assert n_without == 7 * 3  # the sentence that begins with its word


@pytest.mark.parametrize("model_type", ["gpt2", "mixtral", "bloom", "gemma3n_text", "qwen2_moe"])
def test_the_maxima_are_the_pooled_values(tmp_path: Path, model_type: str) -> None:
    """Experts of a mixture that run on some of the tokens, layers that flatten them, and models that
    cannot be divided into blocks."""
    folder, settings = plain_forward.save_model(tmp_path, model_type), make_settings()
    global_texts = [Text(text, find_spans(text, "bus")) for text in plain_forward.SENTENCES]
    pooled = pool(folder, settings, global_texts, 30)
    widths = {(site.layer, site.name): len(values) for (_, site), values in pooled.items()}
    with patch(f"{__name__}.SENTENCES", global_texts):
        targets = all_targets(widths, 9)
    TokenPass(folder, settings, read_texts(folder, settings, global_texts), targets, 30).run(
        lambda _: None
    )
    for (pooling, site), values in pooled.items():
        found = targets[site.layer, site.name]
        chosen = found.role_bits == role_bits(pooling)
        expected = values[found.units[chosen], found.sentences[chosen]]
        np.testing.assert_allclose(found.maxima[chosen], expected, rtol=2e-3, atol=1e-5)


def test_a_sentence_is_read_up_to_its_last_target(model: Path) -> None:
    """Reading all layers takes as long as the whole pass again."""
    settings, shards = make_settings(), list[int]()
    units = np.zeros(1, np.int64)
    targets = {
        (0, "mlp.hidden"): SiteTargets.make(units, units + role_bits("max"), np.array([0])),
        (1, "mlp.hidden"): SiteTargets.make(units, units + role_bits("max"), np.array([2])),
    }
    run: Callable[..., torch.Tensor] = TokenShard.run

    def counted(shard: TokenShard, batch: Any, sentences: list[int], *rest: Any) -> torch.Tensor:
        shards.extend(100 * shard.layers.start + sentence for sentence in sentences)
        return run(shard, batch, sentences, *rest)

    with patch.object(token_pass, "_LAYERS_IN_BLOCK", 1), patch.object(TokenShard, "run", counted):
        tokens = TokenPass(model, settings, read_texts(model, settings, SENTENCES), targets, 60)
        tokens.run(lambda _: None)
    assert sorted(shards) == [0, 2, 102]
    assert tokens.n_read == 3
    assert all(site.tokens[0] > 0 for site in targets.values())


def make_rows(values: dict[int, float]) -> pa.Table:
    """The first neuron of each layer, with its stored value of the first sentence."""
    constants = {"model": "m", "revision": "r", "concept_set": "s", "pooling": "max"}
    rows = [
        {
            **constants,
            "layer": layer,
            "site": "mlp.hidden",
            "unit": 0,
            "rank": 1,
            "sentence_id": 4,
            "value": value,
        }
        for layer, value in values.items()
    ]
    return pa.Table.from_pylist(rows, tables.TOP_SENTENCES.schema)


def read_maxima(model: Path) -> dict[int, float]:
    pooled = pool(model, make_settings(), SENTENCES[:1], 60)
    return {
        site.layer: float(values[0, 0]) for (pooling, site), values in pooled.items() if pooling == "max"
    }


def read_top_tokens(folder: Path) -> list[dict[str, Any]]:
    files = [file for files, _ in read_work_units(folder).values() for file in files]
    paths = sorted(folder / file.path for file in files)
    rows: list[dict[str, Any]] = pa.concat_tables(map(pa.parquet.read_table, paths)).to_pylist()
    return rows


def test_a_stopped_search_goes_on_with_the_next_layer(model: Path, tmp_path: Path) -> None:
    """Layers that are read twice, or rows that are lost."""
    rows, ids = make_rows(read_maxima(model)), np.array([4])
    whole, stopped = (
        TokenRequest(rows, ids, SENTENCES[:1], 60, tmp_path / name) for name in ("whole", "stopped")
    )
    search = partial(TokenRows, folder=model, settings=make_settings(), device="cpu")
    with patch.object(token_pass, "_LAYERS_IN_BLOCK", 1):
        search(whole).record()
        run, loaded = TokenShard.run, list[int]()

        def fail(shard: TokenShard, *arguments: Any) -> Any:
            if shard.layers.start == 1 and not loaded:
                raise OSError("stopped")
            return run(shard, *arguments)

        with patch.object(TokenShard, "run", fail), pytest.raises(OSError, match="stopped"):
            search(stopped).record()
        assert list(read_work_units(stopped.folder)) == ["L00"]
        again = search(stopped)
        assert {layer for layer, _ in again.tokens.targets} == {1, 2}
        again.record()
    expected = read_top_tokens(whole.folder)
    assert read_top_tokens(stopped.folder) == expected
    assert [row["layer"] for row in expected] == [0, 1, 2]
    for row in expected:
        assert SENTENCES[0].text[row["char_start"] : row["char_end"]] == row["token"]
        assert row["token"].strip()


def test_a_value_that_is_not_repeated_has_no_token(model: Path, tmp_path: Path) -> None:
    """The token of another maximum, given as that of the stored value."""
    values = read_maxima(model)
    request = TokenRequest(
        make_rows(values | {1: values[1] * 1.1}), np.array([4]), SENTENCES[:1], 60, tmp_path
    )
    TokenRows(request, model, make_settings(), "cpu").record()
    has_token = [row["token"] is not None for row in read_top_tokens(tmp_path)]
    assert has_token == [True, False, True]
    facts = [facts for _, (_, facts) in sorted(read_work_units(tmp_path).items())]
    assert [each[UNREPEATED] for each in facts] == [0, 1, 0]


def test_offsets_are_those_of_the_tokens_without_spaces(model: Path) -> None:
    """A mark on the space before a word, or on the next token."""
    tokenizer = Tokenizer(model, 64)
    text = Text("The  cat, naïve 🐈 cats.", [])
    (offsets,), (tokens,) = tokenizer.offsets([text]), tokenizer([text])
    assert len(offsets) == len(tokens.ids)
    plain = AutoTokenizer.from_pretrained(model)(text.text, return_offsets_mapping=True)
    for (start, end), (plain_start, plain_end) in zip(offsets, plain["offset_mapping"], strict=True):
        token, whole = text.text[start:end], text.text[plain_start:plain_end]
        assert token == (whole.strip() or whole)
        assert plain_start <= start <= end <= plain_end
    (short,) = Tokenizer(model, 3).offsets([text])
    assert short == offsets[:3]


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory, model: Path) -> dict[str, Path]:
    """Of the same sweep with activations that are kept, and that are not."""
    folder = tmp_path_factory.mktemp("stores")
    shutil.copytree(model, folder / "model")
    found = {}
    for keep in ("true", "false"):
        extra = f"resamples: 100\nexperts: {{permutations: 0, keep_activations: {keep}}}\n"
        file = tiny.write_sweep(folder, extra=extra)
        file.write_text(file.read_text().replace("[max, concept, context]", "[max, before, mean]"))
        found[keep] = folder / keep
        with in_one_process():
            sweep.run(planner.plan_sweep(read_sweep(file, found[keep])))
    return found


def test_the_rows_are_the_top_sentences_of_the_best_experts(stores: dict[str, Path]) -> None:
    """Rows of other neurons, or none for a concept; the mean has no maximum."""
    with open_store(stores["true"]) as connection:
        rows = connection.sql(
            "SELECT pooling, layer, site, unit, rank, sentence_id, value FROM top_tokens ORDER BY ALL"
        ).fetchall()
        expected = connection.sql(
            """
            WITH best AS (
                SELECT DISTINCT pooling, layer, site, unit FROM (
                    FROM experts WHERE pooling != 'mean' QUALIFY row_number() OVER (
                        PARTITION BY pooling, concept ORDER BY ap DESC, layer, site, unit
                    ) <= 3
                )
            )
            SELECT pooling, layer, site, unit, row_number() OVER (
                PARTITION BY pooling, layer, site, unit ORDER BY value DESC, sentence_id
            ) AS rank, sentence_id, value
            FROM activations JOIN best USING (pooling, layer, site, unit) QUALIFY rank <= 5 ORDER BY ALL
            """
        ).fetchall()
    assert rows == expected
    assert {pooling for pooling, *_ in rows} == {"max", "before"}


def test_activations_that_are_not_kept_have_the_same_tokens(stores: dict[str, Path]) -> None:
    """Rows that depend on where the top sentences come from."""
    rows = {}
    for keep, store in stores.items():
        with open_store(store) as connection:
            rows[keep] = connection.sql("SELECT * EXCLUDE (run) FROM top_tokens ORDER BY ALL").fetchall()
    assert rows["false"] == rows["true"]
    assert len(rows["true"]) > 50


def test_the_marked_characters_are_the_token(stores: dict[str, Path]) -> None:
    """An offset in bytes, or in another sentence."""
    with open_store(stores["false"]) as connection:
        rows = connection.sql(
            "SELECT text, token, char_start, char_end, token_index FROM top_tokens "
            "JOIN sentences USING (concept_set, sentence_id) WHERE token IS NOT NULL"
        ).fetchall()
    assert rows
    for text, token, start, end, index in rows:
        assert text[start:end] == token
        assert index > 0  # after the BOS
