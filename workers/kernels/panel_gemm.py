"""y = x @ W.T on a CPU, from weights in panels of 16 outputs, kept in bf16 where that is exact.

Libraries are tuned for square products. With 8 rows they reach a third of what memory allows, and
they read float32 where a checkpoint holds bf16. Here the weights lie in panels (panel, k, 16); a
micro-kernel keeps up to 6 x 16 sums in registers and streams a panel past them; bf16 widens to
float32 in the load. LLVM compiles the kernels at start-up (no compiler needed on the machine), and
they run on torch's own OpenMP threads.

A row's result does not depend on the rows beside it, to the last bit: sums over k always run in
the same order. Equals `torch.nn.functional.linear` in float32, up to summation order.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path

import llvmlite.binding as llvm
import torch
from torch import Tensor

PANEL = 16  # outputs of a panel: two AVX registers
MAX_TILE_ROWS = 6  # 6 x 2 sums, 2 weights and 1 broadcast fill the 16 registers
EVEN_ROWS = 24  # up to this many rows the tiles are evenly filled
CHUNK_ROWS = 240  # rows that stream past each panel: their inputs stay in a core's caches
NEEDED_FEATURES = ("avx2", "fma")


@dataclass(frozen=True, slots=True)
class PanelWeights:
    """A weight (out_features, in_features) laid out in panels: (out / 16, in, 16)."""

    panels: Tensor
    out_features: int
    in_features: int

    @classmethod
    def try_of(cls, weight: Tensor) -> PanelWeights | None:
        """Lay a float32 weight out; None where this machine or shape has no kernel."""
        out_features, in_features = weight.shape
        if weight.device.type != "cpu" or weight.dtype != torch.float32:
            return None
        if out_features % PANEL or not is_supported():
            return None
        narrow = weight.to(torch.bfloat16)
        is_exact = bool((narrow.to(torch.float32) == weight).all())
        panels = (narrow if is_exact else weight).view(-1, PANEL, in_features)
        return cls(panels.transpose(1, 2).contiguous(), out_features, in_features)


class Arguments(ctypes.Structure):
    """What a kernel's threads read."""

    _fields_ = (
        ("x", ctypes.c_void_p),
        ("w", ctypes.c_void_p),
        ("y", ctypes.c_void_p),
        ("num_panels", ctypes.c_int64),
        ("in_features", ctypes.c_int64),
        ("out_features", ctypes.c_int64),
        ("rows", ctypes.c_int64),
    )


@cache
def is_supported() -> bool:
    """Whether this machine has the instructions, and torch the OpenMP runtime, that we need."""
    features = llvm.get_host_cpu_features()
    return all(features.get(name) for name in NEEDED_FEATURES) and _openmp_path().exists()


def panel_linear(x: Tensor, weights: PanelWeights) -> Tensor:
    """X @ W.T; each row's sums run in the same order however many rows there are.

    Shapes:
        x: (rows, in_features) float32.
        returns: (rows, out_features) float32.
    """
    x = x.contiguous()
    y = torch.empty(x.shape[0], weights.out_features)
    kernels = compiled_kernels()
    for first in range(0, x.shape[0], CHUNK_ROWS):
        rows = min(CHUNK_ROWS, x.shape[0] - first)
        arguments = Arguments(
            x.data_ptr() + 4 * first * weights.in_features,
            weights.panels.data_ptr(),
            y.data_ptr() + 4 * first * weights.out_features,
            weights.panels.shape[0],
            weights.in_features,
            weights.out_features,
            rows,
        )
        task = kernels.tasks[weights.panels.dtype, rows if rows <= EVEN_ROWS else None]
        kernels.parallel(task, ctypes.byref(arguments), torch.get_num_threads(), 0)
    return y


@dataclass(frozen=True, slots=True)
class CompiledKernels:
    """Machine code, kept alive with its addresses.

    Attributes:
        tasks: address of the task for a weight dtype and a number of rows; None: any number.
        parallel: OpenMP's entry: runs a task on so many threads and waits for them.
    """

    engine: llvm.ExecutionEngine
    tasks: dict[tuple[torch.dtype, int | None], int]
    parallel: ctypes._NamedFuncPointer


@cache
def compiled_kernels() -> CompiledKernels:
    """Compile all kernels for this machine; takes a fraction of a second, once."""
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    openmp = ctypes.CDLL(str(_openmp_path()))
    for name in ("omp_get_thread_num", "omp_get_num_threads"):
        address = ctypes.cast(getattr(openmp, name), ctypes.c_void_p).value
        llvm.add_symbol(name, address)
    target = llvm.Target.from_default_triple().create_target_machine(
        cpu=llvm.get_host_cpu_name(), features=llvm.get_host_cpu_features().flatten(), opt=3
    )
    engine = llvm.create_mcjit_compiler(llvm.parse_assembly(module_text()), target)
    engine.finalize_object()
    tasks = {
        (dtype, rows): engine.get_function_address(f"task_{name}_{rows or 'any'}")
        for dtype, name in DTYPES.items()
        for rows in (None, *range(1, EVEN_ROWS + 1))
    }
    parallel = openmp.GOMP_parallel
    parallel.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint)
    parallel.restype = None
    return CompiledKernels(engine, tasks, parallel)


def _openmp_path() -> Path:
    """The OpenMP runtime that torch itself runs on."""
    return Path(torch.__file__).parent / "lib" / "libgomp.so.1"


# ---- LLVM assembly ---------------------------------------------------------------------------

DTYPES = {torch.float32: "f32", torch.bfloat16: "bf16"}
V = "<8 x float>"


def module_text() -> str:
    """All micro-kernels and tasks."""
    parts = [
        f"declare {V} @llvm.fma.v8f32({V}, {V}, {V})",
        "declare i32 @omp_get_thread_num()",
        "declare i32 @omp_get_num_threads()",
    ]
    for name in DTYPES.values():
        parts += [tile_text(name, rows) for rows in range(1, MAX_TILE_ROWS + 1)]
        parts += [task_text(name, rows) for rows in (None, *range(1, EVEN_ROWS + 1))]
    return "\n".join(parts)


def tile_text(name: str, rows: int) -> str:
    """A micro-kernel: `rows` rows of x against one panel, all sums in registers.

    tile(x, w, y, in_features, out_features): y[m, 0:16] = sum over k of x[m, k] * w[k, 0:16]
    """
    sums = [(m, j) for m in range(rows) for j in (0, 1)]
    lines = [f"define internal void @tile_{name}_{rows}(ptr %x, ptr %w, ptr %y, i64 %k, i64 %n) {{"]
    lines += ["entry:"]
    for m in range(rows):
        lines += [
            f"  %xo{m} = mul i64 %k, {m}",
            f"  %x{m} = getelementptr float, ptr %x, i64 %xo{m}",
        ]
    lines += ["  br label %loop", "loop:", "  %i = phi i64 [0, %entry], [%next, %loop]"]
    lines += [f"  %a{m}{j} = phi {V} [zeroinitializer, %entry], [%n{m}{j}, %loop]" for m, j in sums]
    lines += [f"  %wo = mul i64 %i, {PANEL}", *WEIGHT_LOADS[name]]
    for m in range(rows):
        lines += [
            f"  %p{m} = getelementptr float, ptr %x{m}, i64 %i",
            f"  %s{m} = load float, ptr %p{m}",
            f"  %e{m} = insertelement {V} poison, float %s{m}, i32 0",
            f"  %b{m} = shufflevector {V} %e{m}, {V} poison, <8 x i32> zeroinitializer",
        ]
    lines += [
        f"  %n{m}{j} = call {V} @llvm.fma.v8f32({V} %b{m}, {V} %w{j}, {V} %a{m}{j})"
        for m, j in sums
    ]
    lines += ["  %next = add i64 %i, 1", "  %more = icmp slt i64 %next, %k"]
    lines += ["  br i1 %more, label %loop, label %done", "done:"]
    for m, j in sums:
        lines += [
            f"  %yr{m}{j} = mul i64 %n, {m}",
            f"  %yo{m}{j} = add i64 %yr{m}{j}, {8 * j}",
            f"  %yp{m}{j} = getelementptr float, ptr %y, i64 %yo{m}{j}",
            f"  store {V} %n{m}{j}, ptr %yp{m}{j}, align 4",
        ]
    return "\n".join([*lines, "  ret void", "}"])


WEIGHT_LOADS = {
    "f32": [
        "  %wp0 = getelementptr float, ptr %w, i64 %wo",
        "  %wp1 = getelementptr float, ptr %wp0, i64 8",
        f"  %w0 = load {V}, ptr %wp0, align 4",
        f"  %w1 = load {V}, ptr %wp1, align 4",
    ],
    "bf16": [
        "  %wp0 = getelementptr i16, ptr %w, i64 %wo",
        "  %wp1 = getelementptr i16, ptr %wp0, i64 8",
        *(
            line
            for j in (0, 1)
            for line in (
                f"  %wh{j} = load <8 x i16>, ptr %wp{j}, align 2",
                f"  %wz{j} = zext <8 x i16> %wh{j} to <8 x i32>",
                f"  %ws{j} = shl <8 x i32> %wz{j}, splat (i32 16)",
                f"  %w{j} = bitcast <8 x i32> %ws{j} to {V}",
            )
        ),
    ],
}
WEIGHT_BYTES = {"f32": 4, "bf16": 2}
FIELDS = {"x": "ptr", "w": "ptr", "y": "ptr", "np": "i64", "k": "i64", "n": "i64", "m": "i64"}


def task_text(name: str, rows: int | None) -> str:
    """What each thread runs: its share of the panels, tile by tile.

    With `rows` the tiles are laid out now, evenly filled; without, full tiles and one rest.
    """
    lines = [f"define void @task_{name}_{rows or 'any'}(ptr %args) {{", "entry:"]
    for place, (field, kind) in enumerate(FIELDS.items()):
        lines += [
            f"  %f{field} = getelementptr i64, ptr %args, i64 {place}",
            f"  %{field} = load {kind}, ptr %f{field}",
        ]
    lines += [
        "  %t32 = call i32 @omp_get_thread_num()",
        "  %c32 = call i32 @omp_get_num_threads()",
        "  %t = sext i32 %t32 to i64",
        "  %c = sext i32 %c32 to i64",
        "  %s0 = mul i64 %t, %np",
        "  %first = sdiv i64 %s0, %c",
        "  %t1 = add i64 %t, 1",
        "  %s1 = mul i64 %t1, %np",
        "  %last = sdiv i64 %s1, %c",
        f"  %stride = mul i64 %k, {PANEL * WEIGHT_BYTES[name]}",
        f"  %full = sdiv i64 %m, {MAX_TILE_ROWS}",
        f"  %rest = srem i64 %m, {MAX_TILE_ROWS}",
        f"  %restrow = mul i64 %full, {MAX_TILE_ROWS}",
        "  %any = icmp slt i64 %first, %last",
        "  br i1 %any, label %loop, label %done",
        "loop:",
        "  %p = phi i64 [%first, %entry], [%next, %latch]",
        "  %wo = mul i64 %p, %stride",
        "  %wp = getelementptr i8, ptr %w, i64 %wo",
        f"  %yo = mul i64 %p, {PANEL}",
        "  %yp = getelementptr float, ptr %y, i64 %yo",
    ]
    lines += any_tiles(name) if rows is None else even_tiles(name, rows)
    lines += ["latch:", "  %next = add i64 %p, 1", "  %more = icmp slt i64 %next, %last"]
    lines += ["  br i1 %more, label %loop, label %done", "done:", "  ret void", "}"]
    return "\n".join(lines)


def tile_call(name: str, count: int, label: str, row: str) -> list[str]:
    """Call the micro-kernel for `count` rows from `row` on."""
    return [
        f"  %xo{label} = mul i64 %k, {row}",
        f"  %xp{label} = getelementptr float, ptr %x, i64 %xo{label}",
        f"  %ro{label} = mul i64 %n, {row}",
        f"  %rp{label} = getelementptr float, ptr %yp, i64 %ro{label}",
        f"  call void @tile_{name}_{count}"
        f"(ptr %xp{label}, ptr %wp, ptr %rp{label}, i64 %k, i64 %n)",
    ]


def even_tiles(name: str, rows: int) -> list[str]:
    """As few tiles as possible, evenly filled, one after the other."""
    count = -(-rows // MAX_TILE_ROWS)
    bounds = [rows * i // count for i in range(count + 1)]
    lines = []
    for first, last in pairwise(bounds):
        lines += tile_call(name, last - first, str(first), str(first))
    return [*lines, "  br label %latch"]


def any_tiles(name: str) -> list[str]:
    """A loop of full tiles, then the rest."""
    lines = [
        "  %some = icmp sgt i64 %full, 0",
        "  br i1 %some, label %tiles, label %tail",
        "tiles:",
        "  %i = phi i64 [0, %loop], [%inext, %tiles]",
        f"  %row = mul i64 %i, {MAX_TILE_ROWS}",
        *tile_call(name, MAX_TILE_ROWS, "full", "%row"),
        "  %inext = add i64 %i, 1",
        "  %imore = icmp slt i64 %inext, %full",
        "  br i1 %imore, label %tiles, label %tail",
        "tail:",
    ]
    rests = range(1, MAX_TILE_ROWS)
    cases = " ".join(f"i64 {r}, label %rest{r}" for r in rests)
    lines += [f"  switch i64 %rest, label %latch [{cases}]"]
    for r in rests:
        lines += [f"rest{r}:", *tile_call(name, r, f"r{r}", "%restrow"), "  br label %latch"]
    return lines
