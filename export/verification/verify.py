"""Verification: an exported file, run by ONNX Runtime alone, against the PyTorch reference on ragged real text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from flashelmo.engine.arguments import check, utf8_path_of, whole_number
from flashelmo.engine.errors import FlashElmoError
from flashelmo.engine.model.weights import ElmoModel
from flashelmo.engine.precision import Bound
from flashelmo.engine.system.processor import processor_name
from flashelmo.engine.text.sentences import several, tokenized
from flashelmo.engine.text.spelling import utf8
from flashelmo.export.build import check_is_model
from flashelmo.export.metadata import BUCKET_DATA, Metadata
from flashelmo.export.open_session import ORT_ERRORS, Provider, available_providers, reason
from flashelmo.export.verification.cases import Case, Sentence, in_bucket, make_cases
from flashelmo.export.verification.compare import Comparison, bounds_of_outputs, expected_outputs, expected_states
from flashelmo.export.verification.report import KINDS, CaseResult, OutputError, Report, short
from flashelmo.export.verification.sentences import SENTENCES
from flashelmo.export.verification.session import Session, token_mask
from flashelmo.export.verification.structure import (
    graph_problems,
    metadata_problems,
    one_line,
    read_graph,
    report_problems,
)
from flashelmo.export.verification.truth import Truth
from flashelmo.export.verification.weights import weight_problems

BATCH_SIZES = (1, 3, 8, 32)
PACKAGES = ("flashelmo", "numpy", "onnx", "onnxruntime", "torch")


def verify(
    path: str | Path,
    model: ElmoModel,
    *,
    sentences: Sequence[Sequence[str]] | None = None,
    batch_sizes: Sequence[int] = BATCH_SIZES,
    providers: str | Sequence[Provider] = "cpu",
    bounds: Mapping[str, Bound] | None = None,
    truth: Truth | None = None,
    expected: Metadata | None = None,
) -> Report:
    """Compare every output of an exported file with what the reference computes from the model.

    Every output is compared in every case, token by token, and must be exactly zero where there is no token. The
    correct values follow from the reference's layers and the file's own metadata, which are checked against `model` and
    `expected`; the graph is checked against the contract, and its weights must be those of `model`.

    Args:
        path: the ONNX file, with its external data beside it.
        model: what it was exported from.
        sentences: tokenized text; by default forty sentences of the King James Version. The reference computes each
            once, at some 200 tokens per second at the original size.
        batch_sizes: numbers of sentences in which the text is run, one case each; an unrolled file has its own.
        providers: ONNX Runtime's execution providers, the preferred one first.
        bounds: by precision, instead of those of `PRECISIONS`.
        truth: a `Truth(model)`, to share when several files of one model are verified.
        expected: the intended metadata; the report's digest is not compared.

    Returns:
        The report. If it has not passed, `failures` says why, one line each.

    Raises:
        FlashElmoError: the file was not exported by this package, a provider is missing, or there is no text.
    """
    path = utf8_path_of("path", path)
    text, batch_sizes = _checked_text(SENTENCES if sentences is None else sentences), _checked_sizes(batch_sizes)
    check_is_model(model)
    for name, value, kind in (("truth", truth, Truth), ("expected", expected, Metadata), ("bounds", bounds, Mapping)):
        check(value is None or isinstance(value, kind), name, f"a {kind.__name__} or None", value)
    truth = truth or Truth(model)
    if truth.model is not model:
        raise FlashElmoError("truth: expected that of this model, found another model's")
    wanted = available_providers(providers)
    metadata, problems = _look(path, model, expected)
    limits = bounds_of_outputs(metadata, bounds)
    results: list[CaseResult] = []
    session = _open(path, metadata, wanted, problems) if metadata.config == model.config else None
    if session is not None:
        cases = make_cases(model, text, batch_sizes, metadata.stateful)
        cases = cases if metadata.bucket is None else in_bucket(cases, text, metadata.bucket)
        results = _run_cases(cases, session, truth, problems)
        problems += _not_compared(results, limits) + _broken_bounds(results, limits)
    name = _name_of(path)
    return Report(
        file=name,
        precision=metadata.precision,
        layers=metadata.layers,
        mix=metadata.mix,
        stateful=metadata.stateful,
        int8_levels=metadata.int8_levels,
        weights_sha256=metadata.weights_sha256,
        megabytes=_megabytes(path, metadata),
        providers=tuple(name for name, _ in wanted) if session is None else session.providers,
        processor=processor_name(),
        versions={package: _version(package) for package in PACKAGES},
        bounds=limits,
        cases=tuple(results),
        failures=tuple(f"{name}: {line}" for line in problems),
    )


def _checked_text(sentences: Sequence[Sequence[str]]) -> tuple[Sentence, ...]:
    text = tuple(map(tuple, tokenized("sentences", sentences)))
    utf8([word for sentence in text for word in sentence], "surrogatepass")  # all are texts
    if not any(text):
        raise FlashElmoError(f"sentences: expected some with tokens, found {len(text)} without")
    return text


def _checked_sizes(batch_sizes: Sequence[int]) -> list[int]:
    sizes = [whole_number("batch_sizes", size, 1) for size in several("batch_sizes", batch_sizes)]
    if not sizes:
        raise FlashElmoError("batch_sizes: expected 1 or more, found none")
    return sizes


def _look(path: Path, model: ElmoModel, expected: Metadata | None) -> tuple[Metadata, list[str]]:
    """Return what the file says about itself, and what is wrong with it at rest. Its weights are released on return."""
    graph, metadata = read_graph(path)
    problems = graph_problems(path, graph, metadata) + metadata_problems(metadata, model, expected)
    problems += report_problems(path, metadata)
    if metadata.config == model.config:
        problems += weight_problems(path, graph, metadata, model)
    return metadata, problems


def _open(path: Path, metadata: Metadata, providers: Sequence[Provider], problems: list[str]) -> Session | None:
    """Open the file in ONNX Runtime; return None, and add a problem, if it can't be read."""
    try:
        return Session(path, metadata, providers)
    except FlashElmoError as error:
        problems.append(one_line(error, path).removeprefix(f"{path.name}: "))
        return None


def _run_cases(cases: Sequence[Case], session: Session, truth: Truth, problems: list[str]) -> list[CaseResult]:
    """Return each case's errors. A problem is reported once, with the first case that has it."""
    results = []
    found: dict[str, str] = {}
    # All at once, so that what runs together, and how it rounds, depends only on the text.
    truth.layers(
        [sentence for case in cases if not case.carried for batch in case.batches for sentence in batch.sentences]
    )
    for case in cases:
        comparison = _run_case(case, session, truth)
        for problem in comparison.problems:
            found.setdefault(problem, case.name)
        errors = comparison.errors()
        results.append(CaseResult(case.name, len(case.batches), case.n_sentences, case.n_tokens, errors))
    problems += [f"{problem} ({name})" for problem, name in found.items()]
    return results


def _run_case(case: Case, session: Session, truth: Truth) -> Comparison:
    comparison = Comparison()
    session.reset_state()
    carried = truth.carried(case.batches) if case.carried else None
    for k, batch in enumerate(case.batches):
        try:
            outputs = session.run(batch)
        except ORT_ERRORS as error:
            comparison.problems.append(f"ONNX Runtime failed: {reason(error)}")
            break
        mask = token_mask(batch)
        if carried is None:
            session.reset_state()
            expected = expected_outputs(truth.layers(batch.sentences), mask, session.metadata)
        else:
            layers, states = carried[k]
            expected = expected_outputs(layers, mask, session.metadata) | expected_states(states)
        comparison.add(outputs, expected, mask)
    return comparison


def _not_compared(results: Sequence[CaseResult], limits: Mapping[str, Bound]) -> list[str]:
    """Return what would let a file pass without having been checked."""
    lines = [f"{result.name}: no token was compared" for result in results if not result.tokens]
    compared = {error.name for result in results for error in result.outputs if error.vectors}
    return lines + [f"{name}: nothing was compared" for name in limits if name not in compared]


def _broken_bounds(results: Sequence[CaseResult], limits: Mapping[str, Bound]) -> list[str]:
    """Return a line for each bound that an output breaks, with the case that breaks it most."""
    lines = []
    for name, bound in limits.items():
        errors = [(case.name, error) for case in results for error in case.outputs if error.name == name]
        if errors:
            lines += [f"{name}: {line}" for line in _broken(bound, errors)]
    return lines


def _broken(bound: Bound, errors: Sequence[tuple[str, OutputError]]) -> list[str]:
    lines = []
    for kind in KINDS:
        limit = getattr(bound, kind)
        case, error = max(errors, key=lambda pair: float(getattr(pair[1], kind)))
        most = float(getattr(error, kind))
        if limit is not None and not most < limit:
            lines.append(f"{KINDS[kind]} {short(most, 3)}, expected < {short(limit)} ({case})")
    case, error = min(errors, key=lambda pair: pair[1].cosine)
    if bound.cosine is not None and not error.cosine > bound.cosine:
        lines.append(f"least cosine {error.cosine:.6f}, expected > {bound.cosine:g} ({case})")
    return lines


def _name_of(path: Path) -> str:
    """Return the file's path in an exported folder, or else its name."""
    parts = path.parts[-3:]
    start = max((k for k, folder in enumerate(parts[:-1]) if folder == "onnx"), default=len(parts) - 1)
    return "/".join(parts[start:])


def _megabytes(path: Path, metadata: Metadata) -> float:
    """Return the size of the file and its external data, to a tenth."""
    files = (path, path.with_name(f"{path.name}_data" if metadata.bucket is None else BUCKET_DATA))
    return round(sum(file.stat().st_size for file in files if file.is_file()) / 1e6, 1)


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:  # installed under another name, such as onnxruntime-gpu
        return str(getattr(import_module(package), "__version__", "unknown"))
