"""Wrong answers to the exercises of chapter 1, by their mistake."""

WRONG = {
    "ex-bytes": {
        "distances in four bytes": ("1 + 1 / value", "1 + 4 / value"),
        "a bitmap": ("density * (1 + 1 / value)", "density + 1 / (8 * value)"),
        "values alone": ("density * (1 + 1 / value)", "density"),
        "bytes, not a ratio": ("density * (1 + 1 / value)", "density * (value + 1)"),
        "break-even of bits": ("value / (value + 1)", "1 - 1 / (8 * value)"),
    },
    "ex-nm": {
        "the smallest stay": ("groups.topk(n, dim=1)", "groups.topk(n, dim=1, largest=False)"),
        "m stay out": ("groups.topk(n, dim=1)", "groups.topk(m - n, dim=1)"),
        "signed, not by magnitude": ("W.abs().reshape(-1, m)", "W.reshape(-1, m)"),
        "groups across filters": ("mask.view_as(W)", "mask.view(W.shape[1], -1).T.reshape(W.shape)"),
        "one neighbour too many": ("stats.binom.cdf(n - 1, m - 1, q)", "stats.binom.cdf(n, m - 1, q)"),
        "unstructured": "def share_of_n_of_m(n, m): return stats.chi2.sf(stats.chi2.median(1), 3)",
    },
    "ex-scale": {
        "the plain magnitude": "effective = magnitudes",
        "only the first layer": ('if "conv" in name:', 'if name == "conv1":'),
        "every conv2 as it is": ('if "conv" in name:', 'if "conv1" in name:'),
        "without γ": ("norm.weight.detach().abs() / ", "1 / "),
        "the variance for its root": ("(norm.running_var + norm.eps).sqrt()", "(norm.running_var + norm.eps)"),
        "times σ": ("norm.weight.detach().abs() / ", "norm.weight.detach().abs() * "),
    },
    "ex-remove": {
        "nothing removed": "def without_filters(model, keep): return copy.deepcopy(model)",
        "the others kept": (
            "block, inner = model.layer1[0], int(keep.sum())",
            "keep = ~keep\n    block, inner = model.layer1[0], int(keep.sum())",
        ),
        "running statistics forgotten": ('("weight", "bias", "running_mean", "running_var")', '("weight", "bias")'),
        "the first inputs of conv2": ("block.conv2.weight.data[:, keep]", "block.conv2.weight.data[:, :inner]"),
    },
}
