"""Prompts, the prompt sampler, pictures and files."""
