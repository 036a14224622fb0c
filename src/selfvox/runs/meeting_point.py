"""Where processes that train together meet: a server of small values in the first of them."""

from __future__ import annotations

import contextlib
import datetime
import os
import socket
from collections.abc import Iterator

from torch.distributed import TCPStore  # type: ignore[attr-defined]

LOOPBACK = "127.0.0.1"


def serve(host: str, timeout_s: float) -> TCPStore:
    """A server at any free port; with a loopback address, other machines do not reach it.

    Args:
        host: the name or address of this machine, by which the others find it.
        timeout_s: for which a process waits for a value.
    """
    timeout = datetime.timedelta(seconds=timeout_s)
    if host not in (LOOPBACK, "localhost"):
        return TCPStore(host, 0, is_master=True, wait_for_workers=False, timeout=timeout)
    # torch itself would listen at all addresses of the machine
    listener = socket.create_server((LOOPBACK, 0))
    port = listener.getsockname()[1]
    return TCPStore(
        LOOPBACK,
        port,
        is_master=True,
        wait_for_workers=False,
        timeout=timeout,
        master_listen_fd=listener.detach(),
    )


def reach(host: str, port: int, timeout_s: float) -> TCPStore:
    """A client of such a server."""
    timeout = datetime.timedelta(seconds=timeout_s)
    return TCPStore(host, port, is_master=False, wait_for_workers=False, timeout=timeout)


@contextlib.contextmanager
def meet_here(server: TCPStore) -> Iterator[None]:
    """Let torch exchange the addresses of processes that are started meanwhile by this server.

    Otherwise the first process starts a server for that, which listens at all addresses.
    """
    os.environ["MASTER_ADDR"] = LOOPBACK
    os.environ["MASTER_PORT"] = str(server.port)
    # gloo would listen at the address that the name of this machine has
    for _, name in socket.if_nameindex():
        if name in ("lo", "lo0"):
            os.environ.setdefault("GLOO_SOCKET_IFNAME", name)
    # how torchrun says that there is a server already
    os.environ["TORCHELASTIC_USE_AGENT_STORE"] = "True"
    try:
        yield
    finally:
        del os.environ["TORCHELASTIC_USE_AGENT_STORE"]
