"""The strip of layers at the top of the page: each layer with its number, and which trained and which went."""

from striate.reporting.data.run_artifacts import RunArtifacts
from striate.reporting.html.markup import Child, Html, tag
from striate.wording import amount, layer_list, percent

# How many numbers have room side by side.
ON_DESK, ON_PHONE = 48, 10


def draw_strip(artifacts: RunArtifacts) -> Html | None:
    """Return the strip with its lists, or None where no region is known."""
    layers, region = artifacts.num_layers, artifacts.region
    if not layers or not region:
        return None
    desk, phone = (-(-layers // most) for most in (ON_DESK, ON_PHONE))
    strip = [_layer(artifacts, layer, layer % desk == 0, layer % phone == 0) for layer in range(layers)]
    return tag(
        "div",
        tag("div", strip, class_="stripes", aria_hidden="true"),
        tag("p", [tag("span", line) for line in _lists(artifacts)], class_="lists"),
        class_="strip",
    )


def _layer(artifacts: RunArtifacts, layer: int, on_desk: bool, on_phone: bool) -> Html:
    inside = artifacts.region is not None and layer in artifacts.region
    kind = "removed" if layer in artifacts.removed else "region" if inside else "frozen"
    return tag("i", str(layer) if on_desk else None, class_=kind if on_phone else f"{kind} desk")


def _lists(artifacts: RunArtifacts) -> list[Child]:
    region, removed = artifacts.region, artifacts.removed
    if region is None:
        return []
    counted = artifacts.train.trainable if artifacts.train else None
    share = f", {percent(counted.trainable / (counted.total or 1))} of the parameters" if counted else ""
    state = "trained" if counted else "in the region"
    of_all = f"{len(region)} of {amount(region.num_layers, 'layer')} {state}{share}: "
    lines: list[Child] = [[tag("i", class_="key region"), of_all, tag("b", layer_list(region.layers) or "none")]]
    if removed:
        lines.append([tag("i", class_="key removed"), f"{len(removed)} removed: ", tag("b", layer_list(removed))])
    return lines
