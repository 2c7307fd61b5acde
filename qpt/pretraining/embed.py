"""Embeddings of a batch of patches by one network, in chunks, so that memory does not grow with the batch.

Gradient caching (Gao et al., 2021, arXiv 2101.06983): every chunk is embedded without a graph, the loss is taken over
all embeddings at once, and each chunk is embedded again, with a graph, to pass the embeddings' gradient on to the
weights. The gradient is that of one graph over the same chunks, for the memory of one chunk and one more forward pass.
Batch norm normalises over a chunk, so ``assign_chunks`` decides which patches share statistics. Called by
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
        self._rng_states: list[list[Tensor]] = []
        if len(chunks) == 1:
            self.values = restore_order(chunks, [embed(patches[chunks[0]])])
            return
        parts = []
        with torch.no_grad(), unrecorded_statistics(network):  # ``backward`` records them, so once per chunk
            for chunk in chunks:
                self._rng_states.append(_rng_state(patches.device))
                parts.append(embed(patches[chunk]))
        self.values = restore_order(chunks, parts).requires_grad_()

    def backward(self) -> None:
        """Embed each chunk again and add its part of ``values.grad`` to the weights' gradients.

        One chunk is left as it is: the backward pass of the loss has gone through its graph.
        """
        if len(self._chunks) == 1:
            return
        assert self.values.grad is not None
        devices = [self._patches.device] if self._patches.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            for chunk, state in zip(self._chunks, self._rng_states, strict=True):
                _set_rng_state(state, self._patches.device)  # dropout of the first pass again
                self._embed(self._patches[chunk]).backward(self.values.grad[chunk])


@torch.no_grad()
def embed_no_grad(embed: Callable[[Tensor], Tensor], patches: Tensor, chunks: Sequence[Tensor]) -> Tensor:
    """Return [N, D] embeddings without a graph, computed chunk by chunk."""
    return restore_order(chunks, [embed(patches[chunk]) for chunk in chunks])


def restore_order(chunks: Sequence[Tensor], parts: Sequence[Tensor]) -> Tensor:
    """Concatenate the rows of the parts in the order that the chunks' indices give."""
    order = torch.cat(list(chunks))
    place = torch.empty_like(order)
    place[order] = torch.arange(len(order), dtype=torch.int64, device=order.device)
    return torch.cat(list(parts))[place]


def send(rows: Tensor, device: torch.device) -> Tensor:
    """Copy row indices from the CPU to a device; a GPU is not waited for."""
    # From pageable memory a copy would wait for all that the GPU has been given: the degradations, at this point.
    return (rows.pin_memory() if device.type == "cuda" else rows).to(device, non_blocking=True)


def assign_chunks(images: int, rows_each: int, count: int, rng: np.random.Generator | None) -> tuple[Tensor, ...]:
    """Assign the rows of a batch to ``count`` chunks: index tensors of nearly equal length.

    An image has ``rows_each`` adjacent rows, which stay together. Without ``rng`` images go in order. With it they go
    in random order such that none is in the chunk where the order would put it, as far as sizes allow.
    """
    order = np.arange(images)
    in_order = np.concatenate([np.full(len(part), i) for i, part in enumerate(np.array_split(order, count))])
    if rng is not None and count > 1:
        # A key normalised together with its query would share statistics with it, by which the encoder could recognise
        # the pair. If no chunk holds both, the statistics say nothing about which rows belong together.
        order = rng.permutation(images)
        for place in np.flatnonzero(in_order == in_order[order]):
            if in_order[place] == in_order[order[place]]:  # not yet moved by an earlier swap
                # Places to swap with such that neither image lands in its own chunk.
                others = (in_order != in_order[order[place]]) & (in_order[order] != in_order[place])
                if others.any():
                    other = rng.choice(np.flatnonzero(others))
                    order[[place, other]] = order[[other, place]]
    rows = torch.from_numpy(order)[:, None] * rows_each + torch.arange(rows_each, dtype=torch.int64, device="cpu")
    return tuple(part.flatten() for part in torch.tensor_split(rows, count))


def _rng_state(device: torch.device) -> list[Tensor]:
    state = [torch.get_rng_state()]
    return [*state, torch.cuda.get_rng_state(device)] if device.type == "cuda" else state


def _set_rng_state(state: list[Tensor], device: torch.device) -> None:
    torch.set_rng_state(state[0])
    if device.type == "cuda":
        torch.cuda.set_rng_state(state[1], device)
