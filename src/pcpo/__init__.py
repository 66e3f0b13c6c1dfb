"""Align text-to-image diffusion and flow models with rewards by proportionate credit policy optimization."""

__version__ = "0.1.0"
