"""What must hold after a study, looked at by each member for itself: rounds, models, histories."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from types import TracebackType
from typing import Self

import msgspec

from konsil.core.rules import Study
from konsil.evaluation.loopback import LoopbackSwarm

VERIFY_S = 60.0
"""How long all members may take to recompute the history."""


class Verification(msgspec.Struct, frozen=True):
    """What `konsil ledger verify --json` printed at a member; ``problem`` where it failed."""

    height: int = -1
    state: str = ""
    head: str = ""
    problem: str = ""


class Check:
    """`konsil ledger verify` at every member, all at once. Use ``with``: none runs on afterwards."""

    def __init__(self, swarm: LoopbackSwarm) -> None:
        """Start them."""
        self._running = {
            name: subprocess.Popen(  # noqa: S603 - our own command
                [
                    sys.executable,
                    "-m",
                    "konsil",
                    "ledger",
                    "verify",
                    "--json",
                    "--dir",
                    swarm.directory(name),
                ],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
            )
            for name in swarm.members
        }

    def results(self) -> dict[str, Verification]:
        """What each found; waits for them."""
        until_s = time.monotonic() + VERIFY_S
        return {name: _result(process, until_s) for name, process in self._running.items()}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for process in self._running.values():
            process.kill()
            process.communicate()


def _result(process: subprocess.Popen[bytes], until_s: float) -> Verification:
    try:
        out, err = process.communicate(timeout=max(0.1, until_s - time.monotonic()))
    except subprocess.TimeoutExpired:
        return Verification(problem=f"no result within {VERIFY_S:g} s")
    if process.returncode != 0:
        return Verification(problem=err.decode(errors="replace").strip() or f"status {process.returncode}")
    return msgspec.json.decode(out, type=Verification)


def check(
    study: Study,
    hospitals: Sequence[str],
    rounds: int,
    held: Mapping[str, str],
    verified: Mapping[str, Verification],
) -> tuple[str, ...]:
    """What is not as it must be, in sentences; nothing if all is.

    Args:
        study: as the ledger has it at the end.
        hospitals: who must have taken part in every round.
        rounds: how many there must be.
        held: hospital -> digest of the model that it holds.
        verified: hospital -> what its own copy of the history says.
    """
    return (
        *_missing(study, hospitals, rounds),
        *(
            f"{name} holds another model than the ledger's: {held.get(name, 'none')[:12]} and not"
            f" {study.accepted[:12]}."
            for name in hospitals
            if held.get(name) != study.accepted
        ),
        *_histories(hospitals, verified),
    )


def _missing(study: Study, hospitals: Sequence[str], rounds: int) -> Iterable[str]:
    if len(study.history) != rounds:
        why = study.ended or "no reason known"
        yield f"{len(study.history)} rounds were accepted and not {rounds}: {why}"
    for record in study.history:
        for name in hospitals:
            if name not in record.roster:
                why = record.absent.get(name, "no reason known")
                yield f"{name} was not in round {record.number}: {why}."


def _histories(hospitals: Sequence[str], verified: Mapping[str, Verification]) -> Iterable[str]:
    for name in hospitals:
        found = verified.get(name, Verification(problem="it was not asked"))
        if found.problem:
            yield f"The history at {name} does not hold: {found.problem}"
    if len({(found.height, found.state, found.head) for found in verified.values()}) > 1:
        yield "The members' histories differ: " + ", ".join(
            f"{name} {found.head[:12]} at height {found.height}" for name, found in verified.items()
        )
