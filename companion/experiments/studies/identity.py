"""Does CKA-SR do anything to the features, what does that cost, and is it CKA that does it?"""

from __future__ import annotations

from typing import Any

from companion.experiments.plan import Experiment, Tier
from companion.experiments.studies.recipes import (
    DIGITS,
    HALF_RESOLUTION,
    PRUNE,
    QUARTER,
    RANDOM_MASKS,
    aug_cka_sr,
    cka_sr,
    feature_flow,
    penalised,
)
from companion.experiments.trainings import train, train_and_prune

# ------------------------------------------------------------------------------------------------------ dose and effect
DOSES: dict[str, dict[str, Any]] = {
    "random": {},
    **penalised(**{f"random+cka_sr_{beta:g}": cka_sr(beta) for beta in (0.01, 0.02, 0.03, 0.05, 0.1)}),
    **penalised(**{f"random+aug_cka_sr_{beta:g}": aug_cka_sr(beta) for beta in (0.1, 0.3, 1.0)}),
}

# ---------------------------------------------------------------------------------------------------------- specificity
# AugCKA-SR as strong as in the first two rounds. The β of CKA-SR is the smallest that acts in `masks_dose` at .9, by
# the rule on the page of hypotheses (a test holds it against the records).
AUG_BETA, CKA_BETA = 0.3, 0.03
CURVE: dict[str, Any] = PRUNE | {
    "sparsities": [0.5, 0.7, 0.8, 0.9, 0.95, 0.98],
    "criteria": ["magnitude", "scale_free"],
    "images": [0.8, 0.9],
    "macs": [],
    "epochs": 0,
}


CONTROLLED: dict[str, dict[str, Any]] = {
    "none": {"penalties": []},
    **penalised(
        cka_sr=cka_sr(CKA_BETA),
        placebo_cka_sr=cka_sr(CKA_BETA, "PlaceboCKASparsity"),
        aug_cka_sr=aug_cka_sr(AUG_BETA),
        placebo_aug_cka_sr=aug_cka_sr(AUG_BETA, "PlaceboAugmentedCKASparsity"),
        aug_cka_sr_negated=aug_cka_sr(AUG_BETA, form="negated"),
        ffr=feature_flow(0.01, 0.01),
        ffr_strong=feature_flow(0.05, 0.05),
    ),
}

# ------------------------------------------------------------------------------------------------ the hosts, once more
# Each penalty at the smallest strength that acts in `masks_dose` at .9, where it costs less than 2 points.
AGAIN: dict[str, dict[str, Any]] = {
    "random": {},
    **penalised(**{"random+cka_sr": cka_sr(CKA_BETA), "random+aug_cka_sr": aug_cka_sr(0.1)}),
}

# --------------------------------------------------------------------------------------------- the published strength
PUBLISHED: dict[str, dict[str, Any]] = {"random": {}} | penalised(**{"random+cka_sr": cka_sr(1e-4)})

EXPERIMENTS = (
    Experiment(
        "masks_dose",
        "From which strength on does each CKA penalty change features under random masks, and what does that cost?",
        train,
        {
            "smoke": Tier(DIGITS | RANDOM_MASKS, DOSES, sparsities=(0.9,), seeds=(200,)),
            "laptop": Tier(HALF_RESOLUTION | RANDOM_MASKS, DOSES, sparsities=(0.9, 0.95), seeds=(200, 201, 202)),
        },
        blocks=True,
    ),
    Experiment(
        "specificity",
        "Is it a lower CKA that changes what pruning leaves, or would any disturbance of that size do?",
        train_and_prune,
        {
            "smoke": Tier(DIGITS | {"prune": CURVE}, CONTROLLED, seeds=(10,)),
            "laptop": Tier(HALF_RESOLUTION | {"prune": CURVE}, CONTROLLED, seeds=tuple(range(10, 30))),
        },
        blocks=True,
    ),
    Experiment(
        "hosts_again",
        "Does a CKA penalty that acts make training under fixed random masks more accurate?",
        train,
        {
            "smoke": Tier(DIGITS | RANDOM_MASKS, AGAIN, sparsities=(0.9,), seeds=(300,)),
            "laptop": Tier(HALF_RESOLUTION | RANDOM_MASKS, AGAIN, sparsities=(0.9,), seeds=tuple(range(300, 324))),
        },
        blocks=True,
    ),
    Experiment(
        "published_recipe",
        "Does CKA-SR at its published strength move CKA at all, by its released recipe, at full size?",
        train,
        {
            "smoke": Tier(
                DIGITS
                | RANDOM_MASKS
                | {"schedule": "multistep"}
                | {"schedule_options": {"milestones": [1, 2], "gamma": 0.1, "warmup": 0}},
                PUBLISHED,
                sparsities=(0.95,),
                seeds=(70,),
            ),
            "laptop": Tier(QUARTER | RANDOM_MASKS, PUBLISHED, sparsities=(0.95,), seeds=tuple(range(70, 76))),
        },
        blocks=True,
    ),
)
