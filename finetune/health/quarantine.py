"""Samples that turn up in bad steps again and again."""

from collections import Counter, defaultdict
from math import comb

from finetune.data.journal import Journal
from finetune.data.plan import FILL, Draw, Plan


def drawn(plan: Plan, step: int) -> tuple[int, ...]:
    """The ids of all samples that a step draws, sorted, each once."""
    return tuple(sorted({draw.sample for draw in _draws(plan, step)}))


def suspects(journal: Journal, plan: Plan, after: int) -> tuple[int, ...]:
    """The samples to be quarantined, sorted; to be asked for when bad steps in a row have ended without a rollback.

    They were drawn in at least `after` different bad steps, and in so many that less than one sample of all would be by
    chance: when many steps are bad, it is not the samples that are sick. Bad steps in a row that led to a rollback
    accuse nobody. A sample that was replaced in a step had no part in it.

    Args:
        plan: with the journal's editions.
        after: 0 suspects nobody.
    """
    counted = _evidence(journal)
    if not after or len(counted) < after:
        return ()
    bad, passes = Counter[int](), defaultdict[int, int](int)
    for step in counted:
        replaced, draws = journal.excluded(step), _draws(plan, step)
        bad.update({draw.sample for draw in draws} - replaced.keys())
        for draw in draws:
            if draw.repeat < FILL:
                passes[draw.sample] = max(passes[draw.sample], draw.repeat + 1)
    steps = counted[-1] + 1
    epochs, share = plan.epoch_of_step(counted[-1]) + 1, len(counted) / steps
    known = journal.excluded(steps)
    return tuple(
        sample
        for sample, times in sorted(bad.items())
        if times >= after
        and sample not in known
        and plan.draws(1) * _at_least(times, epochs * passes[sample], share) < 1.0
    )


def _draws(plan: Plan, step: int) -> list[Draw]:
    return [draw for micro_batch in plan.step(step) for draw in micro_batch.draws]


def _evidence(journal: Journal) -> list[int]:
    """The bad steps that led to no rollback."""
    streaks = [range(jump.first_bad, jump.to) for jump in journal.jumps]
    return [skip.step for skip in journal.skips if not any(skip.step in streak for streak in streaks)]


def _at_least(times: int, draws: int, share: float) -> float:
    """The probability that at least so many of a sample's draws fall into bad steps by chance (binomial)."""
    return sum(comb(draws, i) * share**i * (1.0 - share) ** (draws - i) for i in range(times, draws + 1))
