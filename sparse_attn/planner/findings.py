"""What a review of a model's config would say: rules, each with a severity, the actual numbers, and a source.

A rule is a function from a `Reviewed` to findings. The rules stand in four files: what layers see (`review_sight.py`), layers
of some kinds (`review_kinds.py`), where positions end (`review_positions.py`), which fields mislead (`review_fields.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from .bill import check_count
from .finding import SEVERITIES, Finding, Reviewed
from .records import Model
from .review_fields import FIELD_RULES
from .review_kinds import KIND_RULES
from .review_positions import POSITION_RULES
from .review_sight import SIGHT_RULES
from .sight import sight

Rule = Callable[[Reviewed], Iterator[Finding]]

RULES: tuple[Rule, ...] = (*SIGHT_RULES, *KIND_RULES, *POSITION_RULES, *FIELD_RULES)


def findings(model: Model, context: int | None = None) -> tuple[Finding, ...]:
    """All that the rules find, warnings first, each severity in the rules' order.

    Args:
        model: From `describe`.
        context: Tokens that it shall read; None: the advertised context. A longer one than advertised is a finding.

    Raises:
        ValueError: a context that is no positive whole number.

    >>> from sparse_attn.planner import describe
    >>> small = {"model_type": "llama", "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    >>> small |= {"num_key_value_heads": 4, "max_position_embeddings": 4096, "vocab_size": 99, "intermediate_size": 9}
    >>> [finding.rule for finding in findings(describe(small), 8192) if finding.severity == "warning"]
    ['context-beyond-advertised']
    """
    if context is not None:
        check_count("context", context)
    seen = sight(model, context or model.advertised_context)
    reviewed = Reviewed(model, seen, context)
    found = [one for rule in RULES for one in rule(reviewed)]
    return tuple(sorted(found, key=lambda one: -SEVERITIES.index(one.severity)))
