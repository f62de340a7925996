"""OpenVINO itself: what importing it does to the machine."""

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from tiny_models import MODELS

from flashelmo.engine.model.checkpoints.native import write_native

pytestmark = pytest.mark.skipif(not find_spec("openvino"), reason="OpenVINO is not installed")

# Prints what an import looks up in the network, opens to write, or makes in the file system.
WATCHED = """
import sys
WATCHED = ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "subprocess.Popen", "os.mkdir")
def watch(event, arguments):
    writes = event == "open" and isinstance(arguments[1], str) and set(arguments[1]) & set("wax+")
    if event in WATCHED or writes:
        print("did", event, arguments, flush=True)
sys.addaudithook(watch)
sys.dont_write_bytecode = True
import {module}
print("imported", "openvino" in sys.modules, "openvino_telemetry" in sys.modules)
"""


def importing(module: str, home: Path) -> str:
    """What is seen while a process of its own, outside any CI job, imports a module."""
    environment = {name: value for name, value in os.environ.items() if name not in ("CI", "TF_BUILD", "JENKINS_URL")}
    environment |= {"HOME": str(home), "LOCALAPPDATA": str(home)}
    command = [sys.executable, "-c", WATCHED.format(module=module)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_nothing_is_sent_or_written_when_openvino_is_imported(tmp_path: Path) -> None:
    assert importing("flashelmo.engine.cpu.openvino", tmp_path) == "imported True False\n"
    assert not list(tmp_path.iterdir())


# Embedders come and go, in the order in which they came; then a signal is handled.
SIGNALLED = """
import faulthandler, gc, signal, sys
from flashelmo import ElmoEmbedder
faulthandler.enable()  # as tests and servers do: signals are handled on a stack of their own
embedders = [ElmoEmbedder.load(sys.argv[1], runtime="openvino", threads=1) for _ in range(2)]
while embedders:
    embedders.pop(0).embed_sentence(["the", "cat"])
    gc.collect()
signal.signal(signal.SIGINT, lambda *arguments: print("handled"))
signal.raise_signal(signal.SIGINT)
"""


def test_signals_are_handled_after_embedders_are_gone(tmp_path: Path) -> None:
    write_native(MODELS["skip"], tmp_path / "model")
    command = [sys.executable, "-c", SIGNALLED, str(tmp_path / "model")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (0, "handled\n"), done.stderr
