# pragma version 0.4.3
# pragma evm-version paris
"""
@title What a call about a study begins with: the study as it is now, and whether the call is about what is open
@notice As src/konsil/core/rules/refusing.py says.
"""

import state
import mechanics

uses: state
uses: mechanics


# --- removals --------------------------------------------------------------------------------------


@internal
def sync(s: uint256):
    """
    @notice Let the removals since this study was last looked at have their effect, as of their own times.
        Nothing else has happened to it since, so it is as if they had had it at once.
    """
    first: uint256 = state.studies[s].seen
    if first == state.n_removals or state.studies[s].phase > state.RUNNING:
        return
    for i: uint256 in range(first, state.n_removals, bound=1024):
        removal: state.Removal = state.removals[i]
        self._without(s, removal.name, removal.at_s)
    state.studies[s].seen = state.n_removals


@internal
def _without(s: uint256, name: uint256, now_s: uint256):
    if state.studies[s].phase > state.RUNNING or not state.has(state.people[s].who, name):
        return
    others: uint256 = ~(1 << name)
    # A member that was struck stays on the list: being admitted again must not clear it.
    if not state.has(state.people[s].struck, name):
        people: state.People = state.people[s]
        people.who &= others
        people.present &= others
        people.snapshot &= others
        people.active &= others
        people.inactive &= others
        state.people[s] = people
    if state.rounds[s].phase == 0:
        if state.studies[s].proposer == name and state.studies[s].initial == empty(bytes32):
            mechanics.end_study(s, state.FAILED, mechanics.NO_PROPOSER, now_s)
        return
    if state.has(state.rounds[s].roster, name):
        mechanics.leave_roster(s, 1 << name, mechanics.REMOVED, now_s)
        return
    state.rounds[s].commits &= others
    state.rounds[s].expected &= others
    mechanics.be_absent(s, 1 << name, mechanics.REMOVED)
    mechanics.settle(s, now_s)


# --- what calls begin with -------------------------------------------------------------------------


@internal
def known(s: uint256):
    assert s != 0 and s <= state.n_studies, "unknown_study"
    self.sync(s)


@internal
def not_over(s: uint256):
    self.known(s)
    assert state.studies[s].phase <= state.RUNNING, "study_over"


@internal
def running(s: uint256):
    self.not_over(s)
    assert state.rounds[s].phase != 0, "not_running"


@view
@internal
def participant(s: uint256, caller: uint256):
    assert state.has(state.people[s].who, caller), "not_participant"
    assert not state.has(state.people[s].struck, caller), "struck"


@view
@internal
def in_open_round(s: uint256, number: uint256):
    assert number >= state.rounds[s].number, "round_over"
    assert number == state.rounds[s].number, "round_not_open"


@internal
def merging(s: uint256, number: uint256, attempt: uint256):
    self.running(s)
    self.in_open_round(s, number)
    assert attempt == state.rounds[s].attempt, "attempt_over"
    assert state.rounds[s].phase == mechanics.MERGING, "not_merging"
