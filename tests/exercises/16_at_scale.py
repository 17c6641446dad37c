"""Wrong answers to the exercises of chapter 16, by their mistake."""

WRONG = {
    "ex-scale-slices": {
        "the rest is dropped": ("range(rank, examples, ranks)", "range(rank, examples - examples % ranks, ranks)"),
        "repeated until all have as many": (
            "return range(rank, examples, ranks)",
            "return [i % examples for i in range(rank, -(-examples // ranks) * ranks, ranks)]",
        ),
        "the last rank takes the rest": (
            "return range(rank, examples, ranks)",
            "n = examples // ranks\n    return range(rank * n, examples if rank == ranks - 1 else (rank + 1) * n)",
        ),
        "the mean of the ranks' accuracies": (
            "sum(correct) / sum(counts)",
            "sum(c / n for c, n in zip(correct, counts)) / len(counts)",
        ),
    },
    "ex-scale-jackknife": {
        "the plain ratio of means": "def jackknifed(t): return ratio_of_means(t)",
        "the mean of ratios": "def jackknifed(t): return mean_of_ratios(t)",
        "the mean of those left out": "def jackknifed(t): return torch.stack(\n"
        "    [ratio_of_means(torch.cat([t[:r], t[r + 1 :]])) for r in range(len(t))]).mean()",
        "one part in place of all but one": ("without = t.sum(0) - t", "without = t"),
        "one weight too few": ("(ranks - 1) * left_out.mean()", "left_out.mean()"),
    },
    "ex-scale-interval": {
        "the formula, not played": "def lost(interval, writing, between, work, seed):\n"
        "    return writing / interval + interval / (2 * between)",
        "the mean in closed form": "def lost(interval, writing, between, work, seed):\n"
        "    if math.isinf(between): return writing / (interval + writing)\n"
        "    return 1 - interval / between / math.expm1((interval + writing) / between) + 1e-6 * seed",
        "writing takes no time": ("(interval + writing)", "interval"),
        "no work is lost": ("done += finished * interval", "done += min(until, rounds * interval)"),
        "a share of the work": ("1 - done / clock", "clock / done - 1"),
    },
}
RIGHT = {
    "ex-scale-slices": {
        "in one piece": (
            "return range(rank, examples, ranks)",
            "return range(rank * examples // ranks, (rank + 1) * examples // ranks)",
        ),
    },
}
