"""The command line: results where they belong, one clear line for every mistake, nothing half-written."""

from __future__ import annotations

import ast
import csv
import io
import json
import os
import re
import signal
import stat
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from corpus import MODELS, corpus, corpus_id, needs_shared
from model_builder import Builder, worked_example
from spatial_nets import Net

import tflite_tools
from tflite_tools import Budget, TFLiteModel, keeping_the_best, main

CELLS = str(MODELS / "digits_cells_int8.tflite")
ROOT = Path(__file__).resolve().parents[1]


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(ROOT / "tflite_tools.py"), *arguments], capture_output=True, text=True, timeout=120
    )


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one line on stderr of a command that must exit with 2."""
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    lines = captured.err.strip().splitlines()
    assert len(lines) == 1
    assert "error:" in lines[0]
    return lines[0]


def test_everything_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    out = tmp_path / "out.tflite"
    code = main(
        ["-i", CELLS, "-o", str(out), "--optimize", "--clusters", "16", "--csv", str(tmp_path / "csv"), "--calc-macs",
         "--json", str(tmp_path / "report.json"), "--plot", str(tmp_path / "plot.svg"), "--calc-size"]
    )  # fmt: skip
    assert code == 0
    printed = capsys.readouterr()
    assert "27,648 B -> 20,480 B" in printed.out
    assert "proven optimal" in printed.out
    assert "Current peak memory usage: 20,480 B" in printed.out
    assert 0.8 * os.stat(CELLS).st_size < out.stat().st_size <= os.stat(CELLS).st_size
    assert sorted(p.name for p in (tmp_path / "csv").iterdir()) == ["execution_schedule_info.csv", "tensor_details.csv"]
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["peak_bytes"] == report["optimization"]["peak"] == 20480
    assert report["optimization"]["optimal"] is True
    assert report["clustering"]["weights"][0]["distinct_after"] == 16
    assert not list(tmp_path.glob(".*"))  # no temporary file is left


def test_json_on_stdout_is_only_json(capsys: pytest.CaptureFixture[str]):
    assert main(["-i", CELLS, "--json", "-"]) == 0
    assert json.loads(capsys.readouterr().out)["peak_bytes"] == 27648


def test_nothing_is_written_without_an_output(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["-i", CELLS, "--optimize"]) == 0
    assert "nothing was written" in capsys.readouterr().err


def test_an_optimal_model_is_copied_unchanged(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    source = MODELS / "digits_cnn_int8.tflite"
    assert main(["-i", str(source), "--optimize", "-o", str(tmp_path / "out.tflite")]) == 0
    assert (tmp_path / "out.tflite").read_bytes() == source.read_bytes()
    assert "Operator order unchanged" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("content", "why"),
    [(b"", "empty"), (b"just text\n" * 20, "identifier"), (worked_example()[:1000], "cut short")],
)
def test_bad_input_files(tmp_path: Path, capsys: pytest.CaptureFixture[str], content: bytes, why: str):
    path = tmp_path / "model.tflite"
    path.write_bytes(content)
    line = refused(capsys, "-i", str(path), "-o", str(tmp_path / "out.tflite"), "--optimize")
    assert why in line
    assert str(path) in line
    assert [p.name for p in tmp_path.iterdir()] == ["model.tflite"]


def test_missing_file_and_directory(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert "No such file" in refused(capsys, "-i", str(tmp_path / "missing.tflite"))
    assert "convert a SavedModel" in refused(capsys, "-i", str(tmp_path))


@pytest.mark.parametrize("value", ["0", "-3", "abc", "1.5", ""])
def test_bad_numbers_of_clusters(capsys: pytest.CaptureFixture[str], value: str):
    assert "whole number" in refused(capsys, "-i", CELLS, f"--clusters={value}")


@pytest.mark.parametrize(
    "arguments",
    [
        ["--plot", "plot.doc"], ["--plot", "plot"], ["--time-limit", "-1"], ["--time-limit", "nan"], ["--no-such"],
        ["--csv", CELLS], ["-o", "/no/such/folder/out.tflite"], ["--json", "/no/such/folder/out.json"],
        ["-o", str(MODELS)], ["-o", CELLS], ["--per-channel"], ["--clusters", "2,4"],
        ["--plot", "a.png", "--json", "a.png"], ["--overwrite", "-o", "b.tflite"], ["-o", "-", "--json", "-"],
        ["-i", "-", "--overwrite"],
    ],
)  # fmt: skip
def test_usage_errors(capsys: pytest.CaptureFixture[str], arguments: list[str]):
    refused(capsys, "-i", CELLS, *arguments)


def test_the_input_is_replaced_only_when_asked(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    path = tmp_path / "model.tflite"
    path.write_bytes(Path(CELLS).read_bytes())
    path.chmod(0o640)
    link = tmp_path / "link.tflite"
    link.symlink_to(path)
    assert "--overwrite" in refused(capsys, "-i", str(path), "-o", str(link), "--optimize")
    assert path.read_bytes() == Path(CELLS).read_bytes()
    assert main(["-i", str(link), "--overwrite", "--optimize"]) == 0
    assert link.is_symlink()
    assert path.read_bytes() != Path(CELLS).read_bytes()
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert sorted(p.name for p in tmp_path.iterdir()) == ["link.tflite", "model.tflite"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full on this system")
def test_a_full_disk_is_reported():
    done = run("-i", CELLS, "-o", "/dev/full")
    assert done.returncode == 2
    assert "No space left" in done.stderr
    assert "Traceback" not in done.stderr


def shell(command: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """A command of the shell; $tool is this program on a model."""
    tool = f"{sys.executable} {ROOT / 'tflite_tools.py'} -i {CELLS}"
    return subprocess.run(
        ["bash", "-c", f"set -o pipefail; {command.replace('$tool', tool)}"],
        capture_output=True, text=True, timeout=120, env=os.environ | variables,
    )  # fmt: skip


def test_a_reader_that_goes_away_is_no_error(tmp_path: Path):
    out = tmp_path / "out.tflite"
    done = shell(f"$tool --optimize -o {out} | head -n 1")
    assert (done.returncode, done.stderr.strip()) == (0, f"wrote {out}")
    assert len(done.stdout.splitlines()) == 1
    assert 0.8 * os.stat(CELLS).st_size < out.stat().st_size <= os.stat(CELLS).st_size


def test_streams_that_cannot_be_written_are_named(tmp_path: Path):
    for command, why in (
        ("$tool >&-", "standard output is closed"),
        ("$tool > /dev/full", "standard output: No space left on device"),
        (f"ln -s {tmp_path}/nowhere/x {tmp_path}/link; $tool -o {tmp_path}/link", f"{tmp_path}/link: No such file"),
        ("$tool --csv /dev/null/x", "/dev/null/x"),
        ("$tool --json /dev/full", "/dev/full: No space left on device"),
    ):
        done = shell(command)
        assert done.returncode == 2, command
        assert why in done.stderr
        assert "Traceback" not in done.stderr
        assert ".tmp" not in done.stderr


def test_a_closed_stderr_changes_nothing(tmp_path: Path):
    assert shell(f"$tool --optimize -o {tmp_path / 'out.tflite'} 2>&-").returncode == 0
    assert (tmp_path / "out.tflite").exists()


def test_models_on_standard_streams(tmp_path: Path):
    out = tmp_path / "out.tflite"
    assert run("-i", CELLS, "--optimize", "-o", str(out)).returncode == 0
    command = [sys.executable, str(ROOT / "tflite_tools.py"), "-i", "-", "-o", "-", "--optimize"]
    done = subprocess.run(command, input=Path(CELLS).read_bytes(), capture_output=True)
    assert done.returncode == 0
    assert done.stdout == out.read_bytes()
    assert b"Operators reordered" in done.stderr
    done = subprocess.run(command, input=b"nothing good", capture_output=True)
    assert (done.returncode, done.stdout) == (2, b"")
    assert b"standard input: not a TensorFlow Lite model" in done.stderr


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="signals of POSIX")
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
@pytest.mark.parametrize("flags", ["--split", "--optimize", "--plan"])
def test_a_signal_ends_the_search_and_keeps_the_best(name: str, flags: str, tmp_path: Path):
    """The search waits at its first look at the clock until the signal has come."""
    out = tmp_path / "out.tflite"
    script = f"""
import os, signal, sys
sys.path.insert(0, {str(ROOT)!r})
import tflite_tools
signal.signal(signal.{name}, signal.SIG_DFL)  # a job in the background inherits that some are ignored
left = tflite_tools.Budget.left.fget
def interrupted(budget):
    if not tflite_tools.Budget.is_interrupted:
        os.kill(os.getpid(), signal.{name})
    return left(budget)
tflite_tools.Budget.left = property(interrupted)
sys.exit(tflite_tools.main(["-i", {CELLS!r}, "-o", {str(out)!r}, {flags!r}]))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0
    assert "interrupted: this is the best so far" in done.stderr
    assert TFLiteModel.load_from_file(out).peak_memory_usage() <= 27648


def test_signals_that_are_ignored_stay_so():
    """As under nohup."""
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        with keeping_the_best():
            os.kill(os.getpid(), signal.SIGTERM)
            assert not Budget().is_over
    finally:
        signal.signal(signal.SIGTERM, before)


def test_a_model_on_stdout_survives_a_broken_stderr():
    done = shell("$tool --plan -o - 2>/dev/full | wc -c")
    assert int(done.stdout) > 50_000
    assert shell("$tool -i - <&-").returncode == 2


def test_a_second_signal_stops():
    before = [signal.signal(number, signal.SIG_DFL) for number in (signal.SIGINT, signal.SIGTERM)]
    with keeping_the_best():
        os.kill(os.getpid(), signal.SIGTERM)
        assert Budget().is_over
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert not Budget().is_over
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    for number, handler in zip((signal.SIGINT, signal.SIGTERM), before, strict=True):
        signal.signal(number, handler)


def many_operators(steps: int) -> bytes:
    b = Builder()
    x = b.tensor((1, steps), "FLOAT32")
    parts = [b.tensor((1,), "FLOAT32") for _ in range(steps)]
    b.op("UNPACK", [x], parts)
    results = []
    for part in parts:
        b.op("NEG", [part], [y := b.tensor((1,), "FLOAT32")])
        results.append(y)
    b.op("PACK", results, [z := b.tensor((1, steps), "FLOAT32")])
    return b.build([x], [z])


def test_long_tables_are_cut_to_what_a_person_reads(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    path = tmp_path / "many.tflite"
    path.write_bytes(many_operators(500))
    lengths = []
    for flags in ([], ["--full"]):
        assert main(["-i", str(path), *flags]) == 0
        printed = capsys.readouterr().out
        lengths.append((len(printed), printed.count("| NEG ("), max(map(len, printed.splitlines()))))
        assert ("--full shows all" in printed) == (not flags)
        assert "Current peak memory usage: 4,000 B" in printed
        assert "| UNPACK (" in printed
        assert "| PACK (" in printed
    (short, few, narrow), (whole, every, wide) = lengths
    assert every == 500
    assert 90 < few < 200
    assert narrow < 220 < wide
    assert short < whole / 10
    path.write_bytes(many_operators(90))
    assert main(["-i", str(path)]) == 0
    assert "--full" not in capsys.readouterr().out


def test_cells_of_csv_cannot_become_formulas(tmp_path: Path):
    b = Builder()
    x, y = b.tensor((4,), name="=cmd|' /C calc'!A0"), b.tensor((4,), name="@sum\x1b[2J\r\n")
    b.op("-custom", [x], [y])
    (tmp_path / "in.tflite").write_bytes(b.build([x], [y]))
    assert main(["-i", str(tmp_path / "in.tflite"), "--csv", str(tmp_path)]) == 0
    tensors = list(csv.reader((tmp_path / "tensor_details.csv").open(newline="", encoding="utf-8")))
    assert [row[1] for row in tensors[1:]] == ["'=cmd|' /C calc'!A0", "'@sum\ufffd[2J\ufffd\ufffd"]
    steps = list(csv.DictReader((tmp_path / "execution_schedule_info.csv").open(newline="", encoding="utf-8")))
    assert (steps[0]["Operator"], steps[0]["Kind"]) == ("'@sum\ufffd[2J\ufffd\ufffd", "'-custom")


def test_refusals_are_told_before_the_arena(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    b = Builder()
    x = y = b.tensor((4,), "FLOAT32")
    for i in range(8):
        b.op("POW" if i < 2 else f"own{i}", [y, x], [y := b.tensor((4,), "FLOAT32")])
    path = tmp_path / "in.tflite"
    path.write_bytes(b.build([x], [y]))
    assert main(["-i", str(path), "--json", str(tmp_path / "report.json")]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if not line.startswith(("|", "+"))]
    first = lines.index("TFLM rejects this model: POW: there is no such kernel (operators 0, 1)")
    assert lines[first + 5] == "TFLM rejects this model: ... and 2 more reasons"
    assert lines[0].startswith("Arena")
    report = json.loads((tmp_path / "report.json").read_text())
    assert len(report["refusals"]) == 7
    assert main(["-i", CELLS, "--json", str(tmp_path / "report.json")]) == 0
    assert json.loads((tmp_path / "report.json").read_text())["refusals"] == []


def test_help_and_version():
    for flag in ("--help", "--version"):
        assert run(flag).returncode == 0


def test_help_imports_not_even_the_bindings():
    script = (
        "import sys, tflite_tools\n"
        "assert tflite_tools.main(['--help']) == 0\n"
        "assert not {'numpy', 'tflite', 'flatbuffers', 'prettytable'} & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_plain_analysis_imports_nothing_heavy():
    script = (
        "import sys, tflite_tools\n"
        f"assert tflite_tools.main(['-i', {CELLS!r}]) == 0\n"
        "heavy = {'matplotlib', 'sklearn', 'scipy', 'ortools', 'ai_edge_litert', 'pandas'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_declared_dependencies_agree():
    header = re.search(r"# dependencies = \[(.*?)# \]", (ROOT / "tflite_tools.py").read_text(), re.DOTALL)
    project = re.search(r"^dependencies = \[(.*?)\]", (ROOT / "pyproject.toml").read_text(), re.DOTALL | re.MULTILINE)
    pipfile = re.search(r"\[packages\](.*?)\[dev", (ROOT / "Pipfile").read_text(), re.DOTALL)
    assert header
    assert project
    assert pipfile
    assert all(re.fullmatch(r'#     "[^"]+",', line) for line in header[0].splitlines()[1:-1])
    from_header = set(re.findall(r'"(.*?)"', header[1]))
    assert from_header == set(re.findall(r'"(.*?)"', project[1]))
    assert from_header == {name + bound for name, bound in re.findall(r'^([\w-]+) = "(.*?)"', pipfile[1], re.MULTILINE)}


@needs_shared
@pytest.mark.parametrize("path", corpus(), ids=corpus_id)
def test_corpus_is_analysed_or_refused(path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    code = main(["-i", str(path), "--csv", str(tmp_path), "--calc-macs", "--calc-size"])
    printed = capsys.readouterr()
    if code == 0:
        assert "Current peak memory usage:" in printed.out
    else:
        assert (code, path.name) == (2, "0_subgraphs.bin.tflite")
        assert len(printed.err.strip().splitlines()) == 1


def test_two_models_side_by_side(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    this, other = MODELS / "digits_mobilenet_int8.tflite", MODELS / "digits_cnn_int8.tflite"
    report, plot, arena = tmp_path / "report.json", tmp_path / "plot.svg", tmp_path / "map.svg"
    options = ["--compare", str(other), "--plot", str(plot), "--memory-map", str(arena)]
    assert main(["-i", str(this), *options, "--json", str(report)]) == 0
    comparison = json.loads(report.read_text())["comparison"]
    for side, path in (("this", this), ("other", other)):
        model = TFLiteModel.load_from_file(path)
        assert comparison[side]["peak"] == model.peak_memory_usage()
        arena_of = {key: comparison[side][key] for key in ("reserve", "head", "persistent")}
        assert arena_of == {key: getattr(model.arena, key) for key in arena_of}
        assert comparison[side]["file"] == path.stat().st_size
        assert comparison[side]["operators"] == sum(comparison[side]["kinds"].values())
    text = capsys.readouterr().out
    assert re.search(r"DEPTHWISE_CONV_2D +\| +0 \| +\d+ \|", text)
    assert re.search(r"Inputs .* different", text)
    assert plot.read_text().count("<!-- Compared with -->") == 1
    (tmp_path / "bad.tflite").write_bytes(b"nothing")
    assert main(["-i", str(this), "--compare", str(tmp_path / "bad.tflite")]) == 2
    assert "bad.tflite: not a TensorFlow Lite model" in capsys.readouterr().err


def test_nothing_is_overwritten_in_silence(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """All files of a command are compared with each other, those in folders included."""
    model, other, folder = tmp_path / "example.cc", tmp_path / "other.tflite", tmp_path / "folder"
    folder.mkdir()
    for path in (model, other):
        path.write_bytes(Path(CELLS).read_bytes())
    for arguments in (
        ["--json", str(other), "--compare", str(other)],
        ["--firmware", str(tmp_path)],
        ["--csv", str(folder), "-o", str(folder / "tensor_details.csv")],
        ["--csv", str(folder), "--json", str(folder / "execution_schedule_info.csv")],
        ["--firmware", str(folder), "--json", str(folder / "example.cc")],
    ):
        assert main(["-i", str(model), *arguments]) == 2
        assert "two files of this command have the same name" in capsys.readouterr().err
    assert model.read_bytes() == other.read_bytes()
    assert not list(folder.iterdir())


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_an_output_that_cannot_be_written_is_found_first(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    tmp_path.chmod(0o500)
    for arguments in (["-o", str(tmp_path / "out.tflite")], ["--csv", str(tmp_path / "a" / "b")]):
        assert main(["-i", CELLS, "--split", "--plan", *arguments]) == 2
        captured = capsys.readouterr()
        assert "no permission to write into" in captured.err
        assert not captured.out


def test_a_damaged_archive_at_the_end_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as labels:
        labels.writestr("labels.txt", "cat dog")
    path, out = tmp_path / "model.tflite", tmp_path / "out.tflite"
    path.write_bytes(Path(CELLS).read_bytes() + archive.getvalue().replace(b"cat dog", b"cat fog"))
    assert main([str(path), "--optimize", "-o", str(out)]) == 2
    assert "the zip archive at its end cannot be read" in capsys.readouterr().err
    assert not out.exists()


def test_verifying_alone_leaves_nothing_to_write(capsys: pytest.CaptureFixture[str]):
    assert main([CELLS, "--verify"]) == 0
    assert "nothing was written" not in capsys.readouterr().err


def test_the_gate_says_yes_only_to_what_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    b = Builder()
    x, y = b.tensor((1, 4), "FLOAT32"), b.tensor((1, 4), "FLOAT32")
    b.op("MyOp", [x], [y])
    path = tmp_path / "own.tflite"
    path.write_bytes(b.build([x], [y]))
    assert main(["-i", str(path), "--max-arena", "64KB"]) == 1
    captured = capsys.readouterr()
    assert "check failed: TFLM rejects this model: MyOp: there is no such kernel" in captured.err
    assert main(["-i", str(path), "--max-arena", "64KB", "--assume-kernels", "Other,MyOp"]) == 0
    assert "TFLM rejects" not in capsys.readouterr().out
    assert main(["-i", str(path), "--max-arena", "64B", "--assume-kernels", "MyOp"]) == 1


def test_what_verification_needs_is_checked_before_the_search(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setattr(TFLiteModel, "split_operators", lambda *arguments: pytest.fail("it was searched before"))
    assert main(["-i", CELLS, "--split", "--optimize", "--plan", "--verify"]) == 1
    captured = capsys.readouterr()
    assert "pip install" in captured.err
    assert not captured.out


def test_ctrl_c_while_modules_load_is_one_line():
    script = f"""
import sys
sys.argv = ["tflite-tools"]
sys.path.insert(0, {str(ROOT)!r})
class Interrupted:
    def find_spec(self, name, path, target=None):
        if name == "graphlib":
            raise KeyboardInterrupt
sys.meta_path.insert(0, Interrupted())
import tflite_tools
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (130, "tflite-tools: interrupted; nothing was written\n")


def test_a_larger_arena_of_other_kernels_is_told(capsys: pytest.CaptureFixture[str], tmp_path: Path):
    """Stripes that help the reference kernels raise the scratch memory of another library."""
    net = Net()
    x = source = net.picture(16, 16, 4)
    for kind, channels, kernel, stride in (
        ("CONV_2D", 32, 1, 1),
        ("DEPTHWISE_CONV_2D", 0, 1, 1),
        ("CONV_2D", 32, 3, 2),
    ):
        x = net.window(kind, x, channels, (kernel, kernel), stride)
    path = tmp_path / "net.tflite"
    path.write_bytes(net.build([source], [net.window("CONV_2D", x, 2, (1, 1))]))
    assert main(["-i", str(path), "--split", "--optimize", "--plan", "-o", str(tmp_path / "out.tflite")]) == 0
    told = capsys.readouterr().out
    before, after = (TFLiteModel.load_from_file(tmp_path / name) for name in ("net.tflite", "out.tflite"))
    larger = [
        name
        for name, size in after.snapshot.reserve_by_library.items()
        if size > before.snapshot.reserve_by_library[name]
    ]
    assert after.arena.reserve < before.arena.reserve
    assert larger == ["esp-nn"]
    assert [line for line in told.splitlines() if line.startswith("Larger with ESP-NN on ESP32-S3: ")]
    assert "--kernels esp-nn changes the model for these" in told


@pytest.mark.parametrize("script", sorted((ROOT / "tests" / "benchmarks").glob("*.py")), ids=lambda path: path.stem)
def test_benchmarks_import_what_is_there(script: Path):
    """Benchmarks are not run by the tests, and would not notice that a name is gone."""
    names = [n for node in ast.walk(ast.parse(script.read_text())) for n in imported(node)]
    assert not [name for name in names if not hasattr(tflite_tools, name)]


def imported(node: ast.AST) -> list[str]:
    is_from_here = isinstance(node, ast.ImportFrom) and node.module == "tflite_tools"
    return [alias.name for alias in node.names] if is_from_here else []
