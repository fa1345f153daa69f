#!/usr/bin/env python3
# /// script
# requires-python = ">=3.10"
# dependencies = [
#     "matplotlib>=3.8",
#     "numpy>=1.26",
#     "ortools>=9.10",
#     "prettytable>=3.10",
#     "scikit-learn>=1.4",
#     "tflite>=2.18",
#     "tqdm>=4.66",
# ]
# ///
"""How much RAM a TensorFlow Lite model needs on a microcontroller, why, and how to make it need less.

On the command line::

    tflite-tools -i model.tflite                                    # tensors, schedule, peak
    tflite-tools -i model.tflite --optimize -o smaller.tflite       # reorder the operators
    tflite-tools -i model.tflite --split -o stripes.tflite          # run parts of it stripe by stripe
    tflite-tools -i model.tflite --csv report/ --plot memory.png    # the same for other programs and for eyes

From a script::

    from tflite_tools import TFLiteModel

    model = TFLiteModel.load_from_file("model.tflite")
    result = model.optimize_memory()
    print(result.peak_before, "->", result.peak, "bytes", "(optimal)" if result.optimal else "")
    model.write_to_file("smaller.tflite")

Weights stay in flash. What must fit in RAM is the *working set*: the intermediate tensors that are alive while an
operator runs. The order of the operators decides how large it gets; where a planner places the tensors in the
*arena* decides how much RAM that takes. Both are fixed in the file, so both can be optimised in the file, at no
cost in accuracy or speed; for a little of the latter, stripes take less than any order. The module reads from top
to bottom in the order in which data flows; every section uses only what stands above it.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import dataclasses
import enum
import itertools
import json
import math
import mmap
import os
import struct
import sys
import tempfile
import time
import warnings
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, NamedTuple

import flatbuffers
import numpy as np
import tflite
from flatbuffers import number_types
from tflite.utils import BUILTIN_OPCODE2NAME

__version__ = "0.1.0"

####################################################################################################
# Model graph: what a .tflite file says, read once, as plain frozen data
####################################################################################################


class Storage(enum.Enum):
    """Where the bytes of a tensor live."""

    ACTIVATION = "activation"  # RAM, only while it is alive: the tensors that this tool is about
    CONSTANT = "constant"  # flash: a weight, a bias, a shape
    STATE = "state"  # RAM from the first inference to the last: variables and the handles of resources


@dataclass(frozen=True)
class Quantization:
    """Affine quantisation: ``real = scale * (q - zero_point)``, per tensor or per slice along ``dimension``."""

    scales: tuple[float, ...]
    zero_points: tuple[int, ...]
    dimension: int


@dataclass(frozen=True)
class Tensor:
    """One tensor of a subgraph; ``index`` is its id in the tables."""

    index: int
    name: str
    dtype: str
    shape: tuple[int, ...]
    storage: Storage
    buffer: int  # index into ModelGraph.buffers
    bytes: int | None  # product(shape) x element size, sub-byte types packed; None when the file cannot tell
    is_dynamic: bool = False  # a dimension is only known at run time; ``bytes`` is for the stored shape
    is_sparse: bool = False
    quantization: Quantization | None = None

    @property
    def size(self) -> int:
        """Bytes of working memory while alive: 0 for constants, for state, and where the size is unknown."""
        return (self.bytes or 0) if self.storage is Storage.ACTIVATION else 0

    @property
    def is_updated_in_place(self) -> bool:
        """Whether reading it changes it: a state tensor, unlike the handle of a resource, which stays the same."""
        return self.storage is Storage.STATE and self.dtype != "RESOURCE"

    @property
    def elements(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True)
class Operator:
    """One operator; ``index`` is its place in the file's schedule. An omitted optional tensor is -1."""

    index: int
    kind: str  # "CONV_2D"; a custom operator goes by its own name
    is_custom: bool
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    intermediates: tuple[int, ...] = ()
    callees: tuple[int, ...] = ()  # subgraphs that it runs, one at a time
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    custom_options: bytes = b""

    @cached_property
    def reads(self) -> tuple[int, ...]:
        """Input tensors, each once, without the omitted ones."""
        return tuple(dict.fromkeys(i for i in self.inputs if i >= 0))

    @cached_property
    def writes(self) -> tuple[int, ...]:
        """Output tensors, each once, without the omitted ones."""
        return tuple(dict.fromkeys(i for i in self.outputs if i >= 0))


@dataclass(frozen=True)
class Subgraph:
    """One function of the model. Subgraph 0 is the model itself; others are branches, bodies and signatures."""

    index: int
    name: str
    tensors: tuple[Tensor, ...]
    operators: tuple[Operator, ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    operator_vector: int  # position in the file of the first element of the operator vector

    @property
    def title(self) -> str:
        return f"Subgraph {self.index}" + (f" ({shorten(self.name)})" if self.name else "")

    def output_name(self, operator: Operator) -> str:
        """The name of the first output, by which people know an operator."""
        return self.tensors[operator.writes[0]].name if operator.writes else ""


@dataclass(frozen=True)
class BufferSpan:
    """Where a buffer's bytes are in the file; ``size`` 0 means that the tensor has no data there."""

    start: int
    size: int
    is_external: bool = False  # stored after the FlatBuffer, at an absolute position


@dataclass(frozen=True)
class ModelGraph:
    """All that the tool knows of a model. ``notes`` name what the file leaves open, one sentence each."""

    subgraphs: tuple[Subgraph, ...]
    buffers: tuple[BufferSpan, ...]
    metadata: tuple[tuple[str, int], ...]  # (name, buffer index)
    notes: tuple[str, ...] = ()

    def has_data(self, tensor: Tensor) -> bool:
        """Whether the tensor's content is in the file."""
        return tensor.buffer > 0 and self.buffers[tensor.buffer].size > 0

    def metadata_buffer(self, name: str) -> BufferSpan | None:
        """The buffer of the last metadata entry of that name, which is the one that runtimes honour."""
        spans = [self.buffers[buffer] for entry, buffer in self.metadata if entry == name]
        return spans[-1] if spans else None


LONGEST_NAME = 60  # characters of a name in a table; CSV and JSON have it whole


def shorten(name: str, limit: int = LONGEST_NAME) -> str:
    """The name on one line, with its middle left out when it is too long: both ends tell names apart."""
    name = "".join(c if c.isprintable() else "\ufffd" for c in name)
    if len(name) <= limit:
        return name
    left = (limit - 3) // 2
    return name[:left] + "..." + name[left + 3 - limit :]


####################################################################################################
# Reading: bytes -> graph. Every check on bad input is here
####################################################################################################


class ModelError(ValueError):
    """The bytes are not a model that can be processed; the message says why, in one line."""


Bytes = bytes | bytearray | memoryview | mmap.mmap

FILE_IDENTIFIER = b"TFL3"
CONTROL_DEPENDENCIES = "model_control_dependencies"  # metadata that numbers operators
LARGEST_TENSOR = 1 << 40  # elements; a larger claim means a damaged file, and keeps all sums far below 64 bits
HIGHEST_RANK = 64  # dimensions

# Bits per element by the number in the schema; types newer than the bindings are named here as well.
ELEMENT_BITS: dict[str, int | None] = {
    "FLOAT32": 32, "FLOAT16": 16, "INT32": 32, "UINT8": 8, "INT64": 64, "STRING": None, "BOOL": 8, "INT16": 16,
    "COMPLEX64": 64, "INT8": 8, "FLOAT64": 64, "COMPLEX128": 128, "UINT64": 64, "RESOURCE": 32, "VARIANT": None,
    "UINT32": 32, "UINT16": 16, "INT4": 4, "BFLOAT16": 16, "INT2": 2, "UINT4": 4, "FLOAT8_E4M3FN": 8,
    "FLOAT8_E5M2": 8,
}  # fmt: skip
DTYPES = tuple(ELEMENT_BITS)

_CONV_FIELDS = ("Padding", "StrideH", "StrideW", "DilationHFactor", "DilationWFactor", "FusedActivationFunction")
_POOL_FIELDS = ("Padding", "StrideH", "StrideW", "FilterHeight", "FilterWidth", "FusedActivationFunction")
# The options that some section uses: operator kind -> (table in the bindings, fields read from it).
OPTION_FIELDS: dict[str, tuple[str, tuple[str, ...]]] = {
    "CONV_2D": ("Conv2DOptions", _CONV_FIELDS),
    "DEPTHWISE_CONV_2D": ("DepthwiseConv2DOptions", (*_CONV_FIELDS, "DepthMultiplier")),
    "AVERAGE_POOL_2D": ("Pool2DOptions", _POOL_FIELDS),
    "MAX_POOL_2D": ("Pool2DOptions", _POOL_FIELDS),
    "L2_POOL_2D": ("Pool2DOptions", _POOL_FIELDS),
    "CONCATENATION": ("ConcatenationOptions", ("Axis", "FusedActivationFunction")),
    "RESIZE_NEAREST_NEIGHBOR": ("ResizeNearestNeighborOptions", ("AlignCorners", "HalfPixelCenters")),
    "BATCH_MATMUL": ("BatchMatMulOptions", ("AdjX", "AdjY")),
    "SVDF": ("SVDFOptions", ("Rank",)),
    "VAR_HANDLE": ("VarHandleOptions", ("Container", "SharedName")),
}
# Fields that hold the index of a subgraph which the operator runs.
CALLEE_FIELDS: dict[str, tuple[str, tuple[str, ...]]] = {
    "IF": ("IfOptions", ("ThenSubgraphIndex", "ElseSubgraphIndex")),
    "WHILE": ("WhileOptions", ("CondSubgraphIndex", "BodySubgraphIndex")),
    "CALL": ("CallOptions", ("Subgraph",)),
    "CALL_ONCE": ("CallOnceOptions", ("InitSubgraphIndex",)),
    "STABLEHLO_COMPOSITE": ("StableHLOCompositeOptions", ("DecompositionSubgraphIndex",)),
    "STABLEHLO_WHILE": ("StablehloWhileOptions", ("CondSubgraphIndex", "BodySubgraphIndex")),
    "STABLEHLO_REDUCE": ("StablehloReduceOptions", ("BodySubgraphIndex",)),
    "STABLEHLO_REDUCE_WINDOW": ("StablehloReduceWindowOptions", ("BodySubgraphIndex",)),
    "STABLEHLO_SORT": ("StablehloSortOptions", ("ComparatorSubgraphIndex",)),
    "STABLEHLO_SCATTER": ("StablehloScatterOptions", ("UpdateComputationSubgraphIndex",)),
}


def read_model(data: Bytes) -> ModelGraph:
    """Read a .tflite file, of which only the tables are touched: a memory map stays on disk.

    Raises:
        ModelError: not a TensorFlow Lite model, or a damaged one.
    """
    if len(data) == 0:
        raise ModelError("the file is empty")
    if len(data) < 8 or bytes(data[4:8]) != FILE_IDENTIFIER:
        found = bytes(data[4:8])
        raise ModelError(f"not a TensorFlow Lite model: its identifier is {found!r} instead of {FILE_IDENTIFIER!r}")
    try:
        return _Reader(data).read()
    except (struct.error, IndexError, ValueError, TypeError, OverflowError, AttributeError, MemoryError) as error:
        if isinstance(error, ModelError):
            raise
        # The bindings trust every offset: whatever they trip over, an offset points where it must not.
        raise ModelError("the file is damaged or cut short: one of its offsets points outside of it") from error


class _Reader:
    """Walks the FlatBuffer once. The bindings check nothing, so each index is checked where it is read."""

    def __init__(self, data: Bytes) -> None:
        self.data = data
        self.model = tflite.Model.GetRootAs(data, 0)
        self.notes: dict[str, None] = {}  # an ordered set
        # A sound file spends four bytes on every reference. Shared vectors in a hostile one could claim far more.
        self.references_left = len(data)

    def read(self) -> ModelGraph:
        model = self.model
        self.buffers = tuple(self.buffer_span(self.table(model.Buffers, i)) for i in self.range(model.BuffersLength()))
        self.kinds = [
            self.operator_kind(self.table(model.OperatorCodes, i)) for i in self.range(model.OperatorCodesLength())
        ]
        self.subgraph_count = model.SubgraphsLength()
        if self.subgraph_count == 0:
            raise ModelError("the model has no subgraph, so there is nothing to run")
        subgraphs = tuple(self.subgraph(i) for i in self.range(self.subgraph_count))
        metadata = tuple(self.metadata_entry(i) for i in self.range(model.MetadataLength()))
        return ModelGraph(subgraphs, self.buffers, metadata, tuple(self.notes))

    def range(self, count: int) -> range:
        """``range(count)`` for a vector of references, within what the file's size can honestly hold."""
        self.references_left -= 4 * count
        if self.references_left < 0:
            raise ModelError("the file is damaged: it refers to more items than its size can hold")
        return range(count)

    @staticmethod
    def table(accessor: Callable[[int], Any], i: int) -> Any:
        table = accessor(i)
        if table is None:
            raise ModelError("the file is damaged: a table is missing")
        return table

    @staticmethod
    def text(value: bytes | None) -> str:
        return value.decode("utf-8", "replace") if value else ""

    def indices(self, table: Any, field: str) -> tuple[int, ...]:
        """An int32 vector; a missing one is empty (the bindings return 0 for it)."""
        self.range(getattr(table, field + "Length")())
        vector = getattr(table, field + "AsNumpy")()
        return tuple(vector.tolist()) if isinstance(vector, np.ndarray) else ()

    def buffer_span(self, buffer: tflite.Buffer) -> BufferSpan:
        # Offsets 0 and 1 mean "inside the FlatBuffer"; converters write 1 as a placeholder.
        if buffer.Offset() > 1:
            if buffer.Offset() + buffer.Size() > len(self.data):
                raise ModelError("the file is cut short: the data of an external buffer lies behind its end")
            return BufferSpan(buffer.Offset(), buffer.Size(), is_external=True)
        size = buffer.DataLength()
        if size == 0:
            return BufferSpan(0, 0)
        start = buffer._tab.Vector(buffer._tab.Offset(4))
        if start + size > len(self.data):
            raise ModelError("the file is damaged or cut short: the data of a buffer lies behind its end")
        return BufferSpan(start, size)

    def operator_kind(self, code: tflite.OperatorCode) -> tuple[str, bool]:
        """(name, is it custom). Files from before 2020 know only the one-byte deprecated code, some newer ones only
        the full one, which the bindings' own BuiltinCode() then hides: so the field is read as it is."""
        field = code._tab.Offset(10)
        full = code._tab.Get(number_types.Int32Flags, code._tab.Pos + field) if field else 0
        number = max(full, code.DeprecatedBuiltinCode())
        if number == tflite.BuiltinOperator.CUSTOM:
            return self.text(code.CustomCode()) or "CUSTOM", True
        return BUILTIN_OPCODE2NAME.get(number, f"BUILTIN_{number}"), False

    def metadata_entry(self, i: int) -> tuple[str, int]:
        entry = self.table(self.model.Metadata, i)
        if not 0 <= entry.Buffer() < len(self.buffers):
            raise ModelError(f"the file is damaged: metadata {i} refers to buffer {entry.Buffer()}, which is not there")
        return self.text(entry.Name()), entry.Buffer()

    def subgraph(self, index: int) -> Subgraph:
        table = self.table(self.model.Subgraphs, index)
        count = table.TensorsLength()
        inputs, outputs = self.indices(table, "Inputs"), self.indices(table, "Outputs")
        operators = tuple(self.operator(table, i) for i in self.range(table.OperatorsLength()))
        groups = [("input", inputs, 0), ("output", outputs, 0)]
        groups += [(op.kind, op.inputs + op.outputs + op.intermediates, -1) for op in operators]
        for what, group, lowest in groups:
            for i in group:
                if not lowest <= i < count:
                    raise ModelError(f"the file is damaged: {what} refers to tensor {i} of {count} in subgraph {index}")
        handles = {i for op in operators if op.kind == "VAR_HANDLE" for i in op.outputs}
        given = set(inputs)
        tensors = tuple(
            self.tensor(self.table(table.Tensors, i), i, i in given, i in handles) for i in self.range(count)
        )
        vector = table._tab.Vector(table._tab.Offset(10)) if operators else 0
        return Subgraph(index, self.text(table.Name()), tensors, operators, inputs, outputs, vector)

    def tensor(self, table: tflite.Tensor, index: int, is_input: bool, is_handle: bool) -> Tensor:
        name, buffer = self.text(table.Name()), table.Buffer()
        if not 0 <= buffer < max(len(self.buffers), 1):  # buffer 0 means "no data", even where it does not exist
            raise ModelError(f"the file is damaged: tensor {index} refers to buffer {buffer}, which is not there")
        number = table.Type()
        dtype = DTYPES[number] if 0 <= number < len(DTYPES) else f"TYPE_{number}"
        shape = self.indices(table, "Shape")
        is_dynamic = any(d < 0 for d in shape + self.indices(table, "ShapeSignature"))
        elsewhere = table._tab.Offset(24)  # external_buffer, newer than the bindings: the data is in another file
        if ((buffer and self.buffers[buffer].size > 0) or elsewhere) and not is_input:
            storage = Storage.CONSTANT
        elif table.IsVariable() or is_handle:
            storage = Storage.STATE
        else:
            storage = Storage.ACTIVATION
        size = self.tensor_bytes(f"tensor {index} ({shorten(name)})", dtype, shape)
        if storage is Storage.ACTIVATION:
            if size is None:
                why = "its shape is only known at run time" if ELEMENT_BITS.get(dtype) else f"its type is {dtype}"
                self.notes[
                    f"the size of tensor {index} ({shorten(name)}) is unknown, since {why}; it counts as 0 B"
                ] = None
            elif is_dynamic:
                self.notes["dimensions that are only known at run time (-1) are counted as stored in the file"] = None
        return Tensor(
            index,
            name,
            dtype,
            shape,
            storage,
            buffer,
            size,
            is_dynamic,
            table.Sparsity() is not None,
            self.quantization(table.Quantization()),
        )

    def tensor_bytes(self, what: str, dtype: str, shape: tuple[int, ...]) -> int | None:
        elements = math.prod(abs(d) for d in shape) if len(shape) <= HIGHEST_RANK else LARGEST_TENSOR + 1
        if elements > LARGEST_TENSOR:
            raise ModelError(f"the file is damaged: {what} claims an impossible shape")
        bits = ELEMENT_BITS.get(dtype)
        if bits is None or any(d < 0 for d in shape):
            return None
        return (elements * bits + 7) // 8

    def quantization(self, table: tflite.QuantizationParameters | None) -> Quantization | None:
        if table is None or table.ScaleLength() == 0:
            return None
        return Quantization(self.indices(table, "Scale"), self.indices(table, "ZeroPoint"), table.QuantizedDimension())

    def operator(self, subgraph: tflite.SubGraph, index: int) -> Operator:
        table = self.table(subgraph.Operators, index)
        if not 0 <= table.OpcodeIndex() < len(self.kinds):
            raise ModelError(f"the file is damaged: operator {index} has an operator code that is not there")
        kind, is_custom = self.kinds[table.OpcodeIndex()]
        options = self.options(table, kind, OPTION_FIELDS)
        callees = tuple(self.options(table, kind, CALLEE_FIELDS).values())
        for callee in callees:
            if not 0 <= callee < self.subgraph_count:
                raise ModelError(f"the file is damaged: {kind} runs subgraph {callee}, which is not there")
        self.range(table.CustomOptionsLength() // 4)
        custom = table.CustomOptionsAsNumpy() if is_custom else 0
        return Operator(
            index,
            kind,
            is_custom,
            self.indices(table, "Inputs"),
            self.indices(table, "Outputs"),
            self.indices(table, "Intermediates"),
            callees,
            options,
            custom.tobytes() if isinstance(custom, np.ndarray) else b"",
        )

    @staticmethod
    def options(table: tflite.Operator, kind: str, wanted: Mapping[str, tuple[str, tuple[str, ...]]]) -> dict[str, Any]:
        """The wanted fields of the operator's options, from whichever of the two unions holds them."""
        if kind not in wanted:
            return {}
        name, fields = wanted[kind]
        for union, number, content in (
            (tflite.BuiltinOptions, table.BuiltinOptionsType(), table.BuiltinOptions()),
            (tflite.BuiltinOptions2, table.BuiltinOptions2Type(), table.BuiltinOptions2()),
        ):
            if content is not None and number == getattr(union, name, None):
                options = getattr(tflite, name)()
                options.Init(content.Bytes, content.Pos)
                return {field: getattr(options, field)() for field in fields}
        return {}


####################################################################################################
# Memory accounting: who is alive when, and how many bytes that is
####################################################################################################


@dataclass(frozen=True)
class Lifetime:
    """First and last step (both inclusive) at which a tensor occupies memory.

    ``first`` is -1 for what is there before the first operator runs (graph inputs, and tensors that are read but
    never written); ``last`` is the number of operators for graph outputs, which stay until the inference is over.
    """

    first: int
    last: int


@dataclass(frozen=True)
class Step:
    """The working set of one operator: the sorted ids of the tensors alive while it runs, and all their bytes."""

    operator: Operator
    live: tuple[int, ...]
    bytes: int  # with ``callee_bytes``
    callee_bytes: int = 0  # the peak of the subgraph that the operator runs


@dataclass(frozen=True)
class Schedule:
    """A subgraph's operators in file order with their working sets; ``peak`` is the largest one, in bytes."""

    subgraph: Subgraph
    steps: tuple[Step, ...]
    peak: int


def tensor_lifetimes(subgraph: Subgraph) -> dict[int, Lifetime]:
    """The lifetime of every tensor that takes working memory, in file order."""
    end = len(subgraph.operators)
    first: dict[int, int] = dict.fromkeys(subgraph.inputs, -1)
    last: dict[int, int] = dict.fromkeys(subgraph.inputs, -1)
    for step, operator in enumerate(subgraph.operators):
        for i in operator.reads:
            first.setdefault(i, -1)
            last[i] = step
        for i in operator.writes:
            first.setdefault(i, step)
            last[i] = step
    for i in subgraph.outputs:
        first.setdefault(i, -1)
        last[i] = end
    return {i: Lifetime(first[i], last[i]) for i in sorted(first) if subgraph.tensors[i].size > 0}


def schedule_subgraph(subgraph: Subgraph, callee_peaks: Mapping[int, int]) -> Schedule:
    """Working sets in file order; ``callee_peaks`` has the peak of every subgraph that an operator here may run.

    An operator runs its callees one at a time (a branch, or condition and body), so the largest of them counts.
    """
    lifetimes = tensor_lifetimes(subgraph)
    born, dies = defaultdict(list), defaultdict(list)
    for i, life in lifetimes.items():
        born[max(life.first, 0)].append(i)
        dies[life.last].append(i)
    live: set[int] = set()
    steps = []
    for number, operator in enumerate(subgraph.operators):
        live.difference_update(dies[number - 1])
        live.update(i for i in born[number] if lifetimes[i].last >= number)
        callee = max((callee_peaks[c] for c in operator.callees), default=0)
        held = sum(subgraph.tensors[i].size for i in live)
        steps.append(Step(operator, tuple(sorted(live)), held + callee, callee))
    # An input that no operator reads is in nobody's working set, but the caller still has to fill it.
    entry = sum(subgraph.tensors[i].size for i, life in lifetimes.items() if life.first < 0)
    return Schedule(subgraph, tuple(steps), max([entry, *(step.bytes for step in steps)]))


DEEPEST_CALLS = 64  # subgraphs that run each other; no real model comes near


def callees_first(graph: ModelGraph) -> list[int]:
    """Subgraph indices, each after all subgraphs that it runs.

    Raises:
        ModelError: a subgraph runs itself, directly or through others, or the calls are nested absurdly deep.
    """
    callees = {s.index: {c for op in s.operators for c in op.callees} for s in graph.subgraphs}
    callers = defaultdict(list)
    for index, called in callees.items():
        for c in called:
            callers[c].append(index)
    waiting = {index: len(called) for index, called in callees.items()}
    order = [index for index, count in waiting.items() if count == 0]
    depth = dict.fromkeys(order, 1)
    for index in order:  # which grows on the way
        for caller in callers[index]:
            waiting[caller] -= 1
            if waiting[caller] == 0:
                depth[caller] = 1 + max(depth[c] for c in callees[caller])
                order.append(caller)
    if len(order) < len(callees):
        culprit = min(set(callees) - set(order))
        raise ModelError(f"the file is damaged: subgraph {culprit} runs itself, so its memory use has no bound")
    if max(depth.values()) > DEEPEST_CALLS:
        raise ModelError(f"subgraphs run each other more than {DEEPEST_CALLS} deep, which no runtime survives")
    return order


def schedule_model(graph: ModelGraph) -> tuple[Schedule, ...]:
    """The schedule of every subgraph, by subgraph index."""
    schedules: dict[int, Schedule] = {}
    peaks: dict[int, int] = {}
    for index in callees_first(graph):
        schedules[index] = schedule_subgraph(graph.subgraphs[index], peaks)
        peaks[index] = schedules[index].peak
    return tuple(schedules[subgraph.index] for subgraph in graph.subgraphs)


def resource_name(subgraph: Subgraph, tensor: int) -> str | None:
    """The name of the variable behind a resource handle; None when the handle comes from the caller."""
    for operator in subgraph.operators:
        if operator.kind == "VAR_HANDLE" and tensor in operator.writes:
            container, name = (operator.options.get(f) or b"" for f in ("Container", "SharedName"))
            return f"{container!r}/{name!r}"
    return None


def state_bytes(graph: ModelGraph) -> int:
    """Bytes that live from one inference to the next: variable tensors, and each resource variable once."""
    total = 0
    resources: dict[str, int] = {}
    for subgraph in graph.subgraphs:
        tensors = subgraph.tensors
        total += sum(t.bytes or 0 for t in tensors if t.is_updated_in_place)
        for operator in subgraph.operators:
            if operator.kind == "ASSIGN_VARIABLE" and len(operator.reads) == 2:
                name = resource_name(subgraph, operator.reads[0])
                if name is not None:
                    resources[name] = max(resources.get(name, 0), tensors[operator.reads[1]].bytes or 0)
    return total + sum(resources.values())


def multiply_accumulates(subgraph: Subgraph, operator: Operator) -> int:
    """Approximate MACs of one operator; 0 for kinds that only move or map data.

    Convolutions and matrix products count exactly; pooling and MEAN count one per element read, ADD one per sum.
    """
    kind, tensors = operator.kind, subgraph.tensors
    shapes = [tensors[i].shape if i >= 0 else () for i in operator.inputs]
    if not shapes or any(d < 0 for i in (*operator.reads, *operator.writes) for d in tensors[i].shape):
        return 0
    out = tensors[operator.writes[0]].elements if operator.writes else 0
    filter_shape = shapes[1] if len(shapes) > 1 else ()
    if kind == "CONV_2D" and len(filter_shape) == 4:
        return out * math.prod(filter_shape[1:])
    if kind == "DEPTHWISE_CONV_2D" and len(filter_shape) == 4:
        return out * filter_shape[1] * filter_shape[2]
    if kind == "CONV_3D" and len(filter_shape) == 5:
        return out * math.prod(filter_shape[:4])
    if kind == "TRANSPOSE_CONV" and len(shapes) > 2:  # inputs: output shape, filter, activations
        return math.prod(shapes[2]) * math.prod(filter_shape[:3])
    if kind == "FULLY_CONNECTED" and filter_shape:
        return out * filter_shape[-1]
    if kind == "BATCH_MATMUL" and len(shapes[0]) > 1:
        return out * shapes[0][-2 if operator.options.get("AdjX") else -1]
    if kind in ("UNIDIRECTIONAL_SEQUENCE_LSTM", "LSTM", "RNN", "UNIDIRECTIONAL_SEQUENCE_RNN", "SVDF"):
        matrices = sum(
            math.prod(s)
            for i, s in zip(operator.inputs, shapes, strict=True)
            if i >= 0 and len(s) == 2 and tensors[i].storage is Storage.CONSTANT
        )
        return matrices * (math.prod(shapes[0][:-1]) if kind != "SVDF" else 1)
    if kind in ("AVERAGE_POOL_2D", "MAX_POOL_2D", "L2_POOL_2D"):
        return out * operator.options.get("FilterHeight", 1) * operator.options.get("FilterWidth", 1)
    if kind == "MEAN":
        return math.prod(shapes[0])
    return out * (len(shapes) - 1) if kind in ("ADD", "ADD_N") else 0


def parameter_bytes(graph: ModelGraph, subgraph: Subgraph, operators: Iterable[Operator]) -> int:
    """Bytes of flash that the constants of these operators take; a buffer that is shared counts once."""
    constants = {i for op in operators for i in op.reads if subgraph.tensors[i].storage is Storage.CONSTANT}
    return sum(graph.buffers[b].size for b in {subgraph.tensors[i].buffer for i in constants})


####################################################################################################
# Operator ordering: an abstract problem -> the order of the smallest peak, and a certificate
####################################################################################################

# Sets of tasks are Python integers (bit t = task t) wherever there are few of them, and rows of numpy uint64 words
# in the sweeps, where there are millions. A set that contains all predecessors of its members is a *down-set*: it is
# what an order has executed at some moment. live(S), the bytes alive after S, is submodular, since every buffer's
# part of it is the cut function of one directed hyperedge. Everything below rests on that.


@dataclass(frozen=True)
class OrderingProblem:
    """Tasks that produce and consume buffers, to be run one after the other in as little memory as possible.

    A buffer takes its size in bytes from its producer on (or from the start, when that is None), until its last
    consumer has run, or to the end when it is kept. A task also takes its ``transient`` bytes, on top of everything
    alive, while it runs. ``precedence`` holds further (before, after) pairs.
    """

    transient: tuple[int, ...]
    sizes: tuple[int, ...]
    producers: tuple[int | None, ...]
    consumers: tuple[tuple[int, ...], ...]
    kept: tuple[bool, ...]
    precedence: tuple[tuple[int, int], ...] = ()

    @property
    def tasks(self) -> int:
        return len(self.transient)

    @cached_property
    def predecessors(self) -> list[int]:
        """Per task the set of tasks that it directly waits for."""
        sets = [0] * self.tasks
        for before, after in self.precedence:
            sets[after] |= 1 << before
        for producer, consumers in zip(self.producers, self.consumers, strict=True):
            if producer is not None:
                for consumer in consumers:
                    sets[consumer] |= 1 << producer
        return sets

    @cached_property
    def successors(self) -> list[int]:
        sets = [0] * self.tasks
        for task, before in enumerate(self.predecessors):
            for p in members(before):
                sets[p] |= 1 << task
        return sets

    @cached_property
    def topological(self) -> list[int]:
        """The tasks in an order that respects all predecessors, by number where there is a choice."""
        import heapq

        waiting = [before.bit_count() for before in self.predecessors]
        ready = [t for t in range(self.tasks) if waiting[t] == 0]
        order = []
        while ready:
            order.append(task := heapq.heappop(ready))
            for s in members(self.successors[task]):
                waiting[s] -= 1
                if waiting[s] == 0:
                    heapq.heappush(ready, s)
        if len(order) < self.tasks:
            raise ValueError("the tasks wait for each other in a circle, so no order exists")
        return order

    @cached_property
    def ancestors(self) -> list[int]:
        sets = [0] * self.tasks
        for t in self.topological:
            for p in members(self.predecessors[t]):
                sets[t] |= sets[p] | 1 << p
        return sets

    @cached_property
    def descendants(self) -> list[int]:
        sets = [0] * self.tasks
        for t in reversed(self.topological):
            for s in members(self.successors[t]):
                sets[t] |= sets[s] | 1 << s
        return sets

    @cached_property
    def inputs(self) -> list[list[int]]:
        """Per task the buffers that it consumes."""
        lists: list[list[int]] = [[] for _ in range(self.tasks)]
        for b, consumers in enumerate(self.consumers):
            for task in consumers:
                lists[task].append(b)
        return lists

    @cached_property
    def outputs(self) -> list[list[int]]:
        lists: list[list[int]] = [[] for _ in range(self.tasks)]
        for b, producer in enumerate(self.producers):
            if producer is not None:
                lists[producer].append(b)
        return lists

    @cached_property
    def demand(self) -> list[int]:
        """Per task the bytes that it needs on top of what is alive before it: outputs and transient."""
        return [sum(self.sizes[b] for b in self.outputs[t]) + self.transient[t] for t in range(self.tasks)]

    @cached_property
    def consumer_sets(self) -> list[int]:
        return [sum(1 << t for t in set(consumers)) for consumers in self.consumers]

    def live(self, executed: int) -> int:
        """Bytes alive once a down-set has been executed."""
        return sum(
            size
            for size, producer, consumers, kept in zip(
                self.sizes, self.producers, self.consumer_sets, self.kept, strict=True
            )
            if (producer is None or executed >> producer & 1) and (kept or consumers & ~executed)
        )

    def needs(self, order: Sequence[int]) -> list[int]:
        """The bytes in use while each task of the order runs; their maximum is the peak."""
        waiting = [consumers.bit_count() + kept for consumers, kept in zip(self.consumer_sets, self.kept, strict=True)]
        live = sum(
            size
            for size, producer, left in zip(self.sizes, self.producers, waiting, strict=True)
            if producer is None and left
        )
        needs = []
        for task in order:
            needs.append(live + self.demand[task])
            live += sum(self.sizes[b] for b in self.outputs[task] if waiting[b])
            for b in self.inputs[task]:
                waiting[b] -= 1
                if waiting[b] == 0:
                    live -= self.sizes[b]
        return needs

    def peak(self, order: Sequence[int]) -> int:
        return max(self.needs(order), default=0)


def members(task_set: int) -> Iterator[int]:
    """The tasks of a set, in ascending order."""
    while task_set:
        lowest = task_set & -task_set
        yield lowest.bit_length() - 1
        task_set ^= lowest


def restrict(problem: OrderingProblem, start: int, end: int) -> tuple[OrderingProblem, list[int]]:
    """The part of a problem between two down-sets, and the numbers that its tasks have in the whole."""
    tasks = list(members(end & ~start))
    number = {task: i for i, task in enumerate(tasks)}
    inside = end & ~start
    sizes, producers, consumers, kept = [], [], [], []
    idle = 0  # bytes that are there all the time
    for size, producer, users, stays in zip(
        problem.sizes, problem.producers, problem.consumer_sets, problem.kept, strict=True
    ):
        maker = None if producer is None else number.get(producer)
        if maker is None and ((producer is not None and not start >> producer & 1) or not (stays or users & ~start)):
            continue  # born later, or dead already
        if maker is None and not users & inside:
            idle += size
            continue
        sizes.append(size)
        producers.append(maker)
        consumers.append(tuple(number[t] for t in members(users & inside)))
        kept.append(bool(stays or users & ~end))
    if idle:
        sizes, producers, consumers, kept = [*sizes, idle], [*producers, None], [*consumers, ()], [*kept, True]
    pairs = tuple((number[a], number[b]) for a, b in problem.precedence if a in number and b in number)
    part = OrderingProblem(
        tuple(problem.transient[t] for t in tasks), tuple(sizes), tuple(producers), tuple(consumers), tuple(kept), pairs
    )
    return part, tasks


def merge_tasks(problem: OrderingProblem) -> tuple[OrderingProblem, list[list[int]]]:
    """Fuse tasks that some optimal order runs back to back; returns the smaller problem and the fused tasks' parts.

    By submodularity, whatever never raises live() may be done at once if it fits: so ``b`` follows ``a`` directly if
    it becomes ready with ``a``, its net effect is never positive, and it never needs more than ``a`` did. Read
    backwards in time the same says when ``a`` waits until just before ``b``. (Generalises the hill-valley segments
    of Liu 1987 and the optimality-preserving fusion of Zhong et al., ICCAD 2023, to shared buffers.)
    """
    groups = [[t] for t in range(problem.tasks)]
    while True:
        problem, merged = _merge_once(_drop_dead_buffers(problem))
        if len(merged) == len(groups):
            return problem, groups
        groups = [[task for part in parts for task in groups[part]] for parts in merged]


def _drop_dead_buffers(problem: OrderingProblem) -> OrderingProblem:
    """A buffer that nobody reads or keeps is alive only while its producer runs: the same as transient bytes."""
    transient = list(problem.transient)
    alive = []
    for b, producer in enumerate(problem.producers):
        if problem.consumers[b] or problem.kept[b]:
            alive.append(b)
        elif producer is not None:
            transient[producer] += problem.sizes[b]
    if len(alive) == len(problem.sizes):
        return problem
    return dataclasses.replace(
        problem,
        transient=tuple(transient),
        sizes=tuple(problem.sizes[b] for b in alive),
        producers=tuple(problem.producers[b] for b in alive),
        consumers=tuple(problem.consumers[b] for b in alive),
        kept=tuple(problem.kept[b] for b in alive),
    )


def _merge_once(problem: OrderingProblem) -> tuple[OrderingProblem, list[list[int]]]:
    """One round of disjoint fusions of two tasks each."""
    ancestors, descendants = problem.ancestors, problem.descendants
    produced = [sum(problem.sizes[b] for b in problem.outputs[t]) for t in range(problem.tasks)]
    surely_freed, possibly_freed = [0] * problem.tasks, [0] * problem.tasks
    for t in range(problem.tasks):
        for b in problem.inputs[t]:
            if not problem.kept[b]:
                others = problem.consumer_sets[b] & ~(1 << t)
                surely_freed[t] += problem.sizes[b] if not others & ~ancestors[t] else 0
                possibly_freed[t] += problem.sizes[b] if not others & descendants[t] else 0

    def follows(a: int, b: int) -> bool:
        return (
            not problem.predecessors[b] & ~(ancestors[a] | 1 << a)
            and produced[b] <= surely_freed[b]
            and produced[b] + problem.transient[b] <= problem.transient[a] + surely_freed[a]
        )

    def waits(a: int, b: int) -> bool:
        return (
            not problem.successors[a] & ~(descendants[b] | 1 << b)
            and produced[a] >= possibly_freed[a]
            and surely_freed[a] == possibly_freed[a]
            and problem.transient[a] + possibly_freed[a] <= produced[b] + problem.transient[b]
        )

    partner: dict[int, tuple[int, int]] = {}  # second of a pair -> (first, bytes needed on top of live before it)
    taken = 0
    for b in problem.topological:
        for a in members(problem.predecessors[b] & ~taken):
            if follows(a, b):
                partner[b] = a, produced[a] + problem.transient[a]
            elif waits(a, b):
                partner[b] = a, produced[a] - surely_freed[a] + produced[b] + problem.transient[b]
            else:
                continue
            taken |= 1 << a | 1 << b
            break
    return _contract(problem, partner, produced)


def _contract(
    problem: OrderingProblem, partner: Mapping[int, tuple[int, int]], produced: Sequence[int]
) -> tuple[OrderingProblem, list[list[int]]]:
    firsts = {a for a, _ in partner.values()}
    groups = [[partner[t][0], t] if t in partner else [t] for t in range(problem.tasks) if t not in firsts]
    number = {task: i for i, group in enumerate(groups) for task in group}
    sizes, producers, consumers, kept = [], [], [], []
    outputs = [0] * len(groups)
    for size, producer, users, stays in zip(
        problem.sizes, problem.producers, problem.consumers, problem.kept, strict=True
    ):
        maker = None if producer is None else number[producer]
        left = tuple(dict.fromkeys(number[t] for t in users if number[t] != maker))
        if not left and not stays and (maker is not None or not users):
            continue  # lives and dies inside a fused task
        if maker is not None:
            outputs[maker] += size
        sizes.append(size)
        producers.append(maker)
        consumers.append(left)
        kept.append(stays)
    needed = [partner[g[-1]][1] if g[-1] in partner else produced[g[0]] + problem.transient[g[0]] for g in groups]
    pairs = dict.fromkeys((number[a], number[b]) for a, b in problem.precedence if number[a] != number[b])
    contracted = OrderingProblem(
        tuple(n - o for n, o in zip(needed, outputs, strict=True)),
        tuple(sizes),
        tuple(producers),
        tuple(consumers),
        tuple(kept),
        tuple(pairs),
    )
    return contracted, groups


def series_cuts(problem: OrderingProblem) -> list[int]:
    """Down-sets through which every order passes, from the empty one to all tasks."""
    ranked = sorted(range(problem.tasks), key=lambda t: problem.ancestors[t].bit_count())
    common = [-1] * (len(ranked) + 1)  # what all tasks from that rank on wait for
    for rank in reversed(range(len(ranked))):
        common[rank] = common[rank + 1] & problem.ancestors[ranked[rank]]
    cuts, prefix = [0], 0
    for rank, task in enumerate(ranked):
        prefix |= 1 << task
        if not prefix & ~common[rank + 1]:
            cuts.append(prefix)
    return cuts


class _CutNetwork:
    """Minimum cuts of one problem: the cheapest down-set under constraints, by maximum flow.

    Per buffer an arc producer -> buffer of its size and infinite arcs buffer -> consumers; per predecessor an infinite
    arc back. The source side of a minimum cut is then the down-set S with the smallest live(S).
    """

    def __init__(self, problem: OrderingProblem) -> None:
        from ortools.graph.python import max_flow

        n = problem.tasks
        self.problem, self.source, self.sink = problem, n, n + 1
        self.infinite = sum(problem.sizes) + 1
        arcs: list[tuple[int, int, int]] = []
        node = n + 2
        for size, producer, consumers, kept in zip(
            problem.sizes, problem.producers, problem.consumers, problem.kept, strict=True
        ):
            origin = self.source if producer is None else producer
            if size == 0:
                continue
            if kept:
                arcs.append((origin, self.sink, size))
            elif len(consumers) == 1:
                arcs.append((origin, consumers[0], size))
            else:
                arcs.append((origin, node, size))
                arcs += [(node, consumer, self.infinite) for consumer in consumers]
                node += 1
        for task, before in enumerate(problem.predecessors):
            arcs += [(task, p, self.infinite) for p in members(before)]
        self.flow = max_flow.SimpleMaxFlow()
        if arcs:
            tails, heads, capacities = np.array(arcs, dtype=np.int64).T
            self.flow.add_arcs_with_capacity(tails, heads, capacities)
        tasks, zeros = np.arange(n), np.zeros(n, dtype=np.int64)
        self.force_in = self.flow.add_arcs_with_capacity(np.full(n, self.source), tasks, zeros)
        self.force_out = self.flow.add_arcs_with_capacity(tasks, np.full(n, self.sink), zeros)
        self.status_ok = max_flow.SimpleMaxFlow.OPTIMAL

    def cheapest(self, inside: int, outside: int) -> tuple[int, int]:
        """(live bytes, S) of the cheapest down-set S that contains ``inside`` and nothing of ``outside``."""
        for arcs, chosen in ((self.force_in, inside), (self.force_out, outside)):
            capacities = np.zeros(self.problem.tasks, dtype=np.int64)
            capacities[list(members(chosen))] = self.infinite
            self.flow.set_arcs_capacity(arcs, capacities)
        if self.flow.solve(self.source, self.sink) != self.status_ok:
            raise ArithmeticError("the sizes of the tensors overflow the flow solver")
        side = np.zeros(self.source, dtype=bool)
        nodes = np.array(self.flow.get_source_side_min_cut())
        side[nodes[nodes < self.source]] = True
        return self.flow.optimal_flow(), int.from_bytes(np.packbits(side, bitorder="little").tobytes(), "little")

    def bound(self, task: int, inside: int = 0, outside: int = 0) -> tuple[int, int]:
        """(least bytes in use while ``task`` runs, in any order; the set executed before it where that is so).

        ``inside`` and ``outside`` are what the order is known to run before and after the task.
        """
        live, executed = self.cheapest(self.problem.predecessors[task] | inside, 1 << task | outside)
        return live + self.problem.demand[task], executed


class _Sweep:
    """Level-by-level search for an order within a budget: level k holds every set of k tasks worth keeping.

    The columns of an array of uint64 words are the sets, and all states of a level advance together. Forwards a state
    is the down-set that has run, with ``reverse`` what has been un-run from the end; live() is the same function.
    No buffer may be dead from the start (merge_tasks turns those into transient bytes).
    Two consequences of submodularity keep the levels small: a move that fits and does not raise live() is made at
    once and alone, and a state no dearer than the last committed one makes all others superfluous.
    """

    def __init__(self, problem: OrderingProblem, reverse: bool = False) -> None:
        self.problem, self.reverse = problem, reverse
        self.words = (problem.tasks + 63) // 64
        self.required = problem.successors if reverse else problem.predecessors
        self.required_words = [self.split_words(s) for s in self.required]
        self.born = [sum(problem.sizes[b] for b in problem.outputs[t]) for t in range(problem.tasks)]
        # Per task the buffers that it may be the last to read: the other readers, and the bytes.
        self.freeable: list[list[tuple[list[tuple[int, np.uint64]], int]]] = []
        for t in range(problem.tasks):
            bytes_by_others: dict[int, int] = defaultdict(int)
            for b in problem.inputs[t]:
                others = problem.consumer_sets[b] & ~(1 << t) & ~problem.ancestors[t]
                if problem.sizes[b] and not problem.kept[b] and not others & problem.descendants[t]:
                    bytes_by_others[others] += problem.sizes[b]
            self.freeable.append([(self.split_words(others), size) for others, size in bytes_by_others.items()])
        before, after = problem.ancestors, problem.descendants
        if reverse:
            before, after = after, before
        # The levels at which a task can be next: not before all that must precede it, nor after all that may.
        self.opens: dict[int, list[int]] = defaultdict(list)
        for t in range(problem.tasks):
            self.opens[before[t].bit_count()].append(t)
        self.closes = [problem.tasks - 1 - s.bit_count() for s in after]
        self.start_live = problem.live((1 << problem.tasks) - 1 if reverse else 0)
        self.order: list[int] | None = None
        self.is_exhaustive = True  # False once a beam or a limit has dropped a state

    def split_words(self, task_set: int) -> list[tuple[int, np.uint64]]:
        """The non-zero words of a set: (word, bits)."""
        full = (1 << 64) - 1
        return [(w, np.uint64(task_set >> 64 * w & full)) for w in range(self.words) if task_set >> 64 * w & full]

    def levels(self, budget: int, width: int | None = None) -> Iterator[int]:
        """Sweep, yielding the number of states of each level; afterwards ``order`` and ``is_exhaustive`` tell.

        ``width`` makes the sweep a beam that keeps the states with the fewest bytes alive.
        """
        self.order, self.is_exhaustive = None, True
        states = np.zeros((self.words, 1), dtype=np.uint64)
        live = np.array([self.start_live], dtype=np.int64)
        committed = self.start_live
        history: list[tuple[np.ndarray, np.ndarray]] = []
        window: list[int] = []
        for level in range(self.problem.tasks):
            yield states.shape[1]
            window = sorted([t for t in window if self.closes[t] >= level] + self.opens[level])
            moves = self.moves(states, live, budget, window)
            if not moves:
                return
            parent = np.concatenate([chosen for _, chosen, _ in moves]).astype(np.int32)
            task = np.concatenate([np.full(len(chosen), t, dtype=np.int32) for t, chosen, _ in moves])
            live = np.concatenate([after for _, _, after in moves])
            if len(parent) * self.words > FRONTIER_WORDS:  # would not fit in memory
                self.is_exhaustive = False
                cheapest = np.argsort(live, kind="stable")[: FRONTIER_WORDS // self.words]
                parent, task, live = parent[cheapest], task[cheapest], live[cheapest]
            lowest = int(np.argmin(live))
            if live[lowest] <= committed:
                committed = int(live[lowest])
                parent, task, live = parent[[lowest]], task[[lowest]], live[[lowest]]
            states = states[:, parent]
            states[task >> 6, np.arange(len(task))] |= np.uint64(1) << (task & 63).astype(np.uint64)
            keep = self.distinct(states)
            if width is not None and len(keep) > width:
                self.is_exhaustive = False
                keep = keep[np.argsort(live[keep], kind="stable")[:width]]
            states, live = states[:, keep], live[keep]
            history.append((parent[keep], task[keep]))
        order, state = [], 0
        for parent, task in reversed(history):
            order.append(int(task[state]))
            state = int(parent[state])
        self.order = order if self.reverse else order[::-1]

    def moves(
        self, states: np.ndarray, live: np.ndarray, budget: int, window: Iterable[int]
    ) -> list[tuple[int, np.ndarray, np.ndarray]]:
        """What of the window to run next: (task, the states that run it, the bytes alive then), free moves alone."""
        everywhere, anywhere = (
            int.from_bytes(reduce.reduce(states, axis=1).astype("<u8").tobytes(), "little")
            for reduce in (np.bitwise_and, np.bitwise_or)
        )
        found = []
        free_move = np.full(states.shape[1], -1, dtype=np.int32)
        for t in window:
            if everywhere >> t & 1 or self.required[t] & ~anywhere:
                continue
            ready = states[t >> 6] & np.uint64(1 << (t & 63)) == 0
            for word, bits in self.required_words[t]:
                ready &= states[word] & bits == bits
            chosen = np.flatnonzero(ready)
            if not len(chosen):
                continue
            freed = np.zeros(len(chosen), dtype=np.int64)
            for others, size in self.freeable[t]:
                gone = np.ones(len(chosen), dtype=bool)
                for word, bits in others:
                    gone &= states[word, chosen] & bits == (0 if self.reverse else bits)
                freed += size * gone
            now = live[chosen]
            after = now - self.born[t] + freed if self.reverse else now + self.born[t] - freed
            fits = (after if self.reverse else now) + self.problem.demand[t] <= budget
            chosen, after, now = chosen[fits], after[fits], now[fits]
            if len(chosen):
                found.append((t, chosen, after))
                free = chosen[after <= now]
                free_move[free[free_move[free] < 0]] = t
        result = []
        for t, chosen, after in found:
            allowed = (free_move[chosen] < 0) | (free_move[chosen] == t)
            result.append((t, chosen[allowed], after[allowed]))
        return result

    def distinct(self, states: np.ndarray) -> np.ndarray:
        """Indices of the columns without repetitions (at worst, with some: a hash only brings equal ones together)."""
        varying = states[(states != states[:, :1]).any(axis=1)]
        if len(varying) == 1:
            return np.unique(varying[0], return_index=True)[1]
        mixed = np.zeros(states.shape[1], dtype=np.uint64)
        for word in varying:
            mixed = (mixed ^ word) * np.uint64(0x9E3779B97F4A7C15)
            mixed ^= mixed >> np.uint64(29)
        order = np.argsort(mixed, kind="stable")
        ranked = varying[:, order]
        repeated = (ranked[:, 1:] == ranked[:, :-1]).all(axis=0)
        return order[np.concatenate([[True], ~repeated])]


FRONTIER_WORDS = 1 << 23  # the largest level of a sweep: 64 MiB of states, a few times that with temporaries
SWEEP_STATES = 1 << 26  # states of one sweep: 512 MiB of history


def order_by_cuts(problem: OrderingProblem, stop: Callable[[], bool]) -> list[int] | None:
    """A good order for wide graphs: where memory is tightest, run what the minimum cut says, then that task, then the
    rest, each part by the same rule. None when ``stop`` says so first."""
    order: list[int] = []
    stack = [(problem, list(range(problem.tasks)))]
    while stack:
        part, names = stack.pop()
        if part.tasks <= 1:
            order += names
            continue
        if stop():
            return None
        _, task, before = largest_bound(_CutNetwork(part), part.topological)
        everything = (1 << part.tasks) - 1
        pieces = [(0, before), (before, before | 1 << task), (before | 1 << task, everything)]
        for start, end in reversed(pieces):
            piece, tasks = restrict(part, start, end)
            stack.append((piece, [names[t] for t in tasks]))
    return order


def largest_bound(
    network: _CutNetwork,
    order: Sequence[int],
    floor: int = -1,
    stop: Callable[[], bool] = lambda: False,
    most: int | None = None,
) -> tuple[int, int, int]:
    """(bytes, task, the set executed before it): the largest of the tasks' lower bounds that exceeds ``floor``.

    What a task needs in any order is no less than its bound, so the needs of ``order`` tell where to stop looking.
    When ``stop`` says so, or after ``most`` of the tasks, the largest bound so far is returned.
    """
    needs = network.problem.needs(order)
    best = floor, -1, 0
    for position in sorted(range(len(order)), key=lambda i: -needs[i])[:most]:
        if needs[position] <= best[0] or stop():
            break
        bound, executed = network.bound(order[position])
        if bound > best[0]:
            best = bound, order[position], executed
    return best


@dataclass(frozen=True)
class Ordering:
    """An order of the tasks, its peak in bytes, and ``bound``: no order whatsoever has a lower peak than that."""

    order: tuple[int, ...]
    peak: int
    bound: int
    states: int = 0  # sets of executed tasks looked at
    seconds: float = 0.0

    @property
    def optimal(self) -> bool:
        return self.peak <= self.bound


class _Piece:
    """A stretch of the problem between two series cuts: its best order so far and its proven bound."""

    def __init__(self, problem: OrderingProblem, names: list[int], stop: Callable[[], bool]) -> None:
        self.problem, self.names, self.stop = problem, names, stop
        self.order = problem.topological
        self.upper = problem.peak(self.order)
        self.lower = max(
            problem.demand[t] + sum(problem.sizes[b] for b in problem.inputs[t]) for t in range(problem.tasks)
        )

    @cached_property
    def network(self) -> _CutNetwork:
        return _CutNetwork(self.problem)

    @cached_property
    def sweeps(self) -> tuple[_Sweep, _Sweep]:
        return _Sweep(self.problem), _Sweep(self.problem, reverse=True)

    def tighten(self, most: int | None = None) -> None:
        """Raise the lower bound to what minimum cuts prove, as far as it can matter for the current order."""
        if self.lower < self.upper:
            self.lower = max(self.lower, largest_bound(self.network, self.order, self.lower, self.stop, most)[0])

    def adopt(self, order: list[int] | None) -> bool:
        """Take an order if it is better than the best so far."""
        if order is None or (peak := self.problem.peak(order)) >= self.upper:
            return False
        self.order, self.upper = order, peak
        self.tighten()
        return True


class _Search:
    """The portfolio: cheap orders first, then proofs, always on the piece that has the largest peak left."""

    def __init__(self, problem: OrderingProblem, deadline: float, progress: Callable[[int, int, int], None]) -> None:
        self.deadline, self.progress = deadline, progress
        self.states = 0
        folded, self.groups = merge_tasks(problem)
        cuts = series_cuts(folded)
        self.pieces = [_Piece(*restrict(folded, a, b), self.out_of_time) for a, b in itertools.pairwise(cuts)]

    @property
    def lower(self) -> int:
        return max(piece.lower for piece in self.pieces)

    @property
    def upper(self) -> int:
        return max(piece.upper for piece in self.pieces)

    def order(self) -> list[int]:
        return [task for piece in self.pieces for t in piece.order for task in self.groups[piece.names[t]]]

    def out_of_time(self) -> bool:
        return time.monotonic() > self.deadline

    def run(self) -> None:
        # The better the order, the fewer cuts its bound takes: a glance first, all that matter after the first beam.
        stages: list[Callable[[_Piece], None]] = [partial(_Piece.tighten, most=64), partial(self.beam, width=32)]
        stages += [_Piece.tighten, partial(self.beam, width=512), self.cut_recursion, self.prove]
        for stage in stages:
            for piece in sorted(self.pieces, key=lambda piece: -piece.upper):
                if self.out_of_time():
                    return
                if piece.upper > self.lower:
                    stage(piece)

    def advance(self, *sweeps: Iterator[int], limit: int = SWEEP_STATES) -> int | None:
        """Drive sweeps, always the one that has done the least work, until one ends; its index, or None at a limit."""
        work = [0] * len(sweeps)
        while True:
            i = work.index(min(work))
            states = next(sweeps[i], None)
            if states is None:
                return i
            work[i] += states
            self.states += states
            self.progress(self.states, self.upper, self.lower)
            if work[i] > limit or self.out_of_time():
                return None

    def beam(self, piece: _Piece, width: int) -> None:
        improving = True
        while improving:
            improving = False
            for sweep in piece.sweeps:
                if piece.upper > self.lower and self.advance(sweep.levels(piece.upper - 1, width)) is not None:
                    improving |= piece.adopt(sweep.order)
                    if sweep.order is None and sweep.is_exhaustive:
                        piece.lower = piece.upper

    def cut_recursion(self, piece: _Piece) -> None:
        piece.adopt(order_by_cuts(piece.problem, self.out_of_time))

    def attempt(self, piece: _Piece, budget: int, limit: int) -> bool:
        """Find an order within the budget or prove that there is none; False at a limit."""
        winner = self.advance(*(sweep.levels(budget) for sweep in piece.sweeps), limit=limit)
        if winner is None:
            return False
        sweep = piece.sweeps[winner]
        if sweep.order is not None:
            return piece.adopt(sweep.order)
        if sweep.is_exhaustive:
            piece.lower = max(piece.lower, budget + 1)
        return sweep.is_exhaustive

    def prove(self, piece: _Piece) -> None:
        """Close the gap: sweeps at one byte less than the best order, turn about with beams, each time larger."""
        for scale in (1, 8, 64):
            while piece.upper > self.lower and self.attempt(piece, piece.upper - 1, SWEEP_STATES * scale // 64):
                pass
            if piece.upper > self.lower and not self.out_of_time():
                self.beam(piece, 2048 * scale)
        too_large = piece.upper - 1  # the smallest budget whose sweeps did not end
        while piece.upper > self.lower and not self.out_of_time() and piece.lower < too_large:
            budget = (piece.lower + too_large) // 2
            if not self.attempt(piece, budget, SWEEP_STATES // 16):
                too_large = budget


def order_tasks(
    problem: OrderingProblem,
    time_limit: float = 60.0,
    progress: Callable[[int, int, int], None] = lambda states, upper, lower: None,
) -> Ordering:
    """The order of the smallest peak, with a proof or with the best proven bound.

    Tasks are fused where that costs nothing and the graph is cut where every order passes; each piece is bounded
    from below by minimum cuts and from above by beams and a recursion along those cuts; what gap is left, exhaustive
    sweeps from both ends close. The given numbering must be an order itself; it is returned when none is better.

    Args:
        time_limit: seconds after which the best order so far is returned. Ctrl-C does the same at any moment.
        progress: called now and then with (states visited, best peak, proven bound), the latter in bytes.
    """
    start = time.monotonic()
    given = tuple(range(problem.tasks))
    peak = problem.peak(given)
    floor = max((problem.demand[t] + sum(problem.sizes[b] for b in problem.inputs[t]) for t in given), default=0)
    if peak <= floor:
        return Ordering(given, peak, peak)
    search = None
    try:
        search = _Search(problem, start + time_limit, progress)
        search.run()
    except KeyboardInterrupt:
        if search is None:
            return Ordering(given, peak, floor, seconds=time.monotonic() - start)
    order = tuple(search.order())
    if (found := problem.peak(order)) >= peak:
        order, found = given, peak
    return Ordering(order, found, max(search.lower, floor), search.states, time.monotonic() - start)


####################################################################################################
# Ordering a model: subgraphs -> ordering problems
####################################################################################################


class OrderingRefusal(ValueError):
    """Why the operators of a model must stay where they are, in one line."""


def accesses(subgraph: Subgraph) -> dict[int, list[tuple[int, bool]]]:
    """Per tensor who touches it, in file order: (operator, does it write)."""
    touched: dict[int, list[tuple[int, bool]]] = defaultdict(list)
    for operator in subgraph.operators:
        for i in operator.reads:
            touched[i].append((operator.index, subgraph.tensors[i].is_updated_in_place))
        for i in operator.writes:
            touched[i].append((operator.index, True))
    return touched


EVERYTHING = "every side effect"  # the effect of operators that may touch any state


def effectful_subgraphs(graph: ModelGraph) -> set[int]:
    """The subgraphs that do more than compute their outputs, themselves or through what they run."""
    found: set[int] = set()
    for index in callees_first(graph):
        subgraph = graph.subgraphs[index]
        if any(side_effects(subgraph, operator, found) for operator in subgraph.operators):
            found.add(index)
    return found


def side_effects(subgraph: Subgraph, operator: Operator, effectful: Collection[int]) -> dict[str, bool]:
    """What an operator touches besides its tensors: name -> does it change that. ``effectful`` are the subgraphs that
    touch anything."""
    kind = operator.kind
    if operator.is_custom:
        return {"custom operators": True}  # nobody knows what they share
    if kind == "CALL_ONCE" or any(callee in effectful for callee in operator.callees):
        return {EVERYTHING: True}
    if kind in ("READ_VARIABLE", "ASSIGN_VARIABLE"):
        name = resource_name(subgraph, operator.reads[0]) if operator.reads else None
        return {name or EVERYTHING: kind == "ASSIGN_VARIABLE"}
    if kind.startswith("HASHTABLE") and kind != "HASHTABLE_LOOKUP":
        return {"hash tables": kind in ("HASHTABLE", "HASHTABLE_IMPORT")}
    if kind in ("RANDOM_UNIFORM", "RANDOM_STANDARD_NORMAL", "MULTINOMIAL"):
        return {"random numbers": True}
    return {}


def precedence_pairs(graph: ModelGraph, subgraph: Subgraph) -> list[tuple[int, int]]:
    """All (before, after) pairs of operators that must keep their order.

    Data flow, side effects and state are one rule: who changes a thing stays behind whoever touched it before, and
    ahead of whoever touches it later. So files that write a tensor twice, or read it before it is written, keep
    their meaning too.
    """
    touched: dict[Any, list[tuple[int, bool]]] = {**accesses(subgraph)}
    effectful = effectful_subgraphs(graph) if any(operator.callees for operator in subgraph.operators) else ()
    effects = [side_effects(subgraph, operator, effectful) for operator in subgraph.operators]
    names = {name for effect in effects for name in effect}
    for name in names - {EVERYTHING}:
        touched[name] = [
            (i, any(effect.get(n) for n in (name, EVERYTHING)))
            for i, effect in enumerate(effects)
            if name in effect or EVERYTHING in effect
        ]
    if EVERYTHING in names:
        touched[EVERYTHING] = [(i, EVERYTHING in effect) for i, effect in enumerate(effects) if effect]
    pairs: dict[tuple[int, int], None] = {}
    for history in touched.values():
        writer: int | None = None
        readers: list[int] = []
        for operator, changes in history:
            before = [] if writer is None else [writer]
            if changes:
                before += readers
                writer, readers = operator, []
            else:
                readers.append(operator)
            pairs.update(((b, operator), None) for b in before if b != operator)
    return list(pairs)


@dataclass(frozen=True)
class Costs:
    """What a tensor takes while it is alive and what an operator takes besides, in bytes."""

    tensor: Callable[[Tensor], int] = lambda tensor: tensor.size
    operator: Callable[[Subgraph, Operator], int] = lambda subgraph, operator: 0


def ordering_problem(
    graph: ModelGraph, subgraph: Subgraph, callee_peaks: Mapping[int, int], costs: Costs = Costs()
) -> OrderingProblem:
    """The ordering problem of a subgraph: its operators are the tasks, its tensors in working memory the buffers."""
    sizes, producers, consumers, kept = [], [], [], []
    touched, inputs, outputs = accesses(subgraph), set(subgraph.inputs), set(subgraph.outputs)
    for tensor in subgraph.tensors:
        history = touched.get(tensor.index, [])
        is_output = tensor.index in outputs
        size = costs.tensor(tensor)
        if size == 0 or not (history or is_output):
            continue
        first_writes = bool(history) and history[0][1] and tensor.index not in inputs
        operators = list(dict.fromkeys(operator for operator, _ in history))
        sizes.append(size)
        producers.append(operators[0] if first_writes else None)
        consumers.append(tuple(operators[1:] if first_writes else operators))
        kept.append(is_output)
    transient = tuple(
        max((callee_peaks[c] for c in op.callees), default=0) + costs.operator(subgraph, op)
        for op in subgraph.operators
    )
    return OrderingProblem(
        transient,
        tuple(sizes),
        tuple(producers),
        tuple(consumers),
        tuple(kept),
        tuple(precedence_pairs(graph, subgraph)),
    )


def order_model(
    graph: ModelGraph,
    time_limit: float,
    progress: Callable[[int, int, int], None] = lambda states, upper, lower: None,
    costs: Costs = Costs(),
) -> tuple[Ordering, ...]:
    """The best order of every subgraph, by subgraph index; callees first, since their peak counts in the caller.

    Raises:
        OrderingRefusal: the file numbers its operators elsewhere, so moving them would break it.
    """
    if graph.metadata_buffer(CONTROL_DEPENDENCIES) is not None:
        raise OrderingRefusal(f"the operators stay in place: metadata {CONTROL_DEPENDENCIES!r} refers to their numbers")
    vectors = [subgraph.operator_vector for subgraph in graph.subgraphs if subgraph.operators]
    if len(set(vectors)) < len(vectors):
        raise OrderingRefusal("the operators stay in place: two subgraphs of the file share them")
    deadline = time.monotonic() + time_limit
    orderings: dict[int, Ordering] = {}
    peaks: dict[int, int] = {}
    for index in callees_first(graph):
        subgraph = graph.subgraphs[index]
        problem = ordering_problem(graph, subgraph, peaks, costs)
        found = order_tasks(problem, max(deadline - time.monotonic(), 0), progress)
        # The problem took the callees' peaks for granted; if one could still fall, so could this bound.
        callees = {c for operator in subgraph.operators for c in operator.callees}
        unproven = max((orderings[c].peak - orderings[c].bound for c in callees), default=0)
        # All inputs are there at the start, also those that nobody reads and the problem knows nothing of.
        at_start = [i for i, life in tensor_lifetimes(subgraph).items() if life.first < 0]
        entry = sum(costs.tensor(subgraph.tensors[i]) for i in at_start)
        peak, bound = (max(value, entry) for value in (found.peak, found.bound - unproven))
        orderings[index] = dataclasses.replace(found, peak=peak, bound=bound)
        peaks[index] = orderings[index].peak
    return tuple(orderings[subgraph.index] for subgraph in graph.subgraphs)


####################################################################################################
# Arena planning: sizes and lifetimes -> offsets
####################################################################################################

ARENA_ALIGNMENT = 16  # bytes, of every buffer that TFLM plans


@dataclass(frozen=True)
class Block:
    """Bytes that need one place in the arena from time ``first`` to time ``last``, both inclusive."""

    size: int
    first: int
    last: int


@dataclass(frozen=True)
class Plan:
    """An offset for every block, the height that they reach, and ``bound``: no plan whatsoever is lower than that."""

    offsets: tuple[int, ...]
    height: int
    bound: int

    @property
    def optimal(self) -> bool:
        return self.height <= self.bound


def plan_height(blocks: Sequence[Block], offsets: Sequence[int]) -> int:
    return max((offset + block.size for block, offset in zip(blocks, offsets, strict=True)), default=0)


def live_bound(blocks: Sequence[Block]) -> int:
    """The most bytes alive at one time, which no plan can undercut."""
    change: dict[int, int] = defaultdict(int)
    for block in blocks:
        change[block.first] += block.size
        change[block.last + 1] -= block.size
    return max(itertools.accumulate(change[time] for time in sorted(change)), default=0)


def place_first_fit(blocks: Sequence[Block], order: Iterable[int], fixed: Mapping[int, int]) -> list[int]:
    """Give each block of the order the lowest gap among the earlier ones that are alive with it.

    ``fixed`` blocks are where they are told to be, without a check, as TFLM does it.
    """
    offsets = [0] * len(blocks)
    placed = np.empty((4, len(blocks)), dtype=np.int64)  # offset, end, first, last: sorted by offset
    for count, index in enumerate(order):
        block = blocks[index]
        _, _, first, last = placed[:, :count]
        at = fixed.get(index)
        if at is None:
            starts, ends = placed[:2, :count][:, (first <= block.last) & (last >= block.first)]
            reach = np.maximum.accumulate(np.append(0, ends))  # below which everything may be taken, before each start
            gaps = np.flatnonzero(starts - reach[:-1] >= block.size)
            at = int(reach[gaps[0]] if len(gaps) else reach[-1])
        offsets[index] = at
        rank = int(np.searchsorted(placed[0, :count], at, side="right"))
        placed[:, rank + 1 : count + 1] = placed[:, rank:count]
        placed[:, rank] = at, at + block.size, block.first, block.last
    return offsets


def greedy_offsets(blocks: Sequence[Block], fixed: Mapping[int, int]) -> list[int]:
    """What TFLM's GreedyMemoryPlanner does: fixed blocks first, then the others from large to small, first fit.

    Among blocks of one size the later comes first (tensorflow/lite/micro/memory_planner/greedy_memory_planner.cc).
    """
    free = sorted((i for i in reversed(range(len(blocks))) if i not in fixed), key=lambda i: -blocks[i].size)
    return place_first_fit(blocks, [*sorted(fixed), *free], fixed)


def conflicts(blocks: Sequence[Block], offsets: Sequence[int], most: int = 1000) -> list[tuple[int, int]]:
    """Pairs of blocks that are alive together and share an address; not many more than ``most`` of them."""
    size, first, last = np.array([(b.size, b.first, b.last) for b in blocks], dtype=np.int64).reshape(-1, 3).T
    start = np.array(offsets, dtype=np.int64)
    found: list[tuple[int, int]] = []
    for i in range(len(blocks)):
        later = slice(i + 1, None)
        clash = (first[later] <= last[i]) & (last[later] >= first[i])
        clash &= (start[later] < start[i] + size[i]) & (start[later] + size[later] > start[i])
        found += [(i, i + 1 + int(j)) for j in np.flatnonzero(clash)]
        if len(found) >= most:
            break
    return found


def plan_by_first_fit(blocks: Sequence[Block]) -> Plan:
    """The lowest of some first-fit plans, in milliseconds: by size, by area, by length of life, by time."""
    bound = live_bound(blocks)
    best: list[int] | None = None
    height = 0
    for key in (
        lambda b: (-b.size, b.first),
        lambda b: (-b.size * (b.last - b.first + 1), b.first),
        lambda b: (b.first - b.last, -b.size),
        lambda b: (b.first, -b.size),
        lambda b: (-b.last, -b.size),
    ):
        offsets = place_first_fit(blocks, sorted(range(len(blocks)), key=lambda i: key(blocks[i])), {})
        if best is None or plan_height(blocks, offsets) < height:
            best, height = offsets, plan_height(blocks, offsets)
        if height <= bound:
            break
    return Plan(tuple(best or ()), height, bound)


def plan_optimally(blocks: Sequence[Block], time_limit: float = 20.0) -> Plan:
    """The lowest plan: first fit if it meets the bound, else constraint programming, within ``time_limit`` seconds.

    The blocks are rectangles of fixed time and free address that must not overlap (NoOverlap2D). First the bound
    itself is tried as the height; where that fails, the height is minimised.
    """
    plan = plan_by_first_fit(blocks)
    if plan.optimal:
        return plan
    deadline = time.monotonic() + time_limit
    # One worker with a fixed strategy is quick on nearly all models and deterministic; many help with the rest.
    for height, workers, share in ((plan.bound, 1, 0.2), (plan.bound, 8, 0.5), (plan.height - ARENA_ALIGNMENT, 8, 1.0)):
        if plan.optimal:
            break
        seconds = share * (deadline - time.monotonic())
        offsets, bound = _solve_placement(blocks, plan.bound, height, seconds, workers)
        if offsets is not None:
            plan = Plan(tuple(offsets), plan_height(blocks, offsets), plan.bound)
        plan = dataclasses.replace(plan, bound=max(plan.bound, min(bound, plan.height)))
    return plan


def _solve_placement(
    blocks: Sequence[Block], bound: int, height: int, time_limit: float, workers: int
) -> tuple[list[int] | None, int]:
    """(offsets of the least height up to ``height``, if any were found; the proven lower bound, at least ``bound``)."""
    if time_limit <= 0 or height < bound:
        return None, bound
    from ortools.sat.python import cp_model

    unit = math.gcd(*(block.size for block in blocks))
    model = cp_model.CpModel()
    top = model.new_int_var(bound // unit, height // unit, "height")
    starts, times, addresses = [], [], []  # no hint from first fit: it makes the search up to 600 times slower
    for block in blocks:
        size = block.size // unit
        start = model.new_int_var(0, height // unit - size, "")
        model.add(start + size <= top)
        times.append(model.new_fixed_size_interval_var(block.first, block.last - block.first + 1, ""))
        addresses.append(model.new_fixed_size_interval_var(start, size, ""))
        starts.append(start)
    model.add_no_overlap_2d(times, addresses)
    by_area = sorted(range(len(blocks)), key=lambda i: -blocks[i].size * (blocks[i].last - blocks[i].first + 1))
    model.add_decision_strategy([starts[i] for i in by_area], cp_model.CHOOSE_LOWEST_MIN, cp_model.SELECT_MIN_VALUE)
    if height > bound:
        model.minimize(top)
    solver = cp_model.CpSolver()
    solver.parameters.max_time_in_seconds = time_limit
    solver.parameters.num_workers = workers
    solver.parameters.random_seed = 1
    solver.parameters.catch_sigint_signal = False  # it would not give Python's own handler back
    status = solver.solve(model)
    if status == cp_model.INFEASIBLE:
        return None, height + unit
    if status not in (cp_model.OPTIMAL, cp_model.FEASIBLE):
        return None, bound
    proven = int(solver.best_objective_bound) * unit if height > bound else bound
    return [solver.value(start) * unit for start in starts], proven


####################################################################################################
# The arena of a model: what TensorFlow Lite Micro allocates for a file
####################################################################################################

OFFLINE_PLAN = "OfflineMemoryAllocation"  # metadata that fixes offsets (tflite-micro, docs/memory_management.md)
PLANNED_AT_RUN_TIME = -1

# Types that TFLM can size, and their bytes per element there: it does not pack sub-byte types in RAM.
TFLM_ELEMENT_BYTES = {
    "FLOAT32": 4, "FLOAT16": 2, "BFLOAT16": 2, "FLOAT64": 8, "INT8": 1, "INT16": 2, "INT32": 4, "INT64": 8, "UINT8": 1,
    "UINT16": 2, "UINT32": 4, "UINT64": 8, "BOOL": 1, "COMPLEX64": 8, "COMPLEX128": 16, "RESOURCE": 4, "INT4": 1,
}  # fmt: skip
TFLM_OPERATORS = frozenset(
    """ABS ADD ADD_N ARG_MAX ARG_MIN ASSIGN_VARIABLE AVERAGE_POOL_2D BATCH_MATMUL BATCH_TO_SPACE_ND BROADCAST_ARGS
    BROADCAST_TO CALL_ONCE CAST CEIL CONCATENATION CONV_2D COS CUMSUM DEPTHWISE_CONV_2D DEPTH_TO_SPACE DEQUANTIZE DIV
    DYNAMIC_UPDATE_SLICE ELU EMBEDDING_LOOKUP EQUAL EXP EXPAND_DIMS FILL FLOOR FLOOR_DIV FLOOR_MOD FULLY_CONNECTED
    GATHER GATHER_ND GREATER GREATER_EQUAL HARD_SWISH IF L2_NORMALIZATION L2_POOL_2D LEAKY_RELU LESS LESS_EQUAL LOG
    LOGICAL_AND LOGICAL_NOT LOGICAL_OR LOGISTIC LOG_SOFTMAX MAXIMUM MAX_POOL_2D MEAN MINIMUM MIRROR_PAD MUL NEG
    NOT_EQUAL PACK PAD PADV2 PRELU QUANTIZE READ_VARIABLE REDUCE_ALL REDUCE_MAX REDUCE_MIN RELU RELU6 RESHAPE
    RESIZE_BILINEAR RESIZE_NEAREST_NEIGHBOR REVERSE_V2 ROUND RSQRT SELECT_V2 SHAPE SIN SLICE SOFTMAX SPACE_TO_BATCH_ND
    SPACE_TO_DEPTH SPLIT SPLIT_V SQRT SQUARE SQUARED_DIFFERENCE SQUEEZE STRIDED_SLICE SUB SUM SVDF TANH TRANSPOSE
    TRANSPOSE_CONV UNIDIRECTIONAL_SEQUENCE_LSTM UNPACK VAR_HANDLE WHILE ZEROS_LIKE CIRCULAR_BUFFER TFLM_DECODE
    TFLite_Detection_PostProcess SignalDelay SignalEnergy SignalFftAutoScale SignalFilterBank SignalFilterBankLog
    SignalFilterBankSquareRoot SignalFilterBankSpectralSubtraction SignalFramer SignalIrfft SignalOverlapAdd
    SignalPCAN SignalRfft SignalStacker SignalWindow ethos-u""".split()
)


LONGEST_CLOCK = 100_000  # operators run, every call of a subgraph counted anew


class ArenaError(ValueError):
    """Why nothing can be said about the arena of a model, in one line."""


@dataclass(frozen=True)
class ArenaBuffer:
    """One buffer that TFLM plans: a tensor, or the scratch memory of an operator (then ``tensor`` is None)."""

    block: Block
    subgraph: int
    tensor: int | None
    operator: int | None = None
    bytes: int = 0  # before alignment


@dataclass(frozen=True)
class Arena:
    """The planned part of TFLM's arena, its head, with the buffers in the order in which TFLM plans them.

    ``offsets`` and ``head`` (bytes) are what the runtime does with the file as it is. ``problems`` name what is wrong
    with the plan in the file, if it has one.
    """

    buffers: tuple[ArenaBuffer, ...]
    offsets: tuple[int, ...]
    head: int
    has_plan: bool
    problems: tuple[str, ...] = ()
    missing_operators: tuple[str, ...] = ()  # kinds that TFLM has no kernel for
    persistent: int = 0  # an estimate of the tail on a 32-bit target

    @property
    def blocks(self) -> list[Block]:
        return [buffer.block for buffer in self.buffers]


def scratch_requests(subgraph: Subgraph, operator: Operator) -> list[int]:
    """The scratch buffers, in bytes, that TFLM's reference kernel of this operator asks for, in its order."""
    tensors = [subgraph.tensors[i] if i >= 0 else None for i in operator.inputs]
    kind = operator.kind
    first = tensors[0] if tensors else None
    output = subgraph.tensors[operator.writes[0]] if operator.writes else None
    if first is None or output is None:
        return []
    second = tensors[1] if len(tensors) > 1 else None
    if kind in ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED"):
        return [second.elements] if second is not None and second.dtype == "INT4" else []
    if kind == "TRANSPOSE_CONV" and len(tensors) > 2 and tensors[2] is not None:
        bias = tensors[3] if len(tensors) > 3 else None
        if tensors[2].dtype == "INT8":
            return [4 * output.elements]
        if tensors[2].dtype == "INT16":
            return [8 * output.elements] + ([8 * bias.elements] if bias and bias.dtype == "INT16" else [])
        return []
    if kind in ("MEAN", "SUM", "REDUCE_MAX", "REDUCE_MIN", "REDUCE_ALL") and second is not None:
        accumulator = [4 * output.elements] if kind in ("MEAN", "SUM") and first.dtype in ("INT8", "INT16") else []
        return [*accumulator, 4 * len(first.shape), 4 * second.elements]
    if kind == "MIRROR_PAD":
        return [4 * len(first.shape)] * 2
    if kind == "ADD_N":
        return [4 * len(operator.inputs)]  # a pointer each: 4 bytes on a microcontroller
    if kind == "SVDF" and second is not None:
        filters = second.shape[0]
        sums = [4 * first.shape[0] * filters]
        units = filters // max(operator.options.get("Rank", 1), 1)
        return [*sums, 4 * first.shape[0] * units] if first.dtype == "INT8" else sums
    if kind == "UNIDIRECTIONAL_SEQUENCE_LSTM":
        state, cell = tensors[18], tensors[19]
        if state is None or cell is None:
            return []
        return [state.elements * TFLM_ELEMENT_BYTES.get(cell.dtype, 4)] * 4
    if kind == "TFLite_Detection_PostProcess" and second is not None:
        return _detection_scratch(operator, first, second)
    if kind == "SignalRfft":
        length = _flexbuffer(operator.custom_options).get("fft_length", 0)
        return [length * (TFLM_ELEMENT_BYTES[first.dtype])]
    return []


def _checked_scratch(subgraph: Subgraph, operator: Operator) -> list[int]:
    """The same, for operators that may lack the inputs or options that their kernel relies on."""
    try:
        requests = scratch_requests(subgraph, operator)
        if all(isinstance(size, int) and 0 <= size <= LARGEST_TENSOR for size in requests):
            return requests
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError, struct.error):
        pass
    what = f"operator {operator.index} ({shorten(operator.kind)})"
    raise ArenaError(f"the inputs or options of {what} are not what its kernel needs")


def _flexbuffer(data: bytes) -> dict[str, Any]:
    from flatbuffers import flexbuffers

    options = flexbuffers.Loads(data) if data else {}
    return options if isinstance(options, dict) else {}


def _detection_scratch(operator: Operator, boxes: Tensor, scores: Tensor) -> list[int]:
    options = _flexbuffer(operator.custom_options)
    n, classes = boxes.shape[1], options.get("num_classes", 0)
    m = options.get("max_detections", 0)
    return [n, 16 * n, 4 * scores.shape[1] * scores.shape[2], 4 * n, 4 * n, 4 * m * n, 4 * m * n, 4 * n, 4 * m * n,
            4 * max(classes, m) * n, 4 * min(n, m) * n]  # fmt: skip


def arena_buffers(graph: ModelGraph) -> list[ArenaBuffer]:
    """What TFLM plans for a model: sizes, and lifetimes on its clock, in its order.

    The clock ticks once per operator and once per subgraph that IF, WHILE and CALL_ONCE run inside of it; times are
    inclusive, -1 is before the start (micro_allocation_info.cc). A tensor that nobody touches is planned as well.

    Raises:
        ArenaError: a tensor has no size that TFLM could compute.
    """
    first: dict[tuple[int, int], int] = {}
    last: dict[tuple[int, int], int] = {}
    scratch: dict[tuple[int, int], tuple[int, int]] = {}
    clock = 0

    def run(subgraph: Subgraph) -> None:
        nonlocal clock
        if clock > LONGEST_CLOCK:
            raise ArenaError("its subgraphs run each other too often to follow")
        s = subgraph.index
        for i in subgraph.inputs:
            first.setdefault((s, i), clock)
            last[s, i] = clock
        for operator in subgraph.operators:
            clock += 1
            begin = clock
            for i in operator.writes:
                first.setdefault((s, i), clock)
            if operator.kind in ("IF", "WHILE", "CALL_ONCE"):
                for callee in operator.callees:
                    clock += 1
                    run(graph.subgraphs[callee])
            for i in (*operator.reads, *operator.writes):
                last[s, i] = clock
            scratch[s, operator.index] = begin, clock
        for i in subgraph.outputs:
            first.setdefault((s, i), clock)
            last[s, i] = clock

    callees_first(graph)  # refuses recursion
    run(graph.subgraphs[0])
    buffers = []
    for subgraph in graph.subgraphs:
        for tensor in subgraph.tensors:
            if graph.has_data(tensor) or tensor.storage is Storage.STATE:
                continue
            size = _tflm_bytes(tensor)
            key = subgraph.index, tensor.index
            if size:
                block = Block(align(size), first.get(key, -1), last.get(key, -1))
                buffers.append(ArenaBuffer(block, subgraph.index, tensor.index, bytes=size))
    for subgraph in graph.subgraphs:
        for operator in subgraph.operators:
            for size in _checked_scratch(subgraph, operator):
                begin, end = scratch.get((subgraph.index, operator.index), (-1, -1))
                if size:
                    block = Block(align(size), begin, end)
                    buffers.append(ArenaBuffer(block, subgraph.index, None, operator.index, size))
    return buffers


def align(size: int) -> int:
    return -(-size // ARENA_ALIGNMENT) * ARENA_ALIGNMENT


def _tflm_bytes(tensor: Tensor) -> int:
    bytes_per_element = TFLM_ELEMENT_BYTES.get(tensor.dtype)
    if bytes_per_element is None:
        raise ArenaError(f"TFLM has no tensors of type {tensor.dtype} ({shorten(tensor.name)})")
    if any(d < 0 for d in tensor.shape):
        raise ArenaError(f"the shape of tensor {tensor.index} ({shorten(tensor.name)}) is only known at run time")
    return tensor.elements * bytes_per_element


TENSOR_BYTES = 12  # of persistent structures on a 32-bit target, for every tensor, constants included
OPERATOR_BYTES = 32
INTERPRETER_BYTES = 132
# Bytes of the parsed options and of the kernel's own data, per operator (sizeof on a 32-bit target).
OPTION_BYTES = {
    "CONV_2D": 28, "DEPTHWISE_CONV_2D": 28, "FULLY_CONNECTED": 16, "AVERAGE_POOL_2D": 40, "MAX_POOL_2D": 40, "ADD": 8,
    "MUL": 4, "SUB": 8, "SOFTMAX": 4, "RESHAPE": 36, "MEAN": 1, "SUM": 1, "REDUCE_MAX": 1, "STRIDED_SLICE": 24,
    "SVDF": 12, "TRANSPOSE_CONV": 20, "UNIDIRECTIONAL_SEQUENCE_LSTM": 16, "CONCATENATION": 8, "PACK": 8, "SPLIT": 4,
}  # fmt: skip
KERNEL_BYTES = {
    "CONV_2D": 56, "DEPTHWISE_CONV_2D": 56, "TRANSPOSE_CONV": 80, "FULLY_CONNECTED": 48, "ADD": 60, "SUB": 52,
    "MUL": 36, "AVERAGE_POOL_2D": 32, "MAX_POOL_2D": 32, "QUANTIZE": 32, "DEQUANTIZE": 32, "MEAN": 44, "SUM": 44,
    "REDUCE_MAX": 44, "REDUCE_ALL": 44, "SOFTMAX": 56, "SVDF": 36, "STRIDED_SLICE": 84, "RELU": 28, "RELU6": 8,
    "LEAKY_RELU": 24, "LOGISTIC": 16, "HARD_SWISH": 20, "PRELU": 28, "UNIDIRECTIONAL_SEQUENCE_LSTM": 688, "PAD": 60,
    "PADV2": 60, "CONCATENATION": 24, "EQUAL": 48, "NOT_EQUAL": 48, "LESS": 48, "GREATER": 48, "ABS": 32, "RSQRT": 32,
}  # fmt: skip


def glue_persistent_bytes(kind: str, inputs: int) -> int:
    """What an operator takes of TFLM's persistent memory, as far as that depends on its kind and number of inputs."""
    arrays = 2 * align(4 * inputs) if kind == "CONCATENATION" else 0
    return OPERATOR_BYTES + OPTION_BYTES.get(kind, 0) + align(KERNEL_BYTES.get(kind, 0)) + arrays


def operator_persistent_bytes(subgraph: Subgraph, operator: Operator) -> int:
    """An estimate of what an operator takes of TFLM's persistent memory on a 32-bit target, its tensors apart."""
    total = glue_persistent_bytes(operator.kind, len(operator.inputs)) + 4 * len(_checked_scratch(subgraph, operator))
    tensors = [subgraph.tensors[i] if i >= 0 else None for i in operator.inputs]
    weights = tensors[1] if len(tensors) > 1 else None
    if operator.kind in ("CONV_2D", "DEPTHWISE_CONV_2D", "TRANSPOSE_CONV") and operator.writes:
        channels = subgraph.tensors[operator.writes[0]].shape[-1:]
        total += 2 * align(4 * sum(channels))  # a multiplier and a shift each
    if operator.kind == "FULLY_CONNECTED" and weights and weights.quantization:
        scales = len(weights.quantization.scales)
        total += 2 * align(4 * scales) if scales > 1 else 0
    if operator.kind == "BATCH_MATMUL" and weights and tensors[0]:  # transposed copies
        total += align(tensors[0].bytes or 0) if operator.options.get("AdjX") else 0
        total += align(weights.bytes or 0) if not operator.options.get("AdjY") else 0
    return total


def persistent_bytes(graph: ModelGraph) -> int:
    """An estimate of the persistent part of TFLM's arena, its tail, on a 32-bit target with the reference kernels.

    It counts TFLM's structures per subgraph, tensor and operator, as their sizes are in tflite-micro of August 2026.
    Kernels of signal processing keep more than that.

    Raises:
        ArenaError: the inputs or options of an operator are not what its kernel needs.
    """
    total = INTERPRETER_BYTES + align(state_bytes(graph)) + 2 * ARENA_ALIGNMENT
    for subgraph in graph.subgraphs:
        total += 8 + TENSOR_BYTES * len(subgraph.tensors)
        total += sum(operator_persistent_bytes(subgraph, operator) for operator in subgraph.operators)
    first = graph.subgraphs[0]
    for quantization in (first.tensors[i].quantization for i in (*first.inputs, *first.outputs)):
        total += 40 + (16 + 4 * len(quantization.scales) if quantization else 0)
    return total


def read_plan(graph: ModelGraph, data: Bytes) -> dict[tuple[int, int], int] | None:
    """The offsets that the file fixes: (subgraph, tensor) -> bytes; None when it has no plan.

    Raises:
        ArenaError: the plan is not for this model, and the runtime would refuse the file.
    """
    span = graph.metadata_buffer(OFFLINE_PLAN)
    if span is None:
        return None
    words = np.frombuffer(data[span.start : span.start + span.size // 4 * 4], dtype="<i4").tolist()
    tensors = [(s.index, t.index) for s in graph.subgraphs for t in s.tensors]
    if len(words) < 3 or words[2] != len(tensors) or len(words) < 3 + len(tensors):
        planned = words[2] if len(words) > 2 else 0
        raise ArenaError(f"the memory plan in the file is for {planned} tensors, but the model has {len(tensors)}")
    return {key: offset for key, offset in zip(tensors, words[3:], strict=False) if offset != PLANNED_AT_RUN_TIME}


ARENA_COSTS = Costs(
    tensor=lambda tensor: align(_tflm_bytes(tensor)) if tensor.storage is Storage.ACTIVATION else 0,
    operator=lambda subgraph, operator: sum(map(align, _checked_scratch(subgraph, operator))),
)


def analyse_arena(graph: ModelGraph, data: Bytes) -> Arena:
    """What TFLM allocates for the file as it is, with its reference kernels.

    Raises:
        ArenaError: nothing can be said, or the runtime would refuse the file.
    """
    buffers = arena_buffers(graph)
    blocks = [buffer.block for buffer in buffers]
    plan = read_plan(graph, data)
    fixed = {i: (plan or {})[b.subgraph, b.tensor] for i, b in enumerate(buffers)
             if b.tensor is not None and (b.subgraph, b.tensor) in (plan or {})}  # fmt: skip
    offsets = greedy_offsets(blocks, fixed)
    kinds = {op.kind for s in graph.subgraphs for op in s.operators}
    problems = plan_problems(graph, buffers, offsets, fixed, plan) if plan is not None else []
    return Arena(tuple(buffers), tuple(offsets), plan_height(blocks, offsets), plan is not None, tuple(problems),
                 tuple(sorted(kinds - TFLM_OPERATORS)), persistent_bytes(graph))  # fmt: skip


def plan_problems(graph: ModelGraph, buffers: Sequence[ArenaBuffer], offsets: Sequence[int], fixed: Mapping[int, int],
                  plan: Mapping[tuple[int, int], int]) -> list[str]:  # fmt: skip
    """What is wrong with a plan: overlaps, misaligned or negative offsets, and variables that scratch may overwrite."""

    def name(i: int) -> str:
        buffer = buffers[i]
        if buffer.tensor is None:
            return f"the scratch of operator {buffer.operator}"
        return f"tensor {buffer.tensor}" + (f" of subgraph {buffer.subgraph}" if len(graph.subgraphs) > 1 else "")

    problems = [f"{name(i)} is planned at {offset:,}, which is not a multiple of {ARENA_ALIGNMENT} from 0 up"
                for i, offset in fixed.items() if offset < 0 or offset % ARENA_ALIGNMENT]  # fmt: skip
    problems += [f"{name(i)} and {name(j)} are alive together and share memory (in place on purpose, or a mistake)"
                 for i, j in conflicts([b.block for b in buffers], offsets)]  # fmt: skip
    problems += [f"tensor {t} is a variable and planned into the arena's head, where it can be overwritten"
                 for s, t in plan if graph.subgraphs[s].tensors[t].is_updated_in_place]  # fmt: skip
    return problems


def plan_arena(arena: Arena, time_limit: float = 20.0) -> Plan:
    """The lowest plan for a model's buffers that survives the runtime's own treatment of scratch.

    TFLM takes offsets of tensors from the file but places scratch itself, after them. So a plan is only worth what
    the runtime's planner makes of it: its ``height`` here is that, and ``offsets`` are where everything ends up.
    """
    blocks = arena.blocks
    scratch = [i for i, buffer in enumerate(arena.buffers) if buffer.tensor is None]

    def as_run(plan: Plan) -> Plan:
        fixed = {i: offset for i, offset in enumerate(plan.offsets) if i not in scratch_set}
        offsets = greedy_offsets(blocks, fixed)
        return Plan(tuple(offsets), plan_height(blocks, offsets), plan.bound)

    scratch_set = set(scratch)
    own = greedy_offsets(blocks, {})
    bound = live_bound(blocks)
    candidates = [Plan(tuple(own), plan_height(blocks, own), bound)]
    for solve in (plan_by_first_fit, partial(plan_optimally, time_limit=time_limit)):
        if min(candidates, key=lambda plan: plan.height).optimal:
            break
        candidates.append(as_run(solve(blocks)))
    best = min(candidates, key=lambda plan: plan.height)
    return dataclasses.replace(best, bound=max(plan.bound for plan in candidates))


####################################################################################################
# Partial execution: the row algebra. Which rows of its inputs does an operator need for some of its output?
####################################################################################################

# A region is a range of the schedule whose operators all work along the height of NHWC tensors. Run stripe by stripe,
# its inner tensors never exist whole (patches of MCUNetV2, Lin et al. 2021; Pex, Liberis and Lane 2023). The rows that
# two stripes both need, the halo, are computed again or cached (StreamNet, Zheng et al. 2023), whatever costs less.
# Row ranges are (first, behind the last).

Rows = tuple[int, int]

SPLIT_DTYPES = ("FLOAT32", "INT8", "UINT8")
UNARY_OPERATORS = frozenset(
    """ABS CEIL COS DEQUANTIZE ELU EXP FLOOR HARD_SWISH LEAKY_RELU LOG LOGISTIC NEG QUANTIZE RELU RELU6 RELU_N1_TO_1
    ROUND RSQRT SIN SQRT SQUARE TANH""".split()
)
PADDING_OPERATORS = ("PAD", "PADV2")
BROADCAST_OPERATORS = frozenset("ADD DIV MAXIMUM MINIMUM MUL PRELU SQUARED_DIFFERENCE SUB".split())
UPSAMPLING = (2, 4, 8)  # factors whose reciprocal is exact, so that every row has its source where it had it before


@dataclass(frozen=True)
class RowRule:
    """How an operator works along the height: which rows of its inputs make which rows of its output.

    Output row r reads ``extent`` rows from ``r * stride - above`` on, of those that exist; the others are padding.
    With ``repeat``, it reads row ``r // repeat``.
    """

    sources: tuple[int, ...]  # the tensors of which it reads rows; all others it reads whole
    stride: int = 1
    extent: int = 1
    above: int = 0
    repeat: int = 1
    columns: tuple[int, int] = (0, 0)  # padding on the left and right
    channels: tuple[int, int] = (0, 0)

    def whole(self, rows: Rows) -> Rows:
        """The rows, extended to what can be computed by itself."""
        return rows[0] // self.repeat * self.repeat, -(-rows[1] // self.repeat) * self.repeat

    def reads(self, rows: Rows, height: int) -> tuple[Rows, Rows]:
        """(input rows, of an input of that height, for these output rows; rows of padding above and below them)."""
        first = rows[0] // self.repeat * self.stride - self.above
        behind = (rows[1] - 1) // self.repeat * self.stride - self.above + self.extent
        above = -first if first < 0 else 0  # much faster than max(), and the search spends its time here
        below = behind - height if behind > height else 0
        return (first + above, behind - below), (above, below)


def row_rule(graph: ModelGraph, data: Bytes, subgraph: Subgraph, operator: Operator) -> RowRule | None:
    """The rule of an operator, or None for one that has to run whole."""
    tensors, kind = subgraph.tensors, operator.kind
    if len(operator.outputs) != 1 or operator.outputs[0] < 0 or not _is_spatial(tensors[operator.outputs[0]]):
        return None
    is_convolution, is_pad = kind in ("CONV_2D", "DEPTHWISE_CONV_2D"), kind in PADDING_OPERATORS
    needed = operator.inputs[:2] if is_convolution else operator.inputs  # the bias may be left out
    if len(needed) < (2 if is_convolution or is_pad else 1) or min(needed) < 0:
        return None
    output = tensors[operator.outputs[0]]
    if output.shape[1] == 1:
        return None
    if kind in UNARY_OPERATORS or kind in BROADCAST_OPERATORS or kind == "CONCATENATION":
        return _elementwise_rule(tensors, operator, output)
    source = tensors[operator.inputs[0]]
    if not _is_spatial(source):
        return None
    if is_convolution or kind in ("MAX_POOL_2D", "AVERAGE_POOL_2D"):
        return _window_rule(tensors, operator, source, output)
    if is_pad and graph.has_data(paddings := tensors[operator.inputs[1]]):
        span = graph.buffers[paddings.buffer]
        wide = {"INT32": "<i4", "INT64": "<i8"}.get(paddings.dtype)
        if wide is None or span.size != 8 * np.dtype(wide).itemsize:
            return None
        pads = np.frombuffer(data[span.start : span.start + span.size], wide).reshape(4, 2)
        if pads[0].any() or (pads < 0).any() or tuple(pads.sum(axis=1) + source.shape) != output.shape:
            return None
        _, (above, _), columns, channels = (tuple(pair) for pair in pads.tolist())
        return RowRule((source.index,), above=above, columns=columns, channels=channels)
    if kind == "RESIZE_NEAREST_NEIGHBOR" and operator.options and not operator.options["AlignCorners"]:
        factors = [b // a for a, b in zip(source.shape[1:3], output.shape[1:3], strict=True)]
        exact = tuple(f * a for f, a in zip(factors, source.shape[1:3], strict=True)) == output.shape[1:3]
        if exact and all(f in UPSAMPLING for f in factors):
            return RowRule((source.index,), repeat=factors[0])
    return None


def _is_spatial(tensor: Tensor) -> bool:
    """Whether it is one picture, rows of columns of channels, of a size that is known."""
    return (
        len(tensor.shape) == 4
        and tensor.shape[0] == 1
        and min(tensor.shape) > 0
        and tensor.dtype in SPLIT_DTYPES
        and tensor.storage is Storage.ACTIVATION
        and not tensor.is_dynamic
    )


def _window_rule(tensors: Sequence[Tensor], operator: Operator, source: Tensor, output: Tensor) -> RowRule | None:
    options, is_pool = operator.options, operator.kind.endswith("POOL_2D")
    if not options or (not is_pool and len(tensors[operator.inputs[1]].shape) != 4):
        return None
    sizes = (options["FilterHeight"], options["FilterWidth"]) if is_pool else tensors[operator.inputs[1]].shape[1:3]
    strides = options["StrideH"], options["StrideW"]
    dilations = options.get("DilationHFactor", 1), options.get("DilationWFactor", 1)
    extents, pads = [], []
    for axis, (size, stride, dilation) in enumerate(zip(sizes, strides, dilations, strict=True), start=1):
        extent = (size - 1) * dilation + 1
        if min(size, stride, dilation) < 1:
            return None
        # TensorFlow pads as little as SAME needs, and the smaller half first.
        is_same = options["Padding"] == tflite.Padding.SAME
        short = max((output.shape[axis] - 1) * stride + extent - source.shape[axis], 0)
        total = short if is_same else 0
        expected = -(-source.shape[axis] // stride) if is_same else (source.shape[axis] - extent) // stride + 1
        if output.shape[axis] != expected:
            return None
        extents.append(extent)
        pads.append((total // 2, total - total // 2))
    if operator.kind == "AVERAGE_POOL_2D" and (any(pads[0]) or any(pads[1])):
        return None  # it divides by the number of elements that are no padding
    return RowRule((source.index,), strides[0], extents[0], pads[0][0], columns=pads[1])


def _elementwise_rule(tensors: Sequence[Tensor], operator: Operator, output: Tensor) -> RowRule | None:
    if operator.kind == "CONCATENATION":
        if operator.options.get("Axis") not in (2, 3, -1, -2):
            return None
    elif len(operator.inputs) > (1 if operator.kind in UNARY_OPERATORS else 2):
        return None
    sources = []
    for tensor in (tensors[i] for i in operator.inputs):
        if _is_spatial(tensor) and tensor.shape[1] == output.shape[1]:
            sources.append(tensor.index)
        elif operator.kind == "CONCATENATION" or (len(tensor.shape) > 2 and tensor.shape[-3] != 1):
            return None
    return RowRule(tuple(dict.fromkeys(sources))) if sources else None


@dataclass(frozen=True)
class Stripe:
    """What one stripe does: the output rows that each operator of the region computes, and the rows of each inner
    tensor that its readers want to find."""

    computed: Mapping[int, Rows]  # by operator; one that computes nothing is left out
    wanted: Mapping[int, Rows]  # by tensor


class NoStripes(ValueError):
    """A region cannot be cut into that many stripes."""


def stripe_rows(
    rules: Mapping[int, tuple[int, RowRule]],
    heights: Mapping[int, int],
    escaping: Collection[int],
    stripes: int,
    is_cached: bool,
) -> Iterator[Stripe]:
    """The row algebra of a region: who computes what in which stripe.

    Raises:
        NoStripes: one of them would consist of padding.

    Args:
        rules: operator -> (output tensor, rule), in execution order.
        heights: of all tensors that the rules name.
        escaping: outputs that are read outside of the region; every row of them is computed.
        is_cached: whether the rows of earlier stripes are still there, so that none is computed twice.
    """
    read_inside = {i for _, rule in rules.values() for i in rule.sources}
    done = dict.fromkeys((output for output, _ in rules.values()), 0)  # rows that exist or have existed
    for stripe in range(1, stripes + 1):
        computed: dict[int, Rows] = {}
        wanted: dict[int, Rows] = {}
        for operator, (output, rule) in reversed(list(rules.items())):
            first, behind = wanted.get(output, (done[output], done[output]))
            if output in escaping:
                first = min(first, done[output])
                if stripe == stripes or output not in read_inside:
                    behind = max(behind, heights[output] * stripe // stripes)
            first, behind = rule.whole((first, behind))
            wanted[output] = first, behind
            if is_cached:
                first = max(first, done[output])
            done[output] = max(done[output], behind)
            if first >= behind:
                continue
            computed[operator] = first, behind
            for source in rule.sources:
                rows, _ = rule.reads((first, behind), heights[source])
                if rows[0] >= rows[1]:
                    raise NoStripes
                before = wanted.get(source, rows)
                wanted[source] = min(before[0], rows[0]), max(before[1], rows[1])
        yield Stripe(computed, wanted)


####################################################################################################
# Stripes as operators: a region and its rows -> new operators and tensors, as plain data
####################################################################################################


class NewTensor(NamedTuple):
    """A tensor to be added: of the type, quantisation and name of ``like``, the latter with a label behind it. Those
    with ``values`` are constants, of int32 where they are not like another tensor."""

    label: str
    shape: tuple[int, ...]
    like: int | None = None
    values: bytes | None = None


class NewOperator(NamedTuple):
    """An operator to be added: a copy of ``like`` on other tensors, or one of a kind of its own."""

    kind: str
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    like: int | None = None
    is_unpadded: bool = False  # a copy of an operator with SAME padding that comes without


@dataclass(frozen=True)
class Rewrite:
    """A new schedule of a subgraph: old operators by number and new ones. New tensors have the numbers behind the old
    ones; old tensors that nothing uses any longer are to be dropped."""

    operators: tuple[int | NewOperator, ...]
    tensors: tuple[NewTensor, ...] = ()


LONGEST_CONCATENATION = 10  # inputs that TFLM's kernel takes


class _Emitter:
    """Collects the new operators and tensors of regions, in execution order."""

    def __init__(self, subgraph: Subgraph) -> None:
        self.subgraph = subgraph
        self.tensors: list[NewTensor] = []
        self.operators: list[NewOperator] = []
        self.constants: dict[tuple[int | None, tuple[int, ...], bytes], int] = {}

    def tensor(self, like: int, shape: tuple[int, ...], label: str) -> int:
        self.tensors.append(NewTensor(label, shape, like))
        return len(self.subgraph.tensors) + len(self.tensors) - 1

    def rows(self, like: int, rows: Rows) -> int:
        _, _, width, channels = self.subgraph.tensors[like].shape
        return self.tensor(like, (1, rows[1] - rows[0], width, channels), f"{rows[0]}:{rows[1]}")

    def constant(self, values: bytes, shape: tuple[int, ...], like: int | None = None) -> int:
        key = like, shape, values
        if key not in self.constants:
            self.tensors.append(NewTensor("rows", shape, like, values))
            self.constants[key] = len(self.subgraph.tensors) + len(self.tensors) - 1
        return self.constants[key]

    def integers(self, *values: int, shape: tuple[int, ...]) -> int:
        return self.constant(struct.pack(f"<{len(values)}i", *values), shape)

    def emit(self, kind: str, inputs: Sequence[int], output: int, like: int | None = None, **fields: Any) -> int:
        self.operators.append(NewOperator(kind, tuple(inputs), (output,), like, **fields))
        return output

    def slice(self, tensor: int, like: int, have: Rows, want: Rows) -> int:
        """The wanted rows of a tensor that has others as well; the tensor itself where it has no others."""
        if have == want:
            return tensor
        _, _, width, channels = self.subgraph.tensors[like].shape
        begin = self.integers(0, want[0] - have[0], 0, 0, shape=(4,))
        size = self.integers(1, want[1] - want[0], width, channels, shape=(4,))
        return self.emit("SLICE", (tensor, begin, size), self.rows(like, want))

    def join(self, parts: Sequence[int], like: int, rows: Sequence[Rows], target: int | None = None) -> int:
        """Neighbouring rows in one tensor, in several steps if they are too many for one operator."""
        parts, rows = list(parts), list(rows)
        while len(parts) > LONGEST_CONCATENATION:
            groups = [slice(i, i + LONGEST_CONCATENATION) for i in range(0, len(parts), LONGEST_CONCATENATION)]
            parts = [self.join(parts[g], like, rows[g]) if len(parts[g]) > 1 else parts[g][0] for g in groups]
            rows = [(rows[g][0][0], rows[g][-1][1]) for g in groups]
        output = self.rows(like, (rows[0][0], rows[-1][1])) if target is None else target
        return self.emit("CONCATENATION", parts, output)

    def pad(self, operator: Operator, rule: RowRule, tensor: int, height: int, pads: Rows) -> int:
        """The rows with the padding around them that the operator itself would have put there."""
        is_max = operator.kind == "MAX_POOL_2D"
        if not (any(pads) or any(rule.columns)):
            return tensor
        like = rule.sources[0]
        _, _, width, channels = self.subgraph.tensors[like].shape
        inputs = [tensor, self.integers(0, 0, *pads, *rule.columns, 0, 0, shape=(4, 2))]
        if is_max:
            item = {"FLOAT32": struct.pack("<f", np.finfo(np.float32).min), "INT8": b"\x80", "UINT8": b"\0"}
            inputs.append(self.constant(item[self.subgraph.tensors[like].dtype], (1,), like))
        shape = 1, height + sum(pads), width + sum(rule.columns), channels
        return self.emit("PADV2" if is_max else "PAD", inputs, self.tensor(like, shape, "padded"))

    def compute(self, operator: Operator, rule: RowRule, rows: Rows, inputs: Mapping[int, int]) -> int:
        """Some rows of an operator's output; ``inputs`` are the tensors that hold the rows it reads of its sources."""
        output = operator.outputs[0]
        chosen = [inputs.get(i, i) for i in operator.inputs]
        source = self.subgraph.tensors[rule.sources[0]]
        read, pads = rule.reads(rows, source.shape[1])
        is_unpadded = operator.options.get("Padding") == tflite.Padding.SAME
        if operator.kind in PADDING_OPERATORS:
            chosen[1] = self.integers(0, 0, *pads, *rule.columns, *rule.channels, shape=(4, 2))
        elif operator.kind == "RESIZE_NEAREST_NEIGHBOR":
            chosen[1] = self.integers(rows[1] - rows[0], self.subgraph.tensors[output].shape[2], shape=(2,))
        elif is_unpadded:
            chosen[0] = self.pad(operator, rule, chosen[0], read[1] - read[0], pads)
        result = self.rows(output, rows)
        return self.emit(operator.kind, chosen, result, operator.index, is_unpadded=is_unpadded)

    def region(
        self,
        rules: Mapping[int, tuple[int, RowRule]],
        stripes: Sequence[Stripe],
        escaping: Collection[int],
        is_cached: bool,
    ) -> None:
        """All operators of a region, whose rows are those of :func:`stripe_rows`."""
        tensors = self.subgraph.tensors
        cache: dict[int, tuple[int, Rows]] = {}  # what earlier stripes left: (tensor, its rows)
        pieces: dict[int, list[tuple[int, Rows]]] = {output: [] for output in escaping}
        later: list[dict[int, int]] = [{}]  # per stripe the first row that a later one wants
        for stripe in reversed(stripes[1:]):
            wanted = {t: min(rows[0], later[-1].get(t, rows[0])) for t, rows in stripe.wanted.items()}
            later.append({**later[-1], **wanted})
        for stripe, wanted_later in zip(stripes, reversed(later), strict=True):
            available = dict(cache)
            fetched: dict[tuple[int, Rows], int] = {}
            for number, (output, rule) in rules.items():
                if number not in stripe.computed:
                    continue
                rows = stripe.computed[number]
                inputs = {}
                for source in rule.sources:
                    want, _ = rule.reads(rows, tensors[source].shape[1])
                    if (source, want) not in fetched:
                        tensor, have = available.get(source, (source, (0, tensors[source].shape[1])))
                        fetched[source, want] = self.slice(tensor, source, have, want)
                    inputs[source] = fetched[source, want]
                computed = self.compute(self.subgraph.operators[number], rule, rows, inputs)
                available[output] = computed, rows
                if output in cache and stripe.wanted[output][0] < rows[0]:
                    kept, before = cache[output]
                    available[output] = self.join((kept, computed), output, (before, rows)), (before[0], rows[1])
                if output in pieces:
                    start = pieces[output][-1][1][1] if pieces[output] else 0
                    fresh = max(start, rows[0]), rows[1]
                    if fresh[0] < fresh[1]:
                        pieces[output].append((self.slice(computed, output, rows, fresh), fresh))
                cache.pop(output, None)
                if is_cached and (first := wanted_later.get(output, rows[1])) < rows[1]:
                    tensor, have = available[output]
                    keep = max(first, have[0]), rows[1]
                    cache[output] = self.slice(tensor, output, have, keep), keep
        for output, parts in pieces.items():
            self.join([tensor for tensor, _ in parts], output, [rows for _, rows in parts], output)


####################################################################################################
# Splitting a model: which regions in how many stripes pay
####################################################################################################


@dataclass(frozen=True)
class SplitRegion:
    """Operators [start, end) in stripes, and what that takes; the sizes of tensors as TFLM aligns them, in bytes."""

    start: int
    end: int
    stripes: int
    is_cached: bool
    peak: int  # with all that is alive around the region
    macs: int  # more multiply-accumulates than before
    persistent: int  # more bytes of persistent structures on a 32-bit target
    operators: int  # more operators


@dataclass(frozen=True)
class Composition:
    """Disjoint regions in execution order, and what the subgraph takes with them."""

    regions: tuple[SplitRegion, ...]
    peak: int
    macs: int
    persistent: int
    operators: int


LONGEST_REGION = 100  # operators
DEFAULT_MAX_MACS = 10.0  # per cent more multiply-accumulates than before


class Limits(NamedTuple):
    """What a region may take."""

    peak: int
    macs: int
    persistent: int


STRIPES = (2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16, 20, 24, 28, 32)


class SplitSearch:
    """Finds the regions of a subgraph that pay. With a fixed order the peaks of disjoint regions are independent, given
    what is alive at their ends, so choices compose by dynamic programming.

    Raises:
        ArenaError: a tensor has no size that TFLM could compute.
    """

    def __init__(self, graph: ModelGraph, data: Bytes, subgraph: Subgraph, deadline: float) -> None:
        self.subgraph, self.deadline = subgraph, deadline
        self.sizes = [ARENA_COSTS.tensor(t) if t.size else 0 for t in subgraph.tensors]
        callee_peaks = {s.subgraph.index: s.peak for s in schedule_model(graph)}
        count = len(subgraph.operators)
        self.needs = ordering_problem(graph, subgraph, callee_peaks, ARENA_COSTS).needs(range(count))
        self.is_pad = [operator.kind in PADDING_OPERATORS for operator in subgraph.operators]
        self.row_bytes = [(t.bytes or 0) // t.shape[1] if _is_spatial(t) else 0 for t in subgraph.tensors]
        self.lifetimes = tensor_lifetimes(subgraph)
        changes = [0] * (count + 2)
        for t, life in self.lifetimes.items():
            changes[life.first + 1] += self.sizes[t]
            changes[life.last + 1] -= self.sizes[t]
        self.entering = list(itertools.accumulate(changes[:-1]))  # bytes alive before each operator, and at the end
        self.readers: dict[int, list[int]] = defaultdict(list)
        for operator in subgraph.operators:
            for t in operator.reads:
                self.readers[t].append(operator.index)
        self.producers = {t: operator.index for operator in subgraph.operators for t in operator.writes}
        self.rules = [
            row_rule(graph, data, subgraph, operator) if self.is_only_producer(operator) else None
            for operator in subgraph.operators
        ]
        self.macs = [multiply_accumulates(subgraph, operator) for operator in subgraph.operators]
        self.persistent = [operator_persistent_bytes(subgraph, operator) for operator in subgraph.operators]
        pad = glue_persistent_bytes("PAD", 2) + TENSOR_BYTES
        self.least_persistent = [  # of a copy, with the padding that it always needs
            own + TENSOR_BYTES + (pad if rule is not None and any(rule.columns) and not is_pad else 0)
            for own, rule, is_pad in zip(self.persistent, self.rules, self.is_pad, strict=True)
        ]
        self.regions: dict[int, list[SplitRegion]] = defaultdict(list)  # by start
        self.ranges = dict(self.possible_ranges())
        # Per range and halo mode the stripes left to try, the fewest last, and the lowest peak so far.
        self.untried: dict[tuple[int, int, bool], list[int]] = defaultdict(lambda: list(reversed(STRIPES)))
        self.reached: dict[tuple[int, int, bool], int] = {}

    def is_only_producer(self, operator: Operator) -> bool:
        """Whether what the operator writes comes from nowhere else, and is read after it only, as in sound files."""
        return all(
            self.producers[t] == operator.index
            and t not in self.subgraph.inputs
            and min(self.readers[t], default=operator.index + 1) > operator.index
            and self.lifetimes.get(t, Lifetime(operator.index, 0)).first == operator.index
            for t in operator.writes
        )

    def possible_ranges(self) -> Iterator[tuple[Rows, tuple[int, int]]]:
        """All ranges of operators that could be a region, with the bytes that they need whole and in stripes at least.

        Whatever the stripes are, at its start all that it reads is there, at its end every output and its pieces.
        """
        for end in range(1, len(self.rules) + 1):
            earliest = unsplit = escaping = 0
            for start in reversed(range(max(end - LONGEST_REGION, 0), end)):
                rule, operator = self.rules[start], self.subgraph.operators[start]
                if rule is None:
                    break
                for t in operator.reads:
                    if t not in rule.sources and t in self.producers:
                        earliest = max(earliest, self.producers[t] + 1)
                if start < earliest:
                    break
                unsplit = max(unsplit, self.needs[start])
                escaping += self.sizes[operator.writes[0]] if self.escapes(operator.writes[0], end) else 0
                bound = max(self.entering[start], self.entering[end] + escaping)
                if bound < unsplit:
                    yield (start, end), (unsplit, bound)

    def escapes(self, output: int, end: int) -> bool:
        """Whether a tensor made before ``end`` has to be whole then."""
        return not self.readers[output] or (output in self.lifetimes and self.lifetimes[output].last >= end)

    def escaping(self, start: int, end: int) -> list[int]:
        outputs = (t for operator in self.subgraph.operators[start:end] for t in operator.writes)
        return [t for t in outputs if self.escapes(t, end)]

    def region_rules(self, start: int, end: int) -> dict[int, tuple[int, RowRule]]:
        operators = self.subgraph.operators[start:end]
        return {op.index: (op.writes[0], rule) for op in operators if (rule := self.rules[op.index])}

    def heights(self, rules: Mapping[int, tuple[int, RowRule]]) -> dict[int, int]:
        named = (t for output, rule in rules.values() for t in (output, *rule.sources))
        return {t: self.subgraph.tensors[t].shape[1] for t in named}

    def evaluate(self, start: int, end: int, stripes: int, is_cached: bool, limits: Limits) -> SplitRegion | None:
        """What a region takes; None if that is more than the limits, or if it cannot be cut like that."""
        rules, escaping = self.region_rules(start, end), self.escaping(start, end)
        rows = self.rows_within(limits, rules, escaping, stripes, is_cached)
        if rows is None:
            return None
        emitter = _Emitter(self.subgraph)
        emitter.region(rules, rows, escaping, is_cached)
        before = sum(self.persistent[start:end]) + TENSOR_BYTES * (end - start - len(escaping))
        after = TENSOR_BYTES * len(emitter.tensors) + sum(
            glue_persistent_bytes(new.kind, len(new.inputs)) if new.like is None else self.persistent[new.like]
            for new in emitter.operators
        )
        peak = self.peak(emitter, start, end)
        if after - before > limits.persistent or peak > limits.peak:
            return None
        macs = sum(self.stripe_macs(rules, stripe) for stripe in rows) - sum(self.macs[start:end])
        more_operators = len(emitter.operators) - (end - start)
        return SplitRegion(start, end, stripes, is_cached, peak, macs, after - before, more_operators)

    def rows_within(
        self,
        limits: Limits,
        rules: Mapping[int, tuple[int, RowRule]],
        escaping: Collection[int],
        stripes: int,
        is_cached: bool,
    ) -> list[Stripe] | None:
        """The row algebra of a region; None as soon as one can tell that a limit does not hold."""
        heights = self.heights(rules)
        if min(heights[t] for t in escaping) < stripes:
            return None
        start = min(rules)
        sinks = set(escaping) - {t for _, rule in rules.values() for t in rule.sources}
        macs = -sum(self.macs[number] for number in rules)
        persistent = -sum(self.persistent[number] + TENSOR_BYTES for number in rules)
        around = self.entering[start]  # the pieces of outputs come on top
        rows = []
        try:
            for stripe in stripe_rows(rules, heights, escaping, stripes, is_cached):
                rows.append(stripe)
                macs += self.stripe_macs(rules, stripe)
                persistent += sum(self.least_persistent[number] for number in stripe.computed)
                if macs > limits.macs or persistent > limits.persistent:
                    return None
                if len(rows) < stripes and around + self.working_set(rules, stripe) > limits.peak:
                    return None
                for number, (first, behind) in stripe.computed.items():
                    around += (behind - first) * self.row_bytes[rules[number][0]] if rules[number][0] in sinks else 0
        except NoStripes:
            return None
        return rows

    def stripe_macs(self, rules: Mapping[int, tuple[int, RowRule]], stripe: Stripe) -> int:
        tensors = self.subgraph.tensors
        return sum(
            self.macs[number] * (behind - first) // tensors[rules[number][0]].shape[1]
            for number, (first, behind) in stripe.computed.items()
        )

    def working_set(self, rules: Mapping[int, tuple[int, RowRule]], stripe: Stripe) -> int:
        """The most bytes of rows that an operator of a stripe reads, pads and writes, whole tensors apart."""
        most = 0
        for number, rows in stripe.computed.items():
            output, rule = rules[number]
            written = (rows[1] - rows[0]) * self.row_bytes[output]
            read = padded = 0
            for source in rule.sources:
                _, height, width, _ = self.subgraph.tensors[source].shape
                (first, behind), pads = rule.reads(rows, height)
                read += (behind - first) * self.row_bytes[source] if behind - first < height else 0
                if (any(pads) or any(rule.columns)) and not self.is_pad[number]:
                    row = self.row_bytes[source] * (width + sum(rule.columns)) // width
                    padded = (behind - first + sum(pads)) * row
            most = max(most, read + padded, (padded or read) + written)
        return most

    def peak(self, emitter: _Emitter, start: int, end: int) -> int:
        """The most bytes alive while the new operators run."""
        old = len(self.sizes)
        last: dict[int, int] = {}
        for number, operator in enumerate(emitter.operators):
            for t in operator.inputs:
                last[t] = number
        dying: dict[int, list[int]] = defaultdict(list)
        for t, number in last.items():
            if t >= old or (t in self.lifetimes and self.lifetimes[t].last < end):
                dying[number].append(t)
        sizes: dict[int, int] = {}
        live = peak = self.entering[start]
        for number, operator in enumerate(emitter.operators):
            output = operator.outputs[0]
            if output >= old:
                new = emitter.tensors[output - old]
                assert new.like is not None
                item = TFLM_ELEMENT_BYTES[self.subgraph.tensors[new.like].dtype]
                sizes[output] = align(math.prod(new.shape) * item)
                live += sizes[output]
            else:
                live += self.sizes[output]
            peak = max(peak, live)
            for t in dying[number]:
                live -= sizes.get(t, 0) if t >= old else self.sizes[t]
        return peak

    def try_ranges(self, limit: int, most_macs: int, best: int) -> None:
        """Give every range that needs more than ``limit`` bytes, if it can have it, a region that does not.

        Few stripes come first, since more of them cost more; later calls, with lower limits, go on from there.
        ``best`` is the smallest sum of peak and additional persistent bytes so far; a region that cannot be part of a
        smaller one is left out.
        """
        for (start, end), (unsplit, bound) in self.ranges.items():
            if unsplit <= limit or bound > limit or bound >= best:
                continue
            for is_cached in (False, True):
                key = start, end, is_cached
                while self.reached.get(key, unsplit) > limit and (untried := self.untried[key]):
                    if time.monotonic() > self.deadline:
                        return
                    stripes = untried.pop()
                    region = self.evaluate(start, end, stripes, is_cached, Limits(limit, most_macs, best - bound))
                    if region is not None:
                        self.reached[key] = region.peak
                        self.regions[start].append(region)

    def compose(self, limit: int, most_macs: int) -> Composition | None:
        """The regions that keep the peak within the limit at the least persistent memory."""
        labels: list[list[Composition]] = [[] for _ in range(len(self.needs) + 1)]
        labels[0] = [Composition((), 0, 0, 0, 0)]
        for position, here in enumerate(labels[:-1]):
            whole = SplitRegion(position, position + 1, 1, False, self.needs[position], 0, 0, 0)
            for step in (whole, *self.regions[position]):
                if step.peak > limit:
                    continue
                for label in here:
                    if label.macs + step.macs <= most_macs:
                        chosen = label.regions if step is whole else (*label.regions, step)
                        new = Composition(
                            chosen,
                            max(label.peak, step.peak),
                            label.macs + step.macs,
                            label.persistent + step.persistent,
                            label.operators + step.operators,
                        )
                        _keep_best(labels[step.end], new)
        return min(labels[-1], key=lambda label: label.persistent, default=None)

    def front(self, most_macs: int) -> list[Composition]:
        """Compositions with ever lower peaks, each with the least persistent memory for its peak, unsplit first."""
        compositions = [Composition((), max(self.needs, default=0), 0, 0, 0)]
        while time.monotonic() < self.deadline:
            limit = compositions[-1].peak - 1
            self.try_ranges(limit, most_macs, min(c.peak + c.persistent for c in compositions))
            if not (found := self.compose(limit, most_macs)):
                break
            compositions.append(found)
        return compositions

    def rewrite(self, composition: Composition) -> Rewrite:
        """The schedule of the whole subgraph with these regions in stripes."""
        emitter = _Emitter(self.subgraph)
        schedule: list[int | NewOperator] = []
        done = 0
        for region in composition.regions:
            schedule += range(done, region.start)
            before = len(emitter.operators)
            rules, escaping = self.region_rules(region.start, region.end), self.escaping(region.start, region.end)
            rows = list(stripe_rows(rules, self.heights(rules), escaping, region.stripes, region.is_cached))
            emitter.region(rules, rows, escaping, region.is_cached)
            schedule += emitter.operators[before:]
            done = region.end
        schedule += range(done, len(self.subgraph.operators))
        return Rewrite(tuple(schedule), tuple(emitter.tensors))


@dataclass(frozen=True)
class SplitAlternative:
    """One way to run subgraph 0: regions in stripes, and what that takes. Sizes in bytes."""

    regions: tuple[SplitRegion, ...]
    peak: int  # of the tensors as TFLM aligns them, in the order of the file
    persistent: int  # an estimate of TFLM's persistent structures on a 32-bit target
    macs_percent: float  # more multiply-accumulates than without stripes
    operators: int
    file_bytes: int

    @property
    def total(self) -> int:
        return self.peak + self.persistent


@dataclass(frozen=True)
class SplitResult:
    """What partial execution did. ``alternatives`` has the unsplit model first, then ever lower peaks."""

    before: SplitAlternative
    chosen: SplitAlternative
    alternatives: tuple[SplitAlternative, ...]
    changed: bool
    seconds: float
    is_complete: bool = True  # False: the time was over before all regions had been tried
    new_kinds: tuple[str, ...] = ()  # operators that the model did not have before: TFLM has to register them
    is_reordered: bool = False  # the regions are those of the best order, not of the file's
    refusal: str = ""  # why nothing was split, if nothing can be


def _keep_best(labels: list[Composition], new: Composition) -> None:
    """Add a label unless another is at least as good in everything that counts; drop those that it makes useless."""
    if any(old.persistent <= new.persistent and old.macs <= new.macs for old in labels):
        return
    labels[:] = [old for old in labels if old.persistent < new.persistent or old.macs < new.macs]
    labels.append(new)


####################################################################################################
# Weight clustering: an array -> the same array with few distinct values
####################################################################################################


@dataclass(frozen=True)
class Clustering:
    """The values of one array, replaced by the few of a code-book."""

    values: np.ndarray  # of the shape and type of the original
    codebook: np.ndarray  # ascending, of the type of the original
    counts: np.ndarray  # elements per entry of the code-book
    squared_error: float  # sum over all elements
    distinct_before: int


MANY = 1 << 16  # elements from which on an array is large: KMeans takes long there, and every pass counts
EXACT_UP_TO = 1 << 12  # distinct values for which every border between clusters is tried; in large arrays LARGEST_TABLE
LARGEST_TABLE, LARGEST_SHARED_TABLE = 1 << 9, 1 << 10  # positions for which all pairs are compared
GRID, GRID_PER_CLUSTER, LARGEST_GRID = 1 << 8, 16, 1 << 10  # likely borders, tried first where they are more
BAND = 6  # how many clusters from its usual place a border is sought there at least, either way
REACH, REACH_OF_MANY, REACH_OF_CELLS = 64, 32, 16  # positions tried next on either side of a border
CELLS, CELLS_PER_CLUSTER = 1 << 10, 64  # the larger; of equal width, and as many of equal count
NEAR_CELLS = 3  # cells on either side of a border that are divided
CHUNK = 1 << 15  # elements treated at a time, so that they stay in the cache


def cluster_values(values: np.ndarray, clusters: int) -> Clustering:
    """Replace an array's values by at most ``clusters`` distinct ones, with the least possible squared error.

    One-dimensional k-means has an exact solution: its clusters are intervals of the sorted values, so dynamic
    programming over the borders between them finds the optimum (Wang and Song 2011). Integer arrays get integer
    centroids, and the optimum is over those. Up to EXACT_UP_TO distinct values (LARGEST_TABLE in arrays of more than
    MANY elements) the result is that optimum, as far as sums in double precision can tell; for floats, scikit-learn's
    KMeans, started from it, confirms it. Others are approximated:

    - The borders are sought on a grid of likely ones, then around those found in smaller and smaller steps, down to
      single values. That can end in another than the best of all places; how often, we measured (see below).
    - More than MANY floats are put into cells before, and only the cells around the borders found are divided into
      single values. For a cell of m values and width h with a border of the optimum in it, between centroids d apart,
      another border at an end of the cell costs at most m h d / 2 more.

    On random arrays of 12 kinds, heavy-tailed ones and mixtures among them, the result was the optimum to 1e-9 in most
    cases and never more than 0.1 % above it, for up to 128 clusters (``tests/benchmarks/clustering.py --exact``).
    """
    flat = values.reshape(-1)
    if values.dtype == np.float16:
        flat = flat.astype(np.float32)  # loses nothing, and is much faster
    ranked, distinct, codebook = _best_codebook(flat, clusters)
    codebook = np.unique(codebook.astype(values.dtype))
    below = _thresholds(codebook, flat.dtype)
    labels = np.searchsorted(below, ranked.values)
    counts = np.bincount(labels, ranked.counts, len(codebook)).astype(np.int64)
    used = counts > 0
    clustered = _replaced(flat, codebook, below)
    if len(ranked.values) == distinct:
        error = ranked.squared_error(codebook.astype(np.float64)[labels])
    else:
        error = _squared_distance(flat, clustered)
    return Clustering(clustered.reshape(values.shape), codebook[used], counts[used], error, distinct)


def _best_codebook(flat: np.ndarray, clusters: int) -> tuple[_Ranked, int, np.ndarray]:
    """What the array was counted as, its number of distinct values, and the best centroids in double precision."""
    is_large = len(flat) > MANY
    if flat.dtype.kind == "f":
        ascending = np.sort(flat)
        is_new = _changes(ascending)
        distinct = int(np.count_nonzero(is_new))
        if distinct > MANY:
            ranked, borders = _divided_around_borders(ascending, is_new, clusters)
            return ranked, distinct, ranked.centroids(borders)
        ranked = _Ranked.of_floats(ascending, np.flatnonzero(is_new))
    else:
        ranked = _Ranked.of_integers(flat)
        distinct = len(ranked.values)
    if distinct > (LARGEST_TABLE if is_large else EXACT_UP_TO):
        return ranked, distinct, ranked.centroids(ranked.likely_borders(clusters, REACH_OF_MANY if is_large else REACH))
    codebook = ranked.centroids(ranked.best_borders(clusters))
    if not ranked.on_integers and clusters < distinct:
        codebook = _confirm(ranked, codebook)
    return ranked, distinct, codebook


def _thresholds(codebook: np.ndarray, dtype: np.dtype[Any]) -> np.ndarray:
    """The largest values, in the type of the elements, that are still nearer to one entry than to the next."""
    exact = codebook.astype(np.float64)
    middles = (exact[1:] + exact[:-1]) / 2
    if dtype.kind != "f":
        return np.floor(middles).astype(dtype)
    rounded = middles.astype(dtype)
    return np.where(rounded > middles, np.nextafter(rounded, dtype.type(-np.inf)), rounded)


def _replaced(flat: np.ndarray, codebook: np.ndarray, below: np.ndarray) -> np.ndarray:
    """Every element replaced by the nearest entry of the code-book."""
    replaced = np.empty(len(flat), codebook.dtype)
    for start in range(0, len(flat), CHUNK):
        chunk = flat[start : start + CHUNK]
        labels: np.ndarray
        if len(codebook) > 1 << 8:
            labels = np.searchsorted(below, chunk)
        else:  # many simple passes are faster than one search per element
            labels = np.zeros(len(chunk), np.uint8)
            for threshold in below:
                labels += (chunk > threshold).view(np.uint8)
        replaced[start : start + CHUNK] = codebook.take(labels, mode="clip")
    return replaced


def _squared_distance(a: np.ndarray, b: np.ndarray) -> float:
    total = 0.0
    for start in range(0, len(a), CHUNK):
        distance = np.subtract(a[start : start + CHUNK], b[start : start + CHUNK], dtype=np.float64)
        total += float(np.einsum("i,i", distance, distance))  # np.dot would wait for threads
    return total


def _changes(ascending: np.ndarray) -> np.ndarray:
    """Where an ascending array has another value than before."""
    return np.append(True, ascending[1:] != ascending[:-1])


def _divided_around_borders(ascending: np.ndarray, is_new: np.ndarray, clusters: int) -> tuple[_Ranked, np.ndarray]:
    """The best borders of sorted floats that are too many to consider them all, and the cells they were put into.

    Cells of equal width find the gaps between values, cells of equal count the places where many values are; those in
    which a border is likely nevertheless are divided into single values at once. The cells around every border found
    are divided then, until the borders stay in them.
    """
    cells = max(CELLS, CELLS_PER_CLUSTER * clusters)
    low, high = float(ascending[0]), float(ascending[-1])
    widths = np.linspace(low, high, cells, endpoint=False).astype(ascending.dtype)
    cuts = np.searchsorted(ascending, np.sort(np.append(ascending[:: -(-len(ascending) // cells)], widths)))
    cuts = cuts[_changes(cuts)]
    ends = np.append(cuts, len(ascending))
    spread = _spread_of_borders(np.diff(ends), ascending[ends[1:] - 1].astype(np.float64) - ascending[cuts])
    is_wide = spread > np.sum(spread) / (GRID_PER_CLUSTER * clusters)
    cuts = _divided(cuts, ends[:-1][is_wide], ends[1:][is_wide], is_new)
    ends = np.append(cuts, len(ascending))
    coarse = _Ranked.of_floats(ascending, cuts)
    borders = coarse.likely_borders(clusters, REACH_OF_CELLS)
    for _ in range(8):  # once or twice is enough, nearly always
        first, last = np.maximum(borders[1:-1] - NEAR_CELLS, 0), np.minimum(borders[1:-1] + NEAR_CELLS, len(cuts))
        divided = _divided(cuts, ends[first], ends[last], is_new)
        fine = _Ranked.of_floats(ascending, divided)
        at = np.searchsorted(divided, ends)
        steps = (at[last] - at[first]) // (2 * NEAR_CELLS) // 8  # of a cell
        found = fine.refined(at[borders], steps, REACH_OF_CELLS)
        before, borders = borders, np.searchsorted(cuts, np.append(divided, len(ascending))[found])
        if np.all(np.abs(borders - before) < NEAR_CELLS):
            break
    return fine, found


def _spread_of_borders(counts: np.ndarray, widths: np.ndarray) -> np.ndarray:
    """How many borders of a good code-book lie in intervals with so many values, up to a factor: they are as dense as
    the cube root of the density of the values (Panter and Dite 1951)."""
    return np.cbrt(counts * widths**2)


def _divided(cuts: np.ndarray, starts: np.ndarray, ends: np.ndarray, is_new: np.ndarray) -> np.ndarray:
    """The cuts, and all places between the given starts and ends where there is another value than before."""
    singles = (np.arange(start, end) for start, end in zip(starts.tolist(), ends.tolist(), strict=True))
    divided = np.sort(np.concatenate([cuts, *singles]))
    return divided[_changes(divided) & is_new[divided]]


@dataclass(frozen=True)
class _Ranked:
    """Ascending values, or the means of cells of them, with counts; intervals cost constant time, by prefix sums."""

    values: np.ndarray  # float64
    counts: np.ndarray  # float64
    sums: np.ndarray  # of values - centre, so that differences of prefix sums keep their digits
    centre: float  # one of the values, about the median: outliers do not move it, and differences from it are exact
    on_integers: bool

    @classmethod
    def of_integers(cls, flat: np.ndarray) -> _Ranked:
        """All distinct values."""
        if flat.dtype.itemsize <= 2:
            least = int(flat.min())
            counts = np.bincount(flat.astype(np.int64) - least)
            distinct = np.flatnonzero(counts)
            counts = counts[distinct]
            distinct += least
        else:
            distinct, counts = np.unique(flat, return_counts=True)
        values = distinct.astype(np.float64)
        centre = values[np.searchsorted(np.cumsum(counts), len(flat) // 2)]
        return cls(values, counts.astype(np.float64), (values - centre) * counts, centre, on_integers=True)

    @classmethod
    def of_floats(cls, ascending: np.ndarray, cuts: np.ndarray) -> _Ranked:
        """Sorted floats, cut before each of the given positions, 0 among them."""
        counts = np.diff(cuts, append=len(ascending)).astype(np.float64)
        sums = np.add.reduceat(ascending, cuts, dtype=np.float64)
        centre = float(ascending[len(ascending) // 2])
        return cls(sums / counts, counts, sums - centre * counts, centre, on_integers=False)

    @cached_property
    def prefix(self) -> tuple[np.ndarray, np.ndarray]:
        """Counts and sums of the values before each position."""
        return np.append(0.0, np.cumsum(self.counts)), np.append(0.0, np.cumsum(self.sums))

    def gain(self, start: np.ndarray, end: np.ndarray) -> np.ndarray:
        """By how much a centroid for values[start:end] lowers the sum of squares; minus infinity for none at all."""
        counts, sums = self.prefix
        n, gain = counts[end] - counts[start], sums[end] - sums[start]
        is_empty = n <= 0
        n[is_empty] = 1
        if self.on_integers:  # in place, here and below: fresh memory takes longer than the sums
            mean = gain / n
            np.rint(mean, out=mean)
            n *= mean
            gain *= 2
            gain -= n
            gain *= mean
        else:
            gain *= gain
            gain /= n
        gain[is_empty] = -np.inf
        return gain

    def squared_error(self, centroids: np.ndarray) -> float:
        """The error when each value is replaced by its centroid."""
        distance = self.values - centroids
        return float(np.einsum("i,i,i", self.counts, distance, distance))  # np.dot would wait for threads

    def centroids(self, borders: np.ndarray) -> np.ndarray:
        counts, sums = (prefix[borders] for prefix in self.prefix)
        mean = np.diff(sums) / np.diff(counts)
        return (np.rint(mean) if self.on_integers else mean) + self.centre

    def best_borders(self, clusters: int) -> np.ndarray:
        """The borders of the best intervals: positions 0 = b0 < b1 < ... < bk = number of values. All are tried."""
        size = len(self.values)
        if clusters >= size:
            return np.arange(size + 1)
        positions = np.arange(1, size)
        table = self.gain(positions, positions[:, None]) if size <= LARGEST_TABLE else None
        return self.choose([positions] * (clusters - 1), itertools.repeat(table))[0]

    def likely_borders(self, clusters: int, reach: int) -> np.ndarray:
        """The best borders on a grid, each not too far from its usual place there; then the best around them."""
        size = len(self.values)
        if clusters >= size:
            return np.arange(size + 1)
        points = max(GRID, min(GRID_PER_CLUSTER * clusters, LARGEST_GRID), 4 * clusters)
        grid = self.usual_borders(points) if points < size else np.arange(1, size)
        grid = grid[_changes(grid)]
        band = max(BAND * len(grid) // clusters, 4 * reach, 2 * clusters)
        width = min(2 * band + 1, len(grid))
        usual = np.searchsorted(grid, self.usual_borders(clusters))
        windows = [slice(start, start + width) for start in np.clip(usual - band, 0, len(grid) - width)]
        tables: Iterator[np.ndarray | None] = itertools.repeat(None)
        if len(grid) <= LARGEST_SHARED_TABLE:
            table = self.gain(grid, grid[:, None])
            tables = (table[window, before] for before, window in itertools.pairwise(windows))
        borders, _ = self.choose([grid[window] for window in windows], tables)
        at = np.searchsorted(grid, borders[1:-1])
        ends = np.concatenate(([0], grid, [size]))
        steps = np.maximum(ends[at + 1] - ends[at], ends[at + 2] - ends[at + 1]) // 4
        return self.refined(borders, steps, reach, first_reach=min(clusters, REACH))

    @cached_property
    def spread(self) -> np.ndarray:
        """Per gap between values, up to a factor, how many borders of a good code-book lie in it."""
        return _spread_of_borders(self.counts[1:], np.diff(self.values))

    def usual_borders(self, clusters: int) -> np.ndarray:
        """Where the borders are, roughly. No gap takes more than one, however wide."""
        spread = self.spread
        for _ in range(64):
            most = np.sum(spread) / clusters
            if np.max(spread) <= 1.5 * most:
                break
            spread = np.minimum(spread, most)
        below = np.cumsum(spread)
        return np.searchsorted(below, np.linspace(0, below[-1], clusters + 1)[1:-1]) + 1

    def refined(self, borders: np.ndarray, steps: np.ndarray, reach: int, first_reach: int = 0) -> np.ndarray:
        """The best borders around the given ones, in smaller and smaller steps, down to single positions.

        Borders can shift together, the further the more they are: ``first_reach`` is how far they are sought once.
        """
        borders = self.moved(borders, steps, max(reach, first_reach))
        while np.any(steps > 1):
            steps = steps // 8
            borders = self.moved(borders, steps, reach)
        return borders

    def moved(self, borders: np.ndarray, steps: np.ndarray, reach: int) -> np.ndarray:
        """The best borders around the given ones, each in steps of its own; where one goes as far as it may, again."""
        steps = np.maximum(steps, 1)
        offsets = steps[:, None] * np.arange(-reach, reach + 1)
        total = -np.inf
        while True:
            columns = np.clip(borders[1:-1, None] + offsets, 1, len(self.values) - 1)
            before, at = total, borders
            borders, total = self.choose(columns, self.tables(columns))
            if total <= before or not np.any(np.abs(borders - at)[1:-1] == reach * steps):
                return borders

    def tables(self, columns: np.ndarray) -> Iterator[np.ndarray]:
        """Per column but the first, what its positions gain after those of the column before: [position, before]."""
        together = max((1 << 13) // columns.shape[1] ** 2, 1)  # fewer calls, but what fits into the cache
        for i in range(1, len(columns), together):
            yield from self.gain(columns[i - 1 : -1, None, :][:together], columns[i:, :, None][:together])

    def choose(
        self, columns: Sequence[np.ndarray] | np.ndarray, tables: Iterator[np.ndarray | None]
    ) -> tuple[np.ndarray, float]:
        """The best borders, each from its ascending column, by dynamic programming over the tables of gains; and what
        all intervals gain together."""
        position, best = np.array([0]), np.zeros(1)
        choices: list[tuple[np.ndarray, np.ndarray]] = []
        total = np.empty((0, 0))
        for column in [*columns, np.array([len(self.values)])]:
            is_inner = len(choices) not in (0, len(columns))
            table = next(tables) if is_inner else self.gain(position, column[:, None])
            if table is None:
                choice, best = self.best_starts(position, best, column)
            else:
                total = np.add(table, best, out=total if total.shape == table.shape else None)
                choice = np.argmax(total, axis=1)
                best = total[np.arange(len(column)), choice]
            choices.append((position, choice))
            position = column
        borders, at = [len(self.values)], 0
        for position, choice in reversed(choices):
            at = int(choice[at])
            borders.append(int(position[at]))
        return np.array(borders[::-1]), float(best[0])

    def best_starts(self, starts: np.ndarray, best: np.ndarray, ends: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """For every end the start that maximises best[start] + gain(start, end), and that maximum.

        The gain has the Monge property, so a later end never has an earlier best start: every second end is looked
        up between the answers of its neighbours, all ends of one round at once.
        """
        choice, total = np.zeros(len(ends), dtype=np.int64), np.empty(len(ends))
        step = 1 << max(len(ends) - 1, 1).bit_length()
        known = np.zeros(0, dtype=np.int64)
        while step >= 1:
            rows = np.arange(step - 1, len(ends), 2 * step)
            if len(rows):
                after = np.searchsorted(known, rows)
                low, high = np.zeros_like(rows), np.full_like(rows, len(starts) - 1)
                low[after > 0] = choice[known[after[after > 0] - 1]]
                high[after < len(known)] = choice[known[after[after < len(known)]]]
                lengths = high - low + 1
                offsets = np.cumsum(lengths) - lengths
                options = np.arange(lengths.sum()) + np.repeat(low - offsets, lengths)
                totals = best[options] + self.gain(starts[options], np.repeat(ends[rows], lengths))
                total[rows] = np.maximum.reduceat(totals, offsets)
                hits = np.flatnonzero(totals == np.repeat(total[rows], lengths))
                choice[rows] = options[hits[np.searchsorted(hits, offsets)]]
                known = np.union1d(known, rows)
            step //= 2
        return choice, total


def _confirm(ranked: _Ranked, codebook: np.ndarray) -> np.ndarray:
    """The centroids that KMeans reaches from the given ones, should they be better."""
    from sklearn.cluster import KMeans

    kmeans = KMeans(len(codebook), init=codebook[:, None], n_init=1, tol=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about values so close together that it takes them for the same
        labels = kmeans.fit_predict(ranked.values[:, None], sample_weight=ranked.counts)
    reached = kmeans.cluster_centers_[:, 0]
    nearest = np.searchsorted(_thresholds(codebook, codebook.dtype), ranked.values)
    is_better = ranked.squared_error(reached[labels]) < ranked.squared_error(codebook[nearest])
    return np.sort(reached) if is_better else codebook


####################################################################################################
# Clustering a model: which tensors are weights, and what their bytes mean
####################################################################################################

# Operator kind -> the inputs that are weight matrices. Biases, peepholes and normalisation vectors are not.
_LSTM_WEIGHTS = (1, 2, 3, 4, 5, 6, 7, 8, 16)
WEIGHT_INPUTS: dict[str, tuple[int, ...]] = {
    "CONV_2D": (1,), "DEPTHWISE_CONV_2D": (1,), "TRANSPOSE_CONV": (1,), "CONV_3D": (1,), "CONV_3D_TRANSPOSE": (1,),
    "FULLY_CONNECTED": (1,), "BATCH_MATMUL": (0, 1), "EMBEDDING_LOOKUP": (1,), "GATHER": (0,), "SVDF": (1, 2),
    "RNN": (1, 2), "UNIDIRECTIONAL_SEQUENCE_RNN": (1, 2), "BIDIRECTIONAL_SEQUENCE_RNN": (1, 2, 5, 6, 10, 11),
    "LSTM": _LSTM_WEIGHTS, "UNIDIRECTIONAL_SEQUENCE_LSTM": _LSTM_WEIGHTS,
    "BIDIRECTIONAL_SEQUENCE_LSTM": (*_LSTM_WEIGHTS, *(i + 17 for i in _LSTM_WEIGHTS), *range(40, 48)),
}  # fmt: skip
WEIGHT_DTYPES = {"INT8": "<i1", "UINT8": "<u1", "INT16": "<i2", "FLOAT32": "<f4", "FLOAT16": "<f2", "INT4": "<i1"}


@dataclass(frozen=True)
class ClusteredWeights:
    """What clustering did to one weight matrix. Entropy and index sizes count the matrix alone, in bits or bytes."""

    name: str
    operator: str
    dtype: str
    shape: tuple[int, ...]
    codebooks: int  # 1, or one per channel
    distinct_before: int
    distinct_after: int  # over all code-books
    signal: float  # sum of squared weights
    squared_error: float
    bytes_before: int
    codebook_bytes: int
    index_bytes: int  # every element as a packed index into its code-book
    entropy_bytes: int  # what an ideal entropy coder of the indices would need instead

    @property
    def sqnr_db(self) -> float:
        return decibels(self.signal, self.squared_error)

    @property
    def bytes_after(self) -> int:
        return self.codebook_bytes + self.index_bytes


def decibels(signal: float, noise: float) -> float:
    """Signal-to-noise ratio; infinite without noise."""
    return 10 * math.log10(signal / noise) if signal and noise else math.inf


@dataclass(frozen=True)
class ClusteringResult:
    """What clustering did, one entry per weight matrix, and notes on those that had to stay as they are."""

    clusters: int
    per_channel: bool
    weights: tuple[ClusteredWeights, ...]
    notes: tuple[str, ...]

    @property
    def sqnr_db(self) -> float:
        """Over all matrices together."""
        return decibels(sum(w.signal for w in self.weights), sum(w.squared_error for w in self.weights))

    @property
    def lowest_sqnr_db(self) -> float:
        return min((w.sqnr_db for w in self.weights), default=math.inf)

    @property
    def bytes_before(self) -> int:
        return sum(w.bytes_before for w in self.weights)

    @property
    def bytes_after(self) -> int:
        """Code-books and packed indices."""
        return sum(w.bytes_after for w in self.weights)

    @property
    def entropy_bytes(self) -> int:
        """Code-books and entropy-coded indices, as an ideal coder would store them."""
        return sum(w.codebook_bytes + w.entropy_bytes for w in self.weights)


def weight_tensors(graph: ModelGraph) -> tuple[list[tuple[str, Tensor]], list[str]]:
    """The weight matrices, each buffer once, as (operator kind, tensor), and a note on each that must stay as it is."""
    found: dict[int, tuple[str, Tensor]] = {}
    notes: dict[str, None] = {}
    for subgraph in graph.subgraphs:
        makers = {i: operator for operator in subgraph.operators for i in operator.writes}
        for operator in subgraph.operators:
            for position in WEIGHT_INPUTS.get(operator.kind, ()):
                index = operator.inputs[position] if position < len(operator.inputs) else -1
                maker = makers.get(index)
                if maker is not None and maker.kind in ("DEQUANTIZE", "DENSIFY") and maker.reads:
                    index = maker.reads[0]
                if index < 0 or subgraph.tensors[index].storage is not Storage.CONSTANT:
                    continue
                tensor = subgraph.tensors[index]
                span = graph.buffers[tensor.buffer]
                if len(tensor.shape) < 2 or tensor.buffer in found:
                    continue
                if tensor.is_sparse:
                    notes[f"{tensor.name} is stored sparse and stays as it is"] = None
                elif tensor.dtype not in WEIGHT_DTYPES:
                    if operator.kind != "GATHER":  # which also gathers indices, shapes and the like
                        notes[f"{tensor.name} is of type {tensor.dtype} and stays as it is"] = None
                elif tensor.bytes != span.size:
                    notes[f"{tensor.name} does not fill its buffer and stays as it is"] = None
                else:
                    found[tensor.buffer] = operator.kind, tensor
    return list(found.values()), list(notes)


def decode_weights(tensor: Tensor, stored: np.ndarray) -> np.ndarray:
    """The elements of a weight tensor, in its shape, from its bytes (uint8). int4 comes as int8, low nibble first."""
    if tensor.dtype == "INT4":
        nibbles = np.stack([stored << 4, stored & 0xF0], axis=1).reshape(-1)[: tensor.elements]
        return (nibbles.view(np.int8) >> 4).reshape(tensor.shape)
    return stored.view(WEIGHT_DTYPES[tensor.dtype]).reshape(tensor.shape)


def encode_weights(tensor: Tensor, values: np.ndarray) -> np.ndarray:
    """The reverse of :func:`decode_weights`."""
    if tensor.dtype == "INT4":
        nibbles = np.append(values.reshape(-1).view(np.uint8) & 0x0F, np.zeros(tensor.elements % 2, np.uint8))
        return nibbles[0::2] | nibbles[1::2] << 4
    return np.ascontiguousarray(values).reshape(-1).view(np.uint8)


def cluster_tensor(
    kind: str, tensor: Tensor, weights: np.ndarray, clusters: int, per_channel: bool = False
) -> tuple[np.ndarray, ClusteredWeights]:
    """Cluster one weight matrix, whole or per quantised channel. Returns the new weights and the account of it."""
    channels: list[Any] = [np.s_[:]]
    quantization = tensor.quantization
    if per_channel and quantization is not None and len(quantization.scales) > 1:
        axis = quantization.dimension
        channels = [(*[np.s_[:]] * axis, c) for c in range(weights.shape[axis])]
    clustered = weights.copy()
    results = []
    for channel in channels:
        result = cluster_values(weights[channel], clusters)
        clustered[channel] = result.values
        results.append(result)
    error = sum(result.squared_error for result in results)
    signal = float(np.sum(np.square(weights, dtype=np.float64)))
    bits = ELEMENT_BITS[tensor.dtype] or 0
    entropy = sum(float(r.counts @ np.log2(r.counts.sum() / r.counts)) for r in results)
    account = ClusteredWeights(
        name=tensor.name,
        operator=kind,
        dtype=tensor.dtype,
        shape=tensor.shape,
        codebooks=len(results),
        distinct_before=results[0].distinct_before if len(results) == 1 else len(np.unique(weights)),
        distinct_after=len(np.unique(np.concatenate([r.codebook for r in results]))),
        signal=signal,
        squared_error=error,
        bytes_before=tensor.bytes or 0,
        codebook_bytes=sum((len(r.codebook) * bits + 7) // 8 for r in results),
        index_bytes=(sum(int(r.counts.sum()) * (len(r.codebook) - 1).bit_length() for r in results) + 7) // 8,
        entropy_bytes=math.ceil(entropy / 8),
    )
    return clustered, account


####################################################################################################
# Rewriting: decisions -> bytes. Everything that is not meant to change stays byte-identical
####################################################################################################


def permute_operators(data: bytearray | mmap.mmap, subgraph: Subgraph, order: Sequence[int]) -> None:
    """Put the operators of a subgraph in a new order, in place.

    The operator vector holds offsets relative to each element's own position, so element i becomes the old element
    j plus 4 (j - i). No other byte changes.
    """
    layout = f"<{len(order)}I"
    old = struct.unpack_from(layout, data, subgraph.operator_vector)
    new = (old[j] + 4 * (j - i) for i, j in enumerate(order))
    struct.pack_into(layout, data, subgraph.operator_vector, *new)


def overwrite_buffer(data: bytearray | mmap.mmap, span: BufferSpan, content: np.ndarray) -> None:
    """Replace the bytes of a buffer by as many others."""
    assert content.nbytes == span.size
    data[span.start : span.start + span.size] = content.tobytes()


def erase_plan(data: bytearray | mmap.mmap, graph: ModelGraph) -> bytearray | mmap.mmap:
    """Leave all tensors of a memory plan in the file to the runtime's planner."""
    span = graph.metadata_buffer(OFFLINE_PLAN)
    if span is None or span.size < 16:
        return data
    words = np.frombuffer(data[span.start : span.start + span.size // 4 * 4], dtype="<i4").copy()
    words[3:] = PLANNED_AT_RUN_TIME
    if _is_shared(graph, span):
        return add_metadata(data, OFFLINE_PLAN, words.tobytes())
    data[span.start : span.start + words.nbytes] = words.tobytes()
    return data


def _is_shared(graph: ModelGraph, plan: BufferSpan) -> bool:
    """Whether bytes of the plan in the file mean something else as well."""
    used = {graph.buffers[t.buffer] for s in graph.subgraphs for t in s.tensors if graph.has_data(t)}
    used |= {graph.buffers[buffer] for name, buffer in graph.metadata if name != OFFLINE_PLAN}
    return any(b.start < plan.start + plan.size and plan.start < b.start + b.size for b in used)


def write_plan(data: bytearray | mmap.mmap, graph: ModelGraph, arena: Arena, plan: Plan) -> bytearray | mmap.mmap:
    """Fix the plan's offsets in the file as ``OfflineMemoryAllocation`` metadata; scratch stays with the runtime.

    A plan that is there is overwritten in place; otherwise the file grows at its front.
    """
    offsets = {(b.subgraph, b.tensor): offset for b, offset in zip(arena.buffers, plan.offsets, strict=True)}
    tensors = [(s.index, t.index) for s in graph.subgraphs for t in s.tensors]
    words = [1, len(graph.subgraphs), len(tensors), *(offsets.get(key, PLANNED_AT_RUN_TIME) for key in tensors)]
    content = np.array(words, dtype="<i4").tobytes()
    span = graph.metadata_buffer(OFFLINE_PLAN)
    if span is not None and span.size == len(content) and span.start % 4 == 0 and not _is_shared(graph, span):
        data[span.start : span.start + span.size] = content
        return data
    return add_metadata(data, OFFLINE_PLAN, content)


MODEL_CODES, MODEL_SUBGRAPHS, MODEL_BUFFERS, MODEL_METADATA = 1, 2, 4, 6  # slots of the root table that we replace
MODEL_FIELDS = 10  # how many we know
SUBGRAPH_TENSORS, SUBGRAPH_OPERATORS, SUBGRAPH_FIELDS = 0, 3, 6
DEBUG_INDEX = 5  # the one field of a subgraph that is a number


class _Extension:
    """A file with new tables in front of it. All old bytes stay, behind the new ones.

    A FlatBuffers builder grows from the end of the file to its front and counts every offset from the end. So with
    the old file as its tail, the old tables are valid targets, and only what changes has to be written.

    Raises:
        ModelError: the root table has fields that nobody could copy, since their meaning is not known here.
    """

    def __init__(self, data: Bytes) -> None:
        self.model = tflite.Model.GetRootAs(data, 0)
        if self.model._tab.Offset(4 + 2 * MODEL_FIELDS):
            raise ModelError("the file uses a newer schema than this tool knows, so nothing can be added to it")
        self.length = len(data)
        self.padding = -len(data) % 16  # while building, so that what is aligned in the old file stays aligned
        self.builder = flatbuffers.Builder(0)
        self.builder.Bytes = bytearray(data) + bytes(self.padding)
        self.builder.minalign = 16
        self.tail = len(self.builder.Bytes)
        self.vectors: dict[tuple[int, ...], int] = {}
        self.buffers = self.all_old(self.model.Buffers, self.model.BuffersLength())
        if not self.buffers:  # index 0 stands for "no data"
            tflite.BufferStart(self.builder)
            self.buffers.append(tflite.BufferEnd(self.builder))

    def old(self, table: Any) -> int:
        """The offset of a table of the old file."""
        return self.tail - int(table._tab.Pos)

    def all_old(self, accessor: Callable[[int], Any], count: int) -> list[int]:
        return [self.old(accessor(i)) for i in range(count)]

    def old_field(self, table: Any, slot: int) -> int | None:
        """The offset of what a table of the old file refers to, or None."""
        if not (field := table._tab.Offset(4 + 2 * slot)):
            return None
        target = self.tail - table._tab.Indirect(table._tab.Pos + field)
        if not 0 < target <= self.tail:
            raise ModelError("the file is damaged: a field of one of its tables points outside of it")
        return int(target)

    def start_table(self, fields: int, targets: Mapping[int, int | None]) -> None:
        """Begin a table of so many fields with its references; those that are None stay absent."""
        self.builder.StartObject(fields)
        for slot, target in targets.items():
            if target is not None:
                self.builder.PrependUOffsetTRelativeSlot(slot, target, 0)

    def vector(self, targets: Sequence[int]) -> int:
        self.builder.StartVector(4, len(targets), 4)
        for target in reversed(targets):
            self.builder.PrependUOffsetTRelative(target)
        return int(self.builder.EndVector())

    def integers(self, values: Sequence[int]) -> int:
        """A vector of int32; equal ones are written once."""
        if (key := tuple(values)) not in self.vectors:
            self.vectors[key] = int(self.builder.CreateNumpyVector(np.array(values, dtype="<i4")))
        return self.vectors[key]

    def buffer(self, content: bytes) -> int:
        """Add a buffer; its index."""
        builder = self.builder
        builder.StartVector(1, len(content), 16)
        builder.head -= len(content)
        builder.Bytes[builder.head : builder.head + len(content)] = content
        stored = builder.EndVector()
        tflite.BufferStart(builder)
        tflite.BufferAddData(builder, stored)
        self.buffers.append(tflite.BufferEnd(builder))
        return len(self.buffers) - 1

    def metadata(self, without: str) -> list[int]:
        """The metadata entries that do not have that name."""
        entries = map(self.model.Metadata, range(self.model.MetadataLength()))
        return [self.old(entry) for entry in entries if entry.Name() != without.encode()]

    def finish(self, new: Mapping[int, int]) -> bytearray:
        """The new file, with these slots of the root replaced, and the buffers."""
        new = {**new, MODEL_BUFFERS: self.vector(self.buffers)}
        fields = {slot: new.get(slot) or self.old_field(self.model, slot) for slot in range(1, MODEL_FIELDS)}
        self.start_table(MODEL_FIELDS, fields)
        self.builder.PrependUint32Slot(0, self.model.Version(), 0)
        self.builder.Finish(self.builder.EndObject(), FILE_IDENTIFIER)
        result = self.builder.Bytes[self.builder.head :]
        del result[len(result) - self.padding :]
        _shift_absolute_offsets(result, len(result) - self.length)
        return result


def add_metadata(data: Bytes, name: str, content: bytes) -> bytearray:
    """The file with one more metadata entry, in place of any of that name.

    Raises:
        ModelError: as for :class:`_Extension`.
    """
    extension = _Extension(data)
    buffer, label = extension.buffer(content), extension.builder.CreateString(name)
    tflite.MetadataStart(extension.builder)
    tflite.MetadataAddName(extension.builder, label)
    tflite.MetadataAddBuffer(extension.builder, buffer)
    entry = tflite.MetadataEnd(extension.builder)
    return extension.finish({MODEL_METADATA: extension.vector([*extension.metadata(without=name), entry])})


def rewrite_subgraph(data: Bytes, graph: ModelGraph, subgraph: Subgraph, rewrite: Rewrite) -> bytearray:
    """The file with a new schedule of one subgraph.

    Tensors keep their numbers, so that inputs, outputs and signatures stay as they are: new ones take the places of
    those that nothing uses any longer, then further ones. Weights are shared, options as well wherever they are the
    same. A memory plan is dropped, since it was for the old tensors.

    Raises:
        ModelError: as for :class:`_Extension`.
    """
    return _SubgraphWriter(data, graph, subgraph, rewrite).write()


# Options of the operators that glue stripes together, and the version that int8 takes; other types take version 1.
GLUE_OPTIONS = {
    "SLICE": "SliceOptions",
    "PAD": "PadOptions",
    "PADV2": "PadV2Options",
    "CONCATENATION": "ConcatenationOptions",
}
GLUE_VERSION_INT8 = 2
HEIGHT = 1  # the axis of the rows


class _SubgraphWriter:
    def __init__(self, data: Bytes, graph: ModelGraph, subgraph: Subgraph, rewrite: Rewrite) -> None:
        self.graph, self.subgraph, self.rewrite = graph, subgraph, rewrite
        self.extension = _Extension(data)
        self.builder = self.extension.builder
        self.table = self.extension.model.Subgraphs(subgraph.index)
        model = self.extension.model
        self.codes = self.extension.all_old(model.OperatorCodes, model.OperatorCodesLength())
        self.known_codes: dict[tuple[str, int], int] = {}
        self.options: dict[Any, int] = {}

    def write(self) -> bytearray:
        extension, old = self.extension, len(self.subgraph.tensors)
        kept = [self.subgraph.operators[o] for o in self.rewrite.operators if isinstance(o, int)]
        used = {*self.subgraph.inputs, *self.subgraph.outputs}
        used |= {i for o in kept for i in (*o.inputs, *o.outputs, *o.intermediates)}
        used |= {i for o in self.rewrite.operators if not isinstance(o, int) for i in (*o.inputs, *o.outputs)}
        before = {i for o in self.subgraph.operators for i in (*o.inputs, *o.outputs)}
        free = sorted(i for i in before - used if i >= 0)
        numbers = [*free, *range(old, old + len(self.rewrite.tensors) - len(free))]
        number = {old + i: n for i, n in enumerate(numbers[: len(self.rewrite.tensors)])}
        tensors = extension.all_old(self.table.Tensors, old) + [0] * max(len(number) - len(free), 0)
        for i, tensor in enumerate(self.rewrite.tensors):
            tensors[number[old + i]] = self.tensor(tensor)
        operators = [
            extension.old(self.table.Operators(o)) if isinstance(o, int) else self.operator(o, number)
            for o in self.rewrite.operators
        ]
        fields: dict[int, int | None] = {
            slot: extension.old_field(self.table, slot) for slot in range(SUBGRAPH_FIELDS) if slot != DEBUG_INDEX
        }
        fields |= {SUBGRAPH_TENSORS: extension.vector(tensors), SUBGRAPH_OPERATORS: extension.vector(operators)}
        extension.start_table(SUBGRAPH_FIELDS, fields)
        self.builder.PrependInt32Slot(DEBUG_INDEX, self.table.DebugMetadataIndex(), -1)
        written = self.builder.EndObject()
        subgraphs = extension.all_old(extension.model.Subgraphs, len(self.graph.subgraphs))
        subgraphs[self.subgraph.index] = written
        return extension.finish(
            {
                MODEL_CODES: extension.vector(self.codes),
                MODEL_SUBGRAPHS: extension.vector(subgraphs),
                MODEL_METADATA: extension.vector(extension.metadata(without=OFFLINE_PLAN)),
            }
        )

    def tensor(self, new: NewTensor) -> int:
        builder = self.builder
        like = None if new.like is None else self.table.Tensors(new.like)
        title = "" if new.like is None else shorten(self.subgraph.tensors[new.like].name, 24) + " "
        quantization = None if like is None else like.Quantization()
        name, shape = builder.CreateString(title + new.label), self.extension.integers(new.shape)
        buffer = 0 if new.values is None else self.extension.buffer(new.values)
        tflite.TensorStart(builder)
        tflite.TensorAddShape(builder, shape)
        tflite.TensorAddType(builder, tflite.TensorType.INT32 if like is None else like.Type())
        tflite.TensorAddBuffer(builder, buffer)
        tflite.TensorAddName(builder, name)
        if quantization is not None:
            builder.PrependUOffsetTRelativeSlot(4, self.extension.old(quantization), 0)
        tflite.TensorAddHasRank(builder, True)
        return int(tflite.TensorEnd(builder))

    def operator(self, new: NewOperator, number: Mapping[int, int]) -> int:
        builder = self.builder
        inputs, outputs = (
            self.extension.integers([number.get(i, i) for i in group]) for group in (new.inputs, new.outputs)
        )
        if new.like is None:
            options: int | None
            kind, code = GLUE_OPTIONS[new.kind], self.code(new)
            options_type, options = getattr(tflite.BuiltinOptions, kind), self.glue_options(kind)
        else:
            like = self.table.Operators(new.like)
            code, options_type = like.OpcodeIndex(), like.BuiltinOptionsType()
            options = self.unpadded_options(new) if new.is_unpadded else self.extension.old_field(like, 4)
        tflite.OperatorStart(builder)
        builder.PrependUint32Slot(0, code, 0)
        tflite.OperatorAddInputs(builder, inputs)
        tflite.OperatorAddOutputs(builder, outputs)
        if options:
            tflite.OperatorAddBuiltinOptionsType(builder, options_type)
            builder.PrependUOffsetTRelativeSlot(4, options, 0)
        return int(tflite.OperatorEnd(builder))

    def code(self, new: NewOperator) -> int:
        """The index of an operator code for glue; one that is in the file, if it will do."""
        i = new.outputs[0] - len(self.subgraph.tensors)
        like = self.rewrite.tensors[i].like if i >= 0 else new.outputs[0]
        assert like is not None
        version = GLUE_VERSION_INT8 if self.subgraph.tensors[like].dtype == "INT8" else 1
        if (new.kind, version) in self.known_codes:
            return self.known_codes[new.kind, version]
        builtin = getattr(tflite.BuiltinOperator, new.kind)
        for index in range(self.extension.model.OperatorCodesLength()):
            there = self.extension.model.OperatorCodes(index)
            if there.DeprecatedBuiltinCode() == builtin and there.Version() >= version:
                break
        else:
            tflite.OperatorCodeStart(self.builder)
            tflite.OperatorCodeAddDeprecatedBuiltinCode(self.builder, builtin)
            tflite.OperatorCodeAddBuiltinCode(self.builder, builtin)
            tflite.OperatorCodeAddVersion(self.builder, version)
            self.codes.append(tflite.OperatorCodeEnd(self.builder))
            index = len(self.codes) - 1
        self.known_codes[new.kind, version] = index
        return index

    def glue_options(self, kind: str) -> int:
        if kind not in self.options:
            getattr(tflite, f"{kind}Start")(self.builder)
            if kind == "ConcatenationOptions":
                tflite.ConcatenationOptionsAddAxis(self.builder, HEIGHT)
            self.options[kind] = getattr(tflite, f"{kind}End")(self.builder)
        return self.options[kind]

    def unpadded_options(self, new: NewOperator) -> int:
        """The options of the operator that is copied, with VALID instead of SAME padding."""
        if new.like not in self.options:
            content = self.table.Operators(new.like).BuiltinOptions()
            name, _ = OPTION_FIELDS[new.kind]
            old = getattr(tflite, name)()
            old.Init(content.Bytes, content.Pos)
            getattr(tflite, f"{name}Start")(self.builder)
            for add in (function for function in dir(tflite) if function.startswith(f"{name}Add")):
                field = add.removeprefix(f"{name}Add")
                value = tflite.Padding.VALID if field == "Padding" else getattr(old, field)()
                getattr(tflite, add)(self.builder, value)
            self.options[new.like] = getattr(tflite, f"{name}End")(self.builder)
        return self.options[new.like]


def _shift_absolute_offsets(data: bytearray, shift: int) -> None:
    """Data outside the FlatBuffer is referred to by its position in the file, which has moved."""
    model = tflite.Model.GetRootAs(data, 0)
    tables = [(model.Buffers(i)._tab, 6) for i in range(model.BuffersLength())]  # some may be the same table
    for subgraph in map(model.Subgraphs, range(model.SubgraphsLength())):
        tables += [(subgraph.Operators(i)._tab, 22) for i in range(subgraph.OperatorsLength())]
    for place in {table.Pos + field for table, slot in tables if (field := table.Offset(slot))}:
        position = struct.unpack_from("<Q", data, place)[0]
        if 1 < position <= len(data):
            struct.pack_into("<Q", data, place, position + shift)


@contextlib.contextmanager
def replacing(path: Path, mode: str = "wb", **options: Any) -> Iterator[Any]:
    """Open a temporary file beside ``path`` and put it in its place when all is written: never half a file."""
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a directory")
    target = path.resolve()  # a symbolic link keeps pointing at its file
    if target.exists() and not target.is_file():  # a device or a pipe cannot be replaced
        with open(target, mode, **options) as file:
            yield file
        return
    handle, name = tempfile.mkstemp(dir=target.parent, prefix=".tflite-tools.", suffix=".tmp")
    try:
        with os.fdopen(handle, mode, **options) as file:
            yield file
        permissions = target.stat().st_mode & 0o777 if target.exists() else 0o666 & ~_umask()
        os.chmod(name, permissions)
        os.replace(name, target)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(name)
        raise


def _umask() -> int:
    mask = os.umask(0o022)
    os.umask(mask)
    return mask


####################################################################################################
# Verification: do two models compute the same? (LiteRT, each run in a process of its own)
####################################################################################################

WORKER = "--litert-worker"  # first argument of this file when it runs a model for verify_models
INFERENCES = 3  # consecutive ones, so that state which survives an inference is compared as well


class VerificationError(ValueError):
    """Why two models could not be compared, in one line."""


@dataclass(frozen=True)
class VerificationResult:
    """How the outputs of two models compare on the same seeded random inputs."""

    signatures: tuple[str, ...]  # what was run; "" is the model itself
    outputs: int  # arrays compared
    different: int  # of them, not bit-identical
    signal: float  # sum of squares of all finite outputs of the original
    noise: float  # sum of squared differences

    @property
    def identical(self) -> bool:
        return self.different == 0

    @property
    def sqnr_db(self) -> float:
        return decibels(self.signal, self.noise)


def verify_models(
    original: Bytes, changed: Bytes, seed: int = 0, reference_kernels: bool = False, timeout: float = 300.0
) -> VerificationResult:
    """Run both models in LiteRT with the same kernels (no delegate, one thread) on the same inputs.

    Every signature runs, or the model itself if it has none, INFERENCES times in a row. A crash of the runtime is
    reported, not suffered.

    Args:
        reference_kernels: take those of TFLM instead of the optimised ones. The latter sum floats in an order that
            depends on the number of rows, so that stripes differ in the last bits.
        timeout: seconds for each of the two.

    Raises:
        VerificationError: LiteRT is not installed, or does not run one of the models.
    """
    import importlib.util

    if importlib.util.find_spec("ai_edge_litert") is None:
        raise VerificationError("it needs LiteRT: pip install ai-edge-litert")
    before, after = (
        _run_in_litert(data, what, seed, reference_kernels, timeout)
        for data, what in ((original, "the original"), (changed, "the changed"))
    )
    if before.keys() != after.keys():
        return VerificationResult(tuple(before), 0, 1, 0.0, 0.0)
    pairs = [(a, b) for name in before for a, b in zip(before[name], after[name], strict=True)]
    signal = noise = 0.0
    for a, b in pairs:
        if a.dtype.kind in "iuf" and a.shape == b.shape:
            x, y = a.astype(np.float64), b.astype(np.float64)
            finite = np.isfinite(x) & np.isfinite(y)
            signal += float(np.sum(x[finite] ** 2))
            noise += float(np.sum((x[finite] - y[finite]) ** 2))
    different = sum(a.dtype != b.dtype or a.shape != b.shape or a.tobytes() != b.tobytes() for a, b in pairs)
    return VerificationResult(tuple(before), len(pairs), different, signal, noise)


def _run_in_litert(
    data: Bytes, what: str, seed: int, reference_kernels: bool, timeout: float
) -> dict[str, list[np.ndarray]]:
    import pickle
    import subprocess

    with tempfile.TemporaryDirectory() as folder:
        model, outputs = Path(folder, "model.tflite"), Path(folder, "outputs")
        model.write_bytes(data)
        command = [sys.executable, __file__, WORKER, str(model), str(outputs), str(seed), KERNELS[reference_kernels]]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, stdin=subprocess.DEVNULL)
        except subprocess.TimeoutExpired:
            raise VerificationError(f"LiteRT did not finish {what} model within {timeout:.0f} s") from None
        if done.returncode or not outputs.exists():
            lines = [line for line in done.stderr.splitlines() if line.strip()] or [f"exit code {done.returncode}"]
            raise VerificationError(f"LiteRT does not run {what} model: {shorten(lines[-1], 200)}")
        return dict(pickle.loads(outputs.read_bytes()))  # written by ourselves, just now


KERNELS = ("BUILTIN_WITHOUT_DEFAULT_DELEGATES", "BUILTIN_REF")  # LiteRT's names for optimised and reference ones


def litert_worker(model: str, outputs: str, seed: str, kernels: str) -> None:
    """What the process does that runs one model: {signature: outputs of all inferences} -> a file."""
    import pickle

    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    interpreter = Interpreter(
        model_path=model,
        num_threads=1,
        experimental_op_resolver_type=OpResolverType[kernels],
    )
    rng = np.random.default_rng(int(seed))
    results: dict[str, list[np.ndarray]] = {}
    for name in interpreter.get_signature_list():
        run = interpreter.get_signature_runner(name)
        details = sorted(run.get_input_details().items())
        for _ in range(INFERENCES):
            answer = run(**{key: _random_input(rng, detail) for key, detail in details})
            results.setdefault(name, []).extend(answer[key] for key in sorted(answer))
    if not results:
        interpreter.allocate_tensors()
        for _ in range(INFERENCES):
            for detail in interpreter.get_input_details():
                interpreter.set_tensor(detail["index"], _random_input(rng, detail))
            interpreter.invoke()
            answers = [interpreter.get_tensor(detail["index"]) for detail in interpreter.get_output_details()]
            results.setdefault("", []).extend(answers)
    Path(outputs).write_bytes(pickle.dumps(results))


def _random_input(rng: np.random.Generator, detail: Mapping[str, Any]) -> np.ndarray:
    shape, dtype = detail["shape"], np.dtype(detail["dtype"])
    if dtype.kind == "f":
        return rng.normal(size=shape).astype(dtype)
    if dtype.kind == "c":
        return (rng.normal(size=shape) + 1j * rng.normal(size=shape)).astype(dtype)
    if dtype.kind == "b":
        return rng.integers(0, 2, shape).astype(dtype)
    if dtype.kind not in "iu":
        raise ValueError(f"no random inputs for tensors of type {dtype}")
    if dtype.itemsize > 2:  # probably indices or sizes: only small ones are sure to exist
        return rng.integers(0, 2, shape).astype(dtype)
    return rng.integers(np.iinfo(dtype).min, np.iinfo(dtype).max, shape, dtype=dtype, endpoint=True)


####################################################################################################
# Reports: plain results -> tables, CSV, JSON, pictures
####################################################################################################


def operator_title(subgraph: Subgraph, operator: Operator, limit: int = LONGEST_NAME) -> str:
    """``KIND (name of its output)``."""
    return f"{shorten(operator.kind, limit)} ({shorten(subgraph.output_name(operator), limit)})"


def shown_tensors(schedule: Schedule) -> list[Tensor]:
    """The tensors that take working memory, or might: their size is unknown."""
    return [t for t in schedule.subgraph.tensors if t.storage is Storage.ACTIVATION and (t.size > 0 or t.bytes is None)]


@dataclass(frozen=True)
class Extras:
    """The optional columns of a schedule."""

    macs: bool = False
    size: bool = False


def tensor_table(schedule: Schedule) -> str:
    from prettytable import PrettyTable

    table = PrettyTable(["Id", "Tensor", "Shape", "Size in RAM (B)"])
    table.align.update({"Id": "r", "Tensor": "l", "Shape": "l", "Size in RAM (B)": "r"})
    for tensor in shown_tensors(schedule):
        size = "unknown" if tensor.bytes is None else f"{tensor.size:,}"
        table.add_row([tensor.index, shorten(tensor.name), str(tensor.shape), size])
    return table.get_string()


def schedule_table(graph: ModelGraph, schedule: Schedule, extras: Extras) -> str:
    from prettytable import PrettyTable

    subgraph = schedule.subgraph
    headers = ["Operator (output name)", "Tensors in memory (IDs)", "Memory use (B)"]
    table = PrettyTable(headers + ["MACs"] * extras.macs + ["Size"] * extras.size)
    table.align = "r"
    table.align.update({headers[0]: "l", headers[1]: "l"})
    for step in schedule.steps:
        live = ", ".join(map(str, step.live))
        row = [operator_title(subgraph, step.operator), f"[{live}]", f"{step.bytes:,}"]
        row += [f"{multiply_accumulates(subgraph, step.operator):,}"] * extras.macs
        row += [f"{parameter_bytes(graph, subgraph, [step.operator]):,}"] * extras.size
        table.add_row(row)
    return table.get_string()


def model_macs(graph: ModelGraph) -> int:
    return sum(multiply_accumulates(s, operator) for s in graph.subgraphs for operator in s.operators)


def model_parameter_bytes(graph: ModelGraph) -> int:
    """Bytes of all constants that operators read; a buffer that is shared, also between subgraphs, counts once."""
    buffers = {
        s.tensors[i].buffer
        for s in graph.subgraphs
        for op in s.operators
        for i in op.reads
        if s.tensors[i].storage is Storage.CONSTANT
    }
    return sum(graph.buffers[b].size for b in buffers)


def analysis_text(graph: ModelGraph, schedules: Sequence[Schedule], extras: Extras) -> str:
    """The report for people: two tables per subgraph, and one peak for the model."""
    lines = []
    for schedule in schedules:
        if len(schedules) > 1:
            title = schedule.subgraph.title
            lines += [title, "=" * len(title)]
        lines += ["Tensor information (weights excluded):", tensor_table(schedule), ""]
        lines += ["Operator execution schedule:", schedule_table(graph, schedule, extras)]
        if len(schedules) > 1:
            lines += [f"Peak of this subgraph: {schedule.peak:,} B", ""]
        if any(step.callee_bytes for step in schedule.steps):
            lines += ["(memory use includes the peak of the subgraphs that an operator runs)", ""]
    lines += [f"Current peak memory usage: {model_peak(schedules):,} B"]
    if state := state_bytes(graph):
        lines += [f"State kept between inferences: {state:,} B (not part of the peak)"]
    if extras.macs:
        lines += [f"Total MACs: {model_macs(graph):,}"]
    if extras.size:
        lines += [f"Total weight size: {model_parameter_bytes(graph):,} B"]
    return "\n".join(lines)


def model_peak(schedules: Sequence[Schedule]) -> int:
    """The largest working set of any subgraph: each subgraph's includes those that it runs."""
    return max(schedule.peak for schedule in schedules)


def arena_text(arena: Arena, plan: Plan) -> str:
    """What TFLM will allocate, and what could be had; ``plan`` is the best one known for the same buffers."""
    who = "as planned in the file" if arena.has_plan else "as its own planner lays it out"
    lines = [f"Arena of TensorFlow Lite Micro: {arena.head:,} B {who}"]
    if arena.head <= plan.bound:
        lines[0] += ", the least possible for this order"
    elif plan.height < arena.head:
        percent = 100 * (1 - plan.height / arena.head) if arena.head else 0.0
        lines += [f"Arena with --plan: {plan.height:,} B{'' if plan.optimal else ' or less'} ({percent:.1f} % less)"]
    tail = f"about {arena.persistent:,} B on a 32-bit target, an estimate"
    lines += [f"(reference kernels; TFLM's persistent structures come on top: {tail})"]
    if arena.missing_operators:
        lines += [f"TFLM has no kernel for: {', '.join(map(shorten, arena.missing_operators))}"]
    lines += [f"Problem of the memory plan in the file: {problem}" for problem in arena.problems[:5]]
    if len(arena.problems) > 5:
        lines += [f"... and {len(arena.problems) - 5:,} more such problems"]
    return "\n".join(lines)


def arena_json(arena: Arena, plan: Plan) -> dict[str, Any]:
    return {
        "head_bytes": arena.head,
        "persistent_estimate_bytes": arena.persistent,
        "has_plan": arena.has_plan,
        "bound_bytes": plan.bound,
        "planned_bytes": min(plan.height, arena.head),
        "problems": list(arena.problems),
        "missing_operators": list(arena.missing_operators),
        "buffers": [
            {
                "subgraph": buffer.subgraph,
                "tensor": buffer.tensor,
                "scratch_of_operator": buffer.operator,
                "bytes": buffer.bytes,
                "offset": offset,
                "first": buffer.block.first,
                "last": buffer.block.last,
            }
            for buffer, offset in zip(arena.buffers, arena.offsets, strict=True)
        ],
    }


def write_csv(folder: Path, graph: ModelGraph, schedules: Sequence[Schedule], extras: Extras) -> None:
    """``tensor_details.csv`` and ``execution_schedule_info.csv``, whole names, one row per tensor and per operator."""
    folder.mkdir(parents=True, exist_ok=True)
    with replacing(folder / "tensor_details.csv", "w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(["Id", "Name", "Shape", "Size", "Type", "Subgraph"])
        for schedule in schedules:
            for t in shown_tensors(schedule):
                size = "" if t.bytes is None else t.size
                rows.writerow([t.index, t.name, " ".join(map(str, t.shape)), size, t.dtype, schedule.subgraph.index])
    with replacing(folder / "execution_schedule_info.csv", "w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        columns = ["Operator", "Working set", "Memory use"] + ["MACs"] * extras.macs + ["Size"] * extras.size
        rows.writerow([*columns, "Kind", "Subgraph"])
        for schedule in schedules:
            subgraph = schedule.subgraph
            for step in schedule.steps:
                op = step.operator
                row = [subgraph.output_name(op), " ".join(map(str, step.live)), step.bytes]
                row += [multiply_accumulates(subgraph, op)] * extras.macs
                row += [parameter_bytes(graph, subgraph, [op])] * extras.size
                rows.writerow([*row, op.kind, subgraph.index])


def analysis_json(graph: ModelGraph, schedules: Sequence[Schedule]) -> dict[str, Any]:
    """The analysis as JSON-ready data; all sizes are bytes, all ids are indices in the subgraph."""
    return {
        "tflite_tools_version": __version__,
        "peak_bytes": model_peak(schedules),
        "state_bytes": state_bytes(graph),
        "macs": model_macs(graph),
        "parameter_bytes": model_parameter_bytes(graph),
        "notes": list(graph.notes),
        "subgraphs": [
            {
                "index": schedule.subgraph.index,
                "name": schedule.subgraph.name,
                "peak_bytes": schedule.peak,
                "inputs": list(schedule.subgraph.inputs),
                "outputs": list(schedule.subgraph.outputs),
                "tensors": [
                    {"id": t.index, "name": t.name, "shape": list(t.shape), "type": t.dtype, "bytes": t.bytes}
                    for t in shown_tensors(schedule)
                ],
                "operators": [
                    {
                        "kind": step.operator.kind,
                        "inputs": list(step.operator.inputs),
                        "outputs": list(step.operator.outputs),
                        "in_memory": list(step.live),
                        "bytes": step.bytes,
                        "callee_bytes": step.callee_bytes,
                        "macs": multiply_accumulates(schedule.subgraph, step.operator),
                        "parameter_bytes": parameter_bytes(graph, schedule.subgraph, [step.operator]),
                    }
                    for step in schedule.steps
                ],
            }
            for schedule in schedules
        ],
    }


INPUT_COLOUR, OUTPUT_COLOUR, OTHER_COLOUR, CALLEE_COLOUR = "#D95319", "#EDB120", "#0072BD", "#7E2F8E"
MOST_LABELLED_BARS = 80  # more operators than this are numbered, not named
MOST_PANELS = 6


def split_table(result: SplitResult) -> str:
    """The alternatives of partial execution; an arrow marks the one that was taken."""
    from prettytable import PrettyTable

    titles = ["", "Peak (B)", "Persistent, 32-bit, estimate (B)", "Sum (B)", "More MACs", "Operators", "File (B)"]
    table = PrettyTable(titles, align="r")
    for a in result.alternatives:
        mark = "->" if a == result.chosen else ""
        figures = (a.peak, a.persistent, a.total)
        table.add_row([mark, *(f"{n:,}" for n in figures), f"{a.macs_percent:.1f} %", a.operators, f"{a.file_bytes:,}"])
    return str(table.get_string())


def plot_schedules(file: Path, schedules: Sequence[Schedule], split: SplitResult | None = None) -> None:
    """Stacked bars per operator: inputs, outputs, other tensors in memory, in KB (1,024 B); the peak is marked.

    Several subgraphs get a panel each, the MOST_PANELS largest, and so do the alternatives of partial execution. The
    extension decides the format.
    """
    from matplotlib.figure import Figure

    shown = [s for s in schedules if s.steps] or list(schedules[:1])
    shown = sorted(sorted(shown, key=lambda s: -s.peak)[:MOST_PANELS], key=lambda s: s.subgraph.index)
    longest = max(len(s.steps) for s in shown)
    width = min(max(longest / 4, 7), 24)
    panels = len(shown) + (split is not None)
    figure = Figure(figsize=(width, 5.5 * panels), layout="constrained")
    columns = figure.subplots(panels, squeeze=False)[:, 0]
    for schedule, axes in zip(shown, columns, strict=False):
        _plot_schedule(axes, schedule, title=schedule.subgraph.title if len(schedules) > 1 else "")
    if split is not None:
        _plot_alternatives(columns[-1], split)
    _save(figure, file)


def _save(figure: Any, file: Path) -> None:
    """Write the picture in the format of the extension."""
    with replacing(file) as output, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about names without glyphs or of absurd length: the picture is good enough
        figure.savefig(output, format=file.suffix[1:].lower(), dpi=150)


def drawn(text: str) -> str:
    """The text for matplotlib, which would take what is between two dollar signs for a formula."""
    return text.replace("$", r"\$")


def _plot_schedule(axes: Any, schedule: Schedule, title: str) -> None:
    tensors, steps = schedule.subgraph.tensors, schedule.steps
    x = np.arange(len(steps))
    bottom = np.zeros(len(steps))
    names = ("Operator inputs", "Operator outputs", "Other tensors", "Subgraphs it runs")
    parts: dict[str, list[int]] = {name: [] for name in names}
    for step in steps:
        inputs = sum(tensors[i].size for i in step.operator.reads if i in step.live)
        outputs = sum(tensors[i].size for i in set(step.operator.writes) - set(step.operator.reads) if i in step.live)
        others = step.bytes - step.callee_bytes - inputs - outputs
        for part, amount in zip(parts.values(), (inputs, outputs, others, step.callee_bytes), strict=True):
            part.append(amount)
    colours = (INPUT_COLOUR, OUTPUT_COLOUR, OTHER_COLOUR, CALLEE_COLOUR)
    many = len(steps) > MOST_LABELLED_BARS
    for (label, amounts), colour in zip(parts.items(), colours, strict=True):
        heights = np.array(amounts) / 1024
        if heights.any() or label != names[-1]:
            axes.bar(x, heights, 1.0 if many else 0.8, bottom, color=colour, label=label)
            bottom += heights
    axes.set_ylabel("Memory use (KB)")
    axes.set_title(drawn(title), loc="left")
    if steps:
        top = max(range(len(steps)), key=lambda i: steps[i].bytes)
        peak = steps[top].bytes / 1024
        axes.axhline(peak, color="black", linewidth=0.8, linestyle="--")
        name = drawn(operator_title(schedule.subgraph, steps[top].operator, 40))
        to_left = top > len(steps) / 2
        axes.annotate(
            f"peak {steps[top].bytes:,} B: {name}",
            (top, peak),
            (-4 if to_left else 4, 5),
            textcoords="offset points",
            ha="right" if to_left else "left",
            fontsize=9,
        ).set_in_layout(False)  # a long name must not squeeze the bars
        axes.plot([top], [peak], marker="v", color="black", markersize=6)
    if many:
        axes.set_xlabel("Operator number, in execution order")
    else:
        titles = [drawn(operator_title(schedule.subgraph, step.operator, 26)) for step in steps]
        labels = [f"{title}  {number}" for number, title in enumerate(titles)]
        axes.set_xticks(x, labels, rotation=90, fontsize=8)
    axes.set_xlim(-0.6, max(len(steps) - 0.4, 0.6))
    axes.set_ylim(0, (axes.get_ylim()[1] or 1) * 1.12)
    axes.legend(loc="lower right", bbox_to_anchor=(1.0, 1.0), ncols=4, fontsize=8, frameon=False)


def _plot_alternatives(axes: Any, split: SplitResult) -> None:
    """Peak against peak and persistent structures, a point per alternative; the one that was taken is marked."""
    points = [(a.peak / 1024, a.total / 1024) for a in split.alternatives]
    axes.plot(*zip(*points, strict=True), marker="o", color=OTHER_COLOUR)
    axes.plot(*points[split.alternatives.index(split.chosen)], "o", color=INPUT_COLOUR, markersize=10, label="taken")
    for point, a in zip(points, split.alternatives, strict=True):
        label = f"+{a.macs_percent:.1f} % MACs" if a.regions else "not split"
        axes.annotate(label, point, (5, 5), textcoords="offset points", fontsize=8)
    axes.set_xlabel("Peak (KB)")
    axes.set_ylabel("Peak + persistent, estimate (KB)")
    axes.margins(x=0.12)
    axes.set_ylim(0, 1.12 * max(total for _, total in points) or 1)
    axes.legend(loc="lower right")
    axes.grid(alpha=0.3)


def plot_arenas(file: Path, arenas: Mapping[str, Arena]) -> None:
    """The arenas side by side: time across, address up, every buffer a rectangle with its tensor's id ("s": scratch).

    Grey is memory that is reserved but holds nothing at that time. The extension decides the format.
    """
    from matplotlib import colormaps
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

    steps = max(max((b.block.last for b in arena.buffers), default=0) for arena in arenas.values()) + 2
    figure = Figure(figsize=(min(max(steps / 6, 7), 13) * len(arenas), 7), layout="constrained")
    panels = figure.subplots(1, len(arenas), squeeze=False, sharey=True)[0]
    colours = [colormaps["tab20"](i) for i in range(20)]
    top = max([arena.head for arena in arenas.values()] + [1]) / 1024
    for axes, (title, arena) in zip(panels, arenas.items(), strict=True):
        axes.add_patch(Rectangle((-1.5, 0), steps + 0.5, arena.head / 1024, facecolor="#e4e4e4", linewidth=0))
        for number, (buffer, offset) in enumerate(zip(arena.buffers, arena.offsets, strict=True)):
            x, width = buffer.block.first - 0.5, buffer.block.last - buffer.block.first + 1
            y, height = offset / 1024, buffer.block.size / 1024
            colour = colours[(number if buffer.tensor is None else buffer.tensor) % len(colours)]
            hatch = "///" if buffer.tensor is None else None
            rectangle = Rectangle((x, y), width, height, fc=colour, ec="white", linewidth=0.4, hatch=hatch)
            axes.add_patch(rectangle)
            if height > top / 45 and width > steps / 60:
                label = "s" if buffer.tensor is None else str(buffer.tensor)
                axes.text(x + width / 2, y + height / 2, label, ha="center", va="center", fontsize=7)
        axes.set_xlim(-1.5, steps - 1)
        axes.set_ylim(0, top * 1.05)
        axes.axhline(arena.head / 1024, color="black", linewidth=0.8, linestyle="--")
        axes.set_title(f"{title}: {arena.head:,} B", loc="left")
        axes.set_xlabel("Time (operator number from 1; 0: the inputs are there)")
    panels[0].set_ylabel("Address in the arena (KB)")
    _save(figure, file)


def clustering_table(result: ClusteringResult) -> str:
    from prettytable import PrettyTable

    headers = ["Weights", "Type", "Distinct values", "SQNR (dB)", "Bytes", "Code-book + indices (B)", "Entropy (B)"]
    table = PrettyTable(headers)
    table.align = "r"
    table.align.update({"Weights": "l", "Type": "l"})
    for a in result.weights:
        table.add_row(
            [
                shorten(a.name),
                a.dtype,
                f"{a.distinct_before:,} -> {a.distinct_after:,}",
                f"{a.sqnr_db:.1f}",
                f"{a.bytes_before:,}",
                f"{a.codebook_bytes:,} + {a.index_bytes:,}",
                f"{a.codebook_bytes + a.entropy_bytes:,}",
            ]
        )
    return table.get_string()


def comparison_table(results: Sequence[ClusteringResult]) -> str:
    """One row per number of clusters; the bytes are those of all clustered weights."""
    from prettytable import PrettyTable

    headers = ["N", "SQNR (dB)", "Worst matrix (dB)", "Bytes", "Code-books + indices (B)", "Entropy (B)"]
    table = PrettyTable(headers)
    table.align = "r"
    for r in results:
        row = [f"{r.clusters:,}", f"{r.sqnr_db:.1f}", f"{r.lowest_sqnr_db:.1f}", f"{r.bytes_before:,}"]
        table.add_row([*row, f"{r.bytes_after:,}", f"{r.entropy_bytes:,}"])
    return table.get_string()


def plot_clusterings(file: Path, results: Sequence[ClusteringResult]) -> None:
    """Size of the clustered weights against their error, a point per number of clusters."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 5), layout="constrained")
    axes = figure.subplots()
    shown = [r for r in results if r.weights and math.isfinite(r.sqnr_db)]
    for label, sizes in (
        ("code-books and packed indices", [r.bytes_after for r in shown]),
        ("code-books and entropy-coded indices", [r.entropy_bytes for r in shown]),
    ):
        axes.plot([size / 1024 for size in sizes], [r.sqnr_db for r in shown], marker="o", label=label)
    for r in shown:
        axes.annotate(f"N = {r.clusters}", (r.bytes_after / 1024, r.sqnr_db), (6, -10), textcoords="offset points")
    axes.set_xlabel("Size of all clustered weights (KB)")
    axes.set_ylabel("SQNR of all clustered weights (dB)")
    axes.margins(x=0.12)
    axes.legend(loc="lower right")
    axes.grid(alpha=0.3)
    _save(figure, file)


####################################################################################################
# TFLiteModel: the API, and all that main() uses
####################################################################################################


@dataclass(frozen=True)
class OptimizationResult:
    """What reordering did. ``bound`` is proven: no order of these operators has a lower peak. Sizes in bytes."""

    orders: tuple[tuple[int, ...], ...]  # per subgraph: old indices in the new order
    peak_before: int
    peak: int
    bound: int
    changed: bool
    states: int  # sets of executed operators that the search looked at
    seconds: float
    refusal: str = ""  # why nothing was reordered, if it must not be

    @property
    def optimal(self) -> bool:
        return self.peak <= self.bound


@dataclass(frozen=True)
class PlanningResult:
    """What planning the arena did. ``bound`` is proven: no plan for these tensors is lower. Sizes in bytes."""

    head_before: int
    head: int  # what TFLM allocates for the tensors and the scratch of its reference kernels
    bound: int
    changed: bool
    seconds: float
    refusal: str = ""  # why nothing was planned, if nothing can be

    @property
    def optimal(self) -> bool:
        return self.head <= self.bound


SHOWN_ALTERNATIVES = 10


def _spread(front: Sequence[Composition]) -> list[Composition]:
    """The first, the last and the best by sum of a front, and some that lie evenly between by their peaks."""
    best = min(front, key=lambda c: c.peak + c.persistent)
    goals = np.linspace(front[0].peak, front[-1].peak, SHOWN_ALTERNATIVES)
    chosen = {min(range(len(front)), key=lambda i: abs(front[i].peak - goal)) for goal in goals}
    return [front[i] for i in sorted(chosen | {front.index(best)})]


MAPPED_FROM = 64 << 20  # bytes; larger files are memory-mapped, so that only what is read or changed takes RAM


class TFLiteModel:
    """A .tflite model in memory: analyse it, change it, write it back.

    All methods describe the model as it is at that moment, with all changes made so far.
    """

    def __init__(self, model_bytes: bytes | bytearray | mmap.mmap) -> None:
        """Take the bytes of a .tflite file; they are copied, except for a writable memory map.

        Raises:
            ModelError: not a TensorFlow Lite model, or a damaged one.
        """
        self._data = model_bytes if isinstance(model_bytes, mmap.mmap) else bytearray(model_bytes)
        self._graph = read_model(self._data)

    @classmethod
    def load_from_file(cls, path: str | os.PathLike[str]) -> TFLiteModel:
        """Read a model from a file.

        Raises:
            OSError: the file cannot be read.
            ModelError: it is not a TensorFlow Lite model, or a damaged one.
        """
        with open(path, "rb") as file:
            if os.fstat(file.fileno()).st_size > MAPPED_FROM:
                # Copy on write: changes stay in this process, and only changed pages take memory.
                return cls(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY))
            return cls(file.read())

    def write_to_file(self, path: str | os.PathLike[str]) -> None:
        """Write the model; an existing file is replaced only once all bytes are written.

        Raises:
            OSError: the file cannot be written.
        """
        with replacing(Path(path)) as file:
            file.write(self._data)

    def to_bytes(self) -> bytes:
        """The model as it would be written."""
        return bytes(self._data)

    @property
    def graph(self) -> ModelGraph:
        """The model's subgraphs, tensors and operators as plain data."""
        return self._graph

    @cached_property
    def schedules(self) -> tuple[Schedule, ...]:
        """Per subgraph the operators in execution order with their working sets."""
        return schedule_model(self._graph)

    @cached_property
    def arena(self) -> Arena:
        """What TFLM allocates for the model as it is: buffers, offsets, bytes.

        Raises:
            ArenaError: a tensor has no size that TFLM could compute, or the runtime would refuse the file.
        """
        return analyse_arena(self._graph, self._data)

    def _reread(self) -> None:
        self._graph = read_model(self._data)
        self.__dict__.pop("schedules", None)
        self.__dict__.pop("arena", None)

    def peak_memory_usage(self) -> int:
        """Bytes of the largest working set: all intermediate tensors alive while some operator runs."""
        return model_peak(self.schedules)

    def print_model_analysis(self, calc_macs: bool = False, calc_size: bool = False) -> None:
        """Print the tables of tensors and of the schedule, and the peak, to stdout."""
        print(analysis_text(self._graph, self.schedules, Extras(calc_macs, calc_size)))
        try:
            print(arena_text(self.arena, plan_by_first_fit(self.arena.blocks)))
        except ArenaError as error:
            print(f"Arena of TensorFlow Lite Micro: not known, since {shorten(str(error), 200)}")

    def output_model_analysis_to_csv(
        self, folder: str | os.PathLike[str], calc_macs: bool = False, calc_size: bool = False
    ) -> None:
        """Write ``tensor_details.csv`` and ``execution_schedule_info.csv`` into a folder, created if missing.

        Raises:
            OSError: the folder or a file cannot be written.
        """
        write_csv(Path(folder), self._graph, self.schedules, Extras(calc_macs, calc_size))

    def analysis(self) -> dict[str, Any]:
        """The analysis as JSON-ready data; README describes its keys."""
        document = analysis_json(self._graph, self.schedules)
        try:
            document["arena"] = arena_json(self.arena, plan_by_first_fit(self.arena.blocks))
        except ArenaError as error:
            document["arena"] = None
            document["notes"].append(f"the arena is not known, since {error}")
        return document

    def plot_memory_usage(self, file: str | os.PathLike[str], split: SplitResult | None = None) -> None:
        """Draw the working set of every operator; the extension of the file decides the format (png, svg, pdf).

        Args:
            split: what :meth:`split_operators` returned, whose alternatives are then drawn as well.

        Raises:
            OSError: the file cannot be written.
        """
        plot_schedules(Path(file), self.schedules, split)

    def plot_memory_map(self, file: str | os.PathLike[str], before: Arena | None = None) -> None:
        """Draw TFLM's arena: time across, address up; beside the arena of ``before``, if given.

        Raises:
            ArenaError: as for :attr:`arena`.
            OSError: the file cannot be written.
        """
        arenas = {"arena": self.arena} if before is None else {"before": before, "after": self.arena}
        plot_arenas(Path(file), arenas)

    def compute_best_peak_memory_usage(self, time_limit: float = 60.0, **options: Any) -> OptimizationResult:
        """Search for the operator order of the smallest peak, and leave the model as it is.

        Args:
            time_limit: seconds; then the best order so far is returned, with the best proven bound.
        """
        peak_before = self.peak_memory_usage()
        start = time.monotonic()
        given = tuple(tuple(range(len(s.operators))) for s in self._graph.subgraphs)
        try:
            orderings = order_model(self._graph, time_limit, **options)
        except OrderingRefusal as refusal:
            return OptimizationResult(given, peak_before, peak_before, 0, False, 0, 0.0, str(refusal))
        peak = max(ordering.peak for ordering in orderings)
        bound = max(ordering.bound for ordering in orderings)
        orders = tuple(ordering.order for ordering in orderings)
        states = sum(ordering.states for ordering in orderings)
        return OptimizationResult(orders, peak_before, peak, bound, orders != given, states, time.monotonic() - start)

    def optimize_memory(self, time_limit: float = 60.0, for_arena: bool = False, **options: Any) -> OptimizationResult:
        """Reorder the operators for the smallest peak; every subgraph for itself, callees first.

        Only the operator vectors change; a memory plan in the file is erased, since it was for the old order. A model
        whose order is as good as can be stays byte-identical.

        Args:
            time_limit: seconds, as for :meth:`compute_best_peak_memory_usage`.
            for_arena: also look for an order whose tensors and scratch fit a smaller arena of TFLM, and prefer that.
        """
        result = self.compute_best_peak_memory_usage(time_limit, **options)
        if for_arena:
            with contextlib.suppress(ArenaError):
                result = self._better_for_arena(result, time_limit, **options)
        if result.changed:
            self._reorder(result.orders)
        return result

    def _reorder(self, orders: Sequence[Sequence[int]]) -> None:
        for subgraph, order in zip(self._graph.subgraphs, orders, strict=True):
            permute_operators(self._data, subgraph, order)
        self._data = erase_plan(self._data, self._graph)
        self._reread()

    def _better_for_arena(self, result: OptimizationResult, time_limit: float, **options: Any) -> OptimizationResult:
        """The result, or the order of the smallest arena bound where TFLM can hold that in fewer bytes."""
        if result.refusal:
            return result
        orderings = order_model(self._graph, time_limit, costs=ARENA_COSTS, **options)
        orders = tuple(ordering.order for ordering in orderings)
        plain, other = TFLiteModel(bytes(self._data)), TFLiteModel(bytes(self._data))
        plain._reorder(result.orders)
        other._reorder(orders)
        heights = [plan_arena(model.arena, time_limit).height for model in (plain, other) if orders != result.orders]
        if not heights or heights[0] <= heights[1]:
            return result
        changed = any(order != tuple(range(len(order))) for order in orders)
        return dataclasses.replace(result, orders=orders, peak=other.peak_memory_usage(), changed=changed)

    def split_operators(
        self, max_macs: float = DEFAULT_MAX_MACS, time_limit: float = 30.0, try_orders: bool = False
    ) -> SplitResult:
        """Run regions of spatial operators stripe by stripe where that needs less memory; the outputs stay the same.

        Of all the ways that were found, the one with the smallest sum of peak and persistent structures on a 32-bit
        target is taken. Only subgraph 0 is looked at, in the order that it has.

        Args:
            max_macs: how many per cent more multiply-accumulates the model may take.
            time_limit: seconds for the search; then the best so far counts.
            try_orders: split the best order as well, if that is another one, with as much time again; keep what needs
                less once it is reordered.
        """
        result, data = self._split(max_macs, time_limit)
        if try_orders and not result.refusal:
            ordered = TFLiteModel(bytes(self._data))
            if ordered.optimize_memory(time_limit).changed:
                other, other_data = ordered._split(max_macs, time_limit)
                models = [TFLiteModel(bytes(d)) for d in (data, other_data)]
                sums = [m.optimize_memory(time_limit).peak + m.arena.persistent for m in models]
                if sums[1] <= sums[0]:
                    result, data = dataclasses.replace(other, is_reordered=True), other_data
        if result.changed:
            self._data = data
            self._reread()
        return result

    def _split(self, max_macs: float, time_limit: float) -> tuple[SplitResult, bytearray | mmap.mmap]:
        """The best way to split the model, and its file then; the model stays as it is."""
        start = time.monotonic()
        size = len(self._data)
        try:
            if self._graph.metadata_buffer(CONTROL_DEPENDENCIES) is not None:
                raise ArenaError(f"metadata {CONTROL_DEPENDENCIES!r} refers to the numbers of its operators")
            subgraph = self._graph.subgraphs[0]
            search = SplitSearch(self._graph, self._data, subgraph, start + time_limit)
            persistent = persistent_bytes(self._graph)
        except ArenaError as refusal:
            none = SplitAlternative((), self.peak_memory_usage(), 0, 0.0, 0, size)
            return SplitResult(none, none, (none,), False, 0.0, refusal=str(refusal)), self._data
        macs = sum(search.macs)
        shown = _spread(search.front(int(macs * max_macs / 100)))
        chosen = min(shown, key=lambda c: c.peak + c.persistent)
        alternatives = []
        for c in shown:
            rewrite = search.rewrite(c)
            file = rewrite_subgraph(self._data, self._graph, subgraph, rewrite) if c.regions else self._data
            more_macs = 100 * c.macs / macs if macs else 0.0
            operators = len(subgraph.operators) + c.operators
            alternative = SplitAlternative(
                c.regions, c.peak, persistent + c.persistent, more_macs, operators, len(file)
            )
            alternatives.append(alternative)
            if c is chosen:  # of the others only the size is wanted, and a file may be large
                best, best_rewrite, best_file = alternative, rewrite, file
        added = {o.kind for o in best_rewrite.operators if isinstance(o, NewOperator)}
        new_kinds = tuple(sorted(added - {o.kind for s in self._graph.subgraphs for o in s.operators}))
        seconds = time.monotonic() - start
        changed, is_complete = bool(best.regions), seconds < time_limit
        result = SplitResult(alternatives[0], best, tuple(alternatives), changed, seconds, is_complete, new_kinds)
        return result, best_file

    def plan_memory(self, time_limit: float = 20.0) -> PlanningResult:
        """Fix the lowest arena layout in the file, for TFLM to use; the rest of the file stays as it is.

        A plan is written only if it makes the arena smaller than it is. So a plan in the file that shares memory on
        purpose, as compilers for accelerators write it, stays.
        """
        start = time.monotonic()
        try:
            arena = self.arena
        except ArenaError as error:
            return PlanningResult(0, 0, 0, False, 0.0, str(error))
        plan = plan_arena(arena, time_limit)
        if plan.height >= 1 << 31:
            why = f"it would be {plan.height:,} B, but offsets in the file have 32 bits"
            return PlanningResult(arena.head, arena.head, plan.bound, False, time.monotonic() - start, why)
        changed = plan.height < arena.head
        if changed:
            assert not conflicts(arena.blocks, plan.offsets)
            self._data = write_plan(self._data, self._graph, arena, plan)
            self._reread()
            assert self.arena.head == plan.height
            assert not self.arena.problems
        bound = min(plan.bound, self.arena.head)
        return PlanningResult(arena.head, self.arena.head, bound, changed, time.monotonic() - start)

    def verify_against(
        self, original: TFLiteModel, seed: int = 0, reference_kernels: bool = False
    ) -> VerificationResult:
        """Run this model and another in LiteRT on the same random inputs and compare their outputs bit by bit.

        Args:
            reference_kernels: for a split model of floats, see :func:`verify_models`.

        Raises:
            VerificationError: LiteRT is not installed, or does not run one of the models.
        """
        return verify_models(original._data, self._data, seed, reference_kernels)

    def cluster_weights(self, clusters: int, per_channel: bool = False) -> ClusteringResult:
        """Give every weight matrix at most ``clusters`` distinct values, biases untouched.

        Args:
            per_channel: a code-book for every output channel, where the quantisation is per channel as well.

        Raises:
            ValueError: fewer than one cluster.
        """
        if clusters < 1:
            raise ValueError("the number of clusters must be at least 1")
        weights, notes = weight_tensors(self._graph)
        accounts = []
        for kind, tensor in weights:
            span = self._graph.buffers[tensor.buffer]
            stored = np.frombuffer(self._data[span.start : span.start + span.size], dtype=np.uint8)
            values = decode_weights(tensor, stored)
            if values.dtype.kind == "f" and not np.isfinite(values).all():
                notes.append(f"{tensor.name} holds infinities or NaNs and stays as it is")
                continue
            clustered, account = cluster_tensor(kind, tensor, values, clusters, per_channel)
            overwrite_buffer(self._data, span, encode_weights(tensor, clustered))
            accounts.append(account)
        if repr(read_model(self._data)) != repr(self._graph):
            raise ModelError("the file is damaged: its weights lie on top of its tables")
        return ClusteringResult(clusters, per_channel, tuple(accounts), tuple(notes))

    def compare_clusterings(self, clusters: Sequence[int], per_channel: bool = False) -> list[ClusteringResult]:
        """What :meth:`cluster_weights` would give for each number of clusters; the model stays as it is."""
        copies = (TFLiteModel(bytes(self._data)) for _ in clusters)
        return [copy.cluster_weights(n, per_channel) for copy, n in zip(copies, clusters, strict=True)]


####################################################################################################
# Command line
####################################################################################################

DONE, CHECK_FAILED, BAD_INPUT = 0, 1, 2  # exit codes
PLOT_FORMATS = (".png", ".svg", ".pdf")


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> Any:
        """One line, as for all other mistakes; --help has the rest."""
        self.exit(BAD_INPUT, f"{self.prog}: error: {message}\n")


def _positive(text: str) -> int:
    try:
        number = int(text)
    except ValueError:
        number = 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return number


def _size(text: str) -> int:
    number, unit = text.upper().removesuffix("B"), 1
    for letter, factor in (("K", 1024), ("M", 1024**2)):
        if number.endswith(letter):
            number, unit = number[:-1], factor
    try:
        size = float(number) * unit
    except ValueError:
        size = -1.0
    if not 0 <= size < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a size such as 65536, 64KB or 0.5MB (KB: 1,024 bytes)")
    return int(size)


def _cluster_counts(text: str) -> list[int]:
    return [_positive(part) for part in text.split(",")]


def _seconds(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = -1.0
    if not 0 <= number < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds")
    return number


def _percent(text: str) -> float:
    try:
        number = float(text.removesuffix("%"))
    except ValueError:
        number = -1.0
    if not 0 <= number < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a percentage of 0 or more")
    return number


def _picture(text: str) -> Path:
    path = Path(text)
    if path.suffix.lower() not in PLOT_FORMATS:
        raise argparse.ArgumentTypeError(f"{text!r} must end in {', '.join(PLOT_FORMATS)}")
    return path


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="tflite-tools",
        description="How much RAM a TensorFlow Lite model needs on a microcontroller, why, and how to need less.",
        epilog="exit codes: 0 done, 1 a check failed, 2 bad input or usage",
    )
    add = parser.add_argument
    add("-i", "--input", type=Path, required=True, metavar="FILE", help="the model to read (.tflite)")
    add("-o", "--output", type=Path, metavar="FILE", help="write the resulting model here")
    add("--in-place", action="store_true", help="write the resulting model over the input")
    add("--plan", action="store_true", help="fix the smallest arena layout in the file, for TensorFlow Lite Micro")
    add("--verify", action="store_true", help="compare the outputs with the input model's, bit by bit, in LiteRT")
    add("--max-arena", type=_size, metavar="BYTES", help="exit with 1 if TFLM's arena exceeds this (64KB: 65,536 B)")
    add(
        "--clusters",
        type=_cluster_counts,
        metavar="N",
        help="give every weight matrix at most N distinct values; several numbers, as in 4,8,16, only compare them",
    )
    add("--per-channel", action="store_true", help="cluster per output channel where the quantisation is per channel")
    add("--split", action="store_true", help="run regions of the model stripe by stripe where that needs less memory")
    add(
        "--max-macs",
        type=_percent,
        metavar="PERCENT",
        help=f"how many more multiply-accumulates --split may cost (default: {DEFAULT_MAX_MACS:g})",
    )
    add("--optimize", action="store_true", help="reorder the operators for the smallest peak memory use")
    add("--time-limit", type=_seconds, metavar="SECONDS", help="for each search (default: 60; --split 30, --plan 20)")
    add("--calc-macs", action="store_true", help="add the multiply-accumulates of every operator")
    add("--calc-size", action="store_true", help="add the parameter bytes of every operator")
    add("--csv", type=Path, metavar="FOLDER", help="write the tables as CSV files into this folder")
    add("--json", metavar="FILE", help="write the analysis as JSON; '-' prints it instead of the tables")
    add("--plot", type=_picture, metavar="FILE", help="draw the memory use of every operator (png, svg or pdf)")
    add("--memory-map", type=_picture, metavar="FILE", help="draw TFLM's arena (png, svg or pdf)")
    add("--version", action="version", version=f"%(prog)s {__version__}")
    return parser


class UsageError(ValueError):
    """What the user asked for cannot be done; the message says why, in one line."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code: 0 done, 1 a check failed, 2 bad input or usage."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError, OSError):
            stream.reconfigure(errors="replace")  # type: ignore[union-attr]  # names may hold what it cannot show
    try:
        arguments = _parser().parse_args(argv)
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else BAD_INPUT
    try:
        return _run(arguments)
    except UsageError as error:
        message = str(error)
    except ModelError as error:
        message = f"{arguments.input}: {error}"
    except ArenaError as error:
        message = f"{arguments.input}: the arena of TFLM is not known, since {error}"
    except (OSError, RuntimeError) as error:  # RuntimeError: a circle of symbolic links, before Python 3.13
        strerror = getattr(error, "strerror", None)
        message = f"{getattr(error, 'filename', None)}: {strerror}" if strerror else str(error)
    except VerificationError as error:
        _say(f"tflite-tools: check failed: {arguments.input}: not verified: {error}")
        return CHECK_FAILED
    except ArithmeticError as error:
        message = f"{arguments.input}: {error}"
    except MemoryError:
        message = f"{arguments.input}: not enough memory for this model"
    except KeyboardInterrupt:
        message = "interrupted; nothing was written"
    _say(f"tflite-tools: error: {message}")
    return BAD_INPUT


def _run(arguments: argparse.Namespace) -> int:
    _check_outputs(arguments)
    model = TFLiteModel.load_from_file(arguments.input)
    results: dict[str, Any] = {}
    lines = []  # what was done, after the tables
    before: Arena | None = None
    with contextlib.suppress(ArenaError):
        before = model.arena
    limit = {} if arguments.time_limit is None else {"time_limit": arguments.time_limit}
    clusterings: list[ClusteringResult] = []
    if arguments.clusters:
        if len(arguments.clusters) > 1:
            clusterings = model.compare_clusterings(arguments.clusters, arguments.per_channel)
            lines += ["", "Weights clustered to at most N values each, for comparison:", comparison_table(clusterings)]
        else:
            clusterings = [model.cluster_weights(arguments.clusters[0], arguments.per_channel)]
            lines += _clustering_lines(clusterings[0])
        results["clustering"] = clusterings
        for note in clusterings[0].notes:
            _say(f"note: {note}")
    if arguments.split:
        split = model.split_operators(
            DEFAULT_MAX_MACS if arguments.max_macs is None else arguments.max_macs,
            try_orders=arguments.optimize,
            **limit,
        )
        results["split"] = split
        lines += _split_lines(split)
    if arguments.optimize:
        with _progress_bar() as progress:
            optimization = model.optimize_memory(for_arena=arguments.plan, progress=progress, **limit)
        results["optimization"] = optimization
        lines += _optimization_lines(optimization)
    if arguments.plan:
        planning = model.plan_memory(**limit)
        results["planning"] = planning
        lines += _planning_lines(planning, before)
    if arguments.memory_map or arguments.max_arena is not None:
        _ = model.arena  # if it is not known, better now than with half of the outputs written
    verified = True
    if arguments.verify:
        original = TFLiteModel.load_from_file(arguments.input)
        verification = model.verify_against(original, reference_kernels=arguments.split)
        results["verification"] = verification
        verified = verification.identical or bool(arguments.clusters)
        lines += _verification_lines(verification)
    for note in model.graph.notes:
        _say(f"note: {note}")

    if arguments.json != "-":
        model.print_model_analysis(arguments.calc_macs, arguments.calc_size)
        print("\n".join(lines), end="\n" if lines else "")
    if arguments.json:
        document = model.analysis() | {name: _plain(result) for name, result in results.items()}
        text = json.dumps(document, indent=2)
        if arguments.json == "-":
            print(text)
        else:
            with replacing(Path(arguments.json), "w", encoding="utf-8") as file:
                file.write(text + "\n")
    if arguments.csv:
        model.output_model_analysis_to_csv(arguments.csv, arguments.calc_macs, arguments.calc_size)
    if arguments.plot and len(clusterings) > 1:
        plot_clusterings(arguments.plot, clusterings)
    elif arguments.plot:
        model.plot_memory_usage(arguments.plot, results.get("split"))
    if arguments.memory_map:
        changed = arguments.plan or arguments.optimize or arguments.split
        model.plot_memory_map(arguments.memory_map, before if changed else None)
    if not verified:
        _say("check failed: the outputs differ, so no model was written")
        return CHECK_FAILED
    if arguments.output:
        model.write_to_file(arguments.output)
        _say(f"wrote {arguments.output}")
    elif lines:
        _say("nothing was written: give -o FILE to save this model")
    if arguments.max_arena is not None and model.arena.head > arguments.max_arena:
        _say(f"check failed: the arena takes {model.arena.head:,} B, more than {arguments.max_arena:,} B")
        return CHECK_FAILED
    return DONE


def _say(text: str) -> None:
    sys.stdout.flush()  # so that both streams show up in the order of events
    print(shorten(text, 1000), file=sys.stderr)  # on one line, whatever names it holds


def _check_outputs(arguments: argparse.Namespace) -> None:
    """Refuse what would overwrite the input or another output, before any work is done."""
    if arguments.in_place:
        if arguments.output and not _same_file(arguments.output, arguments.input):
            raise UsageError("--in-place and -o name two different places: give one of them")
        arguments.output = arguments.input
    elif arguments.output and _same_file(arguments.output, arguments.input):
        raise UsageError(f"{arguments.output}: the output is the input; add --in-place to replace it")
    json_file = None if arguments.json in (None, "-") else Path(arguments.json)
    files = [f for f in (arguments.output, arguments.plot, arguments.memory_map, json_file) if f is not None]
    for i, file in enumerate(files):
        if (file != arguments.output and _same_file(file, arguments.input)) or any(
            _same_file(file, other) for other in files[:i]
        ):
            raise UsageError(f"{file}: two files of this command have the same name")
        if file.is_dir():
            raise UsageError(f"{file}: is a directory; give a file name")
        if not file.parent.is_dir():
            raise UsageError(f"{file}: its folder does not exist")
    for name in ("tensor_details.csv", "execution_schedule_info.csv"):
        if arguments.csv and _same_file(arguments.csv / name, arguments.input):
            raise UsageError(f"{arguments.csv / name}: --csv would write over the input")
    if len(arguments.clusters or []) > 1 and arguments.output:
        raise UsageError("several numbers of clusters are only compared: give one number to write a model")
    if arguments.max_macs is not None and not arguments.split:
        raise UsageError("--max-macs limits what stripes may cost: add --split")
    if arguments.per_channel and not arguments.clusters:
        raise UsageError("--per-channel says how to cluster: add --clusters N")
    if arguments.csv and arguments.csv.exists() and not arguments.csv.is_dir():
        raise UsageError(f"{arguments.csv}: --csv needs a folder, and this is a file")


def _same_file(a: Path, b: Path) -> bool:
    return a.resolve() == b.resolve() or (a.exists() and b.exists() and a.samefile(b))


@contextlib.contextmanager
def _progress_bar() -> Iterator[Callable[[int, int, int], None]]:
    """Show how far the search is, on a terminal and once it takes more than a moment."""
    from tqdm import tqdm

    with tqdm(desc="ordering", unit=" states", unit_scale=True, delay=1.0, disable=None, leave=False) as bar:

        def progress(states: int, upper: int, lower: int) -> None:
            bar.set_postfix_str(f"peak {upper:,} B, bound {lower:,} B", refresh=False)
            bar.update(states - bar.n if states > bar.n else 0)

        yield progress


def _split_lines(result: SplitResult) -> list[str]:
    if result.refusal:
        return [f"Not split: {result.refusal}."]
    order = "in the best order" if result.is_reordered else "before reordering"
    lines = ["", f"Ways to run it in stripes (peak {order} and as a perfect layout has it):", split_table(result)]
    if not result.is_complete:
        lines.append("(the time was over before all of them were tried)")
    if not result.changed:
        return [*lines, "Not split: no way has a smaller sum of peak and persistent structures."]
    before, after = result.before, result.chosen
    model = "the reordered" if result.is_reordered else "the input"
    for region in after.regions:
        which = f"operators {region.start} to {region.end - 1} of {model} model, counted from 0"
        halo = "kept" if region.is_cached else "computed twice"
        lines.append(f"{region.stripes} stripes: {which}; rows that two stripes need are {halo}")
    if result.new_kinds:
        lines.append(f"Operators that TFLM has to register in addition: {', '.join(result.new_kinds)}")
    saved = 100 * (1 - after.peak / before.peak)
    growth = after.file_bytes - before.file_bytes
    cost = f"{after.macs_percent:.1f} % more multiply-accumulates, {growth:,} B more file"
    return [*lines, f"Split: peak {before.peak:,} B -> {after.peak:,} B ({saved:.1f} % less), {cost}."]


def _optimization_lines(result: OptimizationResult) -> list[str]:
    if result.refusal:
        return [f"Not reordered: {result.refusal}."]
    if result.optimal:
        verdict = "proven optimal: no order needs less"
    else:
        gap = 100 * (result.peak - result.bound) / result.bound
        verdict = f"not proven optimal: no order needs less than {result.bound:,} B, {gap:.1f} % below this"
    if not result.changed:
        return [f"Operator order left as it is: peak {result.peak:,} B, {verdict}."]
    saved = 100 * (1 - result.peak / result.peak_before) if result.peak_before else 0
    return [f"Operators reordered: peak {result.peak_before:,} B -> {result.peak:,} B ({saved:.1f} % less), {verdict}."]


def _planning_lines(result: PlanningResult, before: Arena | None) -> list[str]:
    if result.refusal:
        return [f"Arena not planned: {result.refusal}."]
    verdict = "proven optimal: no layout is smaller" if result.optimal else f"no plan is below {result.bound:,} B"
    original = result.head_before if before is None else before.head
    if result.head == original:
        return [f"Arena left as it is: {result.head:,} B, {verdict}."]
    saved = 100 * (1 - result.head / original) if original else 0.0
    done = "Arena planned" if result.changed else "Arena, which needs no plan"
    return [f"{done}: {original:,} B -> {result.head:,} B ({saved:.1f} % less), {verdict}."]


def _verification_lines(result: VerificationResult) -> list[str]:
    signatures = f" of each of {len(result.signatures)} signatures" if len(result.signatures) > 1 else ""
    what = f"{result.outputs} outputs of {INFERENCES} inferences{signatures}"
    if result.identical:
        return [f"Verified in LiteRT: {what} are bit-identical to the input model's."]
    difference = f"{result.different} of {what} differ from the input model's"
    return [f"Compared in LiteRT: {difference}, SQNR {result.sqnr_db:.1f} dB."]


def _clustering_lines(result: ClusteringResult) -> list[str]:
    if not result.weights:
        return ["", "No weights were clustered: the model has no weight matrix of a supported type."]
    return [
        "",
        f"Weights clustered to at most {result.clusters} values per matrix:",
        clustering_table(result),
        f"All weights: {result.bytes_before:,} B as stored, {result.bytes_after:,} B as code-books and packed indices",
    ]


def _plain(result: Any) -> Any:
    """A result as JSON-ready data, with the properties that matter; infinities, which JSON lacks, become null."""
    if isinstance(result, list):
        return [_plain(item) for item in result]
    document = dataclasses.asdict(result)
    for name in ("optimal", "identical", "total", "bytes_before", "bytes_after", "entropy_bytes"):
        if hasattr(result, name):
            document[name] = getattr(result, name)
    for weights, source in zip(document.get("weights", ()), getattr(result, "weights", ()), strict=True):
        weights["sqnr_db"] = source.sqnr_db if math.isfinite(source.sqnr_db) else None
    return document


if __name__ == "__main__":
    if sys.argv[1:2] == [WORKER]:
        litert_worker(*sys.argv[2:])
    else:
        sys.exit(main())
