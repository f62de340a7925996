"""The table of the code's structure: each count on code whose count is known, and this checkout's whole table."""

import ast
from collections.abc import Callable
from pathlib import Path

import pytest
import structure
from structure import (
    bounds_precision,
    circles,
    functions,
    import_graph,
    is_kernel,
    lists_precisions,
    n_arguments,
    n_levels,
    n_lines,
    places,
    spread,
    table,
    variants,
)

FACE = """
class ElmoEmbedder:
    @classmethod
    def load(cls, path, *, device, precision):
        assert (precision, type(path)) == ("fp32", str)
        from flashelmo.engine.a import {load}
        {load}()
        return cls()

    def embed_sentence(self, sentence):
        from threading import Thread
        from flashelmo.engine.text.b import known, new
        assert len(sentence) == 3
        for target in (new, known):
            thread = Thread(target=target)
            thread.start()
            thread.join()
"""
FILES = {
    "src/flashelmo/__init__.py": FACE.format(load="on_cpu"),
    "engine/__init__.py": "",
    "engine/a.py": "from flashelmo.engine import c\nclass A:\n    x = c.at_import()\ndef on_cpu():\n    pass\n",
    "engine/c.py": "def at_import():\n    from flashelmo.engine import a\n",
    "engine/text/__init__.py": "",
    "engine/text/b.py": (
        "from flashelmo.engine import d\nfrom flashelmo.engine.text import e\n"
        "def new():\n    d.once()\n    d.once = known\ndef known():\n    e.f(1, 2)\n"
    ),
    "engine/text/e.py": "def f(self, x,\n      *more): pass\n",
    "engine/d.py": "def once(): pass\n",
    "tests/test_a.py": "import flashelmo.benchmarks.speed\nBOUND = {'fp32': 1e-5}\n",
    "tests/test_b.py": "from flashelmo.engine import a\n",
}


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A little package that loads and embeds."""
    for name, text in FILES.items():
        path = tmp_path / "checkout" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return tmp_path / "checkout"


def parsed(**files: str) -> dict[str, ast.Module]:
    """Files of engine/ by their names."""
    return {f"engine/{name}.py": ast.parse(text) for name, text in files.items()}


def expression(code: str) -> ast.expr:
    return ast.parse(code, mode="eval").body


def test_a_table_of_a_checkout(checkout: Path, tmp_path: Path) -> None:
    rows = structure.measure(checkout, tmp_path)
    assert rows["engine: files, lines"] == "5, 17"
    assert rows["tests: files, lines"] == "1, 1" and rows["tests of benchmarks: files, lines"] == "1, 2"
    assert rows["src: files, lines"] == "1, 17" and rows["all: files, lines"] == "8, 37"
    assert rows["engine: lines of a file, median / largest"] == "2 / 7"
    assert rows["engine: lines of a function, median / 95%"] == "2 / 3"
    assert rows["engine: arguments of a function, median / 95%"] == "0 / 2"
    assert rows["kernels, launchers: lines of a function, median / 95%"] == "–"
    # src, a | src, b, d, e | src, b, e; c runs while it is imported alone
    assert rows["files that a sentence passes through on the CPU"] == "5"
    assert rows["... to load / to embed / once its words are known, the CPU"] == "2 / 4 / 3"
    assert rows["files that bound a precision, package / tests"] == "0 / 1"
    assert rows["engine: imports of one file by another"] == "4"
    assert rows["engine: levels of imports"] == "2"
    assert rows["circles of imports"] == "engine/a.py – engine/c.py"


def test_a_sentence_is_followed_in_the_interpreter_too(checkout: Path, tmp_path: Path) -> None:
    pytest.importorskip("triton")
    files = structure.trace(checkout, tmp_path, "interpreter")
    embedded = ["engine/text/b.py", "engine/text/e.py", "src/flashelmo/__init__.py"]
    assert files == {
        "load": ["engine/a.py", "src/flashelmo/__init__.py"],
        "first": ["engine/d.py", *embedded],
        "again": embedded,
    }


def test_what_a_checkout_raises_is_told(checkout: Path, tmp_path: Path) -> None:
    (checkout / "engine" / "a.py").write_text("raise OSError('nothing here')\n", encoding="utf-8")
    with pytest.raises(RuntimeError, match=r"(?s)/checkout, device cpu: .*OSError: nothing here\n$"):
        structure.trace(checkout, tmp_path, "cpu")


def test_this_checkout_has_a_table(
    root: Path, checkout: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(structure, "find_spec", lambda package: None)  # the interpreter takes long
    monkeypatch.setattr(structure, "FOLDERS", ("engine", "kernels", "src"))  # and so do the other folders
    structure.main([str(root), "--against", str(checkout)])
    head, _, *lines = capsys.readouterr().out.splitlines()
    rows = dict(line.strip("| ").split(" | ", 1) for line in lines)
    assert head.startswith("| | checkout | ")
    before, after = rows["files that a sentence passes through on the CPU"].split(" | ")
    assert before == "5" and 5 < int(after) < 40
    assert not any("CUDA" in label for label in rows)
    assert rows["circles of imports"] == "engine/a.py – engine/c.py | none"
    lists = rows["files that list precisions, package / tests"].split(" | ")
    assert lists[0] == "0 / 0" and int(lists[1].split()[0]) >= 1


def test_functions_count_where_they_are_defined(checkout: Path, tmp_path: Path) -> None:
    (checkout / "engine" / "a.py").write_text(
        "from functools import cache\n@cache\ndef on_cpu():\n    from flashelmo.engine.c import at_import\n"
        "    return [at_import() for _ in range(1)]\n",
        encoding="utf-8",
    )
    assert structure.trace(checkout, tmp_path, "cpu")["load"] == [
        "engine/a.py",
        "engine/c.py",
        "src/flashelmo/__init__.py",
    ]


@pytest.mark.parametrize(
    ("values", "share", "expected"),
    [([], 0.95, "–"), ([3], 0.95, "3 / 3"), (range(1, 101), 0.95, "50.5 / 96"), ([9, 1, 5], 1, "5 / 9")],
)
def test_spread(values: list[int], share: float, expected: str) -> None:
    assert spread(values, share) == expected


def test_functions_are_measured_with_their_signature() -> None:
    tree = ast.parse(
        "@triton.jit\n@other\ndef kernel(a, b, /, c: int,\n           *, d=1):\n    '''Words.'''\n    return a\n"
        "@triton.jit(noinline=True)\ndef inner(): pass\n"
        "class C:\n    @classmethod\n    def make(cls, *args, **options):\n        def jitter(self, x): pass\n"
    )
    found = {function.name: function for function in functions(tree)}
    assert {name: is_kernel(each) for name, each in found.items()} == {
        "kernel": True, "inner": True, "make": False, "jitter": False,
    }  # fmt: skip
    assert {name: n_arguments(each) for name, each in found.items()} == {
        "kernel": 4,
        "inner": 0,
        "make": 2,
        "jitter": 1,
    }
    assert {name: n_lines(each) for name, each in found.items()} == {"kernel": 4, "inner": 1, "make": 2, "jitter": 1}


@pytest.mark.parametrize(
    ("check", "code", "expected"),
    [
        (lists_precisions, "('fp32', 'bf16')", True),
        (lists_precisions, "{'a': ('fp32', 1), ('x', 'int8'): 2, 'tf32': 3}", True),
        (lists_precisions, "Literal['auto', 'fp64', 'fp16']", True),
        (lists_precisions, "('fp32', 'float16', name)", False),
        (lists_precisions, "{'fp32': 'bf16', **more}", False),
        (lists_precisions, "choose('fp32', 'bf16')", False),
        (bounds_precision, "{'bf16': 0.01}", True),
        (bounds_precision, "{'int8': Bound(relative=5e-2)}", True),
        (bounds_precision, "{np.dtype(np.float16): 2e-3}", True),
        (bounds_precision, "Precision('fp16', cuda=Arithmetic('x', Bound(relative=2e-3)))", True),
        (bounds_precision, "{'bf16': 128, 'fp32': 3.5, **more}", False),
        (bounds_precision, "{'top': 0.5}", False),
        (bounds_precision, "Row('fp32', 0.25)", False),
        (bounds_precision, "Row('top', error=0.25)", False),
    ],
)
def test_places_of_precisions(check: Callable[[ast.AST], bool], code: str, expected: bool) -> None:
    assert any(map(check, ast.walk(expression(code)))) == expected


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("kind = 'fused'", {"fused"}),
        ("TILES['specialized gates', 'half']", {"specialized"}),
        ("def f(is_hoisted): g(hoisted_input, HoistedStep)", {"hoisted"}),
        ("from flashelmo.kernels.lstm.warp_specialized import launch", {"specialized"}),
        ("Settings(specialized=True)", {"specialized"}),
        ("'''A fused one.'''\nx = 1  # hoisted", set()),
        ("class C:\n    '''Fused.'''", set()),
        ("raise ValueError('expected a hoisted launch to end')", set()),
        ("refused = confused('unhoisted')", set()),
    ],
)
def test_variants_that_code_names(code: str, expected: set[str]) -> None:
    assert variants(ast.parse(code)) == expected


def test_places_are_counted_by_file_in_package_and_tests() -> None:
    files = {
        "engine/a.py": "x = 'fp32'; kind = 'fused'",
        "kernels/b.py": "x = ('fp32', 'int8'); kinds = ['fused', 'hoisted']",
        "tests/test_c.py": "x = {'fp32': 1e-5, 'bf16': 0.01}; hoisted = specialized",
    }
    assert dict(places({name: ast.parse(code) for name, code in files.items()})) == {
        "files that name a precision, package / tests": "2 / 1",
        "files that list precisions, package / tests": "1 / 1",
        "files that bound a precision, package / tests": "0 / 1",
        "files that name an LSTM variant, package / tests": "2 / 1",
        "files to enter a new LSTM variant in, package / tests": "1 / 1",
    }


def test_imports_wherever_they_stand() -> None:
    files = parsed(
        a="from flashelmo.engine import b\nimport flashelmo.engine.c\nimport numpy",
        b="def f():\n    from flashelmo.engine.c import value",
        c="if TYPE_CHECKING:\n    from flashelmo.engine.d import D",
        d="from flashelmo import ElmoEmbedder",
    ) | {"src/flashelmo/__init__.py": ast.parse("from flashelmo.engine.d import D")}
    graph = import_graph(files)
    assert graph == {
        "engine/a.py": {"engine/b.py", "engine/c.py"},
        "engine/b.py": {"engine/c.py"},
        "engine/c.py": {"engine/d.py"},
        "engine/d.py": {"src/flashelmo/__init__.py"},
        "src/flashelmo/__init__.py": {"engine/d.py"},
    }
    assert circles(graph) == [{"engine/d.py", "src/flashelmo/__init__.py"}]
    assert n_levels(graph) == 4  # a, b, c, the circle


def test_circles_are_found_whatever_their_length() -> None:
    graph = {"a": {"b"}, "b": {"c"}, "c": {"a", "d"}, "d": {"e"}, "e": {"d"}, "f": {"a"}}
    assert circles(graph) == [{"a", "b", "c"}, {"d", "e"}]
    assert n_levels(graph) == 3
    assert circles({"a": {"b"}, "b": set()}) == []


def test_columns_stand_side_by_side() -> None:
    found = table({"old": {"x": "1", "y": "2"}, "new": {"y": "3", "z": "4"}})
    assert found.splitlines() == [
        "| | old | new |", "| --- | ---: | ---: |", "| x | 1 | – |", "| y | 2 | 3 |", "| z | – | 4 |",
    ]  # fmt: skip
