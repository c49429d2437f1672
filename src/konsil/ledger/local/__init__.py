"""The embedded engine: one member's node, the operator, serves the rules from an fsynced journal.

Every other member follows: it replays each entry before it believes it, and keeps its own copy.
"""

from konsil.ledger.local.follower import FollowerLedger, Remote
from konsil.ledger.local.operator import LocalLedger

__all__ = ["FollowerLedger", "LocalLedger", "Remote"]
