"""Example cluster files are valid for Ray and KubeRay, as far as can be checked offline."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ray
import yaml

FOLDER = Path(__file__).parents[3] / "experiments" / "clusters"


def test_ray_up_accepts_its_file():
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = prepare_config(yaml.safe_load((FOLDER / "ray-up.yaml").read_text()))
    validate_config(config)  # against Ray's own schema, prepared as `ray up` does
    assert config["max_workers"] == len(config["provider"]["worker_ips"])


def containers(template: dict[str, Any]) -> list[dict[str, Any]]:
    return template["spec"]["containers"]


def test_kuberay_file_is_a_ray_cluster_of_this_version_whose_requests_are_its_limits():
    cluster, claim = yaml.safe_load_all((FOLDER / "kuberay.yaml").read_text())
    assert (cluster["apiVersion"], cluster["kind"]) == ("ray.io/v1", "RayCluster")
    spec = cluster["spec"]
    # The example's Ray release must be of the minor version tested here.
    assert spec["rayVersion"].rsplit(".", 1)[0] == ray.__version__.rsplit(".", 1)[0]
    head, *workers = [spec["headGroupSpec"], *spec["workerGroupSpecs"]]
    for group in (head, *workers):
        assert all(isinstance(value, str) for value in group["rayStartParams"].values())
        (container,) = containers(group["template"])
        assert container["resources"]["requests"] == container["resources"]["limits"]
        assert {"name": "OMP_NUM_THREADS", "value": "1"} in container["env"]
    for group in workers:
        assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
    (volume,) = head["template"]["spec"]["volumes"]
    assert volume["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]
    assert containers(head["template"])[0]["volumeMounts"][0]["name"] == volume["name"]
