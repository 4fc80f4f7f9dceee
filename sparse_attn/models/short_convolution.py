"""Short depthwise causal convolutions: each token sees the few before it, so that a value knows its key.

Source: Arora et al. 2024, "Simple linear attention language models balance the recall-throughput tradeoff" (Based),
arXiv:2402.18668: associative recall needs the shift that a convolution of three or four tokens gives.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn


class ShortConvolution(nn.Module):
    """y[t] = sum over j < kernel of weight[j] * x[t - j], each channel for itself; what lies before the start is 0.

    Args:
        width: Channels.
        kernel: Tokens that an output sees, its own included.

    Raises:
        ValueError: a size below 1.
    """

    def __init__(self, width: int, kernel: int = 4) -> None:
        super().__init__()
        if width < 1 or kernel < 1:
            raise ValueError(f"width and kernel must be at least 1, got {width} and {kernel}")
        self.weight = nn.Parameter((torch.rand(kernel, width) * 2.0 - 1.0) * kernel**-0.5)

    def forward(self, x: Float[Tensor, "B T C"]) -> Float[Tensor, "B T C"]:
        # Shifted sums, not `conv1d`: its weight gradient for one channel a group is slower than all of this.
        weight = self.weight.to(x.dtype)
        y = x * weight[0]
        for shift in range(1, min(len(weight), x.shape[1])):
            y = y + F.pad(x[:, :-shift], (0, 0, shift, 0)) * weight[shift]
        return y


class GatedConvolution(nn.Module):
    """y = (convolution(x) + bias) * (W x + bias) + x: the short mixer of Based's recall experiments."""

    def __init__(self, width: int, kernel: int = 3) -> None:
        super().__init__()
        self.convolution = ShortConvolution(width, kernel)
        self.bias = nn.Parameter(torch.zeros(width))
        self.projection = nn.Linear(width, width)

    def forward(self, x: Float[Tensor, "B T C"]) -> Float[Tensor, "B T C"]:
        y: Tensor = (self.convolution(x) + self.bias) * self.projection(x) + x
        return y
