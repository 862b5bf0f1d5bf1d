"""The HTML page: head, header and footer, in one file without network requests."""

from base64 import b64encode
from collections.abc import Sequence
from hashlib import sha256
from importlib.resources import files
from urllib.parse import quote

from striate.artifacts import Region
from striate.reporting.charts.drawing.colours import LIGHT, theme_css
from striate.reporting.charts.drawing.svg import rect
from striate.reporting.data.run_artifacts import RunArtifacts
from striate.reporting.html.contents import contents_bar
from striate.reporting.html.markup import Html, tag
from striate.reporting.html.model_names import others_css
from striate.reporting.sections.data_notes import draw_notes
from striate.reporting.sections.gate_table import draw_gate
from striate.reporting.sections.page_sections import sections_of
from striate.reporting.sections.region_strip import draw_strip
from striate.reporting.sections.verdict import draw_verdict
from striate.storage.local_places import last_part

POLICY = (
    "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src {scripts}; "
    "base-uri 'none'; form-action 'none'"
)
SCRIPTS = ("page", "chooser", "save", "browser")


def draw_page(artifacts: RunArtifacts, regions: Sequence[Region] = ()) -> str:
    """Return the whole page as HTML; `regions` of several strategies are shown side by side."""
    title = artifacts.config.report.title if artifacts.config else "striate run"
    style = Html(_data("page.css").replace("/* theme */", theme_css() + "\n" + others_css(artifacts.labels)))
    code = "\n".join(files("striate.reporting").joinpath("js", f"{name}.js").read_text("utf-8") for name in SCRIPTS)
    script = tag("script", Html(f'"use strict";\n{code}'))
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=POLICY.format(scripts=_hash_of(script))),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("title", title),
        tag("link", rel="icon", href=_icon()),
        tag("style", style),
    )
    sections = sections_of(artifacts, regions)
    # Of a part's sections the first is where the contents bar leads.
    places = {"verdict": "verdict", **{section.part: section.id for section in reversed(sections)}}
    order = dict.fromkeys(("verdict", *(section.part for section in sections)))
    bar = contents_bar({part: places[part] for part in order})
    main = tag("main", [section.draw() for section in sections])
    body = tag("body", _top(artifacts), bar, _header(artifacts, title), main, _footer(), script)
    return f"<!doctype html>\n{tag('html', head, body, lang='en')}\n"


def _hash_of(script: str) -> str:
    """Return the source by which a policy allows this script element alone."""
    code = script.removeprefix("<script>").removesuffix("</script>")
    return f"'sha256-{b64encode(sha256(code.encode()).digest()).decode()}'"


def _data(name: str) -> str:
    return files("striate.reporting").joinpath(name).read_text(encoding="utf-8")


def _icon() -> str:
    stripes = [rect(0, y, 16, 3, rx=1, fill=LIGHT["region"]) for y in (1, 7, 13)]
    icon = tag("svg", stripes, xmlns="http://www.w3.org/2000/svg", viewBox="0 0 16 16")
    return f"data:image/svg+xml,{quote(icon)}"


def _top(artifacts: RunArtifacts) -> Html:
    model = artifacts.config.model.path if artifacts.config else next((r.model for r in artifacts.evals.values()), "")
    theme = tag("button", "◐", id="theme", type="button", aria_label="Switch between light and dark")
    name = tag("span", last_part(model), class_="model")
    return tag("div", tag("span", "striate", class_="mark"), name, theme, class_="top")


def _header(artifacts: RunArtifacts, title: str) -> Html:
    return tag(
        "header",
        tag("h1", title),
        draw_strip(artifacts),
        draw_verdict(artifacts),
        draw_gate(artifacts.gate),
        draw_notes(artifacts),
        id="verdict",
    )


def _footer() -> Html:
    return tag("footer", "Intervals are 95% intervals, over pictures or samples. Layers are counted from 0.")
