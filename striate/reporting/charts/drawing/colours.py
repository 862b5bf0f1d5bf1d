"""The colours of the page, light and dark, and the ramp that layer scores are painted with."""

STEPS = 33
LIGHT = {
    "paper": "#fdfdfc",
    "raised": "#f5f6f7",
    "ink": "#15181d",
    "muted": "#5a6370",
    "line": "#e1e4e8",
    "layer": "#d9dee5",
    "region": "#2b5bd7",
    "start": "#9aa4b2",
    "tuned": "#2b5bd7",
    "pruned": "#d9661f",
    "right": "#1b7a43",
    "wrong": "#b4332a",
    "s0": "#15181d",
    "s1": "#2b5bd7",
    "s2": "#d9661f",
    "s3": "#1b8a6b",
    "s4": "#9147c2",
    "s5": "#b08a00",
}
DARK = {
    "paper": "#101317",
    "raised": "#181c22",
    "ink": "#e7eaee",
    "muted": "#9ba5b3",
    "line": "#272d35",
    "layer": "#2f3640",
    "region": "#7ea6ff",
    "start": "#788394",
    "tuned": "#7ea6ff",
    "pruned": "#f29150",
    "right": "#66c68e",
    "wrong": "#f28b80",
    "s0": "#e7eaee",
    "s1": "#7ea6ff",
    "s2": "#f29150",
    "s3": "#5fd0ae",
    "s4": "#c79bf0",
    "s5": "#dcbc4c",
}
LIGHT_RAMP = ("#f1eee2", "#9ccfbf", "#34899a", "#10335c")
DARK_RAMP = ("#1d242b", "#1f5560", "#4ba39a", "#e2f3c8")
LIGHT_SIDES = ("#a8480c", "#f0b48c", "#f3f2ee", "#9db8ee", "#1d479f")
DARK_SIDES = ("#ffb07a", "#8a4a1c", "#22272e", "#2c4b8a", "#a9c4ff")


def theme_css() -> str:
    """Return the custom properties and the ramp's classes for both colour schemes."""
    light, dark = _scheme(LIGHT, LIGHT_RAMP, LIGHT_SIDES), _scheme(DARK, DARK_RAMP, DARK_SIDES)
    names = [f"{letter}{step}" for letter in "hd" for step in range(STEPS)]
    classes = "".join(f".{name}{{fill:var(--{name});background:var(--{name})}}" for name in names)
    return (
        f":root{{color-scheme:light;{light}}}"
        # On the screen alone: on paper the dark scheme would print pale text.
        f"@media screen{{:root[data-theme=dark]{{color-scheme:dark;{dark}}}}}"
        f"@media screen and (prefers-color-scheme:dark){{:root:not([data-theme=light]){{color-scheme:dark;{dark}}}}}"
        f"{classes}"
    )


def step_of(share: float) -> int:
    """Return the ramp step for a share from 0 (lowest) to 1 (highest)."""
    return round(min(1.0, max(0.0, share)) * (STEPS - 1))


def _scheme(colours: dict[str, str], ramp: tuple[str, ...], sides: tuple[str, ...]) -> str:
    named = [f"--{name}:{value}" for name, value in colours.items()]
    for letter, stops in (("h", ramp), ("d", sides)):
        named += [f"--{letter}{step}:{_mix(stops, step / (STEPS - 1))}" for step in range(STEPS)]
    return ";".join(named)


def _mix(ramp: tuple[str, ...], share: float) -> str:
    place = share * (len(ramp) - 1)
    left = min(int(place), len(ramp) - 2)
    pairs = zip(_channels(ramp[left]), _channels(ramp[left + 1]), strict=True)
    return "#" + "".join(f"{round(a + (b - a) * (place - left)):02x}" for a, b in pairs)


def _channels(colour: str) -> tuple[int, int, int]:
    return int(colour[1:3], 16), int(colour[3:5], 16), int(colour[5:7], 16)
