"""Measure the Triton kernels on a GPU within eight minutes, stage by stage.

    make bench-gpu

Nothing is installed and nothing is downloaded: PyTorch with a GPU, Triton, NumPy, safetensors and pytest must
be there. Each stage is a process of its own with a limit of its own, so an error of CUDA ends that stage
alone. Every figure is written to ``figures.jsonl`` as soon as it is known. The same command, started again,
skips the stages that are finished for the same code, versions and GPU.
"""
