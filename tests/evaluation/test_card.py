"""What an evaluation writes for a model card is metadata that the hub reads, with every figure and its protocol."""

from __future__ import annotations

from pathlib import Path

from accelerate import PartialState
from huggingface_hub import ModelCard

from unison.evaluation.records import ALL, Evaluation
from unison.evaluation.stats import Estimate
from unison.evaluation.suites import card
from unison.evaluation.suites.base import Job

EXACT = Estimate(0.61234567, 0.5, 0.7)


def result(suite: str, checkpoint: str, *figures: str, **protocol: str) -> Evaluation:
    told = {"checkpoint": checkpoint, "checkpoint_files": "1", "seed": 0} | protocol
    stated = {name: {ALL: EXACT, "colors": EXACT} for name in figures}
    return Evaluation(0, [], suite, told, stated, ["Mind the gap."])


def read(path: Path) -> dict[str, dict[str, float]]:
    """The figures by data set and task that the hub finds in a card."""
    (entry,) = ModelCard.load(path).data.to_dict()["model-index"]
    return {
        f"{row['dataset']['name']}/{row['task']['type']}": {m["type"]: m["value"] for m in row["metrics"]}
        for row in entry["results"]
    }


def test_one_card_holds_all_suites_of_a_checkpoint_under_the_hubs_task_names(tmp_path: Path) -> None:
    job = Job("runs/mine", "float32", tmp_path, False, PartialState(cpu=True))
    (tmp_path / "rows.jsonl").touch()
    for one in (
        result("geneval", "runs/mine", "correct", "strict"),
        result("world", "runs/mine", "drawing", "answer", data="world"),
        result("understanding", "runs/mine", "answer", data=str(tmp_path / "rows.jsonl")),
        result("editing", "runs/mine", "clip_direction", data="world"),
    ):
        card.save(one, job)
    (tmp_path / "other.json").write_text("{}")
    result("wise", "runs/theirs", "score").save(tmp_path / "wise.json")
    card.save(result("geneval", "runs/mine", "correct", "strict"), job)
    found = read(tmp_path / "card.md")
    assert found == {
        "GenEval/text-to-image": {"correct": 0.6123, "strict": 0.6123},
        "world/text-to-image": {"drawing": 0.6123},
        "world/visual-question-answering": {"answer": 0.6123},
        "understanding: rows.jsonl/visual-question-answering": {"answer": 0.6123},
        "editing: world/image-to-image": {"clip_direction": 0.6123},
    }
    text = (tmp_path / "card.md").read_text()
    assert ModelCard.load(tmp_path / "card.md").data.to_dict()["model-index"][0]["name"] == "mine"
    assert text.count("| correct | 0.612 [0.500, 0.700] | 0.612 |") == 1
    assert text.count("- seed: 0") == text.count("Mind the gap.") == 4


def test_a_single_file_has_a_card_of_its_own(tmp_path: Path) -> None:
    job = Job("owner/model", "float32", tmp_path / "one.json", False, PartialState(cpu=True))
    card.save(result("geneval", "owner/model", "correct"), job)
    assert read(tmp_path / "one.card.md") == {"GenEval/text-to-image": {"correct": 0.6123}}
    assert not (tmp_path / "card.md").exists()
