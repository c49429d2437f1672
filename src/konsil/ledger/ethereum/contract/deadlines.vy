# pragma version 0.4.3
# pragma evm-version paris
"""
@title Deadlines that have passed, and chunks that are disputed
@notice As src/konsil/core/rules/contract.py (tick), collecting.py, merging.py and disputes.py say.
"""

import state
import blake3
import mechanics
import beginning

initializes: state
initializes: mechanics[state := state]
initializes: beginning[state := state, mechanics := mechanics]

@external
def tick(sequence: uint256, s: uint256):
    caller: uint256 = 0
    now_s: uint256 = 0
    caller, now_s = state.begin(sequence)
    raw_call(state.membership, abi_encode(now_s, method_id=method_id("close_votes(uint256)")), is_delegate_call=True)
    beginning.running(s)
    assert now_s >= state.rounds[s].deadline_s, "too_early"
    if state.rounds[s].phase == mechanics.COLLECTING:
        self._tick_collecting(s, now_s)
    elif state.disputes[s].is_open == 1:
        self._decide(s, now_s)
    else:
        self._tick_merging(s, now_s)


@internal
def _tick_collecting(s: uint256, now_s: uint256):
    patient_s: uint256 = mechanics.patient_until(s)
    patient: bool = state.settings[s].patience_s > state.settings[s].silence_s
    waited: uint256 = state.rounds[s].expected & ~state.rounds[s].commits
    slow: uint256 = 0
    silent: uint256 = 0
    for name: uint256 in range(state.n_members, bound=state.MAX_NAMES):
        if state.has(waited, name):
            until_s: uint256 = state.until_s[s][name]
            if until_s <= now_s:
                if until_s >= patient_s and patient:
                    slow |= 1 << name
                else:
                    silent |= 1 << name
    state.rounds[s].expected &= ~(slow | silent)
    mechanics.be_absent(s, slow, mechanics.TOO_SLOW)
    mechanics.be_absent(s, silent, mechanics.SILENT)
    state.people[s].present &= ~silent
    mechanics.settle(s, now_s)
    current: state.Round = state.rounds[s]
    if current.phase == mechanics.COLLECTING and current.expected & ~current.commits == 0:
        if now_s >= mechanics.give_up_at(s):
            mechanics.end_study(s, state.FAILED, mechanics.GIVEN_UP, now_s)


@internal
def _tick_merging(s: uint256, now_s: uint256):
    current: state.Round = state.rounds[s]
    if current.digest == empty(bytes32):
        if now_s >= mechanics.give_up_at(s):
            mechanics.end_study(s, state.FAILED, mechanics.GIVEN_UP, now_s)
            return
        silent: uint256 = 0
        for part: uint256 in range(current.n_parts, bound=256):
            if not state.has(current.published, part):
                silent |= 1 << state.leaders[s][part]
        if silent == 0:
            self._begin_again(s, now_s)
        else:
            self._without_parts_of_the_silent(s, silent, now_s)
        return
    mechanics.accept_if_due(s, now_s)
    if state.rounds[s].phase == 0 or state.rounds[s].number != current.number:
        return
    if now_s >= mechanics.give_up_at(s):
        mechanics.end_study(s, state.FAILED, mechanics.GIVEN_UP, now_s)
        return
    time_s: uint256 = mechanics.merge_time(s)
    if now_s < current.since_s + 2 * time_s:
        state.rounds[s].deadline_s = now_s + time_s
    else:
        self._begin_again(s, now_s)


@internal
def _begin_again(s: uint256, now_s: uint256):
    current: state.Round = state.rounds[s]
    there: uint256 = current.accepts | current.reported
    for part: uint256 in range(current.n_parts, bound=256):
        there |= 1 << state.leaders[s][part]
    gone: uint256 = current.roster & ~there
    if current.attempt < mechanics.QUICK_ATTEMPTS:
        gone &= current.silent
    if gone != 0 and current.digest != empty(bytes32):
        state.people[s].present &= ~gone
        mechanics.leave_roster(s, gone, mechanics.SILENT, now_s)
        return
    state.rounds[s].attempt += 1
    state.rounds[s].reported = 0
    mechanics.collect_again(s, now_s)


@internal
def _without_parts_of_the_silent(s: uint256, silent: uint256, now_s: uint256):
    state.rounds[s].silent |= silent
    state.rounds[s].attempt += 1
    if state.rounds[s].roster & ~state.rounds[s].silent == 0:
        mechanics.collect_again(s, now_s)
    else:
        mechanics.deal_parts(s, now_s, True)


# --- disputes --------------------------------------------------------------------------------------


@external
def dispute(sequence: uint256, s: uint256, number: uint256, attempt: uint256, part: uint256, chunk: uint256):
    caller: uint256 = 0
    now_s: uint256 = 0
    caller, now_s = state.begin(sequence)
    beginning.merging(s, number, attempt)
    beginning.participant(s, caller)
    n_parts: uint256 = state.rounds[s].n_parts
    assert part < n_parts, "unknown_part"
    assert state.has(state.rounds[s].published, part), "not_published"
    leader: uint256 = state.leaders[s][part]
    assert leader != caller, "own_part"
    chunks: uint256 = mechanics.chunk_count(s)
    assert part * chunks // n_parts <= chunk and chunk < (part + 1) * chunks // n_parts, "unknown_chunk"
    opened: state.Dispute = state.disputes[s]
    assert opened.is_open == 0, "dispute_open"
    assert opened.made_in != attempt or not state.has(opened.made, caller), "second_dispute"
    opened.is_open = 1
    opened.by = caller
    opened.leader = leader
    opened.attempt = attempt
    opened.part = part
    opened.chunk = chunk
    opened.closes_s = now_s + mechanics.merge_time(s)
    opened.wrong = state.rounds[s].roster & (1 << caller)
    opened.right = 0
    state.disputes[s] = opened
    state.rounds[s].deadline_s = opened.closes_s
    self._decide(s, now_s)


@external
def verdict(
    sequence: uint256, s: uint256, number: uint256, attempt: uint256, part: uint256, chunk: uint256, wrong: bool
):
    caller: uint256 = 0
    now_s: uint256 = 0
    caller, now_s = state.begin(sequence)
    beginning.merging(s, number, attempt)
    assert state.has(state.rounds[s].roster, caller), "not_on_roster"
    opened: state.Dispute = state.disputes[s]
    assert opened.is_open == 1 and opened.part == part and opened.chunk == chunk, "no_dispute"
    if state.has(opened.wrong | opened.right, caller):
        assert state.has(opened.wrong, caller) == wrong, "second_verdict"
        return
    if wrong:
        state.disputes[s].wrong |= 1 << caller
    else:
        state.disputes[s].right |= 1 << caller
    self._decide(s, now_s)


@internal
def _decide(s: uint256, now_s: uint256):
    opened: state.Dispute = state.disputes[s]
    n: uint256 = state.count(state.rounds[s].roster)
    wrong: uint256 = state.count(opened.wrong)
    right: uint256 = state.count(opened.right)
    if 2 * wrong > n:
        able: uint256 = state.count(state.people[s].who & ~state.people[s].struck)
        self._wrong(s, opened.leader, now_s, 2 * wrong > able)
    elif 2 * right > n:
        self._close(s, mechanics.RIGHT, now_s)
    elif wrong + right == n or now_s >= opened.closes_s:
        self._close(s, mechanics.UNDECIDED, now_s)


@internal
def _close(s: uint256, outcome: uint256, now_s: uint256):
    mechanics.close_dispute(s, outcome)
    state.rounds[s].deadline_s = now_s + mechanics.merge_time(s)
    mechanics.accept_if_due(s, now_s)


@internal
def _wrong(s: uint256, leader: uint256, now_s: uint256, for_good: bool):
    mechanics.close_dispute(s, mechanics.WRONG)
    bit: uint256 = 1 << leader
    if not for_good:
        state.people[s].present &= ~bit
        mechanics.leave_roster(s, bit, mechanics.DISPUTED, now_s)
        return
    state.people[s].struck |= state.people[s].who & bit
    state.rounds[s].struck |= bit
    mechanics.leave_roster(s, bit, mechanics.STRUCK, now_s)
