"""Cards that cost more than they are: too long, certificates without an end, huge keys, loops."""

from __future__ import annotations

from collections.abc import Iterator

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from msgspec.structs import replace
from stage import OPERATOR, Stage, alone
from stolen_card import make_signed, own_card

from konsil.core.messages import MAX_CARD_BYTES
from konsil.core.wall import AskAdmit, Failed, Noted
from konsil.identity.card import Card, encode_card
from konsil.wall.frames import frame

MOST_S = 2.0
BEGIN = "-----BEGIN CERTIFICATE-----\n"


def attack(stage: Stage) -> None:
    """Every one is signed by its member's own keys: only what is in it can be wrong."""
    for what, card in _cards(stage):
        data = encode_card(card)
        cpu_s = sum(stage.process(OPERATOR).cpu_times()[:2])
        with stage.wall(OPERATOR, "control.sock") as wall:
            wall.send(frame(AskAdmit(data)))
            answer = wall.hears()
        took_s = sum(stage.process(OPERATOR).cpu_times()[:2]) - cpu_s
        stage.must(not isinstance(answer, Noted), f"{what}: the node took it")
        stage.must(isinstance(answer, Failed) and answer.kind == "IdentityError", f"{what}: {answer}")
        stage.must(took_s < MOST_S, f"{what}: it cost the node {took_s:.1f} s")
        stage.says(f"{what} ({len(data) >> 10} KiB): refused, for {took_s * 1000:.0f} ms of the node's time")


def _cards(stage: Stage) -> Iterator[tuple[str, Card]]:
    mine = own_card(stage)
    yield "over 64 KiB", make_signed(stage, replace(mine, bundle=mine.bundle + "#" * MAX_CARD_BYTES))
    room = MAX_CARD_BYTES - len(encode_card(mine)) - 4000
    yield (
        "certificates that begin and never end",
        make_signed(stage, replace(mine, bundle=BEGIN * (room // 30))),
    )
    yield "the same as its chain", make_signed(stage, replace(mine, chain=BEGIN * (room // 30)))
    yield "one certificate 60 times", make_signed(stage, replace(mine, bundle=mine.bundle * 60))
    yield "nine addresses", make_signed(stage, replace(mine, addresses=tuple(f"a:{n}" for n in range(1, 10))))
    for what, key in (
        ("an RSA key of 16,384 bits", _rsa(16_384)),
        ("an RSA key of 60,000 bits", _rsa(60_000)),
        ("an RSA key with an exponent as long as itself", _rsa(16_000, exponent_bits=15_000)),
        ("a curve of 521 bits", ec.generate_private_key(ec.SECP521R1()).public_key()),
    ):
        leaf = _leaf(stage, key)
        yield f"a chain that ends in {what}", make_signed(stage, replace(mine, chain=leaf))
    yield (
        "a chain of eight, each of which signs the next",
        make_signed(stage, replace(mine, chain=_loop(stage) * 8)),
    )


def _rsa(bits: int, exponent_bits: int = 0) -> rsa.RSAPublicKey:
    modulus = (1 << (bits - 1)) | 1
    exponent = (1 << (exponent_bits - 1)) | 1 if exponent_bits else 65537
    return rsa.RSAPublicNumbers(exponent, modulus).public_key()


def _leaf(stage: Stage, key: rsa.RSAPublicKey | ec.EllipticCurvePublicKey, *, authority: bool = False) -> str:
    """A certificate of the attacker's own authority for a key of any kind."""
    mine = stage.own.authority
    root = mine._certificate  # noqa: SLF001 - the attacker has its own keys
    made = (
        x509.CertificateBuilder()
        .subject_name(root.subject if authority else x509.Name([]))
        .issuer_name(root.subject)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(root.not_valid_before_utc)
        .not_valid_after(root.not_valid_after_utc)
        .add_extension(
            x509.SubjectAlternativeName([x509.UniformResourceIdentifier(stage.own.svid.spiffe_id)]),
            critical=True,
        )
        .add_extension(
            x509.KeyUsage(not authority, False, False, False, False, authority, False, False, False),
            critical=True,
        )
        .add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
        .sign(mine._key, hashes.SHA256())  # noqa: SLF001
    )
    return made.public_bytes(serialization.Encoding.PEM).decode()


def _loop(stage: Stage) -> str:
    return _leaf(stage, stage.own.authority._key.public_key(), authority=True)  # noqa: SLF001


if __name__ == "__main__":
    alone(attack)
