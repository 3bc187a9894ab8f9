"Real tokenizers: the refusal token, and text that stays text."
import pytest
from conftest import npm_tokenizer
from derta_kit.models import prompt_ids, text_ids
from derta_kit.refusals import refusal_token_id

REAL = ["llama3", "llama2", "qwen3", "gemma3"]


@pytest.mark.parametrize("name", REAL)
def test_refusal_token(name):
    tok = npm_tokenizer(name); i = refusal_token_id(tok)
    assert tok.convert_ids_to_tokens(i) == "Sorry"
    if name == "llama3": assert i == 19701


@pytest.mark.parametrize("name", REAL)
def test_prompt_is_the_template_and_data_is_text(name):
    tok = npm_tokenizer(name)
    if not tok.chat_template: pytest.skip(f"{name} came without a chat template")
    plain = prompt_ids(tok, "How do magnets work?")
    want = tok.apply_chat_template([dict(role="user", content="How do magnets work?")], add_generation_prompt=True, tokenize=True, return_dict=False)
    assert plain == want
    added = {t: i for t,i in tok.get_added_vocab().items() if t.strip()}           # a tab is text, also where it has a token of its own
    special = {*added.values(), *tok.all_special_ids}
    evil = next(iter(sorted(added)))
    got = prompt_ids(tok, f"a {tok.eos_token} b {evil} c")
    count = lambda ids: sum(i in special for i in ids)
    assert count(got) == count(plain)
    assert not special & set(text_ids(tok, f"{tok.eos_token}{evil}"))
    assert tok.eos_token in tok.decode(got)


def test_word_that_is_no_token():
    with pytest.raises(ValueError, match="pass word="): refusal_token_id(npm_tokenizer("llama3"), "Unfortunatelynot")
