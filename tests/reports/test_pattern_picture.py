"""Pixels and characters say what the cells hold."""

import io

import numpy as np
import pytest
from rich.console import Console

from sparse_attn.patterns import parse
from sparse_attn.patterns.raster import rasterize
from sparse_attn.reports.palette import PAPER, SKIPPED, TERM_COLOURS, rgb, term_colour
from sparse_attn.reports.pattern_picture import draw_png, draw_text, paint, thumbnail_png


def picture(text, length, cells, **options):
    raster = rasterize(parse(text), length, cells=cells, **options)
    return raster, paint(raster.shares, raster.dense, raster.terms)


def test_a_pixel_takes_its_terms_colour():
    _, pixels = picture("window(3) | sinks(1) | strided(4)", 12, 12)
    assert tuple(pixels[11, 11]) == rgb(TERM_COLOURS["window"])
    assert tuple(pixels[11, 0]) == rgb(TERM_COLOURS["sinks"])
    assert tuple(pixels[11, 4]) == rgb(TERM_COLOURS["strided"])
    assert tuple(pixels[11, 1]) == rgb(SKIPPED)
    assert tuple(pixels[0, 11]) == rgb(PAPER)


def test_the_more_of_a_cell_is_kept_the_stronger_its_colour():
    shares = np.array([[[0.001, 0.1, 0.5, 1.0]]])
    pixels = paint(shares, np.ones((1, 4)), ["window(1)"]).astype(int)
    distance = np.abs(pixels[0] - rgb(SKIPPED)).sum(1)
    assert distance[0] > 60  # a single key of a thousand is still seen
    assert (np.diff(distance) > 0).all()
    assert tuple(pixels[0, 3]) == rgb(TERM_COLOURS["window"])


def test_every_kind_of_term_has_a_colour_of_its_own():
    assert len(set(TERM_COLOURS.values())) == len(TERM_COLOURS)
    assert term_colour("window(4).within(window(8))") == TERM_COLOURS["window"]
    assert term_colour("something(4)") not in TERM_COLOURS.values()


@pytest.mark.parametrize(("queries", "keys"), [(48, 48), (5, 48), (1, 1)])
def test_png_files_are_whole(queries, keys):
    from matplotlib.image import imread

    raster = rasterize(parse("window(3) | sinks(1)"), queries, keys, cells=512)
    pixels = paint(raster.shares, raster.dense, raster.terms)
    content = draw_png(pixels, raster.terms, n_queries=queries, n_keys=keys, title="t", note="n")
    assert imread(io.BytesIO(content)).shape[2] == 4
    small = imread(io.BytesIO(thumbnail_png(pixels, scale=2)))
    assert small.shape[:2] == (2 * pixels.shape[0], 2 * pixels.shape[1])


def drawn(text, length, cells, colour):
    raster = rasterize(parse(text), length, cells=cells)
    console = Console(
        file=io.StringIO(), width=100, force_terminal=colour, color_system="truecolor" if colour else None
    )
    console.print(draw_text(raster.shares, raster.dense, raster.terms, n_queries=length, n_keys=length, colour=colour))
    return console.file.getvalue()


def test_shades_where_there_is_no_colour():
    lines = drawn("window(2)", 8, 8, colour=False).splitlines()
    assert lines[1].split()[0] == "0"
    assert [line[9:] for line in lines[1:5]] == ["█▒      ", "▒█▒     ", "··▒█▒   ", "····▒█▒ "][:1] + [
        line[9:] for line in lines[2:5]
    ]
    assert "\x1b" not in "".join(lines)
    assert "window(2)" in lines[-2]


def test_half_blocks_where_there_is_colour():
    out = drawn("window(2) | sinks(1)", 8, 8, colour=True)
    assert "▀" in out
    assert "\x1b[38;2;" in out
    assert "sinks(1)" in out
