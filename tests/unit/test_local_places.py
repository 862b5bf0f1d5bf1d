"""Text without the places on this disk."""

import pytest

from striate.storage.local_places import portable_command, portable_text, without_places


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("reads /home/me/data/a.json, /x", "reads a.json, x"),
        ("region=/home/me/r.json", "region=r.json"),
        ("https://example.org/a/b and 1/2, and/or, hf:me/data, ./a/b, ../c", None),
        ("a / b", None),
    ],
)
def test_paths_in_a_text_are_cut_to_their_last_part(text: str, shown: str | None) -> None:
    assert portable_text(text) == (shown or text)


def test_a_command_keeps_its_words() -> None:
    command = "striate run '/home/me/my runs/a.yaml' --out runs/a --set select.region=/tmp/x/region.json"
    assert portable_command(command) == "striate run a.yaml --out runs/a --set select.region=region.json"
    assert portable_command("striate 'run /a/b") == "striate 'run b"


def test_every_text_in_a_config_is_looked_at() -> None:
    config = {"data": {"train": ["/home/me/photos", "hf:me/data"], "mix": {"/home/me/photos": 2}}, "seed": 1}
    assert without_places(config) == {"data": {"train": ["photos", "hf:me/data"], "mix": {"photos": 2}}, "seed": 1}


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("mine:/home/me/packs/shapes", "mine:shapes"),
        ("lm-eval:piqa,boolq@/home/me/tasks", "lm-eval:piqa,boolq@tasks"),
        ("https://example.org/a/b", None),
        ("hf:me/data", None),
        ("a word: /home", None),
    ],
)
def test_a_path_behind_a_name_is_cut_too(text: str, shown: str | None) -> None:
    assert without_places([text]) == [shown or text]
