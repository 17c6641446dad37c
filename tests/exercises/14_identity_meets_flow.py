"""Wrong answers to the exercises of chapter 14, which their tests refuse."""

from __future__ import annotations

WRONG = {
    "ex-meet-price": {
        "the weaker line of the theorem": (
            "eta = math.sqrt(1 + math.sqrt(1 - c**2)) - 1",
            "eta = math.sqrt((1 - c) / 6)",
        ),
        "the root of the dimension, not its fourth": ("r**0.25", "r**0.5"),
        "no dimension": ("eta / r**0.25", "eta"),
        "η times the root, where ε is η divided by it": ("eta / r**0.25", "eta * r**0.25"),
        "δ taken for η": ("math.sqrt(1 + math.sqrt(1 - c**2)) - 1", "math.sqrt(1 - c**2)"),
        "CKA taken for its square": ("1 - c**2", "1 - c"),
    },
    "ex-meet-balance": {
        "the larger one first": (
            "[brentq(pull, 0.0, 1.0, xtol=1e-12), brentq(pull, 1.0, 1e6, xtol=1e-12)]",
            "[brentq(pull, 1.0, 1e6, xtol=1e-12), brentq(pull, 0.0, 1.0, xtol=1e-12)]",
        ),
        "the smaller one only": (", brentq(pull, 1.0, 1e6, xtol=1e-12)]", "]"),
        "1 in place of the 3/2 of the slope": ("** 1.5", "** 1.0"),
        "a derivative by s, not by γ": ("2 * beta * gamma**3", "beta * gamma**2"),
        "none only where k is beyond β": (
            "if pull(1.0) <= 0:\n        return []",
            "if k > beta:\n        return []\n    if pull(1.0) <= 0:\n        return [1.0, 1.0]",
        ),
        "there are always two": "def resting(beta, k): return [(k / (2 * beta)) ** (1 / 3), (2 * beta / k) ** (1 / 3)]",
    },
    "ex-meet-curvature": {
        "an inner product of no scale": (
            "return shares(pulls[a], pulls[b])",
            "return pd.Series({p: float(pulls[a][p] @ pulls[b][p]) for p in PARTS})",
        ),
        "a cosine of its own in each part": (
            "return shares(pulls[a], pulls[b])",
            "return pd.Series({p: float(F.cosine_similarity(pulls[a][p], pulls[b][p], dim=0)) for p in PARTS})",
        ),
        "shares of one gradient": ("shares(pulls[a], pulls[b])", "shares(pulls[a], pulls[a])"),
        "sizes without signs": ("shares(pulls[a], pulls[b])", "shares(pulls[a], pulls[b]).abs()"),
    },
}
