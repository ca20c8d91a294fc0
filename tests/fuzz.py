"""Fuzzing of everything that is read from users: `python -m tests.fuzz SECONDS` (make fuzz).

A case replaces files of a small valid study by damaged ones; a command must then end with exit code 0, 1
or 2 and without a traceback, and write nothing outside the store. A failing case is made as small as
possible and saved in tests/fuzz_corpus, whose cases are tests from then on.
"""

from __future__ import annotations

import base64
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
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import FrameType
from typing import Any

import yaml
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from cluster.models import gguf, weights
from tests import gguf_files, tiny
from tests.commands import neuralign

CORPUS = Path(__file__).parent / "fuzz_corpus"
EXAMPLES_PER_ROUND = 50
_SECONDS_PER_COMMAND = 120
_STORE = "results/sweep"
_GGUF_SWEEP = "concepts: concepts.csv\nmodels: [model.gguf]\nhuman: [{name: mine, path: human.csv}]\n"

Files = dict[str, bytes]
"""Files that replace those of the study, by their path in its folder."""


@dataclass(frozen=True)
class Kind:
    """A kind of input: how its files are damaged, and the commands that read them."""

    files: Callable[[Path], st.SearchStrategy[Files]]
    commands: tuple[tuple[str, ...], ...]


def make_study(folder: Path) -> Path:
    """A study of a tiny model, with a GGUF file of zeros and the store of its sentences."""
    tiny.make_model(folder / "model")
    tiny.write_sweep(folder)
    metadata = gguf_files.llama_metadata(folder / "model")
    metadata |= gguf_files.tokenizer_metadata(folder / "model/tokenizer.json")
    tensors = {name: 0 * tensor for name, tensor in gguf_files.llama_tensors(folder / "model").items()}
    gguf_files.write(folder / "model.gguf", metadata, tensors)
    made = neuralign("sentences", folder / "sweep.yaml", cwd=folder)
    assert made.returncode == 0, made.stderr
    return folder


def check(study: Path, kind: str, files: Files) -> None:
    """Raise AssertionError unless every command of a kind handles the files."""
    for command, *arguments in KINDS[kind].commands:
        with tempfile.TemporaryDirectory() as name:
            sandbox = Path(name)
            folder = shutil.copytree(study, sandbox / "study")
            for path, content in files.items():
                (folder / path).parent.mkdir(parents=True, exist_ok=True)
                (folder / path).write_bytes(content)
            before = set(sandbox.rglob("*"))
            # they remember files by their path
            gguf.read_gguf_config.cache_clear()
            weights._load_config.cache_clear()
            with _time_limit():
                result = neuralign(command, *arguments, cwd=folder)
            shown = f"neuralign {command}: exit code {result.returncode}: {result.stderr[-2000:]}"
            assert "Traceback" not in result.stderr, shown
            assert result.returncode in (0, 1, 2), shown
            lines = result.stderr.splitlines()
            assert result.returncode != 2 or _is_one_line_per_error(lines), shown
            written = {path for path in set(sandbox.rglob("*")) - before if path.is_file()}
            outside = [path for path in written if not path.is_relative_to(folder / _STORE)]
            assert not outside, f"neuralign {command}: wrote {outside}"


def _is_one_line_per_error(lines: list[str]) -> bool:
    """Whether an error is one line, or one for each wrong key of a sweep file."""
    first, *others = lines
    return first.startswith("neuralign: ") and all("sweep.yaml:" in line for line in others)


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


def _is_json(path: Path) -> bool:
    try:
        json.loads(path.read_bytes())
    except ValueError:
        return False
    return True


_PLAN = (("plan", "sweep.yaml"),)
KINDS = {
    "sweep": Kind(_sweeps, _PLAN),
    "concepts": Kind(lambda study: _tables(study, "concepts"), (*_PLAN, ("sentences", "sweep.yaml"))),
    "human": Kind(lambda study: _tables(study, "human"), _PLAN),
    "model": Kind(_model_folders, _PLAN),
    "gguf": Kind(_gguf_files, _PLAN),
    "manifest": Kind(_manifests, tuple((name, _STORE) for name in ("sql", "status", "verify"))),
}


def load(file: Path) -> tuple[str, Files]:
    """The kind and the files of a case of the corpus."""
    case = json.loads(file.read_text())
    return case["kind"], {
        name: content.encode()
        if isinstance(content, str)
        else zlib.decompress(base64.b64decode(content[0]))
        for name, content in case["files"].items()
    }


def save(kind: str, files: Files) -> Path:
    """Add a case to the corpus: text as it is, other content compressed."""

    def encode(content: bytes) -> str | list[str]:
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
