"""A tiny builder of .tflite files, so that a test case is a few lines."""

from __future__ import annotations

from typing import Any

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema

NUMPY_DTYPES = {
    "int8": "INT8",
    "uint8": "UINT8",
    "int16": "INT16",
    "int32": "INT32",
    "int64": "INT64",
    "float32": "FLOAT32",
    "float16": "FLOAT16",
    "bool": "BOOL",
}


class Builder:
    """One subgraph under construction. Tensors are named by the number that the call returns."""

    def __init__(self, model: ModelBuilder | None = None, name: str = "main") -> None:
        self.model = model or ModelBuilder()
        self.table = schema.SubGraphT()
        self.table.name = name.encode()
        self.table.tensors, self.table.operators = [], []
        self.model.subgraphs.append(self.table)

    def tensor(
        self,
        shape: tuple[int, ...] = (1,),
        dtype: str = "INT8",
        name: str | None = None,
        data: np.ndarray | None = None,
        **fields: Any,
    ) -> int:
        number = len(self.table.tensors)
        tensor = schema.TensorT()
        tensor.shape, tensor.type = list(shape), getattr(schema.TensorType, dtype)
        tensor.name = (f"t{number}" if name is None else name).encode()
        tensor.buffer = 0 if data is None else self.model.buffer(data)
        for field, value in fields.items():
            setattr(tensor, field, value)
        self.table.tensors.append(tensor)
        return number

    def constant(self, values: np.ndarray, name: str | None = None, **fields: Any) -> int:
        return self.tensor(values.shape, NUMPY_DTYPES[values.dtype.name], name, values, **fields)

    def op(self, kind: str, inputs: list[int], outputs: list[int], options: Any = None, **fields: Any) -> None:
        """Add an operator. A kind that is no builtin is a custom operator; options are a schema object."""
        operator = schema.OperatorT()
        operator.opcodeIndex = self.model.code(kind)
        operator.inputs, operator.outputs = inputs, outputs
        if options is not None:
            name = type(options).__name__.removesuffix("T")
            second = not hasattr(schema.BuiltinOptions, name)
            union = schema.BuiltinOptions2 if second else schema.BuiltinOptions
            suffix = "2" if second else ""
            setattr(operator, f"builtinOptions{suffix}Type", getattr(union, name))
            setattr(operator, f"builtinOptions{suffix}", options)
        for field, value in fields.items():
            setattr(operator, field, value)
        self.table.operators.append(operator)

    def build(self, inputs: list[int], outputs: list[int]) -> bytes:
        self.finish(inputs, outputs)
        return self.model.build()

    def finish(self, inputs: list[int], outputs: list[int]) -> None:
        self.table.inputs, self.table.outputs = inputs, outputs


class ModelBuilder:
    """What the subgraphs of one file share."""

    def __init__(self) -> None:
        self.subgraphs: list[Any] = []
        self.codes: list[tuple[str, Any]] = []
        self.buffers = [schema.BufferT()]
        self.metadata: list[Any] = []

    def buffer(self, data: np.ndarray | bytes) -> int:
        buffer = schema.BufferT()
        buffer.data = np.frombuffer(bytes(data) if isinstance(data, bytes) else data.tobytes(), dtype=np.uint8)
        self.buffers.append(buffer)
        return len(self.buffers) - 1

    def code(self, kind: str) -> int:
        for i, (name, _) in enumerate(self.codes):
            if name == kind:
                return i
        code = schema.OperatorCodeT()
        builtin = getattr(schema.BuiltinOperator, kind, None)
        if builtin is None:
            code.customCode, builtin = kind.encode(), schema.BuiltinOperator.CUSTOM
        code.builtinCode, code.deprecatedBuiltinCode, code.version = builtin, min(builtin, 127), 1
        self.codes.append((kind, code))
        return len(self.codes) - 1

    def add_metadata(self, name: str, data: bytes) -> None:
        entry = schema.MetadataT()
        entry.name, entry.buffer = name.encode(), self.buffer(data)
        self.metadata.append(entry)

    def build(self) -> bytes:
        model = schema.ModelT()
        model.version = 3
        model.subgraphs, model.buffers = self.subgraphs, self.buffers
        model.operatorCodes = [code for _, code in self.codes]
        model.metadata = self.metadata or None
        builder = flatbuffers.Builder(1024)
        builder.Finish(model.Pack(builder), b"TFL3")
        return bytes(builder.Output())


def worked_example() -> bytes:
    """The model whose tables the design shows: a small CNN, with the tensor ids of the original file."""
    b = Builder()
    ids = {
        1: ("Conv1/Relu", (1, 30, 30, 16)),
        2: ("Conv1_input", (1, 32, 32, 3)),
        4: ("Conv2/Relu", (1, 28, 28, 16)),
        5: ("FC2/BiasAdd", (1, 10)),
        7: ("FC2/Softmax", (1, 10)),
        8: ("activation/Relu", (1, 128)),
        9: ("max_pooling2d/MaxPool", (1, 14, 14, 16)),
    }
    weights = {0: (16, 3, 3, 3), 3: (16, 3, 3, 16), 6: (128, 3136), 10: (10, 128)}
    for i in range(11):
        if i in ids:
            b.tensor(ids[i][1], "UINT8", ids[i][0])
        else:
            b.constant(np.ones(weights[i], np.uint8), f"weights{i}")
    b.op("CONV_2D", [2, 0], [1])
    b.op("CONV_2D", [1, 3], [4])
    b.op("MAX_POOL_2D", [4], [9])
    b.op("FULLY_CONNECTED", [9, 6], [8])
    b.op("FULLY_CONNECTED", [8, 10], [5])
    b.op("SOFTMAX", [5], [7])
    return b.build([2], [7])


def branches(widths: list[tuple[int, int]], result: int = 1) -> bytes:
    """Parallel branches of two operators each, (size of the inner tensor, size of the end), joined by one.

    The file order opens all branches before it closes any: the worst there is.
    """
    b = Builder()
    source = b.tensor((4,), name="input")
    inner = [b.tensor((size,), name=f"inner{i}") for i, (size, _) in enumerate(widths)]
    ends = [b.tensor((size,), name=f"end{i}") for i, (_, size) in enumerate(widths)]
    output = b.tensor((result,), name="output")
    for tensor in inner:
        b.op("TILE", [source], [tensor])
    for before, after in zip(inner, ends, strict=True):
        b.op("SLICE", [before], [after])
    b.op("CONCATENATION", ends, [output])
    return b.build([source], [output])


def updated(shape: tuple[int, ...], start: list[int]) -> Builder:
    b = Builder()
    x, a, u, c, y = (b.tensor(s, "FLOAT32") for s in ((1, 8, 4, 4), (1, 8, 4, 4), shape, shape, (1, 8, 4, 4)))
    b.op("RELU", [x], [a])
    b.op("SOFTMAX", [u], [c])
    b.op("DYNAMIC_UPDATE_SLICE", [a, c, b.constant(np.array(start, np.int32))], [y])
    b.finish([x, u], [y])
    return b


def repeated(main: Builder, carried: list[int], turn: Any = None, test: Any = None, turns: int = 2) -> list[int]:
    """WHILE over float tensors: what is carried, after some turns. ``turn(body, tensors)`` gives the new tensors, and
    ``test(condition, tensors)`` adds to the condition."""
    cond, body = Builder(main.model, "cond"), Builder(main.model, "body")
    shapes = [tuple(main.table.tensors[t].shape) for t in carried]
    after = [main.tensor((1,), "INT32"), *(main.tensor(shape, "FLOAT32") for shape in shapes)]
    options = schema.WhileOptionsT()
    options.condSubgraphIndex, options.bodySubgraphIndex = (main.model.subgraphs.index(b.table) for b in (cond, body))
    main.op("WHILE", [main.constant(np.zeros(1, np.int32)), *carried], after, options)
    number, *given = ports = [cond.tensor((1,), "INT32"), *(cond.tensor(shape, "FLOAT32") for shape in shapes)]
    verdict = cond.tensor((1,), "BOOL")
    if test:
        test(cond, given)
    cond.op("LESS", [number, cond.constant(np.array([turns], np.int32))], [verdict])
    cond.finish(ports, [verdict])
    number, *given = ports = [body.tensor((1,), "INT32"), *(body.tensor(shape, "FLOAT32") for shape in shapes)]
    following = body.tensor((1,), "INT32")
    body.op("ADD", [number, body.constant(np.ones(1, np.int32))], [following], schema.AddOptionsT())
    body.finish(ports, [following, *(turn(body, given) if turn else given)])
    return after[1:]


def quantized(scale: float = 0.05, zero: int = -3, dtype: str = "INT8", shape: tuple[int, ...] = (1, 6, 4, 2)):
    q = schema.QuantizationParametersT()
    q.scale, q.zeroPoint = [scale], [zero]
    return {"shape": shape, "dtype": dtype, "quantization": q}


def converting(outer: str = "FLOAT32", zero: int = 125, scale: float = 0.05, is_read: bool = False, inner: str = "INT8",
               slope: float = 0.2, inner_scale: float = 0.05, inner_output: bool = False, width: int = 4
               ) -> bytes:  # fmt: skip
    """x -> QUANTIZE -> RELU6 -> DEQUANTIZE -> y, or QUANTIZE for an output of integers."""
    b = Builder()
    shape = 1, 6, width, 2
    x, y = (b.tensor(**quantized(scale, zero, outer, shape)) if outer != "FLOAT32" else b.tensor(shape, outer)
            for _ in range(2))  # fmt: skip
    q, r = (b.tensor(**quantized(inner_scale, -3 if inner == "INT8" else 0, inner, shape)) for _ in range(2))
    b.op("QUANTIZE", [x], [q])
    b.op("LEAKY_RELU", [q], [r], schema.LeakyReluOptionsT())
    b.table.operators[-1].builtinOptions.alpha = slope
    b.op("DEQUANTIZE" if outer == "FLOAT32" else "QUANTIZE", [r], [y])
    outputs = [y, x] if is_read else [y, r] if inner_output else [y]
    b.finish([x], outputs)
    return with_signature(b.model.build(), x, y)


def with_signature(data: bytes, x: int, y: int) -> bytes:
    model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(data, 0))
    entry = schema.SignatureDefT()
    entry.signatureKey, entry.subgraphIndex = b"serve", 0
    ports = []
    for name, tensor in ((b"picture", x), (b"result", y)):
        port = schema.TensorMapT()
        port.name, port.tensorIndex = name, tensor
        ports.append([port])
    entry.inputs, entry.outputs = ports
    model.signatureDefs = [entry]
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())
