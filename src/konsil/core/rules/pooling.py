"""Whether a study merges sums as sums: what fitting preprocessing together over its rounds takes."""

from __future__ import annotations

from konsil.core.merge import rule
from konsil.core.rules.agreement import BUILT_IN_RULES
from konsil.core.rules.settings import StudySettings
from konsil.errors import ConfigError


def check_pooling(settings: StudySettings) -> None:
    """See that members' sums and counts, put in the place of parameters, come out of a merge as they should.

    They replace what the round started from. So a rule that looks at differences to it, and an optimiser
    that steps along them, would make numbers of them that mean nothing. Asked of the settings alone, which
    are all that a session knows: what a rule in a file does with sums, its node could not say either.

    Raises:
        ConfigError: they would not, or nobody can know.
    """
    name = f"Study '{settings.name}'"
    if settings.outer is not None:
        what = f"{name} has an outer optimiser, which would step on sums too."
    elif settings.rule not in BUILT_IN_RULES:
        what = (
            f"{name} merges by the rule '{settings.rule}' from a file, of which Konsil cannot know whether it"
            " leaves sums and counts right: one that did not would give wrong statistics without a word."
        )
    elif rule(settings.rule, settings.rule_options).around_base:
        what = (
            f"{name} merges by '{settings.rule}', which limits how far members go from the last merge; sums"
            " and counts do not start from it, and would come out as statistics that mean nothing."
        )
    else:
        return
    raise ConfigError(
        f"{what} So its preprocessing cannot be fitted together in it.",
        safe="Nothing was sent.",
        do="Fit the preprocessing in a study of its own, a Pipeline without a model, with a rule such as"
        " `mean` and no `outer`; then transform the rows by it before this one's model.",
        study=settings.name,
    )
