"""The documentation site: every page has its place, and what is made from the code has all of it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from xml.etree import ElementTree

import pytest
import yaml

from ted_ds.config.schema import Recipe
from ted_ds.verbs.words import HELP_OF_VERB
from tests.optional import NO_SITE, SITE
from tests.tiny import ROOT
from website import messages, python_api, recipe_keys, staging
from website.figures import PLACE, SEQUENCE, with_figures
from website.links import faults
from website.plots import PLOTS, tables_below
from website.sequence import drawn

CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
TROUBLESHOOTING = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
GENERATED = dict(staging.generated())
MESSAGES = [*messages.found()]


class _Words(yaml.SafeLoader):
    """Reads the site's order; names of functions are of no matter here."""


_Words.add_multi_constructor("tag:yaml.org,2002:python/name:", lambda loader, suffix, node: suffix)


def pages_in(nav):
    for entry in nav:
        for value in entry.values():
            yield from [value] if isinstance(value, str) else pages_in(value)


def test_every_page_stands_in_the_order_once_and_nothing_else():
    order = yaml.load((ROOT / "website" / "site.yml").read_text(encoding="utf-8"), _Words)
    listed = sorted(pages_in(order["nav"]))
    written = [file.relative_to(ROOT).as_posix() for file in (ROOT / "docs").rglob("*.md")]
    others = ["index.md", "CONTRIBUTING.md", "CHANGELOG.md", "ds_configs/recipes/README.md"]
    assert listed == sorted([*written, *others, *GENERATED])


def keys_of(section):
    for name, field in section.model_fields.items():
        yield name
        for kind in recipe_keys.sections_in(field.annotation):
            yield from keys_of(kind)


def test_the_recipe_reference_has_every_key():
    page = GENERATED["reference/recipe.md"]
    assert [name for name in {*keys_of(Recipe)} if f"\n| `{name}`<br>" not in page] == []


@pytest.mark.parametrize(
    "row",
    [
        "| `precision`<br><small>`fp32` or `bf16` or `fp16`<br>default: `bf16`</small> |",
        "| `output_dir`<br><small>path<br>default: follows from the rest</small> |",
        "| `stop_after_minutes`<br><small>number or null, > 0<br>default: unset</small> | Save and stop after so much",
        "| `weight`<br><small>number or text or list of [whole number, number]<br>default: `1.0`</small> | Corpora:",
        "| `labels`<br><small>list of text, 2 or more items<br>default: follows from the rest</small> | Label names in",
        "| `validation`<br><small>list of section or null",
    ],
)
def test_the_recipe_reference_says_of_a_key(row):
    assert row in GENERATED["reference/recipe.md"]


def test_a_section_that_stands_at_several_keys_is_described_once():
    page = GENERATED["reference/recipe.md"]
    assert page.count("{ #phase-plan }") == 1
    assert "The same at `student.finetune`" in page


def test_the_command_line_reference_has_every_verb_and_word():
    page = GENERATED["reference/command_line.md"]
    for verb in HELP_OF_VERB:
        assert f"\n## {verb} {{ #{verb} }}\n" in page
    assert "| `--ranks` | ranks the batches must divide over |" in page
    assert "| `--teacher` | a model folder (asked for in a terminal) |" in page
    assert "| `--to` | the model on the Hub; required |" in page
    assert "| `action` | what to do; one of `train` |" in page
    assert "such as 50% |" in page
    assert "ted-ds check [-h] [--ranks RANKS]" in page


def test_every_message_has_a_group_and_every_group_its_causes():
    assert {messages.group_of(message.module) for message in MESSAGES} == {*messages.GROUPS}
    assert [group for group in messages.GROUPS if f"\n## {group}\n" not in TROUBLESHOOTING] == []


@pytest.mark.parametrize(
    ("module", "kind", "text"),
    [
        ("config/schema", "ConfigError", "export: best needs evaluation.every_steps: only what is scored"),
        ("config/distill", "ConfigError", "use a number of at least 0, or [[step, weight], ...] with ascending"),
        ("config/deepspeed_optimizers", "ConfigError", "‹name›.params: ‹…›: must be a JSON object"),
        ("runtime/checkpoints/folders", "CheckpointError", "‹file›: is damaged (‹error›)"),
        ("data/stream/workers", "DataError", "a data worker died ‹…› times at the same step"),
    ],
)
def test_messages_are_found_however_they_are_raised(module, kind, text):
    assert [one for one in MESSAGES if (one.module, one.kind) == (module, kind) and text in one.text]


def test_a_module_whose_messages_are_in_no_group_is_named():
    with pytest.raises(LookupError, match="kitchen/sink: its messages are in no group; name its folder"):
        messages.group_of("kitchen/sink")


def test_the_glossary_has_every_word_of_its_source_by_the_alphabet():
    rows = re.findall(r"^\| .+ \|$", GENERATED["reference/glossary.md"], re.MULTILINE)[1:]
    assert all(row in CONTRIBUTING for row in rows)
    assert len(rows) > 20
    assert rows[0].startswith("| adapter |")
    assert rows[-1].startswith("| ZeRO stage")


def test_formulas_are_in_the_python_reference():
    assert "\n::: ted_ds.numerics.divergences\n" in GENERATED["reference/python.md"]
    assert python_api.public_names() == [*dict.fromkeys(python_api.public_names())]


def test_a_sequence_is_drawn_with_all_that_it_says():
    svg = ElementTree.fromstring(drawn(SEQUENCE.search(CONTRIBUTING)[1]))
    said = " ".join("".join(one.itertext()) for one in svg.iter("{http://www.w3.org/2000/svg}text"))
    for words in ("phases/loop", "other ranks", "loop over microbatches", "opt every log_every_steps", "state"):
        assert words in said
    arrows = [one for one in svg.iter("{http://www.w3.org/2000/svg}path") if one.get("marker-end")]
    assert len(arrows) == len(re.findall(r"->>", SEQUENCE.search(CONTRIBUTING)[1]))


def test_a_sequence_of_other_words_is_refused():
    with pytest.raises(ValueError, match="does not draw 'par at once'"):
        drawn("sequenceDiagram\nparticipant a as one\npar at once\n")


@pytest.mark.parametrize("name", PLOTS)
def test_a_plot_is_asked_for_and_drawn(name):
    asked = [ROOT / "website" / "pages" / "index.md", *(ROOT / "docs").rglob("*.md")]
    assert any(name in PLACE.findall(file.read_text(encoding="utf-8")) for file in asked)
    svg = ElementTree.fromstring(PLOTS[name]())
    shapes = [one for one in svg.iter() if one.tag.endswith("circle") or one.get("class", "").startswith("curve")]
    assert len(shapes) >= 6


def test_a_table_that_a_plot_is_of_and_that_is_gone_is_named():
    with pytest.raises(ValueError, match="no table below 'Nowhere', which website"):
        tables_below("Nowhere")


def test_drawings_become_a_part_of_their_page(tmp_path):
    (tmp_path / "one.svg").write_text("<svg>\n\n<title>it</title></svg>", encoding="utf-8")
    page = with_figures("a\n\n![What it is](one.svg)\n\n<!-- figure: plot -->\n", tmp_path, {"plot": lambda: "<svg/>"})
    assert "<svg>\n<title>it</title></svg>" in page
    assert "<figcaption>What it is</figcaption>" in page
    assert "one.svg" not in page
    assert "<svg/>" in page


def test_headings_have_the_anchors_that_links_expect():
    assert (
        staging.slug("Ways to begin and to go on: MiniLM, 6 blocks", "-")
        == "ways-to-begin-and-to-go-on-minilm-6-blocks"
    )


def test_links_that_lead_nowhere_and_what_is_loaded_from_elsewhere_are_named(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "index.html").write_text('<p id="here">', encoding="utf-8")
    (tmp_path / "page.html").write_text(
        '<a href="folder/#here"></a><a href="folder/#gone"></a><a href="none.yaml"></a><a href="https://a.b/c"></a>'
        '<script src="https://a.b/c.js"></script><link rel="canonical" href="https://a.b/"><a href="#own" name="own">',
        encoding="utf-8",
    )
    assert faults(tmp_path) == [
        "page.html: loads https://a.b/c.js",
        "page.html: folder/#gone leads nowhere",
        "page.html: none.yaml leads nowhere",
    ]


@pytest.mark.slow
@pytest.mark.skipif(not SITE.is_dir(), reason=NO_SITE)
def test_the_site_is_built_without_a_warning(tmp_path):
    path = os.pathsep.join([str(SITE), str(ROOT)])
    words = [sys.executable, "-m", "website", "--out", str(tmp_path)]
    built = subprocess.run(
        words, cwd=ROOT, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, check=False
    )
    assert built.returncode == 0, built.stdout + built.stderr
    html = tmp_path / "html"
    assert 'id="phase-plan"' in (html / "reference" / "recipe.html").read_text(encoding="utf-8")
    assert 'id="ted_ds.numerics.objective.combine"' in (html / "reference" / "python.html").read_text(encoding="utf-8")
    notebook = json.loads((html / "docs" / "tutorials" / "classify.ipynb").read_text(encoding="utf-8"))
    sources = ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert sources[1] == "%%bash\nhead -n 3 demo_assets/rotten_tomatoes.jsonl"
    assert sources[5].startswith("import json\n")
    theory = (html / "docs" / "theory.html").read_text(encoding="utf-8")
    assert theory.count("<math") > 20
    assert theory.count('<svg class="fig"') == 3
