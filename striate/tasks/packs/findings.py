"""What makes training data and test packs that can be read mislead all the same: one line each. No torch."""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import lru_cache

from striate.data.pictures import picture_digest, picture_size
from striate.data.samples import PLACEHOLDER, Sample
from striate.data.sources.stored_pictures import Picture
from striate.data.store.sample_columns import pictures_shown
from striate.errors import StriateError
from striate.printable import shown
from striate.tasks.metrics.choices.yes_no import said
from striate.tasks.packs.items import Item, Pack

LETTERED = re.compile(r"\bB\b")


def findings(samples: Sequence[Sample], packs: Sequence[Pack]) -> list[str]:
    """Return a line for everything odd about training samples and the packs that test what they taught.

    Test items of which picture and question are trained on; test pictures that are; items and samples that occur again;
    ids that repeat; right choices that are there twice, letters that no question shows; tasks of one item; tasks in
    which one answer is right for every item. Pictures are the same when their files are.
    """
    _content.cache_clear()
    lines = [*_training_lines(samples), *_overlaps(samples, packs), *_shared_pictures(samples, packs)]
    for pack in packs:
        lines += [*_repeated_items(pack), *_choice_lines(pack), *_task_lines(pack)]
    return lines


def _training_lines(samples: Sequence[Sample]) -> Iterator[str]:
    # Hashes, as there may be a million samples.
    ids, whole, again = set[int](), set[int](), Counter[str]()
    repeated, answers = 0, set[str]()
    for sample in samples:
        if hash(sample.id) in ids:
            again[sample.id] += 1
        ids.add(hash(sample.id))
        key = hash((sample.messages, sample.images))
        repeated += key in whole
        whole.add(key)
        if len(answers) <= 1:
            answers.add(_plain(sample.answer))
    if again:
        yield (
            f"training data: {again.total() + len(again)} samples share their id with another,"
            f" such as {shown(next(iter(again)))}"
        )
    if repeated:
        yield f"training data: {repeated} of {len(samples)} samples repeat another one word for word"
    if len(samples) > 1 and len(answers) == 1:
        yield f"training data: every answer of {len(samples)} samples is {shown(answers.pop())}"


def _overlaps(samples: Sequence[Sample], packs: Sequence[Pack]) -> Iterator[str]:
    """Yield how many items of each pack ask what was trained on; pictures are opened where sizes and question agree."""
    items = [item for pack in packs for item in pack.items]
    asked = {(_plain(_words(item)), _sizes(item.images)) for item in items}
    questions = {question for question, _ in asked}
    trained: dict[tuple[str, tuple[str, ...]], str] = {}
    for sample in samples:
        said_to_it = {_plain(message.text) for message in sample.messages if message.role == "user"}
        for question in questions & said_to_it:
            if (question, _sizes(sample.images)) in asked:
                trained.setdefault((question, _contents(sample.images)), sample.id)
    learned: dict[str, list[tuple[str, str]]] = {}
    for item in items if trained else ():
        source = trained.get((_plain(_words(item)), _contents(item.images)))
        if source is not None:
            learned.setdefault(item.pack, []).append((item.id, source))
    for pack in packs:
        if known := learned.get(pack.name):
            item_id, sample_id = known[0]
            yield (
                f"pack {pack.name}: {len(known)} of {len(pack.items)} items are in the training data, same picture and "
                f"question ({shown(item_id)} is sample {shown(sample_id)}): they measure memory"
            )


def _shared_pictures(samples: Sequence[Sample], packs: Sequence[Pack]) -> Iterator[str]:
    """Yield how many pictures of each pack are in the training data; only files of one size are compared."""
    owners = (
        {picture: index for index, images in enumerate(pictures_shown(samples)) for picture in images} if packs else {}
    )
    asked = [{picture: item.id for item in pack.items for picture in item.images} for pack in packs]
    sizes = {_size(picture) for pictures in asked for picture in pictures}
    trained = {_content(picture): owner for picture, owner in owners.items() if _size(picture) in sizes}
    for pack, pictures in zip(packs, asked, strict=True):
        shared = [picture for picture in pictures if _content(picture) in trained] if trained else []
        if shared:
            item_id, sample_id = pictures[shared[0]], samples[trained[_content(shared[0])]].id
            yield (
                f"pack {pack.name}: {len(shared)} of its {len(pictures)} pictures are in the training data"
                f" ({shown(shared[0].name)} of {shown(item_id)} is that of sample {shown(sample_id)})"
            )


def _repeated_items(pack: Pack) -> Iterator[str]:
    keys = Counter((item.task, item.metric, _words(item), item.images, item.choices) for item in pack.items)
    repeated = len(pack.items) - len(keys)
    if repeated:
        yield f"pack {pack.name}: {repeated} of {len(pack.items)} items repeat another's picture and question"
    renamed = {item.id.rpartition("#")[0] for item in pack.items} & {item.id for item in pack.items}
    if renamed:
        yield f"pack {pack.name}: {len(renamed)} ids repeat, such as {shown(min(renamed))}: the second is ID#2"


def _choice_lines(pack: Pack) -> Iterator[str]:
    chosen = [(item, item.choices[item.answer_index]) for item in pack.items if item.answer_index is not None]
    twice = [item.id for item, right in chosen if item.choices.count(right) > 1]
    if twice:
        yield f"pack {pack.name}: {len(twice)} items offer their right choice twice, such as {shown(twice[0])}"
    hidden = [item.id for item, _ in chosen if item.metric == "letter" and not LETTERED.search(item.question)]
    if hidden:
        yield f"pack {pack.name}: {len(hidden)} questions ask for a letter and show none, such as {shown(hidden[0])}"


def _task_lines(pack: Pack) -> Iterator[str]:
    tasks: dict[tuple[str, str], list[Item]] = {}
    for item in pack.items:
        tasks.setdefault((item.task, item.metric), []).append(item)
    alone = [task for (task, _), items in tasks.items() if len(items) == 1]
    if alone:
        which = (
            f"task {shown(alone[0])} has" if len(alone) == 1 else f"{len(alone)} tasks, such as {shown(alone[0])}, have"
        )
        yield f"pack {pack.name}: {which} one item only: such a score says next to nothing"
    for (task, _), items in tasks.items():
        always = set.intersection(*map(_right, items)) if len(items) > 1 else set()
        if always:
            whole = f"all {len(items)} items of task {shown(task)}"
            yield f"pack {pack.name}: {shown(min(always))} is right for {whole}: a constant scores 100%"


def _right(item: Item) -> set[str]:
    """Return every answer that is right for the item: the letter, yes or no, or the accepted texts."""
    if item.metric == "letter" and item.answer_index is not None:
        return {f"letter {chr(ord('A') + item.answer_index)}"}
    if item.answer_index is not None:
        return {_plain(item.choices[item.answer_index])}
    yes_or_no = item.metric in ("yes_no", "mme")
    return {said(answer) if yes_or_no else _plain(answer) for answer in item.answers}


def _words(item: Item) -> str:
    return item.question or item.context or item.text


def _plain(text: str) -> str:
    return " ".join(text.replace(PLACEHOLDER, " ").lower().split())


def _sizes(pictures: Sequence[Picture]) -> tuple[int, ...]:
    """Return the sizes of the files in bytes; -1 for one that is not there."""
    return tuple(map(_size, pictures))


def _size(picture: Picture) -> int:
    try:
        return picture_size(picture)
    except OSError:
        return -1


def _contents(pictures: Sequence[Picture]) -> tuple[str, ...]:
    """Return what stands for the contents of files; a file that can't be read is like no other."""
    return tuple(_content(path) for path in pictures)


@lru_cache(maxsize=100_000)
def _content(path: Picture) -> str:
    try:
        return picture_digest(path)
    except StriateError:
        return str(path)
