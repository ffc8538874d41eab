"""Fixtures shared by all tests: tiny random models made from configurations, with no download.

`tiny_model(family)` gives a Hugging Face model and tokenizer, `tiny_lm(family)` the same as an
`unspoken.CausalLM`, `tiny_folder(family)` a saved checkpoint. Models are made once a session and shared:
a test must not change their weights.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

# Before anything imports transformers or torch: no network, and one thread (two processes may test at once).
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest

if TYPE_CHECKING:
    from unspoken.lm.model import CausalLM

FAMILIES = ("llama", "qwen3", "gpt2")

CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SPECIAL_TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<think>", "</think>"]
CORPUS = [
    "Tom has 3 apples and buys 4 more. How many apples does he have now? The answer is 7.",
    "user assistant system question answer final think step so therefore the answer is",
    "What is 12 + 30? 12 + 30 = 42. What is 17 * 23? Let us think step by step.",
    "Natalia sold clips to 48 of her friends in April, and then she sold half as many clips in May.",
]


@cache
def make_tokenizer() -> Any:
    """A byte-level BPE tokenizer of about 400 tokens, with ChatML template; its EOS is `<|im_end|>`."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=SPECIAL_TOKENS[:3],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        clean_up_tokenization_spaces=False,
    )
    # As in reasoning models, these two are single tokens that are not special: they show in the text.
    fast.add_tokens(SPECIAL_TOKENS[3:])
    fast.chat_template = CHAT_TEMPLATE
    return fast


@cache
def make_model(family: str) -> tuple[Any, Any]:
    """A random 2-layer fp32 model of this family in eval mode, and the tokenizer; same weights every time."""
    import torch
    from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig, Qwen3Config

    tokenizer = make_tokenizer()
    shared = {
        "vocab_size": len(tokenizer),
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        # Wide enough that the next-token law is not flat: near-ties would make greedy tests fragile.
        "initializer_range": 0.3,
    }
    rotary = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 1024,
    }
    config: Any
    if family == "llama":
        config = LlamaConfig(**shared, **rotary, tie_word_embeddings=False)
    elif family == "qwen3":
        config = Qwen3Config(**shared, **rotary, tie_word_embeddings=True)
    elif family == "gpt2":
        config = GPT2Config(**shared, n_embd=32, n_layer=2, n_head=4, n_positions=512)
    else:
        raise ValueError(f"No tiny model of family {family!r}; there are {', '.join(FAMILIES)}.")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation="sdpa")
    return model.eval(), tokenizer


@cache
def make_lm(family: str) -> CausalLM:
    """The tiny model as an `unspoken.CausalLM`."""
    from unspoken.lm.model import CausalLM

    return CausalLM(*make_model(family))


@pytest.fixture(scope="session")
def tiny_model() -> Callable[[str], tuple[Any, Any]]:
    """Function from a family's name to (Hugging Face model, tokenizer)."""
    return make_model


@pytest.fixture(scope="session")
def tiny_lm() -> Callable[[str], CausalLM]:
    """Function from a family's name to a tiny `CausalLM`."""
    return make_lm


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Function from a family's name to a folder with its checkpoint, as `save_pretrained` writes it."""
    root = tmp_path_factory.mktemp("tiny")

    def folder(family: str) -> Path:
        path = root / family
        if not path.exists():
            from transformers.utils import logging

            logging.disable_progress_bar()  # tests look at what is written to stderr
            model, tokenizer = make_model(family)
            model.save_pretrained(path)
            tokenizer.save_pretrained(path)
        return path

    return folder


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    """Runs a test once for each family."""
    return str(request.param)


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder of real data that `UNSPOKEN_DATA` names; the test is skipped without one."""
    folder = os.environ.get("UNSPOKEN_DATA")
    if not folder or not Path(folder).is_dir():
        pytest.skip("UNSPOKEN_DATA names no folder of real data")
    return Path(folder)
