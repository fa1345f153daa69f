"""Damaged and weird models, and a harness that runs the command line on them: shared by test and benchmark."""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import importlib
import io
import itertools
import json
import math
import os
import random
import resource
import shutil
import signal
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema
from model_builder import Builder, ModelBuilder, branches, worked_example

import tflite_tools

####################################################################################################
# Sound models to start from: small, and together with an operator of every kind that the tool knows more about
####################################################################################################


def with_plan() -> bytes:
    """A model whose file fixes the offsets of its tensors, and not well: --plan overwrites them in place."""
    b = Builder()
    tensors = [b.tensor((size,)) for size in (32, 48, 32, 16)]
    for before, after in itertools.pairwise(tensors):
        b.op("RELU", [before], [after])
    words = [1, 1, 4, 0, 128, -1, 256]
    b.model.add_metadata(tflite_tools.OFFLINE_PLAN, np.array(words, "<i4").tobytes())
    return b.build(tensors[:1], tensors[-1:])


def with_control_flow() -> bytes:
    """IF with two branches, WHILE, CALL_ONCE and a variable."""
    model = ModelBuilder()
    main = Builder(model)
    for name, size in (("then", 96), ("else", 48), ("cond", 16), ("body", 64)):
        callee = Builder(model, name)
        x, inner, y = callee.tensor((8,)), callee.tensor((size,)), callee.tensor((8,))
        callee.op("TILE", [x], [inner])
        callee.op("SLICE", [inner], [y])
        callee.finish([x], [y])
    init = Builder(model, "init")
    init.op("ASSIGN_VARIABLE", [variable(init), init.tensor((8,))], [])
    init.finish([], [])
    x, y, z, state, flag, result = (main.tensor((8,)) for _ in range(6))
    once, choice, loop = schema.CallOnceOptionsT(), schema.IfOptionsT(), schema.WhileOptionsT()
    once.initSubgraphIndex = 5
    choice.thenSubgraphIndex, choice.elseSubgraphIndex = 1, 2
    loop.condSubgraphIndex, loop.bodySubgraphIndex = 3, 4
    main.op("CALL_ONCE", [], [], once)
    main.op("IF", [flag, x], [y], choice)
    main.op("READ_VARIABLE", [variable(main)], [state])
    main.op("WHILE", [y], [z], loop)
    main.op("ADD", [z, state], [result])
    main.finish([x, flag], [result])
    return model.build()


def variable(b: Builder) -> int:
    handle, options = b.tensor((), "RESOURCE"), schema.VarHandleOptionsT()
    options.container, options.sharedName = b"", b"v"
    b.op("VAR_HANDLE", [], [handle], options)
    return handle


def with_scratch() -> bytes:
    """Kernels whose scratch memory depends on shapes, on the number of inputs and on options."""
    from flatbuffers import flexbuffers

    b = Builder()
    x, sums = b.tensor((1, 4, 4, 2)), b.tensor((1, 2))
    packed, deconvolved = b.tensor((1, 4, 4, 2), "INT4"), b.tensor((1, 8, 8, 2))
    b.op("MEAN", [x, b.constant(np.array([1, 2], np.int32))], [sums])
    weights = b.tensor((2, 3, 3, 2), "INT4", data=np.zeros(18, np.uint8))
    b.op("CONV_2D", [x, weights], [packed], schema.Conv2DOptionsT())
    b.op("TRANSPOSE_CONV", [b.constant(np.ones(4, np.int32)), b.constant(np.ones((2, 3, 3, 2), np.int8)), x],
         [deconvolved])  # fmt: skip
    svdf, rank = b.tensor((1, 4)), schema.SVDFOptionsT()
    rank.rank = 2
    memory = b.tensor((1, 64), isVariable=True)
    b.op("SVDF", [sums, b.constant(np.ones((8, 2), np.int8)), b.constant(np.ones((8, 4), np.int8)), -1, memory],
         [svdf], rank)  # fmt: skip
    gates = [b.constant(np.ones((4, 4), np.int8)) for _ in range(8)]
    states = [b.tensor((1, 4), isVariable=True), b.tensor((1, 4), "INT16", isVariable=True)]
    sequence = b.tensor((1, 3, 4))
    b.op("UNIDIRECTIONAL_SEQUENCE_LSTM", [svdf, *gates, *[-1] * 9, *states, *[-1] * 4], [sequence])
    boxes, scores, found = b.tensor((1, 9, 4)), b.tensor((1, 9, 3)), b.tensor((1, 10, 4))
    b.op("TFLite_Detection_PostProcess", [boxes, scores], [found],
         customOptions=list(flexbuffers.Dumps({"num_classes": 2, "max_detections": 5})))  # fmt: skip
    spectrum = b.tensor((1, 10), "INT16")
    b.op("SignalRfft", [b.tensor((1, 16), "INT16")], [spectrum],
         customOptions=list(flexbuffers.Dumps({"fft_length": 16})))  # fmt: skip
    return b.build([x, boxes, scores], [packed, deconvolved, sequence, found, spectrum])


def with_weights() -> bytes:
    """Weights of several types, to be clustered; tensors that share a buffer."""
    b = Builder()
    x = b.tensor((1, 32))
    rng = np.random.default_rng(1)
    for i, dtype in enumerate((np.int8, np.float32, np.int16, np.float16)):
        y = b.tensor((1, 32))
        matrix = b.constant((50 * rng.normal(size=(32, 32))).astype(dtype))
        b.op("FULLY_CONNECTED", [x, matrix, -1], [y])
        if i == 0:
            b.op("FULLY_CONNECTED", [x, b.tensor((32, 32), buffer=1), -1], [b.tensor((1, 32))])
        x = y
    return b.build([0], [x])


def with_windows() -> bytes:
    """A chain of spatial operators with large tensors inside, which --split runs in stripes."""
    b = Builder()
    sizes = [(48, 40, 1), (48, 40, 8), (24, 20, 8), (24, 20, 8), (26, 22, 8), (12, 10, 8), (12, 10, 8)]
    tensors = [b.tensor((1, *size)) for size in sizes]
    conv, depthwise, pool = schema.Conv2DOptionsT(), schema.DepthwiseConv2DOptionsT(), schema.Pool2DOptionsT()
    for options, stride in ((conv, 1), (depthwise, 1), (pool, 2)):
        options.strideH = options.strideW = stride
    pool.filterHeight = pool.filterWidth = 3
    halves = schema.Pool2DOptionsT()
    halves.filterHeight, halves.filterWidth, halves.strideH, halves.strideW = 4, 4, 2, 2
    halves.padding = schema.Padding.VALID
    paddings = b.constant(np.array([[0, 0], [1, 1], [1, 1], [0, 0]], np.int32))
    b.op("CONV_2D", [tensors[0], b.constant(np.ones((8, 3, 3, 1), np.int8))], [tensors[1]], conv)
    b.op("MAX_POOL_2D", [tensors[1]], [tensors[2]], pool)
    b.op("DEPTHWISE_CONV_2D", [tensors[2], b.constant(np.ones((1, 3, 3, 8), np.int8))], [tensors[3]], depthwise)
    b.op("PAD", [tensors[3], paddings], [tensors[4]])
    b.op("AVERAGE_POOL_2D", [tensors[4]], [tensors[5]], halves)
    b.op("RELU", [tensors[5]], [tensors[6]])
    return b.build(tensors[:1], tensors[-1:])


BUILT: dict[str, Callable[[], bytes]] = {
    "worked_example": worked_example,
    "branches": lambda: branches([(96, 16), (160, 32), (48, 64), (80, 16)]),
    "with_plan": with_plan,
    "with_control_flow": with_control_flow,
    "with_scratch": with_scratch,
    "with_weights": with_weights,
    "with_windows": with_windows,
}

####################################################################################################
# Damage: edits of bytes, and of the model as objects
####################################################################################################

WORDS = (0, 1, 2, 3, 4, 8, 16, 0x7F, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFE, 0xFFFFFFFF, 0x10000)


@dataclass(frozen=True)
class Edit:
    """One change of a file's bytes. ``at`` and ``other`` are taken modulo what the file has to offer."""

    kind: str
    at: int
    other: int


def bit_flip(data: bytearray, at: int, other: int) -> None:
    data[at] ^= 1 << other % 8


def word(data: bytearray, at: int, other: int) -> None:
    at -= at % 4
    data[at : at + 4] = (WORDS[other % len(WORDS)]).to_bytes(4, "little")[: len(data) - at]


def offset(data: bytearray, at: int, other: int) -> None:
    """A word that points somewhere else inside the file."""
    at -= at % 4
    data[at : at + 4] = (other % len(data)).to_bytes(4, "little")[: len(data) - at]


def nudge(data: bytearray, at: int, other: int) -> None:
    """A word that is off by a little: still aligned, and mostly still inside the file."""
    at -= at % 4
    value = int.from_bytes(data[at : at + 4], "little") + 4 * (other % 17 - 8)
    data[at : at + 4] = (value % 2**32).to_bytes(4, "little")[: len(data) - at]


def copy(data: bytearray, at: int, other: int) -> None:
    size = min(4 * (1 + other % 16), len(data) - at)
    source = other % len(data)
    block = data[source : source + size]
    data[at : at + len(block)] = block


def delete(data: bytearray, at: int, other: int) -> None:
    del data[at : at + 4 * (1 + other % 16)]


def truncate(data: bytearray, at: int, other: int) -> None:
    del data[at:]


BYTE_EDITS: dict[str, Callable[[bytearray, int, int], None]] = {
    edit.__name__: edit for edit in (bit_flip, word, offset, nudge, copy, delete, truncate)
}


def table_bytes(data: bytes) -> np.ndarray:
    """The positions outside of buffers. Weights are most of a file, and damage there is no damage to a reader."""
    outside = np.ones(len(data), dtype=bool)
    with contextlib.suppress(tflite_tools.ModelError):  # damaged already: then anywhere
        start = np.frombuffer(data, np.uint8).ctypes.data
        for content in tflite_tools.read_model(data).buffers:
            place = content.data.ctypes.data - start
            outside[place : place + content.size] = False
    return np.flatnonzero(outside)


def damage(sound: bytes, edits: Sequence[Edit]) -> bytes:
    positions = table_bytes(sound)
    data = bytearray(sound)
    for edit in edits:
        if len(data) > 4:
            at = min(int(positions[edit.at % len(positions)]), len(data) - 1)
            BYTE_EDITS[edit.kind](data, at, edit.other)
    return bytes(data)


Random = random.Random
SIZES = (-(2**31), -1, 0, 1, 2, 7, 1000, 2**16, 2**31 - 1)


def any_subgraph(model: Any, rng: Random) -> Any:
    return rng.choice(model.subgraphs)


def any_tensor(model: Any, rng: Random) -> Any:
    return rng.choice(any_subgraph(model, rng).tensors)


def any_operator(model: Any, rng: Random) -> Any:
    return rng.choice(any_subgraph(model, rng).operators)


def listed(vector: Any) -> list[int]:
    return [] if vector is None else [int(i) for i in vector]


def wild_shape(model: Any, rng: Random) -> None:
    any_tensor(model, rng).shape = [rng.choice(SIZES) for _ in range(rng.choice((0, 1, 2, 4, 9)))]


def zero_size(model: Any, rng: Random) -> None:
    any_tensor(model, rng).shape = [0]


def wild_type(model: Any, rng: Random) -> None:
    any_tensor(model, rng).type = rng.choice((*range(23), -1, 127))


def wild_buffer(model: Any, rng: Random) -> None:
    any_tensor(model, rng).buffer = rng.choice((0, 1, 2, len(model.buffers), 2**32 - 1))


def wild_name(model: Any, rng: Random) -> None:
    """Any text of the file: names of tensors, subgraphs, metadata and signatures, codes of custom operators."""
    holders = [(any_tensor(model, rng), "name"), (rng.choice(model.subgraphs), "name"), (model, "description")]
    holders += [(code, "customCode") for code in model.operatorCodes or () if code.customCode]
    holders += [(entry, "name") for entry in model.metadata or ()]
    holders += [(signature, "signatureKey") for signature in model.signatureDefs or ()]
    holder, field = rng.choice(holders)
    setattr(
        holder, field, rng.choice((b"", b"a\nb", b"\x1b[2J\0", b"n" * 5000, b"\xff\xfe", b"$x_", b"\xc2\x9b2J", None))
    )


def variable_flag(model: Any, rng: Random) -> None:
    any_tensor(model, rng).isVariable = True


def wild_index(model: Any, rng: Random) -> None:
    operator = any_operator(model, rng)
    field = rng.choice(("inputs", "outputs", "intermediates"))
    setattr(operator, field, [*listed(getattr(operator, field)), rng.choice((-2, -1, 9999, 2**31 - 1))])


def fewer_inputs(model: Any, rng: Random) -> None:
    operator = any_operator(model, rng)
    operator.inputs = listed(operator.inputs)[: rng.randrange(3)]


def no_outputs(model: Any, rng: Random) -> None:
    any_operator(model, rng).outputs = rng.choice(([], None))


def writes_its_input(model: Any, rng: Random) -> None:
    operator = any_operator(model, rng)
    operator.outputs = [*listed(operator.outputs), *listed(operator.inputs)[:1]]


def second_producer(model: Any, rng: Random) -> None:
    subgraph = any_subgraph(model, rng)
    one, other = rng.choice(subgraph.operators), rng.choice(subgraph.operators)
    one.outputs = listed(other.outputs)


def cycle(model: Any, rng: Random) -> None:
    subgraph = any_subgraph(model, rng)
    one, other = rng.choice(subgraph.operators), rng.choice(subgraph.operators)
    one.inputs = listed(one.inputs) + listed(other.outputs)
    other.inputs = listed(other.inputs) + listed(one.outputs)


def shuffled(model: Any, rng: Random) -> None:
    """Operators that read tensors before they are produced."""
    rng.shuffle(any_subgraph(model, rng).operators)


def other_operator(model: Any, rng: Random) -> None:
    """The inputs of one kind for another kind, which expects other ones."""
    any_operator(model, rng).opcodeIndex = rng.choice(
        (0, len(model.operatorCodes) - 1, len(model.operatorCodes), 2**20)
    )


def other_kind(model: Any, rng: Random) -> None:
    code = rng.choice(model.operatorCodes)
    code.builtinCode = rng.choice((*range(0, 210), -1, 2**31 - 1))
    code.deprecatedBuiltinCode = min(max(code.builtinCode, 0), 127)


def other_custom_code(model: Any, rng: Random) -> None:
    code = rng.choice(model.operatorCodes)
    code.builtinCode = code.deprecatedBuiltinCode = schema.BuiltinOperator.CUSTOM
    code.customCode = rng.choice((b"", b"a\nb", b"SignalRfft", b"TFLite_Detection_PostProcess", b"k" * 3000))


def wild_callee(model: Any, rng: Random) -> None:
    """Mostly calls in a circle, sometimes a subgraph that is not there."""
    options = schema.WhileOptionsT()
    options.condSubgraphIndex = options.bodySubgraphIndex = rng.choice((0, len(model.subgraphs) - 1, 77, -1))
    operator = any_operator(model, rng)
    code = schema.OperatorCodeT()
    code.builtinCode = code.deprecatedBuiltinCode = schema.BuiltinOperator.WHILE
    model.operatorCodes.append(code)
    operator.opcodeIndex = len(model.operatorCodes) - 1
    operator.builtinOptionsType, operator.builtinOptions = schema.BuiltinOptions.WhileOptions, options


def wild_custom_options(model: Any, rng: Random) -> None:
    any_operator(model, rng).customOptions = list(rng.randbytes(rng.choice((0, 1, 3, 40))))


def inputs_twice(model: Any, rng: Random) -> None:
    subgraph = any_subgraph(model, rng)
    field = rng.choice(("inputs", "outputs"))
    setattr(subgraph, field, listed(getattr(subgraph, field)) * 2)


def other_inputs(model: Any, rng: Random) -> None:
    subgraph = any_subgraph(model, rng)
    count = len(subgraph.tensors)
    chosen = [rng.randrange(count + 1) for _ in range(rng.randrange(5))] if rng.random() < 0.3 else range(count)
    setattr(subgraph, rng.choice(("inputs", "outputs")), list(chosen))


def empty_lists(model: Any, rng: Random) -> None:
    setattr(any_subgraph(model, rng), rng.choice(("tensors", "operators", "inputs", "outputs")), rng.choice(([], None)))


def same_subgraph_twice(model: Any, rng: Random) -> None:
    model.subgraphs.append(any_subgraph(model, rng))


def missing_buffers(model: Any, rng: Random) -> None:
    model.buffers = model.buffers[: rng.choice((0, 1, len(model.buffers) - 1))]


def external_buffer(model: Any, rng: Random) -> None:
    buffer = rng.choice(model.buffers)
    buffer.data, buffer.offset, buffer.size = None, rng.choice((2, 16, 2**40)), rng.choice((0, 16, 2**63))


def wild_metadata(model: Any, rng: Random) -> None:
    entry = schema.MetadataT()
    entry.name = rng.choice((tflite_tools.OFFLINE_PLAN, tflite_tools.CONTROL_DEPENDENCIES, "x\ny")).encode()
    entry.buffer = rng.choice((0, 1, len(model.buffers), 2**32 - 1))
    model.metadata = [*(model.metadata or []), entry]


def random_plan(model: Any, rng: Random) -> None:
    """A memory plan of random words: mostly for the right number of tensors, sometimes in the buffer of a weight."""
    tensors = sum(len(s.tensors or []) for s in model.subgraphs)
    offsets = [rng.choice((-1, -1, 0, 16, 17, -16, 1024, 2**31 - 16, -(2**31))) for _ in range(tensors)]
    count = rng.choice((tensors, tensors, tensors, 0, 2**31 - 1))
    buffer = schema.BufferT()
    buffer.data = list(np.array([1, len(model.subgraphs), count, *offsets], "<i4").tobytes())
    entry = schema.MetadataT()
    entry.name, entry.buffer = tflite_tools.OFFLINE_PLAN.encode(), len(model.buffers)
    if model.buffers and rng.random() < 0.2:
        entry.buffer -= 1
        model.buffers.pop()
    model.buffers.append(buffer)
    model.metadata = [*(model.metadata or []), entry]


OBJECT_EDITS: dict[str, Callable[[Any, Random], None]] = {
    edit.__name__: edit
    for edit in (
        wild_shape, zero_size, wild_type, wild_buffer, wild_name, variable_flag, wild_index, fewer_inputs, no_outputs,
        writes_its_input, second_producer, cycle, shuffled, other_operator, other_kind, other_custom_code, wild_callee,
        wild_custom_options, inputs_twice, other_inputs, empty_lists, same_subgraph_twice, missing_buffers,
        external_buffer, wild_metadata, random_plan,
    )
}  # fmt: skip


def rebuild(sound: bytes, edits: Sequence[tuple[str, int]]) -> bytes:
    """Change a model as objects, one edit (name, seed) after the other, and pack it again."""
    model = schema.ModelT.InitFromPackedBuf(sound, 0)
    for name, seed in edits:
        # An earlier edit may have left nothing to choose from.
        with contextlib.suppress(IndexError, TypeError, ValueError):
            OBJECT_EDITS[name](model, Random(seed))
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


####################################################################################################
# The harness: one run of the command line in a process of its own, and what must be true of it
####################################################################################################

TIME_LIMIT, BUSY = 10.0, 6  # seconds of a processor per run, and by how many times longer a busy machine may take
MEMORY_LIMIT = 1 << 30  # bytes on top of what the imports take
FLAGS = (
    (),
    ("--optimize", "-o", "out.tflite"),
    ("--plan", "-o", "out.tflite"),
    ("--optimize", "--plan", "-o", "out.tflite", "--json", "report.json"),
    ("--clusters", "3", "-o", "out.tflite", "--csv", "csv", "--calc-macs", "--calc-size"),
    ("--optimize", "--json", "-", "-o", "out.tflite"),
    ("--plan", "--overwrite", "--max-arena", "1KB"),
    ("--split", "--optimize", "--plan", "-o", "split.tflite"),
    ("--lighten", "--integer-io", "--plan", "--no-sharing", "--assume-kernels", "CUSTOM,LSTM", "--max-arena", "1MB"),
    ("--clusters", "4", "--compress", "--compress-ram", "1KB", "--memories", "fast=2KB"),
    ("--fit", "--integer-io", "-o", "fit.tflite"),
    ("--fit", "2KB", "--board", "pico", "-o", "split.tflite"),
    ("--fit", "-o", "split.tflite"),
    ("--repair", "hybrid", "--tflm", "2024-06", "--plan", "-o", "split.tflite"),
    ("--stages", "3", "-o", "part.tflite", "--firmware", "firmware"),
    ("--keep", "0", "--plan", "--calc-macs", "-o", "out.tflite"),
)
PICTURES = (("--plot", "plot.svg"), ("--optimize", "--plan", "--memory-map", "map.svg"))  # ten times slower


@dataclass(frozen=True)
class Run:
    """What came of one run. ``code`` is None where the process died or was stopped; ``violations`` is empty if all is
    well, else each starts with the kind of rule that was broken."""

    code: int | None
    violations: tuple[str, ...]
    seconds: float
    peak_rss: int  # bytes


def run_case(data: bytes, flags: Sequence[str] = (), time_limit: float = TIME_LIMIT) -> Run:
    """Run the command line on a file with these bytes in a forked process, and list every rule that it breaks.

    A fork costs milliseconds, and stops what no exception handler could: a crash, a hang in C, too much memory.
    """
    _warm_up()
    folder = Path(tempfile.mkdtemp(prefix="tflite_fuzz_"))
    try:
        (folder / "work").mkdir()
        (folder / "work" / "model.tflite").write_bytes(data)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        start = time.monotonic()
        process = os.fork()
        if process == 0:
            resource.setrlimit(resource.RLIMIT_CPU, (math.ceil(time_limit), math.ceil(time_limit)))
            _child(folder, data, flags)
        status, usage = _wait(process, start + BUSY * time_limit)
        seconds = time.monotonic() - start
        verdict = folder / "verdict.json"
        result = json.loads(verdict.read_text()) if verdict.exists() else {"code": None, "violations": []}
        violations = result["violations"]
        if status:
            name = signal.Signals(os.WTERMSIG(status)).name if os.WIFSIGNALED(status) else f"status {status}"
            is_hang = name in ("SIGXCPU", "SIGKILL") and seconds >= time_limit
            violations.append(f"hang: after {time_limit} s" if is_hang else f"crash: {name}")
        if (grown := (usage.ru_maxrss - before) * 1024) > MEMORY_LIMIT:
            violations.append(f"memory: {grown >> 20:,} MiB for a file of {len(data):,} bytes")
        return Run(result["code"], tuple(violations), seconds, usage.ru_maxrss * 1024)
    finally:
        shutil.rmtree(folder)


def _warm_up() -> None:
    """Import once, here, what the command line imports when it needs it, and not again in every fork."""
    for name in ("matplotlib.backends.backend_svg", "matplotlib.figure", "ortools.graph.python.max_flow", "prettytable",
                 "ortools.sat.python.cp_model", "sklearn.cluster"):  # fmt: skip
        importlib.import_module(name)


def _wait(process: int, deadline: float) -> tuple[int, resource.struct_rusage]:
    pause = 0.001
    while True:
        done, status, usage = os.wait4(process, os.WNOHANG)
        if done:
            return status, usage
        if time.monotonic() > deadline:
            os.kill(process, signal.SIGKILL)
            return os.wait4(process, 0)[1:]
        time.sleep(pause)
        pause = min(2 * pause, 0.005)


def _child(folder: Path, data: bytes, flags: Sequence[str]) -> NoReturn:
    """The forked process: run, judge, leave the verdict in a file. It never returns to the test runner."""
    try:
        gc.freeze()  # a collection would touch, and so copy, every page that is shared with the parent
        os.chdir(folder / "work")
        # Address space, not RSS, and solver threads reserve much of it: the exact limit is checked afterwards.
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + 4 * MEMORY_LIMIT,) * 2)
        stdout, stderr = io.StringIO(), io.StringIO()
        code: int | None = None
        failure = ""
        with contextlib.redirect_stdout(stdout), contextlib.redirect_stderr(stderr):
            try:
                code = tflite_tools.main(["-i", "model.tflite", "--time-limit", "1", *flags])
            except BaseException:
                failure = traceback.format_exc()
        violations = [f"traceback: {failure}"] if failure else broken_rules(
            code, stdout.getvalue(), stderr.getvalue(), data, flags
        )  # fmt: skip
        (folder / "verdict.json").write_text(json.dumps({"code": code, "violations": violations}))
        os._exit(0)
    finally:
        os._exit(1)


def is_fixed_by_loops(path: Path) -> bool:
    """Whether the plan in a file has to stay, since loops update their state in place."""
    refusal = tflite_tools.TFLiteModel.load_from_file(path).compute_best_peak_memory_usage(0).refusal
    return "loops depend on its memory plan" in refusal


def broken_rules(code: int | None, stdout: str, stderr: str, data: bytes, flags: Sequence[str]) -> list[str]:
    """The rules of README, checked on what the run printed and on the files in the current folder."""
    left = sorted(p.name for p in Path().iterdir())
    lines = stderr.strip().splitlines()
    broken = []
    if code not in (0, 1, 2):
        broken.append(f"code: {code}")
    if any(name.startswith(".") for name in left):
        broken.append(f"files: a temporary file is left: {left}")
    if "Traceback" in stderr or "Warning" in stderr:
        broken.append(f"noise: {stderr}")
    if "Python int" in stderr or "division by zero" in stderr:
        broken.append(f"message: Python's own: {stderr}")
    if "not enough memory" in stderr:
        broken.append(f"memory: {stderr}")
    if bad := {c for c in stdout + stderr if not c.isprintable() and c != "\n"}:
        broken.append(f"control characters: {bad}")
    if code == 2:
        if len(lines) != 1 or "error:" not in lines[0]:
            broken.append(f"message: {stderr}")
        if left != ["model.tflite"] or Path("model.tflite").read_bytes() != data:
            broken.append(f"files: exit code 2, but left or changed: {left}; {stderr}")
        return broken
    output = Path("model.tflite" if "--overwrite" in flags else "out.tflite")
    if output.exists():
        broken += [f"output: {what}" for what in differences(data, output.read_bytes(), "--clusters" in flags)]
    split = Path("split.tflite")
    if split.exists():
        broken += [f"output: {what}" for what in split_differences(data, split.read_bytes())]
    report = stdout if "-" in flags else Path("report.json").read_text() if Path("report.json").exists() else ""
    if report:
        document = json.loads(report)
        result = document["optimization"]
        is_looped = output.exists() and is_fixed_by_loops(output)
        if not result["refusal"] and not is_looped and result["peak"] != document["peak_bytes"]:
            broken.append(f"report: optimised to {result['peak']} B, but the peak is {document['peak_bytes']} B")
        if not result["refusal"] and not result["bound"] <= result["peak"] <= result["peak_before"]:
            broken.append(f"report: bound {result['bound']}, peak {result['peak']} of {result['peak_before']}")
    return broken


def differences(before: bytes, after: bytes, clustered: bool = False) -> list[str]:
    """What a written model does otherwise than the model that was read; no order and no memory plan may matter."""
    try:
        old, new = tflite_tools.read_model(before), tflite_tools.read_model(after)
    except tflite_tools.ModelError as error:
        return [f"the written model cannot be read: {error}"]
    found = []
    if len(old.subgraphs) != len(new.subgraphs):
        return ["other subgraphs"]
    plan = tflite_tools.OFFLINE_PLAN
    # A damaged length may make a name of half the file, with the tables that are meant to change.
    contents = [[(name[:60], content(data, graph, buffer)) for name, buffer in graph.metadata if name != plan]
                for graph, data in ((old, before), (new, after))]  # fmt: skip
    if contents[0] != contents[1]:
        found.append("other metadata")
    for one, other in zip(old.subgraphs, new.subgraphs, strict=True):
        tensors = [[dataclasses.replace(t, name=t.name[:60]) for t in s.tensors] for s in (one, other)]
        if repr((tensors[0], one.inputs, one.outputs)) != repr((tensors[1], other.inputs, other.outputs)):  # NaN
            found.append(f"other tensors in subgraph {one.index}")
        elif not clustered and any(
            content(before, old, t.buffer) != content(after, new, t.buffer) for t in one.tensors if t.buffer
        ):
            found.append(f"other constants in subgraph {one.index}")
        elif meaning(one) != meaning(other):
            found.append(f"subgraph {one.index} computes something else")
    return found


def split_differences(before: bytes, after: bytes) -> list[str]:
    """What must not change when operators are split: all that is seen from outside, and the constants that stay."""
    try:
        old, new = tflite_tools.read_model(before), tflite_tools.read_model(after)
    except tflite_tools.ModelError as error:
        return [f"the written model cannot be read: {error}"]
    one, other = old.subgraphs[0], new.subgraphs[0]
    found = []
    if (one.inputs, one.outputs) != (other.inputs, other.outputs):
        found.append("other inputs or outputs")
    if repr([one.tensors[i] for i in one.inputs + one.outputs]) != repr(
        [other.tensors[i] for i in other.inputs + other.outputs]
    ):
        found.append("inputs or outputs of another shape or type")
    callees = [graph.subgraphs[1 : len(old.subgraphs)] for graph in (old, new)]  # those of new loops come after them
    others = [[(s.tensors, s.inputs, s.outputs) for s in subgraphs] for subgraphs in callees]
    meanings = [[meaning(s) for s in subgraphs] for subgraphs in callees]
    if repr(others[0]) != repr(others[1]) or meanings[0] != meanings[1]:  # NaN
        found.append("another subgraph is different")
    return found


def content(data: bytes, graph: tflite_tools.ModelGraph, buffer: int) -> bytes:
    return graph.buffers[buffer].data.tobytes()


def meaning(subgraph: tflite_tools.Subgraph) -> Any:
    """Every operator with the history of all that it reads, and the outputs with theirs: the same for two orders of
    the operators if and only if they compute the same."""
    value: dict[Any, int] = {}
    steps: Counter[int] = Counter()
    for op in subgraph.operators:
        effects = [i for i in op.reads if subgraph.tensors[i].is_updated_in_place]
        effects += ["custom"] if op.is_custom else []
        effects += ["random"] if op.kind in ("RANDOM_UNIFORM", "RANDOM_STANDARD_NORMAL", "MULTINOMIAL") else []
        read = tuple(value.get(i, i) for i in (*op.inputs, *effects))
        step = hash((op.kind, read, op.outputs, op.callees, op.custom_options, repr(op.options)))
        steps[step] += 1
        value.update((i, hash((step, i))) for i in (*effects, *op.writes))
    return steps, value


####################################################################################################
# Random cases for the benchmark
####################################################################################################


def random_edits(rng: Random) -> list[Edit]:
    kinds = list(BYTE_EDITS)
    return [Edit(rng.choice(kinds), rng.randrange(1 << 20), rng.randrange(1 << 20)) for _ in range(rng.randint(1, 4))]


def random_case(rng: Random, sound: bytes) -> bytes:
    """Damage of either sort, sometimes of both."""
    data = sound
    if rng.random() < 0.6:
        data = rebuild(
            data, [(rng.choice(list(OBJECT_EDITS)), rng.randrange(1 << 20)) for _ in range(rng.randint(1, 4))]
        )
    if data is sound or rng.random() < 0.15:
        data = damage(data, random_edits(rng))
    return data
