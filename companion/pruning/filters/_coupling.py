"""Which channels hang together: a filter, its batch norm, and all that read it or are added to it.

Chapter *From small norms to a smaller network* draws it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Int
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor, nn

from companion._weights import refuse_lazy
from companion.features import unwrap
from companion.pruning._inputs import as_input
from companion.pruning._plain import refuse_computed
from companion.pruning.filters._trace import IMAGE, Slots, Trace, traced


@dataclass(frozen=True)
class Coupling:
    """The *channels* of a network, numbered. A channel is everything that must go together: the filters that write it
    (several where a residual sum adds them), its places in norms, and the inputs of all layers that read it.

    Attributes:
        filters: convolution or linear layer → the channel that each of its filters (output units) writes.
        inputs: convolution or linear layer → the channel that each of its inputs reads; −1 for what is no channel: the
            image, and what comes out of attention or a layer norm.
        norms: batch or instance norm → the channel at each of its places.
        shortcuts: type-A shortcut → the channel of each of its outputs.
        constants: end of a branch that is gone → the channel of each of its values.
        norm_of: layer → the batch norm that alone reads it.
        branches: the last layer of a residual branch → layers and norms of the branch, its entry first, its end last.
        free: the channels that may go.
        why: channel that may not → the reason.
        uncut: modules with weights of which nothing can go, since none of their channels is known → why.
    """

    filters: Mapping[str, Int[Tensor, " filters"]]
    inputs: Mapping[str, Int[Tensor, " inputs"]]
    norms: Mapping[str, Int[Tensor, " inputs"]]
    shortcuts: Mapping[str, Int[Tensor, " outputs"]]
    constants: Mapping[str, Int[Tensor, " outputs"]]
    norm_of: Mapping[str, str]
    branches: Mapping[str, Sequence[str]]
    free: Bool[Tensor, " channels"]
    why: Mapping[int, str]
    uncut: Mapping[str, str]

    @property
    def held(self) -> dict[str, str]:
        """layer, some of whose filters may not go → why."""
        held = {n: channels[~self.free[channels]].tolist() for n, channels in self.filters.items()}
        return {name: self.why[channels[0]] for name, channels in held.items() if channels} | dict(self.uncut)

    def hold(self, channels: Bool[Tensor, " channels"], why: str) -> Coupling:
        """The same, with these channels held too."""
        new = dict.fromkeys((channels & self.free).nonzero().flatten().tolist(), why)
        return dataclasses.replace(self, free=self.free & ~channels, why={**self.why, **new})

    def writers(self, channel: int) -> dict[str, list[int]]:
        """layer → its filters that write this channel."""
        return _places(self.filters, channel)

    def readers(self, channel: int) -> dict[str, list[int]]:
        """layer → its inputs that read this channel."""
        return _places(self.inputs, channel)

    def families(self) -> Int[Tensor, " channels"]:
        """Channels that the same layers write have the same number."""
        writers: list[dict[str, None]] = [{} for _ in self.free]
        for name, channels in self.filters.items():
            for channel in channels.tolist():
                writers[channel][name] = None
        numbers: dict[tuple[str, ...], int] = {}
        return torch.tensor([numbers.setdefault(tuple(names), len(numbers)) for names in writers])


def _places(slots: Mapping[str, Tensor], channel: int) -> dict[str, list[int]]:
    found = {name: (channels == channel).nonzero().flatten().tolist() for name, channels in slots.items()}
    return {name: places for name, places in found.items() if places}


def couple(model: nn.Module, example: Any) -> Coupling:
    """Follow one forward pass of `example` and number the channels of `model`, which is left as it was.

    What cannot be cut channel by channel is *held*, and `Coupling.held` says why: what the network returns, what a
    layer norm, a group norm, attention, a transposed convolution or a parameter of fixed size takes part in, layers
    that are called twice or share a parameter, channels rearranged by hand.

    Args:
        example: a batch of inputs: a tensor, a tuple of arguments, or a mapping of named ones.

    Raises:
        ValueError: the model does not run on the example, the example holds no tensor, or weights are lazy (the model
            has not run yet) or computed from other parameters.

    >>> from companion.models import digits_net
    >>> coupling = couple(digits_net(width=8, blocks=1), torch.randn(2, 1, 8, 8))
    >>> coupling.writers(0)  # a residual sum: the stem and the block write the same channel
    {'conv1': [0], 'layer1.0.conv2': [0]}
    >>> coupling.held
    {'linear': 'the network returns it'}
    """
    return coupled(unwrap(model), example)


def coupled(model: nn.Module, example: Any, counter: AbstractContextManager[Any] | None = None) -> Coupling:
    """`couple`; a `counter` counts its forward pass in evaluation mode."""
    refuse_computed(model, [name for name, _ in model.named_modules()])
    refuse_lazy(model.named_modules())
    trace = traced(model, as_input(model, example), counter or nullcontext())
    channel_of, count = _numbered(trace)
    held: dict[int, str] = {}  # channel that may not go → why
    for slot, why in trace.held.items():
        held.setdefault(int(channel_of[slot]), why)
    held.pop(IMAGE, None)

    def of(slots: Mapping[str, Slots]) -> dict[str, Tensor]:
        return {name: torch.from_numpy(channel_of[slots[name]]) for name in trace.names.values() if name in slots}

    free = torch.ones(count, dtype=torch.bool)
    free[list(held)] = False
    reached = {name: slots for name, slots in trace.own.items() if name in trace.inputs}
    coupling = Coupling(
        filters=of(reached),
        inputs=of(trace.inputs),
        norms=of(trace.norms),
        shortcuts=of(trace.shortcuts),
        constants=of(trace.constants),
        norm_of=trace.norm_of(),
        branches={},
        free=free,
        why=held,
        uncut=trace.uncut(),
    )
    return dataclasses.replace(coupling, branches=_branches(trace, coupling))


def _numbered(trace: Trace) -> tuple[Slots, int]:
    """slot → its channel, numbered in the order of the filters; −1 for what no filter writes."""
    ends = [np.concatenate([trace.fresh(0), *(edge[side] for edge in trace.edges)]) for side in (0, 1)]
    graph = coo_array((np.ones(len(ends[0])), ends), shape=(trace.slots, trace.slots))
    _, component = connected_components(graph, directed=False)
    reached = [slots for name, slots in trace.own.items() if name in trace.inputs]
    order = dict.fromkeys(component[np.concatenate(reached)].tolist() if reached else [])
    number = {one: i for i, one in enumerate(order)}
    return np.array([number.get(one, IMAGE) for one in component.tolist()] + [IMAGE]), len(number)


def _branches(trace: Trace, coupling: Coupling) -> dict[str, list[str]]:
    """Residual branches of two layers or more: what runs only for a last layer to whose channels others are added."""
    branches, targets, family = {}, trace.targets(), coupling.families()
    families = {name: set(family[channels].tolist()) for name, channels in coupling.filters.items()}
    writers: dict[int, set[str]] = {}  # family → the layers that write it
    for name, numbers in families.items():
        for number in numbers:
            writers.setdefault(number, set()).add(name)
    for last, name in enumerate(trace.nodes):
        if name not in families or len(together := writers[int(family[coupling.filters[name][0]])]) == 1:
            continue
        serving, more = {last}, {last}
        while more:  # what only feeds what serves, serves
            sources = {source for one in more for source in trace.sources[one]} - serving
            more = {source for source in sources if targets[source] <= serving}
            serving |= more
        inside = [one for one in sorted(serving) if trace.nodes[one]]
        layers = [trace.nodes[one] for one in inside if trace.nodes[one] in families]
        entries = [one for one in serving if trace.sources[one] - serving]
        reads_image = any((coupling.inputs[layer] == IMAGE).any() for layer in layers)
        sums = not together <= set(layers)  # others add to what it writes
        if sums and len(layers) > 1 and not reads_image and len(entries) == 1 and entries[0] in inside:
            others = [trace.nodes[one] for one in inside if one not in (entries[0], last)]
            norm = [coupling.norm_of[name]] if name in coupling.norm_of else []
            branches[name] = [trace.nodes[entries[0]], *others, name, *norm]
    return branches
