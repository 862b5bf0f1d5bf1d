"""Renders a chat template once, in a process of its own with little time and memory; run by `template_limits`."""

import json
import re
import sys
from contextlib import suppress
from typing import Any

from jinja2.sandbox import ImmutableSandboxedEnvironment

GENERATION = re.compile(r"\{%-?\s*(?:end)?generation\s*-?%\}")
TOO_LARGE, MEMORY = 3, 2**29


def bound(seconds: int) -> None:
    """Bound the time and memory of this process, where the system can."""
    with suppress(ImportError, ValueError, OSError):
        import resource

        resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 1))
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))


def stopped(message: str) -> None:
    """Raise, as a template asks for it."""
    raise ValueError(message)


def render(task: dict[str, Any]) -> int:
    """Return the exit code: `TOO_LARGE`, or 0, for an ordinary fault too."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.globals.update(raise_exception=stopped, strftime_now=lambda form: form)
    tokens = {"bos_token": "<s>", "eos_token": "</s>"}
    try:
        template = environment.from_string(GENERATION.sub("", task["template"]))
        for count in (1, 2, 3):
            shown = template.render(messages=task["messages"][:count], add_generation_prompt=count != 2, **tokens)
            if len(shown) > task["most"]:
                return TOO_LARGE
    except MemoryError:
        return TOO_LARGE
    # What is wrong with it is said where it is rendered.
    except Exception:
        return 0
    return 0


if __name__ == "__main__":
    given = json.load(sys.stdin)
    bound(given["seconds"])
    sys.exit(render(given))
