"""The same application on a Ray cluster: replicas behind Ray Serve's proxies, as many as the load asks for.

A replica is the whole service of one device, with limits of its own. Ray starts one that dies anew, and sends requests
to the others meanwhile; what it was answering is lost, so that clients get an error of Ray's and try again.
"""

from __future__ import annotations

import logging
import signal
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from queue import SimpleQueue
from typing import Any

from fastapi import FastAPI

from flashelmo.engine.errors import FlashElmoError, MissingExtraError, first_line
from flashelmo.engine.settings import Settings
from flashelmo.serve.app import make_app
from flashelmo.serve.service import Service, ServiceSettings

NAME = "flashelmo"
WAITING = 2  # times the requests that a replica has in flight wait in a proxy before others are refused


def serve_on_ray(
    settings: ServiceSettings,
    host: str,
    port: int,
    address: str,
    replicas: tuple[int, int],
    say: Callable[[str], None],
) -> None:
    """Serve a model on a cluster until a signal ends it.

    Args:
        settings: with the model under a path that all machines have.
        host, port: that the proxies listen on, on every machine.
        address: of the cluster, "auto" for the one that this machine is part of, or "local" for one of this machine
            alone, for as long as the service lasts.
        replicas: the fewest and the most; Ray chooses by the load.

    Raises:
        FlashElmoError: no cluster at the address, settings that do not go together, a replica that cannot start.
        MissingExtraError: Ray Serve is not installed.
    """
    try:
        import ray
        from ray import serve
    except ImportError as error:
        raise MissingExtraError("ray", "ray", "serving on Ray") from error
    application = ray_application(settings, replicas)
    begun_here = not ray.is_initialized()
    try:
        if begun_here:
            ray.init(address=address, logging_level=logging.WARNING)
        serve.start(http_options={"host": host, "port": port})
        serve.run(application, name=NAME)
        fewest, most = replicas
        say(f"{fewest} to {most} replicas on Ray: http://{host}:{port}")
        _wait_for_a_signal()
    except FlashElmoError:  # a ValueError too
        raise
    except (ray.exceptions.RayError, ConnectionError, ValueError, RuntimeError) as error:
        raise FlashElmoError(f"ray: {first_line(error)}") from None
    finally:
        with suppress(Exception):
            serve.shutdown()
        if begun_here:
            ray.shutdown()


def _wait_for_a_signal() -> None:
    """Until Ctrl-C or SIGTERM, for which Ray has handlers that abort the process."""
    arrived: SimpleQueue[int] = SimpleQueue()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, frame: arrived.put(number))
    arrived.get()


def ray_application(settings: ServiceSettings, replicas: tuple[int, int]) -> Any:
    """What `ray.serve.run` takes: for those who compose it with deployments of their own.

    Args:
        settings: see `serve_on_ray`.
        replicas: the fewest and the most.

    Raises:
        FlashElmoError: settings that do not go together.
    """
    from ray import serve

    fewest, most = replicas
    if not 1 <= fewest <= most:
        raise FlashElmoError(f"replicas: expected the fewest, then at least as many, found {fewest},{most}")
    options = {**settings.options, "threads": settings.options.get("threads") or 1}
    devices = Settings.of({"device": options.get("device", "auto")}).devices
    if len(devices) > 1:
        raise FlashElmoError(f"device: expected one, of each replica, found {len(devices)}")
    settings = replace(settings, options=options)

    def build() -> FastAPI:
        return make_app(Service(settings))

    requests = settings.limits.requests
    return serve.deployment(
        serve.ingress(build)(),
        name=NAME,
        autoscaling_config={
            "min_replicas": fewest,
            "max_replicas": most,
            "target_ongoing_requests": max(1, requests // 8),
        },
        max_ongoing_requests=requests,
        max_queued_requests=WAITING * requests,
        graceful_shutdown_timeout_s=settings.limits.seconds,
        ray_actor_options={
            "num_cpus": options["threads"],
            "num_gpus": 1 if devices[0].startswith("cuda") else 0,
        },
    ).bind()
