"""The places where diverged threads meet again: the immediate post-dominator of every branch of a function.

Called by tests.ptx.assemble. The algorithm is Cooper, Harvey and Kennedy's (A Simple, Fast Dominance Algorithm, 2001),
on the reversed graph of basic blocks with one virtual exit.
"""

from __future__ import annotations

from tests.ptx.parse import Function

_ENDS = ("ret", "exit", "trap")


def targets(function: Function, index: int) -> list[int]:
    """Return the instructions a branch may go to, without the one after it."""
    instruction = function.code[index]
    if instruction.opcode.startswith("brx"):
        return [function.labels[label] for label in function.tables[instruction.operands[1]]]
    return [function.labels[instruction.operands[0]]]


def is_branch(opcode: str) -> bool:
    return opcode.split(".")[0] in ("bra", "brx")


def joins(function: Function) -> dict[int, int]:
    """Return instruction index of each branch -> index of the first instruction all its paths share, -1 for none."""
    code = function.code
    starts = {0, *function.labels.values()}
    for index, instruction in enumerate(code):
        if is_branch(instruction.opcode) or (instruction.opcode in _ENDS and not instruction.guard):
            starts.add(index + 1)
    order = sorted(start for start in starts if start < len(code))
    block_of = {start: number for number, start in enumerate(order)}
    exit_block = len(order)
    successors: list[list[int]] = []
    for number, end in enumerate([*order[1:], len(code)]):
        last = code[end - 1]
        following = [number + 1] if end < len(code) else [exit_block]
        if is_branch(last.opcode):
            going = [block_of.get(target, exit_block) for target in targets(function, end - 1)]
            indexed = last.opcode.startswith("brx")
            successors.append(going + following if last.guard and not indexed else going)
        elif last.opcode in _ENDS and not last.guard:
            successors.append([exit_block])
        else:
            successors.append(following)
    nearest = _post_dominators(successors, exit_block)
    found = {}
    for number, end in enumerate([*order[1:], len(code)]):
        if is_branch(code[end - 1].opcode):
            join = nearest.get(number, exit_block)
            found[end - 1] = -1 if join == exit_block else order[join]
    return found


def _post_dominators(successors: list[list[int]], exit_block: int) -> dict[int, int]:
    predecessors: list[list[int]] = [[] for _ in range(exit_block + 1)]
    for block, following in enumerate(successors):
        for successor in following:
            predecessors[successor].append(block)
    # Post-order of the reversed graph from the exit.
    place: dict[int, int] = {}
    stack = [(exit_block, iter(predecessors[exit_block]))]
    seen = {exit_block}
    while stack:
        block, rest = stack[-1]
        step = next((before for before in rest if before not in seen), None)
        if step is None:
            stack.pop()
            place[block] = len(place)
        else:
            seen.add(step)
            stack.append((step, iter(predecessors[step])))
    nearest = {exit_block: exit_block}
    ordered = sorted(place, key=lambda block: -place[block])
    changed = True
    while changed:
        changed = False
        for block in ordered:
            if block == exit_block:
                continue
            candidates = [successor for successor in successors[block] if successor in nearest]
            new = candidates[0]
            for other in candidates[1:]:
                a, b = new, other
                while a != b:
                    while place[a] < place[b]:
                        a = nearest[a]
                    while place[b] < place[a]:
                        b = nearest[b]
                new = a
            if nearest.get(block) != new:
                nearest[block] = new
                changed = True
    return nearest
