"""The files in `deploy/` must match their schemas and the commands: an unknown field, an unmounted path
or a removed option would fail only on a user's cluster."""

from __future__ import annotations

import configparser
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path, PurePosixPath
from typing import Any

import pytest
import ray
import typer
import yaml

from jobs.actions.schedule import Cron, find_time_zone
from jobs.commands.main import app
from jobs.config.loader import read_sweep
from storage.version import __version__

_LABELS = {"app.kubernetes.io/part-of": "neuralign"}
ROOT = Path(__file__).parent.parent
DEPLOY = ROOT / "deploy"

# fields of KubeRay's ray.io/v1 types (docs/reference/api.md of KubeRay 1.7)
_RAY_JOB = {
    *("activeDeadlineSeconds", "backoffLimit", "rayClusterSpec", "submitterPodTemplate", "metadata"),
    *("clusterSelector", "submitterConfig", "entrypoint", "runtimeEnvYAML", "jobId", "submissionMode"),
    *("entrypointResources", "entrypointNumCpus", "entrypointNumGpus", "ttlSecondsAfterFinished"),
    *("shutdownAfterJobFinishes", "suspend", "deletionStrategy", "managedBy"),
    "preRunningDeadlineSeconds",
}
_RAY_CRON_JOB = {"schedule", "jobTemplate", "timeZone", "suspend"}
_RAY_CLUSTER = {
    *("rayVersion", "headGroupSpec", "workerGroupSpecs", "enableInTreeAutoscaling", "suspend"),
    *("autoscalerOptions", "headServiceAnnotations", "gcsFaultToleranceOptions", "managedBy"),
    *("authOptions", "upgradeStrategy", "historyServerOptions", "networkPolicy", "tlsOptions"),
}
_HEAD = {"rayStartParams", "template", "serviceType", "headService", "enableIngress"}
_WORKERS = {
    *("groupName", "replicas", "minReplicas", "maxReplicas", "numOfHosts", "rayStartParams"),
    *("template", "suspend", "scaleStrategy", "idleTimeoutSeconds", "priority", "resources", "labels"),
}


def _documents() -> Iterator[tuple[str, dict[str, Any]]]:
    for path in sorted(DEPLOY.glob("*.yaml")):
        if path.name != "cluster.yaml":
            for document in yaml.safe_load_all(path.read_text()):
                yield path.name, document


def _clusters(document: dict[str, Any]) -> Iterator[dict[str, Any]]:
    spec = document["spec"]
    if document["kind"] == "RayCluster":
        yield spec
        return
    if document["kind"] == "RayCronJob":
        assert {"schedule", "jobTemplate"} <= spec.keys() <= _RAY_CRON_JOB
        Cron(spec["schedule"])
        spec = spec["jobTemplate"]
    assert spec.keys() <= _RAY_JOB
    yield spec["rayClusterSpec"]


def _pods() -> Iterator[tuple[str, dict[str, Any]]]:
    for name, document in _documents():
        if document["apiVersion"] == "ray.io/v1":
            for cluster in _clusters(document):
                yield name, cluster["headGroupSpec"]["template"]["spec"]
                for group in cluster["workerGroupSpecs"]:
                    yield name, group["template"]["spec"]
        elif document["kind"] == "Deployment":
            assert document["spec"]["selector"]["matchLabels"].items() <= (
                document["spec"]["template"]["metadata"]["labels"].items()
            )
            yield name, document["spec"]["template"]["spec"]


def test_ray_resources_have_known_fields_and_the_pinned_ray_version() -> None:
    """KubeRay rejects unknown fields; drivers fail on a cluster with another version of Ray."""
    kinds = set()
    for _, document in _documents():
        assert re.fullmatch(r"[a-z0-9-]+", document["metadata"]["name"])
        if document["apiVersion"] != "ray.io/v1":
            continue
        kinds.add(document["kind"])
        for cluster in _clusters(document):
            assert cluster.keys() <= _RAY_CLUSTER
            assert cluster["rayVersion"] == ray.__version__
            # Without a token, anyone who reaches the head node can run code on it.
            assert cluster["authOptions"] == {"mode": "token"}
            assert cluster["headGroupSpec"].keys() <= _HEAD
            for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
                # the network policy selects the pods by this label
                assert group["template"]["metadata"]["labels"] == _LABELS
                assert all(isinstance(value, str) for value in group["rayStartParams"].values())
                options = _ray_start_options()
                assert {f"--{name}" for name in group["rayStartParams"]} <= options
            for group in cluster["workerGroupSpecs"]:
                assert group.keys() <= _WORKERS
                assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
    assert kinds == {"RayJob", "RayCronJob", "RayCluster"}


def _ray_start_options() -> set[str]:
    from ray.scripts.scripts import start

    return {option for parameter in start.params for option in parameter.opts}


def test_every_path_of_a_pod_is_mounted_and_every_volume_exists(tmp_path: Path) -> None:
    """A pod would wait forever for its volume, or a job fail on a missing file."""
    resources = {(document["kind"], document["metadata"]["name"]) for _, document in _documents()}
    (study,) = (document for _, document in _documents() if document["kind"] == "ConfigMap")
    for name, content in study["data"].items():
        (tmp_path / name).write_text(content)
    sweep = read_sweep(tmp_path / "study.yaml")
    sources = [config["source"] for config in sweep.model_dump()["concepts"]]
    pods = list(_pods())
    assert len(pods) == 7
    for name, pod in pods:
        volumes = {volume["name"]: volume for volume in pod["volumes"]}
        for volume in volumes.values():
            if "configMap" in volume:
                assert ("ConfigMap", volume["configMap"]["name"]) in resources
            if "persistentVolumeClaim" in volume:
                claim = volume["persistentVolumeClaim"]["claimName"]
                assert ("PersistentVolumeClaim", claim) in resources
        for container in pod["containers"]:
            mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
            assert set(mounts.values()) <= volumes.keys(), name
            for path in (str(sweep.store_path), *sources, "/study/study.yaml"):
                assert any(PurePosixPath(path).is_relative_to(mount) for mount in mounts), (name, path)


def test_every_command_exists_with_its_options() -> None:
    entrypoints = [
        spec["entrypoint"]
        for _, document in _documents()
        for spec in (document.get("spec", {}), document.get("spec", {}).get("jobTemplate", {}))
        if "entrypoint" in spec
    ]
    assert len(entrypoints) == 2
    for line in entrypoints:
        python, module_flag, module, file = shlex.split(line)
        assert (python, module_flag, file) == ("python", "-m", "/study/study.yaml")
        assert find_spec(module)
    (deployment,) = (document for _, document in _documents() if document["kind"] == "Deployment")
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    _check_schedule([*container["command"], *container["args"]], "Europe/Berlin")
    # KubeRay stores a cluster's token in a Secret of the same name.
    (token,) = container["env"]
    assert token["name"] == "RAY_AUTH_TOKEN"
    secret = token["valueFrom"]["secretKeyRef"]
    service = container["args"][-1].split("//")[1].split("-head-svc")[0]
    assert secret == {"name": service, "key": "auth_token"}
    assert ("RayCluster", service) in {
        (document["kind"], document["metadata"]["name"]) for _, document in _documents()
    }


def _check_schedule(words: list[str], zone: str) -> None:
    program, command, file, *options = words
    assert program.rpartition("/")[2] == "neuralign"
    assert file.endswith(".yaml")
    parameters = typer.main.get_command(app).commands[command].params  # type: ignore[attr-defined]
    known = {option for parameter in parameters for option in parameter.opts}
    assert set(options[::2]) <= known
    values = dict(zip(options[::2], options[1::2], strict=True))
    if not values["--cron"].startswith("$"):
        Cron(values["--cron"], find_time_zone(zone))


def test_the_systemd_unit_starts_an_existing_command() -> None:
    unit = configparser.ConfigParser(interpolation=None, strict=False)
    unit.optionxform = str  # type: ignore[assignment,method-assign]
    path = DEPLOY / "neuralign-schedule@.service"
    unit.read_string(path.read_text())
    assert unit.sections() == ["Unit", "Service", "Install"]
    assert unit["Service"]["Restart"] == "always"
    _check_schedule(unit["Service"]["ExecStart"].split(), "UTC")
    variables = dict(
        line.lstrip("# ").split("=", 1) for line in path.read_text().splitlines()[:6] if "=" in line
    )
    assert set(re.findall(r"\$\{(\w+)\}", unit["Service"]["ExecStart"])) == variables.keys()
    Cron(variables["CRON"], find_time_zone(variables["TIMEZONE"]))


def test_the_cluster_launcher_file_matches_its_schema() -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    content = yaml.safe_load((DEPLOY / "cluster.yaml").read_text())
    validate_config(prepare_config(content))
    options = _ray_start_options()
    for line in (*content["head_start_ray_commands"], *content["worker_start_ray_commands"]):
        program, command, *rest = shlex.split(line.removeprefix("RAY_AUTH_MODE=token "))
        assert (program.rpartition("/")[2], command in ("start", "stop")) == ("ray", True)
        assert {word.partition("=")[0] for word in rest} <= options
    *sources, token = content["file_mounts"].values()
    assert token == "~/.ray/auth_token"  # noqa: S105
    for source in sources:
        assert (ROOT / source / "constraints.txt").is_file()
    # launcher and users start heads and workers with the token, and the dashboard is not on the network
    for commands in (content["head_start_ray_commands"], content["worker_start_ray_commands"]):
        assert commands[-1].startswith("RAY_AUTH_MODE=token ")
    assert "--dashboard-host=127.0.0.1" in content["head_start_ray_commands"][-1]


def test_pods_run_without_privileges_an_image_of_this_version() -> None:
    """They ran as root with the cluster's default account, and whatever `latest` was on each node."""
    pods = list(_pods())
    assert len(pods) == 7
    for name, pod in pods:
        assert pod["automountServiceAccountToken"] is False, name
        context = pod["securityContext"]
        assert context["runAsNonRoot"] is True
        assert context["runAsUser"] == context["runAsGroup"] == context["fsGroup"] == 1000
        assert context["seccompProfile"] == {"type": "RuntimeDefault"}
        for container in pod["containers"]:
            assert container["image"] == f"neuralign:{__version__}"
            limits = container["securityContext"]
            assert limits == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
    dockerfile = (DEPLOY / "Dockerfile").read_text()
    assert f"-t neuralign:{__version__} " in dockerfile
    assert re.search(r"^FROM python:3\.11\.\d+-slim-\w+$", dockerfile, re.MULTILINE)
    assert "--uid 1000" in dockerfile


def test_only_pods_of_the_study_reach_rays_ports() -> None:
    """Every pod of the Kubernetes cluster reached the head."""
    (policy,) = (document for _, document in _documents() if document["kind"] == "NetworkPolicy")
    spec = policy["spec"]
    assert spec["podSelector"] == {"matchLabels": _LABELS}
    assert spec["policyTypes"] == ["Ingress"]
    own, others = spec["ingress"]
    assert own == {"from": [{"podSelector": {"matchLabels": _LABELS}}]}
    assert others["ports"] == [{"protocol": "TCP", "port": 8265}]
    assert all("podSelector" in peer for peer in others["from"])
    (deployment,) = (document for _, document in _documents() if document["kind"] == "Deployment")
    assert _LABELS.items() <= deployment["spec"]["template"]["metadata"]["labels"].items()


def test_the_systemd_unit_is_confined_and_reads_the_token() -> None:
    """The scheduler could write everywhere its user can, and needed the token in its environment."""
    text = (DEPLOY / "neuralign-schedule@.service").read_text()
    assert "LoadCredential=auth_token:/etc/neuralign/auth_token" in text
    assert "RAY_AUTH_TOKEN_PATH=%d/auth_token" in text
    if shutil.which("systemd-analyze") is None:
        pytest.skip("needs systemd-analyze")
    command = [
        "systemd-analyze",
        "security",
        "--offline=true",
        str(DEPLOY / "neuralign-schedule@.service"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    exposure = re.search(r"Overall exposure level for \S+: ([\d.]+)", done.stdout)
    assert exposure is not None, done.stderr
    assert float(exposure[1]) <= 2.0


def test_the_image_copies_existing_files_and_all_that_the_package_needs() -> None:
    lines = (DEPLOY / "Dockerfile").read_text().splitlines()
    copied = {word for line in lines if line.startswith("COPY") for word in line.split()[1:-1]}
    assert copied
    for name in copied:
        assert (ROOT / name).exists(), name
    project = (ROOT / "pyproject.toml").read_text()
    packages = re.search(r"packages = \[(.*?)\]", project, re.DOTALL)
    assert packages is not None
    assert {name.split(".")[0] for name in re.findall(r'"([\w.]+)"', packages[1])} <= copied
    assert {"pyproject.toml", "constraints.txt", "README.md", "LICENSE"} <= copied


@pytest.mark.parametrize("name", ["README.md", "docs/clusters.md", "SECURITY.md"])
def test_files_named_in_the_docs_exist(name: str) -> None:
    for path in re.findall(r"deploy/[\w@.-]*\w", (ROOT / name).read_text()):
        assert (ROOT / path).exists(), path
