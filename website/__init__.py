"""The documentation site: ``docs/`` and what is generated from the code, built strictly into ``build/site``.

    python -m website [--out FOLDER]

Pages that people write are in ``docs/`` (and read well without the site); this folder has what only the site has: its
order (``site.yml``), its first page, and modules that make pages of the recipe's schema, the command line's parser, the
messages in the source and the results' tables. Nothing that is generated is kept in the repository.
"""
