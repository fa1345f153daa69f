"""Memory layouts: intervals to place, the lowest layout by trying all, and whether a model survives its plan."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st

from tflite_tools import Interval, analyse_arena, may_overwrite, node_of, read_model

blocks_strategy = st.lists(
    st.tuples(st.integers(1, 6), st.integers(0, 5), st.integers(0, 4)).map(
        lambda b: Interval(16 * b[0], b[1], b[1] + b[2])
    ),
    max_size=7,
)


def aligned(size: int) -> int:
    """In whole blocks of 16 bytes, as TFLM allocates."""
    return -(-size // 16) * 16


def fits(blocks: list[Interval], height: int) -> bool:
    """Whether there are addresses for all of them: every multiple of 16 bytes is tried."""
    if not blocks:
        return True
    *rest, block = blocks
    placed = [b for b in rest if b.offset is not None]
    free = [b for b in rest if b.offset is None]
    for at in range(0, height - block.size + 1, 16):
        is_clear = all(
            b.last < block.first or block.last < b.first or b.offset + b.size <= at or at + block.size <= b.offset
            for b in placed
        )
        if is_clear and fits([block._replace(offset=at), *placed, *free] if free else [], height):
            return True
    return False


def lowest_height(blocks: list[Interval]) -> int:
    most = sum(block.size for block in blocks)
    together = (sum(b.size for b in blocks if b.first <= block.first <= b.last) for block in blocks)
    return next(height for height in range(max(together, default=0), most + 1, 16) if fits(blocks, height))


# Eight buffers whose sum never exceeds 5 units of 16 bytes, and that still do not fit into 5.
TIGHT = [(16, 1, 3), (32, 0, 2), (16, 2, 4), (48, 0, 0), (32, 1, 1), (16, 2, 2), (48, 3, 3), (64, 4, 4)]


def is_intact(data: bytes) -> bool:
    """Whether every operator finds what was written for it: with who has written each byte last, and no notion of
    lifetimes. An operator that may work in place reads before it writes, all others write first."""
    graph = read_model(data)
    subgraph, arena = graph.subgraphs[0], analyse_arena(graph)
    place = {b.tensor: (b.interval.offset, b.interval.offset + b.bytes) for b in arena.buffers if b.tensor is not None}
    scratch = {b.operator: b.interval for b in arena.buffers if b.tensor is None}
    memory = np.full(arena.head, -1)

    def write(t: int) -> None:
        if t in place:
            memory[slice(*place[t])] = t

    for t in subgraph.inputs:
        write(t)
    for operator in subgraph.operators:
        node = node_of(subgraph, operator)
        lies_on = next((t for i, t in enumerate(operator.inputs) if t in place and may_overwrite(node, i)
                        and place[t][0] == place.get(operator.outputs[0], (None,))[0]), None)  # fmt: skip
        expected = []
        for t in operator.reads:
            if t not in place:
                continue
            every = np.arange(*place[t])
            if operator.kind == "SLICE":
                begin, size = (subgraph.tensors[k].values for k in operator.inputs[1:])
                blocks = every.reshape(*subgraph.tensors[t].shape, -1)
                every = blocks[tuple(slice(b, None if n < 0 else b + n) for b, n in zip(begin, size, strict=True))]
            if t != lies_on:
                expected.append((t, every.ravel()))
            elif (memory[every.ravel()] != t).any():
                return False
        for t in operator.outputs:
            write(t)
        if operator.index in scratch:
            interval = scratch[operator.index]
            memory[interval.offset : interval.offset + interval.size] = -2
        if any((memory[bytes_read] != t).any() for t, bytes_read in expected):
            return False
    return all((memory[slice(*place[t])] == t).all() for t in subgraph.outputs)
