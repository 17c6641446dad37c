"""Wrong answers to the exercises of chapter 5, by their mistake."""

WRONG = {
    "ex-sparsest": {
        "a share, not a number": ("shape[1] * cut_off", "cut_off"),
        "the outputs of a layer": ("shape[1] * cut_off(shape[1], shape[0]", "shape[0] * cut_off(shape[0], shape[1]"),
        "one layer alone": ("list(ours.items())[1:]", "list(ours.items())[2:]"),
        "the pixels too": ("list(ours.items())[1:]", "list(ours.items())"),
    },
    "ex-snip": {
        "as many in every layer": ('"global"', '"uniform"'),
        "the smallest stay": ("(w.detach() * w.grad).abs())", "-(w.detach() * w.grad).abs())"),
        "with its sign": ("(w.detach() * w.grad).abs())", "w.detach() * w.grad)"),
        "the sparsity kept": ("prune(sparsity,", "prune(1 - sparsity,"),
    },
    "ex-dark": {
        "the variance as the mean": ("variance / (1 - mu**2)", "variance / (1 - mu)"),
        "the square of the mean's factor": ("variance / (1 - mu**2)", "variance / (1 - mu) ** 2"),
        "a running average": (
            "mean / (1 - mu), variance / (1 - mu**2)",
            "mean, variance * (1 - mu) / (1 + mu)",
        ),
        "the deviation": ("variance / (1 - mu**2)", "math.sqrt(variance / (1 - mu**2))"),
    },
    "ex-away": {
        "RigL itself": "class Away(RigL): pass",
        "grown at random": ("w.grad.abs().masked_fill(mask", "torch.rand_like(w).masked_fill(mask"),
        "the largest dropped": ("w.abs().masked_fill(~mask", "(-w.abs()).masked_fill(~mask"),
        "one weight too few": ("masked_fill(mask, -math.inf), k)", "masked_fill(mask, -math.inf), max(k - 1, 0))"),
    },
}
