"""Hugging Face models: attention through patterns, the embedded default model, KV-cache arithmetic.

Importing this room changes nothing in transformers; `sparsify` registers the attention and mask functions when called.
"""

from .default_model import load_default, load_model
from .kv_cache import cache_bytes, live_keys
from .prefill_choice import spent_pairs
from .sparsify import restore, sparsify

__all__ = ["cache_bytes", "live_keys", "load_default", "load_model", "restore", "sparsify", "spent_pairs"]
