"""The built-in authority's root changes in three steps, in their order, and when the swarm is ready."""

from __future__ import annotations

import stat
from types import SimpleNamespace

import pytest

from konsil.errors import IdentityError
from konsil.identity import roots
from konsil.identity.authority import FORMER_FILE, NEXT_FILE, Authority
from konsil.identity.verify import bundle_digest, verify_chain
from konsil.node.roots import Roots

NODE = "spiffe://lyon.example/node"


@pytest.fixture
def keys(tmp_path):
    Authority.create(tmp_path / "keys", "lyon.example")
    return tmp_path / "keys"


def signs(authority, root):
    """Whether what an authority issues leads to this root."""
    svid = authority.issue()
    try:
        verify_chain(svid.chain_der, root, NODE, svid.not_after_s - 60)
    except IdentityError:
        return False
    return True


def test_a_root_is_trusted_before_it_signs_and_until_nothing_of_it_is_left(keys):
    first = Authority.load(keys)
    prepared = roots.prepare(keys)
    new = prepared.bundle.replace(first.bundle, b"")
    assert bundle_digest(prepared.bundle) == bundle_digest(first.bundle + new)
    assert (signs(prepared, first.bundle), signs(prepared, new)) == (True, False)

    activated = roots.activate(keys)
    assert bundle_digest(activated.bundle) == bundle_digest(prepared.bundle)
    assert (signs(activated, first.bundle), signs(activated, new)) == (False, True)

    retired = roots.retire(keys)
    assert retired.bundle == retired.certificate == new
    assert [path.name for path in keys.iterdir()] == ["authority.pem"]
    assert roots.prepare(keys).bundle != new, "and it can be done again"


def test_of_a_former_root_no_key_is_left(keys):
    roots.prepare(keys)
    roots.activate(keys)
    assert b"PRIVATE" not in (keys / FORMER_FILE).read_bytes()
    assert all(stat.S_IMODE(path.stat().st_mode) == 0o600 for path in keys.iterdir())


def test_a_step_that_was_cut_off_is_done_again(keys):
    first = Authority.load(keys)
    roots.prepare(keys)
    (keys / FORMER_FILE).write_bytes(first.certificate)  # a power cut came before the next one took its place
    (keys / FORMER_FILE).chmod(0o600)
    assert signs(Authority.load(keys), first.bundle)
    assert bundle_digest(roots.activate(keys).bundle) == bundle_digest(Authority.load(keys).bundle)
    assert not signs(Authority.load(keys), first.bundle)


@pytest.mark.parametrize(
    ("done", "asked", "then"),
    [
        ("", "activate", "prepare"),
        ("", "retire", "prepare"),
        ("prepare", "prepare", "activate"),
        ("prepare", "retire", "activate"),
        ("prepare activate", "activate", "prepare"),
        ("prepare activate", "prepare", "retire"),
    ],
)
def test_a_step_out_of_turn_changes_nothing(keys, done, asked, then):
    for step in done.split():
        getattr(roots, step)(keys)
    before = {path.name: path.read_bytes() for path in keys.iterdir()}
    with pytest.raises(IdentityError, match="stays as it is") as refused:
        getattr(roots, asked)(keys)
    assert f"konsil node root {then}" in str(refused.value)
    assert {path.name: path.read_bytes() for path in keys.iterdir()} == before


@pytest.mark.parametrize("content", [b"", b"nonsense", "another domain"])
def test_a_damaged_file_of_a_coming_root_is_told(keys, tmp_path, content):
    if isinstance(content, str):
        content = Authority.create(tmp_path / "other", "metz.example").bundle
    (keys / NEXT_FILE).write_bytes(content)
    (keys / NEXT_FILE).chmod(0o600)
    with pytest.raises(IdentityError, match="cannot be used"):
        Authority.load(keys)


class Api:
    authority = None

    def use(self, authority):
        self.authority = authority


async def test_no_step_is_taken_before_the_ledger_has_what_the_last_one_made(keys):
    api, renewal = Api(), SimpleNamespace(announced=False)
    node = Roots(keys, api, renewal)
    with pytest.raises(IdentityError, match="the ledger does not have"):
        await node.step("prepare")
    assert [path.name for path in keys.iterdir()] == ["authority.pem"]
    renewal.announced = True
    await node.step("prepare")
    assert api.authority.bundle == Authority.load(keys).bundle


async def test_a_root_is_not_given_up_while_its_certificate_is_in_use(keys):
    first = Authority.load(keys)
    api, renewal = Api(), SimpleNamespace(announced=True, svid=first.issue())
    node = Roots(keys, api, renewal)
    await node.step("prepare")
    await node.step("activate")
    with pytest.raises(IdentityError, match="still the former root's"):
        await node.step("retire")
    renewal.svid = api.authority.issue()
    await node.step("retire")
    assert api.authority.bundle == api.authority.certificate


async def test_the_root_of_a_spire_is_changed_there(keys):
    with pytest.raises(IdentityError, match="not the node's own"):
        await Roots(keys, None, SimpleNamespace(announced=True)).step("prepare")
