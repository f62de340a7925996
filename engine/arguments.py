"""Checks of callers' arguments: whole numbers, flags, numbers, paths. Errors are one line that names the argument."""

from __future__ import annotations

import math
import operator
import os
import re
import sys
from collections.abc import Mapping, Set
from pathlib import Path
from typing import IO, Any

from flashelmo.engine.errors import FlashElmoError

ADDRESS = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/+")
OPEN_FILE = re.compile(r"/dev/(stdin|fd/\d+)")
FLOAT32_MAX = (2 - 2**-23) * 2.0**127  # the largest number of this type
DIGITS = 18  # of a whole number given as text
LONGEST = 60  # characters of a value in an error


def shown(value: object) -> str:
    """Return a value as errors show it: on one line, and shortened if long."""
    text = " ".join(f"{value!r:.200}".split())
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}..."


def check(holds: bool, name: str, expected: str, found: object) -> None:
    """Raise FlashElmoError unless the condition on a field holds."""
    if not holds:
        raise FlashElmoError(f"{name}: expected {expected}, found {shown(found)}")


def whole_number(name: str, value: Any, least: int, most: int | None = None) -> int:
    """Return a whole number given as any integer type.

    Raises:
        FlashElmoError: it is something else, or out of range.
    """
    try:
        number = None if isinstance(value, bool) else operator.index(value)
    except (TypeError, ValueError, RuntimeError):  # for arrays and tensors too
        number = None
    largest = sys.maxsize if most is None else most
    if number is None or not least <= number <= largest:
        too_large = number is not None and number > least
        expected = f"{least} or more" if most is None and not too_large else f"{least} to {largest}"
        raise FlashElmoError(f"{name}: expected {expected}, found {shown(value)}")
    return number


def is_decimal(text: str) -> bool:
    """Whether a text is a whole number of not too many digits, which `int` would refuse."""
    return text.isdecimal() and len(text) <= DIGITS


def is_one_of(value: object, *names: str) -> bool:
    """Whether a value, which may be of any type, is one of these strings."""
    return isinstance(value, str) and value in names


def flag(name: str, value: Any) -> bool:
    """Return True or False, given as such or as NumPy's; FlashElmoError if the value is something else."""
    if type(value).__name__ not in ("bool", "bool_"):
        raise FlashElmoError(f"{name}: expected True or False, found {shown(value)}")
    return bool(value)


def expect_no_state(stateful: bool, why: str) -> None:
    """Raise FlashElmoError, with the reason, if sentences would depend on earlier ones and must not."""
    if stateful:
        raise FlashElmoError(f"stateful: expected an embedder that carries no state, as {why}, found True")


def finite_numbers(name: str, values: Any) -> tuple[float, ...]:
    """Return the numbers in a list, an array or a tensor; FlashElmoError if there are none, or one exceeds float32.

    A dictionary would only give its keys, a set has no order, and bytes are not numbers.
    """
    no_list = str, bytes, bytearray, Mapping, Set
    try:
        found = tuple(float(value) for value in (values.tolist() if hasattr(values, "tolist") else values))
    except (TypeError, ValueError, OverflowError, RuntimeError):
        found = ()
    if not found or isinstance(values, no_list) or not all(map(math.isfinite, found)):
        raise FlashElmoError(f"{name}: expected a finite number for each layer, found {shown(values)}")
    largest = max(found, key=abs)
    if abs(largest) > FLOAT32_MAX:
        raise FlashElmoError(f"{name}: expected numbers that float32 can hold, found {largest:g}")
    return found


def path_of(name: str, value: Any) -> Path:
    """Return a path on this machine, with `~` as the home folder.

    Raises:
        FlashElmoError: it is not a path, or is an address elsewhere.
    """
    text = os.fspath(value) if isinstance(value, str | os.PathLike) else None
    if not isinstance(text, str) or not text or "\0" in text or not _can_be_encoded(text):
        raise FlashElmoError(f"{name}: expected a path, found {shown(value)}")
    if ADDRESS.match(text):
        address = ADDRESS.sub(r"\1://", text, count=1)
        expected = "expected a path on this machine, as no address is downloaded"
        raise FlashElmoError(f"{name}: {expected}, found {address}; fetch it, say with curl -LO, and give its path")
    return Path(os.path.expanduser(text))


def standard_input() -> IO[bytes]:
    """Return it; FlashElmoError if this process has none."""
    if sys.stdin is None:
        raise FlashElmoError("-: standard input is closed")
    return sys.stdin.buffer


def is_stream(source: str | Path) -> bool:
    """Whether an input can be read only once: standard input, a pipe, a device.

    A file that a shell opened is one too, except on Linux: there alone opening its name in /dev again begins anew,
    elsewhere it goes on where the file has been read to.
    """
    if str(source) == "-" or ADDRESS.match(str(source)):
        return str(source) == "-"
    path = Path(os.path.expanduser(source))
    if sys.platform != "linux" and OPEN_FILE.fullmatch(str(path)):
        return path.exists()
    return path.exists() and not path.is_file() and not path.is_dir()


def _can_be_encoded(text: str) -> bool:
    try:
        return bool(os.fsencode(text))
    except UnicodeEncodeError:
        return False


def utf8_path_of(name: str, value: Any) -> Path:
    """Do as `path_of`, for a path that goes to a library which requires UTF-8.

    Raises:
        FlashElmoError: as for `path_of`, or the path is not UTF-8.
    """
    path = path_of(name, value)
    try:
        str(path).encode()
    except UnicodeEncodeError:
        try:
            advice = f"; PYTHONUTF8=1 reads it as {os.fsencode(path).decode()!a}"  # not this locale
        except UnicodeDecodeError:
            advice = ""
        raise FlashElmoError(f"{name}: expected a path in UTF-8, found {str(path)!a}{advice}") from None
    return path
