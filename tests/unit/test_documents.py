"""README and docs: their links lead somewhere, the README stays short, and its recipe is one."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from ted_ds.cli import main
from tests.tiny import ROOT, write_labelled, write_model

DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "ds_configs").rglob("README.md")])
LINES_OF_README = 150


def anchors_of(file: Path) -> set[str]:
    """Of its headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", file.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading).strip().lower().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("file", DOCUMENTS, ids=lambda file: str(file.relative_to(ROOT)))
def test_links_of_a_document_lead_somewhere(file):
    dead = []
    for link in re.findall(r"\]\(([^)\s]+)\)", file.read_text(encoding="utf-8")):
        path, _, anchor = link.partition("#")
        if re.match(r"\w+:", link):
            continue
        target = (file.parent / path).resolve() if path else file
        if not target.exists() or (anchor and anchor not in anchors_of(target)):
            dead.append(link)
    assert not dead, f"{file}: {dead}"


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= LINES_OF_README


def test_the_recipe_of_the_readme_passes_check(tmp_path, monkeypatch, capsys):
    recipe = re.search(r"```yaml\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    assert recipe is not None
    (tmp_path / "my_recipe.yaml").write_text(recipe[1], encoding="utf-8")
    (tmp_path / "ds_configs").symlink_to(ROOT / "ds_configs")
    write_labelled(tmp_path / "reviews.jsonl", 60, labels=("negative", "positive"))
    write_model(
        tmp_path / "my" / "fine-tuned-teacher",
        "bert",
        blocks=6,
        labels=("negative", "positive"),
        max_position_embeddings=128,
    )
    monkeypatch.chdir(tmp_path)
    assert main(["check", "my_recipe.yaml", "--ranks", "8"]) == 0, capsys.readouterr().err
