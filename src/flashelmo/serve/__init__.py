"""Vectors over HTTP: `flashelmo serve`, with the extra `flashelmo[serve]`.

    server.py       uvicorn on a port: starts, drains on SIGTERM, ends
    app.py          the application: its own endpoints, errors, the page
    endpoint.py     what all endpoints of vectors do
    openai.py       OpenAI's endpoint;  infer.py: the Open Inference Protocol's
    schemas.py      what requests hold
    errors.py       what is refused, in the error format of each convention
    limits.py       what a request may take, and those in flight do;  guard.py: holds every request to it
    formats.py      answers as JSON, safetensors, NumPy or Arrow
    service.py      a model behind the endpoints: sentences in, vectors out
    batching.py     requests that wait together become one window
    workers.py      a process a device, restarted when it dies
    metrics.py      what Prometheus reads
    on_ray.py       the same application as a deployment of Ray Serve
    page.html       the page at `/`

docs/serving.md is its manual.
"""

from importlib import import_module

from flashelmo.engine.errors import MissingExtraError

for _package in ("fastapi", "httptools", "orjson", "prometheus_client", "pydantic", "uvicorn"):
    try:
        import_module(_package)
    except ImportError as error:
        raise MissingExtraError(_package, "serve", "flashelmo serve") from error
