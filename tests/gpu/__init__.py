"""Checks of one NVIDIA GPU: ``TED_DS_TEST_DEVICE=cuda python -m pytest -m "" -rs tests/gpu``, and all of ``ON_BOTH``.

``TED_DS_TEST_DEVICE=cpu`` rehearses them where there is none: the same tests, on a CPU, but for those that say that
only a GPU can show what they ask. Without the variable all are skipped, aloud. None has run on a GPU yet: this project
was built where there was no GPU.
"""
