"""What waits to be sent on a connection, without any I/O: whole frames, then bodies and streams in turn."""

from __future__ import annotations

from collections import deque

from konsil.transport.frames import HEADER_BYTES, RECORD_BYTES, SEGMENT_BYTES, Kind, encode

START_BYTES = RECORD_BYTES - HEADER_BYTES
"""What of a segment shares a TLS record with its header: one full record, not a tiny and a full one."""


class _Body:
    """An answer's body on its way out."""

    __slots__ = ("offset", "request", "view")

    def __init__(self, request: int, view: memoryview) -> None:
        self.request = request
        self.view = view
        self.offset = 0


class _Flow:
    """What has been written into a stream and not been taken yet."""

    __slots__ = ("finish", "number", "pieces")

    def __init__(self, number: int) -> None:
        self.number = number
        self.pieces: deque[memoryview] = deque()
        self.finish = False


class SendQueue:
    """What waits to be sent: whole frames, then by turns a segment of a body and a piece of a stream.

    So a heartbeat waits for one segment at most, however much else there is to send; and so does a word in a
    stream, however many chunks are on their way. Bodies take turns among themselves, as streams do.
    """

    def __init__(self) -> None:
        """Start empty."""
        self._frames: deque[tuple[int, bytes]] = deque()
        self._bodies: deque[_Body] = deque()
        self._flows: dict[int, _Flow] = {}
        self._turns: deque[_Flow] = deque()
        self._body_was_last = True
        self._rest: memoryview | None = None

    @property
    def empty(self) -> bool:
        """Whether nothing waits."""
        return not self._frames and not self._bodies and not self._turns and self._rest is None

    @property
    def frames(self) -> int:
        """How many whole frames wait."""
        return len(self._frames)

    @property
    def bodies(self) -> int:
        """How many bodies are not wholly taken yet."""
        return len(self._bodies)

    def put(self, frame: bytes, request: int = 0) -> None:
        """Queue a whole frame; ``request`` lets an own REQUEST be withdrawn."""
        self._frames.append((request, frame))

    def put_body(self, request: int, view: memoryview) -> None:
        """Queue a body, after its ANSWER frame. The memory is read when it is sent, never copied whole."""
        self._bodies.append(_Body(request, view))

    def put_piece(self, stream: int, view: memoryview) -> None:
        """Queue bytes of a stream, after its OPEN frame; they are read when they are sent."""
        self._flow(stream).pieces.append(view)

    def put_finish(self, stream: int) -> None:
        """Queue a stream's FINISH, behind what has been written into it."""
        self._flow(stream).finish = True

    def _flow(self, stream: int) -> _Flow:
        flow = self._flows.get(stream)
        if flow is None:
            flow = self._flows[stream] = _Flow(stream)
            self._turns.append(flow)
        return flow

    def withdraw(self, request: int) -> bool:
        """Take back an own REQUEST that has not been taken yet; whether it was still here."""
        for entry in self._frames:
            if entry[0] == request:
                self._frames.remove(entry)
                return True
        return False

    def drop_body(self, request: int) -> None:
        """Send no further segment of a body that nobody waits for."""
        for body in self._bodies:
            if body.request == request:
                self._bodies.remove(body)
                return

    def drop_stream(self, stream: int) -> None:
        """Send nothing more of a stream that was given up."""
        flow = self._flows.pop(stream, None)
        if flow is not None:
            self._turns.remove(flow)

    def clear(self) -> None:
        """Let go of everything."""
        self._frames.clear()
        self._bodies.clear()
        self._flows.clear()
        self._turns.clear()
        self._rest = None

    def take(self) -> bytes | memoryview | None:
        """The next bytes to send, in order; None when nothing waits."""
        if self._rest is not None:
            rest, self._rest = self._rest, None
            return rest
        if self._frames:
            return self._take_frames()
        if self._turns and (self._body_was_last or not self._bodies):
            self._body_was_last = False
            return self._take_piece()
        if self._bodies:
            self._body_was_last = True
            return self._take_segment()
        return None

    def _take_frames(self) -> bytes:
        """As many whole frames as fit one TLS record, and at least one."""
        _, first = self._frames.popleft()
        if not self._frames:
            return first
        pieces, total = [first], len(first)
        while self._frames and total + len(self._frames[0][1]) <= RECORD_BYTES:
            _, frame = self._frames.popleft()
            pieces.append(frame)
            total += len(frame)
        return b"".join(pieces)

    def _take_segment(self) -> bytes:
        """A DATA header with the start of its segment."""
        body = self._bodies.popleft()
        segment = body.view[body.offset : body.offset + SEGMENT_BYTES]
        body.offset += len(segment)
        if body.offset < len(body.view):
            self._bodies.append(body)
        return self._start(Kind.DATA, body.request, segment)

    def _take_piece(self) -> bytes:
        """A PIECE header with the start of its segment; small writes share one."""
        flow = self._turns.popleft()
        taken = self._from(flow.pieces) if flow.pieces else None
        if flow.pieces or (flow.finish and taken is not None):
            self._turns.append(flow)
        else:
            del self._flows[flow.number]
        if taken is None:
            return encode(Kind.FINISH, flow.number)
        return self._start(Kind.PIECE, flow.number, taken)

    @staticmethod
    def _from(pieces: deque[memoryview]) -> memoryview:
        """The next bytes of a stream: a segment of what was written at once, or small writes together."""
        first = pieces.popleft()
        if len(first) > SEGMENT_BYTES:
            pieces.appendleft(first[SEGMENT_BYTES:])
            return first[:SEGMENT_BYTES]
        total = len(first)
        small = [first]
        while pieces and total + len(pieces[0]) <= START_BYTES:
            total += len(pieces[0])
            small.append(pieces.popleft())
        return first if len(small) == 1 else memoryview(b"".join(small))

    def _start(self, kind: Kind, number: int, segment: memoryview) -> bytes:
        if len(segment) > START_BYTES:
            self._rest = segment[START_BYTES:]
        return encode(kind, number, body_bytes=len(segment)) + bytes(segment[:START_BYTES])
