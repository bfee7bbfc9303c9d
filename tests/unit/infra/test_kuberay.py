"""The Kubernetes manifests against KubeRay's own field definitions, and against this checkout."""

import json
import tomllib
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from serve.settings import ServeSettings
from tests.unit.infra.options import option_names

ROOT = Path(__file__).parents[3]
KUBERAY = ROOT / "infra" / "kuberay"
SCHEMAS = json.loads((Path(__file__).parent / "kuberay_schemas.json").read_text())
MANIFESTS = sorted(KUBERAY.glob("*.yaml"))


def read(path: Path) -> dict[str, Any]:
    documents = list(yaml.safe_load_all(path.read_text()))
    assert len(documents) == 1
    return dict(documents[0])


def problems(manifest: dict[str, Any]) -> list[str]:
    schema = {**SCHEMAS["kinds"][manifest["kind"]], "$defs": SCHEMAS["$defs"]}
    found = jsonschema.Draft202012Validator(schema).iter_errors(manifest)
    return [f"{'/'.join(map(str, error.absolute_path))}: {error.message[:200]}" for error in found]


def clusters(manifest: dict[str, Any]) -> list[dict[str, Any]]:
    spec = manifest["spec"]
    found = [spec] if manifest["kind"] == "RayCluster" else []
    return found + [spec[key] for key in ("rayClusterSpec", "rayClusterConfig") if key in spec]


def containers(manifest: dict[str, Any]) -> list[dict[str, Any]]:
    groups = [
        group for cluster in clusters(manifest) for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"])
    ]
    return [container for group in groups for container in group["template"]["spec"]["containers"]]


def test_there_is_a_cluster_a_job_and_a_service() -> None:
    assert {read(path)["kind"] for path in MANIFESTS} == {"RayCluster", "RayJob", "RayService"}


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.name)
def test_a_manifest_has_kuberays_fields_and_no_others(path: Path) -> None:
    assert problems(read(path)) == []


@pytest.mark.parametrize(
    ("where", "value"),
    [
        (["spec", "rayVersoin"], "2.60.0"),
        (["spec", "authOptions", "mode"], "none"),
        (["spec", "workerGroupSpecs", 0, "maxReplicas"], "many"),
        (["spec", "headGroupSpec", "template", "spec", "containers", 0, "volumeMounts", 0, "mountpath"], "/x"),
    ],
)
def test_a_wrong_manifest_is_found_out(where: list[Any], value: str) -> None:
    manifest = read(KUBERAY / "raycluster.yaml")
    part: Any = manifest
    for key in where[:-1]:
        part = part[key]
    part[where[-1]] = value
    assert problems(manifest) != []


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.name)
def test_every_cluster_asks_for_its_token_and_holds_no_secret(path: Path) -> None:
    manifest = read(path)
    for cluster in clusters(manifest):
        assert cluster["authOptions"] == {"mode": "token", "secretName": "omnifarm-ray-token"}
    for container in containers(manifest):
        names = {entry["name"] for entry in container.get("env", [])}
        assert not {name for name in names if "SECRET" in name or "KEY" in name or "TOKEN" in name}


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.name)
def test_versions_are_those_of_this_checkout(path: Path) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    manifest = read(path)
    for cluster in clusters(manifest):
        assert cluster["rayVersion"] == version("ray")
    for container in containers(manifest):
        assert container["image"] == f"omnifarm:{project['version']}-cuda"


def test_every_mount_has_its_volume() -> None:
    for path in MANIFESTS:
        for cluster in clusters(read(path)):
            for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
                pod = group["template"]["spec"]
                mounted = {mount["name"] for each in pod["containers"] for mount in each.get("volumeMounts", [])}
                assert mounted == {volume["name"] for volume in pod.get("volumes", [])}


def test_the_job_asks_for_a_program_and_options_that_exist() -> None:
    manifest = read(KUBERAY / "rayjob.yaml")
    words = manifest["spec"]["entrypoint"].split()
    assert words[:2] == ["python", "/app/jobs/train_concepts.py"]
    assert {word for word in words if word.startswith("--")} <= option_names("jobs/train_concepts.py")
    assert manifest["spec"]["clusterSelector"] == {
        "ray.io/cluster": read(KUBERAY / "raycluster.yaml")["metadata"]["name"]
    }


def test_the_job_waits_for_gpus_because_its_cluster_begins_with_no_node_for_workers() -> None:
    cluster = read(KUBERAY / "raycluster.yaml")["spec"]
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    assert {group["replicas"] for group in cluster["workerGroupSpecs"]} == {0}
    assert cluster["enableInTreeAutoscaling"]
    assert "--device gpu" in read(KUBERAY / "rayjob.yaml")["spec"]["entrypoint"]


def test_the_service_names_settings_that_the_server_reads() -> None:
    config = yaml.safe_load(read(KUBERAY / "rayservice.yaml")["spec"]["serveConfigV2"])
    (application,) = config["applications"]
    local = yaml.safe_load((ROOT / "serve" / "serve.yaml").read_text())["applications"][0]
    assert application["import_path"] == local["import_path"]
    settings = ServeSettings.read({}, application["args"])
    expected = [each["name"] for each in local["deployments"] if settings.train or each["name"] != "trainer"]
    assert [each["name"] for each in application["deployments"]] == expected
    assert settings.dtype == "bfloat16"
