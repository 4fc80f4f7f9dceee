"""Every kernel compiles for GPUs that are not there, and fits their shared memory."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "compile_kernels.py"


def compile_for(*options: str) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = str(SCRIPT.parents[1])
    done = subprocess.run([sys.executable, str(SCRIPT), *options], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


WALKS = ("forward", "backward_keys", "backward_queries")
REST = ("backward_rows", "backward_columns", "column_sums", "backward_extra")
CHOSEN = (
    "settle",
    "select",
    "merge",
    "mark",
    "list",
    "forward_tiles",
    "forward_blocks",
    "merge_slots",
    "backward_blocks",
)


def test_the_usual_shape_on_ampere_and_hopper() -> None:
    usual = ("--head-dims", "128", "--dtypes", "bf16", "--jobs", "2")
    compile_for("--capabilities", "8.6", "9.0", "--parts", "union", "--kernels", *WALKS, *REST, *usual)
    compile_for("--capabilities", "9.0", "--parts", "dilated", "--kernels", *WALKS, *usual)
    compile_for("--capabilities", "9.0", "--parts", "window", "--kernels", "forward_tiles", "backward_blocks", *usual)


@pytest.mark.slow
def test_chosen_blocks_on_every_generation() -> None:
    usual = ("--head-dims", "128", "--dtypes", "bf16", "--packed", "--jobs", "2")
    compile_for("--capabilities", "8.0", "9.0", "10.0", "--kernels", *CHOSEN, *usual)


def test_anchors_on_hopper() -> None:
    anchors = ("pool", "scan", "backward_scan", "backward_pool")
    compile_for("--capabilities", "9.0", "--head-dims", "128", "--dtypes", "bf16", "--kernels", *anchors)


def test_the_usual_shape_on_hopper_in_gluon() -> None:
    kernels = ("hopper_forward", "hopper_backward_keys", "hopper_backward_columns")
    usual = ("--head-dims", "128", "--dtypes", "bf16", "--parts", "union")
    compile_for("--capabilities", "9.0", "--kernels", *kernels, *usual)


@pytest.mark.slow
def test_every_shape_on_every_gpu() -> None:
    compile_for("--packed")
    wide = ("hopper_backward_keys_wide", "hopper_backward_values_wide")
    columns = ("hopper_backward_columns", "hopper_backward_columns_apart")
    kernels = (*(f"hopper_{name}" for name in WALKS), *columns, *wide)
    compile_for("--capabilities", "9.0", "--dtypes", "fp16", "--packed", "--kernels", *kernels)
