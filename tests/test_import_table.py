"""The import rules bite: a package that breaks them in each way is reported, with the line."""

import sys
from pathlib import Path

import grimp
import pytest

from scripts.import_table import ImportTable, Row

FILES = {
    "__init__.py": "",
    "_version.py": "",
    "patterns/__init__.py": "import math\nimport numpy\n",
    "ops/__init__.py": "from shop import _version, patterns\n",
    "cli/__init__.py": "import shop\nimport torch\nimport shop.ops\n",
}
TABLE = ["patterns: ; numpy", "ops: patterns; torch", "cli: *; *", "later: ops"]


@pytest.fixture
def broken_lines(tmp_path, monkeypatch, request):
    """What the contract reports for the example package with one file changed."""

    def report(changes: dict[str, str]) -> list[str]:
        for name, text in (FILES | changes).items():
            path = tmp_path / "shop" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        monkeypatch.syspath_prepend(tmp_path)
        graph = grimp.build_graph("shop", include_external_packages=True, cache_dir=None)
        contract = ImportTable("rules", {}, {"root": "shop", "table": TABLE})
        return contract.check(graph, verbose=False).metadata["broken"]

    yield report
    for name in [name for name in sys.modules if name.partition(".")[0] == "shop"]:
        del sys.modules[name]


def test_a_package_that_keeps_the_rules(broken_lines):
    assert broken_lines({}) == []


BREACHES = {
    "upwards": ({"patterns/a.py": "import shop.ops\n"}, "shop.patterns.a imports shop.ops (line 1)"),
    "lazily": ({"patterns/a.py": "def f():\n    from shop import ops\n"}, "shop.patterns.a imports shop.ops (line 2)"),
    "third-party": ({"patterns/a.py": "import torch.nn\n"}, "shop.patterns.a imports torch (line 1)"),
    "front-door": ({"ops/a.py": "import shop\n"}, "shop.ops.a imports shop (line 1)"),
    "unlisted": ({"junk.py": ""}, "shop.junk has no line in the import table"),
}


@pytest.mark.parametrize(("changes", "message"), BREACHES.values(), ids=BREACHES.keys())
def test_each_breach_is_reported(broken_lines, changes, message):
    (line,) = broken_lines(changes)
    assert line.startswith(message)


def test_a_row_without_a_colon_is_refused():
    with pytest.raises(ValueError, match="'patterns' has no colon"):
        Row.parse("patterns")


def test_architecture_shows_the_same_table():
    """The rules that are enforced are the rules that a reader is shown."""
    import tomllib

    root = Path(__file__).parents[1]
    contracts = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    shown = (root / "ARCHITECTURE.md").read_text()
    for line in contracts[0]["table"]:
        row = Row.parse(line)
        (described,) = (text for text in shown.splitlines() if text.startswith(f"| `{row.room}/`"))
        may_import = described.split("|")[3]
        assert all(room in may_import for room in row.rooms - {"*"}), described
