"""Writes reference.json: predictions made up at random and what scikit-learn (and numpy, where it has no such
function) measures on them. Run with scikit-learn 1.9: `python reference.py`."""

import json
import pathlib

import numpy as np
from sklearn import metrics

random = np.random.default_rng(3)


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
    gap = 0.0
    for low, high in zip(edges[:-1], edges[1:]):
        inside = (confidence > low) & (confidence <= high)
        if inside.any():
            gap += inside.mean() * abs(correct[inside].mean() - confidence[inside].mean())
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
        },
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
        }
    error = predicted - truth
    return {
        "truth": truth.tolist(),
        "predicted": predicted.tolist(),
        "metrics": {
            "n": rows,
            "mae": metrics.mean_absolute_error(truth, predicted),
            "mean_error": float(error.mean()),
            "cs5": float((abs(error) <= 5).mean()),
            "mae_by_decade": decades,
        },
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
