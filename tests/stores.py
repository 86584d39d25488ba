"""An S3 for tests: moto's server behind real sockets, in a process of its own, that can be told to misbehave."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.dist import free_port
from tests.optional import NO_STORES, STORES

BUCKET = "bucket"
CREDENTIALS = {"AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "testing", "AWS_DEFAULT_REGION": "us-east-1"}
ORDERS = "/-/orders"
"""A path that is no bucket's: what the server shall do wrong is put there, and what it was asked is got there."""


class StoreServer:
    """A server that runs, with one bucket."""

    def __init__(self) -> None:
        assert STORES.is_dir() or importlib.util.find_spec("s3fs"), NO_STORES
        self.port = free_port()
        self.address = f"http://127.0.0.1:{self.port}"
        environment = {**os.environ, **CREDENTIALS, "PYTHONWARNINGS": "ignore"}
        command = [sys.executable, "-m", "tests.stores", str(self.port)]
        self._process = subprocess.Popen(command, env=environment, cwd=Path(__file__).parent.parent)
        deadline = time.monotonic() + 60
        while True:
            with contextlib.suppress(OSError):
                self.do()
                break
            assert self._process.poll() is None, "the server ended"
            assert time.monotonic() < deadline, "the server does not answer"
            time.sleep(0.05)
        try:
            self._request("PUT", f"/{BUCKET}")
        except OSError:
            self.stop()
            raise

    def url(self, folder: str) -> str:
        return f"s3://{BUCKET}/{folder}"

    @property
    def environment(self) -> dict[str, str]:
        """What lets a process reach it."""
        return {**CREDENTIALS, "AWS_ENDPOINT_URL": self.address, "AWS_MAX_ATTEMPTS": "1"}

    def do(self, **orders: Any) -> None:
        """From now on do this wrong, and nothing else.

        Orders: ``methods`` and ``match``, a pattern of paths, choose requests; of them ``count`` (else all) are
        answered with ``status``, or wait ``wait_s`` first, or have only the first ``keep`` bytes stored, or are
        answered with one byte ``garbled`` or with the first ``cut`` bytes alone, as by a bad way to a sound store.
        """
        self._request("PUT", ORDERS, json.dumps(orders).encode())

    def asked(self) -> list[str]:
        """Methods and paths of all requests so far."""
        return json.loads(self._request("GET", ORDERS))

    def names(self, folder: str = "") -> list[str]:
        """Objects that are there."""
        with self.boto() as client:
            pages = client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix=folder)
            return sorted(one["Key"] for page in pages for one in page.get("Contents", []))

    def read(self, name: str) -> bytes:
        with self.boto() as client:
            return client.get_object(Bucket=BUCKET, Key=name)["Body"].read()

    def write(self, name: str, content: bytes) -> None:
        with self.boto() as client:
            client.put_object(Bucket=BUCKET, Key=name, Body=content)

    def remove(self, *names: str) -> None:
        with self.boto() as client:
            for name in names:
                client.delete_object(Bucket=BUCKET, Key=name)

    @contextlib.contextmanager
    def boto(self) -> Iterator[Any]:
        import warnings

        use_stores()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import boto3

            client = boto3.client(
                "s3",
                endpoint_url=self.address,
                region_name=CREDENTIALS["AWS_DEFAULT_REGION"],
                aws_access_key_id="testing",
                aws_secret_access_key="testing",
            )
            yield client
            client.close()

    def _request(self, method: str, path: str, body: bytes | None = None) -> bytes:
        request = urllib.request.Request(f"{self.address}{path}", data=body, method=method)
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.read()

    def stop(self) -> None:
        self._process.kill()
        self._process.wait()


def use_stores() -> None:
    """Let this process import s3fs and boto3."""
    if importlib.util.find_spec("s3fs") is None:
        sys.path.append(str(STORES))


def reach(_rank: int, environment: dict[str, str]) -> None:
    """Let a rank (``tests/runs.py``) import s3fs and reach a server."""
    os.environ.update(environment)
    use_stores()


def reach_and(rank: int, environment: dict[str, str], fault: Any, *arguments: Any) -> None:
    """The same, and break something in it."""
    reach(rank, environment)
    fault(rank, *arguments)


def _serve(port: int) -> None:
    import io
    import re
    import threading

    use_stores()
    import logging

    from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import make_server

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    plain = DomainDispatcherApplication(create_backend_app)
    orders: dict[str, Any] = {}
    asked: list[str] = []
    lock = threading.Lock()

    def answer(environ: dict[str, Any], start: Any) -> Any:
        method, path = environ["REQUEST_METHOD"], environ["PATH_INFO"]
        if path == ORDERS:
            return control(method, environ, start)
        with lock:
            asked.append(f"{method} {path}")
            is_meant = (
                bool(orders)
                and method in orders.get("methods", [method])
                and re.search(orders.get("match", ""), path) is not None
                and orders.get("count", 1) > 0
            )
            if is_meant and "count" in orders:
                orders["count"] -= 1
            now = dict(orders)
        if is_meant:
            if "wait_s" in now:
                time.sleep(now["wait_s"])
            if "status" in now:
                environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
                start(f"{now['status']} as ordered", [("Content-Type", "text/plain"), ("Content-Length", "0")])
                return [b""]
            if "keep" in now and method == "PUT":
                body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))[: now["keep"]]
                environ["wsgi.input"] = io.BytesIO(body)
                environ["CONTENT_LENGTH"] = str(len(body))
                for header in [one for one in environ if one.startswith(("HTTP_X_AMZ_CHECKSUM", "HTTP_CONTENT_MD5"))]:
                    del environ[header]
            if method == "GET" and ("garbled" in now or "cut" in now):
                return spoilt(environ, start, now)
        return plain(environ, start)

    def spoilt(environ: dict[str, Any], start: Any, now: dict[str, Any]) -> Any:
        said: list[Any] = []

        def note(status: str, headers: list[tuple[str, str]], *_: Any) -> None:
            said[:] = [status, headers]

        content = bytearray(b"".join(plain(environ, note)))
        status, headers = said
        if status.startswith("2") and content:
            content = content[: now.get("cut", len(content))]
            if "garbled" in now:
                content[len(content) // 2] ^= 1
        told = ("content-length", "content-md5")  # what a proxy makes anew, and what would tell on it
        kept = [(key, value) for key, value in headers if key.lower() not in told and "checksum" not in key.lower()]
        start(status, [*kept, ("Content-Length", str(len(content)))])
        return [bytes(content)]

    def control(method: str, environ: dict[str, Any], start: Any) -> Any:
        content = b"{}"
        if method == "PUT":
            body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
            with lock:
                orders.clear()
                orders.update(json.loads(body))
        else:
            with lock:
                content = json.dumps(asked).encode()
        start("200 OK", [("Content-Type", "application/json"), ("Content-Length", str(len(content)))])
        return [content]

    def end_with_parent() -> None:  # which may be killed
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(0)

    parent = os.getppid()
    threading.Thread(target=end_with_parent, daemon=True).start()
    make_server("127.0.0.1", port, answer, threaded=True).serve_forever()


if __name__ == "__main__":
    _serve(int(sys.argv[1]))
