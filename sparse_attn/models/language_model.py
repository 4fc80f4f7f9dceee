"""A causal language model of a few layers: embedding, blocks, logits where something is asked."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from .short_convolution import ShortConvolution


class Block(nn.Module):
    """x + mixer(convolution(norm(x))), then x + mlp(norm(x)).

    Args:
        width: Channels of the hidden states.
        mixer: What mixes tokens, ``[B, T, width]`` to the same; causal, or the model is not.
        kernel: Tokens of a short convolution before the mixer, added to its input; 0: none.
        mlp: Hidden width of the MLP (GELU); 0: none.
    """

    def __init__(self, width: int, mixer: nn.Module, *, kernel: int = 4, mlp: int = 0) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(width)
        self.convolution = ShortConvolution(width, kernel) if kernel else None
        self.mixer = mixer
        self.mlp = (
            nn.Sequential(
                nn.RMSNorm(width), nn.Linear(width, mlp, bias=False), nn.GELU(), nn.Linear(mlp, width, bias=False)
            )
            if mlp
            else None
        )

    def forward(self, x: Float[Tensor, "B T C"]) -> Float[Tensor, "B T C"]:
        y = self.norm(x)
        if torch.is_autocast_enabled(x.device.type):  # element by element autocast would stay in float32
            y = y.to(torch.get_autocast_dtype(x.device.type))
        if self.convolution is not None:
            y = y + self.convolution(y)
        x = x + self.mixer(y)
        return x if self.mlp is None else x + self.mlp(x)


class LanguageModel(nn.Module):
    """Embedding, blocks, a norm, and the embedding again as the output layer.

    There are no positions but those that mixers bring: convolutions tell neighbours apart, and content does the rest, so
    that a model trained on short sequences is no stranger to long ones.

    Args:
        vocabulary: Tokens.
        width: Channels of the hidden states.
        mixers: One a block.
        kernel, mlp: As in `Block`; a sequence gives each block its own kernel.
        deviation: Of the initial weights; what a block adds to the sum starts smaller, by sqrt(2 * blocks), as in GPT-2.

    Raises:
        ValueError: no mixers, or a number of kernels that is not theirs.

    >>> from torch import nn
    >>> model = LanguageModel(100, 32, [nn.Identity()], mlp=64)
    >>> model(torch.zeros(2, 10, dtype=torch.long), torch.tensor([[9], [3]])).shape
    torch.Size([2, 1, 100])
    """

    def __init__(
        self,
        vocabulary: int,
        width: int,
        mixers: Sequence[nn.Module],
        *,
        kernel: int | Sequence[int] = 4,
        mlp: int = 0,
        deviation: float = 0.02,
    ) -> None:
        super().__init__()
        if not mixers:
            raise ValueError("mixers must name at least one block, got none")
        kernels = [kernel] * len(mixers) if isinstance(kernel, int) else list(kernel)
        if len(kernels) != len(mixers):
            raise ValueError(f"kernel must be one number or {len(mixers)}, one a mixer, got {len(kernels)}")
        self.embedding = nn.Embedding(vocabulary, width)
        self.blocks = nn.ModuleList(
            Block(width, mixer, kernel=size, mlp=mlp) for mixer, size in zip(mixers, kernels, strict=True)
        )
        self.norm = nn.RMSNorm(width)
        self._initialise(deviation)

    def _initialise(self, deviation: float) -> None:
        nn.init.normal_(self.embedding.weight, std=deviation)
        small = deviation / (2 * len(self.blocks)) ** 0.5
        for name, module in self.named_modules():
            if isinstance(module, nn.Linear):
                last = name.endswith(("out_proj", "mlp.3"))
                nn.init.normal_(module.weight, std=small if last else deviation)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def hidden(self, tokens: Int[Tensor, "B T"]) -> Float[Tensor, "B T C"]:
        """The last hidden states, normed."""
        x: Tensor = self.embedding(tokens)
        for block in self.blocks:
            x = block(x)
        return self.norm(x)  # type: ignore[no-any-return]

    def forward(self, tokens: Int[Tensor, "B T"], at: Int[Tensor, "B Q"]) -> Float[Tensor, "B Q V"]:
        """Logits of the token that follows each of the positions `at`: a vocabulary's worth at every token would cost more
        than all the rest."""
        hidden = self.hidden(tokens)
        asked = hidden.gather(1, at[..., None].expand(-1, -1, hidden.shape[-1]))
        return F.linear(asked, self.embedding.weight)
