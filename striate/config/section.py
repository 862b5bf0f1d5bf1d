"""The base of all sections of a run config."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict

# More samples, steps or examples than any run has, that still fit into every counter.
MOST = 10**9
_SPEC = "a SPEC of layers"
LayerSpec = Annotated[str, _SPEC]


class Section(BaseModel):
    """Base of all sections: unknown keys and numbers without a value are errors, instances are immutable."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


def specs_of(section: Section) -> dict[str, str]:
    """Return the settings of a section that are SPECs of layers (`LayerSpec`), by name."""
    fields = type(section).model_fields
    return {name: getattr(section, name) for name, field in fields.items() if _SPEC in field.metadata}
