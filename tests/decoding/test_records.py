"""Recorded tensors: what was read, and the states from which it was decided."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from unspoken.decoding import Request
from unspoken.decoding.cot import ChainOfThought
from unspoken.decoding.power import PowerSampling
from unspoken.decoding.soft import SoftThinking
from unspoken.errors import ConfigError, RunError
from unspoken.types import Done, Step, event_from_dict, event_to_dict

PROMPTS = ["What is 12 + 30?", "Hi", "Tom has 3 apples."]


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_replaying_the_inputs_gives_the_hidden_states(tiny_lm: Any, family: str) -> None:
    lm = tiny_lm(family)
    soft = SoftThinking(T_e=4, k=3, min_end_prob=1.0, think_open="none", opener="")
    for generation in lm.generate(PROMPTS, soft, max_new_tokens=9, record=("inputs", "hidden"), batch_size=2):
        inputs, hidden = generation.records["inputs"], generation.records["hidden"]
        assert inputs.shape == hidden.shape == (len(generation.steps), lm.hidden_size)
        kinds = {step.kind for step in generation.steps}
        assert "soft" in kinds and "token" in kinds
        assert generation.prompt_ids == soft.prompt_ids(lm, PROMPTS[int(generation.row)])
        prompt = lm.embed(torch.tensor(generation.prompt_ids))
        states: list[torch.Tensor] = []
        hook = lm.anatomy.head.register_forward_pre_hook(lambda _m, args, out=states: out.append(args[0]))
        with torch.no_grad():
            lm.model(inputs_embeds=torch.cat([prompt, inputs])[None], use_cache=False)
        hook.remove()
        again = states[0][0, len(prompt) - 1 : -1]
        torch.testing.assert_close(hidden, again, atol=1e-4, rtol=1e-4)
        for step, vector in zip(generation.steps, inputs, strict=True):
            if step.token_id is not None:
                assert torch.equal(vector, lm.embed(torch.tensor(step.token_id)))


def test_records_are_no_part_of_the_json(tiny_lm: Any) -> None:
    events = list(tiny_lm("llama").stream("Hi", ChainOfThought(), max_new_tokens=3, record="inputs"))
    done = events[-1]
    steps = sum(isinstance(event, Step) for event in events)
    assert isinstance(done, Done) and done.records["inputs"].shape[0] == steps
    assert "records" not in event_to_dict(done) and event_from_dict(event_to_dict(done)) == done


def test_what_cannot_be_recorded_is_refused(tiny_lm: Any) -> None:
    with pytest.raises(ConfigError, match="record must be of inputs, hidden, not 'gate'"):
        Request("Hi", ChainOfThought(), record=("gate",))
    with pytest.raises(RunError, match="record is for strategies of steps"):
        tiny_lm("llama").generate("Hi", PowerSampling(), max_new_tokens=3, record="inputs")
