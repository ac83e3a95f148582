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
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
OURS = {name: s for name, s in SERVICES.items() if s["image"] == "tandem:latest"}
LASTING = [name for name in SERVICES if name != "prepare"]
WORKERS = ["worker", "worker-gpu"]
WATCHING = ["prometheus", "grafana"]
UNSHARED_CPUS = {*WORKERS}  # an engine has the cores that it counts
SECRETS = {"redis_password", "postgres_password", "s3_secret_key", "key_pepper"}


def test_the_set_holds_all_parts_of_a_cluster() -> None:
    processes = {"gateway", *WORKERS, "scheduler", "tasks", "orders", "prepare"}

    assert set(OURS) == processes
    assert set(SERVICES) == {*processes, "proxy", "postgres", "redis", "s3", *WATCHING}


def test_plain_up_starts_two_gateways_and_one_worker_and_nothing_to_watch_them() -> None:
    variables = dict(line.split("=") for line in (DOCKER / ".env").read_text().splitlines())

    assert variables["COMPOSE_PROFILES"] == "cpu"
    assert SERVICES["gateway"]["deploy"]["replicas"] == 2
    profiles = {name: s["profiles"] for name, s in SERVICES.items() if "profiles" in s}
    watched = {key: ["watch"] for key in WATCHING}
    assert profiles == {"worker": ["cpu"], "worker-gpu": ["gpu"], **watched}


@pytest.mark.parametrize("name", OURS)
def test_every_command_is_a_module_that_exists(name: str) -> None:
    command = OURS[name]["command"]

    if name == "prepare":
        assert command == ["tandem", "prepare"]
    else:
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

    others = {"AWS_ENDPOINT_URL_S3", "AWS_DEFAULT_REGION", "XDG_CACHE_HOME"}
    assert set(OURS[name]["environment"]) - known == others


@pytest.mark.parametrize("name", SERVICES)
def test_containers_run_without_rights_and_never_as_root(name: str) -> None:
    service = SERVICES[name]

    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["user"].split(":")[0] not in ("", "0", "root")


@pytest.mark.parametrize("name", SERVICES)
def test_containers_can_take_only_so_much(name: str) -> None:
    service = SERVICES[name]

    assert {"mem_limit", "pids_limit"} <= set(service)
    assert ("cpus" in service) == (name not in UNSHARED_CPUS)
    assert service["logging"]["options"].keys() == {"max-size", "max-file"}


@pytest.mark.parametrize("name", LASTING)
def test_every_part_that_lasts_is_asked_whether_it_is_well(name: str) -> None:
    assert SERVICES[name]["healthcheck"]["test"][0] in ("CMD", "CMD-SHELL")
    assert SERVICES[name]["restart"] == "unless-stopped"


@pytest.mark.parametrize("name", [name for name in OURS if name != "prepare"])
def test_processes_start_when_schema_bucket_and_channel_are_there(name: str) -> None:
    assert OURS[name]["depends_on"] == {
        "prepare": {"condition": "service_completed_successfully"},
        "redis": {"condition": "service_healthy"},
    }


def test_secrets_are_files_and_no_value_stands_in_an_environment() -> None:
    assert all(secret.keys() == {"file"} for secret in COMPOSE["secrets"].values())
    for name, service in SERVICES.items():
        for variable in service.get("environment", {}):
            if "PASSWORD" in variable or "SECRET" in variable:
                assert variable.endswith("_FILE"), (name, variable)
    for name in OURS:
        assert set(OURS[name]["secrets"]) == SECRETS


@pytest.mark.parametrize("name", WORKERS)
def test_a_worker_has_longer_to_stop_than_it_takes_to_drain(name: str) -> None:
    drain_s = WorkerSettings.model_fields["drain_timeout_s"].default

    assert float(SERVICES[name]["stop_grace_period"].removesuffix("s")) >= drain_s + 10


@pytest.mark.parametrize("name", WATCHING)
def test_what_the_watchers_read_is_in_the_tree(name: str) -> None:
    mounted = [volume.split(":")[0] for volume in SERVICES[name]["volumes"]]

    folders = [path for path in mounted if path.startswith("./")]
    assert folders
    assert [path for path in folders if not (DOCKER / path).is_dir()] == []


def test_grafana_has_no_password_but_the_secret_files() -> None:
    settings = SERVICES["grafana"]["environment"]

    password = {name: value for name, value in settings.items() if "PASSWORD" in name}
    assert password == {"GF_SECURITY_ADMIN_PASSWORD__FILE": "/run/secrets/grafana_password"}


def test_only_proxy_and_grafana_are_published_and_only_on_this_machine() -> None:
    published = {name: s["ports"] for name, s in SERVICES.items() if "ports" in s}

    assert published == {
        "proxy": ["127.0.0.1:${PORT:-8000}:8000"],
        "grafana": ["127.0.0.1:${GRAFANA_PORT:-3000}:3000"],
    }


def test_redis_asks_for_the_password_from_the_secret_file_and_never_evicts() -> None:
    command = SERVICES["redis"]["command"][-1]

    assert 'echo "requirepass $$(cat /run/secrets/redis_password)" > /tmp/redis.conf' in command
    assert "--maxmemory-policy noeviction" in command


def test_of_the_s3_server_only_what_asks_for_keys_is_to_be_reached() -> None:
    command = SERVICES["s3"]["entrypoint"][-1]

    assert "-ip.bind=127.0.0.1 -s3 -s3.ip.bind=0.0.0.0" in command


def test_the_proxy_sends_no_request_twice_and_waits_longer_than_a_gateway_does() -> None:
    configuration = (DOCKER / "proxy/haproxy.cfg").read_text()

    assert "retry-on conn-failure\n" in configuration
    assert ServiceSettings.model_fields["stall_limit_s"].default < 15 * 60
    assert "timeout server 15m" in configuration


def test_stand_ins_change_only_where_images_come_from() -> None:
    stand_ins = yaml.safe_load((DOCKER / "local/compose.yaml").read_text())["services"]

    assert set(stand_ins) == set(SERVICES) - set(OURS) - {"grafana"}
    for name, service in stand_ins.items():
        assert set(service) <= {"image", "build", "healthcheck"}, name


def test_the_image_takes_its_base_as_an_argument_and_does_not_run_as_root() -> None:
    lines = (DOCKER / "Dockerfile").read_text().splitlines()

    assert "ARG BASE_IMAGE=python:3.11-slim" in lines
    assert [line for line in lines if line.startswith("USER")] == ["USER tandem"]


def test_the_image_holds_what_a_backup_of_postgresql_runs() -> None:
    assert " postgresql-client " in (DOCKER / "Dockerfile").read_text()


def test_grafana_finds_its_data_source_and_its_dashboard() -> None:
    provisioning = DOCKER / "grafana/provisioning"
    source = yaml.safe_load((provisioning / "datasources/prometheus.yaml").read_text())
    provider = yaml.safe_load((provisioning / "dashboards/tandem.yaml").read_text())

    (prometheus,) = source["datasources"]
    assert prometheus["url"] == "http://prometheus:9090"
    assert {panel["datasource"]["uid"] for panel in DASHBOARD["panels"]} == {prometheus["uid"]}
    mounts = SERVICES["grafana"]["volumes"]
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
