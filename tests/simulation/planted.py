"""The planted bugs: name, module, what stands there, what stands there instead."""

ALL = (
    # --- what is written before it is said -------------------------------------------------------
    (
        "a merge is accepted before it is on disk",
        "core.round.promises",
        "case Initialise(digest=digest) | Accept(digest=digest):",
        "case Initialise(digest=digest):",
    ),
    (
        "an update is committed though its base is not on disk",
        "core.round.promises",
        "        case Commit(base=base):\n            return (base,)\n",
        "",
    ),
    (
        "a commit is no promise",
        "core.round.promises",
        "        case Commit():\n            kind =",
        "        case Commit() if call.round < 0:\n            kind =",
    ),
    (
        "a published part is no promise",
        "core.round.promises",
        "        case Publish():",
        "        case Publish() if call.round < 0:",
    ),
    (
        "a promise is not kept apart by attempt",
        "core.round.promises",
        'f", attempt {attempt}" if attempt > 1 else ""',
        '""',
    ),
    (
        "a restarted node commits without the model that it goes on from",
        "core.round.goals",
        "    if study.accepted not in state.held:\n        return None  # after",
        "    if not study.accepted:\n        return None  # after",
    ),
    # --- what is checked -------------------------------------------------------------------------
    ("a chunk's digest is not checked", "core.digest", "    if leaf(chunk) == expected:", "    if True:"),
    (
        "a manifest's digest is not checked",
        "core.digest",
        "        if actual != digest:",
        "        if False:",
    ),
    (
        "a merge is accepted unread",
        "core.round.goals",
        "    if current.digest not in state.held:\n        yield Fetch(current.number, current.digest)\n    elif",
        "    if",
    ),
    (
        "updates can be read while the round collects",
        "core.rules.reading",
        '        if current.phase == "merging":\n            digests |= {current.commits[name].digest for name in current.roster}',
        "        digests |= {commit.digest for commit in current.commits.values()}",
    ),
    (
        "an old call is taken again",
        "core.rules.contract",
        "    last = state.members[caller].sequence\n",
        "    last = sequence - 1\n",
    ),
    (
        "a second commit takes the place of the first",
        "core.rules.collecting",
        "    if known is not None:\n",
        "    if known is not None and call.round < 0:\n",
    ),
    # --- the roster and the merge ----------------------------------------------------------------
    (
        "the roster is not sorted",
        "core.rules.rounds",
        "roster=tuple(sorted(current.commits))",
        "roster=tuple(current.commits)",
    ),
    (
        "weights are those of other members",
        "core.rules.rounds",
        "    examples = {name: current.commits[name].examples for name in current.roster}",
        "    examples = dict(zip(current.roster, [current.commits[name].examples for name in current.roster][::-1], strict=True))",
    ),
    (
        "parts are put together in the wrong order",
        "core.rules.merging",
        "[part.digest for part in current.parts])",
        "[part.digest for part in current.parts[::-1]])",
    ),
    (
        "half of the roster is a majority",
        "core.rules.rounds",
        "not (time_is_up and 2 * held > n)",
        "not (time_is_up and 2 * held >= n)",
    ),
    (
        "the first who accepts decides when time is up",
        "core.rules.rounds",
        "not (time_is_up and 2 * held > n)",
        "not time_is_up",
    ),
    (
        "who is absent is not said",
        "core.rules.rounds",
        "if name not in current.roster}\n\n\ndef _why_absent",
        "if name not in current.roster and why != 'silent'}\n\n\ndef _why_absent",
    ),
    # --- disputes --------------------------------------------------------------------------------
    (
        "half of the roster strikes a member",
        "core.rules.disputes",
        "    if 2 * wrong > n:",
        "    if 2 * wrong >= n:",
    ),
    (
        "an undecided dispute strikes the leader",
        "core.rules.disputes",
        '        return _close(study, current, opened, "undecided", now_s)\n    return study',
        "        return _strike(study, current, opened, now_s)\n    return study",
    ),
    (
        "a wrong part is disputed by nobody",
        "core.round.goals",
        "for suspect in state.suspects[: 0 if had_its_say else 1]:",
        "for suspect in state.suspects[:0]:",
    ),
    # --- attempts and deadlines ------------------------------------------------------------------
    (
        "the attempt is not raised when members leave",
        "core.rules.rounds",
        "        attempt=current.attempt + 1,\n        commits=",
        "        attempt=current.attempt,\n        commits=",
    ),
    (
        "an update stays on record though nobody can have it",
        "core.rules.rounds",
        "if name not in names},\n        absent=current.absent | dict.fromkeys(names, why),",
        "},\n        absent=current.absent | dict.fromkeys(names, why),",
    ),
    (
        "one report throws a member out",
        "core.rules.merging",
        "if 2 * count > len(current.roster) - 1}",
        "if count}",
    ),
    (
        "a deadline is a second early",
        "core.rules.contract",
        "        wait_s <= 0,\n",
        "        wait_s <= 1,\n",
    ),
    (
        "a deadline is a day late",
        "core.rules.contract",
        "        wait_s <= 0,\n",
        "        wait_s <= -86400,\n",
    ),
    (
        "a silent member is waited for until the patience ends",
        "core.rules.rounds",
        "    until_s = now_s + study.settings.silence_s\n    return {",
        "    until_s = now_s + 50 * study.settings.silence_s\n    return {",
    ),
    (
        "who says that it trains on is not waited for longer",
        "core.rules.rounds",
        "    if until_s <= now_s or name in current.commits:\n        return current",
        "    if name in current.expected or name in current.commits:\n        return current",
    ),
    (
        "nobody says that training goes on",
        "core.round.goals",
        "    if due_s is None or now_s < due_s or current is None:",
        "    if due_s is None or now_s < due_s + 1000 or current is None:",
    ),
    (
        "the roster that comes to no merge never lets others in",
        "core.rules.merging",
        "    return collect_again(study, replace(current, attempt=current.attempt + 1, reports={}), now_s)\n",
        "    return replace(study, open=deal_parts(study, replace(current, attempt=current.attempt + 1), now_s))\n",
    ),
    (
        "leaders that are all silent lead again and again",
        "core.rules.merging",
        "    if set(current.roster) <= set(silent_now):\n        return collect_again(study, current, now_s)\n",
        "",
    ),
    (
        "members that have not spoken yet are thrown out",
        "core.rules.merging",
        "    if current.attempt < QUICK_ATTEMPTS:\n        gone &= set(current.silent)\n",
        "",
    ),
    (
        "a round that collects again takes no breath",
        "core.rules.rounds",
        "    if attempt <= QUICK_ATTEMPTS:\n        return 0\n",
        "    if attempt:\n        return 0\n",
    ),
    # --- the node --------------------------------------------------------------------------------
    (
        "a node believes its own clock",
        "core.round.ledger_time",
        "return own_s + self.correction_s",
        "return own_s",
    ),
    (
        "a failed effect is tried again at once",
        "core.round.facts",
        "    wait_s = min(RETRY_LAST_S, RETRY_FIRST_S * 2 ** min(failures - 1, 10))\n",
        "    wait_s = 0.0\n",
    ),
    (
        "a failed effect is never tried again",
        "core.round.facts",
        "return replace(state, doing=_without(state.doing, event.effect), retries=retries)\n\n\ndef _without",
        "return replace(state, retries=retries)\n\n\ndef _without",
    ),
    (
        "nobody looks at what another reported",
        "core.round.goals",
        "        if probe not in state.probed:\n            yield probe",
        "        if probe in state.probed:\n            yield probe",
    ),
    (
        "who cannot be reached is not reported",
        "core.round.endings",
        "return Failed(effect, unreachable=error.members)",
        "return Failed(effect)",
    ),
    (
        "a node lets go of its own update",
        "core.round.keeping",
        "        hold.add(state.update.digest)",
        "        pass",
    ),
    (
        "a node lets go of the merge that is not accepted yet",
        "core.round.keeping",
        "hold |= {current.digest, current.base}",
        "hold |= {current.base}",
    ),
    (
        "a training process that comes back is not told the model",
        "core.round.facts",
        "        waiting=True,\n        delivered=event.holds,",
        "        waiting=False,\n        delivered=event.holds,",
    ),
    (
        "nobody ticks",
        "core.round.goals",
        "    if due_s is not None and now_s >= due_s:\n        return (Submit(Tick(state.study)),)",
        "    if due_s is None:\n        return (Submit(Tick(state.study)),)",
    ),
    (
        "a member that has finished does not come back",
        "core.round.goals",
        "        if not participant.present and _still_contributes(state, study):",
        "        if not participant.present and state.leaving:",
    ),
)
