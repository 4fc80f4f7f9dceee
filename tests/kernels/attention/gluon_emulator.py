"""Runs Gluon kernels on a CPU, slowly: what Triton's interpreter does not do.

A kernel's Python is executed as it stands, with numpy behind Gluon's language. The partitions of `warp_specialize` are
threads of which one runs at a time; which one is drawn at every barrier, so that a seed is an order of events. Copies land
at a drawn moment after they were asked for, over memory that is NaN until then; products are computed when they are waited
for, from what shared memory holds at that moment: a slot that is given back too early, or read too soon, gives wrong
numbers. Barriers that nobody will complete, and pointers that leave their tensor, raise.

What it cannot show: what the compiler makes of the kernel, warps of one warpgroup that run apart, and a tile that is written
again before the copy engine has stored it.
"""

import random
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FunctionType, ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import torch
from triton.language.core import constexpr
from triton.runtime.interpreter import InterpretedFunction
from triton.runtime.jit import JITFunction

from sparse_attn.kernels.attention.hopper.softmax import SLACK

from .emulated_values import Barrier, Barriers, Descriptor, Pointer, Product, Shared, Value, value


class Deadlock(Exception):
    """All partitions wait for barriers that nobody will complete."""


class Machine:
    """One program: its threads, and the copies that are under way."""

    def __init__(self, draw: random.Random, program: int, programs: int) -> None:
        self.draw, self.program, self.programs = draw, program, programs
        self.turn = threading.Condition()
        self.running = 0
        self.waiting: dict[int, Callable[[], bool]] = {}  # by thread, until when
        self.copies: list[Callable[[], None]] = []
        self.failed: BaseException | None = None
        self.mine = threading.local()  # products that a thread has issued

    def pause(self, until: Callable[[], bool] = lambda: True) -> None:
        """Let another thread, or a copy, come first."""
        me = self.mine.number
        self.waiting[me] = until
        self._next()
        with self.turn:
            self.turn.wait_for(lambda: self.running == me or self.failed is not None)
        if self.failed is not None:
            raise Deadlock from self.failed
        del self.waiting[me]

    def _next(self) -> None:
        """Draw who runs next; copies land now and then, and whenever nobody can run without."""
        ready: list[int] = []
        while True:
            ready = [number for number, until in self.waiting.items() if until()]
            if self.copies and (not ready or self.draw.random() < 0.5):
                self.copies.pop(self.draw.randrange(len(self.copies)))()
            elif ready or not self.waiting:
                break
            else:
                self.fail(Deadlock(f"{len(self.waiting)} partitions wait for barriers that nobody completes"))
                return
        with self.turn:
            self.running = self.draw.choices(ready, [self.speed[number] for number in ready])[0] if ready else -1
            self.turn.notify_all()

    def fail(self, error: BaseException) -> None:
        with self.turn:
            self.failed = self.failed or error
            self.turn.notify_all()

    def run(self, partitions: list[tuple[Callable[..., None], tuple[Any, ...]]]) -> None:
        def work(number: int, code: Callable[..., None], arguments: tuple[Any, ...]) -> None:
            self.mine.number, self.mine.products = number, []
            try:
                with self.turn:
                    self.turn.wait_for(lambda: self.running == number or self.failed is not None)
                del self.waiting[number]
                if self.failed is None:
                    code(*arguments)
                    self._next()
            except BaseException as error:
                self.fail(error)

        threads = [threading.Thread(target=work, args=(n, *part)) for n, part in enumerate(partitions)]
        self.speed = [4.0 ** self.draw.randrange(4) for _ in threads]  # some lag far behind
        self.running = -1
        self.waiting = dict.fromkeys(range(len(threads)), lambda: True)
        for thread in threads:
            thread.start()
        self._next()
        for thread in threads:
            thread.join()
        if self.failed is not None:
            raise self.failed


def _language(machine: Machine) -> dict[str, Any]:
    """Gluon's names, as far as the kernels use them."""

    def load(pointer: Pointer, mask: Any = True, other: Any = 0) -> Value:
        at, mask = np.broadcast_arrays(np.asarray(pointer.at), np.asarray(mask))
        assert ((at >= 0) & (at < pointer.memory.size))[mask].all(), "a load leaves its tensor"
        return value(np.where(mask, pointer.memory[np.where(mask, at, 0)], other))

    def store(pointer: Pointer, tile: Any, mask: Any = True) -> None:
        at, tile, mask = np.broadcast_arrays(np.asarray(pointer.at), np.asarray(tile), np.asarray(mask))
        assert ((at >= 0) & (at < pointer.memory.size))[mask].all(), "a store leaves its tensor"
        pointer.memory[at[mask]] = tile[mask]

    def allocate(dtype: Any, shape: list[int], layout: Any) -> Any:
        if layout == "barrier":
            return Barriers(int(shape[0]))
        return Shared(np.full([int(n) for n in shape], np.nan, dtype=np.float32), dtype)

    def inline(asm: str, constraints: str, args: list[Any], dtype: Any, is_pure: bool, pack: int) -> Value:
        """Assembly by the name in its first line; else a conversion, or a move."""
        name = asm.split("\n")[0]
        if name == "// raised":
            return raised(*map(np.asarray, args))
        if name == "// faded":
            sums, fade, grown = map(np.asarray, args)
            return value(np.where(grown != 0, sums * fade, sums))
        return value(args[0]).to(dtype) if asm.startswith("cvt") else value(args[0])

    def raised(highest: Any, top: Any, scale: Any) -> tuple[Value, ...]:
        """By warps of 16 rows: whether a maximum has grown by much, and where it has the new one."""
        with np.errstate(all="ignore"):
            grown = (highest * scale - top > SLACK).reshape(-1, 16 * highest.shape[1]).any(1)
            row = highest.max(1, keepdims=True) * scale
            new = np.where(row > top + SLACK, row, top)
            fade = np.where(row > top + SLACK, np.exp2(top - new), 1)
        return value(new), value(fade), value(np.repeat(grown, 16)[:, None] + np.zeros_like(top))

    def reduced(function: Any) -> Callable[..., Value]:
        return lambda x, axis=None: value(function(np.asarray(x), axis=axis))

    def plain(function: Any) -> Callable[..., Value]:
        def computed(*arguments: Any) -> Value:
            with np.errstate(all="ignore"):
                return value(function(*map(np.asarray, arguments)))

        return computed

    def copy_in(source: Descriptor, at: list[Any], barrier: Barrier, target: Shared) -> None:
        tile = target.memory.reshape(source.block_type.shape)
        tile[...] = np.nan
        tensor, inside = source.place(at)

        def land() -> None:
            tile[...] = 0.0
            tile[inside] = source.view[tensor]
            barrier.change(0, -source.block_type.nbytes)

        machine.copies.append(land)

    def copy_out(target: Descriptor, at: list[Any], source: Shared) -> None:
        tensor, inside = target.place(at)
        target.view[tensor] = source.memory.reshape(target.block_type.shape)[inside]

    def arrive(barrier: Barrier, pred: Any = True) -> None:
        if pred:
            barrier.change(1, 0)
        machine.pause()

    def init(barrier: Barrier, count: int) -> None:
        barrier.count = barrier.missing = int(count)

    def multiply(a: Any, b: Any, acc: Any, use_acc: bool = True, is_async: bool = False) -> Product:
        machine.mine.products.append(Product(a, b, acc if use_acc else None))
        return machine.mine.products[-1]  # type: ignore[no-any-return]

    def await_products(left: int, deps: tuple[Any, ...]) -> Any:
        machine.pause()
        products = machine.mine.products
        while len(products) > left:
            products.pop(0).finish()
        found = [x.finish() if isinstance(x, Product) and x not in products else x for x in deps]
        return found[0] if len(found) == 1 else tuple(found)

    mbarrier = SimpleNamespace(
        MBarrierLayout=lambda: "barrier",
        init=init,
        arrive=arrive,
        expect=lambda barrier, count: barrier.change(1, count),
        wait=lambda barrier, phase: machine.pause(lambda: barrier.completed & 1 != int(phase)),
    )
    tma = SimpleNamespace(
        async_copy_global_to_shared=copy_in, async_copy_shared_to_global=copy_out, store_wait=lambda pending: None
    )
    gl = SimpleNamespace(
        program_id=lambda axis: value(machine.program), num_programs=lambda axis: value(machine.programs),
        load=load, store=store, where=plain(np.where), minimum=plain(np.minimum), maximum=plain(np.maximum),
        exp2=plain(np.exp2), log2=plain(np.log2), max=reduced(np.max), sum=reduced(np.sum),
        arange=lambda start, stop, layout=None: value(np.arange(start, stop, dtype=np.int64)),
        zeros=lambda shape, dtype, layout=None: value(np.zeros([int(n) for n in shape], np.float32)),
        zeros_like=lambda x: value(np.zeros_like(np.asarray(x))),
        full=lambda shape, fill, dtype, layout=None: value(np.full([int(n) for n in shape], fill, np.float32)),
        convert_layout=lambda x, layout: x, inline_asm_elementwise=inline, thread_barrier=machine.pause,
        static_range=range, range=lambda *edges: map(value, range(*map(int, edges))), allocate_shared_memory=allocate,
        warp_specialize=lambda partitions, warps, registers: machine.run(partitions),
        NVMMADistributedLayout=lambda *_: None, SliceLayout=lambda *_: None, BlockedLayout=lambda *_: None,
        DotOperandLayout=lambda *_: None, NVMMASharedLayout=SimpleNamespace(get_default_for=lambda *_: None),
        constexpr=None, static_assert=lambda *_: None, float32=torch.float32, float16=torch.float16, bfloat16=torch.bfloat16,
        int32=torch.int32, int64=torch.int64,
    )  # fmt: skip
    return {
        "gl": gl, "tl": gl, "mbarrier": mbarrier, "tma": tma, "warpgroup_mma": multiply,
        "warpgroup_mma_wait": await_products, "fence_async_shared": lambda: None,
        "range": lambda *edges: map(value, range(*map(int, edges))), "float": float,
    }  # fmt: skip


def _translated(function: Any, language: dict[str, Any], known: dict[int, Any]) -> Any:
    """A kernel's function, and those that it calls, with numpy behind their names."""
    if id(function) not in known:
        names = dict(function.fn.__globals__)
        known[id(function)] = FunctionType(function.fn.__code__, names, function.fn.__name__, function.fn.__defaults__)
        for name, found in list(names.items()):
            if isinstance(found, JITFunction | InterpretedFunction):
                names[name] = _translated(found, language, known)
            elif isinstance(found, constexpr):
                names[name] = found.value
        names |= {name: found for name, found in language.items() if name in names or name == "range"}
    return known[id(function)]


def as_python(function: Any, program: int, programs: int) -> Callable[..., Any]:
    """A helper of kernels that touches no memory, as one program of a launch computes it."""
    return _translated(function, _language(Machine(random.Random(0), program, programs)), {})  # type: ignore[no-any-return]


class Emulated:
    """A kernel that is launched as Triton's are, on CPU tensors."""

    def __init__(self, kernel: Any, seed: int) -> None:
        self.kernel, self.draw = kernel, random.Random(seed)

    def __getitem__(self, grid: tuple[int]) -> Callable[..., None]:
        def launch(*arguments: Any, num_warps: int, **named: Any) -> None:
            given = dict(zip(self.kernel.arg_names, arguments, strict=False)) | named
            mirrors: dict[int, tuple[torch.Tensor, Any]] = {}
            for program in range(grid[0]):
                machine = Machine(self.draw, program, grid[0])
                machine.mine.number, machine.mine.products = -1, []
                code = _translated(self.kernel, _language(machine), {})
                code(**{name: _argument(x, mirrors) for name, x in given.items()})
                assert not machine.copies, "copies are under way when the program ends"
            for whole, mirror in mirrors.values():
                whole.copy_(torch.from_numpy(mirror).to(whole.dtype))

        return launch


def _argument(x: Any, mirrors: dict[int, tuple[torch.Tensor, Any]]) -> Any:
    if isinstance(x, int | float) and not isinstance(x, bool):
        return value(x)
    if not isinstance(x, torch.Tensor) and not hasattr(x, "base"):
        return x
    tensor = x if isinstance(x, torch.Tensor) else x.base
    storage = tensor.untyped_storage()
    if storage.data_ptr() not in mirrors:
        whole = torch.empty(0, dtype=tensor.dtype).set_(storage)  # type: ignore[call-overload]
        mirrors[storage.data_ptr()] = whole, (whole.float() if whole.is_floating_point() else whole).numpy().copy()
    memory = mirrors[storage.data_ptr()][1][tensor.storage_offset() :]
    if isinstance(x, torch.Tensor):
        return Pointer(memory)
    steps = [step * memory.itemsize for step in x.strides]
    return Descriptor(x, np.lib.stride_tricks.as_strided(memory, x.shape, steps))


@contextmanager
def emulated(modules: dict[ModuleType, str], seed: int, programs: int = 3) -> Iterator[None]:
    """Let the launchers of these modules, each with the name of its kernel, run emulated, on so many multiprocessors."""
    before = [(module, name, getattr(module, name)) for module, name in modules.items()]
    before += [(module, "programs_of", module.programs_of) for module in modules if hasattr(module, "programs_of")]
    try:
        for module, name in modules.items():
            setattr(module, name, Emulated(getattr(module, name), seed))
            module.programs_of = lambda device: programs  # type: ignore[attr-defined]
        yield
    finally:
        for module, name, old in before:
            setattr(module, name, old)
