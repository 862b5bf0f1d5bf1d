"""EleutherAI's lm-evaluation-harness and lmms-eval, run on striate's models. Both are optional packages."""
