"""Ports for servers of the tests."""

import random
import socket

HOST = "127.0.0.1"
LOWEST, HIGHEST = 10_000, 32_767
"""Below those that systems give to outgoing connections: one of these stays free until its server listens, though other
tests connect to theirs meanwhile."""
_random = random.SystemRandom()  # a test that seeds the common generator must not send two servers to one port


def free_port() -> int:
    """A port that nothing listens on."""
    while True:
        port = _random.randint(LOWEST, HIGHEST)
        with socket.socket() as probe:
            try:
                probe.bind((HOST, port))
            except OSError:
                continue
            return port
