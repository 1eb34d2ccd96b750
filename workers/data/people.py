"""What a model of ages wants to know of a dataset beforehand: how ages are spread, how many people there are."""

from collections import Counter
from typing import Any

import numpy as np

from workers.data.rows import Report

PLACES = 201


def facts_of_people(values: dict[str, np.ndarray], train: list[int], report: Report) -> dict[str, Any]:
    """`ages` at evenly spaced places from the youngest to the oldest, and the count of `identities`, of training rows.

    What would teach nothing is in the report: a single age, one person, as many people as images.
    """
    facts: dict[str, Any] = {}
    if "ages" in values and train:
        ages = np.sort(values["ages"][train])
        facts["ages"] = ages[np.linspace(0, len(ages) - 1, min(PLACES, len(ages))).round().astype(int)].tolist()
        if ages[0] == ages[-1]:
            report.warn(f"All images are of the age {ages[0]:g}: no model can learn from them what age changes.")
    if "identities" in values and train:
        counts = Counter(values["identities"][train].tolist())
        facts["identities"] = len(counts)
        if len(counts) == 1:
            report.warn("All images have one identity, so nothing says what tells two people apart.")
        elif max(counts.values()) == 1:
            report.warn("Every image has an identity of its own, so nothing says what one person keeps.")
    return facts
