"""The command `flashelmo perplexity`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from flashelmo.cli.arguments import Device, InputText, Options, Threads
from flashelmo.engine.system.threads import openmp_polls_briefly


def perplexity(
    model: Annotated[Path, typer.Argument(help="Model with its softmax, as `flashelmo train` writes it.")],
    text: InputText,
    options: Options = None,
    tokens: Annotated[
        bool, typer.Option("--tokens", help="Print one line per token: forward and backward log-probability, token.")
    ] = False,
    device: Device = "auto",
    threads: Threads = None,
) -> None:
    """Compute a text's perplexity, forward and backward. Each sentence starts from a fresh state."""
    openmp_polls_briefly()
    from flashelmo.engine.text.windows import read_windows
    from flashelmo.engine.training.corpus import WINDOW_TOKENS, no_token
    from flashelmo.engine.training.language_model import LanguageModel

    found_none = True
    language_model = LanguageModel.load(model, options_file=options, device=device, threads=threads)
    if not tokens:
        scores = language_model.perplexity(text)
        print(f"forward {scores.forward:.3f}\nbackward {scores.backward:.3f}")
        print(f"predictions {scores.predictions}\nunknown {scores.unknown:.4%}")
        return
    for window in read_windows(text, max_sentences=WINDOW_TOKENS, max_tokens=WINDOW_TOKENS):
        sentences = [found for found in map(window.tokens, range(len(window))) if found]
        found_none = found_none and not sentences
        for sentence, (forward, backward) in zip(sentences, language_model.log_probabilities(sentences), strict=True):
            print(f"\t{backward[0]:.6f}\t<S>")
            for token, before, behind in zip(sentence, forward, backward[1:], strict=False):
                print(f"{before:.6f}\t{behind:.6f}\t{token}")
            print(f"{forward[-1]:.6f}\t\t</S>")
    if found_none:
        raise no_token(text)
