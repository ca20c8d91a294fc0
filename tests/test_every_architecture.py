"""The wrong module of some architecture could pass for its MLP, or a shard give other values.

Every architecture that transformers builds as a language model is read at a tiny size and compared with
a plain forward pass. The verdicts are the table in docs/models.md, which `python -m
tests.test_every_architecture` writes.
"""

from __future__ import annotations

import re
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from cluster.activations.block_shard import BlockShard
from cluster.activations.pooling_shard import ActivationSettings
from cluster.models.divisible import check_divisible
from cluster.models.model_config import read_config
from cluster.models.partial_model import find_missing_weights
from cluster.models.sites import ModelSites, find_sites_from_config
from cluster.models.tokenizer import Text
from cluster.steering.interventions import NO_INTERVENTION, PrefixSharedWords, PromptedWord
from storage.errors import UserError
from tests.architectures import CAUSAL, UNBUILDABLE, WRAPPERS
from tests.plain_forward import SENTENCES, PlainForward, Values, first_tensor, record, save_model
from tests.test_partial import assert_identical, read_in_blocks, read_in_shards
from tests.test_steered_shard import load_shards, target_log_p

# transformers' own
pytestmark = [
    pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.* is deprecated and will be removed:FutureWarning"),
]

DOCS = Path(__file__).parents[1] / "docs/models.md"
HEADER = "| architecture | MLP | shards | note |\n| --- | --- | --- | --- |\n"
ONLY_WRAPPERS = [name for name in WRAPPERS if name not in CAUSAL]
TEXTS = [Text(sentence, [sentence.rfind(" ") + 1, len(sentence)]) for sentence in SENTENCES]
"""The sentences, in which the concept's word is the last one."""
WORDS = [
    PromptedWord((1, 20, 30, 40), (50, 60, 70)),
    PromptedWord((1, 20, 30, 40), (50, 61)),
    PromptedWord((1, 20, 30, 40), (55,)),
    PromptedWord((1, 25, 33), (50, 60, 71, 72)),
]
LOG_P_TOLERANCE = 2e-3
TOLERANCE = 2e-3
"""Rounding to float16, and different orders of summation, relative to the largest value."""


@dataclass(frozen=True)
class Verdict:
    """How an architecture is read: the MLP's sites, whether it can be divided, and a note."""

    sites: str
    shards: str
    note: str


@pytest.mark.parametrize("model_type", CAUSAL)
def test_a_language_model_is_read_as_documented(tmp_path: Path, model_type: str) -> None:
    """Wrong neurons, or other values than the model's."""
    verdict = judge(tmp_path, model_type)
    assert as_row(model_type, verdict) == documented_verdicts()[model_type]


@pytest.mark.slow
@pytest.mark.parametrize("model_type", ONLY_WRAPPERS)
def test_a_text_tower_is_read_as_documented(tmp_path: Path, model_type: str) -> None:
    """The vision tower's layers could pass for the language model's."""
    verdict = judge(tmp_path, model_type)
    assert as_row(model_type, verdict) == documented_verdicts()[model_type]


def test_the_table_has_every_architecture() -> None:
    """A release of transformers could add one that is not tested."""
    assert list(documented_verdicts()) == sorted({*CAUSAL, *WRAPPERS})


def test_most_architectures_are_read() -> None:
    """A change could reject architectures that are read today."""
    verdicts = documented_verdicts()
    assert sum("mlp." in verdicts[name] for name in CAUSAL) >= 120


def judge(folder: Path, model_type: str) -> Verdict:
    """Read a tiny model, compare it with a plain forward pass, and describe how it is read."""
    if model_type in UNBUILDABLE:
        return Verdict("", "", f"not tested: {UNBUILDABLE[model_type]}")
    save_model(folder, model_type)
    selection = "mlp"
    try:
        config = read_config(folder, False)
        planned = find_sites_from_config(config, selection)
    except UserError as error:
        return judge_refused(folder, error)
    return compare(folder, model_type, config, planned, selection)


def compare(folder: Path, model_type: str, config: Any, planned: ModelSites, selection: Any) -> Verdict:
    settings = ActivationSettings("float32", selection, ["max"])
    shard = BlockShard(folder, settings)
    assert shard.sites == planned.sites
    assert find_missing_weights(folder, read_config(folder, False)) == []
    read = read_in_shards(folder, settings, 1, TEXTS)
    check_widths(config, planned)
    expected = plain_values(folder, model_type, planned)
    for key, values in expected.items():
        assert_close(read[key], values, key)
    assert read.keys() == expected.keys()
    log_p = plain_log_p(folder, model_type)
    np.testing.assert_allclose(steered_log_p(folder, 1), log_p, atol=LOG_P_TOLERANCE)
    try:
        check_divisible(config)
    except UserError:
        shards = "no"
        assert_identical(read_in_blocks(folder, settings, 1, TEXTS), read, "one block")
    else:
        shards = "yes"
        for number in {min(2, planned.n_layers), min(3, planned.n_layers), planned.n_layers}:
            np.testing.assert_allclose(steered_log_p(folder, number), log_p, atol=LOG_P_TOLERANCE)
            assert_identical(read_in_shards(folder, settings, number, TEXTS), read, number)
        one_layer_blocks = read_in_blocks(folder, settings, planned.n_layers, TEXTS)
        assert_identical(one_layer_blocks, read, "blocks of one layer")
    modules = dict.fromkeys(f"{site.name} = {site.module}" for site in planned.sites)
    return Verdict(
        ", ".join(modules), shards, "; ".join(note for note in planned.notes if "layers" in note)
    )


def steered_log_p(folder: Path, n_shards: int) -> list[float]:
    """log P of words after prompts by the steering shards, which run a prompt once for all its words."""
    words = PrefixSharedWords(WORDS)
    shards = load_shards(folder, "mlp", n_shards)
    return list(words.log_p(target_log_p(shards, list(words.sequences(NO_INTERVENTION)))))


def plain_log_p(folder: Path, model_type: str) -> list[float]:
    """The same by the complete model, one sequence at a time, without a cache."""
    model = PlainForward(folder, model_type).model
    sums = []
    for word in WORDS:
        ids = torch.tensor([word.prefix + word.tokens])
        with torch.no_grad():
            logits = model(input_ids=ids, use_cache=False).logits[0].log_softmax(-1)
        first = len(word.prefix) - 1
        sums.append(sum(float(logits[first + i, token]) for i, token in enumerate(word.tokens)))
    return sums


def judge_refused(folder: Path, error: UserError) -> Verdict:
    """A refusal is one line, at the planning and at the loading of a model."""
    message = str(error)
    assert "\n" not in message
    if "without weights" not in message:
        with pytest.raises(UserError):
            BlockShard(folder, ActivationSettings("float32", "mlp", ["max"]))
    reason = re.sub(
        r"(; (select|such|this|the modules)|: \w+Error:) .*", "", message.removeprefix("sites: ")
    )
    return Verdict("", "", f"rejected: {reason}")


def plain_values(folder: Path, model_type: str, planned: ModelSites) -> dict[tuple[str, str], Values]:
    """Pooled values, (units, sentences), of the sites and the hidden states after every layer."""
    plain = PlainForward(folder, model_type)
    layers = plain.layers(planned.n_layers)
    seen: dict[tuple[str, str], list[Values]] = {}
    for number, layer in enumerate(layers):
        layer.register_forward_hook(record(seen, ("", f"L{number:02d}.residual"), residual))
    for site in planned.sites:
        module = layers[site.layer].get_submodule(site.module)
        if site.name == "mlp.experts":
            module.register_forward_pre_hook(record_experts(seen, str(site)), with_kwargs=True)
        else:
            module.register_forward_pre_hook(record(seen, ("", str(site)), first_tensor))
    plain.run()
    pooled = {}
    for (_, name), sentences in seen.items():
        tokens = [values[real] for values, real in zip(sentences, plain.is_text, strict=True)]
        if name.endswith("residual"):
            means = [
                values[without_first(real)].mean(0)
                for values, real in zip(sentences, plain.is_text, strict=True)
            ]
            pooled["mean", name] = np.stack(means, 1)
            pooled["last", name] = np.stack([values[-1] for values in tokens], 1)
            # The first position has no state at the word.
            has_state = np.array([real[1:].any() for real in plain.is_text])
            pooled["concept", name] = pooled["last", name] * has_state
        else:
            pooled["max", name] = np.stack([values.max(0) for values in tokens], 1)
    return pooled


def without_first(is_text: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """The tokens of text but the first of the sequence, which attracts attention; all if it is alone."""
    others = is_text & (np.arange(len(is_text)) > 0)
    return others if others.any() else is_text


def residual(output: Any) -> torch.Tensor:
    hidden = first_tensor(output)
    # Gemma 3n: its first stream is the active one
    return hidden[0] if hidden.dim() == 4 else hidden


def record_experts(store: dict[Any, list[Values]], name: str) -> Any:
    """A hook on the experts that computes each routed neuron in a plain loop over tokens and experts."""

    def hook(experts: Any, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        inputs, *routing = (*arguments, *keywords.values())
        store.setdefault(("", name), []).append(run_experts(experts, inputs, routing))

    return hook


def run_experts(experts: Any, inputs: torch.Tensor, routing: list[torch.Tensor]) -> Values:
    """Neurons of all experts, (tokens, experts x width), 0 where a token is not routed."""
    if not routing:
        return run_scaled_experts(experts, inputs)
    gated = hasattr(experts, "gate_up_proj")
    up = experts.gate_up_proj if gated else experts.up_proj
    bias = getattr(experts, "gate_up_proj_bias" if gated else "up_proj_bias", None)
    transposed = up.shape[1] == inputs.shape[-1] and experts.is_transposed
    n_experts = len(up)
    width = (up.shape[2] if transposed else up.shape[1]) // (2 if gated else 1)
    values = torch.zeros(len(inputs), n_experts, width)
    for token, chosen in enumerate(routing[0].tolist()):
        for expert in chosen:
            if expert < n_experts:
                product = inputs[token] @ (up[expert] if transposed else up[expert].T)
                product = product if bias is None else product + bias[expert]
                values[token, expert] = (
                    experts._apply_gate(product[None])[0] if gated else experts.act_fn(product)
                )
    return values.reshape(len(inputs), -1).detach().double().numpy()


def run_scaled_experts(experts: Any, inputs: torch.Tensor) -> Values:
    """Llama 4: the inputs are those of each expert, times the router's weights."""
    values = []
    for expert, states in enumerate(inputs.reshape(experts.num_experts, -1, inputs.shape[-1])):
        gate, up = (states @ experts.gate_up_proj[expert]).chunk(2, -1)
        values.append(up * experts.act_fn(gate))
    return torch.stack(values, 1).flatten(1).detach().double().numpy()


def check_widths(config: Any, planned: ModelSites) -> None:
    """The widths of MLPs are in the configuration, which has others for everything else."""
    settings = vars(config.get_text_config())
    known = {4 * planned.hidden_size}
    if config.model_type == "xlstm":
        # a share of the hidden size, rounded up
        known.add(48)
    for name, value in settings.items():
        if re.search("intermediate|ffn|inner|dff|d_ff|ff_dim", name):
            known.update(value if isinstance(value, list) else [value])
    for site in planned.sites:
        if site.name == "mlp.hidden":
            # doubled in some layers of Gemma 4, the gate's half in Moshi and RecurrentGemma
            assert known.intersection((site.width, site.width // 2, site.width * 2)), site


def assert_close(actual: Values, expected: Values, name: object) -> None:
    np.testing.assert_allclose(
        actual, expected, rtol=0, atol=TOLERANCE * np.abs(expected).max(), err_msg=str(name)
    )


@cache
def documented_verdicts() -> dict[str, str]:
    """The table's rows by architecture."""
    rows = DOCS.read_text().partition(HEADER)[2].partition("\n\n")[0].splitlines()
    return {row.split("`")[1]: row for row in rows}


def as_row(model_type: str, verdict: Verdict) -> str:
    return f"| `{model_type}` | {verdict.sites} | {verdict.shards} | {verdict.note} |"


def write_table() -> None:
    """Write the table of verdicts into docs/models.md."""
    rows = []
    for model_type in sorted({*CAUSAL, *WRAPPERS}):
        with tempfile.TemporaryDirectory() as folder:
            verdict = judge(Path(folder), model_type)
        rows.append(as_row(model_type, verdict))
        print(rows[-1], flush=True)
    before, _, after = DOCS.read_text().partition(HEADER)
    DOCS.write_text(before + HEADER + "\n".join(rows) + "\n" + after.partition("\n\n")[2])


if __name__ == "__main__":
    write_table()
