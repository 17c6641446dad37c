"""Wrong answers to the exercises of chapter 15, by their mistake."""

WRONG = {
    "ex-how-many": {
        "one deviation": ("8 / c**2", "2 / c**2"),
        "the rule of thumb": "def examples_needed(c): return max(4, math.ceil(2.8 / c))",
        "the solution's approximation": "def examples_needed(c): return max(4, math.ceil(math.sqrt(8) / c + 1.5))",
        "one too many": ("math.ceil(", "1 + math.ceil("),
        "rounded down": ("math.ceil(", "math.floor("),
        "a spread that falls like the root": "def examples_needed(c): return max(4, math.ceil(8 / c**2))",
        "no whole number": "def examples_needed(c): return max(4.0, 1.5 + math.sqrt(2.25 + 8 / c**2))",
    },
    "ex-batches": {
        "a mean of ratios": (
            "def minibatch_cka(x, y, size):\n"
            "    parts = zip(x.split(size), y.split(size))\n"
            "    return sum(len(a) / len(x) * float(cka(a, b)) for a, b in parts)"
        ),
        "every batch the same weight": ("len(a) / len(x)", "1 / len(parts)"),
        "biased": ("hsic(a, b)", "hsic(a, b, unbiased=False)"),
        "all at once": "def minibatch_cka(x, y, size): return float(cka(x, y))",
        "the rest left out": (
            "list(zip(x.split(size), y.split(size), strict=True))",
            "[(a, b) for a, b in zip(x.split(size), y.split(size)) if len(a) == size]",
        ),
        "without the root": ("(xx * yy).sqrt()", "(xx * yy)"),
    },
    "ex-exact-p": {
        "the observed order left out": (".double().mean()", ".double().sum().sub(1) / (len(values) - 1)"),
        "greater, not equal": ("values >= cosine(A, B) - 1e-9", "values > cosine(A, B) + 1e-9"),
        "two-sided": ("values >= cosine(A, B)", "values.abs() >= cosine(A, B).abs()"),
        "the other side": ("values >= cosine(A, B) - 1e-9", "values <= cosine(A, B) + 1e-9"),
        "rows only": ("B[order][:, order]", "B[order]"),
        "features shuffled": (
            "def exact_p(x, y):\n"
            "    orders = [list(order) for order in itertools.permutations(range(y.shape[1]))]\n"
            "    return float(np.mean([float(cka(x, y[:, o])) >= float(cka(x, y)) - 1e-9 for o in orders]))"
        ),
        "some shuffles": (
            "itertools.permutations(range(len(x)))",
            "itertools.islice(itertools.permutations(range(len(x))), 60)",
        ),
    },
    "ex-rbf": {
        "linear": "def rbf_cka(x, y, sigma): return float(cka(x, y))",
        "without the 2": ("(2 * sigma**2)", "sigma**2"),
        "distances not squared": (".square() for z", " for z"),
        "biased": (
            "def rbf_cka(x, y, sigma):\n"
            "    kernel = functools.partial(rbf_kernel, bandwidth=sigma)\n"
            "    return float(cka(x, y, kernel=kernel, unbiased=False))"
        ),
        "not centred": ("u_center(torch.exp(-d / (2 * sigma**2)))", "torch.exp(-d / (2 * sigma**2))"),
    },
}

RIGHT = {
    "ex-how-many": {
        "by trying": (
            "def examples_needed(c):\n"
            "    return next(n for n in itertools.count(4) if 2 * math.sqrt(2 / (n * (n - 3))) <= c)"
        ),
    },
    "ex-exact-p": {
        "by the package's cka": (
            "def exact_p(x, y):\n"
            "    orders = [list(order) for order in itertools.permutations(range(len(y)))]\n"
            "    return float(np.mean([float(cka(x, y[o])) >= float(cka(x, y)) - 1e-9 for o in orders]))"
        ),
    },
}
