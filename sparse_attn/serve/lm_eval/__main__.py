"""lm-evaluation-harness's own command line, with the model `sparse_attn` known: python -m sparse_attn.serve.lm_eval"""

from __future__ import annotations

import sys


def main() -> None:
    """Register the model, then hand over to lm-evaluation-harness."""
    try:
        from lm_eval.__main__ import cli_evaluate
    except ImportError:
        print("error: lm-evaluation-harness is not installed; run: pip install 'sparse-attn[lm-eval]'", file=sys.stderr)
        raise SystemExit(2) from None
    from . import model  # noqa: F401  registers itself

    cli_evaluate()


if __name__ == "__main__":
    main()
