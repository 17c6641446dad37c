"""Wrong answers to the exercises of chapter 8, by their mistake."""

WRONG = {
    "ex-slope": {
        "a constant": "def slope(bottleneck, beta): return 1 / 3",
        "upside down": ("y.diff() / x.diff()", "x.diff() / y.diff()"),
        "the ratio, not the slope": ("y.diff() / x.diff()", "y[0] / x[0]"),
    },
    "ex-ruler": {
        "a fixed ruler": ("share * float(h.std())", "share"),
        "the variance": ("float(h.std())", "float(h.var())"),
        "the lower bound": ("share * float(h.std())", 'share * float(h.std()), bound="lower"'),
    },
    "ex-leak": {
        "a constant": "def closed_gate(a, b): return 0.2 if a != b else 0.0",
        "linear in the ratio": "def closed_gate(a, b): return math.log(2) * (1 - min(a, b) / max(a, b))",
        "one sign of the noise": ("2 * torch.trapezoid", "torch.trapezoid"),
        "the scale is told for certain": "def closed_gate(a, b): return math.log(2) if a != b else 0.0",
    },
}
RIGHT = {"ex-slope": {"by the theorem": "def slope(bottleneck, beta): return 1 / beta"}}
