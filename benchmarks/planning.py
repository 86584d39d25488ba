"""A 7B Llama into 14 of its 32 blocks (3.1B) on 8 to 1,000 GPUs, as ``ted-ds check`` computes it. Nothing is run.

    python -m benchmarks.planning [--quick] [--json FILE]

The model is a config and a file of weights that is all hole: what is read of it are the shapes. Memory on a rank, bytes
it sends in a step of Stage II, and the share of the step that is work, by the arithmetic of
ted_ds.planning.phase_memory and ted_ds.planning.traffic. Assumed: 400 Gbit/s from each GPU to other hosts, 3,600
Gbit/s to those of its own host, 400 TFLOP/s of work (40 % of an H100's data sheet), 80 GB. Any machine gives the same
numbers.
"""

from __future__ import annotations

import json
import struct
import tempfile
from pathlib import Path

import yaml

from benchmarks.report import ROOT, at_most, installed, option_parser, publish, table
from ted_ds.config.deepspeed import read_deepspeed_json
from ted_ds.config.load import load_recipe
from ted_ds.planning.memory import frozen_bytes
from ted_ds.planning.phase_memory import phase_memories
from ted_ds.planning.plan import make_plan
from ted_ds.planning.traffic import Link, phase_traffic
from ted_ds.tasks.kind import kind_of

HIDDEN, INNER, BLOCKS, VOCABULARY, HEADS = 4096, 11008, 32, 32000, 32
KEPT_BLOCKS = [0, 2, 4, 7, 9, 11, 14, 16, 19, 21, 24, 26, 29, 31]
LENGTH, MICRO = 2048, 2
HOSTS = {8: 1, 32: 4, 128: 16, 1000: 125}
LAYOUTS = ((1, "replica"), (2, "replica"), (3, "zero3"))
"""ZeRO stage, and where the teacher is."""
AMONG_HOSTS, IN_HOST, TFLOPS = 400.0, 3600.0, 400.0
DEVICE = 80e9


def main() -> None:
    """Compute, and publish."""
    options = option_parser(__doc__, quick="nothing: it takes a second").parse_args()
    rows, claims = [], []
    with tempfile.TemporaryDirectory() as name:
        recipe = write_run(Path(name))
        for num_ranks, num_hosts in HOSTS.items():
            for stage, host in LAYOUTS:
                memory, sent, lowest, highest = plan_one(recipe, num_ranks, stage, host)
                layout = f"{num_hosts} x {num_ranks // num_hosts}, ZeRO-{stage}, teacher {host}"
                gib, sent_gib = f"{memory / 2**30:.0f} GiB", f"{sent / 2**30:.1f} GiB"
                rows.append([layout, gib, sent_gib, f"{lowest:.0%}", f"{highest:.0%}"])
                if stage == 1:
                    claims.append(at_most(f"{layout}: memory / 80 GB", memory / DEVICE, 1.0))
    columns = ("hosts x GPUs", "on each GPU", "sent by each a step", "work, no overlap", "work, all overlaps")
    about = "7B > 3.1B, computed"
    publish([table(about, columns, rows)], claims, versions=installed(["ted_ds"]), json_path=options.json)


def plan_one(recipe: Path, num_ranks: int, stage: int, host: str) -> tuple[int, float, float, float]:
    """Bytes on a rank and sent by it, and the share of work without and with overlap, in Stage II."""
    batch = max(512, 2 * num_ranks)
    changes = [f"deepspeed={ROOT / 'ds_configs' / 'deepspeed' / f'zero{stage}.json'}", f"teacher.host={host}"]
    changes += [f"{phase}.global_batch_size={batch}" for phase in ("distill", "filters.both")]
    loaded = load_recipe(recipe, changes)
    plan, config = make_plan(loaded, kind_of, num_ranks=num_ranks), read_deepspeed_json(loaded.deepspeed)
    assert plan.teacher is not None
    memory = phase_memories(loaded, plan, config, world_size=num_ranks, host=host)[-1]
    teacher = frozen_bytes(plan.teacher.parameters, host=host, precision=loaded.precision, world_size=num_ranks)
    traffic = phase_traffic(loaded, plan, config, num_ranks=num_ranks, host=host)[-1]
    work, send = traffic.seconds(Link(AMONG_HOSTS if HOSTS[num_ranks] > 1 else IN_HOST, TFLOPS))
    return (
        memory.total(config, device_is_host=False) + teacher,
        traffic.sent,
        work / (work + send),
        work / max(work, send),
    )


def write_run(folder: Path) -> Path:
    """A model folder without weights, a line of data, and a recipe."""
    model = folder / "teacher"
    model.mkdir()
    config = {"model_type": "llama", "hidden_size": HIDDEN, "intermediate_size": INNER, "num_hidden_layers": BLOCKS}
    config |= {"num_attention_heads": HEADS, "vocab_size": VOCABULARY, "max_position_embeddings": LENGTH}
    (model / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": False}))
    shapes = {"model.embed_tokens": (VOCABULARY, HIDDEN), "lm_head": (VOCABULARY, HIDDEN), "model.norm": (HIDDEN,)}
    for block in range(BLOCKS):
        own = {f"self_attn.{name}_proj": (HIDDEN, HIDDEN) for name in "qkvo"}
        own |= {f"mlp.{name}_proj": (INNER, HIDDEN) for name in ("gate", "up")} | {"mlp.down_proj": (HIDDEN, INNER)}
        own |= dict.fromkeys(("input_layernorm", "post_attention_layernorm"), (HIDDEN,))
        shapes |= {f"model.layers.{block}.{name}": shape for name, shape in own.items()}
    header, end = {}, 0
    for name, shape in shapes.items():
        size = 2 * shape[0] * (shape[1] if len(shape) > 1 else 1)
        header[f"{name}.weight"] = {"dtype": "BF16", "shape": shape, "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    with (model / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + end)
    (folder / "train.jsonl").write_text('{"text": "a"}\n')
    phase = {"max_steps": 1000, "learning_rate": 1e-4, "global_batch_size": 512, "micro_batch_size": MICRO}
    content = {
        "name": "planning",
        "output_dir": str(folder / "run"),
        "deepspeed": str(ROOT / "ds_configs" / "deepspeed" / "zero1.json"),
        "activation_checkpointing": True,
        "task": {"kind": "causal_lm", "sequence_length": LENGTH},
        "data": {"train": [{"path": str(folder / "train.jsonl")}], "heldout_fraction": 0.01},
        "teacher": {"path": str(model)},
        "student": {"from_teacher": {"blocks": KEPT_BLOCKS}},
        "filters": {"both": phase},
        "distill": {"method": "ted", **phase},
    }
    recipe = folder / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(content), encoding="utf-8")
    return recipe


if __name__ == "__main__":
    main()
