"""The listening socket, and who holds the port where it cannot be had."""

from __future__ import annotations

import errno
import os
import re
import socket
from pathlib import Path

from fathom.errors import ConfigError
from fathom.server.exchange import WRITE_TIMEOUT_S

_BACKLOG = 2048
_LISTENING = "0A"  # TCP_LISTEN in /proc/net/tcp


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens on `host`:`port`; port 0 takes a free one.

    Raises: ConfigError that says who holds the port, where the kernel tells.
    """
    try:
        found = socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM)
    except (socket.gaierror, UnicodeError) as error:
        raise ConfigError(f"--host {host}", found=str(error), wanted="an address") from None
    # localhost may be both; programs that know only IPv4 are the more common ones.
    family, kind, protocol, _, address = min(found, key=lambda one: one[0] != socket.AF_INET)
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        # For its connections, so that none waits for ever with an answer that nobody takes.
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(WRITE_TIMEOUT_S * 1e3))
        listener.bind(address)
        listener.listen(_BACKLOG)
        listener.setblocking(False)
    except OSError as error:
        listener.close()
        raise _explained(error, host, port) from None
    return listener


def _explained(error: OSError, host: str, port: int) -> ConfigError:
    if error.errno == errno.EADDRINUSE:
        return ConfigError(
            f"--port {port} is in use",
            found=holder_of(port) or "another process listens on it",
            fix="stop that process, or give another --port",
        )
    if error.errno == errno.EACCES:
        return ConfigError(
            f"--port {port} needs privileges", wanted="a port of 1024 or more", fix="--port 8000"
        )
    if error.errno == errno.EADDRNOTAVAIL:
        return ConfigError(f"--host {host} is no address of this machine", fix="--host 127.0.0.1")
    return ConfigError(f"cannot listen on {host}:{port}", found=error.strerror or str(error))


def holder_of(port: int) -> str:
    """The process that listens on a TCP port, in words; empty where that cannot be seen."""
    inodes = _listening_inodes(port)
    if not inodes:
        return ""
    for process in Path("/proc").glob("[0-9]*"):
        try:
            links = {os.readlink(entry) for entry in (process / "fd").iterdir()}
            if links & inodes:
                command = (process / "cmdline").read_bytes().replace(b"\0", b" ").strip()
                text = "".join(c for c in command.decode("utf-8", "replace") if c.isprintable())
                return f"process {process.name} ({text[:120]}) listens on it"
        except OSError:
            continue  # ended meanwhile, or another user's
    return "a process of another user listens on it"


def _listening_inodes(port: int) -> set[str]:
    inodes = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        try:
            rows = Path(table).read_text(encoding="ascii").splitlines()[1:]
        except OSError:
            continue
        for row in rows:
            fields = re.split(r"\s+", row.strip())
            if fields[3] == _LISTENING and int(fields[1].rpartition(":")[2], 16) == port:
                inodes.add(f"socket:[{fields[9]}]")
    return inodes
