"""Chunks, leaves and roots: how a few bytes on the ledger say whether a model is the right one.

A chunk's BLAKE3 is its *leaf*. A *group* is a run of consecutive chunks: a whole update, or the part of a
merge that one leader made. The *root* stands over the schema's digest and the groups' digests, so that the
contract, which knows only those, computes a merge's digest itself. Every kind of input has a context of its
own (BLAKE3's key derivation mode): a leaf can never pass for a group, nor a group for a root.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, pairwise

from blake3 import blake3

from konsil.core.messages import MAX_MANIFEST_BYTES
from konsil.errors import DigestMismatch, FrameError, ParametersError

Digest = str
"""64 lower-case hexadecimal digits."""

Buffer = bytes | bytearray | memoryview

CHUNK_BYTES = 4 * 1024 * 1024
"""Small enough to be fetched from several peers at once and to be disputed alone, large enough that the
price of one request does not show. A multiple of every element's size: chunks are element-aligned."""

LEAF_BYTES = 32
MAX_GROUPS = 1024
"""A merge has at most one part a member; as for the Gram matrix, 1,024 members."""

_LEAF = "konsil v1 leaf: one chunk of parameters"
_OF_LEAVES = blake3(derive_key_context=_LEAF)
_OF_GROUPS = blake3(derive_key_context="konsil v1 group: leaves of consecutive chunks")
_OF_SCHEMAS = blake3(derive_key_context="konsil v1 schema: header of parameters")
_OF_ROOTS = blake3(derive_key_context="konsil v1 root: schema and groups")
"""To be copied, never fed: deriving a context's key again takes longer than the digest of a few bytes."""
_OTHER = "konsil v1 bytes: "


def leaf(chunk: Buffer, max_threads: int = 1) -> bytes:
    """The BLAKE3 of one chunk, 32 bytes. One thread by default: callers have many chunks in flight."""
    if max_threads == 1:
        return _OF_LEAVES.copy().update(chunk).digest()
    return blake3(chunk, derive_key_context=_LEAF, max_threads=max_threads).digest()


def group_digest(leaves: Sequence[bytes]) -> Digest:
    """The digest of a run of chunks from their leaves; of a part with no chunks, too.

    Raises:
        DigestMismatch: a leaf is not 32 bytes long.
    """
    if any(len(each) != LEAF_BYTES for each in leaves):
        raise DigestMismatch(f"A leaf must be {LEAF_BYTES} bytes long.")
    return _OF_GROUPS.copy().update(b"".join(leaves)).hexdigest()


def schema_digest(header: Buffer) -> Digest:
    """The digest of a safetensors header (length prefix included): what the ledger knows of a schema."""
    return _OF_SCHEMAS.copy().update(header).hexdigest()


def root_from(schema: Digest, groups: Sequence[Digest]) -> Digest:
    """The digest of an update or a merge from what stands on the ledger.

    Raises:
        DigestMismatch: one of them is not a digest.
    """
    raw = b"".join(_raw(digest) for digest in (schema, *groups))
    return _OF_ROOTS.copy().update(raw).hexdigest()


def root_digest(header: bytes, groups: Sequence[Digest]) -> Digest:
    """The digest of an update or a merge from its header and the digests of its groups."""
    return root_from(schema_digest(header), groups)


def bytes_digest(data: Buffer, context: str) -> Digest:
    """The digest of anything else. ``context``: what it is ("state", "genesis", "card", "gram" ...)."""
    return blake3(data, derive_key_context=_OTHER + context).hexdigest()


def digesting(context: str) -> blake3:
    """What makes the digest of ``bytes_digest`` piece by piece: ``update``, then ``hexdigest``."""
    return blake3(derive_key_context=_OTHER + context)


def is_digest(text: str) -> bool:
    """Whether a text has the form of a digest."""
    try:
        return len(text) == 2 * LEAF_BYTES and bytes.fromhex(text).hex() == text
    except ValueError:
        return False


def check_leaf(chunk: Buffer, expected: bytes, *, index: int, digest: Digest = "", source: str = "") -> None:
    """See that a chunk is the one that its leaf stands for.

    Args:
        chunk: the bytes that came.
        expected: its leaf, from a manifest that was checked against a digest.
        index: the chunk's number, for the message.
        digest: what the chunk belongs to, for the message.
        source: the peer that it came from, for the message.

    Raises:
        DigestMismatch: it is another chunk.
    """
    if leaf(chunk) == expected:
        return
    whose = f" of {digest[:12]}" if digest else ""
    came = f" from '{source}'" if source else ""
    raise DigestMismatch(
        f"Chunk {index}{whose}{came} is not what its digest says ({len(chunk)} bytes).",
        safe="The chunk was thrown away.",
        do="It is fetched from another peer. If this goes on, the peer's memory is faulty, or it lies.",
        index=index,
        digest=digest,
        source=source,
    )


def chunk_count(data_bytes: int) -> int:
    """How many chunks a data section has: at least 1."""
    return max(1, -(-data_bytes // CHUNK_BYTES))


def chunk_range(index: int, data_bytes: int) -> tuple[int, int]:
    """Where a chunk starts and stops in the data section, in bytes.

    Raises:
        ParametersError: there is no such chunk.
    """
    count = chunk_count(data_bytes)
    if not 0 <= index < count:
        raise ParametersError(f"There is no chunk {index}: the parameters have {count}, counted from 0.")
    return index * CHUNK_BYTES, min((index + 1) * CHUNK_BYTES, data_bytes)


def part_range(part: int, n_parts: int, n_chunks: int) -> range:
    """The chunks of a part: consecutive, and no part has more than one chunk more than another.

    Raises:
        ParametersError: there is no such part.
    """
    if not 0 <= part < n_parts:
        raise ParametersError(f"There is no part {part}: the round has {n_parts}, counted from 0.")
    return range(part * n_chunks // n_parts, (part + 1) * n_chunks // n_parts)


@dataclass(frozen=True)
class Manifest:
    """The header and all leaves behind a digest: with it every chunk can be checked alone.

    ``groups``: the leaves, group by group: one group for an update or an initial model, one group a part
    for a merge. The manifest of a part alone has an empty header and one group.
    """

    header: bytes
    groups: tuple[tuple[bytes, ...], ...]

    @cached_property
    def group_digests(self) -> tuple[Digest, ...]:
        """The digest of each group."""
        return tuple(group_digest(group) for group in self.groups)

    @cached_property
    def digest(self) -> Digest:
        """The root: the digest of the update or merge."""
        return root_digest(self.header, self.group_digests)

    @cached_property
    def leaves(self) -> tuple[bytes, ...]:
        """All leaves in the order of the chunks."""
        return tuple(each for group in self.groups for each in group)

    def require(self, digest: Digest) -> None:
        """See that it is the manifest of a model (a root digest) or of a part alone (a group digest).

        Raises:
            DigestMismatch: it is another one.
        """
        is_part = not self.header and len(self.groups) == 1
        actual = self.group_digests[0] if is_part else self.digest
        if actual != digest:
            raise DigestMismatch(
                f"A manifest has digest {actual}, not {digest}.",
                safe="Nothing was taken from it.",
                do="Another holder is asked.",
            )

    def require_part(self, digest: Digest, chunks: int) -> None:
        """See that it is the manifest of a part alone, with so many chunks.

        Raises:
            DigestMismatch: it is not. A leader that published such a digest published no part.
        """
        if self.header or len(self.groups) != 1 or self.group_digests[0] != digest:
            raise DigestMismatch(f"What is behind {digest[:12]} is no part of a merge.")
        if len(self.leaves) != chunks:
            raise DigestMismatch(f"The part {digest[:12]} has {len(self.leaves)} chunks instead of {chunks}.")

    def encode(self) -> bytes:
        """As bytes: lengths (32 bits, little-endian): header, groups, leaves of each; then header, leaves.

        Raises:
            ParametersError: the manifest is over the limit, or has too many groups.
        """
        counts = [len(group) for group in self.groups]
        lengths = struct.pack(f"<{2 + len(counts)}I", len(self.header), len(counts), *counts)
        data = b"".join((lengths, self.header, *self.leaves))
        if len(data) > MAX_MANIFEST_BYTES or not 0 < len(counts) <= MAX_GROUPS:
            raise ParametersError(
                f"A manifest of {len(data)} bytes and {len(counts)} groups is over the limit of "
                f"{MAX_MANIFEST_BYTES} bytes and {MAX_GROUPS} groups.",
                do="The model has too many parameters or names for one study: keep some of them local.",
            )
        return data

    @classmethod
    def decode(cls, data: Buffer) -> Manifest:
        """A peer's bytes as a manifest. Whether it is the right one, its digest says.

        Raises:
            FrameError: over the limits, cut short, or followed by anything.
        """
        if len(data) > MAX_MANIFEST_BYTES:
            raise _malformed(f"{len(data)} bytes are over the limit of {MAX_MANIFEST_BYTES}")
        raw = bytes(data)
        if len(raw) < struct.calcsize("<2I"):
            raise _malformed("it is cut short")
        header_bytes, n_groups = struct.unpack_from("<2I", raw)
        if not 0 < n_groups <= MAX_GROUPS:
            raise _malformed(f"{n_groups} groups are not from 1 to {MAX_GROUPS}")
        start = struct.calcsize(f"<{2 + n_groups}I")
        if len(raw) < start:
            raise _malformed("it is cut short")
        counts = struct.unpack_from(f"<{n_groups}I", raw, struct.calcsize("<2I"))
        expected = start + header_bytes + LEAF_BYTES * sum(counts)
        if len(raw) != expected:
            raise _malformed(f"it has {len(raw)} bytes where its own lengths say {expected}")
        header, at = raw[start : start + header_bytes], start + header_bytes
        leaves = [raw[i : i + LEAF_BYTES] for i in range(at, expected, LEAF_BYTES)]
        ends = list(accumulate(counts, initial=0))
        groups = (tuple(leaves[first:last]) for first, last in pairwise(ends))
        return cls(header, tuple(groups))


def _raw(digest: Digest) -> bytes:
    if not is_digest(digest):
        raise DigestMismatch(f"{digest[:80]!r} is not a digest: it must be 64 lower-case hexadecimal digits.")
    return bytes.fromhex(digest)


def _malformed(why: str) -> FrameError:
    return FrameError(
        f"A manifest cannot be read: {why}.",
        safe="Nothing was taken from it.",
        do="It is fetched from another peer.",
    )
