"""Pieces of text and bins of positions."""

import pytest

from sparse_attn.evals.corpus import Corpus
from sparse_attn.evals.tasks.perplexity import position_bins, text_piece

from ..sides import Letters

CORPUS = Corpus(Letters(), [f"Paragraph {number} of a long story." for number in range(50)])


@pytest.mark.parametrize("length", [128, 500, 4096, 100_000])
def test_bins_cover_every_position_but_the_first_once(length):
    covered = [position for part in position_bins(length) for position in part]
    assert covered == list(range(1, length))


def test_a_piece_is_the_text_itself_from_some_paragraph_on():
    pieces = [text_piece(CORPUS, 700, number) for number in range(5)]
    whole = "\n\n".join(CORPUS.text * 2)
    for piece in pieces:
        assert len(piece.tokens) == 700
        assert Letters().text(piece.tokens) in whole
    assert len({piece.tokens for piece in pieces}) > 1
    assert text_piece(CORPUS, 700, 3) == pieces[3]


def test_what_cannot_be_cut_is_refused():
    with pytest.raises(ValueError, match="length of perplexity must be at least 128, got 100"):
        text_piece(CORPUS, 100, 0)
    with pytest.raises(ValueError, match="the text has 1,"):
        text_piece(CORPUS, 5000, 0)
