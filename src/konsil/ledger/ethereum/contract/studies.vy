# pragma version 0.4.3
# pragma evm-version paris
"""
@title A study from its proposal to its end, and the scores of its merges
@notice As src/konsil/core/rules/studies.py, stopping.py and scores.py say.
"""

import state
import blake3
import mechanics
import beginning
import agreement

initializes: state
initializes: mechanics[state := state]
initializes: beginning[state := state, mechanics := mechanics]
initializes: agreement[state := state]

MAX_DATA_BYTES: constant(uint256) = 2**50
MAX_STUDIES_PROPOSED: constant(uint256) = 64
DAY_S: constant(uint256) = 24 * 3600
MONTH_S: constant(uint256) = 30 * 24 * 3600
SETTINGS_BYTES: constant(uint256) = 16384

MAX_EXAMPLES: constant(uint256) = 10**12
MAX_METRICS: constant(uint256) = 32
NAMES_BYTES: constant(uint256) = 2080
MAX_METRIC_NAME: constant(uint256) = 64
SIGN: constant(uint256) = 2**63
LARGEST: constant(uint256) = 5055640609639927018  # the bits of the float64 1e30
LOSS: constant(uint256) = 1819243379 << 224

SNAPSHOT: constant(uint256) = 0
ACTIVE: constant(uint256) = 1
INACTIVE: constant(uint256) = 2

ALL_FINISHED: constant(uint256) = 3
TOO_FEW: constant(uint256) = 4


@external
def propose_study(
    sequence: uint256,
    name_high: uint256,
    name_low: uint256,
    numbers: uint256[14],
    fixed: String[SETTINGS_BYTES],
    free: String[SETTINGS_BYTES],
):
    caller: uint256 = 0
    now_s: uint256 = 0
    caller, now_s = state.begin(sequence)
    settings: state.Settings = agreement.settings_of(numbers, keccak256(fixed), keccak256(free))
    assert agreement.is_slug(name_high, name_low), "bad_settings"
    assert settings.invited & ~state.trainers() == 0, "bad_settings"
    assert agreement.are_settings(settings), "bad_settings"
    assert not state.has(state.witnesses, caller), "witness"
    name: bytes32 = keccak256(abi_encode(name_high, name_low))
    assert state.study_named[name] == 0, "name_taken"
    assert settings.invited == 0 or state.has(settings.invited, caller), "not_invited"
    s: uint256 = state.n_studies + 1
    self._take_slot(caller, s, now_s)
    state.n_studies = s
    state.study_named[name] = s
    state.settings[s] = settings
    state.studies[s] = state.Study(
        name_high=name_high,
        name_low=name_low,
        proposer=caller,
        proposed_s=now_s,
        phase=state.PROPOSED,
        started_s=0,
        ended_s=0,
        why=0,
        schema=empty(bytes32),
        initial=empty(bytes32),
        data_bytes=0,
        accepted=empty(bytes32),
        rounds=0,
        took=0,
        pending=0,
        settings=keccak256(abi_encode(settings)),
        seen=state.n_removals,
    )
    state.people[s].who = 1 << caller
    state.from_round[s][caller] = 1


@internal
def _take_slot(caller: uint256, s: uint256, now_s: uint256):
    """
    @notice One member's studies of a day or, if they have not started, of a month: as many as there are slots.
    """
    for slot: uint256 in range(MAX_STUDIES_PROPOSED):
        there: uint256 = state.studies_by[caller][slot]
        if there != 0:
            beginning.sync(there)
            counts_s: uint256 = MONTH_S if state.studies[there].phase == state.PROPOSED else DAY_S
            if now_s < state.studies[there].proposed_s + counts_s:
                continue
        state.studies_by[caller][slot] = s
        return
    raise "too_many_studies"


@external
def agree(sequence: uint256, s: uint256, settings: bytes32):
    caller: uint256 = 0
    now_s: uint256 = 0
    caller, now_s = state.begin(sequence)
    beginning.not_over(s)
    assert not state.has(state.witnesses, caller), "witness"
    invited: uint256 = state.settings[s].invited
    assert invited == 0 or state.has(invited, caller), "not_invited"
    assert settings == state.studies[s].settings, "other_settings"
    if state.has(state.people[s].who, caller):
        beginning.participant(s, caller)
        return
    state.people[s].who |= 1 << caller
    state.from_round[s][caller] = 1
    if state.rounds[s].phase != 0:
        state.from_round[s][caller] = state.rounds[s].number + 1


@external
def initialise(sequence: uint256, s: uint256, schema: bytes32, digest: bytes32, data_bytes: uint256):
    caller: uint256 = 0
    now_s: uint256 = 0
    caller, now_s = state.begin(sequence)
    beginning.not_over(s)
    assert caller == state.studies[s].proposer, "not_proposer"
    assert schema != empty(bytes32) and digest != empty(bytes32), "bad_digest"
    assert 1 <= data_bytes and data_bytes <= MAX_DATA_BYTES, "bad_size"
    if state.studies[s].initial != empty(bytes32):
        assert (
            state.studies[s].schema == schema
            and state.studies[s].initial == digest
            and state.studies[s].data_bytes == data_bytes
        ), "already_initialised"
        return
    state.studies[s].schema = schema
    state.studies[s].initial = digest
    state.studies[s].accepted = digest
    state.studies[s].data_bytes = data_bytes


@external
def enter(sequence: uint256, s: uint256):
    caller: uint256 = 0
    now_s: uint256 = 0
    caller, now_s = state.begin(sequence)
    beginning.not_over(s)
    beginning.participant(s, caller)
    assert state.studies[s].initial != empty(bytes32), "not_initialised"
    assert not state.has(state.people[s].inactive, caller), "finished"
    state.people[s].present |= 1 << caller
    current: state.Round = state.rounds[s]
    if current.phase == 0:
        there: uint256 = state.people[s].present & ~state.people[s].struck
        if state.count(there) >= state.settings[s].min_members:
            state.studies[s].phase = state.RUNNING
            state.studies[s].started_s = now_s
            mechanics.open_round(s, 1, now_s)
        return
    from_round: uint256 = state.from_round[s][caller]
    committed: bool = state.has(current.commits, caller)
    collects: bool = current.phase == mechanics.COLLECTING
    is_in: bool = from_round <= current.number or (collects and current.commits == 0) or committed
    if not collects and not committed:
        is_in = False
    if is_in:
        state.from_round[s][caller] = min(from_round, current.number)
    else:
        state.from_round[s][caller] = max(from_round, current.number + 1)
    if is_in and collects:
        mechanics.expect(s, caller, now_s)
        mechanics.settle(s, now_s)


@external
def leave(sequence: uint256, s: uint256):
    caller: uint256 = 0
    now_s: uint256 = 0
    caller, now_s = state.begin(sequence)
    beginning.known(s)
    beginning.participant(s, caller)
    state.people[s].present &= ~(1 << caller)
    self._no_longer_expected(s, caller, mechanics.LEFT, now_s)


@external
def finish(sequence: uint256, s: uint256, contribution: uint256):
    caller: uint256 = 0
    now_s: uint256 = 0
    caller, now_s = state.begin(sequence)
    assert contribution <= INACTIVE, "bad_call"
    beginning.known(s)
    beginning.participant(s, caller)
    bit: uint256 = 1 << caller
    state.people[s].snapshot &= ~bit
    state.people[s].active &= ~bit
    state.people[s].inactive &= ~bit
    if contribution == SNAPSHOT:
        state.people[s].snapshot |= bit
    elif contribution == ACTIVE:
        state.people[s].active |= bit
    else:
        state.people[s].inactive |= bit
    if state.studies[s].phase != state.RUNNING:
        return
    if contribution == INACTIVE:
        self._no_longer_expected(s, caller, mechanics.FINISHED, now_s)
    if state.studies[s].phase == state.RUNNING:
        self._end_if_nobody_goes_on(s, now_s)


@internal
def _no_longer_expected(s: uint256, name: uint256, why: uint256, now_s: uint256):
    if state.rounds[s].phase == 0 or state.has(state.rounds[s].commits, name):
        return
    state.rounds[s].expected &= ~(1 << name)
    mechanics.be_absent(s, 1 << name, why)
    mechanics.settle(s, now_s)


@internal
def _end_if_nobody_goes_on(s: uint256, now_s: uint256):
    people: state.People = state.people[s]
    taking_part: uint256 = people.who & ~people.struck
    unfinished: uint256 = taking_part & ~people.snapshot & ~people.active & ~people.inactive
    away: uint256 = unfinished & ~people.present & state.rounds[s].absent
    going: uint256 = unfinished & people.present
    for name: uint256 in range(state.n_members, bound=state.MAX_NAMES):
        if state.has(away, name) and state.reasons[s][name] <= mechanics.UNREACHABLE:
            going |= 1 << name
    if going == 0:
        mechanics.end_study(s, state.FINISHED, ALL_FINISHED, now_s)
    elif state.count(taking_part & ~people.inactive) < mechanics.quorum(s):
        mechanics.end_study(s, state.FINISHED, TOO_FEW, now_s)


# --- scores ----------------------------------------------------------------------------------------


@external
def score(
    sequence: uint256,
    s: uint256,
    number: uint256,
    examples: uint256,
    has_loss: bool,
    loss: uint256,
    names: String[NAMES_BYTES],
    scores: DynArray[uint256, 33],
):
    """
    @notice Scores are float64, by their bits. `names`: in order, each ended by a line feed.
    """
    caller: uint256 = 0
    now_s: uint256 = 0
    caller, now_s = state.begin(sequence)
    beginning.known(s)
    beginning.participant(s, caller)
    assert 1 <= number and number <= state.studies[s].rounds, "round_not_accepted"
    assert not state.has(state.records[s][number].scored, caller), "second_score"
    assert 1 <= examples and examples <= MAX_EXAMPLES, "bad_examples"
    assert has_loss or len(scores) != 0, "empty_score"
    assert len(scores) <= MAX_METRICS and self._are_metrics(names, len(scores)), "bad_metric"
    assert has_loss or loss == 0, "bad_call"
    assert not has_loss or self._is_value(loss), "bad_score"
    for value: uint256 in scores:
        assert self._is_value(value), "bad_score"
    if self._is_late(s, number, now_s):
        state.records[s][number].late |= 1 << caller
    state.records[s][number].scored |= 1 << caller


@pure
@internal
def _is_value(bits: uint256) -> bool:
    """
    @notice Finite and at most 1e30: the bits of positive floats stand in the order of what they mean.
    """
    return bits < 2 * SIGN and bits % SIGN <= LARGEST


@pure
@internal
def _are_metrics(names: String[NAMES_BYTES], n: uint256) -> bool:
    """
    @notice So many names, each after the one before it, none of them "loss".
    """
    raw: Bytes[NAMES_BYTES] = convert(names, Bytes[NAMES_BYTES])
    found: uint256 = 0
    length: uint256 = 0
    before_high: uint256 = 0
    before_low: uint256 = 0
    high: uint256 = 0
    low: uint256 = 0
    for i: uint256 in range(len(names), bound=NAMES_BYTES):
        character: uint256 = convert(slice(raw, i, 1), uint256)
        if character == 10:
            if length == 0 or (high == LOSS and low == 0):
                return False
            if high < before_high or (high == before_high and low <= before_low):
                return False
            before_high = high
            before_low = low
            high = 0
            low = 0
            length = 0
            found += 1
        else:
            if (agreement.METRIC >> character) & 1 == 0 or length == MAX_METRIC_NAME:
                return False
            if length < 32:
                high |= character << (248 - 8 * length)
            else:
                low |= character << (504 - 8 * length)
            length += 1
    return length == 0 and found == n


@view
@internal
def _is_late(s: uint256, number: uint256, now_s: uint256) -> bool:
    last: uint256 = state.studies[s].rounds
    if last > number + 1:
        return True
    if state.studies[s].phase <= state.RUNNING:
        return False
    if state.records[s][last].roster & ~state.records[s][last].scored == 0:
        return True
    return now_s >= state.studies[s].ended_s + state.settings[s].silence_s
