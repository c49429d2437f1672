from __future__ import annotations

import base64
import stat
import time

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID

from konsil.errors import ConfigError, IdentityError
from konsil.identity.authority import AUTHORITY_FILE, MAX_TTL_S, Authority
from konsil.identity.ledger_key import LedgerKey, verify


def _leaf(svid):
    return x509.load_der_x509_certificate(svid.chain_der[0])


def test_an_authority_is_kept_and_loaded_again(tmp_path):
    made = Authority.create(tmp_path / "keys", "lyon.example")
    loaded = Authority.load(tmp_path / "keys")
    assert (loaded.trust_domain, loaded.bundle) == ("lyon.example", made.bundle)
    leaf, root = _leaf(loaded.issue()), x509.load_pem_x509_certificate(made.bundle)
    leaf.verify_directly_issued_by(root)


def test_keys_are_readable_by_their_owner_alone_and_nothing_else_is_left(tmp_path):
    Authority.create(tmp_path / "keys", "lyon.example")
    LedgerKey.create(tmp_path / "keys" / "ledger.pem")
    assert sorted(path.name for path in (tmp_path / "keys").iterdir()) == [AUTHORITY_FILE, "ledger.pem"]
    assert stat.S_IMODE((tmp_path / "keys").stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "keys").iterdir()} == {0o600}


def test_the_authoritys_certificate_is_that_of_a_trust_domain_for_ten_years(tmp_path):
    root = x509.load_pem_x509_certificate(Authority.create(tmp_path, "lyon.example").bundle)
    extensions = root.extensions
    names = extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert list(names) == [x509.UniformResourceIdentifier("spiffe://lyon.example")]
    assert extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    usage = extensions.get_extension_for_class(x509.KeyUsage)
    assert usage.critical
    assert (usage.value.key_cert_sign, usage.value.digital_signature) == (True, False)
    assert 3650 <= (root.not_valid_after_utc - root.not_valid_before_utc).days <= 3654


def test_an_svid_carries_its_id_and_no_other_name_for_as_long_as_was_asked(tmp_path):
    authority = Authority.create(tmp_path, "lyon.example")
    now_s = time.time()
    svid = authority.issue("/node", ttl_s=2.5, now_s=now_s)
    leaf = _leaf(svid)
    extensions = leaf.extensions
    names = extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert list(names) == [x509.UniformResourceIdentifier("spiffe://lyon.example/node")]
    assert svid.spiffe_id == "spiffe://lyon.example/node"
    assert not extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    usage = extensions.get_extension_for_class(x509.KeyUsage)
    assert (usage.critical, usage.value.digital_signature, usage.value.key_cert_sign) == (True, True, False)
    assert set(extensions.get_extension_for_class(x509.ExtendedKeyUsage).value) == {
        ExtendedKeyUsageOID.CLIENT_AUTH,
        ExtendedKeyUsageOID.SERVER_AUTH,
    }
    assert 2.5 <= svid.not_after_s - now_s <= 3.5
    assert leaf.subject != leaf.issuer
    assert isinstance(leaf.public_key(), ec.EllipticCurvePublicKey)
    assert leaf.public_key() == svid.private_key.public_key()
    assert authority.issue().key_der != svid.key_der


def test_a_private_key_never_shows_in_a_value_that_is_printed(tmp_path):
    svid = Authority.create(tmp_path, "lyon.example").issue()
    assert svid.key_der.hex()[:40] not in repr(svid)
    assert "key" not in repr(svid)


def test_subjects_of_a_long_trust_domain_still_fit_and_differ(tmp_path):
    leaf = _leaf(Authority.create(tmp_path, "l" * 200).issue())
    assert leaf.subject != leaf.issuer


@pytest.mark.parametrize(
    ("path", "ttl_s"), [("", 60), ("node", 60), ("/node/..", 60), ("/node", 0), ("/node", MAX_TTL_S + 1)]
)
def test_what_is_no_svid_is_not_issued(tmp_path, path, ttl_s):
    authority = Authority.create(tmp_path, "lyon.example")
    with pytest.raises(IdentityError):
        authority.issue(path, ttl_s)


def test_an_authority_that_has_ended_issues_nothing(tmp_path):
    authority = Authority.create(tmp_path, "lyon.example")
    with pytest.raises(IdentityError, match="has ended"):
        authority.issue(now_s=time.time() + 11 * 366 * 86400)


def test_an_authority_whose_clock_was_set_back_issues_nothing(tmp_path):
    authority = Authority.create(tmp_path, "lyon.example")
    with pytest.raises(IdentityError, match=r"valid only from .* clock is behind"):
        authority.issue(ttl_s=60, now_s=time.time() - 86400)


def test_an_existing_key_is_never_replaced(tmp_path):
    made = Authority.create(tmp_path, "lyon.example")
    key = LedgerKey.create(tmp_path / "ledger.pem")
    with pytest.raises(IdentityError, match="already"):
        Authority.create(tmp_path, "metz.example")
    with pytest.raises(IdentityError, match="already"):
        LedgerKey.create(tmp_path / "ledger.pem")
    assert Authority.load(tmp_path).bundle == made.bundle
    assert LedgerKey.load(tmp_path / "ledger.pem").public == key.public


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o602, 0o644, 0o601])
def test_a_key_that_others_may_use_is_refused(tmp_path, mode):
    Authority.create(tmp_path, "lyon.example")
    LedgerKey.create(tmp_path / "ledger.pem")
    for name, load in (
        (AUTHORITY_FILE, lambda: Authority.load(tmp_path)),
        ("ledger.pem", lambda: LedgerKey.load(tmp_path / "ledger.pem")),
    ):
        (tmp_path / name).chmod(mode)
        with pytest.raises(IdentityError, match="chmod 600"):
            load()


def test_a_missing_key_file_or_a_folder_in_its_place_is_refused(tmp_path):
    with pytest.raises(IdentityError, match="No such file"):
        Authority.load(tmp_path)
    (tmp_path / "ledger.pem").mkdir()
    with pytest.raises(IdentityError, match=r"not be read|not a plain file"):
        LedgerKey.load(tmp_path / "ledger.pem")


def test_a_key_file_cut_off_anywhere_is_refused(tmp_path):
    Authority.create(tmp_path, "lyon.example")
    LedgerKey.create(tmp_path / "ledger.pem")
    for name, load in (
        (AUTHORITY_FILE, lambda: Authority.load(tmp_path)),
        ("ledger.pem", lambda: LedgerKey.load(tmp_path / "ledger.pem")),
    ):
        whole = (tmp_path / name).read_bytes()
        for length in range(0, len(whole) - 1, 23):
            (tmp_path / name).write_bytes(whole[:length])
            with pytest.raises(IdentityError, match="cannot be used"):
                load()


def test_a_ledger_key_with_one_changed_byte_is_never_used_as_another_key(tmp_path):
    path = tmp_path / "ledger.pem"
    public = LedgerKey.create(path).public
    whole = path.read_bytes()
    for at in range(whole.index(b"\n") + 1, len(whole) - 1):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        try:
            assert LedgerKey.load(path).public == public
        except IdentityError:
            continue


def test_another_members_certificate_beside_the_key_is_refused(tmp_path):
    Authority.create(tmp_path / "lyon", "lyon.example")
    other = Authority.create(tmp_path / "metz", "metz.example")
    path = tmp_path / "lyon" / AUTHORITY_FILE
    path.write_bytes(path.read_bytes().split(b"-----BEGIN CERTIFICATE")[0] + other.bundle)
    with pytest.raises(IdentityError, match="not that of its certificate"):
        Authority.load(tmp_path / "lyon")


def test_a_certificate_whose_key_is_none_is_refused(tmp_path):
    Authority.create(tmp_path, "lyon.example")
    path = tmp_path / AUTHORITY_FILE
    begin, data = b"-----BEGIN CERTIFICATE-----", path.read_bytes()
    der = bytearray(x509.load_pem_x509_certificate(data).public_bytes(serialization.Encoding.DER))
    at = der.index(bytes.fromhex("034200")) + 3  # where its public key's point begins
    der[at + 1 : at + 65] = bytes(64)
    text = base64.encodebytes(der)
    path.write_bytes(data[: data.index(begin)] + begin + b"\n" + text + b"-----END CERTIFICATE-----\n")
    with pytest.raises(IdentityError, match="its key is not that of its certificate"):
        Authority.load(tmp_path)


def test_an_oversized_key_file_is_refused(tmp_path):
    path = tmp_path / "ledger.pem"
    LedgerKey.create(path)
    with path.open("ab") as file:
        file.write(b"\n" * 5000)
    with pytest.raises(IdentityError, match="longer than"):
        LedgerKey.load(path)


def test_a_folder_that_cannot_be_made_is_a_config_error(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ConfigError, match="cannot be written"):
        LedgerKey.create(tmp_path / "file" / "ledger.pem")


def test_a_signature_holds_for_its_key_and_its_bytes_alone(tmp_path):
    key, other = LedgerKey.create(tmp_path / "a.pem"), LedgerKey.create(tmp_path / "b.pem")
    signature = key.sign(b"commit 17")
    assert verify(key.public, b"commit 17", signature)
    assert not verify(key.public, b"commit 18", signature)
    assert not verify(other.public, b"commit 17", signature)
    assert not verify(key.public, b"commit 17", signature[:-1])
    assert not verify(key.public.upper(), b"commit 17", signature)
    assert not verify("no key", b"commit 17", signature)
