"""The store that keeps a run's checkpoints, too: may it be used, and whose is what is there? Asked as a run begins."""

from __future__ import annotations

from ted_ds.config.schema import Recipe
from ted_ds.errors import CheckpointError, ConfigError, StoreError
from ted_ds.output.run_folder import RUN_FILE, Run, read_run, run_of
from ted_ds.output.store import Patience, Store
from ted_ds.output.stored_numbers import fetch_numbers
from ted_ds.phases.checkpoints import store_of
from ted_ds.runtime.checkpoints.fetching import all_beside
from ted_ds.runtime.world import World


def run_at_store(recipe: Recipe, world: World) -> Run | None:
    """The run whose checkpoints are at the recipe's store; None for none. Every rank must call it.

    Raises:
        ConfigError: The store cannot be used by a host, or what is there is of another run; on every rank.
        CheckpointError: What is there is damaged; on every rank.
    """
    store, upload = store_of(recipe), recipe.checkpoint.upload
    if store is None or upload is None:
        return None
    world.first_on_host(lambda: _try_access(store, f"{world.hosts[world.rank]}-{world.rank}"))

    output_dir = recipe.output_dir

    def read(patience: Patience) -> str | None:
        if not world.is_main:
            return None
        text = store.text_twice(RUN_FILE, lambda found: found is None or _is_sound(found), patience)
        if text is not None and not (output_dir / RUN_FILE).exists():
            fetch_numbers(store, output_dir, patience)
        return text

    text = all_beside(world, read, upload.timeout_s, place=store.name)[0]
    there = None if text is None else world.agree(lambda: run_of(text, f"{store.name}/{RUN_FILE}"))

    def refuse_another() -> None:
        here = read_run(output_dir)
        if here is not None and there is not None and here.run_id != there.run_id:
            raise ConfigError(
                f"checkpoint.upload.to: {store.name}: holds what another run left ({there.run_id}; that of "
                f"{output_dir} is {here.run_id}); give each run a place of its own, or remove one of the two"
            )

    world.on_main(refuse_another)
    return there


def claim_store(recipe: Recipe, world: World) -> None:
    """Leave at the store whose it is, as the output folder says. Every rank must call it.

    Raises:
        StoreError: It cannot be written; on every rank.
        CheckpointError: The disk here refuses, or what is there is of another run, though it was not to be found as
            this one began; on every rank.
    """
    store, upload = store_of(recipe), recipe.checkpoint.upload
    if store is None or upload is None:
        return
    file = recipe.output_dir / RUN_FILE
    text = world.on_main(lambda: file.read_text(encoding="utf-8"))

    def put(patience: Patience) -> None:
        if not world.is_main:
            return
        there = store.text_twice(RUN_FILE, lambda found: found is None or _is_sound(found), patience)
        if there is not None:
            own, other = run_of(text, str(file)), run_of(there, f"{store.name}/{RUN_FILE}")
            if own.run_id != other.run_id:
                raise CheckpointError(
                    f"checkpoint.upload.to: {store.name}: holds what another run left ({other.run_id}; this is "
                    f"{own.run_id}), though the store did not show it before; give each run a place of its own"
                )
        if there != text:
            patience.persist(RUN_FILE, lambda: store.put_text(RUN_FILE, text))

    all_beside(world, put, upload.timeout_s, place=store.name)


def _is_sound(text: str) -> bool:
    try:
        run_of(text, RUN_FILE)
    except CheckpointError:
        return False
    return True


def _try_access(store: Store, own: str) -> None:
    try:
        store.try_access(own)
    except StoreError as error:
        raise ConfigError(
            f"checkpoint.upload.to: {store.name}: cannot be used: {error}. A run writes, reads and removes there: look "
            "at the address, at the bucket (it is not made here) and at the credentials that this host has "
            "(docs/checkpoints.md), or remove checkpoint.upload"
        ) from error
