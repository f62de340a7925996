"""A seed's files, mutated by their structure: the files, their folder, the archive around them."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable
from random import Random

from fuzz_formats import change_gzip, change_hdf5, change_onnx, change_pickle, change_safetensors, change_zip
from fuzz_seeds import COMPRESSIONS, Files, Seed, pack, pack_members
from fuzz_values import OUTSIDE, change_bytes, change_json, change_lines


def mutate(seed: Seed, rng: Random) -> Files:
    """A seed's files, one to three of them changed; empty data under a name that ends with "/" stand for a folder."""
    files = dict(seed.files)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        name = rng.choice(sorted(files))
        if rng.random() < 0.04:
            files = _changed_folder(files, name, rng)
        else:
            files[name] = _changed(name, files[name], rng)
        if not files:
            break
    if seed.archive:
        return {f"model.{seed.archive}": _archive(files, seed.archive, rng)}
    return files


def _changed_folder(files: Files, name: str, rng: Random) -> Files:
    """A file is absent, is a folder, is another one's, or has another name."""
    data = files[name]
    rest = {other: content for other, content in files.items() if other != name}
    other = rng.choice(sorted(files))
    choices = rest, rest | {f"{name}/": b""}, rest | {f"{name}x": data}, files | {name: files[other], other: data}
    return rng.choice(choices)


def _changed(name: str, data: bytes, rng: Random) -> bytes:
    """A file's data, changed by its structure or, now and then, as bytes."""
    if rng.random() < 0.25:
        return change_bytes(data, rng)
    kinds: list[tuple[str, Callable[[bytes, Random], bytes]]] = [
        (".json", change_json),
        (".safetensors", change_safetensors),
        (".hdf5", change_hdf5),
        (".pkl", change_pickle),
        (".th", change_pickle),
        (".gz", change_gzip),
        (".onnx", change_onnx),
        (".dic", change_lines),
        (".txt", change_lines),
    ]
    for suffix, change in kinds:
        if name.endswith(suffix):
            with contextlib.suppress(Exception), warnings.catch_warnings():  # an earlier change broke the structure
                warnings.simplefilter("ignore")
                return change(data, rng)
    return change_bytes(data, rng)


def _archive(files: Files, suffix: str, rng: Random) -> bytes:
    """The files packed, with strange members, or damaged behind that."""
    files = {name: data for name, data in files.items() if not name.endswith("/")}
    kind = rng.randrange(8)
    if kind == 0 and suffix == "zip":
        strange = (f"{OUTSIDE}/ran", "/tmp/flashelmo_fuzz_ran", "a/../../outside/ran", "x/" * 100 + "x", "C:\\x", "")
        return pack(files | {rng.choice(strange): b"x"}, suffix)
    if kind <= 1 and suffix != "zip":
        members: list[tuple[str, dict[str, object]]] = [
            (f"{OUTSIDE}/ran", {}),
            ("/tmp/flashelmo_fuzz_ran", {}),
            ("link.hdf5", {"type": b"2", "linkname": f"{OUTSIDE}/secret"}),
            ("config.json", {"type": b"2", "linkname": "/etc/passwd"}),
            ("weights.hdf5", {"type": b"1", "linkname": f"{OUTSIDE}/secret"}),
            ("pipe", {"type": b"6"}),
            ("weights.hdf5", {"type": b"3", "devmajor": 1, "devminor": 5}),
            ("x/" * 100 + "x", {}),
            ("many", {"type": b"5", "mode": 0}),
            ("loop", {"type": b"2", "linkname": "loop"}),
        ]
        return COMPRESSIONS[suffix](pack_members(rng.sample(members, rng.choice((1, 2))), files))
    if kind == 2:
        nested = {"inner/" * rng.choice((1, 3, 90)) + name: data for name, data in files.items()}
        return pack(nested, suffix)
    if kind == 3:
        files[rng.choice(("big.json", "weights.hdf5", "a.txt"))] = bytes(3 * 10**7)
    data = pack(files, suffix)
    if kind == 4:
        return change_bytes(data, rng)
    return change_zip(data, rng) if kind == 5 and suffix == "zip" else data
