"""Masks on the weights of a model, kept up while any optimizer trains it."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import Any, Literal, TypedDict

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from companion._checks import at_least, given, one_of, whole_number
from companion._ranks import from_rank_zero
from companion._registry import Registry
from companion._weights import matrices, memory, multiplies, refuse_lazy, warn_of_the_rest
from companion.features import Layers, bare_name, find_layers, unwrap
from companion.pruning._criteria import CRITERIA, top
from companion.pruning._densities import DENSITIES, number_kept, uniform, whole, within
from companion.pruning._plain import refuse_computed

_LOWEST = torch.finfo(torch.float32).min
_BITS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # bytes of a number → a type for its bits
METHODS: Registry[type] = Registry("method")  # sparse training methods, by the name that people type


class Options(TypedDict, total=False):
    """What every method takes besides its own arguments: see `Masks`."""

    layers: Layers
    dense: Layers | None
    grain: Literal["weight", "row"]
    seed: int


class Masks:
    """Masks m ∈ {0, 1} on a model's weights: w ← m ⊙ w after every optimizer step.

    The base of all methods; by itself it holds given masks fixed, such as a winning ticket's. The model stays plain: no
    hook, no wrapper, no other parameter. After each `step()` every masked weight is exactly 0, and so is all of its
    shape that the optimizer remembers of it (momentum, Adam's moments). All ranks get the masks of rank 0.

    Args:
        model: its parameters are pruned in place; on its device, not moved afterwards. A DDP or compiled wrapper is
            looked through.
        optimizer: any; it must hold the weights. None for pruning without training.
        masks: layer → bool tensor (or numbers, of which 0 is dead) of the weight's shape; None for all ones.
        layers: which (see `companion.features.find_layers`); by default every convolution and linear layer, stem, 1×1
            shortcuts and attention's projections included. Biases and norms are never pruned. A weight that several
            modules share is masked and counted once, under the first of their names among the layers.
        dense: layers that keep all their weights, yet count in the sparsity ("linear" for a dense classifier).
        grain: "weight", or "row" for whole rows w[i] (a filter, an output unit; an input of a transposed convolution or
            of GPT-2's `Conv1D`), scored by their L2 norm and counted each as one.
        seed: of the random choices; they follow from it and the number of steps alone, alike on all ranks and devices.

    Raises:
        ValueError: no layer, unknown names, what is no optimizer, or one without the weights, masks of other layers or
            shapes, that are no tensors, or that hold NaN, weights that are complex, lazy (the model has not run yet),
            computed from other parameters, or of several parameters in one memory; a method that grows by gradient on a
            layer that has none; random masks on weights that are sparse already; a sparsity, now or later, at which
            `dense` layers alone hold more than is kept.

    A warning names layers with weights that the default leaves out, and modules beside `layers`, such as embeddings,
    whose weights are masked because they are a layer's, too.

    >>> model = nn.Sequential(nn.Linear(2, 2))
    >>> masks = Masks(model, None, {"0": torch.eye(2, dtype=torch.bool)})
    >>> model[0].weight.count_nonzero(), masks
    (tensor(2), Masks(1 layers, sparsity 0.5, step 0))
    """

    every = 0  # steps between two updates; 0 for none
    by_gradient = False  # whether updates look at gradients

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer | None,
        masks: Mapping[str, Tensor] | None = None,
        *,
        layers: Layers = multiplies,
        dense: Layers | None = None,
        grain: Literal["weight", "row"] = "weight",
        seed: int = 0,
    ) -> None:
        one_of(grain=(grain, ("weight", "row")))
        at_least(0, seed=seed)
        if optimizer is not None and not isinstance(optimizer, Optimizer):
            raise ValueError(f"optimizer={given(optimizer)} must be one of torch, such as sgd(model), or None")
        self.model, self.optimizer = unwrap(model), optimizer
        self.grain, self.seed, self.steps, self.active = grain, whole_number(seed=seed), 0, True
        self._places = _places(self.model, layers)
        self.weights: dict[str, nn.Parameter] = {name: getattr(*place) for name, place in self._places.items()}
        if complex_valued := [name for name, weight in self.weights.items() if weight.is_complex()]:
            raise ValueError(
                f"the weights of {complex_valued} are complex, and only real ones are masked: choose by layers="
            )
        kept = [] if dense is None else [id(getattr(*place)) for place in _places(self.model, dense).values()]
        self.dense = frozenset(name for name, weight in self.weights.items() if id(weight) in kept)
        if layers is multiplies:
            warn_of_the_rest(self.model, find_layers(self.model, layers).values(), type(self).__name__)
        self._warn_of_shared(layers)
        if optimizer is not None:
            held = {id(p) for group in optimizer.param_groups for p in group["params"]}
            missing = [name for name, weight in self.weights.items() if id(weight) not in held]
            if missing:
                raise ValueError(
                    f"the optimizer does not hold the weights of {missing}: build it from this model's parameters, "
                    "or leave these layers out by layers="
                )
        frozen = [name for name, weight in self.weights.items() if not weight.requires_grad]
        if self.by_gradient and frozen:
            raise ValueError(
                f"{type(self).__name__} grows by gradient and {frozen} are frozen: leave them out by layers="
            )
        self._before: list[tuple[Tensor, Tensor, int]] | None = []  # what was there when the masks were built
        self._cut: list[str] = []  # weights that were sparse already when random masks were built
        # Whole numbers as wide as the weights, so that one fused multiplication applies them all.
        self._masks = {
            name: torch.ones_like(self._units(weight), dtype=_BITS[weight.element_size()])
            for name, weight in self.weights.items()
        }
        self._seen = {name: torch.zeros_like(mask, dtype=torch.bool) for name, mask in self._masks.items()}
        self._alive: dict[str, int] | None = None
        if masks is not None:
            _refuse_unclear(masks)
            self._set(self._masks, {name: self._units(mask) for name, mask in masks.items()})
            if any(not torch.equal(mask.cpu() != 0, masks[name].cpu() != 0) for name, mask in self.masks.items()):
                raise ValueError('grain="row" and masks that cut through rows: leave grain at "weight"')
            self.keep({name: mask.flatten() != 0 for name, mask in self._masks.items()})
        self._gradients: list[tuple[Tensor, Tensor]] = []  # of the weights, and what they were before the step
        self._handle = self._hook()

    def _warn_of_shared(self, layers: Layers) -> None:
        chosen = find_layers(self.model, layers)
        beside = {name: [o for o in others if o not in chosen] for name, others in self._shared().items()}
        beside = {name: others for name, others in beside.items() if others and name not in self.dense}
        if beside:
            warnings.warn(
                f"layers share their weights with modules that are masked, too: {beside}; to spare those, leave the "
                "layers out by layers=, or name them in dense=",
                stacklevel=3,
            )

    def _shared(self) -> dict[str, list[str]]:
        """layer → the other modules that hold its weight."""
        named = {name: id(weight) for name, weight in self.weights.items()}
        holders: dict[int, list[str]] = {owner: [] for owner in named.values()}
        for layer, module in self.model.named_modules():
            for name, _, parameter in matrices(bare_name(layer), module):
                if name not in self.weights:
                    holders.get(id(parameter), []).append(bare_name(layer))
        return {name: holders[owner] for name, owner in named.items()}

    # -- in the training loop
    def step(self) -> None:
        """Call it after each `optimizer.step()`, before `zero_grad()`.

        Raises:
            ValueError: at the first step, of a layer without a gradient that the method grows by; of random masks on
                weights that were sparse already and whose state was not loaded. At any step, of weights that are no
                longer the model's; at an update by gradient, of a layer that has come to have none.
        """
        if not self.active:
            return
        self._require_own()
        if self._before is not None:
            self._begin()
        for gradient, before in self._gradients:
            gradient.copy_(before)
        self._gradients = []
        self.apply()
        self.steps += 1
        if self.every and self.steps % self.every == 0:
            self.update()

    def update(self) -> None:
        """What a method does every `every` steps: `prune` further, or `regrow`."""

    def _hook(self) -> RemovableHandle | None:
        """Have the optimizer call `_before_update()` in each of its steps, once the gradients are there, if that does
        anything."""
        asked = self.by_gradient or type(self)._before_update is not Masks._before_update
        if self.optimizer is None or not self.active or not asked:
            return None

        def hook(optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            closure = kwargs.get("closure", args[1] if len(args) > 1 else None)
            if closure is None:
                self._before_update()
                return None

            def then() -> Any:  # the closure makes the gradients, inside the step
                loss = closure()
                self._before_update()
                return loss

            return args[:1], {**kwargs, "closure": then}

        return self.optimizer.register_step_pre_hook(hook)

    def _before_update(self) -> None:
        """Between the gradients and the optimizer's update: some optimizers (torch's foreach SGD with Nesterov momentum
        and no weight decay) overwrite the gradients that `update` is to see."""
        if self.every and (self.steps + 1) % self.every == 0:
            gradients = [weight.grad for weight in self.weights.values() if weight.grad is not None]
            self._gradients = [(gradient, gradient.clone()) for gradient in gradients]

    def _begin(self) -> None:
        """Before the first step: what only shows once there are gradients."""
        if self._cut:
            raise ValueError(self._is_cut())
        if self.by_gradient:
            missing = [name for name, weight in self.weights.items() if weight.grad is None]
            if missing:
                raise ValueError(
                    f"{type(self).__name__} grows by gradient and {missing} have none: leave out by layers= what the "
                    "loss does not reach, and call step() after backward(), before zero_grad()"
                )
            if not any(bool(p.grad.any()) for p in self.model.parameters() if p.grad is not None):
                raise ValueError("all gradients are 0: call step() after backward(), before zero_grad()")
        self._before = None

    def _require_own(self) -> None:
        """Refuse to mask parameters that the model has put others in place of: nobody would see it."""
        places = self._places.items()
        gone = [name for name, (module, key) in places if module._parameters.get(key) is not self.weights[name]]
        if gone:
            raise ValueError(
                f"the weights of {gone} are other parameters now than those that {type(self).__name__} was built on, "
                "as after load_state_dict(..., assign=True) or weight_norm: build optimizer and masks afterwards"
            )

    def _is_cut(self) -> str:
        return (
            f"the weights of {self._cut} were sparse already when {type(self).__name__} drew its random masks, which "
            "cut what was left: load its own state (load_state_dict) before the first step, or hold the zeros by "
            "Masks(model, optimizer, masks)"
        )

    @torch.no_grad()
    def apply(self) -> None:
        """w ← m ⊙ w, and the optimizer's state of w alike."""
        tensors, masks = [], []
        for name, weight in self.weights.items():
            mask = self._masks[name]
            if mask.shape == weight.shape and mask.stride() != weight.stride():  # the model became channels_last
                mask = self._masks[name] = torch.empty_like(weight, dtype=mask.dtype).copy_(mask)
            state = self.optimizer.state.get(weight, {}) if self.optimizer is not None else {}
            for tensor in (weight, *state.values()):
                if isinstance(tensor, Tensor) and tensor.shape == weight.shape:
                    tensors.append(tensor)
                    masks.append(mask)
        if self._before == []:
            self._before = [(tensor, tensor.clone(), 0) for tensor in tensors]
        # As whole numbers: any bits times 0 are 0, while infinity or NaN times 0 would be NaN.
        torch._foreach_mul_([tensor.view(_BITS[tensor.element_size()]) for tensor in tensors], masks)
        if self._before is not None:
            self._before = [(tensor, before, tensor._version) for tensor, before, _ in self._before]

    # -- what methods are made of
    @torch.no_grad()
    def prune(
        self, sparsity: float, density: str = "erk", criterion: str | Callable[[Tensor], Tensor] = "magnitude"
    ) -> None:
        """Keep the weights that score highest, until exactly `sparsity` of all are gone.

        Args:
            sparsity: share of all weights that are 0 afterwards, those pruned before included; below what is gone
                already nothing changes, for what is gone does not come back here.
            density: "uniform" or "erk" (each layer its number, see `companion.pruning.DENSITIES`; what a layer no
                longer has alive the others keep), or "global": one comparison across layers.
            criterion: "random", "magnitude", "gradient", or a function of a weight to scores of its shape.

        Raises:
            ValueError: a sparsity outside [0, 1), an unknown density or criterion, one whose scores do not have the
                shape of the weight, no gradient.
        """
        one_of(density=(density, [*DENSITIES, "global"]))
        if criterion == "random" and self.steps == 0:
            self._cut = [name for name, weight in self.weights.items() if self._sparse_already(name, weight)]
            if self._cut and self.optimizer is None:
                raise ValueError(self._is_cut())
        dead = {name: mask.flatten() == 0 for name, mask in self._masks.items()}
        scores = self._scores(criterion)
        if density == "global":
            scores |= {name: torch.full_like(scores[name], torch.inf) for name in self.dense}
        for name, score in scores.items():  # what is gone comes after all that is alive, whatever its score
            scores[name] = score.nan_to_num(_LOWEST, torch.inf, _LOWEST).masked_fill(dead[name], -torch.inf)
        if density == "global":
            sizes = {name: len(score) for name, score in scores.items()}
            self.require_reachable(sparsity)
            kept = min(number_kept(sum(sizes.values()), sparsity), sum(self.alive.values()))
            chosen = top(torch.cat(list(scores.values())), kept)
            self.keep(dict(zip(sizes, chosen.split(list(sizes.values())), strict=True)))
            return
        counts = DENSITIES[density]({name: weight.shape for name, weight in self.weights.items()}, sparsity, self.dense)
        if self.grain == "row":
            counts = whole({name: counts[name] * len(weight) / weight.numel() for name, weight in self.weights.items()})
        counts = within(counts, self.alive)
        self.keep({name: top(score, counts[name]) for name, score in scores.items()}, counts)

    def require_reachable(self, sparsity: float, density: str = "global") -> None:
        """Refuse a sparsity that `prune` would refuse once the training has come so far; nothing is pruned.

        Raises:
            ValueError: a sparsity outside [0, 1), an unknown density, dense layers that hold more than what is kept.
        """
        one_of(density=(density, [*DENSITIES, "global"]))
        if density == "global":  # whole rows are compared, and count as one
            uniform({name: mask.shape for name, mask in self._masks.items()}, sparsity, self.dense)
        else:
            DENSITIES[density]({name: weight.shape for name, weight in self.weights.items()}, sparsity, self.dense)

    @torch.no_grad()
    def regrow(self, share: float, criterion: str | Callable[[Tensor], Tensor] = "gradient") -> None:
        """In each layer drop `share` of the weights that are alive, the smallest, and grow as many of the others.

        As in RigL what was just dropped may grow again; then it keeps its value. New weights start at 0. Where a score
        is infinite or NaN, as after a float16 overflow, nothing is exchanged.
        """
        alive, masks = self.alive, {}
        sizes, scores = self._scores("magnitude"), self._scores(criterion)
        sound = torch.stack([score.isfinite().all() for score in (*sizes.values(), *scores.values())]).all()
        for name, mask in self._masks.items():
            exchanged = int(share * alive[name])
            if exchanged == 0 or alive[name] == mask.numel():
                masks[name] = mask.flatten() != 0
                continue
            kept = top(sizes[name].masked_fill(mask.flatten() == 0, -torch.inf), alive[name] - exchanged)
            grown = kept | top(scores[name].masked_fill(kept, -torch.inf), exchanged)
            masks[name] = torch.where(sound, grown, mask.flatten() != 0)
        self.keep(masks, alive)

    def keep(self, masks: Mapping[str, Bool[Tensor, " units"]], alive: dict[str, int] | None = None) -> None:
        """Take new masks, those of rank 0 in a process group, and apply them."""
        flat = from_rank_zero(torch.cat(list(masks.values())).to(torch.uint8)).bool()
        masks = dict(zip(masks, flat.split([len(mask) for mask in masks.values()]), strict=True))
        for name, mask in masks.items():
            self._masks[name].copy_(mask.view(self._masks[name].shape))
            self._seen[name] |= mask.view(self._seen[name].shape)
        self._alive = alive
        self.apply()

    def generator(self, stream: int = 0) -> torch.Generator:
        """Random numbers of this step: from the seed and the number of steps alone, so there is no state to save."""
        seed = np.random.SeedSequence([self.seed, self.steps, stream]).generate_state(1)
        return torch.Generator().manual_seed(int(seed[0]))

    def _scores(self, criterion: str | Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
        """layer → one score for each weight (or row), flat, at least float32."""
        if isinstance(criterion, str):
            one_of(criterion=(criterion, ["random", *CRITERIA]))
        if criterion == "gradient":
            missing = [name for name, weight in self.weights.items() if weight.grad is None]
            if 0 < len(missing) < len(self.weights):
                raise ValueError(
                    f"{missing} have no gradient and other layers have: what is frozen in the course of the training, "
                    "or no longer reached by the loss, must be left out by layers="
                )
        random, scores = self.generator(), {}
        for name, weight in self.weights.items():
            if criterion == "random":
                scores[name] = torch.rand(self._masks[name].numel(), generator=random).to(weight.device)
                continue
            score = (CRITERIA[criterion] if isinstance(criterion, str) else criterion)(weight)
            if not isinstance(score, Tensor) or score.shape != weight.shape:
                got = f"shape {tuple(score.shape)}" if isinstance(score, Tensor) else type(score).__name__
                raise ValueError(
                    f"criterion must return a tensor of the weight's shape, {tuple(weight.shape)} in layer {name!r}, "
                    f"as abs(w) is; got {got}"
                )
            score = score.to(torch.promote_types(score.dtype, torch.float32))
            scores[name] = score.flatten(1).norm(dim=1) if self.grain == "row" else score.flatten()
        return scores

    def _sparse_already(self, name: str, weight: Tensor) -> bool:
        """More zeros than chance leaves in a fresh weight, yet not all of it: someone has pruned it."""
        zero = (weight == 0) & (self._masks[name] != 0).expand(weight.shape)
        for module in self.model.modules():  # the row of an embedding that stands for padding is zero from the start
            if isinstance(module, nn.Embedding) and module.weight is weight and module.padding_idx is not None:
                zero[module.padding_idx] = False
        return 0.01 < float(zero.float().mean()) < 1

    def _units(self, weight: Tensor) -> Tensor:
        """What has one mask value: a view with the mask's shape."""
        rows = (slice(None), *[slice(1)] * (weight.ndim - 1))
        return weight.detach()[rows] if self.grain == "row" else weight.detach()

    # -- what it is now
    @property
    def masks(self) -> dict[str, Bool[Tensor, "..."]]:
        """layer → mask of the weight's shape: true where it is alive. A copy, good for another model."""
        return {name: (self._masks[name] != 0).expand(weight.shape).clone() for name, weight in self.weights.items()}

    @property
    def alive(self) -> dict[str, int]:
        """layer → number of weights (or rows) alive."""
        if self._alive is None:
            counts = torch.stack([mask.count_nonzero() for mask in self._masks.values()]).tolist()
            self._alive = dict(zip(self._masks, counts, strict=True))
        return self._alive

    def density(self) -> float:
        """Share of the weights that are alive."""
        sizes = {name: weight.numel() for name, weight in self.weights.items()}
        alive = sum(self.alive[name] * size // self._masks[name].numel() for name, size in sizes.items())
        return alive / sum(sizes.values())

    def report(self) -> pd.DataFrame:
        """One row a layer: `shape`, `weights`, `alive` (weights), `density`; `explored`, the share of the weights that
        have been alive at any time (the rate R_s of Liu et al. 2021, arXiv 2102.02887); and `shared`, the other modules
        that have the same weight."""
        rows, shared = [], self._shared()
        for name, weight in self.weights.items():
            size, share = weight.numel(), self.alive[name] / self._masks[name].numel()
            explored = float((self._seen[name] | (self._masks[name] != 0)).float().mean())
            rows.append(
                (name, tuple(weight.shape), size, round(share * size), share, explored, ", ".join(shared[name]))
            )
        columns = ["layer", "shape", "weights", "alive", "density", "explored", "shared"]
        return pd.DataFrame(rows, columns=columns).set_index("layer")

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}({len(self.weights)} layers, sparsity {1 - self.density():.4g}, step {self.steps})"
        )

    # -- life
    def remove(self) -> nn.Module:
        """Let go of model and optimizer: zeros stay where they are, `step()` does nothing more. Returns the model."""
        self.active = False
        if self._handle is not None:
            self._handle.remove()
        return self.model

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key != "_handle"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Hooks are not copied with an optimizer: the copy gets its own."""
        self.__dict__.update(state)
        self._handle = self._hook()

    def state_dict(self) -> dict[str, Any]:
        """Steps, masks, and which weights were ever alive, as tensors and plain numbers."""
        masks = {name: mask != 0 for name, mask in self._masks.items()}
        explored = {name: seen.clone() for name, seen in self._seen.items()}
        return {"steps": self.steps, "masks": masks, "explored": explored}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a `state_dict()`. Weights that the building of these masks has cut, and that nobody has written to
        since, come back first: so the model's own state may be loaded before or after the masks are built.

        Raises:
            ValueError: it is of other layers or shapes.
        """
        self._set(self._masks, state["masks"])
        self._set(self._seen, state["explored"])
        self.steps, self._alive = state["steps"], None
        with torch.no_grad():
            for tensor, before, version in self._before or []:
                if tensor._version == version:
                    tensor.copy_(before)
        self._cut = []
        self.apply()

    def _set(self, mine: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> None:
        shapes = {name: tuple(mask.shape) for name, mask in mine.items()}
        given = {name: tuple(mask.shape) for name, mask in theirs.items()}
        if shapes != given:
            differing = {k: (shapes.get(k), given.get(k)) for k in shapes | given if shapes.get(k) != given.get(k)}
            raise ValueError(f"masks do not fit the model; layer → (its shape, the mask's): {differing}")
        for name, mask in theirs.items():
            mine[name].copy_(mask)


def _places(model: nn.Module, layers: Layers) -> dict[str, tuple[nn.Module, str]]:
    """layer ("layer.in_proj_weight" and the like under another name) → the module that holds its weight, and the
    weight's key there; a shared one comes once."""
    found: dict[int, tuple[str, tuple[nn.Module, str]]] = {}
    chosen = find_layers(model, layers)
    refuse_computed(model, chosen)
    refuse_lazy(chosen.items())
    for layer, module in chosen.items():
        for name, key, parameter in matrices(layer, module):
            found.setdefault(id(parameter), (name, (module, key)))
    if not found:
        raise ValueError(f"{list(chosen)}: none of these layers has a weight with two dimensions or more")
    held: dict[Any, str] = {}
    for name, place in found.values():
        if (other := held.setdefault(memory(getattr(*place)), name)) != name:
            raise ValueError(
                f"{other} and {name} are different parameters in one memory, and would be masked twice: share the "
                "parameter itself (b.weight = a.weight), or copy it"
            )
    return dict(found.values())


def _refuse_unclear(masks: Any) -> None:
    if not isinstance(masks, Mapping) or not all(isinstance(mask, Tensor) for mask in masks.values()):
        raise ValueError(f"masks={given(masks)} must be layer → tensor; of an array torch.as_tensor makes one")
    if unclear := [name for name, mask in masks.items() if mask.isnan().any()]:
        raise ValueError(f"the masks of {unclear} hold NaN, which is neither alive nor dead: give bool tensors")


def updates_in(steps: int, every: int, share: float = 1) -> int:
    """Number of updates within this share of so many steps; at least one."""
    at_least(1, every=every, steps=steps)
    if (span := share * steps) < every:
        raise ValueError(f"every={every}: no update falls into the {span:g} steps that are open for one; lower every=")
    return int(span // every)
