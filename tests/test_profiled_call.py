"""What is kept of a profiler's table: each kernel's numbers, by head dim, and shares of its warps' time."""

import csv
import io

import pytest

from benchmarks.profiled_call import KEPT, STALL, read

STALLS = {"barrier": 3.0, "wait": 1.0, "selected": 1.0, "membar": 0.01}
UNITS = {"gpu__time_duration.sum": "ms", "sm__cycles_elapsed.avg.per_second": "Ghz"}


def table(*kernels: str, **units: str) -> str:
    """As ncu writes it, every number of the nth kernel n,000 but for what warps did."""
    names = [f"smsp__average_warps_issue_stalled_{name}_per_issue_active.ratio" for name in STALLS]
    assert all(STALL.fullmatch(name) for name in names)
    own = UNITS | {"launch__shared_mem_per_block": "Kbyte/block"} | {KEPT["milliseconds"]: units.get("time", "ms")}
    text = io.StringIO()
    writer = csv.writer(text, quoting=csv.QUOTE_ALL)
    writer.writerow(["ID", "Kernel Name", *KEPT.values(), *names])
    writer.writerow(["", "", *(own.get(name, "") for name in KEPT.values()), *["inst"] * len(names)])
    for nth, kernel in enumerate(kernels, 1):
        writer.writerow([nth, kernel, *[f"{nth},000"] * len(KEPT), *STALLS.values()])
    return text.getvalue()


def test_kernels_numbers_by_head_dim() -> None:
    kernels = ("forward_kernel", "backward_keys_kernel", "void at::fill_kernel<8>(int)", "forward_kernel")
    found = read(table(*kernels), [64, 128])
    assert [(row["D"], row["kernel"]) for row in found] == [
        (64, "forward_kernel"),
        (64, "backward_keys_kernel"),
        (128, "forward_kernel"),
    ]
    assert [row["milliseconds"] for row in found] == [1000.0, 2000.0, 4000.0]
    assert found[0]["warps' time, %"] == {
        "barrier": 59.9,
        "wait": 20.0,
        "selected": 20.0,
    }  # of 5.01; a trifle is left out


def test_a_table_of_other_calls_or_units_is_refused() -> None:
    with pytest.raises(SystemExit, match="holds 1 calls, for 2 head dims"):
        read(table("forward_kernel"), [64, 128])
    with pytest.raises(SystemExit, match="holds 3 calls, for 2 head dims"):
        read(table(*["forward_kernel"] * 3), [64, 128])
    with pytest.raises(SystemExit, match="begins with backward_rows_kernel"):
        read(table("backward_rows_kernel", "forward_kernel"), [64])
    with pytest.raises(SystemExit, match=r"gpu__time_duration\.sum is in us, not ms"):
        read(table("forward_kernel", time="us"), [64])
