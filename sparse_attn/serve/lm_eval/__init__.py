"""lm-evaluation-harness: a model that it can run through patterns, and this project's tasks as tasks of its own.

Needs the optional extra ``lm-eval``. Importing this package imports nothing of it; `python -m sparse_attn.serve.lm_eval`
is its command with the model `sparse_attn` known, and `TASKS` is the folder for its option ``--include_path``.
"""

from pathlib import Path

TASKS = Path(__file__).parent / "tasks"

__all__ = ["TASKS"]
