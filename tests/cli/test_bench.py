"""`sparse-attn bench` where there is no GPU, its rows and its picture."""

import json
from pathlib import Path

import pytest
import torch

from sparse_attn import parse
from sparse_attn.reports.benchmark_chart import draw_benchmark
from sparse_attn.testing.gpu_benchmark import SHAPES, describe_row, merged, run_benchmark

RESULT = Path(__file__).parents[2] / "benchmarks" / "results" / "h100" / "attention.json"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU to time")
def test_without_a_gpu_it_says_so_and_writes_nothing(run, tmp_path):
    done = run("bench", "--out", tmp_path / "out")
    assert done.exit_code == 2
    assert "there is no CUDA device" in done.stderr
    assert not (tmp_path / "out").exists()


def test_an_unknown_shape_is_named(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(ValueError, match=r"only must begin one of window\(2048\) 1K D128, .*; got nonsense"):
        next(run_benchmark(["nonsense"]))


def test_pairs_count_kept_keys_whole_random_blocks_and_extra_keys():
    by_name = {shape.name: shape for shape in SHAPES}
    window = parse("window(2048)").pairs(32 << 10)
    assert by_name["window(2048) | anchors(64) 32K D128"].pairs == window + 64 * (32 << 10)
    union = by_name["window(1024) | sinks(4) | strided(256) | random(3) 128K D128"]
    beside = parse("window(1024) | sinks(4) | strided(256)").pairs(128 << 10)
    assert union.pairs == beside + 3 * 64 * (128 << 10)


def test_the_committed_result_is_described_and_drawn(tmp_path):
    result = json.loads(RESULT.read_text())
    row = next(
        row for row in result["rows"] if row["pattern"] == "window(2048)" and row["T"] == 32 << 10 and row["causal"]
    )
    flops = 4 * row["Hq"] * row["D"] * parse("window(2048)").pairs(32 << 10)
    rate = flops / row["times"]["sparse-attn"]["forward"][0] / 1e9
    assert f"({rate:.0f} TFLOP/s)" in describe_row(row)
    assert draw_benchmark(result, tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")
    some = {**result, "rows": [row for row in result["rows"] if row["pattern"] == "full()"]}
    assert draw_benchmark(some, tmp_path / "one.png").stat().st_size > 0


def one_row(pattern, times, date, T=32 << 10):
    row = {"pattern": pattern, "T": T, "Hq": 32, "Hkv": 8, "D": 128, "causal": True, "times": times}
    return row | {"dates": dict.fromkeys(times, date)}


def test_some_shapes_are_put_among_those_of_an_earlier_run():
    before = json.loads(RESULT.read_text())
    now = before | {
        "date": "2031-01-01",
        "rows": [one_row("window(2048)", {"sparse-attn": {"forward": [1, 1, 1]}}, "2031-01-01")],
    }
    rows = merged(before, now)["rows"]
    assert [(row["pattern"], row["T"], row["D"]) for row in rows] == [
        (row["pattern"], row["T"], row["D"]) for row in before["rows"]
    ]
    own = next(row for row in rows if row["times"]["sparse-attn"]["forward"] == [1, 1, 1])
    assert (own["pattern"], own["T"], own["D"]) == ("window(2048)", 32 << 10, 128)
    assert own["dates"]["sparse-attn"] == "2031-01-01"
    assert own["dates"]["FlexAttention"] == before["date"]  # not timed again: as it was
    assert sum(row["dates"]["sparse-attn"] == "2031-01-01" for row in rows) == 1


def test_rows_of_another_gpu_or_other_versions_are_not_kept():
    before = json.loads(RESULT.read_text())
    row = one_row("full()", {"sparse-attn": {"forward": [1, 1, 1]}}, "2031-01-01")
    for other in ({"gpu": "Another"}, {"versions": {"torch": "9.9"}}):
        assert merged(before, before | other | {"rows": [row]})["rows"] == [row]


def test_a_run_of_one_shape_leaves_the_others_in_the_file(run, tmp_path, monkeypatch):
    before = json.loads(RESULT.read_text())
    (tmp_path / "h100").mkdir()
    (tmp_path / "h100" / "attention.json").write_text(json.dumps(before))
    new = next(row for row in before["rows"] if row["pattern"] == "full()")
    peers = set(new["times"])
    assert len(peers) > 1
    new = new | {
        "times": {"sparse-attn": {"forward": [1.0, 1.0, 1.0], "backward": [2.0, 2.0, 2.0]}},
        "dates": {"sparse-attn": "x"},
    }
    found = iter([before | {"rows": [new]}])
    monkeypatch.setattr("sparse_attn.testing.gpu_benchmark.run_benchmark", lambda only, *, peers: found)
    done = run("bench", "--out", tmp_path, "--only", "full")
    assert done.exit_code == 0, done.stderr
    rows = json.loads((tmp_path / "h100" / "attention.json").read_text())["rows"]
    assert len(rows) == len(before["rows"])
    assert set(rows[-1]["times"]) == peers
    assert rows[-1]["times"]["sparse-attn"]["forward"] == [1.0, 1.0, 1.0]
