"""docs/onnx.md: all its commands and programs, run in their order in one place, and what it says that they print."""

import os
import platform
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import javascript
import psutil
import pytest
from docs_place import Place
from documents import RUN, Block, check_printed, read_page
from javascript import DOWNLOADS
from typer.main import get_command

from flashelmo.cli.commands import app
from flashelmo.engine.model.checkpoints import load_model
from flashelmo.engine.model.named.locate import bundled
from flashelmo.export.build import metadata_of
from flashelmo.export.card_examples import JAVASCRIPT, bare_example
from flashelmo.export.servers.readme import IMAGE

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "onnx.md"
SERVING = ("9. Serve it", "10. Send requests")
OPTIONS = "4. Options"  # a table, whose names are compared with the command's
PORT = "8000"  # on the page
PROGRAM = "demo/vectors.mjs"  # as the page calls it
NO_INDEX = ("(from versions: none)", "NewConnectionError", "Connection refused", "timed out")
SECONDS_TO_STOP = 60
NOT_RUN = "(not run by the tests)"

BLOCKS = read_page(PAGE.read_text(encoding="utf-8"), "docs/onnx.md")
TO_RUN = [block for block in BLOCKS if NOT_RUN not in block.before]


class OnnxPlace(Place):
    """A place with a virtual environment of its own, which the page fills, and with a server, where one can be."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, TO_RUN)
        self.no_server, self.no_node = no_server(), javascript.no_node()
        self.servers: list[psutil.Process] = []
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self._port: int = free.getsockname()[1]
        make_environment(folder / ".venv")

    def run(self, last: Block) -> None:
        """Run the blocks up to this one that were not run yet; skip the test of one that serves where nothing can."""
        super().run(last)
        if reason := self._reason_to_skip(last):
            pytest.skip(reason)

    def _reason_to_skip(self, block: Block) -> str:
        if block.kind == "js" or block.text.startswith("npm "):
            return self.no_node
        return self.no_server if block.section in SERVING else ""

    def run_block(self, block: Block) -> None:
        """Run one block in the page's own environment, and look after the server."""
        if self._reason_to_skip(block):
            return
        text = re.sub(rf"\b{PORT}\b", str(self._port), block.text)
        command = {"python": ["python", "-"], "js": ["node", PROGRAM]}.get(block.kind, ["bash", "-euo", "pipefail"])
        if block.kind == "js":
            (self.folder / PROGRAM).write_text(text, encoding="utf-8")
        environment = self.environment() | ({} if block.section in SERVING else {"PIP_NO_INDEX": "1"})
        status, out, err = self.execute(command, text, environment)
        self._find_servers()
        if status and block.section == SERVING[0] and (why := without_index(out + err)):
            self.no_server = f"pip finds no server: {why}"
            return
        if status and block.text.startswith("npm ") and (why := javascript.no_registry(out + err)):
            self.no_node = why
            return
        assert status == 0, f"{block.label}: status {status}\n{out}\n{err}\n{self._log()}"
        if block.kind != "sh" or block.shown is not None:
            check_printed(block, (out + err if block.kind == "sh" else out).splitlines())
        if block.section in SERVING:
            self._check_servers(block)

    def environment(self) -> dict[str, str]:
        """As in a shell in which the virtual environment is active. What the page serves with alone is downloaded."""
        environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
        return environment | {
            "VIRTUAL_ENV": str(self.folder / ".venv"),
            "PATH": os.pathsep.join([str(self.folder / ".venv" / "bin"), os.environ["PATH"]]),
            "LC_ALL": "C.UTF-8",
            "PIP_NO_BUILD_ISOLATION": "0",  # which means that there is none
            "PIP_NO_COMPILE": "1",
            "PIP_RETRIES": "1",
        }

    def _find_servers(self) -> None:
        """What a block started: its own process and those that it started."""
        file = self.folder / "demo" / "server.pid"
        if file.is_file() and not self.servers:
            server = psutil.Process(int(file.read_text()))
            self.servers = [server, *server.children(recursive=True)]

    def _check_servers(self, block: Block) -> None:
        """From the block that starts it to the one that ends it, a server listens for this machine alone."""
        if "kill" in block.text:
            assert self.servers and not self.running_servers(SECONDS_TO_STOP), self._log()
        elif self.servers:
            assert len(self.running_servers(0)) >= 3, "expected the script, the server and the model's process"
            assert listening(self.servers) == {("127.0.0.1", self._port)}

    def _log(self) -> str:
        log = self.folder / "demo" / "server.log"
        return log.read_text(encoding="utf-8", errors="replace") if log.is_file() else ""

    def running_servers(self, seconds: float) -> list[psutil.Process]:
        """Those that still run after so many seconds."""
        end = time.monotonic() + seconds
        while (running := [server for server in self.servers if runs(server)]) and time.monotonic() < end:
            time.sleep(0.1)
        return running


def no_server() -> str:
    """Why the server is not installed here; empty where it is."""
    if DOWNLOADS not in os.environ:
        return f"its server is large: `make test-serve` sets {DOWNLOADS}"
    if sys.platform != "linux" or platform.machine() not in ("x86_64", "aarch64"):
        return "nvidia-pytriton is for Linux"
    if sys.version_info >= (3, 13):
        return "nvidia-pytriton needs numpy 1, which has no wheel for this Python"
    return "" if shutil.which("curl") else "curl is not on the PATH"


def without_index(printed: str) -> str:
    """The line in which pip says that it reached no index, or none that has the packages."""
    lines = [line for line in printed.splitlines() if any(reason in line for reason in NO_INDEX)]
    return lines[-1] if lines else ""


def runs(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def listening(processes: list[psutil.Process]) -> set[tuple[str, int]]:
    """Addresses on which they wait for requests."""
    numbers = {process.pid for process in processes}
    connections = [each for each in psutil.net_connections("inet") if each.pid in numbers]
    return {(each.laddr.ip, each.laddr.port) for each in connections if each.status == psutil.CONN_LISTEN}


def make_environment(folder: Path) -> None:
    """A virtual environment that sees the packages of this one behind its own, as the Makefile's does."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True, timeout=120)
    pip = folder / "bin" / "pip"
    pip.write_text(f'#!/bin/sh\nexec "{folder}/bin/python" -m pip "$@"\n', encoding="utf-8")
    pip.chmod(0o755)
    (site,) = folder.glob("lib/python*/site-packages")
    borrowed = [path for path in sys.path if Path(path).name in ("site-packages", "dist-packages")]
    assert borrowed
    borrowed.reverse()  # where this one borrows too, its own setuptools is that of its Python: too old to build with
    (site / "borrowed.pth").write_text("\n".join(borrowed) + "\n", encoding="utf-8")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OnnxPlace]:
    if os.name == "nt" or shutil.which("bash") is None:
        pytest.skip("the page's commands are for bash")
    if find_spec("pip") is None:
        pytest.skip("pip is not installed")
    place = OnnxPlace(tmp_path_factory.mktemp("docs"))
    try:
        yield place
    finally:
        for process in place.running_servers(0)[:1]:  # the script, which ends the others
            process.terminate()
        for process in place.running_servers(SECONDS_TO_STOP):
            process.kill()
        shutil.rmtree(place.folder)  # the packages of a server are large


@pytest.mark.parametrize("block", TO_RUN, ids=lambda block: block.label)
def test_a_block_does_what_the_page_says(block: Block, place: OnnxPlace) -> None:
    place.run(block)


def test_the_package_that_the_page_installs_is_the_one_used(place: OnnxPlace) -> None:
    place.run(TO_RUN[0])
    command = [str(place.folder / ".venv" / "bin" / "python"), "-Ic", "import flashelmo; print(flashelmo.__file__)"]
    found = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
    assert Path(found.strip()).is_relative_to(place.folder / ".venv")


def test_every_section_is_run_and_what_is_not_is_marked() -> None:
    sections = re.findall(r"^## (.+)$", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert {block.section for block in TO_RUN} == set(sections) - {OPTIONS} > set(SERVING)
    not_run = [block.text for block in BLOCKS if block not in TO_RUN]
    assert len(not_run) == 2 and 'providers="cuda"' in not_run[0] and IMAGE in not_run[1]
    assert {block.kind for block in BLOCKS} <= set(RUN)
    assert all(block.shown for block in TO_RUN if block.kind != "sh")


def test_the_program_in_javascript_is_the_model_cards() -> None:
    (block,) = [block for block in TO_RUN if block.kind == "js"]
    program = bare_example("demo/elmo/onnx/model.onnx", metadata_of(load_model(bundled()), "fp32"), JAVASCRIPT)
    assert block.text.startswith(program) and f"As `{PROGRAM}`" in block.before


def test_the_options_that_the_page_explains_are_the_commands() -> None:
    table = PAGE.read_text(encoding="utf-8").partition(f"## {OPTIONS}")[2].partition("\n## ")[0]
    explained = set(re.findall(r"`(--[a-z-]+)", table))
    command = get_command(app).commands["export"]  # type: ignore[attr-defined]
    known = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
    assert {"--layers", "--mix", "--stateful", "--characters", "--precision", "--reduce-range"} <= explained <= known
