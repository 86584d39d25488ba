"""What is where in the output folder of a study."""

from __future__ import annotations

STUDY_FILE = "study.json"
"""Everything that it came to; written at its end."""
RUNS_FOLDER = "runs"
"""A folder for each arm, and in it one for each seed."""
LOGS_FOLDER = "logs"
"""A file for each run."""
TEACHERS_FOLDER = "teachers"
"""A folder for each run that trains a teacher."""
