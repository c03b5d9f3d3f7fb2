"""Runs as data: what goes in, what was decided, told and replayed. Standard library only.

`scenario` and `scenarios` are inputs, `drive` runs them without a model, `recorder` and `input_log`
observe a scheduler and write its history (`snapshot`), `explain` tells a step in sentences, and
`conformance` compares a run with vLLM's.
"""
