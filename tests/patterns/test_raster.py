"""The picture's cells against the dense mask."""

import time

import numpy as np
import pytest

from sparse_attn.patterns import Global, Random, Sinks, Strided, Window, parse
from sparse_attn.patterns.raster import rasterize

PATTERN = Window(20) | Sinks(3) | Strided(16) | Global((50,)) | Random(1, block=8)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize(("queries", "keys"), [(96, 96), (40, 130), (1, 77), (5, 5), (1, 1)])
def test_cells_hold_the_masks_share(queries, keys, causal):
    raster = rasterize(PATTERN, queries, keys, cells=8, causal=causal)
    mask = PATTERN.mask(queries, keys, causal=causal)
    rows, columns = raster.dense.shape
    assert raster.every_query
    for row in range(rows):
        for column in range(columns):
            cell = mask[
                row * queries // rows : (row + 1) * queries // rows,
                column * keys // columns : (column + 1) * keys // columns,
            ]
            assert raster.shares[:, row, column].sum() == pytest.approx(cell.mean())
            assert raster.shares[:, row, column].sum() <= raster.dense[row, column] + 1e-12


def test_a_pair_belongs_to_the_first_term_that_keeps_it():
    both = rasterize(Window(4) | Window(8), 8, cells=1)
    assert both.shares[0].sum() == rasterize(Window(4), 8, cells=1).shares.sum()


def test_a_million_tokens_are_sampled_quickly():
    start = time.perf_counter()
    raster = rasterize(parse("window(65536) | sinks(4) | strided(1024)"), 1 << 20)
    assert time.perf_counter() - start < 15
    assert not raster.every_query
    window, sinks, strided = raster.shares
    assert np.all(np.diagonal(window) > 0.3)
    assert np.all(sinks[8:, 0] > 0)
    assert not sinks[:, 1:].any()
    assert strided[-1, 5] == pytest.approx(1 / 1024)


@pytest.mark.parametrize(("queries", "cells"), [(0, 4), (4, 0)])
def test_nothing_to_draw_is_refused(queries, cells):
    with pytest.raises(ValueError, match="nothing to draw"):
        rasterize(PATTERN, queries, cells=cells)
