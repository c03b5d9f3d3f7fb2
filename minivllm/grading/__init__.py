"""The exercises' grading: `check` for the notebooks, `python -m minivllm.grading` for CI.

The judge lives outside the student's process. A graded cell turns the answer into plain data or
source text, and a fresh process with an untouched `minivllm` judges that. See `runner` for what
the grader defends against and what not.
"""

from minivllm.grading.check import check
from minivllm.grading.part import Failed, Part
from minivllm.grading.sandbox import Student

__all__ = ["Failed", "Part", "Student", "check"]
