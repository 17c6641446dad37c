"""Wrong answers to the exercises of chapter 12, which their tests refuse."""

from __future__ import annotations

WRONG = {
    "ex-cf-sparsity": {
        "no interpolation": ("return s + (after - s) * (a - floor) / (a - b)", "return s"),
        "points from nothing, not from the dense network": ("levels[0][1] - points", "points"),
        "the last level that is good, not the first that is bad": (
            "def sparsity_at(levels, points): return max(s for s, a in levels if a >= levels[0][1] - points)"
        ),
        "interpolated from the wrong end": ("(a - floor) / (a - b)", "(floor - b) / (a - b)"),
    },
    "ex-cf-macs": {
        "no shortcut": ("total += out * stream * side**2", "pass"),
        "the side is never halved": ("side = side // 2 if stage > 1 and block == 0 else side", "pass"),
        "the inner width enters once": ("inside * stream + out * inside", "inside * stream + out * stream"),
        "no linear layer": ('return total + stream * left["linear"]', "return total"),
        "up to a factor": ("return total + stream", "return 2 * total + 2 * stream"),
    },
    "ex-cf-ratio": {
        "the logarithm of a ratio of means": (
            "def log_change(a, b):\n"
            "    pairs = mean(100 * math.log(y / x) for x, y in zip(a, b, strict=True))\n"
            "    return Mean(100 * math.log(np.mean(b) / np.mean(a)), pairs.half, pairs.count, pairs.level)"
        ),
        "per cent of the first": ("100 * math.log(y / x)", "100 * (y / x - 1)"),
        "the sides exchanged": ("math.log(y / x)", "math.log(x / y)"),
        "no per cent": ("100 * math.log(y / x)", "math.log(y / x)"),
    },
    "ex-cf-best": {
        "no baseline": ("runs[:, 1:] - runs[:, :1]", "runs[:, 1:]"),
        "the first, not the best": ("means.argmax(1)[:, None]", "np.zeros((rounds, 1), dtype=int)"),
        "the deviation of a run, not of a mean": (" / math.sqrt(n)", ""),
        "the scatter forgotten": ("sigma * generator", "generator"),
        "a normal quantile for few seeds": ("stats.t.ppf(0.975, n - 1)", "stats.norm.ppf(0.975)"),
    },
}
