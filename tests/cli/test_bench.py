"""`sparse-attn bench` where there is no GPU, its rows and its picture."""

import json
from pathlib import Path

import pytest
import torch

from sparse_attn import parse
from sparse_attn.reports.benchmark_chart import draw_benchmark
from sparse_attn.testing.gpu_benchmark import SHAPES, describe_row, run_benchmark

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
