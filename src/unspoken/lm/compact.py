"""Compact tokenizers for small models: one id a word, so that the head costs next to nothing.

GPT-2's 50,257 tokens would take more than nine tenths of the work of a model of half a million parameters.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from unspoken.errors import ConfigError
from unspoken.lm.tokens import THINK_CLOSE, THINK_OPEN

PAD, EOS, UNKNOWN = "<pad>", "<eos>", "<unk>"
MARKER = "####"
MAX_WORDS = 2000


def compact_tokenizer(texts: Iterable[str], extra: Sequence[str] = ()) -> PreTrainedTokenizerFast:
    """A tokenizer made for these texts: one id for each word between spaces.

    Spaces are no tokens, and decoding puts one between two words. With more than 2,000 different words it has
    one id for each character instead, spaces included. Nothing is put before or after a text. The same texts,
    in any order, give the same ids.

    Args:
        texts: All that is to be written with it; what is not in them becomes `<unk>`. `####` is always known.
        extra: Further special tokens, such as separators and fillers, in this order.

    Returns:
        A fast tokenizer that AutoTokenizer reads back after `save_pretrained`.

    Raises:
        ConfigError: If there is no text.
    """
    special = list(dict.fromkeys([PAD, EOS, UNKNOWN, *extra]))
    words, characters = {MARKER}, set(MARKER)
    for text in texts:
        words.update(text.split())
        characters.update(text)
    if len(words) == 1:
        raise ConfigError("A compact tokenizer needs texts; all were empty.")
    # Characters as soon as words are too many; special tokens in the texts are no words.
    whole = len(words.difference(special)) <= MAX_WORDS
    known = sorted(words.difference(special) if whole else characters | {" "})
    vocabulary = {piece: number for number, piece in enumerate([*special, *known])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
    if whole:
        # Without a decoder, tokens are joined by spaces.
        tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
        tokenizer.decoder = decoders.Fuse()
    fast = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=EOS,
        unk_token=UNKNOWN,
        clean_up_tokenization_spaces=False,
    )
    # Thinking markers stay in decoded text, as in the tokenizers of models that reason: phases are told by them.
    hidden = [word for word in extra if word not in (THINK_OPEN, THINK_CLOSE)]
    fast.add_special_tokens({"additional_special_tokens": hidden} if hidden else {})
    return fast
