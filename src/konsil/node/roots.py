"""The built-in authority of a running node gets another root: each step when the swarm is ready for it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import structlog

from konsil.errors import IdentityError
from konsil.identity import roots
from konsil.identity.authority import Authority
from konsil.identity.verify import verify_chain
from konsil.identity.workload_api import WorkloadApi
from konsil.node.renewal import Renewal

Step = Literal["prepare", "activate", "retire"]

_STEPS: dict[Step, Callable[[Path], Authority]] = {
    "prepare": roots.prepare,
    "activate": roots.activate,
    "retire": roots.retire,
}

_log = structlog.get_logger(__name__)


class Roots:
    """Carries out the steps of `konsil node root`; ``api`` is None where identities come from SPIRE."""

    def __init__(self, keys: Path, api: WorkloadApi | None, renewal: Renewal) -> None:
        """``keys``: the folder of the authority's files."""
        self._keys = keys
        self._api = api
        self._renewal = renewal
        self._one_at_a_time = asyncio.Lock()

    async def step(self, step: Step) -> None:
        """Take one step.

        Raises:
            IdentityError: it is not its turn, the swarm is not ready for it, or the authority is SPIRE's.
        """
        async with self._one_at_a_time:
            if self._api is None:
                raise IdentityError(
                    "This node's identity comes from a Workload API that is not the node's own.",
                    safe="Nothing was changed.",
                    do="Change the root there: `spire-server localauthority x509`; the node follows.",
                )
            if not self._renewal.announced:
                raise _too_early("the ledger does not have this member's present trust bundle yet")
            if step == "retire":
                self._require_new_certificate()
            authority = await asyncio.to_thread(_STEPS[step], self._keys)
            self._api.use(authority)
        _log.info("the authority's root changes", step=step)

    def _require_new_certificate(self) -> None:
        """See that the certificate in use leads to the root that stays."""
        staying, svid = Authority.load(self._keys), self._renewal.svid
        try:
            verify_chain(svid.chain_der, staying.certificate, svid.spiffe_id, time.time())
        except IdentityError as error:
            raise _too_early("the certificate in use is still the former root's") from error


def _too_early(why: str) -> IdentityError:
    return IdentityError(
        f"The root stays as it is for now: {why}.",
        safe="Nothing was changed.",
        do="Try again in a minute; `konsil node status` shows what this node waits for.",
    )
