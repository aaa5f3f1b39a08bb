"""What the files for Ray's cluster launcher and for Kubernetes hold, as far as it can be known without a cloud."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from conftest import REPOSITORY

LAUNCHERS = [REPOSITORY / "cluster.yaml", REPOSITORY / "deploy" / "on-premises.yaml"]
COMMANDS = ("setup_commands", "head_setup_commands", "head_start_ray_commands", "worker_start_ray_commands")
KUBERNETES = REPOSITORY / "deploy" / "kuberay.yaml"
launchers = pytest.mark.parametrize("file", LAUNCHERS, ids=lambda file: file.name)


def load(file: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load(file.read_text(encoding="utf-8"))
    return loaded


def commands(file: Path) -> list[str]:
    return [command for key in COMMANDS for command in load(file).get(key, [])]


@launchers
def test_ray_takes_it(file: Path) -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    validate_config(prepare_config(load(file)))


@launchers
def test_every_command_is_shell(file: Path) -> None:
    for command in commands(file):
        subprocess.run(["bash", "-n", "-c", command], check=True)


@launchers
def test_nothing_is_installed_into_the_systems_python(file: Path) -> None:
    for command in commands(file):
        assert not re.search(r"(?<!/uv )\b(?<!/)(pip|pip3|python3? -m pip) install", command), command


@launchers
@pytest.mark.parametrize("role", ["head", "worker"])
def test_every_node_asks_for_the_token_and_has_the_shared_folder(file: Path, role: str, tmp_path: Path) -> None:
    """The start command runs, with a `ray` that shows what it was given."""
    start = load(file)[f"{role}_start_ray_commands"][-1]
    ray = tmp_path / "medray-src" / ".venv" / "bin" / "ray"
    ray.parent.mkdir(parents=True)
    ray.write_text('#!/bin/sh\necho "$@"; env\n', encoding="utf-8")
    ray.chmod(0o755)
    told = {"HOME": str(tmp_path), "PATH": os.environ["PATH"], "RAY_HEAD_IP": "192.0.2.9"}
    shown = subprocess.run(["bash", "-c", start], env=told, capture_output=True, text=True, check=True).stdout
    line, *environment = shown.splitlines()
    assert {"RAY_AUTH_MODE=token", "RAY_USAGE_STATS_ENABLED=0", "MEDRAY_HOME=/mnt/medray"} <= set(environment)
    if role == "head":
        assert "--dashboard-host=127.0.0.1" in line
        assert "RAY_JOB_STOP_WAIT_TIME_S=30" in environment
    else:
        assert line == "start --address=192.0.2.9:6379"


@launchers
def test_what_travels_holds_the_token_and_no_data(file: Path) -> None:
    config = load(file)
    assert config["file_mounts"]["~/medray-src"] == "."
    assert "~/.ray/auth_token" in config["file_mounts"]
    assert "chmod 600 ~/.ray/auth_token" in config["setup_commands"]
    assert {".venv", ".git", "uv.lock", "/data", "/runs", "*.nii.gz", "*.dcm", "*.csv"} <= set(config["rsync_exclude"])


def test_spot_machines_come_first_and_others_can_stand_in() -> None:
    types = load(LAUNCHERS[0])["available_node_types"]
    spot, instead = types["gpu_spot"], types["gpu_on_demand"]
    assert spot["priority"] > instead["priority"]
    assert spot["node_config"].pop("InstanceMarketOptions") == {"MarketType": "spot"}
    assert spot["node_config"] == instead["node_config"], "the same machine, paid otherwise"
    assert "InstanceMarketOptions" not in types["head"]["node_config"]


def test_mlflow_is_for_the_head_alone() -> None:
    (server,) = [command for command in commands(LAUNCHERS[0]) if "mlflow server" in command]
    assert "--host 127.0.0.1" in server
    (start,) = [command for command in commands(LAUNCHERS[0]) if "ray start --head" in command]
    assert "MLFLOW_TRACKING_URI=http://127.0.0.1:5000" in start


@pytest.fixture(scope="module")
def items() -> dict[str, Any]:
    return {item["kind"]: item for item in load(KUBERNETES)["items"]}


def pods(items: dict[str, Any]) -> list[dict[str, Any]]:
    clusters = [items["RayJob"]["spec"]["rayClusterSpec"], items["RayService"]["spec"]["rayClusterConfig"]]
    groups = [group for cluster in clusters for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"])]
    return [group["template"]["spec"] for group in groups]


@pytest.mark.filterwarnings("ignore:Using extra keyword arguments on `Field`:DeprecationWarning")  # Ray's own
def test_the_service_on_kubernetes_is_what_build_writes(items: dict[str, Any]) -> None:
    from ray.serve.schema import ServeDeploySchema

    from medray.sections.service import ServeSection
    from medray.serving import built
    from medray.serving.lineup import Wish
    from medray.serving.messages import Entry, Part

    given = yaml.safe_load(items["RayService"]["spec"]["serveConfigV2"])
    ServeDeploySchema.model_validate(given)
    (application,) = given["applications"]
    args = application["args"]
    (model,) = args["models"]
    assert model["part"] in get_args(Part)
    name, version = model["model"].split("@")
    entry = Entry(name, version, "", "/nowhere", model["alias"], model["part"], model["share"])
    settings = ServeSection.model_validate(args["settings"])
    assert built.config(Wish(tracking=args["tracking"]), [entry], settings, args["cpus"], args["gpu"]) == given


def test_kubernetes_asks_for_the_version_that_is_installed(items: dict[str, Any]) -> None:
    import ray

    for cluster in (items["RayJob"]["spec"]["rayClusterSpec"], items["RayService"]["spec"]["rayClusterConfig"]):
        assert cluster["rayVersion"] == ray.__version__
        assert cluster["authOptions"] == {"mode": "token"}


def test_every_pod_shares_medrays_home_and_none_is_root(items: dict[str, Any]) -> None:
    claim = items["PersistentVolumeClaim"]
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
    for pod in pods(items):
        assert pod["securityContext"]["runAsNonRoot"] is True
        mounts = {volume["name"]: volume for volume in pod["volumes"]}
        assert mounts["home"]["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]
        for container in pod["containers"]:
            assert {mount["mountPath"] for mount in container["volumeMounts"]} == {"/medray", "/dev/shm"}  # noqa: S108
            assert {mount["name"] for mount in container["volumeMounts"]} <= set(mounts)
            assert container["securityContext"]["allowPrivilegeEscalation"] is False
