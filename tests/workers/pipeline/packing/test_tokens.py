"""Inputs whose tokens are counted, by a tokenizer.json of the model's."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers

from config.catalog import InvalidCatalog, load_catalog
from workers.commands.doctor import examine_tokenizers
from workers.pipeline.packing.tokens import TextTokenizer, tokenizers_of
from workers.pipeline.packing.too_long import fitted_by_tokens

from .test_packing import DIMENSIONS, calls_of, expected, job, vectors

PROSE = "how many words has a long text of many words "
TEXTS = st.text(st.characters(codec="utf-8") | st.sampled_from("howmanyt é😀\n"), min_size=1, max_size=200)


def written(path: Path, *, specials: bool = False) -> Path:
    """A small byte-level tokenizer, as those of GPT are; with `specials` it marks both ends, as BERT's do."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    marks = ["<s>", "</s>"] if specials else []
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=marks, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator([PROSE] * 20, trainer)
    if specials:
        ids = [(mark, tokenizer.token_to_id(mark)) for mark in marks]
        tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=ids)
        tokenizer.enable_truncation(16)
        tokenizer.enable_padding(length=16)
    tokenizer.save(str(path))
    return path


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(tmp_path_factory.mktemp("tokenizer") / "tokenizer.json")


@pytest.fixture(scope="module")
def tokenizer(file: Path) -> TextTokenizer:
    return TextTokenizer(file)


@pytest.fixture
async def simulator(simulate: Any) -> Any:
    return await simulate(embedding_dimensions=DIMENSIONS)


@pytest.mark.covers("catalog", "models.tokenizer")
async def test_one_token_too_many_is_refused_unsent(
    pipeline_to: Any, simulator: Any, file: Path, tokenizer: TextTokenizer
) -> None:
    tokens = tokenizer.count(PROSE)
    options = {"real_time": True, "tokenizer": str(file)}
    async with pipeline_to(simulator.url, max_tokens_per_input=tokens - 1, **options) as pipeline:
        refused = await pipeline.run(job(1, ["how", PROSE]))
    async with pipeline_to(simulator.url, max_tokens_per_input=tokens, **options) as pipeline:
        taken = await pipeline.run(job(2, ["how", PROSE]))
    assert (refused.error.code, refused.attempts) == ("too_large", 0)
    assert f"input 1 of the job (counted from 0) has {tokens} tokens, and" in refused.error.message
    assert taken.ok
    assert len(await calls_of(simulator)) == 1


async def test_a_long_text_is_truncated_by_its_tokens(
    pipeline_to: Any, simulator: Any, file: Path, tokenizer: TextTokenizer
) -> None:
    text = "😀" * 30
    async with pipeline_to(simulator.url, real_time=True, max_tokens_per_input=41, tokenizer=str(file)) as pipeline:
        result = await pipeline.run(job(1, ["how", text], too_long="truncate"))
    assert vectors(result) == expected(["how", "😀" * 10]), "four tokens each, and none in two"
    assert result.too_long == [{"input": 1, "how": "truncated", "kept": 10, "of": 30}]
    assert tokenizer.count("😀" * 10) == 40


async def test_a_large_job_is_counted_aside(pipeline_to: Any, simulator: Any, file: Path) -> None:
    async with pipeline_to(simulator.url, real_time=True, max_tokens_per_input=50, tokenizer=str(file)) as pipeline:
        result = await pipeline.run(job(1, PROSE * 1_000, too_long="split"))
    assert result.ok and result.too_long[0]["parts"] > 100


@given(text=TEXTS, most=st.integers(4, 40), split=st.booleans())
def test_parts_by_tokens_lose_nothing_and_fit(tokenizer: TextTokenizer, text: str, most: int, split: bool) -> None:
    sent = fitted_by_tokens([text], most, tokenizer, split=split).inputs
    assert all(each and tokenizer.count(each) <= most for each in sent)
    if split or tokenizer.count(text) <= most:
        assert "".join(sent) == text
    else:
        [kept] = sent
        assert text.startswith(kept)


def test_what_a_model_adds_counts_too(tmp_path: Path) -> None:
    tokenizer = TextTokenizer(written(tmp_path / "tokenizer.json", specials=True))
    plain = tokenizer.count(PROSE * 20)
    assert plain == len(tokenizer.starts(PROSE * 20)) + 2 > 16, "neither truncated nor padded"
    sent = fitted_by_tokens([PROSE * 20], 30, tokenizer, split=True).inputs
    assert max(map(tokenizer.count, sent)) <= 30


def test_half_of_a_surrogate_pair_is_counted(tokenizer: TextTokenizer) -> None:
    assert tokenizer.count("how many \ud83d") == tokenizer.count("how many ?")


def catalogue(tmp_path: Path, tokenizer: str, *, most: str = "max_tokens_per_input = 10") -> Path:
    path = tmp_path / "catalogue.toml"
    path.write_text(f'[models.e]\nprovider = "openai"\n{most}\ntokenizer = "{tokenizer}"\n')
    return path


def test_a_path_counts_from_the_catalogues_folder(tmp_path: Path) -> None:
    written(tmp_path / "own.json")
    found = tokenizers_of(load_catalog(catalogue(tmp_path, "own.json")))
    assert list(found) == [str(tmp_path / "own.json")]


def test_a_tokenizer_that_is_missing_is_refused_at_start(tmp_path: Path) -> None:
    path = catalogue(tmp_path, "own.json")
    with pytest.raises(InvalidCatalog, match=r'\[models."e"\] tokenizer: .*own.json can\'t be read .*put the model\'s'):
        tokenizers_of(load_catalog(path))
    (tmp_path / "own.json").write_text("{}")
    with pytest.raises(InvalidCatalog, match=r"is no tokenizer.json that the installed `tokenizers` can read"):
        tokenizers_of(load_catalog(path))


def test_without_the_extra_the_next_step_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written(tmp_path / "own.json")
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(InvalidCatalog, match=r'install it with `pip install "promptmill\[tokenizer\]"`'):
        tokenizers_of(load_catalog(catalogue(tmp_path, "own.json")))


def test_a_tokenizer_without_a_length_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidCatalog, match=r"max_tokens_per_input"):
        load_catalog(catalogue(tmp_path, "own.json", most=""))


def test_doctor_names_a_tokenizer_that_is_missing(tmp_path: Path) -> None:
    catalog = load_catalog(catalogue(tmp_path, "own.json"))
    [finding] = examine_tokenizers(catalog)
    assert (finding.level, "can't be read" in finding.text) == ("refused", True)
    written(tmp_path / "own.json")
    assert [finding.level for finding in examine_tokenizers(catalog)] == ["ok"]
