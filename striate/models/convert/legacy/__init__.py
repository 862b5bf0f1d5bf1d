"""Imports original checkpoints of LLaVA-1.5 and Bunny into transformers' LLaVA form."""
