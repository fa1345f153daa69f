"""Reading: what a file says, and that damaged files are refused in one line."""

from __future__ import annotations

import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema
from corpus import MODELS, corpus, corpus_id, needs_shared
from model_builder import Builder, ModelBuilder, branches, worked_example

from tflite_tools import ModelError, Storage, read_model


def test_tensors_and_operators():
    graph = read_model(worked_example())
    (subgraph,) = graph.subgraphs
    assert [op.kind for op in subgraph.operators] == [
        "CONV_2D", "CONV_2D", "MAX_POOL_2D", "FULLY_CONNECTED", "FULLY_CONNECTED", "SOFTMAX",
    ]  # fmt: skip
    assert subgraph.tensors[1].shape == (1, 30, 30, 16)
    assert subgraph.tensors[1].ram_bytes == subgraph.tensors[1].bytes == 30 * 30 * 16
    assert subgraph.tensors[0].storage is Storage.CONSTANT
    assert subgraph.tensors[0].ram_bytes == 0
    assert subgraph.tensors[0].bytes == 16 * 27
    assert (subgraph.inputs, subgraph.outputs) == ((2,), (7,))


def test_storage_is_decided_by_data_not_by_producers():
    b = Builder()
    x = b.tensor((8,), data=np.arange(8, dtype=np.int8), name="input with data")
    empty = b.tensor((8,), name="read, never written")
    state = b.tensor((16,), name="state", isVariable=True)
    y = b.tensor((8,))
    b.op("ADD", [x, empty, state], [y])
    tensors = read_model(b.build([x], [y])).subgraphs[0].tensors
    assert [t.storage for t in tensors] == [Storage.ACTIVATION, Storage.ACTIVATION, Storage.STATE, Storage.ACTIVATION]
    assert [t.ram_bytes for t in tensors] == [8, 8, 0, 8]


@pytest.mark.parametrize(
    ("dtype", "size"),
    [("INT4", 5), ("INT2", 3), ("INT16", 18), ("FLOAT32", 36), ("COMPLEX128", 144), ("BOOL", 9), ("FLOAT8_E5M2", 9)],
)
def test_element_sizes(dtype: str, size: int):
    b = Builder()
    x = b.tensor((3, 3), dtype)
    assert read_model(b.build([x], [x])).subgraphs[0].tensors[0].bytes == size


def test_scalars_have_one_element_and_empty_shapes_none():
    b = Builder()
    x, y = b.tensor((), "INT32"), b.tensor((0, 5), "INT32")
    tensors = read_model(b.build([x, y], [])).subgraphs[0].tensors
    assert [t.bytes for t in tensors] == [4, 0]


def test_unknown_sizes_are_named():
    b = Builder()
    text = b.tensor((3,), "STRING", "words")
    open_ended = b.tensor((1, 7), "INT8", "frames", shapeSignature=[-1, 7])
    unset = b.tensor((-1, 7), "INT8", "any")
    graph = read_model(b.build([text, open_ended, unset], []))
    assert [t.bytes for t in graph.subgraphs[0].tensors] == [None, 7, None]
    notes = " ".join(graph.notes)
    assert "words" in notes
    assert "any" in notes
    assert "counted as stored" in notes


def test_custom_and_old_and_new_operators():
    b = Builder()
    x, y = b.tensor(), b.tensor()
    b.op("MyOwnOp", [x, -1], [y], customOptions=[1, 2, 3])
    b.op("RELU", [y], [x])
    b.op("CUMSUM", [y], [x])
    relu, cumsum = b.model.codes[1][1], b.model.codes[2][1]
    relu.builtinCode = 0  # a file from before the code grew beyond one byte
    cumsum.builtinCode = 500  # a file from the future
    custom, old, new = read_model(b.build([x], [y])).subgraphs[0].operators
    assert (custom.kind, custom.is_custom, custom.custom_options) == ("MyOwnOp", True, b"\1\2\3")
    assert (custom.inputs, custom.reads) == ((x, -1), (x,))
    assert old.kind == "RELU"
    assert new.kind == "BUILTIN_500"


def test_options_and_callees():
    model = ModelBuilder()
    main = Builder(model)
    for name in ("then", "else"):
        Builder(model, name).finish([], [])
    condition, y = main.tensor((1,), "BOOL"), main.tensor()
    branch = schema.IfOptionsT()
    branch.thenSubgraphIndex, branch.elseSubgraphIndex = 1, 2
    main.op("IF", [condition], [y], branch)
    composite = schema.StableHLOCompositeOptionsT()
    composite.decompositionSubgraphIndex = 2
    main.op("STABLEHLO_COMPOSITE", [y], [y], composite)
    pool = schema.Pool2DOptionsT()
    pool.filterHeight = 5
    main.op("MAX_POOL_2D", [y], [y], pool)
    graph = read_model(main.build([condition], [y]))
    assert [op.callees for op in graph.subgraphs[0].operators] == [(1, 2), (2,), ()]
    assert graph.subgraphs[0].operators[2].options["FilterHeight"] == 5


def test_quantization():
    b = Builder()
    parameters = schema.QuantizationParametersT()
    parameters.scale, parameters.zeroPoint, parameters.quantizedDimension = [0.5, 0.25], [0, 0], 1
    b.tensor((3, 2), quantization=parameters)
    quantization = read_model(b.build([0], [])).subgraphs[0].tensors[0].quantization
    assert quantization is not None
    assert (quantization.scales, quantization.dimension) == ((0.5, 0.25), 1)


@pytest.mark.parametrize(
    ("start", "what"),
    [
        (b"version https://git-lfs.github.com/spec/v1", "Git LFS pointer"), (b"PK\3\4\x14\0", "zip archive"),
        (b"\x1f\x8b\x08", "gzip"), (b"\x89HDF\r\n", "Keras"), (b"\x08\x07\x12\x07pytorch", "ONNX"),
        (b"<!DOCTYPE html>", "web page"), (b"const unsigned char model[] = {0x1c, 0x00", "a C array"),
        (b"#include <cstdint>", "a C array"), (b"alignas(16) const", "a C array"),
        (b"\n  0x1c, 0x00", "a C array"),
    ],
)  # fmt: skip
def test_other_formats_are_named(start: bytes, what: str):
    with pytest.raises(ModelError, match=rf"not a TensorFlow Lite model: it is .*{what}"):
        read_model(start + bytes(90))


@pytest.mark.parametrize(
    ("source", "target", "expected"),
    [((2, 6), (-1, 3), (4, 3)), ((2, 6), (12,), (12,)), ((2, 6), (-1, -1), (-1, -1)), ((-1, 6), (-1, 3), (-1, 3)),
     ((2, 6), (-1, 0), (-1, 0)), ((2, 6), (-2, -1), (-2, -1))],
)  # fmt: skip
def test_the_missing_dimension_of_a_reshape(
    source: tuple[int, ...], target: tuple[int, ...], expected: tuple[int, ...]
):
    b = Builder()
    x, y = b.tensor(source, "FLOAT32"), b.tensor(target, "FLOAT32")
    b.op("RESHAPE", [x], [y])
    result = read_model(b.build([x], [y])).subgraphs[0].tensors[y]
    assert (result.shape, result.is_completed) == (expected, expected != target)


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "empty"),
        (b"hello", "identifier"),
        (b"#!/bin/sh\necho not a model\n" * 9, "identifier"),
        (worked_example()[:900], "cut short"),
        (worked_example()[:60], "cut short"),
    ],
)
def test_not_a_model(data: bytes, why: str):
    with pytest.raises(ModelError, match=why):
        read_model(data)


@pytest.mark.parametrize(
    ("inputs", "outputs", "why"),
    [([9], [1], "tensor 9"), ([-2], [1], "tensor -2"), ([0], [-5], "tensor -5")],
)
def test_tensor_index_out_of_range(inputs: list[int], outputs: list[int], why: str):
    b = Builder()
    b.tensor(), b.tensor()
    b.op("RELU", inputs, outputs)
    with pytest.raises(ModelError, match=why):
        read_model(b.build([0], [1]))


def test_impossible_contents():
    b = Builder()
    b.tensor((1 << 30, 1 << 20))
    with pytest.raises(ModelError, match="claims"):
        read_model(b.build([0], []))
    b = Builder()
    b.tensor(buffer=7)
    with pytest.raises(ModelError, match="buffer 7"):
        read_model(b.build([0], []))
    with pytest.raises(ModelError, match="no subgraph"):
        read_model(ModelBuilder().build())


def test_every_truncation_is_refused_or_read():
    data = branches([(8, 2), (16, 2)])
    for length in range(0, len(data), 7):
        with pytest.raises(ModelError):
            read_model(data[:length])


@needs_shared
@pytest.mark.parametrize("path", corpus(), ids=corpus_id)
def test_corpus_is_read(path):
    if path.name == "0_subgraphs.bin.tflite":
        with pytest.raises(ModelError, match="no subgraph"):
            read_model(path.read_bytes())
    else:
        assert read_model(path.read_bytes()).subgraphs


def test_shipped_models_are_read():
    assert {len(read_model(p.read_bytes()).subgraphs) for p in MODELS.glob("*.tflite")} == {1}


def test_damaged_references():
    b = Builder()
    x, y = b.tensor(), b.tensor()
    b.op("RELU", [x], [y])
    b.table.operators[0].opcodeIndex = 5
    with pytest.raises(ModelError, match="operator code"):
        read_model(b.build([x], [y]))
    b = Builder()
    x, y = b.tensor(), b.tensor()
    options = schema.WhileOptionsT()
    options.condSubgraphIndex = 3
    b.op("WHILE", [x], [y], options)
    with pytest.raises(ModelError, match="runs subgraph"):
        read_model(b.build([x], [y]))
    b = Builder()
    x = b.tensor()
    b.model.add_metadata("m", b"1")
    b.model.metadata[0].buffer = 99
    with pytest.raises(ModelError, match="buffer 99"):
        read_model(b.build([x], []))
    b = Builder()
    x = b.tensor()
    buffer = schema.BufferT()
    buffer.offset, buffer.size = 1 << 40, 5
    b.model.buffers.append(buffer)
    with pytest.raises(ModelError, match="external buffer"):
        read_model(b.build([x], []))


def test_data_in_another_file_is_constant():
    b = Builder()
    x = b.tensor((8,), externalBuffer=1)
    assert read_model(b.build([], [x])).subgraphs[0].tensors[0].storage is Storage.CONSTANT


def test_text_of_a_file_is_printable_from_the_start():
    """A name cannot move the cursor, wherever it is told."""
    b = Builder()
    x, y = b.tensor((1, 4), name="a\x1b]0;title\x07"), b.tensor((1, 4), name="b\u202e\nc")
    b.op("kind\x1b[2J", [x], [y])
    b.table.name = b"sub\rgraph"
    b.model.add_metadata("meta\tdata", b"1234")
    graph = read_model(b.build([x], [y]))
    (subgraph,) = graph.subgraphs
    texts = [t.name for t in subgraph.tensors] + [subgraph.name, subgraph.operators[0].kind, graph.metadata[0][0]]
    assert all(text.isprintable() and "\ufffd" in text for text in texts)


@pytest.mark.parametrize("tensor", [2, -2])
def test_a_tensor_just_outside_of_the_list_is_not_there(tensor: int):
    for place in ("inputs", "outputs", "operator"):
        b = Builder()
        x, y = b.tensor(), b.tensor()
        b.op("RELU", [tensor if place == "operator" else x], [y])
        ports = {"inputs": [x], "outputs": [y]} | ({place: [tensor]} if place != "operator" else {})
        with pytest.raises(ModelError, match=f"refers to tensor {tensor} of 2"):
            read_model(b.build(**ports))
