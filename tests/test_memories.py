"""Two memories: the most traffic in the fast one, within both limits, and what an application needs for that."""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Sequence
from pathlib import Path

import pytest
from corpus import MODELS, SHARED, needs_shared
from hypothesis import given, settings
from hypothesis import strategies as st
from layouts import TIGHT, blocks_strategy, is_intact, lowest_height
from model_builder import Builder
from runtimes import wheel_agrees
from spatial_nets import Net, chain, looped, random_net

from tflite_tools import (
    Aliases,
    Arena,
    ArenaBuffer,
    Division,
    DivisionProblem,
    Interval,
    Memories,
    MemoriesDecision,
    ModelGraph,
    TFLiteModel,
    main,
    plan_buffers,
    plan_faults,
    plan_memories,
    traffic,
)

DIGITS = MODELS / "digits_mobilenet_int8.tflite"


def divided(
    arena: Arena, values: Sequence[int], memories: Memories, pinned: dict[int, bool], time_limit: float = 60.0
) -> Division | None:
    return plan_memories(DivisionProblem(arena, values, pinned, arena.aliases), memories, time_limit)


def arena_of(blocks: list[Interval]) -> Arena:
    arena = Arena(ModelGraph((), (), ()), tuple(ArenaBuffer(block, 0, i) for i, block in enumerate(blocks)), 0, 0)
    arena.__dict__["aliases"] = Aliases()  # which no operators tell of
    return arena


@settings(max_examples=40, deadline=None)
@given(blocks_strategy, st.integers(1, 12), st.integers(2, 24), st.randoms(use_true_random=False))
def test_no_division_keeps_more(blocks: list[Interval], fast: int, slow: int, rng: random.Random):
    """All divisions are tried, each placed as low as can be."""
    blocks = blocks[:6]
    values = [rng.randrange(1, 100) for _ in blocks]
    pinned = {i: rng.random() < 0.5 for i in range(len(blocks)) if rng.random() < 0.2}
    memories = Memories(16 * fast, 16 * slow)
    best = None
    for kept in itertools.product((False, True), repeat=len(blocks)):
        parts = [[b for b, k in zip(blocks, kept, strict=True) if k is here] for here in (True, False)]
        if any(kept[i] is not where for i, where in pinned.items()):
            continue
        if all(lowest_height(part) <= 16 * size for part, size in zip(parts, (fast, slow), strict=True)):
            best = max(best or 0, sum(v for v, k in zip(values, kept, strict=True) if k))
    found = divided(arena_of(blocks), values, memories, pinned)
    if best is None:
        assert found is None
        return
    assert found is not None
    assert found.most >= best
    assert sum(values[i] for i in found.fast) == best
    assert all((i in found.fast) is where for i, where in pinned.items())
    assert not plan_faults(found.plan.intervals, str)
    assert found.boundary <= 16 * fast
    assert found.plan.height - found.boundary <= 16 * slow
    for i, interval in enumerate(found.plan.intervals):
        in_fast = interval.offset + interval.size <= found.boundary
        assert in_fast if i in found.fast else interval.offset >= found.boundary


def test_what_fits_at_all_times_and_cannot_be_placed():
    """Then something leaves: the smallest, since it is proven that all of them have no place."""
    blocks = [Interval(*life) for life in TIGHT]
    values = [block.size for block in blocks]
    for fast, most in ((96, sum(values)), (80, sum(values) - 16)):
        found = divided(arena_of(blocks), values, Memories(fast), {}, 10.0)
        assert sum(values[i] for i in found.fast) == found.most == most
        assert found.boundary <= fast
        assert not plan_faults(found.plan.intervals, str)


def test_what_rests_on_less_room_is_no_bound(monkeypatch: pytest.MonkeyPatch):
    """Three times in a row what has no place: each time all but 16 B stay, but the room is lowered for all at once."""
    monkeypatch.setattr("tflite_tools.EXACT_DIVISIONS", 1)
    blocks = [Interval(size, first + 10 * n, last + 10 * n) for n in range(3) for size, first, last in TIGHT]
    found = divided(arena_of(blocks), [block.size for block in blocks], Memories(80), {}, 10.0)
    assert found.most >= sum(block.size for block in blocks) - 3 * 16


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_memory_is_shared_within_each(seed: int):
    """No division of a model whose tensors may lie on each other has more in the fast memory than is told, and the best
    one has no less than is found."""
    rng = random.Random(seed)
    model = TFLiteModel(random_net(rng, steps=4))
    arena = model.arena
    values = traffic(model.graph, arena.buffers)
    fast = rng.randrange(1, arena.head // 16 + 2) * 16
    pinned = {i: True for i, b in enumerate(arena.buffers) if b.tensor is None}
    found = divided(arena, values, Memories(fast), pinned, 5.0)
    free = [i for i in range(len(values)) if i not in pinned]
    best = -1
    for kept in itertools.product((False, True), repeat=len(free)):
        chosen = sorted([*pinned, *(i for i, k in zip(free, kept, strict=True) if k)])
        value = sum(values[i] for i in chosen)
        buffers = [arena.buffers[i] for i in chosen]
        if value > best and plan_buffers(buffers, arena.aliases.among(chosen), 0.2, fast).height <= fast:
            best = value
    assert (found is None) == (best < 0)
    if found is None:
        return
    assert sum(values[i] for i in found.fast) >= best
    assert found.most >= best
    decision = model.plan_two_memories(fast)
    assert decision.fast_head <= fast
    assert not model.arena.problems
    assert is_intact(model.to_bytes())


def test_what_is_moved_is_told():
    """Written once, read by each operator; scratch memory, of MEAN in int8, once each."""
    net = Net()
    x = net.picture(4, 4, 2)
    y, z = net.map("RELU", x), net.map("RELU", x)
    model = TFLiteModel(net.build([x], [net.map("ADD", y, z)]))
    arena = model.arena
    moved = dict(zip([b.tensor for b in arena.buffers], traffic(model.graph, arena.buffers), strict=True))
    assert moved == {x: 3 * 32, y: 2 * 32, z: 2 * 32, arena.buffers[-1].tensor: 32}
    scratch = TFLiteModel(DIGITS.read_bytes())
    for buffer, bytes_moved in zip(scratch.arena.buffers, traffic(scratch.graph, scratch.arena.buffers), strict=True):
        assert buffer.tensor is not None or bytes_moved == 2 * buffer.bytes


def test_small_tensors_stay_in_the_fast_memory():
    model = TFLiteModel(chain())
    decision = model.plan_two_memories(600)
    assert decision.is_divided
    assert decision.optimal
    assert (decision.fast_head, decision.slow_head) == (256, 1024)
    assert (decision.before, decision.after) == (2 * 1024 + 2 * 256 + 1024, 2 * 1024 + 1024)
    assert model.arena.head == 256 + 1024
    assert decision.one_arena == model.arena.reserve


@pytest.mark.parametrize("where", ["slow", "fast"])
def test_pins(where: str):
    """There is room for all, but one tensor has to leave. It is called by its name, or by its number."""
    model = TFLiteModel(chain())
    first, last = model.graph.subgraphs[0].inputs[0], model.graph.subgraphs[0].tensors[-1].name
    for name in (f"t{first}", str(first)):
        model = TFLiteModel(chain())
        decision = model.plan_two_memories(1 << 20, pins={name: where, last: "slow" if where == "fast" else "fast"})
        assert decision.is_divided
        assert [tensor.name for tensor in decision.tensors] == [f"t{first}" if where == "slow" else last]
        assert (decision.fast_head, decision.slow_head) == (1280, 1024)


def test_all_in_the_fast_memory_is_an_ordinary_plan():
    model = TFLiteModel(chain())
    apart = TFLiteModel(chain())
    apart.plan_memory()
    decision = model.plan_two_memories(apart.arena.reserve)
    assert not decision.is_divided
    assert model.to_bytes() == apart.to_bytes()
    assert decision.reserve == apart.arena.reserve
    almost = TFLiteModel(chain()).plan_two_memories(apart.arena.reserve - 16)
    assert almost.is_divided
    assert almost.after == 0
    assert almost.slow_head == 0
    assert "Tensors in the slow memory: none." in almost.lines()


def refused(fast: int, slow: int | None = None) -> MemoriesDecision:
    model = TFLiteModel(DIGITS.read_bytes())
    decision = model.plan_two_memories(fast, slow)
    assert model.to_bytes() == DIGITS.read_bytes()
    assert not decision.changed
    return decision


def test_what_does_not_fit_is_refused():
    scratch = [b.interval.size for b in TFLiteModel(DIGITS.read_bytes()).arena.buffers if b.tensor is None]
    assert f"take {sum(scratch)} B, more than the 100 B of fast memory" in refused(100).refusal  # of one operator
    assert "and 20,480 B of slow memory" in refused(32 << 10, 20 << 10).refusal
    with pytest.raises(ValueError, match="no tensor in the arena is nothing"):
        TFLiteModel(chain()).plan_two_memories(1 << 20, pins={"nothing": "slow"})
    with pytest.raises(ValueError, match="not 'psram'"):
        TFLiteModel(chain()).plan_two_memories(1 << 20, pins={"t0": "psram"})


@pytest.mark.parametrize("case", ["digits", "cells", "looped"])
def test_without_the_class_it_runs_in_one_arena(case: str):
    name = {"digits": "digits_mobilenet_int8", "cells": "digits_cells_int8"}.get(case)
    data = (MODELS / f"{name}.tflite").read_bytes() if name else looped()
    pairs = []
    for part in (8, 4, 2):
        model = TFLiteModel(data)
        decision = model.plan_two_memories(model.arena.head // part)
        assert decision.is_divided
        assert model.arena.head == decision.fast_head + decision.slow_head
        pairs.append((data, model.to_bytes()))
    assert all(wheel_agrees(pairs))


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    out, picture = tmp_path / "out.tflite", tmp_path / "map.svg"
    run = ["-i", str(DIGITS), "-o", str(out)]
    assert main([*run, "--memories", "fast=32KB,slow=1MB", "--memory-map", str(picture), "--json", "-"]) == 0
    told = json.loads(capsys.readouterr().out)["memories"]
    assert told["fast"] == 32 << 10
    assert told["optimal"]
    assert told["bytes_moved"] > told["bytes_moved_slow"] > 0
    assert TFLiteModel(out.read_bytes()).arena.head == told["fast_head"] + told["slow_head"]
    assert picture.exists()
    assert main([*run, "--memories", "fast=32KB"]) == 0
    assert "Arena to reserve" not in capsys.readouterr().out  # which would be that without the class
    out.unlink()
    for flags, code, reason in (
        (["--memories", "fast=32KB,slow=20KB"], 1, "46,800 B of slow memory are enough"),
        (["--memories", "fast=100B"], 1, "no model was written: scratch memory and what is pinned take 544 B"),
        (["--memories", "slow=20KB"], 2, "not like fast=256KB,slow=8MB"),
        (["--memories", "fast=1,fast=2"], 2, "not like"),
        (["--memories", "fast=much"], 2, "not a size"),
        (["--memories", "fast=32KB", "--pin", "nothing=slow"], 2, "--pin: no tensor in the arena"),
        (["--memories", "fast=32KB", "--pin", "nothing"], 2, "not like NAME=fast"),
        (["--memories", "fast=32KB", "--max-arena", "1MB"], 2, "leave out --max-arena"),
        (["--pin", "0=slow"], 2, "add --memories"),
        (["--memories", "fast=8KB", "--pin", "0=slow", "--pin", "0=fast"], 2, "pinned to both"),
        (["--memories", "fast=1e308K"], 2, "not a size"),
        (["--memories", "fast=8KB,slow=1e30"], 2, "not a size"),
    ):
        assert main([*run, *flags]) == code
        assert reason in capsys.readouterr().err
        assert not out.exists()
    assert main([*run, "--memories", "fast=1MB"]) == 0
    assert "everything fits into the fast one" in capsys.readouterr().out
    assert main(["-i", str(DIGITS), "--memories", "fast=20KB", "--pin", "0=slow", "--split", "--verify"]) == 0
    assert "Verified in" in capsys.readouterr().out


@needs_shared
@pytest.mark.parametrize(("fast", "share"), [(128, 22.0), (256, 44.6), (512, 65.0)])
def test_no_less_than_was_measured_before(fast: int, share: float):
    """FURTHER.md, 6: without shared places, in floats rounded to 0.1."""
    model = TFLiteModel((SHARED / "nets" / "mobilenet_v2_100_224.tflite").read_bytes())
    decision = model.plan_two_memories(fast << 10, in_place=False)
    assert decision.optimal
    assert round(100 * (1 - decision.after / decision.before), 1) == share


def test_models_that_are_not_planned_say_why():
    b = Builder()
    x, y = b.tensor(dtype="STRING"), b.tensor(dtype="STRING")
    b.op("RESHAPE", [x], [y])
    model = TFLiteModel(b.build([x], [y]))
    assert "no tensors of type STRING" in model.plan_two_memories(1 << 20).refusal


def test_an_output_may_lie_on_either_input():
    """One of them is in the slow memory for lack of room; the sum lies on the other one."""
    b = Builder()
    x, a, c, z, w, total, y = (b.tensor((1, 256), "FLOAT32") for _ in range(7))
    for source, result in ((x, a), (x, c), (c, z), (c, w)):
        b.op("SOFTMAX", [source], [result])
    b.op("ADD", [a, c], [total])
    b.op("SOFTMAX", [total], [y])
    model = TFLiteModel(b.build([x], [y, z, w]))
    decision = model.plan_two_memories(1024)
    assert decision.optimal
    assert decision.before - decision.after == 6 * 1024
    at = {buffer.tensor: buffer.interval.offset for buffer in model.arena.buffers}
    assert at[c] == at[total] == 0
    assert not model.arena.problems
    assert is_intact(model.to_bytes())
    mirrored = TFLiteModel(b.build([x], [y, z, w])).plan_two_memories(1024, pins={"t1": "slow"})
    assert mirrored.after == decision.after


def test_pins_that_cannot_be():
    model = TFLiteModel(DIGITS.read_bytes())
    name = model.graph.subgraphs[0].tensors[0].name
    for pins, why in (
        ({"None": "slow"}, "no tensor in the arena"),
        ({"0": "slow", name: "fast"}, "tensor 0 is pinned to both memories"),
    ):
        with pytest.raises(ValueError, match=why):
            model.plan_two_memories(32 << 10, pins=pins)
    for fast, slow in ((-1, None), (2.5, None), (1 << 20, -1)):
        with pytest.raises(ValueError, match="a whole number of bytes"):
            model.plan_two_memories(fast, slow)
    assert model.plan_two_memories(32 << 10, 10**30).is_divided
    assert "holds nothing" in TFLiteModel(chain()).plan_two_memories(15).refusal


def test_more_slow_memory_is_never_worse():
    least = TFLiteModel(chain()).plan_two_memories(600).reserve
    for slow in range(least - 20, least + 40, 5):
        assert bool(TFLiteModel(chain()).plan_two_memories(600, slow).refusal) == (slow < least)


def test_kernels_that_do_not_fit_are_named():
    decision = TFLiteModel(DIGITS.read_bytes()).plan_two_memories(32 << 10)
    elsewhere = TFLiteModel(DIGITS.read_bytes(), "esp-nn").arena.buffers
    most = max(b.interval.size for b in elsewhere if b.tensor is None)
    assert dict(decision.scratch_elsewhere) == {"esp-nn": most}
    assert any(f"too small for ESP-NN on ESP32-S3, with {most:,} B" in line for line in decision.lines())
    assert not TFLiteModel(DIGITS.read_bytes(), "esp-nn").plan_two_memories(48 << 10).scratch_elsewhere


def test_planning_is_told_where_it_takes_most():
    model = TFLiteModel(looped())
    decision = model.plan_two_memories(2048, in_place=True)
    assert "what a loop runs counted once" in decision.lines()[0]
    is_more = decision.reserve > -(-(decision.slow_head + decision.persistent) // 16) * 16
    assert any("briefly needs" in line for line in decision.lines()) == is_more


def test_nothing_to_move():
    b = Builder()
    x = b.tensor((0,))
    decision = TFLiteModel(b.build([x], [x])).plan_two_memories(16)
    assert "100.0 % of 0 B" in decision.lines()[0]


def test_what_nobody_touches_is_not_moved():
    net = Net()
    x = net.picture(4, 4, 2)
    unused = net.picture(4, 4, 2)
    model = TFLiteModel(net.build([x], [net.map("RELU", x)]))
    moved = traffic(model.graph, model.arena.buffers)
    assert [n for b, n in zip(model.arena.buffers, moved, strict=True) if b.tensor == unused] == [0]
