"""The base of all sections of a run config."""

from typing import Annotated, Any, ClassVar

from pydantic import BaseModel, ConfigDict

# More samples, steps or examples than any run has, that still fit into every counter.
MOST = 10**9
_SPEC = "a SPEC of layers"
LayerSpec = Annotated[str, _SPEC]


class Section(BaseModel):
    """Base of all sections: unknown keys and numbers without a value are errors, instances are immutable.

    `later` names the settings that earlier versions did not have.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
    later: ClassVar[frozenset[str]] = frozenset()

    def __eq__(self, other: object) -> bool:
        """Return whether `other` says the same; under which name an older config said it counts for nothing."""
        return type(self) is type(other) and self.model_dump() == other.model_dump()

    def __hash__(self) -> int:
        """Return a hash of all settings, mappings included."""
        return hash(self.model_dump_json())

    def noted(self) -> dict[str, Any]:
        """Return the settings by name as keys of stages hold them: those that came later only where they were changed.

        So what an earlier version noted of the same settings is still the same.
        """
        found: dict[str, Any] = {}
        for name, value in self.model_dump(mode="json").items():
            own, field = getattr(self, name), type(self).model_fields[name]
            if name not in self.later or own != field.get_default(call_default_factory=True):
                found[name] = own.noted() if isinstance(own, Section) else value
        return found


def specs_of(section: Section) -> dict[str, str]:
    """Return the settings of a section that are SPECs of layers (`LayerSpec`), by name."""
    fields = type(section).model_fields
    return {name: getattr(section, name) for name, field in fields.items() if _SPEC in field.metadata}
