"""What attention heads look at: attention weights of real models, and what a window and a low-rank correction keep of them."""

from .attention_maps import attention_maps
from .low_rank import HeadView, LowRankView, low_rank_view

__all__ = ["HeadView", "LowRankView", "attention_maps", "low_rank_view"]
