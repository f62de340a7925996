"""How many tokens of a window fit the device's memory, and how much memory a window takes."""

from __future__ import annotations

import torch

from flashelmo.engine.cuda.layout import D, Layout, Sizes
from flashelmo.engine.model.config import ElmoConfig
from flashelmo.engine.output import Output
from flashelmo.engine.text.schedule import LARGEST_WINDOW_TOKENS, MAX_WINDOW_TOKENS
from flashelmo.kernels.lstm.hoisted import SLAB_BYTES

LEAST_WINDOW_TOKENS = 1 << 10
# If there is room, windows have up to LARGEST_WINDOW_TOKENS: more tokens share the fixed cost of a step, and the host's
# time for its launches (`benchmarks/results/gpu/windows.txt`, `benchmarks/results/bulk/host.json`).
ROOM_FRACTION = 1 / 4  # of free memory, for these
USABLE_FRACTION = 0.8  # of free memory; the estimate leaves some things out
WORD_GATES_FRACTION = 1 / 16  # of all memory, at most, for the input part of a window's words
TOKENS_PER_ROW = 6  # assume the widest depth has one row per 6 tokens: short sentences
RESULTS_HELD = 3  # windows whose results may be on the device at once: two in flight, and the one being read
FLOAT_BYTES = 4


def window_tokens(config: ElmoConfig, value_bytes: int, device: torch.device) -> int:
    """Return how many tokens a window may have to fit the free memory; halved later if that proves wrong."""
    if device.type != "cuda":
        return MAX_WINDOW_TOKENS
    cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)  # returned when needed
    return tokens_that_fit(config, value_bytes, torch.cuda.mem_get_info(device)[0] + cached)


def tokens_that_fit(config: ElmoConfig, value_bytes: int, free: int) -> int:
    """Return a window's tokens for so many free bytes: MAX_WINDOW_TOKENS if they fit, more if a quarter is enough."""
    size, n_layers = config.projection_size, config.n_layers
    hidden = 2 * size * value_bytes * (n_layers + 1)
    step = 2 * config.cell_size * (2 * FLOAT_BYTES + value_bytes) / TOKENS_PER_ROW
    results = RESULTS_HELD * (n_layers + 1) * 2 * size * FLOAT_BYTES

    def tokens(n_bytes: float) -> int:
        return int((n_bytes - SLAB_BYTES) / (hidden + step + results))

    fits = max(LEAST_WINDOW_TOKENS, tokens((USABLE_FRACTION - WORD_GATES_FRACTION) * free))
    return min(fits, max(MAX_WINDOW_TOKENS, min(LARGEST_WINDOW_TOKENS, tokens(ROOM_FRACTION * free))))


def word_gates_bytes(device: torch.device) -> int:
    """Return the bytes that the input part of a window's words may take; without a card, as on a small one."""
    total = torch.cuda.get_device_properties(device).total_memory if device.type == "cuda" else 16 << 30
    return int(WORD_GATES_FRACTION * total)


def peak_bytes(config: ElmoConfig, value_bytes: int, sizes: Sizes, output: Output) -> int:
    """Return about how many bytes a window of these sizes takes at its peak, besides the model and the word table."""
    size, n_layers = config.projection_size, config.n_layers
    hidden = D * sizes.n_nodes * size * value_bytes
    step = D * max(sizes.max_rows, sizes.n_roots) * config.cell_size * (2 * FLOAT_BYTES + value_bytes)
    n_results = len(output.groups(n_layers + 1)) * (sizes.n_sentences if output.pool else sizes.n_tokens)
    gates = min(SLAB_BYTES, D * sizes.n_nodes * 4 * config.cell_size * FLOAT_BYTES)
    return (n_layers + 1) * hidden + step + gates + n_results * 2 * size * FLOAT_BYTES + 4 * Layout.of(sizes).size


def free_memory(device: torch.device) -> str:
    """Return the device's free memory as text; the host's is not known."""
    if device.type != "cuda":
        return "some GiB"
    return f"{torch.cuda.mem_get_info(device)[0] / 2**30:.2f} GiB"
