"""Fixtures that every test file may use."""

import os
import signal
import sys
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

from flashelmo.cli import main
from flashelmo.engine import choice
from flashelmo.engine.cpu import pipeline
from flashelmo.engine.cpu.pipeline import make_runtime
from flashelmo.engine.cpu.runtime import Runtime
from flashelmo.engine.model.checkpoints.native import write_native
from flashelmo.engine.model.weights import ElmoModel
from flashelmo.engine.system.processor import n_cores

N_PROCESSES = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", 1))
# With pytest-xdist, whichever process is free takes the next file. These come first, so that none is left at the end:
# they install packages, compile every kernel, or run whole programs.
LONG = (
    "test_docs_onnx",
    "test_kernel_resources",
    "test_docs",
    "test_onnx_fresh",
    "test_benchmarks",
    "test_fuzz",
    "test_kernel_ptx",
    "test_training",
)

# Begins of the names of files whose tests run on a card where there is one, and files that look at none all the same.
CARD, NO_CARD = ("test_cuda_", "test_kernel_"), ("test_cuda_requirements", "test_kernel_resources", "test_kernel_ptx")

if N_PROCESSES > 1:  # threads of several processes on one core would wait for each other: read when PyTorch is imported
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, n_cores() // N_PROCESSES)))
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # what a shell starts in the background ignores it
    signal.signal(signal.SIGINT, signal.default_int_handler)
# A test takes as long as the machine leaves it.
settings.register_profile("any machine", deadline=None)
settings.load_profile("any machine")

if find_spec("triton"):  # kernels run on the card where there is one, otherwise in Triton's interpreter
    import torch

    if not torch.cuda.is_available():
        os.environ["TRITON_INTERPRET"] = "1"  # read when a kernel's module is imported
        from interpreter import repair

        repair()

ROOT = Path(__file__).resolve().parent.parent


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """With `-m card` no other file is imported: what it needs may be missing where the card is, and it takes time."""
    is_other = collection_path.suffix == ".py" and not collection_path.name.startswith(CARD)
    return True if is_other and config.option.markexpr == "card" else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long files first, the others in their order; those for a card are marked."""
    for item in items:
        if item.path.stem.startswith(CARD) and item.path.stem not in NO_CARD:
            item.add_marker("card")
    if N_PROCESSES > 1:
        items.sort(key=lambda item: LONG.index(item.path.stem) if item.path.stem in LONG else len(LONG))


@pytest.fixture(autouse=True)
def _automatic_device_is_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a machine with a card too: tests of the CUDA runtime name their device. It is said once, before any test."""
    monkeypatch.setattr(choice, "has_cuda_card", lambda: False)
    choice._warn_once("device 'auto': no CUDA device found, running on the CPU")


@pytest.fixture(autouse=True)
def _no_sizes_of_another_test() -> None:
    """What is kept of sentences depends on constants that tests change."""
    layout = sys.modules.get("flashelmo.engine.cuda.layout")
    if layout is not None:
        layout._of_sentence.cache_clear()
        layout._with_words.cache_clear()
        layout._filled.clear()


@pytest.fixture
def little_padding(monkeypatch: pytest.MonkeyPatch) -> None:
    """Buckets of few tokens, as the interpreter computes their padding too."""
    monkeypatch.setattr("flashelmo.engine.cuda.layout.LEAST_NODES", 8)


@pytest.fixture(scope="session")
def root() -> Path:
    """The checkout that the tests lie in; the package under test may be installed elsewhere."""
    return ROOT


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of golden data and texts beside the checkout."""
    folder = ROOT.parent / "shared"
    if not (folder / "data").is_dir():
        pytest.skip(f"no golden data: {folder / 'data'} is not here")
    return folder


@pytest.fixture(scope="session")
def golden(shared: Path) -> Path:
    """Small models with the outputs that the published implementations computed."""
    return shared / "data" / "golden"


@pytest.fixture(scope="session")
def text() -> list[list[str]]:
    """Real sentences, as tokens: Genesis 1-4, which comes with the project."""
    lines = (ROOT / "examples" / "genesis.txt").read_text(encoding="utf-8").splitlines()
    return [line.split() for line in lines]


@pytest.fixture
def text_file(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """The TEXT of the test's module, in a file."""
    path = tmp_path / "text.txt"
    path.write_text(request.module.TEXT, encoding="utf-8")
    return path


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder, which is the one that commands run in."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny model."""
    from tiny_models import MODELS

    folder = tmp_path_factory.mktemp("models") / "tiny"
    write_native(MODELS["skip"], folder)
    return folder


@pytest.fixture(scope="module")
def runtimes() -> dict[Any, Runtime]:
    """The processor's, by what they are made for."""
    return {}


@pytest.fixture
def kept_runtimes(runtimes: dict[Any, Runtime], monkeypatch: pytest.MonkeyPatch) -> None:
    """Embedders of the same model share one: it holds no state, and takes most of a test's time to make."""

    def keep(model: ElmoModel, *settings: Any) -> Runtime:
        key = model.config, model.sha256, *settings
        if key not in runtimes:
            runtimes[key] = make_runtime(model, *settings)
        return runtimes[key]

    monkeypatch.setattr(pipeline, "make_runtime", keep)


@pytest.fixture(scope="module")
def server(model: Path) -> Iterator[Any]:
    """`flashelmo serve` with that model."""
    from serving import served

    with served(model) as server:
        yield server


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """PyTorch computes on one: products of tiny models take longer on several."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def device() -> str:
    """Where the kernels' tensors lie: the card, or the host's memory for Triton's interpreter."""
    return "cpu" if os.environ.get("TRITON_INTERPRET") else "cuda"


@pytest.fixture
def succeed(capfd: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Run a command that must succeed; what it says."""

    def run(*arguments: object) -> str:
        status = main([str(argument) for argument in arguments])
        captured = capfd.readouterr()
        assert status == 0, captured.err
        return captured.out + captured.err

    return run
