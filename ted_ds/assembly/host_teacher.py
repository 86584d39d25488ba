"""Where this run keeps its teacher: as the recipe says, as the run began, or the first host that fits."""

from __future__ import annotations

from dataclasses import replace

from ted_ds.config.schema import Recipe
from ted_ds.errors import CheckpointError, ConfigError, TedError
from ted_ds.models.quantised import has_torchao, refuse_without_torchao
from ted_ds.output.run_folder import RUN_FILE, Run
from ted_ds.planning.deepspeed_json import deepspeed_json_of
from ted_ds.planning.hosting import HOSTS, Hosting, Machine, choose_host
from ted_ds.planning.plan import Plan
from ted_ds.runtime.free_memory import free_device_bytes, free_host_bytes
from ted_ds.runtime.initialize import refuse_without_async_io
from ted_ds.runtime.world import World


def host_teacher(recipe: Recipe, plan: Plan, run: Run, world: World, *, run_is_old: bool) -> tuple[Run, Hosting]:
    """Decide, and remember a decision that was this program's. Every rank must call it.

    A run that is started again keeps it, whatever is free then: 8 bits are not the same teacher.

    Args:
        recipe: The recipe.
        plan: Its plan.
        run: What the output folder says of the run.
        world: The ranks.
        run_is_old: Whether the run began before.

    Raises:
        TedError: The host lacks what it needs here; on every rank.
    """
    if recipe.pipeline.stages > 1:
        kept_in_8_bits = recipe.teacher.host == "auto" and run.teacher_host == "int8"
        host = "int8" if kept_in_8_bits or recipe.teacher.host == "int8" else "replica"
        hosting = Hosting(host, f"its blocks on the {recipe.pipeline.stages} stages of a pipeline")
    elif plan.teacher is not None and plan.teacher.quantisation is not None:
        hosting = Hosting("replica", f"its weights are quantised ({plan.teacher.quantisation})")
        run = replace(run, teacher_host=None)
    elif recipe.teacher.host != "auto":
        hosting = Hosting(recipe.teacher.host, "as the recipe says")
        run = replace(run, teacher_host=None)
    elif run.teacher_host is not None:
        hosting = Hosting(run.teacher_host, "as when this run began (teacher.host: auto)")
        _refuse_strange(recipe, run.teacher_host)
    else:
        hosting = choose_host(
            recipe,
            plan,
            deepspeed_json_of(recipe, plan),
            machine_of(world),
            began_whole=run_is_old,
        )
        run = replace(run, teacher_host=hosting.host)
    with world.together():
        if hosting.host == "int8":
            refuse_without_torchao()
        if hosting.host == "nvme_offload":
            refuse_without_async_io("teacher.host: nvme_offload", "cpu_offload")
    return run, hosting


def machine_of(world: World) -> Machine:
    """What there is for each rank. Every rank must call it."""
    return Machine(
        world_size=world.size,
        free_device=free_device_bytes(world),
        free_host=free_host_bytes(world),
        device_is_host=world.device.type == "cpu",
        torchao_is_there=all(world.gather(has_torchao())),
    )


def _refuse_strange(recipe: Recipe, host: str) -> None:
    """What was kept may be damaged, or no longer possible; the same on every rank."""
    where = f"{recipe.output_dir / RUN_FILE}: teacher_host: {host!r}"
    error: TedError | None = None
    if host not in HOSTS:
        error = CheckpointError(f"{where} is none of {', '.join(HOSTS)}; restore it, or set teacher.host")
    elif host == "nvme_offload" and recipe.teacher.offload_dir is None:
        error = ConfigError(
            f"{where} needs teacher.offload_dir, which is no longer set; restore it, or set teacher.host"
        )
    if error is not None:
        error.agreed = True
        raise error
