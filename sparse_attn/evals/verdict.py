"""What `--fail-if-worse` concludes from several comparisons at once, and why.

Exit 1 claims that at least one pattern is worse than dense by more than the margin. With m comparisons there are m chances
to claim it falsely, so its p values are corrected by Holm and Bonferroni's step-down method (Holm 1979): the chance of any
false claim among them stays at 5 %. Exit 0 claims that no pattern is, and every comparison must show it by itself: a claim
that needs all of its parts holds the 5 % without a correction (Berger 1982).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .statistics import ALPHA, holm

Table = dict[str, Any]
PASS, FAIL, INCONCLUSIVE = 0, 1, 3  # exit statuses of `--fail-if-worse`


def judge(comparisons: Sequence[Table], margin: float) -> tuple[list[Table], Table]:
    """The outcome of each comparison, and of all together: a failure outweighs what is inconclusive.

    Args:
        comparisons: With `p_exceeds` and `p_within` of the margin, and `floor`, which gives no verdict and is not counted.
        margin: What was asked for.

    Returns:
        The comparisons with `p_exceeds_holm` and `outcome`; and the verdict: its `status`, its `reasons`, a sentence each,
        and the `correction` in words where there was one.
    """
    judged = [compared for compared in comparisons if not compared["floor"]]
    corrected = iter(holm([compared["p_exceeds"] for compared in judged]))
    found = []
    for compared in comparisons:
        p = None if compared["floor"] else next(corrected)
        found.append({**compared, "p_exceeds_holm": p, "outcome": _outcome(p, compared["p_within"])})
    outcomes = {compared["outcome"] for compared in found}
    status = FAIL if FAIL in outcomes else INCONCLUSIVE if INCONCLUSIVE in outcomes or not outcomes else PASS
    reasons = [_reason(compared, margin, len(judged)) for compared in found]
    if not reasons:
        reasons = ["inconclusive: no task with right and wrong answers was read"]
    return found, {"margin": margin, "status": status, "reasons": reasons, "correction": _correction(len(judged))}


def _outcome(p_exceeds: float | None, p_within: float) -> int:
    if p_exceeds is None:
        return INCONCLUSIVE
    return FAIL if p_exceeds < ALPHA else PASS if p_within < ALPHA else INCONCLUSIVE


def _reason(compared: Table, margin: float, judged: int) -> str:
    name = f"{compared['row']}, {compared['task']}" + (f", {compared['prompt']}" * (compared["prompt"] != "plain"))
    if compared["floor"]:
        return f"{name}: inconclusive. {compared['words']}"
    alone, p = compared["p_exceeds"], compared["p_exceeds_holm"]
    shown = f"p = {p:.2g}" + (f" after Holm-Bonferroni, {alone:.2g} alone" if judged > 1 else "")
    if compared["outcome"] == FAIL:
        return f"{name}: worse than dense by {compared['difference']:.1%}, more than {margin:.1%} ({shown})"
    if compared["outcome"] == PASS:
        return f"{name}: no worse than dense by {margin:.1%} (p = {compared['p_within']:.2g})"
    reason = (
        f"{name}: inconclusive. {compared['n']} samples cannot tell a loss of {margin:.1%} from none; the margin that they "
        f"can detect is {compared['detectable_margin']:.1%}"
    )
    if alone < ALPHA:
        reason += f". Alone it would count as worse, among {judged} comparisons it does not ({shown})"
    return reason


def _correction(judged: int) -> str | None:
    if judged < 2:
        return None
    return (
        f"{judged} comparisons were judged: 'worse' is claimed at 5% for all of them together (p values after Holm-Bonferroni), "
        "'no worse' only if each comparison shows it by itself, which needs no correction."
    )
