"""Whether the teacher of a run has something to teach: looked at once, by the first phase that has it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from ted_ds.assembly.assembly import Assembly
from ted_ds.runtime.frozen import FrozenModel
from ted_ds.vetting.preflight import act_on, vet_knowledge


class TeacherVetting:
    """Vets the teacher of one run."""

    def __init__(self, build: Assembly) -> None:
        self._build = build
        self._is_done = False

    def vet(self, teacher: FrozenModel | None, path: Path) -> None:
        """Make sure, once a run, that it is better than a guess. Every rank must call it.

        Args:
            teacher: The model; None on a pipeline stage that has nothing of it.
            path: Its folder, from which all of it is loaded where a rank has not.

        Raises:
            CheckpointError: It is not, and ``preflight`` is ``refuse``; on every rank.
        """
        if self._is_done:
            return
        build = self._build
        is_whole = all(build.world.gather(teacher is not None and teacher.tapped.share.is_whole))
        whole = teacher if is_whole else build.models.frozen("teacher", path)
        assert whole is not None
        verdict = vet_knowledge(build, "teacher", whole)
        if whole is not teacher:
            whole.release()
        if verdict.status == "fail" and build.recipe.teacher.finetune is not None:  # its weights are no surprise
            verdict = replace(verdict, status="warn", detail=f"{verdict.detail} Or fine-tune it for longer")
        act_on(build, verdict)
        self._is_done = True
