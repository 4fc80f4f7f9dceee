"""FLOPs of one attention layer through a pattern: the kept pairs and all that is computed to know or to add to them."""

from sparse_attn.patterns import Anchors, Full, Pattern, TopBlocks


def flops(pattern: Pattern, tokens: int, heads: int, kv_heads: int, head_dim: int) -> float:
    """Multiplications and additions, forward, of queries times keys and weights times values; projections not counted.

    A pair costs 4 * head_dim a head, an extra key the same. Choosing blocks costs a product with each block's mean before
    the query, 2 * head_dim a query head, and the means; anchors cost pooling and one product each way for every block.
    """
    pair = 4.0 * head_dim
    total = pair * heads * (pattern.pairs(tokens) + tokens * pattern.extra_keys)
    for term in pattern.terms:
        if isinstance(term, TopBlocks):
            scored = tokens * (tokens / term.block) / 2.0
            total += 2.0 * head_dim * (heads * scored + kv_heads * tokens)
        if isinstance(term, Anchors):
            total += kv_heads * (6.0 * head_dim * tokens + pair * term.r * tokens / term.block)
    return total


def share(pattern: Pattern, tokens: int, heads: int, kv_heads: int, head_dim: int) -> float:
    """Of what dense causal attention costs."""
    sizes = (tokens, heads, kv_heads, head_dim)
    return flops(pattern, *sizes) / flops(Full(), *sizes)
