"""Wrong answers to the exercises of chapter 4, by their mistake."""

WRONG = {
    "ex-effects": {
        "a ratio of means": ("step = (y - x).norm(dim=1) / x.norm(dim=1)", "step = (y - x).norm() / x.norm()"),
        "relative to the output": ("/ x.norm(dim=1)\n", "/ y.norm(dim=1)\n"),
        "the cosine": ("(1 - cosine)", "cosine"),
        "the angle": ("(1 - cosine)", "cosine.clamp(-1, 1).acos()"),
        "all examples in one vector": (
            "cosine = (x * y).sum(1) / (x.norm(dim=1) * y.norm(dim=1))",
            "cosine = (x * y).sum() / (x.norm() * y.norm())",
        ),
    },
    "ex-hide": {
        "for small influence alone": ("math.sqrt((1 - influence) ** -2 - 1)", "math.sqrt(2 * influence)"),
        "influence for step": ("math.sqrt((1 - influence) ** -2 - 1)", "influence"),
        "one length for all": ("x.norm(dim=1)", "x.norm(dim=1).mean()"),
        "without the class": ("* s", "* s.abs()"),
    },
    "ex-margin": {
        "without √2": ("math.sqrt(2) * ", ""),
        "twice": ("math.sqrt(2)", "2"),
        "the first class": ("first, second = logits.topk(2, dim=1).values.T", "first, second = logits[:, :2].T"),
        "over the smallest": ("logits.topk(2, dim=1).values.T", "logits.amax(1), logits.amin(1)"),
        "without the slope": ("* slope * step", "* step"),
    },
    "ex-greedy": {
        "at once": (
            "    gone: list = []\n",
            "    return sorted(blocks, key=lambda b: damage(frozenset(b)))[:count]\n    gone: list = []\n",
        ),
        "the best set for greedy": (
            "    gone: list = []\n",
            "    return sorted(best_set(blocks, count, damage))\n    gone: list = []\n",
        ),
        "greedy for the best set": (
            "set(min(map(frozenset, combinations(blocks, count)), key=damage))",
            "set(greedy_order(blocks, count, damage))",
        ),
        "the dearest first": ("gone.append(min(", "gone.append(max("),
        "every set is asked": (
            "    gone: list = []\n",
            "    gone: list = []\n    [best_set(blocks, k, damage) for k in range(count)]\n",
        ),
    },
}
