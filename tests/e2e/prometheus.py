"""A real Prometheus over a running service, with the configuration that docker/ ships."""

from __future__ import annotations

import json
import re
import socket
import subprocess
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import yaml

from tests.e2e.service import until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.e2e.service import RunningService

DOCKER = Path(__file__).resolve().parents[2] / "docker"
_BOUND = re.compile(r"(?P<measure>.+)\s(?:<|>)\s*[\d.]+", re.S)
RATE_INTERVAL = "30s"  # what Grafana would put in; over several scrapes


@dataclass(frozen=True)
class Prometheus:
    """A server that scrapes once a second."""

    url: str

    def query(self, expression: str) -> list[dict[str, Any]]:
        """The vector that the expression gives now, numbers only."""
        answer = httpx.get(f"{self.url}/api/v1/query", params={"query": expression}).json()
        assert answer["status"] == "success", f"{expression}: {answer['error']}"
        vector: list[dict[str, Any]] = answer["data"]["result"]
        return [sample for sample in vector if sample["value"][1] != "NaN"]


def panel_queries() -> dict[str, str]:
    """What each query of the dashboard is called -> the query."""
    dashboard = json.loads((DOCKER / "grafana/dashboards/tandem.json").read_text())
    return {
        f"{panel['title']} {target['refId']}": target["expr"].replace(
            "$__rate_interval", RATE_INTERVAL
        )
        for panel in dashboard["panels"]
        for target in panel["targets"]
    }


def alert_measures() -> dict[str, str]:
    """Alert -> what it compares with its bound."""
    groups = yaml.safe_load((DOCKER / "prometheus/alerts.yml").read_text())["groups"]
    rules = {rule["alert"]: rule["expr"] for group in groups for rule in group["rules"]}
    measures = {}
    for name, expression in rules.items():
        found = _BOUND.fullmatch(expression)
        assert found, f"{name} is no measure and a bound."
        measures[name] = found["measure"]
    return measures


def scaling_queries() -> dict[str, str]:
    """What each trigger of the workers' autoscaler is called -> its query."""
    scaled = yaml.safe_load((DOCKER / "kubernetes/scaling/workers.yaml").read_text())
    return {
        f"scaling by {trigger['name']}": trigger["metadata"]["query"]
        for trigger in scaled["spec"]["triggers"]
    }


@contextmanager
def watching(service: RunningService, folder: Path) -> Iterator[Prometheus]:
    """Prometheus beside the service for as long as the block lasts."""
    with socket.socket() as chosen:
        chosen.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{chosen.getsockname()[1]}"
    configuration = _configure(service, folder)
    with (folder / "prometheus.log").open("w") as log:
        process = subprocess.Popen(
            [
                *("prometheus", f"--config.file={configuration}"),
                *(f"--storage.tsdb.path={folder / 'tsdb'}", f"--web.listen-address={address}"),
            ],
            stdout=log,
            stderr=log,
        )
    try:
        until(lambda: _is_ready(address))
        yield Prometheus(f"http://{address}")
    finally:
        process.terminate()
        process.wait(30)


def _configure(service: RunningService, folder: Path) -> Path:
    """The shipped configuration, with this service's address and key, and without patience."""
    settings = yaml.safe_load((DOCKER / "prometheus/prometheus.yml").read_text())
    (folder / "key").write_text(service.admin_key)
    settings["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    settings["rule_files"] = [str(DOCKER / "prometheus/alerts.yml")]
    for scrape in settings["scrape_configs"]:
        del scrape["dns_sd_configs"]
        scrape["static_configs"] = [{"targets": [service.url.removeprefix("http://")]}]
        scrape["scrape_interval"] = "1s"
        if "authorization" in scrape:
            scrape["authorization"]["credentials_file"] = str(folder / "key")
    path = folder / "prometheus.yml"
    path.write_text(yaml.safe_dump(settings))
    return path


def _is_ready(address: str) -> bool:
    try:
        return httpx.get(f"http://{address}/-/ready").status_code == 200
    except httpx.TransportError:
        return False
