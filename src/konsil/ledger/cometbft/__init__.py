"""The engine for a consortium: the rules as an application of CometBFT, which every member runs.

Byzantine-tolerant: less than a third of the members that validate may fail or lie. Final in one block.
"""

from konsil.ledger.cometbft.ledger import CometbftLedger, Site
from konsil.ledger.cometbft.timings import timings

__all__ = ["CometbftLedger", "Site", "timings"]
