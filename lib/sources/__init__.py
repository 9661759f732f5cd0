"""Where questions come from: rows of real datasets, the catalogue of sources, teachers, the SFT set.

All of them give lib.tasks.Task; how a dataset spells its rows stays in this room.
"""

from lib.sources.catalogue import SOURCES, Source, sources_table
from lib.sources.files import DataError, RowError, file_rows
from lib.sources.loading import Loaded, Problem, fits_in, load, load_tasks, read_rows, register
from lib.sources.overlap import duplicates, overlap, report
from lib.sources.sft_set import Drop, SFTSet, build_sft_set, card_markdown, check_response, stage
from lib.sources.teachers import Assignment, Reply, Teacher, chat_teacher, dataset_teacher, teacher_prompt

__all__ = [
    "SOURCES",
    "Assignment",
    "DataError",
    "Drop",
    "Loaded",
    "Problem",
    "Reply",
    "RowError",
    "SFTSet",
    "Source",
    "Teacher",
    "build_sft_set",
    "card_markdown",
    "chat_teacher",
    "check_response",
    "dataset_teacher",
    "duplicates",
    "file_rows",
    "fits_in",
    "load",
    "load_tasks",
    "overlap",
    "read_rows",
    "register",
    "report",
    "sources_table",
    "stage",
    "teacher_prompt",
]
