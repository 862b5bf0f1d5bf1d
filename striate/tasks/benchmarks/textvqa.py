"""TextVQA: questions about text in photos, with or without OCR tokens in the prompt."""

from collections.abc import Iterator

from striate.tasks.benchmarks.formats.benchmark import Benchmark
from striate.tasks.benchmarks.formats.prompt_wording import short_answer
from striate.tasks.benchmarks.formats.release import Release
from striate.tasks.packs.items import Item

QUESTIONS = "TextVQA_0.5.1_val.json"
OCR = "TextVQA_Rosetta_OCR_v0.2_val.json"
PICTURES = "train_images/IMAGE_ID.jpg"


def read_textvqa(release: Release) -> Iterator[Item]:
    """Yield the validation questions, scored by VQA accuracy over ten answers (Singh et al. 2019, arXiv 1904.08920)."""
    return _items(release, None)


def read_textvqa_ocr(release: Release) -> Iterator[Item]:
    """Yield the same questions, each followed by the line `Reference OCR token: ...` of LLaVA-1.5's evaluation."""
    return _items(release, _tokens(release))


def _items(release: Release, tokens: dict[str, tuple[str, ...]] | None) -> Iterator[Item]:
    file = release.find(QUESTIONS, "TextVQA_*_val.json")
    pictures = release.place("train_images", "train_val_images/train_images", "images")
    for row in release.document(file).rows("data"):
        name = row.text("image_id")
        question = row.text("question")
        if tokens is not None:
            question = f"{question}\nReference OCR token: {', '.join(tokens.get(name, ()))}"
        yield Item(
            id=row.text("question_id"),
            pack=release.name,
            task=release.name,
            metric="vqa",
            question=short_answer(question),
            image=release.picture(row, pictures, f"{name}.jpg"),
            answers=row.texts("answers"),
        )


def _tokens(release: Release) -> dict[str, tuple[str, ...]]:
    file = release.find(OCR, "TextVQA_Rosetta_OCR_*_val.json")
    rows = release.document(file).rows("data")
    return {row.text("image_id"): row.texts("ocr_tokens") if row.fields.get("ocr_tokens") else () for row in rows}


PAPER = "https://arxiv.org/abs/1904.08920"
SOURCE = "textvqa.org/dataset: validation questions, and the training and validation pictures"
TEXTVQA = Benchmark(
    name="textvqa",
    title="TextVQA",
    summary="text in photos: VQA accuracy, validation set",
    function=read_textvqa,
    paper=PAPER,
    source=SOURCE,
    layout=(QUESTIONS, PICTURES),
)
TEXTVQA_OCR = Benchmark(
    name="textvqa-ocr",
    title="TextVQA with OCR tokens",
    summary="text in photos, with OCR tokens in the prompt: VQA accuracy, validation set",
    function=read_textvqa_ocr,
    paper=PAPER,
    source=f"{SOURCE}, and the Rosetta OCR tokens",
    layout=(QUESTIONS, OCR, PICTURES),
)
