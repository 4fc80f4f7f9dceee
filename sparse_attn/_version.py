"""The one place where the version stands: the build reads this file, and ``sparse_attn.__version__`` repeats it."""

__version__ = "0.1.0"
