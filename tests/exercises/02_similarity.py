"""Wrong answers to the exercises of chapter 2, by their mistake."""

WRONG = {
    "ex-one-feature": {
        "the correlation, not its square": "def cka_of_one(x, y): return float(np.corrcoef(x, y)[0, 1])",
        "its absolute value": "def cka_of_one(x, y): return abs(float(np.corrcoef(x, y)[0, 1]))",
        "not centred": ("x, y = x - x.mean(), y - y.mean()", "pass"),
        "without the lengths": (" / ((x @ x) * (y @ y))", " / len(x) ** 2"),
        "the unbiased estimate": "def cka_of_one(x, y): return float(cka(x[:, None], y[:, None]))",
    },
    "ex-deconfound": {
        "nothing taken out": ("(Z - (Z * G).sum() / (G * G).sum() * G for Z in (A, B))", "(A, B)"),
        "taken out of one": (
            "A, B = (Z - (Z * G).sum() / (G * G).sum() * G for Z in (A, B))",
            "A = A - (A * G).sum() / (G * G).sum() * G",
        ),
        "one coefficient for both": (
            "A, B = (Z - (Z * G).sum() / (G * G).sum() * G for Z in (A, B))",
            "alpha = (A * G).sum() / (G * G).sum()\n    A, B = A - alpha * G, B - alpha * G",
        ),
        "a coefficient of 1": ("(Z * G).sum() / (G * G).sum() * G", "G"),
        "a difference of CKAs": (
            "def deconfounded_cka(x, y, inputs): return float(cka(x, y) - cka(x, inputs) * cka(y, inputs))"
        ),
        "not U-centred": ("u_center(gram(z))", "gram(z)"),
    },
    "ex-loss": {
        "nothing done": "def push_apart(x, loss, steps): return x + 0.1 * gaussian(*x.shape, seed=24)",
        "uphill": ("loss(cka(x, y)).backward()", "(-loss(cka(x, y))).backward()"),
        "its own loss": ("loss(cka(x, y))", "cka(x, y).square()"),
        "the biased value": ("loss(cka(x, y))", "loss(cka(x, y, unbiased=False))"),
        "a random layer": "def push_apart(x, loss, steps): return gaussian(*x.shape, seed=24)",
        "still a graph": ("y.detach()", "y"),
    },
}

RIGHT = {
    "ex-one-feature": {
        "by numpy": "def cka_of_one(x, y): return float(np.corrcoef(x, y)[0, 1]) ** 2",
        "by covariances": (
            "def cka_of_one(x, y):\n    C = np.cov(x, y)\n    return float(C[0, 1] ** 2 / (C[0, 0] * C[1, 1]))"
        ),
    },
    "ex-deconfound": {
        "as a partial correlation": (
            "def deconfounded_cka(x, y, inputs):\n"
            "    xy, xg, yg = (float(cka(a, b)) for a, b in ((x, y), (x, inputs), (y, inputs)))\n"
            "    return (xy - xg * yg) / math.sqrt((1 - xg**2) * (1 - yg**2))"
        ),
    },
}
