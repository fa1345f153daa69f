"""Small nets of operators that work along the height, and their regions."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema
from model_builder import Builder

import tflite_tools
from tflite_tools import (
    LIBRARIES,
    Budget,
    Composition,
    Cost,
    Rewrite,
    Snapshot,
    SplitRegion,
    SplitSearch,
    read_model,
)

FOREVER = Budget(math.inf)
NO_LIMITS = Cost(1 << 60, 1 << 60, 1 << 60)
SAME, VALID = schema.Padding.SAME, schema.Padding.VALID
QUANTIZED = {"INT8": (0.05, -3), "INT16": (2**-9, 0)}


def quantized_by(scales: list[float], zeros: list[int], axis: int = 0) -> Any:
    q = schema.QuantizationParametersT()
    q.scale, q.zeroPoint, q.quantizedDimension = scales, zeros, axis
    return q


class Net(Builder):
    """Spatial operators in a line each. All tensors of a type share one quantisation, so that PAD and the like may."""

    def __init__(self, dtype: str = "INT8", seed: int = 0, batch: int = 1) -> None:
        """A batch of -1 is 1 in the file, and may be another when LiteRT runs it."""
        super().__init__()
        self.dtype, self.rng, self.batch = dtype, np.random.default_rng(seed), batch

    def picture(self, height: int, width: int, channels: int) -> int:
        shape = (height, width, channels)
        signature = {"shapeSignature": [-1, *shape]} if self.batch < 0 else {}
        return self.tensor((abs(self.batch), *shape), self.dtype, **self.quantization(), **signature)

    def quantization(self, scales: int = 0) -> dict[str, Any]:
        if self.dtype == "FLOAT32":
            return {}
        scale, zero = QUANTIZED[self.dtype]
        given, zeros = ([0.02] * scales, [0] * scales) if scales else ([scale], [zero])
        return {"quantization": quantized_by(given, zeros)}

    def shape(self, tensor: int) -> list[int]:
        return list(self.table.tensors[tensor].shape)

    def weights(self, *shape: int) -> int:
        if self.dtype == "FLOAT32":
            return self.constant(self.rng.normal(size=shape).astype(np.float32))
        return self.constant(self.rng.integers(-90, 90, shape).astype(np.int8), **self.quantization(1))

    def bias(self, channels: int) -> int:
        if self.dtype == "FLOAT32":
            return self.constant(self.rng.normal(size=channels).astype(np.float32))
        dtype = np.int32 if self.dtype == "INT8" else np.int64
        q = quantized_by([QUANTIZED[self.dtype][0] * 0.02], [0])
        return self.constant(self.rng.integers(-500, 500, channels).astype(dtype), quantization=q)

    def window(self, kind: str, x: int, channels: int = 0, kernel: tuple[int, int] = (3, 3), stride: int = 1,
               padding: int = SAME, dilation: int = 1) -> int:  # fmt: skip
        _, height, width, depth = self.shape(x)
        sizes = []
        for size, k in zip((height, width), kernel, strict=True):
            extent = (k - 1) * dilation + 1
            sizes.append(-(-size // stride) if padding == SAME else (size - extent) // stride + 1)
        if kind.endswith("POOL_2D"):
            options, inputs, channels = schema.Pool2DOptionsT(), [x], depth
            options.filterHeight, options.filterWidth = kernel
        elif kind == "CONV_2D":
            options = schema.Conv2DOptionsT()
            inputs = [x, self.weights(channels, *kernel, depth), self.bias(channels)]
        else:
            options, channels = schema.DepthwiseConv2DOptionsT(), depth
            options.depthMultiplier = 1
            inputs = [x, self.weights(1, *kernel, depth), self.bias(depth)]
        options.padding, options.strideH, options.strideW = padding, stride, stride
        if not kind.endswith("POOL_2D"):
            options.dilationHFactor = options.dilationWFactor = dilation
        y = self.picture(*sizes, channels)
        self.op(kind, inputs, [y], options)
        return y

    def map(self, kind: str, *inputs: int) -> int:
        y = self.picture(*self.shape(inputs[0])[1:])
        options = {"ADD": schema.AddOptionsT, "MUL": schema.MulOptionsT}.get(kind)
        self.op(kind, list(inputs), [y], options() if options else None)
        return y

    def concatenate(self, *inputs: int) -> int:
        options = schema.ConcatenationOptionsT()
        options.axis = 3
        _, height, width, _ = self.shape(inputs[0])
        y = self.picture(height, width, sum(self.shape(i)[3] for i in inputs))
        self.op("CONCATENATION", list(inputs), [y], options)
        return y

    def pad(self, x: int, *pads: int) -> int:
        _, height, width, channels = self.shape(x)
        above, below, left, right = pads
        y = self.picture(height + above + below, width + left + right, channels)
        paddings = np.array([[0, 0], [above, below], [left, right], [0, 0]], np.int32)
        self.op("PAD", [x, self.constant(paddings)], [y], schema.PadOptionsT())
        return y

    def rescale(self) -> None:
        """Give tensors scales of their own, where operators allow it, and weights one per channel, as converters do."""
        root = list(range(len(self.table.tensors)))
        kinds = [self.model.codes[operator.opcodeIndex][0] for operator in self.table.operators]
        for kind, operator in zip(kinds, self.table.operators, strict=True):
            if kind in ("MAX_POOL_2D", "AVERAGE_POOL_2D", "PAD", "CONCATENATION", "RESIZE_NEAREST_NEIGHBOR", "RELU"):
                group = {root[t] for t in (*operator.inputs, *operator.outputs) if not self.table.tensors[t].buffer}
                root = [min(group) if r in group else r for r in root]
        scales = {r: float(self.rng.uniform(0.02, 0.2)) for r in sorted(set(root))}
        for t, tensor in enumerate(self.table.tensors):
            if not tensor.buffer:
                tensor.quantization = quantized_by([scales[root[t]]], [QUANTIZED[self.dtype][1]])
        for kind, operator in zip(kinds, self.table.operators, strict=True):
            if kind.endswith("CONV_2D"):
                x, weights, bias = (self.table.tensors[t] for t in operator.inputs)
                axis = 3 if kind.startswith("DEPTHWISE") else 0
                own = [float(scale) for scale in self.rng.uniform(0.005, 0.03, weights.shape[axis])]
                weights.quantization = quantized_by(own, [0] * len(own), axis)
                bias.quantization = quantized_by([scale * x.quantization.scale[0] for scale in own], [0] * len(own))

    def upsample(self, x: int, factor: int) -> int:
        _, height, width, channels = self.shape(x)
        y = self.picture(height * factor, width * factor, channels)
        size = self.constant(np.array([height * factor, width * factor], np.int32))
        self.op("RESIZE_NEAREST_NEIGHBOR", [x, size], [y], schema.ResizeNearestNeighborOptionsT())
        return y


def random_net(
    rng: random.Random, dtype: str = "INT8", steps: int = 5, has_equal_rows: bool = True, batch: int = 1,
    is_rescaled: bool = False, size: int = 7,
) -> bytes:  # fmt: skip
    """A chain with branches: windows of all sorts, residual sums, concatenations, padding, up-sampling. With scales of
    their own, tensors come after weights with a scale per channel."""
    net = Net(dtype, rng.randrange(1 << 30), batch)
    if is_rescaled:
        net.constant(np.ones((4, 1, 1, 2), np.int8), quantization=quantized_by([0.1] * 4, [0] * 4))
    x = source = net.picture(rng.randint(size, size + 10), rng.randint(5, 9), rng.choice((2, 3)))
    alive = [x]
    for _ in range(steps):
        x = alive[-1] if rng.random() < 0.8 else rng.choice(alive)
        _, height, width, _ = net.shape(x)
        kind = rng.choice(("CONV_2D", "CONV_2D", "DEPTHWISE_CONV_2D", "MAX_POOL_2D", "AVERAGE_POOL_2D", "map", "join",
                           "pad", "upsample"))  # fmt: skip
        peers = [t for t in alive if net.shape(t)[1:3] == [height, width]]
        if kind == "map":
            equal = [t for t in peers if net.shape(t) == net.shape(x)]
            y = net.map("ADD", x, rng.choice(equal)) if rng.random() < 0.7 else net.map("RELU", x)
        elif kind == "join":
            y = net.concatenate(x, rng.choice(peers))
        elif kind == "pad" and has_equal_rows:
            y = net.pad(x, *(rng.randint(0, 2) for _ in range(4)))
        elif kind == "upsample" and height < 12 and has_equal_rows:
            y = net.upsample(x, 2)
        else:
            kind = kind if kind.isupper() else "CONV_2D"
            kernel = rng.choice((1, 2, 3)), rng.choice((1, 3))
            if kind.endswith("POOL_2D") and kernel == (1, 1):
                kernel = 1, 3  # XNNPACK in LiteRT 2.1.0 to 2.3.0: garbage after two poolings that do nothing
            dilation = rng.choice((1, 1, 2)) if kind.endswith("CONV_2D") else 1
            stride = 1 if dilation > 1 else rng.choice((1, 1, 2, 3))
            fits = all((k - 1) * dilation < size for k, size in zip(kernel, (height, width), strict=True))
            padding = (
                VALID if kind == "AVERAGE_POOL_2D" and fits else rng.choice((SAME, SAME, VALID) if fits else (SAME,))
            )
            y = net.window(kind, x, rng.choice((2, 4)), kernel, stride, padding, dilation)
        alive.append(y)
        if net.shape(y)[1] < 2:
            break
    read = {i for operator in net.table.operators for i in operator.inputs}
    if is_rescaled:
        net.rescale()
    return net.build([source], [t for t in alive if t not in read] or alive[-1:])


def looped() -> bytes:
    """Two convolutions, one after the other in a loop, with the plan that it needs."""
    net = Net()
    x = y = net.picture(24, 24, 4)
    for channels in (16, 4):
        y = net.window("CONV_2D", y, channels, (3, 3), 1, SAME)
    model = tflite_tools.TFLiteModel(net.build([x], [y]))
    assert model.split_operators(stripes="loop").changed
    return model.to_bytes()


def search_of(data: bytes, kernels: str = "reference") -> SplitSearch:
    graph = read_model(data, LIBRARIES[kernels])
    return SplitSearch(graph, graph.subgraphs[0], FOREVER)


def regions(data: bytes) -> Iterator[tuple[SplitSearch, SplitRegion]]:
    """Every region of a model in every number of stripes and both halo modes."""
    search = search_of(data)
    for start, end in [(found.start, found.end) for found in search.problem.ranges]:
        for stripes, is_cached in itertools.product(tflite_tools.STRIPES, (False, True)):
            region = search.problem.evaluate(start, end, stripes, is_cached)
            if region is not None:
                yield search, region


def rewritten(search: SplitSearch, *chosen: SplitRegion) -> Rewrite:
    return search.rewrite(Composition(chosen, Cost(0)))


def split(data: bytes, search: SplitSearch, *chosen: SplitRegion) -> bytes:
    """The model with these regions in stripes."""
    return bytes(Snapshot.read(data).rewritten(rewritten(search, *chosen)).data)


def chain() -> bytes:
    """A large tensor, a small one, a large one: pictures of 1024, 256 and 1024 bytes."""
    net = Net()
    x = net.picture(16, 16, 4)
    small = net.window("CONV_2D", x, 1, (1, 1))
    return net.build([x], [net.window("CONV_2D", small, 4, (1, 1))])


def narrow_waist() -> bytes:
    """Many weights before and after a small tensor: two stages take less than the whole."""
    net = Net()
    x = y = net.picture(6, 6, 4)
    for channels in (64, 64, 64, 4, 64, 64, 64):
        y = net.window("CONV_2D", y, channels)
    return net.build([x], [y])
