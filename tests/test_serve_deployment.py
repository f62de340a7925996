"""The Dockerfile and KServe's manifest, as far as they can be tried without either: what they name is there."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

from flashelmo.cli.commands import app

FOLDER = Path("examples") / "serving"
PATHS = {"/v2/health/ready", "/v2/health/live"}


def instructions(root: Path) -> list[tuple[str, str]]:
    text = (root / FOLDER / "Dockerfile").read_text(encoding="utf-8")
    lines = re.sub(r"\\\n\s*", "", re.sub(r"^#.*\n", "", text, flags=re.MULTILINE)).splitlines()
    return [(line.partition(" ")[0], line.partition(" ")[2]) for line in lines if line]


def serve_with(arguments: list[str]) -> dict[str, Any]:
    """The command line's own reading of `flashelmo serve` with these arguments."""
    command: Any = get_command(app)
    parameters: dict[str, Any] = command.commands["serve"].make_context("serve", list(arguments)).params
    return parameters


def test_the_image_holds_what_the_package_is_made_of(root: Path) -> None:
    copied = [words.split()[:-1] for name, words in instructions(root) if name == "COPY"]
    for path in [path for paths in copied for path in paths]:
        assert (root / path).exists(), path
    mapped = {init.parent.name for init in root.glob("*/__init__.py")} | {"src"}
    assert {paths[0] for paths in copied if len(paths) == 1} == mapped


def test_the_image_installs_extras_that_there_are(root: Path) -> None:
    setup = (root / "setup.py").read_text(encoding="utf-8")
    (install,) = [words for name, words in instructions(root) if "pip install" in words]
    (extras,) = re.findall(r"\.\[(.+?)\]", install)
    (default,) = [words.partition("=")[2] for name, words in instructions(root) if name == "ARG"]
    for extra in {*extras.replace("$EXTRA", default).split(","), "gpu", "openvino"}:
        assert f'"{extra}": ' in setup, extra
    assert "--constraint constraints.txt" in install
    (compiler,) = [words for _, words in instructions(root) if " gcc " in words]
    assert "EXTRA" not in compiler, "int8 and bf16 on CPUs need it too"


def test_the_image_starts_a_service_that_others_reach(root: Path) -> None:
    found = dict(instructions(root))
    assert json.loads(found["ENTRYPOINT"]) == ["flashelmo", "serve"]
    arguments = serve_with(json.loads(found["CMD"]))
    assert (str(arguments["model"]), arguments["host"]) == ("/model", "0.0.0.0")
    assert str(arguments["port"]) == found["EXPOSE"]


def test_the_manifest_asks_for_what_the_service_has(root: Path) -> None:
    text = (root / FOLDER / "kserve.yaml").read_text(encoding="utf-8")
    (args,) = re.findall(r"args: (\[.*\])", text)
    arguments = serve_with(json.loads(args))
    assert arguments["name"] == re.findall(r"^  name: (\S+)", text, flags=re.MULTILINE)[0]
    assert set(re.findall(r"path: ([^,}]+)", text)) == PATHS
    assert {str(arguments["port"])} == set(re.findall(r"port: (\d+)|containerPort: (\d+)", text)[0]) - {""}
    assert f"mountPath: {arguments['model']}\n" in text and arguments["host"] == "0.0.0.0"
    yaml = pytest.importorskip("yaml", reason="PyYAML is not installed")
    container = yaml.safe_load(text)["spec"]["predictor"]["containers"][0]
    assert container["ports"][0]["containerPort"] == arguments["port"]
