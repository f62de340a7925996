"""What the site needs beside the pages of this folder: the README as its start, and the files that pages link to."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parent.parent
OUTSIDE = re.compile(r"\]\(\.\./([^)#\s]+)")  # links of pages in docs/ to files beside it
STARTS = {"index.md": "README.md", "CONTRIBUTING.md": "CONTRIBUTING.md", "examples/README.md": "examples/README.md"}


def on_files(files: Files, config: Any) -> Files:
    """Add the pages at the root, and what pages link to outside this folder, under its path from the root."""
    for page, source in STARTS.items():
        text = (ROOT / source).read_text(encoding="utf-8")
        files.append(File.generated(config, page, content=re.sub(r"\]\((\.\./)?docs/", r"](\1", text)))
    linked = {match[1] for path in ROOT.glob("docs/*.md") for match in OUTSIDE.finditer(path.read_text("utf-8"))}
    start = (ROOT / "README.md").read_text(encoding="utf-8")
    linked |= set(re.findall(r"\]\(((?:benchmarks|examples)/[^)#\s]+|LICENSE)", start))
    for name in sorted(linked - set(STARTS.values())):
        files.append(File.generated(config, name, abs_src_path=str(ROOT / name)))
    return files


def on_page_markdown(markdown: str, page: Any, **others: Any) -> str:
    """Links to what `on_files` added."""
    return markdown if page.file.src_uri in STARTS else OUTSIDE.sub(r"](\1", markdown)
