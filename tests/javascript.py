"""Programs in JavaScript: they are run by `make test-serve`, as the packages of npm that they import are large."""

import os
import re
import shutil
import subprocess
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

PAGE = Path(__file__).resolve().parent.parent / "docs" / "onnx.md"
DOWNLOADS = "FLASHELMO_SERVERS"  # a variable of the environment
NO_REGISTRY = ("code ENOTFOUND", "code EAI_AGAIN", "code ECONNREFUSED", "code ETIMEDOUT")
SECONDS = 300
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
IN_PAGE = """<!doctype html><pre></pre>
<script>console.log = (...line) => document.querySelector("pre").append(line.join(" ") + "\\n");</script>
<script type="module">{program}</script>"""


class Quiet(SimpleHTTPRequestHandler):
    """Serves a folder."""

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


def packages() -> list[str]:
    """The packages that docs/onnx.md names, with their versions."""
    return sorted(set(re.findall(r"onnxruntime-\w+@[\d.]+", PAGE.read_text(encoding="utf-8"))))


def no_node() -> str:
    """Why nothing is run here; empty where it is."""
    if DOWNLOADS not in os.environ:
        return f"npm's packages are large: `make test-serve` sets {DOWNLOADS}"
    missing = [name for name in ("node", "npm") if shutil.which(name) is None]
    return f"{missing[0]} is not on the PATH" if missing else ""


def no_registry(printed: str) -> str:
    """The line in which npm says that it reached no registry."""
    lines = [line for line in printed.splitlines() if any(reason in line for reason in NO_REGISTRY)]
    return f"npm finds no package: {lines[0]}" if lines else ""


def install(folder: Path) -> str:
    """Install the packages in a folder; why not, where there is no registry."""
    command = [str(shutil.which("npm")), "install", "--prefix", str(folder), "--ignore-scripts", *packages()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS)
    reason = no_registry(done.stderr) if done.returncode else ""
    assert done.returncode == 0 or reason, done.stderr
    return reason


def run(program: str, folder: Path, modules: Path) -> str:
    """Run a program in a folder with the packages in `modules`; what it prints."""
    (folder / "node_modules").symlink_to(modules / "node_modules")
    (folder / "program.mjs").write_text(program, encoding="utf-8")
    command = [str(shutil.which("node")), "program.mjs"]
    done = subprocess.run(command, cwd=folder, capture_output=True, encoding="utf-8", timeout=SECONDS)
    assert done.returncode == 0, done.stderr
    return done.stdout


def run_in_browser(program: str, folder: Path, modules: Path) -> str:
    """The same in a page of a server, where a package is a file; what it prints."""
    (folder / "node_modules").symlink_to(modules / "node_modules")
    (folder / "index.html").write_text(IN_PAGE.replace("{program}", program), encoding="utf-8")
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=folder)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        options = ["--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=60000", "--dump-dom"]
        command = [str(CHROMIUM), *options, f"http://127.0.0.1:{server.server_port}/index.html"]
        done = subprocess.run(command, capture_output=True, encoding="utf-8", timeout=SECONDS)
        server.shutdown()
    return done.stdout.partition("<pre>")[2].partition("</pre>")[0]
