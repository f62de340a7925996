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


def test_a_signal_is_handled_whatever_embedders_were_freed(tmp_path: Path) -> None:
    """In the order in which they were made, as a notebook does that loads a model again and again."""
    write_native(MODELS["skip"], tmp_path / "model")
    code = f"""
import faulthandler, gc, signal
from flashelmo.engine.embedder import ElmoEmbedder
faulthandler.enable()  # from then on the main thread has a stack for signals
def load():
    return ElmoEmbedder.load({str(tmp_path / "model")!r}, runtime="openvino", threads=1)
first = load()
second = load()
for embedder in (first, second):
    embedder.embed_sentence(["the", "cat"])
del embedder, first
gc.collect()
del second
gc.collect()
signal.signal(signal.SIGINT, lambda *_: print("interrupted"))
signal.raise_signal(signal.SIGINT)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (0, "interrupted\n"), done.stderr
