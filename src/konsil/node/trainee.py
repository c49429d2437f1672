"""The training process on the other side of the wall, as a study sees it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from konsil.core.parameters import Schema
from konsil.core.round import Deliver
from konsil.core.rules import Study
from konsil.node.store import Model


@dataclass
class Trainee:
    """``schema``: of its model; ``tell``: hands a model over, or None where there is none."""

    schema: Schema
    tell: Callable[[Deliver, Study, Model | None], Awaitable[None]]
