"""Lanes: the KV heads that are computed together, one lane independent of every other.

The operations of a tile are too short to be split among threads: each would end in a wait for the slowest. So a worker
runs whole row blocks of a lane on one thread, and lanes are what runs in parallel. A lane's row blocks run in the
schedule's order whatever the number of threads, so that sums do not depend on who came first.
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice, zip_longest

import torch
from torch import Tensor

from .scratch import Scratch
from .steps import Work, works
from .tiles import Assignment

CHUNK = 16  # row blocks that are handed to a worker at once; their masks are in memory together
FEW_ROWS = 32  # fewer query rows than this are not worth starting threads for
TILE_ROWS = 256  # rows of logits (query rows x query heads) below which KV heads share a tile


@dataclass(frozen=True)
class Lane:
    """Some KV heads of one batch example."""

    batch: int
    heads: slice

    def of(self, tensor: Tensor) -> Tensor:
        """`[B, N, Hkv, ...]` -> this lane's `[L, N, ...]`, a view."""
        return tensor[self.batch, :, self.heads].transpose(0, 1)


Task = Callable[[Lane, Sequence[Work], Scratch], None]


def run_lanes(task: Task, assignments: Sequence[Assignment], q: Tensor, kv_heads: int, dtype: torch.dtype) -> None:
    """Run `task` over all row blocks of all lanes, on as many threads as torch may use."""
    plans = [_lanes(assignment, q, kv_heads) for assignment in assignments]
    count = sum(map(len, plans))
    threads = torch.get_num_threads()
    workers = min(threads, count) if q.shape[1] >= FEW_ROWS else 1
    chunks = _chunks(assignments, plans, q, kv_heads, dtype)
    if workers <= 1:
        scratch = Scratch(dtype)
        with torch.no_grad(), torch.autocast("cpu", enabled=False):
            for lane, chunk in chunks:
                task(lane, chunk, scratch)
        return
    try:
        with ThreadPoolExecutor(workers, "sparse-attn", _use_threads, (threads // workers,)) as pool:
            _run_in(pool, workers, task, chunks, dtype)
    finally:
        torch.set_num_threads(threads)  # the workers' setting reached the default of threads yet to start


def _lanes(assignment: Assignment, q: Tensor, kv_heads: int) -> list[Lane]:
    batch, rows, query_heads, _ = q.shape
    together = max(1, TILE_ROWS // (max(1, rows) * (query_heads // kv_heads)))
    first, last, _ = assignment.heads.indices(kv_heads)
    starts = range(first, last, together)
    return [
        Lane(example, slice(start, min(last, start + together)))
        for example in range(*assignment.batch.indices(batch))
        for start in starts
    ]


def _chunks(
    assignments: Sequence[Assignment], plans: Sequence[Sequence[Lane]], q: Tensor, kv_heads: int, dtype: torch.dtype
) -> Iterator[tuple[Lane, Sequence[Work]]]:
    """Chunks of row blocks, all lanes abreast: a schedule is walked once, however many lanes follow it."""
    group = q.shape[2] // kv_heads
    streams = []
    for assignment, lanes in zip(assignments, plans, strict=True):
        together = max((lane.heads.stop - lane.heads.start for lane in lanes), default=1)
        stream = works(assignment.schedule, q.shape[1], group * together, q.shape[3] * together, dtype)
        streams.append(_batched(stream))
    for abreast in zip_longest(*streams):
        for lanes, chunk in zip(plans, abreast, strict=True):
            if chunk:
                for lane in lanes:
                    yield lane, chunk


def _batched(stream: Iterator[Work]) -> Iterator[list[Work]]:
    while chunk := list(islice(stream, CHUNK)):
        yield chunk


def _run_in(
    pool: ThreadPoolExecutor,
    workers: int,
    task: Task,
    chunks: Iterator[tuple[Lane, Sequence[Work]]],
    dtype: torch.dtype,
) -> None:
    free = [Scratch(dtype) for _ in range(workers)]
    last: dict[tuple[int, int], Future[None]] = {}
    waiting: deque[Future[None]] = deque()
    inference = torch.is_inference_mode_enabled()  # like the two below a setting of a thread

    def run(previous: Future[None] | None, lane: Lane, chunk: Sequence[Work]) -> None:
        if previous is not None:
            previous.result()  # submitted earlier, so it runs or has run: no worker waits for a task in the queue
        scratch = free.pop()
        try:
            with torch.inference_mode(inference), torch.no_grad(), torch.autocast("cpu", enabled=False):
                task(lane, chunk, scratch)
        finally:
            free.append(scratch)

    for lane, chunk in chunks:
        key = (lane.batch, lane.heads.start)
        future = last[key] = pool.submit(run, last.get(key), lane, chunk)
        waiting.append(future)
        if len(waiting) > 2 * workers:
            waiting.popleft().result()
    for future in waiting:
        future.result()


def _use_threads(count: int) -> None:
    torch.set_num_threads(count)
    torch.get_num_threads()  # a thread's first question resets it to the default; asked here, the setting stays
