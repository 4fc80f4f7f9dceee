"""FLOPs of one attention layer through a pattern: the kept pairs and all that is computed to know or to add to them."""

from sparse_attn.patterns import Anchors, Full, Pattern, TopBlocks


def flops(pattern: Pattern, tokens: int, heads: int, kv_heads: int, head_dim: int, *, gated: bool = False) -> float:
    """Multiplications and additions, forward, of queries times keys and weights times values; projections not counted.

    A pair costs 4 * head_dim a head, an extra key the same. Choosing blocks costs a product with each block's mean before
    the query, 2 * head_dim a query head, and the means; a gated selector takes values too, and pools with weights. Anchors
    cost pooling, and one product each way for every block.
    """
    pair = 4.0 * head_dim
    total = pair * heads * (pattern.pairs(tokens) + tokens * pattern.extra_keys)
    for term in pattern.terms:
        if isinstance(term, TopBlocks):
            scored = tokens * (tokens / term.block) / 2.0
            total += (pair if gated else pair / 2) * heads * scored + (
                6.0 if gated else 1.0
            ) * head_dim * kv_heads * tokens
        if isinstance(term, Anchors):
            total += kv_heads * (6.0 * head_dim * tokens + pair * term.r * tokens / term.block)
    return total


def share(pattern: Pattern, tokens: int, heads: int, kv_heads: int, head_dim: int, *, gated: bool = False) -> float:
    """Of what dense causal attention costs."""
    sizes = (tokens, heads, kv_heads, head_dim)
    return flops(pattern, *sizes, gated=gated) / flops(Full(), *sizes)
