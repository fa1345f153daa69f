"""Operators: each column of the table against figures from elsewhere, with a case for every row that says something.

What TFLM asks for and keeps is as its sources and sizeof() in a 32-bit build say; multiplications are counted by loops;
which rows a window touches is what LiteRT says.
"""

from __future__ import annotations

import contextlib
import itertools
from typing import Any

import numpy as np
import pytest
import single_operator_models as kernels
from ai_edge_litert import schema_py_generated as schema
from flatbuffers import flexbuffers
from layouts import aligned
from model_builder import Builder, ModelBuilder
from runtimes import run_in_wheel, run_litert
from single_operator_models import options
from spatial_nets import Net

from tflite_tools import (
    BITS_32,
    BITS_64,
    CUSTOM_KINDS,
    ELEMENT_TYPES,
    KINDS,
    ArenaError,
    CutRule,
    Kind,
    ModelGraph,
    Operator,
    Pads,
    RowRule,
    Subgraph,
    Target,
    TFLiteModel,
    Tflm,
    analyse_arena,
    arena_buffers,
    layout,
    operator_persistent_bytes,
    ordering_problem,
    persistent_bytes,
    read_model,
    refusals,
    row_rule,
    scratch_requests,
)

SAME, VALID = schema.Padding.SAME, schema.Padding.VALID


def custom(**fields: int | str) -> dict[str, Any]:
    return {"customOptions": np.frombuffer(flexbuffers.Dumps(fields), np.uint8)}


def W(*shape: int) -> np.ndarray:
    return np.ones(shape, np.int8)


def I(*values: int) -> np.ndarray:  # noqa: E743
    return np.array(values, np.int32)


def T(shape: tuple[int, ...], dtype: str = "INT8", **fields: Any) -> dict[str, Any]:
    return {"shape": shape, "dtype": dtype, **fields}


def single_bytes(
    kind: str, inputs: list[Any], output: Any = (1,), given: Any = None, dtype: str = "INT8", **fields: Any
) -> bytes:
    """A file with one operator. A tensor is a shape, what T() says, an array for a constant, or None if left out."""
    b = Builder()

    def tensor(what: Any) -> int:
        if isinstance(what, np.ndarray):
            return b.constant(what)
        return -1 if what is None else b.tensor(**(what if isinstance(what, dict) else T(what, dtype)))

    numbers, result = [tensor(what) for what in inputs], tensor(output)
    b.op(kind, numbers, [result], given, **fields)
    return b.build([], [result])


def single(*operator: Any, **fields: Any) -> ModelGraph:
    """What is read of that file."""
    return read_model(single_bytes(*operator, **fields))


def macs(*operator: Any) -> int:
    return TFLiteModel(single_bytes(*operator)).analysis()["subgraphs"][0]["operators"][0]["macs"]


def only(graph: ModelGraph) -> tuple[Subgraph, Operator]:
    return graph.subgraphs[0], graph.subgraphs[0].operators[0]


# -- element types ---------------------------------------------------------------------------------

ELEMENTS = {  # bits in a file, bytes in TFLM (memory_helpers.cc)
    "FLOAT32": (32, 4), "FLOAT16": (16, 2), "INT32": (32, 4), "UINT8": (8, 1), "INT64": (64, 8), "STRING": (None, None),
    "BOOL": (8, 1), "INT16": (16, 2), "COMPLEX64": (64, 8), "INT8": (8, 1), "FLOAT64": (64, 8), "COMPLEX128": (128, 16),
    "UINT64": (64, 8), "RESOURCE": (32, 4), "VARIANT": (None, None), "UINT32": (32, 4), "UINT16": (16, 2),
    "INT4": (4, 1), "BFLOAT16": (16, 2), "INT2": (2, None), "UINT4": (4, None), "FLOAT8_E4M3FN": (8, None),
    "FLOAT8_E5M2": (8, None),
}  # fmt: skip


@pytest.mark.parametrize("dtype", ELEMENTS)
def test_element_types_are_packed_in_the_file_and_not_in_tflm(dtype: str):
    bits, in_tflm = ELEMENTS[dtype]
    graph = single("RELU", [], T((3, 5), dtype))
    (tensor,) = graph.subgraphs[0].tensors
    assert (tensor.dtype, tensor.bytes) == (dtype, None if bits is None else (15 * bits + 7) // 8)
    if in_tflm is not None:
        assert [buffer.bytes for buffer in arena_buffers(graph)] == [15 * in_tflm]
        return
    with pytest.raises(ArenaError, match=dtype):
        arena_buffers(graph)


# -- options and callees ---------------------------------------------------------------------------

STRIDES = {"Padding": VALID, "StrideH": 2, "StrideW": 3}
CONV = STRIDES | {"DilationHFactor": 4, "DilationWFactor": 5, "FusedActivationFunction": 1}
POOL = STRIDES | {"FilterHeight": 6, "FilterWidth": 7}
OPTIONS = {
    "FULLY_CONNECTED": ("FullyConnected", {"FusedActivationFunction": 3, "KeepNumDims": True}),
    "TRANSPOSE_CONV": ("TransposeConv", {"Padding": 1, "StrideH": 2, "StrideW": 3}),
    "DEPTH_TO_SPACE": ("DepthToSpace", {"BlockSize": 3}),
    "SPACE_TO_DEPTH": ("SpaceToDepth", {"BlockSize": 3}),
    "RESIZE_BILINEAR": ("ResizeBilinear", {"AlignCorners": True, "HalfPixelCenters": False}),
    "STRIDED_SLICE": ("StridedSlice", {"BeginMask": 1, "EndMask": 2, "EllipsisMask": 3, "NewAxisMask": 4,
                                       "ShrinkAxisMask": 5, "Offset": True}),
    "CONV_2D": ("Conv2D", CONV), "DEPTHWISE_CONV_2D": ("DepthwiseConv2D", CONV),
    "MAX_POOL_2D": ("Pool2D", POOL), "AVERAGE_POOL_2D": ("Pool2D", POOL), "L2_POOL_2D": ("Pool2D", POOL),
    "BATCH_MATMUL": ("BatchMatMul", {"AdjX": True, "AdjY": False}), "SVDF": ("SVDF", {"Rank": 3}),
    "CONCATENATION": ("Concatenation", {"Axis": -2}), "GATHER": ("Gather", {"Axis": -1, "BatchDims": 1}),
    "SOFTMAX": ("Softmax", {"Beta": 0.5}),
    "RESIZE_NEAREST_NEIGHBOR": ("ResizeNearestNeighbor", {"AlignCorners": True}),
    "VAR_HANDLE": ("VarHandle", {"Container": b"box", "SharedName": b"memory"}),
}  # fmt: skip
TWO_CALLEES = [("IF", "If", "then", "else"), ("WHILE", "While", "cond", "body")]
TWO_CALLEES += [("STABLEHLO_WHILE", "StablehloWhile", "cond", "body")]
CALLEES = {  # in the order in which they run
    kind: (table, {f"{a}SubgraphIndex": 2, f"{b}SubgraphIndex": 1}) for kind, table, a, b in TWO_CALLEES
} | {
    "CALL": ("Call", {"subgraph": 2}), "CALL_ONCE": ("CallOnce", {"initSubgraphIndex": 2}),
    "STABLEHLO_COMPOSITE": ("StableHLOComposite", {"decompositionSubgraphIndex": 2}),
    "STABLEHLO_REDUCE": ("StablehloReduce", {"bodySubgraphIndex": 2}),
    "STABLEHLO_REDUCE_WINDOW": ("StablehloReduceWindow", {"bodySubgraphIndex": 2}),
    "STABLEHLO_SORT": ("StablehloSort", {"comparatorSubgraphIndex": 2}),
    "STABLEHLO_SCATTER": ("StablehloScatter", {"updateComputationSubgraphIndex": 2}),
}  # fmt: skip


@pytest.mark.parametrize("kind", [*OPTIONS, *CALLEES])
def test_options_and_callees_are_read(kind: str):
    table, fields = (OPTIONS | CALLEES)[kind]
    model = ModelBuilder()
    b, *others = (Builder(model) for _ in range(3))
    b.op(kind, [], [], options(table, **{name[0].lower() + name[1:]: value for name, value in fields.items()}))
    b.op(kind, [], [])
    for each in (b, *others):
        each.finish([], [])
    given, none = read_model(model.build()).subgraphs[0].operators
    expected = (fields, ()) if kind in OPTIONS else ({}, tuple(fields.values()))
    assert [(given.options, given.callees), (none.options, none.callees)] == [expected, ({}, ())]


# -- weights ---------------------------------------------------------------------------------------

LSTM_MATRICES = [*range(1, 9), 16]
WEIGHTS = {  # number of inputs, and which of them are weight matrices, by the comments in LiteRT's kernels
    "CONV_2D": (3, [1]), "DEPTHWISE_CONV_2D": (3, [1]), "TRANSPOSE_CONV": (4, [1]), "CONV_3D": (3, [1]),
    "CONV_3D_TRANSPOSE": (4, [1]), "FULLY_CONNECTED": (3, [1]), "BATCH_MATMUL": (2, [0, 1]), "GATHER": (2, [0]),
    "EMBEDDING_LOOKUP": (2, [1]), "SVDF": (5, [1, 2]), "RNN": (5, [1, 2]), "UNIDIRECTIONAL_SEQUENCE_RNN": (5, [1, 2]),
    "BIDIRECTIONAL_SEQUENCE_RNN": (12, [1, 2, 5, 6, 10, 11]),
    "LSTM": (24, LSTM_MATRICES), "UNIDIRECTIONAL_SEQUENCE_LSTM": (24, LSTM_MATRICES),
    "BIDIRECTIONAL_SEQUENCE_LSTM": (48, LSTM_MATRICES + [17 + i for i in LSTM_MATRICES] + [*range(40, 48)]),
}  # fmt: skip


@pytest.mark.parametrize("kind", WEIGHTS)
def test_weights_are_exactly_these_inputs_if_they_are_constant_matrices(kind: str):
    count, positions = WEIGHTS[kind]
    decision = TFLiteModel(single_bytes(kind, [W(2, 3) for _ in range(count)])).cluster_weights()
    assert [(weight.operator, weight.name) for weight in decision.weights] == [(kind, f"t{i}") for i in positions]
    assert decision.notes == ()
    for others in ([W(6) for _ in range(count)], [(2, 3)] * count):
        decision = TFLiteModel(single_bytes(kind, others)).cluster_weights()
        assert (decision.weights, decision.notes) == ((), ())


# -- multiply-accumulates --------------------------------------------------------------------------

GATES = [*[W(5, 3)] * 4, *[W(5, 4)] * 4]  # of 5 units that see 3 inputs and a projection to 4
LSTM = [*GATES, *[W(5)] * 7, W(4, 5), W(4), T((2, 4), isVariable=True), T((2, 5), "INT16", isVariable=True)]
STEP = [(4, 5, 3), (4, 5, 4), (4, 5)]  # the gates from both sides, and the projection
MACS: list[Any] = [  # the loops around one multiplication
    ("CONV_2D", [(1, 6, 5, 3), W(7, 3, 2, 3)], (1, 4, 4, 7), None, [(4, 4, 7, 3, 2, 3)]),
    ("DEPTHWISE_CONV_2D", [(1, 6, 5, 3), W(1, 3, 2, 6)], (1, 4, 4, 6), None, [(4, 4, 6, 3, 2)]),
    ("TRANSPOSE_CONV", [W(4), W(7, 3, 2, 5), (1, 4, 6, 5)], (1, 6, 7, 7), None, [(4, 6, 5, 7, 3, 2)]),
    ("CONV_3D", [(1, 4, 5, 6, 2), W(2, 3, 4, 2, 7)], (1, 3, 3, 3, 7), None, [(3, 3, 3, 7, 2, 3, 4, 2)]),
    ("FULLY_CONNECTED", [(3, 8), W(5, 8)], (3, 5), None, [(3, 5, 8)]),
    ("BATCH_MATMUL", [(2, 3, 4), (2, 4, 5)], (2, 3, 5), None, [(2, 3, 5, 4)]),
    ("BATCH_MATMUL", [(2, 4, 3), (2, 4, 5)], (2, 3, 5), options("BatchMatMul", adjX=True), [(2, 3, 5, 4)]),
    ("BATCH_MATMUL", [(2, 3, 4), (2, 5, 4)], (2, 3, 5), options("BatchMatMul", adjY=True), [(2, 3, 5, 4)]),
    *((kind, [(1, 6, 6, 4)], (1, 4, 5, 4), options("Pool2D", filterHeight=3, filterWidth=2), [(4, 5, 4, 3, 2)])
      for kind in ("MAX_POOL_2D", "AVERAGE_POOL_2D", "L2_POOL_2D")),
    ("SVDF", [(1, 8), W(6, 8), W(6, 5), W(3)], (1, 3), options("SVDF", rank=2), [(6, 8), (6, 5)]),
    pytest.param("SVDF", [(2, 8), W(6, 8), W(6, 5)], (2, 3), None, [(2, 6, 8), (2, 6, 5)], id="batch"),
    ("RNN", [(2, 3), W(5, 3), W(5, 5), W(5)], (2, 5), None, [(2, 5, 3), (2, 5, 5)]),
    ("UNIDIRECTIONAL_SEQUENCE_RNN", [(6, 2, 3), W(5, 3), W(5, 5)], (6, 2, 5), None, [(6, 2, 5, 3), (6, 2, 5, 5)]),
    ("LSTM", [(2, 3), *LSTM], (2, 4), None, [(2, *loop) for loop in STEP]),
    ("UNIDIRECTIONAL_SEQUENCE_LSTM", [(6, 2, 3), *LSTM], (6, 2, 4), None, [(6, 2, *loop) for loop in STEP]),
    ("ADD", [(2, 3), (3,)], (2, 3), None, [(2, 3)]), ("ADD_N", [(2, 3)] * 4, (2, 3), None, [(2, 3)] * 3),
    ("MEAN", [(1, 4, 5, 6), W(2)], (1, 6), None, [(4, 5, 6)]),
]  # fmt: skip
MOVES = "RESHAPE TRANSPOSE CONCATENATION PAD GATHER EMBEDDING_LOOKUP RELU SOFTMAX BATCH_TO_SPACE_ND Own".split()


@pytest.mark.parametrize(("kind", "inputs", "output", "given", "loops"), MACS)
def test_macs_are_as_many_as_the_loops_run(kind: str, inputs: list[Any], output: Any, given: Any, loops: list[Any]):
    counted = sum(1 for loop in loops for _ in itertools.product(*map(range, loop)))
    assert macs(kind, inputs, output, given) == counted


@pytest.mark.parametrize(
    ("kind", "inputs"),
    [
        *((kind, [(2, 3), W(5, 3)]) for kind in MOVES),
        ("CONV_2D", [(1, 4, 4, 2)]), ("CONV_2D", [(1, 4, 4, 2), None]), ("CONV_2D", [(1, 4, 4, 2), W(2, 2, 2)]),
        ("CONV_2D", [(1, -1, 4, 2), W(2, 2, 2, 2)]), ("DEPTHWISE_CONV_2D", [(1, 4, 4, 2), W(2, 2)]),
        ("TRANSPOSE_CONV", [W(4), W(2, 2, 2, 2)]), ("CONV_3D", [(1, 4, 4, 4, 2), W(2, 2, 2, 2)]),
        ("FULLY_CONNECTED", [(1, 4), W()]), ("BATCH_MATMUL", [(4,), (4,)]), ("BATCH_MATMUL", [None, (4, 4)]),
        ("RNN", [None, W(2, 2), W(2, 2)]), ("ADD", []), ("ADD_N", []), ("MAX_POOL_2D", []), ("MEAN", [None, W(1)]),
    ],
)  # fmt: skip
def test_what_moves_data_or_is_damaged_multiplies_nothing(kind: str, inputs: list[Any]):
    assert macs(kind, inputs, (1, 4, 4, 2)) == 0


# -- scratch ---------------------------------------------------------------------------------------

FILTERED = ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED")
UNPACKED = (4, 3, 3, 2)
UP = [T((4,), "INT32"), (4, 2, 2, 3), (1, 2, 2, 3)]  # what TRANSPOSE_CONV reads
STATES = [T((3, 7))] + [None] * 17 + [(2, 5)]
BOXES = [(1, 7, 4), (1, 8, 5), (8, 4)]
SCRATCH: list[tuple[str, str, list[Any], Any, dict[str, Any], list[int]]] = [
    *((kind, "INT8", [(1, 9), T(UNPACKED, "INT4")], (1,), {}, [72]) for kind in FILTERED),
    *((kind, "INT8", [(1, 9), UNPACKED], (1,), {}, []) for kind in FILTERED),
    *(("TRANSPOSE_CONV", dtype, UP, (1, 4, 4, 4), {}, expected)
      for dtype, expected in (("INT8", [4 * 64]), ("INT16", [8 * 64]), ("FLOAT32", []))),
    ("TRANSPOSE_CONV", "INT16", [*UP, T((4,), "INT64")], (1, 4, 4, 4), {}, [8 * 64]),
    ("TRANSPOSE_CONV", "INT16", [*UP, T((4,), "INT16")], (1, 4, 4, 4), {}, [8 * 64, 8 * 4]),
    *((k, d, [(2, 3, 5), W(2)], (3,), {}, [4 * 3, 4 * 3, 4 * 2]) for k in ("MEAN", "SUM") for d in ("INT8", "INT16")),
    *((k, "FLOAT32", [(2, 3, 5), W(2)], (3,), {}, [4 * 3, 4 * 2]) for k in ("MEAN", "SUM")),
    *((k, "INT8", [(2, 3, 5), W(2)], (3,), {}, [4 * 3, 4 * 2]) for k in ("REDUCE_MAX", "REDUCE_MIN", "REDUCE_ALL")),
    ("MIRROR_PAD", "INT8", [(2, 3, 5), W(3, 2)], (4, 5, 7), {}, [4 * 3, 4 * 3]),
    *(("ADD_N", d, [(9,)] * 3, (9,), {}, [4 * 3]) for d in ("INT8", "FLOAT32")),
    ("SVDF", "INT8", [(2, 8), (6, 8)], (2, 2), {"given": options("SVDF", rank=3)}, [4 * 2 * 6, 4 * 2 * 2]),
    ("SVDF", "FLOAT32", [(2, 8), (6, 8)], (2, 2), {"given": options("SVDF", rank=3)}, [4 * 2 * 6]),
    ("UNIDIRECTIONAL_SEQUENCE_LSTM", "INT8", [*STATES, T((2, 6), "INT16")], (1,), {}, [2 * 5 * 2] * 4),
    ("UNIDIRECTIONAL_SEQUENCE_LSTM", "FLOAT32", [*STATES, (2, 5)], (1,), {}, [2 * 5 * 4] * 4),
    *(("TFLite_Detection_PostProcess", "FLOAT32", BOXES, (1,), custom(num_classes=4, max_detections=m),
       [7, 7 * 16, 8 * 5 * 4, 7 * 4, 7 * 4, m * 7 * 4, m * 7 * 4, 7 * 4, m * 7 * 4, larger * 7 * 4, smaller * 7 * 4])
      for m, larger, smaller in ((3, 4, 3), (9, 9, 7))),
    *(("SignalRfft", d, [(60,)], (66,), custom(fft_length=64), [64 * size])
      for d, size in (("INT16", 2), ("INT32", 4), ("FLOAT32", 4))),
]  # fmt: skip
ANYTHING = [(2, 2, 2, 2)] * 24  # enough inputs for any kind


@pytest.mark.parametrize(("kind", "dtype", "inputs", "output", "more", "expected"), SCRATCH)
def test_scratch_is_what_the_reference_kernel_requests(
    kind: str, dtype: str, inputs: list[Any], output: Any, more: dict[str, Any], expected: list[int]
):
    assert scratch_requests(*only(single(kind, inputs, output, dtype=dtype, **more))) == expected


@pytest.mark.parametrize(
    ("kind", "inputs", "more"),
    [
        ("TRANSPOSE_CONV", [*UP[:2], None], {}), ("MEAN", [(2, 3)], {}), ("SUM", [None, W(1)], {}),
        ("REDUCE_MAX", [(2, 3)], {}), ("REDUCE_MIN", [None, W(1)], {}), ("REDUCE_ALL", [(2, 3), None], {}),
        ("MIRROR_PAD", [], {}), ("SVDF", [(2, 8)], {}), ("SVDF", [(), (6, 8)], {}), ("SVDF", [(-2, 8), (6, 8)], {}),
        ("UNIDIRECTIONAL_SEQUENCE_LSTM", STATES, {}), ("TFLite_Detection_PostProcess", BOXES[:1], {}),
        ("TFLite_Detection_PostProcess", [(), *BOXES[1:]], {}),
        ("TFLite_Detection_PostProcess", BOXES, custom(max_detections=-1)), ("SignalRfft", [], custom(fft_length=64)),
        ("SignalRfft", [(60,)], custom(fft_length="long")), ("SignalRfft", [(60,)], custom(fft_length=1 << 60)),
        ("SignalRfft", [(60,)], {"customOptions": [7, 200, 99]}),
    ],
)  # fmt: skip
def test_inputs_or_options_that_the_kernel_lacks_are_an_error_of_the_arena(kind: str, inputs: list[Any], more: Any):
    graph = single(kind, inputs, (1, 4, 4, 4), **more)
    for ask in (scratch_requests, operator_persistent_bytes):
        with pytest.raises(ArenaError, match=kind):
            ask(*only(graph))


# -- persistent memory -----------------------------------------------------------------------------

CASES = list(range(len(kernels.CASES)))


def per_operator(models: tuple[bytes, bytes], target: Target) -> float:
    few, many = (persistent_bytes(read_model(model), target).total for model in models)
    return (many - few) / (kernels.MANY - kernels.FEW)


@pytest.mark.parametrize("number", CASES, ids=["-".join(case[:2]) for case in kernels.CASES])
def test_persistent_bytes_are_those_that_were_measured(number: int):
    kind, special, *_ = kernels.CASES[number]
    models = kernels.pair(number)
    for target, figure in zip((BITS_32, BITS_64), kernels.measured()[kind, special], strict=True):
        assert figure is None or per_operator(models, target) == figure


@pytest.mark.parametrize("kind", ["CONV_2D", "FULLY_CONNECTED", "CONCATENATION", "SOFTMAX", "SignalRfft"])
def test_the_figures_are_those_of_the_runtime(kind: str):
    number = next(i for i, case in enumerate(kernels.CASES) if case[0] == kind)
    few, many = (run_in_wheel(model, [], 0).tail for model in kernels.pair(number))
    assert (many - few) / (kernels.MANY - kernels.FEW) == kernels.measured()[kind, kernels.CASES[number][1]][1]


def with_state_and_branches() -> bytes:
    model = ModelBuilder()
    main, start, then, otherwise = (Builder(model, name) for name in ("main", "start", "then", "otherwise"))

    def handle(b: Builder, name: str) -> int:
        b.op("VAR_HANDLE", [], [made := b.tensor((), "RESOURCE")], options("VarHandle", sharedName=name))
        return made

    for name, size in (("first", 5), ("second", 9)):
        start.op("ASSIGN_VARIABLE", [handle(start, name), start.constant(np.ones(size, np.float32))], [])
    start.finish([], [])
    for b, kind in ((then, "NEG"), (otherwise, "ABS")):
        b.op(kind, [x := b.tensor((5,), "FLOAT32")], [y := b.tensor((5,), "FLOAT32")])
        b.finish([x], [y])
    main.op("CALL_ONCE", [], [], options("CallOnce", initSubgraphIndex=1))
    main.op("READ_VARIABLE", [handle(main, "first")], [kept := main.tensor((5,), "FLOAT32")])
    condition, y = main.tensor((), "BOOL"), main.tensor((5,), "FLOAT32")
    main.op("IF", [condition, kept], [y], options("If", thenSubgraphIndex=2, elseSubgraphIndex=3))
    main.finish([condition], [y])
    return model.build()


def test_persistent_bytes_of_a_shape_that_is_completed():
    data = kernels.model_of("RESHAPE", [kernels.T((2, 3))], kernels.T((3, -1)))
    assert aligned(persistent_bytes(read_model(data), BITS_64).total) == run_in_wheel(data, [], 0).tail


def test_persistent_bytes_of_state_and_branches():
    data = with_state_and_branches()
    assert aligned(persistent_bytes(read_model(data), BITS_64).total) == run_in_wheel(data, [], 0).tail


# -- side effects ----------------------------------------------------------------------------------

BRANCHES = ("main", "pure", "tensor", "variable", "nested")  # subgraphs: the last three have state, one deep inside


def keep_their_order(*operators: str) -> bool:
    """Whether two operators without a common tensor keep their order. They are a kind, and the name of a variable or a
    branch; the handle of a variable without a name comes from the caller."""
    model = ModelBuilder()
    main, pure, tensor, variable, nested = (Builder(model, name) for name in BRANCHES)
    pure.op("RELU", [pure.tensor()], [pure.tensor()])
    tensor.op("SVDF", [tensor.tensor(), -1, -1, -1, tensor.tensor(isVariable=True)], [tensor.tensor()])
    variable.op("ASSIGN_VARIABLE", [variable.tensor((), "RESOURCE"), variable.tensor()], [])
    nested.op("IF", [nested.tensor()], [nested.tensor()], options("If", thenSubgraphIndex=1, elseSubgraphIndex=2))
    for text in operators:
        kind, _, name = text.partition(" ")
        handle, given = main.tensor((), "RESOURCE"), None
        if name in BRANCHES:
            table, fields = CALLEES[kind]
            given = options(table, **dict.fromkeys(fields, 1) | {[*fields][-1]: BRANCHES.index(name)})
        elif name:
            named = options("VarHandle", container=b"", sharedName=name.encode())
            main.op("VAR_HANDLE", [], [handle], named)
        main.op(kind, [handle, main.tensor()], [main.tensor()], given)
    for b in (main, pure, tensor, variable, nested):
        b.finish([], [])
    graph = read_model(model.build())
    first, second = (op.index for op in graph.subgraphs[0].operators if op.kind != "VAR_HANDLE")
    return (first, second) in ordering_problem(graph, graph.subgraphs[0], dict.fromkeys(range(5), 0)).precedence


READ, ASSIGN = "READ_VARIABLE", "ASSIGN_VARIABLE"
RANDOM = ("RANDOM_UNIFORM", "RANDOM_STANDARD_NORMAL", "MULTINOMIAL")
TFLM_CUSTOM = """
    CIRCULAR_BUFFER TFLite_Detection_PostProcess SignalDelay SignalEnergy SignalFftAutoScale
    SignalFilterBank SignalFilterBankLog SignalFilterBankSquareRoot SignalFilterBankSpectralSubtraction SignalFramer
    SignalIrfft SignalOverlapAdd SignalPCAN SignalRfft SignalStacker SignalWindow ethos-u
""".split()
ORDERED = [
    (f"{READ} a", f"{ASSIGN} a"), (f"{ASSIGN} a", f"{READ} a"), (f"{ASSIGN} a", f"{ASSIGN} a"),
    (READ, f"{ASSIGN} a"), (f"{READ} a", ASSIGN), (ASSIGN, f"{READ} a"), (ASSIGN, ASSIGN), (ASSIGN, "RANDOM_UNIFORM"),
    ("HASHTABLE", "HASHTABLE_FIND"), ("HASHTABLE", "HASHTABLE_IMPORT"), ("HASHTABLE_IMPORT", "HASHTABLE_IMPORT"),
    ("HASHTABLE_IMPORT", "HASHTABLE_FIND"), ("HASHTABLE_FIND", "HASHTABLE_IMPORT"), ("HASHTABLE_SIZE", "HASHTABLE"),
    *itertools.product(RANDOM, RANDOM), *((kind, other) for kind in TFLM_CUSTOM for other in (kind, "Own")),
    ("Own", "Other"),
    *(("CALL_ONCE pure", other) for other in (f"{READ} a", "HASHTABLE_FIND", "MULTINOMIAL", "Own", "CALL_ONCE pure")),
    *((f"{kind} {state}", other) for kind in ("IF", "WHILE") for state in BRANCHES[2:]
      for other in (f"{READ} a", "HASHTABLE_SIZE", "Own", "IF tensor")),
    *((f"{kind} tensor", "Own") for kind in CALLEES),
]  # fmt: skip
FREE = [
    (f"{READ} a", f"{READ} a"), (f"{READ} a", f"{ASSIGN} b"), (f"{ASSIGN} a", f"{ASSIGN} b"), (ASSIGN, "RELU"),
    ("HASHTABLE_FIND", "HASHTABLE_FIND"), ("HASHTABLE_FIND", "HASHTABLE_SIZE"), ("HASHTABLE_SIZE", "HASHTABLE_SIZE"),
    ("HASHTABLE_LOOKUP", "HASHTABLE_IMPORT"), ("HASHTABLE_LOOKUP", "HASHTABLE"), ("HASHTABLE_IMPORT", "Own"),
    ("Own", "RANDOM_UNIFORM"), ("Own", f"{ASSIGN} a"), ("CALL_ONCE pure", "RELU"),
    *((f"{kind} pure", other) for kind in CALLEES if kind != "CALL_ONCE"
      for other in ("Own", f"{ASSIGN} a", "MULTINOMIAL", "HASHTABLE")),
    ("TFLM_DECODE", "TFLM_DECODE"), ("TFLM_DECODE", "Own"),
    *((kind, "HASHTABLE") for kind in (*RANDOM, *TFLM_CUSTOM, f"{ASSIGN} a")),
    ("IF pure", "WHILE pure"), ("IF pure", "CALL_ONCE pure"), ("IF tensor", "RELU"), ("WHILE nested", "IF pure"),
]  # fmt: skip


@pytest.mark.parametrize(("first", "second", "kept"), [(*p, True) for p in ORDERED] + [(*p, False) for p in FREE])
def test_operators_keep_their_order_where_one_changes_what_the_other_touches(first: str, second: str, kept: bool):
    assert keep_their_order(first, second) == kept


# -- which kinds TFLM has --------------------------------------------------------------------------

TFLM_BUILTINS = """
    ABS ADD ADD_N ARG_MAX ARG_MIN ASSIGN_VARIABLE AVERAGE_POOL_2D BATCH_MATMUL BATCH_TO_SPACE_ND BROADCAST_ARGS
    BROADCAST_TO CALL_ONCE CAST CEIL CONCATENATION CONV_2D COS CUMSUM DEPTHWISE_CONV_2D DEPTH_TO_SPACE DEQUANTIZE DIV
    DYNAMIC_UPDATE_SLICE ELU EMBEDDING_LOOKUP EQUAL EXP EXPAND_DIMS FILL FLOOR FLOOR_DIV FLOOR_MOD FULLY_CONNECTED
    GATHER GATHER_ND GREATER GREATER_EQUAL HARD_SWISH IF L2_NORMALIZATION L2_POOL_2D LEAKY_RELU LESS LESS_EQUAL LOG
    LOGICAL_AND LOGICAL_NOT LOGICAL_OR LOGISTIC LOG_SOFTMAX MAXIMUM MAX_POOL_2D MEAN MINIMUM MIRROR_PAD MUL NEG
    NOT_EQUAL PACK PAD PADV2 PRELU QUANTIZE READ_VARIABLE REDUCE_ALL REDUCE_MAX REDUCE_MIN RELU RELU6 RESHAPE
    RESIZE_BILINEAR RESIZE_NEAREST_NEIGHBOR REVERSE_V2 ROUND RSQRT SELECT_V2 SHAPE SIN SLICE SOFTMAX SPACE_TO_BATCH_ND
    SPACE_TO_DEPTH SPLIT SPLIT_V SQRT SQUARE SQUARED_DIFFERENCE SQUEEZE STRIDED_SLICE SUB SUM SVDF TANH TRANSPOSE
    TRANSPOSE_CONV UNIDIRECTIONAL_SEQUENCE_LSTM UNPACK VAR_HANDLE WHILE ZEROS_LIKE
""".split()
BUILTINS = {name for name, number in vars(schema.BuiltinOperator).items() if isinstance(number, int)}
NEWER = {"STABLEHLO_CASE"}  # than the bindings, which have no name for it
ABSENT = sorted(BUILTINS - NEWER - {"CUSTOM"} - set(TFLM_BUILTINS))


@pytest.mark.parametrize("kind", [*TFLM_BUILTINS, *TFLM_CUSTOM, *ABSENT, "Own", "signalrfft"])
def test_operators_that_tflm_does_not_have_are_named(kind: str):
    missing = () if kind in {*TFLM_BUILTINS, *TFLM_CUSTOM} else (kind,)
    assert analyse_arena(single(kind, ANYTHING)).missing_operators == missing


# -- rows ------------------------------------------------------------------------------------------

LENGTH = 9  # of both sides
WINDOWS = [  # size, stride and dilation, each of rows and columns
    ((3, 3), (1, 1), (1, 1)), ((3, 3), (2, 2), (1, 1)), ((2, 4), (1, 1), (1, 1)), ((4, 2), (2, 1), (1, 1)),
    ((5, 3), (3, 2), (1, 1)), ((1, 1), (2, 3), (1, 1)), ((3, 2), (1, 1), (2, 3)), ((2, 3), (1, 1), (3, 2)),
]  # fmt: skip
WINDOW_OPTIONS = {"CONV_2D": "Conv2D", "DEPTHWISE_CONV_2D": "DepthwiseConv2D"}


def window(kind: str, padding: int, sizes: Any, strides: Any, dilations: Any, batch: int = 1) -> bytes:
    table = WINDOW_OPTIONS.get(kind, "Pool2D")
    names = "strideH strideW filterHeight filterWidth dilationHFactor dilationWFactor depthMultiplier padding".split()
    fields = dict(zip(names, (*strides, *sizes, *dilations, 1, padding), strict=True))
    given = options(table, **{name: fields[name] for name in fields.keys() & vars(options(table)).keys()})
    spare = [0, 0] if padding == SAME else [(size - 1) * d for size, d in zip(sizes, dilations, strict=True)]
    output = [-(-(LENGTH - less) // stride) for less, stride in zip(spare, strides, strict=True)]
    b = Builder()
    x, y = b.tensor((batch, LENGTH, LENGTH, 1), "FLOAT32"), b.tensor((batch, *output, 1), "FLOAT32")
    weights = [b.constant(np.ones((1, *sizes, 1), np.float32)), b.constant(np.zeros(1, np.float32))]
    b.op(kind, [x] if table == "Pool2D" else [x, *weights], [y], given)
    return b.build([x], [y])


@pytest.mark.parametrize("padding", [SAME, VALID], ids=["SAME", "VALID"])
@pytest.mark.parametrize("kind", ["CONV_2D", "DEPTHWISE_CONV_2D", "MAX_POOL_2D", "AVERAGE_POOL_2D"])
@pytest.mark.parametrize(("sizes", "strides", "dilations"), WINDOWS)
def test_windows_read_what_the_kernel_reads(kind: str, padding: int, sizes: Any, strides: Any, dilations: Any):
    dilations = (1, 1) if "POOL" in kind else dilations
    rule = row_rule(*only(read_model(window(kind, padding, sizes, strides, dilations))))
    if kind == "AVERAGE_POOL_2D" and padding == SAME and sizes != (1, 1):
        # It divides by the number of elements inside of the picture.
        assert isinstance(rule, CutRule if strides[0] == 1 else str)
        return
    assert isinstance(rule, RowRule)
    # Pictures with one row, and then with one column: where the result is not zero, the window has touched it.
    rows = np.repeat(np.eye(LENGTH, dtype=np.float32)[:, :, None, None], LENGTH, axis=2)
    pictures = np.concatenate([rows, rows.swapaxes(1, 2)])
    (result,) = run_litert(window(kind, padding, sizes, strides, dilations, 2 * LENGTH), [pictures])
    of_row, of_column = result[:LENGTH].any(axis=(2, 3)).T, result[LENGTH:].any(axis=(1, 3)).T
    for row, touched in enumerate(of_row):
        first, behind, above, below = rule.span(row, row + 1, LENGTH)
        assert 0 <= first <= behind <= LENGTH
        first, behind = first - above, behind + below
        assert behind - first == (sizes[0] - 1) * dilations[0] + 1
        assert {*range(first, behind, dilations[0])} & {*range(LENGTH)} == {*np.flatnonzero(touched)}
    for column, touched in enumerate(of_column):
        first = column * strides[1] - rule.columns.before
        behind = first + (sizes[1] - 1) * dilations[1] + 1
        assert {*range(first, behind, dilations[1])} & {*range(LENGTH)} == {*np.flatnonzero(touched)}
    assert rule.columns.after == (max(behind - LENGTH, 0) if padding == SAME else 0)


def pads(*sides: int) -> np.ndarray:
    return np.array(sides, np.int32).reshape(-1, 2)


X, FILTER, SIZE, PADDED = T((1, 8, 6, 4)), W(4, 3, 3, 4), W(2), pads(0, 0, 1, 2, 3, 0, 0, 5)
WIDE, PIXELS = ([options("Concatenation", axis=axis) for axis in axes] for axes in ((2, -2), (3, -1)))
ONES = dict.fromkeys(("strideH", "strideW", "dilationHFactor", "dilationWFactor"), 1) | {"padding": SAME}
NEAREST = options("ResizeNearestNeighbor")
POOLED = {"padding": SAME, "strideH": 1, "strideW": 1, "filterHeight": 2, "filterWidth": 3}
CORNERS, HALVES = (options("ResizeBilinear", **{name: True}) for name in ("alignCorners", "halfPixelCenters"))
SCATTERED = {"padding": SAME, "strideH": 2, "strideW": 2}
MASKED = options("StridedSlice", beginMask=2, endMask=2)
REDUCTIONS = "MEAN SUM REDUCE_MAX REDUCE_MIN ARG_MAX ARG_MIN".split()
UNARY = """CEIL COS ELU EXP FLOOR LOG NEG ROUND SIN SQRT SQUARE TANH ABS RSQRT QUANTIZE DEQUANTIZE RELU RELU6
    RELU_N1_TO_1 LEAKY_RELU LOGISTIC HARD_SWISH SOFTMAX LOG_SOFTMAX L2_NORMALIZATION""".split()
BINARY = "ADD SUB MUL DIV MAXIMUM MINIMUM SQUARED_DIFFERENCE PRELU".split()
SHIFTED = RowRule((0,), pad_top=1)
ALLOWED: list[tuple[str, list[Any], Any, Any, RowRule]] = [
    *((kind, [X], X, None, RowRule((0,))) for kind in UNARY),
    *((kind, [X, X], X, None, RowRule((0, 1))) for kind in BINARY),
    *(("MUL", [X, small], X, None, RowRule((0,))) for small in (W(4), W(6, 4), W(1, 1, 1, 4), (1, 1, 6, 4))),
    ("SUB", [W(), X], X, None, RowRule((1,))),
    *(("CONV_2D", [X, FILTER, *bias], X, options("Conv2D", **ONES), RowRule((0,), 1, 3, 1, width=3, columns=Pads(1, 1)))
      for bias in ([], [None], [W(4)])),
    *(("CONCATENATION", [X, X], (1, 8, 12, 4), given, RowRule((0, 1))) for given in WIDE),
    *(("CONCATENATION", [X, X, X], (1, 8, 6, 12), given, RowRule((0, 1, 2))) for given in PIXELS),
    ("PAD", [X, PADDED], (1, 11, 9, 9), None, SHIFTED), ("PADV2", [X, PADDED, W(1)], (1, 11, 9, 9), None, SHIFTED),
    *(("RESIZE_NEAREST_NEIGHBOR", [X, SIZE], (1, 8 * factor, 12, 4), NEAREST, RowRule((0,), repeat=factor))
      for factor in (2, 4, 8, 16)),
    ("RESIZE_NEAREST_NEIGHBOR", [X, SIZE], (1, 16, 13, 4), NEAREST, RowRule((0,), repeat=2)),
    ("RESIZE_BILINEAR", [X, SIZE], (1, 32, 9, 4), options("ResizeBilinear"),
     CutRule((0,), 1, 2, 0, repeat=4, pace=4, last=4)),
    ("RESIZE_BILINEAR", [X, SIZE], (1, 32, 9, 4), HALVES, CutRule((0,), 1, 3, 1, repeat=4, pace=4, last=4)),
    ("RESIZE_BILINEAR", [X, SIZE], (1, 29, 9, 4), CORNERS, CutRule((0,), 1, 2, 0, repeat=4, pace=4, last=1)),
    ("AVERAGE_POOL_2D", [X], X, options("Pool2D", **POOLED), CutRule((0,), 1, 2, 0)),
    ("TRANSPOSE_CONV", [I(1, 16, 12, 5), W(5, 4, 3, 4), X], (1, 16, 12, 5), options("TransposeConv", **SCATTERED),
     CutRule((2,), 1, 3, 1, repeat=2, pace=2, last=2)),
    ("TRANSPOSE_CONV", [I(1, 18, 13, 5), W(5, 4, 3, 4), X], (1, 18, 13, 5),
     options("TransposeConv", **SCATTERED | {"padding": VALID}), CutRule((2,), 1, 2, 1, repeat=2, pace=2, last=4)),
    ("FULLY_CONNECTED", [X, W(5, 4), None], (1, 8, 6, 5), options("FullyConnected", keepNumDims=True), RowRule((0,))),
    ("SLICE", [X, I(0, 3, 0, 1), I(1, 4, -1, 2)], (1, 4, 6, 2), None, RowRule((0,), pad_top=-3)),
    ("SLICE", [X, I(0, 3, 0, 1), I(1, -1, -1, 2)], (1, 5, 6, 2), None, RowRule((0,), pad_top=-3)),
    *(("STRIDED_SLICE", [X, I(0, first, 0, 0), I(1, end, 6, 4), I(1, 2, 1, 1)], (1, rows, 6, 4), given,
       RowRule((0,), stride=2, pad_top=-start))
      for first, end, given, start, rows in (
          (1, 8, options("StridedSlice"), 1, 4), (-6, -1, options("StridedSlice"), 2, 3), (3, 3, MASKED, 0, 4),
          (-99, 99, options("StridedSlice"), 0, 4))),
    *(("GATHER", [X, I(3, 1)], output, options("Gather", axis=axis), RowRule((0,)))
      for axis, output in ((3, (1, 8, 6, 2)), (-1, (1, 8, 6, 2)), (2, (1, 8, 2, 4)))),
    *((kind, [X, I(axis)], output, None, RowRule((0,))) for kind in REDUCTIONS
      for axis, output in ((3, (1, 8, 6)), (-1, (1, 8, 6, 1)), (2, (1, 8, 1, 4)))),
    ("DEPTH_TO_SPACE", [X], (1, 16, 12, 1), options("DepthToSpace", blockSize=2), RowRule((0,), repeat=2)),
    ("SPACE_TO_DEPTH", [X], (1, 4, 3, 16), options("SpaceToDepth", blockSize=2), RowRule((0,), stride=2, window=2)),
    *(("ADD", [(1, 8, 6), other], (1, 8, 6), None, RowRule((0, 1) if isinstance(other, tuple) else (0,)))
      for other in ((1, 8, 6), W(6), W(1, 1, 6))),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "inputs", "output", "given", "rule"), ALLOWED)
def test_these_work_row_by_row(kind: str, inputs: list[Any], output: Any, given: Any, rule: RowRule):
    assert row_rule(*only(single(kind, inputs, output, given))) == rule


def test_padding_shifts_rows_and_upsampling_repeats_them():
    assert SHIFTED.span(0, 11, 8) == (0, 8, 1, 2)
    assert SHIFTED.span(3, 5, 8) == (2, 4, 0, 0)
    for first, behind in itertools.combinations(range(33), 2):
        source = [row // 4 for row in range(first, behind)]
        assert RowRule((0,), repeat=4).span(first, behind, 8) == (source[0], source[-1] + 1, 0, 0)


THIRDS = {"padding": SAME, "strideH": 2, "strideW": 3, "filterHeight": 2, "filterWidth": 3}
WORKS: dict[str, dict[str, Any]] = {
    "CONV_2D": {"inputs": [X, FILTER], "output": X, "given": options("Conv2D", **ONES)},
    "AVERAGE_POOL_2D": {"inputs": [X], "output": (1, 4, 2, 4), "given": options("Pool2D", **THIRDS)},
    "RELU": {"inputs": [X], "output": X},
    "ADD": {"inputs": [X, X], "output": X},
    "CONCATENATION": {"inputs": [X, X], "output": (1, 8, 12, 4), "given": WIDE[0]},
    "PAD": {"inputs": [X, pads(0, 0, 1, 1, 0, 0, 0, 0)], "output": (1, 10, 6, 4)},
    "RESIZE_NEAREST_NEIGHBOR": {"inputs": [X, SIZE], "output": (1, 16, 12, 4), "given": NEAREST},
    "RESIZE_BILINEAR": {"inputs": [X, SIZE], "output": (1, 16, 12, 4), "given": options("ResizeBilinear")},
    "TRANSPOSE_CONV": {
        "inputs": [I(1, 16, 12, 5), W(5, 4, 3, 4), X],
        "output": (1, 16, 12, 5),
        "given": options("TransposeConv", **SCATTERED),
    },
    "FULLY_CONNECTED": {
        "inputs": [X, W(5, 4)],
        "output": (1, 8, 6, 5),
        "given": options("FullyConnected", keepNumDims=True),
    },
    "SLICE": {"inputs": [X, I(0, 3, 0, 1), I(1, 4, -1, 2)], "output": (1, 4, 6, 2)},
    "STRIDED_SLICE": {
        "inputs": [X, I(0, 1, 0, 0), I(1, 8, 6, 4), I(1, 2, 1, 1)],
        "output": (1, 4, 6, 4),
        "given": options("StridedSlice"),
    },
    "SPLIT": {"inputs": [I(3), X], "output": X},
    "SPLIT_V": {"inputs": [X, I(4), I(2)], "output": X},
    "GATHER": {"inputs": [X, I(3, 1)], "output": (1, 8, 6, 2), "given": options("Gather", axis=3)},
    "ARG_MAX": {"inputs": [X, I(3)], "output": T((1, 8, 6), "INT32")},
    "DEPTH_TO_SPACE": {"inputs": [X], "output": (1, 16, 12, 1), "given": options("DepthToSpace", blockSize=2)},
}
REFUSED: list[tuple[str, dict[str, Any]]] = [  # a kind, and the change that makes what works impossible
    *(("CONV_2D", {"given": given}) for given in (
        None, options("Conv2D", **ONES | {"padding": VALID}), options("Conv2D", **ONES | {"strideH": 0}))),
    *(("CONV_2D", {"inputs": [x, w]}) for x, w in (
        (X, None), (None, FILTER), (X, W(4, 36)), ((2, 8, 6, 4), FILTER), (W(1, 8, 6, 4), FILTER))),
    ("CONV_2D", {"inputs": [X]}), ("CONV_2D", {"output": (1, 9, 6, 4)}),
    ("AVERAGE_POOL_2D", {"output": (1, 4, 3, 4), "given": options("Pool2D", **THIRDS | {"strideW": 2})}),
    ("AVERAGE_POOL_2D", {"given": options("Pool2D", **THIRDS | {"filterHeight": 3})}),
    ("RELU", {"output": T((1, 8, 6, 4), "UINT8")}), ("RELU", {"output": T((1, 8, 6, 4), shapeSignature=[1, -1, 6, 4])}),
    ("RELU", {"inputs": [(1, 1, 6, 4)], "output": (1, 1, 6, 4)}),
    *(("RELU", {"inputs": inputs}) for inputs in ([], [X, X], [W(1, 8, 6, 4)])),
    *(("ADD", {"inputs": inputs}) for inputs in (
        [X, W(8, 1, 1)], [X, W(1, 8, 6, 4)], [(1, 1, 6, 4), W(4)], [X, X, X], [X, None])),
    *(("CONCATENATION", {"given": options("Concatenation", axis=axis)}) for axis in (0, 1, -3, -4)),
    *(("CONCATENATION", {"inputs": [X, other]}) for other in (W(1, 8, 6, 4), (1, 1, 6, 4))),
    ("PAD", {"output": (1, 11, 6, 4)}), ("PAD", {"inputs": [X]}),
    ("PAD", {"inputs": [X, pads(0, 0, 1, 1, -1, 0, 0, 0)], "output": (1, 10, 5, 4)}),
    *(("PAD", {"inputs": [X, sides]}) for sides in (
        T((4, 2), "INT32"), pads(0, 0, -1, 3, 0, 0, 0, 0), pads(1, -1, 1, 1, 0, 0, 0, 0), pads(0, 0, 1, 1, 0, 0))),
    *(("RESIZE_NEAREST_NEIGHBOR", {"output": (1, *size, 4)}) for size in (
        (24, 18), (24, 12), (8, 12), (17, 12), (4, 12))),
    ("RESIZE_NEAREST_NEIGHBOR", {"given": options("ResizeNearestNeighbor", alignCorners=True)}),
    ("RESIZE_NEAREST_NEIGHBOR", {"given": None}),
    *(("RESIZE_BILINEAR", {"given": given}) for given in (None, CORNERS)),
    *(("RESIZE_BILINEAR", {"output": (1, rows, 12, 4)}) for rows in (8, 17, 24, 4)),
    ("RESIZE_BILINEAR", {"given": HALVES, "output": (1, 15, 12, 4)}),
    *(("TRANSPOSE_CONV", {"given": given}) for given in (
        None, options("TransposeConv", **SCATTERED | {"padding": VALID}),
        *(options("TransposeConv", **SCATTERED | {"strideH": stride}) for stride in (0, 3)))),
    *(("TRANSPOSE_CONV", {"inputs": inputs}) for inputs in (
        [I(1, 16, 12, 4), W(5, 4, 3, 4), X], [I(1, 16, 12, 5), W(5, 1, 3, 4), X], [I(1, 16, 12, 5), W(5, 4), X],
        [T((4,), "INT32"), W(5, 4, 3, 4), X])),
    ("FULLY_CONNECTED", {"given": options("FullyConnected")}), ("FULLY_CONNECTED", {"output": (1, 6, 8, 5)}),
    ("FULLY_CONNECTED", {"given": None}),
    *(("SLICE", {"inputs": [X, begin, size]}) for begin, size in (
        (T((4,), "INT32"), I(1, 4, -1, 2)), (I(0, 3, 0, 1), T((4,), "INT32")), (I(0, 5, 0, 1), I(1, 4, -1, 2)),
        (I(0, 3, 0, 1), I(1, 5, -1, 2)), (I(0, -1, 0, 1), I(1, 4, -1, 2)), (I(0, 3, 0), I(1, 4, -1)))),
    ("SLICE", {"inputs": [X, I(0, 3, 0, 1), I(1, -1, -1, 2)]}), ("SLICE", {"output": (1, 4, 12)}),
    *(("STRIDED_SLICE", {"given": options("StridedSlice", **{mask: value})}) for mask, value in (
        ("ellipsisMask", 8), ("newAxisMask", 1), ("shrinkAxisMask", 1), ("offset", True))),
    ("STRIDED_SLICE", {"given": None}), ("STRIDED_SLICE", {"output": (1, 3, 6, 4)}),
    ("STRIDED_SLICE", {"output": (1, 4, 24)}),
    *(("STRIDED_SLICE", {"inputs": [X, *bounds]}) for bounds in (
        (I(0, 1, 0, 0), I(1, 8, 6, 4), I(1, -2, 1, 1)), (I(0, 1, 0, 0), I(1, 8, 6, 4), T((4,), "INT32")),
        (I(0, 1, 0), I(1, 8, 6), I(1, 2, 1)), (I(0, 1, 0, 0), I(1, 6, 6, 4), I(1, 2, 1, 1)))),
    *(("GATHER", {"given": given}) for given in (None, options("Gather", axis=1), options("Gather", axis=0),
                                                 options("Gather", axis=3, batchDims=1), options("Gather", axis=-3))),
    ("GATHER", {"inputs": [X, np.zeros((1, 2), np.int32)]}), ("GATHER", {"output": (1, 2, 6, 4)}),
    *(("SPLIT", {"inputs": [axis, X]}) for axis in (I(1), I(0), T((1,), "INT32"))), ("SPLIT", {"output": (1, 4, 6, 4)}),
    *(("SPLIT_V", {"inputs": [X, I(8), axis]}) for axis in (I(-3), None)),
    *(("ARG_MAX", {"inputs": [X, axis]}) for axis in (I(1), I(-3), I(0), T((1,), "INT32"))),
    ("ARG_MAX", {"output": (1, 6, 8)}), ("ARG_MAX", {"output": T((1, 8, 6), "INT64")}),
    *(("DEPTH_TO_SPACE", {"given": given}) for given in (None, options("DepthToSpace", blockSize=3))),
    *(("ADD", {"inputs": [(1, 8, 6), other], "output": (1, 8, 6)}) for other in (W(8, 1), W(1, 8, 6), (1, 8, 8, 6))),
    ("ADD", {"inputs": [(8, 6), (8, 6)], "output": (8, 6)}),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "change"), REFUSED)
def test_what_does_not_work_row_by_row_says_why(kind: str, change: dict[str, Any]):
    assert isinstance(row_rule(*only(single(kind, **WORKS[kind]))), RowRule)
    reason = row_rule(*only(single(kind, **WORKS[kind] | change)))
    assert isinstance(reason, str)
    assert reason


# -- the table as a whole --------------------------------------------------------------------------


def first_of(cases: list[Any]) -> set[str]:
    return {case.values[0] if hasattr(case, "values") else case[0] for case in cases}


IN_NETWORKS = {"TFLM_DECODE", "IF", "WHILE", "CALL_ONCE", "VAR_HANDLE", "ASSIGN_VARIABLE"}
SCRATCH_APART = {"scratch": Tflm().scratch, "types": Tflm().types, "needs": ()}  # columns with tests of their own


@pytest.mark.parametrize(
    ("says_something", "cases"),
    [
        (lambda kind: kind.options.fields, OPTIONS),
        (lambda kind: any("Subgraph" in field for field in layout(kind.options.table)), CALLEES),
        (lambda kind: kind.weights, WEIGHTS),
        (lambda kind: kind.macs is not Kind().macs, first_of(MACS)),
        (lambda kind: kind.tflm and kind.tflm.scratch is not Tflm().scratch, first_of(SCRATCH)),
        (
            lambda kind: kind.tflm and kind.tflm._replace(**SCRATCH_APART) != Tflm(),
            first_of(kernels.CASES) | IN_NETWORKS,
        ),
        (lambda kind: kind.effect, " ".join(itertools.chain(*ORDERED)).split()),
        (lambda kind: kind.rows, first_of(ALLOWED) | {*WORKS, "DEPTHWISE_CONV_2D", "MAX_POOL_2D"}),
    ],
)
def test_every_row_that_says_something_has_a_case(says_something: Any, cases: Any):
    assert {name for name, kind in (KINDS | CUSTOM_KINDS).items() if says_something(kind)} <= {*cases}
    assert {*ELEMENT_TYPES} == {*ELEMENTS}


def test_a_bias_that_is_left_out_as_minus_one_crashes_depthwise_convolutions():
    """TFLM reads it where the input is listed."""
    for kind, is_refused in (("DEPTHWISE_CONV_2D", True), ("CONV_2D", False)):
        net = Net("FLOAT32")
        source = net.picture(4, 4, 2)
        y = net.window(kind, source, 2)
        net.table.operators[0].inputs[2] = -1
        data = net.build([source], [y])
        assert bool(refusals(read_model(data))) is is_refused
        with pytest.raises(RuntimeError) if is_refused else contextlib.nullcontext():
            run_in_wheel(data, [], 0)


@pytest.mark.parametrize("count", [2, 3, 5, 6])
def test_sums_of_several_keep_a_pointer_to_each(count: int):
    b = Builder()
    tensors = [b.tensor((1, 8), "FLOAT32") for _ in range(count + 1)]
    b.op("ADD_N", tensors[:count], tensors[count:])
    data = b.build(tensors[:count], tensors[count:])
    assert analyse_arena(read_model(data), BITS_64).head == run_in_wheel(data, [], 0).head
