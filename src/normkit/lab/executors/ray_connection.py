"""Connect to a Ray cluster, or start one on this machine."""

from __future__ import annotations

import importlib
import logging
import os
import signal
import socket
import threading
from typing import Any

from normkit.errors import OptionError, how_to_install, message

__all__ = ["call", "connect", "import_ray"]

REACH_SECONDS = 10.0


def import_ray() -> Any:
    try:
        ray = importlib.import_module("ray")
        importlib.import_module("ray.util.scheduling_strategies")
    except ImportError:
        raise OptionError(
            message(
                "Ray, for runs on a Ray cluster",
                "an installation without it",
                how_to_install("ray"),
            )
        ) from None
    return ray


def connect(ray: Any, address: str | None) -> bool:
    """Join the cluster; return False if this process had joined one, which is then used."""
    if ray.is_initialized():
        return False
    if address is not None and address.startswith("ray://"):
        raise OptionError(
            message(
                "an address on a node of the cluster, beside its store",
                f"{address}, which connects from outside",
                "join this machine with ray start --address=HOST:6379 (--num-cpus=0 if it is not "
                "to train), and leave out --address",
            )
        )
    _reach(address)
    # A cluster started here sends no usage reports to Ray's makers, unless asked to.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    before = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(
            address=address,
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
        )
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise _no_cluster(address, error) from error
    finally:
        # Ray's own handler would end the process; what SIGTERM means is the command's to say.
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)
    return True


def _reach(address: str | None) -> None:
    """Fail at once if nobody listens at an address, which Ray would try for minutes."""
    host, _, port = (address or "").rpartition(":")
    if not host or not port.isdecimal():  # "auto", "local" or none
        return
    try:
        socket.create_connection((host, int(port)), REACH_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise _no_cluster(address, error) from error


def _no_cluster(address: str | None, error: Exception) -> OptionError:
    return OptionError(
        message(
            "a Ray cluster to join",
            f"{address or 'none named'}: {error}",
            "start one with ray start --head, and pass its address with --address",
        )
    )


def call(ray: Any, actor: Any, method: str, *arguments: Any) -> Any:
    """Call a method of an actor and return its result."""
    try:
        return ray.get(getattr(actor, method).remote(*arguments))
    except ray.exceptions.RayTaskError as error:
        # Raised as itself, a StoreError for instance, not wrapped in the actor's trace.
        raise (error.cause or error) from error
