"""Torch only: backbones, augmentations and training loops that run in a notebook, without Ray."""
