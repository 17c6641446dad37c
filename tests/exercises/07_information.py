"""Wrong answers to the exercises of chapter 7, by their mistake."""

WRONG = {
    "ex-coin": {
        "the entropy of the error": ("return 1 - sum(", "return sum("),
        "in nats": ("math.log2(p)", "math.log(p)"),
        "the share that arrives": "def capacity(error): return 1 - error",
        "linear in the error": "def capacity(error): return abs(1 - 2 * error)",
    },
    "ex-permutation": {
        "the real one not counted": (
            "(1 + sum(other >= real for other in others)) / (shuffles + 1)",
            "sum(other >= real for other in others) / shuffles",
        ),
        "counted above the line only": ("(shuffles + 1)", "shuffles"),
        "nothing shuffled": ("torch.randperm(len(y), generator=generator)", "torch.arange(len(y))"),
        "dependence everywhere": "def p_value(x, y, shuffles): return 1 / (shuffles + 1)",
    },
    "ex-ross": {
        "neighbours of all classes": ("d.where(same, math.inf).kthvalue(k)", "d.kthvalue(k)"),
        "only those strictly nearer": ("(d <= radius)", "(d < radius)"),
        "the class without its member": ("same.sum(1).double()", "same.sum(1).double() - 1"),
        "logarithms": ("n.digamma().sum() - m.digamma().mean()", "n.log().sum() - m.log().mean()"),
    },
    "ex-variance": {
        "rounded down": ("math.ceil(", "math.floor("),
        "the 1 not taken off": ("math.expm1(information)", "math.exp(information)"),
        "the error not squared": ("error**2", "error"),
    },
}
