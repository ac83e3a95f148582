"""Every manifest says only what the API server knows: unknown fields are errors here."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from jsonschema import Draft202012Validator, ValidationError

from tests.unit.kubernetes.rendered import INSTALLABLE, Manifest, pod_templates, render

SCHEMAS = Path(__file__).parent / "schemas"
OWN = {
    "LeaderWorkerSet": yaml.safe_load((SCHEMAS / "leaderworkerset.yaml").read_text()),
    "ScaledObject": yaml.safe_load((SCHEMAS / "scaledobject.yaml").read_text()),
}
OLDEST = "1.32"  # Kubernetes that has all of our fields switched on by itself
NEWEST = "1.37"


def _check(manifest: Manifest) -> None:
    """Raise if a manifest of a built-in kind says what the API servers do not know."""
    _check_text(json.dumps(manifest))


@cache  # most manifests are the same in every folder
def _check_text(manifest: str) -> None:
    for version in (OLDEST, NEWEST):
        kubernetes_validate.validate(json.loads(manifest), version, strict=True)


def _autoscaler(behavior: Manifest) -> Manifest:
    target = {"apiVersion": "apps/v1", "kind": "Deployment", "name": "any"}
    return {
        "apiVersion": "autoscaling/v2",
        "kind": "HorizontalPodAutoscaler",
        "metadata": {"name": "any"},
        "spec": {"scaleTargetRef": target, "maxReplicas": 2, "behavior": behavior},
    }


@pytest.mark.parametrize("name", INSTALLABLE)
def test_every_manifest_is_valid(name: str) -> None:
    for manifest in render(name):
        if manifest["kind"] in OWN:
            Draft202012Validator(OWN[manifest["kind"]]).validate(manifest)
        else:
            _check(manifest)


@pytest.mark.parametrize("pod", ["worker", "follower"])
def test_every_pod_of_a_group_is_valid(pod: str) -> None:
    _check({"apiVersion": "v1", "kind": "Pod"} | pod_templates(render("group"))[pod].template)


def test_the_scaling_behaviour_is_one_of_an_autoscaler() -> None:
    (scaled,) = [doc for doc in render("example") if doc["kind"] == "ScaledObject"]

    _check(_autoscaler(scaled["spec"]["advanced"]["horizontalPodAutoscalerConfig"]["behavior"]))


@pytest.mark.parametrize("name", INSTALLABLE)
def test_no_two_manifests_have_one_name(name: str) -> None:
    names = [(doc["kind"], doc["metadata"]["name"]) for doc in render(name)]

    assert len(names) == len(set(names))


@pytest.mark.parametrize(
    ("kind", "path"),
    [
        ("ScaledObject", ("spec", "scaleTargetRef", "replicas")),
        ("ScaledObject", ("spec", "pollingIntervall")),
        ("LeaderWorkerSet", ("spec", "leaderWorkerTemplate", "restart")),
    ],
)
def test_a_misspelt_field_of_a_foreign_kind_is_found(kind: str, path: tuple[str, ...]) -> None:
    rendered = render("example" if kind == "ScaledObject" else "group")
    (manifest,) = [doc for doc in rendered if doc["kind"] == kind]

    wrong = _with(manifest, path, 1)

    with pytest.raises(ValidationError, match=path[-1]):
        Draft202012Validator(OWN[kind]).validate(wrong)


def _with(manifest: Manifest, path: tuple[str, ...], value: Any) -> Manifest:
    first, *rest = path
    inner = _with(manifest[first], tuple(rest), value) if rest else value
    return manifest | {first: inner}
