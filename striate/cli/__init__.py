"""Verbs of the command line: parse, call one stage, print."""

from striate.cli.app import app, main

__all__ = ["app", "main"]
