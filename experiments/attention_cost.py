"""FLOPs of one attention layer through a pattern: the kept pairs and all that is computed to know or to add to them."""

from sparse_attn.patterns import Anchors, AnchorTree, Full, Hashed, Pattern, TopBlocks


def flops(
    pattern: Pattern, tokens: int, heads: int, kv_heads: int, head_dim: int, *,
    gated: bool = False, options: int = 0, pairs: float | None = None,
) -> float:  # fmt: skip
    """Multiplications and additions, forward, of queries times keys and weights times values; projections not counted.

    A pair costs 4 * head_dim a head, an extra key the same. Choosing blocks costs a product with each block's mean before
    the query, 2 * head_dim a query head, and the means; a gated selector takes values too, and pools with weights. Anchors
    cost pooling, and one product each way for every block. A tree's r queries of a level read every token, or every summary
    of the level below: a product with its key, and its share of both sums. Hashing multiplies queries and keys with
    buckets / 2 directions in each round; of its rounds, whole chunks count as pairs, twice seen keys too (sorting is not
    counted). A router scores `options` for each KV head; `pairs` a head is what it let its queries read, in place of the
    pattern's most.
    """
    pair = 4.0 * head_dim
    total = pair * heads * ((pattern.pairs(tokens) if pairs is None else pairs) + tokens * pattern.extra_keys)
    total += 2.0 * heads * head_dim * kv_heads * options * tokens
    for term in pattern.terms:
        if isinstance(term, TopBlocks):
            scored = tokens * (tokens / term.block) / 2.0
            total += (pair if gated else pair / 2) * heads * scored + (
                6.0 if gated else 1.0
            ) * head_dim * kv_heads * tokens
        if isinstance(term, Anchors):
            total += kv_heads * (6.0 * head_dim * tokens + pair * term.r * tokens / term.block)
        if isinstance(term, AnchorTree):
            total += 6.0 * head_dim * kv_heads * term.r * read_by_tree(term, tokens)
        if isinstance(term, Hashed):
            total += term.rounds * head_dim * term.buckets * (heads + kv_heads) * tokens
    return total


def read_by_tree(tree: AnchorTree, tokens: int) -> int:
    """Tokens of whole blocks, and summaries of whole groups of nodes, that a tree's levels read."""
    nodes = tokens // tree.block
    read = nodes * tree.block
    for _ in range(1, tree.levels):
        groups = nodes // tree.fanout
        read += groups * tree.fanout * tree.r
        nodes = groups
    return read


def share(
    pattern: Pattern, tokens: int, heads: int, kv_heads: int, head_dim: int, **more: float | bool | None
) -> float:
    """Of what dense causal attention costs."""
    sizes = (tokens, heads, kv_heads, head_dim)
    return flops(pattern, *sizes, **more) / flops(Full(), *sizes)  # type: ignore[arg-type]
