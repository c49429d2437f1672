"""The few messages of ABCI 2.0 that are needed, described here and built by the ``protobuf`` library.

Names and field numbers are those of CometBFT 0.38's ``proto/tendermint/abci/types.proto``; what is left out
is stepped over on reading. The descriptions live in a pool of their own: other packages in this process may
bring other versions of the same names.
"""

from __future__ import annotations

from typing import Any

from google.protobuf.descriptor_pb2 import FieldDescriptorProto, FileDescriptorProto
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message import DecodeError
from google.protobuf.message_factory import GetMessageClass

from konsil.errors import FrameError

MAX_MESSAGE_BYTES = 32 * 1024 * 1024
"""A request holds one block at most, whose size the genesis bounds; this is far above it."""

_PACKAGE = "konsil.abci"

_REQUESTS = (
    (1, "echo", "RequestEcho"),
    (2, "flush", "Empty"),
    (3, "info", "RequestInfo"),
    (5, "init_chain", "RequestInitChain"),
    (6, "query", "RequestQuery"),
    (8, "check_tx", "RequestCheckTx"),
    (11, "commit", "Empty"),
    (12, "list_snapshots", "Empty"),
    (13, "offer_snapshot", "Empty"),
    (14, "load_snapshot_chunk", "Empty"),
    (15, "apply_snapshot_chunk", "Empty"),
    (16, "prepare_proposal", "RequestPrepareProposal"),
    (17, "process_proposal", "RequestProcessProposal"),
    (18, "extend_vote", "Empty"),
    (19, "verify_vote_extension", "Empty"),
    (20, "finalize_block", "RequestFinalizeBlock"),
)

_RESPONSES = (
    (1, "exception", "ResponseException"),
    (2, "echo", "RequestEcho"),
    (3, "flush", "Empty"),
    (4, "info", "ResponseInfo"),
    (6, "init_chain", "ResponseInitChain"),
    (7, "query", "ResponseQuery"),
    (9, "check_tx", "ResponseCheckTx"),
    (12, "commit", "ResponseCommit"),
    (13, "list_snapshots", "Empty"),
    (14, "offer_snapshot", "Result"),
    (15, "load_snapshot_chunk", "Empty"),
    (16, "apply_snapshot_chunk", "Result"),
    (17, "prepare_proposal", "ResponsePrepareProposal"),
    (18, "process_proposal", "Result"),
    (19, "extend_vote", "Empty"),
    (20, "verify_vote_extension", "Result"),
    (21, "finalize_block", "ResponseFinalizeBlock"),
)

_BLOCK = (
    (3, "misbehavior", "*Misbehavior"),
    (4, "hash", "bytes"),
    (5, "height", "int64"),
    (6, "time", "Timestamp"),
)

_FIELDS: dict[str, tuple[tuple[int, str, str], ...]] = {
    "Empty": (),
    "Result": ((1, "status", "int32"),),
    "Timestamp": ((1, "seconds", "int64"), (2, "nanos", "int32")),
    "Validator": ((1, "address", "bytes"), (3, "power", "int64")),
    "PublicKey": ((1, "ed25519", "bytes"),),
    "ValidatorUpdate": ((1, "pub_key", "PublicKey"), (2, "power", "int64")),
    "Misbehavior": (
        (1, "type", "int32"),
        (2, "validator", "Validator"),
        (3, "height", "int64"),
        (4, "time", "Timestamp"),
    ),
    "RequestEcho": ((1, "message", "string"),),
    "RequestInfo": ((1, "version", "string"),),
    "RequestInitChain": ((2, "chain_id", "string"), (4, "validators", "*ValidatorUpdate")),
    "RequestQuery": ((1, "data", "bytes"), (2, "path", "string")),
    "RequestCheckTx": ((1, "tx", "bytes"), (2, "type", "int32")),
    "RequestPrepareProposal": (
        (1, "max_tx_bytes", "int64"),
        (2, "txs", "*bytes"),
        (5, "height", "int64"),
        (6, "time", "Timestamp"),
    ),
    "RequestProcessProposal": ((1, "txs", "*bytes"), *_BLOCK),
    "RequestFinalizeBlock": ((1, "txs", "*bytes"), *_BLOCK),
    "ResponseException": ((1, "error", "string"),),
    "ResponseInfo": (
        (1, "data", "string"),
        (2, "version", "string"),
        (3, "app_version", "uint64"),
        (4, "last_block_height", "int64"),
        (5, "last_block_app_hash", "bytes"),
    ),
    "ResponseInitChain": ((3, "app_hash", "bytes"),),
    "ResponseQuery": ((1, "code", "uint32"), (3, "log", "string"), (7, "value", "bytes")),
    "ResponseCheckTx": ((1, "code", "uint32"), (3, "log", "string"), (8, "codespace", "string")),
    "ResponseCommit": ((3, "retain_height", "int64"),),
    "ResponsePrepareProposal": ((1, "txs", "*bytes"),),
    "ExecTxResult": ((1, "code", "uint32"), (3, "log", "string"), (8, "codespace", "string")),
    "ResponseFinalizeBlock": (
        (2, "tx_results", "*ExecTxResult"),
        (3, "validator_updates", "*ValidatorUpdate"),
        (5, "app_hash", "bytes"),
    ),
    "Request": _REQUESTS,
    "Response": _RESPONSES,
}

_SCALARS = {
    "string": FieldDescriptorProto.TYPE_STRING,
    "bytes": FieldDescriptorProto.TYPE_BYTES,
    "int32": FieldDescriptorProto.TYPE_INT32,
    "int64": FieldDescriptorProto.TYPE_INT64,
    "uint32": FieldDescriptorProto.TYPE_UINT32,
    "uint64": FieldDescriptorProto.TYPE_UINT64,
}


def _described() -> FileDescriptorProto:
    file = FileDescriptorProto(name="konsil/abci.proto", package=_PACKAGE, syntax="proto3")
    for name, fields in _FIELDS.items():
        message = file.message_type.add(name=name)
        one_of = name in {"Request", "Response"}
        if one_of:
            message.oneof_decl.add(name="value")
        for number, field_name, kind in fields:
            field = message.field.add(name=field_name, number=number)
            many, kind = kind.startswith("*"), kind.lstrip("*")  # noqa: PLW2901 - the star is about the field
            field.label = FieldDescriptorProto.LABEL_REPEATED if many else FieldDescriptorProto.LABEL_OPTIONAL
            if kind in _SCALARS:
                field.type = _SCALARS[kind]
            else:
                field.type, field.type_name = FieldDescriptorProto.TYPE_MESSAGE, f".{_PACKAGE}.{kind}"
            if one_of:
                field.oneof_index = 0
    return file


_pool = DescriptorPool()
_pool.AddSerializedFile(_described().SerializeToString())


def message(name: str) -> Any:
    """The class of a message by its name in the table above."""
    return GetMessageClass(_pool.FindMessageTypeByName(f"{_PACKAGE}.{name}"))


Request: Any = message("Request")
Response: Any = message("Response")


def decode_request(data: bytes) -> tuple[str, Any]:
    """What CometBFT asks, and the request's fields.

    Raises:
        FrameError: not a request of ABCI 2.0, or over the limit.
    """
    if len(data) > MAX_MESSAGE_BYTES:
        raise _unreadable(f"it has {len(data)} bytes")
    try:
        request = Request.FromString(data)
    except DecodeError as error:
        raise _unreadable(str(error)) from error
    kind = request.WhichOneof("value")
    if kind is None:
        raise _unreadable("it is of a kind that ABCI 2.0 does not have")
    return kind, getattr(request, kind)


def encode_response(kind: str, **fields: Any) -> bytes:
    """An answer as bytes. ``fields``: those of the message for this kind."""
    response = Response()
    part = getattr(response, kind)
    part.SetInParent()  # an empty answer is an answer
    for name, value in fields.items():
        if isinstance(value, (list, tuple)):
            getattr(part, name).extend(value)
        else:
            setattr(part, name, value)
    return bytes(response.SerializeToString())


def _unreadable(why: str) -> FrameError:
    return FrameError(
        f"A request of CometBFT cannot be read: {why}.",
        safe="Nothing was taken from it.",
        do="Use CometBFT 0.38: see `konsil doctor`.",
    )
