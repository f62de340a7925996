"""Serve models of an exported folder with the NVIDIA Triton Inference Server that PyPI has, for this machine alone.

    python examples/serve_triton.py demo/elmo/triton elmo_onnx_text --port 8000

The package nvidia-pytriton holds the server with its Python backend, which runs the models that take text. NVIDIA's
image, with all backends, needs no such script. Ctrl-C or SIGTERM ends it.
"""

import argparse
import os
import signal
import sys
import sysconfig
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory

from pytriton.triton import Triton, TritonConfig


def main(repository: Path, models: list[str], host: str, port: int) -> None:
    """Serve the models until a signal comes."""
    find_libpython()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends as Ctrl-C does, and the server with it
    with TemporaryDirectory() as folder, suppress(KeyboardInterrupt):
        chosen = Path(folder, "models")  # the server loads all that it finds, also models of backends that it lacks
        chosen.mkdir()
        for name in models:
            if not (repository / name / "config.pbtxt").is_file():
                sys.exit(f"{repository} has no model {name!r}")
            (chosen / name).symlink_to((repository / name).resolve())
        config = TritonConfig(
            model_repository=chosen, http_address=host, http_port=port, allow_grpc=False, allow_metrics=False
        )
        with Triton(config=config, workspace=Path(folder, "server")) as triton:
            triton.serve()


def find_libpython() -> None:
    """Let the server find the library of a Python that lies where no loader looks, as pyenv's and conda's do."""
    paths = [sysconfig.get_config_var("LIBDIR"), os.environ.get("LD_LIBRARY_PATH")]
    os.environ["LD_LIBRARY_PATH"] = os.pathsep.join(path for path in paths if path)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Serve models of an exported folder.")
    parser.add_argument("repository", type=Path, help="the folder triton of an exported folder")
    parser.add_argument("models", nargs="+", help="names of folders in it")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000)
    main(**vars(parser.parse_args()))
