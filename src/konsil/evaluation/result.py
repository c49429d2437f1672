"""What a study brought, as one value: predictions, rounds, bytes and history. Input of the report; JSON."""

from __future__ import annotations

import msgspec

from konsil.core.rules.settings import StudySettings
from konsil.core.rules.state import RoundRecord


class _Value(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A frozen value."""


class HospitalResult(_Value, frozen=True, kw_only=True):
    """A hospital's held-out patients and what each model says of them.

    ``labels``: 0 or 1 [patients]. Probabilities of the positive class, [patients] each: ``local`` by the
    name of the hospital whose own model it is; ``swarm``; ``central`` (pooled rows, each prepared at its
    hospital); ``central_together`` (pooled rows on pooled scales; may be empty).
    """

    name: str
    train_patients: int
    train_positives: int
    validation_patients: int
    labels: tuple[int, ...]
    local: dict[str, tuple[float, ...]]
    swarm: tuple[float, ...]
    central: tuple[float, ...]
    central_together: tuple[float, ...] = ()


class MemberTraffic(_Value, frozen=True, kw_only=True):
    """What a member's node moved over its peer connections: ``bytes_out``, ``bytes_in``."""

    member: str
    bytes_out: int
    bytes_in: int


class LedgerEvent(_Value, frozen=True, kw_only=True):
    """One call on the ledger in words. ``time_s``: unix time. ``digest``: what it put on record, or ""."""

    height: int
    time_s: int
    member: str
    sentence: str
    digest: str = ""


class StudyResult(_Value, frozen=True, kw_only=True):
    """A finished study and its comparison.

    ``rounds``: the contract's records, with the members' scores. ``round_s``: seconds from one merge to the
    next, one a round (the ledger counts whole seconds only). ``first_merge_s``: from the start to the first
    merge in hand; ``total_s``: to the last. ``models``: member -> digest of the model it holds at the end.
    ``settings_notes`` and ``versions``: name -> value, for the reader. ``ledger``: who keeps the ledger, in
    a sentence. ``verify``: the command that recomputes the history.
    """

    title: str
    study: str
    question: str
    positive: str
    negative: str
    source: str
    note: str = ""
    model: str
    finished_s: int
    seed: int
    settings: StudySettings
    hospitals: tuple[HospitalResult, ...]
    rounds: tuple[RoundRecord, ...] = ()
    round_s: tuple[float, ...] = ()
    first_merge_s: float = 0.0
    total_s: float = 0.0
    traffic: tuple[MemberTraffic, ...] = ()
    events: tuple[LedgerEvent, ...] = ()
    ledger: str = ""
    swarm: str = ""
    genesis: str = ""
    state: str = ""
    models: dict[str, str] = {}
    final_digest: str = ""
    verify: str = ""
    versions: dict[str, str] = {}
    settings_notes: dict[str, str] = {}


def to_json(result: StudyResult) -> bytes:
    """The result as JSON, for `--json` and for another program."""
    return msgspec.json.encode(result)


def from_json(data: bytes) -> StudyResult:
    """What `to_json` wrote.

    Raises:
        msgspec.ValidationError: it is not a study's result.
    """
    return msgspec.json.decode(data, type=StudyResult)
