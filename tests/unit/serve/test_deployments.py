"""The numbers that Serve and a replica share: where requests wait, when replicas come, and whether there is room for them."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from starlette.middleware import Middleware

from serve.proxy import middlewares
from serve.settings import ServeSettings

ROOT = Path(__file__).parents[3]
MANIFEST = yaml.safe_load((ROOT / "infra" / "kuberay" / "rayservice.yaml").read_text())["spec"]
CONFIGS = {
    "serve.yaml": yaml.safe_load((ROOT / "serve" / "serve.yaml").read_text()),
    "rayservice.yaml": yaml.safe_load(MANIFEST["serveConfigV2"]),
}


def parts(name: str) -> tuple[ServeSettings, dict[str, dict[str, Any]]]:
    (application,) = CONFIGS[name]["applications"]
    settings = ServeSettings.read({}, application["args"])
    return settings, {one["name"]: one for one in application["deployments"]}


@pytest.mark.parametrize("name", CONFIGS)
def test_requests_wait_in_serves_queue_before_a_replica_has_to_refuse_them(name: str) -> None:
    settings, deployments = parts(name)
    ours = deployments["omnifarm"]
    assert ours["max_ongoing_requests"] <= settings.max_waiting
    assert ours["max_queued_requests"] >= ours["max_ongoing_requests"]
    assert ours["backpressure_config"]["status_code"] == 503


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # Ray's, about pydantic
def test_without_a_configuration_the_numbers_are_the_same() -> None:
    from serve.app import OmniFarm

    written = parts("serve.yaml")[1]["omnifarm"]
    for field in ("max_ongoing_requests", "max_queued_requests"):
        assert getattr(OmniFarm, field) == written[field]


@pytest.mark.parametrize("name", CONFIGS)
def test_replicas_come_with_the_requests_that_are_under_way_and_waiting(name: str) -> None:
    ours = parts(name)[1]["omnifarm"]
    scaling = ours["autoscaling_config"]
    assert 1 <= scaling["min_replicas"] < scaling["max_replicas"]
    # They come before those that are there are full.
    assert scaling["target_ongoing_requests"] <= ours["max_ongoing_requests"] / 2
    assert scaling["upscale_delay_s"] < scaling["downscale_delay_s"]
    assert "num_replicas" not in ours
    assert ours["max_surge_percent"] > 0


def test_there_are_nodes_for_every_replica_an_update_of_all_of_them_and_the_trainer() -> None:
    settings, deployments = parts("rayservice.yaml")
    assert settings.access == "keys"
    # Tenants' jobs lie where no cell looks.
    assert settings.train
    cluster = MANIFEST["rayClusterConfig"]
    assert cluster["enableInTreeAutoscaling"] is True
    (group,) = cluster["workerGroupSpecs"]
    (container,) = group["template"]["spec"]["containers"]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == 1
    assert all(one["ray_actor_options"]["num_gpus"] == 1 for one in deployments.values())
    scaling = deployments["omnifarm"]["autoscaling_config"]
    assert group["minReplicas"] == scaling["min_replicas"] + 1
    assert group["maxReplicas"] >= 2 * scaling["max_replicas"] + 1


def test_every_node_knows_how_the_proxy_is_to_refuse_and_the_guide_says_so() -> None:
    name, value = "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH", f"{middlewares.__module__}:{middlewares.__name__}"
    cluster = MANIFEST["rayClusterConfig"]
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    containers = [container for group in groups for container in group["template"]["spec"]["containers"]]
    assert all({"name": name, "value": value} in container["env"] for container in containers)
    assert f"{name}={value}" in (ROOT / "docs" / "api.md").read_text()
    assert f"{name}={value}" in (ROOT / "serve" / "serve.yaml").read_text()
    assert all(isinstance(one, Middleware) for one in middlewares())
