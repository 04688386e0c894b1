"""A stage's loss and its backward pass. On a GPU they are recorded once as a CUDA graph and replayed.

The miniature's networks are so small that a GPU computes them faster than Python can launch the kernels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

Loss = Callable[..., tuple[Tensor, dict[str, Tensor]]]
REHEARSALS = 3  # runs before a recording, in which the libraries choose their kernels


class Recording(NamedTuple):
    """A recorded graph and its memory."""

    graph: torch.cuda.CUDAGraph
    batch: Sequence[Tensor]  # the inputs that the graph reads
    answer: tuple[Tensor, dict[str, Tensor]]  # the outputs that it writes: the loss and what to log
    gradients: Sequence[Tensor | None]


class Backward:
    """Called with a batch: fills the parameters' gradients. Returns the loss and what to log with it, detached."""

    def __init__(self, loss: Loss, parameters: Sequence[nn.Parameter]):
        self.loss, self.parameters = loss, parameters

    def __call__(self, *batch: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        for parameter in self.parameters:
            parameter.grad = None
        loss, log = self.loss(*batch)
        loss.backward()
        return loss.detach(), {name: value.detach() for name, value in log.items()}


class GraphBackward(Backward):
    """The same as a CUDA graph, one for every set of shapes. The loss must not read values back from the GPU."""

    def __init__(self, loss: Loss, parameters: Sequence[nn.Parameter]):
        super().__init__(loss, parameters)
        self.recordings: dict[tuple[torch.Size, ...], Recording] = {}

    def __call__(self, *batch: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        shapes = tuple(each.shape for each in batch)
        if shapes not in self.recordings:
            self.recordings[shapes] = self._record(batch)
        recording = self.recordings[shapes]
        for own, given in zip(recording.batch, batch, strict=True):
            own.copy_(given)
        recording.graph.replay()
        for parameter, gradient in zip(self.parameters, recording.gradients, strict=True):
            parameter.grad = gradient
        return recording.answer

    def _record(self, batch: Sequence[Tensor]) -> Recording:
        own = [each.clone() for each in batch]
        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            for _ in range(REHEARSALS):
                super().__call__(*own)
        torch.cuda.current_stream().wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):  # other threads prepare batches meanwhile
            answer = super().__call__(*own)
        return Recording(graph, own, answer, [parameter.grad for parameter in self.parameters])


def backward(loss: Loss, parameters: Sequence[nn.Parameter]) -> Backward:
    """`GraphBackward` if the parameters are on a GPU, else `Backward`."""
    return (GraphBackward if parameters[0].is_cuda else Backward)(loss, parameters)
