"""C++ for an application: it compiles, the array is the file, and the operators are those of the model."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from builder import Builder
from conftest import MODELS
from nets import SAME, Net

from tflite_tools import CUSTOM_KINDS, KINDS, TFLiteModel, cpp_name, main, registration

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
struct MicroAllocator { static MicroAllocator* Create(unsigned char*, unsigned long) { return nullptr; } };
struct MicroResourceVariables { static MicroResourceVariables* Create(MicroAllocator*, int) { return nullptr; } };
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


def own_operator() -> bytes:
    b = Builder()
    x, y = b.tensor((1, 4), "FLOAT32", name='line\nbreak */ "quote" \\ end'), b.tensor((), "FLOAT32")
    b.op("my-op", [x], [y])
    return b.build([x], [y])


def compressed() -> bytes:
    model = TFLiteModel((MODELS / "digits_cnn_int8.tflite").read_bytes())
    model.cluster_weights(4)
    model.compress_weights()
    return model.to_bytes()


def looped() -> bytes:
    net = Net("INT8")
    x = y = net.picture(24, 24, 4)
    for channels in (16, 4):
        y = net.window("CONV_2D", y, channels, (3, 3), 1, SAME)
    model = TFLiteModel(net.build([x], [y]))
    assert model.split_operators(stripes="loop").changed
    return model.to_bytes()


CASES = {
    "digits": (MODELS / "digits_cells_int8.tflite").read_bytes,
    "variable": with_variable,
    "own": own_operator,
    "compressed": compressed,
    "looped": looped,
}


@pytest.mark.parametrize("case", CASES)
def test_it_compiles_and_is_the_model(case: str, tmp_path: Path):
    data = CASES[case]()
    model = TFLiteModel(data)
    model.write_firmware(tmp_path / "out", f"3 {case}-net")
    header, source, example = (
        (tmp_path / "out" / name).read_text()
        for name in (f"model_3_{case}_net_model.h", f"model_3_{case}_net_model.cc", "example.cc")
    )
    array = re.search(r"kModel\[\] = \{(.*?)\};", source, re.DOTALL)[1]
    assert bytes(int(byte, 16) for byte in re.findall(r"0x(..),", array)) == data
    assert f"kModelSize = {len(data)};" in header
    assert f"kTensorArenaSize = {model.arena.reserve};" in header
    calls = re.findall(r"resolver\.(Add.*)\);", source)
    assert sorted(calls) == sorted({registration(o.kind, o.is_custom) for _, o in model.graph.operators})
    assert f"kOperatorCount = {len(calls)};" in header
    assert ("MicroResourceVariables::Create(allocator, 1)" in example) == (case == "variable")
    if shutil.which("g++") is None:
        pytest.skip("needs g++")
    for name, text in STUBS.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    own = '#include "tensorflow/lite/micro/micro_mutable_op_resolver.h"\n'
    own += "TFLMRegistration* Register_my_op() { return nullptr; }\n"
    (tmp_path / "out" / "own.cc").write_text(own)
    sources = sorted(str(path) for path in (tmp_path / "out").glob("*.cc"))
    options = ["-std=c++17", "-Wall", "-Wextra", "-Werror", f"-I{tmp_path}", "-o", str(tmp_path / "run")]
    done = subprocess.run(["g++", *options, *sources], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert subprocess.run([tmp_path / "run"]).returncode == 0


def test_every_kernel_has_its_function():
    for table, is_custom in ((KINDS, False), (CUSTOM_KINDS, True)):
        for kind, row in table.items():
            if row.tflm is not None:
                call = registration(kind, is_custom)
                assert call.removeprefix("Add").removesuffix("()") in RESOLVER, kind


def test_operators_without_a_kernel():
    with pytest.raises(ValueError, match="no kernel for LSTM"):
        registration("LSTM", False)
    assert registration("Mine-2", True) == 'AddCustom("Mine-2", Register_Mine_2())'


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
def test_names_are_identifiers(text: str, name: str):
    assert cpp_name(text) == name


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    path, folder = MODELS / "digits_cnn_int8.tflite", tmp_path / "firmware"
    out = tmp_path / "small.tflite"
    for _ in range(2):
        options = ["--clusters", "4", "--compress", "--plan", "--firmware", str(folder), "-o", str(out)]
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
