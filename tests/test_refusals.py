"""What TFLM refuses: types against its recorded answers, further needs against the runtime itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from corpus import SHARED, needs_shared
from model_builder import Builder, ModelBuilder
from runtimes import run_in_wheel
from single_operator_models import (
    CONV,
    DEPTHWISE,
    FRACTION,
    KEEP,
    POOL,
    PROBABILITY,
    SOFTMAX,
    SVDF,
    SVDF_WEIGHTS,
    C,
    T,
    X,
    model_of,
    options,
    weights,
)

from tflite_tools import (
    CUSTOM_KINDS,
    ELEMENT_TYPES,
    KINDS,
    ModelError,
    Node,
    Storage,
    Tensor,
    accepts,
    persistent_bytes,
    random_inputs,
    read_model,
    refusals,
)

TABLE = KINDS | CUSTOM_KINDS
NAMES = {name.lower().replace("float", "f").replace("uint", "u").replace("int", "i"): name for name in ELEMENT_TYPES}
PROBED = [
    line.partition(": ")
    for line in Path(__file__).with_name("tflm_types.txt").read_text().splitlines()
    if not line.startswith("#")
]


def node_of_types(kind: str, combination: str) -> Node:
    inputs, _, output = combination.partition(">")
    tensors = [
        None if code == "_" else Tensor(i, code, NAMES[code], (1,), Storage.ACTIVATION, 0, 1)
        for i, code in enumerate([*inputs.split("/"), output or "_"])
    ]
    return Node(TABLE[kind], tuple(tensors[:-1]), tuple(t for t in tensors[-1:] if t))


@pytest.mark.parametrize(("kind", "combinations"), [(kind, rest) for kind, _, rest in PROBED])
def test_types_are_those_that_the_kernel_takes(kind: str, combinations: str):
    ran, refused = (part.split() for part in combinations.split("|"))
    assert [c for c in ran if not accepts(TABLE[kind].tflm.types, node_of_types(kind, c))] == []
    assert [c for c in refused if accepts(TABLE[kind].tflm.types, node_of_types(kind, c))] == []


# By the sources of the kernels, since nobody probed them; what is not named takes any type.
READ = {
    "UNIDIRECTIONAL_SEQUENCE_LSTM": "f32/f32 i8/i8 i16/i8", "IF": "bool", "READ_VARIABLE": "resource",
    "ASSIGN_VARIABLE": "resource|i32", "CIRCULAR_BUFFER": "i8>i8", "TFLite_Detection_PostProcess": "f32/f32",
    "SignalRfft": "i16>i16 i32>i32 f32>f32", "SignalIrfft": "i16>i16 i32>i32 f32>f32", "SignalDelay": "i16>i16",
    "SignalFftAutoScale": "i16>i16", "SignalFramer": "i16>i16", "SignalStacker": "i16>i16", "SignalEnergy": "i16>u32",
    "SignalFilterBank": "u32/i16/i16/i16/i16/i16>u64", "SignalFilterBankLog": "u32>i16",
    "SignalFilterBankSpectralSubtraction": "u32>u32", "SignalFilterBankSquareRoot": "u64/i32>u32",
    "SignalOverlapAdd": "i16>i16 f32>f32", "SignalPCAN": "u32/u32/i16>u32", "SignalWindow": "i16/i16>i16",
}  # fmt: skip


def test_types_of_the_other_kernels():
    probed = {kind for kind, _, _ in PROBED}
    others = {name: kind.tflm.types for name, kind in TABLE.items() if kind.tflm and name not in probed}
    assert {name: types for name, types in others.items() if types != "*"} == READ


# -- further needs, each with the runtime as the judge -------------------------------------------------

Y = (1, 2, 2, 2)
I8, I16 = T(X, "INT8"), T(X, "INT16")
MASKED = options("StridedSlice")

# (kind, inputs, output, options, what stands against it; empty: it runs)
NEEDS: list[tuple[str, list[Any], Any, Any, str]] = [
    ("CONV_2D", [I8, weights(2, 1, 1, 2), None], I8, CONV, ""),
    ("CONV_2D", [T(X, "INT8", ()), weights(2, 1, 1, 2), None], I8, CONV, "no scale and zero point"),
    ("CONV_2D", [I8, weights(2, 1, 1, 2, scale=()), None], I8, CONV, "no scale and zero point"),
    ("CONV_2D", [T(X), weights(2, 1, 1, 2, dtype="FLOAT32"), None], T(X), CONV, ""),
    ("CONV_2D", [T(X), weights(2, 1, 1, 2), None], T(X), CONV, "hybrid"),
    ("DEPTHWISE_CONV_2D", [I8, weights(1, 1, 1, 2, scale=())], I8, DEPTHWISE, "no scale and zero point"),
    ("DEPTHWISE_CONV_2D", [I8, weights(1, 1, 1, 2)], I8, DEPTHWISE, ""),
    ("AVERAGE_POOL_2D", [I8], T(Y, "INT8"), POOL, ""),
    ("AVERAGE_POOL_2D", [I8], T(Y, "INT8", (0.25, 0)), POOL, "same scale"),
    ("MAX_POOL_2D", [I8], T(Y, "INT8", (0.5, 1)), POOL, "same scale"),
    ("MAX_POOL_2D", [I16], T(Y, "INT16", (0.5 + 5e-7, 0)), POOL, ""),
    ("MAX_POOL_2D", [I16], T(Y, "INT16", (0.25, 0)), POOL, "same scale"),
    ("L2_POOL_2D", [T((4, 2))], T((2, 2)), POOL, "4 dimensions"),
    ("BATCH_MATMUL", [T((2, 3)), T((3, 2))], T((2, 2)), options("BatchMatMul"), ""),
    ("BATCH_MATMUL", [T((3,)), T((3, 2))], T((2,)), options("BatchMatMul"), "2 to 5 dimensions"),
    (
        "BATCH_MATMUL", [T((2, 3), "INT16", (0.5, 3)), T((3, 2), "INT16")], T((2, 2), "INT16"), options("BatchMatMul"),
        "must be 0",
    ),
    ("SVDF", [T((1, 3)), *SVDF_WEIGHTS], T((1, 3)), SVDF, ""),
    ("SVDF", [T((1, 3)), *SVDF_WEIGHTS], T((1, 6)), SVDF, "(1, 3)"),
    ("QUANTIZE", [T(X)], I8, None, ""),
    ("QUANTIZE", [T(X)], T(X, "INT8", ()), None, "no scale and zero point"),
    ("RELU", [I16], I16, None, ""),
    ("RELU", [T(X, "INT16", (0.5, 3))], I16, None, "must be 0"),
    ("LOGISTIC", [I8], T(X, "INT8", (2**-8, -128)), None, ""),
    ("LOGISTIC", [I8], T(X, "INT8", (2**-8, 0)), None, "zero point -128"),
    ("LOGISTIC", [I16], T(X, "INT16", FRACTION), None, ""),
    ("LOGISTIC", [I16], T(X, "INT16", (0.1, 0)), None, "scale"),
    ("TANH", [I16], T(X, "INT16", FRACTION), None, ""),
    ("TANH", [I16], T(X, "INT16", (0.1, 0)), None, "scale"),
    ("MUL", [I16, I16], I16, options("Mul"), ""),
    ("MUL", [I16, T(X, "INT16", (0.5, 3))], I16, options("Mul"), "must be 0"),
    ("SQUARED_DIFFERENCE", [I16, I16], T(X, "INT16", (0.5, 3)), None, "must be 0"),
    ("PRELU", [T(X), weights(1, 1, 2, dtype="FLOAT32")], T(X), None, ""),
    ("PRELU", [T((1, *X)), weights(1, 1, 2, dtype="FLOAT32")], T((1, *X)), None, "1 to 4 dimensions"),
    ("REDUCE_MAX", [I8, C(1)], T((1, 1, 4, 2), "INT8"), KEEP, ""),
    ("REDUCE_MAX", [I8, C(1)], T((1, 1, 4, 2), "INT8", (0.25, 0)), KEEP, "same scale"),
    ("REDUCE_MIN", [I8, C(1)], T((1, 1, 4, 2), "INT8", (0.25, 0)), KEEP, "same scale"),
    ("SOFTMAX", [I8], T(X, "INT8", PROBABILITY), SOFTMAX, ""),
    ("SOFTMAX", [I8], T(X, "INT8", (2**-8, 0)), SOFTMAX, "zero point -128"),
    ("SOFTMAX", [I8], T(X, "INT8", (2**-7, -128)), SOFTMAX, "scale 0.00390625"),
    ("SOFTMAX", [I16], T(X, "INT16", FRACTION), SOFTMAX, ""),
    ("SOFTMAX", [I16], T(X, "INT16", (0.1, 0)), SOFTMAX, "scale"),
    ("SOFTMAX", [T(X, "INT8", (1e-8, 0))], T(X, "INT8", PROBABILITY), SOFTMAX, "so small that the kernel aborts"),
    ("SOFTMAX", [T(X, "INT8", (1e-7, 0))], T(X, "INT8", PROBABILITY), SOFTMAX, ""),
    ("LOG_SOFTMAX", [I8], T(X, "INT8", (2**-4, 127)), None, ""),
    ("LOG_SOFTMAX", [I8], T(X, "INT8", (2**-4, 0)), None, "zero point 127"),
    ("CONCATENATION", [T(X)] * 10, T((1, 4, 4, 20)), options("Concatenation", axis=3), ""),
    ("CONCATENATION", [T(X)] * 11, T((1, 4, 4, 22)), options("Concatenation", axis=3), "11 inputs"),
    ("CONCATENATION", [I8, I8], T((1, 4, 4, 4), "INT8"), options("Concatenation", axis=3), ""),
    ("CONCATENATION", [I8, T(X, "INT8", (0.25, 0))], T((1, 4, 4, 4), "INT8"), options("Concatenation", axis=3), "same"),
    ("CONCATENATION", [T(X), I8], T((1, 4, 4, 4)), options("Concatenation", axis=3), "several types"),
    ("CONCATENATION", [I16, I16], T((1, 4, 4, 4), "INT16", (0.5, 3)), options("Concatenation", axis=3), "must be 0"),
    ("PAD", [T((2,)), np.array([[1, 1]], np.int32)], T((4,)), None, ""),
    ("PAD", [T((2,)), T((1, 2), "INT32")], T((4,)), None, "paddings must be constant"),
    ("PADV2", [T((2,)), T((1, 2), "INT32"), np.float32([1])], T((4,)), None, "paddings must be constant"),
    ("PAD", [T((1,) * 6), np.zeros((6, 2), np.int32)], T((1,) * 6), None, "0 to 5 dimensions"),
    ("SLICE", [T(X), C(0, 0, 0, 0), C(1, 2, 2, 2)], T(Y), None, ""),
    ("SLICE", [T((1,) * 6), C(*[0] * 6), C(*[1] * 6)], T((1,) * 6), None, "1 to 5 dimensions"),
    ("STRIDED_SLICE", [T((4,)), C(0), C(2), C(1)], T((2,)), MASKED, ""),
    ("STRIDED_SLICE", [T((4,)), T((1,), "INT32"), C(2), C(1)], T((2,)), MASKED, "begin must be constant"),
    ("STRIDED_SLICE", [T((4,)), C(0), T((1,), "INT32"), T((1,), "INT32")], T((2,)), MASKED, "end and strides must be"),
    ("STRIDED_SLICE", [T((1,) * 5), *[C(*[0] * 5), C(*[1] * 5)], C(*[1] * 5)], T((1,) * 5), MASKED, "0 to 4 dim"),
    ("SPLIT", [T((), "INT32"), T((4,))], T((4,)), options("Split", numSplits=1), "axis must be constant"),
    ("SPLIT_V", [T((4,)), C(4), T((), "INT32")], T((4,)), options("SplitV", numSplits=1), "axis must be constant"),
    ("RESHAPE", [T(X), C(32)], T((32,)), None, ""),
    ("RESHAPE", [T(X), C(32)], T((31,)), None, "31 elements of 32"),
    ("RESHAPE", [T(X), C(8, -1)], T((8, -1)), None, ""),
    ("RESIZE_BILINEAR", [T(X), C(8, 8)], T((1, 8, 8, 2)), options("ResizeBilinear"), ""),
    ("RESIZE_BILINEAR", [T(X), T((2,), "INT32")], T((1, 8, 8, 2)), options("ResizeBilinear"), "size must be constant"),
    (
        "RESIZE_NEAREST_NEIGHBOR", [T((4, 2)), C(8, 8)], T((8, 8)), options("ResizeNearestNeighbor"), "4 dimensions",
    ),
    ("TRANSPOSE", [T((2, 3)), C(1, 0)], T((3, 2)), None, ""),
    ("TRANSPOSE", [T((2, 3)), T((2,), "INT32")], T((3, 2)), None, "perm must be constant"),
    ("TRANSPOSE", [T((1,) * 6), C(*range(6))], T((1,) * 6), None, "1 to 5 dimensions"),
    ("EXPAND_DIMS", [T((2,)), C(0)], T((1, 2)), None, ""),
    ("EXPAND_DIMS", [T((2,)), T((1,), "INT32")], T((1, 2)), None, "axis must be constant"),
    ("BROADCAST_TO", [T((1,)), C(3)], T((3,)), None, ""),
    ("BROADCAST_TO", [T((1,)), T((1,), "INT32")], T((3,)), None, "shape must be constant"),
    ("BROADCAST_TO", [T((1,)), C(*[1] * 6)], T((1,) * 6), None, "0 to 5 dimensions"),
    ("FILL", [C(3), T((), "INT32")], T((3,), "INT32"), None, ""),
    ("FILL", [T((1,), "INT32"), T((), "INT32")], T((3,), "INT32"), None, "dims must be constant"),
    ("DEPTH_TO_SPACE", [T((4, 4))], T((4, 4)), options("DepthToSpace", blockSize=2), "4 dimensions"),
    ("SPACE_TO_BATCH_ND", [T((4, 4)), C(2), np.zeros((1, 2), np.int32)], T((8, 2)), None, "3 to 4 dimensions"),
    ("L2_NORMALIZATION", [T((1,) * 5)], T((1,) * 5), options("L2Norm"), "0 to 4 dimensions"),
    ("TILE", [T((2,)), C(2)], T((4,)), None, "there is no such kernel"),
    ("RELU", [T((2,))], T((-1,)), None, "not known before it runs"),
    ("RELU", [T((2,))], T((0, 2)), None, "not known before it runs"),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "inputs", "output", "given", "against"), NEEDS)
def test_needs_of_a_kernel(kind: str, inputs: list[Any], output: Any, given: Any, against: str):
    data = model_of(kind, inputs, output, given)
    graph = read_model(data)
    reasons = refusals(graph)
    assert len(reasons) == bool(against)
    assert all(against in reason and reason.startswith(f"{kind}: ") for reason in reasons)


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "inputs", "output", "given", "against"), NEEDS)
def test_the_runtime_needs_the_same(kind: str, inputs: list[Any], output: Any, given: Any, against: str):
    data = model_of(kind, inputs, output, given)
    graph = read_model(data)
    try:
        run_in_wheel(data, random_inputs(graph, 0)[:1], outputs=0)
        runs = True
    except RuntimeError:
        runs = False
    assert runs == (not against)


def test_a_fused_lstm_with_a_peephole_is_refused():
    inputs: list[Any] = [T((1, 1, 2))] + [weights(2, 2, dtype="FLOAT32")] * 8 + [None] * 3
    inputs += [weights(2, dtype="FLOAT32")] * 4 + [None] * 2 + [T((1, 2), isVariable=True)] * 2
    kind, output = "UNIDIRECTIONAL_SEQUENCE_LSTM", T((1, 1, 2))
    assert refusals(read_model(model_of(kind, inputs, output))) == []
    inputs[9] = weights(2, dtype="FLOAT32")
    assert "c_to_i, which the kernel lacks" in refusals(read_model(model_of(kind, inputs, output)))[0]


def test_a_computed_size_of_a_slice_is_told():
    graph = read_model(model_of("SLICE", [T((4,)), C(0), T((1,), "INT32")], T((2,))))
    assert "its size is computed" in refusals(graph)[0]


def test_missing_inputs_are_told():
    for kind, inputs in (("SOFTMAX", [None]), ("SVDF", [T((1, 3)), None]), ("RESHAPE", [])):
        assert refusals(read_model(model_of(kind, inputs, T((1, 3)))))


def test_equal_reasons_are_one_sentence():
    model = ModelBuilder()
    main, other = Builder(model), Builder(model, "other")
    for b, count in ((main, 7), (other, 1)):
        x = b.tensor((1,), "FLOAT32")
        for _ in range(count):
            b.op("POW", [x, x], [y := b.tensor((1,), "FLOAT32")])
        b.finish([x], [y])
    strings = main.tensor((1,), "STRING")
    main.op("NEG", [main.tensor((1,), "UINT8")], [main.tensor((1,), "UINT8")])
    main.finish([strings], [])
    assert refusals(read_model(model.build())) == [
        "POW: there is no such kernel (operators 0, 1, 2, 3, 4 and 3 more)",
        "NEG: its kernel takes f32, not u8 (quantise to int8) (operator 7)",
        "it has tensors of type STRING",
    ]


def test_float16_weights_are_advised_against():
    b = Builder()
    half, y = b.constant(np.ones(3, np.float16)), b.tensor((3,), "FLOAT32")
    b.op("DEQUANTIZE", [half], [y])
    assert "convert without float16 weights" in refusals(read_model(b.build([], [y])))[0]


# The runtime does not refuse these, but what it computes is wrong, or it never ends.
NOT_REFUSED = {"i3196_external_buffers_cifar10_q.tflite", "lstm_fused_keras_f32.tflite"}


@needs_shared
def test_a_sample_of_the_corpus_is_refused_or_runs_as_foretold():
    """tests/benchmarks/trust.py has all of it."""
    paths = [p for p in sorted(SHARED.rglob("*.tflite")) if p.stat().st_size < 30_000 and p.name not in NOT_REFUSED]
    outcomes = set()
    for path in paths[::15]:
        data = path.read_bytes()
        try:
            graph = read_model(data)
            inputs = random_inputs(graph, 0)[:1]
        except (ModelError, ValueError):
            continue
        try:
            run_in_wheel(data, inputs, len(graph.subgraphs[0].outputs))
            runs = True
        except RuntimeError:
            runs = False
        assert runs == (not refusals(graph)), path
        outcomes.add(runs)
    assert outcomes == {True, False}


def test_operators_without_inputs_or_with_odd_options_are_no_traceback():
    assert refusals(read_model(model_of("SHAPE", [], T((1,), "UINT8"))))
    for kind in ("QUANTIZE", "SignalDelay"):
        assert refusals(read_model(model_of(kind, [], T((1,), "UINT8"))))
    for kind in ("SignalDelay", "SignalFilterBank", "SignalFramer", "SignalIrfft", "SignalStacker"):
        words = dict.fromkeys(("delay_length", "num_channels", "frame_size", "fft_length"), "many")
        model = model_of(kind, [T((1, 8), "INT16", ())], T((1, 8), "INT16", ()), custom=words)
        assert persistent_bytes(read_model(model)).total > 0
    huge = model_of("SignalDelay", [T((1 << 28, 1), "INT16", ())], T((1,), "INT16", ()), custom={"delay_length": 4})
    assert persistent_bytes(read_model(huge)).total > 1 << 30
