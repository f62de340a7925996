"""Which way dependencies point, and what an import may cost: the rules that keep the package light."""

import ast
import re
import subprocess
import sys
from collections.abc import Collection, Mapping
from functools import cache
from importlib import import_module
from importlib.metadata import packages_distributions, requires
from importlib.util import find_spec
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from tiny_models import MODELS

from flashelmo.cli.terminal import as_options

FACE = "face"
# Part of the package -> parts it may import. The command line alone may also start the benchmarks.
ARROWS = {
    "kernels": {"kernels"},
    "engine": {"engine", "kernels"},
    "export": {"engine", "export"},
    FACE: {FACE, "engine", "export"},
    "benchmarks": {FACE, "benchmarks", "engine", "export", "kernels"},
}
KERNELS_MAY_IMPORT = {"torch", "triton"}
# Wing of the engine, a folder or a file at its top -> what it may import of the others and of the optional packages, on
# use too; all may import `arguments`, `arrays`, `errors` and `system`. Embedder, choice, runtimes, then what those
# share, down to the model.
SHARED = {"model", "output", "pipeline", "precision", "settings", "text"}
WINGS = {
    "embedder": {
        "allennlp",
        "choice",
        "embed_file",
        "model",
        "output",
        "pipeline",
        "sentence_transformers",
        "settings",
        "sinks",
        "text",
        "torch",
    },
    "allennlp": {"settings", "torch"},
    "sentence_transformers": {"output", "settings", "text"},
    "neighbours": {"embedder", "output", "text"},
    "embed_file": {"model", "output", "pipeline", "sinks", "text"},
    "bulk": {*SHARED, "choice", "embed_file", "embedder", "ray", "sinks"} - {"precision"},
    "choice": {
        "cpu",
        "cuda",
        "devices",
        "model",
        "pipeline",
        "precision",
        "reference",
        "settings",
        "text",
    },
    "devices": {"output", "pipeline", "text"},
    "cpu": {*SHARED, "graph", "onnxruntime", "openvino"},
    "cuda": {*SHARED, "kernels", "torch", "triton"},
    "reference": {*SHARED, "kernels", "torch", "training"},
    "training": {"kernels", "model", "text", "torch"},
    "pipeline": {"model", "output", "settings", "text", "torch"},
    "sinks": {"output"},
    "output": {"torch"},  # as tensors
    "graph": {"model", "precision"},
    "text": {"model", "torch"},  # `batch_to_ids` gives a tensor
    "model": {"torch"},  # reads the checkpoints that PyTorch wrote
    "settings": {"precision", "torch"},  # the type of a device
    "precision": set(),
    "system": {"torch"},  # what a caller set there, and its captures
    "arguments": set(),
    "arrays": set(),
    "errors": set(),
}
# Modules, and folders of them, that are built on an optional package and import it at their top; all others wait until
# it is used.
BUILT_ON = {
    "engine.reference": {"torch"},
    "engine.training": {"torch"},
    "engine.cuda.compute": {"torch"},
    "engine.cuda.executor": {"torch"},
    "engine.cuda.cuda_graphs": {"torch"},
    "engine.cuda.memory": {"torch"},
    "engine.cuda.pipeline": {"torch"},
    "engine.cuda.requirements": {"torch", "triton"},
    "engine.cuda.results": {"torch"},
    "engine.cuda.transfer": {"torch"},
    "engine.cuda.state": {"torch"},
    "engine.cuda.model": {"torch"},
    "engine.cpu.openvino": {"openvino"},
    "engine.cpu.ort": {"onnxruntime"},
    "engine.cpu.sessions": {"onnxruntime"},
    "export.open_session": {"onnxruntime"},
    "face.integrations.flair": {"torch"},
    "face.integrations.sentence_transformers": {"torch"},
    "face.client": {"httpx", "tenacity"},
    "face.serve": {"fastapi", "orjson", "prometheus_client", "pydantic", "starlette", "uvicorn"},
}
OPTIONAL = {"torch", "triton", "onnxruntime", "openvino", "ray", *BUILT_ON["face.client"], *BUILT_ON["face.serve"]}
OTHER_NAMES = {"sklearn": "scikit-learn"}  # of packages that may be absent: as they are imported, as installed
HEAVY = OPTIONAL | {"h5py", "numpy", "onnx", "pyarrow", "safetensors", "typer", "rich"}
IMPORT_SECONDS = 0.3


def package_folder(part: str) -> Path:
    """Where a part of the installed package lies: in the checkout, or in site-packages."""
    spec = find_spec("flashelmo" if part == FACE else f"flashelmo.{part}")
    assert spec is not None and spec.origin is not None
    return Path(spec.origin).parent


@cache
def modules(part: str) -> list[tuple[str, ast.Module]]:
    """Dotted name (without `flashelmo.`) and syntax tree of every module of one part."""
    folder, found = package_folder(part), []
    wings = ("*.py", "cli/*.py", "integrations/*.py", "serve/*.py")
    paths = [path for wing in wings for path in folder.glob(wing)] if part == FACE else folder.rglob("*.py")
    for path in sorted(paths):
        name = ".".join((part, *path.relative_to(folder).with_suffix("").parts)).removesuffix(".__init__")
        found.append((name, ast.parse(path.read_text(encoding="utf-8"), filename=str(path))))
    return found


def imports(tree: ast.AST) -> set[str]:
    """Dotted names of what is imported anywhere in it, in functions and under TYPE_CHECKING too."""
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def imports_when_imported(tree: ast.AST) -> set[str]:
    """As `imports`, without those in functions and under TYPE_CHECKING."""
    names: set[str] = set()
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names |= imports(ast.Module([node], []))
        elif isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            continue
        elif not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            names |= imports_when_imported(node)
    return names


def part_of(name: str) -> str | None:
    """The part of flashelmo that an imported name belongs to; None for other packages."""
    package, _, rest = name.partition(".")
    if package != "flashelmo":
        return None
    part = rest.partition(".")[0]
    return part if part in ARROWS else FACE


def wing_of(name: str) -> str | None:
    """What WINGS calls an imported module: a wing, kernels, or an optional package; None for all else."""
    first, *rest = name.split(".")
    if first in OPTIONAL:
        return first
    if first != "flashelmo":
        return None
    return rest[1] if rest[0] == "engine" else rest[0]


def module_of(name: str, known: Collection[str]) -> str | None:
    """The module, as `modules` names it, that an imported name is or stands in; None for other packages."""
    part = part_of(name)
    if part is None:
        return None
    module = ".".join(([FACE] if part == FACE else []) + name.split(".")[1:])
    while module not in known:
        module = module.rpartition(".")[0]
    return module


def circle(edges: Mapping[str, set[str]]) -> list[str]:
    """Names that lead to each other, the first again at the end; nothing where there is no circle."""
    done: set[str] = set()

    def walk(path: tuple[str, ...]) -> list[str]:
        *before, name = path
        if name in before:
            return [*path[before.index(name) :]]
        if name not in done:
            for target in sorted(edges.get(name, ())):
                if found := walk((*path, target)):
                    return found
            done.add(name)
        return []

    return next((found for name in sorted(edges) if (found := walk((name,)))), [])


def top_level(names: set[str]) -> set[str]:
    return {name.partition(".")[0] for name in names}


def run_python(code: str) -> str:
    """Standard output of a fresh interpreter."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def without(*packages: str) -> str:
    """Code that makes the import of these packages fail as if they were not installed."""
    return (
        "import sys\n"
        "class Absent:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        f"        if name.partition('.')[0] in {packages!r}:\n"
        "            raise ModuleNotFoundError(f'No module named {name!r}', name=name)\n"
        "sys.meta_path.insert(0, Absent())\n"
    )


@pytest.mark.parametrize("part", ARROWS)
def test_imports_follow_the_arrows(part: str) -> None:
    for name, tree in modules(part):
        allowed = ARROWS[part] | ({"benchmarks"} if name == "face.cli.bench" else set())
        found = {target for imported in imports(tree) if (target := part_of(imported))}
        assert found <= allowed, f"{name} imports {sorted(found - allowed)}"


@pytest.mark.parametrize("wing", WINGS)
def test_wings_of_the_engine_follow_the_arrows(wing: str) -> None:
    found = {name: tree for name, tree in modules("engine") if f"{name}.".startswith(f"engine.{wing}.")}
    assert found, f"engine has no {wing}"
    for name, tree in found.items():
        targets = {target for imported in imports(tree) if (target := wing_of(imported))}
        assert targets <= WINGS[wing] | {wing, "arguments", "arrays", "errors", "system"}, (
            f"{name} imports {sorted(targets - WINGS[wing] - {wing})}"
        )


def test_the_engine_waits_for_plain_locks_alone() -> None:
    """Ctrl-C inside what is written in Python on top of them may leave a lock held for ever: see `threads.py`."""
    unsafe = r"concurrent\.futures|threading\.(Event|Condition|Semaphore|Barrier|Timer)|import .*\bQueue\b"
    for name, tree in modules("engine"):
        assert not re.findall(unsafe, ast.unparse(tree)), name


def test_the_engine_names_arguments_and_the_command_its_options() -> None:
    """A caller of Python's functions is told what they take; `as_options` knows all of it."""
    for name, tree in modules("engine"):
        texts = (
            node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)
        )
        for text in (text for text in texts if "\n" not in text):  # most docstrings have a second line
            assert not re.search(r"(?<![\w-])--[a-z]", text), f"{name}: {text}"
            assert not re.search(r'\b[a-z_]+=(True|"\w+")', as_options(text)), f"{name}: {text}"


MAKE_TENSORS = ("tensor", "zeros", "ones", "empty", "full", "arange", "eye", "linspace", "rand", "randn", "randint")


@pytest.mark.parametrize("part", ["engine", "kernels", "export", FACE])
def test_tensors_are_made_on_a_device_that_is_named(part: str) -> None:
    """A program may call `torch.set_default_device`, and what is made without a device then lies there."""
    for name, tree in modules(part):
        for call in ast.walk(tree):
            if isinstance(call, ast.Call) and ast.unparse(call.func) in {f"torch.{each}" for each in MAKE_TENSORS}:
                assert "device" in {each.arg for each in call.keywords}, f"{name}, line {call.lineno}"


def test_every_file_of_the_engine_belongs_to_a_wing() -> None:
    assert {name.split(".")[1] for name, _ in modules("engine") if name != "engine"} == set(WINGS)
    assert circle({wing: set(targets) for wing, targets in WINGS.items()}) == []


def test_no_files_import_each_other_in_a_circle() -> None:
    """Imports in functions and for type checkers count: files in a circle can only be read together."""
    trees = dict(found for part in ARROWS for found in modules(part))
    edges = {
        name: {module for imported in imports(tree) if (module := module_of(imported, trees))}
        for name, tree in trees.items()
    }
    assert sum(map(len, edges.values())) > 2 * len(edges)
    found = circle(edges)
    assert not found, f"these import each other: {' -> '.join(found)}"


def test_a_circle_is_found() -> None:
    assert circle({"a": {"b", "c"}, "b": {"d"}, "c": {"d"}, "d": set()}) == []
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"d", "b"}, "d": set()}) == ["b", "c", "b"]
    assert circle({"a": {"a"}}) == ["a", "a"]


def test_kernels_import_torch_and_triton_alone() -> None:
    for name, tree in modules("kernels"):
        outside = top_level(imports(tree)) - {"flashelmo"} - set(sys.stdlib_module_names)
        assert outside <= KERNELS_MAY_IMPORT, f"{name} imports {sorted(outside)}"


def test_the_kernels_tests_are_skipped_without_triton(root: Path) -> None:
    """Which is for Linux alone: a file that cannot be imported would keep all others from running."""
    files = sorted((root / "tests").glob("test_kernel_*.py"))
    assert files and [path.name for path in files if 'importorskip("triton")' not in path.read_text("utf-8")] == []


@pytest.mark.parametrize("part", ["engine", "export", FACE])
def test_optional_packages_are_imported_on_use(part: str) -> None:
    for name, tree in modules(part):
        found = top_level(imports_when_imported(tree)) & OPTIONAL
        allowed = {each for path, names in BUILT_ON.items() if f"{name}.".startswith(f"{path}.") for each in names}
        assert found <= allowed, f"{name} imports {sorted(found - allowed)} as soon as it is imported"


@pytest.mark.parametrize("part", ARROWS)
def test_every_imported_package_is_declared(part: str) -> None:
    declared = {canonicalize_name(Requirement(line).name) for line in requires("flashelmo") or []}
    distributions = packages_distributions()
    for name, tree in modules(part):
        for package in top_level(imports(tree)) - {"flashelmo"} - set(sys.stdlib_module_names):
            known = distributions.get(package) or [OTHER_NAMES.get(package, package)]
            providers = {canonicalize_name(provider) for provider in known}
            assert providers & declared, f"{name} imports {package}, which setup.py does not mention"


def test_the_parsing_sees_every_way_to_import() -> None:
    tree = ast.parse(
        "import torch.nn as nn\n"
        "from flashelmo.engine.model import config\n"
        "if TYPE_CHECKING:\n    import onnxruntime\n"
        "try:\n    import h5py\nexcept ImportError:\n    pass\n"
        "def f():\n    from triton import language\n"
        "class C:\n    import openvino\n"
    )
    eager = {"torch.nn", "flashelmo.engine.model.config", "h5py", "openvino"}
    assert imports_when_imported(tree) == eager
    assert imports(tree) == eager | {"onnxruntime", "triton.language"}
    assert {name: part_of(name) for name in ("flashelmo.engine.model.config", "flashelmo.cli", "torch.nn")} == {
        "flashelmo.engine.model.config": "engine",
        "flashelmo.cli": FACE,
        "torch.nn": None,
    }
    wings = {"flashelmo.engine.cpu.ort.Runtime": "cpu", "flashelmo.kernels.linear": "kernels", "torch.nn": "torch"}
    assert {name: wing_of(name) for name in [*wings, "numpy.ndarray"]} == {**wings, "numpy.ndarray": None}
    known = {FACE, "face.cli", "engine", "engine.choice"}
    places = {"flashelmo.cli.main": "face.cli", "flashelmo.engine.choice.Choice": "engine.choice", "flashelmo.x": FACE}
    assert {name: module_of(name, known) for name in [*places, "numpy"]} == {**places, "numpy": None}


def test_import_loads_nothing_heavy() -> None:
    loaded = run_python("import sys, flashelmo; print(*sys.modules)").split()
    assert "flashelmo" in loaded
    assert top_level(set(loaded)) & HEAVY == set()
    names = {"flashelmo.engine", "flashelmo.engine.system", "flashelmo.engine.system.names"}  # what looks names up
    assert {name for name in loaded if name.startswith("flashelmo.")} == names


def test_import_is_fast() -> None:
    """Of the processor's time, the best of several: what else the machine does only ever adds."""
    code = "import time\nstart = time.process_time()\nimport flashelmo\nprint(time.process_time() - start)"
    assert min(float(run_python(code)) for _ in range(3)) < IMPORT_SECONDS


def test_mapped_folders_are_no_top_level_packages() -> None:
    # A fresh interpreter in another folder: `kernels` belongs to another package on the index.
    code = (
        "import os, tempfile; os.chdir(tempfile.gettempdir())\nfrom importlib.util import find_spec\nimport flashelmo\n"
    )
    names = [part for part in ARROWS if part != FACE]
    code += f"for name in {names}:\n    spec = find_spec(name)\n    print(spec and spec.origin)"
    origins = set(run_python(code).split())
    ours = {str(package_folder(part) / "__init__.py") for part in names}
    assert origins & ours == set()


def test_public_names_resolve() -> None:
    import flashelmo

    for name in flashelmo.__all__:
        assert getattr(flashelmo, name) is not None
    assert set(flashelmo.__all__) <= set(dir(flashelmo))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        flashelmo.nothing  # type: ignore[attr-defined]  # noqa: B018


def test_type_checkers_see_the_names_that_python_looks_up() -> None:
    import flashelmo

    tree = dict(modules(FACE))[FACE]
    typed = {name for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) for name in imports(node)}
    looked_up = {f"{module}.{name}" for name, module in flashelmo._HOMES.items()}
    looked_up.add("flashelmo.engine.system.names.on_first_use")
    assert {name for name in typed if name.startswith("flashelmo.")} == looked_up
    listed = [node.value for node in ast.walk(tree) if isinstance(node, ast.Assign) and "__all__" in ast.unparse(node)]
    assert set(flashelmo._HOMES) | {"__version__"} == set(flashelmo.__all__) == set(ast.literal_eval(listed[0]))


@pytest.mark.parametrize("module", ["flashelmo", "flashelmo.export"])
def test_names_that_need_an_extra_are_known(module: str) -> None:
    trees = dict(found for part in ARROWS for found in modules(part))
    public = import_module(module)
    for name, home in public._HOMES.items():
        found, ahead = set[str](), {home}
        while ahead - found:
            found |= (names := ahead - found)
            known = {each for each in (module_of(name, trees) for name in names) if each}
            ahead = set().union(*(imports_when_imported(trees[each]) for each in known))
        assert set(public._NEEDS.get(name, ())) == top_level(found) & (OPTIONAL | {"onnx"}), name


@pytest.mark.parametrize("module", ["flashelmo", "flashelmo.export"])
def test_names_are_listed_where_their_extra_is_there(module: str) -> None:
    """`help` and `import *` read all that are."""
    absent = "import sys; sys.modules |= dict.fromkeys(['httpx', 'torch', 'onnx', 'onnxruntime'])\n"
    code = f"{absent}import pydoc, {module} as m\nprint(pydoc.plain(pydoc.render_doc(m)))\nfrom {module} import *"
    shown = run_python(code)
    assert ("class ElmoEmbedder(" if module == "flashelmo" else "class Report(") in shown


@pytest.mark.parametrize(
    ("module", "package", "extra"),
    [
        ("engine.cpu.ort", "onnxruntime", "cpu"),
        ("engine.cpu.openvino", "openvino", "openvino"),
        ("engine.cpu.ort", "onnx", "cpu"),
        ("export.write", "onnx", "cpu"),
        ("export.verification.verify", "onnx", "cpu"),
        ("engine.reference.reference", "torch", "torch"),
        ("engine.reference.elmo", "torch", "torch"),
        ("client", "httpx", "client"),
        ("client", "tenacity", "client"),
        ("serve.app", "fastapi", "serve"),
        ("serve.limits", "uvicorn", "serve"),
    ],
)
def test_a_missing_extra_is_named(module: str, package: str, extra: str) -> None:
    code = (
        without(package) + "from flashelmo import FlashElmoError, MissingExtraError\n"
        f"try:\n    import flashelmo.{module}\n"
        "except MissingExtraError as error:\n    assert isinstance(error, FlashElmoError)\n    print(error)"
    )
    message = run_python(code)
    assert f"needs the package {package}, which is not installed: pip install 'flashelmo[{extra}]'\n" in message


def test_a_package_that_fails_is_not_taken_for_a_missing_one(tmp_path: Path) -> None:
    (tmp_path / "onnxruntime.py").write_text("raise ImportError('numpy 1.x is needed\\nmore of it')")
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r})\nfrom flashelmo import ElmoEmbedder, MissingExtraError\n"
        "try:\n    ElmoEmbedder.load(device='cpu')\nexcept MissingExtraError as error:\n    print(error)"
    )
    assert run_python(code).endswith("needs the package onnxruntime, which cannot be imported: numpy 1.x is needed\n")


@pytest.fixture
def model_folder(tmp_path: Path) -> Path:
    from flashelmo.engine.model.checkpoints.native import write_native

    write_native(MODELS["skip"], tmp_path / "model")
    return tmp_path / "model"


def test_embedding_needs_neither_torch_nor_openvino(model_folder: Path) -> None:
    embed = (
        "import sys, flashelmo\n"
        f"vectors = flashelmo.ElmoEmbedder.load({str(model_folder)!r}, runtime='ort').embed_sentence(['the', 'cat'])\n"
        "print(vectors.shape, vectors.tobytes().hex(), sorted({'torch', 'triton', 'openvino'} & set(sys.modules)))"
    )
    absent = run_python(without("torch", "triton", "openvino") + embed)
    assert absent == run_python(embed)
    assert absent.startswith("(3, 2, 8) ") and absent.endswith(" []\n")


@pytest.mark.parametrize(("runtime", "extra"), [("ort", "cpu"), ("openvino", "openvino"), ("reference", "torch")])
def test_the_embedder_names_the_extra_that_it_lacks(model_folder: Path, runtime: str, extra: str) -> None:
    code = (
        without("torch", "triton", "openvino", "onnxruntime")
        + "from flashelmo import ElmoEmbedder, MissingExtraError\n"
        f"try:\n    ElmoEmbedder.load({str(model_folder)!r}, runtime={runtime!r})\n"
        "except MissingExtraError as error:\n    print(error)"
    )
    assert f"flashelmo[{extra}]" in run_python(code)
