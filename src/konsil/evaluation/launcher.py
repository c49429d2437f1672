"""Started by the demo: imports what training needs once, then becomes one process a hospital.

    python -m konsil.evaluation.launcher '{"NAME": DESCRIPTOR, ...}'

It forks before any row is read, so no process holds another hospital's patients. Its standard input is the
demo's lifeline: when that ends, all processes end.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import traceback

import sklearn.neural_network  # noqa: F401 - the point of this process: imported once, for all

from konsil.evaluation import hospital
from konsil.evaluation.processes import Channel, Order


def main() -> None:
    """Fork the processes, then wait for the demo's end and end them."""
    descriptors: dict[str, int] = json.loads(sys.argv[1])
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # from here on it must end its children first
    children: list[int] = []
    for descriptor in descriptors.values():
        child = os.fork()
        if child == 0:
            _be(descriptor, [other for other in descriptors.values() if other != descriptor])
        children.append(child)
    for descriptor in descriptors.values():
        os.close(descriptor)
    sys.stdin.buffer.read()
    for child in children:
        os.kill(child, signal.SIGKILL)  # whatever they do, nobody waits for it any more
        os.waitpid(child, 0)


def _be(descriptor: int, others: list[int]) -> None:
    """The life of a forked process. Never returns: it must not run the launcher's own end."""
    status = 1
    try:
        for other in (*others, sys.stdin.fileno()):
            os.close(other)
        channel: Channel[Order] = Channel(socket.socket(fileno=descriptor), Order)
        status = hospital.serve(channel)
    except BaseException:  # noqa: BLE001 - it is printed, and the process ends
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


if __name__ == "__main__":
    main()
