# pragma version 0.4.3
# pragma evm-version paris
"""
@title A round's way from open to accepted
@notice What src/konsil/core/rules/rounds.py says, function by function, of the study with number `s`.
"""

import state
import blake3

uses: state

FIRST_ATTEMPT: constant(uint256) = 1
SLACK: constant(uint256) = 4
MAX_DOUBLINGS: constant(uint256) = 10
QUICK_ATTEMPTS: constant(uint256) = 3
CHUNK_BYTES: constant(uint256) = 4194304
TOOK_BITS: constant(uint256) = 48
TOOK_ALL: constant(uint256) = 2**240 - 1

# Why a member is not in a round; the first four last until it enters again.
SILENT: constant(uint256) = 1
UNREACHABLE: constant(uint256) = 2
DISPUTED: constant(uint256) = 3
LEFT: constant(uint256) = 4
TOO_SLOW: constant(uint256) = 5
FINISHED: constant(uint256) = 6
REMOVED: constant(uint256) = 7
STRUCK: constant(uint256) = 8
LAST_OF_LASTING: constant(uint256) = 4

COLLECTING: constant(uint256) = 1
MERGING: constant(uint256) = 2

# Why a study has ended.
ALL_ROUNDS: constant(uint256) = 1
TIME: constant(uint256) = 2
GIVEN_UP: constant(uint256) = 5
NO_PROPOSER: constant(uint256) = 6

# How a dispute has ended.
WRONG: constant(uint256) = 1
RIGHT: constant(uint256) = 2
UNDECIDED: constant(uint256) = 3


# --- what follows from a study ---------------------------------------------------------------------


@view
@internal
def quorum(s: uint256) -> uint256:
    set_: uint256 = state.settings[s].quorum
    return set_ if set_ != 0 else state.settings[s].min_members // 2 + 1


@view
@internal
def contributing(s: uint256) -> uint256:
    return state.people[s].present & ~state.people[s].struck & ~state.people[s].inactive


@view
@internal
def merge_time(s: uint256) -> uint256:
    took: uint256 = state.studies[s].took
    most: uint256 = 0
    for i: uint256 in range(5):
        most = max(most, took & (2**TOOK_BITS - 1))
        took >>= TOOK_BITS
    patience_s: uint256 = state.settings[s].patience_s
    first_s: uint256 = max(state.settings[s].merge_s, min(SLACK * most, patience_s))
    doublings: uint256 = min(state.rounds[s].attempt - FIRST_ATTEMPT, MAX_DOUBLINGS)
    return max(first_s, min(first_s << doublings, patience_s))


@view
@internal
def give_up_at(s: uint256) -> uint256:
    return state.rounds[s].opened_s + state.settings[s].patience_s + state.settings[s].give_up_s


@view
@internal
def patient_until(s: uint256) -> uint256:
    patience_s: uint256 = state.settings[s].patience_s
    opened_s: uint256 = state.rounds[s].opened_s
    more_s: uint256 = min(state.rounds[s].since_s - opened_s, min(patience_s, state.settings[s].give_up_s))
    return opened_s + patience_s + more_s


@view
@internal
def _breath(s: uint256) -> uint256:
    attempt: uint256 = state.rounds[s].attempt
    if attempt <= QUICK_ATTEMPTS:
        return 0
    doublings: uint256 = min(attempt - QUICK_ATTEMPTS - 1, MAX_DOUBLINGS)
    return min(state.settings[s].merge_s << doublings, state.settings[s].patience_s)


@view
@internal
def chunk_count(s: uint256) -> uint256:
    return max(1, (state.studies[s].data_bytes + CHUNK_BYTES - 1) // CHUNK_BYTES)


# --- opening and collecting ------------------------------------------------------------------------


@internal
def open_round(s: uint256, number: uint256, now_s: uint256):
    before: uint256 = state.rounds[s].absent & ~state.rounds[s].roster
    before &= state.people[s].who & ~state.people[s].present & ~state.people[s].struck
    absent: uint256 = 0
    for name: uint256 in range(state.n_members, bound=state.MAX_NAMES):
        if state.has(before, name) and state.reasons[s][name] <= LAST_OF_LASTING:
            absent |= 1 << name
    state.rounds[s] = state.Round(
        phase=COLLECTING,
        number=number,
        attempt=FIRST_ATTEMPT,
        opened_s=now_s,
        since_s=now_s,
        deadline_s=now_s,
        expected=0,
        commits=0,
        absent=absent,
        roster=0,
        n_parts=0,
        published=0,
        reported=0,
        digest=empty(bytes32),
        accepts=0,
        silent=0,
        struck=0,
    )
    state.disputes[s] = empty(state.Dispute)
    self._expect_all(s, now_s)
    self.settle(s, now_s)


@internal
def _expect_all(s: uint256, now_s: uint256):
    until_s: uint256 = now_s + state.settings[s].silence_s
    there: uint256 = self.contributing(s)
    number: uint256 = state.rounds[s].number
    expected: uint256 = 0
    for name: uint256 in range(state.n_members, bound=state.MAX_NAMES):
        if state.has(there, name) and state.from_round[s][name] <= number:
            expected |= 1 << name
            state.until_s[s][name] = until_s
    state.rounds[s].expected = expected


@internal
def expect(s: uint256, name: uint256, now_s: uint256):
    until_s: uint256 = min(now_s + state.settings[s].silence_s, self.patient_until(s))
    if state.has(state.rounds[s].expected, name):
        until_s = max(until_s, state.until_s[s][name])
    if until_s <= now_s or state.has(state.rounds[s].commits, name):
        return
    state.rounds[s].expected |= 1 << name
    state.until_s[s][name] = until_s
    state.rounds[s].absent &= ~(1 << name)


@internal
def be_absent(s: uint256, names: uint256, why: uint256):
    state.rounds[s].absent |= names
    for name: uint256 in range(state.n_members, bound=state.MAX_NAMES):
        if state.has(names, name):
            state.reasons[s][name] = why


@internal
def settle(s: uint256, now_s: uint256):
    if state.rounds[s].phase != COLLECTING:
        return
    waited: uint256 = state.rounds[s].expected & ~state.rounds[s].commits
    enough: bool = state.count(state.rounds[s].commits) >= self.quorum(s)
    begins_s: uint256 = state.rounds[s].since_s + self._breath(s)
    if waited == 0 and enough and now_s >= begins_s:
        state.rounds[s].phase = MERGING
        state.rounds[s].roster = state.rounds[s].commits
        self.deal_parts(s, now_s, False)
        return
    deadline_s: uint256 = 0
    if waited != 0:
        deadline_s = max_value(uint256)
        for name: uint256 in range(state.n_members, bound=state.MAX_NAMES):
            if state.has(waited, name):
                deadline_s = min(deadline_s, state.until_s[s][name])
    elif enough:
        deadline_s = begins_s
    else:
        deadline_s = min(now_s + state.settings[s].silence_s, max(now_s, self.give_up_at(s)))
    state.rounds[s].deadline_s = deadline_s


# --- merging ---------------------------------------------------------------------------------------


@internal
def deal_parts(s: uint256, now_s: uint256, keep: bool):
    roster: uint256 = state.rounds[s].roster
    silent: uint256 = state.rounds[s].silent
    if silent == roster or silent & ~roster != 0:
        silent = 0
    leaders: DynArray[uint256, 256] = self._dealt(s, roster & ~silent)
    n_leaders: uint256 = len(leaders)
    n_parts: uint256 = state.rounds[s].n_parts
    published: uint256 = state.rounds[s].published
    if not keep or n_parts == 0:
        published = 0
        n_parts = 1
        if state.settings[s].one_leader == 0:
            n_parts = min(n_leaders, self.chunk_count(s))
    place: uint256 = 0
    for part: uint256 in range(n_parts, bound=256):
        if not state.has(published, part):
            state.leaders[s][part] = leaders[place % n_leaders]
            place += 1
    state.rounds[s].n_parts = n_parts
    state.rounds[s].published = published
    state.rounds[s].since_s = now_s
    state.rounds[s].deadline_s = now_s + self.merge_time(s)
    state.rounds[s].digest = empty(bytes32)
    state.rounds[s].accepts = 0
    state.rounds[s].silent = silent
    self._set_aside(s)


@view
@internal
def _dealt(s: uint256, names: uint256) -> DynArray[uint256, 256]:
    """
    @notice The names in an order drawn from the merge that the round starts from.
    """
    order: uint256[8] = state.in_order()
    drawn: DynArray[uint256, 256] = []
    for at: uint256 in range(state.n_members, bound=state.MAX_NAMES):
        name: uint256 = (order[at // 32] >> (8 * (at % 32))) & 255
        if state.has(names, name):
            drawn.append(name)
    n: uint256 = len(drawn)
    if n < 2:
        return drawn
    draws: DynArray[uint256, 256] = blake3.draws(
        state.studies[s].accepted, state.rounds[s].number, state.rounds[s].attempt, n
    )
    for i: uint256 in range(n - 1, bound=256):
        last: uint256 = n - 1 - i
        draw: uint256 = draws[last] % (last + 1)
        kept: uint256 = drawn[last]
        drawn[last] = drawn[draw]
        drawn[draw] = kept
    return drawn


@internal
def _set_aside(s: uint256):
    if state.disputes[s].is_open == 1:
        self.close_dispute(s, UNDECIDED)


@internal
def close_dispute(s: uint256, outcome: uint256):
    """
    @notice Take the open dispute to the closed ones, with what came of it.
    """
    closed: state.Dispute = state.disputes[s]
    if closed.made_in != closed.attempt:
        closed.made = 0
        closed.made_in = closed.attempt
    closed.made |= 1 << closed.by
    closed.closed += 1
    closed.is_open = 0
    closed.trail = keccak256(
        abi_encode(
            closed.trail, closed.by, closed.leader, closed.attempt, closed.part, closed.chunk,
            closed.closes_s, closed.wrong, closed.right, outcome,
        )
    )
    state.disputes[s] = closed


@internal
def leave_roster(s: uint256, names: uint256, why: uint256, now_s: uint256):
    state.rounds[s].attempt += 1
    state.rounds[s].commits &= ~names
    self.be_absent(s, names, why)
    state.rounds[s].roster &= ~names
    state.rounds[s].reported = 0
    if state.count(state.rounds[s].roster) >= self.quorum(s):
        self.deal_parts(s, now_s, False)
    else:
        self.collect_again(s, now_s)


@internal
def doubt(s: uint256, names: uint256, now_s: uint256):
    state.rounds[s].attempt += 1
    state.rounds[s].commits &= ~names
    state.rounds[s].reported = 0
    self.collect_again(s, now_s)
    if state.rounds[s].phase == 0:
        return
    until_s: uint256 = now_s + min(state.settings[s].silence_s, state.settings[s].merge_s)
    waited: uint256 = names & state.rounds[s].expected
    for name: uint256 in range(state.n_members, bound=state.MAX_NAMES):
        if state.has(waited, name):
            state.until_s[s][name] = min(until_s, state.until_s[s][name])
    self.settle(s, now_s)


@internal
def collect_again(s: uint256, now_s: uint256):
    if now_s >= self.give_up_at(s):
        self.end_study(s, state.FAILED, GIVEN_UP, now_s)
        return
    number: uint256 = state.rounds[s].number
    there: uint256 = self.contributing(s)
    for name: uint256 in range(state.n_members, bound=state.MAX_NAMES):
        if state.has(there, name) and state.from_round[s][name] > number:
            state.from_round[s][name] = number
    state.rounds[s].phase = COLLECTING
    state.rounds[s].since_s = now_s
    self._expect_all(s, now_s)
    state.rounds[s].absent &= ~state.rounds[s].expected
    state.rounds[s].roster = 0
    state.rounds[s].n_parts = 0
    state.rounds[s].published = 0
    state.rounds[s].reported = 0
    state.rounds[s].digest = empty(bytes32)
    state.rounds[s].accepts = 0
    state.rounds[s].silent = 0
    self._set_aside(s)
    self.settle(s, now_s)


@internal
def accept_if_due(s: uint256, now_s: uint256):
    current: state.Round = state.rounds[s]
    if current.phase == 0 or current.digest == empty(bytes32) or state.disputes[s].is_open == 1:
        return
    held: uint256 = state.count(current.accepts)
    n: uint256 = state.count(current.roster)
    if held < n and not (now_s >= current.since_s + self.merge_time(s) and 2 * held > n):
        return
    state.records[s][current.number] = state.Record(
        digest=current.digest,
        attempt=current.attempt,
        roster=current.roster,
        accepts=current.accepts,
        merging_s=current.since_s,
        accepted_s=now_s,
        scored=0,
        late=0,
    )
    took_s: uint256 = 0
    if held == n:
        took_s = min(now_s - current.since_s, 2**TOOK_BITS - 1)
    state.studies[s].took = (state.studies[s].took << TOOK_BITS | took_s) & TOOK_ALL
    state.studies[s].rounds = current.number
    state.studies[s].accepted = current.digest
    state.rounds[s].phase = 0
    self._go_on(s, now_s)


@internal
def _go_on(s: uint256, now_s: uint256):
    if state.studies[s].pending == 1:
        self.take_settings(s)
    number: uint256 = state.studies[s].rounds
    stop_s: uint256 = state.settings[s].stop_s
    if number >= state.settings[s].rounds:
        self.end_study(s, state.FINISHED, ALL_ROUNDS, now_s)
    elif stop_s != 0 and now_s >= state.studies[s].started_s + stop_s:
        self.end_study(s, state.FINISHED, TIME, now_s)
    else:
        self.open_round(s, number + 1, now_s)


@internal
def end_study(s: uint256, phase: uint256, why: uint256, now_s: uint256):
    state.studies[s].phase = phase
    state.studies[s].why = why
    state.studies[s].ended_s = now_s
    state.studies[s].pending = 0
    state.rounds[s].phase = 0


@internal
def take_settings(s: uint256):
    state.settings[s] = state.pending[s]
    state.studies[s].settings = keccak256(abi_encode(state.settings[s]))
    state.studies[s].pending = 0
