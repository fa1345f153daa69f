"""Lighter operators and integer ports: the same bits, from fewer bytes of RAM."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema
from model_builder import converting
from runtimes import litert_agrees, wheel_agrees
from spatial_nets import SAME, VALID, Net

from tflite_tools import TFLiteModel, VerificationError, main


def kinds(model: TFLiteModel) -> list[str]:
    return [operator.kind for operator in model.graph.subgraphs[0].operators]


def lightened(data: bytes) -> TFLiteModel:
    """What it makes of a model, which must give the same bits and take no more."""
    model, before = TFLiteModel(data), TFLiteModel(data)
    result = model.lighten_operators()
    changed = model.to_bytes()
    assert result.changed == (changed != data)
    assert model.arena.persistent == (result.after if result.changed else before.arena.persistent)
    assert (model.arena.persistent < before.arena.persistent) == result.changed
    assert model.peak_memory_usage() <= before.peak_memory_usage()
    assert model.arena.head <= before.arena.head
    assert litert_agrees(data, changed)
    assert all(wheel_agrees([(data, changed)]))
    return model


# -- 1 x 1 convolutions ----------------------------------------------------------------------------


def pointwise(dtype: str = "FLOAT32", kernel: tuple[int, int] = (1, 1), stride: int = 1, activation: int = 1) -> bytes:
    net = Net(dtype)
    x = source = net.picture(6, 5, 3)
    x = net.window("CONV_2D", x, 7, kernel, stride)
    net.table.operators[-1].builtinOptions.fusedActivationFunction = activation
    return net.build([source], [net.window("DEPTHWISE_CONV_2D", x)])


@pytest.mark.parametrize("activation", [0, 1, 2, 3])
def test_a_float_convolution_of_one_pixel_is_a_matrix_product(activation: int):
    model = lightened(pointwise(activation=activation))
    assert kinds(model) == ["FULLY_CONNECTED", "DEPTHWISE_CONV_2D"]
    first = model.graph.subgraphs[0].operators[0]
    assert first.options == {"FusedActivationFunction": activation, "KeepNumDims": True}
    before, after = TFLiteModel(pointwise()).graph.subgraphs[0], model.graph.subgraphs[0]
    weights = after.tensors[first.inputs[1]]
    assert weights.shape == (7, 3)
    assert weights.buffer == before.tensors[before.operators[0].inputs[1]].buffer  # the same bytes, not copied ones
    assert len(after.tensors) == len(before.tensors)


@pytest.mark.parametrize("change", [{"dtype": "INT8"}, {"kernel": (2, 1)}, {"kernel": (1, 3)}, {"stride": 2}])
def test_other_convolutions_stay(change: dict[str, Any]):
    assert "FULLY_CONNECTED" not in kinds(lightened(pointwise(**change)))


def test_weights_that_two_convolutions_share_are_reshaped_once():
    net = Net("FLOAT32")
    x = source = net.picture(6, 5, 3)
    x = net.window("CONV_2D", x, 3, (1, 1))
    again = net.picture(6, 5, 3)
    first = net.table.operators[0]
    net.op("CONV_2D", [x, *first.inputs[1:]], [again], first.builtinOptions)
    model = lightened(net.build([source], [again]))
    assert kinds(model) == ["FULLY_CONNECTED"] * 2
    one, other = model.graph.subgraphs[0].operators
    assert one.inputs[1] == other.inputs[1]


# -- padding -----------------------------------------------------------------------------------------


def padded(pads: tuple[int, ...], stride: int = 2, kernel: tuple[int, int] = (3, 3), rows: int = 8,
           kind: str = "CONV_2D", dtype: str = "INT8", is_read: bool = False) -> bytes:  # fmt: skip
    net = Net(dtype)
    x = source = net.picture(rows, 8, 2)
    x = net.map("RELU", x)
    x = net.pad(x, *pads)
    y = net.window(kind, x, 4, kernel, stride, VALID)
    return net.build([source], [y, x] if is_read else [y])


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["CONV_2D", "DEPTHWISE_CONV_2D"])
@pytest.mark.parametrize("dtype", ["INT8", "INT16", "FLOAT32"])
@pytest.mark.parametrize(("pads", "stride", "kernel"), [
    ((0, 1, 0, 1), 2, (3, 3)), ((1, 1, 1, 1), 1, (3, 3)), ((2, 2, 1, 1), 1, (5, 3)), ((0, 0, 1, 1), 1, (1, 3)),
])  # fmt: skip
def test_padding_that_the_convolution_would_do_is_left_to_it(
    kind: str, dtype: str, pads: tuple[int, ...], stride: int, kernel: tuple[int, int]
):
    model = lightened(padded(pads, stride, kernel, kind=kind, dtype=dtype))
    assert kinds(model) == ["RELU", kind]
    assert model.graph.subgraphs[0].operators[1].options["Padding"] == SAME


@pytest.mark.parametrize("change", [
    {"pads": (1, 1, 1, 1)}, {"pads": (1, 0, 1, 0)}, {"pads": (0, 1, 1, 0)}, {"pads": (0, 3, 0, 1)},
    {"pads": (0, 1, 0, 1), "rows": 7}, {"pads": (0, 1, 0, 1), "is_read": True},
    {"pads": (0, 1, 0, 1), "kind": "MAX_POOL_2D"}, {"pads": (0, 1, 0, 1), "kind": "AVERAGE_POOL_2D"},
])  # fmt: skip
def test_other_padding_stays(change: dict[str, Any]):
    assert "PAD" in kinds(lightened(padded(**change)))


def test_padding_with_another_value_than_zero_stays():
    """PAD of integers pads with the zero point of its output: here with what is no zero to the convolution."""
    net = Net()
    x = source = net.picture(8, 8, 2)
    x = net.map("RELU", x)
    x = net.pad(x, 0, 1, 0, 1)
    data = net.build([source], [net.window("CONV_2D", x, 4, (3, 3), 2, VALID)])
    assert "PAD" not in kinds(lightened(data))
    net.table.tensors[1].quantization = net.quantization(1)["quantization"]
    assert not TFLiteModel(net.model.build()).lighten_operators().changed


# -- RESHAPE before FULLY_CONNECTED ------------------------------------------------------------------


def flattened(keeps: bool = False, is_read: bool = False, dtype: str = "INT8", computed: bool = False) -> bytes:
    net = Net(dtype)
    x = source = net.picture(4, 3, 2)
    x = net.map("RELU", x)
    flat = net.tensor((1, 24), dtype, **net.quantization())
    if computed:
        shape = net.tensor((4,), "INT32")
        net.op("SHAPE", [x], [shape], schema.ShapeOptionsT())
        net.table.operators[-1].builtinOptions.outType = schema.TensorType.INT32
        sizes = net.tensor((2,), "INT32")
        net.op("ADD", [net.constant(np.array([1, 24], np.int32)), net.constant(np.zeros(2, np.int32))], [sizes],
               schema.AddOptionsT())  # fmt: skip
        net.op("RESHAPE", [x, sizes], [flat])
    else:
        net.op("RESHAPE", [x, net.constant(np.array([1, -1], np.int32))], [flat], schema.ReshapeOptionsT())
    y = net.tensor((1, 5), dtype, **net.quantization())
    options = schema.FullyConnectedOptionsT()
    options.keepNumDims = keeps
    net.op("FULLY_CONNECTED", [flat, net.weights(5, 24), net.bias(5)], [y], options)
    return net.build([source], [y, flat] if is_read else [y])


@pytest.mark.parametrize("dtype", ["INT8", "INT16", "FLOAT32"])
def test_a_matrix_product_needs_no_reshape(dtype: str):
    assert kinds(lightened(flattened(dtype=dtype))) == ["RELU", "FULLY_CONNECTED"]


def test_what_only_the_reshape_has_read_goes_as_well():
    model = TFLiteModel(flattened(computed=True))
    assert model.lighten_operators().dropped == {"ADD": 1, "RESHAPE": 1}
    assert kinds(model) == ["RELU", "SHAPE", "FULLY_CONNECTED"]  # SHAPE was not read before either
    assert litert_agrees(flattened(computed=True), model.to_bytes())


def test_a_reshape_stays_where_somebody_needs_it():
    assert "RESHAPE" in kinds(lightened(flattened(keeps=True)))
    assert "RESHAPE" in kinds(lightened(flattened(is_read=True)))


def test_an_operator_that_nobody_knows_may_read_past_a_reshape():
    net = Net()
    source, same, y = (net.tensor((1, 4, 3, 2), "INT8", **net.quantization()) for _ in range(3))
    net.op("RESHAPE", [source, net.constant(np.array([1, 4, 3, 2], np.int32))], [same], schema.ReshapeOptionsT())
    net.op("NobodyKnows", [same], [y], customOptions=[1, 2, 3])
    model = TFLiteModel(net.build([source], [y]))
    assert model.lighten_operators().changed
    assert kinds(model) == ["NobodyKnows"]
    assert bytes(model.graph.subgraphs[0].operators[0].custom_options) == bytes([1, 2, 3])


def test_what_stands_against_it_is_said(capsys: pytest.CaptureFixture[str], tmp_path: Path):
    path = tmp_path / "model.tflite"
    path.write_bytes(pointwise("INT8"))
    assert main(["-i", str(path), "--lighten"]) == 0
    assert "No operator replaced: none has a cheaper" in capsys.readouterr().out
    net = Net("FLOAT32")
    x = net.picture(6, 5, 3)
    y = net.window("CONV_2D", x, 7, (1, 1))
    net.model.add_metadata("model_control_dependencies", b"1234")
    result = TFLiteModel(net.build([x], [y])).lighten_operators()
    assert "model_control_dependencies" in result.refusal
    path.write_bytes(flattened(dtype="FLOAT32"))
    assert main(["-i", str(path), "--lighten", "--json", "-"]) == 0
    report = json.loads(capsys.readouterr().out)["lightening"]
    assert report["dropped"] == {"RESHAPE": 1}
    assert report["persistent"] < report["persistent_before"]


# -- integer ports -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [{}, *(pytest.param(change, marks=pytest.mark.slow) for change in ({"inner": "INT16"}, {"outer": "UINT8"}))],
)
def test_the_application_converts(change: dict[str, Any]):
    data = converting(**change)
    model, original = TFLiteModel(data), TFLiteModel(data)
    result = model.use_integer_ports()
    assert [port.is_input for port in result.ports] == [True, False]
    assert kinds(model) == ["LEAKY_RELU"]
    subgraph = model.graph.subgraphs[0]
    assert [subgraph.tensors[i].dtype for i in (*subgraph.inputs, *subgraph.outputs)] == [
        change.get("inner", "INT8")
    ] * 2
    assert model.arena.reserve < original.arena.reserve
    verdict = model.verify_against(original)
    assert verdict.identical
    assert verdict.runtimes == ("TFLM", "LiteRT")
    # The signature names the new tensors, and the old ones are gone.
    entry = schema.ModelT.InitFromObj(schema.Model.GetRootAs(model.to_bytes(), 0)).signatureDefs[0]
    assert [(p.name, p.tensorIndex) for p in (*entry.inputs, *entry.outputs)] == [
        (b"picture", subgraph.inputs[0]), (b"result", subgraph.outputs[0])]  # fmt: skip
    assert not any(t.dtype == change.get("outer", "FLOAT32") for t in subgraph.tensors)


@pytest.mark.parametrize("change", [
    {"outer": "UINT8", "zero": 124}, {"outer": "UINT8", "scale": 0.051}, {"outer": "INT16", "zero": 0},
    {"inner_scale": 0.0}, {"inner_scale": 1e-40}, {"inner_scale": float("inf")}])  # fmt: skip
def test_conversions_that_lose_something_stay(change: dict[str, Any]):
    assert not TFLiteModel(converting(**change)).use_integer_ports().ports


def test_ports_that_others_use_stay():
    ports = TFLiteModel(converting(is_read=True)).use_integer_ports().ports
    assert [port.is_input for port in ports] == [False]  # the input is an output, too
    ports = TFLiteModel(converting(inner_output=True)).use_integer_ports().ports
    assert [port.is_input for port in ports] == [True]


def test_values_stand_for_what_dequantize_makes_of_them():
    (port, _) = TFLiteModel(converting()).use_integer_ports().ports
    every = np.arange(-128, 128, dtype=np.int8)
    assert (port.stands_for(every) == ((every.astype(np.float64) + 3) * np.float32(0.05)).astype(np.float32)).all()
    (port, _) = TFLiteModel(converting(outer="UINT8")).use_integer_ports().ports
    assert (port.stands_for(every) == np.arange(256)).all()
    assert port.stands_for(every).dtype == np.uint8


def test_a_model_with_another_scale_is_not_the_same():
    model, other = TFLiteModel(converting(slope=0.2)), TFLiteModel(converting(slope=0.3, inner="INT16"))
    model.use_integer_ports()
    assert not model.verify_against(other).identical
    other.use_integer_ports()
    with pytest.raises(VerificationError, match="another type"):
        other.verify_against(model)


def test_the_report_names_scales_and_hints(capsys: pytest.CaptureFixture[str], tmp_path: Path):
    path, out = tmp_path / "model.tflite", tmp_path / "out.tflite"
    path.write_bytes(converting())
    assert main(["-i", str(path)]) == 0
    assert "--integer-io: " in capsys.readouterr().out
    assert main(["-i", str(path), "--integer-io", "--verify", "-o", str(out)]) == 0
    told = capsys.readouterr().out
    assert "Input t2: INT8 instead of FLOAT32; value = 0.0500000007 * (q + 3)" in told
    assert "Output t3: INT8 instead of FLOAT32; value = 0.0500000007 * (q + 3)" in told
    assert "--integer-io: " not in told
    assert main(["-i", str(out), "--integer-io", "--json", "-"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["integer_io"]["ports"] == []
    assert report["arena"]["saved_by_integer_io"] == 0
