"""Fuzzing of everything that is read from users: `python -m tests.fuzz SECONDS` (make fuzz).

A case replaces files of a small valid study by damaged ones; a command must then end with exit code 0, 1
or 2 and without a traceback, and write nothing outside the store. A failing case is made as small as
possible and saved in tests/fuzz_corpus, whose cases are tests from then on.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import shutil
import signal
import sys
import tempfile
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from types import FrameType
from typing import Any
from unittest.mock import patch

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import yaml
from gensim.models import FastText, KeyedVectors
from gensim.models.fasttext import save_facebook_model
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from cluster.models import gguf, weights
from storage.errors import NeuralignError
from storage.store import layout
from storage.store.lease import acquire_lease
from storage.store.schedule_slots import ScheduleSlots
from tests import gguf_files, tiny
from tests.commands import neuralign
from tests.faults import in_one_process

CORPUS = Path(__file__).parent / "fuzz_corpus"
EXAMPLES_PER_ROUND = 50
_SECONDS_PER_COMMAND = 120
_STORE = "results/sweep"
_GGUF_SWEEP = "concepts: concepts.csv\nmodels: [model.gguf]\nhuman: [{name: mine, path: human.csv}]\n"

Files = dict[str, bytes | None]
"""Files that replace those of the study, by their path in its folder; None removes a file."""


@dataclass(frozen=True)
class Kind:
    """A kind of input: how its files are damaged, and the commands that read them."""

    files: Callable[[Path], st.SearchStrategy[Files]]
    commands: tuple[tuple[str, ...], ...]


def make_study(folder: Path) -> Path:
    """A study of a tiny model with its complete store, a GGUF file of zeros, and other inputs."""
    tiny.make_model(folder / "model")
    tiny.write_sweep(folder, extra="resamples: 100\n")
    metadata = gguf_files.llama_metadata(folder / "model")
    metadata |= gguf_files.tokenizer_metadata(folder / "model/tokenizer.json")
    tensors = {name: 0 * tensor for name, tensor in gguf_files.llama_tensors(folder / "model").items()}
    gguf_files.write(folder / "model.gguf", metadata, tensors)
    _make_corpora(folder)
    _make_vectors(folder)
    dictionary = {"W_enc": torch.ones(32, 4), "b_enc": torch.ones(4), "b_dec": torch.ones(32)}
    save_file(dictionary, folder / "dictionary.safetensors")
    with in_one_process():
        made = neuralign("run", folder / "sweep.yaml", cwd=folder)
    assert made.returncode == 0, made.stderr
    return folder


def _make_corpora(folder: Path) -> None:
    texts = [text for _, text in tiny.sentences()]
    (folder / "corpus.txt").write_text("\n\n".join(texts))
    lines = [json.dumps({"text": text, "id": number}) for number, text in enumerate(texts)]
    (folder / "corpus.jsonl").write_text("\n".join(lines) + "\n")
    pq.write_table(pa.table({"text": texts}), folder / "corpus.parquet")


def _make_vectors(folder: Path) -> None:
    """Files of word vectors in all formats."""
    words = list(tiny.CONCEPTS)
    vectors = KeyedVectors(3)
    vectors.add_vectors(words, np.random.default_rng(0).standard_normal((len(words), 3)))
    vectors.save_word2vec_format(str(folder / "vectors.vec"))
    vectors.save_word2vec_format(str(folder / "vectors.bin"), binary=True)
    text = (folder / "vectors.vec").read_bytes().partition(b"\n")[2]
    (folder / "vectors.txt").write_bytes(text)
    (folder / "vectors.txt.gz").write_bytes(gzip.compress(text))
    model = FastText([words], vector_size=3, min_count=1, bucket=9, seed=1, workers=1, epochs=1)
    save_facebook_model(model, str(folder / "fasttext.bin"))


def check(study: Path, kind: str, files: Files) -> None:
    """Raise AssertionError unless every command of a kind handles the files."""
    for command, *arguments in KINDS[kind].commands:
        with tempfile.TemporaryDirectory() as name:
            sandbox = Path(name)
            folder = shutil.copytree(study, sandbox / "study")
            for path, content in files.items():
                (folder / path).parent.mkdir(parents=True, exist_ok=True)
                (folder / path).unlink(missing_ok=True)
                if content is not None:
                    (folder / path).write_bytes(content)
            before = set(sandbox.rglob("*"))
            # they remember files by their path
            gguf.read_gguf_config.cache_clear()
            weights._load_config.cache_clear()
            with _time_limit(), _short_waits(), in_one_process() if command == "run" else nullcontext():
                result = neuralign(command, *arguments, cwd=folder)
            shown = f"neuralign {command}: exit code {result.returncode}: {result.stderr[-2000:]}"
            assert "Traceback" not in result.stderr, shown
            assert result.returncode in (0, 1, 2), shown
            # a run prints its progress first
            lines = result.stderr.splitlines()[-1 if command == "run" else 0 :]
            assert result.returncode != 2 or _is_one_line_per_error(lines), shown
            written = {path for path in set(sandbox.rglob("*")) - before if path.is_file()}
            outside = [path for path in written if not path.is_relative_to(folder / _STORE)]
            assert not outside, f"neuralign {command}: wrote {outside}"


def _is_one_line_per_error(lines: list[str]) -> bool:
    """Whether an error is one line, or one for each wrong key of a sweep file."""
    first, *others = lines
    return first.startswith("neuralign: ") and all("sweep.yaml:" in line for line in others)


@contextmanager
def _short_waits() -> Iterator[None]:
    """Wait only briefly for the holders of leases; a schedule ends after its first decision."""

    def end(_: object) -> float:
        raise NeuralignError("the schedule has decided")

    with ExitStack() as stack:
        for name, value in {
            "storage.store.lease.LEASE_TIMEOUT_SECONDS": 0.1,
            "storage.store.lease._POLL_SECONDS": 0.02,
            "storage.store.schedule_slots.HEARTBEAT_SECONDS": 0.1,
            "jobs.actions.status.HEARTBEAT_SECONDS": 0.1,
            "jobs.actions.schedule.JobServer": _Submitter,
            "jobs.actions.schedule.JobServerSubmitter": _Submitter,
            "jobs.actions.schedule._seconds_to_next": end,
        }.items():
            stack.enter_context(patch(name, value))
        yield


class _Submitter:
    """A job server that accepts every job."""

    def __init__(self, *_: object) -> None: ...

    def find_running_job(self, exclude: str) -> str | None:
        return None

    def submit(self, job: str) -> bool:
        return True


@contextmanager
def _time_limit() -> Iterator[None]:
    def stop(number: int, frame: FrameType | None) -> None:
        raise AssertionError(f"took more than {_SECONDS_PER_COMMAND} s")

    previous = signal.signal(signal.SIGALRM, stop)
    signal.alarm(_SECONDS_PER_COMMAND)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, previous)


_NAMES = [
    "",
    "~",
    ".",
    "..",
    "../../x",
    "/",
    "/dev/null",
    "a" * 300,
    "a/" * 3000,
    "\0",
    "\ud800",
    "*",
    "é",
]
_NUMBERS = [0, -1, 1e21, 10**12, 10**30, 0.5, float("inf"), float("nan")]
_scalars: st.SearchStrategy[Any] = (
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.sampled_from(_NUMBERS)
    | st.sampled_from(_NAMES)
    | st.text(st.characters(), max_size=9)
)
_values: st.SearchStrategy[Any] = st.recursive(
    _scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@st.composite
def _damaged_value(draw: st.DrawFn, value: Any) -> Any:
    """A value with a part of it replaced, removed or renamed."""
    if not isinstance(value, dict | list) or not value or draw(st.integers(0, 4)) == 0:
        return draw(_values)
    keys: list[Any] = list(value) if isinstance(value, dict) else list(range(len(value)))
    key = draw(st.sampled_from(keys))
    changed: Any = dict(value) if isinstance(value, dict) else list(value)
    action = draw(st.sampled_from(("change", "change", "change", "remove", "rename")))
    if action == "change":
        changed[key] = draw(_damaged_value(value[key]))
    elif action == "remove" or isinstance(changed, list):
        del changed[key]
    else:
        changed[draw(st.text(max_size=9))] = changed.pop(key)
    return changed


@st.composite
def _damaged_bytes(draw: st.DrawFn, content: bytes, end: int = 1 << 40) -> bytes:
    """Content with up to three pieces cut, repeated or overwritten before a position."""
    for _ in range(draw(st.integers(1, 3))):
        start = draw(st.integers(0, min(len(content), end)))
        length = draw(st.integers(0, 40))
        piece = draw(
            st.binary(max_size=16)
            | st.just(content[start : start + length] * 2)
            | st.sampled_from(
                [b"", b"\0", b"\xff" * 8, b'"', b"[" * 20_000, b"{a: " * 5_000, b"\n", b","]
            )
        )
        content = content[:start] + piece + content[start + length :]
    return content


def _damaged_json(file: Path) -> st.SearchStrategy[bytes]:
    content = file.read_bytes()
    changed = _damaged_value(json.loads(content)).map(lambda value: json.dumps(value).encode())
    return changed | _damaged_bytes(content)


def _sweeps(study: Path) -> st.SearchStrategy[Files]:
    text = (study / "sweep.yaml").read_bytes()
    complete = {
        **yaml.safe_load(text),
        "name": "x",
        "experts": {"threshold": [0.5], "permutations": 3, "negatives": "others", "gpus": 0, "top": [3]},
        "similarity": {"measures": ["dice"], "scopes": ["model"]},
        "steering": {"prompts": ["a", "b"], "k": [1], "temperature": 0.5, "concepts": ["cat"]},
        "baselines": ["input-embedding", {"name": "v", "path": "v.txt"}, {"name": "e", "encoder": "e"}],
        "controls": ["split-half"],
        "resamples": 100,
        "seed": 1,
    }
    changed = _damaged_value(complete).map(lambda value: yaml.safe_dump(value).encode())
    return (changed | _damaged_bytes(text)).map(lambda content: {"sweep.yaml": content})


def _tables(study: Path, name: str) -> st.SearchStrategy[Files]:
    """Damaged tables as CSV, JSON Lines, or under the name of another format."""
    content = (study / f"{name}.csv").read_bytes()
    columns, *rows = [line.split(",") for line in content.decode().splitlines()]
    records = [dict(zip(columns, row, strict=False)) for row in rows]
    lines = _damaged_value(records).map(
        lambda value: "".join(
            json.dumps(item) + "\n" for item in (value if isinstance(value, list) else [value])
        ).encode()
    )
    names = st.sampled_from([".csv", ".tsv", ".jsonl", ".parquet", ".json", ".npy", ".csv.gz", ""])
    files = st.tuples(names, _damaged_bytes(content)) | st.tuples(st.just(".jsonl"), lines)
    sweep = (study / "sweep.yaml").read_text()

    def place(suffix_and_content: tuple[str, bytes]) -> Files:
        file = f"damaged{suffix_and_content[0]}"
        text = sweep.replace(f"{name}.csv", file)
        return {file: suffix_and_content[1], "sweep.yaml": text.encode()}

    return files.map(place)


def _corpora(study: Path) -> st.SearchStrategy[Files]:
    sweep = (study / "sweep.yaml").read_text()

    def place(suffix: str, content: bytes) -> Files:
        source = "{source: harvest, words: [cat, dog], sentences: 2, fewest: 1, corpus: damaged%s}"
        text = sweep.replace("concepts.csv", source % suffix, 1)
        return {f"damaged{suffix}": content, "sweep.yaml": text.encode()}

    suffixes = (".txt", ".jsonl", ".parquet")
    damaged = [_damaged_bytes((study / f"corpus{suffix}").read_bytes()) for suffix in suffixes]
    return st.builds(place, st.sampled_from(suffixes), st.one_of(damaged))


def _baselines(study: Path, names: tuple[str, ...], baseline: str) -> st.SearchStrategy[Files]:
    """Damaged files of a baseline, which is a mapping of the sweep file with a place for the name."""
    sweep = (study / "sweep.yaml").read_text()

    def damage(name: str) -> st.SearchStrategy[Files]:
        text = f"{sweep}baselines: [{baseline % name}]\n"
        return _damaged_bytes((study / name).read_bytes()).map(
            lambda content: {name: content, "sweep.yaml": text.encode()}
        )

    return st.one_of(list(map(damage, names)))


def _vectors(study: Path) -> st.SearchStrategy[Files]:
    names = ("vectors.txt", "vectors.vec", "vectors.bin", "vectors.txt.gz", "fasttext.bin")
    return _baselines(study, names, "{name: v, path: %s}")


def _dictionaries(study: Path) -> st.SearchStrategy[Files]:
    baseline = "{name: d, dictionary: %s, layer: 1, b_dec: subtract}"
    return _baselines(study, ("dictionary.safetensors",), baseline)


def _model_folders(study: Path) -> st.SearchStrategy[Files]:
    model = study / "model"
    index = json.dumps(
        {"metadata": {}, "weight_map": {"model.norm.weight": "model.safetensors"}}
    ).encode()
    choices = [
        _damaged_json(model / name).map(lambda content, name=name: {f"model/{name}": content})  # type: ignore[misc]
        for name in ("config.json", "config.json", "config.json", "tokenizer_config.json")
    ]
    choices += [
        _damaged_bytes((model / "tokenizer.json").read_bytes()).map(
            lambda content: {"model/tokenizer.json": content}
        ),
        _damaged_bytes((model / "model.safetensors").read_bytes(), 2000).map(
            lambda content: {"model/model.safetensors": content}
        ),
        (_damaged_value(json.loads(index)).map(json.dumps).map(str.encode) | _damaged_bytes(index)).map(
            lambda content: {"model/model.safetensors.index.json": content}
        ),
    ]
    return st.one_of(choices)


@cache
def _header_end(file: Path) -> int:
    """The end of a GGUF file's metadata and names of tensors."""
    return file.read_bytes().rfind(b"output_norm.weight") + 64


def _gguf_files(study: Path) -> st.SearchStrategy[Files]:
    file = study / "model.gguf"
    metadata = gguf_files.llama_metadata(study / "model")
    metadata |= gguf_files.tokenizer_metadata(study / "model/tokenizer.json")
    tensors = {name: 0 * tensor for name, tensor in gguf_files.llama_tensors(study / "model").items()}
    value = (
        st.integers(0, 2**32 - 1)
        | st.floats(width=32)
        | st.booleans()
        | st.text(st.characters(exclude_categories=["Cs"]), max_size=5)
        | st.lists(st.integers(-5, 5), min_size=1, max_size=3)
        | st.lists(st.text("ab", max_size=3), min_size=1, max_size=3)
    )
    extra = ("split.count", "split.no", "llama.rope.scaling.type", "llama.vocab_size")

    def write(key: str, new: Any) -> bytes:
        with tempfile.TemporaryDirectory() as folder:
            changed = {**metadata, key: new}
            return gguf_files.write(Path(folder) / "a.gguf", changed, tensors).read_bytes()

    keys = st.sampled_from([*metadata, *extra])
    changed = st.builds(write, keys, value) | _damaged_bytes(file.read_bytes(), _header_end(file))
    return changed.map(lambda content: {"model.gguf": content, "sweep.yaml": _GGUF_SWEEP.encode()})


def _manifests(study: Path) -> st.SearchStrategy[Files]:
    files = [
        path for path in (study / _STORE).rglob("*") if path.is_file() and path.suffix != ".parquet"
    ]
    return st.one_of(
        [
            (_damaged_json(path) if _is_json(path) else _damaged_bytes(path.read_bytes())).map(
                lambda content, path=path: {str(path.relative_to(study)): content}  # type: ignore[misc]
            )
            for path in sorted(files)
        ]
    )


def _store_tables(study: Path) -> st.SearchStrategy[Files]:
    """Damaged tables of the store."""
    files = [path for path in (study / _STORE).rglob("*.parquet") if "pooling=" not in str(path)]
    return st.one_of(
        [
            _damaged_bytes(path.read_bytes()).map(
                lambda content, path=path: {str(path.relative_to(study)): content}  # type: ignore[misc]
            )
            for path in sorted(files)
        ]
    )


def _damaged_records(records: dict[str, bytes], others: Files) -> st.SearchStrategy[Files]:
    """One of some JSON files damaged, with the others as they are."""

    def damage(path: str) -> st.SearchStrategy[Files]:
        value = _damaged_value(json.loads(records[path])).map(lambda value: json.dumps(value).encode())
        contents = value | _damaged_bytes(records[path])
        return contents.map(lambda content: {**others, path: content})

    return st.one_of(list(map(damage, records)))


def _unfinished_stages(study: Path) -> st.SearchStrategy[Files]:
    """Damaged records in the folder of a stage whose run was killed, or failed."""
    folder = next((study / _STORE / "similarity").iterdir()).relative_to(study)
    facts = {"kind": "similarity", "label": "model", "concept_set": "concepts"}
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / layout.RUNNING
        with acquire_lease(path, {**facts, "units": 3}, lambda _: None):
            lease = path.read_bytes()
    records = {
        f"{folder}/{layout.RUNNING}": lease,
        f"{folder}/{layout.FAILED}": json.dumps({**facts, "error": "ValueError: x"}).encode(),
        f"{folder}/{layout.INPUTS}": (study / folder / layout.INPUTS).read_bytes(),
    }
    return _damaged_records(records, {f"{folder}/{layout.SUCCESS}": None})


def _schedules(study: Path) -> st.SearchStrategy[Files]:
    """Damaged records of a schedule, with slots that have no time in Python."""
    folder, slot = f"{_STORE}/_schedules/sweep", datetime(2026, 6, 1, tzinfo=UTC)
    with tempfile.TemporaryDirectory() as name:
        slots = ScheduleSlots(Path(name), "sweep")
        slots.begin({"keeps": "sweep.yaml", "host": "here", "pid": 1}, slot)
        slots.decide(slot, {"submit": True, "job": "a", "missed": 0, "running": None})
        files = Path(name).glob("_schedules/sweep/*")
        records = {f"{folder}/{path.name}": path.read_bytes() for path in files}
    strange = ("00010101T0000Z", "99991231T2359Z", "20261399T9999Z", "notes")
    others = st.sampled_from([{}, *({f"{folder}/{name}.json": b"{}"} for name in strange)])
    return st.builds(
        lambda files, other: {**files, **other}, _damaged_records(records, {**records}), others
    )


def _is_json(path: Path) -> bool:
    try:
        json.loads(path.read_bytes())
    except ValueError:
        return False
    return True


_PLAN = (("plan", "sweep.yaml"),)
_RUN = (("run", "sweep.yaml"),)
_STORE_COMMANDS = (
    *((name, _STORE) for name in ("sql", "status", "verify", "gc")),
    ("sql", _STORE, "SELECT max(rho), (SELECT max(ap) FROM experts) FROM alignment"),
    ("compare", _STORE, "--human", "mine"),
)
KINDS = {
    "sweep": Kind(_sweeps, _PLAN),
    "concepts": Kind(lambda study: _tables(study, "concepts"), (*_PLAN, ("sentences", "sweep.yaml"))),
    "human": Kind(lambda study: _tables(study, "human"), _PLAN),
    "corpus": Kind(_corpora, (*_PLAN, ("sentences", "sweep.yaml"))),
    "vectors": Kind(_vectors, _RUN),
    "dictionary": Kind(_dictionaries, (*_PLAN, *_RUN)),
    "model": Kind(_model_folders, _PLAN),
    "gguf": Kind(_gguf_files, _PLAN),
    "manifest": Kind(_manifests, _STORE_COMMANDS),
    "table": Kind(_store_tables, _STORE_COMMANDS),
    "unfinished": Kind(_unfinished_stages, (*_STORE_COMMANDS, *_RUN)),
    "schedule": Kind(
        _schedules,
        (("schedule", "sweep.yaml", "--cron", "0 3 * * *"), ("verify", _STORE), ("gc", _STORE)),
    ),
}


def load(file: Path) -> tuple[str, Files]:
    """The kind and the files of a case of the corpus."""
    case = json.loads(file.read_text())
    return case["kind"], {name: _decode(content) for name, content in case["files"].items()}


def _decode(content: str | list[str] | None) -> bytes | None:
    if isinstance(content, list):
        return zlib.decompress(base64.b64decode(content[0]))
    return content if content is None else content.encode()


def save(kind: str, files: Files) -> Path:
    """Add a case to the corpus: text as it is, other content compressed."""

    def encode(content: bytes | None) -> str | list[str] | None:
        if content is None:
            return None
        try:
            return content.decode()
        except UnicodeDecodeError:
            return [base64.b64encode(zlib.compress(content, 9)).decode()]

    case = {"kind": kind, "files": {name: encode(content) for name, content in files.items()}}
    text = json.dumps(case, indent=1) + "\n"
    file = CORPUS / f"{kind}-{hashlib.sha256(text.encode()).hexdigest()[:8]}.json"
    file.write_text(text)
    return file


def fuzz(study: Path, seconds: float) -> tuple[Counter[str], list[Path]]:
    """Try new cases of all kinds in turn for a time: how many of each, and the failures saved."""
    deadline, counts, failures = time.monotonic() + seconds, Counter[str](), list[Path]()
    while time.monotonic() < deadline:
        for kind in KINDS:
            failed: list[Files] = []
            try:
                _try_some(study, kind, deadline, counts, failed)
            except AssertionError as error:
                failures.append(save(kind, failed[-1]))
                print(f"{failures[-1]}: {error}", flush=True)
    return counts, failures


def _try_some(
    study: Path, kind: str, deadline: float, counts: Counter[str], failed: list[Files]
) -> None:
    """Try a round of cases. Raises AssertionError; the smallest case is then the last of `failed`."""

    @settings(
        max_examples=EXAMPLES_PER_ROUND,
        deadline=None,
        derandomize=False,
        database=None,
        report_multiple_bugs=False,
        phases=[Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
    )
    @given(files=KINDS[kind].files(study))
    def attempt(files: Files) -> None:
        if time.monotonic() > deadline and not failed:
            return
        counts[kind] += 1
        try:
            check(study, kind, files)
        except AssertionError:
            failed.append(files)
            raise

    attempt()


def main() -> int:
    """Fuzz for the seconds on the command line; exit with 1 if a case failed."""
    with tempfile.TemporaryDirectory() as folder:
        counts, failures = fuzz(make_study(Path(folder) / "study"), float(sys.argv[1]))
    print(f"{counts.total():,} cases ({', '.join(f'{kind} {n:,}' for kind, n in counts.items())})")
    print(f"{len(failures)} failures" + (f" in {CORPUS}" if failures else ""))
    return int(bool(failures))


if __name__ == "__main__":
    sys.exit(main())
