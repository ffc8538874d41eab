"""Tiny random models and their tokenizer, made from configurations: the same every time, with no download."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

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
