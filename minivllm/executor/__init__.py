"""Who carries a plan out: what the engine asks of an executor (`abstract`), and which it gets.

`torch_executor` has PyTorch; `wasm_executor` runs in a reader's browser, where there is none.
`selector` alone imports them, and only the one that it chooses.

Source of the name: vllm/v1/executor/abstract.py, `Executor`.
"""
