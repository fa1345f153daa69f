"""Estimated instructions, against what an emulated Cortex-M executed (tflite-micro of August 2026, gcc 12 -O2)."""

from __future__ import annotations

import itertools

import pytest
from ai_edge_litert import schema_py_generated as schema
from corpus import MODELS, SHARED, needs_shared
from spatial_nets import SAME, VALID, Net

import tflite_tools
from tflite_tools import (
    LIBRARIES,
    TFLiteModel,
    allocation_instructions,
    main,
)

# Instructions of Invoke() and of AllocateTensors(): reference kernels and CMSIS-NN on a Cortex-M4, CMSIS-NN on an M55.
MEASURED = {
    "digits_cnn_int8": ((25_245_196, 115_599), (5_885_774, 117_695), (1_325_963, 95_892)),
    "digits_mobilenet_int8": ((65_790_728, 1_014_790), (15_650_214, 1_019_545), (5_172_223, 290_577)),
    "digits_cells_int8": ((42_885_909, 952_179), (11_736_339, 971_774), (3_118_081, 410_486)),
}
NO_PART_IN_THE_FIT = {
    "kws_ref_model": (43_111_783, 7_697_363, 1_813_092),
    "vww": (189_276_369, 48_594_754, 11_960_628),
}
BUILDS = ("reference", "cmsis-nn", "cmsis-nn:mve")


@pytest.mark.parametrize("name", MEASURED)
def test_shipped_models_take_what_is_estimated(name: str):
    for kernels, (invoke, allocate) in zip(BUILDS, MEASURED[name], strict=True):
        model = TFLiteModel.load_from_file(MODELS / f"{name}.tflite", kernels)
        assert model.analysis()["instructions"] == pytest.approx(invoke, rel=0.05)
        assert allocation_instructions(model.graph) == pytest.approx(allocate, rel=0.6)


@needs_shared
@pytest.mark.parametrize("name", NO_PART_IN_THE_FIT)
def test_models_that_had_no_part_in_the_fit(name: str):
    (path,) = SHARED.glob(f"models/*/{name}.tflite")
    for kernels, invoke in zip(BUILDS, NO_PART_IN_THE_FIT[name], strict=True):
        model = TFLiteModel.load_from_file(path, kernels)
        assert model.analysis()["instructions"] == pytest.approx(invoke, rel=0.05)


def test_every_library_has_an_estimate_and_faster_kernels_take_less():
    totals = {
        name: TFLiteModel.load_from_file(MODELS / "digits_cnn_int8.tflite", name).analysis()["instructions"]
        for name in LIBRARIES
    }
    assert totals["cmsis-nn:mve"] < totals["cmsis-nn"] == totals["esp-nn"] < totals["reference"]
    assert totals["cmsis-nn:plain"] == totals["reference"]


@pytest.mark.parametrize("padding", [SAME, VALID])
def test_what_lies_under_windows_is_counted_without_padding(padding: int):
    for source, window, stride, dilation in itertools.product((1, 5, 9), (1, 2, 3, 5), (1, 2, 3), (1, 2)):
        span = (window - 1) * dilation + 1
        made = -(-source // stride) if padding == SAME else (source - span) // stride + 1
        if made < 1:
            continue
        pad = max((made - 1) * stride + span - source, 0) // 2 if padding == SAME else 0
        taps = [o * stride - pad + k * dilation for o in range(made) for k in range(window)]
        inside = sum(0 <= tap < source for tap in taps)
        assert tflite_tools._covered(source, made, stride, window, dilation, pad) == inside


@pytest.mark.parametrize("kernels", LIBRARIES)
def test_more_outputs_do_not_take_much_less(kernels: str):
    told = []
    for made in range(1, 18):
        net = Net()
        x, y = (net.tensor((1, size), "INT8", **net.quantization()) for size in (200, made))
        net.op("FULLY_CONNECTED", [x, net.weights(made, 200), net.bias(made)], [y], schema.FullyConnectedOptionsT())
        told.append(TFLiteModel(net.build([x], [y]), kernels).analysis()["instructions"])
    assert all(less <= 1.5 * more for less, more in itertools.combinations(told, 2))


@pytest.mark.parametrize("kernels", LIBRARIES)
def test_every_weight_takes_its_time(kernels: str):
    told = []
    for read in (200, 2000):
        net = Net()
        x, y = (net.tensor((1, size), "INT8", **net.quantization()) for size in (read, 16))
        net.op("FULLY_CONNECTED", [x, net.weights(16, read), net.bias(16)], [y], schema.FullyConnectedOptionsT())
        told.append(TFLiteModel(net.build([x], [y]), kernels).analysis()["instructions"])
    assert 0.4 < (told[1] - told[0]) / (16 * 1800) < 7


def convolution(width: int) -> int:
    net = Net()
    x = net.picture(1, width, 64)
    model = TFLiteModel(net.build([x], [net.window("CONV_2D", x, 64, (1, 1))]), "cmsis-nn")
    return model.analysis()["instructions"]


def test_an_odd_pixel_alone_takes_longer_than_half_a_pair():
    assert convolution(5) - convolution(4) > 1.1 * (convolution(4) - convolution(2)) / 2


def test_a_convolution_row_by_row_takes_longer_than_at_once():
    """Each call sums up all weights: of the estimate for a row of five pixels, measured on a Cortex-M4, a quarter."""
    assert convolution(5) == pytest.approx(59_363, rel=0.02)
    assert convolution(125) == pytest.approx(1_069_283, rel=0.02)


def test_loops_count_all_their_iterations():
    net = Net()
    x = net.picture(24, 24, 4)
    model = TFLiteModel(net.build([x], [net.window("CONV_2D", net.window("CONV_2D", x, 16), 4)]))
    (region,) = model.split_operators(stripes="loop").chosen.regions
    assert region.stripes > 1
    told = model.analysis()
    condition, body = (
        sum(operator["instructions"] for operator in told["subgraphs"][callee]["operators"])
        for callee in next(operator for _, operator in model.graph.operators if operator.kind == "WHILE").callees
    )
    once = sum(operator["instructions"] for operator in told["subgraphs"][0]["operators"])
    assert told["instructions"] == once + region.stripes * (condition + body) + condition


def test_the_limit_on_time_holds(tmp_path, capsys: pytest.CaptureFixture[str]):
    path = MODELS / "digits_mobilenet_int8.tflite"
    for kernels, most in (("cmsis-nn", 5.0), ("cmsis-nn", 30.0), ("reference", 15.0)):
        before, model = (TFLiteModel.load_from_file(path, kernels) for _ in range(2))
        decision = model.split_operators(most, stripes="auto")
        more = 100 * (model.analysis()["instructions"] / before.analysis()["instructions"] - 1)
        assert more <= most + 0.5
        assert decision.chosen.time_percent == pytest.approx(more, abs=0.01)
    assert main([str(path), "--calc-macs", "--kernels", "cmsis-nn"]) == 0
    text = capsys.readouterr().out
    assert "Instructions" in text
    assert "estimated for a Cortex-M4 with CMSIS-NN" in text
