"""What a number of right answers allows to say: intervals, and exact tests of paired differences."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

ALPHA = 0.05
_Z = 1.959963984540054  # of a two-sided interval of 95 %
_ENUMERATED = 400  # samples up to which every outcome is counted
_NUISANCE = 24  # values of the unknown share of pairs that differ, over which a test takes its worst case


def wilson(right: int, n: int) -> tuple[float, float]:
    """The 95 % Wilson interval of a share.

    Raises:
        ValueError: n below 1, or `right` not from 0 to n.

    Source: Wilson 1927.

    >>> low, high = wilson(15, 15)
    >>> f"{low:.3f} {high:.3f}"
    '0.796 1.000'
    """
    if n < 1 or not 0 <= right <= n:
        raise ValueError(f"right must be from 0 to n and n at least 1, got {right} of {n}")
    share, z2 = right / n, _Z * _Z / n
    middle = (share + z2 / 2) / (1 + z2)
    half = _Z * math.sqrt(share * (1 - share) / n + z2 / (4 * n)) / (1 + z2)
    return (0.0 if right == 0 else middle - half), (1.0 if right == n else middle + half)


def mcnemar(worse: int, better: int) -> float:
    """Two-sided p of the exact McNemar test: pairs that differ are worse or better with one half each.

    Args:
        worse: Samples that only the first got right.
        better: Samples that only the second got right.

    >>> mcnemar(0, 0), mcnemar(5, 0)
    (1.0, 0.0625)
    """
    n = worse + better
    tail = sum(math.comb(n, k) for k in range(min(worse, better) + 1))
    return min(1.0, 2 * tail / 2**n)


def holm(p: Sequence[float]) -> list[float]:
    """The p values of several tests, corrected so that rejecting those below alpha errs even once with probability alpha.

    With p sorted from the smallest, of m: corrected[i] = max over j <= i of min(1, (m - j) * p[j]), j from 0.

    Source: Holm 1979, the step-down form of Bonferroni's correction.

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    corrected, least = [0.0] * len(p), 0.0
    for rank, index in enumerate(sorted(range(len(p)), key=lambda index: p[index])):
        least = max(least, min(1.0, (len(p) - rank) * p[index]))
        corrected[index] = least
    return corrected


@dataclass(frozen=True)
class Paired:
    """Two ways of reading, on the same samples.

    Attributes:
        n: Samples.
        worse: Those that only the first way got right.
        better: Those that only the second got right.
    """

    n: int
    worse: int
    better: int

    @property
    def difference(self) -> float:
        """How much smaller the second way's share of right answers is."""
        return (self.worse - self.better) / self.n

    def p_exceeds(self, margin: float) -> float:
        """p of the claim that the second way is worse by more than `margin`.

        The largest probability, over all ways in which pairs can differ while the true difference is the margin, of an
        outcome at least as far beyond it as the one seen. Outcomes are ordered by Tango's score statistic. Above 400
        samples its normal distribution is used instead of enumeration.
        Source: Tango 1998; Hsueh, Liu and Chen 2001.
        """
        return self._worst_case(margin, 1.0)

    def p_within(self, margin: float) -> float:
        """p of the claim that the second way is worse by less than `margin`, tested likewise."""
        return self._worst_case(margin, -1.0)

    def detectable(self) -> float:
        """The smallest margin within which this sample could show the second way to be; 1 if none.

        It is the upper end of a one-sided 95 % interval of the difference.
        """
        low, high = max(self.difference, 0.0), 1.0
        if self.p_within(high - 1e-9) >= ALPHA:
            return 1.0
        for _ in range(14):
            middle = (low + high) / 2
            low, high = (low, middle) if self.p_within(middle) < ALPHA else (middle, high)
        return high

    def _worst_case(self, margin: float, sign: float) -> float:
        seen = sign * float(_score(np.array(self.worse), np.array(self.better), self.n, margin))
        if self.n > _ENUMERATED:
            return 0.5 * math.erfc(seen / math.sqrt(2))
        worse, better, ways = _outcomes(self.n)
        extreme = sign * _score(worse, better, self.n, margin) >= seen - 1e-9
        worse, better, ways = worse[extreme], better[extreme], ways[extreme]
        worst = 0.0
        for down in np.linspace(0.0, (1 - margin) / 2, _NUISANCE):
            up, none = margin + down, 1 - margin - 2 * down
            odds = ways + _times_log(worse, up) + _times_log(better, down) + _times_log(self.n - worse - better, none)
            worst = max(worst, float(np.exp(odds).sum()))
        return min(1.0, worst)


def _times_log(count: np.ndarray, share: float) -> np.ndarray:
    """count * log(share), with 0 * log(0) = 0."""
    if share <= 0:
        return np.where(count == 0, 0.0, -np.inf)
    return count * math.log(share)


@lru_cache(maxsize=8)
def _outcomes(n: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Every pair (worse, better) of n samples, and the logarithm of the number of ways to get it."""
    worse, better = np.meshgrid(np.arange(n + 1), np.arange(n + 1), indexing="ij")
    inside = worse + better <= n
    worse, better = worse[inside], better[inside]
    log_factorial = np.array([math.lgamma(count + 1) for count in range(n + 1)])
    return (
        worse,
        better,
        log_factorial[n] - log_factorial[worse] - log_factorial[better] - log_factorial[n - worse - better],
    )


def _score(worse: np.ndarray, better: np.ndarray, n: int, margin: float) -> np.ndarray:
    """Tango's statistic of a difference above the margin: observed less expected, over its deviation at the margin."""
    linear = (2 * n + better - worse) * margin - worse - better
    constant = -better * margin * (1 - margin)
    down = (np.sqrt(linear**2 - 8 * n * constant) - linear) / (4 * n)  # the likeliest share of `better` at the margin
    return (worse - better - n * margin) / np.sqrt(n * (2 * down + margin * (1 - margin)))


def near_chance(right: int, n: int, chance: float) -> bool:
    """Whether so few are right that a loss could not be seen: the interval's lower end is within a tenth of chance.

    A tenth of the way from chance to 1, that is.

    >>> near_chance(3, 20, 0.0), near_chance(9, 15, 0.0), near_chance(8, 20, 1 / 6)
    (True, False, True)
    """
    return wilson(right, n)[0] <= chance + 0.1 * (1 - chance)
