"""How many places an idea has: `python tests/structure.py [CHECKOUT] [--against OTHER_CHECKOUT]` prints a table.

Every number is measured on the checkout's files, whatever their names, so that any two can stand beside each other:

- Files without a line, as most `__init__.py` are, don't count. Most imports of a test of the benchmarks are theirs.
- A function's lines include its signature and docstring, not its decorators; its arguments leave out `self` and `cls`.
  Kernels are functions under `@triton.jit`; all others in `kernels/` are launchers.
- A sentence passes through a file that runs a function while the model is loaded or three words are embedded for the
  first time, in any thread, on the CPU and in Triton's interpreter (`trace_sentence.py`).
- A precision is listed where a dict (by its keys), list, tuple, set or type names two or more. It is bounded where it,
  or the number type of an array, is a dict's key whose value holds a number below 1, or an argument of a call that has
  such a number as a keyword.
- A variant of the LSTM is named by an identifier, an import, or a string of up to three words. Where a file names two
  or more, a new one has to be entered.
- Imports count wherever they stand, in functions and under TYPE_CHECKING too. A file's level is one more than the
  highest that it imports.
"""

import argparse
import ast
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from statistics import median

from tiny_models import MODELS

from flashelmo.engine.model.checkpoints.native import write_native

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("engine", "kernels", "export", "src", "benchmarks", "tests")
BENCHMARK_TESTS = "tests of benchmarks"
PRECISIONS = {"fp64", "fp32", "tf32", "bf16", "fp16", "int8"}
NUMBER_TYPES = {"float64", "float32", "float16", "bfloat16"}
VARIANTS = ("fused", "hoisted", "specialized")
Files = Mapping[str, ast.Module]
Function = ast.FunctionDef | ast.AsyncFunctionDef


def read(checkout: Path) -> dict[str, ast.Module]:
    """Every file with code, by its path in the checkout."""
    paths = [path for folder in FOLDERS for path in sorted((checkout / folder).rglob("*.py"))]
    texts = {path.relative_to(checkout).as_posix(): path.read_text(encoding="utf-8") for path in paths}
    return {name: ast.parse(text) for name, text in texts.items() if text}


def folder_of(name: str, tree: ast.Module) -> str:
    """The folder that a file counts to."""
    folder = name.partition("/")[0]
    targets = [target for target in imports(tree) if target.startswith("flashelmo.")]
    of_benchmarks = sum(target.startswith("flashelmo.benchmarks") for target in targets)
    return BENCHMARK_TESTS if folder == "tests" and 2 * of_benchmarks > len(targets) else folder


# ------------------------------------------------------------------------------------------------- files and functions


def spread(values: Sequence[int], share: float = 0.95) -> str:
    """Median / the value that a share of them does not pass."""
    if not values:
        return "–"
    return f"{median(values):g} / {sorted(values)[min(int(share * len(values)), len(values) - 1)]}"


def functions(tree: ast.AST) -> Iterator[Function]:
    yield from (node for node in ast.walk(tree) if isinstance(node, Function))


def is_kernel(function: Function) -> bool:
    return any(re.search(r"\bjit\b", ast.unparse(decorator)) for decorator in function.decorator_list)


def n_lines(function: Function) -> int:
    return (function.end_lineno or 0) - function.lineno + 1


def n_arguments(function: Function) -> int:
    given = function.args
    named = [each.arg for each in (*given.posonlyargs, *given.args, *given.kwonlyargs)]
    return len([name for name in named if name not in ("self", "cls")]) + bool(given.vararg) + bool(given.kwarg)


def sizes(checkout: Path, files: Files) -> Iterator[tuple[str, str]]:
    """Rows on files and functions by folder."""
    folders: dict[str, list[str]] = {folder: [] for folder in (*FOLDERS, BENCHMARK_TESTS)}
    for name, tree in files.items():
        folders[folder_of(name, tree)].append(name)
    lines = {name: len((checkout / name).read_text(encoding="utf-8").splitlines()) for name in files}
    for folder, names in folders.items():
        yield f"{folder}: files, lines", f"{len(names)}, {sum(lines[name] for name in names):,}"
    yield "all: files, lines", f"{len(files)}, {sum(lines.values()):,}"
    for folder, names in folders.items():
        yield f"{folder}: lines of a file, median / largest", spread([lines[name] for name in names], 1)
    found = {folder: [each for name in names for each in functions(files[name])] for folder, names in folders.items()}
    found["kernels, launchers"] = [each for each in found["kernels"] if not is_kernel(each)]
    found["kernels, under triton.jit"] = [each for each in found.pop("kernels") if is_kernel(each)]
    for folder, each in found.items():
        yield f"{folder}: lines of a function, median / 95%", spread([n_lines(function) for function in each])
    for folder, each in found.items():
        yield f"{folder}: arguments of a function, median / 95%", spread([n_arguments(function) for function in each])


# -------------------------------------------------------------------------------------------------- a sentence's files


def trace(checkout: Path, model: Path, device: str) -> dict[str, list[str]]:
    """What `trace_sentence.py` finds, in a process of its own."""
    command = [sys.executable, str(Path(__file__).with_name("trace_sentence.py")), str(checkout), str(model), device]
    done = subprocess.run(command, capture_output=True, text=True, cwd=model)
    if done.returncode:
        raise RuntimeError(f"{checkout}, device {device}: {done.stderr}")
    files: dict[str, list[str]] = json.loads(done.stdout)
    return files


def passed_through(checkout: Path, model: Path) -> Iterator[tuple[str, str]]:
    """Rows on the files that a sentence passes through."""
    places = {"the CPU": "cpu"} | ({"CUDA": "interpreter"} if find_spec("triton") else {})
    for place, device in places.items():
        files = trace(checkout, model, device)
        yield f"files that a sentence passes through on {place}", str(len({*files["load"], *files["first"]}))
        counts = f"{len(files['load'])} / {len(files['first'])} / {len(files['again'])}"
        yield f"... to load / to embed / once its words are known, {place}", counts


# ---------------------------------------------------------------------------------------------------- places of an idea


def constants(node: ast.AST | None) -> set[object]:
    """Values that are written in an expression."""
    return {each.value for each in ast.walk(node) if isinstance(each, ast.Constant)} if node else set()


def has_bound(node: ast.AST) -> bool:
    return any(isinstance(value, float) and 0 < value < 1 for value in constants(node))


def lists_precisions(node: ast.AST) -> bool:
    """Whether it names two or more itself; see the module's docstring."""
    listed: Sequence[ast.expr | None] = ()
    if isinstance(node, ast.Dict):
        listed = [part for key in node.keys for part in (key.elts if isinstance(key, ast.Tuple) else [key])]
    elif isinstance(node, ast.Tuple | ast.List | ast.Set):
        listed = node.elts
    return len({each.value for each in listed if isinstance(each, ast.Constant)} & PRECISIONS) > 1


def bounds_precision(node: ast.AST) -> bool:
    """Whether it binds a number to a precision's name; see the module's docstring."""
    if isinstance(node, ast.Call):
        named = {each.value for each in node.args if isinstance(each, ast.Constant)} & PRECISIONS
        keywords = (each.value for part in node.keywords for each in ast.walk(part) if isinstance(each, ast.keyword))
        return bool(named) and any(has_bound(value) for value in keywords)
    if isinstance(node, ast.Dict):
        for key, value in zip(node.keys, node.values, strict=True):
            parts = list(ast.walk(key)) if key else []
            types = {each.attr for each in parts if isinstance(each, ast.Attribute)} & NUMBER_TYPES
            if (types or constants(key) & PRECISIONS) and has_bound(value):
                return True
    return False


@cache
def words(text: str) -> tuple[str, ...]:
    """Of an identifier or a text, in lower case."""
    return tuple(re.findall(r"[a-z]+", re.sub(r"([A-Z])", r" \1", text).lower()))


def variants(tree: ast.Module) -> set[str]:
    """The LSTM's variants that a file names in its code."""
    documented = [node for node in ast.walk(tree) if isinstance(node, ast.Module | ast.ClassDef | Function)]
    ignored = {id(node.body[0].value) for node in documented if node.body and isinstance(node.body[0], ast.Expr)}
    named: list[str] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and len(words(node.value)) <= 3:
            named += [node.value] if id(node) not in ignored else []
        elif id(node) not in ignored:
            fields = (getattr(node, field, None) for field in ("id", "attr", "arg", "name", "module"))
            named += [value for value in fields if isinstance(value, str)]
    return {word for text in named for word in words(text)} & set(VARIANTS)


def places(files: Files) -> Iterator[tuple[str, str]]:
    """Rows on precisions and on the LSTM's variants: files of the package / of its tests."""

    def count(chosen: Mapping[str, object]) -> str:
        tests = sum(name.startswith("tests/") for name in chosen)
        return f"{len(chosen) - tests} / {tests}"

    nodes = {name: list(ast.walk(tree)) for name, tree in files.items()}
    literals = {name: {each.value for each in found if isinstance(each, ast.Constant)} for name, found in nodes.items()}
    yield (
        "files that name a precision, package / tests",
        count({n: 1 for n, found in literals.items() if found & PRECISIONS}),
    )
    listing = {name: 1 for name, found in nodes.items() if any(map(lists_precisions, found))}
    yield "files that list precisions, package / tests", count(listing)
    bounding = {name: 1 for name, found in nodes.items() if any(map(bounds_precision, found))}
    yield "files that bound a precision, package / tests", count(bounding)
    named = {name: variants(tree) for name, tree in files.items()}
    yield "files that name an LSTM variant, package / tests", count({n: 1 for n, found in named.items() if found})
    entered = {name: 1 for name, found in named.items() if len(found) > 1}
    yield "files to enter a new LSTM variant in, package / tests", count(entered)


# -------------------------------------------------------------------------------------------------------------- imports


def imports(tree: ast.AST) -> set[str]:
    """Dotted names of what is imported anywhere in it."""
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def module_of(name: str) -> str:
    """As "flashelmo.engine.pipeline", of a file's path."""
    return "flashelmo." + name.removeprefix("src/flashelmo/").removesuffix(".py").replace("/", ".").removesuffix(
        ".__init__"
    )


def import_graph(files: Files) -> dict[str, set[str]]:
    """File -> the package's files that it imports."""
    homes = {module_of(name).removesuffix(".__init__"): name for name in files}
    graph: dict[str, set[str]] = {}
    for name, tree in files.items():
        found = {homes.get(target) or homes.get(target.rpartition(".")[0]) for target in imports(tree)}
        graph[name] = {target for target in found if target is not None and target != name}
    return graph


def circles(graph: Mapping[str, set[str]]) -> list[set[str]]:
    """Files that import each other, by whatever way, in groups."""

    @cache
    def reached(name: str) -> frozenset[str]:
        seen: set[str] = set()
        waiting = [name]
        while waiting:
            new = graph.get(waiting.pop(), set()) - seen
            seen |= new
            waiting += new
        return frozenset(seen)

    groups = [{other for other in reached(name) if name in reached(other)} for name in graph]
    return [group for number, group in enumerate(groups) if len(group) > 1 and group not in groups[:number]]


def n_levels(graph: Mapping[str, set[str]]) -> int:
    """The length of the longest chain of imports, a circle being one file."""
    together = {name: min(group) for group in circles(graph) for name in group}
    merged: dict[str, set[str]] = {}
    for name, targets in graph.items():
        home = together.get(name, name)
        merged.setdefault(home, set()).update({together.get(target, target) for target in targets} - {home})

    @cache
    def level(name: str) -> int:
        return 1 + max((level(target) for target in merged[name]), default=0)

    return max(map(level, merged), default=0)


def arrows(files: Files) -> Iterator[tuple[str, str]]:
    """Rows on imports."""
    graph = import_graph(files)
    engine = {
        name: {each for each in graph[name] if each.startswith("engine/")} for name in graph if name[:7] == "engine/"
    }
    yield "engine: imports of one file by another", str(sum(map(len, engine.values())))
    yield "engine: levels of imports", str(n_levels(engine))
    found = circles({name: targets for name, targets in graph.items() if not name.startswith("tests/")})
    yield "circles of imports", "; ".join(" – ".join(sorted(group)) for group in found) or "none"


# ------------------------------------------------------------------------------------------------------------ the table


def measure(checkout: Path, model: Path) -> dict[str, str]:
    """Every row of a checkout."""
    files = read(checkout)
    return dict([*sizes(checkout, files), *passed_through(checkout, model), *places(files), *arrows(files)])


def title(checkout: Path) -> str:
    """The commit, with "+" where files differ from it; outside git the folder's name."""
    command = ["git", "-C", str(checkout), "describe", "--always", "--dirty=+", "--exclude=*"]
    return subprocess.run(command, capture_output=True, text=True).stdout.strip() or checkout.name


def table(columns: Mapping[str, Mapping[str, str]]) -> str:
    """Measures by the titles of their columns, as Markdown."""
    labels = dict.fromkeys(label for column in columns.values() for label in column)
    head = [f"| | {' | '.join(columns)} |", f"| --- |{' ---: |' * len(columns)}"]
    rows = (f"| {label} | {' | '.join(column.get(label, '–') for column in columns.values())} |" for label in labels)
    return "\n".join([*head, *rows])


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("checkout", type=Path, nargs="?", default=ROOT, help="default: this one")
    parser.add_argument("--against", type=Path, help="another checkout, to stand before it")
    given = parser.parse_args(arguments)
    checkouts = [path.resolve() for path in (given.against, given.checkout) if path is not None]
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "model"
        write_native(MODELS["skip"], model)
        print(table({title(path): measure(path, model) for path in checkouts}))


if __name__ == "__main__":
    main()
