"""A folder of shards: how it was begun, and which of its shards are complete."""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from flashelmo.engine.arguments import utf8_path_of, whole_number
from flashelmo.engine.bulk.shards import shard_name
from flashelmo.engine.errors import FlashElmoError
from flashelmo.engine.sinks.files import RUN, sha256_of_json, write_json, writing
from flashelmo.engine.system.files import check_link, is_foreign, sha256_of
from flashelmo.engine.system.threads import in_order

logger = logging.getLogger("flashelmo")

FORMAT_VERSION = 1
READERS = 4  # threads that compute checksums
OURS = re.compile(r"run\.json|shard-[0-9]{8,}\.(safetensors|parquet|json)")
TEMPORARY = re.compile(r"\.(run\.json|shard-([0-9]{8,})\.(safetensors|parquet|json))(\.[0-9a-f]{16})?\.tmp")
META = re.compile(r"shard-([0-9]{8,})\.json")

Meta = dict[str, Any]


def check_new(folder: Path, resume: bool, overwrite: bool, in_array: bool = False) -> None:
    """Raise FlashElmoError if a run may not begin or resume in a folder; an array's other jobs may have begun."""
    if resume and overwrite:
        raise FlashElmoError("resume, overwrite: expected one of them, found both")
    if overwrite and in_array:
        raise FlashElmoError("overwrite: not allowed for a job of an array, as it would remove the others' output")
    check_link(folder)
    if folder.exists() and not folder.is_dir():
        raise FlashElmoError(f"{folder}: expected a folder for shards, found a file; .h5 and .npz are single files")
    if not folder.parent.is_dir():
        raise FlashElmoError(f"{folder}: there is no folder {folder.parent}")
    names = _names(folder)
    if names and RUN not in names:
        raise FlashElmoError(f"{folder}: expected an empty folder or one of shards, found {sorted(names)[0]}")
    if names - {RUN} and not (resume or overwrite or in_array):
        raise FlashElmoError(f"{folder}: exists already; resume=True goes on with it, overwrite=True replaces it")


def _names(folder: Path) -> set[str]:
    """Return the names in the folder, except locks, leftovers of killed runs, and what the system left there."""
    if not folder.is_dir():
        return set()
    return {name for name in os.listdir(folder) if OURS.fullmatch(name) or not (is_ours(name) or is_foreign(name))}


def is_ours(name: str) -> bool:
    """Whether a name in a folder of shards is that of something which a run writes, locks or removes."""
    return name.startswith(".lock") or any(pattern.fullmatch(name) for pattern in (OURS, TEMPORARY))


def clear(folder: Path) -> None:
    """Remove the shards of an earlier run, and nothing else."""
    names = [name for name in os.listdir(folder) if OURS.fullmatch(name)]
    with writing(folder):
        for name in sorted(names, key=lambda name: (name == RUN, name)):  # run.json marks the folder as ours
            (folder / name).unlink()


def start(folder: Path, fingerprint: Meta, shard_records: Callable[[], int]) -> int:
    """Write `run.json`, or check that an existing one was written with the same fingerprint.

    Args:
        folder: of the shards.
        fingerprint: what must stay the same between runs. Its `shard_records` may be None for any number.
        shard_records: called for the number of records per shard if neither the fingerprint nor the folder has one.

    Returns:
        The number of records per shard.

    Raises:
        FlashElmoError: the fingerprint differs; the message names the first difference.
    """
    path = folder / RUN
    fingerprint = json.loads(json.dumps({"format_version": FORMAT_VERSION, **fingerprint}))
    if fingerprint["shard_records"] is None:
        fingerprint["shard_records"] = begun_shard_records(folder) or shard_records()
    with writing(folder):
        if not path.exists():
            with suppress(FileExistsError):  # another job of the array was first
                write_json(path, fingerprint, overwrite=False)
    begun = read_json(path)
    difference = first_difference(begun, fingerprint)
    if difference is not None:
        what, old, new = difference
        begun_with = f"expected {old}, with which this output was begun"
        raise FlashElmoError(f"{path}: {what}: {begun_with}, found {new}; overwrite=True starts over")
    return int(begun["shard_records"])


def begun_shard_records(folder: Path) -> int | None:
    """Return the number of records per shard with which a folder was begun; None if it was not.

    Raises:
        FlashElmoError: `run.json` is damaged.
    """
    path = folder / RUN
    if not path.exists():
        return None
    return whole_number(f"{path}: shard_records", read_json(path).get("shard_records"), 1)


def first_difference(begun: Any, found: Any, name: str = "") -> tuple[str, str, str] | None:
    """Return the name of the first thing that differs, and both its values."""
    if isinstance(begun, dict) and isinstance(found, dict):
        for key in begun | found:
            inner = f"{name}.{key}" if name else str(key)
            if (difference := first_difference(begun.get(key), found.get(key), inner)) is not None:
                return difference
        return None
    return None if begun == found else (name, json.dumps(begun)[:80], json.dumps(found)[:80])


def read_json(path: Path) -> Meta:
    """Read a JSON object, which is the one that was written if it has its own checksum.

    Raises:
        FlashElmoError: the file is missing, or holds something else.
    """
    try:
        values = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise FlashElmoError(f"{path}: expected a file, found none") from None
    except (OSError, ValueError, RecursionError):
        values = None
    if not isinstance(values, dict):
        raise FlashElmoError(f"{path}: expected an object of JSON, found something else")
    absent = object()
    expected = values.pop("sha256", absent)
    if expected is not absent and expected != (found := sha256_of_json(values)):
        raise FlashElmoError(f"{path}: expected values of sha256 {expected}, found {found}")
    return values


def remove_leftovers(folder: Path, num_shards: int, shard_id: int) -> None:
    """Remove leftovers of killed runs from the shards that belong to this run alone."""
    with writing(folder):
        for name in os.listdir(folder):
            found = TEMPORARY.fullmatch(name)
            if found is None:
                continue
            # that of run.json has no number; it may belong to another job that is just beginning
            if num_shards == 1 or (found[2] is not None and int(found[2]) % num_shards == shard_id):
                (folder / name).unlink(missing_ok=True)


def shard_numbers(folder: Path, num_shards: int = 1, shard_id: int = 0) -> list[int]:
    """Return the numbers of a job's shards marked as finished, ascending; none if there is no folder."""
    names = os.listdir(folder) if folder.is_dir() else ()
    numbers = sorted(int(found[1]) for name in names if (found := META.fullmatch(name)) is not None)
    return [number for number in numbers if number % num_shards == shard_id]


def kept_shards(folder: Path, numbers: Iterable[int]) -> dict[int, Meta]:
    """Return the entries of finished, undamaged shards, by number; warn about each damaged one."""
    kept = {}
    for number, meta, problems in finished(folder, numbers):
        if meta is not None and not problems:
            kept[number] = meta
        for problem in problems:
            logger.warning("%s: %s; the shard is written again", folder, problem)
    return kept


def finished(folder: Path, numbers: Iterable[int]) -> Iterator[tuple[int, Meta | None, list[str]]]:
    """Yield each shard with its JSON, if readable, and what is wrong with its files; threads check ahead."""
    return in_order(partial(_look_at, folder), numbers, READERS)


def entry_of(folder: Path, number: int) -> Meta:
    """Return the contents of a finished shard's JSON.

    Raises:
        FlashElmoError: it is damaged, or belongs to another shard.
    """
    path = folder / f"{shard_name(number)}.json"
    try:
        meta = read_json(path)
        files = {str(name): (each["bytes"], str(each["sha256"])) for name, each in meta["files"].items()}
        places = [meta[key][inner] for key in ("begin", "end") for inner in ("record", "line", "byte")]
        counts = [meta[key] for key in ("shard", "records", "embedded", "tokens", "rows")]
        numbers = [*places, *counts, *(n_bytes for n_bytes, _ in files.values())]
        types = (meta["last"], bool), (meta["input_sha256"], str), (meta["skipped"], list)
        is_entry = all(type(each) is int and each >= 0 for each in numbers) and all(isinstance(*each) for each in types)
    except (FlashElmoError, KeyError, TypeError, AttributeError):
        is_entry = False
    if not is_entry:
        raise FlashElmoError(f"{path}: expected a finished shard's entry, found something else")
    is_ours = meta["shard"] == number and all(OURS.fullmatch(name) for name in files)
    if not is_ours or places[3] - places[0] != meta["records"]:
        raise FlashElmoError(f"{path}: expected the entry of shard {number}, found another")
    return meta


def _look_at(folder: Path, number: int) -> tuple[int, Meta | None, list[str]]:
    try:
        meta = entry_of(folder, number)
    except FlashElmoError as error:
        return number, None, [str(error).removeprefix(f"{folder}{os.sep}")]
    found = [_wrong_file(folder / name, each["bytes"], each["sha256"]) for name, each in meta["files"].items()]
    return number, meta, [problem for problem in found if problem]


def _wrong_file(path: Path, n_bytes: int, sha256: str) -> str | None:
    """Return what is wrong with a file that should have this size and checksum."""
    try:
        size = path.stat().st_size
        if size != n_bytes:
            return f"{path.name}: expected {n_bytes} bytes, found {size}"
        found = sha256_of(path)
    except FileNotFoundError:
        return f"{path.name}: expected a file, found none"
    except OSError as error:
        return f"{path.name}: cannot be read: {error.strerror}"
    return None if found == sha256 else f"{path.name}: expected sha256 {sha256}, found {found}"


def folder_of(name: str, path: str | Path) -> Path:
    """Return the folder given as this argument; FlashElmoError if it is a file."""
    folder = utf8_path_of(name, path)
    if folder.is_file():
        raise FlashElmoError(f"{folder}: expected a folder of shards, found a file")
    return folder


def verify(folder: str | Path) -> list[str]:
    """Return what is wrong with a folder of shards, one line each; nothing if it is complete.

    Checked are sizes and sha256 of all files, their counts, gaps between shards and the end of the input.

    Raises:
        FlashElmoError: it is not a folder of shards.
    """
    folder = folder_of("folder", folder)
    begun = read_json(folder / RUN)
    problems: list[str] = []
    expected, last = 0, False
    place: Meta | None = {"record": 0, "line": 1, "byte": 0}
    for number, meta, wrong in finished(folder, shard_numbers(folder)):
        if number != expected:
            problems.append(_gap(expected, number))
        problems += wrong
        if meta is not None:
            if number == expected and place is not None and meta["begin"] != place:
                found = meta["begin"]["record"]
                problems.append(f"{shard_name(number)}: expected record {place['record']} first, found {found}")
            if last:
                problems.append(f"{shard_name(number)}: expected no shard behind the input's end, found one")
            if meta["records"] != begun.get("shard_records") and not meta["last"]:
                expected_records = begun.get("shard_records")
                problems.append(f"{shard_name(number)}: expected {expected_records} records, found {meta['records']}")
            problems += [] if wrong else _wrong_counts(folder, meta)
        last, place = (False, None) if meta is None else (meta["last"], meta["end"])
        expected = number + 1
    if not last:
        problems.append(f"{shard_name(expected)}: expected a shard at the input's end, found none; resume=True goes on")
    return problems


def _gap(first: int, next_one: int) -> str:
    if next_one - first == 1:
        return f"{shard_name(first)}: expected a finished shard, found none"
    return f"{shard_name(first)} to {shard_name(next_one - 1)}: expected finished shards, found none"


def _wrong_counts(folder: Path, meta: Meta) -> list[str]:
    """Return how the index's records, tokens and rows differ from the entry's counts."""
    name = f"{shard_name(meta['shard'])}.parquet"
    try:
        table = pq.read_table(folder / name, columns=["record", "n_tokens"], memory_map=True)
        found = [len(table), int(table["n_tokens"].to_numpy().sum())]
    except (pa.ArrowException, OSError, KeyError) as error:
        return [f"{name}: expected an index of records, found: {str(error).partition(chr(10))[0]}"]
    expected = [meta["embedded"], meta["tokens"]]
    if found == expected and meta["embedded"] + len(meta["skipped"]) == meta["records"]:
        return []
    return [f"{name}: expected {expected[0]} records of {expected[1]} tokens, found {found[0]} of {found[1]}"]
