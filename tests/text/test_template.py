from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from leoserve.text.template import ChatTemplate, TemplateError
from leoserve.text.tokenizer import Tokenizer
from tests.text.conftest import MAKERS, sentencepiece_like, write_checkpoint

CHAT = [
    {"role": "system", "content": "Sei freundlich."},
    {"role": "user", "content": "Hallo  "},
    {"role": "assistant", "content": "Guten Tag."},
]
TRIMMING = "{% for m in messages %}[{{ m.role }}] {{ m.content | trim }}</s>{% endfor %}"
LOOPS = """
{%- for message in messages if message.role != 'system' %}
    {%- if loop.index > 5 %}{% break %}{% endif %}
    {%- if message.role == 'user' %}
        {{- bos_token + '[INST] ' + message.content + ' [/INST]' }}
    {%- else %}
        {%- generation %}{{ message.content + eos_token }}{% endgeneration %}
    {%- endif %}
{%- endfor %}
{%- set ns = namespace(count=0) %}{% for m in messages %}{% set ns.count = ns.count + 1 %}{% endfor %}
{{ ns.count }} {{ {'ä': [1]} | tojson }} {{ tools is none }} {{ messages | length }} {{ '%s' % 'x' }} {{ 'ab' * 2 }}
"""


@pytest.fixture(scope="module")
def folder(folders: dict[str, Path]) -> Path:
    return folders["llama2"]


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> Tokenizer:
    return Tokenizer.load(folder)


def render(template: ChatTemplate, messages: list[dict[str, Any]], **options: Any) -> str:
    given = {"add_generation_prompt": False, "continue_final_message": False, "extra": {}} | options
    return template.render(messages, **given).text


def checkpoint(folder: Path, architecture: str, **settings: Any) -> Path:
    write_checkpoint(folder, sentencepiece_like(legacy=True), **settings)
    (folder / "config.json").write_text(json.dumps({"architectures": [architecture]}))
    return folder


@pytest.mark.parametrize(("architecture", "blank"), [("LlamaForCausalLM", "\n"), ("MistralForCausalLM", "")])
def test_chatml_is_built_in_as_the_model_cards_have_it(tmp_path: Path, architecture: str, blank: str) -> None:
    folder = checkpoint(tmp_path, architecture)
    template = ChatTemplate.load(folder, None, Tokenizer.load(folder))
    assert template.origin == "built-in ChatML"
    assert render(template, CHAT[:2], add_generation_prompt=True) == (
        f"<|im_start|>system\nSei freundlich.<|im_end|>\n{blank}"
        "<|im_start|>user\nHallo  <|im_end|>\n<|im_start|>assistant\n"
    )


def test_nothing_is_added_to_a_chat_without_system_message(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path, "LlamaForCausalLM")
    template = ChatTemplate.load(folder, None, Tokenizer.load(folder))
    assert render(template, CHAT[1:2]) == "<|im_start|>user\nHallo  <|im_end|>\n"


def test_a_developer_message_is_a_system_message(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path, "LlamaForCausalLM")
    template = ChatTemplate.load(folder, None, Tokenizer.load(folder))
    assert render(template, [{"role": "developer", "content": "x"}]) == "<|im_start|>system\nx<|im_end|>\n\n"


def test_a_base_model_says_what_to_do(tmp_path: Path) -> None:
    MAKERS["llama2"]().save(str(tmp_path / "tokenizer.json"))
    template = ChatTemplate.load(tmp_path, None, Tokenizer.load(tmp_path))
    assert template.missing
    assert "--chat-template" in template.missing
    with pytest.raises(TemplateError, match="--chat-template"):
        render(template, CHAT)


@pytest.mark.parametrize("source", [TRIMMING, LOOPS])
@pytest.mark.parametrize("continues", [False, True])
def test_a_template_renders_as_transformers_renders_it(
    folder: Path, tokenizer: Tokenizer, source: str, continues: bool
) -> None:
    from transformers import AutoTokenizer

    truth = AutoTokenizer.from_pretrained(str(folder))
    expected = truth.apply_chat_template(CHAT, tokenize=False, chat_template=source, continue_final_message=continues)
    template = ChatTemplate.load(folder, source, tokenizer)
    assert render(template, CHAT, continue_final_message=continues) == expected


def test_a_continued_message_keeps_its_last_space(folder: Path, tokenizer: Tokenizer) -> None:
    template = ChatTemplate.load(folder, None, tokenizer)
    chat = [*CHAT[:2], {"role": "assistant", "content": "Es war "}]
    assert render(template, chat, continue_final_message=True).endswith("<|im_start|>assistant\nEs war ")


@settings(max_examples=100, deadline=None)
@given(content=st.text("a<|im_end>s/\uf8ff \n😀", max_size=20))
def test_the_text_shows_a_message_as_it_was_written(folder: Path, tokenizer: Tokenizer, content: str) -> None:
    template = ChatTemplate.load(folder, None, tokenizer)
    assert render(template, [{"role": "user", "content": content}]) == f"<|im_start|>user\n{content}<|im_end|>\n"


def test_a_control_token_that_a_template_and_a_message_would_make_together_stays_text(
    folder: Path, tokenizer: Tokenizer
) -> None:
    for source, content in (
        ("a<{{ messages[0].content }}b", "|im_end|>"),
        ("a<|im_{{ messages[0].content | trim }}b", " end|> "),
        ("a{{ messages[0].content }}|im_end|>b", "<"),
        ("a{{ messages[0].content | trim }}end|>b", "x<|im_ "),
        ("a<|im_{{ messages[0].content }}|>b", "end"),
        ("a<|im_{{ messages[0].name }}b", "x"),
    ):
        template = ChatTemplate.load(folder, source, tokenizer)
        message = [{"role": "user", "content": content, "name": "x<|im_end|>"}]
        prompt = template.render(message, add_generation_prompt=False, continue_final_message=False, extra={})
        ids = tokenizer.encode_prompt(prompt)
        assert tokenizer.token_id("<|im_end|>") not in ids
        assert tokenizer.decode(ids, skip_special_tokens=False).removeprefix("<s> ") == prompt.text


def test_control_tokens_in_other_fields_and_in_extra_stay_text(folder: Path, tokenizer: Tokenizer) -> None:
    source = "{{ messages[0].tool_calls[0].function.arguments }} {{ messages[0].role }} {{ hint.text }}<|im_end|>"
    template = ChatTemplate.load(folder, source, tokenizer)
    message = {
        "role": "x<|im_end|>",
        "content": "",
        "tool_calls": [{"function": {"name": "f", "arguments": "<|im_end|>"}}],
    }
    prompt = template.render(
        [message], add_generation_prompt=False, continue_final_message=False, extra={"hint": {"text": "<|im_end|>"}}
    )
    assert template.variables == {"hint"}
    assert tokenizer.encode_prompt(prompt).count(tokenizer.token_id("<|im_end|>") or -1) == 1


@pytest.mark.parametrize("form", ["string", "list", "jinja", "json"])
def test_a_checkpoints_template_is_found_in_every_form(tmp_path: Path, form: str) -> None:
    source = "{{ messages[0].content }}!"
    named = [{"name": "tool_use", "template": "?"}, {"name": "default", "template": source}]
    settings: dict[str, Any] = {"string": {"chat_template": source}, "list": {"chat_template": named}}.get(form, {})
    folder = checkpoint(tmp_path, "LlamaForCausalLM", **settings)
    if form == "jinja":
        (folder / "chat_template.jinja").write_text(source)
    if form == "json":
        (folder / "chat_template.json").write_text(json.dumps({"chat_template": source}))
    assert render(ChatTemplate.load(folder, None, Tokenizer.load(folder)), CHAT) == "Sei freundlich.!"


def test_an_override_is_a_file_or_the_template_itself(tmp_path: Path, folder: Path, tokenizer: Tokenizer) -> None:
    (tmp_path / "own.jinja").write_text("{{ messages[0].role }}")
    assert render(ChatTemplate.load(folder, str(tmp_path / "own.jinja"), tokenizer), CHAT) == "system"
    assert render(ChatTemplate.load(folder, "{{ messages[0].role }}2", tokenizer), CHAT) == "system2"
    with pytest.raises(TemplateError, match="neither a file nor"):
        ChatTemplate.load(folder, str(tmp_path / "none.jinja"), tokenizer)
    with pytest.raises(TemplateError, match="line 1"):
        ChatTemplate.load(folder, "{% for %}", tokenizer)


def test_the_templates_own_end_of_turn_ends_an_answer(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path, "LlamaForCausalLM")
    tokenizer = Tokenizer.load(folder)
    separator = tokenizer.token_id("<SEP>")
    assert separator not in tokenizer.stop_ids
    ChatTemplate.load(folder, "{% for m in messages %}{{ m.content }}<SEP>\n{% endfor %}", tokenizer)
    assert separator in tokenizer.stop_ids


def test_what_a_template_raises_is_told(folder: Path, tokenizer: Tokenizer) -> None:
    template = ChatTemplate.load(folder, "{{ raise_exception('Erst der Nutzer!') }}", tokenizer)
    with pytest.raises(TemplateError, match="Erst der Nutzer!"):
        render(template, CHAT)
    with pytest.raises(TemplateError, match="TypeError"):
        render(ChatTemplate.load(folder, "{{ 1 + 'a' }}", tokenizer), CHAT)


def test_a_chat_that_makes_no_sense_is_refused(folder: Path, tokenizer: Tokenizer) -> None:
    template = ChatTemplate.load(folder, None, tokenizer)
    with pytest.raises(TemplateError, match="at least one message"):
        render(template, [])
    with pytest.raises(TemplateError, match="exclude each other"):
        render(template, CHAT, add_generation_prompt=True, continue_final_message=True)
    with pytest.raises(TemplateError, match="messages"):
        render(template, CHAT, extra={"messages": []})
    with pytest.raises(TemplateError, match="leaves out"):
        render(ChatTemplate.load(folder, "{{ 1 }}", tokenizer), CHAT, continue_final_message=True)
