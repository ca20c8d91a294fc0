"""A local S3-compatible server, and the settings that clients need to find it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import boto3
from obstore.fsspec import FsspecStore

from storage.store import paths

BUCKET = "results"

# moto checks whether an object exists and then writes it: one request at a time, so that concurrent
# requests cannot both find it absent
_SERVER = """
from threading import Lock
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server
application, lock = DomainDispatcherApplication(create_backend_app), Lock()
def one_at_a_time(environ, start_response):
    with lock:
        return application(environ, start_response)
server = make_server("127.0.0.1", 0, one_at_a_time, threaded=True)
print(server.port, flush=True)
server.serve_forever()
"""


@contextmanager
def s3_server() -> Iterator[str]:
    """Start a server with an empty bucket; yields the bucket's URL.

    Sets the environment variables by which clients in this process and its children find it.
    """
    server = subprocess.Popen(
        [sys.executable, "-c", _SERVER],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert server.stdout is not None
    port = int(server.stdout.readline())
    settings = {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_REGION": "us-east-1",
        "AWS_ALLOW_HTTP": "true",
    }
    before = {name: os.environ.get(name) for name in settings}
    os.environ.update(settings)
    # Clients of an earlier server with the same bucket.
    paths._open_bucket.cache_clear()
    FsspecStore.clear_instance_cache()
    try:
        boto3.client("s3", region_name="us-east-1").create_bucket(Bucket=BUCKET)
        yield f"s3://{BUCKET}"
    finally:
        server.terminate()
        server.communicate()
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
