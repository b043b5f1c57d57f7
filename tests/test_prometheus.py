"""Debian's own Prometheus scrapes the server: what it stores is what the server says."""

import hashlib
import json
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from tests.live import GOOD, JSON, door, make_home

PROMETHEUS = shutil.which("prometheus")
KEY = "scrape-key-0123456789abcdef"
CONFIG = """
global: {{scrape_interval: 1s}}
scrape_configs:
  - job_name: mmjax
    authorization: {{credentials: {key}}}
    static_configs: [{{targets: ["127.0.0.1:{port}"]}}]
"""


def query(port: int, expression: str) -> list[dict[str, Any]]:
    url = f"http://127.0.0.1:{port}/api/v1/query?query={urllib.parse.quote(expression)}"
    with urllib.request.urlopen(url, timeout=5) as reply:
        return json.load(reply)["data"]["result"]


def asked_until(port: int, expression: str, expected: float) -> float:
    """The value of an expression, once it is as expected, or after half a minute."""
    value = -1.0
    for _ in range(60):
        try:
            found = query(port, expression)
            value = float(found[0]["value"][1]) if found else -1.0
        except (urllib.error.URLError, ConnectionError):
            pass
        if value == expected:
            break
        time.sleep(0.5)
    return value


@pytest.mark.soak
@pytest.mark.skipif(PROMETHEUS is None, reason="no `prometheus` on PATH (apt-get install prometheus)")
def test_prometheus_stores_what_the_server_says(tmp_path: Path):
    (tmp_path / "keys").write_text(f"prometheus:sha256:{hashlib.sha256(KEY.encode()).hexdigest()}\n")
    keyed = JSON | {"Authorization": f"Bearer {KEY}"}
    options = ("--model", "kinds", "--model", "shades", "--api-keys", str(tmp_path / "keys"))
    with door(make_home(tmp_path), *options) as server, socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
        free.close()
        (tmp_path / "prometheus.yml").write_text(CONFIG.format(key=KEY, port=server.port))
        command = [
            str(PROMETHEUS),
            f"--config.file={tmp_path / 'prometheus.yml'}",
            f"--storage.tsdb.path={tmp_path / 'db'}",
        ]
        with subprocess.Popen(
            [*command, f"--web.listen-address=127.0.0.1:{port}"], stderr=subprocess.DEVNULL
        ) as scraper:
            try:
                assert asked_until(port, 'up{job="mmjax"}', 1) == 1
                statuses = [
                    server.ask("POST", "/predict/tabular", body, keyed).status for body in [GOOD] * 20 + [b"{"] * 5
                ]
                assert statuses == [200] * 20 + [400] * 5
                asked = 'mmjax_requests_total{route="/predict/tabular",status="200"}'
                assert asked_until(port, asked, 20) == 20
                assert asked_until(port, 'mmjax_requests_total{reason="bad-json"}', 5) == 5
                assert asked_until(port, 'mmjax_stage_seconds_count{stage="infer",model="kinds:1"}', 20) == 20
                assert asked_until(port, "count(mmjax_model_info == 1)", 2) == 2
                median = "histogram_quantile(0.5, mmjax_stage_seconds_bucket{model='kinds:1', stage='infer'})"
                assert 0 < float(query(port, median)[0]["value"][1]) < 1
            finally:
                scraper.terminate()
                scraper.wait(30)
