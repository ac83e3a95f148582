"""The manifests run the processes of the compose file, in pods without rights, and fit together."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from scheduler.settings import SchedulerSettings
from scheduler.tasks.celery_queue import SOFT_SHUTDOWN_S
from service.settings import ServiceSettings
from tests.unit.kubernetes.rendered import (
    FOLDER,
    INSTALLABLE,
    Manifest,
    PodTemplate,
    kustomize,
    of_kind,
    pod_templates,
    render,
)
from workers.agent.agent import REAPING_S
from workers.settings import FollowerSettings, WorkerSettings

if TYPE_CHECKING:
    from collections.abc import Iterator

COMPOSE: dict[str, Any] = yaml.safe_load((FOLDER.parent / "compose.yaml").read_text())["services"]
HANDBOOK = (FOLDER.parents[1] / "docs/kubernetes.md").read_text()
KINDS_OF_SELECTORS = ("Deployment", "Service", "PodDisruptionBudget", "NetworkPolicy")
PODS = [(name, pod) for name in INSTALLABLE for pod in pod_templates(render(name))]
KNOWN = {
    f"TANDEM_{field.upper()}"
    for settings in (SchedulerSettings, ServiceSettings, WorkerSettings, FollowerSettings)
    for field in settings.model_fields
}
MANAGED_S3 = "AWS_ENDPOINT_URL_S3"  # compose's S3 server stands beside it


def _pod(name: str, pod: str) -> PodTemplate:
    return pod_templates(render(name))[pod]


def _compose_name(name: str, pod: str) -> str:
    return "worker-gpu" if pod == "worker" and name in ("gpu", "example") else pod


def _environment(name: str, pod: PodTemplate) -> dict[str, str]:
    """What a container finds in its environment; values that the node fills in are empty."""
    (reference,) = pod.container["envFrom"]
    settings = of_kind(name, "ConfigMap")[reference["configMapRef"]["name"]]["data"]
    own = {entry["name"]: entry.get("value", "") for entry in pod.container.get("env", [])}
    return settings | own


def _seconds(duration: str) -> float:
    return float(duration.removesuffix("s"))


# ---- the same processes ------------------------------------------------------------------


def test_all_processes_of_the_compose_file_are_there() -> None:
    ours = {name for name, service in COMPOSE.items() if service["image"] == "tandem:latest"}

    assert set(pod_templates(render("cpu"))) == ours - {"worker-gpu"}
    assert set(pod_templates(render("group"))) == ours - {"worker-gpu"} | {"follower"}


@pytest.mark.parametrize(("name", "pod"), PODS)
def test_every_process_is_started_as_the_compose_file_does(name: str, pod: str) -> None:
    container = _pod(name, pod).container

    assert "command" not in container  # the image's entry point reads the secrets
    if pod == "follower":
        assert container["args"] == ["python", "-m", "workers.remote_follower"]
    else:
        assert container["args"] == COMPOSE[_compose_name(name, pod)]["command"]


@pytest.mark.parametrize(("name", "pod"), PODS)
def test_every_variable_is_a_setting(name: str, pod: str) -> None:
    variables = set(_environment(name, _pod(name, pod)))

    assert variables - KNOWN == {"AWS_DEFAULT_REGION", "XDG_CACHE_HOME"}


def test_settings_are_those_of_the_compose_file() -> None:
    (settings,) = of_kind("cpu", "ConfigMap").values()
    beside = {
        name: re.sub(r"^\$\{\w+:-(.*)\}$", r"\1", value)
        for name, value in COMPOSE["scheduler"]["environment"].items()
    }

    assert beside.pop(MANAGED_S3)
    assert settings["data"] == beside


@pytest.mark.parametrize("pod", ["gateway", "worker-gpu"])
def test_what_one_process_is_set_to_is_what_the_compose_file_says(pod: str) -> None:
    shared = COMPOSE["scheduler"]["environment"]
    beside = {key: value for key, value in COMPOSE[pod]["environment"].items() if key not in shared}
    own = _environment("gpu", _pod("gpu", pod.removesuffix("-gpu")))

    assert beside.items() <= own.items()


@pytest.mark.parametrize("name", ["cpu", "gpu", "group"])
def test_all_run_the_image_of_the_compose_file(name: str) -> None:
    images = {pod.container["image"] for pod in pod_templates(render(name)).values()}

    assert images == {COMPOSE["worker"]["image"]}


@pytest.mark.parametrize("name", ["gpu", "group"])
def test_an_operator_puts_images_and_settings_of_their_own_everywhere(
    name: str, tmp_path: Path
) -> None:
    kustomization = {
        "resources": [os.path.relpath(FOLDER / name, tmp_path.resolve())],
        "namespace": "tandem",
        "images": [{"name": "tandem", "newName": "registry.example.com/t", "newTag": "1"}],
        "configMapGenerator": [
            {"name": "settings", "behavior": "merge", "literals": ["AWS_DEFAULT_REGION=eu"]}
        ],
    }
    (tmp_path / "kustomization.yaml").write_text(yaml.safe_dump(kustomization))

    manifests = kustomize(tmp_path)

    (settings,) = [doc for doc in manifests if doc["kind"] == "ConfigMap"]
    assert settings["data"]["AWS_DEFAULT_REGION"] == "eu"
    for pod in pod_templates(manifests).values():
        assert pod.container["image"] == "registry.example.com/t:1"
        (reference,) = pod.container["envFrom"]
        assert reference["configMapRef"]["name"] == settings["metadata"]["name"]


@pytest.mark.parametrize("pod", ["gateway", "scheduler", "tasks", "orders", "prepare"])
def test_limits_are_those_of_the_compose_file(pod: str) -> None:
    limits = _pod("cpu", pod).container["resources"]["limits"]
    beside = COMPOSE[pod]
    gib = re.sub(r"^\$\{\w+:-(.*)\}$", r"\1", beside["mem_limit"]).replace("g", "Gi")

    assert limits["memory"] == gib
    assert _cores(limits["cpu"]) == beside["cpus"]


def _cores(quantity: str) -> float:
    return float(quantity[:-1]) / 1000 if quantity.endswith("m") else float(quantity)


def test_an_engine_has_a_thread_for_each_core_it_asked_for_and_no_quota() -> None:
    for name in INSTALLABLE:
        container = _pod(name, "worker").container
        (threads,) = [e for e in container["env"] if e["name"] == "TANDEM_NUM_THREADS"]
        assert threads["valueFrom"]["resourceFieldRef"]["resource"] == "requests.cpu"
        assert "cpu" not in container["resources"]["limits"]
        assert "memory" in container["resources"]["limits"]


def test_a_gpu_worker_has_one_gpu_and_uses_it() -> None:
    worker = _pod("gpu", "worker")

    assert worker.container["resources"]["limits"]["nvidia.com/gpu"] == 1
    assert _environment("gpu", worker)["TANDEM_DEVICE"] == "cuda:0"


# ---- probes and ends ---------------------------------------------------------------------


@pytest.mark.parametrize("pod", ["worker", "scheduler", "tasks", "orders"])
def test_processes_without_a_port_are_ready_when_the_compose_file_calls_them_well(pod: str) -> None:
    probe = _pod("cpu", pod).container["readinessProbe"]
    beside = COMPOSE[pod]["healthcheck"]
    kind, *command = beside["test"]

    shell = ["sh", "-c"] if kind == "CMD-SHELL" else []
    assert probe["exec"]["command"] == shell + [part.replace("$$", "$") for part in command]
    assert probe["periodSeconds"] == _seconds(beside["interval"])
    assert probe["timeoutSeconds"] == _seconds(beside["timeout"])


@pytest.mark.parametrize(("name", "pod"), PODS)
def test_no_outage_of_redis_or_sql_ends_a_process(name: str, pod: str) -> None:
    probes = {kind for kind in _pod(name, pod).container if kind.endswith("Probe")}

    without_a_port = {"prepare": set(), "follower": set()}.get(pod, {"readinessProbe"})
    everything = {"startupProbe", "readinessProbe", "livenessProbe"}
    assert probes == (everything if pod == "gateway" else without_a_port)


def test_a_gateway_is_asked_at_its_port_whether_it_lives() -> None:
    gateway = _pod("cpu", "gateway")
    (port,) = gateway.container["ports"]

    assert str(port["containerPort"]) == _environment("cpu", gateway)["TANDEM_PORT"]
    assert "/healthz" in COMPOSE["gateway"]["healthcheck"]["test"][-1]
    for kind in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert gateway.container[kind]["httpGet"] == {"path": "/healthz", "port": port["name"]}


@pytest.mark.parametrize("name", INSTALLABLE)
def test_a_worker_has_longer_to_stop_than_it_takes_to_drain(name: str) -> None:
    drain_s = WorkerSettings.model_fields["drain_timeout_s"].default
    pods = pod_templates(render(name))

    for pod in {"worker", "follower"} & set(pods):
        grace_s = pods[pod].spec["terminationGracePeriodSeconds"]
        assert grace_s >= 2 * drain_s + REAPING_S + 10  # streams, then checkpoints' uploads


def test_a_gateway_has_longer_to_stop_than_its_answers_and_its_last_connections() -> None:
    gateway = _pod("cpu", "gateway")
    late_s = gateway.container["lifecycle"]["preStop"]["sleep"]["seconds"]
    answers_s = ServiceSettings.model_fields["shutdown_s"].default

    assert late_s > 0
    assert gateway.spec["terminationGracePeriodSeconds"] >= late_s + answers_s + 5


@pytest.mark.parametrize("pod", ["tasks", "orders"])
def test_celery_has_longer_to_stop_than_its_soft_shutdown(pod: str) -> None:
    assert _pod("cpu", pod).spec["terminationGracePeriodSeconds"] >= SOFT_SHUTDOWN_S + 10


# ---- no rights ---------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "pod"), PODS)
def test_pods_run_without_rights_and_never_as_root(name: str, pod: str) -> None:
    spec, container = _pod(name, pod).spec, _pod(name, pod).container

    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["securityContext"]["runAsUser"] == _image_user()
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert spec["automountServiceAccountToken"] is False
    assert container["securityContext"] == {
        "readOnlyRootFilesystem": True,
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
    }


def _image_user() -> int:
    (number,) = re.findall(r"--uid (\d+) tandem", (FOLDER.parent / "Dockerfile").read_text())
    return int(number)


@pytest.mark.parametrize(("name", "pod"), PODS)
def test_no_service_of_the_cluster_sets_a_variable_of_ours(name: str, pod: str) -> None:
    assert _pod(name, pod).spec["enableServiceLinks"] is False  # TANDEM_PORT=tcp://10.0.0.1:80


@pytest.mark.parametrize(("name", "pod"), PODS)
def test_secrets_are_files_of_one_secret_and_followers_see_none(name: str, pod: str) -> None:
    template = _pod(name, pod)
    volumes = {volume["name"]: volume for volume in template.spec["volumes"]}
    mounted = {mount["mountPath"]: mount["name"] for mount in template.container["volumeMounts"]}

    sources = [entry.get("valueFrom", {}) for entry in template.container.get("env", [])]
    assert not any("secretKeyRef" in source for source in sources)
    if pod == "follower":
        assert [volume for volume in volumes.values() if "secret" in volume] == []
    else:
        assert volumes[mounted["/run/secrets"]]["secret"]["secretName"] == "tandem"


def test_the_handbook_names_the_secret_files_that_are_read() -> None:
    entrypoint = (FOLDER.parent / "entrypoint.sh").read_text()
    read = set(re.findall(r"secret (\w+)\)", entrypoint)) - {"redis_password", "postgres_password"}
    (settings,) = of_kind("cpu", "ConfigMap").values()
    pepper = Path(settings["data"]["TANDEM_KEY_PEPPER_FILE"])

    assert pepper.parent == Path("/run/secrets")
    assert set(re.findall(r"^\| `(\w+)` \|", HANDBOOK, re.M)) == read | {pepper.name}


# ---- the network -------------------------------------------------------------------------


@pytest.mark.parametrize("name", INSTALLABLE)
def test_nobody_is_let_in_but_callers_of_the_api(name: str) -> None:
    policies = [policy["spec"] for policy in of_kind(name, "NetworkPolicy").values()]

    assert {"podSelector": {}, "policyTypes": ["Ingress"]} in policies
    open_to_all = [p for p in policies for rule in p.get("ingress", []) if "from" not in rule]
    (api,) = open_to_all
    assert api["podSelector"]["matchLabels"] == {"app.kubernetes.io/component": "gateway"}
    assert api["ingress"] == [{"ports": [{"port": "http"}]}]


@pytest.mark.parametrize("name", INSTALLABLE)
def test_stores_in_the_namespace_hear_only_our_pods(name: str) -> None:
    stores = of_kind(name, "NetworkPolicy")["stores"]["spec"]
    ((peer,),) = [rule["from"] for rule in stores["ingress"]]

    ours = peer["podSelector"]["matchLabels"].items()
    assert all(ours <= pod.labels.items() for pod in pod_templates(render(name)).values())
    (labelled,) = stores["podSelector"]["matchExpressions"]
    assert labelled == {"key": "tandem/store", "operator": "Exists"}


# ---- what belongs together ---------------------------------------------------------------


@pytest.mark.parametrize("name", INSTALLABLE)
def test_every_selector_finds_pods(name: str) -> None:
    pods = pod_templates(render(name)).values()

    for manifest in render(name):
        for selector in _selectors(manifest):
            found = [pod for pod in pods if selector.items() <= pod.labels.items()]
            assert found, (manifest["kind"], manifest["metadata"]["name"], selector)
            if manifest["kind"] == "Deployment":
                assert [pod.owner for pod in found] == [manifest]


def _selectors(manifest: Manifest) -> Iterator[dict[str, str]]:
    """Labels that a manifest asks pods for."""
    spec = manifest.get("spec", {})
    if manifest["kind"] == "Service":
        yield spec["selector"]
    elif manifest["kind"] in KINDS_OF_SELECTORS:
        selector = spec.get("selector") or spec["podSelector"]
        if "matchExpressions" not in selector:
            yield selector.get("matchLabels", {})
    for pod in pod_templates((manifest,)).values():
        for spread in pod.spec.get("topologySpreadConstraints", []):
            yield spread["labelSelector"]["matchLabels"]


@pytest.mark.parametrize("pod", ["gateway", "worker"])
def test_what_runs_more_than_once_is_spread_and_leaves_one_at_a_time(pod: str) -> None:
    budget = of_kind("cpu", "PodDisruptionBudget")[pod]["spec"]
    (spread,) = _pod("cpu", pod).spec["topologySpreadConstraints"]

    assert budget["maxUnavailable"] == 1
    assert spread["topologyKey"] == "kubernetes.io/hostname"


@pytest.mark.parametrize(("name", "pod"), PODS)
def test_every_mount_has_a_volume_and_every_claim_is_known(name: str, pod: str) -> None:
    template = _pod(name, pod)
    volumes = {volume["name"]: volume for volume in template.spec["volumes"]}
    claims = [volume.get("persistentVolumeClaim") for volume in volumes.values()]
    claimed = {claim["claimName"] for claim in claims if claim}

    assert {mount["name"] for mount in template.container["volumeMounts"]} == set(volumes)
    assert claimed - set(of_kind(name, "PersistentVolumeClaim")) <= {"models"}  # the operator's


@pytest.mark.parametrize("name", INSTALLABLE)
def test_everything_lies_in_one_namespace_that_refuses_pods_with_rights(name: str) -> None:
    (namespace,) = of_kind(name, "Namespace").values()

    assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    inside = {doc["metadata"]["namespace"] for doc in render(name) if doc["kind"] != "Namespace"}
    assert inside == {namespace["metadata"]["name"]}


@pytest.mark.parametrize("name", INSTALLABLE)
def test_all_can_be_applied_part_by_part(name: str) -> None:
    parts = {doc["metadata"]["labels"]["app.kubernetes.io/component"] for doc in render(name)}

    assert parts == {"settings", "prepare", "gateway", "scheduler", "tasks", "orders", "worker"}


# ---- groups ------------------------------------------------------------------------------


def test_the_ranks_of_a_group_learn_size_address_and_rank_from_the_controller() -> None:
    for pod in ("worker", "follower"):
        environment = _environment("group", _pod("group", pod))
        assert environment["TANDEM_TENSOR_PARALLEL"] == "$(LWS_GROUP_SIZE)"
        assert environment["TANDEM_GROUP_ADDRESS"].startswith("$(LWS_LEADER_ADDRESS):")
        assert environment["TANDEM_GROUP_RANK"] == "$(LWS_WORKER_INDEX)"


def test_the_ranks_of_a_group_see_one_data_folder_and_only_each_other() -> None:
    pods = [_pod("group", pod) for pod in ("worker", "follower")]
    (claim,) = of_kind("group", "PersistentVolumeClaim").values()
    policy = of_kind("group", "NetworkPolicy")["group"]["spec"]

    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
    for pod in pods:
        (data,) = [volume for volume in pod.spec["volumes"] if volume["name"] == "data"]
        assert data["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]
        assert policy["podSelector"]["matchLabels"].items() <= pod.labels.items()
    assert policy["ingress"] == [{"from": [{"podSelector": policy["podSelector"]}]}]
