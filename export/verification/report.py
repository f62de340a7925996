"""The verification report: how far an exported file is from the reference, as data, JSON, a digest and Markdown."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

from flashelmo.engine.precision import Bound, PrecisionName

KINDS = {"max_abs": "max abs error", "relative": "relative error", "worst_vector": "worst vector"}
ERRORS = ("output", "vectors", *KINDS.values(), "least cosine", "bound")


@dataclass(frozen=True)
class OutputError:
    """The distance of one output's vectors from the reference's.

    Attributes:
        name: of the output.
        vectors: how many were compared.
        max_abs: largest absolute difference; infinite if a value is not finite.
        relative: ||a - b|| / ||b|| over all vectors.
        worst_vector: the largest of any vector.
        cosine: least cosine of a vector and the reference's.
    """

    name: str
    vectors: int
    max_abs: float
    relative: float
    worst_vector: float
    cosine: float


@dataclass(frozen=True)
class CaseResult:
    """One case: what was embedded, and each output's error in it."""

    name: str
    batches: int
    sentences: int
    tokens: int
    outputs: tuple[OutputError, ...]


@dataclass(frozen=True)
class Report:
    """What the verification of one file found.

    Attributes:
        file: its path in the exported folder.
        precision, layers, mix, stateful, int8_levels, weights_sha256: what the file's metadata say.
        megabytes: size of the file and its external data.
        providers: those that ONNX Runtime used.
        processor: its name.
        versions: of the packages involved.
        bounds: the bound of each output except the mask, which must be equal.
        cases: every case, with its errors.
        failures: a line for each failure, beginning with `file`.
    """

    file: str
    precision: PrecisionName
    layers: tuple[int, ...]
    mix: tuple[float, ...]
    stateful: bool
    int8_levels: int | None
    weights_sha256: str
    megabytes: float
    providers: tuple[str, ...]
    processor: str
    versions: Mapping[str, str]
    bounds: Mapping[str, Bound]
    cases: tuple[CaseResult, ...]
    failures: tuple[str, ...]

    @property
    def passed(self) -> bool:
        """Whether tokens were compared and nothing failed."""
        return not self.failures and self.tokens > 0

    @property
    def sentences(self) -> int:
        """The number of sentences compared; each counts as often as it was compared."""
        return sum(case.sentences for case in self.cases)

    @property
    def tokens(self) -> int:
        """The number of tokens compared; each counts as often as it was compared."""
        return sum(case.tokens for case in self.cases)

    @property
    def outputs(self) -> tuple[OutputError, ...]:
        """Each output's worst errors in any case; without outputs that were never compared."""
        errors = [error for case in self.cases for error in case.outputs]
        compared = [name for name in self.bounds if any(error.name == name for error in errors)]
        return tuple(worst(name, [error for error in errors if error.name == name]) for name in compared)

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-ready dictionary; `passed`, totals and worst errors are derived, and added for readers."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        values["bounds"] = {name: asdict(bound) for name, bound in self.bounds.items()}
        values["cases"] = [
            {**asdict(case), "outputs": [_error_to_dict(error) for error in case.outputs]} for case in self.cases
        ]
        summary = {"passed": self.passed, "sentences": self.sentences, "tokens": self.tokens}
        return {**values, **summary, "outputs": [_error_to_dict(error) for error in self.outputs]}

    def to_json(self) -> str:
        """Return the text of the file beside the model."""
        return json.dumps(self.to_dict(), ensure_ascii=False, allow_nan=False, indent=1) + "\n"

    def digest(self) -> str:
        """Return the sha256 of `to_json` in UTF-8, which the model's metadata hold as `report_sha256`."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()

    def to_markdown(self) -> str:
        """Return the page for people."""
        verdict = [
            "Passed: weights are the model's, masks are equal, padding is zero, everything is finite, and every error "
            "is within its bound."
        ]
        if not self.passed:
            verdict = ["**Failed.**", "", *(f"- {line}" for line in self.failures)]
        parts = [
            f"# Verification of {self.file}",
            "\n".join(verdict),
            table(("what", "found"), _facts(self)),
            table(ERRORS, _errors(self)),
            "Each output's worst case; relative errors are of all its vectors, and of the worst vector. The cases:",
            table(("case", "batches", "sentences", "tokens", "max abs error", "relative error"), _cases(self.cases)),
        ]
        return "\n\n".join(parts) + "\n"


def worst(name: str, errors: Iterable[OutputError]) -> OutputError:
    """Return the worst of each kind of error."""
    errors = list(errors)
    return OutputError(
        name,
        vectors=sum(error.vectors for error in errors),
        max_abs=max(error.max_abs for error in errors),
        relative=max(error.relative for error in errors),
        worst_vector=max(error.worst_vector for error in errors),
        cosine=min(error.cosine for error in errors),
    )


def _error_to_dict(error: OutputError) -> dict[str, Any]:
    """Convert an error for JSON, which has no infinity: it becomes text."""
    return {name: str(value) if value in (math.inf, -math.inf) else value for name, value in asdict(error).items()}


def short(value: float, digits: int = 2) -> str:
    """Return a number as written by hand, 3.1e-3: with a power of ten below 0.01 and from 1000 on."""
    if value == 0 or 0.01 <= abs(value) < 1000 or not math.isfinite(value):
        return f"{value:.{digits}g}"
    mantissa, _, exponent = f"{value:.{digits - 1}e}".partition("e")
    return f"{mantissa.removesuffix('.0')}e{int(exponent)}"


def table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Return a table; columns of numbers are aligned right."""
    rows = [[str(value) for value in row] for row in rows]
    numbers = [bool(rows) and all(row[k][:1].isdigit() for row in rows) for k in range(len(header))]
    lines = [header, ["---:" if number else "---" for number in numbers], *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def bound_text(bound: Bound) -> str:
    """Return a bound as text, such as "max abs error < 2e-5, cosine > 0.98"."""
    limits = {name: getattr(bound, kind) for kind, name in KINDS.items()}
    parts = [f"{name} < {short(limit)}" for name, limit in limits.items() if limit is not None]
    return ", ".join(parts if bound.cosine is None else [*parts, f"cosine > {bound.cosine:g}"])


def _facts(report: Report) -> list[tuple[str, str]]:
    kind = "stateful" if report.stateful else "stateless"
    levels = "" if report.int8_levels is None else f", 8-bit weights of at most {report.int8_levels}"
    return [
        ("precision", f"{report.precision}, {kind}{levels}"),
        ("hidden states", ", ".join(map(str, report.layers)) or "none"),
        ("mix", ", ".join(f"{weight:.6g}" for weight in report.mix)),
        ("file", f"{report.megabytes:,.1f} MB"),
        ("model's sha256", report.weights_sha256),
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
