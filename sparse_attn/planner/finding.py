"""A finding, and what rules look at."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from .records import Model
from .sight import Sight

Severity = Literal["info", "warning"]

#: From the mildest to the gravest.
SEVERITIES: tuple[Severity, ...] = ("info", "warning")


@dataclass(frozen=True)
class Finding:
    """One remark of the review.

    Attributes:
        rule: The rule's id, stable between versions, e.g. "top-layers-local".
        severity: "warning": something that the model's name or context promises may not hold. "info": worth knowing.
        message: One or two sentences with the numbers of this model.
        source: Where the claim comes from: a paper, a class, a config field.
    """

    rule: str
    severity: Severity
    message: str
    source: str


@dataclass(frozen=True)
class Reviewed:
    """What a rule looks at: the model, its layers sorted by what they see, and the context that was asked for."""

    model: Model
    sight: Sight
    asked: int | None

    @property
    def context(self) -> int | None:
        """The asked context, or the advertised one."""
        return self.sight.context
