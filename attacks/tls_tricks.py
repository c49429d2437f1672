"""Get in without being a member: no TLS, an older TLS, no certificate, and certificates that say too much."""

from __future__ import annotations

import datetime as dt
import ssl
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from stage import HELLO, OPERATOR, OTHER, Raw, Stage, alone

from konsil.identity.authority import Authority
from konsil.identity.svid import Svid
from konsil.identity.tls import client_context
from konsil.node.config import read_config

VICTIM_ID = f"spiffe://{OTHER}.konsil/node"


def attack(stage: Stage) -> None:
    """Every way in that is none."""
    bundle = Authority.load(read_config(stage.swarm.directory(OPERATOR)).keys_dir).bundle
    _plaintext(stage)
    contexts: dict[str, Callable[[], ssl.SSLContext]] = {
        "TLS 1.2": lambda: _older(client_context(stage.own, bundle)),
        "no certificate": lambda: _bare(bundle),
        "no ALPN": lambda: _without_alpn(client_context(stage.own, bundle)),
    }
    for what, make in contexts.items():
        stage.must(not _gets_in(stage, make()), f"{what}: the node spoke to it")
        stage.says(f"{what}: refused")
    for what, svid in _svids(stage).items():
        stage.must(
            not _gets_in(stage, client_context(_having(svid), bundle)), f"{what}: the node spoke to it"
        )
        stage.says(f"{what}: refused")
    with Raw(stage, OPERATOR) as line:
        line.greet(member=OTHER)
        stage.must(line.is_ended(), "a greeting in another member's name was taken")
        stage.says("the attacker's own certificate, and another member's name in the greeting: refused")


def _plaintext(stage: Stage) -> None:
    with stage.dial(OPERATOR) as plain:
        plain.sendall(b"GET / HTTP/1.1\r\nHost: konsil\r\n\r\n")
        answer = b""
        while more := plain.recv(4096):
            answer += more
    stage.must(b"HTTP" not in answer and len(answer) < 100, f"it answered in plain text: {answer[:100]!r}")
    stage.says("plain text: a TLS alert, and closed")


def _gets_in(stage: Stage, context: ssl.SSLContext) -> bool:
    """Whether the node greets back, which it does to members alone."""
    plain = stage.dial(OPERATOR)
    try:
        with context.wrap_socket(plain) as line:
            raw = Raw.__new__(Raw)
            raw.line, raw.own, raw.genesis = line, stage.own, stage.genesis
            raw.greet()
            head = line.recv(20)
            return len(head) == 20 and head[1] == HELLO and head[2] == 0
    except (OSError, ssl.SSLError):
        return False


def _older(context: ssl.SSLContext) -> ssl.SSLContext:
    context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_2
    return context


def _bare(bundle: bytes) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.load_verify_locations(cadata=bundle.decode())
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    context.set_alpn_protocols(["konsil/1"])
    return context


def _without_alpn(context: ssl.SSLContext) -> ssl.SSLContext:
    context.set_alpn_protocols(["http/1.1"])
    return context


def _having(svid: Svid) -> Any:
    return SimpleNamespace(svid=svid)


def _svids(stage: Stage) -> dict[str, Svid]:
    """Certificates that are not the attacker's to have."""
    folder = Path(tempfile.mkdtemp(dir=stage.swarm.root))
    stranger = Authority.create(folder / "stranger", "stranger.konsil")
    namesake = Authority.create(folder / "namesake", f"{OTHER}.konsil")
    mine = stage.own.authority
    other_domain = Authority(f"{OTHER}.konsil", mine.bundle, mine._certificate, mine._key)  # noqa: SLF001
    return {
        "a stranger's certificate": stranger.issue(),
        f"an authority that calls itself {OTHER}'s": namesake.issue(),
        f"{OTHER}'s ID, signed by the attacker's authority": other_domain.issue(),
        "its own trust domain, another path": mine.issue("/admin"),
        "two IDs in one certificate": _forged(stage, [stage.own.svid.spiffe_id, VICTIM_ID]),
        "its own ID in capitals": _forged(
            stage, [stage.own.svid.spiffe_id.upper().replace("SPIFFE", "spiffe")]
        ),
        "no ID": _forged(stage, []),
        "an authority's certificate as a node's": _forged(stage, [stage.own.svid.spiffe_id], authority=True),
        "an expired certificate": _forged(stage, [stage.own.svid.spiffe_id], expired=True),
    }


def _forged(stage: Stage, uris: list[str], *, authority: bool = False, expired: bool = False) -> Svid:
    """Whatever the attacker's own authority can be made to sign."""
    mine = stage.own.authority
    key = ec.generate_private_key(ec.SECP256R1())
    root = mine._certificate  # noqa: SLF001 - the attacker has its own keys
    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "node")]))
        .issuer_name(root.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(root.not_valid_before_utc)
        .not_valid_after(
            root.not_valid_before_utc + dt.timedelta(seconds=1) if expired else root.not_valid_after_utc
        )
        .add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
        .add_extension(
            x509.KeyUsage(True, False, False, False, False, authority, False, False, False),
            critical=True,
        )
    )
    if uris:
        names = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(uri) for uri in uris])
        builder = builder.add_extension(names, critical=False)
    made = builder.sign(mine._key, hashes.SHA256())  # noqa: SLF001
    der = key.private_bytes(
        serialization.Encoding.DER, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    chain = (made.public_bytes(serialization.Encoding.DER),)
    return Svid(uris[0] if uris else "", chain, der, 0, 2**32)


if __name__ == "__main__":
    alone(attack)
