"""Training small models on token-level tasks: batches drawn on the device, one graph a step, resumable."""

from .batch import Batch, Task, from_token_batch
from .fact_chains import FactChains
from .measure import accuracy
from .multi_query_recall import MultiQueryRecall
from .trainer import Recipe, Trainer

__all__ = [
    "Batch",
    "FactChains",
    "MultiQueryRecall",
    "Recipe",
    "Task",
    "Trainer",
    "accuracy",
    "from_token_batch",
]
