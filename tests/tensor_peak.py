"""The high-water mark of tensor bytes of a piece of work on the CPU, from torch.profiler's memory events.

Used by test_plan.py, which compares predictions with it. Counted is every allocation that torch makes for tensors,
those inside custom ops too. What oneDNN asks torch for while a convolution runs, and gives back before it ends, is no
tensor but a library's workspace, and is left out.
"""

from collections.abc import Callable, Iterator
from typing import Any

from torch._C._profiler import _EventType
from torch.profiler import ProfilerActivity, profile

_LIBRARY_OPS = ("aten::convolution", "aten::convolution_backward")


def tensor_peak(work: Callable[[], Any]) -> int:
    """Bytes at the highest moment of ``work``, of what it allocates."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, record_shapes=True) as profiler:
        work()
    tree = profiler.profiler.kineto_results.experimental_event_tree()
    events = sorted(_allocations(tree, None), key=lambda event: event[0])
    inside: dict[int, Any] = {}  # address -> the library op that it was allocated in
    scratch = set()  # places in ``events`` of workspaces
    born: dict[int, int] = {}
    for place, (_, address, size, op) in enumerate(events):
        if size > 0:
            inside[address], born[address] = op, place
        elif inside.pop(address, None) is not None and op is not None and address in born:
            scratch |= {born[address], place} if events[born[address]][3] == op else set()
    total = peak = 0
    for place, (_, _, size, _) in enumerate(events):
        total += 0 if place in scratch else size
        peak = max(peak, total)
    return peak


def _allocations(tree: list[Any], op: Any) -> Iterator[tuple[int, int, int, Any]]:
    """(time, address, bytes, id of the convolution around it or None) of every allocation (> 0) and release (< 0)."""
    for event in tree:
        if event.tag == _EventType.Allocation:
            fields = event.extra_fields
            yield event.start_time_ns, fields.ptr, fields.alloc_size, op
        inner = event.id if op is None and event.name in _LIBRARY_OPS else op
        yield from _allocations(event.children, inner)
