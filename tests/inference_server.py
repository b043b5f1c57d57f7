"""A server process for tests of what it speaks: started on a free port, asked over one kept connection, stopped."""

import contextlib
import http.client
import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

REPOSITORY = Path(__file__).resolve().parent.parent


class Answer(NamedTuple):
    """A reply as it came."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        """Its body."""
        return json.loads(self.body)


class Server(NamedTuple):
    """A server that is ready."""

    port: int
    connection: http.client.HTTPConnection

    def ask(self, method: str, path: str, body: bytes | None = None, headers: dict[str, str] | None = None) -> Answer:
        """Ask over the kept connection; a server that closes it after a refusal is connected to again."""
        self.connection.request(method, path, body, headers or {})
        reply = self.connection.getresponse()
        return Answer(reply.status, {name.lower(): value for name, value in reply.getheaders()}, reply.read())

    def infer(self, model: str, document: Any, headers: dict[str, str] | None = None) -> Answer:
        """Ask a model of the Open Inference Protocol."""
        body = document if isinstance(document, bytes) else json.dumps(document).encode()
        return self.ask("POST", f"/v2/models/{model}/infer", body, headers)


@contextlib.contextmanager
def served(registry: Path, *models: str) -> Iterator[Server]:
    """Give a Server of registered models, ready; it must end well."""
    named = [word for model in models for word in ("--model", model)]
    options = ("--registry", str(registry), "--port", "0", "--max-batch", "64")
    command = [sys.executable, "-m", "mmjax.serve", *options, *named]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=REPOSITORY)
    try:
        assert process.stdout is not None
        found = next(
            (m for line in process.stdout if (m := re.search(r" on http://127\.0\.0\.1:(\d+)\s*$", line))), None
        )
        assert found is not None, f"the server ended with {process.wait()}"
        connection = http.client.HTTPConnection("127.0.0.1", int(found[1]), timeout=30)
        server = Server(int(found[1]), connection)
        ends = time.monotonic() + 120
        while server.ask("GET", "/v2/health/ready").status != 200:
            assert time.monotonic() < ends, "not ready in time"
            time.sleep(0.05)
        with contextlib.closing(connection):
            yield server
        process.terminate()
        process.communicate(timeout=30)
        assert process.returncode == 0
    finally:
        process.kill()
        process.communicate()
