"""Whatever is wrong gets one sentence on stderr and exit status 2: nothing on stdout, no traceback, nothing written."""

import os
import signal

import pytest

CASES = {
    "unknown term": (["show", "windw(3)"], "unknown term 'windw'"),
    "no pattern text": (["show", ""], "cannot be read"),
    "half a pattern": (["show", "window(3) |"], "cannot be read"),
    "negative window": (["show", "window(-1)"], "left must be a positive integer, got -1"),
    "zero window": (["show", "window(0)"], "left must be a positive integer, got 0"),
    "no argument": (["show"], "Missing argument"),
    "zero length": (["show", "window(3)", "--length", "0"], "'--length': expected a whole number from 1"),
    "negative length": (["show", "window(3)", "--length", "-5"], "got -5"),
    "length in words": (["show", "window(3)", "--length", "many"], "got 'many'"),
    "endless length": (["show", "window(3)", "--length", "10000000000000"], "got 10000000000000"),
    "no layers": (["show", "window(3)", "--layers", "0"], "'--layers': expected a whole number"),
    "too many queries": (
        ["show", "window(3)", "--length", "10", "--queries", "11"],
        "--queries must be at most --length 10",
    ),
    "not a picture": (["show", "window(3)", "--out", "picture.txt"], "--out must name a PNG file"),
    "no such folder": (["show", "window(3)", "--out", "absent/picture.png"], "absent: folder not found"),
    "unknown option": (["show", "window(3)", "--colour"], "No such option"),
    "unknown command": (["shew"], "No such command 'shew'"),
    "nothing to read": (["generate"], "nothing to read"),
    "empty prompt": (["generate", "--prompt", "  "], "--prompt is empty"),
    "missing file": (["generate", "--prompt-file", "absent.txt"], "absent.txt: No such file"),
    "a folder": (["generate", "--prompt-file", "."], "Is a directory"),
    "empty file": (["generate", "--prompt-file", "empty.txt"], "empty.txt is empty"),
    "blank file": (["generate", "--prompt-file", "blank.txt"], "blank.txt is empty"),
    "binary file": (["generate", "--prompt-file", "binary.txt"], "binary.txt is not UTF-8 text (byte 2"),
    "bad pattern": (["generate", "--prompt", "x", "--pattern", "window(0)"], "left must be a positive integer"),
    "layers in words": (["generate", "--prompt", "x", "--pattern", "full()", "--full-layers", "a,b"], "got 'a,b'"),
    "layers for nothing": (["generate", "--prompt", "x", "--full-layers", "1"], "no --pattern was given"),
    "negative layer": (
        ["generate", "--prompt", "x", "--pattern", "full()", "--full-layers=-1"],
        "must not be negative",
    ),
    "no new tokens": (["generate", "--prompt", "x", "--max-new-tokens", "0"], "expected a whole number of at least 1"),
    "freezing": (
        ["generate", "--prompt", "x", "--temperature", "-1"],
        "expected 0, or a number of at least 0.001, got '-1'",
    ),
    "hot beyond number": (["generate", "--prompt", "x", "--temperature", "nan"], "got 'nan'"),
    "missing model": (["generate", "--prompt", "x", "--model", "./absent"], "'./absent' not found"),
    "corrupt model": (["generate", "--prompt", "x", "--model", "broken.gguf"], "broken.gguf"),
    "report in no folder": (["demo", "--out", "absent/report.html"], "absent: folder not found"),
    "report over a folder": (["demo", "--out", "."], "is a folder"),
    "unknown task": (["eval", "--tasks", "needle,noodle"], "expected some of needle, multi_key"),
    "lengths in words": (
        ["eval", "--lengths", "1k,long"],
        "expected numbers of tokens such as 1k,2k,4000, got '1k,long'",
    ),
    "no length": (["eval", "--lengths", "0"], "expected numbers of tokens"),
    "margin of all": (["eval", "--fail-if-worse", "100%"], "expected a share above 0% and below 100%"),
    "no such pattern": (["eval", "--pattern", "window(8),windw(3)"], "unknown term 'windw'"),
    "no such place": (["eval", "--place", "start,nowhere"], "expected some of start, middle, end, got 'nowhere'"),
    "no such prompt": (["eval", "--prompt", "loud"], "expected some of plain, verify, got 'loud'"),
    "no samples": (["eval", "--samples", "0"], "expected a whole number from 1"),
    "report of eval in no folder": (["eval", "--html", "absent/report.html"], "absent: folder not found"),
    "results of eval in no folder": (["eval", "--out", "absent/r.jsonl"], "absent: folder not found"),
    "no such text": (["eval", "--text", "absent.txt"], "absent.txt: No such file"),
    "eval of a missing model": (["eval", "--model", "./absent"], "'./absent' not found"),
    "no tokens": (["demo", "--length", "0"], "expected a whole number of at least 1, got 0"),
}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path.parent / "cache"))
    (tmp_path / "empty.txt").touch()
    (tmp_path / "blank.txt").write_text(" \n\n ")
    (tmp_path / "binary.txt").write_bytes(b"ok\xff\xfe\x00")
    (tmp_path / "broken.gguf").write_bytes(b"GGUF" + bytes(20))
    return tmp_path


@pytest.mark.parametrize(("arguments", "sentence"), CASES.values(), ids=CASES.keys())
def test_one_sentence(run, folder, arguments, sentence):
    before = sorted(os.listdir(folder))
    result = run(*arguments)
    assert result.exit_code == 2
    assert result.stdout == ""
    *remarks, said = result.stderr.splitlines()
    assert said.startswith("error: ")
    assert sentence in said
    assert not remarks or remarks[0].startswith("converting")
    assert sorted(os.listdir(folder)) == before


def test_the_traceback_is_there_for_whoever_asks(run):
    with pytest.raises(ValueError, match="unknown term"):
        run("--traceback", "show", "windw(3)")


def test_a_process_ends_the_same_way(fresh):
    with fresh("show", "windw(3)") as process:
        out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (2, "")
    assert err.startswith("error: pattern text 'windw(3)': unknown term 'windw'")
    assert err.count("\n") == 1


def test_ctrl_c_is_quiet(fresh):
    import subprocess
    import time

    with fresh("generate", "--prompt-file", "-", stdin=subprocess.PIPE) as process:
        for _ in range(600):  # until it waits for its text
            time.sleep(0.05)
            if _waits_for_input(process.pid):
                break
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (130, "", "")


def _waits_for_input(pid):
    with open(f"/proc/{pid}/wchan") as wchan, open(f"/proc/{pid}/cmdline") as cmdline:
        return "pipe" in wchan.read() and "sparse_attn" in cmdline.read()


def test_a_reader_that_goes_away_is_no_error(fresh):
    with fresh("show", "window(64)", "--length", "65536") as process:
        process.stdout.close()
        err = process.stderr.read()
        process.wait(timeout=60)
    assert (process.returncode, err) == (1, "")
