"""Publishes a model's folder on the hub: what would go there, and one commit with all of it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, constants
from huggingface_hub.errors import RepositoryNotFoundError

from striate.config import BUILTIN
from striate.errors import ArtifactError, ModelError, first_line
from striate.models.io.adapter_folder import ADAPTER_CONFIG, ADAPTER_WEIGHTS, adapter_config, base_of, is_adapter
from striate.models.io.card.card_facts import CardFacts
from striate.models.io.card.card_metadata import CARD_FILE, license_of
from striate.models.io.card.model_card import card_text
from striate.models.io.card.named_card import A_CARD, metadata_of, named_card
from striate.models.io.model_folder import check_source, model_file
from striate.models.io.weights.safetensors_shards import check_finite_file, read_file, read_shards, weights_of
from striate.models.visual_token_skipping.shift import SHIFT_FILE
from striate.printable import shown
from striate.progress import Progress, Silent, track_bytes
from striate.storage.fingerprints import RECORD_FILE, model_files
from striate.storage.hub_bars import hub_bars_off
from striate.storage.read_files import read_text
from striate.storage.timely import SECONDS, within

REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")
_NOTES = ("LICENSE*", "LICENCE*", "NOTICE*", "COPYING*")
_PROCESSORS = ("processor_config.json", "preprocessor_config.json")
# JSON of models, processors and tokenizers, and striate's own; others in the folder may be anything, secrets too.
_JSON = "*config.json *vocab*.json tokenizer.json added_tokens.json special_tokens_map.json chat_template*.json"
_JSON += " normalizer.json region.json visual_compute.json"
_ATTRIBUTES = ".gitattributes"


@dataclass(frozen=True)
class Upload:
    """What a repository would hold.

    Attributes:
        repository: owner/name.
        files: where each file's content is, or that content itself, by its name.
        license: as the card names it; None where nobody said.
        base_model: the hub id of the model that this one was made from, if it has one.
        left_out: weights that lie in the folder too, and that no loader reads beside these.
    """

    repository: str
    files: Mapping[str, Path | bytes]
    license: str | None
    base_model: str | None
    left_out: tuple[str, ...] = ()

    @property
    def sizes(self) -> dict[str, int]:
        """The bytes of each file."""
        return {
            name: len(content) if isinstance(content, bytes) else content.stat().st_size
            for name, content in self.files.items()
        }


@dataclass(frozen=True)
class Published:
    """What was published: its page, the commit, and the files of earlier commits that it removed."""

    url: str
    commit: str
    removed: tuple[str, ...]


def prepare_upload(
    folder: Path, repository: str, *, licence: str | None = None, base_model: str | None = None
) -> Upload:
    """Return what `repository` would hold of the model in `folder`; nothing is asked of the hub.

    Weights, config, processor, card, region and rule go there, and no other file. The card's code loads from
    `repository`, and an adapter names `base_model` in place of a folder.

    Args:
        folder: of a whole model or an adapter.
        repository: owner/name.
        licence: an id such as `apache-2.0`; None for what the model's card, or its base's, says.
        base_model: hub id; None for what the card or the adapter says.

    Raises:
        ModelError: weights that are not whole, no processor, a folder as base model, or a name that is no hub id.
    """
    _check_name(repository, "the repository")
    if base_model is not None:
        _check_name(base_model, "--base-model")
    check_source(str(folder))
    _check_whole(folder)
    named = base_of(folder) if is_adapter(folder) else None
    weights = _weights(folder)
    files: dict[str, Path | bytes] = {**dict(_files(folder)), **weights}
    if named is not None:
        base_model = base_model or _hub_base(folder, named)
        if base_model != named:
            content = {**adapter_config(folder), "base_model_name_or_path": base_model, "revision": None}
            files[ADAPTER_CONFIG] = (json.dumps(content, indent=2) + "\n").encode()
    fields, card = _card(folder, repository, licence, base_model, named)
    files[CARD_FILE] = card.encode()
    named_files = dict(sorted(files.items()))
    return Upload(repository, named_files, fields.get("license"), fields.get("base_model"), _unread(folder, weights))


def publish(
    upload: Upload, *, private: bool = False, overwrite: bool = False, progress: Progress | None = None
) -> Published:
    """Return where `upload` is, after one commit that holds all of it; a repository that is not there yet is made.

    Args:
        upload: what to publish.
        private: whether a new repository is shown to its owner alone.
        overwrite: replace what the repository holds; files that are not in `upload` go in the same commit.
        progress: told how many bytes are there.

    Raises:
        ArtifactError: the hub can't be reached or refuses, or the repository holds files already.
        ModelError: weights that are no numbers.
    """
    api, repository = HfApi(), upload.repository
    _check_owner(api, repository)
    check_numbers(upload)
    with _asking(repository, "look at it"):
        there = _repository(api, repository)
    names = _names(there)
    if names and not overwrite:
        raise ArtifactError(
            f"{repository} is on the hub already, with {len(names)} files",
            "a new or empty repository",
            "choose another name, or replace what it holds with --overwrite",
        )
    if private and there is not None and not there.private:
        raise ArtifactError(
            f"{repository} is on the hub already, and everybody sees it: --private makes new repositories private",
            "a new name, or a repository that is private already",
            "choose another name, make that one private in its settings on the hub, or leave --private out",
        )
    with _asking(repository, "make it"):
        if there is None:
            api.create_repo(repository, private=private)
            there = _repository(api, repository)
    removed = sorted(names - set(upload.files))
    with _asking(repository, "publish all files in one commit"), hub_bars_off():
        commit = _commit(api, upload, removed, there.sha if there else None, progress or Silent())
    return Published(f"{constants.ENDPOINT}/{repository}", commit, tuple(removed))


def check_numbers(upload: Upload) -> None:
    """Return if all weights of `upload` are finite numbers; every file is read once, a buffer at a time.

    Raises:
        ModelError: one is infinite or no number.
    """
    for content in upload.files.values():
        if isinstance(content, Path) and content.suffix == ".safetensors":
            check_finite_file(content)


def _commit(api: HfApi, upload: Upload, removed: Sequence[str], parent: str | None, progress: Progress) -> str:
    """Return the commit that holds all of `upload`: `upload_folder` may split a large folder into several."""
    added = {name: CommitOperationAdd(name, content) for name, content in upload.files.items()}
    operations: list[Any] = [*added.values(), *(CommitOperationDelete(name) for name in removed)]
    sizes, sent = upload.sizes, 0
    try:
        with track_bytes(progress, f"push {upload.repository}", sum(sizes.values())) as advance:
            # Weights go ahead, one by one, so that the bar moves; nobody sees them before the commit.
            for name in (name for name in added if name.endswith(".safetensors")):
                api.preupload_lfs_files(upload.repository, [added[name]], free_memory=False)
                advance(sizes[name])
                sent += sizes[name]
            done = api.create_commit(
                upload.repository, operations, commit_message="Add model", parent_commit=parent, num_threads=4
            )
            advance(sum(sizes.values()) - sent)
        return str(done.oid)
    except Exception:
        # The hub may have done it, and only its answer was lost.
        now = _repository(api, upload.repository)
        if now is None or now.sha == parent or not set(upload.files) <= _names(now):
            raise
        return str(now.sha)


def _names(repository: Any) -> set[str]:
    return {file.rfilename for file in repository.siblings or ()} - {_ATTRIBUTES} if repository else set()


@contextmanager
def _asking(repository: str, what: str) -> Iterator[None]:
    try:
        yield
    # What a connection raises depends on the library below, and on its version.
    except Exception as error:
        raise ArtifactError(
            f"{repository}: the hub did not {what}: {first_line(error)}; nothing of the model was published",
            "a hub that answers, and a repository that you may write to",
            "check the network and `hf auth login`, and run the same command again",
        ) from error


def licence_on_hub(base_model: str) -> str | None:
    """Return the licence that the card of a model on the hub names; None where the hub does not say."""
    try:
        data = HfApi().model_info(base_model, timeout=SECONDS).card_data
    # A field that people can fill in: its lack is told, and costs nothing.
    except Exception:
        return None
    return _text(data.get("license")) if data else None


def _check_name(name: str, what: str) -> None:
    if not REPOSITORY.fullmatch(name):
        raise ModelError(
            f"{what} {shown(name)} is no name of a repository",
            "owner/name: letters, digits, '-', '_' and '.'",
            "for example user/my-lvlm",
        )


def _check_whole(folder: Path) -> None:
    """Raise for a folder that would be half a model.

    Raises:
        ModelError: it would.
    """
    if is_adapter(folder):
        if not (folder / ADAPTER_WEIGHTS).is_file():
            raise ModelError(f"{folder} has no {ADAPTER_WEIGHTS}", "a whole adapter folder", "copy it again")
        read_file(folder / ADAPTER_WEIGHTS)
    else:
        read_shards(folder)
    if not any((folder / name).is_file() for name in _PROCESSORS):
        raise ModelError(
            f"{folder} has no processor: nobody could ask the model",
            f"{' or '.join(_PROCESSORS)}, and the tokenizer's files, beside the weights",
            "save the processor of the base model there with its save_pretrained",
        )


def _weights(folder: Path) -> dict[str, Path]:
    """Return the files of weights that are read of the folder, an index of theirs among them, by their names there."""
    if is_adapter(folder):
        files = [folder / ADAPTER_WEIGHTS]
    else:
        files = [weights_of(folder), *(tensor.file for tensor in read_shards(folder).values())]
    if (folder / SHIFT_FILE).is_file():
        files.append(folder / SHIFT_FILE)
    named = {file.absolute().relative_to(folder.absolute()).as_posix() for file in files}
    return {name: model_file(folder, name, "weights") for name in named}


def _unread(folder: Path, weights: Mapping[str, Path]) -> tuple[str, ...]:
    names = (file.relative_to(folder).as_posix() for file in model_files(folder) if _holds_weights(file))
    return tuple(sorted(name for name in set(names) if name not in weights))


def _holds_weights(file: Path) -> bool:
    return file.name.endswith((".safetensors", ".bin", ".index.json"))


def _files(folder: Path) -> Iterator[tuple[str, Path]]:
    """Yield what goes with the weights."""
    notes = (file for pattern in _NOTES for file in folder.glob(pattern) if file.is_file())
    for file in (*model_files(folder), *notes):
        name = file.relative_to(folder).as_posix()
        ours = file.suffix != ".json" or any(file.match(pattern) for pattern in _JSON.split())
        # What only the run itself reads; and of weights those that are read are known.
        if ours and name != RECORD_FILE and not _holds_weights(file):
            yield name, model_file(folder, name, "the model's file")


def _hub_base(folder: Path, named: str) -> str:
    if _is_hub_id(named):
        return named
    raise ModelError(
        f"the adapter in {folder} has its base model in {named}, where nobody else finds it",
        "an adapter of a model that is on the hub, or a whole model",
        "name that model with --base-model owner/name, or write a whole one first: striate merge",
    )


def _card(
    folder: Path, repository: str, licence: str | None, base_model: str | None, named: str | None
) -> tuple[dict[str, str | None], str]:
    """Return licence and base model, as far as they are known, and the card that tells them."""
    file = folder / CARD_FILE
    if file.is_file():
        text = read_text(model_file(folder, CARD_FILE, "the model's file"), A_CARD)
    else:
        facts = CardFacts(base=base_model or named or folder.name, method="", region=None, adapter=named is not None)
        text = card_text(facts, folder.name, folder)
    known = metadata_of(text)
    # Other trainers write the folder that the base lay in.
    written = _text(known.get("base_model"))
    base_model = base_model or (written if written and _is_hub_id(written) else None)
    licence = licence or _text(known.get("license")) or (license_of(base_model) if base_model else None)
    fields: dict[str, str | None] = {"license": licence, "base_model": base_model}
    if base_model and "base_model_relation" not in known:
        fields["base_model_relation"] = "adapter" if named else "finetune"
    given = {name: value for name, value in fields.items() if value or name in known}
    names = (Path(named).name, BUILTIN) if named and not _is_hub_id(named) else ()
    renamed = {name: base_model for name in names if base_model}
    return given, named_card(text, repository, given, renamed)


def _is_hub_id(name: str) -> bool:
    return bool(REPOSITORY.fullmatch(name)) and not Path(name).exists()


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def _check_owner(api: HfApi, repository: str) -> None:
    """Raise unless this person may publish under the owner's name, before anything is sent."""
    try:
        me = within(SECONDS, api.whoami, constants.ENDPOINT)
    except Exception as error:
        raise ArtifactError(
            f"{constants.ENDPOINT} does not say who you are: {first_line(error)}",
            "a hub that answers, and a token that may write",
            "check the network, and log in with `hf auth login`",
        ) from error
    owners = [me.get("name"), *(one.get("name") for one in me.get("orgs") or ())]
    if repository.partition("/")[0] not in owners:
        raise ArtifactError(
            f"you are {me.get('name')} on the hub, and may not publish as {repository.partition('/')[0]}",
            ", ".join(f"{owner}/{repository.partition('/')[2]}" for owner in owners if owner),
            "choose one of these, or log in as another with `hf auth login`",
        )


def _repository(api: HfApi, repository: str) -> Any:
    """Return what the hub says of a repository, or None where it has none of that name."""
    try:
        return api.model_info(repository, timeout=SECONDS)
    except RepositoryNotFoundError:
        return None
