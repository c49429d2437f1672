"""The first steps of a member: its directory, its keys, its public card."""

from __future__ import annotations

import asyncio
from pathlib import Path

from konsil.errors import ConfigError
from konsil.files import PRIVATE_FOLDER_MODE, make_private_folder
from konsil.identity.authority import AUTHORITY_FILE, Authority
from konsil.identity.card import card_digest, make_card, write_card
from konsil.identity.ledger_key import LedgerKey
from konsil.identity.source import SvidSource
from konsil.identity.svid import Svid
from konsil.node.config import Config, check_config, write_config

_WORKLOAD_API_S = 10.0


def make_directory(config: Config) -> None:
    """Make a member's directory with keys and ``node.toml``.

    An interrupted run leaves keys without a config: they are taken up, never made anew.

    Raises:
        ConfigError: there is a member in this directory already, or it cannot be written to.
        IdentityError: keys of an earlier run cannot be used.
    """
    check_config(config)
    if config.config_file.exists():
        raise ConfigError(
            f"There is a member in {config.directory} already.",
            safe="Nothing was changed.",
            do="Give another --dir; to change its address, edit node.toml and run `konsil node card`.",
        )
    try:
        make_private_folder(config.directory)
        config.directory.chmod(PRIVATE_FOLDER_MODE)
        for directory in (config.keys_dir, config.cards_dir, config.merges_dir):
            make_private_folder(directory)
    except OSError as error:
        raise ConfigError(
            f"{error.filename or config.directory} cannot be made: {error.strerror}.",
            safe="No key was made.",
            do="Give a --dir in a place that this user owns.",
        ) from error
    if config.builtin_identity and not (config.keys_dir / AUTHORITY_FILE).exists():
        Authority.create(config.keys_dir, config.trust_domain)
    if not config.ledger_key_file.exists():
        LedgerKey.create(config.ledger_key_file)
    write_config(config)


def write_own_card(config: Config) -> tuple[Path, str]:
    """Make the member's public card from its keys and addresses; where it lies, and its digest.

    Raises:
        IdentityError: the keys cannot be used, or the Workload API issues nothing.
        ConfigError: the directory cannot be written to.
    """
    if config.builtin_identity:
        authority = Authority.load(config.keys_dir)
        svid, bundle = authority.issue(ttl_s=config.identity.svid_ttl_s), authority.bundle
    else:
        svid, bundle = asyncio.run(_from_workload_api(config.workload_api))
    key = LedgerKey.load(config.ledger_key_file)
    witness = config.member.witness
    card = make_card(config.name, svid, bundle, key, config.addresses, witness=witness)
    write_card(card, config.card_file)
    return config.card_file, card_digest(card)


async def _from_workload_api(address: str) -> tuple[Svid, bytes]:
    async with SvidSource.open(address) as source:
        await source.wait_ready(_WORKLOAD_API_S)
        return source.svid, source.bundle
