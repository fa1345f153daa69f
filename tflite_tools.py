#!/usr/bin/env python3
# /// script
# requires-python = ">=3.10"
# dependencies = [
#     "matplotlib>=3.8",
#     "numpy>=1.26",
#     "ortools>=9.10",
#     "prettytable>=3.10",
#     "tflite>=2.18",
# ]
# ///
"""How much RAM a TensorFlow Lite model needs on a microcontroller, why, and how to make it need less.

On the command line::

    tflite-tools model.tflite                                    # what to reserve, and why
    tflite-tools model.tflite --fit 64KB -o smaller.tflite       # make it fit
    tflite-tools model.tflite --csv report/ --plot memory.png    # tables and pictures

From a script::

    from tflite_tools import TFLiteModel

    model = TFLiteModel.load_from_file("model.tflite")
    result = model.fit(64 * 1024)
    print(result.before, "->", result.after, "bytes", result.failure)
    model.write_to_file("smaller.tflite")

Weights stay in flash; what must fit in RAM is the *working set*, the intermediate tensors that are alive while an
operator runs, and the *arena* in which a planner places them. The order of the operators decides the first, the offsets
decide the second, and both are fixed in the file, so both can be optimised there at no cost in accuracy or speed.

The module reads from top to bottom in the order in which data flows; a section uses only what stands above it: the file
and what it says; what is known of operators; who is alive when; orders; offsets; TFLM's arena; changes; stripes and
loops; weights; what was done, in words and pictures; :class:`TFLiteModel`; the command line.
"""

from __future__ import annotations

import os
import sys

if os.path.basename(sys.argv[0]) in ("tflite-tools", "tflite_tools.py"):  # not where another program imports this

    def _say_interrupted(kind: type[BaseException], error: BaseException, trace: object) -> None:
        if kind is KeyboardInterrupt:
            print("tflite-tools: interrupted; nothing was written", file=sys.stderr)
            os._exit(130)
        sys.__excepthook__(kind, error, trace)  # type: ignore[arg-type]

    sys.excepthook = _say_interrupted  # Ctrl-C while modules load

import argparse
import bisect
import contextlib
import copy
import csv
import dataclasses
import enum
import gc
import graphlib
import heapq
import importlib
import io
import itertools
import json
import math
import mmap
import re
import signal
import struct
import tempfile
import time
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cache, cached_property, partial, wraps
from operator import attrgetter, itemgetter
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, Concatenate, NamedTuple, ParamSpec, TypeVar

if TYPE_CHECKING:
    import flatbuffers
    import numpy as np
    import tflite
else:

    class _Lazy:
        """A module that is imported when it is first used, so that --help and mistakes are answered at once."""

        def __init__(self, name: str) -> None:
            self._name = name

        def __getattr__(self, attribute: str) -> Any:
            value = getattr(importlib.import_module(self._name), attribute)
            setattr(self, attribute, value)
            return value

    flatbuffers, np, tflite = map(_Lazy, ("flatbuffers", "numpy", "tflite"))

__version__ = "0.4.0"

__all__ = [
    "LIBRARIES",
    "Arena",
    "ArenaError",
    "ClusteringDecision",
    "ComparisonDecision",
    "CompressionDecision",
    "Decision",
    "FitDecision",
    "LighteningDecision",
    "MemoriesDecision",
    "ModelError",
    "ModelGraph",
    "OrderDecision",
    "PlanDecision",
    "PortsDecision",
    "RepairDecision",
    "Schedule",
    "SplitDecision",
    "StagesDecision",
    "TFLiteModel",
    "VerificationDecision",
    "VerificationError",
    "keeping_the_best",
    "main",
    "share_arena",
    "write_shared_firmware",
]

####################################################################################################
# Model graph: the contents of a .tflite file, read once, as plain frozen data
####################################################################################################


class ModelError(ValueError):
    """The data is not a model that this tool can process; the message gives the reason in one line."""


class BrokenCertificate(RuntimeError):
    """The written model differs from what was decided: a bug in this program, caught before it does harm."""


class ArenaError(ValueError):
    """The arena of a model cannot be determined; the message gives the reason in one line."""


Bytes = bytes | bytearray | memoryview | mmap.mmap

MAX_ELEMENTS = 1 << 40  # elements; a larger claim means a damaged file, and keeps all sums far below 64 bits
CONTROL_DEPENDENCIES = "model_control_dependencies"  # metadata that numbers operators
OFFLINE_PLAN = "OfflineMemoryAllocation"  # metadata that fixes offsets (tflite-micro, docs/memory_management.md)
MAX_NAME = 60  # characters of a name in a table or message; CSV and JSON have the full name
MIN_NAME = 12  # characters of a name in a table for a narrow terminal
MAX_LISTED = 5  # sentences or names of one kind in a report
TIME_LIMIT = 60.0  # default in seconds of work for all searches of one command or call together
NANO = 10**9


class ElementType(NamedTuple):
    """Size of the elements of a tensor: bits in the file, and bytes in TFLM's RAM, where they are not packed."""

    bits: int | None  # None: not a fixed number
    tflm_bytes: int | None = None  # None: TFLM has no tensors of that type
    numpy: str | None = None  # numpy type to read weights with; None: such weights are not clustered


# In the order of their numbers in the schema; the last ones are newer than the bindings.
ELEMENT_TYPES = {
    "FLOAT32": ElementType(32, 4, "<f4"),
    "FLOAT16": ElementType(16, 2, "<f2"),
    "INT32": ElementType(32, 4),
    "UINT8": ElementType(8, 1, "<u1"),
    "INT64": ElementType(64, 8),
    "STRING": ElementType(None),
    "BOOL": ElementType(8, 1),
    "INT16": ElementType(16, 2, "<i2"),
    "COMPLEX64": ElementType(64, 8),
    "INT8": ElementType(8, 1, "<i1"),
    "FLOAT64": ElementType(64, 8),
    "COMPLEX128": ElementType(128, 16),
    "UINT64": ElementType(64, 8),
    "RESOURCE": ElementType(32, 4),
    "VARIANT": ElementType(None),
    "UINT32": ElementType(32, 4),
    "UINT16": ElementType(16, 2),
    "INT4": ElementType(4, 1, "<i1"),
    "BFLOAT16": ElementType(16, 2),
    "INT2": ElementType(2),
    "UINT4": ElementType(4),
    "FLOAT8_E4M3FN": ElementType(8),
    "FLOAT8_E5M2": ElementType(8),
}
UNKNOWN_TYPE = ElementType(None)


class Storage(enum.Enum):
    """Where the data of a tensor is stored."""

    ACTIVATION = "activation"  # RAM, only while it is alive: the tensors that this tool is about
    CONSTANT = "constant"  # flash: a weight, a bias, a shape
    STATE = "state"  # RAM from the first inference to the last: variables and the handles of resources


class Quantization(NamedTuple):
    """Affine quantisation: ``real = scale * (q - zero point)``, per tensor or per slice along ``dimension``."""

    scales: tuple[float, ...]
    zero_points: tuple[int, ...]
    dimension: int


@dataclass(frozen=True)
class Tensor:
    """A tensor of a subgraph; ``index`` is its position in the subgraph's list of tensors."""

    index: int
    name: str
    dtype: str
    shape: tuple[int, ...]
    storage: Storage
    buffer: int  # index into ModelGraph.buffers
    bytes: int | None  # product(shape) x element size, sub-byte types packed; None if the file does not say
    dynamic: tuple[int, ...] = ()  # dimensions that are only known at run time; ``bytes`` is for the stored shape
    is_sparse: bool = False
    is_completed: bool = False  # True: a dimension that the file leaves open was filled in, as RESHAPE does
    quantization: Quantization | None = None
    values: tuple[int, ...] | None = None  # of a small constant of integers: a shape, axes, paddings

    @property
    def element(self) -> ElementType:
        return ELEMENT_TYPES.get(self.dtype, UNKNOWN_TYPE)

    @property
    def ram_bytes(self) -> int:
        """Bytes of working memory while alive; 0 for constants, state and tensors of unknown size."""
        return (self.bytes or 0) if self.storage is Storage.ACTIVATION else 0

    @property
    def is_updated_in_place(self) -> bool:
        """True if reading the tensor changes it: state tensors, but not resource handles, which stay the same."""
        return self.storage is Storage.STATE and self.dtype != "RESOURCE"

    @property
    def elements(self) -> int:
        return math.prod(self.shape)

    @property
    def affine(self) -> tuple[float, int] | None:
        """(first scale, first zero point); None if either is missing: TFLM then sees the tensor as not quantised."""
        known = self.quantization
        return (known.scales[0], known.zero_points[0]) if known and known.scales and known.zero_points else None


@dataclass(frozen=True)
class Operator:
    """An operator; ``index`` is its position in the file's schedule. An omitted optional tensor is -1."""

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
        """Input tensors in order, without duplicates and omitted ones."""
        return tuple(dict.fromkeys(i for i in self.inputs if i >= 0))

    @cached_property
    def writes(self) -> tuple[int, ...]:
        """Output tensors in order, without duplicates and omitted ones."""
        return tuple(dict.fromkeys(i for i in self.outputs if i >= 0))

    @property
    def variable(self) -> str | None:
        """Name of the variable whose handle this operator creates; None for other operators."""
        if self.kind != "VAR_HANDLE":
            return None
        container, name = (self.options.get(f) or b"" for f in ("Container", "SharedName"))
        return f"{container!r}/{name!r}"


@dataclass(frozen=True)
class Kernels:
    """A library of kernels for one kind of processor, with which TFLM is built, and what the application does."""

    name: str  # for the command line
    title: str  # for reports and messages
    library: str = ""  # empty: the reference kernels
    core: str = ""  # the processor variant, on which its formulas depend
    assumed: frozenset[str] = frozenset()  # kinds of operators for which the application links a kernel of its own
    tflm: str = ""  # month of the TFLM that the application builds: "2024-06"; empty: the newest that is known
    # Tensors that the application needs after an inference, by name or number, each with the input that the output is
    # in the next inference, in the same place; empty: none.
    kept: tuple[tuple[str, str], ...] = ()


REFERENCE = Kernels("reference", "the reference kernels")


@dataclass(frozen=True)
class Subgraph:
    """A function of the model: subgraph 0 is the model itself; others are branches, loop bodies and signatures."""

    index: int
    name: str
    tensors: tuple[Tensor, ...]
    operators: tuple[Operator, ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    kernels: Kernels = REFERENCE  # that execute it

    def output_name(self, operator: Operator) -> str:
        """Name of the first output, which identifies the operator in reports; empty if it has no output."""
        return self.tensors[operator.writes[0]].name if operator.writes else ""

    @cached_property
    def variables(self) -> Mapping[int, str]:
        """Names of the variables by resource handle, but for handles that the caller passes."""
        return {i: name for op in reversed(self.operators) if (name := op.variable) for i in op.writes}


@dataclass(frozen=True, eq=False)
class Content:
    """The data of a buffer, uint8; empty if the file holds no data for its tensor."""

    data: np.ndarray
    is_external: bool = False  # after the FlatBuffer, where TFLM does not look

    @property
    def size(self) -> int:
        return len(self.data)


NO_CONTENT = Content(b"")  # type: ignore[arg-type]  # an array would load numpy


@dataclass(frozen=True)
class ModelGraph:
    """Everything the tool knows about a model; ``notes`` name what the file leaves open, one sentence each."""

    subgraphs: tuple[Subgraph, ...]
    buffers: tuple[Content, ...]
    metadata: tuple[tuple[str, int], ...]  # (name, buffer index)
    plan: tuple[int, ...] | None = None  # the words of the memory plan in the file, if it has one
    notes: tuple[str, ...] = ()

    def content(self, tensor: Tensor) -> Content:
        """Data of the tensor in the file; buffer 0 means that it has none."""
        return self.buffers[tensor.buffer] if tensor.buffer else NO_CONTENT

    def metadata_content(self, name: str) -> Content | None:
        """Content of the last metadata entry of that name, the one that runtimes use; None if there is none."""
        return next((self.buffers[buffer] for entry, buffer in reversed(self.metadata) if entry == name), None)

    @property
    def kernels(self) -> Kernels:
        return self.subgraphs[0].kernels if self.subgraphs else REFERENCE

    def on(self, kernels: Kernels) -> ModelGraph:
        """The same model, executed by other kernels."""
        subgraphs = tuple(dataclasses.replace(subgraph, kernels=kernels) for subgraph in self.subgraphs)
        return dataclasses.replace(self, subgraphs=subgraphs)

    @property
    def operators(self) -> Iterator[tuple[Subgraph, Operator]]:
        return ((subgraph, operator) for subgraph in self.subgraphs for operator in subgraph.operators)


def picked(source: object, keys: str) -> dict[str, Any]:
    """Properties of an object as JSON; ``keys`` holds names or ``key=property.of.it``."""
    pairs = (key.partition("=") for key in keys.split())
    return {key: plain(attrgetter(name or key)(source)) for key, _, name in pairs}


def plain(value: Any) -> Any:
    """The value as JSON allows it: tuples become lists, infinite numbers and NaN become None."""
    if hasattr(value, "json"):
        return value.json()
    if hasattr(value, "_fields"):
        return picked(value, " ".join(value._fields))
    if isinstance(value, Mapping):
        return {key: plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def printable(text: str) -> str:
    """The text on one line; each character that is unsafe in a terminal or spreadsheet becomes U+FFFD."""
    return text if text.isprintable() else "".join(c if c.isprintable() else "\ufffd" for c in text)


def shorten(name: str, limit: int = MAX_NAME) -> str:
    """The name on one line, with its middle left out if it is too long: both ends tell names apart."""
    name = printable(name)
    if len(name) <= limit:
        return name
    left = (limit - 3) // 2
    return name[:left] + "..." + name[left + 3 - limit :]


####################################################################################################
# Work: budgets of searches, and what ends them
####################################################################################################


class Budget:
    """Work for a whole search; its parts take shares of the work left. Work is counted, in seconds that it takes about
    on a usual machine, so that a search ends with the same result on all of them, whatever else they do."""

    done: ClassVar[int] = 0  # work of all searches so far, in billionths of a second: sums of integers are exact
    is_interrupted: ClassVar[bool] = False  # if True, all budgets are over and every search ends with its best result
    brake: ClassVar[float] = math.inf  # moment on the clock at which all of them are over, too
    was_cut: ClassVar[bool] = False  # True: the brake ended a search

    def __init__(self, seconds: float = TIME_LIMIT) -> None:
        self.end = Budget.done + int(min(seconds, NANO) * NANO)

    @staticmethod
    def spend(seconds: float) -> None:
        Budget.done += int(seconds * NANO)

    @staticmethod
    def is_stopped() -> bool:
        """Whether an interrupt or the brake ends all searches."""
        Budget.was_cut |= time.monotonic() > Budget.brake
        return Budget.is_interrupted or Budget.was_cut

    @property
    def left(self) -> float:
        work = max(self.end - Budget.done, 0)
        return 0.0 if work and Budget.is_stopped() else work / NANO

    @property
    def is_over(self) -> bool:
        return self.left == 0.0

    def share(self, part: float) -> Budget:
        return Budget(part * self.left)


@contextlib.contextmanager
def keeping_the_best(seconds: float = math.inf) -> Iterator[None]:
    """Lets Ctrl-C, termination signals and so many seconds by the clock end searches with their best; a second signal
    raises KeyboardInterrupt."""
    numbers = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]

    def interrupt(number: int, frame: Any) -> None:
        if Budget.is_interrupted:
            raise KeyboardInterrupt
        Budget.is_interrupted = True

    before = {}
    Budget.brake = time.monotonic() + seconds
    with contextlib.suppress(ValueError):  # not in the main thread
        heard = [number for number in numbers if signal.getsignal(number) != signal.SIG_IGN]  # nohup ignores some
        before = {number: signal.signal(number, interrupt) for number in heard}
    try:
        yield
    finally:
        Budget.is_interrupted, Budget.was_cut, Budget.brake = False, False, math.inf
        for number, handler in before.items():
            signal.signal(number, handler)


####################################################################################################
# The file: bytes <-> tables. Everything read or written passes through here
####################################################################################################

# A .tflite file is a FlatBuffer: tables that refer to each other by offsets. Unpacked, it is plain data; a change makes
# new tables out of old ones; only what leaves the program is packed. Slots and types of fields are read off the
# generated bindings, so no second description of the schema can disagree with them.

FILE_IDENTIFIER = b"TFL3"
DATA_ALIGNMENT = 16  # bytes, of the data of constants, which TFLM uses in place
TOO_MANY_ITEMS = "the file is damaged: it refers to more items than its size can hold"
INT32, UINT32, UINT16 = struct.Struct("<i"), struct.Struct("<I"), struct.Struct("<H")
# Unions whose name differs from that of their field.
UNIONS = {"Details": "QuantizationDetails"} | dict.fromkeys(("ArraySegments", "ArrayIndices"), "SparseIndexVector")
OTHER_FORMATS = (  # pattern of the first bytes, what the file is, what to do
    (rb"version https://git-lfs", "a Git LFS pointer instead of the model: git lfs pull fetches it"),
    (rb"PK\x03\x04", "a zip archive (a .keras, .pt or .task file is one): unpack or convert it first"),
    (rb"\x1f\x8b", "a gzip archive: unpack it first"),
    (rb"\x89HDF", "a Keras model in HDF5: convert it to TensorFlow Lite first"),
    (rb"\x08[\x01-\x20][\x12:B]", "an ONNX model or another protocol buffer: convert it to TensorFlow Lite first"),
    (rb"\n[\x01-\xff]{1,3}\n", "a TensorFlow graph or another protocol buffer: convert it to TensorFlow Lite first"),
    (rb"\x80\x02", "a pickle, as of PyTorch: convert it to TensorFlow Lite first"),
    (rb"\s*<", "a web page or XML: the download failed"),
    (
        rb"\s*(#(include|ifndef|pragma|define)|//|/\*|alignas|(static |extern )?(const |unsigned )|0x)",
        "a C array: pass the .tflite that it was made from",
    ),
)


class Field(NamedTuple):
    """Slot, form, type and default of a field in a kind of table."""

    slot: int
    form: str  # "number", "text", "table" or "union"; for several: "numbers", "texts" or "tables"
    of: Any  # the type of the numbers, or the kind of the tables
    default: Any  # value of a field that is missing in the file


class _Probe:
    """Stands in for a file and a builder to record which calls the bindings make."""

    Pos, Bytes = 0, b""

    def __init__(self) -> None:
        self.asked: dict[str, tuple[Any, ...]] = {}

    def __getattr__(self, method: str) -> Callable[..., int]:
        def note(*arguments: Any) -> int:
            self.asked[method] = arguments
            return 1

        return note


@cache
def layout(kind: str) -> dict[str, Field]:
    """The fields of a kind of table by name, in slot order; empty if the bindings do not have that kind."""
    if not hasattr(tflite, kind):
        return {}
    fields, table = {}, getattr(tflite, kind)()
    bindings = dir(importlib.import_module("tflite"))
    for name in (name.removeprefix(f"{kind}Add") for name in bindings if name.startswith(f"{kind}Add")):
        table._tab = probe = _Probe()
        getattr(tflite, f"{kind}Add{name}")(probe, 1)
        ((method, (slot, _, default)),) = probe.asked.items()
        number = getattr(flatbuffers.number_types, f"{method.removeprefix('Prepend').removesuffix('Slot')}Flags", None)
        if number is not None:
            fields[name] = Field(slot, "number", number, default)
        elif hasattr(table, f"{name}AsNumpy"):
            getattr(table, f"{name}AsNumpy")()
            (number, _) = probe.asked["GetVectorAsNumpy"]
            fields[name] = Field(slot, "numbers", flatbuffers.number_types.to_numpy_type(number), ())
        else:
            many = "s" if hasattr(table, f"{name}Length") else ""
            value = getattr(table, name)(*[0] * len(many))
            form = "text" if "String" in probe.asked else "union" if "Union" in probe.asked else "table"
            missing = () if many else b"" if form == "text" else None
            fields[name] = Field(slot, form + many, type(value).__name__, missing)
    return dict(sorted(fields.items(), key=lambda item: item[1].slot))


class Table(dict[str, Any]):
    """A table of the file: a dict of its fields by schema name. Values are numbers, texts (bytes or views of them),
    arrays, tables, or lists of texts or tables; a missing field has its default."""

    def __init__(self, kind: str, fields: Mapping[str, Any] = MappingProxyType({}), **more: Any) -> None:
        super().__init__(fields, **more)
        self.kind = kind
        self.unknown: tuple[int, ...] = ()  # slots of fields that the bindings do not know

    def __missing__(self, field: str) -> Any:
        return layout(self.kind)[field].default

    def but(self, **changes: Any) -> Table:
        """A copy with these fields changed."""
        return Table(self.kind, self, **changes)


@cache
def union_kind(field: str, number: int) -> str:
    """The kind of table that a union field holds; empty if the bindings do not know it."""
    union = getattr(tflite, UNIONS.get(field, field))
    return next((kind for kind, known in vars(union).items() if known == number and hasattr(tflite, kind)), "")


class _Unpacker:
    """Unpacks each table and vector once, however often it is referred to; texts and arrays are views of the file."""

    def __init__(self, data: Bytes) -> None:
        self.data, self.view = data, memoryview(data)
        self.newer = ""  # a kind of table with fields unknown to the bindings
        self.left = len(data)  # bytes for references, 4 each: only overlapping vectors of a damaged file claim more
        self.known: dict[tuple[str, Any, int], Any] = {}

    def word(self, at: int) -> int:
        return int(UINT32.unpack_from(self.data, at)[0])

    def once(self, form: str, of: Any, at: int) -> Any:
        key = form, of, at
        if key not in self.known:
            read = partial(self.several, form[:-1]) if form in ("texts", "tables") else getattr(self, form)
            self.known[key] = read(of, at)
        return self.known[key]

    def table(self, kind: str, at: int) -> Table:
        table = Table(kind)
        fields, table.unknown = self.once("fields", kind, at - INT32.unpack_from(self.data, at)[0])
        for name, (_, form, of, _), place in fields:
            place += at
            if form == "number":
                table[name] = of.packer_type.unpack_from(self.data, place)[0]
            else:
                if form == "union":
                    form, of = "table", union_kind(name, table.get(f"{name}Type", 0))
                table[name] = self.once(form, of, place + self.word(place))
        return table

    def fields(self, kind: str, vtable: int) -> tuple[list[tuple[str, Field, int]], tuple[int, ...]]:
        """(fields present in a table, each with its distance from it in bytes; slots of unknown fields)."""
        if vtable < 0:
            raise IndexError("a table is described before the beginning of the file")
        count = UINT16.unpack_from(self.data, vtable)[0] // 2 - 2
        places = dict(enumerate(struct.unpack_from(f"<{count}H", self.data, vtable + 4)))
        known = [(name, f, place) for name, f in layout(kind).items() if (place := places.pop(f.slot, 0))]
        last = max((field.slot for field in layout(kind).values()), default=-1)  # lower ones are deprecated
        unknown = tuple(slot for slot, place in places.items() if place and slot > last)
        self.newer = kind or "a union" if unknown or not kind else self.newer
        return known, unknown

    def text(self, _: Any, at: int) -> memoryview:
        return self.view[at + 4 : at + 4 + self.word(at)]

    def numbers(self, dtype: Any, at: int) -> np.ndarray:
        return np.frombuffer(self.data, dtype, self.word(at), at + 4)

    def several(self, form: str, of: Any, at: int) -> list[Any]:
        count = self.word(at)
        self.left -= 4 * count
        if self.left < 0:
            raise ModelError(TOO_MANY_ITEMS)
        return [self.once(form, of, place + self.word(place)) for place in range(at + 4, at + 4 + 4 * count, 4)]


class _Packer:
    """Writes tables: equal tables, texts and vectors only once, and the data of every buffer aligned."""

    def __init__(self, size: int) -> None:
        self.builder = flatbuffers.Builder(size)
        self.known: dict[Any, int] = {}

    def once(self, key: Any, write: Callable[[], int]) -> int:
        if key not in self.known:
            self.known[key] = write()
        return self.known[key]

    def offset(self, value: Any, alignment: int = 1) -> int:
        if isinstance(value, Table):
            return self.once(id(value), partial(self.table, value))
        if isinstance(value, (bytes, memoryview)):
            return int(self.builder.CreateSharedString(bytes(value)))
        if isinstance(value, np.ndarray):
            write = partial(self.numbers, value, alignment)
            return write() if alignment > 1 else self.once((value.dtype, value.tobytes()), write)
        targets = tuple(map(self.offset, value))
        return self.once((list, targets), partial(self.references, targets))

    def table(self, table: Table) -> int:
        fields, alignment = layout(table.kind), DATA_ALIGNMENT if table.kind == "Buffer" else 1
        values = {
            name: value if fields[name].form == "number" else self.offset(value, alignment)
            for name, value in table.items()
        }
        return self.once((table.kind, *values.items()), partial(self.new_table, fields, values))

    def new_table(self, fields: Mapping[str, Field], values: Mapping[str, Any]) -> int:
        self.builder.StartObject(1 + max((field.slot for field in fields.values()), default=-1))
        for name, value in values.items():
            slot, form, number, _ = fields[name]
            if form == "number":
                self.builder.PrependSlot(number, slot, value, None)
            else:
                self.builder.PrependUOffsetTRelativeSlot(slot, value, 0)
        return int(self.builder.EndObject())

    def references(self, targets: Sequence[int]) -> int:
        self.builder.StartVector(4, len(targets), 4)
        for target in reversed(targets):
            self.builder.PrependUOffsetTRelative(target)
        return int(self.builder.EndVector())

    def numbers(self, values: np.ndarray, alignment: int) -> int:
        self.builder.Prep(alignment, values.nbytes)
        return int(self.builder.CreateNumpyVector(values))


def is_same(a: Any, b: Any) -> bool:
    """True if two fields have the same content, bit by bit."""
    if isinstance(a, Table) and isinstance(b, Table):
        return a.kind == b.kind and a.keys() == b.keys() and all(is_same(a[field], b[field]) for field in a)
    if isinstance(a, np.ndarray) and isinstance(b, np.ndarray):
        return (a.dtype, a.shape, a.tobytes()) == (b.dtype, b.shape, b.tobytes())
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(is_same, a, b))
    return bool(a == b or (a != a and b != b))  # NaN


@dataclass(frozen=True, eq=False)
class File:
    """A .tflite file: its tables and the bytes that they were read from. Immutable; a change makes a new File."""

    model: Table
    source: Bytes
    newer: str = ""  # a kind of table with fields unknown to the bindings, so that the file cannot be changed
    is_changed: bool = False

    @classmethod
    def read(cls, data: Bytes) -> File:
        """Unpack a file. Raises ModelError if it is damaged or not a TensorFlow Lite model."""
        if len(data) == 0:
            raise ModelError("the file is empty")
        if len(data) < 8 or bytes(data[4:8]) != FILE_IDENTIFIER:
            found = (f"it is {what}" for pattern, what in OTHER_FORMATS if re.match(pattern, bytes(data[:64])))
            what = next(found, f"its identifier is {bytes(data[4:8])!r} instead of {FILE_IDENTIFIER!r}")
            raise ModelError(f"not a TensorFlow Lite model: {what}")
        unpacker = _Unpacker(data)
        try:
            return cls(unpacker.table("Model", unpacker.word(0)), data, unpacker.newer)
        except (struct.error, IndexError, ValueError, OverflowError, MemoryError) as error:
            if isinstance(error, ModelError):
                raise
            raise ModelError("the file is damaged or cut short: one of its offsets points outside of it") from error

    def but(self, **fields: Any) -> File:
        """A copy with changed fields of the model. Raises ModelError if the file uses a newer, unknown schema."""
        if self.newer:
            raise ModelError(f"the file uses a newer schema of {self.newer} than this tool knows, so it stays as it is")
        return File(self.model.but(**fields), self.source, is_changed=True)

    @cached_property
    def data(self) -> Bytes:
        """The bytes as read or, if changed, packed with all data inside and none unused. Raises BrokenCertificate if
        the packed bytes hold another model."""
        if not self.is_changed:
            return self.source
        packer, model = _Packer(len(self.source)), self.compacted()
        packer.builder.Finish(packer.offset(model), FILE_IDENTIFIER)
        packed = bytes(packer.builder.Output())
        if not is_same(File.read(packed).model, model):
            raise BrokenCertificate("the file that was written is another model")
        return with_archive(packed, self.source)

    def compacted(self) -> Table:
        subgraphs = self.model["Subgraphs"]
        users = [t for s in subgraphs for t in s["Tensors"]] + [*self.model["Metadata"]]
        used = {user["Buffer"] for user in users}.union(map(int, self.model["MetadataBuffer"]))
        data = (self.content(b) if i in used else () for i, b in enumerate(self.model["Buffers"]))
        buffers = [Table("Buffer", Data=d) if len(d) else Table("Buffer") for d in data]
        inside = self._with_options_inside
        subgraphs = [s.but(Operators=list(map(inside, s["Operators"]))) if s["Operators"] else s for s in subgraphs]
        return self.model.but(Buffers=buffers, Subgraphs=subgraphs)

    def content(self, buffer: Table) -> np.ndarray:
        """Data of a buffer, uint8, inside or outside of the FlatBuffer."""
        if buffer["Offset"] > 1:  # converters write 1 as a placeholder
            return np.frombuffer(self.source, np.uint8, buffer["Size"], buffer["Offset"])
        return np.asarray(buffer["Data"], np.uint8)

    def _with_options_inside(self, operator: Table) -> Table:
        """The operator with large custom options, possibly after the FlatBuffer, moved inside."""
        place, size = (operator[f"LargeCustomOptions{what}"] for what in ("Offset", "Size"))
        if place <= 1:
            return operator
        if place + size > len(self.source):
            raise ModelError("the file is cut short: the options of an operator are after its end")
        kept = {name: value for name, value in operator.items() if not name.startswith("LargeCustomOptions")}
        return Table("Operator", kept, CustomOptions=np.frombuffer(self.source, np.uint8, size, place))


def with_archive(data: bytes, source: Bytes) -> bytes:
    """The file with the source's zip archive appended, in which converters store labels and the like."""
    import zipfile

    file, end = io.BytesIO(data), io.BytesIO(source)
    if not zipfile.is_zipfile(end):
        return data
    try:
        with zipfile.ZipFile(end) as old, zipfile.ZipFile(file, "a") as new:
            for entry in old.infolist():
                new.writestr(entry, old.read(entry))
    except Exception as error:  # of any kind: what is compressed is damaged, encrypted or of an unknown method
        raise ModelError(f"the zip archive at its end cannot be read: {error}") from error
    return file.getvalue()


####################################################################################################
# Operators, the columns: functions that compute the properties of a kind from an operator and its tensors
####################################################################################################

# Sizes of TFLM's own structures are those of a 32-bit target, in bytes, and scratch is what its reference kernels ask
# for: tensorflow/lite/micro/kernels of tflite-micro at 90b983c (August 2026), measured on the runtime by the tests.
# Formulas longer than a line are here, the others in the table.

HEIGHT = 1  # axis of the rows of a feature map
ARENA_ALIGNMENT = 16  # bytes, of every buffer that TFLM plans
MAX_CONCATENATED = 10  # inputs of CONCATENATION that TFLM's kernel takes
EVERYTHING = "every side effect"  # the effect of operators that may touch any state
VARIABLE = "a variable"  # the effect of those whose first input is its handle


def align(size: int, multiple: int = ARENA_ALIGNMENT) -> int:
    """The size, rounded up to a multiple of ``multiple``."""
    return -(-size // multiple) * multiple


class Target(NamedTuple):
    """Bytes of TFLM's own structures for one pointer size; those for planning exist only while TFLM plans."""

    pointer: int
    interpreter: tuple[int, ...]  # at the start: allocators and the planner
    subgraph: int
    tensor: int  # per tensor, constants included
    operator: int
    variable: int  # per resource variable
    port: int  # per input and output
    quantization: int  # per quantised input and output, besides 4 bytes and 4 per scale
    request: int  # while planning, per request for scratch
    planned: int  # while planning, per tensor and request


# A plain MicroInterpreter of 32 bits, and that of the package tflite-micro, which records its allocations.
BITS_32 = Target(4, (36, 44, 36, 8), 8, 12, 32, 20, 40, 12, request=12, planned=24)
BITS_64 = Target(8, (104, 72, 272, 16), 24, 24, 64, 40, 64, 24, request=16, planned=32)


@dataclass(frozen=True)
class Node:
    """An operator with its tensors; an omitted input is None. ``node["weights"]`` is the input of that role. Raises
    LookupError if the operator lacks something that its kernel needs."""

    kind: Kind
    inputs: tuple[Tensor | None, ...]
    outputs: tuple[Tensor, ...] = ()
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    custom_options: bytes = b""
    kernels: Kernels = REFERENCE
    target: Target = BITS_32

    @cached_property
    def kernel(self) -> Tflm | None:
        """The kernel that executes the operator; None if TFLM has none."""
        other = self.kind.libraries.get(self.kernels.library)
        return self.kind.tflm._replace(**other) if self.kind.tflm and other else self.kind.tflm

    @property
    def output(self) -> Tensor | None:
        return self.outputs[0] if self.outputs else None

    def get(self, role: str) -> Tensor | None:
        inputs = zip(self.kind.roles, self.inputs, strict=False)
        return self.output if role == "output" else next((tensor for name, tensor in inputs if name == role), None)

    def __getitem__(self, role: str) -> Tensor:
        if (tensor := self.get(role)) is None:
            raise LookupError(role)
        return tensor

    @property
    def elements(self) -> int:
        """Number of elements of the output."""
        return self.output.elements if self.output else 0

    @property
    def rank(self) -> int:
        """Filters per unit of an SVDF."""
        return max(self.options.get("Rank", 1), 1)

    @cached_property
    def custom(self) -> Mapping[str, Any]:
        """The options of a custom operator; a missing one is 0."""
        from flatbuffers import flexbuffers

        try:
            options = flexbuffers.Loads(self.custom_options) if self.custom_options else {}
        except AssertionError as error:  # as the library rejects some damaged bytes
            raise ValueError("its options are damaged") from error
        return defaultdict(int, options if isinstance(options, dict) else {})


Sizes = Callable[[Node], list[int]]  # bytes of each buffer that a kernel requests, in its order, or of what it keeps
Need = Callable[[Node], str]  # why a kernel rejects an operator; empty if it accepts it


LOOPS_SINCE = DECODE_SINCE = "2025-11"  # months of the first TFLM with their kernels


def _since(month: str = "", **dtypes: str) -> Callable[[Node], str]:
    """The month of a kernel's first version, or of that for some types of the first input."""
    return lambda n: dtypes.get(n.inputs[0].dtype if n.inputs and n.inputs[0] else "", month)


class Options(NamedTuple):
    """The table in the bindings that holds an operator's options, and its fields that are read, besides callees."""

    table: str = ""
    fields: tuple[str, ...] = ()


class Tflm(NamedTuple):
    """What TFLM's reference kernel accepts and allocates."""

    types: str = "*"  # of its inputs and its output, see :func:`accepts`
    options: int = 0  # bytes of the options in TFLM
    data: int = 0  # bytes of its own structure with pointers of 32 bits
    wider: tuple[int, int] = (0, 0)  # extra bytes of both with pointers of 64 bits
    scratch: Sizes = lambda node: []
    arrays: Sizes = lambda node: []
    needs: tuple[Need, ...] = ()
    since: Callable[[Node], str] = lambda node: ""  # month of the first TFLM that accepts it, if after 2023: "2025-11"


NO_OPTIONS, PLAIN_KERNEL = Options(), Tflm()


@dataclass(frozen=True)
class Kind:
    """A row of the table of operators. The defaults fit a kind that needs no more than its kernel."""

    inputs: str = ""  # their roles, in order; those with a star are weight matrices if they are constant
    options: Options = NO_OPTIONS
    macs: Callable[[Node], int] = lambda node: 0  # approximate multiply-accumulates
    rows: Callable[[Node], RowRule | str] | None = None  # how it works along the height, or why not; None: as a whole
    tflm: Tflm | None = PLAIN_KERNEL  # None: TFLM has no kernel for it
    effect: tuple[str, bool] | None = None  # (what it touches besides its tensors, True if it changes that)
    # Whether its output may overwrite the input at that position; None: never.
    in_place: Callable[[Node, int, Tensor, Tensor], bool] | None = None
    libraries: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)  # fields of tflm that differ
    registered: str = ""  # its name in TFLM's resolver, if that is not in camel case

    @cached_property
    def roles(self) -> tuple[str, ...]:
        return tuple(self.inputs.replace("*", "").split())

    @cached_property
    def weights(self) -> tuple[int, ...]:
        """Positions of inputs that are weight matrices: not biases, peepholes or normalisation vectors."""
        return tuple(i for i, role in enumerate(self.inputs.split()) if role.startswith("*"))


def _by_weights(rank: int, first: int, behind: int) -> Callable[[Node], int]:
    """MACs: one for each element of the output and weight along these axes; 0 for weights of another rank."""
    return lambda n: n.elements * math.prod(n["weights"].shape[first:behind]) * (len(n["weights"].shape) == rank)


def _pool_macs(node: Node) -> int:
    return node.elements * node.options.get("FilterHeight", 1) * node.options.get("FilterWidth", 1)


def _matmul_macs(node: Node) -> int:
    shape = node["a"].shape
    return node.elements * shape[-2 if node.options.get("AdjX") else -1] if len(shape) > 1 else 0


def _recurrent_macs(node: Node) -> int:
    matrices = (t for t in node.inputs if t and len(t.shape) == 2 and t.storage is Storage.CONSTANT)
    return sum(t.elements for t in matrices) * math.prod(node["input"].shape[:-1])


def _int4_scratch(node: Node) -> list[int]:
    weights = node.get("weights")
    return [weights.elements] if weights and weights.dtype == "INT4" else []


def _transpose_conv_scratch(node: Node) -> list[int]:
    dtype, bias = node["input"].dtype, node.get("bias")
    if dtype == "INT16":
        return [8 * node.elements] + ([8 * bias.elements] if bias and bias.dtype == "INT16" else [])
    return [4 * node.elements] if dtype == "INT8" else []


def _reduce_scratch(node: Node) -> list[int]:
    return [4 * len(node["input"].shape), 4 * node["axes"].elements]


def _sum_scratch(node: Node) -> list[int]:
    return ([4 * node.elements] if node["input"].dtype in ("INT8", "INT16") else []) + _reduce_scratch(node)


def _svdf_scratch(node: Node) -> list[int]:
    batch, filters = node["input"].shape[0], node["feature"].shape[0]
    units = [4 * batch * (filters // node.rank)] if node["input"].dtype == "INT8" else []
    return [4 * batch * filters, *units]


def _lstm_scratch(node: Node) -> list[int]:
    return [node["output_state"].elements * (node["cell_state"].element.tflm_bytes or 4)] * 4


def _detection_scratch(node: Node) -> list[int]:
    classes, m, boxes = node.custom["num_classes"], node.custom["max_detections"], node["boxes"].shape[1]
    sizes = [1, 16, None, 4, 4, 4 * m, 4 * m, 4, 4 * m, 4 * max(classes, m), 4 * min(boxes, m)]
    return [4 * math.prod(node["scores"].shape[1:3]) if per_box is None else per_box * boxes for per_box in sizes]


def _per_channel(node: Node) -> list[int]:
    return [4 * sum(node["output"].shape[-1:])] * 2  # a multiplier and a shift each


def _per_scale(node: Node) -> list[int]:
    quantization = node["weights"].quantization
    scales = len(quantization.scales) if quantization else 0
    return [4 * scales] * 2 if scales > 1 else []


def _output_shape(node: Node) -> list[int]:
    """Bytes of a shape that the kernel writes itself."""
    return [4 + 4 * len(node["output"].shape)]


def _matmul_arrays(node: Node) -> list[int]:
    """Bytes of transposed copies, each with its tensor and shape, and of the shape of the output."""
    copies = [node["a"]] if node.options.get("AdjX") else []
    copies += [] if node.options.get("AdjY") else [node["b"]]
    sizes = [size for t in copies for size in (t.bytes or 0, node.target.tensor, 4 + 4 * len(t.shape))]
    return [*([28] if node["a"].dtype != "FLOAT32" else []), *sizes, *_output_shape(node)]


def _fft_state(node: Node) -> list[int]:
    """Bytes of KISS FFT's factors: for a complex transform of half the length, and for making it a real one."""
    half, size = node.custom["fft_length"] // 2, node["input"].element.tflm_bytes or 0
    return [3 * node.target.pointer + 264 + 2 * size * (half + 3 * half // 2)]


def _ring(node: Node, capacity: int) -> int:
    """Bytes of a circular buffer of ``capacity`` int16, each stored twice."""
    return 4 * node.target.pointer + 8 + 4 * capacity


def _rings(node: Node, capacity: int) -> list[int]:
    """Bytes of a circular buffer for each row of the input, and of two lists of pointers to them."""
    rows = node["input"].elements // max(node["input"].shape[-1], 1)
    return [rows * node.target.pointer] * 2 + [rows * align(_ring(node, capacity))]


def _overlaps(node: Node) -> list[int]:
    *rows, _, size = (1, 1, *node["input"].shape)
    count, size = math.prod(rows), size * (node["input"].element.tflm_bytes or 0)
    return [count * node.target.pointer, count * align(size)]


def _if_quantized(size: int, wider: int = 0) -> Sizes:
    """Bytes of a structure that only integer kernels have."""
    return lambda n: [size + wider * (n.target is BITS_64)] if n.inputs[0] and n.inputs[0].dtype != "FLOAT32" else []


####################################################################################################
# Operators, the kernels of devices: memory of CMSIS-NN and ESP-NN where it differs from the reference kernels; boards
####################################################################################################

# CMSIS-NN: kernels/cmsis_nn of tflite-micro at 90b983c (August 2026) and *_get_buffer_size of CMSIS-NN at 4ab83cc (June
# 2026), as GCC and LLVM build them, optimised for speed. ESP-NN: kernels/esp_nn of esp-tflite-micro 1.4.0 (August 2026)
# and esp_nn_get_*_scratch_size of ESP-NN 1.2.3 (April 2026). Structures and buffers are those of 32 bits; where a
# library has no kernel, the reference kernel runs.

_LIBRARIES = (
    REFERENCE,
    Kernels("cmsis-nn", "CMSIS-NN on Cortex-M4, M7 or M33", "cmsis-nn", "dsp"),
    Kernels("cmsis-nn:plain", "CMSIS-NN on Cortex-M0 or M3", "cmsis-nn", "plain"),
    Kernels("cmsis-nn:mve", "CMSIS-NN on Cortex-M52, M55 or M85", "cmsis-nn", "mve"),
    Kernels("esp-nn", "ESP-NN on ESP32-S3", "esp-nn", "esp32s3"),
    Kernels("esp-nn:esp32p4", "ESP-NN on ESP32-P4", "esp-nn", "esp32p4"),
    Kernels("esp-nn:esp32", "ESP-NN on all other ESP32", "esp-nn", "generic"),
    Kernels("esp-nn:ansi", "ESP-NN in plain C", "esp-nn", "ansi"),
)
LIBRARIES = {kernels.name: kernels for kernels in _LIBRARIES}
USUAL_LIBRARIES = ("cmsis-nn", "esp-nn")  # what most devices run
ESP32P4_CACHE = 32768  # bytes above which a feature map is cut into tiles
ESP32S3_TILE, ESP32S3_WORDS = 40960, 49152  # bytes up to which a depthwise convolution copies a whole feature map


class Pads(NamedTuple):
    """Amounts of padding on two opposite sides."""

    before: int
    after: int


def same_pads(source: int, output: int, stride: int, window: int) -> Pads:
    """SAME padding along one axis: as little as the output needs; the smaller half comes first."""
    total = max((output - 1) * stride + window - source, 0)
    return Pads(total // 2, total - total // 2)


class Window(NamedTuple):
    """A window over a feature map as the kernel receives it: (height, width), with channels where there are any."""

    input: tuple[int, int, int]
    filter: tuple[int, int]
    output: tuple[int, int, int]
    stride: tuple[int, int]
    dilation: tuple[int, int]
    span: tuple[int, int]  # from the first to the last element of the input under the filter
    pads: tuple[Pads, Pads]

    @classmethod
    def of(cls, node: Node) -> Window:
        """The window of an operator. Raises LookupError or ValueError if its tensors do not have such shapes."""
        (_, height, width, channels), (_, down, across, depth) = node["input"].shape, node["output"].shape
        options, weights = node.options, node.get("weights")
        _, rows, columns, _ = weights.shape if weights else (1, options["FilterHeight"], options["FilterWidth"], 1)
        stride = options["StrideH"], options["StrideW"]
        dilation = options.get("DilationHFactor", 1), options.get("DilationWFactor", 1)
        span = (rows - 1) * dilation[0] + 1, (columns - 1) * dilation[1] + 1
        pads = same_pads(height, down, stride[0], span[0]), same_pads(width, across, stride[1], span[1])
        return cls((height, width, channels), (rows, columns), (down, across, depth), stride, dilation, span, pads)

    @property
    def patch(self) -> int:
        """Number of elements under the window."""
        return math.prod(self.filter) * self.input[2]

    @property
    def is_plain(self) -> bool:
        """True for a 1 x 1 window without padding."""
        return self.filter == (1, 1) and self.pads[0].before == self.pads[1].before == 0


def _requests(*sizes: int) -> list[int]:
    return [size for size in sizes if size > 0]


def _only_for(dtypes: str, sizes: Sizes, core: str = "") -> Sizes:
    """These sizes for the given types of the first input, if a core is given on that only; otherwise none."""
    types = dtypes.split()
    return lambda n: sizes(n) if core in ("", n.kernels.core) and n[n.kind.roles[0]].dtype in types else []


def _cmsis_columns(w: Window, is_grouped: bool) -> int:
    """Bytes for int8 patches as matrix columns, several at a time with MVE; along a single row only for its ends."""
    (height, width, channels), (rows, columns), (_, made, _), (_, step), _, _, (_, (left, _)) = w
    odd = int(math.fmod((made - 1) * step + columns - width, 2))
    ends = [max(1, (pad + step - 1) // step) if pad else 0 for pad in (left + odd, left)]
    is_row = height == rows == w.dilation[1] == 1 and step * channels % 4 == 0 and not is_grouped
    if is_row and sum(ends) <= made:
        return max((columns + left) * channels, (columns - 1 + (ends[0] if odd else left)) * channels)
    return 64 * -(-w.patch // 16)


def _cmsis_conv(node: Node) -> list[int]:
    w, is_mve = Window.of(node), node.kernels.core == "mve"
    is_grouped = w.input[2] != node["weights"].shape[3]
    if node["input"].dtype == "INT16":
        return _requests(64 * -(-w.patch // 8) if is_mve else 4 * w.patch)
    if w.is_plain and w.dilation == (1, 1) and not is_grouped:
        return []
    return _requests(_cmsis_columns(w, is_grouped) if is_mve else 16 * -(-w.patch // 4))


def _cmsis_depthwise(node: Node) -> list[int]:
    w, core, is_int4 = Window.of(node), node.kernels.core, node["weights"].dtype == "INT4"
    (_, _, channels), taps, (_, _, made) = w.input, math.prod(w.filter), w.output
    is_single = channels == made and node["input"].shape[0] == 1 and w.dilation == (1, 1)
    if core == "mve" and channels == 1 < made and not is_int4:
        is_copy = w.is_plain and w.dilation == (1, 1)
        return _requests((0 if is_copy else 64 * -(-taps // 16)) + made * taps)
    if core == "mve":
        return [496 * taps] if is_single else []
    is_three = w.filter == (3, 3) and w.pads[0].before <= 1 >= w.pads[1].before and not is_int4
    return [2 * w.patch] if is_single and (is_int4 or core == "dsp") and not is_three else []


def _cmsis_scattered(node: Node) -> list[int]:
    if node["input"].dtype != "INT8":
        return _transpose_conv_scratch(node)
    (_, _, width, channels), (made, rows, columns, _) = node["input"].shape, node["weights"].shape
    down, right = node.options["StrideH"], node.options["StrideW"]
    if max(down, right) <= 2 and channels > 16:
        patch = rows * columns * channels
        return [64 * -(-patch // 16) if node.kernels.core == "mve" else 16 * -(-patch // 4), patch * made]
    return [4 * ((width - 1) * right + max(columns, down)) * made * max(rows, down), 0]


def _is_constant(tensor: Tensor | None) -> bool:
    return tensor is None or tensor.storage is Storage.CONSTANT


def _cmsis_dense(node: Node) -> tuple[list[int], list[int]]:
    """(scratch, arrays) of a matrix product: with MVE, sums over the weights of each output, which are kept if weights
    and bias are constant. One of several rows runs as a 1 x 1 convolution."""
    made, is_int8 = sum(node["output"].shape[-1:]), node["input"].dtype == node["weights"].dtype == "INT8"
    kept = _per_scale(node) if node["input"].dtype == "INT8" else []
    if is_int8 and len(node["output"].shape) > 2 and node["weights"].shape[-1] % 4 == 0:
        return [] if kept else [8 * made], kept
    sums = _requests(4 * made) if is_int8 and node.kernels.core == "mve" else []
    is_constant = _is_constant(node["weights"]) and _is_constant(node.get("bias"))
    return ([], kept + sums) if is_constant else (sums, kept)


def _esp_int8(size_on: Mapping[str, Callable[[Window], int]]) -> Sizes:
    """Scratch for int8: the unpacked 4-bit weights, and the bytes that ``size_on`` gives for the processor."""

    def scratch(node: Node) -> list[int]:
        w, size = Window.of(node), size_on.get(node.kernels.core)
        return _int4_scratch(node) + _requests(size(w) if size else 0)

    return _only_for("INT8", scratch)


def _esp_one_by_one(w: Window, guard: int) -> int:
    """Bytes for a 1 x 1 convolution: feature map and weights with more channels, room for 16 pixels, the guard."""
    (height, width, channels), wide = w.input, align(w.input[2], 8)
    copy = height * width * wide if channels % 8 else 0
    return copy + wide * w.output[2] + (0 if height * width < 8 else 16 * wide) + guard


def _esp_conv_s3(w: Window) -> int:
    (height, width, channels), (rows, columns), (made_height, made_width, made), (down, right), *_ = w
    (above, _), (left, _) = w.pads
    if w.is_plain and w.stride == (1, 1):
        return _esp_one_by_one(w, 64)
    row = columns * channels
    if row < 16 <= w.patch:
        return 4 * made + 16 + made * align(w.patch) + 16 + align(w.patch) + 64
    padded = (width + 2 * left) * (height + 2 * above) * channels if left or above else 0
    behind = max(0, made_width * right + columns - 1 - width)
    below = max(0, made_height * down + rows - 1 - height)
    wider = (width + behind) * (height + below) * channels if behind or below else 0
    filters = rows * columns * align(channels) * made + align(row) * rows * made
    return padded + filters + wider + 64 + 4 * made


def _esp_conv_p4(w: Window) -> int:
    (height, width, channels), (rows, columns), (made_height, _, made), (down, _), *_ = w
    (above, _), (left, _) = w.pads
    if w.is_plain and w.stride == (1, 1):
        return 20 * made + 64 if channels < 16 else _esp_one_by_one(w, 32)
    is_padded = left > 0 or above > 0
    if not is_padded and columns * channels >= 16:
        return rows * columns * align(channels) * made + 32 + 4 * made
    if w.patch >= 16:
        return 4 * made + w.patch + 32
    wide = align(-(-16 // columns))
    if not is_padded:
        return 4 * made + rows * columns * wide * made + width * height * wide + 32
    across = width + 2 * left
    picture = across * (height + 2 * above) * channels
    if picture + 4 * made <= ESP32P4_CACHE:
        return picture + rows * columns * align(channels) * made + 32 + 4 * made
    filters, row, tiles = rows * columns * wide * made, across * wide, 1
    left_over = ESP32P4_CACHE - 4 * made - filters
    if 0 < rows * row <= left_over:
        tiles = min((left_over - rows * row) // (down * row) + 1, made_height)
    return ((tiles - 1) * down + rows + 2 * above) * row + filters + 32 + 4 * made


def _esp_depthwise_s3(w: Window) -> int:
    """Bytes, most of them for a copy of the feature map: with its padding, in 16 bits, or with more channels."""
    (height, width, channels), (rows, columns), (made_height, made_width, made), (down, right), *_ = w
    (above, _), (left, _) = w.pads
    multiplier = made // max(channels, 1)
    weights, picture = w.patch * multiplier, height * width * channels
    words = 2 * (weights + picture) + 32
    if multiplier == 1 and channels % 8 == 0:
        if w.filter != (3, 3):
            return words if words - 32 <= ESP32S3_WORDS else 2 * weights + 2 * width * rows * channels + 32
        below, behind = made_height * down + 2 - height, made_width * right + 2 - width
        if channels % 16 == 0:
            more = (2 * above, 2 * left) if left or above else (below, behind)
            copy = (width + more[1]) * (height + more[0]) * channels if any(more) else 0
            return weights + 16 + (copy if copy <= ESP32S3_TILE else (width + more[1]) * 3 * channels)
        if channels < 12:
            return words
        wide = align(channels)
        across, tall = width + 2 * left + max(0, behind), height + 2 * above + max(0, below)
        return 9 * wide + across * tall * wide + made_height * made_width * wide + 64
    if multiplier == 1 and channels > 3:
        wide = align(channels, 8)
        weights_and_picture = align(2 * rows * columns * wide) + 2 * height * width * wide
        made = align(weights_and_picture) + made_height * made_width * wide
        return align(made) + 12 * wide + 16
    return words if multiplier % 4 == 0 else 32


def _esp_softmax(node: Node) -> list[int]:
    is_used = node["input"].dtype == node["output"].dtype == "INT8" and node.kernels.core != "ansi"
    return _requests(4 * sum(node["input"].shape[1:2])) if is_used else []  # the second dimension, whatever it is


class Board(NamedTuple):
    """A development board. Memories in KB: the largest piece of SRAM, of which the application needs a part, external
    RAM, and flash."""

    title: str
    kernels: str
    sram: int
    psram: int
    flash: int
    source: str  # of the sizes: data sheets, reference manuals (RM) and the like


BOARDS = {
    "nano-33-ble": Board("Arduino Nano 33 BLE Sense", "cmsis-nn", 256, 0, 1024, "nRF52840 product specification"),
    "nano-rp2040": Board("Arduino Nano RP2040 Connect", "cmsis-nn:plain", 264, 0, 16384, "RP2040 data sheet"),
    "nano-esp32": Board("Arduino Nano ESP32", "esp-nn", 416, 8192, 16384, "ESP32-S3 technical reference manual"),
    "uno-r4": Board("Arduino UNO R4", "cmsis-nn", 32, 0, 256, "RA4M1 data sheet"),
    "nicla-sense": Board("Arduino Nicla Sense ME", "cmsis-nn", 64, 0, 512, "nRF52832 product specification"),
    "nicla-vision": Board("Arduino Nicla Vision", "cmsis-nn", 512, 0, 2048, "STM32H747 data sheet, AXI SRAM"),
    "portenta-h7": Board("Arduino Portenta H7", "cmsis-nn", 512, 8192, 2048, "STM32H747 data sheet, AXI SRAM"),
    "esp32": Board("ESP32-DevKitC", "esp-nn:esp32", 160, 0, 4096, "ESP-IDF, memory types: static DRAM"),
    "esp32-c3": Board("ESP32-C3-DevKitM", "esp-nn:esp32", 384, 0, 4096, "ESP32-C3 technical reference manual"),
    "esp32-s3": Board("ESP32-S3-DevKitC", "esp-nn", 416, 8192, 8192, "ESP32-S3 technical reference manual"),
    "esp32-p4": Board("ESP32-P4-Function-EV", "esp-nn:esp32p4", 768, 32768, 16384, "ESP32-P4 data sheet"),
    "pico": Board("Raspberry Pi Pico", "cmsis-nn:plain", 264, 0, 2048, "RP2040 data sheet"),
    "pico-2": Board("Raspberry Pi Pico 2", "cmsis-nn", 520, 0, 4096, "RP2350 data sheet"),
    "teensy-4.0": Board("Teensy 4.0", "cmsis-nn", 512, 0, 2048, "i.MX RT1060 RM: RAM2"),
    "teensy-4.1": Board("Teensy 4.1", "cmsis-nn", 512, 0, 8192, "i.MX RT1060 RM: RAM2"),
    "nucleo-f401re": Board("STM32 Nucleo-F401RE", "cmsis-nn", 96, 0, 512, "STM32F401xE data sheet"),
    "nucleo-f446re": Board("STM32 Nucleo-F446RE", "cmsis-nn", 128, 0, 512, "STM32F446xC/E data sheet"),
    "nucleo-l4r5zi": Board("STM32 Nucleo-L4R5ZI", "cmsis-nn", 640, 0, 2048, "STM32L4R5xx data sheet"),
    "nucleo-h743zi": Board("STM32 Nucleo-H743ZI", "cmsis-nn", 512, 0, 2048, "STM32H743 data sheet, AXI SRAM"),
    "disco-f746ng": Board("STM32F746G-DISCO", "cmsis-nn", 320, 8192, 1024, "STM32F746xx data sheet"),
    "iot01a": Board("STM32 B-L475E-IOT01A", "cmsis-nn", 96, 0, 1024, "STM32L475xx data sheet, SRAM1"),
    "n6570-dk": Board("STM32N6570-DK", "cmsis-nn:mve", 1024, 32768, 131072, "STM32N657 data sheet, AXISRAM2"),
    "xiao-nrf52840": Board("Seeed XIAO nRF52840", "cmsis-nn", 256, 0, 1024, "nRF52840 product specification"),
    "xiao-esp32s3": Board("Seeed XIAO ESP32S3", "esp-nn", 416, 8192, 8192, "ESP32-S3 technical reference manual"),
    "xiao-samd21": Board("Seeed XIAO SAMD21", "cmsis-nn:plain", 32, 0, 256, "SAM D21 data sheet"),
    "microbit-v2": Board("BBC micro:bit v2", "cmsis-nn", 128, 0, 512, "nRF52833 product specification"),
    "sparkfun-edge": Board("SparkFun Edge (Apollo3)", "cmsis-nn", 384, 0, 1024, "Apollo3 Blue data sheet"),
    "ek-ra8m1": Board("Renesas EK-RA8M1", "cmsis-nn:mve", 896, 0, 2048, "RA8M1 data sheet"),
}


####################################################################################################
# Operators, the needs: what kernels require of types, shapes and quantisation, as messages
####################################################################################################


def type_code(dtype: str) -> str:
    """Short name of a type: ``f32`` for FLOAT32, ``i8`` for INT8, ``u8`` for UINT8, ``bool`` for BOOL."""
    return dtype.lower().replace("float", "f").replace("uint", "u").replace("int", "i")


def accepts(types: str, node: Node) -> bool:
    """True if an operator's tensors have one of these combinations of types. ``f32/f32 i8/i8|i4/i32>i8`` are two: the
    types of inputs 0, 1, ... and, after ``>``, of the output, with alternatives between bars. ``*`` is any type that
    TFLM has; ``_`` and tensors that are not listed are not checked."""

    def fits(allowed: str, tensor: Tensor | None) -> bool:
        if tensor is None or allowed in ("", "_"):
            return True
        has = type_code(tensor.dtype)
        return tensor.element.tflm_bytes is not None and (allowed == "*" or has in allowed.split("|"))

    for combination in types.split():
        inputs, _, output = combination.partition(">")
        is_given = node.inputs or inputs.startswith(("*", "_")) or not inputs
        if is_given and all(map(fits, inputs.split("/"), node.inputs)) and fits(output, node.output):
            return True
    return False


def need(what: Callable[..., str]) -> Callable[..., Need]:
    """Decorator that turns ``what(node, *args)`` into ``what(*args)``, which returns a Need."""
    return lambda *args, **options: lambda node: what(node, *args, **options)


@need
def _constant(node: Node, *roles: str) -> str:
    computed = [r for r in roles if not _is_constant(node.get(r))]
    return f"its {' and '.join(computed)} must be constant" if computed else ""


@need
def _without(node: Node, *roles: str) -> str:
    given = [role for role in roles if node.get(role)]
    return f"it has an input {given[0]}, which the kernel lacks" if given else ""


@need
def _rank(node: Node, least: int, most: int) -> str:
    ranks = [len(t.shape) for t in (*node.inputs[:1], node.output) if t]
    return "" if all(least <= r <= most for r in ranks) else f"its tensors must have {least} to {most} dimensions"


@need
def _scaled(node: Node, *roles: str) -> str:
    """Tensors of these roles must have a scale and a zero point, unless they are FLOAT32."""
    bare = [t for t in map(node.get, roles) if t and t.dtype != "FLOAT32" and t.affine is None]
    return f"{shorten(bare[0].name)} has no scale and zero point" if bare else ""


@need
def _alike(node: Node, *dtypes: str, within: float = 0.0) -> str:
    """Inputs of these types must have the zero point of the output, and its scale up to ``within``."""
    scale, zero = (node.output and node.output.affine) or (0.0, 0)
    given = [t.affine or (0.0, 0) for t in node.inputs if t and t.dtype in dtypes]
    is_alike = all(abs(s - scale) <= within and z == zero for s, z in given)
    return "" if is_alike else "its inputs and its output must have the same scale and zero point"


@need
def _quantized(node: Node, **expected: tuple[float | None, int]) -> str:
    """An output of one of these types must have its zero point, and its scale unless that is None."""
    scale, zero = expected.get(node["output"].dtype, (None, None))
    has = node["output"].affine or (0.0, 0)
    if zero is None or (has[1] == zero and (scale is None or math.isclose(has[0], scale, rel_tol=1e-3))):
        return ""
    return f"its output must have {'' if scale is None else f'scale {scale} and '}zero point {zero}"


def _has_bias(node: Node) -> str:
    is_empty = len(node.inputs) == 3 and node.inputs[2] is None
    return "its bias is left out as -1, with which the kernel crashes" if is_empty else ""


def _fixed_size(node: Node) -> str:
    is_fixed = _is_constant(node.get("size"))
    return "" if is_fixed else "its size is computed, but the kernel takes that of the file for its output"


def _symmetric(node: Node) -> str:
    zeros = [t.affine[1] for t in (*node.inputs, node.output) if t and t.dtype == "INT16" and t.affine]
    return "zero points of INT16 tensors must be 0" if any(zeros) else ""


def _joined(node: Node) -> str:
    if len(node.inputs) > MAX_CONCATENATED:
        return f"it has {len(node.inputs)} inputs, and the kernel takes {MAX_CONCATENATED}"
    dtypes = {t.dtype for t in (*node.inputs, node.output) if t}
    return "its inputs are of several types" if len(dtypes) > 1 else ""


def _same_elements(node: Node) -> str:
    have, wanted = node["input"].elements, node.elements
    return "" if have == wanted else f"it makes {wanted:,} elements of {have:,}"


def _steep(node: Node) -> str:
    scale, _ = node["input"].affine or (0.0, 0)
    is_flat = node["input"].dtype == "INT8" and node.options.get("Beta", 0.0) * scale * 2**26 <= 1
    return f"its input has a scale of {scale:.2g}, so small that the kernel aborts" if is_flat else ""


def _svdf_output(node: Node) -> str:
    shape = node["input"].shape[0], node["feature"].shape[0] // node.rank
    return "" if node["output"].shape == shape else f"its output must have the shape {shape}"


####################################################################################################
# Operators, the rows: which rows of its inputs does an operator need for some of its output? Which may it overwrite?
####################################################################################################

# A region is a range of the schedule whose operators all work along the height of NHWC tensors. Run stripe by stripe,
# its inner tensors never exist whole (patches of MCUNetV2, Lin et al. 2021; Pex, Liberis and Lane 2023). The rows that
# two stripes both need, the halo, are computed again or cached (StreamNet, Zheng et al. 2023), whatever costs less.

SPLIT_DTYPES = ("FLOAT32", "INT8", "INT16", "INT32")  # supported by the kernels of SLICE, PAD and CONCATENATION
UPSAMPLING = (2, 4, 8, 16, 32)  # factors with an exact reciprocal, so that each row of a stripe keeps its source row
WRONG_SIZE = "its output does not have the size that its options make"
NO_PADS = Pads(0, 0)
ROWS_OF_PADDING = ((1, 2, "above"), (1, 3, "below"))


class Rows(NamedTuple):
    """A range of rows: the first, and the one after the last."""

    first: int
    stop: int

    @property
    def height(self) -> int:
        return self.stop - self.first


@dataclass(frozen=True)
class RowRule:
    """How an operator works along the height. Output row r reads ``window`` rows of the input, the first of which is
    ``r // repeat * stride - pad_top``; rows that do not exist are padding. A 3 x 3 window of stride 2, padded by a row:

        input    (-1)  0   1   2   3   4   5          window 3, stride 2, pad_top 1
        output    `-- row 0 --'
                           `-- row 1 --'              rows 1 to 3 of the input make row 1
    """

    sources: tuple[int, ...]  # tensors read by rows; all others are read whole
    stride: int = 1
    window: int = 1
    pad_top: int = 0  # negative: that many rows of the input are skipped
    repeat: int = 1
    width: int = 1  # columns that a window reads
    columns: Pads = NO_PADS  # of padding, on the left and right
    _: dataclasses.KW_ONLY
    # Constant inputs that depend on the number of rows: (input, entry, which of the values in Emitter.copy).
    constants: tuple[tuple[int, int, str], ...] = dataclasses.field(default=(), compare=False)
    padding: int | None = dataclasses.field(default=None, compare=False)  # of a window over a feature map
    is_max: bool = dataclasses.field(default=False, compare=False)  # padding counts as less than every element

    @property
    def pads_itself(self) -> bool:
        """True if the operator adds padding (SAME), which stripes have to add explicitly."""
        return self.padding == tflite.Padding.SAME

    def whole(self, first: int, stop: int) -> Rows:
        """The output rows, extended to a range that can be computed on its own."""
        return Rows(first // self.repeat * self.repeat, align(stop, self.repeat))

    def made(self, rows: Rows, read: Rows) -> Rows:
        """Output rows that result from reading the input rows ``read`` to get ``rows``."""
        return rows

    def span(self, first: int, stop: int, height: int) -> tuple[int, int, int, int]:
        """(first input row, stop, padding rows above, padding rows below) that these output rows read."""
        start = first // self.repeat * self.stride - self.pad_top
        end = (stop - 1) // self.repeat * self.stride - self.pad_top + self.window
        above, below = max(-start, 0), max(end - height, 0)
        return start + above, end - below, above, below


@dataclass(frozen=True)
class CutRule(RowRule):
    """An operator that works differently at the ends of its input: it reads extra rows, and the surplus output rows at
    the ends are cut off. Input row r makes output rows from ``r * pace`` on, the last one ``last`` of them."""

    pace: int = 1
    last: int = 1

    def whole(self, first: int, stop: int) -> Rows:
        return Rows(first, stop)

    def made(self, rows: Rows, read: Rows) -> Rows:
        return Rows(read.first * self.pace, (read.stop - 1) * self.pace + self.last)


def why_no_rows(tensor: Tensor) -> str:
    """Empty for an activation of known size: a batch of rows, of columns of channels or of channels only."""
    if tensor.dtype not in SPLIT_DTYPES:
        return f"TFLM cannot cut tensors of type {tensor.dtype}"
    if len(tensor.shape) < 3:
        return "it has no rows"
    is_fixed = min(tensor.shape) > 0 and set(tensor.dynamic) <= {0}  # TFLM takes the batch as it is stored
    is_map = is_fixed and len(tensor.shape) <= 4 and tensor.storage is Storage.ACTIVATION
    return "" if is_map else "it is not a feature map of a size that is known"


def has_rows(tensor: Tensor) -> bool:
    return not why_no_rows(tensor)


def is_map(tensor: Tensor) -> bool:
    """True if the tensor is a feature map of rows, columns and channels."""
    return has_rows(tensor) and len(tensor.shape) == 4


def convolution_rows(node: Node, is_average: bool = False, is_max: bool = False) -> RowRule | str:
    """The rule of a window, that of a convolution or of pooling."""
    source, output, weights, options = node["input"], node["output"], node.get("weights"), node.options
    are_maps = is_map(source) and is_map(output) and source.shape[0] == output.shape[0]
    if not options or not are_maps or (weights and len(weights.shape) != 4):
        return "its input or its options are not those of a window over a feature map"
    w = Window.of(node)
    if min(*w.filter, *w.stride, *w.dilation) < 1:
        return "its window is empty"
    is_same = options["Padding"] == tflite.Padding.SAME
    for size, made, stride, span in zip(w.input, w.output, w.stride, w.span, strict=False):
        if made != (-(-size // stride) if is_same else (size - span) // stride + 1):
            return WRONG_SIZE
    step, (rows, width), (top, below), columns = w.stride[0], w.span, *w.pads
    if is_average and any((top, below, *columns)):
        return CutRule((source.index,), 1, rows, top) if step == 1 else "its average leaves padding out"
    return RowRule((source.index,), step, rows, top, 1, width, columns, padding=options["Padding"], is_max=is_max)


maximum_rows, average_rows = partial(convolution_rows, is_max=True), partial(convolution_rows, is_average=True)


def elementwise_rows(node: Node) -> RowRule | str:
    output, rank, sources = node["output"], len(node["output"].shape), []
    for tensor in filter(None, node.inputs):
        if has_rows(tensor) and len(tensor.shape) == rank and tensor.shape[HEIGHT] == output.shape[HEIGHT]:
            sources.append(tensor.index)
        elif len(tensor.shape) >= rank - HEIGHT and tensor.shape[HEIGHT - rank] != 1:
            return "one of its inputs has other rows than its output"
    return RowRule(tuple(dict.fromkeys(sources))) if sources else "none of its inputs has the rows of its output"


def _across(node: Node, sources: Sequence[Tensor | None], axes: Sequence[int] | None) -> RowRule | str:
    """The rule of an operator that works along other axes than batch and rows."""
    tensors = [tensor for tensor in sources if tensor]
    if not axes or any(axis % max(len(tensors[0].shape), 1) <= HEIGHT for axis in axes):
        return "it works along the rows"
    for source, output in itertools.product(tensors, node.outputs):
        if not has_rows(source) or source.shape[: HEIGHT + 1] != output.shape[: HEIGHT + 1]:
            return "one of its inputs has other rows than its output"
    return RowRule(tuple(dict.fromkeys(tensor.index for tensor in tensors)))


def joined_rows(node: Node) -> RowRule | str:
    return _across(node, node.inputs, [node.options.get("Axis", 0)])


def gathered_rows(node: Node) -> RowRule | str:
    is_plain = node.options and not node.options["BatchDims"] and len(node["indices"].shape) == 1
    return _across(node, [node["table"]], [node.options["Axis"]] if is_plain else None)


def axes_rows(node: Node) -> RowRule | str:
    return _across(node, [node["input"]], (node.get("axes") or node["axis"]).values)


def padded_rows(node: Node) -> RowRule | str:
    source, values = node["input"], node["paddings"].values
    if not is_map(source) or values is None or len(values) != 8:
        return "its padding is not known before run time"
    batch, rows, columns, channels = (Pads(*values[i : i + 2]) for i in range(0, 8, 2))
    padded = tuple(d + sum(pads) for d, pads in zip(source.shape, (batch, rows, columns, channels), strict=True))
    if any(batch) or min(values) < 0 or padded != node["output"].shape:
        return f"it pads the batch, or {WRONG_SIZE}"
    if source.affine != node["output"].affine:
        return "it changes the quantisation"
    return RowRule((source.index,), pad_top=rows.before, constants=ROWS_OF_PADDING)


def slice_bounds(node: Node) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
    """(begin, size) of a SLICE per axis; None if the file does not give them."""
    source, *given = (node.get(role) for role in ("input", "begin", "size"))
    begin, size = ((tensor and tensor.values) or () for tensor in given)
    if source is None or not len(begin) == len(size) == len(source.shape):
        return None
    return begin, tuple(d - b if n == -1 else n for n, b, d in zip(size, begin, source.shape, strict=True))


def sliced_rows(node: Node) -> RowRule | str:
    source, output, bounds = node["input"], node["output"], slice_bounds(node)
    if bounds is None:
        return "what it cuts is not known before run time"
    first, rows = (values[HEIGHT] for values in bounds)
    fits = 0 <= first <= source.shape[HEIGHT] - rows and rows == output.shape[HEIGHT]
    if not fits or len(output.shape) != len(source.shape):
        return WRONG_SIZE
    return RowRule((source.index,), pad_top=-first, constants=((1, HEIGHT, ""), (2, HEIGHT, "made")))


def strided_rows(node: Node) -> RowRule | str:
    source, output, options = node["input"], node["output"], node.options
    rank, height = len(source.shape), source.shape[HEIGHT]
    values = [known for role in ("begin", "end", "strides") if (known := node[role].values) and len(known) == rank]
    if len(values) < 3 or not options or len(output.shape) != rank:
        return "what it cuts is not known before run time"
    if any(options[mask] for mask in ("EllipsisMask", "NewAxisMask", "ShrinkAxisMask", "Offset")):
        return "it changes the number of dimensions, or counts from its beginning"
    first, end, step = (v[HEIGHT] for v in values)
    first = 0 if options["BeginMask"] >> HEIGHT & 1 else max(first + height, 0) if first < 0 else first
    end = height if options["EndMask"] >> HEIGHT & 1 else end + height if end < 0 else min(end, height)
    if step < 1 or -(-(end - first) // step) != output.shape[HEIGHT]:
        return WRONG_SIZE
    return RowRule((source.index,), step, pad_top=-first, constants=((1, HEIGHT, ""), (2, HEIGHT, "read")))


def block_rows(node: Node) -> RowRule | str:
    source, block, height = node["input"], node.options.get("BlockSize", 0), node["output"].shape[HEIGHT]
    if is_map(source) and block > 0 and height == source.shape[HEIGHT] * block:
        return RowRule((source.index,), repeat=block)
    if is_map(source) and block > 0 and height * block == source.shape[HEIGHT]:
        return RowRule((source.index,), stride=block, window=block)
    return WRONG_SIZE


def scattered_rows(node: Node) -> RowRule | str:
    """Input row i adds to output rows [i * stride - pad, i * stride - pad + size of the window)."""
    source, weights, output = node["input"], node["weights"], node["output"]
    if not node.options or not is_map(source) or len(weights.shape) != 4 or node["output_shape"].values != output.shape:
        return "its input, its weights or its options are not those of a window over a feature map"
    stride, size, height = node.options["StrideH"], weights.shape[1], source.shape[HEIGHT]
    is_same = node.options["Padding"] == tflite.Padding.SAME
    if stride < 1 or output.shape[HEIGHT] != (height * stride if is_same else (height - 1) * stride + size):
        return WRONG_SIZE
    if size < stride:
        return "its windows leave rows out"
    pad = (size - stride) // 2 if is_same else 0
    above, below = (size - 1 - pad) // stride, (stride - 1 + pad) // stride
    last, rows = stride if is_same else size, ((0, HEIGHT, "made"),)
    return CutRule((source.index,), 1, above + 1 + below, above, stride, constants=rows, pace=stride, last=last)


def dense_rows(node: Node) -> RowRule | str:
    source = node["input"]
    if source.shape[:-1] != node["output"].shape[:-1] or not node.options.get("KeepNumDims"):
        return "it makes one vector of a whole feature map"
    return RowRule((source.index,))


def _factor(node: Node, is_aligned: bool) -> int | None:
    """The factor by which the height grows; None unless its reciprocal is exact in floating point."""
    before, after = (tensor.shape[HEIGHT] - is_aligned for tensor in (node["input"], node["output"]))
    factor = after // before if before else 0
    return factor if is_map(node["input"]) and factor * before == after and factor in UPSAMPLING else None


def upsampled_rows(node: Node) -> RowRule | str:
    if not node.options or node.options["AlignCorners"]:
        return "it aligns corners"
    if (factor := _factor(node, False)) is None:
        return "it does not enlarge by a power of 2"
    return RowRule((node["input"].index,), repeat=factor, constants=((1, 0, "made"),))


def interpolated_rows(node: Node) -> RowRule | str:
    """An output row is a mean of an input row and the next or, with half pixels, the previous or next one."""
    options = node.options
    if not options or (factor := _factor(node, options["AlignCorners"])) is None:
        return "it does not enlarge by a power of 2"
    above, last = int(options["HalfPixelCenters"]), 1 if options["AlignCorners"] else factor
    rows = ((1, 0, "made"),)
    return CutRule((node["input"].index,), 1, above + 2, above, factor, constants=rows, pace=factor, last=last)


# Each returns True if the output may overwrite the input at that position; it gets both tensors. They hold for the
# reference kernels, CMSIS-NN and ESP-NN, which read an element before they write it.


def over_input(node: Node, position: int, source: Tensor, output: Tensor) -> bool:
    return position == 0 and source.bytes == output.bytes and source.dtype == output.dtype


def over_any_operand(node: Node, position: int, source: Tensor, output: Tensor) -> bool:
    return position < 2 and source.shape == output.shape and source.dtype == output.dtype


def over_operand(node: Node, position: int, source: Tensor, output: Tensor) -> bool:
    """True if shape and type fit, unless the other operand is computed and broadcast, in an order of its own."""
    others = [t for i, t in enumerate(node.inputs[:2]) if i != position and t]
    is_even = all(t.shape == output.shape or t.storage is Storage.CONSTANT or t.elements == 1 for t in others)
    return is_even and over_any_operand(node, position, source, output)


def over_later_rows(node: Node, position: int, source: Tensor, output: Tensor) -> bool:
    """SLICE and GATHER: True if each output row, in order, comes from the same or a later input row."""
    rest = slice(HEIGHT + 1, None)
    if position or len(source.shape) <= HEIGHT or source.shape[0] != 1 or source.shape[rest] != output.shape[rest]:
        return False
    if node.kind.rows is sliced_rows:
        return (bounds := slice_bounds(node)) is not None and not any(bounds[0])
    rows = node["indices"].values
    is_plain = node.options.get("Axis") == HEIGHT and not node.options["BatchDims"] and source.shape == output.shape
    return is_plain and rows is not None and all(row >= i for i, row in enumerate(rows))


def bytes_read(kind: str, node: Node, tensor: Tensor) -> list[tuple[int, int]]:
    """The (first, stop) spans of the bytes of a tensor that an operator may read: of SLICE, what it cuts; of
    DYNAMIC_UPDATE_SLICE, what it does not overwrite."""
    size, width, shape = tensor.bytes or 0, tensor.element.tflm_bytes or 1, tensor.shape
    operand, update, start = (*node.inputs, None, None, None)[:3]
    at = (start and start.values) or ()
    if kind == "DYNAMIC_UPDATE_SLICE" and operand is tensor and update and len(at) == len(shape) > HEIGHT:
        first, *others = at[HEIGHT:]
        is_even = update.shape == (1, *update.shape[HEIGHT : HEIGHT + 1], *shape[HEIGHT + 1 :]) and shape[0] == 1
        if is_even and not any(others) and 0 <= first <= shape[HEIGHT] - update.shape[HEIGHT]:
            row = size // shape[HEIGHT]
            return [(0, first * row), ((first + update.shape[HEIGHT]) * row, size)]
    is_cut = kind == "SLICE" and node.get("input") is tensor and len(node.inputs) == 3
    begin, count = (slice_bounds(node) if is_cut and tensor.shape else None) or ((-1,), (0,))
    if min(begin) < 0 or min(count) < 1 or any(b + n > d for b, n, d in zip(begin, count, tensor.shape, strict=True)):
        return [(0, size)]
    steps = [math.prod(tensor.shape[axis + 1 :]) * width for axis in range(len(tensor.shape))]
    first = sum(b * step for b, step in zip(begin, steps, strict=True))
    return [(first, first + sum((n - 1) * step for n, step in zip(count, steps, strict=True)) + width)]


####################################################################################################
# Operators, the table: one row per kind, used by all other sections
####################################################################################################

_WINDOW = ("Padding", "StrideH", "StrideW")
_CONV = (*_WINDOW, "DilationHFactor", "DilationWFactor", "FusedActivationFunction")
DENSE = Options("FullyConnectedOptions", ("FusedActivationFunction", "KeepNumDims"))
CONV, DEPTHWISE = Options("Conv2DOptions", _CONV), Options("DepthwiseConv2DOptions", _CONV)
POOL = Options("Pool2DOptions", (*_WINDOW, "FilterHeight", "FilterWidth"))
INTERPOLATE = Options("ResizeBilinearOptions", ("AlignCorners", "HalfPixelCenters"))
_MASKS = ("BeginMask", "EndMask", "EllipsisMask", "NewAxisMask", "ShrinkAxisMask", "Offset")
FILTER, UNARY, BINARY, REDUCED = "input *weights bias", "input", "a b", "input axes"
RECURRENT = "input *weights *recurrent bias state"
BIDIRECTIONAL = f"{RECURRENT} *weights_back *recurrent_back bias_back state_back auxiliary *auxiliary_a *auxiliary_b"
_GATES = "*i_to_i *i_to_f *i_to_c *i_to_o *r_to_i *r_to_f *r_to_c *r_to_o"
_PEEPHOLES, _PROJECTION, _NORMS = "c_to_i c_to_f c_to_o", "*projection projection_bias", "norm_i norm_f norm_c norm_o"
_CELL = f"{_GATES} {_PEEPHOLES} bias_i bias_f bias_c bias_o {_PROJECTION}"
LSTM = f"input {_CELL} output_state cell_state {_NORMS}"
BIDIRECTIONAL_LSTM = f"input {_CELL} {_CELL} state cell state_back cell_back auxiliary {_GATES}"

# Types and further needs that many kernels share.
FLOAT, SMALL, REAL, NUMBER = "f32", "f32 i8", "f32 i8 i16", "f32 i8 i16 i32"
REDUCIBLE, EXTREME = "f32|i8|i16/i32", "f32|i8/i32"
CONVOLVED = "f32/f32 i8/i8 i8/i4 i16/i8"
POOLED, PICTURES = (_alike("INT8", "INT16", within=1e-6),), (_rank(4, 4),)
RESIZED, QUANTIZED_FILTER = (*PICTURES, _constant("size")), (_scaled("input", "weights"),)
PADDED = Tflm("f32|i8|i16|i32/i32", data=56, needs=(_constant("paddings"), _rank(0, 5)))
BLOCKS = Tflm(SMALL, 4, arrays=_output_shape, needs=PICTURES)
_unary = partial(Kind, UNARY, rows=elementwise_rows, in_place=over_input)
_binary = partial(Kind, BINARY, rows=elementwise_rows, in_place=over_operand)
_PER_CHANNEL = _only_for("INT8 INT16", _per_channel)
_EXTREME = Tflm(EXTREME, 1, 44, (0, 0), _reduce_scratch, needs=(_alike("INT8"),))
FRACTION = (2**-15, 0)  # quantisation of int16 outputs between -1 and 1

# fmt: off
KINDS: dict[str, Kind] = {name: kind for names, kind in {
    # windows over feature maps, matrix products
    "CONV_2D": Kind(FILTER, CONV, _by_weights(4, 1, 4), convolution_rows,
        Tflm("f32/f32 i8/i8 i8/i4 i16/i8/i32|i64", 28, 56, (0, 24), _int4_scratch, _per_channel, QUANTIZED_FILTER),
        libraries={
        "cmsis-nn": {"data": 60, "scratch": _only_for("INT8 INT16", _cmsis_conv), "arrays": _PER_CHANNEL},
        "esp-nn": {"data": 60, "scratch": _esp_int8({"esp32s3": _esp_conv_s3, "esp32p4": _esp_conv_p4})}}),
    "DEPTHWISE_CONV_2D": Kind(FILTER, DEPTHWISE, _by_weights(4, 1, 3), convolution_rows,
        Tflm(CONVOLVED, 28, 56, (0, 24), _int4_scratch, _per_channel, (*QUANTIZED_FILTER, _has_bias)), libraries={
        "cmsis-nn": {"data": 60, "scratch": _only_for("INT8", _cmsis_depthwise), "arrays": _PER_CHANNEL},
        "esp-nn": {"data": 60, "scratch": _esp_int8({"esp32s3": _esp_depthwise_s3})}}),
    "TRANSPOSE_CONV": Kind("output_shape *weights input bias", Options("TransposeConvOptions", _WINDOW),
        lambda n: n["input"].elements * math.prod(n["weights"].shape[:3]), scattered_rows,
        Tflm("_/f32/f32 _/i8/i8 _/i8/i16", 20, 72, (0, 16), _transpose_conv_scratch, _per_channel),
        libraries={"cmsis-nn": {"data": 76, "scratch": _cmsis_scattered}}),
    "CONV_3D": Kind(FILTER, macs=_by_weights(5, 0, 4), tflm=None),
    "CONV_3D_TRANSPOSE": Kind("output_shape *weights input bias", tflm=None),
    "FULLY_CONNECTED": Kind(FILTER, DENSE, lambda n: n.elements * n["weights"].shape[-1], dense_rows,
        Tflm(CONVOLVED, 16, 48, (16, 24), _int4_scratch, _per_scale,
        since=lambda n: "2024-09" if _per_scale(n) else ""), libraries={
        "cmsis-nn": {"data": 72, "scratch": lambda n: _cmsis_dense(n)[0], "arrays": lambda n: _cmsis_dense(n)[1]}}),
    "BATCH_MATMUL": Kind("*a *b", Options("BatchMatMulOptions", ("AdjX", "AdjY")), _matmul_macs,
        registered="BatchMatMul", tflm=Tflm("f32/f32 i8/i8 i16/i16", options=3, data=16, wider=(0, 16),
        arrays=_matmul_arrays, needs=(_rank(2, 5), _symmetric), since=_since(INT16="2024-09")), libraries={
        "cmsis-nn": {"data": 36, "scratch": _only_for("INT8", lambda n: [4 * n["output"].shape[-1]], "mve")}}),
    "MAX_POOL_2D": Kind(UNARY, POOL, _pool_macs, maximum_rows, Tflm(REAL, 40, 32, needs=POOLED),
        libraries={"cmsis-nn": {"data": 36}}),
    "AVERAGE_POOL_2D": Kind(UNARY, POOL, _pool_macs, average_rows, Tflm(REAL, 40, 32, needs=POOLED), libraries={
        "cmsis-nn": {"data": 36, "scratch": _only_for("INT8 INT16", lambda n: [4 * n["input"].shape[3]], "dsp")}}),
    "L2_POOL_2D": Kind(UNARY, POOL, _pool_macs, tflm=Tflm(FLOAT, 40, arrays=_output_shape, needs=PICTURES)),
    # lookups and recurrent operators
    "EMBEDDING_LOOKUP": Kind("indices *table", tflm=Tflm("i32/f32>f32 i32/i8>f32|i8",
        arrays=lambda n: [*_output_shape(n), 2 * n.target.pointer])),
    "GATHER": Kind("*table indices", Options("GatherOptions", ("Axis", "BatchDims")), rows=gathered_rows,
        in_place=over_later_rows, tflm=Tflm(EXTREME, 8, arrays=_output_shape)),
    "GATHER_ND": Kind("table indices", tflm=Tflm(EXTREME, arrays=_output_shape)),
    "SVDF": Kind("input *feature *time bias state", Options("SVDFOptions", ("Rank",)), _recurrent_macs,
        tflm=Tflm("f32/f32/f32/f32/f32 i8/i8/i8/i32/i8 i8/i8/i16/i32/i16", 12, 36, scratch=_svdf_scratch,
        needs=(_svdf_output,)), libraries={"cmsis-nn": {"data": 40,
        "arrays": _only_for("INT8", lambda n: [4 * n["feature"].shape[0]], "mve")}}),
    "RNN UNIDIRECTIONAL_SEQUENCE_RNN": Kind(RECURRENT, macs=_recurrent_macs, tflm=None),
    "BIDIRECTIONAL_SEQUENCE_RNN": Kind(BIDIRECTIONAL, tflm=None),
    "LSTM": Kind(LSTM, macs=_recurrent_macs, tflm=None),
    "UNIDIRECTIONAL_SEQUENCE_LSTM": Kind(LSTM, macs=_recurrent_macs, tflm=Tflm("f32/f32 i8/i8 i16/i8", 16, 688, (0, 0),
        _lstm_scratch, needs=(_without(*f"{_PEEPHOLES} projection projection_bias {_NORMS}".split()),)),
        libraries={"cmsis-nn": {"data": 912,
        "scratch": lambda n: _lstm_scratch(n)[: 4 if n["input"].dtype == "FLOAT32" else 3],
        "arrays": lambda n: _requests(  # sums over the weights of each gate
            *[{"INT8": 4, "INT16": 8}.get(n["input"].dtype, 0) * n["output_state"].shape[-1]] * 8)}},
        registered="UnidirectionalSequenceLSTM"),
    "BIDIRECTIONAL_SEQUENCE_LSTM": Kind(BIDIRECTIONAL_LSTM, tflm=None),
    # element by element
    "ABS RSQRT": _unary(tflm=Tflm(REAL, data=28)),
    "QUANTIZE": _unary(in_place=lambda n, i, x, y: x.bytes == y.bytes and {x.dtype, y.dtype} == {"INT8", "UINT8"},
        tflm=Tflm("f32>i8|i16 i8>i8|i16|i32|u8 i16>i8|i16|i32 i32>i8|i16 u8>i8", data=32, needs=(_scaled("output"),))),
    "DEQUANTIZE": Kind(UNARY, rows=elementwise_rows, tflm=Tflm("i8|i16|u8>f32", data=32)),
    "RELU": _unary(tflm=Tflm(REAL, data=28, needs=(_symmetric,), since=_since(INT16="2025-03"))),
    "RELU6": _unary(tflm=Tflm(REAL, data=8, since=_since(INT16="2024-09"))),
    "RELU_N1_TO_1": Kind(UNARY, rows=elementwise_rows, tflm=None),
    "LEAKY_RELU": _unary(tflm=Tflm(REAL, 4, 24)),
    "LOGISTIC": _unary(tflm=Tflm(REAL, data=16, needs=(_quantized(INT8=(None, -128), INT16=FRACTION),))),
    "TANH": _unary(tflm=Tflm(REAL, data=16, needs=(_quantized(INT16=FRACTION),))),
    "HARD_SWISH": _unary(tflm=Tflm(SMALL, data=20)),
    "ADD": _binary(macs=lambda n: n.elements * (len(n.inputs) - 1), tflm=Tflm(NUMBER, 8, 60)),
    "ADD_N": Kind(macs=lambda n: n.elements * (len(n.inputs) - 1),
        tflm=Tflm(SMALL, arrays=_if_quantized(40), scratch=lambda n: [n.target.pointer * len(n.inputs)])),
    "MUL": _binary(tflm=Tflm("f32/f32 i8/i8 i16/i16 i32/i32", 4, 36, needs=(_symmetric,))),
    "SUB": _binary(tflm=Tflm(NUMBER, 8, 52, since=_since(INT32="2025-06"))),
    "DIV": _binary(tflm=Tflm("f32 i8 i32", 4, 28)),
    "SQUARED_DIFFERENCE": _binary(tflm=Tflm("f32/f32 i8/i8 i16/i16 i32/i32", data=112, needs=(_symmetric,))),
    "PRELU": Kind(BINARY, rows=elementwise_rows,
        tflm=Tflm("f32/f32 i8/i8 i16/i8", data=28, needs=(_rank(1, 4),), since=_since(INT16="2025-09"))),
    "CEIL COS EXP FLOOR LOG NEG ROUND SIN SQRT SQUARE": _unary(tflm=Tflm(FLOAT)),
    "ELU": _unary(tflm=Tflm(SMALL, data=256)),
    "MAXIMUM MINIMUM": _binary(in_place=over_any_operand,
        tflm=Tflm("f32 i8 i16 i32 i64", since=_since(INT16="2024-09"))),
    "EQUAL NOT_EQUAL": Kind(BINARY, tflm=Tflm("f32 i8 i32 i64 bool", data=32)),
    "LESS LESS_EQUAL GREATER_EQUAL": Kind(BINARY, tflm=Tflm("f32 i8 i32 i64", data=32)),
    "GREATER": Kind(BINARY, tflm=Tflm("f32 i8 i16 i32 i64", data=32, since=_since(INT16="2025-03"))),
    "CAST": Kind(tflm=Tflm("f32|i8|i16|i32|u32|bool>f32|i8|i16|i32|u32|bool", 8)),
    "FLOOR_DIV FLOOR_MOD": Kind(tflm=Tflm(FLOAT)),
    "LOGICAL_NOT": Kind(tflm=Tflm("bool")),
    "LOGICAL_AND LOGICAL_OR": Kind(),
    "SELECT_V2": Kind(in_place=lambda n, i, x, y: i == 1 and x.shape == y.shape and x.bytes == y.bytes,  # the values
        tflm=Tflm("bool/f32/f32 bool/i8/i8 bool/i16/i16", data=1)),
    "ZEROS_LIKE": Kind(tflm=Tflm("f32 i8 i32 i64")),
    # along axes
    "MEAN": Kind(REDUCED, macs=lambda n: n["input"].elements, rows=axes_rows,
        tflm=Tflm(REDUCIBLE, 1, 44, (0, 0), _sum_scratch)),
    "SUM": Kind(REDUCED, rows=axes_rows, tflm=Tflm(REDUCIBLE, 1, 44, (0, 0), _sum_scratch)),
    "REDUCE_MAX": Kind(REDUCED, rows=axes_rows, tflm=_EXTREME),
    "REDUCE_MIN": Kind(REDUCED, rows=axes_rows, tflm=_EXTREME._replace(since=_since("2025-08"))),
    "REDUCE_ALL": Kind(REDUCED, tflm=Tflm("bool/i32", 1, 44, (0, 0), _reduce_scratch, since=_since("2026-01"))),
    "SOFTMAX": Kind(UNARY, Options("SoftmaxOptions", ("Beta",)), rows=elementwise_rows,
        tflm=Tflm("f32>f32 i8>i8|i16 i16>i16", 4, 56, (0, 24),
        arrays=lambda n: [2 * 513] * 2 if n["input"].dtype == "INT16" else [],
        needs=(_quantized(INT8=(2**-8, -128), INT16=FRACTION), _steep)), libraries={
        "cmsis-nn": {"data": 64}, "esp-nn": {"data": 64, "scratch": _esp_softmax}}),
    "LOG_SOFTMAX": Kind(UNARY, rows=elementwise_rows,
        tflm=Tflm(SMALL, arrays=_if_quantized(28, 12), needs=(_quantized(INT8=(2**-4, 127)),))),
    "ARG_MAX ARG_MIN": Kind("input axis", rows=axes_rows, tflm=Tflm("f32/i32>i32 i8/i32>i32", 4)),
    "CUMSUM": Kind(tflm=Tflm("f32/i32 i8/i32", 2, arrays=_if_quantized(36)), registered="CumSum"),
    "L2_NORMALIZATION": Kind(UNARY, rows=elementwise_rows, tflm=Tflm(SMALL, 4, 4, needs=(_rank(0, 4),))),
    # moving data
    "CONCATENATION": Kind("", Options("ConcatenationOptions", ("Axis",)), rows=joined_rows,
        tflm=Tflm("f32 i8 i16 i32 i64 bool", 8, 24, (0, 56), needs=(_joined, _alike("INT8"), _symmetric))),
    "PAD": Kind("input paddings", Options("PadOptions"), rows=padded_rows, tflm=PADDED),
    "PADV2": Kind("input paddings value", Options("PadV2Options"), rows=padded_rows, tflm=PADDED, registered="PadV2"),
    "MIRROR_PAD": Kind("input paddings",
        tflm=Tflm("f32|i8/i32|i64", 4, 20, scratch=lambda n: [4 * len(n["input"].shape)] * 2)),
    "SLICE": Kind("input begin size", Options("SliceOptions"), in_place=over_later_rows, rows=sliced_rows,
        tflm=Tflm("f32|i8|i16|i32|bool/i32|i64/i32|i64", needs=(_rank(1, 5), _fixed_size))),
    "STRIDED_SLICE": Kind("input begin end strides", Options("StridedSliceOptions", _MASKS), rows=strided_rows,
        tflm=Tflm("f32|i8|i16|i32|bool/i32/i32/i32", 24, 84,
        needs=(_rank(0, 4), _constant("begin", "end", "strides")))),
    "SPLIT": Kind("axis input", rows=axes_rows, tflm=Tflm("_/f32|i8|i16|i32", 4, needs=(_constant("axis"),))),
    "SPLIT_V": Kind("input sizes axis", rows=axes_rows, tflm=Tflm(NUMBER, 4, needs=(_constant("axis"),))),
    "PACK": Kind(tflm=Tflm("f32 i8 i16 i32 i64", 8, since=_since(INT16="2025-08"))),
    "RESHAPE": Kind("input shape", Options("ReshapeOptions"), in_place=over_input,
        tflm=Tflm("*", 36, arrays=lambda n: _output_shape(n) if n["output"].is_completed else [],
        needs=(_same_elements,))),
    "RESIZE_NEAREST_NEIGHBOR": Kind("input size", Options("ResizeNearestNeighborOptions", ("AlignCorners",)),
        rows=upsampled_rows, tflm=Tflm("f32|i8|i16/i32", 2, needs=RESIZED)),
    "RESIZE_BILINEAR": Kind("input size", INTERPOLATE, rows=interpolated_rows, tflm=Tflm(EXTREME, 2, needs=RESIZED)),
    "TRANSPOSE": Kind("input perm",
        tflm=Tflm("f32|i8|i16", needs=(_constant("perm"), _rank(1, 5)), since=_since(INT16="2025-03"))),
    "EXPAND_DIMS": Kind("input axis", in_place=over_input, tflm=Tflm("f32|i8|i16/i32", needs=(_constant("axis"),))),
    "BROADCAST_TO": Kind("input shape", tflm=Tflm("*/i32|i64", needs=(_constant("shape"), _rank(0, 5)))),
    "TILE": Kind("input multiples", tflm=None),
    "FILL": Kind("dims value", tflm=Tflm("i8|i16|i32|i64/f32|i8|i32", needs=(_constant("dims"),))),
    "BATCH_TO_SPACE_ND": Kind("input block crops", tflm=Tflm(SMALL, needs=(_rank(3, 4),))),
    "SPACE_TO_BATCH_ND": Kind("input block paddings", tflm=Tflm(SMALL, data=4, needs=(_rank(3, 4),))),
    "DEPTH_TO_SPACE": Kind(UNARY, Options("DepthToSpaceOptions", ("BlockSize",)), rows=block_rows, tflm=BLOCKS),
    "SPACE_TO_DEPTH": Kind(UNARY, Options("SpaceToDepthOptions", ("BlockSize",)), rows=block_rows, tflm=BLOCKS),
    "BROADCAST_ARGS": Kind(tflm=Tflm("i32/i32 i64/i64")),
    "DYNAMIC_UPDATE_SLICE": Kind(in_place=over_input,
        tflm=Tflm("f32|i8|i16|i32/_/i32|i64", since=_since(LOOPS_SINCE))),
    "SQUEEZE": Kind("input", in_place=over_input, tflm=Tflm(options=36)),
    "REVERSE_V2": Kind(tflm=Tflm("f32|i8|i16|i32|i64|u8|bool/i32", since=_since("2025-07"))),
    "SHAPE": Kind(tflm=Tflm("*>i32", 4)),
    "UNPACK": Kind(tflm=Tflm(NUMBER, 8, since=_since(INT16="2025-03"))),
    # subgraphs, state, side effects
    "IF": Kind(options=Options("IfOptions"), tflm=Tflm("bool", 8, 8)),
    "WHILE": Kind(options=Options("WhileOptions"), tflm=Tflm(options=8, data=8)),
    "CALL_ONCE": Kind(options=Options("CallOnceOptions"), tflm=Tflm(options=4, data=8), effect=(EVERYTHING, True)),
    "VAR_HANDLE": Kind(options=Options("VarHandleOptions", ("Container", "SharedName")),
        tflm=Tflm(options=8, data=4, wider=(8, 0))),
    "READ_VARIABLE": Kind("handle", tflm=Tflm("resource"), effect=(VARIABLE, False)),
    "ASSIGN_VARIABLE": Kind("handle value", tflm=Tflm("resource|i32", wider=(0, 4)), effect=(VARIABLE, True)),
    "HASHTABLE HASHTABLE_IMPORT": Kind(effect=("hash tables", True), tflm=None),
    "HASHTABLE_FIND HASHTABLE_SIZE": Kind(effect=("hash tables", False), tflm=None),
    "RANDOM_UNIFORM RANDOM_STANDARD_NORMAL MULTINOMIAL": Kind(effect=("random numbers", True), tflm=None),
    "CALL": Kind(options=Options("CallOptions"), tflm=None),
    "STABLEHLO_COMPOSITE": Kind(options=Options("StableHLOCompositeOptions"), tflm=None),
    "STABLEHLO_WHILE": Kind(options=Options("StablehloWhileOptions"), tflm=None),
    "STABLEHLO_REDUCE": Kind(options=Options("StablehloReduceOptions"), tflm=None),
    "STABLEHLO_REDUCE_WINDOW": Kind(options=Options("StablehloReduceWindowOptions"), tflm=None),
    "STABLEHLO_SORT": Kind(options=Options("StablehloSortOptions"), tflm=None),
    "STABLEHLO_SCATTER": Kind(options=Options("StablehloScatterOptions"), tflm=None),
}.items() for name in names.split()}
UNKNOWN_KIND = Kind(tflm=None)

DECODE = "TFLM_DECODE"  # custom operator that decodes weights from codebooks and indices

# What custom operators share is unknown, so all have this effect.
_custom = partial(Kind, inputs=UNARY, effect=("custom operators", True))
ACCELERATORS = ("ethos-u",)  # their operators address the memory of their scratch tensors as the compiler planned it
CUSTOM_KINDS = {
    "ethos-u": _custom(registered="EthosU",
        tflm=Tflm(needs=(lambda node: "only builds for that accelerator have its kernel",))),
    "TFLite_Detection_PostProcess": _custom(inputs="boxes scores anchors", registered="DetectionPostprocess",
        tflm=Tflm("f32/f32", data=112, scratch=_detection_scratch)),
    "CIRCULAR_BUFFER": _custom(tflm=Tflm("i8>i8", data=8)),
    "SignalDelay": _custom(tflm=Tflm("i16>i16", data=20, wider=(0, 12),
        arrays=lambda n: _rings(n, n["input"].shape[-1] + n.custom["delay_length"]))),
    "SignalEnergy": _custom(tflm=Tflm("i16>u32", data=8)),
    "SignalFftAutoScale": _custom(tflm=Tflm("i16>i16")),
    "SignalFilterBank": _custom(tflm=Tflm("u32/i16/i16/i16/i16/i16>u64", data=36, wider=(0, 28),
        arrays=lambda n: [8 * (n.custom["num_channels"] + 1)])),
    "SignalFilterBankLog": _custom(tflm=Tflm("u32>i16", data=8)),
    "SignalFilterBankSpectralSubtraction": _custom(tflm=Tflm("u32>u32", data=44, wider=(0, 12),
        arrays=lambda n: [4 * n.custom["num_channels"]])),
    "SignalFilterBankSquareRoot": _custom(tflm=Tflm("u64/i32>u32")),
    "SignalFramer": _custom(tflm=Tflm("i16>i16", data=28, wider=(0, 12),
        arrays=lambda n: _rings(n, align(n.custom["frame_size"], max(n.custom["frame_step"], 1))))),
    "SignalIrfft": _custom(tflm=Tflm("i16>i16 i32>i32 f32>f32", data=24, wider=(0, 8), arrays=_fft_state)),
    "SignalOverlapAdd": _custom(tflm=Tflm("i16>i16 f32>f32", data=24, wider=(0, 8), arrays=_overlaps)),
    "SignalPCAN": _custom(tflm=Tflm("u32/u32/i16>u32", data=4), registered="PCAN"),
    "SignalRfft": _custom(tflm=Tflm("i16>i16 i32>i32 f32>f32", 0, 32, (0, 16),
        lambda n: [n.custom["fft_length"] * (n["input"].element.tflm_bytes or 0)], _fft_state,
        since=_since("2026-01"))),
    "SignalStacker": _custom(tflm=Tflm("i16>i16", data=36, wider=(0, 20), arrays=lambda n: [_ring(
        n, n.custom["num_channels"] * (n.custom["stacker_left_context"] + n.custom["stacker_right_context"] + 1))])),
    "SignalWindow": _custom(tflm=Tflm("i16/i16>i16", data=8)),
    DECODE: Kind("encoded ancillary", registered="Decode", tflm=Tflm(  # pointers, and states of tables
        arrays=lambda n: [n.target.pointer * len(n.outputs), *[72 if n.target is BITS_64 else 36] * len(n.outputs)],
        since=_since(DECODE_SINCE))),
}
# fmt: on
UNKNOWN_CUSTOM_KIND = _custom(tflm=None)


def kind_of(operator: Operator) -> Kind:
    if operator.is_custom:
        return CUSTOM_KINDS.get(operator.kind, UNKNOWN_CUSTOM_KIND)
    return KINDS.get(operator.kind, UNKNOWN_KIND)


def node_of(subgraph: Subgraph, operator: Operator, target: Target = BITS_32) -> Node:
    inputs = tuple(subgraph.tensors[i] if i >= 0 else None for i in operator.inputs)
    outputs = tuple(subgraph.tensors[i] for i in operator.writes)
    return Node(kind_of(operator), inputs, outputs, operator.options, operator.custom_options, subgraph.kernels, target)


def may_overwrite(node: Node, position: int) -> bool:
    """True if the output may be computed in place of that input."""
    source, output, rule = node.inputs[position], node.output, node.kind.in_place
    if rule is not None and source is not None and output is not None and source.storage is Storage.ACTIVATION:
        with contextlib.suppress(LookupError):  # an input that the rule asks for is missing
            return rule(node, position, source, output)
    return False


def multiply_accumulates(subgraph: Subgraph, operator: Operator) -> int:
    """Approximate MACs of an operator: exact for convolutions and matrix products, one per element read for pooling and
    MEAN, one per sum for ADD, 0 for kinds that only move or map data."""
    node = node_of(subgraph, operator)
    if not node.inputs or any(d < 0 for tensor in (*node.inputs, *node.outputs) if tensor for d in tensor.shape):
        return 0
    with contextlib.suppress(LookupError):  # an input that it needs is missing
        return node.kind.macs(node)
    return 0


def scratch_requests(subgraph: Subgraph, operator: Operator, target: Target = BITS_32) -> list[int]:
    """Bytes of each scratch buffer of a kernel, in its order. Raises ArenaError if inputs or options do not fit."""
    node = node_of(subgraph, operator, target)
    try:
        requests = node.kernel.scratch(node) if node.kernel and node.output else []
        if all(isinstance(size, int) and 0 <= size <= MAX_ELEMENTS for size in requests):
            return requests
    except (ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError, struct.error):
        pass
    what = f"operator {operator.index} ({shorten(operator.kind)})"
    raise ArenaError(f"the inputs or options of {what} are not what its kernel needs")


####################################################################################################
# Operators, the time: estimated instructions of kernels
####################################################################################################

# Linear in what an operator does, fitted to instructions that an emulated Cortex-M executed: tflite-micro at 90b983c
# (August 2026) and CMSIS-NN at 99f736a (July 2026), gcc 12 -O2 -DNDEBUG; 1,684 single operators and 18 models per build
# (tests/benchmarks/instructions.py). Without -DNDEBUG, reference kernels take five times as many.

TIMED_CORES = {"dsp": "dsp", "mve": "mve", "esp32s3": "dsp", "esp32p4": "dsp"}  # of others: the reference kernels
TIMED_AS = {"": "Cortex-M4 with reference kernels", "dsp": "Cortex-M4 with CMSIS-NN", "mve": "Cortex-M55 with CMSIS-NN"}
MAX_TAPS = 1 << 12  # of a window along an axis that are counted one by one
BLOCK = 4  # output pixels that CMSIS-NN computes together with MVE; two with DSP


@cache
def _covered(source: int, made: int, stride: int, window: int, dilation: int, pad: int) -> int:
    """Along an axis, the elements under the windows of all outputs, without padding: per tap, the outputs inside."""
    if window > MAX_TAPS:  # a damaged file claims it
        return made * min(window, source)
    taps = range(-pad, min(window * dilation, source + pad) - pad, dilation)
    return sum(max(0, min(made, -((tap - source) // stride)) - max(0, -(tap // stride))) for tap in taps)


def _window_work(node: Node, reads_channels: bool = False) -> dict[str, float]:
    """Pooling and depthwise convolutions; CONV_2D ``reads_channels``, all of them for each output."""
    w, batch = Window.of(node), node["input"].shape[0]
    (height, width, depth), (rows, columns), (down, across, made), stride, dilation, _, (vertical, horizontal) = w
    read = node["weights"].shape[3] if reads_channels else 1
    over = _covered(height, down, stride[0], rows, dilation[0], vertical.before)
    inside = batch * over * _covered(width, across, stride[1], columns, dilation[1], horizontal.before)
    pixels = batch * down * across
    taps, patch, is_patched = pixels * rows * columns, rows * columns * read, max(rows, columns) > 1
    lines, line = (batch * down, across) if max(stride) > 1 and not is_patched else (1, pixels)
    pairs, blocks, tiles = pixels - lines * (line % 2), lines * (line // BLOCK), -(-patch // 16)
    return {
        "macs": inside * read * made,
        "windows": taps * made,
        "filter_rows": pixels * rows * made,
        "paired": pairs * (patch - patch % 4) * made,
        "single": (pixels - pairs) * (patch - patch % 4) * made,
        "tail": pixels * (patch % 4) * made,
        "odd": inside * (made % 4),
        "unpaired": pixels * patch * (made % 2),
        "made": made,
        "weights": patch * made,
        "gathered": taps * read * is_patched,
        "taps": taps * is_patched,
        "tiles": blocks * tiles * made,
        "single_tiles": (pixels - blocks * BLOCK) * tiles * made,
        "blocks": blocks * made,
        "singles": (pixels - blocks * BLOCK) * made,
        "vectors": taps * -(-made // 16),
        "columns": batch * over * across * made,
        "quads": batch * over * across * -(-made // 4),
        "quad_macs": taps * -(-made // 4),
        "read": inside * depth,
        "pixels": pixels,
    }


def _product_work(node: Node) -> dict[str, float]:
    made, read = node["weights"].shape[-2:]
    rows = node.elements // max(made, 1)
    return {
        "macs": rows * made * read,
        "tail": rows * made * (read % 4),
        "tiles": rows * (made // 4) * -(-read // 16),
        "single_tiles": rows * (made % 4) * -(-read // 16),
        "blocks": rows * (made // 4),
        "singles": rows * (made % 4),
    }


def _select_work(node: Node) -> dict[str, float]:
    shape, condition = node["output"].shape, node.inputs[0].shape if node.inputs and node.inputs[0] else ()
    condition = (1,) * (len(shape) - len(condition)) + condition
    if math.prod(condition) == node.elements:
        return {"each": node.elements}
    last = max((axis for axis, size in enumerate(condition) if size != 1), default=-1)
    return {"thin": node.elements} if shape[-1:] == (1,) else {"runs": math.prod(shape[: last + 1])}


def _update_work(node: Node) -> dict[str, float]:
    update = node.inputs[1] if len(node.inputs) > 1 else None
    shape = update.shape if update else (1,)
    return {"update": math.prod(shape), "runs": sum(math.prod(shape[:axis]) for axis in range(1, len(shape)))}


def _broadcast_work(node: Node) -> dict[str, float]:
    shape, source = node["output"].shape, node["input"].shape
    source = (1,) * (len(shape) - len(source)) + source
    last = max((axis for axis, size in enumerate(shape) if source[axis] != size), default=0)
    return {"copies": sum(math.prod(source[:axis]) * shape[axis] for axis in range(last + 1))}


def _lines(node: Node) -> int:
    """Elements of the output along the axes before that of the options."""
    return math.prod(node["output"].shape[: node.options.get("Axis", 0) % max(len(node["output"].shape), 1)])


WORK: dict[str, Callable[[Node], dict[str, float]]] = {
    "CONV_2D": partial(_window_work, reads_channels=True),
    **dict.fromkeys(("DEPTHWISE_CONV_2D", "MAX_POOL_2D", "AVERAGE_POOL_2D"), _window_work),
    "FULLY_CONNECTED": _product_work,
    "CONCATENATION": lambda n: {"inputs": len(n.inputs), "runs": len(n.inputs) * _lines(n)},
    "SELECT_V2": _select_work,
    "DYNAMIC_UPDATE_SLICE": _update_work,
    "BROADCAST_TO": _broadcast_work,
    "TRANSPOSE_CONV": lambda n: {"macs": n["input"].elements * math.prod(n["weights"].shape[:3])},
    "SVDF": lambda n: {"macs": n["feature"].elements, "time_macs": n["time"].elements},
    "GATHER": lambda n: {"runs": n["indices"].elements * _lines(n)},
    "PAD": lambda n: {"lines": math.prod(n["input"].shape[:-2]), "copied": n["input"].elements},
    DECODE: lambda n: {
        "outputs": len(n.outputs),
        "channels": sum(max(len(o.quantization.scales), 1) if o.quantization else 1 for o in n.outputs),
    },
}


def work_of(kind: str, node: Node, core: str) -> tuple[str, dict[str, float]]:
    """(the row of INSTRUCTIONS for an operator, what it does). Raises LookupError or ValueError if it is damaged."""
    source, output = next(filter(None, node.inputs), None), node.output
    moved = output if kind in ("SELECT_V2", DECODE) else source
    dtype = moved.dtype if moved else ""
    last = output.shape[-1] if output and output.shape else 1
    width = (output.element.tflm_bytes or 1) if output else 1
    work: dict[str, float] = {"one": 1, "out": node.elements, "bytes": node.elements * width}
    work |= {"rows": node.elements / max(last, 1), "read": source.elements if source else 0}
    kind = "PAD" if kind == "PADV2" else kind
    work |= WORK.get(kind, lambda node: {})(node)
    form, weights = "", node.get("weights")
    if dtype == "INT8" and core and weights and kind == "CONV_2D" and weights.shape[1:3] == (1, 1):
        form = " 1x1"
    elif dtype == "INT8" and core and weights and kind == "DEPTHWISE_CONV_2D":
        batch, channels = node["input"].shape[::3]
        if [node.options.get(f"Dilation{axis}Factor", 1) for axis in "HW"] != [1, 1]:
            form = " generic"
        elif core == "mve" and channels == 1 < last:
            form = " as CONV_2D"
        elif (batch, channels) != (1, last):
            form = " generic" if last // max(channels, 1) % 4 else " by 4"
        elif core == "dsp" and weights.shape[1:3] == (3, 3):
            form = " 3x3"
    elif dtype == "INT8" and core == "mve" and weights and kind == "FULLY_CONNECTED":
        form = "" if weights.storage is Storage.CONSTANT else " decoded"
    typed = "" if dtype == "INT8" else f" {type_code(dtype)}"
    return next(key for key in (kind + form + typed, kind, "") if key in INSTRUCTIONS), work


def instructions(kind: str, node: Node) -> int:
    """Estimated instructions of one execution of an operator, by the nearest kernels that were measured; for WHILE,
    what is neither in its condition nor in its body, without its iterations."""
    core = TIMED_CORES.get(node.kernels.core, "")
    with contextlib.suppress(LookupError, ValueError, TypeError, ZeroDivisionError):  # it is damaged
        row, work = work_of(kind, node, core)
        return int(sum(value * work.get(name, 0) for name, value in _coefficients(row, core)))
    return 0


@cache
def _coefficients(row: str, core: str) -> list[tuple[str, float]]:
    columns = INSTRUCTIONS[row]
    words = columns[max(list(TIMED_AS).index(core) - 3 + len(columns), 0)].split()
    return [(name, float(value)) for value, name in zip(words[::2], words[1::2], strict=True)]


# Coefficients by kind, form and type (int8, unless it is named), for each of TIMED_AS: three, or two where those of the
# first two are alike, or one.
# fmt: off
INSTRUCTIONS: dict[str, tuple[str, ...]] = {
    "": ("10 out 300 one",),
    "ADD": ("81.3 out 635 one", "13.8 out 662 one"),
    "ADD f32": ("14.3 out 356 one",),
    "ADD i32": ("6 out 313 one", "5 out 321 one"),
    "ASSIGN_VARIABLE": ("264 one",),
    "AVERAGE_POOL_2D": ("7.37 read 61.3 out 36 pixels 256 one", "6.31 read 10.9 out 140 pixels 535 one",
        "25.5 vectors 160 pixels 9.12 out 42.7 one"),
    "AVERAGE_POOL_2D f32": ("8.39 read 33.6 out 44.6 pixels 300 one", "6.48 read 34.2 out 45.9 pixels 309 one"),
    "BROADCAST_TO": ("0.533 bytes 33.2 copies 529 one",),
    "CALL_ONCE": ("131 one",),
    "CONCATENATION": ("0.528 bytes 32.5 runs 137 inputs 259 one",),
    "CONV_2D": ("5.99 macs 33.5 windows 27.1 filter_rows 77.7 out 559 one",
        "1.6 paired 2.75 single 3.56 tail 3.28 gathered 47.9 taps 48.3 out 1020 one",
        "11.2 tiles 4.79 single_tiles 53.6 blocks 50.1 singles 32.8 taps"),
    "CONV_2D 1x1": ("1.4 paired 1.83 single 2.73 tail 5.95 unpaired 42.1 out 44.4 made 2.95 weights 388 one",
        "11 tiles 4.78 single_tiles 58 blocks 26.5 singles 506 one"),
    "CONV_2D f32": ("4.99 macs 24.8 windows 31.1 filter_rows 43 out 309 one",
        "4.99 macs 29.3 windows 29.6 filter_rows 45.7 out 368 one",
        "3.98 macs 30.9 windows 17.4 filter_rows 51.5 out 358 one"),
    "CONV_2D i16": ("9.97 macs 36.5 windows 15.7 filter_rows 128 out 411 one",
        "1.88 paired 4.79 single 4.47 tail 48.5 taps 57.5 out 946 one",
        "22.4 tiles 29.2 single_tiles 154 blocks 25.9 taps"),
    "DEPTHWISE_CONV_2D": ("19.5 macs 8.05 windows 14.2 filter_rows 113 out 902 one",
        "6.88 windows 37 taps 8.06 odd 47.9 out 799 one", "6.79 vectors 20.7 taps 2.74 quad_macs 8.92 out 1190 one"),
    "DEPTHWISE_CONV_2D 3x3": ("2.83 macs 7.65 odd 26.1 quads 31.2 out 622 one",),
    "DEPTHWISE_CONV_2D as CONV_2D": ("16.2 tiles 51.5 blocks 41.1 singles 20.3 taps 116 pixels 1570 one",),
    "DEPTHWISE_CONV_2D by 4": ("3.61 macs 5.47 columns 51.3 out 1340 one", "3.39 macs 3.73 columns 26.8 out 2090 one"),
    "DEPTHWISE_CONV_2D f32": ("7.31 macs 13.4 windows 20.5 filter_rows 59.6 out 1800 one",
        "7.35 macs 13.6 windows 18.1 filter_rows 53.5 out 1970 one"),
    "DEPTHWISE_CONV_2D generic": ("11.4 macs 32 columns 77.5 out 2050 one", "10.3 macs 32.8 columns 83.6 out 327 one"),
    "DEPTHWISE_CONV_2D i16": ("19.7 macs 13.8 windows 129 out 1900 one", "11.8 macs 3.26 windows 149 out 2960 one",
        "10 macs 2.92 windows 144 out 2910 one"),
    "DEQUANTIZE": ("105 out 141 one", "8 out 198 one"),
    "DYNAMIC_UPDATE_SLICE": ("0.604 update 56.5 runs 526 one",),
    "FULLY_CONNECTED": ("6.63 macs 60.5 out 429 one", "1.91 macs 4.31 tail 49.9 out 454 one",
        "30.1 tiles 12 single_tiles 54.7 blocks 72.3 singles 441 one"),
    "FULLY_CONNECTED decoded": ("59.6 tiles 22.3 single_tiles 95.9 blocks 34.3 singles 639 one",),
    "FULLY_CONNECTED f32": ("5 macs 21 out 410 one", "4 macs 25 out 398 one"),
    "FULLY_CONNECTED i16": ("9 macs 63 out 419 one", "2.37 macs 59.2 out 336 one", "0.821 macs 50.1 out 368 one"),
    "GATHER": ("0.527 bytes 27.4 runs 261 one",),
    "HARD_SWISH": ("83.7 out 210 one",),
    "HARD_SWISH f32": ("14 out 206 one",),
    "LEAKY_RELU": ("50.8 out 234 one",),
    "LOGISTIC": ("360 out 147 one",),
    "LOGISTIC f32": ("77.8 out 206 one", "51 out 198 one"),
    "MAXIMUM": ("10 out 359 one", "7.5 out 550 one", "1.1 out 560 one"),
    "MAX_POOL_2D": ("10 read 70.8 out 20.5 pixels 227 one", "7.98 read 0.451 out 153 pixels 525 one",
        "19.5 vectors 101 pixels 153 one"),
    "MAX_POOL_2D f32": ("10.5 read 29.1 out 60.6 pixels 259 one",),
    "MEAN": ("131 read 24.6 out 704 one", "133 read 31.8 out 921 one"),
    "MEAN f32": ("66.1 read 109 out 650 one",),
    "MINIMUM": ("10 out 359 one", "7.5 out 550 one", "1.1 out 560 one"),
    "MUL": ("51.5 out 616 one", "36 out 672 one", "6.8 out 684 one"),
    "MUL f32": ("15.6 out 606 one", "13.9 out 572 one"),
    "MUL i32": ("13 out 588 one", "11 out 594 one"),
    "PAD": ("12 copied 23.4 out 15.6 rows 432 one", "0.537 bytes 81.4 lines 457 one", "0.172 bytes 34.2 lines 365 one"),
    "PAD f32": ("14.5 copied 22.2 out 13.7 rows 430 one", "14.6 copied 25.7 out 16.1 rows 445 one"),
    "QUANTIZE": ("43.4 out 139 one",),
    "QUANTIZE f32": ("34.2 out 213 one", "14 out 202 one"),
    "QUANTIZE u8": ("5 out 147 one",),
    "READ_VARIABLE": ("0.543 bytes 181 one",),
    "RESHAPE": ("164 one",),  # in place, as planned; else half of one more per byte
    "RESIZE_BILINEAR": ("72.4 out 613 one",),
    "RESIZE_NEAREST_NEIGHBOR": ("0.495 bytes 67.1 rows 488 one", "0.525 bytes 50.1 rows 497 one"),
    "SELECT_V2": ("0.505 out 83.2 runs 69.9 thin 8.15 each 786 one",),
    "SLICE": ("4.11 out 8.11 rows 494 one", "3.12 out 8.21 rows 506 one"),
    "SOFTMAX": ("383 out",),
    "SOFTMAX f32": ("89.4 out 241 one", "54.3 out 242 one"),
    "STRIDED_SLICE": ("1.09 out 66.3 rows 695 one",),
    "SUB": ("90.5 out 609 one",),
    "SUB f32": ("14.3 out 356 one",),
    "SUB i32": ("12 out 334 one",),
    "SVDF": ("9.29 macs 16.6 time_macs 101 out 882 one", "1.91 macs 13 time_macs 82.2 out 929 one",
        "0.78 macs 5.66 time_macs 34.8 out 864 one"),
    "TANH": ("367 out 169 one",),
    "TANH f32": ("100 out 150 one",),
    "TFLM_DECODE": ("3.38 out 29.3 channels 219 outputs", "8.32 out 40.4 channels 210 outputs"),
    "TFLM_DECODE f32": ("12.5 out 212 channels",),
    "TRANSPOSE": ("6.84 out 1080 one", "6.35 out 718 one", "5.21 out 749 one"),
    "VAR_HANDLE": ("58 one",),
    "WHILE": ("1135 one",),
}
# fmt: on
ITERATION, CARRIED = 245, 595  # instructions of WHILE per iteration, and per iteration and tensor that it carries


####################################################################################################
# Rejections: why TFLM does not run a model
####################################################################################################


def operator_refusal(subgraph: Subgraph, operator: Operator) -> str:
    """Why TFLM rejects an operator, judging by types, shapes and quantisation; empty if it accepts it."""
    node = node_of(subgraph, operator)
    kernel = node.kind.tflm
    if operator.kind in subgraph.kernels.assumed:
        return ""
    if kernel is None:
        return "there is no such kernel"
    if not accepts(kernel.types, node):
        given = "/".join(type_code(t.dtype) if t else "_" for t in node.inputs)
        given += f">{type_code(node.output.dtype)}" if ">" in kernel.types and node.output else ""
        return f"its kernel takes {' or '.join(kernel.types.split())}, not {given}{_advice(node)}"
    unsized = [i for i in operator.writes if min(subgraph.tensors[i].shape, default=1) < 1]
    if unsized and subgraph.tensors[unsized[0]].shape != (0,):
        return "the shape of its output is not known before it runs"
    try:
        why = next(filter(None, (need(node) for need in kernel.needs)), "")
        return why or why_older(subgraph.kernels, kernel.since(node))
    except (LookupError, TypeError):
        return "an input is missing"


def why_older(kernels: Kernels, since: str, what: str = "its kernel") -> str:
    """Why the TFLM that was named lacks what came in a month; empty if it has it."""
    return f"{what} came in {month_text(since)}, after --tflm {kernels.tflm}" if since > kernels.tflm > "" else ""


def month_text(month: str) -> str:
    """``November 2025`` for ``2025-11``."""
    return time.strftime("%B %Y", time.strptime(month, "%Y-%m"))


def required_tflm(graph: ModelGraph) -> tuple[str, list[str]]:
    """(month of the first TFLM that has all kernels of a model, the kinds of operators that came then); empty if all
    are older than 2024."""
    found: dict[str, set[str]] = defaultdict(set)
    for subgraph, operator in graph.operators:
        with contextlib.suppress(LookupError, TypeError):
            found[(kind_of(operator).tflm or PLAIN_KERNEL).since(node_of(subgraph, operator))].add(operator.kind)
    newest = max(found, default="")
    return newest, sorted(found[newest]) if newest else []


def _advice(node: Node) -> str:
    """How to convert the model instead, for types that converters often write; may be empty."""
    dtypes = [t.dtype for t in node.inputs if t]
    if "FLOAT16" in dtypes:
        return " (convert without float16 weights)"
    if dtypes[:1] == ["FLOAT32"] and "INT8" in dtypes:
        return " (hybrid: convert with full integer quantisation, or with none)"
    return " (quantise to int8)" if "UINT8" in dtypes else ""


def numbered(places: Sequence[str], most: int | None = None) -> str:
    """``operators 3, 5 and 2 more``; at most ``most`` of them are named."""
    more = f" and {len(places) - most} more" if most is not None and len(places) > most else ""
    return f"operator{'s' if len(places) > 1 else ''} {', '.join(places[:most])}{more}"


def refusals(graph: ModelGraph) -> list[str]:
    """Why TFLM with its reference kernels rejects a model, one sentence per reason; empty if it seems to run. Covers
    all subgraphs, called or not, as TFLM does; kernels may still reject what the table does not know."""
    found: dict[tuple[str, str], list[str]] = defaultdict(list)
    for subgraph, operator in graph.operators:
        if why := operator_refusal(subgraph, operator):
            where = f" of subgraph {subgraph.index}" if subgraph.index else ""
            found[operator.kind, why].append(f"{operator.index}{where}")
    reasons = [f"{shorten(kind)}: {why} ({numbered(places, MAX_LISTED)})" for (kind, why), places in found.items()]
    tensors = [tensor for subgraph in graph.subgraphs for tensor in subgraph.tensors]
    unsized = sorted({tensor.dtype for tensor in tensors if tensor.element.tflm_bytes is None})
    reasons += [f"it has tensors of type {dtype}" for dtype in unsized]
    outside = sum(graph.content(tensor).is_external for tensor in tensors)
    why = f"external weights of {outside} tensors, which TFLM does not find: it would allocate memory"
    return reasons + ([f"{why} for it and compute with what is there; -o FILE writes it inside"] if outside else [])


####################################################################################################
# Reading: tables -> graph, with every check on what the tables say; the memory plan that a file may fix
####################################################################################################

PLAN_HEADER = 3  # words of a memory plan before its offsets: version and subgraphs, unused; number of offsets
PLANNED_AT_RUN_TIME = -1  # in place of an offset
MAX_RANK = 64  # dimensions
MAX_KIND = 1000  # bytes of the name of a custom operator
SMALL_CONSTANT = 1024  # bytes of the largest constant of integers whose values are kept
DTYPES = tuple(ELEMENT_TYPES)
EXTERNAL_BUFFER = 10  # slot of a tensor, newer than the bindings: its data is in another file
COUNTED_ONCE = "what a loop runs counted once"
COMPILED = "an accelerator depends on its memory plan"
LOOPED = "the model's loops depend on its memory plan"


def planned_offsets(graph: ModelGraph) -> dict[tuple[int, int], int]:
    """Offsets that the file fixes: (subgraph, tensor) -> bytes. Raises ArenaError if its plan is for another model."""
    if graph.plan is None:
        return {}
    tensors = [(s.index, t.index) for s in graph.subgraphs for t in s.tensors]
    offsets = graph.plan[PLAN_HEADER:]
    planned = graph.plan[PLAN_HEADER - 1] if len(graph.plan) >= PLAN_HEADER else 0
    if planned != len(tensors) or len(offsets) < len(tensors):
        have = f"has {min(planned, len(offsets))} offsets" if planned == len(tensors) else f"is for {planned} tensors"
        raise ArenaError(f"the memory plan in the file {have}, but the model has {len(tensors)} tensors")
    return {key: offset for key, offset in zip(tensors, offsets, strict=True) if offset != PLANNED_AT_RUN_TIME}


def is_compiled(graph: ModelGraph) -> bool:
    """True if an accelerator addresses memory by the plan in the file, so that nothing may move."""
    return graph.plan is not None and any(operator.kind in ACCELERATORS for _, operator in graph.operators)


def is_loop(operator: Operator) -> bool:
    return operator.kind == "WHILE" and len(operator.callees) == 2


def looped_operators(graph: ModelGraph) -> int:
    """Number of WHILE that carry tensors at the same offset outside and inside the body, by the plan in the file."""
    try:
        offsets = planned_offsets(graph)
    except ArenaError:
        return 0

    def is_looped(caller: Subgraph, operator: Operator) -> bool:
        body = graph.subgraphs[operator.callees[1]]
        pairs = zip(operator.outputs, body.inputs, strict=False)
        return any(offsets.get((caller.index, a), -1) == offsets.get((body.index, b), -2) for a, b in pairs)

    return sum(is_looped(*where) for where in graph.operators if is_loop(where[1]))


def why_not_rewritten(graph: ModelGraph) -> str:
    """Why the operators cannot be moved or replaced; empty if they can."""
    if is_compiled(graph) or looped_operators(graph):
        return COMPILED if is_compiled(graph) else LOOPED
    if graph.metadata_content(CONTROL_DEPENDENCIES) is not None:
        return f"metadata {CONTROL_DEPENDENCIES!r} refers to the numbers of its operators"
    return ""


def is_ordered(subgraph: Subgraph) -> bool:
    """True if every tensor is written once, and before it is read, as in all files of converters."""
    known = set(subgraph.inputs)
    for operator in subgraph.operators:
        known.update(operator.reads)
        if not known.isdisjoint(operator.writes):
            return False
        known.update(operator.writes)
    return True


def reshaped(source: tuple[int, ...], target: tuple[int, ...]) -> tuple[int, ...]:
    """The target shape; a single -1 in it is filled in, as the runtimes do it."""
    rest = math.prod(d for d in target if d != -1)
    if target.count(-1) != 1 or rest <= 0 or min(source, default=1) < 0:
        return target
    return tuple(math.prod(source) // rest if d == -1 else d for d in target)


def read_model(data: Bytes, kernels: Kernels = REFERENCE) -> ModelGraph:
    """Read the tables of a .tflite file; a memory map stays on disk. Raises ModelError if damaged or not a model."""
    return read_graph(File.read(data), kernels)


def read_graph(file: File, kernels: Kernels = REFERENCE) -> ModelGraph:
    """The model graph of an unpacked file. Raises ModelError as :func:`read_model` does."""
    try:
        return _Reader(file).read().on(kernels)
    except (struct.error, ValueError, TypeError, OverflowError, MemoryError) as error:
        if isinstance(error, ModelError):
            raise
        raise ModelError("the file is damaged: its tables make no sense") from error


def custom_kind(code: Table) -> str:
    """The name of a custom operator, by its code in the file."""
    return printable(str(code["CustomCode"][:MAX_KIND], "utf-8", "replace")) or "CUSTOM"


class _Reader:
    """Builds the graph in one pass over the tables, which are sound; indices may not be, so each is checked."""

    def __init__(self, file: File) -> None:
        self.file, self.model = file, file.model
        self.notes: dict[str, None] = {}  # an ordered set
        self.texts: dict[int, str] = {}  # by the id of the file's view, which is the same where a text is shared
        # Limits in bytes, as in _Unpacker, for vectors that are shared and texts that overlap.
        self.left = math.inf if file.is_changed else len(file.source)
        self.letters = 4 * self.left  # a text or two of damaged length are still read
        self.buffers = tuple(map(self.content, self.model["Buffers"]))
        self.kinds = list(map(self.operator_kind, self.model["OperatorCodes"]))

    def read(self) -> ModelGraph:
        if not self.model["Subgraphs"]:
            raise ModelError("the model has no subgraph, so there is nothing to run")
        subgraphs = tuple(self.subgraph(table, i) for i, table in enumerate(self.model["Subgraphs"]))
        metadata = tuple((self.text(entry["Name"]), entry["Buffer"]) for entry in self.model["Metadata"])
        for _, buffer in metadata:
            if not 0 <= buffer < len(self.buffers):
                raise ModelError(f"the file is damaged: metadata refers to buffer {buffer}, which is not there")
        graph = ModelGraph(subgraphs, self.buffers, metadata, notes=tuple(self.notes))
        content = graph.metadata_content(OFFLINE_PLAN)
        if content is None:
            return graph
        count = min(PLAN_HEADER + sum(len(s.tensors) for s in subgraphs), content.size // 4)
        return dataclasses.replace(graph, plan=tuple(content.data[: 4 * count].view("<i4").tolist()))

    def text(self, value: Bytes) -> str:
        if id(value) not in self.texts and len(value) <= self.letters:
            self.letters -= len(value)
            self.texts[id(value)] = printable(str(value, "utf-8", "replace"))
        return self.texts.get(id(value), "")

    def vector(self, table: Table, field: str) -> tuple[Any, ...]:
        values = table[field]
        self.left -= 4 * len(values)
        if self.left < 0:
            raise ModelError(TOO_MANY_ITEMS)
        return tuple(values.tolist()) if len(values) else ()

    def content(self, buffer: Table) -> Content:
        if buffer["Offset"] + buffer["Size"] > len(self.file.source):
            raise ModelError("the file is cut short: the data of an external buffer is after its end")
        return Content(self.file.content(buffer), is_external=buffer["Offset"] > 1 and not self.file.is_changed)

    def operator_kind(self, code: Table) -> tuple[str, bool]:
        """(name, is_custom). Files before 2020 have only the one-byte deprecated code, some newer only the full."""
        from tflite.utils import BUILTIN_OPCODE2NAME

        number = max(code["BuiltinCode"], code["DeprecatedBuiltinCode"])
        if number == tflite.BuiltinOperator.CUSTOM:
            return custom_kind(code), True
        return BUILTIN_OPCODE2NAME.get(number, f"BUILTIN_{number}"), False

    def subgraph(self, table: Table, index: int) -> Subgraph:
        tables = table["Tensors"]
        inputs, outputs = self.vector(table, "Inputs"), self.vector(table, "Outputs")
        operators = tuple(self.operator(operator, i) for i, operator in enumerate(table["Operators"]))
        groups = [("input", inputs, 0), ("output", outputs, 0)]
        groups += [(op.kind, op.inputs + op.outputs + op.intermediates, -1) for op in operators]
        for what, group, lowest in groups:
            for i in (i for i in group if not lowest <= i < len(tables)):
                place = f"tensor {i} of {len(tables)} in subgraph {index}"
                raise ModelError(f"the file is damaged: {what} refers to {place}")
        handles = {i for op in operators if op.variable for i in op.outputs}
        given = set(inputs)
        shapes = [self.vector(tensor, "Shape") for tensor in tables]
        for op in operators:
            if op.kind == "RESHAPE" and op.inputs and op.outputs:
                shapes[op.outputs[0]] = reshaped(shapes[op.inputs[0]], shapes[op.outputs[0]])
        tensors = [self.tensor(tensor, i, shapes[i], i in given, i in handles) for i, tensor in enumerate(tables)]
        return Subgraph(index, self.text(table["Name"]), tuple(tensors), operators, inputs, outputs)

    def tensor(self, table: Table, index: int, shape: tuple[int, ...], is_input: bool, is_handle: bool) -> Tensor:
        name, buffer, number = self.text(table["Name"]), table["Buffer"], table["Type"]
        if not 0 <= buffer < max(len(self.buffers), 1):  # buffer 0 means "no data", even where it does not exist
            raise ModelError(f"the file is damaged: tensor {index} refers to buffer {buffer}, which is not there")
        dtype = DTYPES[number] if 0 <= number < len(DTYPES) else f"TYPE_{number}"
        signature = self.vector(table, "ShapeSignature")
        dynamic = tuple(sorted({i for dims in (shape, signature) for i, d in enumerate(dims) if d < 0}))
        content = self.buffers[buffer] if buffer else NO_CONTENT
        has_content = content.size > 0 or EXTERNAL_BUFFER in table.unknown
        storage = Storage.STATE if table["IsVariable"] or is_handle else Storage.ACTIVATION
        if has_content and not (is_input or table["IsVariable"]):  # TFLM gives a variable memory whatever its content
            storage = Storage.CONSTANT
        elements = math.prod(map(abs, shape)) if len(shape) <= MAX_RANK else MAX_ELEMENTS + 1
        if elements > MAX_ELEMENTS:
            raise ModelError(f"the file is damaged: tensor {index} claims an impossible shape")
        bits = ELEMENT_TYPES.get(dtype, UNKNOWN_TYPE).bits
        size = None if bits is None or min(shape, default=0) < 0 else (elements * bits + 7) // 8
        if storage is Storage.ACTIVATION and size is None:
            why = f"its type is {dtype}" if bits is None else "its shape is only known at run time"
            self.notes[f"the size of tensor {index} ({shorten(name)}) is unknown, since {why}; it counts as 0 B"] = None
        elif storage is Storage.ACTIVATION and dynamic:
            self.notes["dimensions that are only known at run time (-1) are counted as stored in the file"] = None
        values = None
        if storage is Storage.CONSTANT and dtype in ("INT32", "INT64") and size == content.size <= SMALL_CONSTANT:
            values = tuple(content.data.view("<i4" if dtype == "INT32" else "<i8").tolist())
        quantization, known = None, table["Quantization"]
        if known is not None and len(known["Scale"]):
            scales, zeros = (self.vector(known, field) for field in ("Scale", "ZeroPoint"))
            quantization = Quantization(scales, zeros, known["QuantizedDimension"])
        is_sparse, completed = table["Sparsity"] is not None, shape != tuple(table["Shape"])
        return Tensor(
            index, name, dtype, shape, storage, buffer, size, dynamic, is_sparse, completed, quantization, values
        )

    def operator(self, table: Table, index: int) -> Operator:
        if not 0 <= table["OpcodeIndex"] < len(self.kinds):
            raise ModelError(f"the file is damaged: operator {index} has an operator code that is not there")
        kind, is_custom = self.kinds[table["OpcodeIndex"]]
        inputs, outputs, inner = (self.vector(table, field) for field in ("Inputs", "Outputs", "Intermediates"))
        custom = np.asarray(table["CustomOptions"], np.uint8).tobytes() if is_custom else b""
        operator = Operator(index, kind, is_custom, inputs, outputs, inner, custom_options=custom)
        name, fields = kind_of(operator).options
        content = (table[f"BuiltinOptions{number}"] for number in ("", "2"))
        options = next((options for options in content if options is not None and options.kind == name), None)
        if options is None or not name:
            return operator
        callees = tuple(options[field] for field in layout(name) if "Subgraph" in field)
        for callee in callees:
            if not 0 <= callee < len(self.model["Subgraphs"]):
                raise ModelError(f"the file is damaged: {kind} runs subgraph {callee}, which is not there")
        plain = {field: bytes(v) if isinstance(v := options[field], memoryview) else v for field in fields}
        return dataclasses.replace(operator, options=plain, callees=callees)


def decode_weights(tensor: Tensor, stored: np.ndarray) -> np.ndarray:
    """The elements of a weight tensor, in its shape, from its bytes (uint8). int4 comes as int8, low nibble first."""
    if tensor.dtype == "INT4":
        nibbles = np.stack([stored << 4, stored & 0xF0], axis=1).reshape(-1)[: tensor.elements]
        return (nibbles.view(np.int8) >> 4).reshape(tensor.shape)
    return stored.view(tensor.element.numpy or "u1").reshape(tensor.shape)


def encode_weights(tensor: Tensor, values: np.ndarray) -> np.ndarray:
    """The reverse of :func:`decode_weights`."""
    if tensor.dtype == "INT4":
        nibbles = np.append(values.reshape(-1).view(np.uint8) & 0x0F, np.zeros(tensor.elements % 2, np.uint8))
        return nibbles[0::2] | nibbles[1::2] << 4
    return np.ascontiguousarray(values).reshape(-1).view(np.uint8)


####################################################################################################
# Lifetimes: which tensors are alive when, and how many bytes that is
####################################################################################################


class Interval(NamedTuple):
    """``size`` bytes of memory at times ``first`` to ``last`` inclusive, at address ``offset`` once that is known."""

    size: int
    first: int
    last: int
    offset: int | None = None


class Profile:
    """Total bytes of the intervals alive at each time, from one sweep over their ends."""

    def __init__(self, intervals: Iterable[tuple[int, ...] | Interval]) -> None:
        change: dict[int, int] = defaultdict(int)
        for size, first, last, *_ in intervals:
            change[first] += size
            change[last + 1] -= size
        self.times = sorted(change)
        self.live = list(itertools.accumulate(change[time] for time in self.times))

    def at(self, time: int) -> int:
        rank = bisect.bisect_right(self.times, time)
        return self.live[rank - 1] if rank else 0

    @property
    def peak(self) -> int:
        return max(self.live, default=0)


def alive(intervals: Mapping[int, Interval]) -> Iterator[tuple[int, ...]]:
    """Yield, for each time from 0 on, the sorted keys of the intervals alive then."""
    born, dead = defaultdict(list), defaultdict(list)
    for key, interval in intervals.items():
        born[max(interval.first, 0)].append(key)
        dead[interval.last + 1].append(key)
    live: set[int] = set()
    for now in itertools.count():
        live.update(born[now])
        live.difference_update(dead[now])
        yield tuple(sorted(live))


class Step(NamedTuple):
    """Working set of one operator: the sorted ids of the tensors alive while it runs, and their total bytes."""

    operator: Operator
    live: tuple[int, ...]
    bytes: int  # with ``callee_bytes``
    callee_bytes: int = 0  # the peak of the subgraph that the operator runs


@dataclass(frozen=True)
class Schedule:
    """Operators of a subgraph in file order with their working sets; ``peak`` is the largest, in bytes."""

    subgraph: Subgraph
    steps: tuple[Step, ...]
    peak: int


BEFORE = -1  # the time before the first operator runs


class Shared(NamedTuple):
    """Tensors of loops that alias each other by the plan in the file, with their subgraphs. ``elsewhere`` take no
    memory of their own; of ``handed`` (subgraph, input, output), the output takes over the input's memory."""

    elsewhere: frozenset[tuple[int, int]] = frozenset()
    handed: frozenset[tuple[int, int, int]] = frozenset()


NOT_SHARED = Shared()


def tensor_intervals(
    subgraph: Subgraph, size: Callable[[Tensor], int] = lambda tensor: tensor.ram_bytes, shared: Shared = NOT_SHARED
) -> dict[int, Interval]:
    """Lifetimes of tensors that take working memory; time k is that of operator k in the file. Graph inputs, and what
    is read or returned but never written before, start BEFORE; graph outputs end one step after the last operator."""
    uses = [(subgraph.inputs, BEFORE, BEFORE)]  # (tensors, when they begin if that was not earlier, when they are used)
    for step, operator in enumerate(subgraph.operators):
        uses += [(operator.reads, BEFORE, step), (operator.writes, step, step)]
    first: dict[int, int] = {}
    last: dict[int, int] = {}
    for tensors, begin, now in [*uses, (subgraph.outputs, BEFORE, len(subgraph.operators))]:
        for i in tensors:
            first.setdefault(i, begin)
            last[i] = now
    for index, below, above in shared.handed:
        if index == subgraph.index and last[below] == first[above]:
            last[below] -= 1
    own = (i for i in sorted(first) if (subgraph.index, i) not in shared.elsewhere)
    sizes = {i: size(subgraph.tensors[i]) for i in own}
    return {i: Interval(bytes, first[i], last[i]) for i, bytes in sizes.items() if bytes > 0}


MAX_CALL_DEPTH = 64  # subgraphs that run each other; no real model comes near


def callees_first(graph: ModelGraph) -> list[int]:
    """Subgraph indices, callees first. Raises ModelError if calls are recursive or deeper than MAX_CALL_DEPTH."""
    callees = {s.index: {c for op in s.operators for c in op.callees} for s in graph.subgraphs}
    try:
        order = list(graphlib.TopologicalSorter(callees).static_order())
    except graphlib.CycleError as error:
        culprit = min(error.args[1])
        raise ModelError(f"the file is damaged: subgraph {culprit} runs itself, so memory has no bound") from None
    depth: dict[int, int] = {}
    for index in order:
        depth[index] = 1 + max((depth[c] for c in callees[index]), default=0)
    if max(depth.values()) > MAX_CALL_DEPTH:
        raise ModelError(f"subgraphs run each other more than {MAX_CALL_DEPTH} deep, which no runtime survives")
    return order


def schedule_model(graph: ModelGraph, shared: Shared = NOT_SHARED) -> tuple[Schedule, ...]:
    """The schedule of every subgraph, by its index. An operator runs its callees one at a time (a branch, or condition
    and body), so the largest peak counts."""
    schedules: dict[int, Schedule] = {}
    for index in callees_first(graph):
        subgraph, steps = graph.subgraphs[index], list[Step]()
        intervals = tensor_intervals(subgraph, shared=shared)
        for operator, live in zip(subgraph.operators, alive(intervals), strict=False):
            callee = max((schedules[c].peak for c in operator.callees), default=0)
            steps.append(Step(operator, live, sum(intervals[i].size for i in live) + callee, callee))
        # An input that no operator reads is in no working set, but the caller still has to fill it.
        given = sum(interval.size for interval in intervals.values() if interval.first == BEFORE)
        schedules[index] = Schedule(subgraph, tuple(steps), max([given, *(step.bytes for step in steps)]))
    return tuple(schedules[subgraph.index] for subgraph in graph.subgraphs)


def resource_variables(graph: ModelGraph) -> dict[str, int]:
    """Bytes of each resource variable, by name; 0 if the model never assigns it, which still takes a slot in TFLM."""
    variables = {name: 0 for subgraph in graph.subgraphs for name in subgraph.variables.values()}
    for subgraph, operator in graph.operators:
        if kind_of(operator).effect == (VARIABLE, True) and len(operator.reads) == 2:
            handle, value = operator.reads
            if name := subgraph.variables.get(handle):
                variables[name] = max(variables.get(name, 0), subgraph.tensors[value].bytes or 0)
    return variables


def variable_tensors(graph: ModelGraph) -> list[Tensor]:
    return [t for subgraph in graph.subgraphs for t in subgraph.tensors if t.is_updated_in_place]


def iterations_of(graph: ModelGraph, operator: Operator) -> int | None:
    """Iterations of a loop that reads its condition and its next position from tables, as this tool writes it; None for
    other operators."""
    if not is_loop(operator):
        return None
    cond, body = (graph.subgraphs[callee] for callee in operator.callees)
    last = [o for o in body.operators if o.kind == "SLICE" and body.outputs[:1] == o.outputs and len(o.inputs) == 3]
    if [(o.kind, len(o.inputs)) for o in cond.operators] != [("SLICE", 3)] or not last:
        return None
    if last[0].inputs[1:2] != body.inputs[:1]:
        return None
    goes_on = graph.content(cond.tensors[cond.operators[0].inputs[0]]).data
    positions = graph.content(body.tensors[last[0].inputs[0]]).data
    step = int.from_bytes(bytes(positions[:4]), "little")
    return (len(goes_on) - 1) // step if step else None


def executions(graph: ModelGraph) -> list[tuple[Subgraph, Operator, int]]:
    """The operators, each with how often it runs; where that is not known, once per operator that runs its subgraph."""
    times = [int(index == 0) for index in range(len(graph.subgraphs))]
    for index in reversed(callees_first(graph)):
        for operator in graph.subgraphs[index].operators:
            iterations = iterations_of(graph, operator)
            for place, callee in enumerate(operator.callees):
                is_condition = iterations is not None and place == 0  # it is also what ends the loop
                times[callee] += times[index] * ((iterations or 1) + is_condition)
    return [(subgraph, operator, times[subgraph.index]) for subgraph, operator in graph.operators]


def has_unknown_loops(graph: ModelGraph) -> bool:
    return any(is_loop(operator) and iterations_of(graph, operator) is None for _, operator in graph.operators)


def model_macs(graph: ModelGraph) -> int:
    """Multiply-accumulates of an inference; of the branches of IF, all count."""
    return sum(multiply_accumulates(s, operator) * times for s, operator, times in executions(graph))


def operator_instructions(graph: ModelGraph, subgraph: Subgraph, operator: Operator) -> int:
    """Estimated instructions of one execution of an operator, without the subgraphs that it runs."""
    own = instructions(operator.kind, node_of(subgraph, operator))
    return own + (iterations_of(graph, operator) or 0) * (ITERATION + CARRIED * len(operator.inputs))


def model_instructions(graph: ModelGraph) -> int:
    """Estimated instructions of an inference; of the branches of IF, all count."""
    return sum(operator_instructions(graph, s, operator) * times for s, operator, times in executions(graph))


def state_bytes(graph: ModelGraph) -> int:
    """Bytes that persist between inferences: variable tensors, and each resource variable once."""
    return sum(t.bytes or 0 for t in variable_tensors(graph)) + sum(resource_variables(graph).values())


def parameter_bytes(graph: ModelGraph, operators: Iterable[tuple[Subgraph, Operator]]) -> int:
    """Bytes of flash for the constants of these operators; a shared buffer counts once."""
    read = (subgraph.tensors[i] for subgraph, operator in operators for i in operator.reads)
    return sum(graph.buffers[b].size for b in {t.buffer for t in read if t.storage is Storage.CONSTANT})


####################################################################################################
# Ordering, the problem: tasks that produce and read buffers, those that can be fused, bounds by minimum cuts
####################################################################################################

# A set of tasks is an int (bit t = task t) where there are few of them, and a column of numpy uint64 words in the
# sweep, where there are millions. A *down-set* contains all predecessors of its members: what has run at some moment.
# live(S), the bytes alive after S, is submodular, since each buffer's part of it is the cut of one directed hyperedge:
#
#     live(S) + live(T)  >=  live(S and T) + live(S or T)
#
# All sections on ordering rely on that.


class Buffer(NamedTuple):
    """Bytes alive from the producer on (None: the start) until the last reader has run (``kept``: to the end)."""

    size: int
    producer: int | None
    readers: tuple[int, ...]
    kept: bool = False


def members(task_set: int) -> Iterator[int]:
    """The tasks of a set, in ascending order."""
    while task_set:
        lowest = task_set & -task_set
        yield lowest.bit_length() - 1
        task_set ^= lowest


def _closure(direct: Sequence[int], order: Iterable[int]) -> list[int]:
    sets = [0] * len(direct)
    for task in order:
        for other in members(direct[task]):
            sets[task] |= sets[other] | 1 << other
    return sets


@dataclass(frozen=True)
class OrderingProblem:
    """Tasks 0, 1, 2, ... (a valid order) to run in as little memory as possible. While a task runs, it takes
    ``transient`` bytes on top of all that is alive; ``precedence`` holds (before, after) pairs besides the buffers."""

    transient: tuple[int, ...]
    buffers: tuple[Buffer, ...]
    precedence: tuple[tuple[int, int], ...] = ()

    @property
    def n(self) -> int:
        return len(self.transient)

    @cached_property
    def edges(self) -> set[tuple[int, int]]:
        return {(b.producer, r) for b in self.buffers if b.producer is not None for r in b.readers} | {*self.precedence}

    @cached_property
    def predecessors(self) -> list[int]:
        sets = [0] * self.n
        for before, after in self.edges:
            sets[after] |= 1 << before
        return sets

    @cached_property
    def successors(self) -> list[int]:
        sets = [0] * self.n
        for before, after in self.edges:
            sets[before] |= 1 << after
        return sets

    @cached_property
    def ancestors(self) -> list[int]:
        return _closure(self.predecessors, range(self.n))

    @cached_property
    def descendants(self) -> list[int]:
        return _closure(self.successors, reversed(range(self.n)))

    @cached_property
    def inputs(self) -> list[list[tuple[Buffer, int]]]:
        """Per task, the buffers that it reads, each with the set of its other readers."""
        lists: list[list[tuple[Buffer, int]]] = [[] for _ in range(self.n)]
        for buffer in self.buffers:
            readers = sum(1 << task for task in buffer.readers)
            for task in buffer.readers:
                lists[task].append((buffer, readers ^ 1 << task))
        return lists

    @cached_property
    def produced(self) -> list[int]:
        """Per task, the bytes of its outputs."""
        sums = [0] * self.n
        for buffer in self.buffers:
            if buffer.producer is not None:
                sums[buffer.producer] += buffer.size
        return sums

    @cached_property
    def demand(self) -> list[int]:
        """Per task, the bytes that it needs on top of what is alive before it: outputs and transient."""
        return list(map(sum, zip(self.produced, self.transient, strict=True)))

    @cached_property
    def floor(self) -> int:
        """Lower bound on the peak of any order: the most that one task needs for its inputs and demand, in bytes."""
        return max((self.demand[t] + sum(b.size for b, _ in self.inputs[t]) for t in range(self.n)), default=0)

    def needs(self, order: Sequence[int]) -> list[int]:
        """Bytes in use while each task of the order runs; their maximum is the peak."""
        place = {task: i for i, task in enumerate(order)}
        intervals = [Interval(size, place[task], place[task]) for task, size in enumerate(self.transient)]
        for b in self.buffers:
            first = BEFORE if b.producer is None else place[b.producer]
            last = self.n if b.kept else max((place[t] for t in b.readers), default=first)
            intervals.append(Interval(b.size, first, last))
        profile = Profile(intervals)
        return [profile.at(i) for i in range(self.n)]

    def peak(self, order: Sequence[int]) -> int:
        return max(self.needs(order), default=0)

    def renumbered(self, number: Mapping[int, int], demand: Sequence[int]) -> OrderingProblem:
        """The problem whose tasks, with a demand each, consist of the tasks with their number. What has a number below
        0 has run before, and what has one above all runs later."""
        transient, buffers, passing = [*demand], [], 0  # bytes that are alive all the time
        for size, producer, readers, kept in self.buffers:
            first = -1 if producer is None else max(number[producer], -1)
            users = {number[t] for t in readers}
            kept |= max(users, default=-1) >= len(demand)
            inside = tuple(sorted(t for t in users if first < t < len(demand)))
            if 0 <= first < len(demand) and (inside or kept):  # else it is alive only in its task, and in its demand
                buffers.append(Buffer(size, first, inside, kept))
                transient[first] -= size
            elif first < 0 and inside:
                buffers.append(Buffer(size, None, inside, kept))
            elif first < 0 and kept:
                passing += size
        pairs = {(number[a], number[b]) for a, b in self.precedence}
        inner = sorted((a, b) for a, b in pairs if 0 <= a < b < len(demand))
        return OrderingProblem(tuple(t + passing for t in transient), tuple(buffers), tuple(inner))

    def part(self, order: Sequence[int], first: int, end: int) -> OrderingProblem:
        """The problem of order[first:end], after the tasks before and before the tasks behind."""
        demand = [self.demand[task] for task in order[first:end]]
        return self.renumbered({task: place - first for place, task in enumerate(order)}, demand)


# By submodularity, whatever never raises live() may be done at once if it fits. So ``b`` follows ``a`` directly if it
# becomes ready with ``a``, its net effect is never positive, and it never needs more than ``a`` did:
#
#     live   ____a                  a
#        ___|    |__b_      =   ___|\_____     b lies in the shadow of a: there is no reason to wait
#
# The same backwards in time tells when ``a`` waits until just before ``b``. (Generalises the hill-valley segments
# of Liu 1987 and the optimality-preserving fusion of Zhong et al., ICCAD 2023, to shared buffers.)


def merge_tasks(problem: OrderingProblem) -> tuple[OrderingProblem, list[list[int]]]:
    """Fuse tasks that some optimal order runs back to back; returns the smaller problem and the parts of its tasks."""
    groups, size = [[t] for t in range(problem.n)], None
    fused = {t: ([t], need) for t, need in enumerate(problem.demand)}  # the first round only drops unread buffers
    while len(fused) != size:
        size = len(fused)
        parts, demand = zip(*(fused[place] for place in sorted(fused)), strict=True)
        problem = problem.renumbered({task: i for i, tasks in enumerate(parts) for task in tasks}, demand)
        groups = [[task for part in tasks for task in groups[part]] for tasks in parts]
        fused = _fusions(problem)
    return problem, groups


def _fusions(problem: OrderingProblem) -> dict[int, tuple[list[int], int]]:
    """The tasks after one round of fusions in pairs, as (their old tasks, demand); a pair gets the number of one of its
    tasks, so that the numbers remain a valid order."""
    ancestors, descendants, produced, demand = problem.ancestors, problem.descendants, problem.produced, problem.demand
    surely, possibly = [0] * problem.n, [0] * problem.n  # bytes that a task frees
    for t, inputs in enumerate(problem.inputs):
        for buffer, others in inputs:
            if not buffer.kept:
                surely[t] += buffer.size if not others & ~ancestors[t] else 0
                possibly[t] += buffer.size if not others & descendants[t] else 0
    fused, taken = {t: ([t], need) for t, need in enumerate(demand)}, 0
    for b in range(problem.n):
        for a in members(problem.predecessors[b] & ~taken):
            follows = not problem.predecessors[b] & ~(ancestors[a] | 1 << a)
            waits = not problem.successors[a] & ~(descendants[b] | 1 << b)
            if follows and produced[b] <= surely[b] and demand[b] <= problem.transient[a] + surely[a]:
                fused[a] = [a, b], demand[a]
                del fused[b]
            elif waits and produced[a] >= surely[a] == possibly[a] and problem.transient[a] + surely[a] <= demand[b]:
                fused[b] = [a, b], demand[b] + produced[a] - surely[a]
                del fused[a]
            else:
                continue
            taken |= 1 << a | 1 << b
            break
    return fused


# While a task runs, the executed ones are a down-set S with all its predecessors but not the task. The cheapest
# such S is a minimum cut of a network with an arc per buffer:
#
#     source -> what must be inside          producer --size--> buffer --infinite--> readers, or the sink if it is kept
#     what must be outside -> sink           task --infinite--> each predecessor
#
# So the bytes of that cut and the task's own demand bound every order from below.


CUT_WORK, ARC_WORK = 5e-5, 6e-7  # seconds per minimum cut, and per arc of its network


class CutNetwork:
    """Minimum cuts of a problem: the cheapest down-set under constraints, by maximum flow."""

    def __init__(self, problem: OrderingProblem) -> None:
        self.problem, self.source, self.sink = problem, problem.n, problem.n + 1
        self.work = CUT_WORK + ARC_WORK * sum(2 + len(b.readers) for b in problem.buffers)  # per cut
        self.infinite = sum(b.size for b in problem.buffers) + 1
        arcs = [(task, before, self.infinite) for before, task in problem.edges]
        for node, b in enumerate(problem.buffers, problem.n + 2):
            arcs.append((self.source if b.producer is None else b.producer, node, b.size))
            arcs += [(node, end, self.infinite) for end in ([self.sink] if b.kept else b.readers)]
        self.arcs = np.array(arcs, dtype=np.int64).reshape(-1, 3)

    def bound(self, task: int) -> tuple[int, int]:
        """(least bytes in use while ``task`` runs, in any order; the set that has run before it in that case)."""
        from ortools.graph.python import max_flow

        Budget.spend(self.work)
        forced = [(self.source, before, self.infinite) for before in members(self.problem.predecessors[task])]
        flow = max_flow.SimpleMaxFlow()
        flow.add_arcs_with_capacity(*np.vstack([self.arcs, *forced, (task, self.sink, self.infinite)]).T)
        if flow.solve(self.source, self.sink) != flow.OPTIMAL:
            raise ArithmeticError("the sizes of the tensors overflow the flow solver")
        executed = sum(1 << node for node in flow.get_source_side_min_cut() if node < self.problem.n)
        return flow.optimal_flow() + self.problem.demand[task], executed

    def largest_bound(
        self, order: Sequence[int], floor: int, budget: Budget, most: int | None = None
    ) -> tuple[int, int, int]:
        """(bytes, task, set run before it) of the largest bound above ``floor`` among the ``most`` needy tasks. A bound
        is at most what the task needs in any order, so the needs of ``order`` tell where to stop."""
        needs = self.problem.needs(order)
        best = floor, -1, 0
        for place in sorted(range(len(order)), key=lambda i: -needs[i])[:most]:
            if needs[place] <= best[0] or budget.is_over:
                break
            bound, executed = self.bound(order[place])
            if bound > best[0]:
                best = bound, order[place], executed
        return best


def series_cuts(problem: OrderingProblem) -> list[int]:
    """Numbers of tasks: every order runs the first so many tasks before all others, so that the parts between are
    problems of their own. Begins with 0 and ends with all."""
    cuts, before = [problem.n], -1
    for task in reversed(range(problem.n)):
        before &= problem.ancestors[task]  # what all from this task on wait for
        if before == (1 << task) - 1:
            cuts.append(task)
    return cuts[::-1]


def pieces_of(problem: OrderingProblem, cuts: Sequence[int]) -> list[OrderingProblem]:
    """The parts of a problem between series cuts; halves first, which takes no more than a logarithm of the cuts times
    the size of the problem."""
    if len(cuts) <= 2:
        return [problem]
    middle, found = len(cuts) // 2, []
    for some in (cuts[: middle + 1], cuts[middle:]):
        found += pieces_of(problem.part(range(problem.n), some[0], some[-1]), [cut - some[0] for cut in some])
    return found


def order_by_cuts(problem: OrderingProblem, budget: Budget) -> list[int] | None:
    """A good order for wide graphs: the minimum cut of the tightest task first, then that task, then the rest, each
    part by the same rule. None if the time runs out."""
    order, stack = list(range(problem.n)), [(problem, 0)]
    while stack:
        part, first = stack.pop()
        if part.n <= 1:
            continue
        _, task, before = CutNetwork(part).largest_bound(range(part.n), -1, budget)
        if budget.is_over:
            return None
        places = [*members(before), task, *members(~before & ~(1 << task) & (1 << part.n) - 1)]
        order[first : first + part.n] = [order[first + t] for t in places]
        cut = places.index(task)
        stack += [(part.part(places, cut + 1, part.n), first + cut + 1), (part.part(places, 0, cut), first)]
    return order


####################################################################################################
# Ordering, the search: ever wider sweeps, level by level, until one drops no state
####################################################################################################

# Level k of a sweep holds every set of k executed tasks that some order within the limit reaches and that is worth
# keeping:
#
#     level 0        {}
#     level 1     {a}   {b}            equal sets are one state, whatever led to them
#     level 2   {a,b}  {a,c}  {b,d}    an empty level proves that no order fits into the limit
#       ...          :
#     level n       {all}              an order, read back along the parents
#
# Two consequences of submodularity keep the levels small: a move that fits and does not raise live() is made at once
# and alone, and a state with no more bytes alive than the last committed one makes all others superfluous.

LEVEL_WORDS = 1 << 23  # the largest level: 64 MiB of states, a few times that with temporaries
SWEEP_STATES = 1 << 26  # states of one sweep: 512 MiB of history
MOVE_WORK, STATE_WORK = 1.5e-5, 3e-9  # seconds per task that may be next, and per word of a state for each


class Sweep:
    """Advances all states of a level together; they are the columns of an array of uint64 words. A state is the
    down-set that has run or, with ``reverse``, the tasks undone from the end; live() is the same function. Every buffer
    must be read or kept, as merge_tasks leaves it."""

    def __init__(self, problem: OrderingProblem, reverse: bool = False) -> None:
        self.problem, self.reverse = problem, reverse
        self.words = (problem.n + 63) // 64
        before, after = problem.ancestors, problem.descendants
        # Per task, the buffers that it may be the last to read, as (other readers, bytes).
        self.freeable: list[list[tuple[list[tuple[int, np.uint64]], int]]] = []
        for t, inputs in enumerate(problem.inputs):
            sizes: Counter[int] = Counter()
            for b, others in inputs:
                if not b.kept and not others & after[t]:
                    sizes[others & ~before[t]] += b.size
            self.freeable.append([(self.split(others), size) for others, size in sizes.items()])
        self.required = problem.successors if reverse else problem.predecessors
        self.required_words = [self.split(tasks) for tasks in self.required]
        before, after = (after, before) if reverse else (before, after)
        self.opens = np.array([s.bit_count() for s in before])  # the first level at which a task can be next
        self.closes = problem.n - 1 - np.array([s.bit_count() for s in after])  # and the last
        self.start_live = sum(b.size for b in problem.buffers if (b.kept if reverse else b.producer is None))

    def split(self, tasks: int) -> list[tuple[int, np.uint64]]:
        """A set of tasks as its words that are not zero: (word, bits)."""
        words = np.frombuffer(tasks.to_bytes(8 * self.words, "little"), "<u8")
        return [(w, bits) for w, bits in enumerate(words) if bits]

    def run(self, limit: int, width: int, budget: Budget) -> tuple[list[int] | None, bool, int]:
        """(an order within ``limit`` bytes or None; True if there provably is none; how many states it visited).
        ``width`` makes it a beam that keeps the states with the fewest bytes alive."""
        states, live = np.zeros((self.words, 1), dtype=np.uint64), np.array([self.start_live])
        committed, is_proof, visited = self.start_live, True, 0
        history: list[tuple[np.ndarray, np.ndarray]] = []
        for level in range(self.problem.n):
            visited += len(live)
            if visited > SWEEP_STATES or budget.is_over:
                return None, False, visited
            task, parent, live = self.moves(states, live, limit, level)
            if not len(live):
                return None, is_proof, visited
            keep = np.arange(len(live))
            if live.min() <= committed:
                keep, committed = np.array([live.argmin()]), live.min()
            elif len(live) * self.words > LEVEL_WORDS:
                keep, is_proof = np.argsort(live, kind="stable")[: LEVEL_WORDS // self.words], False
            task, parent, live = task[keep], parent[keep], live[keep]
            states = states[:, parent]
            states[task >> 6, np.arange(len(task))] |= np.uint64(1) << (task & 63).astype(np.uint64)
            keep = distinct(states)
            if len(keep) > width:
                keep, is_proof = keep[np.argsort(live[keep], kind="stable")[:width]], False
            states, live = states[:, keep], live[keep]
            history.append((parent[keep], task[keep]))
        order, state = [], 0
        for parent, task in reversed(history):
            order.append(int(task[state]))
            state = parent[state]
        return order if self.reverse else order[::-1], False, visited

    def moves(self, states: np.ndarray, live: np.ndarray, limit: int, level: int) -> tuple[np.ndarray, ...]:
        """(tasks, states that can run them, bytes alive after that): the possible moves; a free move stands alone."""
        reduced = (reduce.reduce(states, axis=1).astype("<u8").tobytes() for reduce in (np.bitwise_and, np.bitwise_or))
        everywhere, anywhere = (int.from_bytes(words, "little") for words in reduced)
        found = [(np.zeros(0, np.int32), np.zeros(0, np.int32), live[:0])]
        free_move = np.full(len(live), -1, dtype=np.int32)
        tasks = np.flatnonzero((self.opens <= level) & (level <= self.closes)).tolist()
        Budget.spend(len(tasks) * (MOVE_WORK + STATE_WORK * states.size))
        for t in tasks:
            if everywhere >> t & 1 or self.required[t] & ~anywhere:
                continue
            ready = states[t >> 6] & np.uint64(1 << (t & 63)) == 0
            for word, bits in self.required_words[t]:
                ready &= states[word] & bits == bits
            chosen = np.flatnonzero(ready)
            freed = np.zeros(len(chosen), dtype=np.int64)
            for others, size in self.freeable[t]:
                gone = np.ones(len(chosen), dtype=bool)
                for word, bits in others:
                    gone &= states[word, chosen] & bits == (0 if self.reverse else bits)
                freed += size * gone
            now = live[chosen]
            after = now + (self.problem.produced[t] - freed) * (-1 if self.reverse else 1)
            fits = (after if self.reverse else now) + self.problem.demand[t] <= limit
            chosen, after, now = chosen[fits], after[fits], now[fits]
            if len(chosen):
                found.append((np.full(len(chosen), t, np.int32), chosen.astype(np.int32), after))
                free = chosen[after <= now]
                free_move[free[free_move[free] < 0]] = t
        task, parent, after = (np.concatenate(arrays) for arrays in zip(*found, strict=True))
        allowed = (free_move[parent] < 0) | (free_move[parent] == task)
        return task[allowed], parent[allowed], after[allowed]


def distinct(states: np.ndarray) -> np.ndarray:
    """Indices of the distinct columns; a hash brings equal ones together, so rarely some duplicates remain."""
    varying = states[(states != states[:, :1]).any(axis=1)]
    if len(varying) == 1:
        return np.unique(varying[0], return_index=True)[1]
    mixed = np.zeros(states.shape[1], dtype=np.uint64)
    for word in varying:
        mixed = (mixed ^ word) * np.uint64(0x9E3779B97F4A7C15)
        mixed ^= mixed >> np.uint64(29)
    order = np.argsort(mixed, kind="stable")
    ranked = varying[:, order]
    return order[np.append(True, (ranked[:, 1:] != ranked[:, :-1]).any(axis=0))]


class Ordering(NamedTuple):
    """An order of the tasks, its peak in bytes, and ``bound``: no order has a lower peak than that."""

    order: tuple[int, ...]
    peak: int
    bound: int
    states: int = 0  # sets of executed tasks visited


class Search:
    """Search between two series cuts: ``order`` needs ``upper`` bytes, and there is nothing to gain below ``lower``."""

    def __init__(self, problem: OrderingProblem, budget: Budget) -> None:
        self.problem, self.budget, self.network = problem, budget, CutNetwork(problem)
        self.order: list[int] = list(range(problem.n))
        self.upper, self.lower, self.states = problem.peak(self.order), problem.floor, 0

    @property
    def is_done(self) -> bool:
        return self.upper <= self.lower or self.budget.is_over

    @cached_property
    def sweeps(self) -> tuple[Sweep, Sweep]:
        return Sweep(self.problem, reverse=True), Sweep(self.problem)  # from the end first: wide graphs need less

    def tighten(self, most: int | None = None) -> None:
        """Raise the lower bound by minimum cuts of at most ``most`` tasks, as far as that matters for this order."""
        self.lower, _, _ = self.network.largest_bound(self.order, self.lower, self.budget, most)

    def adopt(self, order: list[int] | None) -> bool:
        """Take an order if it is better than the best so far; returns True if it is."""
        if order is None or (peak := self.problem.peak(order)) >= self.upper:
            return False
        self.order, self.upper = order, peak
        self.tighten()
        return True

    def sweep(self, width: int) -> None:
        """Sweep from both ends while that improves the order; a sweep that ``width`` does not limit is a proof."""
        before = None
        while before != self.upper:
            before = self.upper
            for sweep in self.sweeps:
                if not self.is_done:
                    self.attempt(sweep, self.upper - 1, width)

    def attempt(self, sweep: Sweep, limit: int, width: int) -> bool:
        """Find an order within the limit, or prove that there is none; False if neither succeeds."""
        order, is_proof, states = sweep.run(limit, width, self.budget)
        self.states += states
        if is_proof:
            self.lower = max(self.lower, limit + 1)
        return self.adopt(order) or is_proof

    def prove_less(self) -> None:
        """Raise the lower bound while the optimum is open, by bisecting the limits that sweeps can decide."""
        open_from = self.upper - 1
        while not self.is_done and self.lower < open_from:
            middle = (self.lower + open_from) // 2
            if not any(self.attempt(sweep, middle, WIDTHS[-1]) for sweep in self.sweeps):
                open_from = middle


GLANCE = 64  # tasks bounded by cuts before there is a good order; the better that is, the fewer cuts matter
WIDTHS = (1 << 12, 1 << 15, 1 << 18, 1 << 21)

# Steps applied to each piece, the one with the largest peak first, until nothing is left to gain.
STAGES: tuple[Callable[[Search], object], ...] = (
    lambda search: search.tighten(GLANCE),
    lambda search: search.sweep(32),
    lambda search: search.tighten(),
    lambda search: search.sweep(512),
    lambda search: search.adopt(order_by_cuts(search.problem, search.budget)),
    *(partial(Search.sweep, width=width) for width in WIDTHS),
    Search.prove_less,
)


def order_tasks(problem: OrderingProblem, time_limit: float = TIME_LIMIT) -> Ordering:
    """The order with the lowest peak and a proof, or the best in ``time_limit`` seconds with a proven bound; the given
    one if none is better. Fuses tasks at no cost and cuts the graph where every order passes. Minimum cuts bound each
    piece from below, ever wider sweeps from above; one that drops no state is a proof."""
    given, floor = tuple(range(problem.n)), problem.floor
    peak, budget = problem.peak(given), Budget(time_limit)
    if peak == floor:
        return Ordering(given, peak, floor)
    merged, groups = merge_tasks(problem)
    pieces = [Search(part, budget) for part in pieces_of(merged, series_cuts(merged))]
    bound = max(floor, *(piece.lower for piece in pieces))
    for stage in STAGES:
        for piece in sorted(pieces, key=lambda piece: -piece.upper):
            piece.lower = max(piece.lower, bound)  # nothing is gained below what another piece needs
            if not piece.is_done:
                stage(piece)
                bound = max(bound, piece.lower)
    order, states = list[int](), sum(piece.states for piece in pieces)
    for piece in pieces:
        order += [len(order) + t for t in piece.order]
    order = [task for t in order for task in groups[t]]
    found = problem.peak(order)
    return Ordering(tuple(order), found, bound, states) if found < peak else Ordering(given, peak, bound, states)


####################################################################################################
# Ordering a model: subgraphs -> ordering problems
####################################################################################################


def accesses(subgraph: Subgraph) -> dict[int, list[tuple[int, bool]]]:
    """Per tensor, the operators that access it, in file order: (operator, True if it writes)."""
    touched: dict[int, list[tuple[int, bool]]] = defaultdict(list)
    for operator in subgraph.operators:
        for i in operator.reads:
            touched[i].append((operator.index, subgraph.tensors[i].is_updated_in_place))
        for i in operator.writes:
            touched[i].append((operator.index, True))
    return touched


def effectful_subgraphs(graph: ModelGraph) -> set[int]:
    """The subgraphs with side effects, of their own or through what they run."""
    found: set[int] = set()
    for index in callees_first(graph):
        subgraph = graph.subgraphs[index]
        has_state = any(tensor.is_updated_in_place for tensor in subgraph.tensors)
        if has_state or any(side_effect(subgraph, operator, found) for operator in subgraph.operators):
            found.add(index)
    return found


def side_effect(subgraph: Subgraph, operator: Operator, effectful: Collection[int]) -> tuple[str, bool] | None:
    """(what an operator accesses besides its tensors, True if it changes that); ``effectful`` are the subgraphs that
    have side effects."""
    effect = kind_of(operator).effect
    if any(callee in effectful for callee in operator.callees):
        return EVERYTHING, True
    if effect and effect[0] == VARIABLE:
        name = subgraph.variables.get(operator.reads[0]) if operator.reads else None
        return (name, effect[1]) if name else (EVERYTHING, True)
    return effect


def precedence_pairs(graph: ModelGraph, subgraph: Subgraph) -> list[tuple[int, int]]:
    """All (before, after) pairs of operators that must keep their order. One rule covers data flow, side effects and
    state: an operator that changes something runs after all earlier and before all later accesses to it. So files that
    write a tensor twice, or read it before it is written, keep their meaning too."""
    effectful = effectful_subgraphs(graph) if any(operator.callees for operator in subgraph.operators) else ()
    effects = [(i, side_effect(subgraph, operator, effectful)) for i, operator in enumerate(subgraph.operators)]
    histories = [*accesses(subgraph).values()]
    for name in {effect[0] for _, effect in effects if effect}:
        histories.append([(i, effect[1]) for i, effect in effects if effect and effect[0] in (name, EVERYTHING)])
    pairs = set()
    for history in histories:
        writer, readers = list[int](), list[int]()
        for operator, changes in history:
            pairs |= {(before, operator) for before in (writer + readers if changes else writer) if before != operator}
            if changes:
                writer, readers = [operator], []
            else:
                readers.append(operator)
    return sorted(pairs)


class Costs(NamedTuple):
    """Bytes of a tensor while alive, extra bytes of an operator, and inputs that its only output may overwrite."""

    tensor: Callable[[Tensor], int]
    operator: Callable[[Subgraph, Operator], int]
    in_place: Callable[[Subgraph, Operator], Sequence[int]] = lambda subgraph, operator: ()


PLAIN_COSTS = Costs(lambda tensor: tensor.ram_bytes, lambda subgraph, operator: 0)


def _common_buffers(subgraph: Subgraph, touched: Mapping[int, list[tuple[int, bool]]], costs: Costs) -> list[list[int]]:
    """Groups of tensors that share one buffer in any order; most have one tensor. An output joins an input that it may
    overwrite if that has one origin and no other use, so that it ends there, and if the output begins there."""
    group = {tensor.index: [tensor.index] for tensor in subgraph.tensors}

    def ends_at(operator: Operator, source: int) -> bool:
        *made, last = touched[source]
        is_made_once = not made if source in subgraph.inputs else [changes for _, changes in made] == [True]
        return is_made_once and last == (operator.index, False) and source not in subgraph.outputs

    for operator in subgraph.operators:
        for source in [t for t in costs.in_place(subgraph, operator) if ends_at(operator, t)][:1]:
            output = operator.writes[0]
            if touched[output][0] == (operator.index, True) and output not in subgraph.inputs:  # it begins there
                group[source].append(output)
                group[output] = group[source]
    return [tensors for first, tensors in group.items() if tensors[0] == first]


def ordering_problem(
    graph: ModelGraph, subgraph: Subgraph, callee_peaks: Mapping[int, int], costs: Costs = PLAIN_COSTS
) -> OrderingProblem:
    """The ordering problem of a subgraph: tasks are its operators, buffers its tensors in working memory."""
    buffers = []
    touched, inputs, outputs = accesses(subgraph), set(subgraph.inputs), set(subgraph.outputs)
    for tensors in _common_buffers(subgraph, touched, costs):
        history = [access for tensor in tensors for access in touched.get(tensor, [])]
        is_output = not outputs.isdisjoint(tensors)
        size = costs.tensor(subgraph.tensors[tensors[0]])
        if size == 0 or not (history or is_output):
            continue
        operators = tuple(dict.fromkeys(operator for operator, _ in history))
        is_written_first = bool(history) and history[0][1] and tensors[0] not in inputs
        producer, readers = (operators[0], operators[1:]) if is_written_first else (None, operators)
        buffers.append(Buffer(size, producer, readers, kept=is_output))
    transient = (
        max((callee_peaks[c] for c in operator.callees), default=0) + costs.operator(subgraph, operator)
        for operator in subgraph.operators
    )
    return OrderingProblem(tuple(transient), tuple(buffers), tuple(precedence_pairs(graph, subgraph)))


def order_model(graph: ModelGraph, time_limit: float, costs: Costs = PLAIN_COSTS) -> tuple[Ordering, ...]:
    """The best order of each subgraph, by its index; callees first, since their peaks count in the caller."""
    budget = Budget(time_limit)
    orderings: dict[int, Ordering] = {}
    for index in callees_first(graph):
        subgraph, peaks = graph.subgraphs[index], {i: ordering.peak for i, ordering in orderings.items()}
        found = order_tasks(ordering_problem(graph, subgraph, peaks, costs), budget.left)
        # The problem assumes the callees' peaks; if one of them can still fall, so can this bound.
        callees = {c for operator in subgraph.operators for c in operator.callees}
        unproven = max((orderings[c].peak - orderings[c].bound for c in callees), default=0)
        # All inputs exist at the start, including unread ones, which the problem does not contain.
        entry = Profile(tensor_intervals(subgraph, costs.tensor).values()).at(BEFORE)
        peak, bound = (max(value, entry) for value in (found.peak, found.bound - unproven))
        orderings[index] = found._replace(peak=peak, bound=bound)
    return tuple(orderings[subgraph.index] for subgraph in graph.subgraphs)


####################################################################################################
# Placement: intervals -> offsets, by first fit that learns, then by constraint programming
####################################################################################################


def height_of(intervals: Iterable[Interval]) -> int:
    """The address after the last byte of all placed intervals."""
    return max((at + size for size, _, _, at in intervals if at is not None), default=0)


class Plan(NamedTuple):
    """Intervals that all have an offset, and ``bound``: no plan is lower than that, in bytes."""

    intervals: tuple[Interval, ...]
    bound: int

    @property
    def height(self) -> int:
        return height_of(self.intervals)

    @property
    def optimal(self) -> bool:
        return self.height <= self.bound


Block = Mapping[int, int]  # intervals that move together: number -> offset in the block


MIN_PERIOD = 64  # units of time


class Obstacles:
    """Placed intervals, by periods of time, so that long schedules take no more work per interval than short ones. A
    period is at least as long as the mean lifetime: most intervals are in one or two."""

    def __init__(self, intervals: Sequence[Interval]) -> None:
        lifetimes = sum(last - first + 1 for _, first, last, _ in intervals)
        self.period = max(MIN_PERIOD, lifetimes // max(len(intervals), 1))
        # Per period: offset, end, first and last time of each interval, sorted by offset.
        self.rows: dict[int, np.ndarray] = defaultdict(lambda: np.empty((4, 0), dtype=np.int64))

    def periods(self, interval: Interval) -> range:
        return range(interval.first // self.period, interval.last // self.period + 1)

    def add(self, interval: Interval) -> None:
        start = interval.offset or 0
        for period in self.periods(interval):
            rows = self.rows[period]
            rank = rows[0].searchsorted(start, side="right")
            row = np.array([[start], [start + interval.size], [interval.first], [interval.last]])
            self.rows[period] = np.concatenate([rows[:, :rank], row, rows[:, rank:]], axis=1)

    def lowest_place(self, block: Sequence[Interval]) -> int:
        """The lowest free address for a block; the ``offset`` of each of its intervals is relative to it."""
        lows, highs = [], []  # per obstacle, the addresses between which the block must not start
        for interval in block:
            size, first, last, above = interval
            for period in self.periods(interval):
                start, end, begins, ends = self.rows[period]
                together = (begins <= last) & (ends >= first)
                lows.append(start[together] - (size + (above or 0)))
                highs.append(end[together] - (above or 0))
        low, high = np.concatenate(lows), np.concatenate(highs)
        if len(lows) > 1:
            order = low.argsort(kind="stable")
            low, high = low[order], high[order]
        reach = np.maximum.accumulate(np.append(0, high))  # lowest address above all earlier obstacles
        free = (low >= reach[:-1]).nonzero()[0]
        return int(reach[free[0]] if len(free) else reach[-1])


def place_first_fit(intervals: Sequence[Interval], blocks: Iterable[Block]) -> tuple[Interval, ...]:
    """Give each block, in this order, the lowest gap among the earlier ones alive with it. Intervals that have an
    offset keep it unchecked, as in TFLM."""
    placed, obstacles = list(intervals), Obstacles(intervals)
    for block in blocks:
        at = next((given - above for i, above in block.items() if (given := intervals[i].offset) is not None), None)
        if at is None:
            at = obstacles.lowest_place(_members(intervals, block))
        for i, above in block.items():
            placed[i] = intervals[i]._replace(offset=at + above)
            obstacles.add(placed[i])
    return tuple(placed)


def _members(intervals: Sequence[Interval], block: Block) -> list[Interval]:
    """The intervals of a block, with offsets relative to it."""
    return [intervals[i]._replace(offset=above) for i, above in block.items()]


def place_greedily(intervals: Sequence[Interval]) -> tuple[Interval, ...]:
    """TFLM's GreedyMemoryPlanner: given offsets first, then first fit from large to small, and the later first among
    intervals of one size (tensorflow/lite/micro/memory_planner/greedy_memory_planner.cc)."""
    order = sorted(range(len(intervals)), key=lambda i: (intervals[i].offset is None, -intervals[i].size, -i))
    return place_first_fit(intervals, ({i: 0} for i in order))


def conflicts(intervals: Sequence[Interval], most: int = 1000) -> list[tuple[int, int]]:
    """Pairs of placed intervals that are alive together and overlap in memory; stops soon after ``most`` pairs."""
    rows = np.array(intervals, dtype=np.int64).reshape(-1, 4)
    order = np.argsort(rows[:, 1], kind="stable")
    size, first, last, start = rows[order].T
    found: list[tuple[int, int]] = []
    for i, stop in enumerate(np.searchsorted(first, last, side="right").tolist()):
        later = slice(i + 1, stop)  # those that begin while it is alive
        clash = (start[later] < start[i] + size[i]) & (start[later] + size[later] > start[i])
        clash &= last[later] >= first[i]
        found += [(int(order[i]), int(order[i + 1 + j])) for j in np.flatnonzero(clash)]
        if len(found) >= most:
            break
    return sorted((min(pair), max(pair)) for pair in found)


MAX_OFFSET = 1 << 31  # offsets in the file are signed 32-bit integers


def plan_faults(intervals: Sequence[Interval], name: Callable[[int], str]) -> list[str]:
    """Faults of placed intervals, one sentence each; ``name`` gives the name of an interval by its number."""
    faults = [
        f"{name(i)} is planned at {at:,}, which is not a multiple of {ARENA_ALIGNMENT} from 0 up to 31 bits"
        for i, (size, _, _, at) in enumerate(intervals)
        if at is None or at < 0 or at % ARENA_ALIGNMENT or at + size > MAX_OFFSET
    ]
    shared = "are alive together and share memory, which no operator allows"
    return faults + [f"{name(i)} and {name(j)} {shared}" for i, j in conflicts(intervals)]


FIRST_FIT_ORDERS: tuple[Callable[[Interval], Any], ...] = (  # by sort keys
    lambda b: (-b.size, b.first),
    lambda b: (-b.size * (b.last - b.first + 1), b.first),  # area
    lambda b: (b.first - b.last, -b.size),  # lifetime
    lambda b: (b.first, -b.size),
    lambda b: (-b.last, -b.size),
)


# Rounds of first fit per order: milliseconds each, and most plans are optimal before the tenth. Few for estimates.
LEARNING_ROUNDS, FEW_ROUNDS = 300, 5
BLOCK_WORK = 2.5e-5  # seconds per interval of a round
PUSH = 0.6  # the largest share of all blocks that a block which ended too high overtakes in the next round


def plan_by_first_fit(
    intervals: Sequence[Interval],
    groups: Sequence[Block] = (),
    enough: int = 0,
    rounds: int = 1,
    budget: Budget | None = None,
) -> Plan:
    """The lowest of some first-fit plans, in milliseconds each: by size, area, lifetime and time, and then by learning:
    what ends too high comes earlier in the next round ("squeaky wheel", D. Joslin and D. Clements, JAIR 1999). The
    intervals of a group keep their distances. A plan of up to ``enough`` bytes counts as optimal."""
    grouped = {i for group in groups for i in group}
    blocks = [*groups, *({i: 0} for i in range(len(intervals)) if i not in grouped)]
    members = (_members(intervals, block) for block in blocks)
    boxes = [Interval(height_of(box), min(i.first for i in box), max(i.last for i in box)) for box in members]
    rng, bound = np.random.default_rng(0), max(Profile(intervals).peak, enough)
    best = Plan((), bound)
    for key in FIRST_FIT_ORDERS:
        urgency = -np.argsort(sorted(range(len(blocks)), key=lambda i: key(boxes[i]))).astype(float)
        for _ in range(rounds):
            Budget.spend(BLOCK_WORK * len(intervals))
            placed = place_first_fit(intervals, (blocks[i] for i in np.argsort(-urgency, kind="stable")))
            plan = Plan(placed, bound)
            best = min(best if best.intervals else plan, plan, key=lambda plan: plan.height)
            if best.optimal or (budget and budget.is_over):
                return best
            tops = [height_of(placed[i] for i in block) for block in blocks]
            urgency += (np.array(tops) > bound) * rng.uniform(0, PUSH * len(blocks), len(blocks))
    return best


ALONE, WORKERS = 0.5, 4  # seconds for one strategy; number of strategies that then take turns
MAX_SHARED = 500  # constraints; with more, strategies that take turns exceed their time many times over
SOLVER_WORK = 3.0  # seconds per unit of the solver's deterministic time
MAX_SOLVED = 600  # intervals; with more, the solver takes many times what it counts
PROOF_SHARE = 0.5  # share of the work left in which the bound itself is tried as the height
PLAN_SECONDS = 15.0  # of work at most: what is not found by then is rarely found later


def plan_optimally(
    intervals: Sequence[Interval],
    time_limit: float = TIME_LIMIT,
    groups: Sequence[Block] = (),
    enough: int = 0,
    rounds: int | None = None,
) -> Plan:
    """The lowest plan: by first fit if that meets the bound, else by search and proof, within ``time_limit`` seconds.
    Constraint programming keeps rectangles of fixed time and free address apart (NoOverlap2D): it first tries the bound
    as the height, then minimises the height. ``enough`` is as for :func:`plan_by_first_fit`; with ``rounds`` of first
    fit, that is all."""
    budget = Budget(min(time_limit, PLAN_SECONDS))
    plan = plan_by_first_fit(intervals, groups, enough)
    if not plan.optimal and not budget.is_over:
        plan = plan_by_first_fit(intervals, groups, enough, rounds or LEARNING_ROUNDS, budget.share(0.2))
    for highest, share in ((plan.bound, PROOF_SHARE), (plan.height - 1, 1.0)):
        if not plan.optimal and rounds is None and len(intervals) <= MAX_SOLVED:
            found, proven = _solve_placement(intervals, groups, plan.bound, highest, share * budget.left)
            plan = plan._replace(intervals=found or plan.intervals)
            plan = plan._replace(bound=max(plan.bound, min(proven, plan.height)))
    return plan


def solve_constraints(model: Any, time_limit: float) -> tuple[Any, Any]:
    """The CP-SAT solver with its solution, and its status. First one strategy for a while, then several in turns, which
    is deterministic on any number of cores. It stops early if the program is interrupted."""
    from ortools.sat.python import cp_model

    alone, status = _solve(model, min(time_limit, ALONE), 1)
    is_open = status in (cp_model.FEASIBLE, cp_model.UNKNOWN) and time_limit > ALONE
    if not is_open or len(model.proto.constraints) > MAX_SHARED:
        return alone, status
    several, verdict = _solve(model, time_limit - ALONE, WORKERS)
    return (alone, status) if verdict == cp_model.UNKNOWN else (several, verdict)


def _solve(model: Any, time_limit: float, workers: int) -> tuple[Any, Any]:
    from concurrent.futures import ThreadPoolExecutor, wait

    from ortools.sat.python import cp_model

    solver = cp_model.CpSolver()
    solver.parameters.max_deterministic_time = time_limit / SOLVER_WORK
    solver.parameters.num_workers, solver.parameters.interleave_search = workers, workers > 1
    solver.parameters.random_seed = 1
    solver.parameters.catch_sigint_signal = False  # it would not restore Python's own handler
    with ThreadPoolExecutor(1) as executor:  # signals reach this thread only while it runs Python
        solving = executor.submit(solver.solve, model)
        while not solving.done():
            wait([solving], timeout=0.2)
            if Budget.is_stopped():
                solver.stop_search()
        Budget.spend(SOLVER_WORK * solver.response_proto.deterministic_time)
        return solver, solving.result()


def _solve_placement(
    intervals: Sequence[Interval], groups: Sequence[Block], least: int, height: int, time_limit: float
) -> tuple[tuple[Interval, ...] | None, int]:
    """(The lowest placement found of ``least`` to ``height`` bytes, or None; the proven bound, or 0)."""
    if time_limit <= 0 or height < least:
        return None, 0
    from ortools.sat.python import cp_model

    distances = (above for group in groups for above in group.values())
    unit = math.gcd(*(interval.size for interval in intervals), *distances) or ARENA_ALIGNMENT  # of all addresses
    model = cp_model.CpModel()
    top = model.new_int_var(least // unit, height // unit, "")
    starts = [model.new_int_var(0, height // unit - interval.size // unit, "") for interval in intervals]
    times, addresses = [], []  # no hint from first fit: it makes the search up to 600 times slower
    for (size, first, last, _), start in zip(intervals, starts, strict=True):
        model.add(start + size // unit <= top)
        times.append(model.new_fixed_size_interval_var(first, last - first + 1, ""))
        addresses.append(model.new_fixed_size_interval_var(start, size // unit, ""))
    model.add_no_overlap_2d(times, addresses)
    for group in groups:
        (one, above), *others = group.items()
        for i, other in others:
            model.add(starts[i] == starts[one] + (other - above) // unit)
    if height > least:
        model.minimize(top)
    solver, status = solve_constraints(model, time_limit)
    if status == cp_model.INFEASIBLE:
        return None, (height // unit + 1) * unit
    if status not in (cp_model.OPTIMAL, cp_model.FEASIBLE):
        return None, 0
    placed = zip(intervals, starts, strict=True)
    found = tuple(interval._replace(offset=solver.value(start) * unit) for interval, start in placed)
    return found, int(solver.best_objective_bound) * unit if height > least else 0


####################################################################################################
# TFLM's arena: the head, tensors and scratch that TFLM plans; the tail, persistent memory; what planning needs
####################################################################################################

MAX_USES = 1_000_000  # of tensors by operators and subgraphs, counting every call


class ArenaBuffer(NamedTuple):
    """One buffer that TFLM plans: a tensor, or the scratch memory of an operator (then ``tensor`` is None)."""

    interval: Interval  # its size is a multiple of ARENA_ALIGNMENT, its times are on TFLM's clock
    subgraph: int
    tensor: int | None
    operator: int | None = None
    bytes: int = 0  # before alignment


def _times_on_the_clock(graph: ModelGraph) -> tuple[dict[tuple[int, int], tuple[int, int]], ...]:
    """First and last time on TFLM's clock, by (subgraph, tensor) and by (subgraph, operator). The clock ticks once per
    operator and once per subgraph that IF, WHILE and CALL_ONCE run; times are inclusive, -1 is before the start
    (micro_allocation_info.cc)."""
    first: dict[tuple[int, int], int] = {}
    last: dict[tuple[int, int], int] = {}
    runs: dict[tuple[int, int], tuple[int, int]] = {}
    clock = uses = 0

    def run(subgraph: Subgraph) -> None:
        nonlocal clock, uses
        uses += 1 + len(subgraph.inputs) + len(subgraph.outputs)
        uses += sum(1 + len(operator.reads) + len(operator.writes) for operator in subgraph.operators)
        if uses > MAX_USES:
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
            if kind_of(operator).tflm is not None:
                for callee in operator.callees:
                    clock += 1
                    run(graph.subgraphs[callee])
            for i in (*operator.reads, *operator.writes):
                last[s, i] = clock
            runs[s, operator.index] = begin, clock
        for i in subgraph.outputs:
            first.setdefault((s, i), clock)
            last[s, i] = clock

    callees_first(graph)  # rejects recursion
    run(graph.subgraphs[0])
    return {key: (first.get(key, -1), time) for key, time in last.items()}, runs


def arena_buffers(graph: ModelGraph, target: Target = BITS_32) -> list[ArenaBuffer]:
    """The buffers that TFLM plans, in its order, even unused ones. Raises ArenaError if a tensor's size is unknown."""
    touched, runs = _times_on_the_clock(graph)
    never = -1, -1
    buffers = []
    for subgraph in graph.subgraphs:
        for tensor in subgraph.tensors:
            content = graph.content(tensor)
            if (content.size and not content.is_external) or tensor.storage is Storage.STATE:
                continue
            key = subgraph.index, tensor.index
            if size := _tflm_bytes(tensor):
                buffers.append(ArenaBuffer(Interval(align(size), *touched.get(key, never)), *key, bytes=size))
    for subgraph, operator in graph.operators:
        times = runs.get((subgraph.index, operator.index), never)
        for size in filter(None, scratch_requests(subgraph, operator, target)):
            buffers.append(ArenaBuffer(Interval(align(size), *times), subgraph.index, None, operator.index, size))
    return buffers


def _tflm_bytes(tensor: Tensor) -> int:
    if tensor.element.tflm_bytes is None:
        raise ArenaError(f"TFLM has no tensors of type {tensor.dtype} ({shorten(tensor.name)})")
    if any(d < 0 for d in tensor.shape):
        raise ArenaError(f"the shape of tensor {tensor.index} ({shorten(tensor.name)}) is only known at run time")
    return tensor.elements * tensor.element.tflm_bytes


def in_place_inputs(subgraph: Subgraph, operator: Operator) -> list[int]:
    """Inputs that the operator's only output may overwrite while it reads them; they have the output's size."""
    node = node_of(subgraph, operator)
    if len(operator.writes) != 1 or node["output"].storage is not Storage.ACTIVATION:
        return []
    found = (t for i, t in enumerate(operator.inputs) if may_overwrite(node, i))
    return [t for t in found if subgraph.tensors[t].bytes == node["output"].bytes]


ARENA_COSTS = Costs(
    tensor=lambda tensor: align(_tflm_bytes(tensor)) if tensor.storage is Storage.ACTIVATION else 0,
    operator=lambda subgraph, operator: sum(map(align, scratch_requests(subgraph, operator))),
)
IN_PLACE_COSTS = ARENA_COSTS._replace(in_place=in_place_inputs)


def operator_needs(graph: ModelGraph, subgraph: Subgraph) -> list[int]:
    """Bytes of the arena in use while each operator runs, in file order."""
    callee_peaks = {s.subgraph.index: s.peak for s in schedule_model(graph)}
    problem = ordering_problem(graph, subgraph, callee_peaks, ARENA_COSTS)
    return problem.needs(range(problem.n))


REQUEST_SLOTS = 12  # scratch requests that TFLM reserves for one operator
PLANNER_BYTES = 40  # per planned buffer, while TFLM plans


def kernel_bytes(node: Node) -> tuple[int, int, list[int]]:
    """Persistent bytes of a kernel: its options, its own structure, and each further array."""
    kernel = node.kernel or PLAIN_KERNEL
    more = kernel.wider if node.target is BITS_64 else (0, 0)
    try:
        arrays = kernel.arrays(node)
    except (LookupError, TypeError, ValueError, AttributeError):  # the kernel rejects it before it allocates more
        arrays = []
    return kernel.options + more[0], kernel.data + more[1], arrays


def node_persistent_bytes(node: Node) -> int:
    """Persistent bytes of an operator on a 32-bit target, without its scratch requests and tensors."""
    options, data, arrays = kernel_bytes(node)
    return BITS_32.operator + options + align(data) + sum(map(align, arrays))


def operator_persistent_bytes(subgraph: Subgraph, operator: Operator) -> int:
    """Persistent bytes of an operator on a 32-bit target, without its tensors. Raises as :func:`scratch_requests`."""
    requests = scratch_requests(subgraph, operator)
    return node_persistent_bytes(node_of(subgraph, operator)) + BITS_32.pointer * len(requests)


def port_pieces(tensor: Tensor, target: Target) -> list[tuple[int, int]]:
    """(bytes, alignment) of the structures that TFLM allocates for an input or output of the model or of a kernel."""
    pieces = [(target.port, target.pointer)]
    if tensor.quantization and tensor.affine:
        pieces += [(target.quantization, target.pointer), (4 + 4 * len(tensor.quantization.scales), 4)]
    return pieces


def _stacked(size: int, pieces: Iterable[tuple[int, int]]) -> int:
    """Bytes of the tail with further pieces of (bytes, alignment)."""
    for more, alignment in pieces:
        size = align(size + more, alignment) if more else size
    return size


class TailBytes(NamedTuple):
    """Bytes of the persistent part of TFLM's arena."""

    total: int
    before_planning: int  # the part of it that is allocated before TFLM plans, and lists of requests and tensors
    preparing: int  # the most needed before that, with temporary memory of kernels

    def planning(self, buffers: int) -> int:
        """Arena bytes needed while TFLM prepares and plans so many buffers: the persistent structures, except those of
        inputs and outputs, and lists. In small models this exceeds what they need in the end."""
        return max(align(self.before_planning + PLANNER_BYTES * buffers), self.preparing)


def persistent_bytes(graph: ModelGraph, target: Target = BITS_32, before: int = 0) -> TailBytes:
    """The tail of TFLM's arena, piece by piece in TFLM's order, after ``before`` bytes of other models. Matches
    measurements to the byte: tflite-micro of August 2026 with 32 bits, the package of October 2026 with 64. Raises
    ArenaError as :func:`scratch_requests`."""
    pointer, first = target.pointer, graph.subgraphs[0]
    nodes = [(node_of(s, operator, target), len(scratch_requests(s, operator))) for s, operator in graph.operators]
    kept = [kernel_bytes(node) for node, _ in nodes]
    variables = resource_variables(graph)
    pieces = [(size, pointer) for size in target.interpreter[:-1] if not before]
    if variables:
        pieces += [(pointer + 8, ARENA_ALIGNMENT), (target.variable * len(variables), ARENA_ALIGNMENT)]
    pieces += [(target.interpreter[-1], pointer), (target.subgraph * len(graph.subgraphs), pointer)]
    pieces += [(target.tensor * len(s.tensors), pointer) for s in graph.subgraphs]
    pieces += [(target.operator * len(s.operators), pointer) for s in graph.subgraphs]
    pieces += [(size, _options_alignment(node)) for (node, _), (size, *_) in zip(nodes, kept, strict=True)]
    pieces += [(data, ARENA_ALIGNMENT) for _, data, _ in kept]
    tail = _stacked(before, pieces)
    most = requests = 0
    for (node, count), (_, _, arrays) in zip(nodes, kept, strict=True):
        tail = _stacked(tail, [(size, ARENA_ALIGNMENT) for size in arrays])
        most = max(most, tail + target.request * (REQUEST_SLOTS + requests) + _prepare_temp_bytes(node))
        requests += count
    pieces = [(size, ARENA_ALIGNMENT) for size in variables.values()] + [(pointer * requests, pointer)]
    pieces += [(t.bytes or 0, ARENA_ALIGNMENT) for t in variable_tensors(graph)]
    total = tail = _stacked(tail, pieces)
    for ports in (first.inputs, first.outputs):
        structures = (piece for i in ports for piece in port_pieces(first.tensors[i], target))
        total = _stacked(total, [(pointer * len(ports), ARENA_ALIGNMENT), *structures])
    lists = target.request * (REQUEST_SLOTS + requests) + pointer * len(graph.subgraphs)
    lists += target.planned * (sum(len(s.tensors) for s in graph.subgraphs) + requests)
    return TailBytes(total, align(tail) + align(lists), align(most))


def _options_alignment(node: Node) -> int:
    """Alignment of a kernel's options: a pointer's if they hold one, else 4, or 1 if their size is no multiple of 4."""
    kernel = node.kind.tflm or PLAIN_KERNEL
    return node.target.pointer if kernel.wider[0] else 1 if kernel.options % 4 else 4


def _prepare_temp_bytes(node: Node) -> int:
    """Temporary bytes that a kernel needs while it prepares: the structures of its tensors, some of them twice."""
    tensors = [t for t in (*node.inputs, *node.outputs) if t]
    sizes = [sum(size for size, _ in port_pieces(tensor, node.target)) for tensor in tensors]
    is_filter = node.kind.tflm is not None and node.kind.tflm.arrays is _per_channel
    is_reduced = "axes" in node.kind.roles and tensors[:1] and tensors[0].dtype != "FLOAT32"
    is_join = node.kind.rows is joined_rows
    again = sizes if is_reduced else sizes[:2] + sizes[-1:] if is_filter else sizes[:1] if is_join else []
    return sum(sizes) + sum(again)


####################################################################################################
# Aliases, the layout: which buffers share memory, and what is left to place
####################################################################################################


class Alias(NamedTuple):
    """``new`` may take the memory of ``old``, which ends as it begins."""

    old: int
    new: int


CLASH_ROUNDS = 20  # in which a place where buffers would clash loses one pair


@dataclass(frozen=True)
class Aliases:
    """Buffers that may share memory: an output and the input that it overwrites, a tensor that is freed piece by piece
    as slices read or overwrite it, and the state that a loop carries."""

    pairs: tuple[Alias, ...] = ()
    pieces: Mapping[int, tuple[Interval, ...]] = dataclasses.field(default_factory=dict)  # of buffers not needed whole
    copies: tuple[Alias, ...] = ()  # ``new`` has the content of ``old`` while it is alive
    alternatives: tuple[Alias, ...] = ()  # to the pair with the same ``new``; layouts ignore them
    joined: tuple[Alias, ...] = ()  # that must have one offset, and are not alive together

    def __bool__(self) -> bool:
        return bool(self.pairs or self.pieces or self.copies)

    def used_by(self, placed: Sequence[Interval]) -> Aliases:
        """The aliases that the placed buffers use."""

        def is_used(alias: Alias) -> bool:
            return placed[alias.old].offset is not None and placed[alias.old].offset == placed[alias.new].offset

        pairs = tuple(filter(is_used, self.pairs + self.alternatives))
        return Aliases(pairs, self.pieces, tuple(filter(is_used, self.copies)), joined=self.joined)

    def among(self, numbers: Sequence[int]) -> Aliases:
        """The aliases among some of the buffers, renumbered 0, 1, 2, ..."""
        new = {i: n for n, i in enumerate(numbers)}
        pieces = {new[i]: found for i, found in self.pieces.items() if i in new}
        kinds = self.pairs, self.copies, self.alternatives, self.joined
        pairs, *others = (tuple(Alias(new[a], new[b]) for a, b in found if a in new and b in new) for found in kinds)
        return Aliases(pairs, pieces, *others)

    def consistent(self, intervals: Sequence[Interval]) -> Aliases:
        """The aliases that can hold together: as long as buffers would clash, their places lose their last pairs, or
        all of them after some rounds."""
        aliases = self
        for most in [1] * CLASH_ROUNDS + [len(self.pairs)]:
            layout = layout_of(intervals, aliases)
            at: dict[int, list[Alias]] = defaultdict(list)  # by place
            for alias in aliases.pairs:
                at[layout.places[alias.old]].append(alias)
            places = (layout.places[layout.parts[part][1]] for part, _ in layout.clashes)
            lost = {alias for place in places for alias in at[place][-most:]}
            if not lost:
                break
            aliases = dataclasses.replace(aliases, pairs=tuple(alias for alias in aliases.pairs if alias not in lost))
        return aliases


class Layout(NamedTuple):
    """The parts of some buffers to place; memory that buffers share counts once."""

    parts: list[tuple[Interval, int, int]]  # interval, its buffer, and its offset within the buffer
    places: list[int]  # per buffer: the number of its place, the address that it shares with others

    @property
    def intervals(self) -> list[Interval]:
        return [interval for interval, _, _ in self.parts]

    @property
    def groups(self) -> list[Block]:
        """The intervals that share a place, at fixed distances."""
        members: dict[int, dict[int, int]] = defaultdict(dict)
        for number, (_, owner, above) in enumerate(self.parts):
            members[self.places[owner]][number] = above
        return [group for group in members.values() if len(group) > 1]

    @property
    def clashes(self) -> Iterator[tuple[int, int]]:
        """Of every place where buffers would clash, two parts that do."""
        intervals = self.intervals
        for group in self.groups:
            numbers = [*group]
            for one, other in conflicts(_members(intervals, group), most=1)[:1]:
                yield numbers[one], numbers[other]

    def placed(self, buffers: Sequence[Interval]) -> list[Interval]:
        """The intervals at the offsets of their buffers."""
        return [
            interval._replace(offset=None if (at := buffers[owner].offset) is None else at + above)
            for interval, owner, above in self.parts
        ]


NO_ALIASES = Aliases()


def layout_of(buffers: Sequence[Interval], aliases: Aliases = NO_ALIASES) -> Layout:
    """The intervals to place: a buffer ends just before another takes its memory; a copy takes no bytes of its own."""
    pieces = {i: aliases.pieces.get(i, (buffer._replace(offset=0),)) for i, buffer in enumerate(buffers)}
    begins: dict[int, set[int]] = defaultdict(set)  # when other buffers take the memory
    for old, new in aliases.pairs:
        begins[old] |= {piece.first for piece in pieces[new]}
    copies = {alias.new for alias in aliases.copies}
    layout = Layout([], _common_places(len(buffers), (*aliases.pairs, *aliases.copies, *aliases.joined)))
    for i in range(len(buffers)):
        for piece in pieces[i] if i not in copies else ():
            last = min([piece.last, *(begin - 1 for begin in begins[i] if piece.first <= begin <= piece.last)])
            if last >= piece.first:
                layout.parts.append((Interval(piece.size, piece.first, last), i, piece.offset or 0))
    return layout


def with_room_for_scratch(layout: Layout, buffers: Sequence[Interval], scratch: Collection[int]) -> Layout:
    """The layout in which memory that a live buffer has freed stays reserved while scratch exists: TFLM plans scratch
    itself, never inside a tensor that it takes for alive. This saves 18 % in loops with MVE kernels."""
    times = sorted({buffers[i][1:3] for i in scratch})
    members: dict[int, list[int]] = defaultdict(list)  # buffers of each place
    taken: dict[int, list[tuple[Interval, int]]] = defaultdict(list)  # its intervals, and their offsets in it
    for i, place in enumerate(layout.places):
        members[place].append(i)
    for interval, owner, above in layout.parts:
        taken[layout.places[owner]].append((interval, above))
    roomy = Layout([*layout.parts], layout.places)
    for place, group in members.items():
        if len(group) == len(taken[place]) == 1:
            continue
        first, last = min(buffers[i].first for i in group), max(buffers[i].last for i in group)
        for begin, end in times[bisect.bisect_left(times, (first, -1)) : bisect.bisect_right(times, (last, last))]:
            blocks = [(at, at + b.size) for b, at in taken[place] if b.first <= end and begin <= b.last]
            for i in group:
                is_there = buffers[i].first <= begin and end <= buffers[i].last
                for start, stop in list(_gaps(buffers[i].size, blocks)) if is_there else ():
                    roomy.parts.append((Interval(stop - start, begin, end), i, start))
                    blocks.append((start, stop))
    return roomy


def _gaps(stop: int, blocks: Iterable[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """The (start, stop) ranges from 0 to an address that no block covers."""
    start = 0
    for low, high in (*sorted(blocks), (stop, stop)):
        if start < min(low, stop):
            yield start, min(low, stop)
        start = max(start, high)


def _common_places(count: int, aliases: Iterable[Alias]) -> list[int]:
    """Per buffer: the lowest number among the buffers aliased with it."""
    places = list(range(count))  # the buffer itself, or a lower one at the same place

    def lowest(i: int) -> int:
        while places[i] != i:
            places[i] = i = places[places[i]]
        return i

    for alias in aliases:
        low, high = sorted(map(lowest, alias))
        places[high] = low
    return list(map(lowest, range(count)))


####################################################################################################
# Aliases of a model: what its operators let share memory
####################################################################################################


class LoopVariable(NamedTuple):
    """A variable of WHILE. TFLM copies operand to output and tested, output to begin, end to output if offsets differ:

    operand --- output --.              .-- output ---
                         body: begin ... end            tested, by the condition: the same as the output
    """

    operand: int | None
    output: int
    tested: int | None
    begin: int
    end: int
    is_consumed: bool  # True if the operand is not needed after the loop

    @property
    def goes_through(self) -> bool:
        """True if the loop does not change the variable."""
        return self.begin == self.end and self.operand is not None

    @property
    def copies(self) -> list[Alias]:
        """The buffers that have the same content as another one."""
        if self.goes_through and self.operand is not None:
            return [Alias(self.operand, i) for i in (self.output, self.begin, self.tested) if i is not None]
        return [] if self.tested is None else [Alias(self.output, self.tested)]


class AliasSearch:
    """Finds the buffers that may share memory, whichever kernels run (reference, CMSIS-NN, ESP-NN)."""

    def __init__(self, graph: ModelGraph, buffers: Sequence[ArenaBuffer], joined: tuple[Alias, ...] = ()) -> None:
        self.graph, self.buffers, self.joined = graph, buffers, joined
        self.intervals = [buffer.interval for buffer in buffers]
        self.number = {(b.subgraph, b.tensor): i for i, b in enumerate(buffers) if b.tensor is not None}
        _, self.times = _times_on_the_clock(graph)
        self.pairs, self.copies, self.alternatives = list[Alias](), list[Alias](), list[Alias]()
        self.pieces: dict[int, tuple[Interval, ...]] = {}

    def run(self) -> Aliases:
        if is_compiled(self.graph):
            return NO_ALIASES
        calls = Counter(callee for _, operator in self.graph.operators for callee in operator.callees)
        loops = [(s, o) for s, o in self.graph.operators if is_loop(o) and (s.index, o.index) in self.times]
        # None has variables if a subgraph is called more than once.
        variables = [found for loop in loops if max(calls.values()) == 1 for found in self.carried_by(*loop)]
        taken = {alias.new for variable in variables for alias in variable.copies}
        copied = {alias.old for variable in variables for alias in variable.copies}  # read whole through their copies
        begins = {variable.begin for variable in variables if not variable.goes_through}
        for subgraph in self.graph.subgraphs:
            here = {t: i for (s, t), i in self.number.items() if s == subgraph.index and self.intervals[i].last >= 0}
            self.find_in_place(subgraph, here, taken, begins)
            self.pieces |= self.read_by_slices(subgraph, {t: i for t, i in here.items() if i not in copied})
        next_place = dict(self.pairs)
        for variable in variables:
            self.carry(variable, next_place)
        found = Aliases(tuple(self.pairs), self.pieces, tuple(self.copies), tuple(self.alternatives), self.joined)
        return found.consistent(self.intervals)

    def find_in_place(self, subgraph: Subgraph, here: Mapping[int, int], taken: set[int], begins: set[int]) -> None:
        """Outputs that may overwrite an input that ends there (added to ``taken``), and the alternatives to it."""
        for operator in subgraph.operators:
            output = here.get(operator.writes[0]) if len(operator.writes) == 1 else None
            if output is None:
                continue
            node, start = node_of(subgraph, operator), self.intervals[output].first
            given = {at: here[t] for at, t in enumerate(operator.inputs) if t in here and t not in subgraph.outputs}
            ends = {at: i for at, i in given.items() if i not in taken and self.intervals[i].last == start}
            found = [Alias(i, output) for at, i in ends.items() if i != output and may_overwrite(node, at)]
            found.sort(key=lambda alias: alias.old not in begins)  # so that a loop updates its variable in place
            begins |= {alias.new for alias in found[:1] if alias.old in begins}
            self.pairs += found[:1]
            self.alternatives += [alias for alias in found[1:] if alias.old != found[0].old]
            taken.update(alias.old for alias in found[:1])

    def read_by_slices(self, subgraph: Subgraph, here: Mapping[int, int]) -> dict[int, tuple[Interval, ...]]:
        """By buffer: the pieces of tensors that are read or overwritten in parts, by rising address; each ends with its
        last reader."""
        readers: dict[int, list[Operator]] = defaultdict(list)
        written: dict[int, int] = {}  # when its operator ends: IF and WHILE write late
        for operator in subgraph.operators:
            for t in operator.reads:
                readers[t].append(operator)
            end = self.times.get((subgraph.index, operator.index), (0, 0))[1]
            written.update(dict.fromkeys(operator.writes, end))
        pieces = {}
        for t, i in here.items():
            times = [self.times[subgraph.index, operator.index][1] for operator in readers[t]]
            size, first, last, _ = self.intervals[i]
            is_cut = any(operator.kind in ("SLICE", "DYNAMIC_UPDATE_SLICE") for operator in readers[t])
            if not is_cut or t in subgraph.outputs or last > max(times):  # it is kept
                continue
            reads = []
            for operator, when in zip(readers[t], times, strict=True):
                kind = operator.kind if operator.inputs.count(t) == 1 else ""
                for start, end in bytes_read(kind, node_of(subgraph, operator), subgraph.tensors[t]):
                    reads += [(start // ARENA_ALIGNMENT * ARENA_ALIGNMENT, align(end), when)] * (start < end)
            edges = sorted({0, size, *(edge for read in reads for edge in read[:2])})
            spans = [
                (max([first, written.get(t, 0), *(time for start, end, time in reads if start <= a < end)]), a, b)
                for a, b in itertools.pairwise(edges)
            ]
            groups = [list(group) for _, group in itertools.groupby(spans, key=lambda span: span[0])]
            if len(groups) > 1:
                pieces[i] = tuple(Interval(g[-1][2] - g[0][1], first, g[0][0], g[0][1]) for g in groups)
        return pieces

    def carry(self, variable: LoopVariable, next_place: Mapping[int, int]) -> None:
        """All buffers of a variable may share one offset if the body updates them in place (``next_place``: input ->
        output) or ``end`` begins after ``begin`` ends. While the body runs, its tensors hold the content; the output
        takes nothing."""
        operand, output, _, begin, end, is_consumed = variable
        self.copies += variable.copies
        if variable.goes_through:
            return
        (size, runs, until, _), begins, ends = (self.intervals[i] for i in (output, begin, end))
        self.pieces[output] = Interval(size, runs, begins.first, 0), Interval(size, ends.last, until, 0)
        self.pairs.append(Alias(output, begin))
        if is_consumed and operand is not None:
            self.pairs.append(Alias(operand, output))
        place: int | None = begin
        while place is not None and place != end:
            place = next_place.get(place)
        if place == end or begins.last < ends.first:
            self.pairs.append(Alias(end, output))

    def carried_by(self, subgraph: Subgraph, operator: Operator) -> Iterator[LoopVariable]:
        """The variables of a WHILE."""
        cond, body = (self.graph.subgraphs[callee] for callee in operator.callees)
        lists = operator.inputs, operator.outputs, cond.inputs, body.inputs, body.outputs
        if len({len(tensors) for tensors in lists}) != 1:
            return
        where = subgraph.index, subgraph.index, cond.index, body.index, body.index
        met: Counter[int] = Counter()  # operands, and how often each occurs
        tested_over, begun_over = ({i for o in s.operators for i in o.writes} for s in (cond, body))
        for ids in zip(*lists, strict=True):
            met[ids[0]] += 1
            operand, output, tested, begin, end = found = [self.number.get(key) for key in zip(where, ids, strict=True)]
            is_alone = all(tensors.count(i) == 1 for tensors, i in zip(lists[1:], ids[1:], strict=True))
            if output is None or begin is None or end is None or not is_alone or ids[2] in cond.outputs:
                continue
            if ids[2] in tested_over or (ids[3] == ids[4] and ids[3] in begun_over):  # an operator writes over it
                continue
            if len({self.buffers[i].bytes for i in found if i is not None}) != 1:
                continue
            # Of several variables with the same operand, only one may take its memory; the others are copies.
            is_last = operand is not None and self.intervals[operand].last == self.intervals[end].last
            is_consumed = is_last and ids[0] not in subgraph.outputs and met[ids[0]] == 1
            variable = LoopVariable(operand, output, tested, begin, end, is_consumed)
            if operand is not None and variable.goes_through:
                outlives = self.intervals[output].last > self.intervals[operand].last
                is_kept = ids[1] in subgraph.outputs and ids[0] not in subgraph.outputs  # which may be overwritten
                if outlives or is_kept or operator.inputs.count(ids[0]) > 1:
                    continue
            yield variable


####################################################################################################
# TFLM's arena, complete: as planned in the file, and as it could be
####################################################################################################


@dataclass(frozen=True)
class Arena:
    """TFLM's arena for the file as it is: the planned buffers (its head), in TFLM's order and at the offsets that the
    runtime gives them, and the bytes of its tail. All else is computed on first use."""

    graph: ModelGraph = dataclasses.field(compare=False)
    buffers: tuple[ArenaBuffer, ...]
    persistent: int  # bytes of the tail, see :class:`Target`
    planning: int  # bytes needed while TFLM prepares and plans

    @cached_property
    def placed(self) -> list[Interval]:
        return [buffer.interval for buffer in self.buffers]

    @cached_property
    def promises(self) -> tuple[frozenset[int], tuple[Alias, ...]]:
        """What the application needs after an inference: (buffers to keep; outputs that must have the offset of an
        input). Raises ArenaError if a tensor is not there, or a pair cannot have one place."""
        kept, joined = set[int](), list[Alias]()
        for name, source in self.graph.kernels.kept:
            try:
                ids = [self.named(text)[0] for text in (name, source) if text]
            except ValueError as why:
                raise ArenaError(str(why)) from None
            if any(self.buffers[i].subgraph for i in ids):
                raise ArenaError(f"{shorten(name)} is not in the first subgraph, so it does not last until the end")
            kept.add(ids[0])
            if source:
                output, given = (self.buffers[i] for i in ids)
                tensors = [self.graph.subgraphs[b.subgraph].tensors[b.tensor or 0] for b in (output, given)]
                if (output.bytes, tensors[0].dtype) != (given.bytes, tensors[1].dtype):
                    raise ArenaError(f"{shorten(name)} and {shorten(source)} differ in size or type")
                joined.append(Alias(ids[1], ids[0]))
        return frozenset(kept), tuple(joined)

    @cached_property
    def lifetimes(self) -> list[ArenaBuffer]:
        """The buffers without offsets, with what the application keeps alive until the end."""
        kept, _ = self.promises
        end = max((buffer.interval.last for buffer in self.buffers), default=0)
        lives = [(b, end if i in kept else b.interval.last) for i, b in enumerate(self.buffers)]
        return [b._replace(interval=b.interval._replace(offset=None, last=last)) for b, last in lives]

    @property
    def intervals(self) -> list[Interval]:
        return [buffer.interval for buffer in self.lifetimes]

    def alive(self, placed: Sequence[Interval]) -> list[Interval]:
        """Placed buffers with their lifetimes."""
        return [b.interval._replace(offset=at) for b, (_, _, _, at) in zip(self.lifetimes, placed, strict=True)]

    @property
    def head(self) -> int:
        return height_of(self.placed)

    @property
    def reserve(self) -> int:
        """Bytes to reserve for the arena (``kTensorArenaSize``): head and tail, or more if planning needs more."""
        return self.reserve_with(self.head)

    def reserve_with(self, head: int) -> int:
        """Bytes to reserve with another head, as of another plan."""
        return max(align(head + self.persistent), self.planning)

    @property
    def has_plan(self) -> bool:
        return self.graph.plan is not None

    @property
    def missing_operators(self) -> tuple[str, ...]:
        """Kinds of operators that TFLM has no kernel for."""
        return tuple(sorted({o.kind for _, o in self.graph.operators if kind_of(o).tflm is None}))

    @cached_property
    def problems(self) -> tuple[str, ...]:
        """The faults of the plan in the file, one sentence each; none if an NPU's compiler wrote it."""
        graph = self.graph
        if graph.plan is None or is_compiled(graph):
            return ()
        problems = [*self.lost] or self.faults(self.placed)
        problems += [
            f"tensor {t} is a variable and planned into the arena's head, where it can be overwritten"
            for s, t in planned_offsets(graph)
            if graph.subgraphs[s].tensors[t].is_updated_in_place
        ]
        problems += [
            f"tensor {t.index} of subgraph {s.index} is a variable, which TFLM gives no memory: it mistakes its offset"
            for s in graph.subgraphs[1:]
            for t in s.tensors
            if t.is_updated_in_place and graph.plan[PLAN_HEADER + t.index] != PLANNED_AT_RUN_TIME
        ]
        return tuple(problems)

    def faults(self, placed: Sequence[Interval]) -> list[str]:
        """The faults of placed buffers, one sentence each; they may share memory as their aliases allow."""
        placed = self.alive(placed)
        layout = layout_of(placed, dataclasses.replace(self.aliases.used_by(placed), joined=()))
        return plan_faults(layout.placed(placed), lambda i: self.name(layout.parts[i][1]))

    @cached_property
    def lost(self) -> list[str]:
        """What the application keeps and this layout does not, one sentence each, with all other faults."""
        moved = [pair for pair in self.promises[1] if self.placed[pair.old].offset != self.placed[pair.new].offset]
        apart = [f"{self.name(pair.new)} is not where {self.name(pair.old)} is" for pair in moved]
        return self.faults(self.placed) + apart if self.graph.kernels.kept else []

    def name(self, number: int) -> str:
        buffer = self.buffers[number]
        if buffer.tensor is None:
            return f"the scratch of operator {buffer.operator}"
        return f"tensor {buffer.tensor}" + (f" of subgraph {buffer.subgraph}" if len(self.graph.subgraphs) > 1 else "")

    def named(self, name: str) -> list[int]:
        """The numbers of the buffers of tensors with that name or, if there are none, number. Raises ValueError if no
        tensor in the arena has it."""
        tensors = {i: (b.subgraph, b.tensor) for i, b in enumerate(self.buffers) if b.tensor is not None}
        matches = [i for i, (s, t) in tensors.items() if self.graph.subgraphs[s].tensors[t].name == name]
        matches = matches or [i for i, key in tensors.items() if tensor_number(*key) == name]
        if not matches:
            what = "give the Id of the table, or the whole name of the CSV"
            raise ValueError(f"no tensor in the arena is {shorten(name)}: {what}")
        return matches

    @cached_property
    def aliases(self) -> Aliases:
        """Raises ArenaError if an output that is the next input is made while that is still needed."""
        aliases = AliasSearch(self.graph, self.lifetimes, self.promises[1]).run()
        for pair in self.promises[1]:
            begins, ends = self.buffers[pair.new].interval.first, self.buffers[pair.old].interval.last
            if begins <= ends and (begins < ends or pair not in aliases.pairs):
                why = f"{self.name(pair.new)} is made while {self.name(pair.old)} is still read"
                raise ArenaError(f"{why}, so they cannot have one place")
        if self.promises[1]:
            layout = layout_of(self.intervals, aliases)
            for clash in layout.clashes:
                one, other = (self.name(layout.parts[part][1]) for part in clash)
                raise ArenaError(f"{one} and {other} are needed at the same time, so they cannot have one place")
        return aliases

    @cached_property
    def used(self) -> Aliases:
        """The aliases that the plan in the file uses."""
        return self.aliases.used_by(self.placed) if self.has_plan else NO_ALIASES

    @property
    def freed(self) -> list[int]:
        """Numbers of the buffers whose memory others take while a part of them is still to be read."""
        clashes = {*conflicts(self.placed)} - {(min(pair), max(pair)) for pair in self.used.pairs}
        return sorted({i for pair in clashes for i in pair if i in self.used.pieces})

    @property
    def pieces(self) -> list[tuple[ArenaBuffer, Interval]]:
        """The memory in use over time, with its buffer: one interval per buffer, or several if it shares memory."""
        layout = layout_of(self.alive(self.placed), self.used)
        return [(self.buffers[i], one) for (_, i, _), one in zip(layout.parts, layout.placed(self.placed), strict=True)]


def analyse_arena(graph: ModelGraph, target: Target = BITS_32) -> Arena:
    """The arena that TFLM allocates for the file as it is, with the graph's kernels on a ``target``. Raises ArenaError
    if it cannot be computed, or the runtime would reject the file."""
    buffers, offsets, tail = arena_buffers(graph, target), planned_offsets(graph), persistent_bytes(graph, target)
    given = [b.interval._replace(offset=offsets.get((b.subgraph, b.tensor)) if b.tensor is not None else None)
             for b in buffers]  # fmt: skip
    placed = zip(buffers, place_greedily(given), strict=True)
    buffers = [buffer._replace(interval=interval) for buffer, interval in placed]
    return Arena(graph, tuple(buffers), tail.total, tail.planning(len(buffers)))


class SharedArena(NamedTuple):
    """Bytes to reserve for several models on a 32-bit target."""

    resident: int  # one arena; each model is ready to run at any time
    in_turn: int  # one arena; each model is set up anew before it runs
    apart: int  # an arena for each, in all


def share_arena(arenas: Sequence[Arena]) -> SharedArena:
    """The arena of several models, of which one runs at a time. With one MicroAllocator for all, the largest head is
    shared, and their tails add up, in this order. Raises ArenaError as :func:`persistent_bytes`."""
    tail = planning = 0
    for arena in arenas:
        pieces = persistent_bytes(arena.graph, before=tail)
        planning, tail = max(planning, pieces.planning(len(arena.buffers))), pieces.total
    head, alone = max(arena.head for arena in arenas), [arena.reserve for arena in arenas]
    return SharedArena(max(align(head + tail), planning), max(alone), sum(alone))


def shared_in_loops(graph: ModelGraph, arena: Arena) -> Shared:
    """The tensors of loops that share memory by the plan in the file, with all others in the same memory."""
    used, places = arena.used, layout_of(arena.placed, arena.used).places
    keys = [(b.subgraph, -1 if b.tensor is None else b.tensor) for b in arena.buffers]
    whiles = {(s.index, t) for s, o in graph.operators if o.kind == "WHILE" for t in o.writes}
    looped = {place for key, place in zip(keys, places, strict=True) if key in whiles}
    callees = {callee for _, operator in graph.operators if operator.kind == "WHILE" for callee in operator.callees}
    inside = {key for key, place in zip(keys, places, strict=True) if place in looped and key[0] in callees}
    handed = {
        (*keys[old], keys[new][1])
        for old, new in used.pairs
        if (places[old] in looped or keys[old][0] in callees) and keys[old][0] == keys[new][0]
    }
    return Shared(frozenset(inside | {keys[alias.new] for alias in used.copies}), frozenset(handed))


def tensor_number(subgraph: int, tensor: int) -> str:
    """The number of a tensor, after that of its subgraph unless it is in the first: ``5`` or ``1:5``."""
    return f"{subgraph}:{tensor}" if subgraph else f"{tensor}"


def plan_arena(arena: Arena, time_limit: float = TIME_LIMIT, in_place: bool = True, rounds: int | None = None) -> Plan:
    """The lowest plan found for the arena's buffers; with ``in_place``, they share memory where aliases allow it."""
    aliases = arena.aliases if in_place else Aliases(joined=arena.promises[1])
    return plan_buffers(arena.lifetimes, aliases, time_limit, rounds=rounds)


def plan_buffers(
    buffers: Sequence[ArenaBuffer], aliases: Aliases, time_limit: float, enough: int = 0, rounds: int | None = None
) -> Plan:
    """The lowest plan found, as the runtime executes it: TFLM takes offsets of tensors from the file, then places
    scratch itself. ``enough`` and ``rounds`` are as for :func:`plan_optimally`."""
    intervals = [buffer.interval._replace(offset=None) for buffer in buffers]
    layouts = [layout_of(intervals, Aliases(joined=aliases.joined))]
    if aliases:
        shared = layout_of(intervals, aliases)
        roomy = with_room_for_scratch(shared, intervals, {i for i, b in enumerate(buffers) if b.tensor is None})
        layouts = [shared, *([roomy] if roomy.parts != shared.parts else []), *layouts]
    bound = max(Profile(layouts[0].intervals).peak, enough)
    found = [] if aliases.joined else [place_greedily(intervals)]  # which joins nothing
    budget = Budget(time_limit)
    for i, layout in enumerate(layouts):
        if any(height_of(placed) <= bound for placed in found):
            break
        seconds = budget.share(1 / (len(layouts) - i)).left
        plan = plan_optimally(layout.intervals, seconds, layout.groups, enough, rounds)
        pairs = zip(layout.parts, plan.intervals, strict=True)
        address = {layout.places[owner]: (at or 0) - above for (_, owner, above), (*_, at) in pairs}
        rows = zip(intervals, buffers, layout.places, strict=True)
        kept = [interval._replace(offset=None if b.tensor is None else address[place]) for interval, b, place in rows]
        # If layouts differ in what shares memory, only the peak of bytes alive is a bound for all of them.
        bound = plan.bound if len(layouts) == 1 else bound
        found.append(place_greedily(kept))
    return Plan(min(found, key=height_of), bound)


####################################################################################################
# Two memories: which buffers are in the fast one, and which in the slow one
####################################################################################################

# TFLM gets the slow memory as its arena, and a planner that puts scratch, and all tensors below a boundary in the
# file's plan, into the fast memory. So the plan in the file has offsets of the fast memory, then of the slow one.

EXACT_DIVISIONS, MAX_DIVISIONS = 20, 40  # attempts with all of the memory, and in total
PLANNER_INDEX = 4  # bytes that the planner class adds for every buffer while TFLM plans
OWN_PLANNER_BYTES = 48  # of TFLM's own planner, which is not made when the application hands in another


def persistent_apart(arena: Arena) -> int:
    """Bytes of persistent structures with a planner class of the application."""
    return max(arena.persistent - OWN_PLANNER_BYTES, 0)


@dataclass(frozen=True)
class Memories:
    """Bytes of both, and tensors pinned to ``"fast"`` or ``"slow"`` by name. Raises ValueError if a size is invalid."""

    fast: int
    slow: int | None = None  # None: as much as is needed
    pins: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        for size in (self.fast, self.slow):
            if size is not None and not (isinstance(size, int) and size >= 0):
                raise ValueError(f"the size of a memory is a whole number of bytes, not {size!r}")

    def limits(self, persistent: int) -> tuple[int, int]:
        """Bytes available to tensors and scratch in the fast memory, and to tensors in the slow one."""
        slow = MAX_OFFSET if self.slow is None else min(self.slow, MAX_OFFSET)
        return min(self.fast, MAX_OFFSET), max(slow // ARENA_ALIGNMENT * ARENA_ALIGNMENT - persistent, 0)

    def pinned(self, arena: Arena) -> dict[int, bool]:
        """The pinned buffers: True for the fast memory, as for all scratch. A name may also be a tensor's number.
        Raises ValueError if no tensor in the arena has that name, it is pinned to both, or there is no such memory."""
        found = {i: True for i, buffer in enumerate(arena.buffers) if buffer.tensor is None}
        for name, where in self.pins.items():
            if where not in ("fast", "slow"):
                raise ValueError(f"a tensor is pinned to fast or slow, not {where!r}")
            for i in arena.named(name):
                if found.setdefault(i, where == "fast") != (where == "fast"):
                    raise ValueError(f"{arena.name(i)} is pinned to both memories")
        return found


def traffic(graph: ModelGraph, buffers: Sequence[ArenaBuffer]) -> list[int]:
    """Bytes that an inference moves to and from each buffer: once when it is made, and once per operator that reads it.
    Scratch is written and read once, unused buffers never; a loop counts as one iteration."""
    readers = Counter((s.index, t) for s, operator in graph.operators for t in operator.reads)
    times = (1 + (1 if b.tensor is None else readers[b.subgraph, b.tensor]) for b in buffers)
    return [b.bytes * n if b.interval.last >= 0 else 0 for b, n in zip(buffers, times, strict=True)]


class Claim(NamedTuple):
    """The memory that a buffer takes for an interval, unless this alias is used."""

    interval: Interval
    owner: int
    unless: Alias | None = None


@dataclass(frozen=True)
class DivisionProblem:
    """The problem to find the buffers of an arena for the fast memory with the largest sum of values. Both memories
    must hold theirs at all times; offsets are not part of it."""

    arena: Arena
    values: Sequence[int]  # bytes of traffic
    pinned: Mapping[int, bool]  # True: must be in the fast memory, False: must not be
    aliases: Aliases

    @cached_property
    def claims(self) -> list[Claim]:
        """What the buffers take of the memories that they are in."""
        pieces = {i: self.aliases.pieces.get(i, (one,)) for i, one in enumerate(self.arena.intervals)}
        copies = {alias.new: alias for alias in self.aliases.copies}
        takers: dict[int, list[Alias]] = defaultdict(list)  # by buffer, the aliases that end it early
        for alias in (*self.aliases.pairs, *self.aliases.alternatives):
            takers[alias.old].append(alias)
        claims = []
        for i, own in pieces.items():
            for piece in own:
                if i in copies:
                    claims.append(Claim(piece, i, copies[i]))
                    continue
                starts = ((begin, alias) for alias in takers[i] for _, begin, *_ in pieces[alias.new])
                begins = [start for start in starts if piece.first <= start[0] <= piece.last]
                begin, taker = min(begins, key=itemgetter(0), default=(piece.last + 1, None))
                if piece.first < begin:
                    claims.append(Claim(piece._replace(last=begin - 1), i))
                if taker:
                    claims.append(Claim(piece._replace(first=begin), i, taker))
        return claims

    @property
    def required(self) -> int:
        """The least bytes of fast memory, needed by buffers pinned to it."""
        return Profile(c.interval for c in self.claims if c.unless is None and self.pinned.get(c.owner)).peak

    def solve(
        self, limits: tuple[int, int], apart: Sequence[Collection[int]], time_limit: float, free: Sequence[Alias] = ()
    ) -> tuple[frozenset[int] | None, frozenset[Alias], int]:
        """(The buffers in the fast memory in the best case found, or None; the aliases used in either memory; an upper
        bound on the sum of values in any case).

        Args:
            limits: bytes of the fast memory and of the slow one.
            apart: sets of buffers that cannot all be in the fast one.
            free: aliases whose new buffers take no memory.
        """
        from ortools.sat.python import cp_model

        if time_limit <= 0:
            return None, frozenset(), sum(self.values)
        model = cp_model.CpModel()
        is_fast: list[Any] = [model.new_bool_var("") for _ in self.values]
        pairs = (*self.aliases.pairs, *self.aliases.alternatives, *self.aliases.copies)
        is_used: dict[Alias, Any] = {alias: model.new_bool_var("") for alias in pairs}
        for i, where in self.pinned.items():
            model.add(is_fast[i] == where)
        for together in apart:
            model.add(sum(is_fast[i] for i in together) < len(together))
        for alias, used in is_used.items():
            model.add(is_fast[alias.old] == is_fast[alias.new]).only_enforce_if(used)
        for old, new in self.aliases.joined:
            model.add(is_fast[old] == is_fast[new])
        for new in dict.fromkeys(alias.new for alias in self.aliases.alternatives):
            model.add_at_most_one(used for alias, used in is_used.items() if alias.new == new)
        is_slow: list[Any] = [literal.negated() for literal in is_fast]
        claims = [claim for claim in self.claims if claim.unless not in free]
        begins = sorted({claim.interval.first for claim in claims})
        for limit, is_here in zip(limits, (is_fast, is_slow), strict=True):
            taken: dict[int, list[Any]] = defaultdict(list)  # by time, when something begins
            for (size, first, last, _), owner, unless in claims:
                literal = is_here[owner]
                if unless is not None:
                    literal = model.new_bool_var("")
                    model.add_bool_or(literal, is_here[owner].negated(), is_used[unless])
                for begin in begins[bisect.bisect_left(begins, first) : bisect.bisect_right(begins, last)]:
                    taken[begin].append(size // ARENA_ALIGNMENT * literal)
            for sizes in taken.values():
                model.add(sum(sizes) <= limit // ARENA_ALIGNMENT)
        model.maximize(sum(value * literal for value, literal in zip(self.values, is_fast, strict=True)))
        solver, status = solve_constraints(model, time_limit)
        if status not in (cp_model.OPTIMAL, cp_model.FEASIBLE):
            return None, frozenset(), sum(self.values)
        fast = frozenset(i for i, literal in enumerate(is_fast) if solver.value(literal))
        used = frozenset(alias for alias, literal in is_used.items() if solver.value(literal))
        return fast, used, min(int(solver.best_objective_bound + 0.5), sum(self.values))


class Division(NamedTuple):
    """A plan for two memories: offsets from ``boundary`` on are in the slow one. Bytes."""

    plan: Plan
    boundary: int
    fast: frozenset[int]  # buffers
    most: int = 0  # upper bound on the traffic in the fast memory

    def reserve(self, arena: Arena) -> int:
        """Bytes of slow memory to reserve, with those for persistent structures and planning."""
        slow, planning = self.plan.height - self.boundary, arena.planning - OWN_PLANNER_BYTES
        return max(align(slow + persistent_apart(arena)), align(planning + PLANNER_INDEX * len(arena.buffers)))


def plan_memories(problem: DivisionProblem, memories: Memories, time_limit: float = TIME_LIMIT) -> Division | None:
    """The plan with the most traffic in the fast memory, or None if none was found. Divides the buffers such that both
    memories hold them at all times, then places them; if that fails, divides them again, finally with lower limits."""
    arena, limits = problem.arena, memories.limits(persistent_apart(problem.arena))
    budget, room, most, copies = Budget(time_limit), limits, sum(problem.values), problem.aliases.copies
    apart, is_proven = list[frozenset[int]](), not copies
    if copies:  # they may alias each other if the original is in the other memory
        *_, most = problem.solve(room, apart, budget.share(0.2).left, copies)
    for attempt in range(MAX_DIVISIONS):
        fast, used, bound = problem.solve(room, apart, budget.share(0.5).left)
        if fast is None:
            break
        most = bound if is_proven else most
        division, heads = _place_apart(problem, fast, used, limits, budget.share(0.5).left)
        over = [max(head.height - limit, 0) for head, limit in zip(heads, limits, strict=True)]
        if not any(over):
            break
        is_proven &= heads[0].bound > limits[0] and not over[1] and not problem.aliases
        apart += [fast] if over[0] else []
        if over[1] or attempt >= EXACT_DIVISIONS:
            room, is_proven = (room[0] - over[0], room[1] - over[1]), False
    else:
        fast = None
    if fast is None:
        always = frozenset(i for i, is_fast in problem.pinned.items() if is_fast)
        division, heads = _place_apart(problem, always, frozenset(), limits, budget.left)
    is_within = division.boundary <= limits[0] and heads[1].height <= limits[1]
    is_within &= memories.slow is None or division.reserve(arena) <= memories.slow
    return division._replace(most=most) if is_within else None


def _place_apart(
    problem: DivisionProblem, fast: frozenset[int], used: frozenset[Alias], limits: tuple[int, int], time_limit: float
) -> tuple[Division, tuple[Plan, Plan]]:
    """(The plan for a choice; the plans of both memories, which may exceed the limits)."""
    arena, aliases = problem.arena, problem.aliases
    chosen = [alias for alias in aliases.alternatives if alias in used]
    taken = {alias.new for alias in chosen}
    pairs = [alias for alias in aliases.pairs if alias.new not in taken] + chosen
    aliases = dataclasses.replace(aliases, pairs=tuple(pairs), alternatives=()).consistent(arena.intervals)
    budget, numbers = Budget(time_limit), range(len(arena.buffers))
    parts = [i for i in numbers if i in fast], [i for i in numbers if i not in fast]
    inside, outside = (([arena.lifetimes[i] for i in part], aliases.among(part)) for part in parts)
    first = plan_buffers(*inside, budget.share(0.5).left, limits[0])
    second = plan_buffers(*outside, budget.left if first.height <= limits[0] else 0)
    boundary = max(first.height, ARENA_ALIGNMENT)  # a C++ array cannot have 0 bytes
    intervals = arena.intervals
    for part, plan, base in zip(parts, (first, second), (0, boundary), strict=True):
        for i, interval in zip(part, plan.intervals, strict=True):
            intervals[i] = interval._replace(offset=(interval.offset or 0) + base)
    return Division(Plan(tuple(intervals), 0), boundary, fast), (first, second)


####################################################################################################
# Rewrites: a new schedule of a subgraph, as plain data, and changes of a file: tables -> tables
####################################################################################################


class NewTensor(NamedTuple):
    """A tensor to add: type, quantisation and name of ``like``, plus a label. It is constant if it has ``values``."""

    label: str
    shape: tuple[int, ...]
    like: int | None = None
    values: bytes | None = None
    has_content: bool = False  # it has the data of ``like``, in another shape
    is_carried: bool = False  # it aliases another tensor
    channels: tuple[int, int] | None = None  # quantised as channels [start, stop) of ``like``
    dtype: str = "INT32"  # if ``like`` is None


class NewOperator(NamedTuple):
    """An operator to add: a copy of operator ``like`` on other tensors, or a new one of ``kind``."""

    kind: str
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    like: int | None = None
    options: tuple[tuple[str, Any], ...] = ()  # that differ from those of ``like``, or from 0


class NewSubgraph(NamedTuple):
    """A subgraph to add, with its own tensor numbers; ``like`` refers to the subgraph that is rewritten."""

    name: str
    tensors: tuple[NewTensor, ...]
    operators: tuple[NewOperator, ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]


@dataclass(frozen=True)
class Rewrite:
    """A new schedule: numbers of old operators, and new ones. New tensors and subgraphs are numbered after the old."""

    operators: tuple[int | NewOperator, ...]
    tensors: tuple[NewTensor, ...] = ()
    ports: Mapping[int, int] = dataclasses.field(default_factory=dict)  # old tensor -> its replacement
    callees: tuple[NewSubgraph, ...] = ()
    constants: Mapping[int, NewTensor] = dataclasses.field(default_factory=dict)  # in place of computed tensors


def with_metadata(file: File, name: str, content: bytes = b"") -> File:
    """The file with this metadata entry in place of any of that name; without the entry if ``content`` is empty."""
    entries = [entry for entry in file.model["Metadata"] if entry["Name"] != name.encode()]
    buffers = [*file.model["Buffers"]] or [Table("Buffer")]  # number 0 stands for "no data"
    if content:
        entries.append(Table("Metadata", Name=name.encode(), Buffer=len(buffers)))
        buffers.append(Table("Buffer", Data=np.frombuffer(content, np.uint8)))
    return file.but(Metadata=entries, Buffers=buffers)


# The versions that LiteRT requires in the operator codes of new operators; of all others, 2 for int8 and else 1.
CODE_VERSIONS = {"FULLY_CONNECTED": 5, "BROADCAST_TO": 2}  # 5 is the first that keeps the number of dimensions
CODE_VERSIONS |= dict.fromkeys(("RESHAPE", "WHILE", "SELECT_V2", "DYNAMIC_UPDATE_SLICE"), 1)
LAST_SHORT_CODE = 127  # the value of the deprecated one-byte code for all later operators


def _words(values: Iterable[int]) -> np.ndarray:
    return np.array([*values], dtype="<i4")


class Rewriter:
    """Applies a rewrite to a subgraph of a file; weights are shared, a memory plan is dropped. Old tensors keep their
    numbers, so signatures and kept operators need no change. New tensors reuse the numbers of unused ones first;
    constants replace unused tensors that are left over, since TFLM would allocate them."""

    def __init__(self, file: File, subgraph: Subgraph, rewrite: Rewrite) -> None:
        self.file, self.subgraph, self.rewrite = file, subgraph, rewrite
        self.table: Table = file.model["Subgraphs"][subgraph.index]
        self.buffers = [*file.model["Buffers"]] or [Table("Buffer")]
        self.codes: list[Table] = [*file.model["OperatorCodes"]]
        self.tables: dict[NewTensor, Table] = {}

    def run(self) -> File:
        old, rewrite, model = self.subgraph, self.rewrite, self.file.model
        places, unused = self.places()
        tensors = dict(enumerate(self.table["Tensors"]))
        tensors |= {place: self.tensor(new) for place, new in zip(places, rewrite.tensors, strict=True)}
        tensors |= {place: self.tensor(NewTensor("unused", (1,), values=bytes(4))) for place in unused}
        tensors |= {t: self.tensor(new) for t, new in rewrite.constants.items()}
        number = {len(old.tensors) + i: place for i, place in enumerate(places)}
        given = self.table["Operators"]
        operators = [given[o] if isinstance(o, int) else self.operator(o, number, tensors) for o in rewrite.operators]
        subgraph = self.table.but(Tensors=[tensors[i] for i in sorted(tensors)], Operators=operators)
        if rewrite.ports:
            ports = {"Inputs": old.inputs, "Outputs": old.outputs}
            subgraph |= {field: _words(rewrite.ports.get(t, t) for t in ids) for field, ids in ports.items()}
        subgraphs = [*model["Subgraphs"], *map(self.callee, rewrite.callees)]
        subgraphs[old.index] = subgraph
        changed = self.file.but(Subgraphs=subgraphs, Buffers=self.buffers, OperatorCodes=self.codes)
        if rewrite.ports and "SignatureDefs" in model:
            changed = changed.but(SignatureDefs=list(map(self.signature, model["SignatureDefs"])))
        return with_metadata(changed, OFFLINE_PLAN)

    def places(self) -> tuple[list[int], list[int]]:
        """(The numbers of the new tensors; those of unused tensors that are left over)."""
        old, rewrite = self.subgraph, self.rewrite
        chosen = [old.operators[new] if isinstance(new, int) else new for new in rewrite.operators]
        used = {rewrite.ports.get(i, i) for i in (*old.inputs, *old.outputs)}
        used.update(*(o.inputs for o in chosen), *(o.outputs for o in chosen))
        used.update(*(o.intermediates for o in chosen if isinstance(o, Operator)))
        before = {i for operator in old.operators for i in (*operator.inputs, *operator.outputs)}
        free, count = sorted(i for i in before - used if i >= 0), len(rewrite.tensors)
        return [*free, *range(len(old.tensors), len(old.tensors) + count)][:count], free[count:]

    def signature(self, signature: Table) -> Table:
        """The signature with replaced inputs and outputs."""
        if signature["SubgraphIndex"] != self.subgraph.index:
            return signature

        def moved(entry: Table) -> Table:
            old = entry["TensorIndex"]
            return entry.but(TensorIndex=self.rewrite.ports.get(old, old))

        lists = {field: list(map(moved, signature[field])) for field in ("Inputs", "Outputs") if field in signature}
        return signature.but(**lists)

    def callee(self, new: NewSubgraph) -> Table:
        tensors, inputs, outputs = list(map(self.tensor, new.tensors)), _words(new.inputs), _words(new.outputs)
        operators = [self.operator(operator, {}, dict(enumerate(tensors))) for operator in new.operators]
        name = new.name.encode()
        return Table("SubGraph", Tensors=tensors, Inputs=inputs, Outputs=outputs, Operators=operators, Name=name)

    def tensor(self, new: NewTensor) -> Table:
        if new not in self.tables:
            self.tables[new] = self.new_tensor(new)
        return self.tables[new]

    def new_tensor(self, new: NewTensor) -> Table:
        title, like = "", Table("Tensor", Type=DTYPES.index(new.dtype))
        if new.like is not None:
            like, title = self.table["Tensors"][new.like], self.subgraph.tensors[new.like].name
            title = f"{shorten(title, 24)} " if new.label else title
            if new.has_content and new.shape == self.subgraph.tensors[new.like].shape:
                return like
        buffer = like["Buffer"] if new.has_content else 0
        if new.values is not None:
            buffer = len(self.buffers)
            self.buffers.append(Table("Buffer", Data=np.frombuffer(new.values, np.uint8)))
        made = Table("Tensor", Shape=_words(new.shape), Type=like["Type"], Buffer=buffer, HasRank=True)
        made["Name"] = (title + new.label).encode()
        if scales := like["Quantization"]:
            if new.channels is not None and len(scales["Scale"]) > 1:
                part = slice(*new.channels)
                scales = scales.but(Scale=scales["Scale"][part], ZeroPoint=scales["ZeroPoint"][part])
            made["Quantization"] = scales
        return made

    def operator(self, new: NewOperator, number: Mapping[int, int], tensors: Mapping[int, Table]) -> Table:
        inputs, outputs = ([number.get(i, i) for i in group] for group in (new.inputs, new.outputs))
        if new.like is None:
            made = Table("Operator", OpcodeIndex=self.code(new.kind, tensors[outputs[0]]["Type"]))
        else:
            made = self.table["Operators"][new.like].but()
        made |= {"Inputs": _words(inputs), "Outputs": _words(outputs)}
        kind = KINDS[new.kind].options.table if new.kind in KINDS else ""  # custom operators have bytes of their own
        if kind and (new.options or new.like is None):
            options = {field: _words(value) if isinstance(value, tuple) else value for field, value in new.options}
            made["BuiltinOptionsType"] = getattr(tflite.BuiltinOptions, kind)
            made["BuiltinOptions"] = (made["BuiltinOptions"] or Table(kind)).but(**options)
        return made

    def code(self, kind: str, dtype: int) -> int:
        """The index of the operator code for a new operator: one in the file if it fits, else a new one."""
        is_custom = kind in CUSTOM_KINDS
        version = CODE_VERSIONS.get(kind, 2 if dtype == tflite.TensorType.INT8 else 1)
        builtin = tflite.BuiltinOperator.CUSTOM if is_custom else getattr(tflite.BuiltinOperator, kind)
        for i, code in enumerate(self.codes):
            # Older builds of TFLM read only the full code when they look for the subgraphs of an operator.
            short = 0 if kind == "WHILE" else code["DeprecatedBuiltinCode"]
            is_it = max(code["BuiltinCode"], short) == builtin and code["Version"] >= version
            if is_it and (not is_custom or code["CustomCode"] == kind.encode()):
                return i
        code = Table("OperatorCode", DeprecatedBuiltinCode=min(builtin, LAST_SHORT_CODE), BuiltinCode=builtin)
        self.codes.append(code.but(Version=version, **({"CustomCode": kind.encode()} if is_custom else {})))
        return len(self.codes) - 1


####################################################################################################
# Snapshots: immutable models; every change makes a new one
####################################################################################################


@dataclass(frozen=True, eq=False)
class Snapshot:
    """An immutable model: its file and graph. What is derived from them is computed once, on first use."""

    file: File
    graph: ModelGraph

    @classmethod
    def read(cls, data: Bytes, kernels: Kernels = REFERENCE) -> Snapshot:
        """Read a model. Raises ModelError as :func:`read_model`."""
        file = File.read(data)
        return cls(file, read_graph(file, kernels))

    def changed(self, file: File) -> Snapshot:
        """A snapshot of another file, with the same kernels."""
        return Snapshot(file, read_graph(file, self.graph.kernels))

    @property
    def data(self) -> Bytes:
        """The file as bytes; raises as :attr:`File.data`."""
        return self.file.data

    @cached_property
    def schedules(self) -> tuple[Schedule, ...]:
        with contextlib.suppress(ArenaError):
            if looped_operators(self.graph):
                return schedule_model(self.graph, shared_in_loops(self.graph, self.arena))
        return schedule_model(self.graph)

    @property
    def peak(self) -> int:
        """Bytes of the largest working set of any subgraph; each includes the subgraphs that it runs."""
        return max(schedule.peak for schedule in self.schedules)

    @cached_property
    def arena(self) -> Arena:
        """The arena for the file as it is. Raises ArenaError as :func:`analyse_arena`."""
        return analyse_arena(self.graph)

    @cached_property
    def reserve_by_library(self) -> dict[str, int]:
        """Arena bytes by common kernel library if analysed for the reference kernels. Raises as :attr:`arena`."""
        names = () if self.graph.kernels.library else USUAL_LIBRARIES
        return {name: analyse_arena(self.graph.on(LIBRARIES[name])).reserve for name in names}

    @cached_property
    def refusals(self) -> list[str]:
        """The reasons why TFLM rejects the model, see :func:`refusals`."""
        return refusals(self.graph)

    def reordered(self, orders: Sequence[Sequence[int]]) -> Snapshot:
        """The model with the operators of each subgraph in another order, given as old numbers, and no plan."""
        pairs = zip(self.file.model["Subgraphs"], orders, strict=True)
        subgraphs = [s.but(Operators=[s["Operators"][i] for i in order]) if len(order) else s for s, order in pairs]
        return self.changed(with_metadata(self.file.but(Subgraphs=subgraphs), OFFLINE_PLAN))

    def with_offsets(self, offsets: Mapping[tuple[int, int], int]) -> Snapshot:
        """The model with a memory plan of these offsets, by (subgraph, tensor); TFLM places all other tensors."""
        tensors = [(s.index, t.index) for s in self.graph.subgraphs for t in s.tensors]
        words = 1, len(self.graph.subgraphs), len(tensors), *(offsets.get(t, PLANNED_AT_RUN_TIME) for t in tensors)
        return self.changed(with_metadata(self.file, OFFLINE_PLAN, _words(words).tobytes()))

    def planned(self, plan: Plan) -> Snapshot:
        """The model with this plan. Raises BrokenCertificate if it is faulty or the runtime would not follow it."""
        if faults := self.arena.faults(plan.intervals):
            raise BrokenCertificate(f"the plan that was found is at fault: {faults[0]}")
        pairs = zip(self.arena.buffers, plan.intervals, strict=True)
        offsets = {(b.subgraph, b.tensor): at for b, (*_, at) in pairs if b.tensor is not None and at is not None}
        planned = self.with_offsets(offsets)
        if self.graph.kernels.kept and planned.arena.problems:
            raise ArenaError("TFLM would place scratch memory over what is to be kept")
        if (planned.arena.head != plan.height and not self.graph.kernels.kept) or planned.arena.problems:
            raise BrokenCertificate(f"the plan of {plan.height:,} B takes {planned.arena.head:,} B in the file")
        return planned

    def without_wrong_plan(self) -> Snapshot:
        """The model without its memory plan if that is faulty: the runtime would compute wrong results with it."""
        with contextlib.suppress(ArenaError):
            if self.arena.problems:
                return self.changed(with_metadata(self.file, OFFLINE_PLAN))
        return self

    def rewritten(self, rewrite: Rewrite) -> Snapshot:
        """The model with a new schedule of subgraph 0."""
        return self.changed(Rewriter(self.file, self.graph.subgraphs[0], rewrite).run())

    def with_data_inside(self) -> Snapshot:
        """The model with external data moved into the FlatBuffer, where TFLM looks for it, as all that is written."""
        outside = not self.file.newer and any(content.is_external for content in self.graph.buffers)
        return self.repacked() if outside else self

    def repacked(self) -> Snapshot:
        """The model without unreferenced bytes, and with all data inside the FlatBuffer."""
        return self.changed(self.file.but())

    def with_contents(self, contents: Mapping[int, np.ndarray]) -> Snapshot:
        """The model with other data (uint8) in some buffers."""
        buffers = dict(enumerate(self.file.model["Buffers"]))
        buffers |= {i: Table("Buffer", Data=data) for i, data in contents.items()}
        return self.changed(self.file.but(Buffers=[*buffers.values()])) if contents else self


####################################################################################################
# Stripes, the rows: which operator computes which rows in which stripe
####################################################################################################


def row_rule(subgraph: Subgraph, operator: Operator) -> RowRule | str:
    """The rule of an operator, or the reason why it has to run whole."""
    node = node_of(subgraph, operator)
    if node.kind.rows is None:
        return f"{operator.kind} does not work row by row"
    if node.output is None or len(node.outputs) != len(operator.outputs):
        return "an output is missing"
    if len(node.outputs) > 1 and node.kind.rows is not axes_rows:
        return "it has several outputs"
    for output in node.outputs:
        if why := why_no_rows(output):
            return f"its output cannot be cut: {why}"
    if node.output.shape[HEIGHT] == 1:
        return "its output has one row only"
    roles = node.kind.roles
    if any(node.get(role) is None for role in roles if role != "bias") or (not roles and not all(node.inputs)):
        return "an input is missing"
    if not node.inputs or (roles and len(node.inputs) > len(roles)):
        return "it has more inputs than it should have, or none"
    source = node.get("input")
    if source is not None and (why := why_no_rows(source)):
        return f"its input cannot be cut: {why}"
    weights = node.get("weights")
    if source is not None and weights is not None and source.dtype == "FLOAT32" != weights.dtype:
        return "it is hybrid, and LiteRT quantises its input by the range of the whole tensor"
    if source is not None and source is weights:
        return "its input is also its weights"
    return node.kind.rows(node)


class Part(NamedTuple):
    """An operator of a region: its outputs, and how it works along the height."""

    outputs: tuple[int, ...]  # it computes the same rows of each
    rule: RowRule


@dataclass(frozen=True)
class Region:
    """Operators that run stripe by stripe, by number, in execution order."""

    parts: dict[int, Part]
    heights: Mapping[int, int]  # of all tensors that the parts name
    live_out: tuple[int, ...]  # outputs that are read outside of the region; every row of them is computed
    is_cached: bool  # True if rows of earlier stripes are kept, so that none is computed twice


@dataclass(frozen=True)
class Stripe:
    """One stripe: the rows that each operator computes, and those that the readers of each inner tensor need."""

    computed: dict[int, Rows]  # by operator, the last one first, without those that compute nothing
    needed: dict[int, Rows]  # by tensor


class NoStripes(ValueError):
    """A region cannot be cut into this number of stripes."""


def stripe_rows(region: Region, stripes: int) -> list[Stripe]:
    """The rows of each stripe. Raises NoStripes if an operator would read nothing but padding in one of them."""
    found, done = [Stripe({}, {}) for _ in range(stripes)], dict.fromkeys(region.parts, 0)
    read_inside = {i for part in region.parts.values() for i in part.rule.sources}
    for number, stripe in enumerate(found, start=1):
        read: dict[int, Rows] = {}  # by the operators after this one
        for operator, (outputs, rule) in reversed(region.parts.items()):
            for output in outputs:
                first, stop = read.get(output, (done[operator], done[operator]))
                if output in region.live_out:
                    is_due = number == stripes or output not in read_inside
                    stop = max(stop, region.heights[output] * number // stripes if is_due else 0)
                    first = min(first, done[operator])
                stripe.needed[output] = rule.whole(first, stop)
            first = min(stripe.needed[output].first for output in outputs)
            stop = max(stripe.needed[output].stop for output in outputs)
            first = max(first, done[operator]) if region.is_cached else first
            if first >= stop:
                continue
            stripe.computed[operator] = Rows(first, stop)
            done[operator] = max(done[operator], stop)
            for source in rule.sources:
                span = Rows(*rule.span(first, stop, region.heights[source])[:2])
                if span.first >= span.stop:
                    raise NoStripes
                old = read.get(source, span)
                read[source] = Rows(min(old.first, span.first), max(old.stop, span.stop))
    return found


####################################################################################################
# Stripes as operators: a region and its rows -> new operators and tensors, as plain data
####################################################################################################

Values = bytes | tuple[int, ...]  # of a constant
LOWEST = {"FLOAT32": b"\xff\xff\x7f\xff", "INT8": b"\x80", "INT16": b"\0\x80", "INT32": b"\0\0\0\x80"}  # finite


class Emitter:
    """Collects the new operators and tensors of regions, in execution order."""

    def __init__(self, subgraph: Subgraph, first_callee: int = 0) -> None:
        self.subgraph, self.first_callee = subgraph, first_callee
        self.callees: list[NewSubgraph] = []
        self.tensors: list[NewTensor] = []
        self.operators: list[NewOperator] = []
        self.schedule: list[int | NewOperator] = []  # the new operators and, by number, old ones between them
        self.constants: dict[tuple[Any, ...], int] = {}

    def add(self, tensor: NewTensor) -> int:
        self.tensors.append(tensor)
        return len(self.subgraph.tensors) + len(self.tensors) - 1

    def tensor(self, like: int, shape: tuple[int, ...], label: str) -> int:
        return self.add(NewTensor(label, shape, like))

    def rows(self, like: int, rows: Rows) -> int:
        return self.tensor(like, self.shape(like, rows.height), f"{rows[0]}:{rows[1]}")

    def carried(self, like: int | None, shape: tuple[int, ...]) -> int:
        """Add a tensor that aliases another one; of int32 if ``like`` is None."""
        return self.add(NewTensor("in place", shape, like, is_carried=True))

    def number(self, dtype: str, *shape: int) -> int:
        return self.add(NewTensor("number", shape, dtype=dtype))

    def table(self, content: bytes, shape: tuple[int, ...], dtype: str = "INT32", like: int | None = None) -> int:
        """Add a constant that is used once."""
        return self.add(NewTensor("table", shape, like, content, dtype=dtype))

    def shape_of(self, tensor: int) -> tuple[int, ...]:
        old = self.subgraph.tensors
        return old[tensor].shape if tensor < len(old) else self.tensors[tensor - len(old)].shape

    def reshape(self, tensor: int, target: int) -> int:
        return self.emit("RESHAPE", (tensor,), target, NewShape=self.shape_of(target))

    def reshaped(self, constant: int, shape: tuple[int, ...]) -> int:
        """The constant in another shape, added once."""
        key = constant, shape, ()
        if key not in self.constants:
            self.constants[key] = self.add(NewTensor("reshaped", shape, constant, has_content=True))
        return self.constants[key]

    def enclose(self, callee: Emitter, name: str, inputs: Sequence[int], outputs: Sequence[int]) -> int:
        """Make a subgraph of what ``callee`` has collected and the old constants that it reads; returns its number."""
        count = len(self.subgraph.tensors)
        old = sorted({t for operator in callee.operators for t in operator.inputs if 0 <= t < count})
        number = {t: i for i, t in enumerate([*old, *range(count, count + len(callee.tensors))])} | {-1: -1}

        def numbers(tensors: Iterable[int]) -> tuple[int, ...]:
            return tuple(number[t] for t in tensors)

        shared = [NewTensor("", self.subgraph.tensors[t].shape, t, has_content=True) for t in old]
        operators = [o._replace(inputs=numbers(o.inputs), outputs=numbers(o.outputs)) for o in callee.operators]
        tensors = (*shared, *callee.tensors)
        self.callees.append(NewSubgraph(name, tensors, tuple(operators), numbers(inputs), numbers(outputs)))
        return self.first_callee + len(self.callees) - 1

    def shape(self, like: int, height: int) -> tuple[int, ...]:
        batch, _, *others = self.subgraph.tensors[like].shape
        return batch, height, *others

    def constant(self, values: Values, shape: tuple[int, ...], like: int | None = None, dtype: str = "INT32") -> int:
        """A constant of int32 values, or of bytes in the type of ``like`` or ``dtype``; equal ones are added once."""
        key = dtype if like is None else like, shape, values
        if key not in self.constants:
            content = values if isinstance(values, bytes) else struct.pack(f"<{len(values)}i", *values)
            self.constants[key] = self.add(NewTensor("rows", shape, like, content, dtype=dtype))
        return self.constants[key]

    def integers(self, *values: int, shape: tuple[int, ...] = ()) -> int:
        return self.constant(values, shape or (len(values),))

    def part(self, tensor: int, begin: int, size: Sequence[int], target: int) -> int:
        """A block of a tensor, from the position in the tensor ``begin``."""
        return self.emit("SLICE", (tensor, begin, self.integers(*size)), target)

    def gather(self, tensor: int, rows: int, target: int) -> int:
        """Rows of a tensor; their numbers are in the tensor ``rows``."""
        return self.emit("GATHER", (tensor, rows), target, Axis=HEIGHT)

    def emit(self, kind: str, inputs: Sequence[int], *outputs: int, like: int | None = None, **options: Any) -> int:
        """Add an operator and return its first output."""
        self.operators.append(NewOperator(kind, tuple(inputs), outputs, like, tuple(options.items())))
        self.schedule.append(self.operators[-1])
        return outputs[0]

    def rewrite(self) -> Rewrite:
        return Rewrite(tuple(self.schedule), tuple(self.tensors), callees=tuple(self.callees))

    def slice(self, tensor: int, like: int, have: Rows, want: Rows) -> int:
        """Rows ``want`` of a tensor that holds rows ``have``; the tensor itself if these are equal."""
        if have == want:
            return tensor
        batch, *others = self.shape(like, want.height)
        begin = self.integers(0, want[0] - have[0], *[0] * (len(others) - 1))
        # -1 takes the whole batch, which LiteRT may resize: a fixed size would silently leave out inputs.
        size = -1 if self.subgraph.tensors[like].dynamic else batch, *others
        return self.part(tensor, begin, size, self.rows(like, want))

    def concatenate(self, parts: Sequence[int], axis: int, target: int | None = None, like: int | None = None) -> int:
        """Join tensors along an axis, in several steps if they are too many for one operator."""
        while len(parts) > MAX_CONCATENATED:
            groups = [parts[i : i + MAX_CONCATENATED] for i in range(0, len(parts), MAX_CONCATENATED)]
            parts = [self.concatenate(group, axis) if len(group) > 1 else group[0] for group in groups]
        if target is None:
            shape, first = list(self.shape_of(parts[0])), parts[0] - len(self.subgraph.tensors)
            shape[axis] = sum(self.shape_of(part)[axis] for part in parts)
            source = parts[0] if first < 0 else self.tensors[first].like
            target = self.add(NewTensor("joined", tuple(shape), source))
        return self.emit("CONCATENATION", parts, target, like=like, Axis=axis)

    def padded(self, like: int, tensor: int, height: int, rows: Sequence[int], columns: Pads, is_max: bool) -> int:
        """Rows of a tensor in explicit padding, instead of the padding that the operator adds itself."""
        batch, _, width, channels = self.subgraph.tensors[like].shape
        inputs = [tensor, self.integers(0, 0, *rows, *columns, 0, 0, shape=(4, 2))]
        if is_max:
            inputs.append(self.constant(LOWEST[self.subgraph.tensors[like].dtype], (1,), like))
        shape = batch, height + sum(rows), width + sum(columns), channels
        return self.emit("PADV2" if is_max else "PAD", inputs, self.tensor(like, shape, "padded"))

    def compute(self, operator: Operator, rule: RowRule, rows: Rows, inputs: Mapping[int, int]) -> dict[int, int]:
        """Emit an operator for some output rows; ``inputs`` hold its source rows. Returns the tensor of each output."""
        chosen = [inputs.get(i, i) for i in operator.inputs]
        height = self.subgraph.tensors[rule.sources[0]].shape[HEIGHT]
        first, stop, *pads = rule.span(rows[0], rows[1], height)
        made = rule.made(rows, Rows(first, stop))
        if rule.pads_itself and (any(pads) or any(rule.columns)):
            chosen[0] = self.padded(rule.sources[0], chosen[0], stop - first, pads, rule.columns, rule.is_max)
        values = {"": 0, "read": stop - first, "made": made.height, "above": pads[0], "below": pads[1]}
        results = self.copy(operator, rule, chosen, values, lambda output: self.rows(output, made))
        return {output: self.slice(result, output, made, rows) for output, result in results.items()}

    def copy(
        self, operator: Operator, rule: RowRule, chosen: list[int], values: Mapping[str, int], new: Callable[[int], int]
    ) -> dict[int, int]:
        """Emit the operator on other tensors, unless it pads with nothing; its constants depend on ``values``: rows
        read, made and of padding. Returns the tensor of each output, which ``new`` adds."""
        tensors = self.subgraph.tensors
        for position in {position for position, _, _ in rule.constants}:
            old = tensors[chosen[position]]
            changed = {entry: values[name] for where, entry, name in rule.constants if where == position}
            constant = tuple(changed.get(i, value) for i, value in enumerate(old.values or ()))
            if rule.constants == ROWS_OF_PADDING and not any(constant):
                return {operator.outputs[0]: chosen[0]}
            chosen[position] = self.integers(*constant, shape=old.shape)
        changes = {"Padding": tflite.Padding.VALID} if rule.pads_itself else {}
        results = {output: new(output) for output in operator.outputs}
        self.emit(operator.kind, chosen, *results.values(), like=operator.index, **changes)
        return results


class RegionEmitter:
    """Emits a region stripe by stripe and joins the new rows of live-out tensors at the end. A cached region keeps the
    rows of inner tensors that a later stripe reads:

        stripe 1    [======= computed =======]
        kept by SLICE              [= cache =]
        stripe 2                              [======= computed =======]
        joined by CONCATENATION    [========= available ===============]
    """

    def __init__(self, emitter: Emitter, region: Region) -> None:
        self.emitter, self.subgraph, self.region = emitter, emitter.subgraph, region
        self.cache: dict[int, tuple[int, Rows]] = {}  # rows kept from earlier stripes: (tensor, its rows)
        self.pieces: dict[int, list[tuple[int, Rows]]] = {output: [] for output in region.live_out}

    def run(self, stripes: Sequence[Stripe]) -> None:
        """Emit all stripes, as :func:`stripe_rows` returns them."""
        later: list[dict[int, int]] = [{}]  # per stripe, the first row of each tensor that a later one needs
        for stripe in reversed(stripes[1:]):
            needed = {t: min(rows.first, later[-1].get(t, rows.first)) for t, rows in stripe.needed.items()}
            later.append({**later[-1], **needed})
        for stripe, needed_later in zip(stripes, reversed(later), strict=True):
            self.stripe(stripe, needed_later)
        for output, parts in self.pieces.items():
            self.emitter.concatenate([tensor for tensor, _ in parts], HEIGHT, output)

    def stripe(self, stripe: Stripe, needed_later: Mapping[int, int]) -> None:
        emitter, heights = self.emitter, self.region.heights
        available = dict(self.cache)  # available rows of inner tensors: (tensor, its rows)
        fetched: dict[tuple[int, int, int], int] = {}
        for number, rows in reversed(stripe.computed.items()):
            rule = self.region.parts[number].rule
            inputs = {}
            for source in rule.sources:
                first, stop, _, _ = rule.span(rows[0], rows[1], heights[source])
                key = source, first, stop
                if key not in fetched:
                    tensor, have = available.get(source) or (source, Rows(0, heights[source]))
                    fetched[key] = emitter.slice(tensor, source, have, Rows(first, stop))
                inputs[source] = fetched[key]
            for output, computed in emitter.compute(self.subgraph.operators[number], rule, rows, inputs).items():
                available[output] = computed, rows
                if output in self.cache and stripe.needed[output].first < rows.first:
                    kept, before = self.cache[output]
                    both = Rows(before.first, rows.stop)
                    joined = emitter.concatenate((kept, computed), HEIGHT, emitter.rows(output, both))
                    available[output] = joined, both
                self.add_piece(output, computed, rows)
                self.cache.pop(output, None)
                if self.region.is_cached and (first := needed_later.get(output, rows.stop)) < rows.stop:
                    tensor, have = available[output]
                    keep = Rows(max(first, have.first), rows.stop)
                    self.cache[output] = emitter.slice(tensor, output, have, keep), keep

    def add_piece(self, output: int, computed: int, rows: Rows) -> None:
        if output in self.pieces:
            parts = self.pieces[output]
            fresh = Rows(max(parts[-1][1].stop if parts else 0, rows.first), rows.stop)
            if fresh.first < fresh.stop:
                parts.append((self.emitter.slice(computed, output, rows, fresh), fresh))


A_TENSOR = Tensor(0, "", "INT8", (1, 1, 1, 1), Storage.ACTIVATION, 0, 1)


class Copies:
    """Scratch bytes and instructions of new operators of a subgraph, by the shapes of their tensors."""

    def __init__(self, subgraph: Subgraph, candidates: Collection[int]) -> None:
        self.subgraph, self.candidates = subgraph, candidates  # operators that may need scratch
        self.known: dict[tuple[Any, ...], tuple[int, int]] = {}

    def __call__(self, new: NewOperator, tensors: Sequence[NewTensor | int]) -> tuple[int, int]:
        """(Bytes, with each buffer aligned; instructions); tensors are old ones, by number, or new ones."""
        shapes = tuple(t if isinstance(t, int) else (t.shape, t.dtype if t.like is None else t.like) for t in tensors)
        key = new.kind, new.like, new.options, shapes
        if key not in self.known:
            self.known[key] = self.cost(new, list(map(self.tensor, tensors)))
        return self.known[key]

    def tensor(self, tensor: NewTensor | int) -> Tensor | None:
        if isinstance(tensor, int):
            return self.subgraph.tensors[tensor] if tensor >= 0 else None
        if tensor.like is not None:
            like = self.subgraph.tensors[tensor.like]
            return dataclasses.replace(like, shape=tensor.shape, storage=Storage.ACTIVATION)
        return dataclasses.replace(A_TENSOR, shape=tensor.shape, dtype=tensor.dtype)

    def cost(self, new: NewOperator, tensors: Sequence[Tensor | None]) -> tuple[int, int]:
        inputs, outputs = tuple(tensors[: len(new.inputs)]), tuple(filter(None, tensors[len(new.inputs) :]))
        kernels = self.subgraph.kernels
        old = None if new.like is None else node_of(self.subgraph, self.subgraph.operators[new.like])
        options = {**(old.options if old else {}), **dict(new.options)}
        node = Node(old.kind if old else KINDS[new.kind], inputs, outputs, options, b"", kernels)
        kernel = node.kernel if new.like in self.candidates else None
        scratch = sum(map(align, kernel.scratch(node))) if kernel else 0
        return scratch, instructions(new.kind, node)


class Bill:
    """The tensors, operators and scratch that an emitter has added, to compute their memory and time."""

    def __init__(self, emitter: Emitter, copies: Copies) -> None:
        subgraph, self.operators = emitter.subgraph, emitter.operators
        self.old = old = len(subgraph.tensors)

        def size(new: NewTensor) -> int:
            if new.values is not None or new.is_carried:
                return 0
            element = ELEMENT_TYPES[new.dtype] if new.like is None else subgraph.tensors[new.like].element
            return align(math.prod(new.shape) * (element.tflm_bytes or 0))

        self.sizes = list(map(size, emitter.tensors))  # of the new tensors, as TFLM aligns them
        # By tensor, the operator that makes it, and the last one that reads it.
        self.born = {t: number for number, o in enumerate(self.operators) for t in o.outputs}
        self.last = {t: number for number, o in enumerate(self.operators) for t in o.inputs}
        costs = [
            copies(o, [emitter.tensors[t - old] if t >= old else t for t in (*o.inputs, *o.outputs)])
            for o in self.operators
        ]
        # Scratch: bytes, first and last operator.
        self.requests = [(scratch, number, number) for number, (scratch, _) in enumerate(costs) if scratch]
        self.time = sum(time for _, time in costs)  # instructions


####################################################################################################
# Loops, the rows: what one iteration of a region does
####################################################################################################

# The same region as one loop: a copy of every operator, which the builtin WHILE executes repeatedly. An iteration
# makes the next rows of every tensor from the next rows of the inputs; only rows at the ends are computed twice:
#
#     line buffer of a tensor    [= halo =|===== new rows =====]     what a 3 x 3 window reads in this iteration
#     the next iteration         ........ [= halo =|===== new rows =====]
#
# Rows outside the feature map are computed like all others, so that all iterations are the same, and then overwritten
# with padding if a window reads them. A tensor that the loop carries from one iteration to the next has one offset in
# the arena, and all steps of the loop update it in place (see "Aliases").

LOOP_DTYPES = ("FLOAT32", "INT8")  # types that GATHER supports in TFLM
MAX_ITERATIONS, MAX_LOOP_ROWS, MAX_UNITS = 1024, 1 << 14, 1 << 18  # each takes room in the tables of a loop
POSITION = 4  # minimum of table entries per iteration: one for each axis of a position
WIDE = 16  # columns written at once from which on it takes less time to reshape what is written, and where


class NoLoop(ValueError):
    """The reason why a region cannot be a loop."""


@dataclass(frozen=True)
class Track:
    """Rows of a tensor in a loop: iteration i makes ``rows`` from ``first + i * rows`` on, some outside the tensor."""

    rows: int
    first: int
    halo: int = 0  # rows of earlier iterations that its readers need
    columns: Pads = NO_PADS  # columns of padding that they need
    is_masked: bool = False  # True if they need padding instead of rows outside the feature map
    fill: bytes = b""  # one element of that padding, or any

    @property
    def has_line_buffer(self) -> bool:
        """True if the loop carries a line buffer for the tensor."""
        return self.halo > 0 or self.columns != NO_PADS

    @property
    def height(self) -> int:
        return self.halo + self.rows


@dataclass(frozen=True)
class OverInput:
    """A loop output that overwrites the input: the largest saving in loops, 18 to 47 % of the arena. The loop carries
    one tensor for both, with rows of ``unit`` elements, a divisor of an input row and of what an iteration writes. Each
    iteration writes where no later one reads:

        [ output so far | ...free... | input that is still needed ]
    """

    source: Tensor
    output: Tensor
    rows: int  # of the output, per iteration
    is_flat: bool = False  # True: the loop carries it without columns

    @property
    def row_elements(self) -> tuple[int, int]:
        """Elements per row of the input, and of the output."""
        source, output = self.source, self.output
        return source.elements // source.shape[HEIGHT], output.elements // output.shape[HEIGHT]

    @property
    def unit(self) -> int:
        old, new = self.row_elements
        return math.gcd(old, self.rows * new)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the carried tensor."""
        is_plain = self.unit == self.row_elements[0] and not self.is_flat
        return self.source.shape if is_plain else (1, self.source.elements // self.unit, 1, self.unit)

    @property
    def is_output(self) -> bool:
        """True if the carried tensor is the output, without a slice or reshape."""
        return self.output.shape == self.shape


@dataclass(frozen=True)
class Loop:
    """A region as a loop."""

    region: Region
    iterations: int
    tracks: Mapping[int, Track]  # of every tensor that is read or written row by row
    sources: tuple[int, ...]  # tensors from outside, read row by row
    whole: tuple[int, ...]  # other tensors from outside, read whole in every iteration
    written: Mapping[int, int]  # outputs of the region, and the first row of each that iteration 0 writes
    over_input: OverInput | None = None  # if its output overwrites the first of its sources
    is_quick: bool = False  # True: it takes fewer instructions and more persistent memory

    def quick(self) -> Loop:
        """The same loop with GATHER, which takes a sixth of the time of SLICE, and with rows without columns where they
        are written: DYNAMIC_UPDATE_SLICE takes long for each column."""
        over = self.over_input and dataclasses.replace(self.over_input, is_flat=self.is_wide(self.over_input.output))
        return dataclasses.replace(self, over_input=over, is_quick=True)

    def is_wide(self, tensor: Tensor) -> bool:
        """True if the new rows of a tensor have so many columns that it pays to write them without."""
        return self.tracks[tensor.index].rows * tensor.shape[2] >= WIDE

    def all_rows(self, t: int) -> np.ndarray:
        """By iteration, the numbers of the rows of a tensor that are made or fetched."""
        track = self.tracks[t]
        return track.first + np.arange(self.iterations)[:, None] * track.rows + np.arange(track.rows)

    def is_aligned(self, t: int) -> bool:
        """True if in every iteration these rows are all inside the feature map, or all outside."""
        track = self.tracks[t]
        return track.first % track.rows == self.region.heights[t] % track.rows == 0

    def is_reshaped(self, t: int) -> bool:
        """True if the loop carries a source in another shape."""
        over = self.over_input
        return over is not None and t == over.source.index and over.shape != over.source.shape

    def overwriting(self, tensors: Sequence[Tensor]) -> Loop:
        """The loop with its output over its first source if no row that is read later is lost; else the same loop."""
        if len(self.written) != 1:
            return self
        source, output = (tensors[t] for t in (self.sources[0], *self.written))
        first, track, rows = self.written[output.index], self.tracks[source.index], self.tracks[output.index].rows
        over = OverInput(source, output, rows)
        if source.dtype != output.dtype or output.elements > source.elements or source.elements > MAX_UNITS * over.unit:
            return self
        for iteration in range(self.iterations):
            next_read = track.first + (iteration + 1) * track.rows
            stop = max(first + iteration * rows, 0) + rows
            if next_read < source.shape[HEIGHT] and stop * over.row_elements[1] > next_read * over.row_elements[0]:
                return self
        return dataclasses.replace(self, over_input=over)


class LoopPads(NamedTuple):
    """The padding that the readers of a tensor need; ``above`` and ``below`` are 0 if they need no rows."""

    columns: Pads = NO_PADS
    above: int = 0
    below: int = 0
    element: bytes = b""


class Loops:
    """All loops that a region can be. Raises NoLoop if it cannot be any."""

    def __init__(self, subgraph: Subgraph, region: Region) -> None:
        self.subgraph, self.region = subgraph, region
        self.check()
        made = {t for outputs, _ in region.parts.values() for t in outputs}
        used = {t for number in region.parts for t in subgraph.operators[number].reads}
        rates = self.rates()
        self.sources = tuple(t for t in rates if t not in made)
        others = sorted(used - made - {*self.sources})
        self.whole = tuple(t for t in others if subgraph.tensors[t].storage is not Storage.CONSTANT)
        self.step = math.lcm(*(rate.denominator for rate in rates.values()))
        # Rows of each tensor in an iteration with ``step`` rows of the first source.
        self.rows = {t: int(rate * self.step) for t, rate in rates.items()}
        plain = {t: LoopPads(element=padding_element(subgraph.tensors[t])) for t in rates}
        self.pads = plain | self.all_pads()
        heights = {output: region.heights[output] for output in region.live_out}
        steps = math.gcd(*(height // self.rows[output] for output, height in heights.items()))
        is_even = all(height % self.rows[output] == 0 for output, height in heights.items())
        # Rows of the first source per iteration that divide all outputs evenly, the most iterations first.
        iterations = (n for n in range(min(steps, MAX_ITERATIONS), 1, -1) if is_even and steps % n == 0)
        self.paces = [self.step * (steps // n) for n in iterations]
        if not self.paces:
            raise NoLoop("no number of iterations makes the same number of rows in each")

    def check(self) -> None:
        sources = {t for _, rule in self.region.parts.values() for t in rule.sources}
        for number, (outputs, rule) in self.region.parts.items():
            operator = self.subgraph.operators[number]
            if isinstance(rule, CutRule):
                raise NoLoop(f"{operator.kind} does not do the same in every iteration")
            if "value" in kind_of(operator).roles:
                raise NoLoop(f"{operator.kind} pads with a value of its own")
            if sources.intersection(operator.reads) - {*rule.sources}:
                raise NoLoop("a tensor is read both row by row and whole")
            for tensor in (self.subgraph.tensors[t] for t in (*outputs, *rule.sources)):
                if len(tensor.shape) != 4 or tensor.shape[0] != 1:
                    raise NoLoop("a tensor has a batch, or no rows and columns")
                if tensor.shape[HEIGHT] > MAX_LOOP_ROWS:
                    raise NoLoop(f"a tensor has more than {MAX_LOOP_ROWS:,} rows")
                if tensor.dtype not in LOOP_DTYPES and tensor.index in rule.sources:
                    raise NoLoop(f"TFLM's GATHER does not take {tensor.dtype}")

    def rates(self) -> dict[int, Fraction]:
        """Rows of each tensor per row of the first source."""
        rates: dict[int, Fraction] = {}
        for outputs, rule in self.region.parts.values():
            known = {rates[source] for source in rule.sources if source in rates}
            if len(known) > 1 or (rates and not known):
                raise NoLoop("branches do not go along at one pace")
            rate = known.pop() if known else Fraction(1)
            rates.update(dict.fromkeys(rule.sources, rate))
            rates.update(dict.fromkeys(outputs, rate * rule.repeat / rule.stride))
        return rates

    def all_pads(self) -> dict[int, LoopPads]:
        all_pads: dict[int, LoopPads] = {}
        for outputs, rule in self.region.parts.values():
            source, rows = rule.sources[0], self.region.heights[outputs[0]] // rule.repeat
            below = (rows - 1) * rule.stride - rule.pad_top + rule.window - self.region.heights[source]
            is_padded = rule.pad_top > 0 or below > 0 or rule.columns != NO_PADS
            if not is_padded or not (rule.pads_itself or rule.constants == ROWS_OF_PADDING):
                continue
            element = padding_element(self.subgraph.tensors[source], rule.is_max)
            old = all_pads.get(source, LoopPads(element=element))
            if old.element != element:
                raise NoLoop("the readers of a tensor need different padding")
            wider = Pads(*map(max, old.columns, rule.columns))
            all_pads[source] = LoopPads(wider, max(old.above, rule.pad_top), max(old.below, below), element)
        return all_pads

    def loop(self, pace: int, is_early: bool = False) -> Loop:
        """The loop with ``pace`` rows of the first source per iteration. With ``is_early``, iteration 0 fetches its row
        0, so that the output can overwrite it."""
        counts = {t: rows * pace // self.step for t, rows in self.rows.items()}
        heights, live_out = self.region.heights, self.region.live_out
        first, needed = self.latest(counts)
        # Iterations before the last: enough to make every row that is written or that a later iteration reads.
        kept = (-(-first[t] // counts[t]) for t in first if needed[t] < first[t])
        before = max(*(heights[output] // counts[output] - 1 for output in live_out), *kept, 0)
        written = {output: heights[output] - (before + 1) * counts[output] for output in live_out}
        tracks = {}
        for t, rows in counts.items():
            pads, start, oldest = self.pads[t], first[t] - before * rows, needed[t] - before * rows
            if is_early and t == self.sources[0]:
                start = max(start, 0)
            is_masked = pads.above > 0 and start < 0
            is_masked |= pads.below > 0 and start + (before + 1) * rows > heights[t]
            tracks[t] = Track(rows, start, max(start - oldest, 0), pads.columns, is_masked, pads.element)
        return Loop(self.region, before + 1, tracks, self.sources, self.whole, written)

    def latest(self, counts: Mapping[int, int]) -> tuple[dict[int, int], dict[int, int]]:
        """Per tensor: the first row that the last iteration makes, as late as readers allow; the first they need."""
        ends = {output: self.region.heights[output] for output in self.region.live_out}
        needed = {output: end - counts[output] for output, end in ends.items()}
        for outputs, rule in reversed(self.region.parts.values()):
            end = -(-max(ends[output] for output in outputs if output in ends) // rule.repeat)
            start = end - counts[outputs[0]] // rule.repeat
            ends.update(dict.fromkeys(outputs, end * rule.repeat))
            for t in rule.sources:
                last = (end - 1) * rule.stride - rule.pad_top + rule.window
                ends[t] = max(ends.get(t, last), last)
                needed[t] = min(needed.get(t, last), start * rule.stride - rule.pad_top)
        first = {t: end - counts[t] for t, end in ends.items()}
        return first, {t: min(needed.get(t, row), row) for t, row in first.items()}


def padding_element(tensor: Tensor, is_max: bool = False) -> bytes:
    """The element that windows read as padding: zero, or the lowest value for a maximum."""
    if is_max:
        return LOWEST[tensor.dtype]
    zero = tensor.affine[1] if tensor.affine and tensor.dtype != "FLOAT32" else 0
    size = tensor.element.tflm_bytes or 0
    return (zero % (1 << 8 * size)).to_bytes(size, "little")


####################################################################################################
# Loops as operators: one iteration, the body of WHILE, and what is around it, as plain data
####################################################################################################


class BodyEmitter:
    """Emits one iteration: makes new rows of each tensor, masks those outside with padding, writes them into the line
    buffer that the operators read, and moves its last rows to its start. Tables hold what an iteration reads and
    writes, from ``iteration * step`` on, which is the loop's counter."""

    def __init__(self, body: Emitter, loop: Loop) -> None:
        self.body, self.loop, self.subgraph = body, loop, body.subgraph
        # By source and iteration, the rows to fetch of the carried tensor.
        self.reads = {t: self.rows_to_fetch(t) for t in loop.sources}
        most = 2 * POSITION if loop.is_quick else 0  # more would widen all tables
        self.gathered = {t for t, rows in self.reads.items() if rows.shape[1] <= most or not loop.is_aligned(t)}
        self.step = max([POSITION, *(self.reads[t].shape[1] for t in self.gathered)])
        self.position = -1  # the tensor that holds the loop's counter
        self.next: dict[int, int] = {}  # carried tensor of the body -> its value in the next iteration
        self.places: dict[int, int] = {}  # tensor from outside -> its number in the body
        self.inside: dict[int, int] = {}  # tensor -> its line buffer in the body at the start of an iteration
        self.line_buffers: dict[int, int] = {}  # the same, after the new rows are written
        self.fresh: dict[int, int] = {}  # tensor -> its new rows
        self.handed: dict[int, int] = {}  # tensor of the body -> the one computed in place of it by its only reader
        self.known: dict[tuple[Any, ...], int] = {}  # what is emitted once
        self.last_reader = {t: number for number, part in loop.region.parts.items() for t in part.rule.sources}

    def run(self) -> None:
        body, loop = self.body, self.loop
        for number, (outputs, rule) in loop.region.parts.items():
            operator, made, views = self.subgraph.operators[number], loop.tracks[outputs[0]], {}
            start = made.first // rule.repeat * rule.stride - rule.pad_top
            read = Rows(start, start + (made.rows // rule.repeat - 1) * rule.stride + rule.window)  # in iteration 0
            for source in rule.sources:
                if source not in self.fresh:
                    self.arrive(source, self.fetched(source))
                views[source] = self.view(source, read, rule)
            chosen = [views.get(t, self.places.get(t, t)) for t in operator.inputs]
            values = {"": 0, "read": read.height, "made": made.rows, "above": 0, "below": 0}
            results = body.copy(operator, rule, chosen, values, self.new_rows)
            for source in rule.sources:
                if self.last_reader[source] == number:
                    self.shift(source)
            for output, rows in results.items():
                self.arrive(output, rows)
        self.next[self.position] = self.looked_up(np.arange(1, loop.iterations + 1)[:, None] * self.step)

    def once(self, key: tuple[Any, ...], emit: Callable[..., int], *arguments: Any) -> int:
        """What is emitted for a key; where it is needed again in the iteration, the same."""
        if key not in self.known:
            self.known[key] = emit(*arguments)
        return self.known[key]

    def looked_up(self, entries: np.ndarray) -> int:
        """The entries of the current iteration in a table of (iterations, entries) integers."""
        return self.once((entries.shape, entries.tobytes()), self._looked_up, entries)

    def _looked_up(self, entries: np.ndarray) -> int:
        iterations, count = entries.shape
        table = np.zeros((iterations, self.step), dtype="<i4")
        table[:, :count] = entries
        length = table.size - self.step + count
        values = self.body.table(table.ravel()[:length].tobytes(), (length,))
        return self.body.part(values, self.position, (count,), self.body.number("INT32", count))

    def looked_up_at(self, axis: int, values: np.ndarray) -> int:
        """A position in four dimensions: the iteration's value on ``axis``, 0 on the others."""
        positions = np.zeros((len(values), POSITION), dtype=np.int64)
        positions[:, axis] = values
        return self.looked_up(positions)

    def rows_to_fetch(self, t: int) -> np.ndarray:
        """In place of each row outside, the nearest one inside."""
        loop, over, last = self.loop, self.loop.over_input, self.subgraph.tensors[t].shape[HEIGHT] - 1
        count, rows = loop.tracks[t].rows, loop.all_rows(t)
        if loop.is_aligned(t):
            rows = np.clip(rows[:, :1], 0, last + 1 - count) + np.arange(count)
        rows = np.clip(rows, 0, last)
        if over is None or not loop.is_reshaped(t):
            return rows
        units = over.row_elements[0] // over.unit
        return (rows[:, :, None] * units + np.arange(units)).reshape(len(rows), -1)

    def fetched(self, t: int) -> int:
        """The new rows of a source, by GATHER or, if they are neighbours, by SLICE."""
        body, place, rows = self.body, self.places[t], self.reads[t]
        batch, _, *row = body.shape_of(place)
        shape = batch, rows.shape[1], *row
        target = self.new_rows(t, shape)
        if t in self.gathered:
            body.gather(place, self.looked_up(rows), target)
        else:
            body.part(place, self.looked_up_at(HEIGHT, rows[:, 0]), shape, target)
        return target if shape == self.new_shape(t) else body.reshape(target, self.in_place_of(target, t))

    def new_shape(self, t: int) -> tuple[int, ...]:
        return self.body.shape(t, self.loop.tracks[t].rows)

    def new_rows(self, t: int, shape: tuple[int, ...] | None = None) -> int:
        """A tensor for the new rows of ``t``."""
        return self.body.tensor(t, self.new_shape(t) if shape is None else shape, "rows")

    def in_place_of(self, rows: int, t: int, shape: tuple[int, ...] | None = None) -> int:
        """A tensor for what an operator makes of new rows, computed in place."""
        target = self.new_rows(t, shape)
        self.handed[rows] = target
        return target

    def arrive(self, t: int, rows: int) -> None:
        """Mask new rows of a tensor, add them to its line buffer, and write them to the output."""
        if self.loop.tracks[t].is_masked:
            rows = self.masked(t, rows)
        self.fresh[t] = rows
        if t in self.line_buffers:
            self.line_buffers[t] = self.with_new_rows(t, self.line_buffers[t], rows)
        if t in self.loop.written:
            self.write(t)
        if t not in self.last_reader:
            self.shift(t)

    def with_new_rows(self, t: int, lines: int, rows: int) -> int:
        """The line buffer with new rows."""
        body, track, shape = self.body, self.loop.tracks[t], self.line_buffer_shape(t)
        batch, height, width, channels = shape
        if not self.loop.is_quick or not self.loop.is_wide(self.subgraph.tensors[t]):
            start = body.integers(0, track.halo, track.columns.before, 0)
            return body.emit("DYNAMIC_UPDATE_SLICE", (lines, rows, start), body.carried(t, shape))
        flat, (*_, columns, _) = (batch, height, 1, width * channels), self.new_shape(t)
        rows = body.reshape(rows, self.in_place_of(rows, t, (batch, track.rows, 1, columns * channels)))
        start = body.integers(0, track.halo, 0, track.columns.before * channels)
        lines = body.reshape(lines, body.carried(t, flat))
        lines = body.emit("DYNAMIC_UPDATE_SLICE", (lines, rows, start), body.carried(t, flat))
        return body.reshape(lines, body.carried(t, shape))

    def masked(self, t: int, rows: int) -> int:
        """The rows, with padding instead of those outside the feature map: by SELECT_V2 or, where that takes ten times
        as long and padding is the lowest value, by MINIMUM (not with several rows of a mask: CMSIS-NN of July 2026
        mixes up those of an operand with one column)."""
        body, numbers, fill = self.body, self.loop.all_rows(t), self.loop.tracks[t].fill
        inside, like = (numbers >= 0) & (numbers < self.subgraph.tensors[t].shape[HEIGHT]), None
        if self.loop.is_aligned(t):  # one value per iteration, repeated for each of its table entries
            inside = np.repeat(inside[:, 0], self.step)
            like = t if fill == LOWEST["INT8"] and self.new_shape(t)[-1] == 1 else None
        mask = self.once((inside.shape, inside.tobytes(), like), self.mask, inside, like)
        target = self.in_place_of(rows, t)
        if like is not None:
            return body.emit("MINIMUM", (rows, mask), target)
        return body.emit("SELECT_V2", (mask, rows, self.padding(body, t, fill)), target)

    def mask(self, inside: np.ndarray, like: int | None) -> int:
        """What rows of the iteration are inside: one value of a vector, or a row of a matrix. In the type of ``like``,
        the highest value and the lowest."""
        shape, selector = (1,) if inside.ndim == 1 else (1, inside.shape[1], 1, 1), self.position
        if inside.ndim > 1:
            selector = self.looked_up_at(0, np.arange(self.loop.iterations))
        values = inside if like is None else np.where(inside, 127, -128).astype(np.int8)
        masks = self.body.table(values.tobytes(), (len(inside), *shape[1:]), "BOOL", like)
        made = self.body.number("BOOL", *shape) if like is None else self.body.tensor(like, shape, "mask")
        return self.body.part(masks, selector, shape, made)

    def view(self, t: int, rows: Rows, rule: RowRule) -> int:
        """The rows that an operator reads of a tensor, by their numbers in iteration 0."""
        body, track = self.body, self.loop.tracks[t]
        new = Rows(track.first, track.first + track.rows)
        if t not in self.line_buffers or (rule.columns == NO_PADS and rows.first >= new.first):
            part = body.slice(self.fresh[t], t, new, rows)
            if rule.columns == NO_PADS:
                return part
            return body.padded(t, part, rows.height, NO_PADS, rule.columns, rule.is_max)
        have = Rows(track.first - track.halo, new.stop)
        is_window = rule.padding is not None
        is_end_ignored = is_window and have.stop - rows.stop < rule.stride  # the rest is too small for another window
        if rule.columns == track.columns and have.first == rows.first and (have == rows or is_end_ignored):
            return self.line_buffers[t]
        return self.once((t, rows, rule.columns), self.cut, t, rows, rule.columns)

    def cut(self, t: int, rows: Rows, columns: Pads) -> int:
        """Rows of a line buffer, by their numbers in iteration 0, with these columns of padding."""
        body, track, (batch, _, width, channels) = self.body, self.loop.tracks[t], self.subgraph.tensors[t].shape
        shape = batch, rows.height, width + sum(columns), channels
        first = rows.first - track.first + track.halo
        if columns == track.columns:  # GATHER copies rows, SLICE bytes
            chosen = body.integers(*range(first, first + rows.height))
            return body.gather(self.line_buffers[t], chosen, body.tensor(t, shape, "view"))
        begin = body.integers(0, first, track.columns.before - columns.before, 0)
        return body.part(self.line_buffers[t], begin, shape, body.tensor(t, shape, "view"))

    def shift(self, t: int) -> None:
        """Move the last rows of a line buffer to its start, after all operators have read it."""
        if t not in self.line_buffers:
            return
        track, lines = self.loop.tracks[t], self.line_buffers[t]
        if track.halo:
            rows = [track.rows + i if i < track.halo else i for i in range(track.height)]
            target = self.body.carried(t, self.line_buffer_shape(t))
            lines = self.body.gather(lines, self.body.integers(*rows), target)
        self.next[self.inside[t]] = lines

    def write(self, output: int) -> None:
        body, loop, tensor, over = self.body, self.loop, self.subgraph.tensors[output], self.loop.over_input
        track, first, rows = loop.tracks[output], loop.written[output], self.fresh[output]
        if first != track.first:
            rows = self.cut(output, Rows(first, first + track.rows), NO_PADS)
        starts = first + np.arange(loop.iterations) * track.rows
        place, like, shape = self.places.get(output, -1), output, tensor.shape
        if over is not None:
            place, like, shape = self.places[over.source.index], over.source.index, over.shape
            per_iteration = track.rows * over.row_elements[1] // math.prod(shape[2:])
            starts = starts // track.rows * per_iteration
            units = 1, per_iteration, *shape[2:]
            if units != self.new_shape(output):
                target = body.tensor(like, units, "units")
                self.handed[rows] = target
                rows = body.reshape(rows, target)
        self.next[place] = body.emit(
            "DYNAMIC_UPDATE_SLICE", (place, rows, self.looked_up_at(HEIGHT, starts)), body.carried(like, shape)
        )

    def line_buffer_shape(self, t: int) -> tuple[int, ...]:
        batch, _, width, channels = self.subgraph.tensors[t].shape
        track = self.loop.tracks[t]
        return batch, track.height, width + sum(track.columns), channels

    def padding(self, emitter: Emitter, like: int, element: bytes) -> int:
        """A constant of one padding element, shared by all tensors of one type and quantisation."""
        tensors, wanted = self.subgraph.tensors, self.subgraph.tensors[like]
        same = (t.index for t in tensors if (t.dtype, t.quantization) == (wanted.dtype, wanted.quantization))
        return emitter.constant(element, (1,), next(same))


class Carried(NamedTuple):
    """A tensor that a loop carries, by its numbers before the loop, in its body, in its condition and after it."""

    before: int
    inside: int
    condition: int
    after: int


class LoopEmitter:
    """Emits a region as a loop: line buffers of padding, room for outputs, WHILE, then an output over the input."""

    def __init__(self, emitter: Emitter, loop: Loop) -> None:
        self.emitter, self.loop, self.subgraph = emitter, loop, emitter.subgraph
        self.cond, self.iteration = Emitter(self.subgraph), BodyEmitter(Emitter(self.subgraph), loop)
        self.carried: list[Carried] = []
        self.full: dict[tuple[Any, ...], int] = {}  # tensors full of one value, shared by variables

    def run(self) -> None:
        emitter, loop, tensors, body = self.emitter, self.loop, self.subgraph.tensors, self.iteration
        over = loop.over_input
        body.position = self.carry(emitter.integers(0), None, (1,))
        for t in loop.whole:
            body.places[t] = self.carry(t, t, tensors[t].shape)
        for t in loop.sources:
            before, shape, after = t, tensors[t].shape, None
            if over and over.source.index == t and over.is_output:
                after = over.output.index
            if over and loop.is_reshaped(t):
                before, shape = emitter.reshape(t, emitter.carried(t, over.shape)), over.shape
            body.places[t] = self.carry(before, t, shape, after)
        for output in loop.written if over is None else ():
            body.places[output] = self.carry_filled(output, tensors[output].shape, output)
        for t, track in loop.tracks.items():
            if track.has_line_buffer:
                body.inside[t] = body.line_buffers[t] = self.carry_filled(t, body.line_buffer_shape(t))
        body.run()
        self.close()
        if over and not over.is_output:
            self.move_out(over)

    def carry(self, before: int, like: int | None, shape: tuple[int, ...], after: int | None = None) -> int:
        """Make a tensor a loop variable and return its number in the body."""
        inside = self.iteration.body.carried(like, shape)
        after = self.emitter.carried(like, shape) if after is None else after
        self.carried.append(Carried(before, inside, self.cond.carried(like, shape), after))
        self.iteration.next[inside] = inside
        return inside

    def carry_filled(self, like: int, shape: tuple[int, ...], after: int | None = None) -> int:
        """A loop variable that is full of padding at first; WHILE copies that for each variable."""
        element = self.loop.tracks[like].fill
        key = self.subgraph.tensors[like].dtype, shape, element
        if key not in self.full:
            value = self.iteration.padding(self.emitter, like, element)
            size = self.emitter.integers(*shape)
            self.full[key] = self.emitter.emit("BROADCAST_TO", (value, size), self.emitter.carried(like, shape))
        return self.carry(self.full[key], like, shape, after)

    def close(self) -> None:
        """Emit the condition and WHILE."""
        emitter, cond = self.emitter, self.cond
        count = self.loop.iterations * self.iteration.step
        goes_on = cond.table(b"\1" * count + b"\0", (count + 1,), "BOOL")
        before, inside, condition, after = zip(*self.carried, strict=True)
        verdict = cond.part(goes_on, condition[0], (1,), cond.number("BOOL", 1))
        first = emitter.enclose(cond, "goes on", condition, [verdict])
        second = emitter.enclose(self.iteration.body, "turn", inside, [self.iteration.next[t] for t in inside])
        emitter.emit("WHILE", before, *after, CondSubgraphIndex=first, BodySubgraphIndex=second)

    def move_out(self, over: OverInput) -> None:
        """Emit the output, which is in the first rows of the carried tensor. Only RESHAPE changes the scale: LiteRT's
        delegate XNNPACK refuses a SLICE that does."""
        emitter, inside = self.emitter, self.iteration.places[over.source.index]
        result = next(carried.after for carried in self.carried if carried.inside == inside)
        batch, height, *row = over.shape
        rows = over.output.elements // math.prod(row)
        if rows < height:
            size = batch, rows, *row
            target = emitter.carried(over.source.index, size)
            result = emitter.part(result, emitter.integers(0, 0, 0, 0), size, target)
        emitter.reshape(result, over.output.index)


####################################################################################################
# Equivalents: other operators that compute the same
####################################################################################################

MOVERS = ("RESHAPE", "EXPAND_DIMS", "SQUEEZE")  # they copy bytes


def is_mover(subgraph: Subgraph, operator: Operator) -> bool:
    """True if the output has the bytes of the first input, which is computed, in another shape of known size."""
    if operator.kind not in MOVERS or not operator.reads or len(operator.writes) != 1:
        return False
    tensors = source, output = [subgraph.tensors[t] for t in (operator.inputs[0], operator.writes[0])]
    is_plain = all(t.storage is Storage.ACTIVATION and t.bytes and not t.dynamic for t in tensors)
    return is_plain and (source.bytes, source.dtype, source.affine) == (output.bytes, output.dtype, output.affine)


PLAIN_WINDOW = dict.fromkeys(_CONV[1:5], 1) | {"Padding": 1}  # VALID; options of convolutions


class Substitution:
    """A new schedule of subgraph 0: operators are replaced by what the first of ``rules`` emits, and operators whose
    outputs are no longer read go."""

    is_for_rejected: ClassVar[bool] = False  # True: only operators that TFLM rejects are replaced
    rules: ClassVar[Sequence[Callable[[Any, Operator, Node], bool]]]  # each emits operators and returns True, or none

    def __init__(self, graph: ModelGraph) -> None:
        self.graph, self.subgraph = graph, (subgraph := graph.subgraphs[0])
        self.emitter = Emitter(subgraph)
        self.producers = {t: operator for operator in subgraph.operators for t in operator.writes}
        self.read = Counter(t for operator in subgraph.operators for t in operator.reads)
        self.changed: dict[int, list[NewOperator]] = {}
        self.constants: dict[int, NewTensor] = {}  # in place of tensors that operators computed
        for operator in subgraph.operators if is_ordered(subgraph) else ():
            before = len(self.emitter.operators)
            is_served = operator.writes and (not self.is_for_rejected or operator_refusal(subgraph, operator))
            for rule in self.rules if is_served else ():
                with contextlib.suppress(LookupError):  # an input is missing
                    if rule(self, operator, node_of(subgraph, operator)):
                        self.changed[operator.index] = self.emitter.operators[before:]
                        break

    def rewrite(self) -> Rewrite:
        needed = set(self.subgraph.outputs)
        schedule: list[int | NewOperator] = []
        for operator in reversed(self.subgraph.operators):
            is_pure = kind_of(operator).effect is None and not operator.callees and not operator.variable
            was_read = any(self.read[t] for t in operator.writes)
            if was_read and is_pure and needed.isdisjoint(operator.writes):
                continue
            new = self.changed.get(operator.index, [operator.index])
            needed.update(*(operator.inputs if isinstance(one, int) else one.inputs for one in new))
            schedule += reversed(new)
        return Rewrite(tuple(reversed(schedule)), tuple(self.emitter.tensors), constants=self.constants)

    def maker(self, operator: Operator, *kinds: str) -> Operator | None:
        """The operator of one of these kinds that makes the first input, which is not used for anything else."""
        source = operator.inputs[0] if operator.inputs else -1
        maker = self.producers.get(source)
        is_only = self.read[source] == 1 and source not in self.subgraph.outputs
        return maker if maker and maker.kind in kinds and is_only and len(maker.writes) == 1 else None

    def change(self, operator: Operator, inputs: Sequence[int], **options: Any) -> bool:
        """Emit a copy of the operator with other inputs and options."""
        self.emitter.emit(operator.kind, inputs, *operator.outputs, like=operator.index, **options)
        return True


class Lightening(Substitution):
    """Cheaper equivalents: the same results, bit for bit, with less memory.

    - CONV_2D of floats with a window of 1 x 1 becomes FULLY_CONNECTED, which keeps nothing per channel.
    - Convolutions take over a PAD before them if SAME padding is equal, and become dilated in place of
      SPACE_TO_BATCH_ND before and BATCH_TO_SPACE_ND after them.
    - FULLY_CONNECTED drops a RESHAPE before it, since it ignores the shape of its input; other operators drop the
      operators before them that only move bytes, if these restore a shape.
    """

    def dilated(self, operator: Operator, node: Node) -> bool:
        """In place of a BATCH_TO_SPACE_ND: a dilated convolution, after a PAD."""
        made = self.maker(operator, "CONV_2D", "DEPTHWISE_CONV_2D") if "crops" in node.kind.roles else None
        batches = self.maker(made, "SPACE_TO_BATCH_ND") if made else None
        if made is None or batches is None:
            return False
        first, inner = (node_of(self.subgraph, one) for one in (batches, made))
        source, output, weights = first["input"], node["output"], inner["weights"]
        blocks, pads, crops = first["block"].values, first["paddings"].values, node["crops"].values
        if blocks is None or pads is None or crops is None or blocks != node["block"].values or len(blocks) != 2:
            return False
        is_plain = all(inner.options[name] == value for name, value in PLAIN_WINDOW.items())
        scales = (source.affine, inner["output"].affine) == (inner["input"].affine, output.affine)
        if any(pads) and source.affine and source.affine[1]:
            return False  # TFLM (August 2026) pads with 0 instead of the zero point, and LiteRT with that
        if not is_plain or not scales or not is_map(source) or source.dynamic or len(weights.shape) != 4:
            return False
        outer = []
        for axis, (size, first_pad, crop) in enumerate(zip(blocks, pads[::2], crops[::2], strict=True), start=1):
            before, padded = first_pad - crop, output.shape[axis] + (weights.shape[axis] - 1) * size
            outer.append(Pads(before, padded - source.shape[axis] - before))
        if min(map(min, outer)) < 0:
            return False
        read = source.index
        if any(map(any, outer)):
            read = self.emitter.padded(read, read, source.shape[HEIGHT], outer[0], outer[1], is_max=False)
        inputs, dilation = (read, *made.inputs[1:]), {"DilationHFactor": blocks[0], "DilationWFactor": blocks[1]}
        self.emitter.emit(made.kind, inputs, output.index, like=made.index, **dilation)
        return True

    def past_movers(self, operator: Operator, node: Node) -> bool:
        inputs = tuple(map(self.origin, operator.inputs))
        return inputs != operator.inputs and operator.kind not in MOVERS and self.change(operator, inputs)

    def origin(self, tensor: int) -> int:
        """The first tensor with the same shape and bytes."""
        here, found, tensors = tensor, tensor, self.subgraph.tensors
        while (maker := self.producers.get(here)) and is_mover(self.subgraph, maker):
            here = maker.inputs[0]
            found = here if tensors[here].shape == tensors[tensor].shape else found
        return found

    def without_reshaping(self, operator: Operator, node: Node) -> bool:
        if operator.kind != "FULLY_CONNECTED" or operator.options.get("KeepNumDims", True):
            return False
        made = self.maker(operator, "RESHAPE")
        if made is None or not is_mover(self.subgraph, made) or not node.get("weights"):
            return False
        return self.change(operator, (made.inputs[0], *operator.inputs[1:]))

    def without_padding(self, operator: Operator, node: Node) -> bool:
        made = self.maker(operator, "PAD") if node.kind.rows is convolution_rows else None
        if made is None or isinstance(rule := row_rule(self.subgraph, operator), str):
            return False
        pad, output = node_of(self.subgraph, made), self.subgraph.tensors[operator.outputs[0]]
        source, values = pad["input"], pad["paddings"].values
        is_alike = (source.dtype, source.affine) == (node["input"].dtype, node["input"].affine)
        if not values or not is_alike or not has_rows(source) or any(rule.columns) or rule.pad_top:
            return False
        pads = [Pads(*values[i : i + 2]) for i in range(0, len(values), 2)]
        if len(pads) != len(source.shape) or any(pads[0]) or any(pads[3]):
            return False
        strides, windows = (operator.options["StrideH"], operator.options["StrideW"]), (rule.window, rule.width)
        for axis, (step, window) in enumerate(zip(strides, windows, strict=True), start=1):
            before, after = source.shape[axis], output.shape[axis]
            same = same_pads(before, after, step, window)
            if after != -(-before // step) or same.before != pads[axis].before or same.after > pads[axis].after:
                return False
        return self.change(operator, (source.index, *operator.inputs[1:]), Padding=tflite.Padding.SAME)

    def as_dense(self, operator: Operator, node: Node) -> bool:
        if operator.kind != "CONV_2D" or isinstance(row_rule(self.subgraph, operator), str):
            return False
        source, weights, output = node["input"], node["weights"], node["output"]
        is_float = source.dtype == weights.dtype == output.dtype == "FLOAT32"
        is_plain = is_float and weights.storage is Storage.CONSTANT and not weights.is_sparse
        if not is_plain or weights.shape[1:] != (1, 1, source.shape[3]) or source.shape[:3] != output.shape[:3]:
            return False
        options = {"FusedActivationFunction": operator.options["FusedActivationFunction"], "KeepNumDims": True}
        matrix = self.emitter.reshaped(weights.index, (weights.shape[0], weights.shape[3]))
        self.emitter.emit("FULLY_CONNECTED", (source.index, matrix, *operator.inputs[2:]), output.index, **options)
        return True

    rules = dilated, without_padding, without_reshaping, past_movers, as_dense


MAX_COPIES = 1 << 10  # inputs of CONCATENATION in place of a TILE


class Repair(Substitution):
    """Equivalents of operators that TFLM rejects, bit for bit:

    - CONCATENATION of too many inputs, in several steps; TILE as CONCATENATION of copies
    - a bias of zeros in place of one that is left out as -1
    - constants of float32 in place of a DEQUANTIZE of constants, such as float16 weights
    - FULLY_CONNECTED with a scale per channel as CONV_2D with a window of 1 x 1

    With ``is_inexact``, also float weights in place of integers where activations are floats ("hybrid"): LiteRT rounds
    these activations to 8 bits first, so its results differ from the new ones, which are more precise."""

    is_for_rejected = True

    def __init__(self, graph: ModelGraph, is_inexact: bool = False) -> None:
        self.is_inexact = is_inexact
        self.floats: list[str] = []  # operators with float weights now
        super().__init__(graph)

    def in_steps(self, operator: Operator, node: Node) -> bool:
        if operator.kind != "CONCATENATION" or len(operator.inputs) <= MAX_CONCATENATED or not all(node.inputs):
            return False
        if len({tensor.affine for tensor in (*node.inputs, node.output) if tensor}) > 1:
            return False
        axis = operator.options["Axis"] % len(node["output"].shape)
        self.emitter.concatenate(operator.inputs, axis, operator.outputs[0], like=operator.index)
        return True

    def as_copies(self, operator: Operator, node: Node) -> bool:
        if operator.kind != "TILE" or not (times := node["multiples"].values) or min(times) < 1 or max(times) < 2:
            return False
        if sum(times) > MAX_COPIES or node["input"].affine != node["output"].affine:
            return False
        last, here = max(axis for axis, count in enumerate(times) if count > 1), operator.inputs[0]
        for axis, count in enumerate(times):
            if count > 1:
                here = self.emitter.concatenate([here] * count, axis, operator.outputs[0] if axis == last else None)
        return True

    def with_bias(self, operator: Operator, node: Node) -> bool:
        if node.kind.rows is not convolution_rows or operator.inputs[2:] != (-1,):
            return False
        return self.change(operator, (*operator.inputs[:2], self.zeros(node)))

    def zeros(self, node: Node) -> int:
        """A bias of zeros."""
        dtype = {"INT8": "INT32", "INT16": "INT64", "FLOAT32": "FLOAT32"}[node["input"].dtype]
        count = node["output"].shape[-1]
        size = count * (ELEMENT_TYPES[dtype].tflm_bytes or 0)
        return self.emitter.constant(bytes(size), (count,), dtype=dtype)

    def folded(self, operator: Operator, node: Node) -> bool:
        output = operator.outputs[0]
        if operator.kind != "DEQUANTIZE" or output in self.subgraph.outputs or node["input"].element.numpy is None:
            return False
        if (values := self.in_float32(node["input"])) is None:
            return False
        self.constants[output] = NewTensor("", node["output"].shape, output, values)
        return True

    def as_convolution(self, operator: Operator, node: Node) -> bool:
        if operator.kind != "FULLY_CONNECTED" or (node["input"].dtype, node["weights"].dtype) != ("INT8", "INT8"):
            return False
        emitter, source, weights, output = self.emitter, node["input"], node["weights"], node["output"]
        if not weights.quantization or len(weights.quantization.scales) < 2 or len(weights.shape) != 2:
            return False
        made, read = weights.shape
        if not made:
            return False
        rows = output.elements // made
        pixels = emitter.reshape(source.index, emitter.tensor(source.index, (rows, 1, 1, read), "pixels"))
        bias = node.get("bias")
        inputs = pixels, emitter.reshaped(weights.index, (made, 1, 1, read)), bias.index if bias else self.zeros(node)
        result = emitter.tensor(output.index, (rows, 1, 1, made), "pixels")
        options = PLAIN_WINDOW | {"FusedActivationFunction": operator.options["FusedActivationFunction"]}
        emitter.reshape(emitter.emit("CONV_2D", inputs, result, **options), output.index)
        return True

    def in_floats(self, operator: Operator, node: Node) -> bool:
        if not self.is_inexact or node.inputs[0] is None or node.inputs[0].dtype != "FLOAT32":
            return False
        inputs = list(operator.inputs)
        for position in node.kind.weights:
            tensor = node.inputs[position] if position < len(inputs) else None
            if tensor and tensor.dtype != "FLOAT32" and (values := self.in_float32(tensor)) is not None:
                inputs[position] = self.emitter.constant(values, tensor.shape, dtype="FLOAT32")
        if inputs == [*operator.inputs]:
            return False
        self.floats.append(operator.kind)
        return self.change(operator, inputs)

    rules = in_steps, as_copies, with_bias, folded, as_convolution, in_floats

    def in_float32(self, tensor: Tensor) -> bytes | None:
        """A constant as float32 values; None if it is not one of floats, or of integers with scales."""
        if tensor.storage is not Storage.CONSTANT or tensor.element.numpy is None or tensor.is_sparse:
            return None
        data, known = self.graph.content(tensor).data, tensor.quantization
        if len(data) != tensor.bytes:
            return None
        values = decode_weights(tensor, data)
        if values.dtype.kind == "f":
            return bytes(values.astype("<f4").tobytes())
        if known is None or len(known.scales) not in (1, *tensor.shape[known.dimension : known.dimension + 1]):
            return None
        along = [1] * values.ndim
        along[known.dimension] = len(known.scales)
        scales, zeros = (np.reshape(np.array(given), along) for given in (known.scales, known.zero_points))
        return bytes((scales * (values.astype(np.int64) - zeros)).astype("<f4").tobytes())


####################################################################################################
# Equivalents: a 1-D network with its time along the height; inputs and outputs without conversion
####################################################################################################


def tall_shape(tensor: Tensor) -> tuple[int, ...] | None:
    """The shape of a series of columns of channels, with its time along the height; None for other tensors."""
    *batch, time, channels = tensor.shape if len(tensor.shape) in (3, 4) else (0, 0, 0)
    is_series = min(tensor.shape, default=0) > 0 and time > 1 and batch[1:] in ([], [1])
    is_plain = tensor.storage is Storage.ACTIVATION and not tensor.dynamic
    return (batch[0], time, 1, channels) if is_series and is_plain else None


TURNABLE = (convolution_rows, maximum_rows, average_rows, padded_rows, joined_rows, elementwise_rows)
TURNED_OPTIONS = {"StrideH": "StrideW", "DilationHFactor": "DilationWFactor", "FilterHeight": "FilterWidth"}
TURNED_OPTIONS |= {other: one for one, other in TURNED_OPTIONS.items()}


def is_series(subgraph: Subgraph) -> bool:
    """True if windows run over time along the width."""
    kinds = (convolution_rows, maximum_rows, average_rows)
    windows = (operator for operator in subgraph.operators if kind_of(operator).rows in kinds and operator.writes)
    return is_ordered(subgraph) and any(tall_shape(subgraph.tensors[operator.writes[0]]) for operator in windows)


class Upright:
    """A 1-D network with its time along the height, where it can be cut: [N, 1, T, C], [N, T, C] and [N, T, 1, C] are
    the same bytes. RESHAPE leads in and out; operators in between that only move bytes go."""

    def __init__(self, subgraph: Subgraph) -> None:
        self.subgraph, self.emitter = subgraph, Emitter(subgraph)
        self.tall: dict[int, int] = {}  # tensor -> its upright form
        self.missing: dict[int, Operator | None] = {}  # tensor that is not made -> the mover that would make it
        for operator in subgraph.operators:
            if is_mover(subgraph, operator) and self.is_series(operator.inputs[0], operator.outputs[0]):
                self.missing[operator.outputs[0]] = operator
            elif not self.turn(operator):
                for t in operator.reads:
                    self.make(t)
                self.emitter.schedule.append(operator.index)
        for t in subgraph.outputs:
            self.make(t)

    def is_series(self, *tensors: int) -> bool:
        """True if all have the same upright shape."""
        shapes = {tall_shape(self.subgraph.tensors[t]) for t in tensors}
        return len(shapes) == 1 and None not in shapes

    def root(self, tensor: int) -> int:
        """The tensor whose bytes movers move to this one."""
        while maker := self.missing.get(tensor):
            tensor = maker.inputs[0]
        return tensor

    def upright(self, tensor: int) -> int:
        root = self.root(tensor)
        if root not in self.tall:
            shape = tall_shape(self.subgraph.tensors[tensor]) or ()
            self.tall[root] = self.emitter.tensor(root, shape, "upright")
            self.emitter.reshape(root, self.tall[root])
        return self.tall[root]

    def make(self, tensor: int) -> None:
        """Emit what makes a tensor as it was, if nothing does yet."""
        if tensor in self.missing:
            root, maker = self.root(tensor), self.missing.pop(tensor)
            if maker and maker.inputs[0] == root and root not in self.missing:
                self.emitter.schedule.append(maker.index)
            else:
                source = self.tall[root] if root in self.missing or root == tensor else root
                self.emitter.reshape(source, tensor)

    def turn(self, operator: Operator) -> bool:
        """Emit the operator on upright tensors, if it computes the same there."""
        node, tensors, options = node_of(self.subgraph, operator), self.subgraph.tensors, operator.options
        rows, rank = node.kind.rows, len(node["output"].shape) if operator.writes else 0
        if len(operator.outputs) != 1 or not self.is_series(*operator.outputs) or rows not in TURNABLE:
            return False
        series = [t for t in operator.reads if tensors[t].storage is not Storage.CONSTANT]
        fixed = [tensors[t] for t in operator.reads if tensors[t].storage is Storage.CONSTANT]
        if not series or not all(map(self.is_series, series)):
            return False
        changes: dict[str, Any] = {}
        constants: dict[int, int] = {}  # position -> constant that takes its place
        if rows is elementwise_rows:
            if not self.is_series(*series, *operator.outputs) or any(t.elements != sum(t.shape[-1:]) for t in fixed):
                return False
        elif rows is joined_rows:
            axis = options.get("Axis", 0) % rank
            if fixed or axis < rank - 2:
                return False
            changes = {"Axis": HEIGHT if axis == rank - 2 else 3}
        elif rows is padded_rows:
            values = node["paddings"].values
            if values is None or len(values) != 2 * rank:
                return False
            columns = (0, 0) if rank == 3 else values[2:4]
            turned = *values[:2], *values[-4:-2], *columns, *values[-2:]
            constants = {1: self.emitter.integers(*turned, shape=(4, 2))}
        else:
            weights = node.get("weights")
            shape = weights.shape if weights else (0, 1, 1, 0)
            if rank != 4 or len(tensors[series[0]].shape) != 4 or len(shape) != 4 or min(shape[1:3]) > 1:
                return False
            if weights and weights not in fixed:
                return False
            changes = {name: options[other] for name, other in TURNED_OPTIONS.items() if name in options}
            constants = {1: self.emitter.reshaped(weights.index, itemgetter(0, 2, 1, 3)(shape))} if weights else {}
        inputs = [constants.get(i, self.upright(t) if t in series else t) for i, t in enumerate(operator.inputs)]
        output = operator.outputs[0]
        self.tall[output] = self.emitter.add(NewTensor("", tall_shape(tensors[output]) or (), output))
        self.missing[output] = None
        self.emitter.emit(operator.kind, inputs, self.tall[output], like=operator.index, **changes)
        return True


class Port(NamedTuple):
    """An input or output that the model converts first or last, and the tensor after or before the conversion."""

    outer: Tensor
    inner: Tensor
    operator: int  # the conversion
    is_input: bool

    def stands_for(self, values: np.ndarray) -> np.ndarray:
        """The outer values that correspond to inner ones, as DEQUANTIZE computes them."""
        scale, zero_point = self.inner.affine or (1.0, 0)
        exact = values.astype(np.int64) - zero_point
        if self.outer.dtype == "FLOAT32":
            return (exact * scale).astype(np.float32)
        return (exact + (self.outer.affine or (1.0, 0))[1]).astype(self.outer.dtype.lower())

    def __str__(self) -> str:
        scale, zero_point = self.inner.affine or (1.0, 0)
        value = f"{scale:.9g} * (q {'-' if zero_point > 0 else '+'} {abs(zero_point)})"
        what = "Input" if self.is_input else "Output"
        return f"{what} {shorten(self.inner.name)}: {self.inner.dtype} instead of {self.outer.dtype}; value = {value}"

    def json(self) -> dict[str, Any]:
        scale, zero_point = self.inner.affine or (1.0, 0)
        known = {"port": "input" if self.is_input else "output", **picked(self, "name=inner.name type=inner.dtype")}
        known |= {"scale": scale, "zero_point": zero_point}
        return known | picked(self, "name_before=outer.name type_before=outer.dtype")


PORT_DTYPES = ("INT8", "INT16")  # that TFLM's kernels use
MIN_SCALE = 1e-30  # floats below it lose precision


def convertible_ports(subgraph: Subgraph) -> list[Port]:
    """Inputs that only a conversion reads and outputs that one writes, if the application can convert them exactly."""
    ports: list[Port] = []
    taken = Counter((*subgraph.inputs, *subgraph.outputs))
    read = Counter(t for operator in subgraph.operators for t in operator.reads)
    made = {t for operator in subgraph.operators for t in operator.writes}
    for operator in subgraph.operators if is_ordered(subgraph) else ():
        if operator.kind not in ("QUANTIZE", "DEQUANTIZE") or len(operator.inputs) != 1 or len(operator.outputs) != 1:
            continue
        source, target = (subgraph.tensors[t] for t in (*operator.inputs, *operator.outputs))
        is_first = source.index in subgraph.inputs and read[source.index] == 1
        is_last = target.index in subgraph.outputs and not read[target.index] and source.index in made
        outer, inner = (source, target) if is_first else (target, source)
        port = Port(outer, inner, operator.index, is_first)
        if (is_first or is_last) and taken[outer.index] == 1 and not taken[inner.index] and is_exact(port):
            ports.append(port)
            taken[inner.index] += 1
    return ports


def is_exact(port: Port) -> bool:
    """True if every value of the inner tensor converts to the outer type and back without loss."""
    outer, inner, known = port.outer, port.inner, port.inner.quantization
    if known is None or len(known.scales) != 1 or not inner.affine or inner.dtype not in PORT_DTYPES:
        return False
    if (inner.shape, inner.dynamic) != (outer.shape, outer.dynamic) or not MIN_SCALE < inner.affine[0] < math.inf:
        return False
    if any(tensor.storage is not Storage.ACTIVATION for tensor in (outer, inner)):
        return False
    is_shift = outer.affine == (inner.affine[0], inner.affine[1] + 128)
    return outer.dtype == "FLOAT32" or (is_shift and (outer.dtype, inner.dtype) == ("UINT8", "INT8"))


def without_conversions(subgraph: Subgraph, ports: Sequence[Port]) -> Rewrite:
    """The schedule without these conversions: the inner tensors are the inputs and outputs."""
    dropped = {port.operator for port in ports}
    schedule = tuple(i for i in range(len(subgraph.operators)) if i not in dropped)
    return Rewrite(schedule, ports={port.outer.index: port.inner.index for port in ports})


####################################################################################################
# Splitting, the problem: what can be cut, and at what cost
####################################################################################################


class Cost(NamedTuple):
    """The cost of operators; for a change, the increase in all but the peak. Sizes in bytes."""

    peak: int  # of aligned tensors, with all others that are alive
    time: int = 0
    persistent: int = 0  # an estimate of TFLM's persistent structures on a 32-bit target
    operators: int = 0

    @property
    def sum(self) -> int:
        return self.peak + self.persistent


@dataclass(frozen=True)
class SplitRegion:
    """Operators [start, end) in stripes, unrolled or as the iterations of a loop."""

    start: int
    end: int
    stripes: int
    is_cached: bool
    cost: Cost
    loop: Loop | None = dataclasses.field(default=None, compare=False)

    @property
    def is_loop(self) -> bool:
        return self.loop is not None

    def json(self) -> dict[str, Any]:
        return picked(self, "start end stripes is_cached is_loop") | picked(self.cost, " ".join(self.cost._fields))


@dataclass(frozen=True)
class Composition:
    """Disjoint regions in execution order, and the cost of the subgraph with them."""

    regions: tuple[SplitRegion, ...]
    cost: Cost

    @property
    def has_loops(self) -> bool:
        return any(region.loop for region in self.regions)


@dataclass(frozen=True)
class SplitStep:
    """What the search knows about one operator."""

    operator: Operator
    rule: RowRule | str  # or why it is not split
    need: int  # bytes while it runs unsplit
    time: int
    persistent: int


class Range(NamedTuple):
    """Operators [start, end) that could be a region."""

    start: int
    end: int
    unsplit: int  # bytes that they need unsplit
    bound: int  # lower bound in unrolled stripes, in bytes
    loop_bound: int  # lower bound as a loop, in bytes


UNORDERED = "a tensor of the model is written twice, or read before it is made"
Forms = frozenset[str]  # that stripes may have: operators of their own, or iterations of a loop
UNROLLED, LOOPS = frozenset({"unrolled"}), frozenset({"loop"})
# One search takes the best regions of its forms for each limit, but not the best for the number to reserve. Loops take
# the least work and mostly win; the last search knows all costs of the others.
STRIPES_AS = {"auto": (LOOPS, UNROLLED, LOOPS | UNROLLED), "loop": (LOOPS,), "unrolled": (UNROLLED,)}
FORM_SHARES = (0.6, 0.5, 1.0)  # of the work left, for three searches; fewer take the last ones


MAX_REGION = 100  # operators
# Seconds per operator that is emitted (in a loop or not), looked at for a loop, and per label of a step.
EMIT_WORK, LOOP_WORK, FAMILY_WORK, STEP_WORK = 1.5e-5, 2.3e-5, 1e-5, 1e-6
LOOP_NUMBERS = 4 * ARENA_ALIGNMENT  # bytes for the counter of a loop and its table entries
STRIPES = (2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16, 20, 24, 28, 32)
NO_LIMIT = 1 << 80


class SplitProblem:
    """Sizes, rules and ranges of operators that could be regions. Raises ArenaError if a tensor has no known size."""

    def __init__(self, graph: ModelGraph, subgraph: Subgraph) -> None:
        self.subgraph, self.subgraph_count = subgraph, len(graph.subgraphs)
        self.sizes = [ARENA_COSTS.tensor(t) if t.ram_bytes else 0 for t in subgraph.tensors]
        self.row_bytes = [(t.bytes or 0) // t.shape[HEIGHT] if has_rows(t) else 0 for t in subgraph.tensors]
        self.intervals = tensor_intervals(subgraph, lambda tensor: self.sizes[tensor.index])
        self.readers: dict[int, list[int]] = defaultdict(list)
        for operator in subgraph.operators:
            for t in operator.reads:
                self.readers[t].append(operator.index)
        self.producers = {t: operator.index for operator in subgraph.operators for t in operator.writes}
        # Bytes alive at the start of each operator, and at the end, of tensors that were made earlier.
        entering = Profile(i._replace(first=i.first + 1) for i in self.intervals.values())
        self.entering = [entering.at(position) for position in range(len(subgraph.operators) + 1)]
        self.steps = self.all_steps(graph)
        candidates = {step.operator.index for step in self.steps if self.may_take_scratch(step)}
        self.copies = Copies(subgraph, candidates)
        self.regions: dict[tuple[int, int, bool], Region] = {}
        self.ranges = list(self.possible_ranges())

    @property
    def narrow_ranges(self) -> list[Range]:
        """The ranges between the ends of valleys of the bytes alive: few, and most of the best."""
        levels = [list(level) for _, level in itertools.groupby(enumerate(self.entering), itemgetter(1))]
        heights = [NO_LIMIT, *(level[0][1] for level in levels), NO_LIMIT]
        narrow = set()
        for level, before, after in zip(levels, heights, heights[2:], strict=False):
            (first, here), (last, _) = level[0], level[-1]
            if here < min(before, after):
                narrow |= {first, last}
        return [found for found in self.ranges if {found.start, found.end} <= narrow]

    def all_steps(self, graph: ModelGraph) -> list[SplitStep]:
        subgraph, steps, can_cut = self.subgraph, [], is_ordered(self.subgraph)
        for operator, need in zip(subgraph.operators, operator_needs(graph, subgraph), strict=True):
            rule = row_rule(subgraph, operator) if can_cut else UNORDERED
            persistent = operator_persistent_bytes(subgraph, operator)
            time = operator_instructions(graph, subgraph, operator)
            if is_mover(subgraph, operator) and self.intervals[operator.inputs[0]].last == operator.index:
                need -= self.sizes[operator.outputs[0]]  # planned in place
            steps.append(SplitStep(operator, rule, need, time, persistent))
        return steps

    @property
    def time(self) -> int:
        return sum(step.time for step in self.steps)

    def may_take_scratch(self, step: SplitStep) -> bool:
        """True if stripes of it may need scratch; with the reference kernels only if it needs some when run whole."""
        kernel = node_of(self.subgraph, step.operator).kernel
        if isinstance(step.rule, str) or kernel is None or kernel.scratch is PLAIN_KERNEL.scratch:
            return False
        return bool(self.subgraph.kernels.library) or any(scratch_requests(self.subgraph, step.operator))

    @property
    def unsplit(self) -> Composition:
        return Composition((), Cost(max((step.need for step in self.steps), default=0)))

    def possible_ranges(self) -> Iterator[Range]:
        """All ranges of operators that could be a region, by rising end. Their bounds hold for any stripes: all that a
        region reads is alive at its start, and its outputs at its end, with their pieces. A loop has room for its
        outputs at its start, unless the only one may overwrite an input."""
        for end in range(1, len(self.steps) + 1):
            earliest = unsplit = 0
            outputs: list[int] = []
            for start in reversed(range(max(end - MAX_REGION, 0), end)):
                step = self.steps[start]
                if isinstance(step.rule, str):
                    break
                for t in step.operator.reads:
                    if t not in step.rule.sources and t in self.producers:
                        earliest = max(earliest, self.producers[t] + 1)
                if start < earliest:
                    break
                unsplit = max(unsplit, step.need)
                outputs += [t for t in step.operator.writes if self.is_live_out(t, end)]
                live_out, before, after = sum(self.sizes[t] for t in outputs), self.entering[start], self.entering[end]
                is_over_input = len(outputs) == 1 and before >= after
                bounds = max(before, after + live_out), max(before + (0 if is_over_input else live_out), after)
                if min(bounds) < unsplit:
                    yield Range(start, end, unsplit, *bounds)

    def is_live_out(self, output: int, end: int) -> bool:
        """True if an output made before ``end`` is needed whole there, or has no readers."""
        return not self.readers[output] or (output in self.intervals and self.intervals[output].last >= end)

    def region(self, start: int, end: int, is_cached: bool) -> Region:
        key = start, end, is_cached
        if key not in self.regions:
            steps = self.steps[start:end]
            parts = {s.operator.index: Part(s.operator.writes, s.rule) for s in steps if isinstance(s.rule, RowRule)}
            named = (t for outputs, rule in parts.values() for t in (*outputs, *rule.sources))
            heights = {t: self.subgraph.tensors[t].shape[HEIGHT] for t in named}
            outputs = (t for step in steps for t in step.operator.writes)
            live_out = tuple(t for t in outputs if self.is_live_out(t, end))
            self.regions[key] = Region(parts, heights, live_out, is_cached)
        return self.regions[key]

    def persistent(self, *bills: Bill) -> int:
        steps, operators = self.steps, (o for bill in bills for o in bill.operators)
        return sum(glue_bytes(o.kind, len(o.inputs)) if o.like is None else steps[o.like].persistent for o in operators)

    def evaluate(self, start: int, end: int, stripes: int, is_cached: bool) -> SplitRegion | None:
        """The region with its cost; None if it cannot be cut like that."""
        region = self.region(start, end, is_cached)
        if min(region.heights[t] for t in region.live_out) < stripes:
            return None
        try:
            rows = stripe_rows(region, stripes)
        except NoStripes:
            return None
        emitter = Emitter(self.subgraph)
        RegionEmitter(emitter, region).run(rows)
        bill, steps = Bill(emitter, self.copies), self.steps[start:end]
        Budget.spend(EMIT_WORK * len(bill.operators))
        inner = sum(len(step.operator.writes) for step in steps) - len(region.live_out)
        before = sum(step.persistent for step in steps) + BITS_32.tensor * inner
        after = BITS_32.tensor * len(bill.sizes) + self.persistent(bill)
        time = bill.time - sum(step.time for step in steps)
        cost = Cost(self.peak(bill, start, end), time, after - before, len(bill.operators) - len(steps))
        return SplitRegion(start, end, stripes, is_cached, cost)

    def peak(self, bill: Bill, start: int, end: int) -> int:
        """The peak of bytes alive while the new operators run."""
        old, count = bill.old, len(bill.operators)
        around, intervals = self.entering[start], []
        for t, number in bill.last.items():  # tensors alive before the region that end within it
            if t < old and t in self.intervals and self.intervals[t].last < end:
                around -= self.sizes[t]
                intervals.append((self.sizes[t], 0, number))
        for t, number in bill.born.items():
            size, until = (self.sizes[t], count) if t < old else (bill.sizes[t - old], bill.last.get(t, count))
            intervals.append((size, number, until))
        return around + Profile([*intervals, *bill.requests]).peak


@cache
def glue_bytes(kind: str, inputs: int) -> int:
    """Persistent bytes of an operator that glues stripes together."""
    return node_persistent_bytes(Node(KINDS[kind], (None,) * inputs, (A_TENSOR,)))


####################################################################################################
# Splitting, loops: the cost of a region as a loop
####################################################################################################


class LoopCosts:
    """The loops that regions of a subgraph can be, and their costs."""

    def __init__(self, problem: SplitProblem) -> None:
        self.problem = problem
        self.loops: dict[tuple[int, int, int], Loop] = {}  # by start, end and pace

    def family(self, start: int, end: int) -> Loops | str:
        """All loops that a region can be, or why it cannot be one."""
        Budget.spend(FAMILY_WORK * (end - start))
        try:
            return Loops(self.problem.subgraph, self.problem.region(start, end, is_cached=True))
        except NoLoop as reason:
            return str(reason)

    def loop(self, family: Loops, start: int, end: int, pace: int) -> Loop:
        """The loop that carries the fewest bytes."""
        key, problem = (start, end, pace), self.problem
        if key not in self.loops:
            Budget.spend(FAMILY_WORK * (end - start))
            loops = [family.loop(pace, is_early) for is_early in (False, True)]
            source = problem.intervals.get(loops[0].sources[0])
            if source and source.last < end:
                loops = [loop.overwriting(problem.subgraph.tensors) for loop in loops]
            self.loops[key] = min(loops, key=lambda loop: (self.carried_bytes(loop), loop.iterations))
        return self.loops[key]

    def carried_bytes(self, loop: Loop) -> int:
        """Bytes that a loop carries, without its inputs."""
        outputs = 0 if loop.over_input else sum(self.problem.sizes[output] for output in loop.written)
        lines = sum(self.line_buffer(t, track) for t, track in loop.tracks.items() if track.has_line_buffer)
        return lines + outputs + LOOP_NUMBERS

    def line_buffer(self, t: int, track: Track) -> int:
        width = self.problem.subgraph.tensors[t].shape[2]
        return align(track.height * self.problem.row_bytes[t] * (width + sum(track.columns)) // width)

    def evaluate(self, family: Loops, start: int, end: int, pace: int, is_quick: bool = False) -> SplitRegion:
        """The region as a loop, with its cost."""
        problem, loop = self.problem, self.loop(family, start, end, pace)
        loop = loop.quick() if is_quick else loop
        outside, steps = Emitter(problem.subgraph), problem.steps[start:end]
        emitter = LoopEmitter(outside, loop)
        emitter.run()
        emitters = outside, emitter.iteration.body, emitter.cond
        bills = around, body, cond = [Bill(one, problem.copies) for one in emitters]
        Budget.spend(LOOP_WORK * sum(len(bill.operators) for bill in bills))
        used = {t for step in steps for t in (*step.operator.reads, *step.operator.writes)} - {*loop.written}
        free = {t for t in used if self.is_only_used(t, start, end)}  # numbers for new tensors of subgraph 0
        tensors = max(len(around.sizes) - len(free), 0)
        for part in (body, cond):
            constants = {t for o in part.operators for t in o.inputs if 0 <= t < part.old}
            tensors += len(part.sizes) + len(constants)
        persistent = 2 * BITS_32.subgraph + BITS_32.tensor * tensors - sum(step.persistent for step in steps)
        persistent += problem.persistent(*bills)
        peak = problem.entering[start] + self.carried_bytes(loop) + iteration_peak(body, emitter.iteration.handed)
        turn = ITERATION + CARRIED * len(emitter.carried) + body.time + cond.time
        time = around.time + loop.iterations * turn + cond.time - sum(step.time for step in steps)
        runs = sum(len(bill.operators) for bill in bills) - len(steps)
        return SplitRegion(start, end, loop.iterations, True, Cost(peak, time, persistent, runs), loop)

    def is_only_used(self, t: int, start: int, end: int) -> bool:
        """True if only operators [start, end) read and write a tensor."""
        problem = self.problem
        makers = [problem.producers[t]] if t in problem.producers else []
        is_outside = t in problem.subgraph.inputs or t in problem.subgraph.outputs
        return not is_outside and all(start <= number < end for number in (*problem.readers[t], *makers))


def iteration_peak(body: Bill, handed: Mapping[int, int]) -> int:
    """The peak of bytes alive in an iteration, without carried tensors."""
    last = dict(body.last)
    for old, new in handed.items():
        if last[old] == body.born[new]:
            last[old] -= 1
    intervals = ((body.sizes[t - body.old], number, last.get(t, number)) for t, number in body.born.items())
    return Profile([*intervals, *body.requests]).peak


####################################################################################################
# Splitting, the search: which regions and numbers of stripes pay off
####################################################################################################

DEFAULT_MAX_TIME = 15.0  # increase in estimated instructions, in per cent
RIVALS = 1.08  # times the smallest sum: up to it, a composition may be the best once it is reordered
NARROW_SHARE = 0.4  # of the work, for narrow ranges
MIN_FALL = 0.9  # n times the stripes leave at least this, divided by n, of what a peak exceeds its bound by
FINE = 0.95  # lower limit of a range by its upper one, from which on its compositions are found one by one
Price = Callable[[Cost], int]  # prices of regions add up
in_memory: Price = attrgetter("persistent")


def in_time(cost: Cost) -> int:
    """Estimated instructions, then persistent memory."""
    return (cost.time << 40) + cost.persistent


class Label(NamedTuple):
    """A way to run all operators up to some position: additional costs, the peak, and the regions."""

    persistent: int
    time: int
    peak: int = 0
    regions: tuple[SplitRegion, ...] = ()

    @property
    def composition(self) -> Composition:
        operators = sum(region.cost.operators for region in self.regions)
        return Composition(self.regions, Cost(self.peak, self.time, self.persistent, operators))


def undominated(labels: Iterable[Any]) -> list[Any]:
    """The labels to which no other is equal or better in their first two costs, by rising first one."""
    least, found = NO_LIMIT, []
    for label in sorted(labels, key=itemgetter(0, 1)):
        if label[1] < least:
            least = label[1]
            found.append(label)
    return found


def by_start(ranges: Iterable[Range]) -> dict[int, list[Range]]:
    """Ranges by start, the shortest first."""
    return {start: list(several) for start, several in itertools.groupby(sorted(ranges), attrgetter("start"))}


class SplitSearch:
    """Finds the regions of a subgraph that pay off, by dynamic programming: in a fixed order, given what is alive at
    their ends, the peaks of disjoint regions are independent. Raises ArenaError as :class:`SplitProblem`."""

    def __init__(self, graph: ModelGraph, subgraph: Subgraph, budget: Budget, forms: Forms = UNROLLED) -> None:
        self.problem = SplitProblem(graph, subgraph)
        self.loops, self.budget, self.forms = LoopCosts(self.problem), budget, forms
        self.regions: dict[int, dict[Any, SplitRegion]] = defaultdict(dict)  # by start
        self.ranges = by_start(self.problem.ranges)
        self.unrolled, self.looped = cache(self.problem.evaluate), cache(self.loops.evaluate)
        self.family = cache(self.loops.family)

    def again(self, budget: Budget, forms: Forms) -> SplitSearch:
        """A new search of the same problem, which shares all costs that are known."""
        other = copy.copy(self)
        other.budget, other.forms, other.regions = budget, forms, defaultdict(dict)
        return other

    def try_ranges(self, limit: int, max_time: int, best: int, price: Price) -> None:
        """Find regions within ``limit`` bytes for the ranges that need more. Few stripes come first, since more cost
        more; later calls, with other limits, know all costs so far. ``best`` is the smallest sum of peak and additional
        persistent bytes so far. Skips regions that cannot be part of a smaller sum, or that cost more than regions
        inside them with the same effect."""
        limits, steps = Cost(limit, max_time), self.problem.steps
        cheapest = [self.cheapest(start, limits, price) for start in range(len(steps))]
        for start in sorted(self.ranges, reverse=True):
            inside = [NO_LIMIT] * (len(steps) + 1)  # by end, the lowest known price from start to there
            inside[start] = 0
            done = start
            for found in self.ranges[start]:
                for position in range(done, found.end):
                    if steps[position].need <= limit:
                        inside[position + 1] = min(inside[position + 1], inside[position])
                    Budget.spend(STEP_WORK * (1 + len(cheapest[position])))
                    for end, extra in cheapest[position].items():
                        inside[end] = min(inside[end], inside[position] + extra)
                done = found.end
                if found.unsplit <= limit:
                    continue
                if self.budget.is_over:
                    return
                goal = min(limit, best - 1)
                if self.forms & UNROLLED and found.bound <= goal and inside[found.end] > 0:
                    for is_cached in (False, True):
                        within = Cost(limit, max_time, best - found.bound)
                        self.try_range(found, is_cached, within, inside[found.end], price)
                if self.forms & LOOPS and found.loop_bound <= goal and inside[found.end] > 0:
                    within = Cost(limit, max_time, best - found.loop_bound)
                    self.try_loop(found, within, inside[found.end], price)
                cheapest[start] = self.cheapest(start, limits, price)
                inside[found.end] = min(inside[found.end], cheapest[start].get(found.end, NO_LIMIT))

    def cheapest(self, start: int, limits: Cost, price: Price) -> dict[int, int]:
        """By end, the price of the cheapest region from ``start`` within the limits."""
        found: dict[int, int] = {}
        for region in self.regions[start].values():
            if region.cost.peak <= limits.peak and region.cost.time <= limits.time:
                found[region.end] = min(found.get(region.end, NO_LIMIT), price(region.cost))
        return found

    def try_range(self, found: Range, is_cached: bool, limits: Cost, max_price: int, price: Price) -> None:
        """Cut a range into more and more stripes until it is within the limits or costs ``max_price`` or more."""
        excess = 0  # of the last peak over the bound, times the number of stripes
        for stripes in STRIPES:
            if self.budget.is_over:
                return
            if found.bound + MIN_FALL * excess / stripes > limits.peak:
                continue
            key = found.start, found.end, stripes, is_cached
            if region := self.unrolled(*key):
                self.regions[found.start][key] = region
                peak, time, persistent, _ = region.cost
                is_dear = time > limits.time or persistent > limits.persistent or price(region.cost) >= max_price
                if is_dear or peak <= limits.peak:
                    return
                excess = (peak - found.bound) * stripes

    def try_loop(self, found: Range, limits: Cost, max_price: int, price: Price) -> None:
        """Make a range a loop with as few iterations as the limits allow."""
        where = found.start, found.end
        if isinstance(family := self.family(*where), str):
            return
        loops, room = self.loops, limits.peak - self.problem.entering[found.start]
        # More rows per iteration need larger line buffers.
        count = bisect.bisect_right(
            family.paces, room, key=lambda p: loops.carried_bytes(loops.loop(family, *where, p))
        )
        for pace in reversed(family.paces[:count]):
            if self.budget.is_over:
                return
            cost = quick = self.looped_region(family, (*where, pace, False)).cost
            if cost.peak <= limits.peak:
                quick = self.looped_region(family, (*where, pace, True)).cost
            if cost.persistent > limits.persistent or min(map(price, (cost, quick))) >= max_price:
                return  # more iterations cost even more
            if cost.peak <= limits.peak and quick.time <= limits.time:
                return

    def looped_region(self, family: Loops, key: tuple[int, int, int, bool]) -> SplitRegion:
        """A loop of a family, to choose from: start, end, pace, and if it is quick."""
        self.regions[key[0]][key] = region = self.looped(family, *key)
        return region

    def compose(self, limit: int, max_time: int, price: Price, most: int = NO_LIMIT) -> Composition | None:
        """The regions with the lowest price that keep the peak within the limit, and the sum of peak and persistent
        memory within ``most``; None if there are none."""
        steps, ways = self.problem.steps, [list[Label]() for _ in range(len(self.problem.steps) + 1)]
        ways[0] = [Label(0, 0)]
        for position, step in enumerate(steps):
            here = ways[position] = undominated(ways[position])
            regions = self.regions[position].values()
            Budget.spend(STEP_WORK * (1 + len(regions)) * (1 + len(here)))
            for region in (None, *regions):
                end, cost = (region.end, region.cost) if region else (position + 1, Cost(step.need))
                peak, time, persistent, _ = cost
                if peak <= limit:
                    more = (region,) if region else ()
                    ways[end] += (
                        Label(way.persistent + persistent, way.time + time, max(way.peak, peak), way.regions + more)
                        for way in here
                        if way.time + time <= max_time
                    )
        labels = undominated(ways[-1])
        found = sorted((label.composition for label in labels), key=lambda composition: price(composition.cost))
        return next((composition for composition in found if composition.cost.sum <= most), None)

    def fitting(self, limit: int, max_time: int, most: int) -> Composition | None:
        """The composition within a peak, and a sum of peak and persistent memory, that has the fewest instructions."""
        for price in (in_time, in_memory) if most < NO_LIMIT else (in_time,):
            self.try_ranges(limit, max_time, NO_LIMIT, price)
        return self.compose(limit, max_time, in_time, most)

    def front(self, max_time: int) -> list[Composition]:
        """Compositions by falling peak, unsplit first, each with the least persistent memory for its peak: all near the
        smallest sum, and some others. A lower peak needs more persistent memory, so no sum with a peak between two
        limits is smaller than the lower limit plus the memory for the upper one. The range of limits with the smallest
        bound is halved first, so the lowest peaks come before all that is between. Narrow ranges of operators come
        before all others: they are fewer by far, and a small sum that they reach rules out most of the others."""
        found: dict[Any, Composition] = {(): self.problem.unsplit}
        whole = self.budget
        for ranges, share in ((self.problem.narrow_ranges, NARROW_SHARE), (self.problem.ranges, 1.0)):
            self.ranges = by_start(ranges)
            self.budget = whole.share(share)
            self.bisect(max_time, found)
        return sorted(found.values(), key=lambda c: -c.cost.peak)

    def bisect(self, max_time: int, found: dict[Any, Composition]) -> None:
        # Bound on the sum, upper limit, lower limit, memory for the upper.
        ranges = [(0, found[()].cost.peak - 1, 0, 0)]
        while ranges and not self.budget.is_over:
            bound, upper, lower, persistent = heapq.heappop(ranges)
            best = min(c.cost.sum for c in found.values())
            most = int(RIVALS * best)
            upper = min(upper, most)
            if bound > most or upper <= lower:
                continue
            limit = (lower + upper) // 2 if lower < FINE * upper else upper
            self.try_ranges(limit, max_time, best, in_memory)
            met = self.compose(limit, max_time, in_memory)
            if limit < upper:
                heapq.heappush(ranges, (limit + 1 + persistent, upper, limit, persistent))
            if met is not None and met.cost.peak <= limit:  # without operators, the peak is always 0
                found[met.regions] = met
                more = met.cost.persistent
                heapq.heappush(ranges, (lower + more, met.cost.peak - 1, lower, more))

    def rewrite(self, composition: Composition) -> Rewrite:
        """The schedule of the whole subgraph with these regions in stripes."""
        emitter = Emitter(self.problem.subgraph, self.problem.subgraph_count)
        done = 0
        for chosen in composition.regions:
            emitter.schedule += range(done, chosen.start)
            if chosen.loop:
                LoopEmitter(emitter, chosen.loop).run()
            else:
                region = self.problem.region(chosen.start, chosen.end, chosen.is_cached)
                RegionEmitter(emitter, region).run(stripe_rows(region, chosen.stripes))
            done = chosen.end
        emitter.schedule += range(done, len(self.problem.steps))
        return emitter.rewrite()


def whole_steps(search: SplitSearch, composition: Composition) -> list[SplitStep]:
    """The operators that run whole."""
    inside = {i for region in composition.regions for i in range(region.start, region.end)}
    return [step for i, step in enumerate(search.problem.steps) if i not in inside]


def span(region: SplitRegion) -> str:
    """``operator 3`` or ``operators 3 to 7``."""
    last = region.end - 1
    return f"operator {last}" if region.start == last else f"operators {region.start} to {last}"


def bottleneck_of(search: SplitSearch, composition: Composition) -> str:
    """The bottleneck with these regions in stripes, and why it cannot be lowered."""
    problem = search.problem
    region = max(composition.regions, key=lambda r: r.cost.peak, default=None)
    step = max(whole_steps(search, composition), key=lambda s: s.need, default=None)
    if region and (step is None or region.cost.peak >= step.need):
        return f"{span(region)} in stripes; thinner stripes save nothing or exceed the limit on time"
    if step is None:
        return ""
    number, why = step.operator.index, step.rule
    if isinstance(why, RowRule):
        why = "stripes would cost more than they save"
        if not search.forms & UNROLLED and isinstance(reason := search.family(number, number + 1), str):
            why = f"it cannot be a loop: {reason}"
    given = sum(problem.sizes[t] for t in problem.subgraph.inputs if t in step.operator.reads)
    inputs = f", and {given:,} B of it are the input of the model" if given > step.need // 2 else ""
    return f"operator {number} ({shorten(step.operator.kind)}), which is not split: {why}{inputs}"


def reasons_for_whole(search: SplitSearch, composition: Composition) -> list[str]:
    """Why operators that need more than half of the peak run whole, one sentence per reason."""
    found: dict[tuple[str, str], list[str]] = defaultdict(list)
    for step in whole_steps(search, composition):
        if isinstance(step.rule, str) and 2 * step.need > composition.cost.peak:
            found[step.operator.kind, step.rule].append(str(step.operator.index))
    return [f"{numbered(numbers)} ({shorten(kind)}): {why}" for (kind, why), numbers in found.items()]


####################################################################################################
# Clustering: an array with few distinct values; which tensors of a model are weights
####################################################################################################

# One-dimensional k-means has an exact solution, since clusters are intervals of the sorted values.

EXACT_UP_TO = 1 << 12  # distinct values for which the result is exact
TABLE_UP_TO = 1 << 9  # positions for which a table holds the gains of all intervals
CELLS, CELLS_PER_CLUSTER = 1 << 10, 32  # number of cells for more distinct values: the larger of both
REACH = 32  # how far a border may move when the result for cells is refined, in strides


class Clustering(NamedTuple):
    """An array whose values are replaced by those of a code-book."""

    values: np.ndarray  # of the shape and type of the original
    codebook: np.ndarray  # ascending, of the type of the original
    squared_error: float  # sum over all elements
    distinct_before: int


def cluster_values(values: np.ndarray, clusters: int) -> Clustering:
    """Replace an array's values by at most ``clusters`` distinct ones, with the least possible squared error.

    Up to EXACT_UP_TO distinct values the result is optimal, to double precision, by dynamic programming over the
    borders of clusters (Wang and Song 2011); centroids of integers are integers. For more values, borders are chosen
    among those of cells, then moved, all of them together, by ever smaller strides. On random arrays of 12 kinds, some
    heavy-tailed or mixed, the result was within 0.1 % of the optimum for up to 128 clusters
    (``tests/benchmarks/clustering.py --exact``)."""
    flat = values.reshape(-1)
    if values.dtype == np.float16:
        flat = flat.astype(np.float32)  # lossless and faster, and numpy 2.4 sorts float16 wrongly on AVX-512
    distinct, ranks, counts = _ranked(flat)
    ranked = Ranked(distinct, counts, is_integer=flat.dtype.kind != "f")
    centroids = ranked.centroids(ranked.best_borders(clusters))
    codebook = np.unique(centroids.astype(values.dtype).astype(flat.dtype)).astype(np.float64)
    borders = np.searchsorted(ranked.values, (codebook[1:] + codebook[:-1]) / 2, side="right")
    sizes = np.diff(borders, prepend=0, append=len(distinct))
    clustered = np.repeat(codebook, sizes)
    distance = ranked.values - clustered
    error = float(np.einsum("i,i,i", ranked.counts, distance, distance))  # np.dot would wait for threads
    replaced = clustered.astype(values.dtype)[ranks].reshape(values.shape)
    return Clustering(replaced, codebook[sizes > 0].astype(values.dtype), error, len(distinct))


def _ranked(flat: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The distinct values, ascending, which of them each element has, and how often each occurs."""
    if flat.dtype.kind == "f" or flat.dtype.itemsize > 2:
        return np.unique(flat, return_inverse=True, return_counts=True)
    least = int(flat.min())
    places = flat.astype(np.int64) - least
    counts = np.bincount(places)  # many times faster than sorting
    present = np.flatnonzero(counts)
    return (present + least).astype(flat.dtype), (np.cumsum(counts > 0) - 1)[places], counts[present]


class Ranked:
    """Ascending values with counts; prefix sums make the cost of an interval of them constant time."""

    def __init__(self, values: np.ndarray, counts: np.ndarray, is_integer: bool) -> None:
        self.values, self.counts = values.astype(np.float64), counts.astype(np.float64)
        self.is_integer = is_integer  # True if centroids must be integers
        self.centre = float(self.values[len(values) // 2])  # outliers do not move it; sums relative to it stay precise
        sums = np.cumsum((self.counts, self.counts * (self.values - self.centre)), axis=1)
        self.prefix = np.pad(sums, ((0, 0), (1, 0)))  # counts and sums of the values before each position

    def gain(self, start: np.ndarray, end: np.ndarray) -> np.ndarray:
        """How much a centroid for values[start:end] lowers the sum of squares; minus infinity if there are none."""
        counts, sums = self.prefix
        n, s = counts[end] - counts[start], sums[end] - sums[start]
        is_empty = n <= 0
        n[is_empty] = 1
        mean = np.rint(s / n) if self.is_integer else s / n
        gain = mean * (2 * s - n * mean)
        gain[is_empty] = -np.inf
        return gain

    def centroids(self, borders: np.ndarray) -> np.ndarray:
        counts, sums = np.diff(self.prefix[:, borders])
        means = sums / counts + self.centre
        return np.rint(means) if self.is_integer else means

    def best_borders(self, clusters: int) -> np.ndarray:
        """The borders of the best intervals: positions 0 = b0 < b1 < ... < bk = number of values."""
        size = len(self.values)
        cells, stride = np.arange(size + 1), 0
        if size > EXACT_UP_TO:
            cells = self.cells(min(max(CELLS, CELLS_PER_CLUSTER * clusters), EXACT_UP_TO))
            stride = size // CELLS
        if clusters >= len(cells) - 1:
            return cells
        borders = self._chosen([cells] * (clusters - 1))
        while stride:
            near = borders[1:-1, None] + stride * np.arange(-REACH, REACH + 1)
            borders = self._chosen([*np.clip(near, 1, size - 1)])
            stride //= 2
        return borders

    def cells(self, most: int) -> np.ndarray:
        """The borders of at most ``most`` cells, denser where borders of a good code-book are likely: as the cube root
        of the density of the values (Panter and Dite 1951)."""
        likely = np.cumsum(np.cbrt(self.counts[1:]) * np.diff(self.values) ** (2 / 3))
        inner = 1 + np.searchsorted(likely, likely[-1] * np.arange(1, most) / most)
        return np.unique([0, *inner, len(self.values)])

    def _chosen(self, columns: Sequence[np.ndarray]) -> np.ndarray:
        """The best borders, one from every column; long columns must be the same. Per column, ``best[e]`` is the gain
        of the best intervals up to border ``e``, and ``choices`` holds the start of the last of them."""
        ends = [np.array([0]), *columns, np.array([len(self.values)])]
        best, table, choices = np.zeros(1), np.zeros(0), []
        for before, column in itertools.pairwise(ends):
            if min(len(before), len(column)) > TABLE_UP_TO:
                choice, best = self.best_starts(best, column)
            else:
                if column is not before or table.size != len(column) ** 2:  # equal columns share a table
                    table = self.gain(before, column[:, None])
                choice = np.argmax(best + table, axis=1)
                best = best[choice] + table[np.arange(len(column)), choice]
            choices.append(choice)
        at, borders = 0, [len(self.values)]
        for before, choice in zip(reversed(ends[:-1]), reversed(choices), strict=True):
            at = int(choice[at])
            borders.append(int(before[at]))
        return np.array(borders[::-1])

    def best_starts(self, best: np.ndarray, column: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """For every end in the column, the start in it that maximises best[start] + gain(start, end), and that maximum.
        The gain has the Monge property, so a later end never has an earlier best start: each round halves the distance
        of the ends and looks for each new one between the answers of its neighbours."""
        size = len(column)
        choice, total = np.zeros(size + 1, dtype=np.int64), np.empty(size)
        step = 1 << (size - 1).bit_length()
        choice[size] = size - 1  # after the last end
        while step >= 1:
            ends = np.arange(step - 1, size, 2 * step)
            low = np.where(ends >= step, choice[ends - step], 0)
            high = choice[np.minimum(ends + step, size)]
            lengths = high - low + 1
            offsets = np.cumsum(lengths) - lengths
            options = np.arange(lengths.sum()) + np.repeat(low - offsets, lengths)
            totals = best[options] + self.gain(column[options], np.repeat(column[ends], lengths))
            total[ends] = np.maximum.reduceat(totals, offsets)
            hits = np.flatnonzero(totals == np.repeat(total[ends], lengths))
            choice[ends] = options[hits[np.searchsorted(hits, offsets)]]
            step //= 2
        return choice[:size], total


def decibels(signal: float, noise: float) -> float:
    """Signal-to-noise ratio; infinite without noise."""
    return 10 * math.log10(signal / noise) if signal and noise else math.inf


class ClusteredWeights(NamedTuple):
    """The effect of clustering on one weight matrix. Sizes in bytes; index sizes exclude code-books."""

    name: str
    operator: str
    dtype: str
    shape: tuple[int, ...]
    codebooks: int  # 1, or one per channel
    distinct_before: int
    distinct_after: int  # over all code-books
    signal: float  # sum of squared weights
    squared_error: float
    sqnr_db: float
    bytes_before: int
    codebook_bytes: int
    index_bytes: int  # every element as a packed index into its code-book


UNPACKING = "DEQUANTIZE", "DENSIFY", DECODE


def weight_tensors(graph: ModelGraph) -> tuple[list[tuple[str, Tensor]], list[str]]:
    """The weight matrices, each buffer once, as (operator kind, tensor), and a note on each that must stay as it is."""
    found: dict[int, tuple[str, Tensor]] = {}
    notes: dict[str, None] = {}
    uses = {(t.buffer, t.dtype, len(t.shape) > 1) for subgraph in graph.subgraphs for t in subgraph.tensors}
    uses |= {(buffer, "metadata", False) for _, buffer in graph.metadata}
    uses |= {
        (subgraph.tensors[i].buffer, "operand", False)
        for subgraph, operator in graph.operators
        for position, i in enumerate(operator.inputs if operator.kind not in UNPACKING else ())
        if i >= 0 and position not in kind_of(operator).weights
    }
    meanings = Counter(buffer for buffer, *_ in uses)
    for subgraph in graph.subgraphs:
        makers = {i: operator for operator in subgraph.operators for i in operator.writes}
        for operator in subgraph.operators:
            for position in kind_of(operator).weights:
                index = operator.inputs[position] if position < len(operator.inputs) else -1
                maker = makers.get(index)
                if maker is not None and maker.kind == DECODE:
                    notes[f"{subgraph.tensors[index].name} is compressed and stays as it is"] = None
                    continue
                if maker is not None and maker.kind in UNPACKING and maker.reads:
                    index = maker.reads[0]
                tensor = subgraph.tensors[index]
                is_weight = index >= 0 and tensor.storage is Storage.CONSTANT and len(tensor.shape) >= 2
                if not is_weight or tensor.buffer in found:
                    continue
                if meanings[tensor.buffer] > 1:
                    what = "metadata, vectors, other operands or tensors of another type"
                    notes[f"{tensor.name} has its data in common with {what} and stays as it is"] = None
                elif tensor.is_sparse:
                    notes[f"{tensor.name} is stored sparse and stays as it is"] = None
                elif tensor.element.numpy is None:
                    if operator.kind != "GATHER":  # GATHER also reads indices, shapes and the like
                        notes[f"{tensor.name} is of type {tensor.dtype} and stays as it is"] = None
                elif tensor.bytes != graph.buffers[tensor.buffer].size:
                    notes[f"{tensor.name} does not fill its buffer and stays as it is"] = None
                else:
                    found[tensor.buffer] = operator.kind, tensor
    return list(found.values()), list(notes)


def cluster_tensor(
    kind: str, tensor: Tensor, weights: np.ndarray, clusters: int, per_channel: bool = False
) -> tuple[np.ndarray, ClusteredWeights]:
    """Cluster one weight matrix, whole or per quantised channel. Returns the new weights and their statistics."""
    axis, quantization = None, tensor.quantization
    if per_channel and quantization is not None and len(quantization.scales) > 1:
        axis = quantization.dimension
        if not 0 <= axis < weights.ndim or weights.shape[axis] != len(quantization.scales):
            raise ModelError(f"the file is damaged: {shorten(tensor.name)} has no such axis as its scales have")
    rows = weights[np.newaxis] if axis is None else np.moveaxis(weights, axis, 0)
    results = [cluster_values(row, clusters) for row in rows]
    clustered = np.moveaxis(np.stack([r.values for r in results]), 0, axis or 0).reshape(weights.shape)
    signal = float(np.sum(np.square(weights, dtype=np.float64)))
    error = sum(r.squared_error for r in results)
    bits = tensor.element.bits or 0
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
        sqnr_db=decibels(signal, error),
        bytes_before=tensor.bytes or 0,
        codebook_bytes=sum((len(r.codebook) * bits + 7) // 8 for r in results),
        index_bytes=(sum(r.values.size * (len(r.codebook) - 1).bit_length() for r in results) + 7) // 8,
    )
    return clustered, account


def cluster_to_quality(
    kind: str, tensor: Tensor, weights: np.ndarray, most: int, per_channel: bool, min_sqnr: float
) -> tuple[np.ndarray, ClusteredWeights]:
    """As :func:`cluster_tensor`, with the fewest clusters that reach ``min_sqnr`` decibels, or ``most`` if none do."""
    clustered = cache(partial(cluster_tensor, kind, tensor, weights, per_channel=per_channel))
    fewer = range(1, most)
    place = bisect.bisect_left(fewer, min_sqnr, key=lambda count: clustered(count)[1].sqnr_db)
    return clustered(fewer[place] if place < len(fewer) else most)


####################################################################################################
# Compression: weights with few distinct values as code-books and indices, which TFLM decodes when needed
####################################################################################################

# The format is that of tensorflow/lite/micro/kernels/decode_state_lut.cc: 16 bytes of header, the code-books, and one
# index for every element, packed from the highest bit down.

COMPRESSED_KINDS = frozenset("CONV_2D DEPTHWISE_CONV_2D FULLY_CONNECTED TRANSPOSE_CONV".split())
COMPRESSED_DTYPES = frozenset(("INT8", "INT16", "FLOAT32"))
MAX_CODEBOOK = 128  # values
DECODE_FILE_BYTES = 160  # approximate bytes in the file per additional operator and its tensors
HAS_ONE_CODEBOOK = 15  # header value instead of the channel axis


class Payload(NamedTuple):
    """The two constant inputs of TFLM_DECODE: packed indices, and a header with code-books."""

    encoded: bytes
    ancillary: bytes

    @property
    def size(self) -> int:
        return len(self.encoded) + len(self.ancillary)


def payload_of(values: np.ndarray, axis: int | None) -> Payload | None:
    """Encode weights as code-books (one, or one per index of ``axis``) and indices; None if a code-book is too big."""
    words = np.ascontiguousarray(values)
    if words.dtype.kind == "f":
        words = words.view(f"u{words.dtype.itemsize}")  # bit patterns, to keep every NaN and both zeros apart
    rows = words[np.newaxis] if axis is None else np.moveaxis(words, axis, 0)
    books, indices = zip(*(np.unique(row, return_inverse=True) for row in rows), strict=True)
    stride = max(map(len, books))
    if stride > MAX_CODEBOOK:
        return None
    bits = max(1, (stride - 1).bit_length())
    codes = np.moveaxis(np.stack(indices).astype(np.uint8).reshape(rows.shape), 0, axis or 0)
    packed = np.packbits(np.unpackbits(codes.reshape(-1, 1), axis=1)[:, 8 - bits :])
    tables = np.stack([np.pad(book, (0, stride - len(book))) for book in books])
    which = HAS_ONE_CODEBOOK if axis is None else axis
    header = bytes((0, 1, 0, 0, 1, which << 4 | bits, stride)).ljust(16, b"\0")
    return Payload(packed.tobytes(), header + tables.astype(words.dtype.newbyteorder("<")).tobytes())


class Compressible(NamedTuple):
    """A weight tensor that TFLM can decode before the first operator that reads it."""

    tensor: int
    readers: tuple[int, ...]  # operators, in their order
    payloads: tuple[Payload, ...]  # one, or one for each slice of the outputs of a FULLY_CONNECTED
    saved: int  # bytes of the file
    level: int  # peak bytes in use while the decoded tensor is alive
    kept: int  # approximate bytes of persistent structures


def most_saved(parts: Sequence[Compressible], budget: int) -> Sequence[Compressible]:
    """The parts that save most and together keep at most ``budget`` bytes, by dynamic programming over kept bytes."""
    if sum(part.kept for part in parts) <= budget:
        return parts
    ways: dict[int, tuple[int, tuple[Compressible, ...]]] = {0: (0, ())}  # kept bytes -> (saved bytes, parts)
    for part in parts:
        for kept, (saved, chosen) in list(ways.items()):
            more = kept + part.kept
            if more <= budget and saved + part.saved > ways.get(more, (-1, ()))[0]:
                ways[more] = saved + part.saved, (*chosen, part)
    return max(ways.values(), key=lambda way: way[0])[1]


class Compression:
    """The weights of subgraph 0 with few values, and the cost of decoding. Raises ArenaError if a size is unknown."""

    def __init__(self, model: Snapshot) -> None:
        self.model, self.graph, self.subgraph = model, model.graph, model.graph.subgraphs[0]
        self.needs = operator_needs(self.graph, self.subgraph)
        self.peak = max(self.needs, default=0)
        self.least = align(self.peak + persistent_bytes(self.graph).total)  # bytes of arena of a perfect layout
        self.readers: dict[int, list[tuple[int, int]]] = defaultdict(list)  # tensor -> (operator, position)
        for operator in self.subgraph.operators:
            for position, t in enumerate(operator.inputs):
                self.readers[t].append((operator.index, position))
        self.users = Counter(t.buffer for s in self.graph.subgraphs for t in s.tensors)
        self.left_out: dict[str, list[str]] = defaultdict(list)  # reason -> names of weights
        self.cut = cache(self._cut)
        self.found = [c for tensor in self.subgraph.tensors if (c := self.compressible(tensor))]

    @property
    def notes(self) -> list[str]:
        """Why weights stay uncompressed, one sentence per reason."""
        return [
            f"{shorten(names[0])}{f' and {len(names) - 1} more' if len(names) > 1 else ''}: {why}"
            for why, names in self.left_out.items()
        ]

    def compressible(self, tensor: Tensor) -> Compressible | None:
        """The whole tensor as a candidate, or None if compressing it does not shrink the file."""
        readers, operators = self.readers[tensor.index], self.subgraph.operators
        is_weight = tensor.storage is Storage.CONSTANT and readers and len(tensor.shape) >= 2
        if not is_weight or not all(p in kind_of(operators[o]).weights and operators[o].outputs for o, p in readers):
            return None
        if why := self.why_not(tensor, {operators[o].kind for o, _ in readers}):
            self.left_out[why].append(tensor.name)
            return None
        payload = payload_of(decode_weights(tensor, self.graph.content(tensor).data), self.axis(tensor))
        if payload is None:
            return None
        saved = (tensor.bytes or 0) - payload.size - DECODE_FILE_BYTES
        numbers = tuple(dict.fromkeys(operator for operator, _ in readers))
        level = max(self.needs[numbers[0] : numbers[-1] + 1]) + align(tensor.bytes or 0)
        kept = node_persistent_bytes(Node(CUSTOM_KINDS[DECODE], (), (tensor,))) + 2 * BITS_32.tensor
        return Compressible(tensor.index, numbers, (payload,), saved, level, kept) if saved > 0 else None

    def why_not(self, tensor: Tensor, kinds: set[str]) -> str:
        if other := kinds - COMPRESSED_KINDS:
            return f"{' and '.join(sorted(other))} may need constant weights"
        if tensor.dtype not in COMPRESSED_DTYPES or tensor.is_sparse:
            return f"TFLM does not decode {'sparse tensors' if tensor.is_sparse else tensor.dtype}"
        if self.users[tensor.buffer] > 1:
            return "other tensors have the same data"
        if self.graph.buffers[tensor.buffer].size != tensor.bytes:
            return "it does not fill its buffer"
        scales = tensor.quantization.scales if tensor.quantization else ()
        dimension = tensor.quantization.dimension if tensor.quantization else 0
        if len(scales) > 1 and tensor.shape[dimension : dimension + 1] != (len(scales),):
            return f"it has {len(scales)} scales along axis {dimension}"
        if dimension not in ((0, len(tensor.shape) - 1) if len(scales) > 1 else (0,)):
            return f"TFLM does not decode what is quantised along axis {dimension}"
        return ""

    def axis(self, tensor: Tensor) -> int | None:
        """The axis with a code-book per index, which is that of the scales, as the kernel reads them; None for one."""
        quantization = tensor.quantization
        return quantization.dimension if quantization and len(quantization.scales) > 1 else None

    def sliced(self, whole: Compressible, limit: int) -> Compressible | None:
        """FULLY_CONNECTED weights in the fewest output slices, decoded one by one, within ``limit`` bytes, or None."""
        operator, tensor = self.subgraph.operators[whole.readers[0]], self.subgraph.tensors[whole.tensor]
        output = node_of(self.subgraph, operator).output
        is_constant = all(t < 0 or _is_constant(self.subgraph.tensors[t]) for t in operator.inputs[2:3])
        if operator.kind != "FULLY_CONNECTED" or len(whole.readers) > 1 or self.axis(tensor) not in (None, 0):
            return None
        if output is None or not is_constant or len(output.shape) < 2 or output.shape[-1] != tensor.shape[0]:
            return None
        need = self.needs[operator.index]
        for count in range(2, MAX_CONCATENATED + 1):
            level = need + align((tensor.bytes or 0) // count) + count * ARENA_ALIGNMENT
            if tensor.shape[0] % count == 0 and level <= limit:
                return self.cut(whole, count, level)
        return None

    def _cut(self, whole: Compressible, count: int, level: int) -> Compressible | None:
        """The weights in ``count`` slices, or None if that does not shrink the file."""
        tensor = self.subgraph.tensors[whole.tensor]
        parts = np.split(decode_weights(tensor, self.graph.content(tensor).data), count)
        payloads = [payload for part in parts if (payload := payload_of(part, self.axis(tensor)))]
        saved = (tensor.bytes or 0) - sum(p.size for p in payloads) - 2 * count * DECODE_FILE_BYTES
        if saved <= 0 or len(payloads) < count:
            return None
        found = Compressible(whole.tensor, whole.readers, tuple(payloads), saved, level, 0)
        after = persistent_bytes(self.model.rewritten(self.rewrite([found])).graph).total
        return found._replace(kept=after - persistent_bytes(self.graph).total)

    def within(self, limit: int, budget: int) -> list[Compressible]:
        """The best choice for ``limit`` bytes and ``budget`` more persistent ones; exact if weights are not shared."""
        parts = [whole if whole.level <= limit else self.sliced(whole, limit) for whole in self.found]
        fitting = [part for part in parts if part is not None]
        needs, chosen = list(self.needs), []
        for part in sorted(most_saved(fitting, budget), key=lambda c: -c.saved):
            span = range(part.readers[0], part.readers[-1] + 1)
            size = part.level - max(self.needs[i] for i in span)
            if all(needs[i] + size <= limit for i in span):
                for i in span:
                    needs[i] += size
                chosen.append(part)
        return chosen

    def best(self, more_ram: int) -> list[Compressible]:
        """The choice that saves most with ``more_ram`` bytes more of peak and structures."""
        limits = {self.peak, *(part.level for part in self.found)}
        spare = [(limit, more_ram - max(limit - self.peak, 0)) for limit in limits]
        ways = [self.within(limit, left) for limit, left in spare if left >= 0]
        return max(ways, key=lambda chosen: sum(part.saved for part in chosen), default=[])

    def rewrite(self, chosen: Iterable[Compressible]) -> Rewrite:
        """The schedule with the chosen weights decoded before their first readers."""
        emitter = Emitter(self.subgraph)
        first = {part.readers[0]: part for part in chosen}
        place: dict[int, int] = {}  # weights -> decoded tensor
        for operator in self.subgraph.operators:
            part = first.get(operator.index)
            if part is not None and len(part.payloads) > 1:
                self.emit_slices(emitter, operator, part)
                continue
            if part is not None:
                place[part.tensor] = self.emit_decode(emitter, part.tensor, part.payloads[0])
            if place.keys() & set(operator.inputs):
                inputs = [place.get(t, t) for t in operator.inputs]
                emitter.emit(operator.kind, inputs, *operator.outputs, like=operator.index)
            else:
                emitter.schedule.append(operator.index)
        return emitter.rewrite()

    def emit_decode(
        self, emitter: Emitter, weights: int, payload: Payload, channels: tuple[int, int] | None = None
    ) -> int:
        inputs = [
            emitter.add(NewTensor(label, (len(content),), values=content, dtype="UINT8"))
            for label, content in zip(("encoded", "ancillary"), payload, strict=True)
        ]
        shape = self.subgraph.tensors[weights].shape
        if channels is not None:
            shape = channels[1] - channels[0], *shape[1:]
        return emitter.emit(DECODE, inputs, emitter.add(NewTensor("decoded", shape, weights, channels=channels)))

    def emit_slices(self, emitter: Emitter, operator: Operator, part: Compressible) -> None:
        tensors, output = self.subgraph.tensors, operator.outputs[0]
        *rows, whole = tensors[output].shape
        slices, parts = len(part.payloads), []
        count = whole // slices
        for number, payload in enumerate(part.payloads):
            channels = number * count, (number + 1) * count
            inputs = [operator.inputs[0], self.emit_decode(emitter, part.tensor, payload, channels)]
            for bias in operator.inputs[2:3]:
                stored = self.graph.content(tensors[bias]).data if bias >= 0 else b""
                size = len(stored) // slices
                own = bytes(stored[number * size : (number + 1) * size])
                new = NewTensor("bias", (count,), bias, own, channels=channels)
                inputs.append(emitter.add(new) if bias >= 0 else bias)
            made = emitter.tensor(output, (*rows, count), f"{channels[0]}:{channels[1]}")
            parts.append(emitter.emit(operator.kind, inputs, made, like=operator.index))
        emitter.emit("CONCATENATION", parts, output, Axis=len(rows))


####################################################################################################
# Decisions: the results of steps, as figures, text and JSON
####################################################################################################


def saving(before: int, after: int) -> str:
    """Format a change of bytes as ``1,000 B -> 750 B (25.0 % less)``."""
    percent = 100 * (1 - after / before) if before else 0.0
    return f"{before:,} B -> {after:,} B ({abs(percent):.1f} % {'less' if percent >= 0 else 'more'})"


def listed(title: str, sentences: Sequence[str]) -> list[str]:
    """One line per sentence, at most MAX_LISTED, then a line that counts the rest."""
    lines = [f"{title} {sentence}" for sentence in sentences[:MAX_LISTED]]
    more = len(sentences) - MAX_LISTED
    return lines + ([f"{title} ... and {more:,} more reasons"] if more > 0 else [])


MAX_FOLDERS = 20  # to remove from the front of names


def plain_names(names: Iterable[str]) -> dict[str, str]:
    """Map each name to its form without the folders that most of the names share."""
    names = list(names)
    ends = ((name, itertools.islice(re.finditer("/", name.split(";", 1)[0]), MAX_FOLDERS)) for name in names)
    folders = Counter(name[: slash.end()] for name, slashes in ends for slash in slashes)
    shared = sorted((folder for folder, count in folders.items() if count > len(names) / 2), key=len, reverse=True)

    def plain(name: str) -> str:
        return name.removeprefix(next(filter(name.startswith, shared), ""))

    return {name: ";".join(map(plain, name.split(";"))) for name in names}


# Approximate bytes of flash of kernels that steps add, measured with gcc 12 -O2 for a Cortex-M4.
KERNEL_FLASH = {
    DECODE: 21500,
    "SELECT_V2": 6800,
    "MINIMUM": 5700,
    "PAD": 4800,
    "CONCATENATION": 4300,
    "DYNAMIC_UPDATE_SLICE": 3200,
    "SLICE": 2600,
    "BROADCAST_TO": 2200,
    "GATHER": 2000,
    "WHILE": 1000,
}


def plural(count: int, what: str) -> str:
    return f"{count:,} {what}" if count == 1 else f"{count:,} {what}s"


def kilobytes(size: int) -> str:
    return f"{size / 1024:.1f} KB"


def size_text(size: int) -> str:
    """The size as the command line takes it."""
    return f"{size // 1024}KB" if size % 1024 == 0 else f"{size}B"


def kernel_flash(kinds: Iterable[str]) -> int:
    return sum(KERNEL_FLASH.get(kind, 0) for kind in {"PAD" if kind == "PADV2" else kind for kind in kinds})


def added_kinds(before: Snapshot, after: Snapshot) -> tuple[str, ...]:
    """Kinds of operators that the model did not have before: TFLM has to register them."""
    old, new = ({operator.kind for _, operator in model.graph.operators} for model in (before, after))
    return tuple(sorted(new - old))


def more_work(before: Snapshot, after: Snapshot) -> tuple[float, float]:
    """Additional multiply-accumulates and estimated instructions of an inference, in per cent."""
    pairs = [[count(model.graph) for model in (before, after)] for count in (model_macs, model_instructions)]
    macs, time = (100 * (new / old - 1) if old else 0.0 for old, new in pairs)
    return macs, time


def more_text(percent: float) -> str:
    return f"{abs(percent):.1f} % {'more' if percent >= 0 else 'fewer'}"


BATCH_FIXED = "The batch size is fixed to the one in the file; LiteRT may not resize it"
NEEDS_NEW_TFLM = "Loops require TFLM of November 2025 or later and the memory plan in this file"


def registered(kinds: Sequence[str]) -> list[str]:
    """A line that names operators to register, if there are any."""
    flash = kernel_flash(kinds)
    size = f" (kernels of about {kilobytes(flash)})" if flash else ""
    return [f"Also register in your MicroMutableOpResolver: {', '.join(kinds)}{size}"] if kinds else []


def text_table(headers: Sequence[str], rows: Iterable[Sequence[Any]], left: Collection[str] = ()) -> str:
    """Format rows for the terminal; columns not named in ``left`` are right-aligned."""
    from prettytable import PrettyTable

    table = PrettyTable(list(headers), align="r")
    table.align.update(dict.fromkeys(left, "l"))
    table.add_rows(list(map(list, rows)))
    return str(table.get_string())


@dataclass(frozen=True, kw_only=True)
class Decision:
    """The result of a step. Sizes are bytes; None if there is nothing to report, as after a refusal."""

    before: int | None = None
    after: int | None = None
    bound: int | None = None  # proven lower bound
    changed: bool = False
    seconds: float = 0.0
    refusal: str = ""  # why the step could not run; empty if it ran

    key: ClassVar[str] = ""  # of the entry in the JSON document
    json_keys: ClassVar[str] = ""  # documented in README: names of properties, or KEY=PROPERTY
    refused: ClassVar[str] = ""  # start of the line that reports a refusal
    is_of_peak: ClassVar[bool] = False  # True: ``before`` and ``after`` are peaks

    @property
    def optimal(self) -> bool:
        """True if ``after`` is proven minimal."""
        return not self.refusal and self.after is not None and self.bound is not None and self.after <= self.bound

    @property
    def saving(self) -> str:
        return saving(self.before or 0, self.after or 0)

    @property
    def failure(self) -> str:
        """Why no model may be written; empty if one may."""
        return ""

    def lines(self) -> list[str]:
        """The report for the terminal."""
        return [f"{self.refused}: {self.refusal}."] if self.refusal else self.message()

    def message(self) -> list[str]:
        """The report of a step that was not refused."""
        raise NotImplementedError

    def json(self) -> dict[str, Any]:
        """The properties named in ``json_keys`` as JSON-ready data."""
        return picked(self, self.json_keys)


NO_PLAN = ", as TFLM itself lays it out (--plan may do better)"


class Refusal(ValueError):
    """Why a step cannot run, in one line, with the figures known so far."""

    def __init__(self, why: str, **figures: Any) -> None:
        super().__init__(why)
        self.figures = figures


P = ParamSpec("P")
D = TypeVar("D", bound=Decision)
StepFunction = Callable[Concatenate[Snapshot, P], tuple[Snapshot, D]]
Decorator = Callable[[StepFunction[P, D]], StepFunction[P, D]]


def deciding(kind: type[D], why_not: Callable[[ModelGraph], str] = lambda _: "") -> Decorator[P, D]:
    """Decorate a step: its decision gets the time taken, the reason for a refusal, and ``changed``. ``why_not`` is the
    reason why it cannot run on a model; empty if it can."""

    def decorate(function: StepFunction[P, D]) -> StepFunction[P, D]:
        @wraps(function)
        def decide(model: Snapshot, /, *args: P.args, **options: P.kwargs) -> tuple[Snapshot, D]:
            start, model = time.monotonic(), model.with_data_inside()
            try:
                if why := why_not(model.graph):
                    raise Refusal(why, **({"before": model.peak, "after": model.peak} if kind.is_of_peak else {}))
                after, decision = function(model, *args, **options)
            except (Refusal, ArenaError) as why:
                after, decision = model, kind(refusal=str(why), **getattr(why, "figures", {}))
            return after, dataclasses.replace(decision, changed=after is not model, seconds=time.monotonic() - start)

        return decide

    return decorate


def why_not_planned(model: Snapshot, in_place: bool) -> str:
    """Why the tensors cannot be moved; empty if they can. Raises ArenaError if the arena is unknown."""
    if is_compiled(model.graph):
        return COMPILED
    if not in_place and looped_operators(model.graph):
        return LOOPED
    if any(t.is_updated_in_place for s in model.graph.subgraphs[1:] for t in s.tensors):
        return "TFLM mistakes the offsets of a plan where subgraphs other than the first have state"
    for i, buffer in enumerate(model.arena.buffers):
        if buffer.interval.first < 0 <= buffer.interval.last:
            return f"{model.arena.name(i)} is read but never written, so the results depend on its address"
    return ""


def reserve_of(model: Snapshot, for_plan: bool, in_place: bool = True, is_bound: bool = False) -> int:
    """Bytes of arena to reserve for the file as it is or, with ``for_plan``, of a plan that is found quickly or of the
    most bytes that are alive at one time (``is_bound``), which nearly all best plans take. A wrong plan in the file
    does not count."""
    arena = model.without_wrong_plan().arena
    if not for_plan or why_not_planned(model, in_place):
        return arena.reserve
    if is_bound:
        height = Profile(layout_of(arena.intervals, arena.aliases if in_place else NO_ALIASES).intervals).peak
    else:
        height = plan_arena(arena, in_place=in_place, rounds=FEW_ROUNDS).height
    return arena.reserve_with(min(arena.head, height))


def smallest(models: Sequence[Snapshot], for_plan: bool, in_place: bool) -> Snapshot:
    """The model with the smallest arena to reserve, then the smallest peak; the first of equals."""
    bounds = [(reserve_of(model, for_plan, in_place, is_bound=True), model.peak, i) for i, model in enumerate(models)]
    best = NO_LIMIT, 0, 0
    for bound, peak, i in sorted(bounds):
        if bound > best[0]:
            break
        best = min(best, (reserve_of(models[i], for_plan, in_place), peak, i))
    return models[best[2]]


def check_reserve(before: Snapshot, after: Snapshot, for_plan: bool, in_place: bool = True) -> None:
    """Raises Refusal if a step raises the arena to reserve; an unknown arena passes."""
    with contextlib.suppress(ArenaError):
        old, new = (reserve_of(model, for_plan, in_place) for model in (before, after))
        if new > old:
            raise Refusal(f"it would raise the arena to reserve, {saving(old, new)}{NO_PLAN if not for_plan else ''}")


####################################################################################################
# Runtimes: a model and its inputs -> outputs, in TFLM or LiteRT, each run in its own process
####################################################################################################

WORKER = "--run-model"  # first argument of this file when it runs a model for verify_models
TFLM, LITERT = "TFLM", "LiteRT"
PACKAGES = {TFLM: ("tflite_micro", "tflite-micro"), LITERT: ("ai_edge_litert", "ai-edge-litert")}  # module, package
# LiteRT's names for optimised kernels, reference ones, and the default, with its delegate for processors of PCs.
KERNELS, WITH_DELEGATE = ("BUILTIN_WITHOUT_DEFAULT_DELEGATES", "BUILTIN_REF"), "AUTO"
RUN_SECONDS = 300.0  # for all runs of a verification
INPUT_SCALES = (1.0, 30.0, 0.03)  # of floats, one per inference; consecutive inferences also compare state
SPACIOUS_ARENA = 1 << 28  # bytes, if the arena is unknown
MAX_RUN_BYTES = 1 << 29  # of one tensor
SURE_TO_EXIST = 2  # integers below this are valid indices and sizes


class VerificationError(ValueError):
    """The models cannot be compared; the message says why in one line."""


class RunFailure(ValueError):
    """A runtime cannot run a model; the message says why in one line."""


Inputs = Sequence[Sequence["np.ndarray"]]  # per inference
Outputs = list[list[Any]]  # arrays, per inference


def random_inputs(graph: ModelGraph, seed: int) -> list[list[np.ndarray]]:
    """Seeded inputs per inference; integers use their full range unless they may be indices. Raises VerificationError
    if a type has no random values, or if tensors are too large to run here."""
    rng, subgraph = np.random.default_rng(seed), graph.subgraphs[0]
    if (largest := max((t.ram_bytes for s in graph.subgraphs for t in s.tensors), default=0)) > MAX_RUN_BYTES:
        raise VerificationError(f"a tensor of {largest:,} B is too large to run the model here")
    inputs = [(subgraph.tensors[i], _largest_index(subgraph, i)) for i in subgraph.inputs]
    return [
        [_random(rng, [1 if d < 0 else d for d in t.shape], t.dtype.lower(), scale, behind) for t, behind in inputs]
        for scale in INPUT_SCALES
    ]


def _random(rng: np.random.Generator, shape: Sequence[int], dtype: str, scale: float, behind: int) -> np.ndarray:
    """Integers of 32+ bits stay below ``behind`` unless it is 0. Raises VerificationError for unsupported types."""
    kind: np.dtype[Any] = np.dtype(dtype if dtype in np.sctypeDict else object)
    if kind.kind in "fc":
        values = rng.normal(scale=scale, size=shape)
        return (values + 1j * rng.normal(scale=scale, size=shape) if kind.kind == "c" else values).astype(kind)
    if kind.kind == "b":
        return rng.integers(0, 2, shape).astype(kind)
    if kind.kind not in "iu":
        raise VerificationError(f"there are no random inputs of type {dtype}")
    if kind.itemsize > 2 and behind:
        return rng.integers(0, behind, shape).astype(kind)
    return rng.integers(np.iinfo(kind).min, np.iinfo(kind).max, shape, dtype=kind, endpoint=True)


def _largest_index(subgraph: Subgraph, tensor: int) -> int:
    """The exclusive upper limit of an input's values, given the operators that read it as indices; 0 if none."""
    behind = []
    for operator in [operator for operator in subgraph.operators if tensor in operator.reads]:
        node = node_of(subgraph, operator)
        table, indices = node.get("table"), node.get("indices")
        if table and indices and indices.index == tensor:
            is_row = operator.kind != "GATHER_ND"
            axis = node.options.get("Axis", 0)
            is_there = -len(table.shape) <= axis < len(table.shape)
            behind.append(max(table.shape[axis] if is_row and is_there else min(table.shape, default=1), 1))
        elif node.kind.rows is not elementwise_rows:
            behind.append(SURE_TO_EXIST)
    return min(behind, default=0)


def _run_in_subprocess(runtime: str, data: Bytes, inputs: Inputs, kernels: str, timeout: float) -> Outputs:
    """Run a model in its own process. Raises RunFailure if it fails, crashes or takes more than ``timeout`` seconds."""
    import pickle
    import subprocess

    arena = SPACIOUS_ARENA
    with contextlib.suppress(ArenaError):
        arena = 2 * analyse_arena(read_model(data), BITS_64).reserve + (1 << 20)
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "model.tflite").write_bytes(data)
        Path(folder, "inputs").write_bytes(pickle.dumps(inputs))
        command, nothing = [sys.executable, __file__, WORKER, runtime, folder, str(arena), kernels], subprocess.DEVNULL
        with open(Path(folder, "said"), "w+b") as said:
            # A session of its own: signals to this program must not reach the runtime.
            process = subprocess.Popen(command, stdin=nothing, stdout=nothing, stderr=said, start_new_session=True)
            deadline = time.monotonic() + timeout

            def is_over() -> bool:
                return Budget.is_interrupted or time.monotonic() > deadline

            try:
                while process.poll() is None and not is_over():
                    with contextlib.suppress(subprocess.TimeoutExpired):
                        process.wait(0.1)
            finally:
                process.kill()
            code = process.wait()
            said.seek(0)
            lines = [line.strip() for line in said.read().decode(errors="replace").splitlines() if line.strip()]
        if is_over():
            raise RunFailure("interrupted" if Budget.is_interrupted else f"it did not finish within {timeout:.0f} s")
        outputs = Path(folder, "outputs")
        if code == 0 and outputs.exists():
            return list(pickle.loads(outputs.read_bytes()))  # safe: the worker has just written it
    own = list(itertools.takewhile(lambda line: not line.startswith("Traceback"), lines))
    reason = own[:1] if own and runtime == TFLM else lines[-1:]
    if code < 0:
        reason = [f"it crashed ({signal.Signals(-code).name})", *reason]
    raise RunFailure(shorten(": ".join(reason) or f"exit code {code}", 200))


def run_model(runtime: str, folder: str, arena: str, kernels: str) -> None:
    """Entry point of the worker process: run one model and write its outputs to a file."""
    import pickle

    path, made = Path(folder, "model.tflite"), []
    if runtime == TFLM:
        from tflite_micro.python.tflite_micro.runtime import Interpreter

        data = path.read_bytes()
        interpreter, subgraph = Interpreter.from_bytes(data, arena_size=int(arena)), read_model(data).subgraphs[0]
        inputs, outputs = ([*range(len(ports))] for ports in (subgraph.inputs, subgraph.outputs))
        put, get = interpreter.set_input, interpreter.get_output
    else:
        from ai_edge_litert.interpreter import Interpreter, OpResolverType

        resolver = OpResolverType[kernels]
        interpreter = Interpreter(model_path=str(path), num_threads=1, experimental_op_resolver_type=resolver)
        interpreter.allocate_tensors()
        ports = interpreter.get_input_details(), interpreter.get_output_details()
        inputs, outputs = ([detail["index"] for detail in details] for details in ports)
        put, get = (lambda array, place: interpreter.set_tensor(place, array)), interpreter.get_tensor
    for arrays in pickle.loads(Path(folder, "inputs").read_bytes()):
        for place, array in zip(inputs, arrays, strict=True):
            put(array, place)
        interpreter.invoke()
        made.append([np.array(get(i)) for i in outputs])
    Path(folder, "outputs").write_bytes(pickle.dumps(made))


####################################################################################################
# Verification: do two models compute the same?
####################################################################################################


@dataclass(frozen=True, kw_only=True)
class VerificationDecision(Decision):
    """How the outputs of two models compare on the same seeded random inputs."""

    runtimes: tuple[str, ...] = ()  # that ran both models
    outputs: int = 0  # arrays compared, of all inferences and runtimes
    different: int = 0  # of these arrays, not bit-identical
    constant_outputs: tuple[str, ...] = ()  # outputs that are the same for all inputs
    notes: tuple[str, ...] = ()  # runtimes that did not run
    against: str = "the input model's"
    signal: float = 0.0  # sum of squares of all finite outputs of the original
    noise: float = 0.0  # sum of squared differences
    inferences: int = 0  # consecutive ones
    may_differ: bool = False  # True: the weights were changed on purpose
    distance: VerificationDecision | None = None  # to the model before its weights were changed on purpose

    key = "verification"
    json_keys = "identical runtimes outputs different constant_outputs notes signal noise distance"

    @property
    def failure(self) -> str:
        return "" if self.identical or self.may_differ else "the outputs differ, so no model was written"

    @property
    def identical(self) -> bool:
        return self.different == 0

    @property
    def sqnr_db(self) -> float:
        return decibels(self.signal, self.noise)

    def message(self) -> list[str]:
        where = " and ".join(self.runtimes)
        if self.identical:
            what = f"all outputs of {self.inferences} inferences in each"
            lines = [f"Verified in {where}: {what} are bit-identical to {self.against}."]
        else:
            what = f"{self.different} of {self.outputs} outputs of {self.inferences} inferences"
            lines = [f"Compared in {where}: {what} differ from {self.against}, SQNR {self.sqnr_db:.1f} dB."]
        if self.constant_outputs:
            names = ", ".join(map(shorten, self.constant_outputs[:MAX_LISTED]))
            lines.append(f"This proves little: these outputs do not depend on the inputs: {names}")
        lines += [f"Not verified in all runtimes: {note}" for note in self.notes]
        return lines + (self.distance.message()[:1] if self.distance else [])


def missing_runtimes() -> dict[str, str]:
    """The runtimes that are not installed, with a note for each."""
    import importlib.util

    missing = [(name, package) for name, (module, package) in PACKAGES.items() if not importlib.util.find_spec(module)]
    return {name: f"{name} is not installed: pip install {package}" for name, package in missing}


def _why_not_run(runtime: str, original: ModelGraph, changed: ModelGraph) -> str:
    """Why a runtime that is installed cannot compare two models; empty if it can."""
    first, kinds = original.subgraphs[0], {operator.kind for _, operator in changed.operators}
    if runtime == LITERT:
        return f"{LITERT} has no {DECODE}, with which the weights are compressed" if DECODE in kinds else ""
    if reasons := refusals(original):
        return f"{TFLM} rejects this model: {reasons[0]}"
    if any(first.tensors[i].is_completed for i in first.outputs):
        return f"the package of {TFLM} does not hand out outputs with a dimension that the file leaves open"
    return ""


def verify_models(
    original: Bytes, changed: Bytes, seed: int = 0, timeout: float = RUN_SECONDS, stages: Sequence[Bytes] = ()
) -> VerificationDecision:
    """Compare two models on the same inputs in TFLM and LiteRT (no delegate, one thread), where these are installed.
    ``stages`` are parts of ``changed`` that run in its place and get their inputs by name.

    Runs one inference per entry of INPUT_SCALES, consecutively, and sees if LiteRT's default interpreter, with its
    delegate, takes the changed model. A runtime that cannot run the original becomes a note; crashes are reported.
    Raises VerificationError if no runtime runs the original, or one that does rejects the changed model. ``timeout`` is
    in seconds for all runs."""
    start = time.monotonic()
    graphs = read_model(original), read_model(changed)
    first, second = (graph.subgraphs[0] for graph in graphs)
    ports = {port.inner.index: port for port in _converted_ports(first, second)}
    given = random_inputs(graphs[1] if ports else graphs[0], seed)
    meant = [_as_before(second.inputs, arrays, ports) for arrays in given]
    # LiteRT's optimised kernels sum floats in an order that depends on the number of rows; TFLM's and the reference
    # kernels do not.
    written = {s.tensors[t].dtype for s, operator in graphs[0].operators for t in operator.writes}
    is_rewritten = bool(stages) or len({len(list(graph.operators)) for graph in graphs}) > 1
    kernels = KERNELS[is_rewritten and "FLOAT32" in written]

    def run(runtime: str, is_changed: bool, kernels: str = kernels) -> Outputs:
        def once(data: Bytes, inputs: Inputs) -> Outputs:
            return _run_in_subprocess(runtime, data, inputs, kernels, max(start + timeout - time.monotonic(), 0.0))

        if is_changed:
            return _run_chain(stages, second, given, once) if stages else once(changed, given)
        return once(original, meant)

    missing, notes, comparisons = missing_runtimes(), [], {}
    for runtime in PACKAGES:
        if why := missing.get(runtime) or _why_not_run(runtime, *graphs):
            notes.append(why)
            continue
        try:
            before = run(runtime, is_changed=False)
        except RunFailure as failure:
            notes.append(f"{runtime} does not run the original model: {failure}")
            continue
        try:
            after = run(runtime, is_changed=True)
        except RunFailure as failure:
            raise VerificationError(f"{runtime} runs the original model, but not the changed one: {failure}") from None
        comparisons[runtime] = before, [_as_before(second.outputs, arrays, ports) for arrays in after]
    if not comparisons:
        raise VerificationError("; ".join(notes))
    if LITERT in comparisons:
        try:
            run(LITERT, is_changed=True, kernels=WITH_DELEGATE)
        except RunFailure as failure:
            with contextlib.suppress(RunFailure):  # it refuses the original, too
                run(LITERT, is_changed=False, kernels=WITH_DELEGATE)
                notes.append(f"{LITERT}'s default delegate rejects this model, but not the original: {failure}")
    return _compare(comparisons, first, tuple(notes), time.monotonic() - start)


def _run_chain(
    stages: Sequence[Bytes], whole: Subgraph, given: Inputs, run: Callable[[Bytes, Inputs], Outputs]
) -> Outputs:
    """The outputs of a model, by its stages, which get their inputs by name."""

    def named(subgraph: Subgraph, ids: Sequence[int]) -> list[str]:
        return [subgraph.tensors[t].name for t in ids]

    known = [dict(zip(named(whole, whole.inputs), arrays, strict=False)) for arrays in given]
    for data in stages:
        stage = read_model(data).subgraphs[0]
        inputs = [[values[name] for name in named(stage, stage.inputs)] for values in known]
        for values, results in zip(known, run(data, inputs), strict=True):
            values.update(zip(named(stage, stage.outputs), results, strict=False))
    return [[values[name] for name in named(whole, whole.outputs)] for values in known]


def _converted_ports(before: Subgraph, after: Subgraph) -> list[Port]:
    """Inputs and outputs that became integers exactly. Raises VerificationError if an input has any other new type."""
    ports = []
    for olds, news, is_input in ((before.inputs, after.inputs, True), (before.outputs, after.outputs, False)):
        for old, new in zip(olds, news, strict=False):
            port = Port(before.tensors[old], after.tensors[new], -1, is_input)
            is_new = port.outer.dtype != port.inner.dtype
            if is_new and is_exact(port):
                ports.append(port)
            elif is_new and is_input:
                raise VerificationError(f"input {shorten(port.inner.name)} has another type than in the original")
    return ports


def _as_before(ids: Sequence[int], arrays: Sequence[np.ndarray], ports: Mapping[int, Port]) -> list[np.ndarray]:
    """Convert arrays of inputs or outputs to their values in the original model."""
    return [ports[i].stands_for(a) if i in ports else a for i, a in zip(ids, arrays, strict=False)]


def _compare(
    comparisons: Mapping[str, tuple[Outputs, Outputs]], subgraph: Subgraph, notes: tuple[str, ...], seconds: float
) -> VerificationDecision:
    pairs: list[tuple[np.ndarray, np.ndarray]] = []
    different, constant = 0, set(range(len(subgraph.outputs)))
    for before, after in comparisons.values():
        for these, those in zip(before, after, strict=True):
            pairs += zip(these, those, strict=False)
            different += abs(len(these) - len(those))
        constant &= {i for i in constant if len({outputs[i].tobytes() for outputs in before}) == 1}
    signal = noise = 0.0
    for a, b in pairs:
        if a.dtype.kind in "iuf" and a.shape == b.shape:
            x, y = a.astype(np.float64), b.astype(np.float64)
            finite = np.isfinite(x) & np.isfinite(y)
            signal += float(np.sum(x[finite] ** 2))
            noise += float(np.sum((x[finite] - y[finite]) ** 2))
    return VerificationDecision(
        runtimes=tuple(comparisons),
        outputs=len(pairs),
        different=different + sum(not is_same(a, b) for a, b in pairs),
        constant_outputs=tuple(subgraph.tensors[subgraph.outputs[i]].name for i in sorted(constant)),
        notes=notes,
        signal=signal,
        noise=noise,
        inferences=len(INPUT_SCALES),
        seconds=seconds,
    )


def decide_verification(
    model: Snapshot,
    original: Snapshot,
    what: str = "the input",
    seed: int = 0,
    timeout: float = RUN_SECONDS,
    stages: Sequence[Snapshot] = (),
) -> VerificationDecision:
    """As :func:`verify_models`, but without a wrong memory plan in ``original``, the model that ``what`` names."""
    meant = original.without_wrong_plan()
    whose = f"{what} model's" + ("" if meant is original else " without the wrong memory plan")
    parts = [stage.data for stage in stages]
    return dataclasses.replace(verify_models(meant.data, model.data, seed, timeout, parts), against=whose)


####################################################################################################
# Steps: reorder operators, plan the arena, plan two memories
####################################################################################################


@dataclass(frozen=True, kw_only=True)
class OrderDecision(Decision):
    """The effect of reordering on the peak. No order of these operators has a peak below ``bound``."""

    orders: tuple[tuple[int, ...], ...] = ()  # per subgraph: old indices in the new order
    states: int = 0  # sets of executed operators that the search looked at

    key, refused, is_of_peak = "optimization", "Not reordered", True
    json_keys = "peak_before=before peak=after orders states bound optimal changed seconds refusal"

    def message(self) -> list[str]:
        verdict = "proven optimal: no order needs less"
        if not self.optimal:
            gap = 100 * (1 - (self.bound or 0) / (self.after or 1))
            verdict = f"not proven optimal: no order needs less than {self.bound:,} B, {gap:.1f} % below this"
        if not self.changed:
            return [f"Operator order unchanged: peak {self.after:,} B, {verdict}."]
        return [f"Operators reordered: peak {self.saving}, {verdict}."]


@deciding(OrderDecision, why_not_rewritten)
def decide_order(
    model: Snapshot, time_limit: float = TIME_LIMIT, for_arena: bool = False, in_place: bool = True
) -> tuple[Snapshot, OrderDecision]:
    """Reorder the operators of every subgraph for the smallest peak, callees first; a plan of the old order is erased.
    An optimal model stays byte-identical, and so does one whose arena would grow. After ``time_limit`` seconds, the
    best order and the best proven bound so far are taken. ``for_arena``: judge by the memory plan to be made, and try
    two more orders: that of the smallest arena and, with ``in_place``, that with outputs over inputs that end there."""
    peak, graph, budget = model.peak, model.graph, Budget(time_limit)
    found = order_model(graph, budget.share(0.5 if for_arena else 1.0).left)
    candidates, given = [found], tuple(tuple(range(len(s.operators))) for s in graph.subgraphs)
    if for_arena:
        with contextlib.suppress(ArenaError):
            kinds = [ARENA_COSTS, IN_PLACE_COSTS] if in_place else [ARENA_COSTS]
            candidates += [order_model(graph, budget.share(0.4).left, costs) for costs in kinds]
    orders = [tuple(ordering.order for ordering in orderings) for orderings in candidates]
    models = {given: model} | {order: model.reordered(order) for order in orders if order != given}
    best, bound = models[orders[0]], max(ordering.bound for ordering in found)
    if best.peak != max(ordering.peak for ordering in found):
        raise BrokenCertificate(f"the order that was found needs {best.peak:,} B in the file")
    after = best
    if len(models) > 1:
        with contextlib.suppress(ArenaError):
            after = smallest(list(models.values()), for_arena, in_place)
    if after is model and best.peak < peak and not for_arena:
        worse = f"the order with the smallest peak, {best.peak:,} B, would raise the arena to reserve{NO_PLAN}"
        raise Refusal(worse, before=peak, after=peak, bound=bound)
    return after, OrderDecision(
        before=peak,
        after=after.peak,
        bound=bound,
        orders=next(order for order, one in models.items() if one is after),
        states=sum(ordering.states for ordering in found),
    )


@dataclass(frozen=True, kw_only=True)
class PlanDecision(Decision):
    """The effect of planning on the head, the planned part of the arena. No plan for its tensors is below ``bound``."""

    original: int | None = None  # head of the input model, before other steps
    in_place: Mapping[str, int] = dataclasses.field(default_factory=dict)  # outputs that overwrite an input, by kind
    read_by_slices: int = 0  # tensors released slice by slice
    loops: int = 0  # WHILE operators whose state is updated in place
    is_planned: bool = False  # the file has a plan now
    is_apart: bool = False  # True: of plans in which no two live tensors share memory
    unplanned: int | None = None  # head of a lower plan that would not lower the arena to reserve: planning needs more

    key, refused = "planning", "Arena not planned"
    json_keys = "head_before=before head=after in_place read_by_slices loops bound optimal changed seconds refusal"

    def message(self) -> list[str]:
        verdict = "proven optimal: no layout is smaller" if self.optimal else f"no plan is below {self.bound:,} B"
        verdict += " without shared memory" if self.is_apart else ""
        whole = self if self.original is None else dataclasses.replace(self, before=self.original)
        if self.unplanned is not None:
            why = f"a plan of {self.unplanned:,} B would not lower what AllocateTensors() needs"
            return [f"Arena unchanged: {self.after:,} B; {why}."]
        if self.after == whole.before:
            done = "planned again, since its plan was wrong" if self.changed else "unchanged"
            return [f"Arena {done}: {self.after:,} B, {verdict}."]
        done = "Arena planned" if self.is_planned else "Arena, which needs no plan"
        lines = [f"{done}: {whole.saving}, {verdict}."]
        if shared := ", ".join(f"{count} {kind}" for kind, count in self.in_place.items()):
            lines.append(f"Computed in place: {shared}{'' if self.loops else ' (disable with --no-sharing)'}")
        if self.read_by_slices:
            lines.append(f"{plural(self.read_by_slices, 'tensor')} released while read slice by slice")
        if self.loops:
            lines.append(f"The state of {plural(self.loops, 'loop')} is updated in place")
        return lines


@deciding(PlanDecision)
def decide_plan(
    model: Snapshot, time_limit: float = TIME_LIMIT, in_place: bool = True
) -> tuple[Snapshot, PlanDecision]:
    """Write the lowest arena layout for TFLM into the file, if it lowers the arena to reserve or the present one is
    wrong; without ``in_place`` also if that shares memory. Plans of compilers for accelerators stay. With ``in_place``,
    an output may overwrite an input that ends there, and SLICE frees what it reads for the last time, where that is
    safe on the reference kernels, CMSIS-NN and ESP-NN. The rest of the file is unchanged."""
    arena = model.arena
    if why := why_not_planned(model, in_place):
        raise Refusal(why, before=arena.head, after=arena.head)
    best = plan_arena(arena, time_limit, in_place)
    # With what the plan in the file shares, its own head may be below all plans that share nothing.
    is_wrong = bool(arena.problems or arena.lost) or (not in_place and bool(arena.used))
    bound = best.bound if is_wrong else min(best.bound, arena.head)
    if best.height >= MAX_OFFSET:
        why = f"it would be {best.height:,} B, but offsets in the file have 32 bits"
        raise Refusal(why, before=arena.head, after=arena.head, bound=bound)
    if not is_wrong and best.height < arena.head and arena.reserve_with(best.height) >= arena.reserve:
        return model, PlanDecision(before=arena.head, after=arena.head, bound=bound, unplanned=best.height)
    after = model.planned(best) if best.height < arena.head or is_wrong else model
    kinds = {(s.index, t): o.kind for s, o in model.graph.operators for t in o.writes if o.kind != "WHILE"}
    above = (after.arena.buffers[alias.new] for alias in after.arena.used.pairs)
    shared = Counter(kinds[where] for b in above if (where := (b.subgraph, b.tensor or 0)) in kinds)
    return after, PlanDecision(
        before=arena.head,
        after=after.arena.head,
        bound=bound,
        in_place=dict(sorted(shared.items())),
        read_by_slices=len(after.arena.freed),
        loops=looped_operators(after.graph),
        is_planned=after.arena.has_plan,
        is_apart=not in_place,
    )


class SlowTensor(NamedTuple):
    """A tensor in the slow memory."""

    number: str
    name: str
    bytes: int


@dataclass(frozen=True, kw_only=True)
class MemoriesDecision(Decision):
    """Bytes moved per inference: ``before`` in total, ``after`` to and from slow memory, at least ``bound`` there."""

    fast: int = 0  # limits, as given
    slow: int | None = None
    fast_head: int = 0  # tensors and scratch memory
    slow_head: int = 0  # tensors
    required: int = 0  # bytes of fast memory for scratch and pinned tensors
    reserve: int = 0  # the arena, in slow memory unless all fits in the fast one
    persistent: int = 0  # persistent structures in it; AllocateTensors() may briefly need more
    scratch_elsewhere: Mapping[str, int] = dataclasses.field(default_factory=dict)  # by library, if above fast_head
    one_arena: int = 0  # bytes to reserve without the planner class
    is_divided: bool = False  # False: everything fits in the fast memory
    has_loops: bool = False  # True: bodies of loops count once in ``before`` and ``after``
    tensors: tuple[SlowTensor, ...] = ()  # in the slow memory

    key, refused = "memories", "Not planned for two memories"
    json_keys = (
        "bytes_moved=before bytes_moved_slow=after tensors_slow=tensors fast slow fast_head slow_head required reserve "
        "persistent one_arena is_divided has_loops scratch_elsewhere bound optimal changed seconds refusal"
    )

    @property
    def failure(self) -> str:
        return f"no model was written: {self.refusal}" if self.refusal else ""

    def message(self) -> list[str]:
        if not self.is_divided:
            fits = f"an arena of {self.reserve:,} B of {self.fast:,} B"
            return [f"Two memories: everything fits into the fast one, {fits}."]
        stays, most = (100 * (1 - (n or 0) / max(self.before or 0, 1)) for n in (self.after, self.bound))
        verdict = "proven optimal" if self.optimal else f"no plan has more than {most:.1f} %"
        plain = plain_names(t.name for t in self.tensors)
        largest = sorted(self.tensors, key=lambda t: -t.bytes)[:MAX_LISTED]
        names = [f"{t.number} ({shorten(plain[t.name], 40)}) {t.bytes:,} B" for t in largest]
        names += [f"{len(self.tensors) - len(largest):,} more"] if len(self.tensors) > len(largest) else []
        moved = f"{self.before:,} B that an inference moves{f' ({COUNTED_ONCE})' if self.has_loops else ''}"
        limit = "" if self.slow is None else f" of {self.slow:,} B"
        parts = f"tensors {self.slow_head:,} B, persistent structures {self.persistent:,} B"
        if self.reserve > align(self.slow_head + self.persistent):
            parts += f"; AllocateTensors() briefly needs {self.reserve:,} B"
        pinned = f"{self.required:,} B must be there: scratch memory and pinned tensors"
        planner = "The planner class that --firmware writes keeps them apart"
        return [
            f"Two memories: {stays:.1f} % of {moved} are in the fast one, {verdict}.",
            f"Fast memory to reserve: {self.fast_head:,} B of {self.fast:,} B ({pinned}).",
            f"Slow memory to reserve (kTensorArenaSize): {self.reserve:,} B{limit} ({parts}).",
            f"Tensors in the slow memory: {', '.join(names) or 'none'}.",
            f"{planner}; without it the file runs in one arena of {self.one_arena:,} B.",
            *(
                f"This plan is too small for {LIBRARIES[name].title}, with {size:,} B of scratch (see --kernels)."
                for name, size in self.scratch_elsewhere.items()
            ),
        ]


def _division(model: Snapshot, found: Division, moved: Sequence[int]) -> dict[str, Any]:
    """The figures of a division, by the fields of its decision."""
    arena, graph = model.arena, model.graph
    others = {name: arena_buffers(graph.on(LIBRARIES[name])) for name in USUAL_LIBRARIES if name != graph.kernels.name}
    scratch = {name: Profile(b.interval for b in bs if b.tensor is None).peak for name, bs in others.items()}
    away = [i for i in range(len(moved)) if i not in found.fast]
    tensors = (
        SlowTensor(tensor_number(b.subgraph, b.tensor), graph.subgraphs[b.subgraph].tensors[b.tensor].name, b.bytes)
        for b in (arena.buffers[i] for i in away)
        if b.tensor is not None
    )
    return {
        "after": sum(moved[i] for i in away),
        "bound": sum(moved) - found.most,
        "fast_head": found.boundary,
        "slow_head": found.plan.height - found.boundary,
        "reserve": found.reserve(arena),
        "persistent": persistent_apart(arena),
        "scratch_elsewhere": {name: size for name, size in scratch.items() if size > found.boundary},
        "is_divided": True,
        "tensors": tuple(tensors),
    }


@deciding(MemoriesDecision)
def decide_memories(
    model: Snapshot,
    fast: int,
    slow: int | None = None,
    pins: Mapping[str, str] | None = None,
    time_limit: float = TIME_LIMIT,
    in_place: bool = True,
) -> tuple[Snapshot, MemoriesDecision]:
    """Plan, in the file, a fast memory for most of what an inference moves and a slow one for the rest.

    If everything fits in the fast one, persistent structures included, the plan is an ordinary one. Otherwise these are
    in the slow one, as in the planner class of :meth:`TFLiteModel.write_firmware`; without it, both form one arena.
    ``fast`` bytes are for tensors and scratch memory, or the whole arena, ``slow`` ones for the rest; ``pins`` requires
    ``"fast"`` or ``"slow"`` by tensor name. Raises ValueError if a size is not a number of bytes or a pin is invalid
    (no such tensor or memory, both memories)."""
    memories, budget = Memories(fast, slow, pins or {}), Budget(time_limit)
    known: dict[str, Any] = {"fast": fast, "slow": slow, "has_loops": any(is_loop(o) for _, o in model.graph.operators)}
    try:
        arena, why = model.arena, why_not_planned(model, in_place)
    except ArenaError as refusal:
        raise Refusal(str(refusal), **known) from None
    pinned = memories.pinned(arena)
    if why:
        raise Refusal(why, **known)
    moved = traffic(model.graph, arena.buffers)
    known["before"] = sum(moved)
    if all(pinned.values()):
        whole, _ = decide_plan(model, budget.share(0.3).left, in_place)
        if (size := whole.arena.reserve) <= fast:
            known |= {"after": 0, "bound": 0, "fast_head": whole.arena.head, "reserve": size, "one_arena": size}
            return whole, MemoriesDecision(**known)
    problem = DivisionProblem(arena, moved, pinned, arena.aliases if in_place else Aliases(joined=arena.promises[1]))
    required = known["required"] = problem.required
    if max(required, ARENA_ALIGNMENT) > fast:
        why = f"scratch memory and what is pinned take {required:,} B, more than the {fast:,} B of fast memory"
        raise Refusal(why if required else f"a fast memory of {fast:,} B holds nothing", **known)
    found = plan_memories(problem, memories, budget.left)
    if found is None or found.plan.height >= MAX_OFFSET:
        room = MAX_OFFSET if slow is None else slow
        free = plan_memories(problem, Memories(fast), 1.0)
        why = f"no plan was found for {fast:,} B of fast memory and {room:,} B of slow memory"
        raise Refusal(why + (f"; {free.reserve(arena):,} B of slow memory are enough" if free else ""), **known)
    after = model.planned(found.plan)
    return after, MemoriesDecision(**known, **_division(model, found, moved), one_arena=after.arena.reserve)


####################################################################################################
# Steps: cheaper equivalents, integer inputs and outputs
####################################################################################################


@dataclass(frozen=True, kw_only=True)
class ExchangeDecision(Decision):
    """The effect of other operators in place of some of subgraph 0."""

    dropped: Mapping[str, int] = dataclasses.field(default_factory=dict)  # number of operators by kind
    added: Mapping[str, int] = dataclasses.field(default_factory=dict)
    new_kinds: tuple[str, ...] = ()  # operators that the model did not have before: TFLM has to register them

    @property
    def exchange(self) -> str:
        """``2 PAD, 1 CONV_2D -> 1 FULLY_CONNECTED``"""
        texts = (", ".join(f"{n} {kind}" for kind, n in counts.items()) for counts in (self.dropped, self.added))
        return " -> ".join(text or "nothing" for text in texts)

    @staticmethod
    def figures(before: Snapshot, after: Snapshot) -> dict[str, Any]:
        """The fields above."""
        old, new = (Counter(o.kind for o in model.graph.subgraphs[0].operators) for model in (before, after))
        gone, added = (dict(sorted(counts.items())) for counts in (old - new, new - old))
        return {"dropped": gone, "added": added, "new_kinds": added_kinds(before, after)}


@dataclass(frozen=True, kw_only=True)
class LighteningDecision(ExchangeDecision):
    """The effect of cheaper equivalents on TFLM's persistent structures on a 32-bit target."""

    key, refused = "lightening", "No operator replaced"
    json_keys = "persistent_before=before persistent=after dropped added new_kinds changed seconds refusal"

    def message(self) -> list[str]:
        if not self.changed:
            return ["No operator replaced: none has a cheaper equivalent."]
        what = f"{self.exchange}; persistent structures {self.saving}"
        return [f"Cheaper equivalents: {what}.", *registered(self.new_kinds)]


def lightened(model: Snapshot) -> Snapshot:
    """The model with all cheaper equivalents of :class:`Lightening`, whatever they cost together."""
    while (found := Lightening(model.graph)).changed:
        model = model.rewritten(found.rewrite())
    return model


@deciding(LighteningDecision, why_not_rewritten)
def decide_lightening(
    model: Snapshot, for_plan: bool = True, in_place: bool = True
) -> tuple[Snapshot, LighteningDecision]:
    """Replace operators of subgraph 0 to compute the same bits with less persistent memory in TFLM, as
    :class:`Lightening` does. ``for_plan`` and ``in_place`` are as for :func:`decide_split`."""
    changed = lightened(model)
    before, after = (persistent_bytes(m.graph).total for m in (model, changed))
    if after >= before and reserve_of(changed, for_plan, in_place) >= reserve_of(model, for_plan, in_place):
        return model, LighteningDecision(before=before, after=before)
    check_reserve(model, changed, for_plan, in_place)
    return changed, LighteningDecision(before=before, after=after, **ExchangeDecision.figures(model, changed))


@dataclass(frozen=True, kw_only=True)
class RepairDecision(ExchangeDecision):
    """The effect on the file, in bytes, of equivalents for operators that TFLM rejects."""

    floats: tuple[str, ...] = ()  # operators whose weights are floats now: not bit-identical
    left: tuple[str, ...] = ()  # why TFLM still rejects the model
    is_batch_fixed: bool = False  # to the batch size stored in the file, which TFLM uses

    key, refused = "repair", "Not repaired"
    json_keys = (
        "file_before=before file=after dropped added new_kinds floats left is_batch_fixed changed seconds refusal"
    )

    def message(self) -> list[str]:
        left = listed("TFLM still rejects this model:", self.left)
        if not self.changed:
            return left or ["Nothing to repair: TFLM accepts every operator of this model."]
        what = self.exchange if self.dropped or self.added else "operators on other tensors"
        lines = [f"Repaired: {what}; file {self.saving}."]
        if self.floats:
            why = "Not bit-identical to LiteRT, which rounds their inputs to 8 bits: --verify measures the distance"
            lines.append(f"Weights are floats now: {plural(len(self.floats), 'operator')}. {why}")
        return [*lines, *[BATCH_FIXED] * self.is_batch_fixed, *registered(self.new_kinds), *left]


@deciding(RepairDecision, why_not_rewritten)
def decide_repair(model: Snapshot, is_inexact: bool = False) -> tuple[Snapshot, RepairDecision]:
    """Replace operators of subgraph 0 that TFLM rejects by others with the same results, as :class:`Repair` does; with
    ``is_inexact`` also hybrid ones, whose results then differ from LiteRT's."""
    after, floats = model, list[str]()
    while (found := Repair(after.graph, is_inexact)).changed:
        floats += found.floats
        after = after.rewritten(found.rewrite())
    figures = {"before": len(model.data), "after": len(after.data), **ExchangeDecision.figures(model, after)}
    is_fixed = "RESHAPE" in figures["added"] and any(0 in t.dynamic for t in model.graph.subgraphs[0].tensors)
    left = tuple(after.refusals)
    return after, RepairDecision(**figures, floats=tuple(floats), left=left, is_batch_fixed=is_fixed)


def repair_hint(model: Snapshot) -> list[str]:
    """What --repair does about rejected operators, if anything."""
    for option, is_inexact in (("--repair", False), ("--repair hybrid", True)):
        if (count := len(Repair(model.graph, is_inexact).changed)) and not why_not_rewritten(model.graph):
            return [f"{option} replaces {plural(count, 'operator')} that TFLM rejects"]
    return []


@dataclass(frozen=True, kw_only=True)
class PortsDecision(Decision):
    """The effect of integer inputs and outputs on the peak."""

    ports: tuple[Port, ...] = ()
    reserve_before: int | None = None
    reserve: int | None = None

    key, refused, is_of_peak = "integer_io", "Inputs and outputs unchanged", True
    json_keys = "peak_before=before peak=after reserve_before reserve ports changed seconds refusal"

    def message(self) -> list[str]:
        if not self.ports:
            return ["Inputs and outputs unchanged: the model converts none of them to or from integers."]
        size = "" if self.reserve is None else f", arena to reserve {saving(self.reserve_before or 0, self.reserve)}"
        return [*map(str, self.ports), f"Your code now converts inputs and outputs: peak {self.saving}{size}."]


def saved_by_integer_ports(model: Snapshot) -> int | None:
    """Bytes of arena that :func:`decide_ports` would save; None if it changes nothing or the arena is unknown."""
    subgraph = model.graph.subgraphs[0]
    if why_not_rewritten(model.graph) or model.file.newer or not (ports := convertible_ports(subgraph)):
        return None
    with contextlib.suppress(ArenaError):
        after, for_plan = model.rewritten(without_conversions(subgraph, ports)), model.arena.has_plan
        return reserve_of(model, for_plan) - reserve_of(after, for_plan)
    return None


@deciding(PortsDecision, why_not_rewritten)
def decide_ports(model: Snapshot, for_plan: bool = True, in_place: bool = True) -> tuple[Snapshot, PortsDecision]:
    """Remove QUANTIZE where only it reads an input, and DEQUANTIZE where it writes an output, in subgraph 0; the
    application converts instead. Signatures follow; the decision has types, scales and zero points. ``for_plan`` and
    ``in_place`` are as for :func:`decide_split`."""
    after, ports = model, convertible_ports(model.graph.subgraphs[0])
    if ports:
        after = model.rewritten(without_conversions(model.graph.subgraphs[0], ports))
        check_reserve(model, after, for_plan, in_place)
    decision = PortsDecision(before=model.peak, after=after.peak, ports=tuple(ports))
    with contextlib.suppress(ArenaError):
        decision = dataclasses.replace(decision, reserve_before=model.arena.reserve, reserve=after.arena.reserve)
    return after, decision


####################################################################################################
# Step: split into stripes
####################################################################################################


@dataclass(frozen=True)
class SplitWay:
    """One way to run subgraph 0: the regions in stripes and the total cost."""

    regions: tuple[SplitRegion, ...]
    cost: Cost  # with the peak of the file's order
    reserve: int  # bytes of the arena, with that peak as its head
    macs_percent: float  # additional multiply-accumulates
    time_percent: float  # additional instructions, estimated

    def json(self) -> dict[str, Any]:
        costs = "total=cost.sum peak=cost.peak persistent=cost.persistent operators=cost.operators"
        return picked(self, f"regions {costs} reserve macs_percent time_percent")


@dataclass(frozen=True, kw_only=True)
class SplitDecision(Decision):
    """The effect of partial execution on the peak."""

    unsplit: SplitWay | None = None
    chosen: SplitWay | None = None
    is_complete: bool = True  # False: time ran out before all regions were tried
    is_reordered: bool = False  # True: regions refer to the best order, not the file's
    new_kinds: tuple[str, ...] = ()  # operators that the model did not have before: TFLM has to register them
    limit: int | None = None  # the arena to reserve that was asked for
    bounded_by: str = ""  # the bottleneck, and what might lower it
    whole: tuple[str, ...] = ()  # why operators with high memory use are not split
    is_batch_fixed: bool = False  # to the batch size stored in the file, which TFLM uses
    file_growth: int = 0  # bytes

    key, refused, is_of_peak = "split", "Not split", True
    json_keys = (
        "before=unsplit chosen is_complete is_reordered new_kinds limit bounded_by whole "
        "is_batch_fixed file_growth changed seconds refusal"
    )

    def message(self) -> list[str]:
        after = self.chosen
        why = listed("Not split:", self.whole)
        if self.bounded_by:
            why = [f"The peak is that of {self.bounded_by}.", *why]
        lines = [] if self.is_complete else ["(stopped by --time-limit; more time may find less memory)"]
        if after is None or not after.regions:
            fits = "" if self.limit is None else f"{self.limit:,} B are enough as it is, or "
            return [*lines, *why, f"Not split: {fits}no way needs a smaller arena."]
        for region in after.regions:
            how = "computes" if not region.is_cached else "keeps"
            what = f"{region.stripes} stripes; each {how} the rows that it shares with others"
            if region.loop:
                over = "; the output overwrites the input" if region.loop.over_input else ""
                what = f"loop of {region.stripes} iterations{over}"
            lines.append(f"{span(region).capitalize()}: {what}")
        if self.is_reordered:
            lines.append("Operator numbers are those of the best order")
        lines += registered(self.new_kinds)
        if any(region.loop for region in after.regions):
            lines.append(NEEDS_NEW_TFLM)
        if self.is_batch_fixed:
            lines.append(BATCH_FIXED)
        lines += why
        cost = f"{more_text(after.time_percent)} instructions (estimated) and {more_text(after.macs_percent)} MACs, "
        cost += f"the file {'grows' if self.file_growth >= 0 else 'shrinks'} by {abs(self.file_growth):,} B"
        return [*lines, f"Split: peak {self.saving}, {cost}."]


MAX_RIVALS = 40  # ways that are judged in this order, those with the smallest estimates
FINALISTS, FINAL_SECONDS = 4, 2.0  # ways that are judged in the best order, and seconds to find that for each
MAX_FITTINGS, SLOWER_WAYS = 20, 3  # ways that are judged to meet a limit on the arena, and those for each peak


class SplitCandidate:
    """A model and the ways to split it, by falling peak, unsplit first. Raises ArenaError as :class:`SplitSearch`."""

    def __init__(self, model: Snapshot, max_time: float, budget: Budget, forms: Sequence[Forms]) -> None:
        self.model, self.search = model, SplitSearch(model.graph, model.graph.subgraphs[0], budget, forms[-1])
        self.max_time = int(self.search.problem.time * max_time / 100)
        found: dict[Any, Composition] = {}
        for form, share in zip(forms, FORM_SHARES[-len(forms) :], strict=True):
            one = self.search.again(budget.share(share), form)
            found |= {way.regions: way for way in one.front(self.max_time)}
        self.ways = sorted(found.values(), key=lambda c: (-c.cost.peak, c.cost.persistent))
        self.is_complete = not budget.is_over

    def written(self, way: Composition) -> Snapshot:
        return self.model.rewritten(self.search.rewrite(way)) if way.regions else self.model

    def promising(self, for_plan: bool, in_place: bool) -> list[Composition]:
        """The ways with the smallest arena to reserve in this order."""
        rivals = sorted((way for way in self.ways if way.regions), key=lambda way: way.cost.sum)[:MAX_RIVALS]
        reserves = [reserve_of(self.written(way), for_plan or way.has_loops, in_place, True) for way in rivals]
        return [way for _, way in sorted(zip(reserves, rivals, strict=True), key=lambda pair: pair[0])[:FINALISTS]]

    def fastest(self, limit: int, budget: Budget, reserve: Callable[[Composition], int]) -> Composition | None:
        """The fastest way found whose arena to reserve is within the limit; None if there is none. Tries the peak that
        the limit leaves, those of the known ways, and lower ones by what is too much; for each, some slower ways."""
        search, total = self.search.again(budget, self.search.forms), limit - self.model.arena.persistent
        rooms = {total, *(way.cost.peak for way in self.ways if way.cost.peak < total)}
        known = (way for way in sorted(self.ways, key=lambda way: way.cost.time) if way.cost.sum <= total)
        best, left = next((way for way in known if reserve(way) <= limit), None), MAX_FITTINGS
        while left > 0 and (room := max(rooms, default=0)) > 0:
            rooms.remove(room)
            most = NO_LIMIT
            for slower in range(SLOWER_WAYS):
                way = search.fitting(room, self.max_time, most)
                if way is None or (best and way.cost.time >= best.cost.time):
                    break
                left -= 1
                excess = reserve(way) - limit
                if excess <= 0:
                    best = way
                    break
                most = way.cost.sum - excess
                if not slower:
                    rooms.add(min(room, way.cost.peak) - excess)
        return best

    def way(self, composition: Composition, written: Snapshot) -> SplitWay:
        """The exact figures of a composition."""
        arena, operators = written.arena, len(written.graph.subgraphs[0].operators)
        cost = composition.cost._replace(persistent=arena.persistent, operators=operators)
        return SplitWay(composition.regions, cost, arena.reserve_with(cost.peak), *more_work(self.model, written))

    def decide(
        self, way: Composition, original: Snapshot, budget: Budget, **figures: Any
    ) -> tuple[Snapshot, SplitDecision]:
        after = written = self.written(way)
        if way.has_loops:  # they need a plan
            after, _ = decide_plan(after, budget.left)
        return after, SplitDecision(
            before=self.model.peak,
            after=way.cost.peak,
            unsplit=self.way(self.ways[0], self.model),
            chosen=self.way(way, written),
            is_complete=self.is_complete,
            new_kinds=added_kinds(self.model, written),
            bounded_by=bottleneck_of(self.search, way),
            whole=tuple(reasons_for_whole(self.search, way)),
            is_batch_fixed=any(0 in t.dynamic for t in self.model.graph.subgraphs[0].tensors),
            file_growth=len(after.data) - len(original.data),
            **figures,
        )


def forms_of(stripes: str, model: Snapshot) -> Sequence[Forms]:
    """The forms that stripes may have in each of several searches; no loops for a TFLM that lacks their kernels. Raises
    Refusal if these are all, and ValueError for another word than those of STRIPES_AS."""
    if stripes not in STRIPES_AS:
        raise ValueError(f"stripes are one of {', '.join(STRIPES_AS)}, not {stripes!r}")
    why = "" if stripes == "unrolled" else why_older(model.graph.kernels, LOOPS_SINCE, "the kernels of loops")
    if why and stripes == "loop":
        raise Refusal(why, before=model.peak, after=model.peak)
    return STRIPES_AS["unrolled" if why else stripes]


@deciding(SplitDecision, why_not_rewritten)
def decide_split(
    model: Snapshot,
    max_time: float = DEFAULT_MAX_TIME,
    time_limit: float = TIME_LIMIT,
    try_orders: bool = False,
    limit: int | None = None,
    stripes: str = "unrolled",
    for_plan: bool = True,
    in_place: bool = True,
) -> tuple[Snapshot, SplitDecision]:
    """Run regions of spatial operators in stripes where that needs less memory; the outputs stay the same.

    Takes the way with the smallest arena to reserve on a 32-bit target. Only subgraph 0 is split, in its present order.
    Raises ValueError if ``stripes`` has another value than those below.

    Args:
        max_time: limit on additional instructions, estimated, in per cent.
        time_limit: seconds; then the best result so far is taken.
        try_orders: also split the best order, if it differs; keep the one that needs less once reordered.
        limit: bytes of arena to reserve; take the fastest way within it, if any is.
        stripes: ``"unrolled"``, ``"loop"`` (iterations of a WHILE, with the plan it needs) or ``"auto"`` (the smaller).
        for_plan: judge by the plan that :func:`decide_plan` makes, with ``in_place``; False: by TFLM's own layout.
    """
    budget, forms = Budget(time_limit), forms_of(stripes, model)
    models, ordered, patience = [model], model, budget.share(0.8 if limit is None else 0.5)
    if is_series(model.graph.subgraphs[0]):
        light = lightened(model)
        models.append(light.rewritten(Upright(light.graph.subgraphs[0]).emitter.rewrite()))
    if try_orders:
        ordered, decision = decide_order(model, patience.share(0.2).left, for_plan, in_place=in_place)
        models += [ordered] if decision.changed else []
    candidates = [
        SplitCandidate(m, max_time, patience.share(1 / (len(models) - i)), forms) for i, m in enumerate(models)
    ]

    @cache
    def judged(candidate: SplitCandidate, way: Composition) -> Snapshot:
        after = candidate.written(way)
        if try_orders and not way.has_loops:
            after, _ = decide_order(after, min(FINAL_SECONDS, budget.left), for_plan, in_place=in_place)
        return after

    def reserve(candidate: SplitCandidate, way: Composition, is_bound: bool = False) -> int:
        return reserve_of(judged(candidate, way), for_plan or way.has_loops, in_place, is_bound)

    ways = [(c, way) for c in reversed(candidates) for way in c.promising(for_plan, in_place)]
    unsplit = [(candidate, candidate.ways[0]) for candidate in candidates]
    best = min(ways, key=lambda one: reserve(one[0], one[1], is_bound=True), default=unsplit[0])
    old = min(itertools.starmap(reserve, unsplit))
    if limit is not None and reserve(*best) <= limit < old:
        fastest = ((c, c.fastest(limit, budget.share(0.5), partial(reserve, c))) for c in candidates)
        best = min([best, *((c, way) for c, way in fastest if way)], key=lambda one: one[1].cost.time)
    is_better = reserve(*best) < old and (limit is None or old > limit)
    candidate, way = best if is_better else unsplit[0]
    is_reordered = model is not ordered is candidate.model
    return candidate.decide(way, model, budget, limit=limit, is_reordered=is_reordered)


####################################################################################################
# Steps: recipes to make a model need less; stages, parts that run one after the other in one arena
####################################################################################################


class Recipe(NamedTuple):
    """Steps that make a model need less; order and plan are always among them."""

    name: str
    share: float  # of the work left
    is_lightened: bool  # True: with cheaper equivalents
    stripes: str = ""  # their form; empty: none


RECIPES = (  # from the cheapest for the user to the dearest
    Recipe("order and plan", 0.2, False),
    Recipe("cheaper equivalents", 0.2, True),
    Recipe("unrolled stripes", 0.4, True, "unrolled"),
    Recipe("looped stripes", 0.8, True, "auto"),
)


def taken_steps(
    recipe: Recipe, model: Snapshot, limit: int | None, max_time: float, budget: Budget, in_place: bool
) -> tuple[Snapshot, list[Decision]]:
    """The model after the steps of a recipe, and their decisions."""
    decisions: list[Decision] = []
    seconds = budget.share(0.7).left
    steps: list[Callable[[Snapshot], tuple[Snapshot, Decision]]] = [
        lambda m: decide_lightening(m, in_place=in_place),
        lambda m: decide_split(m, max_time, seconds, True, limit, recipe.stripes, in_place=in_place),
        lambda m: decide_order(m, budget.share(0.5).left, for_arena=True, in_place=in_place),
        lambda m: decide_plan(m, budget.left, in_place),
    ]
    for step in itertools.compress(steps, (recipe.is_lightened, recipe.stripes, True, True)):
        model, decision = step(model)
        decisions.append(decision)
    return model, decisions


# Persistent structures are needed only while their operators run, so a model in parts needs little more than the arena
# of the largest part. The application makes an interpreter for each part in the same memory, above what waits there:
#
#     stage 1   [============ arena ============]      then its outputs move down, in order of their addresses, so
#     stage 2   [waits|========= arena =========]      that none overwrites another
#     stage 3   [ waits |==== arena ====]

MAX_STAGES, MAX_CHAINS = 6, 16  # stages by default; chains whose stages are searched one by one
MAX_STAGE_LABELS, MAX_PLACES = 6, 64  # ways to a position that estimates keep; places to cut, where least waits
ALLOCATION = {"": (1000, 4300), "dsp": (1000, 4300), "mve": (180, 5600)}  # instructions per channel and operator


def part_of(model: Snapshot, start: int, end: int) -> Snapshot:
    """Operators [start, end) of a model with one subgraph as a model. What it reads and does not make is its input, in
    the order of the tensors, after all inputs of the model if it has the first operator; what is read later or returned
    is its output."""
    old, table = model.graph.subgraphs[0], model.file.model["Subgraphs"][0]
    inside = old.operators[start:end]
    made = {t for operator in inside for t in operator.writes}
    read = {t for operator in inside for t in operator.reads}
    later = {t for operator in old.operators[end:] for t in operator.reads} | {*old.outputs}
    inputs = [*old.inputs] if start == 0 else []
    inputs += sorted(t for t in read - made - {*inputs} if old.tensors[t].storage is not Storage.CONSTANT)
    kept = sorted({*inputs, *made, *read, *(t for operator in inside for t in operator.intermediates if t >= 0)})
    number = {t: i for i, t in enumerate(kept)} | {-1: -1}

    def numbered(table: Table) -> Table:
        fields = [field for field in ("Inputs", "Outputs", "Intermediates") if field in table]
        return table.but(**{field: _words(number[int(t)] for t in table[field]) for field in fields})

    subgraph = table.but(
        Tensors=[table["Tensors"][t] for t in kept],
        Operators=[numbered(operator) for operator in table["Operators"][start:end]],
        Inputs=_words(number[t] for t in inputs),
        Outputs=_words(number[t] for t in sorted(made & later)),
    )
    signatures: dict[str, Any] = {"SignatureDefs": []} if "SignatureDefs" in model.file.model else {}
    return model.changed(with_metadata(model.file.but(Subgraphs=[subgraph], **signatures), OFFLINE_PLAN))


class Crossing(NamedTuple):
    """A tensor that waits from the end of stage ``first`` (-1: an input of the model) until stage ``last`` has begun,
    or to the end if it is an output."""

    name: str
    size: int  # bytes
    first: int
    last: int

    def waits(self, stage: int) -> bool:
        """True if it waits while a stage is set up and runs."""
        return self.first < stage <= self.last


class StageRow(NamedTuple):
    """A stage: operators [start, end) of the model that was cut. Sizes in bytes."""

    start: int
    end: int
    way: str
    reserve: int
    waiting: int  # what earlier stages made, below its arena
    file: int


@dataclass(frozen=True, kw_only=True)
class StagesDecision(Decision):
    """The effect of stages on the bytes of RAM to reserve: a stage's arena, and what waits below it."""

    stages: tuple[StageRow, ...] = ()
    time_percent: float = 0.0  # additional instructions, estimated, with the allocation of all stages
    crossings: tuple[Crossing, ...] = ()
    models: tuple[Snapshot, ...] = ()  # one per stage; empty if one is best

    key, refused = "stages", "Not cut into stages"
    json_keys = "reserve_before=before reserve=after stages time_percent crossings seconds refusal"

    def message(self) -> list[str]:
        if len(self.models) < 2:
            return ["Not cut into stages: one stage needs the least memory."]
        titles = ["Stage", "Operators", "Way", "To reserve (B)", "Waiting (B)", "File (B)"]
        rows = [
            [i, f"{row.start} to {row.end - 1}", row.way, *(f"{n:,}" for n in row[3:])]
            for i, row in enumerate(self.stages, start=1)
        ]
        return [
            text_table(titles, rows, left=("Way",)),
            f"Stages in one arena: {self.saving}, {more_text(self.time_percent)} instructions "
            "(estimated, with AllocateTensors()).",
        ]


def why_no_stages(graph: ModelGraph) -> str:
    """Why a model cannot be cut; empty if it can."""
    first = graph.subgraphs[0]
    if len(graph.subgraphs) > 1 or any(operator.callees for operator in first.operators):
        return "it has control flow or several subgraphs"
    if state_bytes(graph) or effectful_subgraphs(graph):
        return "it keeps state between inferences, which the next stage would overwrite"
    if any(first.tensors[t].storage is Storage.CONSTANT for t in first.outputs):
        return "one of its outputs is a constant"
    if graph.kernels.kept:
        return "what --keep names does not outlive a stage"
    return why_not_rewritten(graph)


class StageSearch:
    """Finds the cuts with the least memory. Estimates of all stages, from the regions of one search over the whole
    model, choose a chain; its stages are then searched one by one, which corrects the estimates, until a chain is the
    best of all by what is known."""

    def __init__(self, model: Snapshot, max_time: float, in_place: bool, can_loop: bool, budget: Budget) -> None:
        self.model, self.max_time, self.in_place, self.budget = model, max_time, in_place, budget
        self.can_loop = can_loop and in_place and not why_older(model.graph.kernels, LOOPS_SINCE)
        self.subgraph = model.graph.subgraphs[0]
        self.count = len(self.subgraph.operators)
        forms = UNROLLED | LOOPS if self.can_loop else UNROLLED
        search = SplitSearch(model.graph, self.subgraph, budget.share(0.2), forms)
        search.front(int(search.problem.time * max_time / 100))
        self.intervals, self.steps = search.problem.intervals, search.problem.steps
        places = sorted(range(1, self.count), key=lambda p: self.waiting(p, p))[:MAX_PLACES]
        self.places = [0, *sorted(places), self.count]
        self.sizes = {ends: size + self.waiting(*ends) for ends, size in self.all_estimates(search).items()}
        self.forms = cache(self._forms)

    def all_estimates(self, search: SplitSearch) -> dict[tuple[int, int], int]:
        """Estimated bytes to reserve, by (start, end), without what waits."""
        tensor = BITS_32.tensor
        own = [step.persistent + tensor * len({*step.operator.reads, *step.operator.writes}) for step in self.steps]
        so_far, sizes = [0, *itertools.accumulate(own)], {}
        for start in self.places[:-1]:
            ways: list[list[tuple[int, int]]] = [[] for _ in range(self.count + 1)]  # (additional persistent, peak)
            ways[start] = [(0, 0)]
            for position in range(start, self.count):
                here = sorted(undominated(ways[position]), key=sum)[:MAX_STAGE_LABELS]
                Budget.spend(STEP_WORK * len(here) * (1 + len(search.regions[position])))
                found = [(r.end, r.cost.persistent, r.cost.peak) for r in search.regions[position].values()]
                for end, persistent, peak in (*found, (position + 1, 0, self.steps[position].need)):
                    ways[end] += [(more + persistent, max(most, peak)) for more, most in here]
            for end in self.places[self.places.index(start) + 1 :]:
                fixed = sum(BITS_32.interpreter) + BITS_32.subgraph + so_far[end] - so_far[start]
                sizes[start, end] = min(map(sum, ways[end])) + fixed - self.passing(start, end)
        return sizes

    def passing(self, start: int, end: int) -> int:
        """Bytes alive before, during and after operators [start, end) that none of them reads."""
        read = {t for step in self.steps[start:end] for t in step.operator.reads}
        return sum(i.size for t, i in self.intervals.items() if i.first < start and i.last >= end and t not in read)

    def waiting(self, start: int, end: int) -> int:
        """Bytes that wait while operators [start, end) are a stage."""
        behind = start or (end if end < self.count else NO_LIMIT)  # nothing waits for the whole model
        return sum(i.size for i in self.intervals.values() if i.first < start and i.last >= behind)

    def crossings(self, cuts: Sequence[int]) -> list[Crossing]:
        found, tensors = [], self.subgraph.tensors
        for t, (_, first, last, _) in self.intervals.items():
            made = -1 if first < 0 else bisect.bisect_right(cuts, first)
            used = len(cuts) if t in self.subgraph.outputs else bisect.bisect_right(cuts, last)
            if max(made, 0) < used:
                found.append(Crossing(tensors[t].name, _tflm_bytes(tensors[t]), made, used))
        return found

    def best_cuts(self, most: int) -> tuple[int, ...]:
        """The cuts into at most ``most`` stages with the smallest largest stage; the fewest of equals."""
        ways: dict[int, tuple[int, tuple[int, ...]]] = {0: (0, ())}  # by end: (largest so far, cuts)
        chains: list[tuple[int, tuple[int, ...]]] = [(self.sizes[0, self.count], ())]
        for _ in range(min(most, len(self.places) - 1) - 1):
            found: dict[int, list[tuple[int, tuple[int, ...]]]] = defaultdict(list)
            for start, end in itertools.combinations(self.places[:-1], 2):
                if start in ways:
                    size, cuts = ways[start]
                    found[end].append((max(size, self.sizes[start, end]), (*cuts, end)))
            ways = {end: min(several) for end, several in found.items()}
            chains += [(max(size, self.sizes[start, self.count]), cuts) for start, (size, cuts) in ways.items()]
        return min(chains, key=itemgetter(0))[1]

    def _forms(self, start: int, end: int) -> list[tuple[Snapshot, str]]:
        """The forms of a stage, each with the way to it: the fastest first, the smallest last. Corrects its size."""
        part = part_of(self.model, start, end)
        found = [(part, "as it is")]
        for recipe in (RECIPES[0], RECIPES[-1] if self.can_loop else RECIPES[-2]):
            share = self.budget.share(0.1)
            found.append((taken_steps(recipe, part, None, self.max_time, share, self.in_place)[0], recipe.name))
        self.sizes[start, end] = min(one.arena.reserve for one, _ in found) + self.waiting(start, end)
        return found

    def run(self, most: int) -> tuple[tuple[int, int], ...]:
        """The best stages among the chains that were searched."""
        tried: dict[tuple[tuple[int, int], ...], int] = {}
        for _ in range(MAX_CHAINS):
            ends = tuple(itertools.pairwise((0, *self.best_cuts(most), self.count)))
            if ends in tried or (tried and self.budget.is_over):
                break
            for one in ends:
                self.forms(*one)
            tried[ends] = max(self.sizes[one] for one in ends)
        return min(tried, key=lambda ends: (tried[ends], len(ends)))


def check_handing_on(models: Sequence[Snapshot], crossings: Sequence[Crossing]) -> None:
    """Raises Refusal unless every stage gets its inputs from earlier ones and hands on its outputs."""
    for number, model in enumerate(models):
        part = model.graph.subgraphs[0]
        inputs, outputs = ({part.tensors[t].name for t in ids} for ids in (part.inputs, part.outputs))
        given = {c.name for c in crossings if c.waits(number)}
        kept = {c.name for c in crossings if c.first == number}
        lost = {c.name for c in crossings if c.first < 0} - inputs if number == 0 else ()
        if lost or (number and not inputs <= given) or (number < len(models) - 1 and outputs != kept):
            raise Refusal("a tensor that crosses a cut is not made once before it is read, or has no size")


def allocation_instructions(graph: ModelGraph) -> int:
    """Estimated instructions of AllocateTensors(): mostly scales per channel, in software where doubles are."""
    per_channel, per_operator = ALLOCATION[TIMED_CORES.get(graph.kernels.core, "")]
    total = 0
    for subgraph, operator in graph.operators:
        node = node_of(subgraph, operator)
        arrays = kernel_bytes(node)[2] if node.inputs and node.inputs[0] and node.inputs[0].dtype != "FLOAT32" else []
        total += per_operator + per_channel * sum(arrays[:1]) // 4
    return total


@deciding(StagesDecision, why_no_stages)
def decide_stages(
    model: Snapshot,
    most: int | None = None,
    time_limit: float = TIME_LIMIT,
    max_time: float = DEFAULT_MAX_TIME,
    in_place: bool = True,
    can_loop: bool = True,
) -> tuple[Snapshot, StagesDecision]:
    """Cut a model into at most ``most`` stages, each split, ordered and planned by itself, such that the arena that
    serves all of them is smallest, with what waits in it. The model itself stays as it is; the decision has the stages.
    Of each, the way that takes the least time within that arena is taken. ``time_limit`` is in seconds, for all
    searches together; ``max_time`` and ``in_place`` are as for :func:`decide_split`, ``can_loop`` for
    :func:`decide_fit`."""
    budget = Budget(time_limit)
    ordered, _ = decide_order(model, budget.share(0.1).left, for_arena=True, in_place=in_place)
    names = Counter(tensor.name for tensor in model.graph.subgraphs[0].tensors if tensor.ram_bytes)
    if twice := next((name for name, count in names.items() if count > 1), None):
        raise Refusal(f"two of its tensors have the name {shorten(twice)!r}, and stages hand on tensors by their names")
    search = StageSearch(ordered.without_wrong_plan(), max_time, in_place, can_loop, budget)
    ends = search.run(MAX_STAGES if most is None else most)
    crossings, limit = search.crossings([start for start, _ in ends[1:]]), max(search.sizes[one] for one in ends)
    models, rows = [], []
    for start, end in ends:
        waiting = search.waiting(start, end)
        after, way = next(form for form in search.forms(start, end) if form[0].arena.reserve + waiting <= limit)
        models.append(after)
        rows.append(StageRow(start, end, way, after.arena.reserve, waiting, len(after.data)))
    check_handing_on(models, crossings)
    spent = sum(model_instructions(one.graph) + allocation_instructions(one.graph) for one in models)
    before = model_instructions(model.graph)
    return model, StagesDecision(
        before=model.without_wrong_plan().arena.reserve,
        after=limit,
        stages=tuple(rows),
        time_percent=100 * (spent / before - 1) if before else 0.0,
        crossings=tuple(crossings),
        models=tuple(models) if len(models) > 1 else (),
    )


####################################################################################################
# Step: fit
####################################################################################################

GLANCE_SECONDS = 2.0  # of work, for a hint


class FitWay(NamedTuple):
    """A way to make a model need less. Sizes in bytes."""

    name: str
    reserve: int
    macs_percent: float  # additional multiply-accumulates
    time_percent: float  # additional instructions, estimated
    flash: int  # of the file and of kernels that the model did not have, more than before; approximate
    new_kinds: tuple[str, ...]  # operators that TFLM has to register in addition
    fits: bool


@dataclass(frozen=True, kw_only=True)
class FitDecision(Decision):
    """The effect of the cheapest lossless steps that are enough on the arena to reserve."""

    limit: int | None = None  # None: the smallest arena
    ways: tuple[FitWay, ...] = ()  # the ways that were tried, the first as it is
    taken: int = 0
    steps: tuple[Decision, ...] = ()  # of the way that was taken
    proposals: tuple[str, ...] = ()  # what else would help, but changes the application
    rejection: str = ""  # why TFLM does not run the model

    key, refused = "fit", "Not fitted"
    json_keys = "reserve_before=before reserve=after limit ways taken steps proposals changed seconds refusal"

    @property
    def failure(self) -> str:
        if self.refusal or self.rejection:
            return self.refusal or f"TFLM rejects this model: {self.rejection}"
        if self.limit is None or self.ways[self.taken].fits:
            return ""
        return f"no lossless way fits into {self.limit:,} B; the nearest needs {self.after:,} B"

    def message(self) -> list[str]:
        titles = ["", "Way", "To reserve (B)", "Time", "MACs", "Flash (B)", "Fits"]
        mark, columns = "nearest" if self.failure else "->", slice(-1 if self.limit is None else None)
        rows = []
        for i, way in enumerate(self.ways):
            more = [f"{percent:+.1f} %" for percent in (way.time_percent, way.macs_percent)]
            row = [mark if i == self.taken else "", way.name, f"{way.reserve:,}", *more, f"{way.flash:+,}"]
            rows.append([*row, "yes" if way.fits else "no"][columns])
        new_kinds = self.ways[self.taken].new_kinds
        return [
            "",
            text_table(titles[columns], rows, left=("", "Way")),
            *registered(new_kinds),
            *([NEEDS_NEW_TFLM] if "WHILE" in new_kinds else []),
            *(line for step in self.steps if isinstance(step, StagesDecision) for line in step.message()),
            *(f"It would need less with {proposal}" for proposal in self.proposals),
        ]


@deciding(FitDecision)
def decide_fit(
    model: Snapshot,
    limit: int | None = None,
    time_limit: float = TIME_LIMIT,
    max_time: float = DEFAULT_MAX_TIME,
    in_place: bool = True,
    can_loop: bool = True,
    has_external: bool = True,
    can_stage: bool = False,
) -> tuple[Snapshot, FitDecision]:
    """Take the first of the RECIPES with which the arena to reserve is within ``limit`` bytes or, without a limit, the
    one with the smallest arena. All are lossless; stripes cost the least time that fits. The decision has all ways that
    were tried, and proposals if none fits or there is no limit; with ``has_external`` also external RAM. ``can_loop``
    allows loops, which need TFLM of November 2025 or later. If nothing else fits, ``can_stage`` tries stages, which the
    last of ``steps`` has; the model itself stays as it is. The rest is as for :func:`decide_stages`."""
    budget, can_loop = Budget(time_limit), can_loop and not why_older(model.graph.kernels, LOOPS_SINCE)
    tried: list[tuple[FitWay, Snapshot, list[Decision]]] = [(_way("as it is", model, model, limit), model, [])]
    for recipe in RECIPES:
        if limit is not None and tried[-1][0].fits:
            break
        if recipe.stripes == "auto" and not (can_loop and in_place):
            continue
        after, decisions = taken_steps(recipe, model, limit, max_time, budget.share(recipe.share), in_place)
        if not recipe.is_lightened or any(decision.changed for decision in decisions[:-2]):
            tried.append((_way(recipe.name, model, after, limit), after, decisions))
    cut = StagesDecision()
    if limit is not None and not tried[-1][0].fits:
        _, cut = decide_stages(model, None, budget.share(0.5).left, max_time, in_place, can_loop)
        if can_stage and cut.models:
            tried.append((_in_stages(model, cut, limit), model, [cut]))
    taken = min(range(len(tried)), key=lambda i: (bool(tried[i][1].arena.problems), tried[i][0].reserve))
    way, after, decisions = tried[taken]
    figures = limit, max_time, budget, in_place, has_external
    proposals = () if limit is not None and way.fits else _proposals(model, way, cut, *figures)
    return after, FitDecision(
        before=tried[0][0].reserve,
        after=way.reserve,
        limit=limit,
        ways=tuple(way for way, _, _ in tried),
        taken=taken,
        steps=tuple(decisions),
        proposals=tuple(proposals),
        rejection="; ".join([*after.refusals[:1], *repair_hint(after)]),
    )


def _way(name: str, model: Snapshot, after: Snapshot, limit: int | None) -> FitWay:
    growth = len(after.data) - len(model.data) if after is not model else 0
    reserve, kinds = after.arena.reserve, added_kinds(model, after)
    fits = (limit is None or reserve <= limit) and not after.arena.problems
    return FitWay(name, reserve, *more_work(model, after), growth + kernel_flash(kinds), kinds, fits)


def _in_stages(model: Snapshot, cut: StagesDecision, limit: int) -> FitWay:
    kinds = tuple(sorted({kind for stage in cut.models for kind in added_kinds(model, stage)}))
    macs = sum(model_macs(stage.graph) for stage in cut.models) / max(model_macs(model.graph), 1)
    growth, size = sum(row.file for row in cut.stages) - len(model.data) + kernel_flash(kinds), cut.after or 0
    return FitWay(f"{len(cut.models)} stages", size, 100 * (macs - 1), cut.time_percent, growth, kinds, size <= limit)


def _proposals(
    model: Snapshot,
    way: FitWay,
    cut: StagesDecision,
    limit: int | None,
    max_time: float,
    budget: Budget,
    in_place: bool,
    has_external: bool,
) -> Iterator[str]:
    """What changes the application, with its figure."""
    ported, decision = decide_ports(model, in_place=in_place)
    if decision.changed:
        recipe = next((recipe for recipe in RECIPES if recipe.name == way.name), RECIPES[0])
        after, _ = taken_steps(recipe, ported, limit, max_time, budget, in_place)
        if after.arena.reserve < way.reserve:
            yield f"--integer-io: {after.arena.reserve:,} B, if your code converts inputs and outputs"
    if cut.models and (cut.after or 0) < way.reserve:
        yield f"--stages: {cut.after:,} B, if your code runs {len(cut.models)} parts of the model in turn"
    if limit is not None and has_external:
        _, divided = decide_memories(model, limit, time_limit=budget.left, in_place=in_place)
        if divided.is_divided:
            stays = 100 * (1 - (divided.after or 0) / max(divided.before or 0, 1))
            what = f"{divided.reserve:,} B of external RAM, with {stays:.0f} % of the traffic in the fast memory"
            yield f"--memories fast={size_text(limit)}: {what}"


####################################################################################################
# Steps: cluster and compress weights
####################################################################################################


@dataclass(frozen=True, kw_only=True)
class CompressionDecision(Decision):
    """The effect of code-books that TFLM decodes on the bytes of the file."""

    weights: tuple[tuple[str, int, int, int], ...] = ()  # name, bytes before and after, slices
    left: int = 0  # compressible weights that would need too much memory
    more: int = 0  # that would be compressed if the arena could grow by ``ram_for_more`` bytes
    ram_for_more: int = 0
    reserve_before: int = 0
    reserve: int = 0
    kernels: int = 0  # approximate bytes of flash of the kernel, if the model did not have it before
    time_percent: float = 0.0  # additional instructions, estimated
    notes: tuple[str, ...] = ()

    key, refused = "compression", "Not compressed"
    json_keys = (
        "file_before=before file=after reserve_before reserve kernels time_percent left more ram_for_more notes "
        "changed seconds refusal"
    )

    def message(self) -> list[str]:
        lines = ["", *listed("Not compressed:", self.notes)]
        if self.left:
            lines += [f"Not compressed: {self.left} more weights, whose decoding takes memory"]
            if self.more > len(self.weights):
                lines[-1] += f"; --compress-ram {size_text(self.ram_for_more)} takes {self.more}"
        if not self.weights:
            why = "" if self.left else "no weights have so few values that code-books pay (--clusters N gives them few)"
            return [*lines, f"Not compressed: {why}."] if why else lines
        rows = (
            [shorten(name), f"{before:,} -> {after:,}", str(slices) if slices > 1 else ""]
            for name, before, after, slices in self.weights
        )
        net = (self.before or 0) - (self.after or 0) - self.kernels
        flash = f"With the kernel, about {kilobytes(self.kernels)} of flash, the firmware"
        return [
            *lines,
            text_table(["Compressed weights", "Bytes", "Slices"], rows, left=("Compressed weights",)),
            f"Also register in your MicroMutableOpResolver: {DECODE} (AddDecode())",
            "It requires TFLM of November 2025 or later; LiteRT does not support it",
            f"Compressed: file {self.saving}; arena to reserve {saving(self.reserve_before, self.reserve)}; "
            f"{more_text(self.time_percent)} instructions (estimated).",
            *([f"{flash} {'shrinks' if net > 0 else 'grows'} by about {kilobytes(abs(net))}."] if self.kernels else []),
        ]

    def json(self) -> dict[str, Any]:
        names = "name bytes_before bytes slices".split()
        return super().json() | {"weights": [dict(zip(names, w, strict=True)) for w in self.weights]}


@deciding(CompressionDecision)
def decide_compression(
    model: Snapshot, more_ram: int = 0, for_plan: bool = False, time_limit: float = TIME_LIMIT, in_place: bool = True
) -> tuple[Snapshot, CompressionDecision]:
    """Store weights with few values as code-books and indices, which TFLM decodes when needed; outputs stay the same,
    and the arena to reserve grows by at most ``more_ram`` bytes. ``for_plan`` and ``in_place`` are as for
    :func:`decide_split`. Only TFLM runs such a file. Raises ModelError if it uses a newer schema."""
    budget, loops = Budget(time_limit), looped_operators(model.graph)  # whose tensors share memory by a plan: a new one
    graph = dataclasses.replace(model.graph, plan=None) if loops and for_plan else model.graph
    why = COMPILED if is_compiled(model.graph) else why_not_rewritten(graph)
    if why := why or why_older(model.graph.kernels, DECODE_SINCE, f"the kernel of {DECODE}"):
        raise Refusal(why)

    def reserve(model: Snapshot) -> int:
        return reserve_of(model, for_plan or loops > 0, in_place)

    compression, before, size = Compression(model), reserve(model), len(model.repacked().data)
    changed, after, chosen = model, before, list[Compressible]()
    limit, spare = before + more_ram, more_ram + max(before - compression.least, 0)
    while spare >= 0 and not budget.is_over and (choice := compression.best(spare)):
        smaller = model.rewritten(compression.rewrite(choice))
        if (needed := reserve(smaller)) <= limit:
            if len(smaller.data) < size:
                changed, after, chosen = smaller, needed, choice
            break
        spare -= needed - limit
    more, tensors = compression.within(compression.peak, NO_LIMIT), model.graph.subgraphs[0].tensors
    if loops and chosen:
        changed, _ = decide_plan(changed, budget.left, in_place)
    return changed, CompressionDecision(
        before=size,
        after=len(changed.data) if chosen else size,
        weights=tuple(
            (tensors[c.tensor].name, tensors[c.tensor].bytes or 0, sum(p.size for p in c.payloads), len(c.payloads))
            for c in chosen
        ),
        left=len(compression.found) - len(chosen),
        more=len(more),
        ram_for_more=reserve(model.rewritten(compression.rewrite(more))) - before if more else 0,
        reserve_before=before,
        reserve=after,
        kernels=kernel_flash({DECODE} - {operator.kind for _, operator in model.graph.operators}),
        time_percent=more_work(model, changed)[1],
        notes=tuple(compression.notes),
    )


@dataclass(frozen=True, kw_only=True)
class ClusteringDecision(Decision):
    """Weight bytes: ``before`` as stored, ``after`` as code-books and packed indices; ``notes`` on unchanged ones."""

    clusters: int = 0
    per_channel: bool = False
    weights: tuple[ClusteredWeights, ...] = ()
    notes: tuple[str, ...] = ()
    min_sqnr: float | None = None  # dB reached by every matrix; ``clusters`` is then the maximum per matrix

    key = "clustering"
    json_keys = "clusters per_channel min_sqnr notes bytes_before=before bytes_after=after weights"

    @property
    def sqnr_db(self) -> float:
        """SQNR over all matrices."""
        return decibels(sum(w.signal for w in self.weights), sum(w.squared_error for w in self.weights))

    def message(self) -> list[str]:
        if not self.weights:
            return ["", "No weights were clustered: the model has no weight matrix of a supported type."]
        headers = ["Weights", "Type", "Distinct values", "SQNR (dB)", "Bytes", "Code-book + indices (B)"]
        rows = []
        for w in self.weights:
            distinct = f"{w.distinct_before:,} -> {w.distinct_after:,}"
            books = f"{w.codebook_bytes:,} + {w.index_bytes:,}"
            rows.append([shorten(w.name), w.dtype, distinct, f"{w.sqnr_db:.1f}", f"{w.bytes_before:,}", books])
        stored = f"{self.before:,} B as stored, {self.after:,} B as code-books and packed indices"
        table = text_table(headers, rows, left=("Weights", "Type"))
        count = f"at most {self.clusters} values per matrix"
        if self.min_sqnr is not None:
            count = f"as few values per matrix, up to {self.clusters}, as keep {self.min_sqnr:g} dB"
        return ["", f"Weights clustered to {count}:", table, f"All weights: {stored}"]


@deciding(ClusteringDecision)
def decide_clustering(
    model: Snapshot, clusters: int = MAX_CODEBOOK, per_channel: bool = False, min_sqnr: float | None = None
) -> tuple[Snapshot, ClusteringDecision]:
    """Give each weight matrix at most ``clusters`` values, or the fewest that reach ``min_sqnr`` decibels, if any do;
    biases stay. ``per_channel``: one code-book per output channel, where the quantisation is per channel. Raises
    ValueError if ``clusters`` is below 1, and ModelError if the file uses a newer schema or its scales have no such
    axis."""
    if clusters < 1:
        raise ValueError("the number of clusters must be at least 1")
    weights, notes = weight_tensors(model.graph)
    accounts = []
    contents = {}
    for kind, tensor in weights:
        values = decode_weights(tensor, model.graph.buffers[tensor.buffer].data)
        if values.dtype.kind == "f" and not np.isfinite(values).all():
            notes.append(f"{tensor.name} holds infinities or NaNs and stays as it is")
            continue
        if min_sqnr is None:
            clustered, account = cluster_tensor(kind, tensor, values, clusters, per_channel)
        else:
            clustered, account = cluster_to_quality(kind, tensor, values, clusters, per_channel, min_sqnr)
            if account.sqnr_db < min_sqnr:
                notes.append(f"{tensor.name} stays as it is: {clusters} values have only {account.sqnr_db:.1f} dB")
                continue
        if not np.array_equal(clustered, values):
            contents[tensor.buffer] = encode_weights(tensor, clustered)
        accounts.append(account)
    return model.with_contents(contents), ClusteringDecision(
        before=sum(account.bytes_before for account in accounts),
        after=sum(account.codebook_bytes + account.index_bytes for account in accounts),
        clusters=clusters,
        per_channel=per_channel,
        min_sqnr=min_sqnr,
        weights=tuple(accounts),
        notes=tuple(notes),
    )


####################################################################################################
# Two models side by side
####################################################################################################

COMPARED = {
    "peak": "Peak memory usage (B)",
    "reserve": "Arena to reserve (B)",
    "head": "Tensors and scratch (B)",
    "persistent": "Persistent structures (B)",
    "file": "File (B)",
    "parameters": "Parameters (B)",
    "macs": "Multiply-accumulates",
    "operators": "Operators",
}


def figures_of(model: Snapshot) -> dict[str, Any]:
    """The figures by which models are compared; None if unknown."""
    graph, first, arena = model.graph, model.graph.subgraphs[0], None
    with contextlib.suppress(ArenaError):
        arena = model.arena
    kinds = Counter(operator.kind for _, operator in graph.operators)
    tensors = {"inputs": first.inputs, "outputs": first.outputs}
    return {
        "peak": model.peak,
        **{key: getattr(arena, key, None) for key in ("reserve", "head", "persistent")},
        "file": len(model.data),
        "parameters": parameter_bytes(graph, graph.operators),
        "macs": None if has_unknown_loops(graph) else model_macs(graph),
        "operators": kinds.total(),
        **{key: [f"{first.tensors[i].dtype} {first.tensors[i].shape}" for i in ids] for key, ids in tensors.items()},
        "kinds": kinds,
    }


@dataclass(frozen=True, kw_only=True)
class ComparisonDecision(Decision):
    """Two models side by side; neither changes."""

    other_name: str
    this: Mapping[str, Any]
    other: Mapping[str, Any]

    key, json_keys = "comparison", "name=other_name this other"

    def message(self) -> list[str]:
        sides, rows = (self.other, self.this), []
        for key, title in COMPARED.items():
            before, after = (side[key] for side in sides)
            percent = f"{100 * (after / before - 1):+.1f} %" if before and after is not None else ""
            rows.append([title, *("unknown" if n is None else f"{n:,}" for n in (before, after)), percent])
        for key in ("inputs", "outputs"):
            before, after = (", ".join(side[key]) for side in sides)
            rows.append([key.capitalize(), before, after, "the same" if before == after else "different"])
        for kind in sorted(self.this["kinds"].keys() | self.other["kinds"].keys()):
            before, after = (str(side["kinds"][kind]) for side in sides)
            if before != after:
                rows.append([shorten(kind), before, after, ""])
        table = text_table(["", shorten(self.other_name, 30), "This model", "Difference"], rows, left=("",))
        return ["", "Compared with another model:", table]


####################################################################################################
# Reports: an analysis -> tables, CSV, JSON
####################################################################################################


def is_stream(path: Path) -> bool:
    """True for a device or a pipe, which cannot be replaced."""
    return path.exists() and not path.is_file()


def write_files(files: Mapping[Path, Bytes]) -> None:
    """Write files, each of which appears when it is complete: all of them or, where one cannot be written, none."""
    mask = os.umask(0o022)
    os.umask(mask)
    ready = {}  # temporary files, beside those that they will replace
    try:
        for path, data in files.items():
            if is_stream(path):
                path.write_bytes(data)
                continue
            target = path.resolve()  # a symbolic link keeps pointing at its file
            handle, ready[path] = tempfile.mkstemp(dir=target.parent, prefix=".tflite-tools.", suffix=".tmp")
            with os.fdopen(handle, "wb") as file:
                file.write(data)
            os.chmod(ready[path], target.stat().st_mode & 0o777 if target.exists() else 0o666 & ~mask)
        for path, name in ready.items():
            os.replace(name, path.resolve())
    except OSError as error:
        raise OSError(error.errno, error.strerror or str(error), str(path)) from error
    finally:
        for name in ready.values():
            with contextlib.suppress(OSError):  # where it has replaced the file, it is gone
                os.unlink(name)


def write_texts(folder: Path, texts: Mapping[str, str]) -> None:
    """Write texts into a folder, which is created if missing."""
    folder.mkdir(parents=True, exist_ok=True)
    write_files({folder / name: text.encode() for name, text in texts.items()})


def subgraph_title(subgraph: Subgraph) -> str:
    return f"Subgraph {subgraph.index}" + (f" ({shorten(subgraph.name)})" if subgraph.name else "")


def shown_tensors(schedule: Schedule) -> list[Tensor]:
    """The tensors that take working memory, or may take it because their size is unknown."""
    tensors = schedule.subgraph.tensors
    return [t for t in tensors if t.storage is Storage.ACTIVATION and t.bytes != 0]


FIGURES = {"macs": "MACs", "parameter_bytes": "Size", "instructions": "Instructions"}  # of an operator: key, title


def chosen_figures(macs: bool, size: bool) -> dict[str, str]:
    """Those of FIGURES that a schedule shows."""
    return {key: title for key, title in FIGURES.items() if (size if key == "parameter_bytes" else macs)}


def step_json(graph: ModelGraph, subgraph: Subgraph, step: Step) -> dict[str, Any]:
    keys = "kind=operator.kind inputs=operator.inputs outputs=operator.outputs in_memory=live bytes callee_bytes"
    return picked(step, keys) | {
        "macs": multiply_accumulates(subgraph, step.operator),
        "instructions": operator_instructions(graph, subgraph, step.operator),
        "parameter_bytes": parameter_bytes(graph, [(subgraph, step.operator)]),
    }


MAX_ROWS, MAX_IDS = 200, 16  # in a text table without --full


def terminal_columns() -> int:
    """The width of the terminal; without limit where stdout is none."""
    import shutil

    return shutil.get_terminal_size().columns if sys.stdout.isatty() else sys.maxsize


def print_text(text: str) -> None:
    """Print a report; on a terminal, wrap long lines outside of tables."""
    import textwrap

    columns = terminal_columns()
    for line in text.split("\n"):
        is_long = len(line) > columns and line[:1] not in ("|", "+")
        print(textwrap.fill(line, columns, subsequent_indent="  ") if is_long else line)


def fitted(table: Callable[[int], str]) -> str:
    """The table with names of MAX_NAME characters, or of as few as the terminal needs."""
    columns, limit = terminal_columns(), MAX_NAME
    while (text := table(limit)).index("\n") > columns and limit > MIN_NAME:
        limit -= 4
    return text


def tensor_table(schedule: Schedule, is_full: bool) -> str:
    """The tensors; only the MAX_ROWS largest unless ``is_full``."""
    tensors = shown_tensors(schedule)
    shown = tensors if is_full else sorted(tensors, key=lambda t: -t.ram_bytes)[:MAX_ROWS]
    left_out = len(tensors) - len(shown)

    def table(limit: int) -> str:
        rows = [
            [t.index, shorten(t.name, limit), str(t.shape), "unknown" if t.bytes is None else f"{t.ram_bytes:,}"]
            for t in sorted(shown, key=lambda tensor: tensor.index)
        ]
        return text_table(["Id", "Tensor", "Shape", "Size in RAM (B)"], rows, left=("Tensor", "Shape"))

    return fitted(table) + (f"\n({left_out:,} smaller ones are left out; --full shows all)" if left_out else "")


def schedule_table(graph: ModelGraph, schedule: Schedule, columns: Mapping[str, str], is_full: bool) -> str:
    """The operators; of more than MAX_ROWS only those at both ends and around the peak, unless ``is_full``."""
    headers = ["Operator (output name)", "Tensors in memory (IDs)", "Memory use (B)", *columns.values()]
    steps, part = schedule.steps, MAX_ROWS // 4
    top = max(range(len(steps)), key=lambda i: steps[i].bytes, default=0)
    shown: list[Step | None] = []
    for i, step in enumerate(steps):
        is_near = min(i, len(steps) - 1 - i) < part or -part < i - top < part
        if is_full or len(steps) <= MAX_ROWS or is_near:
            shown.append(step)
        elif shown[-1]:
            shown.append(None)

    def row(step: Step | None, limit: int) -> list[str]:
        if step is None:
            return ["..."] * len(headers)
        live = step.live if is_full else step.live[: min(MAX_IDS, limit // 3)]
        more = [f"{len(step.live) - len(live)} more"] if len(live) < len(step.live) else []
        kind, name = step.operator.kind, schedule.subgraph.output_name(step.operator)
        room = limit if limit == MAX_NAME else max(limit - len(kind) // 2, 5)  # narrow: less beside long kinds
        title = f"{shorten(kind, limit)} ({shorten(name, room)})"
        figures = step_json(graph, schedule.subgraph, step) if columns else {}
        shown_figures = (f"{figures[key]:,}" for key in columns)
        return [title, f"[{', '.join([*map(str, live), *more])}]", f"{step.bytes:,}", *shown_figures]

    table = fitted(lambda limit: text_table(headers, (row(step, limit) for step in shown), left=headers[:2]))
    return table + ("\n(operators are left out; --full shows all)" if None in shown else "")


WORTH_TELLING = 0.02  # fraction of the arena


def analysis_text(model: Snapshot, columns: Mapping[str, str], is_full: bool = False, is_divided: bool = False) -> str:
    """The text report: the verdict, without the arena if ``is_divided``; two tables per subgraph, totals, the peak."""
    graph, schedules = model.graph, model.schedules
    lines = [*verdict(model, is_divided), ""]
    for schedule in schedules:
        if len(schedules) > 1:
            title = subgraph_title(schedule.subgraph)
            lines += [title, "=" * len(title)]
        lines += ["Tensor information (weights excluded):", tensor_table(schedule, is_full), ""]
        lines += ["Operator execution schedule:", schedule_table(graph, schedule, columns, is_full)]
        if len(schedules) > 1:
            lines += [f"Peak of this subgraph: {schedule.peak:,} B", ""]
        if any(step.callee_bytes for step in schedule.steps):
            lines += ["(memory use includes the peak of the subgraphs that an operator runs)", ""]
    if "macs" in columns:
        once = f" ({COUNTED_ONCE})" if has_unknown_loops(graph) else ""
        lines += [f"Total MACs: {model_macs(graph):,}{once}"]
        core = TIMED_AS[TIMED_CORES.get(graph.kernels.core, "")]
        lines += [f"Total instructions: {model_instructions(graph):,}{once}, estimated for a {core}"]
    if "parameter_bytes" in columns:
        lines += [f"Total weight size: {parameter_bytes(graph, graph.operators):,} B"]
    lines += [f"Current peak memory usage: {model.peak:,} B"]
    if looped_operators(graph):
        apart = max(schedule.peak for schedule in schedule_model(graph))
        lines[-1] += f" (tensors of loops that share memory counted once; {apart:,} B otherwise)"
    return "\n".join(lines)


def verdict(model: Snapshot, is_divided: bool) -> list[str]:
    """What to reserve, the bottleneck, whether TFLM runs the model, and what would help."""
    try:
        lines = [] if is_divided else arena_lines(model)
    except ArenaError as error:
        lines = [f"Arena: unknown ({shorten(str(error), 200)})"]
    steps = [(schedule, step) for schedule in model.schedules for step in schedule.steps]
    if steps:
        schedule, step = max(steps, key=lambda pair: pair[1].bytes)
        number, kind = tensor_number(schedule.subgraph.index, step.operator.index), shorten(step.operator.kind)
        lines += [f"Bottleneck: operator {number} ({kind}), counted from 0: {step.bytes:,} B of tensors"]
    if state := state_bytes(model.graph):
        lines += [f"State kept between inferences: {state:,} B (in the persistent structures, not in the peak)"]
    month, kinds = required_tflm(model.graph)
    lines += [f"Requires TFLM of {month_text(month)} or later ({', '.join(kinds)})"] if month else []
    if not model.refusals:
        return [*lines, "TFLM accepts every operator of this model"]
    return lines + listed("TFLM rejects this model:", model.refusals) + repair_hint(model)


def arena_lines(model: Snapshot) -> list[str]:
    """TFLM's arena, and quick estimates of what would help."""
    arena, kernels = model.arena, model.graph.kernels
    lines = [f"Arena to reserve (kTensorArenaSize): {arena.reserve:,} B on a 32-bit target"]
    parts = f"tensors and scratch {arena.head:,} B, persistent structures {arena.persistent:,} B"
    if arena.planning > arena.head + arena.persistent:
        parts += f"; AllocateTensors() briefly needs {arena.planning:,} B"
    others = ", ".join(f"{name} {size:,} B" for name, size in model.reserve_by_library.items())
    lines += [f"({parts})", f"(with {kernels.title}{f'; with --kernels {others}' if others else ''})"]
    if is_compiled(model.graph):
        return [*lines, "(compiled for an NPU; tensors in its scratch memory are counted twice in the tables)"]
    if arena.problems:
        return lines + listed("The memory plan in the file is wrong:", arena.problems)
    plan, saved = plan_arena(arena, time_limit=0), saved_by_integer_ports(model)
    if model.graph.kernels.kept:
        lines += listed("Not kept by this layout:", arena.lost) or ["This layout keeps what --keep names"]
    helps = []
    if plan.height < arena.head:
        helps += [f"--plan: {arena.reserve_with(plan.height):,} B{'' if plan.optimal else ' or less'}"]
    if saved and saved > WORTH_TELLING * arena.reserve:
        helps += [f"--integer-io: {saved:,} B less"]
    elif saved is not None:
        helps += ["--integer-io with --fit"]
    helps += [] if looped_operators(model.graph) else ["--fit for the smallest arena"]
    optimal = "The layout is optimal for this order. " if arena.head <= plan.bound else ""
    return lines + ([f"{optimal}To need less: {'; '.join(helps)}"] if helps else [])


def arena_json(model: Snapshot) -> dict[str, Any]:
    arena, plan = model.arena, plan_arena(model.arena, time_limit=0)
    keys = "reserve_bytes=reserve head_bytes=head persistent_estimate_bytes=persistent planning_estimate_bytes=planning"
    place = "offset=interval.offset first=interval.first last=interval.last"
    return picked(arena, f"{keys} has_plan problems missing_operators") | {
        "bound_bytes": plan.bound,
        "planned_bytes": min(plan.height, arena.head),
        "buffers": [picked(b, f"subgraph tensor scratch_of_operator=operator bytes {place}") for b in arena.buffers],
        "saved_by_integer_io": saved_by_integer_ports(model) or 0,
        "kernels": model.graph.kernels.name,
        "reserve_bytes_elsewhere": model.reserve_by_library,
    }


def schedule_json(graph: ModelGraph, schedule: Schedule) -> dict[str, Any]:
    subgraph = schedule.subgraph
    return picked(subgraph, "index name inputs outputs") | {
        "peak_bytes": schedule.peak,
        "tensors": [picked(t, "id=index name shape type=dtype bytes") for t in shown_tensors(schedule)],
        "operators": [step_json(graph, subgraph, step) for step in schedule.steps],
    }


def analysis_json(model: Snapshot) -> dict[str, Any]:
    """The analysis as JSON-ready data: sizes in bytes, ids as indices in the subgraph. README lists the keys."""
    graph, notes, arena = model.graph, list(model.graph.notes), None
    try:
        arena = arena_json(model)
    except ArenaError as error:
        notes.append(f"the arena is not known, since {error}")
    return {
        "tflite_tools_version": __version__,
        "peak_bytes": model.peak,
        "state_bytes": state_bytes(graph),
        "macs": model_macs(graph),
        "instructions": model_instructions(graph),
        "parameter_bytes": parameter_bytes(graph, graph.operators),
        "notes": notes,
        "refusals": list(model.refusals),
        "requires_tflm": required_tflm(graph)[0] or None,
        "subgraphs": [schedule_json(graph, schedule) for schedule in model.schedules],
        "arena": arena,
    }


def _cell(text: str) -> str:
    """Escape text that a spreadsheet would take for a formula."""
    return f"'{text}" if text[:1] in tuple("=+-@") else text


CSV_FILES = "tensor_details.csv", "execution_schedule_info.csv"


def write_csv(folder: Path, model: Snapshot, columns: Mapping[str, str]) -> None:
    """Write ``tensor_details.csv`` and ``execution_schedule_info.csv``: whole names, a row per tensor or operator."""
    tensors: list[list[Any]] = [["Id", "Name", "Shape", "Size", "Type", "Subgraph"]]
    operators: list[list[Any]] = [["Operator", "Working set", "Memory use", *columns.values(), "Kind", "Subgraph"]]
    for schedule in model.schedules:
        subgraph = schedule.subgraph
        for t in shown_tensors(schedule):
            tensors.append([t.index, _cell(t.name), " ".join(map(str, t.shape)), t.bytes, t.dtype, subgraph.index])
        for step in schedule.steps:
            name, kind = _cell(subgraph.output_name(step.operator)), _cell(step.operator.kind)
            figures = step_json(model.graph, subgraph, step) if columns else {}
            live, shown = " ".join(map(str, step.live)), (figures[key] for key in columns)
            operators.append([name, live, step.bytes, *shown, kind, subgraph.index])
    files = {}
    for name, rows in zip(CSV_FILES, (tensors, operators), strict=True):
        csv.writer(file := io.StringIO(newline="")).writerows(rows)
        files[name] = file.getvalue()
    write_texts(folder, files)


####################################################################################################
# Firmware: a model -> C++ that a TFLM application includes
####################################################################################################

# Names that C++, the C library or the headers of boards take.
CPP_NAMES = frozenset(
    """alignas alignof and asm auto bool break case catch char class const constexpr continue
    default delete do double else enum explicit export extern false float for friend goto if inline int long mutable
    namespace new noexcept not nullptr operator or private protected public register return short signed sizeof static
    struct switch template this throw true try typedef typeid typename union unsigned using virtual void volatile while
    xor std tflite main unix linux i386 arm abs acos asin atan ceil cos exp fabs floor fmod log pow round sin sqrt tan
    abort atoi calloc div exit free index malloc printf puts qsort rand read realloc remove rename signal srand system
    time write bit boolean byte delay loop max min setup sq word clock random select erf hypot timezone daylight tzname
    signgam gamma j0 j1 jn y0 y1 yn fma trunc tgamma lgamma nan remainder ldexp modf frexp scalb significand drem ldiv
    strlen memcpy getline perror tempnam ctime difftime mktime wcslen tolower toupper isalpha drand48 mktemp""".split()
)
CPP_TYPES = {"FLOAT32": "float", "BOOL": "bool"}
BYTES_PER_LINE = 16


def cpp_name(text: str) -> str:
    """A valid C++ identifier that resembles the text, and that no macro, type or function has."""
    name = re.sub(r"[^A-Za-z0-9]+", "_", text).strip("_")
    is_taken = name in CPP_NAMES or not re.match(r"(?!TfLite)[A-Za-z]", name) or name.upper() == name
    return f"model_{name}".rstrip("_") if is_taken else name


def own_kernels(model: Snapshot) -> dict[str, tuple[bytes, str]]:
    """Of the operators that TFLM does not know: the code in the file, and the function that registers it."""
    used = {o.kind for _, o in model.graph.operators if o.is_custom and o.kind not in CUSTOM_KINDS}
    codes = {custom_kind(code): bytes(code["CustomCode"]) for code in model.file.model["OperatorCodes"]}
    found: dict[str, tuple[bytes, str]] = {}
    for kind in sorted(used):
        name, taken = f"Register_{cpp_name(kind)}", [function for _, function in found.values()]
        names = itertools.chain([name], (f"{name}_{i}" for i in itertools.count(2)))
        found[kind] = codes[kind], next(n for n in names if n not in taken)
    return found


def registration(kind: str, is_custom: bool, own: Mapping[str, tuple[bytes, str]] = MappingProxyType({})) -> str:
    """The MicroMutableOpResolver call that registers an operator. Raises ValueError if TFLM has no kernel for it."""
    if is_custom and kind in own:
        code, function = own[kind]
        text = re.sub(r"[^A-Za-z0-9 .:/_-]", lambda c: f"\\{ord(c[0]):03o}", code.decode("latin-1"))
        return f'AddCustom("{text}", {function}())'
    known = (CUSTOM_KINDS if is_custom else KINDS).get(kind, UNKNOWN_KIND)
    if known.tflm is None:
        raise ValueError(f"TFLM has no kernel for {shorten(kind)}, so there is nothing to register")
    words = kind.removeprefix("Signal").split("_")
    plain = re.sub(r"(\d)d$", r"\1D", "".join(word.capitalize() if word.isupper() else word for word in words))
    return f"Add{known.registered or plain}()"


def _port_lines(subgraph: Subgraph) -> Iterator[str]:
    for what, ids in (("Input", subgraph.inputs), ("Output", subgraph.outputs)):
        for number, tensor in enumerate(subgraph.tensors[t] for t in ids):
            dtype = CPP_TYPES.get(tensor.dtype, f"{tensor.dtype.lower()}_t")
            name, shape = tensor.name.replace("\\", "/"), ", ".join(map(str, tensor.shape))
            yield f"// {what} {number}: {dtype}[{shape}], {name}"
            if tensor.shape:
                yield f"constexpr int k{what}{number}Shape[] = {{{shape}}};"
            scales, zeros = (known.scales, known.zero_points) if (known := tensor.quantization) else ((), ())
            zero = zeros[0] if zeros else 0
            if len(scales) == 1 and math.isfinite(scales[0]) and abs(zero) < MAX_OFFSET:
                yield f"constexpr float k{what}{number}Scale = {scales[0]!r}f;  // real = scale * (value - zero point)"
                yield f"constexpr int k{what}{number}ZeroPoint = {zero};"


def _array(name: str, data: bytes) -> str:
    lines = (data[i : i + BYTES_PER_LINE] for i in range(0, len(data), BYTES_PER_LINE))
    content = "\n".join("  " + "".join(f"0x{byte:02x}," for byte in line) for line in lines)
    return f"alignas(16) const unsigned char {name}[] = {{\n{content}\n}};"


def _kept_lines(arena: Arena) -> Iterator[str]:
    """What the memory plan keeps for the application. Raises ValueError if the layout does not keep it."""
    if arena.lost:
        raise ValueError(f"the layout does not keep what --keep names: {arena.lost[0]}")
    for name, source in arena.graph.kernels.kept:
        at = arena.placed[arena.named(name)[0]].offset
        what = f"is {source} in the next inference, in its place: do not copy it" if source else "stays after Invoke()"
        yield f"// {name.replace(chr(92), '/')} {what}; at arena + {at}."


CPP_HEADER = """\
// Written by tflite-tools {version}; changes will be lost.
#ifndef {guard}
#define {guard}

#include <cstddef>
#include <cstdint>

{header_includes}#include "tensorflow/lite/micro/micro_mutable_op_resolver.h"
{declared}
namespace {name} {{

{arena}

{ports}

{remark}constexpr unsigned int kOperatorCount = {count};
using OpResolver = tflite::MicroMutableOpResolver<kOperatorCount>;
TfLiteStatus RegisterOperators(OpResolver& resolver);
{classes}
}}  // namespace {name}

#endif  // {guard}
"""
CPP_SOURCE = """\
// Written by tflite-tools {version}; changes will be lost.
#include "{name}_model.h"
{source_includes}
namespace {name} {{

TfLiteStatus RegisterOperators(OpResolver& resolver) {{
{calls}
  return kTfLiteOk;
}}

{source}

}}  // namespace {name}
"""
CPP_EXAMPLE = """\
// Written by tflite-tools {version}: how to run the model. Copy from here.
#include "{name}_model.h"
{example_includes}
int main() {{
{main}  return 0;
}}
"""

EXAMPLE_INCLUDES = """\
#include "tensorflow/lite/micro/micro_interpreter.h"
{variables}#include "tensorflow/lite/schema/schema_generated.h"
"""
VARIABLES_INCLUDE = '#include "tensorflow/lite/micro/micro_resource_variable.h"\n'
FAST_MAIN = """\
  alignas(16) static uint8_t fast[{name}::kFastMemorySize];
  // Move this one to the slow memory, with an attribute such as EXT_RAM_BSS_ATTR or a section of your linker script.
"""
ARENA_ARRAY = "  alignas(16) static uint8_t arena[{size}];\n"
SET_UP = """\
  static {name}::OpResolver {prefix}resolver;
  if ({name}::RegisterOperators({prefix}resolver) != kTfLiteOk) return 1;
  const tflite::Model* {prefix}model = tflite::GetModel({name}::kModel);
{made}  static tflite::MicroInterpreter {prefix}interpreter({prefix}model, {prefix}resolver, {memory});
  if ({prefix}interpreter.AllocateTensors() != kTfLiteOk) return 2;
"""
RUN = """\
  // Fill {prefix}interpreter.input(0) here, then:
  if ({prefix}interpreter.Invoke() != kTfLiteOk) return 3;
  // Read {prefix}interpreter.output(0) here{when}.
"""
ALLOCATOR = """\
  tflite::MicroAllocator* allocator = tflite::MicroAllocator::Create({memory});
  if (allocator == nullptr) return 2;
"""
PLANNER_INCLUDES = """\
#include "tensorflow/lite/micro/memory_planner/greedy_memory_planner.h"
#include "tensorflow/lite/micro/memory_planner/micro_memory_planner.h"
#include "tensorflow/lite/micro/micro_log.h"
"""
PLANNER = """
// Puts what the plan in the model has below kFastMemorySize, and all scratch memory, into the fast memory.
class Planner : public tflite::MicroMemoryPlanner {
 public:
  Planner(uint8_t* fast, uint8_t* arena) : away_(fast - arena) {}

  TfLiteStatus Init(unsigned char* scratch, int size) override {
    most_ = size / static_cast<int>(sizeof(int) + tflite::GreedyMemoryPlanner::per_buffer_size());
    const int own = most_ * static_cast<int>(sizeof(int));
    places_ = reinterpret_cast<int*>(scratch);
    count_ = slow_ = 0;
    return fast_.Init(scratch + own, size - own);
  }
  TfLiteStatus AddBuffer(int size, int first, int last) override {
    if (count_ >= most_) return kTfLiteError;
    places_[count_++] = -1 - fast_.GetBufferCount();
    return fast_.AddBuffer(size, first, last);
  }
  TfLiteStatus AddBuffer(int size, int first, int last, int offset) override {
    if (count_ >= most_) return kTfLiteError;
    const int place = offset - static_cast<int>(kFastMemorySize);
    places_[count_++] = place < 0 ? -1 - fast_.GetBufferCount() : place;
    if (place < 0) return fast_.AddBuffer(size, first, last, offset);
    slow_ = place + size > slow_ ? place + size : slow_;
    return kTfLiteOk;
  }
  size_t GetMaximumMemorySize() override { return static_cast<size_t>(slow_); }
  int GetBufferCount() override { return count_; }
  TfLiteStatus GetOffsetForBuffer(int buffer, int* offset) override {
    *offset = places_[buffer];
    if (*offset >= 0) return kTfLiteOk;
    const int away = static_cast<int>(away_), taken = static_cast<int>(fast_.GetMaximumMemorySize());
    if (taken > static_cast<int>(kFastMemorySize)) {
      MicroPrintf("These kernels take %d bytes of fast memory: plan for them with --kernels", taken);
      return kTfLiteError;
    }
    if (away != away_) {  // on a host
      MicroPrintf("The two memories are too far from each other");
      return kTfLiteError;
    }
    TF_LITE_ENSURE_STATUS(fast_.GetOffsetForBuffer(-1 - *offset, offset));
    *offset += away;
    return kTfLiteOk;
  }
  bool preserves_all_tensors() const override { return false; }

 private:
  tflite::GreedyMemoryPlanner fast_;
  std::ptrdiff_t away_;  // from the arena to the fast memory
  int* places_ = nullptr;  // by buffer: its address in the arena, or less than 0: -1 - its number among the fast ones
  int most_ = 0, count_ = 0, slow_ = 0;
};
"""


def firmware_names(title: str) -> tuple[str, str, str]:
    """The names of the header, the source and the example."""
    return f"{cpp_name(title)}_model.h", f"{cpp_name(title)}_model.cc", "example.cc"


def cpp_files(title: str, model: Snapshot, models: Sequence[Snapshot], **texts: str) -> dict[str, str]:
    """C++17 sources by file name: header, source and example, with the inputs and outputs of ``model``, the operators
    of ``models``, and texts for other slots of the templates, else empty. Raises ArenaError if the arena is unknown,
    and ValueError if TFLM has no kernel for an operator."""
    name, own = cpp_name(title), own_kernels(model)
    kinds = sorted({(o.kind, o.is_custom) for one in models for _, o in one.graph.operators})
    declared = "".join(f"\nTFLMRegistration* {function}();  // by the application" for _, function in own.values())
    slots = defaultdict(str, texts) | {
        "name": name,
        "version": __version__,
        "guard": f"{name.upper()}_MODEL_H_",
        "declared": f"{declared}\n" if declared else "",
        "ports": "\n".join([*_port_lines(model.graph.subgraphs[0]), *_kept_lines(model.arena)]),
        "count": str(max(len(kinds), 1)),
        "calls": "\n".join(f"  TF_LITE_ENSURE_STATUS(resolver.{registration(*kind, own)});" for kind in kinds),
    }
    templates = zip(firmware_names(title), (CPP_HEADER, CPP_SOURCE, CPP_EXAMPLE), strict=True)
    return {file: template.format_map(slots) for file, template in templates}


def _set_up(name: str, model: Snapshot, memory: str, made: str = "", prefix: str = "") -> str:
    """C++ that makes the interpreter of a model in some memory, or with an allocator, which resource variables need."""
    if variables := len(resource_variables(model.graph)):
        made += "" if memory == "allocator" else ALLOCATOR.format(memory=memory)
        made += f"  auto* {prefix}variables = tflite::MicroResourceVariables::Create(allocator, {variables});\n"
        memory = f"allocator, {prefix}variables"
    return SET_UP.format(name=name, memory=memory, made=made, prefix=prefix)


def _example_includes(models: Iterable[Snapshot]) -> str:
    has_variables = any(resource_variables(model.graph) for model in models)
    return EXAMPLE_INCLUDES.format(variables=VARIABLES_INCLUDE if has_variables else "")


def _kernels_of(models: Sequence[Snapshot]) -> str:
    month = max(required_tflm(model.graph)[0] for model in models)
    return models[0].graph.kernels.title + (f"; requires TFLM of {month_text(month)} or later" if month else "")


def firmware_files(model: Snapshot, title: str, memories: MemoriesDecision | None = None) -> dict[str, str]:
    """C++17 sources by file name: the model as an array with arena and operators, and an example; ``memories`` adds a
    planner. Raises as :func:`cpp_files`."""
    name, data, arena, kernels = cpp_name(title), bytes(model.data), model.arena, _kernels_of([model])
    divided = memories if memories and memories.is_divided else None
    tail = f"persistent structures {arena.persistent:,} B"
    sizes = [f"// Tensors and scratch {arena.head:,} B, {tail}: a MicroInterpreter of 32 bits", f"// with {kernels}."]
    memory, made = f"arena, {name}::kTensorArenaSize", ""
    if divided:
        sizes = [
            f"// Fast memory, for scratch and the tensors that are used most, with {kernels}.",
            f"constexpr size_t kFastMemorySize = {divided.fast_head};",
            f"// Slow memory, which TFLM gets as its arena: other tensors {divided.slow_head:,} B, {tail},",
            "// or what planning takes for a moment, where that is more.",
        ]
        made = f"  static {name}::Planner planner(fast, arena);\n{ALLOCATOR.format(memory=f'{memory}, &planner')}"
        memory = "allocator"
    array = ["extern const unsigned char kModel[];", f"constexpr size_t kModelSize = {len(data)};", ""]
    main = ARENA_ARRAY.format(size=f"{name}::kTensorArenaSize") + _set_up(name, model, memory, made)
    main += RUN.format(prefix="", when="")
    return cpp_files(
        title,
        model,
        [model],
        header_includes=PLANNER_INCLUDES if divided else "",
        arena="\n".join([*array, *sizes, f"constexpr size_t kTensorArenaSize = {(divided or arena).reserve};"]),
        remark="// The operators of the model, and no others.\n",
        classes=PLANNER if divided else "",
        source=_array("kModel", data),
        example_includes=_example_includes([model]),
        main=FAST_MAIN.format(name=name) + main if divided else main,
    )


####################################################################################################
# Firmware: stages, or several models -> C++ that runs them in one arena
####################################################################################################

STAGES_ARENA = """\
// A model in {stages} stages, which run one after the other in one arena, each with an interpreter of its own, with
// {kernels}.
constexpr size_t kTensorArenaSize = {reserve};"""
STAGES_CLASS = """
// Begin(), fill input(i), Invoke(), read output(i); again for every inference. The arena is aligned to 16 bytes.
class Model {
 public:
  explicit Model(uint8_t* arena) : arena_(arena) {}
  Model(const Model&) = delete;
  Model& operator=(const Model&) = delete;

  TfLiteStatus Begin();
  TfLiteStatus Invoke();
  TfLiteTensor* input(size_t number) { return interpreter_->input(number); }
  const void* output(size_t number);

 private:
  TfLiteStatus Make(const unsigned char* stage, size_t waiting);  // above so many bytes that wait

  uint8_t* arena_;
  OpResolver resolver_;
  std::optional<tflite::MicroInterpreter> interpreter_;
};
"""
STAGES_INCLUDES = """
#include <cstring>

#include "tensorflow/lite/schema/schema_generated.h"
"""
STAGES_SOURCE = """\
namespace {{

{arrays}

}}  // namespace

TfLiteStatus Model::Make(const unsigned char* stage, size_t waiting) {{
  interpreter_.emplace(tflite::GetModel(stage), resolver_, arena_ + waiting, kTensorArenaSize - waiting);
  return interpreter_->AllocateTensors();
}}

TfLiteStatus Model::Begin() {{
  if (!interpreter_) TF_LITE_ENSURE_STATUS(RegisterOperators(resolver_));
  return Make(kStage0, {waiting});
}}

TfLiteStatus Model::Invoke() {{
{steps}
  return kTfLiteOk;
}}

const void* Model::output(size_t number) {{
{outputs}
  return nullptr;
}}"""
STAGES_MAIN = """\
  alignas(16) static uint8_t arena[{name}::kTensorArenaSize];
  static {name}::Model model(arena);
  if (model.Begin() != kTfLiteOk) return 1;
  // Fill model.input(0) here, then:
  if (model.Invoke() != kTfLiteOk) return 2;
  // Read model.output(0) here.
"""


def stage_statements(decision: StagesDecision, original: Subgraph) -> tuple[list[str], list[str]]:
    """(What runs the stages and copies the tensors that wait; where each output is in the end), as C++."""
    sizes = {crossing.name: crossing.size for crossing in decision.crossings}

    def packed(names: Sequence[str]) -> dict[str, str]:
        """Their places in the arena, one after the other."""
        starts = itertools.accumulate((align(sizes[name]) for name in names), initial=0)
        return {name: f"arena_ + {start}" for name, start in zip(names, starts, strict=False)}

    def copies(to: Mapping[str, str], sources: Mapping[str, str]) -> list[str]:
        pairs = [(name, place, sources[name]) for name, place in to.items()]
        return [f"std::memmove({place}, {old}, {sizes[name]});" for name, place, old in pairs if place != old]

    statements, waiting = list[str](), dict[str, str]()  # the places of what waits, in rising order
    for stage, (model, row) in enumerate(zip(decision.models, decision.stages, strict=True)):
        part = model.graph.subgraphs[0]
        inputs, outputs = (
            {part.tensors[t].name: f"interpreter_->{port}({i})->data.data" for i, t in enumerate(ids)}
            for port, ids in (("input", part.inputs), ("output", part.outputs))
        )
        if stage:
            statements += [f"TF_LITE_ENSURE_STATUS(Make(kStage{stage}, {row.waiting}));", *copies(inputs, waiting)]
        else:
            waiting = packed([name for name in inputs if name in sizes])
            statements += copies(waiting, inputs)
        statements.append("TF_LITE_ENSURE_STATUS(interpreter_->Invoke());")
        if stage < len(decision.models) - 1:
            places = {b.tensor: b.interval.offset or 0 for b in model.arena.buffers if b.subgraph == 0}
            made = [part.tensors[t].name for t in sorted(part.outputs, key=places.__getitem__)]
            needed = {crossing.name for crossing in decision.crossings if crossing.waits(stage + 1)}
            before, waiting = outputs | waiting, packed([*(name for name in waiting if name in needed), *made])
            statements += copies(waiting, before)
    ends = outputs | waiting
    return statements, [ends[original.tensors[t].name] for t in original.outputs]


def stages_firmware(decision: StagesDecision, original: Snapshot, title: str) -> dict[str, str]:
    """C++17 sources by file name: the stages as arrays, a class that runs them, and an example. Raises as
    :func:`cpp_files`."""
    models = decision.models
    statements, places = stage_statements(decision, original.graph.subgraphs[0])
    return cpp_files(
        title,
        original,
        models,
        header_includes='#include <optional>\n\n#include "tensorflow/lite/micro/micro_interpreter.h"\n',
        arena=STAGES_ARENA.format(stages=len(models), kernels=_kernels_of(models), reserve=decision.after),
        classes=STAGES_CLASS,
        source_includes=STAGES_INCLUDES,
        source=STAGES_SOURCE.format(
            arrays="\n".join(_array(f"kStage{i}", bytes(model.data)) for i, model in enumerate(models)),
            waiting=decision.stages[0].waiting,
            steps="\n".join(f"  {statement}" for statement in statements),
            outputs="\n".join(f"  if (number == {i}) return {place};" for i, place in enumerate(places)),
        ),
        main=STAGES_MAIN.format(name=cpp_name(title)),
    )


def models_firmware(models: Mapping[str, Snapshot]) -> dict[str, str]:
    """C++17 sources by file name: each model, by its title, and two examples, which run all of them in one arena:
    ``resident.cc`` and ``in_turn.cc``. Raises as :func:`cpp_files`, and ValueError if two titles are one C++ name."""
    models = {title: model.with_data_inside() for title, model in models.items()}
    names = {cpp_name(title): model for title, model in models.items()}
    if len(names) < len(models):
        raise ValueError(f"two models would be {next(iter(names))} in C++: rename a file")
    files, when = dict[str, str](), ", before another model runs"
    for title, model in models.items():
        files |= firmware_files(model, title)
    del files["example.cc"]
    shared, (first, *others) = share_arena([model.arena for model in models.values()]), names
    resident = ALLOCATOR.format(memory="arena, sizeof(arena)")
    resident += "".join(_set_up(name, model, "allocator", prefix=f"{name}_") for name, model in names.items())
    resident += "".join(RUN.format(prefix=f"{name}_", when=when) for name in names)
    blocks = (_set_up(name, m, "arena, sizeof(arena)") + RUN.format(prefix="", when="") for name, m in names.items())
    in_turn = "".join(f"  {{\n{re.sub('(?m)^ ', '   ', block)}  }}\n".replace(" static ", " ") for block in blocks)
    includes = "".join(f'#include "{name}_model.h"\n' for name in others) + f"\n{_example_includes(models.values())}"
    for file, size, what, main in (
        ("resident.cc", shared.resident, "All models are ready to run, one at a time; tensors share memory.", resident),
        ("in_turn.cc", shared.in_turn, "Each model is set up anew, with its state, before it runs.", in_turn),
    ):
        main = f"  // {what}\n{ARENA_ARRAY.format(size=size)}{main}"
        files[file] = CPP_EXAMPLE.format(name=first, version=__version__, example_includes=includes, main=main)
    return files


####################################################################################################
# Plots: bars per operator, the memory map of the arena
####################################################################################################

PARTS = {
    "Operator inputs": "#D95319",
    "Operator outputs": "#EDB120",
    "Other tensors": "#0072BD",
    "Subgraphs it runs": "#7E2F8E",
}
MAX_LABELLED_BARS = 80  # more operators than this are numbered, not named
CHARACTER, LINE = 0.064, 0.13  # inches, for text of 7 points
MIN_LETTERS = 8  # fewest characters worth writing
MAX_NAMED_TENSORS = 25  # in a memory map
MAX_TICKS = 14
NOTE = {"textcoords": "offset points", "bbox": {"facecolor": "white", "alpha": 0.8, "linewidth": 0, "pad": 1}}


def new_figure(width: float, height: float, rows: Sequence[float] = (1,), columns: int = 1) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots(len(rows), columns, squeeze=False, sharey=columns > 1, height_ratios=rows).flat


def plot_schedules(file: Path, schedules: Sequence[Schedule], other: Schedule | None = None) -> None:
    """Draw stacked bars per operator (inputs, outputs, other tensors; 1 KB = 1,024 B) and the peak. A panel for each
    subgraph that no operator runs, since bars include what their operator runs, and for ``other``."""
    run = {callee for s in schedules for step in s.steps for callee in step.operator.callees}
    shown = [s for s in schedules if s.subgraph.index not in run and (s.steps or s is schedules[0])]
    drawn = [(subgraph_title(s.subgraph) if len(shown) > 1 else "", s) for s in shown]
    if other:
        drawn = [(f"This model {name}", s) for name, s in drawn] + [("Compared with", other)]
    heights = [4.2 if len(s.steps) > MAX_LABELLED_BARS else 6.6 for _, s in drawn]
    width = min(max(max(len(s.steps) for _, s in drawn) / 4, 8), 24)
    figure, (*panels,) = new_figure(width, sum(heights), heights)
    for (title, schedule), axes in zip(drawn, panels, strict=True):
        _plot_schedule(axes, schedule, title)
    highest = max(axes.get_ylim()[1] for axes in panels)
    for axes in panels if other else ():
        axes.set_ylim(0, highest)
    _save(figure, file)


def _save(figure: Any, file: Path) -> None:
    for text in figure.findobj(lambda artist: hasattr(artist, "set_parse_math")):
        text.set_parse_math(False)  # dollars do not enclose formulas
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # missing glyphs and very long names are harmless here
        figure.savefig(picture := io.BytesIO(), format=file.suffix[1:].lower(), dpi=150)
    write_files({file: picture.getvalue()})


def _plot_schedule(axes: Any, schedule: Schedule, title: str) -> None:
    steps, count = schedule.steps, len(schedule.steps)
    axes.set_xlim(-0.6, max(count - 0.4, 0.6))
    axes.set_ylabel("Memory use (KB)")
    axes.set_title(title, loc="left", pad=20 if title else 6)
    bottom = np.zeros(count)
    for (name, colour), amounts in zip(PARTS.items(), _parts(schedule), strict=True):
        if count and (any(amounts) or name != "Subgraphs it runs"):
            top = bottom + np.array(amounts) / 1024
            axes.stairs(top, np.arange(count + 1) - 0.5, baseline=bottom, fill=True, color=colour, label=name)
            bottom = top
    name_of = schedule.subgraph.output_name
    plain = plain_names(name_of(step.operator) for step in steps)
    titles = [f"{shorten(step.operator.kind, 20)} ({shorten(plain[name_of(step.operator)], 30)})" for step in steps]
    if steps:
        at = max(range(count), key=lambda i: steps[i].bytes)
        text, peak, to_left = f"peak {steps[at].bytes:,} B at operator {at}: ", bottom[at], at > count / 2
        share, inches = (at if to_left else count - at) / count, 0.85 * axes.figure.get_size_inches()[0]
        text += shorten(titles[at], max(int(share * inches / CHARACTER * 7 / 9) - len(text), MIN_LETTERS))
        axes.axhline(peak, color="black", linewidth=0.8, linestyle="--")
        side, shift = ("right", -4) if to_left else ("left", 4)
        label = axes.annotate(text, (at, peak), (shift, 5), ha=side, fontsize=9, **NOTE)
        label.set_in_layout(False)  # a long name must not squeeze the bars
        axes.plot([at], [peak], marker="v", color="black", markersize=6)
        axes.legend(loc="lower right", bbox_to_anchor=(1.0, 1.0), ncols=4, fontsize=8, frameon=False)
    if count > MAX_LABELLED_BARS:
        axes.set_xlabel("Operator number, in execution order")
    else:
        axes.set_xticks(np.arange(count), [f"{text}  {i}" for i, text in enumerate(titles)], rotation=90, fontsize=8)
    axes.set_ylim(0, (axes.get_ylim()[1] or 1) * 1.12)


def _parts(schedule: Schedule) -> list[list[int]]:
    """Bytes per operator: its inputs, its outputs, other tensors and the subgraphs it calls, a list each."""
    tensors, parts = schedule.subgraph.tensors, []
    for step in schedule.steps:
        live, reads = set(step.live), step.operator.reads
        inputs = sum(tensors[i].ram_bytes for i in reads if i in live)
        outputs = sum(tensors[i].ram_bytes for i in set(step.operator.writes) - set(reads) if i in live)
        parts.append((inputs, outputs, step.bytes - step.callee_bytes - inputs - outputs, step.callee_bytes))
    return [[row[k] for row in parts] for k in range(4)]


def plot_arenas(file: Path, models: Sequence[tuple[str, Snapshot]], memories: MemoriesDecision | None = None) -> None:
    """Draw arenas side by side: time across, address up, a rectangle per buffer with its tensor's id, the largest with
    names ("s": scratch memory; ids outside subgraph 0 start with its number; grey: reserved but unused). ``memories``
    apply to the last model."""
    top = max(1, *(model.arena.head for _, model in models)) / 1024
    spans = [max((b.interval.last for b in model.arena.buffers), default=0) + 2 for _, model in models]
    width = min(max(max(spans) / 6, 7), 13)
    figure, (*panels,) = new_figure(width * len(models), 7, columns=len(models))
    for axes, (title, model), steps in zip(panels, models, spans, strict=True):
        axes.set_xlim(-2.5, steps - 2)
        axes.set_ylim(0, top * 1.05)
        _plot_arena(axes, model, inches=(width / steps, 6.2 / top / 1.05))
        head, reserve = model.arena.head, model.arena.reserve
        axes.set_title(f"{shorten(title)}: {head:,} B (to reserve in all: {reserve:,} B)", loc="left")
    if memories and memories.is_divided:
        sizes = f"fast {memories.fast_head:,} B, slow {memories.slow_head:,} B"
        axes.set_title(f"{models[-1][0]}: {sizes} (to reserve: {memories.reserve:,} B)", loc="left")
        axes.axhline(memories.fast_head / 1024, color="black", linewidth=0.9, linestyle=":")
        where = axes.get_xlim()[1], memories.fast_head / 1024
        axes.annotate("slow memory, from here up", where, (-4, 4), ha="right", fontsize=8, **NOTE)
    panels[0].set_ylabel("Address in the arena (KB)")
    _save(figure, file)


def _plot_arena(axes: Any, model: Snapshot, inches: tuple[float, float]) -> None:
    """Draw one panel; ``inches`` per unit of time and per KB."""
    from matplotlib import colormaps
    from matplotlib.collections import PatchCollection
    from matplotlib.patches import Rectangle

    arena, graph = model.arena, model.graph
    axes.axhspan(0, arena.head / 1024, color="#e4e4e4", linewidth=0)
    rectangles: dict[str | None, list[Any]] = defaultdict(list)  # by hatch
    pieces = arena.pieces
    named = sorted(range(len(pieces)), key=lambda i: -pieces[i][1].size)[:MAX_NAMED_TENSORS]
    titles = _buffer_titles(graph, arena)
    for number, (buffer, (size, first, last, offset)) in enumerate(pieces):
        x, width, y, height = first - 1.5, last - first + 1, (offset or 0) / 1024, size / 1024
        colour = colormaps["tab20"]((number if buffer.tensor is None else buffer.tensor) % 20)
        hatch = "///" if buffer.tensor is None else None
        rectangles[hatch].append(Rectangle((x, y), width, height, fc=colour, ec="white", linewidth=0.4))
        name, label = ("", "s") if buffer.tensor is None else titles[buffer.subgraph, buffer.tensor]
        text, is_upright = _fitting(width * inches[0], height * inches[1], label, name if number in named else "")
        if text:
            middle, angle = (x + width / 2, y + height / 2), 90 if is_upright else 0
            axes.text(*middle, text, ha="center", va="center", fontsize=7, rotation=angle)
    for hatch, patches in rectangles.items():
        axes.add_collection(PatchCollection(patches, match_original=True, hatch=hatch))
    axes.axhline(arena.head / 1024, color="black", linewidth=0.8, linestyle="--")
    # mark where each operator of subgraph 0 starts, numbered as in the bars
    runs = {o: begin for (s, o), (begin, _) in _times_on_the_clock(graph)[1].items() if s == 0}
    rough = max(len(runs) / MAX_TICKS, 1)
    step = next(n for k in range(10) for n in (10**k, 2 * 10**k, 5 * 10**k) if n >= rough)
    axes.set_xticks([runs[o] - 1 for o in range(0, len(runs), step)], range(0, len(runs), step))
    axes.set_xlabel("Operator number, in execution order (before 0, the inputs are there)")


def _fitting(across: float, up: float, label: str, name: str) -> tuple[str, bool]:
    """The text that fits in a rectangle of ``across`` x ``up`` inches, and True if it must be upright."""
    is_upright = across < up and across < CHARACTER * (len(label) + MIN_LETTERS)
    room = int((up if is_upright else across) / CHARACTER) - len(label) - 2
    if name and room >= MIN_LETTERS and min(across, up) > LINE:
        return f"{label} {shorten(name, room)}", is_upright
    return label if across >= CHARACTER * len(label) and up >= LINE else "", False


def _buffer_titles(graph: ModelGraph, arena: Arena) -> dict[tuple[int, int], tuple[str, str]]:
    """(name, number) by (subgraph, tensor); numbers of tensors with the same content are joined."""
    keys = [(b.subgraph, -1 if b.tensor is None else b.tensor) for b in arena.buffers]
    names = {(s, t): graph.subgraphs[s].tensors[t].name for s, t in keys if t >= 0}
    plain, numbers = plain_names(names.values()), {key: tensor_number(*key) for key in names}
    for place in arena.used.copies:
        numbers[keys[place.old]] += f"={tensor_number(*keys[place.new])}"
    return {key: (plain[name], numbers[key]) for key, name in names.items()}


####################################################################################################
# TFLiteModel: the API. One snapshot, one method per step
####################################################################################################

FilePath = str | os.PathLike[str]

MAPPED_FROM = 64 << 20  # bytes; larger files are memory-mapped, so parts that are not read take no RAM


def step(function: StepFunction[P, D]) -> Callable[Concatenate[TFLiteModel, P], D]:
    """Make a step a method that replaces the model's snapshot and returns the decision."""

    @wraps(function)
    def method(model: TFLiteModel, /, *args: P.args, **options: P.kwargs) -> D:
        model.snapshot, decision = function(model.snapshot, *args, **options)
        return decision

    return method


class TFLiteModel:
    """A .tflite model in memory: analyse it, change it, write it back. Methods see all changes made so far; one that
    raises leaves the model unchanged: OSError if a file cannot be read or written, ArenaError as :attr:`arena`. Time
    limits are seconds for the whole call. Pictures are png, svg or pdf, by the extension."""

    def __init__(
        self,
        model_bytes: bytes | bytearray | mmap.mmap,
        kernels: str = REFERENCE.name,
        assumed: Iterable[str] = (),
        tflm: str = "",
        kept: Iterable[tuple[str, str]] = (),
    ) -> None:
        """Read the bytes of a .tflite file; they are copied, except for a memory map. Raises ValueError if ``kernels``
        is unknown, and ModelError if the bytes are no TensorFlow Lite model or a damaged one.

        Args:
            kernels: the library that TFLM runs the model with, a name in LIBRARIES; it determines the scratch memory.
            assumed: operators for which the application links kernels of its own.
            tflm: month of the TFLM that runs the model, such as "2024-06"; empty: the newest that is known.
            kept: tensors that must keep their bytes after an inference, by name or number, each with "" or the input
                that it is in the next inference, for which plans give both one place.
        """
        if kernels not in LIBRARIES:
            raise ValueError(f"kernels are one of {', '.join(LIBRARIES)}, not {kernels!r}")
        data = model_bytes if isinstance(model_bytes, mmap.mmap) else bytes(model_bytes)
        chosen = dataclasses.replace(LIBRARIES[kernels], assumed=frozenset(assumed), tflm=tflm, kept=tuple(kept))
        self.snapshot = Snapshot.read(data, chosen)

    @classmethod
    def load_from_file(cls, path: FilePath, *target: Any, **options: Any) -> TFLiteModel:
        """Read a model from a file; the other arguments, and what it raises, are those of :class:`TFLiteModel`."""
        with open(path, "rb") as file:
            if os.fstat(file.fileno()).st_size > MAPPED_FROM:
                return cls(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), *target, **options)
            return cls(file.read(), *target, **options)

    def write_to_file(self, path: FilePath) -> None:
        """Write the model, replacing an existing file only when complete."""
        write_files({Path(path): self.snapshot.with_data_inside().data})

    def to_bytes(self) -> bytes:
        """The contents of the .tflite file, as :meth:`write_to_file` writes them."""
        return bytes(self.snapshot.with_data_inside().data)

    @property
    def graph(self) -> ModelGraph:
        """The model's subgraphs, tensors and operators as plain data."""
        return self.snapshot.graph

    @property
    def schedules(self) -> tuple[Schedule, ...]:
        """Per subgraph, the operators in execution order with their working sets."""
        return self.snapshot.schedules

    @property
    def arena(self) -> Arena:
        """TFLM's arena: buffers, offsets, bytes. Raises ArenaError if a size is unknown or TFLM rejects the file."""
        return self.snapshot.arena

    def peak_memory_usage(self) -> int:
        """Bytes of the largest working set: all intermediate tensors alive while some operator runs."""
        return self.snapshot.peak

    def print_model_analysis(self, calc_macs: bool = False, calc_size: bool = False, is_full: bool = False) -> None:
        """Print tensors, schedule, peak and arena to stdout; long tables are shortened unless ``is_full``."""
        print(analysis_text(self.snapshot, chosen_figures(calc_macs, calc_size), is_full))

    def output_model_analysis_to_csv(self, folder: FilePath, calc_macs: bool = False, calc_size: bool = False) -> None:
        """Write ``tensor_details.csv`` and ``execution_schedule_info.csv`` into a folder, created if missing."""
        write_csv(Path(folder), self.snapshot, chosen_figures(calc_macs, calc_size))

    def write_firmware(self, folder: FilePath, name: str = "model", memories: MemoriesDecision | None = None) -> None:
        """Write ``NAME_model.h``, ``NAME_model.cc`` and ``example.cc``: C++17 for a TFLM application. ``memories``,
        from :meth:`plan_two_memories`, adds the planner class. Raises ValueError if TFLM lacks a kernel."""
        write_texts(Path(folder), firmware_files(self.snapshot.with_data_inside(), name, memories))

    def analysis(self) -> dict[str, Any]:
        """The analysis as JSON-ready data; README describes its keys."""
        return analysis_json(self.snapshot)

    def plot_memory_usage(self, file: FilePath, other: TFLiteModel | None = None) -> None:
        """Draw every operator's working set, and subgraph 0 of ``other`` below."""
        plot_schedules(Path(file), self.schedules, other.schedules[0] if other else None)

    def plot_memory_map(
        self, file: FilePath, before: TFLiteModel | None = None, memories: MemoriesDecision | None = None
    ) -> None:
        """Draw TFLM's arena beside that of ``before``, with a line for ``memories``, from :meth:`plan_two_memories`."""
        models = [("before", before.snapshot), ("after", self.snapshot)] if before else [("arena", self.snapshot)]
        plot_arenas(Path(file), models, memories)

    optimize_memory = step(decide_order)
    fit = step(decide_fit)
    split_operators = step(decide_split)
    stages = step(decide_stages)
    lighten_operators = step(decide_lightening)
    repair_operators = step(decide_repair)
    use_integer_ports = step(decide_ports)
    plan_memory = step(decide_plan)
    plan_two_memories = step(decide_memories)
    cluster_weights = step(decide_clustering)
    compress_weights = step(decide_compression)

    def compute_best_peak_memory_usage(self, time_limit: float = TIME_LIMIT) -> OrderDecision:
        """The decision of :meth:`optimize_memory`, without changing the model."""
        return decide_order(self.snapshot, time_limit)[1]

    def verify_against(self, original: TFLiteModel, seed: int = 0) -> VerificationDecision:
        """Run this model and ``original`` on the same random inputs in TFLM and LiteRT and compare them bit by bit.
        Raises VerificationError if no installed runtime runs the original, or one that does cannot run this model."""
        return decide_verification(self.snapshot, original.snapshot, seed=seed)

    def compare_with(self, other: TFLiteModel, name: str = "other") -> ComparisonDecision:
        """Compare memory, file, operators, inputs and outputs with those of another model."""
        return ComparisonDecision(other_name=name, this=figures_of(self.snapshot), other=figures_of(other.snapshot))


def write_shared_firmware(folder: FilePath, models: Mapping[str, TFLiteModel]) -> None:
    """Write models, by name, as C++ with examples that run them in one arena: ``resident.cc`` and ``in_turn.cc``, as
    :class:`SharedArena` has it. Raises as :meth:`TFLiteModel.write_firmware` does."""
    write_texts(Path(folder), models_firmware({name: model.snapshot for name, model in models.items()}))


####################################################################################################
# Command line: where outputs go
####################################################################################################

STREAM = Path("-")  # stdin or stdout instead of a file


class UsageError(ValueError):
    """The command line asks for something impossible; the message says why in one line."""


def output_of(arguments: argparse.Namespace) -> Path | None:
    """Where the model goes. Raises UsageError before any work if an output cannot be written, or if it would overwrite
    the input or another output."""
    a, output = arguments, arguments.input if arguments.overwrite else arguments.output
    if a.overwrite and a.output and not _same_file(a.output, a.input):
        raise UsageError("--overwrite and -o name two different places: give one of them")
    if a.overwrite and (a.input == STREAM or is_stream(a.input)):
        raise UsageError(f"{a.input}: --overwrite needs a file")
    if not a.overwrite and output and _same_file(output, a.input):
        raise UsageError(f"{output}: the output is the input; add --overwrite to replace it")
    if output == a.json == STREAM:
        raise UsageError("the model and the JSON cannot both go to standard output")
    for option, folder in (("--csv", a.csv), ("--firmware", a.firmware)):
        if folder and folder.exists() and not folder.is_dir():
            raise UsageError(f"{folder}: {option} needs a folder, and this is a file")
    files = [file for file in (output, a.plot, a.memory_map, a.json) if file not in (None, STREAM)]
    inside = [a.csv / name for name in CSV_FILES] if a.csv else []
    inside += [a.firmware / name for name in firmware_names(title_of(a))] if a.firmware else []
    most = min(a.stages or (0 if a.fit is None else MAX_STAGES), MAX_PLACES + 1)
    inside += stage_paths(output, most) if output and output != STREAM else []
    inputs = [file for file in (a.compare, None if a.overwrite else a.input, *a.model[1:]) if file]
    written = [*files, *inside]
    for i, file in enumerate(written):
        if any(_same_file(file, other) for other in (*inputs, *written[:i])):
            raise UsageError(f"{file}: two files of this command have the same name")
        if file.is_dir():
            raise UsageError(f"{file}: is a directory; give a file name")
        if file in files and not file.parent.is_dir():
            raise UsageError(f"{file}: its folder does not exist")
        folder = next((parent for parent in file.absolute().parents if parent.exists()), file)
        if not is_stream(file) and not os.access(folder, os.W_OK | os.X_OK):
            raise UsageError(f"{file}: no permission to write into {folder}")
    return output


def stage_paths(output: Path, count: int) -> list[Path]:
    """Where the stages go: ``NAME.1.tflite`` and so on."""
    return [output.parent / f"{output.stem}.{i}.tflite" for i in range(1, count + 1)]


def title_of(arguments: argparse.Namespace) -> str:
    """The name of the model in the firmware."""
    return str((arguments.input if arguments.output in (None, STREAM) else arguments.output).stem)


def _same_file(a: Path, b: Path) -> bool:
    if STREAM in (a, b):
        return False
    return a.resolve() == b.resolve() or (a.exists() and b.exists() and a.samefile(b))


####################################################################################################
# Command line: one run
####################################################################################################

DONE, CHECK_FAILED, BAD_INPUT, INTERRUPTED = 0, 1, 2, 130  # exit codes
BRAKE = 2  # times the limit, by the clock, after which searches are cut short
OF_BOARD = True  # in place of a size that is not given
OPTIONAL = {"nargs": "?", "const": OF_BOARD}


@dataclass(frozen=True)
class Option:
    """A command-line option. A new step is a function Snapshot -> (Snapshot, Decision), a row here and one in STEPS."""

    flags: str
    help: str
    type: Callable[[str], Any] | None = None  # parses the value; None: a switch
    metavar: str | None = None
    needs: str = ""  # flags, at least one of which must be given too
    step: Any = None  # runs the step: (command, seconds) -> decision
    weight: int = 0  # of the step, when time is divided among steps
    more: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # for argparse
    alias: str = ""  # an older name, which still works

    @property
    def flag(self) -> str:
        return self.flags.split()[-1]

    @property
    def name(self) -> str:
        return self.flag.lstrip("-").replace("-", "_")


class Command:
    """One run of the command line: its arguments, models and results."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.arguments = arguments
        self.in_place = not arguments.no_sharing
        self.max_time = DEFAULT_MAX_TIME if arguments.max_time is None else arguments.max_time
        self.output = output_of(arguments)
        kernels = arguments.kernels, arguments.assume_kernels or (), arguments.tflm or "", arguments.keep or ()
        if arguments.input == STREAM:
            if sys.stdin is None:
                raise UsageError("standard input is closed")
            self.model = TFLiteModel(sys.stdin.buffer.read(), *kernels)
        else:
            if arguments.input.is_dir():
                raise UsageError(f"{arguments.input}: is a folder; convert a SavedModel to TensorFlow Lite first")
            self.model = TFLiteModel.load_from_file(arguments.input, *kernels)
        self.original = self.baseline = self.model.snapshot  # --verify compares with the baseline
        if arguments.verify and len(missing := missing_runtimes()) == len(PACKAGES):
            raise VerificationError("; ".join(missing.values()))
        self.results: list[Decision] = []
        self.other = None
        if arguments.compare:
            try:
                self.other = TFLiteModel.load_from_file(arguments.compare, arguments.kernels)
                _ = self.other.arena if arguments.memory_map else self.other.schedules
            except (ModelError, ArenaError) as error:
                raise UsageError(f"{arguments.compare}: {error}") from None

    def run(self, steps: Sequence[Option]) -> int:
        arguments, model = self.arguments, self.model
        _ = model.schedules  # recursive subgraphs fail here, before any note is printed
        budget = Budget(TIME_LIMIT if arguments.time_limit is None else arguments.time_limit)
        for number, option in enumerate(steps):
            still = sum(later.weight for later in steps[number:])
            with _elapsed_time(option.flags):
                self.results.append(option.step(self, budget.share(option.weight / (still or 1)).left))
        is_limited = arguments.max_arena is not None
        if arguments.memory_map or is_limited:
            _ = model.arena  # an unknown arena fails here, before any output is written
        failures = [result.failure for result in self.results if result.failure][:1]
        sources = self.firmware() if arguments.firmware and not failures else {}
        try:
            with contextlib.redirect_stdout(sys.stderr) if self.output == STREAM else _standard_output():
                self.report()
        except OSError as error:
            if self.output != STREAM or error.filename:  # else only stderr failed, and the model can still be written
                raise
        if Budget.is_interrupted or Budget.was_cut:
            _log(f"{'interrupted' if Budget.is_interrupted else 'cut short by the clock'}: this is the best so far")
        if not failures:
            self.write(sources)
            failures = self.exceeded() if is_limited else []
        for failure in failures:
            _log(f"check failed: {failure}")
        return CHECK_FAILED if failures else DONE

    # -- steps, in the order of the options ---------------------------------------------------------

    def cluster(self, seconds: float) -> Decision:
        a = self.arguments
        decision = self.model.cluster_weights(a.clusters or MAX_CODEBOOK, a.per_channel, a.min_sqnr)
        self.baseline = self.model.snapshot  # all other steps are lossless
        return decision

    def repair(self, seconds: float) -> Decision:
        decision = self.model.repair_operators(self.arguments.repair == "hybrid")
        if decision.floats:
            self.baseline = self.model.snapshot
        return decision

    def fit(self, seconds: float) -> Decision:
        a = self.arguments
        limit = None if a.fit is OF_BOARD else a.fit
        board, can_loop = BOARDS.get(a.board or ""), a.stripes != "unrolled"
        has_external = board is None or board.psram > 0
        return self.model.fit(limit, seconds, self.max_time, self.in_place, can_loop, has_external, can_stage=True)

    def stages(self, seconds: float) -> Decision:
        return self.model.stages(self.arguments.stages, seconds, self.max_time, self.in_place)

    def split(self, seconds: float) -> Decision:
        a, can_loop = self.arguments, self.arguments.plan and self.in_place
        stripes = (a.stripes or "auto") if can_loop else "unrolled"  # in a loop, tensors share memory by a plan
        return self.model.split_operators(self.max_time, seconds, a.optimize, None, stripes, a.plan, self.in_place)

    def compress(self, seconds: float) -> Decision:
        a = self.arguments
        return self.model.compress_weights(a.compress_ram or 0, a.plan, seconds, self.in_place)

    def plan(self, seconds: float) -> Decision:
        a, plan = self.arguments, self.model.plan_two_memories
        if a.memories:
            try:
                return plan(**a.memories, pins=dict(a.pin or ()), time_limit=seconds, in_place=self.in_place)
            except ValueError as error:
                raise UsageError(f"--pin: {error}") from None
        decision = self.model.plan_memory(seconds, self.in_place)
        with contextlib.suppress(ArenaError):
            decision = dataclasses.replace(decision, original=self.original.arena.head)
        return decision

    def verify(self, seconds: float) -> Decision:
        """Bit by bit against the model whose weights are those of this one; if they were clustered, also the distance
        to the input."""
        limit, model, stages = self.arguments.time_limit, self.model.snapshot, self.cut.models if self.cut else ()
        timeout = RUN_SECONDS if limit is None else limit
        compared = partial(decide_verification, model, timeout=timeout, stages=stages)
        distance = compared(self.original, "the input")
        if self.baseline is self.original:
            return distance
        if self.baseline is model and not stages:
            return dataclasses.replace(distance, may_differ=True)
        what = "the clustered" if self.result(ClusteringDecision) else "the repaired"
        return dataclasses.replace(compared(self.baseline, what), distance=distance)

    # -- results ------------------------------------------------------------------------------------

    def result(self, kind: type[D]) -> D | None:
        fitted = (step for result in self.results if isinstance(result, FitDecision) for step in result.steps)
        return next((result for result in (*self.results, *fitted) if isinstance(result, kind)), None)

    @property
    def memories(self) -> MemoriesDecision | None:
        memories = self.result(MemoriesDecision)
        return memories if memories and memories.is_divided else None

    @property
    def cut(self) -> StagesDecision | None:
        """The stages that take the place of the model, if any do."""
        stages = self.result(StagesDecision)
        return stages if stages and stages.models else None

    def exceeded(self) -> list[str]:
        """One sentence for a wrong memory plan, for a rejection, and for an arena above the limit."""
        limit, cut = self.arguments.max_arena, self.cut
        parts = cut.models if cut else (self.model.snapshot,)
        taken = (cut.after or 0) if cut else self.model.arena.reserve
        failures = [f"the memory plan in the file is wrong: {why}" for part in parts for why in part.arena.problems][:1]
        known = "give --assume-kernels NAME,... for kernels that your firmware links"
        failures += [f"TFLM rejects this model: {why} ({known})" for part in parts for why in part.refusals][:1]
        if taken > limit:
            way = "" if self.results else self.hint(limit)
            failures.append(f"the model needs an arena of {taken:,} B; the limit is {limit:,} B{way}")
        return failures

    def hint(self, limit: int) -> str:
        """What --fit would do about an exceeded limit, where a little work finds that."""
        _, fit = decide_fit(self.model.snapshot, limit, GLANCE_SECONDS, in_place=self.in_place)
        if fit.refusal or not fit.ways[fit.taken].fits:
            return f". Try --fit {size_text(limit)}"
        return f". --fit {size_text(limit)} gets it to {fit.after:,} B ({fit.ways[fit.taken].name})"

    def report(self) -> None:
        """Output everything but the model: notes, tables, JSON, CSV, plots."""
        a, model = self.arguments, self.model
        clustering = self.result(ClusteringDecision)
        for note in (*(clustering.notes if clustering else ()), *model.graph.notes):
            _log(f"note: {note}")
        with contextlib.suppress(ArenaError):
            for problem in model.arena.problems[:1]:
                _log(f"warning: the memory plan in the file is wrong: {problem}")
        compared = [] if self.other is None else [model.compare_with(self.other, a.compare.name)]
        results = [*self.results, *compared]
        if a.json != STREAM:
            print_text(self.text(results))
        if a.json:
            document = model.analysis() | {"cut_short": Budget.is_interrupted or Budget.was_cut}
            _write_json(a.json, document | {result.key: result.json() for result in results})
        if a.csv:
            model.output_model_analysis_to_csv(a.csv, a.calc_macs, a.calc_size)
            _log(f"wrote {a.csv}")
        if a.plot:
            model.plot_memory_usage(a.plot, self.other)
            _log(f"wrote {a.plot}")
        if a.memory_map:
            plot_arenas(a.memory_map, self.maps(), self.memories)
            _log(f"wrote {a.memory_map}")

    def text(self, results: Sequence[Decision]) -> str:
        """The report: what was done, then the model that resulted."""
        a, model, original = self.arguments, self.model.snapshot, self.original
        lines = [line for result in results for line in result.lines()]
        with contextlib.suppress(ArenaError):
            if model.arena.reserve != original.arena.reserve and not self.memories:
                end = " (not written)" if any(result.failure for result in results) else "."
                lines += [f"Arena to reserve: {saving(original.arena.reserve, model.arena.reserve)}{end}"]
            for name, size in model.reserve_by_library.items() if not self.memories else ():
                if size > (before := original.reserve_by_library[name]):
                    way = f"--kernels {name} changes the model for these"
                    lines += [f"Larger with {LIBRARIES[name].title}: {saving(before, size)}; {way}."]
        analysis = analysis_text(model, chosen_figures(a.calc_macs, a.calc_size), a.full, self.memories is not None)
        return "\n".join([*lines, *[""] * bool(lines), analysis]).lstrip("\n")

    def maps(self) -> list[tuple[str, Snapshot]]:
        """(title, snapshot) of each arena to draw, this model last."""
        now = self.model.snapshot
        if self.other is not None:
            return [(self.arguments.compare.name, self.other.snapshot), ("this model", now)]
        with contextlib.suppress(ArenaError):
            if now is not self.original and self.original.arena:
                return [("before", self.original), ("after", now)]
        return [("arena", now)]

    def firmware(self) -> dict[str, str]:
        """The C++ sources by file name. Raises UsageError if TFLM has no kernel for an operator."""
        model = self.model.snapshot.with_data_inside()
        try:
            if self.cut:
                return stages_firmware(self.cut, model, title_of(self.arguments))
            return firmware_files(model, title_of(self.arguments), self.memories)
        except ArenaError:
            raise
        except ValueError as error:
            raise UsageError(f"no firmware written: {error}") from None

    def write(self, sources: Mapping[str, str]) -> None:
        """Write the C++ firmware and the model."""
        folder, output, cut = self.arguments.firmware, self.output, self.cut
        if folder:
            write_texts(folder, sources)
            _log(f"wrote {folder}")
        if output == STREAM and cut:
            raise UsageError("stages are several files: give -o a name")
        if output and cut:
            models = [stage.with_data_inside().data for stage in cut.models]
            files = dict(zip(stage_paths(output, len(models)), models, strict=True))
            write_files(files)
            _log(f"wrote {', '.join(map(str, files))}")
        elif output:
            _write(output, self.model.to_bytes())
        elif not folder and (self.model.snapshot is not self.original or cut):
            _log("nothing was written: give -o FILE to save this model")


def _write(path: Path, data: Bytes) -> None:
    if path == STREAM:
        sys.stdout.buffer.write(data)
        sys.stdout.flush()
    else:
        write_files({path: data})
        _log(f"wrote {path}")


def _write_json(path: Path, document: Mapping[str, Any]) -> None:
    text = json.dumps(document, indent=2)
    if path == STREAM:
        print(text)
    else:
        _write(path, f"{text}\n".encode())


@contextlib.contextmanager
def _elapsed_time(what: str) -> Iterator[None]:
    """Show on a terminal, after a second, how long a step takes."""
    if sys.stderr is None or not sys.stderr.isatty():
        yield
        return
    import threading

    done, start = threading.Event(), time.monotonic()

    def show() -> None:
        while not done.wait(1.0):
            print(f"\r{what}: {time.monotonic() - start:.0f} s ", end="", file=sys.stderr, flush=True)

    shower = threading.Thread(target=show, daemon=True)
    shower.start()
    try:
        yield
    finally:
        done.set()
        shower.join()
        print("\r\033[K", end="", file=sys.stderr, flush=True)


@contextlib.contextmanager
def _standard_output() -> Iterator[None]:
    """Print to stdout, silently if the reader closes it, as ``| head`` does."""
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _log(text: str) -> None:
    if sys.stdout is not None:
        with _standard_output():  # flush stdout first, to keep both streams in order
            pass
    with contextlib.suppress(OSError, AttributeError):  # stderr may be closed
        print(shorten(text, 1000), file=sys.stderr)  # one line, even if names contain line breaks


####################################################################################################
# Command line: several models; boards
####################################################################################################


def show_models(arguments: argparse.Namespace, given: Mapping[str, Option]) -> int:
    """Report what several models need in one arena, and write them as C++."""
    a, models, sources = arguments, dict[str, TFLiteModel](), dict[str, str]()
    target = a.kernels, a.assume_kernels or (), a.tflm or ""
    allowed = "--input --kernels --board --tflm --assume-kernels --max-arena --json --firmware".split()
    if others := [*sorted(given.keys() - allowed), *["--board list"] * (a.board == "list")]:
        raise UsageError(f"{others[0]} takes one model, and {len(a.model)} are given")
    for path in a.model:
        try:
            if path.stem in models:
                raise ModelError("another model has this file name: rename one")
            models[path.stem] = model = TFLiteModel.load_from_file(path, *target)
            if why := (*model.snapshot.refusals, *model.arena.problems):
                raise ModelError(f"TFLM rejects this model: {why[0]}")
        except (ModelError, ArenaError) as error:
            raise UsageError(f"{path}: {error}") from None
    output_of(a)  # checks the places of all files
    try:
        if a.firmware:
            sources = models_firmware({name: model.snapshot for name, model in models.items()})
    except ValueError as error:
        raise UsageError(f"no firmware written: {error}") from None
    shared, keys = share_arena([model.arena for model in models.values()]), "reserve_bytes=reserve head_bytes=head"
    rows = {name: picked(m.arena, f"{keys} persistent_estimate_bytes=persistent") for name, m in models.items()}
    if a.json != STREAM:
        titles = ["Model", "Alone (B)", "Tensors and scratch (B)", "Persistent (B)"]
        cells = [[shorten(name), *(f"{size:,}" for size in row.values())] for name, row in rows.items()]
        text = (
            f"Arena to reserve (kTensorArenaSize) for {len(models)} models, with {LIBRARIES[a.kernels].title}:\n"
            f"- resident, each ready to run at any time: {shared.resident:,} B\n"
            f"- in turn, each set up anew, with its state, before it runs: {shared.in_turn:,} B\n"
            f"- apart, an arena for each: {shared.apart:,} B in all\n{text_table(titles, cells, left=['Model'])}"
        )
        with _standard_output():
            print_text(text)
    if a.json:
        document = {"tflite_tools_version": __version__, "kernels": a.kernels, "models": rows}
        with _standard_output():
            _write_json(a.json, document | {f"{name}_bytes": size for name, size in shared._asdict().items()})
    if a.firmware:
        write_texts(a.firmware, sources)
        _log(f"wrote {a.firmware}")
    if a.max_arena is None or shared.resident <= a.max_arena:
        return DONE
    _log(f"check failed: the models need an arena of {shared.resident:,} B; the limit is {a.max_arena:,} B")
    return CHECK_FAILED


def show_boards(arguments: argparse.Namespace, given: Collection[str]) -> int:
    """Print the boards and, with a model, if it runs there as it is and fitted."""
    if others := sorted({*given} - {"--board", "--input"}):
        raise UsageError(f"--board list takes at most a model: leave out {', '.join(others)}")
    titles, path = ["Name", "Board", "Kernels", "SRAM (KB)", "PSRAM (KB)", "Flash (KB)"], arguments.input
    rows = [[key, b.title, b.kernels, *(f"{n:,}" for n in (b.sram, b.psram, b.flash))] for key, b in BOARDS.items()]
    if path:
        titles[2:] = ["SRAM (B)", "As it is (B)", "--fit (B)", "Runs"]
        sizes = {}  # by kernels: bytes to reserve as it is, and fitted
        libraries = dict.fromkeys(board.kernels for board in BOARDS.values())
        for kernels in libraries:
            with _elapsed_time(kernels):
                decision = TFLiteModel.load_from_file(path, kernels).fit(time_limit=TIME_LIMIT / len(libraries))
            if decision.before is None or decision.after is None or decision.rejection:
                raise UsageError(f"{path}: {decision.refusal or f'TFLM rejects this model: {decision.rejection}'}")
            sizes[kernels] = decision.before, decision.after
        for row, board in zip(rows, BOARDS.values(), strict=True):
            sram, (before, after) = board.sram * 1024, sizes[board.kernels]
            runs = "as it is" if before <= sram else "with --fit" if after <= sram else "no"
            row[2:] = [f"{sram:,}", f"{before:,}", f"{after:,}", runs]
    with _standard_output():
        print(text_table(titles, rows, left=("Name", "Board", "Kernels", "Runs")))
        print("SRAM: the largest contiguous bank by the data sheet; stack and application share it")
    return DONE


####################################################################################################
# Command line: the options; one row each, with the step it runs
####################################################################################################

NEEDS_UNIT = 1024  # bytes below which a number without a unit is taken for a mistake


def _size(text: str) -> int:
    found = re.fullmatch(r"(\d+|\d*\.\d+)\s*([KMG]?)(I?B)?", text.strip().upper())
    size = float(found[1]) * 1024 ** ["", "K", "M", "G"].index(found[2]) if found else math.inf
    if not found or size > sys.maxsize:
        raise argparse.ArgumentTypeError(f"{text!r} is not a size such as 65536, 64KB or 0.5MB (KB: 1,024 bytes)")
    if 0 < size < NEEDS_UNIT and not (found[2] or found[3]):
        raise argparse.ArgumentTypeError(f"{text} means {text} bytes: write {text}KB, or {text}B if you mean that")
    return int(size)


def _memories(text: str) -> dict[str, int]:
    sizes = dict(part.split("=", 1) for part in text.split(",") if "=" in part)
    if not sizes or sizes.keys() - {"fast", "slow"} or "fast" not in sizes or len(sizes) != text.count(",") + 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not like fast=256KB,slow=8MB")
    return {name: _size(size) for name, size in sizes.items()}


def _matching(pattern: str, why: str, read: Callable[[str], Any]) -> Callable[[str], Any]:
    """A parser of texts that match; ``why`` tells what is wrong with others."""

    def parse(text: str) -> Any:
        if re.fullmatch(pattern, text, re.DOTALL):
            return read(text)
        raise argparse.ArgumentTypeError(f"{text!r} {why}")

    return parse


def _one_of(names: Collection[str]) -> Callable[[str], str]:
    """A parser of names, whatever their case."""

    def read(text: str) -> str:
        name = text.lower().replace("_", "-")
        if name in names:
            return name
        raise argparse.ArgumentTypeError(f"{text!r} is not known{_did_you_mean(name, names)}")

    return read


def _did_you_mean(text: str, names: Iterable[str]) -> str:
    import difflib

    near = difflib.get_close_matches(text, [*names], 1)
    return f"; did you mean {near[0]}?" if near else f"; known are {', '.join(names)}"


NUMBER = r"(\d+\.?\d*|\.\d+)([eE][+-]?\d\d?)?"
_number = partial(_matching, NUMBER, read=float)
_percent = _matching(NUMBER + "%?", "is not a percentage of 0 or more", lambda text: float(text.removesuffix("%")))
_count = _matching(r"\d*[1-9]\d*", "is not a whole number above 0", int)
_month = _matching(r"20\d\d-(0[1-9]|1[0-2])", "is not a month such as 2024-06", str)
_kept = _matching("[^=].*", "is not like NAME or NAME=INPUT", lambda text: text.partition("=")[::2])
_pin = _matching(".+=(fast|slow)", "is not like NAME=fast or NAME=slow", lambda text: tuple(text.rsplit("=", 1)))
_model = _matching(r"(?i)(?!.*[^/]\.(h|c|cc|cpp)$).*", "would be a .tflite file: --firmware FOLDER writes C++", Path)
_folder = _matching(r"(?i)(?!.*[^/]\.(csv|png|svg|pdf)$).*", "looks like a file: give the name of a folder", Path)
_picture = _matching(r"(?i).*[^/]\.(png|svg|pdf)", "must end in .png, .svg, .pdf", Path)


OPTIONS = {
    "": [Option("-i --input", "the same as MODEL; '-' is stdin", Path, "FILE")],
    "does it fit": [
        Option("--max-arena", "exit with 1 if the arena to reserve exceeds this, or TFLM rejects the model; without "
               "SIZE, the SRAM of the board", _size, "SIZE", more=OPTIONAL),
        Option("--assume-kernels", "operators for which your firmware links kernels of its own",
               lambda text: tuple(filter(None, text.split(","))), "NAME,..."),
        Option("--verify", "compare the outputs with the input model's, bit by bit, in TFLM and LiteRT",
               step=Command.verify),
    ],
    "make it fit": [
        Option("--fit", "take the cheapest lossless way that fits this arena; without SIZE, the SRAM of the board, "
               "or the smallest arena", _size, "SIZE", step=Command.fit, weight=8, more=OPTIONAL),
        Option("--repair", "replace what TFLM rejects by exact equivalents; with 'hybrid', also integer weights of "
               "float operators, which is not exact", _one_of(["exact", "hybrid"]), "exact|hybrid", step=Command.repair,
               more={"nargs": "?", "const": "exact"}),
        Option("--stages", "cut the model into at most K parts that run one after the other in one arena (default: "
               f"{MAX_STAGES}); writes NAME.1.tflite, NAME.2.tflite, ...", _count, "K", step=Command.stages, weight=8,
               more={"nargs": "?", "const": MAX_STAGES}),
        Option("--lighten", "cheaper equivalents: operators with the same results that keep less memory in TFLM",
               step=lambda command, _: command.model.lighten_operators(command.arguments.plan, command.in_place)),
        Option("--split", "run regions of the model stripe by stripe where that needs less memory",
               step=Command.split, weight=6),
        Option("--stripes", f"their form: {', '.join(STRIPES_AS)} (default: auto with --plan or --fit)",
               _one_of(STRIPES_AS), "FORM", needs="--split --fit"),
        Option("--max-time", f"how many more instructions stripes may take (estimated; default: {DEFAULT_MAX_TIME:g})",
               _percent, "PERCENT", needs="--split --fit --stages", alias="--max-macs"),
        Option("--optimize", "reorder the operators for the smallest peak memory use", weight=2,
               step=lambda command, t: command.model.optimize_memory(t, command.arguments.plan, command.in_place)),
        Option("--plan", "fix the smallest arena layout in the file, for TensorFlow Lite Micro",
               step=Command.plan, weight=1),
        Option("--no-sharing", "no plans in which an output overwrites an input that ends there",
               needs="--plan --fit --stages", alias="--no-in-place"),
        Option("--integer-io", "remove the conversions of floats at inputs and outputs, which your code does instead",
               step=lambda command, _: command.model.use_integer_ports(command.arguments.plan, command.in_place)),
        Option("--time-limit", f"effort of all searches together, in seconds of work (default: {TIME_LIMIT:g}); also "
               "the seconds that --verify may take",
               _number("is not a number of seconds"), "SECONDS"),
    ],
    "my device": [
        Option("--board", "a board, which sets --kernels and sizes; 'list' shows all of them and, with a model, which "
               "can run it", _one_of([*BOARDS, "list"]), "NAME"),
        Option("--kernels", f"what TFLM runs the model with: {', '.join(LIBRARIES)} (default: {REFERENCE.name})",
               _one_of(LIBRARIES), "NAME"),
        Option("--tflm", "month of the TFLM that you build, which may lack newer kernels", _month, "YYYY-MM"),
        Option("--keep", "a tensor that plans keep after an inference or, with '=', an output that is the next input, "
               "in its place; Ids or whole names, repeatable", _kept, "NAME[=INPUT]",
               more={"action": "append"}),
        Option("--memories", "plan two memories: most of what an inference moves in the fast one, the rest in the slow "
               "one; without sizes, those of the board", _memories, "fast=SIZE[,slow=SIZE]", more=OPTIONAL),
        Option("--pin", "--memories: where a tensor has to be, by Id or whole name; repeatable", _pin, "NAME=fast|slow",
               needs="--memories", more={"action": "append"}),
    ],
    "weights": [
        Option("--clusters", "give every weight matrix at most N distinct values", _count, "N", step=Command.cluster),
        Option("--min-sqnr", "the fewest distinct values per matrix that keep this quality",
               _number("is not a number of decibels"), "DB", step=Command.cluster),
        Option("--per-channel", "cluster per output channel where the quantisation is per channel",
               needs="--clusters --min-sqnr"),
        Option("--compress", "weights with few values as code-books that TFLM decodes (smaller file)",
               step=Command.compress, weight=1),
        Option("--compress-ram", "--compress: the arena to reserve may grow by this", _size, "SIZE",
               needs="--compress"),
    ],
    "write": [
        Option("-o --output", "write the resulting model here; '-' is stdout", _model, "FILE"),
        Option("--overwrite", "write the resulting model over the input", alias="--in-place"),
        Option("--firmware", "write the model as C++ for TFLM, with its arena and operators", _folder, "FOLDER"),
    ],
    "reports": [
        Option("--calc-macs", "add the multiply-accumulates and estimated instructions of every operator"),
        Option("--calc-size", "add the parameter bytes of every operator"),
        Option("--full", "show all rows of the tables, however many they are"),
        Option("--csv", "write the tables as CSV files into this folder", _folder, "FOLDER"),
        Option("--json", "write the analysis as JSON; '-' prints it instead of the tables", Path, "FILE"),
        Option("--compare", "show the resulting model beside another (.tflite)", Path, "OTHER"),
        Option("--plot", "draw the memory use of every operator (png, svg or pdf)", _picture, "FILE"),
        Option("--memory-map", "draw TFLM's arena (png, svg or pdf)", _picture, "FILE"),
        Option("--inline-buffers", argparse.SUPPRESS),  # kept for old scripts: data moves on its own
    ],
}  # fmt: skip
ALL_OPTIONS = [option for options in OPTIONS.values() for option in options]
STEPS = """--repair --clusters --min-sqnr --integer-io --stages --fit --lighten --split --optimize --compress --plan
    --verify""".split()  # in their order
EXAMPLES = """\
examples:
  tflite-tools model.tflite                               how much RAM, and why
  tflite-tools model.tflite --fit 64KB -o smaller.tflite  make it fit
  tflite-tools model.tflite --max-arena 64KB              a check for CI
exit codes: 0 done, 1 a check failed, 2 bad input or usage, 130 interrupted"""


class _Once(argparse.Action):
    """Stores a value, and rejects a second one."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        if getattr(namespace, self.dest) is not None:
            parser.error(f"{option_string} is given twice")
        setattr(namespace, self.dest, values)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> Any:
        """Exit with one line, as for all other errors; --help shows the usage."""
        if found := re.match(r"unrecognized arguments: (--\S+)", message):
            message += _did_you_mean(found[1], [o.flag for o in ALL_OPTIONS]).partition("; known")[0]
        self.exit(BAD_INPUT, f"{self.prog}: error: {message}\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="tflite-tools",
        usage="%(prog)s MODEL [options]\n       %(prog)s MODEL MODEL [...]   several models in one arena",
        description="How much RAM a TensorFlow Lite model needs on a microcontroller, and how\nto need less.",
        epilog=EXAMPLES,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    parser.add_argument("model", type=Path, nargs="*", metavar="MODEL", help=argparse.SUPPRESS)
    for title, options in OPTIONS.items():
        group = parser.add_argument_group(title) if title else parser
        for o in options:
            how = {"type": o.type, "metavar": o.metavar, "action": _Once} if o.type else {"action": "store_true"}
            group.add_argument(*o.flags.split(), help=o.help, **{**how, **o.more})
            if o.alias:
                group.add_argument(o.alias, dest=o.name, help=argparse.SUPPRESS, **how)
    return parser


def check_options(arguments: argparse.Namespace) -> dict[str, Option]:
    """Set implied options; the given and implied ones by flag. Raises UsageError if some do nothing or conflict."""
    if arguments.model and arguments.input:
        raise UsageError(f"two models are given, {arguments.model[0]} and {arguments.input}: give one")
    arguments.input = arguments.input or next(iter(arguments.model), None)
    if arguments.input is None and arguments.board != "list":
        raise UsageError("no model is given: tflite-tools MODEL; --help shows all options")
    board = BOARDS.get(arguments.board or "")
    for name in ("max_arena", "memories", "fit"):
        if getattr(arguments, name) is OF_BOARD and board:
            sizes = {"fast": board.sram * 1024} | ({"slow": board.psram * 1024} if board.psram else {})
            setattr(arguments, name, sizes if name == "memories" else sizes["fast"])
        elif getattr(arguments, name) is OF_BOARD and name != "fit":
            raise UsageError(f"--{name.replace('_', '-')} needs a size, or --board NAME")
    arguments.plan |= arguments.memories is not None
    values = vars(arguments)
    given = {o.flag: o for o in ALL_OPTIONS if values[o.name] is not None and values[o.name] is not False}  # 0 is given
    arguments.kernels = arguments.kernels or (board.kernels if board else REFERENCE.name)
    for flag, option in given.items():
        if option.needs and not given.keys() & set(option.needs.split()):
            raise UsageError(f"{flag} does nothing on its own: add {option.needs.replace(' ', ' or ')}")
    for name, where in arguments.pin or ():
        if where != dict(arguments.pin)[name]:
            raise UsageError(f"--pin: {name} is pinned to both memories")
    if arguments.memories and "--max-arena" in given:
        raise UsageError("--memories has limits of its own: leave out --max-arena")
    for flag in [flag for flag in ("--stages", "--fit") if flag in given]:
        if others := given.keys() & {"--fit", "--lighten", "--split", "--optimize", "--plan", "--compress"} - {flag}:
            names = {"--memories" if other == "--plan" and arguments.memories else other for other in others}
            raise UsageError(f"{flag} chooses the steps itself: leave out {', '.join(sorted(names))}")
    if "--stages" in given and arguments.output == STREAM:
        raise UsageError("stages are several files: give -o a name")
    if arguments.stripes == "loop" and "--fit" in given:
        raise UsageError("--fit takes loops where they are best: leave out --stripes loop")
    if arguments.stripes == "loop" and not arguments.plan:
        raise UsageError("loops need a memory plan in the file: add --plan")
    if arguments.stripes in ("loop", "auto") and arguments.no_sharing:
        raise UsageError("the tensors of a loop share memory: leave out --no-sharing, or give --stripes unrolled")
    if arguments.clusters and arguments.min_sqnr is not None:
        raise UsageError("--clusters and --min-sqnr both say how many values: give one of them")
    return given


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns its exit code: 0 done, 1 a check failed, 2 bad input or usage, 130 interrupted."""
    gc.set_threshold(50_000, 20, 100)  # models are many small objects without cycles: this saves a quarter of the time
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError, OSError):
            stream.reconfigure(errors="replace")  # type: ignore[union-attr]  # names may hold characters it cannot show
    if sys.stdout is None:
        _log("tflite-tools: error: standard output is closed; to see nothing, send it to the null device")
        return BAD_INPUT
    name = "the command line"
    try:
        arguments = _parser().parse_intermixed_args(argv)
        given = check_options(arguments)
        name = "standard input" if arguments.input == STREAM else str(arguments.input)
        with keeping_the_best(BRAKE * (math.inf if arguments.time_limit is None else arguments.time_limit)):
            if len(arguments.model) > 1:
                return show_models(arguments, given)
            if arguments.board == "list":
                return show_boards(arguments, given)
            return Command(arguments).run([given[flag] for flag in STEPS if flag in given])
    except SystemExit as stop:  # of the parser
        return int(stop.code or DONE)
    except KeyboardInterrupt:
        _log("tflite-tools: interrupted; nothing was written")
        return INTERRUPTED
    except UsageError as error:
        message = str(error)
    except (ModelError, ArithmeticError) as error:
        message = f"{name}: {error}"
    except ArenaError as error:
        message = f"{name}: the arena of TFLM is not known, since {error}"
    except (OSError, RuntimeError) as error:  # RuntimeError: a loop of symbolic links, before Python 3.13
        strerror = getattr(error, "strerror", None)
        message = f"{getattr(error, 'filename', None) or 'standard output'}: {strerror}" if strerror else str(error)
    except VerificationError as error:
        _log(f"tflite-tools: check failed: {name}: not verified: {error}")
        return CHECK_FAILED
    except MemoryError:
        message = f"{name}: not enough memory for this model"
    _log(f"tflite-tools: error: {message}")
    return BAD_INPUT


if __name__ == "__main__":
    if sys.argv[1:2] == [WORKER]:
        run_model(*sys.argv[2:])
    else:
        sys.exit(main())
