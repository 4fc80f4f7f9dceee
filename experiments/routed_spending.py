"""What the routers of a trained model let its queries read, on documents that it is tested with."""

from typing import Any

import torch

from sparse_attn.models import LanguageModel
from sparse_attn.nn import RoutedSelfAttention
from sparse_attn.training import Batch


@torch.no_grad()
def spending(
    model: LanguageModel, tests: dict[str, Batch], autocast: torch.dtype | None, documents: int = 4
) -> dict[str, Any]:
    """Some documents of every test, one at a time, in eval mode: no noise.

    Returns:
        documents: How many were read.
        pairs: Of a head and document, exactly counted, windows included; mean over documents, layers and heads.
        by_layer: The same, layer by layer.
        options: Numbers of blocks that routers decide between.
        decided: The share of queries and heads that decided for each.
        decided_when_asked: The same of the queries that are asked for an answer.
    """
    layers = [module for module in model.modules() if isinstance(module, RoutedSelfAttention)]
    options = [count for count, _ in layers[0].router.options]
    by_layer = torch.zeros(len(layers), dtype=torch.float64)
    all_counts, asked_counts = (torch.zeros(len(options), dtype=torch.float64) for _ in range(2))
    read = 0
    model.eval()
    for batch in tests.values():
        for row in range(min(documents, len(batch.tokens))):
            tokens, at = batch.tokens[row : row + 1], batch.at[row : row + 1]
            with torch.autocast(tokens.device.type, autocast, enabled=autocast is not None):
                model(tokens, at)
            read += 1
            for number, layer in enumerate(layers):
                assert layer.route is not None
                by_layer[number] += layer.spent_pairs().double().mean()
                decided = layer.route.decided[0]
                all_counts += torch.bincount(decided.flatten(), minlength=len(options)).cpu()
                asked_counts += torch.bincount(decided[at[0]].flatten(), minlength=len(options)).cpu()
    by_layer /= read
    return {"documents": read, "pairs": round(float(by_layer.mean())), "by_layer": [round(x) for x in by_layer.tolist()],
            "options": options, "decided": shares(all_counts), "decided_when_asked": shares(asked_counts)}  # fmt: skip


def shares(counts: torch.Tensor) -> list[float]:
    return [round(x, 4) for x in (counts / counts.sum()).tolist()]
