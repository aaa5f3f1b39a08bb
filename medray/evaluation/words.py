"""How figures are called and written for a reader."""

from __future__ import annotations

import math

from medray.evaluation.result import Evaluation, Figure

LABELS = {
    "auroc": "AUROC",
    "average_precision": "Average precision (area under PR)",
    "recall": "Sensitivity (recall)",
    "specificity": "Specificity",
    "precision": "PPV (precision)",
    "f1": "F1",
    "balanced_accuracy": "Balanced accuracy",
    "accuracy": "Accuracy",
    "kappa": "Cohen's kappa",
    "kappa_quadratic": "Quadratic kappa",
    "mcc": "Matthews correlation",
    "brier": "Brier score",
    "ece": "Calibration error (ECE)",
    "set_coverage": "Sets that hold the truth",
    "set_size": "Mean size of the sets, classes",
    "dice": "Dice",
    "iou": "IoU (Jaccard)",
    "hd95": "Hausdorff distance, 95 %",
    "nsd": "Surface Dice (NSD)",
    "volume_error": "Volume error, absolute",
    "volume_bias": "Volume bias (found - true)",
    "lesion_f1": "F1 of connected parts (lesions), of all cases together",
    "lesion_recall": "Connected parts found, of all cases together",
    "lesion_fp_per_case": "False connected parts per case",
    "mae": "Mean absolute error",
    "rmse": "Root mean squared error",
    "r2": "R²",
    "bias": "Bias (said - true)",
    "pearson": "Pearson correlation",
    "icc": "Intraclass correlation",
    "limit_low": "Limit of agreement, lower",
    "limit_high": "Limit of agreement, upper",
    "interval_coverage": "Intervals that hold the truth",
    "interval_width": "Mean width of the intervals",
}
"""In the order in which a report shows them."""
LESS_IS_BETTER = frozenset({"brier", "ece", "hd95", "volume_error", "lesion_fp_per_case", "set_size"}) | frozenset(
    {"mae", "mse", "rmse", "median_absolute_error", "interval_width"}
)
SIGNED = frozenset({"kappa", "kappa_quadratic", "mcc"})
"""Figures from -1 to 1."""


def title(name: str) -> str:
    """The reader's name of a figure: 'recall/malignant' is 'Sensitivity (recall), malignant'."""
    figure, _, part = name.partition("/")
    words = LABELS.get(figure, figure.replace("_", " ").capitalize())
    arrow = " (less is better)" if figure in LESS_IS_BETTER else ""
    return f"{words}, {part}" if part else f"{words}{arrow}"


def rank(name: str) -> int:
    """Where a figure stands in a table; unknown ones come last."""
    figure = name.partition("/")[0]
    return list(LABELS).index(figure) if figure in LABELS else len(LABELS)


def number(value: float) -> str:
    """Three decimals below 10, else four digits; a dash where there is nothing."""
    if not math.isfinite(value):
        return "-"
    return f"{value:.3f}" if abs(value) < 10 else f"{value:.4g}"


def interval(figure: Figure) -> str:
    """'0.549 to 0.744'"""
    return f"{number(figure.low)} to {number(figure.high)}" if math.isfinite(figure.low) else "-"


def with_interval(figure: Figure) -> str:
    """'0.650 (95 % interval 0.549 to 0.744)'"""
    if not math.isfinite(figure.value):
        return "not defined on these cases"
    return f"{number(figure.value)} (95 % interval {interval(figure)})"


def percent(figure: Figure) -> str:
    """'73.1 % (65.6 to 79.5)'"""
    if not math.isfinite(figure.value):
        return "-"
    return f"{figure.value:.1%} ({100 * figure.low:.1f} to {100 * figure.high:.1f})".replace("%", " %")


def below(text: str) -> str:
    """'0.650 (0.549 to 0.744)' with the interval on a line of its own, for narrow columns."""
    return text.replace(" (", "\n(", 1)


def count(number_of: int, what: str) -> str:
    """'1 case', '12 cases'"""
    return f"{number_of:,} {what}{'' if number_of == 1 else 's'}"


def who(evaluation: Evaluation) -> str:
    """'156 cases of 150 patients', as far as the data say."""
    cases = count(len(evaluation.cases), "case")
    return f"{cases} of {count(evaluation.cases.people, 'patient')}" if evaluation.data.subjects_named else cases
