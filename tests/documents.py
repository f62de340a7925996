"""Pages of documentation as their blocks and links: what is to be run, what it must print, what must be there."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

RUN = ("sh", "python", "js")
FENCE = re.compile(r"^```(\w*)\n(.*?)^```\n", flags=re.MULTILINE | re.DOTALL)
HEADING = re.compile(r"^#+ (.+)$", flags=re.MULTILINE)
LINK = re.compile(r"\]\(([^)\s]+)\)")
SPAN = re.compile(r"`([^`\n]+)`")
FOLDERS = "engine|kernels|export|benchmarks|tests|src|examples|docs|[.]ci"
PATH = re.compile(rf"(?:{FOLDERS})/[\w./*-]*")


@dataclass(frozen=True)
class Block:
    """What stands in one fence.

    Attributes:
        page: its path from the project's root.
        section: the heading of the second level above it; empty where there is none.
        kind: the word on its first fence: sh, python or js, which are run, or text, which is not.
        text: what is in it.
        shown: the lines of the fence `output` that follows it at once; None where there is none.
        line: of the page, where it begins.
        before: the paragraph above it, in one line.
    """

    page: str
    section: str
    kind: str
    text: str
    shown: list[str] | None
    line: int
    before: str

    @property
    def label(self) -> str:
        """For the tests' names and messages."""
        return f"{self.page}, line {self.line}, {self.kind}"


def pages(root: Path) -> dict[str, str]:
    """Path from the root -> text of all pages."""
    paths = [root / "README.md", root / "CONTRIBUTING.md", root / "examples" / "README.md"]
    paths += sorted((root / "docs").glob("*.md"))
    return {path.relative_to(root).as_posix(): path.read_text(encoding="utf-8") for path in paths}


def read_page(text: str, page: str = "page") -> list[Block]:
    """All blocks of a page; a fence of another kind is an error, so that none is left out by its name."""
    fences = list(FENCE.finditer(text))
    assert len(fences) * 2 == text.count("```"), f"{page}: a fence is not closed, or not at the start of its line"
    blocks: list[Block] = []
    for number, fence in enumerate(fences):
        kind, inside = fence.groups()
        line, above = text.count("\n", 0, fence.start()) + 1, text[: fence.start()].rstrip()
        assert kind in (*RUN, "text", "output"), f"{page}, line {line}: a fence of {kind or 'nothing'}"
        if kind == "output":
            assert number and fences[number - 1][1] in RUN, f"{page}, line {line}: output of nothing"
            assert fences[number - 1].end() == len(above) + 1, f"{page}, line {line}: output apart from what prints it"
            continue
        following = fences[number + 1] if number + 1 < len(fences) else None
        shown = following[2].splitlines() if following is not None and following[1] == "output" else None
        sections = re.findall(r"^## (.+)$", without_fences(above), flags=re.MULTILINE)
        before = " ".join(above.rpartition("\n\n")[2].split())
        blocks.append(Block(page, sections[-1] if sections else "", kind, inside, shown, line, before))
    return blocks


def check_printed(block: Block, printed: list[str]) -> None:
    """A program prints what is shown and no more; a command prints the lines shown in this order, among others."""
    shown = block.shown or []
    assert block.kind == "sh" or len(printed) == len(shown), f"{block.label}: {shown} are shown, not {printed}"
    rest = iter(printed)
    for line in shown:
        pattern = ".+".join(map(re.escape, line.split("...")))
        found = (re.fullmatch(pattern, each) is not None for each in rest)
        assert any(found) if block.kind == "sh" else next(found, False), (
            f"{block.label}: {line!r} is shown, which is not in its place among {printed}"
        )


def without_fences(text: str) -> str:
    """A page's prose and tables."""
    return FENCE.sub("", text)


def missing_links(root: Path, page: str, text: str) -> list[str]:
    """Links of a page to files, or to headings in them, that are not there."""
    missing = []
    for target in LINK.findall(without_fences(text)):
        if "://" in target:
            continue
        name, _, anchor = target.partition("#")
        path = (root / page).parent / name if name else root / page
        if not path.exists() or (anchor and anchor not in anchors(path.read_text(encoding="utf-8"))):
            missing.append(target)
    return missing


def anchors(text: str) -> set[str]:
    """What links to the headings of a page end in, as GitHub makes it."""
    headings = HEADING.findall(without_fences(text))
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


def missing_paths(root: Path, text: str) -> list[str]:
    """Paths from the root that a text names in `code`, and that are not there; `*` stands for any name."""
    named = [span for span in SPAN.findall(without_fences(text)) if PATH.fullmatch(span)]
    return [path for path in named if not any(root.glob(path.rstrip("/")))]


def missing_files(folder: Path, docstring: str) -> list[str]:
    """Files that a package's docstring names, in the lines of its map and as `file.py` below it, and that it lacks."""
    named = re.findall(r"^\s*([\w*/]+(?:\.py|/)) {2,}\S", docstring, flags=re.MULTILINE)
    if named:
        named += re.findall(r"`(\w+\.py)`", docstring)
    return [name for name in named if not any(folder.glob(name.rstrip("/")))]
