"""The manifests' own pod templates as pods of podman, which knows no Job and no autoscaler but runs what they start."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from tests.containers.podman import inspect, podman
from tests.support.paths import ROOT

K8S = ROOT / "k8s"


def manifest(kind: str, name: str, folder: Path = K8S) -> dict[str, Any]:
    """The object as `kubectl apply -f` sends it."""
    [found] = [
        one
        for path in sorted(folder.glob("*.yaml"))
        for one in yaml.safe_load_all(path.read_text())
        if (one["kind"], one["metadata"]["name"]) == (kind, name)
    ]
    assert isinstance(found, dict)
    return found


class Pod:
    """A pod under way, of one container."""

    def __init__(self, name: str, container: str) -> None:
        self.name = name
        self.container = f"{name}-{container}"

    @property
    def address(self) -> str:
        """At which the host reaches it."""
        infra = inspect("pod", self.name)["InfraContainerID"]
        settings = inspect("container", infra)["NetworkSettings"]
        found = settings["IPAddress"] or next(iter(settings["Networks"].values()))["IPAddress"]
        assert isinstance(found, str)
        return found

    @property
    def logs(self) -> str:
        """What its container has printed, on both outputs."""
        return podman("logs", self.container, merge=True)

    @property
    def exit_code(self) -> int | None:
        """Of its container; None while it runs."""
        state = inspect("container", self.container)["State"]
        return None if state["Running"] else int(state["ExitCode"])

    def signal(self, name: str) -> None:
        """Send a signal to the first process of its container."""
        podman("kill", f"--signal={name}", self.container)


@contextmanager
def pod(name: str, controller: dict[str, Any], image: str, claims: dict[str, str], folder: Path) -> Iterator[Pod]:
    """Play the pod template of a Deployment or a Job, with `image` as its image and podman's volumes as its claims."""
    template = json.loads(json.dumps(controller["spec"]["template"]))
    [container] = template["spec"]["containers"]
    container["image"] = image
    # Kubernetes makes an emptyDir for everybody; podman gives it to root, unless the image has a folder there.
    container["volumeMounts"] = [mount for mount in container["volumeMounts"] if mount["mountPath"] != "/dev/shm"]
    for volume in template["spec"]["volumes"]:
        if "persistentVolumeClaim" in volume:
            volume["persistentVolumeClaim"]["claimName"] = claims[volume["persistentVolumeClaim"]["claimName"]]
    template |= {"apiVersion": "v1", "kind": "Pod"}
    template["metadata"]["name"] = name
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(template))
    try:
        podman("play", "kube", path)
        yield Pod(name, container["name"])
    finally:
        podman("pod", "rm", "--force", "--time=1", name, check=False)
