"""Situations out of public bug reports, each a folder with a recipe, its inputs, and a README with ``expect:``.

python -m tests.cases tests/cases/folders            # all of them; exits with 1 if one is not as expected
python -m tests.cases tests/cases/folders csv-stars  # some
"""
