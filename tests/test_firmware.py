"""C++ for an application: it compiles, the array is the file, and the operators are those of the model."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from ai_edge_litert import schema_py_generated as schema
from corpus import MODELS
from model_builder import Builder
from spatial_nets import looped

from tflite_tools import CUSTOM_KINDS, KINDS, TFLiteModel, main

# The functions of MicroMutableOpResolver (tflite-micro at 90b983c, August 2026).
RESOLVER = """
    Abs Add AddN ArgMax ArgMin AssignVariable AveragePool2D BatchMatMul BatchToSpaceNd BroadcastArgs BroadcastTo
    CallOnce Cast Ceil CircularBuffer Concatenation Conv2D Cos CumSum Decode Delay DepthToSpace DepthwiseConv2D
    Dequantize DetectionPostprocess Div DynamicUpdateSlice Elu EmbeddingLookup Energy Equal EthosU Exp
    ExpandDims FftAutoScale Fill FilterBank FilterBankLog FilterBankSpectralSubtraction FilterBankSquareRoot
    Floor FloorDiv FloorMod Framer FullyConnected Gather GatherNd Greater GreaterEqual HardSwish If Irfft
    L2Normalization L2Pool2D LeakyRelu Less LessEqual Log LogSoftmax LogicalAnd LogicalNot LogicalOr Logistic
    MaxPool2D Maximum Mean Minimum MirrorPad Mul Neg NotEqual OverlapAdd PCAN Pack Pad PadV2 Prelu Quantize
    ReadVariable ReduceAll ReduceMax ReduceMin Relu Relu6 Reshape ResizeBilinear ResizeNearestNeighbor ReverseV2
    Rfft Round Rsqrt SelectV2 Shape Sin Slice Softmax SpaceToBatchNd SpaceToDepth Split SplitV Sqrt Square
    SquaredDifference Squeeze Stacker StridedSlice Sub Sum Svdf Tanh Transpose TransposeConv
    UnidirectionalSequenceLSTM Unpack VarHandle While Window ZerosLike
""".split()
STUBS = {
    "tensorflow/lite/micro/micro_mutable_op_resolver.h": """
#pragma once
enum TfLiteStatus { kTfLiteOk, kTfLiteError };
#define TF_LITE_ENSURE_STATUS(a) do { const TfLiteStatus s = (a); if (s != kTfLiteOk) return s; } while (0)
struct TFLMRegistration {};
namespace tflite {
template <unsigned int count>
class MicroMutableOpResolver {
 public:
  TfLiteStatus AddCustom(const char*, const TFLMRegistration*) { return ++added > count ? kTfLiteError : kTfLiteOk; }
"""
    + "".join(f"  TfLiteStatus Add{name}() {{ return AddCustom(nullptr, nullptr); }}\n" for name in RESOLVER)
    + "  unsigned int added = 0;\n};\n}\n",
    "tensorflow/lite/schema/schema_generated.h": """
#pragma once
namespace tflite {
struct Model {};
inline const Model* GetModel(const void* buffer) { return static_cast<const Model*>(buffer); }
}
""",
    "tensorflow/lite/micro/micro_resource_variable.h": """
#pragma once
namespace tflite {
struct MicroMemoryPlanner;
struct MicroAllocator {
  static MicroAllocator* Create(unsigned char*, unsigned long, MicroMemoryPlanner* = nullptr) {
    static MicroAllocator allocator;
    return &allocator;
  }
};
struct MicroResourceVariables { static MicroResourceVariables* Create(MicroAllocator*, int) { return nullptr; } };
}
""",
    "tensorflow/lite/micro/micro_log.h": "template <typename... T> void MicroPrintf(const char*, T...) {}\n",
    "tensorflow/lite/micro/memory_planner/micro_memory_planner.h": """
#pragma once
#include <cstddef>
#include "tensorflow/lite/micro/micro_mutable_op_resolver.h"
namespace tflite {
struct MicroMemoryPlanner {
  virtual ~MicroMemoryPlanner() {}
  virtual TfLiteStatus AddBuffer(int size, int first, int last) = 0;
  virtual TfLiteStatus AddBuffer(int, int, int, int) { return kTfLiteError; }
  virtual size_t GetMaximumMemorySize() = 0;
  virtual int GetBufferCount() = 0;
  virtual TfLiteStatus GetOffsetForBuffer(int buffer, int* offset) = 0;
  virtual TfLiteStatus Init(unsigned char*, int) { return kTfLiteOk; }
  virtual bool preserves_all_tensors() const = 0;
};
}
""",
    # All scratch memory at 0, which is enough to see where the class sends what.
    "tensorflow/lite/micro/memory_planner/greedy_memory_planner.h": """
#pragma once
#include "tensorflow/lite/micro/memory_planner/micro_memory_planner.h"
namespace tflite {
struct GreedyMemoryPlanner : MicroMemoryPlanner {
  TfLiteStatus Init(unsigned char* scratch, int size) override {
    offsets = reinterpret_cast<int*>(scratch);
    most = size / static_cast<int>(sizeof(int));
    count = end = 0;
    return kTfLiteOk;
  }
  TfLiteStatus AddBuffer(int size, int first, int last) override { return AddBuffer(size, first, last, 0); }
  TfLiteStatus AddBuffer(int size, int, int, int offset) override {
    if (count >= most) return kTfLiteError;
    offsets[count++] = offset;
    end = offset + size > end ? offset + size : end;
    return kTfLiteOk;
  }
  size_t GetMaximumMemorySize() override { return static_cast<size_t>(end); }
  int GetBufferCount() override { return count; }
  TfLiteStatus GetOffsetForBuffer(int buffer, int* offset) override {
    *offset = offsets[buffer];
    return kTfLiteOk;
  }
  static size_t per_buffer_size() { return sizeof(int); }
  bool preserves_all_tensors() const override { return false; }
  int* offsets = nullptr;
  int most = 0, count = 0, end = 0;
};
}
""",
    "tensorflow/lite/micro/micro_interpreter.h": """
#pragma once
#include "tensorflow/lite/micro/micro_resource_variable.h"
namespace tflite {
struct MicroInterpreter {
  template <typename... T> explicit MicroInterpreter(T&&...) {}
  TfLiteStatus AllocateTensors() { return kTfLiteOk; }
  TfLiteStatus Invoke() { return kTfLiteOk; }
};
}
""",
}


def with_variable() -> bytes:
    b = Builder()
    handle, x, y = b.tensor(dtype="RESOURCE"), b.tensor((1, 4), "FLOAT32"), b.tensor((1, 4), "FLOAT32")
    b.op("VAR_HANDLE", [], [handle])
    b.op("READ_VARIABLE", [handle], [y])
    b.op("ASSIGN_VARIABLE", [handle, x], [])
    return b.build([x], [y])


def never_assigned() -> bytes:
    b = Builder()
    handle, x, value, y = b.tensor(dtype="RESOURCE"), *(b.tensor((1, 4), "FLOAT32") for _ in range(3))
    b.op("VAR_HANDLE", [], [handle])
    b.op("READ_VARIABLE", [handle], [value])
    b.op("ADD", [x, value], [y], schema.AddOptionsT())
    return b.build([x], [y])


def own_operator() -> bytes:
    b = Builder()
    x, y = b.tensor((1, 4), "FLOAT32", name='line\nbreak */ "quote" \\ end'), b.tensor((), "FLOAT32")
    b.op("my-op", [x], [y])
    return b.build([x], [y])


def compressed() -> bytes:
    model = TFLiteModel((MODELS / "digits_cnn_int8.tflite").read_bytes())
    model.cluster_weights(4)
    model.compress_weights(4096)
    return model.to_bytes()


CASES = {
    "digits": (MODELS / "digits_cells_int8.tflite").read_bytes,
    "variable": with_variable,
    "variable, never assigned": never_assigned,
    "own": own_operator,
    "compressed": compressed,
    "looped": looped,
}


CUSTOM = {"own": ['AddCustom("my-op", Register_my_op())']}


def registered(source: str) -> list[str]:
    """The calls that add kernels to the resolver."""
    return re.findall(r"resolver\.(Add.*)\);", source)


def plain(kind_or_call: str) -> str:
    """What an operator's kind and the call that adds its kernel have in common."""
    name = re.sub(r"^AddCustom\(\"(.*?)\".*|^Add(\w+)\(\)|^TFLM_(DECODE)$", r"\1\2\3", kind_or_call)
    return name.replace("_", "").lower()


def write_stubs(folder: Path) -> None:
    for name, text in STUBS.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


@pytest.mark.parametrize("case", CASES)
def test_it_compiles_and_is_the_model(case: str, tmp_path: Path):
    data = CASES[case]()
    model = TFLiteModel(data)
    name = case.partition(",")[0]
    model.write_firmware(tmp_path / "out", f"3 {name}-net")
    header, source, example = (
        (tmp_path / "out" / file).read_text()
        for file in (f"model_3_{name}_net_model.h", f"model_3_{name}_net_model.cc", "example.cc")
    )
    array = re.search(r"kModel\[\] = \{(.*?)\};", source, re.DOTALL)[1]
    assert bytes(int(byte, 16) for byte in re.findall(r"0x(..),", array)) == data
    assert f"kModelSize = {len(data)};" in header
    assert f"kTensorArenaSize = {model.arena.reserve};" in header
    calls = registered(source)
    assert sorted(map(plain, calls)) == sorted({plain(o.kind) for _, o in model.graph.operators})
    assert [call for call in calls if "Custom" in call] == CUSTOM.get(case, [])
    assert f"kOperatorCount = {len(calls)};" in header
    assert ("MicroResourceVariables::Create(allocator, 1)" in example) == case.startswith("variable")
    assert ("by the application" in header) == (case == "own")
    if shutil.which("g++") is None:
        pytest.skip("needs g++")
    write_stubs(tmp_path)
    own = '#include "tensorflow/lite/micro/micro_mutable_op_resolver.h"\n'
    own += "TFLMRegistration* Register_my_op() { return nullptr; }\n"
    (tmp_path / "out" / "own.cc").write_text(own)
    sources = sorted(str(path) for path in (tmp_path / "out").glob("*.cc"))
    options = ["-std=c++17", "-Wall", "-Wextra", "-Werror", f"-I{tmp_path}", "-o", str(tmp_path / "run")]
    done = subprocess.run(["g++", *options, *sources], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert subprocess.run([tmp_path / "run"]).returncode == 0


@pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")
@pytest.mark.parametrize("kernels", ["reference", "esp-nn"])
def test_the_planner_class(kernels: str, tmp_path: Path):
    """It sends every tensor to where the plan has it, and scratch memory to the fast one; and it refuses more of that
    than there is room for."""
    model = TFLiteModel((MODELS / "digits_mobilenet_int8.tflite").read_bytes(), kernels)
    decision = model.plan_two_memories(40 << 10, 1 << 20)
    model.write_firmware(tmp_path, "fast", decision)
    write_stubs(tmp_path)
    arena = model.arena
    rows = [(*b.interval[:3], -1 if b.tensor is None else b.interval.offset) for b in arena.buffers]
    program = f"""
#include <cstdio>
#include "fast_model.h"
static uint8_t memory[100], work[1 << 16];
static const int rows[][4] = {{{", ".join(f"{{{', '.join(map(str, row))}}}" for row in rows)}}};
int main(int count, char**) {{
  fast::Planner planner(memory + 70, memory + 10);
  for (int turn = 0; turn < 2; ++turn) {{
    if (planner.Init(work, count > 2 ? 8 * (sizeof(rows) / sizeof(rows[0])) - 8 : sizeof(work)) != kTfLiteOk) return 1;
    for (auto& row : rows) {{
      const bool is_scratch = row[3] < 0;
      if ((is_scratch ? planner.AddBuffer(row[0], row[1], row[2])
                      : planner.AddBuffer(row[0], row[1], row[2], row[3])) != kTfLiteOk) return 2;
    }}
  }}
  if (count > 1 && planner.AddBuffer(1 << 20, 0, 0) != kTfLiteOk) return 3;
  int at = 0;
  for (int i = 0; i < {len(rows)}; ++i) {{
    if (planner.GetOffsetForBuffer(i, &at) != kTfLiteOk) return 4;
    std::printf("%d ", at);
  }}
  std::printf("%d %d\\n", planner.GetBufferCount(), static_cast<int>(planner.GetMaximumMemorySize()));
}}"""
    (tmp_path / "main.cc").write_text(program)
    options = ["-std=c++17", "-Wall", "-Wextra", "-Werror", f"-I{tmp_path}"]
    sources = [str(tmp_path / name) for name in ("main.cc", "fast_model.cc")]
    done = subprocess.run(["g++", *options, *sources, "-o", str(tmp_path / "run")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    *offsets, count, slow = map(int, subprocess.run([tmp_path / "run"], capture_output=True, text=True).stdout.split())
    assert (count, slow) == (len(arena.buffers), decision.slow_head)
    names = {tensor.name for tensor in decision.tensors}
    for buffer, offset in zip(arena.buffers, offsets, strict=True):
        at = buffer.interval.offset
        if buffer.tensor is None:
            assert offset == 60
        else:
            is_slow = model.graph.subgraphs[0].tensors[buffer.tensor].name in names
            assert offset == (at - decision.fast_head if is_slow else at + 60)
            assert is_slow == (at >= decision.fast_head)
    assert subprocess.run([tmp_path / "run", "more"]).returncode == 4  # more scratch than there is room for
    assert subprocess.run([tmp_path / "run", "many", "buffers"]).returncode == 2  # more than its table holds
    example = subprocess.run(["g++", *options, "-c", str(tmp_path / "example.cc"), "-o", str(tmp_path / "o")],
                             capture_output=True, text=True)  # fmt: skip
    assert example.returncode == 0, example.stderr


def test_every_kernel_has_its_function(tmp_path: Path):
    b = Builder()
    x = y = b.tensor((1, 4), "FLOAT32")
    kinds = [kind for table in (KINDS, CUSTOM_KINDS) for kind, row in table.items() if row.tflm is not None]
    for kind in kinds:
        b.op(kind, [x] * 30, [y := b.tensor((1, 4), "FLOAT32")])
    TFLiteModel(b.build([x], [y])).write_firmware(tmp_path, "all")
    calls = registered((tmp_path / "all_model.cc").read_text())
    assert len(calls) == len(kinds) > 100
    for call in calls:
        assert call.removeprefix("Add").removesuffix("()") in RESOLVER, call


def test_a_name_with_quotes_stays_a_string(tmp_path: Path):
    b = Builder()
    x, y = b.tensor(), b.tensor()
    b.op('Mine"-2', [x], [y])
    TFLiteModel(b.build([x], [y])).write_firmware(tmp_path, "own")
    assert registered((tmp_path / "own_model.cc").read_text()) == ['AddCustom("Mine\\042-2", Register_Mine_2())']


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("net", "net"),
        ("3d net", "model_3d_net"),
        ("", "model"),
        ("a-b.c", "a_b_c"),
        ("class", "model_class"),
        ("\u00e9", "model"),
    ],
)
def test_names_are_identifiers(text: str, name: str, tmp_path: Path):
    TFLiteModel(own_operator()).write_firmware(tmp_path, text)
    (header,) = tmp_path.glob("*.h")
    assert header.name == f"{name.removesuffix('_model')}_model.h"
    assert f"namespace {name} {{" in header.read_text()


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    path, folder = MODELS / "digits_cnn_int8.tflite", tmp_path / "firmware"
    out = tmp_path / "small.tflite"
    for _ in range(2):
        options = [
            "--clusters",
            "4",
            "--compress",
            "--compress-ram",
            "3KB",
            "--plan",
            "--firmware",
            str(folder),
            "-o",
            str(out),
        ]
        assert main(["-i", str(path), *options]) == 0
    assert sorted(p.name for p in folder.iterdir()) == ["example.cc", "small_model.cc", "small_model.h"]
    assert f"kModelSize = {out.stat().st_size};" in (folder / "small_model.h").read_text()
    assert "AddDecode()" in (folder / "small_model.cc").read_text()
    assert main(["-i", str(path), "--kernels", "esp-nn", "--firmware", str(folder)]) == 0
    assert "ESP-NN on ESP32-S3" in (folder / "digits_cnn_int8_model.h").read_text()
    (tmp_path / "file").write_text("")
    capsys.readouterr()
    assert main(["-i", str(path), "--firmware", str(tmp_path / "file")]) == 2
    b = Builder()
    x, y = b.tensor(), b.tensor()
    b.op("RNN", [x], [y])
    (tmp_path / "rnn.tflite").write_bytes(b.build([x], [y]))
    assert main(["-i", str(tmp_path / "rnn.tflite"), "--firmware", str(tmp_path / "none")]) == 2
    assert "no kernel for RNN" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    "name", ["NULL", "unix", "TfLiteStatus", "exp", "gamma", "select", "EOF", "main", "\u00e9t\u00e9", "7"]
)
@pytest.mark.skipif(not shutil.which("g++"), reason="there is no C++ compiler")
def test_any_name_compiles(name: str, tmp_path: Path):
    """Names of macros, types and functions, and operators and tensors whose names are code."""
    b = Builder()
    x, y, z = (b.tensor((1, 4), "FLOAT32", name=text) for text in ("a\nb */", "c\\", 'd"); int e = ("'))
    b.op('x", nullptr)); std::abort(); (void)((\n"', [x], [y])
    b.op("my-op", [y], [z])
    b.op("my_op", [z], [y])
    write_stubs(tmp_path)
    TFLiteModel(b.build([x], [y])).write_firmware(tmp_path / "out", name)
    (source,) = (tmp_path / "out").glob("*_model.cc")
    text = source.read_text()
    assert "Register_my_op()" in text
    assert "Register_my_op_2()" in text
    assert "abort();" not in text
    command = ["g++", "-std=c++17", "-Wall", "-Wextra", "-Werror", f"-I{tmp_path}", "-fsyntax-only"]
    command += [word for name in ("cmath", "string", "algorithm", "ctime") for word in ("-include", name)]
    for file in (source, tmp_path / "out" / "example.cc"):
        done = subprocess.run([*command, str(file)], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr


def test_all_files_are_written_or_none(tmp_path: Path):
    (tmp_path / "example.cc").mkdir()
    with pytest.raises(OSError, match="directory"):
        TFLiteModel(own_operator()).write_firmware(tmp_path, "net")
    assert [path.name for path in tmp_path.iterdir()] == ["example.cc"]
