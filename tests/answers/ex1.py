"""Answers to extra exercise X1, right and wrong, as the text of the answer cell."""


def counts(**changes: int) -> str:
    truth = {"static_steps": 21, "static_tokens": 207, "prompt_padding": 61, "output_padding": 26,
             "continuous_steps": 17, "continuous_tokens": 120}  # fmt: skip
    return f"counts = {truth | changes}"


def jobs(*outputs: int, prompt: int = 3) -> str:
    rows = [(f"r{i}", prompt, output) for i, output in enumerate(outputs)]
    return f"jobs = {rows}"


RIGHT = {
    "x1a": {"a dict": counts(), "whole floats": counts().replace("21", "21.0")},
    "x1b": {
        "two lists": 'batches = [["a", "b", "f", "g"], ["c", "d", "e", "h"]]',
        "the other way round": 'batches = (("h", "e", "c", "d"), ("g", "f", "b", "a"))',
    },
    "x1c": {
        "long first": jobs(*[30, 1, 1, 1] * 3),
        "long anywhere": jobs(1, 30, 1, 1, 30, 1, 1, 1, 1, 1, 1, 30),
        "twenty do": jobs(*[20, 1, 1, 1] * 3, prompt=30),
    },
}

WRONG = {
    "x1a": {
        "the stub": ("counts = dict.fromkeys(('static_steps',))", "not answered yet"),
        "adds all outputs": (counts(static_steps=37), "those of its longest answer"),
        "computes the last token": (
            counts(static_tokens=213, continuous_tokens=126),
            "sampled and never computed",
        ),
        "a prefill step besides": (counts(static_steps=23), "gives the first output token"),
        "one rectangle": (counts(static_tokens=246), "longest of its own rows"),
        "waits for the batch": (counts(continuous_steps=21), "taken in the next"),
        "no seats": (counts(continuous_steps=12), "wait for a seat"),
        "a slip": (counts(prompt_padding=60), "Draw the rectangle"),
        "a slip in the run": (counts(continuous_steps=16), "line for each seat"),
    },
    "x1b": {
        "the stub": ("batches = [[], []]", "not answered yet"),
        "the order of the list": (
            'batches = [["a", "b", "c", "d"], ["e", "f", "g", "h"]]',
            "compute 372 tokens",
        ),
        "sorted by prompt": (
            'batches = [["h", "b", "d", "e"], ["c", "g", "a", "f"]]',
            "sorted by prompt.* need not belong to the same",
        ),
        "one twice": ('batches = [["a", "b", "f", "g"], ["c", "d", "e", "a"]]', "none of yours: h"),
        "a stranger": ('batches = [["a", "b", "f", "z"], ["c", "d", "e", "h"]]', "one of 'a'"),
    },
    "x1c": {
        "the stub": ("jobs = []", "not answered yet"),
        "equal": (jobs(*[30] * 12), "Equal lengths"),
        "two batches": (jobs(*[30, 1, 1, 1] * 2), "two batches"),
        "one long batch": (jobs(30, 1, 1, 1, *[2] * 8), "the short ones waste little"),
        "long neighbours": (jobs(*[30, 20, 20, 20] * 3), "soon run beside"),
        "too long": (jobs(*[60, 1, 1, 1] * 3), "from 1 to 30"),
        "a name twice": ("jobs = [('r', 3, 3), ('r', 3, 3)]", "two jobs named"),
    },
}
