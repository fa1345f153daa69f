"""Any file whatsoever: a correct analysis or one clear line, soon, in little memory, and nothing half-written.

tests/damaged_models.py makes the files and checks the rules; tests/benchmarks/fuzz.py does the same for hours.
"""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import flatbuffers
import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema
from corpus import MODELS, SHARED, needs_shared
from damaged_models import BUILT, BYTE_EDITS, FLAGS, OBJECT_EDITS, Edit, damage, rebuild, run_case
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from model_builder import Builder, ModelBuilder, branches
from spatial_nets import Net

import tflite_tools
from tflite_tools import TFLiteModel

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="the harness needs fork()")

TOOL = Path(tflite_tools.__file__)
EVERYTHING = ("--optimize", "--plan", "-o", "out.tflite", "--csv", "csv", "--json", "report.json", "--calc-macs",
              "--calc-size")  # fmt: skip


####################################################################################################
# Random damage, the same in every run
####################################################################################################

# Edits are few and small, so there is nothing to shrink; and what fails here fails in every run.
fuzz = settings(derandomize=True, deadline=None, phases=[Phase.generate], report_multiple_bugs=False,
                suppress_health_check=list(HealthCheck))  # fmt: skip
numbers = st.integers(0, 1 << 20)
byte_edits = st.lists(st.builds(Edit, st.sampled_from(list(BYTE_EDITS)), numbers, numbers), min_size=1, max_size=4)
object_edits = st.lists(st.tuples(st.sampled_from(list(OBJECT_EDITS)), numbers), min_size=1, max_size=4)
any_flags = st.sampled_from(FLAGS)


def check(data: bytes, *flags: str, limit: float = 10.0) -> int | None:
    run = run_case(data, flags, limit)
    assert not run.violations, "\n".join(run.violations)
    return run.code


@settings(fuzz, max_examples=28)
@given(st.sampled_from(list(BUILT)), byte_edits, any_flags)
def test_damaged_bytes(name: str, edits: list[Edit], flags: tuple[str, ...]):
    check(damage(BUILT[name](), edits), *flags)


@settings(fuzz, max_examples=28)
@given(st.sampled_from(list(BUILT)), object_edits, any_flags)
def test_damaged_objects(name: str, edits: list[tuple[str, int]], flags: tuple[str, ...]):
    check(rebuild(BUILT[name](), edits), *flags)


@settings(fuzz, max_examples=14)
@given(st.sampled_from(sorted(MODELS.glob("*.tflite"))), byte_edits, object_edits, any_flags)
def test_damaged_shipped_models(path: Path, edits: list[Edit], changes: list, flags: tuple[str, ...]):
    check(damage(rebuild(path.read_bytes(), changes[:2]), edits[:1]), *flags)


@needs_shared
@settings(fuzz, max_examples=28)
@given(st.data(), byte_edits, object_edits, any_flags)
def test_damaged_corpus(choice: st.DataObject, edits: list[Edit], changes: list, flags: tuple[str, ...]):
    small = [p for p in sorted(SHARED.glob("models/**/*.tflite")) if 100 < p.stat().st_size < 10_000]
    data = choice.draw(st.sampled_from(small)).read_bytes()
    check(damage(data, edits) if choice.draw(st.booleans()) else rebuild(data, changes), *flags)


####################################################################################################
# Weird models that are legal, or nearly: the exit code that each must have
####################################################################################################


def model(build: Callable[[Builder], tuple[list[int], list[int]]]) -> Callable[[], bytes]:
    def make() -> bytes:
        b = Builder()
        return b.build(*build(b))

    make.__name__ = build.__name__
    return make


@model
def no_operators(b: Builder):
    x = b.tensor((8,))
    return [x], [x]


@model
def no_tensors(b: Builder):
    return [], []


@model
def zero_size_tensors(b: Builder):
    x, y = b.tensor((0,)), b.tensor((3, 0))
    b.op("RELU", [x], [y])
    return [x], [y]


@model
def inputs_and_outputs_twice(b: Builder):
    x, y = b.tensor((8,)), b.tensor((4,))
    b.op("ADD", [x, x], [y])
    return [x, x], [y, y, x]


@model
def an_operator_that_writes_its_input(b: Builder):
    x, y, z = b.tensor((8,)), b.tensor((4,)), b.tensor((80,))
    b.op("RELU", [x], [z])
    b.op("RELU", [x], [x, y])
    b.op("ADD", [x, y], [y])
    return [x], [y, z]


@model
def operators_in_a_circle(b: Builder):
    x, y, z = b.tensor((8,)), b.tensor((4,)), b.tensor((80,))
    b.op("ADD", [x, z], [y])
    b.op("RELU", [y], [z])
    return [x], [z]


@model
def a_tensor_read_before_it_is_produced(b: Builder):
    x, y, z = b.tensor((8,)), b.tensor((4,)), b.tensor((80,))
    b.op("RELU", [y], [z])
    b.op("RELU", [x], [y])
    return [x], [z]


@model
def two_producers(b: Builder):
    x, y, z = b.tensor((8,)), b.tensor((40,)), b.tensor((80,))
    b.op("RELU", [x], [y])
    b.op("ABS", [y], [z])
    b.op("NEG", [x], [y])
    return [x], [y, z]


@model
def negative_dimensions(b: Builder):
    x, y = b.tensor((-1, -5)), b.tensor((-(2**31),))
    b.op("MEAN", [x, y], [y])
    return [x], [y]


@model
def huge_dimensions(b: Builder):
    x = b.tensor((2**31 - 1,) * 4)
    return [x], [x]


@model
def an_index_out_of_range(b: Builder):
    x = b.tensor((8,))
    b.op("RELU", [x], [x + 1])
    return [x], [x]


@model
def an_operator_code_out_of_range(b: Builder):
    x, y = b.tensor((8,)), b.tensor((8,))
    b.op("RELU", [x], [y], opcodeIndex=1)
    return [x], [y]


@model
def a_missing_buffer(b: Builder):
    x = b.tensor((8,), buffer=7)
    return [x], [x]


@model
def a_subgraph_that_runs_itself(b: Builder):
    x, y, options = b.tensor((8,)), b.tensor((8,)), schema.WhileOptionsT()
    b.op("WHILE", [x], [y], options)
    return [x], [y]


@model
def metadata_in_a_missing_buffer(b: Builder):
    b.model.add_metadata("x", b"")
    b.model.metadata[0].buffer = 9
    return [], []


@model
def a_plan_of_random_words(b: Builder):
    x, y = b.tensor((8,)), b.tensor((8,))
    b.op("RELU", [x], [y])
    b.model.add_metadata("OfflineMemoryAllocation", np.array([9, 9, 2, 2**31 - 5, -77], "<i4").tobytes())
    return [x], [y]


@model
def strange_names(b: Builder):
    x, y = b.tensor((8,), name="a\nb\x1b[2J\0"), b.tensor((8,), name="n" * 100_000)
    b.op("RELU", [x], [y])
    return [x], [y]


def forty_equal_branches() -> bytes:
    return branches([(96, 16)] * 40)


@pytest.mark.parametrize(
    ("make", "code"),
    [
        (no_operators, 0), (no_tensors, 0), (zero_size_tensors, 0), (inputs_and_outputs_twice, 0),
        (an_operator_that_writes_its_input, 0), (operators_in_a_circle, 0), (a_tensor_read_before_it_is_produced, 0),
        (two_producers, 0), (negative_dimensions, 0), (huge_dimensions, 2), (an_index_out_of_range, 2),
        (an_operator_code_out_of_range, 2), (a_missing_buffer, 2), (a_subgraph_that_runs_itself, 2),
        (metadata_in_a_missing_buffer, 2), (a_plan_of_random_words, 0), (strange_names, 0), (forty_equal_branches, 0),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)  # fmt: skip
def test_weird_models(make: Callable[[], bytes], code: int):
    assert check(make(), *EVERYTHING) == code


####################################################################################################
# What fuzzing found
####################################################################################################


def operator(kind: str, *inputs: tuple, options: dict | None = None) -> bytes:
    """One operator; an input is (shape, dtype, does it have data)."""
    from flatbuffers import flexbuffers

    b = Builder()
    ids = [b.tensor(shape, dtype, data=np.ones(4, np.uint8) if data else None) for shape, dtype, data in inputs]
    x, y = b.tensor((4,)), b.tensor((4,))
    fields = {} if options is None else {"customOptions": list(flexbuffers.Dumps(options))}
    b.op(kind, ids, [y], **fields)
    return b.build([x, *(i for i, (_, _, data) in zip(ids, inputs, strict=True) if not data)], [y])


def tensor(*shape: int, dtype: str = "INT8", data: bool = False) -> tuple:
    return shape, dtype, data


HUGE = tensor(*[2**31 - 1] * 3, dtype="STRING", data=True)


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(operator("UNIDIRECTIONAL_SEQUENCE_LSTM", tensor(1, 4)), id="lstm-with-one-input"),
        pytest.param(operator("SVDF", tensor(), tensor(4, 4)), id="svdf-of-a-scalar"),
        pytest.param(operator("SVDF", tensor(1, 4), tensor()), id="svdf-with-a-scalar-weight"),
        pytest.param(operator("TFLite_Detection_PostProcess", tensor(4), tensor(4)), id="detection-of-vectors"),
        pytest.param(operator("BATCH_MATMUL"), id="batch-matmul-without-inputs"),
        pytest.param(operator("LSTM"), id="lstm-without-inputs"),
        pytest.param(operator("MEAN", tensor(2), HUGE), id="scratch-beyond-64-bits"),
        pytest.param(
            operator("MEAN", tensor(*[2**31 - 1] * 600, dtype="STRING"), tensor(2)), id="macs-of-5000-digits"
        ),
        pytest.param(operator("SignalRfft", tensor(1, 4, dtype="STRING", data=True), options={"fft_length": 4}),
                     id="rfft-of-strings"),
        *(pytest.param(operator("SignalRfft", tensor(1, 4), options={"fft_length": value}), id=f"rfft-{value!r:.9}")
          for value in ("x", None, [1, 2], 1 << 62)),
        pytest.param(operator("TFLite_Detection_PostProcess", tensor(1, 9, 4), tensor(1, 9, 3),
                              options={"num_classes": "x", "max_detections": []}), id="detection-options"),
    ],
)  # fmt: skip
def test_operators_that_are_not_as_their_kind_should_be(data: bytes):
    check(data, *EVERYTHING)


def custom_options(content: bytes) -> bytes:
    b = Builder()
    x, y = b.tensor((4,)), b.tensor((4,))
    b.op("SignalRfft", [x], [y], customOptions=list(content))
    return b.build([x], [y])


@pytest.mark.parametrize("content", ["ff" * 9, "000000", "01", bytes(range(40)).hex(), "282801" * 9, "60" * 64])
def test_custom_options_that_are_no_flexbuffer(content: str):
    check(custom_options(bytes.fromhex(content)), *EVERYTHING)


def named(name: str = "x", kind: str = "RELU", subgraph: str = "main") -> bytes:
    b = Builder(name=subgraph)
    x, y = b.tensor((8,), name=name), b.tensor((8,), name=name)
    b.op(kind, [x], [y])
    other = Builder(b.model, subgraph)
    other.finish([], [])
    return b.build([x], [y])


NAMES = {"mathtext": "$\\bad$", "terminal-codes": "a\nb\x1b[2J\0", "long": "n" * 5000, "not-in-the-font": "漢\u202e"}


@pytest.mark.parametrize(
    ("name", "field"),
    [
        pytest.param("mathtext", "name"),
        pytest.param("mathtext", "kind"),
        pytest.param("mathtext", "subgraph"),
        ("terminal-codes", "name"),
        pytest.param("terminal-codes", "kind"),
        pytest.param("terminal-codes", "subgraph"),
        ("long", "name"),
        ("long", "kind"),
        ("long", "subgraph"),
        ("not-in-the-font", "name"),
        pytest.param("not-in-the-font", "kind"),
        pytest.param("not-in-the-font", "subgraph"),
    ],
)
def test_names(name: str, field: str):
    data = named(**{field: NAMES[name]})
    check(data)
    check(data, "--plot", "plot.svg", limit=5)


def test_names_draw_without_a_warning(tmp_path: Path, recwarn: pytest.WarningsRecorder):
    for name in (*NAMES.values(), "ผลลัพธ์" * 99):
        model = TFLiteModel(named(name=name))
        model.plot_memory_usage(tmp_path / "schedule.png")
        model.plot_memory_map(tmp_path / "map.png")
    assert not list(recwarn)


def test_names_in_messages():
    b = Builder()
    x = b.tensor((2**31 - 1,) * 4, name="a\nb")
    assert check(b.build([x], [x])) == 2
    b = Builder()
    x = b.tensor((4,), "STRING", name="a\nb\x1b")
    check(b.build([x], [x]))


def nested_calls(levels: int, callees: int = 1, kind: str = "IF") -> bytes:
    """A chain of subgraphs; with two callees each, every level doubles the ways through."""
    m = ModelBuilder()
    for level in range(levels):
        b = Builder(m)
        x, y = b.tensor((8,)), b.tensor((8,))
        if level == levels - 1:
            b.op("RELU", [x], [y])
        for _ in range(callees if level < levels - 1 else 0):
            if kind == "IF":
                options = schema.IfOptionsT()
                options.thenSubgraphIndex = options.elseSubgraphIndex = level + 1
            else:
                options = schema.CallOptionsT()
                options.subgraph = level + 1
            b.op(kind, [x], [y], options)
        b.finish([x], [y])
    return m.build()


def references(fb: flatbuffers.Builder, targets: Sequence[int]) -> int:
    """A vector of tables."""
    fb.StartVector(4, len(targets), 4)
    for target in reversed(targets):
        fb.PrependUOffsetTRelative(target)
    return fb.EndVector()


def finish(fb: flatbuffers.Builder, subgraphs: Sequence[int], buffers: Sequence[int], codes: Sequence[int]) -> bytes:
    """A model of tables that are built already; one may stand in several places."""
    vectors = [references(fb, tables) for tables in (subgraphs, buffers, codes)]
    schema.ModelStart(fb)
    schema.ModelAddVersion(fb, 3)
    schema.ModelAddSubgraphs(fb, vectors[0])
    schema.ModelAddBuffers(fb, vectors[1])
    schema.ModelAddOperatorCodes(fb, vectors[2])
    fb.Finish(schema.ModelEnd(fb), b"TFL3")
    return bytes(fb.Output())


def one_tensor(tensors: int, inputs: int = 0, outputs: int = 0, name: bytes = b"t") -> bytes:
    """A file whose tensors are all the same table: legal, and as many for as few bytes as it gets."""
    fb = flatbuffers.Builder(1 << 16)
    label = fb.CreateString(name)
    schema.TensorStart(fb)
    schema.TensorAddName(fb, label)
    table = references(fb, [schema.TensorEnd(fb)] * tensors)
    ends = [fb.CreateNumpyVector(np.zeros(n, np.int32)) for n in (inputs, outputs)]
    schema.SubGraphStart(fb)
    schema.SubGraphAddTensors(fb, table)
    schema.SubGraphAddInputs(fb, ends[0])
    schema.SubGraphAddOutputs(fb, ends[1])
    subgraph = schema.SubGraphEnd(fb)
    schema.BufferStart(fb)
    return finish(fb, [subgraph], [schema.BufferEnd(fb)], [])


def many_dimensions() -> bytes:
    b = Builder()
    x = b.tensor((2**31 - 1,) * 200_000)
    return b.build([x], [x])


def plan_at_one_place(count: int) -> bytes:
    b = Builder()
    tensors, y = [b.tensor((8,)) for _ in range(count)], b.tensor((8,))
    b.op("CONCATENATION", tensors, [y])
    words = [1, 1, count + 1, *[0] * (count + 1)]
    b.model.add_metadata("OfflineMemoryAllocation", np.array(words, "<i4").tobytes())
    return b.build(tensors, [y])


def many_inputs(count: int) -> bytes:
    b = Builder()
    tensors, y = [b.tensor((8,)) for _ in range(count)], b.tensor((1,))
    b.op("CONCATENATION", tensors, [y])
    return b.build(tensors, [y])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("make", "flags"),
    [
        pytest.param(lambda: nested_calls(40), (), id="if-40-deep"),
        pytest.param(lambda: nested_calls(40, 2, "CALL"), ("--optimize",), id="two-calls-40-deep"),
        pytest.param(lambda: nested_calls(1100, 1, "CALL"), (), id="call-1100-deep"),
        pytest.param(lambda: nested_calls(1100, 1, "CALL"), ("--optimize",), id="call-1100-deep-optimize"),
        pytest.param(many_dimensions, (), id="200k-dimensions"),
        pytest.param(lambda: plan_at_one_place(3000), (), id="plan-with-4M-overlaps"),
        pytest.param(lambda: many_inputs(2500), (), id="2500-inputs"),
    ],
)
def test_time_and_memory_stay_in_proportion(make: Callable[[], bytes], flags: tuple[str, ...]):
    check(make(), *flags, limit=10)


def sums(sizes: Sequence[int], inputs: Sequence[Sequence[int]], unit: int = 16, **fields: int) -> Builder:
    """Operator i adds up some tensors to tensor i + 1."""
    b = Builder()
    tensors = [b.tensor((unit, size)) for size in sizes]
    for output, reads in enumerate(inputs, 1):
        b.op("ADD", [tensors[i] for i in reads], [tensors[output]], **fields)
    b.finish([0], [len(sizes) - 1])
    return b


def plannable(unit: int = 16, **fields: int) -> Builder:
    """A model whose arena --plan can improve, so that the file grows by its plan."""
    return sums([4, 5, 7, 5, 9, 5, 9, 6], [[0], [1], [2], [2, 3], [1, 4], [5], [4, 6]], unit, **fields)


def description_outside() -> bytes:
    """No reader needs the description, but whoever copies the root table comes across it."""
    m = schema.ModelT.InitFromPackedBuf(plannable().model.build(), 0)
    m.description = b"of the model"
    builder = flatbuffers.Builder(1024)
    builder.Finish(m.Pack(builder), b"TFL3")
    data = bytearray(builder.Output())
    root = schema.Model.GetRootAs(data, 0)._tab
    field = root.Pos + root.Offset(10)
    data[field : field + 4] = b"\xff" * 4
    return bytes(data)


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(lambda: plannable().model.build(), id="sound"),
        pytest.param(
            lambda: plannable(2**28).model.build(),
            id="offsets-beyond-2-GiB",
        ),
        pytest.param(description_outside, id="description-outside"),
        pytest.param(
            lambda: plannable(largeCustomOptionsOffset=2**64 - 1, largeCustomOptionsSize=5).model.build(),
            id="custom-options-outside",
        ),
    ],
)
def test_files_that_a_plan_is_added_to(make: Callable[[], bytes]):
    check(make(), "--plan", "-o", "out.tflite")
    check(make(), "--optimize", "--plan", "-o", "out.tflite")


def one_table_for_two_subgraphs() -> bytes:
    m = schema.ModelT.InitFromPackedBuf(branches([(96, 16), (160, 32), (48, 64)]), 0)
    fb = flatbuffers.Builder(1024)
    subgraph = m.subgraphs[0].Pack(fb)
    return finish(fb, [subgraph] * 2, [m.buffers[0].Pack(fb)], [code.Pack(fb) for code in m.operatorCodes])


def one_table_for_two_external_buffers() -> bytes:
    """The data of both is behind the FlatBuffer, at an absolute position, which moves when the file grows."""
    b = plannable()
    for buffer in (1, 2):
        b.tensor((64,), buffer=buffer)
    fb = flatbuffers.Builder(1024)
    subgraph, codes = b.table.Pack(fb), [code.Pack(fb) for _, code in b.model.codes]
    schema.BufferStart(fb)
    empty = schema.BufferEnd(fb)
    schema.BufferStart(fb)
    schema.BufferAddOffset(fb, marker := 0x123456789)
    schema.BufferAddSize(fb, 64)
    data = finish(fb, [subgraph], [empty, *[schema.BufferEnd(fb)] * 2], codes)
    data += bytes(-len(data) % 16)
    return data.replace(marker.to_bytes(8, "little"), len(data).to_bytes(8, "little")) + bytes(range(64)) * 20


def plan_in_the_buffer_of_a_weight() -> bytes:
    b = Builder()
    tensors = [b.tensor((size,)) for size in (32, 48, 32, 16)]
    for before, after in itertools.pairwise(tensors):
        b.op("RELU", [before], [after])
    b.tensor((8,), "INT32", buffer=1)
    b.model.add_metadata("OfflineMemoryAllocation", np.array([1, 1, 5, 0, 128, -1, 256, -1], "<i4").tobytes())
    return b.build(tensors[:1], tensors[-1:])


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(one_table_for_two_subgraphs),
        pytest.param(one_table_for_two_external_buffers),
        pytest.param(plan_in_the_buffer_of_a_weight),
    ],
)
def test_what_is_shared_in_the_file_survives(make: Callable[[], bytes]):
    """The harness compares what the written model computes with what the old one did."""
    check(make(), "--optimize", "-o", "out.tflite")
    check(make(), "--plan", "-o", "out.tflite")


def test_a_plan_below_zero():
    """The old arena takes 0 B, so nothing can be said in percent of that."""
    b = Builder()
    sizes = [16, 64, 144, 48, 96, 128, 32, 16]
    source, *inner, out = [b.tensor((size,)) for size in sizes]
    for tensor_id in inner[:3]:
        b.op("TILE", [source], [tensor_id])
    for before, after in zip(inner[:3], inner[3:], strict=True):
        b.op("SLICE", [before], [after])
    b.op("CONCATENATION", inner[3:], [out])
    words = [1, 1, len(sizes), *(-size for size in sizes)]
    b.model.add_metadata("OfflineMemoryAllocation", np.array(words, "<i4").tobytes())
    data = b.build([source], [out])
    assert check(data, "--optimize", "--plan", "-o", "out.tflite", "--json", "report.json") == 0


def test_an_unknown_arena_leaves_nothing_behind():
    data = operator("RELU", tensor(4, dtype="STRING"))
    check(data, "-o", "out.tflite", "--max-arena", "1KB")
    check(data, "-o", "out.tflite", "--memory-map", "map.svg")


def movers_in_a_circle() -> bytes:
    """Two RESHAPE that each make the input of the other one, beside a convolution over time."""
    net = Net()
    x, one, other = (net.tensor((1, 1, 24, 2), "INT8", **net.quantization()) for _ in range(3))
    net.op("RESHAPE", [one], [other])
    net.op("RESHAPE", [other], [one])
    made = net.tensor((1, 1, 22, 2), "INT8", **net.quantization())
    net.window("CONV_2D", other, 2, (1, 3))
    net.table.operators[-1].outputs = [made]
    return net.build([x], [made])


@pytest.mark.parametrize("flag", ["--lighten", "--split", "--fit", "--stages", "--repair"])
def test_movers_in_a_circle_end(flag: str):
    check(movers_in_a_circle(), flag)


####################################################################################################
# The world around: links, pipes, terminals, signals
####################################################################################################


def run(
    *arguments: str | Path, cwd: Path, code: str = "", env: dict[str, str] | None = None, **options
) -> subprocess.CompletedProcess[str]:
    command = ["-c", code] if code else [str(TOOL)]
    return subprocess.run(
        [sys.executable, *command, *map(str, arguments)], cwd=cwd, capture_output=True, text=True, timeout=60,
        env={**os.environ, "PYTHONPATH": str(TOOL.parent), **(env or {})}, **options,
    )  # fmt: skip


def assert_refused(done: subprocess.CompletedProcess[str]) -> None:
    assert done.returncode == 2, done.stderr[-500:]
    assert len(done.stderr.splitlines()) == 1
    assert "error:" in done.stderr


CELLS = MODELS / "digits_cells_int8.tflite"


@pytest.mark.parametrize(
    "arguments",
    [
        ["-i", "loop.png"],
        pytest.param(["-i", "loop.png", "-o", "out.tflite"]),
        pytest.param(["-i", CELLS, "-o", "loop.png"]),
        pytest.param(["-i", CELLS, "--plot", "loop.png"]),
        ["-i", CELLS, "--csv", "loop.png"],
    ],
)
def test_a_circle_of_links(tmp_path: Path, arguments: list):
    (tmp_path / "loop.png").symlink_to("pool.png")
    (tmp_path / "pool.png").symlink_to("loop.png")
    assert_refused(run(*arguments, cwd=tmp_path))


def test_a_pipe_is_read(tmp_path: Path):
    data = CELLS.read_bytes()
    done = subprocess.run([sys.executable, TOOL, "-i", "/dev/stdin", "--optimize", "-o", "out.tflite"], cwd=tmp_path,
                          input=data, capture_output=True, timeout=60)  # fmt: skip
    assert done.returncode == 0
    assert tflite_tools.TFLiteModel.load_from_file(tmp_path / "out.tflite").peak_memory_usage() == 20480
    done = subprocess.run([sys.executable, TOOL, "-i", "/dev/stdin", "--overwrite"], input=data, capture_output=True,
                          timeout=60)  # fmt: skip
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("name", ["tensor_details.csv", "execution_schedule_info.csv"])
def test_the_csv_files_do_not_replace_the_input(tmp_path: Path, name: str):
    (tmp_path / name).write_bytes(CELLS.read_bytes())
    assert_refused(run("-i", name, "--csv", ".", cwd=tmp_path))
    assert (tmp_path / name).read_bytes() == CELLS.read_bytes()


def test_a_terminal_that_knows_only_ascii(tmp_path: Path):
    (tmp_path / "model.tflite").write_bytes(named("漢字"))
    done = run("-i", "model.tflite", "--plan", cwd=tmp_path, env={"PYTHONIOENCODING": "ascii"})
    assert "Traceback" not in done.stderr
    assert done.returncode == 0


def test_the_longest_legal_file_name(tmp_path: Path):
    name = "n" * 247 + ".tflite"
    assert run("-i", CELLS, "-o", name, cwd=tmp_path).returncode == 0
    assert [p.name for p in tmp_path.iterdir()] == [name]


INTERRUPT = """
import os, signal, sys, tflite_tools
def interrupted(*arguments, **options):
    for _ in range(int(sys.argv[2])):
        os.kill(os.getpid(), signal.SIGINT)
    return original(*arguments, **options)
original = getattr(os, sys.argv[1])
setattr(os, sys.argv[1], interrupted)
sys.exit(tflite_tools.main(sys.argv[3:]))
"""


def hard_to_plan() -> bytes:
    """First fit does not reach the bound here, so the constraint solver runs: and it has its own SIGINT handler."""
    inputs = [[0], [1], [2], [2, 3], [4], [4, 5], [6], [5, 7]]
    return sums([2, 2, 6, 3, 5, 5, 4, 1, 3], inputs).model.build()


@pytest.mark.slow
@pytest.mark.parametrize("place", ["replace", "fdopen"])
@pytest.mark.parametrize(
    "flag",
    ["--optimize", pytest.param("--plan")],
)
def test_ctrl_c_while_writing_leaves_all_or_nothing(tmp_path: Path, place: str, flag: str):
    """Once, it is too late to interrupt a search; twice, the program stops."""
    (tmp_path / "model.tflite").write_bytes(hard_to_plan())
    for times in (1, 2):
        command = [place, str(times), "-i", "model.tflite", flag, "-o", f"out{times}.tflite"]
        done = run(*command, cwd=tmp_path, code=INTERRUPT)
        assert sorted(p.name for p in tmp_path.iterdir()) == ["model.tflite", "out1.tflite"]
    assert (done.returncode, done.stderr) == (130, "tflite-tools: interrupted; nothing was written\n")
    assert tflite_tools.TFLiteModel.load_from_file(tmp_path / "out1.tflite").arena.head > 0


@pytest.mark.parametrize("is_reordered", [False, True])
def test_a_plan_whose_bytes_mean_something_else_too_is_replaced_not_overwritten(is_reordered: bool):
    b = Builder()
    wide, narrow = ([b.tensor((size,)) for size in sizes] for sizes in ((96, 160), (16, 32)))
    source, result = b.tensor((8,)), b.tensor((8,))
    for tensor in wide:
        b.op("TILE", [source], [tensor])
    for before, after in zip(wide, narrow, strict=True):
        b.op("SLICE", [before], [after])
    b.op("CONCATENATION", narrow, [result])
    words = np.array([1, 1, 6, 0, 512, 1024, 2048, 4096, 5120], "<i4").tobytes()
    b.model.add_metadata(tflite_tools.OFFLINE_PLAN, words)
    b.model.add_metadata("note", b"")
    b.model.metadata[1].buffer = b.model.metadata[0].buffer
    model = TFLiteModel(b.build([source], [result]))
    if is_reordered:
        assert model.optimize_memory().changed
    else:
        assert model.plan_memory().changed
    note = model.graph.metadata_content("note")
    assert note is not None
    assert note.data.tobytes() == words
    assert model.arena.head < 5120


def test_kernels_without_their_inputs_are_counted_and_never_split():
    b = Builder()
    x, y, z = (b.tensor((1, 64, 8, 4)) for _ in range(3))
    b.op("CONV_2D", [x], [y], schema.Conv2DOptionsT())
    b.op("BATCH_MATMUL", [], [z])
    model = TFLiteModel(b.build([x], [y, z]))
    assert model.arena.persistent > 0
    assert not model.split_operators().changed


def test_what_is_written_twice_is_not_split():
    b = Builder()
    tensors = [b.tensor((1, 64, 8, 4)) for _ in range(3)]
    for before, after in ((0, 1), (1, 2), (0, 1)):
        b.op("RELU", [tensors[before]], [tensors[after]])
    assert not TFLiteModel(b.build(tensors[:1], tensors[2:])).split_operators().changed
