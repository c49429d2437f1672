"""A built-in authority gets another root in three steps: no peer ever sees a certificate it cannot check.

``prepare`` makes the new root, which peers are to trust beside the old one; ``activate`` lets it sign, and
destroys the old one's key; ``retire`` takes the old one out of the bundle, and nobody trusts it any more.
"""

from __future__ import annotations

from pathlib import Path

from konsil.errors import IdentityError
from konsil.identity.authority import AUTHORITY_FILE, FORMER_FILE, NEXT_FILE, Authority
from konsil.identity.files import write_private


def prepare(directory: Path) -> Authority:
    """Make the next root.

    Raises:
        IdentityError: a change is under way already, or the authority cannot be used.
        ConfigError: the folder cannot be written to.
    """
    authority = Authority.load(directory)
    for name, step in ((NEXT_FILE, "activate"), (FORMER_FILE, "retire")):
        if (directory / name).exists():
            raise _out_of_turn("a change of the root is under way already", step)
    Authority.create(directory, authority.trust_domain, NEXT_FILE)
    return Authority.load(directory)


def activate(directory: Path) -> Authority:
    """Let the next root sign. A run that was cut off here may be repeated.

    Raises:
        IdentityError: there is no next root, or it cannot be used.
        ConfigError: the folder cannot be written to.
    """
    if not (directory / NEXT_FILE).exists():
        raise _out_of_turn("no new root was prepared", "prepare")
    former = Authority.load(directory)
    write_private(directory / FORMER_FILE, former.certificate, replace=True)
    # One step, which a power cut may undo, and then this is done again: the bundle holds both all the time.
    (directory / NEXT_FILE).replace(directory / AUTHORITY_FILE)
    return Authority.load(directory)


def retire(directory: Path) -> Authority:
    """Take the former root out of the bundle.

    Raises:
        IdentityError: there is none, or the authority cannot be used.
    """
    if (directory / NEXT_FILE).exists() or not (directory / FORMER_FILE).exists():
        missing = "activate" if (directory / NEXT_FILE).exists() else "prepare"
        raise _out_of_turn("there is no former root to be given up", missing)
    (directory / FORMER_FILE).unlink()
    return Authority.load(directory)


def _out_of_turn(why: str, step: str) -> IdentityError:
    return IdentityError(
        f"The root stays as it is: {why}.",
        safe="Nothing was changed.",
        do=f"The next step is `konsil node root {step}`.",
    )
