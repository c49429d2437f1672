"""A call as a transaction's data, and back: what the contract takes is what nodes replay through the rules.

Texts that the contract does not look into travel too, so a node that reads the blocks has every call whole.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from konsil.core.digest import is_digest
from konsil.core.rules import (
    Accept,
    Agree,
    Alive,
    Announce,
    Call,
    Commit,
    Contribution,
    Dispute,
    Enter,
    Finish,
    Initialise,
    Leave,
    MemberRecord,
    ProposeAdmit,
    ProposeRemove,
    ProposeStudy,
    ProposeStudySettings,
    ProposeSwarmSettings,
    Publish,
    Renew,
    Report,
    Score,
    StudySettings,
    SwarmSettings,
    Tick,
    Validate,
    Verdict,
    Vote,
)
from konsil.errors import Refused
from konsil.ledger.ethereum import settings_words
from konsil.ledger.ethereum.directory import Directory
from konsil.ledger.ethereum.words import (
    NO_DIGEST,
    SELECTOR_BYTES,
    Value,
    Words,
    encode,
    float_bits,
    float_from,
    name_from,
    name_words,
    selector,
)

_NUMBERS = f"uint256[{settings_words.N_NUMBERS}]"
_PART = "uint256,uint256,uint256,uint256,uint256"  # sequence, study, round, attempt, part

SIGNATURES: Final[dict[type, str]] = {
    ProposeAdmit: "propose_admit(uint256,uint256,uint256,address,bytes32,bytes32,bytes32,bool,string,string)",
    ProposeRemove: "propose_remove(uint256,uint256,string)",
    ProposeSwarmSettings: "propose_swarm_settings(uint256,uint256)",
    ProposeStudySettings: f"propose_study_settings(uint256,uint256,{_NUMBERS},string,string)",
    Vote: "vote(uint256,uint256,bool)",
    Announce: "announce(uint256,string)",
    Renew: "renew(uint256,bytes32,bytes32)",
    Validate: "validate(uint256,bool)",
    ProposeStudy: f"propose_study(uint256,uint256,uint256,{_NUMBERS},string,string)",
    Agree: "agree(uint256,uint256,bytes32)",
    Initialise: "initialise(uint256,uint256,bytes32,bytes32,uint256)",
    Enter: "enter(uint256,uint256)",
    Leave: "leave(uint256,uint256)",
    Commit: "commit(uint256,uint256,uint256,bytes32,bytes32,uint256,bytes32)",
    Alive: "alive(uint256,uint256,uint256,uint256)",
    Publish: f"publish({_PART},bytes32,bytes32)",
    Accept: "accept(uint256,uint256,uint256,uint256,bytes32)",
    Report: "report(uint256,uint256,uint256,uint256,uint256)",
    Tick: "tick(uint256,uint256)",
    Dispute: f"dispute({_PART},uint256)",
    Verdict: f"verdict({_PART},uint256,bool)",
    Score: "score(uint256,uint256,uint256,uint256,bool,uint256,string,uint256[])",
    Finish: "finish(uint256,uint256,uint256)",
}
"""Each call's function in the contract; its first number is the caller's sequence number."""

_CONTRIBUTIONS: Final[tuple[Contribution, ...]] = ("snapshot", "active", "inactive")
_BEYOND = 1 << 255
"""Stands for a number that no call may have: the contract refuses it as the rules refuse it."""


def encode_call(call: Call, sequence: int, directory: Directory, settings_digest: str = "") -> bytes:
    """A call as a transaction's data.

    Args:
        call: the call, canonical.
        sequence: the caller's number for it.
        directory: what the contract's numbers stand for now.
        settings_digest: for ``Agree``: of the settings that the study has now.

    Raises:
        Refused: it has a form that the contract could not even read.
    """
    if isinstance(call, Agree):
        same = call.settings == settings_digest
        held = directory.settings.get(call.study, NO_DIGEST) if same else NO_DIGEST
        values: list[Value] = [directory.study(call.study), held]
    else:
        values = _ENCODERS[type(call)](call, directory)
    return selector(SIGNATURES[type(call)]) + encode([sequence, *values])


def _number(value: int) -> int:
    return value if 0 <= value < _BEYOND else _BEYOND


def _digest(text: str, what: str) -> bytes:
    if not text:
        return NO_DIGEST
    if not is_digest(text):
        raise Refused("bad_digest", f"The {what} must be 64 lower-case hexadecimal digits.")
    return bytes.fromhex(text)


def _admit(call: ProposeAdmit, directory: Directory) -> list[Value]:
    record = call.member
    account = directory.accounts.get(record.name, bytes(20))
    keys = [record.ledger_key, record.bundle, record.card]
    if not all(map(is_digest, keys)):
        raise Refused("bad_member", f"'{record.name[:64]}' cannot be admitted: a key or digest is malformed.")
    raw = [bytes.fromhex(text) for text in keys]
    texts = [record.spiffe_id, _lines(record.addresses)]
    return [*name_words(record.name), int.from_bytes(account, "big"), *raw, record.witness, *texts]


def _lines(texts: tuple[str, ...]) -> str:
    return "".join(f"{text}\n" for text in texts)


def _propose_study(call: ProposeStudy, directory: Directory) -> list[Value]:
    settings = call.settings
    return [*name_words(settings.name), *_settings(call, directory)]


def _settings(call: ProposeStudy | ProposeStudySettings, directory: Directory) -> list[Value]:
    settings = call.settings
    settings_words.require_supported(settings)
    numbers = settings_words.numbers_of(settings, directory.mask(settings.members))
    return [*numbers, *settings_words.texts_of(settings)]


def _attempt(call: Publish | Accept | Report | Dispute | Verdict, directory: Directory) -> list[Value]:
    return [directory.study(call.study), _number(call.round), _number(call.attempt)]


def _score(call: Score, directory: Directory) -> list[Value]:
    loss = 0 if call.loss is None else float_bits(call.loss)
    names = sorted(call.metrics)
    if any("\n" in name for name in names):
        raise Refused("bad_metric", "A metric's name is one line.")
    scores = [float_bits(call.metrics[name]) for name in names]
    head: list[Value] = [directory.study(call.study), _number(call.round), _number(call.examples)]
    return [*head, call.loss is not None, loss, _lines(tuple(names)), scores]


_Encoder = Callable[[Any, Directory], list[Value]]

_ENCODERS: Final[dict[type, _Encoder]] = {
    ProposeAdmit: _admit,
    ProposeRemove: lambda c, d: [d.member(c.member), c.reason],
    ProposeSwarmSettings: lambda c, _: [_number(c.settings.proposal_s)],
    ProposeStudySettings: lambda c, d: [d.study(c.settings.name), *_settings(c, d)],
    Vote: lambda c, _: [_number(c.proposal), c.yes],
    Announce: lambda c, _: [_lines(c.addresses)],
    Renew: lambda c, _: [_digest(c.bundle, "trust bundle"), _digest(c.card, "card")],
    Validate: lambda c, _: [c.on],
    ProposeStudy: _propose_study,
    Initialise: lambda c, d: [
        d.study(c.study), _digest(c.schema, "schema"), _digest(c.digest, "digest"), _number(c.data_bytes)
    ],
    Enter: lambda c, d: [d.study(c.study)],
    Leave: lambda c, d: [d.study(c.study)],
    Commit: lambda c, d: [
        d.study(c.study), _number(c.round), _digest(c.base, "base"), _digest(c.digest, "update"),
        _number(c.examples), _digest(c.start, "start"),
    ],
    Alive: lambda c, d: [d.study(c.study), _number(c.round), float_bits(c.progress)],
    Publish: lambda c, d: [
        *_attempt(c, d), _number(c.part), _digest(c.digest, "part"), _digest(c.gram, "matrix")
    ],
    Accept: lambda c, d: [*_attempt(c, d), _digest(c.digest, "merge")],
    Report: lambda c, d: [*_attempt(c, d), d.mask(c.unreachable)],
    Tick: lambda c, d: [d.study(c.study)],
    Dispute: lambda c, d: [*_attempt(c, d), _number(c.part), _number(c.chunk)],
    Verdict: lambda c, d: [*_attempt(c, d), _number(c.part), _number(c.chunk), c.wrong],
    Score: _score,
    Finish: lambda c, d: [d.study(c.study), _CONTRIBUTIONS.index(c.contribution)],
}  # fmt: skip


# --- back ------------------------------------------------------------------------------------------


def decode_call(data: bytes, directory: Directory, settings_digest: Callable[[str], str]) -> tuple[int, Call]:
    """The call that the contract took with this data: its sequence number, and the call.

    Args:
        data: of a transaction that succeeded.
        directory: what the contract's numbers stood for before it.
        settings_digest: of the settings that a study had before it.

    Raises:
        Refused: "bad_settings": a study's texts are not the one encoding of settings. The rules know no such
            study, and nothing that is later said of it.
        MalformedWords: no transaction that succeeded has such data.
    """
    kind = _by_selector()[data[:SELECTOR_BYTES]]
    words = Words(data[SELECTOR_BYTES:])
    if kind is Agree:
        study = _study(words, 1, directory)
        return words.number(0), Agree(study, settings_digest(study))
    return words.number(0), _DECODERS[kind](words, directory)


def _by_selector() -> dict[bytes, type]:
    if not _selectors:
        _selectors.update({selector(signature): kind for kind, signature in SIGNATURES.items()})
    return _selectors


_selectors: dict[bytes, type] = {}


def _study(words: Words, at: int, directory: Directory) -> str:
    return directory.studies[words.number(at) - 1]


def _split(text: str) -> tuple[str, ...]:
    return tuple(text.split("\n")[:-1])


def _admit_from(words: Words, _directory: Directory) -> ProposeAdmit:
    name = name_from(words.number(1), words.number(2))
    addresses = _split(words.text(9))
    key, bundle, card = (words.digest(at) for at in (4, 5, 6))
    return ProposeAdmit(MemberRecord(name, words.text(8), key, bundle, card, addresses, words.truth(7)))


def _settings_from(name: str, words: Words, at: int, directory: Directory) -> StudySettings:
    numbers = tuple(words.number(at + i) for i in range(settings_words.N_NUMBERS))
    behind = at + settings_words.N_NUMBERS
    settings = settings_words.read(name, numbers, words.text(behind), words.text(behind + 1))
    if directory.mask(settings.members) != numbers[0]:
        raise Refused("bad_settings", f"The settings of study '{name}' name others than its numbers.")
    return settings


def _score_from(words: Words, directory: Directory) -> Score:
    loss = float_from(words.number(5)) if words.truth(4) else None
    values = map(float_from, words.numbers(7))
    metrics = dict(zip(_split(words.text(6)), values, strict=True))
    return Score(_study(words, 1, directory), words.number(2), words.number(3), loss, metrics)


def _round_of(words: Words, directory: Directory) -> tuple[str, int, int]:
    return _study(words, 1, directory), words.number(2), words.number(3)


_Decoder = Callable[[Words, Directory], Any]

_DECODERS: Final[dict[type, _Decoder]] = {
    ProposeAdmit: _admit_from,
    ProposeRemove: lambda w, d: ProposeRemove(d.members[w.number(1)], w.text(2)),
    ProposeSwarmSettings: lambda w, _: ProposeSwarmSettings(SwarmSettings(w.number(1))),
    ProposeStudySettings: lambda w, d: ProposeStudySettings(_settings_from(_study(w, 1, d), w, 2, d)),
    Vote: lambda w, _: Vote(w.number(1), yes=w.truth(2)),
    Announce: lambda w, _: Announce(_split(w.text(1))),
    Renew: lambda w, _: Renew(w.digest(1), w.digest(2)),
    Validate: lambda w, _: Validate(on=w.truth(1)),
    ProposeStudy: lambda w, d: ProposeStudy(_settings_from(name_from(w.number(1), w.number(2)), w, 3, d)),
    Initialise: lambda w, d: Initialise(_study(w, 1, d), w.digest(2), w.digest(3), w.number(4)),
    Enter: lambda w, d: Enter(_study(w, 1, d)),
    Leave: lambda w, d: Leave(_study(w, 1, d)),
    Commit: lambda w, d: Commit(
        _study(w, 1, d), w.number(2), w.digest(3), w.digest(4), w.number(5), w.digest(6)
    ),
    Alive: lambda w, d: Alive(_study(w, 1, d), w.number(2), float_from(w.number(3))),
    Publish: lambda w, d: Publish(*_round_of(w, d), w.number(4), w.digest(5), w.digest(6)),
    Accept: lambda w, d: Accept(*_round_of(w, d), w.digest(4)),
    Report: lambda w, d: Report(*_round_of(w, d), d.names(w.number(4))),
    Tick: lambda w, d: Tick(_study(w, 1, d)),
    Dispute: lambda w, d: Dispute(*_round_of(w, d), w.number(4), w.number(5)),
    Verdict: lambda w, d: Verdict(*_round_of(w, d), w.number(4), w.number(5), wrong=w.truth(6)),
    Score: _score_from,
    Finish: lambda w, d: Finish(_study(w, 1, d), _CONTRIBUTIONS[w.number(2)]),
}
"""How each is read again."""
