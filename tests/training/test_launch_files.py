"""The files for `accelerate launch` that come with the project say only what accelerate knows."""

from __future__ import annotations

from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "recipes" / "accelerate"
TYPES = {"ddp": "MULTI_GPU", "fsdp": "FSDP", "deepspeed_zero2": "DEEPSPEED"}


def test_there_is_one_for_each_way() -> None:
    assert {path.stem for path in FOLDER.glob("*.yaml")} == set(TYPES)


@pytest.mark.parametrize("name", TYPES)
def test_accelerate_reads_it(name: str) -> None:
    from accelerate.commands.config.config_args import load_config_from_file
    from accelerate.commands.launch import launch_command_parser

    config = load_config_from_file(str(FOLDER / f"{name}.yaml"))
    assert config.distributed_type.value == TYPES[name]
    # Keys of the nested part become arguments of the launcher; those that it does not have would be lost.
    known = vars(launch_command_parser().parse_args(["script"]))
    assert set(config.fsdp_config) | set(config.deepspeed_config) <= set(known)
