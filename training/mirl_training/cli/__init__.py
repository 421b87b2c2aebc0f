"""Define the commands `train`, `eval` and `demo`; heavy modules are imported when a command is called."""
