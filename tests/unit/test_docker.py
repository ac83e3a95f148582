"""The compose file says what the code understands, and publishes nothing that it should not."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from scheduler.settings import SchedulerSettings
from scheduler.tasks.registry import TaskQueue
from service.settings import ServiceSettings
from workers.settings import WorkerSettings

DOCKER = Path(__file__).resolve().parents[2] / "docker"
COMPOSE: dict[str, Any] = yaml.safe_load((DOCKER / "compose.yaml").read_text())
DASHBOARD: dict[str, Any] = json.loads((DOCKER / "grafana/dashboards/tandem.json").read_text())
WATCHING = {name: s for name, s in COMPOSE["services"].items() if s.get("profiles") == ["watch"]}
OURS = {name: s for name, s in COMPOSE["services"].items() if name not in {"redis", *WATCHING}}


def test_the_set_holds_gateway_worker_scheduler_tasks_orders_and_redis() -> None:
    assert set(OURS) == {"gateway", "worker", "scheduler", "tasks", "orders"}
    assert set(COMPOSE["services"]) == {*OURS, "redis", "prometheus", "grafana"}


@pytest.mark.parametrize("name", OURS)
def test_every_command_is_a_module_that_exists(name: str) -> None:
    command = OURS[name]["command"]

    assert command[:2] == ["python", "-m"]
    assert importlib.util.find_spec(command[2]) is not None


def test_each_queue_of_tasks_has_a_worker_of_its_own() -> None:
    commands = [OURS[name]["command"] for name in ("tasks", "orders")]

    assert [command[command.index("-Q") + 1] for command in commands] == [*TaskQueue]


@pytest.mark.parametrize("name", OURS)
def test_every_variable_is_a_setting_of_a_process(name: str) -> None:
    known = {
        f"TANDEM_{field.upper()}"
        for settings in (SchedulerSettings, ServiceSettings, WorkerSettings)
        for field in settings.model_fields
    }

    assert set(OURS[name]["environment"]) - known == {"REDIS_PASSWORD_FILE"}


@pytest.mark.parametrize("name", [*OURS, *WATCHING])
def test_containers_run_without_rights(name: str) -> None:
    assert COMPOSE["services"][name]["read_only"] is True
    assert COMPOSE["services"][name]["cap_drop"] == ["ALL"]


@pytest.mark.parametrize("name", WATCHING)
def test_what_the_watchers_read_is_in_the_tree(name: str) -> None:
    mounted = [volume.split(":")[0] for volume in WATCHING[name]["volumes"]]

    folders = [path for path in mounted if path.startswith("./")]
    assert folders
    assert [path for path in folders if not (DOCKER / path).is_dir()] == []


def test_grafana_has_no_password_but_the_secret_files() -> None:
    settings = COMPOSE["services"]["grafana"]["environment"]

    password = {name: value for name, value in settings.items() if "PASSWORD" in name}
    assert password == {"GF_SECURITY_ADMIN_PASSWORD__FILE": "/run/secrets/grafana_password"}


def test_only_gateway_and_grafana_are_published_and_only_on_this_machine() -> None:
    published = {name: s["ports"] for name, s in COMPOSE["services"].items() if "ports" in s}

    assert published == {
        "gateway": ["127.0.0.1:${PORT:-8000}:8000"],
        "grafana": ["127.0.0.1:${GRAFANA_PORT:-3000}:3000"],
    }


def test_redis_asks_for_the_password_from_the_secret_file_and_never_evicts() -> None:
    command = COMPOSE["services"]["redis"]["command"][-1]

    assert '--requirepass "$$(cat /run/secrets/redis_password)"' in command
    assert "--maxmemory-policy noeviction" in command


def test_the_image_takes_its_base_as_an_argument_and_does_not_run_as_root() -> None:
    lines = (DOCKER / "Dockerfile").read_text().splitlines()

    assert "ARG BASE_IMAGE=python:3.11-slim" in lines
    assert [line for line in lines if line.startswith("USER")] == ["USER tandem"]


def test_grafana_finds_its_data_source_and_its_dashboard() -> None:
    provisioning = DOCKER / "grafana/provisioning"
    source = yaml.safe_load((provisioning / "datasources/prometheus.yaml").read_text())
    provider = yaml.safe_load((provisioning / "dashboards/tandem.yaml").read_text())

    (prometheus,) = source["datasources"]
    assert prometheus["url"] == "http://prometheus:9090"
    assert {panel["datasource"]["uid"] for panel in DASHBOARD["panels"]} == {prometheus["uid"]}
    mounts = COMPOSE["services"]["grafana"]["volumes"]
    assert f"./grafana/dashboards:{provider['providers'][0]['options']['path']}:ro" in mounts


def test_panels_have_ids_and_titles_of_their_own_and_do_not_overlap() -> None:
    panels = DASHBOARD["panels"]

    cells = [cell for panel in panels for cell in _cells(panel["gridPos"])]
    assert len(cells) == len(set(cells))
    for name in ("id", "title"):
        assert len({panel[name] for panel in panels}) == len(panels)


def _cells(place: dict[str, int]) -> list[tuple[int, int]]:
    columns = range(place["x"], place["x"] + place["w"])
    assert columns[-1] < 24  # as wide as Grafana's grid
    return [(x, y) for x in columns for y in range(place["y"], place["y"] + place["h"])]


def test_every_alert_says_what_is_wrong_and_what_to_do() -> None:
    groups = yaml.safe_load((DOCKER / "prometheus/alerts.yml").read_text())["groups"]

    for rule in groups[0]["rules"]:
        assert set(rule["annotations"]) == {"summary", "action"}, rule["alert"]
        assert rule["labels"]["severity"] in ("warning", "critical")
