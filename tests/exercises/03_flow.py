"""Wrong answers to the exercises of chapter 3, by their mistake."""

WRONG = {
    "ex-pause": {
        "a pause counts": ("    d = d[d.norm(dim=1) > 0]\n", "    d = d + 1e-12\n"),
        "a turn across a pause is lost": (
            "    d = d[d.norm(dim=1) > 0]\n",
            "    moves = d.norm(dim=1) > 0\n    d = d[moves] if (moves[1:] & moves[:-1]).any() else d[:0]\n",
        ),
        "the first step left out": ("x[1:] - x[:-1]", "x[2:] - x[1:-1]"),
        "degrees": ("2 * torch.atan2", "360 / math.pi * torch.atan2"),
        "half the angle": ("2 * torch.atan2", "torch.atan2"),
        "each place once": ("x[1:] - x[:-1]", "(x := torch.unique(x, dim=0))[1:] - x[:-1]"),
        "the mean": (".sum())", ".mean())"),
    },
    "ex-momentum": {
        "the angle of no memory": ("math.acos(a)", "math.pi / 2"),
        "a random walk's straightness": ("math.sqrt(chord) / L", "1 / math.sqrt(L)"),
        "neighbours alone": ("a ** abs(i - j) for", "(a ** abs(i - j) if abs(i - j) < 2 else 0) for"),
        "the square of the straightness": ("math.sqrt(chord) / L", "chord / L**2"),
        "degrees": ("math.acos(a)", "math.degrees(math.acos(a))"),
    },
    "ex-midpoint": {
        "Euler": ("f(x + h / 2 * f(x))", "f(x)"),
        "a whole step ahead": ("x + h / 2 * f(x)", "x + h * f(x)"),
        "half steps": ("x = x + h * f(", "x = x + h / 2 * f("),
        "a fixed step": ("h = T / steps", "h = 0.1"),
        "Heun's method": ("x + h * f(x + h / 2 * f(x))", "x + h / 2 * (f(x) + f(x + h * f(x)))"),
        "a series for linear f": ("x + h * f(x + h / 2 * f(x))", "x + h * f(x) + h**2 / 2 * f(f(x))"),
    },
    "ex-shadow": {
        "the squared share": ("math.sqrt(k / p)", "k / p"),
        "the ratio of roots reversed": ("math.sqrt(k / p)", "math.sqrt(p / k)"),
        "what is hidden": ("math.sqrt(k / p)", "math.sqrt(1 - k / p)"),
        "one direction for all": ("math.sqrt(k / p)", "math.sqrt(1 / p)"),
    },
}
