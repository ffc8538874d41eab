from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import fake_loop
import pytest

from unspoken.errors import ConfigError, DataError
from unspoken.evaluation import Run, compare, load_run, load_runs
from unspoken.evaluation.originals import export_originals

Toys = Callable[..., Run]

ORIGINAL = {
    "metadata": {"strategy": "inverse_p", "model": "Qwen/Qwen2.5-3B-Instruct"},
    "embedding_mixture": {
        "accuracy": 50.0,
        "correct": 1,
        "total": 3,
        "token_counts": [9, 7, 8],
        "results": [
            {
                "problem_id": i,
                "question": f"{i} + {i}?",
                "ground_truth": 2.0 * i,
                "predicted_answer": answer,
                "is_correct": answer == 2.0 * i,
                "token_count": 9 - i,
                "phase_info": {
                    "total_tokens": 9 - i,
                    "phase1_tokens": 4,
                    "phase2_tokens": 3 - i,
                    "transition_tokens": 2,
                    "phase1_rounds_completed": 4,
                    "phase1_rounds_requested": 200,
                    "phase2_rounds_requested": 400,
                    "phase1_token_ids": [[[1, 2], [0.5, 0.5]]] * 4,
                    "phase2_token_ids": [5] * (3 - i),
                    "transition_token_ids": [6, 7],
                },
                "answer_text": "so",
            }
            for i, answer in enumerate([0.0, 2.5, None])
        ],
        "stats": {},
    },
}


@pytest.fixture
def original(tmp_path: Path) -> Path:
    path = tmp_path / "generation_comparison/inverse_p/600_3_0.6/generation_comparison_T_e_200_k_5.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(ORIGINAL))
    return path


def test_reads_a_file_of_the_originals(original: Path, tmp_path: Path) -> None:
    run = load_run(original)
    assert [row.status for row in run.rows] == ["correct", "wrong", "unparsed"]
    assert [row.gold for row in run.rows] == ["0", "2", "4"] and run.rows[1].answer == "2.5"
    assert run.rows[0].usage.latent_steps == 4 and run.rows[0].usage.tokens == 3
    assert run.rows[0].usage.forward_passes == 1 + 4 + 2 + 3
    strategy = run.config["strategy"]
    assert strategy == {
        "name": "soft", "T_total": 600, "temperature": 0.6, "mixture": "inverse_p", "T_e": 200, "k": 5
    }  # fmt: skip
    assert run.config["model"]["source"] == "Qwen/Qwen2.5-3B-Instruct"
    assert run.seconds_per_answer is None and "33.3 %" in str(run)
    assert load_run(tmp_path).rows == run.rows


def test_a_tree_may_hold_several_runs(original: Path, tmp_path: Path) -> None:
    (original.parent / "generation_comparison_T_e_50_k_5.json").write_text(json.dumps(ORIGINAL))
    assert len(load_runs(tmp_path)) == 2
    with pytest.raises(ConfigError, match="holds 2 runs; name one"):
        load_run(tmp_path)
    assert compare(tmp_path).entries[1].verdict == "no difference found"


def test_pairs_with_our_runs_by_the_question(original: Path, toy: Toys) -> None:
    found = compare(toy(limit=5), original)
    assert [e.n for e in found.entries] == [3, 3]
    text = " ".join(found.warnings)
    assert "text of the question" in text and "were not recorded" in text


def test_export_and_back(toy: Toys, tmp_path: Path) -> None:
    run = toy(output=tmp_path / "run", trace="full", samples=2, limit=4)
    path = export_originals(run, tmp_path / "out")
    relative = "generation_comparison/non_uniform/20_4_0.6/generation_comparison_T_e_3_k_2.json"
    assert path == tmp_path / "out" / relative
    content = json.loads(path.read_text())
    assert list(content) == ["metadata", "embedding_mixture"]
    body = content["embedding_mixture"]
    assert list(body) == list(ORIGINAL["embedding_mixture"])
    result, expected = body["results"][0], ORIGINAL["embedding_mixture"]["results"][0]
    assert list(result) == list(expected) and list(result["phase_info"]) == list(expected["phase_info"])
    info, first = result["phase_info"], run.rows[0]
    assert info["phase1_token_ids"][0] == [
        [0, 1],
        [0.625, 0.375],
    ]  # the candidate that was not fed is left out
    assert len(info["phase1_token_ids"]) == info["phase1_tokens"] == first.phases["think"]
    assert info["phase2_token_ids"] == [ord(c) for c in first.text] and info["transition_token_ids"] == [7]
    assert (info["phase1_rounds_requested"], info["phase2_rounds_requested"]) == (3, 17)
    assert result["token_count"] == sum(first.phases.values()) == body["token_counts"][0]
    assert result["answer_text"] == first.text

    back = load_run(path)
    kept = ("index", "sample", "question", "gold", "answer", "text", "correct", "phases")
    assert [[getattr(r, k) for k in kept] for r in back.rows] == [
        [getattr(r, k) for k in kept] for r in run.rows
    ]
    assert back.config == run.config
    assert all(e.difference is None or e.difference.mean == 0 for e in compare(run, back).entries)
    assert export_originals(back, tmp_path / "out" / "generation_comparison") == path


def test_export_without_traces_gives_counts(toy: Toys, tmp_path: Path) -> None:
    path = export_originals(toy(limit=2), tmp_path)
    info = json.loads(path.read_text())["embedding_mixture"]["results"][0]["phase_info"]
    assert info["phase1_token_ids"] == [] and info["phase1_tokens"] > 0


def test_only_two_phase_runs_are_exported(toy: Toys, tmp_path: Path) -> None:
    run = toy(limit=2)
    del run.config["strategy"]["T_e"]
    with pytest.raises(ConfigError, match="has no T_e"):
        export_originals(run, tmp_path)
    (tmp_path / "generation_comparison").write_text("in the way")
    with pytest.raises(ConfigError, match="Cannot write"):
        export_originals(toy(limit=2), tmp_path)


def test_pickles_and_other_files_are_not_opened(tmp_path: Path) -> None:
    pickle = tmp_path / "generation_comparison_T_e_200_k_5.pkl"
    pickle.write_bytes(b"cos\nsystem\n(S'touch " + str(tmp_path / "run").encode() + b"'\ntR.")
    with pytest.raises(DataError, match="generation_comparison format"):
        load_run(pickle)
    assert not (tmp_path / "run").exists()
    (tmp_path / "x.json").write_text('{"embedding_mixture": [1]}')
    with pytest.raises(DataError, match="generation_comparison format"):
        load_run(tmp_path / "x.json")


def test_fake_runs_use_the_fake_loop(toy: Toys) -> None:
    toy(limit=2)
    assert fake_loop.TAKEN == ["toy-0#0", "toy-1#0"]
