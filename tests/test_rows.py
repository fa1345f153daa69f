"""Operators in stripes, one kind at a time, in the middle of a region, on LiteRT and on TFLM."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema
from runtimes import litert_agrees, wheel_agrees
from spatial_nets import SAME, VALID, Net, quantized_by, regions, search_of, split

from tflite_tools import CutRule, RowRule, Rows, TFLiteModel, read_model, row_rule


def integers(*values: int) -> np.ndarray:
    return np.array(values, np.int32)


class Zoo(Net):
    """One method per kind of operator: a tensor -> another one, with random parameters."""

    def __init__(self, dtype: str, rng: random.Random) -> None:
        super().__init__(dtype, rng.randrange(1 << 30))
        self.random = rng

    def add(self, kind: str, inputs: list[int], shape: tuple[int, int, int], table: str, **fields: Any) -> int:
        options = getattr(schema, f"{table}OptionsT")()
        for field, value in fields.items():
            setattr(options, field, value)
        y = self.picture(*shape)
        self.op(kind, inputs, [y], options)
        return y

    def average(self, x: int, h: int, w: int, c: int) -> int:
        return self.window("AVERAGE_POOL_2D", x, 0, (self.random.choice((2, 3, 5)), 3), 1, SAME)

    def bilinear(self, x: int, h: int, w: int, c: int) -> int:
        mode, f = self.random.choice(("", "alignCorners", "halfPixelCenters")), self.random.choice((2, 4))
        height, width = (f * (h - 1) + 1, 2 * w - 1) if mode == "alignCorners" else (f * h, 2 * w)
        size = self.constant(integers(height, width))
        fields = {mode: True} if mode else {}
        return self.add("RESIZE_BILINEAR", [x, size], (height, width, c), "ResizeBilinear", **fields)

    def nearest(self, x: int, h: int, w: int, c: int) -> int:
        size = self.constant(integers(2 * h, w + 3))
        return self.add("RESIZE_NEAREST_NEIGHBOR", [x, size], (2 * h, w + 3, c), "ResizeNearestNeighbor")

    def transpose_conv(self, x: int, h: int, w: int, c: int) -> int:
        stride, padding = self.random.choice((1, 2, 3)), self.random.choice((SAME, VALID))
        k, columns = self.random.randint(stride, 5), self.random.randint(2, 4)
        shape = (h * stride, w * 2, 3) if padding == SAME else ((h - 1) * stride + k, (w - 1) * 2 + columns, 3)
        inputs = [self.constant(integers(1, *shape)), self.weights(3, k, columns, c), x]
        return self.add("TRANSPOSE_CONV", inputs, shape, "TransposeConv", padding=padding, strideH=stride, strideW=2)

    def slice(self, x: int, h: int, w: int, c: int) -> int:
        first = self.random.randint(0, 3)
        rows = self.random.choice((h - first, self.random.randint(4, h - first)))
        size = -1 if rows == h - first else rows
        inputs = [x, self.constant(integers(0, first, 1, 0)), self.constant(integers(1, size, w - 1, c - 1))]
        return self.add("SLICE", inputs, (rows, w - 1, c - 1), "Slice")

    def strided_slice(self, x: int, h: int, w: int, c: int) -> int:
        step, first = self.random.choice((1, 2, 3)), self.random.choice((0, 1, 2, 1 - h))
        end, masks = self.random.choice((h, h - 1, -1, 1000)), [self.random.choice((0, 2, 9)) for _ in range(2)]
        rows = range(h)[None if masks[0] & 2 else first : None if masks[1] & 2 else end : step]
        inputs = [x, *(self.constant(integers(*v)) for v in ((0, first, 0, 0), (1, end, w, c), (1, step, 2, 1)))]
        shape = len(rows), -(-w // 2), c
        return self.add("STRIDED_SLICE", inputs, shape, "StridedSlice", beginMask=masks[0], endMask=masks[1])

    def gather(self, x: int, h: int, w: int, c: int) -> int:
        axis = self.random.choice((2, 3, -1))
        indices = self.constant(integers(*(self.random.randrange(w if axis == 2 else c) for _ in range(3))))
        return self.add("GATHER", [x, indices], (h, 3, c) if axis == 2 else (h, w, 3), "Gather", axis=axis)

    def split(self, x: int, h: int, w: int, c: int) -> int:
        parts, options = [self.picture(h, w, c // 2) for _ in range(2)], schema.SplitOptionsT()
        options.numSplits = 2
        self.op("SPLIT", [self.constant(integers(3)), x], parts, options)
        return self.concatenate(self.window("CONV_2D", parts[0], 3, (3, 1)), parts[1])

    def split_by_sizes(self, x: int, h: int, w: int, c: int) -> int:
        parts, options = [self.picture(h, width, c) for width in (1, 1, w - 2)], schema.SplitVOptionsT()
        options.numSplits = 3
        self.op("SPLIT_V", [x, self.constant(integers(1, 1, w - 2)), self.constant(integers(2))], parts, options)
        last = self.window("CONV_2D", parts[2], c, (3, 1))
        return self.map("ADD", self.map("ADD", last, parts[0]), parts[1])

    def mean(self, x: int, h: int, w: int, c: int) -> int:
        return self.add("MEAN", [x, self.constant(integers(3))], (h, w, 1), "Reducer", keepDims=True)

    def maximum(self, x: int, h: int, w: int, c: int) -> int:
        return self.add("REDUCE_MAX", [x, self.constant(integers(2, -1))], (h, 1, 1), "Reducer", keepDims=True)

    def softmax(self, x: int, h: int, w: int, c: int) -> int:
        y = self.add("SOFTMAX", [x], (h, w, c), "Softmax", beta=1.0)
        if self.dtype == "INT8":
            q = self.table.tensors[y].quantization
            q.scale, q.zeroPoint = [1 / 256], [-128]
        return y

    def depth_to_space(self, x: int, h: int, w: int, c: int) -> int:
        return self.add("DEPTH_TO_SPACE", [x], (2 * h, 2 * w, c // 4), "DepthToSpace", blockSize=2)

    def space_to_depth(self, x: int, h: int, w: int, c: int) -> int:
        return self.add("SPACE_TO_DEPTH", [x], (h // 2, w // 2, c * 4), "SpaceToDepth", blockSize=2)

    def dense(self, x: int, h: int, w: int, c: int) -> int:
        inputs = [x, self.weights(5, c), self.bias(5)]
        return self.add("FULLY_CONNECTED", inputs, (h, w, 5), "FullyConnected", keepNumDims=True)

    def arg_max(self, x: int, h: int, w: int, c: int) -> int:
        y, options = self.tensor((1, h, w), "INT32"), schema.ArgMaxOptionsT()
        options.outputType = schema.TensorType.INT32
        self.op("ARG_MAX", [x, self.constant(integers(3))], [y], options)
        return y


KINDS = [name for name, value in vars(Zoo).items() if callable(value) and name not in ("__init__", "add")]
ENDS = ("arg_max", "softmax")  # what they give has another type or scale than the rest


def net(kind: str, dtype: str, seed: int) -> bytes:
    rng = random.Random(seed)
    zoo = Zoo(dtype, rng)
    x = source = zoo.picture(rng.choice((8, 10, 12, 16)), 6, 4)
    x = zoo.window("CONV_2D", x, 12 if kind in ENDS else 4, (3, 1))
    x = getattr(zoo, kind)(x, *zoo.shape(x)[1:])
    if kind == "softmax":
        x = zoo.arg_max(x, *zoo.shape(x)[1:])
    elif kind not in ENDS:
        x = zoo.window("CONV_2D", x, 2, (rng.choice((1, 3)), 1), rng.choice((1, 2)))
    return zoo.build([source], [x])


@pytest.mark.parametrize("dtype", ["INT8", pytest.param("FLOAT32", marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", KINDS)
def test_stripes_give_the_same_bits(kind: str, dtype: str):
    pairs = []
    for seed in range(5):
        data = net(kind, dtype, seed)
        graph = read_model(data)
        assert isinstance(row_rule(graph.subgraphs[0], graph.subgraphs[0].operators[1]), RowRule)
        found = [(search, region) for search, region in regions(data) if region.start <= 1 < region.end]
        for search, region in random.Random(seed).sample(found, min(len(found), 4)):
            changed = split(data, search, region)
            pairs.append((data, changed))
    assert pairs
    assert all(litert_agrees(*pair, seeds=1) for pair in pairs)
    assert all(wheel_agrees(pairs))


def test_three_dimensions_have_rows_too():
    zoo = Zoo("FLOAT32", random.Random(0))
    x = source = zoo.tensor((1, 12, 6), "FLOAT32")
    for kind in ("EXP", "MUL", "NEG", "ADD"):  # x is read at the end, so that something can be gained
        y = zoo.tensor((1, 12, 6), "FLOAT32")
        options = {"MUL": schema.MulOptionsT, "ADD": schema.AddOptionsT}.get(kind)
        zoo.op(kind, [x, source] if options else [x], [y], options and options())
        x = y
    data = zoo.build([source], [x])
    found = list(regions(data))
    assert found
    for search, region in found[::5]:
        changed = split(data, search, region)
        assert litert_agrees(data, changed, seeds=1)


def test_what_is_cut_has_been_made():
    """Every row that is asked for is made, of rows that are there, and no more than a few besides."""
    rules = [
        CutRule((0,), 1, 3, 1),
        CutRule((0,), 1, 2, 0, repeat=4, pace=4, last=4),
    ]
    for rule, height in zip(rules, (9, 36), strict=True):
        for first in range(height):
            for behind in range(first + 1, height + 1):
                start, end, _, _ = rule.span(first, behind, 9)
                made = rule.made(Rows(first, behind), Rows(start, end))
                if behind < height:  # a later stripe reads no earlier rows
                    later = rule.span(first + 1, behind + 1, 9)
                    assert later[0] >= start
                    assert later[1] >= end
                assert 0 <= start < end <= 9
                assert 0 <= made[0] <= first < behind <= made[1] <= height


@pytest.mark.parametrize("change", [{"scale": 0.1}, {"zero": 7}])
def test_padding_that_changes_the_scale_stays_whole(change: dict[str, float]):
    """A stripe that is not padded would be read with the scale of the input."""
    net = Net()
    x = net.picture(16, 12, 2)
    padded = net.pad(net.window("CONV_2D", x, 8, (1, 1)), 0, 0, 0, 0)
    quantization = {"scale": 0.05, "zero": -3} | change
    net.table.tensors[padded].quantization = quantized_by([quantization["scale"]], [quantization["zero"]])
    data = net.build([x], [net.window("CONV_2D", padded, 2, (1, 1))])
    model = TFLiteModel(data)
    model.split_operators(stripes="unrolled")
    assert wheel_agrees([(data, model.to_bytes())]) == [True]
    (step,) = (s for s in search_of(data).problem.steps if s.operator.kind == "PAD")
    assert step.rule == "it changes the quantisation"


def test_a_convolution_of_a_tensor_with_itself_stays_whole():
    net = Net("FLOAT32")
    x, made = net.picture(8, 4, 16), net.picture(8, 4, 16)
    net.op("RELU", [x], [made])
    y = net.tensor((1, 8, 4, 1), "FLOAT32")
    options = schema.Conv2DOptionsT()
    options.padding, options.strideH, options.strideW, options.dilationHFactor, options.dilationWFactor = (
        SAME,
        1,
        1,
        1,
        1,
    )
    net.op("CONV_2D", [made, made, net.bias(1)], [y], options)
    assert search_of(net.build([x], [y])).problem.steps[1].rule == "its input is also its weights"


def test_pooling_of_a_type_without_kernels_is_no_traceback():
    b = Net()
    x, joined, y = (b.tensor((1, *shape), "INT32") for shape in ((16, 16, 2), (16, 16, 16), (8, 8, 16)))
    options, pooling = schema.ConcatenationOptionsT(), schema.Pool2DOptionsT()
    options.axis = 3
    pooling.filterHeight = pooling.filterWidth = 3
    pooling.strideH = pooling.strideW = 2
    b.op("CONCATENATION", [x] * 8, [joined], options)
    b.op("MAX_POOL_2D", [joined], [y], pooling)
    TFLiteModel(b.build([x], [y])).split_operators(stripes="auto")
