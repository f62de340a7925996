"""Downloads a model's files: interrupted downloads are resumed, and wrong files are never kept.

Pooch verifies checksums and moves files into place. It does not resume (pooch 1.9 starts over), and huggingface_hub's
code for that is not public, so this is a downloader for pooch that asks the server for the rest of the file (RFC 9110,
ranges), if it is still the same file.
"""

from __future__ import annotations

import json
import logging
import shutil
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from flashelmo.engine.errors import FlashElmoError, MissingExtraError, reason_of
from flashelmo.engine.model.checkpoints.files import extracted, read_json
from flashelmo.engine.model.named.table import RECORD, NamedFile, NamedModel, offline
from flashelmo.engine.system.files import sha256_of

logger = logging.getLogger("flashelmo")

ATTEMPTS = 5  # at a download that breaks off
PAUSE = 1.0  # seconds before the second attempt, twice as many before each further one
TIMEOUT = 30.0  # seconds without an answer, or without data
CHUNK = 1 << 20  # bytes


def download(model: NamedModel, home: Path, *, overwrite: bool = False) -> Path:
    """Make a model's folder in the cache, which appears when it is complete; return the folder.

    If two processes want the same model, it is downloaded once. A checksum that nobody published is computed here and
    written into the folder's `download.json`, which later downloads of the same model are verified with.

    Args:
        model: the model to download.
        home: the cache's folder.
        overwrite: download again even if it is there.

    Raises:
        FlashElmoError: the server's answer, a wrong checksum, a damaged archive, a full disk; or downloads are
            forbidden.
        MissingExtraError: the packages for downloads are not installed.
    """
    folder = home / model.name
    if (folder / RECORD).is_file() and not overwrite:
        return folder
    if variable := offline():
        raise FlashElmoError(f"{model.name}: not in {home}, and {variable} forbids downloads")
    try:
        import pooch
        import requests
        from filelock import FileLock
    except ImportError as error:
        raise MissingExtraError(error.name or "pooch", "download", "a download") from error
    pooch.get_logger().setLevel(logging.WARNING)
    work = home / f".{model.name}"
    try:
        home.mkdir(parents=True, exist_ok=True)
        with FileLock(home / f".{model.name}.lock"):
            if (folder / RECORD).is_file() and not overwrite:
                return folder
            known = _recorded(folder, "files")
            for name, file in model.files.items():
                _fetch(work, name, file, known.get(name))
            _settle(model, work, folder)
    except requests.RequestException as error:
        raise FlashElmoError(f"{model.name}: {_reason(error)}; what is there of it is kept") from None
    except OSError as error:
        raise FlashElmoError(f"{error.filename or home}: cannot be written: {reason_of(error)}") from None
    logger.info("%s: licence %s, from %s", model.name, model.license or "not stated", model.page)
    return folder


def check(folder: Path) -> list[str]:
    """Return what a downloaded model's files lack, or which have changed since the download."""
    problems = []
    for name, expected in _recorded(folder, "contents").items():
        path = folder / name
        found = sha256_of(path) if path.is_file() else "no file"
        if found != expected:
            problems.append(f"{path}: expected sha256 {expected}, found {found}")
    return problems


def _recorded(folder: Path, key: str) -> dict[str, str]:
    """Return the checksums that an earlier download recorded: of its "files", or of the folder's "contents"."""
    if not (folder / RECORD).is_file():
        return {}
    found: Any = read_json(folder / RECORD).get(key)
    try:
        return {name: each if key == "contents" else each["sha256"] for name, each in found.items()}
    except (AttributeError, KeyError, TypeError):
        expected = f"expected the {key} of a download; to download them again, delete {folder}"
        raise FlashElmoError(f"{folder / RECORD}: {expected}") from None


def _fetch(work: Path, name: str, file: NamedFile, recorded: str | None) -> None:
    """Download one file, unless it is there; FlashElmoError if its checksum is wrong."""
    import pooch

    known = file.sha256 or recorded
    part = work / f"{name}.part"
    work.mkdir(exist_ok=True)
    try:
        pooch.retrieve(file.url, None if known is None else f"sha256:{known}", name, work, downloader=Resumed(part))
    except ValueError as error:  # pooch's, about the checksum; the file is gone
        if isinstance(error, FlashElmoError) or known is None or "hash" not in str(error):
            raise
        expected = "as published by its authors" if file.sha256 else "as in the first download"
        raise FlashElmoError(
            f"{file.url}: expected sha256 {known}, {expected}, found another; file discarded"
        ) from None


@dataclass
class Resumed:
    """A downloader for pooch that keeps its partial file in `part`, and continues with it.

    Attributes:
        part: the unfinished file; beside it `.tag`, which tells the server which file it belongs to.
    """

    part: Path

    def __call__(self, url: str, output_file: str, pooch: Any) -> None:
        """Download a URL to `output_file`. Errors are those of requests."""
        import requests

        for attempt in range(ATTEMPTS):
            try:
                self._go_on(url)
                break
            except (requests.ConnectionError, requests.Timeout, requests.exceptions.ChunkedEncodingError) as error:
                if attempt + 1 == ATTEMPTS:
                    raise requests.ConnectionError(f"{url}: {_reason(error)}") from None
                time.sleep(PAUSE * 2**attempt)
        self.part.replace(output_file)
        self._tag.unlink(missing_ok=True)

    @property
    def _tag(self) -> Path:
        return self.part.with_suffix(".tag")

    def _go_on(self, url: str) -> None:
        """Download the missing rest; or all of it if the server has another file by now, or does not support ranges."""
        import requests
        from tqdm import tqdm

        tag = self._tag.read_text(encoding="utf-8") if self._tag.is_file() and self.part.is_file() else ""
        start = self.part.stat().st_size if tag else 0
        headers = {"Accept-Encoding": "identity"}  # so that lengths are the file's
        if start:
            headers |= {"Range": f"bytes={start}-", "If-Range": tag}
        with requests.get(url, headers=headers, stream=True, timeout=TIMEOUT) as response:
            if response.status_code == 416:  # nothing follows, or the file is now shorter: start over
                self._tag.unlink()
                raise requests.ConnectionError(f"expected bytes from {start:,} on, found none")
            response.raise_for_status()
            start = _start_of(response.headers) if response.status_code == 206 else 0
            length = response.headers.get("Content-Length")
            total = None if length is None else start + int(length)
            if not start:  # before the tag says that the partial file belongs to this one
                self.part.write_bytes(b"")
            self._tag.write_text(_validator(response.headers), encoding="utf-8")
            with (
                self.part.open("r+b") as file,
                tqdm(
                    desc=url.rpartition("/")[2],
                    total=total,
                    initial=start,
                    unit="B",
                    unit_scale=True,
                    mininterval=0.5,
                    disable=_is_silent(),
                ) as bar,
            ):
                file.seek(start)
                for chunk in response.iter_content(CHUNK):
                    file.write(chunk)
                    bar.update(len(chunk))
                file.truncate()
        size = self.part.stat().st_size
        if total is not None and size != total:
            raise requests.ConnectionError(f"expected {total:,} bytes, found {size:,}")


def _is_silent() -> bool | None:
    """Whether no progress is shown; None lets tqdm see whether standard error is a terminal, as a notebook's is not."""
    if sys.stderr is None:
        return True
    return False if "ipykernel" in sys.modules else None


def _start_of(headers: Mapping[str, str]) -> int:
    """Return where the part begins that a server sends."""
    import requests

    begin = headers.get("Content-Range", "").removeprefix("bytes ").partition("-")[0]
    if not begin.isdecimal():
        raise requests.ConnectionError(f"expected a range of bytes, found {begin[:40]!r}")
    return int(begin)


def _validator(headers: Mapping[str, str]) -> str:
    """Return what identifies this very file: a strong ETag or the time of its last change; empty without either."""
    tag = headers.get("ETag", "")
    return tag if tag and not tag.startswith("W/") else headers.get("Last-Modified", "")


def _settle(model: NamedModel, work: Path, folder: Path) -> None:
    """Unpack archives, write the record, and give the folder its final name."""
    new = work / "new"
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir()
    sums = {name: sha256_of(work / name) for name in model.files}
    for name in model.files:
        if not name.endswith(".zip"):
            (work / name).replace(new / name)
            continue
        try:
            with extracted(work / name, work) as inner:
                for path in inner.iterdir():
                    path.replace(new / path.name)
        except FlashElmoError:
            (work / name).unlink()
            raise
        (work / name).unlink()
    contents = {path.relative_to(new).as_posix(): sha256_of(path) for path in sorted(new.rglob("*")) if path.is_file()}
    record = {
        "name": model.name,
        "page": model.page,
        "license": model.license,
        "downloaded": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "files": {name: {"url": file.url, "sha256": sums[name]} for name, file in model.files.items()},
        "contents": contents,
    }
    (new / RECORD).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    if folder.exists():
        shutil.rmtree(folder)
    new.replace(folder)
    shutil.rmtree(work)


def _reason(error: Exception) -> str:
    """Return what went wrong, in one line."""
    response = getattr(error, "response", None)
    if response is not None:
        return f"{response.url}: the server says {response.status_code} {response.reason}"
    cause = error.args[0] if error.args else error
    return str(getattr(cause, "reason", cause)).partition("\n")[0]
