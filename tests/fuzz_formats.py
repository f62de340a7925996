"""Mutations of files of one format each: tensors' names, types and shapes, where they lie, what is no tensor, code."""

from __future__ import annotations

import gzip
import io
import json
import pickle
import struct
import zipfile
from random import Random
from typing import Any

import h5py
import numpy as np
import onnx
import torch
from fuzz_values import NUMBERS, OUTSIDE, VALUES, change_bytes, change_json, change_lines, change_tree


def change_safetensors(data: bytes, rng: Random) -> bytes:
    """The header's JSON, its length, names that are swapped, numbers that are none."""
    begin = 8 + struct.unpack("<Q", data[:8])[0]
    kind = rng.randrange(6)
    if kind == 0:
        length = rng.choice((0, 1, begin - 9, begin - 7, 2**31, 2**63, 2**64 - 1, 10**8, len(data)))
        return struct.pack("<Q", length) + data[8:]
    if kind == 1:
        numbers = np.frombuffer(data[begin:], np.float32).copy()
        numbers[rng.randrange(len(numbers))] = rng.choice((np.nan, np.inf, 3e38, -3e38, 1e-44))
        return data[:begin] + numbers.tobytes()
    header = data[8:begin]
    if kind == 2:
        header = change_json(header, rng)
    else:
        tree = json.loads(header)
        name = rng.choice(sorted(tree))
        entry = tree[name]
        if kind == 3:
            entry["dtype"] = rng.choice(("F16", "F64", "BF16", "I32", "U8", "F4", "", None, []))
        elif kind == 4:
            other = rng.choice(sorted(tree))
            tree[name], tree[other] = tree[other], entry
        else:
            field = rng.choice(("shape", "data_offsets"))
            entry[field] = change_tree(list(entry[field]), rng)
        header = json.dumps(tree).encode("utf-8", "surrogatepass")
    return struct.pack("<Q", len(header)) + header + data[begin:]


def change_hdf5(data: bytes, rng: Random) -> bytes:
    """A tensor that is absent, another's, elsewhere, of another type, shape or layout; groups without end."""
    image = io.BytesIO(data)
    with h5py.File(image, "r+") as file:
        names: list[str] = []
        file.visit(names.append)
        name = rng.choice(names)
        _change_entry(file, name, rng)
    return image.getvalue()


def _change_entry(file: h5py.File, name: str, rng: Random) -> None:
    entry = file[name]
    values = entry[()] if isinstance(entry, h5py.Dataset) else np.ones((2, 3), np.float32)
    shape = values.shape
    if rng.random() < 0.15:
        values = values.astype(rng.choice(("f2", "f8", "i4", "u1", "S4", "c8", "?", ">f4")))
        del file[name]
        file[name] = values
        return
    if rng.random() < 0.15:
        wrong = rng.choice(((), (0,), shape[::-1], (*shape, 1), shape[:-1], (2**20, 2**20), (2**62,), (1,) * 32))
        del file[name]
        chunks = (1,) * len(wrong) if 0 < len(wrong) < 3 and 0 not in wrong else None
        file.create_dataset(name, wrong, rng.choice(("f4", "f8")), chunks=chunks)
        return
    if rng.random() < 0.15:
        del file[name]
        options: dict[str, Any] = {"chunks": tuple(4096 for _ in shape), "maxshape": (None,) * len(shape)}
        file.create_dataset(name, shape, "f4", compression=rng.choice((None, "gzip", "lzf")), **options)
        return
    other = rng.choice(sorted(file))
    del file[name]
    kind = rng.choice((0, 0, 0, *range(12)))
    if kind == 0:
        file.create_dataset(name, shape, "f4", external=[(f"{OUTSIDE}/secret", 0, h5py.h5f.UNLIMITED)])
    elif kind == 1:
        layout = h5py.VirtualLayout(shape, "f4")
        layout[...] = h5py.VirtualSource(f"{OUTSIDE}/secret.h5", "x", shape)
        file.create_virtual_dataset(name, layout)
    elif kind == 2:
        file[name] = h5py.ExternalLink(f"{OUTSIDE}/secret.h5", "x")
    elif kind == 3:
        file[name] = h5py.SoftLink(rng.choice((f"/{name}", "/", f"/{other}", "/absent")))
    elif kind == 4 and other in file:
        file[name] = file[other]
    elif kind == 5:
        file.create_group(name + "/x" * rng.choice((1, 8, 400)))
    elif kind == 6:
        file[name] = h5py.Empty("f4")
    elif kind == 7:
        file.create_dataset(name, shape, h5py.string_dtype())
    elif kind == 8:
        file.create_dataset(name, shape, h5py.vlen_dtype(np.float32))
    elif kind == 9:
        file[name] = np.zeros(shape, [("a", "f4"), ("b", "f4", (2,))])
    elif kind == 10:
        file[name] = np.full(shape, rng.choice((np.nan, np.inf, 1e38, 1e-44)), np.float32)
    else:
        file[rng.choice((f"{name}x", "RNN_0/x", "CNN", "char_embed/x", "lm/x"))] = values


class Code:
    """Leaves a trace where a pickle of it is loaded as code."""

    def __init__(self, command: str) -> None:
        self._command = command

    def __reduce__(self) -> Any:
        return eval, (self._command,)


def change_pickle(data: bytes, rng: Random) -> bytes:
    """Tensors of other names, types and layouts, what is no tensor, code; then perhaps the zip archive around them."""
    if rng.random() < 0.25 and data[:2] == b"PK":
        return change_zip(data, rng)
    tensors: dict[Any, Any] = dict(torch.load(io.BytesIO(data), weights_only=True))
    name = rng.choice(sorted(tensors))
    tensor = tensors[name]
    strange = [tensor.to(kind) for kind in (torch.float16, torch.bfloat16, torch.float64, torch.int8, torch.complex64)]
    strange += [tensor.to_sparse(), tensor[:0], tensor[None], tensor.T, tensor.reshape(-1), torch.tensor(1.0)]
    strange += [
        torch.zeros(1).expand(2**40),
        torch.zeros(1, 1).expand(2**20, 2**20),
        torch.full_like(tensor, torch.nan),
    ]
    strange += [torch.nn.Parameter(tensor), tensor.is_floating_point(), None, {"a": tensor}, [tensor], "x", 1, 2**80]
    strange += [torch.empty(2**40, device="meta"), torch.quantize_per_tensor(tensor.float(), 0.1, 0, torch.quint8)]
    strange += [Code(f"open({OUTSIDE + '/ran'!r}, 'w')"), Code("__import__('os').system('true')")]
    kind = rng.randrange(6)
    whole: Any = tensors
    if kind == 0:
        del tensors[name]
    elif kind == 1:
        tensors[rng.choice((1, None, name + "x", ("a",)))] = tensor
    elif kind == 2:
        other = rng.choice(sorted(tensors))
        tensors[name], tensors[other] = tensors[other], tensor
    elif kind == 3:
        whole = rng.choice((tensor, [tensors], {"state_dict": tensors}, None, 3, Code("print(1)"), {}))
    else:
        tensors[name] = rng.choice(strange)
    image = io.BytesIO()
    if rng.random() < 0.1:
        pickle.dump(whole, image)
    else:
        torch.save(whole, image, _use_new_zipfile_serialization=rng.random() < 0.6)
    return image.getvalue()


def change_gzip(data: bytes, rng: Random) -> bytes:
    """What is packed, or around it: a bomb, a file behind the file."""
    kind = rng.randrange(6)
    if kind == 0:
        return gzip.compress(bytes(rng.choice((10**5, 3 * 10**7))), 9, mtime=0)
    if kind == 1:
        return data + rng.choice((data, b"\0" * 100, b"garbage"))
    return gzip.compress(change_lines(gzip.decompress(data), rng), 1, mtime=0)


def change_onnx(data: bytes, rng: Random) -> bytes:
    """What a file says of itself, the names and types of its values, its tensors."""
    model = onnx.load_from_string(data)
    kind = rng.randrange(8)
    entry = rng.choice(model.metadata_props)
    if kind == 0:
        model.metadata_props.remove(entry)
    elif kind == 1:
        entry.key = rng.choice([each.key for each in model.metadata_props])
    elif kind == 2:
        value = rng.choice((*model.graph.input, *model.graph.output))
        value.name = rng.choice([each.name for each in model.graph.input] + ["x", ""])
    elif kind == 3:
        value = rng.choice((*model.graph.input, *model.graph.output))
        value.type.tensor_type.elem_type = rng.randrange(24)
    elif kind == 4:
        first, second = (rng.choice(model.graph.initializer) for _ in range(2))
        first.name, second.name = second.name, first.name
    else:
        try:
            entry.value = change_json(entry.value.encode(), rng).decode("utf-8", "replace")
        except ValueError:
            entry.value = str(rng.choice(VALUES[: len(NUMBERS)]))
    return bytes(model.SerializeToString())


def change_zip(data: bytes, rng: Random) -> bytes:
    """Members whose data are changed, doubled or elsewhere."""
    image = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as source, zipfile.ZipFile(image, "w") as target:
        names = source.namelist()
        chosen = rng.choice(names)
        for name in names:
            content = source.read(name)
            if name == chosen:
                content = rng.choice((change_bytes(content, rng), b"", bytes(3 * 10**7)))
                name = rng.choice((name, name, name, f"{OUTSIDE}/{name}", name.replace("data", "code"), "/" + name))
            deflated = rng.random() < 0.3
            target.writestr(zipfile.ZipInfo(name), content, zipfile.ZIP_DEFLATED if deflated else zipfile.ZIP_STORED)
    return image.getvalue()
