"""Wrong answers to the exercises of chapter 13, by their mistake."""

WRONG = {
    "ex-real-paired": {
        "as if on two sets of photographs": (
            "d.std(ddof=1) / math.sqrt(len(d))",
            "math.sqrt((before.var(ddof=1) + after.var(ddof=1)) / len(d))",
        ),
        "the number of examples in the variance": ("ddof=1", "ddof=0"),
        "gained, not lost": ("100 * d.mean()", "-100 * d.mean()"),
        "a share, not points": ("100 * d.mean()", "d.mean()"),
        "any lengths": ('raise ValueError(f"{given}', 'print(f"{given}'),
        "one photograph is enough": (" or len(before) < 2", ""),
    },
    "ex-real-silent": {
        "no epsilon": ("(norm.running_var + norm.eps)", "norm.running_var"),
        "a silent filter": "def emitted(norm): return torch.zeros_like(norm.bias)",
        "the shift alone": ("(norm.bias - scale * norm.running_mean)", "norm.bias"),
        "a ReLU without its 6": (".clamp(0, 6)", ".clamp(0)"),
        "no ReLU6": (".clamp(0, 6)", ""),
        "the variance as a deviation": ("(norm.running_var + norm.eps).sqrt()", "(norm.running_var + norm.eps)"),
    },
    "ex-real-chance": {
        "the observed order is not counted": ("(1 + as_large) / (1 + draws)", "as_large / draws"),
        "both sides in the same order": (
            "return",
            "o = [torch.randperm(len(y), generator=torch.Generator().manual_seed(k)) for k in range(draws)]\n"
            "    as_large = sum(bool(cka(x[i], y[i]) >= observed - 1e-9) for i in o)\n    return",
        ),
        "columns, not rows": ("y[torch.randperm(len(y), generator=generator)]", "y[:, torch.randperm(y.shape[1])]"),
        "the other tail": (">=", "<="),
    },
}
