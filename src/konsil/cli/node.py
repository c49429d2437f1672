"""``konsil node``: set up and run this member's node."""

from __future__ import annotations

import click

from konsil.cli.common import Site, in_groups, verb, when
from konsil.core.rules.calls import Announce
from konsil.core.wall import AskCall, AskNode, AskRoot, Noted, ToldNode
from konsil.errors import ConfigError
from konsil.node.config import Config, check_config
from konsil.node.tables import BUILTIN, IdentityTable, MemberTable, NodeTable

DEFAULT_LISTEN = "0.0.0.0:7400"

_OPTIONS = {
    "member.name": "--name",
    "member.trust_domain": "--trust-domain",
    "identity.workload_api": "--workload-api",
    "node.listen": "--listen",
    "node.advertise": "--advertise",
    "node.proxy": "--proxy",
}
"""By what `init` is told each key, while there is no node.toml."""


@click.group()
def node() -> None:
    """Set up and run this member's node."""


@verb(
    node,
    "init",
    example="konsil node init --name lyon --trust-domain lyon.example --advertise konsil.lyon.example:7400",
)
@click.option("--name", required=True, help="The member's name: small letters, digits, hyphens.")
@click.option("--trust-domain", default="", help="Its SPIFFE trust domain.  [default: NAME.konsil]")
@click.option(
    "--listen", default=DEFAULT_LISTEN, show_default=True, help='HOST:PORT, or "none" to only dial out.'
)
@click.option(
    "--advertise", multiple=True, help="HOST:PORT at which peers reach it, if not --listen. Repeat for more."
)
@click.option(
    "--proxy", default="", help="http://HOST:PORT through which it dials peers.  [default: HTTPS_PROXY]"
)
@click.option(
    "--workload-api",
    default=BUILTIN,
    show_default=True,
    help="unix:///... of SPIRE's agent, to use its identities.",
)
@click.option(
    "--witness", is_flag=True, help="It helps to keep the ledger, has a vote, and takes part in no study."
)
def init(
    site: Site,
    name: str,
    trust_domain: str,
    listen: str,
    advertise: tuple[str, ...],
    proxy: str,
    workload_api: str,
    witness: bool,
) -> None:
    """Make this member's directory: keys, config, and the public card for the others."""
    listen = "" if listen == "none" else listen
    config = Config(
        site.directory,
        MemberTable(name, trust_domain or f"{name}.konsil", witness),
        IdentityTable(workload_api),
        NodeTable(listen, advertise, proxy=proxy),
    )
    check_config(config, _OPTIONS)
    if not advertise and listen.rpartition(":")[0] in ("0.0.0.0", "[::]"):  # noqa: S104 - compared, not listened on
        raise ConfigError(
            f"Peers cannot dial {listen}: it stands for every address of this machine.",
            safe="Nothing was changed.",
            do="Say where they reach it with --advertise HOST:PORT, or give --listen none.",
        )
    from konsil.node.setup import make_directory, write_own_card  # noqa: PLC0415 - as in start

    make_directory(config)
    card_path, digest = write_own_card(config)
    site.show(
        {"member": name, "directory": site.directory, "card": card_path, "card_digest": digest},
        f"Member '{name}' is set up in {site.directory}.\n"
        f"Its public card: {card_path}\n"
        f"The card's digest: {in_groups(digest)}\n"
        "Send the card to the other members, and read them the digest over the telephone.\n"
        f"The keys in {config.keys_dir} never leave this machine: back them up.",
    )


@verb(node, "start", example="konsil node start --dir /srv/konsil")
def start(site: Site) -> None:
    """Run the node until it is told to stop (SIGTERM, Ctrl-C)."""
    from konsil.node import daemon  # noqa: PLC0415 - everything that a node needs; the other commands start faster

    daemon.run(site.directory)


@verb(node, "status", example="konsil node status")
def status(site: Site) -> None:
    """What the running node is doing, and how it sees its peers."""
    with site.node() as running:
        told = running.ask(AskNode(), ToldNode)
    lines = [
        f"{told.member} in swarm {told.swarm}, konsil {told.version}, ledger height {told.height}",
        f"  {told.ledger}",
        f"  certificate valid until {when(told.svid_expires_s)} (renewed by itself)",
        f"  sent {told.bytes_out / 1e6:.1f} MB, received {told.bytes_in / 1e6:.1f} MB",
        *([f"  way out: {told.way_out}"] if told.way_out else []),
        "Peers:",
        *(
            f"  {peer.member}: "
            + (
                f"connected ({peer.via}, {peer.rtt_ms:.1f} ms)"
                if peer.connected
                else f"away. {peer.problem}".strip()
            )
            for peer in told.peers
        ),
        "Studies:" if told.studies else "Studies: none here",
        *(
            f"  {study.study}: round {study.round}, {study.stage}"
            + (f". {study.problem}" * bool(study.problem))
            for study in told.studies
        ),
        *(f"Problem: {problem}" for problem in told.problems),
    ]
    site.show(told, "\n".join(lines))


@verb(node, "card", example="konsil node card")
def card(site: Site) -> None:
    """Make the public card again after node.toml changed; announce new addresses if the swarm runs."""
    from konsil.node.setup import write_own_card  # noqa: PLC0415 - as in start

    config = site.config()
    if config.genesis_file.exists():
        height = _announce(site, config)
        if height is not None:
            site.show(
                {"announced": config.addresses, "height": height},
                f"The ledger has this member's addresses now: {', '.join(config.addresses) or 'none'}.\n"
                "Its card stays as it is. Restart the node to listen there.",
            )
            return
    card_path, digest = write_own_card(config)
    site.show(
        {"card": card_path, "card_digest": digest},
        f"The new card: {card_path}\nIts digest: {in_groups(digest)}\nSend it to the other members.",
    )


def _announce(site: Site, config: Config) -> int | None:
    """Tell the ledger the member's addresses; None where it is not a member yet."""
    with site.node() as running:
        member = running.state().members.get(config.name)
        if member is None:
            return None
        return running.ask(AskCall(Announce(config.addresses)), Noted).height


@node.group()
def root() -> None:
    """Give the built-in authority another root: prepare, activate, retire. The node must run."""


@verb(root, "prepare", example="konsil node root prepare")
def prepare(site: Site) -> None:
    """Make the next root. Peers trust it beside the present one once they have this member's new card."""
    _step(
        site,
        AskRoot("prepare"),
        "The new root is made, and its card goes onto the ledger by itself.",
        "activate",
    )


@verb(root, "activate", example="konsil node root activate")
def activate(site: Site) -> None:
    """Sign by the new root from now on. The key of the one before is destroyed."""
    _step(site, AskRoot("activate"), "Certificates are signed by the new root.", "retire")


@verb(root, "retire", example="konsil node root retire")
def retire(site: Site) -> None:
    """Give the former root up: nobody trusts it once the ledger has this member's card without it."""
    _step(site, AskRoot("retire"), "The former root is given up, which goes onto the ledger by itself.", "")


def _step(site: Site, word: AskRoot, done: str, then: str) -> None:
    with site.node() as running:
        height = running.ask(word, Noted).height
    following = f"\nNext, when all peers have been here since: konsil node root {then}" if then else ""
    site.show(
        {"step": word.step, "height": height, "next": then},
        f"{done}\nBack up {site.config().keys_dir} again.{following}",
    )
