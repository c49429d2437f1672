"""What a member's ``evaluate`` gives: how well a model does on its own validation data."""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from konsil.errors import ConfigError


@dataclass(frozen=True)
class Scores:
    """Scores of one model. ``examples``: how many they were measured on, 0 if that was not said.

    ``loss``: None if there is none. ``metrics``: all others, by name.
    """

    examples: int
    loss: float | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)

    @property
    def named(self) -> dict[str, float]:
        """Each score by its name, the loss first."""
        return ({} if self.loss is None else {"loss": self.loss}) | dict(self.metrics)

    def require_sayable(self) -> None:
        """See that they can go on the ledger.

        Raises:
            ConfigError: a score that is no finite number, or no examples.
        """
        bad = [name for name, value in self.named.items() if not math.isfinite(value)]
        if bad or self.examples < 1:
            raise ConfigError(
                "Scores must be finite numbers from at least one example, and this is not so:"
                f" {', '.join(bad) or f'{self.examples} examples'}.",
                safe="Nothing went on the ledger.",
                do="Leave a metric out where it is not defined, for example an AUC with one class only.",
            )


def evaluated(found: Any, *, needs_examples: bool = True) -> Scores:
    """What ``evaluate`` gave: the same for a session, a simulation and fine-tuning.

    Args:
        found: a mapping with ``examples``, a whole number such as 5 or 5.0, and scores by name, ``loss``
            among them where there is one. One that is None is left out.
        needs_examples: scores that stay here may do without them.

    Raises:
        ConfigError: no such mapping, or what is no number.
    """
    if not isinstance(found, Mapping) or (needs_examples and found.get("examples") is None):
        gave = f"only {', '.join(map(repr, found))}" if isinstance(found, Mapping) else type(found).__name__
        raise ConfigError(
            f"`evaluate` gave {gave}, not a mapping with `examples`.",
            safe="Nothing went on the ledger.",
            do='Return for example {"examples": len(held_out), "loss": 0.31, "auc": 0.92}.',
        )
    values = {str(name): value for name, value in found.items() if value is not None}
    try:
        examples = _whole(values.pop("examples", 0))
        metrics = {name: float(value) for name, value in values.items()}
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"A score is no number: {error}.",
            safe="Nothing went on the ledger.",
            do="Give each score as a number, by its name, and `examples` as a whole one.",
        ) from error
    return Scores(examples, metrics.pop("loss", None), metrics)


def _whole(value: Any) -> int:
    try:
        return operator.index(value)
    except TypeError:
        number = float(value)
        if not number.is_integer():
            raise ValueError(f"{number:g} examples") from None
        return int(number)
