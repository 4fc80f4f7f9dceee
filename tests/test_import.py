"""`import sparse_attn`, patterns and `show` touch no torch and change nothing in anyone else's packages."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

HEAVY = ["torch", "transformers", "triton"]


def run_python(program: str) -> str:
    """Output of a program in a fresh process; fails with its error text."""
    done = subprocess.run([sys.executable, "-W", "error", "-c", program], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


MODEL = Path(__file__).parent / "planner" / "configs" / "Qwen3.5-35B-A3B.json"


def command(*arguments):
    """A program that runs the command line in its own process."""
    return f"""
import sys
from sparse_attn.cli import main
sys.argv = {["sparse-attn", *map(str, arguments)]}
try:
    main()
except SystemExit as exit:
    assert not exit.code, exit.code
"""


TORCH_FREE = {
    "import": "import sparse_attn",
    "version": "import sparse_attn; assert sparse_attn.__version__",
    "dir": "import sparse_attn; assert 'attention' in dir(sparse_attn)",
    "patterns": """
from sparse_attn import Sinks, Window, parse
pattern = Window(64) | Sinks(4)
assert parse(repr(pattern)) == pattern
assert pattern.mask(100).sum() == pattern.pairs(100)
pattern.layout(1000)
pattern.reach(4)
""",
    "show": command("show", "window(64) | sinks(4)", "--length", "512", "--json"),
    "inspect": command("inspect", MODEL),
    "inspect as JSON and a page": command("inspect", MODEL, "--json", "--html", "page.html"),
    "plan": command("plan", MODEL, "--gpu", "a100-80gb", "--context", "256k"),
    "plan as a page": command("plan", MODEL, MODEL, "--html", "page.html"),
    "tasks": """
from sparse_attn.evals import plan, runner, summary
from sparse_attn.evals.tasks import TASKS, token_level
assert "needle" in TASKS
""",
    "eval's help": command("eval", "--help"),
    "bench's help": command("bench", "--help"),
    "help": command("--help"),
}


@pytest.mark.parametrize("program", TORCH_FREE.values(), ids=TORCH_FREE.keys())
def test_torch_is_not_touched(program, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[1]))
    check = f"\nimport sys\nloaded = [name for name in {HEAVY} if name in sys.modules]\nassert not loaded, loaded\n"
    run_python(program + check)


@pytest.mark.parametrize("program", ["inspect", "plan"])
def test_answers_within_a_second(program):
    """Of processor time, since other work may share the machine; a machine that is slow at all gets more of it. Of three tries one
    must: other work slows a processor down, and nothing makes it faster."""
    tries = (processor_seconds(TORCH_FREE[program]) for _ in range(3))
    assert any(
        spent < 1.0 or spent < 3 * processor_seconds("import numpy, rich.console, typer.main") for spent in tries
    )


def processor_seconds(program):
    before = os.times()
    run_python(program)
    after = os.times()
    return after.children_user + after.children_system - before.children_user - before.children_system


@pytest.mark.parametrize("name", HEAVY)
def test_works_where_torch_cannot_be_imported(name):
    run_python(
        f"import sys\nsys.modules[{name!r}] = None\n" + TORCH_FREE["patterns"] + TORCH_FREE["show"] + TORCH_FREE["plan"]
    )


def test_every_export_resolves():
    run_python("""
import sparse_attn
for name in sparse_attn.__all__:
    assert getattr(sparse_attn, name) is not None, name
""")


def test_an_unknown_name_is_an_attribute_error():
    run_python("""
import sparse_attn
try:
    sparse_attn.atention
except AttributeError as error:
    assert "atention" in str(error)
else:
    raise SystemExit("no error")
""")


def test_importing_everything_registers_nothing():
    """Registration with transformers is an explicit call, never an import."""
    run_python("""
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
before = sorted(ALL_ATTENTION_FUNCTIONS), sorted(ALL_MASK_ATTENTION_FUNCTIONS)
import sparse_attn
for name in sparse_attn.__all__:
    getattr(sparse_attn, name)
import sparse_attn.hf
import sparse_attn.cli
assert (sorted(ALL_ATTENTION_FUNCTIONS), sorted(ALL_MASK_ATTENTION_FUNCTIONS)) == before
""")
