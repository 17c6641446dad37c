"""Wrong answers to the exercises of chapter 11, by their mistake."""

from __future__ import annotations

WRONG = {
    "ex-ci-flips": {
        "one-sided": ("abs(patterns @ values)", "patterns @ values"),
        "larger, not at least as large": ("means >= abs(values.sum()) - 1e-12", "means > abs(values.sum()) + 1e-12"),
        "Student's p": "def flip_p(differences): return mean(differences).p_value",
        "the observed pattern left out": ("return float(", "return float(-(0.5 ** len(values)) + "),
        "what seeds can reach at best": "def flip_p(differences): return 2 / 2 ** len(differences)",
    },
    "ex-ci-even": {
        "the deviation, not its square": (") ** 2)", "))"),
        "the degrees of freedom exchanged": (
            "def break_even(n): return float(1 - (stats.t.ppf(0.975, n - 1) / stats.t.ppf(0.975, 2 * n - 2)) ** 2)"
        ),
        "one-sided quantiles": ("0.975", "0.95"),
        "degrees of freedom of 2n": ("2 * n - 2", "2 * n"),
    },
    "ex-ci-budget": {
        "as for many seeds": "def longer_is_better(n, r): return r < 1 / math.sqrt(2)",
        "all n seeds, and longer": ("n // 2", "n"),
        "the sides exchanged": ("<", ">"),
        "the deviation does not change": ("detectable(r, n // 2)", "detectable(1.0, n // 2)"),
        "fixed thresholds": "def longer_is_better(n, r): return r < (0.44 if n < 10 else 0.69)",
    },
    "ex-ci-noisier": {
        "independent epochs": ("phi * z + math.sqrt(1 - phi**2)", "0.0 * z + 1.0"),
        "the same epochs on both sides": (
            "sigma_b * best[1].mean() - sigma_a * best[0].mean()",
            "(sigma_b - sigma_a) * bonus(k)",
        ),
        "the last epoch, not the best": ("best = np.maximum(best, z)", "best = z"),
        "the sides exchanged": ("sigma_b * best[1].mean() - sigma_a", "sigma_a * best[1].mean() - sigma_b"),
        "the scatter grows": ("math.sqrt(1 - phi**2)", "1.0"),
        "the root of the correlation": (
            "z = phi * z + math.sqrt(1 - phi**2)",
            "z = math.sqrt(phi) * z + math.sqrt(1 - phi)",
        ),
        "its square": ("z = phi * z + math.sqrt(1 - phi**2)", "z = phi**2 * z + math.sqrt(1 - phi**4)"),
    },
}
