"""Generated sentences could depend on batching or a malformed prompt, or be lost in a failure."""

from __future__ import annotations

import os
import random
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from alignment.text import quality
from alignment.text.word_matching import ConceptWord
from cluster.models.generation import (
    EngineSettings,
    GenerationWorker,
    PromptTokenizer,
    SamplingOptions,
    TransformersEngine,
    check_engine,
    choose_engine,
    plan_engines,
)
from cluster.models.weights import resolve
from cluster.runtime.queue import WorkQueue
from cluster.runtime.session import connect, shutdown_on_exit
from jobs import planner, sentences
from jobs.config.concepts import GeneratedSentences
from jobs.config.loader import read_sweep
from jobs.engine.stage import run_if_needed
from jobs.sources import generate
from jobs.sources.prompts import Subject, make_prompt
from storage.errors import UserError, WorkFailed
from storage.store import layout, manifest
from tests import tiny

CHAT = "{{ bos_token }}{% for m in messages %}[{{ m.role }}] {{ m.content }} [assistant] {% endfor %}"
SENSES = {"cat": "a small animal", "dog": "a loyal animal", "bus": "a large car"}
ENGLISH = """
    house tree river stone green slow quiet garden table winter summer bread water window street paper
    music letter school market old young small large bright early late never often together
""".split()  # noqa: SIM905
SETTINGS = EngineSettings("transformers", "float32")


def _add_chat_template(folder: Path) -> Path:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = CHAT
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def generator_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random model whose tokens are sentences of the tiny concept set, so that it generates only
    these."""
    folder = tmp_path_factory.mktemp("generator") / "model"
    texts = [text for name, text in tiny.sentences() if name in SENSES]
    vocabulary = {token: number for number, token in enumerate(["<s>", "<unk>", *texts])}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=words, bos_token="<s>", unk_token="<unk>").save_pretrained(
        folder
    )
    config = LlamaConfig(
        vocab_size=len(vocabulary),
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=512,
        eos_token_id=None,
        pad_token_id=None,
    )
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("has_template", [True, False])
def test_prompts_have_one_bos_and_the_chat_template_if_any(
    tiny_model: Path, tmp_path: Path, has_template: bool
) -> None:
    """Both the tokenizer and the template add a BOS, so the prompt could have two."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    tokenizer.chat_template = CHAT if has_template else None
    tokenizer.save_pretrained(tmp_path)
    prompt_tokenizer = PromptTokenizer(tmp_path)
    ids = prompt_tokenizer.encode("Write about a cat.")
    assert prompt_tokenizer.has_chat_template == has_template
    assert (ids[0], ids.count(tokenizer.bos_token_id)) == (0, 1)
    text = tokenizer.decode(ids)
    assert ("[assistant]" in text) == has_template
    assert "Write about a cat." in text


def test_completions_depend_on_the_seed_but_not_on_padding(tiny_model: Path) -> None:
    """Padding could leak into the completions, or the seed be ignored."""
    engine = TransformersEngine(tiny_model, SETTINGS)
    prompts = ["A cat", "My aunt drew one bus and sold the picture", "Nobody knows"]
    random_options, greedy_options = SamplingOptions(12, 1.0), SamplingOptions(12, 1e-4)
    first = engine.generate(prompts, random_options, 1)
    assert engine.generate(prompts, random_options, 1) == first
    assert engine.generate(prompts, random_options, 2) != first
    unbatched = [engine.generate([prompt], greedy_options, 0)[0] for prompt in prompts]
    assert engine.generate(prompts, greedy_options, 0) == unbatched


class _RefusingEngine:
    """An engine that refuses two of three prompts, and records the number of prompts per call."""

    has_chat_template = True

    def __init__(self) -> None:
        self.n_prompts: list[int] = []

    def generate(self, prompts: Sequence[str], options: SamplingOptions, seed: int) -> list[str]:
        rng = random.Random(seed)
        self.n_prompts.append(len(prompts))
        answers = []
        for index, prompt in enumerate(prompts):
            name = next(name for name in SENSES if f'"{name}"' in prompt)
            sentence = f"1. The {name} {' '.join(rng.choices(ENGLISH, k=9))}."
            answers.append(sentence if index % 3 == 0 else "I'm sorry, I cannot.")
        return answers


def _task(sentences: int = 5, rounds: int = 30, seed: int = 0) -> generate.GenerationTask:
    config = GeneratedSentences(
        source="generate", words=list(SENSES), model="m", sentences=sentences, rounds=rounds
    )
    return generate.GenerationTask([ConceptWord(name) for name in SENSES], config, seed)


UNIT = generate.GenerationUnit(0, [Subject(name, "noun", sense) for name, sense in SENSES.items()])


def test_only_missing_sentences_are_requested_again() -> None:
    """Refusals could leave a set incomplete, or retries take unbounded time."""
    engine = _RefusingEngine()
    drafts = generate.generate_unit(engine, UNIT, _task())
    for draft in drafts:
        kinds = [kind for _, kind in draft["kept"]]
        assert (kinds.count("fact"), kinds.count("story")) == (3, 2)
        assert all(draft["concept"] in text for text, _ in draft["kept"])
        assert set(draft["dropped"]) == {quality.REFUSAL}
    # First the 15 requested sentences, then at most four prompts per missing one.
    assert engine.n_prompts[0] == 15
    assert all(count <= 4 * 15 for count in engine.n_prompts)
    assert generate.generate_unit(_RefusingEngine(), UNIT, _task()) == drafts
    assert generate.generate_unit(_RefusingEngine(), UNIT, _task(seed=1)) != drafts


def test_rounds_are_bounded() -> None:
    """A model that always refuses would be prompted forever."""
    drafts = generate.generate_unit(_RefusingEngine(), UNIT, _task(rounds=1, sentences=90))
    assert all(0 < len(draft["kept"]) < 90 for draft in drafts)


def test_prompts_state_the_request_and_vary() -> None:
    """Identical prompts would give near-duplicate sentences."""
    subject = Subject("ice_cream", "noun", "frozen dessert")
    prompts = {
        make_prompt(subject, kind, 1, "en", random.Random(n))
        for n in range(50)
        for kind in ("fact", "story")
    }
    assert len(prompts) > 20
    assert all('"ice cream" (noun: frozen dessert)' in prompt for prompt in prompts)
    assert "Write 10 sentences" in make_prompt(subject, "fact", 10, "de", random.Random(0))
    assert "code de" in make_prompt(subject, "fact", 10, "de", random.Random(0))


def test_vllm_must_be_installed() -> None:
    """A missing engine would fail only in the actor."""
    assert choose_engine("auto") == "transformers"
    with pytest.raises(UserError, match=r"vllm is not installed; run `pip install neuralign\[vllm\]`"):
        check_engine(choose_engine("vllm"))


def _sweep(folder: Path, model: Path) -> planner.Plan:
    lines = [f"{name},{sense}" for name, sense in SENSES.items()]
    (folder / "words.csv").write_text("\n".join(["concept,sense", *lines]) + "\n")
    file = folder / "sweep.yaml"
    file.write_text(
        f"concepts: {{source: generate, words: words.csv, model: {model}, sentences: 2, fewest: 2, "
        f"replicas: 1, dtype: float32}}\nmodels: [{{id: {model}, dtype: float32}}]\n"
    )
    return planner.plan_sweep(read_sweep(file))


def _die_once(engine: TransformersEngine, marker: Path) -> str:
    if not marker.exists():
        marker.touch()
        os._exit(1)
    return engine.generate(["A"], SamplingOptions(3, 1.0), 0)[0]


def test_generation_on_ray(
    generator_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the sweep file to the table: drafts could be lost in a failure, the set could depend on more
    than the seed, and an engine that died might not be replaced."""
    monkeypatch.setattr(generate, "CONCEPTS_PER_UNIT", 2)
    planned = _sweep(tmp_path, generator_model)
    (stage,) = planned.stages
    store = layout.create_store(planned.sweep.store_path)
    with shutdown_on_exit():
        connect()
        with pytest.raises(UserError, match="1000 engines x 1 CPU do not fit the cluster"):
            plan_engines(SETTINGS, 1000)
        monkeypatch.setattr(generate, "check_enough_sentences", _fail)
        with pytest.raises(WorkFailed, match="on purpose"):
            run_if_needed(stage, store)
        monkeypatch.undo()
        monkeypatch.setattr(generate, "CONCEPTS_PER_UNIT", 2)
        drafts = {path: path.stat().st_mtime_ns for path in stage.folder(store).glob("drafts/*")}
        assert len(drafts) == len(manifest.read_work_units(stage.folder(store))) == 2
        run_if_needed(stage, store)
        assert {path: path.stat().st_mtime_ns for path in drafts} == drafts
        concept_set = sentences.read_concept_set(stage, store)
        assert concept_set.count_sentences() == dict.fromkeys(SENSES, 2)
        assert {
            (sentence.generator, sentence.revision, sentence.seed) for sentence in concept_set.sentences
        } == {(str(generator_model), "main", 0)}
        assert "has no chat template" in stage.read_manifest(store).notes[-1]

        other_store = layout.create_store(tmp_path / "other")
        run_if_needed(stage, other_store)
        assert sentences.read_concept_set(stage, other_store).sentences == concept_set.sentences

        weights = resolve(str(generator_model), "main", tmp_path)
        queue: WorkQueue[str, str] = WorkQueue(
            lambda: GenerationWorker(weights, SETTINGS, {"CPU": 1.0}),
            lambda worker, _: worker.submit(_die_once, tmp_path / "marker"),
            str,
            str,
        )
        ((unit, text),) = queue.run(["one"], 1)
        assert unit == "one"
        assert text


def _fail(*arguments: object) -> list[str]:
    raise WorkFailed("on purpose", [])


def test_invalid_sentence_sources_are_rejected(tmp_path: Path) -> None:
    """A mistake in the sweep file would surface only after hours of generation."""
    assert (
        GeneratedSentences(source="generate", words=["a", "b"], model="m", sentences=9).min_sentences
        == 4
    )
    with pytest.raises(ValueError, match="2: must be at least 5"):
        GeneratedSentences(source="generate", words=["a", "b"], model="m", sentences=2, fewest=5)
    file = tmp_path / "sweep.yaml"
    for concepts, message in (
        (
            "{source: generate, words: [cat], model: m, angle: 1}",
            "concepts.angle: unknown key; did you mean",
        ),
        ("{source: harvest, words: [cat]}", "concepts.corpus: is missing"),
        ("{source: harvest, words: [cat, Cat], corpus: a.txt}", "'Cat' and 'cat' differ only in case"),
        ("{source: harvest, words: [cat], corpus: a.txt}", "has 1 concepts; at least 2"),
        ("{source: a.csv, language: zz}", "concepts.language: 'zz': expected one of "),
    ):
        file.write_text(f"concepts: {concepts}\nmodels: [smollm2-135m-instruct]\n")
        with pytest.raises(UserError, match=message):
            planner.plan_sweep(read_sweep(file))
