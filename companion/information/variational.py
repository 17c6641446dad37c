r"""Variational bounds: a critic f(x, y) learns to tell pairs that belong together from pairs that do not.

With the n × n scores f(x_i, y_j) of a batch, pairs on the diagonal drawn from p(x, y), the others from p(x)p(y):

- DV (Donsker & Varadhan 1983; MINE, Belghazi et al. 2018):  E_p[f] − ln E_q[e^f],  attained by f = ln p/q + constant;
- NWJ (Nguyen, Wainwright & Jordan 2010):  E_p[f] − E_q[e^{f−1}],  attained by f = 1 + ln p/q;
- InfoNCE (van den Oord et al. 2018):  E[f(x_i, y_i) − ln (1/n) Σ_j e^{f(x_i, y_j)}]  ≤ ln n.

All three are lower bounds of I(X;Y) in expectation, DV only if ln E_q is exact: from a finite sample it is too small,
and the value too large (McAllester & Stratos 2020). Chapter *Measuring information* derives them.
"""

from __future__ import annotations

import copy
import functools
import math
import warnings
from collections.abc import Callable, Mapping

import torch
from jaxtyping import Float
from torch import Tensor, nn

from companion._checks import at_least, one_of, whole_number
from companion._progress import progress
from companion.information.estimates import ESTIMATORS, Estimate, TooFewExamplesError, continuous, estimate, same_rows


# -------------------------------------------------------------------------------------------------------------- bounds
def _scores(scores: Tensor) -> Tensor:
    if scores.ndim < 2 or scores.shape[-1] != scores.shape[-2] or scores.shape[-1] < 2:
        raise ValueError(f"scores must be (…, n, n) with n ≥ 2, true pairs on the diagonal; got {tuple(scores.shape)}")
    return scores


def _others(scores: Float[Tensor, "*batch n n"]) -> Float[Tensor, "*batch pairs"]:
    """Scores of the n(n−1) pairs off the diagonal."""
    n = scores.shape[-1]
    off = ~torch.eye(n, dtype=torch.bool, device=scores.device)
    return scores[..., off]


def donsker_varadhan(scores: Float[Tensor, "*batch n n"]) -> Float[Tensor, "*batch"]:
    """⟨f⟩ over the diagonal − ln ⟨e^f⟩ over the rest, in nats.

    >>> f"{donsker_varadhan(torch.zeros(4, 4)):.1f}"  # a critic that knows nothing
    '0.0'
    """
    other = _others(_scores(scores))
    return scores.diagonal(dim1=-2, dim2=-1).mean(-1) - (torch.logsumexp(other, -1) - math.log(other.shape[-1]))


def nwj(scores: Float[Tensor, "*batch n n"]) -> Float[Tensor, "*batch"]:
    """⟨f⟩ over the diagonal − ⟨e^{f−1}⟩ over the rest, in nats.

    >>> f"{nwj(torch.ones(4, 4)):.1f}"  # a critic that knows nothing: f = 1
    '0.0'
    """
    other = _others(_scores(scores))
    return scores.diagonal(dim1=-2, dim2=-1).mean(-1) - (other - 1).exp().mean(-1)


def infonce(scores: Float[Tensor, "*batch n n"]) -> Float[Tensor, "*batch"]:
    """⟨f(x_i, y_i) − ln ⟨e^{f(x_i, y_j)}⟩_j⟩, in nats; never above ln n.

    >>> sure = 100 * torch.eye(4)
    >>> f"{infonce(sure):.3f}, at most ln 4 = {math.log(4):.3f}"
    '1.386, at most ln 4 = 1.386'
    """
    n = _scores(scores).shape[-1]
    return (scores.diagonal(dim1=-2, dim2=-1) - torch.logsumexp(scores, -1)).mean(-1) + math.log(n)


BOUNDS: Mapping[str, Callable[[Tensor], Tensor]] = {"infonce": infonce, "nwj": nwj, "dv": donsker_varadhan}


# -------------------------------------------------------------------------------------------------------------- critic
class Critic(nn.Module):
    """A separable critic f(x, y) = g(x)ᵀh(y) + a(x) + b(y): n² scores for the price of 2n passes.

    Args:
        p, q: features of x and y.
        hidden: width of the two hidden layers of g and h.
        out: dimension in which they meet.

    >>> Critic(p=3, q=2)(torch.randn(8, 3), torch.randn(8, 2)).shape
    torch.Size([8, 8])
    """

    def __init__(self, p: int, q: int, hidden: int = 64, out: int = 16) -> None:
        super().__init__()
        self.out = out
        self.x, self.y = (
            nn.Sequential(
                nn.Linear(d, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, out + 1)
            )
            for d in (p, q)
        )

    def forward(self, x: Float[Tensor, "*batch n p"], y: Float[Tensor, "*batch n q"]) -> Float[Tensor, "*batch n n"]:
        """Scores of all pairs: row i is x_i, column j is y_j."""
        g, h = self.x(x), self.y(y)
        return g[..., :-1] @ h[..., :-1].mT / math.sqrt(self.out) + g[..., -1:] + h[..., -1:].mT


def variational_bound(
    x: Float[Tensor, "examples *p"],
    y: Float[Tensor, "examples *q"],
    *,
    bound: str = "infonce",
    hidden: int = 64,
    batch: int = 128,
    steps: int = 2000,
    patience: int = 10,
    lr: float = 1e-3,
    held_out: float = 0.3,
    seed: int = 0,
    unit: str = "nats",
) -> Estimate:
    """A variational bound with a critic that is trained here, stopped early, and judged on examples it never saw.

    Half of the held-out examples decide when to stop (no improvement at `patience` looks in a row, one look every 50
    steps), the other half give the value; its standard error does not know how good the critic is.

    Args:
        bound: `"infonce"`, `"nwj"` or `"dv"`.
        batch: examples in a batch; InfoNCE cannot say more than ln `batch`.
        held_out: share of the examples that the critic is not trained on.
        seed: of the split, the critic and the batches.

    Raises:
        ValueError: an unknown bound, mismatched rows, NaN, infinite values, constant columns, fewer than `batch`
            examples in one of the three parts, a critic that diverged.

    Warns:
        UserWarning: the critic diverged after the look that the value is of.

    >>> x = torch.randn(1000, 1)
    >>> found = variational_bound(x, x + 0.1 * torch.randn(1000, 1), steps=100)
    >>> found.bound, bool(0 < found.value < math.log(128))
    ('lower', True)
    """
    one_of(bound=(bound, BOUNDS))
    at_least(1, steps=steps, hidden=hidden)
    at_least(2, batch=batch)
    seed = whole_number(seed=seed)
    x, y = continuous(x).detach(), continuous(y, "y").detach()
    same_rows(x, y)
    n, value_of = len(x), BOUNDS[bound]
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(n, generator=generator).to(x.device)
    held = int(n * held_out / 2)
    if batch > min(held, n - 2 * held):
        raise TooFewExamplesError(
            f"{n} examples leave {n - 2 * held} to train on, {held} to stop and {held} to judge by; each part needs a "
            f"batch of {batch}: use a smaller batch, or another estimator"
        )
    judge, stop, fit = order[:held], order[held : 2 * held], order[2 * held :]
    # Standardised by the training part: the critic's first layer expects numbers around 1.
    x, y = (((z - z[fit].mean(0)) / z[fit].std(0).clamp(min=1e-12)).float() for z in (x, y.to(x.device)))
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would seed every GPU, too
        critic = Critic(x.shape[1], y.shape[1], hidden).to(x.device)
    optimizer = torch.optim.Adam(critic.parameters(), lr=lr)

    def held_values(rows: Tensor) -> Float[Tensor, "batches"]:
        batches = rows[: len(rows) // batch * batch].view(-1, batch)
        with torch.no_grad():
            return value_of(critic(x[batches], y[batches]).double())

    best, kept, waited = -math.inf, copy.deepcopy(critic.state_dict()), 0
    for step in progress(range(1, steps + 1), "training a critic"):
        rows = fit[torch.randint(len(fit), (batch,), generator=generator).to(x.device)]
        loss = -value_of(critic(x[rows], y[rows]))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 50 == 0 or step == steps:
            now = float(held_values(stop).mean())
            if best < now < math.inf:  # never of NaN
                best, kept, waited = now, copy.deepcopy(critic.state_dict()), 0
            elif (waited := waited + 1) >= patience:
                break
    if best == -math.inf:  # what is kept is the untrained critic
        raise ValueError(f"the critic diverged at lr={lr}: lower it, or standardise heavy tails")
    if math.isnan(now):
        warnings.warn(
            f"the critic diverged at lr={lr}, and the value is that of an early look: lower it, or standardise heavy "
            "tails, for a bound that may be closer",
            stacklevel=2,
        )
    critic.load_state_dict(kept)
    values = held_values(judge)
    error = values.std() / math.sqrt(len(values)) if len(values) > 1 else None
    ceiling = f", cannot exceed ln {batch} = {math.log(batch):.2f} nats" if bound == "infonce" else ""
    assumes = f"that a critic with {hidden} hidden units is good enough{ceiling}"
    side = "neither" if bound == "dv" else "lower"
    rest = {"estimator": bound, "assumes": assumes, "bound": side, "examples": n, "df": len(values) - 1}
    return estimate(values.mean(), error, unit, **rest)


for _bound, _title, _side in (("infonce", "InfoNCE", "lower"), ("nwj", "NWJ", "lower"), ("dv", "DV", "neither")):
    ESTIMATORS.register(_bound, title=_title, x="any", y="any", bound=_side, finite=True, by_distance=True)(
        functools.partial(variational_bound, bound=_bound)
    )
