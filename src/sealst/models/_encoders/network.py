"""Whether the model hub can be reached: asked once and quickly, where its own library would ask again and again."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from huggingface_hub import constants

from sealst._logging import logger

#: seconds in which a machine that can be reached has answered
_PATIENCE_S = 3.0
#: ports by scheme
_PORTS = {"http": 80, "https": 443}


@contextmanager
def hub_or_cache() -> Iterator[bool]:
    """Inside a ``with`` block, the hub's library looks into its cache alone where the hub cannot be reached.

    Gives whether it can. Without, a machine with no network tries five times and waits in between, for every file.
    """
    before = constants.HF_HUB_OFFLINE
    reached = not before and _reached()
    if not before and not reached:
        logger.info("%s cannot be reached; looking in its cache on this machine", constants.ENDPOINT)
    constants.HF_HUB_OFFLINE = not reached
    try:
        yield reached
    finally:
        constants.HF_HUB_OFFLINE = before


def _reached() -> bool:
    """Whether somebody answers where requests to the hub go, which may be a proxy."""
    hub = urlsplit(constants.ENDPOINT)
    proxies = {} if proxy_bypass(hub.hostname or "") else getproxies()
    proxy = proxies.get(hub.scheme) or proxies.get("all")
    place = urlsplit(proxy if "//" in proxy else f"//{proxy}") if proxy else hub
    address = (place.hostname or "", place.port or _PORTS.get(place.scheme, 443))
    done, found = threading.Event(), []

    def connect() -> None:
        with suppress(OSError):
            socket.create_connection(address, _PATIENCE_S).close()
            found.append(address)
        done.set()

    # In a thread, as nothing limits how long a name is looked up.
    threading.Thread(target=connect, daemon=True).start()
    done.wait(_PATIENCE_S)
    return bool(found)
