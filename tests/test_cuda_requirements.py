"""Which runtime is chosen, and in one line what a machine lacks for the CUDA one."""

import ctypes
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

pytest.importorskip("triton")

from test_architecture import run_python, without
from tiny_models import MODELS

import flashelmo.kernels.lstm.layer  # noqa: F401 (imports Gluon, which it must before a test says that nothing is interpreted)
from flashelmo.engine import choice
from flashelmo.engine.choice import Choice, choose_runtime, has_cuda_card
from flashelmo.engine.cpu import lstm_c
from flashelmo.engine.cuda import requirements
from flashelmo.engine.cuda.requirements import check_precision, default_precision, find_device
from flashelmo.engine.embedder import ElmoEmbedder
from flashelmo.engine.errors import FlashElmoError
from flashelmo.engine.settings import RuntimeName, Settings

HAS_CUDA_CARD = has_cuda_card  # tests put another in its place
MODEL = MODELS["words alone"]
Machine = Callable[..., None]
REPAIRED = "triton.runtime.interpreter.InterpreterBuilder.repaired"


@pytest.fixture(autouse=True)
def nothing_said_yet() -> Iterator[None]:
    """What is said once, and what is found once, is forgotten before a test and after it."""

    def forget() -> None:
        choice._warn_once.cache_clear()
        HAS_CUDA_CARD.cache_clear()

    forget()
    yield
    forget()


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    """Makes this one look like another: cards of some capability, a PyTorch and a driver for them, a compiler."""

    def set_up(
        *capabilities: tuple[int, int],
        built: bool = True,
        error: Exception | None = None,
        current: int = 0,
        compiler: str | None = "gcc",
        interprets: bool = False,
    ) -> None:
        def init() -> None:
            if error is not None:
                raise error

        def of(device: Any = 0) -> int:
            return device if isinstance(device, int) else device.index

        monkeypatch.setenv("TRITON_INTERPRET", str(int(interprets)))
        monkeypatch.delenv("CC", raising=False)
        monkeypatch.setattr(torch.backends.cuda, "is_built", lambda: built)
        monkeypatch.setattr(torch.cuda, "init", init)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: len(capabilities))
        monkeypatch.setattr(torch.cuda, "current_device", lambda: current)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capabilities[of(device)])
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"Card {of(device)}")
        monkeypatch.setattr(requirements.shutil, "which", lambda name: compiler if name == compiler else None)
        monkeypatch.setattr(choice, "has_cuda_card", lambda: bool(capabilities))

    return set_up


def refuses(message: str, device: str = "cuda") -> None:
    with pytest.raises(FlashElmoError) as error:
        find_device(device)
    assert str(error.value) == message


def test_a_device_is_found_by_its_name(machine: Machine) -> None:
    machine((9, 0), (8, 0), current=1)
    assert find_device("cuda") == torch.device("cuda", 1)
    assert find_device("cuda:0") == torch.device("cuda", 0)
    for compiler in ("gcc", "clang"):
        machine((7, 5), compiler=compiler)
        assert find_device("cuda") == torch.device("cuda", 0)


def test_a_compiler_may_be_named_in_the_environment(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    machine((9, 0), compiler=None)
    refuses("device 'cuda': Triton needs a C compiler, found none; install gcc or set CC")
    monkeypatch.setenv("CC", "/opt/cc")
    assert find_device("cuda") == torch.device("cuda", 0)


def test_pytorch_without_cuda(machine: Machine) -> None:
    machine((9, 0), built=False)
    refuses(
        f"device 'cuda:0': expected a PyTorch with CUDA, found {torch.__version__}; https://pytorch.org has one",
        "cuda:0",
    )


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (
            RuntimeError("Found no NVIDIA driver on your system. Please check that you\nhave an NVIDIA GPU"),
            ": Found no NVIDIA driver on your system",
        ),
        (
            RuntimeError("The NVIDIA driver on your system is too old (found version\n 11040). Please update it"),
            ": The NVIDIA driver on your system is too old (found version 11040)",
        ),
        (AssertionError("Torch not compiled with CUDA enabled"), ": Torch not compiled with CUDA enabled"),
        (None, ""),  # a driver without cards, or none that is visible
    ],
    ids=str,
)
def test_no_card_that_cuda_can_use(machine: Machine, error: Exception | None, reason: str) -> None:
    machine(error=error)
    refuses(f"device 'cuda': expected a card that CUDA can use, found none{reason}")


def test_a_card_that_is_not_there(machine: Machine) -> None:
    machine((9, 0), (9, 0))
    refuses("device 'cuda:2': expected one of cuda:0 to cuda:1, found no such card", "cuda:2")


def test_a_card_that_is_too_old(machine: Machine) -> None:
    machine((9, 0), (7, 0))
    refuses("device 'cuda:1': expected compute capability 7.5 or more, found Card 1 with 7.0", "cuda:1")
    assert find_device("cuda:0") == torch.device("cuda", 0)


def test_no_headers_of_python(machine: Machine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    machine((9, 0))
    monkeypatch.setattr(requirements.sysconfig, "get_paths", lambda: {"include": str(tmp_path)})
    refuses(f"device 'cuda': Triton needs Python's headers, found no {tmp_path / 'Python.h'}; install python3-dev")


@pytest.mark.parametrize("version", ["3.3.0", "2.3.1", "3.5.9+git"])
def test_a_triton_that_is_too_old(machine: Machine, monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    """One that knows nothing of what the newer ones have."""
    machine((9, 0))
    monkeypatch.setattr(requirements, "triton", SimpleNamespace(__version__=version))
    refuses(f"device 'cuda': expected Triton 3.6 or newer, found {version}")


def test_the_interpreter_is_a_device_where_it_interprets(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    machine((9, 0), interprets=True)
    monkeypatch.setattr(REPAIRED, True, raising=False)  # on a card nobody has repaired it
    assert find_device("interpreter") == torch.device("cpu")
    refuses("device 'cuda': expected kernels on the card, found TRITON_INTERPRET set; unset it")
    machine((9, 0))
    refuses(
        "device 'interpreter': expected TRITON_INTERPRET=1 in the environment, found it unset", device="interpreter"
    )


@pytest.mark.parametrize(
    ("capability", "automatic", "lacking"),
    [((7, 5), "fp32", {"bf16", "fp16", "tf32", "int8"}), ((8, 0), "bf16", set()), ((12, 0), "bf16", set())],
)
def test_precisions_that_a_card_has(
    machine: Machine, capability: tuple[int, int], automatic: str, lacking: set[str]
) -> None:
    machine((9, 0), capability)
    device = torch.device("cuda", 1)
    assert default_precision(device) == automatic
    for precision in ("auto", "bf16", "fp16", "fp32", "tf32", "int8"):
        if precision not in lacking:
            check_precision(device, precision)
            continue
        with pytest.raises(FlashElmoError) as error:
            check_precision(device, precision)
        assert str(error.value) == (
            f"precision {precision!r}: expected a card of compute capability 8.0 or more, found Card 1 with "
            f"{capability[0]}.{capability[1]}; pass 'fp32'"
        )


def test_the_interpreter_has_every_precision() -> None:
    device = torch.device("cpu")
    assert default_precision(device) == "bf16"
    for precision in ("auto", "bf16", "fp16", "fp32", "tf32", "int8"):
        check_precision(device, precision)


@pytest.mark.parametrize(
    ("package", "device"), [("torch", "cuda"), ("torch", ["cuda:0", "cuda:1"]), ("triton", "cuda")], ids=str
)
def test_an_absent_package_names_the_extra(package: str, device: Any) -> None:
    model = "from flashelmo.engine.model.initialize import random_model\nmodel = random_model('small', 0)\n"
    code = (
        without(package) + "from flashelmo import ElmoEmbedder, MissingExtraError\n" + model + "try:\n"
        f"    ElmoEmbedder(model, device={device!r})\nexcept MissingExtraError as error:\n    print(error)"
    )
    assert run_python(code) == (
        f"device 'cuda' needs the package {package}, which is not installed: pip install 'flashelmo[gpu]'\n"
    )


def test_where_no_extra_brings_triton_none_is_named() -> None:
    code = (
        without("triton") + "import sys\nfrom flashelmo.engine.errors import FlashElmoError\nsys.platform = 'darwin'\n"
        "try:\n    import flashelmo.engine.cuda.requirements\nexcept ImportError as error:\n"
        "    assert isinstance(error, FlashElmoError)\n    print(error)"
    )
    assert run_python(code) == "device 'cuda': expected Linux, as Triton does, found darwin\n"


def test_auto_without_a_card_imports_neither_torch_nor_triton() -> None:
    code = (
        "import logging, sys\nlogging.basicConfig(level=logging.INFO, stream=sys.stdout, format='%(message)s')\n"
        "from flashelmo.engine import choice\nchoice.has_cuda_card = lambda: False\n"
        "from flashelmo import ElmoEmbedder\nfrom flashelmo.engine.model.initialize import random_model\n"
        "for _ in range(2):\n    embedder = ElmoEmbedder(random_model('small', 0), device='auto')\n"
        "print(embedder.device, embedder.precision, embedder.embed_sentence(['a']).shape)\n"
        "print(sorted({'torch', 'triton'} & set(sys.modules)))"
    )
    assert run_python(code).splitlines() == [
        "device 'auto': no CUDA device found, running on the CPU",
        *["small (random, seed 0): 13,593,312 parameters, cpu, fp32"] * 2,
        "cpu fp32 (3, 1, 256)",
        "[]",
    ]


def messages(caplog: pytest.LogCaptureFixture) -> list[tuple[str, str]]:
    return [(record.levelname, record.getMessage()) for record in caplog.records if record.name.startswith("flashelmo")]


def test_auto_is_the_card_where_there_is_one(machine: Machine, caplog: pytest.LogCaptureFixture) -> None:
    machine((9, 0))
    with caplog.at_level(logging.INFO, "flashelmo"):
        for precision in ("auto", "bf16", "fp16", "fp32", "tf32", "int8"):
            assert choose_runtime(Settings("auto", precision, "auto")) == Choice("cuda", precision, ("cuda",))
        assert choose_runtime(Settings("auto", "auto", "cuda")) == Choice("cuda", "auto", ("cuda",))
    assert messages(caplog) == []


@pytest.mark.parametrize("runtime", ["ort", "openvino", "reference"])
def test_a_runtime_of_the_processor_is_not_looked_for_on_the_card(
    machine: Machine, runtime: RuntimeName, caplog: pytest.LogCaptureFixture
) -> None:
    machine((9, 0))
    with caplog.at_level(logging.INFO, "flashelmo"):
        assert choose_runtime(Settings("auto", "auto", runtime)) == Choice(runtime, "fp32")
        assert choose_runtime(Settings("auto", "fp64", "auto")) == Choice("reference", "fp64")
    assert messages(caplog) == []


def test_auto_without_a_card_is_the_processor_which_is_said_once(
    machine: Machine, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine()
    with caplog.at_level(logging.INFO, "flashelmo"):
        monkeypatch.setattr(lstm_c, "why_not", lambda bits: "no 16 bits" if bits == 16 else "")
        chosen: list[tuple[Any, str]] = [("auto", "ort"), ("fp32", "ort"), ("int8", "avx512"), ("bf16", "openvino")]
        for precision, runtime in chosen:
            expected = Choice(runtime, "fp32" if precision == "auto" else precision)
            assert choose_runtime(Settings("auto", precision, "auto")) == expected
    assert messages(caplog) == [("WARNING", "device 'auto': no CUDA device found, running on the CPU")]


def test_nothing_is_said_of_a_card_where_nothing_for_one_is_installed(
    machine: Machine, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine()
    found = choice.find_spec
    monkeypatch.setattr(choice, "find_spec", lambda name: None if name == "triton" else found(name))
    with caplog.at_level(logging.INFO, "flashelmo"):
        assert choose_runtime(Settings("auto", "fp32", "auto")) == Choice("ort", "fp32")
    assert messages(caplog) == []


def test_of_what_the_processor_lacks_nothing_else_is_said(machine: Machine, caplog: pytest.LogCaptureFixture) -> None:
    machine()
    with pytest.raises(FlashElmoError, match=r"^precision 'fp16': expected one of fp32, bf16, int8, fp64 on the CPU$"):
        choose_runtime(Settings("auto", "fp16", "auto"))
    assert messages(caplog) == []


def test_an_interpreter_that_is_wrong_is_refused(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    machine((9, 0), interprets=True)
    monkeypatch.setattr(REPAIRED, False, raising=False)
    refuses(
        "device 'interpreter': expected Triton's interpreter as tests/interpreter.py repairs it, found its own",
        device="interpreter",
    )


def test_auto_with_a_card_that_cannot_be_used_warns_once(
    machine: Machine, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lstm_c, "why_not", lambda bits: "no 8 bits")
    machine((7, 0))
    for _ in range(2):
        assert choose_runtime(Settings("auto", "auto", "auto")) == Choice("ort", "fp32")
    machine((7, 5))
    assert choose_runtime(Settings("auto", "int8", "auto")) == Choice("ort", "int8")
    assert choose_runtime(Settings("auto", "auto", "auto")) == Choice("cuda", "auto", ("cuda",))
    machine((9, 0), compiler=None)
    assert choose_runtime(Settings("auto", "auto", "auto")) == Choice("ort", "fp32")
    prefix = "device 'auto': running on the CPU: "
    assert messages(caplog) == [
        ("WARNING", f"{prefix}device 'cuda': expected compute capability 7.5 or more, found Card 0 with 7.0"),
        (
            "WARNING",
            f"{prefix}precision 'int8': expected a card of compute capability 8.0 or more, found Card 0 with 7.5; "
            "pass 'fp32'",
        ),
        ("WARNING", f"{prefix}device 'cuda': Triton needs a C compiler, found none; install gcc or set CC"),
    ]


def test_auto_where_torch_is_absent_warns(machine: Machine, caplog: pytest.LogCaptureFixture) -> None:
    code = (
        without("torch")
        + "import logging\nlogging.basicConfig(stream=sys.stdout, format='%(levelname)s %(message)s')\n"
        "from flashelmo.engine import choice\nchoice.has_cuda_card = lambda: True\n"
        "print(choice.choose_runtime(choice.Settings()))"
    )
    assert run_python(code).splitlines() == [
        "WARNING device 'auto': running on the CPU: device 'cuda' needs the package torch, which is not installed: "
        "pip install 'flashelmo[gpu]'",
        "Choice(runtime='ort', precision='fp32', devices=('cpu',))",
    ]


@pytest.mark.parametrize("runtime", ["auto", "cuda"])
def test_cuda_never_falls_back(machine: Machine, runtime: Any, caplog: pytest.LogCaptureFixture) -> None:
    machine()
    for device in ("cuda", "cuda:1"):
        with pytest.raises(
            FlashElmoError, match=rf"^device '{device}': expected a card that CUDA can use, found none$"
        ):
            ElmoEmbedder(MODEL, device=device, runtime=runtime)
    machine((7, 5))
    with pytest.raises(FlashElmoError, match=r"^precision 'bf16': expected a card of compute capability 8\.0 or more"):
        ElmoEmbedder(MODEL, device="cuda", precision="bf16", runtime=runtime)
    assert messages(caplog) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("cpu", "auto", "cuda"), "runtime 'cuda': expected a CUDA device, found device 'cpu'"),
        (("cpu", "tf32", "auto"), "precision 'tf32': expected one of fp32, bf16, int8, fp64 on the CPU"),
        (("cuda", "fp64", "auto"), "precision 'fp64': expected one of fp32, bf16, fp16, tf32, int8 on a CUDA device"),
        (("cuda", "auto", "ort"), "runtime 'ort' runs on device 'cpu'; expected 'cuda' on cuda"),
        (
            (["cuda:0", "cuda:1"], "auto", "ort"),
            "runtime 'ort' runs on device 'cpu'; expected 'cuda' on cuda:0, cuda:1",
        ),
        (("cuda:", "auto", "auto"), "device: expected auto, cpu, cuda or cuda:N, found 'cuda:'"),
        (("cuda:-1", "auto", "auto"), "device: expected auto, cpu, cuda or cuda:N, found 'cuda:-1'"),
        ((["cuda:0", "gpu"], "auto", "auto"), "device: expected auto, cpu, cuda or cuda:N, found 'gpu'"),
        (
            ([0.5, 1], "auto", "auto"),
            "device: expected a name as 'cuda:0', a number, -1 for the CPU, or a torch.device, found 0.5",
        ),
        (([], "auto", "auto"), "device: expected one, or several CUDA devices, found []"),
        (
            (["cuda", "cuda:1"], "auto", "auto"),
            "device: each of several needs a number, as in 'cuda:0', found ['cuda', 'cuda:1']",
        ),
        ((["cuda", "cpu"], "auto", "auto"), "device: expected one, or several CUDA devices, found ['cuda', 'cpu']"),
        ((["auto", "cuda"], "auto", "auto"), "device: expected one, or several CUDA devices, found ['auto', 'cuda']"),
    ],
    ids=str,
)
def test_settings_that_do_not_go_together(arguments: tuple[Any, Any, Any], message: str) -> None:
    with pytest.raises(FlashElmoError) as error:
        choose_runtime(Settings(*arguments))
    assert str(error.value) == message


@pytest.mark.parametrize(
    ("device", "devices"),
    [
        ("cuda:3", ("cuda:3",)),
        (["cuda:0"], ("cuda:0",)),
        (("cuda:1", "cuda:0"), ("cuda:1", "cuda:0")),
        pytest.param(iter(["cuda"]), ("cuda",), id="an iterator"),
        ("interpreter", ("interpreter",)),
    ],
    ids=repr,
)
def test_devices_by_name_and_in_lists(device: Any, devices: tuple[str, ...]) -> None:
    assert choose_runtime(Settings(device, "fp32", "auto")) == Choice("cuda", "fp32", devices)
    assert choose_runtime(Settings(["cpu"], "auto", "auto")) == Choice("ort", "fp32")


def test_a_state_lies_on_one_device() -> None:
    with pytest.raises(FlashElmoError, match=r"^stateful: expected one device, found 2$"):
        ElmoEmbedder(MODEL, device=["cuda:0", "cuda:1"], stateful=True)


class Driver:
    """NVIDIA's driver, as far as it is asked."""

    def __init__(self, started: int = 0, counted: int = 0, n: int = 0) -> None:
        self._started, self._counted, self._n = started, counted, n

    def cuInit(self, flags: int) -> int:
        return self._started

    def cuDeviceGetCount(self, count: Any) -> int:
        count._obj.value = self._n
        return self._counted


@pytest.mark.parametrize(
    ("driver", "name", "found"),
    [
        (Driver(n=2), "libcuda.so.1", True),
        (Driver(n=1), "nvcuda.dll", True),
        (Driver(n=0), "libcuda.so.1", False),
        (Driver(started=100, n=1), "libcuda.so.1", False),
        (Driver(counted=3, n=1), "libcuda.so.1", False),
        (None, "", False),
    ],
)
def test_the_driver_says_whether_there_is_a_card(
    driver: Driver | None, name: str, found: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(wanted: str) -> Driver:
        if driver is None or wanted != name:
            raise OSError(f"{wanted}: cannot open shared object file")
        return driver

    fake = SimpleNamespace(CDLL=load, c_int=ctypes.c_int, byref=ctypes.byref)
    monkeypatch.setattr(choice, "ctypes", fake)
    assert has_cuda_card() == found
