"""How good and how fast the search for an operator order is, over a folder of models.

One line per file: the peak in file order, the best peak found and the proven bound under it, in bytes, the seconds
that all subgraphs took together, and the sets of executed operators that the search looked at. Two yardsticks:

* a CSV file of known results flags WORSE and BETTER peaks, and BOUND>BEST where a bound must be wrong;
* a plain memoised search over sets of tensors (Liberis & Lane 2019, arXiv 1910.05110), timed on subgraph 0 of
  the same files, has to agree, else MISMATCH is flagged and the exit code is 1.
"""

from __future__ import annotations

import argparse
import csv
import resource
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import ortools.graph.python.max_flow  # noqa: F401 - the module imports it late, and the first file would pay for that

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tflite_tools import (
    ModelError,
    ModelGraph,
    Subgraph,
    order_model,
    precedence_pairs,
    read_model,
    schedule_model,
    tensor_intervals,
)

SHARED = Path(__file__).resolve().parents[3] / "shared"
WRONG_TRUTH = "segment_sum_invalid_buffer.bin.tflite"  # there, a tensor without data counts as a constant


@dataclass(frozen=True)
class Result:
    """What the search found for one file; ``baseline`` is (seconds, peak) of the plain search, or why it has none."""

    name: str
    operators: int
    given: int
    peak: int
    bound: int
    seconds: float
    states: int
    baseline: str | tuple[float, int]
    flags: tuple[str, ...]

    @property
    def proven(self) -> bool:
        return self.peak <= self.bound

    def row(self) -> str:
        baseline = self.baseline if isinstance(self.baseline, str) else f"{self.baseline[0]:.3f}"
        cells = f"{self.operators:>6,} {self.given:>13,} {self.peak:>13,} {self.bound:>13,} {self.proven!s:>6}"
        return f"{self.name:<62} {cells} {self.seconds:>8.3f} {self.states:>11,} {baseline:>8} {' '.join(self.flags)}"


TITLES = (
    f"{'file':<62} {'ops':>6} {'file order':>13} {'best':>13} {'bound':>13} {'proven':>6} {'seconds':>8} "
    f"{'states':>11} {'baseline':>8}"
)


# -- the baseline ----------------------------------------------------------------------------------


def baseline_applies(graph: ModelGraph, subgraph: Subgraph) -> bool:
    """Whether the plain search knows all that matters: one output per operator, and no order beyond the data flow."""
    producer = {i: operator.index for operator in subgraph.operators for i in operator.writes}
    read = {i for operator in subgraph.operators for i in operator.reads}
    data_flow = {(producer[i], op.index) for op in subgraph.operators for i in op.reads if i in producer}
    return (
        all(len(operator.writes) == 1 and not operator.callees for operator in subgraph.operators)
        and len(producer) == len(subgraph.operators)
        and producer.keys() <= read | set(subgraph.outputs)
        and set(precedence_pairs(graph, subgraph)) == data_flow
    )


def search_tensor_sets(subgraph: Subgraph, time_limit: float) -> int:
    """The smallest peak of a subgraph, by memoised recursion over the sets of tensors to be held in memory.

    The recursion starts from the outputs and un-applies, for each tensor of the set in turn, the operator that
    produced it. Inputs of the network have no producer and stay in the set, since nothing can free them earlier.

    Raises:
        TimeoutError: after ``time_limit`` seconds.
    """
    deadline = time.monotonic() + time_limit
    size = [tensor.ram_bytes for tensor in subgraph.tensors]
    entry = sum(size[i] for i, life in tensor_intervals(subgraph).items() if life.first < 0)
    producer = {operator.writes[0]: operator for operator in subgraph.operators}
    inputs = {t: frozenset(i for i in op.reads if i in producer or size[i]) for t, op in producer.items()}
    ancestors: list[frozenset[int]] = [frozenset()] * len(size)
    for t in producer:  # file order, so that the ancestors of the inputs are complete
        ancestors[t] = inputs[t].union(*(ancestors[i] for i in inputs[t]))
    memo: dict[frozenset[int], int] = {}

    def smallest_peak(tensors: frozenset[int]) -> int:
        if tensors not in memo:
            if time.monotonic() > deadline:
                raise TimeoutError
            peaks = []
            for t in tensors:
                rest = tensors - {t}
                # An operator must not run twice: it stays while another tensor of the set is made from its output.
                if t in producer and not any(t in ancestors[other] for other in rest):
                    before = rest | inputs[t]
                    peaks.append(max(smallest_peak(before), sum(size[i] for i in before | {t})))
            memo[tensors] = min(peaks, default=entry)
        return memo[tensors]

    return smallest_peak(frozenset(subgraph.outputs))


def run_baseline(graph: ModelGraph, time_limit: float) -> str | tuple[float, int]:
    """(seconds, peak) of subgraph 0, or in a few characters why there is none."""
    subgraph = graph.subgraphs[0]
    if not time_limit:
        return "-"
    if not baseline_applies(graph, subgraph):
        return "n/a"

    def timed() -> tuple[float, int]:
        start = time.monotonic()
        peak = search_tensor_sets(subgraph, time_limit)
        return time.monotonic() - start, peak

    # It recurses once per operator, and before Python 3.11 that takes stack: more than the main thread may have.
    sys.setrecursionlimit(100_000)
    threading.stack_size(256 << 20)
    try:
        with ThreadPoolExecutor(1) as thread:
            return thread.submit(timed).result()
    except TimeoutError:
        return f">{time_limit:g}"


# -- all files -------------------------------------------------------------------------------------


def measure(path: Path, name: str, truth: dict[str, str] | None, time_limit: float, baseline_limit: float) -> Result:
    graph = read_model(path.read_bytes())
    start = time.monotonic()
    orderings = order_model(graph, time_limit)
    seconds = time.monotonic() - start
    peak, bound = max(o.peak for o in orderings), max(o.bound for o in orderings)
    baseline = run_baseline(graph, baseline_limit)
    flags = []
    if truth:
        best = int(truth["best_peak"])
        flags += ["WORSE"] * (peak > best) + ["BETTER"] * (peak < best) + ["BOUND>BEST"] * (bound > best)
    if isinstance(baseline, tuple) and not orderings[0].bound <= baseline[1] <= orderings[0].peak:
        flags.append(f"MISMATCH: the baseline says {baseline[1]:,}")
    return Result(
        name,
        sum(len(subgraph.operators) for subgraph in graph.subgraphs),
        max(schedule.peak for schedule in schedule_model(graph)),
        peak,
        bound,
        seconds,
        sum(o.states for o in orderings),
        baseline,
        tuple(flags),
    )


def summarize(results: Sequence[Result], baseline_limit: float) -> None:
    slowest = max(results, key=lambda r: r.seconds)
    open_files = [r for r in results if not r.proven]
    proven, seconds = sum(r.proven for r in results), sum(r.seconds for r in results)
    print(f"\n{len(results)} files, {proven} proven optimal, {seconds:.1f} s in all")
    print(f"slowest: {slowest.name}, {slowest.seconds:.1f} s")
    print(f"peak memory of this process: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:,.0f} MiB")
    if open_files:
        widest = max(open_files, key=lambda r: r.peak / max(r.bound, 1))
        print(f"largest gap: {widest.name}, {100 * (widest.peak / max(widest.bound, 1) - 1):.1f} % above its bound")
    if baseline_limit:
        finished = [(r, r.baseline[0]) for r in results if isinstance(r.baseline, tuple)]
        eligible = sum(r.baseline != "n/a" for r in results)
        plain, ours = sum(seconds for _, seconds in finished), sum(r.seconds for r, _ in finished)
        print(f"baseline: finished {len(finished)} of {eligible} files within {baseline_limit:g} s each", end="")
        print(f"; on those {plain:.2f} s against {ours:.2f} s, ratio {plain / max(ours, 1e-9):.1f}" if finished else "")


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("folder", nargs="?", type=Path, default=SHARED, help="searched for .tflite files (default: ../shared)")
    add("--pattern", default="", metavar="SUBSTRING", help="only files with this in their path below the folder")
    add("--time-limit", type=float, default=60.0, metavar="SECONDS", help="for the search, per file (default: 60)")
    add("--truth", type=Path, metavar="CSV", help="known results (default: truth/min_peak.csv of ../shared)")
    add("--baseline-limit", type=float, default=5.0, metavar="SECONDS", help="per file (default: 5); 0 skips it")
    arguments = parser.parse_args(argv)
    if not arguments.folder.is_dir():
        parser.error(f"the folder {arguments.folder} with the models is not here")
    if arguments.truth and not arguments.truth.is_file():
        parser.error(f"the file {arguments.truth} with the known results is not here")
    truth_file = arguments.truth or SHARED / "truth" / "min_peak.csv"
    truth: dict[str, dict[str, str]] = {}
    if truth_file.is_file():
        with open(truth_file, newline="") as file:
            truth = {row["file"]: row for row in csv.DictReader(file)}

    results = []
    print(TITLES)
    for path in sorted(arguments.folder.rglob("*.tflite")):
        name = path.relative_to(arguments.folder).as_posix()
        if arguments.pattern not in name:
            continue
        known = next((row for file, row in truth.items() if path.resolve().as_posix().endswith(f"/{file}")), None)
        if path.name == WRONG_TRUTH:
            known = None
        try:
            result = measure(path, name, known, arguments.time_limit, arguments.baseline_limit)
        except ModelError as error:
            print(f"{name:<62} skipped: {error}", flush=True)
            continue
        results.append(result)
        print(result.row(), flush=True)
    if not results:
        parser.error(f"no model below {arguments.folder} has {arguments.pattern!r} in its path")
    summarize(results, arguments.baseline_limit)
    return int(any("MISMATCH" in flag for result in results for flag in result.flags))


if __name__ == "__main__":
    sys.exit(main())
