"""A node whose rules differ from the others': from a height on, every call on its ledger comes a second later.

diverging_node.py DIRECTORY HEIGHT
"""

from __future__ import annotations

import sys
from pathlib import Path

from konsil.ledger.cometbft import application
from konsil.node import daemon

_put_on = application.put_on


def main() -> None:
    height = int(sys.argv[2])

    def later(state, head, signed, now_s, verify):
        return _put_on(state, head, signed, now_s + (state.height >= height), verify)

    application.put_on = later
    daemon.run(Path(sys.argv[1]))


main()
