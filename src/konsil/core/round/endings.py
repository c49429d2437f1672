"""How an effect's failure is told to the machine: the one place that says which errors are tried again."""

from __future__ import annotations

from konsil.core.round.events import Done, Effect, Failed, Submit
from konsil.core.rules.calls import Score
from konsil.errors import Refused, UpdatesMissing


def failed(effect: Effect, error: BaseException) -> Done | Failed:
    """What the machine is told of an effect that raised an error.

    A refusal that says how long to wait is believed: what was said too fast is said again. Another refused
    score is done with: it came too late, or the contract will never take it. Whose update could not be had is
    to be reported.
    """
    if isinstance(error, UpdatesMissing):
        return Failed(effect, unreachable=error.members)
    if not isinstance(error, Refused):
        return Failed(effect)
    wait = error.fields.get("wait_s")
    if wait is None and isinstance(effect, Submit) and isinstance(effect.call, Score):
        return Done(effect)
    return Failed(effect, wait_s=float(wait) if isinstance(wait, int | float) else None, refused=True)
