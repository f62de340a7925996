"""Switches of the CUDA runtime that change its speed and never its results."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class CudaSettings:
    """What is used; the benchmark times each switch against its opposite (`benchmarks/gpu/`).

    Attributes:
        graphs: replay small windows as captured CUDA graphs.
        persistent: depths of few rows in one launch of cooperating programs, in windows that are launched ahead.
        dependent: launch a step's kernels before the one before has ended (programmatic dependent launch, sm_90 on):
            see `kernels.lstm.run.LaunchOptions` for what was measured.
        keep_weights: ask the L2 cache to keep the weights that steps of few rows read again and again, where they are
            launched one by one; persistent launches always ask.
        graph_rows: windows with more rows at some depth are launched ahead: a step then outlasts its launches.
        graph_depths: windows of more time steps are launched ahead.
        max_graphs: kept; the least recently replayed gives way.
    """

    graphs: bool = True
    persistent: bool = True
    dependent: bool = False
    keep_weights: bool = True
    graph_rows: int = 512
    graph_depths: int = 128
    max_graphs: int = 64
