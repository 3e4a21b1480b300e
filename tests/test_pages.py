"""What the pages name exists: options, settings, routes, metrics, alerts, files, links, and what is run elsewhere."""

import dataclasses
import itertools
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import tyro
import yaml

from serving.api.routes import ROUTES
from serving.contract.formats.image_header import FORMATS
from serving.settings import PREFIX, DriftLimits, Settings
from tests.support.markdown import PAGES, blocks, table
from tests.support.paths import ROOT
from training.__main__ import VERBS
from training.check.runs import FAMILIES
from training.errors import EXIT_CODES
from training.options.config import TrainConfig
from training.study.config import StudyConfig
from training.study.spec import document

README = ROOT / "README.md"
TRAINING, SERVING, K8S = (ROOT / folder / "README.md" for folder in ("training", "serving", "k8s"))
STUDY = ROOT / "training" / "study" / "README.md"
LANGUAGES = {"bash", "python", "console", "csv", "json", "yaml", "text"}
LINES_AT_MOST = 240
CODE = re.compile(r"`([^`]*)`")


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def codes(cell: str) -> list[str]:
    """What stands in backticks."""
    return CODE.findall(cell)


def test_the_formats_stand_wherever_they_are_named() -> None:
    """The list itself is `image_header.FILE_EXTENSIONS`; the page at /ui and every message are made from it."""
    openapi = ROOT / "serving" / "api" / "static" / "openapi.yaml"
    for page, text in {README: FORMATS.replace(" or ", " and "), SERVING: FORMATS, openapi: FORMATS}.items():
        assert text in page.read_text(), f"{name_of(page)} does not say {text}"


def test_the_first_page_is_one_that_people_finish() -> None:
    assert len(README.read_text().splitlines()) <= LINES_AT_MOST


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_block_says_what_it_is(page: Path) -> None:
    """test_readme.py runs some, and the tests below check the others: none is left out."""
    assert {block.language for block in blocks(page)} <= LANGUAGES
    assert len(re.findall(r"^ *```", page.read_text(), flags=re.MULTILINE)) == 2 * len(blocks(page))


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if target.startswith("http"):
            continue
        path, _, anchor = target.partition("#")
        linked = (page.parent / path).resolve() if path else page
        assert linked.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.*)$", linked.read_text(), flags=re.MULTILINE)
            assert anchor in {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_every_option_is_in_the_table_with_its_default() -> None:
    rows = {codes(option)[0]: default for option, default, _ in table(TRAINING, "option")}
    assert len(rows) == len(table(TRAINING, "option"))
    fields = {f"--{field.name.replace('_', '-')}": field for field in dataclasses.fields(TrainConfig)}
    assert rows.keys() == fields.keys()
    for option, default in rows.items():
        assert default == shown(fields[option].default), option


def shown(default: object) -> str:
    """A default as the table has it."""
    if default is None:
        return "open"
    if isinstance(default, bool):
        return "yes" if default else "no"
    if isinstance(default, tuple) and default:
        return " ".join(map(str, default))
    return str(default)


def test_every_exit_code_is_in_the_table_with_its_errors() -> None:
    rows = {code: set(codes(errors)) for code, errors, _ in table(TRAINING, "exit code")}
    assert rows.pop("0") == set()
    assert rows.pop("130, 143") == {"Interrupted"}
    expected = {
        str(code): {error.__name__ for error, its_code in EXIT_CODES.items() if its_code == code}
        for code in EXIT_CODES.values()
    }
    assert rows == expected


def test_every_setting_is_in_the_table_with_its_default() -> None:
    rows = {codes(setting)[0]: default.strip("`") for setting, default, _ in table(SERVING, "setting")}
    defaults = {
        f"{PREFIX}{name.upper()}": field.get_default(call_default_factory=True)
        for name, field in Settings.model_fields.items()
    }
    assert rows.keys() == defaults.keys()
    for setting, text in rows.items():
        default = defaults[setting]
        if default in (None, DriftLimits()):
            assert text == "none", setting
        elif isinstance(default, Path):
            assert Path(text) == default, setting
        elif isinstance(default, str):
            assert text == default, setting
        else:
            assert float(text) == float(str(int(default)) if isinstance(default, bool) else str(default)), setting


def test_every_metric_is_in_the_table() -> None:
    rows = {codes(metric)[0].partition("{")[0].removesuffix("_total") for metric, _ in table(SERVING, "metric")}
    assert rows == set(re.findall(r'"(twinlens_\w+)"', (ROOT / "serving" / "metrics.py").read_text()))


def test_every_route_is_in_the_table() -> None:
    named = re.findall(r"`(GET|POST) (/[^`?]*)`", SERVING.read_text())
    assert set(named) == {(route.method, route.path) for route in ROUTES}


def test_every_alert_is_in_the_table() -> None:
    rules = yaml.safe_load((ROOT / "k8s" / "monitoring" / "rules.yaml").read_text())
    alerts = {rule["alert"] for group in rules["spec"]["groups"] for rule in group["rules"]}
    assert {codes(alert)[0] for alert, _ in table(K8S, "alert")} == alerts


def test_every_manifest_is_in_the_table() -> None:
    names = {name.rstrip("/") for files, _ in table(K8S, "file") for name in codes(files)}
    assert names == {path.name for path in (ROOT / "k8s").iterdir()} - {"README.md"}


def test_every_component_is_in_the_table_with_its_gpus() -> None:
    names = {codes(name)[0] for name, *_ in table(K8S, "component")}
    assert names == {path.name for path in (ROOT / "k8s" / "components").iterdir()}


def test_every_study_is_in_the_table() -> None:
    studies = {path.stem for path in (ROOT / "training" / "study" / "studies").glob("*.yaml")}
    assert {codes(study)[0] for study, _ in table(STUDY, "study")} == studies


def test_the_tree_names_every_package_with_a_purpose() -> None:
    """Of two levels; what lies deeper is part of its package."""
    [tree] = [block.text for block in blocks(README) if block.text.startswith("training/")]
    folders, parent = set(), ""
    for line in tree.splitlines():
        indent, folder, purpose = re.fullmatch(r"( *)(\w+)/ +(.+)", line).groups()  # type: ignore[union-attr]
        parent = parent if indent else folder
        folders.add(f"{parent}/{folder}" if indent else folder)
        assert len(purpose.split()) >= 2, line
    inits = [init for side in ("serving", "training") for init in (ROOT / side).rglob("__init__.py")]
    packages = {name for init in inits if (name := name_of(init.parent)).count("/") < 2}
    assert folders == packages | {"k8s", "tests"}


def test_the_study_of_ones_own_can_be_read(tmp_path: Path) -> None:
    [block] = [block for block in blocks(STUDY) if block.language == "yaml"]
    path = tmp_path / "own.yaml"
    path.write_text(block.text)
    study = document.read(path)
    assert len(study.cells()) == 4 * study.seeds == 20


CONSOLE = [
    (name_of(page), line)
    for page in PAGES
    for block in blocks(page)
    if block.language == "console"
    for line in block.text.splitlines()
]


@pytest.mark.parametrize(("page", "line"), CONSOLE)
def test_what_needs_another_machine_names_what_exists(page: str, line: str) -> None:
    check(line)


@pytest.mark.parametrize(
    "line",
    [
        "make all-well",
        "docker build -f Dockerfile.missing .",
        "docker run --gpus all train --epoch-count 30",
        "docker run --gpus all train check --epochs 30",
        "docker run --gpus all serve check --model check/other.onnx",
        "kubectl apply -f k8s/missing.yaml",
        "kubectl -n twinlens logs -f job/missing",
        "kubectl -n twinlens delete job missing",
        "kubectl -n twinlens port-forward service/serve 3000:3000",
        "kubectl -n twinlens exec shell -- python -m training rollback --because none",
        "kubectl cp photos twinlens/shell:/missing/photos",
        "kubectl -n twinlens set image deployment/serve other=registry.example/twinlens/serve:0.3.0",
        "kustomize edit set image localhost/twinlens/other=registry.example/twinlens/serve:0.3.0",
        "cd k8s/missing",
        "torchrun -m training --resume",
        "curl localhost",
        "curl localhost:3000/predicted",
        "wget localhost:3000/predict",
    ],
)
def test_a_wrong_line_is_refused(line: str) -> None:
    with pytest.raises((AssertionError, KeyError, SystemExit)):
        check(line)


def check(line: str) -> None:
    """Raise if a line of a `console` block names a file, object, target, option or label that does not exist."""
    words = shlex.split(line, comments=True)
    CHECKS[words[0]](words[1:])


def check_make(words: list[str]) -> None:
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    assert words[0] in targets


def check_docker(words: list[str]) -> None:
    verb, *words = words
    if verb == "build":
        assert (ROOT / words[words.index("-f") + 1]).is_file()
    elif verb == "compose":
        assert words == ["up", "--build"]
        assert (ROOT / "compose.yaml").is_file()
    elif verb == "push":
        assert re.fullmatch(r"\S+/twinlens/(train|serve):\S+", words[0])
    else:
        assert verb == "run"
        image = next(index for index, word in enumerate(words) if word in ("train", "serve"))
        arguments = words[image + 1 :]
        if words[image] == "train":
            check_training(arguments)
        elif arguments:
            assert arguments[:2] == ["check", "--model"]
            assert arguments[2] in {f"check/{family}.onnx" for family in FAMILIES}


def check_training(words: list[str]) -> None:
    verb = words.pop(0) if words and words[0] in VERBS else "train"
    tyro.cli(VERBS[verb].kind, args=words)


def check_kubectl(words: list[str]) -> None:
    if words[0] == "-n":
        assert f"namespace/{words[1]}" in objects()
        words = words[2:]
    KUBECTL[words[0]](words)


def check_apply(words: list[str]) -> None:
    for option, name in zip(words[1::2], words[2::2], strict=True):
        assert (ROOT / name).exists()
        assert option == "-f" or (option == "-k" and (ROOT / name / "Kustomization").is_file())


def check_label(words: list[str]) -> None:
    key, _, value = words[3].partition("=")
    assert f'{{{key}: "{value}"}}' in (ROOT / "k8s" / "network.yaml").read_text()


def check_cp(words: list[str]) -> None:
    namespace, pod, path = re.fullmatch(r"(\w+)/(\w+):(/\w+)/\w+", words[2]).groups()  # type: ignore[union-attr]
    shell = objects()[f"pod/{pod}"]
    assert namespace == shell["metadata"]["namespace"]
    assert path in {mount["mountPath"] for mount in shell["spec"]["containers"][0]["volumeMounts"]}


def check_exec(words: list[str]) -> None:
    assert f"pod/{words[1]}" in objects()
    assert words[2:6] == ["--", "python", "-m", "training"]
    tyro.cli(VERBS[words[6]].kind, args=words[7:])


def check_create(words: list[str]) -> None:
    assert words[1:3] == ["secret", "generic"]


def check_delete(words: list[str]) -> None:
    assert "/".join(words[1:]) in objects()


def check_named(words: list[str]) -> None:
    """Commands on one object, which is named kind/name."""
    [named] = [word for word in words if re.match(r"(job|deployment|service|pod)/", word)]
    found = objects()[named]
    if words[:2] == ["set", "image"]:
        containers = found["spec"]["template"]["spec"]["containers"]
        assert words[-1].partition("=")[0] in {container["name"] for container in containers}
    if words[0] == "port-forward":
        assert int(words[-1].partition(":")[2]) in {port["port"] for port in found["spec"]["ports"]}


def objects() -> dict[str, dict[str, Any]]:
    """The manifests' objects by kind and name."""
    paths = (ROOT / "k8s").rglob("*.yaml")
    documents = itertools.chain.from_iterable(yaml.safe_load_all(path.read_text()) for path in paths)
    return {f"{one['kind'].lower()}/{one['metadata']['name']}": one for one in documents}


def check_torchrun(words: list[str]) -> None:
    place = words.index("-m")
    assert words[place + 1] == "training"
    check_training(words[place + 2 :])


def check_python(words: list[str]) -> None:
    if words[1] != "training":
        assert (ROOT / Path(*words[1].split("."))).with_suffix(".py").is_file()
        return
    assert words[:3] == ["-m", "training", "study"]
    config = tyro.cli(StudyConfig, args=words[3:])
    assert (ROOT / "training" / "study" / "studies" / f"{config.study}.yaml").is_file()


def check_mkdir(words: list[str]) -> None:
    assert words[0] == "-p"


def check_kind(words: list[str]) -> None:
    assert words[:2] == ["load", "docker-image"]
    manifests = "".join(path.read_text() for path in (ROOT / "k8s").glob("*.yaml"))
    assert all(f"image: {name}\n" in manifests for name in words[2:])


def check_kustomize(words: list[str]) -> None:
    assert words[:3] == ["edit", "set", "image"]
    listed = yaml.safe_load((ROOT / "k8s" / "components" / "images" / "Kustomization").read_text())["images"]
    assert words[3].partition("=")[0] in {image["name"] for image in listed}


def check_cd(words: list[str]) -> None:
    assert (ROOT / words[0]).is_dir()


def check_curl(words: list[str]) -> None:
    address = urlsplit(f"http://{words[-1]}")
    assert address.netloc == "localhost:3000"
    assert address.path in {route.path for route in ROUTES}


def check_git(words: list[str]) -> None:
    assert words[0] in ("clone", "switch", "commit")


def check_pre_commit(words: list[str]) -> None:
    assert words[0] in ("install", "run")
    assert (ROOT / ".pre-commit-config.yaml").is_file()


KUBECTL: dict[str, Callable[[list[str]], None]] = {
    "apply": check_apply,
    "label": check_label,
    "cp": check_cp,
    "exec": check_exec,
    "create": check_create,
    "delete": check_delete,
    "set": check_named,
    "logs": check_named,
    "wait": check_named,
    "rollout": check_named,
    "port-forward": check_named,
}
CHECKS: dict[str, Callable[[list[str]], None]] = {
    "make": check_make,
    "docker": check_docker,
    "kind": check_kind,
    "kustomize": check_kustomize,
    "cd": check_cd,
    "curl": check_curl,
    "mkdir": check_mkdir,
    "kubectl": check_kubectl,
    "torchrun": check_torchrun,
    "git": check_git,
    "pre-commit": check_pre_commit,
    "python": check_python,
}
