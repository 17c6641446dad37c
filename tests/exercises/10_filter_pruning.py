"""Wrong answers to the exercises of chapter 10, which their tests refuse."""

from __future__ import annotations

WRONG = {
    "ex-fold": {
        "no ε": ("norm.running_var + norm.eps", "norm.running_var"),
        "the variance for the deviation": (".sqrt()", ""),
        "the mean is forgotten": ("norm.bias - scale * norm.running_mean", "norm.bias"),
        "the scale on the wrong axis": ("view(-1, 1, 1, 1)", "view(1, -1, 1, 1)"),
    },
    "ex-merge": {
        "deleted": ("c[dead]", "0 * c[dead]"),
        "constants of the living": ("c[dead]", "c[~dead]"),
        "the constant channel comes first": (
            "[weight[:, ~dead], constant[:, None]]",
            "[constant[:, None], weight[:, ~dead]]",
        ),
        "one number for the whole kernel": (
            "constant[:, None]",
            "constant.mean((1, 2), keepdim=True)[:, None] + 0 * constant[:, None]",
        ),
    },
    "ex-mean": {
        "zeros, whose batch norm emits another constant": (
            'model.get_submodule(name.replace("conv", "bn")).running_mean[indices] = 0',
            "pass",
        ),
        "all means of the layer": ("running_mean[indices] = 0", "running_mean[:] = 0"),
        "the network itself is changed": ("model = zero_filters(model, filters)", "zero_filters(model, filters)"),
        "the shift goes, too": (
            "running_mean[indices] = 0",
            'running_mean[indices] = 0\n        model.get_submodule(name.replace("conv", "bn")).bias.data[indices] = 0',
        ),
    },
}
