"""Models of one operator for every kernel of TFLM, and what one more such operator was measured to take.

The figures are in ``tflm_bytes.txt``: bytes of the tail per operator and its output tensors, the difference of models
with 17 and with one of them, in the WebAssembly build of August 2026 (32 bits) and in the wheel of October (64 bits).
``python tests/single_operator_models.py`` measures them again.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema
from flatbuffers import flexbuffers
from model_builder import Builder

PLAIN = (0.5, 0)
X = (1, 4, 4, 2)
FRACTION, PROBABILITY = (2**-15, 0), (2**-8, -128)  # what outputs between -1 and 1, and from 0 to 1, are quantised with


def T(shape: tuple[int, ...] = X, dtype: str = "FLOAT32", scale: tuple[float, int] | None = None, **fields: Any) -> Any:
    """A tensor; integers of up to 16 bits are quantised with PLAIN unless said otherwise, by () not at all."""
    if scale is None and dtype in ("INT8", "INT16", "UINT8"):
        scale = PLAIN
    if scale:
        quantization = schema.QuantizationParametersT()
        quantization.scale, quantization.zeroPoint = [scale[0]], [scale[1]]
        fields["quantization"] = quantization
    return {"shape": shape, "dtype": dtype, **fields}


def C(*values: int) -> np.ndarray:
    return np.array(values, np.int32)


def weights(*shape: int, dtype: str = "INT8", scale: tuple[float, int] | None = None) -> Any:
    data = np.ones(shape, {"INT8": np.int8, "INT16": np.int16, "FLOAT32": np.float32}[dtype])
    return T(shape, dtype, scale, data=data)


def per_channel(*shape: int, axis: int = 0) -> Any:
    quantization = schema.QuantizationParametersT()
    count = shape[axis]
    quantization.scale, quantization.zeroPoint, quantization.quantizedDimension = [0.5] * count, [0] * count, axis
    return {"shape": shape, "dtype": "INT8", "data": np.ones(shape, np.int8), "quantization": quantization}


def options(table: str, **fields: Any) -> Any:
    made = getattr(schema, f"{table}OptionsT")()
    for field, value in fields.items():
        assert hasattr(made, field)
        setattr(made, field, value)
    return made


def model_of(
    kind: str, inputs: list[Any], outputs: Any, given: Any = None, count: int = 1, custom: dict | None = None
) -> bytes:
    """So many equal operators, each with outputs of its own; a tensor is an array, what T() says, or None."""
    b = Builder()
    numbers, graph_inputs, first = [], [], -1
    for what in inputs:
        if isinstance(what, np.ndarray):
            numbers.append(b.constant(what))
        elif what is None:
            numbers.append(-1)
        else:
            numbers.append(b.tensor(**what))
            if what.get("data") is None and not what.get("isVariable"):
                graph_inputs.append(numbers[-1])
    more = {} if custom is None else {"customOptions": np.frombuffer(flexbuffers.Dumps(custom), np.uint8)}
    for _ in range(count):
        results = [b.tensor(**what) for what in (outputs if isinstance(outputs, list) else [outputs])]
        first = results[0] if first < 0 else first
        b.op(kind, numbers, results, given, **more)
    return b.build(graph_inputs, [first])


CONV = options("Conv2D", strideH=1, strideW=1, dilationHFactor=1, dilationWFactor=1)
DEPTHWISE = options("DepthwiseConv2D", strideH=1, strideW=1, depthMultiplier=1, dilationHFactor=1, dilationWFactor=1)
TRANSPOSED = options("TransposeConv", strideH=2, strideW=2)
POOL = options("Pool2D", strideH=2, strideW=2, filterHeight=2, filterWidth=2)
DENSE, SOFTMAX, KEEP = options("FullyConnected"), options("Softmax", beta=1.0), options("Reducer", keepDims=True)
SVDF = options("SVDF", rank=2)
SVDF_WEIGHTS = [weights(6, n, dtype="FLOAT32") for n in (3, 2)]
SVDF_WEIGHTS += [weights(3, dtype="FLOAT32"), T((1, 12), isVariable=True)]
DTYPES = {
    "f32": "FLOAT32",
    "i8": "INT8",
    "i16": "INT16",
    "i32": "INT32",
    "i64": "INT64",
    "bool": "BOOL",
    "u32": "UINT32",
}

# (kind, what is special, inputs, outputs, options, custom options)
CASES: list[tuple[str, str, list[Any], Any, Any, dict | None]] = []


def case(kind: str, special: str, inputs: list[Any], outputs: Any, given: Any = None, **custom: Any) -> None:
    CASES.append((kind, special, inputs, outputs, given, custom or None))


def code(name: str, shape: tuple[int, ...] = X) -> Any:
    return T(shape, DTYPES[name])


for _kinds, _types, _options in (
    ("ABS RELU RELU6 TANH LOGISTIC", "f32 i8 i16", None), ("LEAKY_RELU", "f32 i8 i16", options("LeakyRelu", alpha=0.1)),
    ("RSQRT", "f32", None), ("ELU HARD_SWISH ZEROS_LIKE LOG_SOFTMAX", "f32 i8", None),
    ("SOFTMAX", "f32 i8 i16", SOFTMAX),
    ("CEIL COS EXP FLOOR LOG NEG ROUND SIN SQRT SQUARE", "f32", None), ("LOGICAL_NOT", "bool", None),
    ("L2_NORMALIZATION", "f32 i8", options("L2Norm")),
):  # fmt: skip
    for _kind in _kinds.split():
        for _type in _types.split():
            _fixed = {"i16": FRACTION, "i8": PROBABILITY} if _kind in ("TANH", "LOGISTIC", "SOFTMAX") else {}
            _fixed = {"i8": (2**-4, 127)} if _kind == "LOG_SOFTMAX" else _fixed
            case(_kind, _type, [code(_type)], T(X, DTYPES[_type], _fixed.get(_type)), _options)
for _from, _to in (("f32", "i8"), ("f32", "i16"), ("i8", "i8"), ("i16", "i8"), ("i8", "i16")):
    case("QUANTIZE", f"{_from}>{_to}", [code(_from)], code(_to))
case("DEQUANTIZE", "i8", [code("i8")], T())
for _kind, _types, _options in (
    ("ADD", "f32 i8 i16", options("Add")), ("SUB", "f32 i8", options("Sub")), ("MUL", "f32 i8 i16", options("Mul")),
    ("DIV", "f32 i8", options("Div")), ("MAXIMUM", "f32 i8", None), ("MINIMUM", "f32 i8", None),
    ("SQUARED_DIFFERENCE", "f32 i8", None), ("FLOOR_DIV", "f32", None), ("FLOOR_MOD", "f32", None),
):  # fmt: skip
    for _type in _types.split():
        case(_kind, _type, [code(_type)] * 2, code(_type), _options)
for _kind in "EQUAL NOT_EQUAL LESS LESS_EQUAL GREATER GREATER_EQUAL".split():
    case(_kind, "i8", [code("i8")] * 2, code("bool"))
for _kind in ("LOGICAL_AND", "LOGICAL_OR"):
    case(_kind, "", [code("bool")] * 2, code("bool"))
for _type in ("f32", "i8"):
    case("ADD_N", _type, [code(_type)] * 5, code(_type))
    case("PRELU", _type, [code(_type), weights(1, 1, 2, dtype=DTYPES[_type])], code(_type))
for _n in (1, 4, 5, 33):
    case("CONV_2D", f"{_n} channels", [code("i8"), per_channel(_n, 1, 1, 2), None], code("i8", (1, 4, 4, _n)), CONV)
    _picture, _filter = code("i8", (1, 4, 4, _n)), per_channel(1, 1, 1, _n, axis=3)
    case("DEPTHWISE_CONV_2D", f"{_n} channels", [_picture, _filter, np.zeros(_n, np.int32)], _picture, DEPTHWISE)
    case(
        "FULLY_CONNECTED", f"{_n} channels", [code("i8", (1, 8)), per_channel(_n, 8), None], code("i8", (1, _n)), DENSE
    )
    _filter = per_channel(_n, 2, 2, 2)
    case("TRANSPOSE_CONV", f"{_n}", [C(1, 8, 8, _n), _filter, code("i8")], code("i8", (1, 8, 8, _n)), TRANSPOSED)
case("CONV_2D", "f32", [T(), weights(9, 1, 1, 2, dtype="FLOAT32"), None], T((1, 4, 4, 9)), CONV)
case("FULLY_CONNECTED", "f32", [T((1, 8)), weights(9, 8, dtype="FLOAT32"), None], T((1, 9)), DENSE)
case("FULLY_CONNECTED", "one scale", [code("i8", (1, 8)), weights(9, 8), None], code("i8", (1, 9)), DENSE)
for _type in ("f32", "i8"):
    for _x, _y in ((False, False), (False, True), (True, False), (True, True)):
        _a, _b = ((4, 3) if _x else (3, 4)), ((9, 4) if _y else (4, 9))
        case("BATCH_MATMUL", f"{_type} {_x} {_y}", [code(_type, _a), code(_type, _b)], code(_type, (3, 9)),
             options("BatchMatMul", adjX=_x, adjY=_y))  # fmt: skip
case("BATCH_MATMUL", "rank 4", [T((1, 2, 3, 4)), T((1, 2, 4, 9))], T((1, 2, 3, 9)), options("BatchMatMul"))
for _kind in ("MAX_POOL_2D", "AVERAGE_POOL_2D", "L2_POOL_2D"):
    case(_kind, "f32", [T()], T((1, 2, 2, 2)), POOL)
case("EMBEDDING_LOOKUP", "", [C(0, 1), weights(3, 4, dtype="FLOAT32")], T((2, 4)))
case("GATHER", "rank 2", [T((3, 4)), C(0, 1)], T((2, 4)), options("Gather"))
case("GATHER", "rank 4", [T((3, 4, 2, 2)), C(0, 1)], T((2, 4, 2, 2)), options("Gather"))
case("GATHER_ND", "", [T((3, 4)), np.array([[0], [1]], np.int32)], T((2, 4)))
case("SVDF", "f32", [T((1, 3)), *SVDF_WEIGHTS], T((1, 3)), SVDF)
for _kind in ("MEAN", "SUM", "REDUCE_MAX", "REDUCE_MIN"):
    for _type in ("f32", "i8"):
        case(_kind, _type, [code(_type), C(1)], code(_type, (1, 1, 4, 2)), KEEP)
case("REDUCE_ALL", "", [code("bool"), C(1)], code("bool", (1, 1, 4, 2)), KEEP)
for _n in (2, 10):
    case("CONCATENATION", f"{_n}", [T()] * _n, T((1, 4, 4, 2 * _n)), options("Concatenation", axis=3))
_pads = np.array([[0, 0], [1, 1], [1, 1], [0, 0]], np.int32)
case("PAD", "", [T(), _pads], T((1, 6, 6, 2)), options("Pad"))
case("PADV2", "", [T(), _pads, np.ones(1, np.float32)], T((1, 6, 6, 2)), options("PadV2"))
case("MIRROR_PAD", "", [T(), _pads], T((1, 6, 6, 2)), options("MirrorPad"))
case("SLICE", "", [T(), C(0, 0, 0, 0), C(1, 2, 2, 2)], T((1, 2, 2, 2)))
case("STRIDED_SLICE", "", [T((4,)), C(0), C(2), C(1)], T((2,)), options("StridedSlice"))
_axis, _halves = np.array(3, np.int32), [T((1, 4, 4, 1))] * 2
case("SPLIT", "", [_axis, T()], _halves, options("Split", numSplits=2))
case("SPLIT_V", "", [T(), C(1, 1), _axis], _halves, options("SplitV", numSplits=2))
case("PACK", "", [T()] * 2, T((2, *X)), options("Pack", valuesCount=2))
case("UNPACK", "", [T((2, 3))], [T((3,))] * 2, options("Unpack", num=2))
case("RESHAPE", "", [T(), C(32)], T((32,)), options("Reshape"))
case("SQUEEZE", "", [T((1, 4))], T((4,)), options("Squeeze", squeezeDims=[0]))
case("RESIZE_NEAREST_NEIGHBOR", "", [T(), C(8, 8)], T((1, 8, 8, 2)), options("ResizeNearestNeighbor"))
case("RESIZE_BILINEAR", "", [T(), C(8, 8)], T((1, 8, 8, 2)), options("ResizeBilinear"))
case("TRANSPOSE", "", [T((2, 3)), C(1, 0)], T((3, 2)))
case("EXPAND_DIMS", "", [T((2,)), C(0)], T((1, 2)))
case("DEPTH_TO_SPACE", "", [T((1, 2, 2, 4))], T((1, 4, 4, 1)), options("DepthToSpace", blockSize=2))
case("SPACE_TO_DEPTH", "", [T((1, 4, 4, 1))], T((1, 2, 2, 4)), options("SpaceToDepth", blockSize=2))
case("SPACE_TO_BATCH_ND", "", [T((1, 4, 4, 1)), C(2, 2), np.zeros((2, 2), np.int32)], T((4, 2, 2, 1)))
case("BATCH_TO_SPACE_ND", "", [T((4, 2, 2, 1)), C(2, 2), np.zeros((2, 2), np.int32)], T((1, 4, 4, 1)))
case("ARG_MAX", "", [T(), _axis], code("i32", (1, 4, 4)), options("ArgMax", outputType=2))
case("ARG_MIN", "", [T(), _axis], code("i32", (1, 4, 4)), options("ArgMin", outputType=2))
for _type in ("f32", "i8"):
    case("CUMSUM", _type, [code(_type), _axis], code(_type), options("Cumsum"))
case("SELECT_V2", "", [code("bool"), T(), T()], T())
case("REVERSE_V2", "", [T(), C(1)], T())
case("SHAPE", "", [T()], code("i32", (4,)), options("Shape", outType=2))
case("DYNAMIC_UPDATE_SLICE", "", [T((4, 4)), T((2, 4)), C(0, 0)], T((4, 4)))
case("CAST", "", [T()], code("i32"), options("Cast"))
case("BROADCAST_TO", "", [T((1, 2)), C(3, 2)], T((3, 2)))
case("BROADCAST_ARGS", "", [C(1, 2), C(2, 1)], code("i32", (2,)))
case("FILL", "", [C(3), code("i32", ())], code("i32", (3,)))
for _type, _dtype in (("f32", "FLOAT32"), ("i8", "INT8")):
    _matrices = [weights(6, 3, dtype=_dtype)] * 4 + [weights(6, 6, dtype=_dtype)] * 4
    _biases = [weights(6, dtype="FLOAT32") if _type == "f32" else np.zeros(6, np.int32)] * 4
    _states = [T((1, 6), _dtype, isVariable=True), T((1, 6), _dtype if _type == "f32" else "INT16", isVariable=True)]
    _inputs = [code(_type, (1, 4, 3)), *_matrices, *[None] * 3, *_biases, *[None] * 2, *_states, *[None] * 4]
    case("UNIDIRECTIONAL_SEQUENCE_LSTM", _type, _inputs, code(_type, (1, 4, 6)), options("UnidirectionalSequenceLSTM"))


def _i16(*shape: int) -> Any:
    return T(shape, "INT16", ())


for _n in (64, 512):
    case("SignalRfft", f"i16 {_n}", [_i16(1, _n)], _i16(1, _n + 2), fft_length=_n, T=7)
    case("SignalRfft", f"f32 {_n}", [T((1, _n))], T((1, _n + 2)), fft_length=_n, T=0)
    case("SignalIrfft", f"i16 {_n}", [_i16(1, _n + 2)], _i16(1, _n), fft_length=_n, T=7)
case("SignalWindow", "", [_i16(1, 480), np.ones(480, np.int16)], _i16(1, 480), shift=12)
case("SignalFftAutoScale", "", [_i16(480)], [_i16(480), code("i32", ())], nothing=0)
case("SignalEnergy", "", [_i16(514)], code("u32", (257,)), end_index=241, start_index=5)
_bands = [np.ones(n, np.int16) for n in (316, 316, 41, 41, 41)]
case("SignalFilterBank", "", [code("u32", (257,)), *_bands], T((40,), "UINT64"), num_channels=40)
case("SignalFilterBankLog", "", [code("u32", (40,))], _i16(40), input_correction_bits=3, output_scale=64)
case("SignalFilterBankSquareRoot", "", [T((40,), "UINT64"), code("i32", ())], code("u32", (40,)), nothing=0)
case("SignalFilterBankSpectralSubtraction", "", [code("u32", (40,))], [code("u32", (40,))] * 2, num_channels=40,
     alternate_one_minus_smoothing=15401, alternate_smoothing=983, clamping=False, min_signal_remaining=819,
     one_minus_smoothing=15975, smoothing=409, smoothing_bits=10, spectral_subtraction_bits=14)  # fmt: skip
case("SignalPCAN", "", [code("u32", (40,))] * 2 + [np.ones(125, np.int16)], code("u32", (40,)), snr_shift=6)
_context = {"stacker_left_context": 1, "stacker_right_context": 1}
case("SignalStacker", "", [_i16(40)], [_i16(120), code("bool", ())], num_channels=40, stacker_step=1, **_context)
for _n in (1, 3):
    case("SignalFramer", f"{_n}", [_i16(_n, 160)], [_i16(_n, 1, 320), code("bool", ())], frame_size=320, frame_step=160,
         prefill=False)  # fmt: skip
    case("SignalDelay", f"{_n}", [_i16(_n, 160)], _i16(_n, 160), delay_length=16)
    case("SignalOverlapAdd", f"i16 {_n}", [_i16(_n, 1, 400)], _i16(_n, 160), T=7, frame_step=160)
    case("SignalOverlapAdd", f"f32 {_n}", [T((_n, 1, 400))], T((_n, 160)), T=0, frame_step=160)
case("CIRCULAR_BUFFER", "", [T((1, 1, 1, 4), "INT8")], T((1, 5, 1, 4), "INT8"), cycles_max=1)
case("TFLite_Detection_PostProcess", "", [T((1, 6, 4)), T((1, 6, 3)), weights(6, 4, dtype="FLOAT32")],
     [T((1, 3, 4)), T((1, 3)), T((1, 3)), T((1,))], max_detections=3, max_classes_per_detection=1, num_classes=2,
     detections_per_class=1, use_regular_nms=False, nms_score_threshold=0.1, nms_iou_threshold=0.5, y_scale=10.0,
     x_scale=10.0, h_scale=5.0, w_scale=5.0)  # fmt: skip

FEW, MANY = 1, 17  # operators in the two models that are compared


def pair(number: int) -> tuple[bytes, bytes]:
    """The two models of a case."""
    kind, _, inputs, outputs, given, custom = CASES[number]
    few, many = (model_of(kind, inputs, outputs, given, count, custom) for count in (FEW, MANY))
    return few, many


FIGURES = Path(__file__).with_name("tflm_bytes.txt")


def measured() -> dict[tuple[str, str], tuple[float | None, float | None]]:
    """(kind, what is special) -> bytes per operator (32 bits, 64 bits), None where that runtime does not run it."""
    lines = [line.split("|") for line in FIGURES.read_text().splitlines() if not line.startswith("#")]
    return {
        (kind, special): (float(a) if a else None, float(b) if b else None)
        for kind, special, a, b in (map(str.strip, line) for line in lines)
    }


def main() -> None:
    from runtimes import run_in_wheel, run_tflm

    def tails(runner: Any, models: tuple[bytes, bytes]) -> str:
        try:
            few, many = map(runner, models)
        except RuntimeError:
            return ""
        return f"{(many - few) / (MANY - FEW):g}"

    def in_webassembly(model: bytes) -> int:
        with tempfile.NamedTemporaryFile(suffix=".tflite") as file:
            file.write(model)
            file.flush()
            return run_tflm(Path(file.name)).tail

    lines = ["# kind | what is special | bytes per operator with its outputs, 32 bits | 64 bits"]
    for number, (kind, special, *_) in enumerate(CASES):
        models = pair(number)
        wheel = tails(lambda model: run_in_wheel(model, [], 0).tail, models)
        lines.append(f"{kind} | {special} | {tails(in_webassembly, models)} | {wheel}")
        print(lines[-1])
    FIGURES.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))
    main()
