"""The command line: results where they belong, one clear line for every mistake, nothing half-written."""

from __future__ import annotations

import json
import os
import re
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from builder import worked_example
from conftest import MODELS, corpus, corpus_id, needs_shared

from tflite_tools import main

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
    assert out.stat().st_size == os.stat(CELLS).st_size
    assert sorted(p.name for p in (tmp_path / "csv").iterdir()) == ["execution_schedule_info.csv", "tensor_details.csv"]
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["peak_bytes"] == report["optimization"]["peak"] == 20480
    assert report["optimization"]["optimal"] is True
    assert report["clustering"][0]["weights"][0]["distinct_after"] == 16
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
    assert "left as it is" in capsys.readouterr().out


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
    assert "directory" in refused(capsys, "-i", str(tmp_path))


@pytest.mark.parametrize("value", ["0", "-3", "abc", "1.5", ""])
def test_bad_numbers_of_clusters(capsys: pytest.CaptureFixture[str], value: str):
    assert "whole number" in refused(capsys, "-i", CELLS, f"--clusters={value}")


@pytest.mark.parametrize(
    "arguments",
    [
        ["--plot", "plot.doc"], ["--plot", "plot"], ["--time-limit", "-1"], ["--time-limit", "nan"], ["--no-such"],
        ["--csv", CELLS], ["-o", "/no/such/folder/out.tflite"], ["--json", "/no/such/folder/out.json"],
        ["-o", str(MODELS)], ["-o", CELLS], ["--per-channel"], ["--clusters", "2,4", "-o", "b.tflite"],
        ["--plot", "a.png", "--json", "a.png"], ["--in-place", "-o", "b.tflite"],
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
    assert "--in-place" in refused(capsys, "-i", str(path), "-o", str(link), "--optimize")
    assert path.read_bytes() == Path(CELLS).read_bytes()
    assert main(["-i", str(link), "--in-place", "--optimize"]) == 0
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


def test_help_and_version():
    for flag in ("--help", "--version"):
        assert run(flag).returncode == 0


def test_plain_analysis_imports_nothing_heavy():
    script = (
        "import sys, tflite_tools\n"
        f"assert tflite_tools.main(['-i', {CELLS!r}]) == 0\n"
        "heavy = {'matplotlib', 'sklearn', 'scipy', 'ortools', 'ai_edge_litert', 'tqdm', 'pandas'} & set(sys.modules)\n"
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
