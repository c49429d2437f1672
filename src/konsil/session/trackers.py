"""A study's figures in the trackers that teams use already: a line each, given to ``join(on_round=...)``.

Only figures go there: rounds, counts, scores, times. Never data, never parameters.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import TYPE_CHECKING, Any

from konsil.session.accepted import mean_figures

if TYPE_CHECKING:
    from konsil.session.swarm import Swarm

OnRound = Callable[["Swarm"], None]


def tensorboard(writer: Any) -> OnRound:
    """Figures as scalars, by round.

    Args:
        writer: a ``SummaryWriter`` of ``torch.utils.tensorboard`` or ``tensorboardX``.
    """

    def log(figures: dict[str, float], number: int) -> None:
        for name, value in figures.items():
            writer.add_scalar(name, value, number)

    return _by_round(log)


def mlflow() -> OnRound:
    """Figures as metrics of the active MLflow run, by round; without an active one MLflow begins one."""
    library: Any = import_module("mlflow")
    return _by_round(lambda figures, number: library.log_metrics(figures, step=number))


def wandb(run: Any) -> OnRound:
    """Figures in a Weights & Biases run, by round.

    Args:
        run: what ``wandb.init`` returned. Its steps are the rounds: log nothing else with other steps there.
    """
    return _by_round(lambda figures, number: run.log(figures, step=number))


def _by_round(log: Callable[[dict[str, float], int], None]) -> OnRound:
    def on_round(swarm: Swarm) -> None:
        # First the means of the round before, which have come since: some trackers take no step back.
        if swarm.before is not None and (means := mean_figures(swarm.before)):
            log(means, swarm.before.round)
        if swarm.last is not None:
            log(swarm.figures, swarm.last.round)

    return on_round
