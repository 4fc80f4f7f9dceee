"""How many layers a token is away from the last one, against powers of the mask."""

import numpy as np
import pytest

from sparse_attn.patterns import Chunked, Full, Random, Sinks, Strided, Window
from sparse_attn.patterns.view import layers_from_last

N = 60
STACKS = {
    "window": [Window(9)] * 4,
    "sinks": [Window(5) | Sinks(2)] * 6,
    "strided": [Window(4) | Strided(7)] * 5,
    "chunked and random": [Chunked(8) | Random(1, block=4)] * 3,
    "a full layer in between": [Window(5), Full(), Window(5), Window(3)],
    "one layer": [Window(7)],
}


@pytest.mark.parametrize("stack", STACKS.values(), ids=STACKS.keys())
def test_against_products_of_masks(stack):
    expected = np.zeros(N, dtype=int)
    sees = np.eye(N, dtype=bool)[-1]
    expected[-1] = 1
    for depth, pattern in enumerate(reversed(stack), 1):
        sees = sees | (sees @ pattern.mask(N))
        expected[(expected == 0) & sees] = depth
    assert layers_from_last(stack, N).tolist() == expected.tolist()


def test_nothing_to_look_through():
    with pytest.raises(ValueError, match="patterns and n_keys must be at least one, got 0 layers and 5 tokens"):
        layers_from_last([], 5)
