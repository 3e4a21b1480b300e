"""What the manifests say is hardened throughout, and exists: every port, path, variable, option and file in them."""

import csv
import os
import re
import shutil
import subprocess
import sys
from dataclasses import fields
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import tyro
import yaml

from serving.batch import __main__ as batch
from serving.batch.parts import Busy
from serving.inference.predictor import DECODERS
from serving.settings import PREFIX, Settings
from tests.support.markdown import blocks, table
from tests.support.paths import ROOT
from training.__main__ import VERBS
from training.errors import EXIT_CODES
from training.options.config import TrainConfig

K8S = ROOT / "k8s"
APPLIED = sorted(K8S.glob("*.yaml"))
"""What `kubectl apply -f k8s/` reads, in its order."""
DISTRIBUTED = ("network", "train", "study", "study-merge", "predict")
NATIVE = [*APPLIED, K8S / "shell" / "shell.yaml", *(K8S / "distributed" / f"{name}.yaml" for name in DISTRIBUTED)]
"""What Kubernetes knows without the Prometheus Operator, KEDA and Kubeflow Trainer."""


@cache
def objects(path: Path) -> tuple[dict[str, Any], ...]:
    return tuple(yaml.safe_load_all(path.read_text()))


def everything() -> list[dict[str, Any]]:
    return [found for path in sorted(K8S.rglob("*.yaml")) for found in objects(path)]


def named(kind: str, name: str) -> dict[str, Any]:
    [found] = [one for one in everything() if one["kind"] == kind and one["metadata"]["name"] == name]
    return found


def pods() -> dict[str, dict[str, Any]]:
    found = {}
    for one in everything():
        name = f"{one['kind']}-{one['metadata']['name']}"
        if one["kind"] in ("Deployment", "Job"):
            found[name] = one["spec"]["template"]["spec"]
        elif one["kind"] == "Pod":
            found[name] = one["spec"]
        elif one["kind"] == "InferenceService":
            found[name] = one["spec"]["predictor"]
        elif one["kind"] == "TrainingRuntime":
            [nodes] = one["spec"]["template"]["spec"]["replicatedJobs"]
            found[name] = nodes["template"]["spec"]["template"]["spec"]
    return found


def containers(pod: dict[str, Any]) -> list[dict[str, Any]]:
    return [*pod.get("initContainers", []), *pod["containers"]]


def settings_of(container: dict[str, Any]) -> dict[str, str]:
    return {entry["name"]: entry.get("value", "") for entry in container.get("env", [])}


@pytest.mark.parametrize("path", NATIVE, ids=lambda path: str(path.relative_to(K8S)))
def test_the_manifests_are_what_the_api_takes(path: Path) -> None:
    command: list[str | Path] = [Path(sys.executable).with_name("kubernetes-validate"), "--strict", path]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_namespace_comes_first() -> None:
    namespace, *accounts = objects(APPLIED[0])
    assert namespace["kind"] == "Namespace"
    assert {account["kind"] for account in accounts} == {"ServiceAccount"}, "what comes later may use them"
    assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    assert "pod-security.kubernetes.io/enforce-version" in namespace["metadata"]["labels"]
    assert {one["metadata"].get("namespace") for one in everything() if one["kind"] != "Namespace"} <= {
        namespace["metadata"]["name"]
    }


def test_what_is_applied_without_more_starts_on_one_small_node_without_gpus() -> None:
    """Of two CPUs and 4 GiB, beside what the cluster takes: both replicas and the training, on claims of any class."""
    cpus = memory = 0.0
    for name, count in (
        ("Deployment-serve", named("HorizontalPodAutoscaler", "serve")["spec"]["minReplicas"]),
        ("Job-train", 1),
    ):
        [container] = pods()[name]["containers"]
        assert "nvidia.com/gpu" not in container["resources"]["limits"]
        assert container["image"].endswith("-cpu")
        cpus += count * float(container["resources"]["requests"]["cpu"].removesuffix("m")) / 1000
        memory += count * {"512Mi": 0.5, "2Gi": 2.0}[container["resources"]["requests"]["memory"]]
        [affinity] = pods()[name]["affinity"]["podAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
        assert affinity["topologyKey"] == "kubernetes.io/hostname"
        for labels in (template_of("Deployment", "serve"), template_of("Job", "train")):
            assert affinity["labelSelector"]["matchLabels"].items() <= labels["metadata"]["labels"].items()
    assert cpus <= 1
    assert memory <= 3
    assert settings_of(pods()["Deployment-serve"]["containers"][0])["TWINLENS_REQUIRE_GPU"] == "0"
    claims = [one["spec"] for one in everything() if one["kind"] == "PersistentVolumeClaim"]
    assert [claim["accessModes"] for claim in claims] == [["ReadWriteOnce"]] * 2
    assert not [claim for claim in claims if "storageClassName" in claim]


def template_of(kind: str, name: str) -> dict[str, Any]:
    template: dict[str, Any] = named(kind, name)["spec"]["template"]
    return template


def test_a_replica_may_take_the_memory_that_was_measured() -> None:
    """One worker under load, and at its peak three images of 40 megapixels and 16 bits: two decoded, one explained."""
    measured = [[int(cell.replace(",", "")) for cell in row[1:]] for row in table(K8S / "README.md", "model")]
    of_one = [row for row in measured if row[0] == 1]
    [container] = pods()["Deployment-serve"]["containers"]
    assert container["resources"]["requests"]["memory"] == "512Mi"
    assert max(loaded for _, _, loaded, _, _ in of_one) <= 512
    assert container["resources"]["limits"]["memory"] == "2560Mi"
    decoders = DECODERS + 1  # and the thread of explanations
    assert max(peak for _, _, _, peak, _ in of_one) + decoders * 606 <= 2560


@pytest.mark.parametrize("pod", pods().values(), ids=pods())
def test_pods_hold_to_the_restricted_standard_and_more(pod: dict[str, Any]) -> None:
    context = pod["securityContext"]
    assert context["runAsNonRoot"]
    assert context["runAsUser"] >= 10001
    assert "fsGroup" in context
    assert context["seccompProfile"] == {"type": "RuntimeDefault"}
    assert pod["automountServiceAccountToken"] is False
    assert named("ServiceAccount", pod["serviceAccountName"])["automountServiceAccountToken"] is False
    assert pod["enableServiceLinks"] is False
    assert not {"hostNetwork", "hostPID", "hostIPC"} & pod.keys()
    assert not [volume for volume in pod["volumes"] if "hostPath" in volume]
    assert all("sizeLimit" in volume["emptyDir"] for volume in pod["volumes"] if "emptyDir" in volume)


@pytest.mark.parametrize("pod", pods().values(), ids=pods())
def test_containers_may_do_nothing_but_their_work(pod: dict[str, Any]) -> None:
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    for container in containers(pod):
        context = container["securityContext"]
        assert context["allowPrivilegeEscalation"] is False
        assert context["privileged"] is False
        assert context["readOnlyRootFilesystem"] is True
        assert context["capabilities"] == {"drop": ["ALL"]}
        for kind in ("cpu", "memory", "ephemeral-storage"):
            assert kind in container["resources"]["requests"]
            assert kind in container["resources"]["limits"]
        assert "nvidia.com/gpu" not in container["resources"]["requests"]
        assert re.fullmatch(r"localhost/twinlens/(train|serve):\d+\.\d+\.\d+(-cpu)?", container["image"])
        assert container["imagePullPolicy"] == "IfNotPresent"
        assert not [port for port in container.get("ports", []) if "hostPort" in port]
        mounts: dict[str, list[bool]] = {}
        for mount in container["volumeMounts"]:
            mounts.setdefault(mount["name"], []).append(mount.get("readOnly", False))
        for name, read_only in mounts.items():
            claim = volumes[name].get("persistentVolumeClaim")
            assert claim is None or named("PersistentVolumeClaim", claim["claimName"])
            assert claim is None or claim.get("readOnly", False) == all(read_only)
        assert {mount["mountPath"] for mount in container["volumeMounts"]} >= {"/tmp"}


def test_the_service_is_asked_in_three_ways_and_ends_without_loss() -> None:
    deployment = named("Deployment", "serve")
    [container] = deployment["spec"]["template"]["spec"]["containers"]
    probes = [container[name] for name in ("startupProbe", "livenessProbe", "readinessProbe")]
    assert len({str(probe) for probe in probes}) == 3
    routes = yaml.safe_load((ROOT / "serving" / "api" / "static" / "openapi.yaml").read_text())["paths"]
    assert {probe["httpGet"]["path"] for probe in probes} <= routes.keys()
    assert container["livenessProbe"]["httpGet"]["path"] != container["readinessProbe"]["httpGet"]["path"]
    assert {probe["httpGet"]["port"] for probe in probes} == {container["ports"][0]["name"]}
    assert named("Service", "serve")["spec"]["ports"][0]["targetPort"] == container["ports"][0]["name"]
    assert str(container["ports"][0]["containerPort"]) in (ROOT / "Dockerfile.serve").read_text()

    grace = deployment["spec"]["template"]["spec"]["terminationGracePeriodSeconds"]
    timeout = float(settings_of(container).get(f"{PREFIX}TIMEOUT_S", Settings().timeout_s))
    assert grace >= container["lifecycle"]["preStop"]["sleep"]["seconds"] + timeout + 5
    assert deployment["spec"]["strategy"]["rollingUpdate"] == {"maxUnavailable": 0, "maxSurge": 1}
    assert "progressDeadlineSeconds" in deployment["spec"]
    assert "replicas" not in deployment["spec"], "the autoscaler sets the number"
    assert deployment["spec"]["template"]["spec"]["topologySpreadConstraints"]
    assert [mount["readOnly"] for mount in container["volumeMounts"] if mount["mountPath"] == "/runs"] == [True]


def test_the_inference_service_of_kserve_is_found_by_its_name() -> None:
    service = named("InferenceService", "digits")
    [container] = service["spec"]["predictor"]["containers"]
    [deployed] = template_of("Deployment", "serve")["spec"]["containers"]
    name = service["metadata"]["name"]
    assert settings_of(container) == settings_of(deployed) | {"TWINLENS_NAME": name}
    assert container["readinessProbe"]["httpGet"]["path"] == f"/v2/models/{name}/ready"
    assert container["name"] == "kserve-container", "the name by which KServe knows the model's container"
    for part in ("image", "resources", "volumeMounts", "lifecycle"):
        assert container[part] == deployed[part]
    assert service["spec"]["predictor"]["affinity"] == template_of("Deployment", "serve")["spec"]["affinity"]
    [port] = container["ports"]
    assert port["containerPort"] == deployed["ports"][0]["containerPort"]
    policy = named("NetworkPolicy", name)["spec"]
    assert policy["podSelector"]["matchLabels"] == {"serving.kserve.io/inferenceservice": name}
    [allowed] = policy["ingress"]
    assert allowed["from"] == named("NetworkPolicy", "serve")["spec"]["ingress"][0]["from"]
    assert allowed["ports"] == [{"port": port["containerPort"]}]


def options_of(container: dict[str, Any]) -> list[str]:
    """The words of a container's command behind the image's entry point, or behind what starts the same module."""
    words = " ".join([*container.get("command", []), *container.get("args", [])])
    return words.rpartition("-m training ")[2].split()


def test_settings_and_options_exist() -> None:
    known = {PREFIX + field.upper() for field in Settings.model_fields}
    of_verbs = {verb: {f"--{field.name.replace('_', '-')}" for field in fields(VERBS[verb].kind)} for verb in VERBS}
    for pod in pods().values():
        for container in containers(pod):
            assert {name for name in settings_of(container) if name.startswith(PREFIX)} <= known
            if "/train:" in container["image"] and container.get("command", ["python"])[0] != "sleep":
                words = options_of(container)
                verb = words[0] if words[0] in VERBS else "train"
                given = {word.partition("=")[0] for word in words if word.startswith("--")}
                assert given, container
                assert given <= of_verbs[verb], given - of_verbs[verb]


def test_machines_that_train_together_find_each_other() -> None:
    job = named("Job", "train-together")
    pod = job["spec"]["template"]["spec"]
    service = named("Service", "train-together")
    [container] = pod["containers"]
    words = container["args"][0].split()
    assert job["spec"]["completionMode"] == "Indexed"
    assert f"--nnodes={job['spec']['completions']}" in words
    assert job["spec"]["parallelism"] == job["spec"]["completions"]
    assert f"--rdzv-endpoint={job['metadata']['name']}-0.{pod['subdomain']}:29500" in words
    assert "--rdzv-conf=is_host=$((JOB_COMPLETION_INDEX" in words
    assert settings_of(container)["NCCL_IB_DISABLE"] == "1"
    assert '--local-addr="$POD_IP"' in words
    assert job["spec"]["backoffLimit"] >= 3 * job["spec"]["completions"], "each failure ends a pod of every node"
    assert pod["subdomain"] == service["metadata"]["name"]
    assert service["spec"]["clusterIP"] == "None"
    assert service["spec"]["publishNotReadyAddresses"] is True
    labels = job["spec"]["template"]["metadata"]["labels"]
    policy = named("NetworkPolicy", "train-together")["spec"]
    for selector in (service["spec"]["selector"], policy["podSelector"]["matchLabels"]):
        assert selector.items() <= labels.items()
    peers, name_server = policy["egress"]
    assert peers["to"] == policy["ingress"][0]["from"] == [{"podSelector": policy["podSelector"]}]
    assert "to" not in name_server, "NodeLocal DNSCache answers from an address that no selector matches"
    assert {(port["port"], port["protocol"]) for port in name_server["ports"]} == {
        (53, "UDP"), (53, "TCP"), (5353, "UDP"), (5353, "TCP"),
    }  # fmt: skip
    runtimes = named("TrainingRuntime", "twinlens")["spec"]
    assert runtimes["mlPolicy"]["torch"] == {}, "Kubeflow Trainer 2.2 has no fields in it"
    [runtime] = runtimes["template"]["spec"]["replicatedJobs"]
    assert (
        policy["podSelector"]["matchLabels"].items()
        <= runtime["template"]["spec"]["template"]["metadata"]["labels"].items()
    )
    assert named("TrainJob", "train-together")["spec"]["runtimeRef"]["name"] == "twinlens"


def test_a_study_has_as_many_shares_as_pods() -> None:
    job, merge = named("Job", "study")["spec"], named("Job", "study-merge")["spec"]
    shares = job["completions"]
    [container] = job["template"]["spec"]["containers"]
    assert f"--shard=$i/{shares}" in container["args"][0]
    merged = [word for word in merge["template"]["spec"]["containers"][0]["args"] if "/" in word]
    assert merged == [f"runs/studies/regularisation-{i + 1}" for i in range(shares)]


@pytest.mark.long
def test_pods_that_share_images_run_the_command_and_try_again_what_may_turn_out_otherwise(
    run: Path, photos: Path, tmp_path: Path
) -> None:
    """The manifest's own words, in a shell as its pods have it, with the folders of this machine."""
    job = named("Job", "predict")["spec"]
    [container] = job["template"]["spec"]["containers"]
    final = next(rule for rule in job["podFailurePolicy"]["rules"] if rule["action"] == "FailJob")["onExitCodes"]
    assert final["containerName"] == container["name"]
    busy, storage_or_a_killed_process = 5, 6
    assert batch.EXIT_CODES[Busy] == busy
    assert {*final["values"]} == {*batch.EXIT_CODES.values()} - {busy, storage_or_a_killed_process}
    [script] = container["args"]
    assert f"-eq {batch.SOME_FAILED} ]" in script
    written = {mount["mountPath"] for mount in container["volumeMounts"] if not mount.get("readOnly")}
    assert written == {"/predictions", "/tmp"}, "no model can be replaced by what decodes images"
    words = script.replace("/data", str(tmp_path / "data")).replace("/predictions/", f"{tmp_path}/")
    shutil.copytree(photos, tmp_path / "data")
    (tmp_path / "data" / "empty.png").touch()
    assert f"-eq {batch.SOME_FAILED} ]" in script
    environment = {"TWINLENS_MODEL": str(run / "model.onnx"), **settings_of(container)}
    for index in range(job["completions"]):
        done = subprocess.run(
            [*container["command"], words],
            env=os.environ | environment | {"JOB_COMPLETION_INDEX": str(index)},
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
    refused = {"TWINLENS_MODEL": str(tmp_path / "data" / "empty.png"), "JOB_COMPLETION_INDEX": "0"}
    words = words.replace("predictions.csv", "again.csv")
    refusal = subprocess.run(
        [*container["command"], words], env=os.environ | environment | refused, cwd=ROOT, check=False
    )
    assert refusal.returncode == 7, "the code of the command is that of the container"
    with (tmp_path / "predictions.csv").open(newline="") as file:
        assert len(list(csv.DictReader(file))) == 91


def test_a_training_job_tries_again_only_what_may_turn_out_otherwise() -> None:
    job = named("Job", "train")["spec"]
    assert job["podReplacementPolicy"] == "Failed"
    assert {"backoffLimit", "activeDeadlineSeconds", "ttlSecondsAfterFinished"} <= job.keys()
    assert job["template"]["spec"]["restartPolicy"] == "Never"
    rules = {rule["action"]: rule for rule in job["podFailurePolicy"]["rules"] if "onExitCodes" in rule}
    final = rules["FailJob"]["onExitCodes"]
    assert final["containerName"] == job["template"]["spec"]["containers"][0]["name"]
    memory_storage_or_a_lost_process = {5, 6, 9}
    assert set(final["values"]) == set(EXIT_CODES.values()) - memory_storage_or_a_lost_process
    assert {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget"}]} in job["podFailurePolicy"]["rules"]
    [container] = job["template"]["spec"]["containers"]
    assert "--resume=auto" in container["args"]
    assert not [word for word in container["args"] if "--device" in word], "auto: components/gpu-training says cuda"
    assert any(argument.startswith("--name=") for argument in container["args"]), "or auto might take another's run"
    shared = {mount["name"] for mount in container["volumeMounts"] if mount["mountPath"] == "/dev/shm"}
    memory = [volume for volume in job["template"]["spec"]["volumes"] if volume["name"] in shared]
    assert [volume["emptyDir"]["medium"] for volume in memory] == ["Memory"]


def test_every_trainer_publishes_by_the_rule_of_promotion() -> None:
    """A manifest that promoted always would serve what is worse; people promote by hand."""
    [job] = named("Job", "train")["spec"]["template"]["spec"]["containers"]
    assert tyro.cli(TrainConfig, args=job["args"]).promote == "better"
    for pod in pods().values():
        for container in containers(pod):
            words = [*container.get("command", []), *container.get("args", [])]
            assert not any("--promote" in word for word in words), container["name"]


def test_nothing_goes_out_and_only_requests_come_in() -> None:
    policies = [one["spec"] for path in APPLIED for one in objects(path) if one["kind"] == "NetworkPolicy"]
    assert {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]} in policies
    assert not [policy for policy in policies if "egress" in policy]
    [allowed] = [policy for policy in policies if "ingress" in policy]
    assert allowed["podSelector"] == named("Deployment", "serve")["spec"]["selector"]
    assert allowed["ingress"][0]["ports"] == [{"port": "http"}]
    assert all("namespaceSelector" in peer for rule in allowed["ingress"] for peer in rule["from"])


def test_the_rule_of_the_page_lets_spans_out(tmp_path: Path) -> None:
    [rule] = [block.text for block in blocks(K8S / "README.md") if block.text.startswith("apiVersion: networking")]
    (tmp_path / "rule.yaml").write_text(rule)
    command: list[str | Path] = [
        Path(sys.executable).with_name("kubernetes-validate"),
        "--strict",
        tmp_path / "rule.yaml",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    policy = yaml.safe_load(rule)["spec"]
    assert policy["podSelector"] == named("Deployment", "serve")["spec"]["selector"]
    [endpoint] = re.findall(r"endpoint: \"http://\S+:(\d+)/", (ROOT / "serving" / "README.md").read_text())
    assert policy["egress"][0]["ports"] == [{"port": int(endpoint)}]
    _, name_server = named("NetworkPolicy", "train-together")["spec"]["egress"]
    assert {(port["port"], port.get("protocol", "TCP")) for port in policy["egress"][1]["ports"]} == {
        (port["port"], port["protocol"]) for port in name_server["ports"]
    }


def test_a_drain_is_never_blocked() -> None:
    """Replicas beside each other have no other node to go to; test_kustomize.py has those of several nodes."""
    budget = named("PodDisruptionBudget", "serve")["spec"]
    assert "podAffinity" in template_of("Deployment", "serve")["spec"]["affinity"]
    assert budget["maxUnavailable"] == "100%"
    assert budget["unhealthyPodEvictionPolicy"] == "AlwaysAllow"
    assert budget["selector"] == named("Deployment", "serve")["spec"]["selector"]
    scaled = named("HorizontalPodAutoscaler", "serve")["spec"]["scaleTargetRef"]
    assert (scaled["kind"], scaled["name"]) == ("Deployment", "serve")


def test_both_dockerfiles_are_clean() -> None:
    command: list[str | Path] = [
        Path(sys.executable).with_name("hadolint"),
        ROOT / "Dockerfile.train",
        ROOT / "Dockerfile.serve",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("kind", ["train", "serve"])
def test_images_are_small_pinned_and_powerless(kind: str) -> None:
    text = (ROOT / f"Dockerfile.{kind}").read_text()
    assert re.search(r"^ARG BASE_IMAGE=\S+:\S+@sha256:[0-9a-f]{64}$", text, flags=re.MULTILINE)
    assert re.findall(r"^USER (.*)$", text, flags=re.MULTILINE) == ["${RUN_AS}"]
    assert re.findall(r"^ARG RUN_AS=(.*)$", text, flags=re.MULTILINE) == ["10001:10001"]
    assert re.search(r'^ENTRYPOINT \["python", "-m", "\w+"\]$', text, flags=re.MULTILINE)
    assert "--constraint constraints.txt" in text
    final = text.rpartition("FROM ")[2]
    assert "pip" not in final
    assert not re.search(r"apt-get|curl|wget|ADD ", text)


@pytest.mark.parametrize("kind", ["train", "serve"])
def test_images_find_the_driver_that_a_cluster_mounts(kind: str) -> None:
    """By path on GKE, by a container runtime elsewhere; an image without CUDA is built to want none."""
    final = (ROOT / f"Dockerfile.{kind}").read_text().rpartition("FROM ")[2].replace("\\\n", " ")
    variables = dict(
        pair.split("=", 1) for line in re.findall(r"^ENV (.*)$", final, re.MULTILINE) for pair in line.split()
    )
    assert variables["LD_LIBRARY_PATH"] == "/usr/local/nvidia/lib:/usr/local/nvidia/lib64"
    assert variables["NVIDIA_DRIVER_CAPABILITIES"] == "compute,utility"
    assert variables["NVIDIA_VISIBLE_DEVICES"] == "${NVIDIA_VISIBLE_DEVICES}"
    assert re.search(r"^ARG NVIDIA_VISIBLE_DEVICES=all$", final, re.MULTILINE)
    settings = {name: value for name, value in variables.items() if name.startswith(PREFIX) and kind == "serve"}
    assert settings == ({"TWINLENS_REQUIRE_GPU": "auto"} if kind == "serve" else {})
    # ONNX Runtime may take up TF32 by itself. Training may use it; its proof shows what it changed.
    assert variables.get("NVIDIA_TF32_OVERRIDE") == ("0" if kind == "serve" else None)
    for page in (ROOT / "README.md", K8S / "README.md"):
        assert "--build-arg NVIDIA_VISIBLE_DEVICES=void" in page.read_text()
