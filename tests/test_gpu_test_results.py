"""What `make test-gpu` writes down, from pytest's own reports of tests that pass, fail, are skipped or break."""

import json
import os
import subprocess
import sys
from xml.etree import ElementTree

import pytest

from scripts import gpu_test_results

TESTS = """
import pytest

@pytest.fixture
def broken():
    yield
    raise RuntimeError("in tear-down")

@pytest.mark.parametrize("n", [1, 2])
def test_passes(n): pass

class TestMore:
    def test_fails(self): assert 0

@pytest.mark.skip
def test_skipped(): pass

@pytest.mark.xfail
def test_fails_as_expected(): assert 0

def test_breaks_afterwards(broken): pass
"""


def report_of(folder, family="xunit1"):
    """Of two files, by a pytest without plugins."""
    (folder / "pytest.ini").write_text("[pytest]\n")
    (folder / "test_one.py").write_text(TESTS)
    (folder / "test_two.py").write_text("def test_passes(): pass\n")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-o", f"junit_family={family}"]
    environment = os.environ | {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    subprocess.run([*command, "--junitxml=report.xml"], cwd=folder, env=environment, capture_output=True, check=False)
    return ElementTree.parse(folder / "report.xml").getroot()


def test_numbers_by_file_and_names_of_failures(tmp_path):
    found = gpu_test_results.counted([report_of(tmp_path)])
    files = {name: (own["passed"], own["failed"], own["skipped"]) for name, own in found["files"].items()}
    assert files == {"test_one.py": (2, 2, 2), "test_two.py": (1, 0, 0)}
    assert (found["passed"], found["failed"], found["skipped"]) == (3, 2, 2)
    assert found["failures"] == ["test_one.TestMore::test_fails", "test_one::test_breaks_afterwards"]


def test_two_reports_of_one_test_are_refused(tmp_path):
    report = report_of(tmp_path)
    with pytest.raises(ValueError, match="is reported twice"):
        gpu_test_results.counted([report, report])


def test_a_report_without_files_is_refused(tmp_path):
    with pytest.raises(ValueError, match="junit_family=xunit1"):
        gpu_test_results.counted([report_of(tmp_path, "xunit2")])


def test_the_file_of_a_gpu(tmp_path, monkeypatch):
    report_of(tmp_path)
    monkeypatch.setattr(gpu_test_results, "about", lambda commit: {"gpu": "NVIDIA H100 80GB HBM3", "commit": commit})
    gpu_test_results.main([str(tmp_path / "report.xml"), "--out", str(tmp_path), "--commit", "abc123"])
    written = json.loads((tmp_path / "h100" / "tests.json").read_text())
    assert written["commit"] == "abc123"
    assert written["passed"] == 3


def test_a_missing_report_is_one_sentence(tmp_path):
    with pytest.raises(SystemExit, match=r"No such file .*absent\.xml"):
        gpu_test_results.main([str(tmp_path / "absent.xml")])
