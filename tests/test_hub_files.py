"""A model on the hub could be downloaded twice: in other formats, or with its checkpoints."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests import tiny

COMMIT = "a" * 40
_ROOT = Path(__file__).parent.parent
_UNUSED = [
    "original/consolidated.safetensors",
    "original/params.json",
    "model.fp16.safetensors",
    "pytorch_model.bin",
    "onnx/model.onnx",
    "onnx/config.json",
    "checkpoint-10/model.safetensors",
    "checkpoint-10/tokenizer.json",
]


class _Hub(BaseHTTPRequestHandler):
    """The requests of huggingface_hub for one repository, `owner/name`, in a folder."""

    folder: Path
    downloaded: list[str]
    address: str

    def do_HEAD(self) -> None:
        self._respond(with_body=False)

    def do_GET(self) -> None:
        self._respond(with_body=True)

    def log_message(self, *_: object) -> None: ...

    def _respond(self, with_body: bool) -> None:
        path = self.path.partition("?")[0]
        names = sorted(str(file.relative_to(self.folder)) for file in self.folder.rglob("*.*"))
        name = path.removeprefix(f"/owner/name/resolve/{COMMIT}/")
        if path == "/api/models/owner/name/refs":
            body = json.dumps(
                {
                    "branches": [{"name": "main", "ref": "main", "targetCommit": COMMIT}],
                    "tags": [],
                    "converts": [],
                }
            ).encode()
        elif path.startswith("/api/models/owner/name/tree/"):
            entries = [
                {
                    "type": "file",
                    "path": name,
                    "oid": "0" * 40,
                    "size": (self.folder / name).stat().st_size,
                }
                for name in names
            ]
            body = json.dumps(entries).encode()
        elif path.startswith("/api/models/owner/name"):
            siblings = [{"rfilename": name} for name in names]
            body = json.dumps({"id": "owner/name", "sha": COMMIT, "siblings": siblings}).encode()
        elif name in names:
            body = (self.folder / name).read_bytes()
            if with_body:
                self.downloaded.append(name)
        else:
            self.send_response(404)
            self.send_header("X-Error-Code", "EntryNotFound")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("ETag", f'"{hashlib.sha256(body).hexdigest()}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.end_headers()
        if with_body:
            self.wfile.write(body)


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[type[_Hub]]:
    """A hub with the tiny model and many files that are not loaded."""

    class Hub(_Hub):
        folder = tiny.make_model(tmp_path / "repository")
        downloaded: list[str] = []  # noqa: RUF012

    for name in _UNUSED:
        (Hub.folder / name).parent.mkdir(exist_ok=True)
        (Hub.folder / name).write_text("{}")
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    Hub.address = f"http://127.0.0.1:{server.server_port}"
    yield Hub
    server.shutdown()
    thread.join()
    server.server_close()


def load(tmp_path: Path, hub: type[_Hub], call: str) -> subprocess.CompletedProcess[str]:
    script = (
        "from pathlib import Path\nfrom cluster.models.weights import ensure_local, resolve\n"
        "from cluster.models.model_checks import check_model\n"
        "from cluster.models.tokenizer import InputOptions\n"
        f"weights = resolve('owner/name', 'main', Path())\nprint({call})\n"
    )
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("HF_")},
        "HF_ENDPOINT": hub.address,
        "HF_HUB_CACHE": str(tmp_path / "hub"),
        "HF_HUB_DISABLE_XET": "1",
        "PYTHONPATH": str(_ROOT),
    }
    return subprocess.run(
        [sys.executable, "-c", script],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def test_only_the_files_that_are_loaded_are_downloaded(tmp_path: Path, hub: type[_Hub]) -> None:
    """Llama's `original` folder doubles a download of 140 GB."""
    result = load(tmp_path, hub, "ensure_local(weights)")
    assert result.returncode == 0, result.stderr
    own = {path.name for path in hub.folder.iterdir() if path.is_file()} - set(_UNUSED)
    assert set(hub.downloaded) == own
    assert len(hub.downloaded) == len(own)


def test_the_parts_of_a_checkpoint_are_downloaded_by_its_index(tmp_path: Path, hub: type[_Hub]) -> None:
    """A part that the index does not list is not loaded."""
    folder = hub.folder
    (folder / "model.safetensors").rename(folder / "part-a.safetensors")
    index = {"weight_map": {"model.norm.weight": "part-a.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    result = load(tmp_path, hub, "ensure_local(weights)")
    assert result.returncode == 0, result.stderr
    assert [name for name in hub.downloaded if name.endswith(".safetensors")] == ["part-a.safetensors"]


def test_a_check_downloads_no_weights(tmp_path: Path, hub: type[_Hub]) -> None:
    """A plan would wait for the download of every model."""
    result = load(tmp_path, hub, "check_model(weights, InputOptions(), 4)")
    assert "has 3 layers, too few for 4 shards" in result.stderr
    assert "tokenizer.json" in hub.downloaded
    assert not any(name.endswith(".safetensors") for name in hub.downloaded)


def test_an_adapter_on_the_hub_is_rejected(tmp_path: Path, hub: type[_Hub]) -> None:
    """transformers applies it without a word if PEFT is installed, and ignores it otherwise."""
    (hub.folder / "adapter_config.json").write_text("{}")
    result = load(tmp_path, hub, "ensure_local(weights)")
    assert "has a LoRA adapter (adapter_config.json)" in result.stderr
    assert not any(name.endswith(".safetensors") for name in hub.downloaded)
