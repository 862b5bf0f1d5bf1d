"""Checkpoints of LLaVA-1.5 and Bunny as their authors published them, and their way into transformers' LLaVA form."""
