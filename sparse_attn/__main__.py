"""`python -m sparse_attn`: the same as the command `sparse-attn`."""

from .cli import main

main()
