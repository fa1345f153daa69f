"""Operator ordering: the peak is the smallest there is, and the certificate is true."""

from __future__ import annotations

import csv
import itertools
import random

import pytest
from ai_edge_litert import schema_py_generated as schema
from corpus import MODELS, SHARED, corpus, corpus_id, needs_shared
from hypothesis import given, settings
from hypothesis import strategies as st
from model_builder import Builder, ModelBuilder, branches

import tflite_tools
from tflite_tools import (
    Budget,
    Buffer,
    CutNetwork,
    Ordering,
    OrderingProblem,
    Search,
    Sweep,
    TFLiteModel,
    merge_tasks,
    order_model,
    order_tasks,
    ordering_problem,
    pieces_of,
    read_model,
    series_cuts,
)


@st.composite
def problems(draw: st.DrawFn, most_tasks: int = 8) -> OrderingProblem:
    """Random problems: shared inputs, several outputs, kept and unread and empty buffers, transients, extra pairs."""
    n = draw(st.integers(1, most_tasks))
    buffers = []
    for _ in range(draw(st.integers(1, 2 * n))):
        producer = draw(st.one_of(st.none(), st.integers(0, n - 1)))
        first = 0 if producer is None else producer + 1
        users = draw(st.lists(st.integers(first, n - 1), max_size=3, unique=True)) if first < n else []
        kept = draw(st.booleans()) if not users else draw(st.integers(0, 5)) == 0
        buffers.append(Buffer(draw(st.integers(0, 9)), producer, tuple(users), kept))
    transient = tuple(draw(st.integers(0, 6)) if draw(st.booleans()) else 0 for _ in range(n))
    pairs = draw(st.lists(st.tuples(st.integers(0, n - 1), st.integers(0, n - 1)), max_size=3))
    return OrderingProblem(transient, tuple(buffers), tuple((a, b) for a, b in pairs if a < b))


def random_problem(rng: random.Random, n: int) -> OrderingProblem:
    """A problem whose tasks have an output each, of which later tasks read some: like a small network."""
    consumers: list[set[int]] = [set() for _ in range(n)]
    for task in range(1, n):
        for producer in rng.sample(range(max(0, task - 6), task), min(task, rng.choice((1, 1, 2, 3)))):
            consumers[producer].add(task)
    sizes = [rng.choice((0, 1, 2, 3, 5, 8, 13)) for _ in range(n)]
    return OrderingProblem(tuple(rng.choice((0, 0, 0, 4)) for _ in range(n)), one_output_each(sizes, consumers))


def one_output_each(sizes: list[int], readers: list[set[int]]) -> tuple[Buffer, ...]:
    """Task i makes a buffer of sizes[i]; those that nobody reads are kept."""
    each = enumerate(zip(sizes, readers, strict=True))
    return tuple(Buffer(size, task, tuple(sorted(users)), not users) for task, (size, users) in each)


def topological_orders(problem: OrderingProblem):
    """All orders, by definition."""
    for order in itertools.permutations(range(problem.n)):
        executed = 0
        for task in order:
            if problem.predecessors[task] & ~executed:
                break
            executed |= 1 << task
        else:
            yield order


def live(problem: OrderingProblem, executed: int) -> int:
    """Bytes alive after a down-set has run."""
    made = (b for b in problem.buffers if b.producer is None or executed >> b.producer & 1)
    return sum(b.size for b in made if b.kept or any(not executed >> t & 1 for t in b.readers))


def is_optimal(ordering: Ordering) -> bool:
    return ordering.peak <= ordering.bound


def smallest_peak(problem: OrderingProblem) -> int:
    """The optimum by dynamic programming over all down-sets, in plain Python: the oracle for larger graphs."""
    best = {0: 0}
    for _ in range(problem.n):
        level: dict[int, int] = {}
        for executed, peak in best.items():
            alive = live(problem, executed)
            for task in range(problem.n):
                if not executed >> task & 1 and not problem.predecessors[task] & ~executed:
                    after = executed | 1 << task
                    need = max(peak, alive + problem.demand[task])
                    level[after] = min(level.get(after, need), need)
        best = level
    return best[(1 << problem.n) - 1]


def check(problem: OrderingProblem, ordering: Ordering) -> None:
    executed = 0
    for task in ordering.order:
        assert not problem.predecessors[task] & ~executed
        executed |= 1 << task
    assert executed == (1 << problem.n) - 1
    assert problem.peak(ordering.order) == ordering.peak
    assert ordering.bound <= ordering.peak


@settings(max_examples=150, deadline=None)
@given(problems(most_tasks=7))
def test_agrees_with_all_topological_orders(problem: OrderingProblem):
    ordering = order_tasks(problem)
    check(problem, ordering)
    assert is_optimal(ordering)
    assert ordering.peak == min(problem.peak(order) for order in topological_orders(problem))


@settings(max_examples=300, deadline=None)
@given(problems(most_tasks=11))
def test_agrees_with_dynamic_programming(problem: OrderingProblem):
    ordering = order_tasks(problem)
    check(problem, ordering)
    assert (ordering.peak, is_optimal(ordering)) == (smallest_peak(problem), True)


@pytest.mark.slow
def test_agrees_with_dynamic_programming_on_thousands_of_networks():
    rng = random.Random(0)
    gained = 0
    for _ in range(2000):
        problem = random_problem(rng, rng.randint(2, 13))
        ordering = order_tasks(problem)
        check(problem, ordering)
        assert (ordering.peak, is_optimal(ordering)) == (smallest_peak(problem), True)
        gained += ordering.peak < problem.peak(range(problem.n))
    assert gained > 200  # else the graphs were too easy to tell anything


@pytest.mark.slow
@settings(max_examples=200, deadline=None)
@given(problems(most_tasks=10))
def test_sweeps_in_both_directions_decide_every_budget(problem: OrderingProblem):
    problem, _ = merge_tasks(problem)
    best = smallest_peak(problem)
    for reverse in (False, True):
        sweep = Sweep(problem, reverse)
        for budget in (best - 1, best, best + 3):
            order, is_proof, _ = sweep.run(budget, 1 << 20, Budget())
            assert is_proof == (budget < best)
            assert (order is not None) == (budget >= best)
            if order is not None:
                check(problem, Ordering(tuple(order), problem.peak(order), 0))
                assert problem.peak(order) <= budget


def search_of(problem: OrderingProblem) -> Search:
    """A search without the stages that come before proofs."""
    return Search(problem, Budget(5))


@settings(max_examples=100, deadline=None)
@given(problems(most_tasks=8), st.integers(-3, 3), st.booleans())
def test_an_attempt_at_any_budget_moves_only_what_it_has_shown(problem: OrderingProblem, offset: int, backwards: bool):
    problem, _ = merge_tasks(problem)
    best = smallest_peak(problem)
    search = search_of(problem)
    upper, lower, budget = search.upper, search.lower, best + offset
    assert lower <= best <= upper
    is_news = search.attempt(search.sweeps[backwards], budget, 1 << 20)
    assert is_news == (budget < best or search.upper < upper)
    assert search.lower <= best <= search.upper == problem.peak(search.order)
    if budget < best:
        assert (search.lower, search.upper) == (max(lower, budget + 1), upper)
    elif budget < upper:
        assert search.upper <= budget


@settings(max_examples=150, deadline=None)
@given(problems(most_tasks=10), st.sampled_from([1 << 26, 400, 30]))
def test_proofs_alone_find_the_optimum_or_say_how_far_it_may_be(problem: OrderingProblem, states: int):
    problem, _ = merge_tasks(problem)
    best = smallest_peak(problem)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tflite_tools, "SWEEP_STATES", states)
        search = search_of(problem)
        search.sweep(1 << 20)
        search.prove_less()
    assert search.lower <= best <= search.upper == problem.peak(search.order)
    assert states < 1000 or search.lower == best == search.upper


def test_a_search_without_time_knows_nothing_that_is_not_so():
    rng = random.Random(7)
    for _ in range(200):
        problem = random_problem(rng, rng.randint(2, 11))
        ordering = order_tasks(problem, time_limit=0)
        check(problem, ordering)
        assert ordering.bound <= smallest_peak(problem) <= ordering.peak


@settings(max_examples=200, deadline=None)
@given(problems(most_tasks=9))
def test_merging_tasks_keeps_the_optimum(problem: OrderingProblem):
    merged, groups = merge_tasks(problem)
    assert sorted(task for group in groups for task in group) == list(range(problem.n))
    assert smallest_peak(merged) == smallest_peak(problem)
    assert problem.peak([task for group in groups for task in group]) == merged.peak(range(merged.n))


@settings(max_examples=200, deadline=None)
@given(problems(most_tasks=9), st.data())
def test_the_parts_of_a_problem_between_down_sets_need_what_the_whole_needs_there(
    problem: OrderingProblem, data: st.DataObject
):
    order = range(problem.n)
    cut = data.draw(st.integers(0, problem.n))
    parts = [problem.part(order, 0, cut), problem.part(order, cut, problem.n)]
    assert [part.n for part in parts] == [cut, problem.n - cut]
    assert [need for part in parts for need in part.needs(range(part.n))] == problem.needs(order)


@settings(max_examples=200, deadline=None)
@given(problems(most_tasks=9))
def test_series_cuts_split_a_problem_into_independent_parts(problem: OrderingProblem):
    cuts = series_cuts(problem)
    parts = pieces_of(problem, cuts)
    assert sum(part.n for part in parts) == problem.n
    assert max(smallest_peak(part) for part in parts) == smallest_peak(problem)


@settings(max_examples=150, deadline=None)
@given(problems(most_tasks=8))
def test_minimum_cuts_find_the_cheapest_set(problem: OrderingProblem):
    network = CutNetwork(problem)
    down_sets = [
        s
        for s in range(1 << problem.n)
        if all(not problem.predecessors[t] & ~s for t in range(problem.n) if s >> t & 1)
    ]
    for task in range(problem.n):
        allowed = [s for s in down_sets if not s >> task & 1 and not problem.predecessors[task] & ~s]
        bound, executed = network.bound(task)
        assert bound == min(live(problem, s) for s in allowed) + problem.demand[task]
        assert executed in allowed
        assert live(problem, executed) + problem.demand[task] == bound


def test_an_order_that_cannot_be_better_is_left_alone():
    problem = random_problem(random.Random(5), 12)
    best = order_tasks(problem)
    renumbered = OrderingProblem((4, 4), (Buffer(1, 0, (1,)), Buffer(1, 1, (), kept=True)))
    assert order_tasks(renumbered).order == (0, 1)
    assert order_tasks(problem).order == best.order  # and the search is deterministic


def test_no_time_means_the_given_order_and_a_true_bound():
    problem = random_problem(random.Random(1), 60)
    ordering = order_tasks(problem, time_limit=0)
    check(problem, ordering)
    assert ordering.bound <= order_tasks(problem).peak <= ordering.peak


def test_interrupting_keeps_the_best_order_so_far(monkeypatch: pytest.MonkeyPatch):
    problem = hard_problem()
    seen = []

    spend = Budget.spend

    def interrupt(seconds: float) -> None:
        seen.append(seconds)
        spend(seconds)
        if len(seen) == 300:
            monkeypatch.setattr(Budget, "is_interrupted", True)

    monkeypatch.setattr(Budget, "spend", staticmethod(interrupt))
    ordering = order_tasks(problem)
    check(problem, ordering)
    assert len(seen) == 300
    assert not is_optimal(ordering)


def hard_problem() -> OrderingProblem:
    """A random graph that takes the search some hundred levels."""
    rng = random.Random(3)
    n = 70
    consumers: list[set[int]] = [set() for _ in range(n)]
    for task in range(1, n):
        for producer in rng.sample(range(max(0, task - 25), task), min(task, 2)):
            consumers[producer].add(task)
    return OrderingProblem((0,) * n, one_output_each([rng.randint(1, 1000) for _ in range(n)], consumers))


def test_a_sweep_that_would_not_fit_in_memory_proves_nothing(monkeypatch: pytest.MonkeyPatch):
    problem = hard_problem()
    best = order_tasks(problem)
    assert is_optimal(best)
    monkeypatch.setattr(tflite_tools, "LEVEL_WORDS", 8)
    assert not Sweep(problem).run(best.peak - 1, 1 << 20, Budget())[1]
    limited = order_tasks(problem, time_limit=2)
    check(problem, limited)
    assert limited.bound <= best.peak <= limited.peak


# -- models ----------------------------------------------------------------------------------------


def test_branches_are_closed_one_by_one():
    model = TFLiteModel(branches([(100, 1), (200, 2), (300, 3)]))
    (ordering,) = order_model(model.graph, 10)
    assert is_optimal(ordering)
    assert ordering.peak == 4 + 300 + 3  # the source, the largest branch and its end; the small ends come later
    assert ordering.peak < model.peak_memory_usage()


def test_inputs_that_nobody_reads_count_in_peak_and_bound():
    b = Builder()
    unread, x, y = b.tensor((1000,)), b.tensor((10,)), b.tensor((20,))
    b.op("TILE", [x], [y])
    (ordering,) = order_model(read_model(b.build([unread, x], [y])), 1)
    assert (ordering.peak, ordering.bound) == (1010, 1010)


@needs_shared
@pytest.mark.parametrize("name", ["control_cond_while_int8", "lstm_fused_keras_f32", "control_variables_f32"])
def test_order_and_schedule_agree_on_every_subgraph(name: str):
    model = TFLiteModel.load_from_file(SHARED / "nets" / f"{name}.tflite")
    orderings = order_model(model.graph, 10)
    model.optimize_memory()
    assert [s.peak for s in model.schedules] == [ordering.peak for ordering in orderings]


@pytest.mark.parametrize("time_limit", [0, 5])
def test_what_is_not_proven_of_a_branch_is_not_proven_of_its_caller(time_limit: float):
    """The branch can do with less than its file order; whoever runs it may claim no more than that."""
    model = ModelBuilder()
    b, branch = Builder(model), Builder(model, "branch")
    source = branch.tensor((4,))
    inner, ends = [branch.tensor((size,)) for size in (100, 200, 300)], [branch.tensor((1,)) for _ in range(3)]
    for tensor in inner:
        branch.op("TILE", [source], [tensor])
    for before, after in zip(inner, ends, strict=True):
        branch.op("SLICE", [before], [after])
    branch.finish([source], ends)
    x, y, condition = b.tensor((4,)), b.tensor((3,)), b.tensor((1,), "BOOL")
    options = schema.IfOptionsT()
    options.thenSubgraphIndex = options.elseSubgraphIndex = 1
    b.op("IF", [condition, x], [y], options)
    graph = read_model(b.build([condition, x], [y]))
    caller, callee = order_model(graph, time_limit)
    assert is_optimal(callee) == is_optimal(caller) == (time_limit > 0)
    lowest = 4 + 300 + 1
    assert callee.bound <= lowest <= callee.peak
    assert caller.bound <= lowest + 4 + 3 + 1 <= caller.peak


def pairs_of(b: Builder, inputs: list[int], outputs: list[int]) -> set[tuple[int, int]]:
    graph = read_model(b.build(inputs, outputs))
    return set(ordering_problem(graph, graph.subgraphs[0], dict.fromkeys(range(2), 0)).precedence)


def test_data_flow_is_precedence():
    b = Builder()
    x, y, z = b.tensor(), b.tensor(), b.tensor()
    b.op("RELU", [x], [y])
    b.op("RELU", [y], [z])
    assert pairs_of(b, [x], [z]) == {(0, 1)}


def test_writing_a_tensor_again_waits_for_its_readers():
    b = Builder()
    x, y, z = b.tensor(), b.tensor(), b.tensor()
    b.op("RELU", [x], [y])
    b.op("RELU", [y], [z])
    b.op("ABS", [x], [y])
    assert pairs_of(b, [x], [y, z]) == {(0, 1), (0, 2), (1, 2)}


def test_state_tensors_and_custom_operators_and_random_numbers_keep_their_order():
    b = Builder()
    x, state = b.tensor(), b.tensor(isVariable=True)
    outputs = [b.tensor() for _ in range(6)]
    b.op("SVDF", [x, state], [outputs[0]])
    b.op("MyOp", [x], [outputs[1]])
    b.op("RANDOM_UNIFORM", [x], [outputs[2]])
    b.op("SVDF", [x, state], [outputs[3]])
    b.op("YourOp", [x], [outputs[4]])
    b.op("RANDOM_UNIFORM", [x], [outputs[5]])
    assert pairs_of(b, [x], outputs) == {(0, 3), (1, 4), (2, 5)}


def variable(b: Builder, name: bytes) -> int:
    handle, options = b.tensor((), "RESOURCE"), schema.VarHandleOptionsT()
    options.container, options.sharedName = b"", name
    b.op("VAR_HANDLE", [], [handle], options)
    return handle


def test_variables_are_ordered_each_for_itself_and_calls_with_all():
    model = ModelBuilder()
    b = Builder(model)
    init = Builder(model, "init")
    init.op("ASSIGN_VARIABLE", [variable(init, b"a"), init.tensor()], [])
    init.finish([], [])
    x, y, z, w = (b.tensor() for _ in range(4))
    once = schema.CallOnceOptionsT()
    once.initSubgraphIndex = 1
    b.op("CALL_ONCE", [], [], once)  # 0
    first, second = variable(b, b"a"), variable(b, b"b")  # 1, 2
    b.op("READ_VARIABLE", [first], [y])  # 3
    b.op("READ_VARIABLE", [first], [z])  # 4
    b.op("READ_VARIABLE", [second], [w])  # 5
    b.op("ASSIGN_VARIABLE", [first, x], [])  # 6
    pairs = pairs_of(b, [x], [y, z, w])
    assert {(0, 3), (0, 4), (0, 5), (3, 6), (4, 6)} <= pairs
    assert not {(3, 4), (5, 6), (3, 5)} & pairs


def test_metadata_that_numbers_operators_is_honoured():
    b = Builder()
    x, y = b.tensor(), b.tensor()
    b.op("RELU", [x], [y])
    b.model.add_metadata("model_control_dependencies", b"\1\0")
    assert "control_dependencies" in TFLiteModel(b.build([x], [y])).optimize_memory().refusal


@needs_shared
@pytest.mark.parametrize("path", corpus(), ids=corpus_id)
def test_corpus_reaches_the_best_known_peak(path):
    """The small ones; tests/benchmarks/ordering.py has them all."""
    with open(SHARED / "truth" / "min_peak.csv") as file:
        truth = {row["file"]: row for row in csv.DictReader(file)}
    row = truth.get(corpus_id(path))
    if row is None or int(row["operators"]) > 250:
        pytest.skip("not in the truth, or left to the benchmark")
    if row["file_order_peak"] == row["best_peak"] and int(row["operators"]) > 60:
        pytest.skip("nothing to gain; left to the benchmark")
    if path.name == "syn_layered_n100_w16_s0.tflite":
        pytest.skip("takes ten seconds; left to the benchmark")
    if path.name == "segment_sum_invalid_buffer.bin.tflite":
        pytest.skip("the truth takes a tensor without data for a constant")
    graph = read_model(path.read_bytes())
    (ordering,) = order_model(graph, 20)
    assert ordering.peak <= int(row["best_peak"])
    assert ordering.bound >= int(row["lower_bound"]) or is_optimal(ordering)
    if row["proven_minimum"] == "True":
        assert (ordering.peak, is_optimal(ordering)) == (int(row["best_peak"]), True)


def test_shipped_cells():
    (ordering,) = order_model(read_model((MODELS / "digits_cells_int8.tflite").read_bytes()), 10)
    assert (ordering.peak, is_optimal(ordering)) == (20480, True)


def test_the_time_may_be_over_at_any_moment():
    """Wherever it ends, there is an order or none, and no accident."""

    class Clock(tflite_tools.Budget):
        def __init__(self, ticks: int) -> None:
            self.ticks = ticks

        @property
        def is_over(self) -> bool:
            self.ticks -= 1
            return self.ticks < 0

    graph = tflite_tools.read_model(branches([(9, 1), (8, 2), (7, 3), (6, 4)]))
    peaks = {s.subgraph.index: s.peak for s in tflite_tools.schedule_model(graph)}
    problem = tflite_tools.ordering_problem(graph, graph.subgraphs[0], peaks)
    for ticks in range(60):
        order = tflite_tools.order_by_cuts(problem, Clock(ticks))
        assert order is None or sorted(order) == list(range(problem.n))
    assert order is not None


def test_rules_that_save_work_do():
    """Without the fusion of tasks that follow each other this takes 1.4 times the work, without levels that end 1.8."""
    start = Budget.done
    for seed in range(6):
        ordering = order_tasks(random_problem(random.Random(seed), 60))
        assert ordering.peak == ordering.bound
    assert Budget.done - start < 0.31e9
