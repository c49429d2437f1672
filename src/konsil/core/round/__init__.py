"""One node's part in a study: (what it knows, what happened) -> (what it knows, what to do).

The shell tells this machine facts (an update is ready, a part is merged, the ledger moved) and it
answers with effects (commit, lead a part, fetch the merge). Facts are recorded by one table, and what
is to be done follows from a second table of goals that compare what the ledger says with what this
node has. So a restarted node, or one that missed news, wants the same things as one that saw
everything: there is no transition to miss.
"""

from konsil.core.round.auditing import audits
from konsil.core.round.blaming import blamed_after_s
from konsil.core.round.endings import failed
from konsil.core.round.events import (
    Advance,
    Advanced,
    Attached,
    Cancel,
    Deliver,
    Detached,
    Done,
    Effect,
    Event,
    Failed,
    Fetch,
    FinishWanted,
    Found,
    Held,
    Lead,
    Looked,
    Offered,
    PartMerged,
    Probe,
    ProgressMade,
    Recompute,
    ScoreReady,
    Submit,
    Suspected,
    UpdateReady,
)
from konsil.core.round.keeping import finalists, to_hold, to_keep
from konsil.core.round.knowledge import Farewell, NodeRound, Promise, Retry
from konsil.core.round.ledger_time import LedgerTime
from konsil.core.round.machine import Step, stage, step
from konsil.core.round.promises import (
    durable_before,
    farewell_of,
    may_have_promised,
    promise_of,
)

__all__ = [
    "Advance",
    "Advanced",
    "Attached",
    "Cancel",
    "Deliver",
    "Detached",
    "Done",
    "Effect",
    "Event",
    "Failed",
    "Farewell",
    "Fetch",
    "FinishWanted",
    "Found",
    "Held",
    "Lead",
    "LedgerTime",
    "Looked",
    "NodeRound",
    "Offered",
    "PartMerged",
    "Probe",
    "ProgressMade",
    "Promise",
    "Recompute",
    "Retry",
    "ScoreReady",
    "Step",
    "Submit",
    "Suspected",
    "UpdateReady",
    "audits",
    "blamed_after_s",
    "durable_before",
    "failed",
    "farewell_of",
    "finalists",
    "may_have_promised",
    "promise_of",
    "stage",
    "step",
    "to_hold",
    "to_keep",
]
