# pragma version 0.4.3
# pragma evm-version paris
"""
@title The calls of a round: updates go on record, parts are published, members accept and report
@notice As src/konsil/core/rules/collecting.py and merging.py say.
"""

import state
import blake3
import mechanics
import beginning

initializes: state
initializes: mechanics[state := state]
initializes: beginning[state := state, mechanics := mechanics]

MAX_EXAMPLES: constant(uint256) = 10**12
ONE: constant(uint256) = 4607182418800017408  # the bits of the float64 1.0
MINUS_ZERO: constant(uint256) = 2**63
MAX_PARTS: constant(uint256) = 256


@external
def commit(
    sequence: uint256,
    s: uint256,
    number: uint256,
    base: bytes32,
    digest: bytes32,
    examples: uint256,
    start: bytes32,
):
    caller: uint256 = 0
    now_s: uint256 = 0
    caller, now_s = state.begin(sequence)
    beginning.running(s)
    beginning.participant(s, caller)
    beginning.in_open_round(s, number)
    if state.has(state.rounds[s].commits, caller):
        known: state.Commitment = state.commits[s][caller]
        if known.digest == digest and known.examples == examples:
            return
        assert state.rounds[s].phase != mechanics.MERGING, "second_commit"
    self._require_collecting(s, caller)
    assert base == state.studies[s].accepted, "other_base"
    assert digest != empty(bytes32), "bad_digest"
    least: uint256 = 0 if state.settings[s].weighs_equal == 1 else 1
    assert least <= examples and examples <= MAX_EXAMPLES, "bad_examples"
    if state.settings[s].outer == 1:
        assert start != empty(bytes32), "bad_digest"
    else:
        assert start == empty(bytes32), "no_outer"
    state.commits[s][caller] = state.Commitment(digest=digest, examples=examples, at_s=now_s, start=start)
    state.rounds[s].commits |= 1 << caller
    state.rounds[s].absent &= ~(1 << caller)
    state.people[s].present |= 1 << caller
    mechanics.settle(s, now_s)


@external
def alive(sequence: uint256, s: uint256, number: uint256, progress: uint256):
    """
    @param progress 0 to 1 as float64, by its bits.
    """
    caller: uint256 = 0
    now_s: uint256 = 0
    caller, now_s = state.begin(sequence)
    beginning.running(s)
    beginning.participant(s, caller)
    beginning.in_open_round(s, number)
    assert progress <= ONE or progress == MINUS_ZERO, "bad_progress"
    self._require_collecting(s, caller)
    if state.from_round[s][caller] > number:
        return
    state.people[s].present |= 1 << caller
    mechanics.expect(s, caller, now_s)
    mechanics.settle(s, now_s)


@view
@internal
def _require_collecting(s: uint256, caller: uint256):
    assert state.rounds[s].phase == mechanics.COLLECTING, "not_collecting"
    assert not state.has(state.people[s].inactive, caller), "finished"


@external
def publish(
    sequence: uint256, s: uint256, number: uint256, attempt: uint256, part: uint256, digest: bytes32, gram: bytes32
):
    caller: uint256 = 0
    now_s: uint256 = 0
    caller, now_s = state.begin(sequence)
    beginning.merging(s, number, attempt)
    assert part < state.rounds[s].n_parts, "unknown_part"
    assert state.leaders[s][part] == caller, "not_leader"
    assert digest != empty(bytes32), "bad_digest"
    if state.has(state.rounds[s].published, part):
        assert state.parts[s][part] == digest and state.grams[s][part] == gram, "second_publish"
        return
    mixes: uint256 = state.settings[s].mixes
    assert mixes != 1 or gram != empty(bytes32), "bad_digest"
    assert mixes != 0 or gram == empty(bytes32), "no_gram"
    state.parts[s][part] = digest
    state.grams[s][part] = gram
    state.rounds[s].published |= 1 << part
    if state.rounds[s].published == (1 << state.rounds[s].n_parts) - 1:
        self._all_published(s, now_s)


@internal
def _all_published(s: uint256, now_s: uint256):
    n: uint256 = state.rounds[s].n_parts
    digests: DynArray[bytes32, 256] = [state.studies[s].schema]
    grams: DynArray[bytes32, 256] = []
    alike: bool = True
    for part: uint256 in range(n, bound=MAX_PARTS):
        digests.append(state.parts[s][part])
        grams.append(state.grams[s][part])
        if grams[part] != grams[0]:
            alike = False
    if alike:
        state.rounds[s].digest = blake3.root(digests)
        return
    # Leaders mixed by different Gram matrices, so their parts are not of one merge.
    if now_s >= mechanics.give_up_at(s):
        mechanics.end_study(s, state.FAILED, mechanics.GIVEN_UP, now_s)
        return
    is_agreed: bool = False
    agreed: bytes32 = empty(bytes32)
    is_agreed, agreed = self._majority(grams)
    odd: uint256 = 0
    for part: uint256 in range(n, bound=MAX_PARTS):
        if not is_agreed or grams[part] != agreed:
            odd |= 1 << state.leaders[s][part]
    if state.rounds[s].roster & ~(odd | state.rounds[s].silent) == 0:
        return
    published: uint256 = state.rounds[s].published
    for part: uint256 in range(n, bound=MAX_PARTS):
        if state.has(odd, state.leaders[s][part]):
            published &= ~(1 << part)
    state.rounds[s].published = published
    state.rounds[s].silent |= odd
    state.rounds[s].attempt += 1
    mechanics.deal_parts(s, now_s, True)


@pure
@internal
def _majority(grams: DynArray[bytes32, 256]) -> (bool, bytes32):
    """
    @notice What more than half of them say: the only one that can be left over when unlike ones are paired off.
    """
    found: bytes32 = empty(bytes32)
    lead: uint256 = 0
    for gram: bytes32 in grams:
        if lead == 0:
            found = gram
            lead = 1
        elif gram == found:
            lead += 1
        else:
            lead -= 1
    votes: uint256 = 0
    for gram: bytes32 in grams:
        if gram == found:
            votes += 1
    return 2 * votes > len(grams), found


@external
def accept(sequence: uint256, s: uint256, number: uint256, attempt: uint256, digest: bytes32):
    caller: uint256 = 0
    now_s: uint256 = 0
    caller, now_s = state.begin(sequence)
    beginning.known(s)
    if number != 0 and number <= state.studies[s].rounds and state.records[s][number].digest == digest:
        return  # late but true
    beginning.merging(s, number, attempt)
    assert state.has(state.rounds[s].roster, caller), "not_on_roster"
    assert state.rounds[s].digest != empty(bytes32), "not_published"
    assert digest == state.rounds[s].digest, "other_digest"
    state.rounds[s].accepts |= 1 << caller
    mechanics.accept_if_due(s, now_s)


@external
def report(sequence: uint256, s: uint256, number: uint256, attempt: uint256, named: uint256):
    caller: uint256 = 0
    now_s: uint256 = 0
    caller, now_s = state.begin(sequence)
    beginning.merging(s, number, attempt)
    roster: uint256 = state.rounds[s].roster
    me: uint256 = 1 << caller
    assert roster & me != 0, "not_on_roster"
    if named & me != 0 and state.disputes[s].is_open == 1:
        assert state.disputes[s].leader != caller, "under_dispute"
    assert named & ~roster == 0, "unknown_member"
    state.reports[s][caller] = named
    state.rounds[s].reported |= me
    others: uint256 = state.count(roster) - 1
    gone: uint256 = self._out_of_reach(s, others)
    if named & me != 0:
        gone = me if others == 1 else gone | me
    alone: bool = mechanics.quorum(s) == 1 and state.rounds[s].attempt >= mechanics.QUICK_ATTEMPTS
    if gone & ~me != 0 and others == 1 and not alone:
        mechanics.doubt(s, gone, now_s)
    elif gone != 0:
        state.people[s].present &= ~gone
        mechanics.leave_roster(s, gone, mechanics.UNREACHABLE, now_s)


@view
@internal
def _out_of_reach(s: uint256, others: uint256) -> uint256:
    """
    @notice Whom more than half of the others name.
    """
    said: DynArray[uint256, 256] = []
    for name: uint256 in range(state.n_members, bound=state.MAX_NAMES):
        if state.has(state.rounds[s].reported, name):
            said.append(state.reports[s][name])
    named: uint256 = 0
    for names: uint256 in said:
        named |= names
    gone: uint256 = 0
    for name: uint256 in range(state.n_members, bound=state.MAX_NAMES):
        if state.has(named, name):
            votes: uint256 = 0
            for names: uint256 in said:
                votes += (names >> name) & 1
            if 2 * votes > others:
                gone |= 1 << name
    return gone
