"""What TFLM rejects and has an equivalent, 1-D networks, and the TFLM that a model requires."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema
from corpus import SHARED, needs_shared
from model_builder import Builder
from runtimes import litert_agrees, random_inputs, run_in_wheel, run_litert, wheel_agrees
from spatial_nets import SAME, VALID, Net, quantized_by

from tflite_tools import TFLiteModel, Upright, lightened, main


def kinds(model: TFLiteModel) -> list[str]:
    return [operator.kind for operator in model.graph.subgraphs[0].operators]


def runs_as_before(before: bytes, after: bytes) -> bool:
    """Whether LiteRT gives the same bits before and after, and TFLM those of LiteRT."""
    inputs = random_inputs(before, 0)
    count = len(TFLiteModel(after).graph.subgraphs[0].outputs)
    made = run_in_wheel(after, [inputs], count).outputs[0]
    expected = run_litert(before, inputs, reference=True)
    return litert_agrees(before, after) and all(a.tobytes() == b.tobytes() for a, b in zip(made, expected, strict=True))


def repaired(data: bytes, **how: Any) -> TFLiteModel:
    """The model, which TFLM rejects before and not after."""
    model = TFLiteModel(data, **how)
    assert model.snapshot.refusals
    assert model.repair_operators().changed
    assert not model.snapshot.refusals
    return model


# -- operators that TFLM rejects ---------------------------------------------------------------------


@pytest.mark.parametrize(("dtype", "count", "axis"), [("INT8", 11, 1), ("FLOAT32", 23, 3), ("INT16", 101, 2)])
def test_concatenation_of_many_inputs_takes_several_steps(dtype: str, count: int, axis: int):
    net = Net(dtype)
    x = source = net.picture(2, 3, 4)
    parts = [x if i % 3 else net.map("RELU", x) for i in range(count)]
    shape = net.shape(x)
    shape[axis] *= count
    options = schema.ConcatenationOptionsT()
    options.axis = axis - 4 if axis == 3 else axis
    y = net.picture(*shape[1:])
    net.op("CONCATENATION", parts, [y], options)
    data = net.build([source], [y])
    assert runs_as_before(data, repaired(data).to_bytes())


def test_tile_of_another_scale_or_of_many_copies_stays():
    for times, scale in ((3, 0.1), (4_000_000, 0.05)):
        net = Net()
        x = net.picture(4, 4, 2)
        y = net.tensor((1, 4 * times, 4, 2), "INT8", quantization=quantized_by([scale], [-3]))
        net.op("TILE", [x, net.constant(np.array([1, times, 1, 1], np.int32))], [y], schema.TileOptionsT())
        assert not TFLiteModel(net.build([x], [y])).repair_operators().changed


def test_biases_of_two_types_are_two_constants():
    net = Net("FLOAT32")
    x = net.picture(6, 6, 4)
    made = net.window("DEPTHWISE_CONV_2D", x)
    net.dtype = "INT8"
    quantized = net.picture(6, 6, 4)
    net.op("QUANTIZE", [made], [quantized])
    y = net.window("DEPTHWISE_CONV_2D", quantized)
    for operator in net.table.operators:
        operator.inputs = [*operator.inputs[:2], -1] if len(operator.inputs) > 1 else operator.inputs
    graph = repaired(net.build([x], [y])).graph.subgraphs[0]
    assert [graph.tensors[operator.inputs[-1]].dtype for operator in graph.operators[::2]] == ["FLOAT32", "INT32"]


@pytest.mark.parametrize("signature", [None, [-1, 8]])
def test_a_repair_that_fixes_the_batch_says_so(signature: list[int] | None):
    net = Net()
    x = net.tensor((1, 8), "INT8", **net.quantization(), shapeSignature=signature)
    y = net.tensor((1, 3), "INT8", **net.quantization())
    net.op("FULLY_CONNECTED", [x, net.weights(3, 8), net.bias(3)], [y], schema.FullyConnectedOptionsT())
    net.table.tensors[net.table.operators[-1].inputs[1]].quantization = quantized_by([0.1, 0.2, 0.3], [0] * 3)
    decision = TFLiteModel(net.build([x], [y]), tflm="2024-01").repair_operators()
    assert decision.changed
    assert decision.is_batch_fixed == any("batch size is fixed" in line for line in decision.lines()) == bool(signature)


def test_inputs_of_several_scales_are_not_joined_in_steps():
    net = Net()
    x = source = net.picture(2, 3, 4)
    other = net.tensor((1, 2, 3, 4), "INT8", quantization=quantized_by([0.5], [0]))
    net.op("QUANTIZE", [x], [other])
    y = net.picture(2, 3, 48)
    options = schema.ConcatenationOptionsT()
    options.axis = 3
    net.op("CONCATENATION", [x] * 11 + [other], [y], options)
    assert not TFLiteModel(net.build([source], [y])).repair_operators().changed


@pytest.mark.parametrize("times", [(1, 2, 3, 1), (1, 1, 1, 12), (2, 1, 2, 2)])
def test_tile_is_a_concatenation(times: tuple[int, ...]):
    net = Net("FLOAT32")
    x = net.picture(2, 3, 4)
    y = net.tensor(tuple(d * n for d, n in zip((1, 2, 3, 4), times, strict=True)), "FLOAT32")
    net.op("TILE", [x, net.constant(np.array(times, np.int32))], [y])
    data = net.build([x], [y])
    assert set(kinds(repaired(data))) == {"CONCATENATION"}
    assert runs_as_before(data, repaired(data).to_bytes())


def test_a_bias_that_is_left_out_is_zero():
    net = Net()
    x = net.picture(5, 5, 4)
    y = net.window("DEPTHWISE_CONV_2D", x)
    bias = net.table.operators[0].inputs[2]
    net.model.buffers[net.table.tensors[bias].buffer].data = np.zeros(16, np.uint8)
    with_zeros = net.build([x], [y])
    net.table.operators[0].inputs[2] = -1
    model = repaired(net.build([x], [y]))
    assert wheel_agrees([(with_zeros, model.to_bytes())]) == [True]


def test_no_bias_is_made_of_a_type_without_kernels():
    net = Net("INT8")
    x = net.picture(5, 5, 4)
    y = net.window("DEPTHWISE_CONV_2D", x)
    net.table.operators[0].inputs[2] = -1
    for tensor in net.table.tensors:
        tensor.type = schema.TensorType.UINT8
    assert not TFLiteModel(net.build([x], [y])).repair_operators().changed


def unpacked(stored: np.ndarray, **quantization: Any) -> bytes:
    """Weights that DEQUANTIZE makes floats."""
    net = Builder()
    x, y = net.tensor((2, 6), "FLOAT32"), net.tensor((2, 4), "FLOAT32")
    weights = net.tensor((4, 6), "FLOAT32")
    net.op("DEQUANTIZE", [net.constant(stored, **quantization)], [weights])
    net.op("FULLY_CONNECTED", [x, weights, -1], [y], schema.FullyConnectedOptionsT())
    return net.build([x], [y])


def test_float16_weights_are_float32_constants():
    data = unpacked(np.random.default_rng(0).normal(size=(4, 6)).astype(np.float16))
    model = repaired(data)
    assert kinds(model) == ["FULLY_CONNECTED"]
    assert runs_as_before(data, model.to_bytes())


def dense(scales: int = 4, has_bias: bool = True, rank: int = 2) -> bytes:
    net = Net()
    shape = (3, 6) if rank == 2 else (1, 3, 6)
    x = net.tensor(shape, "INT8", **net.quantization())
    y = net.tensor((*shape[:-1], 4), "INT8", **net.quantization())
    own = [0.01 * (i + 1) for i in range(scales)]
    weights = net.constant(np.random.default_rng(0).integers(-99, 99, (4, 6)).astype(np.int8),
                           quantization=quantized_by(own, [0] * scales))  # fmt: skip
    bias = net.constant(np.arange(-4, 4, 2).astype(np.int32), quantization=quantized_by(own, [0] * scales))
    options = schema.FullyConnectedOptionsT()
    options.keepNumDims, options.fusedActivationFunction = rank == 3, 1
    net.op("FULLY_CONNECTED", [x, weights, *([bias] if has_bias else [])], [y], options)
    return net.build([x], [y])


@pytest.mark.parametrize("rank", [2, 3])
@pytest.mark.parametrize("has_bias", [True, False])
def test_a_scale_per_channel_needs_a_convolution_in_older_tflm(rank: int, has_bias: bool):
    data = dense(has_bias=has_bias, rank=rank)
    assert not TFLiteModel(data, tflm="2024-09").snapshot.refusals
    assert "September 2024" in TFLiteModel(data, tflm="2024-08").snapshot.refusals[0]
    model = repaired(data, tflm="2024-08")
    assert kinds(model) == ["RESHAPE", "CONV_2D", "RESHAPE"]
    assert wheel_agrees([(data, model.to_bytes())]) == [True]
    assert not TFLiteModel(dense(1), tflm="2024-08").snapshot.refusals


@pytest.mark.parametrize("scales", [1, 4])
def test_hybrid_operators_get_float_weights_on_request_only(scales: int, tmp_path: Path, capsys: Any):
    net = Net("FLOAT32")
    x, y = net.tensor((3, 6), "FLOAT32"), net.tensor((3, 4), "FLOAT32")
    stored = np.random.default_rng(0).integers(-99, 99, (4, 6)).astype(np.int8)
    own = [0.01 * (i + 1) for i in range(scales)]
    weights = net.constant(stored, quantization=quantized_by(own, [0] * scales))
    net.op("FULLY_CONNECTED", [x, weights, -1], [y], schema.FullyConnectedOptionsT())
    data = net.build([x], [y])
    assert not TFLiteModel(data).repair_operators().changed
    model = TFLiteModel(data)
    assert model.repair_operators(is_inexact=True).floats == ("FULLY_CONNECTED",)
    inputs = random_inputs(data, 0)
    exact = inputs[0].astype(np.float64) @ (stored * np.resize(np.float32(own), (4, 1))).astype(np.float64).T
    np.testing.assert_allclose(run_in_wheel(model.to_bytes(), [inputs], 1).outputs[0][0], exact, rtol=1e-5, atol=1e-5)
    (tmp_path / "hybrid.tflite").write_bytes(data)
    out = tmp_path / "out.tflite"
    assert main([str(tmp_path / "hybrid.tflite"), "--repair", "hybrid", "--verify", "-o", str(out)]) == 0
    text = capsys.readouterr().out
    assert "Not bit-identical" in text
    assert "SQNR" in text
    assert out.exists()


def test_a_report_proposes_what_repairs_the_model(tmp_path: Path, capsys: Any):
    path = tmp_path / "half.tflite"
    path.write_bytes(unpacked(np.ones((4, 6), np.float16)))
    assert main([str(path)]) == 0
    assert "--repair replaces 1 operator that TFLM rejects" in capsys.readouterr().out
    assert main([str(path), "--fit"]) == 1
    assert "--repair" in capsys.readouterr().err
    assert main([str(path), "--repair", "--fit"]) == 0


# -- 1-D networks ------------------------------------------------------------------------------------


def series(dtype: str = "INT8", rank: int = 4, dilation: int = 1, length: int = 400) -> bytes:
    """Causal convolutions over time, as Keras writes them: with tensors of rank 3 between them, or not."""
    net = Net(dtype)
    net.picture = lambda height, width, channels: net.tensor((1, height, width, channels), dtype, **net.quantization())
    x = source = net.tensor((1, length, 4) if rank == 3 else (1, 1, length, 4), dtype, **net.quantization())
    for _ in range(3):
        if rank == 3:
            flat, x = x, net.tensor((1, 1, length, net.shape(x)[-1]), dtype, **net.quantization())
            net.op("EXPAND_DIMS", [flat, net.constant(np.array(1, np.int32))], [x])
        x = net.pad(x, 0, 0, 4 * dilation, 0)
        x = net.window("CONV_2D", x, 8, (1, 5), 1, VALID, dilation)
        if rank == 3:
            x, high = net.tensor((1, length, 8), dtype, **net.quantization()), x
            options = schema.SqueezeOptionsT()
            options.squeezeDims = [1]
            net.op("SQUEEZE", [high], [x], options)
            y = net.tensor((1, length, 8), dtype, **net.quantization())
            net.op("RELU", [x], [y])
            x = y
    return net.build([source], [x])


@pytest.mark.parametrize("dtype", ["INT8", "FLOAT32"])
@pytest.mark.parametrize("rank", [3, 4])
def test_series_are_cut_along_time(dtype: str, rank: int):
    data = series(dtype, rank)
    model = TFLiteModel(data)
    before = TFLiteModel(data)
    before.plan_memory()
    assert model.split_operators(stripes="auto", try_orders=True).changed
    model.plan_memory()
    assert model.arena.reserve < before.arena.reserve
    assert litert_agrees(data, model.to_bytes())
    assert wheel_agrees([(data, model.to_bytes())]) == [True]


def test_operators_that_move_bytes_and_restore_a_shape_go():
    net = Net()
    x = source = net.picture(4, 6, 8)
    x = net.map("RELU", x)
    flat = net.tensor((4, 6, 8), "INT8", **net.quantization())
    net.op("RESHAPE", [x, net.constant(np.array([4, 6, 8], np.int32))], [flat], schema.ReshapeOptionsT())
    again = net.picture(4, 6, 8)
    net.op("EXPAND_DIMS", [flat, net.constant(np.array(0, np.int32))], [again])
    data = net.build([source], [net.map("RELU", again)])
    model = TFLiteModel(data)
    assert model.lighten_operators().changed
    assert kinds(model) == ["RELU", "RELU"]
    assert wheel_agrees([(data, model.to_bytes())]) == [True]


def in_batches(
    net: Net, kind: str, block: tuple[int, ...], pads: tuple[int, ...], crops: tuple[int, ...], **window: Any
) -> bytes:
    """RELU, then a convolution between SPACE_TO_BATCH_ND and BATCH_TO_SPACE_ND; pads grow until blocks fit."""
    height, width = 8, 9
    x = source = net.picture(height, width, 3)
    x = net.map("RELU", x)
    tall, wide = height + sum(pads[:2]), width + sum(pads[2:])
    tall, wide = tall - tall % block[0], wide - wide % block[1]
    pads = pads[0], tall - height - pads[0], pads[2], wide - width - pads[2]
    inner = net.tensor((block[0] * block[1], tall // block[0], wide // block[1], 3), net.dtype, **net.quantization())
    sizes = net.constant(np.array(block, np.int32))
    outer = net.constant(np.array(pads, np.int32).reshape(2, 2))
    net.op("SPACE_TO_BATCH_ND", [x, sizes, outer], [inner])
    how = {"kernel": (3, 3), "stride": 1, "padding": VALID} | window
    _, rows, columns, depth = net.shape(net.window(kind, inner, 4, **how))
    made = net.tensor((block[0] * block[1], rows, columns, depth), net.dtype, **net.quantization())
    net.table.operators[-1].outputs = [made]
    y = net.picture(rows * block[0] - sum(crops[:2]), columns * block[1] - sum(crops[2:]), depth)
    cut = net.constant(np.array(crops, np.int32).reshape(2, 2))
    net.op("BATCH_TO_SPACE_ND", [made, sizes, cut], [y])
    return net.build([source], [y])


@pytest.mark.parametrize(("block", "pads", "crops"), [
    ((2, 2), (2, 2, 2, 2), (0, 0, 0, 0)), ((2, 3), (4, 0, 6, 0), (0, 0, 0, 0)), ((2, 2), (2, 4, 2, 3), (0, 2, 0, 1)),
    ((1, 2), (0, 0, 0, 1), (0, 0, 0, 1)),
])  # fmt: skip
@pytest.mark.parametrize("kind", ["CONV_2D", "DEPTHWISE_CONV_2D"])
@pytest.mark.parametrize("zero", [0, -3, None])
def test_batches_of_pixels_are_a_dilated_convolution(
    zero: int | None, kind: str, block: tuple[int, ...], pads: tuple[int, ...], crops: tuple[int, ...]
):
    """``zero``: the zero point, or None for floats. TFLM pads batches of integers with 0, whatever their zero point."""
    net = Net("FLOAT32" if zero is None else "INT8")
    if zero is not None:
        net.quantization = lambda n=0: {
            "quantization": quantized_by([0.05] * max(n, 1), [0 if n else zero] * max(n, 1))
        }
    data = in_batches(net, kind, block, pads, crops)
    after = lightened(TFLiteModel(data).snapshot)
    found = kinds(TFLiteModel(bytes(after.data)))
    assert ("SPACE_TO_BATCH_ND" in found) == (bool(zero) and any(pads))
    assert litert_agrees(data, bytes(after.data))
    assert wheel_agrees([(data, bytes(after.data))]) == [True]


@pytest.mark.parametrize(("window", "unlike", "blocks"), [
    ({}, {}, (2, 2)), ({"stride": 2}, {}, (2, 2)), ({"padding": SAME}, {}, (2, 2)), ({}, {}, (4, 1)), ({}, {}, (4,)),
    ({}, {1: {"quantization": quantized_by([0.25], [0])}}, (2, 2)),
    ({}, {1: {"shapeSignature": [1, -1, 9, 3]}}, (2, 2)), ({}, {1: {"shape": [1, 72, 3]}}, (2, 2)),
])  # fmt: skip
def test_batches_stay_where_a_dilated_convolution_is_another(
    window: dict[str, Any], unlike: dict[int, Any], blocks: tuple[int, ...]
):
    """``unlike``: tensor -> what is changed about it. Without any change there are no batches afterwards."""
    net = Net()
    net.quantization = lambda n=0: {"quantization": quantized_by([0.05] * max(n, 1), [0] * max(n, 1))}
    in_batches(net, "CONV_2D", (2, 2), (2, 2, 2, 2), (0, 0, 0, 0), **window)
    last = net.table.operators[-1]
    last.inputs = [last.inputs[0], net.constant(np.array(blocks, np.int32)), last.inputs[2]]
    for tensor, change in unlike.items():
        for name, value in change.items():
            setattr(net.table.tensors[tensor], name, value)
    after = kinds(TFLiteModel(bytes(lightened(TFLiteModel(net.build([0], net.table.outputs)).snapshot).data)))
    assert ("BATCH_TO_SPACE_ND" in after) == bool(window or unlike or blocks != (2, 2))


def test_a_series_joined_with_a_constant_stays():
    net = Net()
    net.picture = lambda height, width, channels: net.tensor(
        (1, height, width, channels), net.dtype, **net.quantization()
    )
    x = net.picture(1, 24, 2)
    made, fixed = net.window("CONV_2D", x, 2, (1, 3)), net.weights(1, 1, 6, 2)
    net.table.tensors[fixed].quantization = net.quantization()["quantization"]
    joined, options = net.picture(1, 30, 2), schema.ConcatenationOptionsT()
    options.axis = 2
    net.op("CONCATENATION", [made, fixed], [joined], options)
    data = net.build([x], [net.window("CONV_2D", joined, 2, (1, 3))])
    model = TFLiteModel(data)
    light = lightened(model.snapshot)
    after = light.rewritten(Upright(light.graph.subgraphs[0]).emitter.rewrite())
    assert wheel_agrees([(data, bytes(after.data))]) == [True]


def test_no_operator_is_replaced_where_tensors_are_written_twice():
    """RESHAPE hands on what a tensor was; later operators read that, and not what it is by then."""
    net = Net("FLOAT32")
    x, first, same, last, y = (net.picture(2, 3, 4) for _ in range(5))
    flat = net.tensor((2, 3, 4), "FLOAT32")
    net.op("RELU", [x], [first])
    net.op("RESHAPE", [first, net.constant(np.array([2, 3, 4], np.int32))], [flat], schema.ReshapeOptionsT())
    net.op("EXPAND_DIMS", [flat, net.constant(np.array(0, np.int32))], [same])
    net.op("NEG", [x], [first])
    net.op("TANH", [first], [last])
    net.op("ADD", [same, last], [y], schema.AddOptionsT())
    data = net.build([x], [y])
    model = TFLiteModel(data)
    model.repair_operators()
    model.use_integer_ports()
    model.lighten_operators()
    model.split_operators(stripes="auto")
    assert wheel_agrees([(data, model.to_bytes())]) == [True]


def random_series(rng: random.Random) -> bytes:
    """A chain of windows, padding, sums and movers of bytes over time."""
    net = Net(rng.choice(("INT8", "FLOAT32")), rng.randrange(1 << 30))
    net.picture = lambda height, width, channels: net.tensor(
        (1, height, width, channels), net.dtype, **net.quantization()
    )
    x = source = net.picture(1, rng.randint(24, 60), rng.choice((2, 3)))
    for _ in range(rng.randint(2, 5)):
        _, _, width, channels = net.shape(x)
        kind = rng.choice(("CONV_2D", "CONV_2D", "DEPTHWISE_CONV_2D", "MAX_POOL_2D", "pad", "ADD", "join", "move"))
        if kind == "pad":
            x = net.pad(x, 0, 0, rng.randint(0, 3), rng.randint(0, 3))
        elif kind == "ADD":
            x = net.map("ADD", x, x)
        elif kind == "join":
            x = net.concatenate(x, x)
        elif kind == "move":
            flat = net.tensor((1, width, channels), net.dtype, **net.quantization())
            shape = net.constant(np.array([1, width, channels], np.int32))
            net.op("RESHAPE", [x, shape], [flat], schema.ReshapeOptionsT())
            x = net.picture(1, width, channels)
            net.op("EXPAND_DIMS", [flat, net.constant(np.array(1, np.int32))], [x])
        else:
            kernel = 1, rng.choice((2, 3, 5))
            x = net.window(kind, x, rng.choice((2, 4)), kernel, rng.choice((1, 2)), rng.choice((SAME, VALID)))
        if net.shape(x)[2] < 12:
            break
    return net.build([source], [x])


@pytest.mark.slow
def test_random_series_compute_the_same():
    pairs = []
    for seed in range(60):
        data = random_series(random.Random(seed))
        model = TFLiteModel(data)
        rewrite = Upright(model.graph.subgraphs[0]).emitter.rewrite()
        turned, new = model.snapshot.rewritten(rewrite), [o.kind for o in rewrite.operators if not isinstance(o, int)]
        has_windows = [any("CONV" in kind or "POOL" in kind for kind in found) for found in (new, kinds(model))]
        assert has_windows[0] == has_windows[1]
        assert litert_agrees(data, bytes(turned.data)), seed
        model.lighten_operators()
        model.split_operators(stripes="auto")
        model.plan_memory()
        assert litert_agrees(data, model.to_bytes()), seed
        pairs += [(data, bytes(turned.data)), (data, model.to_bytes())]
    assert all(wheel_agrees(pairs))


@needs_shared
@pytest.mark.parametrize(("name", "most"), [("n6_1d_width", 22_832), ("n6_1d_space_to_batch", 22_832)])
def test_real_series_are_cut(name: str, most: int):
    model = TFLiteModel.load_from_file(SHARED / "faults" / f"{name}.tflite")
    assert model.fit().after <= most


@needs_shared
def test_every_model_that_older_tflm_rejects_is_repaired_exactly():
    pairs = []
    for path in sorted(SHARED.glob("models/**/*.tflite")) + sorted(SHARED.glob("faults/*.tflite")):
        if path.stat().st_size < 300_000:
            try:
                before, model = TFLiteModel.load_from_file(path), TFLiteModel.load_from_file(path, tflm="2024-06")
                if before.snapshot.refusals or before.arena.problems:
                    continue
            except ValueError:
                continue
            if model.repair_operators().changed:
                pairs.append((before.to_bytes(), model.to_bytes()))
    assert len(pairs) > 4
    assert all(wheel_agrees(pairs))


# -- the TFLM that a model requires ------------------------------------------------------------------


def test_the_newest_kernel_tells_which_tflm_a_model_requires(tmp_path: Path, capsys: Any):
    path = tmp_path / "dense.tflite"
    path.write_bytes(dense())
    assert TFLiteModel(dense()).analysis()["requires_tflm"] == "2024-09"
    assert TFLiteModel(dense(1)).analysis()["requires_tflm"] is None
    assert main([str(path), "--firmware", str(tmp_path / "out")]) == 0
    assert "Requires TFLM of September 2024 or later (FULLY_CONNECTED)" in capsys.readouterr().out
    assert "requires TFLM of September 2024" in (tmp_path / "out" / "dense_model.h").read_text()
    assert main([str(path), "--tflm", "2024-06", "--max-arena", "1MB"]) == 1
    assert main([str(path), "--tflm", "2024"]) == 2
