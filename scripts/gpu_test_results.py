"""Writes down what the tests found on this machine's GPU: `make test-gpu` runs it, and its file is committed.

    PYTHONPATH=. python scripts/gpu_test_results.py build/gpu-tests.xml --out benchmarks/results [--commit abc123]

From pytest's reports (`--junitxml`, `-o junit_family=xunit1`, several if a run was cut in parts) to `<gpu>/tests.json`: GPU, date,
commit, versions, for each file how many tests passed, failed and were skipped and how long they took, and the names of those
that failed. A tree with changes that are not committed has "+ changes" behind its commit.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from xml.etree import ElementTree


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("reports", nargs="+", type=Path, help="pytest's --junitxml, of family xunit1")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"), help="folder for <gpu>/tests.json")
    parser.add_argument("--commit", help="what was tested, where there is no git to ask")
    options = parser.parse_args(arguments)
    try:
        found = counted(ElementTree.parse(path).getroot() for path in options.reports)
    except (OSError, ElementTree.ParseError, ValueError) as error:
        sys.exit(f"gpu_test_results: {error}")
    from sparse_attn.testing.gpu_benchmark import folder_of

    result = about(options.commit) | found
    folder = options.out / folder_of(result["gpu"])
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tests.json").write_text(json.dumps(result, indent=1) + "\n")
    print(f"written: {folder / 'tests.json'}: {result['passed']} passed, {result['failed']} failed")


def counted(reports: Iterable[ElementTree.Element]) -> dict[str, Any]:
    """Numbers of tests and seconds, in all and by file, and what failed."""
    files: dict[str, dict[str, Any]] = {}
    failed, seen = [], set()
    for report in reports:
        for case in report.iter("testcase"):
            file, name = case.get("file"), f"{case.get('classname')}::{case.get('name')}"
            if file is None:
                raise ValueError(f"{name} names no file: ask pytest for -o junit_family=xunit1")
            if name in seen:
                raise ValueError(f"{name} is reported twice")
            seen.add(name)
            outcome = outcome_of(case)
            own = files.setdefault(file, {"passed": 0, "failed": 0, "skipped": 0, "seconds": 0.0})
            own[outcome] += 1
            own["seconds"] = round(own["seconds"] + float(case.get("time", 0)), 1)
            if outcome == "failed":
                failed.append(name)
    totals = {
        key: round(sum(own[key] for own in files.values()), 1) for key in ("passed", "failed", "skipped", "seconds")
    }
    return totals | {"files": dict(sorted(files.items()))} | ({"failures": sorted(failed)} if failed else {})


def outcome_of(case: ElementTree.Element) -> str:
    """An error of set-up or tear-down counts as a failure."""
    kinds = {part.tag for part in case}
    if kinds & {"failure", "error"}:
        return "failed"
    return "skipped" if "skipped" in kinds else "passed"


def about(commit: str | None) -> dict[str, Any]:
    import torch
    import triton

    if not torch.cuda.is_available():
        sys.exit("gpu_test_results: this machine has no CUDA device, whose name the results go by")
    return {
        "gpu": torch.cuda.get_device_name(),
        "date": datetime.now(UTC).date().isoformat(),
        "commit": commit or asked_of_git(),
        "versions": {"torch": torch.__version__, "triton": triton.__version__},
    }


def asked_of_git() -> str:
    def git(*arguments: str) -> str:
        return subprocess.run(["git", *arguments], capture_output=True, text=True, check=True).stdout.strip()

    try:
        changed = git("status", "--porcelain", "--untracked-files=no")
        return git("rev-parse", "HEAD") + (" + changes" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        sys.exit("gpu_test_results: there is no git here to ask which commit was tested: name it by --commit")


if __name__ == "__main__":
    main()
