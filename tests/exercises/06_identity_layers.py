"""Wrong answers to the exercises of chapter 6, by their mistake."""

WRONG = {
    "ex-id-one": {
        "without the half": ("-math.log1p(-c) / 2", "-math.log1p(-c)"),
        "CKA taken for the correlation": ("-math.log1p(-c) / 2", "-math.log1p(-c * c) / 2"),
        "in bits": ("-math.log1p(-c) / 2", "-math.log2(1 - c) / 2"),
        "what holds for small CKA": ("-math.log1p(-c) / 2", "c / 2"),
    },
    "ex-id-hide": {
        "the half of the information forgotten": ("-2 * information_", "-information_"),
        "CKA not divided by the squared correlation": ("part = c / rho_squared", "part = c"),
        "the loud feature's variance forgotten": ("part / (1 - part)", "part"),
        "the quiet feature's variance taken for its deviation": ("** 0.25", "** 0.5"),
    },
    "ex-id-rest": {
        "without the half": ("(2 * decay)", "decay"),
        "the squared norm": ("** 0.25", "** 0.5"),
        "the gradient not squared": ("g**2", "g"),
        "without the learning rate": ("eta * g**2", "g**2"),
    },
}
