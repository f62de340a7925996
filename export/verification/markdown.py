"""Pages for people: the verification report, and the pieces that the model card shares with it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from flashelmo.engine.precision import Bound
    from flashelmo.export.verification.report import CaseResult, OutputError, Report

ERRORS = ("output", "vectors", "max abs error", "relative error", "worst vector", "least cosine", "bound")


def short(value: float, digits: int = 2) -> str:
    """A number as it is written by hand, 3.1e-3: with a power of ten below 0.01 and from 1000 on."""
    if value == 0 or 0.01 <= abs(value) < 1000 or not math.isfinite(value):
        return f"{value:.{digits}g}"
    mantissa, _, exponent = f"{value:.{digits - 1}e}".partition("e")
    return f"{mantissa.removesuffix('.0')}e{int(exponent)}"


def table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A table; columns of numbers are set to the right."""
    rows = [[str(value) for value in row] for row in rows]
    numbers = [bool(rows) and all(row[k][:1].isdigit() for row in rows) for k in range(len(header))]
    lines = [header, ["---:" if number else "---" for number in numbers], *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def bound_text(bound: Bound) -> str:
    """As "max abs error < 2e-5, cosine > 0.98"."""
    errors = {"max abs error": bound.max_abs, "relative error": bound.relative, "worst vector": bound.worst_vector}
    parts = [f"{name} < {short(limit)}" for name, limit in errors.items() if limit is not None]
    return ", ".join(parts if bound.cosine is None else [*parts, f"cosine > {bound.cosine:g}"])


def report_page(report: Report) -> str:
    """The report in Markdown."""
    verdict = [
        "Passed: weights are the model's, masks are equal, padding is zero, everything is finite, and every error is "
        "within its bound."
    ]
    if not report.passed:
        verdict = ["**Failed.**", "", *(f"- {line}" for line in report.failures)]
    parts = [
        f"# Verification of {report.file}",
        "\n".join(verdict),
        table(("what", "found"), _facts(report)),
        table(ERRORS, _errors(report)),
        "Each output's worst case; relative errors are of all its vectors, and of the worst vector. The cases:",
        table(("case", "batches", "sentences", "tokens", "max abs error", "relative error"), _cases(report.cases)),
    ]
    return "\n\n".join(parts) + "\n"


def _facts(report: Report) -> list[tuple[str, str]]:
    kind = "stateful" if report.stateful else "stateless"
    levels = "" if report.int8_levels is None else f", 8-bit weights of at most {report.int8_levels}"
    return [
        ("precision", f"{report.precision}, {kind}{levels}"),
        ("hidden states", ", ".join(map(str, report.layers)) or "none"),
        ("mix", ", ".join(f"{weight:.6g}" for weight in report.mix)),
        ("file", f"{report.megabytes:,.1f} MB"),
        ("weights' sha256", report.weights_sha256),
        ("compared with", "the published algorithm in PyTorch, float32"),
        ("compared", f"{report.tokens} tokens in {report.sentences} sentences"),
        ("provider", ", ".join(report.providers)),
        ("processor", report.processor),
        ("versions", ", ".join(f"{name} {version}" for name, version in report.versions.items())),
    ]


def _errors(report: Report) -> list[list[Any]]:
    return [[f"`{error.name}`", *_numbers(error), bound_text(report.bounds[error.name])] for error in report.outputs]


def _numbers(error: OutputError) -> list[Any]:
    errors = (error.max_abs, error.relative, error.worst_vector)
    return [error.vectors, *map(short, errors), f"{error.cosine:.7f}"]


def _cases(cases: Iterable[CaseResult]) -> list[list[Any]]:
    rows: list[list[Any]] = []
    for case in cases:
        most = [max((getattr(error, name) for error in case.outputs), default=0.0) for name in ("max_abs", "relative")]
        rows.append([case.name, case.batches, case.sentences, case.tokens, *map(short, most)])
    return rows
