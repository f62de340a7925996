"""ONNX Runtime, as the engine, exported files and benchmarks import it, and how its threads work."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from flashelmo.engine.errors import MissingExtraError

__all__ = ["onnxruntime", "session_options"]

TELEMETRY_OFF = "ORT_DISABLE_TELEMETRY"


@contextmanager
def _without_telemetry() -> Iterator[None]:
    """Let `import onnxruntime` find its telemetry turned off, unless the user chose.

    Otherwise it writes an identity and a database of events into the user's cache folder, to send them to its makers.
    """
    is_chosen = TELEMETRY_OFF in os.environ
    os.environ.setdefault(TELEMETRY_OFF, "1")
    try:
        yield
    finally:
        if not is_chosen:
            del os.environ[TELEMETRY_OFF]


try:
    with _without_telemetry():
        import onnxruntime
except ImportError as error:
    raise MissingExtraError("onnxruntime", "cpu", "running ELMo on the CPU") from error

# Threads that wait for work poll for so long, and then sleep. By default they poll for milliseconds and more, and keep
# cores from threads that have work as soon as the machine does anything else. Versions before 1.26 do so still.
POLLED_MICROSECONDS = 50


def session_options(threads: int) -> Any:
    """Return options for a session on so many threads, whose numbers of rows keep changing."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.enable_mem_pattern = False  # each number of rows would keep a pattern
    options.add_session_config_entry("session.intra_op.spin_duration_us", str(POLLED_MICROSECONDS))
    options.add_session_config_entry("session.force_spinning_stop", "1")  # between calls they do not poll at all
    return options
