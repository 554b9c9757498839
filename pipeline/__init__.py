"""The stages of a run, the run directory between them, and the numpy kernels they call."""
