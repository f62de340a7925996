"""How ONNX Runtime's threads work here, in the engine and for exported files."""

from __future__ import annotations

from typing import Any

from flashelmo.engine.errors import MissingExtraError

try:
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
