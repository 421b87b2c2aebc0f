"""Measure, explain and predict how fast tickets run.

Import from the modules; each loads only what it needs:

- `bench` and `gpu_bench` time dense against sparse; `comparison`, `timing`, `peers`, `oracle` and
  `environment` are their parts.
- `profile` measures the steps of the sparse network against the roofline.
- `cost` predicts seconds on this machine from prices; `prices` measures these on the ops of `samples`.
- `predict` predicts seconds on GPUs; `dense_operators` counts what the dense network does there;
  `calibration` fits the predictions for a GPU to what was measured on it.
- `tune` finds what a ticket runs fastest by on a GPU.
- `doctor` tells which backends work on this machine.
"""

__all__ = [
    "bench",
    "calibration",
    "comparison",
    "cost",
    "dense_operators",
    "doctor",
    "environment",
    "gpu_bench",
    "oracle",
    "peers",
    "predict",
    "prices",
    "profile",
    "samples",
    "timing",
    "tune",
]
