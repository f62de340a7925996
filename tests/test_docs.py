"""README and docs: every block is run, and what they name is there. docs/onnx.md is run by test_docs_onnx.py."""

import ast
import os
import re
import shutil
import warnings
from collections.abc import Callable
from importlib.metadata import metadata
from importlib.util import find_spec
from pathlib import Path

import pytest
from docs_place import Place
from documents import (
    RUN,
    SPAN,
    Block,
    check_printed,
    missing_files,
    missing_links,
    missing_paths,
    pages,
    read_page,
    without_fences,
)
from tiny_models import MODELS
from typer.main import get_command

from flashelmo.cli.commands import app
from flashelmo.engine.model.checkpoints import load_model
from flashelmo.engine.model.checkpoints.native import write_native
from flashelmo.engine.model.named.locate import bundled

ROOT = Path(__file__).resolve().parent.parent
PAGES = pages(ROOT)
BLOCKS = [block for page, text in PAGES.items() for block in read_page(text, page)]
ELSEWHERE = "docs/onnx.md"
README_LINES = 150
# Packages whose blocks are left out where they are not installed.
MAY_BE_ABSENT = "duckdb|faiss|sklearn|sentence_transformers|spacy|flair|datasets|langchain|ray"
FOLDERS = ("engine", "kernels", "export", "benchmarks", "src/flashelmo")

# Page and a part of each block that no test runs: why.
NOT_RUN = {
    ("README.md", "make test"): "make: .ci/run runs both commands",
    ("CONTRIBUTING.md", "make lint"): "make: .ci/run is what runs the tests",
    ("docs/figures.md", "flashelmo bench --quick"): "measures for a minute; the benchmarks have tests of their own",
    ("docs/senses.md", "python -m benchmarks senses"): "needs trained models, and takes minutes",
    ("docs/gpu.md", "--precision bf16"): "needs a card",
    ("docs/kernels.md", "python -m benchmarks resources"): "compiles for minutes, and the rest needs a card",
    ("docs/gpu.md", '"cuda:1"'): "needs two cards",
    ("docs/bulk.md", "for card in"): "needs several cards",
    ("docs/bulk.md", "--ray auto"): "needs a cluster; `make test-ray` starts one",
    ("docs/bulk.md", "import ray"): "needs Ray and cards",
    ("docs/coming-from.md", "elmo = ElmoEmbedder(options_file"): "AllenNLP's",
    ("docs/coming-from.md", "from bilm import"): "bilm-tf's",
    ("docs/coming-from.md", "from simple_elmo import"): "simple_elmo's",
    ("docs/coming-from.md", "from elmoformanylangs"): "ELMoForManyLangs'",
    ("docs/coming-from.md", "python -m elmoformanylangs"): "likewise its command",
    ("docs/coming-from.md", "as SeqVec"): "SeqVec's",
    ("docs/coming-from.md", "import tensorflow_hub"): "TensorFlow's",
    ("docs/coming-from.md", "import ELMoEmbeddings"): "flair's of old",
    ("docs/weights.md", "flashelmo download original"): "downloads; test_named_models.py does so from this machine",
    ("docs/weights.md", 'load("original")'): "downloads, likewise",
    ("docs/serving.md", "from openai import"): "openai is not installed: tests/test_serve_clients.py has these calls",
    ("docs/serving.md", "from huggingface_hub import"): "likewise",
    ("docs/serving.md", "import tritonclient.http"): "likewise",
    ("docs/serving.md", "--ray auto"): "needs a cluster; `make test-ray` starts one",
    ("docs/serving.md", "docker build"): "needs Docker and Kubernetes",
    ("docs/onnx.md", 'providers="cuda"'): "needs a card",
    ("docs/training.md", "pip install"): "would install into whatever environment there is",
    ("docs/training.md", "--device cuda"): "needs a card",
    ("docs/training.md", "torchrun"): "needs several cards; test_training_processes.py starts two processes",
    ("docs/onnx.md", "docker run"): "needs Docker",
}


def is_run(block: Block) -> bool:
    return block.kind in RUN and not any(block.page == page and part in block.text for page, part in NOT_RUN)


def is_installed(block: Block) -> bool:
    """Whether the packages are there that a page may do without."""
    imported = {"langchain": "langchain_core"}
    named = set(re.findall(rf"(?:import|from) (?:flashelmo[.]integrations[.])?({MAY_BE_ABSENT})\b", block.text))
    return all(find_spec(imported.get(name, name)) is not None for name in named)


TO_RUN = [block for block in BLOCKS if is_run(block) and block.page != ELSEWHERE]


@pytest.fixture(scope="module")
def place_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Place]:
    """A page's place, where `make demo` has made its model; the GPU's page has a model that can be interpreted."""
    if os.name == "nt" or shutil.which("bash") is None:
        pytest.skip("the pages' commands are for bash")
    places: dict[str, Place] = {}

    def find(page: str) -> Place:
        if page not in places:
            on_card = page == "docs/gpu.md"
            interpreted = on_card and "TRITON_INTERPRET" in os.environ
            folder = tmp_path_factory.mktemp("page")
            replacements = (('"cuda"', '"interpreter"'),) if interpreted else ()
            places[page] = Place(
                folder, [block for block in TO_RUN if block.page == page and is_installed(block)], replacements
            )
            write_native(MODELS["skip"] if on_card else load_model(bundled()), folder / "demo" / "model")
        return places[page]

    return find


@pytest.mark.parametrize("block", TO_RUN, ids=lambda block: block.label)
def test_a_block_does_what_the_page_says(block: Block, place_of: Callable[[str], Place]) -> None:
    if block.page in ("docs/gpu.md", "docs/kernels.md"):
        pytest.importorskip("triton")
    if not is_installed(block):
        pytest.skip("its packages are not installed")
    with warnings.catch_warnings():
        if "import ray\n" in block.text:  # of whose settings many warn
            warnings.simplefilter("ignore")
        place_of(block.page).run(block)


@pytest.mark.parametrize(("page", "part"), NOT_RUN)
def test_what_is_not_run_is_still_there(page: str, part: str) -> None:
    found = [block for block in BLOCKS if block.page == page and part in block.text]
    assert len(found) == 1 and found[0].kind in RUN


def test_every_program_shows_what_it_prints() -> None:
    assert [block.label for block in TO_RUN if block.kind != "sh" and not block.shown] == []
    assert {block.page for block in BLOCKS} > {"README.md", "docs/onnx.md", "docs/gpu.md", "docs/allennlp.md"}


def test_text_hides_no_command() -> None:
    commands = ("flashelmo ", "python", "pip ", "make ", "docker ", "import ", "from ", "$ ")
    lines = [line for block in BLOCKS if block.kind == "text" for line in block.text.splitlines()]
    assert [line for line in lines if line.lstrip().startswith(commands)] == []


@pytest.mark.parametrize("page", PAGES)
def test_what_a_page_names_is_there(page: str) -> None:
    assert missing_links(ROOT, page, PAGES[page]) == []
    assert missing_paths(ROOT, PAGES[page]) == []


@pytest.mark.parametrize("page", PAGES)
def test_commands_in_prose_exist_with_their_options(page: str) -> None:
    commands = get_command(app).commands  # type: ignore[attr-defined]
    for span in SPAN.findall(without_fences(PAGES[page])):
        called = re.match(r"flashelmo ([a-z]+)\b", span)
        if called is None or called[1] == "bench":  # whose options are the benchmark's own
            continue
        assert called[1] in commands, span
        parameters = commands[called[1]].params
        known = {option for each in parameters for option in (*each.opts, *each.secondary_opts)} | {"--help"}
        assert set(re.findall(r"--[a-z-]+", span)) <= known, span


@pytest.mark.parametrize("page", PAGES)
def test_extras_that_a_page_names_are_there(page: str) -> None:
    named = re.findall(r"(?<=['\"`])(?:[.]|flashelmo)\[([a-z0-9,-]+)\]", PAGES[page])
    extras = metadata("flashelmo").get_all("Provides-Extra") or []
    assert {extra for each in named for extra in each.split(",")} <= set(extras)


def test_the_maps_of_the_code_name_files_that_are_there() -> None:
    maps = {
        path.parent: ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
        for path in [path for folder in FOLDERS for path in ROOT.glob(f"{folder}/**/__init__.py")]
    }
    missing = {folder.relative_to(ROOT): missing_files(folder, text) for folder, text in maps.items() if text}
    assert {folder: names for folder, names in missing.items() if names} == {}
    assert len(missing) > 5


def test_readme_is_short() -> None:
    assert len(PAGES["README.md"].splitlines()) <= README_LINES


# ------------------------------------------------------------------------------------------------ the reading itself


@pytest.mark.parametrize(
    ("kind", "printed", "agrees"),
    [
        ("sh", ["x", "a 1.5 b", "c"], True),
        ("sh", ["a 1.5 b", "x", "c", "x"], True),
        ("sh", ["c", "a 1.5 b"], False),
        ("sh", ["a 1.5 b"], False),
        ("python", ["a 1.5 b", "c"], True),
        ("python", ["a 1.5 b", "c", "c"], False),
        ("python", ["a 1.5 b", "d"], False),
        ("python", [], False),
        ("js", ["a 1.5 b", "c", "c"], False),
    ],
)
def test_printed_lines_are_compared(kind: str, printed: list[str], agrees: bool) -> None:
    (block,) = read_page(f"## 1\n\n```{kind}\nrun\n```\n\n```output\na ... b\nc\n```\n")
    if agrees:
        check_printed(block, printed)
    else:
        with pytest.raises(AssertionError):
            check_printed(block, printed)


@pytest.mark.parametrize("fences", ["```\na\n```\n", "```console\na\n```\n", "```output\na\n```\n", "```sh\na\n"])
def test_no_fence_is_passed_over(fences: str) -> None:
    with pytest.raises(AssertionError):
        read_page(f"## 1\n\n{fences}")


def test_what_is_not_there_is_found(tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "a.md").write_text("# A page\n\n## It's here\n", encoding="utf-8")
    text = "[1](a.md) [2](b.md) [3](a.md#its-here) [4](a.md#there) [5](#gone) [6](https://b.c/d)\n"
    assert missing_links(tmp_path, "docs/a.md", text) == ["b.md", "a.md#there", "#gone"]
    assert missing_paths(tmp_path, "`docs/a.md` `docs/*.txt` `docs/` elsewhere/b.md `engine/a.py`") == [
        "docs/*.txt",
        "engine/a.py",
    ]
    docstring = "Map.\n\n    a.md            no Python\n    b.py       c\n    docs/   pages\n\n`c.py` too.\n"
    assert missing_files(tmp_path, docstring) == ["b.py", "c.py"]
