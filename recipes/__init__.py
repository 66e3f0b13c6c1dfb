"""Recipes that rebuild the files shipped in ``pcpo.assets``."""
