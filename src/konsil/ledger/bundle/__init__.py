"""The audit bundle: a whole history in one file, which anybody can verify without a swarm or a network.

`lines` is what stands in it; `write` makes it from a journal, `check` believes nothing in it.
"""

from konsil.ledger.bundle.check import Checked, check_bundle
from konsil.ledger.bundle.lines import BUNDLE_VERSION, SUFFIX
from konsil.ledger.bundle.proof import CometbftProof, LocalProof, Proof
from konsil.ledger.bundle.write import Written, write_bundle

__all__ = [
    "BUNDLE_VERSION",
    "SUFFIX",
    "Checked",
    "CometbftProof",
    "LocalProof",
    "Proof",
    "Written",
    "check_bundle",
    "write_bundle",
]
