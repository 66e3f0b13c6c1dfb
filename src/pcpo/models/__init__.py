"""Adapters over diffusers pipelines, one small file per family."""
