"""Pages of documentation as their blocks: what is to be run, and what it must print."""

from __future__ import annotations

import re
from dataclasses import dataclass

RUN = ("sh", "python")
FENCE = re.compile(r"^```(\w*)\n(.*?)^```\n", flags=re.MULTILINE | re.DOTALL)
HEADING = re.compile(r"^## (.+)$", flags=re.MULTILINE)


@dataclass(frozen=True)
class Block:
    """What stands in one fence.

    Attributes:
        section: the heading above it.
        kind: the word on its first fence: sh or python, which are run, or text, which is not.
        text: what is in it.
        shown: the lines of the fence `output` that follows it at once; None where there is none.
        line: of the page, where it begins.
        before: the paragraph above it.
    """

    section: str
    kind: str
    text: str
    shown: list[str] | None
    line: int
    before: str


def read_page(page: str) -> list[Block]:
    """All blocks of a page; a fence of another kind is an error, so that none is left out by its name."""
    fences = list(FENCE.finditer(page))
    assert len(fences) * 2 == page.count("```"), "a fence that is not closed, or not at the start of its line"
    blocks: list[Block] = []
    for number, fence in enumerate(fences):
        kind, text = fence.groups()
        line, above = page.count("\n", 0, fence.start()) + 1, page[: fence.start()].rstrip()
        assert kind in (*RUN, "text", "output"), f"line {line}: a fence of {kind or 'nothing'}"
        if kind == "output":
            assert number and fences[number - 1][1] in RUN, f"line {line}: output of nothing"
            assert fences[number - 1].end() == len(above) + 1, f"line {line}: output apart from what prints it"
            continue
        following = fences[number + 1] if number + 1 < len(fences) else None
        shown = following[2].splitlines() if following is not None and following[1] == "output" else None
        section = HEADING.findall(above)[-1]
        blocks.append(Block(section, kind, text, shown, line, above.rpartition("\n\n")[2]))
    return blocks


def check_printed(block: Block, printed: list[str]) -> None:
    """A program prints what is shown and no more; a command prints the lines shown in this order, among others."""
    shown = block.shown or []
    assert block.kind != "python" or len(printed) == len(shown), f"line {block.line}: {shown} are shown, not {printed}"
    rest = iter(printed)
    for line in shown:
        pattern = ".+".join(map(re.escape, line.split("...")))
        found = (re.fullmatch(pattern, each) is not None for each in rest)
        assert next(found, False) if block.kind == "python" else any(found), (
            f"line {block.line}: {line!r} is shown, which is not in its place among {printed}"
        )
