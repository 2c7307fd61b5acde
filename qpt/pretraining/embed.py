"""Embeddings of a batch of patches by one network, in chunks: batch size set apart from memory.

Gradient caching (Gao et al., 2021, arXiv 2101.06983): every chunk is embedded without a graph, the loss is taken over
all embeddings at once, and each chunk is embedded again, with a graph, to pass the embeddings' gradient on to the
weights. The gradient is that of one graph over the same chunks, for the memory of one chunk and one more forward pass.
A chunk is what batch norm normalises over, so ``deal`` decides which patches share one. Called by
``qpt.pretraining.learner``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from qpt.models.norm import unrecorded_statistics


class Embeddings:
    """``values`` [N, D]: the embeddings of N patches, which take part in autograd.

    embed: patches of a chunk -> their embeddings [n, D]; runs ``network``.  patches: [N, ...].  chunks: indices into
    the N patches that cover each once. One chunk keeps its graph; of several, ``values`` is a leaf, and ``backward``
    has to be called once its gradient is known.
    """

    def __init__(
        self,
        embed: Callable[[Tensor], Tensor],
        network: nn.Module,
        patches: Tensor,
        chunks: Sequence[Tensor],
    ) -> None:
        self._embed, self._patches, self._chunks = embed, patches, chunks
        self._random: list[list[Tensor]] = []
        if len(chunks) == 1:
            self.values = restore(chunks, [embed(patches[chunks[0]])])
            return
        found = []
        with torch.no_grad(), unrecorded_statistics(network):  # the second pass records them, once
            for chunk in chunks:
                self._random.append(_random_state(patches.device))
                found.append(embed(patches[chunk]))
        self.values = restore(chunks, found).requires_grad_()

    def backward(self) -> None:
        """Embed each chunk again and add its part of ``values.grad`` to the weights' gradients; nothing for one
        chunk, whose graph the loss's own backward has gone through."""
        if len(self._chunks) == 1:
            return
        assert self.values.grad is not None
        devices = [self._patches.device] if self._patches.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            for chunk, state in zip(self._chunks, self._random, strict=True):
                _set_random_state(state, self._patches.device)
                self._embed(self._patches[chunk]).backward(self.values.grad[chunk])


@torch.no_grad()
def embed_frozen(embed: Callable[[Tensor], Tensor], patches: Tensor, chunks: Sequence[Tensor]) -> Tensor:
    """[N, D] embeddings without a graph, chunk by chunk."""
    return restore(chunks, [embed(patches[chunk]) for chunk in chunks])


def restore(chunks: Sequence[Tensor], parts: Sequence[Tensor]) -> Tensor:
    """Rows of the chunks put back where their indices say."""
    order = torch.cat(list(chunks))
    place = torch.empty_like(order)
    place[order] = torch.arange(len(order), device=order.device)
    return torch.cat(list(parts))[place]


def deal(photographs: int, rows_each: int, count: int, rng: np.random.Generator | None) -> tuple[Tensor, ...]:
    """Deal the rows of a batch to ``count`` chunks: index tensors of nearly equal length.

    A photograph has ``rows_each`` adjacent rows, which stay together. Without ``rng`` photographs go in order. With it
    in random order such that none is in the chunk where the order would put it, as far as sizes allow: a query and
    its key then never share a chunk, and which of them do says nothing about who belongs to whom.
    """
    order = np.arange(photographs)
    home = np.concatenate([np.full(len(part), i) for i, part in enumerate(np.array_split(order, count))])
    if rng is not None and count > 1:
        order = rng.permutation(photographs)
        for place in np.flatnonzero(home == home[order]):  # a swap is good if it brings neither home
            if home[place] == home[order[place]]:
                others = (home != home[order[place]]) & (home[order] != home[place])
                if others.any():
                    other = rng.choice(np.flatnonzero(others))
                    order[[place, other]] = order[[other, place]]
    rows = torch.from_numpy(order)[:, None] * rows_each + torch.arange(rows_each)
    return tuple(part.flatten() for part in torch.tensor_split(rows, count))


def _random_state(device: torch.device) -> list[Tensor]:
    state = [torch.get_rng_state()]
    return [*state, torch.cuda.get_rng_state(device)] if device.type == "cuda" else state


def _set_random_state(state: list[Tensor], device: torch.device) -> None:
    torch.set_rng_state(state[0])
    if device.type == "cuda":
        torch.cuda.set_rng_state(state[1], device)
