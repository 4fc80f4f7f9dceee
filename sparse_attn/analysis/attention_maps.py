"""Dense attention weights of a Hugging Face model's layers, caught while it reads."""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import PreTrainedModel


@torch.inference_mode()
def attention_maps(
    model: PreTrainedModel, tokens: Int[Tensor, " T"], layers: Sequence[int]
) -> dict[int, Float[Tensor, "Hq T T"]]:
    """The softmax weights of each query over all keys, in some layers, head by head.

    Args:
        model: A causal language model whose decoder has ``layers[i].self_attn`` that returns its weights when it attends
            eagerly, as transformers' own do. It attends eagerly for this call, and as before afterwards.
        tokens: One text.
        layers: Numbers of layers.

    Returns:
        For each layer ``[Hq, T, T]`` in float32 on the CPU; every row sums to 1.

    Raises:
        ValueError: no tokens, or a layer that the model does not have.
        NotImplementedError: a layer that hands out no weights.

    Cost: a dense forward pass; Hq x T x T numbers for each layer.
    """
    decoder: Any = model.get_decoder()
    if tokens.numel() == 0:
        raise ValueError("tokens must hold at least one token, got none")
    for layer in layers:
        if not 0 <= layer < len(decoder.layers):
            raise ValueError(f"layers must name layers 0 to {len(decoder.layers) - 1}, got {layer}")
    found: dict[int, Tensor] = {}
    before = model.config._attn_implementation
    hooks = []
    try:
        model.set_attn_implementation("eager")
        for layer in layers:

            def keep(module: Any, given: Any, output: Any, layer: int = layer) -> None:
                weights = output[1] if isinstance(output, tuple) and len(output) > 1 else None
                if weights is None:
                    raise NotImplementedError(f"layer {layer}, {type(module).__name__}, hands out no attention weights")
                found[layer] = weights[0].float().cpu()

            hooks.append(decoder.layers[layer].self_attn.register_forward_hook(keep))
        decoder(input_ids=tokens[None].to(model.device), use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
        model.set_attn_implementation(before)
    return found
