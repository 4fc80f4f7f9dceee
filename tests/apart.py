"""Programs in a process of their own: the checks of signatures that tests run under are Python that no compiler reads."""

import os
import subprocess
import sys
from pathlib import Path


def run_apart(program: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    return subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program], env=environment, capture_output=True, text=True
    )
