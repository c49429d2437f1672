# pragma version 0.4.3
# pragma evm-version paris
"""
@title What names, addresses and settings may not be
@notice As src/konsil/core/rules/agreement.py and members.py say, for what the contract decides by.
"""

import state

uses: state

MAX_ROUNDS: constant(uint256) = 1_000_000
MAX_SECONDS: constant(uint256) = 10 * 366 * 24 * 3600
MAX_STUDY_MEMBERS: constant(uint256) = 1_024
MAX_ADDRESSES: constant(uint256) = 8
MAX_SEGMENT: constant(uint256) = 255
MAX_SEGMENTS: constant(uint256) = 8
OUTER_QUORUM: constant(uint256) = 3
SPIFFE_BYTES: constant(uint256) = 2320
ADDRESSES_BYTES: constant(uint256) = 2080

# Sets of ASCII characters, a bit each.
DIGITS: constant(uint256) = 287948901175001088  # 0-9
DOMAIN: constant(uint256) = 10633823847437083212122004546218098688  # 0-9 a-z . _ -
SEGMENT: constant(uint256) = 10633823849912963253799276948597243904  # 0-9 a-z A-Z . _ -
NUMERIC: constant(uint256) = 9982748479122172539720012136448  # 0-9 a-f A-F : .
METRIC: constant(uint256) = 10633823849912963272246021022306795520  # 0-9 a-z A-Z . _ - @
SLUG: constant(uint256) = 10633823807823001954989765380701945856  # 0-9 a-z -


@pure
@internal
def is_slug(high: uint256, low: uint256) -> bool:
    """
    @notice 1 to 63 small letters, digits and hyphens, not a hyphen first, and nothing but zeros behind them.
    """
    over: bool = False
    for i: uint256 in range(64):
        character: uint256 = (high >> (248 - 8 * i)) & 255 if i < 32 else (low >> (504 - 8 * i)) & 255
        if character == 0:
            over = True
            if i == 0:
                return False
        elif over or (SLUG >> character) & 1 == 0 or (i == 0 and character == 45):
            return False
    return over


@pure
@internal
def is_spiffe(text: String[SPIFFE_BYTES]) -> bool:
    """
    @notice spiffe://domain and 1 to 8 segments of a path.
    """
    size: uint256 = len(text)
    if size < 9 or slice(text, 0, 9) != "spiffe://":
        return False
    raw: Bytes[SPIFFE_BYTES] = convert(text, Bytes[SPIFFE_BYTES])
    allowed: uint256 = DOMAIN
    segments: uint256 = 0
    length: uint256 = 0
    for i: uint256 in range(9, size, bound=SPIFFE_BYTES):
        character: uint256 = convert(slice(raw, i, 1), uint256)
        if character == 47:
            segments += 1
            if length == 0 or segments > MAX_SEGMENTS:
                return False
            length = 0
            allowed = SEGMENT
        else:
            length += 1
            if (allowed >> character) & 1 == 0 or length > MAX_SEGMENT:
                return False
    return segments > 0 and length > 0


@pure
@internal
def are_addresses(text: String[ADDRESSES_BYTES]) -> bool:
    """
    @notice At most 8 times host:port or [numbers]:port, each ended by a line feed.
    """
    raw: Bytes[ADDRESSES_BYTES] = convert(text, Bytes[ADDRESSES_BYTES])
    found: uint256 = 0
    length: uint256 = 0  # of the host
    digits: uint256 = 0  # of the port
    port: uint256 = 0
    place: uint256 = 0  # 0: first of an address, 1: in [, 2: in a name, 3: after ], 4: in the port
    for i: uint256 in range(len(text), bound=ADDRESSES_BYTES):
        character: uint256 = convert(slice(raw, i, 1), uint256)
        if place == 4:
            if character == 10:
                if digits == 0 or port == 0 or port > 65535:
                    return False
                found += 1
                place = 0
            else:
                digits += 1
                if (DIGITS >> character) & 1 == 0 or digits > 5:
                    return False
                port = port * 10 + character - 48
        elif place == 1:
            if character == 93:
                if length < 2:
                    return False
                place = 3
            else:
                length += 1
                if (NUMERIC >> character) & 1 == 0 or length > 45:
                    return False
        elif place == 0 and character == 91:
            place = 1
            length = 0
        elif place != 0 and character == 58:
            place = 4
            digits = 0
            port = 0
        elif place == 3:
            return False
        else:
            if place == 0:
                length = 0
            place = 2
            length += 1
            if (SEGMENT >> character) & 1 == 0 or length > 253:
                return False
    return place == 0 and found <= MAX_ADDRESSES


@view
@internal
def are_settings(settings: state.Settings) -> bool:
    """
    @notice Whether the numbers that the contract decides by make sense together.
    """
    pool: uint256 = state.count(settings.invited)
    if pool == 0:
        pool = state.count(state.trainers())
    if settings.min_members < 1 or settings.min_members > min(pool, MAX_STUDY_MEMBERS):
        return False
    if settings.quorum > settings.min_members or settings.rounds < 1 or settings.rounds > MAX_ROUNDS:
        return False
    if settings.silence_s < 1 or settings.merge_s < 1 or settings.merge_s > MAX_SECONDS:
        return False
    if settings.patience_s < settings.silence_s or settings.patience_s > MAX_SECONDS:
        return False
    if settings.give_up_s > MAX_SECONDS or settings.stop_s > MAX_SECONDS:
        return False
    quorum: uint256 = settings.quorum if settings.quorum != 0 else settings.min_members // 2 + 1
    if settings.needs > quorum:
        return False
    # Of two members one could keep all others out for good, with another state of the optimiser.
    if settings.outer == 1 and quorum < OUTER_QUORUM and state.count(settings.invited) != OUTER_QUORUM - 1:
        return False
    if settings.weighs_equal > 1 or settings.one_leader > 1 or settings.outer > 1:
        return False
    return settings.mixes <= 2


@pure
@internal
def settings_of(numbers: uint256[14], fixed: bytes32, free: bytes32) -> state.Settings:
    return state.Settings(
        invited=numbers[0],
        min_members=numbers[1],
        quorum=numbers[2],
        rounds=numbers[3],
        weighs_equal=numbers[4],
        one_leader=numbers[5],
        mixes=numbers[6],
        outer=numbers[7],
        silence_s=numbers[8],
        patience_s=numbers[9],
        merge_s=numbers[10],
        give_up_s=numbers[11],
        stop_s=numbers[12],
        needs=numbers[13],
        fixed=fixed,
        free=free,
    )
