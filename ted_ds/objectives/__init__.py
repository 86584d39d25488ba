"""The training stages: `loop` says when, each stage says how one batch trains."""
