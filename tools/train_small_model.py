"""Train `little-stories`, the small model that the package brings along.

    nice .venv/bin/python tools/train_small_model.py    # minivllm/models/little-stories.gguf
    .venv/bin/python tools/train_small_model.py --about # how the one that is there was made

It is a Llama of under a million weights that has read nothing but stories of a grammar
(`tools/story_grammar.py`): it writes sentences, forgets its heroes' names, and knows nothing. It is
for trying the scheduler where SmolLM2 is too large, on a phone for example; ask it nothing.

Everything follows from `SEED`: the stories, the tokenizer, the first weights. On the same machine,
with the same PyTorch, the same file comes out; elsewhere sums are rounded
differently. The file keeps the record: tokens read, seconds of a processor, loss (nats for each
token) on stories that it has not read.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as distributed
from gguf import GGMLQuantizationType, GGUFWriter, quants
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from minivllm.models.config import SMALL_MODEL  # noqa: E402
from minivllm.models.loader import packaged_gguf  # noqa: E402
from minivllm.tokenizer_files import CHATML  # noqa: E402
from tools.story_grammar import END_OF_TURN, EOS, TURN, texts  # noqa: E402

SEED = 22
WORKERS = 2
"""Processes with a thread each, that share every step's rows: matrices this small gain little from
threads."""
VOCAB_SIZE = 1024
HIDDEN, INNER, LAYERS = 128, 320, 4
HEADS, KV_HEADS = 4, 2
POSITIONS = 512
"""Longest row that it reads while it is trained."""
NUM_TEXTS, NUM_HELD_OUT = 30_000, 400
TOKENS_A_STEP = 2048
STEPS = 1000
LONG_STEPS = 100
"""The last steps read rows of `POSITIONS` tokens; those before, of half as many: quicker."""
WARMUP = 30
PEAK_OF_MATRICES, PEAK_OF_OTHERS = 0.02, 0.004
"""Highest learning rates, after `WARMUP` steps: of the layers' matrices, with Muon, and of the
embedding and the norms, with AdamW. From there they fall to a fiftieth, as a cosine does."""
QUANTISED = GGMLQuantizationType.Q8_0


def make_tokenizer(stories: Sequence[str]) -> Tokenizer:
    """Byte-level BPE: three special tokens, all bytes, and what the stories' words merge to."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=[EOS, TURN, END_OF_TURN],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(stories, trainer)
    assert tokenizer.get_vocab_size() == VOCAB_SIZE
    return tokenizer


def make_model() -> Any:
    """The model, with its first weights."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=HIDDEN,
        intermediate_size=INNER,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=KV_HEADS,
        max_position_embeddings=POSITIONS,
        tie_word_embeddings=True,
        rms_norm_eps=1e-5,
        bos_token_id=0,
        eos_token_id=0,
        use_cache=False,
    )
    torch.manual_seed(SEED)
    return LlamaForCausalLM(config)


def rows_of(documents: Sequence[Sequence[int]], lengths: Sequence[int]) -> Iterator[torch.Tensor]:
    """Rows of tokens [length + 1], one after another: each begins where a text does."""
    todo = iter(documents)
    for length in lengths:
        row: list[int] = []
        while len(row) <= length:
            row += next(todo)
        yield torch.tensor(row[: length + 1])


def share_of_peak(step: int) -> float:
    """The learning rate of a step, counted from 0, as a share of the highest."""
    if step < WARMUP:
        return (step + 1) / WARMUP
    done = (step - WARMUP) / (STEPS - WARMUP)
    return 0.02 + 0.98 * (1 + math.cos(math.pi * done)) / 2


def loss_of(model: Any, batch: torch.Tensor) -> torch.Tensor:
    """Mean of -log p (nats) over the next tokens of a batch [rows, length + 1]."""
    logits = model(batch[:, :-1]).logits
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())


@torch.inference_mode()
def held_out_loss(model: Any, documents: Sequence[Sequence[int]]) -> float:
    """Nats for each token of texts that were not read."""
    model.eval()
    rows = list(rows_of(documents, [POSITIONS] * (sum(map(len, documents)) // (2 * POSITIONS))))
    return float(np.mean([float(loss_of(model, row[None])) for row in rows]))


def train(model: Any, documents: Sequence[Sequence[int]]) -> dict[str, float]:
    """Train; the tokens read, and the seconds of processors that it took."""
    context = multiprocessing.get_context("fork")  # the others begin with all that is here
    with tempfile.TemporaryDirectory() as folder:
        meeting = f"file://{folder}/meeting"
        others = [
            context.Process(target=_work, args=(rank, meeting, model, documents))
            for rank in range(1, WORKERS)
        ]
        for other in others:
            other.start()
        try:
            return _work(0, meeting, model, documents)
        finally:
            for other in others:
                other.join(10)
                other.kill()


def _work(
    rank: int, meeting: str, model: Any, documents: Sequence[Sequence[int]]
) -> dict[str, float]:
    """A worker's part: its rows of each batch; gradients are added up over all, then each worker
    makes the same step."""
    distributed.init_process_group("gloo", meeting, rank=rank, world_size=WORKERS)
    lengths = [POSITIONS // (1 if step >= STEPS - LONG_STEPS else 2) for step in range(STEPS)]
    sizes = [TOKENS_A_STEP // length for length in lengths]
    rows = rows_of(documents, [n for n, size in zip(lengths, sizes) for _ in range(size)])
    matrices = [p for name, p in model.named_parameters() if ".layers." in name and p.dim() == 2]
    others = [p for name, p in model.named_parameters() if ".layers." not in name or p.dim() == 1]
    optimisers = {
        torch.optim.Muon(matrices, lr=PEAK_OF_MATRICES, weight_decay=0.0): PEAK_OF_MATRICES,
        torch.optim.AdamW(others, betas=(0.9, 0.95), weight_decay=0.0): PEAK_OF_OTHERS,
    }
    start, read = time.process_time(), 0
    model.train()
    for step, size in enumerate(sizes):
        batch = torch.stack([next(rows) for _ in range(size)])
        read += batch[:, 1:].numel()
        model.zero_grad()
        loss = loss_of(model, batch[rank::WORKERS]) / WORKERS
        loss.backward()
        total = torch.cat([loss.detach()[None], *(p.grad.flatten() for p in model.parameters())])
        distributed.all_reduce(total)
        sizes_of = [1, *(p.numel() for p in model.parameters())]
        for parameter, gradient in zip(model.parameters(), total.split(sizes_of)[1:], strict=True):
            parameter.grad = gradient.view_as(parameter)
        torch.nn.utils.clip_grad_norm_(others, 1.0)
        for optimiser, peak in optimisers.items():
            optimiser.param_groups[0]["lr"] = peak * share_of_peak(step)
            optimiser.step()
        if rank == 0 and (step % 50 == 0 or step == STEPS - 1):
            print(f"step {step:4}: loss {total[0].item():.3f}", flush=True)
    seconds = torch.tensor(time.process_time() - start)
    distributed.all_reduce(seconds)
    distributed.destroy_process_group()
    return {"tokens": float(read), "processor_seconds": seconds.item()}


def rope_permuted(array: np.ndarray, num_heads: int) -> np.ndarray:
    """Rows of Q and K as a GGUF has them (see `gguf_file.undo_rope_permutation`)."""
    halves = array.reshape(num_heads, 2, len(array) // num_heads // 2, *array.shape[1:])
    return halves.swapaxes(1, 2).reshape(array.shape)


_NAMES = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def write(path: Path, model: Any, tokenizer: Tokenizer, record: dict[str, float]) -> None:
    """Write a GGUF: matrices in 8 bits, blocks of 32 with a scale; the tokenizer; the record."""
    writer = GGUFWriter(path, "llama")
    writer.add_name(SMALL_MODEL)
    writer.add_description("Has read nothing but stories of a grammar; knows nothing.")
    writer.add_license("apache-2.0")
    for name, value in record.items():
        writer.add_float32(f"training.{name}", value)
    writer.add_context_length(POSITIONS)
    writer.add_embedding_length(HIDDEN)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(HIDDEN // HEADS)
    writer.add_vocab_size(VOCAB_SIZE)
    writer.add_file_type(7)  # mostly Q8_0
    about = json.loads(tokenizer.to_str())["model"]
    tokens = sorted(about["vocab"], key=about["vocab"].__getitem__)
    merges = [m if isinstance(m, str) else " ".join(m) for m in about["merges"]]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types([3 if token in (EOS, TURN, END_OF_TURN) else 1 for token in tokens])
    writer.add_token_merges(merges)
    writer.add_bos_token_id(tokens.index(EOS))
    writer.add_eos_token_id(tokens.index(EOS))
    writer.add_eot_token_id(tokens.index(END_OF_TURN))
    writer.add_add_bos_token(False)
    writer.add_chat_template(CHATML)
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight":  # the embedding's
            continue
        array = tensor.detach().numpy().astype(np.float32)
        target = _NAMES.get(name)
        if target is None:
            _, _, layer, middle = name.removesuffix(".weight").split(".", 3)
            target = f"blk.{layer}.{_NAMES[middle]}.weight"
            if middle.endswith(("q_proj", "k_proj")):
                array = rope_permuted(array, HEADS if "q_proj" in middle else KV_HEADS)
        if array.ndim == 1:
            writer.add_tensor(target, array)
        else:
            writer.add_tensor(target, quants.quantize(array, QUANTISED), raw_dtype=QUANTISED)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def record_of(path: Path) -> dict[str, float]:
    """The record that a file keeps."""
    from minivllm.models.gguf_file import open_gguf, read_metadata

    metadata = read_metadata(open_gguf(path))
    begin = "training."
    return {k.removeprefix(begin): float(v) for k, v in metadata.items() if k.startswith(begin)}


def main() -> None:
    """Train and write, or tell how it was done."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--about", action="store_true", help="print the record of the file")
    parser.add_argument("--to", type=Path, default=packaged_gguf(SMALL_MODEL))
    args = parser.parse_args()
    if args.about:
        print(json.dumps(record_of(args.to), indent=2))
        return
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    stories = list(texts(SEED, NUM_TEXTS))
    tokenizer = make_tokenizer(stories[:10_000])
    documents = [encoding.ids for encoding in tokenizer.encode_batch(stories)]
    held_out = [e.ids for e in tokenizer.encode_batch(list(texts(SEED + 1, NUM_HELD_OUT)))]
    model = make_model()
    num_weights = sum(parameter.numel() for parameter in model.parameters())
    print(f"{num_weights:,} weights, {sum(map(len, documents)):,} tokens there to read", flush=True)
    record = train(model, documents)
    record |= {"weights": num_weights, "held_out_loss": held_out_loss(model, held_out)}
    args.to.unlink(missing_ok=True)
    write(args.to, model, tokenizer, record)
    print(json.dumps(record, indent=2))


if __name__ == "__main__":
    main()
