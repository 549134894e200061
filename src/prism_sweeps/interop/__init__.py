"""Trained models in folders of their own: ours, LLaVA's as transformers reads it, and the reference's."""
