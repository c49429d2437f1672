# pragma version 0.4.3
# pragma evm-version paris
"""
@title BLAKE3 for the two digests that the contract computes itself
@notice The four quarter rounds of half a round run at once: the 16 words of the state stand in four numbers, each
    word in 64 bits of its own, whose upper half takes what an addition or a rotation carries over.
    The keys are those that BLAKE3 derives from "konsil v1 root: schema and groups" and "konsil 2026 deal of parts".
"""

LANES: constant(uint256) = 26959946660873538060741835960174461801791452538186943042387869433855
WORD: constant(uint256) = 4294967295
CHUNK_START: constant(uint256) = 1
CHUNK_END: constant(uint256) = 2
PARENT: constant(uint256) = 4
ROOT: constant(uint256) = 8
DERIVED: constant(uint256) = 64  # DERIVE_KEY_MATERIAL
IV_LOW: constant(uint256) = 17409420904211773729879041027648479122757846414558310453357033678439
ROOT_LOW: constant(uint256) = 17036363263377021123381744175923902741696925256920124055505478844722
ROOT_HIGH: constant(uint256) = 1688544095417447945428038849450818855572619410418814031302834103722
DEAL_LOW: constant(uint256) = 24779783566874103124721879592378482457721889638028334566939949749344
DEAL_HIGH: constant(uint256) = 17711458053881284852609078572872092526176170626278768901652460684986
CHUNK_WORDS: constant(uint256) = 32  # digests in a chunk of 1,024 bytes
MAX_DIGESTS: constant(uint256) = 256


@pure
@internal
def _swapped(x: uint256) -> uint256:
    """
    @notice The bytes of each 32-bit word the other way round.
    """
    y: uint256 = ((x & convert(0x00ff00ff00ff00ff00ff00ff00ff00ff00ff00ff00ff00ff00ff00ff00ff00ff, uint256)) << 8) | ((x >> 8) & convert(0x00ff00ff00ff00ff00ff00ff00ff00ff00ff00ff00ff00ff00ff00ff00ff00ff, uint256))
    return ((y & convert(0x0000ffff0000ffff0000ffff0000ffff0000ffff0000ffff0000ffff0000ffff, uint256)) << 16) | ((y >> 16) & convert(0x0000ffff0000ffff0000ffff0000ffff0000ffff0000ffff0000ffff0000ffff, uint256))


@pure
@internal
def _bytes_of(low: uint256, high: uint256) -> uint256:
    """
    @notice Eight words of a state as the 32 bytes that they stand for.
    """
    y: uint256 = (low & WORD) << 224 | (low >> 64 & WORD) << 192 | (low >> 128 & WORD) << 160 | (low >> 192) << 128
    y |= (high & WORD) << 96 | (high >> 64 & WORD) << 64 | (high >> 128 & WORD) << 32 | (high >> 192)
    return self._swapped(y)


@pure
@internal
def _compress(
    low: uint256, high: uint256, first: uint256, second: uint256, at: uint256, size: uint256, flags: uint256
) -> (uint256, uint256, uint256, uint256):
    """
    @param first The block's first 32 bytes, `second` its others.
    @return The sixteen words: the first eight are the next chaining value.
    """
    m: uint256[16] = empty(uint256[16])
    half: uint256 = self._swapped(first)
    for i: uint256 in range(8):
        m[i] = half >> (224 - 32 * i) & WORD
    half = self._swapped(second)
    for i: uint256 in range(8):
        m[8 + i] = half >> (224 - 32 * i) & WORD
    w: uint256[28] = empty(uint256[28])
    w[0] = m[0] | m[2] << 64 | m[4] << 128 | m[6] << 192
    w[1] = m[1] | m[3] << 64 | m[5] << 128 | m[7] << 192
    w[2] = m[8] | m[10] << 64 | m[12] << 128 | m[14] << 192
    w[3] = m[9] | m[11] << 64 | m[13] << 128 | m[15] << 192
    w[4] = m[2] | m[3] << 64 | m[7] << 128 | m[4] << 192
    w[5] = m[6] | m[10] << 64 | m[0] << 128 | m[13] << 192
    w[6] = m[1] | m[12] << 64 | m[9] << 128 | m[15] << 192
    w[7] = m[11] | m[5] << 64 | m[14] << 128 | m[8] << 192
    w[8] = m[3] | m[10] << 64 | m[13] << 128 | m[7] << 192
    w[9] = m[4] | m[12] << 64 | m[2] << 128 | m[14] << 192
    w[10] = m[6] | m[9] << 64 | m[11] << 128 | m[8] << 192
    w[11] = m[5] | m[0] << 64 | m[15] << 128 | m[1] << 192
    w[12] = m[10] | m[12] << 64 | m[14] << 128 | m[13] << 192
    w[13] = m[7] | m[9] << 64 | m[3] << 128 | m[15] << 192
    w[14] = m[4] | m[11] << 64 | m[5] << 128 | m[1] << 192
    w[15] = m[0] | m[2] << 64 | m[8] << 128 | m[6] << 192
    w[16] = m[12] | m[9] << 64 | m[15] << 128 | m[14] << 192
    w[17] = m[13] | m[11] << 64 | m[10] << 128 | m[8] << 192
    w[18] = m[7] | m[5] << 64 | m[0] << 128 | m[6] << 192
    w[19] = m[2] | m[3] << 64 | m[1] << 128 | m[4] << 192
    w[20] = m[9] | m[11] << 64 | m[8] << 128 | m[15] << 192
    w[21] = m[14] | m[5] << 64 | m[12] << 128 | m[1] << 192
    w[22] = m[13] | m[0] << 64 | m[2] << 128 | m[4] << 192
    w[23] = m[3] | m[10] << 64 | m[6] << 128 | m[7] << 192
    w[24] = m[11] | m[5] << 64 | m[1] << 128 | m[8] << 192
    w[25] = m[15] | m[0] << 64 | m[9] << 128 | m[6] << 192
    w[26] = m[14] | m[2] << 64 | m[3] << 128 | m[7] << 192
    w[27] = m[10] | m[12] << 64 | m[4] << 128 | m[13] << 192

    a: uint256 = low
    b: uint256 = high
    c: uint256 = IV_LOW
    d: uint256 = (at & WORD) | (at >> 32) << 64 | size << 128 | flags << 192
    for k: uint256 in range(14):
        a = unsafe_add(unsafe_add(a, b), w[2 * k]) & LANES
        d ^= a
        d = (d >> 16 | d << 16) & LANES
        c = unsafe_add(c, d) & LANES
        b ^= c
        b = (b >> 12 | b << 20) & LANES
        a = unsafe_add(unsafe_add(a, b), w[2 * k + 1]) & LANES
        d ^= a
        d = (d >> 8 | d << 24) & LANES
        c = unsafe_add(c, d) & LANES
        b ^= c
        b = (b >> 7 | b << 25) & LANES
        if k % 2 == 0:  # from columns to diagonals
            b = b >> 64 | b << 192
            c = c >> 128 | c << 128
            d = d >> 192 | d << 64
        else:  # and back
            b = b >> 192 | b << 64
            c = c >> 128 | c << 128
            d = d >> 64 | d << 192
    return a ^ c, b ^ d, c ^ low, d ^ high


@pure
@internal
def root(digests: DynArray[bytes32, 256]) -> bytes32:
    """
    @notice BLAKE3 over the digests one behind the other, in the context of roots.
    """
    total: uint256 = len(digests)
    chunks: uint256 = (total + CHUNK_WORDS - 1) // CHUNK_WORDS
    lows: uint256[8] = empty(uint256[8])
    highs: uint256[8] = empty(uint256[8])
    for chunk: uint256 in range(chunks, bound=8):
        start: uint256 = chunk * CHUNK_WORDS
        stop: uint256 = min(start + CHUNK_WORDS, total)
        low: uint256 = ROOT_LOW
        high: uint256 = ROOT_HIGH
        for row: uint256 in range(16):
            at: uint256 = start + 2 * row
            if at >= stop:
                break
            flags: uint256 = DERIVED
            if row == 0:
                flags |= CHUNK_START
            if at + 2 >= stop:
                flags |= CHUNK_END
                if chunks == 1:
                    flags |= ROOT
            second: uint256 = 0
            size: uint256 = 32
            if at + 1 < stop:
                second = convert(digests[at + 1], uint256)
                size = 64
            c: uint256 = 0
            d: uint256 = 0
            low, high, c, d = self._compress(low, high, convert(digests[at], uint256), second, chunk, size, flags)
        lows[chunk] = low
        highs[chunk] = high
    for level: uint256 in range(3):
        if chunks == 1:
            break
        pairs: uint256 = chunks // 2
        for pair: uint256 in range(pairs, bound=4):
            flags: uint256 = DERIVED | PARENT
            if chunks == 2:
                flags |= ROOT
            left: uint256 = self._bytes_of(lows[2 * pair], highs[2 * pair])
            right: uint256 = self._bytes_of(lows[2 * pair + 1], highs[2 * pair + 1])
            low: uint256 = 0
            high: uint256 = 0
            c: uint256 = 0
            d: uint256 = 0
            low, high, c, d = self._compress(ROOT_LOW, ROOT_HIGH, left, right, 0, 64, flags)
            lows[pair] = low
            highs[pair] = high
        if chunks % 2 == 1:
            lows[pairs] = lows[chunks - 1]
            highs[pairs] = highs[chunks - 1]
        chunks = (chunks + 1) // 2
    return convert(self._bytes_of(lows[0], highs[0]), bytes32)


@pure
@internal
def draws(base: bytes32, number: uint256, attempt: uint256, n: uint256) -> DynArray[uint256, 256]:
    """
    @notice The first 8 n bytes of the stream that deals out parts, eight bytes a number.
    """
    first: uint256 = self._hexadecimal(convert(base, uint256) >> 128)
    second: uint256 = self._hexadecimal(convert(base, uint256) & convert(0x00000000000000000000000000000000ffffffffffffffffffffffffffffffff, uint256))
    c: uint256 = 0
    d: uint256 = 0
    low: uint256 = 0
    high: uint256 = 0
    low, high, c, d = self._compress(DEAL_LOW, DEAL_HIGH, first, second, 0, 64, DERIVED | CHUNK_START)
    tail: uint256 = 0
    size: uint256 = 0
    tail, size = self._written(attempt, 0, 0)
    tail, size = self._written(number, tail, size)
    tail <<= 8 * (32 - size)
    drawn: DynArray[uint256, 256] = []
    for row: uint256 in range((n + 7) // 8, bound=32):
        one: uint256 = 0
        two: uint256 = 0
        three: uint256 = 0
        four: uint256 = 0
        one, two, three, four = self._compress(low, high, tail, 0, row, size, DERIVED | CHUNK_END | ROOT)
        one = self._bytes_of(one, two)
        two = self._bytes_of(three, four)
        for i: uint256 in range(4):
            drawn.append(one >> (192 - 64 * i) & 18446744073709551615)
        for i: uint256 in range(4):
            drawn.append(two >> (192 - 64 * i) & 18446744073709551615)
    return drawn


@pure
@internal
def _written(number: uint256, behind: uint256, size: uint256) -> (uint256, uint256):
    """
    @notice A slash and a number in decimal digits, in front of what stands already.
    """
    text: uint256 = behind
    length: uint256 = size
    rest: uint256 = number
    for i: uint256 in range(15):
        text |= (48 + rest % 10) << (8 * length)
        length += 1
        rest //= 10
        if rest == 0:
            break
    assert rest == 0, "number_too_large"
    return text | 47 << (8 * length), length + 1


@pure
@internal
def _hexadecimal(half: uint256) -> uint256:
    """
    @notice 16 bytes as 32 small hexadecimal digits in ASCII, all at once.
    """
    x: uint256 = (half | half << 64) & convert(0x0000000000000000ffffffffffffffff0000000000000000ffffffffffffffff, uint256)
    x = (x | x << 32) & convert(0x00000000ffffffff00000000ffffffff00000000ffffffff00000000ffffffff, uint256)
    x = (x | x << 16) & convert(0x0000ffff0000ffff0000ffff0000ffff0000ffff0000ffff0000ffff0000ffff, uint256)
    x = (x | x << 8) & convert(0x00ff00ff00ff00ff00ff00ff00ff00ff00ff00ff00ff00ff00ff00ff00ff00ff, uint256)
    x = (x | x << 4) & convert(0x0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f, uint256)
    letters: uint256 = (unsafe_add(x, convert(0x0606060606060606060606060606060606060606060606060606060606060606, uint256)) >> 4) & convert(0x0101010101010101010101010101010101010101010101010101010101010101, uint256)
    return unsafe_add(unsafe_add(x, convert(0x3030303030303030303030303030303030303030303030303030303030303030, uint256)), unsafe_mul(letters, 39))
