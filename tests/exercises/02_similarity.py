"""Wrong answers to the exercises of chapter 2, by their mistake."""

WRONG = {
    "ex-one-feature": {
        "the correlation, not its square": "def cka_of_one(x, y): return float(np.corrcoef(x, y)[0, 1])",
        "not centred": ("x, y = x - x.mean(), y - y.mean()", "pass"),
        "one of two centred": ("y - y.mean()", "y"),
    },
}
