"""Random chains with any parameters that the op table allows, on small images: no write outside the buffers, every byte
of the output written, the same bytes with another number of threads. ``make verify`` runs many more of them.
"""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from qpt.degradations.op_table import DEGRADATIONS, Degradation
from tests.conftest import LONG
from tests.engine import run


def float32(bound: float, inside: float) -> float:
    """Return the float32 nearest to a bound that does not lie beyond it."""
    nearest = np.float32(bound)
    beyond = nearest < bound if inside > bound else nearest > bound
    return float(np.nextafter(nearest, np.float32(inside)) if beyond else nearest)


def values(op: Degradation) -> st.SearchStrategy[list[float]]:
    """Return a strategy for the parameters of an op, anywhere in the table's bounds."""
    numbers = [
        st.integers(int(p.low), int(p.high)).map(float)
        if p.integer
        else st.floats(float32(p.low, p.high), float32(p.high, p.low), width=32)
        for p in op.parameters
    ]
    return st.tuples(*numbers).map(list)


steps = st.sampled_from(DEGRADATIONS).flatmap(lambda op: st.tuples(st.just(op.name), values(op)))
chains = st.lists(st.lists(steps, max_size=4), min_size=1, max_size=3)


@settings(max_examples=4_000 if LONG else 150)
@given(
    chains=chains,
    height=st.integers(1, 40),
    width=st.integers(1, 40),
    seed=st.integers(0, 2**63 - 1),
    content=st.sampled_from(["noise", "black", "white"]),
)
def test_any_chain_on_any_image(
    chains: list[list[tuple[str, list[float]]]], height: int, width: int, seed: int, content: str
) -> None:
    image = np.full((1, height, width, 3), 255 if content == "white" else 0, np.uint8)
    if content == "noise":
        image = np.random.default_rng(seed % 2**32).integers(0, 256, image.shape, np.uint8)
    slots = max(map(len, chains))
    ops = [[name for name, _ in chain] + [None] * (slots - len(chain)) for chain in chains]
    params = [[given for _, given in chain] + [[]] * (slots - len(chain)) for chain in chains]
    seeds, source = [seed - row for row in range(len(chains))], [0] * len(chains)
    once = run(image, ops, params, seeds=seeds, source=source)  # the buffers are guarded and start out as a pattern
    np.testing.assert_array_equal(once, run(image, ops, params, seeds=seeds, source=source, threads=2))
    for row, chain in enumerate(chains):
        if not chain:
            np.testing.assert_array_equal(once[row], image[0])
