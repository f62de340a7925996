"""Mutations of what is no format of its own: bytes, lines, and JSON's values."""

from __future__ import annotations

import json
from collections.abc import Callable
from random import Random
from typing import Any

OUTSIDE = "../outside"  # a folder beside that of the case, which nothing may open
NUMBERS: list[Any] = [0, 1, -1, 2, 3, 7, 255, 256, 262, 1000, 1001, 2**31, 2**62, 2**63, 10**20, 10**400]
NUMBERS += [0.5, -0.0, 1e-320, 1e39, 1e300, float("inf"), float("nan")]
STRINGS = ["", "elmo", "\ud800", "\0", "relu", "é" * 50, "x" * 5000, f"{OUTSIDE}/secret", "/etc/passwd", "!!!MAXTERMID"]
VALUES: list[Any] = [*NUMBERS, *STRINGS, None, True, False, [], {}, [[]], [1, 2], [[1, 2]], {"a": {"b": 1}}]
BYTES = [b"\0", b"\xff", b"\xff\xff\xff\xff", b"\0\0\0\0", b"\0\0\0\x80", b"\xff" * 8, b"\1", b"\n", b"{", b"[", b'"']


def change_bytes(data: bytes, rng: Random) -> bytes:
    """Bits, numbers, truncation, blocks that are cut out, doubled or swapped."""
    if not data:
        return rng.choice(BYTES) * rng.choice((1, 9, 1000))
    changed = bytearray(data)
    near = rng.choice((len(data), min(len(data), 64), min(len(data), 4096)))  # headers have the most to say
    for _ in range(rng.choice((1, 1, 2, 5, 30))):
        at = rng.randrange(near)
        size = rng.randrange(1, 1 + min(200, len(data)))
        kind = rng.randrange(8)
        if kind <= 2:
            at = min(at, len(changed) - 1) if changed else 0
            changed[at : at + 1] = bytes([(changed[at] if changed else 0) ^ 1 << rng.randrange(8)])
        elif kind == 3:
            value = rng.choice(BYTES)
            changed[at : at + len(value)] = value
        elif kind == 4:
            del changed[at:]
        elif kind == 5:
            del changed[at : at + size]
        elif kind == 6:
            changed[at:at] = changed[at : at + size] * rng.choice((1, 2, 50))
        else:
            changed += rng.choice(BYTES) * size
        if rng.random() < 0.3:
            break
    return bytes(changed)


def change_lines(data: bytes, rng: Random) -> bytes:
    """Lines absent, twice, in another order, in another encoding; tabs and numbers that are not."""
    lines = data.split(b"\n")
    at = rng.randrange(len(lines))
    line = lines[at]
    strange = [b"", b"\t", line + b"\t1", line.replace(b"\t", b" "), line * 3, b"\xff\xfe", b"a\0b", b"x" * 100_000]
    strange += [b"\r", b"\x85", "\u2028\u3000".encode(), b"\xed\xa0\x80", b"a\t" + b"9" * 5000, b"a\t-1", b"a\t1e3"]
    strange += [b">header", b"1\tthe\t_\t_\t_\t_\t_\t_\t_\t_", "a\t\u0663".encode(), b" ".join([b"w"] * 9000)]
    choices: list[Callable[[], bytes]] = [
        lambda: b"\n".join([*lines[:at], *lines[at + 1 :]]),
        lambda: b"\n".join([*lines[:at], line, *lines[at:]]),
        lambda: b"\n".join([*lines[:at], rng.choice(strange), *lines[at + 1 :]]),
        lambda: b"\n".join(lines[::-1]),
        lambda: b"\xef\xbb\xbf" + data,
        lambda: data.decode("utf-8", "replace").encode(rng.choice(("utf-16", "utf-32", "utf-7"))),
        lambda: data.replace(b"\n", b"\r"),
        lambda: data * rng.choice((2, max(2, 100_000 // (1 + len(data))))),
    ]
    return rng.choice(choices)()


def change_json(data: bytes, rng: Random) -> bytes:
    """A value of another type or size, a key that is absent, doubled or another; too deep, too long."""
    kind = rng.randrange(20)
    if kind == 0:
        return data.replace(b"{", b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b",", 1)
    if kind == 1:
        return data.replace(b"{", b'{"lstm": 1, "config": {}, ', 1)
    if kind == 2:
        return data.decode().encode(rng.choice(("utf-8-sig", "utf-16", "utf-32-be")))
    if kind == 3:
        return data.replace(b"1", b"1" * 5000, 1)
    return json.dumps(change_tree(json.loads(data), rng)).encode("utf-8", "surrogatepass")


def change_tree(values: Any, rng: Random) -> Any:
    """JSON's values with one of them changed, wherever it stands."""
    if not isinstance(values, dict | list) or not values or rng.random() < 0.05:
        return _value(values, rng)
    keys: list[Any] = list(values) if isinstance(values, dict) else list(range(len(values)))
    key = rng.choice(keys)
    kind = rng.randrange(12)
    if kind == 0:
        del values[key]
    elif kind == 1:
        other = rng.choice(keys)
        values[key], values[other] = values[other], values[key]
    elif kind == 2 and isinstance(values, dict):
        values[rng.choice((*STRINGS, key + "x"))] = values.pop(key)
    elif kind == 2 and isinstance(values, list):
        values.extend([values[key]] * rng.choice((1, 999, 20_000)))
    else:
        values[key] = change_tree(values[key], rng)
    return values


def _value(value: Any, rng: Random) -> Any:
    """Another value, sometimes one like it."""
    if isinstance(value, int | float) and rng.random() < 0.4:
        return rng.choice((value + 1, value - 1, value * 2, -value, float(value), str(value), [value]))
    found = rng.choice(VALUES)
    return json.loads(json.dumps(found)) if isinstance(found, dict | list) else found
