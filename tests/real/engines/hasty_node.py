"""A node whose calls are given up after a few seconds rather than half a minute.

hasty_node.py DIRECTORY SECONDS
"""

from __future__ import annotations

import sys
from pathlib import Path

from konsil.ledger.cometbft import ledger
from konsil.node import daemon

if __name__ == "__main__":
    ledger.SUBMIT_S = float(sys.argv[2])
    daemon.run(Path(sys.argv[1]))
