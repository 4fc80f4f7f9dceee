"""Every Python block of the README runs by itself, as a reader would paste it."""

import os
import re
import subprocess
import sys
from pathlib import Path

from scripts import readme_pictures, readme_tables

README = Path(__file__).parents[1] / "README.md"


def test_python_blocks_run(tmp_path):
    blocks = re.findall(r"^```python\n(.*?)^```", README.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    assert blocks, "the README shows no Python"
    done = subprocess.run(
        [sys.executable, "-c", "import sys\nfor block in sys.argv[1:]:\n    exec(block, {})", *blocks],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(README.parent)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr


def test_named_files_exist():
    """A link to a file of the repository leads somewhere."""
    links = re.findall(r"\]\((?!https?:|#)([^)#]+)", README.read_text(encoding="utf-8"))
    missing = [link for link in links if not (README.parent / link).exists()]
    assert not missing


def test_pictures_show_what_the_patterns_keep():
    """`python scripts/readme_pictures.py` draws them anew."""
    for name, text in readme_pictures.pictures().items():
        assert (readme_pictures.FOLDER / name).read_text(encoding="utf-8") == text, name


def test_figures_are_those_of_the_result_files() -> None:
    """`python scripts/readme_tables.py` writes them anew."""
    readme = readme_tables.README.read_text(encoding="utf-8")
    assert readme_tables.with_tables(readme) == readme
