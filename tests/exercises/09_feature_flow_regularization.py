"""Wrong answers to the exercises of chapter 9, which their tests refuse."""

from __future__ import annotations

WRONG = {
    "ex-schedule": {
        "a straight ramp": ("strength * (1 - math.cos(math.pi * share)) / 2", "strength * share"),
        "no wait": ("max(2 * step / steps - 1, 0.0)", "step / steps"),
        "a whole wave, which comes down again": ("math.pi * share", "2 * math.pi * share"),
        "the length of the ramp is fixed": ("2 * step / steps", "2 * step / 100"),
    },
    "ex-threshold": {
        "the mean of x₀, whose signs cancel": ("x0.abs().mean()", "x0.mean()"),
        "as for one example at 1": ("k1 * float(x0.abs().mean() / x0.square().mean())", "k1"),
        "no threshold": ("max(0.0, a - 1 - k1", "(a - 1 - k1"),
        "a threshold at 0 instead of 1": (
            "1 + max(0.0, a - 1 - k1 * float(x0.abs().mean() / x0.square().mean()))",
            "max(0.0, a - k1 * float(x0.abs().mean() / x0.square().mean()))",
        ),
    },
    "ex-length-from-gamma": {
        "without the shift": ("block.bn2.weight.square() + block.bn2.bias.square()", "block.bn2.weight.square()"),
        "the sum over channels": (".mean().detach()", ".sum().detach()"),
        "the wrong batch norm": ("bn2", "bn1"),
        "the square of the sum": (
            "block.bn2.weight.square() + block.bn2.bias.square()",
            "(block.bn2.weight + block.bn2.bias).square()",
        ),
    },
    "ex-own-penalty": {
        "the length, not its square": ("d.square().mean()", "d.square().mean().sqrt()"),
        "the strength is forgotten": ("self.strength * sum(", "sum("),
        "a number without a gradient": ("d.square().mean()", "d.detach().square().mean()"),
        "a sum over the examples": ("d.square().mean()", "d.square().sum()"),
    },
}
