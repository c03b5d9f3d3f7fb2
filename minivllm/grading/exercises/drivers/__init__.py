"""Functions that run beside the student's code, in the child process.

They are imported before the student's code runs and hold no secret: no reference, no seed, no
expected value. A driver returns raw evidence; the check compares it in the judge's process.
"""
