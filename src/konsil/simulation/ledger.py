"""The contract of one study, in memory: calls are applied at once, at a time that the simulation sets."""

from __future__ import annotations

from collections.abc import Sequence

from konsil.core.digest import bytes_digest
from konsil.core.rules import (
    Agree,
    Call,
    Genesis,
    MemberRecord,
    ProposeStudy,
    State,
    Study,
    StudySettings,
    apply,
    initial_state,
    settings_digest,
)


class Ledger:
    """``now_s``: seconds since the swarm was founded, which is the ledger's time."""

    def __init__(self, names: Sequence[str], settings: StudySettings) -> None:
        """Found a swarm; its first member proposes the study, the others agree.

        Raises:
            ConfigError: a name that no member can have.
            Refused: settings that contradict each other.
        """
        records = tuple(_record(name) for name in sorted(names))
        self.now_s = 0.0
        self.state: State = initial_state(Genesis("simulated", "local", names[0], 0, records))
        self._name = settings.name
        self.submit(names[0], ProposeStudy(settings))
        for name in names[1:]:
            self.submit(name, Agree(settings.name, settings_digest(settings)))

    @property
    def study(self) -> Study:
        """The study as it stands now."""
        return self.state.studies[self._name]

    def submit(self, name: str, call: Call) -> None:
        """Apply a member's call.

        Raises:
            Refused: the contract says no; nothing is changed.
        """
        sequence = self.state.members[name].sequence + 1
        self.state = apply(self.state, name, sequence, call, int(self.now_s))


def _record(name: str) -> MemberRecord:
    """A member without keys: nothing is signed, nobody connects."""
    key, bundle, card = (
        bytes_digest(f"{what} of {name}".encode(), "simulated member") for what in ("key", "bundle", "card")
    )
    return MemberRecord(name, f"spiffe://{name}.example/node", key, bundle, card)
