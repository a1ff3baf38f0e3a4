"""Writes reference.json: predictions made up at random and what scikit-learn (and numpy, where it has no such
function) measures on them. Run with scikit-learn 1.9: `python reference.py`."""

import json
import pathlib

import numpy as np
from sklearn import metrics

random = np.random.default_rng(3)
resampling = np.random.default_rng(5)

GROUPS = [(0, 2), (4, 6), (8, 12), (15, 20), (25, 32), (38, 43), (48, 53), (60, 100)]


def intervals(rows, figures):
    """The 95 % percentile interval of each figure by the plain bootstrap: rows drawn with replacement, 4,000 times."""
    drawn = [figures(resampling.integers(0, rows, rows)) for _ in range(4000)]
    names = drawn[0].keys()
    return {name: np.percentile([figure[name] for figure in drawn], [2.5, 97.5]).tolist() for name in names}


def group(years):
    """The Adience group of an age: the one that holds it, else the one with the nearer edge, ties to the lower."""
    years = min(years, 100)
    distance = [max(low - years, years - high, 0) for low, high in GROUPS]
    return int(np.argmin(distance))


def classification(labels, rows, sharpness, absent=None):
    truth = random.integers(0, len(labels), rows)
    if absent is not None:
        truth[truth == absent] = 0
    logits = random.normal(size=(rows, len(labels))) * sharpness
    logits[np.arange(rows), truth] += sharpness
    if absent is not None:
        logits[:, absent] = -30
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
    probabilities = (exponentials / exponentials.sum(axis=1, keepdims=True)).astype(np.float32)
    predicted = probabilities.argmax(axis=1)
    classes = list(range(len(labels)))

    confidence, correct = probabilities.max(axis=1).astype(float), predicted == truth
    edges = np.arange(16) / 15
    reliability = []
    for low, high in zip(edges[:-1], edges[1:]):
        inside = (confidence > low) & (confidence <= high)
        if inside.any():
            reliability.append({
                "low": low,
                "high": high,
                "n": int(inside.sum()),
                "confidence": confidence[inside].mean(),
                "accuracy": correct[inside].mean(),
            })
    gap = sum(b["n"] / rows * abs(b["accuracy"] - b["confidence"]) for b in reliability)

    def figures(chosen):
        losses = -np.log(np.maximum(probabilities[chosen, truth[chosen]], np.finfo(np.float32).eps))
        seen = np.union1d(truth[chosen], predicted[chosen])
        return {
            "accuracy": metrics.accuracy_score(truth[chosen], predicted[chosen]),
            "macro_f1": metrics.f1_score(truth[chosen], predicted[chosen], average="macro", labels=seen),
            "log_loss": losses.mean(),
        }

    present = [c for c in classes if c != absent]
    return {
        "truth": truth.tolist(),
        "probabilities": probabilities.astype(float).tolist(),
        "metrics": {
            "n": rows,
            "accuracy": metrics.accuracy_score(truth, predicted),
            "balanced_accuracy": metrics.balanced_accuracy_score(truth, predicted),
            "macro_f1": metrics.f1_score(truth, predicted, average="macro", labels=present),
            "log_loss": metrics.log_loss(truth, probabilities, labels=classes),
            "ece": gap,
            "labels": labels,
            "confusion": metrics.confusion_matrix(truth, predicted, labels=classes).tolist(),
            "reliability": reliability,
        },
        "intervals": intervals(rows, figures),
    }


def age(rows):
    """Predictions are certain of one year, so that nothing but the errors is measured."""
    truth = random.integers(1, 117, rows)
    predicted = np.clip(truth + random.integers(-14, 13, rows), 0, 100)
    decades = {}
    for decade in sorted(set(truth // 10 * 10)):
        of = truth // 10 * 10 == decade
        decades[f"{decade}-{decade + 9}"] = {
            "n": int(of.sum()),
            "mae": metrics.mean_absolute_error(truth[of], predicted[of]),
            "mean_error": float((predicted - truth)[of].mean()),
        }
    error = predicted - truth
    groups = [[group(years) for years in ages] for ages in (truth, predicted)]
    steps = np.abs(np.subtract(*groups))
    return {
        "truth": truth.tolist(),
        "predicted": predicted.tolist(),
        "metrics": {
            "n": rows,
            "mae": metrics.mean_absolute_error(truth, predicted),
            "mean_error": float(error.mean()),
            "cs5": float((abs(error) <= 5).mean()),
            "cs": {str(k): float((abs(error) <= k).mean()) for k in range(1, 11)},
            "accuracy_8": metrics.accuracy_score(*groups),
            "accuracy_8_one_off": float((steps <= 1).mean()),
            "confusion_8": metrics.confusion_matrix(*groups, labels=range(8)).tolist(),
            "mae_by_decade": decades,
        },
        "intervals": intervals(rows, lambda chosen: {
            "mae": abs(error[chosen]).mean(),
            "mean_error": error[chosen].mean(),
            "cs5": (abs(error[chosen]) <= 5).mean(),
            "accuracy_8": (steps[chosen] == 0).mean(),
        }),
    }


emotions = ["angry", "disgust", "fear", "happy", "sad", "surprise", "neutral"]
reference = {
    "emotion": classification(emotions, 80, 1.5),
    "emotion_without_disgust": classification(emotions, 40, 1.5, absent=1),
    "gender": classification(["female", "male"], 60, 0.9),
    "age": age(90),
}
text = json.dumps(reference, separators=(",", ":"))
pathlib.Path(__file__).with_suffix(".json").write_text(text + "\n")
