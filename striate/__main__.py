"""`python -m striate`: the command line, also for launchers that start a module on several processes."""

from __future__ import annotations

from striate.cli import main

if __name__ == "__main__":
    main()
