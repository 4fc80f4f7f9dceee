"""Small causal language models, built from a list of mixers: what is trained from scratch to compare attention patterns."""

from .language_model import Block, LanguageModel
from .short_convolution import GatedConvolution, ShortConvolution

__all__ = ["Block", "GatedConvolution", "LanguageModel", "ShortConvolution"]
