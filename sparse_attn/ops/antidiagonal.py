"""How much attention each tile of queries gives to each key block, estimated from antidiagonals.

Positions are cut into runs of s = `stride`. For run a of queries and run c of keys

    logit[a,c] = mean over o of q[s a + o] . k[s c + s - 1 - o];   p[a,:] = softmax over the runs c <= a
    mass[tile,b] = sum over the runs a of the tile and c of block b of p[a,c], each run weighed by the queries it has

An antidiagonal of an s x s square meets every row and every column of it once, so that stripes and diagonals both show.
The mean inside the softmax also dilutes a single heavy key such as an attention sink, whose value is near 0: at equal
pairs the blocks chosen this way keep a model's perplexity as well as those chosen by the true mass (benchmarks/NOTES.md).

Source: Xu et al. 2025, arXiv:2503.16428.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor

SCORES = 1 << 22  # logits that are held at once: 16 MiB in float32
PIECES = 8  # at least so many pieces where there are tiles enough: a piece reads no keys after its own


def antidiagonal_mass(
    q: Float[Tensor, "B T Hq D"], k: Float[Tensor, "B S Hkv D"], *, rows: int, block: int, stride: int
) -> Iterator[tuple[slice, Float[Tensor, "B Hq tiles blocks"]]]:
    """The estimated mass of one document, some tiles at a time, the tiles before them done.

    Args:
        q: Scaled queries, the last T of S positions.
        k: Keys.
        rows, block: Positions of a tile, and of a key block; multiples of stride.
        stride: Length of the runs.

    Yields:
        Which tiles, and for each query head their mass on every block, float32; blocks after a tile have 0. A whole tile's
        sum is rows / stride. Products are made in the inputs' dtype.

    Cost: T * S * D * Hq / stride multiply-adds (causal: half), 1 / (2 * stride) of dense causal attention's.
    """
    n_keys, hq, hkv = k.shape[1], q.shape[2], k.shape[2]
    first = n_keys - q.shape[1]
    n_blocks, base = -(-n_keys // block), first // rows
    padded = torch.nn.functional.pad(q, (0, 0, 0, 0, first - base * rows, -n_keys % rows))
    n_tiles, runs = padded.shape[1] // rows, rows // stride
    here = torch.arange(padded.shape[1], device=q.device) + base * rows
    queries = ((here >= first) & (here < n_keys)).unflatten(0, (-1, stride)).sum(1)
    # A run of queries as one long vector, the last position first; a run of keys likewise, the first position first.
    by_run = padded.unflatten(1, (-1, stride)).flip(2).permute(0, 3, 1, 2, 4).flatten(3)  # [B, Hq, runs, stride * D]
    by_run = by_run.unflatten(1, (hkv, -1))
    keys = torch.nn.functional.pad(k, (0, 0, 0, 0, 0, n_blocks * block - n_keys))
    keys = keys.unflatten(1, (-1, stride)).permute(0, 3, 2, 4, 1).flatten(2, 3)  # [B, Hkv, stride * D, runs]
    step = SCORES // max(1, q.shape[0] * hq * runs * keys.shape[3])
    step = max(1, min(step, -(-n_tiles // PIECES)))
    for start in range(0, n_tiles, step):
        part = slice(start, min(start + step, n_tiles))
        own = slice(part.start * runs, part.stop * runs)
        seen = min(-(-(base + part.stop) * rows // block), n_blocks)  # blocks that begin before the piece's end
        logits = by_run[:, :, :, own].flatten(2, 3) @ keys[..., : seen * (block // stride)]
        logits = logits.float().unflatten(2, (hq // hkv, -1)).flatten(1, 2)
        logits /= queries[own, None].clamp(min=1)
        run = torch.arange(own.start, own.stop, device=q.device) + base * runs
        logits.masked_fill_(torch.arange(logits.shape[3], device=q.device) > run[:, None], float("-inf"))
        mass = logits.softmax(-1).mul_(queries[own, None] / stride)
        mass = mass.unflatten(2, (-1, runs)).sum(3).unflatten(3, (seen, -1)).sum(4)
        yield part, torch.nn.functional.pad(mass, (0, n_blocks - seen))
