from __future__ import annotations

import base64
import datetime as dt
import time

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from konsil.errors import IdentityError
from konsil.identity.authority import Authority
from konsil.identity.svid import MAX_PEM_BYTES, der_from_pem, load_certificate, make_svid, split_der
from konsil.identity.verify import bundle_digest, canonical_bundle, verify_chain

ID = "spiffe://lyon.example/node"
NOW_S = int(time.time())
HOUR_S = 3600
BOTH = (ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH)


class Forger:
    """Makes certificates of any kind, right or wrong, under a key of its own."""

    def __init__(self, name="authority", issuer=None, **changes):
        self.key = ec.generate_private_key(ec.SECP256R1())
        made = _certificate(
            self.key,
            name,
            issuer=issuer,
            **(
                {"uris": ["spiffe://lyon.example"], "ca": True, "sign": True, "data": False, "extended": ()}
                | changes
            ),
        )
        self.certificate = made
        self.pem = made.public_bytes(serialization.Encoding.PEM)
        self.der = made.public_bytes(serialization.Encoding.DER)

    def leaf(self, **changes):
        made = _certificate(ec.generate_private_key(ec.SECP256R1()), "node", issuer=self, **changes)
        return made.public_bytes(serialization.Encoding.DER)


def _certificate(
    key,
    name,
    *,
    issuer=None,
    uris=(ID,),
    ca=False,
    sign=False,
    data=True,
    extended=BOTH,
    constraints=True,
    usage=True,
    start_s=NOW_S - HOUR_S,
    end_s=NOW_S + HOUR_S,
    path_length=None,
):
    def subject(text):
        return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])

    signing_key = issuer.key if issuer else key
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject(name))
        .issuer_name(issuer.certificate.subject if issuer else subject(name))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(dt.datetime.fromtimestamp(start_s, tz=dt.UTC))
        .not_valid_after(dt.datetime.fromtimestamp(end_s, tz=dt.UTC))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(signing_key.public_key()), critical=False
        )
    )
    if constraints:
        builder = builder.add_extension(x509.BasicConstraints(ca=ca, path_length=path_length), critical=True)
    if usage:
        rest = dict.fromkeys(
            (
                "content_commitment",
                "key_encipherment",
                "data_encipherment",
                "key_agreement",
                "crl_sign",
                "encipher_only",
                "decipher_only",
            ),
            False,
        )
        builder = builder.add_extension(
            x509.KeyUsage(digital_signature=data, key_cert_sign=sign, **rest), critical=True
        )
    if uris:
        names = [x509.UniformResourceIdentifier(uri) for uri in uris]
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    if extended:
        builder = builder.add_extension(x509.ExtendedKeyUsage(extended), critical=False)
    return builder.sign(signing_key, hashes.SHA256())


@pytest.fixture(scope="module")
def lyon():
    return Forger()


def test_the_built_in_authoritys_svid_is_trusted_until_it_ends(tmp_path):
    authority = Authority.create(tmp_path, "lyon.example")
    svid = authority.issue(ttl_s=60)
    assert verify_chain(svid.chain_der, authority.bundle, svid.spiffe_id, time.time()) == svid.not_after_s


def test_a_right_certificate_of_another_maker_is_trusted(lyon):
    assert verify_chain([lyon.leaf()], lyon.pem, ID, NOW_S) == NOW_S + HOUR_S
    assert verify_chain([lyon.leaf(extended=())], lyon.pem, ID, NOW_S) == NOW_S + HOUR_S


def test_a_chain_through_an_intermediate_is_trusted_until_its_first_certificate_ends(lyon):
    middle = Forger("middle", issuer=lyon, end_s=NOW_S + 60)
    assert verify_chain([middle.leaf(), middle.der], lyon.pem, ID, NOW_S) == NOW_S + 60
    with pytest.raises(IdentityError, match="own trust bundle"):
        verify_chain([middle.leaf()], lyon.pem, ID, NOW_S)


def test_an_intermediate_may_itself_be_the_anchor(lyon):
    middle = Forger("middle", issuer=lyon)
    assert verify_chain([middle.leaf()], middle.pem, ID, NOW_S) == NOW_S + HOUR_S


def test_while_an_authority_rotates_both_of_its_certificates_are_anchors(lyon):
    new = Forger()
    both = new.pem + lyon.pem
    assert verify_chain([lyon.leaf()], both, ID, NOW_S)
    assert verify_chain([new.leaf()], both, ID, NOW_S)


def test_another_members_authority_cannot_sign_in_this_trust_domain(lyon):
    metz = Forger(uris=["spiffe://metz.example"])
    for chain in ([metz.leaf()], [metz.leaf(), metz.der], [metz.leaf(), metz.der, lyon.der]):
        with pytest.raises(IdentityError, match="own trust bundle"):
            verify_chain(chain, lyon.pem, ID, NOW_S)


def test_another_trust_domains_authority_in_a_bundle_vouches_for_nobody_here():
    metz = Forger(uris=["spiffe://metz.example"])
    with pytest.raises(IdentityError, match=r"that of .*metz\.example"):
        verify_chain([metz.leaf()], metz.pem, ID, NOW_S)


def test_a_strangers_self_signed_certificate_is_refused(lyon):
    stranger = _certificate(ec.generate_private_key(ec.SECP256R1()), "authority")
    with pytest.raises(IdentityError, match="own trust bundle"):
        verify_chain([stranger.public_bytes(serialization.Encoding.DER)], lyon.pem, ID, NOW_S)


def test_a_right_certificate_of_another_node_is_refused(lyon):
    with pytest.raises(IdentityError, match=r"is that of 'spiffe://lyon\.example/other'"):
        verify_chain([lyon.leaf(uris=["spiffe://lyon.example/other"])], lyon.pem, ID, NOW_S)


def test_a_certificate_for_a_whole_trust_domain_is_no_nodes(lyon):
    whole = "spiffe://lyon.example"
    with pytest.raises(IdentityError, match="without a path"):
        verify_chain([lyon.leaf(uris=[whole])], lyon.pem, whole, NOW_S)


def test_an_expired_certificate_is_refused_with_its_date(lyon):
    with pytest.raises(IdentityError, match="expired at 20"):
        verify_chain([lyon.leaf(end_s=NOW_S - 1)], lyon.pem, ID, NOW_S)


def test_a_certificate_that_is_not_yet_valid_is_refused_with_its_date(lyon):
    with pytest.raises(IdentityError, match="valid only from 20"):
        verify_chain([lyon.leaf(start_s=NOW_S + 10)], lyon.pem, ID, NOW_S)


def test_an_expired_authority_or_intermediate_is_refused(lyon):
    old = Forger(end_s=NOW_S - 10)
    with pytest.raises(IdentityError):
        verify_chain([old.leaf()], old.pem, ID, NOW_S)
    middle = Forger("middle", issuer=lyon, end_s=NOW_S - 10)
    with pytest.raises(IdentityError):
        verify_chain([middle.leaf(), middle.der], lyon.pem, ID, NOW_S)


@pytest.mark.parametrize(
    "uris", [[], [ID, ID], [ID, "spiffe://lyon.example/other"], [ID, "https://lyon.example"]]
)
def test_anything_but_exactly_one_uri_is_refused(lyon, uris):
    with pytest.raises(IdentityError, match="exactly one"):
        verify_chain([lyon.leaf(uris=uris)], lyon.pem, ID, NOW_S)


@pytest.mark.parametrize(
    "changes",
    [
        {"ca": True, "sign": True},
        {"ca": True},
        {"sign": True},
        {"data": False, "sign": True},
        {"usage": False},
        {"extended": (ExtendedKeyUsageOID.CLIENT_AUTH,)},
        {"extended": (ExtendedKeyUsageOID.CODE_SIGNING,)},
    ],
)
def test_a_leaf_with_other_powers_than_a_nodes_is_refused(lyon, changes):
    with pytest.raises(IdentityError, match="cannot be trusted"):
        verify_chain([lyon.leaf(**changes)], lyon.pem, ID, NOW_S)


def test_a_node_cannot_sign_another_certificate_with_its_own(lyon):
    node = Forger("node", issuer=lyon, ca=False, sign=False, data=True, uris=[ID])
    with pytest.raises(IdentityError, match="cannot be trusted"):
        verify_chain([node.leaf(), node.der], lyon.pem, ID, NOW_S)


def test_an_intermediate_must_be_allowed_to_sign_certificates(lyon):
    for changes in ({"sign": False}, {"ca": False}, {"usage": False}, {"constraints": False}):
        middle = Forger("middle", issuer=lyon, **changes)
        with pytest.raises(IdentityError, match="cannot be trusted"):
            verify_chain([middle.leaf(), middle.der], lyon.pem, ID, NOW_S)
        with pytest.raises(IdentityError, match="no authority's"):
            bundle_digest(Forger(**changes).pem)


def test_an_authority_that_may_not_have_others_below_it_is_obeyed():
    top = Forger(path_length=0)
    middle = Forger("middle", issuer=top)
    assert verify_chain([top.leaf()], top.pem, ID, NOW_S)
    with pytest.raises(IdentityError):
        verify_chain([middle.leaf(), middle.der], top.pem, ID, NOW_S)


def test_a_changed_certificate_is_refused_wherever_it_was_changed(lyon):
    leaf = lyon.leaf()
    assert verify_chain([leaf], lyon.pem, ID, NOW_S)
    signature = load_certificate(leaf).signature
    idle = leaf.index(signature) - 1  # counts the unused bits of the signature: the library looks away
    for at in set(range(len(leaf))) - {idle}:
        changed = leaf[:at] + bytes([leaf[at] ^ 1]) + leaf[at + 1 :]
        with pytest.raises(IdentityError):
            verify_chain([changed], lyon.pem, ID, NOW_S)


def test_an_endless_or_empty_chain_is_refused(lyon):
    for chain in ([], [lyon.leaf()] * 9, [b""], [b"\x30" * 20_000]):
        with pytest.raises(IdentityError):
            verify_chain(chain, lyon.pem, ID, NOW_S)


def test_a_bundle_that_holds_anything_but_authorities_is_refused(lyon):
    leaf = x509.load_der_x509_certificate(lyon.leaf()).public_bytes(serialization.Encoding.PEM)
    for bundle in (leaf, lyon.pem + leaf, b"", b"no pem", lyon.pem[:-60], lyon.pem * 33, b" " * 2_000_000):
        with pytest.raises(IdentityError):
            bundle_digest(bundle)


def test_a_bundles_digest_is_that_of_its_set_of_certificates(lyon):
    certificates = [lyon.pem, Forger().pem, Forger().pem]
    digest = bundle_digest(b"".join(certificates))
    certificates.reverse()
    assert bundle_digest(b"\n# a comment\n".join([*certificates, lyon.pem.replace(b"\n", b"\r\n")])) == digest
    assert bundle_digest(canonical_bundle(b"".join(certificates))) == digest
    assert bundle_digest(certificates[0] + certificates[1]) != digest


def test_certificates_in_a_row_are_told_apart_and_a_torn_row_is_refused(lyon):
    first, second = lyon.leaf(), lyon.der
    assert split_der(first + second) == (first, second)
    assert split_der(b"") == ()
    for torn in (
        first[:-1],
        first + b"\x00",
        first + second[:3],
        b"\x30\x80",
        b"\x30\x84\xff\xff\xff\xff",
        first * 33,
    ):
        with pytest.raises(IdentityError):
            split_der(torn)


def test_an_svid_with_the_key_of_another_is_refused(tmp_path):
    authority = Authority.create(tmp_path, "lyon.example")
    one, two = authority.issue(), authority.issue()
    assert make_svid(one.chain_der, one.key_der) == one
    with pytest.raises(IdentityError, match="not the one of its certificate"):
        make_svid(one.chain_der, two.key_der)
    for chain, key in (((), one.key_der), (one.chain_der, b"no key"), ((b"none",), one.key_der)):
        with pytest.raises(IdentityError):
            make_svid(chain, key)


def test_pem_and_der_say_the_same(lyon):
    assert der_from_pem(b"text around\n" + lyon.pem + b"more\n") == (lyon.der,)


def test_a_pem_text_of_beginnings_without_an_end_costs_no_more_than_its_length():
    began_s = time.process_time()
    with pytest.raises(IdentityError, match="it holds 37449 certificates"):
        der_from_pem(b"-----BEGIN CERTIFICATE-----\n" * (MAX_PEM_BYTES // 28))
    assert time.process_time() - began_s < 1  # looked through again from each beginning: two minutes


def test_a_certificate_that_breaks_off_beside_a_whole_one_is_refused(lyon):
    whole = lyon.pem
    for broken in (whole[:-10] + whole, whole + whole[:-10], whole.replace(b"END", b"---", 1) + whole):
        with pytest.raises(IdentityError, match="breaks off"):
            der_from_pem(broken)


def test_a_certificate_whose_names_cannot_be_read_is_refused(lyon):
    """The library reads them only when it is asked for them."""
    broken = lyon.leaf().replace(b"node", b"n\xffde", 1)
    with pytest.raises(IdentityError, match="cannot be read"):
        load_certificate(broken)
    text = b"-----BEGIN CERTIFICATE-----\n" + base64.encodebytes(broken) + b"-----END CERTIFICATE-----\n"
    with pytest.raises(IdentityError, match="cannot be read"):
        canonical_bundle(text)
