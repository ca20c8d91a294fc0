"""A model writes the sentences: the prompt must reach it once and whole, what it writes must not depend
on its neighbours in a batch, and work that is cut off must go on."""

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
from alignment.text.word_matching import Word
from cluster.models.generation import (
    Prompter,
    Settings,
    TransformersEngine,
    Writer,
    Writing,
    check_engine,
    choose_engine,
    place_writers,
)
from cluster.models.weights import resolve
from cluster.runtime.queue import WorkQueue
from cluster.runtime.session import connect, disconnected_after
from jobs import planner, sentences
from jobs.config import Generate, read_sweep
from jobs.engine.stage import ensure
from jobs.sources import generate
from jobs.sources.prompts import Subject, prompt
from storage.errors import UserError, WorkFailed
from storage.store import layout, manifest
from tests import tiny

CHAT = "{{ bos_token }}{% for m in messages %}[{{ m.role }}] {{ m.content }} [assistant] {% endfor %}"
SENSES = {"cat": "a small animal", "dog": "a loyal animal", "bus": "a large car"}
ENGLISH = """
    house tree river stone green slow quiet garden table winter summer bread water window street paper
    music letter school market old young small large bright early late never often together
""".split()  # noqa: SIM905
SETTINGS = Settings("transformers", "float32")


def _add_chat_template(folder: Path) -> Path:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = CHAT
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def writer_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model with random weights each of whose tokens is a whole sentence of the tiny concept set,
    so that whatever it writes is a row of these."""
    folder = tmp_path_factory.mktemp("writer") / "model"
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


@pytest.mark.parametrize("chats", [True, False])
def test_a_prompt_has_one_bos_and_the_chat_template_where_there_is_one(
    tiny_model: Path, tmp_path: Path, chats: bool
) -> None:
    """The tokenizer adds a BOS and the template has one: together they would be two."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    tokenizer.chat_template = CHAT if chats else None
    tokenizer.save_pretrained(tmp_path)
    prompter = Prompter(tmp_path)
    ids = prompter.tokens("Write about a cat.")
    assert (prompter.chats, ids[0], ids.count(tokenizer.bos_token_id)) == (chats, 0, 1)
    written = tokenizer.decode(ids)
    assert ("[assistant]" in written) == chats
    assert "Write about a cat." in written


def test_what_is_written_depends_on_the_seed_and_not_on_padding(tiny_model: Path) -> None:
    engine = TransformersEngine(tiny_model, SETTINGS)
    prompts = ["A cat", "My aunt drew one bus and sold the picture", "Nobody knows"]
    freely, greedily = Writing(12, 1.0), Writing(12, 1e-4)
    assert engine.write(prompts, freely, 1) == engine.write(prompts, freely, 1)
    assert engine.write(prompts, freely, 1) != engine.write(prompts, freely, 2)
    alone = [engine.write([each], greedily, 0)[0] for each in prompts]
    assert engine.write(prompts, greedily, 0) == alone


class _Parrot:
    """An engine whose every third answer is good, to see what is asked of it."""

    chats = True

    def __init__(self) -> None:
        self.asked: list[int] = []

    def write(self, prompts: Sequence[str], writing: Writing, seed: int) -> list[str]:
        draw = random.Random(seed)
        self.asked.append(len(prompts))
        answers = []
        for number, asked in enumerate(prompts):
            name = next(name for name in SENSES if f'"{name}"' in asked)
            good = f"1. The {name} {' '.join(draw.choices(ENGLISH, k=9))}."
            answers.append(good if number % 3 == 0 else "I'm sorry, I cannot.")
        return answers


def _task(**changes: object) -> generate.Task:
    facts: dict[str, object] = {
        "words": tuple(Word(name) for name in SENSES),
        "kinds": ["fact", "story"],
        "sentences": 5,
        "at_once": 1,
        "rounds": 30,
        "temperature": 0.8,
        "language": "en",
        "seed": 0,
    }
    return generate.Task(**{**facts, **changes})  # type: ignore[arg-type]


UNIT = generate.Unit(0, [Subject(name, "noun", sense) for name, sense in SENSES.items()])


def test_a_model_is_asked_again_for_what_is_missing_and_no_more() -> None:
    engine = _Parrot()
    drafts = generate.write_unit(engine, UNIT, _task())
    for draft in drafts:
        kinds = [kind for _, kind in draft["kept"]]
        assert (kinds.count("fact"), kinds.count("story")) == (3, 2)
        assert all(draft["concept"] in text for text, _ in draft["kept"])
        assert set(draft["dropped"]) == {quality.REFUSAL}
    # first the 15 that are wanted; then at most four for each that is missing
    assert engine.asked[0] == 15
    assert all(later <= 4 * 15 for later in engine.asked)
    assert generate.write_unit(_Parrot(), UNIT, _task()) == drafts
    assert generate.write_unit(_Parrot(), UNIT, _task(seed=1)) != drafts


def test_the_rounds_are_bounded() -> None:
    drafts = generate.write_unit(_Parrot(), UNIT, _task(rounds=1, sentences=90))
    assert all(0 < len(draft["kept"]) < 90 for draft in drafts)


def test_prompts_name_what_is_asked_for_and_vary() -> None:
    subject = Subject("ice_cream", "noun", "frozen dessert")
    drawn = {
        prompt(subject, kind, 1, "en", random.Random(n)) for n in range(50) for kind in ("fact", "story")
    }
    assert len(drawn) > 20
    assert all('"ice cream" (noun: frozen dessert)' in each for each in drawn)
    assert "Write 10 sentences" in prompt(subject, "fact", 10, "de", random.Random(0))
    assert "code de" in prompt(subject, "fact", 10, "de", random.Random(0))


def test_vllm_is_asked_for_by_name_only_where_it_is() -> None:
    assert choose_engine("auto") == "transformers"
    with pytest.raises(UserError, match=r"vllm is not installed; `pip install neuralign\[vllm\]`"):
        check_engine(choose_engine("vllm"))


def _sweep(folder: Path, model: Path) -> planner.Plan:
    lines = [f"{name},{sense}" for name, sense in SENSES.items()]
    (folder / "words.csv").write_text("\n".join(["concept,sense", *lines]) + "\n")
    file = folder / "sweep.yaml"
    file.write_text(
        f"concepts: {{source: generate, words: words.csv, model: {model}, sentences: 2, fewest: 2, "
        f"replicas: 1, dtype: float32}}\nmodels: [{{id: {model}, dtype: float32}}]\n"
    )
    return planner.plan(read_sweep(file))


def _die_once(engine: TransformersEngine, mark: Path) -> str:
    if not mark.exists():
        mark.touch()
        os._exit(1)
    return engine.write(["A"], Writing(3, 1.0), 0)[0]


def test_generation_on_ray(writer_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the sweep file to the table; what was written before a failure must not be written again, the
    same seed must give the same set, and an engine that dies must be replaced."""
    monkeypatch.setattr(generate, "CONCEPTS_IN_UNIT", 2)
    planned = _sweep(tmp_path, writer_model)
    (stage,) = planned.stages
    store = layout.create(planned.sweep.store_path)
    with disconnected_after():
        connect()
        with pytest.raises(UserError, match="1000 engines of 1 devices each do not fit the cluster"):
            place_writers(SETTINGS, 1000)
        monkeypatch.setattr(generate, "short_of", _fail)
        with pytest.raises(WorkFailed, match="on purpose"):
            ensure(stage, store)
        monkeypatch.undo()
        monkeypatch.setattr(generate, "CONCEPTS_IN_UNIT", 2)
        drafts = {path: path.stat().st_mtime_ns for path in stage.folder(store).glob("drafts/*")}
        assert len(drafts) == len(manifest.read_units(stage.folder(store))) == 2
        ensure(stage, store)
        assert {path: path.stat().st_mtime_ns for path in drafts} == drafts
        made = sentences.read_set(stage, store)
        assert made.counts() == dict.fromkeys(SENSES, 2)
        assert {(each.generator, each.revision, each.seed) for each in made.sentences} == {
            (str(writer_model), "main", 0)
        }
        assert "has no chat template" in stage.result(store).notes[-1]

        elsewhere = layout.create(tmp_path / "other")
        ensure(stage, elsewhere)
        assert sentences.read_set(stage, elsewhere).sentences == made.sentences

        weights = resolve(str(writer_model), "main", tmp_path)
        queue: WorkQueue[str, str] = WorkQueue(
            lambda: Writer(weights, SETTINGS, {"CPU": 1.0}),
            lambda writer, _: writer.submit(_die_once, tmp_path / "mark"),
            str,
            str,
        )
        ((unit, text),) = queue.run(["one"], 1)
        assert unit == "one"
        assert text


def _fail(*arguments: object) -> list[str]:
    raise WorkFailed("on purpose", [])


def test_the_words_of_a_generated_set_are_checked(tmp_path: Path) -> None:
    assert Generate(source="generate", words=["a", "b"], model="m", sentences=9).needed == 4
    with pytest.raises(ValueError, match="sentences: 2: at least 5 are needed"):
        Generate(source="generate", words=["a", "b"], model="m", sentences=2, fewest=5)
    file = tmp_path / "sweep.yaml"
    for concepts, message in (
        (
            "{source: generate, words: [cat], model: m, angle: 1}",
            "concepts.angle: unknown key; did you mean",
        ),
        ("{source: harvest, words: [cat]}", "concepts.corpus: is missing"),
        ("{source: harvest, words: [cat, Cat], corpus: a.txt}", "'Cat' and 'cat' differ only in case"),
        ("{source: harvest, words: [cat], corpus: a.txt}", "has 1 concepts; at least 2"),
        ("{source: a.csv, language: zz}", "concepts.language: 'zz': allowed: "),
    ):
        file.write_text(f"concepts: {concepts}\nmodels: [smollm2-135m-instruct]\n")
        with pytest.raises(UserError, match=message):
            planner.plan(read_sweep(file))
