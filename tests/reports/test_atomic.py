"""Files that are whole or not there."""

import os
import signal
import subprocess
import sys
import textwrap
import time

import pytest

from sparse_attn.reports.atomic import check_writable, write_whole


def test_content_arrives_and_nothing_else_is_left(tmp_path):
    target = tmp_path / "report.html"
    write_whole(target, "old")
    assert write_whole(target, "grüße").read_text(encoding="utf-8") == "grüße"
    write_whole(target, b"\x00")
    assert target.read_bytes() == b"\x00"
    assert os.listdir(tmp_path) == ["report.html"]
    mask = os.umask(0)
    os.umask(mask)
    assert target.stat().st_mode & 0o777 == 0o666 & ~mask


def test_a_failed_write_leaves_the_old_content(tmp_path, monkeypatch):
    target = tmp_path / "report.html"
    target.write_text("old")

    def full_disk(handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OSError, match="No space left"):
        write_whole(target, "new")
    assert target.read_text() == "old"
    assert os.listdir(tmp_path) == ["report.html"]


def test_a_process_killed_half_way_leaves_the_old_content(tmp_path):
    target = tmp_path / "report.html"
    target.write_text("old")
    program = textwrap.dedent(f"""
        import os, time
        from sparse_attn.reports.atomic import write_whole
        def wait(handle):
            print("half way", flush=True)
            time.sleep(60)
        os.fsync = wait
        write_whole({str(target)!r}, "new" * 1000)
    """)
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "half way\n"
        process.send_signal(signal.SIGKILL)
    assert target.read_text() == "old"


def test_a_reader_sees_the_old_content_or_the_new_one(tmp_path):
    target = tmp_path / "report.html"
    write_whole(target, "a" * 10_000_000)
    program = f"""
from sparse_attn.reports.atomic import write_whole
for letter in "bcdefghi":
    write_whole({str(target)!r}, letter * 10_000_000)
"""
    with subprocess.Popen([sys.executable, "-c", program]) as process:
        while process.poll() is None:
            content = target.read_bytes()
            assert len(content) == 10_000_000
            assert len(set(content[::1_000_000])) == 1
            time.sleep(0.01)
    assert process.returncode == 0


@pytest.mark.parametrize("write", [check_writable, lambda path: write_whole(path, "x")], ids=["check", "write"])
def test_places_that_cannot_be_written(tmp_path, write):
    with pytest.raises(OSError, match="folder not found"):
        write(tmp_path / "absent" / "report.html")
    with pytest.raises(OSError, match="is a folder"):
        write(tmp_path)
    long = tmp_path / ("x" * 255)
    with pytest.raises(OSError, match="name too long") as raised:
        write(long)
    assert raised.value.filename == str(long)  # not the file aside
    assert not os.listdir(tmp_path)


def test_a_place_that_can_be_written_is_left_alone(tmp_path):
    (tmp_path / "report.html").write_text("old")
    check_writable(tmp_path / "report.html")
    assert (tmp_path / "report.html").read_text() == "old"
    assert os.listdir(tmp_path) == ["report.html"]
