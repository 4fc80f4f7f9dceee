"""The variants that long_facts.py compares: their patterns at every length, and models whose layers see through them."""

from sparse_attn.models import LanguageModel
from sparse_attn.nn import BlockSelector, RoutedSelfAttention, Router, SparseSelfAttention
from sparse_attn.patterns import Anchors, AnchorTree, TopBlocks, parse

WIDTH, LAYERS, HEADS, MLP = 384, 6, 6, 768
LONGEST = 16384
# At 16,384 tokens, each at most a sixth of dense FLOPs; on shorter documents windows, blocks and chunks shrink with the length,
# so that what lies beyond them is needed.
VARIANTS = {
    "dense": "full()",
    "window": "window({w1024})",
    "window + anchors": "window({w1024}) | anchors(64, block={b128})",
    # Four levels reach past the longest document; 256 extra keys are what a sixth leaves room for beside this window.
    "window + AnchorTree": "window({w1024}) | anchortree(4, fanout=4, r=16, block={b128})",
    "window + TopBlocks": "window({w256}) | topblocks({k32}, block=16)",
    "window + TopBlocks, gated": "window({w256}) | topblocks({k32}, block=16)",
    "window + TopBlocks, taught": "window({w256}) | topblocks({k32}, block=16)",
    "window + Router": "window({w256}) | topblocks({k32}, block=16)",
    # The number of buckets stays, so that a model keeps its directions: 64 keys a bucket at the longest, of which a query sees
    # the latest 65 to 128. Two rounds: each is a pass of its own in plain PyTorch, and four would take twice as long.
    "window + Hashed": "window({w256}) | hashed(2, 256, chunk={c64})",
}
# The others' TopBlocks choose by the mean of a block's keys, as attention() does.
GATED = ("window + TopBlocks, gated", "window + TopBlocks, taught", "window + Router")
TAUGHT = ("window + TopBlocks, taught", "window + Router")
ROUTED = ("window + Router",)
FIRST_FOR = ("window + anchors", "window + AnchorTree", "window + Hashed")  # whose way to far facts starts from nothing
LESSON = 0.1  # weight of what its selectors missed
BUDGET = 0.1  # weight of what its routers spent above their target
TARGET = 0.25  # of the chosen keys, for a query on average


def pattern_at(text: str, tokens: int) -> str:
    share = tokens / LONGEST
    return text.format(
        w1024=max(16, int(1024 * share)), w256=max(16, int(256 * share)), b128=max(8, int(128 * share)),
        k32=max(4, int(32 * share**0.5)), c64=max(4, int(64 * share)),
    )  # fmt: skip


class Sizes:
    """Of the model; tiny ones try out the whole on a CPU."""

    def __init__(self, tiny: bool) -> None:
        self.width, self.layers, self.heads, self.mlp = (32, 2, 2, 32) if tiny else (WIDTH, LAYERS, HEADS, MLP)

    @property
    def head_dim(self) -> int:
        return self.width // self.heads


def attention_layer(name: str, pattern: str, sizes: Sizes) -> SparseSelfAttention:
    kind = RoutedSelfAttention if name in ROUTED else SparseSelfAttention
    layer = kind(sizes.width, sizes.heads, parse(pattern), rope_theta=None)
    if name not in GATED:
        layer.selector = None
    return layer


def use(model: LanguageModel, text: str) -> None:
    """Let every layer see through another pattern with the same learned parts."""
    pattern = parse(text)
    for block in model.blocks:
        layer = block.mixer
        layer.pattern = pattern
        for term in pattern.terms:
            if isinstance(term, Anchors):
                layer.anchors.block = term.block
            if isinstance(term, AnchorTree):
                layer.anchors.tree = term
            if isinstance(term, TopBlocks) and isinstance(layer.selector, BlockSelector):
                layer.selector.pattern, layer.selector.block = pattern, term.block
            if isinstance(term, TopBlocks) and isinstance(layer, RoutedSelfAttention):
                score = layer.router.score
                layer.router = Router(layer.dim, layer.kv_heads, pattern).to(score.weight.device)
                layer.router.score = score
                layer.target = TARGET * term.budget
