"""The one rule for a path that comes out of a file: it stays inside the folder that the file speaks of."""

from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path

from striate.errors import DataError, StriateError
from striate.printable import clipped, shown


def inside(
    folder: Path,
    *parts: str,
    what: str,
    kind: str = "folder",
    also: Iterable[Path] = (),
    error_class: type[StriateError] = DataError,
    next_step: str = "",
) -> Path:
    """Return the path `parts` in `folder`, which need not exist; the last part is what a file says.

    Links are followed: neither a name such as `../x` or `/x` nor a link leads out. A folder that is a link itself is
    where it leads.

    Args:
        folder: where the path must lie.
        parts: of the path.
        what: whose path it is, the start of errors.
        kind: what `folder` is called in errors.
        also: further folders that a link may lead to.
        error_class: the class of errors.
        next_step: what to do about it, if it is something else than usual.

    Raises:
        StriateError: the path leaves the folder, or is no path at all.
    """
    path, problem = folder.joinpath(*parts), "" if parts[-1].strip() else "is no file name: it is empty"
    real = path
    try:
        path.exists()
        real = path.resolve()
    # A NUL character, half of a surrogate pair, a loop of links, a name too long, a folder that may not be entered.
    except (ValueError, RuntimeError, OSError) as error:
        problem = f"is no file name: {getattr(error, 'strerror', '') or clipped(str(error), 80)}"
    if not problem and any(real.is_relative_to(_real(place.absolute())) for place in (folder, *also)):
        return path
    raise error_class(
        f"{what} {shown(parts[-1], 60)} {problem or f'leaves the {kind}'}",
        f"a path inside {folder}, and no link out of it",
        next_step or "check the name, or copy the file into the folder",
    )


@lru_cache(maxsize=64)
def _real(folder: Path) -> Path:
    return folder.resolve()
